//! How the clients of a ring's pools are served beyond what twemproxy has: TLS, users and limits,
//! figures, and one proxy in the place of another.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

use protocol::Value;
use tests::{
    certificates::Authority,
    differential::Wire,
    fleet::program,
    server::Server,
    twemproxy::{Directory, Pool, Proxy, eventually, free_addresses, servers},
};

const OK: &str = "OK";

fn addresses(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.address).collect()
}

/// The answer's text, an error's too; nothing where the connection was closed.
fn ask(wire: &mut Wire, words: &str) -> String {
    let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    wire.call(&words).map(|answer| text(&answer)).unwrap_or_default()
}

fn text(answer: &Value) -> String {
    match answer {
        Value::Simple(text) | Value::Error(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        answer => answer.as_str().unwrap_or_default().to_owned(),
    }
}

/// What is at a path of the figures' address.
fn fetch(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Two pools over the same servers, each with a database of its own.
fn two(ports: &[SocketAddr], servers: &[SocketAddr]) -> [String; 2] {
    let pool = |db| Pool { weights: &[1, 1], more: db, ..Pool::default() };
    let (one, other) = (pool(&["redis_db: 1"]), pool(&["redis_db: 2"]));
    [one.text("one", ports[0], servers), other.text("other", ports[1], servers)]
}

#[tokio::test]
async fn each_pool_has_clients_with_tls() {
    let servers = servers(2).await.unwrap();
    let ports = free_addresses(4).unwrap();
    let [one, other] = two(&ports, &addresses(&servers));
    let directory = Directory::new().unwrap();
    let file = directory.write("nutcracker.yml", &(one.clone() + &other)).unwrap();
    let authority = Authority::new();
    let first = authority.issue("proxy");
    let listen = format!("one={},other={}", ports[2], ports[3]);
    let (certificate, key) = (authority.file("proxy.pem"), authority.file("proxy.key"));
    let tls = ["--tls-listen", &listen, "--tls-cert", &certificate, "--tls-key", &key];
    let proxy = Proxy::by_own_name(&file, &ports, &tls).await.unwrap();
    let mut secret = authority.connect(ports[2], None);
    let mut other_secret = authority.connect(ports[3], None);
    assert_eq!(text(&secret.call(&["SET", "a", "1"]).unwrap()), OK);
    assert_eq!(text(&other_secret.call(&["SET", "a", "2"]).unwrap()), OK);
    for (port, expected) in [(ports[0], "1"), (ports[1], "2")] {
        assert_eq!(ask(&mut Wire::open(port).unwrap(), "GET a"), expected);
    }
    assert_eq!(ask(&mut Wire::open(ports[2]).unwrap(), "GET a"), "", "TLS is spoken there");

    // A new certificate drops nobody.
    let second = authority.issue("proxy");
    proxy.signal("HUP").unwrap();
    eventually("the new one is shown, by both", || {
        let shown = [ports[2], ports[3]].map(|port| {
            let mut client = authority.connect(port, None);
            client.call(&["GET", "a"]).unwrap();
            client.certificate()
        });
        Ok(shown.iter().all(|shown| *shown == second))
    })
    .await
    .unwrap();
    assert_eq!(secret.certificate(), first);
    assert_eq!(text(&secret.call(&["GET", "a"]).unwrap()), "1");

    // A file without a pool whose clients are to speak TLS is refused, and all stays as it is.
    fs::write(&file, &one).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("it says why", || Ok(proxy.said().contains("no pool is called other")))
        .await
        .unwrap();
    assert_eq!(text(&other_secret.call(&["GET", "a"]).unwrap()), "2");
    // One that has it, at another place, keeps those clients.
    let moved = one.clone() + &other.replace("redis_db: 2", "redis_db: 1");
    fs::write(&file, moved).unwrap();
    eventually("it reads of the other database", || {
        Ok(text(&other_secret.call(&["GET", "a"]).unwrap()) == "1")
    })
    .await
    .unwrap();
    assert_eq!(text(&secret.call(&["GET", "a"]).unwrap()), "1");
}

/// What can't be meant is refused, and said.
#[tokio::test]
async fn wrong_places_are_refused() {
    let ports = free_addresses(3).unwrap();
    let [one, other] = two(&ports, &ports[2..].repeat(2));
    let directory = Directory::new().unwrap();
    let file = directory.write("nutcracker.yml", &(one + &other)).unwrap();
    let authority = Authority::new();
    authority.issue("proxy");
    let (certificate, key) = (authority.file("proxy.pem"), authority.file("proxy.key"));
    let refused = |listen: &str, code: i32, expected: &str| {
        let mut command = Command::new(program());
        command.args(["proxy", "--twemproxy"]).arg(&file).args(["--tls-listen", listen]);
        let output =
            command.args(["--tls-cert", &certificate, "--tls-key", &key]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    };
    let place = ports[2].to_string();
    refused(&place, 1, "whose clients speak TLS at");
    refused(&format!("third={place}"), 1, "no pool is called third");
    refused("one=here", 1, "no address");
    refused(&format!("one={}", ports[0]), 2, "pool one: cannot listen on");
}

#[tokio::test]
async fn figures_name_their_pools() {
    let servers = servers(2).await.unwrap();
    let all = addresses(&servers);
    let ports = free_addresses(4).unwrap();
    let [one, other] = two(&ports, &all);
    let directory = Directory::new().unwrap();
    let file = directory.write("nutcracker.yml", &one).unwrap();
    let place = ports[3].to_string();
    let more =
        ["--metrics", &place, "--slowlog-slower-than", "0", "--hot-keys", "1", "--threads", "2"];
    let proxy = Proxy::by_own_name(&file, &ports[..1], &more).await.unwrap();
    fs::write(&file, one + &other).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("the other is there", || Ok(Wire::open(ports[1]).is_ok())).await.unwrap();
    let (mut first, mut second) = (Wire::open(ports[0]).unwrap(), Wire::open(ports[1]).unwrap());
    for _ in 0..3 {
        ask(&mut first, "INCR a");
    }
    for _ in 0..5 {
        ask(&mut second, "INCR a");
    }
    let figures = fetch(ports[3], "/metrics");
    let figure = |begin: &str, end: &str| -> u64 {
        let lines = figures.lines().filter_map(|line| line.strip_prefix("keyfleet_proxy_"));
        let found = lines.filter(|line| line.starts_with(begin) && line.contains(end));
        found.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    assert_eq!(figure("requests_total{pool=\"one\"}", ""), 3, "{figures}");
    assert_eq!(figure("requests_total{pool=\"other\"}", ""), 5);
    assert_eq!(figure("clients{pool=\"other\"}", ""), 1);
    for server in &all {
        let server = format!("server=\"{server}\"");
        let both = figure("server_requests_total{pool=\"one\"", &server)
            + figure("server_requests_total{pool=\"other\"", &server);
        // One of them has the key.
        assert!(both == 0 || both == 8, "{server} {both}");
    }
    assert_eq!(figure("server_requests_total{", ""), 8);
    assert_eq!(figure("server_latency_seconds_count{pool=\"other\",server=", ""), 5);

    let slow: serde_json::Value = serde_json::from_str(&fetch(ports[3], "/slowlog")).unwrap();
    assert_eq!((slow.as_array().unwrap().len(), &slow[0]["keys"][0]), (8, &"a".into()));
    assert_eq!(ask(&mut first, "SLOWLOG LEN"), "3", "those of its pool");
    let hot: serde_json::Value = serde_json::from_str(&fetch(ports[3], "/hot")).unwrap();
    assert_eq!(hot["hot"][0]["key"], "a");
    let top = Command::new(program()).args(["proxy", "top", &place, "--output", "json"]).output();
    let page: serde_json::Value = serde_json::from_slice(&top.unwrap().stdout).unwrap();
    assert_eq!(page["clients"], 2.0, "{page}");
    let rows = page["servers"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["server"].as_str().unwrap()).collect();
    let expected = ["one", "other"].map(|pool| all.clone().into_iter().map(move |it| (pool, it)));
    let mut expected: Vec<String> =
        expected.into_iter().flatten().map(|(pool, server)| format!("{pool} {server}")).collect();
    expected.sort();
    assert_eq!(names, expected);
}

/// Users and limits hold for all pools together, and for a pool that comes later.
#[tokio::test]
async fn users_are_the_same_for_all_pools() {
    let servers = servers(2).await.unwrap();
    let ports = free_addresses(3).unwrap();
    let [one, other] = two(&ports, &addresses(&servers));
    let directory = Directory::new().unwrap();
    let file = directory.write("nutcracker.yml", &one).unwrap();
    let users = |text: &str| directory.write("users.yaml", text).unwrap();
    let path = users("users: {app: {password: one, clients-max: 1}}\n").display().to_string();
    let place = ports[2].to_string();
    let more = ["--users", &path, "--metrics", &place, "--clients-max", "3"];
    let proxy = Proxy::by_own_name(&file, &ports[..1], &more).await.unwrap();
    fs::write(&file, one + &other).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("the other is there", || Ok(TcpStream::connect(ports[1]).is_ok())).await.unwrap();
    let open = |port: usize| Wire::open(ports[port]).unwrap();
    let mut app = open(0);
    assert!(ask(&mut app, "GET a").starts_with("NOAUTH"));
    assert!(ask(&mut app, "AUTH app two").starts_with("WRONGPASS"));
    assert_eq!(ask(&mut app, "AUTH app one"), OK);
    assert_eq!(ask(&mut app, "SET a 1"), OK);
    let mut second = open(1);
    assert!(ask(&mut second, "GET a").starts_with("NOAUTH"));
    assert!(ask(&mut second, "AUTH app one").contains("max number of clients of this user"));
    drop(app);
    eventually("he may again", || Ok(ask(&mut second, "AUTH app one") == OK)).await.unwrap();
    assert_eq!(ask(&mut second, "SET a 2"), OK);
    assert!(fetch(ports[2], "/metrics").contains("keyfleet_proxy_user_clients{user=\"app\"} 1"));

    users("users: {app: {password: one}, new: {password: two}}\n");
    proxy.signal("HUP").unwrap();
    let mut third = open(0);
    eventually("there is a new one", || Ok(ask(&mut third, "AUTH new two") == OK)).await.unwrap();
    assert_eq!(ask(&mut third, "GET a"), "1");
    assert_eq!(ask(&mut third, "AUTH app one"), OK);
    assert_eq!(ask(&mut second, "GET a"), "2");
    let fourth = open(1);
    let refused = ask(&mut open(0), "PING");
    assert!(refused.is_empty() || refused.contains("max number of clients"), "{refused}");
    drop(fourth);
}

/// Its clients' addresses are those that a load balancer says.
#[tokio::test]
async fn a_load_balancer_says_who_its_clients_are() {
    let servers = servers(2).await.unwrap();
    let ports = free_addresses(2).unwrap();
    let [one, _] = two(&ports, &addresses(&servers));
    let directory = Directory::new().unwrap();
    let file = directory.write("nutcracker.yml", &one).unwrap();
    let _proxy = Proxy::by_own_name(&file, &ports[..1], &["--proxy-protocol"]).await.unwrap();
    let mut wire = Wire::open(ports[0]).unwrap();
    wire.send_bytes(b"PROXY TCP4 192.0.2.1 10.0.0.9 4660 6379\r\nCLIENT INFO\r\n").unwrap();
    let said = text(&wire.reply().unwrap());
    assert!(said.contains("addr=192.0.2.1:4660 laddr=10.0.0.9:6379"), "{said}");
    let mut plain = Wire::open(ports[0]).unwrap();
    assert_eq!(ask(&mut plain, "PING"), "", "who doesn't say it is refused");
}

/// New ones come while clients do, and nobody is refused; each former one serves its clients until
/// they go. At the end what is under way is answered.
#[tokio::test]
async fn nobody_is_refused_while_proxies_take_over() {
    let servers = servers(2).await.unwrap();
    let ports = free_addresses(4).unwrap();
    let [one, other] = two(&ports, &addresses(&servers));
    let directory = Directory::new().unwrap();
    let socket = directory.0.join("one.sock").display().to_string();
    let other = other.replace(&ports[1].to_string(), &socket);
    let file = directory.write("nutcracker.yml", &(one + &other)).unwrap();
    let authority = Authority::new();
    authority.issue("proxy");
    let listen = format!("one={}", ports[2]);
    let (certificate, key) = (authority.file("proxy.pem"), authority.file("proxy.key"));
    let (path, place) = (directory.0.join("takeover").display().to_string(), ports[3].to_string());
    let tls = ["--tls-listen", &listen, "--tls-cert", &certificate, "--tls-key", &key];
    let more = ["--takeover", &path, "--metrics", &place, "--drain", "20", "--threads"];
    let listens = [ports[0], ports[2], ports[3]];
    let arguments = |threads| [&tls[..], &more, &[threads]].concat();
    let mut proxy = Proxy::by_own_name(&file, &listens, &arguments("2")).await.unwrap();
    let stats = proxy.stats.to_string();
    let stop = Arc::new(AtomicBool::new(false));
    let visits = |port: SocketAddr| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut visits = 0;
            while !stop.load(SeqCst) {
                let mut wire = Wire::open(port).expect("nobody is refused");
                assert_eq!(ask(&mut wire, "SET visits 1"), OK);
                visits += 1;
            }
            visits
        })
    };
    let visitors = [visits(ports[0]), visits(ports[0])];
    for threads in ["1", "3", "2"] {
        let mut stays = Wire::open(ports[0]).unwrap();
        assert_eq!(ask(&mut stays, "SET a 1"), OK);
        let next = arguments(threads);
        let next = proxy.in_its_place(&file, &listens, &next).await.unwrap();
        assert_eq!(next.stats.to_string(), stats);
        let mut former = std::mem::replace(&mut proxy, next);
        eventually("the other serves", || Ok(former.said().contains("took over"))).await.unwrap();
        assert_eq!(ask(&mut stays, "GET a"), "1");
        let mut secret = authority.connect(ports[2], None);
        assert_eq!(text(&secret.call(&["GET", "a"]).unwrap()), "1");
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"PING\r\n").unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
        assert!(fetch(ports[3], "/metrics").contains("clients{pool=\"one\"}"));
        assert!(proxy.stats().unwrap()["one"].is_object());
        drop(stays);
        assert_eq!(former.ended().await.unwrap(), Some(0));
    }
    stop.store(true, SeqCst);
    for visitor in visitors {
        assert!(visitor.join().expect("every answer is right") > 10);
    }
    let mut wire = Wire::open(ports[0]).unwrap();
    let script = "local t=redis.call('TIME') local e=t[1]*1e6+t[2]+3e5 repeat \
                  t=redis.call('TIME') until t[1]*1e6+t[2]>e return 'done'";
    let slow = ["EVAL", script, "1", "key"].map(|word| word.as_bytes().to_vec()).to_vec();
    wire.send(&[slow]).unwrap();
    eventually("it is on its way", || {
        let stats = proxy.stats()?;
        Ok(["server0", "server1"].iter().any(|server| stats["one"][server]["out_queue"] == 1))
    })
    .await
    .unwrap();
    proxy.signal("TERM").unwrap();
    assert_eq!(text(&wire.reply().unwrap()), "done");
    assert_eq!(proxy.ended().await.unwrap(), Some(0));
    assert!(!fs::exists(path).unwrap(), "nobody waits there any more");
}
