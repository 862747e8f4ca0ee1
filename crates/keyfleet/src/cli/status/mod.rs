//! `keyfleet status`: what exists and what is at risk.

mod picture;
#[cfg(test)]
mod tests;

use serde::Serialize;

use super::{context::Context, printer::Output};
use crate::errors::{Exit, Failure};

/// Who keeps watch over the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GuardView {
    /// Who holds the lease, as it calls itself (`guard, pid 4711`).
    pub acting: Option<String>,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// How many more wait for the lease.
    pub standby: usize,
    /// Until when nothing may be changed, in milliseconds since the Unix epoch.
    pub frozen_until_ms: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Draw it again every second until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// Look at any existing cluster through one of its nodes, changing nothing
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
