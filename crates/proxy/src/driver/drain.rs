//! The end of a loop that leaves nobody without an answer: no new clients, those that are there
//! are closed as soon as what they asked is answered.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use super::{ACCEPTS_MAX, Loop, socket::Socket};

/// How often those are looked at whose sockets say nothing.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// How long a socket is kept whose client doesn't take the last bytes, or doesn't close it.
const LINGER: Duration = Duration::from_millis(500);
/// How many clients that wait to be accepted are, at most.
const WAITING_MAX: usize = 64 << 10;

/// A loop that ends.
pub(super) struct Drain {
    until: Instant,
    /// Clients that may have sent more than was read.
    open: Vec<usize>,
}

impl Drain {
    /// One more, whose connection was there already.
    pub fn add(&mut self, client: usize) {
        self.open.push(client);
    }
}

/// The socket of a client that is no more. Closing it with something unread could take back what
/// was written.
pub(super) struct Lingering {
    socket: Socket,
    until: Instant,
}

impl Loop {
    /// Begins to end; after `span` it ends whatever there is.
    pub(super) fn begin_drain(&mut self, span: Duration) {
        if self.drain.is_some() {
            return;
        }
        // Who waits has a connection already.
        for index in 0..self.listeners.len() {
            let mut rounds = WAITING_MAX / ACCEPTS_MAX;
            while self.accept_some(index) && rounds > 0 {
                rounds -= 1;
            }
        }
        self.listeners.clear();
        let there = self.clients.iter().enumerate();
        let open = there.filter_map(|(index, place)| place.is_some().then_some(index)).collect();
        self.drain = Some(Drain { until: Instant::now() + span, open });
    }

    /// Once a turn.
    pub(super) fn go_on_draining(&mut self) {
        let Some(Drain { until, mut open }) = self.drain.take() else { return };
        open.retain(|index| {
            let Some(Some(place)) = self.clients.get_mut(*index) else { return false };
            place.readable = true;
            self.read_client(*index);
            let Some(Some(place)) = self.clients.get_mut(*index) else { return false };
            if place.readable || !self.engine.client_rests(place.id) {
                return true;
            }
            place.wanted = false;
            self.engine.client_ended(place.id);
            false
        });
        let left = self.engine.clients() + self.arrivals.len() + self.lingering.len();
        self.stopping |= left == 0 || Instant::now() >= until;
        self.drain = Some(Drain { until, open });
    }

    /// Closes a client's socket once it has taken all.
    pub(super) fn linger(&mut self, mut socket: Socket) {
        socket.finish();
        if self.drain.is_none() && !socket.holds() {
            return;
        }
        self.lingering.push(Lingering { socket, until: Instant::now() + LINGER });
    }

    /// Once a turn.
    pub(super) fn go_on_lingering(&mut self) {
        let now = Instant::now();
        let buffer = &mut self.buffer;
        self.lingering.retain_mut(|each| {
            if each.socket.holds() {
                each.socket.finish();
            }
            let closed = match each.socket.read(buffer) {
                Ok((count, _)) => count == 0,
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
            !closed && now < each.until
        });
    }
}
