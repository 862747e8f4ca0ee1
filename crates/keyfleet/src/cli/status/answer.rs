//! What `keyfleet status --output json` prints.

use std::collections::{BTreeMap, BTreeSet};

use fleet::{
    model::{ClusterName, Fleet, HostId, NodeName, ProxyName},
    observed::{Memory, NodeView, Observed, ProxyView},
    overview::{Overview, State},
    risk::{self, Level, Risk},
};
use protocol::{Engine, NodeId};
use serde::Serialize;

use super::GuardView;

/// The whole document.
#[derive(Serialize)]
pub struct Answer<'a> {
    /// Milliseconds since the Unix epoch.
    at_ms: u64,
    clusters: BTreeMap<&'a ClusterName, Cluster<'a>>,
    /// None for a cluster that keyfleet did not make.
    guard: Option<&'a GuardView>,
}

#[derive(Serialize)]
struct Cluster<'a> {
    /// The worst of the risks; None: all is well.
    level: Option<Level>,
    /// None: the cluster isn't whole as it is.
    hosts_that_may_die: Option<usize>,
    nodes_that_may_die: Option<usize>,
    risks: Vec<Risk>,
    overview: Overview,
    nodes: BTreeMap<&'a NodeName, Node<'a>>,
    proxies: BTreeMap<&'a ProxyName, &'a ProxyView>,
}

#[derive(Serialize)]
struct Node<'a> {
    host: &'a HostId,
    address: String,
    state: State,
    id: Option<NodeId>,
    engine: Option<Engine>,
    keys: Option<u64>,
    /// Replication offset, in bytes.
    offset: Option<u64>,
    /// In bytes.
    memory: Option<Memory>,
    uptime_s: Option<u64>,
}

impl<'a> Answer<'a> {
    pub fn new(
        fleet: Option<&'a Fleet>,
        observed: &'a Observed,
        guard: Option<&'a GuardView>,
    ) -> Self {
        let mut names: BTreeSet<&ClusterName> =
            observed.nodes.keys().map(|name| &name.cluster).collect();
        names.extend(fleet.iter().flat_map(|fleet| fleet.clusters.keys()));
        let cluster = |name: &'a ClusterName| {
            let risks = risk::risks(fleet, observed, name);
            let cluster = Cluster {
                level: risks.iter().map(|risk| risk.level).min(),
                hosts_that_may_die: risk::hosts_that_may_die(observed, name),
                nodes_that_may_die: risk::nodes_that_may_die(observed, name),
                risks,
                overview: Overview::new(observed, name),
                nodes: observed.of(name).map(|(name, view)| (name, Node::new(view))).collect(),
                proxies: observed
                    .proxies
                    .iter()
                    .filter(|(_, view)| view.cluster == *name)
                    .collect(),
            };
            (name, cluster)
        };
        let clusters = names.into_iter().map(cluster).collect();
        Self { at_ms: observed.at_ms, clusters, guard }
    }
}

impl<'a> Node<'a> {
    fn new(view: &'a NodeView) -> Self {
        let up = view.up();
        Self {
            host: &view.host,
            address: std::net::SocketAddr::new(view.address, view.ports.tcp).to_string(),
            state: State::of(view),
            id: view.id(),
            engine: up.map(|up| up.engine),
            keys: up.map(|up| up.keys),
            offset: up.map(|up| up.offset),
            memory: up.map(|up| up.memory),
            uptime_s: up.map(|up| up.uptime_s),
        }
    }
}
