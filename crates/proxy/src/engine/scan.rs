//! SCAN over all servers: one after the other, by the lowest slot that each has.
//!
//! The proxy remembers nothing: all there is to know is in the cursor. So any proxy of the cluster
//! can go on with any scan. A cursor holds which server is being scanned (by rank), that server's
//! own cursor, a mark of its address, and a print of how the slots were shared out.
//!
//! What is promised: a key that is there from the beginning to the end of a scan is returned at
//! least once, also when the cluster changes meanwhile:
//! - A server's part begins again when another server has taken its place, for a server's cursor
//!   means nothing to another one.
//! - The whole scan begins again when slots changed hands. Before it ends, all servers are asked
//!   whether they did. Keys are returned again then; while slots keep moving, it does not end.
//!
//! Not promised: keys of a slot that is being moved key by key, and still is when the scan ends,
//! may be missing. No change of owners tells of them yet.

use protocol::commands::Arguments as _;

use super::{
    ClientId, Core,
    client::Client,
    dispatch::{Outcome, Request},
    fan::{Ask, NO_LANE, To},
    gather::How,
    reply::value_length,
    request,
    split::push_number,
};
use crate::route::{Address, Partition};

/// Where a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    /// Which server, by lowest slot; [`END`]: all are done.
    rank: u16,
    /// Tells the server from others.
    mark: u8,
    /// [`Partition::print`], shortened.
    print: u16,
    /// The server's own.
    own: u64,
}

const RANK_BITS: u32 = 10;
const MARK_BITS: u32 = 6;
const PRINT_BITS: u32 = 11;
/// The lowest bit is always set: 0 is the beginning, or the end.
const OWN_AT: u32 = 1 + RANK_BITS + MARK_BITS + PRINT_BITS;
const END: u16 = (1 << RANK_BITS) - 1;

impl Cursor {
    fn encode(self) -> Option<u64> {
        let fits = self.own >> (u64::BITS - OWN_AT) == 0 && self.rank <= END;
        let mut cursor = self.own;
        cursor = cursor << PRINT_BITS | u64::from(self.print);
        cursor = cursor << MARK_BITS | u64::from(self.mark);
        cursor = cursor << RANK_BITS | u64::from(self.rank);
        fits.then_some(cursor << 1 | 1)
    }

    fn decode(cursor: u64) -> Option<Self> {
        let take = |at: u32, bits: u32| cursor >> at & ((1 << bits) - 1);
        (cursor & 1 == 1).then_some(Self {
            rank: take(1, RANK_BITS) as u16,
            mark: take(1 + RANK_BITS, MARK_BITS) as u8,
            print: take(1 + RANK_BITS + MARK_BITS, PRINT_BITS) as u16,
            own: cursor >> OWN_AT,
        })
    }
}

fn mark(address: &Address) -> u8 {
    let hash = address
        .to_string()
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> (u32::BITS - MARK_BITS)) as u8
}

fn shortened(print: u32) -> u16 {
    (print >> (u32::BITS - PRINT_BITS)) as u16
}

/// What a page's reply is made of, besides what the server says.
#[derive(Debug)]
pub(super) struct Page {
    at: Cursor,
    /// No server comes after this one.
    last: bool,
    /// Slots may change hands, which is to be found out before the end.
    verified: bool,
}

impl Page {
    /// Writes a server's page with our cursor; none where its shape is not that of a page.
    pub fn push(&self, reply: &[u8], out: &mut Vec<u8>) -> Option<()> {
        let rest = reply.strip_prefix(b"*2\r\n")?;
        let (own, keys) = rest.split_at_checked(value_length(rest)?)?;
        let (_, start) = request::number(own.strip_prefix(b"$")?, 0).ok()??;
        let own = own.get(start + 1..)?.strip_suffix(b"\r\n")?;
        let own: u64 = std::str::from_utf8(own).ok()?.parse().ok()?;
        let next = match (own, self.last, self.verified) {
            (0, true, false) => Some(0),
            (0, true, true) => Cursor { rank: END, own, ..self.at }.encode(),
            (0, false, _) => Cursor { rank: self.at.rank + 1, own, ..self.at }.encode(),
            _ => Cursor { own, ..self.at }.encode(),
        };
        match next {
            Some(next) => push_page(next, keys, out),
            None => out.extend_from_slice(TOO_LARGE),
        }
        Some(())
    }

    /// Is this how the slots were shared out when the scan began?
    pub fn knows(&self, partition: &Partition) -> bool {
        partition.whole && shortened(partition.print) == self.at.print
    }
}

const TOO_LARGE: &[u8] = b"-ERR the server's cursor is too large for a scan over all servers\r\n";

/// Writes the last page, or one that begins the scan again: the lowest bit alone is the beginning,
/// whatever the slots are like.
pub(super) fn push_end(still: bool, out: &mut Vec<u8>) {
    push_page(u64::from(!still), b"*0\r\n", out);
}

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
        let print = shortened(everyone.print);
        let start = Cursor { rank: 0, mark: 0, print, own: 0 };
        let cursor = Cursor::decode(given).filter(|cursor| cursor.print == print);
        let mut at = cursor.unwrap_or(start);
        let verified = !self.is_ring(client.pool);
        if at.rank == END {
            self.want_refresh(client.pool);
            let page = Page { at, last: true, verified };
            let slots: &[u8] = b"*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n";
            let how = How::Verify(page);
            let ask = Ask { bytes: slots, repeatable: true, how, preferred: 0 };
            return self.send_each(id, client, &everyone.servers, ask);
        }
        let Some(to) = everyone.servers.get(usize::from(at.rank)).copied() else {
            self.reply(id, client, b"-ERR invalid cursor\r\n");
            return Outcome::Taken;
        };
        let address = self.servers.get(usize::from(to.server)).map(|server| &server.address);
        let now = address.map_or(0, |address| mark(address));
        if now != at.mark {
            (at.mark, at.own) = (now, 0);
        }
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
        let last = usize::from(at.rank) + 1 == everyone.servers.len();
        let how = How::Page(Page { at, last, verified });
        // Another server could do nothing with this server's cursor.
        let to = [To { lane: NO_LANE, ..to }];
        let ask = Ask { bytes: &page, repeatable: true, how, preferred: 0 };
        self.send_each(id, client, &to, ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors() {
        let check = |rank, mark, print, own| {
            let cursor = Cursor { rank, mark, print, own };
            let encoded = cursor.encode().unwrap();
            assert_eq!((Cursor::decode(encoded), encoded & 1), (Some(cursor), 1));
        };
        check(0, 0, 0, 0);
        check(3, 63, 2047, 1);
        check(END, 1, 5, (1 << 36) - 1);
        assert_eq!(Cursor { rank: 0, mark: 0, print: 0, own: 1 << 36 }.encode(), None);
        assert_eq!((Cursor::decode(0), Cursor::decode(44)), (None, None));
        // What JavaScript's numbers hold exactly.
        let cursor = Cursor { rank: END, mark: 63, print: 2047, own: (1 << 25) - 1 };
        assert!(cursor.encode().unwrap() < 1 << 53);
    }

    #[test]
    fn pages() {
        let check = |last, verified, own: u64, expected: Option<Cursor>| {
            let at = Cursor { rank: 4, mark: 5, print: 6, own: 7 };
            let page = Page { at, last, verified };
            let mut out = Vec::new();
            let own = own.to_string();
            let reply = format!("*2\r\n${}\r\n{own}\r\n*1\r\n$1\r\nk\r\n", own.len());
            page.push(reply.as_bytes(), &mut out).unwrap();
            let expected = expected.map_or(0, |cursor| cursor.encode().unwrap()).to_string();
            let expected = format!("*2\r\n${}\r\n{expected}\r\n*1\r\n$1\r\nk\r\n", expected.len());
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        let cursor = |rank, own| Some(Cursor { rank, mark: 5, print: 6, own });
        check(false, true, 9, cursor(4, 9));
        check(false, true, 0, cursor(5, 0));
        check(true, true, 0, cursor(END, 0));
        check(true, false, 0, None);
        let page =
            Page { at: Cursor { rank: 0, mark: 0, print: 0, own: 0 }, last: true, verified: true };
        assert_eq!(page.push(b"*1\r\n$1\r\n0\r\n", &mut Vec::new()), None);
        let mut out = Vec::new();
        page.push(format!("*2\r\n$11\r\n{}\r\n*0\r\n", 1_u64 << 36).as_bytes(), &mut out).unwrap();
        assert_eq!(out, TOO_LARGE);
    }
}
