//! `keyfleet import` into real clusters and servers, undisturbed and disturbed.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet::model::Pace;
use keyfleet::{
    admin_client::Connection,
    mover::slots::{SlotMove, move_slots},
};
use protocol::rdb::{Fault, Item};
use protocol::{
    Engine, SlotSet, Value as Reply,
    engine::AtomicSlots,
    key_slot,
    rdb::{
        Carried, Encoding, Event, Format, Key, Limits, Lost, Reader, Value, Writer, dump, encode,
        transcode,
    },
};
use serde_json::Value as Json;
use tests::{
    cluster::{RawCluster, Shape, call},
    engines::{ENGINES, engine},
    fleet::{Ended, TestFleet},
    server::{Server, TIME_MAX},
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

/// Runs an import; its report where it printed one.
async fn import(fleet: &TestFleet, file: &Path, to: &str, more: &[&str]) -> (Ended, Json) {
    let file = file.to_str().unwrap();
    let mut args = vec!["import", file, "--to", to, "--output", "json"];
    args.extend(more);
    let ended = fleet.run(&args).await;
    let report = serde_json::from_str(&ended.stdout).unwrap_or(Json::Null);
    (ended, report)
}

fn dumps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/protocol/tests/dumps")
}

type Entry = (Key<'static>, Vec<u8>);

/// The keys that a file holds.
fn entries(path: &Path) -> Vec<Entry> {
    let mut reader = Reader::new(Limits::default());
    reader.feed(&fs::read(path).unwrap());
    let mut keys = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        if let Event::Entry(entry) = record.event {
            let name = Cow::Owned(entry.key.name.into_owned());
            keys.push((Key { name, ..entry.key }, entry.raw.to_vec()));
        }
    }
    keys
}

/// Does the file hold a library of functions?
fn has_functions(path: &Path) -> bool {
    let mut reader = Reader::new(Limits::default());
    reader.feed(&fs::read(path).unwrap());
    while let Some(record) = reader.next().unwrap() {
        if matches!(record.event, Event::Function(_)) {
            return true;
        }
    }
    false
}

/// What a server says of a key: its value, and when it ends.
async fn ask(link: &mut Connection, name: &[u8]) -> Option<(Value, i64)> {
    let payload = link.call_within(TIME_MAX, [b"DUMP".as_slice(), name]).await.unwrap();
    let payload = dump::parse(payload.as_bytes()?).unwrap();
    let left = link.call_within(TIME_MAX, [b"PTTL".as_slice(), name]).await.unwrap();
    let value = Value::decode(payload.encoding, payload.raw).unwrap();
    Some((value, left.as_integer().unwrap()))
}

fn now_ms() -> u64 {
    keyfleet::observe::now_ms()
}

/// The cluster holds exactly these keys.
async fn expect(cluster: &RawCluster, target: Engine, keys: &[Entry], from: &str) {
    let owners = cluster.owners().await.unwrap();
    let mut links = Vec::new();
    let mut held = 0;
    for index in 0..3 {
        let mut link = cluster.link(index).await.unwrap();
        held += call(&mut link, &["DBSIZE"]).await.unwrap().as_integer().unwrap();
        links.push(link);
    }
    assert_eq!(held, i64::try_from(keys.len()).unwrap(), "{from} to {target}");
    for (key, raw) in keys {
        let mut expected = Value::decode(key.encoding, raw).unwrap();
        if let Carried::Payload { lost, .. } = transcode(key.encoding, raw, &target).unwrap()
            && lost.field_ttls
            && let Value::Hash(hash) = &mut expected
        {
            for field in hash.values_mut() {
                field.expire_at_ms = None;
            }
        }
        let owner = owners[usize::from(key_slot(&key.name).number())];
        let found = ask(&mut links[owner], &key.name).await;
        let (value, left) = found.unwrap_or_else(|| panic!("{from} to {target}: no {key:?}"));
        assert!(
            value.same(&expected),
            "{from} to {target}: {key:?}\nfound {value:?}\nexpected {expected:?}"
        );
        let end = u64::try_from(left).map_or(0, |left| now_ms() + left);
        let apart = end.abs_diff(key.expire_at_ms.unwrap_or(0));
        assert!(apart < 5_000, "{from} to {target}: {key:?} ends {end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dump_into_every_cluster() {
    let fleet = TestFleet::empty();
    for (kind, version) in ENGINES {
        let target = engine(kind, version).engine;
        let cluster = cluster(kind, version, 0, &[]).await;
        let to = cluster.addresses()[0].to_string();
        for file in fs::read_dir(dumps()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rdb") {
                continue;
            }
            let from = path.file_name().unwrap().to_str().unwrap();
            let all = entries(&path);
            let functions = has_functions(&path);
            let fitting: Vec<Entry> = all.iter().filter(|(key, _)| key.db == 0).cloned().collect();
            let (ended, report) = import(&fleet, &path, &to, &["--verify"]).await;
            expect(&cluster, target, &fitting, from).await;
            // Those of other databases, and what the target has no place for, are named.
            let lossy = |(key, raw): &&Entry| {
                let carried = transcode(key.encoding, raw, &target).unwrap();
                matches!(carried, Carried::Payload { lost, .. } if lost != Lost::default())
            };
            let named = all.len() - fitting.len()
                + fitting.iter().filter(lossy).count()
                + usize::from(functions && version == "6.2");
            assert_eq!(report["read"]["troubles"]["total"], named, "{from} {target} {ended:?}");
            assert_eq!(ended.code, Some(i32::from(named > 0)), "{ended:?}");
            assert_eq!(report["loaded"], fitting.len(), "{ended:?}");
            assert_eq!(report["verified"]["same"], fitting.len(), "{ended:?}");
            for index in 0..3 {
                let mut link = cluster.link(index).await.unwrap();
                call(&mut link, &["FLUSHALL"]).await.unwrap();
            }
        }
    }
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
    let mut keys = 0;
    for index in nodes {
        let mut link = cluster.link(index).await.unwrap();
        keys += call(&mut link, &["DBSIZE"]).await.unwrap().as_integer().unwrap();
    }
    keys.try_into().unwrap()
}

async fn wait_until_held(cluster: &RawCluster, count: usize) {
    while held(cluster, 0..3).await < count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The large keys are there, and whole.
async fn expect_large(cluster: &RawCluster, large: &[Entry]) {
    let owners = cluster.owners().await.unwrap();
    for (key, raw) in large {
        let owner = owners[usize::from(key_slot(&key.name).number())];
        let mut link = cluster.link(owner).await.unwrap();
        let (value, left) = ask(&mut link, &key.name).await.expect("the key is there");
        assert!(value == Value::decode(key.encoding, raw).unwrap(), "{key:?}");
        let end = u64::try_from(left).map_or(0, |left| now_ms() + left);
        assert!(end.abs_diff(key.expire_at_ms.unwrap_or(0)) < 5_000, "{key:?} ends {end}");
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
        wait_until_held(&cluster, KEYS * part / 5).await;
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
    let (from, to) = (cluster.nodes[0].addr, cluster.nodes[1].addr);
    let job = SlotMove {
        from,
        to,
        slots: SlotSet::range(0, 3_000),
        others: cluster.others(&[from, to]),
        login: None,
        pace: Pace::Full,
        atomic: AtomicSlots::None,
    };
    move_slots(&job, |_| ()).await.unwrap();
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
    for (key, _) in entries(&path) {
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
