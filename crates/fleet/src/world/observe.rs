//! From what was seen to the model, and back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{NodeId, SlotSet};

use super::{
    Data, Group, Machine, Net, Node, Sync, World,
    lifecycle::wanted_config,
    node::{Directory, Persistence},
};
use crate::{
    model::{Bytes, Fleet, HostId, NodeName},
    observed::{
        Disk, Health, HostView, Link, Memory, NodeView, Observed, Process, Role, Server, Table, Up,
    },
};

/// From where the world is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Vantage {
    /// Hosts that can't be reached from there, though they may be well.
    pub blind: BTreeSet<HostId>,
}

/// A bulk key's size where only bytes are known.
const KEY_BYTES: u64 = 100;

impl World {
    /// The world as it may be behind what was seen. What wasn't seen is taken for what its peers say
    /// of it: a node on a host that can't be asked runs where a peer holds it for well.
    pub fn from_observed(observed: &Observed, fleet: &Fleet) -> Self {
        let mut hosts: BTreeMap<HostId, Machine> = observed
            .hosts
            .iter()
            .map(|(id, view)| {
                let machine = Machine {
                    alive: true,
                    memory: view.memory,
                    ports_taken: view.ports_taken.clone(),
                };
                (id.clone(), machine)
            })
            .collect();
        let mut groups: BTreeMap<_, Group> = fleet
            .clusters
            .iter()
            .map(|(name, cluster)| (name.clone(), Group::new(cluster)))
            .collect();
        let mut heard: BTreeSet<&HostId> = BTreeSet::new();
        for (name, view) in &observed.nodes {
            let Some(cluster) = fleet.clusters.get(&name.cluster) else { continue };
            let Some(group) = groups.get_mut(&name.cluster) else { continue };
            let peers = observed.of(&name.cluster).filter_map(|(_, view)| view.up());
            let node = match &view.server {
                Server::Up(up) => Node::seen(observed.at_ms, view, up),
                _ => Node::guessed(observed.at_ms, name, view, peers, wanted_config(cluster)),
            };
            if World::runs(&node) {
                heard.insert(&view.host);
            }
            if node.directory.id.is_some() || World::runs(&node) {
                group.numbers.insert(node.id, name.number);
            }
            group.nodes.insert(name.number, node);
        }
        for (id, machine) in &mut hosts {
            let reachable = observed.hosts.get(id).is_some_and(|view| view.reachable);
            machine.alive = reachable || heard.contains(id);
        }
        for (name, group) in &mut groups {
            group.find_strangers(observed.at_ms);
            if let Some(history) = observed.history.get(name) {
                group.history = history.clone();
            }
            group.touch(observed.at_ms);
        }
        let net = Net { now_ms: observed.at_ms, hosts, cuts: BTreeMap::new() };
        Self { net, groups, proxies: observed.proxies.clone(), births: 0 }
    }

    /// The world as seen from `vantage`.
    pub fn observe(&self, vantage: &Vantage) -> Observed {
        let blind = |host: &HostId| vantage.blind.contains(host) || !self.net.host_alive(host);
        let hosts = self
            .net
            .hosts
            .iter()
            .map(|(id, machine)| {
                let view = HostView {
                    reachable: !blind(id),
                    memory: machine.memory,
                    ports_taken: machine.ports_taken.clone(),
                };
                (id.clone(), view)
            })
            .collect();
        let mut nodes = BTreeMap::new();
        for (cluster, group) in &self.groups {
            for (number, node) in &group.nodes {
                let view = node.view(self.net.now_ms, blind(&node.host));
                nodes.insert(NodeName::new(cluster.clone(), *number), view);
            }
        }
        let history =
            self.groups.iter().map(|(name, group)| (name.clone(), group.history.clone())).collect();
        let proxies = self.proxies.clone();
        Observed { at_ms: self.net.now_ms, hosts, nodes, proxies, history }
    }
}

impl Group {
    /// Names in tables that belong to no node of ours: those held for well answer, as far as we know.
    fn find_strangers(&mut self, now_ms: u64) {
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        let mut strangers: BTreeSet<NodeId> = BTreeSet::new();
        let mut failed: BTreeSet<NodeId> = BTreeSet::new();
        for node in self.nodes.values() {
            if !World::runs(node) || !seen.insert(Arc::as_ptr(&node.table).addr()) {
                continue;
            }
            for (id, row) in &node.table.rows {
                if row.health == Health::Failed {
                    failed.insert(*id);
                }
                if self.numbers.contains_key(id) {
                    continue;
                }
                if row.health == Health::Ok {
                    strangers.insert(*id);
                } else {
                    self.ended_ms.insert(*id, now_ms.saturating_sub(self.node_timeout_ms));
                }
            }
        }
        for id in failed {
            self.failed_ms.insert(id, now_ms);
        }
        self.strangers = strangers;
    }
}

impl Node {
    fn seen(now_ms: u64, view: &NodeView, up: &Up) -> Self {
        let sync = match up.role {
            Role::Primary => Sync::Down(None),
            Role::Replica { link: Link::InSync, .. } => Sync::InSync,
            Role::Replica { link: Link::Syncing, .. } => {
                Sync::Until { done_ms: now_ms + super::ROUND_MS, down_since_ms: None }
            }
            Role::Replica { link: Link::Down { for_ms }, .. } => {
                Sync::Down(now_ms.checked_sub(for_ms))
            }
        };
        let mut table = Arc::clone(&up.table);
        let role = match up.role {
            Role::Primary => None,
            Role::Replica { of, .. } => Some(of),
        };
        // ROLE and the own row differ for moments only; the server acts by ROLE.
        if table.rows.get(&up.id).is_none_or(|row| row.replica_of != role) {
            let rows = &mut Arc::make_mut(&mut table).rows;
            let row =
                rows.entry(up.id).or_insert_with(|| Self::first_row(view.address, view.ports));
            row.replica_of = role;
            if role.is_some() {
                row.slots = SlotSet::new();
            }
        }
        let data = Data { bulk_keys: up.keys, bulk_bytes: data_bytes(up), ..Data::default() };
        let appends = up.config.get("appendonly").is_some_and(|value| value == "yes");
        let current_epoch =
            table.rows.values().map(|row| row.config_epoch).max().unwrap_or_default();
        let data = Arc::new(data);
        let on_disk =
            if appends { Arc::clone(&data) } else { Arc::new(bulk_of(view.disk.data_bytes)) };
        Self {
            host: view.host.clone(),
            address: view.address,
            ports: view.ports,
            process: Process::Running,
            since_ms: now_ms.saturating_sub(up.uptime_s.saturating_mul(1_000)),
            loading_until_ms: 0,
            directory: Directory { id: Some(up.id), data: on_disk },
            id: up.id,
            offset: up.offset,
            table,
            current_epoch,
            vote_epoch: current_epoch,
            voted_ms: BTreeMap::new(),
            banned_until_ms: BTreeMap::new(),
            sync,
            open: up.open.clone(),
            config: up.config.clone(),
            users_current: up.users_current,
            failed_starts: 0,
            engine: up.engine,
            cluster_ok: up.cluster_ok,
            ok_from_ms: if up.cluster_ok { 0 } else { now_ms },
            election_at_ms: None,
            overhead_bytes: up.memory.used.saturating_sub(data.bytes()),
            data,
        }
    }

    /// A node whose server said nothing: its peers' word, its disk and its process.
    fn guessed<'a>(
        now_ms: u64,
        name: &NodeName,
        view: &NodeView,
        peers: impl Iterator<Item = &'a Up>,
        config: BTreeMap<String, String>,
    ) -> Self {
        let peers: Vec<&Up> = peers.collect();
        // The address tells which row is its own where the disk can't.
        let by_address = || {
            peers.iter().find_map(|up| {
                let mut rows = up.table.rows.iter();
                rows.find(|(_, row)| row.ip == Some(view.address) && row.port == view.ports.tcp)
                    .map(|(id, _)| *id)
            })
        };
        let id = match view.process {
            Process::Unknown => view.disk.id.or_else(by_address),
            _ => view.disk.id,
        };
        let witness = id.and_then(|id| peers.iter().find(|up| up.table.rows.contains_key(&id)));
        let row = id.and_then(|id| witness.and_then(|up| up.table.rows.get(&id)));
        let process = match (view.process, &view.server) {
            (Process::Unknown, _) => match row {
                Some(row) if row.health == Health::Ok => Process::Running,
                _ => Process::Gone,
            },
            (process, _) => process,
        };
        let silent_ms = match view.server {
            Server::Silent { for_ms } => for_ms,
            _ => 0,
        };
        let own = id.unwrap_or_else(|| NodeId::from_bytes([name.number as u8; 20]));
        let table = witness.map_or_else(
            || {
                let rows = BTreeMap::from([(own, Self::first_row(view.address, view.ports))]);
                Arc::new(Table { rows })
            },
            |up| Arc::clone(&up.table),
        );
        let bytes = view.disk.data_bytes;
        let data = Arc::new(bulk_of(bytes));
        Self {
            host: view.host.clone(),
            address: view.address,
            ports: view.ports,
            process,
            since_ms: now_ms.saturating_sub(silent_ms),
            loading_until_ms: 0,
            directory: Directory { id, data: Arc::clone(&data) },
            id: own,
            data,
            offset: 0,
            current_epoch: table.rows.values().map(|row| row.config_epoch).max().unwrap_or(0),
            table,
            vote_epoch: 0,
            voted_ms: BTreeMap::new(),
            banned_until_ms: BTreeMap::new(),
            sync: Sync::Down(None),
            open: BTreeMap::new(),
            config,
            users_current: false,
            failed_starts: view.failed_starts,
            engine: peers.first().map_or(
                protocol::Engine {
                    kind: protocol::EngineKind::Redis,
                    version: protocol::Version::new(7, 0, 15),
                },
                |up| up.engine,
            ),
            cluster_ok: false,
            ok_from_ms: now_ms,
            election_at_ms: None,
            overhead_bytes: Bytes::mib(2).0,
        }
    }

    fn view(&self, now_ms: u64, blind: bool) -> NodeView {
        let silent = Server::Silent { for_ms: now_ms.saturating_sub(self.since_ms) };
        let (process, server) = if blind {
            (Process::Unknown, silent)
        } else {
            let server = match self.process {
                Process::Gone | Process::Unknown => Server::Refused,
                Process::Suspended => silent,
                Process::Running if now_ms < self.loading_until_ms => Server::Loading,
                Process::Running => Server::Up(Box::new(self.answer(now_ms))),
            };
            (self.process, server)
        };
        let disk = if blind {
            Disk::EMPTY
        } else {
            let data_bytes = self.directory.data.bytes();
            let append_bytes =
                if self.persistence() == Persistence::Append { data_bytes } else { 0 };
            Disk { id: self.directory.id, data_bytes, append_bytes }
        };
        NodeView {
            host: self.host.clone(),
            address: self.address,
            ports: self.ports,
            process,
            pid: None,
            disk,
            server,
            failed_starts: self.failed_starts,
        }
    }

    fn answer(&self, now_ms: u64) -> Up {
        let role = self.replica_of().map_or(Role::Primary, |of| {
            let link = match self.sync {
                Sync::InSync => Link::InSync,
                Sync::Until { .. } => Link::Syncing,
                Sync::Down(since_ms) => {
                    // Who never was connected is so for ever.
                    let for_ms = since_ms.map(|since_ms| now_ms.saturating_sub(since_ms));
                    Link::Down { for_ms: for_ms.unwrap_or(u64::MAX) }
                }
            };
            Role::Replica { of, link }
        });
        let used = self.data.bytes() + self.overhead_bytes;
        Up {
            id: self.id,
            engine: self.engine,
            role,
            offset: self.offset,
            keys: self.data.keys(),
            memory: Memory { used, rss: used, max: self.memory_max().0 },
            cluster_ok: self.cluster_ok,
            table: Arc::clone(&self.table),
            open: self.open.clone(),
            config: self.config.clone(),
            users_current: self.users_current,
            uptime_s: now_ms.saturating_sub(self.since_ms) / 1_000,
        }
    }
}

/// What the server's memory holds as data: at least something for each key.
fn data_bytes(up: &Up) -> u64 {
    if up.keys == 0 { 0 } else { up.memory.used.saturating_sub(Bytes::mib(1).0).max(up.keys) }
}

fn bulk_of(bytes: u64) -> Data {
    let bulk_keys = if bytes == 0 { 0 } else { (bytes / KEY_BYTES).max(1) };
    Data { bulk_keys, bulk_bytes: bytes, ..Data::default() }
}
