//! Dead and hung nodes. A process that is proven gone is started again or replaced by its best
//! replica. One that is suspended is killed about when the engines would give it up, which is the
//! proof; one that runs and merely doesn't answer is left to the engines' own failure detection for a
//! long while. The boot gate (I6) is here: a node whose data is gone stays down while any peer of its
//! shard holds data, until another node is that shard's primary everywhere.
//!
//! A server whose host has lost its address is started again where the host is now.
//!
//! Where so many primaries are proven dead that nobody can vote, a cache's replica takes over without
//! votes, one shard at a time and only if nothing else helps: a primary that has its data is started,
//! and may vote again. In other profiles that stays a person's decision.

use std::collections::{BTreeMap, BTreeSet};

use protocol::NodeId;

use super::{Draft, Member, Shard, View};
use crate::{
    model::{Fleet, NodeName, Profile, Takeover},
    observed::{Health, Link, Process, Role, Server, Up},
    step::Action,
};

/// An append-only file larger than this takes so long to load that a replica is promoted instead:
/// 2 GiB, about 10 s.
const RESTART_BYTES_MAX: u64 = 2 << 30;

/// Starts in a row that may fail before guard stops trying.
const FAILED_STARTS_MAX: u32 = 3;

/// A server that runs and is silent for this long, and already replaced or not needed, is killed.
/// One that is suspended is given up with the node timeout.
const HANG_MS_MIN: u64 = 30_000;

pub(super) fn dead_and_hung<'a>(fleet: &Fleet, view: &'a View<'a>, draft: &mut Draft) {
    for member in &view.members {
        if member.view.server == Server::Stranded {
            stranded(fleet, view, member, draft);
        }
    }
    let rest = Rest::new(view);
    let mut heads = BTreeSet::new();
    let mut orphans = Vec::new();
    for shard in &view.shards {
        heads.extend(shard.primary);
        if view.primary_up(shard).is_none() {
            orphans.extend(absent_primary(view, &rest, shard, draft));
        }
    }
    take_over(orphans, draft);
    for (index, member) in view.members.iter().enumerate() {
        if !heads.contains(&index) && !member.given_up {
            follower(view, &rest, member, draft);
        }
    }
}

/// What decides about every stopped node.
struct Rest<'a> {
    /// The first answering replica with data of each id that is still taken for a primary.
    followers: BTreeMap<NodeId, &'a NodeName>,
    nobody_up: bool,
    any_data: bool,
    /// Who may have replaced somebody, with no majority left that has heard of it.
    heirs: Vec<Heir<'a>>,
}

/// A suspended node that got its role by our hand.
struct Heir<'a> {
    member: &'a Member<'a>,
    /// Whose place it may have taken; None: anybody's.
    of: Option<NodeId>,
}

impl<'a> Rest<'a> {
    fn new(view: &'a View<'a>) -> Self {
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
            heirs: Self::heirs(view),
        }
    }

    fn heirs(view: &'a View<'a>) -> Vec<Heir<'a>> {
        let history = view.observed.history.get(&view.spec.name);
        let handovers = history.map_or(&[][..], |history| &history.handovers_ms);
        if handovers.is_empty() || view.has_quorum() {
            return Vec::new();
        }
        let suspended =
            view.members.iter().filter(|member| member.view.process == Process::Suspended);
        suspended
            .filter(|member| handovers.iter().any(|(id, _)| member.id == Some(*id)))
            .map(|member| Heir { member, of: view.replica_of(member) })
            .collect()
    }
}

/// A dead primary that only a takeover without votes can replace.
struct Orphan<'a> {
    dead: &'a NodeName,
    to: &'a NodeName,
}

/// The last resort: one at a time, for its winner may complete a majority that can vote on the others,
/// and after everything else that may.
fn take_over(orphans: Vec<Orphan<'_>>, draft: &mut Draft) {
    for Orphan { dead, to } in orphans {
        if draft.has_steps() {
            draft.wait(format!("{to} stands by to take over from {dead}"));
        } else {
            let why = "it died, and too few primaries are left to elect its replica";
            draft.step(Action::TakeOver { dead: dead.clone(), to: to.clone() }, why);
        }
    }
}

fn absent_primary<'a>(
    view: &'a View<'a>,
    rest: &Rest<'_>,
    shard: &Shard,
    draft: &mut Draft,
) -> Option<Orphan<'a>> {
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
                by_hand(view, shard).as_deref(),
            );
        }
        return None;
    };
    let member = &view.members[index];
    match (member.view.process, &member.view.server) {
        (Process::Gone, _) => return dead_primary(view, rest, shard, member, draft),
        (_, Server::Loading) => draft.wait(format!("{} is loading its data", member.name)),
        (_, Server::Denied { error }) => denied(member, error, draft),
        (Process::Unknown, _) => {
            draft.wait(format!("{} can't be asked; the cluster elects another", member.name));
        }
        (_, Server::Silent { for_ms }) => hung_primary(view, shard, member, *for_ms, draft),
        (Process::Suspended, _) => hung_primary(view, shard, member, 0, draft),
        (_, Server::Refused) => draft.wait(format!("{} is starting", member.name)),
        (_, Server::Up(_)) => draft.wait(format!("{} is giving its role away", member.name)),
        (_, Server::Stranded) => {}
    }
    None
}

fn hung_primary(
    view: &View<'_>,
    shard: &Shard,
    member: &Member<'_>,
    for_ms: u64,
    draft: &mut Draft,
) {
    let name = member.name;
    let suspended = member.view.process == Process::Suspended;
    let timeout_ms = view.spec.node_timeout_ms;
    let patience_ms = 2 * timeout_ms + HANG_MS_MIN;
    let restarts = restart_loses_least(view, shard, member);
    // By half the time it is back before its peers miss it. By the whole of it they are about to
    // replace it, which takes a second longer than doing it here. A process that runs may come to
    // itself, and may serve others though not us.
    let due_ms = match (suspended, restarts) {
        (true, true) => timeout_ms / 2,
        (true, false) => timeout_ms,
        (false, _) => patience_ms,
    };
    let health = view.merged.get(&shard.primary_id).map(|row| row.health);
    let missed = suspended || health.is_some_and(|health| health != Health::Ok);
    let replaceable = restarts || has_heir(view, shard, timeout_ms);
    let how = if suspended { "suspended" } else { "hung" };
    if missed && replaceable && for_ms >= due_ms {
        let then = if restarts { "its file brings back its data" } else { "a replica takes over" };
        let why =
            format!("it has been {how} for {} s; once it is surely dead, {then}", for_ms / 1000);
        draft.step(Action::KillNode { node: name.clone() }, why);
    } else if shard.replicas.is_empty() || for_ms > patience_ms {
        let hint = match member.view.pid {
            Some(pid) if suspended => format!("kill -CONT {pid}"),
            Some(pid) => format!("kill -KILL {pid}, and it is started again"),
            None => "resume it (kill -CONT), or kill it and keyfleet starts it again".to_owned(),
        };
        let reason = format!("it is {how}, and no replica has taken over");
        draft.block(format!("{name} answers"), reason, Some(&hint));
    } else if suspended && replaceable {
        draft.wait(format!("{name} is suspended, and killed where that lasts"));
    } else {
        draft.wait(format!("{name} hangs; its replicas elect one of them"));
    }
}

/// Could a replica take the place of this hung primary, once it is dead, at once?
fn has_heir(view: &View<'_>, shard: &Shard, timeout_ms: u64) -> bool {
    let Some(up) = best_replica(view, shard, true) else { return false };
    if view.has_quorum() {
        return not_electable(view, up).is_none();
    }
    let hangs = |member: &Member<'_>| {
        member.view.process == Process::Suspended
            && matches!(member.view.server, Server::Silent { for_ms } if for_ms >= timeout_ms)
    };
    votes_are_gone(view, hangs)
}

/// So many primaries are gone that nobody can be elected, and each that is away is proven dead, or as
/// good as that: no side of a cut that we don't see has elected somebody meanwhile (I5).
fn votes_are_gone(view: &View<'_>, as_good_as_dead: impl Fn(&Member<'_>) -> bool) -> bool {
    view.spec.profile == Profile::Cache
        && !view.has_quorum()
        && view.shards.iter().filter(|shard| view.primary_up(shard).is_none()).all(|shard| {
            shard.primary.is_some_and(|at| {
                let member = &view.members[at];
                let silent = member.view.server == Server::Refused;
                member.view.proven_dead() && silent || as_good_as_dead(member)
            })
        })
}

/// Its append-only file holds all that it acknowledged, and its replicas may not.
fn restart_loses_least(view: &View<'_>, shard: &Shard, member: &Member<'_>) -> bool {
    let disk = member.view.disk;
    view.spec.takeover == Takeover::LeastLoss
        && view.spec.appends()
        && disk.append_bytes > 0
        && disk.append_bytes <= RESTART_BYTES_MAX
        && member.view.failed_starts == 0
        && port_taken(view, member).is_none()
        && disk.id == Some(shard.primary_id)
}

fn dead_primary<'a>(
    view: &'a View<'a>,
    rest: &Rest<'_>,
    shard: &Shard,
    member: &Member<'a>,
    draft: &mut Draft,
) -> Option<Orphan<'a>> {
    let name = member.name;
    let disk = member.view.disk;
    if waits_for_heir(rest, member, draft) {
        return None;
    }
    if restart_loses_least(view, shard, member) {
        let why =
            "it died; its append-only file holds all it had acknowledged, its replicas may not";
        draft.step(Action::StartNode { node: name.clone() }, why);
        return None;
    }
    let best = best_replica(view, shard, true);
    if let Some(up) = best
        && view.has_quorum()
    {
        promote(view, name, up, "it died; this replica is the one furthest along", draft);
        return None;
    }
    let orphan = |up: Option<&Up>| {
        let to = up.and_then(|up| view.member(up.id)).filter(|_| votes_are_gone(view, |_| false));
        to.map(|to| Orphan { dead: name, to: to.name })
    };
    let any_copy = best_replica(view, shard, false);
    let peers_hold = peers_hold(view, shard) || peers_hold_on_disk(view, shard);
    // A snapshot is of some earlier time, be it the first copy that was made: it would be copied over what
    // the replica has got since.
    let appended = view.spec.appends() && disk.append_bytes > 0;
    let outdated = !appended && best.is_some();
    if (disk.data_bytes == 0 || outdated) && peers_hold {
        if let Some(up) = any_copy.filter(|_| view.has_quorum()) {
            let why = "it died and its disk is empty; this replica holds what is left";
            promote(view, name, up, why, draft);
            return None;
        }
        let orphan = orphan(any_copy);
        if orphan.is_none() {
            draft.block(
                format!("{name} runs"),
                format!(
                    "its disk is {} and would be copied over its replicas' data, and too few \
                     primaries are left to elect one of them",
                    if disk.data_bytes == 0 { "empty" } else { "outdated" }
                ),
                by_hand(view, shard).as_deref(),
            );
        }
        return orphan;
    }
    if let Some(obstacle) = obstacle(view, member) {
        let orphan = orphan(best);
        if orphan.is_none() {
            obstacle.tell(member, draft);
        }
        return orphan;
    }
    let why = if best.is_some() {
        "it died, and too few primaries are left to elect its replica"
    } else {
        "it died, and no replica is in sync"
    };
    draft.step(Action::StartNode { node: name.clone() }, why);
    None
}

/// What a person can do where nobody is elected: it needs no votes and may lose the latest writes.
fn by_hand(view: &View<'_>, shard: &Shard) -> Option<String> {
    let up = best_replica(view, shard, false)?;
    let view = view.member(up.id)?.view;
    Some(format!(
        "redis-cli -h {} -p {} CLUSTER FAILOVER TAKEOVER, which loses what that replica lacks",
        view.address, view.ports.tcp
    ))
}

fn promote(view: &View<'_>, dead: &NodeName, up: &Up, why: &str, draft: &mut Draft) {
    if let Some(to) = view.member(up.id) {
        match not_electable(view, up) {
            Some(wait) => draft.wait(wait),
            None => {
                draft.step(Action::Promote { dead: dead.clone(), to: to.name.clone() }, why);
            }
        }
    }
}

/// Why the voters would not elect this replica now.
fn not_electable(view: &View<'_>, up: &Up) -> Option<String> {
    let Role::Replica { of, .. } = up.role else { return None };
    let label = view.label(up.id);
    if !view.is_known_as_replica(up.id, of) {
        return Some(format!("the primaries have not all heard yet that {label} is a replica"));
    }
    // Voters that said yes in vain say no for a while: asking again and again would never find a
    // majority.
    let rest_ms = view.refused_ms(of)?;
    let rest_s = rest_ms.div_ceil(1000);
    Some(format!("{label} is put forward again in {rest_s} s: its peers voted just now"))
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

/// A server of ours that keeps us out. Where its directory is gone, so are its passwords.
fn denied(member: &Member<'_>, error: &str, draft: &mut Draft) {
    let pid = member.view.pid.map(|pid| format!(" {pid}")).unwrap_or_default();
    let hint = if member.view.disk.id.is_some() {
        format!("check the user keyfleet in its users.acl; it is started anew after: kill{pid}")
    } else {
        format!(
            "its directory was removed while it ran: bring `.keyfleet` back as it was, or give up \
             what it holds, and it is made anew: kill{pid}"
        )
    };
    draft.block(format!("{} lets keyfleet in", member.name), error, Some(&hint));
}

/// A server that nobody can reach, not even its peers, because its host has lost the address that it
/// listens at. Nothing else will become of it, and what it keeps on disk it has again elsewhere.
fn stranded(fleet: &Fleet, view: &View<'_>, member: &Member<'_>, draft: &mut Draft) {
    let (name, address, host) = (member.name, member.view.address, &member.view.host);
    let shard = |id: NodeId| view.shards.iter().find(move |shard| shard.primary_id == id);
    // Others have what it holds, and serve it.
    let row = member.id.and_then(|id| view.merged.get(&id));
    let served = row.is_some_and(|row| match row.replica_of {
        Some(of) => shard(of).is_some_and(|shard| view.primary_up(shard).is_some()),
        None => row.slots.is_empty() && view.unowned.is_empty(),
    });
    let replaced = member.id.and_then(shard).filter(|_| view.has_quorum());
    let replaced = replaced.is_some_and(|shard| best_replica(view, shard, true).is_some());
    let back = format!("give {address} back to the machine");
    let now = fleet.hosts.get(host).map(|host| host.address);
    let reachable = view.observed.hosts.get(host).is_some_and(|host| host.reachable);
    match now.filter(|now| *now != address && reachable) {
        Some(now) if view.spec.persists() || served => {
            let why = format!("{host} has lost {address}, where it listens, and is at {now} now");
            draft.step(Action::Readdress { node: name.clone() }, why);
        }
        Some(_) if replaced => {
            draft.wait(format!("{name} can't be reached; the cluster elects another"));
        }
        Some(_) => draft.block(
            format!("{name} can be reached"),
            format!("{host} has lost {address}, and what {name} holds is in memory only"),
            Some(&format!("{back}; or give the data up: keyfleet down, then keyfleet up")),
        ),
        None => draft.block(
            format!("{name} can be reached"),
            format!("{host} has lost {address}, where it listens"),
            Some(&format!("put {host}'s new address into the file; or {back}")),
        ),
    }
}

/// Why a stopped node can't be started.
enum Obstacle {
    /// Another program listens at its port: its number, where that is known.
    Port(u16, Option<u32>),
    Fails,
}

impl Obstacle {
    fn tell(&self, member: &Member<'_>, draft: &mut Draft) {
        let name = member.name;
        let (reason, hint) = match self {
            Self::Port(port, Some(pid)) => (
                format!("another program (pid {pid}) listens at its port {port}"),
                format!("stop that program: kill {pid}"),
            ),
            Self::Port(port, None) => (
                format!("another program listens at its port {port}"),
                format!("see which, and stop it: sudo ss -ltnp 'sport = :{port}'"),
            ),
            Self::Fails => (
                format!("it ended {} times in a row before it answered", member.view.failed_starts),
                format!("keyfleet logs {name}"),
            ),
        };
        draft.block(format!("{name} runs"), reason, Some(&hint));
    }
}

fn obstacle(view: &View<'_>, member: &Member<'_>) -> Option<Obstacle> {
    let fails = (member.view.failed_starts >= FAILED_STARTS_MAX).then_some(Obstacle::Fails);
    fails.or_else(|| port_taken(view, member).map(|(port, pid)| Obstacle::Port(port, pid)))
}

/// A port that the stopped node needs, and who holds it.
fn port_taken(view: &View<'_>, member: &Member<'_>) -> Option<(u16, Option<u32>)> {
    let taken = &view.observed.hosts.get(&member.view.host)?.ports_taken;
    let needed = [member.view.ports.tcp, member.view.ports.bus];
    needed.into_iter().find_map(|port| Some((port, *taken.get(&port)?)))
}

fn follower(view: &View<'_>, rest: &Rest<'_>, member: &Member<'_>, draft: &mut Draft) {
    let name = member.name;
    match (member.view.process, &member.view.server) {
        (Process::Gone, _) => stopped_follower(view, rest, member, draft),
        (_, Server::Denied { error }) => denied(member, error, draft),
        (Process::Suspended, Server::Silent { for_ms }) if *for_ms < view.spec.node_timeout_ms => {}
        (Process::Running, Server::Silent { for_ms })
            if *for_ms <= HANG_MS_MIN.max(2 * view.spec.node_timeout_ms) => {}
        (Process::Running | Process::Suspended, Server::Silent { for_ms }) => {
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

/// Without a majority, a node that got its role by our hand and is suspended now may have replaced this
/// one, and nobody else has heard of it: what this one accepted meanwhile would be lost.
fn waits_for_heir(rest: &Rest<'_>, member: &Member<'_>, draft: &mut Draft) -> bool {
    // One that is known to follow another primary is none.
    let heir = rest.heirs.iter().find(|heir| heir.of.is_none() || heir.of == member.id);
    let Some(Heir { member: heir, .. }) = heir else { return false };
    let name = member.name;
    draft.block(
        format!("{name} runs"),
        format!("{}, which is suspended, may have taken its place", heir.name),
        heir.view.pid.map(|pid| format!("kill -CONT {pid}")).as_deref(),
    );
    true
}

fn stopped_follower(view: &View<'_>, rest: &Rest<'_>, member: &Member<'_>, draft: &mut Draft) {
    let name = member.name;
    if waits_for_heir(rest, member, draft) {
        return;
    }
    if let Some(obstacle) = obstacle(view, member) {
        obstacle.tell(member, draft);
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
