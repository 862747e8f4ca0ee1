//! `keyfleet backup --follow`: backups, and every command after them.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{Take, failure, job, show, taken};
use crate::{
    backup::{
        follow::{self, FollowError, Progress, State},
        manifest::shown,
        take::Job,
    },
    cli::{
        context::Context,
        text::{plural, size},
    },
    errors::{Exit, Failure},
};

/// Between two looks at how it goes.
const LOOK: Duration = Duration::from_millis(250);

/// After a backup that failed.
const AGAIN: Duration = Duration::from_secs(60);

pub async fn run(
    context: &Context,
    args: &Take,
    mut job: Job,
    stop: watch::Receiver<bool>,
) -> Result<Exit, Failure> {
    let mut backups = self::job(context, args).await?;
    let progress = Progress::default();
    let (over, mut is_over) = watch::channel(false);
    let following = async {
        let ended = follow::follow(&mut job, args.segment, &progress, stop).await;
        let _ = over.send(true);
        ended
    };
    let backing_up = async {
        let mut due = Instant::now() + args.every;
        let mut said = State::default();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = is_over.wait_for(|over| *over) => return Ok::<(), Failure>(()),
            }
            say(context, &progress, &mut said);
            let wanted = progress.wants_backup();
            if said.chain.is_none() || !(wanted || Instant::now() >= due) {
                continue;
            }
            match taken(context, args, &mut backups, is_over.clone()).await {
                Ok(taken) => {
                    progress.backed_up(&said);
                    due = Instant::now() + args.every;
                    show(context, args.output, &taken)?;
                }
                Err(_) if *is_over.borrow() => {}
                Err(error) => {
                    // What is kept from now on waits for a backup.
                    context.printer.failure(&error);
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN) => {}
                        _ = is_over.wait_for(|over| *over) => {}
                    }
                }
            }
        }
    };
    tokio::pin!(following, backing_up);
    // A backup that is under way clears away what it has written.
    let (ended, backed_up) = tokio::select! {
        ended = &mut following => (ended, backing_up.await),
        backed_up = &mut backing_up => {
            backed_up?;
            (following.await, Ok(()))
        }
    };
    backed_up?;
    match ended {
        Ok(()) => {
            let state = progress.state();
            let until = if state.until_ms > 0 {
                format!(": every second until {} can be gone back to", shown(state.until_ms))
            } else {
                String::new()
            };
            let bytes = size(progress.bytes.load(Ordering::Relaxed));
            let segments = plural(progress.segments.load(Ordering::Relaxed), "segment");
            context.printer.note(&format!("{bytes} of commands kept in {segments}{until}"));
            Ok(Exit::Done)
        }
        Err(FollowError::Backup(error)) => Err(failure(&error)),
        Err(error @ FollowError::Another { .. }) => {
            Err(Failure::of(&error).hint("one is enough: stop this one, or the other"))
        }
    }
}

/// Says what has changed.
fn say(context: &Context, progress: &Progress, said: &mut State) {
    let now = progress.state();
    if now.broken != said.broken
        && let Some(broken) = &now.broken
    {
        context.printer.urgent(&format!("warning: {broken}"));
    }
    if now.chain != said.chain
        && let Some(chain) = &now.chain
    {
        let what = if now.until_ms > 0 { "going on with" } else { "keeping commands as" };
        context.printer.note(&format!("{what} {chain}"));
    }
    if now.waiting_for != said.waiting_for {
        context.printer.note(&match &now.waiting_for {
            Some(why) => format!("waiting: {why}"),
            None => "following again".to_owned(),
        });
    }
    *said = now;
}
