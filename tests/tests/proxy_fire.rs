//! Clients that send too much, too slowly, or lies, and those who share the proxy with them.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use protocol::{
    Value,
    resp::{Decoder, encode_command},
};
use tests::{
    cluster::{RawCluster, Shape},
    differential::Wire,
    engines::engine,
    proxy::{Program, TIME_MAX, peak_bytes},
    server::Server,
    twemproxy::{Directory, Pool, Proxy, free_addresses},
};

const MIB: usize = 1 << 20;
/// What the proxy may take in addition, whatever comes: 4 MiB are a client's limit.
const HELD_BYTES_MAX: usize = 24 * MIB;
/// The largest value that an engine takes: its `proto-max-bulk-len`.
const VALUE_BYTES: usize = 512 * MIB;

/// A proxy in front of a cluster, and one in front of a ring, each of one server.
struct Fronts {
    cluster: (RawCluster, Program),
    ring: (Server, Proxy, SocketAddr),
    _directory: Directory,
}

impl Fronts {
    async fn start() -> Self {
        let redis = engine("redis", "7.0").server;
        let shape = Shape { server: &redis, primaries: 1, replicas: 0, spare: 0, config: &[] };
        let cluster = RawCluster::start(&shape).await.unwrap();
        let program = Program::start(&cluster.addresses(), &[]);
        let server = Server::start(&redis, &[]).await.unwrap();
        let listen = free_addresses(1).unwrap()[0];
        let directory = Directory::new().unwrap();
        let pool = Pool { weights: &[1], ..Pool::default() };
        let text = pool.text("ring", listen, &[server.address]);
        let file = directory.write("nutcracker.yml", &text).unwrap();
        let ring = Proxy::by_own_name(&file, &[listen], &[]).await.unwrap();
        Self { cluster: (cluster, program), ring: (server, ring, listen), _directory: directory }
    }

    /// The proxies: where, and as which process.
    fn each(&self) -> [(SocketAddr, u32); 2] {
        let (_, program) = &self.cluster;
        let (_, ring, listen) = &self.ring;
        [(program.plain, program.child.id()), (*listen, ring.pid())]
    }
}

/// A peak before, and what it may be now.
struct Memory {
    pid: u32,
    before: usize,
}

impl Memory {
    fn new(pid: u32) -> Self {
        Self { pid, before: peak_bytes(pid) }
    }

    fn check(&self, what: &str) {
        let held = peak_bytes(self.pid) - self.before;
        assert!(held < HELD_BYTES_MAX, "{what}: {held} bytes");
    }
}

fn open(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIME_MAX)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn serves(address: SocketAddr) {
    let mut wire = Wire::open(address).unwrap();
    assert_eq!(wire.call(&[b"SET", b"other", b"1"]).unwrap(), Value::Simple("OK".into()));
    assert_eq!(wire.call(&[b"GET", b"other"]).unwrap(), Value::Bulk(b"1".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn values_as_large_as_they_may_be_pass_through() {
    let fronts = Fronts::start().await;
    let piece: Vec<u8> = (0..MIB).map(|index| (index % 251) as u8).collect();
    for (address, pid) in fronts.each() {
        let memory = Memory::new(pid);
        let mut stream = open(address);
        let head = format!("*3\r\n$3\r\nSET\r\n$5\r\nlarge\r\n${VALUE_BYTES}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..VALUE_BYTES / MIB {
            stream.write_all(&piece).unwrap();
        }
        stream.write_all(b"\r\n").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
        stream.write_all(b"*2\r\n$3\r\nGET\r\n$5\r\nlarge\r\n").unwrap();
        let mut head = vec![0; format!("${VALUE_BYTES}\r\n").len()];
        stream.read_exact(&mut head).unwrap();
        assert_eq!(head, format!("${VALUE_BYTES}\r\n").into_bytes());
        let mut back = vec![0; MIB];
        for number in 0..VALUE_BYTES / MIB {
            stream.read_exact(&mut back).unwrap();
            assert!(back == piece, "piece {number}");
        }
        stream.write_all(b"*2\r\n$3\r\nDEL\r\n$5\r\nlarge\r\n").unwrap();
        let mut rest = [0; 6];
        stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"\r\n:1\r\n");
        memory.check("a large value");
        serves(address);
    }
}

const DEPTH: usize = 1_000_000;

fn many() -> Vec<u8> {
    let mut requests = Vec::new();
    for number in 0..DEPTH {
        encode_command(["GET", &format!("key:{}", number % 1_000)], &mut requests);
    }
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_requests_at_once_are_answered_in_order() {
    let fronts = Fronts::start().await;
    let requests = many();
    for (address, pid) in fronts.each() {
        let mut wire = Wire::open(address).unwrap();
        for number in 0..1_000 {
            let (key, value) = (format!("key:{number}"), number.to_string());
            wire.call(&[b"SET", key.as_bytes(), value.as_bytes()]).unwrap();
        }
        let memory = Memory::new(pid);
        let mut stream = open(address);
        let mut writer = stream.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&requests).unwrap());
            let (mut decoder, mut piece) = (Decoder::default(), vec![0; MIB]);
            let mut answered = 0;
            while answered < DEPTH {
                let count = stream.read(&mut piece).unwrap();
                assert!(count > 0, "closed after {answered}");
                decoder.feed(&piece[..count]);
                while let Some(value) = decoder.next().unwrap() {
                    let expected = (answered % 1_000).to_string();
                    assert_eq!(value.as_str(), Some(expected.as_str()), "{answered}");
                    answered += 1;
                }
            }
        });
        memory.check("a million requests");
    }
}

/// Nobody reads the answers: some are asked for, then no more are taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_requests_that_nobody_waits_for_harm_nobody() {
    let fronts = Fronts::start().await;
    let requests = many();
    for (address, pid) in fronts.each() {
        let memory = Memory::new(pid);
        let mut stream = open(address);
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let written = stream.write_all(&requests);
        // It may take all, as empty answers are short.
        assert!(
            written.is_ok() || written.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        );
        serves(address);
        memory.check("answers that nobody reads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_may_come_byte_by_byte() {
    let fronts = Fronts::start().await;
    for (address, _) in fronts.each() {
        let mut requests = Vec::new();
        encode_command(["SET", "slow", "value"], &mut requests);
        encode_command(["MGET", "slow", "none", "slow"], &mut requests);
        requests.extend_from_slice(b"GET slow\r\n");
        let mut wire = Wire::open(address).unwrap();
        for (number, byte) in requests.iter().enumerate() {
            wire.send_bytes(&[*byte]).unwrap();
            if number % 10 == 0 {
                serves(address);
            }
        }
        let value = || Value::Bulk(b"value".into());
        assert_eq!(wire.reply().unwrap(), Value::Simple("OK".into()));
        assert_eq!(wire.reply().unwrap().as_array().unwrap(), [value(), Value::Null, value()]);
        assert_eq!(wire.reply().unwrap(), value());
    }
}

/// What is no request is answered with an error, or the connection is closed; what announces more than
/// ever comes is waited for, and nothing is kept ready for it.
#[tokio::test(flavor = "multi_thread")]
async fn lies_harm_nobody() {
    let fronts = Fronts::start().await;
    let deep = "*1\r\n".repeat(100_000);
    let line = "a".repeat(2 * MIB);
    let announced = format!("*2\r\n$3\r\nGET\r\n${}\r\n", VALUE_BYTES + 1);
    let wrong = [
        "*1\r\n$-1\r\n",
        "*1\r\n$x\r\n",
        "*1\r\n$99999999999999999999\r\n",
        "*99999999999999999999\r\n",
        "*3000000000\r\n",
        "*2\r\n$3\r\nGET\r\n:1\r\n",
        "*1\r\n*1\r\n$4\r\nPING\r\n",
        &deep,
        &line,
        &announced,
    ];
    let open_ended =
        ["*1000000\r\n$3\r\nDEL\r\n", "*2\r\n$3\r\nGET\r\n$500000000\r\nabc", "*3\r\n$"];
    for (address, pid) in fronts.each() {
        let memory = Memory::new(pid);
        for text in wrong {
            let shown = &text[..text.len().min(40)];
            let mut stream = open(address);
            // It may be closed before all is written.
            let _ = stream.write_all(text.as_bytes());
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            let reset =
                read.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset);
            assert!(read.is_ok() || reset, "{shown:?}: {read:?}");
            assert!(answer.is_empty() || answer.starts_with(b"-ERR"), "{shown:?}: {answer:?}");
            serves(address);
        }
        let streams: Vec<TcpStream> = open_ended
            .iter()
            .cycle()
            .take(300)
            .map(|text| {
                let mut stream = open(address);
                stream.write_all(text.as_bytes()).unwrap();
                stream
            })
            .collect();
        serves(address);
        memory.check("lies");
        drop(streams);
        serves(address);
    }
}
