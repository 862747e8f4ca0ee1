//! Sockets, clock and threads for the engine: one event loop to a thread, nothing shared.
//!
//! A socket is registered once, edge-triggered, for both directions; afterwards a request costs a
//! read and a write at either end, less where several come together. A read that doesn't fill the
//! buffer has emptied the socket: it is not read again for an error that says so.
//!
//! TLS lies between a socket and the engine, which sees plain bytes only.

mod accepting;
mod arrivals;
mod certificates;
mod change;
mod crowd;
mod drain;
mod header;
mod resolver;
mod running;
mod socket;
mod tls;
pub(crate) mod tls_fault;

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, Sender},
    },
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, event::Event};

use self::{
    arrivals::Arrival,
    crowd::Seat,
    drain::{Drain, Lingering},
    resolver::Resolver,
    running::Message,
    socket::Socket,
    tls_fault::Peer,
};
pub use self::{
    certificates::{
        Acceptor, CertificateFiles, ClientAuthority, Connector, ServerTlsFiles, TlsError, TlsFiles,
    },
    change::{Change, Listening},
    crowd::Crowd,
    running::{Notice, Running, start},
    socket::{ListenError, Listener, Terms, listening_address},
};
use crate::{
    engine::{Action, ClientId, ConnId, Engine, Loss, Micros},
    route::Address,
};

/// Bytes that one read may bring.
const READ_BYTES: usize = 128 << 10;
/// Reads in a row from one socket, so that one client doesn't keep the others waiting.
const READS_MAX: usize = 8;
const EVENTS_MAX: usize = 1024;
/// Tokens: what a socket is stands in the lowest two bits, where it is in the others.
const KIND_BITS: usize = 2;
const CLIENT: usize = 0;
const CONN: usize = 1;
const LISTENER: usize = 2;
const ARRIVAL: usize = 3;
const WAKER: Token = Token(ARRIVAL);

/// A socket with what is known of it, so that no call is made in vain.
struct Place<T> {
    id: T,
    socket: Socket,
    /// There may be something to read.
    readable: bool,
    /// It took all that was written last.
    writable: bool,
    /// The engine wants to read it.
    wanted: bool,
    /// The other end won't send more: reads go on until they say so.
    closing: bool,
    /// Nothing was read yet.
    fresh: bool,
    /// Where clients are counted.
    _seat: Option<Seat>,
}

/// Sockets that have more to read than their share of a turn.
#[derive(Clone, Copy)]
enum Again {
    Client(usize),
    Conn(usize),
    Listener(usize),
}

struct Loop {
    poll: Poll,
    engine: Engine,
    started: Instant,
    /// By token; places are reused.
    listeners: Vec<Option<(usize, Listener)>>,
    /// Those of them whose clients could not be accepted, and when that is tried again.
    stuck: Vec<usize>,
    unstick: Micros,
    arrivals: Vec<Option<Arrival>>,
    clients: Vec<Option<Place<ClientId>>>,
    conns: Vec<Option<Place<ConnId>>>,
    buffer: Box<[u8]>,
    again: Vec<Again>,
    messages: Receiver<Message>,
    notices: Sender<Notice>,
    resolver: Resolver,
    /// How to speak with servers, where not plainly.
    tls: Option<Arc<Connector>>,
    /// It is about to end.
    drain: Option<Drain>,
    lingering: Vec<Lingering>,
    stopping: bool,
}

impl Loop {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !self.stopping {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = self.started.elapsed().as_micros() as Micros;
            self.engine.set_now(now);
            for event in &events {
                self.event(event);
            }
            for again in std::mem::take(&mut self.again) {
                match again {
                    Again::Client(index) => self.read_client(index),
                    Again::Conn(index) => self.read_conn(index),
                    Again::Listener(index) => self.accept(index),
                }
            }
            let due = self.engine.next_tick();
            if due.is_some_and(|due| due <= now) {
                self.engine.tick();
            }
            if !self.arrivals.is_empty() {
                self.expire_arrivals();
            }
            if !self.stuck.is_empty() && self.unstick <= now {
                self.accept_again(now);
            }
            if self.drain.is_some() {
                self.go_on_draining();
            }
            self.flush();
            if !self.lingering.is_empty() {
                self.go_on_lingering();
            }
        }
        Ok(())
    }

    /// How long nothing happens without an event.
    fn timeout(&self) -> Option<Duration> {
        if !self.again.is_empty() || self.engine.has_work() {
            return Some(Duration::ZERO);
        }
        let unstick = (!self.stuck.is_empty()).then_some(self.unstick);
        let due = self.engine.next_tick().into_iter().chain(unstick).min();
        let wait = due.map(|due| Duration::from_micros(due.saturating_sub(self.engine.now())));
        let wait = if self.arrivals.is_empty() {
            wait
        } else {
            Some(wait.map_or(arrivals::LOOK, |wait| wait.min(arrivals::LOOK)))
        };
        if self.drain.is_some() || !self.lingering.is_empty() {
            return Some(wait.map_or(drain::LOOK, |wait| wait.min(drain::LOOK)));
        }
        wait
    }

    fn event(&mut self, event: &Event) {
        let Token(token) = event.token();
        let index = token >> KIND_BITS;
        match token & ((1 << KIND_BITS) - 1) {
            CLIENT => {
                let Some(Some(place)) = self.clients.get_mut(index) else { return };
                place.closing |= event.is_read_closed() || event.is_error();
                if event.is_writable() && (!place.writable || place.socket.holds()) {
                    if place.socket.flush().is_err() {
                        self.lose_client(index);
                        return;
                    }
                    place.writable = true;
                    let id = place.id;
                    self.write_client(id);
                }
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    if let Some(Some(place)) = self.clients.get_mut(index) {
                        place.readable = true;
                    }
                    self.read_client(index);
                }
            }
            CONN => self.conn_event(index, event),
            LISTENER => self.accept(index),
            _ if index > 0 => self.go_on_arriving(index - 1),
            _ => self.receive(),
        }
    }

    fn conn_event(&mut self, index: usize, event: &Event) {
        let Some(Some(place)) = self.conns.get_mut(index) else { return };
        place.closing |= event.is_read_closed() || event.is_error();
        if event.is_writable() && (!place.writable || place.socket.holds()) {
            if let Err(error) = place.socket.failure().and_then(|()| place.socket.flush()) {
                self.lose_conn(index, connect_loss(&error));
                return;
            }
            self.open_conn(index);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            let Some(Some(place)) = self.conns.get_mut(index) else { return };
            place.readable = true;
            let opening = place.socket.opening();
            self.read_conn(index);
            if opening {
                self.open_conn(index);
            }
        }
    }

    /// A server may be written to, unless TLS has still to begin.
    fn open_conn(&mut self, index: usize) {
        if let Some(Some(place)) = self.conns.get_mut(index)
            && !place.socket.opening()
        {
            place.writable = true;
            self.engine.conn_opened(place.id);
        }
    }

    fn receive(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                Message::Topology { pool, topology } => self.engine.set_topology(pool, &topology),
                Message::Readers { pool, readers } => self.engine.set_readers(pool, &readers),
                Message::Users { pool, users } => self.engine.set_users(pool, users),
                Message::Resolved { conn, .. } if !self.engine.is_awaited(conn) => {}
                Message::Resolved { conn, name, address: Some(address) } => {
                    self.connect(conn, &name, Some(address));
                }
                Message::Resolved { conn, address: None, .. } => {
                    self.engine.conn_gone(conn, Loss::Unreachable);
                }
                Message::Change(change) => self.change(*change),
                Message::Preconnect { pool } => self.engine.preconnect(pool),
                Message::Figures(answers) => {
                    // Who asked may have stopped waiting.
                    let _ = answers.send(self.engine.figures());
                }
                Message::Drain(span) => self.begin_drain(Duration::ZERO, span),
                Message::HandOver { patience, span } => self.hand_over(patience, span),
                Message::Stop => self.stopping = true,
            }
        }
    }

    fn read_client(&mut self, index: usize) {
        for _ in 0..READS_MAX {
            let Some(Some(place)) = self.clients.get_mut(index) else { return };
            if !place.readable || !place.wanted {
                return;
            }
            let id = place.id;
            match place.socket.read(&mut self.buffer) {
                Ok((0, _)) => {
                    place.readable = false;
                    place.wanted = false;
                    self.engine.client_ended(id);
                    return;
                }
                Ok((count, emptied)) => {
                    place.readable = !emptied || place.closing;
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    if std::mem::take(&mut place.fresh) && tls_fault::is_hello(bytes) {
                        let client = place.socket.peer_address();
                        tracing::warn!(?client, "a client speaks TLS, where none is spoken");
                    }
                    let more = self.engine.client_bytes(id, bytes);
                    place.wanted = more;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => place.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if let Some(problem) = tls_fault::explained(&error, Peer::Client) {
                        let client = place.socket.peer_address();
                        tracing::warn!(?client, problem, "cannot speak TLS with a client");
                    }
                    self.engine.client_broke(id);
                    self.lose_client(index);
                    return;
                }
            }
        }
        self.again.push(Again::Client(index));
    }

    fn read_conn(&mut self, index: usize) {
        for _ in 0..READS_MAX {
            let Some(Some(place)) = self.conns.get_mut(index) else { return };
            if !place.readable || !place.wanted {
                return;
            }
            let id = place.id;
            match place.socket.read(&mut self.buffer) {
                Ok((0, _)) => {
                    let opening = place.socket.opening();
                    self.lose_conn(index, if opening { Loss::Unreachable } else { Loss::Closed });
                    return;
                }
                Ok((count, emptied)) => {
                    place.readable = !emptied || place.closing;
                    let bytes = self.buffer.get(..count).unwrap_or_default();
                    let more = self.engine.conn_bytes(id, bytes);
                    place.wanted = more;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => place.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if let Some(problem) = tls_fault::explained(&error, Peer::Server) {
                        let server = place.socket.peer_address();
                        tracing::warn!(?server, problem, "cannot speak TLS with a server");
                    }
                    let made = place.writable;
                    self.lose_conn(index, if made { Loss::Broken } else { connect_loss(&error) });
                    return;
                }
            }
        }
        self.again.push(Again::Conn(index));
    }

    fn lose_client(&mut self, index: usize) {
        if let Some(place) = self.clients.get_mut(index).and_then(Option::take) {
            self.engine.client_gone(place.id);
        }
    }

    fn lose_conn(&mut self, index: usize, loss: Loss) {
        if let Some(place) = self.conns.get_mut(index).and_then(Option::take) {
            self.engine.conn_gone(place.id, loss);
        }
    }

    /// Ends the turn: everything that can be written is written.
    fn flush(&mut self) {
        self.engine.settle();
        while let Some(id) = self.engine.next_conn_to_write() {
            self.write_conn(id);
        }
        while let Some(id) = self.engine.next_client_to_write() {
            self.write_client(id);
        }
        while let Some(action) = self.engine.next_action() {
            self.act(action);
        }
    }

    fn write_conn(&mut self, id: ConnId) {
        let Some(Some(place)) = self.conns.get_mut(id.index()) else { return };
        while place.writable && place.id == id {
            let bytes = self.engine.conn_output(id);
            if bytes.is_empty() {
                return;
            }
            match place.socket.write(bytes) {
                Ok(count) => {
                    let partly = count < bytes.len();
                    self.engine.conn_wrote(id, count);
                    // The rest would not fit now; the socket says when it does.
                    place.writable = !partly;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => place.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.lose_conn(id.index(), Loss::Broken);
                    return;
                }
            }
        }
    }

    fn write_client(&mut self, id: ClientId) {
        let Some(Some(place)) = self.clients.get_mut(id.index()) else { return };
        if place.id != id {
            return;
        }
        loop {
            let bytes = self.engine.client_output(id);
            if bytes.is_empty() || !place.writable {
                self.engine.client_wrote(id, 0);
                return;
            }
            match place.socket.write(bytes) {
                Ok(count) => {
                    place.writable = count == bytes.len();
                    if self.engine.client_wrote(id, count) {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => place.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.engine.client_broke(id);
                    self.lose_client(id.index());
                    return;
                }
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn, address } => match &*address {
                Address::Name { .. } => self.resolver.ask(conn, address),
                address => self.connect(conn, address, None),
            },
            Action::CloseConn(id) => {
                if self
                    .conns
                    .get(id.index())
                    .is_some_and(|p| p.as_ref().is_some_and(|p| p.id == id))
                    && let Some(place) = self.conns.get_mut(id.index())
                {
                    *place = None;
                }
                self.engine.forget_conn(id);
            }
            Action::CloseClient(id) => {
                if let Some(mut place) = self.clients.get_mut(id.index()).and_then(Option::take) {
                    self.engine.client_gone(place.id);
                    place.socket.deregister(self.poll.registry());
                    self.linger(place.socket);
                }
            }
            Action::ReadClient(id) => {
                if let Some(Some(place)) = self.clients.get_mut(id.index())
                    && place.id == id
                {
                    place.wanted = true;
                    self.again.push(Again::Client(id.index()));
                }
            }
            Action::ReadConn(id) => {
                if let Some(Some(place)) = self.conns.get_mut(id.index())
                    && place.id == id
                {
                    place.wanted = true;
                    self.again.push(Again::Conn(id.index()));
                }
            }
            Action::Refresh { pool } => {
                let _ = self.notices.send(Notice::Refresh { pool });
            }
            Action::Unread { client, server } => {
                let client = self.address_of(client).map(tracing::field::display);
                tracing::warn!(client, %server, "closing a client that doesn't read what it asked for");
            }
            Action::Evicted { client, bytes } => {
                let client = self.address_of(client).map(tracing::field::display);
                tracing::warn!(
                    client,
                    bytes,
                    "closing a client that holds much: all together have reached memory-max"
                );
            }
            Action::NotNear { server, error } => {
                tracing::warn!(%server, error, "the near cache holds nothing of this server");
            }
        }
    }

    fn address_of(&self, client: ClientId) -> Option<SocketAddr> {
        let place = self.clients.get(client.index()).and_then(Option::as_ref)?;
        place.socket.peer_address()
    }

    fn connect(&mut self, id: ConnId, address: &Address, resolved: Option<SocketAddr>) {
        let token = Token(id.index() << KIND_BITS | CONN);
        let made = Socket::connect(address, resolved, self.tls.as_deref());
        let made = made.and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            socket.register(self.poll.registry(), token, interest).map(|()| socket)
        });
        match made {
            Ok(socket) => {
                let place = Place {
                    id,
                    socket,
                    readable: false,
                    writable: false,
                    wanted: true,
                    closing: false,
                    fresh: true,
                    _seat: None,
                };
                put(&mut self.conns, id.index(), place);
            }
            Err(error) => self.engine.conn_gone(id, connect_loss(&error)),
        }
    }
}

/// How it ends when a connection cannot be made.
fn connect_loss(error: &io::Error) -> Loss {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => Loss::Refused,
        _ => Loss::Unreachable,
    }
}

fn put<T>(places: &mut Vec<Option<Place<T>>>, index: usize, place: Place<T>) {
    if index >= places.len() {
        places.resize_with(index + 1, || None);
    }
    if let Some(free) = places.get_mut(index) {
        *free = Some(place);
    }
}
