//! TLS to servers, in front of real ones, and several certificates at one address.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use protocol::Value;
use tests::{
    certificates::Authority,
    differential::Wire,
    engines::engine,
    proxy::{Program, wait_until},
    server::{free_port, new_directory},
};

/// A server that speaks TLS only, with clients that show a certificate; dropping it kills it.
struct Server {
    address: SocketAddr,
    process: Child,
    directory: PathBuf,
}

impl Server {
    fn start(authority: &Authority, certificate: &str, config: &[&str]) -> Self {
        for _ in 0..10 {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
            let directory = new_directory().unwrap();
            let port = address.port().to_string();
            let [own, key, roots] =
                [&format!("{certificate}.pem"), &format!("{certificate}.key"), "ca.pem"]
                    .map(|name| authority.file(name));
            let mut process = Command::new(engine("redis", "7.0").server)
                .args(["--port", "0", "--bind", "127.0.0.1", "--save", "", "--tls-port", &port])
                .args([
                    "--tls-cert-file",
                    &own,
                    "--tls-key-file",
                    &key,
                    "--tls-ca-cert-file",
                    &roots,
                ])
                .args(config)
                .current_dir(&directory)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let mut ended = false;
            wait_until("the server listens", || {
                ended = process.try_wait().unwrap().is_some();
                ended || std::net::TcpStream::connect(address).is_ok()
            });
            if !ended {
                return Self { address, process, directory };
            }
        }
        panic!("the server doesn't start");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Two nodes that share the slots.
fn cluster(authority: &Authority, certificate: &str) -> [Server; 2] {
    let config = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let nodes = [(); 2].map(|()| Server::start(authority, certificate, &config));
    let ask = |node: &Server, words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        authority.connect(node.address, Some("client")).call(&words).unwrap()
    };
    for (node, slots) in nodes.iter().zip(["0 8191", "8192 16383"]) {
        assert_eq!(
            ask(node, &format!("CLUSTER ADDSLOTSRANGE {slots}")),
            Value::Simple("OK".into())
        );
    }
    ask(&nodes[0], &format!("CLUSTER MEET 127.0.0.1 {}", nodes[1].address.port()));
    for node in &nodes {
        wait_until("the cluster serves", || {
            let info = ask(node, "CLUSTER INFO");
            let info = info.as_str().unwrap();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
        });
    }
    nodes
}

/// Writes and reads keys of both nodes, and large values.
fn use_all(client: &mut Wire, round: usize) {
    for number in 0..50 {
        let key = format!("key-{round}-{number}");
        let value = "v".repeat(if number == 7 { 3_000_000 } else { number });
        assert_eq!(
            client.call(&[b"SET", key.as_bytes(), value.as_bytes()]).unwrap(),
            Value::Simple("OK".into())
        );
        assert_eq!(client.call(&[b"GET", key.as_bytes()]).unwrap(), Value::Bulk(value.into()));
    }
}

#[test]
fn a_cluster_that_speaks_tls_serves_plain_clients() {
    let authority = Authority::new();
    authority.issue_for("node", &["localhost", "127.0.0.1"]);
    authority.issue("client");
    let nodes = cluster(&authority, "node");
    let [roots, own, key, other] =
        ["roots.pem", "client.pem", "client.key", "ca.pem"].map(|name| authority.file(name));
    fs::copy(&other, &roots).unwrap();
    let shown = ["--server-tls-ca", &roots, "--server-tls-cert", &own, "--server-tls-key", &key];
    let proxy = Program::start(&[nodes[0].address], &shown);
    let mut client = Wire::open(proxy.plain).unwrap();
    use_all(&mut client, 1);
    // New connections use what the files hold by then.
    let kill = || {
        for node in &nodes {
            let mut link = authority.connect(node.address, Some("client"));
            link.call(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
        }
    };
    fs::copy(Authority::new().file("ca.pem"), &roots).unwrap();
    proxy.signal("HUP");
    wait_until("nodes are not trusted", || {
        kill();
        matches!(client.call(&[b"GET", b"key-1-1"]).unwrap(), Value::Error(_))
    });
    fs::copy(&other, &roots).unwrap();
    proxy.signal("HUP");
    wait_until("nodes are trusted again", || {
        client.call(&[b"GET", b"key-1-1"]).unwrap() == Value::Bulk("v".into())
    });
    let check = |args: &[&str], expected: &str| {
        let said = Program::try_start(&[nodes[0].address], args).err().expect("it doesn't start");
        assert!(said.contains(expected), "{args:?}: {said}");
    };
    check(&[], "cannot be reached");
    check(&["--server-tls-ca", &roots], "CertificateRequired");
    check(&[&shown[..], &["--tls-server-name", "elsewhere"]].concat(), "not valid for name");
    let stranger = Authority::new();
    check(&["--server-tls-ca", &stranger.file("ca.pem")], "invalid peer certificate");
}

#[test]
fn servers_without_their_address_in_the_certificate_go_by_a_name() {
    let authority = Authority::new();
    authority.issue_for("node", &["localhost", "nodes.example"]);
    authority.issue("client");
    let nodes = cluster(&authority, "node");
    let [roots, own, key] = ["ca.pem", "client.pem", "client.key"].map(|name| authority.file(name));
    let shown = ["--server-tls-ca", &roots, "--server-tls-cert", &own, "--server-tls-key", &key];
    let said = Program::try_start(&[nodes[0].address], &shown).err().expect("it doesn't start");
    assert!(said.contains("not valid for name"), "{said}");
    let named = [&shown[..], &["--tls-server-name", "nodes.example"]].concat();
    let proxy = Program::start(&[nodes[0].address], &named);
    use_all(&mut Wire::open(proxy.plain).unwrap(), 1);
}

#[test]
fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    let authority = Authority::new();
    authority.issue_for("node", &["localhost", "127.0.0.1"]);
    authority.issue("client");
    let nodes = cluster(&authority, "node");
    let file = |name: &str| authority.file(name);
    let (first, second) =
        (authority.issue("first"), authority.issue_for("second", &["*.b.example"]));
    let [roots, own, key] = ["ca.pem", "client.pem", "client.key"].map(file);
    let [a, a_key, b, b_key] = ["first.pem", "first.key", "second.pem", "second.key"].map(file);
    let mut args =
        vec!["--server-tls-ca", &roots, "--server-tls-cert", &own, "--server-tls-key", &key];
    args.extend(["--tls-listen", "127.0.0.1:0", "--tls-cert", &a, "--tls-key", &a_key]);
    args.extend(["--tls-cert", &b, "--tls-key", &b_key]);
    let proxy = Program::start(&[nodes[0].address], &args);
    for (host, expected) in [("localhost", &first), ("a.b.example", &second)] {
        let mut client = authority.connect_to(host, proxy.tls.unwrap(), None);
        client.call(&["SET", "a", host]).unwrap();
        assert_eq!(client.certificate(), *expected, "{host}");
    }
    // Whoever asks for another gets the first, and may think about it what it likes.
    let mut stranger = authority.connect_to("other.test", proxy.tls.unwrap(), None);
    assert!(stranger.call(&["PING"]).unwrap_err().to_string().contains("not valid for name"));
}
