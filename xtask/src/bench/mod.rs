//! Benchmarks with goals. Each prints a table, then as its last line one line of JSON:
//! `{"bench": …, "figures": {…}, "goals": [{"goal": …, "wanted": …, "reached": …, "holds": …}], "holds": …}`.

mod reshard;

use std::{
    collections::BTreeMap,
    process::{Command, ExitCode},
};

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

#[derive(Subcommand)]
pub enum Bench {
    /// Move 5,461 slots of a million keys under load, by us and by the engine's own tool.
    Reshard(reshard::Options),
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
    pub goal: String,
    /// `≥ 4` or `≤ 2`.
    pub wanted: String,
    pub reached: f64,
    pub holds: bool,
}

impl Goal {
    pub fn at_least(goal: impl Into<String>, wanted: f64, reached: f64) -> Self {
        let holds = reached >= wanted;
        Self { goal: goal.into(), wanted: format!("≥ {wanted}"), reached, holds }
    }

    pub fn at_most(goal: impl Into<String>, wanted: f64, reached: f64) -> Self {
        let holds = reached <= wanted;
        Self { goal: goal.into(), wanted: format!("≤ {wanted}"), reached, holds }
    }
}

/// Runs a benchmark in a release build: builds and starts one where this isn't.
pub fn run(bench: &Bench) -> anyhow::Result<ExitCode> {
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
    };
    outcome.holds = outcome.goals.iter().all(|goal| goal.holds);
    println!();
    for goal in &outcome.goals {
        let verdict = if goal.holds { "holds" } else { "MISSED" };
        println!("{:<58} {:>8} {:>8.2}  {verdict}", goal.goal, goal.wanted, goal.reached);
    }
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(if outcome.holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
