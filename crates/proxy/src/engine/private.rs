//! Connections that are nobody else's: taken for a session, and laid aside for the next one where
//! they are certainly as they were.

use std::sync::Arc;

use protocol::resp::encode_command;

use super::{
    ClientId, ConnId, Core, Micros, Route,
    client::{Awaited, Client},
    error,
    redirect::{Wanted, wanted},
    server::{Kind, Pending, Private, Role},
    slab::Id,
};

impl Core {
    /// A connection to a server for a client alone.
    pub(super) fn take_private(
        &mut self,
        server: u16,
        profile: u16,
        owner: ClientId,
    ) -> Result<ConnId, &'static [u8]> {
        let id = match self.link(server, profile).and_then(|link| link.spare.pop()) {
            Some(spare) => spare,
            None => self.open_conn(server, profile)?,
        };
        let conn = self.conns.get_mut(id).ok_or(error::REFUSED)?;
        let opens = conn.private.is_some_and(|private| private.opens);
        conn.private = Some(Private { owner, patient: false, feed: false, opens });
        Ok(id)
    }

    /// Sends a client's request over its own connection.
    pub(super) fn send_private(
        &mut self,
        conn: ConnId,
        id: ClientId,
        client: &mut Client,
        request: &[u8],
        role: Role,
    ) {
        if let Some(pool) = self.pools.get(usize::from(client.pool)) {
            pool.counters.requests.add(1);
            pool.counters.request_bytes.add(request.len() as u64);
        }
        let work = client.work.get_or_insert_with(|| self.works.take());
        let number = client.head.wrapping_add(work.ring.len() as u32);
        work.ring.push_back(Awaited::Reply);
        self.put(conn, id, number, request, role);
    }

    /// Sends something over a private connection that nobody is to be told of.
    pub(super) fn send_silent(&mut self, conn: ConnId, words: &[&[u8]], role: Role) {
        let mut request = Vec::new();
        encode_command(words, &mut request);
        self.put(conn, Id::nobody(), 0, &request, role);
    }

    /// Sends bytes over a private connection, for a request that waits already.
    pub(super) fn put(
        &mut self,
        conn_id: ConnId,
        client: ClientId,
        number: u32,
        request: &[u8],
        role: Role,
    ) {
        let Some(conn) = self.conns.get_mut(conn_id) else { return };
        conn.output.bytes().extend_from_slice(request);
        conn.pending.push_back(Pending {
            client,
            number,
            part: 0,
            lane: 0,
            length: request.len(),
            at: self.now,
            kind: Kind::Session(role),
            repeatable: false,
            writes: true,
            tries: 1,
            waited_ms: 0,
            in_flux: false,
        });
        conn.mark(conn_id, &mut self.turn);
        if let Some(server) = self.servers.get(usize::from(conn.server)) {
            server.counters.requests.add(1);
            server.counters.request_bytes.add(request.len() as u64);
        }
    }

    /// The client is done with a connection; it is laid aside once all of it is answered.
    pub(super) fn leave_private(&mut self, id: ConnId) {
        if let Some(private) = self.conns.get_mut(id).and_then(|conn| conn.private.as_mut()) {
            private.owner = Id::nobody();
            private.patient = false;
        }
        self.rest_if_done(id);
    }

    /// Lays a connection aside if nobody has it and nothing is on its way.
    pub(super) fn rest_if_done(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let free = conn.private.is_some_and(|private| private.owner == Id::nobody());
        if !free || conn.dead || conn.retired || !conn.pending.is_empty() {
            return;
        }
        let (server, profile, unsent) = (conn.server, conn.profile, conn.output.unsent_len());
        match self.link(server, profile) {
            Some(link) if link.spare.contains(&id) => {}
            Some(link) if unsent == 0 && link.spare.len() < SPARE_MAX => link.spare.push(id),
            _ => self.turn.finished.push(id),
        }
    }

    /// Nobody may use a connection any more: nobody knows which state it is in.
    pub(super) fn close_private(&mut self, id: ConnId) {
        self.retire(id);
        if let Some(conn) = self.conns.get_mut(id)
            && let Some(private) = &mut conn.private
        {
            private.owner = Id::nobody();
            self.turn.finished.push(id);
        }
    }
}

/// So many private connections to a server wait for their next client at most.
const SPARE_MAX: usize = 64;
/// The wait before something is sent again whose slot went to and fro, or is nobody's.
pub(super) const DELAY: Micros = 20_000;

/// Whether it is time to send again what waited for its slot to settle.
pub(super) enum Again {
    /// Not before then; the client is noted.
    At(Micros),
    /// Over this connection.
    Over(ConnId),
    /// Never: time is up.
    Never,
}

/// Where a server says that a request belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elsewhere {
    pub server: u16,
    /// ASKING has to come first.
    pub asking: bool,
}

impl Core {
    /// A connection for a client alone to a server of its pool, by the server's place there; where
    /// there is none the client is told why.
    pub(super) fn take_private_at(
        &mut self,
        id: ClientId,
        client: &mut Client,
        place: Option<u16>,
    ) -> Option<ConnId> {
        let pool = self.pools.get(usize::from(client.pool))?;
        let server = place.and_then(|place| pool.servers.get(usize::from(place)).copied());
        let Some(server) = server else {
            self.nobody(id, client);
            return None;
        };
        match self.take_private(server, client.profile, id) {
            Ok(conn) => Some(conn),
            Err(error) => {
                self.fail_now(id, client, error);
                None
            }
        }
    }

    /// Sends a request that was sent before and is still waited for.
    pub(super) fn put_again(
        &mut self,
        conn: ConnId,
        pending: &Pending,
        request: &[u8],
        tries: u16,
    ) {
        let Kind::Session(role) = pending.kind else { return };
        self.put(conn, pending.client, pending.number, request, role);
        let sent = self.conns.get_mut(conn).and_then(|conn| conn.pending.back_mut());
        if let Some(sent) = sent {
            (sent.at, sent.tries) = (pending.at, tries);
        }
    }

    /// Looks whether a client's session can go on at the owner of its slot. `since` is the first
    /// request that waits; it is not looked at before `due`.
    pub(super) fn again(
        &mut self,
        owner: ClientId,
        (pool, profile): (u16, u16),
        lane: Option<u16>,
        since: Option<&Pending>,
        due: Micros,
    ) -> Again {
        if due > self.now {
            return self.postpone(owner, due);
        }
        let found = self.server_of(pool, lane);
        match found.and_then(|server| self.take_private(server, profile, owner).ok()) {
            Some(conn) => Again::Over(conn),
            None if since.is_some_and(|since| !self.time_is_up(pool, since)) => {
                self.want_refresh(pool);
                self.postpone(owner, self.now + DELAY)
            }
            None => Again::Never,
        }
    }

    fn postpone(&mut self, owner: ClientId, due: Micros) -> Again {
        self.postponed.push(owner);
        Again::At(due)
    }

    /// Who has a slot now.
    pub(super) fn server_of(&self, pool: u16, lane: Option<u16>) -> Option<u16> {
        let pool = self.pools.get(usize::from(pool))?;
        match &pool.route {
            Route::Slots(slots) => pool.servers.get(usize::from(slots.owner(lane?)?)).copied(),
            Route::Ring(_) => None,
        }
    }

    /// Where a reply says that its request belongs, MOVED or ASK.
    pub(super) fn elsewhere(&mut self, from: ConnId, reply: &[u8]) -> Option<Elsewhere> {
        let asked = self.servers.get(usize::from(self.conns.get(from)?.server))?;
        let pool = asked.pool;
        match wanted(reply, &asked.address)? {
            Wanted::Moved { slot, address } => {
                let server = self.learn(pool, slot, address);
                self.want_refresh(pool);
                Some(Elsewhere { server, asking: false })
            }
            Wanted::Ask { address } => {
                let server = self.add_server(usize::from(pool), Arc::new(address));
                Some(Elsewhere { server, asking: true })
            }
            Wanted::Patience => None,
        }
    }
}
