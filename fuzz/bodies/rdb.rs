//! Any bytes as an RDB file, in any pieces and parts: the same events or the same error, no panic,
//! bounded memory; values decode and are carried to any engine as the same values. Also as a payload, an
//! append-only file and a compressed string.

use protocol::{
    Engine, EngineKind, Version,
    rdb::{
        Brand, Carried, Commands, Encoding, Event, Items, Limits, Lost, Part, Reader, Value, aof,
        dump, elements, lzf, transcode,
    },
};

const TARGETS: [(EngineKind, Version); 5] = [
    (EngineKind::Redis, Version::new(3, 0, 7)),
    (EngineKind::Redis, Version::new(6, 2, 5)),
    (EngineKind::Redis, Version::new(8, 0, 2)),
    (EngineKind::KeyDb, Version::new(6, 3, 4)),
    (EngineKind::Valkey, Version::new(9, 1, 2)),
];

/// Events as text, parts joined; then the error.
fn read(input: &[u8], piece: usize, limits: Limits) -> Vec<String> {
    let mut reader = Reader::new(limits);
    let mut found = Vec::new();
    let mut parts = Vec::new();
    for piece in input.chunks(piece) {
        reader.feed(piece);
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(record)) => match record.event {
                    Event::Entry(entry) => {
                        let value = Value::decode(entry.key.encoding, entry.raw);
                        found.push(format!("{} {:?} {value:?}", record.offset, entry.key));
                    }
                    Event::Big(big) => {
                        parts.clear();
                        found.push(format!("{} {:?}", record.offset, big.key));
                        if let Some(bytes) = big.text_bytes {
                            parts.push(0x81);
                            parts.extend_from_slice(&bytes.to_be_bytes());
                        }
                    }
                    Event::Part(Part::Raw(part) | Part::Text(part)) => parts.extend(part),
                    Event::BigEnd => {
                        let last = found.pop().expect("the key");
                        let byte = last.split("encoding: ").last().expect("an encoding");
                        let encoding = Encoding::ALL
                            .into_iter()
                            .find(|encoding| byte.starts_with(&format!("{encoding:?},")))
                            .expect("an encoding");
                        found.push(format!("{last} {:?}", Value::decode(encoding, &parts)));
                    }
                    event => found.push(format!("{} {event:?}", record.offset)),
                },
                Err(error) => {
                    assert!(error.offset <= input.len() as u64);
                    return found;
                }
            }
        }
    }
    found
}

fn value(encoding: Encoding, raw: &[u8]) {
    let decoded = Value::decode(encoding, raw);
    let count = elements(encoding, raw);
    match &decoded {
        Ok(Value::List(list)) => assert_eq!(count, Ok(list.len() as u64)),
        Ok(Value::Set(set)) => assert_eq!(count, Ok(set.len() as u64)),
        Ok(Value::SortedSet(set)) => assert_eq!(count, Ok(set.len() as u64)),
        Ok(Value::Hash(hash)) => assert_eq!(count, Ok(hash.len() as u64)),
        _ => {}
    }
    for (kind, version) in TARGETS {
        let target = Engine { kind, version };
        let carried = transcode(encoding, raw, &target);
        let (Ok(decoded), Ok(carried)) = (&decoded, carried) else { continue };
        if let Carried::Payload { encoding, raw, lost, .. } = carried {
            let again = Value::decode(encoding, &raw).expect("what we made");
            let nan = matches!(decoded, Value::SortedSet(set) if set.values().any(|s| s.is_nan()));
            assert!(nan || lost != Lost::default() || again.same(decoded));
        }
        let mut commands = Commands::new(b"k", &target);
        for item in Items::new(encoding, raw).map_while(Result::ok) {
            if commands.item(item, &mut |arguments| assert!(arguments.len() > 1)).is_err() {
                break;
            }
        }
        commands.finish(Some(1), &mut |_| {});
    }
}

/// Tries one input; panics where something doesn't hold.
pub fn run(input: &[u8]) {
    let Some((&mode, input)) = input.split_first() else { return };
    match mode % 5 {
        0 => {
            let limits = Limits { whole_bytes_max: 1 << 16, unit_bytes_max: 1 << 16 };
            let whole = read(input, input.len().max(1), limits);
            let small = Limits { whole_bytes_max: 64, ..limits };
            let pieces = read(input, usize::from(mode / 5).max(1), small);
            // A compressed string that is wrong is noticed when it is unpacked, which in parts is at
            // once: then the last key has no value.
            let same = whole.iter().zip(&pieces).enumerate().all(|(index, (one, two))| {
                one == two || index + 1 == pieces.len() && one.starts_with(two.as_str())
            });
            assert!(same, "{whole:#?}\n{pieces:#?}");
        }
        1 => {
            let Some((&byte, raw)) = input.split_first() else { return };
            let brand = if mode / 5 % 2 == 0 { Brand::Redis } else { Brand::Valkey };
            if let Some(encoding) = Encoding::from_byte(byte, brand) {
                value(encoding, raw);
            }
        }
        2 => {
            if let Ok(payload) = dump::parse(input) {
                value(payload.encoding, payload.raw);
            }
        }
        3 => {
            let mut reader = aof::Reader::new(0, 1 << 16);
            for piece in input.chunks(usize::from(mode / 5).max(1)) {
                reader.feed(piece);
                while let Ok(Some(event)) = reader.next() {
                    if let aof::Event::Command(command) = event {
                        assert!(command.arguments().len() > 0);
                    }
                }
            }
            let _ = aof::Manifest::parse(&String::from_utf8_lossy(input));
        }
        _ => {
            let _ = lzf::decompress(input, usize::from(mode) * 20);
            if let Some(packed) = lzf::compress(input) {
                assert_eq!(lzf::decompress(&packed, input.len()).as_deref(), Ok(input));
            }
        }
    }
}
