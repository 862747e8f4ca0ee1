//! Benchmarks with goals. Each prints a table, then as its last line one line of JSON:
//! `{"bench": …, "figures": {…}, "goals": [{"goal": …, "wanted": …, "reached": …, "holds": …}], "holds": …}`.

mod analyze;
mod failover;
mod import;
mod plan;
mod proxy;
mod rdb;
mod record;
mod reshard;
mod restore;
mod up;

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode},
};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

use crate::command;

#[derive(Subcommand)]
pub enum Bench {
    /// Move 5,461 slots of a million keys under load, by us and by the engine's own tool.
    Reshard(reshard::Options),
    /// Make six nodes from nothing, beside the engine's own tool.
    Up(up::Options),
    /// Plan fleets of up to 10,000 nodes.
    Plan(plan::Options),
    /// What a request costs in the proxy, beside nutcracker.
    Proxy(proxy::Options),
    /// How long a shard takes no writes when its primary goes, planned or not.
    Failover(failover::Options),
    /// How fast one core reads an RDB file.
    Rdb(rdb::Options),
    /// Load a file into a cluster, beside rdb-tools, the engine's own tool, and the target's limit.
    Import(import::Options),
    /// A backup into a new cluster, by files that its servers load at their start and by commands.
    Restore(restore::Options),
    /// Look into a file, beside rdb-tools; memory where a file is large.
    Analyze(analyze::Options),
}

/// What a benchmark found.
#[derive(Serialize, Default)]
pub struct Outcome {
    pub bench: &'static str,
    pub figures: BTreeMap<String, f64>,
    pub goals: Vec<Goal>,
    pub holds: bool,
}

/// A figure that is to be reached.
#[derive(Serialize)]
pub struct Goal {
    #[serde(rename = "goal")]
    pub name: String,
    /// `≥ 4` or `≤ 2`.
    pub wanted: String,
    pub reached: f64,
    pub holds: bool,
}

impl Goal {
    pub fn at_least(name: impl Into<String>, wanted: f64, reached: f64) -> Self {
        let holds = reached >= wanted;
        Self { name: name.into(), wanted: format!("≥ {wanted}"), reached, holds }
    }

    pub fn at_most(name: impl Into<String>, wanted: f64, reached: f64) -> Self {
        let holds = reached <= wanted;
        Self { name: name.into(), wanted: format!("≤ {wanted}"), reached, holds }
    }
}

/// Runs a benchmark in a release build: builds and starts one where this isn't. With `record`, what it
/// found goes into docs/figures.md.
pub fn run(bench: &Bench, record: bool) -> anyhow::Result<ExitCode> {
    if cfg!(debug_assertions) {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["run", "--quiet", "--release", "--package", "xtask", "--"])
            .args(std::env::args_os().skip(1))
            .status()
            .context("cargo")?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        return Ok(ExitCode::from(code.unwrap_or(2)));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("tokio")?;
    let mut outcome = match bench {
        Bench::Reshard(options) => runtime.block_on(reshard::run(options))?,
        Bench::Up(options) => runtime.block_on(up::run(options))?,
        Bench::Plan(options) => plan::run(options)?,
        Bench::Proxy(options) => proxy::run(options)?,
        Bench::Rdb(options) => rdb::run(options)?,
        Bench::Import(options) => runtime.block_on(import::run(options))?,
        Bench::Restore(options) => runtime.block_on(restore::run(options))?,
        Bench::Analyze(options) => runtime.block_on(analyze::run(options))?,
        Bench::Failover(options) => runtime.block_on(failover::run(options))?,
    };
    outcome.holds = outcome.goals.iter().all(|goal| goal.holds);
    println!();
    for goal in &outcome.goals {
        let verdict = if goal.holds { "holds" } else { "MISSED" };
        println!("{:<58} {:>8} {:>8.2}  {verdict}", goal.name, goal.wanted, goal.reached);
    }
    if record {
        record::record(&outcome)?;
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(if outcome.holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the program that is delivered.
fn build_program() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(command::workspace());
    command::run(build.args(["build", "--quiet", "--release", "--package", "keyfleet"]))
}

/// The middle one, or the mean of the middle two; 0 of none.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let above = sorted.get(middle).copied().unwrap_or_default();
    let below = sorted.get(middle.saturating_sub(1)).copied().unwrap_or_default();
    if sorted.len() % 2 == 1 { above } else { f64::midpoint(below, above) }
}

/// The sample below which this share of them lies: the largest where there are few.
fn at_share(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
