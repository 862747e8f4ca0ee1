//! An RDB file that passes by: read, summed up and counted, with bounded memory.

use protocol::{
    SlotSet, key_slot,
    rdb::{DataType, Event, Limits, ReadError, Reader, Verdict},
};
use sha2::{Digest as _, Sha256};

use super::manifest::Tally;
use crate::secrets::hex;

/// Larger values are looked at in parts.
const WHOLE_BYTES_MAX: usize = 1 << 20;

/// A file that is no good.
#[derive(Debug, thiserror::Error)]
pub enum PassageError {
    #[error("the data is damaged or of an unknown kind")]
    Rdb(#[from] ReadError),
    #[error("the data is damaged: its checksum is {computed:016x}, and it says {stored:016x}")]
    Checksum { stored: u64, computed: u64 },
}

/// See the module.
#[derive(Debug)]
pub struct Passage {
    reader: Reader,
    sum: Sha256,
    bytes: u64,
    tally: Tally,
    format: String,
    /// What the parts belong to that come now.
    big: DataType,
    /// None: everything belongs here.
    slots: Option<SlotSet>,
    strangers: u64,
    importing: bool,
}

/// What passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
    pub format: String,
    pub tally: Tally,
    /// Keys of slots that don't belong here.
    pub strangers: u64,
    /// Slots were moving in while it was written.
    pub importing: bool,
}

impl Passage {
    /// `slots`: to which its keys should belong; empty: to any.
    pub fn new(slots: &SlotSet) -> Self {
        let limits = Limits { whole_bytes_max: WHOLE_BYTES_MAX, ..Limits::default() };
        Self {
            reader: Reader::new(limits),
            sum: Sha256::new(),
            bytes: 0,
            tally: Tally::default(),
            format: String::new(),
            big: DataType::String,
            slots: Some(slots.clone()).filter(|slots| !slots.is_empty()),
            strangers: 0,
            importing: false,
        }
    }

    /// The next bytes; how many of them belong to the file.
    pub fn add(&mut self, bytes: &[u8]) -> Result<usize, PassageError> {
        self.reader.feed(bytes);
        while let Some(record) = self.reader.next()? {
            match record.event {
                Event::Header(format) => self.format = format.to_string(),
                Event::Function(_) => self.tally.functions += 1,
                Event::SlotImport { .. } => self.importing = true,
                Event::Entry(entry) => {
                    let key = &entry.key;
                    let expiring = key.expire_at_ms.is_some();
                    let strange = is_strange(self.slots.as_ref(), &key.name);
                    let data_type = key.encoding.data_type();
                    let raw_bytes = entry.raw.len() as u64;
                    self.count(data_type, 1, raw_bytes, expiring, strange);
                }
                Event::Big(big) => {
                    let key = &big.key;
                    let expiring = key.expire_at_ms.is_some();
                    let strange = is_strange(self.slots.as_ref(), &key.name);
                    let data_type = key.encoding.data_type();
                    self.big = data_type;
                    self.count(data_type, 1, 0, expiring, strange);
                }
                Event::Part(part) => {
                    let (protocol::rdb::Part::Text(part) | protocol::rdb::Part::Raw(part)) = part;
                    let part_bytes = part.len() as u64;
                    self.count(self.big, 0, part_bytes, false, false);
                }
                Event::End(Verdict::Differs { stored, computed }) => {
                    return Err(PassageError::Checksum { stored, computed });
                }
                _ => {}
            }
        }
        let beyond = if self.reader.is_done() { self.reader.rest().len() } else { 0 };
        let used = bytes.len().saturating_sub(beyond);
        self.sum.update(bytes.get(..used).unwrap_or_default());
        self.bytes += used as u64;
        Ok(used)
    }

    fn count(&mut self, data_type: DataType, keys: u64, bytes: u64, expiring: bool, strange: bool) {
        let counts = &mut self.tally.types;
        // Types are few, and looked up for each key.
        let count = match counts.get_mut(data_type.name()) {
            Some(count) => count,
            None => counts.entry(data_type.name().to_owned()).or_default(),
        };
        count.keys += keys;
        count.bytes += bytes;
        self.tally.expiring += u64::from(expiring);
        self.strangers += u64::from(strange);
    }

    /// Has its last byte passed?
    pub fn is_done(&self) -> bool {
        self.reader.is_done()
    }

    /// Keys that have passed so far.
    pub fn keys(&self) -> u64 {
        self.tally.keys()
    }

    /// There are no more bytes.
    pub fn finish(self) -> Result<Passed, PassageError> {
        self.reader.finish()?;
        Ok(Passed {
            bytes: self.bytes,
            sha256: hex(&self.sum.finalize()),
            format: self.format,
            tally: self.tally,
            strangers: self.strangers,
            importing: self.importing,
        })
    }
}

fn is_strange(slots: Option<&SlotSet>, name: &[u8]) -> bool {
    slots.is_some_and(|slots| !slots.contains(key_slot(name)))
}

#[cfg(test)]
mod tests {
    use protocol::rdb::{Encoding, Format, Key, Writer};

    use super::*;
    use crate::backup::manifest::Count;

    fn file() -> Vec<u8> {
        let mut writer = Writer::new(Format::redis(9));
        writer.select_db(0);
        // Slots 12182 and 5061.
        writer.entry(&Key::new(0, b"foo", Encoding::String), b"\x05hello");
        let ending = Key { expire_at_ms: Some(5), ..Key::new(0, b"bar", Encoding::Set) };
        writer.entry(&ending, b"\x01\x01a");
        writer.finish()
    }

    #[test]
    fn what_passes_is_counted() {
        let check = |slots: &SlotSet, piece: usize, strangers| {
            let mut file = file();
            let length = file.len();
            let mut passage = Passage::new(slots);
            file.extend_from_slice(b"what follows it");
            let mut used = 0;
            for piece in file.chunks(piece) {
                used += passage.add(piece).unwrap();
            }
            assert_eq!(used, length);
            let passed = passage.finish().unwrap();
            assert_eq!(passed.bytes, length as u64);
            assert_eq!(passed.sha256, crate::secrets::sha256(&file[..length]));
            assert_eq!(passed.format, "REDIS0009");
            assert_eq!((passed.tally.keys(), passed.tally.expiring), (2, 1));
            assert_eq!(passed.tally.types["set"], Count { keys: 1, bytes: 3 });
            assert_eq!(passed.strangers, strangers, "{slots}");
        };
        check(&SlotSet::new(), 1_000, 0);
        check(&SlotSet::full(), 1, 0);
        check(&SlotSet::range(0, 5_061), 7, 1);
        check(&SlotSet::range(0, 0), 1_000, 2);
    }

    #[test]
    fn damage_is_seen() {
        let mut flipped = file();
        // In a key's value: only the checksum tells.
        let at = flipped.windows(5).position(|window| window == b"hello").unwrap();
        flipped[at] = b'j';
        let error = Passage::new(&SlotSet::new()).add(&flipped).unwrap_err();
        assert!(matches!(error, PassageError::Checksum { .. }), "{error}");
        let mut passage = Passage::new(&SlotSet::new());
        passage.add(&file()[..20]).unwrap();
        assert!(passage.finish().is_err());
    }
}
