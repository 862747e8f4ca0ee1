//! A pool of nutcracker.yml as the proxy's engine has it, and what it has done.

use std::{sync::Arc, time::SystemTime};

use fleet::spec::nutcracker::{HostPort, Listen, Pool, ServerAddress};
use protocol::key_hash::twemproxy::RingServer;
use proxy::{
    engine::{Micros, PoolFigures, PoolSetup, Profile, Users},
    route::{Address, Ejection, EjectionMode, Ring, Route},
};

use crate::proxy::users::OwnUser;

/// The wait before a server that refused is tried again, where failing servers aren't ejected.
const BACKOFF: (Micros, Micros) = (1_000, 50_000);

/// How the proxy logs in to a pool's servers.
pub(super) fn profile(pool: &Pool) -> Profile {
    let password = pool.redis_auth.as_ref().map(|password| password.reveal().to_owned());
    Profile { password, database: pool.redis_db, ..Profile::default() }
}

/// What a loop serves, to whom besides those that know the pool's password; `seed` is for a random
/// distribution.
pub(super) fn setup(pool: &Pool, users: &[OwnUser], ejected: EjectionMode, seed: u32) -> PoolSetup {
    let servers = pool.servers.iter().enumerate();
    let servers: Vec<RingServer<'_>> = servers
        .map(|(id, server)| RingServer { id: id as u32, name: &server.name, weight: server.weight })
        .collect();
    let mut ring = Ring::new(pool.key_hash, pool.distribution, &servers, seed);
    let mut backoff = BACKOFF;
    if pool.auto_eject_hosts {
        // How often it is tried is how often it can fail.
        backoff = (0, 0);
        ring = ring.ejecting(Ejection {
            failures_max: pool.server_failure_limit,
            time: micros(pool.server_retry_timeout_ms),
            mode: ejected,
        });
    }
    let profile = profile(pool);
    PoolSetup {
        route: Route::Ring(ring),
        servers: pool.servers.iter().map(|server| Arc::new(server_address(server))).collect(),
        client_password: profile.password.clone(),
        users: Users {
            own: users.iter().map(|user| user.at(&profile)).collect(),
            passed_on: false,
        },
        profile,
        timeout: pool.timeout_ms.map(micros),
        server_connections: pool.server_connections as usize,
        backoff_min: backoff.0,
        backoff_max: backoff.1,
    }
}

fn micros(milliseconds: u32) -> Micros {
    Micros::from(milliseconds) * 1_000
}

fn server_address(server: &fleet::spec::nutcracker::PoolServer) -> Address {
    match &server.address {
        ServerAddress::Tcp(place) => host_port(place),
        ServerAddress::Unix(path) => Address::Unix(path.into()),
    }
}

/// Where a pool listens.
pub(super) fn listen_address(listen: &Listen) -> Address {
    match listen {
        Listen::Tcp(place) => host_port(place),
        Listen::Unix { path, .. } => Address::Unix(path.into()),
    }
}

/// The permissions of the path where it listens.
pub(super) fn listen_mode(listen: &Listen) -> Option<u32> {
    match listen {
        Listen::Tcp(_) => None,
        Listen::Unix { mode, .. } => *mode,
    }
}

fn host_port(place: &HostPort) -> Address {
    Address::new(&place.host, place.port)
}

/// What happened in a pool, of all threads together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    pub name: String,
    pub client_eof: u64,
    pub client_err: u64,
    pub client_connections: u64,
    pub clients_ever: u64,
    pub server_ejects: u64,
    pub forward_error: u64,
    pub fragments: u64,
    pub servers: Vec<ServerFigures>,
}

/// What happened to one of its servers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerFigures {
    pub name: String,
    pub server_eof: u64,
    pub server_err: u64,
    pub server_timedout: u64,
    pub server_connections: u64,
    pub connections_ever: u64,
    /// In µs since 1970; 0: never.
    pub server_ejected_at: u64,
    pub requests: u64,
    pub request_bytes: u64,
    pub responses: u64,
    pub response_bytes: u64,
    pub in_queue: u64,
    pub in_queue_bytes: u64,
    pub out_queue: u64,
    pub out_queue_bytes: u64,
}

impl Figures {
    pub(super) fn new(pool: &Pool) -> Self {
        let server = |name: &str| ServerFigures { name: name.to_owned(), ..Default::default() };
        Self {
            name: pool.name.clone(),
            servers: pool.servers.iter().map(|each| server(&each.name)).collect(),
            ..Self::default()
        }
    }

    /// Adds what one thread did, which has run since `started`.
    pub(super) fn add(&mut self, done: &PoolFigures, started: SystemTime) {
        let counters = &done.counters;
        let broken = counters.clients_broken.get();
        self.client_eof += counters.clients_ended.get().saturating_sub(broken);
        self.client_err += broken;
        self.client_connections += counters.clients.get();
        self.clients_ever += counters.clients_ever.get();
        self.server_ejects += counters.ejections.get();
        self.forward_error += counters.forward_errors.get();
        self.fragments += counters.fragments.get();
        for (figures, server) in self.servers.iter_mut().zip(&done.servers) {
            let counters = &server.counters;
            figures.server_eof += counters.ended.get();
            figures.server_err += counters.broken.get();
            figures.server_timedout += counters.timed_out.get();
            figures.server_connections += counters.connections.get();
            figures.connections_ever += counters.connections_ever.get();
            figures.requests += counters.requests.get();
            figures.request_bytes += counters.request_bytes.get();
            figures.responses += counters.responses.get();
            figures.response_bytes += counters.response_bytes.get();
            figures.in_queue += server.unsent.requests;
            figures.in_queue_bytes += server.unsent.bytes;
            figures.out_queue += server.unanswered.requests;
            figures.out_queue_bytes += server.unanswered.bytes;
            let ejected_at = counters.ejected_at.get();
            if ejected_at > 0 {
                let since = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let ejected_at = since.as_micros() as u64 + ejected_at;
                figures.server_ejected_at = figures.server_ejected_at.max(ejected_at);
            }
        }
    }
}
