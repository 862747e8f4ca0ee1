//! What is too many: ids of nodes that are gone for good, nodes that serve nobody, replicas beyond
//! the wanted number.

use std::{collections::BTreeSet, net::IpAddr};

use protocol::NodeId;

use super::{Draft, MergedRow, View, restart, roster::Roster};
use crate::{
    model::{Fleet, HostId},
    observed::{Health, NodeView, Process},
    step::Action,
};

/// Forget ids that are alive nowhere (I7): without slots, failed or without an address, where our
/// runtime sees no server with that id. One whose address another id has now is never called failed.
pub(super) fn forget(fleet: &Fleet, view: &View<'_>, draft: &mut Draft) {
    for (id, row) in &view.merged {
        let is_head = row.replica_of.is_none() && !row.slots.is_empty();
        let member = view.member(*id);
        // With its directory's content went what its removal would tell the others to forget.
        let nameless = member.is_some_and(|member| {
            member.given_up && member.view.proven_dead() && member.view.disk.id.is_none()
        });
        if (member.is_some() && !nameless) || is_head || followed(view, *id) {
            continue;
        }
        let noticed = match row.health {
            Health::Failed => true,
            Health::Handshake => false,
            Health::Ok | Health::Suspected => row.address.is_none(),
        };
        // At an address that is none of the fleet's (any more) nobody can be asked. Its peers' majority
        // misses it, it serves nobody, and no host has it.
        let lost = row.health == Health::Failed && all_asked(fleet, view);
        let gone = nameless || lost || proven_gone(fleet, view, row);
        if noticed && gone {
            draft.step(Action::Forget { id: *id }, "the node with this id is gone for good");
        } else if gone {
            draft.wait(format!("{}, which is gone, to be noticed by its peers", id.short()));
        } else if row.health != Health::Handshake && !at_ours(fleet, row) {
            let address =
                row.address.map_or_else(|| "?".to_owned(), |(ip, port)| format!("{ip}:{port}"));
            draft.block(
                format!("{} to be one of the fleet's nodes", id.short()),
                format!("the node at {address} is part of the cluster and not of the spec"),
                Some("remove it from the cluster, or let keyfleet create the nodes"),
            );
        }
    }
}

fn followed(view: &View<'_>, id: NodeId) -> bool {
    view.members.iter().any(|member| member.up.is_some() && view.replica_of(member) == Some(id))
}

fn host_of(fleet: &Fleet, ip: IpAddr) -> Option<&HostId> {
    fleet.hosts.values().find(|host| host.address == ip).map(|host| &host.id)
}

fn at_ours(fleet: &Fleet, row: &MergedRow) -> bool {
    row.address.is_none_or(|(ip, _)| host_of(fleet, ip).is_some())
}

/// Our runtime can be asked on the host at the row's address, and knows no such server there; or another
/// node of ours has that address. A row without an address was left by a node whose address another
/// id has now: it may be on any host.
fn proven_gone(fleet: &Fleet, view: &View<'_>, row: &MergedRow) -> bool {
    match row.address {
        Some(address) => {
            let replaced = |view: &NodeView| {
                view.process != Process::Unknown && (view.address, view.ports.tcp) == address
            };
            host_of(fleet, address.0).is_some_and(|host| asked(view, host))
                || view.members.iter().any(|member| replaced(member.view))
        }
        None => all_asked(fleet, view),
    }
}

fn asked(view: &View<'_>, host: &HostId) -> bool {
    view.observed.hosts.get(host).is_some_and(|host| host.reachable)
}

fn all_asked(fleet: &Fleet, view: &View<'_>) -> bool {
    fleet.hosts.keys().all(|host| asked(view, host))
}

/// Remove one node that is too many.
pub(super) fn surplus(fleet: &Fleet, view: &View<'_>, roster: &Roster, draft: &mut Draft) {
    if roster.heads_missing > 0 || !roster.draining.is_empty() {
        return;
    }
    let vacancies = roster.vacancies(view);
    let used: BTreeSet<usize> = Roster::fill(view, &roster.spares, &vacancies)
        .into_iter()
        .map(|(spare, _)| spare)
        .collect();
    let unused = roster.spares.iter().rev().find(|index| {
        let id = view.members[**index].id;
        !used.contains(index) && id.is_none_or(|id| !followed(view, id))
    });
    if let Some(index) = unused {
        let member = &view.members[*index];
        let why = if member.given_up {
            format!("it is down, and its host {} is not in the spec any more", member.view.host)
        } else {
            "it owns no slot, and no shard needs it".to_owned()
        };
        draft.step(Action::RemoveNode { node: member.name.clone() }, why);
        return;
    }
    for head in &roster.heads {
        if head.wanted_on.is_some() {
            continue;
        }
        let synced = head.replicas.iter().filter(|index| view.in_sync(**index)).count();
        if synced < head.replicas_wanted {
            continue;
        }
        if let Some(index) = head.misfits.last() {
            let node = view.members[*index].name.clone();
            let why = "its shard has its replicas on hosts that suit it better";
            draft.step(Action::RemoveNode { node }, why);
            return;
        }
        if head.replicas.len() > head.replicas_wanted {
            let crowd = |index: usize| {
                let host = &view.members[index].view.host;
                view.members.iter().filter(|member| member.view.host == *host).count()
            };
            let worst = head.replicas.iter().copied().max_by_key(|index| {
                (restart::is_outdated(fleet, view, *index), crowd(*index), *index)
            });
            if let Some(index) = worst {
                let node = view.members[index].name.clone();
                let why = format!("{} replicas a shard are wanted", view.spec.replicas);
                draft.step(Action::RemoveNode { node }, why);
                return;
            }
        }
    }
}
