//! The fleet's proxies: started, guarded, changed and stopped with their cluster.

use std::{net::SocketAddr, time::Duration};

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
