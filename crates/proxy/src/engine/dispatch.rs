//! From a client's bytes to requests to servers.

use std::cell::OnceCell;

use protocol::commands::{self, Arguments, Command, Repeat, Route as Way, Twemproxy};

use super::{
    ClientId, Core,
    client::{Awaited, Client, Ending, Hold},
    error,
    facade::concerns_servers,
    redirect::{Delayed, PATIENCE},
    request::{self, Frame, Span},
    server::{Kind, Pending},
    split::Merge,
};
use crate::route::Target;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is answered or on its way.
    Taken,
    /// It has to wait; the client is on hold.
    Later,
}

/// What has to be known of a request to send it again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nature {
    pub repeatable: bool,
    pub writes: bool,
    /// Replicas may serve it.
    pub reads: bool,
}

impl Nature {
    pub(super) fn of(command: &Command, arguments: &Request<'_>) -> Self {
        let repeatable = command.safe_to_repeat(arguments);
        // Scripts are brought to primaries.
        let reads = command.is_read() && command.group != "scripting";
        Self { repeatable, writes: !command.is_read(), reads }
    }
}

impl Core {
    /// Serves the requests in `bytes`; how many bytes are done with. Stops where one isn't whole,
    /// and where the client is put on hold.
    pub(super) fn serve(&mut self, id: ClientId, client: &mut Client, bytes: &[u8]) -> usize {
        let mut at = 0;
        loop {
            if client.outstanding() >= self.limits.outstanding_max
                || client.bytes_waiting() >= self.limits.waiting_bytes_max
            {
                client.hold = Hold::Limits;
                client.mark(id, &mut self.turn);
                return at;
            }
            let rest = bytes.get(at..).unwrap_or_default();
            if rest.is_empty() {
                return at;
            }
            if client.work.as_deref().is_some_and(|work| work.stream.is_some()) {
                match self.stream_bytes(id, client, rest) {
                    Ok(used) => at += used,
                    Err(error) => return self.give_up(id, client, error, bytes),
                }
                if client.hold != Hold::None
                    || client.work.as_deref().is_some_and(|work| work.stream.is_some())
                {
                    return at;
                }
                continue;
            }
            let mut progress =
                client.work.as_deref_mut().map_or_else(Default::default, |work| work.progress);
            let found = request::frame(rest, &mut progress, &self.limits.request);
            match found {
                Ok(Some(frame)) => {
                    let request = rest.get(..frame.length).unwrap_or_default();
                    if self.dispatch(id, client, request, &frame) == Outcome::Later {
                        return at;
                    }
                    if let Some(work) = client.work.as_deref_mut() {
                        work.progress = request::Progress::default();
                    }
                    at += frame.length;
                    if client.ending >= Ending::Answering {
                        return bytes.len();
                    }
                }
                Ok(None) => {
                    let streamed = self.limits.stream_bytes_min;
                    if rest.len() >= streamed {
                        match self.begin_stream(id, client, rest, &progress) {
                            Some(Outcome::Taken) => {
                                at += progress.at;
                                continue;
                            }
                            Some(Outcome::Later) => return at,
                            None => {}
                        }
                    }
                    let wanted = progress.at + progress.open;
                    let max = self.limits.query_bytes_max;
                    if rest.len() > max || (rest.len() >= streamed && wanted > max) {
                        return self.give_up(id, client, request::RequestError::TooBig, bytes);
                    }
                    client.work.get_or_insert_with(|| self.works.take()).progress = progress;
                    return at;
                }
                Err(error) => return self.give_up(id, client, error, bytes),
            }
        }
    }

    /// The client can't be understood: it is told so, after what it asked before, and closed.
    #[cold]
    fn give_up(
        &mut self,
        id: ClientId,
        client: &mut Client,
        error: request::RequestError,
        bytes: &[u8],
    ) -> usize {
        if let Some(pool) = self.pools.get(usize::from(client.pool)) {
            pool.counters.clients_broken.add(1);
        }
        self.reply(id, client, format!("-ERR Protocol error: {error}\r\n").as_bytes());
        client.ending = Ending::Answering;
        self.break_stream(client);
        bytes.len()
    }

    /// Answers the request that is at hand.
    pub(super) fn reply(&mut self, id: ClientId, client: &mut Client, reply: &[u8]) {
        client.answer_now(&mut self.works, |out| out.extend_from_slice(reply));
        client.mark(id, &mut self.turn);
    }

    #[inline]
    fn dispatch(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &[u8],
        frame: &Frame,
    ) -> Outcome {
        if frame.words == 0 {
            return Outcome::Taken;
        }
        if request.first() != Some(&b'*') {
            return self.dispatch_inline(id, client, request);
        }
        let Some(command) = commands::lookup(frame.name.of(request)) else {
            return self.refuse_unknown(id, client, frame.name.of(request));
        };
        if client.plain
            && command.route == Way::OneSlot
            && command.only_key() == Some(1)
            && command.takes(frame.words as usize)
        {
            let repeatable = match command.repeat {
                Repeat::Always => true,
                Repeat::PlainSet => frame.words == 3,
                Repeat::Never => false,
            };
            let reads = command.is_read();
            let nature = Nature { repeatable, writes: !reads, reads };
            return self.forward(id, client, request, frame.first.of(request), nature);
        }
        self.dispatch_rare(id, client, request, frame, command)
    }

    /// What is neither a command with one key, nor served without authentication.
    fn dispatch_rare(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &[u8],
        frame: &Frame,
        command: &'static Command,
    ) -> Outcome {
        let arguments = Request::new(request, frame.words);
        let command = match arguments.get(1) {
            Some(name) if command.is_container() => match command.subcommand(name) {
                Some(subcommand) => subcommand,
                None => return self.refuse_unknown(id, client, name),
            },
            _ => command,
        };
        if !client.authenticated && !matches!(command.name, "auth" | "hello" | "quit" | "reset") {
            self.reply(id, client, error::NO_AUTH);
            return Outcome::Taken;
        }
        if !command.takes(frame.words as usize) {
            let name = command.name;
            client.abort_transaction();
            let text = format!("-ERR wrong number of arguments for '{name}' command\r\n");
            self.reply(id, client, text.as_bytes());
            return Outcome::Taken;
        }
        if client.session.is_some()
            && let Some(outcome) = self.in_session(id, client, &arguments, command)
        {
            return outcome;
        }
        match command.route {
            Way::OneSlot => self.dispatch_one_slot(id, client, &arguments, command),
            // A ring asks the first key's server, as twemproxy does.
            Way::Split(commands::Merge::Union) if self.is_ring(client.pool) => {
                self.dispatch_one_slot(id, client, &arguments, command)
            }
            Way::Split(merge) => {
                let merge = match merge {
                    commands::Merge::InOrderOfKeys => Merge::Array,
                    commands::Merge::AllOk => Merge::AllOk,
                    commands::Merge::Union => Merge::Gathered,
                    _ => Merge::Sum,
                };
                let outcome = self.split(id, client, &arguments, command, merge);
                self.scratch.rest();
                outcome
            }
            Way::Local if concerns_servers(command) => {
                self.answer_for_servers(id, client, &arguments, command)
            }
            Way::Local => self.answer_locally(id, client, &arguments, command),
            Way::Refused(why) => {
                let text = format!("-ERR '{}' is not served: {why}\r\n", command.name);
                self.reply(id, client, text.as_bytes());
                Outcome::Taken
            }
            Way::AnyNode => self.ask_any(id, client, &arguments, command),
            Way::AllPrimaries(merge) => self.ask_all(id, client, &arguments, command, merge),
            Way::Scan => self.scan(id, client, &arguments),
            Way::Session(session) => self.begin_session(id, client, &arguments, command, session),
        }
    }

    /// A request whose keys have to be in one place.
    pub(super) fn dispatch_one_slot(
        &mut self,
        id: ClientId,
        client: &mut Client,
        arguments: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        match self.only_place(client, arguments, command) {
            Ok(place) => {
                let key = place.map(|(key, _)| key).unwrap_or_default();
                let nature = Nature::of(command, arguments);
                self.forward(id, client, arguments.bytes, key, nature)
            }
            Err(error) => {
                self.reply(id, client, error);
                Outcome::Taken
            }
        }
    }

    /// The first of a request's keys and the place they all belong to; None where it has none.
    /// An error's text where they have no place in common.
    pub(super) fn only_place<'a>(
        &self,
        client: &Client,
        arguments: &'a Request<'_>,
        command: &'static Command,
    ) -> Result<Option<(&'a [u8], Target)>, &'static [u8]> {
        let Ok(keys) = command.keys(arguments) else {
            return Err(b"-ERR Number of keys can't be greater than number of args\r\n");
        };
        let Some(pool) = self.pools.get(usize::from(client.pool)) else { return Ok(None) };
        let is_ring = pool.route.is_ring();
        // In a ring the first key decides for what twemproxy serves, as it does there.
        let asks_one = matches!(command.route, Way::OneSlot | Way::Split(commands::Merge::Union));
        let first_decides = is_ring && asks_one && command.twemproxy == Twemproxy::FirstKey;
        let mut place: Option<(&[u8], Target)> = None;
        for key in keys.filter_map(|index| arguments.get(index)) {
            let target = pool.route.target(key);
            match place {
                Some((_, first)) if first.lane != target.lane && !first_decides => {
                    return Err(if is_ring { error::APART } else { error::CROSS_SLOT });
                }
                Some(_) => {}
                None => place = Some((key, target)),
            }
        }
        Ok(place)
    }

    fn dispatch_inline(&mut self, id: ClientId, client: &mut Client, request: &[u8]) -> Outcome {
        let mut whole = std::mem::take(&mut self.inline);
        whole.clear();
        let words: Vec<&[u8]> = request::words(request).collect();
        protocol::resp::encode_command(&words, &mut whole);
        let found = request::frame(&whole, &mut request::Progress::default(), &self.limits.request);
        let outcome = match found {
            Ok(Some(frame)) => self.dispatch(id, client, &whole, &frame),
            _ => Outcome::Taken,
        };
        self.inline = whole;
        outcome
    }

    #[cold]
    fn refuse_unknown(&mut self, id: ClientId, client: &mut Client, name: &[u8]) -> Outcome {
        client.abort_transaction();
        let shown: String = String::from_utf8_lossy(name)
            .chars()
            .take(64)
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        self.reply(id, client, format!("-ERR unknown command '{shown}'\r\n").as_bytes());
        Outcome::Taken
    }

    /// Sends a request as it is to where its key belongs.
    #[inline]
    pub(super) fn forward(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &[u8],
        key: &[u8],
        nature: Nature,
    ) -> Outcome {
        let Some(pool) = self.pools.get(usize::from(client.pool)) else { return Outcome::Taken };
        pool.counters.requests.add(1);
        pool.counters.request_bytes.add(request.len() as u64);
        let target = pool.route.target(key);
        let Some(mut server) =
            target.server.and_then(|s| pool.servers.get(usize::from(s))).copied()
        else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        let mut profile = client.profile;
        let diverted = nature.reads && pool.diverts;
        if !pool.flux.is_empty() && self.waits_for_flux(client.pool, target.lane, id) {
            client.hold = Hold::Server;
            return Outcome::Later;
        }
        if diverted {
            if self.answer_near(id, client, request, key, (target.lane, server)) {
                return Outcome::Taken;
            }
            (server, profile) = self.reader_for(client.pool, server, profile, id);
        }
        if self.retiring > 0 && self.waits_elsewhere(server, id) {
            client.hold = Hold::Answers;
            return Outcome::Later;
        }
        let conn_id = match self.conn_for(server, profile, id) {
            Ok(conn) => conn,
            Err(error) => {
                self.unreachable(id, client, request, target.lane, nature, error);
                return Outcome::Taken;
            }
        };
        let Some(conn) = self.conns.get_mut(conn_id) else { return Outcome::Taken };
        if conn.is_full(&self.limits) {
            conn.waiting.push(id);
            client.hold = Hold::Server;
            return Outcome::Later;
        }
        let work = client.work.get_or_insert_with(|| self.works.take());
        conn.output.bytes().extend_from_slice(request);
        conn.pending.push_back(Pending {
            client: id,
            number: client.head.wrapping_add(work.ring.len() as u32),
            part: 0,
            lane: target.lane,
            length: request.len(),
            at: self.now,
            kind: Kind::Request,
            repeatable: nature.repeatable,
            writes: nature.writes,
            tries: 1,
            waited_ms: 0,
            in_flux: false,
        });
        conn.mark(conn_id, &mut self.turn);
        work.ring.push_back(Awaited::Reply);
        if let Some(server) = self.servers.get(usize::from(server)) {
            server.counters.requests.add(1);
            server.counters.request_bytes.add(request.len() as u64);
        }
        Outcome::Taken
    }

    /// No connection can be had: with a cluster that may change soon, else it is an error.
    #[cold]
    fn unreachable(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &[u8],
        lane: u16,
        nature: Nature,
        error: &[u8],
    ) {
        let number = client.head.wrapping_add(client.outstanding() as u32);
        let pending = Pending {
            client: id,
            number,
            part: 0,
            lane,
            length: request.len(),
            at: self.now,
            kind: Kind::Request,
            repeatable: nature.repeatable,
            writes: nature.writes,
            tries: 0,
            waited_ms: 0,
            in_flux: false,
        };
        if self.is_ring(client.pool)
            || self
                .delay(
                    Delayed::new(client.pool, client.profile, pending, request.into(), error),
                    PATIENCE,
                )
                .is_err()
        {
            self.fail_now(id, client, error);
            return;
        }
        self.want_refresh(client.pool);
        let work = client.work.get_or_insert_with(|| self.works.take());
        work.ring.push_back(Awaited::Reply);
    }

    #[cold]
    pub(super) fn nobody(&mut self, id: ClientId, client: &mut Client) {
        let refused = self.is_ring(client.pool);
        self.fail_now(id, client, if refused { error::REFUSED } else { error::NOBODY });
        if !refused {
            self.want_refresh(client.pool);
        }
    }

    #[cold]
    pub(super) fn fail_now(&mut self, id: ClientId, client: &mut Client, error: &[u8]) {
        if let Some(pool) = self.pools.get(usize::from(client.pool)) {
            pool.counters.forward_errors.add(1);
        }
        self.reply(id, client, error);
    }
}

/// A whole request's words by index.
pub(super) struct Request<'a> {
    pub bytes: &'a [u8],
    pub words: usize,
    /// Where they lie; found when somebody asks for a later one.
    spans: OnceCell<Vec<Span>>,
}

impl<'a> Request<'a> {
    pub(super) fn new(bytes: &'a [u8], words: u32) -> Self {
        Self { bytes, words: words as usize, spans: OnceCell::new() }
    }

    fn all(&self) -> impl Iterator<Item = Span> {
        let mut words = request::words(self.bytes);
        std::iter::from_fn(move || words.next_span().map(|(_, span)| span))
    }

    pub(super) fn span(&self, index: usize) -> Option<Span> {
        if index < 2 {
            return self.all().nth(index);
        }
        self.spans.get_or_init(|| self.all().collect()).get(index).copied()
    }
}

impl Arguments for Request<'_> {
    fn count(&self) -> usize {
        self.words
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        self.span(index).map(|span| span.of(self.bytes))
    }
}
