//! `keyfleet restore` into a cluster of the fleet that isn't there yet: by files that its servers load at
//! their start.

use std::{borrow::Cow, collections::BTreeMap, fs, path::PathBuf, sync::Arc, time::Duration};

use fleet::model::NodeName;
use keyfleet::{admin_client::Connection, lease::Lease, store::Store};
use protocol::{
    key_slot,
    rdb::{Encoding, Fault, Format, Item, Key, Value, Writer, encode},
};
use tests::{
    cluster::{RawCluster, Shape},
    engines::engine,
    fleet::{CLUSTER, Running, Spec, TestFleet, node, primaries},
    matrix::{Entry, ask, dumps, entries, same_end},
    server::{POLL, Server, TIME_MAX},
};
use tokio::time::{Instant, sleep};

const KEYS: usize = 20_000;
const VALUE_BYTES: usize = 64;
/// 2100-01-01.
const END_MS: u64 = 4_102_444_800_000;

/// A cluster of three that holds what this engine saved, and more; and a backup of it in the fleet's
/// directory. Those keys, and how many there are in all.
async fn backup(fleet: &TestFleet, kind: &str, version: &str, file: &str) -> (Vec<Entry>, u64) {
    let server = engine(kind, version).server;
    let config = ["--cluster-allow-replica-migration", "no"];
    let shape = Shape { server: &server, primaries: 3, replicas: 0, spare: 0, config: &config };
    let source = RawCluster::start(&shape).await.unwrap();
    source.fill(KEYS, VALUE_BYTES).await.unwrap();
    let address = source.addresses()[0].to_string();
    let file = dumps().join(file);
    let args = ["import", file.to_str().unwrap(), "--to", &address, "--db-map", "3:0"];
    fleet.run(&args).await.expect_code(0);
    let args = ["backup", "mine", "--connect", &address, "--to", "kept"];
    fleet.run(&args).await.expect_code(0);
    (entries(&file).unwrap(), source.keys(0..3).await.unwrap())
}

/// The fleet holds these keys with these values and ends.
async fn expect(fleet: &TestFleet, keys: &[Entry]) {
    let observed = fleet.observe().await.unwrap();
    let mut links = BTreeMap::new();
    let owners = primaries(&observed);
    for (key, raw) in keys {
        let slot = key_slot(&key.name);
        let (owner, _) = owners.iter().find(|(_, up)| up.slots().contains(slot)).unwrap();
        let address = fleet.address(owner).unwrap();
        if !links.contains_key(owner) {
            links.insert(*owner, Connection::open(address, None, TIME_MAX).await.unwrap());
        }
        let found = ask(links.get_mut(owner).unwrap(), &key.name).await.unwrap();
        let (value, left) = found.unwrap_or_else(|| panic!("no {key:?}"));
        assert!(value.same(&Value::decode(key.encoding, raw).unwrap()), "{key:?}: {value:?}");
        assert!(same_end(key, left), "{key:?} ends in {left} ms");
    }
}

const RESTORE: [&str; 8] =
    ["restore", "latest", "--from", "kept", "--to", CLUSTER, "--output", "json"];

#[tokio::test(flavor = "multi_thread")]
async fn into_clusters_of_every_engine() {
    let cases = [
        (("redis", "7.0"), "redis-7.0.15.rdb", ("redis", "7.0"), "durable", 1),
        (("redis", "7.0"), "redis-7.0.15.rdb", ("redis", "7.0"), "cache", 0),
        (("redis", "7.0"), "redis-7.0.15.rdb", ("valkey", "9.1"), "durable", 1),
        (("redis", "8.0"), "redis-8.0.2.rdb", ("redis", "8.0"), "cache", 1),
        (("valkey", "9.1"), "valkey-9.1.2.rdb", ("valkey", "9.1"), "durable", 0),
        (("redis", "6.2"), "redis-6.2.5.rdb", ("valkey", "8.1"), "cache", 0),
        (("redis", "6.2"), "redis-6.2.5.rdb", ("redis", "6.2"), "durable", 1),
        (("redis", "6.2"), "redis-6.2.5.rdb", ("redis", "6.2"), "cache", 0),
    ];
    for ((kind, version), file, engine, profile, replicas) in cases {
        let spec = Spec { engine, shards: 5, replicas, profile, ..Spec::default() };
        let fleet = TestFleet::new(&spec);
        let (keys, held) = backup(&fleet, kind, version, file).await;
        let ended = fleet.run(&[RESTORE.as_slice(), &["--verify"]].concat()).await.expect_code(0);
        let report = ended.json();
        assert_eq!(report["boot_files"], 5, "{ended:?}");
        assert_eq!(report["verified"]["different"], 0, "{ended:?}");
        assert_eq!(report["verified"]["same"], held, "{ended:?}");
        assert_eq!(report["loaded"], held, "{ended:?}");
        fleet.expect_settled(5, replicas as usize).await;
        assert_eq!(fleet.keys().await, held);
        expect(&fleet, &keys).await;
    }
}

/// On three hosts, with files of other names.
#[tokio::test(flavor = "multi_thread")]
async fn as_the_spec_wants_it() {
    let names = [
        ("appendfilename", "my data.aof"),
        ("appenddirname", "parts"),
        ("dbfilename", "data.rdb"),
        ("save", ""),
    ];
    for profile in ["durable", "cache"] {
        let config = names.to_vec();
        let spec = Spec { hosts: 3, profile, config, ..Spec::default() };
        let fleet = TestFleet::new(&spec);
        let (keys, held) = backup(&fleet, "redis", "7.0", "redis-7.0.15.rdb").await;
        let ended = fleet.run(&RESTORE).await.expect_code(0);
        assert_eq!(ended.json()["boot_files"], 3, "{ended:?}");
        fleet.expect_settled(3, 1).await;
        assert_eq!(fleet.keys().await, held);
        expect(&fleet, &keys).await;
    }
}

fn boot_dir(fleet: &TestFleet) -> PathBuf {
    fleet.directory().join(".keyfleet/nodes").join(format!(".boot-{CLUSTER}"))
}

/// The nodes that are being made.
fn made(fleet: &TestFleet) -> Vec<NodeName> {
    let names = fs::read_dir(boot_dir(fleet)).into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Waits until something holds of the fleet's files, while a command runs.
async fn wait(running: &mut Running, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + TIME_MAX;
    while !holds() {
        assert!(running.ended().is_none(), "it was over before {what}: {}", running.stderr());
        assert!(Instant::now() < deadline, "never {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// Runs the restore, kills it once something holds.
async fn kill_when(fleet: &TestFleet, what: &str, holds: impl Fn() -> bool) {
    let mut running = fleet.spawn(&RESTORE);
    wait(&mut running, what, holds).await;
    let ended = running.kill9().await;
    assert_eq!(ended.code, None, "it was over before it was killed: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_it_goes_on() {
    let spec = Spec { shards: 5, replicas: 1, ..Spec::default() };
    let fleet = TestFleet::new(&spec);
    let (keys, held) = backup(&fleet, "redis", "7.0", "redis-7.0.15.rdb").await;
    let store = Arc::new(Store::beside(&fleet.directory().join("fleet.yaml")).unwrap());
    let begun = || {
        let file = "appendonlydir/appendonly.aof.1.base.rdb";
        made(&fleet).iter().any(|node| boot_dir(&fleet).join(node.to_string()).join(file).exists())
    };
    let has_nodes = || !store.nodes().unwrap().is_empty();

    kill_when(&fleet, "a file is begun", begun).await;
    assert!(!has_nodes());
    // All files are whole, and the nodes can't be moved yet.
    let lease = Lease::command(&store, "test", TIME_MAX).await.unwrap();
    let ready = boot_dir(&fleet).join("ready");
    kill_when(&fleet, "all is whole", || ready.exists()).await;
    drop(lease);
    assert!(!has_nodes());
    // Some are moved.
    let moved = &made(&fleet)[1];
    fs::rename(boot_dir(&fleet).join(moved.to_string()), store.node_dir(moved)).unwrap();
    let refused = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    assert!(refused.said().contains("a restore into main was interrupted"), "{refused:?}");
    kill_when(&fleet, "a node runs", || fleet.pid(moved).is_some()).await;
    assert!(!boot_dir(&fleet).exists());

    let ended = fleet.run(&RESTORE).await.expect_code(0);
    assert!(ended.stderr.contains("going on from there"), "{ended:?}");
    assert_eq!(ended.json()["loaded"], held, "{ended:?}");
    fleet.expect_settled(5, 1).await;
    assert_eq!(fleet.keys().await, held);
    expect(&fleet, &keys).await;
    // It is done: the next one is another, into a cluster that holds keys.
    let ended = fleet.run(&RESTORE).await.expect_code(1);
    assert!(ended.said().contains("holds"), "{ended:?}");
    // Removed and made anew, the same way again.
    let args = ["down", "--delete-data", "--yes-delete", CLUSTER];
    fleet.run(&args).await.expect_code(0);
    let ended = fleet.run(&RESTORE).await.expect_code(0);
    assert_eq!(ended.json()["boot_files"], 5, "{ended:?}");
    assert_eq!(fleet.keys().await, held);
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_half_way_nothing_is_left() {
    let spec = Spec { replicas: 0, profile: "cache", ..Spec::default() };
    let fleet = TestFleet::new(&spec);
    backup(&fleet, "redis", "7.0", "redis-7.0.15.rdb").await;
    let store = Arc::new(Store::beside(&fleet.directory().join("fleet.yaml")).unwrap());
    let lease = Lease::command(&store, "test", TIME_MAX).await.unwrap();
    let ready = boot_dir(&fleet).join("ready");
    kill_when(&fleet, "all is whole", || ready.exists()).await;
    drop(lease);
    let args = ["down", "--delete-data", "--yes-delete", CLUSTER];
    fleet.run(&args).await.expect_code(0);
    assert!(!boot_dir(&fleet).exists());
    fleet.up().await;
    assert_eq!(fleet.keys().await, 0);
    // It is there now, and empty.
    let ended = fleet.run(&RESTORE).await.expect_code(0);
    assert_eq!(ended.json()["boot_files"], 0, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_nothing_half() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a small file system to fill");
        return;
    }
    let spec = Spec { replicas: 0, profile: "cache", ..Spec::default() };
    let mut fleet = TestFleet::new(&spec);
    let (keys, held) = backup(&fleet, "redis", "7.0", "redis-7.0.15.rdb").await;
    fleet.limit_disk("512k").expect("root can mount");
    let ended = fleet.run(&RESTORE).await.expect_failure();
    assert!(ended.said().contains("No space left"), "{ended:?}");
    assert!(ended.said().contains("the disk is full"), "{ended:?}");
    assert!(!boot_dir(&fleet).exists());
    fleet.limit_disk("64m").expect("root can mount");
    let ended = fleet.run(&RESTORE).await.expect_code(0);
    assert_eq!(ended.json()["boot_files"], 3, "{ended:?}");
    assert_eq!(fleet.keys().await, held);
    expect(&fleet, &keys).await;
    // What these nodes keep nothing of is not brought back by a restart.
    for number in 1..=3 {
        assert!(!fleet.node_directory(&node(number)).join("dump.rdb").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_makes_nothing() {
    let spec = Spec { replicas: 0, ..Spec::default() };
    let fleet = TestFleet::new(&spec);
    backup(&fleet, "redis", "7.0", "redis-7.0.15.rdb").await;
    let taken = fs::read_dir(fleet.directory().join("kept/mine")).unwrap().flatten();
    let files = taken.flat_map(|taken| fs::read_dir(taken.path()).unwrap().flatten());
    let mut files: Vec<PathBuf> = files.map(|file| file.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rdb"));
    let last = files.iter().max().unwrap();
    let mut bytes = fs::read(last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(last, bytes).unwrap();
    let ended = fleet.run(&RESTORE).await.expect_failure();
    assert!(!ended.said().contains("is loaded"), "{ended:?}");
    assert!(!boot_dir(&fleet).exists());
    let nodes = Store::beside(&fleet.directory().join("fleet.yaml")).unwrap().nodes();
    assert!(nodes.unwrap().is_empty());
}

/// Values of some megabytes: a hash, which is as it is in every version's files; and lists, which
/// 7.0 packs in a way that 6.2 doesn't know.
fn large(fleet: &TestFleet) -> (PathBuf, Vec<Entry>) {
    let text = |what: &str, at: usize| Cow::Owned(format!("{what} {at}").into_bytes());
    let fields = (0..100_000).map(|at| Item::Field {
        name: text("field", at),
        value: text("value", at),
        expire_at_ms: None,
    });
    let raw = encode(fields.map(Ok::<_, Fault>), Encoding::Hash).unwrap();
    let mut entries = vec![(Key::new(0, b"large:hash", Encoding::Hash), raw)];
    for name in [b"large:1".as_slice(), b"large:2", b"large:3"] {
        let elements = (0..600_000).map(|at| Item::Element(text("element", at)));
        let raw = encode(elements.map(Ok::<_, Fault>), Encoding::List).unwrap();
        let key = Key { expire_at_ms: Some(END_MS), ..Key::new(0, name, Encoding::List) };
        entries.push((key, raw));
    }
    let mut writer = Writer::new(Format::redis(9));
    for (key, raw) in &entries {
        writer.entry(key, raw);
    }
    let path = fleet.directory().join("large.rdb");
    fs::write(&path, writer.finish()).unwrap();
    (path, entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_and_those_that_no_file_carries() {
    for (version, in_files) in [("7.0", 4), ("6.2", 1)] {
        let spec = Spec { engine: ("redis", version), replicas: 0, ..Spec::default() };
        let fleet = TestFleet::new(&spec);
        let source = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
        let (file, keys) = large(&fleet);
        let address = source.address.to_string();
        fleet.run(&["import", file.to_str().unwrap(), "--to", &address]).await.expect_code(0);
        let args = ["backup", "mine", "--connect", &address, "--to", "kept"];
        fleet.run(&args).await.expect_code(0);
        if in_files == 1 {
            // The hash comes with its file; the lists come in pieces, under other names at first.
            let running = fleet.spawn(&RESTORE);
            let deadline = Instant::now() + TIME_MAX;
            while fleet.keys().await < 2 {
                assert!(Instant::now() < deadline, "no list: {}", running.stderr());
                sleep(POLL).await;
            }
            let ended = running.kill9().await;
            assert_eq!(ended.code, None, "it was over before it was killed: {ended:?}");
        }
        let ended = fleet.run(&[RESTORE.as_slice(), &["--verify"]].concat()).await.expect_code(0);
        let report = ended.json();
        assert_eq!(report["loaded"], 4, "{ended:?}");
        assert_eq!(report["verified"]["same"], 4, "{ended:?}");
        let by_commands: u64 = report["read"]["types"]
            .as_object()
            .unwrap()
            .values()
            .map(|count| count["by_commands"].as_u64().unwrap())
            .sum();
        assert_eq!(by_commands, 4 - in_files, "{ended:?}");
        fleet.expect_settled(3, 0).await;
        expect(&fleet, &keys).await;
        assert_eq!(fleet.keys().await, 4);
    }
}
