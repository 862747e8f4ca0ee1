//! A ring of servers that speak TLS: keys are where they are without it, certificates change, and what is
//! wrong with one server, or with a client, is said.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
};

use protocol::Value;
use tests::{
    certificates::{Authority, TlsServer},
    differential::Wire,
    twemproxy::{Directory, Pool, Proxy, eventually, free_addresses, servers},
};

const KEYS: usize = 300;
const NAMES: [&str; 3] = ["node0", "node1", "node2"];

fn key(number: usize) -> String {
    format!("key:{number}")
}

/// A ring of TLS servers behind a proxy.
struct Ring {
    authority: Authority,
    servers: Vec<TlsServer>,
    proxy: Proxy,
    listen: SocketAddr,
    _directory: Directory,
}

impl Ring {
    async fn start() -> Self {
        let authority = Authority::new();
        let open = ["--tls-auth-clients", "no"];
        let servers = NAMES.map(|name| {
            authority.issue_for(name, &["localhost", "127.0.0.1"]);
            TlsServer::start(&authority, name, &open)
        });
        let at: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
        let (directory, file, listen) = pool(&at);
        let roots = authority.file("ca.pem");
        let proxy = Proxy::by_own_name(&file, &[listen], &["--server-tls-ca", &roots]).await;
        let proxy = proxy.unwrap();
        Self { authority, servers: servers.into(), proxy, listen, _directory: directory }
    }

    fn ask(&self, server: usize, words: &[&str]) -> Value {
        let mut link = self.authority.connect(self.servers[server].address, None);
        link.call(words).unwrap()
    }

    /// The server reads its certificate again, and whoever is connected has to come anew.
    fn renew(&self, server: usize) {
        let [own, key] =
            ["pem", "key"].map(|end| self.authority.file(&format!("{}.{end}", NAMES[server])));
        let words = ["CONFIG", "SET", "tls-cert-file", &own, "tls-key-file", &key];
        // The one that asks sees the old one, and may not trust what comes next.
        let mut link = self.authority.connect(self.servers[server].address, None);
        assert_eq!(link.call(&words).unwrap(), Value::Simple("OK".into()));
        link.call(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    }
}

/// A pool of these servers in a file, and where it listens.
fn pool(servers: &[SocketAddr]) -> (Directory, PathBuf, SocketAddr) {
    let directory = Directory::new().unwrap();
    let listen = free_addresses(1).unwrap()[0];
    let more = &["timeout: 2000"];
    let text = Pool { hash: "md5", more, ..Pool::default() }.text("pool", listen, servers);
    let file = directory.write("nutcracker.yml", &text).unwrap();
    (directory, file, listen)
}

fn fill(client: &mut Wire) {
    for number in 0..KEYS {
        let key = key(number);
        let set = client.call(&[b"SET", key.as_bytes(), key.as_bytes()]).unwrap();
        assert_eq!(set, Value::Simple("OK".into()));
    }
}

fn names(keys: &Value) -> BTreeSet<String> {
    keys.as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect()
}

/// Is every key's answer its value, or, where its server is in `failing`, an error?
fn holds(client: &mut Wire, places: &BTreeMap<String, usize>, failing: &[usize]) -> bool {
    places.iter().all(|(key, server)| {
        let answer = client.call(&[b"GET", key.as_bytes()]).unwrap();
        if failing.contains(server) {
            matches!(answer, Value::Error(_))
        } else {
            answer == Value::Bulk(key.clone().into())
        }
    })
}

#[tokio::test]
async fn a_ring_of_servers_that_speak_tls() {
    let ring = Ring::start().await;
    let mut client = Wire::open(ring.listen).unwrap();
    fill(&mut client);
    // The same ring without TLS has every key at the server of the same name.
    let plain = servers(NAMES.len()).await.unwrap();
    let at: Vec<SocketAddr> = plain.iter().map(|server| server.address).collect();
    let (_directory, file, listen) = pool(&at);
    let _proxy = Proxy::by_own_name(&file, &[listen], &[]).await.unwrap();
    fill(&mut Wire::open(listen).unwrap());
    let mut places = BTreeMap::new();
    for (number, server) in plain.iter().enumerate() {
        let there = Wire::open(server.address).unwrap().call(&[b"KEYS", b"*"]).unwrap();
        let there = names(&there);
        assert!(there.len() > KEYS / 10, "server {number} has {} keys", there.len());
        assert_eq!(names(&ring.ask(number, &["KEYS", "*"])), there, "server {number}");
        places.extend(there.into_iter().map(|key| (key, number)));
    }
    assert_eq!(places.len(), KEYS);
    assert!(holds(&mut client, &places, &[]));
    // A certificate is renewed.
    let renewed = ring.authority.issue_for("node1", &["localhost", "127.0.0.1"]);
    ring.renew(1);
    let mut link = ring.authority.connect(ring.servers[1].address, None);
    link.call(&["PING"]).unwrap();
    assert_eq!(link.certificate(), renewed);
    eventually("a server with a new certificate is used", || Ok(holds(&mut client, &places, &[])))
        .await
        .unwrap();
    // One that nobody trusts costs its own server's keys.
    let stranger = Authority::new();
    stranger.issue_for("node1", &["localhost", "127.0.0.1"]);
    let files = ["node1.pem", "node1.key"];
    let kept = files.map(|name| fs::read(ring.authority.file(name)).unwrap());
    for name in files {
        fs::copy(stranger.file(name), ring.authority.file(name)).unwrap();
    }
    ring.renew(1);
    eventually("a stranger's server fails, and it alone", || Ok(holds(&mut client, &places, &[1])))
        .await
        .unwrap();
    eventually("what is wrong with it is said", || {
        let said = ring.proxy.said();
        let problem = "its certificate is by none of those in --server-tls-ca";
        assert!(holds(&mut client, &places, &[1]), "{said}");
        Ok(said.contains("cannot speak TLS with a server") && said.contains(problem))
    })
    .await
    .unwrap();
    // And back.
    for (name, kept) in files.into_iter().zip(kept) {
        fs::write(ring.authority.file(name), kept).unwrap();
    }
    let mut link = stranger.connect(ring.servers[1].address, None);
    let [own, key] = files.map(|name| ring.authority.file(name));
    link.call(&["CONFIG", "SET", "tls-cert-file", &own, "tls-key-file", &key]).unwrap();
    eventually("all servers are used again", || Ok(holds(&mut client, &places, &[])))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_client_is_said() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.issue("proxy");
    authority.issue("client");
    authority.issue_expired("late", &["localhost"]);
    stranger.issue("client");
    for end in ["pem", "key"] {
        let from = stranger.file(&format!("client.{end}"));
        fs::copy(from, authority.file(&format!("foreign.{end}"))).unwrap();
    }
    let plain = servers(3).await.unwrap();
    let at: Vec<SocketAddr> = plain.iter().map(|server| server.address).collect();
    let (_directory, file, listen) = pool(&at);
    let tls = free_addresses(1).unwrap()[0];
    let [roots, own, key] = ["ca.pem", "proxy.pem", "proxy.key"].map(|name| authority.file(name));
    let place = tls.to_string();
    let arguments =
        ["--tls-listen", &place, "--tls-cert", &own, "--tls-key", &key, "--tls-client-ca", &roots];
    let other = authority.file("client.key");
    let wrong = ["--tls-listen", &place, "--tls-cert", &own, "--tls-key", &other];
    let error = Proxy::by_own_name(&file, &[listen], &wrong).await.unwrap_err().to_string();
    let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(error.contains(&format!("{other} is not the key of {own}")), "{error}");
    let proxy = Proxy::by_own_name(&file, &[listen, tls], &arguments).await.unwrap();
    let says = async |problem: &str| {
        let says = || Ok(proxy.said().contains(problem));
        eventually(problem, says).await.unwrap_or_else(|error| panic!("{error}: {}", proxy.said()));
    };
    let fails = |authority: &Authority, name| {
        let called = authority.connect(tls, name).call(&["PING"]);
        assert!(called.is_err(), "{called:?}");
    };
    let pong = authority.connect(tls, Some("client")).call(&["PING"]).unwrap();
    assert_eq!(pong, Value::Simple("PONG".into()));
    assert!(!proxy.said().contains("cannot speak TLS"), "{}", proxy.said());
    Wire::open(tls).unwrap().call(&[b"PING"]).unwrap_err();
    says("it doesn't speak TLS, as this address does").await;
    fails(&authority, None);
    says("it shows no certificate, which --tls-client-ca asks for").await;
    fails(&authority, Some("foreign"));
    says("its certificate is by none of those in --tls-client-ca").await;
    fails(&authority, Some("late"));
    says("its certificate has expired").await;
    fails(&stranger, Some("client"));
    says("it doesn't trust the certificate that is shown to it").await;
    let mut hello = TcpStream::connect(listen).unwrap();
    hello.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).unwrap();
    says("a client speaks TLS, where none is spoken").await;
}
