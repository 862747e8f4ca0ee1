//! Slots: the same number for every primary, none for those that go. As few slots move as can be.

use protocol::SlotSet;

use super::{Draft, View, roster::Roster};
use crate::{model::NodeName, step::Action};

/// Emit the moves that even the slots out, where the shards are in a state to give and take.
pub(super) fn balance(view: &View<'_>, roster: &Roster, draft: &mut Draft) {
    if roster.heads_missing > 0 || view.shards.is_empty() || !view.unowned.is_empty() {
        return;
    }
    let Some(targets) = targets(view, roster) else { return };
    let (givers, takers) = targets;
    if givers.is_empty() {
        return;
    }
    let reason = givers
        .iter()
        .chain(&takers)
        .find_map(|party| not_ready(view, roster, party))
        .or_else(|| view.open_slots().next().is_some().then(|| "others are half-moved".to_owned()))
        .or_else(|| (!view.agree).then(|| "the nodes' views differ".to_owned()));
    if let Some(reason) = reason {
        draft.wait(format!("slots will move: {reason}"));
        return;
    }
    for (from, to, slots, drains) in pair_up(view, givers, takers) {
        let why = if drains {
            format!("{from} is to go: {} shards are wanted", view.spec.shards)
        } else {
            format!("every primary is to own {} slots", 16_384 / view.spec.shards)
        };
        draft.step(Action::MoveSlots { from, to, slots }, why);
    }
}

/// A primary with slots to give or room to take.
struct Party {
    member: usize,
    slots: SlotSet,
    count: usize,
    drains: bool,
    head: Option<usize>,
}

/// Who gives and who takes how many. None: a primary isn't ours.
fn targets(view: &View<'_>, roster: &Roster) -> Option<(Vec<Party>, Vec<Party>)> {
    let mut parties = Vec::new();
    for (number, head) in roster.heads.iter().enumerate() {
        let slots = head.shard.map(|shard| view.shards[shard].slots.clone()).unwrap_or_default();
        parties.push((head.primary?, slots, Some(number)));
    }
    parties.sort_by_key(|(member, slots, _)| {
        (std::cmp::Reverse(slots.len()), view.members[*member].name.number)
    });
    let (share, rest) = (16_384 / parties.len(), 16_384 % parties.len());
    let most = parties.first().map_or(0, |(_, slots, _)| slots.len());
    let least = parties.last().map_or(0, |(_, slots, _)| slots.len());
    if roster.draining.is_empty() && most - least <= 1 {
        return Some((Vec::new(), Vec::new()));
    }
    let (mut givers, mut takers) = (Vec::new(), Vec::new());
    for (rank, (member, slots, head)) in parties.into_iter().enumerate() {
        let target = share + usize::from(rank < rest);
        let have = slots.len();
        let party = |count| Party { member, slots: slots.clone(), count, drains: false, head };
        if have > target {
            givers.push(party(have - target));
        } else if have < target {
            takers.push(party(target - have));
        }
    }
    for shard in &roster.draining {
        let shard = &view.shards[*shard];
        givers.push(Party {
            member: shard.primary?,
            slots: shard.slots.clone(),
            count: shard.slots.len(),
            drains: true,
            head: None,
        });
    }
    Some((givers, takers))
}

fn not_ready(view: &View<'_>, roster: &Roster, party: &Party) -> Option<String> {
    let member = &view.members[party.member];
    if !member.up.is_some_and(|up| up.is_primary() && member.joined) {
        return Some(format!("{} is not serving", member.name));
    }
    let head = &roster.heads[party.head?];
    let copied = head.replicas.iter().any(|index| view.in_sync(*index));
    (view.spec.replicas > 0 && !copied)
        .then(|| format!("{} has no replica in sync yet", member.name))
}

/// Pair givers with takers in order; a pair moves the giver's highest slots.
fn pair_up(
    view: &View<'_>,
    givers: Vec<Party>,
    mut takers: Vec<Party>,
) -> Vec<(NodeName, NodeName, SlotSet, bool)> {
    let mut moves = Vec::new();
    let mut taker = 0;
    for giver in givers {
        let mut left =
            giver.slots.difference(&giver.slots.take_lowest(giver.slots.len() - giver.count));
        while !left.is_empty() && taker < takers.len() {
            let share = left.take_lowest(takers[taker].count);
            left = left.difference(&share);
            takers[taker].count -= share.len();
            moves.push((
                view.members[giver.member].name.clone(),
                view.members[takers[taker].member].name.clone(),
                share,
                giver.drains,
            ));
            if takers[taker].count == 0 {
                taker += 1;
            }
        }
    }
    moves
}
