//! Who takes a primary's place: elections, and the handovers and promotions that we ask for.

use std::sync::Arc;

use protocol::NodeId;

use super::{
    Group, Net, Node, Sync,
    views::{absorb, adopt},
};
use crate::observed::{Health, Row};

/// `repl-ping-replica-period`, in milliseconds.
const REPLICATION_PING_MS: u64 = 10_000;

impl Group {
    /// Replicas of failed primaries ask for votes when their time comes. True where somebody won.
    pub(super) fn elections(&mut self, net: &Net) -> bool {
        let mut candidates: Vec<(u64, u32)> = Vec::new();
        for (number, node) in &self.nodes {
            if !net.answers(node) {
                continue;
            }
            if let Some(at_ms) = self.election_of(net, *number, node) {
                candidates.push((at_ms, *number));
            } else if node.election_at_ms.is_some() {
                candidates.push((u64::MAX, *number));
            }
        }
        candidates.sort_unstable();
        let mut winners: Vec<u32> = Vec::new();
        for (at_ms, number) in candidates {
            let later_ms = if at_ms == u64::MAX {
                None
            } else if at_ms > net.now_ms {
                Some(at_ms)
            } else if self.votes(net, number, false) {
                winners.push(number);
                None
            } else {
                Some(net.now_ms + 2 * (2 * self.node_timeout_ms).max(2_000))
            };
            if let Some(node) = self.nodes.get_mut(&number) {
                node.election_at_ms = later_ms;
            }
            if let Some(at_ms) = later_ms {
                self.wake(at_ms);
            }
        }
        self.take_over(net, &winners);
        !winners.is_empty()
    }

    /// When the replica will ask for votes; None where it has no reason to, or may not.
    fn election_of(&self, net: &Net, number: u32, node: &Node) -> Option<u64> {
        let primary = node.replica_of()?;
        let row = node.table.rows.get(&primary)?;
        let orphaned = row.health == Health::Failed && !row.slots.is_empty();
        if !orphaned || !self.is_fresh(net, node) || !node.may_fail_over() {
            return None;
        }
        if let Some(at_ms) = node.election_at_ms {
            return Some(at_ms);
        }
        let rank = self
            .nodes
            .iter()
            .filter(|(other, peer)| {
                **other != number
                    && net.reaches(node, peer)
                    && peer.replica_of() == Some(primary)
                    && (peer.offset > node.offset
                        || (peer.offset == node.offset && **other < number))
            })
            .count() as u64;
        let jitter_ms = u64::from(number).wrapping_mul(7_919).wrapping_add(net.now_ms) % 500;
        Some(net.now_ms + 500 + jitter_ms + 1_000 * rank)
    }

    /// Is the replica's data young enough to be elected (`cluster-replica-validity-factor`)?
    fn is_fresh(&self, net: &Net, node: &Node) -> bool {
        let factor = node
            .config
            .get("cluster-replica-validity-factor")
            .and_then(|value| value.parse().ok())
            .unwrap_or(10_u64);
        let since_ms = match node.sync {
            Sync::InSync => return true,
            Sync::Down(since_ms) | Sync::Until { down_since_ms: since_ms, .. } => since_ms,
        };
        let age_ms = since_ms.map_or(u64::MAX, |since| net.now_ms.saturating_sub(since));
        factor == 0
            || age_ms.saturating_sub(self.node_timeout_ms)
                <= REPLICATION_PING_MS + self.node_timeout_ms * factor
    }

    /// Asks the slot-owning primaries for their votes. Voters remember; true for a majority.
    /// `asked` by us (FAILOVER), voters don't mind that the primary still lives.
    pub(super) fn votes(&mut self, net: &Net, number: u32, asked: bool) -> bool {
        let Some(candidate) = self.nodes.get_mut(&number) else { return false };
        let Some(primary) = candidate.replica_of() else { return false };
        candidate.current_epoch += 1;
        let epoch = candidate.current_epoch;
        let candidate = candidate.clone();
        for node in self.nodes.values_mut() {
            if net.reaches(&candidate, node) && node.table.rows.contains_key(&candidate.id) {
                node.current_epoch = node.current_epoch.max(epoch);
            }
        }
        let table = Arc::clone(&candidate.table);
        let claimed = table.rows.get(&primary).map(|row| (row.config_epoch, &row.slots));
        let (claim_epoch, claimed) = claimed.unzip();
        let mut owners = 0;
        let mut granted = 0;
        for (id, row) in &table.rows {
            if row.replica_of.is_some() || row.slots.is_empty() {
                continue;
            }
            owners += 1;
            let Some(voter) = self.numbers.get(id).and_then(|number| self.nodes.get(number)) else {
                continue;
            };
            if !net.reaches(&candidate, voter) || voter.vote_epoch >= epoch {
                continue;
            }
            if voter.current_epoch > epoch {
                continue;
            }
            // The voter goes by its own table: it must own slots, know the candidate as that
            // primary's replica, hold the primary for failed, and know no newer owner of its slots.
            let owns = voter
                .own_row()
                .is_some_and(|row| row.replica_of.is_none() && !row.slots.is_empty());
            let knows = voter
                .table
                .rows
                .get(&candidate.id)
                .is_some_and(|row| row.replica_of == Some(primary));
            let failed = asked
                || voter.table.rows.get(&primary).is_some_and(|row| row.health == Health::Failed);
            let again = voter
                .voted_ms
                .get(&primary)
                .is_some_and(|at_ms| net.now_ms < at_ms + 2 * self.node_timeout_ms);
            let stale = claimed.is_some_and(|claimed| {
                voter.table.rows.iter().any(|(other, row)| {
                    *other != primary
                        && Some(row.config_epoch) > claim_epoch
                        && !row.slots.intersection(claimed).is_empty()
                })
            });
            if !owns || !knows || !failed || again || stale {
                continue;
            }
            granted += 1;
            let id = *id;
            if let Some(voter) = self.numbers.get(&id).and_then(|number| self.nodes.get_mut(number))
            {
                voter.vote_epoch = epoch;
                voter.current_epoch = voter.current_epoch.max(epoch);
                voter.voted_ms.insert(primary, net.now_ms);
            }
        }
        granted > owners / 2
    }

    /// The winners claim their primaries' slots, and tell everybody they reach at once.
    pub(super) fn take_over(&mut self, net: &Net, winners: &[u32]) {
        let mut claims: Vec<(u32, NodeId, Row)> = Vec::new();
        for number in winners {
            let Some(node) = self.nodes.get_mut(number) else { continue };
            let Some(row) = node.own_row().cloned() else { continue };
            let slots = row
                .replica_of
                .and_then(|primary| node.table.rows.get(&primary))
                .map(|row| row.slots.clone())
                .unwrap_or_default();
            let config_epoch = node.current_epoch;
            let claim = Row { replica_of: None, config_epoch, slots, ..row };
            claims.push((*number, node.id, claim));
        }
        for (winner, id, claim) in claims {
            let Some(node) = self.nodes.get(&winner) else { continue };
            let hearers: Vec<u32> = self
                .nodes
                .iter()
                .filter(|(_, peer)| net.reaches(node, peer) && peer.table.rows.contains_key(&id))
                .map(|(number, _)| *number)
                .collect();
            let names: std::collections::BTreeSet<NodeId> = hearers
                .iter()
                .filter_map(|number| self.nodes.get(number))
                .map(|node| node.id)
                .collect();
            let edit = |table: &mut crate::observed::Table| {
                absorb(table, id, &claim, &protocol::SlotSet::new(), true, |other| {
                    names.contains(&other)
                });
            };
            self.tell(&hearers, edit, net.now_ms);
        }
    }

    /// CLUSTER FAILOVER at the replica `to`, with its primary's help: nothing is lost. False where
    /// the voters refuse.
    pub(super) fn hand_over(&mut self, net: &Net, from: u32, to: u32) -> bool {
        let Some(source) = self.nodes.get(&from) else { return false };
        let (data, offset) = (Arc::clone(&source.data), source.offset);
        if !self.votes(net, to, true) {
            return false;
        }
        if let Some(target) = self.nodes.get_mut(&to) {
            target.data = data;
            target.offset = offset;
            target.append();
        }
        self.take_over(net, &[to]);
        // The old primary's stream goes on where it was: no full copy.
        if let Some(source) = self.nodes.get_mut(&from) {
            source.sync = Sync::InSync;
        }
        true
    }

    /// A node turns into a replica by our word.
    pub(super) fn follow(&mut self, number: u32, primary: NodeId, now_ms: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        let mut table = (*node.table).clone();
        if let Some(row) = table.rows.get_mut(&node.id) {
            row.replica_of = Some(primary);
            row.slots = protocol::SlotSet::new();
        }
        adopt(node, &Arc::new(table), now_ms);
        self.touch(now_ms);
    }
}

impl Node {
    fn may_fail_over(&self) -> bool {
        self.config.get("cluster-replica-no-failover").is_none_or(|value| value != "yes")
    }
}
