//! What a reader of an RDB file hands out.

use std::{borrow::Cow, fmt};

use super::{Encoding, Fault, Format};

/// An event and where in the input it begins.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<'a> {
    /// Bytes before it. Of an entry: before what is said of its key, so reading can begin there
    /// again ([`Reader::resume`](super::Reader::resume)).
    pub offset: u64,
    pub event: Event<'a>,
}

/// A part of an RDB file.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// The first bytes.
    Header(Format),
    /// A note: `redis-ver`, `ctime`, `repl-id`, … KeyDB writes `mvcc-tstamp` before a key.
    Aux { name: Cow<'a, [u8]>, value: Cow<'a, [u8]> },
    /// The entries that follow are in this database.
    SelectDb(u64),
    /// How many keys the database has, and how many of them end. Only a hint.
    ResizeDb { keys: u64, expiring: u64 },
    /// How many keys a slot has, and how many of them end. Only a hint.
    SlotInfo { slot: u64, keys: u64, expiring: u64 },
    /// Slots that were moving in when a Valkey server saved. Their keys follow as any others do.
    SlotImport { job: Cow<'a, [u8]>, ranges: Vec<(u64, u64)> },
    /// A library of functions, as FUNCTION LOAD takes it.
    Function(Cow<'a, [u8]>),
    /// A module wrote something beside the keys; it was skipped.
    ModuleAux { module: u64 },
    /// A key with its whole value.
    Entry(Entry<'a>),
    /// A key whose value is too large to be handed out whole: [`Event::Part`]s follow, then
    /// [`Event::BigEnd`].
    Big(Big<'a>),
    /// The next part of a [`Big`] value.
    Part(Part<'a>),
    /// The last part of a [`Big`] value has been handed out.
    BigEnd,
    /// A member of the key before it ends on its own: KeyDB's EXPIREMEMBER.
    MemberExpires { member: Cow<'a, [u8]>, expire_at_ms: u64 },
    /// The last bytes.
    End(Verdict),
}

/// A key without its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Key<'a> {
    pub db: u64,
    pub name: Cow<'a, [u8]>,
    /// Milliseconds since 1970; may have passed.
    pub expire_at_ms: Option<u64>,
    /// Seconds since it was last used.
    pub idle_seconds: Option<u64>,
    /// How often it is used, logarithmic, 0 to 255.
    pub frequency: Option<u8>,
    pub encoding: Encoding,
    /// A module had noted something for the key, which was skipped.
    pub metadata_dropped: bool,
}

impl<'a> Key<'a> {
    /// A key of which nothing else is known.
    pub const fn new(db: u64, name: &'a [u8], encoding: Encoding) -> Self {
        Self {
            db,
            name: Cow::Borrowed(name),
            expire_at_ms: None,
            idle_seconds: None,
            frequency: None,
            encoding,
            metadata_dropped: false,
        }
    }
}

/// A key and its whole value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    pub key: Key<'a>,
    /// The value as the file holds it: what a DUMP payload has after its type byte.
    /// [`Items`](super::Items) and [`Value`](super::Value) decode it.
    pub raw: &'a [u8],
}

/// A key whose value comes in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Big<'a> {
    pub key: Key<'a>,
    /// Of a string: how many bytes all its parts have. None for other types.
    pub text_bytes: Option<u64>,
}

/// A part of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'a> {
    /// The next bytes of a string, unpacked.
    Text(&'a [u8]),
    /// The next bytes of any other value. Parts are cut between elements, so each can be decoded
    /// ([`Items::resume`](super::Items::resume)); all together are the raw value.
    Raw(&'a [u8]),
}

/// What the checksum at the end of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Versions below 5 have none, and `rdbchecksum no` writes 0.
    NoChecksum,
    /// The bytes are those that were written.
    Matches,
    /// The bytes are not those that were written.
    Differs { stored: u64, computed: u64 },
    /// Reading did not begin at the first byte.
    Unknown,
}

/// What an input may ask for at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Values up to this are handed out whole, larger ones in parts of about this size. At least 64.
    pub whole_bytes_max: usize,
    /// The longest key, element or packed group of elements: these are never cut. Also how much
    /// one of them may be after it is unpacked.
    pub unit_bytes_max: usize,
}

impl Default for Limits {
    /// Values of up to 8 MiB are whole. Units may be what an engine takes as one string by default,
    /// 512 MiB, and a bit.
    fn default() -> Self {
        Self { whole_bytes_max: 8 << 20, unit_bytes_max: 513 << 20 }
    }
}

/// An input that can't be read on. What was handed out before is right as far as it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadError {
    /// Bytes before what can't be read.
    pub offset: u64,
    /// The key that is concerned, where it is known; its first bytes where it is long.
    pub key: Option<Vec<u8>>,
    pub fault: Fault,
}

impl ReadError {
    pub(super) fn new(offset: u64, key: Option<&[u8]>, fault: Fault) -> Self {
        Self { offset, key: key.map(|key| shown(key).to_vec()), fault }
    }
}

/// As much of a key as an error shows.
pub(super) fn shown(key: &[u8]) -> &[u8] {
    key.get(..200).unwrap_or(key)
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.fault)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}", self.offset)?;
        if let Some(key) = &self.key {
            write!(f, ", key \"{}\"", key.escape_ascii())?;
        }
        write!(f, ": {}", self.fault)
    }
}
