//! Acknowledged writes, and which of them a fault may have cost.

use std::collections::{BTreeMap, BTreeSet};

use fleet::{
    model::{ClusterName, HostId, NodeName},
    observed::{Health, Process},
    world::{Fault, Node, World},
};
use protocol::{SLOT_COUNT, Slot};

use crate::rng::Rng;

/// What clients were told is stored.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By identity: the cluster and the slot.
    acknowledged: BTreeMap<u64, (ClusterName, u16)>,
    /// Those that a fault alone could lose: nobody in reach held them but what it struck.
    forfeited: BTreeSet<u64>,
    /// Hosts that are cut off at the moment.
    cut: BTreeSet<HostId>,
    next: u64,
}

/// Is the node held for failed by a peer, so that its replicas may be about to replace it?
fn is_given_up(world: &World, name: &NodeName) -> bool {
    let Some(node) = world.node(name) else { return false };
    world.nodes().any(|(other, peer)| {
        other.cluster == name.cluster
            && world.answers(&other)
            && peer.table.rows.get(&node.id).is_some_and(|row| row.health != Health::Ok)
    })
}

impl Ledger {
    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// How many of them faults were allowed to lose.
    pub fn forfeited(&self) -> usize {
        self.forfeited.len()
    }

    /// Clients write to a cluster here and there.
    pub fn write(&mut self, world: &mut World, cluster: &ClusterName, count: usize, rng: &mut Rng) {
        for _ in 0..count {
            let Some(slot) = Slot::new(rng.below(usize::from(SLOT_COUNT)) as u16) else { continue };
            self.next += 1;
            let id = self.next;
            let rivals = world
                .nodes()
                .filter(|(name, node)| {
                    name.cluster == *cluster
                        && node.process != Process::Gone
                        && node.replica_of().is_none()
                        && node.slots().contains(slot)
                })
                .count();
            let Some(taker) = world.write(cluster, slot, id, rng.below(8)) else { continue };
            self.acknowledged.insert(id, (cluster.clone(), slot.number()));
            if rivals > 1 || self.is_one_sided(world, &taker) || is_given_up(world, &taker) {
                self.forfeited.insert(id);
            }
        }
    }

    /// To be called right after a fault struck: what no healthy node holds now may be lost.
    pub fn note(&mut self, world: &World, fault: &Fault) {
        match fault {
            Fault::Cut(host) => {
                self.cut.insert(host.clone());
            }
            Fault::Heal(host) => {
                self.cut.remove(host);
            }
            _ => {}
        }
        let mut safe: BTreeSet<u64> = BTreeSet::new();
        for (name, node) in world.nodes() {
            // Loading is as good as held: nothing but another fault takes it away.
            let healthy = node.process == Process::Running
                && (world.answers(&name) || node.loading_until_ms > world.now_ms());
            if healthy && !self.is_one_sided(world, &name) {
                safe.extend(node.data.writes.values().flatten());
            }
        }
        if !self.cut.is_empty() {
            // Either side may win.
            let [one, other] = [true, false].map(|side| {
                let nodes = world.nodes().filter(|(name, node)| {
                    world.answers(name) && self.cut.contains(&node.host) == side
                });
                let ids = nodes.flat_map(|(_, node)| node.data.writes.values().flatten());
                ids.copied().collect::<BTreeSet<u64>>()
            });
            safe.extend(one.intersection(&other));
        }
        // One that came back empty by itself, with its name and slots, makes its replicas empty.
        if let Fault::Bounce(name) = fault
            && let Some(node) = world.node(name)
            && node.replica_of().is_none()
        {
            let slots = node.slots();
            safe.retain(|id| {
                let slot = self.acknowledged.get(id).and_then(|(_, slot)| Slot::new(*slot));
                slot.is_none_or(|slot| !slots.contains(slot))
                    || node.data.writes.values().any(|ids| ids.contains(id))
            });
        }
        let lost = self.acknowledged.keys().filter(|id| !safe.contains(id));
        self.forfeited.extend(lost.copied());
    }

    /// Is the node's shard torn apart by a cut? Then either side may win.
    fn is_one_sided(&self, world: &World, name: &NodeName) -> bool {
        if self.cut.is_empty() {
            return false;
        }
        let Some(node) = world.node(name) else { return false };
        let head = |node: &Node| node.replica_of().unwrap_or(node.id);
        let shard = head(node);
        let side = self.cut.contains(&node.host);
        world.nodes().any(|(other, peer)| {
            other.cluster == name.cluster
                && head(peer) == shard
                && self.cut.contains(&peer.host) != side
        })
    }

    /// Writes (identity, cluster, slot) that the slots' owners don't hold though no fault could have lost them.
    pub fn missing(&self, world: &World) -> Vec<(u64, ClusterName, u16)> {
        let mut held: BTreeSet<u64> = BTreeSet::new();
        for (name, node) in world.nodes() {
            if !world.answers(&name) || node.replica_of().is_some() {
                continue;
            }
            let slots = node.slots();
            for (slot, ids) in &node.data.writes {
                if Slot::new(*slot).is_some_and(|slot| slots.contains(slot)) {
                    held.extend(ids);
                }
            }
        }
        self.acknowledged
            .iter()
            .filter(|(id, _)| !held.contains(id) && !self.forfeited.contains(id))
            .map(|(id, (cluster, slot))| (*id, cluster.clone(), *slot))
            .collect()
    }
}
