//! Elements packed into one string: listpacks, ziplists, intsets, zipmaps.

use std::borrow::Cow;

use super::Fault;

/// One packed element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element<'a> {
    Bytes(Cow<'a, [u8]>),
    Integer(i64),
}

impl<'a> Element<'a> {
    pub(super) fn into_bytes(self) -> Cow<'a, [u8]> {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Integer(number) => Cow::Owned(number.to_string().into_bytes()),
        }
    }

    pub(super) fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
            Self::Integer(number) => Some(*number),
        }
    }

    pub(super) fn as_score(&self) -> Option<f64> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.trim().parse().ok(),
            Self::Integer(number) => Some(*number as f64),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Listpack,
    Ziplist,
    /// Integers of so many bytes.
    Intset(usize),
    Zipmap,
}

/// The elements of one packed string, in order. After a fault, nothing.
#[derive(Debug, Clone)]
pub(super) struct Elements<'a> {
    bytes: Cow<'a, [u8]>,
    at: usize,
    packing: Packing,
    /// How many the header says there are, less those that came; None where it doesn't say.
    left: Option<u64>,
    /// A zipmap's values have a byte more than its fields.
    value_next: bool,
    done: bool,
}

/// Where an element's bytes are.
enum Found {
    Bytes {
        start: usize,
        length: usize,
    },
    Integer(i64),
    /// There is none: the string ends here, as it should.
    End,
}

impl<'a> Elements<'a> {
    pub(super) fn listpack(bytes: Cow<'a, [u8]>) -> Result<Self, Fault> {
        let fault = Fault::Expected("a listpack");
        let total = number::<4>(&bytes, 0).ok_or(fault.clone())?;
        let count = number::<2>(&bytes, 4).ok_or(fault.clone())?;
        // The count has two bytes, of which the highest value says that there are too many.
        let left = (count < 0xffff).then_some(count);
        Self::new(bytes, 6, Packing::Listpack, left, total, fault)
    }

    pub(super) fn ziplist(bytes: Cow<'a, [u8]>) -> Result<Self, Fault> {
        let fault = Fault::Expected("a ziplist");
        let total = number::<4>(&bytes, 0).ok_or(fault.clone())?;
        let count = number::<2>(&bytes, 8).ok_or(fault.clone())?;
        let left = (count < 0xffff).then_some(count);
        Self::new(bytes, 10, Packing::Ziplist, left, total, fault)
    }

    pub(super) fn intset(bytes: Cow<'a, [u8]>) -> Result<Self, Fault> {
        let fault = Fault::Expected("an intset");
        let width = number::<4>(&bytes, 0).ok_or(fault.clone())?;
        let count = number::<4>(&bytes, 4).ok_or(fault.clone())?;
        if ![2, 4, 8].contains(&width) {
            return Err(fault);
        }
        let total = 8 + width * count;
        Self::new(bytes, 8, Packing::Intset(width as usize), Some(count), total, fault)
    }

    pub(super) fn zipmap(bytes: Cow<'a, [u8]>) -> Result<Self, Fault> {
        let fault = Fault::Expected("a zipmap");
        let count = number::<1>(&bytes, 0).ok_or(fault.clone())?;
        let left = (count < 254).then_some(count * 2);
        let total = bytes.len() as u64;
        Self::new(bytes, 1, Packing::Zipmap, left, total, fault)
    }

    fn new(
        bytes: Cow<'a, [u8]>,
        at: usize,
        packing: Packing,
        left: Option<u64>,
        total: u64,
        fault: Fault,
    ) -> Result<Self, Fault> {
        if bytes.len() as u64 != total {
            return Err(fault);
        }
        Ok(Self { bytes, at, packing, left, value_next: false, done: false })
    }

    fn fault(&self) -> Fault {
        Fault::Expected(match self.packing {
            Packing::Listpack => "an element of a listpack",
            Packing::Ziplist => "an element of a ziplist",
            Packing::Intset(_) => "an element of an intset",
            Packing::Zipmap => "an element of a zipmap",
        })
    }

    /// The next element, or what of it the caller can't do without.
    pub(super) fn need(&mut self, what: &'static str) -> Result<Element<'a>, Fault> {
        self.next().unwrap_or(Err(Fault::Expected(what)))
    }

    /// An element that is a number.
    pub(super) fn need_integer(&mut self, what: &'static str) -> Result<i64, Fault> {
        self.need(what)?.as_integer().ok_or(Fault::Expected(what))
    }

    /// A copy of the bytes, or the bytes themselves where the string was not compressed.
    fn bytes(&self, start: usize, length: usize) -> Option<Cow<'a, [u8]>> {
        let range = start..start.checked_add(length)?;
        Some(match &self.bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(bytes.get(range)?),
            Cow::Owned(bytes) => Cow::Owned(bytes.get(range)?.to_vec()),
        })
    }

    /// The element at `at`; None where there is none that makes sense.
    fn read(&mut self) -> Option<Found> {
        let bytes = &*self.bytes;
        let at = self.at;
        let (found, next) = match self.packing {
            Packing::Listpack => {
                if *bytes.get(at)? == 0xff {
                    return (at + 1 == bytes.len()).then_some(Found::End);
                }
                let (found, end) = listpack_element(bytes, at)?;
                (found, end + backlength_bytes(end - at))
            }
            Packing::Ziplist => {
                let previous = *bytes.get(at)?;
                if previous == 0xff {
                    return (at + 1 == bytes.len()).then_some(Found::End);
                }
                ziplist_element(bytes, at + if previous == 0xfe { 5 } else { 1 })?
            }
            Packing::Intset(width) => {
                if at == bytes.len() {
                    return Some(Found::End);
                }
                let number = match width {
                    2 => signed::<2>(bytes, at)?,
                    4 => signed::<4>(bytes, at)?,
                    _ => signed::<8>(bytes, at)?,
                };
                (Found::Integer(number), at + width)
            }
            Packing::Zipmap => {
                let (length, start) = match *bytes.get(at)? {
                    0xff if !self.value_next => {
                        return (at + 1 == bytes.len()).then_some(Found::End);
                    }
                    254 => (number::<4>(bytes, at + 1)? as usize, at + 5),
                    0xff => return None,
                    length => (usize::from(length), at + 1),
                };
                // A value may have unused bytes behind it.
                let (start, unused) = if self.value_next {
                    (start + 1, usize::from(*bytes.get(start)?))
                } else {
                    (start, 0)
                };
                self.value_next = !self.value_next;
                (Found::Bytes { start, length }, start.checked_add(length)?.checked_add(unused)?)
            }
        };
        (next <= bytes.len()).then_some(())?;
        self.at = next;
        Some(found)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let found = match self.read() {
            Some(Found::Integer(number)) => Some(Element::Integer(number)),
            Some(Found::Bytes { start, length }) => self.bytes(start, length).map(Element::Bytes),
            Some(Found::End) if self.left.is_none_or(|left| left == 0) => {
                self.done = true;
                return None;
            }
            Some(Found::End) | None => None,
        };
        // More than the header said are too many.
        let found = found.filter(|_| self.left != Some(0));
        self.left = self.left.map(|left| left.saturating_sub(1));
        self.done = found.is_none();
        Some(found.ok_or_else(|| self.fault()))
    }
}

/// A number of so many bytes, least significant first.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let taken = bytes.get(at..)?.first_chunk::<N>()?;
    Some(taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The same with a sign.
fn signed<const N: usize>(bytes: &[u8], at: usize) -> Option<i64> {
    let unused = 64 - 8 * N as u32;
    Some((number::<N>(bytes, at)? << unused).cast_signed() >> unused)
}

/// Source: `listpack.c`.
fn listpack_element(bytes: &[u8], at: usize) -> Option<(Found, usize)> {
    let first = *bytes.get(at)?;
    let low = u64::from(*bytes.get(at + 1)?);
    let text = |start: usize, length: usize| {
        Some((Found::Bytes { start, length }, start.checked_add(length)?))
    };
    match first {
        0..0x80 => Some((Found::Integer(i64::from(first)), at + 1)),
        0x80..0xc0 => text(at + 1, usize::from(first & 0x3f)),
        0xc0..0xe0 => {
            let thirteen = u64::from(first & 0x1f) << 8 | low;
            Some((Found::Integer((thirteen << 51).cast_signed() >> 51), at + 2))
        }
        0xe0..0xf0 => text(at + 2, usize::from(first & 0x0f) << 8 | low as usize),
        0xf0 => text(at + 5, number::<4>(bytes, at + 1)? as usize),
        0xf1 => Some((Found::Integer(signed::<2>(bytes, at + 1)?), at + 3)),
        0xf2 => Some((Found::Integer(signed::<3>(bytes, at + 1)?), at + 4)),
        0xf3 => Some((Found::Integer(signed::<4>(bytes, at + 1)?), at + 5)),
        0xf4 => Some((Found::Integer(signed::<8>(bytes, at + 1)?), at + 9)),
        _ => None,
    }
}

/// How many bytes say how long a listpack's element is, for those who read backwards.
fn backlength_bytes(length: usize) -> usize {
    match length {
        0..128 => 1,
        128..16_384 => 2,
        16_384..2_097_152 => 3,
        2_097_152..268_435_456 => 4,
        _ => 5,
    }
}

/// Source: `ziplist.c`.
fn ziplist_element(bytes: &[u8], at: usize) -> Option<(Found, usize)> {
    let first = *bytes.get(at)?;
    let low = usize::from(*bytes.get(at + 1)?);
    let text = |start: usize, length: usize| {
        Some((Found::Bytes { start, length }, start.checked_add(length)?))
    };
    match first {
        0..0x40 => text(at + 1, usize::from(first)),
        0x40..0x80 => text(at + 2, usize::from(first & 0x3f) << 8 | low),
        0x80 => {
            let length = bytes.get(at + 1..)?.first_chunk()?;
            text(at + 5, u32::from_be_bytes(*length) as usize)
        }
        0xc0 => Some((Found::Integer(signed::<2>(bytes, at + 1)?), at + 3)),
        0xd0 => Some((Found::Integer(signed::<4>(bytes, at + 1)?), at + 5)),
        0xe0 => Some((Found::Integer(signed::<8>(bytes, at + 1)?), at + 9)),
        0xf0 => Some((Found::Integer(signed::<3>(bytes, at + 1)?), at + 4)),
        0xfe => Some((Found::Integer(signed::<1>(bytes, at + 1)?), at + 2)),
        0xf1..=0xfd => Some((Found::Integer(i64::from(first & 0x0f) - 1), at + 1)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(elements: Result<Elements<'_>, Fault>, expected: Option<&[&str]>) {
        let found: Result<Vec<_>, Fault> = elements.and_then(|elements| {
            elements
                .map(|element| Ok(String::from_utf8(element?.into_bytes().into_owned()).unwrap()))
                .collect()
        });
        let expected: Option<Vec<String>> =
            expected.map(|texts| texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(found.ok(), expected);
    }

    #[test]
    fn listpacks() {
        let pack = |body: &[u8], count: u16| {
            let mut bytes = (body.len() as u32 + 7).to_le_bytes().to_vec();
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(body);
            bytes.push(0xff);
            bytes
        };
        let one = |body: &[u8], count: u16, expected: Option<&[&str]>| {
            check(Elements::listpack(pack(body, count).into()), expected);
        };
        one(b"", 0, Some(&[]));
        one(b"\x05\x01", 1, Some(&["5"]));
        one(b"\x05\x01", 0xffff, Some(&["5"]));
        one(b"\x81a\x02\xc0\x80\x02", 2, Some(&["a", "128"]));
        one(b"\xdf\xff\x02\xf1\x00\x80\x03", 2, Some(&["-1", "-32768"]));
        one(b"\xf2\x00\x00\x80\x04\xf3\x00\x00\x00\x80\x05", 2, Some(&["-8388608", "-2147483648"]));
        one(b"\xf4\xff\xff\xff\xff\xff\xff\xff\x7f\x09", 1, Some(&["9223372036854775807"]));
        one(b"\xe0\x03abc\x05", 1, Some(&["abc"]));
        one(b"\xf0\x03\x00\x00\x00abc\x08", 1, Some(&["abc"]));
        one(b"\x05\x01", 2, None);
        one(b"\x05\x01", 0, None);
        one(b"\x85a\x02", 1, None);
        one(b"\xf5\x01", 1, None);
        one(b"\xf0\xff\xff\xff\xff\x01", 1, None);
        check(Elements::listpack(b"\x08\x00\x00\x00\x00\x00\xff".as_slice().into()), None);
        check(Elements::listpack(b"".as_slice().into()), None);
    }

    #[test]
    fn ziplists() {
        let one = |body: &[u8], count: u16, expected: Option<&[&str]>| {
            let mut bytes = (body.len() as u32 + 11).to_le_bytes().to_vec();
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(body);
            bytes.push(0xff);
            check(Elements::ziplist(bytes.into()), expected);
        };
        one(b"", 0, Some(&[]));
        one(b"\x00\x01a\x03\xf1\x02\xfd", 3, Some(&["a", "0", "12"]));
        one(b"\x00\x40\x01a", 1, Some(&["a"]));
        one(b"\x00\x80\x00\x00\x00\x01a\xfe\x07\x00\x00\x00\xfe\xff", 2, Some(&["a", "-1"]));
        one(b"\x00\xc0\x00\x80\x04\xf0\x00\x00\x80", 2, Some(&["-32768", "-8388608"]));
        one(b"\x00\xd0\x00\x00\x00\x80", 1, Some(&["-2147483648"]));
        one(b"\x00\xe0\xff\xff\xff\xff\xff\xff\xff\x7f", 1, Some(&["9223372036854775807"]));
        one(b"\x00\xff", 1, None);
        one(b"\x00\x05a", 1, None);
    }

    #[test]
    fn intsets_and_zipmaps() {
        let intset = |bytes: &[u8], expected| check(Elements::intset(bytes.into()), expected);
        intset(b"\x02\x00\x00\x00\x02\x00\x00\x00\xff\xff\x05\x00", Some(&["-1", "5"]));
        intset(
            b"\x08\x00\x00\x00\x01\x00\x00\x00\0\0\0\0\0\0\0\x80",
            Some(&["-9223372036854775808"]),
        );
        intset(b"\x03\x00\x00\x00\x00\x00\x00\x00", None);
        intset(b"\x02\x00\x00\x00\xff\xff\xff\xff\x05\x00", None);
        let zipmap = |bytes: &[u8], expected| check(Elements::zipmap(bytes.into()), expected);
        zipmap(b"\x01\x03foo\x03\x00bar\xff", Some(&["foo", "bar"]));
        zipmap(b"\xfe\x01a\x02\x01bcX\x01d\x00\x00\xff", Some(&["a", "bc", "d", ""]));
        zipmap(b"\x01\xfe\x01\x00\x00\x00a\xfe\x01\x00\x00\x00\x00b\xff", Some(&["a", "b"]));
        zipmap(b"\x01\x03foo\xff", None);
        zipmap(b"\x01\xfe\xff\xff\xff\xffa", None);
        zipmap(b"", None);
    }
}
