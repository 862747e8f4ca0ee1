//! Others don't wait for who is slow to take a reply: the ways around a connection that is held up.
//!
//! A server's connection whose next reply is very long, or whose client doesn't read, takes no
//! further requests. Of those that stand behind it, each client's go over another connection if
//! none of them can have changed anything: reads, and what was not written yet. The replies to
//! reads that were written are dropped when they come. A client of whom a write was sent stays,
//! with all that it asked after it: whether it was executed is known when its reply is. It waits
//! as long as the first one may stall where others wait ([`Limits::stall_shared`]).
//!
//! [`Limits::stall_shared`]: super::Limits::stall_shared

use std::collections::BTreeSet;

use super::{
    Action, ClientId, ConnId, Ending, Engine,
    server::{Conn, Kind, Pending},
    slab::Id,
};

impl Conn {
    /// The clients, by their places, whose requests have to stay where they are.
    fn staying(&self) -> BTreeSet<usize> {
        let mut staying = BTreeSet::new();
        let mut from = self.popped;
        let mut asking = false;
        for (position, pending) in self.pending.iter().enumerate() {
            let sent = from < self.output.kept_sent();
            from += pending.length;
            // Once is enough: else many who don't read would have it all read again and again.
            let harmless = pending.repeatable && !pending.writes && pending.tries == 1;
            let moves = pending.kind == Kind::Request && !asking && (!sent || harmless);
            if position == 0 || (!moves && pending.kind != Kind::Discard) {
                staying.insert(pending.client.index());
            }
            asking = pending.kind == Kind::Asking;
        }
        staying
    }

    /// Takes the requests of all others out, with their words.
    fn take_others(&mut self, staying: &BTreeSet<usize>) -> Vec<(Pending, Vec<u8>)> {
        let mut taken = Vec::new();
        let mut left = Vec::new();
        let mut from = self.popped;
        let Self { output, pending, .. } = self;
        pending.retain_mut(|each| {
            let bytes = output.kept(from, each.length);
            let unsent = from >= output.kept_sent();
            // The rest of one that was written in part.
            let rest = output.kept_sent().saturating_sub(from).min(each.length);
            from += each.length;
            let stays = each.kind != Kind::Request || staying.contains(&each.client.index());
            if !stays {
                taken.push((*each, bytes.to_vec()));
                (each.kind, each.client, each.in_flux) = (Kind::Discard, Id::nobody(), false);
            }
            if stays || !unsent {
                left.extend_from_slice(bytes.get(rest..).unwrap_or_default());
            }
            stays || !unsent
        });
        output.replace_unsent(&left);
        taken
    }
}

impl Engine {
    /// Leaves a shared connection to the client that its next reply is for, as far as can be.
    #[cold]
    pub(super) fn clear_the_way(&mut self, id: ConnId) {
        let now = self.core.now;
        let Some(conn) = self.core.conns.get_mut(id) else { return };
        if conn.retired || conn.private.is_some() {
            return;
        }
        self.core.turn.woken.append(&mut conn.waiting);
        let (index, profile) = (conn.server, conn.profile);
        let server = self.core.servers.get(usize::from(index));
        let reachable = server.is_some_and(|server| server.retry_at <= now);
        let others = if reachable { conn.take_others(&conn.staying()) } else { Vec::new() };
        let pool = server.map_or(0, |server| server.pool);
        self.core.retire(id);
        for (mut pending, bytes) in others {
            let there = self.core.conn_for(index, profile, pending.client);
            match there.map(|there| (there, self.core.conns.get_mut(there))) {
                Ok((there, Some(conn))) => {
                    conn.output.bytes().extend_from_slice(&bytes);
                    pending.tries += 1;
                    pending.waited_ms = ((now - pending.at) / 1_000).try_into().unwrap_or(u16::MAX);
                    conn.pending.push_back(pending);
                    conn.mark(there, &mut self.core.turn);
                    if let Some(pool) = self.core.pools.get(usize::from(pool)) {
                        pool.counters.detours.add(1);
                    }
                }
                Ok((_, None)) => {}
                Err(error) => {
                    self.fail(&pending, error);
                    self.core.settle_flux(pool, &mut pending);
                }
            }
        }
    }

    /// Does anybody but this client wait for a reply that comes over the connection?
    pub(super) fn others_wait(&self, id: ConnId, client: ClientId) -> bool {
        self.core.conns.get(id).is_some_and(|conn| {
            conn.pending
                .iter()
                .any(|each| each.client != client && self.clients.get(each.client).is_some())
        })
    }

    /// A connection is stalled: has that lasted too long?
    pub(super) fn end_stall(&mut self, id: ConnId) {
        let Some(conn) = self.core.conns.get(id) else { return };
        let Some((client, since)) = conn.stalled else { return };
        let limits = &self.core.limits;
        let first = conn.stalled_first.unwrap_or(since);
        let Some(found) = self.clients.get(client) else { return };
        // Else it waits itself, for replies of other servers whose turn is first.
        let is_to_read = found.bytes_unsent() > limits.waiting_bytes_hard / 2;
        let until = if is_to_read && self.others_wait(id, client) {
            (since + limits.stall_shared).min(first + limits.stall)
        } else {
            since + limits.stall
        };
        if until > self.core.now || found.ending == Ending::Closed {
            return;
        }
        if let Some(pool) = self.core.pools.get(usize::from(found.pool)) {
            pool.counters.clients_unread.add(1);
        }
        if let Some(server) = self.core.servers.get(usize::from(conn.server)) {
            let server = server.address.clone();
            self.core.turn.actions.push_back(Action::Unread { client, server });
        }
        self.close_client(client);
    }
}
