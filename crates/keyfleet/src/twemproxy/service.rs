//! The pools of a nutcracker.yml, at work.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use fleet::spec::nutcracker::Pool;
use proxy::{
    driver::{self, Change, Connector, ListenError, Listener, Listening, Running},
    engine::{Limits, Memory},
    route::{Address, EjectionMode},
};

use super::pools::{Figures, listen_address, listen_mode, setup};

/// How long a loop may take to say what it is at.
const REPORT: Duration = Duration::from_secs(1);

/// What the file doesn't say.
#[derive(Debug, Clone)]
pub struct Options {
    /// Each has connections of its own to the servers, and ejects them by what it sees itself.
    pub threads: usize,
    /// Who serves the keys of ejected servers.
    pub ejected: EjectionMode,
    /// What buffers may hold, of all clients and servers together, in bytes.
    pub memory_max: usize,
    /// How to speak with servers, where not plainly.
    pub tls: Option<Arc<Connector>>,
}

/// The pools cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("pool {pool}: {source}")]
    Listen { pool: String, source: ListenError },
    #[error("cannot start the proxy's threads")]
    Threads(#[from] io::Error),
}

/// Running loops that serve pools. Dropping it ends them.
pub struct Service {
    loops: Vec<Running>,
    pools: Vec<Served>,
    options: Options,
    /// The number of the next pool; numbers are not used again.
    next: usize,
}

/// One pool that is served.
struct Served {
    /// At the engines.
    number: usize,
    pool: Pool,
    /// Where it really listens.
    address: Address,
}

impl Served {
    /// Gives the path where it listens its permissions.
    fn set_mode(&self) {
        let Some(mode) = listen_mode(&self.pool.listen) else { return };
        let Address::Unix(path) = &self.address else { return };
        if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(mode)) {
            tracing::warn!(%error, "cannot change the mode of {}", path.display());
        }
    }
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
        for running in &self.loops {
            running.stop();
        }
    }
}

impl Service {
    /// Listens and serves.
    pub fn start(pools: Vec<Pool>, options: Options) -> Result<Self, ServiceError> {
        let mut served = Vec::new();
        let mut listeners: Vec<Vec<(usize, Listener)>> = Vec::new();
        listeners.resize_with(options.threads, Vec::new);
        for (number, pool) in pools.into_iter().enumerate() {
            let (address, bound) = bind(&pool, options.threads)?;
            for (share, listener) in listeners.iter_mut().zip(bound) {
                share.push((number, listener));
            }
            served.push(Served { number, pool, address });
        }
        let (notices, _) = mpsc::channel();
        let memory = Memory::new(options.memory_max, options.threads).into();
        let limits = Limits { memory, ..Limits::default() };
        let mut loops = Vec::new();
        for (thread, share) in listeners.into_iter().enumerate() {
            let seed = thread as u32;
            let setups = served.iter().map(|each| setup(&each.pool, options.ejected, seed));
            let (setups, notices) = (setups.collect(), notices.clone());
            let name = format!("proxy-{thread}");
            let (limits, tls) = (limits.clone(), options.tls.clone());
            loops.push(driver::start(&name, limits, tls, setups, share, notices)?);
        }
        let service = Self { loops, next: served.len(), pools: served, options };
        for served in &service.pools {
            service.preconnect(served);
        }
        Ok(service)
    }

    /// Where each pool listens, with its name.
    pub fn listens(&self) -> impl Iterator<Item = (&str, &Address)> {
        self.pools.iter().map(|served| (served.pool.name.as_str(), &served.address))
    }

    /// Serves other pools from now on. Clients of pools that stay, by their names, stay connected.
    /// On an error nothing has changed.
    pub fn reload(&mut self, pools: Vec<Pool>) -> Result<Reloaded, ServiceError> {
        let threads = self.options.threads;
        let mut told = Reloaded::default();
        let mut changes: Vec<Change> = Vec::new();
        changes.resize_with(threads, Change::default);
        let mut served = Vec::new();
        let mut next = self.next;
        for pool in pools {
            let former = self.pools.iter().find(|each| each.pool.name == pool.name);
            let number = former.map_or(next, |each| each.number);
            if former.is_none() {
                next += 1;
                told.added.push(pool.name.clone());
            } else if former.is_some_and(|each| each.pool != pool) {
                told.changed.push(pool.name.clone());
            }
            let place = listen_address(&pool.listen);
            let there = self.pools.iter().find(|each| listen_address(&each.pool.listen) == place);
            let (address, listeners) = match there {
                Some(there) => (there.address.clone(), Vec::new()),
                None => bind(&pool, threads)?,
            };
            let mut listeners = listeners.into_iter();
            for (thread, change) in changes.iter_mut().enumerate() {
                let still = || {
                    let (address, keepalive) = (address.clone(), pool.tcp_keepalive);
                    Listening::Still { address, keepalive, terms: None }
                };
                let listening = listeners.next().map_or_else(still, Listening::New);
                change.listeners.push((number, listening));
                if former.is_none_or(|each| each.pool != pool) {
                    let setup = setup(&pool, self.options.ejected, thread as u32);
                    change.pools.push((number, Some(setup)));
                }
            }
            served.push(Served { number, pool, address });
        }
        for former in &self.pools {
            if !served.iter().any(|each| each.number == former.number) {
                told.removed.push(former.pool.name.clone());
                for change in &mut changes {
                    change.pools.push((former.number, None));
                }
            }
        }
        for (running, change) in self.loops.iter().zip(changes) {
            running.change(change);
        }
        (self.pools, self.next) = (served, next);
        for served in &self.pools {
            if told.changed.contains(&served.pool.name) {
                served.set_mode();
            }
            if told.added.contains(&served.pool.name) {
                self.preconnect(served);
            }
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

    /// Ends the loops and waits until they have ended.
    pub fn stop(mut self) -> io::Result<()> {
        let loops = std::mem::take(&mut self.loops);
        for running in &loops {
            running.stop();
        }
        loops.into_iter().try_for_each(Running::join)
    }
}

/// Listeners for a pool, one a thread, and where they really listen.
fn bind(pool: &Pool, threads: usize) -> Result<(Address, Vec<Listener>), ServiceError> {
    let failed = |source| ServiceError::Listen { pool: pool.name.clone(), source };
    let address = listen_address(&pool.listen);
    let backlog = i32::try_from(pool.backlog).unwrap_or(i32::MAX);
    let mode = listen_mode(&pool.listen);
    let listeners = Listener::bind(&address, threads, backlog, mode).map_err(failed)?;
    for listener in &listeners {
        listener.set_keepalive(pool.tcp_keepalive)?;
    }
    let address = listeners.first().map_or(address, |first| first.address().clone());
    Ok((address, listeners))
}
