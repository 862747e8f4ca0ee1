//! What the proxy knows of requests, and where it sends reads, in front of real servers.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use keyfleet::proxy::{
    Service, Setup, SlowLogSetup,
    replicas::{ReadFrom, Reading},
    users::UsersFile,
};
use protocol::Value;
use tests::{
    cluster::{RawCluster, Shape, call},
    differential::Wire,
    engines::engine,
    proxy::{Front, Program, wait_until},
    server::new_directory,
};

async fn cluster(kind: &str, version: &str, replicas: usize) -> RawCluster {
    let binary = engine(kind, version);
    let config = ["--cluster-allow-replica-migration", "no"];
    let shape = Shape { server: &binary.server, primaries: 3, replicas, spare: 0, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

fn ask(wire: &mut Wire, request: &str) -> Value {
    let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
    wire.call(&words).unwrap()
}

fn text_of(text: &str) -> Value {
    Value::Bulk(text.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_requests_are_noted() {
    let cluster = cluster("redis", "7.0", 0).await;
    let slow_log = SlowLogSetup { slower_than: Some(200_000), entries_max: 10 };
    let service = Service { slow_log, ..Service::default() };
    let front = Front::serve(Front::setup(&cluster.addresses(), 2), service).unwrap();
    // Clients of both threads see the same.
    let mut clients: Vec<Wire> = (0..8).map(|_| Wire::open(front.address).unwrap()).collect();
    ask(&mut clients[0], "CLIENT SETNAME me");
    ask(&mut clients[0], "SET quick 1");
    let owner = cluster.owners().await.unwrap()[usize::from(protocol::key_slot(b"slow").number())];
    let mut link = cluster.link(owner).await.unwrap();
    call(&mut link, &["CLIENT", "PAUSE", "400", "ALL"]).await.unwrap();
    let long = "v".repeat(200);
    ask(&mut clients[0], &format!("SET slow {long}"));
    for client in &mut clients {
        assert_eq!(ask(client, "SLOWLOG LEN"), Value::Integer(1));
    }
    let entries = ask(&mut clients[1], "SLOWLOG GET");
    let [entry] = entries.as_array().unwrap() else { panic!("{entries:?}") };
    let [number, at, micros, words, _, name] = entry.as_array().unwrap() else {
        panic!("{entry:?}")
    };
    assert_eq!((number, name), (&Value::Integer(0), &text_of("me")));
    let value = format!("{}... (72 more bytes)", "v".repeat(128));
    assert_eq!(words, &Value::Array(vec![text_of("SET"), text_of("slow"), text_of(&value)]));
    assert!((200_000..10_000_000).contains(&micros.as_integer().unwrap()), "{micros:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let ago = now.saturating_sub(Duration::from_secs(at.as_integer().unwrap().unsigned_abs()));
    assert!(ago < Duration::from_secs(60), "{at:?}");
    assert_eq!(ask(&mut clients[2], "SLOWLOG RESET"), Value::Simple("OK".into()));
    assert_eq!(ask(&mut clients[0], "SLOWLOG GET -1"), Value::Array(vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxys_own_users_have_their_limits() {
    let cluster = cluster("redis", "7.0", 0).await;
    for index in 0..cluster.nodes.len() {
        let mut link = cluster.link(index).await.unwrap();
        let rule = ["ACL", "SETUSER", "reader", "on", ">there", "~*", "+@read", "+ping"];
        call(&mut link, &rule).await.unwrap();
    }
    let directory = new_directory().unwrap();
    let file = directory.join("users.yaml");
    let text = "\
users:
  app: {password: one, requests-per-second: 100, clients-max: 2}
  look: {password: two, server-user: reader, server-password: there}
";
    std::fs::write(&file, text).unwrap();
    let users = UsersFile::open(&file).unwrap().1;
    std::fs::remove_dir_all(directory).unwrap();
    let service = Service { users, ..Service::default() };
    let front = Front::serve(Front::setup(&cluster.addresses(), 2), service).unwrap();
    let open = || Wire::open(front.address).unwrap();
    let code = |wire: &mut Wire, request: &str| match ask(wire, request) {
        Value::Error(text) => text.split(' ').next().unwrap_or_default().to_owned(),
        Value::Simple(text) => text,
        other => format!("{other:?}"),
    };
    let mut app = open();
    assert_eq!(code(&mut app, "SET a 1"), "NOAUTH");
    assert_eq!(code(&mut app, "AUTH app two"), "WRONGPASS");
    assert_eq!(code(&mut app, "AUTH app one"), "OK");
    assert_eq!(code(&mut app, "SET a 1"), "OK");
    let (mut look, mut stranger) = (open(), open());
    assert_eq!(code(&mut look, "AUTH look two"), "OK");
    assert_eq!(ask(&mut look, "GET a"), text_of("1"));
    assert_eq!(code(&mut look, "SET a 2"), "NOPERM");
    // Whom the proxy doesn't know the servers may.
    assert_eq!(code(&mut stranger, "AUTH reader there"), "OK");
    assert_eq!(ask(&mut stranger, "GET a"), text_of("1"));
    let (mut second, mut third) = (open(), open());
    assert_eq!(code(&mut second, "AUTH app one"), "OK");
    assert_eq!(code(&mut third, "AUTH app one"), "ERR");
    drop(second);
    let until = Instant::now() + Duration::from_secs(10);
    while code(&mut third, "AUTH app one") != "OK" {
        assert!(Instant::now() < until, "the place is never free again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Half a second's worth at once, and more: all is answered, the rest later.
    let requests = vec![vec![b"GET".to_vec(), b"a".to_vec()]; 50];
    app.send(&requests).unwrap();
    app.send(&requests).unwrap();
    for _ in 0..100 {
        assert_eq!(app.reply().unwrap(), text_of("1"));
    }
    let figures = front.figures();
    let figure = |name: &str| {
        let line = format!("keyfleet_proxy_user_{name}{{user=\"app\"}} ");
        let value = figures.lines().find_map(|each| each.strip_prefix(&line));
        value.unwrap_or_else(|| panic!("{figures}")).parse::<u64>().unwrap()
    };
    assert_eq!(figure("clients"), 2);
    assert!(figure("requests_total") >= 101 && figure("delays_total") >= 1, "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxys_own_users_follow_their_file() {
    let cluster = cluster("redis", "7.0", 0).await;
    let directory = new_directory().unwrap();
    let file = directory.join("users.yaml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("users: {app: {password: one, clients-max: 1}, gone: {password: two}}");
    let args = ["--threads", "2", "--users", &file.display().to_string()];
    let proxy = Program::start(&cluster.addresses(), &args);
    let log_in = |user: &str| {
        let mut wire = Wire::open(proxy.plain).unwrap();
        let answer = ask(&mut wire, &format!("AUTH {user}"));
        (answer == Value::Simple("OK".into())).then_some(wire)
    };
    let (mut app, mut gone) = (log_in("app one").unwrap(), log_in("gone two").unwrap());
    assert!(log_in("app one").is_none());
    // A file that can't be read changes nothing.
    write("users: {app: {passw");
    proxy.signal("HUP");
    assert_eq!(ask(&mut gone, "SET a 1"), Value::Simple("OK".into()));
    // No signal: the change is seen.
    write("users: {app: {password: one, clients-max: 2}, new: {password: three}}");
    wait_until("the new user is known", || log_in("new three").is_some());
    wait_until("the other is gone", || gone.call(&[b"PING"]).is_err());
    assert!(log_in("gone two").is_none());
    assert_eq!(ask(&mut app, "GET a"), text_of("1"));
    let second = log_in("app one");
    assert!(second.is_some() && log_in("app one").is_none());
    std::fs::remove_dir_all(directory).unwrap();
}

/// A signal for a server's process.
fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.unwrap().success());
}

async fn reads_from_replicas(kind: &str, version: &str) {
    let mut cluster = cluster(kind, version, 1).await;
    let reading = Reading { from: ReadFrom::Replica, ..Reading::default() };
    let setup = Setup { reading, ..Front::setup(&cluster.addresses(), 2) };
    let front = Front::serve(setup, Service::default()).unwrap();
    let mut client = Wire::open(front.address).unwrap();
    let keys: Vec<String> = (0..30).map(|number| format!("key:{number}")).collect();
    for key in &keys {
        assert_eq!(ask(&mut client, &format!("SET {key} {key}")), Value::Simple("OK".into()));
    }
    // All that was written is at all replicas.
    for index in 0..3 {
        let mut link = cluster.link(index).await.unwrap();
        while call(&mut link, &["WAIT", "1", "1000"]).await.unwrap() != Value::Integer(1) {}
    }
    let asked = |node: usize| {
        let address = cluster.nodes[node].addr.address;
        let line = format!("keyfleet_proxy_server_responses_total{{server=\"{address}\"}} ");
        let figures = front.figures();
        let value = figures.lines().find_map(|each| each.strip_prefix(&line));
        value.map_or(0, |value| value.parse::<u64>().unwrap())
    };
    let read_all = |client: &mut Wire| {
        let requests: Vec<_> =
            keys.iter().map(|key| vec![b"GET".to_vec(), key.as_bytes().to_vec()]).collect();
        client.send(&requests).unwrap();
        for key in &keys {
            assert_eq!(client.reply().unwrap(), text_of(key));
        }
        let mget = format!("MGET {}", keys.join(" "));
        let expected = keys.iter().map(|key| text_of(key)).collect();
        assert_eq!(ask(client, &mget), Value::Array(expected));
    };
    let until = Instant::now() + Duration::from_secs(20);
    while (3..6).any(|replica| asked(replica) == 0) {
        assert!(Instant::now() < until, "replicas are not read from");
        read_all(&mut client);
    }
    // From now on they serve all reads, and what must be at primaries is.
    let before: Vec<u64> = (0..6).map(asked).collect();
    read_all(&mut client);
    let after: Vec<u64> = (0..6).map(asked).collect();
    assert_eq!(after[..3], before[..3]);
    assert!((3..6).all(|replica| after[replica] > before[replica]), "{before:?} {after:?}");
    for request in ["MULTI", "GET key:1", "SET key:1 key:1"] {
        ask(&mut client, request);
    }
    let done = Value::Array(vec![text_of("key:1"), Value::Simple("OK".into())]);
    assert_eq!(ask(&mut client, "EXEC"), done);
    // One that hangs: what it was asked is asked elsewhere, and it is left out.
    signal(cluster.nodes[3].pid(), "STOP");
    read_all(&mut client);
    let before = asked(0);
    read_all(&mut client);
    assert!(asked(0) > before);
    signal(cluster.nodes[3].pid(), "CONT");
    let before = asked(3);
    let until = Instant::now() + Duration::from_secs(20);
    while asked(3) == before {
        assert!(Instant::now() < until, "it is not read from again");
        read_all(&mut client);
    }
    cluster.kill(4).unwrap();
    read_all(&mut client);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_replicas_serve_reads() {
    reads_from_replicas("redis", "7.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_replicas_serve_reads() {
    reads_from_replicas("valkey", "9.1").await;
}
