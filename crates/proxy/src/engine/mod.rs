//! The proxy's logic: bytes and events in, bytes and actions out. No sockets, no clock, no threads.
//!
//! A client's request is found in place, its key hashed, and its bytes copied once, into what is to
//! be written to a server, with a [`server::Pending`] that says who gets the reply. A reply is
//! found in place and copied once into what is to be written to its client; where it is not that
//! client's turn, it is parked first. Nothing is written before the end of a turn, so that one
//! write carries all that came together.
//!
//! What must hold:
//! - Replies reach the client that asked, in the order it asked. A reply that cannot be read, or that
//!   nobody asked for, ends the server's connection, and an error goes to all that waited there.
//! - Memory is bounded: [`Limits`] says by what. Who exceeds it is not read from until there is room;
//!   where all together do, those that hold most are closed ([`Memory`]).
//! - An idle client owns a [`Client`] and nothing else.
//!
//! How a driver uses it: [`Engine::set_now`], then whatever came ([`Engine::client_bytes`],
//! [`Engine::conn_bytes`], ...), then [`Engine::settle`], then it writes what
//! [`Engine::next_conn_to_write`] and [`Engine::next_client_to_write`] name, and does what
//! [`Engine::next_action`] says; again while [`Engine::has_work`].

mod blocking;
mod board;
mod client;
mod conns;
mod detour;
mod dispatch;
mod ejection;
mod error;
mod facade;
mod fan;
mod feed;
mod figures;
mod fragments;
mod gather;
mod hot_keys;
mod identity;
mod local;
mod login;
mod memory;
mod near;
mod output;
mod private;
mod quota;
mod readers;
mod redirect;
mod reload;
mod replies;
pub mod reply;
pub mod request;
mod scan;
mod scripts;
mod server;
mod session;
mod settings;
pub mod slab;
mod slow_log;
mod split;
mod stream;
mod subscription;
mod transaction;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc};

pub use self::{
    board::Board,
    client::{Client, Work},
    figures::{Figures, PoolFigures, Queue, ServerFigures},
    hot_keys::{HotFigures, HotKey, LargeKey},
    login::{Password, User, Users},
    memory::Memory,
    near::NearCache,
    quota::{Allowance, Quota, Taken},
    server::ConnId,
    settings::{Limits, PoolSetup, Profile},
    slow_log::{SlowLog, SlowRequest},
};
use self::{
    client::{Ending, Hold, Works},
    scripts::Scripts,
    server::{Conn, Link, Server},
    slab::{Id, Slab},
    split::Split,
};
use crate::{
    counters::PoolCounters,
    route::{Address, Route},
};

/// So much is read of what a client asks while its session doesn't let it be served.
const HELD_BYTES_MAX: usize = 64 << 10;

/// A point in time, or a span, in µs. Points count from whenever the driver started.
pub type Micros = u64;

/// Names a client.
pub type ClientId = Id<Client>;

/// What a driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a connection; then [`Engine::conn_opened`] or [`Engine::conn_gone`].
    Connect { conn: ConnId, address: Arc<Address> },
    /// Close the socket, then [`Engine::forget_conn`].
    CloseConn(ConnId),
    /// Close the socket, then [`Engine::client_gone`].
    CloseClient(ClientId),
    /// Read again from it; it was not read since [`Engine::client_bytes`] said so.
    ReadClient(ClientId),
    /// Read again from it; it was not read since [`Engine::conn_bytes`] said so.
    ReadConn(ConnId),
    /// The pool's topology seems to be outdated.
    Refresh { pool: usize },
    /// Say that a client is being closed because it doesn't read what it asked of a server.
    Unread { client: ClientId, server: Arc<Address> },
    /// Say that a client is being closed because all hold too much, and it so many bytes.
    Evicted { client: ClientId, bytes: usize },
    /// Say that the near cache holds nothing of a server, which won't tell what changes.
    NotNear { server: Arc<Address>, error: String },
}

/// How a connection to a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It could not be made: nobody listens, or its name is not known.
    Refused,
    /// It could not be made: no answer.
    Unreachable,
    /// The server closed it.
    Closed,
    /// It broke.
    Broken,
}

/// What has to be done before the turn ends.
#[derive(Default)]
pub(crate) struct Turn {
    pub dirty_clients: Vec<ClientId>,
    pub dirty_conns: Vec<ConnId>,
    /// Clients that may go on.
    pub woken: Vec<ClientId>,
    /// Connections that nobody needs any more.
    pub finished: Vec<ConnId>,
    /// Connections that may be read on.
    pub unstalled: Vec<ConnId>,
    pub actions: VecDeque<Action>,
}

pub(crate) struct Pool {
    route: Route,
    /// The route's servers, as indices of [`Core::servers`].
    servers: Vec<u16>,
    profile: u16,
    client_password: Option<String>,
    users: login::Logins,
    timeout: Option<Micros>,
    server_connections: usize,
    backoff_min: Micros,
    backoff_max: Micros,
    /// When ejected servers are to be looked at again.
    rering_at: Option<Micros>,
    counters: Arc<PoolCounters>,
    /// Slots whose requests have to wait.
    flux: Vec<redirect::Flux>,
    scripts: Scripts,
    readers: readers::ReaderTable,
    near: Option<Box<near::Near>>,
    /// Reads are not simply sent to primaries: there is one of the two.
    diverts: bool,
}

impl Pool {
    fn new(setup: PoolSetup, servers: Vec<u16>, profile: u16, users: login::Logins) -> Self {
        Self {
            route: setup.route,
            servers,
            profile,
            client_password: setup.client_password,
            users,
            timeout: setup.timeout,
            server_connections: setup.server_connections.max(1),
            backoff_min: setup.backoff_min,
            backoff_max: setup.backoff_max,
            rering_at: None,
            counters: Arc::default(),
            flux: Vec::new(),
            scripts: Scripts::default(),
            readers: readers::ReaderTable::default(),
            near: None,
            diverts: false,
        }
    }

    /// After a change of who answers reads.
    fn settle_reads(&mut self) {
        self.diverts = self.near.is_some() || !self.readers.is_empty();
    }
}

/// See the module.
pub struct Engine {
    clients: Slab<Client>,
    core: Core,
}

/// All but the clients, so that one of them can be at hand while it works.
struct Core {
    conns: Slab<Conn>,
    servers: Vec<Server>,
    pools: Vec<Pool>,
    profiles: Vec<Profile>,
    read_profiles: readers::ReadProfiles,
    splits: Slab<Split>,
    works: Works,
    meter: memory::Meter,
    turn: Turn,
    limits: Limits,
    /// Requests that take so long are noted.
    slow_after: Micros,
    sample: Option<hot_keys::Sample>,
    /// So many replies until the next one of the sample; it goes round where there is none.
    sample_in: u32,
    now: Micros,
    /// When [`Engine::tick`] was last called.
    ticked: Micros,
    clients_ever: u64,
    /// Connections that are stalled.
    stalls: usize,
    /// Connections that only answer what they were asked, and then end.
    retiring: usize,
    limbo: redirect::Limbo,
    /// Clients with subscriptions that no connection carries at the moment.
    adrift: Vec<ClientId>,
    /// Clients that are read later.
    later: quota::Later,
    /// Clients whose session waits for a slot to settle.
    postponed: Vec<ClientId>,
    scratch: fragments::Scratch,
    /// An inline request as servers want it; reused.
    inline: Vec<u8>,
    /// How often, so to say, a number was drawn.
    draws: u64,
}

impl Engine {
    pub fn new(limits: Limits) -> Self {
        let slow_after = limits.slow_log.as_ref().map_or(Micros::MAX, |log| log.slower_than());
        let sample = limits.sample_one_in.map(hot_keys::Sample::new);
        let core = Core {
            conns: Slab::default(),
            servers: Vec::new(),
            pools: Vec::new(),
            profiles: Vec::new(),
            read_profiles: readers::ReadProfiles::default(),
            splits: Slab::default(),
            works: Works::default(),
            meter: memory::Meter::default(),
            turn: Turn::default(),
            limits,
            slow_after,
            sample,
            sample_in: 1,
            now: 0,
            ticked: 0,
            clients_ever: 0,
            stalls: 0,
            retiring: 0,
            limbo: redirect::Limbo::default(),
            adrift: Vec::new(),
            later: quota::Later::default(),
            postponed: Vec::new(),
            scratch: fragments::Scratch::default(),
            inline: Vec::new(),
            draws: 0,
        };
        Self { clients: Slab::default(), core }
    }

    /// Adds a pool; its number is that of pools before it.
    pub fn add_pool(&mut self, mut setup: PoolSetup) -> usize {
        let pool = self.core.pools.len();
        let users = self.core.logins(std::mem::take(&mut setup.users));
        let profile = self.core.profile(setup.profile.clone());
        let servers = setup.servers.iter();
        let servers =
            servers.map(|address| self.core.add_server(pool, Arc::clone(address))).collect();
        let mut added = Pool::new(setup, servers, profile, users);
        added.near = self.core.near_for(&added.route, profile, &added.counters);
        added.settle_reads();
        self.core.limits.board.note_pool(pool, &added.counters);
        self.core.pools.push(added);
        pool
    }

    /// How many pools there are, removed ones among them.
    pub fn pools(&self) -> usize {
        self.core.pools.len()
    }

    /// The time until the next call. It never goes back.
    pub fn set_now(&mut self, now: Micros) {
        self.core.now = self.core.now.max(now);
    }

    /// What [`Engine::set_now`] was told.
    pub fn now(&self) -> Micros {
        self.core.now
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Somebody connected.
    pub fn client_opened(&mut self, pool: usize) -> ClientId {
        self.core.clients_ever += 1;
        let (profile, open) = self.core.pools.get(pool).map_or((0, true), |pool| {
            pool.counters.clients.add(1);
            pool.counters.clients_ever.add(1);
            (pool.profile, self.core.is_open(pool))
        });
        let mut client = Client::new(pool as u16, profile, open, self.core.clients_ever);
        client.limited = self.core.limits.quota.is_some();
        self.clients.insert(client)
    }

    /// A client's address, and that of ours which it is connected to.
    pub fn set_client_ends(&mut self, id: ClientId, peer: SocketAddr, local: SocketAddr) {
        if let Some(client) = self.clients.get_mut(id) {
            (client.peer, client.local) = (Some(peer), Some(local));
        }
    }

    /// Somebody connected for whom there was no place.
    pub fn client_refused(&mut self, pool: usize) {
        if let Some(pool) = self.core.pools.get(pool) {
            pool.counters.clients_refused.add(1);
        }
    }

    /// Is it between two requests, and does nothing that it sent wait, for data neither?
    pub fn client_rests(&self, id: ClientId) -> bool {
        self.clients.get(id).is_none_or(|client| {
            let whole = |work: &Work| work.query.is_empty() && work.stream.is_none();
            client.hold == Hold::None
                && !client.waits_for_data()
                && client.work.as_deref().is_none_or(whole)
        })
    }

    /// A client sent something. False: it is not to be read until [`Action::ReadClient`].
    pub fn client_bytes(&mut self, id: ClientId, bytes: &[u8]) -> bool {
        if self.core.meter.comes(bytes.len()) {
            self.look_over();
        }
        let Some(client) = self.clients.get_mut(id) else { return false };
        if client.ending != Ending::No {
            return false;
        }
        let held = client.work.as_deref_mut().map(|work| std::mem::take(&mut work.query));
        let mut held = held.unwrap_or_default();
        let waits = client.hold != Hold::None;
        if held.is_empty() && !waits {
            let used = self.core.serve(id, client, bytes);
            if let Some(rest) = bytes.get(used..)
                && !rest.is_empty()
            {
                held.extend_from_slice(rest);
            }
        } else {
            held.extend_from_slice(bytes);
            if !waits {
                let used = self.core.serve(id, client, &held);
                held.drain(..used);
            }
        }
        if client.limited {
            self.core.charge(id, client, bytes.len());
        }
        // Who waits for its own session is read on, to some extent: its end must be noticed.
        let reads = match client.hold {
            Hold::None => true,
            Hold::Answers | Hold::Session => held.len() < HELD_BYTES_MAX,
            Hold::Limits | Hold::Server | Hold::Quota => false,
        };
        self.core.keep_query(id, client, held);
        reads && client.ending == Ending::No
    }

    /// A client won't send more. What it asked is answered, then it is closed.
    pub fn client_ended(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.waits_for_data() {
            // As with the engines: nobody is there to take what may come.
            self.close_client(id);
        } else if client.ending == Ending::No {
            client.ending = Ending::Ended;
            self.core.break_stream(client);
            client.mark(id, &mut self.core.turn);
        }
    }

    /// A client's connection failed; [`Engine::client_gone`] follows.
    pub fn client_broke(&mut self, id: ClientId) {
        let pool = self.clients.get(id).map(|client| usize::from(client.pool));
        if let Some(pool) = pool.and_then(|pool| self.core.pools.get(pool)) {
            pool.counters.clients_broken.add(1);
        }
    }

    /// A client's socket is closed. Replies to it are dropped.
    pub fn client_gone(&mut self, id: ClientId) {
        let Some(mut client) = self.clients.remove(id) else { return };
        if client.limited {
            self.core.later.forget(id);
        }
        self.core.drop_work(&mut client);
        let Core { pools, conns, .. } = &mut self.core;
        if let Some(pool) = pools.get(usize::from(client.pool)) {
            pool.counters.clients.sub(1);
            pool.counters.clients_ended.add(1);
        }
        // Nothing keeps those back any more that waited for it to read. Where nobody else waits
        // there is no use in reading.
        let stalled: Vec<ConnId> = conns
            .iter()
            .filter(|(_, conn)| conn.stalled.is_some_and(|(client, _)| client == id))
            .map(|(conn_id, _)| conn_id)
            .collect();
        for conn in stalled {
            if self.others_wait(conn, id) {
                self.core.turn.unstalled.push(conn);
            } else {
                self.kill_conn(conn, error::LOST);
            }
        }
        for conn in client.session.iter().flat_map(|session| session.conns()) {
            self.kill_conn(conn, error::LOST);
        }
    }

    /// Ends the turn's work: goes on with what had to wait and may go on now.
    pub fn settle(&mut self) {
        while let Some(id) = self.core.turn.woken.pop() {
            self.continue_client(id);
        }
        while let Some(id) = self.core.turn.unstalled.pop() {
            self.continue_conn(id);
        }
        while let Some(id) = self.core.turn.finished.pop() {
            self.kill_conn(id, error::LOST);
        }
    }

    fn continue_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.hold == Hold::None || (client.hold == Hold::Quota && self.core.later.holds(id)) {
            return;
        }
        if client.hold == Hold::Answers {
            if client.outstanding() > 0 {
                return;
            }
            // Its last request is answered: it needs no connection of its own any more.
            self.core.end_stream(client);
        }
        client.hold = Hold::None;
        let query = client.work.as_deref_mut().map(|work| std::mem::take(&mut work.query));
        let mut query = query.unwrap_or_default();
        let used = self.core.serve(id, client, &query);
        query.drain(..used);
        if client.limited {
            self.core.charge(id, client, 0);
        }
        self.core.keep_query(id, client, query);
        if client.ending != Ending::No {
            client.mark(id, &mut self.core.turn);
        } else if client.hold == Hold::None {
            self.core.turn.actions.push_back(Action::ReadClient(id));
        }
    }

    /// Is there more to do before waiting for events?
    pub fn has_work(&self) -> bool {
        let turn = &self.core.turn;
        let lists = [turn.dirty_clients.is_empty(), turn.woken.is_empty()];
        let others =
            [turn.dirty_conns.is_empty(), turn.unstalled.is_empty(), turn.finished.is_empty()];
        !(lists.into_iter().chain(others).all(|empty| empty) && turn.actions.is_empty())
    }

    pub fn next_action(&mut self) -> Option<Action> {
        self.core.turn.actions.pop_front()
    }

    /// A client that has something to be written, or to be looked after by
    /// [`Engine::client_wrote`].
    pub fn next_client_to_write(&mut self) -> Option<ClientId> {
        loop {
            let id = self.core.turn.dirty_clients.pop()?;
            if let Some(client) = self.clients.get_mut(id) {
                client.dirty = false;
                return Some(id);
            }
        }
    }

    /// What is to be written to it.
    pub fn client_output(&self, id: ClientId) -> &[u8] {
        let work = self.clients.get(id).and_then(|client| client.work.as_deref());
        work.map(|work| work.output.unsent()).unwrap_or_default()
    }

    /// So many of those bytes were written. True: all of them.
    pub fn client_wrote(&mut self, id: ClientId, count: usize) -> bool {
        let Some(client) = self.clients.get_mut(id) else { return true };
        if client.limited {
            self.core.charge_reply(client, count);
        }
        let Core { turn, works, limits, conns, pools, stalls, .. } = &mut self.core;
        let mut done = true;
        if let Some(work) = client.work.as_deref_mut() {
            work.output.wrote_and_done(count);
            done = work.output.unsent_len() == 0;
        }
        if let Some(pool) = pools.get(usize::from(client.pool)) {
            pool.counters.response_bytes.add(count as u64);
        }
        if client.hold == Hold::Limits
            && client.outstanding() <= limits.outstanding_max / 2
            && client.bytes_waiting() <= limits.waiting_bytes_max / 2
        {
            turn.woken.push(id);
        }
        if client.hold == Hold::Answers && client.outstanding() == 0 {
            turn.woken.push(id);
        }
        if *stalls > 0 && client.bytes_unsent() <= limits.waiting_bytes_hard / 2 {
            turn.unstalled.extend(conns.iter().filter_map(|(conn_id, conn)| {
                conn.stalled.is_some_and(|(client, _)| client == id).then_some(conn_id)
            }));
        }
        let ends = matches!(client.ending, Ending::Ended | Ending::Answering);
        if done && ends && client.outstanding() == 0 && client.hold == Hold::None {
            client.ending = Ending::Closed;
            turn.actions.push_back(Action::CloseClient(id));
        }
        client.rest(works);
        done
    }
}

impl Core {
    /// Puts back what was not served.
    fn keep_query(&mut self, id: ClientId, client: &mut Client, query: Vec<u8>) {
        if client.ending >= Ending::Answering {
            client.mark(id, &mut self.turn);
            return;
        }
        if query.capacity() > 0 && (!query.is_empty() || client.work.is_some()) {
            client.work.get_or_insert_with(|| self.works.take()).query = query;
        }
        if !client.dirty {
            client.rest(&mut self.works);
        }
    }

    fn profile(&mut self, profile: Profile) -> u16 {
        let found = self.profiles.iter().position(|each| *each == profile);
        found.unwrap_or_else(|| {
            self.profiles.push(profile);
            self.profiles.len() - 1
        }) as u16
    }

    /// Adds a server to those of a pool; the same address is the same server.
    fn add_server(&mut self, pool: usize, address: Arc<Address>) -> u16 {
        let same = |each: &Server| usize::from(each.pool) == pool && each.address == address;
        if let Some(found) = self.servers.iter().position(same) {
            return found as u16;
        }
        let counters = Arc::default();
        self.limits.board.note_server(pool, &address, &counters);
        self.servers.push(Server {
            pool: pool as u16,
            address,
            links: Vec::<Link>::new(),
            failures: 0,
            retry_at: 0,
            faults: 0,
            fault_at: 0,
            ejected_until: 0,
            counters,
        });
        (self.servers.len() - 1) as u16
    }
}
