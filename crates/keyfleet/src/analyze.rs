//! What a file or a live cluster ([`live`]) holds: which keys take the memory, of which types, until
//! when, in which slots.
//!
//! One pass; memory doesn't grow with the file. Names are followed to [`DEPTH`] separators; of
//! prefixes the heaviest are kept ([`prefixes`]), so a figure may be too low by what the report
//! says. Memory of what a file holds is estimated: what the engine's structures take beside the
//! values, on 64 bits.

pub mod live;
pub mod page;
mod prefixes;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::atomic::AtomicU64,
};

use protocol::{
    SLOT_COUNT, key_slot,
    rdb::{DataType, Encoding, Event, Items, ItemsState, Key, Limits, Part, elements},
};
use serde::Serialize;

use self::{live::Live, prefixes::Prefixes};
use crate::{
    mover::import::source::{self, Input, Next, Position, SourceError, Visitor},
    observe::now_ms,
};

/// Separators of a name that are looked at.
const DEPTH: usize = 3;

/// How many of the biggest keys are kept.
const BIGGEST: usize = 20;

/// How many prefixes are told.
const PREFIXES: usize = 200;

/// The longest name that is kept whole; bytes.
const NAME_MAX: usize = 200;

/// What a key takes beside its name and its value: the table's entry, and the value's header.
const KEY_OVERHEAD: u64 = 24 + 8 + 16 + 3;
/// What an end takes: an entry of the second table.
const END_OVERHEAD: u64 = 24 + 8;
/// What an element takes that isn't packed: a table's entry, two headers.
const ELEMENT_OVERHEAD: u64 = 24 + 8 + 3;
/// The same in a sorted set, which has a tree beside its table.
const SCORED_OVERHEAD: u64 = ELEMENT_OVERHEAD + 40;

/// Keys, their bytes, and what they take in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    pub keys: u64,
    /// In the file.
    pub file_bytes: u64,
    /// In memory, estimated.
    pub memory_bytes: u64,
    pub elements: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.keys += other.keys;
        self.file_bytes += other.file_bytes;
        self.memory_bytes += other.memory_bytes;
        self.elements += other.elements;
    }
}

/// A key by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Biggest {
    /// Estimated.
    pub memory_bytes: u64,
    pub elements: u64,
    /// Escaped where it is no ASCII; a long one's beginning.
    pub key: String,
    pub db: u64,
    #[serde(rename = "type")]
    pub data_type: String,
}

/// Names that begin alike.
#[derive(Clone, Debug, Serialize)]
pub struct Prefix {
    /// Up to and with a separator; escaped. Empty: names without one.
    pub prefix: String,
    #[serde(flatten)]
    pub sum: Sum,
}

/// A range of times that are left.
#[derive(Clone, Debug, Serialize)]
pub struct Left {
    pub left: &'static str,
    pub keys: u64,
    pub memory_bytes: u64,
}

/// How the keys would lie in a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct Balance {
    /// By shard, slots shared evenly.
    pub shards: Vec<Sum>,
    /// The slot with the most memory.
    pub fullest_slot: u16,
    pub fullest_slot_bytes: u64,
    /// Slots with keys.
    pub slots_used: u64,
}

/// What a file or a cluster holds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub files: Vec<String>,
    /// Where servers were asked; then memory is what they say.
    pub live: Option<Live>,
    pub total: Sum,
    /// Keys whose time is over; they are counted.
    pub expired: u64,
    /// Commands of append-only files, which are not looked into.
    pub commands: u64,
    pub types: BTreeMap<String, Sum>,
    pub encodings: BTreeMap<String, Sum>,
    pub databases: BTreeMap<u64, Sum>,
    /// The heaviest, heaviest first.
    pub prefixes: Vec<Prefix>,
    /// By how much a prefix's memory may be too low.
    pub prefix_error_bytes: u64,
    pub biggest: Vec<Biggest>,
    pub ttl: Vec<Left>,
    pub balance: Balance,
}

/// Reads the files. `read` tells how far it is.
pub fn run(inputs: &[Input], shards: usize, read: &AtomicU64) -> Result<Report, SourceError> {
    let mut survey = Survey::new();
    source::read(inputs, Position::default(), read, &mut survey)?;
    Ok(survey.report(inputs.iter().map(Input::name).collect(), shards))
}

/// Times to live, each up to the bound in milliseconds.
const LEFT: [(&str, u64); 7] = [
    ("expired", 0),
    ("up to 1 minute", 60_000),
    ("up to 1 hour", 3_600_000),
    ("up to 1 day", 86_400_000),
    ("up to 7 days", 604_800_000),
    ("up to 30 days", 2_592_000_000),
    ("longer", u64::MAX),
];

/// A value that comes in parts.
struct Large {
    key: Key<'static>,
    bytes: u64,
    elements: u64,
    state: Option<ItemsState>,
}

struct Survey {
    commands: u64,
    /// In the order of [`Encoding::ALL`].
    encodings: [Sum; Encoding::ALL.len()],
    /// Types and encodings as servers call them.
    told: BTreeMap<(String, String), Sum>,
    databases: BTreeMap<u64, Sum>,
    /// The database that is being read; not among the others yet.
    db: (u64, Sum),
    prefixes: Prefixes,
    biggest: BinaryHeap<Reverse<Biggest>>,
    /// The last: those that don't end.
    left: [Sum; LEFT.len() + 1],
    slots: Vec<Sum>,
    now_ms: u64,
    /// A large value whose parts come.
    big: Option<Large>,
}

impl Survey {
    fn new() -> Self {
        Self {
            commands: 0,
            encodings: [Sum::default(); Encoding::ALL.len()],
            told: BTreeMap::new(),
            databases: BTreeMap::new(),
            db: (0, Sum::default()),
            prefixes: Prefixes::default(),
            biggest: BinaryHeap::new(),
            left: Default::default(),
            slots: vec![Sum::default(); usize::from(SLOT_COUNT)],
            now_ms: now_ms(),
            big: None,
        }
    }

    fn key(&mut self, key: &Key<'_>, file_bytes: u64, value_bytes: u64, elements: u64) {
        let packed = is_packed(key.encoding);
        let name_bytes = key.name.len() as u64;
        let each = match key.encoding.data_type() {
            _ if packed => 0,
            DataType::SortedSet => SCORED_OVERHEAD,
            DataType::Hash | DataType::Set => ELEMENT_OVERHEAD,
            _ => 0,
        };
        let end = if key.expire_at_ms.is_some() { END_OVERHEAD } else { 0 };
        let memory_bytes = KEY_OVERHEAD + name_bytes + end + value_bytes + each * elements;
        let sum = Sum { keys: 1, file_bytes: file_bytes + name_bytes, memory_bytes, elements };
        if let Some(place) = self.encodings.get_mut(key.encoding as usize) {
            place.add(sum);
        }
        let data_type = key.encoding.data_type().name();
        let left_ms = key.expire_at_ms.map(|at| at.saturating_sub(self.now_ms));
        self.count(&key.name, key.db, data_type, left_ms, sum);
    }

    /// Counts a key for everything but its type and encoding.
    fn count(&mut self, name: &[u8], db: u64, data_type: &str, left_ms: Option<u64>, sum: Sum) {
        if db != self.db.0 {
            self.end_db(db);
        }
        self.db.1.add(sum);
        let left = left_ms.map_or(LEFT.len(), |left| {
            LEFT.iter().position(|(_, bound)| left <= *bound).unwrap_or(LEFT.len() - 1)
        });
        if let Some(place) = self.left.get_mut(left) {
            place.add(sum);
        }
        if let Some(slot) = self.slots.get_mut(usize::from(key_slot(name).number())) {
            slot.add(sum);
        }
        self.prefixes.add(name, sum);
        let Sum { memory_bytes, elements, .. } = sum;
        let least = self.biggest.peek().map_or(0, |least| least.0.memory_bytes);
        if self.biggest.len() < BIGGEST || memory_bytes > least {
            let (key, data_type) = (shown(name), data_type.to_owned());
            self.biggest.push(Reverse(Biggest { memory_bytes, elements, key, db, data_type }));
            if self.biggest.len() > BIGGEST {
                self.biggest.pop();
            }
        }
    }

    /// Notes what the database had, and goes on in another.
    fn end_db(&mut self, next: u64) {
        let (db, sum) = std::mem::replace(&mut self.db, (next, Sum::default()));
        if sum.keys > 0 {
            self.databases.entry(db).or_default().add(sum);
        }
    }

    fn report(mut self, files: Vec<String>, shards: usize) -> Report {
        let shards = shards.clamp(1, usize::from(SLOT_COUNT));
        let mut balance = vec![Sum::default(); shards];
        let mut fullest = (0, 0);
        for (slot, sum) in self.slots.iter().enumerate() {
            if let Some(shard) = balance.get_mut(slot * shards / self.slots.len()) {
                shard.add(*sum);
            }
            fullest = fullest.max((sum.memory_bytes, slot));
        }
        self.end_db(0);
        let (mut types, mut encodings) = (BTreeMap::new(), BTreeMap::new());
        let found = Encoding::ALL.into_iter().zip(self.encodings).filter(|(_, sum)| sum.keys > 0);
        let found = found.map(|(encoding, sum)| {
            let name = format!("{} {encoding:?}", encoding.byte());
            (encoding.data_type().name().to_owned(), name, sum)
        });
        let told = self.told.into_iter().map(|((data_type, encoding), sum)| {
            let name = format!("{data_type}, {encoding}");
            (data_type, name, sum)
        });
        for (data_type, name, sum) in found.chain(told) {
            types.entry(data_type).or_insert_with(Sum::default).add(sum);
            encodings.insert(name, sum);
        }
        let mut total = Sum::default();
        self.left.iter().for_each(|sum| total.add(*sum));
        let left = LEFT.iter().map(|(left, _)| *left).chain(["no end"]).zip(self.left);
        let (prefixes, prefix_error_bytes) = self.prefixes.heaviest(PREFIXES);
        let biggest: Vec<Biggest> =
            self.biggest.into_sorted_vec().into_iter().map(|Reverse(big)| big).collect();
        Report {
            files,
            live: None,
            total,
            expired: self.left.first().map_or(0, |sum| sum.keys),
            commands: self.commands,
            types,
            encodings,
            databases: self.databases,
            prefixes,
            prefix_error_bytes,
            biggest,
            ttl: left
                .map(|(left, sum)| Left { left, keys: sum.keys, memory_bytes: sum.memory_bytes })
                .collect(),
            balance: Balance {
                shards: balance,
                fullest_slot: u16::try_from(fullest.1).unwrap_or_default(),
                fullest_slot_bytes: fullest.0,
                slots_used: self.slots.iter().filter(|sum| sum.keys > 0).count() as u64,
            },
        }
    }
}

/// Is the value one run of bytes in memory, as it is in the file?
fn is_packed(encoding: Encoding) -> bool {
    !matches!(
        encoding,
        Encoding::List
            | Encoding::Set
            | Encoding::SortedSet
            | Encoding::SortedSetText
            | Encoding::Hash
            | Encoding::HashExpiring
            | Encoding::HashExpiringValkey
    )
}

/// What a string takes: the bytes that it has when it isn't compressed; none where it is a number.
fn text_bytes(raw: &[u8]) -> u64 {
    match raw.first() {
        Some(0xc0..=0xc2) => 0,
        // Compressed: how many bytes it has so, then how many it has.
        Some(0xc3) => {
            length(raw, 1).and_then(|(_, at)| length(raw, at)).map_or(0, |(bytes, _)| bytes)
        }
        _ => raw.len() as u64,
    }
}

/// A length of the file's format, and where it ends.
fn length(raw: &[u8], at: usize) -> Option<(u64, usize)> {
    let first = *raw.get(at)?;
    let big_endian =
        |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    Some(match first {
        0..=0x3f => (u64::from(first), at + 1),
        0x40..=0x7f => (u64::from(first & 0x3f) << 8 | u64::from(*raw.get(at + 1)?), at + 2),
        0x80 => (big_endian(raw.get(at + 1..at + 5)?), at + 5),
        0x81 => (big_endian(raw.get(at + 1..at + 9)?), at + 9),
        _ => return None,
    })
}

fn shown(name: &[u8]) -> String {
    match name.get(..NAME_MAX) {
        Some(start) => format!("{}…", start.escape_ascii()),
        None => name.escape_ascii().to_string(),
    }
}

impl Visitor for Survey {
    type Error = SourceError;

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn event(&mut self, _: Position, event: &mut Event<'_>) -> Result<Next, SourceError> {
        match event {
            Event::Entry(entry) => {
                let raw = entry.raw;
                let value_bytes = match entry.key.encoding {
                    Encoding::String => text_bytes(raw),
                    _ => raw.len() as u64,
                };
                let elements = elements(entry.key.encoding, raw).unwrap_or_default();
                self.key(&entry.key, raw.len() as u64, value_bytes, elements);
            }
            Event::Big(big) => {
                let name = big.key.name.to_vec().into();
                let state = Some(Items::start(big.key.encoding));
                let key = Key { name, ..big.key };
                self.big = Some(Large { key, bytes: 0, elements: 0, state });
            }
            Event::Part(Part::Text(text)) => {
                if let Some(large) = &mut self.big {
                    large.bytes += text.len() as u64;
                    large.elements = 1;
                }
            }
            Event::Part(Part::Raw(raw)) => {
                if let Some(large) = &mut self.big {
                    large.bytes += raw.len() as u64;
                    if let Some(state) = large.state.take() {
                        let mut items = Items::resume(state, raw);
                        let count = items.by_ref().take_while(Result::is_ok).count();
                        large.elements += count as u64;
                        large.state = Some(items.suspend());
                    }
                }
            }
            Event::BigEnd => {
                if let Some(Large { key, bytes, elements, .. }) = self.big.take() {
                    self.key(&key, bytes, bytes, elements);
                }
            }
            _ => {}
        }
        Ok(Next::Go)
    }

    fn command(&mut self, _: Position, _: &[&[u8]]) -> Result<(), SourceError> {
        self.commands += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_in_order() {
        for (at, encoding) in Encoding::ALL.into_iter().enumerate() {
            assert_eq!(encoding as usize, at);
        }
    }

    #[test]
    fn what_strings_take() {
        let check = |raw: &[u8], expected| assert_eq!(text_bytes(raw), expected, "{raw:?}");
        check(b"\x03abc", 4);
        check(b"\xc0\x07", 0);
        check(b"\xc3\x04\x40\xff....", 255);
        check(b"\xc3\x04\x80\0\x01\0\0....", 65_536);
        check(b"\xc3", 0);
        check(b"", 0);
    }
}
