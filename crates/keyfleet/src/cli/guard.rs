//! `keyfleet guard`: keep watch in the foreground.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only look and say what would be done
    #[arg(long)]
    observe: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    crate::guard::guard(context.file(), args.observe, Default::default())
        .await
        .map_err(|e| Failure::environment(e.to_string()))?;
    Ok(Exit::Done)
}
