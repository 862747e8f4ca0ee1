//! One client: what it asked, in order, and what it is still to be told.

use std::{collections::VecDeque, net::SocketAddr};

use super::{
    ClientId, Turn,
    output::Output,
    quota::Part,
    request::Progress,
    session::Session,
    slab::{Id, Slab},
    split::Split,
    stream::Stream,
};

/// A client's connection. While it is idle it owns no memory but this.
pub struct Client {
    pub(super) pool: u16,
    /// Which connections to servers it may use.
    pub(super) profile: u16,
    /// 2 or 3.
    pub(super) protocol: u8,
    pub(super) authenticated: bool,
    /// Nothing about it matters to a request with one key: it is authenticated, and in no session
    /// that has a say. See [`Client::settle`].
    pub(super) plain: bool,
    /// In the list of those that have something to be written.
    pub(super) dirty: bool,
    pub(super) hold: Hold,
    pub(super) ending: Ending,
    /// The number of its oldest request without an answer.
    pub(super) head: u32,
    /// What CLIENT ID says.
    pub(super) number: u64,
    pub(super) name: Option<Box<[u8]>>,
    /// The address of ours that it is connected to, if it has one.
    pub(super) local: Option<SocketAddr>,
    /// Its own address, if it has one.
    pub(super) peer: Option<SocketAddr>,
    /// Who it logged in as.
    pub(super) user: Option<Box<[u8]>>,
    /// What it asks is counted; see `quota`.
    pub(super) limited: bool,
    /// How many of its requests were.
    pub(super) charged: u32,
    pub(super) part: Option<Part>,
    pub(super) work: Option<Box<Work>>,
    pub(super) session: Option<Box<Session>>,
}

/// Why its requests are not looked at for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    None,
    /// It has too many requests without an answer, or reads too slowly.
    Limits,
    /// The server it wants something from doesn't take more for the moment.
    Server,
    /// What it asked before has to be answered first.
    Answers,
    /// A connection of its own is not ready for its next request.
    Session,
    /// It, or its user, asked too much of late.
    Quota,
}

/// How far its end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    No,
    /// It said that it won't send more. What it sent is served.
    Ended,
    /// Nothing more is served; what was asked is answered, then it is closed.
    Answering,
    /// Only its socket is left, which the driver closes.
    Closed,
}

/// What a client has while something is going on. Recycled.
#[derive(Default)]
pub struct Work {
    /// The beginning of a request that isn't whole, or requests that have to wait.
    pub(super) query: Vec<u8>,
    pub(super) progress: Progress,
    /// The request at hand is passed on as it comes.
    pub(super) stream: Option<Stream>,
    /// The beginning of the one that was passed on so last, where slow ones are noted.
    pub(super) streamed: Option<Box<[u8]>>,
    /// Requests without an answer, oldest first.
    pub(super) ring: VecDeque<Awaited>,
    /// Replies whose turn has not come.
    pub(super) parked: Vec<u8>,
    /// How many bytes of those will be used.
    pub(super) parked_live: usize,
    pub(super) output: Output,
    /// The output ends in the middle of a reply.
    pub(super) in_reply: bool,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Awaited {
    /// One reply from one server.
    Reply,
    /// It is here, in [`Work::parked`].
    Parked { start: u32, end: u32 },
    /// Several replies that become one.
    Split(Id<Split>),
}

/// Larger buffers are not recycled.
const RECYCLED_BYTES_MAX: usize = 16 << 10;
/// Nor those of more than so many, where larger than this.
const RECYCLED_LARGE_MAX: usize = 32;
const RECYCLED_SMALL_BYTES_MAX: usize = 2 << 10;
/// More are not kept for recycling.
const RECYCLED_MAX: usize = 256;
/// Replies that were parked and used are swept out when they are more than the others and this.
const SWEPT_BYTES_MIN: usize = 16 << 10;

/// [`Work`] for whoever needs it next.
#[derive(Default)]
pub(super) struct Works {
    // Boxes, because it is boxes that clients own.
    #[expect(clippy::vec_box, reason = "moved in and out as boxes")]
    spare: Vec<Box<Work>>,
}

impl Works {
    #[inline]
    pub fn take(&mut self) -> Box<Work> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn buffer_bytes(&self) -> usize {
        self.spare.iter().map(|work| work.buffer_bytes()).sum()
    }

    #[inline]
    fn give(&mut self, mut work: Box<Work>) {
        if self.spare.len() >= RECYCLED_MAX {
            return;
        }
        work.progress = Progress::default();
        work.parked_live = 0;
        work.streamed = None;
        let bytes_max = if self.spare.len() < RECYCLED_LARGE_MAX {
            RECYCLED_BYTES_MAX
        } else {
            RECYCLED_SMALL_BYTES_MAX
        };
        for buffer in [&mut work.query, &mut work.parked, work.output.bytes()] {
            if buffer.capacity() > bytes_max {
                *buffer = Vec::new();
            }
        }
        if work.ring.capacity() * size_of::<Awaited>() > bytes_max {
            work.ring = VecDeque::new();
        }
        self.spare.push(work);
    }
}

impl Client {
    pub(super) fn new(pool: u16, profile: u16, authenticated: bool, number: u64) -> Self {
        Self {
            pool,
            profile,
            protocol: 2,
            authenticated,
            plain: authenticated,
            dirty: false,
            hold: Hold::None,
            ending: Ending::No,
            head: 0,
            number,
            name: None,
            local: None,
            peer: None,
            user: None,
            limited: false,
            charged: 0,
            part: None,
            work: None,
            session: None,
        }
    }

    /// How many requests it made, modulo 2³².
    pub(super) fn asked(&self) -> u32 {
        self.head.wrapping_add(self.outstanding() as u32)
    }

    /// Requests without an answer.
    #[inline]
    pub(super) fn outstanding(&self) -> usize {
        self.work.as_ref().map_or(0, |work| work.ring.len())
    }

    /// Bytes that wait for the client or for their turn.
    #[inline]
    pub(super) fn bytes_waiting(&self) -> usize {
        self.work.as_ref().map_or(0, |work| work.output.unsent_len() + work.parked_live)
    }

    /// Bytes that wait for the client.
    pub(super) fn bytes_unsent(&self) -> usize {
        self.work.as_ref().map_or(0, |work| work.output.unsent_len())
    }

    #[inline]
    pub(super) fn mark(&mut self, id: ClientId, turn: &mut Turn) {
        if !self.dirty {
            self.dirty = true;
            turn.dirty_clients.push(id);
        }
    }

    /// Gives its memory away if nothing is going on.
    #[inline]
    pub(super) fn rest(&mut self, works: &mut Works) {
        let idle = |work: &Work| {
            work.ring.is_empty()
                && work.query.is_empty()
                && work.output.unsent_len() == 0
                && work.stream.is_none()
        };
        if self.work.as_deref().is_some_and(idle)
            && let Some(work) = self.work.take()
        {
            works.give(work);
        }
    }

    /// Takes a request's reply, which is known beforehand, into its place in the order.
    pub(super) fn answer_now(&mut self, works: &mut Works, reply: impl FnOnce(&mut Vec<u8>)) {
        let work = self.work.get_or_insert_with(|| works.take());
        if work.ring.is_empty() {
            reply(work.output.bytes());
            self.head = self.head.wrapping_add(1);
            return;
        }
        let start = work.parked.len();
        reply(&mut work.parked);
        let end = work.parked.len();
        work.parked_live += end - start;
        work.ring.push_back(Awaited::Parked { start: start as u32, end: end as u32 });
    }

    /// Is the request with this number the one to be answered next?
    pub(super) fn is_next(&self, number: u32) -> bool {
        number == self.head && self.outstanding() > 0
    }

    /// May the reply to this request be passed on in parts?
    pub(super) fn takes_part(&self, number: u32) -> bool {
        let front = self.work.as_deref().and_then(|work| work.ring.front());
        number == self.head && matches!(front, Some(Awaited::Reply))
    }

    /// The reply to a request, or to one part of it, from a server.
    #[inline]
    pub(super) fn answer(
        &mut self,
        number: u32,
        part: u16,
        reply: &[u8],
        splits: &mut Slab<Split>,
    ) {
        let Some(work) = self.work.as_deref_mut() else { return };
        let index = number.wrapping_sub(self.head) as usize;
        match work.ring.get_mut(index) {
            Some(Awaited::Reply) if index == 0 => {
                work.output.push(reply);
                work.ring.pop_front();
                self.head = self.head.wrapping_add(1);
                if !work.ring.is_empty() {
                    self.advance(splits);
                }
            }
            Some(slot @ Awaited::Reply) => {
                let start = work.parked.len();
                work.parked.extend_from_slice(reply);
                let end = work.parked.len();
                work.parked_live += end - start;
                *slot = Awaited::Parked { start: start as u32, end: end as u32 };
                if work.parked.len() > SWEPT_BYTES_MIN + 2 * work.parked_live {
                    work.sweep();
                }
            }
            Some(Awaited::Split(split)) => {
                if let Some(split) = splits.get_mut(*split) {
                    work.parked_live += split.add(part, reply);
                    if index == 0 && split.is_whole() {
                        self.advance(splits);
                    }
                }
            }
            _ => {}
        }
    }

    /// The beginning of a reply that is not whole yet, to the request that is next.
    pub(super) fn answer_part(&mut self, bytes: &[u8]) {
        if let Some(work) = self.work.as_deref_mut() {
            work.in_reply = true;
            work.output.push(bytes);
        }
    }

    /// Passes on what can be passed on now.
    fn advance(&mut self, splits: &mut Slab<Split>) {
        let Some(work) = self.work.as_deref_mut() else { return };
        while let Some(front) = work.ring.front() {
            match *front {
                Awaited::Reply => break,
                Awaited::Parked { start, end } => {
                    let reply = work.parked.get(start as usize..end as usize).unwrap_or_default();
                    work.parked_live -= reply.len();
                    work.output.push(reply);
                }
                Awaited::Split(id) => {
                    if !splits.get(id).is_none_or(Split::is_whole) {
                        break;
                    }
                    if let Some(split) = splits.remove(id) {
                        work.parked_live -= split.bytes_held();
                        split.merge(work.output.bytes());
                    }
                }
            }
            work.ring.pop_front();
            self.head = self.head.wrapping_add(1);
        }
        if work.ring.is_empty() {
            work.parked.clear();
        }
    }
}

impl Work {
    pub(super) fn buffer_bytes(&self) -> usize {
        self.query.capacity()
            + self.parked.capacity()
            + self.output.capacity()
            + self.ring.capacity() * size_of::<Awaited>()
    }

    /// Leaves out the parked replies that were used.
    #[cold]
    fn sweep(&mut self) {
        let mut kept = Vec::with_capacity(self.parked_live);
        for awaited in &mut self.ring {
            if let Awaited::Parked { start, end } = awaited {
                let reply = self.parked.get(*start as usize..*end as usize).unwrap_or_default();
                *start = kept.len() as u32;
                kept.extend_from_slice(reply);
                *end = kept.len() as u32;
            }
        }
        self.parked = kept;
    }
}
