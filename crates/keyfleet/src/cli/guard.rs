//! `keyfleet guard`: keep watch, in the foreground or as a process of its own.

use std::{
    fs::OpenOptions,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::Path,
    pin::pin,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{context::Context, lease, signals};
use crate::{
    errors::{Exit, Failure},
    guard::{GuardError, guard},
    session::Session,
};

/// How long a new guard may take to be at work.
const START: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only look and say what would be done
    #[arg(long)]
    observe: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    keep_watch(context, args.observe).await
}

/// Guards until Ctrl-C or until nothing is left to guard. What is under way is finished first; a
/// second Ctrl-C drops it, which is safe too.
pub async fn keep_watch(context: &Context, observe: bool) -> Result<Exit, Failure> {
    let asked = signals::asked_to_stop()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut watch = pin!(guard(context.file(), observe, Arc::clone(&stop)));
    let printer = context.printer;
    tokio::select! {
        ended = &mut watch => {
            ended?;
            printer.note("Nothing is left to guard.");
            return Ok(Exit::Done);
        }
        () = asked => stop.store(true, Ordering::Relaxed),
    }
    tokio::select! {
        ended = watch => ended?,
        () = signals::asked_to_stop()? => {}
    }
    printer.note(&format!(
        "Guard ends; servers keep running, and nothing heals by itself. To stop them: {}",
        context.command("down")
    ));
    Ok(Exit::Done)
}

/// Starts a guard that outlives this process and its terminal.
pub async fn start_detached(context: &Context, session: &Session) -> Result<(), Failure> {
    let log = session.store.root().join("guard.log");
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
    let file = opened.map_err(|error| Failure::file("open", &log, &error))?;
    let copy = file.try_clone().map_err(|error| Failure::file("open", &log, &error))?;
    let cannot = |error: &std::io::Error| Failure::environment("cannot start guard").because(error);
    let program = std::env::current_exe().map_err(|error| cannot(&error))?;
    let mut child = Command::new(program)
        .arg("--file")
        .arg(context.file())
        .args(["--color", "never", "-v", "guard"])
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        // Ctrl-C in this terminal is not meant for it.
        .process_group(0)
        .spawn()
        .map_err(|error| cannot(&error))?;
    let started = Instant::now();
    while lease::guard_pid(&session.store)? != Some(child.id()) {
        let ended = child.try_wait().map_err(|error| cannot(&error))?;
        if ended.is_some() || started.elapsed() > START {
            return Err(not_at_work(&log));
        }
        tokio::time::sleep(POLL).await;
    }
    let here = std::env::current_dir().ok();
    let shown = here.and_then(|here| log.strip_prefix(here).ok()).unwrap_or(&log).display();
    context.printer.note(&format!("Guard is at work (pid {}), its log in {shown}.", child.id()));
    Ok(())
}

fn not_at_work(log: &Path) -> Failure {
    Failure::environment("guard was started and is not at work")
        .hint(format!("see why: tail {}", log.display()))
}

impl From<GuardError> for Failure {
    fn from(error: GuardError) -> Self {
        match error {
            GuardError::Session(error) => error.into(),
            GuardError::Lease(error) => error.into(),
            GuardError::Store(error) => error.into(),
        }
    }
}
