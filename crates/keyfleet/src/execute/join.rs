//! Steps that make nodes a cluster: meeting, first slots, replication, forgetting.
//!
//! Nodes tell each other news in the header of every message, but send most of their messages only
//! about once a second to a peer of chance. Where that is too slow, the teller is made to MEET its
//! peers again: to peers that know it already this is just one more message, sent at once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fleet::model::{ClusterName, NodeName};
use protocol::{NodeId, Slot, SlotSet, cluster_text::LinkState};

use super::{
    Context, Member, Report, StepError, View,
    context::{Wait, together},
};

/// Up to this many nodes are all introduced to each other; more are introduced to some and learn
/// of the rest by gossip.
const MESH_MAX: usize = 16;
/// In larger clusters, to how many others each new node is introduced.
const INTRODUCTIONS: usize = 8;
/// How long a first meeting may take before it is begun again.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// After how long without effect peers are told again: a little more than the servers' own tick.
pub(super) const NUDGE: Duration = Duration::from_millis(120);
/// How long a cluster may take to agree on something.
const AGREE: Duration = Duration::from_secs(30);
/// How long a copy may stand still before it counts as stuck.
const STALLED: Duration = Duration::from_secs(90);
/// How many copies may break off before a replica is given up on.
const BROKEN_COPIES_MAX: u32 = 5;

/// A node that answers, with what it said when the step began.
type Answering = (Member, View);

/// Makes the nodes and all others of their cluster known to each other.
pub(super) async fn meet(
    context: &Context,
    cluster: &ClusterName,
    nodes: &[NodeName],
) -> Result<(), StepError> {
    let all = context.answering(cluster).await?;
    if let Some(missing) = nodes.iter().find(|name| !all.iter().any(|(m, _)| m.name == **name)) {
        return Err(StepError::Stale(format!("{missing} doesn't answer")));
    }
    give_epochs(context, &all).await?;
    let mut pending: Vec<Answering> = all.clone();
    let mut wait = Wait::new(AGREE);
    let mut met = Tick::new(HANDSHAKE);
    let mut told = Tick::new(NUDGE);
    loop {
        pending.retain(|(_, view)| {
            has_handshakes(view) || !all.iter().all(|(peer, own)| knows(view, peer, own))
        });
        if pending.is_empty() {
            return Ok(());
        }
        // A handshake that failed is given up by the servers after the node timeout; begin again.
        if met.is_due() {
            introduce_all(context, &pending, &all, nodes).await?;
        }
        // The first message makes a node known; what it owns comes with the next one.
        let strangers =
            |(_, view): &&Answering| all.iter().any(|(peer, own)| !has_met(view, peer, own));
        let deaf: Vec<Member> =
            pending.iter().filter(|pair| !strangers(pair)).map(|(m, _)| m.clone()).collect();
        if !deaf.is_empty() && told.is_due() {
            let owners = all.iter().filter(|(_, own)| own.owns_slots());
            let owners: Vec<&Member> = owners.map(|(member, _)| member).collect();
            tell(context, &owners, &deaf).await?;
        }
        wait.pause(|| {
            let names: Vec<String> = pending.iter().map(|(m, _)| m.name.to_string()).collect();
            format!("{} know all nodes of {cluster}", names.join(", "))
        })
        .await?;
        pending = look_again(context, pending).await;
    }
}

fn has_handshakes(view: &View) -> bool {
    view.nodes.rows.iter().any(|row| row.flags.handshake)
}

/// Does the viewer have the node, where it stands?
fn has_met(view: &View, peer: &Member, own: &View) -> bool {
    view.met(own.id()).is_some_and(|row| {
        row.port == peer.place.ports.tcp
            && (row.flags.myself || row.ip.parse() == Ok(peer.place.address))
    })
}

/// Does the viewer have the node, where it stands, with what it owns?
fn knows(view: &View, peer: &Member, own: &View) -> bool {
    has_met(view, peer, own)
        && view.nodes.row(own.id()).map(|row| &row.slots)
            == own.nodes.my_row().map(|row| &row.slots)
}

/// Makes each teller send its news to all peers, at once.
async fn tell(context: &Context, tellers: &[&Member], peers: &[Member]) -> Result<(), StepError> {
    let tasks = tellers.iter().map(|teller| {
        let (context, teller, peers) = (context.clone(), (*teller).clone(), peers.to_vec());
        async move { introduce(&context, &teller, &peers).await }
    });
    together(tasks).await.into_iter().collect()
}

/// Something that is to be done again and again, with a pause.
pub(super) struct Tick {
    pause: Duration,
    last: Option<Instant>,
}

impl Tick {
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, last: None }
    }

    /// The pause is over; the next one begins.
    pub(super) fn is_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() > self.pause);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }
}

/// The same nodes with what they say now; one that doesn't answer keeps what it said before.
async fn look_again(context: &Context, nodes: Vec<Answering>) -> Vec<Answering> {
    let members: Vec<Member> = nodes.iter().map(|(member, _)| member.clone()).collect();
    let views = context.views_within(&members, Duration::from_secs(1)).await;
    let pairs = nodes.into_iter().zip(views);
    pairs.map(|((member, old), view)| (member, view.unwrap_or(old))).collect()
}

/// Nodes that know nobody get configuration epochs of their own, above the cluster's. Two primaries
/// with the same epoch would have to settle that between them later, one slow round at a time.
async fn give_epochs(context: &Context, all: &[Answering]) -> Result<(), StepError> {
    let epochs = all.iter().flat_map(|(_, view)| &view.nodes.rows).map(|row| row.config_epoch);
    let mut epoch = epochs.max().unwrap_or(0);
    for (member, view) in all {
        let [row] = view.nodes.rows.as_slice() else { continue };
        if row.config_epoch == 0 {
            epoch += 1;
            let epoch = epoch.to_string();
            match context.call(member, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await {
                // Refused: it met somebody just now, or has an epoch already. Then it needs none.
                Ok(_) | Err(StepError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

async fn introduce_all(
    context: &Context,
    pending: &[Answering],
    all: &[Answering],
    new: &[NodeName],
) -> Result<(), StepError> {
    let mut work: BTreeMap<&NodeName, (&Member, Vec<&Member>)> = BTreeMap::new();
    for (index, (member, view)) in pending.iter().enumerate() {
        let unknown = all.iter().filter(|(peer, own)| !has_met(view, peer, own));
        let peers: Vec<&Member> = if all.len() <= MESH_MAX {
            unknown.map(|(peer, _)| peer).collect()
        } else if new.contains(&member.name) {
            // A ring of neighbours, and the first node for all: every part is connected.
            let first = all.first().map(|(peer, _)| peer).filter(|peer| peer.name != member.name);
            let ring = all.iter().cycle().skip(index + 1).take(INTRODUCTIONS);
            let ring = ring.map(|(peer, _)| peer).filter(|peer| peer.name != member.name);
            first.into_iter().chain(ring).collect()
        } else {
            Vec::new()
        };
        if !peers.is_empty() {
            work.insert(&member.name, (member, peers));
        }
    }
    let tasks = work.into_values().map(|(member, peers)| {
        let (context, member) = (context.clone(), member.clone());
        let peers: Vec<Member> = peers.into_iter().cloned().collect();
        async move { introduce(&context, &member, &peers).await }
    });
    together(tasks).await.into_iter().collect()
}

/// Makes `teller` send its news to the peers within about 100 ms.
pub(super) async fn introduce(
    context: &Context,
    teller: &Member,
    peers: &[Member],
) -> Result<(), StepError> {
    let peers = peers.iter().filter(|peer| peer.name != teller.name);
    let calls: Vec<Vec<String>> = peers
        .map(|peer| {
            let (ip, ports) = (peer.place.address.to_string(), peer.place.ports);
            let words = ["CLUSTER".into(), "MEET".into(), ip];
            words.into_iter().chain([ports.tcp.to_string(), ports.bus.to_string()]).collect()
        })
        .collect();
    if calls.is_empty() { Ok(()) } else { context.call_all(teller, &calls).await }
}

/// Waits until all nodes' views satisfy the condition, which is about the tellers. Those who don't
/// know are told at once: by itself the news could take seconds.
pub(super) async fn agree(
    context: &Context,
    cluster: &ClusterName,
    tellers: &[&Member],
    what: &str,
    holds: impl Fn(&View) -> bool + Send,
) -> Result<(), StepError> {
    let all = context.answering(cluster).await?;
    let everyone = all.len();
    let mut pending = all;
    let mut wait = Wait::new(AGREE);
    let mut told = Tick::new(NUDGE);
    loop {
        pending.retain(|(_, view)| !holds(view));
        if pending.is_empty() {
            return Ok(());
        }
        if told.is_due() {
            let most = if everyone <= MESH_MAX { MESH_MAX } else { INTRODUCTIONS };
            let deaf = pending.iter().take(most).map(|(member, _)| member.clone());
            tell(context, tellers, &deaf.collect::<Vec<_>>()).await?;
        }
        wait.pause(|| {
            let names: Vec<String> = pending.iter().map(|(m, _)| m.name.to_string()).collect();
            format!("{} see that {what}", names.join(", "))
        })
        .await?;
        pending = look_again(context, pending).await;
    }
}

/// Gives primaries their first slots.
pub(super) async fn assign(
    context: &Context,
    cluster: &ClusterName,
    shares: &[(NodeName, SlotSet)],
) -> Result<(), StepError> {
    let all = context.answering(cluster).await?;
    let mut owners = Vec::new();
    for (name, slots) in shares {
        let found = all.iter().find(|(member, _)| member.name == *name);
        let (member, view) =
            found.ok_or_else(|| StepError::Stale(format!("{name} doesn't answer")))?;
        if !view.is_primary() {
            return Err(StepError::Stale(format!("{name} is a replica")));
        }
        owners.push((member.clone(), view.id(), slots.clone()));
    }
    for (viewer, view) in &all {
        for row in &view.nodes.rows {
            let share = owners.iter().find(|(_, id, _)| *id == row.id);
            let foreign = share
                .map_or_else(|| row.slots.clone(), |(_, _, slots)| row.slots.difference(slots));
            if !foreign.is_empty() {
                let (viewer, owner) = (&viewer.name, row.id.short());
                let text = format!("{viewer} sees that {owner} owns {foreign} already");
                return Err(StepError::Stale(text));
            }
        }
    }
    give_epochs(context, &all).await?;
    let adding = owners.iter().map(|(member, id, slots)| {
        let owned = all
            .iter()
            .find(|(peer, _)| peer.name == member.name)
            .and_then(|(_, view)| view.nodes.row(*id).map(|row| row.slots.clone()));
        let missing = slots.difference(&owned.unwrap_or_default());
        let (context, member) = (context.clone(), member.clone());
        async move { context.call_all(&member, &add_slots(&missing)).await }
    });
    together(adding).await.into_iter().collect::<Result<(), _>>()?;
    let tellers: Vec<&Member> = owners.iter().map(|(member, ..)| member).collect();
    agree(context, cluster, &tellers, "the slots are assigned", |view| {
        owners.iter().all(|(_, id, slots)| {
            // A node that hasn't met the owner yet has nothing to say of it.
            view.nodes.row(*id).is_none_or(|row| row.slots == *slots)
        })
    })
    .await
}

/// ADDSLOTS, which all engines have, in commands of a thousand slots.
fn add_slots(slots: &SlotSet) -> Vec<Vec<String>> {
    let slots: Vec<Slot> = slots.iter().collect();
    let command = |slots: &[Slot]| {
        let words = ["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
        words.into_iter().chain(slots.iter().map(Slot::to_string)).collect()
    };
    slots.chunks(1000).map(command).collect()
}

/// Makes a node a replica and waits for its copy.
pub(super) async fn replicate(
    context: &Context,
    node: &NodeName,
    primary: &NodeName,
    report: &Report<'_>,
) -> Result<(), StepError> {
    let (member, source) = (context.member(node)?, context.member(primary)?);
    let source_view = context.view(&source).await?;
    if !source_view.is_primary() {
        return Err(StepError::Stale(format!("{primary} is no primary")));
    }
    let source_id = source_view.id();
    let mut view = context.view(&member).await?;
    if view.owns_slots() {
        return Err(StepError::Stale(format!("{node} owns slots")));
    }
    let mut wait = Wait::new(AGREE);
    // A replica that knows no primary with slots counts itself to a minority, and would have to
    // wait for seconds before it could take over.
    while !knows(&view, &source, &source_view) {
        wait.pause(|| format!("{node} knows {primary} as a primary")).await?;
        view = context.view(&member).await?;
    }
    if view.primary() != Some(source_id) {
        context.call(&member, &["CLUSTER", "REPLICATE", &source_id.to_string()]).await?;
    }
    let id = view.id();
    let is_told = |view: &View| {
        let row = view.nodes.row(id);
        row.is_none_or(|row| row.primary == Some(source_id))
    };
    let what = format!("{node} is a replica of {primary}");
    let tellers = [&member];
    let (agreed, synced) = tokio::join!(
        agree(context, &node.cluster, &tellers, &what, is_told),
        wait_in_sync(context, &member, report),
    );
    agreed.and(synced)
}

/// Waits until a replica has its copy. There is no limit on how long that takes, only on how long
/// it may stand still.
pub(super) async fn wait_in_sync(
    context: &Context,
    member: &Member,
    report: &Report<'_>,
) -> Result<(), StepError> {
    let mut wait = Wait::new(STALLED);
    let mut before = LinkState::None;
    let mut broken_copies = 0;
    let mut said = Duration::ZERO;
    loop {
        let view = context.view_within(member, Duration::from_secs(2)).await;
        let link = match &view {
            Ok(view) if view.in_sync() => return Ok(()),
            Ok(View { role: protocol::cluster_text::Role::Replica { link, .. }, .. }) => *link,
            Ok(_) => {
                return Err(StepError::Stale(format!("{} is no replica any more", member.name)));
            }
            // While it loads the copy it may not answer everything.
            Err(_) => before,
        };
        if link == LinkState::Sync {
            wait.restart();
        } else if before == LinkState::Sync {
            broken_copies += 1;
            if broken_copies > BROKEN_COPIES_MAX {
                let what = format!("{} has its copy; {broken_copies} broke off", member.name);
                return Err(StepError::Late { what, waited: wait.waited() });
            }
        }
        before = link;
        if wait.waited() > said + Duration::from_secs(1) || link == LinkState::Sync {
            said = wait.waited();
            report.say(&format!("{} is copying its primary's data", member.name));
        }
        wait.pause(|| format!("{} is in sync with its primary", member.name)).await?;
    }
}

/// Removes an id that is alive nowhere from all tables.
pub(super) async fn forget(
    context: &Context,
    cluster: &ClusterName,
    id: NodeId,
) -> Result<(), StepError> {
    let all = context.answering(cluster).await?;
    if let Some((member, _)) = all.iter().find(|(_, view)| view.id() == id) {
        return Err(StepError::Stale(format!("{} is {} and alive", member.name, id.short())));
    }
    if let Some((viewer, _)) = all.iter().find(|(_, view)| {
        view.nodes.row(id).is_some_and(|row| !row.slots.is_empty()) && view.is_primary()
    }) {
        return Err(StepError::Stale(format!("{} sees slots at {}", viewer.name, id.short())));
    }
    let knowing = all.into_iter().filter(|(_, view)| view.nodes.row(id).is_some());
    let telling = knowing.map(|(member, _)| {
        let context = context.clone();
        async move {
            match context.call(&member, &["CLUSTER", "FORGET", &id.to_string()]).await {
                Ok(_) => Ok(()),
                // Another of our tellings reached it before, by way of its peers.
                Err(StepError::Refused { source, .. })
                    if source.message.starts_with("Unknown node") =>
                {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
    });
    together(telling).await.into_iter().collect::<Result<(), _>>()?;
    agree(context, cluster, &[], &format!("{} is gone", id.short()), |view| {
        view.nodes.row(id).is_none()
    })
    .await
}
