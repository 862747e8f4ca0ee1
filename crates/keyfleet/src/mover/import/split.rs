//! Files into one for each shard of a new cluster, which its servers load at their start: that costs
//! them about half of what as many RESTOREs cost.
//!
//! A server that finds something in its file that it can't load doesn't start. So what it judges itself goes
//! into a *rest*, files in the sources' own formats that are imported once it runs: functions, values of
//! modules, values that only commands make or that are large and need another form, keys that may be
//! there twice, and members that end on their own.
//!
//! Memory: a value up to the import's limit for whole ones, and a buffer for each shard.

use std::{
    borrow::Cow,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use protocol::{
    Engine, SLOT_COUNT, Slot, SlotSet, key_slot,
    rdb::{
        Big, Carried, DataType, Entry, Event, Format, Key, Limits, Part, Writer, newest_format,
        payload_format, transcode,
    },
};

use super::{
    ImportError, Watch,
    carry::WHOLE_BYTES_MAX,
    filter::Filter,
    report::{Tally, Way},
    sieve::{Sieve, name_lost},
    source::{self, Input, Next, Position, SourceError, Visitor},
};

/// Bytes that wait for all files together, and for each at most and at least.
const WAITING_BYTES_MAX: usize = 8 << 20;
const FILE_BYTES_MAX: usize = 256 << 10;
const FILE_BYTES_MIN: usize = 16 << 10;

/// KeyDB's note before each of its keys.
const KEYDB_NOTE: &[u8] = b"mvcc-tstamp";

/// Files that are to be split.
#[derive(Debug)]
pub struct Job {
    pub inputs: Vec<Input>,
    /// For each of the inputs the slots that it is the source of. Keys of other slots may be in two
    /// files. Empty: all.
    pub slots: Vec<SlotSet>,
    /// About how many keys the inputs have.
    pub keys: u64,
    pub filter: Filter,
    /// What the new servers are.
    pub engine: Engine,
    /// For each shard the file that is to be written, and its slots: together all of them.
    pub shards: Vec<(PathBuf, SlotSet)>,
    /// The directory for the rest, which exists.
    pub rest: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Split {
    /// Of what is in the shards' files; of the rest, what was left out.
    pub tally: Tally,
    /// Of each shard, in the order of the job.
    pub shards: Vec<Content>,
    /// The rest's files; none where there is none.
    pub rest: Vec<PathBuf>,
}

/// Keys of a file, and how many of them end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub keys: u64,
    pub expiring: u64,
}

/// Writes the shards' files and those of the rest; they are on disk for good when it returns. For a thread
/// that may block, in the runtime.
pub fn split(job: &Job, watch: &Watch) -> Result<Split, ImportError> {
    watch.enter(super::Phase::Splitting);
    let mut splitter = Splitter::new(job, watch)?;
    source::read(&job.inputs, Position::default(), &watch.read, &mut splitter)?;
    splitter.finish()
}

/// A file that is being written.
struct Output {
    path: PathBuf,
    file: File,
    writer: Writer,
    /// Bytes that may wait.
    waiting_max: usize,
}

impl Output {
    fn create(path: &Path, format: Format, waiting_max: usize) -> Result<Self, ImportError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| unwritten(path, error))?;
        Ok(Self { path: path.to_owned(), file, writer: Writer::new(format), waiting_max })
    }

    /// Writes what waits, where that is much.
    fn relieve(&mut self) -> Result<(), ImportError> {
        if self.writer.bytes().len() < self.waiting_max {
            return Ok(());
        }
        self.file.write_all(self.writer.bytes()).map_err(|error| unwritten(&self.path, error))?;
        self.writer.clear();
        Ok(())
    }

    /// The next bytes of the last key's value.
    fn raw(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        for piece in bytes.chunks(self.waiting_max) {
            self.writer.raw(piece);
            self.relieve()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<PathBuf, ImportError> {
        let last = self.writer.finish();
        let written = self.file.write_all(&last).and_then(|()| self.file.sync_all());
        written.map_err(|error| unwritten(&self.path, error))?;
        Ok(self.path)
    }
}

fn unwritten(path: &Path, source: io::Error) -> ImportError {
    ImportError::Write { path: path.to_owned(), source }
}

/// Where the parts of a large value go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Shard { shard: usize, slot: Slot, data_type: DataType },
    Rest,
    Nowhere,
}

struct Splitter<'a> {
    job: &'a Job,
    sieve: Sieve<'a>,
    /// Each slot's shard.
    owners: Vec<usize>,
    shards: Vec<(Output, Content)>,
    /// The input's format.
    format: Format,
    rest: Option<Rest>,
    /// The rest's files that are whole.
    finished: Vec<PathBuf>,
    tally: Tally,
    /// Where the value that comes in parts goes, and how many bytes came.
    place: Place,
    bytes: u64,
    /// The input is KeyDB's: only what comes after a key says whether members of it end.
    keydb: bool,
    /// A key that waits for what comes after it.
    held: Option<(Position, Key<'static>, Vec<u8>)>,
    /// The last key is in the rest.
    in_rest: bool,
}

/// The rest of an input.
struct Rest {
    input: usize,
    db: u64,
    output: Output,
}

impl<'a> Splitter<'a> {
    fn new(job: &'a Job, watch: &'a Watch) -> Result<Self, ImportError> {
        let waiting_max = WAITING_BYTES_MAX / job.shards.len().max(1);
        let waiting_max = waiting_max.clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let mut owners = vec![0; usize::from(SLOT_COUNT)];
        let mut shards = Vec::new();
        for (number, (path, slots)) in job.shards.iter().enumerate() {
            for slot in slots.iter() {
                if let Some(owner) = owners.get_mut(usize::from(slot.number())) {
                    *owner = number;
                }
            }
            let mut output = Output::create(path, newest_format(&job.engine), waiting_max)?;
            output.writer.select_db(0);
            // Room that is made at once needn't be made again and again.
            let share = job.keys * slots.len() as u64 / u64::from(SLOT_COUNT);
            output.writer.resize_db(share, 0);
            shards.push((output, Content::default()));
        }
        Ok(Self {
            job,
            sieve: Sieve::new(&job.filter, true, watch),
            owners,
            shards,
            format: newest_format(&job.engine),
            rest: None,
            finished: Vec::new(),
            tally: Tally::default(),
            place: Place::Nowhere,
            bytes: 0,
            keydb: false,
            held: None,
            in_rest: false,
        })
    }

    fn finish(mut self) -> Result<Split, ImportError> {
        self.release()?;
        self.end_rest()?;
        let mut contents = Vec::new();
        for (output, content) in self.shards {
            output.finish()?;
            contents.push(content);
        }
        Ok(Split { tally: self.tally, shards: contents, rest: self.finished })
    }

    fn end_rest(&mut self) -> Result<(), ImportError> {
        if let Some(rest) = self.rest.take() {
            self.finished.push(rest.output.finish()?);
        }
        Ok(())
    }

    /// The rest of the input that is read.
    fn rest(&mut self, at: Position) -> Result<&mut Rest, ImportError> {
        if self.rest.as_ref().is_some_and(|rest| rest.input != at.input) {
            self.end_rest()?;
        }
        let rest = if let Some(rest) = self.rest.take() {
            rest
        } else {
            let path = self.job.rest.join(format!("{}.rdb", at.input));
            let output = Output::create(&path, self.format, FILE_BYTES_MAX)?;
            Rest { input: at.input, db: 0, output }
        };
        Ok(self.rest.insert(rest))
    }

    /// Puts a key into the rest; its value follows.
    fn rest_key(&mut self, at: Position, key: &Key<'_>) -> Result<&mut Output, ImportError> {
        self.in_rest = true;
        let rest = self.rest(at)?;
        if rest.db != key.db {
            rest.db = key.db;
            rest.output.writer.select_db(key.db);
        }
        rest.output.writer.key(key);
        Ok(&mut rest.output)
    }

    /// May a server be shown the key before it runs?
    fn is_plain(&self, at: Position, key: &Key<'_>, slot: Slot) -> bool {
        let own =
            self.job.slots.get(at.input).is_none_or(|own| own.is_empty() || own.contains(slot));
        own && !matches!(key.encoding.data_type(), DataType::Module | DataType::Cron)
    }

    fn entry(&mut self, at: Position, entry: &Entry<'_>) -> Result<(), ImportError> {
        let Entry { key, raw } = entry;
        self.in_rest = false;
        if !self.sieve.takes(key, raw.len() as u64, &mut self.tally) {
            return Ok(());
        }
        let slot = key_slot(&key.name);
        let carried = if self.is_plain(at, key, slot) {
            transcode(key.encoding, raw, &self.job.engine)
        } else {
            Ok(Carried::Commands)
        };
        match carried {
            Ok(Carried::Payload { encoding, raw: value, lost, .. }) => {
                name_lost(key, lost, &mut self.tally.troubles);
                let way = if encoding == key.encoding { Way::Raw } else { Way::Repacked };
                self.tally.count(key.encoding.data_type(), slot, raw.len() as u64, way);
                let shard = self.owner(slot);
                if let Some(output) = self.key(shard, key, encoding) {
                    output.raw(&value)?;
                }
            }
            Ok(Carried::Commands) => self.rest_key(at, key)?.raw(raw)?,
            Ok(Carried::Impossible(why)) => self.tally.troubles.add(&key.name, why),
            Err(fault) => self.tally.troubles.add(&key.name, format!("is damaged: {fault}")),
        }
        Ok(())
    }

    fn owner(&self, slot: Slot) -> usize {
        self.owners.get(usize::from(slot.number())).copied().unwrap_or_default()
    }

    /// Puts a key into a shard's file; its value follows.
    fn key(
        &mut self,
        shard: usize,
        key: &Key<'_>,
        encoding: protocol::rdb::Encoding,
    ) -> Option<&mut Output> {
        let (output, content) = self.shards.get_mut(shard)?;
        content.keys += 1;
        content.expiring += u64::from(key.expire_at_ms.is_some());
        output.writer.key(&Key { encoding, name: Cow::Borrowed(&*key.name), ..key.clone() });
        Some(output)
    }

    fn begin(&mut self, at: Position, big: &Big<'_>) -> Result<(), ImportError> {
        let key = &big.key;
        self.in_rest = false;
        self.bytes = big.text_bytes.unwrap_or_default();
        self.place = Place::Nowhere;
        let bytes = big.text_bytes.unwrap_or(WHOLE_BYTES_MAX as u64 + 1);
        if !self.sieve.takes(key, bytes, &mut self.tally) {
            return Ok(());
        }
        let slot = key_slot(&key.name);
        let as_it_is = payload_format(&self.job.engine, key.encoding).is_some();
        let output = if as_it_is && self.is_plain(at, key, slot) && !self.keydb {
            let shard = self.owner(slot);
            let data_type = key.encoding.data_type();
            self.place = Place::Shard { shard, slot, data_type };
            self.key(shard, key, key.encoding)
        } else {
            self.place = Place::Rest;
            Some(self.rest_key(at, key)?)
        };
        if let (Some(bytes), Some(output)) = (big.text_bytes, output) {
            output.writer.text_length(bytes);
        }
        Ok(())
    }

    fn part(&mut self, part: &Part<'_>) -> Result<(), ImportError> {
        if let Part::Raw(raw) = part {
            self.bytes += raw.len() as u64;
        }
        let (Part::Text(bytes) | Part::Raw(bytes)) = part;
        match self.place {
            Place::Shard { shard, .. } => {
                self.shards.get_mut(shard).map_or(Ok(()), |(output, _)| output.raw(bytes))
            }
            Place::Rest => self.rest.as_mut().map_or(Ok(()), |rest| rest.output.raw(bytes)),
            Place::Nowhere => Ok(()),
        }
    }

    fn end_big(&mut self) {
        if let Place::Shard { slot, data_type, .. } = self.place {
            self.tally.count(data_type, slot, self.bytes, Way::Raw);
        }
        self.place = Place::Nowhere;
    }

    /// A member of the last key ends: the key belongs to the rest.
    fn member_expires(&mut self, member: &[u8], expire_at_ms: u64) -> Result<(), ImportError> {
        if let Some((at, key, raw)) = self.held.take() {
            self.in_rest = false;
            if self.sieve.takes(&key, raw.len() as u64, &mut self.tally) {
                self.rest_key(at, &key)?.raw(&raw)?;
            }
        }
        if let Some(rest) = self.rest.as_mut().filter(|_| self.in_rest) {
            let time = expire_at_ms.to_string();
            rest.output.writer.aux(b"keydb-subexpire-key", member);
            rest.output.writer.aux(b"keydb-subexpire-when", time.as_bytes());
            rest.output.relieve()?;
        }
        Ok(())
    }

    fn function(&mut self, at: Position, code: &[u8]) -> Result<(), ImportError> {
        let output = &mut self.rest(at)?.output;
        output.writer.function(code);
        output.relieve()
    }

    /// Does with the key that waited what is done with keys of which no member ends.
    fn release(&mut self) -> Result<(), ImportError> {
        let Some((at, key, raw)) = self.held.take() else { return Ok(()) };
        self.entry(at, &Entry { key, raw: &raw })
    }
}

impl Visitor for Splitter<'_> {
    type Error = ImportError;

    fn limits(&self) -> Limits {
        Limits { whole_bytes_max: WHOLE_BYTES_MAX, ..Limits::default() }
    }

    fn event(&mut self, at: Position, event: &mut Event<'_>) -> Result<Next, ImportError> {
        if !matches!(event, Event::MemberExpires { .. }) {
            self.release()?;
        }
        match event {
            Event::Header(format) => (self.format, self.keydb) = (*format, false),
            Event::Aux { name, .. } if **name == *KEYDB_NOTE => self.keydb = true,
            Event::Entry(Entry { key, raw }) if self.keydb => {
                let name = Cow::Owned(key.name.to_vec());
                self.held = Some((at, Key { name, ..key.clone() }, raw.to_vec()));
            }
            Event::Entry(entry) => self.entry(at, entry)?,
            Event::Big(big) => self.begin(at, big)?,
            Event::Part(part) => self.part(part)?,
            Event::BigEnd => self.end_big(),
            Event::MemberExpires { member, expire_at_ms } => {
                self.member_expires(member, *expire_at_ms)?;
            }
            Event::Function(code) => self.function(at, code)?,
            _ => {}
        }
        Ok(Next::Go)
    }

    /// No backup has any.
    fn command(&mut self, at: Position, _: &[&[u8]]) -> Result<(), ImportError> {
        let name = self.job.inputs.get(at.input).map(Input::name).unwrap_or_default();
        Err(SourceError::Unknown { name }.into())
    }
}

#[cfg(test)]
mod tests;
