//! What a node makes of a table: whose word counts, what becomes of it, and its own verdict.

use std::{collections::BTreeSet, sync::Arc};

use protocol::{NodeId, SLOT_COUNT, SlotSet};

use super::{Node, Sync};
use crate::observed::{Health, Row, Table};

/// Does the row say what its owner says?
pub(super) fn same_claim(known: &Row, claim: &Row) -> bool {
    known.replica_of == claim.replica_of
        && known.config_epoch == claim.config_epoch
        && known.slots == claim.slots
        && known.port == claim.port
        && known.ip == claim.ip
}

/// Takes a node's word on its role and slots into a table. Of `unclaimed` slots their holders say
/// that they aren't theirs any more: they go to any claimant (Redis from 7.2; older ones keep a view
/// until the claimant's epoch is the higher one). Nodes for which `follows` holds act on
/// it at once: where a claim took their primary's last slot, they follow the claimant.
pub(super) fn absorb(
    table: &mut Table,
    id: NodeId,
    claim: &Row,
    unclaimed: &SlotSet,
    follow_any_taker: bool,
    follows: impl Fn(NodeId) -> bool,
) {
    let Some(known) = table.rows.get_mut(&id) else { return };
    known.ip = claim.ip;
    known.port = claim.port;
    known.config_epoch = known.config_epoch.max(claim.config_epoch);
    if claim.replica_of.is_some() {
        known.replica_of = claim.replica_of;
        known.slots = SlotSet::new();
        return;
    }
    known.replica_of = None;
    let wanted = claim.slots.difference(&known.slots);
    if wanted.is_empty() {
        return;
    }
    let mut gained = wanted.clone();
    let mut emptied: BTreeSet<NodeId> = BTreeSet::new();
    for (other, row) in &mut table.rows {
        if *other == id || row.slots.is_empty() {
            continue;
        }
        let mut contested = wanted.intersection(&row.slots);
        if row.config_epoch >= claim.config_epoch {
            let kept = contested.difference(unclaimed);
            gained = gained.difference(&kept);
            contested = contested.difference(&kept);
        }
        if contested.is_empty() {
            continue;
        }
        row.slots = row.slots.difference(&contested);
        if row.slots.is_empty() && (follow_any_taker || contested == claim.slots) {
            emptied.insert(*other);
        }
    }
    if let Some(row) = table.rows.get_mut(&id) {
        row.slots = row.slots.union(&gained);
    }
    if emptied.is_empty() {
        return;
    }
    for (other, row) in &mut table.rows {
        let concerned = emptied.contains(other)
            || row.replica_of.is_some_and(|primary| emptied.contains(&primary));
        if concerned && *other != id && follows(*other) {
            row.replica_of = Some(id);
        }
    }
}

/// Who finds itself the replica of a replica follows that one's primary (Redis from 7.0).
pub(super) fn skip_middlemen(table: &mut Table, follows: impl Fn(NodeId) -> bool) {
    let mut turns: Vec<(NodeId, NodeId)> = Vec::new();
    for (id, row) in &table.rows {
        let middleman = row.replica_of.and_then(|primary| table.rows.get(&primary));
        if let Some(primary) = middleman.and_then(|row| row.replica_of)
            && primary != *id
            && follows(*id)
        {
            turns.push((*id, primary));
        }
    }
    for (id, primary) in turns {
        if let Some(row) = table.rows.get_mut(&id) {
            row.replica_of = Some(primary);
        }
    }
}

/// Gives slots to a node in a table, whoever had them.
pub(super) fn assign(table: &mut Table, to: NodeId, slots: &SlotSet, epoch: u64) {
    for (id, row) in &mut table.rows {
        if *id == to {
            row.slots = row.slots.union(slots);
            row.config_epoch = row.config_epoch.max(epoch);
        } else if !row.slots.is_empty() {
            row.slots = row.slots.difference(slots);
        }
    }
}

/// Makes the table the node's own, and does what follows from its new own row.
pub(super) fn adopt(node: &mut Node, table: &Arc<Table>, now_ms: u64) -> bool {
    if Arc::ptr_eq(&node.table, table) {
        return false;
    }
    let before = node.own_row().cloned();
    node.table = Arc::clone(table);
    let Some(after) = node.own_row().cloned() else { return true };
    let old_primary = before.as_ref().and_then(|row| row.replica_of);
    if after.replica_of != old_primary {
        // A new primary's stream begins with a copy. Who never copied anybody has been apart from
        // its primary for ever, to the data-age check.
        node.sync = match (old_primary, node.sync) {
            (None, _) => Sync::Down(None),
            (Some(_), Sync::InSync) => Sync::Down(Some(now_ms)),
            (Some(_), Sync::Until { down_since_ms, .. }) => Sync::Down(down_since_ms),
            (Some(_), Sync::Down(since_ms)) => Sync::Down(since_ms),
        };
        node.election_at_ms = None;
        node.open.clear();
    } else if after.replica_of.is_none()
        && let Some(before) = before
    {
        let lost = before.slots.difference(&after.slots);
        if !lost.is_empty() {
            // The keys of slots that somebody else won are deleted.
            Arc::make_mut(&mut node.data).take(&lost, before.slots.len());
            node.append();
            node.open.retain(|_, slots| {
                *slots = slots.difference(&lost);
                !slots.is_empty()
            });
        }
    }
    true
}

/// Is the cluster well by this table, and is its viewer among a minority of primaries?
pub(super) fn verdict(table: &Table, covers_all: bool) -> (bool, bool) {
    let mut covered = 0;
    let mut owners = 0;
    let mut heard = 0;
    let mut failed = false;
    for row in table.rows.values() {
        if row.replica_of.is_some() || row.slots.is_empty() {
            continue;
        }
        owners += 1;
        covered += row.slots.len();
        match row.health {
            Health::Failed => failed = true,
            Health::Suspected => {}
            Health::Ok | Health::Handshake => heard += 1,
        }
    }
    let in_minority = heard < owners / 2 + 1;
    let whole = !covers_all || (covered == usize::from(SLOT_COUNT) && !failed);
    (whole && !in_minority, in_minority)
}

/// The node's own verdict, with the delays of a primary. True where it changed.
pub(super) fn conclude(
    node: &mut Node,
    well: bool,
    in_minority: bool,
    node_timeout_ms: u64,
    now_ms: u64,
) -> bool {
    let is_primary = node.replica_of().is_none();
    if is_primary && in_minority {
        let rejoin_ms = node_timeout_ms.clamp(500, 5_000);
        node.ok_from_ms = node.ok_from_ms.max(now_ms + rejoin_ms);
    }
    let ok = well && (node.cluster_ok || !is_primary || now_ms >= node.ok_from_ms);
    let changed = ok != node.cluster_ok;
    node.cluster_ok = ok;
    changed
}
