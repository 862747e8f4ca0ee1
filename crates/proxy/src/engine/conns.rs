//! Connections to servers: made when first needed, shared by clients, ended with what they carry.

use protocol::resp::encode_command;

use super::{
    Action, ClientId, ConnId, Core, Ending, Engine, Loss, Micros, Profile, error,
    server::{Conn, Kind, Link, Pending},
    slab::Id,
};

impl Core {
    /// The connection that a client's requests to a server go over; made now where there is none.
    /// The same client's always go over the same, so that they stay in order.
    #[inline]
    pub(super) fn conn_for(
        &mut self,
        server: u16,
        profile: u16,
        client: ClientId,
    ) -> Result<ConnId, &'static [u8]> {
        let found = self.servers.get(usize::from(server));
        match found.and_then(|server| server.shared_conn(profile, client)) {
            Some(conn) => Ok(conn),
            None => self.connect_at(server, profile, client.index()),
        }
    }

    /// Makes a server's connection at a place among its shared ones (modulo how many these are).
    #[cold]
    pub(super) fn connect_at(
        &mut self,
        server_index: u16,
        profile: u16,
        place: usize,
    ) -> Result<ConnId, &'static [u8]> {
        let pool = self.servers.get(usize::from(server_index)).map_or(0, |server| server.pool);
        let follows = !self.is_ring(pool);
        let conn = self.open_conn(server_index, profile)?;
        if let Some(conn) = self.conns.get_mut(conn) {
            (conn.keeps, conn.follows) = (true, follows);
        }
        if let Some(link) = self.link(server_index, profile) {
            let places = link.shared.len().max(1);
            if let Some(place) = link.shared.get_mut(place % places) {
                *place = Some(conn);
            }
        }
        Ok(conn)
    }

    /// A server said so much that [`Engine::reply`] doesn't see.
    pub(super) fn count_bytes(&self, id: ConnId, bytes: usize) {
        let server = self.conns.get(id).and_then(|conn| self.servers.get(usize::from(conn.server)));
        if let Some(server) = server {
            server.counters.response_bytes.add(bytes as u64);
        }
    }

    pub(super) fn link(&mut self, server: u16, profile: u16) -> Option<&mut Link> {
        let server = self.servers.get_mut(usize::from(server))?;
        server.links.iter_mut().find(|link| link.profile == profile)
    }

    /// Begins to make a connection.
    pub(super) fn open_conn(
        &mut self,
        server_index: u16,
        profile: u16,
    ) -> Result<ConnId, &'static [u8]> {
        let server = self.servers.get_mut(usize::from(server_index)).ok_or(error::REFUSED)?;
        let pool = self.pools.get(usize::from(server.pool)).ok_or(error::REFUSED)?;
        if server.retry_at > self.now {
            return Err(error::REFUSED);
        }
        let mut conn = Conn::new(server_index, profile);
        if let Some(profile) = self.profiles.get(usize::from(profile)) {
            begin(&mut conn, profile, self.now);
        }
        if self.profiles.get(usize::from(profile)).is_none_or(|profile| !profile.tracks) {
            pool.scripts.send(&mut conn, self.now);
        }
        let conn = self.conns.insert(conn);
        if !server.links.iter().any(|link| link.profile == profile) {
            let shared = vec![None; pool.server_connections];
            server.links.push(Link { profile, shared, spare: Vec::new() });
        }
        server.counters.connections.add(1);
        server.counters.connections_ever.add(1);
        let address = server.address.clone();
        self.turn.actions.push_back(Action::Connect { conn, address });
        Ok(conn)
    }

    /// Does the pool share keys among standalone servers?
    pub(super) fn is_ring(&self, pool: u16) -> bool {
        self.pools.get(usize::from(pool)).is_some_and(|pool| pool.route.is_ring())
    }

    pub(super) fn want_refresh(&mut self, pool: u16) {
        let wanted = Action::Refresh { pool: usize::from(pool) };
        if !self.turn.actions.contains(&wanted) {
            self.turn.actions.push_back(wanted);
        }
    }

    /// Does the client wait for a reply from this server that comes over a connection which takes
    /// no more requests? Others over a new one could overtake it.
    #[cold]
    pub(super) fn waits_elsewhere(&self, server: u16, client: ClientId) -> bool {
        self.conns.iter().any(|(_, conn)| {
            let old = conn.retired && !conn.dead && conn.server == server;
            old && conn.pending.iter().any(|pending| pending.client == client)
        })
    }

    /// New requests will not go over this connection.
    pub(super) fn retire(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.retired) else { return };
        conn.retired = true;
        self.retiring += 1;
        let Some(server) = self.servers.get_mut(usize::from(conn.server)) else { return };
        for link in &mut server.links {
            link.spare.retain(|spare| *spare != id);
            for place in link.shared.iter_mut().filter(|place| **place == Some(id)) {
                *place = None;
            }
        }
    }

    /// Likewise, and it ends: now if it carries nothing, else when that is answered.
    pub(super) fn discard_conn(&mut self, id: ConnId) {
        self.retire(id);
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.dead || !conn.pending.is_empty() {
            return;
        }
        conn.dead = true;
        if let Some(server) = self.servers.get(usize::from(conn.server)) {
            server.counters.connections.sub(1);
        }
        self.turn.actions.push_back(Action::CloseConn(id));
    }
}

/// What a connection starts with.
fn begin(conn: &mut Conn, profile: &Profile, now: Micros) {
    let mut send = |words: &[&str]| {
        let before = conn.output.len();
        encode_command(words, conn.output.bytes());
        let length = conn.output.len() - before;
        conn.pending.push_back(Pending {
            client: Id::nobody(),
            number: 0,
            part: 0,
            lane: 0,
            length,
            at: now,
            kind: Kind::Prologue,
            repeatable: false,
            writes: false,
            tries: 1,
            waited_ms: 0,
            in_flux: false,
        });
    };
    let user = profile.user.as_deref();
    let password = profile.password.as_deref();
    match (profile.resp3, user, password) {
        (true, user, Some(password)) => {
            send(&["HELLO", "3", "AUTH", user.unwrap_or("default"), password]);
        }
        (true, _, None) => send(&["HELLO", "3"]),
        (false, Some(user), Some(password)) => send(&["AUTH", user, password]),
        (false, None, Some(password)) => send(&["AUTH", password]),
        (false, _, None) => {}
    }
    if profile.database > 0 {
        send(&["SELECT", &profile.database.to_string()]);
    }
    if profile.read_only {
        send(&["READONLY"]);
    }
    if profile.tracks {
        send(&["CLIENT", "TRACKING", "ON"]);
    }
}

impl Engine {
    /// Is somebody still waiting for the connection to be made?
    pub fn is_awaited(&self, id: ConnId) -> bool {
        self.core.conns.get(id).is_some_and(|conn| !conn.dead)
    }

    /// A connection was made.
    pub fn conn_opened(&mut self, id: ConnId) {
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        conn.connected = true;
        if conn.output.unsent_len() > 0 {
            conn.mark(id, &mut self.core.turn);
        }
        if !conn.retired
            && let Some(server) = self.core.servers.get_mut(usize::from(conn.server))
        {
            (server.failures, server.retry_at) = (0, 0);
        }
    }

    /// A connection could not be made, or is no more; its socket is closed.
    pub fn conn_gone(&mut self, id: ConnId, loss: Loss) {
        let error = match loss {
            Loss::Refused => error::REFUSED,
            Loss::Unreachable => error::HOST_DOWN,
            Loss::Closed | Loss::Broken => error::LOST,
        };
        if let Some(conn) = self.core.conns.get(id)
            && !conn.retired
        {
            self.core.count_fault(conn.server, self.core.now);
        }
        self.end_conn(id, error, matches!(loss, Loss::Refused | Loss::Unreachable));
        self.forget_conn(id);
    }

    /// After [`Action::CloseConn`]: its socket is closed.
    pub fn forget_conn(&mut self, id: ConnId) {
        self.core.conns.remove(id);
    }

    /// The engine is done with a connection: everyone who waits there is told.
    pub(super) fn kill_conn(&mut self, id: ConnId, error: &[u8]) {
        if self.core.conns.get(id).is_some_and(|conn| !conn.dead) {
            self.end_conn(id, error, false);
            self.core.turn.actions.push_back(Action::CloseConn(id));
        }
    }

    fn end_conn(&mut self, id: ConnId, error: &[u8], unmade: bool) {
        self.core.retire(id);
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.dead, true) {
            return;
        }
        self.core.retiring -= 1;
        let output = std::mem::take(&mut conn.output);
        conn.held = Vec::new();
        if conn.stalled.take().is_some() {
            self.core.stalls -= 1;
        }
        let pending = std::mem::take(&mut conn.pending);
        let (streaming, follows) = (conn.streaming, conn.follows);
        let (index, profile) = (conn.server, conn.profile);
        let private = conn.private.take();
        let near = conn.near;
        self.core.turn.woken.append(&mut conn.waiting);
        // What a reader was asked goes to a primary.
        let profile = self.core.of_reader(profile).unwrap_or(profile);
        let mut pool_index = 0;
        if let Some(server) = self.core.servers.get_mut(usize::from(index)) {
            pool_index = server.pool;
            server.counters.connections.sub(1);
            if unmade {
                server.counters.broken.add(1);
                let pool = self.core.pools.get(usize::from(server.pool));
                let (min, max) = pool.map_or((0, 0), |pool| (pool.backoff_min, pool.backoff_max));
                let retry_at = self.core.now + (min << server.failures.min(20)).min(max);
                server.retry_at = server.retry_at.max(retry_at);
                server.failures += 1;
            } else {
                server.counters.ended.add(1);
            }
        }
        if !self.core.is_ring(pool_index) {
            self.core.want_refresh(pool_index);
        }
        let mut from = 0;
        for (position, mut pending) in pending.into_iter().enumerate() {
            if position == 0 && streaming && pending.kind != Kind::Discard {
                // Half a reply is out: there is no way to end it well.
                self.close_client(pending.client);
                self.core.settle_flux(pool_index, &mut pending);
            } else if pending.kind == Kind::Request && follows {
                let bytes = output.kept(from, pending.length);
                let unsent = from + pending.length > output.kept_sent();
                self.lost(pool_index, profile, pending, bytes, unsent, error);
            } else if pending.kind == Kind::Request {
                self.fail(&pending, error);
            } else if let Kind::Session(role) = pending.kind {
                self.fail_session(&pending, role, error);
            }
            from += pending.length;
        }
        if let Some(private) = private {
            self.private_lost(id, private, error);
        }
        if near {
            self.core.near_lost(id);
        }
    }

    /// Ends a client's connection without further words.
    pub(super) fn close_client(&mut self, id: ClientId) {
        if let Some(client) = self.clients.get_mut(id)
            && client.ending != Ending::Closed
        {
            client.ending = Ending::Closed;
            self.core.turn.actions.push_back(Action::CloseClient(id));
        }
    }

    /// Answers a request, or a part of one, with an error of ours.
    pub(super) fn fail(&mut self, pending: &Pending, error: &[u8]) {
        let Some(client) = self.clients.get_mut(pending.client) else { return };
        if let Some(pool) = self.core.pools.get(usize::from(client.pool)) {
            pool.counters.forward_errors.add(1);
        }
        client.answer(pending.number, pending.part, error, &mut self.core.splits);
        client.mark(pending.client, &mut self.core.turn);
    }

    /// A connection that has something to be written.
    pub fn next_conn_to_write(&mut self) -> Option<ConnId> {
        loop {
            let id = self.core.turn.dirty_conns.pop()?;
            if let Some(conn) = self.core.conns.get_mut(id) {
                conn.dirty = false;
                if conn.connected && !conn.dead {
                    return Some(id);
                }
            }
        }
    }

    /// What is to be written to it.
    pub fn conn_output(&self, id: ConnId) -> &[u8] {
        self.core.conns.get(id).map(|conn| conn.output.unsent()).unwrap_or_default()
    }

    /// So many of those bytes were written. True: all of them.
    pub fn conn_wrote(&mut self, id: ConnId, count: usize) -> bool {
        let Some(conn) = self.core.conns.get_mut(id) else { return true };
        if conn.keeps {
            conn.output.wrote(count);
        } else {
            conn.output.wrote_and_done(count);
        }
        conn.wake(&self.core.limits, &mut self.core.turn);
        conn.output.unsent_len() == 0
    }

    /// Does what time demands: to be called at [`Engine::next_tick`].
    pub fn tick(&mut self) {
        let now = self.core.now;
        self.core.ticked = now;
        if !self.core.limbo.is_empty() {
            self.retry_delayed();
        }
        self.core.let_back();
        self.read_delayed();
        for id in self.core.conns.ids() {
            let Some(conn) = self.core.conns.get(id) else { continue };
            let server = self.core.servers.get(usize::from(conn.server));
            let pool = server.and_then(|server| self.core.pools.get(usize::from(server.pool)));
            let timeout = pool.and_then(|pool| pool.timeout);
            let patient = conn.private.is_some_and(|private| private.patient) && conn.connected;
            if conn.stalled.is_some() {
                self.end_stall(id);
            }
            if let Some(timeout) = timeout.filter(|_| !patient) {
                self.expire(id, timeout);
            }
        }
        if self.holds_much() {
            self.look_over();
        }
        self.resubscribe_due();
        for id in std::mem::take(&mut self.core.postponed) {
            self.continue_transaction(id);
            self.continue_blocked(id);
            self.continue_asked(id);
        }
    }

    /// Answers what a connection did not answer in time.
    fn expire(&mut self, id: ConnId, timeout: Micros) {
        let now = self.core.now;
        loop {
            let Some(conn) = self.core.conns.get_mut(id) else { return };
            let Some(pending) = conn.pending.get_mut(conn.expired) else { break };
            if pending.kind == Kind::Discard {
                conn.expired += 1;
                continue;
            }
            if pending.at + timeout > now {
                break;
            }
            let mut late = *pending;
            let server = conn.server;
            if matches!(late.kind, Kind::Prologue | Kind::Session(_) | Kind::Near) {
                self.core.count_fault(server, late.at);
                self.kill_conn(id, error::TIMED_OUT);
                return;
            }
            let streaming = conn.expired == 0 && conn.streaming;
            pending.kind = Kind::Discard;
            pending.in_flux = false;
            conn.expired += 1;
            if let Some(server) = self.core.servers.get(usize::from(server)) {
                server.counters.timed_out.add(1);
            }
            let pool = self.core.servers.get(usize::from(server)).map_or(0, |each| each.pool);
            self.core.count_fault(server, late.at);
            self.core.settle_flux(pool, &mut late);
            if streaming {
                self.close_client(late.client);
            } else if late.kind == Kind::Request {
                self.fail(&late, error::TIMED_OUT);
            }
        }
        // A server that says nothing for that long, again and again, has a broken connection.
        let Some(conn) = self.core.conns.get(id) else { return };
        let dead = conn.pending.front().is_some_and(|oldest| {
            oldest.kind == Kind::Discard && oldest.at + GIVE_UP_TIMEOUTS * timeout <= now
        });
        if dead || (!conn.connected && conn.expired > 0) {
            self.kill_conn(id, error::TIMED_OUT);
        }
    }

    /// When [`Engine::tick`] is to be called; None: nothing waits.
    pub fn next_tick(&self) -> Option<Micros> {
        let waits = self.core.conns.iter().any(|(_, conn)| !conn.pending.is_empty());
        let later = !self.core.adrift.is_empty() || !self.core.postponed.is_empty();
        let often = waits || later || self.core.stalls > 0 || self.holds_much();
        let often = often.then(|| self.core.ticked + TICK);
        let due = [self.core.limbo.due(), self.core.next_return(), self.core.later.due()];
        often.into_iter().chain(due.into_iter().flatten()).min()
    }
}

/// A connection whose oldest request is unanswered for so many timeouts is given up.
const GIVE_UP_TIMEOUTS: u64 = 4;
/// How exact timeouts are.
const TICK: Micros = 20_000;
