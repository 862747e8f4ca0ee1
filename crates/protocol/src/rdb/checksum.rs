//! CRC-64 in the variant that RDB files and DUMP payloads carry (Jones' polynomial, reflected).

use crc_fast::{CrcAlgorithm, Digest};

/// The checksum of bytes that come in pieces.
///
/// Source: `crc64.c` of the engines; of `123456789` it is `e9c6d914c4b8d9ca`.
#[derive(Clone, Debug)]
pub struct Checksum(Digest);

impl Checksum {
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64Redis))
    }

    /// Of bytes that are all there: costs less for a few.
    pub fn of(bytes: &[u8]) -> u64 {
        crc_fast::checksum(CrcAlgorithm::Crc64Redis, bytes)
    }

    /// Adds bytes. A few large pieces cost much less than many small ones.
    pub fn add(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.0.update(bytes);
        }
    }

    /// The checksum of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_engines_compute_it() {
        let check = |pieces: &[&[u8]], expected: u64| {
            let mut checksum = Checksum::new();
            for piece in pieces {
                checksum.add(piece);
            }
            assert_eq!(checksum.value(), expected, "{pieces:?}");
            assert_eq!(Checksum::of(&pieces.concat()), expected, "{pieces:?}");
        };
        check(&[], 0);
        check(&[b"123456789"], 0xe9c6_d914_c4b8_d9ca);
        check(&[b"1234", b"", b"56789"], 0xe9c6_d914_c4b8_d9ca);
        // Long enough for the wide path of the library, against the definition bit by bit.
        let long: Vec<u8> = (0..100_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
        check(&[&long], bit_by_bit(&long));
        check(&[&long[..1], &long[1..70_001], &long[70_001..]], bit_by_bit(&long));
    }

    fn bit_by_bit(bytes: &[u8]) -> u64 {
        const REFLECTED: u64 = 0xad93_d235_94c9_35a9_u64.reverse_bits();
        bytes.iter().fold(0, |mut crc, byte| {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ if crc & 1 == 1 { REFLECTED } else { 0 };
            }
            crc
        })
    }
}
