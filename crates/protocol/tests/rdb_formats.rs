//! What no engine at hand saves: old versions, later versions, other products, lies.

use protocol::{
    Engine, EngineKind, Version,
    rdb::{
        Carried, Checksum, Encoding, Event, Fault, Item, Items, Limits, Lost, Part, Reader, Value,
        transcode,
    },
};

fn file(magic: &str, body: &[u8]) -> Vec<u8> {
    let mut file = [magic.as_bytes(), body, b"\xff"].concat();
    let mut checksum = Checksum::new();
    checksum.add(&file);
    file.extend_from_slice(&checksum.value().to_le_bytes());
    file
}

/// A short string as files hold it.
fn string(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 64);
    [&[bytes.len() as u8], bytes].concat()
}

/// The events after the header up to the end or an error, with their offsets.
fn events(file: &[u8], piece: usize) -> Vec<String> {
    let mut reader = Reader::new(Limits { whole_bytes_max: 1000, unit_bytes_max: 100_000 });
    let mut events = Vec::new();
    for piece in file.chunks(piece.max(1)) {
        reader.feed(piece);
        loop {
            match reader.next() {
                Ok(None) => break,
                Ok(Some(record)) => {
                    let event = match record.event {
                        Event::Entry(entry) => {
                            let value = Value::decode(entry.key.encoding, entry.raw);
                            format!("{:?} {value:?}", entry.key)
                        }
                        Event::Part(Part::Text(text)) => format!("text {}", text.len()),
                        event => format!("{event:?}"),
                    };
                    events.push(format!("{} {event}", record.offset));
                }
                Err(error) => {
                    events.push(error.to_string());
                    return events;
                }
            }
        }
    }
    if let Err(error) = reader.finish() {
        events.push(error.to_string());
    }
    events
}

/// Each expected text is a part of the event in its place.
fn check(file: &[u8], expected: &[&str]) {
    for piece in [1, 5, file.len()] {
        let events = events(file, piece);
        let matches = events.iter().zip(expected).all(|(event, part)| event.contains(part));
        assert!(matches && events.len() == expected.len(), "{events:#?}\nexpected {expected:#?}");
    }
}

const HEADER: &str = "0 Header";
const END: &str = "End(Matches)";

#[test]
fn magics() {
    check(b"REDIS0003\xff", &["version: 3", "9 End(NoChecksum)"]);
    check(b"REDIS0011\xff\0\0\0\0\0\0\0\0", &[HEADER, "9 End(NoChecksum)"]);
    check(&file("VALKEY080", b""), &["Valkey, version: 80", END]);
    check(b"REDIS0015", &["byte 9: version 0015 of the format is not known"]);
    check(b"REDIS0000", &["version 0000"]);
    check(b"REDIS+011", &["version +011"]);
    check(b"VALKEY081", &["version 081"]);
    check(b"BTC-MINER", &["byte 9: expected REDIS or VALKEY and a version"]);
    check(b"", &["byte 0: ends inside the magic"]);
    check(b"REDIS0009\xfe", &[HEADER, "byte 10: ends inside the entries"]);
    check(b"REDIS0009\x00\x01k\x05abc", &[HEADER, "byte 16, key \"k\": ends inside a value"]);
    check(b"REDIS0009\xff\x00", &[HEADER, "byte 11: ends inside the checksum"]);
    check(b"REDIS0011\xff\x01\0\0\0\0\0\0\0", &[HEADER, "Differs { stored: 1"]);
}

#[test]
fn notes_and_hints() {
    check(
        &file("REDIS0011", b"\xfa\x03abc\xc0\x05\xfe\x02\xfb\x05\x01\xf4\x07\x08\x09\xf5\x01x"),
        &[
            HEADER,
            "9 Aux { name: [97, 98, 99], value: [53] }",
            "16 SelectDb(2)",
            "18 ResizeDb { keys: 5, expiring: 1 }",
            "21 SlotInfo { slot: 7, keys: 8, expiring: 9 }",
            "25 Function([120])",
            END,
        ],
    );
}

#[test]
fn what_is_said_of_keys() {
    check(
        &file(
            "REDIS0009",
            b"\xfd\x01\0\0\0\x00\x01a\x01x\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x00\x01b\x01x\
              \xf8\x05\x00\x01c\x01x\xf9\x09\x00\x01d\x01x\x00\x01e\x01x",
        ),
        &[
            HEADER,
            "9 Key { db: 0, name: [97], expire_at_ms: Some(1000)",
            "19 Key { db: 0, name: [98], expire_at_ms: Some(0)",
            "idle_seconds: Some(5)",
            "frequency: Some(9)",
            "expire_at_ms: None, idle_seconds: None, frequency: None",
            END,
        ],
    );
}

#[test]
fn keydb() {
    // A note between an end and its key; notes after it; a script that runs at times.
    check(
        &file(
            "REDIS0009",
            b"\xfc\xe8\x03\0\0\0\0\0\0\xfa\x0bmvcc-tstamp\x011\x02\x01s\x02\x01a\x01b\
              \xfa\x13keydb-subexpire-key\x01a\xfa\x14keydb-subexpire-when\x0d4102444800000\
              \x40\x01c\x03lua12345678abcdefgh\x01\x01k\x02\x01x\x01y",
        ),
        &[
            HEADER,
            "18 Aux",
            "9 Key { db: 0, name: [115], expire_at_ms: Some(1000)",
            "MemberExpires { member: [97], expire_at_ms: 4102444800000 }",
            "encoding: Cron",
            END,
        ],
    );
}

#[test]
fn modules() {
    let values = b"\x01\x05\x02\x06\x03abcd\x04abcdefgh\x05\x01x\x00";
    let body = [
        b"\xf7\x81\0\0\0\0\0\0\0\x07\x02\x01".as_slice(),
        values,
        b"\xf3\x02abcd",
        values,
        b"efgh",
        values,
        b"\x07\x01m\x81\0\0\0\0\0\0\0\x09",
        values,
        b"\x00\x01n\x01x",
    ];
    check(
        &file("REDIS0013", &body.concat()),
        &[
            HEADER,
            "9 ModuleAux { module: 7 }",
            "43 Key { db: 0, name: [109], expire_at_ms: None, idle_seconds: None, frequency: None, \
             encoding: Module, metadata_dropped: true } Ok(Opaque(Module",
            "metadata_dropped: false",
            END,
        ],
    );
    check(
        &file("REDIS0013", b"\x07\x01m\x05\x06"),
        &[HEADER, "key \"m\": expected a value that a"],
    );
}

#[test]
fn two_meanings() {
    let pair = b"\x16\x01h\x01\x01f\x01v";
    let at = b"\x00\x40\x6e\xdd\x2e\x03\0\0";
    check(
        &file("VALKEY080", &[pair.as_slice(), at, b"\xf3\x03job\x01\x05\x09"].concat()),
        &[
            HEADER,
            "HashExpiringValkey",
            "SlotImport { job: [106, 111, 98], ranges: [(5, 9)] }",
            END,
        ],
    );
    check(
        &file("REDIS0012", b"\x16\x01h\x01\x00\x01f\x01v"),
        &[HEADER, "HashExpiringCandidate", END],
    );
    check(
        &file("VALKEY080", b"\x18\x01h"),
        &[HEADER, "byte 10: expected an opcode or the type of"],
    );
}

#[test]
fn old_packings() {
    check(
        &file("REDIS0003", b"\x09\x01h\x07\x01\x01f\x01\x00v\xff"),
        &[HEADER, "HashZipmap, metadata_dropped: false } Ok(Hash({[102]", "20 End(NoChecksum)"],
    );
    let value = |encoding, raw: &[u8]| format!("{:?}", Value::decode(encoding, raw).unwrap());
    let ziplist =
        string(&[b"\x10\0\0\0\x0c\0\0\0\x02\0", b"\x00\x01a\x03\xf2\xff".as_slice()].concat());
    assert_eq!(value(Encoding::ListZiplist, &ziplist), "List([[97], [49]])");
    assert_eq!(value(Encoding::SortedSetZiplist, &ziplist), "SortedSet({[97]: 1.0})");
    assert_eq!(
        value(Encoding::SortedSetText, b"\x02\x01a\x031.5\x01b\xff"),
        "SortedSet({[97]: 1.5, [98]: -inf})"
    );
    assert_eq!(value(Encoding::List, b"\x02\x01a\xc0\x05"), "List([[97], [53]])");
}

#[test]
fn later_types() {
    let id = |ms: u8| [[0, 0, 0, 0, 0, 0, 0, ms], [0; 8]].concat();
    // One entry, none deleted, one name; then the entry: as the master, 0-0 further on.
    let elements =
        b"\x01\x01\x00\x01\x01\x01\x81a\x02\x00\x01\x02\x01\x00\x01\x00\x01\x81v\x02\x04\x01\xff";
    let listpack = [&[elements.len() as u8 + 6, 0, 0, 0, 10, 0], elements.as_slice()].concat();
    let node = [vec![1], string(&id(1)), string(&listpack)].concat();
    let head = b"\x01\x01\x00\x01\x00\x00\x00\x01";
    let raw = [
        node.as_slice(),
        head,
        b"\x01\x01g\x01\x00\x01\x02",
        &id(1),
        &[9; 8],
        b"\x01",
        &id(2),
        &[9; 8],
        b"\x03\x01\x01c",
        &[8; 16],
        b"\x01",
        &id(1),
        b"\x01",
        &id(2),
        b"\x40\x64\x0a\x01\x01p\x01\x02id\x01\x00\x05\x06",
    ]
    .concat();
    let value = Value::decode(Encoding::Stream5, &raw).unwrap();
    let Value::Stream(stream) = &value else { panic!("{value:?}") };
    assert_eq!(stream.entries.len(), 1, "{stream:?}");
    let pending: Vec<_> = stream.groups[b"g".as_slice()].pending.values().collect();
    assert_eq!(pending[0].consumer.as_deref(), Some(b"c".as_slice()));
    assert_eq!(pending[1].consumer, None);
    let idempotence = stream.idempotence.as_ref().unwrap();
    assert_eq!((idempotence.seconds, idempotence.ids_max), (100, 10));
    assert_eq!(idempotence.producers[b"p".as_slice()].len(), 1);
    for cut in 0..raw.len() {
        assert!(Value::decode(Encoding::Stream5, &raw[..cut]).is_err(), "{cut}");
    }

    // Down to an engine without any of that: what nobody owns is not pending there.
    let target = Engine { kind: EngineKind::Redis, version: Version::new(6, 2, 0) };
    let carried = transcode(Encoding::Stream5, &raw, &target).unwrap();
    let Carried::Payload { encoding, raw, lost, .. } = carried else { panic!("{carried:?}") };
    assert_eq!(encoding, Encoding::Stream);
    assert_eq!(lost, Lost { unowned: true, idempotence: true, field_ttls: false });
    let Value::Stream(down) = Value::decode(encoding, &raw).unwrap() else { panic!() };
    assert_eq!(down.entries, stream.entries);
    assert_eq!(down.groups[b"g".as_slice()].pending.len(), 1);

    let raw = b"\x04\x01\x05\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff\x01\x02\0\0\0\0\0\0\xf8\x3f\
        \x02\x03\x01a\x07\x00\x01b";
    let items: Vec<_> = Items::new(Encoding::Array, raw).map(Result::unwrap).collect();
    let element =
        |index, value: &'static str| Item::Indexed { index, value: value.as_bytes().into() };
    assert_eq!(
        items,
        [
            Item::ArrayCursor(Some(5)),
            element(0, "-1"),
            element(1, "1.5"),
            element(2, "a"),
            element(7, "b")
        ]
    );
}

#[test]
fn ends_of_fields() {
    let field = |earliest: u64, after: u8| {
        let raw = [&earliest.to_le_bytes(), [1, after, 1, b'f', 1, b'v'].as_slice()].concat();
        match Items::new(Encoding::HashExpiring, &raw).next().unwrap() {
            Ok(Item::Field { expire_at_ms, .. }) => Ok(expire_at_ms),
            other => Err(other.unwrap_err()),
        }
    };
    assert_eq!(field(1000, 0), Ok(None));
    assert_eq!(field(1000, 1), Ok(Some(1000)));
    assert_eq!(field(1000, 5), Ok(Some(1004)));
    assert_eq!(field(u64::MAX, 1), Err(Fault::Expected("when a field ends")));
}

#[test]
fn strings_in_parts() {
    let long = [b"\x00\x01k\x80\x00\x00\x27\x10".as_slice(), &[b'x'; 10_000]].concat();
    let bytes = file("REDIS0009", &long);
    let found = events(&bytes, 700);
    let sum: usize =
        found.iter().filter_map(|event| event.split_once("text ")?.1.parse::<usize>().ok()).sum();
    assert_eq!(sum, 10_000);
    assert!(found[1].contains("text_bytes: Some(10000)"), "{found:?}");
    assert!(found.last().unwrap().contains(END));
}

#[test]
fn lies_cost_nothing() {
    // An element that claims to be larger than the limit, in a file that ends soon.
    check(
        &file("REDIS0009", b"\x01\x01k\x01\x81\x00\xff\xff\xff\xff\xff\xff\xff"),
        &[
            HEADER,
            "9 Big",
            "Part",
            "byte 13, key \"k\": a key or an element of 72057594037927944 bytes",
        ],
    );
    check(
        &file("REDIS0009", b"\x01\x01k\x01\x80\x00\xff\xff\xff"),
        &[HEADER, "9 Big", "Part", "key \"k\": a key or an element of"],
    );
    // A key that does.
    check(
        &file("REDIS0009", b"\x00\x80\x00\xff\xff\xff"),
        &[HEADER, "byte 9: a key or an element of"],
    );
    // A compressed key that would be huge.
    check(
        &file("REDIS0009", b"\x00\xc3\x03\x80\x7f\xff\xff\xff\x00a\xe0\x01x"),
        &[HEADER, "byte 20: a string of 2147483647 bytes, above the limit of 100000"],
    );
    // A count of elements that never come.
    check(
        &file("REDIS0009", b"\x01\x01k\x81\xff\xff\xff\xff\xff\xff\xff\xff\x01a"),
        &[HEADER, "byte 24, key \"k\": expected a string, found byte 0xff"],
    );
    // What is in memory grows with what comes, not with what is promised.
    let mut reader = Reader::new(Limits::default());
    reader.feed(b"REDIS0009\x01\x01k\x01\x80\x1f\xff\xff\xff");
    while reader.next().unwrap().is_some() {}
    let mut fed = 0;
    while fed < 4 << 20 {
        let space = reader.space().len();
        assert!(space <= (fed + 32).max(1 << 20), "{space} after {fed}");
        reader.filled(space.min(100_000));
        fed += space.min(100_000);
        while reader.next().unwrap().is_some() {}
    }
}

#[test]
fn bombs() {
    // 2,000 bytes that would become 170,000 and claim to become 100 MB.
    let packed: Vec<u8> = [b"\x00a".as_slice(), &b"\xe0\xff\x00".repeat(600)].concat();
    let length = |length: u32| [b"\xc3\x47\x0a\x80", length.to_be_bytes().as_slice()].concat();
    let raw = [length(100_000_000), packed.clone()].concat();
    let decoded = Value::decode(Encoding::String, &raw);
    assert_eq!(decoded, Err(Fault::Expected("a string that was compressed by LZF")));
    let raw = [length(600 * 264 + 1), packed].concat();
    assert_eq!(Value::decode(Encoding::String, &raw), Ok(Value::String(vec![b'a'; 158_401])));
}
