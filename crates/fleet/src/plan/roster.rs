//! Who is what, and who is missing: the wanted primaries ("heads") with the replicas that count for
//! them, the nodes that serve nobody, and the shards that are to go. Growing, balancing, shrinking
//! and spreading all read this, so that they agree.

use std::collections::{BTreeMap, BTreeSet};

use super::{Shard, View, restart};
use crate::{
    model::{Fleet, HostId, Spread, quorum_safe_max},
    observed::Role,
    placement::{hosts_interleaved, spreading_handover},
};

/// A primary that the wanted cluster has.
pub(super) struct Head {
    /// Index of its member; None where it isn't one of ours.
    pub(super) primary: Option<usize>,
    /// Index into the view's shards; None where it owns no slot yet.
    pub(super) shard: Option<usize>,
    /// Its replicas that stand where replicas may.
    pub(super) replicas: Vec<usize>,
    /// Its replicas that stand on its own host or on one that the spec doesn't allow.
    pub(super) misfits: Vec<usize>,
    pub(super) replicas_wanted: usize,
    /// A further replica is wanted on this host, for the primaries' spread.
    pub(super) wanted_on: Option<HostId>,
}

/// See the module's documentation. All numbers are indices of members, or of shards where said.
pub(super) struct Roster {
    pub(super) heads: Vec<Head>,
    /// Heads that don't exist yet.
    pub(super) heads_missing: usize,
    /// Shards (indices, ascending) that give all their slots away.
    pub(super) draining: Vec<usize>,
    /// Nodes without slots that copy nobody who is wanted.
    pub(super) spares: Vec<usize>,
}

/// A place for a replica.
pub(super) struct Vacancy {
    pub(super) head: usize,
    pub(super) avoid: Vec<HostId>,
    pub(super) on: Option<HostId>,
}

impl Roster {
    pub(super) fn new(fleet: &Fleet, view: &View<'_>) -> Self {
        let draining = draining(view);
        let kept: Vec<usize> =
            (0..view.shards.len()).filter(|shard| draining.binary_search(shard).is_err()).collect();
        let followers = followers(view);
        let mut roster = Self { heads: Vec::new(), heads_missing: 0, draining, spares: Vec::new() };
        let mut busy: BTreeSet<usize> =
            view.shards.iter().filter_map(|shard| shard.primary).collect();
        for shard in kept {
            let at = &view.shards[shard];
            roster.heads.push(head(view, at.primary, Some(shard), &at.replicas));
            busy.extend(&at.replicas);
        }
        let wanted = view.spec.shards as usize;
        let chosen =
            new_heads(fleet, view, &busy, &followers, wanted - roster.heads.len().min(wanted));
        for index in chosen {
            let replicas = followers.get(&index).cloned().unwrap_or_default();
            busy.insert(index);
            busy.extend(&replicas);
            roster.heads.push(head(view, Some(index), None, &replicas));
        }
        roster.heads_missing = wanted - roster.heads.len().min(wanted);
        roster.spares = (0..view.members.len()).filter(|index| !busy.contains(index)).collect();
        // A drained shard's replicas serve it until it is empty.
        let of_drained: BTreeSet<usize> = roster
            .draining
            .iter()
            .flat_map(|shard| view.shards[*shard].replicas.iter().copied())
            .collect();
        roster.spares.retain(|index| !of_drained.contains(index));
        roster.want_more(fleet, view);
        roster
    }

    /// Replicas beyond the spec's number that a change needs for a while.
    fn want_more(&mut self, fleet: &Fleet, view: &View<'_>) {
        let base = view.spec.replicas as usize;
        let mut surge_given = false;
        for head in &mut self.heads {
            head.replicas_wanted = base;
            let Some(primary) = head.primary else { continue };
            let member = &view.members[primary];
            let leaves = !view.allows(&member.view.host);
            let surge = base == 0
                && !surge_given
                && head.shard.is_some()
                && restart::is_outdated(fleet, view, primary);
            surge_given |= surge;
            head.replicas_wanted += usize::from(leaves || surge);
        }
        if let Some((head, host)) = self.relocation(fleet, view) {
            self.heads[head].wanted_on = Some(host);
        }
    }

    /// Where primaries are crowded beyond what the quorum allows and no handover helps: the head that
    /// should get a replica on an emptier host, and that host.
    fn relocation(&self, fleet: &Fleet, view: &View<'_>) -> Option<(usize, HostId)> {
        if view.spec.placement.primaries_host != Spread::QuorumSafe
            || !view.has_choice()
            || self.heads_missing > 0
            || !self.draining.is_empty()
        {
            return None;
        }
        let hosts = self.primary_hosts(view)?;
        let most = quorum_safe_max(hosts.len());
        let mut counts: BTreeMap<&HostId, usize> = BTreeMap::new();
        for host in &hosts {
            *counts.entry(host).or_default() += 1;
        }
        let (crowded, count) = counts
            .iter()
            .filter(|(_, count)| **count > most)
            .max_by_key(|(host, count)| (**count, std::cmp::Reverse(**host)))?;
        if self.spreading(view, false).is_some() {
            return None;
        }
        let target = hosts_interleaved(fleet, view.spec)
            .into_iter()
            .filter(|host| counts.get(host).copied().unwrap_or(0) + 2 <= *count)
            .min_by_key(|host| counts.get(host).copied().unwrap_or(0))?;
        let stands_on = |index: &usize| view.members[*index].view.host == *target;
        let head = self.heads.iter().position(|head| {
            head.primary.is_some_and(|index| view.members[index].view.host == **crowded)
                && !head.replicas.iter().any(stands_on)
        })?;
        Some((head, target.clone()))
    }

    fn primary_hosts(&self, view: &View<'_>) -> Option<Vec<HostId>> {
        self.heads
            .iter()
            .map(|head| head.primary.map(|index| view.members[index].view.host.clone()))
            .collect()
    }

    /// The handover that spreads primaries best: (head, member that takes over). `in_sync`: only to
    /// replicas that could take over this moment.
    pub(super) fn spreading(&self, view: &View<'_>, in_sync: bool) -> Option<(usize, usize)> {
        let primaries = self.primary_hosts(view)?;
        let replicas: Vec<Vec<(usize, HostId)>> = self
            .heads
            .iter()
            .map(|head| {
                head.replicas
                    .iter()
                    .filter(|index| !in_sync || view.in_sync(**index))
                    .map(|index| (*index, view.members[*index].view.host.clone()))
                    .collect()
            })
            .collect();
        spreading_handover(&view.spec.hosts, &primaries, &replicas)
    }

    /// Every place for a replica that nobody fills, heads with the fewest replicas first.
    pub(super) fn vacancies(&self, view: &View<'_>) -> Vec<Vacancy> {
        let mut vacancies = Vec::new();
        for (number, head) in self.heads.iter().enumerate() {
            let mut avoid: Vec<HostId> = Vec::new();
            if view.has_choice() {
                let near = head.primary.iter().chain(&head.replicas);
                avoid.extend(near.map(|index| view.members[*index].view.host.clone()));
            }
            for rank in head.replicas.len()..head.replicas_wanted {
                vacancies.push((rank, Vacancy { head: number, avoid: avoid.clone(), on: None }));
            }
            if let Some(host) = &head.wanted_on {
                let on = Some(host.clone());
                vacancies.push((usize::MAX, Vacancy { head: number, avoid, on }));
            }
        }
        vacancies.sort_by_key(|(rank, vacancy)| (*rank, vacancy.head));
        vacancies.into_iter().map(|(_, vacancy)| vacancy).collect()
    }

    /// May a spare become somebody's replica? Not one that copied another primary: its link was up
    /// a moment ago, so its peers would elect it before it has a copy of what it is to follow now.
    pub(super) fn is_usable(view: &View<'_>, index: usize) -> bool {
        let member = &view.members[index];
        view.allows(&member.view.host) && view.replica_of(member).is_none()
    }

    /// Give usable spares to vacancies: (spare, vacancy) by the numbers of `spares` and `vacancies`. The host
    /// with the most spares left gives first, so that none is left with only its own shards.
    pub(super) fn fill(
        view: &View<'_>,
        spares: &[usize],
        vacancies: &[Vacancy],
    ) -> Vec<(usize, usize)> {
        let mut by_host: BTreeMap<&HostId, Vec<usize>> = BTreeMap::new();
        for index in spares.iter().rev().filter(|index| Self::is_usable(view, **index)) {
            by_host.entry(&view.members[*index].view.host).or_default().push(*index);
        }
        let mut order: BTreeSet<(std::cmp::Reverse<usize>, &HostId)> = by_host
            .iter()
            .map(|(host, indices)| (std::cmp::Reverse(indices.len()), *host))
            .collect();
        // Several replicas of one head go to different hosts while there are enough.
        let mut given: BTreeMap<usize, Vec<&HostId>> = BTreeMap::new();
        let mut pairs = Vec::new();
        let mut unfilled = Vec::new();
        for (number, vacancy) in vacancies.iter().enumerate() {
            let beside = given.entry(vacancy.head).or_default();
            let fits = |host: &HostId| {
                vacancy.on.as_ref().is_none_or(|on| on == host) && !vacancy.avoid.contains(host)
            };
            let found = order
                .iter()
                .find(|(_, host)| fits(host) && (!view.has_choice() || !beside.contains(host)))
                .or_else(|| order.iter().find(|(_, host)| fits(host)))
                .copied();
            let Some(entry) = found else {
                unfilled.push(number);
                continue;
            };
            order.remove(&entry);
            let queue = by_host.entry(entry.1).or_default();
            if let Some(spare) = queue.pop() {
                pairs.push((spare, number));
                beside.push(entry.1);
            }
            if !queue.is_empty() {
                order.insert((std::cmp::Reverse(queue.len()), entry.1));
            }
        }
        for number in unfilled {
            swap_in(view, &mut by_host, vacancies, &mut pairs, number);
        }
        pairs
    }
}

/// A vacancy that no spare left fits: take a spare from another vacancy that one left does fit.
fn swap_in(
    view: &View<'_>,
    by_host: &mut BTreeMap<&HostId, Vec<usize>>,
    vacancies: &[Vacancy],
    pairs: &mut Vec<(usize, usize)>,
    number: usize,
) {
    let fits = |vacancy: &Vacancy, host: &HostId| {
        vacancy.on.as_ref().is_none_or(|on| on == host) && !vacancy.avoid.contains(host)
    };
    let left: Vec<&HostId> =
        by_host.iter().filter(|(_, queue)| !queue.is_empty()).map(|(host, _)| *host).collect();
    for host in left {
        let swap = pairs.iter().position(|(spare, other)| {
            fits(&vacancies[number], &view.members[*spare].view.host)
                && fits(&vacancies[*other], host)
        });
        let Some(swap) = swap else { continue };
        if let Some(spare) = by_host.get_mut(host).and_then(Vec::pop) {
            let (moved, other) = pairs[swap];
            pairs[swap] = (spare, other);
            pairs.push((moved, number));
        }
        return;
    }
}

fn head(view: &View<'_>, primary: Option<usize>, shard: Option<usize>, replicas: &[usize]) -> Head {
    let own_host = primary.map(|index| &view.members[index].view.host);
    let (replicas, misfits) = replicas.iter().copied().partition(|index| {
        let host = &view.members[*index].view.host;
        view.allows(host) && (!view.has_choice() || own_host != Some(host))
    });
    Head { primary, shard, replicas, misfits, replicas_wanted: 0, wanted_on: None }
}

/// The shards to empty where there are more than wanted: those that are emptier already, then those
/// on hosts that the spec doesn't allow, then the highest numbers.
fn draining(view: &View<'_>) -> Vec<usize> {
    let surplus = view.shards.len().saturating_sub(view.spec.shards as usize);
    if surplus == 0 {
        return Vec::new();
    }
    let number = |shard: &Shard| shard.primary.map_or(u32::MAX, |at| view.members[at].name.number);
    let elsewhere =
        |shard: &Shard| shard.primary.is_none_or(|at| !view.allows(&view.members[at].view.host));
    let fair = 16_384 / view.shards.len();
    let mut order: Vec<usize> = (0..view.shards.len()).collect();
    order.sort_by_key(|index| {
        let shard = &view.shards[*index];
        (
            shard.slots.len().min(fair),
            std::cmp::Reverse(elsewhere(shard)),
            std::cmp::Reverse(number(shard)),
        )
    });
    order.truncate(surplus);
    order.sort_unstable();
    order
}

/// Primaries without slots, and who follows them.
fn followers(view: &View<'_>) -> BTreeMap<usize, Vec<usize>> {
    let mut followers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let heads: BTreeMap<_, _> = view
        .members
        .iter()
        .enumerate()
        .filter(|(_, member)| view.is_blank(member))
        .filter_map(|(index, member)| member.id.map(|id| (id, index)))
        .collect();
    for (index, member) in view.members.iter().enumerate() {
        let Some(up) = member.up else { continue };
        if let Role::Replica { of, .. } = up.role
            && let Some(head) = heads.get(&of)
        {
            followers.entry(*head).or_default().push(index);
        }
    }
    followers
}

/// Blank nodes that become primaries: those that have replicas already, then by host, the one with
/// the fewest primaries first.
fn new_heads(
    fleet: &Fleet,
    view: &View<'_>,
    busy: &BTreeSet<usize>,
    followers: &BTreeMap<usize, Vec<usize>>,
    count: usize,
) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let usable = |index: &usize| {
        let member = &view.members[*index];
        !busy.contains(index) && view.is_blank(member) && view.allows(&member.view.host)
    };
    let mut chosen: Vec<usize> = followers.keys().copied().filter(usable).take(count).collect();
    let mut load: BTreeMap<&HostId, usize> = BTreeMap::new();
    let primaries = view.shards.iter().filter_map(|shard| shard.primary);
    for index in primaries.chain(chosen.iter().copied()) {
        *load.entry(&view.members[index].view.host).or_default() += 1;
    }
    let mut waiting: BTreeMap<&HostId, Vec<usize>> = BTreeMap::new();
    let early: BTreeSet<usize> = chosen.iter().copied().collect();
    let mut candidates: Vec<usize> = (0..view.members.len()).filter(usable).collect();
    // A new cluster's first primaries give their shards away at once (see `grow::open`): so the lowest
    // numbers are the primaries in the end.
    if !(view.is_new() && view.spec.replicas > 0) {
        candidates.reverse();
    }
    for index in candidates {
        if !early.contains(&index) {
            waiting.entry(&view.members[index].view.host).or_default().push(index);
        }
    }
    let hosts = hosts_interleaved(fleet, view.spec);
    let ranked = hosts.iter().zip(0_usize..).filter(|(host, _)| waiting.contains_key(*host));
    let mut queue: BTreeSet<(usize, usize)> =
        ranked.map(|(host, rank)| (load.get(host).copied().unwrap_or(0), rank)).collect();
    while chosen.len() < count {
        let Some((load, rank)) = queue.pop_first() else { break };
        if let Some(index) = waiting.get_mut(hosts[rank]).and_then(Vec::pop) {
            chosen.push(index);
            queue.insert((load + 1, rank));
        }
    }
    chosen.sort_unstable();
    chosen
}
