//! Moving slots with SETSLOT and MIGRATE, a chunk of slots at a time.
//!
//! A chunk is opened at the target, then at the source; its keys are carried until the source says
//! that each slot is empty (it can't get new ones: a migrating slot's missing keys are sent on with
//! ASK); it is closed at the target first, so that there is no moment in which nobody serves it,
//! then at the source, then the other primaries are told. Two workers take chunks in turn, so that
//! the source carries one's keys while the other's slots are opened and closed.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use fleet::model::Pace;
use protocol::{Role, Slot, SlotSet};
use tokio::try_join;

use super::{
    Link, Pipeline,
    keys::{Carrier, Listing},
    pace::Pacer,
    slots::{Fault, Report, SlotMove, Start, for_each_slot},
};

/// Slots in a chunk: more keys than this are not wanted in one.
const CHUNK_KEYS: usize = 4_096;
const CHUNK_SLOTS_MAX: usize = 128;
const REPLY_TIME_MAX: Duration = Duration::from_secs(60);

/// Moves what the source owns and finishes what the target owns already.
pub(super) async fn move_by_keys(
    job: &SlotMove,
    start: &Start,
    report: &Report<'_>,
) -> Result<(), Fault> {
    let pacer = Pacer::new(job.pace);
    let arrived = |keys, bytes| report.add(0, keys, bytes);
    let queue = Queue { slots: start.to_move.iter().collect(), next: AtomicUsize::new(0) };
    let mut first = Worker::connect(job, &pacer, &arrived).await?;
    first.close_at_others(&start.to_close).await?;
    match job.pace {
        Pace::Gentle => first.work(&queue, report).await,
        Pace::Full => {
            let mut second = Worker::connect(job, &pacer, &arrived).await?;
            try_join!(first.work(&queue, report), second.work(&queue, report)).map(|_| ())
        }
    }
}

/// The slots that are left, for all workers.
struct Queue {
    slots: Vec<Slot>,
    next: AtomicUsize,
}

impl Queue {
    /// The next slots; empty at the end.
    fn take(&self, count: usize) -> &[Slot] {
        let start = self.next.fetch_add(count, Ordering::Relaxed).min(self.slots.len());
        let end = (start + count).min(self.slots.len());
        self.slots.get(start..end).unwrap_or_default()
    }
}

struct Worker<'a> {
    job: &'a SlotMove,
    carrier: Carrier<'a>,
    target: Link,
    /// The other primaries that can be reached; gossip tells those that can't.
    others: Vec<Link>,
}

impl<'a> Worker<'a> {
    async fn connect(
        job: &'a SlotMove,
        pacer: &'a Pacer,
        arrived: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Self, Fault> {
        let auth = job.auth.as_ref();
        let mut others = Vec::new();
        for node in &job.others {
            if let Ok(mut link) = Link::connect(node.address, auth).await
                && is_primary(&mut link).await?
            {
                others.push(link);
            }
        }
        let mut from = Link::connect(job.from.address, auth).await?;
        let node_timeout = node_timeout(&mut from).await?;
        let to = job.to.address;
        let carrier = Carrier { from, to, auth, replace: true, node_timeout, pacer, arrived };
        Ok(Self { job, carrier, target: Link::connect(to, auth).await?, others })
    }

    async fn work(&mut self, queue: &Queue, report: &Report<'_>) -> Result<(), Fault> {
        let mut count = 16;
        loop {
            let slots = queue.take(count);
            if slots.is_empty() {
                return Ok(());
            }
            let lists = self.open(slots).await?;
            let keys: usize = lists.iter().map(|list| list.keys.len()).sum();
            self.carrier.carry(lists).await?;
            if !is_primary(&mut self.carrier.from).await? {
                return Err(Fault::Demoted { node: self.job.from.address });
            }
            self.close(slots).await?;
            report.add(slots.len(), 0, 0);
            count = (CHUNK_KEYS * slots.len() / keys.max(1)).clamp(1, CHUNK_SLOTS_MAX);
        }
    }

    /// Opens the slots at both ends, and lists their keys.
    async fn open(&mut self, slots: &[Slot]) -> Result<Vec<Listing>, Fault> {
        let (from, to) = (self.job.from.id.to_string(), self.job.to.id.to_string());
        for_each_slot(&mut self.target, slots.iter().copied(), &["IMPORTING", &from]).await?;
        let mut pipeline = Pipeline::default();
        for slot in slots {
            pipeline.push(["CLUSTER", "SETSLOT", &slot.to_string(), "MIGRATING", &to]);
            Listing::ask(*slot, &mut pipeline);
        }
        let source = &mut self.carrier.from;
        let replies = source.pipeline(&pipeline, REPLY_TIME_MAX).await?;
        let mut replies = replies.into_iter();
        let mut lists = Vec::with_capacity(slots.len());
        for slot in slots {
            let (Some(opened), Some(listed)) = (replies.next(), replies.next()) else { break };
            let refused = |error| Fault::refused(source.node(), "CLUSTER SETSLOT", error);
            opened.into_result().map_err(refused)?;
            lists.push(Listing::read(*slot, listed, source)?);
        }
        Ok(lists)
    }

    /// Gives empty slots to the target and tells everyone.
    async fn close(&mut self, slots: &[Slot]) -> Result<(), Fault> {
        let to = self.job.to.id.to_string();
        for_each_slot(&mut self.target, slots.iter().copied(), &["NODE", &to]).await?;
        self.close_at_others(&slots.iter().copied().collect()).await
    }

    /// Tells the source, which refuses while it holds keys, then the other primaries.
    async fn close_at_others(&mut self, slots: &SlotSet) -> Result<(), Fault> {
        let to = self.job.to.id.to_string();
        for_each_slot(&mut self.carrier.from, slots.iter(), &["NODE", &to]).await?;
        for other in &mut self.others {
            for_each_slot(other, slots.iter(), &["NODE", &to]).await?;
        }
        Ok(())
    }
}

pub(super) async fn is_primary(link: &mut Link) -> Result<bool, Fault> {
    let node = link.node();
    let reply = link.call(["ROLE"], REPLY_TIME_MAX).await?;
    let reply = reply.into_result().map_err(|error| Fault::refused(node, "ROLE", error))?;
    let role = Role::from_reply(&reply).map_err(|_| Fault::Strange { node, command: "ROLE" })?;
    Ok(matches!(role, Role::Primary { .. }))
}

/// `cluster-node-timeout`, or its default where the node doesn't tell.
pub(super) async fn node_timeout(link: &mut Link) -> Result<Duration, Fault> {
    let reply = link.call(["CONFIG", "GET", "cluster-node-timeout"], REPLY_TIME_MAX).await?;
    let told = reply.pairs().and_then(|pairs| pairs.first()?.1.as_integer());
    Ok(Duration::from_millis(told.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(15_000)))
}
