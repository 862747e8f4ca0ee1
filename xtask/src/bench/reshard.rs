//! `cargo xtask bench reshard`.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use fleet::model::Pace;
use keyfleet::mover::{
    NodeAddr,
    slots::{SlotMove, Way, move_slots},
};
use protocol::{SlotSet, engine::AtomicSlots};
use tests::{
    cluster::{RawCluster, Shape},
    ledger::{Ledger, Options as LedgerOptions, Report},
};
use tokio::{process::Command, time::timeout};

use super::{Goal, Outcome};

const SLOTS_MOVED: u16 = 5_461;
/// One move, whoever makes it.
const MOVE_TIME_MAX: Duration = Duration::from_secs(600);

#[derive(Args)]
pub struct Options {
    /// The server programs, each with its `-cli` beside it.
    #[arg(long, default_value = "/usr/bin/redis-server")]
    server: Vec<PathBuf>,
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    /// Bytes in each value.
    #[arg(long, default_value_t = 64)]
    value_bytes: usize,
    /// How often each mover moves.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// The load, writes a second.
    #[arg(long, default_value_t = 4_000)]
    load: u32,
    /// Which movers.
    #[arg(long, value_delimiter = ',', default_value = "cli,full,gentle")]
    movers: Vec<String>,
}

struct Sample {
    mover: String,
    seconds: f64,
    report: Report,
}

pub async fn run(options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome { bench: "reshard", ..Outcome::default() };
    for server in &options.server {
        measure(options, server, &mut outcome).await?;
    }
    Ok(outcome)
}

async fn measure(options: &Options, server: &Path, outcome: &mut Outcome) -> Result<()> {
    let config = ["--cluster-allow-replica-migration", "no"];
    let shape = Shape { server, primaries: 3, replicas: 0, spare: 1, config: &config };
    let cluster = RawCluster::start(&shape).await?;
    cluster.fill(options.keys, options.value_bytes).await?;
    println!("{}", server.display());
    println!(
        "{:<8} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "mover", "s", "p50 ms", "p99 ms", "max ms", "writes/s"
    );
    let ends = [cluster.nodes[0].addr, cluster.nodes[3].addr];
    let mut direction = 0;
    let mut samples = Vec::new();
    for _ in 0..options.rounds {
        for mover in &options.movers {
            let (from, to) = (ends[direction], ends[1 - direction]);
            direction = 1 - direction;
            let sample = one_move(options, server, &cluster, mover, from, to).await?;
            let latency = sample.report.latency;
            println!(
                "{:<8} {:>8.2} {:>8.2} {:>8.2} {:>8.1} {:>8.0}",
                sample.mover,
                sample.seconds,
                latency.p50_ms,
                latency.p99_ms,
                latency.max_ms,
                sample.report.writes_per_s
            );
            samples.push(sample);
        }
    }
    cluster.check_filled(options.keys, options.value_bytes).await?;
    let name = server.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mean = |mover: &str, of: &dyn Fn(&Sample) -> f64| {
        let of: Vec<f64> = samples.iter().filter(|s| s.mover == mover).map(of).collect();
        of.iter().sum::<f64>() / of.len().max(1) as f64
    };
    let seconds = |mover: &str| mean(mover, &|sample| sample.seconds);
    let p99 = |mover: &str| mean(mover, &|sample| sample.report.latency.p99_ms);
    for mover in &options.movers {
        outcome.figures.insert(format!("{name} {mover} s"), seconds(mover));
        outcome.figures.insert(format!("{name} {mover} p99 ms"), p99(mover));
    }
    outcome.goals.push(Goal::at_least(
        format!("{name}: full, times faster"),
        4.0,
        seconds("cli") / seconds("full"),
    ));
    outcome.goals.push(Goal::at_least(
        format!("{name}: gentle, times faster"),
        2.5,
        seconds("cli") / seconds("gentle"),
    ));
    outcome.goals.push(Goal::at_most(
        format!("{name}: gentle, times the p99"),
        2.0,
        p99("gentle") / p99("cli"),
    ));
    Ok(())
}

async fn one_move(
    options: &Options,
    server: &Path,
    cluster: &RawCluster,
    mover: &str,
    from: NodeAddr,
    to: NodeAddr,
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
            "cli" => cli(server, from, to).await,
            _ => {
                let job = SlotMove {
                    from,
                    to,
                    slots: SlotSet::range(0, SLOTS_MOVED - 1),
                    others: cluster.others(&[from, to]),
                    login: None,
                    pace: if mover == "gentle" { Pace::Gentle } else { Pace::Full },
                    atomic: AtomicSlots::None,
                };
                let moved = move_slots(&job, |_| ()).await?;
                ensure!(moved.way == Way::Keys);
                Ok(())
            }
        }
    };
    timeout(MOVE_TIME_MAX, moving).await.with_context(|| format!("{mover} takes too long"))??;
    let seconds = started.elapsed().as_secs_f64();
    let report = ledger.stop().await?;
    cluster.wait_calm().await?;
    let verdict = report.verify(&cluster.addresses()).await?;
    ensure!(verdict.holds(), "{mover}: {verdict}");
    for index in 0..cluster.nodes.len() {
        let mut link = cluster.link(index).await?;
        for section in ["commandstats", "cpu"] {
            let t = tests::cluster::text(&mut link, &["INFO", section]).await?;
            for l in t.lines().filter(|l| {
                (l.contains("cmdstat")
                    && (l.contains("igrat")
                        || l.contains("setslot")
                        || l.contains("keysin")
                        || l.contains("restore")
                        || l.contains("memory")
                        || l.contains("rpush")
                        || l.contains("nodes")))
                    || l.contains("main_thread")
            }) {
                println!("   {mover} {index} {l}");
            }
        }
        link.call(["CONFIG", "RESETSTAT"]).await?;
    }
    Ok(Sample { mover: mover.to_owned(), seconds, report })
}

/// `redis-cli --cluster reshard` with its defaults.
async fn cli(server: &Path, from: NodeAddr, to: NodeAddr) -> Result<()> {
    let name = server.file_name().and_then(|name| name.to_str()).context("no name")?;
    let program = server.with_file_name(name.replace("-server", "-cli"));
    let output = Command::new(&program)
        .args(["--cluster", "reshard", &from.address.to_string(), "--cluster-yes"])
        .args(["--cluster-from", &from.id.to_string(), "--cluster-to", &to.id.to_string()])
        .args(["--cluster-slots", &SLOTS_MOVED.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}: {}",
        program.display(),
        text.lines().last().unwrap_or_default()
    );
    Ok(())
}
