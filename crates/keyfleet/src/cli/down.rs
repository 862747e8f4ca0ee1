//! `keyfleet down`: stop servers. Data stays, unless its deletion is asked for by name.

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these clusters
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// Delete the data too; asks for each cluster's name
    #[arg(long)]
    delete_data: bool,
    /// The name that would be asked for, for scripts
    #[arg(long, value_name = "CLUSTER", requires = "delete_data")]
    yes_delete: Vec<String>,
}

pub async fn run(_context: &Context, _args: Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
