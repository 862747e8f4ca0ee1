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

/// A world of one cluster named `cache`. Node n's id is n repeated, and its port 7000 + n.
#[derive(Clone, Debug)]
pub struct Scene {
    pub observed: Observed,
}

/// The id of `cache-n`.
pub const fn id(number: u32) -> NodeId {
    NodeId::from_bytes([number as u8; 20])
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
            ports_taken: BTreeSet::new(),
        };
        let hosts = (1..=hosts).map(|host| (host_id(host, hosts), view.clone())).collect();
        let observed = Observed {
            at_ms: 1_800_000_000_000,
            hosts,
            nodes: BTreeMap::new(),
            history: BTreeMap::new(),
        };
        Self { observed }
    }

    /// A healthy cluster: primaries 1 to `shards`, then their replicas round by round, each round
    /// shifted by one host.
    pub fn healthy(shards: u32, replicas: u32, hosts: u32) -> Self {
        let mut scene = Self::empty(hosts);
        let mut table = Table::default();
        for round in 0..=replicas {
            for shard in 0..shards {
                let number = round * shards + shard + 1;
                let host = (shard + round) % hosts + 1;
                let slots = if round == 0 { share(shard, shards) } else { SlotSet::new() };
                let row = Row {
                    ip: Some(address(host, hosts)),
                    port: ports(number).tcp,
                    replica_of: (round > 0).then(|| id(shard + 1)),
                    config_epoch: u64::from(shard) + 1,
                    slots,
                    health: Health::Ok,
                };
                table.rows.insert(id(number), row);
            }
        }
        let table = Arc::new(table);
        for round in 0..=replicas {
            for shard in 0..shards {
                let number = round * shards + shard + 1;
                let host = (shard + round) % hosts + 1;
                let role = if round == 0 {
                    Role::Primary
                } else {
                    Role::Replica { of: id(shard + 1), link: Link::InSync }
                };
                let view = NodeView {
                    host: host_id(host, hosts),
                    address: address(host, hosts),
                    ports: ports(number),
                    process: Process::Running,
                    disk: Disk { id: Some(id(number)), data_bytes: 4 << 20, append_bytes: 1 << 20 },
                    server: Server::Up(Box::new(Up {
                        id: id(number),
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
                scene.observed.nodes.insert(name(number), view);
            }
        }
        let history = History { calm_since_ms: Some(1_799_999_000_000), ..History::default() };
        scene.observed.history.insert(ClusterName::new("cache"), history);
        scene
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

    /// Every answering server's table changed in the same way.
    pub fn tables(mut self, change: impl Fn(&mut Table)) -> Self {
        for view in self.observed.nodes.values_mut() {
            if let Server::Up(up) = &mut view.server {
                change(Arc::make_mut(&mut up.table));
            }
        }
        self
    }

    /// Its process is gone; the others have noticed, and its replicas have lost their link.
    pub fn dead(mut self, number: u32) -> Self {
        let node = self.node(number);
        (node.process, node.server) = (Process::Gone, Server::Refused);
        self.lost(number)
    }

    /// Its process is stopped by a signal; the others have noticed.
    pub fn suspended(mut self, number: u32, for_ms: u64) -> Self {
        let node = self.node(number);
        (node.process, node.server) = (Process::Suspended, Server::Silent { for_ms });
        self.lost(number)
    }

    fn lost(mut self, number: u32) -> Self {
        for view in self.observed.nodes.values_mut() {
            if let Server::Up(up) = &mut view.server
                && let Role::Replica { of, link } = &mut up.role
                && *of == id(number)
            {
                *link = Link::Down { for_ms: 4_000 };
            }
        }
        self.tables(|table| {
            if let Some(row) = table.rows.get_mut(&id(number)) {
                row.health = Health::Failed;
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

fn address(host: u32, hosts: u32) -> IpAddr {
    if hosts == 1 {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, host as u8))
    }
}

fn ports(number: u32) -> Ports {
    let number = number as u16;
    Ports { tcp: 7000 + number, tls: 17_000 + number, bus: 27_000 + number }
}

fn share(shard: u32, shards: u32) -> SlotSet {
    let edge = |shard: u32| (u32::from(SLOT_COUNT) * shard / shards) as u16;
    SlotSet::range(edge(shard), edge(shard + 1) - 1)
}
