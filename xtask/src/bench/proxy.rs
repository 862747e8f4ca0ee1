//! `cargo xtask bench proxy`: what `keyfleet proxy` costs, beside nutcracker in the same run: the same
//! file, the same three servers and the same load, one thread each, in turn.
//!
//! The figure is the proxy's own CPU time for a request, by the scheduler's count: what a noisy
//! machine bends least. Requests per second and latencies are printed too, and on few cores say more
//! about who shares them. A round measures all right after one another, and a ratio is the median of
//! the rounds' ratios.

mod closed_loop;
mod idle;
mod near;
mod open_loop;
mod rig;
mod slow_reader;
mod threads;
mod tls;
mod wear;

use anyhow::Result;
use clap::{Args, ValueEnum};

use self::rig::Rig;
use super::{Goal, Outcome};
use crate::packages;

#[derive(Args)]
pub struct Options {
    /// Of each comparison.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How many times the usual number of requests each load makes.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Connections that are opened to see what an idle one takes; fewer where the machine doesn't
    /// let a process have so many files.
    #[arg(long, default_value_t = 100_000)]
    idle: usize,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().to_vec())]
    parts: Vec<Part>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Fifty connections that ask again when they have the answer.
    Closed,
    /// So many requests a second, whether answers come or not.
    Open,
    /// Two threads beside one.
    Threads,
    /// Clients that speak TLS.
    Tls,
    /// Clients that say nothing.
    Idle,
    /// A proxy that has worked long beside a fresh one.
    Wear,
    /// A client that doesn't read.
    Reader,
    /// Hot keys, from memory.
    Near,
}

pub fn run(options: &Options) -> Result<Outcome> {
    super::build_program()?;
    packages::need(&[
        ("redis-server", "redis-server"),
        ("redis-benchmark", "redis-tools"),
        ("nutcracker", "nutcracker"),
        ("perf", "linux-perf"),
    ])?;
    rig::raise_open_files()?;
    let mut rig = Rig::start()?;
    let mut outcome = Outcome { bench: "proxy", ..Outcome::default() };
    for part in Part::value_variants().iter().filter(|part| options.parts.contains(part)) {
        let outcome = &mut outcome;
        match part {
            Part::Closed => closed_loop::measure(options, &mut rig, outcome)?,
            Part::Open => open_loop::measure(options, &mut rig, outcome)?,
            Part::Threads => threads::measure(options, &mut rig, outcome)?,
            Part::Tls => tls::measure(options, &mut rig, outcome)?,
            Part::Idle => idle::measure(options, &mut rig, outcome)?,
            Part::Wear => wear::measure(options, &mut rig, outcome)?,
            Part::Reader => slow_reader::measure(&mut rig, outcome)?,
            Part::Near => near::measure(options, &mut rig, outcome)?,
        }
    }
    Ok(outcome)
}

impl Outcome {
    fn figure(&mut self, name: impl Into<String>, value: f64) {
        self.figures.insert(name.into(), value);
    }

    fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }
}
