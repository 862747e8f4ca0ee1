//! `cargo xtask bench up`: six nodes from nothing, beside the engine's own tool.
//!
//! Ours begins with an empty directory and one file: the engine is found, servers are started, they
//! become a cluster. `redis-cli --cluster create` is given six servers that have been running for a
//! while, so its side has no start in it. Both are timed from their command's start until it has
//! returned and a client's write was accepted in every shard.
//!
//! A server that starts as a primary refuses writes for its first two seconds (the engine's
//! CLUSTER_WRITABLE_DELAY), whoever makes the cluster. The peer's servers have those behind them; we
//! don't sit them out: a new cluster's first primaries hand their shards to replicas, which serve at once.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use keyfleet::admin_client::Connection;
use protocol::{Slot, key_slot};
use tests::{fleet::TestFleet, ports::PortBlock};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::{Goal, Outcome, median};

const SHARDS: u16 = 3;
const NODES: u16 = 2 * SHARDS;
/// How long the peer's servers run before it begins.
const HEAD_START: Duration = Duration::from_millis(3_200);
/// One round of either, at the most.
const ROUND_TIME_MAX: Duration = Duration::from_secs(60);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Options {
    /// How often each makes a cluster.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Print what `up` says of its steps.
    #[arg(long)]
    steps: bool,
}

pub async fn run(options: &Options) -> Result<Outcome> {
    super::build_program()?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    println!("{:>5} {:>12} {:>16} {:>7}", "round", "up ms", "cluster create", "ratio");
    for round in 0..options.rounds {
        let (own, peer);
        if round % 2 == 0 {
            own = up(options).await?;
            peer = create().await?;
        } else {
            peer = create().await?;
            own = up(options).await?;
        }
        println!("{:>5} {own:>12.0} {peer:>16.0} {:>7.2}", round + 1, own / peer);
        ours.push(own);
        theirs.push(peer);
        ratios.push(own / peer);
    }
    let slowest = ours.iter().copied().fold(0.0, f64::max);
    let mut outcome = Outcome { bench: "up", ..Outcome::default() };
    let (ours, theirs, ratio) = (median(&ours), median(&theirs), median(&ratios));
    println!(
        "{:>5} {ours:>12.0} {theirs:>16.0} {ratio:>7.2}   slowest of ours {slowest:.0} ms",
        "mid"
    );
    for (name, value) in [
        ("up ms", ours),
        ("up slowest ms", slowest),
        ("cluster create ms", theirs),
        ("ratio", ratio),
    ] {
        outcome.figures.insert(name.to_owned(), value);
    }
    outcome.goals.push(Goal::at_most("up, times redis-cli --cluster create", 0.5, ratio));
    Ok(outcome)
}

/// Our own way; milliseconds.
async fn up(options: &Options) -> Result<f64> {
    let fleet = TestFleet::empty();
    let PortBlock { tcp, tls, bus, .. } = fleet.ports;
    fleet.write(&format!(
        "clusters:\n  main:\n    engine: {{kind: redis, version: \"7.0\"}}\n    shards: {SHARDS}\n    \
         replicas: 1\n    ports: {{tcp: {tcp}, tls: {tls}, bus: {bus}}}\n"
    ));
    let started = Instant::now();
    let args: &[&str] =
        if options.steps { &["-vv", "up", "--no-guard"] } else { &["up", "--no-guard"] };
    let ended = timeout(ROUND_TIME_MAX, fleet.run(args)).await.context("up takes too long")?;
    ensure!(ended.code == Some(0), "up failed: {}{}", ended.stdout, ended.stderr);
    write_everywhere(tcp).await?;
    let took = ms(started);
    if options.steps {
        println!("{}", ended.stderr);
    }
    Ok(took)
}

/// The peer's way; milliseconds.
async fn create() -> Result<f64> {
    let ports = PortBlock::claim()?;
    let directory = std::env::temp_dir().join(format!("keyfleet-bench-up-{}", std::process::id()));
    let timed = timed_create(ports.tcp, &directory).await;
    fs::remove_dir_all(&directory)?;
    timed
}

async fn timed_create(first: u16, directory: &Path) -> Result<f64> {
    let mut servers: Vec<Child> = Vec::new();
    for port in first..first + NODES {
        let directory = directory.join(port.to_string());
        fs::create_dir_all(&directory)?;
        let server = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--cluster-enabled", "yes"])
            .args(["--save", "", "--logfile", "log"])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("redis-server")?;
        servers.push(server);
    }
    sleep(HEAD_START).await;
    let started = Instant::now();
    let output = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args((first..first + NODES).map(|port| format!("127.0.0.1:{port}")))
        .args(["--cluster-replicas", "1", "--cluster-yes"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(ROUND_TIME_MAX, output).await.context("redis-cli takes too long")??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "redis-cli: {said}");
    write_everywhere(first).await?;
    let took = ms(started);
    for server in &mut servers {
        server.kill().await?;
    }
    Ok(took)
}

/// Until a write was accepted in every shard, by whichever node has it.
async fn write_everywhere(first: u16) -> Result<()> {
    let writing = async {
        for shard in 0..SHARDS {
            let key = key_of(shard);
            while !is_taken(first, &key).await {
                sleep(Duration::from_millis(1)).await;
            }
        }
    };
    timeout(ROUND_TIME_MAX, writing).await.context("a shard takes no writes")
}

async fn is_taken(first: u16, key: &str) -> bool {
    for port in first..first + NODES {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let Ok(mut link) = Connection::open(address, None, ANSWER_TIME_MAX).await else { continue };
        if link.call_within(ANSWER_TIME_MAX, ["SET", key, "value"]).await.is_ok() {
            return true;
        }
    }
    false
}

/// A key in the middle of a shard's share of the slots.
fn key_of(shard: u16) -> String {
    let share = u32::from(protocol::SLOT_COUNT) / u32::from(SHARDS);
    let slot = Slot::new((share * u32::from(shard) + share / 2) as u16);
    let keys = (0_u32..).map(|number| format!("key:{number}"));
    let mut found = keys.filter(|key| Some(key_slot(key.as_bytes())) == slot);
    found.next().unwrap_or_default()
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}
