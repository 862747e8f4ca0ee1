//! The files that are read: which they are, and their contents one after the other.
//!
//! Places in them are counted as if they were one file, so that one number says how far a reader is.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::UNIX_EPOCH,
};

use protocol::rdb::{
    Event, Format, Limits, Reader, Record, Verdict,
    aof::{self, Manifest, ManifestError},
};
use serde::{Deserialize, Serialize};

use crate::{backup::reader::Stored, secrets::sha256};

/// Bytes that tell one file from another, beside its length and time.
const HEAD_BYTES: usize = 4096;

const READ_BYTES: usize = 256 << 10;

/// A file to be read.
#[derive(Clone, Debug)]
pub struct Input {
    pub place: Place,
    /// Bytes; 0 where that isn't known.
    pub bytes: u64,
    /// What changes when the file does.
    pub identity: String,
}

/// Where a file is.
#[derive(Clone, Debug)]
pub enum Place {
    /// It can be read once.
    Stdin,
    File(PathBuf),
    /// In a bucket.
    Stored(Box<Stored>),
}

/// Files that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("there is no RDB file and no append-only file in {}", path.display())]
    Nothing { path: PathBuf },
    #[error("cannot follow {}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{name} is neither an RDB file nor an append-only file")]
    Unknown { name: String },
    #[error("{name} is damaged")]
    Rdb { name: String, source: protocol::rdb::ReadError },
    #[error("{name} is damaged: its checksum is {computed:016x}, and it says {stored:016x}")]
    Checksum { name: String, stored: u64, computed: u64 },
    #[error("{name} is damaged")]
    Commands { name: String, source: aof::ReadError },
    #[error("{name} can't be read a second time")]
    Once { name: String },
}

/// Where reading can begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Which of the files.
    pub input: usize,
    /// Bytes before it in that file.
    pub offset: u64,
    pub db: u64,
    /// The version of the format, and whether it is Valkey's. None: at the beginning of the file.
    pub format: Option<(u16, bool)>,
    /// Bytes before it in all files.
    pub total: u64,
}

/// What reading goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Go,
    /// Read again from the last position before a big value.
    Back(Position),
}

/// Who is shown what is read.
pub trait Visitor {
    type Error: From<SourceError>;

    /// What of values is handed out whole.
    fn limits(&self) -> Limits;

    /// The next event of an RDB file, which may be changed; reading can begin again at an entry's
    /// position.
    fn event(&mut self, at: Position, event: &mut Event<'_>) -> Result<Next, Self::Error>;

    /// The next command of an append-only file.
    fn command(&mut self, at: Position, words: &[&[u8]]) -> Result<(), Self::Error>;
}

impl Input {
    /// The name to call it by.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Stdin => "stdin".to_owned(),
            Place::File(path) => path.display().to_string(),
            Place::Stored(stored) => stored.storage.shown(&stored.name),
        }
    }

    /// It can't be read a second time.
    pub fn is_once(&self) -> bool {
        matches!(self.place, Place::Stdin)
    }

    /// An object. `identity`: what changes when it does.
    pub fn stored(stored: Stored, identity: String) -> Self {
        Self { bytes: stored.bytes, place: Place::Stored(Box::new(stored)), identity }
    }

    fn open(path: &Path) -> Result<Self, SourceError> {
        let fault = |source| SourceError::File { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(fault)?;
        let meta = file.metadata().map_err(fault)?;
        let mut head = Vec::new();
        Read::by_ref(&mut file).take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(fault)?;
        let changed = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let changed = changed.unwrap_or_default().as_nanos();
        let identity = format!("{} {changed} {}", meta.len(), sha256(&head));
        Ok(Self { place: Place::File(path.to_owned()), bytes: meta.len(), identity })
    }
}

/// The files that these names mean: files, directories with RDB or append-only files, manifests of
/// append-only files, `-` for stdin.
pub fn find(names: &[PathBuf]) -> Result<Vec<Input>, SourceError> {
    let mut inputs = Vec::new();
    for name in names {
        if name.as_os_str() == "-" {
            inputs.push(Input { place: Place::Stdin, bytes: 0, identity: "stdin".to_owned() });
        } else if name.is_dir() {
            directory(name, &mut inputs)?;
        } else if has_extension(name, "manifest") {
            manifest(name, &mut inputs)?;
        } else {
            inputs.push(Input::open(name)?);
        }
    }
    Ok(inputs)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn directory(path: &Path, inputs: &mut Vec<Input>) -> Result<(), SourceError> {
    let fault = |source| SourceError::File { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in path.read_dir().map_err(fault)? {
        files.push(entry.map_err(fault)?.path());
    }
    files.sort();
    if let Some(found) = files.iter().find(|file| has_extension(file, "manifest")) {
        return manifest(found, inputs);
    }
    let before = inputs.len();
    for file in files.iter().filter(|file| has_extension(file, "rdb") || has_extension(file, "aof"))
    {
        inputs.push(Input::open(file)?);
    }
    if inputs.len() == before {
        return Err(SourceError::Nothing { path: path.to_owned() });
    }
    Ok(())
}

fn manifest(path: &Path, inputs: &mut Vec<Input>) -> Result<(), SourceError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SourceError::File { path: path.to_owned(), source })?;
    let manifest = Manifest::parse(&text)
        .map_err(|source| SourceError::Manifest { path: path.to_owned(), source })?;
    for file in manifest.files() {
        inputs.push(Input::open(&path.with_file_name(&file.name))?);
    }
    Ok(())
}

/// Shows the visitor everything from a position on. `read` tells how far it is meanwhile.
pub fn read<V: Visitor>(
    inputs: &[Input],
    from: Position,
    read: &AtomicU64,
    visitor: &mut V,
) -> Result<Position, V::Error> {
    let mut at = from;
    while let Some(input) = inputs.get(at.input) {
        let mut walk = Walk { input, at, started: at.total - at.offset, read, pass: 0 };
        let used = walk.run(visitor)?;
        at = Position {
            input: at.input + 1,
            offset: 0,
            db: 0,
            format: None,
            total: walk.started + used,
        };
    }
    Ok(at)
}

/// A file after its first half, and what was read of the second.
type Rest = (Box<dyn Read>, Vec<u8>);

/// One file being read.
struct Walk<'a> {
    input: &'a Input,
    at: Position,
    /// Bytes of the files before it.
    started: u64,
    read: &'a AtomicU64,
    /// Bytes that came.
    pass: u64,
}

impl Walk<'_> {
    /// Reads all of it; how many bytes that was.
    fn run<V: Visitor>(&mut self, visitor: &mut V) -> Result<u64, V::Error> {
        let mut file = self.open(self.at.offset)?;
        let mut head = Vec::new();
        if self.at.format.is_none() {
            Read::by_ref(&mut file).take(6).read_to_end(&mut head).map_err(|e| self.fault(e))?;
            self.count(head.len());
        }
        let rdb =
            self.at.format.is_some() || head.starts_with(b"REDIS") || head.starts_with(b"VALKEY");
        let mut rest = head;
        if rdb {
            (file, rest) = self.rdb(file, &rest, visitor)?;
        } else if !rest.is_empty() && !matches!(rest.first(), Some(b'*' | b'#')) {
            return Err(SourceError::Unknown { name: self.input.name() }.into());
        }
        self.commands(file, &rest, visitor)?;
        Ok(self.pass)
    }

    fn open(&mut self, offset: u64) -> Result<Box<dyn Read>, SourceError> {
        self.pass = offset;
        let path = match &self.input.place {
            Place::File(path) => path,
            Place::Stored(stored) => return Ok(Box::new(stored.open(offset))),
            Place::Stdin if offset == 0 => return Ok(Box::new(io::stdin().lock())),
            Place::Stdin => return Err(SourceError::Once { name: self.input.name() }),
        };
        let mut file = File::open(path).map_err(|e| self.fault(e))?;
        file.seek(SeekFrom::Start(offset)).map_err(|e| self.fault(e))?;
        Ok(Box::new(file))
    }

    fn fault(&self, source: io::Error) -> SourceError {
        SourceError::File { path: self.input.name().into(), source }
    }

    fn count(&mut self, bytes: usize) {
        self.pass += bytes as u64;
        self.read.store(self.started + self.pass, Ordering::Relaxed);
    }

    fn rdb<V: Visitor>(
        &mut self,
        mut file: Box<dyn Read>,
        head: &[u8],
        visitor: &mut V,
    ) -> Result<Rest, V::Error> {
        let mut reader = self.reader(visitor.limits());
        reader.feed(head);
        let input = self.input;
        let damaged = |source| V::Error::from(SourceError::Rdb { name: input.name(), source });
        while !reader.is_done() {
            let mut found = reader.next();
            let Record { offset, event } = match &mut found {
                Ok(Some(record)) => record,
                Ok(None) => {
                    let count = file.read(reader.space()).map_err(|e| self.fault(e))?;
                    if count == 0 {
                        reader.finish().map_err(damaged)?;
                    }
                    reader.filled(count);
                    self.count(count);
                    continue;
                }
                Err(source) => return Err(damaged(source.clone())),
            };
            self.at.offset = *offset;
            self.at.total = self.started + *offset;
            match event {
                Event::Header(format) => self.at.format = Some(packed(*format)),
                Event::SelectDb(db) => self.at.db = *db,
                Event::End(Verdict::Differs { stored, computed }) => {
                    let (stored, computed) = (*stored, *computed);
                    let name = self.input.name();
                    return Err(SourceError::Checksum { name, stored, computed }.into());
                }
                _ => {}
            }
            if let Next::Back(to) = visitor.event(self.at, event)? {
                self.at = to;
                file = self.open(to.offset)?;
                reader = self.reader(visitor.limits());
            }
        }
        let rest = reader.rest().to_vec();
        Ok((file, rest))
    }

    fn reader(&self, limits: Limits) -> Reader {
        match self.at.format {
            None => Reader::new(limits),
            Some((version, valkey)) => {
                let format = if valkey { Format::valkey(version) } else { Format::redis(version) };
                Reader::resume(limits, format, self.at.db, self.at.offset)
            }
        }
    }

    fn commands<V: Visitor>(
        &mut self,
        mut file: Box<dyn Read>,
        head: &[u8],
        visitor: &mut V,
    ) -> Result<(), V::Error> {
        let name = self.input.name();
        let mut reader = aof::Reader::new(self.pass - head.len() as u64, aof::COMMAND_BYTES_MAX);
        reader.feed(head);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            loop {
                let event = reader.next().map_err(|source| {
                    V::Error::from(SourceError::Commands { name: name.clone(), source })
                })?;
                let Some(event) = event else { break };
                if let aof::Event::Command(command) = event {
                    self.at.offset = command.offset;
                    self.at.total = self.started + command.offset;
                    let words: Vec<&[u8]> = command.arguments().collect();
                    visitor.command(self.at, &words)?;
                }
            }
            let count = file.read(&mut buffer).map_err(|e| self.fault(e))?;
            if count == 0 {
                break;
            }
            self.count(count);
            reader.feed(buffer.get(..count).unwrap_or_default());
        }
        Ok(())
    }
}

fn packed(format: Format) -> (u16, bool) {
    (format.version, format.brand == protocol::rdb::Brand::Valkey)
}
