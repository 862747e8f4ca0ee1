//! Names to positions: a small open-addressed table of names folded into three words.
//!
//! On the way of every request of a proxy, so: no allocation, no loop over bytes, and as a rule
//! one cache line.

/// Names longer than this are not in the table; no engine's is.
const LONGEST: usize = 24;
/// A power of two, and several times the number of names, so that few share a place.
const PLACES: usize = 1024;

/// A name in lower case: its first eight bytes, its last eight, those between, and its length.
/// Two names with the same words are the same name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Folded {
    first: u64,
    last: u64,
    middle: u64,
    length: u64,
}

impl Folded {
    #[inline]
    fn new(name: &[u8]) -> Option<Self> {
        let length = name.len();
        let (first, last, middle) = match length {
            1..8 => (short(name)?, 0, 0),
            8..=16 => (
                u64::from_le_bytes(*name.first_chunk()?),
                u64::from_le_bytes(*name.last_chunk()?),
                0,
            ),
            17..=LONGEST => {
                let middle = u64::from_le_bytes(*name.get(8..16)?.first_chunk()?);
                (
                    u64::from_le_bytes(*name.first_chunk()?),
                    u64::from_le_bytes(*name.last_chunk()?),
                    middle,
                )
            }
            _ => return None,
        };
        let [first, last, middle] = [lower(first), lower(last), lower(middle)];
        Some(Self { first, last, middle, length: length as u64 })
    }

    #[inline]
    fn place(self) -> usize {
        let mixed = self.first ^ self.last.rotate_left(23) ^ self.middle.rotate_left(41);
        let mixed = (mixed ^ self.length).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 48) as usize % PLACES
    }
}

/// Up to seven bytes, in two overlapping reads.
#[inline]
fn short(name: &[u8]) -> Option<u64> {
    if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        let shift = 8 * (name.len() - 4);
        return Some(
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << shift,
        );
    }
    let [first, last] = [u64::from(*name.first()?), u64::from(*name.last()?)];
    let middle = u64::from(*name.get(name.len() / 2)?);
    Some(first | middle << (8 * (name.len() / 2)) | last << (8 * (name.len() - 1)))
}

/// ASCII letters of eight bytes at once to lower case; other bytes stay.
#[inline]
const fn lower(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * EACH);
    // The high bit of each byte: at least 'A', beyond 'Z', ASCII.
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let beyond_z = low + (0x7f - b'Z' as u64) * EACH;
    let upper = (from_a ^ beyond_z) & !word & (0x80 * EACH);
    word | upper >> 2
}

/// Where each name stands in the list it was made from.
pub struct Names {
    places: Box<[(Folded, u16)]>,
}

impl Names {
    /// Of lower-case names, each at most [`LONGEST`] bytes and once.
    pub fn new(names: impl Iterator<Item = &'static str>) -> Self {
        let mut places = vec![(Folded::default(), 0); PLACES].into_boxed_slice();
        for (index, name) in names.enumerate() {
            let Some(folded) = Folded::new(name.as_bytes()) else { continue };
            let mut place = folded.place();
            // Half empty at least, or finding what is not there takes long.
            while index < PLACES / 2
                && let Some(taken) = places.get_mut(place)
            {
                if taken.0.length == 0 {
                    *taken = (folded, index as u16);
                    break;
                }
                place = (place + 1) % PLACES;
            }
        }
        Self { places }
    }

    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        let folded = Folded::new(name)?;
        let mut place = folded.place();
        loop {
            let (taken, index) = self.places.get(place)?;
            if *taken == folded {
                return Some(usize::from(*index));
            }
            if taken.length == 0 {
                return None;
            }
            place = (place + 1) % PLACES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding() {
        let check = |word: &[u8; 8], expected: &[u8; 8]| {
            assert_eq!(lower(u64::from_le_bytes(*word)).to_le_bytes(), *expected);
        };
        check(b"GET@[`{Z", b"get@[`{z");
        check(b"aA0_-|:z", b"aa0_-|:z");
        check(b"\xc1\xda\x41\x5a\x00\x7f\xff\x80", b"\xc1\xda\x61\x7a\x00\x7f\xff\x80");
    }

    #[test]
    fn every_length_keeps_every_byte() {
        let name: Vec<u8> = (b'a'..=b'x').collect();
        for length in 1..=LONGEST {
            let whole = Folded::new(&name[..length]).unwrap();
            for changed in 0..length {
                let mut other = name[..length].to_vec();
                other[changed] ^= 0x10;
                assert_ne!(Folded::new(&other).unwrap(), whole, "{length} {changed}");
                assert_ne!(Folded::new(&name[..length - 1]), Some(whole));
            }
        }
        assert_eq!(Folded::new(b""), None);
        assert_eq!(Folded::new(&[b'a'; LONGEST + 1]), None);
    }
}
