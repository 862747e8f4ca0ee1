//! RDB and append-only files into a live cluster or server.
//!
//! A thread reads the files and feeds a [`load`](super::load): whole values as RESTORE in the lowest
//! version that has them ([`carry`]), large ones in pieces under a temporary name ([`big`]), the
//! commands of append-only files as they are ([`commands`]). What can't be carried is named, and the
//! rest is.
//!
//! Invariants:
//! - A key is there whole, with its end, or not at all.
//! - Everything before a saved position ([`state`]) is done, so the same import goes on from there
//!   whenever it was stopped. What is done twice then does no harm; commands, which could, end it.
//! - Nothing is left out in silence: keys read are keys loaded, existing, expired, not asked for, or
//!   in trouble.

mod big;
mod carry;
mod commands;
mod compare;
pub mod filter;
pub mod report;
mod restore;
mod sieve;
pub mod source;
pub mod split;
pub mod state;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use protocol::SlotSet;
use tokio::runtime::Handle;

use self::{
    carry::Carrier,
    compare::Compare,
    filter::Filter,
    report::Report,
    source::{Input, Position, SourceError},
    state::{Loaded, Saved, StateError, StateFile},
};
use super::load::{LoadError, Loader, Options, Target};
use crate::{
    admin_client::{ClientError, Login},
    sync::locked,
};

/// What to do with keys that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The file's value takes the place.
    Replace,
    /// They stay, and are counted.
    Skip,
    /// They stay, and are troubles where their value isn't the same.
    Fail,
}

/// An import to be done.
#[derive(Debug)]
pub struct Job {
    pub inputs: Vec<Input>,
    pub target: Target,
    pub login: Option<Login>,
    pub filter: Filter,
    pub existing: Existing,
    pub p99_max: Option<Duration>,
    pub patience: Duration,
    pub dry_run: bool,
    pub verify: bool,
    /// Commands follow: for each of the inputs the slots whose keys are wanted. Ends are put off by
    /// [`LATER_MS`](super::replay::LATER_MS), and when all is loaded the state says so instead of being forgotten.
    pub followed: Option<Vec<SlotSet>>,
    /// The inputs are what is left where servers loaded the rest at their start.
    pub booted: Option<Booted>,
    /// Where it is noted how far it got; None where it can't go on later.
    pub state: Option<StateFile>,
}

/// What servers loaded at their start.
#[derive(Debug)]
pub struct Booted {
    /// All files that were to be loaded, for who compares.
    pub inputs: Vec<Input>,
    pub loaded: Vec<Loaded>,
}

/// Why an import ended early. What was done stays done.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("it was stopped while it sent commands, some of which must not be done twice")]
    Interrupted,
    #[error("byte {offset} of {name} has {command}, which would change what else is there")]
    Sweeping { name: String, offset: u64, command: String },
    #[error("{option} looks at values, and {name} holds commands")]
    Commands { name: String, option: &'static str },
    #[error("the connection broke while a large value was sent, and {name} can't be read again")]
    Once { name: String },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{key} is sent again and again and does not arrive")]
    Stuck { key: String },
}

/// What an import is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Loading,
    /// Writing the files that new servers load at their start.
    Splitting,
    /// Looking at keys that were there already.
    Comparing,
    Verifying,
}

/// An import as others watch it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes of the input that were read.
    pub read: AtomicU64,
    /// Keys that were read.
    pub keys: AtomicU64,
    phase: Mutex<Phase>,
    loader: Mutex<Option<Arc<Loader>>>,
    /// Positions that may be saved once everything before them is answered.
    positions: Mutex<VecDeque<Saved>>,
}

impl Watch {
    /// What it is at.
    pub fn phase(&self) -> Phase {
        *locked(&self.phase)
    }

    /// What holds it up now, if anything.
    pub fn waiting_for(&self) -> Option<String> {
        locked(&self.loader).as_ref().and_then(|loader| loader.progress().waiting_for())
    }

    fn enter(&self, phase: Phase) {
        *locked(&self.phase) = phase;
        self.read.store(0, Ordering::Relaxed);
    }

    /// The latest position before which everything is done.
    fn done(&self) -> Option<Saved> {
        let loader = locked(&self.loader).as_ref().map(Arc::clone)?;
        let low_water = loader.low_water();
        let mut positions = locked(&self.positions);
        let mut done = None;
        while positions.front().is_some_and(|saved| saved.position.total <= low_water) {
            done = positions.pop_front();
        }
        let mut saved = done?;
        // What was answered up to now is all that matters before the position, and some more.
        let progress = loader.progress();
        saved.existing += progress.busy.load(Ordering::Relaxed);
        saved.refused += carry::refusals(progress, &mut saved.tally.troubles);
        Some(saved)
    }

    /// Notes on disk how far it is. To be called about every second.
    pub fn save(&self, job: &Job) -> Result<(), StateError> {
        match (&job.state, self.done()) {
            (Some(state), Some(saved)) => state.save(&saved),
            _ => Ok(()),
        }
    }
}

/// Does it, from where an earlier run stopped. For a thread that may block, in the runtime.
pub fn run(job: &Job, from: Option<Saved>, watch: &Watch) -> Result<Report, ImportError> {
    let started = Instant::now();
    let runtime = Handle::current();
    let resumed =
        from.as_ref().is_some_and(|from| from.booted.is_none() || from.position.total > 0);
    let from = from.unwrap_or_default();
    if from.commands {
        return Err(ImportError::Interrupted);
    }
    let total: u64 = job.inputs.iter().map(|input| input.bytes).sum();
    let begin = from.position;
    let earlier = from.existing;
    let mut carrier = Carrier::open(job, &runtime, watch, from)?;
    let end = source::read(&job.inputs, begin, &watch.read, &mut carrier)?;
    let outcome = carrier.finish(end)?;
    let mut report = Report {
        dry_run: job.dry_run,
        read: outcome.tally,
        existing: outcome.busy,
        resumed_at: resumed.then(|| begin.total * 1000 / total.max(1)),
        ..Report::default()
    };
    let once = job.inputs.iter().any(source::Input::is_once);
    if job.existing == Existing::Fail && outcome.busy > 0 {
        if once {
            let why = "keys were there already; stdin can't be read again to name them";
            report.read.troubles.add(b"", format!("{} {why}", outcome.busy));
        } else {
            watch.enter(Phase::Comparing);
            let why = "is there already with another value";
            // Which keys an earlier run found there is not known any more: then all are looked at.
            let only = Some(&outcome.busy_keys).filter(|_| earlier == 0);
            let first = if earlier == 0 { begin } else { Position::default() };
            let mut compare = Compare::new(job, &runtime, only, why);
            source::read(&job.inputs, first, &watch.read, &mut compare)?;
            let (verified, troubles) = compare.finish()?;
            report.existing_same = outcome.busy.saturating_sub(verified.different);
            report.read.troubles.join(troubles);
        }
    }
    if !job.dry_run {
        let kept = report.existing - report.existing_same;
        report.loaded = report.read.sent().saturating_sub(kept + outcome.refused);
    }
    if job.verify && report.read.commands > 0 {
        report.read.troubles.add(b"", "nothing is verified: commands have changed values since");
    } else if job.verify && !job.dry_run {
        watch.enter(Phase::Verifying);
        let mut compare = Compare::new(job, &runtime, None, "is another value in the target");
        let inputs = job.booted.as_ref().map_or(&job.inputs, |booted| &booted.inputs);
        source::read(inputs, Position::default(), &watch.read, &mut compare)?;
        let (verified, troubles) = compare.finish()?;
        report.verified = Some(verified);
        report.read.troubles.join(troubles);
    }
    match &job.state {
        Some(state) if job.followed.is_some() => {
            state.save(&Saved { loaded: true, ..Saved::default() })?;
        }
        Some(state) => state.forget(),
        None => {}
    }
    report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// A load into one of the target's databases.
fn open(job: &Job, runtime: &Handle, db: u64) -> Result<Loader, ImportError> {
    let options =
        Options { login: job.login.clone(), db, patience: job.patience, p99_max: job.p99_max };
    Ok(runtime.block_on(Loader::open(job.target.clone(), options))?)
}
