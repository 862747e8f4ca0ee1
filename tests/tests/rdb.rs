//! What every engine saved goes into every engine: by payloads, by commands and as a file that the
//! server starts from. What the server then says of each key is the same value with the same end.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use protocol::{
    Engine, EngineKind, Value as Reply,
    rdb::{
        Carried, Commands, DataType, Encoding, Event, Items, Key, Limits, Reader, Value, Writer,
        dump, newest_format, transcode,
    },
    resp::{Decoder, encode_command},
};
use tests::{
    engines::{ENGINES, engine},
    ports::PortBlock,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A server of its own on loopback; ends with the value.
struct Server {
    process: Child,
    engine: Engine,
    directory: PathBuf,
    connection: TcpStream,
    decoder: Decoder,
    _ports: PortBlock,
}

impl Server {
    /// Starts with this file as its data.
    fn start(kind: &str, version: &str, data: Option<&[u8]>) -> Self {
        let binary = engine(kind, version);
        let ports = PortBlock::claim().unwrap();
        let directory = std::env::temp_dir().join(format!("keyfleet-rdb-{}", ports.tcp));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        if let Some(data) = data {
            fs::write(directory.join("dump.rdb"), data).unwrap();
        }
        let mut process = Command::new(&binary.server)
            .args(["--port", &ports.tcp.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--sanitize-dump-payload", "yes"])
            .args(["--hash-max-listpack-entries", "100"].iter().filter(|_| version != "6.2"))
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        let give_up = Instant::now() + DEADLINE;
        let connection = loop {
            if let Ok(connection) = TcpStream::connect(("127.0.0.1", ports.tcp)) {
                break connection;
            }
            let ended = process.try_wait().unwrap();
            if ended.is_some() || Instant::now() > give_up {
                let _ = process.kill();
                panic!("{}", fs::read_to_string(directory.join("log")).unwrap());
            }
            thread::sleep(Duration::from_millis(10));
        };
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        let engine = binary.engine;
        let decoder = Decoder::default();
        let mut server = Self { process, engine, directory, connection, decoder, _ports: ports };
        while let Reply::Error(error) = server.call(&[b"DBSIZE"]) {
            assert!(error.starts_with("LOADING") && Instant::now() < give_up, "{error}");
        }
        server
    }

    fn call(&mut self, arguments: &[&[u8]]) -> Reply {
        let mut request = Vec::new();
        encode_command(arguments, &mut request);
        self.connection.write_all(&request).unwrap();
        let mut piece = [0; 16_384];
        loop {
            if let Some(reply) = self.decoder.next().unwrap() {
                return reply;
            }
            let count = match self.connection.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert!(count > 0, "the server hung up");
            self.decoder.feed(&piece[..count]);
        }
    }

    fn must(&mut self, arguments: &[&[u8]]) -> Reply {
        let reply = self.call(arguments);
        let shown = arguments.iter().map(|a| a.escape_ascii().to_string()).collect::<Vec<_>>();
        assert!(!matches!(reply, Reply::Error(_)), "{}: {shown:?}: {reply:?}", self.engine);
        reply
    }

    /// The value and when it ends, as the server knows it.
    fn ask(&mut self, key: &Key<'_>) -> (Value, Option<u64>) {
        self.must(&[b"SELECT", key.db.to_string().as_bytes()]);
        let payload = self.must(&[b"DUMP", &key.name]);
        let payload = dump::parse(payload.as_bytes().unwrap_or_else(|| panic!("no {key:?}")));
        let payload = payload.unwrap();
        let left = self.must(&[b"PTTL", &key.name]).as_integer().unwrap();
        let now = self.must(&[b"TIME"]);
        let seconds = now.as_array().unwrap()[0].as_integer().unwrap();
        let end = u64::try_from(left).ok().map(|left| seconds as u64 * 1000 + left);
        (Value::decode(payload.encoding, payload.raw).unwrap(), end)
    }

    fn expect(&mut self, key: &Key<'_>, expected: &Value, from: &str) {
        let (found, end) = self.ask(key);
        let engine = self.engine;
        let same = found.same(expected);
        assert!(same, "{from} to {engine}: {key:?}\nfound {found:?}\nexpected {expected:?}");
        let apart = end.unwrap_or(0).abs_diff(key.expire_at_ms.unwrap_or(0));
        assert!(apart < 5_000, "{from} to {engine}: {key:?} ends {end:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Keys and their raw values.
type Saved = Vec<(Key<'static>, Vec<u8>)>;

/// What all engines saved: the name of each file and its keys.
fn saved() -> Vec<(String, Saved)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/protocol/tests/dumps");
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rdb") {
            continue;
        }
        let mut reader = Reader::new(Limits::default());
        reader.feed(&fs::read(&path).unwrap());
        let mut keys = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            if let Event::Entry(entry) = record.event {
                let key = Key { name: entry.key.name.into_owned().into(), ..entry.key };
                keys.push((key, entry.raw.to_vec()));
            }
        }
        files.push((path.file_stem().unwrap().to_string_lossy().into_owned(), keys));
    }
    assert_eq!(files.len(), ENGINES.len());
    files
}

fn without_ttls(value: Value) -> Value {
    match value {
        Value::Hash(mut hash) => {
            for field in hash.values_mut() {
                field.expire_at_ms = None;
            }
            Value::Hash(hash)
        }
        other => other,
    }
}

#[test]
fn by_payloads() {
    for (kind, version) in ENGINES {
        let mut server = Server::start(kind, version, None);
        for (from, keys) in saved() {
            server.must(&[b"FLUSHALL"]);
            for (key, raw) in &keys {
                let target = server.engine;
                let carried = transcode(key.encoding, raw, &target).unwrap();
                let Carried::Payload { encoding, raw: new, format, lost } = carried else {
                    panic!("{from} to {target}: {key:?} {carried:?}");
                };
                let payload = dump::payload(encoding, &new, format);
                let end = key.expire_at_ms.unwrap_or(0).to_string();
                server.must(&[b"SELECT", key.db.to_string().as_bytes()]);
                server.must(&[b"RESTORE", &key.name, end.as_bytes(), &payload, b"ABSTTL"]);
                let mut expected = Value::decode(key.encoding, raw).unwrap();
                if lost.field_ttls {
                    expected = without_ttls(expected);
                }
                server.expect(key, &expected, &from);
            }
        }
    }
}

#[test]
fn by_commands() {
    for (kind, version) in ENGINES {
        let mut server = Server::start(kind, version, None);
        let has_field_ttls = matches!((kind, version), ("redis", "8.0") | ("valkey", "9.1"));
        for (from, keys) in saved() {
            server.must(&[b"FLUSHALL"]);
            for (key, raw) in &keys {
                server.must(&[b"SELECT", key.db.to_string().as_bytes()]);
                let mut sent = Vec::new();
                let mut sink = |arguments: &[&[u8]]| {
                    sent.push(arguments.iter().map(|a| a.to_vec()).collect::<Vec<_>>());
                };
                let mut commands = Commands::new(&key.name, &server.engine);
                for item in Items::new(key.encoding, raw) {
                    commands.item(item.unwrap(), &mut sink).unwrap();
                }
                commands.finish(key.expire_at_ms, &mut sink);
                for command in sent {
                    server.must(&command.iter().map(Vec::as_slice).collect::<Vec<_>>());
                }
                let mut expected = Value::decode(key.encoding, raw).unwrap();
                if !has_field_ttls {
                    expected = without_ttls(expected);
                }
                server.expect(key, &expected, &from);
            }
        }
    }
}

#[test]
fn by_a_file_to_start_from() {
    for (kind, version) in ENGINES {
        let target = engine(kind, version).engine;
        for (from, keys) in saved() {
            let mut writer = Writer::new(newest_format(&target));
            writer.aux(b"redis-ver", b"7.0.0");
            let mut expected = BTreeMap::new();
            let mut db = None;
            for (key, raw) in &keys {
                let carried = transcode(key.encoding, raw, &target).unwrap();
                let Carried::Payload { encoding, raw: new, lost, .. } = carried else {
                    panic!("{from} to {target}: {key:?} {carried:?}");
                };
                if db.replace(key.db) != Some(key.db) {
                    writer.select_db(key.db);
                    writer.resize_db(keys.len() as u64, 1);
                }
                writer.entry(&Key { encoding, ..key.clone() }, &new);
                let mut value = Value::decode(key.encoding, raw).unwrap();
                if lost.field_ttls {
                    value = without_ttls(value);
                }
                expected.insert((key.db, key.name.to_vec()), (key, value));
            }
            let mut server = Server::start(kind, version, Some(&writer.finish()));
            for (key, value) in expected.values() {
                server.expect(key, value, &from);
            }
        }
    }
}

#[test]
fn values_for_targets_of_long_ago() {
    // Scores as text and plain types load everywhere: what a target before 4.0 would get.
    let old = Engine { kind: EngineKind::Redis, version: protocol::Version::new(3, 0, 7) };
    let mut server = Server::start("redis", "6.2", None);
    for (from, keys) in saved() {
        server.must(&[b"FLUSHALL"]);
        for (key, raw) in keys {
            let carried = transcode(key.encoding, &raw, &old).unwrap();
            let Carried::Payload { encoding, raw: new, format, .. } = carried else {
                assert_eq!(key.encoding.data_type(), DataType::Stream);
                continue;
            };
            assert!(encoding.byte() < 5 || encoding.byte() <= Encoding::HashZiplist.byte());
            let payload = dump::payload(encoding, &new, format);
            let end = key.expire_at_ms.unwrap_or(0).to_string();
            server.must(&[b"SELECT", key.db.to_string().as_bytes()]);
            server.must(&[b"RESTORE", &key.name, end.as_bytes(), &payload, b"ABSTTL"]);
            let expected = without_ttls(Value::decode(key.encoding, &raw).unwrap());
            server.expect(&key, &expected, &from);
        }
    }
}
