//! The twelve hashes. All give 32 bits.
//!
//! twemproxy reads keys as C's `char`, which is signed on x86: in some hashes a byte from 0x80 on
//! counts as a large number with all higher bits set. [`widen`] marks where.

use md5::{Digest as _, Md5};

use crate::key_hash::crc16_step;

/// How a key becomes a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    /// Bob Jenkins' one-at-a-time.
    OneAtATime,
    /// The first four bytes of MD5.
    Md5,
    /// CRC-16/XMODEM whose register is never cut to 16 bits.
    Crc16,
    /// Fifteen bits from the middle of CRC-32, as memcached's clients do.
    Crc32,
    /// CRC-32.
    Crc32a,
    /// The lower half of 64-bit FNV-1.
    Fnv1_64,
    /// FNV-1a with the lower halves of the 64-bit parameters.
    #[default]
    Fnv1a64,
    /// FNV-1.
    Fnv1_32,
    /// FNV-1a.
    Fnv1a32,
    /// Paul Hsieh's SuperFastHash.
    Hsieh,
    /// MurmurHash2.
    Murmur,
    /// Bob Jenkins' lookup3.
    Jenkins,
}

impl Hash {
    pub const ALL: [Self; 12] = [
        Self::OneAtATime,
        Self::Md5,
        Self::Crc16,
        Self::Crc32,
        Self::Crc32a,
        Self::Fnv1_64,
        Self::Fnv1a64,
        Self::Fnv1_32,
        Self::Fnv1a32,
        Self::Hsieh,
        Self::Murmur,
        Self::Jenkins,
    ];

    /// As `hash:` in nutcracker.yml has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneAtATime => "one_at_a_time",
            Self::Md5 => "md5",
            Self::Crc16 => "crc16",
            Self::Crc32 => "crc32",
            Self::Crc32a => "crc32a",
            Self::Fnv1_64 => "fnv1_64",
            Self::Fnv1a64 => "fnv1a_64",
            Self::Fnv1_32 => "fnv1_32",
            Self::Fnv1a32 => "fnv1a_32",
            Self::Hsieh => "hsieh",
            Self::Murmur => "murmur",
            Self::Jenkins => "jenkins",
        }
    }

    /// The hash of that name; none for other names, and names in capital letters.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// The hash of some bytes.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> u32 {
        match self {
            Self::OneAtATime => one_at_a_time(bytes),
            Self::Md5 => {
                let [first, ..] = md5_words(bytes);
                first
            }
            Self::Crc16 => crc16(bytes),
            Self::Crc32 => (crc32(bytes) >> 16) & 0x7fff,
            Self::Crc32a => crc32(bytes),
            Self::Fnv1_64 => fnv1_64(bytes),
            Self::Fnv1a64 => fnv1a(bytes, 0x8422_2325, 0x1b3),
            Self::Fnv1_32 => fnv1_32(bytes),
            Self::Fnv1a32 => fnv1a(bytes, 0x811c_9dc5, 0x0100_0193),
            Self::Hsieh => hsieh(bytes),
            Self::Murmur => murmur(bytes),
            Self::Jenkins => jenkins(bytes),
        }
    }
}

/// A byte as C's signed `char`, in 32 bits.
#[expect(clippy::cast_possible_wrap, reason = "that is the point")]
const fn widen(byte: u8) -> u32 {
    byte as i8 as u32
}

/// Up to four bytes, the first one lowest.
fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn one_at_a_time(bytes: &[u8]) -> u32 {
    let mut hash = bytes.iter().fold(0_u32, |hash, byte| {
        let hash = hash.wrapping_add(widen(*byte));
        let hash = hash.wrapping_add(hash << 10);
        hash ^ (hash >> 6)
    });
    hash = hash.wrapping_add(hash << 3);
    hash ^= hash >> 11;
    hash.wrapping_add(hash << 15)
}

/// MD5 as four numbers; ketama places a server at each.
pub(super) fn md5_words(bytes: &[u8]) -> [u32; 4] {
    let digest: [u8; 16] = Md5::digest(bytes).into();
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.chunks(4)) {
        *word = little_endian(bytes);
    }
    words
}

fn crc16(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ u32::from(crc16_step((crc >> 8) as u8 ^ byte)))
}

static CRC32: [u32; 256] = crc32_table();

#[expect(clippy::indexing_slicing, reason = "runs in the compiler")]
const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xedb8_8320 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let entry = CRC32.get(usize::from(crc as u8 ^ byte)).copied().unwrap_or_default();
        (crc >> 8) ^ entry
    })
}

/// What sign extension does to the upper half can't reach the lower one.
fn fnv1_64(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        hash.wrapping_mul(0x0100_0000_01b3) ^ u64::from(widen(*byte))
    }) as u32
}

fn fnv1_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| hash.wrapping_mul(0x0100_0193) ^ widen(*byte))
}

fn fnv1a(bytes: &[u8], start: u32, prime: u32) -> u32 {
    bytes.iter().fold(start, |hash, byte| (hash ^ widen(*byte)).wrapping_mul(prime))
}

fn hsieh(bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut hash = words.iter().fold(0_u32, |hash, [a, b, c, d]| {
        let hash = hash.wrapping_add(little_endian(&[*a, *b]));
        let hash = (hash << 16) ^ (little_endian(&[*c, *d]) << 11) ^ hash;
        hash.wrapping_add(hash >> 11)
    });
    match *rest {
        [a, b, c] => {
            hash = hash.wrapping_add(little_endian(&[a, b]));
            hash ^= hash << 16;
            hash ^= widen(c) << 18;
            hash = hash.wrapping_add(hash >> 11);
        }
        [a, b] => {
            hash = hash.wrapping_add(little_endian(&[a, b]));
            hash ^= hash << 11;
            hash = hash.wrapping_add(hash >> 17);
        }
        [a] => {
            hash = hash.wrapping_add(u32::from(a));
            hash ^= hash << 10;
            hash = hash.wrapping_add(hash >> 1);
        }
        _ => {}
    }
    hash ^= hash << 3;
    hash = hash.wrapping_add(hash >> 5);
    hash ^= hash << 4;
    hash = hash.wrapping_add(hash >> 17);
    hash ^= hash << 25;
    hash.wrapping_add(hash >> 6)
}

fn murmur(bytes: &[u8]) -> u32 {
    const FACTOR: u32 = 0x5bd1_e995;
    let length = bytes.len() as u32;
    let start = 0xdead_beef_u32.wrapping_mul(length) ^ length;
    let (words, rest) = bytes.as_chunks::<4>();
    let mut hash = words.iter().fold(start, |hash, word| {
        let word = u32::from_le_bytes(*word).wrapping_mul(FACTOR);
        hash.wrapping_mul(FACTOR) ^ (word ^ (word >> 24)).wrapping_mul(FACTOR)
    });
    if !rest.is_empty() {
        hash = (hash ^ little_endian(rest)).wrapping_mul(FACTOR);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(FACTOR);
    hash ^ (hash >> 15)
}

fn jenkins(bytes: &[u8]) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(bytes.len() as u32).wrapping_add(13);
    let mut state = [start; 3];
    if bytes.is_empty() {
        return start;
    }
    let mut blocks = bytes.chunks(12).peekable();
    while let Some(block) = blocks.next() {
        for (part, word) in state.iter_mut().zip(block.chunks(4)) {
            *part = part.wrapping_add(little_endian(word));
        }
        // The last block, a full one too, is mixed differently.
        state = if blocks.peek().is_some() { jenkins_mix(state) } else { jenkins_end(state) };
    }
    let [_, _, hash] = state;
    hash
}

fn jenkins_mix([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    [a, b, c]
}

fn jenkins_end([mut a, mut b, mut c]: [u32; 3]) -> [u32; 3] {
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    c = (c ^ b).wrapping_sub(b.rotate_left(24));
    [a, b, c]
}
