//! The proxy in front of one cluster: its event loops, and a thread that keeps their picture of the
//! cluster current.

pub mod certificates;
pub mod files;
pub mod hot;
pub mod kept;
pub mod metrics;
pub(crate) mod places;
pub mod replicas;
mod slow;
pub mod takeover;
pub mod users;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use proxy::{
    driver::{self, Acceptor, Connector, ListenError, Notice, TlsError, TlsFiles},
    engine::{
        Allowance, Limits, Memory, Micros, NearCache, PoolSetup, Profile, Quota, SlowLog, Users,
    },
    route::{Address, Route, Slots, Topology},
    topology::{self, TopologyError},
};

use self::{
    places::{Listen, Places},
    replicas::{ReadFrom, Reading},
    takeover::Sockets,
    users::{Admission, Members, OwnUser},
};

/// How often the cluster is asked for its slots where nobody complains.
const REFRESH: Duration = Duration::from_secs(2);
/// The pause after each question, however many complain.
const REFRESH_MIN: Duration = Duration::from_millis(20);
/// How long a node may take to answer.
const ASK: Duration = Duration::from_secs(1);
const TIMEOUT: Micros = 5_000_000;
const BACKOFF: (Micros, Micros) = (20_000, 1_000_000);

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where clients without TLS connect.
    pub listen: Vec<Address>,
    pub tls_listen: Option<TlsListen>,
    pub threads: usize,
    /// Nodes to ask first; the others are learned from them.
    pub seeds: Vec<Address>,
    /// How to log in to the nodes.
    pub profile: Profile,
    /// What clients must say in AUTH first; None: nothing.
    pub client_password: Option<String>,
    /// How to speak with the nodes, where not plainly.
    pub tls: Option<Arc<Connector>>,
    pub reading: Reading,
    /// Keys that are read often are answered from memory, which all threads share out among them.
    pub near: Option<NearCache>,
}

/// Where clients have to speak TLS, and with which certificates.
pub type TlsListen = (Vec<Address>, TlsFiles);

/// How clients are served, whatever it is that is served.
#[derive(Debug, Default)]
pub struct Service {
    /// So many clients at once, at all addresses together.
    pub clients_max: Option<usize>,
    /// The sockets of the proxy before this one, where there is one: addresses that it has are not
    /// bound anew.
    pub taken: Sockets,
    /// Clients come through load balancers that say whose a connection is (PROXY protocol).
    pub balanced: bool,
    /// What buffers may hold, of all clients and servers together, in bytes; None: any number.
    pub memory_max: Option<usize>,
    pub slow_log: SlowLogSetup,
    /// What all clients together may ask; how many they may be says `clients_max`.
    pub allowance: Allowance,
    /// One request in so many is looked at for hot and large keys; None: none is.
    pub sample_one_in: Option<u32>,
    /// Users of the proxy's own.
    pub users: Vec<OwnUser>,
}

impl Service {
    /// What loops of so many threads may hold, and share.
    pub(crate) fn limits(&self, threads: usize) -> Limits {
        let allowance = self.allowance;
        Limits {
            memory: Memory::new(self.memory_max.unwrap_or(usize::MAX), threads).into(),
            slow_log: self.slow_log.log(),
            quota: (allowance != Allowance::default()).then(|| Quota::new(allowance).into()),
            sample_one_in: self.sample_one_in,
            ..Limits::default()
        }
    }
}

/// Which requests are noted as slow.
#[derive(Clone, Copy, Debug)]
pub struct SlowLogSetup {
    /// Those that take so long, in µs; None: none are.
    pub slower_than: Option<Micros>,
    /// So many of late.
    pub entries_max: usize,
}

impl Default for SlowLogSetup {
    /// As the engines have it.
    fn default() -> Self {
        Self { slower_than: Some(10_000), entries_max: 128 }
    }
}

impl SlowLogSetup {
    /// For loops that are started now.
    fn log(self) -> Option<Arc<SlowLog>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let log = |slower_than| SlowLog::new(slower_than, self.entries_max, micros(now));
        Some(Arc::new(log(self.slower_than?)))
    }
}

fn micros(span: Duration) -> Micros {
    Micros::try_from(span.as_micros()).unwrap_or(Micros::MAX)
}

/// A proxy that can't start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot start the proxy's threads")]
    Threads(#[from] io::Error),
    #[error("{address} does not tell what its cluster looks like")]
    Topology { address: Address, source: TopologyError },
    #[error("no node to ask")]
    NoSeed,
}

/// A running proxy.
pub struct Proxy {
    loops: Arc<Vec<driver::Running>>,
    places: Places,
    slow_log: Option<Arc<SlowLog>>,
    admission: Admission,
    control: JoinHandle<()>,
    /// Who finds out which replicas serve reads, and its end.
    replicas: Option<(Sender<()>, JoinHandle<()>)>,
    /// Its end is the control thread's.
    end: Sender<Notice>,
}

impl Proxy {
    /// Starts to listen and to serve. With `strict`, a cluster that can't be asked now is an error;
    /// else it is asked again and again.
    pub fn start(setup: Setup, strict: bool) -> Result<Self, ProxyError> {
        Self::start_with(setup, Service::default(), strict)
    }

    /// Likewise, for clients of its choice.
    pub fn start_with(setup: Setup, service: Service, strict: bool) -> Result<Self, ProxyError> {
        let topology = match ask_any(&setup.seeds, &setup) {
            Ok(topology) => Some(topology),
            Err(error) if strict => return Err(error),
            Err(_) => None,
        };
        let Service { clients_max, balanced, .. } = service;
        let share = |near: NearCache| {
            let bytes_max = near.bytes_max / setup.threads.max(1);
            NearCache { bytes_max, ..near }
        };
        let near = setup.near.map(share);
        let limits = Limits { near, ..service.limits(setup.threads) };
        let mut places = Places::new(setup.threads, clients_max, balanced, service.taken);
        let listen = listen(&places, &setup.listen, setup.tls_listen.as_ref())?;
        let wanted = places.prepare(listen)?;
        let (end, notices) = mpsc::channel();
        let (slow_log, quota) = (limits.slow_log.clone(), limits.quota.clone());
        let mut loops = Vec::with_capacity(setup.threads);
        for number in 0..setup.threads {
            let pool = PoolSetup {
                route: Route::Slots(Slots::default()),
                servers: Vec::new(),
                profile: setup.profile.clone(),
                client_password: setup.client_password.clone(),
                // The cluster knows its users, and what each of them may.
                users: Users {
                    own: service.users.iter().map(|user| user.at(&setup.profile)).collect(),
                    passed_on: true,
                },
                timeout: Some(TIMEOUT),
                server_connections: 1,
                backoff_min: BACKOFF.0,
                backoff_max: BACKOFF.1,
            };
            let name = format!("proxy-{number}");
            let (limits, tls) = (limits.clone(), setup.tls.clone());
            loops.push(driver::start(&name, limits, tls, vec![pool], Vec::new(), end.clone())?);
        }
        let loops = Arc::new(loops);
        let pools = vec![(0, setup.profile.clone())];
        let members = Members { users: service.users, pools };
        let admission = Admission::new(&loops, members, quota);
        let replicas = watch_replicas(&loops, &setup)?;
        let mut watch = Watch { loops: Arc::clone(&loops), setup, known: None };
        // Before anybody can ask.
        if let Some(topology) = topology {
            watch.learn(topology);
        }
        places.take(wanted, &loops, |_| Vec::new());
        let control = thread::Builder::new().name("topology".to_owned());
        let control = control.spawn(move || watch.run(&notices))?;
        Ok(Self { loops, places, slow_log, admission, control, replicas, end })
    }

    /// Serves its clients otherwise, and elsewhere, from now on; those that are there stay. On an
    /// error nothing has changed. The slow log stays as it is.
    pub fn change(
        &mut self,
        listen_at: &[Address],
        tls: Option<&TlsListen>,
        clients_max: Option<usize>,
    ) -> Result<(), ProxyError> {
        let wanted = self.places.prepare(listen(&self.places, listen_at, tls)?)?;
        self.places.set_clients_max(clients_max);
        self.places.take(wanted, &self.loops, |_| Vec::new());
        Ok(())
    }

    /// Where it listens, without and with TLS: a port 0 was replaced.
    pub fn listens(&self) -> impl Iterator<Item = (&Address, Option<&Arc<Acceptor>>)> {
        self.places.listens().map(|(_, address, acceptor)| (address, acceptor))
    }

    /// Its figures; they can be asked for as long as it runs.
    pub fn figures(&self) -> metrics::Source {
        metrics::Source {
            loops: Arc::downgrade(&self.loops),
            slow_log: self.slow_log.clone(),
            quotas: self.admission.quotas(),
            pools: None,
        }
    }

    /// Its own users; they can be changed for as long as it runs.
    pub fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// What it listens with, for [`takeover::offer`].
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        self.places.sockets()
    }

    /// Leaves new clients to the proxy that took its sockets over, serves its own for `patience`,
    /// and then ends as with [`Proxy::drain`].
    pub fn hand_over(self, patience: Duration, span: Duration) -> io::Result<()> {
        for each in self.loops.iter() {
            each.hand_over(patience, span);
        }
        self.join()
    }

    /// Ends the loops, with their connections.
    pub fn stop(self) -> io::Result<()> {
        self.drain(Duration::ZERO)
    }

    /// Takes no new clients, answers what those that are there have asked, and ends; after `span`
    /// at the latest.
    pub fn drain(self, span: Duration) -> io::Result<()> {
        for each in self.loops.iter() {
            if span.is_zero() {
                each.stop();
            } else {
                each.drain(span);
            }
        }
        self.join()
    }

    fn join(self) -> io::Result<()> {
        let Self { loops, control, replicas, end, places, .. } = self;
        drop((end, places));
        // It has a share in the loops until the last of their senders is gone.
        let _ = control.join();
        if let Some((end, replicas)) = replicas {
            drop(end);
            let _ = replicas.join();
        }
        for each in Arc::into_inner(loops).into_iter().flatten() {
            each.join()?;
        }
        Ok(())
    }
}

/// The places, for clients of the only pool.
fn listen(
    places: &Places,
    plain: &[Address],
    tls: Option<&TlsListen>,
) -> Result<Vec<Listen>, TlsError> {
    let mut all: Vec<Listen> = plain.iter().cloned().map(Listen::at).collect();
    if let Some((addresses, files)) = tls {
        let acceptor = places.acceptor(files)?;
        let sealed = |address| Listen { tls: Some(Arc::clone(&acceptor)), ..Listen::at(address) };
        all.extend(addresses.iter().cloned().map(sealed));
    }
    Ok(all)
}

/// Where reads go elsewhere than to primaries.
fn watch_replicas(
    loops: &Arc<Vec<driver::Running>>,
    setup: &Setup,
) -> io::Result<Option<(Sender<()>, JoinHandle<()>)>> {
    let reading = setup.reading.clone();
    if reading.from == ReadFrom::Primary {
        return Ok(None);
    }
    let (end, ended) = mpsc::channel();
    let (seeds, profile, tls) = (setup.seeds.clone(), setup.profile.clone(), setup.tls.clone());
    let watch = replicas::Watch { loops: Arc::clone(loops), seeds, profile, tls, reading };
    let thread = thread::Builder::new().name("replicas".to_owned());
    Ok(Some((end, thread.spawn(move || watch.run(&ended))?)))
}

/// Keeps the loops' picture of the cluster current.
struct Watch {
    loops: Arc<Vec<driver::Running>>,
    setup: Setup,
    known: Option<Topology>,
}

impl Watch {
    fn run(mut self, notices: &Receiver<Notice>) {
        loop {
            match notices.recv_timeout(REFRESH) {
                Ok(Notice::Refresh { .. }) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Ok(topology) = self.ask() {
                self.learn(topology);
            }
            // What was complained about until now is answered; what comes from now on isn't.
            while notices.try_recv().is_ok() {}
            thread::sleep(REFRESH_MIN);
        }
    }

    /// A known primary's word, else a seed's.
    fn ask(&self) -> Result<Topology, ProxyError> {
        let known = self.known.iter().flat_map(|topology| &topology.primaries);
        let known = known.map(|primary| Address::clone(&primary.address));
        let nodes: Vec<Address> = known.chain(self.setup.seeds.iter().cloned()).collect();
        ask_any(&nodes, &self.setup)
    }

    fn learn(&mut self, topology: Topology) {
        if self.known.as_ref() == Some(&topology) {
            return;
        }
        tracing::info!(primaries = topology.primaries.len(), "the cluster's slots");
        for each in self.loops.iter() {
            each.set_topology(0, topology.clone());
        }
        self.known = Some(topology);
    }
}

/// The answer of the first node that gives one, else the last one's error.
fn ask_any(nodes: &[Address], setup: &Setup) -> Result<Topology, ProxyError> {
    let mut last = ProxyError::NoSeed;
    for address in nodes {
        match topology::ask(address, &setup.profile, setup.tls.as_deref(), ASK) {
            Ok(topology) => return Ok(topology),
            Err(source) => last = ProxyError::Topology { address: address.clone(), source },
        }
    }
    Err(last)
}
