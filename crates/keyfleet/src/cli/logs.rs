//! `keyfleet logs`: what servers log, several at once.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A node (cache-1) or a cluster (cache) [default: all]
    #[arg(value_name = "NODE|CLUSTER")]
    of: Option<String>,
    /// Go on as lines are written, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines of each node
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20)]
    lines: usize,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
