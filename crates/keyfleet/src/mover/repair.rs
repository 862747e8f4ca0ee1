//! Closes half-moved slots without losing a key.
//!
//! What is done follows from where the keys are. A key on the owner alone needs nothing. A key that
//! only another node holds goes to the owner before anything is closed: what a node doesn't own any
//! more it deletes. Where two nodes hold different values under one name, each may be the only one
//! with some acknowledged write: such slots stay as they are, and a person is told.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use fleet::{model::Pace, step::RepairCase};
use protocol::{
    ClusterNodes, Slot, SlotSet, Value, cluster_text::OpenDirection, engine::AtomicSlots,
};
use tracing::info;

use super::{
    ClientError, Commands, Connection, Login, NodeAddr, REPLY_TIME_MAX, connect,
    keys::{Carrier, Listing},
    pace::Pacer,
    slots::{Fault, MoveError, SlotMove, expect_ok, move_slots},
    views,
};

/// How long all views may take to agree at the end.
const AGREE_TIME_MAX: Duration = Duration::from_secs(60);

/// Half-moved slots to close.
#[derive(Clone, Debug)]
pub struct SlotRepair {
    /// The primary that keeps or gets them.
    pub owner: NodeAddr,
    pub slots: SlotSet,
    pub case: RepairCase,
    /// The cluster's other nodes, replicas too. Every primary must be among them and answer: one
    /// that is left out may hold the only copy of a key.
    pub others: Vec<NodeAddr>,
    pub login: Option<Login>,
}

/// A repair stopped. Slots that it names are still open; running it again continues it.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    #[error("closing slots {slots} at {owner}: {fault}")]
    Stopped {
        owner: SocketAddr,
        slots: SlotSet,
        #[source]
        fault: Fault,
    },
    #[error(transparent)]
    Move(#[from] MoveError),
}

/// A primary beside the owner, its view, and which of the slots it holds keys of.
struct Peer {
    node: NodeAddr,
    link: Connection,
    view: ClusterNodes,
    holds: SlotSet,
}

impl Peer {
    /// The slots that its own view gives to itself.
    fn claims(&self, slots: &SlotSet) -> SlotSet {
        views::owned(&self.view, self.node.id).intersection(slots)
    }
}

/// Carries out a repair; returns when every node's view gives the slots to the owner and none is
/// open.
pub async fn repair_slots(job: &SlotRepair) -> Result<(), RepairError> {
    let stopped =
        |fault| RepairError::Stopped { owner: job.owner.address, slots: job.slots.clone(), fault };
    let login = job.login.as_ref();
    let mut owner =
        connect(job.owner.address, login).await.map_err(|error| stopped(error.into()))?;
    let view = views::view(&mut owner).await.map_err(stopped)?;
    let mut peers = peers(job).await.map_err(stopped)?;
    match job.case {
        RepairCase::FinishMove => finish(job, &peers).await?,
        RepairCase::MigratingOnly => take_back(job, &view, &mut owner, &mut peers).await?,
        RepairCase::Claim => claim(job, &view, &mut owner, &mut peers).await?,
        RepairCase::Orphan => adopt(job, &view, &mut owner, &peers).await.map_err(stopped)?,
        RepairCase::ImportingOnly => {}
    }
    settle(job, &mut owner).await.map_err(stopped)?;
    info!(owner = %job.owner.address, slots = %job.slots, case = ?job.case, "slots repaired");
    Ok(())
}

async fn peers(job: &SlotRepair) -> Result<Vec<Peer>, Fault> {
    let mut peers = Vec::new();
    for node in &job.others {
        let mut link = connect(node.address, job.login.as_ref()).await?;
        let view = views::view(&mut link).await?;
        if view.my_row().is_some_and(|row| row.flags.primary) {
            let holds = held(&mut link, &job.slots).await?;
            peers.push(Peer { node: *node, link, view, holds });
        }
    }
    Ok(peers)
}

/// Which of the slots a node holds keys of, whether it owns them or not.
pub(super) async fn held(link: &mut Connection, slots: &SlotSet) -> Result<SlotSet, Fault> {
    let node = link.address();
    let mut commands = Commands::new();
    for slot in slots.iter() {
        commands.push(["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]);
    }
    let mut held = Vec::new();
    for (slot, reply) in slots.iter().zip(link.pipeline(&commands, REPLY_TIME_MAX).await?) {
        let refused = |error| Fault::refused(node, "CLUSTER COUNTKEYSINSLOT", error);
        if reply.into_result().map_err(refused)?.as_integer() != Some(0) {
            held.push(slot);
        }
    }
    Ok(held.into_iter().collect())
}

/// The rest of the keys follow those that went.
async fn finish(job: &SlotRepair, peers: &[Peer]) -> Result<(), MoveError> {
    for peer in peers {
        let giving = views::open(&peer.view, OpenDirection::Migrating).into_iter();
        let giving = giving.filter(|(_, to)| *to == job.owner.id).map(|(slot, _)| slot);
        let slots = giving.collect::<SlotSet>().intersection(&job.slots);
        move_between(job, peer.node, job.owner, slots).await?;
    }
    Ok(())
}

async fn move_between(
    job: &SlotRepair,
    from: NodeAddr,
    to: NodeAddr,
    slots: SlotSet,
) -> Result<(), MoveError> {
    if slots.is_empty() {
        return Ok(());
    }
    let all = job.others.iter().chain([&job.owner]);
    let others = all.filter(|node| **node != from && **node != to).copied().collect();
    let (login, atomic) = (job.login.clone(), AtomicSlots::None);
    let job = SlotMove { from, to, slots, others, login, pace: Pace::Full, atomic };
    move_slots(&job, |_| ()).await.map(|_| ())
}

/// The owner gives slots to a node that doesn't take them. Where that node has none of the keys, the
/// owner only has to stop. Where it has some, clients that ask for them are sent back and forth, and
/// get no wrong answer yet; they would if the owner stopped: it would say that there is no such key.
/// So the move is finished first and then undone, as two ordinary moves.
async fn take_back(
    job: &SlotRepair,
    view: &ClusterNodes,
    owner: &mut Connection,
    peers: &mut [Peer],
) -> Result<(), MoveError> {
    let open = views::open(view, OpenDirection::Migrating).into_iter().map(|(slot, _)| slot);
    let open = open.collect::<SlotSet>().intersection(&job.slots);
    for peer in peers {
        let slots = peer.holds.intersection(&open);
        let reopened = async {
            set_slots(&mut peer.link, &slots, &["IMPORTING", &job.owner.id.to_string()]).await?;
            set_slots(owner, &slots, &["MIGRATING", &peer.node.id.to_string()]).await
        };
        reopened.await.map_err(|fault| MoveError {
            from: job.owner.address,
            to: peer.node.address,
            slots: slots.clone(),
            open: slots.clone(),
            fault,
        })?;
        move_between(job, job.owner, peer.node, slots.clone()).await?;
        move_between(job, peer.node, job.owner, slots.clone()).await?;
        peer.holds = peer.holds.difference(&slots);
    }
    Ok(())
}

/// Others believe to own what the owner owns, or are the only ones to believe that they do.
async fn claim(
    job: &SlotRepair,
    view: &ClusterNodes,
    owner: &mut Connection,
    peers: &mut [Peer],
) -> Result<(), RepairError> {
    let stopped =
        |fault| RepairError::Stopped { owner: job.owner.address, slots: job.slots.clone(), fault };
    let own = views::owned(view, job.owner.id).intersection(&job.slots);
    for peer in &mut *peers {
        let claimed = peer.claims(&job.slots);
        move_between(job, peer.node, job.owner, claimed.difference(&own)).await?;
        let disputed = claimed.intersection(&own);
        // New keys go to the owner from now on.
        let to = job.owner.id.to_string();
        set_slots(&mut peer.link, &disputed, &["MIGRATING", &to]).await.map_err(stopped)?;
        let slots = peer.holds.intersection(&disputed);
        carry_home(&peer.node, &job.owner, &slots, job.login.as_ref()).await.map_err(stopped)?;
    }
    // The highest epoch decides whom the others believe.
    raise_epoch(job, view, owner, peers).await.map_err(stopped)
}

/// Nobody owns the slots.
async fn adopt(
    job: &SlotRepair,
    view: &ClusterNodes,
    owner: &mut Connection,
    peers: &[Peer],
) -> Result<(), Fault> {
    let taken = view.rows.iter().fold(SlotSet::new(), |all, row| all.union(&row.slots));
    let free: Vec<String> =
        job.slots.difference(&taken).iter().map(|slot| slot.to_string()).collect();
    if !free.is_empty() {
        let add = ["CLUSTER", "ADDSLOTS"].into_iter().chain(free.iter().map(String::as_str));
        let mut commands = Commands::new();
        commands.push(add);
        expect_ok(owner, &commands, "CLUSTER ADDSLOTS").await?;
    }
    raise_epoch(job, view, owner, peers).await
}

/// Makes the owner's claims the strongest. Not where it still claims other slots that another primary
/// took over: that one would believe it, and drop their keys. Those are to be settled first.
async fn raise_epoch(
    job: &SlotRepair,
    view: &ClusterNodes,
    owner: &mut Connection,
    peers: &[Peer],
) -> Result<(), Fault> {
    let others = views::owned(view, job.owner.id).difference(&job.slots);
    if peers.iter().any(|peer| !peer.claims(&others).is_empty()) {
        return Ok(());
    }
    let mut commands = Commands::new();
    commands.push(["CLUSTER", "BUMPEPOCH"]);
    expect_ok(owner, &commands, "CLUSTER BUMPEPOCH").await
}

/// Brings home what others still hold, closes the slots everywhere and waits until all agree.
async fn settle(job: &SlotRepair, owner: &mut Connection) -> Result<(), Fault> {
    let login = job.login.as_ref();
    let to = job.owner.id.to_string();
    let own = views::owned(&views::view(owner).await?, job.owner.id);
    let strange = job.slots.difference(&own);
    if !strange.is_empty() {
        return Err(Fault::NotOwned { slots: strange });
    }
    // While it gives a slot away the owner takes no key of it.
    set_slots(owner, &job.slots, &["STABLE"]).await?;
    let mut conflicts = SlotSet::new();
    for peer in &mut peers(job).await? {
        // A node sends away whoever asks for a slot that nobody owns, its own MIGRATE too.
        set_slots(&mut peer.link, &job.slots, &["NODE", &to]).await?;
        match bring_home(peer, &job.owner, login).await {
            Err(Fault::Conflict { slots }) => conflicts = conflicts.union(&slots),
            result => result?,
        }
        let told = job.slots.difference(&conflicts);
        set_slots(&mut peer.link, &told, &["STABLE"]).await?;
    }
    if !conflicts.is_empty() {
        return Err(Fault::Conflict { slots: conflicts });
    }
    let mut nodes = vec![job.owner];
    nodes.extend(&job.others);
    views::wait_for_owner(&nodes, login, job.owner.id, &job.slots, AGREE_TIME_MAX).await
}

/// Moves the keys that a node holds of slots that it doesn't own to their owner.
async fn bring_home(peer: &mut Peer, owner: &NodeAddr, login: Option<&Login>) -> Result<(), Fault> {
    // Without this the node would send its own MIGRATE to the owner.
    set_slots(&mut peer.link, &peer.holds, &["IMPORTING", &owner.id.to_string()]).await?;
    carry_home(&peer.node, owner, &peer.holds, login).await
}

/// Brings home what `holder` has of slots that `owner` owns and doesn't give away.
pub(super) async fn bring_strays_home(
    holder: &NodeAddr,
    owner: &NodeAddr,
    slots: &SlotSet,
    login: Option<&Login>,
) -> Result<(), Fault> {
    if slots.is_empty() {
        return Ok(());
    }
    let mut link = connect(holder.address, login).await?;
    set_slots(&mut link, slots, &["IMPORTING", &owner.id.to_string()]).await?;
    carry_home(holder, owner, slots, login).await
}

/// MIGRATE without REPLACE; what the owner has too is dropped where it is the same.
async fn carry_home(
    holder: &NodeAddr,
    owner: &NodeAddr,
    slots: &SlotSet,
    login: Option<&Login>,
) -> Result<(), Fault> {
    let pacer = Pacer::start(Pace::Full, [holder.address, owner.address], login).await?;
    let arrived = |_, _| ();
    let mut carrier =
        Carrier::connect(holder.address, owner.address, login, &pacer, &arrived).await?;
    carrier.replace = false;
    let mut link = connect(owner.address, login).await?;
    let mut left: Vec<Slot> = slots.iter().collect();
    while !left.is_empty() {
        let lists = carrier.list(&left).await?;
        let stuck: Vec<Slot> = carrier.carry(lists).await?.into_iter().collect();
        let twins = carrier.list(&stuck).await?;
        let dropped = drop_equal(&mut carrier.from, &mut link, &twins).await?;
        if !stuck.is_empty() && dropped.is_empty() {
            return Err(Fault::Conflict { slots: stuck.into_iter().collect() });
        }
        left = stuck;
    }
    Ok(())
}

/// Removes from `holder` the keys whose value the owner has too; the slots in which there were any.
async fn drop_equal(
    holder: &mut Connection,
    owner: &mut Connection,
    lists: &[Listing],
) -> Result<BTreeSet<Slot>, Fault> {
    let mut dropped = BTreeSet::new();
    for list in lists {
        for key in &list.keys {
            let theirs = ask(holder, &[b"DUMP", key]).await?;
            let ours = ask(owner, &[b"DUMP", key]).await?;
            if theirs == ours {
                ask(holder, &[b"UNLINK", key]).await?;
                dropped.insert(list.slot);
            }
        }
    }
    Ok(dropped)
}

/// A command on a key, also of a slot that the node imports.
async fn ask(link: &mut Connection, args: &[&[u8]]) -> Result<Value, Fault> {
    let address = link.address();
    let mut commands = Commands::new();
    commands.push(["ASKING"]);
    commands.push(args);
    let reply = link.pipeline(&commands, REPLY_TIME_MAX).await?.pop().unwrap_or(Value::Null);
    Ok(reply.into_result().map_err(|source| ClientError::Server { address, source })?)
}

async fn set_slots(link: &mut Connection, slots: &SlotSet, how: &[&str]) -> Result<(), Fault> {
    let mut commands = Commands::new();
    for slot in slots.iter() {
        let slot = slot.to_string();
        commands.push(["CLUSTER", "SETSLOT", &slot].iter().chain(how));
    }
    expect_ok(link, &commands, "CLUSTER SETSLOT").await
}
