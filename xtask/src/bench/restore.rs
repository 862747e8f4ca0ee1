//! `cargo xtask bench restore`: a backup with keys of all types into a new cluster of three, by boot files,
//! and by `up` and then RESTORE, in turns; without and with append-only files.
//!
//! Both begin with nothing and end with a cluster that takes writes. What the servers used is told since
//! they were started. A new cluster without replicas takes writes two seconds after its start, whoever
//! makes it: that is in both times.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use keyfleet::admin_client::{Connection, DEADLINE};
use protocol::Info;
use tests::{
    cluster::{RawCluster, Shape},
    engines::engine,
    fleet::{CLUSTER, Spec, TestFleet},
    server::new_directory,
};

use super::{
    Goal, Outcome, build_program,
    import::{make, ours, watched},
    median,
};
use crate::command::target;

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000)]
    keys: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// What making a cluster with its data used.
#[derive(Clone, Copy)]
struct Turn {
    seconds: f64,
    /// Seconds of CPU: our own, and the servers'.
    own: f64,
    servers: f64,
    peak_bytes: u64,
}

impl Turn {
    fn cpu(&self) -> f64 {
        self.own + self.servers
    }
}

pub async fn run(options: &Options) -> Result<Outcome> {
    build_program()?;
    let mut outcome = Outcome { bench: "restore", ..Outcome::default() };
    let scratch = new_directory()?;
    let result = measure(options, &scratch, &mut outcome).await;
    let _ = fs::remove_dir_all(&scratch);
    result.map(|()| outcome)
}

async fn measure(options: &Options, scratch: &Path, outcome: &mut Outcome) -> Result<()> {
    let place = scratch.join("kept");
    backup(options.keys, scratch, &place).await?;
    let keys = options.keys as f64;
    let mut peak = 0;
    for profile in ["cache", "durable"] {
        let (mut booted, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            booted.push(by_boot_files(options.keys, profile, &place).await?);
            sent.push(by_commands(options.keys, profile, &place).await?);
        }
        let share = |figure: fn(&Turn) -> f64| {
            let pairs = booted.iter().zip(&sent);
            median(&pairs.map(|(booted, sent)| figure(booted) / figure(sent)).collect::<Vec<_>>())
        };
        let (by_cpu, by_time) = (share(Turn::cpu), share(|turn| turn.seconds));
        let servers = share(|turn| turn.servers);
        let mut figure = |name: &str, value: f64| {
            let name = format!("{profile}: {name}");
            println!("{name:<48} {value:>12.2}");
            outcome.figures.insert(name, value);
        };
        for (way, turns) in [("boot files", &booted), ("RESTORE", &sent)] {
            let of =
                |figure: fn(&Turn) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
            let micros = 1e6 / keys;
            figure(&format!("by {way}, s"), of(|turn| turn.seconds));
            figure(&format!("servers by {way}, us of CPU a key"), of(|turn| turn.servers) * micros);
            figure(&format!("keyfleet by {way}, us of CPU a key"), of(|turn| turn.own) * micros);
        }
        figure("boot files' share of the time", by_time);
        figure("boot files' share of the servers' CPU", servers);
        peak = booted.iter().map(|turn| turn.peak_bytes).max().unwrap_or_default().max(peak);
        outcome.goals.push(Goal::at_most(format!("{profile}: share of all CPU"), 0.7, by_cpu));
    }
    let peak = peak as f64 / f64::from(1 << 20);
    outcome.goals.push(Goal::at_most("peak memory, MiB", 64.0, peak));
    Ok(())
}

/// Puts a backup of a cluster with so many keys into `place`.
async fn backup(keys: usize, scratch: &Path, place: &Path) -> Result<()> {
    let file = make(keys, scratch, "all").await?;
    let server = engine("redis", "7.0").server;
    let shape = Shape { server: &server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await?;
    let address = cluster.addresses().first().context("a node")?.to_string();
    ours(&file, &address, scratch)?;
    let mut command = keyfleet();
    command.args(["backup", "all", "--connect", &address, "--to"]).arg(place);
    watched(&mut command)?;
    Ok(fs::remove_file(&file)?)
}

/// The program that is delivered.
fn keyfleet() -> Command {
    Command::new(target().join("release").join("keyfleet"))
}

fn fleet(profile: &'static str) -> TestFleet {
    TestFleet::new(&Spec { replicas: 0, profile, ..Spec::default() })
}

async fn by_boot_files(keys: usize, profile: &'static str, place: &Path) -> Result<Turn> {
    let fleet = fleet(profile);
    let turn = restore(&fleet, place)?;
    ensure!(fleet.keys().await == keys as u64, "keys are missing");
    Ok(Turn { servers: cpu(&fleet).await?, ..turn })
}

async fn by_commands(keys: usize, profile: &'static str, place: &Path) -> Result<Turn> {
    let fleet = fleet(profile);
    let up = watched(keyfleet().args(["up", "--no-guard"]).current_dir(fleet.directory()))?;
    let turn = restore(&fleet, place)?;
    ensure!(fleet.keys().await == keys as u64, "keys are missing");
    let (seconds, own) = (turn.seconds + up.seconds, turn.own + up.cpu_seconds);
    Ok(Turn { seconds, own, servers: cpu(&fleet).await?, ..turn })
}

fn restore(fleet: &TestFleet, place: &Path) -> Result<Turn> {
    let mut command = keyfleet();
    command.args(["restore", "latest", "--to", CLUSTER, "--from"]).arg(place);
    let used = watched(command.current_dir(fleet.directory()))?;
    let (own, peak_bytes) = (used.cpu_seconds, used.peak_bytes);
    Ok(Turn { seconds: used.seconds, own, servers: 0.0, peak_bytes })
}

/// Seconds of CPU that the servers have used.
async fn cpu(fleet: &TestFleet) -> Result<f64> {
    let mut seconds = 0.0;
    for address in fleet.seeds() {
        let mut link = Connection::open(address, None, DEADLINE).await?;
        let reply = link.call(["INFO", "cpu"]).await?;
        let info = Info::parse(reply.as_str().unwrap_or_default());
        for field in ["used_cpu_sys", "used_cpu_user"] {
            seconds += info.get(field).context("INFO cpu")?.parse::<f64>()?;
        }
    }
    Ok(seconds)
}
