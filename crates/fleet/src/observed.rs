//! The world as seen at one moment. Each node's own view of the cluster is kept; where views differ,
//! the difference is data: nothing is averaged.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use protocol::{Engine, NodeId, SlotSet};
use serde::Serialize;

use crate::model::{
    Bytes, ClusterName, HostId, NodeName, Ports, ProxyAddress, ProxyName, ProxyService, ProxyStart,
};

/// Everything that was seen. `at_ms` is the observer's clock, milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observed {
    pub at_ms: u64,
    pub hosts: BTreeMap<HostId, HostView>,
    pub nodes: BTreeMap<NodeName, NodeView>,
    pub proxies: BTreeMap<ProxyName, ProxyView>,
    /// Per cluster: steps of the recent past that later ones must keep a distance from.
    pub history: BTreeMap<ClusterName, History>,
}

/// A host as seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostView {
    /// Could its runtime be asked?
    pub reachable: bool,
    /// Physical memory.
    pub memory: Option<Bytes>,
    /// TCP ports that something listens on at the host's address, other than our nodes; with the
    /// process's number for those that a stopped node of ours needs, where it can be found.
    pub ports_taken: BTreeMap<u16, Option<u32>>,
}

/// A node as seen: what its host's runtime says of process and disk, and what the server says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeView {
    pub host: HostId,
    pub address: IpAddr,
    pub ports: Ports,
    pub process: Process,
    /// The process's number on its host, where one was seen.
    pub pid: Option<u32>,
    pub disk: Disk,
    pub server: Server,
    /// Starts in a row that ended before the server answered, as far as this process remembers.
    pub failed_starts: u32,
}

/// A proxy as seen: what its process serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyView {
    pub process: Process,
    pub cluster: ClusterName,
    /// Where it listens for clients without TLS.
    pub listen: Vec<ProxyAddress>,
    #[serde(flatten)]
    pub start: ProxyStart,
    #[serde(flatten)]
    pub service: ProxyService,
    /// The cluster's password is another one than it was started with.
    #[serde(skip)]
    pub stale_password: bool,
    /// None where it wasn't asked, or said nothing.
    pub figures: Option<ProxyFigures>,
}

/// What a proxy has done and does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct ProxyFigures {
    pub clients: u64,
    /// Requests answered since it was started.
    pub requests: u64,
    /// Replies of them that were errors.
    pub errors: u64,
    /// Requests a second, where it was asked twice.
    pub requests_rate: Option<u64>,
}

/// What the runtime knows of a node's process. It is proof where the host is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Process {
    /// There is none: it was never started, stopped, or it died.
    Gone,
    Running,
    /// It exists and is stopped by a signal (SIGSTOP).
    Suspended,
    /// The host can't be asked.
    Unknown,
}

/// What stands in a node's data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// Its own name as `nodes.conf` gives it.
    pub id: Option<NodeId>,
    /// Snapshot and append-only file together; 0 where there is no data to load.
    pub data_bytes: u64,
    /// Part of `data_bytes`: the append-only file.
    pub append_bytes: u64,
}

impl Disk {
    /// Nothing there.
    pub const EMPTY: Self = Self { id: None, data_bytes: 0, append_bytes: 0 };
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// Nothing listens.
    Refused,
    /// No answer within the deadline; the number is for how long so far, in milliseconds.
    Silent {
        for_ms: u64,
    },
    /// Its process runs, and its host has lost the address that it listens at: it reaches nobody, and
    /// nobody reaches it.
    Stranded,
    /// It is reading its data from disk.
    Loading,
    /// It answered with an error that keeps us out (authentication, protected mode, not a cluster).
    Denied {
        error: String,
    },
    Up(Box<Up>),
}

/// An answering server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Up {
    pub id: NodeId,
    pub engine: Engine,
    pub role: Role,
    /// Replication offset: its own where primary, what it has processed where replica. Bytes.
    pub offset: u64,
    /// How many keys it holds.
    pub keys: u64,
    pub memory: Memory,
    /// Its own verdict: `cluster_state:ok`.
    pub cluster_ok: bool,
    /// The cluster as this node sees it.
    pub table: Arc<Table>,
    /// This node's half-moved slots, by direction and peer.
    pub open: BTreeMap<OpenSlots, SlotSet>,
    /// The directives that the fleet cares for, as CONFIG GET gives them, normalised.
    pub config: BTreeMap<String, String>,
    /// The users that the spec wants are loaded, and nobody changed them since.
    pub users_current: bool,
    /// Seconds since it started.
    pub uptime_s: u64,
}

/// A server's role by its own word (ROLE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Replica {
        /// Whom it copies.
        of: NodeId,
        link: Link,
    },
}

/// A replica's link to its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Link {
    /// Connected, the first copy done.
    InSync,
    /// A full copy is under way.
    Syncing,
    /// Not connected; the number is for how long, in milliseconds.
    Down { for_ms: u64 },
}

/// A server's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Memory {
    pub used: u64,
    pub rss: u64,
    /// 0: no limit.
    pub max: u64,
}

/// One node's view of the cluster, without what differs from moment to moment: equal for nodes that
/// agree, and shared between them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Table {
    pub rows: BTreeMap<NodeId, Row>,
}

/// A node in a view.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Row {
    /// None where the viewer doesn't know it.
    pub ip: Option<IpAddr>,
    pub port: u16,
    /// None: a primary.
    pub replica_of: Option<NodeId>,
    pub config_epoch: u64,
    pub slots: SlotSet,
    pub health: Health,
}

/// What a view says of a node's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Ok,
    /// The viewer alone can't reach it (`fail?`).
    Suspected,
    /// A majority couldn't (`fail`).
    Failed,
    /// Met and not yet known.
    Handshake,
}

/// Which way a half-moved slot goes, and the node at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpenSlots {
    MigratingTo(NodeId),
    ImportingFrom(NodeId),
}

/// What happened to a cluster lately, for pacing. Times are of the observer's clock.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct History {
    /// When shards' primaries changed by our hand, by the primary's id after the change.
    pub handovers_ms: Vec<(NodeId, u64)>,
    /// When a change was tried in vain, by the id of the primary that was to be replaced.
    pub refusals_ms: Vec<(NodeId, u64)>,
    /// Since when the cluster has been continuously calm (I3); None where nobody has kept watch.
    pub calm_since_ms: Option<u64>,
}

impl NodeView {
    /// The answering server.
    pub fn up(&self) -> Option<&Up> {
        match &self.server {
            Server::Up(up) => Some(up),
            _ => None,
        }
    }

    /// The node's own name: from the server, else from its disk.
    pub fn id(&self) -> Option<NodeId> {
        self.up().map(|up| up.id).or(self.disk.id)
    }

    /// The runtime proves that no process runs.
    pub fn proven_dead(&self) -> bool {
        self.process == Process::Gone
    }
}

impl Up {
    pub fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// Its own row, where its view has one.
    pub fn own_row(&self) -> Option<&Row> {
        self.table.rows.get(&self.id)
    }

    /// The slots it believes to own.
    pub fn slots(&self) -> SlotSet {
        self.own_row().map(|row| row.slots.clone()).unwrap_or_default()
    }
}

impl Observed {
    /// The nodes of one cluster.
    pub fn of<'a>(
        &'a self,
        cluster: &'a ClusterName,
    ) -> impl Iterator<Item = (&'a NodeName, &'a NodeView)> + 'a {
        let first = NodeName::new(cluster.clone(), 0);
        self.nodes.range(first..).take_while(move |(name, _)| name.cluster == *cluster)
    }

    /// The node that has this id.
    pub fn by_id(&self, cluster: &ClusterName, id: NodeId) -> Option<(&NodeName, &NodeView)> {
        let first = NodeName::new(cluster.clone(), 0);
        self.nodes
            .range(first..)
            .take_while(|(name, _)| name.cluster == *cluster)
            .find(|(_, view)| view.id() == Some(id))
    }
}
