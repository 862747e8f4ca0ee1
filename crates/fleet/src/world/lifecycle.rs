//! Processes that are made, started, stopped and removed.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{Engine, EngineKind, NodeId, Version, config_value::normalise_value};

use super::{
    Group, Net, Node, ROUND_MS, Sync, World,
    apply::{Refused, refuse},
    node::{Directory, Persistence},
};
use crate::{
    model::{Bytes, Cluster, Fleet, HostId, NodeName, Ports},
    observed::{Process, Table},
};

/// A primary's wait after its start before it takes writes (`CLUSTER_WRITABLE_DELAY`).
const WRITABLE_MS: u64 = 2_000;

/// A name that no other node of the model has.
fn new_id(name: &NodeName, births: u64, now_ms: u64) -> NodeId {
    let mut bytes = [0; 20];
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    let mut mix = |byte: u8| {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        state ^= state >> 29;
    };
    for byte in name.to_string().bytes().chain(births.to_le_bytes()).chain(now_ms.to_le_bytes()) {
        mix(byte);
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        state = (state ^ index as u64).wrapping_mul(0x0000_0100_0000_01b3);
        *byte = (state >> 32) as u8;
    }
    NodeId::from_bytes(bytes)
}

/// Where a new node stands.
pub(super) struct Fresh<'a> {
    pub(super) host: &'a HostId,
    pub(super) address: std::net::IpAddr,
    pub(super) ports: Ports,
    pub(super) births: u64,
}

impl Node {
    /// The spec's engine and configuration, as a start gives them.
    pub(super) fn configure(&mut self, cluster: &Cluster) {
        self.config = wanted_config(cluster);
        self.engine = wanted_engine(cluster, Some(self.engine));
        self.users_current = true;
    }

    pub(super) fn memory_max(&self) -> Bytes {
        Bytes(self.config.get("maxmemory").and_then(|text| text.parse().ok()).unwrap_or(0))
    }
}

/// What the engines have where nobody asks for anything else, of what specs change most.
const DEFAULTS: [(&str, &str); 4] = [
    ("appendonly", "no"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("save", "3600 1 300 100 60 10000"),
];

/// The directives of the spec as CONFIG GET gives them.
pub(super) fn wanted_config(cluster: &Cluster) -> BTreeMap<String, String> {
    let mut config: BTreeMap<String, String> =
        DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    for (name, value) in &cluster.config {
        config.insert(name.clone(), normalise_value(name, &value.joined()));
    }
    config.insert("cluster-node-timeout".to_owned(), cluster.node_timeout_ms.to_string());
    config.insert("cluster-allow-replica-migration".to_owned(), "no".to_owned());
    config
}

fn wanted_engine(cluster: &Cluster, now: Option<Engine>) -> Engine {
    if let Some(engine) = now.filter(|engine| cluster.engine.matches(engine)) {
        return engine;
    }
    let kind = cluster.engine.kind.or(now.map(|engine| engine.kind)).unwrap_or(EngineKind::Redis);
    let version = cluster.engine.version.as_ref().and_then(|want| want.to_string().parse().ok());
    let usual = match kind {
        EngineKind::Redis => Version::new(7, 0, 15),
        EngineKind::Valkey => Version::new(8, 1, 1),
        EngineKind::KeyDb => Version::new(6, 3, 4),
    };
    Engine { kind, version: version.unwrap_or(usual) }
}

impl Group {
    pub(super) fn create(
        &mut self,
        net: &Net,
        cluster: &Cluster,
        name: &NodeName,
        fresh: &Fresh,
    ) -> Result<(), Refused> {
        if !net.host_alive(fresh.host) {
            return refuse(format!("{} can't be asked", fresh.host));
        }
        let mut engine = self.nodes.values().map(|node| node.engine).next();
        if let Some(old) = self.nodes.get(&name.number) {
            if World::runs(old) {
                return refuse(format!("{name} runs already"));
            }
            engine = Some(old.engine);
            let (id, since_ms) = (old.id, old.since_ms);
            self.end(id, since_ms);
        }
        let id = new_id(name, fresh.births, net.now_ms);
        let rows = BTreeMap::from([(id, Node::first_row(fresh.address, fresh.ports))]);
        let mut node = Node {
            host: fresh.host.clone(),
            address: fresh.address,
            ports: fresh.ports,
            process: Process::Running,
            since_ms: net.now_ms,
            loading_until_ms: 0,
            directory: Directory { id: Some(id), data: Arc::default() },
            id,
            data: Arc::default(),
            offset: 0,
            table: Arc::new(Table { rows }),
            current_epoch: 0,
            vote_epoch: 0,
            voted_ms: BTreeMap::new(),
            banned_until_ms: BTreeMap::new(),
            sync: Sync::Down(None),
            open: BTreeMap::new(),
            config: BTreeMap::new(),
            users_current: true,
            failed_starts: 0,
            engine: wanted_engine(cluster, engine),
            cluster_ok: false,
            ok_from_ms: net.now_ms + WRITABLE_MS,
            election_at_ms: None,
            overhead_bytes: Bytes::mib(2).0,
        };
        node.configure(cluster);
        self.numbers.insert(id, name.number);
        self.nodes.insert(name.number, node);
        self.touch(net.now_ms);
        Ok(())
    }

    /// Nobody has that name any more.
    pub(super) fn end(&mut self, id: NodeId, at_ms: u64) {
        self.numbers.remove(&id);
        self.ended_ms.insert(id, at_ms);
    }

    pub(super) fn start(
        &mut self,
        net: &Net,
        cluster: &Cluster,
        name: &NodeName,
        births: u64,
    ) -> Result<(), Refused> {
        let node = self.known(name)?;
        if !net.host_alive(&node.host) {
            return refuse(format!("{name}'s host can't be asked"));
        }
        if World::runs(node) {
            return Ok(());
        }
        node.configure(cluster);
        self.boot(net, name, births);
        Ok(())
    }

    /// A server that starts listens where its host is by the spec.
    pub(super) fn readdress(&mut self, fleet: &Fleet, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(&name.number) else { return };
        let Some(host) = fleet.hosts.get(&node.host) else { return };
        if node.address != host.address {
            node.address = host.address;
            if let Some(row) = Arc::make_mut(&mut node.table).rows.get_mut(&node.id) {
                row.ip = Some(host.address);
            }
        }
    }

    /// The process starts with what its directory holds.
    pub(super) fn boot(&mut self, net: &Net, name: &NodeName, births: u64) {
        let Some(node) = self.nodes.get_mut(&name.number) else { return };
        node.process = Process::Running;
        node.since_ms = net.now_ms;
        node.loading_until_ms = net.now_ms + ROUND_MS;
        node.data = Arc::clone(&node.directory.data);
        node.offset = 0;
        node.sync = Sync::Down(None);
        node.open.clear();
        node.election_at_ms = None;
        node.cluster_ok = false;
        node.ok_from_ms = net.now_ms + WRITABLE_MS;
        node.voted_ms.clear();
        if node.directory.id.is_none() {
            let id = new_id(name, births, net.now_ms);
            let rows = BTreeMap::from([(id, Node::first_row(node.address, node.ports))]);
            node.id = id;
            node.directory.id = Some(id);
            node.table = Arc::new(Table { rows });
            node.current_epoch = 0;
            node.vote_epoch = 0;
            node.banned_until_ms.clear();
            self.numbers.insert(id, name.number);
        }
        self.touch(net.now_ms);
    }

    /// SHUTDOWN: the server saves what it is configured to save.
    pub(super) fn stop(&mut self, net: &Net, name: &NodeName) -> Result<(), Refused> {
        let node = self.known(name)?;
        if !net.host_alive(&node.host) {
            return refuse(format!("{name}'s host can't be asked"));
        }
        if !World::runs(node) {
            return Ok(());
        }
        if !net.answers(node) {
            return refuse(format!("{name} doesn't answer"));
        }
        if node.persistence() != Persistence::Nothing {
            node.directory.data = Arc::clone(&node.data);
        }
        self.kill(net, name.number);
        Ok(())
    }

    pub(super) fn remove(&mut self, net: &Net, name: &NodeName) -> Result<(), Refused> {
        let Some(node) = self.nodes.get(&name.number) else { return Ok(()) };
        if !net.host_alive(&node.host) {
            return refuse(format!("{name}'s host can't be asked"));
        }
        let id = node.id;
        let owns = self.nodes.values().any(|peer| {
            net.answers(peer) && peer.table.rows.get(&id).is_some_and(|row| !row.slots.is_empty())
        });
        if owns {
            return refuse(format!("{name} owns slots"));
        }
        self.forget(net, id)?;
        self.kill(net, name.number);
        self.nodes.remove(&name.number);
        self.end(id, net.now_ms);
        Ok(())
    }
}
