//! Feeds: the connections that carry subscriptions, what comes over them, and what becomes of it
//! when one is lost.

use super::{
    ClientId, ConnId, Core, Engine,
    client::Client,
    error,
    private::DELAY,
    replies::Read,
    reply::Scan,
    request::number,
    server::{Kind, Pending, Role},
    slab::Id,
    subscription::{ADRIFT_MAX, Place, Sort, push_notice},
    transaction::MOVES_MAX,
};

/// The first two elements of an array or push message; none where they are no strings.
fn first_two(frame: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, at) = number(frame, 1).ok()??;
    let (kind, at) = bulk(frame, at)?;
    let name = bulk(frame, at).map(|(name, _)| name);
    Some((kind, name.unwrap_or_default()))
}

fn bulk(frame: &[u8], at: usize) -> Option<(&[u8], usize)> {
    if frame.get(at) != Some(&b'$') {
        return None;
    }
    let (length, start) = number(frame, at + 1).ok()??;
    Some((frame.get(start..start + length)?, start + length + 2))
}

impl Core {
    /// Sends a request to subscribe once more.
    fn ask_again(&mut self, place: Place, sort: Sort, name: &[u8], asked: &Pending) {
        let from = (asked.client, asked.number);
        self.put_words(place.conn, from, sort.subscribe(), name, Role::Subscribing);
        let conn = self.conns.get_mut(place.conn);
        if let Some(sent) = conn.and_then(|conn| conn.pending.back_mut()) {
            (sent.at, sent.tries) = (asked.at, asked.tries.saturating_add(1));
        }
    }
}

impl Engine {
    /// What came over a feed.
    pub(super) fn read_feed(&mut self, id: ConnId, bytes: &[u8]) -> Read {
        let Some(conn) = self.core.conns.get_mut(id) else { return Read::Upto(0) };
        let owner = conn.private.map_or(Id::nobody(), |private| private.owner);
        let mut framer = conn.framer;
        let mut start = 0;
        let mut seen = std::mem::take(&mut conn.scanned);
        let read = loop {
            let rest = bytes.get(seen..).unwrap_or_default();
            if rest.is_empty() {
                break Read::Upto(start);
            }
            if self.is_full(owner) {
                self.stall(id, owner);
                break Read::Stalled(start);
            }
            match framer.scan(rest) {
                Ok(Scan::Whole(length)) => {
                    seen += length;
                    let frame = bytes.get(start..seen).unwrap_or_default();
                    start = seen;
                    self.core.count_bytes(id, frame.len());
                    if !self.feed_frame(id, owner, frame) {
                        return Read::Broken;
                    }
                }
                Ok(Scan::Part(length)) => {
                    seen += length;
                    break Read::Upto(start);
                }
                Err(_) => return Read::Broken,
            }
        };
        if let Some(conn) = self.core.conns.get_mut(id) {
            (conn.framer, conn.scanned) = (framer, seen - start);
        }
        read
    }

    /// A whole message or reply; false: it can't be understood.
    fn feed_frame(&mut self, id: ConnId, owner: ClientId, frame: &[u8]) -> bool {
        let Some(conn) = self.core.conns.get(id) else { return false };
        let front = conn.pending.front().map(|pending| pending.kind);
        // What every connection begins with.
        if front.is_some_and(|kind| !matches!(kind, Kind::Session(_))) {
            return self.reply(id, frame);
        }
        if frame.first() == Some(&b'-') {
            return self.feed_refused(id, owner, frame);
        }
        let Some((kind, name)) = first_two(frame) else { return false };
        match kind {
            b"message" => self.deliver(owner, Sort::Channel, name, frame),
            b"pmessage" => self.deliver(owner, Sort::Pattern, name, frame),
            b"smessage" => self.deliver(owner, Sort::Shard, name, frame),
            b"subscribe" | b"psubscribe" | b"ssubscribe" => {
                let Some(pending) = self.take_asked(id) else { return false };
                match pending.kind {
                    Kind::Session(Role::Subscribing) => self.confirmed(owner, &pending, None),
                    Kind::Session(Role::Renewing) => self.renewed(id, owner),
                    _ => return false,
                }
            }
            b"sunsubscribe" if self.is_carried(id, owner, name) => {
                // The slot has moved; nobody asked for it.
                self.drift(owner, Sort::Shard, name);
            }
            b"unsubscribe" | b"punsubscribe" | b"sunsubscribe" => {
                // One more may come than was asked for, when a slot moves at the same time.
                if front == Some(Kind::Session(Role::Silent)) {
                    self.take_asked(id);
                }
            }
            _ => return frame.first() == Some(&b'>'),
        }
        true
    }

    /// The request that a feed has answered now.
    fn take_asked(&mut self, id: ConnId) -> Option<Pending> {
        let conn = self.core.conns.get_mut(id)?;
        let pending = conn.pop()?;
        if let Some(server) = self.core.servers.get(usize::from(conn.server)) {
            server.counters.responses.add(1);
            server.counters.latency.record(self.core.now.saturating_sub(pending.at));
        }
        Some(pending)
    }

    fn deliver(&mut self, owner: ClientId, sort: Sort, name: &[u8], frame: &[u8]) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let partial = client.is_in_reply();
        let Some(subscriptions) = client.subscriptions_mut() else { return };
        if !subscriptions.has(sort, name) {
            return;
        }
        if partial {
            subscriptions.held.extend_from_slice(frame);
            if subscriptions.held.len() > self.core.limits.waiting_bytes_hard {
                self.close_client(owner);
            }
            return;
        }
        client.say(&mut self.core.works, frame);
        client.mark(owner, &mut self.core.turn);
    }

    /// A long reply has ended: what came meanwhile follows.
    #[cold]
    pub(super) fn long_reply_ended(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.leave_reply();
        let held = client.subscriptions_mut().map(|all| std::mem::take(&mut all.held));
        if let Some(held) = held.filter(|held| !held.is_empty()) {
            client.say(&mut self.core.works, &held);
            client.mark(id, &mut self.core.turn);
        }
    }

    /// One of the confirmations came that a request waits for, or an error in its place.
    fn confirmed(&mut self, owner: ClientId, pending: &Pending, error: Option<&[u8]>) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let resp3 = client.protocol == 3;
        let Some(subscriptions) = client.subscriptions_mut() else { return };
        let Some(asked) = &mut subscriptions.request else { return };
        if asked.number != pending.number {
            return;
        }
        asked.left = asked.left.saturating_sub(1);
        if asked.error.is_none() {
            asked.error = error.map(Box::from);
        }
        if asked.left > 0 {
            return;
        }
        let Some(asked) = subscriptions.request.take() else { return };
        let mut answer = Vec::new();
        if let Some(error) = asked.error {
            answer.extend_from_slice(&error);
        } else {
            for (name, places) in asked.topics {
                subscriptions.of(asked.sort).insert(name.clone(), places);
                let count = subscriptions.count(asked.sort);
                push_notice(&mut answer, resp3, asked.sort.subscribe(), Some(&name), count);
            }
        }
        self.core.close_unused(client);
        client.answer(asked.number, 0, &answer, &mut self.core.splits);
        client.mark(owner, &mut self.core.turn);
    }

    /// An error came over a feed.
    fn feed_refused(&mut self, id: ConnId, owner: ClientId, error: &[u8]) -> bool {
        let Some(pending) = self.take_asked(id) else { return false };
        match pending.kind {
            Kind::Session(Role::Subscribing) => {
                if !self.ask_elsewhere(id, owner, &pending, error) {
                    self.confirmed(owner, &pending, Some(error));
                }
                true
            }
            Kind::Session(Role::Renewing) => {
                self.core.elsewhere(id, error);
                let Some(client) = self.clients.get_mut(owner) else { return true };
                let Some(subscriptions) = client.subscriptions_mut() else { return true };
                let found = subscriptions.renewed.iter().position(|(of, _, _)| *of == id);
                if let Some((_, sort, name)) = found.map(|at| subscriptions.renewed.remove(at)) {
                    self.lay_adrift(owner, sort, &name);
                }
                true
            }
            _ => false,
        }
    }

    /// Sends a request to subscribe to sharded channels to where their slot is now.
    fn ask_elsewhere(
        &mut self,
        id: ConnId,
        owner: ClientId,
        pending: &Pending,
        error: &[u8],
    ) -> bool {
        let Some(elsewhere) = self.core.elsewhere(id, error) else { return false };
        let Some(client) = self.clients.get_mut(owner) else { return false };
        if self.core.time_is_up(client.pool, pending) {
            return false;
        }
        let place = if pending.tries > MOVES_MAX {
            None
        } else {
            self.core.feed(owner, client, elsewhere.server).ok()
        };
        let Some(all) = client.subscriptions_mut() else { return false };
        let request = all.request.as_mut().filter(|asked| asked.number == pending.number);
        let Some(asked) = request else { return false };
        // They are answered in order, and all of them in the same way: the first that is still
        // carried there is meant.
        let mut topics = asked.topics.iter_mut();
        let topic = topics.find(|(_, places)| places.iter().any(|each| each.conn == id));
        let Some((name, places)) = topic else { return false };
        let (name, sort) = (name.clone(), asked.sort);
        if let Some(place) = place {
            *places = vec![place];
            self.core.ask_again(place, sort, &name, pending);
        } else {
            *places = vec![Place { server: elsewhere.server, conn: Id::nobody() }];
            all.postponed.push((self.core.now + DELAY, *pending, name));
            self.core.postponed.push(owner);
        }
        true
    }

    /// Goes on with what of a request to subscribe waited for its slot to settle.
    pub(super) fn continue_asked(&mut self, owner: ClientId) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let Some(all) = client.subscriptions_mut() else { return };
        let mut failed = Vec::new();
        for (due, pending, name) in std::mem::take(&mut all.postponed) {
            let Some(all) = client.subscriptions_mut() else { break };
            let Some(asked) = &all.request else { break };
            if asked.number != pending.number {
                continue;
            }
            let sort = asked.sort;
            if due <= self.core.now {
                let server = self.core.carriers(client, sort, &name, None).first().copied();
                let place = server.map(|server| self.core.feed(owner, client, server));
                if let Some(Ok(place)) = place {
                    let asked = client.subscriptions_mut().and_then(|all| all.request.as_mut());
                    let topics = asked.into_iter().flat_map(|asked| &mut asked.topics);
                    for (_, places) in topics.filter(|(of, _)| *of == name) {
                        *places = vec![place];
                    }
                    self.core.ask_again(place, sort, &name, &pending);
                    continue;
                }
                self.core.want_refresh(client.pool);
                if self.core.time_is_up(client.pool, &pending) {
                    failed.push(pending);
                    continue;
                }
            }
            let Some(all) = client.subscriptions_mut() else { break };
            all.postponed.push((
                if due > self.core.now { due } else { self.core.now + DELAY },
                pending,
                name,
            ));
            self.core.postponed.push(owner);
        }
        for pending in failed {
            self.confirmed(owner, &pending, Some(error::SESSION_LOST));
        }
    }

    /// What another connection carried is carried again.
    fn renewed(&mut self, id: ConnId, owner: ClientId) {
        let client = self.clients.get_mut(owner);
        let Some(subscriptions) = client.and_then(Client::subscriptions_mut) else { return };
        if let Some(at) = subscriptions.renewed.iter().position(|(of, _, _)| *of == id) {
            subscriptions.renewed.remove(at);
        }
        if subscriptions.renewed.is_empty() {
            subscriptions.adrift_since = None;
        }
    }

    fn is_carried(&mut self, id: ConnId, owner: ClientId, name: &[u8]) -> bool {
        let client = self.clients.get_mut(owner);
        client.and_then(Client::subscriptions_mut).is_some_and(|all| {
            let places = all.of(Sort::Shard).get(name);
            places.is_some_and(|places| places.iter().any(|place| place.conn == id))
        })
    }

    /// Nobody carries this one any more: it is subscribed to again.
    fn drift(&mut self, owner: ClientId, sort: Sort, name: &[u8]) {
        self.lay_adrift(owner, sort, name);
        self.resubscribe(owner);
    }

    fn lay_adrift(&mut self, owner: ClientId, sort: Sort, name: &[u8]) {
        let now = self.core.now;
        let client = self.clients.get_mut(owner);
        let Some(subscriptions) = client.and_then(Client::subscriptions_mut) else { return };
        for place in subscriptions.of(sort).get_mut(name).into_iter().flatten() {
            place.conn = Id::nobody();
        }
        subscriptions.adrift_since.get_or_insert(now);
        self.core.adrift.push(owner);
    }

    /// A feed is no more.
    pub(super) fn feed_lost(&mut self, id: ConnId, owner: ClientId, error: &[u8]) {
        // The server may have given it up because the client doesn't read.
        if self.is_full(owner) {
            self.close_client(owner);
            return;
        }
        let now = self.core.now;
        let Some(client) = self.clients.get_mut(owner) else { return };
        let Some(subscriptions) = client.subscriptions_mut() else { return };
        subscriptions.lose(id);
        subscriptions.adrift_since.get_or_insert(now);
        if let Some(asked) = subscriptions.request.take() {
            let error = if error == error::LOST { error::SESSION_LOST } else { error };
            client.answer(asked.number, 0, error, &mut self.core.splits);
            client.mark(owner, &mut self.core.turn);
        }
        self.core.close_unused(client);
        self.resubscribe(owner);
    }

    /// Goes on with subscriptions that nobody carries.
    pub(super) fn resubscribe_due(&mut self) {
        let mut due = std::mem::take(&mut self.core.adrift);
        due.sort_unstable_by_key(|id| id.index());
        due.dedup();
        for id in due {
            self.resubscribe(id);
        }
    }

    fn resubscribe(&mut self, owner: ClientId) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let Some(subscriptions) = client.subscriptions_mut() else { return };
        let since = subscriptions.adrift_since;
        let mut lost = Vec::new();
        for sort in Sort::ALL {
            for (name, places) in subscriptions.of(sort) {
                let gone = places.iter().enumerate().filter(|(_, at)| at.conn == Id::nobody());
                lost.extend(gone.map(|(index, place)| (sort, name.clone(), index, place.server)));
            }
        }
        if lost.is_empty() {
            return;
        }
        if since.is_some_and(|since| since + ADRIFT_MAX <= self.core.now) {
            self.close_client(owner);
            return;
        }
        let ring = self.core.is_ring(client.pool);
        let mut left = false;
        for (sort, name, index, server) in lost {
            let servers = if ring {
                vec![server]
            } else {
                self.core.carriers(client, sort, &name, Some(server))
            };
            let place = servers.first().map(|server| self.core.feed(owner, client, *server));
            let Some(Ok(place)) = place else {
                left = true;
                continue;
            };
            let Some(subscriptions) = client.subscriptions_mut() else { return };
            let places = subscriptions.of(sort).get_mut(&name);
            if let Some(at) = places.and_then(|places| places.get_mut(index)) {
                *at = place;
            }
            subscriptions.renewed.push((place.conn, sort, name.clone()));
            let verb = sort.subscribe();
            self.core.put_words(place.conn, (owner, 0), verb, &name, Role::Renewing);
        }
        if left {
            self.core.adrift.push(owner);
        }
    }
}
