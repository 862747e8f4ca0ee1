//! Where a proxy's clients connect, on which terms. Places come and go while it serves.

use std::{fs, io, os::fd::OwnedFd, sync::Arc};

use proxy::{
    driver::{Acceptor, Change, Crowd, Listener, Listening, Running, Terms, TlsFiles},
    route::Address,
};

use super::{ProxyError, files::files_for_clients};

/// Clients that may wait to be accepted.
const BACKLOG: i32 = 4_096;

/// See the module.
pub(super) struct Places {
    threads: usize,
    /// There are files for so many clients.
    room: usize,
    crowd: Arc<Crowd>,
    /// Load balancers say whose a connection is.
    balanced: bool,
    /// Sockets that the proxy before this one listened with, by where.
    taken: Vec<(Address, Vec<OwnedFd>)>,
    now: Vec<Place>,
}

/// One of them.
#[derive(Clone)]
struct Place {
    /// As it was asked for.
    wanted: Address,
    /// Where it really listens: a port 0 was replaced.
    address: Address,
    /// Those of its listeners, for a proxy that takes over.
    sockets: Arc<Vec<OwnedFd>>,
    tls: Option<(TlsFiles, Arc<Acceptor>)>,
}

/// A place that is to be.
enum Next {
    Still,
    /// With other certificates.
    Otherwise,
    /// Its listeners, one a thread at least.
    New(Vec<Listener>),
}

/// Places that are to be.
pub(super) struct Wanted(Vec<(Place, Next)>);

impl Places {
    /// `room`: there are files for so many clients.
    pub fn new(threads: usize, room: usize, clients_max: Option<usize>, balanced: bool) -> Self {
        let crowd = Crowd::new(usize::MAX);
        let places = Self { threads, room, crowd, balanced, taken: Vec::new(), now: Vec::new() };
        places.set_clients_max(clients_max);
        places
    }

    /// Listens with these sockets where they are.
    pub fn inherit(&mut self, taken: Vec<(Address, Vec<OwnedFd>)>) {
        self.taken = taken;
    }

    /// What it listens with.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let sockets = self.now.iter().flat_map(|place| place.sockets.iter());
        sockets.map(OwnedFd::try_clone).collect()
    }

    pub fn set_clients_max(&self, clients_max: Option<usize>) {
        let room = self.room;
        if let Some(wanted) = clients_max.filter(|wanted| *wanted > room) {
            let files = files_for_clients(wanted as u64);
            tracing::warn!(
                "files for {room} clients only, not for {wanted}: allow {files} files (ulimit -Hn {files}, \
                 or LimitNOFILE={files} in the unit)"
            );
        }
        self.crowd.set_max(clients_max.unwrap_or(usize::MAX).min(room));
    }

    pub fn listens(&self) -> impl Iterator<Item = (&Address, Option<&Arc<Acceptor>>)> {
        self.now
            .iter()
            .map(|place| (&place.address, place.tls.as_ref().map(|(_, acceptor)| acceptor)))
    }

    /// Binds what isn't there yet. Nobody is served otherwise until [`Places::take`].
    pub fn prepare(
        &mut self,
        listen: &[Address],
        tls: Option<(Address, TlsFiles)>,
    ) -> Result<Wanted, ProxyError> {
        let now = self.now.clone();
        let there = |wanted: &Address, tls: bool| {
            let mut places = now.iter();
            places.find(|place| place.wanted == *wanted && place.tls.is_some() == tls)
        };
        let mut places = Vec::new();
        for wanted in listen {
            places.push(match there(wanted, false) {
                Some(place) => (place.clone(), Next::Still),
                None => self.bind(wanted, None)?,
            });
        }
        if let Some((wanted, files)) = tls {
            let same = |place: &&Place| place.tls.as_ref().is_some_and(|(of, _)| *of == files);
            places.push(match there(&wanted, true) {
                Some(place) if same(&place) => (place.clone(), Next::Still),
                former => {
                    let tls = Some((files.clone(), Arc::new(Acceptor::load(files)?)));
                    match former {
                        Some(place) => (Place { tls, ..place.clone() }, Next::Otherwise),
                        None => self.bind(&wanted, tls)?,
                    }
                }
            });
        }
        Ok(Wanted(places))
    }

    fn bind(
        &mut self,
        wanted: &Address,
        tls: Option<(TlsFiles, Arc<Acceptor>)>,
    ) -> Result<(Place, Next), ProxyError> {
        let taken = self.taken.iter().position(|(address, _)| address == wanted);
        let listeners = match taken.map(|index| self.taken.swap_remove(index)) {
            Some((_, sockets)) if !sockets.is_empty() => Listener::inherit(sockets, self.threads)?,
            _ => Listener::bind(wanted, self.threads, BACKLOG, None)?,
        };
        let sockets = listeners.iter().map(Listener::share).collect::<Result<_, _>>()?;
        let address = listeners.first().map_or(wanted, Listener::address).clone();
        let place = Place { wanted: wanted.clone(), address, sockets: Arc::new(sockets), tls };
        let terms = self.terms(&place);
        let listeners = listeners.into_iter().map(|each| each.with_terms(terms.clone())).collect();
        Ok((place, Next::New(listeners)))
    }

    fn terms(&self, place: &Place) -> Terms {
        let tls = place.tls.as_ref().map(|(_, acceptor)| Arc::clone(acceptor));
        Terms { tls, crowd: Some(Arc::clone(&self.crowd)), balanced: self.balanced }
    }

    /// Has the loops listen at these places, and at no others.
    pub fn take(&mut self, wanted: Wanted, loops: &[Running]) {
        let mut changes: Vec<Change> = Vec::new();
        changes.resize_with(loops.len(), Change::default);
        let mut places = Vec::new();
        for (place, next) in wanted.0 {
            let terms = matches!(next, Next::Otherwise).then(|| self.terms(&place));
            let mut new = match next {
                Next::New(listeners) => listeners,
                Next::Still | Next::Otherwise => Vec::new(),
            }
            .into_iter();
            for change in &mut changes {
                let (address, terms) = (place.address.clone(), terms.clone());
                let still = || Listening::Still { address, keepalive: false, terms };
                let listening = new.next().map_or_else(still, Listening::New);
                change.listeners.push((0, listening));
            }
            // None is left out, lest who waits there waits for ever.
            for (listener, change) in new.zip((0..changes.len()).cycle()) {
                if let Some(change) = changes.get_mut(change) {
                    change.listeners.push((0, Listening::New(listener)));
                }
            }
            places.push(place);
        }
        for (running, change) in loops.iter().zip(changes) {
            running.change(change);
        }
        let former = std::mem::replace(&mut self.now, places);
        for place in former {
            if let Address::Unix(path) = &place.address
                && self.now.iter().all(|each| each.address != place.address)
                && let Err(error) = fs::remove_file(path)
            {
                tracing::warn!(%error, "cannot remove {}", path.display());
            }
        }
    }
}
