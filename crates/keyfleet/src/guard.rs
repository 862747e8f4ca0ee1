//! Keeps watch: heals what died, keeps settings and spread as the applied spec wants them, and does
//! nothing else. What it may do is the planner's decision alone; here is who may act and when. Beside
//! that it takes the backups that the spec wants, which change nothing.
//!
//! One guard acts, holding the lease; others stand by. A command that changes the fleet gets the lease
//! from it between steps, and the guard reads the applied spec anew when it has it back. A frozen
//! cluster is healed and otherwise left as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fleet::{
    model::{ClusterName, GuardMode},
    step::{Action, Step, Wave},
};
use tokio::time::{self, Instant};

use crate::{
    backup::schedule::Schedule,
    execute::{Event, Sink},
    lease::{Lease, LeaseError},
    observe::now_ms,
    reconcile::{Reconciler, Turn},
    session::{Session, SessionError},
    store::{Deed, Freeze, Store, StoreError},
};

/// How often one that stands by tries for the lease.
const STAND_BY: Duration = Duration::from_millis(200);

/// The pauses after steps that failed: doubled up to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Guard can't go on.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Guard the fleet whose spec is (or was) at `file`, until `stop` or until nothing is left to guard.
/// `observe_only`: say what would be done.
pub async fn guard(
    file: &Path,
    observe_only: bool,
    stop: Arc<AtomicBool>,
) -> Result<(), GuardError> {
    let store = Store::beside(file)?;
    let mut backups = Schedule::default();
    let result = keep(file, &store, observe_only, &stop, &mut backups).await;
    backups.end().await;
    tracing::info!("guard ends");
    result
}

/// One lease after the other.
async fn keep(
    file: &Path,
    store: &Store,
    observe_only: bool,
    stop: &Arc<AtomicBool>,
    backups: &mut Schedule,
) -> Result<(), GuardError> {
    while let Some(lease) = stand_by(store, stop).await? {
        let Some(session) = Session::applied(file)? else { break };
        if session.fleet.clusters.values().all(|cluster| cluster.stopped) {
            break;
        }
        act(&session, lease, observe_only, stop, backups).await?;
    }
    Ok(())
}

/// Wait for the lease. None: told to stop, or nothing is left to guard.
async fn stand_by(store: &Store, stop: &AtomicBool) -> Result<Option<Lease>, GuardError> {
    let mut said: Option<u32> = None;
    while !stop.load(Ordering::Relaxed) {
        if let Some(lease) = Lease::try_guard(store)? {
            return Ok(Some(lease));
        }
        let holder = Lease::holder(store)?;
        if let Some(holder) = holder.filter(|holder| said != Some(holder.pid)) {
            said = Some(holder.pid);
            tracing::info!("standing by: keyfleet {} acts (pid {})", holder.command, holder.pid);
        }
        if store.applied()?.is_none() {
            return Ok(None);
        }
        time::sleep(STAND_BY).await;
    }
    Ok(None)
}

/// Turn after turn while the lease is ours and nobody else wants it.
async fn act(
    session: &Session,
    lease: Lease,
    observe_only: bool,
    stop: &Arc<AtomicBool>,
    backups: &mut Schedule,
) -> Result<(), GuardError> {
    let mut reconciler = Reconciler::new(session.context().await?);
    let mut narrator = Narrator::default();
    let sink = narrating(&session.store);
    let mode = if observe_only { GuardMode::Observe } else { session.fleet.guard.mode };
    tracing::info!("guarding {}", names(session.fleet.clusters.keys()));
    let mut back_off = BACK_OFF.0;
    let released = || lease.is_wanted() || stop.load(Ordering::Relaxed);
    while !released() {
        if mode == GuardMode::Enforce {
            backups.tick(session)?;
        }
        let turn = match reconciler.look().await {
            Ok(turn) => turn,
            Err(error) => {
                tracing::error!("can't look: {error}");
                reconciler.pause().await;
                continue;
            }
        };
        let frozen = frozen(session)?;
        narrator.tell(&turn, &frozen, mode);
        let mut wave = turn.wave;
        wave.steps.retain(|step| mode == GuardMode::Enforce && !is_frozen(&frozen, step));
        if wave.steps.is_empty() {
            reconciler.pause().await;
            continue;
        }
        let acted = reconciler.act(&wave, &sink, &released).await;
        if let Some(node) = &acted.interrupted_by {
            tracing::warn!("{node} ended; what was under way is planned anew");
        }
        if acted.failed.is_empty() || acted.done > 0 {
            back_off = BACK_OFF.0;
        } else {
            rest(&mut reconciler, back_off, &released).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }
    Ok(())
}

/// A pause after failures; a death or somebody who wants the lease ends it.
async fn rest(reconciler: &mut Reconciler, pause: Duration, released: &(dyn Fn() -> bool + Sync)) {
    let until = Instant::now() + pause;
    while Instant::now() < until && !released() {
        if reconciler.pause().await {
            return;
        }
    }
}

fn frozen(session: &Session) -> Result<BTreeMap<ClusterName, Freeze>, StoreError> {
    let mut frozen = BTreeMap::new();
    for cluster in session.fleet.clusters.keys() {
        frozen.extend(session.store.freeze(cluster)?.map(|freeze| (cluster.clone(), freeze)));
    }
    Ok(frozen)
}

fn is_frozen(frozen: &BTreeMap<ClusterName, Freeze>, step: &Step) -> bool {
    frozen.get(&step.cluster).is_some_and(|freeze| freeze.stops(&step.action, now_ms()))
}

fn names<'a>(clusters: impl Iterator<Item = &'a ClusterName>) -> String {
    clusters.map(ClusterName::as_str).collect::<Vec<_>>().join(", ")
}

/// What steps say in guard's log. What mends a fault is kept for `status` too.
fn narrating(store: &Arc<Store>) -> Sink {
    let store = Arc::clone(store);
    Arc::new(move |event: Event<'_>| match event {
        Event::Started(step) => tracing::debug!("{step}"),
        Event::Progress(step, text) => tracing::debug!("{step}: {text}"),
        Event::Done(step, done) => {
            let took_ms = done.took.as_millis();
            let line = format!("{step}: {} ({took_ms} ms)", step.why);
            let mends = matches!(
                step.action,
                Action::Promote { .. }
                    | Action::TakeOver { .. }
                    | Action::StartNode { .. }
                    | Action::KillNode { .. }
                    | Action::Readdress { .. }
                    | Action::Handover { .. }
                    | Action::RepairSlots { .. }
            );
            if mends {
                let what = format!("{}: {}", step.action, step.why);
                if let Err(error) = store.record_deed(Deed { at_ms: now_ms(), what }) {
                    tracing::warn!("{error}");
                }
            }
            match step.action {
                Action::Promote { .. }
                | Action::TakeOver { .. }
                | Action::KillNode { .. }
                | Action::Readdress { .. }
                | Action::RepairSlots { .. } => {
                    tracing::warn!("{line}");
                }
                _ => tracing::info!("{line}"),
            }
        }
        Event::Failed(step, error) => tracing::warn!("{step} failed: {error}"),
        Event::Skipped(_) => {}
    })
}

/// Says what is blocked, waited for, or left undone, once when it comes up.
#[derive(Default)]
struct Narrator {
    said: BTreeSet<String>,
}

impl Narrator {
    fn tell(&mut self, turn: &Turn, frozen: &BTreeMap<ClusterName, Freeze>, mode: GuardMode) {
        let mut now = BTreeSet::new();
        let mut say = |text: String, urgent: bool| {
            if !self.said.contains(&text) {
                if urgent {
                    tracing::warn!("{text}");
                } else {
                    tracing::info!("{text}");
                }
            }
            now.insert(text);
        };
        let Wave { steps, blocked, waiting } = &turn.wave;
        for step in steps {
            if is_frozen(frozen, step) {
                say(format!("frozen, so not done: {step} ({})", step.why), true);
            } else if mode != GuardMode::Enforce {
                say(format!("only observing, so not done: {step} ({})", step.why), true);
            }
        }
        for blocked in blocked {
            let hint = blocked.hint.as_ref().map_or(String::new(), |hint| format!("; {hint}"));
            let text = format!("{}: {}: {}{hint}", blocked.cluster, blocked.wanted, blocked.reason);
            say(text, true);
        }
        for waiting in waiting {
            // Times count down; one line for each thing waited for is enough.
            let text: String =
                waiting.what.chars().filter(|letter| !letter.is_ascii_digit()).collect();
            if !self.said.contains(&text) {
                tracing::info!("waiting: {waiting}");
            }
            now.insert(text);
        }
        self.said = now;
    }
}
