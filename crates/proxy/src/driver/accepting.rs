//! Clients who come.

use std::{io::ErrorKind, time::Instant};

use mio::{Interest, Token};

use super::{
    Again, CLIENT, KIND_BITS, Loop, Place, arrivals::Arrival, crowd::Seat, header::Ends, put,
    socket::Socket,
};
use crate::engine::Micros;

/// Connections accepted in a row.
pub(super) const ACCEPTS_MAX: usize = 256;
/// The wait before clients are accepted again that could not be, for want of files.
const ACCEPT_PAUSE: Micros = 200_000;

impl Loop {
    pub(super) fn accept(&mut self, index: usize) {
        if self.accept_some(index) {
            self.again.push(Again::Listener(index));
        }
    }

    /// May there be more?
    pub(super) fn accept_some(&mut self, index: usize) -> bool {
        for _ in 0..ACCEPTS_MAX {
            let Some(Some((pool, listener))) = self.listeners.get(index) else {
                self.stuck.retain(|stuck| *stuck != index);
                return false;
            };
            let pool = *pool;
            let (mut socket, from) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stuck.retain(|stuck| *stuck != index);
                    return false;
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    // Too many open files, for one. Who waits is heard of only once.
                    if !self.stuck.contains(&index) {
                        tracing::warn!(%error, "cannot accept clients; trying again");
                        self.stuck.push(index);
                        self.unstick = self.engine.now() + ACCEPT_PAUSE;
                    }
                    return false;
                }
            };
            let Ok(seat) = listener.seat() else {
                socket.refuse();
                self.engine.client_refused(pool);
                continue;
            };
            let ends = socket.local_address().zip(from);
            let ends = ends.map(|(reached, client)| Ends { client, reached });
            match socket {
                Socket::Tcp(stream) if listener.terms().balanced => {
                    let (terms, since) = (listener.terms().clone(), Instant::now());
                    self.arrive(Arrival { stream, pool, terms, seat, ends, since });
                }
                socket => self.admit(pool, socket, seat, ends),
            }
        }
        true
    }

    /// Begins to serve a client.
    pub(super) fn admit(
        &mut self,
        pool: usize,
        mut socket: Socket,
        seat: Option<Seat>,
        ends: Option<Ends>,
    ) {
        let id = self.engine.client_opened(pool);
        if let Some(Ends { client, reached }) = ends {
            self.engine.set_client_ends(id, client, reached);
        }
        let token = Token(id.index() << KIND_BITS | CLIENT);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if socket.register(self.poll.registry(), token, interest).is_err() {
            self.engine.client_gone(id);
            return;
        }
        let place = Place {
            id,
            socket,
            readable: true,
            writable: true,
            wanted: true,
            closing: false,
            fresh: true,
            _seat: seat,
        };
        put(&mut self.clients, id.index(), place);
        if let Some(drain) = &mut self.drain {
            drain.add(id.index());
        }
    }

    /// Tries again where clients could not be accepted.
    pub(super) fn accept_again(&mut self, now: Micros) {
        self.unstick = now + ACCEPT_PAUSE;
        for index in self.stuck.clone() {
            self.accept(index);
        }
    }
}
