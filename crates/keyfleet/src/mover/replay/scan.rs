//! A first look through a shard's commands, before anything is done: are they whole, and what of them
//! doesn't count?

use std::collections::BTreeMap;

use protocol::{Slot, SlotSet, commands};

use super::expiry::{Whose, sets_end};
use crate::{
    backup::{
        point::{PointError, PointInTime, Shard},
        storage::Storage,
    },
    mover::kind::{Kind, kind},
};

/// What a look through a shard's commands has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    pub commands: u64,
    /// Some of them set when keys end.
    pub ends: bool,
    /// Some of them set when fields of hashes end.
    pub field_ends: bool,
    /// Where everything was deleted last.
    all: Option<u64>,
    /// Where slots were emptied last.
    slots: BTreeMap<u16, u64>,
    /// The database that commands are for.
    db: u64,
}

/// Reads all of a shard's commands.
pub async fn scan(
    storage: &Storage,
    point: &PointInTime,
    shard: &Shard,
) -> Result<Scan, PointError> {
    let mut source = point.commands(storage, shard);
    let mut found = Scan::default();
    while source.next(|offset, words| found.see(offset, words)).await? {}
    Ok(found)
}

impl Scan {
    fn see(&mut self, offset: u64, words: &[&[u8]]) {
        self.commands += 1;
        match sets_end(words) {
            Some(Whose::Keys) => self.ends = true,
            Some(Whose::Fields) => self.field_ends = true,
            None => {}
        }
        match commands::resolve(words).map(|command| command.name) {
            Some("select") => {
                if let Kind::Select(db) = kind(words) {
                    self.db = db;
                }
            }
            Some("flushall") => self.all = Some(offset),
            Some("flushdb") if self.db == 0 => self.all = Some(offset),
            Some("cluster|flushslot") => {
                let slot = words.get(2).and_then(|word| std::str::from_utf8(word).ok());
                self.slots.extend(slot.and_then(|slot| Some((slot.parse().ok()?, offset))));
            }
            _ => {}
        }
    }

    /// Was what a command at this offset did deleted with all else?
    pub fn is_void(&self, slot: Slot, offset: u64) -> bool {
        self.all.is_some_and(|all| offset < all)
            || self.slots.get(&slot.number()).is_some_and(|emptied| offset < *emptied)
    }

    /// Those of the slots whose keys in the backup count.
    pub fn standing(&self, slots: &SlotSet) -> SlotSet {
        if self.all.is_some() {
            return SlotSet::new();
        }
        let emptied = SlotSet::from_ranges(self.slots.keys().map(|slot| (*slot, *slot)));
        slots.difference(&emptied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_count() {
        let mut scan = Scan::default();
        let commands = ["set a 1", "cluster flushslot 5", "set k v px 5", "flushall", "set b 1"];
        for (offset, command) in commands.iter().enumerate() {
            let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let before = scan.clone();
            scan.see(offset as u64 * 10, &words);
            if offset == 1 {
                assert!(!before.is_void(Slot::new(5).unwrap(), 0));
                assert!(scan.is_void(Slot::new(5).unwrap(), 9));
                assert!(!scan.is_void(Slot::new(6).unwrap(), 9));
                assert_eq!(scan.standing(&SlotSet::range(4, 6)).len(), 2);
                assert!(!scan.ends);
            }
        }
        assert!(scan.ends && scan.is_void(Slot::new(6).unwrap(), 29));
        assert!(!scan.is_void(Slot::new(6).unwrap(), 40));
        assert!(scan.standing(&SlotSet::full()).is_empty());
    }
}
