//! RDB files that engines saved (`cargo xtask dumps`), against what the engines said of their keys.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use protocol::{
    Engine, EngineKind, Version,
    rdb::{
        Big, Carried, Checksum, Commands, DataType, Digest, Encoding, Entry, Event, Format, Item,
        Items, Key, Limits, Part, ReadError, Reader, Value, Verdict, Writer, aof, dump, elements,
        newest_format, transcode,
    },
};

const FILES: [(&str, Format); 5] = [
    ("redis-6.2.5", Format::redis(9)),
    ("redis-7.0.15", Format::redis(10)),
    ("redis-8.0.2", Format::redis(12)),
    ("valkey-8.1.1", Format::redis(11)),
    ("valkey-9.1.2", Format::valkey(80)),
];

const TARGETS: [(EngineKind, Version); 12] = [
    (EngineKind::Redis, Version::new(3, 0, 7)),
    (EngineKind::Redis, Version::new(3, 2, 0)),
    (EngineKind::Redis, Version::new(4, 0, 14)),
    (EngineKind::Redis, Version::new(5, 0, 14)),
    (EngineKind::Redis, Version::new(6, 2, 5)),
    (EngineKind::Redis, Version::new(7, 0, 15)),
    (EngineKind::Redis, Version::new(7, 2, 4)),
    (EngineKind::Redis, Version::new(8, 0, 2)),
    (EngineKind::KeyDb, Version::new(6, 3, 4)),
    (EngineKind::Valkey, Version::new(8, 1, 1)),
    (EngineKind::Valkey, Version::new(9, 0, 0)),
    (EngineKind::Valkey, Version::new(9, 1, 2)),
];

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/dumps")
}

fn file(name: &str) -> Vec<u8> {
    fs::read(directory().join(format!("{name}.rdb"))).unwrap()
}

/// What a file holds, all in memory.
#[derive(Debug, Default, PartialEq)]
struct Held {
    header: Option<Format>,
    functions: Vec<Vec<u8>>,
    notes: BTreeMap<Vec<u8>, Vec<u8>>,
    keys: Vec<(Key<'static>, Vec<u8>)>,
    /// Where each of them began.
    offsets: Vec<u64>,
    bigs: usize,
    verdict: Option<Verdict>,
}

fn owned(key: Key<'_>) -> Key<'static> {
    Key { name: key.name.into_owned().into(), ..key }
}

impl Held {
    fn take(&mut self, offset: u64, event: Event<'_>) {
        match event {
            Event::Header(format) => self.header = Some(format),
            Event::Function(code) => self.functions.push(code.into_owned()),
            Event::Aux { name, value } => {
                self.notes.insert(name.into_owned(), value.into_owned());
            }
            Event::Entry(Entry { key, raw }) => {
                self.keys.push((owned(key), raw.to_vec()));
                self.offsets.push(offset);
            }
            Event::Big(Big { key, text_bytes }) => {
                // A string in parts comes unpacked: its raw value is made here.
                let mut raw = Vec::new();
                if let Some(bytes) = text_bytes {
                    raw.push(0x81);
                    raw.extend_from_slice(&bytes.to_be_bytes());
                }
                self.keys.push((owned(key), raw));
                self.offsets.push(offset);
                self.bigs += 1;
            }
            Event::Part(Part::Raw(part) | Part::Text(part)) => {
                self.keys.last_mut().unwrap().1.extend_from_slice(part);
            }
            Event::End(verdict) => self.verdict = Some(verdict),
            _ => {}
        }
    }

    fn describe(&self) -> String {
        let mut sorted: Vec<_> = self.keys.iter().collect();
        sorted.sort_by_key(|(key, _)| (key.db, key.name.clone()));
        let mut out = String::new();
        for (key, raw) in sorted {
            write!(out, "{} {} {}", key.db, text(&key.name), key.encoding.data_type()).unwrap();
            if let Some(at) = key.expire_at_ms {
                write!(out, " until {at}").unwrap();
            }
            out.push('\n');
            for line in describe(&Value::decode(key.encoding, raw).unwrap()) {
                writeln!(out, "  {line}").unwrap();
            }
        }
        out
    }
}

fn read(bytes: &[u8], piece: usize, limits: Limits) -> Result<Held, ReadError> {
    let mut reader = Reader::new(limits);
    let mut held = Held::default();
    for piece in bytes.chunks(piece) {
        reader.feed(piece);
        while let Some(record) = reader.next()? {
            held.take(record.offset, record.event);
        }
    }
    reader.finish()?;
    Ok(held)
}

fn whole(bytes: &[u8]) -> Held {
    read(bytes, bytes.len(), Limits::default()).unwrap()
}

fn text(bytes: &[u8]) -> String {
    if bytes.len() <= 80 {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let mut checksum = Checksum::new();
    checksum.add(bytes);
    format!("{} bytes {:016x}", bytes.len(), checksum.value())
}

fn describe(value: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    match value {
        Value::String(value) => lines.push(text(value)),
        Value::List(list) => lines.extend(list.iter().map(|element| text(element))),
        Value::Set(set) => lines.extend(set.iter().map(|member| text(member))),
        Value::SortedSet(set) => {
            lines.extend(set.iter().map(|(member, score)| format!("{} {score:e}", text(member))));
        }
        Value::Hash(hash) => lines.extend(hash.iter().map(|(name, field)| {
            let end = field.expire_at_ms.map_or_else(String::new, |at| format!(" until {at}"));
            format!("{} = {}{end}", text(name), text(&field.value))
        })),
        Value::Stream(stream) => {
            for (id, fields) in &stream.entries {
                let pair =
                    |(name, value): &(Vec<u8>, Vec<u8>)| format!(" {}={}", text(name), text(value));
                lines.push(format!("{id}{}", fields.iter().map(pair).collect::<String>()));
            }
            lines.push(format!("last {}", stream.head.last_id));
            if let (Some(added), Some(deleted)) =
                (stream.head.entries_added, stream.head.max_deleted_id)
            {
                lines.push(format!("added {added}, deleted up to {deleted}"));
            }
            for (name, group) in &stream.groups {
                let mut line = format!("group {} last {}", text(name), group.last_id);
                if let Some(read) = group.entries_read {
                    write!(line, " read {read}").unwrap();
                }
                lines.push(line);
                for (id, pending) in &group.pending {
                    lines.push(format!(
                        "  {id} with {} at {} times {}",
                        text(pending.consumer.as_ref().unwrap()),
                        pending.delivered_at_ms,
                        pending.deliveries
                    ));
                }
                lines.extend(group.consumers.keys().map(|c| format!("  consumer {}", text(c))));
            }
        }
        other => panic!("{other:?}"),
    }
    if !matches!(value, Value::List(_) | Value::Stream(_)) {
        lines.sort();
    }
    lines
}

#[test]
fn keys_are_what_the_engines_said() {
    for (name, format) in FILES {
        let held = whole(&file(name));
        let said = fs::read_to_string(directory().join(format!("{name}.txt"))).unwrap();
        let (found, said) = (held.describe(), said);
        for (found, said) in found.lines().zip(said.lines()) {
            assert_eq!(found, said, "{name}");
        }
        assert_eq!(found.lines().count(), said.lines().count(), "{name}");
        assert_eq!(held.header, Some(format));
        assert_eq!(held.verdict, Some(Verdict::Matches), "{name}");
        assert_eq!(held.functions.len(), usize::from(name != "redis-6.2.5"), "{name}");
        let used = |key: &Key<'_>| match name {
            "redis-7.0.15" => key.frequency.is_some(),
            _ => key.idle_seconds.is_some(),
        };
        assert!(held.keys.iter().all(|(key, _)| used(key)), "{name}");
        assert!(held.notes.keys().any(|note| note.ends_with(b"-ver")), "{name}");
        assert_eq!(held.bigs, 0);
    }
}

#[test]
fn every_packing_is_there() {
    let mut seen: Vec<Encoding> = Vec::new();
    for (name, _) in FILES {
        seen.extend(whole(&file(name)).keys.iter().map(|(key, _)| key.encoding));
    }
    for expected in [
        Encoding::String,
        Encoding::Set,
        Encoding::Hash,
        Encoding::SortedSet,
        Encoding::SetIntset,
        Encoding::SortedSetZiplist,
        Encoding::HashZiplist,
        Encoding::ListQuicklist,
        Encoding::Stream,
        Encoding::HashListpack,
        Encoding::SortedSetListpack,
        Encoding::ListQuicklist2,
        Encoding::Stream2,
        Encoding::SetListpack,
        Encoding::Stream3,
        Encoding::HashExpiring,
        Encoding::HashListpackExpiring,
        Encoding::HashExpiringValkey,
    ] {
        assert!(seen.contains(&expected), "{expected:?}");
    }
}

#[test]
fn pieces_and_parts_change_nothing() {
    for (name, _) in FILES {
        let bytes = file(name);
        let expected = whole(&bytes);
        for piece in [1, 13, 999, 100_000] {
            for whole_bytes_max in [0, 60, 3000, 1 << 20] {
                let limits = Limits { whole_bytes_max, ..Limits::default() };
                let held = read(&bytes, piece, limits).unwrap();
                assert_eq!(held.describe(), expected.describe());
                assert_eq!((held.verdict, &held.offsets), (expected.verdict, &expected.offsets));
                assert_eq!(held.bigs > 0, whole_bytes_max < 1 << 20, "{name}");
            }
        }
    }
}

#[test]
fn parts_decode_one_by_one() {
    let bytes = file("valkey-9.1.2");
    let limits = Limits { whole_bytes_max: 50, ..Limits::default() };
    let expected = whole(&bytes);
    let mut reader = Reader::new(limits);
    reader.feed(&bytes);
    let (mut found, mut state) = (Vec::new(), None);
    let mut index = 0;
    while let Some(record) = reader.next().unwrap() {
        match record.event {
            Event::Entry(_) => index += 1,
            Event::Big(big) if big.text_bytes.is_none() => {
                state = Some(Items::start(big.key.encoding));
            }
            Event::Part(Part::Raw(part)) => {
                let mut items = Items::resume(state.take().unwrap(), part);
                found.extend(items.by_ref().map(|item| format!("{:?}", item.unwrap())));
                state = Some(items.suspend());
            }
            Event::BigEnd => {
                let (key, raw) = &expected.keys[index];
                let all = Items::new(key.encoding, raw).map(|item| format!("{:?}", item.unwrap()));
                if key.encoding != Encoding::String {
                    assert!(all.eq(found.drain(..)), "{key:?}");
                }
                index += 1;
            }
            _ => {}
        }
    }
    assert_eq!(index, expected.keys.len());
}

#[test]
fn reading_goes_on_at_any_entry() {
    let bytes = file("redis-8.0.2");
    let expected = whole(&bytes);
    for (index, (key, _)) in expected.keys.iter().enumerate() {
        let offset = expected.offsets[index];
        let mut reader =
            Reader::resume(Limits::default(), expected.header.unwrap(), key.db, offset);
        reader.feed(&bytes[offset as usize..]);
        let mut held = Held::default();
        while let Some(record) = reader.next().unwrap() {
            held.take(record.offset, record.event);
        }
        reader.finish().unwrap();
        assert_eq!(held.keys, expected.keys[index..]);
        assert_eq!(held.offsets, expected.offsets[index..]);
        assert_eq!(held.verdict, Some(Verdict::Unknown));
    }
}

#[test]
fn a_file_that_is_cut_off_is_an_error() {
    for (name, _) in FILES {
        let bytes = file(name);
        let keys = whole(&bytes).keys;
        let step = if name == "redis-8.0.2" { 1 } else { 17 };
        for cut in (0..bytes.len()).step_by(step) {
            let mut reader = Reader::new(Limits::default());
            reader.feed(&bytes[..cut]);
            let mut held = Held::default();
            while let Some(record) = reader.next().unwrap() {
                held.take(record.offset, record.event);
            }
            let error = reader.finish().unwrap_err();
            assert!(error.offset as usize <= cut, "{name} {cut}: {error}");
            assert!(error.to_string().contains("ends inside"), "{error}");
            assert!(held.keys.iter().eq(keys.iter().take(held.keys.len())));
        }
    }
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let bytes = file("redis-7.0.15");
    for bit in (0..bytes.len() * 8).step_by(29) {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        match read(&bad, bad.len(), Limits::default()) {
            Ok(held) => {
                let differs = matches!(held.verdict, Some(Verdict::Differs { .. }));
                // A length of what follows the checksum can't be wrong, its bytes can.
                assert!(differs || held.verdict == Some(Verdict::NoChecksum), "bit {bit}");
                // Whatever is in there is decoded or refused.
                for (key, raw) in &held.keys {
                    let _ = Value::decode(key.encoding, raw);
                }
            }
            Err(error) => assert!(error.offset as usize <= bad.len(), "bit {bit}: {error}"),
        }
    }
}

#[test]
fn values_with_flipped_bits_decode_or_fail() {
    for (name, _) in FILES {
        for (key, raw) in whole(&file(name)).keys {
            for bit in 0..(raw.len() * 8).min(320) {
                let mut bad = raw.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let _ = Value::decode(key.encoding, &bad);
                let target = Engine { kind: EngineKind::Redis, version: Version::new(5, 0, 0) };
                let _ = transcode(key.encoding, &bad, &target);
            }
            for cut in 0..raw.len().min(150) {
                assert!(Value::decode(key.encoding, &raw[..cut]).is_err(), "{name} {key:?} {cut}");
            }
        }
    }
}

#[test]
fn elements_are_counted_without_decoding() {
    for (name, _) in FILES {
        for (key, raw) in whole(&file(name)).keys {
            let expected = match Value::decode(key.encoding, &raw).unwrap() {
                Value::String(_) => 1,
                Value::List(list) => list.len(),
                Value::Set(set) => set.len(),
                Value::SortedSet(set) => set.len(),
                Value::Hash(hash) => hash.len(),
                Value::Stream(stream) => stream.entries.len(),
                other => panic!("{other:?}"),
            };
            assert_eq!(elements(key.encoding, &raw), Ok(expected as u64), "{name} {key:?}");
            for cut in 0..raw.len().min(200) {
                let _ = elements(key.encoding, &raw[..cut]);
            }
        }
    }
    // More than the two bytes of a header can say.
    let mut listpack = b"\0\0\0\0\xff\xff".to_vec();
    listpack.extend(b"\x01\x01".repeat(70_000));
    listpack.push(0xff);
    let length = (listpack.len() as u32).to_le_bytes();
    listpack[..4].copy_from_slice(&length);
    let raw = [b"\x80", (listpack.len() as u32).to_be_bytes().as_slice(), &listpack].concat();
    assert_eq!(elements(Encoding::HashListpack, &raw), Ok(35_000));
    let quicklist = [b"\x01\x02".as_slice(), &raw].concat();
    assert_eq!(elements(Encoding::ListQuicklist2, &quicklist), Ok(70_000));
}

fn digest(encoding: Encoding, raw: &[u8]) -> Digest {
    let mut digest = Digest::new();
    for item in Items::new(encoding, raw) {
        digest.item(&item.unwrap());
    }
    digest
}

#[test]
fn values_that_differ_have_other_digests() {
    let mut seen = std::collections::BTreeSet::new();
    let bytes = file("redis-8.0.2");
    for (key, raw) in whole(&bytes).keys {
        let value = format!("{:?}", Value::decode(key.encoding, &raw).unwrap());
        assert!(seen.insert(digest(key.encoding, &raw).value()), "{key:?} {value}");
    }
    let check = |one: &[u8], two: &[u8]| {
        assert_ne!(digest(Encoding::List, one), digest(Encoding::List, two));
    };
    check(b"\x02\x01a\x01b", b"\x02\x01b\x01a");
    check(b"\x02\x01a\x01b", b"\x02\x02ab\x00");
    check(b"\x02\x00\x00", b"\x01\x00");
}

#[test]
fn what_is_written_reads_the_same() {
    for (name, _) in FILES {
        let expected = whole(&file(name));
        for (kind, version) in TARGETS {
            let target = Engine { kind, version };
            let format = newest_format(&target);
            let mut writer = Writer::new(format);
            writer.aux(b"redis-ver", b"7.0.0");
            writer.resize_db(expected.keys.len() as u64, 0);
            let mut out = Vec::new();
            let mut written = Vec::new();
            for (key, raw) in &expected.keys {
                let carried = transcode(key.encoding, raw, &target).unwrap();
                let Carried::Payload { encoding, raw: carried, lost, .. } = carried else {
                    assert!(
                        key.encoding.data_type() == DataType::Stream && format.version < 9
                            || kind == EngineKind::KeyDb && carried == Carried::Commands,
                        "{name} to {target}: {key:?} {carried:?}"
                    );
                    continue;
                };
                assert!(writer.has(encoding));
                writer.select_db(key.db);
                writer.entry(&Key { encoding, ..key.clone() }, &carried);
                let (old, new) =
                    (Value::decode(key.encoding, raw), Value::decode(encoding, &carried));
                let same = old.clone().unwrap().same(&new.unwrap());
                assert_eq!(same, !lost.field_ttls, "{name} to {target}: {key:?}");
                let same = digest(key.encoding, raw) == digest(encoding, &carried);
                assert_eq!(same, !lost.field_ttls, "{name} to {target}: {key:?}");
                written.push(key.name.clone());
                if out.len() % 3 == 0 {
                    out.extend_from_slice(writer.bytes());
                    writer.clear();
                }
            }
            out.extend_from_slice(&writer.finish());
            let held = whole(&out);
            assert_eq!(held.header, Some(format));
            assert_eq!(held.verdict, Some(Verdict::Matches));
            assert!(held.keys.iter().map(|(key, _)| &key.name).eq(&written));
            let ends = |held: &Held| {
                let ends = held.keys.iter().map(|(key, _)| (key.name.clone(), key.expire_at_ms));
                ends.filter(|(name, _)| written.contains(name)).collect::<Vec<_>>()
            };
            assert_eq!(ends(&held), ends(&expected));
        }
    }
}

#[test]
fn payloads_come_apart_again() {
    for (name, _) in FILES {
        for (key, raw) in whole(&file(name)).keys {
            let format = key.encoding.format();
            let made = dump::payload(key.encoding, &raw, format);
            let payload = dump::parse(&made).unwrap();
            assert_eq!((payload.encoding, payload.raw), (key.encoding, &*raw));
            assert_eq!(payload.format, format);
        }
    }
}

#[test]
fn commands_stay_within_bounds() {
    let target = Engine { kind: EngineKind::Redis, version: Version::new(7, 0, 0) };
    let mut commands = Commands::new(b"k", &target);
    let mut sizes = Vec::new();
    let mut sink = |arguments: &[&[u8]]| {
        assert_eq!(arguments[..2], [b"RPUSH".as_slice(), b"k"]);
        sizes.push((arguments.len() - 2, arguments.iter().map(|a| a.len()).sum::<usize>()));
    };
    for index in 0..100_000 {
        let element = vec![b'x'; if index % 10_000 == 0 { 300_000 } else { 3 }];
        commands.item(Item::Element(element.into()), &mut sink).unwrap();
    }
    commands.finish(None, &mut sink);
    assert_eq!(sizes.iter().map(|(count, _)| count).sum::<usize>(), 100_000);
    assert!(sizes.iter().all(|(count, bytes)| *count <= 1024 && *bytes < 600_000));
}

#[test]
fn commands_follow_a_file() {
    let mut bytes = file("redis-6.2.5");
    let length = bytes.len() as u64;
    bytes.extend_from_slice(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nECHO");
    for piece in [1, 1000, bytes.len()] {
        let mut reader = Reader::new(Limits::default());
        let mut pieces = bytes.chunks(piece);
        while !reader.is_done() {
            if reader.next().unwrap().is_none() && !reader.is_done() {
                reader.feed(pieces.next().unwrap());
            }
        }
        assert_eq!((reader.finish(), reader.offset()), (Ok(()), length));
        let mut commands = aof::Reader::new(reader.offset(), 1 << 20);
        commands.feed(reader.rest());
        for piece in pieces {
            commands.feed(piece);
        }
        let Some(aof::Event::Command(command)) = commands.next().unwrap() else { panic!() };
        assert_eq!((command.offset, command.arguments().len()), (length, 1));
        assert_eq!(commands.next(), Ok(None));
        assert_eq!(commands.finish(), Some(length + 14));
    }
}

#[test]
fn an_append_only_directory() {
    let directory = directory().join("appendonlydir");
    let text = fs::read_to_string(directory.join("appendonly.aof.manifest")).unwrap();
    let manifest = aof::Manifest::parse(&text).unwrap();
    let base = manifest.base.as_ref().unwrap();
    let held = whole(&fs::read(directory.join(&base.name)).unwrap());
    assert_eq!(held.describe(), "0 \"before\" string\n  \"1\"\n");
    let mut words = Vec::new();
    let mut times = 0;
    for file in &manifest.increments {
        let mut reader = aof::Reader::new(0, 1 << 20);
        reader.feed(&fs::read(directory.join(&file.name)).unwrap());
        while let Some(event) = reader.next().unwrap() {
            match event {
                aof::Event::Command(command) => words.push(
                    command
                        .arguments()
                        .map(|word| String::from_utf8_lossy(word).into_owned())
                        .collect::<Vec<_>>()
                        .join("|"),
                ),
                aof::Event::Time { .. } => times += 1,
            }
        }
        assert_eq!(reader.finish(), None);
    }
    assert_eq!(words, ["SELECT|0", "SET|after|line\r\nbreak", "SELECT|3", "RPUSH|list|a|"]);
    assert!(times > 0);
}
