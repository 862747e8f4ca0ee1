//! `keyfleet backup` and `restore` on real clusters and servers, undisturbed and disturbed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use keyfleet::admin_client::Connection;
use protocol::{SlotSet, key_slot};
use rustix::process::Signal;
use serde_json::Value as Json;
use tests::{
    azurite::{ACCOUNT, Azurite, CONTAINER},
    bucket::{BUCKET, Bucket, KEY, TOKEN, Trouble},
    cluster::{RawCluster, Shape, call},
    engines::engine,
    fleet::{CLUSTER, Running, Spec, TestFleet},
    server::{POLL, Server, TIME_MAX},
};
use tokio::time::{Instant, sleep};

const KEYS: usize = 30_000;
const VALUE_BYTES: usize = 64;

async fn cluster(kind: &str, version: &str, primaries: usize, replicas: usize) -> RawCluster {
    let server = engine(kind, version).server;
    let config = ["--cluster-allow-replica-migration", "no", "--cluster-node-timeout", "2000"];
    let shape = Shape { server: &server, primaries, replicas, spare: 0, config: &config };
    RawCluster::start(&shape).await.unwrap()
}

/// Servers wait so long before they send, as theirs do by default: time for something to happen.
async fn slow_to_send(cluster: &RawCluster) {
    for index in 0..cluster.nodes.len() {
        let mut link = cluster.link(index).await.unwrap();
        call(&mut link, &["CONFIG", "SET", "repl-diskless-sync-delay", "2"]).await.unwrap();
    }
}

fn dump(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/protocol/tests/dumps").join(name)
}

/// A place for backups in the fleet's directory.
fn place(fleet: &TestFleet) -> String {
    fleet.directory().join("backups").to_str().unwrap().to_owned()
}

/// Keys on a server that is no cluster's.
async fn populate(link: &mut Connection, count: u32) {
    let script = "for i = 1, ARGV[1] do redis.call('SET', 'key:' .. i, i) end";
    call(link, &["EVAL", script, "0", &count.to_string()]).await.unwrap();
}

/// The mark of a backup that is being written.
async fn wait_for_mark(place: &str, cluster: &str) -> PathBuf {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let found = fs::read_dir(Path::new(place).join(cluster)).into_iter().flatten();
        let mut marks = found.map(|entry| entry.unwrap().path().join("in-progress"));
        if let Some(mark) = marks.find(|mark| mark.exists()) {
            return mark;
        }
        assert!(Instant::now() < deadline, "no backup is begun");
        sleep(POLL).await;
    }
}

/// Writes `written:0`, `written:1` … to each primary that has slots, each after the answer to the one
/// before.
struct Writers {
    stop: Arc<AtomicBool>,
    /// Of each primary, how many were answered.
    answered: Vec<Arc<AtomicU64>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    async fn start(cluster: &RawCluster, primaries: usize) -> Self {
        let owners = cluster.owners().await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Self { stop, answered: Vec::new(), tasks: Vec::new() };
        for index in 0..primaries {
            let tag = tag(&owners, index);
            let mut link = cluster.link(index).await.unwrap();
            let (stop, answered) = (Arc::clone(&writers.stop), Arc::new(AtomicU64::new(0)));
            writers.answered.push(Arc::clone(&answered));
            writers.tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let number = answered.load(Ordering::Relaxed);
                    call(&mut link, &["SET", &written(&tag, number), "x"]).await.unwrap();
                    answered.store(number + 1, Ordering::Relaxed);
                }
            }));
        }
        writers
    }

    fn answered(&self) -> Vec<u64> {
        self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    async fn end(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

fn written(tag: &str, number: u64) -> String {
    format!("written:{{{tag}}}:{number}")
}

/// A hash tag whose slot this node owns.
fn tag(owners: &[usize], index: usize) -> String {
    let mut tags = (0..).map(|number: u32| number.to_string());
    tags.find(|tag| owners[usize::from(key_slot(tag.as_bytes()).number())] == index).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_then_into_another_shape_and_engine() {
    let pairs = [
        (("redis", "7.0"), ("valkey", "9.1"), "redis-7.0.15.rdb"),
        (("valkey", "9.1"), ("redis", "8.0"), "valkey-9.1.2.rdb"),
    ];
    for ((kind, version), (to_kind, to_version), file) in pairs {
        let fleet = TestFleet::empty();
        let place = place(&fleet);
        let source = cluster(kind, version, 3, 1).await;
        source.fill(KEYS, VALUE_BYTES).await.unwrap();
        let address = source.addresses()[0].to_string();
        // All types and encodings; those of other databases are named, which is not what counts here.
        let file = dump(file);
        let args = ["import", file.to_str().unwrap(), "--to", &address, "--db", "0"];
        fleet.run(&args).await;
        let writers = Writers::start(&source, 3).await;
        let deadline = Instant::now() + TIME_MAX;
        while writers.answered().iter().any(|count| *count < 100) {
            assert!(Instant::now() < deadline, "nothing is written");
            sleep(POLL).await;
        }
        let before = writers.answered();
        let args = ["backup", "mine", "--connect", &address, "--to", &place, "--output", "json"];
        let taken = fleet.run(&args).await.expect_code(0).json();
        let after = writers.end().await;
        let shards = taken["shards"].as_array().unwrap();
        assert_eq!(shards.len(), 3, "{taken}");
        for shard in shards {
            assert_eq!(shard["from_replica"], true, "{taken}");
        }
        let listed = fleet.run(&["backups", "--from", &place, "--output", "json"]).await.json();
        assert_eq!(listed[0]["id"], taken["id"], "{listed}");
        assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
        let id = taken["id"].as_str().unwrap();
        fleet.run(&["backup", "verify", id, "--from", &place]).await.expect_code(0);

        let target = cluster(to_kind, to_version, 5, 0).await;
        let to = target.addresses()[3].to_string();
        let args =
            ["restore", "latest", "--from", &place, "--to", &to, "--verify", "--output", "json"];
        let ended = fleet.run(&args).await;
        let report = ended.json();
        assert_eq!(report["verified"]["different"], 0, "{ended:?}");
        let expired = report["read"]["expired"].as_u64().unwrap();
        let held = target.keys(0..5).await.unwrap();
        assert_eq!(report["verified"]["same"], held, "{ended:?}");
        let there: u64 = shards
            .iter()
            .flat_map(|shard| shard["tally"]["types"].as_object().unwrap().values())
            .map(|count| count["keys"].as_u64().unwrap())
            .sum();
        assert_eq!(held + expired, there, "{ended:?}");
        target.check_filled(KEYS, VALUE_BYTES).await.unwrap();
        // Of each shard, one instant: what was answered before is there, and no gaps after.
        let owners = source.owners().await.unwrap();
        let new_owners = target.owners().await.unwrap();
        for index in 0..3 {
            let tag = tag(&owners, index);
            let owner = new_owners[usize::from(key_slot(tag.as_bytes()).number())];
            let mut link = target.link(owner).await.unwrap();
            let mut count = 0;
            let mut there = Vec::new();
            for number in 0..=after[index] {
                let found = call(&mut link, &["EXISTS", &written(&tag, number)]).await.unwrap();
                there.push(found.as_integer() == Some(1));
                count += u64::from(found.as_integer() == Some(1));
            }
            let first_missing = there.iter().position(|there| !there).unwrap() as u64;
            assert_eq!(first_missing, count, "a later write without an earlier one");
            assert!(
                (before[index]..=after[index]).contains(&count),
                "{count} {before:?} {after:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_goes_on() {
    const MANY: usize = 300_000;
    let source = cluster("redis", "7.0", 3, 0).await;
    source.fill(MANY, VALUE_BYTES).await.unwrap();
    let fleet = TestFleet::empty();
    let place = place(&fleet);
    let address = source.addresses()[0].to_string();
    let args = ["backup", "mine", "--connect", &address, "--to", &place];
    fleet.run(&args).await.expect_code(0);
    let target = cluster("valkey", "9.1", 5, 0).await;
    let to = target.addresses()[0].to_string();
    let args = ["restore", "latest", "--from", &place, "--to", &to, "--verify"];
    // Before anything was noted of how far it is, and later.
    for share in [50, 3, 2] {
        let running = fleet.spawn(&args);
        while target.keys(0..5).await.unwrap() < (MANY / share) as u64 {
            sleep(POLL).await;
        }
        let ended = running.kill9().await;
        assert_eq!(ended.code, None, "it was over before it was killed: {ended:?}");
    }
    let ended = fleet.run(&args).await.expect_code(0);
    assert!(ended.stderr.contains("Going on at"), "{ended:?}");
    assert_eq!(target.keys(0..5).await.unwrap(), MANY as u64);
    target.check_filled(MANY, VALUE_BYTES).await.unwrap();
}

/// Where to, and a backup of a cluster that has begun and waits for its servers.
async fn begin(fleet: &TestFleet, source: &RawCluster) -> (String, Running) {
    slow_to_send(source).await;
    let place = place(fleet);
    let address = source.addresses()[1].to_string();
    let args = ["backup", "mine", "--connect", &address, "--to", &place, "--output", "json"];
    let running = fleet.spawn(&args);
    wait_for_mark(&place, "mine").await;
    (place, running)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_dies_meanwhile() {
    let mut source = cluster("redis", "7.0", 3, 1).await;
    source.fill(KEYS, VALUE_BYTES).await.unwrap();
    let fleet = TestFleet::empty();
    let (place, running) = begin(&fleet, &source).await;
    source.kill(0).unwrap();
    let taken = running.wait().await.expect_code(0).json();
    let shards = taken["shards"].as_array().unwrap();
    let slots: Vec<&Json> = shards.iter().map(|shard| &shard["slots"]).collect();
    assert_eq!(slots, ["0-5460", "5461-10921", "10922-16383"], "{taken}");
    assert_eq!(shards[0]["owner"], source.nodes[3].addr.id.to_string(), "{taken}");
    assert_eq!(
        taken["shards"][0]["tally"]["types"]["string"]["keys"].as_u64().map(|keys| keys > 9_000),
        Some(true),
        "{taken}"
    );
    let target = cluster("redis", "7.0", 3, 0).await;
    let to = target.addresses()[0].to_string();
    fleet.run(&["restore", "latest", "--from", &place, "--to", &to]).await.expect_code(0);
    target.check_filled(KEYS, VALUE_BYTES).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_move_meanwhile() {
    let source = cluster("valkey", "9.1", 3, 0).await;
    source.fill(KEYS, VALUE_BYTES).await.unwrap();
    let fleet = TestFleet::empty();
    let (place, running) = begin(&fleet, &source).await;
    source.move_slots(0, 2, SlotSet::range(0, 2_000)).await.unwrap();
    let taken = running.wait().await.expect_code(0).json();
    let slots: Vec<&Json> =
        taken["shards"].as_array().unwrap().iter().map(|shard| &shard["slots"]).collect();
    assert_eq!(slots, ["0-2000,10922-16383", "2001-5460", "5461-10921"], "{taken}");
    let target = cluster("valkey", "9.1", 3, 0).await;
    let to = target.addresses()[0].to_string();
    fleet.run(&["restore", "latest", "--from", &place, "--to", &to]).await.expect_code(0);
    target.check_filled(KEYS, VALUE_BYTES).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_one_is_no_backup_and_cleared_away_later() {
    let server =
        Server::start(&engine("redis", "7.0").server, &["--repl-diskless-sync-delay", "2"])
            .await
            .unwrap();
    let mut link = server.link().await.unwrap();
    populate(&mut link, 10_000).await;
    let fleet = TestFleet::empty();
    let place = place(&fleet);
    let address = server.address.to_string();
    let args = ["backup", "mine", "--connect", &address, "--to", &place];
    let running = fleet.spawn(&args);
    let mark = wait_for_mark(&place, "mine").await;
    running.kill9().await;
    let listed = fleet.run(&["backups", "--from", &place]).await.expect_code(0);
    assert_eq!(listed.stdout, "", "{listed:?}");
    let ended = fleet.run(&["restore", "latest", "--from", &place, "--to", &address]).await;
    assert!(ended.expect_code(1).stderr.contains("no backup latest"));
    call(&mut link, &["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await.unwrap();
    // It may still be at work.
    fleet.run(&args).await.expect_code(0);
    assert!(mark.exists());
    let hour_ago = SystemTime::now() - Duration::from_secs(3_600);
    fs::File::options().write(true).open(&mark).unwrap().set_modified(hour_ago).unwrap();
    fleet.run(&args).await.expect_code(0);
    assert!(!mark.parent().unwrap().exists());
    // Asked to stop, it clears away itself.
    call(&mut link, &["CONFIG", "SET", "repl-diskless-sync-delay", "2"]).await.unwrap();
    let running = fleet.spawn(&args);
    let mark = wait_for_mark(&place, "mine").await;
    running.signal(Signal::INT);
    let ended = running.wait().await.expect_code(1);
    assert!(ended.said().contains("stopped before the end"), "{ended:?}");
    assert!(!mark.parent().unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn old_ones_go_and_damaged_ones_are_found() {
    let server = Server::start(&engine("redis", "6.2").server, &[]).await.unwrap();
    let mut link = server.link().await.unwrap();
    populate(&mut link, 1_000).await;
    let fleet = TestFleet::empty();
    let place = place(&fleet);
    let address = server.address.to_string();
    let mut ids = Vec::new();
    for round in 0..4 {
        call(&mut link, &["SET", "round", &round.to_string()]).await.unwrap();
        let args = ["backup", "--connect", &address, "--to", &place, "--keep", "2", "-o", "json"];
        let taken = fleet.run(&args).await.expect_code(0).json();
        ids.push(taken["id"].as_str().unwrap().to_owned());
        let gone: Vec<&str> =
            taken["deleted"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
        let expected: Vec<&str> = ids.iter().rev().skip(2).take(1).map(String::as_str).collect();
        assert_eq!(gone, expected);
    }
    let listed = fleet.run(&["backups", "--from", &place, "-o", "json"]).await.json();
    let listed: Vec<&str> =
        listed.as_array().unwrap().iter().map(|each| each["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids[2..]);
    // A filled target is not written to by mistake.
    let restore = ["restore", "latest", "--from", &place, "--to", &address];
    call(&mut link, &["SET", "round", "later"]).await.unwrap();
    let ended = fleet.run(&restore).await.expect_code(1);
    assert!(ended.said().contains("holds 1,001 keys already"), "{ended:?}");
    let ended = fleet.run(&[&restore[..], &["--yes"]].concat()).await.expect_code(1);
    assert!(ended.said().contains("\"round\": is there already"), "{ended:?}");
    fleet.run(&[&restore[..], &["--replace"]].concat()).await.expect_code(0);
    let round = call(&mut link, &["GET", "round"]).await.unwrap();
    assert_eq!(round.as_str(), Some("3"));
    fleet
        .run(&["restore", &ids[2], "--from", &place, "--to", &address, "--replace"])
        .await
        .expect_code(0);
    let round = call(&mut link, &["GET", "round"]).await.unwrap();
    assert_eq!(round.as_str(), Some("2"));

    let file = Path::new(&place).join(address.replace(':', "-")).join(&ids[3]).join("0001.rdb");
    let good = fs::read(&file).unwrap();
    let check = async |bytes: &[u8], expected: &str| {
        fs::write(&file, bytes).unwrap();
        let ended = fleet.run(&["backup", "verify", "latest", "--from", &place]).await;
        let ended = ended.expect_code(1);
        assert!(ended.said().contains(expected), "{expected}: {ended:?}");
    };
    check(&good[..good.len() - 1], "bytes, and should have").await;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    check(&flipped, "damaged").await;
    // Right in itself, for it has no checksum any more; and not what was written.
    let mut other = good.clone();
    let at = other.windows(5).position(|window| window == b"round").unwrap();
    other[at] = b'f';
    let checksum = other.len() - 8;
    other[checksum..].fill(0);
    check(&other, "SHA-256").await;
    let ended = fleet.run(&[&restore[..], &["--replace"]].concat()).await;
    assert!(ended.said().contains("SHA-256"), "{ended:?}");
    fs::remove_file(&file).unwrap();
    let ended = fleet.run(&["backup", "verify", "latest", "--from", &place]).await;
    assert!(ended.expect_code(1).said().contains("is not there"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_the_fleet_by_its_name() {
    let fleet = TestFleet::new(&Spec::default());
    fleet.up().await;
    let place = place(&fleet);
    let file = dump("redis-6.2.5.rdb");
    fleet.run(&["import", file.to_str().unwrap(), "--to", CLUSTER]).await;
    let held = fleet.keys().await;
    assert!(held > 0);
    let args = ["backup", CLUSTER, "--to", &place, "--output", "json"];
    let taken = fleet.run(&args).await.expect_code(0).json();
    let spec = fs::read_to_string(fleet.directory().join("fleet.yaml")).unwrap();
    assert_eq!(taken["spec"], spec, "{taken}");
    let args = ["restore", "latest", "--from", &place, "--to", CLUSTER, "--yes", "-o", "json"];
    let report = fleet.run(&args).await.expect_code(0).json();
    assert_eq!(report["existing_same"], held, "{report}");
    let ended = fleet.run(&["backup", "mian", "--to", &place]).await.expect_code(1);
    assert!(ended.said().contains("did you mean"), "{ended:?}");
}

/// A fleet's directory whose commands can use the bucket.
fn with_keys(bucket: &Bucket) -> TestFleet {
    let mut fleet = TestFleet::empty();
    fleet.set_variable("AWS_ACCESS_KEY_ID", KEY.0);
    fleet.set_variable("AWS_SECRET_ACCESS_KEY", KEY.1);
    fleet.set_variable("AWS_REGION", "us-east-1");
    fleet.set_variable("AWS_ENDPOINT_URL", &format!("http://{}", bucket.address));
    fleet
}

/// A server whose file has several parts.
async fn filled() -> (Server, Connection) {
    let config = ["--rdbcompression", "no"];
    let server = Server::start(&engine("redis", "7.0").server, &config).await.unwrap();
    let mut link = server.link().await.unwrap();
    populate(&mut link, 1_000).await;
    let script = "for i = 1, 20 do redis.call('SET', 'large:' .. i, string.rep(i, 500000)) end";
    call(&mut link, &["EVAL", script, "0"]).await.unwrap();
    (server, link)
}

#[tokio::test(flavor = "multi_thread")]
async fn into_a_bucket_and_back() {
    let bucket = Bucket::start().await.unwrap();
    there_and_back(&with_keys(&bucket), &format!("s3://{BUCKET}/some/where")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn into_googles_kind_of_bucket_and_back() {
    let bucket = Bucket::like_googles().await.unwrap();
    let mut fleet = TestFleet::empty();
    fleet.set_variable("GOOGLE_BASE_URL", &format!("http://{}", bucket.address));
    fleet.set_variable("GOOGLE_BEARER_TOKEN", TOKEN);
    there_and_back(&fleet, &format!("gs://{BUCKET}/some/where")).await;
    fleet.set_variable("GOOGLE_BEARER_TOKEN", "another");
    let ended = fleet.run(&["backups", "--from", &format!("gs://{BUCKET}")]).await.expect_code(1);
    assert!(ended.said().contains("check the key: GOOGLE_APPLICATION_CREDENTIALS"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn into_azures_kind_of_bucket_and_back() {
    let azurite = Azurite::start().await.unwrap();
    let mut fleet = TestFleet::empty();
    let endpoint = format!("http://{}/{}", azurite.address, ACCOUNT.0);
    fleet.set_variable("AZURE_STORAGE_ENDPOINT", &endpoint);
    fleet.set_variable("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.0);
    fleet.set_variable("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT.1);
    there_and_back(&fleet, &format!("az://{CONTAINER}/some/where")).await;
    let refused = async |fleet: &TestFleet, place: &str, expected: &str| {
        let ended = fleet.run(&["backups", "--from", place]).await.expect_code(1);
        assert!(ended.said().contains(expected), "{expected}: {ended:?}");
    };
    refused(&fleet, "az://no-such-one", "make it, or check its name").await;
    let place = format!("az://{CONTAINER}");
    fleet.set_variable("AZURE_STORAGE_ACCOUNT_KEY", "YW5vdGhlcg==");
    refused(&fleet, &place, "check the key: AZURE_STORAGE_ACCOUNT_NAME").await;
    fleet.set_variable("AZURE_STORAGE_ACCOUNT_KEY", "no base64");
    refused(&fleet, &place, "check the key: AZURE_STORAGE_ACCOUNT_NAME").await;
    drop(azurite);
    fleet.set_variable("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT.1);
    refused(&fleet, &place, "is it there").await;
}

/// Backups at a place: listed, read back, restored, imported from, and deleted when they had their time.
async fn there_and_back(fleet: &TestFleet, place: &str) {
    let (server, mut link) = filled().await;
    let address = server.address.to_string();
    let args =
        ["backup", "mine", "--connect", &address, "--to", place, "--keep", "1", "-o", "json"];
    let first = fleet.run(&args).await.expect_code(0).json();
    let taken = fleet.run(&args).await.expect_code(0).json();
    assert_eq!(taken["deleted"][0], first["id"], "{taken}");
    let listed = fleet.run(&["backups", "--from", place, "-o", "json"]).await;
    let listed = listed.expect_code(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["keys"], 1_020, "{listed}");
    fleet.run(&["backup", "verify", "latest", "--from", place]).await.expect_code(0);
    call(&mut link, &["FLUSHALL"]).await.unwrap();
    let args = ["restore", "latest", "--from", place, "--to", &address, "--verify", "-o", "json"];
    let report = fleet.run(&args).await.expect_code(0).json();
    assert_eq!(report["verified"]["same"], 1_020, "{report}");
    // Its file is an RDB file like others.
    let id = taken["id"].as_str().unwrap();
    let file = format!("{place}/mine/{id}/0001.rdb");
    fleet.run(&["analyze", &file]).await.expect_code(0);
    call(&mut link, &["FLUSHALL"]).await.unwrap();
    fleet.run(&["import", &format!("{place}/mine/{id}"), "--to", &address]).await.expect_code(0);
    assert_eq!(call(&mut link, &["DBSIZE"]).await.unwrap().as_integer(), Some(1_020));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_trouble_holds_no_half_backup() {
    let bucket = Bucket::start().await.unwrap();
    let mut fleet = with_keys(&bucket);
    let (server, _link) = filled().await;
    let place = format!("s3://{BUCKET}");
    let address = server.address.to_string();
    let args = ["backup", "mine", "--connect", &address, "--to", &place];
    fleet.run(&args).await.expect_code(0);
    let good = bucket.files();
    let check = async |fleet: &TestFleet, to: &str, expected: &[&str]| {
        let ended = fleet.run(&["backup", "mine", "--connect", &address, "--to", to]).await;
        let said = ended.expect_code(1).said();
        for expected in expected {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        assert_eq!(bucket.files(), good, "{expected:?}: something is left");
    };
    check(&fleet, "s3://no-such-bucket", &["NoSuchBucket", "make it, or check its name"]).await;
    // Before anything is written; then the mark is there, and an upload begun, and a part written.
    for good in [0, 2, 3] {
        bucket.trouble(Some((Trouble::Full, good)));
        check(&fleet, &place, &["cannot write s3://fleet-backups", "it is full"]).await;
        bucket.trouble(Some((Trouble::Cut, good)));
        check(&fleet, &place, &["cannot write s3://fleet-backups", "is it there"]).await;
    }
    bucket.trouble(Some((Trouble::Silent, 2)));
    fleet.set_variable("AWS_TIMEOUT", "1s");
    check(&fleet, &place, &["cannot write s3://fleet-backups", "fast enough"]).await;
    bucket.trouble(None);
    fleet.set_variable("AWS_TIMEOUT", "30s");
    fleet.set_variable("AWS_SECRET_ACCESS_KEY", "another");
    check(&fleet, &place, &["SignatureDoesNotMatch", "check the key"]).await;
    let ended = fleet.run(&["backups", "--from", &place]).await.expect_code(1);
    assert!(ended.said().contains("check the key"), "{ended:?}");
    fleet.set_variable("AWS_SECRET_ACCESS_KEY", KEY.1);
    let listed =
        fleet.run(&["backups", "--from", &place, "-o", "json"]).await.expect_code(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    fleet.run(&args).await.expect_code(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_the_spec_guard_takes_them() {
    let line = "backup: {to: kept, every: 1h, keep: 2}";
    let fleet = TestFleet::new(&Spec { lines: vec![line], ..Spec::default() });
    fleet.up().await;
    let file = dump("redis-6.2.5.rdb");
    fleet.run(&["import", file.to_str().unwrap(), "--to", CLUSTER]).await;
    let record = fleet.directory().join(".keyfleet/backups").join(CLUSTER);
    let read = || -> Json {
        let text = fs::read_to_string(&record).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let wait = async |what: &str, holds: &dyn Fn(&Json) -> bool| {
        let deadline = Instant::now() + TIME_MAX;
        while !holds(&read()) {
            assert!(Instant::now() < deadline, "{what}: {}", read());
            sleep(POLL).await;
        }
        read()
    };
    // As if the last one was a period and a while ago.
    let age = || {
        let mut record_then = read();
        record_then["last"]["started_ms"] = Json::from(keyfleet::observe::now_ms() - 4_000_000);
        record_then["failed"] = Json::Null;
        fs::write(&record, record_then.to_string()).unwrap();
    };
    let guard = fleet.guard().await;
    let first = wait("the first one", &|record| record["last"]["id"].is_string()).await;
    fleet.run(&["backup", "verify", "latest"]).await.expect_code(0);
    let held = fleet.keys().await;
    assert!(first["last"]["keys"].as_u64() >= Some(held), "{first}");
    let status = fleet.status_json().await;
    assert_eq!(status["guard"]["backups"][CLUSTER]["last"]["id"], first["last"]["id"], "{status}");
    // One that was missed is made up for once, whatever was missed.
    age();
    let second = wait("the second", &|record| record["last"]["id"] != first["last"]["id"]).await;
    let listed = fleet.run(&["backups", "-o", "json"]).await.expect_code(0).json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
    // The place is gone: that is seen, and the good ones stay what they were.
    let kept = fleet.directory().join("kept");
    fs::rename(&kept, fleet.directory().join("away")).unwrap();
    fs::write(&kept, "no directory").unwrap();
    age();
    let failed = wait("the failure", &|record| record["failed"]["why"].is_string()).await;
    assert_eq!(failed["last"]["id"], second["last"]["id"], "{failed}");
    let status = fleet.run(&["status"]).await.expect_code(0);
    assert!(status.stdout.contains("failed"), "{status:?}");
    let doctor = fleet.run(&["doctor"]).await;
    assert!(doctor.stdout.contains("one failed"), "{doctor:?}");
    guard.signal(Signal::INT);
    guard.wait().await.expect_code(0);
}
