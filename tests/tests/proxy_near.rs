//! The proxy's near cache in front of real servers: what is answered from memory is what the servers
//! hold, whoever writes, and whatever becomes of servers and slots.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use keyfleet::proxy::{Service, Setup};
use protocol::{SlotSet, Value, key_slot};
use proxy::engine::NearCache;
use tests::{
    cluster::{RawCluster, Shape, call},
    differential::Wire,
    engines::engine,
    proxy::{Front, wait_until},
};

const BYTES_MAX: u64 = 1 << 20;

async fn cluster(kind: &str, version: &str) -> RawCluster {
    let binary = engine(kind, version);
    let config = ["--cluster-allow-replica-migration", "no"];
    let shape =
        Shape { server: &binary.server, primaries: 3, replicas: 1, spare: 0, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

/// With values that hold for an hour, so that nothing but what servers say changes them.
fn front(cluster: &RawCluster, threads: usize) -> Front {
    let near = NearCache { bytes_max: BYTES_MAX as usize, age: 3_600_000_000 };
    let setup = Setup { near: Some(near), ..Front::setup(&cluster.addresses(), threads) };
    Front::serve(setup, Service::default()).unwrap()
}

fn ask(wire: &mut Wire, request: &str) -> Value {
    let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
    wire.call(&words).unwrap()
}

fn text_of(text: &str) -> Value {
    Value::Bulk(text.into())
}

fn figure(front: &Front, name: &str) -> u64 {
    let figures = front.figures();
    let line = format!("keyfleet_proxy_near_{name} ");
    let value = figures.lines().find_map(|each| each.strip_prefix(&line));
    value.unwrap_or_else(|| panic!("{figures}")).parse().unwrap()
}

/// Reads a key until it is answered from memory; its value.
fn warm(front: &Front, client: &mut Wire, key: &str) -> Value {
    let mut value = Value::Null;
    wait_until("it is held", || {
        let before = figure(front, "hits_total");
        client.send(&vec![vec![b"GET".to_vec(), key.into()]; 100]).unwrap();
        (0..100).for_each(|_| value = client.reply().unwrap());
        figure(front, "hits_total") > before
    });
    value
}

/// Reads a key until it is this.
fn becomes(client: &mut Wire, key: &str, value: &Value) {
    wait_until("it is what was written", || ask(client, &format!("GET {key}")) == *value);
}

async fn owner(cluster: &RawCluster, key: &str) -> usize {
    cluster.owners().await.unwrap()[usize::from(key_slot(key.as_bytes()).number())]
}

async fn what_servers_hold(kind: &str, version: &str) {
    let cluster = cluster(kind, version).await;
    let front = front(&cluster, 1);
    let (mut one, mut two) =
        (Wire::open(front.address).unwrap(), Wire::open(front.address).unwrap());
    assert_eq!(warm(&front, &mut one, "hot"), Value::Null);
    // Written here, each in its own way: who asks next sees it, whoever it is.
    let writes = [
        ("SET hot 1", Some("1")),
        ("MSET hot 2 other 2", Some("2")),
        ("APPEND hot 2", Some("22")),
        ("EVAL redis.call('set',KEYS[1],'3') 1 hot", Some("3")),
        ("DEL hot other", None),
        ("INCR hot", Some("1")),
        ("FLUSHALL", None),
        ("SETEX hot 100 4", Some("4")),
    ];
    for (write, value) in writes {
        warm(&front, &mut two, "hot");
        ask(&mut one, write);
        assert_eq!(ask(&mut two, "GET hot"), value.map_or(Value::Null, text_of), "{write}");
    }
    warm(&front, &mut two, "hot");
    for request in ["MULTI", "SET hot 5", "EXEC"] {
        ask(&mut one, request);
    }
    assert_eq!(ask(&mut two, "GET hot"), text_of("5"));

    // Written elsewhere.
    let at = owner(&cluster, "hot").await;
    let mut link = cluster.link(at).await.unwrap();
    for number in 10..55 {
        let text = number.to_string();
        warm(&front, &mut one, "hot");
        call(&mut link, &["SET", "hot", &text]).await.unwrap();
        becomes(&mut one, "hot", &text_of(&text));
    }
    assert!(figure(&front, "invalidations_total") >= 45);
    // By nobody.
    call(&mut link, &["SET", "hot", "soon", "PX", "300"]).await.unwrap();
    becomes(&mut one, "hot", &text_of("soon"));
    becomes(&mut one, "hot", &Value::Null);
    call(&mut link, &["SET", "hot", "6"]).await.unwrap();
    becomes(&mut one, "hot", &text_of("6"));
    warm(&front, &mut one, "hot");
    call(&mut link, &["FLUSHALL"]).await.unwrap();
    becomes(&mut one, "hot", &Value::Null);
    // Nobody would say what changes over a connection that is lost.
    warm(&front, &mut one, "hot");
    call(&mut link, &["CLIENT", "KILL", "TYPE", "normal"]).await.unwrap();
    call(&mut link, &["SET", "hot", "7"]).await.unwrap();
    becomes(&mut one, "hot", &text_of("7"));

    // With another owner.
    warm(&front, &mut one, "hot");
    let replica = at + 3;
    cluster.hand_over(replica).await.unwrap();
    let mut link = cluster.link(replica).await.unwrap();
    call(&mut link, &["SET", "hot", "8"]).await.unwrap();
    becomes(&mut one, "hot", &text_of("8"));
    warm(&front, &mut one, "hot");
    cluster.wait_calm().await.unwrap();
    let (to, slot) = ((at + 1) % 3, key_slot(b"hot").number());
    cluster.move_slots(replica, to, SlotSet::range(slot, slot)).await.unwrap();
    let mut link = cluster.link(to).await.unwrap();
    call(&mut link, &["SET", "hot", "9"]).await.unwrap();
    becomes(&mut one, "hot", &text_of("9"));
    assert!(figure(&front, "bytes") <= BYTES_MAX);
    let Value::Bulk(info) = ask(&mut one, "INFO stats") else { panic!() };
    assert!(String::from_utf8_lossy(&info).contains("proxy_near_hits:"));
}

/// Readers of two threads under writers: what a client reads never goes back, and its own writes are
/// seen.
async fn under_writers(kind: &str, version: &str) {
    const READS: u64 = 30_000;
    let cluster = cluster(kind, version).await;
    let front = front(&cluster, 2);
    let (reads, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let reader = |own: usize| {
        let (mut wire, reads, ends) =
            (Wire::open(front.address).unwrap(), Arc::clone(&reads), Arc::clone(&ends));
        thread::spawn(move || {
            let mut seen = [0; 2];
            let mut wrote = 0;
            let keys = ["hot".to_owned(), format!("own{own}")];
            let number = |value: Value| match value {
                Value::Null => 0,
                Value::Integer(number) => number,
                Value::Bulk(text) => String::from_utf8(text).unwrap().parse::<i64>().unwrap(),
                other => panic!("{other:?}"),
            };
            for turn in 0.. {
                if ends.load(Relaxed) {
                    break;
                }
                let mut requests = Vec::new();
                for index in 0..20_u32 {
                    let key = keys[usize::from(index.is_multiple_of(3))].clone().into_bytes();
                    requests.push(vec![b"GET".to_vec(), key]);
                }
                if turn % 50 == own {
                    requests.insert(10, vec![b"INCR".to_vec(), keys[1].clone().into_bytes()]);
                }
                wire.send(&requests).unwrap();
                for request in &requests {
                    let value = number(wire.reply().unwrap());
                    let at = usize::from(request[1] != b"hot");
                    assert!(value >= seen[at], "{value} after {}", seen[at]);
                    assert!(at == 0 || value >= wrote);
                    seen[at] = value;
                    if request[0] == b"INCR" {
                        wrote = value;
                    }
                }
                reads.fetch_add(20, Relaxed);
            }
            seen[0]
        })
    };
    let readers: Vec<_> = (0..6).map(|own| reader(own % 3)).collect();
    let at = owner(&cluster, "hot").await;
    let mut link = cluster.link(at).await.unwrap();
    let mut written = 0;
    while reads.load(Relaxed) < READS {
        written = call(&mut link, &["INCR", "hot"]).await.unwrap().as_integer().unwrap();
        let before = reads.load(Relaxed);
        wait_until("readers go on", || reads.load(Relaxed) > before);
    }
    let mut last = Wire::open(front.address).unwrap();
    becomes(&mut last, "hot", &text_of(&written.to_string()));
    ends.store(true, Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    let (hits, misses) = (figure(&front, "hits_total"), figure(&front, "misses_total"));
    assert!(hits > misses, "{hits} of {}", hits + misses);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_holds() {
    what_servers_hold("redis", "7.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_valkey_holds() {
    what_servers_hold("valkey", "9.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_under_writers() {
    under_writers("redis", "7.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_under_writers() {
    under_writers("valkey", "9.1").await;
}
