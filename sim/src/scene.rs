//! Small worlds to look at: a healthy cluster, and what can be wrong with it, one change each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use fleet::{
    model::{Bytes, ClusterName, HostId, NodeName, Ports},
    observed::{
        Disk, Health, History, HostView, Link, Memory, NodeView, Observed, OpenSlots, Process,
        Role, Row, Server, Table, Up,
    },
};
use protocol::{Engine, EngineKind, NodeId, SLOT_COUNT, SlotSet, Version};

/// A world of one cluster named `cache`, where nothing else is said. Node n's id is n, eight digits
/// again and again, and its port 7000 + n.
#[derive(Clone, Debug)]
pub struct Scene {
    pub observed: Observed,
}

/// The id of `cache-n`.
pub const fn id(number: u32) -> NodeId {
    let [a, b, c, d] = number.to_be_bytes();
    NodeId::from_bytes([a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d])
}

/// The name `cache-n`.
pub fn name(number: u32) -> NodeName {
    NodeName::new(ClusterName::new("cache"), number)
}

impl Scene {
    /// Nothing exists but the hosts `host-1` to `host-n`, each with an address of its own; a single
    /// host is `this-machine`, at 127.0.0.1.
    pub fn empty(hosts: u32) -> Self {
        let view = HostView {
            reachable: true,
            memory: Some(Bytes::mib(16 * 1024)),
            ports_taken: BTreeMap::new(),
        };
        let hosts = (1..=hosts).map(|host| (host_id(host, hosts), view.clone())).collect();
        let observed = Observed {
            at_ms: 1_800_000_000_000,
            hosts,
            nodes: BTreeMap::new(),
            proxies: BTreeMap::new(),
            history: BTreeMap::new(),
        };
        Self { observed }
    }

    /// A healthy cluster: primaries 1 to `shards`, then their replicas round by round, each round
    /// shifted by one host.
    pub fn healthy(shards: u32, replicas: u32, hosts: u32) -> Self {
        let mut scene = Self::empty(hosts);
        scene.add_healthy(&ClusterName::new("cache"), 0, shards, replicas);
        scene
    }

    /// One more healthy cluster on the same hosts, going on where `before` nodes end. Its node n has
    /// the id and the port of node `before` + n.
    pub fn add_healthy(&mut self, cluster: &ClusterName, before: u32, shards: u32, replicas: u32) {
        let hosts = self.observed.hosts.len() as u32;
        let first = before / (1 + replicas);
        let nodes = (0..=replicas)
            .flat_map(|round| (0..shards).map(move |shard| (round, shard)))
            .map(|(round, shard)| (round, shard, (first + shard + round) % hosts + 1))
            .zip(1..);
        let mut table = Table::default();
        for ((round, shard, host), number) in nodes.clone() {
            let slots = if round == 0 { share(shard, shards) } else { SlotSet::new() };
            let row = Row {
                ip: Some(address(host, hosts)),
                port: ports(before + number).tcp,
                replica_of: (round > 0).then(|| id(before + shard + 1)),
                config_epoch: u64::from(shard) + 1,
                slots,
                health: Health::Ok,
            };
            table.rows.insert(id(before + number), row);
        }
        let table = Arc::new(table);
        for ((round, shard, host), number) in nodes {
            let role = if round == 0 {
                Role::Primary
            } else {
                Role::Replica { of: id(before + shard + 1), link: Link::InSync }
            };
            let id = id(before + number);
            let view = NodeView {
                host: host_id(host, hosts),
                address: address(host, hosts),
                ports: ports(before + number),
                process: Process::Running,
                pid: None,
                disk: Disk { id: Some(id), data_bytes: 4 << 20, append_bytes: 1 << 20 },
                server: Server::Up(Box::new(Up {
                    id,
                    engine: Engine { kind: EngineKind::Redis, version: Version::new(7, 0, 15) },
                    role,
                    offset: 1_000_000,
                    keys: 40_000 + u64::from(shard),
                    memory: Memory { used: 120 << 20, rss: 130 << 20, max: 512 << 20 },
                    cluster_ok: true,
                    table: Arc::clone(&table),
                    open: BTreeMap::new(),
                    config: BTreeMap::new(),
                    users_current: true,
                    uptime_s: 86_400,
                })),
                failed_starts: 0,
            };
            self.observed.nodes.insert(NodeName::new(cluster.clone(), number), view);
        }
        let history = History { calm_since_ms: Some(1_799_999_000_000), ..History::default() };
        self.observed.history.insert(cluster.clone(), history);
    }

    /// The view of `cache-number`, to change it.
    ///
    /// # Panics
    /// Where the scene has no such node.
    pub fn node(&mut self, number: u32) -> &mut NodeView {
        self.observed.nodes.get_mut(&name(number)).expect("a node of the scene")
    }

    /// What the answering server of `cache-number` says, to change it.
    ///
    /// # Panics
    /// Where it doesn't answer.
    pub fn up(&mut self, number: u32) -> &mut Up {
        match &mut self.node(number).server {
            Server::Up(up) => up,
            other => panic!("cache-{number} does not answer: {other:?}"),
        }
    }

    /// Every answering server's table changed in the same way; shared ones stay shared.
    pub fn tables(mut self, change: impl Fn(&mut Table)) -> Self {
        // The old ones are kept until the end, so that no address is used twice.
        let mut changed: BTreeMap<*const Table, (Arc<Table>, Arc<Table>)> = BTreeMap::new();
        for view in self.observed.nodes.values_mut() {
            let Server::Up(up) = &mut view.server else { continue };
            let (_, after) = changed.entry(Arc::as_ptr(&up.table)).or_insert_with(|| {
                let mut table = Table::clone(&up.table);
                change(&mut table);
                (Arc::clone(&up.table), Arc::new(table))
            });
            up.table = Arc::clone(after);
        }
        self
    }

    /// Its process is gone; the others have noticed, and its replicas have lost their link.
    pub fn dead(self, number: u32) -> Self {
        self.all_dead(&[name(number)])
    }

    /// [`Scene::dead`] for several nodes of any cluster.
    pub fn all_dead(mut self, nodes: &[NodeName]) -> Self {
        let mut ids = BTreeSet::new();
        for node in nodes {
            if let Some(view) = self.observed.nodes.get_mut(node) {
                ids.extend(view.id());
                (view.process, view.server) = (Process::Gone, Server::Refused);
            }
        }
        self.lost(&ids)
    }

    /// Its process is stopped by a signal; the others have noticed.
    pub fn suspended(mut self, number: u32, for_ms: u64) -> Self {
        let node = self.node(number);
        (node.process, node.server) = (Process::Suspended, Server::Silent { for_ms });
        self.lost(&BTreeSet::from([id(number)]))
    }

    fn lost(mut self, ids: &BTreeSet<NodeId>) -> Self {
        for view in self.observed.nodes.values_mut() {
            if let Server::Up(up) = &mut view.server
                && let Role::Replica { of, link } = &mut up.role
                && ids.contains(of)
            {
                *link = Link::Down { for_ms: 4_000 };
            }
        }
        self.tables(|table| {
            for id in ids {
                if let Some(row) = table.rows.get_mut(id) {
                    row.health = Health::Failed;
                }
            }
        })
    }

    /// `heir`, a replica, has taken over from `old`, and all know it.
    pub fn failed_over(mut self, old: u32, heir: u32) -> Self {
        self.up(heir).role = Role::Primary;
        self.tables(|table| {
            let slots = table
                .rows
                .get_mut(&id(old))
                .map(|row| std::mem::take(&mut row.slots))
                .unwrap_or_default();
            if let Some(row) = table.rows.get_mut(&id(heir)) {
                row.slots = slots;
                row.replica_of = None;
                row.config_epoch = 100;
            }
        })
    }

    /// `from` has half moved slots to `to`.
    pub fn half_moved(mut self, from: u32, to: u32, slots: &SlotSet) -> Self {
        self.up(from).open.insert(OpenSlots::MigratingTo(id(to)), slots.clone());
        self.up(to).open.insert(OpenSlots::ImportingFrom(id(from)), slots.clone());
        self
    }

    /// `to` has got these slots of `from`, and all know it.
    pub fn moved(self, from: u32, to: u32, slots: &SlotSet) -> Self {
        self.tables(|table| {
            if let Some(row) = table.rows.get_mut(&id(from)) {
                row.slots = row.slots.difference(slots);
            }
            if let Some(row) = table.rows.get_mut(&id(to)) {
                row.slots = row.slots.union(slots);
            }
        })
    }

    /// `cache-number` alone doesn't know `unknown`.
    pub fn blind_spot(mut self, number: u32, unknown: u32) -> Self {
        Arc::make_mut(&mut self.up(number).table).rows.remove(&id(unknown));
        self
    }
}

fn host_id(host: u32, hosts: u32) -> HostId {
    if hosts == 1 { HostId::new("this-machine") } else { HostId::new(format!("host-{host}")) }
}

/// The address of a host by its number from 1, of so many.
pub fn address(host: u32, hosts: u32) -> IpAddr {
    if hosts == 1 {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        let [_, _, high, low] = host.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 77, high, low))
    }
}

fn ports(number: u32) -> Ports {
    let number = number as u16;
    Ports { tcp: 7000 + number, tls: 17_000 + number, bus: 27_000 + number }
}

/// The slots of a shard (from 0) of so many.
pub fn share(shard: u32, shards: u32) -> SlotSet {
    let edge = |shard: u32| (u32::from(SLOT_COUNT) * shard / shards) as u16;
    SlotSet::range(edge(shard), edge(shard + 1) - 1)
}
