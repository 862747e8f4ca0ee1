//! Many commands into a live cluster while it changes: each is done.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use keyfleet::mover::load::{LoadError, Loader, Options, Target};
use protocol::{SlotSet, key_slot, resp::encode_command};
use tests::{
    cluster::{RawCluster, Shape, call},
    engines::engine,
    relay::Relay,
    server::Server,
};
use tokio::task::{JoinHandle, spawn_blocking};

const KEYS: usize = 300_000;
const VALUE_BYTES: usize = 64;

async fn cluster(replicas: usize, config: &[&str]) -> RawCluster {
    let server = engine("redis", "7.0").server;
    let mut all = vec!["--cluster-allow-replica-migration", "no"];
    all.extend(config);
    let shape = Shape { server: &server, primaries: 3, replicas, spare: 0, config: &all };
    RawCluster::start(&shape).await.unwrap()
}

/// The keys of `RawCluster::fill`, fed by a thread of its own; `fed` counts them.
fn feed(
    loader: &Loader,
    count: usize,
    fed: &'static AtomicUsize,
) -> JoinHandle<Result<(), LoadError>> {
    let mut feeder = loader.feeder();
    spawn_blocking(move || {
        for number in 0..count {
            let key = format!("key:{number}");
            let value = format!("{key:.<VALUE_BYTES$}");
            let slot = key_slot(key.as_bytes());
            feeder.push(slot, number as u64, |out| encode_command(["SET", &key, &value], out))?;
            fed.store(number, Ordering::Relaxed);
        }
        feeder.barrier()?;
        feeder.end(count as u64)
    })
}

async fn wait_for(fed: &AtomicUsize, count: usize) {
    while fed.load(Ordering::Relaxed) < count {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn open(cluster: &RawCluster, options: Options) -> Loader {
    Loader::open(Target::Cluster(cluster.addresses()), options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_slots_move() {
    static FED: AtomicUsize = AtomicUsize::new(0);
    let cluster = cluster(0, &[]).await;
    let loader = open(&cluster, Options::default()).await;
    let feeding = feed(&loader, KEYS, &FED);
    wait_for(&FED, KEYS / 20).await;
    cluster.move_slots(0, 1, SlotSet::range(0, 3_000)).await.unwrap();
    feeding.await.unwrap().unwrap();
    let repeated = loader.progress().repeated.load(Ordering::Relaxed);
    assert!(repeated > 0, "the move was over before it mattered");
    loader.finish().await.unwrap();
    cluster.check_filled(KEYS, VALUE_BYTES).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_failover() {
    static FED: AtomicUsize = AtomicUsize::new(0);
    let config = ["--cluster-node-timeout", "2000"];
    let mut cluster = cluster(1, &config).await;
    let loader = open(&cluster, Options::default()).await;
    let feeding = feed(&loader, KEYS, &FED);
    wait_for(&FED, KEYS / 20).await;
    // What was answered must be at the replica before its primary dies: that is not this test's.
    let mut link = cluster.link(0).await.unwrap();
    call(&mut link, &["CLIENT", "PAUSE", "60000", "WRITE"]).await.unwrap();
    call(&mut link, &["WAIT", "1", "10000"]).await.unwrap();
    cluster.kill(0).unwrap();
    feeding.await.unwrap().unwrap();
    let before = loader.low_water();
    assert!(before <= KEYS as u64);
    loader.finish().await.unwrap();
    let mut keys = 0;
    for index in 1..4 {
        let mut link = cluster.link(index).await.unwrap();
        keys += call(&mut link, &["DBSIZE"]).await.unwrap().as_integer().unwrap();
    }
    assert_eq!(keys, i64::try_from(KEYS).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_waited_for_then_given_up() {
    static FED: AtomicUsize = AtomicUsize::new(0);
    let server =
        Server::start(&engine("redis", "7.0").server, &["--maxmemory", "3mb"]).await.unwrap();
    let options = Options { patience: Duration::from_secs(1), ..Options::default() };
    let target = || Target::Server(server.address);
    let loader = Loader::open(target(), options).await.unwrap();
    let feeding = feed(&loader, KEYS, &FED);
    let error = feeding.await.unwrap().unwrap_err();
    let LoadError::Refused { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.code, "OOM");
    // What was not answered before it gave up doesn't count as done.
    let mut link = server.link().await.unwrap();
    let size = call(&mut link, &["DBSIZE"]).await.unwrap().as_integer().unwrap();
    assert!(loader.low_water() <= u64::try_from(size).unwrap());
    assert!(loader.finish().await.is_err());

    let loader = Loader::open(target(), Options::default()).await.unwrap();
    FED.store(0, Ordering::Relaxed);
    let feeding = feed(&loader, KEYS, &FED);
    while loader.progress().waiting_for().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut link = server.link().await.unwrap();
    call(&mut link, &["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    feeding.await.unwrap().unwrap();
    loader.finish().await.unwrap();
    let size = call(&mut link, &["DBSIZE"]).await.unwrap();
    assert_eq!(size.as_integer(), i64::try_from(KEYS).ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_with_their_keys() {
    let server = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let loader = Loader::open(Target::Server(server.address), Options::default()).await.unwrap();
    let mut feeder = loader.feeder();
    let fed = spawn_blocking(move || {
        let commands: [&[&str]; 4] = [
            &["SET", "a", "1"],
            &["LPUSH", "a", "x"],
            &["RESTORE", "b", "0", "junk"],
            &["GET", "a"],
        ];
        for words in commands {
            feeder.push(key_slot(b"a"), 0, |out| encode_command(words, out))?;
        }
        feeder.barrier()
    });
    fed.await.unwrap().unwrap();
    let refusals = loader.progress().refusals();
    let told: Vec<_> =
        refusals.iter().map(|one| (one.key.as_slice(), one.error.code.as_str())).collect();
    assert_eq!(told, [(&b"a"[..], "WRONGTYPE"), (b"b", "ERR")]);
    assert_eq!(loader.progress().done.load(Ordering::Relaxed), 2);
    loader.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_waited_for_then_given_up() {
    static FED: AtomicUsize = AtomicUsize::new(0);
    let server = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let relay = Relay::start(server.address).await.unwrap();
    let options = Options { patience: Duration::from_secs(6), ..Options::default() };
    let target = || Target::Server(relay.address);
    let loader = Loader::open(target(), options.clone()).await.unwrap();
    let feeding = feed(&loader, KEYS, &FED);
    wait_for(&FED, KEYS / 20).await;
    relay.hold();
    while loader.progress().waiting_for().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    relay.release();
    feeding.await.unwrap().unwrap();
    loader.finish().await.unwrap();
    let mut link = server.link().await.unwrap();
    let size = call(&mut link, &["DBSIZE"]).await.unwrap();
    assert_eq!(size.as_integer(), i64::try_from(KEYS).ok());

    let loader = Loader::open(target(), options).await.unwrap();
    relay.hold();
    let feeding = feed(&loader, KEYS, &FED);
    let error = feeding.await.unwrap().unwrap_err();
    assert!(matches!(error, LoadError::Away { .. }), "{error}");
}
