//! Where the keys of a request are.
//!
//! Source: key specifications in the engines' documentation, and `getKeysUsingKeySpecs` in their
//! `src/db.c` for what it leaves open.

/// The arguments of a request as they came; the command's name is the first.
pub trait Arguments {
    fn count(&self) -> usize;
    /// None from [`Arguments::count`] on.
    fn get(&self, index: usize) -> Option<&[u8]>;
}

impl<T: AsRef<[u8]>> Arguments for [T] {
    fn count(&self) -> usize {
        self.len()
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        self.get(index).map(AsRef::as_ref)
    }
}

/// The number of keys that the request gives is no number, or more than its arguments hold. An
/// engine answers with the error that fits the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the number of keys is not an integer or is greater than the number of arguments")]
pub struct BadKeyCount;

/// The most specifications that a command has: GEORADIUS.
const SPECS: usize = 3;

/// Positions of keys, in order of the command's specifications.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    runs: [Run; SPECS],
}

/// So many keys from a first one on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    next: usize,
    step: usize,
    left: usize,
}

impl Iterator for Keys {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let run = self.runs.iter_mut().find(|run| run.left > 0)?;
        let position = run.next;
        run.next += run.step;
        run.left -= 1;
        Some(position)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.runs.iter().map(|run| run.left).sum();
        (left, Some(left))
    }
}

impl ExactSizeIterator for Keys {}

#[derive(Debug)]
pub(super) struct KeySpecs {
    pub only: Option<usize>,
    specs: Vec<KeySpec>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct KeySpec {
    begin: Begin,
    find: Find,
}

#[derive(Clone, Copy, Debug)]
enum Begin {
    Index(usize),
    /// After this word; searched forward from a position, or backward from one that counts from
    /// the end.
    Word {
        word: &'static str,
        from: isize,
    },
    /// After SORT's STORE, which other options' values may look like.
    SortStore,
}

#[derive(Clone, Copy, Debug)]
enum Find {
    /// Up to a last one: relative to the first, or negative, to the end. A limit of two takes the
    /// first half of what is there.
    Range { last: isize, step: usize, limit: usize },
    /// As many as an argument says; positions are relative to the beginning.
    Count { at: usize, first: usize, step: usize },
}

impl KeySpec {
    pub fn parse(text: &'static str) -> Option<Self> {
        let (begin, find) = text.split_once(':')?;
        // Only SORT has a key without a place.
        if begin == "?" {
            let find = Find::Range { last: 0, step: 1, limit: 0 };
            return Some(Self { begin: Begin::SortStore, find });
        }
        let begin = match begin.split_once('>') {
            Some((word, from)) => Begin::Word { word, from: from.parse().ok()? },
            None => Begin::Index(begin.parse().ok()?),
        };
        let mut numbers = find.trim_start_matches('#').split(',').map(str::parse::<isize>);
        let mut next = || numbers.next()?.ok();
        let (one, two, three) = (next()?, next()?, next()?);
        let positive = |number: isize| usize::try_from(number).ok();
        let find = if find.starts_with('#') {
            Find::Count { at: positive(one)?, first: positive(two)?, step: positive(three)? }
        } else {
            Find::Range { last: one, step: positive(two)?, limit: positive(three)? }
        };
        Some(Self { begin, find })
    }

    /// The keys of this specification; none where its word or its arguments are missing.
    fn find<A: Arguments + ?Sized>(&self, arguments: &A) -> Result<Run, BadKeyCount> {
        let count = arguments.count();
        let begin = match self.begin {
            Begin::Index(index) => Some(index),
            Begin::Word { word, from } => after_word(arguments, word, from),
            Begin::SortStore => sort_store(arguments),
        };
        let Some(begin) = begin.filter(|begin| *begin < count) else { return Ok(Run::default()) };
        match self.find {
            Find::Range { last, step, limit } => {
                let end = match (usize::try_from(last), limit) {
                    (Ok(last), _) => begin + last + 1,
                    (Err(_), 2..) => begin + (count - begin) / limit,
                    (Err(_), _) => count.saturating_sub(last.unsigned_abs() - 1),
                };
                let left = end.min(count).saturating_sub(begin).div_ceil(step.max(1));
                Ok(Run { next: begin, step, left })
            }
            Find::Count { at, first, step } => {
                let Some(given) = arguments.get(begin + at) else { return Ok(Run::default()) };
                let text = std::str::from_utf8(given).map_err(|_| BadKeyCount)?;
                let left: usize = text.parse().map_err(|_| BadKeyCount)?;
                let next = begin + first;
                let room = count.saturating_sub(next).div_ceil(step.max(1));
                if left > room { Err(BadKeyCount) } else { Ok(Run { next, step, left }) }
            }
        }
    }
}

fn after_word<A: Arguments + ?Sized>(arguments: &A, word: &str, from: isize) -> Option<usize> {
    let count = arguments.count();
    let is = |index: &usize| {
        arguments.get(*index).is_some_and(|each| each.eq_ignore_ascii_case(word.as_bytes()))
    };
    let found = match usize::try_from(from) {
        Ok(from) => (from..count).find(is),
        Err(_) => (1..=count.checked_sub(from.unsigned_abs())?).rev().find(is),
    };
    found.map(|found| found + 1)
}

/// SORT key [BY pattern] [LIMIT offset count] [GET pattern]... [STORE destination]: the last
/// STORE counts.
fn sort_store<A: Arguments + ?Sized>(arguments: &A) -> Option<usize> {
    let mut index = 2;
    let mut found = None;
    while let Some(word) = arguments.get(index) {
        let values = match word.len() {
            5 if word.eq_ignore_ascii_case(b"LIMIT") => 2,
            2 if word.eq_ignore_ascii_case(b"BY") => 1,
            3 if word.eq_ignore_ascii_case(b"GET") => 1,
            5 if word.eq_ignore_ascii_case(b"STORE") => {
                found = Some(index + 1);
                1
            }
            _ => 0,
        };
        index += 1 + values;
    }
    found
}

impl KeySpecs {
    pub fn new(specs: Vec<KeySpec>) -> Self {
        let only = match specs.as_slice() {
            [KeySpec { begin: Begin::Index(index), find: Find::Range { last: 0, .. } }] => {
                Some(*index)
            }
            _ => None,
        };
        Self { only, specs }
    }

    pub fn any(&self) -> bool {
        !self.specs.is_empty()
    }

    pub fn find<A: Arguments + ?Sized>(&self, arguments: &A) -> Result<Keys, BadKeyCount> {
        let mut keys = Keys::default();
        for (spec, run) in self.specs.iter().zip(&mut keys.runs) {
            *run = spec.find(arguments)?;
        }
        Ok(keys)
    }
}
