//! SUBSCRIBE, PSUBSCRIBE, SSUBSCRIBE and their opposites.
//!
//! A client's subscriptions are carried by connections that carry nothing else (feeds): one to any
//! server of a cluster, to the owners of the slots of its sharded channels; in a ring to each
//! server that has one of its channels. What it is subscribed to is known here, so only messages
//! for that reach it, and a lost feed is replaced without its notice: what is published meanwhile
//! is missed, as by any subscriber. Where that fails for long, the client is closed.

use std::collections::BTreeMap;

use protocol::commands::{Arguments as _, Command};

use super::{
    ClientId, ConnId, Core, Micros,
    client::{Awaited, Client, Works},
    dispatch::{Outcome, Request},
    identity::push_bulk,
    server::{Pending, Role},
    slab::Id,
    split::push_number,
};
use crate::route::Route;

/// What can be subscribed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    Channel,
    Pattern,
    Shard,
}

impl Sort {
    pub const ALL: [Self; 3] = [Self::Channel, Self::Pattern, Self::Shard];

    pub fn subscribe(self) -> &'static str {
        match self {
            Self::Channel => "subscribe",
            Self::Pattern => "psubscribe",
            Self::Shard => "ssubscribe",
        }
    }

    pub fn unsubscribe(self) -> &'static str {
        match self {
            Self::Channel => "unsubscribe",
            Self::Pattern => "punsubscribe",
            Self::Shard => "sunsubscribe",
        }
    }
}

/// What carries a subscription. Nobody's connection: it is lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub server: u16,
    pub conn: ConnId,
}

/// A client's subscriptions.
#[derive(Default)]
pub(super) struct Subscriptions {
    /// By sort; a pattern has several places in a ring.
    topics: [BTreeMap<Box<[u8]>, Vec<Place>>; 3],
    feeds: Vec<Place>,
    /// The request that the servers have not confirmed yet.
    pub request: Option<Asked>,
    /// What of it waits for its slot to settle, until then.
    pub postponed: Vec<(Micros, Pending, Box<[u8]>)>,
    /// What is subscribed to again, in the order in which each feed was asked.
    pub renewed: Vec<(ConnId, Sort, Box<[u8]>)>,
    /// Since when something is carried by nobody.
    pub adrift_since: Option<Micros>,
    /// Messages that came in the middle of a long reply.
    pub held: Vec<u8>,
}

/// A request to subscribe.
pub(super) struct Asked {
    pub number: u32,
    pub sort: Sort,
    pub topics: Vec<(Box<[u8]>, Vec<Place>)>,
    /// Confirmations to come.
    pub left: usize,
    pub error: Option<Box<[u8]>>,
}

/// A client whose subscriptions could not be carried on for so long is closed.
pub(super) const ADRIFT_MAX: Micros = 30_000_000;

impl Subscriptions {
    /// Channels, patterns, sharded channels.
    pub fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|index: usize| self.topics.get(index).map_or(0, BTreeMap::len))
    }

    pub fn conns(&self) -> impl Iterator<Item = ConnId> {
        self.feeds.iter().map(|feed| feed.conn)
    }

    pub fn of(&mut self, sort: Sort) -> &mut BTreeMap<Box<[u8]>, Vec<Place>> {
        let [channels, patterns, shards] = &mut self.topics;
        match sort {
            Sort::Channel => channels,
            Sort::Pattern => patterns,
            Sort::Shard => shards,
        }
    }

    pub fn has(&mut self, sort: Sort, name: &[u8]) -> bool {
        self.of(sort).contains_key(name)
    }

    /// The number that is told with each confirmation.
    pub fn count(&self, sort: Sort) -> usize {
        let [channels, patterns, shards] = self.counts();
        if sort == Sort::Shard { shards } else { channels + patterns }
    }

    fn is_empty(&self) -> bool {
        self.counts() == [0; 3] && self.request.is_none()
    }

    /// All that a lost connection carried is carried by nobody.
    pub fn lose(&mut self, conn: ConnId) {
        self.feeds.retain(|feed| feed.conn != conn);
        self.renewed.retain(|(of, _, _)| *of != conn);
        let places = self.topics.iter_mut().flat_map(BTreeMap::values_mut).flatten();
        for place in places.filter(|place| place.conn == conn) {
            place.conn = Id::nobody();
        }
    }
}

impl Core {
    /// A request while there are subscriptions; None: they have nothing against it.
    pub(super) fn while_subscribed(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Option<Outcome> {
        let resp3 = client.protocol == 3;
        let subscriptions = client.subscriptions_mut()?;
        if subscriptions.request.is_some() {
            return Some(client.wait_for_quiet());
        }
        if resp3 {
            return None;
        }
        match command.name {
            "quit" | "reset" => None,
            name if name.ends_with("subscribe") => None,
            "ping" => {
                let text = request.get(1).unwrap_or_default();
                let mut answer = b"*2\r\n$4\r\npong\r\n".to_vec();
                push_bulk(&mut answer, text);
                self.reply(id, client, &answer);
                Some(Outcome::Taken)
            }
            name => {
                let text = format!(
                    "-ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING \
                    / QUIT / RESET are allowed in this context\r\n"
                );
                self.reply(id, client, text.as_bytes());
                Some(Outcome::Taken)
            }
        }
    }

    pub(super) fn subscribe(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        let sort = |verb: fn(Sort) -> &'static str| {
            Sort::ALL.into_iter().find(|sort| verb(*sort) == command.name)
        };
        if let Some(sort) = sort(Sort::unsubscribe) {
            self.unsubscribe(id, client, request, sort);
            return Outcome::Taken;
        }
        let Some(sort) = sort(Sort::subscribe) else { return Outcome::Taken };
        if client.outstanding() > 0 {
            return client.wait_for_quiet();
        }
        if let Err(error) = self.only_place(client, request, command) {
            self.reply(id, client, error);
            return Outcome::Taken;
        }
        let mut topics = Vec::new();
        for name in (1..request.words).filter_map(|index| request.get(index)) {
            let servers = self.carriers(client, sort, name, None);
            let places: Result<Vec<Place>, _> =
                servers.iter().map(|server| self.feed(id, client, *server)).collect();
            match places {
                Ok(places) if !places.is_empty() => topics.push((Box::from(name), places)),
                Ok(_) => {
                    self.nobody(id, client);
                    return Outcome::Taken;
                }
                Err(error) => {
                    self.close_unused(client);
                    self.fail_now(id, client, error);
                    return Outcome::Taken;
                }
            }
        }
        let number = client.await_reply(&mut self.works);
        let mut left = 0;
        for (name, places) in &topics {
            for place in places {
                self.put_words(place.conn, (id, number), sort.subscribe(), name, Role::Subscribing);
                left += 1;
            }
        }
        let asked = Asked { number, sort, topics, left, error: None };
        client.session_mut().subscriptions.get_or_insert_default().request = Some(asked);
        client.settle();
        Outcome::Taken
    }

    /// Answered at once: no message reaches the client any more, whatever still comes.
    fn unsubscribe(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        sort: Sort,
    ) {
        let mut names: Vec<Box<[u8]>> =
            (1..request.words).filter_map(|index| request.get(index)).map(Box::from).collect();
        if let Some(subscriptions) = client.subscriptions_mut()
            && names.is_empty()
        {
            names = subscriptions.of(sort).keys().cloned().collect();
        }
        let resp3 = client.protocol == 3;
        let mut answer = Vec::new();
        let mut nothing = Subscriptions::default();
        let subscriptions = client.subscriptions_mut().unwrap_or(&mut nothing);
        if names.is_empty() {
            push_notice(&mut answer, resp3, sort.unsubscribe(), None, subscriptions.count(sort));
        }
        for name in &names {
            for place in subscriptions.of(sort).remove(name).unwrap_or_default() {
                let nobody = (Id::nobody(), 0);
                self.put_words(place.conn, nobody, sort.unsubscribe(), name, Role::Silent);
            }
            let count = subscriptions.count(sort);
            push_notice(&mut answer, resp3, sort.unsubscribe(), Some(name), count);
        }
        self.close_unused(client);
        self.reply(id, client, &answer);
    }

    /// Ends the feeds of a client that has no subscription.
    pub(super) fn close_unused(&mut self, client: &mut Client) {
        let Some(session) = client.session.as_deref_mut() else { return };
        if session.subscriptions.as_ref().is_some_and(Subscriptions::is_empty)
            && let Some(subscriptions) = session.subscriptions.take()
        {
            for conn in subscriptions.conns() {
                self.close_private(conn);
            }
            client.settle();
        }
    }

    /// The servers that a subscription is to be made at.
    pub(super) fn carriers(
        &self,
        client: &mut Client,
        sort: Sort,
        name: &[u8],
        lost: Option<u16>,
    ) -> Vec<u16> {
        let Some(pool) = self.pools.get(usize::from(client.pool)) else { return Vec::new() };
        let owner = |name| {
            let server = pool.route.target(name).server?;
            pool.servers.get(usize::from(server)).copied()
        };
        match (&pool.route, sort) {
            (Route::Ring(_), Sort::Pattern) => pool.servers.clone(),
            (Route::Ring(_), _) | (Route::Slots(_), Sort::Shard) => {
                owner(name).into_iter().collect()
            }
            (Route::Slots(_), _) => {
                let index = client.number as usize;
                let feeds = client.subscriptions_mut().map(|all| all.feeds.as_slice());
                let found = feeds.unwrap_or_default().first().map(|feed| feed.server);
                let mut others = pool.servers.iter().copied();
                let usable = |server: &u16| {
                    let found = self.servers.get(usize::from(*server));
                    Some(*server) != lost && found.is_some_and(|found| found.retry_at <= self.now)
                };
                let count = others.clone().filter(usable).count().max(1);
                let chosen = others.clone().filter(usable).nth(index % count);
                found.or(chosen).or_else(|| others.next()).into_iter().collect()
            }
        }
    }

    /// The client's feed from a server; a new one where it has none.
    pub(super) fn feed(
        &mut self,
        id: ClientId,
        client: &mut Client,
        server: u16,
    ) -> Result<Place, &'static [u8]> {
        let profile = client.profile;
        let subscriptions = client.session_mut().subscriptions.get_or_insert_default();
        if let Some(feed) = subscriptions.feeds.iter().find(|feed| feed.server == server) {
            return Ok(*feed);
        }
        let conn = self.take_private(server, profile, id)?;
        if let Some(private) = self.conns.get_mut(conn).and_then(|conn| conn.private.as_mut()) {
            private.feed = true;
        }
        let place = Place { server, conn };
        subscriptions.feeds.push(place);
        Ok(place)
    }

    pub(super) fn put_words(
        &mut self,
        conn: ConnId,
        (client, number): (ClientId, u32),
        verb: &str,
        name: &[u8],
        role: Role,
    ) {
        let mut request = Vec::new();
        protocol::resp::encode_command([verb.as_bytes(), name], &mut request);
        self.put(conn, client, number, &request, role);
    }
}

/// A confirmation.
pub(super) fn push_notice(
    out: &mut Vec<u8>,
    resp3: bool,
    verb: &str,
    name: Option<&[u8]>,
    count: usize,
) {
    out.extend_from_slice(if resp3 { b">3\r\n" } else { b"*3\r\n" });
    push_bulk(out, verb.as_bytes());
    match name {
        Some(name) => push_bulk(out, name),
        None => out.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
    }
    out.push(b':');
    push_number(out, count as u64);
    out.extend_from_slice(b"\r\n");
}

impl Client {
    /// A place in the order of replies for one that will come.
    fn await_reply(&mut self, works: &mut Works) -> u32 {
        let work = self.work.get_or_insert_with(|| works.take());
        let number = self.head.wrapping_add(work.ring.len() as u32);
        work.ring.push_back(Awaited::Reply);
        number
    }

    /// Says something between two replies.
    pub(super) fn say(&mut self, works: &mut Works, bytes: &[u8]) {
        let work = self.work.get_or_insert_with(|| works.take());
        work.output.bytes().extend_from_slice(bytes);
    }

    /// Is the last that was said the beginning of a reply?
    pub(super) fn is_in_reply(&self) -> bool {
        self.work.as_deref().is_some_and(|work| work.in_reply)
    }

    pub(super) fn leave_reply(&mut self) {
        if let Some(work) = self.work.as_deref_mut() {
            work.in_reply = false;
        }
    }
}
