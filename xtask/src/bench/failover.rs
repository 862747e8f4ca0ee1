//! `cargo xtask bench failover`: how long a shard takes no writes when its primary goes.
//!
//! A [`Probe`] writes to both nodes of a shard about once a millisecond; what counts is the longest
//! time between two writes that were accepted by either. It knows where to write, so a client that has
//! to find that out first adds its own time. Losses are counted by a ledger that writes all the while.
//!
//! - Planned: `keyfleet handover`, beside `redis-cli CLUSTER FAILOVER` by hand, on the same fleet in
//!   turns. A shard's turns are twice the node timeout apart, as nobody votes for it sooner.
//! - Fenced: a primary of profile `cache` is killed under guard. With a node timeout of 15 s the engine
//!   alone would notice after that time; it is measured with 2 s, to spare everybody's.
//! - Restarted: a primary of profile `durable` is killed under guard; its append-only file brings back
//!   every acknowledged write. The engine refuses writes for 2 s after the start of a primary.
//! - Hung: a primary is stopped by a signal. A cache's is killed by guard when the engines would give it
//!   up, and replaced; a durable one is restarted with its append-only file.
//!
//! Of few runs the slowest is the goal's measure; so is it of the handovers, where p99 is asked for.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use fleet::{
    model::NodeName,
    observed::{NodeView, Observed},
};
use keyfleet::admin_client::{ClientError, Connection};
use protocol::{SlotSet, key_slot};
use tests::{
    cluster::{RawCluster, Shape},
    fleet::{Spec, TestFleet, is_healthy, is_synced_replica, primaries, replicas_of},
    ledger::{Ledger, Options as LedgerOptions},
};
use tokio::{
    process::Command,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{Goal, Outcome, at_share, median};
use crate::engines;

/// How long anything may take.
const TIME_MAX: Duration = Duration::from_secs(40);
/// Between a probe's writes to a node.
const PROBE_PAUSE: Duration = Duration::from_millis(1);
/// After this a probe gives a write up and connects anew.
const PROBE_ANSWER_MAX: Duration = Duration::from_millis(500);

#[derive(Args)]
pub struct Options {
    /// Which parts.
    #[arg(long, value_delimiter = ',', default_value = "planned,fenced,restarted,hung")]
    parts: Vec<String>,
    /// Handovers of each kind.
    #[arg(long, default_value_t = 24)]
    handovers: usize,
    /// Print what guard says.
    #[arg(long)]
    log: bool,
}

pub async fn run(options: &Options) -> Result<Outcome> {
    super::build_program()?;
    engines::install()?;
    let mut outcome = Outcome { bench: "failover", ..Outcome::default() };
    println!(
        "{:<44} {:>5} {:>8} {:>8} {:>8} {:>6}",
        "ms without writes", "runs", "median", "p95", "max", "lost"
    );
    for part in &options.parts {
        match part.as_str() {
            "planned" => planned(options, &mut outcome).await?,
            "fenced" => fenced(options, &mut outcome).await?,
            "restarted" => restarted(options, &mut outcome).await?,
            "hung" => hung(options, &mut outcome).await?,
            other => anyhow::bail!("no part {other}"),
        }
    }
    Ok(outcome)
}

/// Prints a row and keeps its figures; the slowest.
fn row(outcome: &mut Outcome, name: &str, gaps: &[f64], lost: Option<usize>) -> f64 {
    let (mid, p95, max) = (median(gaps), at_share(gaps, 0.95), at_share(gaps, 1.0));
    let said = lost.map_or_else(String::new, |lost| lost.to_string());
    println!("{name:<44} {:>5} {mid:>8.0} {p95:>8.0} {max:>8.0} {said:>6}", gaps.len());
    outcome.figures.insert(format!("{name}, median ms"), mid);
    outcome.figures.insert(format!("{name}, max ms"), max);
    if let Some(lost) = lost {
        outcome.figures.insert(format!("{name}, lost"), lost as f64);
    }
    max
}

/// Planned handovers, ours and by hand in turns.
async fn planned(options: &Options, outcome: &mut Outcome) -> Result<()> {
    let spec = Spec { profile: "cache", ..Spec::default() };
    let distance = Duration::from_millis(2 * spec.node_timeout_ms + 200);
    let fleet = TestFleet::new(&spec);
    fleet.up().await;
    let mut shards = Shards::of(&fleet).await?;
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    let mut last: Vec<Option<Instant>> = vec![None; shards.0.len()];
    for turn in 0..2 * options.handovers {
        // Each shard in its turn is handed over by both in turns.
        let (at, is_ours) = (turn % shards.0.len(), turn / shards.0.len() % 2 == 0);
        if let Some(last) = last[at] {
            tokio::time::sleep_until(last + distance).await;
        }
        let shard = &mut shards.0[at];
        shard.probe.reset();
        if is_ours {
            let name = shard.primary.to_string();
            fleet.run(&["handover", &name]).await.expect_code(0);
        } else {
            hand_over_by_hand(&fleet, &shard.replica).await?;
        }
        last[at] = Some(Instant::now());
        let gap = shard.probe.gap();
        shard.swap();
        settled(&fleet, shard, 6).await;
        if is_ours { &mut ours } else { &mut by_hand }.push(gap);
    }
    let max = row(outcome, "planned: keyfleet handover", &ours, None);
    row(outcome, "planned: redis-cli CLUSTER FAILOVER", &by_hand, None);
    outcome.goals.push(Goal::at_most("planned handover, p99 ms without writes", 200.0, max));
    Ok(())
}

async fn hand_over_by_hand(fleet: &TestFleet, replica: &NodeName) -> Result<()> {
    let address = fleet.address(replica).context("no address")?;
    let cli = |args: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]);
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command
    };
    let said = cli(&["CLUSTER", "FAILOVER"]).output().await?;
    ensure!(said.stdout.starts_with(b"OK"), "redis-cli: {said:?}");
    let waiting = async {
        loop {
            let role = cli(&["ROLE"]).output().await?;
            if role.stdout.starts_with(b"master") {
                return anyhow::Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(TIME_MAX, waiting).await.context("never a primary")?
}

/// Killed primaries whose replicas guard has elected at once.
async fn fenced(options: &Options, outcome: &mut Outcome) -> Result<()> {
    // A node's death is voted on once in twice the node timeout: with five shards each dies once.
    let shards = 5;
    let spec = Spec { profile: "cache", node_timeout_ms: 15_000, shards, ..Spec::default() };
    let (gaps, lost) = killed(options, &spec, 10, true).await?;
    let max = row(outcome, "fenced: guard, node timeout 15 s", &gaps, Some(lost));
    let plain = plain_failovers(2).await?;
    row(outcome, "plain redis, node timeout 2 s (not 15)", &plain, None);
    let goal = format!("fenced failover, slowest of {}, ms", gaps.len());
    outcome.goals.push(Goal::at_most(goal, 300.0, max));
    Ok(())
}

/// Killed primaries that guard starts again.
async fn restarted(options: &Options, outcome: &mut Outcome) -> Result<()> {
    let spec = Spec { node_timeout_ms: 15_000, ..Spec::default() };
    let (gaps, lost) = killed(options, &spec, 3, false).await?;
    row(outcome, "restarted: guard, durable, node timeout 15 s", &gaps, Some(lost));
    outcome.goals.push(Goal::at_most("restart with append-only file, lost", 0.0, lost as f64));
    Ok(())
}

/// Kills primaries under guard; the times without writes, and how many acknowledged writes are lost.
async fn killed(
    options: &Options,
    spec: &Spec,
    count: usize,
    replaced: bool,
) -> Result<(Vec<f64>, usize)> {
    let nodes = (spec.shards * (1 + spec.replicas)) as usize;
    let fleet = TestFleet::new(spec);
    fleet.up().await;
    let guard = fleet.guard().await;
    let mut shards = Shards::of(&fleet).await?;
    let load =
        LedgerOptions { keys: 1_024, writes_per_s_max: Some(2_000), ..LedgerOptions::default() };
    let ledger = Ledger::start(&fleet.seeds(), load).await?;
    ledger.wait_for_writes(TIME_MAX).await?;
    let mut gaps = Vec::new();
    for turn in 0..count {
        let at = turn % shards.0.len();
        let shard = &mut shards.0[at];
        settled(&fleet, shard, nodes).await;
        shard.probe.reset();
        fleet.kill9(&shard.primary).await;
        shard.probe.wait_accepted().await?;
        if replaced {
            shard.swap();
        }
        settled(&fleet, shard, nodes).await;
        gaps.push(shard.probe.gap());
    }
    let report = ledger.stop().await?;
    let verdict = report.verify(&fleet.seeds()).await?;
    ensure!(!verdict.void, "too few writes: {report}");
    ensure!(verdict.duplicated.is_empty() && verdict.unexpected.is_empty(), "{verdict}");
    if options.log {
        println!("{}", guard.stderr());
    }
    Ok((gaps, verdict.lost.len()))
}

/// What the engine does alone.
async fn plain_failovers(count: usize) -> Result<Vec<f64>> {
    let config = ["--cluster-node-timeout", "2000"];
    let server = Path::new("/usr/bin/redis-server");
    let shape = Shape { server, primaries: 3, replicas: 1, spare: 0, config: &config };
    let mut gaps = Vec::new();
    for _ in 0..count {
        let mut cluster = RawCluster::start(&shape).await?;
        let view = cluster.view(0).await?;
        let slots = view.my_row().map(|row| row.slots.clone()).unwrap_or_default();
        let ends = [0, 3].map(|index: usize| cluster.nodes[index].addr.address);
        let probe = Probe::start(&ends, &key_in(&slots)?);
        probe.wait_accepted().await?;
        probe.reset();
        cluster.kill(0)?;
        probe.wait_accepted().await?;
        gaps.push(probe.gap());
    }
    Ok(gaps)
}

/// Primaries that are stopped by a signal.
async fn hung(options: &Options, outcome: &mut Outcome) -> Result<()> {
    let timeout_ms = 2_000;
    let wanted = (timeout_ms + 2_000) as f64;
    for (profile, replaced, count) in [("cache", true, 10), ("durable", false, 5)] {
        let spec = Spec { profile, node_timeout_ms: timeout_ms, ..Spec::default() };
        let gaps = suspended(options, &spec, count, replaced).await?;
        let max = row(outcome, &format!("hung: guard, {profile}, node timeout 2 s"), &gaps, None);
        let goal = format!("hung {profile} primary, slowest of {count}, ms");
        outcome.goals.push(Goal::at_most(goal, wanted, max));
    }
    Ok(())
}

/// Suspends primaries under guard; the times without writes.
async fn suspended(
    options: &Options,
    spec: &Spec,
    count: usize,
    replaced: bool,
) -> Result<Vec<f64>> {
    let fleet = TestFleet::new(spec);
    fleet.up().await;
    let guard = fleet.guard().await;
    let mut shards = Shards::of(&fleet).await?;
    let mut gaps = Vec::new();
    for turn in 0..count {
        let at = turn % shards.0.len();
        let shard = &mut shards.0[at];
        settled(&fleet, shard, 6).await;
        shard.probe.reset();
        fleet.suspend(&shard.primary);
        shard.probe.wait_accepted().await?;
        gaps.push(shard.probe.gap());
        if replaced {
            shard.swap();
        }
        settled(&fleet, shard, 6).await;
    }
    if options.log {
        println!("{}", guard.stderr());
    }
    Ok(gaps)
}

/// Until the shard's roles are as it says and all is well.
async fn settled(fleet: &TestFleet, shard: &Shard, nodes: usize) {
    let holds = |seen: &Observed| {
        primaries(seen).contains_key(&shard.primary)
            && is_synced_replica(seen, &shard.replica)
            && is_healthy(seen, nodes)
            && agree(seen, &shard.primary)
    };
    fleet.wait_for("calm", TIME_MAX, holds).await;
}

/// Every node sees the primary's slots at it.
fn agree(seen: &Observed, primary: &NodeName) -> bool {
    let Some(own) = seen.nodes.get(primary).and_then(NodeView::up) else { return false };
    let sees = |view: &NodeView| {
        let row = view.up().and_then(|up| up.table.rows.get(&own.id));
        row.is_some_and(|row| row.slots == own.slots() && row.replica_of.is_none())
    };
    seen.nodes.values().all(sees)
}

struct Shards(Vec<Shard>);

struct Shard {
    primary: NodeName,
    replica: NodeName,
    probe: Probe,
}

impl Shard {
    fn swap(&mut self) {
        std::mem::swap(&mut self.primary, &mut self.replica);
    }
}

impl Shards {
    /// All of a fleet with one replica each, with probes that are at work.
    async fn of(fleet: &TestFleet) -> Result<Self> {
        let observed = fleet.observe().await?;
        let mut shards = Vec::new();
        for (primary, up) in primaries(&observed) {
            let followers = replicas_of(&observed, primary);
            let replica = followers.first().context("no replica")?;
            let ends = [primary, *replica].map(|node| fleet.address(node));
            let ends = ends.into_iter().collect::<Option<Vec<_>>>().context("no address")?;
            let probe = Probe::start(&ends, &key_in(&up.slots())?);
            probe.wait_accepted().await?;
            shards.push(Shard { primary: primary.clone(), replica: (*replica).clone(), probe });
        }
        Ok(Self(shards))
    }
}

fn key_in(slots: &SlotSet) -> Result<String> {
    let mut keys = (0_u32..100_000).map(|number| format!("probe:{number}"));
    keys.find(|key| slots.contains(key_slot(key.as_bytes()))).context("no key in these slots")
}

/// Writes to a shard's nodes all the time; dropping it ends that.
struct Probe {
    seen: Arc<Mutex<Seen>>,
    writers: Vec<JoinHandle<()>>,
}

struct Seen {
    /// When a write was last accepted.
    last: Instant,
    /// Since the last reset.
    longest: Duration,
    accepted: u64,
}

impl Probe {
    fn start(nodes: &[SocketAddr], key: &str) -> Self {
        let seen = Seen { last: Instant::now(), longest: Duration::ZERO, accepted: 0 };
        let seen = Arc::new(Mutex::new(seen));
        let writers = nodes.iter().map(|node| {
            let (node, key, seen) = (*node, key.to_owned(), Arc::clone(&seen));
            tokio::spawn(async move {
                loop {
                    if let Ok(link) = Connection::open(node, None, PROBE_ANSWER_MAX).await {
                        write(link, &key, &seen).await;
                    }
                    sleep(PROBE_PAUSE).await;
                }
            })
        });
        let writers = writers.collect();
        Self { seen, writers }
    }

    fn with<T>(&self, read: impl FnOnce(&mut Seen) -> T) -> T {
        read(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The longest time counts from now on.
    fn reset(&self) {
        self.with(|seen| seen.longest = Duration::ZERO);
    }

    /// The longest time without an accepted write since the last reset, in milliseconds.
    fn gap(&self) -> f64 {
        self.with(|seen| seen.longest.max(seen.last.elapsed()).as_secs_f64() * 1_000.0)
    }

    /// Until some more writes were accepted.
    async fn wait_accepted(&self) -> Result<()> {
        let wanted = self.with(|seen| seen.accepted) + 5;
        let waiting = async {
            while self.with(|seen| seen.accepted) < wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TIME_MAX, waiting).await.context("no write is accepted")
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        for writer in &self.writers {
            writer.abort();
        }
    }
}

/// Writes until the connection is lost.
async fn write(mut link: Connection, key: &str, seen: &Mutex<Seen>) {
    loop {
        let answer = link.call_within(PROBE_ANSWER_MAX, ["SET", key, "value"]).await;
        if !matches!(answer, Ok(_) | Err(ClientError::Server { .. })) {
            return;
        }
        if answer.is_ok() {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.longest = seen.longest.max(seen.last.elapsed());
            seen.last = Instant::now();
            seen.accepted += 1;
        }
        sleep(PROBE_PAUSE).await;
    }
}
