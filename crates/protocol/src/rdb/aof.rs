//! Append-only files: commands as clients send them, after an RDB file or alone, and the manifest of
//! those that have several parts.
//!
//! A part whose name ends in `.rdb` is an RDB file, and so is the first half of a single file that
//! begins with its magic: read it with a [`Reader`](super::Reader), whose
//! [`rest`](super::Reader::rest) goes on here.

use std::ops::Range;

/// Bytes of the longest command that engines write: they take strings of 512 MiB.
pub const COMMAND_BYTES_MAX: usize = 513 << 20;

/// A command and where it begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Command<'a> {
    /// Bytes before it in the input.
    pub offset: u64,
    buffer: &'a [u8],
    arguments: &'a [Range<usize>],
}

impl<'a> Command<'a> {
    /// The command's name and its arguments; never none.
    pub fn arguments(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let buffer = self.buffer;
        self.arguments.iter().map(|range| buffer.get(range.clone()).unwrap_or_default())
    }
}

/// A part of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Command(Command<'a>),
    /// `#TS:1700000000`: what follows was written at that second or later
    /// (`aof-timestamp-enabled`).
    Time {
        offset: u64,
        seconds: u64,
    },
}

/// The input is no append-only file from here on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: expected {expected}")]
pub struct ReadError {
    pub offset: u64,
    pub expected: &'static str,
}

/// Reads the commands of an append-only file that comes in pieces.
///
/// Memory: about twice the longest command, which is at most as long as said in [`Reader::new`].
#[derive(Debug)]
pub struct Reader {
    command_bytes_max: usize,
    buffer: Vec<u8>,
    start: usize,
    /// Bytes before `start` in the input.
    offset: u64,
    /// The arguments of the command at `start` that are there, counted from `start`.
    arguments: Vec<Range<usize>>,
    /// How many it has.
    count: Option<usize>,
    /// Up to where it was read, counted from `start`.
    read: usize,
    failed: Option<ReadError>,
}

/// Arguments of one command.
const ARGUMENTS_MAX: usize = 1 << 24;
/// The longest line: a count, a length, a time.
const LINE_MAX: usize = 64;
/// Lines beginning with it are notes.
const NOTE: u8 = b'#';

impl Reader {
    /// For input that begins `offset` bytes after the beginning of the file.
    pub fn new(offset: u64, command_bytes_max: usize) -> Self {
        Self {
            command_bytes_max,
            buffer: Vec::new(),
            start: 0,
            offset,
            arguments: Vec::new(),
            count: None,
            read: 0,
            failed: None,
        }
    }

    /// Adds bytes. Read all events before adding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start * 2 >= self.buffer.len() {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event; None until more bytes come. After an error, that error for ever.
    #[expect(clippy::should_implement_trait, reason = "events borrow from the reader")]
    pub fn next(&mut self) -> Result<Option<Event<'_>>, ReadError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let (found, offset, from) = loop {
            let found = match self.step() {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(expected) => {
                    let error = ReadError { offset: self.offset + self.read as u64, expected };
                    self.failed = Some(error.clone());
                    return Err(error);
                }
            };
            let before = (self.offset, self.start);
            self.start += self.read;
            self.offset += self.read as u64;
            self.read = 0;
            self.count = None;
            match found {
                Found::Note(None) => {}
                found => break (found, before.0, before.1),
            }
        };
        Ok(Some(match found {
            Found::Note(seconds) => Event::Time { offset, seconds: seconds.unwrap_or_default() },
            Found::Command => {
                let buffer = self.buffer.get(from..).unwrap_or_default();
                Event::Command(Command { offset, buffer, arguments: &self.arguments })
            }
        }))
    }

    /// The input has no more bytes. None where it ended with a whole command; else where the one
    /// begins that is cut off, which engines take for a crash while it was written
    /// (`aof-load-truncated`).
    pub fn finish(&self) -> Option<u64> {
        (self.start < self.buffer.len()).then_some(self.offset)
    }

    /// Bytes up to the end of the last event.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads on in the command or note at `start`.
    fn step(&mut self) -> Result<Option<Found>, &'static str> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let count = if let Some(count) = self.count {
            count
        } else {
            let Some(&sign) = rest.first() else { return Ok(None) };
            let Some((line, end)) = line(rest, 0)? else { return Ok(None) };
            self.read = end;
            if sign == NOTE {
                return Ok(Some(Found::Note(line.strip_prefix(b"#TS:").and_then(number))));
            }
            let count = line.strip_prefix(b"*").and_then(number);
            let count = count.and_then(|count| usize::try_from(count).ok());
            let count = count.filter(|count| (1..=ARGUMENTS_MAX).contains(count));
            self.arguments.clear();
            *self.count.insert(count.ok_or("a command: `*` and a count")?)
        };
        while self.arguments.len() < count {
            let Some((head, start)) = line(rest, self.read)? else { return Ok(None) };
            let length = head.strip_prefix(b"$").and_then(number);
            let length = length.and_then(|length| usize::try_from(length).ok());
            let length = length.ok_or("an argument: `$` and a length")?;
            let end = start.saturating_add(length);
            if end > self.command_bytes_max {
                return Err("a command within the limit");
            }
            match rest.get(end..end + 2) {
                None => return Ok(None),
                Some(b"\r\n") => {}
                Some(_) => return Err("the end of an argument"),
            }
            self.arguments.push(start..end);
            self.read = end + 2;
        }
        Ok(Some(Found::Command))
    }
}

enum Found {
    Command,
    /// The time it says, if it says one.
    Note(Option<u64>),
}

/// The line that begins at `from`, and where the next one does; None where it is not all there.
fn line(bytes: &[u8], from: usize) -> Result<Option<(&[u8], usize)>, &'static str> {
    let rest = bytes.get(from..).unwrap_or_default();
    let Some(length) = rest.iter().take(LINE_MAX).position(|byte| *byte == b'\n') else {
        return if rest.len() < LINE_MAX { Ok(None) } else { Err("a line with a number") };
    };
    let line = rest.get(..length).unwrap_or_default();
    Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), from + length + 1)))
}

fn number(digits: &[u8]) -> Option<u64> {
    let only_digits = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| only_digits)?.parse().ok()
}

/// Which files an append-only directory consists of, in the order of their reading.
///
/// Source: `aof.c`, from Redis 7.0: a line a file, `file appendonly.aof.1.base.rdb seq 1 type b`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Everything up to some time; missing where nothing was ever rewritten.
    pub base: Option<ManifestFile>,
    /// What came later, in order.
    pub increments: Vec<ManifestFile>,
    /// Not needed any more; to be deleted.
    pub history: Vec<ManifestFile>,
}

/// A file of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// In the manifest's own directory: never a path.
    pub name: String,
    pub sequence: u64,
}

/// A manifest that can't be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the manifest: {problem}")]
pub struct ManifestError {
    /// From 1.
    pub line: usize,
    pub problem: &'static str,
}

impl Manifest {
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut manifest = Self::default();
        for (index, line) in text.lines().enumerate() {
            let wrong = |problem| ManifestError { line: index + 1, problem };
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let words = crate::conf::parse_line(line).ok().flatten();
            let words = words.ok_or(wrong("not pairs of names and values"))?;
            let mut words = std::iter::once(words.name).chain(words.args);
            let (mut name, mut sequence, mut kind) = (None, None, None);
            while let Some(word) = words.next() {
                let value = words.next().ok_or(wrong("a name without a value"))?;
                match &*word {
                    "file" => name = Some(value),
                    "seq" => sequence = value.parse().ok(),
                    "type" => kind = Some(value),
                    // Later versions say more.
                    _ => {}
                }
            }
            let name = name.ok_or(wrong("no file"))?;
            if name.is_empty() || name == ".." || name.contains('/') {
                return Err(wrong("a file outside the directory"));
            }
            let sequence = sequence.ok_or(wrong("no sequence number"))?;
            let file = ManifestFile { name, sequence };
            match kind.as_deref() {
                Some("b") if manifest.base.is_some() => return Err(wrong("a second base file")),
                Some("b") => manifest.base = Some(file),
                Some("i")
                    if manifest.increments.last().is_some_and(|last| last.sequence >= sequence) =>
                {
                    return Err(wrong("increments out of order"));
                }
                Some("i") => manifest.increments.push(file),
                Some("h") => manifest.history.push(file),
                _ => return Err(wrong("a type that is not b, i or h")),
            }
        }
        Ok(manifest)
    }

    /// The files to read, in order.
    pub fn files(&self) -> impl Iterator<Item = &ManifestFile> {
        self.base.iter().chain(&self.increments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Events as text, in pieces of each size.
    fn check(input: &[u8], expected: &[&str], end: Result<Option<u64>, u64>) {
        for piece in [1, 2, 3, 7, input.len().max(1)] {
            let mut reader = Reader::new(100, 1000);
            let mut found = Vec::new();
            let mut failed = None;
            for bytes in input.chunks(piece) {
                reader.feed(bytes);
                loop {
                    match reader.next() {
                        Ok(None) => break,
                        Ok(Some(Event::Time { offset, seconds })) => {
                            found.push(format!("{offset} time {seconds}"));
                        }
                        Ok(Some(Event::Command(command))) => {
                            let words = command.arguments().collect::<Vec<_>>().join(&b' ');
                            let words = String::from_utf8(words).unwrap();
                            found.push(format!("{} {words}", command.offset));
                        }
                        Err(error) => {
                            failed = Some(error.offset);
                            break;
                        }
                    }
                }
            }
            assert_eq!(found, expected, "in pieces of {piece}");
            assert_eq!(failed.map_or(Ok(reader.finish()), Err), end, "in pieces of {piece}");
        }
    }

    #[test]
    fn commands() {
        check(b"", &[], Ok(None));
        check(b"*1\r\n$4\r\nPING\r\n", &["100 PING"], Ok(None));
        check(
            b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n#TS:17\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n# x\r\n",
            &["100 SELECT 0", "123 time 17", "131 SET k a\r\nb"],
            Ok(None),
        );
        check(b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nEC", &["100 PING"], Ok(Some(114)));
        check(b"*0\r\n", &[], Err(104));
        check(b"*x\r\n", &[], Err(104));
        check(b"*1\r\n+OK\r\n", &[], Err(104));
        check(b"*1\r\n$4\r\nPINGxx", &[], Err(104));
        check(b"*1\r\n$5000\r\n", &[], Err(104));
        check(b"*99999999999\r\n", &[], Err(114));
    }

    #[test]
    fn manifests() {
        let check = |text: &str, expected: Result<&[&str], usize>| {
            let found = Manifest::parse(text);
            let names = found
                .as_ref()
                .map(|manifest| manifest.files().map(|file| &*file.name).collect::<Vec<_>>());
            assert_eq!(names.as_deref().map_err(|error| error.line), expected, "{text}");
        };
        check("", Ok(&[]));
        check(
            "file a.1.base.rdb seq 1 type b\nfile a.1.incr.aof seq 1 type i startoffset 0\nfile a.2.incr.aof seq 2 type i\n",
            Ok(&["a.1.base.rdb", "a.1.incr.aof", "a.2.incr.aof"]),
        );
        check("# note\nfile \"a b\" seq 1 type i\nfile old seq 1 type h\n", Ok(&["a b"]));
        check("file ../a seq 1 type b\n", Err(1));
        check("file a seq 1 type b\nfile b seq 2 type b\n", Err(2));
        check("file a seq 2 type i\nfile b seq 1 type i\n", Err(2));
        check("file a seq 1\n", Err(1));
        check("file a type b\n", Err(1));
        check("seq 1 type b\n", Err(1));
        check("file a seq 1 type\n", Err(1));
    }
}
