//! What the proxy knows of requests, and where it sends reads, in front of real servers.

use std::time::Duration;

use keyfleet::proxy::{Service, SlowLogSetup};
use protocol::Value;
use tests::{
    cluster::{RawCluster, Shape, call},
    differential::Wire,
    engines::engine,
    proxy::Front,
};

async fn cluster(kind: &str, version: &str, replicas: usize) -> RawCluster {
    let binary = engine(kind, version);
    let config = ["--cluster-allow-replica-migration", "no"];
    let shape = Shape { server: &binary.server, primaries: 3, replicas, spare: 0, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

fn ask(wire: &mut Wire, request: &str) -> Value {
    let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
    wire.call(&words).unwrap()
}

fn text(text: &str) -> Value {
    Value::Bulk(text.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_requests_are_noted() {
    let cluster = cluster("redis", "7.0", 0).await;
    let slow_log = SlowLogSetup { slower_than: Some(200_000), entries_max: 10 };
    let service = Service { slow_log, ..Service::default() };
    let front = Front::start_with(&cluster.addresses(), 2, service).unwrap();
    // Clients of both threads see the same.
    let mut clients: Vec<Wire> = (0..8).map(|_| Wire::open(front.address).unwrap()).collect();
    ask(&mut clients[0], "CLIENT SETNAME me");
    ask(&mut clients[0], "SET quick 1");
    let owner = cluster.owners().await.unwrap()[usize::from(protocol::key_slot(b"slow").number())];
    let mut link = cluster.link(owner).await.unwrap();
    call(&mut link, &["CLIENT", "PAUSE", "400", "ALL"]).await.unwrap();
    let long = "v".repeat(200);
    ask(&mut clients[0], &format!("SET slow {long}"));
    for client in &mut clients {
        assert_eq!(ask(client, "SLOWLOG LEN"), Value::Integer(1));
    }
    let entries = ask(&mut clients[1], "SLOWLOG GET");
    let [entry] = entries.as_array().unwrap() else { panic!("{entries:?}") };
    let [number, at, micros, words, _, name] = entry.as_array().unwrap() else {
        panic!("{entry:?}")
    };
    assert_eq!((number, name), (&Value::Integer(0), &text("me")));
    let value = format!("{}... (72 more bytes)", "v".repeat(128));
    assert_eq!(words, &Value::Array(vec![text("SET"), text("slow"), text(&value)]));
    assert!((200_000..10_000_000).contains(&micros.as_integer().unwrap()), "{micros:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let ago = now.saturating_sub(Duration::from_secs(at.as_integer().unwrap().unsigned_abs()));
    assert!(ago < Duration::from_secs(60), "{at:?}");
    assert_eq!(ask(&mut clients[2], "SLOWLOG RESET"), Value::Simple("OK".into()));
    assert_eq!(ask(&mut clients[0], "SLOWLOG GET -1"), Value::Array(vec![]));
}
