//! The end of a loop that leaves nobody without an answer: no new clients, those that are there
//! are closed as soon as what they asked is answered.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use super::{Loop, accepting::ACCEPTS_MAX, socket::Socket};

/// How often those are looked at whose sockets say nothing.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// How long a socket is kept whose client doesn't take the last bytes, or doesn't close it.
const LINGER: Duration = Duration::from_millis(500);
/// How many clients that wait to be accepted are, at most.
const WAITING_MAX: usize = 64 << 10;

/// A loop that ends.
pub(super) struct Drain {
    /// Until then clients are served as ever.
    calm_until: Instant,
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
    /// Likewise, but those who wait to be accepted are somebody else's.
    pub(super) fn hand_over(&mut self, patience: Duration, span: Duration) {
        self.close_listeners();
        self.begin_drain(patience, span);
    }

    /// Begins to end; after `patience` and `span` it ends whatever there is. Who is asked again waits
    /// no longer.
    pub(super) fn begin_drain(&mut self, patience: Duration, span: Duration) {
        let calm_until = Instant::now() + patience;
        if let Some(drain) = &mut self.drain {
            drain.calm_until = calm_until.min(drain.calm_until);
            drain.until = (calm_until + span).min(drain.until);
            return;
        }
        // Who waits has a connection already.
        for index in 0..self.listeners.len() {
            let mut rounds = WAITING_MAX / ACCEPTS_MAX;
            while self.accept_some(index) && rounds > 0 {
                rounds -= 1;
            }
        }
        self.close_listeners();
        let there = self.clients.iter().enumerate();
        let open = there.filter_map(|(index, place)| place.is_some().then_some(index)).collect();
        self.drain = Some(Drain { calm_until, until: calm_until + span, open });
    }

    /// Another process may have the sockets too, so closing them doesn't end their events.
    fn close_listeners(&mut self) {
        for (_, mut listener) in self.listeners.drain(..).flatten() {
            listener.deregister(self.poll.registry());
        }
    }

    /// Once a turn.
    pub(super) fn go_on_draining(&mut self) {
        let Some(Drain { calm_until, until, mut open }) = self.drain.take() else { return };
        let calm = Instant::now() < calm_until;
        open.retain(|index| {
            if calm {
                return true;
            }
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
        self.drain = Some(Drain { calm_until, until, open });
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
