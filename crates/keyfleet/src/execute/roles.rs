//! Steps that move the primary's role.

use std::{collections::BTreeSet, time::Duration};

use fleet::model::{ClusterName, NodeName};
use protocol::{NodeId, cluster_text::Info};

use super::{
    Context, Member, Report, StepError, View,
    context::{Wait, together},
    join::{self, NUDGE, Tick},
    life,
};
use crate::admin_client::{ClientError, Commands, DEADLINE};

/// How long the servers try a manual failover before they give it up.
const ATTEMPT: Duration = Duration::from_millis(5_500);
/// How long two nodes that are both up may take to link.
const LINK: Duration = Duration::from_secs(5);
/// How long a handover waits for more than a majority at most.
const PATIENT: Duration = Duration::from_secs(2);
/// How long a promotion waits for more than a majority at most: nobody can write meanwhile.
const QUICK: Duration = Duration::from_millis(200);
/// How long a promotion waits for a majority that would vote for it.
const ELECTABLE: Duration = Duration::from_secs(5);
/// How long the other nodes may take to hear of a new primary.
const AGREE: Duration = Duration::from_secs(10);

/// CLUSTER FAILOVER: the primary stops writes, the replica catches up and is elected. Nothing is
/// lost.
pub(super) async fn hand_over(
    context: &Context,
    from: &NodeName,
    to: &NodeName,
    report: &Report<'_>,
) -> Result<(), StepError> {
    let (old, new) = (context.member(from)?, context.member(to)?);
    let mut attempt = 1;
    loop {
        let (old_view, new_view) = (context.view(&old).await?, context.view(&new).await?);
        if new_view.is_primary() && old_view.primary() == Some(new_view.id()) {
            return settled(context, &old, &new, new_view.id()).await;
        }
        can_hand_over(from, &old_view, to, &new_view)?;
        wait_electable(context, &new, old_view.id(), Old::Lives).await?;
        wait_content(context, &new).await?;
        context.call(&new, &["CLUSTER", "FAILOVER"]).await?;
        if wait_primary(context, &new, ATTEMPT).await? {
            record(context, &new, new_view.id())?;
            return settled(context, &old, &new, new_view.id()).await;
        }
        // The others vote for a shard once in twice the node timeout, and a candidate that lost
        // stands again after twice that. An attempt stops the primary's writes, so there is no
        // second one before it can succeed, and no third.
        if attempt == 2 {
            record_refusal(context, &old, old_view.id())?;
            let what = format!("{to} is elected in place of {from}");
            return Err(StepError::Late { what, waited: ATTEMPT });
        }
        attempt += 1;
        let timeout = Duration::from_millis(context.cluster(&from.cluster)?.node_timeout_ms);
        let pause = timeout.max(Duration::from_secs(1)) * 4;
        report.say(&format!("the others did not vote for {to}; again in {} s", pause.as_secs()));
        tokio::time::sleep(pause).await;
    }
}

/// The replica is this primary's, and in sync.
fn can_hand_over(from: &NodeName, old: &View, to: &NodeName, new: &View) -> Result<(), StepError> {
    let stale = |text: String| Err(StepError::Stale(text));
    if !old.is_primary() {
        return stale(format!("{from} is no primary"));
    }
    if new.is_primary() || new.primary() != Some(old.id()) {
        return stale(format!("{to} is no replica of {from}"));
    }
    if !new.in_sync() {
        return stale(format!("{to} is not in sync with {from}"));
    }
    Ok(())
}

/// What is of the primary whose role another takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Old {
    /// It serves until it has handed over, so there is time to hear everybody. It is to stop its
    /// clients when its replica asks for that; one that it doesn't know for its replica it ignores without
    /// a word.
    Lives,
    /// Nobody can write meanwhile.
    Gone,
}

impl Old {
    /// How long more than a majority is waited for.
    fn patience(self) -> Duration {
        match self {
            Self::Lives => PATIENT,
            Self::Gone => QUICK,
        }
    }
}

/// How the others stand to a candidate. Source: clusterSendFailoverAuthIfNeeded, and for the old primary
/// CLUSTERMSG_TYPE_MFSTART, in the engines' cluster.c.
struct Voters<'a, T> {
    /// They own slots and would not vote for it yet.
    deaf: Vec<&'a (T, View)>,
    /// Of those who would there are enough.
    elect: bool,
}

impl<'a, T> Voters<'a, T> {
    /// `own` is the candidate's view, `of` the primary whose place it would take.
    fn of(seen: &'a [(T, View)], own: &View, of: NodeId, old: Old) -> Self {
        let id = own.id();
        let newest = |view: &View| view.nodes.rows.iter().map(|row| row.config_epoch).max();
        let voters = seen.iter().filter(|(_, view)| view.is_primary() && view.owns_slots());
        let (ready, deaf): (Vec<_>, Vec<_>) = voters.partition(|(_, view)| {
            let row = view.nodes.row(id);
            let linked = own.nodes.row(view.id()).is_some_and(|row| row.link_up);
            row.is_some_and(|row| row.primary == Some(of) && row.link_up)
                && linked
                && newest(view) <= newest(own)
        });
        let entitled = own.nodes.rows.iter();
        let entitled = entitled.filter(|row| row.flags.primary && !row.slots.is_empty()).count();
        let consents = old == Old::Gone || ready.iter().any(|(_, view)| view.id() == of);
        Self { elect: consents && ready.len() > entitled / 2, deaf }
    }
}

/// Waits until a majority would vote for the candidate: it knows the candidate as a replica of
/// that primary, has links with it, and knows of no configuration that the candidate hasn't heard of.
/// News that is missing is spread at once. Asked too early the voters say nothing, and the
/// candidate would not stand again before four times the node timeout. A role that was taken a moment
/// ago is such news, and can take seconds by itself.
async fn wait_electable(
    context: &Context,
    candidate: &Member,
    of: NodeId,
    old: Old,
) -> Result<(), StepError> {
    let mut wait = Wait::new(ELECTABLE);
    let mut told = Tick::new(NUDGE);
    loop {
        let all = context.members(&candidate.name.cluster)?;
        let views = context.views_within(&all, QUICK).await;
        let seen: Vec<(Member, View)> = all
            .into_iter()
            .zip(views)
            .filter_map(|(member, view)| Some((member, view.ok()?)))
            .collect();
        if let Some((_, own)) = seen.iter().find(|(member, _)| member.name == candidate.name) {
            if own.is_primary() {
                // The cluster's own election was quicker.
                return Ok(());
            }
            let voters = Voters::of(&seen, own, of, old);
            if voters.elect && (voters.deaf.is_empty() || wait.waited() > old.patience()) {
                return Ok(());
            }
            if told.is_due() {
                let deaf = voters.deaf.iter().map(|(member, _)| member.clone());
                let deaf: Vec<Member> = deaf.collect();
                join::introduce(context, candidate, &deaf).await?;
                for voter in &deaf {
                    join::introduce(context, voter, std::slice::from_ref(candidate)).await?;
                }
            }
        }
        wait.pause(|| format!("a majority would vote for {}", candidate.name)).await?;
    }
}

/// CLUSTER FAILOVER TAKEOVER on the replicas of a cluster that holds nothing: there is nothing that
/// the missing votes could protect.
pub(super) async fn open_shards(
    context: &Context,
    pairs: &[(NodeName, NodeName)],
) -> Result<(), StepError> {
    let mut heirs = Vec::new();
    for (from, to) in pairs {
        let (old, new) = (context.member(from)?, context.member(to)?);
        let (old_view, new_view) = (context.view(&old).await?, context.view(&new).await?);
        if !(new_view.is_primary() && new_view.owns_slots()) {
            if new_view.primary() != Some(old_view.id()) || !new_view.in_sync() {
                return Err(StepError::Stale(format!("{to} is no replica of {from} in sync")));
            }
            let keys = context.call(&old, &["DBSIZE"]).await?;
            if keys.as_integer() != Some(0) {
                return Err(StepError::Stale(format!("{from} holds keys")));
            }
            context.call(&new, &["CLUSTER", "FAILOVER", "TAKEOVER"]).await?;
        }
        heirs.push((old, new, new_view.id()));
    }
    // First everybody knows the new owners: of an old one that is heard to be a replica now, slots with
    // no owner would be left, and a primary that sees those has to sit the delay out after all.
    let owning = heirs.clone().into_iter().map(|(_, new, id)| {
        let context = context.clone();
        async move {
            if !wait_primary(&context, &new, AGREE).await? {
                let what = format!("{} is a primary", new.name);
                return Err(StepError::Late { what, waited: AGREE });
            }
            all_follow(&context, &new, id).await
        }
    });
    together(owning).await.into_iter().collect::<Result<(), _>>()?;
    let settling = heirs.into_iter().map(|(old, new, id)| {
        let context = context.clone();
        async move { settled(&context, &old, &new, id).await }
    });
    together(settling).await.into_iter().collect::<Result<(), _>>()?;
    match pairs.first() {
        Some((from, _)) => epochs_settled(context, &from.cluster).await,
        None => Ok(()),
    }
}

/// Waits until every node knows each primary's configuration epoch, and all differ: a candidate that
/// knows an old one gets no votes. Primaries that took the same one settle that meanwhile.
async fn epochs_settled(context: &Context, cluster: &ClusterName) -> Result<(), StepError> {
    let mut wait = Wait::new(AGREE);
    let mut told = Tick::new(NUDGE);
    loop {
        let all = context.answering(cluster).await?;
        let epoch = |view: &View, id: NodeId| view.nodes.row(id).map(|row| row.config_epoch);
        let mut epochs = BTreeSet::new();
        let mut untold = Vec::new();
        let mut differ = true;
        for (teller, own) in all.iter().filter(|(_, view)| view.is_primary()) {
            let news = epoch(own, own.id());
            differ &= epochs.insert(news);
            let deaf = all.iter().filter(|(_, view)| epoch(view, own.id()) != news);
            let deaf: Vec<Member> = deaf.map(|(member, _)| member.clone()).collect();
            if !deaf.is_empty() {
                untold.push((teller, deaf));
            }
        }
        if differ && untold.is_empty() {
            return Ok(());
        }
        if told.is_due() {
            for (teller, deaf) in &untold {
                join::introduce(context, teller, deaf).await?;
            }
        }
        wait.pause(|| "every node knows the primaries' configuration epochs".to_owned()).await?;
    }
}

/// Waits until all primaries call the cluster ok. Valkey's don't vote before, for example in their
/// first seconds.
async fn wait_content(context: &Context, candidate: &Member) -> Result<(), StepError> {
    let cluster = &candidate.name.cluster;
    let mut pending = context.answering(cluster).await?;
    pending.retain(|(_, view)| view.is_primary() && view.owns_slots());
    let mut wait = Wait::new(LINK);
    loop {
        let asked = pending.into_iter().map(|(member, view)| {
            let context = context.clone();
            async move {
                let reply = context.call(&member, &["CLUSTER", "INFO"]).await;
                let info = reply.ok().as_ref().and_then(Info::from_reply).unwrap_or_default();
                let content = info.get("cluster_state") == Some("ok");
                (!content).then_some((member, view))
            }
        });
        pending = together(asked).await.into_iter().flatten().collect();
        if pending.is_empty() {
            return Ok(());
        }
        wait.pause(|| {
            let names: Vec<String> = pending.iter().map(|(m, _)| m.name.to_string()).collect();
            format!("{} call {cluster} ok", names.join(", "))
        })
        .await?;
    }
}

/// Who decides that a replica gets the place of its dead primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Votes {
    /// CLUSTER FAILOVER FORCE: the election begins at once, with no wait for the node timeout. It still
    /// needs the votes of the majority.
    Asked,
    /// CLUSTER FAILOVER TAKEOVER: nobody votes, and so nobody may be left who could, nor anybody who
    /// may be alive without our seeing it.
    Gone,
}

/// Gives a replica the place of its primary, which is proven dead, and is started by nobody while we
/// hold the lease.
pub(super) async fn replace(
    context: &Context,
    dead: &NodeName,
    to: &NodeName,
    votes: Votes,
) -> Result<(), StepError> {
    let member = context.member(to)?;
    let view = context.view(&member).await?;
    if !view.is_primary() {
        let of = replaces(context, dead, to, &view)?;
        let how = match votes {
            Votes::Asked => {
                if let Some(of) = of {
                    wait_electable(context, &member, of, Old::Gone).await?;
                }
                "FORCE"
            }
            Votes::Gone => {
                nobody_votes(context, &member, &view).await?;
                "TAKEOVER"
            }
        };
        let told = context.call(&member, &["CLUSTER", "FAILOVER", how]).await;
        // The cluster was quicker: what is no replica any more refuses.
        if told.is_err() && !context.view(&member).await?.is_primary() {
            told?;
        }
        if !wait_primary(context, &member, ATTEMPT).await? {
            // The voters that said yes won't do so again for a while: the planner keeps a distance.
            if let Some(of) = of.filter(|_| votes == Votes::Asked) {
                record_refusal(context, &member, of)?;
            }
            let what = format!("{to} is primary in place of {dead}");
            return Err(StepError::Late { what, waited: ATTEMPT });
        }
        record(context, &member, view.id())?;
    } else if !view.owns_slots() {
        return Err(StepError::Stale(format!("{to} is a primary with no slots")));
    }
    all_follow(context, &member, view.id()).await
}

/// The id of the dead primary that the candidate copied. An error where it isn't proven dead at this
/// moment, or where the candidate copied another.
fn replaces(
    context: &Context,
    dead: &NodeName,
    to: &NodeName,
    candidate: &View,
) -> Result<Option<NodeId>, StepError> {
    if !life::is_gone(context, dead)? {
        return Err(StepError::Stale(format!("{dead} is not proven dead")));
    }
    let of = candidate.primary();
    let dead_id = crate::observe::disk(&context.store.node_dir(dead)).id;
    if dead_id.is_some() && of != dead_id {
        return Err(StepError::Stale(format!("{to} is no replica of {dead}")));
    }
    Ok(of)
}

/// Of the primaries that the candidate knows, no majority answers, and each that doesn't is proven
/// dead twice: no process of it runs, and nobody listens at its port.
async fn nobody_votes(context: &Context, candidate: &Member, view: &View) -> Result<(), StepError> {
    let members = context.members(&candidate.name.cluster)?;
    let rows = view.nodes.rows.iter();
    let owners: Vec<_> = rows.filter(|row| row.flags.primary && !row.slots.is_empty()).collect();
    let mut answering = 0;
    for row in &owners {
        let here = |member: &&Member| {
            member.address.port() == row.port && member.address.ip().to_string() == row.ip
        };
        let stale = |text: String| Err(StepError::Stale(text));
        let Some(member) = members.iter().find(here) else {
            return stale(format!("{} is none of the fleet's nodes", row.id.short()));
        };
        let mut ping = Commands::new();
        ping.push(["PING"]);
        let login = Some(&member.login);
        match context.pool.ask(member.address, login, DEADLINE, &ping).await {
            Ok(_) => answering += 1,
            Err(ClientError::Refused { .. }) if life::is_gone(context, &member.name)? => {}
            Err(_) => return stale(format!("{} is not proven dead", member.name)),
        }
    }
    if answering * 2 > owners.len() {
        return Err(StepError::Stale(format!(
            "{answering} of {} primaries answer and can vote",
            owners.len()
        )));
    }
    Ok(())
}

fn record(context: &Context, member: &Member, id: NodeId) -> Result<(), StepError> {
    let now = crate::observe::now_ms();
    Ok(context.store.record_handover(&member.name.cluster, id, now)?)
}

fn record_refusal(context: &Context, member: &Member, id: NodeId) -> Result<(), StepError> {
    let now = crate::observe::now_ms();
    Ok(context.store.record_refusal(&member.name.cluster, id, now)?)
}

/// Did it become primary in time?
async fn wait_primary(
    context: &Context,
    member: &Member,
    deadline: Duration,
) -> Result<bool, StepError> {
    let mut wait = Wait::new(deadline);
    loop {
        let view = context.view(member).await?;
        if view.is_primary() && view.owns_slots() {
            return Ok(true);
        }
        match wait.pause(String::new).await {
            Ok(()) => {}
            Err(StepError::Late { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// After a handover: the old primary copies the new one, and everybody knows.
async fn settled(
    context: &Context,
    old: &Member,
    new: &Member,
    id: NodeId,
) -> Result<(), StepError> {
    let mut wait = Wait::new(AGREE);
    let mut paused = !context.running(old).await?.dialect().ranges;
    loop {
        let view = context.view(old).await?;
        let demoted = view.primary() == Some(id);
        if demoted && paused {
            // Engines before Redis 7.0 would hold their clients, which are to be redirected, and
            // the new primary's stream until the attempt's time is over.
            context.call(old, &["CLIENT", "UNPAUSE"]).await?;
            paused = false;
        }
        if demoted && view.in_sync() {
            break;
        }
        wait.pause(|| format!("{} is an in-sync replica of {}", old.name, new.name)).await?;
    }
    // The new primary tells everyone at once, the old one only when its turn comes: until then it
    // looks like a primary that lost its slots.
    let what = format!("{} follows {}", old.name, new.name);
    let old_id = context.view(old).await?.id();
    let follows = |view: &View| {
        let follower = view.nodes.row(old_id).and_then(|row| row.primary);
        follower == Some(id) && view.nodes.row(id).is_some_and(|row| !row.slots.is_empty())
    };
    join::agree(context, &new.name.cluster, &[old, new], &what, follows).await
}

/// Waits until every node that answers takes the slots' owner from the new primary.
async fn all_follow(context: &Context, new: &Member, id: NodeId) -> Result<(), StepError> {
    let slots = context.view(new).await?.nodes.my_row().map(|row| row.slots.clone());
    let slots = slots.unwrap_or_default();
    let mut pending = context.members(&new.name.cluster)?;
    let mut wait = Wait::new(AGREE);
    loop {
        let asked = pending.into_iter().map(|member| {
            let context = context.clone();
            async move {
                let view = context.view_within(&member, Duration::from_secs(1)).await;
                (member, view)
            }
        });
        pending = together(asked)
            .await
            .into_iter()
            .filter_map(|(member, view)| {
                // One that doesn't answer learns it when it does.
                let row = view.ok()?.nodes.row(id).map(|row| row.slots.clone());
                (row.as_ref() != Some(&slots)).then_some(member)
            })
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        wait.pause(|| {
            let names: Vec<String> = pending.iter().map(|member| member.name.to_string()).collect();
            format!("{} see {} as primary", names.join(", "), new.name)
        })
        .await?;
    }
}

#[cfg(test)]
mod tests {
    use protocol::cluster_text::{LinkState, Role};

    use super::*;

    fn id(number: u32) -> String {
        format!("{number:040}")
    }

    /// What a node of three primaries, 1 to 3, and a replica 4 of the first sees. `role` is what it
    /// holds 4 for, `epoch` the configuration epoch it knows of 2, `link` its link with 4.
    fn view(viewer: u32, role: &str, epoch: u32, link: &str) -> (u32, View) {
        let row = |number: u32, role: &str, epoch: u32, link: &str, slots: &str| {
            let (myself, id) = (if number == viewer { "myself," } else { "" }, id(number));
            let address = format!("127.0.0.1:{}@{}", 7000 + number, 17_000 + number);
            format!("{id} {address} {myself}{role} 0 0 {epoch} {link} {slots}\n")
        };
        let text = [
            row(1, "master -", 1, "connected", "0-5460"),
            row(2, "master -", epoch, "connected", "5461-10921"),
            row(3, "master -", 3, "connected", "10922-16383"),
            row(4, role, 1, link, ""),
        ];
        let role = match viewer {
            4 => Role::Replica {
                primary_host: "127.0.0.1".to_owned(),
                primary_port: 7001,
                link: LinkState::Connected,
                offset: 0,
            },
            _ => Role::Primary { offset: 0, replicas: Vec::new() },
        };
        (viewer, View { nodes: text.concat().parse().unwrap(), role })
    }

    #[test]
    fn a_candidate_waits_until_its_primary_and_a_majority_know_it() {
        let knows = format!("slave {}", id(1));
        let (knows, late) = (knows.as_str(), "master -");
        let check = |old: Old, others: &[(u32, View)], expected: (bool, &[u32])| {
            let own = view(4, knows, 2, "connected").1;
            let voters = Voters::of(others, &own, own.primary().unwrap(), old);
            let deaf: Vec<u32> = voters.deaf.iter().map(|(number, _)| *number).collect();
            assert_eq!((voters.elect, deaf.as_slice()), expected, "{old:?} {others:?}");
        };
        let all = |one, two, three| [(1, one), (2, two), (3, three)];
        let seen = |roles: [(u32, &str); 3]| roles.map(|(n, role)| view(n, role, 2, "connected"));
        check(Old::Lives, &seen(all(knows, knows, knows)), (true, &[]));
        check(Old::Lives, &seen(all(knows, knows, late)), (true, &[3]));
        check(Old::Lives, &seen(all(knows, late, late)), (false, &[2, 3]));
        // The primary would not hear its replica, whatever the others say.
        check(Old::Lives, &seen(all(late, knows, knows)), (false, &[1]));
        check(Old::Lives, &seen(all(knows, knows, knows))[1..], (false, &[]));
        check(Old::Gone, &seen(all(knows, knows, knows))[1..], (true, &[]));
        check(Old::Gone, &seen(all(knows, knows, late))[1..], (false, &[3]));
        // Slots were moved, which the candidate hasn't heard of.
        let connected = |number, epoch| view(number, knows, epoch, "connected");
        check(Old::Lives, &[connected(1, 2), connected(2, 5), connected(3, 2)], (true, &[2]));
        check(Old::Lives, &[connected(1, 2), connected(2, 5), connected(3, 5)], (false, &[2, 3]));
        let cut = view(3, knows, 2, "disconnected");
        check(Old::Lives, &[connected(1, 2), connected(2, 2), cut], (true, &[3]));
    }
}
