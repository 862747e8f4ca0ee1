//! Clients of the proxy while the cluster behind it changes.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use keyfleet::{
    engines::EngineBinary,
    mover::slots::{SlotMove, move_slots},
};
use protocol::{Slot, SlotSet, engine::AtomicSlots};
use tests::{
    cluster::{RawCluster, Shape, call},
    engines::engine,
    pipelines::{Pipelines, Seen},
    proxy::Front,
};
use tokio::{process::Command, time::sleep};

const TIME_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const CLIENTS: usize = 4;

async fn cluster(
    kind: &str,
    version: &str,
    replicas: usize,
    spare: usize,
) -> (RawCluster, EngineBinary) {
    let binary = engine(kind, version);
    let config = ["--cluster-allow-replica-migration", "no", "--cluster-node-timeout", "1500"];
    let shape = Shape { server: &binary.server, primaries: 3, replicas, spare, config: &config };
    (RawCluster::start(&shape).await.unwrap(), binary)
}

/// Waits until clients got so many more replies.
async fn serve(clients: &Pipelines, replies: u64) {
    let wanted = clients.replies() + replies;
    let deadline = Instant::now() + TIME_MAX;
    while clients.replies() < wanted {
        assert!(Instant::now() < deadline, "clients get no replies");
        sleep(POLL).await;
    }
}

/// Nothing was seen of it.
fn check_unseen(seen: &Seen) {
    assert_eq!((&seen.wrong, &seen.early), (&vec![], &vec![]));
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert!(seen.undone.is_empty(), "{:?}", seen.undone);
    assert!(seen.replies > 20_000, "{} replies prove nothing", seen.replies);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handovers_are_not_seen() {
    let (cluster, _) = cluster("redis", "7.0", 1, 0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let clients = Pipelines::start(front.address, CLIENTS, 1);
    serve(&clients, 10_000).await;
    for replica in 3..6 {
        cluster.hand_over(replica).await.unwrap();
        serve(&clients, 10_000).await;
        cluster.wait_calm().await.unwrap();
    }
    check_unseen(&clients.stop().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moving_slots_are_not_seen() {
    let (cluster, binary) = cluster("redis", "7.0", 0, 0).await;
    let front = Front::start(&cluster.addresses(), 2).unwrap();
    let clients = Pipelines::start(front.address, CLIENTS, 2);
    serve(&clients, 10_000).await;
    for (from, to, slots) in
        [(0, 1, SlotSet::range(0, 1_500)), (2, 0, SlotSet::range(12_000, 13_500))]
    {
        cluster.move_slots(from, to, slots).await.unwrap();
        serve(&clients, 5_000).await;
    }
    let [from, to] = [1, 2].map(|index: usize| cluster.nodes[index].addr.id.to_string());
    let address = cluster.nodes[0].addr.address.to_string();
    let reshard = Command::new(binary.cli.unwrap())
        .args(["--cluster", "reshard", &address, "--cluster-from", &from, "--cluster-to", &to])
        .args(["--cluster-slots", "1500", "--cluster-yes"])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(reshard.status.success(), "{}", String::from_utf8_lossy(&reshard.stdout));
    serve(&clients, 5_000).await;
    check_unseen(&clients.stop().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_join_and_leave_are_not_seen() {
    let (mut cluster, _) = cluster("redis", "7.0", 0, 1).await;
    let front = Front::start(&cluster.addresses()[..3], 1).unwrap();
    let clients = Pipelines::start(front.address, CLIENTS, 3);
    serve(&clients, 5_000).await;
    // The fourth comes; the first goes, which the proxy was started with.
    cluster.move_slots(0, 3, SlotSet::range(0, 2_700)).await.unwrap();
    serve(&clients, 5_000).await;
    cluster.move_slots(0, 1, SlotSet::range(2_701, 5_460)).await.unwrap();
    // It isn't asked any more when it goes.
    serve(&clients, 5_000).await;
    let gone = cluster.nodes[0].addr.id.to_string();
    for index in 1..4 {
        let mut link = cluster.link(index).await.unwrap();
        call(&mut link, &["CLUSTER", "FORGET", &gone]).await.unwrap();
    }
    cluster.kill(0).unwrap();
    serve(&clients, 10_000).await;
    check_unseen(&clients.stop().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_at_once_are_not_seen() {
    let (cluster, _) = cluster("valkey", "9.1", 0, 0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let clients = Pipelines::start(front.address, CLIENTS, 4);
    serve(&clients, 5_000).await;
    for (from, to, slots) in [
        (0, 1, SlotSet::range(0, 3_000)),
        (1, 0, SlotSet::range(1_000, 4_000)),
        (0, 2, SlotSet::range(0, 500)),
    ] {
        let slots = slots.intersection(&cluster.owned(from).await.unwrap());
        let atomic = AtomicSlots::MigrateSlots;
        let job = SlotMove { atomic, ..cluster.slot_move(from, to, slots) };
        move_slots(&job, |_| ()).await.unwrap();
        serve(&clients, 10_000).await;
    }
    check_unseen(&clients.stop().unwrap());
}

/// What was acknowledged so shortly before a primary died may not have reached its replica.
const UNREPLICATED: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_dies_costs_honest_errors_only() {
    let (mut cluster, _) = cluster("redis", "7.0", 1, 0).await;
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let clients = Pipelines::start(front.address, CLIENTS, 5);
    serve(&clients, 10_000).await;
    let killed = Instant::now();
    cluster.kill(0).unwrap();
    let slot = Slot::new(0).unwrap();
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let view = cluster.view(1).await.unwrap();
        let owner = view.rows.iter().find(|row| row.slots.contains(slot)).unwrap();
        if owner.id == cluster.nodes[3].addr.id {
            break;
        }
        assert!(Instant::now() < deadline, "no new primary");
        sleep(POLL).await;
    }
    serve(&clients, 20_000).await;
    let seen = clients.stop().unwrap();
    // Reads that a node refused may be executed after a write that was sent after them.
    assert_eq!(seen.wrong, Vec::<String>::new());
    for (error, count) in &seen.errors {
        let honest = ["may have been executed", "Connection ", "CLUSTERDOWN", "Host is down"];
        assert!(honest.iter().any(|part| error.contains(part)), "{count} times {error}");
    }
    for (acknowledged, what) in &seen.undone {
        assert!(*acknowledged + UNREPLICATED > killed, "{what}");
    }
    assert!(seen.replies > 20_000);
}
