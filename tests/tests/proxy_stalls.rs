//! A client that doesn't read what it asked for, and those who share the proxy with it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
};

use protocol::{Value, resp::encode_command};
use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
use tests::{
    cluster::{RawCluster, Shape},
    differential::Wire,
    engines::engine,
    proxy::{Program, TIME_MAX, peak_bytes, wait_until},
};

const LARGE_BYTES: usize = 300_000_000;
/// What the proxy may take in addition: a client's limit is 4 MiB.
const HELD_BYTES_MAX: usize = 24 << 20;

/// Others ask for keys beside a large one of whose reply nobody reads more than is there.
fn others_go_on(program: &Program, large: &mut TcpStream, writes: bool) {
    let plain = program.plain;
    let others: Vec<_> = (0..8)
        .map(|number| {
            thread::spawn(move || {
                let mut wire = Wire::open(plain).unwrap();
                let key = format!("{{same}}:{number}");
                for round in 0..1_500_usize {
                    let value = round.to_string();
                    if writes {
                        let set = wire.call(&[b"SET", key.as_bytes(), value.as_bytes()]);
                        assert_eq!(set.unwrap(), Value::Simple("OK".into()));
                    }
                    let expected = if writes { Value::Bulk(value.into()) } else { Value::Null };
                    assert_eq!(wire.call(&[b"GET", key.as_bytes()]).unwrap(), expected);
                }
            })
        })
        .collect();
    let mut request = Vec::new();
    encode_command(["GET", "{same}:large"], &mut request);
    large.write_all(&request).unwrap();
    for other in others {
        other.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_keeps_nobody_waiting() {
    let binary = engine("redis", "7.0");
    let shape = Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.unwrap();
    let program = Program::start(&cluster.addresses(), &["--threads", "1"]);
    let mut wire = Wire::open(program.plain).unwrap();
    let last = (LARGE_BYTES - 1).to_string();
    wire.call(&[b"SETRANGE", b"{same}:large", last.as_bytes(), b"x"]).unwrap();
    let before = peak_bytes(program.child.id());

    // Reads behind it are asked elsewhere, so nothing ends its reply: it is all there later.
    let mut large = TcpStream::connect(program.plain).unwrap();
    large.set_read_timeout(Some(TIME_MAX)).unwrap();
    others_go_on(&program, &mut large, false);
    let mut left = LARGE_BYTES + format!("${LARGE_BYTES}\r\n\r\n").len();
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        let read = large.read(&mut piece).unwrap();
        assert!((1..=left).contains(&read), "{left} bytes are missing");
        left -= read;
    }

    // Writes are executed once and answered; whoever keeps one waiting may be closed for it.
    others_go_on(&program, &mut large, true);
    let held = peak_bytes(program.child.id()) - before;
    assert!(held < HELD_BYTES_MAX, "{held} bytes");
}

/// A client whose socket takes hardly anything that it doesn't read.
fn narrow(address: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_recv_buffer_size(&socket, 4 << 10).unwrap();
    connect(&socket, &address).unwrap();
    socket.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_do_not_read_take_no_more_than_there_is() {
    const MIB: usize = 1 << 20;
    let binary = engine("redis", "7.0");
    let shape = Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.unwrap();
    let program = Program::start(&cluster.addresses(), &["--memory-max", "64MiB"]);
    let mut other = Wire::open(program.plain).unwrap();
    for key in 0..30 {
        other.call(&[b"SET", format!("large:{key}").as_bytes(), &vec![b'.'; MIB]]).unwrap();
    }
    let before = peak_bytes(program.child.id());
    let mut evicted = || {
        assert_eq!(other.call(&[b"GET", b"small"]).unwrap(), Value::Null);
        let Value::Bulk(info) = other.call(&[b"INFO", b"stats"]).unwrap() else { panic!() };
        let info = String::from_utf8(info.clone()).unwrap();
        let count = info.lines().find_map(|line| line.strip_prefix("evicted_clients:"));
        count.unwrap().parse::<usize>().unwrap()
    };
    let deaf: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut stream = narrow(program.plain);
            let mut request = Vec::new();
            for more in 0..3 {
                encode_command(["GET", &format!("large:{}", (number + more) % 30)], &mut request);
            }
            stream.write_all(&request).unwrap();
            evicted();
            stream
        })
        .collect();
    wait_until("those that hold most are closed", || evicted() > 200);
    let peak = peak_bytes(program.child.id()) - before;
    // Room between buffers, which the allocator keeps, comes on top: without a bound it is 1 GiB.
    assert!(peak < 160 * MIB, "{peak} bytes");
    drop(deaf);
}
