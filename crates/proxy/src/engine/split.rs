//! One request that becomes several, and their replies that become one.

use super::{
    gather::Gather,
    reply::{integer, value_length},
};

/// How the replies become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// The elements, in the order of the keys (MGET).
    Array,
    /// The sum of integers (DEL, UNLINK, EXISTS, TOUCH).
    Sum,
    /// OK if all say so (MSET).
    AllOk,
    /// As a [`Gather`] does it.
    Gathered,
}

/// A request whose parts are on their way.
#[derive(Debug)]
pub struct Split {
    merge: Merge,
    /// For each key the part that asks for it; only for [`Merge::Array`].
    keys: Vec<u16>,
    parts: Vec<Part>,
    /// Replies, one after another.
    bytes: Vec<u8>,
    /// Parts without an answer.
    left: u32,
    sum: i64,
    /// The first error that came.
    error: Option<Box<[u8]>>,
    /// It keeps the replies instead, and merges them in other ways.
    gather: Option<Box<Gather>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    /// Where its elements lie in [`Split::bytes`].
    start: usize,
    end: usize,
    /// How many keys it asks for.
    keys: u32,
    /// Asked with GET, so that the reply is the element itself.
    single: bool,
    answered: bool,
}

const NULL: &[u8] = b"$-1\r\n";

impl Split {
    pub fn new(merge: Merge) -> Self {
        Self {
            merge,
            keys: Vec::new(),
            parts: Vec::new(),
            bytes: Vec::new(),
            left: 0,
            sum: 0,
            error: None,
            gather: None,
        }
    }

    /// The same request to so many servers.
    pub(super) fn gathering(gather: Gather, servers: usize) -> Self {
        let mut split = Self::new(Merge::Gathered);
        split.set_gather(gather);
        (0..servers).for_each(|_| split.add_part(0, false));
        split
    }

    /// For [`Merge::Gathered`].
    pub(super) fn set_gather(&mut self, gather: Gather) {
        self.gather = Some(Box::new(gather));
    }

    /// Whose element comes next in the merged array.
    pub fn set_keys(&mut self, parts: impl Iterator<Item = u16>) {
        self.keys.extend(parts);
    }

    /// The next part, for so many keys. A `single` one's reply is its only element.
    pub fn add_part(&mut self, keys: u32, single: bool) {
        self.parts.push(Part { keys, single, ..Part::default() });
        self.left += 1;
    }

    /// Has every part its answer?
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// Bytes of replies that wait in it.
    pub fn bytes_held(&self) -> usize {
        self.bytes.len() + self.gather.as_ref().map_or(0, |gather| gather.bytes_held())
    }

    /// The reply of a part; how many bytes are held because of it.
    pub fn add(&mut self, number: u16, reply: &[u8]) -> usize {
        let Some(part) = self.parts.get_mut(usize::from(number)) else { return 0 };
        if part.answered {
            return 0;
        }
        part.answered = true;
        self.left -= 1;
        if let Some(gather) = &mut self.gather {
            return gather.add(usize::from(number), reply);
        }
        let before = self.bytes.len();
        let taken = match (self.merge, reply) {
            (Merge::Array, [b'-', error @ ..])
                if part.single && error.starts_with(b"WRONGTYPE") =>
            {
                // What MGET says of a key that holds no string.
                self.bytes.extend_from_slice(NULL);
                true
            }
            // With a gather it was taken before.
            (Merge::Gathered, _) | (_, [b'-', ..]) => false,
            (Merge::Array, _) if part.single => {
                self.bytes.extend_from_slice(reply);
                true
            }
            (Merge::Array, _) => match elements(reply, part.keys) {
                Some(elements) => {
                    self.bytes.extend_from_slice(elements);
                    true
                }
                None => false,
            },
            (Merge::Sum, _) => match integer(reply) {
                Some(number) => {
                    self.sum = self.sum.saturating_add(number);
                    true
                }
                None => false,
            },
            (Merge::AllOk, _) => reply == b"+OK\r\n",
        };
        (part.start, part.end) = (before, self.bytes.len());
        if !taken && self.error.is_none() {
            self.error = Some(match reply.first() {
                Some(b'-') => reply.into(),
                _ => b"-ERR a server's reply has not the expected shape\r\n".as_slice().into(),
            });
        }
        self.bytes.len() - before
    }

    /// Writes the one reply.
    pub fn merge(mut self, out: &mut Vec<u8>) {
        if let Some(gather) = &self.gather {
            gather.merge(out);
            return;
        }
        if let Some(error) = &self.error {
            out.extend_from_slice(error);
            return;
        }
        match self.merge {
            Merge::AllOk | Merge::Gathered => out.extend_from_slice(b"+OK\r\n"),
            Merge::Sum => {
                out.push(b':');
                push_number(out, self.sum.unsigned_abs());
                out.extend_from_slice(b"\r\n");
            }
            Merge::Array => {
                out.push(b'*');
                push_number(out, self.keys.len() as u64);
                out.extend_from_slice(b"\r\n");
                for key in &self.keys {
                    let Some(part) = self.parts.get_mut(usize::from(*key)) else { continue };
                    let rest = self.bytes.get(part.start..part.end).unwrap_or_default();
                    let length = value_length(rest).unwrap_or(rest.len());
                    out.extend_from_slice(rest.get(..length).unwrap_or_default());
                    part.start += length;
                }
            }
        }
    }
}

/// What stands behind the header of an array of exactly so many elements.
fn elements(reply: &[u8], count: u32) -> Option<&[u8]> {
    let (length, start) = super::request::number(reply.strip_prefix(b"*")?, 0).ok()??;
    if length != count as usize {
        return None;
    }
    reply.get(start + 1..)
}

/// Appends the decimal digits.
pub(crate) fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut used = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(
        merge: Merge,
        keys: &[u16],
        parts: &[(u32, bool)],
        replies: &[(u16, &str)],
    ) -> String {
        let mut split = Split::new(merge);
        split.set_keys(keys.iter().copied());
        for (keys, single) in parts {
            split.add_part(*keys, *single);
        }
        for (part, reply) in replies {
            assert!(!split.is_whole());
            split.add(*part, reply.as_bytes());
        }
        assert!(split.is_whole());
        let mut out = Vec::new();
        split.merge(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn arrays() {
        let check = |replies: &[(u16, &str)], expected: &str| {
            let parts = [(2, false), (1, true)];
            assert_eq!(merged(Merge::Array, &[0, 1, 0], &parts, replies), expected);
        };
        let two = "*2\r\n$1\r\na\r\n$-1\r\n";
        check(&[(0, two), (1, "$1\r\nb\r\n")], "*3\r\n$1\r\na\r\n$1\r\nb\r\n$-1\r\n");
        check(&[(1, "$-1\r\n"), (0, two)], "*3\r\n$1\r\na\r\n$-1\r\n$-1\r\n");
        check(&[(1, "_\r\n"), (0, two)], "*3\r\n$1\r\na\r\n_\r\n$-1\r\n");
        check(&[(1, "-WRONGTYPE x\r\n"), (0, two)], "*3\r\n$1\r\na\r\n$-1\r\n$-1\r\n");
        check(&[(1, "-ERR x\r\n"), (0, two)], "-ERR x\r\n");
        check(&[(0, "-WRONGTYPE x\r\n"), (1, "-ERR y\r\n")], "-WRONGTYPE x\r\n");
        let wrong = "-ERR a server's reply has not the expected shape\r\n";
        check(&[(0, "*1\r\n$1\r\na\r\n"), (1, "$-1\r\n")], wrong);
        check(&[(0, "+OK\r\n"), (1, "$-1\r\n")], wrong);
    }

    #[test]
    fn sums_and_oks() {
        let check = |merge, replies: &[(u16, &str)], expected: &str| {
            assert_eq!(merged(merge, &[], &[(1, false), (1, false)], replies), expected);
        };
        check(Merge::Sum, &[(0, ":2\r\n"), (1, ":40\r\n")], ":42\r\n");
        check(Merge::Sum, &[(1, ":0\r\n"), (0, ":0\r\n")], ":0\r\n");
        check(Merge::Sum, &[(1, "-ERR x\r\n"), (0, ":0\r\n")], "-ERR x\r\n");
        check(Merge::AllOk, &[(1, "+OK\r\n"), (0, "+OK\r\n")], "+OK\r\n");
        check(Merge::AllOk, &[(1, "+OK\r\n"), (0, "-OOM x\r\n")], "-OOM x\r\n");
    }
}
