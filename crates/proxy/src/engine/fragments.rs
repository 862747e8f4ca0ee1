//! Dealing a request's keys out to the servers that have them.

use protocol::commands::{self, Arguments as _, Command};

use super::{
    ClientId, Core,
    client::{Awaited, Client, Hold},
    dispatch::{Nature, Outcome, Request},
    error,
    gather::Gather,
    redirect::{Delayed, PATIENCE},
    request,
    server::{ConnId, Kind, Pending},
    split::{Merge, Split, push_number},
};

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
}

/// Room for so many keys is kept.
const KEPT_KEYS_MAX: usize = 4 << 10;

impl Scratch {
    /// Gives back what few requests need.
    pub fn rest(&mut self) {
        if self.keys.capacity() > KEPT_KEYS_MAX {
            (self.keys, self.order) = (Vec::new(), Vec::new());
        }
    }

    pub fn buffer_bytes(&self) -> usize {
        self.keys.capacity() * size_of::<Key>() + self.order.capacity() * size_of::<u32>()
    }
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
    /// Deals a request out: one to each lane that has some of its keys.
    pub(super) fn split(
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
        let nature = Nature::of(command, arguments);
        if !self.find_conns(id, client, nature) {
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
        let Nature { repeatable, writes, .. } = nature;
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
                waited_ms: 0,
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
    fn find_conns(&mut self, id: ClientId, client: &mut Client, nature: Nature) -> bool {
        for index in 0..self.scratch.parts.len() {
            let Some(mut part) = self.scratch.parts.get(index).copied() else { continue };
            let Some(pool) = self.pools.get(usize::from(client.pool)) else { return false };
            let (flux, elsewhere) = (!pool.flux.is_empty(), !pool.readers.is_empty());
            let mut profile = client.profile;
            if elsewhere
                && nature.reads
                && let Ok(server) = u16::try_from(part.next)
            {
                let (reader, reading) = self.reader_for(client.pool, server, profile, id);
                (part.next, profile) = (u32::from(reader), reading);
            }
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
                Ok(server) => self.conn_for(server, profile, id),
                Err(_) if self.is_ring(client.pool) => Err(error::REFUSED),
                Err(_) => {
                    self.want_refresh(client.pool);
                    Err(error::NOBODY)
                }
            };
            if let Ok(conn) = found
                && let Some(conn) = self.conns.get_mut(conn)
                && conn.is_full(&self.limits)
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
