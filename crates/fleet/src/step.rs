//! The steps that change the world. Each is idempotent: done twice it does no more than once.
//! Preconditions are in [`crate::safety`], predicted effects in [`crate::world`].

use std::{collections::BTreeMap, fmt};

use protocol::{NodeId, SlotSet};
use serde::Serialize;

use crate::model::{ClusterName, DirectiveValue, HostId, NodeName, Ports, ProxyName};

/// One thing to do to one cluster, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Step {
    pub cluster: ClusterName,
    pub action: Action,
    /// A sentence for people, without the cluster's name.
    pub why: String,
}

/// See [`Step`]. Nodes are named by our names; ids are given where the servers must be told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Action {
    /// Make a node's directory and configuration and start its server, with no data and a new id.
    /// Whatever stands in the directory is moved aside first.
    CreateNode { node: NodeName, host: HostId, ports: Ports },
    /// Start the server of a node that exists, with the data and the id it has.
    StartNode { node: NodeName },
    /// Make these nodes and the rest of the cluster known to each other.
    Meet { nodes: Vec<NodeName> },
    /// Give primaries their slots in a cluster that has none: (node, slots, configuration epoch).
    AssignSlots { shares: Vec<(NodeName, SlotSet)> },
    /// In a cluster that holds nothing yet, let replicas take their shards over at once, without votes:
    /// (primary, replica). A server that started as a primary refuses writes for its first two
    /// seconds; one that was a replica does not.
    OpenShards { pairs: Vec<(NodeName, NodeName)> },
    /// Make an empty node a replica of a primary.
    Replicate { node: NodeName, primary: NodeName },
    /// Give the primary's role to an in-sync replica, losing nothing (CLUSTER FAILOVER).
    Handover { from: NodeName, to: NodeName },
    /// The primary is proven dead and held down: have this replica elected now (FAILOVER FORCE).
    Promote { dead: NodeName, to: NodeName },
    /// The primary is proven dead and held down, and so are so many others that nobody could vote:
    /// this replica takes its place without votes (FAILOVER TAKEOVER). For caches only (I5).
    TakeOver { dead: NodeName, to: NodeName },
    /// Move slots with their keys between primaries.
    MoveSlots { from: NodeName, to: NodeName, slots: SlotSet },
    /// Close half-moved slots. `owner` keeps or gets them; keys that others hold move there first.
    RepairSlots { owner: NodeName, slots: SlotSet, case: RepairCase },
    /// Remove an id from every node's table.
    Forget { id: NodeId },
    /// Stop a node's server in good order, keep its data.
    StopNode { node: NodeName },
    /// Stop a server that answers nobody (SIGKILL); it is started again by a later step.
    KillNode { node: NodeName },
    /// Stop a server in good order whose host has lost the address that it listens at, and start it where
    /// its host is now.
    Readdress { node: NodeName },
    /// Stop a node that owns nothing any more, forget it everywhere, remove its directory.
    RemoveNode { node: NodeName },
    /// CONFIG SET these directives and write them to the node's file. Limits grow before and shrink
    /// after what they limit.
    SetConfig { node: NodeName, directives: BTreeMap<String, DirectiveValue> },
    /// Load the ACL users of the spec.
    ApplyAcl { node: NodeName },
    /// Start a proxy for plain clients on this machine.
    StartProxy { proxy: ProxyName },
    /// Have a proxy serve otherwise, or elsewhere: its clients stay connected.
    ChangeProxy { proxy: ProxyName },
    /// Stop a proxy: what it has under way is answered first.
    StopProxy { proxy: ProxyName },
    /// Stop and start a replica's (or a lone node's) server with the wanted engine and configuration.
    RestartNode { node: NodeName },
}

impl fmt::Display for Step {
    /// `cache: assign …`: the action, with the cluster's name where the action doesn't tell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = self.action.to_string();
        if !action.contains(self.cluster.as_str()) {
            write!(f, "{}: ", self.cluster)?;
        }
        f.write_str(&action)
    }
}

/// How half-moved slots came to be, which says how to close them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RepairCase {
    /// One side migrating, the other importing: the move was interrupted; finish it.
    FinishMove,
    /// Importing only: bring the keys back to the owner and close.
    ImportingOnly,
    /// Migrating only: nothing left the owner; close. Keys that the target holds move back.
    MigratingOnly,
    /// Two primaries claim it, or the views differ after a move: the owner is told everywhere.
    Claim,
    /// Nobody owns it: its holder, else the primary with the fewest slots, takes it.
    Orphan,
}

/// How much a step disturbs clients and copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Clients don't notice and no copy is away meanwhile: several at once are fine.
    Light,
    /// A role changes or a copy goes away: one at a time in a cluster, only in calm (I3, I4).
    Disruptive,
    /// Mends a fault: comes before anything else and needs no calm.
    Urgent,
}

impl Action {
    pub const fn weight(&self) -> Weight {
        match self {
            Self::CreateNode { .. }
            | Self::Meet { .. }
            | Self::AssignSlots { .. }
            | Self::MoveSlots { .. }
            | Self::SetConfig { .. }
            | Self::ApplyAcl { .. }
            | Self::StopNode { .. }
            | Self::StartProxy { .. }
            | Self::ChangeProxy { .. }
            | Self::StopProxy { .. }
            | Self::Replicate { .. }
            | Self::OpenShards { .. }
            | Self::Forget { .. } => Weight::Light,
            Self::Handover { .. } | Self::RemoveNode { .. } | Self::RestartNode { .. } => {
                Weight::Disruptive
            }
            Self::StartNode { .. }
            | Self::Promote { .. }
            | Self::TakeOver { .. }
            | Self::KillNode { .. }
            | Self::Readdress { .. }
            | Self::RepairSlots { .. } => Weight::Urgent,
        }
    }

    /// It brings what the spec asks for, which can wait; others mend what went wrong. A freeze stops it.
    pub const fn is_planned(&self) -> bool {
        match self {
            Self::AssignSlots { .. }
            | Self::OpenShards { .. }
            | Self::Handover { .. }
            | Self::MoveSlots { .. }
            | Self::StopNode { .. }
            | Self::RemoveNode { .. }
            | Self::SetConfig { .. }
            | Self::ApplyAcl { .. }
            | Self::ChangeProxy { .. }
            | Self::StopProxy { .. }
            | Self::RestartNode { .. } => true,
            // Nodes that are lost are made again, and join.
            Self::CreateNode { .. }
            | Self::Meet { .. }
            | Self::Replicate { .. }
            | Self::Forget { .. }
            | Self::StartNode { .. }
            | Self::StartProxy { .. }
            | Self::Promote { .. }
            | Self::TakeOver { .. }
            | Self::KillNode { .. }
            | Self::Readdress { .. }
            | Self::RepairSlots { .. } => false,
        }
    }

    /// The kebab-case name that JSON output uses.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CreateNode { .. } => "create-node",
            Self::StartNode { .. } => "start-node",
            Self::Meet { .. } => "meet",
            Self::AssignSlots { .. } => "assign-slots",
            Self::OpenShards { .. } => "open-shards",
            Self::Replicate { .. } => "replicate",
            Self::Handover { .. } => "handover",
            Self::Promote { .. } => "promote",
            Self::TakeOver { .. } => "take-over",
            Self::MoveSlots { .. } => "move-slots",
            Self::RepairSlots { .. } => "repair-slots",
            Self::Forget { .. } => "forget",
            Self::StopNode { .. } => "stop-node",
            Self::KillNode { .. } => "kill-node",
            Self::Readdress { .. } => "readdress",
            Self::RemoveNode { .. } => "remove-node",
            Self::SetConfig { .. } => "set-config",
            Self::ApplyAcl { .. } => "apply-acl",
            Self::RestartNode { .. } => "restart-node",
            Self::StartProxy { .. } => "start-proxy",
            Self::ChangeProxy { .. } => "change-proxy",
            Self::StopProxy { .. } => "stop-proxy",
        }
    }
}

impl fmt::Display for Action {
    /// One line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateNode { node, host, ports } => {
                write!(f, "create {node} on {host}, port {}", ports.tcp)
            }
            Self::StartNode { node } => write!(f, "start {node}"),
            Self::Meet { nodes } => match nodes.as_slice() {
                [only] => write!(f, "introduce {only} to the cluster"),
                [first, .., last] => {
                    write!(f, "introduce {} nodes, {first} to {last}", nodes.len())
                }
                [] => f.write_str("introduce nobody"),
            },
            Self::AssignSlots { shares } => write!(f, "assign slots to {} primaries", shares.len()),
            Self::OpenShards { pairs } => write!(f, "open {} empty shards", pairs.len()),
            Self::Replicate { node, primary } => write!(f, "make {node} a replica of {primary}"),
            Self::Handover { from, to } => write!(f, "hand over from {from} to {to}"),
            Self::Promote { dead, to } => write!(f, "promote {to} in place of dead {dead}"),
            Self::TakeOver { dead, to } => {
                write!(f, "promote {to} in place of dead {dead}, without votes")
            }
            Self::MoveSlots { from, to, slots } => {
                write!(f, "move {} slots from {from} to {to}", slots.len())
            }
            Self::RepairSlots { owner, slots, .. } => {
                write!(f, "close {} half-moved slots at {owner}", slots.len())
            }
            Self::Forget { id } => write!(f, "forget {}", id.short()),
            Self::StopNode { node } => write!(f, "stop {node}"),
            Self::KillNode { node } => write!(f, "kill {node}, which hangs"),
            Self::Readdress { node } => write!(f, "restart {node} at its host's new address"),
            Self::RemoveNode { node } => write!(f, "remove {node}"),
            Self::SetConfig { node, directives } => {
                let names: Vec<&str> = directives.keys().map(String::as_str).collect();
                write!(f, "set {} on {node}", names.join(", "))
            }
            Self::ApplyAcl { node } => write!(f, "load the users on {node}"),
            Self::RestartNode { node } => write!(f, "restart {node}"),
            Self::StartProxy { proxy } => write!(f, "start proxy {proxy}"),
            Self::ChangeProxy { proxy } => write!(f, "change proxy {proxy}"),
            Self::StopProxy { proxy } => write!(f, "stop proxy {proxy}"),
        }
    }
}

/// What to do now, and what is wanted and can't be done now.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Wave {
    /// Safe now, in this order where they share a node; else at once.
    pub steps: Vec<Step>,
    pub blocked: Vec<Blocked>,
    /// The fleet isn't as wanted, but time or the cluster itself will mend it: what is waited for.
    pub waiting: Vec<Waiting>,
}

impl Wave {
    /// The world is as the spec wants it.
    pub fn is_done(&self) -> bool {
        self.steps.is_empty() && self.blocked.is_empty() && self.waiting.is_empty()
    }
}

/// A wanted change that isn't safe or possible, and what would make it so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Blocked {
    pub cluster: ClusterName,
    /// What was wanted.
    pub wanted: String,
    /// Why not.
    pub reason: String,
    /// The command or change that mends it.
    pub hint: Option<String>,
}

/// Something that is under way by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Waiting {
    pub cluster: ClusterName,
    /// `cache-4 is copying its primary's data`.
    pub what: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cluster, self.what)
    }
}
