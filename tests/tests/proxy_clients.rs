//! Client libraries and their usual idioms through the proxy, on a cluster of three primaries.

use tests::{
    clients,
    cluster::{RawCluster, Shape},
    engines::engine,
    proxy::Front,
};

/// Each program with its arguments says ok to all of its checks.
async fn check(programs: &[(&str, &[&str])]) {
    let binary = engine("redis", "7.0");
    let shape = Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.unwrap();
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    for (program, args) in programs {
        clients::run(program, front.address, args).await.unwrap();
    }
}

#[tokio::test]
async fn python_clients() {
    check(&[
        ("redis_py.py", &["2"]),
        ("redis_py.py", &["3"]),
        ("redis_py_cluster.py", &[]),
        ("valkey_glide.py", &[]),
    ])
    .await;
}

#[tokio::test]
async fn javascript_clients() {
    check(&[("ioredis.mjs", &[]), ("node_redis.mjs", &["2"]), ("node_redis.mjs", &["3"])]).await;
}
