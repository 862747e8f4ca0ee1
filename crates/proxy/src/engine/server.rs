//! Servers and the connections to them.

use std::{collections::VecDeque, sync::Arc};

use super::{ClientId, Limits, Micros, Turn, near::Sum, output::Output, reply::Framer, slab::Id};
use crate::{counters::ServerCounters, route::Address};

/// Room for so many requests is kept when there are none.
const KEPT_PENDING_MAX: usize = 1024;

/// What was written and not answered is kept too, to be sent again: so many times
/// [`Limits::server_bytes_max`] in all.
const KEPT_FACTOR: usize = 4;

/// Names a connection to a server.
pub type ConnId = Id<Conn>;

/// One server of one pool.
pub(super) struct Server {
    pub pool: u16,
    pub address: Arc<Address>,
    /// Its connections, by profile.
    pub links: Vec<Link>,
    /// Connections that could not be made, since the last one that could.
    pub failures: u32,
    /// No connection is tried before.
    pub retry_at: Micros,
    /// Failures since the last good reply; see `ejection`.
    pub faults: u32,
    /// When it last failed.
    pub fault_at: Micros,
    /// It has no part in its ring before.
    pub ejected_until: Micros,
    pub counters: Arc<ServerCounters>,
}

impl Server {
    /// The connection that a client's requests go over, if there is one.
    #[inline]
    pub fn shared_conn(&self, profile: u16, client: ClientId) -> Option<ConnId> {
        let link = self.links.iter().find(|link| link.profile == profile)?;
        match link.shared.as_slice() {
            [only] => *only,
            all => *all.get(client.index() % all.len().max(1))?,
        }
    }
}

/// Connections in the same state: same user, database and protocol.
pub(super) struct Link {
    pub profile: u16,
    pub shared: Vec<Option<ConnId>>,
    /// Those that belong to one client for a while, and now to nobody.
    pub spare: Vec<ConnId>,
}

/// A connection to a server.
pub struct Conn {
    pub(super) server: u16,
    pub(super) profile: u16,
    /// It can carry bytes; else it is still being made.
    pub(super) connected: bool,
    /// No more requests: it ends when what it carries is answered.
    pub(super) retired: bool,
    /// It is no more; only its socket is left.
    pub(super) dead: bool,
    pub(super) dirty: bool,
    /// Requests that were written are kept until they are answered: so it is where it is shared.
    pub(super) keeps: bool,
    /// They may be sent again to other servers, for it is a cluster's.
    pub(super) follows: bool,
    pub(super) output: Output,
    /// What was asked and has no reply yet, in order.
    pub(super) pending: VecDeque<Pending>,
    /// The length of the one that was taken out last, while its words are still kept.
    pub(super) popped: usize,
    /// How many of those, from the first on, are waited for by nobody any more.
    pub(super) expired: usize,
    pub(super) framer: Framer,
    /// Received and not passed on.
    pub(super) held: Vec<u8>,
    /// How many of those the framer has seen.
    pub(super) scanned: usize,
    /// The beginning of the first reply was passed on already, or dropped.
    pub(super) streaming: bool,
    /// So many bytes of it.
    pub(super) passed: usize,
    /// It isn't read because this client doesn't read, since then.
    pub(super) stalled: Option<(ClientId, Micros)>,
    /// When that came to pass for the first time.
    pub(super) stalled_first: Option<Micros>,
    /// Clients that wait until it takes more.
    pub(super) waiting: Vec<ClientId>,
    /// Where it isn't shared.
    pub(super) private: Option<Private>,
    /// It is the near cache's.
    pub(super) near: bool,
    /// What was passed on of the first reply, where the near cache wants to know.
    pub(super) seen: Option<Sum>,
}

/// What is special about a connection that belongs to one client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Private {
    /// Nobody: it is not in use, or won't be when what it carries is answered.
    pub owner: ClientId,
    /// Its request may wait for data as long as it likes.
    pub patient: bool,
    /// It carries subscriptions and nothing else.
    pub feed: bool,
    /// A transaction was opened over it before: its user may.
    pub opens: bool,
}

/// A request, or a part of one, on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub client: ClientId,
    /// The request's number at its client.
    pub number: u32,
    /// Of a split request.
    pub part: u16,
    /// The slot, or whatever the route calls it.
    pub lane: u16,
    /// Bytes it took on the wire.
    pub length: usize,
    /// When it was asked.
    pub at: Micros,
    pub kind: Kind,
    /// Doing it twice is as good as once.
    pub repeatable: bool,
    /// It may change data.
    pub writes: bool,
    /// How often it was sent.
    pub tries: u16,
    /// How long it was in the proxy until it was sent again, in ms.
    pub waited_ms: u16,
    /// Its slot is in flux because of it.
    pub in_flux: bool,
}

/// What becomes of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It goes to the client.
    Request,
    /// It belongs to what a connection starts with: an error ends the connection.
    Prologue,
    /// It allows the next request to be served by a slot's owner to be.
    Asking,
    /// Nobody wants it.
    Discard,
    /// It came over a private connection.
    Session(Role),
    /// It is for the near cache.
    Near,
}

/// What a request over a private connection was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Watch,
    /// A request that is queued after MULTI.
    Step,
    /// Likewise, but the client was told QUEUED already.
    Queued,
    /// EXEC.
    End,
    /// MULTI, which the client was told about already.
    Opening,
    /// A command that waits for data.
    Blocked,
    /// AUTH of a user that the proxy doesn't know.
    Login,
    /// SUBSCRIBE and the like.
    Subscribing,
    /// Subscribing again to what another connection carried.
    Renewing,
    /// Something that the client doesn't know of.
    Silent,
}

impl Kind {
    /// Does the reply, as it is, go to a client?
    #[inline]
    pub(super) fn is_for_client(self) -> bool {
        use Role::{Blocked, End, Step};
        matches!(self, Self::Request | Self::Session(Step | End | Blocked))
    }
}

impl Conn {
    pub(super) fn new(server: u16, profile: u16) -> Self {
        Self {
            server,
            profile,
            connected: false,
            retired: false,
            dead: false,
            dirty: false,
            keeps: false,
            follows: false,
            output: Output::default(),
            pending: VecDeque::new(),
            popped: 0,
            expired: 0,
            framer: Framer::default(),
            held: Vec::new(),
            scanned: 0,
            streaming: false,
            passed: 0,
            stalled: None,
            stalled_first: None,
            waiting: Vec::new(),
            private: None,
            near: false,
            seen: None,
        }
    }

    #[inline]
    pub(super) fn mark(&mut self, id: ConnId, turn: &mut Turn) {
        if !self.dirty {
            self.dirty = true;
            turn.dirty_conns.push(id);
        }
    }

    /// Gives back what it needed for more requests than there mostly are, if there are none.
    #[inline]
    pub(super) fn rest(&mut self) {
        if self.pending.capacity() > KEPT_PENDING_MAX && self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
    }

    /// The requests without a reply, with their words where they are kept.
    pub(super) fn requests(&self) -> impl Iterator<Item = (&Pending, &[u8])> {
        let mut from = self.popped;
        self.pending.iter().filter_map(move |pending| {
            let bytes = self.output.kept(from, pending.length);
            from += pending.length;
            (pending.kind == Kind::Request).then_some((pending, bytes))
        })
    }

    /// Has it as much to carry as it may?
    #[inline]
    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        let most = limits.server_bytes_max;
        self.output.unsent_len() >= most || self.output.len() >= KEPT_FACTOR * most
    }

    /// Those go on who waited because it had, if there is room again.
    #[inline]
    pub(super) fn wake(&mut self, limits: &Limits, turn: &mut Turn) {
        let half = limits.server_bytes_max / 2;
        if !self.waiting.is_empty()
            && self.output.unsent_len() <= half
            && self.output.len() <= KEPT_FACTOR * half
        {
            turn.woken.append(&mut self.waiting);
        }
    }

    pub(super) fn buffer_bytes(&self) -> usize {
        self.output.capacity()
            + self.held.capacity()
            + self.pending.capacity() * size_of::<Pending>()
    }

    /// Takes the first of those that have no reply out.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<Pending> {
        let pending = self.pending.pop_front()?;
        self.expired = self.expired.saturating_sub(1);
        if self.keeps {
            self.popped = pending.length;
        }
        Some(pending)
    }

    /// Nobody needs the words of the one that was taken out any more.
    #[inline]
    pub(super) fn release_popped(&mut self) {
        let length = std::mem::take(&mut self.popped);
        self.output.release(length);
    }
}
