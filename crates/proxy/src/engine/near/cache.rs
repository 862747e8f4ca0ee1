//! What the near cache holds: values by key, within a number of bytes.
//!
//! A key is asked for, then its value is held until it is dropped, or its time is over. Which keys
//! are worth it: those that are read twice within a short while ([`Doors`]); those that changed too
//! soon to be of use have to be read more often before they are asked for again.
//!
//! Where there is no room, who was not read since the last look goes first (the clock algorithm).

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::{
    counters::PoolCounters,
    engine::{
        Micros,
        slab::{Id, Slab},
    },
};

/// What an entry takes beside its key and its value.
const ENTRY_BYTES: usize = 200;
/// One value may take one in so many of all bytes.
const VALUE_SHARE: usize = 8;
/// Nor more: a client may have little more than that waiting when it is given one.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// A key that is held, or on its way.
pub struct Entry {
    key: Arc<[u8]>,
    slot: u16,
    server: u16,
    /// Where it is among its slot's.
    place: usize,
    state: State,
    /// It was read since the clock's hand was there.
    used: bool,
    hits: u32,
    /// So many reads were wanted before it was asked for.
    price: u16,
}

enum State {
    /// Its value was asked for. `seen`: what clients were told meanwhile.
    Asked { seen: Option<Sum> },
    /// The value as a bulk string's reply; empty: the key is not there.
    Held { value: Box<[u8]>, until: Micros },
    /// It is not worth asking for until then.
    Shunned { until: Micros },
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Its value as a bulk string's reply; empty: the key is not there.
    Value(&'a [u8]),
    /// A server has to be asked.
    Unknown,
    /// Likewise, and it is worth being held: after [`Cache::begin`].
    Wanted { price: u16 },
}

/// See the module.
pub struct Cache {
    bytes_max: usize,
    bytes: usize,
    by_key: HashMap<Arc<[u8]>, Id<Entry>>,
    by_slot: HashMap<u16, Vec<Id<Entry>>>,
    entries: Slab<Entry>,
    /// The clock: all entries, and some that are gone.
    clock: VecDeque<Id<Entry>>,
    doors: Doors,
    counters: Arc<PoolCounters>,
}

impl Cache {
    pub fn new(bytes_max: usize, counters: Arc<PoolCounters>) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            by_key: HashMap::new(),
            by_slot: HashMap::new(),
            entries: Slab::default(),
            clock: VecDeque::new(),
            doors: Doors::default(),
            counters,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A longer value is not held.
    pub fn value_bytes_max(&self) -> usize {
        (self.bytes_max / VALUE_SHARE).min(VALUE_BYTES_MAX)
    }

    /// Is anything held of a slot, or on its way?
    pub fn has_slot(&self, slot: u16) -> bool {
        self.by_slot.contains_key(&slot)
    }

    /// A key is read. What is held is only given to who `may` have it.
    pub fn read(&mut self, key: &[u8], now: Micros, may: impl FnOnce() -> bool) -> Found<'_> {
        let Some(id) = self.by_key.get(key).copied() else { return self.knock(key) };
        let until = match self.entries.get(id).map(|entry| &entry.state) {
            Some(State::Held { until, .. } | State::Shunned { until }) => *until,
            _ => return Found::Unknown,
        };
        if until <= now {
            if let Some(entry) = self.remove(id) {
                self.doors.put(hash(key), 1, entry.price);
            }
            return self.knock(key);
        }
        let Some(entry) = self.entries.get_mut(id) else { return Found::Unknown };
        let State::Held { value, .. } = &entry.state else { return Found::Unknown };
        if !may() {
            return Found::Unknown;
        }
        entry.used = true;
        entry.hits = entry.hits.saturating_add(1);
        Found::Value(value)
    }

    fn knock(&mut self, key: &[u8]) -> Found<'static> {
        match self.doors.knock(hash(key)) {
            Some(price) => Found::Wanted { price },
            None => Found::Unknown,
        }
    }

    /// The value of a key that is not here is asked for.
    pub fn begin(&mut self, key: &[u8], slot: u16, server: u16, price: u16) -> Id<Entry> {
        let key: Arc<[u8]> = key.into();
        let of_slot = self.by_slot.entry(slot).or_default();
        let entry = Entry {
            key: Arc::clone(&key),
            slot,
            server,
            place: of_slot.len(),
            state: State::Asked { seen: None },
            used: false,
            hits: 0,
            price,
        };
        let bytes = entry.bytes();
        let id = self.entries.insert(entry);
        of_slot.push(id);
        self.by_key.insert(key, id);
        if self.clock.len() > 64 + 2 * self.entries.len() {
            self.clock.retain(|id| self.entries.get(*id).is_some());
        }
        self.clock.push_back(id);
        self.count(self.bytes + bytes);
        self.make_room();
        id
    }

    /// A value came that was asked for: a bulk string's reply, or nothing where the key isn't there.
    pub fn fill(&mut self, id: Id<Entry>, value: &[u8], until: Micros) {
        let most = self.value_bytes_max();
        let Some(entry) = self.entries.get_mut(id) else { return };
        let State::Asked { seen } = entry.state else { return };
        if seen.is_some_and(|seen| seen != Sum::of(value)) {
            self.outdate(id);
            return;
        }
        if value.len() > most {
            entry.state = State::Shunned { until };
            return;
        }
        entry.state = State::Held { value: value.into(), until };
        self.count(self.bytes + value.len());
        self.make_room();
    }

    /// A key that was asked for is not worth asking for until then.
    pub fn shun(&mut self, id: Id<Entry>, until: Micros) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.state = State::Shunned { until };
        }
    }

    /// Is a key's value held, or on its way?
    pub fn knows(&self, key: &[u8]) -> bool {
        let entry = self.by_key.get(key).and_then(|id| self.entries.get(*id));
        entry.is_some_and(|entry| !matches!(entry.state, State::Shunned { .. }))
    }

    /// A client is told of this value. Where it is another than what is held, or on its way, that may
    /// be older.
    pub fn saw(&mut self, key: &[u8], value: Sum) {
        let Some(id) = self.by_key.get(key).copied() else { return };
        let Some(entry) = self.entries.get_mut(id) else { return };
        let differs = match &mut entry.state {
            State::Shunned { .. } => false,
            State::Held { value: held, .. } => Sum::of(held) != value,
            State::Asked { seen } => *seen.get_or_insert(value) != value,
        };
        if differs {
            self.outdate(id);
        }
    }

    /// A key may have changed. Was anything known of it?
    pub fn drop_key(&mut self, key: &[u8]) -> bool {
        let found = self.by_key.get(key).copied();
        found.inspect(|id| self.outdate(*id)).is_some()
    }

    /// Any key of a slot may have changed.
    pub fn drop_slot(&mut self, slot: u16) {
        for id in self.by_slot.get(&slot).cloned().unwrap_or_default() {
            self.outdate(id);
        }
    }

    /// Keeps the slots that are said to be right, each with the server that all of it came from; how
    /// many entries were dropped.
    pub fn retain(&mut self, is_right: impl Fn(u16, u16) -> bool) -> usize {
        let server = |ids: &[Id<Entry>]| ids.first().and_then(|id| self.entries.get(*id));
        let wrong = self
            .by_slot
            .iter()
            .filter(|(slot, ids)| server(ids).is_some_and(|entry| !is_right(**slot, entry.server)));
        let wrong: Vec<Id<Entry>> = wrong.flat_map(|(_, ids)| ids).copied().collect();
        for id in &wrong {
            self.remove(*id);
        }
        wrong.len()
    }

    /// Drops an entry whose key changed: if that was too soon, it has to be read more often before it is
    /// asked for again.
    fn outdate(&mut self, id: Id<Entry>) {
        let Some(entry) = self.remove(id) else { return };
        let paid = entry.hits >= 2 * u32::from(entry.price);
        let price = if paid { PRICE_MIN } else { (2 * entry.price).min(PRICE_MAX) };
        self.doors.put(hash(&entry.key), price, price);
    }

    fn remove(&mut self, id: Id<Entry>) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.by_key.remove(&entry.key);
        if let Some(of_slot) = self.by_slot.get_mut(&entry.slot) {
            of_slot.swap_remove(entry.place);
            if let Some(moved) = of_slot.get(entry.place) {
                if let Some(moved) = self.entries.get_mut(*moved) {
                    moved.place = entry.place;
                }
            } else if of_slot.is_empty() {
                self.by_slot.remove(&entry.slot);
            }
        }
        self.count(self.bytes - entry.bytes());
        Some(entry)
    }

    fn make_room(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(id) = self.clock.pop_front()
        {
            match self.entries.get_mut(id) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    self.clock.push_back(id);
                }
                Some(_) => drop(self.remove(id)),
                None => {}
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        self.bytes = bytes;
        self.counters.near_bytes.set(bytes as u64);
    }
}

impl Entry {
    fn bytes(&self) -> usize {
        let value = match &self.state {
            State::Held { value, .. } => value.len(),
            State::Asked { .. } | State::Shunned { .. } => 0,
        };
        ENTRY_BYTES + self.key.len() + value
    }
}

/// So many reads are wanted of a key that nothing is known of.
const PRICE_MIN: u16 = 2;
/// Of one that changes all the time.
const PRICE_MAX: u16 = 256;
const DOORS: usize = 1024;
const PER_DOOR: usize = 4;

/// Keys that were read of late, and how often they still have to be. Some thousands, by their hashes; a key
/// at a door sends away who came there longest ago.
struct Doors(Box<[[Visitor; PER_DOOR]]>);

#[derive(Clone, Copy, Default)]
struct Visitor {
    hash: u64,
    /// Reads that are wanted still; 0: nobody.
    left: u16,
    price: u16,
}

impl Default for Doors {
    fn default() -> Self {
        Self(vec![[Visitor::default(); PER_DOOR]; DOORS].into())
    }
}

impl Doors {
    fn at(&mut self, hash: u64) -> &mut [Visitor] {
        let door = self.0.get_mut(hash as usize % DOORS);
        door.map(|door| &mut door[..]).unwrap_or_default()
    }

    /// A key is read: is it to be asked for? Then it is here no more, and this was its price.
    fn knock(&mut self, hash: u64) -> Option<u16> {
        let door = self.at(hash);
        let known = door.iter_mut().find(|visitor| visitor.hash == hash && visitor.left > 0);
        let Some(visitor) = known else {
            self.put(hash, PRICE_MIN - 1, PRICE_MIN);
            return None;
        };
        visitor.left -= 1;
        (visitor.left == 0).then_some(visitor.price)
    }

    /// A key is to be asked for after so many reads more.
    fn put(&mut self, hash: u64, left: u16, price: u16) {
        let door = self.at(hash);
        let free = door.iter().position(|visitor| visitor.hash == hash || visitor.left == 0);
        let upto = free.map_or(door.len(), |free| free + 1);
        if let Some(shifted) = door.get_mut(..upto)
            && let Some(last) = shifted.last_mut()
        {
            *last = Visitor { hash, left, price };
            shifted.rotate_right(1);
        }
    }
}

/// Tells values from one another, but for one pair in 2⁶⁴: FNV-1a.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    pub fn of(bytes: &[u8]) -> Self {
        Self(0xcbf2_9ce4_8422_2325).with(bytes)
    }

    /// Of what it is of, and this behind it.
    pub fn with(self, bytes: &[u8]) -> Self {
        let fold = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        Self(bytes.iter().fold(self.0, fold))
    }
}

/// Its low bits choose a door.
fn hash(key: &[u8]) -> u64 {
    let Sum(sum) = Sum::of(key);
    sum ^ (sum >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &[u8] = b"$1\r\nv\r\n";

    fn cache(bytes_max: usize) -> Cache {
        Cache::new(bytes_max, Arc::default())
    }

    /// Reads a key until it is to be asked for; how often.
    fn asked(cache: &mut Cache, key: &[u8], now: Micros) -> (usize, Id<Entry>) {
        for reads in 1..1000 {
            if let Found::Wanted { price } = cache.read(key, now, || true) {
                return (reads, cache.begin(key, slot(key), 0, price));
            }
        }
        panic!("never asked for");
    }

    fn slot(key: &[u8]) -> u16 {
        u16::from(key[0])
    }

    fn hold(cache: &mut Cache, key: &[u8], value: &[u8], until: Micros) {
        let (_, id) = asked(cache, key, 0);
        cache.fill(id, value, until);
    }

    fn is_held(cache: &mut Cache, key: &[u8], now: Micros) -> bool {
        matches!(cache.read(key, now, || true), Found::Value(_))
    }

    #[test]
    fn held_until_its_time_is_over() {
        let mut cache = cache(10_000);
        let (reads, id) = asked(&mut cache, b"a", 0);
        assert_eq!((reads, cache.has_slot(slot(b"a"))), (2, true));
        assert_eq!(cache.read(b"a", 0, || true), Found::Unknown);
        cache.fill(id, VALUE, 10);
        assert_eq!(cache.read(b"a", 9, || true), Found::Value(VALUE));
        assert_eq!(cache.read(b"a", 9, || false), Found::Unknown);
        assert_eq!(cache.read(b"a", 10, || true), Found::Wanted { price: 2 });
        assert!(cache.is_empty() && !cache.has_slot(slot(b"a")) && cache.bytes == 0);
    }

    #[test]
    fn dropped_by_key_slot_and_server() {
        let check = |change: &dyn Fn(&mut Cache), left: &[&[u8]]| {
            let mut cache = cache(10_000);
            for key in [&b"a1"[..], b"a2", b"a3", b"b1"] {
                hold(&mut cache, key, VALUE, 10);
            }
            change(&mut cache);
            for key in [&b"a1"[..], b"a2", b"a3", b"b1"] {
                assert_eq!(is_held(&mut cache, key, 0), left.contains(&key), "{key:?}");
            }
        };
        check(&|cache| assert!(!cache.drop_key(b"c")), &[b"a1", b"a2", b"a3", b"b1"]);
        check(&|cache| assert!(cache.drop_key(b"a1")), &[b"a2", b"a3", b"b1"]);
        check(&|cache| assert!(cache.drop_key(b"a1") && cache.drop_key(b"a3")), &[b"a2", b"b1"]);
        check(&|cache| cache.drop_slot(slot(b"a")), &[b"b1"]);
        check(
            &|cache| assert_eq!(cache.retain(|slot, _| slot == u16::from(b'a')), 1),
            &[b"a1", b"a2", b"a3"],
        );
        check(&|cache| assert_eq!(cache.retain(|_, server| server != 0), 4), &[]);
    }

    #[test]
    fn what_was_dropped_on_its_way_is_not_held() {
        let mut cache = cache(10_000);
        let (_, id) = asked(&mut cache, b"a", 0);
        assert!(cache.drop_key(b"a"));
        cache.fill(id, VALUE, 10);
        assert!(cache.is_empty());
    }

    #[test]
    fn what_clients_were_told_is_never_newer() {
        let check = |before: &[&[u8]], after: &[&[u8]], held: bool| {
            let mut cache = cache(10_000);
            let (_, id) = asked(&mut cache, b"a", 0);
            for value in before {
                cache.saw(b"a", Sum::of(value));
            }
            cache.fill(id, VALUE, 10);
            for value in after {
                cache.saw(b"a", Sum::of(value));
            }
            assert_eq!(is_held(&mut cache, b"a", 0), held, "{before:?} {after:?}");
        };
        check(&[VALUE], &[VALUE], true);
        check(&[b"$1\r\nw\r\n"], &[], false);
        check(&[b"$1\r\nw\r\n", VALUE], &[], false);
        check(&[], &[b""], false);
        assert_eq!(Sum::of(b"ab").with(b"c"), Sum::of(b"abc"));
    }

    #[test]
    fn what_changes_too_soon_is_asked_for_less() {
        let mut cache = cache(10_000);
        let mut reads = Vec::new();
        for _ in 0..9 {
            let (count, id) = asked(&mut cache, b"a", 0);
            reads.push(count);
            cache.fill(id, VALUE, 10);
            cache.drop_key(b"a");
        }
        assert_eq!(reads, [2, 4, 8, 16, 32, 64, 128, 256, 256]);
        let (_, id) = asked(&mut cache, b"a", 0);
        cache.fill(id, VALUE, 10);
        (0..512).for_each(|_| assert!(is_held(&mut cache, b"a", 0)));
        cache.drop_key(b"a");
        assert_eq!(asked(&mut cache, b"a", 0).0, 2);
    }

    #[test]
    fn never_more_than_there_is_room_for() {
        let mut cache = cache(100_000);
        hold(&mut cache, b"hot", VALUE, 10);
        for number in 0..2_000_u32 {
            let key = number.to_string().into_bytes();
            hold(&mut cache, &key, &vec![b'.'; number as usize % 3_000], 10);
            assert!(is_held(&mut cache, b"hot", 0), "{number}");
            assert!(cache.bytes <= 100_000 && cache.clock.len() < 2_000);
            let sum: usize = cache.entries.iter().map(|(_, entry)| entry.bytes()).sum();
            assert_eq!((sum as u64, sum), (cache.counters.near_bytes.get(), cache.bytes));
        }
        assert!(!is_held(&mut cache, b"0", 0));
        // Too large by itself.
        hold(&mut cache, b"large", &vec![b'.'; 100_000 / VALUE_SHARE + 1], 10);
        assert!(!is_held(&mut cache, b"large", 0));
        assert_eq!(cache.read(b"large", 0, || true), Found::Unknown);
        assert!(matches!(cache.read(b"large", 10, || true), Found::Wanted { .. }));
        assert_eq!(self::cache(1 << 30).value_bytes_max(), 1 << 20);
    }

    #[test]
    fn who_comes_again_is_known_among_many_who_come_once() {
        let mut doors = Doors::default();
        let mut wanted = [0; 2];
        for number in 0..100_000_u32 {
            let hot = number.is_multiple_of(50);
            let key = if hot { format!("hot{}", number / 50 % 10) } else { format!("{number}") };
            if doors.knock(hash(key.as_bytes())).is_some() {
                wanted[usize::from(hot)] += 1;
            }
        }
        assert_eq!(wanted, [0, 1_000]);
    }
}
