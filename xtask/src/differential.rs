//! `cargo xtask differential`: keyfleet beside twemproxy, for as long as it takes.

use std::{env, fs, process::Command, time::Instant};

use anyhow::Result;
use tests::{differences::page, twemproxy::compare};

use crate::{
    command::{run as run_command, workspace},
    engines, packages,
};

const PAGE: &str = "docs/reference/twemproxy.md";

/// Commands between two lines of progress: each time with new servers.
const ROUND: usize = 100_000;

/// Sends so many commands. An error tells the command and both answers.
pub fn run(commands: usize, seed: u64) -> Result<()> {
    packages::need(&[("nutcracker", "nutcracker")])?;
    engines::install()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    run_command(cargo.current_dir(workspace()).args(["build", "--package", "keyfleet"]))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let started = Instant::now();
    let mut sent = 0;
    while sent < commands {
        let round = ROUND.min(commands - sent);
        // Pools of a round take seeds that follow each other.
        runtime.block_on(compare(round, seed + sent as u64))?;
        sent += round;
        println!("{sent} commands alike after {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Writes the reference page of what differs on purpose.
pub fn write_page() -> Result<()> {
    Ok(fs::write(workspace().join(PAGE), page())?)
}
