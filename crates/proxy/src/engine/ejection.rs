//! Servers of a ring that fail again and again leave it for a while.
//!
//! As in twemproxy, a failure is a connection that ended or could not be made, whatever ended it, a
//! request without a reply in time, and a reply that says that the server can't serve now. A good
//! reply, an error among them, makes good what was before. Nothing is sent to find out whether
//! the server is back: after its time it has its part again, and has to fail as often as before.
//!
//! What differs: a request that is late ends neither its connection nor the others' requests on it.
//! So that a server that hangs is not counted once for each of those, what was asked before a
//! failure belongs to that failure.

use super::{Core, Micros, Route};
use crate::ring::EjectionMode;

/// Errors after which twemproxy closes the server's connection.
const CANNOT_SERVE: [&[u8]; 3] = [b"-OOM ", b"-BUSY ", b"-LOADING "];

impl Core {
    /// A ring's server failed; what failed began at `since`.
    #[cold]
    pub(super) fn count_fault(&mut self, server_index: u16, since: Micros) {
        let now = self.now;
        let Some(server) = self.servers.get_mut(usize::from(server_index)) else { return };
        let Some(pool) = self.pools.get(usize::from(server.pool)) else { return };
        let Route::Ring(ring) = &pool.route else { return };
        let Some(ejection) = ring.ejection() else { return };
        if since < server.fault_at {
            return;
        }
        server.fault_at = now;
        server.faults += 1;
        if server.faults < ejection.failures_max {
            return;
        }
        server.faults = 0;
        server.counters.ejected_at.set(now);
        pool.counters.ejections.add(1);
        let pool = server.pool;
        match ejection.mode {
            EjectionMode::Rering => {
                server.ejected_until = now + ejection.time;
                self.rering(pool);
            }
            EjectionMode::Refuse => {
                server.retry_at = now + ejection.time;
                let links = server.links.iter().flat_map(|link| &link.shared);
                let conns: Vec<_> = links.copied().flatten().collect();
                for conn in conns {
                    self.discard_conn(conn);
                }
            }
        }
    }

    /// An error that a ring's server answered a request of a client with.
    #[cold]
    pub(super) fn ring_error(&mut self, server_index: u16, reply: &[u8]) {
        if CANNOT_SERVE.iter().any(|error| reply.starts_with(error)) {
            self.count_fault(server_index, self.now);
        } else if let Some(server) = self.servers.get_mut(usize::from(server_index)) {
            server.faults = 0;
        }
    }

    /// Deals a ring's keys out to the servers that have a part in it now.
    pub(super) fn rering(&mut self, pool_index: u16) {
        let Self { pools, servers, now, .. } = self;
        let Some(pool) = pools.get_mut(usize::from(pool_index)) else { return };
        let Route::Ring(ring) = &mut pool.route else { return };
        let ejected_until = |place: u16| {
            let server = pool.servers.get(usize::from(place))?;
            let until = servers.get(usize::from(*server))?.ejected_until;
            (until > *now).then_some(until)
        };
        ring.restrict(|place| ejected_until(place).is_none());
        let places = 0..pool.servers.len() as u16;
        pool.rering_at = places.filter_map(ejected_until).min();
    }

    /// Lets those servers back whose time is over.
    pub(super) fn let_back(&mut self) {
        for index in 0..self.pools.len() {
            let due = self.pools.get(index).and_then(|pool| pool.rering_at);
            if due.is_some_and(|due| due <= self.now) {
                self.rering(index as u16);
            }
        }
    }

    /// When a server is next let back.
    pub(super) fn next_return(&self) -> Option<Micros> {
        self.pools.iter().filter_map(|pool| pool.rering_at).min()
    }
}
