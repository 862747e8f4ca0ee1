//! `keyfleet up`: make the world match the fleet's file, then guard it.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these clusters
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// Leave guard running in the background and return
    #[arg(long, short)]
    detach: bool,
    /// Start no guard; nothing heals by itself then
    #[arg(long, conflicts_with = "detach")]
    no_guard: bool,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
