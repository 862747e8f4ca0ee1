//! A new cluster's primaries, made with their data before any of them runs: each starts from a file that
//! holds its slots' keys, and knows its slots and the others from the first moment.
//!
//! They are made in a directory of their own beside the nodes (`.boot-<cluster>`) and moved from there
//! once all of them are whole, which a mark in it says. What is interrupted before is begun anew, what is
//! interrupted after is gone on with; nobody else makes nodes of the cluster meanwhile
//! ([`Store::is_booting`]).

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet::{
    model::{Cluster, ClusterName, DirectiveValue, Fleet, HostId, NodeName, Ports},
    observed::Observed,
    plan::plan,
    step::Blocked,
    world::foresee,
};
use protocol::{
    Engine, EngineKind, NodeId, SlotSet,
    cluster_text::{ClusterNodes, Flags, NodeRow, NodesConf},
    conf,
};

use super::{Context, StepError, life::Files};
use crate::{
    node_files::NODES_CONF,
    secrets::Secret,
    store::{self, BOOT_READY, Store, StoreError},
};

/// More than a new cluster's path ever takes.
const WAVES_MAX: usize = 1_000;

/// A primary that a new cluster will have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    pub node: NodeName,
    pub host: HostId,
    pub ports: Ports,
    pub slots: SlotSet,
}

/// The primaries of a cluster that isn't there yet, as the planner would have them in the end. What is in the
/// way, where there would be no such cluster.
pub fn seats(
    fleet: &Fleet,
    observed: &Observed,
    cluster: &ClusterName,
) -> Result<Vec<Seat>, Vec<Blocked>> {
    let mut wanted = fleet.clone();
    if let Some(cluster) = wanted.clusters.get_mut(cluster) {
        cluster.stopped = false;
    }
    let (mut waves, end) = foresee(&wanted, observed, WAVES_MAX, |fleet, seen| {
        let mut wave = plan(fleet, seen);
        wave.steps.retain(|step| step.cluster == *cluster);
        wave.blocked.retain(|blocked| blocked.cluster == *cluster);
        wave.waiting.retain(|waiting| waiting.cluster == *cluster);
        wave
    });
    let mut owned = SlotSet::new();
    let mut seats = Vec::new();
    for (node, view) in end.of(cluster) {
        let Some(up) = view.up().filter(|up| up.is_primary() && !up.slots().is_empty()) else {
            continue;
        };
        owned = owned.union(&up.slots());
        let (node, host, slots) = (node.clone(), view.host.clone(), up.slots());
        seats.push(Seat { node, host, ports: view.ports, slots });
    }
    if owned == SlotSet::full() {
        Ok(seats)
    } else {
        Err(waves.pop().map(|wave| wave.blocked).unwrap_or_default())
    }
}

/// Where a new cluster's primaries are made. Whoever has it is the only one.
#[derive(Debug)]
pub struct Cradle {
    cluster: ClusterName,
    directory: PathBuf,
    store: Arc<Store>,
    _lock: File,
}

impl Cradle {
    /// None: somebody else has it.
    pub fn open(store: &Arc<Store>, cluster: &ClusterName) -> Result<Option<Self>, StoreError> {
        let directory = store.boot_dir(cluster);
        store::make_directory(&directory)?;
        let lock = File::open(&directory);
        let lock = lock.map_err(|source| StoreError::new("open", &directory, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::new("lock", &directory, source));
            }
        }
        let (cluster, store) = (cluster.clone(), Arc::clone(store));
        Ok(Some(Self { cluster, directory, store, _lock: lock }))
    }

    /// All is whole and may be moved.
    pub fn is_ready(&self) -> bool {
        self.store.is_booting(&self.cluster)
    }

    /// Makes the nodes' directories with all but their data; their names for themselves and the files
    /// that shall hold the data, in the order of the seats. What is left of an earlier time goes.
    pub fn make(
        &self,
        context: &Context,
        seats: &[Seat],
    ) -> Result<Vec<(NodeId, PathBuf)>, StepError> {
        self.empty()?;
        let cluster = context.cluster(&self.cluster)?;
        let engine = context.engine(&self.cluster)?.engine;
        let ids: Vec<NodeId> = seats.iter().map(|_| new_id()).collect::<Result<_, _>>()?;
        let mut rows = BTreeMap::new();
        let mut data = Vec::new();
        for ((seat, id), epoch) in seats.iter().zip(&ids).zip(1..) {
            let directory = self.directory.join(seat.node.to_string());
            let files = Files::new(context, &seat.node.cluster, &seat.host, seat.ports)?;
            files.write(&directory)?;
            rows.insert(*id, row(*id, epoch, seat, &files));
            data.push((*id, data_file(&directory, cluster, engine)?));
        }
        for (seat, id) in seats.iter().zip(&ids) {
            let mut rows = rows.clone();
            if let Some(row) = rows.get_mut(id) {
                row.flags.myself = true;
            }
            let rows = rows.into_values().collect();
            let table = NodesConf {
                nodes: ClusterNodes { rows, myself: *id, open: Vec::new() },
                current_epoch: seats.len() as u64,
                last_vote_epoch: 0,
            };
            let path = self.directory.join(seat.node.to_string()).join(NODES_CONF);
            store::replace(&path, table.to_string().as_bytes())?;
        }
        Ok(data)
    }

    /// The data is there, too: from now on only this makes nodes of the cluster.
    pub fn set_ready(&self, data: &[PathBuf]) -> Result<(), StoreError> {
        for path in data {
            store::sync_parent(path)?;
        }
        store::replace(&self.directory.join(BOOT_READY), b"")
    }

    /// Moves the nodes to where nodes are; none where somebody has made one of them meanwhile.
    pub fn hand_over(&self) -> Result<(), StepError> {
        let names = store::list(&self.directory)?;
        let moves = names.into_iter().filter_map(|name| {
            let to = self.store.node_dir(&name.parse().ok()?);
            Some((self.directory.join(name), to))
        });
        let moves: Vec<(PathBuf, PathBuf)> = moves.collect();
        if let Some((_, to)) = moves.iter().find(|(_, to)| to.exists()) {
            return Err(StepError::Stale(format!("{} was made meanwhile", to.display())));
        }
        for (from, to) in moves {
            fs::rename(&from, &to).map_err(|error| StoreError::new("move", &from, error))?;
        }
        // On disk before the mark goes that says what is under way.
        store::sync_parent(&self.directory)?;
        Ok(store::remove_directory(&self.directory)?)
    }

    /// Gives up what was made here.
    pub fn discard(&self) -> Result<(), StoreError> {
        store::remove_directory(&self.directory)
    }

    fn empty(&self) -> Result<(), StoreError> {
        // The mark first: without it the rest is nothing.
        store::remove(&self.directory.join(BOOT_READY))?;
        for name in store::list(&self.directory)? {
            let path = self.directory.join(name);
            if path.is_dir() {
                store::remove_directory(&path)?;
            } else {
                store::remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Takes away the files that the nodes of a cluster started from which keeps nothing on disk: a restart
/// later on would bring back what was deleted since.
pub fn forget_data(context: &Context, cluster: &ClusterName) -> Result<(), StepError> {
    let spec = context.cluster(cluster)?;
    if spec.persists() {
        return Ok(());
    }
    for node in context.store.nodes()?.iter().filter(|node| node.cluster == *cluster) {
        store::remove(&context.store.node_dir(node).join(setting(spec, "dbfilename", DATA)))?;
    }
    Ok(())
}

const DATA: &str = "dump.rdb";

fn setting(cluster: &Cluster, name: &str, default: &str) -> String {
    cluster.config.get(name).map_or_else(|| default.to_owned(), DirectiveValue::joined)
}

/// Where a server looks for its data at its start. Makes what stands around it.
///
/// Source: `loadDataFromDisk`. With an append-only file a server reads nothing else; its beginning may be an
/// RDB file. From Redis 7.0 on a manifest names the files.
fn data_file(directory: &Path, cluster: &Cluster, engine: Engine) -> Result<PathBuf, StoreError> {
    if !cluster.appends() {
        return Ok(directory.join(setting(cluster, "dbfilename", DATA)));
    }
    let name = setting(cluster, "appendfilename", "appendonly.aof");
    let in_parts = match engine.kind {
        EngineKind::Redis => engine.version.major >= 7,
        EngineKind::Valkey => true,
        EngineKind::KeyDb => false,
    };
    if !in_parts {
        return Ok(directory.join(name));
    }
    let parts = directory.join(setting(cluster, "appenddirname", "appendonlydir"));
    let base = format!("{name}.1.base.rdb");
    let manifest = conf::render("file", [base.as_str(), "seq", "1", "type", "b"]) + "\n";
    store::replace(&parts.join(format!("{name}.manifest")), manifest.as_bytes())?;
    Ok(parts.join(base))
}

fn new_id() -> Result<NodeId, StoreError> {
    let failed = |source| StoreError::new("read", Path::new("/dev/urandom"), source);
    let digits = Secret::generate().map_err(failed)?;
    let id = digits.expose().get(..40).unwrap_or_default().parse();
    id.map_err(|error| failed(std::io::Error::other(error)))
}

fn row(id: NodeId, config_epoch: u64, seat: &Seat, files: &Files) -> NodeRow {
    NodeRow {
        id,
        ip: files.place.address.to_string(),
        port: seat.ports.tcp,
        bus_port: seat.ports.bus,
        hostname: None,
        flags: Flags { primary: true, ..Flags::default() },
        primary: None,
        ping_sent_ms: 0,
        pong_received_ms: 0,
        config_epoch,
        link_up: true,
        slots: seat.slots.clone(),
    }
}

#[cfg(test)]
mod tests {
    use fleet::{
        model::quorum_safe_max,
        observed::HostView,
        spec::{self, Machine},
    };
    use protocol::Version;

    use super::*;

    fn fleet(hosts: usize, shards: usize, replicas: usize) -> Fleet {
        let hosts = (1..=hosts).map(|host| format!("  h{host}: {{address: 127.0.{host}.1}}\n"));
        let hosts = hosts.collect::<Vec<_>>().concat();
        let text = format!(
            "hosts:\n{hosts}clusters:\n  c:\n    shards: {shards}\n    replicas: {replicas}\n"
        );
        spec::parse(&text, "fleet.yaml", &Machine::default()).unwrap().fleet
    }

    fn nothing(fleet: &Fleet) -> Observed {
        let host = HostView { reachable: true, memory: None, ports_taken: BTreeMap::new() };
        Observed {
            at_ms: 0,
            hosts: fleet.hosts.keys().map(|id| (id.clone(), host.clone())).collect(),
            nodes: BTreeMap::new(),
            proxies: BTreeMap::new(),
            history: BTreeMap::new(),
        }
    }

    #[test]
    fn seats_are_what_the_planner_would_have() {
        let name = ClusterName::new("c");
        for (hosts, shards, replicas) in [(1, 1, 0), (1, 5, 1), (3, 3, 1), (3, 7, 2), (5, 16, 1)] {
            let fleet = fleet(hosts, shards, replicas);
            let seats = seats(&fleet, &nothing(&fleet), &name).unwrap();
            assert_eq!(seats.len(), shards);
            let counts = seats.iter().map(|seat| seat.slots.len());
            assert!(counts.clone().max().unwrap() - counts.clone().min().unwrap() <= 1);
            assert_eq!(counts.sum::<usize>(), 16_384);
            for host in fleet.hosts.keys().filter(|_| hosts > 1) {
                let here = seats.iter().filter(|seat| seat.host == *host).count();
                assert!(here <= quorum_safe_max(shards), "{here} of {shards} on {host}");
            }
        }
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let fleet = fleet(1, 3, 0);
        let mut observed = nothing(&fleet);
        let ports = fleet.clusters.values().next().unwrap().ports;
        let taken = (ports.tcp..ports.tcp + 40).map(|port| (port, None)).collect();
        for host in observed.hosts.values_mut() {
            host.reachable = false;
            host.ports_taken = BTreeMap::clone(&taken);
        }
        let blocked = seats(&fleet, &observed, &ClusterName::new("c")).unwrap_err();
        assert!(!blocked.is_empty());
    }

    #[test]
    fn data_is_where_the_server_looks_for_it() {
        let check = |kind, major, config: &[(&str, &str)], expected: &str| {
            let mut cluster = fleet(1, 1, 0).clusters.into_values().next().unwrap();
            for (name, value) in config {
                cluster.config.insert((*name).to_owned(), DirectiveValue::single(*value));
            }
            let directory =
                std::env::temp_dir().join(format!("keyfleet-boot-{}", std::process::id()));
            let engine = Engine { kind, version: Version::new(major, 0, 0) };
            let path = data_file(&directory, &cluster, engine).unwrap();
            assert_eq!(path.strip_prefix(&directory).unwrap(), Path::new(expected));
            if let Some(parts) = path.parent().filter(|parts| *parts != directory) {
                let files = store::list(parts).unwrap();
                let text = fs::read_to_string(parts.join(&files[0])).unwrap();
                let manifest = protocol::rdb::aof::Manifest::parse(&text).unwrap();
                assert_eq!(parts.join(manifest.base.unwrap().name), path);
                fs::remove_dir_all(&directory).unwrap();
            }
        };
        let (on, off) = (("appendonly", "yes"), ("appendonly", "no"));
        check(EngineKind::Redis, 7, &[off], "dump.rdb");
        check(EngineKind::Redis, 7, &[off, ("dbfilename", "data")], "data");
        check(EngineKind::Redis, 6, &[on], "appendonly.aof");
        check(EngineKind::KeyDb, 6, &[on, ("appendfilename", "my file")], "my file");
        check(EngineKind::Redis, 7, &[on], "appendonlydir/appendonly.aof.1.base.rdb");
        let named = [on, ("appendfilename", "my file"), ("appenddirname", "parts")];
        check(EngineKind::Valkey, 8, &named, "parts/my file.1.base.rdb");
    }
}
