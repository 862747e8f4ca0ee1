//! TLS to servers, in front of real ones, and several certificates at one address.

use std::{fs, net::SocketAddr};

use protocol::Value;
use tests::{
    certificates::{Authority, TlsServer},
    differential::Wire,
    engines::engine,
    proxy::{Program, wait_until},
    server::Server,
};

/// Two nodes that share the slots.
fn cluster(authority: &Authority, certificate: &str) -> [TlsServer; 2] {
    let config = ["--cluster-enabled", "yes", "--tls-cluster", "yes"];
    let nodes = [(); 2].map(|()| TlsServer::start(authority, certificate, &config));
    let ask = |node: &TlsServer, words: &str| {
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
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(expected), "{args:?}: {said}");
    };
    check(&[], "cannot be reached");
    check(&["--server-tls-ca", &roots], "it asks for a certificate: --server-tls-cert FILE");
    let elsewhere = [&shown[..], &["--tls-server-name", "elsewhere"]].concat();
    check(&elsewhere, "is good for localhost, 127.0.0.1, not for elsewhere");
    let stranger = Authority::new();
    check(&["--server-tls-ca", &stranger.file("ca.pem")], "by none of those in --server-tls-ca");
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_said() {
    let authority = Authority::new();
    authority.issue_for("good", &["127.0.0.1"]);
    authority.issue_for("bare", &[]);
    authority.issue_for("other", &["nodes.example"]);
    authority.issue_expired("expired", &["127.0.0.1"]);
    let file = |name: &str| authority.file(name);
    let roots = file("ca.pem");
    let trusting = ["--server-tls-ca", roots.as_str()];
    let start = |name| TlsServer::start(&authority, name, &["--tls-auth-clients", "no"]);
    let [good, bare, other, expired] = ["good", "bare", "other", "expired"].map(start);
    let plain = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let check = |at: SocketAddr, args: &[&str], expected: &str| {
        let said = Program::try_start(&[at], args).err().expect("it doesn't start");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(expected), "{args:?}: {said}");
    };
    check(bare.address, &trusting, "its certificate has no subjectAltName");
    check(bare.address, &trusting, "make one with 127.0.0.1 as its subjectAltName");
    check(other.address, &trusting, "is good for nodes.example, not for 127.0.0.1");
    check(other.address, &trusting, "or say --tls-server-name nodes.example");
    check(expired.address, &trusting, "its certificate has expired");
    check(plain.address, &trusting, "is this its plain port?");
    check(good.address, &[], "where it speaks TLS: --server-tls-ca FILE");
    let [good_pem, bare_key, none] = ["good.pem", "bare.key", "none.key"].map(file);
    let shown =
        |key| ["--server-tls-ca", &roots, "--server-tls-cert", &good_pem, "--server-tls-key", key];
    check(good.address, &shown(&bare_key), &format!("{bare_key} is not the key of {good_pem}"));
    check(good.address, &shown(&none), &format!("cannot read {none}"));
    check(good.address, &shown(&good_pem), &format!("{good_pem} holds no key"));
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
    assert!(said.contains("or say --tls-server-name localhost"), "{said}");
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
