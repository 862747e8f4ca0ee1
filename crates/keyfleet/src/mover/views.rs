//! What the nodes of a cluster say of its slots.

use std::time::Duration;

use protocol::{ClusterNodes, NodeId, Slot, SlotSet, cluster_text::OpenDirection};
use tokio::time::{Instant, sleep};

use super::{Connection, Login, NodeAddr, connect, slots::Fault};

/// How long a node may take to tell its view.
const VIEW_TIME_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Asks a node for its table.
pub(super) async fn view(link: &mut Connection) -> Result<ClusterNodes, Fault> {
    let node = link.address();
    let reply = link.call_within(VIEW_TIME_MAX, ["CLUSTER", "NODES"]).await?;
    let reply =
        reply.into_result().map_err(|error| Fault::refused(node, "CLUSTER NODES", error))?;
    let strange = Fault::Strange { node, command: "CLUSTER NODES" };
    match reply.as_str() {
        Some(text) => text.parse().map_err(|_| strange),
        None => Err(strange),
    }
}

/// What `of` owns as the view has it.
pub(super) fn owned(view: &ClusterNodes, of: NodeId) -> SlotSet {
    view.row(of).map(|row| row.slots.clone()).unwrap_or_default()
}

/// The viewer's open slots in one direction, with the peer.
pub(super) fn open(view: &ClusterNodes, direction: OpenDirection) -> Vec<(Slot, NodeId)> {
    let open = view.open.iter().filter(|open| open.direction == direction);
    open.map(|open| (open.slot, open.peer)).collect()
}

/// All of the viewer's open slots.
pub(super) fn open_slots(view: &ClusterNodes) -> SlotSet {
    view.open.iter().map(|open| open.slot).collect()
}

/// Waits until the target has heard of the source's configuration epoch.
///
/// A node that takes a slot by itself goes one above the highest epoch that it knows of. A source
/// that took slots a moment ago may be above that: others then believe the source, and tell the
/// target so.
pub(super) async fn wait_for_epoch(
    source: &mut Connection,
    target: &mut Connection,
    slots: &SlotSet,
    time_max: Duration,
) -> Result<(), Fault> {
    let deadline = Instant::now() + time_max;
    let source = view(source).await?;
    let Some(own) = source.my_row() else { return Ok(()) };
    loop {
        let known = view(target).await?.row(own.id).map(|row| row.config_epoch);
        if known.is_some_and(|known| known >= own.config_epoch) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Fault::ViewDiffers { node: target.address(), slots: slots.clone() });
        }
        sleep(POLL).await;
    }
}

/// Waits until every node's view gives all of `slots` to `owner` and has none of them open.
pub(super) async fn wait_for_owner(
    nodes: &[NodeAddr],
    login: Option<&Login>,
    owner: NodeId,
    slots: &SlotSet,
    time_max: Duration,
) -> Result<(), Fault> {
    let deadline = Instant::now() + time_max;
    for node in nodes {
        let mut link = connect(node.address, login).await?;
        loop {
            let view = view(&mut link).await?;
            let missing = slots.difference(&owned(&view, owner));
            let open = slots.intersection(&open_slots(&view));
            if missing.is_empty() && open.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                let slots = missing.union(&open);
                return Err(Fault::ViewDiffers { node: node.address, slots });
            }
            sleep(POLL).await;
        }
    }
    Ok(())
}
