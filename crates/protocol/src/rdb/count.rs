//! How many elements a value has, without decoding them.

use super::{
    Encoding, Fault,
    items::Items,
    layout::{Layout, Unit},
    lzf,
    wire::{Cursor, Stop, Text},
};

/// Elements of a list, members, fields, entries of a stream: what LLEN, SCARD, HLEN and XLEN answer. 1 for a
/// string, 0 for what only a module knows.
///
/// Costs much less than decoding: the numbers are those that the value says of itself, and only
/// packed elements too many for their header's two bytes are counted.
///
/// ```
/// use protocol::rdb::{Encoding, elements};
///
/// assert_eq!(elements(Encoding::SetIntset, b"\x0a\x02\0\0\0\x01\0\0\0\x07\0"), Ok(1));
/// ```
pub fn elements(encoding: Encoding, raw: &[u8]) -> Result<u64, Fault> {
    count(encoding, raw).map_err(|stop| stop.at_end("the value"))
}

fn count(encoding: Encoding, raw: &[u8]) -> Result<u64, Stop> {
    use Encoding as E;
    let mut cursor = Cursor::new(raw);
    let packed = match encoding {
        E::String => return Ok(1),
        E::Module | E::Cron => return Ok(0),
        E::HashExpiring => {
            cursor.u64()?;
            return cursor.length();
        }
        E::List
        | E::Set
        | E::SortedSetText
        | E::SortedSet
        | E::Hash
        | E::HashExpiringCandidate
        | E::HashExpiringValkey
        | E::Array => return cursor.length(),
        E::ListQuicklist | E::ListQuicklist2 => return nodes(encoding, cursor),
        E::Stream | E::Stream2 | E::Stream3 | E::Stream4 | E::Stream5 => {
            return stream(encoding, cursor);
        }
        E::HashListpackExpiring => {
            cursor.u64()?;
            header(&mut cursor, 4, 2)?.map(|count| count / 3)
        }
        E::HashListpackExpiringCandidate => header(&mut cursor, 4, 2)?.map(|count| count / 3),
        E::SetIntset => header(&mut cursor, 4, 4)?,
        // The count is that of pairs.
        E::HashZipmap => header(&mut cursor, 0, 1)?.filter(|count| *count < 254),
        E::ListZiplist => header(&mut cursor, 8, 2)?,
        E::SortedSetZiplist | E::HashZiplist => header(&mut cursor, 8, 2)?.map(|count| count / 2),
        E::HashListpack | E::SortedSetListpack => header(&mut cursor, 4, 2)?.map(|count| count / 2),
        E::SetListpack => header(&mut cursor, 4, 2)?,
    };
    match packed {
        Some(count) => Ok(count),
        None => Ok(counted(encoding, raw)?),
    }
}

fn counted(encoding: Encoding, raw: &[u8]) -> Result<u64, Fault> {
    Items::new(encoding, raw).try_fold(0, |count, item| item.map(|_| count + 1))
}

/// The count in a packed string's header; None where the header has no room for it.
fn header(cursor: &mut Cursor<'_>, at: usize, bytes: usize) -> Result<Option<u64>, Stop> {
    const HEADER_MAX: usize = 16;
    let fault = Fault::Expected("packed elements");
    let text = cursor.text()?;
    let unpacked;
    let start = match text {
        Text::Plain(bytes) => bytes,
        Text::Packed { packed, .. } => {
            let (first, length) = lzf::first::<HEADER_MAX>(packed)?;
            unpacked = first;
            unpacked.get(..length).unwrap_or_default()
        }
        Text::Integer(_) => return Err(fault.into()),
    };
    let count = start.get(at..at + bytes).ok_or(fault)?;
    let count = count.iter().rev().fold(0, |count, byte| count << 8 | u64::from(*byte));
    Ok(Some(count).filter(|count| bytes != 2 || *count < 0xffff))
}

fn nodes(encoding: Encoding, mut cursor: Cursor<'_>) -> Result<u64, Stop> {
    let raw = cursor.rest;
    let mut sum = 0_u64;
    for _ in 0..cursor.length()? {
        let count = match encoding {
            Encoding::ListQuicklist => header(&mut cursor, 8, 2)?,
            _ if cursor.length()? == 1 => {
                cursor.skip_text()?;
                Some(1)
            }
            _ => header(&mut cursor, 4, 2)?,
        };
        let Some(count) = count else {
            return Ok(counted(encoding, raw)?);
        };
        sum += count;
    }
    Ok(sum)
}

fn stream(encoding: Encoding, mut cursor: Cursor<'_>) -> Result<u64, Stop> {
    let mut layout = Layout::new(encoding);
    loop {
        let mut unit = cursor;
        match layout.next(&mut cursor)? {
            Some(Unit::StreamHead) => return unit.length(),
            Some(_) => {}
            None => return Err(Fault::Ends("a stream").into()),
        }
    }
}
