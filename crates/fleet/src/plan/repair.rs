//! Half-moved and unowned slots. Whoever plans holds the lease, so no move of ours is under way:
//! an open slot is what an interrupted move left behind.

use std::collections::BTreeMap;

use protocol::{NodeId, SlotSet};

use super::{Draft, View};
use crate::{
    model::NodeName,
    observed::OpenSlots,
    step::{Action, RepairCase},
};

pub(super) fn half_moved(view: &View<'_>, draft: &mut Draft) {
    let absent = view.shards.iter().find(|shard| view.primary_up(shard).is_none());
    let mut repairs: BTreeMap<(NodeName, RepairCase), SlotSet> = BTreeMap::new();
    for (id, case, slots) in classify(view) {
        let Some(owner) = view.member(id).map(|member| member.name.clone()) else {
            draft.block(
                format!("slots {slots} closed"),
                format!("their owner {} is not one of the fleet's nodes", id.short()),
                None,
            );
            continue;
        };
        let known = repairs.entry((owner, case)).or_default();
        *known = known.union(&slots);
    }
    if !view.unowned.is_empty()
        && !view.shards.is_empty()
        && absent.is_none()
        && view.may_own_unseen().is_none()
        && let Some(owner) = orphans_home(view)
    {
        repairs.insert((owner, RepairCase::Orphan), view.unowned.clone());
    }
    if repairs.is_empty() {
        return;
    }
    if let Some(shard) = absent {
        // Never with a primary away: it may hold the keys.
        draft
            .wait(format!("half-moved slots: {} must be back first", view.label(shard.primary_id)));
        return;
    }
    // What is unowned stops the whole cluster, and with it every move of keys. Claims come before
    // whatever raises an epoch: with a higher one the giver would take back what it gave away, and the
    // taker would drop the keys.
    let order = [
        RepairCase::Orphan,
        RepairCase::Claim,
        RepairCase::FinishMove,
        RepairCase::ImportingOnly,
        RepairCase::MigratingOnly,
    ];
    let first = order.into_iter().find(|case| repairs.keys().any(|(_, other)| other == case));
    for ((owner, case), slots) in repairs {
        if Some(case) != first {
            continue;
        }
        let why = match case {
            RepairCase::FinishMove => "a move was interrupted; the rest of the keys follows",
            RepairCase::ImportingOnly => "an importer waits for a move that its owner doesn't make",
            RepairCase::MigratingOnly => "the owner gives to a node that doesn't take",
            RepairCase::Claim => "the nodes differ about the owner",
            RepairCase::Orphan => "no node owns them",
        };
        draft.step(Action::RepairSlots { owner, slots, case }, why);
    }
}

/// Each open slot's case and the id of who shall own it.
fn classify(view: &View<'_>) -> Vec<(NodeId, RepairCase, SlotSet)> {
    let mut migrating: BTreeMap<(NodeId, NodeId), SlotSet> = BTreeMap::new();
    let mut importing: BTreeMap<(NodeId, NodeId), SlotSet> = BTreeMap::new();
    for (index, way, slots) in view.open_slots() {
        let Some(here) = view.members[index].id else { continue };
        let (table, pair) = match way {
            OpenSlots::MigratingTo(to) => (&mut migrating, (here, *to)),
            OpenSlots::ImportingFrom(from) => (&mut importing, (*from, here)),
        };
        let known = table.entry(pair).or_default();
        *known = known.union(slots);
    }
    let owned = |id: NodeId| view.merged.get(&id).map(|row| row.slots.clone()).unwrap_or_default();
    let mut cases = Vec::new();
    let mut add = |id, case, slots: SlotSet| {
        if !slots.is_empty() {
            cases.push((id, case, slots));
        }
    };
    for ((from, to), giving) in &migrating {
        let taking = importing.get(&(*from, *to)).cloned().unwrap_or_default();
        let both = giving.intersection(&taking);
        add(*to, RepairCase::FinishMove, both.clone());
        let alone = giving.difference(&both);
        // The target already owns what it closed before us: the giver only has to hear of it.
        let passed = alone.intersection(&owned(*to));
        add(*to, RepairCase::Claim, passed.clone());
        add(*from, RepairCase::MigratingOnly, alone.difference(&passed));
    }
    for ((from, to), taking) in &importing {
        let giving = migrating.get(&(*from, *to)).cloned().unwrap_or_default();
        let alone = taking.difference(&giving);
        let mine = alone.intersection(&owned(*to));
        add(*to, RepairCase::Claim, mine.clone());
        // The owner of now may be another than the one it waits for.
        let mut left = alone.difference(&mine);
        for shard in &view.shards {
            let here = left.intersection(&shard.slots);
            left = left.difference(&here);
            add(shard.primary_id, RepairCase::ImportingOnly, here);
        }
    }
    cases
}

/// Who takes unowned slots: the primary that has the fewest.
fn orphans_home(view: &View<'_>) -> Option<NodeName> {
    view.shards
        .iter()
        .filter_map(|shard| {
            shard.primary.map(|index| (shard.slots.len(), view.members[index].name))
        })
        .min()
        .map(|(_, name)| name.clone())
}
