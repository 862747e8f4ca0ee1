//! An independent judge of waves and worlds. It is written from the invariants and knows nothing of
//! how the planner comes to its decisions: where both agree, two readings of the same text do.
//!
//! [`check_wave`] says which steps must not be done in the world as observed; [`check_world`] says
//! what is not as the spec wants it or as the invariants demand.

mod faults;
mod wave;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use protocol::{NodeId, SlotSet};
use serde::Serialize;

pub use self::{wave::check_wave, world::check_world};
use crate::{
    model::{Cluster, ClusterName, HostId, NodeName},
    observed::{Health, Link, NodeView, Observed, Process, Role, Row, Table, Up},
};

/// What has to hold. I1 to I12 are about plan and guard; the others about what is promised of data
/// and of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Invariant {
    /// No failure domain holds so many primaries that its loss stops the cluster.
    I1QuorumSafe,
    /// A replica stands on another host than its primary.
    I2Apart,
    /// Nothing disruptive unless the cluster is calm.
    I3Calm,
    /// One disruptive step a cluster at a time; handovers of a shard at a distance.
    I4OneAtATime,
    /// No forced failover without proof of death, no repair with owners away.
    I5Proof,
    /// Who comes up empty never becomes primary while a peer of its shard holds data.
    I6Empty,
    /// Only names that are alive nowhere are forgotten.
    I7Forget,
    /// No action where too much can't be seen.
    I8Blind,
    /// A move improves something.
    I10Hysteresis,
    /// Memory limits have room, and hosts have room for the limits.
    I11Memory,
    /// Replicas don't wander by themselves.
    I12Migration,
    /// Planned work loses no data.
    Data,
    /// Servers would refuse it, or it makes no sense.
    Sense,
    /// Every slot has one owner that all agree on, and shards are equal within one slot.
    Slots,
    /// The wanted nodes exist, answer, copy and run with what is wanted.
    Wanted,
}

/// What doesn't hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Violation {
    pub invariant: Invariant,
    pub cluster: ClusterName,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {}: {}", self.invariant, self.cluster, self.what)
    }
}

/// One cluster as the judge reads it.
struct Case<'a> {
    spec: &'a Cluster,
    observed: &'a Observed,
    nodes: BTreeMap<&'a NodeName, &'a NodeView>,
    /// By id, the most credible row: the node's own, else that of the highest epoch.
    rows: BTreeMap<NodeId, &'a Row>,
    violations: Vec<Violation>,
}

impl<'a> Case<'a> {
    fn new(spec: &'a Cluster, observed: &'a Observed) -> Self {
        let nodes: BTreeMap<_, _> = observed.of(&spec.name).collect();
        let mut rows: BTreeMap<NodeId, &Row> = BTreeMap::new();
        let ups = || nodes.values().filter_map(|view| view.up());
        let mut seen: BTreeSet<*const Table> = BTreeSet::new();
        for up in ups() {
            if !seen.insert(Arc::as_ptr(&up.table)) {
                continue;
            }
            for (id, row) in &up.table.rows {
                let known = rows.entry(*id).or_insert(row);
                if row.config_epoch > known.config_epoch {
                    *known = row;
                }
            }
        }
        for up in ups() {
            if let Some(row) = up.own_row() {
                rows.insert(up.id, row);
            }
        }
        Self { spec, observed, nodes, rows, violations: Vec::new() }
    }

    fn blame(&mut self, invariant: Invariant, what: impl Into<String>) {
        self.violations.push(Violation {
            invariant,
            cluster: self.spec.name.clone(),
            what: what.into(),
        });
    }

    fn up(&self, name: &NodeName) -> Option<&'a Up> {
        self.nodes.get(name).and_then(|view| view.up())
    }

    fn ups(&self) -> impl Iterator<Item = (&'a NodeName, &'a Up)> + '_ {
        self.nodes.iter().filter_map(|(name, view)| Some((*name, view.up()?)))
    }

    fn by_id(&self, id: NodeId) -> Option<(&'a NodeName, &'a NodeView)> {
        self.nodes.iter().find(|(_, view)| view.id() == Some(id)).map(|(name, view)| (*name, *view))
    }

    /// The node with this id, or the one whose lost id it must have been.
    fn by_id_or_address(&self, id: NodeId) -> Option<&'a NodeView> {
        if let Some((_, view)) = self.by_id(id) {
            return Some(view);
        }
        let row = self.rows.get(&id)?;
        let here = |view: &NodeView| Some(view.address) == row.ip && view.ports.tcp == row.port;
        self.nodes.values().copied().find(|view| here(view))
    }

    /// The slots that the id owns by the most credible word.
    fn owned(&self, id: NodeId) -> SlotSet {
        self.rows
            .get(&id)
            .filter(|row| row.replica_of.is_none())
            .map(|row| self.uncontested(id, row))
            .unwrap_or_default()
    }

    /// Without what somebody with a higher epoch claims.
    fn uncontested(&self, id: NodeId, row: &Row) -> SlotSet {
        let mut slots = row.slots.clone();
        if slots.is_empty() {
            return slots;
        }
        for (other, rival) in &self.rows {
            if *other != id && rival.replica_of.is_none() && rival.config_epoch > row.config_epoch {
                slots = slots.difference(&rival.slots);
            }
        }
        slots
    }

    /// Every id that owns slots.
    fn owners(&self) -> BTreeMap<NodeId, SlotSet> {
        self.rows
            .keys()
            .map(|id| (*id, self.owned(*id)))
            .filter(|(_, slots)| !slots.is_empty())
            .collect()
    }

    /// Answering nodes that say they copy this id.
    fn replicas_of(&self, primary: NodeId) -> impl Iterator<Item = (&'a NodeName, &'a Up)> + '_ {
        self.ups()
            .filter(move |(_, up)| matches!(up.role, Role::Replica { of, .. } if of == primary))
    }

    /// Nodes that copied this id by the tables, answering or not.
    fn peers_of(&self, primary: NodeId) -> Vec<(&'a NodeName, &'a NodeView)> {
        self.nodes
            .iter()
            .filter(|(_, view)| {
                let told = view.up().map(|up| up.role);
                match (told, view.id()) {
                    (Some(Role::Replica { of, .. }), _) => of == primary,
                    (Some(Role::Primary), _) | (None, None) => false,
                    (None, Some(id)) => {
                        self.rows.get(&id).is_some_and(|row| row.replica_of == Some(primary))
                    }
                }
            })
            .map(|(name, view)| (*name, *view))
            .collect()
    }

    fn in_sync(up: &Up) -> bool {
        matches!(up.role, Role::Replica { link: Link::InSync, .. })
    }

    /// Does this node hold data, in memory or on disk?
    fn holds_data(view: &NodeView) -> bool {
        view.up().map_or(view.disk.data_bytes > 0, |up| up.keys > 0)
    }

    /// The host of the node with this id, by what runs there, else by the address in the tables.
    fn host_of(&self, id: NodeId) -> Option<&'a HostId> {
        self.by_id_or_address(id).map(|view| &view.host)
    }

    /// Nodes of the cluster that answer, have met others, and so have a view that counts.
    fn viewers(&self) -> Vec<(&'a NodeName, &'a Up)> {
        let single = self.nodes.len() == 1;
        self.ups().filter(|(_, up)| single || up.table.rows.len() > 1).collect()
    }

    /// What keeps the cluster from being calm.
    fn unrest(&self) -> Option<String> {
        let viewers = self.viewers();
        let mut first: Option<&Up> = None;
        for (name, up) in viewers {
            if !up.cluster_ok {
                return Some(format!("{name} doesn't say ok"));
            }
            if !up.open.is_empty() {
                return Some(format!("{name} has open slots"));
            }
            for (id, row) in &up.table.rows {
                let owner = row.replica_of.is_none() && !row.slots.is_empty();
                if owner && row.health != Health::Ok {
                    return Some(format!("{name} holds {} for absent", id.short()));
                }
            }
            let owners = |up: &'a Up| {
                let rows = up.table.rows.iter().filter(|(_, row)| !row.slots.is_empty());
                rows.map(|(id, row)| (*id, &row.slots)).collect::<BTreeMap<_, _>>()
            };
            match first {
                None => first = Some(up),
                Some(known) if Arc::ptr_eq(&known.table, &up.table) => {}
                Some(known) if owners(known) == owners(up) => {}
                Some(_) => return Some(format!("{name} sees other owners")),
            }
        }
        None
    }

    /// Names that a process with this name may still live under.
    fn maybe_alive(&self, id: NodeId) -> Option<String> {
        for (name, view) in &self.nodes {
            if view.id() == Some(id) {
                return Some(format!("{name} has that name"));
            }
            let row = self.rows.get(&id);
            let here =
                row.is_some_and(|row| row.ip == Some(view.address) && row.port == view.ports.tcp);
            if view.process == Process::Unknown && view.disk.id.is_none() && here {
                return Some(format!("{name} can't be asked and may have that name"));
            }
        }
        None
    }

    /// How many primaries each host has; the failed ones count.
    fn primaries_by_host(&self) -> BTreeMap<&'a HostId, usize> {
        let mut counts: BTreeMap<&HostId, usize> = BTreeMap::new();
        for id in self.owners().into_keys() {
            if let Some(host) = self.host_of(id) {
                *counts.entry(host).or_default() += 1;
            }
        }
        counts
    }

    fn allowed_hosts(&self) -> BTreeSet<&'a HostId> {
        self.spec.hosts.iter().collect()
    }
}
