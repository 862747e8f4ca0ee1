//! Each engine starts, and is what it is taken for.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use keyfleet::engines::EngineBinary;
use protocol::{
    Dialect, Engine, Info, Value,
    engine::AtomicSlots,
    resp::{Decoder, encode_command},
};
use tests::engines::{ENGINES, engine};
use tokio::process::Child;

/// A server on a free port of loopback; ends with the test.
struct Server {
    process: Child,
    connection: TcpStream,
    directory: PathBuf,
}

impl Server {
    async fn start(binary: &EngineBinary) -> Self {
        let name = format!("keyfleet-{}-{}", process::id(), binary.engine);
        let directory = env::temp_dir().join(name.replace(' ', "-"));
        fs::create_dir_all(&directory).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut process = binary
            .command()
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .current_dir(&directory)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let connect = async {
            loop {
                if let Ok(connection) = TcpStream::connect(("127.0.0.1", port)) {
                    return connection;
                }
                assert_eq!(process.try_wait().unwrap(), None, "{}", read_log(&directory));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let connection = tokio::time::timeout(Duration::from_secs(20), connect).await;
        let connection = connection.unwrap_or_else(|_| panic!("{}", read_log(&directory)));
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { process, connection, directory }
    }

    fn call(&mut self, arguments: &[&str]) -> Value {
        let mut request = Vec::new();
        encode_command(arguments, &mut request);
        self.connection.write_all(&request).unwrap();
        let mut decoder = Decoder::default();
        let mut piece = [0; 16_384];
        loop {
            if let Some(value) = decoder.next().unwrap() {
                return value;
            }
            let length = self.connection.read(&mut piece).unwrap();
            assert_ne!(length, 0, "the server hung up: {}", read_log(&self.directory));
            decoder.feed(&piece[..length]);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.start_kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn read_log(directory: &Path) -> String {
    fs::read_to_string(directory.join("log")).unwrap_or_default()
}

async fn check(kind: &str, version: &str, expected: Dialect) {
    let binary = engine(kind, version);
    assert_eq!(binary.engine.kind.name(), kind);
    assert!(binary.engine.to_string().starts_with(&format!("{kind} {version}.")), "{binary:?}");
    let client = binary.cli_command().unwrap().arg("--version").output().await.unwrap();
    assert!(String::from_utf8_lossy(&client.stdout).contains(version), "{client:?}");

    let mut server = Server::start(&binary).await;
    assert_eq!(server.call(&["PING"]), Value::Simple("PONG".to_owned()));
    let info = Info::from_reply(&server.call(&["INFO"])).unwrap();
    assert_eq!(Engine::from_info(&info), Ok(binary.engine));
    assert_eq!(binary.engine.dialect(), expected);
    // The dialect against what the server itself says of its commands.
    let has = |reply: &Value| reply.as_array().and_then(<[Value]>::first) != Some(&Value::Null);
    let shards = server.call(&["COMMAND", "INFO", "CLUSTER|SHARDS"]);
    assert_eq!(has(&shards), expected.cluster_shards, "{shards:?}");
    let migrate = server.call(&["COMMAND", "INFO", "CLUSTER|MIGRATESLOTS"]);
    assert_eq!(has(&migrate), expected.atomic_slots == AtomicSlots::MigrateSlots, "{migrate:?}");
}

const SIX: Dialect = Dialect {
    cluster_shards: false,
    hostnames: false,
    ranges: false,
    acl_selectors: false,
    atomic_slots: AtomicSlots::None,
};
const SEVEN: Dialect = Dialect {
    cluster_shards: true,
    hostnames: true,
    ranges: true,
    acl_selectors: true,
    atomic_slots: AtomicSlots::None,
};

#[tokio::test]
async fn redis_6_2() {
    check("redis", "6.2", SIX).await;
}

#[tokio::test]
async fn redis_7_0() {
    check("redis", "7.0", SEVEN).await;
}

#[tokio::test]
async fn redis_8_0() {
    check("redis", "8.0", SEVEN).await;
}

#[tokio::test]
async fn valkey_8_1() {
    check("valkey", "8.1", SEVEN).await;
}

#[tokio::test]
async fn valkey_9_1() {
    check("valkey", "9.1", Dialect { atomic_slots: AtomicSlots::MigrateSlots, ..SEVEN }).await;
}

#[test]
#[should_panic(expected = "run `cargo xtask test`")]
fn a_missing_engine_says_what_to_do() {
    engine("redis", "1.0");
}

#[test]
fn names_are_unique() {
    assert!(ENGINES.is_sorted_by(|one, other| one < other));
}
