//! One proxy in the place of another, in front of a real server: taking over, and dying.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use protocol::Value;
use rustix::net::sockopt::set_socket_linger;
use tests::{
    differential::Wire,
    engines::engine,
    proxy::{Program, TIME_MAX, wait_until},
    server::{Server, new_directory},
};

/// A cluster of one.
fn server() -> Server {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let program = engine("redis", "7.0").server;
    let started = Server::start(&program, &["--cluster-enabled", "yes"]);
    let server = runtime.block_on(started).unwrap();
    let mut link = Wire::open(server.address).unwrap();
    link.call(&[b"CLUSTER", b"ADDSLOTSRANGE", b"0", b"16383"]).unwrap();
    wait_until("the cluster serves", || {
        let info = link.call(&[b"CLUSTER", b"INFO"]).unwrap();
        info.as_str().unwrap().contains("cluster_state:ok")
    });
    server
}

/// Removed when dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Connects, asks something, and goes.
fn visit(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("nobody is refused");
    // Closed so, the port is free again at once: there are many visits.
    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    stream.set_read_timeout(Some(TIME_MAX)).unwrap();
    stream.write_all(b"INCR visits\r\n").expect("everybody is served");
    let (mut answer, mut piece) = (Vec::new(), [0; 64]);
    while !answer.ends_with(b"\r\n") {
        let count = stream.read(&mut piece).expect("everybody is answered");
        assert!(count > 0, "closed without an answer");
        answer.extend_from_slice(&piece[..count]);
    }
    assert_eq!(answer.first(), Some(&b':'), "{answer:?}");
}

#[test]
fn nobody_is_refused_while_proxies_take_over() {
    let server = server();
    let directory = Directory(new_directory().unwrap());
    let path = directory.0.join("takeover").display().to_string();
    let figures = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let figures = figures.to_string();
    let start = |listen: &str, threads: &str| {
        let always = ["--takeover", &path, "--metrics", &figures, "--drain", "20"];
        let args = [&always[..], &["--listen", listen, "--threads", threads]].concat();
        Program::start(&[server.address], &args)
    };
    let mut proxy = start("127.0.0.1:0", "2");
    let address = proxy.plain;
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let loops: Vec<_> = (0..3)
        .map(|_| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    visit(address);
                    served.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let go_on = || {
        let before = served.load(SeqCst);
        wait_until("clients are served", || {
            served.load(SeqCst) > before + 50 || loops.iter().any(thread::JoinHandle::is_finished)
        });
    };
    for (round, threads) in ["2", "1", "3", "1", "2"].into_iter().enumerate() {
        go_on();
        // One that asks for the sockets and dies.
        drop(UnixStream::connect(&path).unwrap());
        let mut stays = Wire::open(address).unwrap();
        stays.call(&[b"INCR", b"mine"]).unwrap();
        let next = start(&address.to_string(), threads);
        assert_eq!(next.plain, address);
        let mut former = std::mem::replace(&mut proxy, next);
        go_on();
        // The former one's clients are served as ever, until they go.
        let mine = Value::Integer(i64::try_from(2 * round + 2).unwrap());
        assert_eq!(stays.call(&[b"INCR", b"mine"]).unwrap(), mine);
        assert!(former.child.try_wait().unwrap().is_none());
        drop(stays);
        assert!(former.ended().success());
        go_on();
        let mut stream = TcpStream::connect(&figures).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        assert!(told.contains(&format!("keyfleet_proxy_threads {threads}")), "{told}");
    }
    stop.store(true, SeqCst);
    for each in loops {
        each.join().unwrap();
    }
    let visits = Wire::open(address).unwrap().call(&[b"GET", b"visits"]).unwrap();
    assert_eq!(visits, Value::Bulk(served.load(SeqCst).to_string().into_bytes()));
    proxy.signal("TERM");
    let status: ExitStatus = proxy.ended();
    assert!(status.success() && TcpStream::connect(address).is_err());
    assert!(!PathBuf::from(&path).exists());
}

#[test]
fn a_killed_proxy_takes_nothing_but_its_connections_along() {
    let server = server();
    let mut dies = Program::start(&[server.address], &[]);
    let lives = Program::start(&[server.address], &[]);
    let stop = Arc::new(AtomicBool::new(false));
    // Each counts in a key of its own; who loses its connection goes to the other proxy.
    let run = |number: usize, places: [SocketAddr; 2]| {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let key = format!("count-{number}").into_bytes();
            let (mut told, mut lost) = (0, 0);
            let mut wire = Wire::open(places[0]).unwrap();
            while !stop.load(SeqCst) || told == 0 {
                match wire.call(&[b"INCR", &key]) {
                    Ok(Value::Integer(count)) => {
                        // What was lost may have been counted, or not.
                        assert!((told + 1..=told + 1 + lost).contains(&count), "{count} {told}");
                        told = count;
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => {
                        lost += 1;
                        wire = Wire::open(places[1]).unwrap();
                    }
                }
            }
            (told, lost)
        })
    };
    let loses: Vec<_> = (0..4).map(|number| run(number, [dies.plain, lives.plain])).collect();
    let keeps: Vec<_> = (4..8).map(|number| run(number, [lives.plain, dies.plain])).collect();
    let mut link = Wire::open(server.address).unwrap();
    let mut all_go_on = |what: &str| {
        for number in 0..8 {
            let key = format!("count-{number}").into_bytes();
            let mut count = || match link.call(&[b"GET", &key]).unwrap() {
                Value::Bulk(text) => String::from_utf8(text).unwrap().parse::<u64>().unwrap(),
                _ => 0,
            };
            let before = count();
            wait_until(what, || count() > before + 20);
        }
    };
    all_go_on("all count");
    dies.child.kill().unwrap();
    dies.child.wait().unwrap();
    all_go_on("all count again");
    stop.store(true, SeqCst);
    for each in loses {
        assert_eq!(each.join().unwrap().1, 1);
    }
    for each in keeps {
        assert_eq!(each.join().unwrap().1, 0);
    }
}
