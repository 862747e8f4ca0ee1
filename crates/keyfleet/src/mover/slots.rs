//! Moves slots with their keys from one primary to another while clients are served.
//!
//! Where both ends can, the engine moves the slots by itself ([`super::atomic`]); otherwise, or where
//! that fails, key by key with SETSLOT and MIGRATE ([`super::chunks`]). A job may be run again after
//! any interruption: slots that are there are skipped, half-moved ones are continued.

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use fleet::model::Pace;
use protocol::{
    ClusterNodes, Slot, SlotSet, Value, cluster_text::OpenDirection, engine::AtomicSlots,
    resp::ServerError,
};
use tracing::{info, warn};

use super::{
    ClientError, Commands, Connection, Login, NodeAddr, REPLY_TIME_MAX, atomic, chunks, connect,
    repair, views,
};

/// How long all views may take to agree after the last slot.
const AGREE_TIME_MAX: Duration = Duration::from_secs(60);

/// Slots to move.
#[derive(Clone, Debug)]
pub struct SlotMove {
    /// The primary that owns the slots.
    pub from: NodeAddr,
    /// The primary that shall own them.
    pub to: NodeAddr,
    pub slots: SlotSet,
    /// The cluster's other nodes, replicas too: primaries are told of the new owner, and the move
    /// is done when all agree.
    pub others: Vec<NodeAddr>,
    pub login: Option<Login>,
    pub pace: Pace,
    /// What both ends can do.
    pub atomic: AtomicSlots,
}

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    pub slots_done: usize,
    pub slots_total: usize,
    /// Keys that arrived. Not counted where the engine moves slots by itself.
    pub keys: u64,
    /// Their size in the source's memory, estimated from a sample.
    pub bytes: u64,
}

/// A move that is done: all views agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub progress: Progress,
    pub took: Duration,
    pub way: Way,
}

/// How slots were moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By the engine, all at once.
    Atomic,
    /// SETSLOT and MIGRATE.
    Keys,
    /// They were there already.
    Nothing,
}

/// A move stopped. Running it again continues it.
#[derive(Debug, thiserror::Error)]
#[error("moving slots {slots} from {from} to {to}: {fault}{}", still_open(.open))]
pub struct MoveError {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub slots: SlotSet,
    /// Slots known to be half-moved.
    pub open: SlotSet,
    #[source]
    pub fault: Fault,
}

fn still_open(open: &SlotSet) -> String {
    if open.is_empty() { String::new() } else { format!("; half-moved: {open}") }
}

/// What can go wrong with slots.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{node} refused {command}: {error}")]
    Refused { node: SocketAddr, command: &'static str, error: ServerError },
    #[error("{node} answered {command} with something unknown")]
    Strange { node: SocketAddr, command: &'static str },
    #[error("{node} is out of memory (maxmemory)")]
    Full { node: SocketAddr },
    #[error("{to} doesn't take a key of slot {slot} in time; keys sent to it had {bytes} bytes")]
    TimedOut { slot: Slot, to: SocketAddr, bytes: u64 },
    #[error("neither end owns slots {slots}")]
    NotOwned { slots: SlotSet },
    #[error("slots {slots} are half-moved to or from another node")]
    OpenElsewhere { slots: SlotSet },
    #[error("{node} is no primary any more")]
    Demoted { node: SocketAddr },
    #[error("two nodes hold different values under the same names in slots {slots}")]
    Conflict { slots: SlotSet },
    #[error("{node} still sees slots {slots} otherwise")]
    ViewDiffers { node: SocketAddr, slots: SlotSet },
    #[error("the engine gave up: {0}")]
    Atomic(String),
}

impl Fault {
    pub(super) fn refused(node: SocketAddr, command: &'static str, error: ServerError) -> Self {
        match error.code.as_str() {
            "OOM" => Self::Full { node },
            _ => Self::Refused { node, command, error },
        }
    }
}

/// What concurrent parts of a move share: the total, and whom to tell.
pub(super) struct Report<'a> {
    inner: Mutex<(Progress, &'a mut (dyn FnMut(Progress) + Send))>,
}

impl Report<'_> {
    pub fn add(&self, slots: usize, keys: u64, bytes: u64) {
        if let Ok(mut inner) = self.inner.lock() {
            let (progress, tell) = &mut *inner;
            progress.slots_done += slots;
            progress.keys += keys;
            progress.bytes += bytes;
            tell(*progress);
        }
    }

    fn progress(&self) -> Progress {
        self.inner.lock().map(|inner| inner.0).unwrap_or_default()
    }
}

/// Carries out a job; returns when every node's view has the new owner. `tell` hears of progress.
pub async fn move_slots(
    job: &SlotMove,
    mut tell: impl FnMut(Progress) + Send,
) -> Result<Moved, MoveError> {
    let started = Instant::now();
    let slots_total = job.slots.len();
    let progress = Progress { slots_total, ..Progress::default() };
    let report = Report { inner: Mutex::new((progress, &mut tell)) };
    match run(job, &report).await {
        Ok(way) => Ok(Moved { progress: report.progress(), took: started.elapsed(), way }),
        Err(fault) => {
            let open = half_moved(job).await;
            let (from, to) = (job.from.address, job.to.address);
            Err(MoveError { from, to, slots: job.slots.clone(), open, fault })
        }
    }
}

async fn run(job: &SlotMove, report: &Report<'_>) -> Result<Way, Fault> {
    let login = job.login.as_ref();
    let mut source = connect(job.from.address, login).await?;
    let mut target = connect(job.to.address, login).await?;
    let atomic = job.atomic == AtomicSlots::MigrateSlots;
    if atomic {
        atomic::wait_for_running(&mut source).await?;
    }
    let start = Start::of(job, &mut source, &mut target).await?;
    report.add(job.slots.len() - start.to_move.len(), 0, 0);

    let mut way = if start.to_move.is_empty() { Way::Nothing } else { Way::Keys };
    if way == Way::Keys && atomic && start.open.is_empty() {
        match atomic::migrate_slots(job, &start.to_move, &mut source, report).await {
            Ok(()) => way = Way::Atomic,
            Err(fault) => warn!(
                from = %job.from.address, to = %job.to.address, %fault,
                "the engine's own slot migration failed: moving key by key"
            ),
        }
    }
    if way != Way::Atomic {
        let rest = Start::of(job, &mut source, &mut target).await?;
        repair::bring_strays_home(&job.to, &job.from, &rest.strays, login).await?;
        views::wait_for_epoch(&mut source, &mut target, &job.slots, AGREE_TIME_MAX).await?;
        chunks::move_by_keys(job, &rest, report).await?;
    }
    let mut nodes = vec![job.from, job.to];
    nodes.extend(&job.others);
    views::wait_for_owner(&nodes, login, job.to.id, &job.slots, AGREE_TIME_MAX).await?;
    info!(from = %job.from.address, to = %job.to.address, slots = %job.slots, "slots moved");
    Ok(way)
}

/// Where a job stands when it is begun, or begun again.
pub(super) struct Start {
    /// What the source owns.
    pub to_move: SlotSet,
    /// Part of `to_move` that is open between the two.
    pub open: SlotSet,
    /// Part of `to_move` of which the target holds keys though the source doesn't give them away:
    /// a failover or a hand made the source forget a move, and took its keys out of sight.
    pub strays: SlotSet,
    /// What the target owns already, and the source or the others may not know yet.
    pub to_close: SlotSet,
}

impl Start {
    async fn of(
        job: &SlotMove,
        source: &mut Connection,
        target: &mut Connection,
    ) -> Result<Self, Fault> {
        let (source_view, target_view) = (views::view(source).await?, views::view(target).await?);
        for (view, node) in [(&source_view, &job.from), (&target_view, &job.to)] {
            if view.my_row().is_none_or(|row| !row.flags.primary || row.id != node.id) {
                return Err(Fault::Demoted { node: node.address });
            }
        }
        let done = views::owned(&target_view, job.to.id).intersection(&job.slots);
        let to_move = job.slots.difference(&done);
        let stray = to_move.difference(&views::owned(&source_view, job.from.id));
        if !stray.is_empty() {
            return Err(Fault::NotOwned { slots: stray });
        }
        let migrating = open_towards(&source_view, OpenDirection::Migrating, job, &job.to)?;
        let importing = open_towards(&target_view, OpenDirection::Importing, job, &job.from)?;
        let left = views::owned(&source_view, job.from.id).union(&views::open_slots(&source_view));
        let strays = to_move.difference(&migrating);
        Ok(Self {
            strays: repair::held(target, &strays).await?,
            open: migrating.union(&importing).intersection(&to_move),
            to_close: done.intersection(&left),
            to_move,
        })
    }
}

/// The job's slots that a view has open in one direction; an error where the peer is another.
fn open_towards(
    view: &ClusterNodes,
    direction: OpenDirection,
    job: &SlotMove,
    peer: &NodeAddr,
) -> Result<SlotSet, Fault> {
    let open = views::open(view, direction);
    let open = open.iter().filter(|(slot, _)| job.slots.contains(*slot));
    let (ours, others): (Vec<_>, Vec<_>) = open.partition(|(_, other)| *other == peer.id);
    if !others.is_empty() {
        let slots = others.iter().map(|(slot, _)| *slot).collect();
        return Err(Fault::OpenElsewhere { slots });
    }
    Ok(ours.iter().map(|(slot, _)| *slot).collect())
}

/// The job's slots that either end has open, as far as they answer.
async fn half_moved(job: &SlotMove) -> SlotSet {
    let mut open = SlotSet::new();
    for node in [job.from, job.to] {
        let seen = async {
            let mut link = connect(node.address, job.login.as_ref()).await?;
            views::view(&mut link).await
        };
        if let Ok(view) = seen.await {
            open = open.union(&views::open_slots(&view));
        }
    }
    open.intersection(&job.slots)
}

/// Sends commands whose replies matter only where they are refusals.
pub(super) async fn expect_ok(
    link: &mut Connection,
    pipeline: &Commands,
    command: &'static str,
) -> Result<(), Fault> {
    if pipeline.is_empty() {
        return Ok(());
    }
    let node = link.address();
    for reply in link.pipeline(pipeline, REPLY_TIME_MAX).await? {
        not_refused(reply).map_err(|error| Fault::refused(node, command, error))?;
    }
    Ok(())
}

/// Neither the command was refused nor, where it was EXEC, one of its transaction's.
pub(super) fn not_refused(reply: Value) -> Result<(), ServerError> {
    match reply.into_result()? {
        Value::Array(replies) => replies.into_iter().try_for_each(not_refused),
        _ => Ok(()),
    }
}
