//! What came of an import.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{SLOT_COUNT, Slot, rdb::DataType};
use serde::{Deserialize, Serialize};

/// How many troubles are kept with their keys.
const TROUBLES_MAX: usize = 1_000;

/// The longest key that is shown whole; bytes.
const KEY_SHOWN_MAX: usize = 200;

/// What was read so far, and what came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Keys that were sent, by the name of their type.
    pub types: BTreeMap<String, Count>,
    /// How many of them are in each slot, from the first; empty where there are none.
    pub slots: Vec<u32>,
    /// Keys that were not asked for.
    pub filtered: u64,
    /// Keys whose time was over.
    pub expired: u64,
    /// Libraries of functions.
    pub functions: u64,
    /// Commands of append-only files.
    pub commands: u64,
    /// Hashes of which fields' ends were put off.
    #[serde(default, skip_serializing_if = "is_none")]
    pub field_ends: u64,
    pub troubles: Troubles,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Keys and their bytes in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub keys: u64,
    pub bytes: u64,
    /// Keys whose values were brought into a form that the target takes.
    pub repacked: u64,
    /// Keys whose values are made by commands: large ones, and where no form would do.
    pub by_commands: u64,
}

/// How a value is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As the file holds it.
    Raw,
    /// In another form.
    Repacked,
    Commands,
}

/// What could not be carried as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Troubles {
    pub total: u64,
    /// The first thousand.
    pub first: Vec<Trouble>,
}

/// One key, or what belongs to it, that did not get to the target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Trouble {
    /// Its bytes escaped where they are no ASCII; a long one's beginning. Empty where no single key
    /// is concerned.
    pub key: String,
    pub why: String,
}

/// What came of an import.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Nothing was sent: only what would have been.
    pub dry_run: bool,
    pub read: Tally,
    /// Keys that the target holds now because of this.
    pub loaded: u64,
    /// Keys that were there already and were left as they were.
    pub existing: u64,
    /// Of those: keys that have the same value and end.
    pub existing_same: u64,
    /// Share of the input where an earlier run had stopped, in per mille.
    pub resumed_at: Option<u64>,
    /// How many servers loaded a file at their start; 0 where all was sent to running ones.
    pub boot_files: u64,
    pub verified: Option<Verified>,
    /// The commands that followed.
    pub replayed: Option<Replayed>,
    pub took_ms: u64,
}

/// Commands that were done again after a backup was loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// In this run.
    pub commands: u64,
    /// The moment that the target is as of, milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// What the target said when it was asked for every key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    pub same: u64,
    pub different: u64,
    /// Keys that are the same, by the name of their type.
    pub types: BTreeMap<&'static str, u64>,
    /// Slots with keys that are different.
    pub slots_different: BTreeSet<u16>,
}

impl Tally {
    /// Counts a key that was sent, of a type and in a slot.
    pub fn count(&mut self, data_type: DataType, slot: Slot, bytes: u64, way: Way) {
        let name = data_type.name();
        // For each key; the name is made only once.
        let count = match self.types.get_mut(name) {
            Some(count) => count,
            None => self.types.entry(name.to_owned()).or_default(),
        };
        count.keys += 1;
        count.bytes += bytes;
        count.repacked += u64::from(way == Way::Repacked);
        count.by_commands += u64::from(way == Way::Commands);
        self.slots.resize(usize::from(SLOT_COUNT), 0);
        if let Some(slot) = self.slots.get_mut(usize::from(slot.number())) {
            *slot += 1;
        }
    }

    /// Keys that were sent.
    pub fn sent(&self) -> u64 {
        self.types.values().map(|count| count.keys).sum()
    }
}

impl Troubles {
    pub fn add(&mut self, key: &[u8], why: impl Into<String>) {
        let (shown, cut) = match key.get(..KEY_SHOWN_MAX) {
            Some(start) => (start, "…"),
            None => (key, ""),
        };
        let trouble = Trouble { key: format!("{}{cut}", shown.escape_ascii()), why: why.into() };
        self.push(trouble);
    }

    fn push(&mut self, trouble: Trouble) {
        // After a restart the same key may come again.
        if self.first.contains(&trouble) {
            return;
        }
        self.total += 1;
        if self.first.len() < TROUBLES_MAX {
            self.first.push(trouble);
        }
    }

    /// Adds those of another part of the work.
    pub fn join(&mut self, other: Self) {
        self.total += other.total - other.first.len() as u64;
        for trouble in other.first {
            self.push(trouble);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_named_once_and_bounded() {
        let mut troubles = Troubles::default();
        troubles.add(b"a\xff", "no");
        troubles.add(b"a\xff", "no");
        assert_eq!(troubles.total, 1);
        assert_eq!(troubles.first[0].key, "a\\xff");
        for number in 0..2_000 {
            troubles.add(format!("{number}").as_bytes(), "no");
        }
        assert_eq!((troubles.total, troubles.first.len()), (2_001, TROUBLES_MAX));
    }
}
