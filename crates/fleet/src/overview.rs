//! A cluster as one picture, put together from what every node says. A node's own word on its role
//! and slots counts most; of nodes that don't answer, the others' tables tell. Where views
//! contradict each other the picture says so (`contested`, `views`) and decides nothing: it is for
//! people, the planner reads [`Observed`] itself.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{NodeId, SlotSet};
use serde::Serialize;

use crate::{
    model::{ClusterName, NodeName},
    observed::{Health, Link, NodeView, Observed, Process, Role, Row, Server, Table},
};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overview {
    /// By lowest slot.
    pub shards: Vec<Shard>,
    /// Nodes that are in no shard: not joined yet, primaries without slots, or dead ones whose
    /// slots others have taken over: no table says which shard they will come back to.
    pub loose: Vec<NodeName>,
    /// Slots that nobody owns.
    pub uncovered: SlotSet,
    /// Slots that two answering primaries claim.
    pub contested: SlotSet,
    /// Half-moved slots of all nodes together.
    pub open: SlotSet,
    /// The nodes by whom they hold for the slots' owners; one group where all agree. The largest group first.
    pub views: Vec<Vec<NodeName>>,
    /// Ids in the tables that are none of the nodes seen.
    pub strangers: BTreeSet<NodeId>,
}

/// A primary that owns slots, and who copies it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shard {
    pub id: NodeId,
    /// None where the owner is none of the nodes seen.
    pub primary: Option<NodeName>,
    pub slots: SlotSet,
    pub replicas: Vec<NodeName>,
}

/// How a node is, whatever it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Answers, and is a primary.
    Primary,
    /// Answers, and its copy is complete and followed up.
    InSync,
    /// Answers, and is making its first copy.
    Syncing,
    /// Answers, and has lost its primary.
    LinkDown { for_ms: u64 },
    /// Reads its data from disk.
    Loading,
    /// Its process runs and nothing listens yet.
    Starting,
    /// Its process exists and answers nobody.
    Hung { for_ms: u64, suspended: bool },
    /// Its process is gone, for certain.
    Dead,
    /// Its process runs at an address that its host has lost.
    Stranded,
    /// No answer, and its host can't be asked why.
    Unreachable,
    /// It answers and keeps us out.
    Denied,
}

impl State {
    /// From what its runtime and its server say.
    pub fn of(view: &NodeView) -> Self {
        match (&view.server, view.process) {
            (Server::Up(up), _) => match up.role {
                Role::Primary => Self::Primary,
                Role::Replica { link: Link::InSync, .. } => Self::InSync,
                Role::Replica { link: Link::Syncing, .. } => Self::Syncing,
                Role::Replica { link: Link::Down { for_ms }, .. } => Self::LinkDown { for_ms },
            },
            (Server::Loading, _) => Self::Loading,
            (Server::Denied { .. }, _) => Self::Denied,
            (_, Process::Gone) => Self::Dead,
            (Server::Stranded, _) => Self::Stranded,
            (Server::Silent { for_ms }, Process::Running) => {
                Self::Hung { for_ms: *for_ms, suspended: false }
            }
            (Server::Silent { for_ms }, Process::Suspended) => {
                Self::Hung { for_ms: *for_ms, suspended: true }
            }
            (Server::Refused, Process::Suspended) => Self::Hung { for_ms: 0, suspended: true },
            (Server::Refused, Process::Running) => Self::Starting,
            (_, Process::Unknown) => Self::Unreachable,
        }
    }

    /// Holds a complete copy that clients can use or that can take over without loss.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Primary | Self::InSync)
    }
}

impl Overview {
    pub fn new(observed: &Observed, cluster: &ClusterName) -> Self {
        let nodes: BTreeMap<&NodeName, &NodeView> = observed.of(cluster).collect();
        let names: BTreeMap<NodeId, &NodeName> =
            nodes.iter().filter_map(|(name, view)| Some((view.id()?, *name))).collect();
        let rows = rows(&nodes);

        let mut shards: BTreeMap<NodeId, SlotSet> = BTreeMap::new();
        let (mut owned, mut contested, mut open) = (SlotSet::new(), SlotSet::new(), SlotSet::new());
        for up in nodes.values().filter_map(|view| view.up()) {
            for slots in up.open.values() {
                open = open.union(slots);
            }
            let slots = up.slots();
            if up.is_primary() && !slots.is_empty() {
                contested = contested.union(&owned.intersection(&slots));
                owned = owned.union(&slots);
                shards.insert(up.id, slots);
            }
        }
        // Who doesn't answer still owns what nobody has taken over; the newest claim counts.
        let answers = |id: &NodeId| {
            names.get(id).and_then(|name| nodes.get(name)).is_some_and(|view| view.up().is_some())
        };
        let mut silent: Vec<(&NodeId, &Row)> = rows
            .iter()
            .filter(|(id, row)| row.replica_of.is_none() && !answers(id))
            .map(|(id, row)| (id, *row))
            .collect();
        silent.sort_by_key(|(id, row)| (std::cmp::Reverse(row.config_epoch), **id));
        for (id, row) in silent {
            let left = row.slots.difference(&owned);
            if !left.is_empty() {
                owned = owned.union(&left);
                shards.insert(*id, left);
            }
        }

        let mut members: BTreeMap<NodeId, Vec<NodeName>> = BTreeMap::new();
        let mut loose = Vec::new();
        for (name, view) in &nodes {
            let id = view.id();
            if id.is_some_and(|id| shards.contains_key(&id)) {
                continue;
            }
            let of = match view.up().map(|up| up.role) {
                Some(Role::Replica { of, .. }) => Some(of),
                Some(Role::Primary) => None,
                None => id.and_then(|id| rows.get(&id)?.replica_of),
            };
            // A replica may still name a primary that has since become one itself.
            let of = of.map(|of| {
                let next = rows.get(&of).and_then(|row| row.replica_of);
                next.filter(|_| !shards.contains_key(&of)).unwrap_or(of)
            });
            match of.filter(|of| shards.contains_key(of)) {
                Some(of) => members.entry(of).or_default().push((*name).clone()),
                None => loose.push((*name).clone()),
            }
        }

        let mut shards: Vec<Shard> = shards
            .into_iter()
            .map(|(id, slots)| Shard {
                id,
                primary: names.get(&id).map(|name| (*name).clone()),
                slots,
                replicas: members.remove(&id).unwrap_or_default(),
            })
            .collect();
        shards.sort_by(|a, b| (&a.slots, a.id).cmp(&(&b.slots, b.id)));
        Self {
            shards,
            loose,
            uncovered: SlotSet::full().difference(&owned),
            contested,
            open,
            views: views(&nodes),
            strangers: rows.keys().filter(|id| !names.contains_key(id)).copied().collect(),
        }
    }
}

/// Of every id the row that knows most: the one with the highest configuration epoch.
fn rows<'a>(nodes: &BTreeMap<&NodeName, &'a NodeView>) -> BTreeMap<NodeId, &'a Row> {
    let mut rows: BTreeMap<NodeId, &Row> = BTreeMap::new();
    let mut seen: BTreeSet<&Table> = BTreeSet::new();
    for up in nodes.values().filter_map(|view| view.up()) {
        if !seen.insert(&up.table) {
            continue;
        }
        for (id, row) in &up.table.rows {
            let newer = rows.get(id).is_none_or(|known| {
                (row.config_epoch, row.slots.len()) > (known.config_epoch, known.slots.len())
            });
            if newer {
                rows.insert(*id, row);
            }
        }
    }
    rows
}

/// Who is there and owns what, by one view: what clients are told. Epochs, suspicions and who copies
/// whom differ for a moment after every change, while the news spreads.
type Owners<'a> = Vec<(NodeId, &'a SlotSet)>;

fn owners(table: &Table) -> Owners<'_> {
    let known = table.rows.iter().filter(|(_, row)| row.health != Health::Handshake);
    known.map(|(id, row)| (*id, &row.slots)).collect()
}

fn views(nodes: &BTreeMap<&NodeName, &NodeView>) -> Vec<Vec<NodeName>> {
    let mut groups: BTreeMap<Owners<'_>, Vec<NodeName>> = BTreeMap::new();
    for (name, view) in nodes {
        if let Some(up) = view.up() {
            groups.entry(owners(&up.table)).or_default().push((*name).clone());
        }
    }
    let mut groups: Vec<Vec<NodeName>> = groups.into_values().collect();
    groups.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    groups
}
