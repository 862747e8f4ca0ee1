//! Servers that die, hang and come back: what clients see of it through twemproxy and through
//! keyfleet in its place.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use protocol::Value;
use tests::{
    differential::Wire,
    engines::engine,
    server::Server,
    twemproxy::{Directory, Pool, Proxy, eventually, free_addresses, servers, signal},
};

/// A ring of three servers behind one proxy.
struct Ring {
    servers: Vec<Server>,
    proxy: Proxy,
    listen: SocketAddr,
    directory: Directory,
}

/// Which program stands before the servers.
#[derive(Clone, Copy, Debug)]
enum By {
    Twemproxy,
    Keyfleet,
    /// Under its own name with these arguments.
    Own(&'static [&'static str]),
}

impl Ring {
    async fn start(by: By, pool: &Pool) -> Self {
        let servers = servers(pool.weights.len()).await.unwrap();
        let listen = free_addresses(1).unwrap()[0];
        let directory = Directory::new().unwrap();
        let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let text = pool.text("pool", listen, &addresses);
        let file = directory.write("nutcracker.yml", &text).unwrap();
        let proxy = match by {
            By::Twemproxy => Proxy::nutcracker(&file, &[listen]).await,
            By::Keyfleet => Proxy::keyfleet(&file, &[listen]).await,
            By::Own(arguments) => Proxy::by_own_name(&file, &[listen], arguments).await,
        };
        Self { servers, proxy: proxy.unwrap(), listen, directory }
    }

    fn wire(&self) -> Wire {
        Wire::open(self.listen).unwrap()
    }

    /// A key of each server: the same everywhere, because servers have names.
    fn keys(&self) -> Vec<String> {
        let mut wire = self.wire();
        let mut keys: Vec<Option<String>> = vec![None; self.servers.len()];
        for number in 0.. {
            let key = format!("key{number}");
            set(&mut wire, &key, "1");
            let has = |server: &Server| {
                let mut wire = Wire::open(server.address).unwrap();
                wire.call(&[b"EXISTS", key.as_bytes()]).unwrap() == Value::Integer(1)
            };
            let place = self.servers.iter().position(has).unwrap();
            keys[place].get_or_insert(key);
            if keys.iter().all(Option::is_some) {
                return keys.into_iter().flatten().collect();
            }
        }
        unreachable!("numbers don't end")
    }
}

fn get(wire: &mut Wire, key: &str) -> Value {
    wire.call(&[b"GET", key.as_bytes()]).unwrap()
}

fn set(wire: &mut Wire, key: &str, value: &str) {
    let answer = wire.call(&[b"SET", key.as_bytes(), value.as_bytes()]).unwrap();
    assert_eq!(answer, Value::Simple("OK".into()));
}

fn is_error(value: &Value, text: &str) -> bool {
    matches!(value, Value::Error(error) if error == text)
}

const EJECTS: &[&str] =
    &["auto_eject_hosts: true", "server_failure_limit: 3", "server_retry_timeout: 700"];

/// A dead server's keys: errors until it is ejected, then the others serve them, then it is tried
/// again and again fails as often; when it is back, so are its keys. What each request is answered
/// with is the same for both.
#[tokio::test]
async fn ejection_is_like_twemproxys() {
    for by in [By::Twemproxy, By::Keyfleet, By::Own(&[])] {
        let pool = Pool { more: EJECTS, ..Pool::default() };
        let mut ring = Ring::start(by, &pool).await;
        let keys = ring.keys();
        let mut wire = ring.wire();
        let address = ring.servers[1].address;
        ring.servers[1].kill().unwrap();
        // The connection that was there is lost: the first failure.
        eventually("its end is seen", || {
            Ok(ring.proxy.stats()?["pool"]["server1"]["server_connections"] == 0)
        })
        .await
        .unwrap();
        let mut refused = 0;
        let answer = loop {
            match get(&mut wire, &keys[1]) {
                error @ Value::Error(_) => {
                    assert!(is_error(&error, "ERR Connection refused"), "{by:?}: {error:?}");
                    refused += 1;
                }
                answer => break answer,
            }
        };
        assert_eq!((refused, answer), (2, Value::Null), "{by:?}");
        set(&mut wire, &keys[1], "elsewhere");
        for place in [0, 2] {
            assert_eq!(get(&mut wire, &keys[place]).as_str(), Some("1"), "{by:?}");
        }
        // After its time it has its part again.
        let mut refused = 0;
        eventually("it is tried again", || {
            refused += u32::from(is_error(&get(&mut wire, &keys[1]), "ERR Connection refused"));
            Ok(refused > 0)
        })
        .await
        .unwrap();
        while get(&mut wire, &keys[1]).as_str() != Some("elsewhere") {
            refused += 1;
        }
        assert_eq!(refused, 3, "{by:?}");
        let redis = engine("redis", "7.0").server;
        let _back = Server::start_at(&redis, address).await.unwrap();
        eventually("it is back, without what it held", || {
            Ok(get(&mut wire, &keys[1]) == Value::Null)
        })
        .await
        .unwrap();
        set(&mut wire, &keys[1], "there");
        assert_eq!(get(&mut wire, &keys[1]).as_str(), Some("there"), "{by:?}");
        eventually("figures", || {
            let stats = ring.proxy.stats()?;
            Ok(stats["pool"]["server_ejects"] == 2)
        })
        .await
        .unwrap();
        let stats = ring.proxy.stats().unwrap();
        let ejected_at = stats["pool"]["server1"]["server_ejected_at"].as_u64().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros() as u64;
        assert!(ejected_at < now && ejected_at + 60_000_000 > now, "{by:?} {ejected_at} {now}");
        assert!(ring.directory.0.exists());
    }
}

/// The other way: an ejected server's keys are refused at once, and nobody else serves them.
#[tokio::test]
async fn ejected_servers_keys_are_refused_where_that_is_wanted() {
    let pool = Pool { more: EJECTS, ..Pool::default() };
    let mut ring = Ring::start(By::Own(&["--ejected", "error"]), &pool).await;
    let keys = ring.keys();
    let mut wire = ring.wire();
    let address = ring.servers[1].address;
    ring.servers[1].kill().unwrap();
    eventually("it is ejected", || {
        assert!(is_error(&get(&mut wire, &keys[1]), "ERR Connection refused"));
        Ok(ring.proxy.stats()?["pool"]["server_ejects"] == 1)
    })
    .await
    .unwrap();
    let redis = engine("redis", "7.0").server;
    let _back = Server::start_at(&redis, address).await.unwrap();
    for place in [0, 2] {
        assert_eq!(get(&mut wire, &keys[place]).as_str(), Some("1"));
    }
    eventually("it is back", || match get(&mut wire, &keys[1]) {
        Value::Null => Ok(true),
        other => {
            assert!(is_error(&other, "ERR Connection refused"), "{other:?}");
            Ok(false)
        }
    })
    .await
    .unwrap();
}

/// A server that hangs: its keys time out, the others' keys don't wait for them, also where one
/// client asks for both.
#[tokio::test]
async fn a_server_that_hangs_harms_only_its_own_keys() {
    let pool = Pool { more: &["timeout: 400"], ..Pool::default() };
    let ring = Ring::start(By::Keyfleet, &pool).await;
    let keys = ring.keys();
    let (mut slow, mut fast) = (ring.wire(), ring.wire());
    signal(ring.servers[1].pid(), "STOP").unwrap();
    let words = |key: &str| vec![b"GET".to_vec(), key.as_bytes().to_vec()];
    let asked = Instant::now();
    slow.send(&[words(&keys[0]), words(&keys[1]), words(&keys[2])]).unwrap();
    assert_eq!(slow.reply().unwrap().as_str(), Some("1"));
    let mut served = 0;
    while asked.elapsed() < Duration::from_millis(200) {
        for place in [0, 2] {
            assert_eq!(get(&mut fast, &keys[place]).as_str(), Some("1"));
            served += 1;
        }
    }
    // As many as there is time for: none waited for the one that hangs.
    assert!(served > 20, "{served}");
    let late = slow.reply().unwrap();
    assert!(is_error(&late, "ERR Connection timed out"), "{late:?}");
    assert!(asked.elapsed() >= Duration::from_millis(400));
    assert_eq!(slow.reply().unwrap().as_str(), Some("1"));
    // MGET over all: an error, and the client can go on.
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let all = slow.call(&[b"MGET", keys[0], keys[1], keys[2]]).unwrap();
    assert!(is_error(&all, "ERR Connection timed out"), "{all:?}");
    signal(ring.servers[1].pid(), "CONT").unwrap();
    eventually("it goes on", || {
        let all = slow.call(&[b"MGET", keys[0], keys[1], keys[2]])?;
        Ok(all.as_array().is_some_and(|all| all.iter().all(|one| one.as_str() == Some("1"))))
    })
    .await
    .unwrap();
}

/// Hanging, it is ejected by its timeouts alone.
#[tokio::test]
async fn a_server_that_hangs_is_ejected() {
    let more = &[
        "timeout: 150",
        "auto_eject_hosts: true",
        "server_failure_limit: 2",
        "server_retry_timeout: 60000",
    ];
    for by in [By::Twemproxy, By::Keyfleet] {
        let ring = Ring::start(by, &Pool { more, ..Pool::default() }).await;
        let keys = ring.keys();
        let mut wire = ring.wire();
        signal(ring.servers[1].pid(), "STOP").unwrap();
        let mut late = 0;
        while get(&mut wire, &keys[1]) != Value::Null {
            late += 1;
        }
        assert_eq!(late, 2, "{by:?}");
        signal(ring.servers[1].pid(), "CONT").unwrap();
    }
}
