//! A value in a few bytes, to compare values that are too large to be held twice.

use super::{Checksum, items::Item};

/// Values that clients see as the same have the same digest: orders of sets and hashes and
/// packings don't matter. Not against those who want to deceive: it is 64 bits of CRC and a count.
///
/// ```
/// use protocol::rdb::{Digest, Encoding, Items};
///
/// let digest = |encoding, raw: &[u8]| {
///     let mut digest = Digest::new();
///     for item in Items::new(encoding, raw) {
///         digest.item(&item?);
///     }
///     Ok::<_, protocol::rdb::Fault>(digest)
/// };
/// let one = digest(Encoding::Set, b"\x02\x017\x018")?;
/// let two = digest(Encoding::SetIntset, b"\x0c\x02\0\0\0\x02\0\0\0\x07\0\x08\0")?;
/// assert_eq!(one, two);
/// # Ok::<(), protocol::rdb::Fault>(())
/// ```
#[derive(Debug, Clone)]
pub struct Digest {
    sum: u64,
    items: u64,
    /// Of a string, which may come in parts.
    text: Checksum,
}

impl Digest {
    pub fn new() -> Self {
        Self { sum: 0, items: 0, text: Checksum::new() }
    }

    /// The next bytes of a string that comes in parts ([`Part::Text`](super::Part)).
    pub fn text(&mut self, bytes: &[u8]) {
        self.text.add(bytes);
        self.items += bytes.len() as u64;
    }

    /// The next item. What not all formats have is left out: a stream's counters, when consumers
    /// were seen, ids of producers.
    pub fn item(&mut self, item: &Item<'_>) {
        let number = u64::to_le_bytes;
        match item {
            Item::Text(text) => self.text(text),
            Item::Element(element) => self.ordered(&[element]),
            Item::Member(member) => self.unordered(&[member]),
            Item::Scored { member, score } => {
                // Adding 0 makes -0 into 0, which packings don't tell apart.
                self.unordered(&[member, &(score + 0.0).to_le_bytes()]);
            }
            Item::Field { name, value, expire_at_ms } => {
                self.unordered(&[name, value, &number(expire_at_ms.unwrap_or_default())]);
            }
            Item::StreamEntry { id, fields } => {
                self.ordered(&[&number(id.ms), &number(id.seq)]);
                for (name, value) in fields {
                    self.ordered(&[name, value]);
                }
            }
            Item::StreamHead(head) => {
                self.ordered(&[&number(head.last_id.ms), &number(head.last_id.seq)]);
            }
            Item::Group { name, last_id, .. } => {
                self.ordered(&[name, &number(last_id.ms), &number(last_id.seq)]);
            }
            Item::Pending { id, delivered_at_ms, deliveries } => self.ordered(&[
                &number(id.ms),
                &number(id.seq),
                &number(*delivered_at_ms),
                &number(*deliveries),
            ]),
            Item::Consumer { name, .. } => self.ordered(&[name]),
            Item::Owned(id) | Item::Unowned(id) => {
                self.ordered(&[&number(id.ms), &number(id.seq)]);
            }
            Item::ArrayCursor(cursor) => {
                self.ordered(&[&number(cursor.map_or(0, |at| at.wrapping_add(1)))]);
            }
            Item::Indexed { index, value } => self.ordered(&[&number(*index), value]),
            Item::ModuleType(id) => self.ordered(&[&number(*id)]),
            Item::Idempotence { .. } | Item::Producer(_) | Item::ProducerId { .. } => {}
        }
    }

    fn unordered(&mut self, parts: &[&[u8]]) {
        self.sum = self.sum.wrapping_add(hash(parts));
        self.items += 1;
    }

    fn ordered(&mut self, parts: &[&[u8]]) {
        self.sum = mix(self.sum ^ hash(parts));
        self.items += 1;
    }

    /// The digest of what was added so far.
    pub fn value(&self) -> (u64, u64) {
        (self.sum ^ self.text.value(), self.items)
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl Eq for Digest {}

fn hash(parts: &[&[u8]]) -> u64 {
    parts
        .iter()
        .fold(0, |hash, part| mix(hash ^ Checksum::of(part).wrapping_add(part.len() as u64)))
}

/// Lets every bit change every other. Without it sums of checksums are the same too easily.
/// Source: the last step of MurmurHash3 by Austin Appleby, public domain.
const fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}
