//! The heaviest prefixes of names, in bounded memory.
//!
//! Where there are too many, the lighter half is forgotten (lossy counting). What a prefix had when it was
//! forgotten is missing later; the heaviest that was ever forgotten bounds the error of one that
//! comes back, times how often that happened.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{DEPTH, NAME_MAX, Prefix, Sum, shown};

/// Prefixes that are kept at one time.
const KEPT_MAX: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// Looked up a few times for each key, which the standard library's hash would make felt.
    sums: HashMap<Box<[u8]>, Sum, RandomState>,
    error_bytes: u64,
}

impl Prefixes {
    pub fn add(&mut self, name: &[u8], sum: Sum) {
        let start = name.get(..NAME_MAX).unwrap_or(name);
        let ends = start.iter().enumerate().filter(|(_, byte)| separates(**byte));
        let mut found = false;
        for (end, _) in ends.take(DEPTH) {
            found = true;
            self.put(start.get(..=end).unwrap_or_default(), sum);
        }
        if !found {
            self.put(b"", sum);
        }
    }

    fn put(&mut self, prefix: &[u8], sum: Sum) {
        if let Some(found) = self.sums.get_mut(prefix) {
            found.add(sum);
            return;
        }
        if self.sums.len() >= KEPT_MAX {
            self.forget();
        }
        self.sums.insert(prefix.into(), sum);
    }

    /// Forgets the lighter half.
    fn forget(&mut self) {
        let mut weights: Vec<u64> = self.sums.values().map(|sum| sum.memory_bytes).collect();
        let middle = weights.len() / 2;
        let (_, middle, _) = weights.select_nth_unstable(middle);
        let middle = *middle;
        self.sums.retain(|_, sum| sum.memory_bytes > middle);
        self.error_bytes += middle;
    }

    /// So many, heaviest first, and by how much each may be too low.
    pub fn heaviest(self, count: usize) -> (Vec<Prefix>, u64) {
        let mut all: Vec<_> = self.sums.into_iter().collect();
        all.sort_by(|(one, one_sum), (two, two_sum)| {
            two_sum.memory_bytes.cmp(&one_sum.memory_bytes).then_with(|| one.cmp(two))
        });
        all.truncate(count);
        let told = all.into_iter().map(|(prefix, sum)| Prefix { prefix: shown(&prefix), sum });
        (told.collect(), self.error_bytes)
    }
}

/// Does it stand between the parts of names?
fn separates(byte: u8) -> bool {
    matches!(byte, b':' | b'/' | b'.' | b'|')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(memory_bytes: u64) -> Sum {
        Sum { keys: 1, memory_bytes, ..Sum::default() }
    }

    #[test]
    fn names_count_for_each_of_their_prefixes() {
        let mut prefixes = Prefixes::default();
        for (name, bytes) in [("a:b:1", 10), ("a:c:1", 20), ("d", 5), ("a:b:c:d:e", 1)] {
            prefixes.add(name.as_bytes(), weight(bytes));
        }
        let (found, error) = prefixes.heaviest(4);
        let found: Vec<_> =
            found.iter().map(|each| (each.prefix.as_str(), each.sum.memory_bytes)).collect();
        assert_eq!(found, [("a:", 31), ("a:c:", 20), ("a:b:", 11), ("", 5)]);
        assert_eq!(error, 0);
    }

    #[test]
    fn the_heaviest_survive_too_many() {
        let mut prefixes = Prefixes::default();
        for number in 0..3 * KEPT_MAX {
            prefixes.add(b"heavy:1", weight(100));
            prefixes.add(format!("{number}:1").as_bytes(), weight(1));
        }
        assert!(prefixes.sums.len() <= KEPT_MAX);
        let (found, error) = prefixes.heaviest(1);
        assert_eq!((found[0].prefix.as_str(), found[0].sum.keys), ("heavy:", 300_000));
        assert!(error > 0);
    }
}
