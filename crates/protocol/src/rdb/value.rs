//! A value as clients know it, whatever it is packed in.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    DataType, Encoding, Fault,
    items::{Item, Items, StreamHead, StreamId},
};

/// A decoded value. Two values are the same for clients where [`Value::same`] says so.
///
/// This holds all of a value in memory; [`Items`] doesn't.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    String(Vec<u8>),
    List(Vec<Vec<u8>>),
    Set(BTreeSet<Vec<u8>>),
    SortedSet(BTreeMap<Vec<u8>, f64>),
    Hash(BTreeMap<Vec<u8>, Field>),
    Stream(Stream),
    Array {
        elements: BTreeMap<u64, Vec<u8>>,
        cursor: Option<u64>,
    },
    /// What only the module or KeyDB understands: the type and the raw value.
    Opaque(DataType, Vec<u8>),
}

/// A hash's value for a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub value: Vec<u8>,
    /// Milliseconds since 1970.
    pub expire_at_ms: Option<u64>,
}

/// A name and a value of a stream's entry.
pub type Named = (Vec<u8>, Vec<u8>);

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stream {
    pub entries: BTreeMap<StreamId, Vec<Named>>,
    pub head: StreamHead,
    pub groups: BTreeMap<Vec<u8>, Group>,
    pub idempotence: Option<Idempotence>,
}

/// A group of a stream's consumers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    pub last_id: StreamId,
    /// None before Redis 7.0, and where it can't be known any more.
    pub entries_read: Option<u64>,
    /// What was delivered and not acknowledged.
    pub pending: BTreeMap<StreamId, Pending>,
    pub consumers: BTreeMap<Vec<u8>, Consumer>,
}

/// A delivered entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// None where a consumer gave it back.
    pub consumer: Option<Vec<u8>>,
    pub delivered_at_ms: u64,
    pub deliveries: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consumer {
    pub seen_at_ms: u64,
    /// None before Redis 7.2, and where it never was.
    pub active_at_ms: Option<u64>,
}

/// What a stream keeps of idempotent producers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Idempotence {
    pub seconds: u64,
    pub ids_max: u64,
    pub producers: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, StreamId>>,
}

impl Value {
    /// Decodes a whole raw value.
    pub fn decode(encoding: Encoding, raw: &[u8]) -> Result<Self, Fault> {
        let mut value = match encoding.data_type() {
            DataType::String => Self::String(Vec::new()),
            DataType::List => Self::List(Vec::new()),
            DataType::Set => Self::Set(BTreeSet::new()),
            DataType::SortedSet => Self::SortedSet(BTreeMap::new()),
            DataType::Hash => Self::Hash(BTreeMap::new()),
            DataType::Stream => Self::Stream(Stream::default()),
            DataType::Array => Self::Array { elements: BTreeMap::new(), cursor: None },
            other @ (DataType::Module | DataType::Cron) => Self::Opaque(other, raw.to_vec()),
        };
        let mut place = Place::default();
        for item in Items::new(encoding, raw) {
            value.add(item?, &mut place)?;
        }
        Ok(value)
    }

    fn add(&mut self, item: Item<'_>, place: &mut Place) -> Result<(), Fault> {
        match (self, item) {
            (Self::String(text), Item::Text(bytes)) => *text = bytes.into_owned(),
            (Self::List(list), Item::Element(bytes)) => list.push(bytes.into_owned()),
            (Self::Set(set), Item::Member(bytes)) => once(set.insert(bytes.into_owned()))?,
            (Self::SortedSet(set), Item::Scored { member, score }) => {
                once(set.insert(member.into_owned(), score).is_none())?;
            }
            (Self::Hash(hash), Item::Field { name, value, expire_at_ms }) => {
                let field = Field { value: value.into_owned(), expire_at_ms };
                once(hash.insert(name.into_owned(), field).is_none())?;
            }
            (Self::Array { elements, .. }, Item::Indexed { index, value }) => {
                elements.insert(index, value.into_owned());
            }
            (Self::Array { cursor, .. }, Item::ArrayCursor(at)) => *cursor = at,
            (Self::Stream(stream), item) => stream.add(item, place)?,
            _ => {}
        }
        Ok(())
    }

    /// Do clients see the same in both? Orders and packings don't matter, nor what one of the
    /// formats doesn't have: a stream's counters before Redis 7.0, when consumers were seen.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stream(one), Self::Stream(two)) => one.same(two),
            _ => self == other,
        }
    }
}

/// Was it the first of its name?
fn once(first: bool) -> Result<(), Fault> {
    if first { Ok(()) } else { Err(Fault::Expected("each member and each field once")) }
}

/// Whose the next items of a stream are.
#[derive(Default)]
struct Place {
    group: Vec<u8>,
    consumer: Vec<u8>,
    producer: Vec<u8>,
}

impl Stream {
    fn add(&mut self, item: Item<'_>, place: &mut Place) -> Result<(), Fault> {
        let group = self.groups.get_mut(&place.group);
        match (item, group) {
            (Item::StreamEntry { id, fields }, _) => {
                let fields = fields.into_iter();
                let owned = fields.map(|(name, value)| (name.into_owned(), value.into_owned()));
                self.entries.insert(id, owned.collect());
            }
            (Item::StreamHead(head), _) => self.head = head,
            (Item::Group { name, last_id, entries_read }, _) => {
                place.group = name.into_owned();
                let group = Group { last_id, entries_read, ..Group::default() };
                self.groups.insert(place.group.clone(), group);
            }
            (Item::Pending { id, delivered_at_ms, deliveries }, Some(group)) => {
                let pending = Pending { consumer: None, delivered_at_ms, deliveries };
                group.pending.insert(id, pending);
            }
            (Item::Consumer { name, seen_at_ms, active_at_ms }, Some(group)) => {
                place.consumer = name.into_owned();
                let consumer = Consumer { seen_at_ms, active_at_ms };
                group.consumers.insert(place.consumer.clone(), consumer);
            }
            (Item::Owned(id), Some(group)) => {
                let pending = group.pending.get_mut(&id);
                let pending = pending.ok_or(Fault::Expected("an entry that is pending"))?;
                pending.consumer = Some(place.consumer.clone());
            }
            (Item::Idempotence { seconds, ids_max }, _) => {
                let idempotence = Idempotence { seconds, ids_max, ..Idempotence::default() };
                self.idempotence = Some(idempotence);
            }
            (Item::Producer(name), _) => {
                place.producer = name.into_owned();
                let idempotence = self.idempotence.get_or_insert_default();
                idempotence.producers.insert(place.producer.clone(), BTreeMap::new());
            }
            (Item::ProducerId { id, entry }, _) => {
                let idempotence = self.idempotence.get_or_insert_default();
                let ids = idempotence.producers.entry(place.producer.clone()).or_default();
                ids.insert(id.into_owned(), entry);
            }
            _ => {}
        }
        Ok(())
    }

    fn same(&self, other: &Self) -> bool {
        let names = |group: &Group| group.consumers.keys().cloned().collect::<Vec<_>>();
        let same_group = |one: &Group, two: &Group| {
            one.last_id == two.last_id
                && agree(one.entries_read, two.entries_read)
                && one.pending == two.pending
                && names(one) == names(two)
        };
        self.entries == other.entries
            && self.head.last_id == other.head.last_id
            && agree(self.head.entries_added, other.head.entries_added)
            && agree(self.head.max_deleted_id, other.head.max_deleted_id)
            && self.groups.len() == other.groups.len()
            && self.groups.iter().zip(&other.groups).all(|((name, group), (other_name, other))| {
                name == other_name && same_group(group, other)
            })
    }
}

/// Equal where both are known.
fn agree<T: PartialEq>(one: Option<T>, two: Option<T>) -> bool {
    one.zip(two).is_none_or(|(one, two)| one == two)
}
