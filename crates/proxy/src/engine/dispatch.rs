//! From a client's bytes to requests to servers.

use std::cell::OnceCell;

use protocol::commands::{self, Arguments, Command, Repeat, Route as Way, Twemproxy};

use super::{
    ClientId, Core,
    client::{Awaited, Client, Ending, Hold},
    error,
    facade::concerns_servers,
    gather::Gather,
    redirect::{Delayed, PATIENCE},
    request::{self, Frame, Span},
    server::{ConnId, Kind, Pending},
    split::{Merge, Split, push_number},
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
    repeatable: bool,
    writes: bool,
}

impl Nature {
    pub(super) fn of(command: &Command, arguments: &Request<'_>) -> Self {
        Self { repeatable: command.safe_to_repeat(arguments), writes: !command.is_read() }
    }
}

/// What dealing out a request needs, reused.
#[derive(Default)]
pub(super) struct Scratch {
    keys: Vec<Key>,
    /// By lane: which round last saw it, and the part it got then.
    lanes: Vec<(u32, u16)>,
    round: u32,
    parts: Vec<Part>,
    /// Keys in the order of their parts.
    order: Vec<u32>,
    /// An inline request as servers want it.
    inline: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Key {
    /// Where it lies with its header and its end, its value too where it has one.
    start: u32,
    end: u32,
    part: u16,
}

#[derive(Clone, Copy)]
struct Part {
    lane: u16,
    conn: Result<ConnId, &'static [u8]>,
    keys: u32,
    next: u32,
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
            let nature = Nature { repeatable, writes: !command.is_read() };
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
                self.split(id, client, &arguments, command, merge)
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
        let mut whole = std::mem::take(&mut self.scratch.inline);
        whole.clear();
        let words: Vec<&[u8]> = request::words(request).collect();
        protocol::resp::encode_command(&words, &mut whole);
        let found = request::frame(&whole, &mut request::Progress::default(), &self.limits.request);
        let outcome = match found {
            Ok(Some(frame)) => self.dispatch(id, client, &whole, &frame),
            _ => Outcome::Taken,
        };
        self.scratch.inline = whole;
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
        let Some(server) = target.server.and_then(|s| pool.servers.get(usize::from(s))).copied()
        else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        if !pool.flux.is_empty() && self.waits_for_flux(client.pool, target.lane, id) {
            client.hold = Hold::Server;
            return Outcome::Later;
        }
        if self.retiring > 0 && self.waits_elsewhere(server, id) {
            client.hold = Hold::Answers;
            return Outcome::Later;
        }
        let conn_id = match self.conn_for(server, client.profile, id) {
            Ok(conn) => conn,
            Err(error) => {
                self.unreachable(id, client, request, target.lane, nature, error);
                return Outcome::Taken;
            }
        };
        let Some(conn) = self.conns.get_mut(conn_id) else { return Outcome::Taken };
        if conn.output.unsent_len() >= self.limits.server_bytes_max {
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

    /// Deals a request out: one to each lane that has some of its keys.
    fn split(
        &mut self,
        id: ClientId,
        client: &mut Client,
        arguments: &Request<'_>,
        command: &'static Command,
        merge: Merge,
    ) -> Outcome {
        // Each key comes with the words up to the next one.
        let with_values = merge == Merge::AllOk;
        if with_values && arguments.words.is_multiple_of(2) {
            let text = b"-ERR wrong number of arguments for MSET\r\n";
            self.reply(id, client, text);
            return Outcome::Taken;
        }
        self.find_parts(client, arguments.bytes, with_values);
        if self.scratch.parts.len() == 1 {
            let key = arguments.get(1).unwrap_or_default();
            let nature = Nature::of(command, arguments);
            return self.forward(id, client, arguments.bytes, key, nature);
        }
        if !self.find_conns(id, client) {
            return Outcome::Later;
        }
        self.sort_keys();
        let Self { scratch, pools, conns, servers, splits, works, turn, .. } = self;
        let Some(pool) = pools.get(usize::from(client.pool)) else { return Outcome::Taken };
        pool.counters.requests.add(1);
        pool.counters.request_bytes.add(arguments.bytes.len() as u64);
        pool.counters.fragments.add(scratch.parts.len() as u64);
        let mut split = Split::new(merge);
        if merge == Merge::Array {
            split.set_keys(scratch.keys.iter().map(|key| key.part));
        }
        let Nature { repeatable, writes } = Nature::of(command, arguments);
        if merge == Merge::Gathered {
            let bytes_max = self.limits.gathered_bytes_max;
            split.set_gather(Gather::parts(commands::Merge::Union, scratch.parts.len(), bytes_max));
        }
        let work = client.work.get_or_insert_with(|| works.take());
        let number = client.head.wrapping_add(work.ring.len() as u32);
        let words_each = if with_values { 2 } else { 1 };
        let mut unsent = Vec::new();
        let mut from = 0;
        for (index, part) in scratch.parts.iter().enumerate() {
            let single = merge == Merge::Array && part.keys == 1;
            split.add_part(part.keys, single);
            let keys = scratch.order.get(from..from + part.keys as usize).unwrap_or_default();
            from += part.keys as usize;
            let mut pending = Pending {
                client: id,
                number,
                part: index as u16,
                lane: part.lane,
                length: 0,
                at: self.now,
                kind: Kind::Request,
                repeatable,
                writes,
                tries: 1,
                in_flux: false,
            };
            let words = u64::from(part.keys) * words_each + 1;
            let name = if single { "get" } else { command.name };
            let keys = keys.iter().filter_map(|key| {
                let key = scratch.keys.get(*key as usize)?;
                arguments.bytes.get(key.start as usize..key.end as usize)
            });
            let found = part.conn.ok().and_then(|id| Some((id, conns.get_mut(id)?)));
            let Some((conn_id, conn)) = found else {
                let mut fragment = Vec::new();
                pending.length = push_fragment(&mut fragment, words, name, keys);
                unsent.push((pending, fragment));
                continue;
            };
            pending.length = push_fragment(conn.output.bytes(), words, name, keys);
            conn.pending.push_back(pending);
            if let Some(server) = servers.get(usize::from(conn.server)) {
                server.counters.requests.add(1);
                server.counters.request_bytes.add(pending.length as u64);
            }
            conn.mark(conn_id, turn);
        }
        work.ring.push_back(Awaited::Split(splits.insert(split)));
        for (pending, fragment) in unsent {
            let part = self.scratch.parts.get(usize::from(pending.part));
            let error = part.and_then(|part| part.conn.err()).unwrap_or(error::REFUSED);
            self.unreachable_part(client, pending, fragment.into(), error);
        }
        Outcome::Taken
    }

    /// A part that cannot be sent now: with a cluster that may change soon, else it is an error.
    #[cold]
    pub(super) fn unreachable_part(
        &mut self,
        client: &mut Client,
        pending: Pending,
        bytes: Box<[u8]>,
        error: &[u8],
    ) {
        if error != error::NOBODY && !self.is_ring(client.pool) {
            self.want_refresh(client.pool);
            let delayed = Delayed::new(client.pool, client.profile, pending, bytes, error);
            if self.delay(delayed, PATIENCE).is_ok() {
                return;
            }
        }
        client.answer(pending.number, pending.part, error, &mut self.splits);
        client.mark(pending.client, &mut self.turn);
    }

    /// Fills in which lanes the keys belong to.
    fn find_parts(&mut self, client: &Client, request: &[u8], with_values: bool) {
        let Core { scratch, pools, .. } = self;
        let Some(pool) = pools.get(usize::from(client.pool)) else { return };
        scratch.keys.clear();
        scratch.parts.clear();
        scratch.round = scratch.round.wrapping_add(1);
        let mut words = request::words(request);
        words.next_span();
        while let Some((start, span)) = words.next_span() {
            let mut end = span.end;
            if with_values && let Some((_, value)) = words.next_span() {
                end = value.end;
            }
            let target = pool.route.target(span.of(request));
            let lane = usize::from(target.lane);
            if lane >= scratch.lanes.len() {
                scratch.lanes.resize(lane + 1, (0, 0));
            }
            let Some(seen) = scratch.lanes.get_mut(lane) else { continue };
            if seen.0 != scratch.round {
                *seen = (scratch.round, scratch.parts.len() as u16);
                let server = target.server.and_then(|s| pool.servers.get(usize::from(s)));
                // Until the connection is looked for, the server is remembered in `next`.
                scratch.parts.push(Part {
                    lane: target.lane,
                    conn: Err(error::NOBODY),
                    keys: 0,
                    next: server.map_or(u32::MAX, |server| u32::from(*server)),
                });
            }
            if let Some(part) = scratch.parts.get_mut(usize::from(seen.1)) {
                part.keys += 1;
            }
            scratch.keys.push(Key { start: start as u32, end: end as u32 + 2, part: seen.1 });
        }
    }

    /// Fills in the parts' connections; false where one of them takes no more for now, and the
    /// client is on hold.
    fn find_conns(&mut self, id: ClientId, client: &mut Client) -> bool {
        for index in 0..self.scratch.parts.len() {
            let Some(part) = self.scratch.parts.get(index).copied() else { continue };
            let flux = self.pools.get(usize::from(client.pool)).is_some_and(|p| !p.flux.is_empty());
            if flux && self.waits_for_flux(client.pool, part.lane, id) {
                client.hold = Hold::Server;
                return false;
            }
            if self.retiring > 0
                && let Ok(server) = u16::try_from(part.next)
                && self.waits_elsewhere(server, id)
            {
                client.hold = Hold::Answers;
                return false;
            }
            let found = match u16::try_from(part.next) {
                Ok(server) => self.conn_for(server, client.profile, id),
                Err(_) if self.is_ring(client.pool) => Err(error::REFUSED),
                Err(_) => {
                    self.want_refresh(client.pool);
                    Err(error::NOBODY)
                }
            };
            if let Ok(conn) = found
                && let Some(conn) = self.conns.get_mut(conn)
                && conn.output.unsent_len() >= self.limits.server_bytes_max
            {
                conn.waiting.push(id);
                client.hold = Hold::Server;
                return false;
            }
            if let Some(part) = self.scratch.parts.get_mut(index) {
                part.conn = found;
            }
        }
        true
    }

    /// Puts the keys into the order of their parts, otherwise as they came.
    fn sort_keys(&mut self) {
        let Scratch { keys, parts, order, .. } = &mut self.scratch;
        let mut next = 0;
        for part in parts.iter_mut() {
            part.next = next;
            next += part.keys;
        }
        order.clear();
        order.resize(keys.len(), 0);
        for (index, key) in keys.iter().enumerate() {
            let Some(part) = parts.get_mut(usize::from(key.part)) else { continue };
            if let Some(place) = order.get_mut(part.next as usize) {
                *place = index as u32;
            }
            part.next += 1;
        }
    }
}

/// Appends a request of a name and keys (each with all its words as they came); its length.
#[inline]
fn push_fragment<'a>(
    out: &mut Vec<u8>,
    words: u64,
    name: &str,
    keys: impl Iterator<Item = &'a [u8]>,
) -> usize {
    let before = out.len();
    out.push(b'*');
    push_number(out, words);
    out.extend_from_slice(b"\r\n$");
    push_number(out, name.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\r\n");
    for key in keys {
        out.extend_from_slice(key);
    }
    out.len() - before
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
