//! `keyfleet analyze --connect`: what live servers say of their keys.

use serde_json::Value as Json;
use tests::{
    cluster::{RawCluster, Shape, call},
    engines::engine,
    fleet::TestFleet,
    matrix::{dumps, entries, import},
    server::Server,
};

async fn analyze(to: &str) -> Json {
    let fleet = TestFleet::empty();
    let ended = fleet.run(&["analyze", "--connect", to, "--output", "json"]).await.expect_code(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_asked_at_its_replicas_and_its_heat_at_its_primaries() {
    const KEYS: usize = 5_000;
    let server = engine("valkey", "8.1").server;
    let config = ["--maxmemory-policy", "allkeys-lfu", "--cluster-allow-replica-migration", "no"];
    let shape = Shape { server: &server, primaries: 3, replicas: 1, spare: 0, config: &config };
    let cluster = RawCluster::start(&shape).await.unwrap();
    cluster.fill(KEYS, 100).await.unwrap();
    let owner = cluster.owners().await.unwrap()[usize::from(protocol::key_slot(b"key:7").number())];
    let mut link = cluster.link(owner).await.unwrap();
    for _ in 0..2_000 {
        call(&mut link, &["GET", "key:7"]).await.unwrap();
    }
    for index in 0..3 {
        let mut link = cluster.link(index).await.unwrap();
        call(&mut link, &["WAIT", "1", "10000"]).await.unwrap();
    }
    let report = analyze(&cluster.addresses()[0].to_string()).await;
    assert_eq!(report["total"]["keys"], KEYS, "{report}");
    assert_eq!(report["types"]["string"]["keys"], KEYS);
    assert_eq!(report["prefixes"][0]["prefix"], "key:");
    let nodes = report["live"]["nodes"].as_array().unwrap();
    assert!(nodes.len() == 3 && nodes.iter().all(|node| node["replica"] == true), "{nodes:?}");
    let shards = report["balance"]["shards"].as_array().unwrap();
    let told: Vec<_> = nodes.iter().map(|node| node["keys"].as_u64()).collect();
    let mut found: Vec<_> = shards.iter().map(|shard| shard["keys"].as_u64()).collect();
    found.sort_unstable();
    let mut told = told;
    told.sort_unstable();
    assert_eq!(found, told);
    let hot = &report["live"]["hot"];
    assert_eq!((&hot["sampled"], &hot["keys"][0]["key"]), (&Json::from(KEYS), &"key:7".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_holds_what_the_file_held() {
    let server = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let fleet = TestFleet::empty();
    let file = dumps().join("redis-7.0.15.rdb");
    let to = server.address.to_string();
    let (ended, _) = import(&fleet, &file, &to, &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let path = file.to_str().unwrap();
    let ended = fleet.run(&["analyze", path, "--output", "json"]).await.expect_code(0);
    let of_file: Json = serde_json::from_str(&ended.stdout).unwrap();
    let live = analyze(&to).await;
    assert_eq!(live["total"]["keys"], entries(&file).unwrap().len());
    for (name, sum) in of_file["types"].as_object().unwrap() {
        assert_eq!(live["types"][name]["keys"], sum["keys"], "{name}");
    }
    assert_eq!(live["databases"]["3"]["keys"], 1);
    assert_eq!(live["ttl"], {
        let mut ttl = of_file["ttl"].clone();
        for (row, seen) in
            ttl.as_array_mut().unwrap().iter_mut().zip(live["ttl"].as_array().unwrap())
        {
            row["memory_bytes"] = seen["memory_bytes"].clone();
        }
        ttl
    });
    let hot = live["live"]["hot"]["keys"][0].as_object().unwrap();
    assert!(hot["idle_seconds"].is_u64() && hot["frequency"].is_null(), "{hot:?}");
}
