//! A model of clusters at work: what a step does, and what time does. Prediction runs on it
//! (`keyfleet plan` shows the whole path), and so does the simulation that the planner is tried in.
//!
//! Deterministic and pure: time passes only by [`World::advance`]. Nodes learn from every peer that
//! they reach once a round of 100 ms; a round is skipped where nothing can change, so idle time is
//! free. Nodes of one view share one table, which keeps fleets of 10,000 nodes cheap.
//!
//! Modelled after the engines' own rules (`cluster.c`, `replication.c` of Redis 7): higher
//! configuration epochs win slots, a primary that lost its last slot follows the taker, PFAIL and
//! FAIL by the majority of slot-owning primaries, elections with ranks, votes and the data-age check,
//! manual failover and takeover, full copies that overwrite whatever a replica held, the cluster's own
//! verdict. Absent: hostnames, the `ASK` window of single keys, `min-replicas-to-write`.

mod apply;
mod election;
mod faults;
mod gossip;
mod lifecycle;
mod node;
mod observe;
mod replication;
mod slots;
mod views;

use std::collections::{BTreeMap, BTreeSet};

use protocol::{NodeId, Slot};

pub use self::{
    apply::Refused,
    faults::Fault,
    node::{Data, Node, Sync},
    observe::Vantage,
};
use crate::{
    model::{Bytes, ClusterName, Fleet, HostId, NodeName, ProxyName},
    observed::{History, Observed, Process, ProxyView},
    step::{Step, Wave},
};

/// How often views spread, in milliseconds.
const ROUND_MS: u64 = 100;
/// The longest that [`World::settle`] goes on.
const SETTLE_MS_MAX: u64 = 120_000;
/// The longest that [`preview`] waits for the world to change by itself.
const PREVIEW_WAIT_MS_MAX: u64 = 600_000;

/// Clusters at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    net: Net,
    groups: BTreeMap<ClusterName, Group>,
    proxies: BTreeMap<ProxyName, ProxyView>,
    /// How many names were given; part of the next one.
    births: u64,
}

/// What clusters share: the clock, the hosts and who reaches whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Net {
    now_ms: u64,
    hosts: BTreeMap<HostId, Machine>,
    /// Pairs of hosts (the lesser first) that don't reach each other, and since when.
    cuts: BTreeMap<(HostId, HostId), u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    alive: bool,
    memory: Option<Bytes>,
    ports_taken: BTreeMap<u16, Option<u32>>,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    node_timeout_ms: u64,
    /// By number.
    nodes: BTreeMap<u32, Node>,
    /// Numbers by the names of those that have a process or a directory.
    numbers: BTreeMap<NodeId, u32>,
    /// Nodes that tables tell of, that answer, and that the fleet doesn't know.
    strangers: BTreeSet<NodeId>,
    /// When names that nobody has any more were last heard.
    ended_ms: BTreeMap<NodeId, u64>,
    /// When nodes were first held for failed.
    failed_ms: BTreeMap<NodeId, u64>,
    history: History,
    /// When the next round is due; None: nothing will change by itself.
    next_ms: Option<u64>,
}

impl Net {
    fn host_alive(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_none_or(|machine| machine.alive)
    }

    fn cut_since(&self, one: &HostId, other: &HostId) -> Option<u64> {
        if self.cuts.is_empty() {
            return None;
        }
        let pair = if one <= other { (one, other) } else { (other, one) };
        self.cuts.get(&(pair.0.clone(), pair.1.clone())).copied()
    }

    fn answers(&self, node: &Node) -> bool {
        node.answers(self.now_ms) && self.host_alive(&node.host)
    }

    fn reaches(&self, one: &Node, other: &Node) -> bool {
        self.answers(one) && self.answers(other) && self.cut_since(&one.host, &other.host).is_none()
    }
}

impl Group {
    fn node_by_id(&self, id: NodeId) -> Option<&Node> {
        self.numbers.get(&id).and_then(|number| self.nodes.get(number))
    }

    /// Something changed: a round is due soon.
    fn touch(&mut self, now_ms: u64) {
        self.wake(now_ms + ROUND_MS);
    }

    fn wake(&mut self, at_ms: u64) {
        self.next_ms = Some(self.next_ms.map_or(at_ms, |next| next.min(at_ms)));
    }

    /// Everything that happens at this moment.
    fn round(&mut self, net: &Net) {
        self.next_ms = None;
        let learned = self.exchange(net);
        let elected = self.elections(net);
        let copied = self.replicate(net);
        self.note_calm(net);
        if learned || elected || copied {
            self.touch(net.now_ms);
        }
    }

    /// Keeps track of since when the cluster has been calm.
    fn note_calm(&mut self, net: &Net) {
        let calm = self.is_calm(net);
        let since = &mut self.history.calm_since_ms;
        *since = calm.then(|| since.unwrap_or(net.now_ms));
    }
}

impl World {
    /// The model's clock: milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.net.now_ms
    }

    /// Lets time pass.
    pub fn advance(&mut self, ms: u64) {
        let until = self.net.now_ms + ms;
        while let Some(next) = self.next_ms().filter(|next| *next <= until) {
            self.net.now_ms = self.net.now_ms.max(next);
            for group in self.groups.values_mut() {
                if group.next_ms.is_some_and(|at| at <= self.net.now_ms) {
                    group.round(&self.net);
                }
            }
        }
        self.net.now_ms = until;
    }

    /// Lets time pass until nothing changes by itself any more (two minutes at the most: elections
    /// that can't be won are tried for ever).
    pub fn settle(&mut self) {
        let until = self.net.now_ms + SETTLE_MS_MAX;
        while let Some(next) = self.next_ms().filter(|next| *next <= until) {
            self.advance(next.saturating_sub(self.net.now_ms));
        }
    }

    fn next_ms(&self) -> Option<u64> {
        self.groups.values().filter_map(|group| group.next_ms).min()
    }

    /// A node as the model has it.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.groups.get(&name.cluster)?.nodes.get(&name.number)
    }

    /// Every node of the model.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeName, &Node)> + '_ {
        self.groups.iter().flat_map(|(cluster, group)| {
            group.nodes.iter().map(|(number, node)| (NodeName::new(cluster.clone(), *number), node))
        })
    }

    /// Does the node's server answer somebody on its own host?
    pub fn answers(&self, name: &NodeName) -> bool {
        self.node(name).is_some_and(|node| self.net.answers(node))
    }

    /// Can the two nodes talk to each other?
    pub fn reaches(&self, one: &NodeName, other: &NodeName) -> bool {
        match (self.node(one), self.node(other)) {
            (Some(one), Some(other)) => self.net.reaches(one, other),
            _ => false,
        }
    }

    /// A client's write with the identity `id`: acknowledged by a node that believes it owns the
    /// slot and that the cluster is well. Where several do, `pick` chooses. The node's name, or
    /// None where nobody takes it.
    pub fn write(
        &mut self,
        cluster: &ClusterName,
        slot: Slot,
        id: u64,
        pick: usize,
    ) -> Option<NodeName> {
        let group = self.groups.get_mut(cluster)?;
        let takers: Vec<u32> = group
            .nodes
            .iter()
            .filter(|(_, node)| self.net.answers(node) && node.cluster_ok)
            .filter(|(_, node)| {
                node.own_row()
                    .is_some_and(|row| row.replica_of.is_none() && row.slots.contains(slot))
            })
            .map(|(number, _)| *number)
            .collect();
        let taker = *takers.get(pick % takers.len().max(1))?;
        let node = group.nodes.get_mut(&taker)?;
        let data = std::sync::Arc::make_mut(&mut node.data);
        data.writes.entry(slot.number()).or_default().insert(id);
        node.offset += 100;
        node.append();
        group.touch(self.net.now_ms);
        Some(NodeName::new(cluster.clone(), taker))
    }

    /// Does the process of this node run?
    fn runs(node: &Node) -> bool {
        node.process != Process::Gone
    }
}

/// What will be seen once `steps` are done and their effects have settled. Steps that real servers
/// would refuse change nothing.
pub fn predict(observed: &Observed, fleet: &Fleet, steps: &[Step]) -> Observed {
    let mut world = World::from_observed(observed, fleet);
    // A refused step has no effect, and the prediction shows that.
    let _ = world.apply_all(steps, fleet);
    world.settle();
    world.observe(&Vantage::default())
}

/// The whole path as predicted: wave after wave until nothing is left to do, `waves_max` at the
/// most. The last one has no steps, unless the limit was reached. Where a wave only waits, the clock is
/// moved on, for ten minutes at the most.
pub fn preview(
    fleet: &Fleet,
    observed: &Observed,
    waves_max: usize,
    plan: impl Fn(&Fleet, &Observed) -> Wave,
) -> Vec<Wave> {
    foresee(fleet, observed, waves_max, plan).0
}

/// What [`preview`] gives, and what will be seen at the end of that path.
pub fn foresee(
    fleet: &Fleet,
    observed: &Observed,
    waves_max: usize,
    plan: impl Fn(&Fleet, &Observed) -> Wave,
) -> (Vec<Wave>, Observed) {
    let mut world = World::from_observed(observed, fleet);
    let mut seen = observed.clone();
    let mut waves = Vec::new();
    let mut waited_ms = 0;
    while waves.len() < waves_max {
        let wave = plan(fleet, &seen);
        if wave.steps.is_empty() {
            let pause_ms = (waited_ms / 4).max(1_000);
            if wave.waiting.is_empty() || waited_ms + pause_ms > PREVIEW_WAIT_MS_MAX {
                waves.push(wave);
                break;
            }
            world.advance(pause_ms);
            waited_ms += pause_ms;
        } else {
            // A refused step has no effect; the next wave shows what the planner makes of it.
            let _ = world.apply_all(&wave.steps, fleet);
            world.advance(ROUND_MS);
            waited_ms = 0;
            waves.push(wave);
        }
        seen = world.observe(&Vantage::default());
    }
    (waves, seen)
}

#[cfg(test)]
mod tests;
