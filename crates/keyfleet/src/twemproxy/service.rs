//! The pools of a nutcracker.yml, at work.

use std::{
    io, mem,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, mpsc},
    time::{Duration, Instant},
};

use fleet::spec::nutcracker::Pool;
use proxy::{
    driver::{self, Acceptor, Connector, ListenError, Running, TlsError, TlsFiles},
    engine::SlowLog,
    route::{Address, EjectionMode},
};

use super::pools::{Figures, listen_address, listen_mode, profile, setup};
use crate::proxy::{
    self as front, ProxyError,
    metrics::{self, PoolNames},
    places::{Listen, Places},
    users::{Admission, Members},
};

/// How long a loop may take to say what it is at.
const REPORT: Duration = Duration::from_secs(1);

/// What the file doesn't say.
#[derive(Debug)]
pub struct Options {
    /// Each has connections of its own to the servers, and ejects them by what it sees itself.
    pub threads: usize,
    /// Who serves the keys of ejected servers.
    pub ejected: EjectionMode,
    /// How to speak with servers, where not plainly.
    pub tls: Option<Arc<Connector>>,
    pub tls_listen: Option<TlsListen>,
    /// How clients are served, those of all pools together.
    pub service: front::Service,
}

/// Where clients of pools have to speak TLS, besides where the pools listen.
#[derive(Debug)]
pub struct TlsListen {
    /// Pools by their names; None: the only one.
    pub places: Vec<(Option<String>, Address)>,
    pub files: TlsFiles,
}

impl TlsListen {
    /// Which of these pools' clients each address is for.
    fn pools<'a>(&'a self, pools: &[Pool]) -> Result<Vec<(usize, &'a Address)>, ServiceError> {
        let pool = |name: &Option<String>, address: &Address| match name {
            None if pools.len() == 1 => Ok(0),
            None => Err(ServiceError::WhichPool { address: address.clone() }),
            Some(name) => {
                let found = pools.iter().position(|pool| pool.name == *name);
                found.ok_or_else(|| ServiceError::NoPool { pool: name.clone() })
            }
        };
        self.places.iter().map(|(name, address)| Ok((pool(name, address)?, address))).collect()
    }
}

/// The pools cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("pool {pool}: {source}")]
    Listen { pool: String, source: ListenError },
    #[error("no pool is called {pool}, whose clients are to speak TLS")]
    NoPool { pool: String },
    #[error("there are several pools: whose clients speak TLS at {address}")]
    WhichPool { address: Address },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot start the proxy's threads")]
    Threads(#[from] io::Error),
}

/// Running loops that serve pools. Dropping it ends them.
pub struct Service {
    loops: Arc<Vec<Running>>,
    pools: Vec<Served>,
    names: PoolNames,
    places: Places,
    acceptor: Option<Arc<Acceptor>>,
    slow_log: Option<Arc<SlowLog>>,
    admission: Admission,
    options: Options,
    /// The number of the next pool; numbers are not used again.
    next: usize,
}

/// One pool that is served.
struct Served {
    /// At the engines.
    number: usize,
    pool: Pool,
}

/// What a reload changed: names of pools.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
}

impl Reloaded {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.loops.iter().for_each(Running::stop);
    }
}

impl Service {
    /// Listens and serves.
    pub fn start(pools: Vec<Pool>, mut options: Options) -> Result<Self, ServiceError> {
        let taken = mem::take(&mut options.service.taken);
        let front::Service { clients_max, balanced, .. } = options.service;
        let mut places = Places::new(options.threads, clients_max, balanced, taken);
        let tls = options.tls_listen.as_ref();
        let acceptor = tls.map(|tls| places.acceptor(&tls.files)).transpose()?;
        let numbers: Vec<usize> = (0..pools.len()).collect();
        let listen = listen(&pools, &numbers, tls, acceptor.as_ref())?;
        let wanted = places.prepare(listen).map_err(|error| failure(error, &pools, tls))?;
        let limits = options.service.limits(options.threads);
        let (slow_log, quota) = (limits.slow_log.clone(), limits.quota.clone());
        let (notices, _) = mpsc::channel();
        let mut loops = Vec::new();
        for thread in 0..options.threads {
            let seed = thread as u32;
            let users = &options.service.users;
            let setups = pools.iter().map(|pool| setup(pool, users, options.ejected, seed));
            let setups = setups.collect();
            let (name, limits) = (format!("proxy-{thread}"), limits.clone());
            let (tls, notices) = (options.tls.clone(), notices.clone());
            loops.push(driver::start(&name, limits, tls, setups, Vec::new(), notices)?);
        }
        places.take(wanted, &loops, |_| Vec::new());
        let loops = Arc::new(loops);
        let served = numbers.into_iter().zip(pools);
        let users = mem::take(&mut options.service.users);
        let members = Members { users, pools: Vec::new() };
        let service = Self {
            admission: Admission::new(&loops, members, quota),
            loops,
            next: served.len(),
            pools: served.map(|(number, pool)| Served { number, pool }).collect(),
            names: PoolNames::default(),
            places,
            acceptor,
            slow_log,
            options,
        };
        service.name_pools(&mut service.admission.members());
        for served in &service.pools {
            service.preconnect(served);
        }
        Ok(service)
    }

    /// Where each pool listens, with its name, and whether its clients have to speak TLS there.
    pub fn listens(&self) -> impl Iterator<Item = (&str, &Address, bool)> {
        self.places.listens().filter_map(|(number, address, tls)| {
            let served = self.pools.iter().find(|served| served.number == number)?;
            Some((served.pool.name.as_str(), address, tls.is_some()))
        })
    }

    /// Who makes TLS sessions of clients' connections.
    pub fn acceptor(&self) -> Option<&Arc<Acceptor>> {
        self.acceptor.as_ref()
    }

    /// Its figures for Prometheus; they can be asked for as long as it runs.
    pub fn source(&self) -> metrics::Source {
        metrics::Source {
            loops: Arc::downgrade(&self.loops),
            slow_log: self.slow_log.clone(),
            quotas: self.admission.quotas(),
            pools: Some(Arc::clone(&self.names)),
        }
    }

    /// Its own users; they can be changed for as long as it runs.
    pub fn admission(&self) -> Admission {
        self.admission.clone()
    }

    /// What it listens with, for a proxy that takes over.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        self.places.sockets()
    }

    /// Tells others which pools there are.
    fn name_pools(&self, members: &mut Members) {
        let profiles = self.pools.iter().map(|served| (served.number, profile(&served.pool)));
        members.pools = profiles.collect();
        let named = self.pools.iter().map(|served| (served.number, served.pool.name.clone()));
        *self.names.write().unwrap_or_else(PoisonError::into_inner) = named.collect();
    }

    /// Serves other pools from now on. Clients of pools that stay, by their names, stay connected.
    /// On an error nothing has changed.
    pub fn reload(&mut self, pools: Vec<Pool>) -> Result<Reloaded, ServiceError> {
        let mut told = Reloaded::default();
        let mut next = self.next;
        let mut numbers = Vec::new();
        let mut changed: Vec<(usize, &Pool)> = Vec::new();
        for pool in &pools {
            let former = self.pools.iter().find(|each| each.pool.name == pool.name);
            let number = former.map_or(next, |each| each.number);
            numbers.push(number);
            if former.is_none() {
                next += 1;
                told.added.push(pool.name.clone());
            } else if former.is_some_and(|each| each.pool != *pool) {
                told.changed.push(pool.name.clone());
            }
            if former.is_none_or(|each| each.pool != *pool) {
                changed.push((number, pool));
            }
        }
        let gone = self.pools.iter().filter(|former| !numbers.contains(&former.number));
        let removed: Vec<usize> = gone.clone().map(|former| former.number).collect();
        told.removed = gone.map(|former| former.pool.name.clone()).collect();
        let tls = self.options.tls_listen.as_ref();
        let listen = listen(&pools, &numbers, tls, self.acceptor.as_ref())?;
        let wanted = self.places.prepare(listen).map_err(|error| failure(error, &pools, tls))?;
        let (ejected, admission) = (self.options.ejected, self.admission.clone());
        // Who are the same until all is told.
        let mut members = admission.members();
        self.places.take(wanted, &self.loops, |thread| {
            let changed = changed.iter();
            let changed = changed.map(|(number, pool)| {
                (*number, Some(setup(pool, &members.users, ejected, thread as u32)))
            });
            changed.chain(removed.iter().map(|number| (*number, None))).collect()
        });
        let served = numbers.into_iter().zip(pools);
        self.pools = served.map(|(number, pool)| Served { number, pool }).collect();
        self.next = next;
        self.name_pools(&mut members);
        drop(members);
        for served in self.pools.iter().filter(|each| told.added.contains(&each.pool.name)) {
            self.preconnect(served);
        }
        Ok(told)
    }

    fn preconnect(&self, served: &Served) {
        if served.pool.preconnect {
            self.loops.iter().for_each(|running| running.preconnect(served.number));
        }
    }

    /// What has happened so far, pool by pool. Waits for the loops to say it.
    pub fn figures(&self) -> Vec<Figures> {
        let deadline = Instant::now() + REPORT;
        let asked: Vec<_> = self
            .loops
            .iter()
            .map(|running| {
                let (sender, answer) = mpsc::channel();
                running.figures(sender);
                (running.started(), answer)
            })
            .collect();
        let mut all: Vec<Figures> =
            self.pools.iter().map(|each| Figures::new(&each.pool)).collect();
        for (started, answer) in asked {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(done) = answer.recv_timeout(left) else { continue };
            for (figures, served) in all.iter_mut().zip(&self.pools) {
                if let Some(pool) = done.pools.get(served.number) {
                    figures.add(pool, started);
                }
            }
        }
        all
    }

    /// Leaves new clients to the proxy that took its sockets over, serves its own for `patience`,
    /// and then ends as with [`Service::drain`].
    pub fn hand_over(self, patience: Duration, span: Duration) -> io::Result<()> {
        self.loops.iter().for_each(|running| running.hand_over(patience, span));
        self.join()
    }

    /// Takes no new clients, answers what those that are there have asked, and ends; after `span`
    /// at the latest.
    pub fn drain(self, span: Duration) -> io::Result<()> {
        self.loops.iter().for_each(|running| running.drain(span));
        self.join()
    }

    /// Ends the loops and waits until they have ended.
    pub fn stop(self) -> io::Result<()> {
        self.loops.iter().for_each(Running::stop);
        self.join()
    }

    fn join(mut self) -> io::Result<()> {
        let loops = mem::take(&mut self.loops);
        // Who asks for figures at this moment has a share in them for as long.
        Arc::into_inner(loops).into_iter().flatten().try_for_each(Running::join)
    }
}

/// Where clients of these pools, which have these numbers, connect.
fn listen(
    pools: &[Pool],
    numbers: &[usize],
    tls: Option<&TlsListen>,
    acceptor: Option<&Arc<Acceptor>>,
) -> Result<Vec<Listen>, ServiceError> {
    let place = |number: usize, pool: &Pool| Listen {
        pool: number,
        address: listen_address(&pool.listen),
        backlog: i32::try_from(pool.backlog).unwrap_or(i32::MAX),
        mode: listen_mode(&pool.listen),
        keepalive: pool.tcp_keepalive,
        tls: None,
    };
    let all = numbers.iter().zip(pools).map(|(number, pool)| place(*number, pool));
    let mut all: Vec<Listen> = all.collect();
    if let Some(tls) = tls {
        for (index, address) in tls.pools(pools)? {
            let sealed = all.get(index).cloned().map(|plain| {
                let (address, tls) = (address.clone(), acceptor.cloned());
                Listen { address, tls, mode: None, ..plain }
            });
            all.extend(sealed);
        }
    }
    Ok(all)
}

/// Says which pool it is about.
fn failure(error: ProxyError, pools: &[Pool], tls: Option<&TlsListen>) -> ServiceError {
    match error {
        ProxyError::Listen(source) => {
            let sealed = tls.and_then(|tls| tls.pools(pools).ok()).unwrap_or_default();
            let mut sealed = sealed.into_iter().filter(|(_, address)| **address == source.address);
            let at = |pool: &&Pool| listen_address(&pool.listen) == source.address;
            let sealed = sealed.next().and_then(|(index, _)| pools.get(index));
            let pool = pools.iter().find(at).or(sealed);
            ServiceError::Listen {
                pool: pool.map(|pool| pool.name.clone()).unwrap_or_default(),
                source,
            }
        }
        ProxyError::Tls(source) => ServiceError::Tls(source),
        error => ServiceError::Threads(io::Error::other(error)),
    }
}
