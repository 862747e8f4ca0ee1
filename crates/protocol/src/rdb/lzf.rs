//! LZF, the compression of strings in RDB files.
//!
//! A compressed string is a run of tokens. A first byte below 32 says how many literal bytes follow,
//! less one. Any other refers to what was written before: its upper three bits are the length less
//! two (7: another byte is added to it), its lower five and the next byte the distance less one.

use super::Fault;

/// The furthest that a token refers back.
const DISTANCE_MAX: usize = 1 << 13;
/// The longest run of literal bytes in one token.
const LITERALS_MAX: usize = 1 << 5;
/// The longest copy in one token.
const COPY_MAX: usize = 7 + 255 + 2;
/// A token of three bytes stands for [`COPY_MAX`] bytes at most.
const GAIN_MAX: usize = COPY_MAX.div_ceil(3);

const FAULT: Fault = Fault::Expected("a string that was compressed by LZF");

/// Unpacks `packed` to exactly `length` bytes. Takes no more memory than `packed` can stand for.
pub fn decompress(packed: &[u8], length: usize) -> Result<Vec<u8>, Fault> {
    if length > packed.len().saturating_mul(GAIN_MAX) {
        return Err(FAULT);
    }
    let mut out = Vec::with_capacity(length);
    let mut rest = packed;
    while let Some((token, used)) = Token::read(rest) {
        if token.length() > length - out.len() {
            return Err(FAULT);
        }
        token.write(&mut out)?;
        rest = rest.get(used..).unwrap_or_default();
    }
    if rest.is_empty() && out.len() == length { Ok(out) } else { Err(FAULT) }
}

/// The first bytes of what `packed` stands for, and how many there are of them.
pub(super) fn first<const N: usize>(packed: &[u8]) -> Result<([u8; N], usize), Fault> {
    let mut out = [0; N];
    let (mut filled, mut rest) = (0, packed);
    while let Some((token, used)) = Token::read(rest).filter(|_| filled < N) {
        for at in 0..token.length().min(N - filled) {
            let byte = match token {
                Token::Literals(bytes) => bytes.get(at),
                Token::Copy { distance, .. } => {
                    filled.checked_sub(distance).and_then(|from| out.get(from))
                }
            };
            let byte = *byte.ok_or(FAULT)?;
            *out.get_mut(filled).ok_or(FAULT)? = byte;
            filled += 1;
        }
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok((out, filled))
}

enum Token<'a> {
    Literals(&'a [u8]),
    Copy { distance: usize, length: usize },
}

impl<'a> Token<'a> {
    /// The first token and how many bytes it takes; None where it is not all there.
    fn read(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (&control, rest) = bytes.split_first()?;
        let control = usize::from(control);
        if control < LITERALS_MAX {
            return Some((Self::Literals(rest.get(..=control)?), control + 2));
        }
        let (length, rest, used) = match control >> 5 {
            7 => {
                let (&more, rest) = rest.split_first()?;
                (7 + usize::from(more), rest, 3)
            }
            short => (short, rest, 2),
        };
        let distance = ((control & 0x1f) << 8 | usize::from(*rest.first()?)) + 1;
        Some((Self::Copy { distance, length: length + 2 }, used))
    }

    fn length(&self) -> usize {
        match self {
            Self::Literals(bytes) => bytes.len(),
            Self::Copy { length, .. } => *length,
        }
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        match self {
            Self::Literals(bytes) => out.extend_from_slice(bytes),
            Self::Copy { distance, length } => {
                let start = out.len().checked_sub(*distance).ok_or(FAULT)?;
                // What is copied may overlap what is written: then it repeats.
                let mut left = *length;
                while left > 0 {
                    let piece = left.min(out.len() - start);
                    out.extend_from_within(start..start + piece);
                    left -= piece;
                }
            }
        }
        Ok(())
    }
}

/// Unpacks a string that comes in pieces, in bounded memory.
#[derive(Debug)]
pub struct Stream {
    packed_left: u64,
    length_left: u64,
    /// What was unpacked last: first what was handed out already, as far as tokens may refer to.
    out: Vec<u8>,
    handed_out: usize,
}

impl Stream {
    /// `packed` bytes stand for `length` bytes.
    pub fn new(packed: u64, length: u64) -> Self {
        Self { packed_left: packed, length_left: length, out: Vec::new(), handed_out: 0 }
    }

    /// Reads on in `bytes`, which begin where the last call stopped reading, and may go on after
    /// the string: how many were read, and what they stand for. Stops near `out_max` bytes. Reads
    /// nothing where the next token is not all there.
    pub fn unpack(&mut self, bytes: &[u8], out_max: usize) -> Result<(usize, &[u8]), Fault> {
        self.out.drain(..self.out.len().saturating_sub(DISTANCE_MAX));
        self.handed_out = self.out.len();
        let limit = self.packed_left.min(bytes.len() as u64) as usize;
        let mut rest = bytes.get(..limit).unwrap_or_default();
        while self.out.len() - self.handed_out < out_max {
            let Some((token, used)) = Token::read(rest) else { break };
            let length = token.length() as u64;
            self.length_left = self.length_left.checked_sub(length).ok_or(FAULT)?;
            token.write(&mut self.out)?;
            self.packed_left -= used as u64;
            rest = rest.get(used..).unwrap_or_default();
        }
        let used = limit - rest.len();
        let stuck = used == 0 && limit as u64 == self.packed_left;
        if stuck && (self.packed_left > 0 || self.length_left > 0) {
            return Err(FAULT);
        }
        Ok((used, self.out.get(self.handed_out..).unwrap_or_default()))
    }

    /// Was everything handed out?
    pub fn is_done(&self) -> bool {
        self.packed_left == 0 && self.length_left == 0
    }
}

/// Packs `bytes`; None where that makes them no shorter.
pub fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    const HASH_BITS: u32 = 13;
    let mut seen = vec![0_u32; 1 << HASH_BITS];
    let mut out = Vec::with_capacity(bytes.len());
    let (mut at, mut literals_from) = (0, 0);
    while let Some(&[a, b, c]) = bytes.get(at..at + 3).and_then(|three| three.first_chunk()) {
        let three = u32::from_le_bytes([a, b, c, 0]);
        let slot = three.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS);
        let position = u32::try_from(at).ok()?;
        let before = seen.get_mut(slot as usize).map(|at| std::mem::replace(at, position + 1));
        let before = before.filter(|at| *at > 0).map(|at| at as usize - 1);
        let same = before.filter(|before| at - before <= DISTANCE_MAX).map_or(0, |before| {
            let (old, new) = (bytes.get(before..), bytes.get(at..));
            let pairs = old.unwrap_or_default().iter().zip(new.unwrap_or_default());
            pairs.take(COPY_MAX).take_while(|(old, new)| old == new).count()
        });
        let Some(before) = before.filter(|_| same >= 3) else {
            at += 1;
            continue;
        };
        put_literals(bytes.get(literals_from..at)?, &mut out);
        let (distance, length) = (at - before - 1, same - 2);
        out.push((length.min(7) << 5 | distance >> 8) as u8);
        if length >= 7 {
            out.push((length - 7) as u8);
        }
        out.push(distance as u8);
        at += same;
        literals_from = at;
        if out.len() >= bytes.len() {
            return None;
        }
    }
    put_literals(bytes.get(literals_from..)?, &mut out);
    (out.len() < bytes.len()).then_some(out)
}

fn put_literals(bytes: &[u8], out: &mut Vec<u8>) {
    for run in bytes.chunks(LITERALS_MAX) {
        out.push((run.len() - 1) as u8);
        out.extend_from_slice(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacks() {
        let check = |packed: &[u8], expected: &[u8]| {
            assert_eq!(decompress(packed, expected.len()).as_deref(), Ok(expected), "{packed:?}");
            let (start, length) = first::<6>(packed).unwrap();
            assert_eq!(start.get(..length), expected.get(..length), "{packed:?}");
            assert_eq!(length, expected.len().min(6), "{packed:?}");
        };
        check(b"", b"");
        check(b"\x02abc", b"abc");
        check(b"\x00a\x20\x00", b"aaaa");
        check(b"\x01ab\xe0\x00\x01", b"abababababa");
        check(b"\x02abc\x20\x02\x00d", b"abcabcd");
    }

    #[test]
    fn refuses() {
        let check = |packed: &[u8], length: usize| {
            assert_eq!(decompress(packed, length), Err(FAULT), "{packed:?} to {length}");
        };
        check(b"", 1);
        check(b"\x02ab", 3);
        check(b"\x02abc", 2);
        check(b"\x02abc", 4);
        check(b"\x20\x00", 3);
        check(b"\x00a\x20\x01", 4);
        check(b"\x00a\xe0", 20);
        check(b"\x00a", usize::MAX);
        assert_eq!(first::<6>(b"\x00a\x20\x01"), Err(FAULT));
    }

    #[test]
    fn packs_what_it_unpacks() {
        let check = |bytes: &[u8]| {
            let Some(packed) = compress(bytes) else { return false };
            assert!(packed.len() < bytes.len());
            assert_eq!(decompress(&packed, bytes.len()).as_deref(), Ok(bytes));
            for piece in [1, 7, 300, packed.len()] {
                let mut stream = Stream::new(packed.len() as u64, bytes.len() as u64);
                let (mut from, mut to, mut out) = (0, piece.min(packed.len()), Vec::new());
                while !stream.is_done() {
                    let (used, unpacked) = stream.unpack(&packed[from..to], 100).unwrap();
                    out.extend_from_slice(unpacked);
                    from += used;
                    to = (to + piece).min(packed.len());
                }
                assert_eq!((out.as_slice(), from), (bytes, packed.len()));
            }
            true
        };
        assert!(!check(b""));
        assert!(!check(b"abcdefgh"));
        assert!(check(&[b'a'; 1000]));
        assert!(check(&b"0123456789".repeat(3000)));
        let text: Vec<u8> =
            (0..20_000_u32).flat_map(|i| format!("{},", i / 3).into_bytes()).collect();
        assert!(check(&text));
    }

    #[test]
    fn streams_refuse_what_is_cut() {
        let mut stream = Stream::new(3, 3);
        assert_eq!(stream.unpack(b"\x02ab", 10), Err(FAULT));
        let mut stream = Stream::new(4, 9);
        assert_eq!(stream.unpack(b"\x02abc", 10).map(|(used, out)| (used, out.len())), Ok((4, 3)));
        assert_eq!(stream.unpack(b"", 10), Err(FAULT));
    }
}
