//! Replies of several servers to one request, which become one.

use std::{collections::HashSet, sync::Arc};

use protocol::commands::Merge;

use super::{
    reply::{integer, value_length},
    request,
    scan::{Page, Verdict},
    split::push_number,
};
use crate::route::Address;

/// What becomes of the replies.
#[derive(Debug)]
pub(super) enum How {
    /// They are merged as the command's table says.
    Merge(Merge),
    /// The one reply is a page of a scan.
    Page(Page),
    /// The one reply says whether a scan can go on.
    Verify(Verdict),
}

/// Replies that have come, and those that are waited for.
#[derive(Debug)]
pub(super) struct Gather {
    how: How,
    /// Who was asked; empty where that says nothing to a client.
    servers: Vec<Arc<Address>>,
    replies: Vec<Option<Box<[u8]>>>,
    /// [`Merge::NotNull`] takes this one's reply if it can.
    preferred: usize,
    held: usize,
    /// Replies of more bytes together are not kept.
    bytes_max: usize,
}

impl Gather {
    /// `bytes_max`: what replies may have together.
    pub fn new(how: How, servers: Vec<Arc<Address>>, preferred: usize, bytes_max: usize) -> Self {
        let replies = servers.iter().map(|_| None).collect();
        Self { how, servers, replies, preferred, held: 0, bytes_max }
    }

    /// Of so many parts of one request.
    pub fn parts(merge: Merge, parts: usize, bytes_max: usize) -> Self {
        let mut gather = Self::new(How::Merge(merge), Vec::new(), 0, bytes_max);
        gather.replies.resize(parts, None);
        gather
    }

    pub fn bytes_held(&self) -> usize {
        self.held
    }

    /// Takes the reply of one server; how many bytes are held because of it.
    pub fn add(&mut self, part: usize, reply: &[u8]) -> usize {
        let Some(place) = self.replies.get_mut(part) else { return 0 };
        let reply = if self.held + reply.len() > self.bytes_max { TOO_BIG } else { reply };
        self.held += reply.len();
        *place = Some(reply.into());
        reply.len()
    }

    /// Writes the one reply.
    pub fn merge(&self, out: &mut Vec<u8>) {
        let replies: Vec<&[u8]> =
            self.replies.iter().map(|reply| reply.as_deref().unwrap_or_default()).collect();
        let failed = |reply: &&[u8]| match self.how {
            How::Verify(_) => reply.first() == Some(&b'-') && !reply.starts_with(b"-NOPERM"),
            _ => reply.first() == Some(&b'-'),
        };
        let one_will_do = matches!(self.how, How::Merge(Merge::OneOk));
        if let Some(at) = replies.iter().position(failed)
            && (!one_will_do || replies.iter().all(failed))
        {
            self.push_error(&replies, at, out);
            return;
        }
        let before = out.len();
        let written = match &self.how {
            How::Merge(merge) => self.push_merged(*merge, &replies, out),
            How::Page(page) => replies.first().and_then(|reply| page.push(reply, out)),
            How::Verify(verdict) => replies.first().and_then(|reply| verdict.push(reply, out)),
        };
        if written.is_none() {
            out.truncate(before);
            out.extend_from_slice(WRONG_SHAPE);
        }
    }

    /// An error, with the server that it is from where others say something else.
    fn push_error(&self, replies: &[&[u8]], at: usize, out: &mut Vec<u8>) {
        let error = replies.get(at).copied().unwrap_or_default();
        let server = self.servers.get(at);
        match (error.strip_suffix(b"\r\n"), server) {
            (Some(text), Some(server)) if replies.iter().any(|reply| *reply != error) => {
                out.extend_from_slice(text);
                out.extend_from_slice(format!(" (server {server})\r\n").as_bytes());
            }
            _ => out.extend_from_slice(error),
        }
    }

    /// None: some reply has not the shape that the command's replies have.
    fn push_merged(&self, merge: Merge, replies: &[&[u8]], out: &mut Vec<u8>) -> Option<()> {
        let first = replies.first()?;
        match merge {
            Merge::Sum => {
                let mut sum = 0_i64;
                for reply in replies {
                    sum = sum.saturating_add(integer(reply)?);
                }
                push_integer(out, sum);
            }
            Merge::AllOk => {
                let good = replies.iter().all(|reply| *reply == OK);
                out.extend_from_slice(good.then_some(OK)?);
            }
            Merge::OneOk => {
                let good = replies.iter().find(|reply| reply.first() != Some(&b'-'))?;
                out.extend_from_slice(good);
            }
            Merge::Same => out.extend_from_slice(first),
            Merge::NotNull => {
                let others = replies.iter().cycle().skip(self.preferred).take(replies.len());
                let found = others.copied().find(|reply| !is_null(reply));
                out.extend_from_slice(found.unwrap_or(first));
            }
            Merge::Concat | Merge::Union | Merge::InOrderOfKeys => {
                let mut lists = Vec::with_capacity(replies.len());
                for reply in replies {
                    lists.push(List::read(reply)?);
                }
                let sign = lists.first()?.sign;
                if merge == Merge::Union {
                    push_union(sign, &lists, out);
                } else {
                    let count = lists.iter().map(|list| list.count).sum();
                    push_header(out, sign, count);
                    for list in lists {
                        out.extend_from_slice(list.elements);
                    }
                }
            }
            Merge::And => {
                let rows = rows(replies)?;
                push_header(out, b'*', rows.first()?.len());
                for column in 0..rows.first()?.len() {
                    let all = rows.iter().all(|row| row.get(column) == Some(&b":1\r\n".as_slice()));
                    push_integer(out, i64::from(all));
                }
            }
            Merge::SumPairs => {
                let rows = rows(replies)?;
                push_header(out, b'*', rows.first()?.len());
                for column in 0..rows.first()?.len() {
                    let mut cells = rows.iter().filter_map(|row| row.get(column).copied());
                    let sum = cells
                        .clone()
                        .try_fold(0_i64, |sum, cell| Some(sum.saturating_add(integer(cell)?)));
                    match sum {
                        Some(sum) => push_integer(out, sum),
                        None => out.extend_from_slice(cells.next()?),
                    }
                }
            }
        }
        Some(())
    }
}

pub(super) const OK: &[u8] = b"+OK\r\n";
const WRONG_SHAPE: &[u8] = b"-ERR a server's reply has not the expected shape\r\n";
const TOO_BIG: &[u8] = b"-ERR the servers' replies are too large to be merged\r\n";

/// The elements of an array or a set.
struct List<'a> {
    sign: u8,
    count: usize,
    elements: &'a [u8],
}

impl<'a> List<'a> {
    fn read(reply: &'a [u8]) -> Option<Self> {
        let sign = *reply.first().filter(|sign| matches!(sign, b'*' | b'~'))?;
        let (count, start) = request::number(reply, 1).ok()??;
        Some(Self { sign, count, elements: reply.get(start..)? })
    }

    fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.elements;
        (0..self.count).map_while(move |_| {
            let (element, after) = rest.split_at_checked(value_length(rest)?)?;
            rest = after;
            Some(element)
        })
    }
}

/// The elements of each reply; none where they are not equally many.
fn rows<'a>(replies: &[&'a [u8]]) -> Option<Vec<Vec<&'a [u8]>>> {
    let mut rows: Vec<Vec<&[u8]>> = Vec::with_capacity(replies.len());
    for reply in replies {
        let row: Vec<&[u8]> = List::read(reply)?.iter().collect();
        if rows.first().is_some_and(|first| first.len() != row.len()) {
            return None;
        }
        rows.push(row);
    }
    Some(rows)
}

fn push_union(sign: u8, lists: &[List<'_>], out: &mut Vec<u8>) {
    let mut seen = HashSet::new();
    let elements = lists.iter().flat_map(List::iter);
    let once: Vec<&[u8]> = elements.filter(|element| seen.insert(*element)).collect();
    push_header(out, sign, once.len());
    for element in once {
        out.extend_from_slice(element);
    }
}

fn is_null(reply: &[u8]) -> bool {
    matches!(reply, b"$-1\r\n" | b"*-1\r\n" | b"_\r\n")
}

/// Appends the line that an array or the like begins with.
pub(super) fn push_header(out: &mut Vec<u8>, sign: u8, count: usize) {
    out.push(sign);
    push_number(out, count as u64);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn push_integer(out: &mut Vec<u8>, number: i64) {
    out.push(b':');
    if number < 0 {
        out.push(b'-');
    }
    push_number(out, number.unsigned_abs());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(merge: Merge, preferred: usize, replies: &[&str]) -> String {
        let server = |number: usize| {
            let port = u16::try_from(number).unwrap();
            Arc::new(Address::Tcp(([10, 0, 0, 1], port).into()))
        };
        let servers = (0..replies.len()).map(server).collect();
        let mut gather = Gather::new(How::Merge(merge), servers, preferred, 200);
        for (part, reply) in replies.iter().enumerate().rev() {
            gather.add(part, reply.replace(' ', "\r\n").replace('_', " ").as_bytes());
        }
        let mut out = Vec::new();
        gather.merge(&mut out);
        String::from_utf8(out).unwrap().replace(' ', "_").replace("\r\n", " ")
    }

    #[test]
    fn merging() {
        let check = |merge, replies: &[&str], expected: &str| {
            assert_eq!(gather(merge, 0, replies), expected, "{merge:?} {replies:?}");
        };
        check(Merge::Sum, &[":2 ", ":40 "], ":42 ");
        check(Merge::Sum, &[":2 ", "+OK "], "-ERR_a_server's_reply_has_not_the_expected_shape ");
        check(Merge::AllOk, &["+OK ", "+OK "], "+OK ");
        check(Merge::Same, &["$1 a ", "$1 a "], "$1 a ");
        check(Merge::OneOk, &["-NOTBUSY ", "+OK "], "+OK ");
        check(Merge::OneOk, &["-NOTBUSY ", "-NOTBUSY "], "-NOTBUSY ");
        check(Merge::Concat, &["*2 $1 a *1 :1 ", "*0 ", "*1 $1 a "], "*3 $1 a *1 :1 $1 a ");
        check(Merge::Union, &["*2 $1 a $1 b ", "*0 ", "*2 $1 c $1 a "], "*3 $1 a $1 b $1 c ");
        check(Merge::Union, &["~1 $1 a ", "~1 $1 a "], "~1 $1 a ");
        check(Merge::And, &["*3 :1 :0 :1 ", "*3 :1 :1 :1 "], "*3 :1 :0 :1 ");
        check(
            Merge::And,
            &["*1 :1 ", "*2 :1 :1 "],
            "-ERR_a_server's_reply_has_not_the_expected_shape ",
        );
        check(
            Merge::SumPairs,
            &["*4 $1 a :1 $1 b :0 ", "*4 $1 a :2 $1 b :5 "],
            "*4 $1 a :3 $1 b :5 ",
        );
        check(Merge::SumPairs, &["*0 ", "*0 "], "*0 ");
    }

    #[test]
    fn one_that_is_not_null() {
        let check = |preferred, replies: &[&str], expected: &str| {
            assert_eq!(gather(Merge::NotNull, preferred, replies), expected);
        };
        check(0, &["$1 a ", "$1 b "], "$1 a ");
        check(1, &["$1 a ", "$1 b "], "$1 b ");
        check(1, &["$1 a ", "$-1 "], "$1 a ");
        check(1, &["$-1 ", "$-1 "], "$-1 ");
    }

    #[test]
    fn errors() {
        let check = |merge, replies: &[&str], expected: &str| {
            assert_eq!(gather(merge, 0, replies), expected, "{merge:?} {replies:?}");
        };
        check(Merge::Sum, &[":1 ", "-LOADING_x "], "-LOADING_x_(server_10.0.0.1:1) ");
        check(Merge::AllOk, &["-A_x ", "-B_x "], "-A_x_(server_10.0.0.1:0) ");
        check(Merge::Same, &["-ERR_exists ", "-ERR_exists "], "-ERR_exists ");
        let large = format!("*1 ${} {} ", 150, "x".repeat(150));
        check(
            Merge::Concat,
            &[&large, &large],
            "-ERR_the_servers'_replies_are_too_large_to_be_merged_(server_10.0.0.1:0) ",
        );
    }
}
