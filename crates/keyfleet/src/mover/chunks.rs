//! Moving slots with SETSLOT and MIGRATE, a chunk of slots at a time.
//!
//! A chunk is opened at the target, then at the source; its keys are carried until the source says
//! that each slot is empty (it gets no new ones: a migrating slot's missing keys are sent on with
//! ASK); it is closed at the target first, so that at no moment nobody serves it, then at the source
//! and the other primaries. One chunk is closed in the same round trips in which the next is opened.

use protocol::{Info, Slot};

use super::{
    Commands, Connection, REPLY_TIME_MAX, connect,
    keys::{Carrier, Listing},
    pace::Pacer,
    slots::{Fault, Report, SlotMove, Start, expect_ok},
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
    target: Connection,
    /// Does the target take a chunk's slots in one transaction? See [`Mover::close_at_target`].
    at_once: bool,
    /// The other primaries that can be reached; gossip tells those that can't.
    others: Vec<Connection>,
}

impl<'a> Mover<'a> {
    async fn connect(
        job: &'a SlotMove,
        pacer: &'a Pacer,
        arrived: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Self, Fault> {
        let login = job.login.as_ref();
        let mut others = Vec::new();
        for node in &job.others {
            if let Ok(mut link) = connect(node.address, login).await
                && super::keys::is_primary(&mut link).await?
            {
                others.push(link);
            }
        }
        let carrier = Carrier::connect(job.from.address, job.to.address, login, pacer, arrived);
        let carrier = carrier.await?;
        let mut target = connect(job.to.address, login).await?;
        let told = target.call_within(REPLY_TIME_MAX, ["INFO", "server"]).await?;
        let info = Info::from_reply(&told).unwrap_or_else(|| Info::parse(""));
        let at_once = info.get("valkey_version").is_none();
        Ok(Self { job, carrier, target, at_once, others })
    }

    /// Closes some slots and opens others; lists the keys of the latter.
    async fn turn(&mut self, close: &[Slot], open: &[Slot]) -> Result<Vec<Listing>, Fault> {
        let (from, to) = (self.job.from.id.to_string(), self.job.to.id.to_string());
        let mut pipeline = Commands::new();
        self.close_at_target(close, &to, &mut pipeline);
        for slot in open {
            pipeline.push(["CLUSTER", "SETSLOT", &slot.to_string(), "IMPORTING", &from]);
        }
        expect_ok(&mut self.target, &pipeline, "CLUSTER SETSLOT").await?;

        let mut closing = Commands::new();
        for slot in close {
            closing.push(["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &to]);
        }
        // Their answers are read after the source's: they need not wait for each other. One that
        // is lost or refuses (it has become a replica) hears of it from the target.
        let mut told = Vec::new();
        for mut other in self.others.drain(..) {
            if other.send(&closing, REPLY_TIME_MAX).await.is_ok() {
                told.push(other);
            }
        }
        for slot in open {
            closing.push(["CLUSTER", "SETSLOT", &slot.to_string(), "MIGRATING", &to]);
        }
        let lists = self.carrier.list_after(closing, "CLUSTER SETSLOT", open).await?;
        for mut other in told {
            let mut lost = false;
            for _ in close {
                lost = lost || other.receive(REPLY_TIME_MAX).await.is_err();
            }
            if !lost {
                self.others.push(other);
            }
        }
        Ok(lists)
    }

    /// Has the target take slots that it imported.
    ///
    /// SETSLOT NODE for an importing slot raises the target's epoch and tells every node at once,
    /// with all the slots that it has: for each slot of a chunk that keeps the others busier than
    /// the keys do. So all but the last are first closed (STABLE), which makes their SETSLOT NODE
    /// silent; the last speaks for all. This is right only in one transaction: a claim without a
    /// raised epoch that others get to hear could be lost to the former owner's.
    ///
    /// Valkey from 8.0 makes SETSLOT wait for replicas, which can't be done in a transaction.
    fn close_at_target(&self, slots: &[Slot], to: &str, pipeline: &mut Commands) {
        let in_transaction = self.at_once && slots.len() > 1;
        if in_transaction {
            pipeline.push(["MULTI"]);
            pipeline.push(["CLUSTER", "BUMPEPOCH"]);
        }
        for (index, slot) in slots.iter().enumerate() {
            let slot = slot.to_string();
            if in_transaction && index + 1 < slots.len() {
                pipeline.push(["CLUSTER", "SETSLOT", &slot, "STABLE"]);
            }
            pipeline.push(["CLUSTER", "SETSLOT", &slot, "NODE", to]);
        }
        if in_transaction {
            pipeline.push(["EXEC"]);
        }
    }
}
