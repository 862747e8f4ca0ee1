//! `keyfleet up`: make the world match the fleet's file, then guard it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::context::Context;
use crate::{
    errors::{Exit, Failure},
    execute::{Event, Sink},
    reconcile::{Ended, Reconciler},
    session::Session,
};

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

pub async fn run(context: &Context, _args: Args) -> Result<Exit, Failure> {
    let started = std::time::Instant::now();
    let session = Session::open(context.file(), context.file.is_some())
        .map_err(|error| Failure::user(error.to_string()))?;
    let steps = session.context().await.map_err(|error| Failure::user(error.to_string()))?;
    session.store.set_applied(&session.text).map_err(|e| Failure::environment(e.to_string()))?;
    let sink: Sink = Arc::new(move |event: Event<'_>| match event {
        Event::Started(step) => {
            eprintln!("{:?} start {}: {}", started.elapsed(), step.action, step.why)
        }
        Event::Done(step, done) => {
            eprintln!("{:?} done {} {:?}", started.elapsed(), step.action, done.took)
        }
        Event::Failed(step, error) => eprintln!("FAILED {}: {error}", step.action),
        _ => {}
    });
    let stop = Arc::new(AtomicBool::new(false));
    let mut reconciler = Reconciler::new(steps);
    let (turn, ended) = reconciler
        .converge(&sink, &|| stop.load(Ordering::Relaxed), &mut |turn, _| {
            eprintln!(
                "{:?} look: {} steps, blocked {:?}, waiting {:?}",
                started.elapsed(),
                turn.wave.steps.len(),
                turn.wave.blocked,
                turn.wave.waiting
            );
        })
        .await
        .map_err(|e| Failure::environment(e.to_string()))?;
    eprintln!("{:?} {ended:?} {}", started.elapsed(), turn.wave.steps.len());
    match ended {
        Ended::Done => Ok(Exit::Done),
        _ => Ok(Exit::User),
    }
}
