//! `cargo xtask bench reshard`: the same slots moved to and fro by the engine's own tool and by us,
//! in turn, while a client writes as fast as it gets answers (six connections, one write each) and
//! keeps a ledger: a run that loses a write, or misses a key, is no run.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use fleet::model::Pace;
use keyfleet::mover::{
    NodeAddr,
    slots::{SlotMove, Way, move_slots},
};
use protocol::{SlotSet, engine::AtomicSlots};
use tests::{
    cluster::{RawCluster, Shape},
    engines::engine,
    ledger::{Latency, Ledger, Options as LedgerOptions},
};
use tokio::{
    process::Command,
    select,
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
    time::timeout,
};

use super::{Goal, Outcome};

const SLOTS_MOVED: u16 = 5_461;
/// One move, whoever makes it.
const MOVE_TIME_MAX: Duration = Duration::from_secs(600);

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Bytes in each value.
    #[arg(long, default_value_t = 64)]
    value_bytes: usize,
    /// How often each mover moves on Redis.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Writes a second; 0: as many as are answered.
    #[arg(long, default_value_t = 0)]
    load: u32,
}

/// Who moves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mover {
    /// `redis-cli --cluster reshard` with its defaults.
    Cli,
    Full,
    Gentle,
    Atomic,
}

impl Mover {
    const fn name(self) -> &'static str {
        match self {
            Self::Cli => "cli",
            Self::Full => "full",
            Self::Gentle => "gentle",
            Self::Atomic => "atomic",
        }
    }
}

struct Sample {
    mover: Mover,
    seconds: f64,
    latency: Latency,
}

/// The means of a mover's runs.
struct Mean {
    seconds: f64,
    p99_ms: f64,
}

pub async fn run(options: &Options) -> Result<Outcome> {
    let mut terminated = signal(SignalKind::terminate())?;
    // Being dropped is what ends the servers.
    select! {
        outcome = measure_all(options) => outcome,
        _ = ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    }
}

async fn measure_all(options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome { bench: "reshard", ..Outcome::default() };
    let movers = [Mover::Cli, Mover::Full, Mover::Gentle];
    let samples = measure(options, "redis", "7.0", &movers, options.rounds).await?;
    let mean = |mover| summarise(&mut outcome, "redis 7.0", &samples, mover);
    let [cli, full, gentle] = movers.map(mean);
    let times = [
        Goal::at_least("redis 7.0, full pace: times faster", 4.0, cli.seconds / full.seconds),
        Goal::at_least("redis 7.0, gentle: times faster", 2.5, cli.seconds / gentle.seconds),
        Goal::at_most("redis 7.0, gentle: times the p99", 2.0, gentle.p99_ms / cli.p99_ms),
    ];
    outcome.goals.extend(times);

    let movers = [Mover::Cli, Mover::Atomic];
    // Once: its own tool takes minutes.
    let samples = measure(options, "valkey", "9.1", &movers, 1).await?;
    let mean = |mover| summarise(&mut outcome, "valkey 9.1", &samples, mover);
    let [cli, atomic] = movers.map(mean);
    let times = cli.seconds / atomic.seconds;
    outcome.goals.push(Goal::at_least("valkey 9.1, atomic: times faster", 8.0, times));
    Ok(outcome)
}

fn summarise(outcome: &mut Outcome, engine: &str, samples: &[Sample], mover: Mover) -> Mean {
    let of: Vec<&Sample> = samples.iter().filter(|sample| sample.mover == mover).collect();
    let mean = |what: &dyn Fn(&Sample) -> f64| {
        of.iter().map(|sample| what(sample)).sum::<f64>() / of.len().max(1) as f64
    };
    let seconds = mean(&|sample| sample.seconds);
    let p99_ms = mean(&|sample| sample.latency.p99_ms);
    outcome.figures.insert(format!("{engine} {} seconds", mover.name()), seconds);
    outcome.figures.insert(format!("{engine} {} p99 ms", mover.name()), p99_ms);
    Mean { seconds, p99_ms }
}

async fn measure(
    options: &Options,
    kind: &str,
    version: &str,
    movers: &[Mover],
    rounds: usize,
) -> Result<Vec<Sample>> {
    let binary = engine(kind, version);
    let config = ["--cluster-allow-replica-migration", "no"];
    let shape =
        Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 1, config: &config };
    let cluster = RawCluster::start(&shape).await?;
    cluster.fill(options.keys, options.value_bytes).await?;
    println!("{kind} {version}: {SLOTS_MOVED} slots of {} keys", options.keys);
    println!("  mover    seconds   p50 ms   p99 ms   max ms  writes/s");
    let cli = binary.cli.context("no command line program")?;
    // The first has the slots, the last one none: every second move brings them back.
    let mut ends = [cluster.nodes[0].addr, cluster.nodes[3].addr];
    let mut samples = Vec::new();
    for _ in 0..rounds {
        for mover in movers {
            let sample = one_move(options, &cli, &cluster, *mover, ends).await?;
            samples.push(sample);
            ends.reverse();
        }
    }
    cluster.check_filled(options.keys, options.value_bytes).await?;
    Ok(samples)
}

async fn one_move(
    options: &Options,
    cli: &Path,
    cluster: &RawCluster,
    mover: Mover,
    ends: [NodeAddr; 2],
) -> Result<Sample> {
    let load = LedgerOptions {
        connections: 6,
        pipeline: 1,
        writes_per_s_max: (options.load > 0).then_some(options.load),
        ..LedgerOptions::default()
    };
    let ledger = Ledger::start(&cluster.addresses(), load).await?;
    ledger.wait_for_writes(Duration::from_secs(10)).await?;
    let started = Instant::now();
    let moving = async {
        match mover {
            Mover::Cli => reshard(cli, ends).await,
            _ => move_by_us(cluster, mover).await,
        }
    };
    let name = mover.name();
    timeout(MOVE_TIME_MAX, moving).await.with_context(|| format!("{name} takes too long"))??;
    let seconds = started.elapsed().as_secs_f64();
    let report = ledger.stop().await?;
    cluster.wait_calm().await?;
    let verdict = report.verify(&cluster.addresses()).await?;
    ensure!(verdict.holds(), "{name}: {verdict}");
    let latency = report.latency;
    println!(
        "  {name:<8} {seconds:>7.2} {:>8.2} {:>8.2} {:>8.1} {:>9.0}",
        latency.p50_ms, latency.p99_ms, latency.max_ms, report.writes_per_s
    );
    Ok(Sample { mover, seconds, latency })
}

async fn move_by_us(cluster: &RawCluster, mover: Mover) -> Result<()> {
    let (atomic, way) = match mover {
        Mover::Atomic => (AtomicSlots::MigrateSlots, Way::Atomic),
        _ => (AtomicSlots::None, Way::Keys),
    };
    let job = SlotMove {
        pace: if mover == Mover::Gentle { Pace::Gentle } else { Pace::Full },
        atomic,
        ..cluster.slot_move(0, 1, SlotSet::range(0, SLOTS_MOVED - 1))
    };
    let moved = move_slots(&job, |_| ()).await?;
    ensure!(moved.way == way, "moved in another way: {:?}", moved.way);
    Ok(())
}

async fn reshard(cli: &Path, [from, to]: [NodeAddr; 2]) -> Result<()> {
    let output = Command::new(cli)
        .args(["--cluster", "reshard", &from.address.to_string(), "--cluster-yes"])
        .args(["--cluster-from", &from.id.to_string(), "--cluster-to", &to.id.to_string()])
        .args(["--cluster-slots", &SLOTS_MOVED.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| cli.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "{}: {last}", cli.display());
    Ok(())
}
