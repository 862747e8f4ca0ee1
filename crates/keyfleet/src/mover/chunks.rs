//! Moving slots with SETSLOT and MIGRATE, a chunk of slots at a time.
//!
//! A chunk is opened at the target, then at the source; its keys are carried until the source says
//! that each slot is empty (it gets no new ones: a migrating slot's missing keys are sent on with
//! ASK); it is closed at the target first, so that at no moment nobody serves it, then at the source
//! and the other primaries. One chunk is closed in the same round trips in which the next is opened.

use protocol::Slot;

use super::{
    connect,
    keys::{self, Carrier, Listing},
    pace::Pacer,
    setter::{Setter, setslot},
    slots::{Fault, Report, SlotMove, Start},
};

/// Moves what the source owns and finishes what the target owns already.
pub(super) async fn move_by_keys(
    job: &SlotMove,
    start: &Start,
    report: &Report<'_>,
) -> Result<(), Fault> {
    let login = job.login.as_ref();
    let pacer = Pacer::start(job.pace, [job.from.address, job.to.address], login).await?;
    let arrived = |keys, bytes| report.add(0, keys, bytes);
    let mut mover = Mover::connect(job, &pacer, &arrived).await?;
    let slots: Vec<Slot> = start.to_move.iter().collect();
    let mut to_open = slots.as_slice();
    let mut to_close: Vec<Slot> = start.to_close.iter().collect();
    let mut moved = 0;
    let mut count = 1;
    while !to_open.is_empty() {
        let (chunk, later) = to_open.split_at(count.min(to_open.len()));
        to_open = later;
        let lists = mover.turn(&to_close, chunk).await?;
        report.add(moved, 0, 0);
        let keys: usize = lists.iter().map(|list| list.keys.len()).sum();
        mover.carrier.carry(lists).await?;
        moved = chunk.len();
        to_close = chunk.to_vec();
        count = pacer.chunk_slots(chunk.len(), keys);
    }
    mover.turn(&to_close, &[]).await?;
    report.add(moved, 0, 0);
    Ok(())
}

struct Mover<'a> {
    job: &'a SlotMove,
    carrier: Carrier<'a>,
    source: Setter,
    target: Setter,
    /// The other primaries that can be reached; gossip tells those that can't.
    others: Vec<Setter>,
}

impl<'a> Mover<'a> {
    async fn connect(
        job: &'a SlotMove,
        pacer: &'a Pacer,
        arrived: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Self, Fault> {
        let login = job.login.as_ref();
        let (from, to) = (job.from.address, job.to.address);
        let mut others = Vec::new();
        for node in &job.others {
            if let Ok(mut link) = connect(node.address, login).await
                && keys::is_primary(&mut link).await?
            {
                others.push(Setter::connect(node.address, login).await?);
            }
        }
        Ok(Self {
            job,
            carrier: Carrier::connect(from, to, login, pacer, arrived).await?,
            source: Setter::connect(from, login).await?,
            target: Setter::connect(to, login).await?,
            others,
        })
    }

    /// Closes some slots and opens others; lists the keys of the latter.
    async fn turn(&mut self, close: &[Slot], open: &[Slot]) -> Result<Vec<Listing>, Fault> {
        let (from, to) = (self.job.from.id.to_string(), self.job.to.id.to_string());
        let for_each = |slots: &[Slot], how: &[&str]| -> Vec<Vec<String>> {
            slots.iter().map(|slot| setslot(*slot, how)).collect()
        };
        let mut at_target = self.target.take(close, &to);
        at_target.extend(for_each(open, &["IMPORTING", &from]));
        self.target.start(&at_target).await?;
        self.target.finish().await?;

        let news = for_each(close, &["NODE", &to]);
        let mut at_source = news.clone();
        at_source.extend(for_each(open, &["MIGRATING", &to]));
        self.source.start(&at_source).await?;
        // One that is lost or refuses (it has become a replica) hears of it from the target.
        let mut told = Vec::new();
        for mut other in self.others.drain(..) {
            if other.start(&news).await.is_ok() {
                told.push(other);
            }
        }
        self.source.finish().await?;
        for mut other in told {
            if other.finish().await.is_ok() {
                self.others.push(other);
            }
        }
        if open.is_empty() { Ok(Vec::new()) } else { self.carrier.list(open).await }
    }
}
