//! Large requests: passed on as they come, over a connection that is their client's alone for the
//! while, so that a client that sends slowly keeps nobody waiting and memory stays bounded.
//!
//! Such a request begins when everything the client asked before is answered, and what the client
//! asks next begins when this is answered: the two may go over different connections. It is not
//! kept, so it is not sent again.

use protocol::commands::{self, Route as Way};

use super::{
    ClientId, ConnId, Core,
    client::{Awaited, Client, Hold},
    dispatch::Outcome,
    error,
    request::{Progress, RequestError, number},
    server::{Kind, Pending},
    session::Errand,
};

/// How far a streamed request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    /// None: it is lost, and what comes of the request is dropped.
    conn: Option<ConnId>,
    follower: Follower,
}

/// Follows a request to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Follower {
    /// Words whose headers are to come.
    words: u32,
    /// Bytes to come of the word that was begun, its end included.
    body: usize,
}

impl Follower {
    /// How many bytes belong to the request; what follows them is a header that isn't whole, or
    /// the next request.
    fn follow(&mut self, bytes: &[u8], word_bytes_max: usize) -> Result<usize, RequestError> {
        let mut at = 0;
        loop {
            let here = bytes.len() - at;
            if self.body > 0 {
                let taken = here.min(self.body);
                // The last two bytes are the word's end.
                let end = bytes.get(at..at + taken).unwrap_or_default();
                let before = self.body - taken;
                for (from_end, wanted) in [(2, b'\r'), (1, b'\n')] {
                    if from_end > before && from_end <= self.body {
                        let index = self.body - from_end;
                        if end.get(index) != Some(&wanted) {
                            return Err(RequestError::End);
                        }
                    }
                }
                (self.body, at) = (before, at + taken);
                if self.body > 0 {
                    return Ok(at);
                }
            }
            if self.words == 0 {
                return Ok(at);
            }
            match bytes.get(at) {
                None => return Ok(at),
                Some(b'$') => {}
                Some(other) => return Err(RequestError::Sign(*other)),
            }
            let found = number(bytes, at + 1).map_err(|()| RequestError::Length)?;
            let Some((length, start)) = found else { return Ok(at) };
            if length > word_bytes_max {
                return Err(RequestError::Length);
            }
            self.words -= 1;
            self.body = length + 2;
            at = start;
        }
    }

    fn is_done(self) -> bool {
        self.words == 0 && self.body == 0
    }
}

impl Core {
    /// A request that isn't whole is at the start of `bytes`: begins to stream it, if it is one
    /// that can be. None: it can't, and has to come whole first.
    pub(super) fn begin_stream(
        &mut self,
        id: ClientId,
        client: &mut Client,
        bytes: &[u8],
        progress: &Progress,
    ) -> Option<Outcome> {
        // The name and the key have to be here.
        if progress.words.saturating_sub(progress.left) < 2 || !client.plain {
            return None;
        }
        let command = commands::lookup(progress.name.of(bytes))?;
        let fits = command.route == Way::OneSlot
            && command.only_key() == Some(1)
            && command.takes(progress.words as usize);
        if !fits {
            return None;
        }
        if client.outstanding() > 0 {
            client.hold = Hold::Answers;
            return Some(Outcome::Later);
        }
        let pool = self.pools.get(usize::from(client.pool))?;
        pool.counters.requests.add(1);
        let target = pool.route.target(progress.first.of(bytes));
        let server = target.server.and_then(|s| pool.servers.get(usize::from(s))).copied();
        let conn = server
            .ok_or(error::NOBODY)
            .and_then(|server| self.take_private(server, client.profile, id));
        let follower = Follower { words: progress.left, body: 0 };
        let work = client.work.get_or_insert_with(|| self.works.take());
        work.stream = Some(Stream { conn: conn.ok(), follower });
        work.progress = Progress::default();
        let head = bytes.get(..progress.at).unwrap_or_default();
        work.streamed = self.limits.slow_log.is_some().then(|| head.into());
        match conn {
            Err(error) => self.fail_now(id, client, error),
            Ok(conn_id) => {
                let number = client.head.wrapping_add(work.ring.len() as u32);
                work.ring.push_back(Awaited::Reply);
                client.session_mut().errand = Some(Errand::Stream(conn_id));
                client.settle();
                let conn = self.conns.get_mut(conn_id)?;
                conn.output.bytes().extend_from_slice(head);
                conn.pending.push_back(Pending {
                    client: id,
                    number,
                    part: 0,
                    lane: target.lane,
                    length: 0,
                    at: self.now,
                    kind: Kind::Request,
                    repeatable: false,
                    writes: true,
                    tries: 1,
                    waited_ms: 0,
                    in_flux: false,
                });
                conn.mark(conn_id, &mut self.turn);
                let server = self.servers.get(usize::from(conn.server))?;
                server.counters.requests.add(1);
            }
        }
        Some(Outcome::Taken)
    }

    /// Nothing is waited for any more: a large request's connection is not needed for now. One that
    /// was not answered in time may be still.
    pub(super) fn end_stream(&mut self, client: &mut Client) {
        let Some(session) = client.session.as_deref_mut() else { return };
        if let Some(Errand::Stream(conn)) = session.errand {
            session.errand = None;
            client.settle();
            if self.conns.get(conn).is_some_and(|conn| conn.pending.is_empty()) {
                self.leave_private(conn);
            } else {
                self.close_private(conn);
            }
        }
    }

    /// The rest of a streamed request won't come: what was passed on of it is void.
    pub(super) fn break_stream(&mut self, client: &mut Client) {
        let stream = client.work.as_deref_mut().and_then(|work| work.stream.take());
        self.turn.finished.extend(stream.and_then(|stream| stream.conn));
    }

    /// Passes on what came of a streamed request; how many bytes that are. Less than all: the
    /// request ended, or the client is on hold, or a header isn't whole.
    pub(super) fn stream_bytes(
        &mut self,
        id: ClientId,
        client: &mut Client,
        bytes: &[u8],
    ) -> Result<usize, RequestError> {
        let work = client.work.get_or_insert_with(|| self.works.take());
        let Some(stream) = &mut work.stream else { return Ok(0) };
        let conn = stream.conn.and_then(|conn| self.conns.get_mut(conn)).filter(|conn| !conn.dead);
        if let Some(conn) = &conn
            && conn.is_full(&self.limits)
        {
            client.hold = Hold::Server;
        }
        if client.hold == Hold::Server {
            if let Some(conn) = conn {
                conn.waiting.push(id);
            }
            return Ok(0);
        }
        let used = stream.follower.follow(bytes, self.limits.request.word_bytes_max)?;
        if let (Some(conn), Some(conn_id)) = (conn, stream.conn) {
            conn.output.bytes().extend_from_slice(bytes.get(..used).unwrap_or_default());
            // Time runs from the last byte.
            if let Some(pending) = conn.pending.back_mut() {
                pending.at = self.now;
            }
            conn.mark(conn_id, &mut self.turn);
            if let Some(server) = self.servers.get(usize::from(conn.server)) {
                server.counters.request_bytes.add(used as u64);
            }
        }
        if let Some(pool) = self.pools.get(usize::from(client.pool)) {
            pool.counters.request_bytes.add(used as u64);
        }
        if stream.follower.is_done() {
            work.stream = None;
            client.hold = Hold::Answers;
            client.mark(id, &mut self.turn);
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_to_the_end_however_cut() {
        let request = b"$5\r\na\r\nbc\r\n$0\r\n\r\n$12\r\nabcdefghijkl\r\n";
        let next = b"*1\r\n";
        for cut in 0..=request.len() {
            let mut follower = Follower { words: 3, body: 0 };
            let used = follower.follow(&request[..cut], 100).unwrap();
            assert!(used <= cut && (follower.is_done() == (cut == request.len())), "{cut}");
            let rest = [&request[used..], next].concat();
            assert_eq!(used + follower.follow(&rest, 100).unwrap(), request.len(), "{cut}");
            assert!(follower.is_done());
        }
    }

    #[test]
    fn bytewise() {
        let request = b"$5\r\na\r\nbc\r\n$0\r\n\r\n";
        let mut follower = Follower { words: 2, body: 0 };
        let mut held = Vec::new();
        for byte in request {
            held.push(*byte);
            let used = follower.follow(&held, 100).unwrap();
            held.drain(..used);
        }
        assert!(follower.is_done() && held.is_empty());
    }

    #[test]
    fn refuses() {
        let check = |bytes: &[u8], expected| {
            assert_eq!(Follower { words: 2, body: 0 }.follow(bytes, 10), Err(expected));
        };
        check(b"$1\r\nabc", RequestError::End);
        check(b"$1\r\na\rx", RequestError::End);
        check(b"$1\r\na\r\n:", RequestError::Sign(b':'));
        check(b"$11\r\n", RequestError::Length);
        check(b"$-1\r\n", RequestError::Length);
    }
}
