//! Commands that concern a whole cluster, through the proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use protocol::Value;
use tests::{
    cluster::{RawCluster, Shape},
    differential::Wire,
    engines::engine,
    proxy::Front,
};
use tokio::time::Instant;

const TIME_MAX: Duration = Duration::from_secs(30);

async fn cluster(kind: &str, version: &str, replicas: usize, spare: usize) -> RawCluster {
    let binary = engine(kind, version);
    let config = ["--cluster-allow-replica-migration", "no", "--cluster-node-timeout", "1000"];
    let shape = Shape { server: &binary.server, primaries: 3, replicas, spare, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

fn call(wire: &mut Wire, request: &str) -> Value {
    let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
    wire.call(&words).unwrap()
}

fn error(wire: &mut Wire, request: &str) -> String {
    match call(wire, request) {
        Value::Error(text) => text,
        other => panic!("{request}: {other:?}"),
    }
}

fn strings(value: &Value) -> Vec<String> {
    let text = |item: &Value| item.as_str().unwrap().to_owned();
    value.as_array().unwrap().iter().map(text).collect()
}

/// `key:0` … with their numbers as values.
fn fill(wire: &mut Wire, count: usize) {
    for from in (0..count).step_by(500) {
        let words = |number| vec![b"SET".to_vec(), key(number).into_bytes(), b"x".to_vec()];
        let commands: Vec<_> = (from..count.min(from + 500)).map(words).collect();
        wire.send(&commands).unwrap();
        for _ in commands {
            assert_eq!(wire.reply().unwrap(), Value::Simple("OK".to_owned()));
        }
    }
}

fn key(number: usize) -> String {
    format!("key:{number}")
}

/// One call of SCAN: the next cursor, and keys.
fn page(wire: &mut Wire, cursor: &str, options: &str) -> (String, Vec<String>) {
    let reply = call(wire, format!("SCAN {cursor} {options}").trim_end());
    let [cursor, keys] = reply.as_array().unwrap_or_else(|| panic!("{reply:?}")) else {
        panic!("{reply:?}")
    };
    (cursor.as_str().unwrap().to_owned(), strings(keys))
}

/// How often each key was returned.
fn scan(wire: &mut Wire, options: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = page(wire, &cursor, options);
        for key in keys {
            *found.entry(key).or_default() += 1;
        }
        if next == "0" {
            return found;
        }
        cursor = next;
    }
}

async fn check_whole(kind: &str, version: &str) {
    const KEYS: usize = 3_000;
    let cluster = cluster(kind, version, 0, 0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    fill(wire, KEYS);
    assert_eq!(call(wire, "DBSIZE"), Value::Integer(KEYS.try_into().unwrap()));
    let all: BTreeSet<String> = (0..KEYS).map(key).collect();
    let keys: Vec<String> = strings(&call(wire, "KEYS *"));
    assert_eq!((keys.len(), keys.into_iter().collect::<BTreeSet<_>>()), (KEYS, all.clone()));
    for options in ["", "COUNT 100", "COUNT 10000 MATCH key:*", "TYPE string"] {
        let found = scan(wire, options);
        assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), all, "{options}");
        assert!(found.values().all(|times| *times == 1), "{options}");
    }
    assert_eq!(scan(wire, "MATCH key:77").into_keys().collect::<Vec<_>>(), ["key:77"]);
    assert!(scan(wire, "TYPE list").is_empty());
    let drawn: BTreeSet<usize> = (0..100)
        .map(|_| {
            let key = call(wire, "RANDOMKEY");
            usize::from(protocol::key_slot(key.as_bytes().unwrap()).number()) * 3 / 16_384
        })
        .collect();
    assert_eq!(drawn.len(), 3, "each third of the slots is drawn from");

    call(wire, "SADD {a}s 1 2 3");
    call(wire, "SADD {b}s 3 4");
    let mut union = strings(&call(wire, "SUNION {a}s {b}s none {a}s"));
    union.sort();
    assert_eq!(union, ["1", "2", "3", "4"]);
    assert!(error(wire, "SUNION {a}s key:1").starts_with("WRONGTYPE"));
    assert!(error(wire, "SINTER {a}s {b}s").contains("{tag}"));
    assert!(error(wire, "MSETNX a 1 b 2").contains("{tag}"));

    scripts(wire);
    assert_eq!(call(wire, "PUBLISH channel text"), Value::Integer(0));
    assert_eq!(strings(&call(wire, "PUBSUB CHANNELS")), Vec::<String>::new());
    let counts = call(wire, "PUBSUB NUMSUB a b");
    assert_eq!(counts.as_array().unwrap()[1], Value::Integer(0), "{counts:?}");
    assert_eq!(call(wire, "FLUSHALL"), Value::Simple("OK".to_owned()));
    assert_eq!(call(wire, "DBSIZE"), Value::Integer(0));
    assert_eq!(call(wire, "RANDOMKEY"), Value::Null);
    assert!(scan(wire, "").is_empty());
    assert_eq!(error(wire, "SCAN x"), "ERR invalid cursor");
    assert!(error(wire, "SCAN 0 LIMIT 5").starts_with("ERR syntax"));
    assert!(error(wire, "MONITOR").contains("not served"));
    assert!(error(wire, "DEBUG SLEEP 1").contains("not served"));
}

fn scripts(wire: &mut Wire) {
    let script = "return{KEYS[1],redis.call('GET',KEYS[1])}";
    let sha = call(wire, &format!("SCRIPT LOAD {script}"));
    let sha = sha.as_str().unwrap();
    for number in 0..20 {
        let found = call(wire, &format!("EVALSHA {sha} 1 {}", key(number)));
        assert_eq!(strings(&found), [key(number), "x".to_owned()]);
    }
    let none = "0".repeat(40);
    let known = call(wire, &format!("SCRIPT EXISTS {sha} {none}"));
    assert_eq!(known, Value::Array(vec![Value::Integer(1), Value::Integer(0)]));
    assert!(error(wire, &format!("EVALSHA {none} 1 a")).starts_with("NOSCRIPT"));
    assert!(error(wire, "SCRIPT LOAD (").starts_with("ERR"));
    assert_eq!(call(wire, "SCRIPT FLUSH"), Value::Simple("OK".to_owned()));
    let known = call(wire, &format!("SCRIPT EXISTS {sha}"));
    assert_eq!(known, Value::Array(vec![Value::Integer(0)]));
    assert!(error(wire, "SCRIPT KILL").starts_with("NOTBUSY"));
    let library = "#!lua name=lib\nredis.register_function('who',function(keys)return(keys[1])end)";
    let load: [&[u8]; 3] = [b"FUNCTION", b"LOAD", library.as_bytes()];
    assert_eq!(wire.call(&load).unwrap().as_str(), Some("lib"));
    for number in 0..20 {
        let found = call(wire, &format!("FCALL who 1 {}", key(number)));
        assert_eq!(found.as_str(), Some(key(number).as_str()));
    }
    let again = wire.call(&load).unwrap();
    assert_eq!(again, Value::Error("ERR Library 'lib' already exists".to_owned()));
    assert_eq!(call(wire, "FUNCTION DELETE lib"), Value::Simple("OK".to_owned()));
}

#[tokio::test]
async fn a_whole_cluster_is_asked() {
    check_whole("redis", "7.0").await;
    check_whole("valkey", "9.1").await;
}

#[tokio::test]
async fn the_cluster_seems_to_be_one_node() {
    let cluster = cluster("redis", "7.0", 0, 0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    let slots = call(wire, "CLUSTER SLOTS");
    let [range] = slots.as_array().unwrap() else { panic!("{slots:?}") };
    let [first, last, node] = range.as_array().unwrap() else { panic!("{slots:?}") };
    assert_eq!((first.as_integer(), last.as_integer()), (Some(0), Some(16_383)));
    let node = node.as_array().unwrap();
    assert_eq!(node[0].as_str(), Some("127.0.0.1"));
    assert_eq!(node[1].as_integer(), Some(front.address.port().into()));
    let id = node[2].as_str().unwrap().to_owned();
    assert_eq!(call(wire, "CLUSTER MYID").as_str(), Some(id.as_str()));
    let nodes = call(wire, "CLUSTER NODES");
    let nodes: protocol::ClusterNodes = nodes.as_str().unwrap().parse().unwrap();
    assert_eq!(nodes.rows[0].id.to_string(), id);
    let shards = call(wire, "CLUSTER SHARDS");
    assert_eq!(shards.as_array().unwrap().len(), 1);
    let info = call(wire, "CLUSTER INFO");
    assert!(info.as_str().unwrap().contains("cluster_state:ok\r\ncluster_slots_assigned:16384"));
    assert_eq!(call(wire, "CLUSTER KEYSLOT foo"), Value::Integer(12_182));
    call(wire, "MSET {a}1 x {a}2 y");
    let slot = protocol::key_slot(b"a");
    assert_eq!(call(wire, &format!("CLUSTER COUNTKEYSINSLOT {slot}")), Value::Integer(2));
    let mut keys = strings(&call(wire, &format!("CLUSTER GETKEYSINSLOT {slot} 9")));
    keys.sort();
    assert_eq!(keys, ["{a}1", "{a}2"]);
    assert!(error(wire, "CLUSTER FORGET x").contains("not served"));
    let info = call(wire, "INFO");
    let info = protocol::Info::parse(info.as_str().unwrap());
    for (name, expected) in [
        ("redis_mode", "standalone"),
        ("role", "master"),
        ("loading", "0"),
        ("cluster_enabled", "1"),
    ] {
        assert_eq!(info.get(name), Some(expected), "{name}");
    }
    let one = call(wire, "INFO clients");
    assert_eq!(one.as_str(), Some("# Clients\r\nconnected_clients:1\r\n"));
    let got = call(wire, "CONFIG GET maxmemory-policy requirepass");
    assert_eq!(strings(&got), ["maxmemory-policy", "noeviction"]);
    assert_eq!(call(wire, "CONFIG GET *"), Value::Array(vec![]));
    assert!(call(wire, "COMMAND COUNT").as_integer().unwrap() > 200);
    assert_eq!(call(wire, "TIME").as_array().unwrap().len(), 2);
}

/// While slots move, and between.
#[tokio::test]
async fn a_scan_finds_every_key_while_slots_move() {
    const KEYS: usize = 5_000;
    let cluster = cluster("redis", "7.0", 0, 1).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    fill(wire, KEYS);
    let all: BTreeSet<String> = (0..KEYS).map(key).collect();
    let address = front.address;
    let scanner = tokio::task::spawn_blocking(move || {
        let wire = &mut Wire::open(address).unwrap();
        let deadline = Instant::now() + TIME_MAX;
        let mut scans = Vec::new();
        let mut found = BTreeSet::new();
        let mut cursor = "0".to_owned();
        let mut calls = 0;
        // The slots have all moved long before the last of these.
        while scans.len() < 30 {
            let (next, keys) = page(wire, &cursor, "COUNT 50");
            found.extend(keys);
            calls += 1;
            if next == "0" {
                scans.push((std::mem::take(&mut found), std::mem::take(&mut calls)));
            }
            cursor = next;
            assert!(Instant::now() < deadline, "a scan doesn't end");
        }
        scans
    });
    // From the first to the last, which comes later in a scan, and the other way round.
    for (from, to) in [(0, 3), (3, 0), (2, 1), (1, 0)] {
        let slots = cluster.owned(from).await.unwrap().take_lowest(60);
        cluster.move_slots(from, to, slots).await.unwrap();
    }
    let scans = scanner.await.unwrap();
    let again = scans.iter().filter(|(_, calls)| *calls > KEYS / 50 + 60).count();
    for (found, calls) in &scans {
        let missing: Vec<_> = all.difference(found).collect();
        assert!(missing.is_empty(), "{missing:?} of {calls} calls");
    }
    assert!(again > 0, "no scan began again");
}

#[tokio::test]
async fn a_new_primary_goes_on_with_scans_and_scripts() {
    const KEYS: usize = 1_000;
    let mut cluster = cluster("redis", "7.0", 1, 0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    fill(wire, KEYS);
    assert_eq!(call(wire, "DBSIZE"), Value::Integer(KEYS.try_into().unwrap()));
    let sha = call(wire, "SCRIPT LOAD return(KEYS[1])");
    let sha = sha.as_str().unwrap().to_owned();
    let (mut cursor, first) = page(wire, "0", "COUNT 50");
    let mut found: BTreeSet<String> = first.into_iter().collect();
    // The replicas must have it all, for nothing waits for them.
    cluster.wait_calm().await.unwrap();
    for index in 3..6 {
        let deadline = Instant::now() + TIME_MAX;
        let mut link = cluster.link(index).await.unwrap();
        let own = cluster.link(index - 3).await.unwrap().call_within(TIME_MAX, ["DBSIZE"]).await;
        let own = own.unwrap();
        while link.call_within(TIME_MAX, ["DBSIZE"]).await.unwrap() != own {
            assert!(Instant::now() < deadline);
        }
    }
    cluster.kill(0).unwrap();
    let deadline = Instant::now() + TIME_MAX;
    // Requests wait for the new primary, or are answered with an error.
    loop {
        let reply = call(wire, &format!("SCAN {cursor} COUNT 50"));
        assert!(Instant::now() < deadline, "no new primary: {reply:?}");
        if let Value::Error(_) = reply {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let [next, keys] = reply.as_array().unwrap() else { panic!("{reply:?}") };
        found.extend(strings(keys));
        next.as_str().unwrap().clone_into(&mut cursor);
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found, (0..KEYS).map(key).collect());
    assert_eq!(call(wire, "DBSIZE"), Value::Integer(KEYS.try_into().unwrap()));
    for number in 0..50 {
        let reply = call(wire, &format!("EVALSHA {sha} 1 {}", key(number)));
        assert_eq!(reply.as_str(), Some(key(number).as_str()));
    }
}
