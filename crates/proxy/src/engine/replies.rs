//! From a server's bytes to replies, each to whom it belongs.

use super::{
    Action, ClientId, ConnId, Engine, error,
    reply::Scan,
    server::{Kind, Pending},
};

/// So much of a reply that isn't whole is passed on at once, if its turn has come.
const STREAM_BYTES_MIN: usize = 4 << 10;

/// How reading a connection's bytes ended.
pub(super) enum Read {
    /// So many bytes are done with; the rest waits for more.
    Upto(usize),
    /// Likewise, but the connection is not to be read until its client reads.
    Stalled(usize),
    /// The connection is of no use any more.
    Broken,
}

/// What became of the beginning of a reply.
enum Part {
    /// It is passed on, or nobody wants it.
    Passed,
    /// More of it has to be here.
    Kept,
    /// Its turn has to come first.
    MustWait,
}

impl Engine {
    /// A server sent something. False: it is not to be read until [`Action::ReadConn`].
    pub fn conn_bytes(&mut self, id: ConnId, bytes: &[u8]) -> bool {
        if self.core.meter.comes(bytes.len()) {
            self.look_over();
        }
        let Some(conn) = self.core.conns.get_mut(id) else { return false };
        if conn.dead {
            return false;
        }
        let stalled = conn.stalled.is_some();
        let mut held = std::mem::take(&mut conn.held);
        let read = if held.is_empty() && !stalled {
            let read = self.read_replies(id, bytes);
            if let Read::Upto(used) | Read::Stalled(used) = read {
                held.extend_from_slice(bytes.get(used..).unwrap_or_default());
            }
            read
        } else {
            held.extend_from_slice(bytes);
            if stalled { Read::Stalled(0) } else { self.read_held(id, &mut held) }
        };
        self.keep_held(id, held, &read)
    }

    /// Goes on with a connection that was stalled.
    pub(super) fn continue_conn(&mut self, id: ConnId) {
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        let Some(stalled) = conn.stalled.take() else { return };
        self.core.stalls -= 1;
        let mut held = std::mem::take(&mut conn.held);
        let before = held.len();
        let read = self.read_held(id, &mut held);
        if let Some(conn) = self.core.conns.get_mut(id)
            && let Some((client, since)) = &mut conn.stalled
            && *client == stalled.0
            && held.len() == before
        {
            // Nothing has changed.
            *since = stalled.1;
        }
        if self.keep_held(id, held, &read) {
            self.core.turn.actions.push_back(Action::ReadConn(id));
        }
    }

    fn read_held(&mut self, id: ConnId, held: &mut Vec<u8>) -> Read {
        let read = self.read_replies(id, held);
        if let Read::Upto(used) | Read::Stalled(used) = read {
            held.drain(..used);
        }
        read
    }

    /// Puts back what was not passed on; may more be read?
    fn keep_held(&mut self, id: ConnId, held: Vec<u8>, read: &Read) -> bool {
        let Some(conn) = self.core.conns.get_mut(id) else { return false };
        match read {
            Read::Broken => {
                if !conn.dead {
                    let server = conn.server;
                    self.core.count_fault(server, self.core.now);
                }
                self.kill_conn(id, error::DESYNC);
                return false;
            }
            _ if conn.dead => return false,
            Read::Upto(_) if held.is_empty() => {
                conn.held = Vec::new();
                conn.rest();
            }
            Read::Upto(_) => conn.held = held,
            Read::Stalled(_) => {
                conn.held = held;
                return false;
            }
        }
        conn.wake(&self.core.limits, &mut self.core.turn);
        if conn.retired && conn.pending.is_empty() {
            self.kill_conn(id, error::LOST);
            return false;
        }
        true
    }

    /// Passes on what is whole, or what may go ahead of the rest.
    fn read_replies(&mut self, id: ConnId, bytes: &[u8]) -> Read {
        let Some(conn) = self.core.conns.get_mut(id) else { return Read::Upto(0) };
        if conn.private.is_some_and(|private| private.feed) {
            return self.read_feed(id, bytes);
        }
        let mut framer = conn.framer;
        // The reply at hand begins here, as far as it was not passed on; it was seen up to there.
        let mut start = 0;
        let mut seen = std::mem::take(&mut conn.scanned);
        let result = loop {
            let rest = bytes.get(seen..).unwrap_or_default();
            let Some(conn) = self.core.conns.get_mut(id) else { return Read::Upto(0) };
            let Some(pending) = conn.pending.front().copied() else {
                // Nothing was asked: RESP3 may say something of its own, others may not.
                match (bytes.get(start), framer.scan(rest)) {
                    (None, _) => break Read::Upto(start),
                    (Some(b'>'), Ok(Scan::Whole(length))) => {
                        seen += length;
                        if conn.near {
                            let message = bytes.get(start..seen).unwrap_or_default();
                            self.core.near_message(id, message);
                        }
                        start = seen;
                        continue;
                    }
                    (Some(b'>'), Ok(Scan::Part(length))) => {
                        seen += length;
                        break Read::Upto(start);
                    }
                    _ => return Read::Broken,
                }
            };
            if pending.kind.is_for_client() && self.must_wait(&pending) {
                self.stall(id, pending.client);
                break Read::Stalled(start);
            }
            if seen - start >= STREAM_BYTES_MIN {
                // It isn't whole, as far as it was seen.
                let part = bytes.get(start..seen).unwrap_or_default();
                match self.part(id, &pending, part) {
                    Part::Passed => {
                        self.core.count_bytes(id, part.len());
                        start = seen;
                    }
                    Part::Kept => {}
                    Part::MustWait => {
                        self.stall(id, pending.client);
                        break Read::Stalled(start);
                    }
                }
            }
            if rest.is_empty() {
                break Read::Upto(start);
            }
            match framer.scan(rest) {
                Ok(Scan::Whole(length)) => {
                    seen += length;
                    let reply = bytes.get(start..seen).unwrap_or_default();
                    start = seen;
                    if !self.reply(id, reply) {
                        return Read::Broken;
                    }
                }
                Ok(Scan::Part(length)) => {
                    seen += length;
                    if length == 0 || seen - start < STREAM_BYTES_MIN {
                        break Read::Upto(start);
                    }
                }
                Err(_) => return Read::Broken,
            }
        };
        if let Some(conn) = self.core.conns.get_mut(id) {
            (conn.framer, conn.scanned) = (framer, seen - start);
        }
        result
    }

    /// Has the client as much to read as it may have, or as much that waits for its turn, and
    /// it is not this reply's turn?
    #[inline]
    fn must_wait(&self, pending: &Pending) -> bool {
        let hard = self.core.limits.full_bytes();
        self.clients.get(pending.client).is_some_and(|client| {
            client.bytes_waiting() >= hard
                && (client.bytes_unsent() >= hard || !client.is_next(pending.number))
        })
    }

    /// Has the client too much to read for more that it didn't ask for?
    pub(super) fn is_full(&self, client: ClientId) -> bool {
        self.clients
            .get(client)
            .is_some_and(|client| client.bytes_unsent() >= self.core.limits.full_bytes())
    }

    #[cold]
    pub(super) fn stall(&mut self, id: ConnId, client: ClientId) {
        let now = self.core.now;
        if let Some(conn) = self.core.conns.get_mut(id)
            && conn.stalled.is_none()
        {
            conn.stalled = Some((client, now));
            conn.stalled_first.get_or_insert(now);
            self.core.stalls += 1;
            self.clear_the_way(id);
        }
    }

    /// A whole reply, or the rest of one that was streamed. False: the connection is of no use.
    #[inline]
    pub(super) fn reply(&mut self, id: ConnId, reply: &[u8]) -> bool {
        let Some(conn) = self.core.conns.get_mut(id) else { return false };
        // A message out of turn, which nobody here asked for.
        if reply.first() == Some(&b'>') && !conn.streaming {
            if conn.near {
                self.core.near_message(id, reply);
            }
            return true;
        }
        let Some(mut pending) = conn.pop() else { return false };
        let (keeps, follows, private) = (conn.keeps, conn.follows, conn.private.is_some());
        let streamed = std::mem::take(&mut conn.streaming);
        let mut pool = 0;
        let server_index = conn.server;
        // The rest of a long one is data, whatever it begins with.
        let is_error = !streamed && reply.first() == Some(&b'-');
        let is_wanted = pending.kind == Kind::Request;
        if let Some(server) = self.core.servers.get_mut(usize::from(server_index)) {
            pool = server.pool;
            if is_wanted && !is_error {
                server.faults = 0;
            }
            if pending.kind != Kind::Prologue {
                server.counters.responses.add(1);
                server.counters.response_bytes.add(reply.len() as u64);
                server.counters.latency.record(self.core.now.saturating_sub(pending.at));
            }
        }
        let slow = self.core.now.saturating_sub(pending.at) >= self.core.slow_after;
        if is_wanted && self.core.limits.near.is_some() {
            self.core.near_reply_passed(id, &pending, reply, streamed);
        }
        if keeps {
            let again = is_error
                && is_wanted
                && follows
                && self.clients.get(pending.client).is_some()
                && self.core.try_again(id, &pending, reply);
            if !again && !self.core.limbo.is_empty() && pending.kind == Kind::Request {
                self.was_executed(id, &pending);
            }
            if slow && !again {
                self.note_slow(id, &pending);
            }
            if is_wanted && !again {
                self.core.sample_in = self.core.sample_in.wrapping_sub(1);
                if self.core.sample_in == 0 || streamed {
                    self.sample(id, pending.length, reply.len(), streamed);
                }
            }
            if let Some(conn) = self.core.conns.get_mut(id) {
                conn.release_popped();
            }
            if again {
                return true;
            }
            if pending.in_flux {
                self.core.settle_flux(pool, &mut pending);
            }
        } else if slow {
            self.note_slow(id, &pending);
        }
        if is_error && is_wanted && !follows {
            self.core.ring_error(server_index, reply);
        }
        let mut reply = reply;
        if private
            && is_wanted
            && is_error
            && let Some(instead) = self.core.explain_redirect(id, reply)
        {
            reply = instead;
        }
        match pending.kind {
            Kind::Request => {}
            Kind::Discard | Kind::Asking => return true,
            Kind::Prologue => return self.prologue_reply(id, reply),
            Kind::Session(role) => return self.session_reply(id, &pending, role, reply, streamed),
            Kind::Near => {
                self.core.near_reply(id, &pending, reply);
                return true;
            }
        }
        if let Some(client) = self.clients.get_mut(pending.client) {
            if streamed && !client.is_next(pending.number) {
                return false;
            }
            client.answer(pending.number, pending.part, reply, &mut self.core.splits);
            client.mark(pending.client, &mut self.core.turn);
        }
        if streamed {
            self.long_reply_ended(pending.client);
        }
        true
    }

    #[cold]
    fn prologue_reply(&mut self, id: ConnId, reply: &[u8]) -> bool {
        if reply.first() == Some(&b'-') {
            // It would be the same for each request.
            let reply = reply.to_vec();
            if self.core.conns.get(id).is_some_and(|conn| conn.near) {
                self.core.near_refused(id, &reply);
            }
            self.kill_conn(id, &reply);
        }
        true
    }

    /// The beginning of a reply that will be large: passed on, if it is its turn.
    fn part(&mut self, id: ConnId, pending: &Pending, part: &[u8]) -> Part {
        let Some(conn) = self.core.conns.get_mut(id) else { return Part::Kept };
        let begins = !conn.streaming;
        if begins && matches!(part.first(), Some(b'-' | b'>')) {
            return Part::Kept;
        }
        if matches!(pending.kind, Kind::Session(_)) && !pending.kind.is_for_client() {
            return Part::Kept;
        }
        if pending.kind == Kind::Discard {
            conn.streaming = true;
            return Part::Passed;
        }
        if pending.kind == Kind::Near {
            return self.near_part(id, part);
        }
        let limits = &self.core.limits;
        match self.clients.get_mut(pending.client) {
            // Nobody wants it any more.
            None => {
                conn.streaming = true;
                Part::Passed
            }
            Some(client) if client.takes_part(pending.number) => {
                client.answer_part(part);
                client.mark(pending.client, &mut self.core.turn);
                conn.passed = if begins { part.len() } else { conn.passed + part.len() };
                conn.streaming = true;
                let is_long = conn.passed >= self.core.limits.long_reply_bytes;
                if self.core.limits.near.is_some() {
                    self.core.near_part_passed(id, pending, part, begins);
                }
                if is_long {
                    self.clear_the_way(id);
                }
                Part::Passed
            }
            // One of several that become one: it has to be here as a whole.
            Some(client) if client.is_next(pending.number) => {
                if part.len() < limits.merged_bytes_max {
                    return Part::Kept;
                }
                if let Some(first) = conn.pending.front_mut() {
                    first.kind = Kind::Discard;
                    conn.expired = conn.expired.max(1);
                }
                conn.streaming = true;
                self.fail(pending, error::TOO_LARGE);
                Part::Passed
            }
            Some(_) if part.len() < limits.waiting_bytes_hard => Part::Kept,
            Some(_) => Part::MustWait,
        }
    }

    /// Likewise of a value for the near cache, which takes it as a whole or not at all.
    #[cold]
    fn near_part(&mut self, id: ConnId, part: &[u8]) -> Part {
        if !self.core.is_too_long_for_near(id, part) {
            return Part::Kept;
        }
        if let Some(conn) = self.core.conns.get_mut(id)
            && let Some(first) = conn.pending.front_mut()
        {
            first.kind = Kind::Discard;
            conn.expired = conn.expired.max(1);
            conn.streaming = true;
        }
        Part::Passed
    }
}
