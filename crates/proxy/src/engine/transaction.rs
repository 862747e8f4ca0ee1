//! MULTI, EXEC, DISCARD, WATCH and UNWATCH, over a connection of the client's own.
//!
//! MULTI is answered here and sent when the first key says where to: all keys have to be in one
//! slot. Nothing follows before the server took MULTI, unless it did on that connection before: a
//! user who may not say MULTI must not have the rest executed piece by piece. Nothing is executed
//! before EXEC, so what was queued can be queued again elsewhere when the slot has moved; but not
//! after WATCH, whose watching doesn't move: then EXEC finds, as it would for a changed key, that
//! it must not be executed.

use super::{
    ClientId, ConnId, Core, Engine, Micros,
    client::{Client, Hold},
    dispatch::{Outcome, Request},
    error,
    private::{Again, DELAY, Elsewhere},
    request::{self, Progress, RequestLimits},
    server::{Kind, Pending, Role},
};
use protocol::commands::{Command, Route as Way, Session as Sort};

/// See the module.
#[derive(Default)]
pub(super) struct Transaction {
    /// MULTI was said, EXEC not yet.
    pub open: bool,
    /// A request could not be queued: EXEC won't execute the others.
    pub aborted: bool,
    /// EXEC is on its way.
    pub ending: bool,
    /// Its connection was lost; what the client is told from then on.
    pub lost: Option<Box<[u8]>>,
    /// What is waited for while its slot settles, and until when.
    pub postponed: Option<(Micros, Vec<Pending>)>,
    /// None: it is not known yet where, or it is lost.
    pub conn: Option<ConnId>,
    /// How many WATCHes.
    watches: u32,
    /// The slot of what is watched has moved: whether it changed meanwhile is not known.
    doomed: bool,
    /// MULTI was sent.
    sent: bool,
    /// It was taken.
    taken: bool,
    pub lane: Option<u16>,
    /// Requests since MULTI, or the only WATCH, as they came.
    log: Vec<u8>,
    /// Not all of them are there.
    log_is_cut: bool,
    /// How many of them came before it was known where to.
    early: u32,
}

/// So much is kept of a transaction for queueing it again.
const LOG_BYTES_MAX: usize = 64 << 10;
/// How often a request is sent elsewhere at once because its slot has moved.
pub(super) const MOVES_MAX: u16 = 5;

const QUEUED: &[u8] = b"+QUEUED\r\n";
const OK: &[u8] = b"+OK\r\n";
const MOVING: &[u8] = b"-TRYAGAIN The slot is moving to another server\r\n";

impl Transaction {
    fn log(&mut self, request: &[u8]) {
        if self.log.len() + request.len() > LOG_BYTES_MAX {
            self.log_is_cut = true;
        } else if !self.log_is_cut {
            self.log.extend_from_slice(request);
        }
    }
}

/// May it stand in a transaction?
fn is_queueable(command: &Command) -> bool {
    match command.route {
        Way::OneSlot | Way::Split(_) | Way::AnyNode => true,
        Way::Session(sort) => sort != Sort::Subscription,
        Way::Local => matches!(command.name, "ping" | "echo"),
        Way::AllPrimaries(_) | Way::Scan | Way::Refused(_) => false,
    }
}

impl Core {
    /// A transaction's command outside of MULTI.
    pub(super) fn transact(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        match command.name {
            "watch" => return self.watch(id, client, request, command),
            "multi" => {
                let transaction = client.session_mut().transaction.get_or_insert_default();
                transaction.open = true;
                transaction.log.clear();
                client.settle();
                self.reply(id, client, OK);
            }
            "unwatch" => {
                self.drop_transaction(client);
                self.reply(id, client, OK);
            }
            name => {
                let text = format!("-ERR {} without MULTI\r\n", name.to_ascii_uppercase());
                self.reply(id, client, text.as_bytes());
            }
        }
        Outcome::Taken
    }

    /// Any command after MULTI.
    pub(super) fn in_transaction(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Option<Outcome> {
        match command.name {
            "multi" => self.reply(id, client, b"-ERR MULTI calls can not be nested\r\n"),
            "watch" => self.reply(id, client, b"-ERR WATCH inside MULTI is not allowed\r\n"),
            "discard" => {
                self.drop_transaction(client);
                self.reply(id, client, OK);
            }
            "exec" => return self.exec(id, client, request),
            _ => return self.queue(id, client, request, command),
        }
        Some(Outcome::Taken)
    }

    fn watch(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        if client.outstanding() > 0 {
            return client.wait_for_quiet();
        }
        let target = match self.only_place(client, request, command) {
            Ok(Some((_, target))) => target,
            Ok(None) => return Outcome::Taken,
            Err(error) => {
                self.reply(id, client, error);
                return Outcome::Taken;
            }
        };
        let before = client.transaction_mut();
        if let Some(error) = before.as_ref().and_then(|before| before.lost.clone()) {
            self.reply(id, client, &error);
            return Outcome::Taken;
        }
        let conn = match before.and_then(|before| Some((before.conn?, before.lane))) {
            Some((_, lane)) if lane != Some(target.lane) => {
                self.reply(id, client, error::CROSS_SLOT);
                return Outcome::Taken;
            }
            Some((conn, _)) => conn,
            None => match self.take_private_at(id, client, target.server) {
                Some(conn) => conn,
                None => return Outcome::Taken,
            },
        };
        let transaction = client.session_mut().transaction.get_or_insert_default();
        (transaction.conn, transaction.lane) = (Some(conn), Some(target.lane));
        transaction.watches += 1;
        transaction.log(request.bytes);
        client.settle();
        self.send_private(conn, id, client, request.bytes, Role::Watch);
        Outcome::Taken
    }

    fn queue(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Option<Outcome> {
        let place = if is_queueable(command) {
            self.only_place(client, request, command)
        } else {
            Err(b"-ERR Command not allowed inside a transaction\r\n".as_slice())
        };
        let target = match place {
            Ok(place) => place.map(|(_, target)| target),
            Err(error) => {
                client.abort_transaction();
                self.reply(id, client, error);
                return Some(Outcome::Taken);
            }
        };
        let quiet = client.outstanding() == 0;
        let transaction = client.transaction_mut()?;
        if let Some(error) = transaction.lost.clone() {
            self.reply(id, client, &error);
            return Some(Outcome::Taken);
        }
        let conn = match (transaction.conn, target) {
            (None, None) => {
                transaction.log(request.bytes);
                transaction.early += 1;
                transaction.aborted |= transaction.log_is_cut;
                self.reply(id, client, QUEUED);
                return Some(Outcome::Taken);
            }
            (None, Some(_)) if !quiet => return Some(client.wait_for_quiet()),
            (None, Some(target)) => {
                let Some(conn) = self.take_private_at(id, client, target.server) else {
                    client.abort_transaction();
                    return Some(Outcome::Taken);
                };
                conn
            }
            (Some(_), Some(target)) if transaction.lane.is_some_and(|lane| lane != target.lane) => {
                transaction.aborted = true;
                self.reply(id, client, error::CROSS_SLOT);
                return Some(Outcome::Taken);
            }
            (Some(conn), _) => conn,
        };
        let transaction = client.transaction_mut()?;
        transaction.conn = Some(conn);
        if let Some(target) = target {
            transaction.lane = Some(target.lane);
        }
        if !self.is_ready(id, client, conn) {
            return Some(Outcome::Later);
        }
        client.transaction_mut()?.log(request.bytes);
        self.send_private(conn, id, client, request.bytes, Role::Step);
        Some(Outcome::Taken)
    }

    fn exec(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
    ) -> Option<Outcome> {
        let null = client.null_array();
        let index = client.number as usize;
        let quiet = client.outstanding() == 0;
        let transaction = client.transaction_mut()?;
        let answer = if transaction.aborted || transaction.lost.is_some() {
            Some(error::EXEC_ABORT)
        } else if transaction.doomed {
            Some(null)
        } else if transaction.conn.is_none() && transaction.early == 0 {
            Some(b"*0\r\n".as_slice())
        } else {
            None
        };
        if let Some(answer) = answer {
            self.drop_transaction(client);
            self.reply(id, client, answer);
            return Some(Outcome::Taken);
        }
        let conn = match transaction.conn {
            Some(conn) => conn,
            None if !quiet => return Some(client.wait_for_quiet()),
            None => {
                // No key says where: any server will do.
                let servers = self.pools.get(usize::from(client.pool))?.servers.len();
                let server = (servers > 0).then(|| (index % servers) as u16);
                let Some(conn) = self.take_private_at(id, client, server) else {
                    self.drop_transaction(client);
                    return Some(Outcome::Taken);
                };
                client.transaction_mut()?.conn = Some(conn);
                conn
            }
        };
        if !self.is_ready(id, client, conn) {
            return Some(Outcome::Later);
        }
        let transaction = client.transaction_mut()?;
        (transaction.open, transaction.ending) = (false, true);
        self.send_private(conn, id, client, request.bytes, Role::End);
        Some(Outcome::Taken)
    }

    /// May requests be sent after MULTI? Sends it; else the client is on hold.
    fn is_ready(&mut self, id: ClientId, client: &mut Client, conn_id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(conn_id) else { return true };
        if conn.is_full(&self.limits) {
            conn.waiting.push(id);
            client.hold = Hold::Server;
            return false;
        }
        let opens = conn.private.is_some_and(|private| private.opens);
        let Some(transaction) = client.transaction_mut() else { return true };
        if !transaction.sent {
            (transaction.sent, transaction.taken) = (true, opens);
            self.send_silent(conn_id, &[b"MULTI"], Role::Opening);
        }
        let Some(transaction) = client.transaction_mut() else { return true };
        if !transaction.taken {
            client.hold = Hold::Session;
            return false;
        }
        if transaction.early > 0 {
            transaction.early = 0;
            let log = transaction.log.clone();
            for request in requests(&log) {
                self.put(conn_id, ClientId::nobody(), 0, request, Role::Queued);
            }
        }
        true
    }

    /// Forgets about MULTI and WATCH.
    pub(super) fn drop_transaction(&mut self, client: &mut Client) {
        let session = client.session.as_deref_mut();
        let Some(transaction) = session.and_then(|session| session.transaction.take()) else {
            return;
        };
        if let Some(conn) = transaction.conn {
            if transaction.sent {
                self.send_silent(conn, &[b"DISCARD"], Role::Silent);
            } else {
                self.send_silent(conn, &[b"UNWATCH"], Role::Silent);
            }
            self.leave_private(conn);
        }
        client.settle();
    }
}

impl Client {
    /// What EXEC says when a watched key has changed.
    fn null_array(&self) -> &'static [u8] {
        if self.protocol < 3 { b"*-1\r\n" } else { b"_\r\n" }
    }
}

/// Is such a request in [`Transaction::log`]?
fn is_logged(kind: Kind) -> bool {
    matches!(kind, Kind::Session(Role::Watch | Role::Step | Role::Queued))
}

/// The requests that stand there one after another.
fn requests(mut log: &[u8]) -> impl Iterator<Item = &[u8]> {
    let limits = RequestLimits { words_max: u32::MAX, word_bytes_max: LOG_BYTES_MAX };
    std::iter::from_fn(move || {
        let frame = request::frame(log, &mut Progress::default(), &limits).ok()??;
        let (request, rest) = log.split_at_checked(frame.length)?;
        log = rest;
        Some(request)
    })
}

impl Engine {
    /// The reply to MULTI.
    pub(super) fn opening_reply(&mut self, id: ConnId, reply: &[u8]) -> bool {
        if reply.first() != Some(&b'+') {
            // Nothing was sent after it, or only what is refused now in the same way.
            let reply = reply.to_vec();
            self.kill_conn(id, &reply);
            return true;
        }
        let Some(private) = self.core.conns.get_mut(id).and_then(|conn| conn.private.as_mut())
        else {
            return false;
        };
        private.opens = true;
        let owner = private.owner;
        if let Some(client) = self.clients.get_mut(owner) {
            if let Some(transaction) = client.transaction_mut() {
                transaction.taken = true;
            }
            if client.hold == Hold::Session {
                self.core.turn.woken.push(owner);
            }
        }
        true
    }

    /// The reply to WATCH, or to a request that is queued; the client may know that it is.
    pub(super) fn step_reply(
        &mut self,
        id: ConnId,
        pending: &Pending,
        role: Role,
        reply: &[u8],
    ) -> bool {
        let Some(elsewhere) = self.core.elsewhere(id, reply) else {
            self.pass_on(pending, reply);
            return true;
        };
        let private = self.core.conns.get(id).and_then(|conn| conn.private);
        let owner = private.map_or(pending.client, |private| private.owner);
        let transaction = self.clients.get_mut(owner).and_then(Client::transaction_mut);
        let Some(transaction) = transaction.filter(|transaction| transaction.conn == Some(id))
        else {
            // It was discarded meanwhile: what this says makes no difference.
            self.pass_on(pending, if role == Role::Watch { OK } else { QUEUED });
            return true;
        };
        let only_watch = role == Role::Watch && transaction.watches == 1 && !transaction.sent;
        if transaction.watches > 0 && !only_watch {
            transaction.doomed = true;
            self.pass_on(pending, if role == Role::Watch { OK } else { QUEUED });
        } else if !self.move_transaction(owner, id, *pending, elsewhere) {
            if let Some(client) = self.clients.get_mut(owner) {
                client.abort_transaction();
            }
            self.pass_on(pending, MOVING);
        }
        true
    }

    /// The reply to EXEC; the connection is clean only after such that end the transaction.
    pub(super) fn end_reply(
        &mut self,
        id: ConnId,
        pending: &Pending,
        reply: &[u8],
        streamed: bool,
    ) -> bool {
        let moved = if streamed { None } else { self.core.elsewhere(id, reply) };
        if let Some(client) = self.clients.get_mut(pending.client) {
            let null = client.null_array();
            let transaction = client.transaction_mut();
            let watches = transaction.as_ref().is_some_and(|transaction| transaction.watches > 0);
            let doomed = transaction.is_some_and(|transaction| transaction.doomed);
            let reply = match moved {
                Some(elsewhere) if !watches => {
                    if self.move_transaction(pending.client, id, *pending, elsewhere) {
                        return true;
                    }
                    error::EXEC_ABORT
                }
                Some(_) => null,
                None if doomed => null,
                None => reply,
            };
            self.pass_on(pending, reply);
        }
        if let Some(client) = self.clients.get_mut(pending.client)
            && let Some(session) = client.session.as_deref_mut()
        {
            session.transaction = None;
            client.settle();
        }
        let ended = streamed
            || moved.is_some()
            || matches!(reply.first(), Some(b'*' | b'_'))
            || reply.starts_with(b"-EXECABORT");
        if ended {
            self.core.leave_private(id);
        } else {
            self.core.close_private(id);
        }
        true
    }

    /// Queues a transaction again, where its slot is now, as if nothing had been; false: it can't.
    /// The request at hand, which was told where, was taken off the connection already.
    fn move_transaction(
        &mut self,
        owner: ClientId,
        id: ConnId,
        first: Pending,
        elsewhere: Elsewhere,
    ) -> bool {
        let Some(client) = self.clients.get_mut(owner) else { return false };
        let (profile, pool) = (client.profile, client.pool);
        let Some(transaction) = client.transaction_mut() else { return false };
        if transaction.log_is_cut || self.core.time_is_up(pool, &first) {
            return false;
        }
        transaction.conn = None;
        let rest = self.core.conns.get_mut(id).map(|old| std::mem::take(&mut old.pending));
        let waiting: Vec<Pending> =
            std::iter::once(first).chain(rest.unwrap_or_default()).collect();
        self.core.close_private(id);
        if first.tries <= MOVES_MAX
            && let Ok(conn) = self.core.take_private(elsewhere.server, profile, owner)
        {
            self.queue_again(owner, conn, &waiting, elsewhere.asking);
        } else {
            // Servers may send it to and fro until all know the slot's owner.
            transaction.postponed = Some((self.core.now + DELAY, waiting));
            self.core.postponed.push(owner);
        }
        true
    }

    fn queue_again(&mut self, owner: ClientId, conn: ConnId, waiting: &[Pending], asking: bool) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let held = client.hold == Hold::Session;
        let Some(transaction) = client.transaction_mut() else { return };
        transaction.conn = Some(conn);
        let (log, sent) = (transaction.log.clone(), transaction.sent);
        // Said before MULTI it holds until EXEC; after MULTI it would be queued itself.
        if asking {
            self.core.send_silent(conn, &[b"ASKING"], Role::Silent);
        }
        if sent {
            self.core.send_silent(conn, &[b"MULTI"], Role::Opening);
        }
        let logged: Vec<&[u8]> = requests(&log).collect();
        let steps: Vec<&Pending> = waiting.iter().filter(|each| is_logged(each.kind)).collect();
        let told = logged.len().saturating_sub(steps.len());
        let tries = waiting.first().map_or(1, |first| first.tries.saturating_add(1));
        for (index, request) in logged.into_iter().enumerate() {
            match index.checked_sub(told).and_then(|index| steps.get(index)) {
                Some(step) => self.core.put_again(conn, step, request, tries),
                None => self.core.put(conn, ClientId::nobody(), 0, request, Role::Queued),
            }
        }
        if let Some(end) = waiting.iter().find(|each| each.kind == Kind::Session(Role::End)) {
            self.core.put_again(conn, end, b"*1\r\n$4\r\nEXEC\r\n", tries);
        }
        if held {
            self.core.turn.woken.push(owner);
        }
    }

    /// Goes on with a transaction that waited for its slot to settle.
    pub(super) fn continue_transaction(&mut self, owner: ClientId) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let (profile, pool) = (client.profile, client.pool);
        let Some(transaction) = client.transaction_mut() else { return };
        let Some((due, waiting)) = transaction.postponed.take() else { return };
        let again = self.core.again(owner, (pool, profile), transaction.lane, waiting.first(), due);
        match again {
            Again::At(due) => transaction.postponed = Some((due, waiting)),
            Again::Over(conn) => self.queue_again(owner, conn, &waiting, false),
            Again::Never => self.give_transaction_up(owner, &waiting),
        }
    }

    /// What waits for its slot to settle has waited long enough.
    fn give_transaction_up(&mut self, owner: ClientId, waiting: &[Pending]) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        if let Some(transaction) = client.transaction_mut() {
            transaction.lost = Some(MOVING.into());
            if transaction.ending {
                client.session_mut().transaction = None;
            }
        }
        client.settle();
        if client.hold == Hold::Session {
            self.core.turn.woken.push(owner);
        }
        for pending in waiting {
            let ends = pending.kind == Kind::Session(Role::End);
            self.pass_on(pending, if ends { error::EXEC_ABORT } else { MOVING });
        }
    }
}
