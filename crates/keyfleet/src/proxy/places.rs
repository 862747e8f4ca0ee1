//! Where a proxy's clients connect, on which terms. Places come and go while it serves.

use std::{fs, io, mem, os::fd::OwnedFd, os::unix::fs::PermissionsExt as _, sync::Arc};

use proxy::{
    driver::{
        Acceptor, Change, Crowd, ListenError, Listener, Listening, Running, Terms, TlsError,
        TlsFiles,
    },
    engine::PoolSetup,
    route::Address,
};

use super::{ProxyError, files, takeover::Sockets};

/// Clients that may wait to be accepted, where nobody says how many.
const BACKLOG: i32 = 4_096;

/// A place where clients are to connect.
#[derive(Debug, Clone)]
pub(crate) struct Listen {
    /// Whose clients they are then: the pool's number at the loops.
    pub pool: usize,
    pub address: Address,
    /// Clients that may wait to be accepted.
    pub backlog: i32,
    /// The permissions of a path; None: as they come.
    pub mode: Option<u32>,
    /// See [`Listener::set_keepalive`].
    pub keepalive: bool,
    /// Clients have to speak TLS.
    pub tls: Option<Arc<Acceptor>>,
}

impl Listen {
    /// Without TLS, for clients of a proxy's only pool.
    pub fn at(address: Address) -> Self {
        Self { pool: 0, address, backlog: BACKLOG, mode: None, keepalive: false, tls: None }
    }
}

/// See the module.
pub(crate) struct Places {
    threads: usize,
    /// There are files for so many clients.
    room: usize,
    crowd: Arc<Crowd>,
    /// Load balancers say whose a connection is.
    balanced: bool,
    /// Of the proxy before this one, until it is served as it is wanted at first.
    taken: Sockets,
    now: Vec<Place>,
}

/// One of them.
#[derive(Clone)]
struct Place {
    wanted: Listen,
    /// Where it really listens: a port 0 was replaced.
    address: Address,
    /// Those of its listeners, for a proxy that takes over.
    sockets: Arc<Vec<OwnedFd>>,
}

/// Places that are to be: each with its listeners, one a thread at least; with none, as it is there.
pub(crate) struct Wanted(Vec<(Place, Vec<Listener>)>);

impl Places {
    /// For loops of so many threads. Sockets in `taken` are used where they are.
    pub fn new(threads: usize, clients_max: Option<usize>, balanced: bool, taken: Sockets) -> Self {
        let (room, crowd) = (files::room(), Crowd::new(usize::MAX));
        let places = Self { threads, room, crowd, balanced, taken, now: Vec::new() };
        places.set_clients_max(clients_max);
        places
    }

    /// What it listens with.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let sockets = self.now.iter().flat_map(|place| place.sockets.iter());
        sockets.map(OwnedFd::try_clone).collect()
    }

    pub fn set_clients_max(&self, clients_max: Option<usize>) {
        let room = self.room;
        if let Some(wanted) = clients_max.filter(|wanted| *wanted > room) {
            let files = files::files_for_clients(wanted as u64);
            tracing::warn!(
                "files for {room} clients only, not for {wanted}: allow {files} files (ulimit -Hn {files}, \
                 or LimitNOFILE={files} in the unit)"
            );
        }
        self.crowd.set_max(clients_max.unwrap_or(usize::MAX).min(room));
    }

    /// Where each pool's clients connect, and with which certificates.
    pub fn listens(&self) -> impl Iterator<Item = (usize, &Address, Option<&Arc<Acceptor>>)> {
        self.now.iter().map(|place| (place.wanted.pool, &place.address, place.wanted.tls.as_ref()))
    }

    /// Who serves with these certificates; as now, where somebody does.
    pub fn acceptor(&self, files: &TlsFiles) -> Result<Arc<Acceptor>, TlsError> {
        let mut now = self.now.iter().filter_map(|place| place.wanted.tls.as_ref());
        match now.find(|acceptor| acceptor.files() == files) {
            Some(acceptor) => Ok(Arc::clone(acceptor)),
            None => Acceptor::load(files.clone()).map(Arc::new),
        }
    }

    /// Binds what isn't there yet. Nobody is served otherwise until [`Places::take`].
    pub fn prepare(&mut self, listen: Vec<Listen>) -> Result<Wanted, ProxyError> {
        let mut places = Vec::new();
        for wanted in listen {
            let there = self.now.iter().find(|place| {
                place.wanted.address == wanted.address
                    && place.wanted.tls.is_some() == wanted.tls.is_some()
            });
            places.push(match there.cloned() {
                Some(place) => (Place { wanted, ..place }, Vec::new()),
                None => self.bind(wanted)?,
            });
        }
        Ok(Wanted(places))
    }

    fn bind(&mut self, wanted: Listen) -> Result<(Place, Vec<Listener>), ProxyError> {
        let taken = self.taken.at(&wanted.address);
        let listeners = if taken.is_empty() {
            Listener::bind(&wanted.address, self.threads, wanted.backlog, wanted.mode)?
        } else {
            Listener::inherit(taken, self.threads)?
        };
        let failed = |source| ListenError { address: wanted.address.clone(), source };
        let mut sockets = Vec::new();
        for listener in &listeners {
            listener.set_keepalive(wanted.keepalive).map_err(failed)?;
            sockets.push(listener.share().map_err(failed)?);
        }
        let address = listeners.first().map_or(&wanted.address, Listener::address).clone();
        let terms = self.terms(&wanted);
        let listeners = listeners.into_iter().map(|each| each.with_terms(terms.clone())).collect();
        Ok((Place { wanted, address, sockets: Arc::new(sockets) }, listeners))
    }

    fn terms(&self, wanted: &Listen) -> Terms {
        let crowd = Some(Arc::clone(&self.crowd));
        Terms { tls: wanted.tls.clone(), crowd, balanced: self.balanced }
    }

    /// Has the loops listen at these places, and at no others, for pools as `pools` has them, which are
    /// each loop's.
    pub fn take(
        &mut self,
        wanted: Wanted,
        loops: &[Running],
        mut pools: impl FnMut(usize) -> Vec<(usize, Option<PoolSetup>)>,
    ) {
        let change = |thread| Change { pools: pools(thread), listeners: Vec::new() };
        let mut changes: Vec<Change> = (0..loops.len()).map(change).collect();
        let mut places = Vec::new();
        for (place, new) in wanted.0 {
            let (pool, keepalive) = (place.wanted.pool, place.wanted.keepalive);
            if new.is_empty() {
                for change in &mut changes {
                    let (address, terms) = (place.address.clone(), self.terms(&place.wanted));
                    let listening = Listening::Still { address, keepalive, terms };
                    change.listeners.push((pool, listening));
                }
            }
            // None is left out, lest who waits there waits for ever.
            for (listener, thread) in new.into_iter().zip((0..changes.len()).cycle()) {
                if let Some(change) = changes.get_mut(thread) {
                    change.listeners.push((pool, Listening::New(listener)));
                }
            }
            places.push(place);
        }
        for (running, change) in loops.iter().zip(changes) {
            running.change(change);
        }
        // Who connects to one of the rest is not served.
        self.taken = Sockets::default();
        let former = mem::replace(&mut self.now, places);
        for place in former {
            let Address::Unix(path) = &place.address else { continue };
            let now = self.now.iter().find(|each| each.address == place.address);
            let changed = match now.map(|now| now.wanted.mode) {
                None => fs::remove_file(path),
                Some(Some(mode)) if place.wanted.mode != Some(mode) => {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode))
                }
                Some(_) => Ok(()),
            };
            if let Err(error) = changed {
                tracing::warn!(%error, "cannot change {}", path.display());
            }
        }
    }
}
