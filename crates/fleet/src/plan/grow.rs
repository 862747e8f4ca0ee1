//! Nodes that are missing: make them, introduce them, give them slots or a primary to copy.

use std::collections::{BTreeMap, BTreeSet};

use protocol::SlotSet;

use super::{
    Draft, View,
    roster::{Roster, Vacancy},
};
use crate::{
    model::{Fleet, HostId, NodeName},
    observed::{Health, Server},
    placement::{HostPicker, Room, hosts_by_room, spreading_handover},
    step::Action,
};

/// Create what the roster lacks.
pub(super) fn create<'a>(
    fleet: &'a Fleet,
    view: &View<'a>,
    roster: &Roster,
    room: &mut Option<Room<'a>>,
    draft: &mut Draft,
) {
    let vacancies = roster.vacancies(view);
    let whole_shards = roster.heads_missing * (1 + view.spec.replicas as usize);
    // Spares first fill what they fit; those left over serve the shards to come.
    let filled = Roster::fill(view, &roster.spares, &vacancies);
    let usable = roster.spares.iter().filter(|index| Roster::is_usable(view, **index)).count();
    let left = usable - filled.len();
    let taken: BTreeSet<usize> = filled.iter().map(|(_, vacancy)| *vacancy).collect();
    let open: Vec<&Vacancy> = vacancies
        .iter()
        .enumerate()
        .filter(|(number, _)| !taken.contains(number))
        .map(|(_, vacancy)| vacancy)
        .collect();
    let fresh = whole_shards.saturating_sub(left);
    if fresh == 0 && open.is_empty() {
        return;
    }
    let mut load: BTreeMap<&HostId, usize> = BTreeMap::new();
    for member in &view.members {
        *load.entry(&member.view.host).or_default() += 1;
    }
    let room = room.get_or_insert_with(|| Room::new(fleet, view.observed));
    let mut picker = HostPicker::new(hosts_by_room(fleet, view.spec, &room.loads), &load);
    let mut places: Vec<(&HostId, String)> = Vec::new();
    for vacancy in open {
        let label = head_label(view, roster, vacancy.head);
        if let Some(host) = &vacancy.on {
            picker.add(host);
            places.push((host, format!("{label} shall be able to move to {host}")));
        } else if let Some(host) = picker.pick(&vacancy.avoid) {
            places.push((host, format!("{label} needs a replica")));
        } else {
            draft.block(
                format!("a replica of {label}"),
                "every host that may hold one holds the primary or another replica of it",
                Some("add a host, or lower replicas"),
            );
        }
    }
    for _ in 0..fresh {
        if let Some(host) = picker.pick(&[]) {
            let (shards, replicas) = (view.spec.shards, view.spec.replicas);
            let s = if replicas == 1 { "" } else { "s" };
            let nodes = view.spec.nodes_wanted();
            let why = format!("{shards} shards with {replicas} replica{s} each are {nodes} nodes");
            places.push((host, why));
        }
    }
    let mut numbers = free_numbers(view);
    for (host, why) in places {
        let Some(number) = numbers.next() else { break };
        let node = NodeName::new(view.spec.name.clone(), number);
        if view.observed.hosts.get(host).is_some_and(|host| !host.reachable) {
            draft.block(
                format!("{node} on {host}"),
                format!("{host} can't be asked"),
                Some("check the host and the way to it"),
            );
            continue;
        }
        match room.ports.take(host, view.spec.ports, number) {
            Ok(ports) => {
                room.loads.add(host, Some(view.spec));
                draft.step(Action::CreateNode { node, host: host.clone(), ports }, why);
            }
            Err(Some(port)) => draft.block(
                format!("{node} on {host}"),
                format!("port {port} is taken"),
                Some("free the port, or choose other ports in the spec"),
            ),
            Err(None) => draft.block(
                format!("{node} on {host}"),
                "no free ports are left up to 65535",
                Some("choose lower ports in the spec"),
            ),
        }
    }
}

fn head_label(view: &View<'_>, roster: &Roster, head: usize) -> String {
    roster.heads[head]
        .primary
        .map_or_else(|| "a shard".to_owned(), |index| view.members[index].name.to_string())
}

/// The lowest numbers that no node of the cluster has.
fn free_numbers<'a>(view: &'a View<'_>) -> impl Iterator<Item = u32> + 'a {
    let mut taken = view.members.iter().map(|member| member.name.number).peekable();
    (1..).filter(move |number| {
        while taken.next_if(|known| known < number).is_some() {}
        taken.next_if_eq(number).is_none()
    })
}

/// Introduce nodes to each other, and give a new cluster's primaries their slots.
pub(super) fn join(view: &View<'_>, roster: &Roster, draft: &mut Draft) {
    let starting: Vec<&NodeName> = view
        .members
        .iter()
        .filter(|member| {
            member.up.is_none()
                && !member.given_up
                && !matches!(
                    member.view.server,
                    Server::Silent { .. } | Server::Denied { .. } | Server::Stranded
                )
        })
        .map(|member| member.name)
        .collect();
    if view.is_new() && !starting.is_empty() {
        for name in starting {
            draft.wait(format!("{name} is starting"));
        }
        return;
    }
    assign(view, roster, draft);
    let strangers: Vec<NodeName> = view
        .members
        .iter()
        .filter(|member| member.up.is_some() && (!member.joined || view.is_missed(member)))
        .map(|member| member.name.clone())
        .collect();
    if strangers.is_empty() || view.members.len() < 2 {
        return;
    }
    let why = if view.is_new() {
        "they don't know each other yet"
    } else if view.members.iter().all(|member| member.up.is_none() || member.joined) {
        "others look for it at another address"
    } else {
        "the rest doesn't know it"
    };
    draft.step(Action::Meet { nodes: strangers }, why);
}

/// Slots that nobody ever owned go to the primaries that have none.
fn assign(view: &View<'_>, roster: &Roster, draft: &mut Draft) {
    if view.unowned.is_empty() || roster.heads_missing > 0 {
        return;
    }
    if let Some(name) = view.may_own_unseen() {
        draft.wait(format!("slots to be given: {name} may have some already"));
        return;
    }
    let fresh: Vec<&NodeName> = roster
        .heads
        .iter()
        .filter(|head| head.shard.is_none())
        .filter_map(|head| head.primary.map(|index| view.members[index].name))
        .collect();
    if fresh.is_empty() {
        return;
    }
    if view.shards.is_empty() && !view.is_new() {
        draft.block(
            "slots for the primaries",
            "no node owns a slot, yet nodes hold keys: their cluster's configuration was lost",
            Some("restore the nodes.conf files, or take a backup of the data first"),
        );
        return;
    }
    let mut left = view.unowned.clone();
    let mut shares = Vec::new();
    for (rank, node) in fresh.iter().enumerate() {
        let share = left.take_lowest(left.len() / (fresh.len() - rank));
        left = left.difference(&share);
        shares.push(((*node).clone(), share));
    }
    shares.retain(|(_, share): &(NodeName, SlotSet)| !share.is_empty());
    draft.step(Action::AssignSlots { shares }, "no node owns them");
}

/// A server that starts as a primary refuses writes for this long (CLUSTER_WRITABLE_DELAY).
const WRITABLE_DELAY_S: u64 = 2;

/// A new cluster needn't sit out the engines' delay: its first primaries give their shards to
/// replicas, which serve at once.
pub(super) fn open(view: &View<'_>, draft: &mut Draft) {
    let holds_nothing = view
        .members
        .iter()
        .all(|member| member.up.is_some_and(|up| up.keys == 0 && up.uptime_s <= WRITABLE_DELAY_S));
    if !holds_nothing || !view.agree || !view.unowned.is_empty() {
        return;
    }
    let mut primaries = Vec::new();
    let mut candidates = Vec::new();
    for shard in &view.shards {
        let closed = view.primary_up(shard).is_some_and(|up| !up.cluster_ok);
        let (Some(primary), true) = (shard.primary, closed) else { return };
        // One that says itself that the cluster is down would have to wait like the primary.
        let ready = |index: &usize| {
            view.in_sync(*index) && view.members[*index].up.is_some_and(|up| up.cluster_ok)
        };
        primaries.push(primary);
        candidates.push(shard.replicas.iter().copied().filter(ready).collect::<Vec<usize>>());
    }
    let Some(heirs) = spread_heirs(view, &candidates) else { return };
    let name = |index: usize| view.members[index].name.clone();
    let pairs: Vec<_> =
        primaries.into_iter().zip(heirs).map(|(from, to)| (name(from), name(to))).collect();
    if !pairs.is_empty() {
        let why = "a server that starts as a primary refuses writes for 2 s, one that was a replica does not";
        draft.step(Action::OpenShards { pairs }, why);
    }
}

/// One of each shard's candidates, so that they are spread over the hosts; None where a shard has none.
fn spread_heirs(view: &View<'_>, candidates: &[Vec<usize>]) -> Option<Vec<usize>> {
    let host = |index: usize| &view.members[index].view.host;
    let mut heirs: Vec<usize> =
        candidates.iter().map(|shard| shard.first().copied()).collect::<Option<_>>()?;
    if !view.spreads() || candidates.iter().all(|shard| shard.len() == 1) {
        return Some(heirs);
    }
    let domains: Vec<&HostId> = view.spec.hosts.iter().collect();
    let choices: Vec<Vec<(usize, &HostId)>> = candidates
        .iter()
        .map(|shard| shard.iter().map(|index| (*index, host(*index))).collect())
        .collect();
    // Each change evens the spread out; there are no more than this where all could be wrong.
    for _ in 0..heirs.len() {
        let stands: Vec<&HostId> = heirs.iter().map(|index| host(*index)).collect();
        let Some((shard, heir)) = spreading_handover(&domains, &stands, &choices) else { break };
        heirs[shard] = heir;
    }
    Some(heirs)
}

/// Nodes that serve nobody become replicas where one is missing.
pub(super) fn attach(view: &View<'_>, roster: &Roster, draft: &mut Draft) {
    let ready: Vec<usize> = roster
        .spares
        .iter()
        .copied()
        .filter(|index| {
            let member = &view.members[*index];
            let known = member.id.and_then(|id| view.merged.get(&id));
            // By its own word too: one that was cut off may not know yet that it was replaced.
            member.up.is_some_and(|up| up.keys == 0 && up.slots().is_empty())
                && member.joined
                && view.allows(&member.view.host)
                && known.is_some_and(|row| row.health != Health::Handshake)
        })
        .collect();
    if roster.heads_missing > 0 {
        return;
    }
    let vacancies: Vec<Vacancy> = roster
        .vacancies(view)
        .into_iter()
        .filter(|vacancy| {
            roster.heads[vacancy.head].primary.is_some_and(|at| view.members[at].up.is_some())
        })
        .collect();
    for (spare, vacancy) in Roster::fill(view, &ready, &vacancies) {
        let Some(primary) = roster.heads[vacancies[vacancy].head].primary else { continue };
        let (node, primary) = (&view.members[spare], &view.members[primary]);
        draft.step(
            Action::Replicate { node: node.name.clone(), primary: primary.name.clone() },
            format!("{} lacks a replica", primary.name),
        );
    }
}
