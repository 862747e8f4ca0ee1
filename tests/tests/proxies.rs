//! The fleet's proxies: started, guarded, changed and stopped with their cluster.

use std::{
    fs,
    net::SocketAddr,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fleet::model::ProxyName;
use protocol::Value;
use tests::{
    differential::Wire,
    fleet::{Spec, TestFleet},
    server::free_port,
};
use tokio::time::{Instant, sleep};

const TIME_MAX: Duration = Duration::from_secs(20);

fn spec(proxies: &[String]) -> Spec {
    Spec { profile: "cache", proxies: proxies.to_vec(), ..Spec::default() }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Keys of several slots, by a client that knows nothing of clusters.
fn check_serves(port: u16) {
    let mut client = Wire::open(local(port)).unwrap();
    let set = client.call(&[b"MSET", b"a", b"1", b"b", b"2", b"c", b"3"]).unwrap();
    assert_eq!(set, Value::Simple("OK".into()));
    let values = client.call(&[b"MGET", b"a", b"b", b"c", b"none"]).unwrap();
    let bulk = |text: &str| Value::Bulk(text.into());
    assert_eq!(values, Value::Array(vec![bulk("1"), bulk("2"), bulk("3"), Value::Null]));
}

async fn wait_until_serving(port: u16) {
    let until = Instant::now() + TIME_MAX;
    let answers = || Wire::open(local(port))?.call(&[b"PING"]);
    while answers().is_err() {
        assert!(Instant::now() < until, "nobody serves at {port}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn refuses(port: u16) -> bool {
    std::net::TcpStream::connect(local(port)).is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_follow_the_file() {
    let (one, other, third) = (free_port().unwrap(), free_port().unwrap(), free_port().unwrap());
    let edge = |port| format!("edge: {{cluster: main, listen: \"127.0.0.1:{port}\"}}");
    let side = format!("side: {{cluster: main, listen: \"127.0.0.1:{other}\", threads: 2}}");
    let fleet = TestFleet::new(&spec(&[edge(one), side.clone()]));
    fleet.up().await;
    fleet.expect_empty_plan().await;
    check_serves(one);
    check_serves(other);

    fleet.edit(&spec(&[edge(third), side]));
    fleet.up().await;
    fleet.expect_empty_plan().await;
    check_serves(third);
    check_serves(other);
    assert!(refuses(one));

    fleet.edit(&spec(&[edge(third)]));
    fleet.up().await;
    fleet.expect_empty_plan().await;
    assert!(refuses(other));

    fleet.run(&["down"]).await.expect_code(0);
    assert!(refuses(third));
    fleet.up().await;
    check_serves(third);
}

/// Its clients stay connected through all of it, and the process is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_changes_while_it_serves() {
    let ports: Vec<u16> = (0..4).map(|_| free_port().unwrap()).collect();
    let [one, other, metrics, sealed] = ports[..] else { panic!("{ports:?}") };
    let edge = |keys: &str| spec(&[format!("edge: {{cluster: main, {keys}}}")]);
    let fleet = TestFleet::new(&edge(&format!("listen: \"127.0.0.1:{one}\"")));
    fleet.up().await;
    let name = ProxyName::new("edge");
    let pid = fleet.proxy_pid(&name).unwrap();
    let mut client = Wire::open(local(one)).unwrap();
    let ping = |client: &mut Wire| client.call(&[b"PING"]).unwrap();
    let pong = Value::Simple("PONG".into());
    assert_eq!(ping(&mut client), pong);

    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = |name: &str, text: &str| fs::write(fleet.directory().join(name), text).unwrap();
    file("edge.pem", &certificate.cert.pem());
    file("edge.key", &certificate.signing_key.serialize_pem());
    let tls = format!("tls: {{listen: \"127.0.0.1:{sealed}\", cert: edge.pem, key: edge.key}}");
    fleet.edit(&edge(&format!(
        "listen: [\"127.0.0.1:{other}\", ./edge.sock], metrics: \"127.0.0.1:{metrics}\", {tls}"
    )));
    fleet.up().await;
    fleet.expect_empty_plan().await;
    check_serves(other);
    assert!(refuses(one));
    assert!(UnixStream::connect(fleet.directory().join("edge.sock")).is_ok());
    assert!(!refuses(metrics) && !refuses(sealed));
    assert_eq!(ping(&mut client), pong);
    let status = fleet.run(&["status"]).await.expect_code(0);
    let line = format!("127.0.0.1:{other}, ./edge.sock, 127.0.0.1:{sealed} (TLS)");
    assert!(status.stdout.contains(&line), "{status:?}");
    let figures = &fleet.status_json().await["clusters"]["main"]["proxies"]["edge"]["figures"];
    assert!(figures["clients"].as_u64() >= Some(1), "{figures}");
    assert!(figures["requests"].as_u64() >= Some(2), "{figures}");

    // What can't be done leaves all as it is.
    fleet.edit(&edge(&format!(
        "listen: \"127.0.0.1:{other}\", tls: {{listen: \"127.0.0.1:{sealed}\", cert: none, key: none}}"
    )));
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_failure();
    assert!(ended.stderr.contains("none"), "{ended:?}");
    assert!(!refuses(metrics));
    assert_eq!(ping(&mut client), pong);

    fleet.edit(&edge(&format!("listen: \"127.0.0.1:{other}\", clients-max: 1, drain: 1s")));
    fleet.up().await;
    fleet.expect_empty_plan().await;
    assert!(refuses(metrics) && refuses(sealed));
    assert!(!fleet.directory().join("edge.sock").exists());
    assert_eq!(ping(&mut client), pong);
    let one_too_many = || Wire::open(local(other))?.call(&[b"PING"]);
    assert!(!one_too_many().is_ok_and(|answer| answer == pong));
    assert_eq!(fleet.proxy_pid(&name), Some(pid));

    // Threads are the process's own.
    fleet.edit(&edge(&format!("listen: \"127.0.0.1:{other}\", threads: 2")));
    fleet.up().await;
    check_serves(other);
    assert_ne!(fleet.proxy_pid(&name), Some(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn guard_starts_a_killed_proxy_again() {
    let port = free_port().unwrap();
    let line = format!("edge: {{cluster: main, listen: \"127.0.0.1:{port}\"}}");
    let fleet = TestFleet::new(&spec(&[line]));
    fleet.up().await;
    let _guard = fleet.guard().await;
    check_serves(port);
    let edge = ProxyName::new("edge");
    let before = fleet.proxy_pid(&edge).unwrap();
    fleet.kill_proxy(&edge);
    wait_until_serving(port).await;
    check_serves(port);
    assert_ne!(fleet.proxy_pid(&edge), Some(before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind(local(0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = format!("edge: {{cluster: main, listen: \"127.0.0.1:{port}\"}}");
    let fleet = TestFleet::new(&spec(&[line]));
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_failure();
    assert!(ended.stderr.contains(&format!("127.0.0.1:{port}")), "{ended:?}");
    drop(taken);
    fleet.up().await;
    check_serves(port);
}

/// Clients that come while another process takes a proxy's place, again and again: each counts one up.
/// How often it was counted.
fn come_and_count(port: u16, goes_on: &AtomicBool) -> i64 {
    let mut counted = 0_i64;
    while goes_on.load(Ordering::Relaxed) {
        let mut client = Wire::open(local(port)).unwrap();
        let answer = client.call(&[b"INCR", b"count"]).unwrap();
        counted += 1;
        assert_eq!(answer, Value::Integer(counted));
    }
    counted
}

/// Where a proxy has to be another process, nobody is refused and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn another_process_takes_a_proxys_place() {
    let (port, metrics) = (free_port().unwrap(), free_port().unwrap());
    let edge = |keys: &str| {
        let listen = format!("listen: [\"127.0.0.1:{port}\", ./edge.sock]");
        spec(&[format!("edge: {{cluster: main, {listen}, drain: 1s, {keys}}}")])
    };
    let fleet = TestFleet::new(&edge(&format!("metrics: \"127.0.0.1:{metrics}\"")));
    fleet.up().await;
    check_serves(port);
    let name = ProxyName::new("edge");
    let mut client = Wire::open(local(port)).unwrap();
    let ping = |client: &mut Wire| client.call(&[b"PING"]).unwrap();
    assert_eq!(ping(&mut client), Value::Simple("PONG".into()));
    let goes_on = Arc::new(AtomicBool::new(true));
    let counting = std::thread::spawn({
        let goes_on = Arc::clone(&goes_on);
        move || come_and_count(port, &goes_on)
    });
    let others = [
        format!("metrics: \"127.0.0.1:{metrics}\", threads: 2"),
        format!("metrics: \"127.0.0.1:{metrics}\", threads: 2, slow-log: 1s"),
        "read-from: replica, lag-max: 5s, hot-keys: 1".to_owned(),
        "near-cache: 8MiB".to_owned(),
    ];
    for keys in others {
        let before = fleet.proxy_pid(&name).unwrap();
        fleet.edit(&edge(&keys));
        fleet.up().await;
        fleet.expect_empty_plan().await;
        assert_ne!(fleet.proxy_pid(&name), Some(before));
        assert!(UnixStream::connect(fleet.directory().join("edge.sock")).is_ok());
        assert_eq!(refuses(metrics), !keys.contains("metrics"), "{keys}");
    }
    goes_on.store(false, Ordering::Relaxed);
    let counted = counting.join().unwrap();
    assert!(counted > 20, "{counted} clients say little");
    let mut last = Wire::open(local(port)).unwrap();
    let value = last.call(&[b"GET", b"count"]).unwrap();
    assert_eq!(value, Value::Bulk(counted.to_string().as_bytes().into()));

    // One that can't be what it is to be leaves the other where it is.
    let before = fleet.proxy_pid(&name).unwrap();
    fleet.edit(&edge("users: users.yaml"));
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_failure();
    assert!(ended.stderr.contains("users.yaml"), "{ended:?}");
    check_serves(port);
    assert_eq!(fleet.proxy_pid(&name), Some(before));
    fs::write(fleet.directory().join("users.yaml"), "users: {app: {password: one}}\n").unwrap();
    fleet.up().await;
    fleet.expect_empty_plan().await;
    let mut app = Wire::open(local(port)).unwrap();
    let answer = app.call(&[b"AUTH", b"app", b"one"]).unwrap();
    assert_eq!(answer, Value::Simple("OK".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_learns_the_clusters_new_password() {
    let port = free_port().unwrap();
    let line = format!("edge: {{cluster: main, listen: \"127.0.0.1:{port}\", drain: 1s}}");
    let lines = vec!["users: {default: {password: {file: word}, rules: \"+@all ~* &*\"}}"];
    let fleet = TestFleet::empty();
    let word = |word: &str| fs::write(fleet.directory().join("word"), word).unwrap();
    word("first");
    fleet.edit(&Spec { lines, ..spec(&[line]) });
    fleet.up().await;
    let says = |word: &str| {
        let mut client = Wire::open(local(port)).unwrap();
        let ok = client.call(&[b"AUTH", word.as_bytes()]).unwrap();
        (ok == Value::Simple("OK".into())).then(|| client.call(&[b"SET", b"a", b"1"]).unwrap())
    };
    assert_eq!(says("first"), Some(Value::Simple("OK".into())));
    word("second");
    fleet.up().await;
    fleet.expect_empty_plan().await;
    assert_eq!(says("second"), Some(Value::Simple("OK".into())));
    assert_eq!(says("first"), None);
}
