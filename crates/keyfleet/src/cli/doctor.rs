//! `keyfleet doctor`: what on this machine will hurt.

use super::{context::Context, printer::Output};
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

pub fn run(_context: &Context, _args: &Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
