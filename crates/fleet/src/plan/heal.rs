//! Dead and hung nodes. A process that is proven gone is started again or replaced by its best
//! replica; one that merely doesn't answer is left to the engines' own failure detection until it
//! has been replaced. The boot gate (I6) is here: a node whose data is gone stays down while any
//! peer of its shard holds data, until another node is that shard's primary everywhere.

use std::collections::{BTreeMap, BTreeSet};

use protocol::NodeId;

use super::{Draft, Member, Shard, View};
use crate::{
    model::{NodeName, Takeover},
    observed::{Link, Process, Role, Server, Up},
    step::Action,
};

/// An append-only file larger than this takes so long to load that a replica is promoted instead:
/// 2 GiB, about 10 s.
const RESTART_BYTES_MAX: u64 = 2 << 30;

/// Starts in a row that may fail before guard stops trying.
const FAILED_STARTS_MAX: u32 = 3;

/// A server silent for this long, and already replaced or not needed by anyone, is killed.
const HANG_MS_MIN: u64 = 30_000;

pub(super) fn dead_and_hung(view: &View<'_>, draft: &mut Draft) {
    let mut heads = BTreeSet::new();
    for shard in &view.shards {
        heads.extend(shard.primary);
        if view.primary_up(shard).is_none() {
            absent_primary(view, shard, draft);
        }
    }
    let rest = Rest::new(view);
    for (index, member) in view.members.iter().enumerate() {
        if !heads.contains(&index) && !member.given_up {
            follower(view, &rest, member, draft);
        }
    }
}

/// What decides about every stopped follower.
struct Rest<'a> {
    /// The first answering replica with data of each id that is still taken for a primary.
    followers: BTreeMap<NodeId, &'a NodeName>,
    nobody_up: bool,
    any_data: bool,
}

impl<'a> Rest<'a> {
    fn new(view: &View<'a>) -> Self {
        let mut followers = BTreeMap::new();
        for member in &view.members {
            if let Some(Up { keys: 1.., role: Role::Replica { of, .. }, .. }) = member.up {
                followers.entry(*of).or_insert(member.name);
            }
        }
        Self {
            followers,
            nobody_up: view.members.iter().all(|member| member.up.is_none()),
            any_data: view.members.iter().any(|member| member.view.disk.data_bytes > 0),
        }
    }
}

fn absent_primary(view: &View<'_>, shard: &Shard, draft: &mut Draft) {
    let Some(index) = shard.primary else {
        let label = view.label(shard.primary_id);
        if shard.replicas.is_empty() {
            draft.block(
                format!("slots {}", shard.slots),
                format!("their only holder {label} is not one of the fleet's nodes any more"),
                Some("bring its directory back; else restore the data"),
            );
        } else if view.has_quorum() && best_replica(view, shard, true).is_some() {
            draft.wait(format!("the cluster's own election in place of {label}"));
        } else {
            draft.block(
                format!("a primary in place of {label}"),
                "it is gone, and none of its replicas can be elected",
                Some("CLUSTER FAILOVER TAKEOVER at the replica that has the most data"),
            );
        }
        return;
    };
    let member = &view.members[index];
    match (member.view.process, &member.view.server) {
        (Process::Gone, _) => dead_primary(view, shard, member, draft),
        (_, Server::Loading) => draft.wait(format!("{} is loading its data", member.name)),
        (_, Server::Denied { error }) => denied(member, error, draft),
        (Process::Unknown, _) => {
            draft.wait(format!("{} can't be asked; the cluster elects another", member.name));
        }
        (_, Server::Silent { for_ms }) => hung_primary(view, shard, member, *for_ms, draft),
        (Process::Suspended, _) => hung_primary(view, shard, member, 0, draft),
        (_, Server::Refused) => draft.wait(format!("{} is starting", member.name)),
        (_, Server::Up(_)) => draft.wait(format!("{} is giving its role away", member.name)),
    }
}

fn hung_primary(
    view: &View<'_>,
    shard: &Shard,
    member: &Member<'_>,
    for_ms: u64,
    draft: &mut Draft,
) {
    let name = member.name;
    let patience = 2 * view.spec.node_timeout_ms + HANG_MS_MIN;
    if shard.replicas.is_empty() || for_ms > patience {
        let how = if member.view.process == Process::Suspended { "suspended" } else { "hung" };
        draft.block(
            format!("{name} answers"),
            format!("it is {how}, and no replica has taken over"),
            Some("resume it (kill -CONT), or kill it and keyfleet starts it again"),
        );
    } else {
        draft.wait(format!("{name} hangs; its replicas elect one of them"));
    }
}

fn dead_primary(view: &View<'_>, shard: &Shard, member: &Member<'_>, draft: &mut Draft) {
    let name = member.name;
    let disk = member.view.disk;
    let best = best_replica(view, shard, true);
    let restart_loses_less = view.spec.takeover == Takeover::LeastLoss
        && view.spec.appends()
        && disk.append_bytes > 0
        && disk.append_bytes <= RESTART_BYTES_MAX
        && member.view.failed_starts == 0
        && disk.id == Some(shard.primary_id);
    if restart_loses_less {
        let why =
            "it died; its append-only file holds all it had acknowledged, its replicas may not";
        draft.step(Action::StartNode { node: name.clone() }, why);
        return;
    }
    if let Some(up) = best
        && view.has_quorum()
    {
        promote(view, name, up, "it died; this replica is the one furthest along", draft);
        return;
    }
    let any_copy = best_replica(view, shard, false);
    let peers_hold = peers_hold(view, shard) || peers_hold_on_disk(view, shard);
    if disk.data_bytes == 0 && peers_hold {
        match any_copy {
            Some(up) if view.has_quorum() => promote(
                view,
                name,
                up,
                "it died and its disk is empty; this replica holds what is left",
                draft,
            ),
            _ => draft.block(
                format!("{name} runs"),
                "its disk is empty and would be copied over its replicas' data, and too few \
                 primaries are left to elect one of them",
                Some("CLUSTER FAILOVER TAKEOVER at the replica that has the most data"),
            ),
        }
        return;
    }
    if member.view.failed_starts >= FAILED_STARTS_MAX {
        does_not_start(member, draft);
        return;
    }
    let why = if best.is_some() {
        "it died, and too few primaries are left to elect its replica"
    } else {
        "it died, and no replica is in sync"
    };
    draft.step(Action::StartNode { node: name.clone() }, why);
}

fn promote(view: &View<'_>, dead: &NodeName, up: &Up, why: &str, draft: &mut Draft) {
    if let Some(to) = view.member(up.id) {
        if let Role::Replica { of, .. } = up.role
            && !view.is_known_as_replica(up.id, of)
        {
            draft.wait(format!(
                "the primaries have not all heard yet that {} is a replica",
                to.name
            ));
            return;
        }
        // Voters that said yes in vain say no for a while: asking again and again would never find
        // a majority.
        let primary = match up.role {
            Role::Replica { of, .. } => Some(of),
            Role::Primary => None,
        };
        if let Some(rest_ms) = primary.and_then(|id| view.refused_ms(id)) {
            draft.wait(format!(
                "{} is put forward again in {} s: its peers voted just now",
                to.name,
                rest_ms.div_ceil(1000)
            ));
            return;
        }
        draft.step(Action::Promote { dead: dead.clone(), to: to.name.clone() }, why);
    }
}

/// The answering replica with the highest offset. `fresh`: only those that were in sync when their
/// primary died, by the engines' own limit on the age of data.
fn best_replica<'a>(view: &View<'a>, shard: &Shard, fresh: bool) -> Option<&'a Up> {
    let age_max_ms = 10_000 + 10 * view.spec.node_timeout_ms;
    let holds = shard.primary.is_some_and(|at| view.members[at].view.disk.data_bytes > 0)
        || peers_hold(view, shard)
        || peers_hold_on_disk(view, shard);
    shard
        .replicas
        .iter()
        .filter_map(|index| {
            let member = &view.members[*index];
            let up = member.up?;
            let young = match up.role {
                Role::Replica { link: Link::InSync, .. } => true,
                Role::Replica { link: Link::Down { for_ms }, .. } => !fresh || for_ms <= age_max_ms,
                _ => false,
            };
            // An empty one never takes the place of who holds data.
            let usable = young && (up.keys > 0 || (fresh && !holds));
            usable.then_some((up, member.name))
        })
        .max_by_key(|(up, name)| (up.offset, std::cmp::Reverse(*name)))
        .map(|(up, _)| up)
}

/// A replica of the shard holds keys, or one that doesn't know yet that it was replaced.
fn peers_hold(view: &View<'_>, shard: &Shard) -> bool {
    let claims = |up: &Up| up.keys > 0 && !up.slots().intersection(&shard.slots).is_empty();
    shard.replicas.iter().any(|at| view.members[*at].up.is_some_and(|up| up.keys > 0))
        || view.members.iter().any(|member| member.up.is_some_and(claims))
}

fn peers_hold_on_disk(view: &View<'_>, shard: &Shard) -> bool {
    shard.replicas.iter().any(|index| {
        let member = &view.members[*index];
        member.up.is_none() && member.view.disk.data_bytes > 0
    })
}

fn denied(member: &Member<'_>, error: &str, draft: &mut Draft) {
    draft.block(
        format!("{} lets keyfleet in", member.name),
        error,
        Some("check the user keyfleet in its users.acl"),
    );
}

fn does_not_start(member: &Member<'_>, draft: &mut Draft) {
    let name = member.name;
    draft.block(
        format!("{name} runs"),
        format!("it ended {} times in a row before it answered", member.view.failed_starts),
        Some(&format!("keyfleet logs {name}")),
    );
}

fn follower(view: &View<'_>, rest: &Rest<'_>, member: &Member<'_>, draft: &mut Draft) {
    let name = member.name;
    match (member.view.process, &member.view.server) {
        (Process::Gone, _) => stopped_follower(rest, member, draft),
        (_, Server::Denied { error }) => denied(member, error, draft),
        (Process::Running | Process::Suspended, Server::Silent { for_ms })
            if *for_ms > HANG_MS_MIN.max(2 * view.spec.node_timeout_ms) =>
        {
            if shard_is_served(view, member) {
                let why = format!("it has not answered for {} s, and is not needed", for_ms / 1000);
                draft.step(Action::KillNode { node: name.clone() }, why);
            } else {
                draft.wait(format!("{name} does not answer"));
            }
        }
        (Process::Running, Server::Refused) => draft.wait(format!("{name} is starting")),
        _ => {}
    }
}

/// The shard that the member follows has its primary, so that killing the member takes nothing away.
fn shard_is_served(view: &View<'_>, member: &Member<'_>) -> bool {
    let Some(of) = view.replica_of(member) else { return true };
    view.shards
        .iter()
        .find(|shard| shard.primary_id == of)
        .is_none_or(|shard| view.primary_up(shard).is_some())
}

fn stopped_follower(rest: &Rest<'_>, member: &Member<'_>, draft: &mut Draft) {
    let name = member.name;
    if member.view.failed_starts >= FAILED_STARTS_MAX {
        does_not_start(member, draft);
        return;
    }
    if let Some(follower) = member.id.and_then(|id| rest.followers.get(&id)) {
        draft.wait(format!("{name} stays down until {follower} has left it"));
        return;
    }
    // Nobody is up to say who was what: the nodes with data come first.
    if rest.nobody_up && member.view.disk.data_bytes == 0 && rest.any_data {
        draft.wait(format!("{name} stays down until the nodes with data are up"));
        return;
    }
    draft.step(Action::StartNode { node: name.clone() }, "its process is gone");
}
