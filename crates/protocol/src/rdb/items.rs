//! A value's elements, one after the other.

use std::{borrow::Cow, fmt};

use super::{
    DataType, Encoding, Fault,
    layout::{Layout, Unit},
    packed::Elements,
    stream::{Entries, Fields},
    wire::{Cursor, Stop},
};

/// The id of a stream's entry, `ms-seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct StreamId {
    pub ms: u64,
    pub seq: u64,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl StreamId {
    /// As nodes and pending lists hold it: most significant byte first.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        let ms = u64::from_be_bytes(cursor.array()?);
        Ok(Self { ms, seq: u64::from_be_bytes(cursor.array()?) })
    }

    /// As two lengths.
    fn read_lengths(cursor: &mut Cursor<'_>) -> Result<Self, Stop> {
        Ok(Self { ms: cursor.length()?, seq: cursor.length()? })
    }
}

/// Counters of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamHead {
    pub entries: u64,
    pub last_id: StreamId,
    /// None before Redis 7.0, as for the next two.
    pub first_id: Option<StreamId>,
    pub max_deleted_id: Option<StreamId>,
    pub entries_added: Option<u64>,
}

/// A part of a value that can be told from the others.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'a> {
    /// All of a string.
    Text(Cow<'a, [u8]>),
    /// The next element of a list.
    Element(Cow<'a, [u8]>),
    /// A member of a set.
    Member(Cow<'a, [u8]>),
    /// A member of a sorted set.
    Scored { member: Cow<'a, [u8]>, score: f64 },
    /// A field of a hash; when it ends, in milliseconds since 1970.
    Field { name: Cow<'a, [u8]>, value: Cow<'a, [u8]>, expire_at_ms: Option<u64> },
    /// An entry of a stream that is not deleted, its fields in order.
    StreamEntry { id: StreamId, fields: Fields<'a> },
    /// After a stream's entries.
    StreamHead(StreamHead),
    /// A group; what follows belongs to it up to the next.
    Group { name: Cow<'a, [u8]>, last_id: StreamId, entries_read: Option<u64> },
    /// An entry the group delivered that nobody acknowledged.
    Pending { id: StreamId, delivered_at_ms: u64, deliveries: u64 },
    /// A consumer of the group; what follows belongs to it up to the next.
    Consumer { name: Cow<'a, [u8]>, seen_at_ms: u64, active_at_ms: Option<u64> },
    /// One of the group's pending entries that this consumer has.
    Owned(StreamId),
    /// One of the group's pending entries that a consumer gave back.
    Unowned(StreamId),
    /// How long and how many ids a stream keeps for each idempotent producer.
    Idempotence { seconds: u64, ids_max: u64 },
    /// A producer; ids follow.
    Producer(Cow<'a, [u8]>),
    /// An id that the producer gave, and which entry it became.
    ProducerId { id: Cow<'a, [u8]>, entry: StreamId },
    /// An array's next insertion, where it has one.
    ArrayCursor(Option<u64>),
    /// An element of an array.
    Indexed { index: u64, value: Cow<'a, [u8]> },
    /// The id of a module's type; nobody but the module knows what follows.
    ModuleType(u64),
}

/// Decodes a value item by item: an iterator. Of packed elements that were not compressed it hands
/// out the bytes themselves. After a fault it ends.
///
/// Of a value in parts ([`Part::Raw`](super::Part)) each part is decoded by its own `Items`, that takes over from the last.
///
/// ```
/// use protocol::rdb::{Encoding, Item, Items};
///
/// let raw = b"\x02\x01a\xc0\x07"; // two strings
/// let elements: Vec<_> = Items::new(Encoding::List, raw).collect::<Result<_, _>>()?;
/// assert_eq!(elements, [Item::Element(b"a".into()), Item::Element(b"7".as_slice().into())]);
/// # Ok::<(), protocol::rdb::Fault>(())
/// ```
#[derive(Debug, Clone)]
pub struct Items<'a> {
    state: State,
    cursor: Cursor<'a>,
    inner: Inner<'a>,
    /// A fault was handed out.
    failed: bool,
    /// The input is all there is.
    whole: bool,
}

/// What is known between two parts of a value.
#[derive(Debug, Clone)]
pub struct ItemsState(State);

#[derive(Debug, Clone)]
struct State {
    encoding: Encoding,
    layout: Layout,
    earliest_expiry_ms: u64,
}

/// Elements that share a unit.
#[derive(Debug, Clone)]
enum Inner<'a> {
    None,
    Packed(Elements<'a>),
    Entries(Entries<'a>),
}

impl<'a> Items<'a> {
    /// The items of a whole value. A fault where it is not whole, or where something follows it.
    pub fn new(encoding: Encoding, raw: &'a [u8]) -> Self {
        Self { whole: true, ..Self::resume(Self::start(encoding), raw) }
    }

    /// For the first part of a value.
    pub fn start(encoding: Encoding) -> ItemsState {
        let layout = Layout::new(encoding);
        ItemsState(State { encoding, layout, earliest_expiry_ms: 0 })
    }

    /// The items of a value's next part.
    pub fn resume(state: ItemsState, part: &'a [u8]) -> Self {
        let cursor = Cursor::new(part);
        Self { state: state.0, cursor, inner: Inner::None, failed: false, whole: false }
    }

    /// What the next part needs, after all items of this one.
    pub fn suspend(self) -> ItemsState {
        ItemsState(self.state)
    }

    fn advance(&mut self) -> Result<Option<Item<'a>>, Fault> {
        loop {
            match &mut self.inner {
                Inner::None => {}
                Inner::Packed(elements) => {
                    if let Some(item) = self.state.packed_item(elements)? {
                        return Ok(Some(item));
                    }
                }
                Inner::Entries(entries) => {
                    if let Some((id, fields)) = entries.next()? {
                        return Ok(Some(Item::StreamEntry { id, fields }));
                    }
                }
            }
            self.inner = Inner::None;
            if !self.whole && self.cursor.rest.is_empty() {
                return Ok(None);
            }
            let mut unit = self.cursor;
            let Some(kind) = self
                .state
                .layout
                .next(&mut self.cursor)
                .map_err(|stop| stop.at_end("the value"))?
            else {
                return match self.cursor.rest.len() {
                    0 => Ok(None),
                    length => Err(Fault::TooLong(length)),
                };
            };
            let item = self.state.item(kind, &mut unit).map_err(|stop| stop.at_end("the value"))?;
            match item {
                Decoded::Item(item) => return Ok(Some(item)),
                Decoded::Inner(inner) => self.inner = inner,
                Decoded::Nothing => {}
            }
        }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

enum Decoded<'a> {
    Item(Item<'a>),
    Inner(Inner<'a>),
    Nothing,
}

impl State {
    /// Decodes one unit, which is all there.
    fn item<'a>(&mut self, unit: Unit, cursor: &mut Cursor<'a>) -> Result<Decoded<'a>, Stop> {
        let version = self.encoding.stream_version();
        Ok(Decoded::Item(match unit {
            Unit::Nothing | Unit::UnownedCount | Unit::IdempotenceTail => {
                return Ok(Decoded::Nothing);
            }
            Unit::Text => Item::Text(cursor.string()?),
            Unit::Packed => return Ok(Decoded::Inner(Inner::Packed(self.elements(cursor)?))),
            Unit::PackedExpiring => {
                cursor.u64()?;
                return Ok(Decoded::Inner(Inner::Packed(self.elements(cursor)?)));
            }
            Unit::Ziplist => {
                let elements = Elements::ziplist(cursor.string()?)?;
                return Ok(Decoded::Inner(Inner::Packed(elements)));
            }
            Unit::Node => match cursor.length()? {
                1 => Item::Element(cursor.string()?),
                2 => {
                    let elements = Elements::listpack(cursor.string()?)?;
                    return Ok(Decoded::Inner(Inner::Packed(elements)));
                }
                _ => return Err(Fault::Expected("a kind of list node").into()),
            },
            Unit::Entries => {
                return Ok(Decoded::Inner(Inner::Entries(Entries::read(cursor)?)));
            }
            Unit::Element if self.encoding.data_type() == DataType::Set => {
                Item::Member(cursor.string()?)
            }
            Unit::Element => Item::Element(cursor.string()?),
            Unit::Scored => Item::Scored { member: cursor.string()?, score: cursor.f64()? },
            Unit::ScoredText => {
                Item::Scored { member: cursor.string()?, score: cursor.score_text()? }
            }
            Unit::Pair => {
                let name = cursor.string()?;
                Item::Field { name, value: cursor.string()?, expire_at_ms: None }
            }
            Unit::EarliestExpiry => {
                self.earliest_expiry_ms = cursor.u64()?;
                return Ok(Decoded::Nothing);
            }
            Unit::ExpiringPair => {
                // Counted from just before the earliest; in the release candidate, from 1970.
                let after = cursor.length()?;
                let from = match self.encoding {
                    Encoding::HashExpiring => self.earliest_expiry_ms.wrapping_sub(1),
                    _ => 0,
                };
                // Engines hold times with a sign.
                let at = from.wrapping_add(after);
                let expire_at_ms = (after > 0).then_some(at);
                if expire_at_ms.is_some_and(|at| at > i64::MAX as u64) {
                    return Err(Fault::Expected("when a field ends").into());
                }
                let name = cursor.string()?;
                Item::Field { name, value: cursor.string()?, expire_at_ms }
            }
            Unit::PairExpiring => {
                let (name, value) = (cursor.string()?, cursor.string()?);
                let at = i64::from_le_bytes(cursor.array()?);
                Item::Field { name, value, expire_at_ms: u64::try_from(at).ok() }
            }
            Unit::ArrayHead => {
                cursor.length()?;
                let has_cursor = cursor.length()? == 1;
                Item::ArrayCursor(if has_cursor { Some(cursor.length()?) } else { None })
            }
            Unit::Indexed => {
                let index = cursor.length()?;
                let value = match cursor.length()? {
                    1 => i64::from_le_bytes(cursor.array()?).to_string().into_bytes().into(),
                    2 => cursor.f64()?.to_string().into_bytes().into(),
                    _ => cursor.string()?,
                };
                Item::Indexed { index, value }
            }
            Unit::ModuleType => Item::ModuleType(cursor.length()?),
            Unit::StreamHead => {
                let (entries, last_id) = (cursor.length()?, StreamId::read_lengths(cursor)?);
                let mut head = StreamHead { entries, last_id, ..StreamHead::default() };
                if version >= 2 {
                    head.first_id = Some(StreamId::read_lengths(cursor)?);
                    head.max_deleted_id = Some(StreamId::read_lengths(cursor)?);
                    head.entries_added = Some(cursor.length()?);
                }
                Item::StreamHead(head)
            }
            Unit::Group => {
                let (name, last_id) = (cursor.string()?, StreamId::read_lengths(cursor)?);
                // -1 stands for a number that can't be known any more.
                let entries_read = if version >= 2 { Some(cursor.length()?) } else { None };
                let entries_read = entries_read.filter(|read| *read != u64::MAX);
                Item::Group { name, last_id, entries_read }
            }
            Unit::Pending => Item::Pending {
                id: StreamId::read(cursor)?,
                delivered_at_ms: cursor.u64()?,
                deliveries: cursor.length()?,
            },
            Unit::Consumer => {
                let (name, seen_at_ms) = (cursor.string()?, cursor.u64()?);
                let active_at_ms = if version >= 3 { Some(cursor.u64()?) } else { None };
                // -1 stands for never.
                let active_at_ms = active_at_ms.filter(|at| *at != u64::MAX);
                Item::Consumer { name, seen_at_ms, active_at_ms }
            }
            Unit::Owned => Item::Owned(StreamId::read(cursor)?),
            Unit::Unowned => Item::Unowned(StreamId::read(cursor)?),
            Unit::IdempotenceHead => {
                Item::Idempotence { seconds: cursor.length()?, ids_max: cursor.length()? }
            }
            Unit::Producer => Item::Producer(cursor.string()?),
            Unit::ProducerId => {
                let id = cursor.string()?;
                Item::ProducerId { id, entry: StreamId::read_lengths(cursor)? }
            }
        }))
    }

    fn elements<'a>(&self, cursor: &mut Cursor<'a>) -> Result<Elements<'a>, Stop> {
        let bytes = cursor.string()?;
        Ok(match self.encoding {
            Encoding::HashZipmap => Elements::zipmap(bytes),
            Encoding::SetIntset => Elements::intset(bytes),
            Encoding::ListZiplist | Encoding::SortedSetZiplist | Encoding::HashZiplist => {
                Elements::ziplist(bytes)
            }
            _ => Elements::listpack(bytes),
        }?)
    }

    /// The next item of packed elements.
    fn packed_item<'a>(&self, elements: &mut Elements<'a>) -> Result<Option<Item<'a>>, Fault> {
        let Some(first) = elements.next() else { return Ok(None) };
        let first = first?.into_bytes();
        Ok(Some(match self.encoding.data_type() {
            DataType::Set => Item::Member(first),
            DataType::SortedSet => {
                let score = elements.need("a score")?.as_score();
                Item::Scored { member: first, score: score.ok_or(Fault::Expected("a score"))? }
            }
            DataType::Hash => {
                let value = elements.need("the value of a field")?.into_bytes();
                let expiring = matches!(
                    self.encoding,
                    Encoding::HashListpackExpiring | Encoding::HashListpackExpiringCandidate
                );
                let expire_at_ms =
                    if expiring { elements.need_integer("when a field ends")? } else { 0 };
                let expire_at_ms = u64::try_from(expire_at_ms).ok().filter(|at| *at > 0);
                Item::Field { name: first, value, expire_at_ms }
            }
            _ => Item::Element(first),
        }))
    }
}
