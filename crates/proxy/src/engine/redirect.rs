//! Following a cluster while it changes: requests that were not executed where they were sent go
//! where they belong, and clients see nothing of it.
//!
//! A redirection means that nothing was executed, so any command may be sent again; after a lost
//! connection only what was not written completely, or what is as good twice as once.
//!
//! One client's requests for a key stay in order: where the slot's owner changes, new requests to
//! it wait until those that were sent to the former owner, or that wait to be sent again, are
//! settled. Such a slot is in flux. What was on its way already when a node asked for patience may
//! be executed before what has to wait: a write that was overtaken so by its client's next request
//! is not sent again but answered with the node's error. A read is, and may see that request's
//! effect.

use std::sync::Arc;

use protocol::{
    Slot, commands,
    resp::{Redirect, ServerError},
};

use super::{
    ClientId, ConnId, Core, Engine, Micros, Route, error,
    fan::NO_LANE,
    request,
    server::{Kind, Pending},
    slab::Id,
};
use crate::route::{Address, Slots, Topology};

/// How long a request waits before it is sent again, where waiting is what helps.
pub(super) const PATIENCE: Micros = 20_000;
/// How long, where what is in its way is about to be gone.
const MOMENT: Micros = 1_000;
/// After so many tries each further one waits: nodes may send a request to and fro.
const TRIES_AT_ONCE: u16 = 8;
/// For so long requests are sent again in pools without a timeout.
const TRY_FOR: Micros = 5_000_000;
/// Requests that wait to be sent again may have so many bytes together.
const DELAYED_BYTES_MAX: usize = 64 << 20;

/// A request that waits to be sent again.
pub(super) struct Delayed {
    due: Micros,
    pool: u16,
    profile: u16,
    pending: Pending,
    bytes: Box<[u8]>,
    /// What its client is told when time is up.
    error: Box<[u8]>,
}

impl Delayed {
    pub fn new(pool: u16, profile: u16, pending: Pending, bytes: Box<[u8]>, error: &[u8]) -> Self {
        Self { due: 0, pool, profile, pending, bytes, error: error.into() }
    }
}

/// A slot whose owner changed while requests to it were on their way.
pub(super) struct Flux {
    lane: u16,
    /// Requests that are not settled yet.
    left: u32,
}

/// Requests that wait, and clients that wait for them.
#[derive(Default)]
pub(super) struct Limbo {
    delayed: Vec<Delayed>,
    bytes: usize,
    waiting: Vec<ClientId>,
}

impl Limbo {
    pub fn is_empty(&self) -> bool {
        self.delayed.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When something is to be sent again.
    pub fn due(&self) -> Option<Micros> {
        self.delayed.iter().map(|each| each.due).min()
    }
}

/// What an error reply asks for.
pub(super) enum Wanted {
    Moved { slot: Slot, address: Address },
    Ask { address: Address },
    Patience,
}

pub(super) fn wanted(reply: &[u8], asked: &Address) -> Option<Wanted> {
    let text = std::str::from_utf8(reply.strip_prefix(b"-")?).ok()?;
    let error = ServerError::parse(text.trim_end());
    let address = |host: &str, port| match host {
        "" | "?" => asked.with_port(port),
        host => Address::new(host, port),
    };
    match (error.code.as_str(), error.redirect()) {
        (_, Some(Redirect::Moved { slot, host, port })) => {
            Some(Wanted::Moved { slot, address: address(&host, port) })
        }
        (_, Some(Redirect::Ask { host, port, .. })) => {
            Some(Wanted::Ask { address: address(&host, port) })
        }
        ("TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN", None) => Some(Wanted::Patience),
        _ => None,
    }
}

impl Core {
    /// The reply to the oldest request on a connection, which is an error: if another try may
    /// help, the request is on its way again, and true is returned.
    #[cold]
    pub(super) fn try_again(&mut self, id: ConnId, pending: &Pending, reply: &[u8]) -> bool {
        let Some(conn) = self.conns.get(id) else { return false };
        let Some(server) = self.servers.get(usize::from(conn.server)) else { return false };
        let Some(wanted) = wanted(reply, &server.address) else { return false };
        let (pool_index, asked) = (server.pool, conn.server);
        let reader = self.of_reader(conn.profile);
        let profile = reader.unwrap_or(conn.profile);
        if self.time_is_up(pool_index, pending) {
            return false;
        }
        let bytes: Box<[u8]> = conn.output.kept(0, pending.length).into();
        if bytes.len() != pending.length {
            return false;
        }
        if let Some(pool) = self.pools.get(usize::from(pool_index)) {
            pool.counters.redirects.add(1);
        }
        let target = match wanted {
            // It is no more its slot, as far as it knows.
            Wanted::Moved { .. } | Wanted::Ask { .. } if reader.is_some() => {
                self.want_refresh(pool_index);
                self.server_of(pool_index, Some(pending.lane)).map(|owner| (owner, false))
            }
            Wanted::Moved { slot, address } => {
                let server = self.learn(pool_index, slot, address);
                self.want_refresh(pool_index);
                Some((server, false))
            }
            Wanted::Ask { address } => {
                Some((self.add_server(usize::from(pool_index), Arc::new(address)), true))
            }
            Wanted::Patience => {
                self.near_doubts(pool_index, asked);
                None
            }
        };
        let mut request = Delayed::new(pool_index, profile, *pending, bytes, reply);
        let Some((server, asking)) = target.filter(|_| pending.tries < TRIES_AT_ONCE) else {
            return self.delay(request, PATIENCE).is_ok();
        };
        // What follows on its heels will be redirected too. If it is executed instead, this one
        // must not be any more: so it waits.
        if self.has_followers(&request)
            || !self.send_again(server, profile, *pending, &request.bytes, asking)
        {
            return self.delay(request, MOMENT).is_ok();
        }
        self.settle_flux(pool_index, &mut request.pending);
        true
    }

    /// The reply to a request that was not kept: where it is a redirection, what its client is
    /// told instead.
    pub(super) fn explain_redirect(&mut self, id: ConnId, reply: &[u8]) -> Option<&'static [u8]> {
        if reply.first() != Some(&b'-') {
            return None;
        }
        let server = self.servers.get(usize::from(self.conns.get(id)?.server))?;
        let pool = server.pool;
        match wanted(reply, &server.address)? {
            Wanted::Moved { slot, address } => {
                self.learn(pool, slot, address);
            }
            Wanted::Ask { .. } => {}
            Wanted::Patience => return None,
        }
        self.want_refresh(pool);
        Some(error::MOVED_MEANWHILE)
    }

    /// Sends a request to a server; false where no connection can be had, or where what its client
    /// asked of the slot before is elsewhere.
    fn send_again(
        &mut self,
        server: u16,
        profile: u16,
        pending: Pending,
        bytes: &[u8],
        asking: bool,
    ) -> bool {
        let Ok(id) = self.conn_for(server, profile, pending.client) else { return false };
        if self.has_predecessors(id, &pending, bytes) {
            return false;
        }
        let Some(conn) = self.conns.get_mut(id) else { return false };
        if asking {
            let before = conn.output.len();
            conn.output.bytes().extend_from_slice(b"*1\r\n$6\r\nASKING\r\n");
            let length = conn.output.len() - before;
            let client = Id::nobody();
            let kind = Kind::Asking;
            let asking = Pending { client, length, kind, in_flux: false, ..pending };
            conn.pending.push_back(asking);
        }
        conn.output.bytes().extend_from_slice(bytes);
        let tries = pending.tries.saturating_add(1);
        let waited = self.now.saturating_sub(pending.at) / 1_000;
        let waited_ms = u16::try_from(waited).unwrap_or(u16::MAX);
        conn.pending.push_back(Pending { tries, waited_ms, in_flux: false, ..pending });
        conn.mark(id, &mut self.turn);
        let pool = self.servers.get(usize::from(server)).map_or(0, |server| server.pool);
        if let Some(pool) = self.pools.get(usize::from(pool)) {
            pool.counters.retries.add(1);
        }
        true
    }

    /// Keeps a request to send it again a little later; gives it back where there is no room or no
    /// time, or where no other server can do anything with it.
    pub(super) fn delay(&mut self, mut request: Delayed, wait: Micros) -> Result<(), Delayed> {
        if self.limbo.bytes + request.bytes.len() > DELAYED_BYTES_MAX
            || request.pending.lane == NO_LANE
            || self.time_is_up(request.pool, &request.pending)
        {
            return Err(request);
        }
        self.limbo.bytes += request.bytes.len();
        self.begin_flux(request.pool, &mut request.pending);
        request.due = self.now + wait;
        self.limbo.delayed.push(request);
        Ok(())
    }

    pub(super) fn time_is_up(&self, pool: u16, pending: &Pending) -> bool {
        let timeout = self.pools.get(usize::from(pool)).and_then(|pool| pool.timeout);
        pending.at + timeout.unwrap_or(TRY_FOR) <= self.now
    }

    /// Are later requests of the same client for the same keys on their way?
    fn has_followers(&self, waiting: &Delayed) -> bool {
        self.conns.iter().any(|(_, conn)| {
            conn.requests().any(|(pending, bytes)| {
                is_sibling(pending, &waiting.pending)
                    && is_before(waiting.pending.number, pending.number)
                    && share_keys(bytes, &waiting.bytes)
            })
        })
    }

    /// Are earlier requests of the same client for the same keys on their way over other
    /// connections, or waiting?
    fn has_predecessors(&self, over: ConnId, request: &Pending, words: &[u8]) -> bool {
        let is_one = |pending: &Pending, bytes: &[u8]| {
            is_sibling(pending, request)
                && is_before(pending.number, request.number)
                && share_keys(bytes, words)
        };
        let elsewhere = self.conns.iter().filter(|(id, _)| *id != over);
        elsewhere
            .flat_map(|(_, conn)| conn.requests())
            .any(|(pending, bytes)| is_one(pending, bytes))
            || self.limbo.delayed.iter().any(|each| is_one(&each.pending, &each.bytes))
    }

    /// Notes the slot's new owner.
    pub(super) fn learn(&mut self, pool_index: u16, slot: Slot, address: Address) -> u16 {
        let server = self.add_server(usize::from(pool_index), Arc::new(address));
        let Some(pool) = self.pools.get_mut(usize::from(pool_index)) else { return server };
        let index = pool.servers.iter().position(|each| *each == server).unwrap_or_else(|| {
            pool.servers.push(server);
            pool.servers.len() - 1
        }) as u16;
        if let Route::Slots(slots) = &mut pool.route
            && slots.owner(slot.number()) != Some(index)
        {
            slots.set_owner(slot.number(), index);
            if let Some(near) = &mut pool.near {
                near.has_moved(slot.number());
            }
            self.find_flux(pool_index);
        }
        server
    }

    /// Marks the requests that are on their way to where their slots don't belong any more.
    fn find_flux(&mut self, pool_index: u16) {
        let Some(pool) = self.pools.get_mut(usize::from(pool_index)) else { return };
        let Route::Slots(slots) = &pool.route else { return };
        for id in self.conns.ids() {
            // Readers are no owners anyway, and what they are asked may be late.
            let profile = self.conns.get(id).map(|conn| conn.profile);
            if profile.is_some_and(|profile| self.read_profiles.is_one(profile)) {
                continue;
            }
            let Some(conn) = self.conns.get_mut(id) else { continue };
            let server = self.servers.get(usize::from(conn.server));
            if server.is_none_or(|server| server.pool != pool_index) {
                continue;
            }
            for pending in conn.pending.iter_mut().filter(|each| each.kind == Kind::Request) {
                let owner = slots.owner(pending.lane);
                let owner = owner.and_then(|owner| pool.servers.get(usize::from(owner)));
                if owner != Some(&conn.server) && !pending.in_flux {
                    pending.in_flux = true;
                    add_flux(&mut pool.flux, pending.lane);
                }
            }
        }
    }

    fn begin_flux(&mut self, pool: u16, pending: &mut Pending) {
        if let Some(pool) = self.pools.get_mut(usize::from(pool))
            && !std::mem::replace(&mut pending.in_flux, true)
        {
            add_flux(&mut pool.flux, pending.lane);
        }
    }

    /// The request is settled, or is where it belongs.
    #[inline]
    pub(super) fn settle_flux(&mut self, pool: u16, pending: &mut Pending) {
        if std::mem::take(&mut pending.in_flux) {
            self.end_flux(pool, pending.lane);
        }
    }

    #[cold]
    fn end_flux(&mut self, pool: u16, lane: u16) {
        let Some(pool) = self.pools.get_mut(usize::from(pool)) else { return };
        if let Some(at) = pool.flux.iter().position(|flux| flux.lane == lane)
            && let Some(flux) = pool.flux.get_mut(at)
        {
            flux.left -= 1;
            if flux.left == 0 {
                pool.flux.swap_remove(at);
                self.turn.woken.append(&mut self.limbo.waiting);
            }
        }
    }

    /// Has a new request to this slot to wait? Then its client is noted.
    #[cold]
    pub(super) fn waits_for_flux(&mut self, pool: u16, lane: u16, id: ClientId) -> bool {
        let pool = self.pools.get(usize::from(pool));
        let waits = pool.is_some_and(|pool| pool.flux.iter().any(|flux| flux.lane == lane));
        if waits {
            self.limbo.waiting.push(id);
        }
        waits
    }

    /// Likewise for a request that concerns all slots.
    pub(super) fn waits_for_any_flux(&mut self, pool: u16, id: ClientId) -> bool {
        let waits = self.pools.get(usize::from(pool)).is_some_and(|pool| !pool.flux.is_empty());
        if waits {
            self.limbo.waiting.push(id);
        }
        waits
    }
}

/// Was the request with this number asked before the other?
fn is_before(number: u32, other: u32) -> bool {
    other.wrapping_sub(number).cast_signed() > 0
}

/// Are both requests of the same client to the same slot?
fn is_sibling(one: &Pending, other: &Pending) -> bool {
    one.client == other.client && one.lane == other.lane
}

/// Have two whole requests a key in common? True where one of them can't be read.
fn share_keys(one: &[u8], other: &[u8]) -> bool {
    let (one_words, other_words) = (words_of(one), words_of(other));
    match (keys_of(&one_words), keys_of(&other_words)) {
        (Some(keys), Some(others)) => keys.iter().any(|key| others.contains(key)),
        _ => true,
    }
}

fn words_of(request: &[u8]) -> Vec<&[u8]> {
    request::words(request).collect()
}

fn keys_of<'a>(words: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let keys = commands::resolve(words)?.keys(words).ok()?;
    Some(keys.filter_map(|index| words.get(index).copied()).collect())
}

fn add_flux(flux: &mut Vec<Flux>, lane: u16) {
    match flux.iter_mut().find(|flux| flux.lane == lane) {
        Some(flux) => flux.left += 1,
        None => flux.push(Flux { lane, left: 1 }),
    }
}

impl Engine {
    /// Gives a pool the current state of its cluster.
    pub fn set_topology(&mut self, pool_index: usize, topology: &Topology) {
        let mut slots = Slots::default();
        let mut servers = Vec::new();
        for primary in &topology.primaries {
            let server = servers.len() as u16;
            servers.push(self.core.add_server(pool_index, Arc::clone(&primary.address)));
            for slot in primary.slots.iter() {
                slots.set_owner(slot.number(), server);
            }
        }
        if let Some(pool) = self.core.pools.get_mut(pool_index) {
            (pool.route, pool.servers) = (Route::Slots(slots), servers);
            self.core.find_flux(pool_index as u16);
            self.core.near_follows(pool_index as u16);
            self.core.bring_scripts(pool_index as u16);
        }
    }

    /// Sends again what has waited long enough.
    pub(super) fn retry_delayed(&mut self) {
        let now = self.core.now;
        let mut delayed = std::mem::take(&mut self.core.limbo.delayed);
        // In the order in which each client asked; so far, none of them is in the way of another.
        delayed.sort_by_key(|each| each.pending.number);
        for mut each in delayed {
            if each.due > now {
                self.core.limbo.delayed.push(each);
                continue;
            }
            self.core.limbo.bytes -= each.bytes.len();
            if self.clients.get(each.pending.client).is_none() {
                self.core.settle_flux(each.pool, &mut each.pending);
                continue;
            }
            let mut wait = MOMENT;
            // Whether those overtake it is to be seen.
            if !self.core.has_followers(&each) {
                let pool = self.core.pools.get(usize::from(each.pool));
                let server = pool.and_then(|pool| match &pool.route {
                    Route::Slots(slots) => {
                        pool.servers.get(usize::from(slots.owner(each.pending.lane)?))
                    }
                    Route::Ring(_) => None,
                });
                let sent = server.copied().is_some_and(|server| {
                    self.core.send_again(server, each.profile, each.pending, &each.bytes, false)
                });
                if sent {
                    self.core.settle_flux(each.pool, &mut each.pending);
                    continue;
                }
                self.core.want_refresh(each.pool);
                wait = PATIENCE;
            }
            if let Err(mut each) = self.core.delay(each, wait) {
                self.fail(&each.pending, &each.error);
                self.core.settle_flux(each.pool, &mut each.pending);
            }
        }
    }

    /// The oldest request on a connection was executed, or refused for good: what its client asked
    /// of the same keys before, and waits to be sent again, must not change data any more.
    #[cold]
    pub(super) fn was_executed(&mut self, id: ConnId, executed: &Pending) {
        if let Some(conn) = self.core.conns.get(id) {
            let bytes = conn.output.kept(0, executed.length).to_vec();
            self.fail_overtaken(executed, &bytes);
        }
    }

    fn fail_overtaken(&mut self, executed: &Pending, bytes: &[u8]) {
        let overtaken = |each: &Delayed| {
            each.pending.writes
                && is_sibling(&each.pending, executed)
                && is_before(each.pending.number, executed.number)
                && share_keys(&each.bytes, bytes)
        };
        let (failed, kept) =
            std::mem::take(&mut self.core.limbo.delayed).into_iter().partition(overtaken);
        self.core.limbo.delayed = kept;
        let failed: Vec<Delayed> = failed;
        for mut each in failed {
            self.core.limbo.bytes -= each.bytes.len();
            self.fail(&each.pending, &each.error);
            self.core.settle_flux(each.pool, &mut each.pending);
        }
    }

    /// What becomes of a request whose connection is lost: it is sent again where it may, or
    /// answered. `unsent`: the server cannot have executed it.
    pub(super) fn lost(
        &mut self,
        pool: u16,
        profile: u16,
        mut pending: Pending,
        bytes: &[u8],
        unsent: bool,
        error: &[u8],
    ) {
        let again = (unsent || pending.repeatable)
            && bytes.len() == pending.length
            && self.clients.get(pending.client).is_some()
            && self
                .core
                .delay(Delayed::new(pool, profile, pending, bytes.into(), error), PATIENCE)
                .is_ok();
        if !again {
            if !unsent {
                self.fail_overtaken(&pending, bytes);
            }
            self.fail(&pending, if unsent { error } else { error::MAYBE });
            self.core.settle_flux(pool, &mut pending);
        }
    }
}
