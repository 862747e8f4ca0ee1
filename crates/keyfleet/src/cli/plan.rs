//! `keyfleet plan`: the whole path to what the fleet's file wants, as predicted.

use fleet::{model::Fleet, observed::Observed, plan::plan, step::Wave, world::preview};
use serde::Serialize;

use super::{connect, context::Context, printer::Output, steps};
use crate::{
    admin_client::Pool,
    errors::{Exit, Failure},
    observe::Observer,
};

/// A path that is longer than this is cut off; `up` would go on by itself.
const WAVES_MAX: usize = 1_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Exit with 3 where something would change
    #[arg(long)]
    exit_code: bool,
    /// Plan for an existing cluster, seen through one of its nodes, as if the file's only cluster
    /// were meant to be it
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// The answer as JSON.
#[derive(Serialize)]
struct Answer<'a> {
    changes: bool,
    waves: &'a [Wave],
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let session = context.open()?;
    let (fleet, observed): (Fleet, Observed) = if let Some(address) = &args.connect {
        connect::adopt(&session.fleet, connect::observe(address).await?)?
    } else {
        let mut observer = Observer::new(session.store.clone(), Pool::new());
        (Fleet::clone(&session.fleet), observer.observe(&session.fleet).await?)
    };
    let waves = preview(&fleet, &observed, WAVES_MAX, plan);
    let changes = !steps::is_empty(&waves);
    match args.output {
        Output::Json => context.printer.json(&Answer { changes, waves: &waves })?,
        Output::Text => context.printer.data(&steps::path(&waves, context.printer.style))?,
    }
    let blocked = waves.last().is_some_and(|wave| !wave.blocked.is_empty());
    Ok(match (args.exit_code && changes, blocked) {
        (true, _) => Exit::Changes,
        (false, true) => Exit::User,
        (false, false) => Exit::Done,
    })
}
