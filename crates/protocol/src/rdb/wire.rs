//! Lengths, strings and numbers as RDB files hold them, read from the front of a window.

use std::borrow::Cow;

use super::{Fault, lzf};

/// Why something can't be read from a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// The window ends before it: so many bytes are missing at least.
    More(usize),
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Stop {
    /// The same where no more bytes will come.
    pub(super) fn at_end(self, what: &'static str) -> Fault {
        match self {
            Self::More(_) => Fault::Ends(what),
            Self::Fault(fault) => fault,
        }
    }
}

/// The longest string that a compressed one may stand for: what an engine takes by default, 512 MiB,
/// and a bit.
const UNPACKED_MAX: usize = 513 << 20;

/// A string as the file holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text<'a> {
    Plain(&'a [u8]),
    Integer(i32),
    Packed { packed: &'a [u8], length: usize },
}

impl<'a> Text<'a> {
    /// How many bytes it has when it is unpacked; of numbers, about.
    pub(super) fn length(self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Integer(_) => 11,
            Self::Packed { length, .. } => length,
        }
    }

    pub(super) fn decode(self) -> Result<Cow<'a, [u8]>, Fault> {
        Ok(match self {
            Self::Plain(bytes) => Cow::Borrowed(bytes),
            Self::Integer(number) => Cow::Owned(number.to_string().into_bytes()),
            Self::Packed { length, .. } if length > UNPACKED_MAX => {
                let (bytes, limit) = (length as u64, UNPACKED_MAX as u64);
                return Err(Fault::TooLarge { what: "a string", bytes, limit });
            }
            Self::Packed { packed, length } => Cow::Owned(lzf::decompress(packed, length)?),
        })
    }
}

/// What the first bytes of a string say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextHead {
    /// So many bytes follow.
    Plain(u64),
    /// A number in so many bytes follows.
    Integer(usize),
    /// `packed` bytes follow, which stand for `length`.
    Packed { packed: u64, length: u64 },
}

enum Length {
    Plain(u64),
    /// The kind of a specially encoded string.
    Special(u8),
}

/// Reads from the front of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) const fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(Stop::More(count - self.rest.len()));
        };
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(Stop::More(N - self.rest.len()));
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Stop> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// Eight bytes, least significant first.
    pub(super) fn u64(&mut self) -> Result<u64, Stop> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn f64(&mut self) -> Result<f64, Stop> {
        Ok(f64::from_le_bytes(self.array()?))
    }

    /// A length that is a number.
    pub(super) fn length(&mut self) -> Result<u64, Stop> {
        match self.any_length()? {
            Length::Plain(number) => Ok(number),
            Length::Special(kind) => {
                Err(Fault::Found { expected: "a length", byte: 0xc0 | kind }.into())
            }
        }
    }

    #[inline]
    fn any_length(&mut self) -> Result<Length, Stop> {
        let before = *self;
        let first = self.byte()?;
        let length = match first >> 6 {
            0 => Ok(Length::Plain(u64::from(first))),
            1 => {
                self.byte().map(|low| Length::Plain(u64::from(first & 0x3f) << 8 | u64::from(low)))
            }
            2 if first == 0x80 => {
                self.array().map(|bytes| Length::Plain(u64::from(u32::from_be_bytes(bytes))))
            }
            2 if first == 0x81 => {
                self.array().map(|bytes| Length::Plain(u64::from_be_bytes(bytes)))
            }
            2 => Err(Fault::Found { expected: "a length", byte: first }.into()),
            _ => Ok(Length::Special(first & 0x3f)),
        };
        if length.is_err() {
            *self = before;
        }
        length
    }

    /// What the first bytes of a string say; what follows them is left.
    #[inline]
    pub(super) fn text_head(&mut self) -> Result<TextHead, Stop> {
        Ok(match self.any_length()? {
            Length::Plain(length) => TextHead::Plain(length),
            Length::Special(kind @ 0..=2) => TextHead::Integer(1 << kind),
            Length::Special(3) => {
                let packed = self.length()?;
                TextHead::Packed { packed, length: self.length()? }
            }
            Length::Special(kind) => {
                return Err(Fault::Found { expected: "a string", byte: 0xc0 | kind }.into());
            }
        })
    }

    /// Skips a string without unpacking it.
    #[inline]
    pub(super) fn skip_text(&mut self) -> Result<(), Stop> {
        let length = match self.text_head()? {
            TextHead::Plain(length) => length,
            TextHead::Integer(length) => length as u64,
            TextHead::Packed { packed, .. } => packed,
        };
        self.take(size(length)?)?;
        Ok(())
    }

    pub(super) fn text(&mut self) -> Result<Text<'a>, Stop> {
        Ok(match self.text_head()? {
            TextHead::Plain(length) => Text::Plain(self.take(size(length)?)?),
            TextHead::Integer(1) => Text::Integer(i32::from(i8::from_le_bytes(self.array()?))),
            TextHead::Integer(2) => Text::Integer(i32::from(i16::from_le_bytes(self.array()?))),
            TextHead::Integer(_) => Text::Integer(i32::from_le_bytes(self.array()?)),
            TextHead::Packed { packed, length } => {
                let packed = self.take(size(packed)?)?;
                Text::Packed { packed, length: size(length)? }
            }
        })
    }

    /// A string, unpacked.
    pub(super) fn string(&mut self) -> Result<Cow<'a, [u8]>, Stop> {
        Ok(self.text()?.decode()?)
    }

    /// A score as text: its length in a byte, where 253, 254 and 255 stand for what is no number.
    /// Source: `rdbLoadDoubleValue`.
    pub(super) fn score_text(&mut self) -> Result<f64, Stop> {
        Ok(match self.byte()? {
            253 => f64::NAN,
            254 => f64::INFINITY,
            255 => f64::NEG_INFINITY,
            length => {
                let text = self.take(usize::from(length))?;
                let text = std::str::from_utf8(text).ok().map(str::trim);
                text.and_then(|text| text.parse().ok()).ok_or(Fault::Expected("a score"))?
            }
        })
    }

    pub(super) fn skip_score_text(&mut self) -> Result<(), Stop> {
        let length = self.byte()?;
        self.take(if length >= 253 { 0 } else { usize::from(length) })?;
        Ok(())
    }
}

/// A length that memory could hold.
pub(super) fn size(length: u64) -> Result<usize, Fault> {
    // Nothing that an engine writes comes near this; sums of a few such lengths don't overflow.
    const SIZE_MAX: u64 = isize::MAX as u64 / 4;
    usize::try_from(length).ok().filter(|_| length <= SIZE_MAX).ok_or(Fault::TooLarge {
        what: "a string",
        bytes: length,
        limit: SIZE_MAX,
    })
}

/// Appends a length in its shortest form.
pub(super) fn put_length(length: u64, out: &mut Vec<u8>) {
    if length < 1 << 6 {
        out.push(length as u8);
    } else if length < 1 << 14 {
        out.extend_from_slice(&(0x4000 | length as u16).to_be_bytes());
    } else if let Ok(length) = u32::try_from(length) {
        out.push(0x80);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.push(0x81);
        out.extend_from_slice(&length.to_be_bytes());
    }
}

/// Appends a string as it is.
pub(super) fn put_text(text: &[u8], out: &mut Vec<u8>) {
    put_length(text.len() as u64, out);
    out.extend_from_slice(text);
}

/// Appends a string the way the engines do: short numbers as numbers, long strings compressed
/// where that makes them shorter.
pub(super) fn put_text_small(text: &[u8], out: &mut Vec<u8>) {
    if let Some(number) = as_integer(text) {
        if let Ok(number) = i8::try_from(number) {
            out.push(0xc0);
            out.extend_from_slice(&number.to_le_bytes());
        } else if let Ok(number) = i16::try_from(number) {
            out.push(0xc1);
            out.extend_from_slice(&number.to_le_bytes());
        } else {
            out.push(0xc2);
            out.extend_from_slice(&number.to_le_bytes());
        }
        return;
    }
    let packed = (text.len() > 20).then(|| lzf::compress(text)).flatten();
    match packed.filter(|packed| packed.len() + 8 < text.len()) {
        Some(packed) => {
            out.push(0xc3);
            put_length(packed.len() as u64, out);
            put_length(text.len() as u64, out);
            out.extend_from_slice(&packed);
        }
        None => put_text(text, out),
    }
}

/// The number whose only spelling is this text.
fn as_integer(text: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= 11)?;
    let canonical = match text.strip_prefix('-').unwrap_or(text).as_bytes() {
        [b'0'] => text == "0",
        [b'1'..=b'9', ..] => true,
        _ => false,
    };
    text.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        let check = |bytes: &[u8], expected: Result<u64, Stop>| {
            assert_eq!(Cursor::new(bytes).length(), expected, "{bytes:?}");
            if let Ok(length) = expected {
                let mut out = Vec::new();
                put_length(length, &mut out);
                assert_eq!(out, bytes);
            }
        };
        check(&[0], Ok(0));
        check(&[63], Ok(63));
        check(&[0x40, 64], Ok(64));
        check(&[0x7f, 0xff], Ok(16_383));
        check(&[0x80, 0, 0, 0x40, 0], Ok(16_384));
        check(&[0x80, 0xff, 0xff, 0xff, 0xff], Ok(u64::from(u32::MAX)));
        check(&[0x81, 0, 0, 0, 1, 0, 0, 0, 0], Ok(1 << 32));
        check(&[], Err(Stop::More(1)));
        check(&[0x40], Err(Stop::More(1)));
        check(&[0x80, 1], Err(Stop::More(3)));
        check(&[0x82], Err(Fault::Found { expected: "a length", byte: 0x82 }.into()));
        check(&[0xc0], Err(Fault::Found { expected: "a length", byte: 0xc0 }.into()));
    }

    #[test]
    fn strings() {
        let check = |bytes: &[u8], expected: Result<&[u8], Stop>| {
            let mut cursor = Cursor::new(bytes);
            assert_eq!(cursor.string(), expected.clone().map(Cow::Borrowed), "{bytes:?}");
            let mut skipped = Cursor::new(bytes);
            if skipped.skip_text().is_ok() {
                assert_eq!(skipped.rest, cursor.rest);
            } else {
                assert!(expected.is_err());
            }
        };
        check(b"\x00", Ok(b""));
        check(b"\x03abcd", Ok(b"abc"));
        check(b"\xc0\xff", Ok(b"-1"));
        check(b"\xc1\x00\x80", Ok(b"-32768"));
        check(b"\xc2\x00\x00\x00\x80", Ok(b"-2147483648"));
        check(b"\xc3\x04\x04\x00a\x20\x00", Ok(b"aaaa"));
        check(b"\x03ab", Err(Stop::More(1)));
        check(b"\xc3\x04", Err(Stop::More(1)));
        check(b"\xc4", Err(Fault::Found { expected: "a string", byte: 0xc4 }.into()));
    }

    #[test]
    fn strings_are_written_small() {
        let check = |text: &[u8], expected: usize| {
            let mut out = Vec::new();
            put_text_small(text, &mut out);
            assert_eq!(Cursor::new(&out).string().as_deref(), Ok(text));
            assert_eq!(out.len(), expected, "{text:?}");
        };
        check(b"", 1);
        check(b"12", 2);
        check(b"-0", 3);
        check(b"012", 4);
        check(b"+1", 3);
        check(b"-129", 3);
        check(b"2147483647", 5);
        check(b"2147483648", 11);
        check(&[b'a'; 100], 9);
    }

    #[test]
    fn scores() {
        let check = |bytes: &[u8], expected: f64| {
            let mut cursor = Cursor::new(bytes);
            assert_eq!(cursor.score_text().unwrap().to_bits(), expected.to_bits());
            assert!(cursor.rest.is_empty());
        };
        check(b"\x031.5", 1.5);
        check(b"\x042e10", 2e10);
        check(b"\xfe", f64::INFINITY);
        check(b"\xff", f64::NEG_INFINITY);
        assert_eq!(Cursor::new(b"\x01x").score_text(), Err(Fault::Expected("a score").into()));
    }
}
