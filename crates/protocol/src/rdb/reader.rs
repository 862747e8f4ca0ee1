//! The reader of RDB files.

use super::{
    Format, Limits, ReadError, Record,
    parser::{Parser, Step, Sum},
};

/// How much room [`Reader::space`] offers at least.
const SPACE_MIN: usize = 256 << 10;

/// Reads an RDB file that comes in pieces, from a file, a socket, or anything else.
///
/// ```
/// use protocol::rdb::{Event, Limits, Reader};
///
/// let mut file: &[u8] = b"REDIS0003\xfe\x00\x00\x03key\x05value\xff";
/// let mut reader = Reader::new(Limits::default());
/// let mut keys = Vec::new();
/// while !reader.is_done() {
///     match reader.next()? {
///         Some(record) => {
///             if let Event::Entry(entry) = record.event {
///                 keys.push(entry.key.name.into_owned());
///             }
///         }
///         None => {
///             let count = std::io::Read::read(&mut file, reader.space())?;
///             if count == 0 {
///                 reader.finish()?;
///             }
///             reader.filled(count);
///         }
///     }
/// }
/// assert_eq!(keys, [b"key"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Memory: what [`Limits`] say, whatever the input says of itself. Room is made only as bytes come, so
/// a length that lies costs nothing.
#[derive(Debug)]
pub struct Reader {
    parser: Parser,
    sum: Sum,
    buffer: Vec<u8>,
    /// What is not read yet.
    start: usize,
    end: usize,
    missing: usize,
    failed: Option<ReadError>,
}

impl Reader {
    pub fn new(limits: Limits) -> Self {
        Self::with(Parser::new(limits))
    }

    /// Goes on at an offset where an entry began ([`Record::offset`]) in a file of this format, in
    /// this database. The checksum can't be told then.
    pub fn resume(limits: Limits, format: Format, db: u64, offset: u64) -> Self {
        Self::with(Parser::resume(limits, format, db, offset))
    }

    fn with(parser: Parser) -> Self {
        let sum = Sum::default();
        Self { parser, sum, buffer: Vec::new(), start: 0, end: 0, missing: 0, failed: None }
    }

    /// Room for the next bytes of the input, never empty; [`Reader::filled`] says how many came.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && self.end - self.start <= self.start {
            self.sum.add_upto(self.start, &self.buffer);
            self.sum.dropped(self.start);
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        // As much as there is already at most: what the input says may be a lie.
        let room = self.missing.min(self.end - self.start).max(SPACE_MIN);
        if self.buffer.len() - self.end < room {
            self.buffer.resize(self.end + room, 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were put into [`Reader::space`].
    pub fn filled(&mut self, count: usize) {
        self.end = self.buffer.len().min(self.end + count);
    }

    /// Adds a copy of the next bytes of the input. [`Reader::space`] saves the copy.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = space.len().min(bytes.len());
            let (now, later) = bytes.split_at(count);
            if let Some(space) = space.get_mut(..count) {
                space.copy_from_slice(now);
            }
            self.filled(count);
            bytes = later;
        }
    }

    /// The next event; None until more bytes come, and after the last. After an error, that error
    /// for ever.
    #[expect(clippy::should_implement_trait, reason = "events borrow from the reader")]
    pub fn next(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        let mut found = match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(None),
        };
        if found.is_ok() {
            let window = self.buffer.get(..self.end).unwrap_or_default();
            match self.parser.step(window, self.start, &mut self.sum, &mut found) {
                Ok(Step { used, missing }) => {
                    self.start += used;
                    self.missing = missing;
                }
                Err(error) => {
                    self.failed = Some(error.clone());
                    found = Err(error);
                }
            }
        }
        found
    }

    /// The input has no more bytes: an error where it should have.
    pub fn finish(&self) -> Result<(), ReadError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None if self.is_done() => Ok(()),
            None => Err(self.parser.ends(self.rest())),
        }
    }

    /// Has the last event been handed out?
    pub fn is_done(&self) -> bool {
        self.parser.is_done()
    }

    /// Bytes that were read so far.
    pub fn offset(&self) -> u64 {
        self.parser.offset()
    }

    /// What was fed and not read. After the last event: what follows the file, such as the commands
    /// of an append-only file or of a primary.
    pub fn rest(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}
