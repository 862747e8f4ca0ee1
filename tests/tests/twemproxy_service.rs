//! What operators do with twemproxy, done with keyfleet in its place: reloads, sockets, passwords,
//! signals, flags, stats.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt as _, fs::symlink, net::UnixStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use protocol::Value;
use tests::{
    differential::Wire,
    fleet::program,
    server::Server,
    twemproxy::{Directory, Pool, Proxy, eventually, free_addresses, servers},
};

fn addresses(servers: &[Server]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.address).collect()
}

fn call(wire: &mut Wire, words: &str) -> Value {
    let words: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    wire.call(&words).unwrap()
}

/// A client that asks all the time, several requests at once, and checks every answer.
struct Asker {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

impl Asker {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut wire = Wire::open(address).unwrap();
            let mut asked = 0;
            while !stopped.load(Ordering::Relaxed) {
                let echo = |number: usize| {
                    let text = format!("{asked}/{number}").into_bytes();
                    vec![
                        b"EVAL".to_vec(),
                        b"return ARGV[1]".to_vec(),
                        b"1".to_vec(),
                        text.clone(),
                        text,
                    ]
                };
                wire.send(&(0..20).map(echo).collect::<Vec<_>>()).unwrap();
                for number in 0..20 {
                    let answer = wire.reply().unwrap();
                    assert_eq!(answer.as_str(), Some(format!("{asked}/{number}").as_str()));
                }
                asked += 1;
            }
            asked
        });
        Self { stop, thread }
    }

    /// How many rounds it made, without an error or a reply for another.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every answer is right")
    }
}

/// Servers come and go, a pool comes and one goes, one moves to another port: nobody whose pool
/// stays notices, while they ask all the time.
#[tokio::test]
async fn a_reload_drops_no_client() {
    let servers = servers(4).await.unwrap();
    let all = addresses(&servers);
    let ports = free_addresses(4).unwrap();
    let directory = Directory::new().unwrap();
    let (three, four) = (Pool::default(), Pool { weights: &[1, 1, 1, 1], ..Pool::default() });
    let first = three.text("stays", ports[0], &all) + &three.text("goes", ports[1], &all);
    let file = directory.write("nutcracker.yml", &first).unwrap();
    let arguments = ["--threads", "2"];
    let proxy = Proxy::by_own_name(&file, &ports[..2], &arguments).await.unwrap();
    let askers: Vec<Asker> = (0..3).map(|_| Asker::start(ports[0])).collect();
    let mut leaver = Wire::open(ports[1]).unwrap();
    assert_eq!(call(&mut leaver, "SET a 1"), Value::Simple("OK".into()));

    let second = four.text("stays", ports[0], &all) + &three.text("comes", ports[2], &all);
    fs::write(&file, &second).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("the pool has four servers, another one comes", || {
        let stats = proxy.stats()?;
        Ok(stats["stays"]["server3"].is_object() && stats["comes"].is_object())
    })
    .await
    .unwrap();
    assert!(leaver.reply().is_err(), "its pool is gone");
    eventually("nobody listens for it", || Ok(TcpStream::connect(ports[1]).is_err()))
        .await
        .unwrap();
    let mut comer = Wire::open(ports[2]).unwrap();
    assert_eq!(call(&mut comer, "GET a").as_str(), Some("1"));

    // A wrong file changes nothing and is told.
    fs::write(&file, second.replace("ketama", "katama")).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("it says why not", || Ok(proxy.said().contains("not reloaded"))).await.unwrap();
    assert!(proxy.said().contains("katama"), "{}", proxy.said());
    assert_eq!(call(&mut comer, "GET a").as_str(), Some("1"));

    // So does a port that somebody else has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = taken.local_addr().unwrap();
    fs::write(&file, second.replace(&ports[2].to_string(), &there.to_string())).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("it says where", || Ok(proxy.said().contains("cannot listen"))).await.unwrap();
    assert_eq!(call(&mut comer, "GET a").as_str(), Some("1"));

    // Without a signal: the file is looked at. The port moves, who is connected stays.
    fs::write(&file, second.replace(&ports[2].to_string(), &ports[3].to_string())).unwrap();
    eventually("it listens elsewhere", || Ok(Wire::open(ports[3]).is_ok())).await.unwrap();
    eventually("and there only", || Ok(TcpStream::connect(ports[2]).is_err())).await.unwrap();
    assert_eq!(call(&mut comer, "GET a").as_str(), Some("1"));
    for asker in askers {
        assert!(asker.stop() > 3);
    }
}

/// What was asked of a server that leaves is still answered by it.
#[tokio::test]
async fn requests_in_flight_are_answered_by_servers_that_leave() {
    let servers = servers(2).await.unwrap();
    let all = addresses(&servers);
    let listen = free_addresses(1).unwrap()[0];
    let directory = Directory::new().unwrap();
    let one = Pool { weights: &[1], ..Pool::default() };
    let file = directory.write("nutcracker.yml", &one.text("pool", listen, &all[..1])).unwrap();
    let proxy = Proxy::keyfleet(&file, &[listen]).await.unwrap();
    let mut wire = Wire::open(listen).unwrap();
    let script = "local t=redis.call('TIME') local e=t[1]*1e6+t[2]+4e5 repeat \
                  t=redis.call('TIME') until t[1]*1e6+t[2]>e return 'done'";
    let slow = ["EVAL", script, "1", "key"].map(|word| word.as_bytes().to_vec()).to_vec();
    wire.send(&[slow]).unwrap();
    eventually("it is on its way", || Ok(proxy.stats()?["pool"]["server0"]["out_queue"] == 1))
        .await
        .unwrap();
    fs::write(&file, one.text("pool", listen, &all[1..]).replace("server0", "other")).unwrap();
    proxy.signal("HUP").unwrap();
    eventually("the server is another", || Ok(proxy.stats()?["pool"]["other"].is_object()))
        .await
        .unwrap();
    wire.send(&[vec![b"SET".to_vec(), b"key".to_vec(), b"there".to_vec()]]).unwrap();
    assert_eq!(wire.reply().unwrap().as_str(), Some("done"));
    assert_eq!(wire.reply().unwrap(), Value::Simple("OK".into()));
    let mut direct = Wire::open(all[1]).unwrap();
    assert_eq!(call(&mut direct, "GET key").as_str(), Some("there"));
}

/// Sockets with their mode, passwords, databases, connections made beforehand and how many.
#[tokio::test]
async fn every_setting_holds() {
    let redis = tests::engines::engine("redis", "7.0").server;
    let directory = Directory::new().unwrap();
    let socket = directory.0.join("redis.sock").display().to_string();
    let server = Server::start(&redis, &["--unixsocket", &socket]).await.unwrap();
    let mut direct = Wire::open(server.address).unwrap();
    assert_eq!(call(&mut direct, "CONFIG SET requirepass secret"), Value::Simple("OK".into()));
    let listen = directory.0.join("proxy.sock");
    let tcp = free_addresses(1).unwrap()[0];
    let text = format!(
        "unix:\n  listen: {} 600\n  redis: true\n  redis_auth: secret\n  redis_db: 3\n  \
         preconnect: true\n  server_connections: 4\n  servers:\n   - {socket}:1 one\n\
         tcp:\n  listen: {tcp}\n  redis: true\n  redis_auth: secret\n  tcpkeepalive: true\n  \
         servers:\n   - {}:1 two\n",
        listen.display(),
        server.address,
    );
    let file = directory.write("nutcracker.yml", &text).unwrap();
    let proxy = Proxy::keyfleet(&file, &[tcp]).await.unwrap();
    assert_eq!(fs::metadata(&listen).unwrap().permissions().mode() & 0o777, 0o600);
    eventually("four connections before any request, none of the other pool", || {
        let stats = proxy.stats()?;
        let connections =
            |pool: &str, server: &str| stats[pool][server]["server_connections"].clone();
        Ok(connections("unix", "one") == 4 && connections("tcp", "two") == 0)
    })
    .await
    .unwrap();
    let mut stream = UnixStream::connect(&listen).unwrap();
    let mut ask = |words: &str, expected: &str| {
        stream.write_all(format!("{words}\r\n").as_bytes()).unwrap();
        let mut answer = vec![0; expected.len() + 2];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("{expected}\r\n"), "{words}");
    };
    ask("GET a", "-NOAUTH Authentication required.");
    ask("AUTH secret", "+OK");
    ask("SET a 1", "+OK");
    ask("GET a", "$1\r\n1");
    let mut wire = Wire::open(tcp).unwrap();
    assert!(matches!(call(&mut wire, "AUTH wrong"), Value::Error(_)));
    assert_eq!(call(&mut wire, "AUTH secret"), Value::Simple("OK".into()));
    assert_eq!(call(&mut wire, "GET a"), Value::Null);
    assert_eq!(call(&mut direct, "SELECT 3"), Value::Simple("OK".into()));
    assert_eq!(call(&mut direct, "GET a").as_str(), Some("1"));
    let ends = [tcp.to_string(), wire.local_address().unwrap().to_string()];
    eventually("the kernel looks after the client", || {
        // Of /proc/net/tcp it is the timer's kind: 2 is keepalive.
        let port =
            |end: &str| format!(":{:04X}", end.rsplit(':').next().unwrap().parse::<u16>().unwrap());
        let table = fs::read_to_string("/proc/net/tcp")?;
        Ok(table.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.len() > 5
                && words[1].ends_with(&port(&ends[0]))
                && words[2].ends_with(&port(&ends[1]))
                && words[5].starts_with("02:")
        }))
    })
    .await
    .unwrap();
}

/// The same fields in the same order, and the same figures after the same commands.
#[tokio::test]
async fn stats_are_like_twemproxys() {
    let servers = servers(3).await.unwrap();
    let all = addresses(&servers);
    let directory = Directory::new().unwrap();
    let ports = free_addresses(4).unwrap();
    // A connection that begins with a request of its own, which counts for nothing.
    let pool = Pool { more: &["redis_db: 1"], ..Pool::default() };
    let unnamed = Pool { named: false, ..Pool::default() };
    let mut lines = Vec::new();
    for (side, ports) in ports.chunks(2).enumerate() {
        let text = pool.text("beta", ports[0], &all) + &unnamed.text("al", ports[1], &all);
        let file = directory.write(&format!("{side}.yml"), &text).unwrap();
        let proxy = match side {
            0 => Proxy::nutcracker(&file, ports).await.unwrap(),
            _ => Proxy::keyfleet(&file, ports).await.unwrap(),
        };
        let mut wire = Wire::open(ports[0]).unwrap();
        for number in 0..100 {
            call(&mut wire, &format!("SET key{number} {number}"));
            call(&mut wire, &format!("GET key{number}"));
        }
        drop(wire);
        eventually("it has seen all", || Ok(proxy.stats()?["beta"]["client_eof"] == 2))
            .await
            .unwrap();
        let line = proxy.stats_line().unwrap();
        let uptime = line.find("\"uptime\"").unwrap();
        let connections = line.find("\"total_connections\"").unwrap();
        lines.push(format!("{}{}", &line[..uptime], &line[connections..]));
    }
    // Addresses are names in the pool without; they are the same servers for both.
    assert_eq!(lines[0], lines[1]);
}

/// -t, wrong flags, -d with its pid file, signals and exit codes.
#[tokio::test]
async fn the_command_line_is_like_twemproxys() {
    let directory = Directory::new().unwrap();
    let link = directory.0.join("nutcracker");
    symlink(program(), &link).unwrap();
    let listen = free_addresses(1).unwrap()[0];
    let servers = servers(1).await.unwrap();
    let pool = Pool { weights: &[1], ..Pool::default() };
    let good = pool.text("pool", listen, &addresses(&servers));
    directory.write("good.yml", &good).unwrap();
    directory.write("bad.yml", &good.replace("fnv1a_64", "fnv")).unwrap();
    directory.write("memcached.yml", &good.replace("redis: true", "redis: false")).unwrap();
    let run = |program: &str, line: &str| {
        let mut command = Command::new(program);
        command.args(line.split_whitespace()).current_dir(&directory.0);
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{line}");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let ours = link.display().to_string();
    for line in
        ["-t -c good.yml", "-t -c bad.yml", "-t -c none.yml", "-q", "-s 0", "-m 1", "-v x", "-c"]
    {
        let (code, said) = run("nutcracker", line);
        let (our_code, we_said) = run(&ours, line);
        assert_eq!(our_code, code, "{line}: {we_said}");
        let verdict = said.lines().find(|line| line.starts_with("nutcracker:")).unwrap();
        assert!(we_said.contains(verdict), "{line}: {we_said} has not {verdict}");
    }
    for line in ["-h", "-V", "-D", "--help", "--version"] {
        let ((code, said), (our_code, we_said)) = (run("nutcracker", line), run(&ours, line));
        assert_eq!((our_code, we_said.lines().next()), (code, said.lines().next()), "{line}");
    }
    let (code, said) = run(&ours, "-t -c memcached.yml");
    assert_eq!(code, Some(1));
    assert!(said.contains("memcached"), "{said}");

    // As a daemon.
    let stats = free_addresses(1).unwrap()[0];
    let line = format!("-d -c good.yml -o log -p pid -a 127.0.0.1 -s {}", stats.port());
    assert_eq!(run(&ours, &line), (Some(0), String::new()));
    let log = directory.0.join("log");
    eventually("it serves", || Ok(TcpStream::connect(listen).is_ok())).await.unwrap();
    let pid = fs::read_to_string(directory.0.join("pid")).unwrap();
    let signal = |name: &str| tests::twemproxy::signal(pid.parse().unwrap(), name).unwrap();
    let said = |text: &str| Ok(fs::read_to_string(&log).unwrap_or_default().contains(text));
    signal("TTIN");
    eventually("more is logged", || said("level is 6")).await.unwrap();
    signal("TTOU");
    eventually("less is logged", || said("level is 5")).await.unwrap();
    fs::rename(&log, directory.0.join("log.1")).unwrap();
    signal("USR1");
    signal("HUP");
    eventually("the log is another file", || said("nothing has changed")).await.unwrap();
    assert_eq!(call(&mut Wire::open(listen).unwrap(), "SET a 1"), Value::Simple("OK".into()));
    signal("TERM");
    eventually("it ends", || Ok(!directory.0.join("pid").exists())).await.unwrap();

    let file = directory.0.join("good.yml");
    let mut proxy = Proxy::keyfleet(&file, &[listen]).await.unwrap();
    proxy.signal("INT").unwrap();
    assert_eq!(proxy.ended().await.unwrap(), Some(1));
    let mut proxy = Proxy::keyfleet(&file, &[listen]).await.unwrap();
    proxy.signal("TERM").unwrap();
    assert_eq!(proxy.ended().await.unwrap(), Some(0));
}
