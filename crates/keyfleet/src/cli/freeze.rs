//! `keyfleet freeze`: let nothing be changed for a while.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this cluster
    #[arg(value_name = "CLUSTER")]
    cluster: Option<String>,
    /// For how long (30m, 1h, 2d)
    #[arg(long = "for", value_name = "TIME", default_value = "1h", conflicts_with = "lift")]
    time: String,
    /// End it now
    #[arg(long)]
    lift: bool,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
