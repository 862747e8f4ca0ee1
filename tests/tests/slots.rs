//! Slots move with their keys while a client writes, and what a move left open is closed.

use std::{process::Stdio, time::Duration};

use fleet::step::RepairCase;
use keyfleet::{
    admin_client::Login,
    mover::{
        NodeAddr,
        repair::{RepairError, SlotRepair, repair_slots},
        slots::{Fault, Moved, SlotMove, Way, move_slots},
    },
    secrets::Secret,
};
use protocol::{ClusterNodes, Slot, SlotSet, engine::AtomicSlots};
use rustix::process::{Pid, Signal, kill_process};
use tests::{
    cluster::{RawCluster, Shape, call, text},
    engines::engine,
    ledger::{Ledger, Options},
};
use tokio::{process::Command, time::Instant};

const KEYS: usize = 100_000;
const VALUE_BYTES: usize = 64;
const TIME_MAX: Duration = Duration::from_secs(60);

async fn cluster(kind: &str, version: &str, replicas: usize, config: &[&str]) -> RawCluster {
    let binary = engine(kind, version);
    let mut all = vec!["--cluster-allow-replica-migration", "no"];
    all.extend(config);
    let shape = Shape { server: &binary.server, primaries: 3, replicas, spare: 0, config: &all };
    RawCluster::start(&shape).await.unwrap()
}

fn third() -> SlotSet {
    SlotSet::range(0, 5_460)
}

/// Moves a third of the slots under a ledger; nothing may be lost.
async fn check_move(cluster: &RawCluster, job: &SlotMove) -> Moved {
    cluster.fill(KEYS, VALUE_BYTES).await.unwrap();
    let ledger = Ledger::start(&cluster.addresses(), Options::default()).await.unwrap();
    ledger.wait_for_writes(TIME_MAX).await.unwrap();
    let moved = move_slots(job, |_| ()).await.unwrap();
    let report = ledger.stop().await.unwrap();
    let verdict = report.verify(&cluster.addresses()).await.unwrap();
    assert!(verdict.holds(), "{verdict} ({report})");
    assert_eq!((report.failed, report.unknown), (0, 0));
    check_done(cluster, job).await;
    moved
}

async fn check_done(cluster: &RawCluster, job: &SlotMove) {
    cluster.wait_calm().await.unwrap();
    cluster
        .wait("the target owns the slots", |view: &ClusterNodes| {
            let row = view.row(job.to.id).unwrap();
            job.slots.difference(&row.slots).is_empty()
        })
        .await
        .unwrap();
    cluster.check_filled(KEYS, VALUE_BYTES).await.unwrap();
}

async fn check_by_keys(kind: &str, version: &str) {
    let cluster = cluster(kind, version, 1, &[]).await;
    let job = cluster.slot_move(0, 1, third());
    let moved = check_move(&cluster, &job).await;
    assert_eq!(moved.way, Way::Keys);
    assert_eq!(moved.progress.slots_done, 5_461);
    assert!(moved.progress.keys > KEYS as u64 / 4, "{moved:?}");
    // And once more: there is nothing to do.
    assert_eq!(move_slots(&job, |_| ()).await.unwrap().way, Way::Nothing);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_7_0_by_keys() {
    check_by_keys("redis", "7.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_6_2_by_keys() {
    check_by_keys("redis", "6.2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_9_1_by_keys() {
    check_by_keys("valkey", "9.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_9_1_by_itself() {
    let cluster = cluster("valkey", "9.1", 1, &[]).await;
    let atomic = AtomicSlots::MigrateSlots;
    let job = SlotMove { atomic, ..cluster.slot_move(0, 1, third()) };
    assert_eq!(check_move(&cluster, &job).await.way, Way::Atomic);
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_9_1_falls_back_to_keys() {
    let cluster = cluster("valkey", "9.1", 0, &[]).await;
    for index in 0..3 {
        let mut link = cluster.link(index).await.unwrap();
        let rules = ["on", ">secret", "~*", "&*", "+@all", "-cluster|migrateslots"];
        let set = ["ACL", "SETUSER", "mover"].into_iter().chain(rules);
        call(&mut link, &set.collect::<Vec<_>>()).await.unwrap();
    }
    let login = Login { user: "mover".into(), password: Secret::new("secret") };
    let job = SlotMove {
        atomic: AtomicSlots::MigrateSlots,
        login: Some(login),
        ..cluster.slot_move(0, 1, third())
    };
    assert_eq!(check_move(&cluster, &job).await.way, Way::Keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_mover_is_continued() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    cluster.fill(KEYS, VALUE_BYTES).await.unwrap();
    let job = cluster.slot_move(0, 1, third());
    let ledger = Ledger::start(&cluster.addresses(), Options::default()).await.unwrap();
    ledger.wait_for_writes(TIME_MAX).await.unwrap();
    for moved in [200, 2_000, 4_000] {
        let node = |addr: &NodeAddr| format!("{}@{}", addr.id, addr.address);
        let mut child = Command::new(env!("CARGO_BIN_EXE_move-slots"))
            .args([node(&job.from), node(&job.to), job.slots.to_string()])
            .args(job.others.iter().map(node))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + TIME_MAX;
        while cluster.owned(1).await.unwrap().intersection(&job.slots).len() < moved {
            assert!(Instant::now() < deadline, "the mover doesn't get to {moved} slots");
            assert!(child.try_wait().unwrap().is_none(), "the mover ended before {moved} slots");
        }
        child.kill().await.unwrap();
    }
    move_slots(&job, |_| ()).await.unwrap();
    let report = ledger.stop().await.unwrap();
    let verdict = report.verify(&cluster.addresses()).await.unwrap();
    assert!(verdict.holds(), "{verdict} ({report})");
    check_done(&cluster, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_target_stops_the_move_and_room_continues_it() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    cluster.fill(KEYS, VALUE_BYTES).await.unwrap();
    let job = cluster.slot_move(0, 1, third());
    let mut target = cluster.link(1).await.unwrap();
    let used = text(&mut target, &["INFO", "memory"]).await.unwrap();
    let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let max = (used.trim().parse::<u64>().unwrap() + (2 << 20)).to_string();
    call(&mut target, &["CONFIG", "SET", "maxmemory", &max]).await.unwrap();
    let error = move_slots(&job, |_| ()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Full { .. }), "{error}");
    assert!(!error.open.is_empty() && error.open.difference(&job.slots).is_empty(), "{error}");
    call(&mut target, &["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    move_slots(&job, |_| ()).await.unwrap();
    check_done(&cluster, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_stops_the_move_and_its_return_continues_it() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    cluster.fill(KEYS, VALUE_BYTES).await.unwrap();
    let job = cluster.slot_move(0, 1, third());
    let target = Pid::from_raw(cluster.nodes[1].pid().cast_signed()).unwrap();
    let mut hung = false;
    let error = move_slots(&job, |progress| {
        if progress.slots_done > 1_000 && !hung {
            hung = true;
            kill_process(target, Signal::STOP).unwrap();
        }
    });
    let error = error.await.unwrap_err();
    kill_process(target, Signal::CONT).unwrap();
    let Fault::TimedOut { to, .. } = error.fault else { panic!("{error}") };
    assert_eq!(to, job.to.address);
    assert!(!error.open.is_empty());
    move_slots(&job, |_| ()).await.unwrap();
    check_done(&cluster, &job).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_neither_end_owns_are_refused() {
    let cluster = cluster("redis", "7.0", 0, &[]).await;
    let slots: SlotSet = "5460-5470".parse().unwrap();
    let error = move_slots(&cluster.slot_move(0, 2, slots), |_| ()).await.unwrap_err();
    let expected: SlotSet = "5461-5470".parse().unwrap();
    assert!(matches!(error.fault, Fault::NotOwned { slots } if slots == expected));
    cluster.wait_calm().await.unwrap();
}

/// Slot 12182 (`foo`) of node 2, with three keys.
const SLOT: u16 = 12_182;
const NAMES: [&str; 3] = ["foo", "{foo}1", "{foo}2"];

/// A cluster with a slot that is then half-moved: node 0 is the other end.
struct Half {
    cluster: RawCluster,
    ids: [String; 3],
}

impl Half {
    async fn new() -> Self {
        let cluster = cluster("redis", "7.0", 0, &[]).await;
        let ids = [0, 1, 2].map(|index| cluster.nodes[index].addr.id.to_string());
        let half = Self { cluster, ids };
        for name in NAMES {
            half.call(2, &["SET", name, name]).await;
        }
        half
    }

    async fn call(&self, index: usize, args: &[&str]) {
        let mut link = self.cluster.link(index).await.unwrap();
        call(&mut link, args).await.unwrap();
    }

    async fn setslot(&self, index: usize, how: &str, peer: usize) {
        let slot = SLOT.to_string();
        self.call(index, &["CLUSTER", "SETSLOT", &slot, how, &self.ids[peer]]).await;
    }

    /// Opens the slot from node 2 to node 0 and moves some keys.
    async fn open(&self, moved: usize) {
        self.setslot(0, "IMPORTING", 2).await;
        self.setslot(2, "MIGRATING", 0).await;
        let port = self.cluster.nodes[0].addr.address.port().to_string();
        let mut args = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "1000", "KEYS"];
        args.extend(&NAMES[..moved]);
        if moved > 0 {
            self.call(2, &args).await;
        }
    }

    async fn stable(&self, index: usize) {
        self.call(index, &["CLUSTER", "SETSLOT", &SLOT.to_string(), "STABLE"]).await;
    }

    async fn repair(&self, owner: usize, case: RepairCase) -> Result<(), RepairError> {
        let owner = self.cluster.nodes[owner].addr;
        let job = SlotRepair {
            owner,
            slots: SlotSet::from(Slot::new(SLOT).unwrap()),
            case,
            others: self.cluster.others(&[owner]),
            login: None,
        };
        repair_slots(&job).await
    }

    /// The slot is where it belongs, closed, with all its keys and none elsewhere.
    async fn check(&self, owner: usize) {
        self.cluster.wait_calm().await.unwrap();
        let owners = self.cluster.owners().await.unwrap();
        assert_eq!(owners[usize::from(SLOT)], owner);
        let mut link = self.cluster.link(owner).await.unwrap();
        for name in NAMES {
            assert_eq!(text(&mut link, &["GET", name]).await.unwrap(), name);
        }
        self.cluster.check_filled(0, VALUE_BYTES).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_move_is_finished() {
    for moved in 0..=NAMES.len() {
        let half = Half::new().await;
        half.open(moved).await;
        half.repair(0, RepairCase::FinishMove).await.unwrap();
        half.check(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_on_an_importer_alone_come_home() {
    for moved in 0..=NAMES.len() {
        let half = Half::new().await;
        half.open(moved).await;
        half.stable(2).await;
        half.repair(2, RepairCase::ImportingOnly).await.unwrap();
        half.check(2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_a_forgetful_target_holds_come_home() {
    for moved in 0..=NAMES.len() {
        let half = Half::new().await;
        half.open(moved).await;
        half.stable(0).await;
        half.repair(2, RepairCase::MigratingOnly).await.unwrap();
        half.check(2).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giver_that_did_not_hear_is_told() {
    let half = Half::new().await;
    half.open(NAMES.len()).await;
    half.setslot(0, "NODE", 0).await;
    half.repair(0, RepairCase::Claim).await.unwrap();
    half.check(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_is_adopted_with_its_keys() {
    let half = Half::new().await;
    for index in 0..3 {
        half.call(index, &["CLUSTER", "DELSLOTS", &SLOT.to_string()]).await;
    }
    half.repair(1, RepairCase::Orphan).await.unwrap();
    half.check(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_value_twice_is_dropped_once_and_different_ones_stop_the_repair() {
    let half = Half::new().await;
    half.open(2).await;
    half.stable(2).await;
    // A client wrote the first again, with the same value, and the second with another.
    half.call(2, &["SET", NAMES[0], NAMES[0]]).await;
    half.call(2, &["SET", NAMES[1], "newer"]).await;
    let error = half.repair(2, RepairCase::ImportingOnly).await.unwrap_err();
    let RepairError::Stopped { fault: Fault::Conflict { slots }, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(slots.to_string(), SLOT.to_string());
    // Both values are still there; when one is gone the repair goes through.
    let mut importer = half.cluster.link(0).await.unwrap();
    call(&mut importer, &["ASKING"]).await.unwrap();
    assert_eq!(text(&mut importer, &["GET", NAMES[1]]).await.unwrap(), NAMES[1]);
    half.call(2, &["DEL", NAMES[1]]).await;
    half.repair(2, RepairCase::ImportingOnly).await.unwrap();
    half.check(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_brings_home_first_what_the_source_forgot() {
    let half = Half::new().await;
    half.open(2).await;
    half.stable(2).await;
    half.stable(0).await;
    let slots = SlotSet::from(Slot::new(SLOT).unwrap());
    half.cluster.move_slots(2, 0, slots).await.unwrap();
    half.check(0).await;
}
