//! Client libraries and their usual idioms through the proxy, on a cluster of three primaries.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use protocol::resp::encode_command;
use tests::{
    clients,
    cluster::{RawCluster, Shape},
    engines::engine,
    proxy::Front,
};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// How long redis-cli may take.
const TIME_MAX: Duration = Duration::from_secs(60);

async fn proxied() -> (RawCluster, Front) {
    let binary = engine("redis", "7.0");
    let shape = Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.unwrap();
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    (cluster, front)
}

/// Each program with its arguments says ok to all of its checks.
async fn check(programs: &[(&str, &[&str])]) {
    let (_cluster, front) = proxied().await;
    for (program, args) in programs {
        clients::run(program, front.address, args).await.unwrap();
    }
}

/// What redis-cli prints when it is called with these options and reads this.
async fn redis_cli(address: SocketAddr, options: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
    command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input).await.unwrap();
    let ended = timeout(TIME_MAX, process.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("redis-cli {options:?} doesn't end")).unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "redis-cli {options:?}: {printed}");
    printed
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

#[tokio::test]
async fn go_clients() {
    check(&[("go_redis.go", &[]), ("redigo.go", &[])]).await;
}

/// Its way to ask, to fill a server, and to look through one.
#[tokio::test]
async fn redis_cli_modes() {
    let (_cluster, front) = proxied().await;
    let ask = async |options: &[&str], input: &str| {
        redis_cli(front.address, options, input.as_bytes()).await
    };
    let session = "SET cli:a 1\nINCR cli:a\nMGET cli:a cli:b\nMULTI\nINCR cli:a\nEXEC\n";
    assert_eq!(ask(&[], session).await, "OK\n2\n2\n\nOK\nQUEUED\n3\n");
    assert_eq!(ask(&["-c", "GET", "cli:a"], "").await, "3\n");
    assert_eq!(ask(&["-3", "--json", "HGETALL", "cli:none"], "").await, "{}\n");
    assert_eq!(ask(&["-x", "SET", "cli:stdin"], "from a file").await, "OK\n");
    assert_eq!(ask(&["GET", "cli:stdin"], "").await, "from a file\n");

    let mut many = Vec::new();
    for number in 0..5_000 {
        encode_command(["SET", &format!("cli:many:{number}"), "x"], &mut many);
    }
    let said = redis_cli(front.address, &["--pipe"], &many).await;
    assert!(said.contains("errors: 0, replies: 5000"), "{said}");
    let scanned = ask(&["--scan", "--pattern", "cli:many:*"], "").await;
    assert_eq!(scanned.lines().count(), 5_000);
    let biggest = ask(&["--bigkeys"], "").await;
    assert!(biggest.contains("Sampled 5002 keys"), "{biggest}");
}
