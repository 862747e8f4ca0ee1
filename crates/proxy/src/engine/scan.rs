//! SCAN over all servers: one after the other, by the lowest slot that each has.
//!
//! The proxy remembers nothing: all there is to know is in the cursor. So any proxy of the cluster
//! can go on with any scan. A cursor holds which server is being scanned (by rank), that server's
//! own cursor, and a checksum of who has which slots.
//!
//! What is promised: a key that is there from the beginning to the end of a scan is returned at
//! least once, also when the cluster changes meanwhile. The scan begins again when the proxy learns
//! that slots changed hands, a failover being one way. It may learn that late: so each server is
//! asked, when it has no more keys to return, whether it still has the slots that it is thought to
//! have. Keys are returned again then, and while slots keep moving, a scan does not end.
//!
//! Not promised, for no change of owners tells of it:
//! - keys of a slot that is being moved key by key, and still is when its server was scanned;
//! - keys of a slot that went to another server and came back between two calls.
//!
//! And one change in 2¹⁷ leaves the checksum as it was.

use std::hash::{Hash as _, Hasher};

use protocol::{ClusterNodes, SlotSet, commands::Arguments as _, resp};

use super::{
    ClientId, Core, Route,
    client::Client,
    dispatch::{Outcome, Request},
    fan::{Ask, Everyone, NO_LANE, To, mixed},
    gather::How,
    reply::value_length,
    request,
    split::push_number,
};

/// Where a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    /// Which server, by lowest slot.
    rank: u16,
    /// It has returned all its keys, and is to be asked for its slots.
    over: bool,
    /// See [`Core::checksum`].
    check: u32,
    /// The server's own.
    own: u64,
}

const RANK_BITS: u32 = 10;
const CHECK_BITS: u32 = 17;
/// The lowest bit is always set: 0 is the beginning, or the end.
const OWN_AT: u32 = 2 + RANK_BITS + CHECK_BITS;

impl Cursor {
    /// None: the server's own is too large.
    fn encode(self) -> Option<u64> {
        let fits = self.own >> (u64::BITS - OWN_AT) == 0 && self.rank >> RANK_BITS == 0;
        let low = u64::from(self.check) << RANK_BITS | u64::from(self.rank);
        fits.then_some(self.own << OWN_AT | low << 2 | u64::from(self.over) << 1 | 1)
    }

    /// None: it is the beginning, or none of ours.
    fn decode(cursor: u64) -> Option<Self> {
        let take = |at: u32, bits: u32| cursor >> at & ((1 << bits) - 1);
        (cursor & 1 == 1).then_some(Self {
            rank: take(2, RANK_BITS) as u16,
            over: take(1, 1) == 1,
            check: take(2 + RANK_BITS, CHECK_BITS) as u32,
            own: cursor >> OWN_AT,
        })
    }
}

/// Adds up what it is told.
struct Sum(u64);

impl Hasher for Sum {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = mixed(self.0 ^ u64::from(*byte)).wrapping_add(1);
        }
    }

    fn finish(&self) -> u64 {
        self.0 >> (u64::BITS - CHECK_BITS)
    }
}

/// What a page's reply is made of, besides what the server says.
#[derive(Debug)]
pub(super) struct Page {
    /// As long as the server has more.
    same: Cursor,
    /// After its last page; None: the scan is at its end.
    next: Option<Cursor>,
}

impl Page {
    /// Writes a server's page with our cursor; none where its shape is not that of a page.
    pub fn push(&self, reply: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let rest = reply.strip_prefix(b"*2\r\n")?;
        let (own, keys) = rest.split_at_checked(value_length(rest)?)?;
        let (_, start) = request::number(own.strip_prefix(b"$")?, 0).ok()??;
        let own = own.get(start + 1..)?.strip_suffix(b"\r\n")?;
        let own: u64 = std::str::from_utf8(own).ok()?.parse().ok()?;
        let cursor = match (own, self.next) {
            (0, None) => Some(0),
            (0, Some(next)) => next.encode(),
            _ => Cursor { own, ..self.same }.encode(),
        };
        match cursor {
            Some(cursor) => push_page(cursor, keys, out),
            None => out.extend_from_slice(TOO_LARGE),
        }
        Some(())
    }
}

/// What the reply of a server that has returned all its keys is compared with.
#[derive(Debug)]
pub(super) struct Verdict {
    slots: SlotSet,
    /// If it still has those; None: the scan is at its end.
    next: Option<Cursor>,
}

impl Verdict {
    /// Writes an empty page, after CLUSTER NODES; none where the reply is not that.
    pub fn push(&self, reply: &[u8], out: &mut Vec<u8>) -> Option<()> {
        // Who may not ask scans without knowing.
        let still = reply.starts_with(b"-NOPERM") || self.still(reply)?;
        let next = match self.next {
            _ if !still => START,
            None => 0,
            Some(next) => next.encode()?,
        };
        push_page(next, b"*0\r\n", out);
        Some(())
    }

    fn still(&self, reply: &[u8]) -> Option<bool> {
        let (value, _) = resp::decode(reply, &resp::Limits::default()).ok()??;
        let nodes: ClusterNodes = value.as_str()?.parse().ok()?;
        Some(nodes.my_row()?.slots == self.slots)
    }
}

/// The beginning of a scan that is not its end.
const START: u64 = 1;
const TOO_LARGE: &[u8] = b"-ERR the server's cursor is too large for a scan over all servers\r\n";

fn push_page(cursor: u64, keys: &[u8], out: &mut Vec<u8>) {
    let mut digits = Vec::new();
    push_number(&mut digits, cursor);
    out.extend_from_slice(b"*2\r\n$");
    push_number(out, digits.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&digits);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(keys);
}

impl Core {
    /// SCAN cursor [MATCH pattern] [COUNT count] [TYPE type].
    pub(super) fn scan(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
    ) -> Outcome {
        let word = request.get(1).and_then(|word| std::str::from_utf8(word).ok());
        let Some(given) = word.and_then(|word| word.parse::<u64>().ok()) else {
            self.reply(id, client, b"-ERR invalid cursor\r\n");
            return Outcome::Taken;
        };
        let Some(everyone) = self.everyone(client.pool).filter(|all| all.whole) else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        let check = self.checksum(&everyone);
        let at = Cursor::decode(given).filter(|cursor| cursor.check == check);
        let at = at.unwrap_or(Cursor { rank: 0, over: false, check, own: 0 });
        let Some(to) = everyone.servers.get(usize::from(at.rank)).copied() else {
            self.reply(id, client, b"-ERR invalid cursor\r\n");
            return Outcome::Taken;
        };
        // Another server could do nothing with this server's cursor.
        let to = [To { lane: NO_LANE, ..to }];
        let is_last = usize::from(at.rank) + 1 == everyone.servers.len();
        let next = Cursor { rank: at.rank + 1, over: false, own: 0, ..at };
        let next = (!is_last).then_some(next);
        if at.over {
            let how =
                How::Verify(Verdict { slots: self.slots_of(client.pool, to[0].server), next });
            let bytes = b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nNODES\r\n";
            let ask = Ask { bytes, repeatable: true, how, preferred: 0 };
            return self.send_each(id, client, &to, ask);
        }
        let over = Cursor { over: true, own: 0, ..at };
        let next = if self.is_ring(client.pool) { next } else { Some(over) };
        let how = How::Page(Page { same: at, next });
        let mut page = Vec::with_capacity(request.bytes.len() + 20);
        page.push(b'*');
        push_number(&mut page, request.words as u64);
        page.extend_from_slice(b"\r\n$4\r\nSCAN\r\n$");
        let own = at.own.to_string();
        push_number(&mut page, own.len() as u64);
        page.extend_from_slice(b"\r\n");
        page.extend_from_slice(own.as_bytes());
        page.extend_from_slice(b"\r\n");
        let options = request.span(1).map_or(0, |span| span.end + 2);
        page.extend_from_slice(request.bytes.get(options..).unwrap_or_default());
        self.send_each(id, client, &to, Ask { bytes: &page, repeatable: true, how, preferred: 0 })
    }

    /// Of who has which slots.
    fn checksum(&self, everyone: &Everyone) -> u32 {
        let mut sum = Sum(everyone.print.into());
        for to in &everyone.servers {
            if let Some(server) = self.servers.get(usize::from(to.server)) {
                server.address.hash(&mut sum);
            }
        }
        sum.finish() as u32
    }

    /// What slots a server is thought to have.
    fn slots_of(&self, pool: u16, server: u16) -> SlotSet {
        let Some(pool) = self.pools.get(usize::from(pool)) else { return SlotSet::default() };
        let index = pool.servers.iter().position(|each| *each == server).map(|index| index as u16);
        let Route::Slots(slots) = &pool.route else { return SlotSet::default() };
        let own = (0..protocol::SLOT_COUNT).filter(|slot| slots.owner(*slot) == index);
        SlotSet::from_ranges(own.map(|slot| (slot, slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Address;

    #[test]
    fn cursors() {
        let check = |rank, over, check, own| {
            let cursor = Cursor { rank, over, check, own };
            let encoded = cursor.encode().unwrap();
            assert_eq!((Cursor::decode(encoded), encoded & 1), (Some(cursor), 1));
        };
        check(0, false, 0, 0);
        check(3, true, 77, 1);
        check(1023, true, (1 << CHECK_BITS) - 1, (1 << 35) - 1);
        let cursor = Cursor { rank: 0, over: false, check: 0, own: 0 };
        assert_eq!(cursor.encode(), Some(START));
        assert_eq!(Cursor { own: 1 << 35, ..cursor }.encode(), None);
        assert_eq!(Cursor { rank: 1024, ..cursor }.encode(), None);
        assert_eq!((Cursor::decode(0), Cursor::decode(44)), (None, None));
        // What JavaScript's numbers hold exactly.
        let check = (1 << CHECK_BITS) - 1;
        let cursor = Cursor { rank: 1023, over: true, check, own: (1 << 24) - 1 };
        assert!(cursor.encode().unwrap() < 1 << 53);
    }

    #[test]
    fn sums_tell_neighbours_apart() {
        let sums: std::collections::BTreeSet<u64> = (0..100)
            .map(|port| {
                let mut sum = Sum(1);
                Address::Tcp(([10, 0, 0, 1], port).into()).hash(&mut sum);
                sum.finish()
            })
            .collect();
        assert!(sums.len() > 98, "{}", sums.len());
    }

    #[test]
    fn pages() {
        let check = |next, own: u64, expected: Option<Cursor>| {
            let page = Page { same: Cursor { rank: 4, over: false, check: 5, own: 7 }, next };
            let mut out = Vec::new();
            let own = own.to_string();
            let reply = format!("*2\r\n${}\r\n{own}\r\n*1\r\n$1\r\nk\r\n", own.len());
            page.push(reply.as_bytes(), &mut out).unwrap();
            let expected = expected.map_or(0, |cursor| cursor.encode().unwrap()).to_string();
            let expected = format!("*2\r\n${}\r\n{expected}\r\n*1\r\n$1\r\nk\r\n", expected.len());
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        let next = Some(Cursor { rank: 5, over: false, check: 6, own: 0 });
        check(next, 9, Some(Cursor { rank: 4, over: false, check: 5, own: 9 }));
        check(next, 0, next);
        check(None, 0, None);
        let page = Page { same: Cursor { rank: 0, over: false, check: 0, own: 0 }, next };
        assert_eq!(page.push(b"*1\r\n$1\r\n0\r\n", &mut Vec::new()), None);
        let mut out = Vec::new();
        page.push(format!("*2\r\n$11\r\n{}\r\n*0\r\n", 1_u64 << 36).as_bytes(), &mut out).unwrap();
        assert_eq!(out, TOO_LARGE);
    }

    #[test]
    fn verdicts() {
        let check = |slots: &str, last: bool, expected: Option<u64>| {
            let next = Cursor { rank: 1, over: false, check: 2, own: 0 };
            let verdict = Verdict {
                slots: SlotSet::from_ranges([(0, 5), (9, 9)]),
                next: (!last).then_some(next),
            };
            let id = "0123456789".repeat(4);
            let text = format!("{id} 10.0.0.1:1@2 myself,master - 0 0 1 connected {slots}\n");
            let mut out = Vec::new();
            let reply = format!("${}\r\n{text}\r\n", text.len());
            let pushed = verdict.push(reply.as_bytes(), &mut out);
            let expected = expected.map(|cursor| {
                let cursor = cursor.to_string();
                format!("*2\r\n${}\r\n{cursor}\r\n*0\r\n", cursor.len())
            });
            let said = pushed.map(|()| String::from_utf8(out).unwrap());
            assert_eq!(said, expected, "{slots}");
        };
        let next = Cursor { rank: 1, over: false, check: 2, own: 0 }.encode();
        check("0-5 9", false, next);
        check("0-5 9", true, Some(0));
        check("0-5 9 [9->-0123456789012345678901234567890123456789]", true, Some(0));
        check("0-5", false, Some(START));
        check("0-6 9", true, Some(START));
        check("", true, Some(START));
        check("what", true, None);
    }
}
