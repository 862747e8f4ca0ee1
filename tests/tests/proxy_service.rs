//! How the proxy treats clients, in front of a server that answers when it is told to: its end, their
//! number, TLS, and its figures.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use protocol::{
    Value,
    resp::{Decoder, Limits},
};
use rustix::process::{Pid, Resource, prlimit};
use tests::{
    certificates::Authority,
    differential::Wire,
    proxy::{Program, wait_until},
};

/// A cluster of one: GET is answered with the key, as long as its gate is open.
struct Backend {
    address: SocketAddr,
    gate: Arc<(Mutex<bool>, Condvar)>,
    asked: Arc<AtomicUsize>,
}

impl Backend {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let gate = Arc::new((Mutex::new(true), Condvar::new()));
        let asked = Arc::new(AtomicUsize::new(0));
        let backend = Self { address, gate: Arc::clone(&gate), asked: Arc::clone(&asked) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (gate, asked) = (Arc::clone(&gate), Arc::clone(&asked));
                thread::spawn(move || answer(&stream.unwrap(), address, &gate, &asked));
            }
        });
        backend
    }

    fn open(&self, open: bool) {
        *self.gate.0.lock().unwrap() = open;
        self.gate.1.notify_all();
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }
}

fn answer(
    mut stream: &TcpStream,
    address: SocketAddr,
    gate: &(Mutex<bool>, Condvar),
    asked: &AtomicUsize,
) {
    let mut decoder = Decoder::new(Limits::default());
    let mut piece = vec![0; 64 << 10];
    loop {
        while let Some(request) = decoder.next().unwrap() {
            let words = request.as_array().unwrap();
            let text = |index: usize| words[index].as_str().unwrap();
            let reply = match text(0) {
                "GET" => {
                    asked.fetch_add(1, SeqCst);
                    drop(gate.1.wait_while(gate.0.lock().unwrap(), |open| !*open));
                    format!("${}\r\n{}\r\n", text(1).len(), text(1))
                }
                "CLUSTER" => {
                    let (ip, port) = (address.ip().to_string(), address.port());
                    let node = format!("*3\r\n${}\r\n{ip}\r\n:{port}\r\n$1\r\nn\r\n", ip.len());
                    format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}")
                }
                _ => "+OK\r\n".to_owned(),
            };
            if stream.write_all(reply.as_bytes()).is_err() {
                return;
            }
        }
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.feed(&piece[..count]),
        }
    }
}

fn get(key: &str) -> Vec<Vec<u8>> {
    vec![b"GET".to_vec(), key.as_bytes().to_vec()]
}

fn bulk(text: &str) -> Value {
    Value::Bulk(text.into())
}

#[test]
fn sigterm_leaves_nobody_without_an_answer() {
    let backend = Backend::start();
    let mut proxy = Program::start(&[backend.address], &["--drain", "15", "--threads", "2"]);
    let mut idle = Wire::open(proxy.plain).unwrap();
    assert_eq!(idle.call(&[b"GET", b"a"]).unwrap(), bulk("a"));
    backend.open(false);
    let mut busy: Vec<Wire> = (0..8).map(|_| Wire::open(proxy.plain).unwrap()).collect();
    for client in &mut busy {
        client.send(&[get("x"), get("y"), get("z")]).unwrap();
    }
    // One that has sent half of what it asks.
    let mut slow = TcpStream::connect(proxy.plain).unwrap();
    slow.write_all(b"*2\r\n$3\r\nGET\r\n$4\r\nha").unwrap();
    wait_until("the requests are there", || backend.asked() > 1);
    proxy.signal("TERM");
    wait_until("it listens no more", || TcpStream::connect(proxy.plain).is_err());
    assert!(idle.reply().unwrap_err().to_string().contains("closed"));
    assert!(proxy.child.try_wait().unwrap().is_none());
    slow.write_all(b"lf\r\n").unwrap();
    backend.open(true);
    for client in &mut busy {
        for key in ["x", "y", "z"] {
            assert_eq!(client.reply().unwrap(), bulk(key));
        }
        assert!(client.reply().unwrap_err().to_string().contains("closed"));
    }
    let mut whole = String::new();
    slow.read_to_string(&mut whole).unwrap();
    assert_eq!(whole, "$4\r\nhalf\r\n");
    drop((idle, busy, slow));
    assert!(proxy.ended().success());
}

#[test]
fn what_is_not_answered_in_time_does_not_keep_it() {
    let backend = Backend::start();
    let mut proxy = Program::start(&[backend.address], &["--drain", "1"]);
    backend.open(false);
    let mut client = Wire::open(proxy.plain).unwrap();
    client.send(&[get("a")]).unwrap();
    wait_until("the request is there", || backend.asked() == 1);
    proxy.signal("TERM");
    assert!(proxy.ended().success());
    client.reply().unwrap_err();
}

#[test]
fn clients_beyond_the_limit_are_told_so() {
    let backend = Backend::start();
    let proxy = Program::start(&[backend.address], &["--clients-max", "2", "--threads", "2"]);
    let open = || {
        let mut client = Wire::open(proxy.plain).unwrap();
        let answer = client.reply_or(b"PING");
        (client, answer)
    };
    let (first, second) = (open(), open());
    for (_, answer) in [&first, &second] {
        assert_eq!(answer.as_deref(), Some("PONG"));
    }
    let refused = open().1;
    // The answer may be lost with the connection, as the request was not read.
    let told = "ERR max number of clients reached";
    assert!(refused.is_none() || refused.as_deref() == Some(told), "{refused:?}");
    drop(first);
    wait_until("there is room again", || open().1.as_deref() == Some("PONG"));
    drop(second);
}

trait ReplyOr {
    /// The text of the answer; None where the connection was closed.
    fn reply_or(&mut self, command: &[u8]) -> Option<String>;
}

impl ReplyOr for Wire {
    fn reply_or(&mut self, command: &[u8]) -> Option<String> {
        match self.call(&[command]).ok()? {
            Value::Simple(text) | Value::Error(text) => Some(text),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn tls_carries_all_sizes_beside_plain_clients() {
    let (backend, authority) = (Backend::start(), Authority::new());
    authority.issue("proxy");
    let (certificate, key) = (authority.file("proxy.pem"), authority.file("proxy.key"));
    let args = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    let proxy = Program::start(&[backend.address], &args);
    let mut plain = Wire::open(proxy.plain).unwrap();
    let mut client = authority.connect(proxy.tls.unwrap(), None);
    for size in [1, 100, 16_383, 16_384, 16_385, 65_536, 131_072, 3_000_000] {
        let key = "k".repeat(size);
        assert_eq!(client.call(&get(&key)).unwrap(), bulk(&key), "{size}");
        assert_eq!(plain.call(&[b"GET", key.as_bytes()]).unwrap(), bulk(&key), "{size}");
    }
    // Nobody at the TLS address is served without it.
    let mut wrong = Wire::open(proxy.tls.unwrap()).unwrap();
    assert!(wrong.call(&[b"PING"]).is_err());
}

#[test]
fn clients_show_certificates_where_they_must() {
    let (backend, authority, stranger) = (Backend::start(), Authority::new(), Authority::new());
    authority.issue("proxy");
    authority.issue("client");
    stranger.issue("client");
    fs::copy(stranger.file("client.pem"), authority.file("stranger.pem")).unwrap();
    fs::copy(stranger.file("client.key"), authority.file("stranger.key")).unwrap();
    let files = ["proxy.pem", "proxy.key", "ca.pem"].map(|name| authority.file(name));
    let [certificate, key, roots] = &files;
    let check = |more: &[&str], own: Option<&str>, served: bool| {
        let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key];
        let args: Vec<&str> = tls.iter().chain(more).copied().collect();
        let proxy = Program::start(&[backend.address], &args);
        let answer = authority.connect(proxy.tls.unwrap(), own).call(&get("a"));
        assert_eq!(answer.is_ok(), served, "{more:?} {own:?} {answer:?}");
    };
    let required = ["--tls-client-ca", roots];
    check(&required, None, false);
    check(&required, Some("client"), true);
    check(&required, Some("stranger"), false);
    let optional = ["--tls-client-ca", roots, "--tls-client-optional"];
    check(&optional, None, true);
    check(&optional, Some("stranger"), false);
}

#[test]
fn new_certificates_drop_nobody() {
    let (backend, authority) = (Backend::start(), Authority::new());
    let first = authority.issue("proxy");
    let (certificate, key) = (authority.file("proxy.pem"), authority.file("proxy.key"));
    let args = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    let proxy = Program::start(&[backend.address], &args);
    let address = proxy.tls.unwrap();
    let mut old = authority.connect(address, None);
    old.call(&get("a")).unwrap();
    assert_eq!(old.certificate(), first);
    // What cannot be used changes nothing.
    fs::write(&certificate, "half").unwrap();
    proxy.signal("HUP");
    let second = authority.issue("proxy");
    proxy.signal("HUP");
    wait_until("the new certificate is shown", || {
        let mut new = authority.connect(address, None);
        new.call(&get("b")).unwrap();
        new.certificate() == second
    });
    assert_eq!(old.call(&get("c")).unwrap(), bulk("c"));
}

#[test]
fn figures_are_given_away() {
    let backend = Backend::start();
    let place = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let place = place.to_string();
    let args =
        ["--metrics", &place, "--threads", "2", "--slowlog-slower-than", "0", "--hot-keys", "1"];
    let proxy = Program::start(&[backend.address], &args);
    let mut clients: Vec<Wire> = (0..4).map(|_| Wire::open(proxy.plain).unwrap()).collect();
    for client in &mut clients {
        client.call(&[b"GET", b"a"]).unwrap();
    }
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(&place).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = ask("GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let check = |line: &str| assert!(answer.lines().any(|each| each == line), "{line}: {answer}");
    check("keyfleet_proxy_threads 2");
    check("keyfleet_proxy_clients 4");
    check("keyfleet_proxy_requests_total 4");
    let server = format!("server=\"{}\"", backend.address);
    check(&format!("keyfleet_proxy_server_requests_total{{{server}}} 4"));
    check(&format!("keyfleet_proxy_server_latency_seconds_count{{{server}}} 4"));
    check("keyfleet_proxy_slow_requests_total 4");
    assert_eq!(clients[0].call(&[b"SLOWLOG", b"LEN"]).unwrap(), Value::Integer(4));
    let slow = ask("GET /slowlog HTTP/1.0\r\n\r\n");
    let rows: serde_json::Value = serde_json::from_str(slow.lines().last().unwrap()).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 4);
    let (row, server) = (&rows[0], backend.address.to_string());
    assert_eq!((&row["command"], &row["keys"][0]), (&"get".into(), &"a".into()));
    assert_eq!((&row["server"], &row["user"]), (&server.into(), &"default".into()));
    assert!(row["micros"].as_u64() >= row["micros_at_server"].as_u64());
    clients[0].call(&[b"GET", "k".repeat(200_000).as_bytes()]).unwrap();
    clients[1].call(&[b"GET", "l".repeat(900).as_bytes()]).unwrap();
    let hot = ask("GET /hot HTTP/1.0\r\n\r\n");
    let page: serde_json::Value = serde_json::from_str(hot.lines().last().unwrap()).unwrap();
    assert_eq!((&page["one_in"], &page["hot"][0]["key"]), (&1.into(), &"a".into()));
    assert!(page["hot"][0]["requests"].as_f64() > Some(0.0), "{page}");
    assert_eq!(page["large"][0]["key"], "l".repeat(900));
    assert!(ask("GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask("POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405 "));
}

#[test]
fn a_load_balancer_says_who_its_clients_are() {
    let (backend, authority) = (Backend::start(), Authority::new());
    authority.issue("proxy");
    let (certificate, key) = (authority.file("proxy.pem"), authority.file("proxy.key"));
    let tls = ["--tls-listen", "127.0.0.1:0", "--tls-cert", &certificate, "--tls-key", &key];
    let more = ["--proxy-protocol", "--clients-max", "3", "--slowlog-slower-than", "0"];
    let proxy = Program::start(&[backend.address], &[&tls[..], &more].concat());
    let info = |text: &str| -> Vec<String> {
        let words = text.split_whitespace().map(str::to_owned);
        words.filter(|word| word.starts_with("addr=") || word.starts_with("laddr=")).collect()
    };
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    binary.extend([192, 0, 2, 1, 10, 0, 0, 9, 0x12, 0x34, 0x18, 0xeb]);
    // As it may come: in parts, and with the first request right behind it.
    let mut wire = Wire::open(proxy.plain).unwrap();
    for part in [&binary[..7], &binary[7..20], &[&binary[20..], b"CLIENT INFO\r\n"].concat()] {
        wire.send_bytes(part).unwrap();
    }
    let said = wire.reply().unwrap();
    let expected = ["addr=192.0.2.1:4660", "laddr=10.0.0.9:6379"];
    assert_eq!(info(said.as_str().unwrap()), expected);
    assert_eq!(wire.call(&[b"GET", b"a"]).unwrap(), bulk("a"));
    let slow = wire.call(&[b"SLOWLOG", b"GET"]).unwrap();
    let row = slow.as_array().unwrap()[0].as_array().unwrap();
    assert_eq!(row[4], bulk("192.0.2.1:4660"));
    // The balancer itself, which looks whether the proxy is there.
    let mut own = Wire::open(proxy.plain).unwrap();
    own.send_bytes(b"PROXY UNKNOWN\r\nCLIENT INFO\r\n").unwrap();
    let said = own.reply().unwrap();
    assert_eq!(info(said.as_str().unwrap())[1], format!("laddr={}", proxy.plain));
    // TLS begins behind the header.
    let mut stream = TcpStream::connect(proxy.tls.unwrap()).unwrap();
    stream.write_all(&binary).unwrap();
    let mut client = authority.connect_over("localhost", stream, None);
    let said = client.call(&["CLIENT", "INFO"]).unwrap();
    assert_eq!(info(said.as_str().unwrap()), expected);
    drop(client);
    // Who says something else is not served, and takes no place.
    for wrong in ["PING\r\n", "*1\r\n$4\r\nPING\r\n", "PROXY TCP4 1.2.3.4\r\nPING\r\n"] {
        for address in [proxy.plain, proxy.tls.unwrap()] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(wrong.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer.starts_with(b"-ERR max number"), "{answer:?}");
        }
    }
    wait_until("there is room", || {
        let mut last = Wire::open(proxy.plain).unwrap();
        last.send_bytes(b"PROXY TCP4 192.0.2.7 10.0.0.9 7 8\r\nPING\r\n").unwrap();
        last.reply().is_ok_and(|reply| reply == Value::Simple("PONG".into()))
    });
    // Who waits with its header keeps nobody from ending.
    let waits = TcpStream::connect(proxy.plain).unwrap();
    drop((wire, own));
    let mut proxy = proxy;
    proxy.signal("TERM");
    drop(waits);
    assert!(proxy.ended().success());
}

/// Who comes when there are no files for more clients is told so, and others take nothing from servers.
#[test]
fn clients_for_whom_there_are_no_files_are_refused() {
    const FILES: u32 = 120;
    let backend = Backend::start();
    let proxy = Program::start_with_files(FILES, &[backend.address], &["--clients-max", "500"]);
    let come = || {
        let mut client = Wire::open(proxy.plain).unwrap();
        let served = client.call(&[b"GET", b"key"]).is_ok_and(|answer| answer == bulk("key"));
        served.then_some(client)
    };
    let mut there: Vec<Wire> = std::iter::from_fn(come).take(FILES as usize).collect();
    assert_eq!(there.len(), FILES as usize - 32);
    assert!(come().is_none());
    there.pop();
    wait_until("there is room for another", || come().is_some());
    let still = there[0].call(&[b"GET", b"other"]).unwrap();
    assert_eq!(still, bulk("other"));
}

/// Who came when there was no file left is served once there is one, though nobody else comes.
#[test]
fn who_waits_for_a_file_is_not_forgotten() {
    let backend = Backend::start();
    let proxy = Program::start(&[backend.address], &["--threads", "1"]);
    let mut there = Wire::open(proxy.plain).unwrap();
    assert_eq!(there.call(&[b"GET", b"first"]).unwrap(), bulk("first"));
    let pid = Pid::from_child(&proxy.child);
    let mut none = rustix::process::getrlimit(Resource::Nofile);
    none.current = Some(0);
    let before = prlimit(Some(pid), Resource::Nofile, none).unwrap();
    let mut late = TcpStream::connect(proxy.plain).unwrap();
    late.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    late.write_all(b"*2\r\n$3\r\nGET\r\n$4\r\nlate\r\n").unwrap();
    assert_eq!(there.call(&[b"GET", b"meanwhile"]).unwrap(), bulk("meanwhile"));
    late.set_nonblocking(true).unwrap();
    assert_eq!(late.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    late.set_nonblocking(false).unwrap();
    prlimit(Some(pid), Resource::Nofile, before).unwrap();
    let mut answer = [0; 10];
    late.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"$4\r\nlate\r\n");
}
