//! The near cache: keys that are read often, answered from the proxy's own memory.
//!
//! For each server there is one connection more, which asks for such keys on the proxy's behalf, and
//! on which the server says when one of them changes (CLIENT TRACKING). A GET that finds its key here
//! is answered at once; any other goes its way, and nothing that is on its way to a server is changed
//! for the cache's sake.
//!
//! What must hold:
//! - Once a write that came through this engine is answered, no GET that comes later sees the value
//!   from before: the reply drops the key, and what is on its way of it ([`Core::near_reply_passed`]).
//!   Where it is not known which keys were written, it drops the slot.
//! - Nor does a GET see a value older than what the reply to an earlier GET said.
//! - A client's own requests stay in order: it is answered from here only while nothing that it waits
//!   for is in the key's slot ([`waits_in_slot`]).
//! - What a server says of a change drops the key, and what is on its way, which may have been read
//!   before. So does what makes it uncertain that the server would say it: a lost connection, another
//!   owner of the slot, a server that is not ready, and in any case the time of [`NearCache::age`].
//! - A value is held no longer than its key lives, which is asked along with it: a server says that a
//!   key has expired only when it comes across it.
//! - Only who is at the servers who the proxy itself is gets anything from here.
//!
//! Deliberately absent: rings, other commands than GET, and sharing between threads.
//! Source: "Client-side caching in Redis", and `tracking.c` of the engines.

mod cache;

use std::{collections::VecDeque, sync::Arc};

use protocol::{
    commands::{self, Route as Way},
    key_slot,
    resp::encode_command,
};

pub(super) use self::cache::Sum;
use self::cache::{Cache, Entry, Found};
use super::{
    Action, ClientId, ConnId, Core, Engine, Micros, Profile, Route,
    client::Client,
    fan::NO_LANE,
    request,
    server::{Conn, Kind, Pending},
    session::Session,
    slab::Id,
};
use crate::counters::PoolCounters;

/// A server whose connection was lost is not asked again before.
const RETRY: Micros = 1_000_000;
/// Nor one that doesn't know, or doesn't allow, what is needed.
const RETRY_REFUSED: Micros = 60_000_000;
/// A key that can't be held is not asked for again before.
const SHUNNED: Micros = 5_000_000;
/// Among more requests than so many a client's are not looked for.
const SEARCHED_MAX: usize = 1024;
/// So many keys are asked for at once on a connection.
const FETCHES_MAX: usize = 256;

/// How much is held, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NearCache {
    /// Keys and values of one engine, with what is needed to find them.
    pub bytes_max: usize,
    /// No value is older.
    pub age: Micros,
}

/// A pool's near cache.
pub(super) struct Near {
    cache: Cache,
    age: Micros,
    /// What its connections begin with.
    profile: u16,
    /// Who is served, with RESP2 and RESP3.
    served: [u16; 2],
    links: Vec<NearLink>,
}

/// The connection to a server.
struct NearLink {
    server: u16,
    conn: Option<ConnId>,
    retry_at: Micros,
    /// What was asked over it and not answered, in order.
    fetches: VecDeque<Fetch>,
}

/// A key that was asked for: how long it lives, then its value.
#[derive(Clone, Copy)]
struct Fetch {
    entry: Id<Entry>,
    at: Micros,
    /// Its value holds for so long.
    life: Micros,
    /// It could not be asked.
    failed: bool,
}

/// Which part of a [`Fetch`] a reply belongs to.
const LIFE: u16 = 0;
const VALUE: u16 = 1;

impl Near {
    /// A slot has another owner.
    pub(super) fn has_moved(&mut self, slot: u16) {
        self.cache.drop_slot(slot);
    }
}

impl Core {
    /// The near cache of a pool that begins.
    pub(super) fn near_for(
        &mut self,
        route: &Route,
        profile: u16,
        counters: &Arc<PoolCounters>,
    ) -> Option<Box<Near>> {
        let setup = self.limits.near.filter(|_| !route.is_ring())?;
        let served = [2, 3].map(|protocol| self.with_protocol(profile, protocol));
        let own = self.profiles.get(usize::from(profile)).cloned().unwrap_or_default();
        let profile = self.profile(Profile { resp3: true, tracks: true, ..own });
        let cache = Cache::new(setup.bytes_max, Arc::clone(counters));
        Some(Box::new(Near { cache, age: setup.age, profile, served, links: Vec::new() }))
    }

    /// Answers a client's request if it is a GET of a key that is held; else notes that it was asked.
    pub(super) fn answer_near(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &[u8],
        key: &[u8],
        (lane, server): (u16, u16),
    ) -> bool {
        if !client.plain || !is_get(request) {
            return false;
        }
        let Some(pool) = self.pools.get_mut(usize::from(client.pool)) else { return false };
        let Some(near) = pool.near.as_deref_mut() else { return false };
        if !near.served.contains(&client.profile) {
            return false;
        }
        let (servers, conns, retiring) = (&self.servers, &self.conns, self.retiring);
        let may = || {
            let server = servers.get(usize::from(server));
            let conn = server.and_then(|server| server.shared_conn(client.profile, id));
            let conn = conn.and_then(|conn| conns.get(conn));
            client.outstanding() == 0
                || (retiring == 0 && conn.is_none_or(|conn| !waits_in_slot(id, conn, lane)))
        };
        match near.cache.read(key, self.now, may) {
            Found::Value(value) => {
                pool.counters.near_hits.add(1);
                let value: &[u8] = match (value, client.protocol) {
                    (b"", 3) => b"_\r\n",
                    (b"", _) => b"$-1\r\n",
                    (value, _) => value,
                };
                client.answer_now(&mut self.works, |out| out.extend_from_slice(value));
                client.mark(id, &mut self.turn);
                let length = value.len();
                self.sample_near(key, request.len(), length);
                true
            }
            found => {
                pool.counters.near_misses.add(1);
                if let Found::Wanted { price } = found {
                    self.fetch(client.pool, key, (lane, server), price);
                }
                false
            }
        }
    }

    /// Asks for a key's value.
    #[cold]
    fn fetch(&mut self, pool: u16, key: &[u8], (lane, server): (u16, u16), price: u16) {
        let Some(conn_id) = self.near_conn(pool, server) else { return };
        let pool = self.pools.get_mut(usize::from(pool));
        let Some(near) = pool.and_then(|pool| pool.near.as_deref_mut()) else { return };
        let link = near.links.iter_mut().find(|link| link.conn == Some(conn_id));
        let Some(link) = link.filter(|link| link.fetches.len() < FETCHES_MAX) else { return };
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        let entry = near.cache.begin(key, lane, server, price);
        link.fetches.push_back(Fetch { entry, at: self.now, life: near.age, failed: false });
        for (part, name) in [(LIFE, "PTTL"), (VALUE, "GET")] {
            let before = conn.output.len();
            encode_command([name.as_bytes(), key], conn.output.bytes());
            let length = conn.output.len() - before;
            conn.pending.push_back(Pending {
                client: Id::nobody(),
                number: 0,
                part,
                lane,
                length,
                at: self.now,
                kind: Kind::Near,
                repeatable: false,
                writes: false,
                tries: 1,
                waited_ms: 0,
                in_flux: false,
            });
            if let Some(server) = self.servers.get(usize::from(server)) {
                server.counters.requests.add(1);
                server.counters.request_bytes.add(length as u64);
            }
        }
        conn.mark(conn_id, &mut self.turn);
    }

    /// The connection to a server over which keys are asked for; made now where there is none.
    fn near_conn(&mut self, pool: u16, server: u16) -> Option<ConnId> {
        let near = self.pools.get_mut(usize::from(pool))?.near.as_deref_mut()?;
        let at = near.links.iter().position(|link| link.server == server).unwrap_or_else(|| {
            let fetches = VecDeque::new();
            near.links.push(NearLink { server, conn: None, retry_at: 0, fetches });
            near.links.len() - 1
        });
        let link = near.links.get(at)?;
        if link.conn.is_some() {
            return link.conn;
        }
        if link.retry_at > self.now {
            return None;
        }
        let profile = near.profile;
        let conn_id = self.open_conn(server, profile).ok()?;
        self.conns.get_mut(conn_id)?.near = true;
        let near = self.pools.get_mut(usize::from(pool))?.near.as_deref_mut()?;
        near.links.get_mut(at)?.conn = Some(conn_id);
        Some(conn_id)
    }

    /// A server says something of its own over a near cache's connection.
    #[cold]
    pub(super) fn near_message(&mut self, id: ConnId, message: &[u8]) {
        let Some(keys) = message.strip_prefix(b">2\r\n$10\r\ninvalidate\r\n") else { return };
        let Some((near, counters, at)) = self.near_link(id) else { return };
        let mut dropped = 0;
        if keys.starts_with(b"*") && !keys.starts_with(b"*-") {
            for key in request::words(keys) {
                dropped += u64::from(near.cache.drop_key(key));
            }
        } else if let Some(server) = near.links.get(at).map(|link| link.server) {
            // All of them.
            dropped = near.cache.retain(|_, of| of != server) as u64;
        }
        counters.near_invalidations.add(dropped);
    }

    /// Whose connection it is, and which of its links.
    fn near_link(&mut self, id: ConnId) -> Option<(&mut Near, &PoolCounters, usize)> {
        let server = self.servers.get(usize::from(self.conns.get(id)?.server))?;
        let pool = self.pools.get_mut(usize::from(server.pool))?;
        let near = pool.near.as_deref_mut()?;
        let at = near.links.iter().position(|link| link.conn == Some(id))?;
        Some((near, &pool.counters, at))
    }

    /// What was asked for is answered.
    pub(super) fn near_reply(&mut self, id: ConnId, pending: &Pending, reply: &[u8]) {
        let now = self.now;
        let moved = reply.starts_with(b"-MOVED");
        let mut pool = 0;
        if let Some(server) = self.conns.get(id).map(|conn| usize::from(conn.server)) {
            pool = self.servers.get(server).map_or(0, |server| server.pool);
        }
        let Some((near, _, at)) = self.near_link(id) else { return };
        let Near { cache, links, .. } = near;
        let Some(link) = links.get_mut(at) else { return };
        let Some(fetch) = link.fetches.front_mut() else { return };
        if pending.part == LIFE {
            match life(reply) {
                Some(span) => fetch.life = fetch.life.min(span),
                None => fetch.failed = true,
            }
        } else if let Some(fetch) = link.fetches.pop_front() {
            let until = fetch.at + fetch.life;
            match value(reply).filter(|_| !fetch.failed && until > now) {
                Some(value) => cache.fill(fetch.entry, value, until),
                // No string, or not for us; or its life is over.
                None => cache.shun(fetch.entry, now + SHUNNED),
            }
        }
        if moved {
            self.want_refresh(pool);
        }
    }

    /// The beginning of a value: is it too long to be held? Then what comes of it is dropped.
    pub(super) fn is_too_long_for_near(&mut self, id: ConnId, part: &[u8]) -> bool {
        let now = self.now;
        let Some((near, _, at)) = self.near_link(id) else { return true };
        let length = part.get(1..).and_then(|part| request::number(part, 0).ok().flatten());
        if length.is_some_and(|(length, _)| length <= near.cache.value_bytes_max()) {
            return false;
        }
        let fetch = near.links.get_mut(at).and_then(|link| link.fetches.pop_front());
        if let Some(fetch) = fetch {
            near.cache.shun(fetch.entry, now + SHUNNED);
        }
        true
    }

    /// A server doesn't know, or doesn't allow, what the near cache needs.
    #[cold]
    pub(super) fn near_refused(&mut self, id: ConnId, error: &[u8]) {
        let retry_at = self.now + RETRY_REFUSED;
        let server = self.conns.get(id).and_then(|conn| self.servers.get(usize::from(conn.server)));
        let Some(server) = server.map(|server| Arc::clone(&server.address)) else { return };
        let Some((near, _, at)) = self.near_link(id) else { return };
        if let Some(link) = near.links.get_mut(at) {
            link.retry_at = retry_at;
        }
        let error = String::from_utf8_lossy(error).trim_end().to_owned();
        self.turn.actions.push_back(Action::NotNear { server, error });
    }

    /// A near cache's connection is no more: nobody would say what changes.
    #[cold]
    pub(super) fn near_lost(&mut self, id: ConnId) {
        let retry_at = self.now + RETRY;
        let Some((near, _, at)) = self.near_link(id) else { return };
        let Some(link) = near.links.get_mut(at) else { return };
        link.conn = None;
        link.retry_at = link.retry_at.max(retry_at);
        link.fetches.clear();
        let server = link.server;
        near.cache.retain(|_, of| of != server);
    }

    /// A server is not ready: others may serve its slots soon, or do already.
    #[cold]
    pub(super) fn near_doubts(&mut self, pool: u16, server: u16) {
        let pool = self.pools.get_mut(usize::from(pool));
        if let Some(near) = pool.and_then(|pool| pool.near.as_deref_mut()) {
            near.cache.retain(|_, of| of != server);
        }
    }

    /// Slots may have other owners now.
    pub(super) fn near_follows(&mut self, pool: u16) {
        let Some(pool) = self.pools.get_mut(usize::from(pool)) else { return };
        let (Some(near), Route::Slots(slots)) = (pool.near.as_deref_mut(), &pool.route) else {
            return;
        };
        near.cache.retain(|slot, server| {
            let owner = slots.owner(slot).and_then(|owner| pool.servers.get(usize::from(owner)));
            owner == Some(&server)
        });
        let gone = near.links.iter().filter(|link| !pool.servers.contains(&link.server));
        self.turn.finished.extend(gone.filter_map(|link| link.conn));
    }

    /// A near cache is no more, or another takes its place.
    pub(super) fn end_near(&mut self, near: Option<Box<Near>>) {
        let links = near.into_iter().flat_map(|near| near.links);
        self.turn.finished.extend(links.filter_map(|link| link.conn));
    }

    /// A client is about to be told a part of a reply, the first one if it `begins`. Where that is a value
    /// which is held, or on its way, they are compared in the end: what is asked for only later is newer.
    #[cold]
    pub(super) fn near_part_passed(
        &mut self,
        id: ConnId,
        pending: &Pending,
        part: &[u8],
        begins: bool,
    ) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if begins {
            let pool = self.servers.get(usize::from(conn.server)).map(|server| server.pool);
            let pool = pool.and_then(|pool| self.pools.get(usize::from(pool)));
            let near = pool.and_then(|pool| pool.near.as_deref());
            let bytes = conn.output.kept(0, pending.length);
            let key = request::words(bytes).nth(1).filter(|_| conn.keeps && is_get(bytes));
            let knows = key.zip(near).is_some_and(|(key, near)| near.cache.knows(key));
            conn.seen = knows.then(|| Sum::of(part));
        } else {
            conn.seen = conn.seen.map(|sum| sum.with(part));
        }
    }

    /// A client is about to be told the reply to a request that servers share connections for.
    /// `streamed`: this is only the rest of it.
    pub(super) fn near_reply_passed(
        &mut self,
        id: ConnId,
        pending: &Pending,
        reply: &[u8],
        streamed: bool,
    ) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let seen = conn.seen.take();
        let Some(conn) = self.conns.get(id) else { return };
        let reads_elsewhere = self.of_reader(conn.profile).is_some();
        let pool = self.servers.get(usize::from(conn.server)).map(|server| server.pool);
        let pool = pool.and_then(|pool| self.pools.get_mut(usize::from(pool)));
        let Some(near) = pool.and_then(|pool| pool.near.as_deref_mut()) else { return };
        let cache = &mut near.cache;
        if cache.is_empty() {
            return;
        }
        let lane = pending.lane;
        if pending.writes {
            if lane == NO_LANE {
                cache.retain(|_, _| false);
            } else if cache.has_slot(lane) || lane == key_slot(b"").number() {
                written(cache, lane, &words_of(conn, pending));
            }
        } else if !reads_elsewhere && cache.has_slot(lane) {
            let bytes = conn.output.kept(0, pending.length);
            let Some(key) = request::words(bytes).nth(1).filter(|_| is_get(bytes)) else { return };
            let seen = if streamed {
                seen.map(|sum| sum.with(reply))
            } else {
                // An error says nothing of a value.
                value(reply).map(Sum::of)
            };
            if let Some(seen) = seen {
                cache.saw(key, seen);
            }
        }
    }
}

impl Engine {
    /// A client is about to be told what its transaction, or its command that waited for data, did.
    #[cold]
    pub(super) fn near_session_passed(&mut self, client: ClientId) {
        let Some(client) = self.clients.get(client) else { return };
        let lane = client.session.as_deref().and_then(Session::lane);
        let pool = self.core.pools.get_mut(usize::from(client.pool));
        if let Some(near) = pool.and_then(|pool| pool.near.as_deref_mut())
            && let Some(lane) = lane
        {
            near.cache.drop_slot(lane);
        }
    }
}

/// Does a client wait for anything in a slot over its connection to the slot's server, as far as can be
/// told? What has to be sent again keeps the slot's later requests waiting anyway.
fn waits_in_slot(id: ClientId, conn: &Conn, lane: u16) -> bool {
    conn.pending.len() > SEARCHED_MAX
        || conn.pending.iter().any(|pending| {
            pending.client == id && (pending.lane == lane || pending.lane == NO_LANE)
        })
}

/// How long a key lives, as PTTL says it; None: that says nothing.
fn life(reply: &[u8]) -> Option<Micros> {
    match super::reply::integer(reply)? {
        // As long as it likes; or it isn't there.
        -1 | -2 => Some(Micros::MAX),
        span => Some(Micros::try_from(span).ok()?.saturating_mul(1_000)),
    }
}

/// A value as it is held: nothing where the key isn't there; None: it is no string.
fn value(reply: &[u8]) -> Option<&[u8]> {
    match reply {
        [b'_', ..] | [b'$', b'-', ..] => Some(b""),
        [b'$', ..] => Some(reply),
        _ => None,
    }
}

/// Is it GET with one word?
fn is_get(request: &[u8]) -> bool {
    let name = request.strip_prefix(b"*2\r\n$3\r\n").and_then(|rest| rest.get(..3));
    name.is_some_and(|name| name.eq_ignore_ascii_case(b"get"))
}

/// The words of a request that is kept; else none.
fn words_of<'a>(conn: &'a Conn, pending: &Pending) -> Vec<&'a [u8]> {
    let bytes = if conn.keeps { conn.output.kept(0, pending.length) } else { b"" };
    request::words(bytes).collect()
}

/// Drops what a request may have written: its keys where they are certain, else its slot; all where a
/// script may have found keys by itself.
fn written(cache: &mut Cache, lane: u16, words: &[&[u8]]) {
    let command = commands::resolve(words);
    let scripts = command.is_some_and(|command| command.group == "scripting");
    let keys = command.and_then(|command| command.keys(words).ok());
    let mut keys = keys.into_iter().flatten().filter_map(|index| words.get(index)).peekable();
    let certain = command.is_some_and(|command| {
        command.only_key().is_some() || matches!(command.route, Way::Split(_))
    });
    if scripts && keys.peek().is_none() {
        cache.retain(|_, _| false);
    } else if certain {
        for key in keys {
            cache.drop_key(key);
        }
    } else {
        cache.drop_slot(lane);
    }
}
