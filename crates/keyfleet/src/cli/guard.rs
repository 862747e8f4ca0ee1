//! `keyfleet guard`: keep watch in the foreground.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only look and say what would be done
    #[arg(long)]
    observe: bool,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
