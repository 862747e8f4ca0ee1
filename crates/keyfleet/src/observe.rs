//! Asks this machine and the servers what is there.
//!
//! Nothing is averaged and nothing is left out: a node that doesn't answer is in the result with
//! what is known of it. Nodes are found by their directories, and by their processes where somebody
//! removed the directory under a running server.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fleet::{
    model::{Bytes, Cluster, ClusterName, Fleet, HostId, NodeName, Ports, ProxyName},
    observed::{
        Disk, Health, History, HostView, Link, Memory, NodeView, Observed, OpenSlots, Process,
        ProxyView, Role, Row, Server, Table, Up,
    },
    plan::is_calm,
};
use protocol::{
    Engine, NodeId, Slot, SlotSet, Value,
    cluster_text::{self, ClusterNodes, Info, LinkState, NodesConf, OpenDirection},
    config_value::normalise_value,
    resp::ServerError,
};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    admin_client::{ClientError, Commands, Login, Pool},
    execute::loaded_acl,
    node_files::{NODE_CONF, NODES_CONF, Place, acl_digest, default_password, users_acl},
    proxy::kept::{self, State},
    runtimes::process::{self, Found},
    secrets::{OWN_USER, Secret, resolve},
    store::{self, Store, StoreError},
};

/// How long a server may take to answer.
const DEADLINE: Duration = Duration::from_secs(1);
/// Servers that are asked at one time.
const ASKED_MAX: usize = 128;
/// Directives that are looked at beside those of the spec.
const OWNED: [&str; 3] = ["appendonly", "cluster-node-timeout", "maxmemory"];

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Observes one fleet again and again, and remembers between observations what only time tells:
/// since when a node is silent, since when a cluster is calm.
#[derive(Debug)]
pub struct Observer {
    store: Arc<Store>,
    pool: Pool,
    silent_since: BTreeMap<NodeName, Instant>,
    calm_since_ms: BTreeMap<ClusterName, u64>,
    failed_starts: BTreeMap<NodeName, u32>,
    /// What runs where, for questions that not all engines understand.
    engines: BTreeMap<NodeName, Engine>,
    processes: BTreeMap<NodeName, i32>,
    /// When each proxy was last asked, and how many requests it had answered.
    proxy_requests: BTreeMap<ProxyName, (Instant, u64)>,
}

/// One node to be asked.
#[derive(Clone, Debug)]
struct Target {
    name: NodeName,
    address: SocketAddr,
    login: Option<Login>,
    /// Directives whose values are wanted; None: all there are.
    directives: Option<Vec<String>>,
}

impl Observer {
    pub fn new(store: Arc<Store>, pool: Pool) -> Self {
        Self {
            store,
            pool,
            silent_since: BTreeMap::new(),
            calm_since_ms: BTreeMap::new(),
            failed_starts: BTreeMap::new(),
            engines: BTreeMap::new(),
            processes: BTreeMap::new(),
            proxy_requests: BTreeMap::new(),
        }
    }

    /// Everything as it is now. Takes as long as the slowest answer, one second at the most. The
    /// error is of the state directory or of `/proc`; what nodes do wrong is in the result.
    pub async fn observe(&mut self, fleet: &Fleet) -> Result<Observed, StoreError> {
        let nodes_dir = self.store.nodes_dir();
        let (at_ms, started) = (now_ms(), Instant::now());
        let processes = process::scan(&nodes_dir)
            .map_err(|source| StoreError::new("look into", Path::new("/proc"), source))?;
        self.processes = processes.iter().map(|(name, found)| (name.clone(), found.pid)).collect();
        let proof = process::is_proof(&nodes_dir);
        let mut nodes = BTreeMap::new();
        let mut targets = Vec::new();
        let mut logins: BTreeMap<ClusterName, Login> = BTreeMap::new();
        for (name, place) in self.places(fleet, &processes)? {
            let state = match processes.get(&name) {
                Some(found) if found.suspended => Process::Suspended,
                Some(_) => Process::Running,
                None if proof => Process::Gone,
                None => Process::Unknown,
            };
            let stranded = proof && state == Process::Running && process::is_lost(place.address);
            if state != Process::Suspended && !stranded {
                let login = match logins.get(&name.cluster) {
                    Some(login) => login.clone(),
                    None => Login::own(self.store.secret(&name.cluster, OWN_USER)?),
                };
                logins.insert(name.cluster.clone(), login.clone());
                targets.push(self.target(fleet, &name, &place, login));
            }
            let view = NodeView {
                host: place.host,
                address: place.address,
                ports: place.ports,
                process: state,
                pid: processes.get(&name).and_then(|found| found.pid.try_into().ok()),
                disk: disk(&self.store.node_dir(&name)),
                server: if stranded { Server::Stranded } else { Server::Silent { for_ms: 0 } },
                failed_starts: self.failed_starts.get(&name).copied().unwrap_or(0),
            };
            nodes.insert(name, view);
        }
        // Where a password can't be had now, what is loaded is left as it is. Of clusters that are not
        // there nothing is asked: passwords are made when they are first wanted, and looking makes nothing.
        let there: BTreeSet<&ClusterName> = nodes.keys().map(|name| &name.cluster).collect();
        let users: BTreeMap<&ClusterName, Option<String>> = fleet
            .clusters
            .values()
            .filter(|cluster| there.contains(&cluster.name))
            .map(|cluster| {
                let wanted = users_acl(fleet, cluster, &self.store).ok();
                (&cluster.name, wanted.as_deref().map(acl_digest))
            })
            .collect();
        let mut tables = Tables::default();
        for (name, answer) in ask_all(&self.pool, targets).await {
            if let Some(view) = nodes.get_mut(&name) {
                let directory = self.store.node_dir(&name);
                let users = users.get(&name.cluster).and_then(Option::as_deref);
                view.server = server(answer, &mut tables, &directory, users);
            }
        }
        self.remember(&mut nodes, started);
        let proxies = self.proxies(fleet, proof)?;
        let hosts =
            fleet.hosts.iter().map(|(id, host)| (id.clone(), host_view(host.address, &nodes)));
        let mut observed =
            Observed { at_ms, hosts: hosts.collect(), nodes, proxies, history: BTreeMap::new() };
        observed.history = self.history(fleet, &observed)?;
        Ok(observed)
    }

    /// The proxies that were started once.
    fn proxies(
        &self,
        fleet: &Fleet,
        proof: bool,
    ) -> Result<BTreeMap<ProxyName, ProxyView>, StoreError> {
        let directory = self.store.proxies_dir();
        let names = self.store.proxies()?;
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let running = process::scan_proxies(&directory)
            .map_err(|source| StoreError::new("look into", Path::new("/proc"), source))?;
        let mut proxies = BTreeMap::new();
        for name in names {
            let Some(state) = self.store.proxy_state(&name)? else { continue };
            let process = match running.contains_key(&name) {
                true => Process::Running,
                false if proof => Process::Gone,
                false => Process::Unknown,
            };
            let State { cluster, listen, start, service, password, .. } = state;
            // Where it can't be had now, nothing is stale.
            let wanted = fleet.clusters.get(&cluster).and_then(|cluster| {
                let source = default_password(fleet, cluster);
                resolve(&self.store, &cluster.name, "default", &source).ok()
            });
            let stale_password = wanted
                .is_some_and(|wanted| wanted.as_ref().map(Secret::expose) != password.as_deref());
            let figures = None;
            let view =
                ProxyView { process, cluster, listen, start, service, stale_password, figures };
            proxies.insert(name, view);
        }
        Ok(proxies)
    }

    /// What the running proxies say of themselves. How many requests a second is known from the second
    /// time on.
    pub async fn ask_proxies(&mut self, observed: &mut Observed) {
        let running = observed.proxies.iter_mut();
        for (name, view) in running.filter(|(_, view)| view.process == Process::Running) {
            let Some(mut figures) = kept::figures(&self.store.proxy_dir(name)).await else {
                continue;
            };
            let now = (Instant::now(), figures.requests);
            if let Some((then, requests)) = self.proxy_requests.insert(name.clone(), now) {
                let span_ms = u64::try_from((now.0 - then).as_millis()).unwrap_or(u64::MAX);
                let more = figures.requests.saturating_sub(requests);
                figures.requests_rate = more.saturating_mul(1_000).checked_div(span_ms);
            }
            view.figures = Some(figures);
        }
    }

    /// Where each node stands.
    fn places(
        &self,
        fleet: &Fleet,
        processes: &BTreeMap<NodeName, Found>,
    ) -> Result<BTreeMap<NodeName, Place>, StoreError> {
        let mut places = BTreeMap::new();
        for name in self.store.nodes()? {
            let text = store::read(&self.store.node_dir(&name).join(NODE_CONF))?;
            if let Some(place) = text.as_deref().and_then(Place::parse) {
                places.insert(name, place);
            }
        }
        for (name, found) in processes {
            if !places.contains_key(name)
                && let Some(place) = place_of_process(fleet, name, found)
            {
                places.insert(name.clone(), place);
            }
        }
        Ok(places)
    }

    fn target(&self, fleet: &Fleet, name: &NodeName, place: &Place, login: Login) -> Target {
        let several = self.engines.get(name).is_some_and(|engine| engine.dialect().ranges);
        Target {
            name: name.clone(),
            address: SocketAddr::new(place.address, place.ports.tcp),
            login: Some(login),
            directives: several.then(|| directives(fleet.clusters.get(&name.cluster))),
        }
    }

    /// Carries over what was known before, and learns for the next time.
    fn remember(&mut self, nodes: &mut BTreeMap<NodeName, NodeView>, started: Instant) {
        self.silent_since.retain(|name, _| {
            nodes.get(name).is_some_and(|view| matches!(view.server, Server::Silent { .. }))
        });
        self.engines.retain(|name, _| nodes.contains_key(name));
        for (name, view) in nodes {
            match &mut view.server {
                Server::Silent { for_ms } => {
                    let since = self.silent_since.entry(name.clone()).or_insert(started);
                    *for_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                }
                Server::Up(up) => {
                    self.failed_starts.remove(name);
                    self.engines.insert(name.clone(), up.engine);
                }
                _ => {}
            }
        }
    }

    /// The servers' processes that the last look found, by number.
    pub fn processes(&self) -> &BTreeMap<NodeName, i32> {
        &self.processes
    }

    /// A node's server was started and ended before it answered.
    pub fn start_failed(&mut self, node: &NodeName) {
        *self.failed_starts.entry(node.clone()).or_default() += 1;
    }

    fn history(
        &mut self,
        fleet: &Fleet,
        observed: &Observed,
    ) -> Result<BTreeMap<ClusterName, History>, StoreError> {
        let mut histories = BTreeMap::new();
        for (name, cluster) in &fleet.clusters {
            let calm_since_ms = if is_calm(cluster, observed) {
                let since = self.calm_since_ms.entry(name.clone());
                *since.or_insert(observed.at_ms)
            } else {
                self.calm_since_ms.remove(name);
                observed.at_ms
            };
            let handovers_ms = self.store.handovers(name)?;
            let refusals_ms = self.store.refusals(name)?;
            let history = History { handovers_ms, refusals_ms, calm_since_ms: Some(calm_since_ms) };
            histories.insert(name.clone(), history);
        }
        Ok(histories)
    }
}

fn directives(cluster: Option<&Cluster>) -> Vec<String> {
    let config = cluster.into_iter().flat_map(|cluster| cluster.config.keys().map(String::as_str));
    let names: BTreeSet<&str> = config.chain(OWNED).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// A running server whose directory lost its `node.conf`: from where it says that it listens.
fn place_of_process(fleet: &Fleet, name: &NodeName, found: &Found) -> Option<Place> {
    let listens = found.listens?;
    let base = fleet.clusters.get(&name.cluster)?.ports;
    let host = fleet.hosts.values().find(|host| host.address == listens.ip())?;
    let ports = base.at(listens.port().checked_sub(base.tcp)?)?;
    let program = crate::node_files::Program { server: "".into(), library_path: None };
    Some(Place { host: host.id.clone(), address: listens.ip(), ports, program })
}

/// What stands in a node's directory.
pub fn disk(directory: &Path) -> Disk {
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    let nodes = store::read(&directory.join(NODES_CONF)).ok().flatten();
    let nodes = nodes.and_then(|text| text.parse::<NodesConf>().ok());
    let parts = store::list(&directory.join("appendonlydir")).unwrap_or_default();
    let parts = parts.iter().filter(|name| !name.ends_with(".manifest"));
    let parts = parts.map(|name| size(&directory.join("appendonlydir").join(name)));
    let append_bytes = parts.sum::<u64>() + size(&directory.join("appendonly.aof"));
    Disk {
        id: nodes.map(|nodes| nodes.nodes.myself),
        data_bytes: append_bytes + size(&directory.join("dump.rdb")),
        append_bytes,
    }
}

fn host_view(address: IpAddr, nodes: &BTreeMap<NodeName, NodeView>) -> HostView {
    let ports = |gone: bool| -> BTreeSet<u16> {
        let here = nodes.values().filter(|view| view.address == address);
        here.filter(|view| (view.process == Process::Gone) == gone)
            .flat_map(|view| [view.ports.tcp, view.ports.tls, view.ports.bus])
            .collect()
    };
    let (ours, wanted) = (ports(false), ports(true));
    let listening = process::listening(address).unwrap_or_default();
    HostView {
        reachable: process::is_local(address),
        memory: process::memory().map(Bytes),
        ports_taken: listening
            .into_iter()
            .filter(|(port, _)| !ours.contains(port))
            .map(|(port, socket)| (port, wanted.contains(&port).then_some(socket)))
            .map(|(port, socket)| (port, socket.and_then(process::holder)))
            .collect(),
    }
}

/// A server's answers to one round of questions.
type Answer = Result<Vec<Value>, ClientError>;

async fn ask_all(pool: &Pool, targets: Vec<Target>) -> Vec<(NodeName, Answer)> {
    let permits = Arc::new(Semaphore::new(ASKED_MAX));
    let mut tasks = JoinSet::new();
    for target in targets {
        let (pool, permits) = (pool.clone(), permits.clone());
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await;
            let commands = questions(&target);
            let login = target.login.as_ref();
            (target.name, pool.ask(target.address, login, DEADLINE, &commands).await)
        });
    }
    tasks.join_all().await
}

/// In the order in which [`server`] takes the answers.
fn questions(target: &Target) -> Commands {
    let mut commands = Commands::new();
    commands
        .push(["INFO"])
        .push(["ROLE"])
        .push(["CLUSTER", "INFO"])
        .push(["CLUSTER", "NODES"])
        .push(["ACL", "LIST"]);
    match &target.directives {
        Some(names) => {
            commands.push(["CONFIG", "GET"].into_iter().chain(names.iter().map(String::as_str)))
        }
        // Engines before Redis 7.0 take one pattern only.
        None => commands.push(["CONFIG", "GET", "*"]),
    };
    commands
}

fn server(answer: Answer, tables: &mut Tables, directory: &Path, users: Option<&str>) -> Server {
    let replies = match answer {
        Ok(replies) => replies,
        Err(ClientError::Refused { .. }) => return Server::Refused,
        // It closed the connection: it is just ending, or it has no connection left for us.
        Err(ClientError::Silent { .. } | ClientError::Broken { .. }) => {
            return Server::Silent { for_ms: 0 };
        }
        Err(ClientError::Server { source, .. }) if source.code == "LOADING" => {
            return Server::Loading;
        }
        Err(error) => return Server::Denied { error: error.to_string() },
    };
    match up(&replies, tables, directory, users) {
        Ok(up) => Server::Up(Box::new(up)),
        Err(Trouble::Loading) => Server::Loading,
        Err(Trouble::Denied(error)) => Server::Denied { error },
    }
}

enum Trouble {
    Loading,
    Denied(String),
}

fn up(
    replies: &[Value],
    tables: &mut Tables,
    directory: &Path,
    users: Option<&str>,
) -> Result<Up, Trouble> {
    let [info, role, cluster_info, nodes, acl, config] = replies else {
        return Err(Trouble::Denied("it gave too few answers".to_owned()));
    };
    for reply in [info, role, cluster_info, nodes] {
        if let Value::Error(text) = reply {
            let error = ServerError::parse(text);
            return Err(if error.code == "LOADING" {
                Trouble::Loading
            } else {
                Trouble::Denied(error.to_string())
            });
        }
    }
    let denied = |error: String| Trouble::Denied(error);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let info = Info::from_reply(info).ok_or_else(|| denied("INFO is no text".to_owned()))?;
    if info.flag("loading") == Some(true) || info.flag("async_loading") == Some(true) {
        return Err(Trouble::Loading);
    }
    let engine = Engine::from_info(&info).map_err(|error| denied(error.to_string()))?;
    let cluster_info = Info::from_reply(cluster_info).unwrap_or_default();
    let nodes: ClusterNodes =
        text(nodes).parse().map_err(|error| denied(cluster_text::NodesError::to_string(&error)))?;
    let role = cluster_text::Role::from_reply(role).map_err(|error| denied(error.to_string()))?;
    let (role, offset) = role_of(&role, &nodes, &info);
    let number = |name: &str| info.u64(name).unwrap_or(0);
    Ok(Up {
        id: nodes.myself,
        engine,
        role,
        offset,
        keys: info.keyspace().keys,
        memory: Memory {
            used: number("used_memory"),
            rss: number("used_memory_rss"),
            max: number("maxmemory"),
        },
        cluster_ok: cluster_info.get("cluster_state") == Some("ok"),
        open: open_slots(&nodes),
        table: tables.shared(&nodes),
        config: config_of(config),
        users_current: loaded_acl(directory, acl)
            .is_some_and(|loaded| users.is_none_or(|wanted| wanted == loaded)),
        uptime_s: number("uptime_in_seconds"),
    })
}

fn role_of(role: &cluster_text::Role, nodes: &ClusterNodes, info: &Info) -> (Role, u64) {
    match role {
        cluster_text::Role::Replica { link, offset, .. } => {
            let of = nodes.my_row().and_then(|row| row.primary).unwrap_or(nodes.myself);
            let link = match link {
                LinkState::Connected => Link::InSync,
                LinkState::Sync => Link::Syncing,
                _ => {
                    // -1: it never was connected, so it never had its primary's data.
                    let seconds = match info.get("master_link_down_since_seconds") {
                        Some(text) => text.parse().unwrap_or(u64::MAX),
                        None => 0,
                    };
                    Link::Down { for_ms: seconds.saturating_mul(1000) }
                }
            };
            (Role::Replica { of, link }, u64::try_from(*offset).unwrap_or(0))
        }
        cluster_text::Role::Primary { offset, .. } => (Role::Primary, *offset),
        cluster_text::Role::Sentinel => (Role::Primary, 0),
    }
}

fn open_slots(nodes: &ClusterNodes) -> BTreeMap<OpenSlots, SlotSet> {
    let mut open: BTreeMap<OpenSlots, Vec<Slot>> = BTreeMap::new();
    for slot in &nodes.open {
        let way = match slot.direction {
            OpenDirection::Migrating => OpenSlots::MigratingTo(slot.peer),
            OpenDirection::Importing => OpenSlots::ImportingFrom(slot.peer),
        };
        open.entry(way).or_default().push(slot.slot);
    }
    open.into_iter().map(|(way, slots)| (way, slots.into_iter().collect())).collect()
}

/// Empty where the server refused to tell.
fn config_of(reply: &Value) -> BTreeMap<String, String> {
    let pairs = reply.pairs().unwrap_or_default().into_iter();
    pairs
        .filter_map(|(name, value)| {
            let name = name.as_str()?.to_ascii_lowercase();
            let value = normalise_value(&name, value.as_str()?);
            Some((name, value))
        })
        .collect()
}

/// Views that were seen in this observation. Equal ones are kept once.
#[derive(Default)]
struct Tables {
    seen: HashSet<Arc<Table>>,
}

impl Tables {
    fn shared(&mut self, nodes: &ClusterNodes) -> Arc<Table> {
        let table = table(nodes);
        if let Some(same) = self.seen.get(&table) {
            return Arc::clone(same);
        }
        let table = Arc::new(table);
        self.seen.insert(Arc::clone(&table));
        table
    }
}

fn table(nodes: &ClusterNodes) -> Table {
    let rows = nodes.rows.iter().map(|row| {
        let flags = row.flags;
        let health = if flags.handshake {
            Health::Handshake
        } else if flags.fail {
            Health::Failed
        } else if flags.pfail {
            Health::Suspected
        } else {
            Health::Ok
        };
        let ip = if flags.noaddr { None } else { row.ip.parse().ok() };
        let row_seen = Row {
            ip,
            port: row.port,
            replica_of: row.primary,
            config_epoch: row.config_epoch,
            slots: row.slots.clone(),
            health,
        };
        (row.id, row_seen)
    });
    Table { rows: rows.collect() }
}

/// A cluster that keyfleet did not make can't be observed.
#[derive(Debug, thiserror::Error)]
pub enum ForeignError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{address} is no cluster node: {problem}")]
    NoCluster { address: SocketAddr, problem: String },
}

/// The cluster that a node at this address belongs to, by asking every node that it knows. Nodes
/// are called `cluster-1` and so on, by address; nothing is known of their processes and disks.
/// Only reads.
pub async fn observe_foreign(
    seed: SocketAddr,
    login: Option<&Login>,
) -> Result<Observed, ForeignError> {
    let pool = Pool::new();
    let reply = pool.call(seed, login, DEADLINE, ["CLUSTER", "NODES"]).await?;
    let no_cluster = |problem: String| ForeignError::NoCluster { address: seed, problem };
    let text = reply.as_str().unwrap_or_default();
    let known: ClusterNodes =
        text.parse().map_err(|error: cluster_text::NodesError| no_cluster(error.to_string()))?;
    let mut rows: Vec<(SocketAddr, Ports, NodeId)> = Vec::new();
    for row in &known.rows {
        let ip = if row.flags.myself { Some(seed.ip()) } else { row.ip.parse().ok() };
        // One that is only being met, or whose address is lost, can't be asked.
        let (Some(ip), false) = (ip, row.flags.handshake || row.flags.noaddr) else { continue };
        let ports = Ports { tcp: row.port, tls: 0, bus: row.bus_port };
        rows.push((SocketAddr::new(ip, row.port), ports, row.id));
    }
    rows.sort_unstable_by_key(|(address, _, id)| (*address, *id));
    let cluster = ClusterName::new("cluster");
    let mut observed = Observed {
        at_ms: now_ms(),
        hosts: BTreeMap::new(),
        nodes: BTreeMap::new(),
        proxies: BTreeMap::new(),
        history: BTreeMap::new(),
    };
    let mut targets = Vec::new();
    for (number, (address, ports, id)) in (1..).zip(rows) {
        let name = NodeName::new(cluster.clone(), number);
        let host = HostId::new(address.ip().to_string());
        let host_view = HostView { reachable: true, memory: None, ports_taken: BTreeMap::new() };
        observed.hosts.insert(host.clone(), host_view);
        let view = NodeView {
            host,
            address: address.ip(),
            ports,
            process: Process::Unknown,
            pid: None,
            disk: Disk { id: Some(id), ..Disk::EMPTY },
            server: Server::Silent { for_ms: 0 },
            failed_starts: 0,
        };
        observed.nodes.insert(name.clone(), view);
        targets.push(Target { name, address, login: login.cloned(), directives: None });
    }
    let mut tables = Tables::default();
    for (name, answer) in ask_all(&pool, targets).await {
        if let Some(view) = observed.nodes.get_mut(&name) {
            view.server = server(answer, &mut tables, Path::new(""), None);
        }
    }
    Ok(observed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:7001@17001 \
                         myself,master - 0 0 1 connected 0-99 \
                         [100->-67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1]\n\
                         67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 127.0.0.1:7002@17002 \
                         slave,fail? 07c37dfeb235213a872192d90877d0cd55635b91 0 0 1 connected\n";

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.into())
    }

    fn replies() -> Vec<Value> {
        let role = Value::Array(vec![bulk("master"), Value::Integer(7), Value::Array(vec![])]);
        let config = Value::Array(vec![bulk("MaxMemory"), bulk("1024")]);
        vec![
            bulk("redis_version:7.0.15\r\ndb0:keys=3,expires=0\r\nused_memory:10\r\n"),
            role,
            bulk("cluster_state:ok\r\n"),
            bulk(NODES),
            Value::Array(vec![]),
            config,
        ]
    }

    fn seen(answer: Answer) -> Server {
        server(answer, &mut Tables::default(), Path::new("/nonexistent"), None)
    }

    #[test]
    fn what_answers_mean() {
        let check = |index: usize, reply: &str, expected: fn(&Server) -> bool| {
            let mut replies = replies();
            replies[index] = Value::Error(reply.to_owned());
            let server = seen(Ok(replies));
            assert!(expected(&server), "{reply}: {server:?}");
        };
        let denied = |server: &Server| matches!(server, Server::Denied { .. });
        let loading = |server: &Server| matches!(server, Server::Loading);
        let up = |server: &Server| matches!(server, Server::Up(_));
        check(0, "NOAUTH Authentication required.", denied);
        check(3, "LOADING Redis is loading the dataset in memory", loading);
        check(3, "ERR This instance has cluster support disabled", denied);
        // What isn't told is not known; the rest is.
        check(4, "NOPERM no", up);
        check(5, "NOPERM no", up);
        assert!(denied(&seen(Ok(vec![]))));
    }

    #[test]
    fn an_answering_node() {
        let Server::Up(up) = seen(Ok(replies())) else { panic!() };
        assert_eq!((up.role, up.offset, up.keys, up.memory.used), (Role::Primary, 7, 3, 10));
        assert!(up.cluster_ok);
        assert_eq!(up.config["maxmemory"], "1024");
        let peer = "67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1".parse().unwrap();
        assert_eq!(up.open[&OpenSlots::MigratingTo(peer)].to_string(), "100");
        assert_eq!(up.table.rows[&peer].health, Health::Suspected);
        assert_eq!(up.table.rows[&peer].replica_of, Some(up.id));
        assert_eq!(up.slots().to_string(), "0-99");
        assert!(!up.users_current);
    }

    #[test]
    fn equal_tables_are_kept_once() {
        let mut tables = Tables::default();
        let nodes: ClusterNodes = NODES.parse().unwrap();
        assert!(Arc::ptr_eq(&tables.shared(&nodes), &tables.shared(&nodes)));
        let moved: ClusterNodes = NODES.replace("0-99", "0-98").parse().unwrap();
        assert!(!Arc::ptr_eq(&tables.shared(&nodes), &tables.shared(&moved)));
    }
}
