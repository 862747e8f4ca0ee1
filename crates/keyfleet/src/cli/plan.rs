//! `keyfleet plan`: the whole path to what the fleet's file wants, as predicted.

use super::{context::Context, printer::Output};
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit with 3 where something would change
    #[arg(long)]
    exit_code: bool,
    /// Plan for an existing cluster, seen through one of its nodes
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
