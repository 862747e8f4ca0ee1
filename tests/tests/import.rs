//! `keyfleet import` into real clusters and servers, undisturbed and disturbed.

use std::{borrow::Cow, collections::BTreeMap, fs, path::PathBuf, time::Duration};

use protocol::{
    SlotSet, Value as Reply, key_slot,
    rdb::{Encoding, Fault, Format, Item, Key, Value, Writer, encode},
};
use serde_json::Value as Json;
use tests::{
    cluster::{RawCluster, Shape, call, text},
    engines::engine,
    fleet::TestFleet,
    matrix::{Entry, ask, carry_all, dumps, entries, import, page, same_end},
    relay::Relay,
    server::Server,
};

const KEYS: usize = 300_000;
const VALUE_BYTES: usize = 64;
/// 2100-01-01.
const END_MS: u64 = 4_102_444_800_000;

async fn cluster(kind: &str, version: &str, replicas: usize, config: &[&str]) -> RawCluster {
    let server = engine(kind, version).server;
    let mut all = vec!["--cluster-allow-replica-migration", "no"];
    all.extend(config);
    let shape = Shape { server: &server, primaries: 3, replicas, spare: 0, config: &all };
    RawCluster::start(&shape).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dump_into_every_cluster() {
    let pairs = carry_all().await.unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/data-matrix.md");
    let current = fs::read_to_string(path).unwrap_or_default();
    assert!(current == page(&pairs), "run `cargo xtask matrix`");
}

fn raw<'a>(to: Encoding, items: impl Iterator<Item = Item<'a>>) -> Vec<u8> {
    encode(items.map(Ok::<_, Fault>), to).unwrap()
}

fn bytes<'a>(text: String) -> Cow<'a, [u8]> {
    Cow::Owned(text.into_bytes())
}

/// Large values of several types, of some megabytes each.
fn large() -> Vec<Entry> {
    let key = |name: &'static [u8], encoding, expire_at_ms| Key {
        expire_at_ms,
        ..Key::new(0, name, encoding)
    };
    let text = Cow::Owned(b"0123456789".repeat(500_000));
    let elements = (0..200_000).map(|at| Item::Element(bytes(format!("element {at}"))));
    let members = (0..200_000).map(|at| Item::Member(bytes(format!("member {at}"))));
    let fields = (0..100_000).map(|at| Item::Field {
        name: bytes(format!("field {at}")),
        value: bytes(format!("value {at}")),
        expire_at_ms: None,
    });
    vec![
        (
            key(b"large:string", Encoding::String, Some(END_MS)),
            raw(Encoding::String, std::iter::once(Item::Text(text))),
        ),
        (key(b"large:list", Encoding::List, Some(END_MS)), raw(Encoding::List, elements)),
        (key(b"large:set", Encoding::Set, None), raw(Encoding::Set, members)),
        (key(b"large:hash", Encoding::Hash, None), raw(Encoding::Hash, fields)),
    ]
}

/// A file with the keys of `RawCluster::fill` and large ones among them.
fn many(fleet: &TestFleet, count: usize, large: &[Entry]) -> PathBuf {
    let mut writer = Writer::new(Format::redis(9));
    writer.select_db(0);
    let every = count / (large.len() + 1);
    let mut large = large.iter();
    for number in 0..count {
        let name = format!("key:{number}");
        let value = bytes(format!("{name:.<VALUE_BYTES$}"));
        let raw = raw(Encoding::String, std::iter::once(Item::Text(value)));
        writer.entry(&Key::new(0, name.as_bytes(), Encoding::String), &raw);
        if (number + 1) % every == 0
            && let Some((key, raw)) = large.next()
        {
            writer.entry(key, raw);
        }
    }
    let path = fleet.directory().join("many.rdb");
    fs::write(&path, writer.finish()).unwrap();
    path
}

async fn held(cluster: &RawCluster, nodes: std::ops::Range<usize>) -> usize {
    cluster.keys(nodes).await.unwrap().try_into().unwrap()
}

async fn wait_until_held(cluster: &RawCluster, count: usize) {
    while held(cluster, 0..3).await < count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Has an import noted how far it is?
fn has_saved(fleet: &TestFleet) -> bool {
    let notes = fs::read_dir(fleet.directory().join("state/keyfleet/imports"));
    let names = notes.into_iter().flatten().map(|note| note.unwrap().path());
    names.into_iter().any(|path| path.extension().is_some_and(|extension| extension == "json"))
}

/// The large keys are there, and whole.
async fn expect_large(cluster: &RawCluster, large: &[Entry]) {
    let owners = cluster.owners().await.unwrap();
    for (key, raw) in large {
        let owner = owners[usize::from(key_slot(&key.name).number())];
        let mut link = cluster.link(owner).await.unwrap();
        let (value, left) = ask(&mut link, &key.name).await.unwrap().expect("the key is there");
        assert!(value == Value::decode(key.encoding, raw).unwrap(), "{key:?}");
        assert!(same_end(key, left), "{key:?} ends in {left} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_goes_on() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    let fleet = TestFleet::empty();
    let large = large();
    let file = many(&fleet, KEYS, &large);
    let to = cluster.addresses()[0].to_string();
    let args = ["import", file.to_str().unwrap(), "--to", &to, "--output", "json"];
    // What the first run finds, the last one must still know.
    let owner = cluster.owners().await.unwrap()[usize::from(key_slot(b"key:0").number())];
    let mut link = cluster.link(owner).await.unwrap();
    call(&mut link, &["SET", "key:0", "other"]).await.unwrap();
    for part in 1..4 {
        let running = fleet.spawn(&args);
        wait_until_held(&cluster, KEYS * part / 8).await;
        while !has_saved(&fleet) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let ended = running.kill9().await;
        assert_eq!(ended.code, None, "it was over before it was killed: {ended:?}");
    }
    let ended = fleet.run(&args).await.expect_code(1);
    assert!(ended.stderr.contains("Going on at"), "{ended:?}");
    let report: Json = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["loaded"], KEYS + large.len() - 1, "{report}");
    assert_eq!(report["read"]["troubles"]["total"], 1, "{report}");
    assert_eq!(report["read"]["troubles"]["first"][0]["key"], "key:0", "{report}");
    let (ended, report) = import(&fleet, &file, &to, &["--replace", "--pattern", "key:0"]).await;
    assert_eq!((ended.code, &report["loaded"]), (Some(0), &Json::from(1)), "{ended:?}");
    cluster.check_filled(KEYS, VALUE_BYTES).await.unwrap();
    expect_large(&cluster, &large).await;
    // Nothing but them: no temporary names are left.
    assert_eq!(held(&cluster, 0..3).await, KEYS + large.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_slots_move() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    let fleet = TestFleet::empty();
    let large = large();
    let file = many(&fleet, KEYS, &large);
    let to = cluster.addresses()[0].to_string();
    let args = ["import", file.to_str().unwrap(), "--to", &to, "--output", "json"];
    let running = fleet.spawn(&args);
    wait_until_held(&cluster, KEYS / 20).await;
    cluster.move_slots(0, 1, SlotSet::range(0, 3_000)).await.unwrap();
    let ended = running.wait().await.expect_code(0);
    let report: Json = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["loaded"], KEYS + large.len(), "{report}");
    cluster.check_filled(KEYS, VALUE_BYTES).await.unwrap();
    expect_large(&cluster, &large).await;
    assert_eq!(held(&cluster, 0..3).await, KEYS + large.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_failover() {
    let mut cluster = cluster("redis", "7.0", 1, &["--cluster-node-timeout", "2000"]).await;
    let fleet = TestFleet::empty();
    let file = many(&fleet, KEYS, &[]);
    let to = cluster.addresses()[1].to_string();
    let args = ["import", file.to_str().unwrap(), "--to", &to, "--output", "json"];
    let running = fleet.spawn(&args);
    wait_until_held(&cluster, KEYS / 20).await;
    // What was answered must be at the replica before its primary dies.
    let mut link = cluster.link(0).await.unwrap();
    call(&mut link, &["CLIENT", "PAUSE", "60000", "WRITE"]).await.unwrap();
    call(&mut link, &["WAIT", "1", "10000"]).await.unwrap();
    cluster.kill(0).unwrap();
    let ended = running.wait().await.expect_code(0);
    let report: Json = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["loaded"], KEYS, "{report}");
    assert_eq!(held(&cluster, 1..4).await, KEYS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_target_is_waited_for_then_given_up_and_later_filled() {
    let program = engine("redis", "7.0").server;
    let server = Server::start(&program, &["--maxmemory", "8mb"]).await.unwrap();
    let fleet = TestFleet::empty();
    let file = many(&fleet, KEYS, &[]);
    let to = server.address.to_string();
    let (ended, _) = import(&fleet, &file, &to, &["--patience", "1s"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("OOM"), "{ended:?}");
    assert!(ended.stderr.contains("run the same command again"), "{ended:?}");
    let mut link = server.link().await.unwrap();
    call(&mut link, &["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    let (ended, report) = import(&fleet, &file, &to, &["--patience", "1s"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(report["loaded"], KEYS, "{report}");
    assert_eq!(
        call(&mut link, &["DBSIZE"]).await.unwrap(),
        Reply::Integer(KEYS.try_into().unwrap())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_there_already() {
    let server = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let fleet = TestFleet::empty();
    let file = many(&fleet, 100, &large());
    let to = server.address.to_string();
    let mut link = server.link().await.unwrap();
    let run = async |more: &[&str], code, loaded: u64, existing: u64, same: u64| {
        let (ended, report) = import(&fleet, &file, &to, more).await;
        assert_eq!(ended.code, Some(code), "{more:?} {ended:?}");
        let found = [&report["loaded"], &report["existing"], &report["existing_same"]];
        assert_eq!(found.map(Json::as_u64), [loaded, existing, same].map(Some));
        (ended, report)
    };
    call(&mut link, &["SET", "key:7", "other"]).await.unwrap();
    call(&mut link, &["SET", "large:list", "other"]).await.unwrap();
    let (_, report) = run(&[], 1, 102, 2, 0).await;
    let named: Vec<&Json> =
        (0..2).map(|at| &report["read"]["troubles"]["first"][at]["key"]).collect();
    assert_eq!(named, ["key:7", "large:list"]);
    // The same again: what is there is right, but for those two.
    run(&[], 1, 102, 104, 102).await;
    run(&["--skip-existing"], 0, 0, 104, 0).await;
    let value = call(&mut link, &["GET", "key:7"]).await.unwrap();
    assert_eq!(value.as_str(), Some("other"));
    run(&["--replace", "--verify"], 0, 104, 0, 0).await;
    run(&[], 0, 104, 104, 104).await;
    let (_, report) = run(&["--dry-run", "--pattern", "key:1?"], 0, 0, 0, 0).await;
    assert_eq!(report["read"]["types"]["string"]["keys"], 10);
    assert_eq!(report["read"]["filtered"], 94);
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_of_a_single_server() {
    let server = Server::start(&engine("valkey", "8.1").server, &[]).await.unwrap();
    let fleet = TestFleet::empty();
    let path = dumps().join("redis-7.0.15.rdb");
    let to = server.address.to_string();
    let (ended, report) = import(&fleet, &path, &to, &["--verify", "--db-map", "3:5"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let mut counts = BTreeMap::new();
    for (key, _) in entries(&path).unwrap() {
        *counts.entry(key.db).or_insert(0) += 1;
    }
    assert_eq!(report["verified"]["same"], counts.values().sum::<i64>());
    let mut link = server.link().await.unwrap();
    for (db, from) in [(0, 0), (5, 3), (3, 9)] {
        call(&mut link, &["SELECT", &db.to_string()]).await.unwrap();
        let size = call(&mut link, &["DBSIZE"]).await.unwrap();
        let expected = counts.get(&from).copied().unwrap_or(0);
        assert_eq!(size, Reply::Integer(expected), "database {db}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn append_only_files() {
    let cluster = cluster("valkey", "9.1", 0, &[]).await;
    let fleet = TestFleet::empty();
    let to = cluster.addresses()[0].to_string();
    let (ended, report) =
        import(&fleet, &dumps().join("appendonlydir"), &to, &["--db-map", "3:0"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(report["read"]["commands"], 2, "{report}");
    assert_eq!(held(&cluster, 0..3).await, 3);
    let path = fleet.directory().join("swept.aof");
    fs::write(&path, b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n*1\r\n$8\r\nFLUSHALL\r\n").unwrap();
    let before = held(&cluster, 0..3).await;
    let (ended, _) = import(&fleet, &path, &to, &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("byte 27") && ended.stderr.contains("FLUSHALL"), "{ended:?}");
    assert!(held(&cluster, 0..3).await >= before);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_stdin_to_a_host_by_its_name() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    let fleet = TestFleet::empty();
    let to = format!("localhost:{}", cluster.addresses()[0].port());
    let path = dumps().join("redis-7.0.15.rdb");
    let args = ["import", "-", "--to", &to, "--output", "json", "--max-p99", "100ms"];
    let running = fleet.spawn_reading(&args, fs::File::open(&path).unwrap());
    let ended = running.wait().await.expect_code(1);
    let report: Json = serde_json::from_str(&ended.stdout).unwrap();
    let (fitting, others): (Vec<Entry>, Vec<Entry>) =
        entries(&path).unwrap().into_iter().partition(|(key, _)| key.db == 0);
    assert_eq!(report["loaded"], fitting.len(), "{report}");
    // A cluster has no place for keys of other databases.
    let troubles = &report["read"]["troubles"];
    assert_eq!(troubles["total"], others.len(), "{report}");
    assert_eq!(troubles["first"][0]["key"], "string:other");
    assert_eq!(held(&cluster, 0..3).await, fitting.len());

    // What has to be read twice is refused, or says that it isn't.
    for (option, told) in [("--verify", true), ("--fail", true), ("--replace", false)] {
        let args = ["import", "-", "--to", &to, option];
        let running = fleet.spawn_reading(&args, fs::File::open(&path).unwrap());
        let ended = running.wait().await.expect_code(1);
        assert_eq!(ended.stderr.contains("stdin can't be read again"), told, "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_files_at_once() {
    let cluster = cluster("valkey", "8.1", 0, &[]).await;
    let fleet = TestFleet::empty();
    let to = cluster.addresses()[0].to_string();
    let (many, other) = (many(&fleet, 1_000, &large()), dumps().join("redis-6.2.5.rdb"));
    let (many, other) = (many.to_str().unwrap(), other.to_str().unwrap());
    let args = ["import", many, other, "--to", &to, "--db-map", "3:0", "--verify"];
    let ended = fleet.run(&[args.as_slice(), &["--output", "json"]].concat()).await;
    let report: Json = serde_json::from_str(&ended.stdout).unwrap();
    let keys = 1_000 + large().len() + entries(other.as_ref()).unwrap().len();
    assert_eq!((ended.code, &report["loaded"]), (Some(0), &Json::from(keys)), "{ended:?}");
    assert_eq!(report["verified"]["same"], keys);
    assert_eq!(held(&cluster, 0..3).await, keys);
    let types = report["read"]["types"].as_object().unwrap();
    for (name, count) in types {
        assert_eq!(report["verified"]["types"][name], count["keys"], "{name}");
    }
    let slots = report["read"]["slots"].as_array().unwrap();
    assert_eq!(slots.iter().filter_map(Json::as_u64).sum::<u64>(), keys as u64);

    // What somebody changed since is named, with its slot.
    let slot = key_slot(b"key:7");
    let owner = cluster.owners().await.unwrap()[usize::from(slot.number())];
    let mut link = cluster.link(owner).await.unwrap();
    call(&mut link, &["SET", "key:7", "other"]).await.unwrap();
    let (ended, report) =
        import(&fleet, many.as_ref(), &to, &["--skip-existing", "--verify"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(report["verified"]["different"], 1);
    assert_eq!(report["verified"]["slots_different"], Json::from(vec![slot.number()]));
    assert_eq!(report["read"]["troubles"]["first"][0]["key"], "key:7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_then_given_up_and_later_filled() {
    let program = engine("redis", "7.0").server;
    let server = Server::start(&program, &["--save", "3600 1"]).await.unwrap();
    let mut link = server.link().await.unwrap();
    let directory = call(&mut link, &["CONFIG", "GET", "dir"]).await.unwrap();
    let directory = directory.as_array().unwrap()[1].as_str().unwrap().to_owned();
    // What it saves has no place to go.
    let file = PathBuf::from(directory).join("dump.rdb");
    fs::create_dir(&file).unwrap();
    save(&server, "err").await;
    let fleet = TestFleet::empty();
    let many = many(&fleet, 1_000, &[]);
    let to = server.address.to_string();
    let (ended, _) = import(&fleet, &many, &to, &["--patience", "1s"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("MISCONF"), "{ended:?}");
    assert!(ended.stderr.contains("make room on the target's disk"), "{ended:?}");
    fs::remove_dir(&file).unwrap();
    save(&server, "ok").await;
    let (ended, report) = import(&fleet, &many, &to, &[]).await;
    assert_eq!((ended.code, &report["loaded"]), (Some(0), &Json::from(1_000)), "{ended:?}");
}

/// Lets the server save, and waits until that ended so.
async fn save(server: &Server, how: &str) {
    let mut link = server.link().await.unwrap();
    call(&mut link, &["BGSAVE"]).await.unwrap();
    let done = format!("rdb_last_bgsave_status:{how}\r\n");
    while !text(&mut link, &["INFO", "persistence"]).await.unwrap().contains(&done) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn through_cuts_of_the_network() {
    let server = Server::start(&engine("valkey", "9.1").server, &[]).await.unwrap();
    let relay = Relay::start(server.address).await.unwrap();
    let fleet = TestFleet::empty();
    let large = large();
    let file = many(&fleet, KEYS, &large);
    let to = relay.address.to_string();
    let args = ["import", file.to_str().unwrap(), "--to", &to, "--output", "json", "--replace"];
    let running = fleet.spawn(&args);
    let mut link = server.link().await.unwrap();
    for part in 1..5 {
        while call(&mut link, &["DBSIZE"]).await.unwrap().as_integer().unwrap()
            < i64::try_from(KEYS * part / 6).unwrap()
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        relay.cut();
    }
    let ended = running.wait().await.expect_code(0);
    let report: Json = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["loaded"], KEYS + large.len(), "{report}");
    let size = call(&mut link, &["DBSIZE"]).await.unwrap().as_integer().unwrap();
    assert_eq!(size, i64::try_from(KEYS + large.len()).unwrap());
    for (key, raw) in &large {
        let (value, left) = ask(&mut link, &key.name).await.unwrap().expect("the key is there");
        assert!(value == Value::decode(key.encoding, raw).unwrap(), "{key:?}");
        assert!(same_end(key, left), "{key:?} ends in {left} ms");
    }
}
