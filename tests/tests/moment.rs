//! `keyfleet backup --follow` and `restore --at` on real clusters and servers: as it was at a second.

use std::{
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use keyfleet::{
    admin_client::Connection,
    backup::manifest::shown,
    mover::slots::{SlotMove, move_slots},
    observe::now_ms,
};
use protocol::{SlotSet, engine::AtomicSlots, key_slot};
use rustix::process::Signal;
use tests::{
    bucket::{BUCKET, Bucket, KEY},
    cluster::{RawCluster, Shape, call},
    engines::engine,
    fleet::{CLUSTER, Ended, Running, Spec, TestFleet},
    server::{POLL, Server, TIME_MAX},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// Families of keys that are written to, each in a slot of its own.
const FAMILIES: u64 = 60;

async fn cluster(kind: &str, version: &str, primaries: usize, replicas: usize) -> RawCluster {
    let server = engine(kind, version).server;
    let config = [
        "--cluster-allow-replica-migration",
        "no",
        "--cluster-node-timeout",
        "2000",
        "--repl-diskless-sync-delay",
        "0",
    ];
    let shape = Shape { server: &server, primaries, replicas, spare: 0, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

fn place(fleet: &TestFleet, name: &str) -> String {
    fleet.directory().join(name).to_str().unwrap().to_owned()
}

/// A next number from the last: xorshift.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Commands of all kinds, those that can't be done twice above all, for ever.
struct Writer {
    pause: Arc<AtomicBool>,
    /// Nothing is under way.
    rests: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(nodes: Vec<SocketAddr>, seed: u64) -> Self {
        let (pause, rests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let done = Arc::new(AtomicU64::new(0));
        let task = {
            let (pause, rests, done) = (Arc::clone(&pause), Arc::clone(&rests), Arc::clone(&done));
            tokio::spawn(async move {
                let mut links: Vec<Option<Connection>> = nodes.iter().map(|_| None).collect();
                let mut state = seed;
                loop {
                    rests.store(pause.load(Ordering::SeqCst), Ordering::SeqCst);
                    if pause.load(Ordering::SeqCst) {
                        sleep(POLL).await;
                        continue;
                    }
                    let family = random(&mut state) % FAMILIES;
                    let commands = commands(family, &mut state);
                    // Whoever owns it: the others refuse.
                    for (link, address) in links.iter_mut().zip(&nodes) {
                        if told(link, *address, &commands).await {
                            done.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                    }
                }
            })
        };
        Self { pause, rests, done, task }
    }

    /// Waits until that many more commands were done.
    async fn work(&self, more: u64) {
        self.pause.store(false, Ordering::SeqCst);
        let goal = self.done.load(Ordering::SeqCst) + more;
        let deadline = Instant::now() + TIME_MAX;
        while self.done.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < deadline, "nothing is written");
            sleep(POLL).await;
        }
    }

    async fn rest(&self) {
        self.pause.store(true, Ordering::SeqCst);
        while !self.rests.load(Ordering::SeqCst) {
            sleep(POLL).await;
        }
    }
}

/// Was it done there?
async fn told(
    link: &mut Option<Connection>,
    address: SocketAddr,
    commands: &[Vec<String>],
) -> bool {
    if link.is_none() {
        *link = Connection::open(address, None, Duration::from_secs(1)).await.ok();
    }
    let Some(open) = link else { return false };
    for words in commands {
        match open.call_within(Duration::from_secs(1), words).await {
            Ok(_) => {}
            Err(error) if error.code().is_some() => {
                let _ = open.call(["DISCARD"]).await;
                return false;
            }
            Err(_) => {
                *link = None;
                return false;
            }
        }
    }
    true
}

/// A command, or a transaction.
fn commands(family: u64, state: &mut u64) -> Vec<Vec<String>> {
    let key = |name: &str| format!("{name}:{{{family}}}");
    let number = random(state) % 100;
    let text = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let one = |line: String| vec![text(line)];
    match random(state) % 22 {
        0 | 1 => one(format!("INCRBY {} {number}", key("counter"))),
        2 | 3 => one(format!("APPEND {} x{number}", key("text"))),
        4 | 5 => one(format!("RPUSH {} {number} {number}", key("list"))),
        6 => one(format!("LPOP {}", key("list"))),
        7 => one(format!("HINCRBY {} field{number} 1", key("hash"))),
        8 => one(format!("SADD {} {number}", key("set"))),
        9 => one(format!("SPOP {}", key("set"))),
        10 => one(format!("ZINCRBY {} 1.5 {number}", key("sorted"))),
        11 => one(format!("XADD {} MAXLEN ~ 100 * field {number}", key("stream"))),
        12 => one(format!("INCRBYFLOAT {} 0.25", key("float"))),
        // They end before they are looked at again; and then they don't.
        13 => one(format!("PEXPIRE {} {}", key("counter"), 300 + number)),
        14 => one(format!("PERSIST {}", key("counter"))),
        15 => one(format!("EXPIRE {} {}", key("list"), 1000 + number)),
        16 => one(format!("SET {} {number} PX {}", key("short"), 200 + number)),
        17 => one(format!("APPEND {} {number}", key("short"))),
        18 => one(format!("COPY {} {} REPLACE", key("counter"), key("copy"))),
        19 => one(format!("DEL {} {}", key("text"), key("copy"))),
        20 => {
            let script = "redis.call('INCR',KEYS[1]) redis.call('RPUSH',KEYS[2],'s')";
            let mut words = vec!["EVAL".to_owned(), script.to_owned()];
            words.extend(["2".to_owned(), key("scripted"), key("list")]);
            vec![words]
        }
        _ => vec![
            text("MULTI".to_owned()),
            text(format!("INCR {}", key("counter"))),
            text(format!("RPUSH {} multi", key("list"))),
            text("EXEC".to_owned()),
        ],
    }
}

/// Waits until commands are kept that go on from a backup, up to a time.
async fn kept_until(fleet: &TestFleet, place: &str, at_ms: u64) {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let listed = fleet.run(&["backups", "--from", place, "-o", "json"]).await.expect_code(0);
        let listed = listed.json();
        let mut until =
            listed.as_array().unwrap().iter().filter_map(|each| each["until_ms"].as_u64());
        if until.any(|until| until >= at_ms) {
            return;
        }
        assert!(Instant::now() < deadline, "not kept: {listed}");
        sleep(POLL).await;
    }
}

/// A moment at which nothing changes for a while: a whole second, in the middle of a rest.
async fn quiet_second() -> String {
    sleep(Duration::from_millis(1_200)).await;
    let at = shown(now_ms() + 1_000);
    sleep(Duration::from_millis(2_200)).await;
    at
}

/// The target holds what a backup holds: the same keys, values and ends.
async fn same(fleet: &TestFleet, place: &str, to: &str) -> u64 {
    let args =
        ["restore", "latest", "--from", place, "--to", to, "--yes", "--verify", "-o", "json"];
    let report = fleet.run(&args).await.expect_code(0).json();
    let (existing, verified) = (&report["existing_same"], &report["verified"]);
    let troubles = &report["read"]["troubles"];
    assert_eq!(verified["different"], 0, "{verified} {troubles}");
    assert_eq!(existing, &verified["same"], "{verified} {troubles}");
    verified["same"].as_u64().unwrap()
}

async fn stop(running: Running) -> Ended {
    running.signal(Signal::INT);
    running.wait().await.expect_code(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_failovers_moves_and_kills_into_another_shape() {
    for ((kind, version), (to_kind, to_version)) in
        [(("redis", "7.0"), ("redis", "8.0")), (("valkey", "9.1"), ("valkey", "9.1"))]
    {
        let fleet = TestFleet::empty();
        let (place, check) = (place(&fleet, "kept"), place(&fleet, "check"));
        let mut source = cluster(kind, version, 3, 1).await;
        let addresses = source.addresses();
        let writer = Writer::start(addresses.clone(), 0x9E37_79B9_7F4A_7C15);
        writer.work(2_000).await;
        let seed = addresses[1].to_string();
        let args =
            ["backup", "mine", "--connect", &seed, "--to", &place, "--follow", "--segment", "1s"];
        let following = fleet.spawn(&args);
        kept_until(&fleet, &place, now_ms()).await;
        writer.work(2_000).await;
        // It goes on where it was killed, and others go on where servers were.
        following.kill9().await;
        writer.work(300).await;
        let following = fleet.spawn(&args);
        kept_until(&fleet, &place, now_ms()).await;
        let atomic = if kind == "valkey" { AtomicSlots::MigrateSlots } else { AtomicSlots::None };
        let slots = SlotSet::range(6_000, 9_000);
        move_slots(&SlotMove { atomic, ..source.slot_move(1, 2, slots) }, |_| ()).await.unwrap();
        writer.work(2_000).await;
        kept_until(&fleet, &place, now_ms()).await;
        source.kill(0).unwrap();
        writer.work(2_000).await;
        kept_until(&fleet, &place, now_ms()).await;
        let listed = fleet.run(&["backups", "--from", &place, "-o", "json"]).await.json();
        assert_eq!(listed.as_array().unwrap().len(), 1, "it began anew: {listed}");
        writer.rest().await;
        let at = quiet_second().await;
        let args = ["backup", "mine", "--connect", &seed, "--to", &check];
        fleet.run(&args).await.expect_code(0);
        writer.work(1_000).await;
        writer.rest().await;
        // The disaster.
        for index in [1, 2, 3] {
            let mut link = source.link(index).await.unwrap();
            call(&mut link, &["FLUSHALL"]).await.unwrap();
        }
        kept_until(&fleet, &place, now_ms()).await;
        let ended = stop(following).await;
        assert!(ended.said().contains("can be gone back to"), "{ended:?}");
        fleet.run(&["backup", "verify", "latest", "--from", &place]).await.expect_code(0);

        let target = cluster(to_kind, to_version, 5, 0).await;
        let to = target.addresses()[2].to_string();
        let args = ["restore", "latest", "--at", &at, "--from", &place, "--to", &to];
        let report = fleet.run(&[&args[..], &["-o", "json"]].concat()).await.expect_code(0);
        let report = report.json();
        let replayed = &report["replayed"];
        assert!(replayed["commands"].as_u64() > Some(1_000), "{replayed}");
        let keys = target.keys(0..5).await.unwrap();
        assert_eq!(same(&fleet, &check, &to).await, keys);
        let ended = fleet.run(&args).await.expect_code(1);
        assert!(ended.said().contains("already, and nothing was restored"), "{ended:?}");
        writer.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_nothing_is_done_twice() {
    let fleet = TestFleet::empty();
    let (place, check) = (place(&fleet, "kept"), place(&fleet, "check"));
    let source = cluster("redis", "7.0", 3, 0).await;
    let seed = source.addresses()[0].to_string();
    let args =
        ["backup", "mine", "--connect", &seed, "--to", &place, "--follow", "--segment", "1s"];
    let following = fleet.spawn(&args);
    kept_until(&fleet, &place, now_ms()).await;
    // Long enough that it can be killed in the middle.
    let owners = source.owners().await.unwrap();
    for family in 0..300 {
        let tag = family.to_string();
        let owner = owners[usize::from(key_slot(tag.as_bytes()).number())];
        let mut link = source.link(owner).await.unwrap();
        let script =
            "for i = 1, 300 do redis.call('INCR', KEYS[1]) redis.call('RPUSH', KEYS[2], i) end";
        let (counter, list) = (format!("counter:{{{tag}}}"), format!("list:{{{tag}}}"));
        call(&mut link, &["EVAL", script, "2", &counter, &list]).await.unwrap();
    }
    let at = quiet_second().await;
    fleet.run(&["backup", "mine", "--connect", &seed, "--to", &check]).await.expect_code(0);
    kept_until(&fleet, &place, now_ms()).await;
    stop(following).await;

    let mut target = cluster("redis", "7.0", 3, 1).await;
    let to = target.addresses()[1].to_string();
    let args = ["restore", "latest", "--at", &at, "--from", &place, "--to", &to];
    for (round, keys) in [1, 150, 300].into_iter().enumerate() {
        let running = fleet.spawn(&args);
        while target.keys(0..3).await.unwrap() < keys {
            sleep(POLL).await;
        }
        let ended = running.kill9().await;
        assert_eq!(ended.code, None, "it was over before it was killed: {ended:?}");
        assert!(target.keys(0..3).await.unwrap() < 900, "round {round}");
    }
    // And while a primary dies, and may take with it what it had said to have done.
    let running = fleet.spawn(&args);
    target.kill(0).unwrap();
    let ended = running.wait().await.expect_code(0);
    assert!(ended.stderr.contains("going on with the commands"), "{ended:?}");
    assert_eq!(same(&fleet, &check, &to).await, 600);
    assert_eq!(target.keys([1, 2, 3]).await.unwrap(), 600, "notes are left");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_server_of_an_old_version_with_databases_through_a_bucket() {
    let bucket = Bucket::start().await.unwrap();
    let mut fleet = TestFleet::empty();
    for (name, value) in [
        ("AWS_ACCESS_KEY_ID", KEY.0),
        ("AWS_SECRET_ACCESS_KEY", KEY.1),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", &format!("http://{}", bucket.address)),
    ] {
        fleet.set_variable(name, value);
    }
    let place = format!("s3://{BUCKET}/kept");
    let config = ["--repl-diskless-sync-delay", "0"];
    let source = Server::start(&engine("redis", "6.2").server, &config).await.unwrap();
    let mut link = source.link().await.unwrap();
    let address = source.address.to_string();
    let mut told = async |lines: &[&str]| {
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            call(&mut link, &words).await.unwrap();
        }
    };
    told(&["SET before 1", "SELECT 3", "SET before 3", "SELECT 0", "SET short x PX 1500"]).await;
    let args =
        ["backup", "mine", "--connect", &address, "--to", &place, "--follow", "--segment", "1s"];
    let following = fleet.spawn(&args);
    kept_until(&fleet, &place, now_ms()).await;
    told(&[
        "FLUSHDB",
        "INCR count",
        "SETEX ends 1000 v",
        // Over when it is restored, and needed until then.
        "SETEX base 1 a",
        "APPEND base b",
        "PERSIST base",
        "SELECT 3",
        "INCR before",
        "EXPIRE before 2000",
    ])
    .await;
    let at = quiet_second().await;
    told(&["FLUSHALL"]).await;
    kept_until(&fleet, &place, now_ms()).await;
    stop(following).await;
    let target = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let to = target.address.to_string();
    let args = ["restore", "latest", "--at", &at, "--from", &place, "--to", &to];
    fleet.run(&args).await.expect_code(0);
    let mut link = target.link().await.unwrap();
    let mut check = async |line: &str, expected: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let reply = call(&mut link, &words).await.unwrap();
        let text = reply.as_integer().map(|number| number.to_string());
        let text = text.or(reply.as_str().map(str::to_owned)).unwrap_or_default();
        assert_eq!(text, expected, "{line}");
    };
    check("DBSIZE", "3").await;
    check("GET base", "ab").await;
    check("TTL base", "-1").await;
    check("GET count", "1").await;
    check("SELECT 3", "OK").await;
    check("DBSIZE", "1").await;
    check("GET before", "4").await;
    let mut ttl =
        async |key: &str| call(&mut link, &["TTL", key]).await.unwrap().as_integer().unwrap();
    assert!((1_900..=2_000).contains(&ttl("before").await));
    // What is damaged is not restored.
    fleet.run(&["backup", "verify", "latest", "--from", &place]).await.expect_code(0);
    let mut damaged = 0;
    for file in bucket.files() {
        let mut bytes = fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(6).position(|window| window == b"APPEND")
            && file.to_str().unwrap().contains("/stream/")
        {
            bytes[at] = b'B';
            fs::write(&file, bytes).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let ended = fleet.run(&["backup", "verify", "latest", "--from", &place]).await.expect_code(1);
    assert!(ended.said().contains("is not what was written"), "{ended:?}");
    let empty = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let to = empty.address.to_string();
    let args = ["restore", "latest", "--at", &at, "--from", &place, "--to", &to];
    let ended = fleet.run(&args).await.expect_code(1);
    assert!(ended.said().contains("is not what was written"), "{ended:?}");
}

/// Fields that ended since, and were needed for what came after.
async fn fields_end_as_they_would_have(kind: &str, version: &str) {
    let fleet = TestFleet::empty();
    let (place, other) = (place(&fleet, "kept"), place(&fleet, "plain"));
    let config = ["--repl-diskless-sync-delay", "0"];
    let source = Server::start(&engine(kind, version).server, &config).await.unwrap();
    let mut link = source.link().await.unwrap();
    let address = source.address.to_string();
    let mut told = async |lines: &[&str]| {
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            call(&mut link, &words).await.unwrap();
        }
    };
    let large = "for i = 1, 20000 do redis.call('HSET', 'large', i, string.rep(i, 20)) end";
    told(&["HSET kept f 1 stays 2", "HPEXPIRE kept 6000 FIELDS 1 f", "HSET large f 1"]).await;
    told(&["HPEXPIRE large 6000 FIELDS 1 f", "HSET plain f 1"]).await;
    call(&mut source.link().await.unwrap(), &["EVAL", large, "0"]).await.unwrap();
    let ended = now_ms() + 6_000;
    let args = ["backup", "mine", "--connect", &address, "--to", &place, "--follow"];
    let following = fleet.spawn(&[&args[..], &["--segment", "1s"]].concat());
    kept_until(&fleet, &place, now_ms()).await;
    told(&["HINCRBY kept f 5", "HPERSIST kept FIELDS 1 f"]).await;
    told(&["HINCRBY large f 5", "HEXPIRE large 5000 FIELDS 1 f"]).await;
    told(&["HSET rolling f 1", "HPEXPIRE rolling 900 FIELDS 1 f", "HINCRBY rolling f 5"]).await;
    told(&["HEXPIRE rolling 3000 FIELDS 1 f", "HINCRBY rolling f 5"]).await;
    told(&["HSETEX made PX 900 FIELDS 1 f 1", "HINCRBY made f 5", "HPERSIST made FIELDS 1 f"])
        .await;
    told(&["HSET gone f 1 g 2", "HPEXPIRE gone 900 FIELDS 1 f"]).await;
    let at = quiet_second().await;
    fleet.run(&["backup", "mine", "--connect", &address, "--to", &other]).await.expect_code(0);
    told(&["FLUSHALL"]).await;
    kept_until(&fleet, &place, now_ms()).await;
    stop(following).await;
    sleep(Duration::from_millis(ended.saturating_sub(now_ms()))).await;
    let target = cluster(kind, version, 2, 0).await;
    let to = target.addresses()[0].to_string();
    let args = ["restore", "latest", "--at", &at, "--from", &place, "--to", &to];
    fleet.run(&args).await.expect_code(0);
    assert_eq!(same(&fleet, &other, &to).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_redis_end_as_they_would_have() {
    fields_end_as_they_would_have("redis", "8.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_valkey_end_as_they_would_have() {
    fields_end_as_they_would_have("valkey", "9.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_spec_guard_keeps_them() {
    let line = "backup: {to: kept, every: 1h, continuous: true}";
    let fleet = TestFleet::new(&Spec { lines: vec![line], ..Spec::default() });
    fleet.up().await;
    let place = place(&fleet, "kept");
    let guard = fleet.guard().await;
    let writer = Writer::start(fleet.seeds(), 0x2545_F491_4F6C_DD1D);
    writer.work(1_000).await;
    kept_until(&fleet, &place, now_ms()).await;
    let deadline = Instant::now() + TIME_MAX;
    while fleet.status_json().await["guard"]["kept"][CLUSTER]["until_ms"].as_u64() < Some(1) {
        assert!(Instant::now() < deadline, "status says nothing of it");
        sleep(POLL).await;
    }
    writer.work(1_000).await;
    writer.rest().await;
    let at = quiet_second().await;
    let check = self::place(&fleet, "check");
    fleet.run(&["backup", CLUSTER, "--to", &check]).await.expect_code(0);
    // Somebody else acts for a while, and guard goes on with what it had.
    fleet.up().await;
    for address in fleet.seeds() {
        let mut link = Connection::open(address, None, TIME_MAX).await.unwrap();
        // Replicas refuse.
        let _ = call(&mut link, &["FLUSHALL"]).await;
    }
    kept_until(&fleet, &place, now_ms()).await;
    let chains = fs::read_dir(fleet.directory().join("kept").join(CLUSTER).join("stream"));
    assert_eq!(chains.unwrap().count(), 1, "it began anew");
    let ended = fleet.run(&["status"]).await.expect_code(0);
    assert!(ended.stdout.contains("every second until"), "{ended:?}");
    let doctor = fleet.run(&["doctor"]).await;
    assert!(doctor.stdout.contains("kept commands"), "{doctor:?}");
    let args = ["restore", "latest", "--at", &at, "--to", CLUSTER];
    fleet.run(&args).await.expect_code(0);
    assert_eq!(same(&fleet, &check, CLUSTER).await, fleet.keys().await);
    guard.signal(Signal::INT);
    guard.wait().await.expect_code(0);
    writer.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_its_time_goes_and_what_is_missing_is_said() {
    let fleet = TestFleet::empty();
    let place = place(&fleet, "kept");
    let config = ["--repl-diskless-sync-delay", "0"];
    let source = Server::start(&engine("valkey", "8.1").server, &config).await.unwrap();
    let mut link = source.link().await.unwrap();
    let address = source.address.to_string();
    let args = [
        "backup",
        "mine",
        "--connect",
        &address,
        "--to",
        &place,
        "--follow",
        "--segment",
        "200ms",
        "--every",
        "5s",
        "--keep",
        "1",
    ];
    let following = fleet.spawn(&args);
    kept_until(&fleet, &place, now_ms()).await;
    let early = shown(now_ms());
    call(&mut link, &["INCR", "count"]).await.unwrap();
    let stream = fleet.directory().join("kept/mine/stream");
    let segments = || -> Vec<std::path::PathBuf> {
        let chains: Vec<_> = fs::read_dir(&stream).unwrap().collect();
        assert_eq!(chains.len(), 1, "it began anew");
        let files = fs::read_dir(chains[0].as_ref().unwrap().path()).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    };
    let first = segments().remove(0);
    let deadline = Instant::now() + TIME_MAX;
    while first.exists() {
        assert!(Instant::now() < deadline, "old commands stay");
        sleep(POLL).await;
    }
    let at = quiet_second().await;
    kept_until(&fleet, &place, now_ms()).await;
    stop(following).await;
    let target = Server::start(&engine("valkey", "8.1").server, &[]).await.unwrap();
    let to = target.address.to_string();
    let restore = async |at: &str| {
        fleet.run(&["restore", "latest", "--at", at, "--from", &place, "--to", &to]).await
    };
    let ended = restore(&early).await.expect_code(1);
    let words = ended.said();
    assert!(
        words.contains("no backup that is there") || words.contains("were kept up to"),
        "{words}"
    );
    let ended = restore("2100-01-01T00:00:00Z").await.expect_code(1);
    assert!(ended.said().contains("the last moment before is"), "{ended:?}");
    let ended = restore("yesterday").await;
    assert!(ended.said().contains("that is not a time like"), "{ended:?}");
    // A segment is missing.
    let files = segments();
    let missing = &files[files.len() - 2];
    let bytes = fs::read(missing).unwrap();
    fs::remove_file(missing).unwrap();
    let ended = restore(&at).await.expect_code(1);
    assert!(ended.said().contains("commands are missing between segments"), "{ended:?}");
    fs::write(missing, bytes).unwrap();
    restore(&at).await.expect_code(0);
    let mut link = target.link().await.unwrap();
    assert_eq!(call(&mut link, &["GET", "count"]).await.unwrap().as_str(), Some("1"));
}
