//! Sessions through the proxy: transactions, commands that wait, subscriptions, users.

use std::time::Duration;

use protocol::{Value, key_slot};
use tests::{
    cluster::{RawCluster, Shape},
    differential::Wire,
    engines::engine,
    proxy::Front,
    server::{POLL, Server},
};
use tokio::time::{Instant, sleep};

const TIME_MAX: Duration = Duration::from_secs(60);

async fn cluster(replicas: usize) -> RawCluster {
    let binary = engine("redis", "7.0");
    let config = ["--cluster-allow-replica-migration", "no", "--cluster-node-timeout", "1000"];
    let server = &binary.server;
    let shape = Shape { server, primaries: 3, replicas, spare: 0, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

fn words(request: &str) -> Vec<Vec<u8>> {
    request.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

fn call(wire: &mut Wire, request: &str) -> Value {
    wire.send(&[words(request)]).unwrap();
    wire.reply().unwrap()
}

fn ok() -> Value {
    Value::Simple("OK".to_owned())
}

fn error(wire: &mut Wire, request: &str) -> String {
    match call(wire, request) {
        Value::Error(text) => text,
        other => panic!("{request}: {other:?}"),
    }
}

/// Sessions that have to read as they do on one plain server.
const SCRIPTS: &[&[&str]] = &[
    &["MULTI", "SET {a}x 1", "INCR {a}x", "EXEC", "GET {a}x"],
    &["MULTI", "EXEC"],
    &["EXEC"],
    &["DISCARD"],
    &["MULTI", "MULTI", "EXEC"],
    &["MULTI", "WATCH k", "SET k 1", "EXEC"],
    &["MULTI", "SET {a}x 2", "DISCARD", "GET {a}x"],
    &["MULTI", "GET", "SET {a}x 3", "EXEC", "GET {a}x"],
    &["MULTI", "PING", "SET {a}x 4", "ECHO hi", "EXEC"],
    &["MULTI", "PING", "EXEC"],
    &["SET {a}s x", "MULTI", "INCR {a}s", "SET {a}y 1", "EXEC"],
    &["MULTI", "SET {a}x 1", "RESET", "GET nokey"],
    &["MULTI", "EVAL return{1,2} 0", "SET {a}x 1", "EXEC"],
    &["MULTI", "BLPOP {q}none 0", "EXEC"],
    &["MULTI", "WAIT 0 0", "EXEC"],
    &["WATCH {a}x", "GET {a}x", "MULTI", "SET {a}x 5", "EXEC"],
    &["WATCH {a}x", "SET {a}x 1", "MULTI", "SET {a}x 6", "EXEC", "GET {a}x"],
    &["WATCH {a}x", "SET {a}x 1", "UNWATCH", "MULTI", "SET {a}x 7", "EXEC", "GET {a}x"],
    &["WATCH {a}x", "UNWATCH", "UNWATCH", "SET b 1", "GET b"],
    &["WATCH {a}x {a}y", "WATCH {a}z", "MULTI", "EXEC"],
    &["WATCH {a}x", "MULTI", "DISCARD", "SET {a}x 2"],
    &[
        "DEL {q}l",
        "RPUSH {q}l a b",
        "BLPOP {q}l 1",
        "BLPOP {q}l {q}m 0.1",
        "BRPOP {q}l 0.1",
        "GET z",
    ],
    &["DEL {q}s", "XADD {q}s 1-1 a b", "XREAD STREAMS {q}s 0", "XREAD BLOCK 20 STREAMS {q}s $"],
    &["DEL {q}z", "ZADD {q}z 1 a", "BZPOPMIN {q}z 1", "BLMOVE {q}l {q}m LEFT RIGHT 0.1"],
    &["SET {a}s x", "BLPOP {a}s 1", "BLPOP {a}nokey x"],
    &["CLIENT GETNAME", "CLIENT SETNAME foo", "CLIENT GETNAME", "CLIENT NO-EVICT on", "SELECT 0"],
    &["SUBSCRIBE a b", "UNSUBSCRIBE a", "UNSUBSCRIBE"],
    &["SUBSCRIBE a", "PING", "PING x", "GET x", "UNSUBSCRIBE", "GET x"],
    &["UNSUBSCRIBE"],
    &["UNSUBSCRIBE q"],
    &["PUNSUBSCRIBE"],
    &["SUNSUBSCRIBE"],
    &["PSUBSCRIBE a*", "SUBSCRIBE a", "SSUBSCRIBE c", "SUNSUBSCRIBE c", "RESET", "GET x"],
    &["SUBSCRIBE a", "UNSUBSCRIBE a", "MULTI", "GET x", "EXEC"],
    &["AUTH foo bar"],
    &["AUTH x y z"],
    &["HELLO 4"],
    &["HELLO x"],
    &["ACL WHOAMI"],
];

/// What a server says until the end of a script.
fn said(wire: &mut Wire, requests: &[&str], pipelined: bool) -> Vec<Value> {
    let end = "the-end";
    let mut said = Vec::new();
    let mut ask = |wire: &mut Wire, requests: &[&str]| {
        let mut commands: Vec<_> = requests.iter().map(|request| words(request)).collect();
        commands.push(words(&format!("PING {end}")));
        wire.send(&commands).unwrap();
        loop {
            let reply = wire.reply().unwrap();
            let text = Value::Bulk(end.into());
            let ends = reply == text || reply.as_array().is_some_and(|all| all.contains(&text));
            let queued = reply == Value::Simple("QUEUED".to_owned());
            if ends {
                return;
            }
            said.push(reply);
            // The end is queued too, and what EXEC says of it comes later.
            assert!(!queued || said.len() <= 1_000, "no end");
        }
    };
    if pipelined {
        ask(wire, requests);
    } else {
        for request in requests {
            wire.send(&[words(request)]).unwrap();
            said.push(wire.reply().unwrap());
        }
    }
    said
}

#[tokio::test]
async fn sessions_read_as_on_one_server() {
    let plain = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let cluster = cluster(0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    for protocol in ["2", "3"] {
        for script in SCRIPTS {
            // Step by step only where each request has one reply.
            let steps = !script.iter().any(|request| request.contains("SUBSCRIBE"));
            for pipelined in [true, false].into_iter().take(if steps { 2 } else { 1 }) {
                let mut both = [plain.address, front.address].map(|address| {
                    let mut wire = Wire::open(address).unwrap();
                    call(&mut wire, &format!("HELLO {protocol}"));
                    said(&mut wire, script, pipelined)
                });
                let [expected, found] = &mut both;
                assert_eq!(found, expected, "{script:?}, pipelined: {pipelined}");
            }
        }
    }
}

#[tokio::test]
async fn keys_of_a_transaction_are_in_one_slot() {
    let cluster = cluster(0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    assert_eq!(call(wire, "MULTI"), ok());
    assert_eq!(call(wire, "SET a 1"), Value::Simple("QUEUED".to_owned()));
    assert!(error(wire, "SET b 1").starts_with("CROSSSLOT"));
    assert!(error(wire, "EXEC").starts_with("EXECABORT"));
    assert_eq!(call(wire, "EXISTS a b"), Value::Integer(0));
    assert_eq!(call(wire, "WATCH a"), ok());
    assert!(error(wire, "WATCH b").starts_with("CROSSSLOT"));
    assert_eq!(call(wire, "UNWATCH"), ok());
    assert!(error(wire, "BLPOP a b 0").starts_with("CROSSSLOT"));
}

/// Says something to each node of a cluster.
async fn tell_all(cluster: &RawCluster, request: &str) {
    for index in 0..cluster.nodes.len() {
        let mut link = cluster.link(index).await.unwrap();
        let words: Vec<&str> = request.split(' ').collect();
        link.call_within(TIME_MAX, words).await.unwrap();
    }
}

#[tokio::test]
async fn each_user_keeps_his_rights() {
    let cluster = cluster(0).await;
    tell_all(&cluster, "ACL SETUSER anna on >secret ~a:* &a:* +@all -@admin").await;
    tell_all(&cluster, "ACL SETUSER otto on >secret ~* +@all -multi").await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let anna = &mut Wire::open(front.address).unwrap();
    let nobody = &mut Wire::open(front.address).unwrap();
    assert_eq!(call(nobody, "SET b:1 x"), ok());
    for wrong in ["AUTH anna wrong", "AUTH nobody secret", "HELLO 3 AUTH anna wrong"] {
        assert!(error(anna, wrong).starts_with("WRONGPASS"), "{wrong}");
        assert_eq!(call(anna, "ACL WHOAMI"), Value::Bulk(b"default".into()));
    }
    assert_eq!(call(anna, "AUTH anna secret"), ok());
    assert_eq!(call(anna, "ACL WHOAMI"), Value::Bulk(b"anna".into()));
    for number in 0..20 {
        assert_eq!(call(anna, &format!("SET a:{number} x")), ok());
        assert!(error(anna, &format!("SET b:{number} x")).starts_with("NOPERM"));
        assert_eq!(call(nobody, &format!("SET b:{number} x")), ok());
    }
    assert!(error(anna, "SUBSCRIBE b:news").starts_with("NOPERM"));
    assert!(error(anna, "WATCH b:1").starts_with("NOPERM"));
    assert_eq!(call(anna, "UNWATCH"), ok());
    assert!(matches!(call(anna, "HELLO 3"), Value::Map(_)));
    assert!(error(anna, "GET b:1").starts_with("NOPERM"));
    assert_eq!(call(anna, "RESET"), Value::Simple("RESET".to_owned()));
    assert_eq!(call(anna, "GET b:1"), Value::Bulk(b"x".into()));
    assert!(matches!(call(anna, "HELLO 3 AUTH anna secret"), Value::Map(_)));
    assert!(error(anna, "GET b:1").starts_with("NOPERM"));
    assert_eq!(call(nobody, "GET b:1"), Value::Bulk(b"x".into()));
    // Who may not say MULTI has nothing executed.
    assert_eq!(call(nobody, "AUTH otto secret"), ok());
    nobody.send(&["MULTI", "SET otto 1", "INCR otto", "EXEC"].map(words)).unwrap();
    assert_eq!(nobody.reply().unwrap(), ok());
    for _ in 0..3 {
        assert!(matches!(nobody.reply().unwrap(), Value::Error(_)));
    }
    assert_eq!(call(nobody, "EXISTS otto"), Value::Integer(0));
}

#[tokio::test]
async fn who_waits_and_goes_takes_nothing() {
    let cluster = cluster(0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    let mut waiter = Wire::open(front.address).unwrap();
    waiter.send(&[words("BLPOP queue 0"), words("GET queue")]).unwrap();
    wait_for_blocked(&cluster, 1).await;
    drop(waiter);
    wait_for_blocked(&cluster, 0).await;
    assert_eq!(call(wire, "RPUSH queue job"), Value::Integer(1));
    assert_eq!(call(wire, "LLEN queue"), Value::Integer(1));
}

async fn wait_for_blocked(cluster: &RawCluster, count: usize) {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let mut found = 0;
        for index in 0..3 {
            let mut link = cluster.link(index).await.unwrap();
            let info = link.call_within(TIME_MAX, ["INFO", "clients"]).await.unwrap();
            found += usize::from(info.as_str().unwrap().contains("blocked_clients:1"));
        }
        if found == count {
            return;
        }
        assert!(Instant::now() < deadline, "{found} are blocked");
        sleep(POLL).await;
    }
}

/// A message that a subscriber gets next; notices of its subscriptions are passed over.
fn message(wire: &mut Wire) -> (String, String) {
    loop {
        let (Value::Array(all) | Value::Push(all)) = wire.reply().unwrap() else { continue };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if text(&all[0]).ends_with("message") {
            let last = all.len() - 1;
            return (text(&all[last - 1]), text(&all[last]));
        }
    }
}

#[tokio::test]
async fn messages_arrive_again_after_a_failover() {
    let mut cluster = cluster(1).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    for protocol in ["2", "3"] {
        let reader = &mut Wire::open(front.address).unwrap();
        call(reader, &format!("HELLO {protocol}"));
        // One of each shard.
        let shards = ["{b}", "{c}", "{a}"];
        let slots = shards.map(|name| key_slot(name.as_bytes()).number() / 5_462);
        assert_eq!(slots, [0, 1, 2]);
        for name in shards {
            reader.send(&[words(&format!("SSUBSCRIBE {name}"))]).unwrap();
        }
        reader.send(&[words("SUBSCRIBE news"), words("PSUBSCRIBE n?ws")]).unwrap();
        for _ in 0..5 {
            reader.reply().unwrap();
        }
        let writer = &mut Wire::open(front.address).unwrap();
        let hears = |reader: &mut Wire, writer: &mut Wire, verb: &str, channel: &str, count| {
            let deadline = std::time::Instant::now() + TIME_MAX;
            let mut number = 0;
            loop {
                number += 1;
                let text = format!("{number}");
                let told = call(writer, &format!("{verb} {channel} {text}"));
                if told == Value::Integer(1)
                    || verb == "PUBLISH" && !matches!(told, Value::Error(_))
                {
                    for _ in 0..count {
                        assert_eq!(message(reader), (channel.to_owned(), text.clone()));
                    }
                    return;
                }
                assert!(std::time::Instant::now() < deadline, "{channel}: {told:?}");
                std::thread::sleep(POLL);
            }
        };
        for name in shards {
            hears(reader, writer, "SPUBLISH", name, 1);
        }
        hears(reader, writer, "PUBLISH", "news", 2);
        if protocol == "2" {
            continue;
        }
        cluster.kill(0).unwrap();
        for name in shards {
            hears(reader, writer, "SPUBLISH", name, 1);
        }
        assert_eq!(call(reader, "SET {c}x 1"), ok());
    }
}

/// Moves the slot of `{t}` to the next primary and so on, a few times.
async fn move_around(cluster: &RawCluster, times: usize) {
    let slot = key_slot(b"t");
    let first = cluster.owners().await.unwrap()[usize::from(slot.number())];
    for from in first..first + times {
        cluster.move_slots(from % 3, (from + 1) % 3, slot.into()).await.unwrap();
        cluster.wait_calm().await.unwrap();
    }
}

#[tokio::test]
async fn sessions_go_on_while_their_slot_moves() {
    let cluster = cluster(0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let address = front.address;
    let end = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ended = std::sync::Arc::clone(&end);
    let going = move || !ended.load(std::sync::atomic::Ordering::Relaxed);
    let counter = std::thread::spawn({
        let going = going.clone();
        move || {
            let wire = &mut Wire::open(address).unwrap();
            let (mut done, mut again) = (0, 0);
            while going() {
                let watches = done % 2 == 0;
                if watches {
                    assert_eq!(call(wire, "WATCH {t}count"), ok());
                }
                wire.send(&["MULTI", "INCR {t}count", "EXEC"].map(words)).unwrap();
                assert_eq!(wire.reply().unwrap(), ok());
                assert_eq!(wire.reply().unwrap(), Value::Simple("QUEUED".to_owned()));
                match wire.reply().unwrap() {
                    Value::Array(counts) => {
                        done += 1;
                        assert_eq!(counts, [Value::Integer(done)]);
                    }
                    Value::Null if watches => again += 1,
                    other => panic!("{other:?}"),
                }
            }
            (done, again)
        }
    });
    let queue = std::thread::spawn({
        let going = going.clone();
        move || {
            let waiter = &mut Wire::open(address).unwrap();
            let writer = &mut Wire::open(address).unwrap();
            let mut number = 0;
            while going() {
                number += 1;
                waiter.send(&[words("BLPOP {t}queue 0")]).unwrap();
                let text = number.to_string();
                assert_eq!(call(writer, &format!("RPUSH {{t}}queue {text}")), Value::Integer(1));
                let found = waiter.reply().unwrap();
                let expected = ["{t}queue", &text].map(|word| Value::Bulk(word.into()));
                assert_eq!(found, Value::Array(expected.to_vec()));
            }
            number
        }
    });
    move_around(&cluster, 9).await;
    end.store(true, std::sync::atomic::Ordering::Relaxed);
    let (done, again) = counter.join().unwrap();
    let jobs = queue.join().unwrap();
    assert!(done > 20 && jobs > 20, "{done} transactions, {again} again, {jobs} jobs");
}

#[tokio::test]
async fn a_transaction_is_executed_once_or_not_at_all_when_its_server_dies() {
    let mut cluster = cluster(1).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let wire = &mut Wire::open(front.address).unwrap();
    // {b} is of the first primary.
    let (mut executed, mut unknown) = (Vec::new(), 0);
    let deadline = Instant::now() + TIME_MAX;
    let mut number = 0;
    let mut after = 0;
    while after < 100 {
        number += 1;
        if number == 100 {
            cluster.kill(0).unwrap();
        }
        let push = format!("RPUSH {{b}}list {number}");
        let mirror = format!("RPUSH {{b}}mirror {number}");
        wire.send(&["MULTI", &push, &mirror, "EXEC"].map(words)).unwrap();
        let replies: Vec<Value> = (0..4).map(|_| wire.reply().unwrap()).collect();
        match &replies[3] {
            Value::Array(_) => {
                executed.push(number);
                after += usize::from(number > 100);
            }
            Value::Error(text) if text.contains("may have been executed") => unknown += 1,
            Value::Error(text) => assert!(text.starts_with("EXECABORT"), "{replies:?}"),
            other => panic!("{other:?}"),
        }
        assert!(Instant::now() < deadline, "{replies:?}");
    }
    let list = call(wire, "LRANGE {b}list 0 -1");
    assert_eq!(list, call(wire, "LRANGE {b}mirror 0 -1"));
    let found: Vec<i32> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap().parse().unwrap())
        .collect();
    assert!(found.is_sorted_by(|left, right| left < right), "none is twice");
    assert!(unknown <= 1, "{unknown} answers that nobody knows");
    // Those that the new primary had not been told of are the engine's loss.
    assert!(executed.iter().filter(|number| **number > 100).all(|number| found.contains(number)));
}
