//! Planned change under load: a client writes through the cluster all the while, and nothing that
//! was acknowledged may be missing afterwards.

use std::{collections::BTreeMap, time::Duration};

use fleet::{
    model::NodeName,
    observed::{Observed, Up},
};
use tests::{
    fleet::{Spec, TestFleet, is_synced_replica, node, primaries, replicas_of},
    ledger::Options,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

/// Lists that the ledger appends to: as many keys are there at the end.
const KEYS: u64 = 2_048;

fn load() -> Options {
    Options { keys: KEYS as u16, writes_per_s_max: Some(3_000), ..Options::default() }
}

/// Runs one change after the other under one ledger; each is a spec and must settle.
async fn change(fleet: &TestFleet, specs: &[Spec]) {
    fleet
        .under_ledger(load(), async {
            for spec in specs {
                fleet.edit(spec);
                let ended = fleet.up().await;
                eprintln!("{} shards, {} replicas: {:?}", spec.shards, spec.replicas, ended.took);
                fleet.expect_empty_plan().await;
            }
        })
        .await;
    let last = specs.last().expect("there is a change");
    fleet.expect_settled(last.shards as usize, last.replicas as usize).await;
    assert_eq!(fleet.keys().await, KEYS);
}

async fn start(spec: &Spec) -> TestFleet {
    let fleet = TestFleet::new(spec);
    fleet.up().await;
    fleet
}

fn pids(fleet: &TestFleet, observed: &Observed) -> BTreeMap<NodeName, i32> {
    let nodes = observed.nodes.keys();
    nodes.filter_map(|node| Some((node.clone(), fleet.pid(node)?))).collect()
}

/// A directive's value on every node.
async fn values(fleet: &TestFleet, observed: &Observed, name: &str) -> Vec<String> {
    let mut values = Vec::new();
    for node in observed.nodes.keys() {
        let reply = fleet.call(node, &["CONFIG", "GET", name]).await.expect("it answers");
        let pair = reply.as_array().expect("a name and a value");
        values.push(pair[1].as_str().expect("text").to_owned());
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_3_5_3() {
    let base = Spec::default();
    let fleet = start(&base).await;
    change(&fleet, &[Spec { shards: 5, ..base.clone() }, base]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_1_2_0_1() {
    let base = Spec::default();
    let fleet = start(&base).await;
    let with = |replicas| Spec { replicas, ..base.clone() };
    change(&fleet, &[with(2), with(0), with(1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_up_and_down_live() {
    let with = |memory| Spec { memory: Some(memory), ..Spec::default() };
    let fleet = start(&with("128MiB")).await;
    let before = fleet.expect_settled(3, 1).await;
    let at_first = pids(&fleet, &before);
    let small = values(&fleet, &before, "maxmemory").await;
    let large = Mutex::new(Vec::new());
    fleet
        .under_ledger(load(), async {
            fleet.edit(&with("256MiB"));
            fleet.up().await;
            fleet.expect_empty_plan().await;
            *large.lock().await = values(&fleet, &before, "maxmemory").await;
            fleet.edit(&with("128MiB"));
            fleet.up().await;
        })
        .await;
    fleet.expect_settled(3, 1).await;
    assert_eq!(pids(&fleet, &before), at_first, "no server restarts");
    let number = |text: &String| text.parse::<u64>().expect("a number of bytes");
    let large = large.into_inner();
    assert!(small.iter().zip(&large).all(|(less, more)| number(less) < number(more)), "{large:?}");
    assert_eq!(values(&fleet, &before, "maxmemory").await, small);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_live() {
    let fleet = start(&Spec::default()).await;
    let before = fleet.expect_settled(3, 1).await;
    let at_first = pids(&fleet, &before);
    let name = "slowlog-log-slower-than";
    change(&fleet, &[Spec { config: vec![(name, "77777")], ..Spec::default() }]).await;
    assert_eq!(pids(&fleet, &before), at_first, "no server restarts");
    assert_eq!(values(&fleet, &before, name).await, vec!["77777"; 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_by_rolling_restart() {
    let fleet = start(&Spec::default()).await;
    let before = fleet.expect_settled(3, 1).await;
    let at_first = pids(&fleet, &before);
    let name = "tcp-backlog";
    change(&fleet, &[Spec { config: vec![(name, "200")], ..Spec::default() }]).await;
    let now = pids(&fleet, &before);
    assert!(at_first.iter().all(|(node, pid)| now.get(node).is_some_and(|new| new != pid)));
    assert_eq!(values(&fleet, &before, name).await, vec!["200"; 6]);
}

async fn upgrade(to: (&'static str, &'static str)) {
    let fleet = start(&Spec::default()).await;
    let spec = Spec { engine: to, ..Spec::default() };
    change(&fleet, &[spec]).await;
    let observed = fleet.observe().await.expect("the fleet can be looked at");
    for (name, view) in &observed.nodes {
        let engine = view.up().expect("it answers").engine.to_string();
        assert!(engine.starts_with(&format!("{} {}", to.0, to.1)), "{name} runs {engine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_7_0_to_8_0() {
    upgrade(("redis", "8.0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_7_0_to_valkey_9_1() {
    upgrade(("valkey", "9.1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_slots_move() {
    let base = Spec::default();
    let fleet = start(&base).await;
    let wide = Spec { shards: 5, ..base.clone() };
    fleet
        .under_ledger(load(), async {
            for (spec, target) in [(&wide, 5), (&base, 3)] {
                fleet.edit(spec);
                for moved in [200_usize, 900, 2_000] {
                    kill_when_moved(&fleet, target, moved).await;
                }
                fleet.up().await;
            }
        })
        .await;
    fleet.expect_settled(3, 1).await;
    assert_eq!(fleet.keys().await, KEYS);
}

/// Lets `up` run until so many slots have moved towards the wanted number of shards, and kills it.
async fn kill_when_moved(fleet: &TestFleet, shards: usize, moved: usize) {
    let mut up = fleet.spawn(&["up", "--no-guard"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let slots = match fleet.call(&node(1), &["CLUSTER", "NODES"]).await {
            Ok(reply) => reply.as_str().map(str::to_owned).unwrap_or_default(),
            Err(error) => panic!("main-1 doesn't answer: {error:#}"),
        };
        let view: protocol::ClusterNodes = slots.parse().expect("CLUSTER NODES");
        let mut counts: Vec<usize> = view.rows.iter().map(|row| row.slots.len()).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.retain(|count| *count > 0);
        // Growing: what the first three have lost; shrinking: what the others have left to lose.
        let first: usize = counts.iter().take(3).sum();
        let beyond = if shards > 3 { 16_384 - first } else { first.saturating_sub(9_830) };
        if beyond >= moved {
            break;
        }
        let ended = up.ended();
        assert!(ended.is_none(), "ended before {moved} had moved: {counts:?}{}", up.stderr());
        assert!(Instant::now() < deadline, "{counts:?} after a minute: {}", up.stderr());
        sleep(Duration::from_millis(5)).await;
    }
    let ended = up.kill9().await;
    assert_eq!(ended.code, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused() {
    let fleet = start(&Spec { memory: Some("128MiB"), ..Spec::default() }).await;
    let before = fleet.expect_settled(3, 1).await;
    let used = primaries(&before).values().map(|up| up.memory.used).max().unwrap_or(0);
    eprintln!("used: {used}");
    // A server of this engine older than the one that runs can't read its data.
    fleet.edit(&Spec { engine: ("redis", "6.2"), ..Spec::default() });
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    assert!(format!("{}{}", ended.stdout, ended.stderr).contains("can't read"), "{ended:?}");
    fleet.edit(&Spec { memory: Some("128MiB"), ..Spec::default() });
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_handed_back_before_all_know_who_is_what() {
    // The longer the node timeout, the later a node hears by itself that a primary became a replica.
    let fleet = start(&Spec { node_timeout_ms: 15_000, ..Spec::default() }).await;
    let before = fleet.wait_settled(3, 1).await;
    let first = node(1);
    let (old, new) = if primaries(&before).contains_key(&first) {
        let replica = replicas_of(&before, &first)[0].clone();
        (first, replica)
    } else {
        let of =
            primaries(&before).into_keys().find(|of| replicas_of(&before, of).contains(&&first));
        (of.expect("it copies one").clone(), first)
    };
    fleet.call(&new, &["CLUSTER", "FAILOVER"]).await.expect("it is in sync");
    let handed_over = |seen: &Observed| {
        let owns = |up: &Up| {
            let row = seen.nodes[&new].id().and_then(|id| up.table.rows.get(&id));
            row.is_some_and(|row| !row.slots.is_empty())
        };
        is_synced_replica(seen, &old) && seen.nodes.values().all(|view| view.up().is_some_and(owns))
    };
    fleet.wait_for("the replica is the primary", Duration::from_secs(30), handed_over).await;
    fleet.run(&["handover", &new.to_string()]).await.expect_code(0);
    let after = fleet.wait_settled(3, 1).await;
    assert!(primaries(&after).contains_key(&old));
}
