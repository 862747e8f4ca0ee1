//! `keyfleet restore --at TIME`: a backup, and what was kept of the commands after it.

use std::sync::atomic::Ordering;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use protocol::SlotSet;

use super::{Args, held, inputs};
use crate::{
    backup::{
        manifest::shown,
        point::{self, PointInTime},
        shelf,
    },
    cli::{
        backup::{from, no_way, unfound},
        context::Context,
        import::{Goal, Load, goal, outcome},
        signals,
        text::{bar, count, plural, size},
    },
    errors::{Exit, Failure},
    mover::{
        import::{
            Existing, ImportError,
            filter::Filter,
            report::{Replayed, Report, Troubles},
            state::StateFile,
        },
        replay::{self, ReplayError, Scan, Watch},
    },
    secrets::sha256,
};

/// Shards that are read at a time.
const READ_AT_ONCE: usize = 2;

const BAR_WIDTH: usize = 24;

pub async fn run(context: &Context, args: Args, at_ms: u64) -> Result<Exit, Failure> {
    let storage = from(context, args.shelf.from.as_deref())?;
    let named = args.shelf.cluster.as_deref();
    let cluster =
        shelf::cluster(&storage, named, &args.id).await.map_err(|error| unfound(&error))?;
    let wanted = Some(args.id.as_str()).filter(|id| *id != "latest");
    let point = point::find(&storage, &cluster, wanted, at_ms).await;
    let point = point.map_err(|error| no_way(&error, storage.place()))?;
    let goal = goal(context, &args.to).await?;
    context.printer.note(&format!(
        "Restoring {cluster} as of {}: backup {} ({}) and {} of commands after it.",
        shown(point.tick.at_ms),
        point.base.id,
        plural(point.base.keys(), "key"),
        size(point.bytes())
    ));
    let scans = point.shards.iter().map(|shard| replay::scan(&storage, &point, shard));
    // Before anything is done: is all of it there, and whole?
    let scans: Vec<Scan> = stream::iter(scans)
        .buffered(READ_AT_ONCE)
        .try_collect()
        .await
        .map_err(|error| no_way(&error, storage.place()))?;
    let load = Load {
        inputs: inputs(&storage, &point.base),
        filter: Filter::default(),
        existing: Existing::Replace,
        followed: Some(wanted_slots(&point, &scans, &goal)),
        booted: None,
        how: args.how,
    };
    let run = format!("{} {} {}", point.base.id, cluster, point.tick.at_ms);
    let run = sha256(run.as_bytes()).get(..16).unwrap_or_default().to_owned();
    let output = load.how.output;
    if load.how.dry_run {
        let commands: u64 = scans.iter().map(|scan| scan.commands).sum();
        let (report, _) = load.load(context, goal, None).await?;
        context.printer.note(&format!("{} would follow", plural(commands, "command")));
        return outcome::show(context.printer, output, &report);
    }
    let state = load.state(&goal.to, goal.notes.as_deref())?;
    let saved = state.as_ref().and_then(StateFile::load);
    if saved.is_none() {
        must_be_empty(&args.to, &goal).await?;
    }
    let mut job = replay::Job {
        storage: &storage,
        point: &point,
        scans: &scans,
        target: goal.target.clone(),
        login: goal.login.clone(),
        patience: load.how.patience,
        run,
        resumed: false,
        field_ends: false,
    };
    let (mut report, state) = if let Some(saved) = saved.filter(|saved| saved.loaded) {
        context.printer.note("The backup is loaded; going on with the commands after it.");
        // Nobody noted whether there were any.
        (job.resumed, job.field_ends) = (true, true);
        (Report { read: saved.tally, ..Report::default() }, state)
    } else {
        load.load(context, goal, state).await?
    };
    job.field_ends |= report.read.field_ends > 0;
    let (replayed, troubles) = replayed(context, &job).await?;
    report.replayed = Some(replayed);
    report.read.troubles.join(troubles);
    if let Some(state) = state {
        state.forget();
    }
    outcome::show(context.printer, output, &report)
}

/// For each file the slots whose keys count.
fn wanted_slots(point: &PointInTime, scans: &[Scan], goal: &Goal) -> Vec<SlotSet> {
    let verbatim = replay::is_verbatim(&goal.target, point);
    let each = point.shards.iter().zip(scans).map(|(shard, scan)| {
        let owned = if shard.slots.is_empty() { SlotSet::full() } else { shard.slots.clone() };
        if verbatim { owned } else { scan.standing(&owned) }
    });
    each.collect()
}

async fn must_be_empty(to: &str, goal: &Goal) -> Result<(), Failure> {
    let held = held(&goal.target, goal.login.as_ref()).await;
    let held = held.map_err(|error| outcome::failure(&error.into(), false))?;
    if held == 0 {
        return Ok(());
    }
    Err(Failure::user(format!(
        "{to} holds {} already, and nothing was restored",
        plural(held, "key")
    ))
    .hint(
        "commands are done again on what is there: restore into a new cluster, or empty this one",
    ))
}

async fn replayed(
    context: &Context,
    job: &replay::Job<'_>,
) -> Result<(Replayed, Troubles), Failure> {
    let stop = signals::asked_to_stop()?;
    let watch = Watch::default();
    let total = job.point.bytes();
    let mut live = context.printer.live();
    let drawing = async {
        let mut ticks = tokio::time::interval(outcome::REDRAW);
        loop {
            ticks.tick().await;
            let done = watch.bytes.load(Ordering::Relaxed);
            let commands = count(watch.commands.load(Ordering::Relaxed));
            let line = format!("{} {commands} commands", bar(done, total, BAR_WIDTH));
            let line = match watch.waiting_for() {
                Some(why) => format!("{line}  waiting: {why}"),
                None => line,
            };
            live.draw(&[], &[line]);
        }
    };
    let result = tokio::select! {
        result = replay::replay(job, &watch) => Ok(result),
        never = drawing => never,
        () = stop => Err(()),
    };
    live.clear();
    match result {
        Ok(Ok(replayed)) => Ok(replayed),
        Ok(Err(error)) => Err(failure(&error, job.storage.place())),
        Err(()) => Err(Failure::user("stopped before the end")
            .hint("go on where it stopped: run the same command again")),
    }
}

fn failure(error: &ReplayError, place: &str) -> Failure {
    match error {
        ReplayError::Point(error) => no_way(error, place),
        ReplayError::Load(error) => outcome::failure(&ImportError::Load(error.clone()), true),
        ReplayError::Client(_) | ReplayError::Forgetful | ReplayError::Ends { .. } => {
            Failure::of(error).hint(
                "see that every slot has a primary, then run the same command again: it goes on \
                 where it stopped",
            )
        }
    }
}
