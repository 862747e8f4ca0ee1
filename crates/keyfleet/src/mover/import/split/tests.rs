use std::{collections::BTreeMap, env, fs, process};

use protocol::{
    EngineKind, Version,
    rdb::{Encoding, Fault, Item, Reader, encode},
};

use super::*;

const PAST_MS: u64 = 1_000;
/// 2100-01-01.
const END_MS: u64 = 4_102_444_800_000;

fn redis(major: u16, minor: u16) -> Engine {
    Engine { kind: EngineKind::Redis, version: Version::new(major, minor, 0) }
}

/// Splits a file into two halves of the slots; what each file holds then: of the shards, and the rest.
fn check(
    engine: Engine,
    slots: &SlotSet,
    file: impl FnOnce(&mut Writer),
    format: Format,
) -> (Split, Vec<Vec<String>>, Vec<String>) {
    let directory = env::temp_dir().join(format!("keyfleet-split-{}-{engine}", process::id()));
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(directory.join("rest")).unwrap();
    let mut writer = Writer::new(format);
    file(&mut writer);
    let source = directory.join("source.rdb");
    fs::write(&source, writer.finish()).unwrap();
    let job = Job {
        inputs: source::find(&[source]).unwrap(),
        slots: vec![slots.clone()],
        keys: 3,
        filter: Filter::default(),
        engine,
        shards: vec![
            (directory.join("low.rdb"), SlotSet::range(0, 8_191)),
            (directory.join("high.rdb"), SlotSet::range(8_192, 16_383)),
        ],
        rest: directory.join("rest"),
    };
    let split = split(&job, &Watch::default()).unwrap();
    let shards = job.shards.iter().map(|(path, _)| events(path)).collect();
    let rest = split.rest.iter().flat_map(|path| events(path)).collect();
    fs::remove_dir_all(&directory).unwrap();
    (split, shards, rest)
}

/// What a file holds, sorted.
fn events(path: &Path) -> Vec<String> {
    let mut reader = Reader::new(Limits::default());
    reader.feed(&fs::read(path).unwrap());
    let mut found = Vec::new();
    while let Some(record) = reader.next().unwrap() {
        match record.event {
            Event::Entry(Entry { key, raw }) => {
                let name = String::from_utf8_lossy(&key.name).into_owned();
                let end = key.expire_at_ms.map(|at| format!(" ends {at}")).unwrap_or_default();
                found.push(format!(
                    "{}/{name} {:?}, {} bytes{end}",
                    key.db,
                    key.encoding,
                    raw.len()
                ));
            }
            Event::Function(code) => found.push(String::from_utf8_lossy(&code).into_owned()),
            Event::MemberExpires { member, expire_at_ms } => {
                found.push(format!("  {} ends {expire_at_ms}", String::from_utf8_lossy(&member)));
            }
            _ => {}
        }
    }
    reader.finish().unwrap();
    found.sort();
    found
}

fn text(writer: &mut Writer, key: &Key<'_>) {
    writer.entry(key, b"\x01x");
}

fn key(name: &str) -> Key<'_> {
    Key::new(0, name.as_bytes(), Encoding::String)
}

#[test]
fn each_key_goes_where_its_slot_is() {
    // Slots: a 15495, b 3300, c 7365, d 11298, foo 12182.
    let owned = SlotSet::range(0, 12_000).union(&SlotSet::range(15_000, 16_383));
    let file = |writer: &mut Writer| {
        writer.function(b"#!lua name=mine\n");
        writer.select_db(0);
        text(writer, &Key { expire_at_ms: Some(END_MS), ..key("a") });
        text(writer, &key("b"));
        text(writer, &Key { expire_at_ms: Some(PAST_MS), ..key("c") });
        text(writer, &key("d"));
        // Another's slot: it may be there twice.
        text(writer, &key("foo"));
        writer.select_db(2);
        text(writer, &key("b"));
    };
    let (split, shards, rest) = check(redis(7, 0), &owned, file, Format::redis(10));
    assert_eq!(shards[0], ["0/b String, 2 bytes"]);
    let high = ["0/a String, 2 bytes ends 4102444800000", "0/d String, 2 bytes"];
    assert_eq!(shards[1], high);
    assert_eq!(rest, ["#!lua name=mine\n", "0/foo String, 2 bytes"]);
    assert_eq!(split.shards[0], Content { keys: 1, expiring: 0 });
    assert_eq!(split.shards[1], Content { keys: 2, expiring: 1 });
    assert_eq!((split.tally.sent(), split.tally.expired), (3, 1));
    assert_eq!(split.tally.troubles.first[0].key, "b");
    assert!(split.tally.troubles.first[0].why.contains("database 2"));
}

#[test]
fn values_are_brought_into_the_new_servers_form() {
    let elements = |count: u32| {
        let items = (0..count).map(|at| Item::Element(format!("{at:0>20}").into_bytes().into()));
        encode(items.map(Ok::<_, Fault>), Encoding::List).unwrap()
    };
    let file = |writer: &mut Writer| {
        // A listpack of one element.
        let packed = b"\x0a\x0a\x00\x00\x00\x01\x00\x81x\x02\xff";
        let listpack = Key::new(0, b"b", Encoding::SetListpack);
        writer.entry(&listpack, packed);
        // A plain list of megabytes is as it is in all versions.
        writer.entry(&Key::new(0, b"c", Encoding::List), &elements(100_000));
        // A value of a module: its id, and the end.
        writer.entry(&Key::new(0, b"a", Encoding::Module), b"\x81\0\0\0\0\0\0\0\x01\0");
    };
    let (split, shards, rest) = check(redis(6, 2), &SlotSet::new(), file, Format::redis(11));
    assert_eq!(shards[0], ["0/b Set, 3 bytes", "0/c List, 2100005 bytes"]);
    assert_eq!(rest.len(), 1, "{rest:?}");
    let ways: BTreeMap<&str, (u64, u64)> = split
        .tally
        .types
        .iter()
        .map(|(name, count)| (name.as_str(), (count.keys, count.repacked)))
        .collect();
    assert_eq!(ways, BTreeMap::from([("list", (1, 0)), ("set", (1, 1))]));
}

#[test]
fn members_that_end_take_their_key_along() {
    let keydb = Engine { kind: EngineKind::KeyDb, version: Version::new(6, 3, 4) };
    let file = |writer: &mut Writer| {
        for name in ["b", "c"] {
            writer.aux(b"mvcc-tstamp", b"1");
            writer.entry(&Key::new(0, name.as_bytes(), Encoding::Set), b"\x01\x01x");
        }
        writer.aux(b"keydb-subexpire-key", b"x");
        writer.aux(b"keydb-subexpire-when", b"4102444800000");
        writer.aux(b"mvcc-tstamp", b"1");
        text(writer, &key("a"));
    };
    let (split, shards, rest) = check(keydb, &SlotSet::new(), file, Format::redis(9));
    assert_eq!(shards[0], ["0/b Set, 3 bytes"]);
    assert_eq!(shards[1], ["0/a String, 2 bytes"]);
    assert_eq!(rest, ["  x ends 4102444800000", "0/c Set, 3 bytes"]);
    assert_eq!(split.tally.sent(), 2);
}
