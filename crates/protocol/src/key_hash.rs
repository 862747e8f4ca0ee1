//! Which slot a key belongs to; in `twemproxy`, which server of a ring.

pub mod twemproxy;

use crate::Slot;

/// How many bytes [`crc16`] takes at once.
const STRIDE: usize = 4;

/// CRC16/XMODEM (polynomial 0x1021, not reflected, starting at 0) of each single byte with so many zero
/// bytes after it as the row says.
static TABLES: [[u16; 256]; STRIDE] = tables();

#[expect(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn tables() -> [[u16; 256]; STRIDE] {
    let mut tables = [[0; 256]; STRIDE];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut zeros = 0;
        while zeros < STRIDE {
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
                bit += 1;
            }
            tables[zeros][byte] = crc;
            zeros += 1;
        }
        byte += 1;
    }
    tables
}

/// CRC16 in the variant that the cluster specification names (XMODEM).
pub fn crc16(bytes: &[u8]) -> u16 {
    let [_, second, third, fourth] = &TABLES;
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    let crc = strides.iter().fold(0_u16, |crc, [a, b, c, d]| {
        let [high, low] = crc.to_be_bytes();
        entry(fourth, a ^ high) ^ entry(third, b ^ low) ^ entry(second, *c) ^ crc16_step(*d)
    });
    rest.iter().fold(crc, |crc, byte| (crc << 8) ^ crc16_step((crc >> 8) as u8 ^ byte))
}

fn crc16_step(index: u8) -> u16 {
    let [first, ..] = &TABLES;
    entry(first, index)
}

fn entry(table: &[u16; 256], byte: u8) -> u16 {
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

/// The part of a key that decides its slot: what stands between the first `{` and the first `}`
/// after it, unless that is nothing; the whole key otherwise.
/// Source: the cluster specification, hash tags.
pub fn hash_tag(key: &[u8]) -> &[u8] {
    let after = |text: &[u8], byte: u8| text.iter().position(|each| *each == byte);
    let tag = after(key, b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        rest.get(..after(rest, b'}')?)
    });
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

/// The slot of a key.
pub fn key_slot(key: &[u8]) -> Slot {
    Slot::wrapping(crc16(hash_tag(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
        let bit_by_bit = |bytes: &[u8]| {
            let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
            bits.fold(0_u16, |crc, bit| {
                let out = (crc >> 15) ^ u16::from(bit);
                (crc << 1) ^ if out == 1 { 0x1021 } else { 0 }
            })
        };
        for length in 0..20 {
            let bytes: Vec<u8> = (0..length).map(|at: u8| at.wrapping_mul(37) + length).collect();
            assert_eq!(crc16(&bytes), bit_by_bit(&bytes), "{bytes:?}");
        }
    }

    #[test]
    fn slots() {
        let check = |key: &str, expected: u16| {
            assert_eq!(key_slot(key.as_bytes()).number(), expected, "{key}");
        };
        // What CLUSTER KEYSLOT answers.
        check("", 0);
        check("foo", 12182);
        check("bar", 5061);
        check("123456789", 12739);
        check("{foo}bar", 12182);
        check("x{foo}{bar}", 12182);
        check("{user1000}.following", 3443);
    }

    #[test]
    fn tags() {
        let check = |key: &str, expected: &str| {
            assert_eq!(hash_tag(key.as_bytes()), expected.as_bytes(), "{key}");
        };
        check("plain", "plain");
        check("foo{}{bar}", "foo{}{bar}");
        check("foo{{bar}}zap", "{bar");
        check("foo{bar", "foo{bar");
        check("foo}bar{baz}", "baz");
        check("{", "{");
    }
}
