//! Every engine through the same life: made, written to, scaled out under load, a primary lost.

use std::time::Duration;

use fleet::observed::Observed;
use tests::{
    fleet::{Spec, TestFleet, is_healthy, is_synced_replica, primaries, replicas_of},
    ledger::Options,
};

const TIME_MAX: Duration = Duration::from_secs(30);

async fn life(kind: &'static str, version: &'static str) {
    let base = Spec { engine: (kind, version), profile: "cache", ..Spec::default() };
    let fleet = TestFleet::new(&base);
    fleet.up().await;
    let observed = fleet.expect_settled(3, 1).await;
    for (name, view) in &observed.nodes {
        let engine = view.up().expect("it answers").engine.to_string();
        assert!(engine.starts_with(&format!("{kind} {version}")), "{name} runs {engine}");
    }

    let load = Options { keys: 1_024, writes_per_s_max: Some(2_000), ..Options::default() };
    let wide = Spec { shards: 4, ..base };
    fleet
        .under_ledger(load, async {
            fleet.edit(&wide);
            fleet.up().await;
        })
        .await;
    let observed = fleet.expect_settled(4, 1).await;
    assert_eq!(fleet.keys().await, 1_024);

    let guard = fleet.guard().await;
    let (primary, _) = primaries(&observed).pop_first().expect("there is one");
    let replica = replicas_of(&observed, primary)[0].clone();
    fleet.kill9(primary).await;
    let swapped = |seen: &Observed| {
        primaries(seen).contains_key(&replica)
            && is_synced_replica(seen, primary)
            && is_healthy(seen, 8)
    };
    fleet.wait_for("the replica took over, the primary follows", TIME_MAX, swapped).await;
    drop(guard);
    fleet.up().await;
    fleet.expect_settled(4, 1).await;
    assert_eq!(fleet.keys().await, 1_024);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_6_2() {
    life("redis", "6.2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_7_0() {
    life("redis", "7.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_8_0() {
    life("redis", "8.0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_8_1() {
    life("valkey", "8.1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn valkey_9_1() {
    life("valkey", "9.1").await;
}
