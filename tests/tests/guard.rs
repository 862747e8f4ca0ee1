//! Guard on real servers: what dies, hangs, comes back empty or is changed by hand.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleet::{
    model::NodeName,
    observed::{NodeView, Observed, Role},
};
use protocol::{NodeId, Slot};
use tests::{
    cluster::{RawCluster, Shape, call},
    engines::engine,
    fleet::{Spec, TestFleet, is_healthy, is_synced_replica, node, primaries, replicas_of},
    ledger::Options,
};
use tokio::time::{Instant, sleep};

/// How long anything may take that has no time of its own to keep.
const TIME_MAX: Duration = Duration::from_secs(30);

fn load() -> Options {
    Options { keys: 1_024, writes_per_s_max: Some(3_000), ..Options::default() }
}

async fn start(spec: &Spec) -> TestFleet {
    let fleet = TestFleet::new(spec);
    fleet.up().await;
    fleet
}

fn is_primary(observed: &Observed, node: &NodeName) -> bool {
    primaries(observed).contains_key(node)
}

/// A primary and its replica.
async fn pair(fleet: &TestFleet) -> (NodeName, NodeName) {
    let observed = fleet.observe().await.expect("the fleet can be looked at");
    let (primary, _) = primaries(&observed).pop_first().expect("there is a primary");
    let replica = replicas_of(&observed, primary)[0].clone();
    (primary.clone(), replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_back() {
    let fleet = start(&Spec::default()).await;
    let _guard = fleet.guard().await;
    let (primary, replica) = pair(&fleet).await;
    fleet
        .under_ledger(load(), async {
            fleet.kill9(&replica).await;
            let what = "the replica is back";
            fleet.wait_for(what, TIME_MAX, |seen| is_synced_replica(seen, &replica)).await;
        })
        .await;
    assert!(is_primary(&fleet.wait_settled(3, 1).await, &primary));
}

/// Fenced failover: nobody waits for the engines' own detection, which takes the node-timeout.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_of_a_cache_is_replaced_at_once() {
    let timeout = Duration::from_secs(15);
    let spec = Spec { profile: "cache", node_timeout_ms: 15_000, ..Spec::default() };
    let fleet = start(&spec).await;
    let guard = fleet.guard().await;
    let (primary, replica) = pair(&fleet).await;
    let (report, verdict) = fleet
        .with_ledger(load(), async {
            fleet.kill9(&primary).await;
            let what = "the roles are swapped";
            fleet
                .wait_for(what, TIME_MAX, |seen| {
                    is_primary(seen, &replica) && is_synced_replica(seen, &primary)
                })
                .await;
        })
        .await;
    let gap = report.gaps.iter().map(|gap| gap.gap_ms).fold(0.0, f64::max);
    println!("fenced failover: writes stood still for {gap:.0} ms, {} lost", verdict.lost.len());
    assert!(gap < timeout.as_millis() as f64 / 3.0, "{gap} ms: {}", guard.stderr());
    assert!(!verdict.void, "{report}");
    assert!(verdict.duplicated.is_empty() && verdict.unexpected.is_empty(), "{verdict:?}");
    fleet.wait_settled(3, 1).await;
}

/// What a primary had acknowledged stands in its append-only file, and may not in its replicas.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_durable_primary_is_restarted_with_its_data() {
    let fleet = start(&Spec { node_timeout_ms: 15_000, ..Spec::default() }).await;
    let guard = fleet.guard().await;
    let (primary, _) = pair(&fleet).await;
    let before = fleet.pid(&primary);
    let report = fleet
        .under_ledger(load(), async {
            fleet.kill9(&primary).await;
            let what = "it is primary again";
            let again = |seen: &Observed| is_primary(seen, &primary) && is_healthy(seen, 6);
            fleet.wait_for(what, TIME_MAX, again).await;
        })
        .await;
    println!("restart with data: writes stood still for {:.0} ms", report.longest_gap_ms);
    assert_ne!(fleet.pid(&primary), before);
    guard.wait_for_output("append-only file holds all it had acknowledged", TIME_MAX).await;
    let synced = |seen: &Observed| {
        primaries(seen).len() == 3
            && seen.nodes.keys().filter(|name| is_synced_replica(seen, name)).count() == 3
    };
    fleet.wait_for("replicas in sync", TIME_MAX, synced).await;
    fleet.wait_settled(3, 1).await;
}

/// A node's server as a supervisor that knows nothing of clusters starts it again: in the same
/// directory, with the same arguments.
struct Supervised(Child);

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The classic loss, without keyfleet: the primary of a cluster without persistence dies and is
/// restarted, empty, before its replica's election. The replica then copies the nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_primary_wipes_its_replica_without_keyfleet() {
    const KEYS: usize = 3_000;
    let server = engine("redis", "7.0").server;
    let shape = Shape { server: &server, primaries: 3, replicas: 1, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.expect("a cluster");
    cluster.fill(KEYS, 20).await.expect("keys");
    let replica_keys = async |index: usize| {
        let mut link = cluster.link(index).await.expect("it answers");
        call(&mut link, &["DBSIZE"]).await.expect("it answers").as_integer()
    };
    // What was written last may still be on its way.
    let at_first = replica_keys(0).await;
    assert!(at_first > Some(0), "the shard has keys: {at_first:?}");
    let deadline = Instant::now() + TIME_MAX;
    while replica_keys(3).await != at_first {
        assert!(Instant::now() < deadline, "the replica lacks keys");
        sleep(Duration::from_millis(5)).await;
    }

    let pid = cluster.nodes[0].pid();
    let directory = std::fs::read_link(format!("/proc/{pid}/cwd")).expect("it runs");
    let _again = supervise(&server, &directory, pid, cluster.nodes[0].addr.address.port());
    let deadline = Instant::now() + TIME_MAX;
    while replica_keys(3).await != Some(0) {
        assert!(Instant::now() < deadline, "the replica kept its keys");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.wait_calm().await.expect("the cluster finds nothing wrong");
    let mut left = 0;
    for index in 0..3 {
        left += replica_keys(index).await.unwrap_or(0);
    }
    println!("plain cluster: {left} of {KEYS} keys left, every copy of the others is gone");
    assert_eq!(usize::try_from(left + at_first.unwrap_or(0)), Ok(KEYS));
}

/// kill -9, and a restart as soon as the process is gone.
fn supervise(server: &Path, directory: &Path, pid: u32, port: u16) -> Supervised {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    let port = port.to_string();
    loop {
        let mut child = Command::new(server)
            .args(["--port", &port, "--bind", "127.0.0.1", "--cluster-enabled", "yes"])
            .args(["--cluster-node-timeout", "15000", "--save", "", "--appendonly", "no"])
            .args(["--repl-diskless-sync-delay", "0"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the server starts");
        // It ends at once while the port is still taken.
        let until = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < until && child.try_wait().is_ok_and(|end| end.is_none()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait().is_ok_and(|end| end.is_none()) {
            return Supervised(child);
        }
    }
}

/// What an emptied disk loses of its node.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Emptied {
    /// Everything but keyfleet's own files.
    All,
    /// The data; the node still knows who it was.
    Data,
}

fn empty(fleet: &TestFleet, node: &NodeName, what: Emptied) {
    let conf = fleet.node_directory(node).join("nodes.conf");
    let kept = (what == Emptied::Data).then(|| std::fs::read(&conf).expect("it can be read"));
    fleet.empty_disk(node);
    if let Some(kept) = kept {
        std::fs::write(&conf, kept).expect("it can be written");
    }
}

/// The same loss with keyfleet at work: the replica takes over, and nothing is missing.
async fn emptied_while_guarded(what: Emptied) {
    let fleet = start(&Spec { node_timeout_ms: 15_000, ..Spec::default() }).await;
    let _guard = fleet.guard().await;
    let (primary, replica) = pair(&fleet).await;
    fleet.under_ledger(load(), async {}).await;
    let keys = fleet.keys().await;
    // Nothing more is written; else the last writes may be in the primary alone.
    fleet.suspend(&primary);
    empty(&fleet, &primary, what);
    fleet.kill9(&primary).await;
    let swapped = |seen: &Observed| is_primary(seen, &replica) && is_synced_replica(seen, &primary);
    fleet.wait_for("the roles are swapped", TIME_MAX, swapped).await;
    fleet.wait_settled(3, 1).await;
    assert_eq!(fleet.keys().await, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_primary_loses_nothing() {
    emptied_while_guarded(Emptied::All).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_its_data_loses_nothing() {
    emptied_while_guarded(Emptied::Data).await;
}

/// All servers are down and one primary's disk is empty: `up` must not start it before its shard has
/// another primary.
async fn emptied_while_down(what: Emptied) {
    let fleet = start(&Spec::default()).await;
    fleet.under_ledger(load(), async {}).await;
    let keys = fleet.keys().await;
    let (primary, _) = pair(&fleet).await;
    fleet.run(&["down"]).await.expect_code(0);
    assert_eq!(fleet.pid(&primary), None, "down stops it");
    empty(&fleet, &primary, what);
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
    assert_eq!(fleet.keys().await, keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_while_down_loses_nothing() {
    emptied_while_down(Emptied::All).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_data_while_down_loses_nothing() {
    emptied_while_down(Emptied::Data).await;
}

/// A suspended primary doesn't come to itself: guard kills it when the engines would give it up, and a
/// replica takes over.
#[tokio::test(flavor = "multi_thread")]
async fn a_hung_primary_of_a_cache_is_killed_and_replaced() {
    let spec = Spec { profile: "cache", node_timeout_ms: 2_000, ..Spec::default() };
    let fleet = start(&spec).await;
    let guard = fleet.guard().await;
    let (primary, replica) = pair(&fleet).await;
    fleet.under_ledger(load(), async {}).await;
    let pid = fleet.pid(&primary);
    let hung = Instant::now();
    fleet.suspend(&primary);
    fleet.wait_for("the replica took over", TIME_MAX, |seen| is_primary(seen, &replica)).await;
    let took = hung.elapsed();
    println!("hung primary: replaced after {} ms at node-timeout 2000", took.as_millis());
    guard.wait_for_output(&format!("kill {primary}, which hangs"), TIME_MAX).await;
    let what = "it follows now";
    fleet.wait_for(what, TIME_MAX, |seen| is_synced_replica(seen, &primary)).await;
    assert_ne!(fleet.pid(&primary), pid);
    fleet.wait_settled(3, 1).await;
}

/// Its file holds all that it acknowledged: killed and restarted before its peers miss it, it loses
/// nothing and stays primary.
#[tokio::test(flavor = "multi_thread")]
async fn a_hung_durable_primary_is_restarted_with_its_data() {
    let fleet = start(&Spec { node_timeout_ms: 6_000, ..Spec::default() }).await;
    let _guard = fleet.guard().await;
    let (primary, _) = pair(&fleet).await;
    let pid = fleet.pid(&primary);
    fleet
        .under_ledger(load(), async {
            fleet.suspend(&primary);
            let again = |seen: &Observed| {
                fleet.pid(&primary) != pid && is_primary(seen, &primary) && is_healthy(seen, 6)
            };
            fleet.wait_for("it is primary again", TIME_MAX, again).await;
        })
        .await;
    fleet.wait_settled(3, 1).await;
}

/// One shard has nobody to vote. Its cache is served on by the replica all the same, and what is left
/// of the old primary follows it.
async fn replaced_without_votes(end: impl AsyncFnOnce(&TestFleet, &NodeName)) {
    let spec = Spec { profile: "cache", shards: 1, node_timeout_ms: 2_000, ..Spec::default() };
    let fleet = start(&spec).await;
    let guard = fleet.guard().await;
    let (primary, replica) = pair(&fleet).await;
    fleet.under_ledger(load(), async {}).await;
    let keys = fleet.keys().await;
    assert!(keys > 0);
    end(&fleet, &primary).await;
    let swapped = |seen: &Observed| is_primary(seen, &replica) && is_synced_replica(seen, &primary);
    fleet.wait_for("the roles are swapped", TIME_MAX, swapped).await;
    guard.wait_for_output("without votes", TIME_MAX).await;
    fleet.wait_settled(1, 1).await;
    assert_eq!(fleet.keys().await, keys);
    fleet.under_ledger(load(), async {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_primary_that_is_emptied_is_replaced_without_votes() {
    replaced_without_votes(async |fleet, primary| {
        fleet.suspend(primary);
        empty(fleet, primary, Emptied::All);
        fleet.kill9(primary).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_primary_that_hangs_is_replaced_without_votes() {
    replaced_without_votes(async |fleet, primary| fleet.suspend(primary)).await;
}

/// Two of three primaries at once, by one blow: the first winner completes the majority that elects
/// the second.
#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_primaries_are_replaced() {
    let spec = Spec { profile: "cache", node_timeout_ms: 2_000, ..Spec::default() };
    let fleet = start(&spec).await;
    fleet.under_ledger(load(), async {}).await;
    let keys = fleet.keys().await;
    let observed = fleet.expect_settled(3, 1).await;
    let dead: Vec<NodeName> = primaries(&observed).into_keys().take(2).cloned().collect();
    for node in &dead {
        fleet.kill9(node).await;
    }
    let guard = fleet.guard().await;
    let follow = |seen: &Observed| dead.iter().all(|node| is_synced_replica(seen, node));
    fleet.wait_for("both follow now", TIME_MAX, follow).await;
    guard.wait_for_output("without votes", TIME_MAX).await;
    fleet.wait_settled(3, 1).await;
    assert_eq!(fleet.keys().await, keys);
}

/// How many primaries the fullest host has.
fn fullest(observed: &Observed) -> usize {
    let primaries = primaries(observed);
    let on = |view: &NodeView| {
        primaries.keys().filter(|name| observed.nodes[**name].host == view.host).count()
    };
    observed.nodes.values().map(on).max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn primaries_return_to_their_spread() {
    let fleet = start(&Spec { hosts: 3, ..Spec::default() }).await;
    let observed = fleet.expect_settled(3, 1).await;
    assert_eq!(fullest(&observed), 1);
    // By hand: a second primary on the host of this replica.
    let (_, replica) = pair(&fleet).await;
    fleet.call(&replica, &["CLUSTER", "FAILOVER"]).await.expect("it is in sync");
    let piled = |seen: &Observed| is_primary(seen, &replica) && fullest(seen) == 2;
    fleet.wait_for("two primaries on a host", TIME_MAX, piled).await;
    fleet
        .under_ledger(load(), async {
            let _guard = fleet.guard().await;
            let spread = |seen: &Observed| {
                fullest(seen) == 1 && primaries(seen).len() == 3 && is_healthy(seen, 6)
            };
            fleet.wait_for("one primary on each host", TIME_MAX, spread).await;
        })
        .await;
    fleet.wait_settled(3, 1).await;
}

fn id(observed: &Observed, node: &NodeName) -> String {
    observed.nodes.get(node).and_then(NodeView::id).map(|id: NodeId| id.to_string()).expect("up")
}

/// A key of this slot.
fn key_of(slot: u16) -> String {
    let slot = Slot::new(slot).expect("a slot");
    let mut keys = (0..).map(|number| format!("key:{number}"));
    keys.find(|key| protocol::key_slot(key.as_bytes()) == slot).expect("there is one")
}

#[tokio::test(flavor = "multi_thread")]
async fn half_moved_slots_are_closed() {
    let fleet = start(&Spec::default()).await;
    let observed = fleet.expect_settled(3, 1).await;
    let owners: Vec<NodeName> = primaries(&observed).into_keys().cloned().collect();
    let [one, two, three] = owners.as_slice() else { panic!("{owners:?}") };
    let slots = primaries(&observed)[one].slots();
    let slot = |number: usize| slots.iter().nth(number).expect("it owns slots").number();
    let (first, second) = (id(&observed, one), id(&observed, two));
    let say = async |node: &NodeName, args: &[&str]| {
        fleet.call(node, args).await.unwrap_or_else(|error| panic!("{node} {args:?}: {error:#}"));
    };
    let put = async |slot: u16| {
        let key = key_of(slot);
        say(one, &["SET", &key, "value"]).await;
        key
    };

    // Interrupted in the middle: a key here, a key there.
    let both = slot(10).to_string();
    let key = put(slot(10)).await;
    let stays = format!("{{{key}}}");
    say(one, &["SET", &stays, "value"]).await;
    say(two, &["CLUSTER", "SETSLOT", &both, "IMPORTING", &first]).await;
    say(one, &["CLUSTER", "SETSLOT", &both, "MIGRATING", &second]).await;
    let port = fleet.address(two).expect("it has one").port().to_string();
    say(one, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]).await;
    // Interrupted before the giver was told, and after the taker was.
    let importing = slot(20).to_string();
    put(slot(20)).await;
    say(two, &["CLUSTER", "SETSLOT", &importing, "IMPORTING", &first]).await;
    let migrating = slot(30).to_string();
    put(slot(30)).await;
    say(one, &["CLUSTER", "SETSLOT", &migrating, "MIGRATING", &second]).await;
    // The taker owns it already; the giver was not told.
    let claimed = slot(40).to_string();
    let key = put(slot(40)).await;
    say(two, &["CLUSTER", "SETSLOT", &claimed, "IMPORTING", &first]).await;
    say(one, &["CLUSTER", "SETSLOT", &claimed, "MIGRATING", &second]).await;
    say(one, &["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]).await;
    say(two, &["CLUSTER", "SETSLOT", &claimed, "NODE", &second]).await;
    // Nobody's.
    let orphan = slot(50).to_string();
    for node in [one, two, three] {
        say(node, &["CLUSTER", "DELSLOTS", &orphan]).await;
    }

    let _guard = fleet.guard().await;
    let closed = |seen: &Observed| {
        let open = seen.nodes.values().filter_map(NodeView::up).any(|up| !up.open.is_empty());
        let owned: usize = primaries(seen).values().map(|up| up.slots().len()).sum();
        !open && owned == 16_384 && is_healthy(seen, 6)
    };
    fleet.wait_for("every slot is closed and owned", TIME_MAX, closed).await;
    let settled = |seen: &Observed| closed(seen) && seen.nodes.len() == 6;
    fleet.wait_for("calm", TIME_MAX, settled).await;
    assert_eq!(fleet.keys().await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_by_hand_is_set_back() {
    let lines = vec!["users: {app: {rules: \"+@read ~app:*\"}}"];
    let config = vec![("slowlog-log-slower-than", "77777")];
    let fleet = start(&Spec { lines, config, ..Spec::default() }).await;
    let _guard = fleet.guard().await;
    let wanted = async |node: &NodeName| {
        let rules = fleet.call(node, &["ACL", "GETUSER", "app"]).await.expect("it answers");
        let value = fleet
            .call(node, &["CONFIG", "GET", "slowlog-log-slower-than"])
            .await
            .expect("it answers");
        (format!("{rules:?}"), format!("{value:?}"))
    };
    let good = wanted(&node(2)).await;
    let pid = fleet.pid(&node(2));
    let by_hand: [&[&str]; 2] =
        [&["CONFIG", "SET", "slowlog-log-slower-than", "1"], &["ACL", "SETUSER", "app", "+@all"]];
    for change in by_hand {
        fleet.call(&node(2), change).await.expect("it does so");
        assert_ne!(wanted(&node(2)).await, good);
        let deadline = Instant::now() + TIME_MAX;
        while wanted(&node(2)).await != good {
            assert!(Instant::now() < deadline, "not set back: {change:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(fleet.pid(&node(2)), pid, "no restart for that");
    fleet.wait_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_guard_takes_over() {
    let fleet = start(&Spec::default()).await;
    let first = fleet.guard().await;
    let second = fleet.spawn(&["-v", "guard"]);
    second.wait_for_output("standing by", TIME_MAX).await;
    let status = fleet.status_json().await;
    let acting = status.pointer("/guard/acting").and_then(|value| value.as_str());
    let pid = first.pid().expect("it runs").to_string();
    assert!(acting.is_some_and(|acting| acting.contains(&pid)), "{status}");
    assert!(!second.stderr().contains("guarding"), "{}", second.stderr());
    first.kill9().await;
    second.wait_for_output("guarding", TIME_MAX).await;
    let (_, replica) = pair(&fleet).await;
    fleet.kill9(&replica).await;
    let back = |seen: &Observed| is_synced_replica(seen, &replica);
    fleet.wait_for("the replica is back", TIME_MAX, back).await;
    // `up` gets its turn from a guard that acts, and guard goes on afterwards.
    fleet.edit(&Spec { config: vec![("slowlog-log-slower-than", "4242")], ..Spec::default() });
    fleet.up().await;
    fleet.kill9(&replica).await;
    fleet.wait_for("the replica is back again", TIME_MAX, back).await;
    fleet.wait_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_stops_planned_changes() {
    let config = vec![("slowlog-log-slower-than", "10000")];
    let fleet = start(&Spec { config, ..Spec::default() }).await;
    fleet.run(&["freeze", "main", "--for", "1h"]).await.expect_code(0);
    fleet.edit(&Spec { config: vec![("slowlog-log-slower-than", "4242")], ..Spec::default() });
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    let lift = "keyfleet freeze main --lift";
    assert!(ended.stderr.contains(lift), "{ended:?}");
    let (primary, replica) = pair(&fleet).await;
    let ended = fleet.run(&["handover", &primary.to_string()]).await.expect_code(1);
    assert!(ended.stderr.contains("main is frozen") && ended.stderr.contains(lift), "{ended:?}");
    let ended = fleet.run(&["down"]).await.expect_code(1);
    assert!(ended.stderr.contains(lift) && ended.stderr.contains("down --force"), "{ended:?}");
    assert!(is_primary(&fleet.observe().await.expect("it can be looked at"), &primary));
    let value = async || {
        let name = "slowlog-log-slower-than";
        let reply = fleet.call(&node(1), &["CONFIG", "GET", name]).await.expect("it answers");
        reply.as_array().and_then(|pair| pair[1].as_str()).map(str::to_owned)
    };
    assert_eq!(value().await.as_deref(), Some("10000"));
    // What dies is healed, what is changed by hand is left, and in the end not even what dies.
    let guard = fleet.guard().await;
    fleet
        .call(&node(1), &["CONFIG", "SET", "slowlog-log-slower-than", "7"])
        .await
        .expect("it does");
    fleet.kill9(&replica).await;
    let back = |seen: &Observed| is_synced_replica(seen, &replica);
    fleet.wait_for("the replica is back", TIME_MAX, back).await;
    guard.wait_for_output("frozen, so not done: set slowlog-log-slower-than", TIME_MAX).await;
    assert_eq!(value().await.as_deref(), Some("7"));
    fleet.run(&["freeze", "main", "--healing-too"]).await.expect_code(0);
    fleet.kill9(&replica).await;
    guard.wait_for_output(&format!("frozen, so not done: start {replica}"), TIME_MAX).await;
    assert_eq!(fleet.pid(&replica), None);
    fleet.run(&["freeze", "main", "--lift"]).await.expect_code(0);
    fleet.wait_for("the replica is back", TIME_MAX, back).await;
    fleet.up().await;
    assert_eq!(value().await.as_deref(), Some("4242"));
    fleet.expect_settled(3, 1).await;
    // Who insists is not held up.
    fleet.run(&["freeze", "main"]).await.expect_code(0);
    fleet.run(&["down", "--force"]).await.expect_code(0);
    assert_eq!(fleet.pid(&primary), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_rests() {
    let fleet = start(&Spec::default()).await;
    let guard = fleet.guard().await;
    fleet.run(&["down"]).await.expect_code(0);
    let ended = guard.wait().await.expect_code(0);
    assert!(!ended.stderr.contains("start main"), "{}", ended.stderr);
    assert_eq!((1..=6).find_map(|number| fleet.pid(&node(number))), None);
    fleet.up().await;
    let observed = fleet.wait_settled(3, 1).await;
    let roles = observed.nodes.values().filter_map(NodeView::up).map(|up| up.role);
    assert_eq!(roles.filter(|role| *role == Role::Primary).count(), 3);
}
