//! Looking at a cluster that keyfleet did not make, through one of its nodes, changing nothing.

use std::collections::BTreeSet;

use tests::{
    cluster::{RawCluster, Shape},
    engines::engine,
    fleet::{Spec, TestFleet},
};

#[tokio::test(flavor = "multi_thread")]
async fn status_and_plan_of_a_foreign_cluster() {
    let server = engine("redis", "7.0").server;
    let shape = Shape { server: &server, primaries: 3, replicas: 1, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.expect("a cluster");
    cluster.fill(100, 20).await.expect("keys");
    let before = cluster.view(0).await.expect("it answers");
    let fleet = TestFleet::new(&Spec { profile: "cache", shards: 4, ..Spec::default() });
    let address = cluster.nodes[4].addr.address.to_string();

    let status = fleet.run(&["status", "--connect", &address, "--output", "json"]).await;
    let status: serde_json::Value =
        serde_json::from_str(&status.expect_code(0).stdout).expect("JSON");
    let clusters = status["clusters"].as_object().expect("clusters");
    let seen = clusters.values().next().expect("one cluster");
    assert_eq!(seen["overview"]["shards"].as_array().map(Vec::len), Some(3), "{status}");
    let nodes = seen["nodes"].as_object().expect("nodes");
    let addresses: BTreeSet<&str> =
        nodes.values().filter_map(|node| node["address"].as_str()).collect();
    let expected: Vec<String> = cluster.addresses().iter().map(ToString::to_string).collect();
    assert_eq!(addresses, expected.iter().map(String::as_str).collect(), "{status}");
    let keys: u64 = nodes
        .values()
        .filter(|node| node["state"] == "primary")
        .filter_map(|node| node["keys"].as_u64())
        .sum();
    assert_eq!(keys, 100, "{status}");
    let text = fleet.run(&["status", "--connect", &address]).await.expect_code(0);
    assert!(text.stdout.contains("all slots served"), "{}", text.stdout);
    assert!(!text.stdout.contains("differently"), "{}", text.stdout);

    // A fourth shard is missing, as seen from the spec.
    let plan = fleet.run(&["plan", "--connect", &address, "--exit-code"]).await.expect_code(3);
    assert!(plan.stdout.contains("move"), "{}", plan.stdout);

    // Nothing was touched.
    assert_eq!(cluster.unrest().await.expect("it answers"), None);
    let owners = |view: &protocol::ClusterNodes| -> Vec<_> {
        let mut rows: Vec<_> = view.rows.iter().map(|row| (row.id, row.slots.clone())).collect();
        rows.sort();
        rows
    };
    assert_eq!(owners(&cluster.view(0).await.expect("it answers")), owners(&before));
    assert!(!fleet.directory().join(".keyfleet/nodes").exists());

    // Nobody there, and no address.
    fleet.run(&["status", "--connect", "127.0.0.1:1"]).await.expect_failure();
    fleet.run(&["status", "--connect", "nonsense"]).await.expect_failure();
}
