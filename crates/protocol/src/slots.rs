//! Hash slots and sets of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// How many hash slots a cluster has.
pub const SLOT_COUNT: u16 = 16_384;

/// A hash slot, 0 to 16,383.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Slot(u16);

impl Slot {
    /// None from 16,384 on.
    pub const fn new(number: u16) -> Option<Self> {
        if number < SLOT_COUNT { Some(Self(number)) } else { None }
    }

    /// The number modulo 16,384: for hashes.
    pub(crate) const fn wrapping(number: u16) -> Self {
        Self(number % SLOT_COUNT)
    }

    /// 0 to 16,383.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of slots as sorted, disjoint, non-adjacent inclusive ranges: small for the shapes that
/// clusters have, and equal sets are equal values.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SlotSet {
    ranges: Vec<(u16, u16)>,
}

/// The text is not a list of slots like `0-5460,5462`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a set of slots: {0:?}")]
pub struct BadSlots(pub String);

impl SlotSet {
    /// No slot.
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Every slot.
    pub fn full() -> Self {
        Self { ranges: vec![(0, SLOT_COUNT - 1)] }
    }

    /// The slots `first..=last`; empty where `first > last`; cut at 16,383.
    pub fn range(first: u16, last: u16) -> Self {
        let last = last.min(SLOT_COUNT - 1);
        Self { ranges: if first > last { Vec::new() } else { vec![(first, last)] } }
    }

    /// The union of inclusive ranges in any order; ends are cut at 16,383, reversed ones left out.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        Self::from_unsorted(
            ranges
                .into_iter()
                .filter(|(first, last)| first <= last && *first < SLOT_COUNT)
                .map(|(first, last)| (first, last.min(SLOT_COUNT - 1)))
                .collect(),
        )
    }

    fn from_unsorted(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self { ranges: merged }
    }

    /// The inclusive ranges, ascending.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many slots.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|(first, last)| usize::from(last - first) + 1).sum()
    }

    pub fn contains(&self, slot: Slot) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= slot.0);
        let before = after.checked_sub(1).and_then(|index| self.ranges.get(index));
        before.is_some_and(|(_, last)| *last >= slot.0)
    }

    /// Every slot, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Slot> + '_ {
        self.ranges.iter().flat_map(|(first, last)| (*first..=*last).map(Slot))
    }

    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::from_unsorted(self.ranges.iter().chain(&other.ranges).copied().collect())
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut ranges = Vec::new();
        let mut cuts = other.ranges.iter().peekable();
        for &(first, last) in &self.ranges {
            let mut next = u32::from(first);
            while cuts.peek().is_some_and(|cut| u32::from(cut.1) < next) {
                cuts.next();
            }
            let mut ahead = cuts.clone();
            while let Some(&&(cut_first, cut_last)) = ahead.peek() {
                if cut_first > last {
                    break;
                }
                if u32::from(cut_first) > next {
                    ranges.push((next as u16, cut_first - 1));
                }
                next = next.max(u32::from(cut_last) + 1);
                ahead.next();
            }
            if next <= u32::from(last) {
                ranges.push((next as u16, last));
            }
        }
        Self { ranges }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.difference(&self.difference(other))
    }

    /// The lowest `count` slots (fewer where there are fewer).
    #[must_use]
    pub fn take_lowest(&self, count: usize) -> Self {
        let mut left = count;
        let mut ranges = Vec::new();
        for &(first, last) in &self.ranges {
            if left == 0 {
                break;
            }
            let here = (usize::from(last - first) + 1).min(left);
            ranges.push((first, first + (here - 1) as u16));
            left -= here;
        }
        Self { ranges }
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<T: IntoIterator<Item = Slot>>(slots: T) -> Self {
        Self::from_unsorted(slots.into_iter().map(|slot| (slot.0, slot.0)).collect())
    }
}

impl From<Slot> for SlotSet {
    fn from(slot: Slot) -> Self {
        Self::range(slot.0, slot.0)
    }
}

impl fmt::Display for SlotSet {
    /// `0-5460,5462`; `none` where empty.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        for (index, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl FromStr for SlotSet {
    type Err = BadSlots;

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::new());
        }
        let bad = || BadSlots(text.chars().take(64).collect());
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u16 = first.trim().parse().map_err(|_| bad())?;
            let last: u16 = last.trim().parse().map_err(|_| bad())?;
            if first > last || last >= SLOT_COUNT {
                return Err(bad());
            }
            ranges.push((first, last));
        }
        Ok(Self::from_unsorted(ranges))
    }
}

impl Serialize for SlotSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(text: &str) -> SlotSet {
        text.parse().unwrap()
    }

    #[test]
    fn text_round_trips() {
        for text in ["none", "0", "0-16383", "0-5460,5462,6000-6001"] {
            assert_eq!(set(text).to_string(), text);
        }
        for bad in ["", "a", "5-3", "16384", "1,,2", "-"] {
            assert!(bad.parse::<SlotSet>().is_err(), "{bad}");
        }
    }

    fn model() -> impl Strategy<Value = BTreeSet<u16>> {
        let near_zero = prop::collection::btree_set(0..40u16, 0..30);
        let near_end = prop::collection::btree_set(16_360..16_384u16, 0..20);
        (near_zero, near_end).prop_map(|(low, high)| low.union(&high).copied().collect())
    }

    fn from_model(model: &BTreeSet<u16>) -> SlotSet {
        model.iter().filter_map(|number| Slot::new(*number)).collect()
    }

    fn numbers(set: &SlotSet) -> BTreeSet<u16> {
        set.iter().map(Slot::number).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_set(a in model(), b in model(), count in 0..40usize) {
            let (left, right) = (from_model(&a), from_model(&b));
            prop_assert_eq!(numbers(&left.union(&right)), &a | &b);
            prop_assert_eq!(numbers(&left.difference(&right)), &a - &b);
            prop_assert_eq!(numbers(&left.intersection(&right)), &a & &b);
            prop_assert_eq!(left.len(), a.len());
            prop_assert_eq!(
                numbers(&left.take_lowest(count)),
                a.iter().copied().take(count).collect::<BTreeSet<_>>()
            );
            for number in (0..45).chain(16_350..SLOT_COUNT) {
                prop_assert_eq!(left.contains(Slot::new(number).unwrap()), a.contains(&number));
            }
        }
    }
}
