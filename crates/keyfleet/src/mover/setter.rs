//! Sending many SETSLOTs to one primary.
//!
//! Redis and KeyDB take them in one transaction. Valkey from 8.0 must never get one in a
//! transaction: outside, it lets each SETSLOT wait until its replicas have it, and inside, that wait
//! fails an assertion that ends the server. So Valkey gets them on several connections, which wait
//! at the same time.

use std::net::SocketAddr;

use protocol::{Info, Slot};

use super::{
    Commands, Connection, Login, REPLY_TIME_MAX, connect,
    slots::{Fault, not_refused},
};

/// Connections to a server that waits for each command.
const LANES: usize = 16;

/// One primary that is told who owns what.
pub(super) struct Setter {
    lanes: Vec<Connection>,
    in_transactions: bool,
    /// Replies under way, for each lane.
    awaited: Vec<usize>,
}

impl Setter {
    pub async fn connect(node: SocketAddr, login: Option<&Login>) -> Result<Self, Fault> {
        let mut first = connect(node, login).await?;
        let told = first.call_within(REPLY_TIME_MAX, ["INFO", "server"]).await?;
        let info = Info::from_reply(&told).ok_or(Fault::Strange { node, command: "INFO" })?;
        let in_transactions = info.get("valkey_version").is_none();
        let mut lanes = vec![first];
        while !in_transactions && lanes.len() < LANES {
            lanes.push(connect(node, login).await?);
        }
        Ok(Self { awaited: vec![0; lanes.len()], lanes, in_transactions })
    }

    /// Has a slot's importer own it, for several slots.
    ///
    /// SETSLOT NODE for an importing slot raises the importer's epoch and tells every node at once
    /// of all the slots that it has: done for each slot, that keeps the nodes busier than the keys
    /// do. So in a transaction all but the last are first closed (STABLE), which makes their SETSLOT
    /// NODE silent; the last speaks for all. Outside of a transaction that would be wrong: a claim
    /// without a raised epoch that others get to hear could be lost to the former owner's.
    pub fn take(&self, slots: &[Slot], importer: &str) -> Vec<Vec<String>> {
        let Some((last, others)) = slots.split_last() else { return Vec::new() };
        let mut commands = Vec::new();
        if self.in_transactions {
            commands.push(vec!["CLUSTER".to_owned(), "BUMPEPOCH".to_owned()]);
            for slot in others {
                commands.push(setslot(*slot, &["STABLE"]));
                commands.push(setslot(*slot, &["NODE", importer]));
            }
            commands.push(setslot(*last, &["NODE", importer]));
        } else {
            commands.extend(slots.iter().map(|slot| setslot(*slot, &["NODE", importer])));
        }
        commands
    }

    /// Sends commands. [`Setter::finish`] must follow.
    pub async fn start(&mut self, commands: &[Vec<String>]) -> Result<(), Fault> {
        if commands.is_empty() {
            return Ok(());
        }
        let share = commands.len().div_ceil(self.lanes.len());
        let lanes = self.lanes.iter_mut().zip(&mut self.awaited);
        for ((lane, awaited), commands) in lanes.zip(commands.chunks(share)) {
            let mut all = Commands::new();
            if self.in_transactions {
                all.push(["MULTI"]);
            }
            for command in commands {
                all.push(command);
            }
            if self.in_transactions {
                all.push(["EXEC"]);
            }
            lane.send(&all, REPLY_TIME_MAX).await?;
            *awaited = all.len();
        }
        Ok(())
    }

    /// Waits until all that was sent is done.
    pub async fn finish(&mut self) -> Result<(), Fault> {
        let mut refused = Ok(());
        for (lane, awaited) in self.lanes.iter_mut().zip(&mut self.awaited) {
            for _ in 0..std::mem::take(awaited) {
                let done = not_refused(lane.receive(REPLY_TIME_MAX).await?);
                let node = lane.address();
                let done = done.map_err(|error| Fault::refused(node, "CLUSTER SETSLOT", error));
                refused = refused.and(done);
            }
        }
        refused
    }
}

/// `CLUSTER SETSLOT slot how…`.
pub(super) fn setslot(slot: Slot, how: &[&str]) -> Vec<String> {
    let slot = slot.to_string();
    let words = ["CLUSTER", "SETSLOT", &slot].into_iter().chain(how.iter().copied());
    words.map(str::to_owned).collect()
}
