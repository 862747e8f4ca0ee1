//! Shows what is read to the load: each key as one RESTORE.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use protocol::{
    Engine, EngineKind, Slot, Value as Reply, Version, key_slot,
    rdb::{
        Big, Carried, DataType, Encoding, Entry, Event, Fault, Item, Items, Key, Limits, Lost,
        Part, encode, payload_format, transcode,
    },
    resp::encode_command,
};
use tokio::runtime::Handle;

use super::{
    Existing, ImportError, Job, Watch,
    big::{Build, Built, ends_fields},
    filter::Bound,
    locked, open,
    report::{Tally, Troubles, Way},
    restore::{Payload, write_restore},
    sieve::{Sieve, name_lost},
    source::{Next, Position, Visitor},
    state::Saved,
};
use crate::mover::{
    load::{BusyKeys, Direct, Feeder, Loader, Progress, Target},
    replay::LATER_MS,
};

/// Values above it are sent in pieces, each of about so much at most.
pub(super) const WHOLE_BYTES_MAX: usize = 1 << 20;

/// Bytes of input between two positions that may be saved.
const POSITION_BYTES: u64 = 1 << 20;

/// How often a large value is begun anew, because servers changed while it was sent.
const ATTEMPTS_MAX: u32 = 20;

/// See the module.
pub(super) struct Carrier<'a> {
    pub job: &'a Job,
    pub runtime: Handle,
    pub watch: &'a Watch,
    pub engine: Engine,
    pub loader: Arc<Loader>,
    pub feeder: Feeder,
    pub direct: Direct,
    pub tally: Tally,
    /// The target's database that the load is for.
    db: u64,
    /// The database that the file's commands are for.
    pub source_db: u64,
    /// RESTORE knows ABSTTL, IDLETIME and FREQ.
    absolute: bool,
    /// The last key that was sent, and its type.
    last: (Vec<u8>, DataType),
    build: Option<Build>,
    /// Of the value that is being sent, by its place.
    attempts: (u64, u32),
    /// The input's offset at the last position that was noted.
    noted: u64,
    sieve: Sieve<'a>,
    pub outcome: Outcome,
    /// Commands were sent that must not be done twice.
    pub sent_commands: bool,
}

/// What the servers answered.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub tally: Tally,
    /// Keys that were there already.
    pub busy: u64,
    pub busy_keys: BusyKeys,
    /// Keys that the server would not take.
    pub refused: u64,
}

impl<'a> Carrier<'a> {
    pub fn open(
        job: &'a Job,
        runtime: &Handle,
        watch: &'a Watch,
        from: Saved,
    ) -> Result<Self, ImportError> {
        let loader = Arc::new(open(job, runtime, 0)?);
        let mut direct = loader.direct();
        let engine = runtime.block_on(direct.engine())?;
        *locked(&watch.loader) = Some(Arc::clone(&loader));
        Ok(Self {
            job,
            runtime: runtime.clone(),
            watch,
            engine,
            feeder: loader.feeder(),
            direct,
            loader,
            tally: from.tally,
            db: 0,
            source_db: 0,
            absolute: engine.kind != EngineKind::Redis || engine.version >= Version::new(5, 0, 0),
            last: (Vec::new(), DataType::String),
            build: None,
            attempts: (0, 0),
            noted: 0,
            sieve: Sieve::new(&job.filter, is_cluster(job), watch),
            outcome: Outcome { busy: from.existing, refused: from.refused, ..Outcome::default() },
            sent_commands: false,
        })
    }

    /// Waits for the last answers. What came of it.
    pub fn finish(mut self, end: Position) -> Result<Outcome, ImportError> {
        self.settle(end.total)?;
        self.outcome.tally = self.tally;
        Ok(self.outcome)
    }

    /// Ends the load under way, and takes what the servers said.
    fn settle(&mut self, total: u64) -> Result<(), ImportError> {
        self.feeder.barrier()?;
        self.feeder.end(total)?;
        let progress = self.loader.progress();
        self.outcome.busy += progress.busy.load(Relaxed);
        self.outcome.busy_keys.join(&progress.busy_keys());
        self.outcome.refused += refusals(progress, &mut self.tally.troubles);
        let lost = progress.lost.load(Relaxed);
        if self.sent_commands && lost > 0 {
            let why = "a connection broke before answers came: commands may have been done twice";
            self.tally.troubles.add(b"", format!("{lost} times {why}"));
        }
        Ok(())
    }

    /// Goes on in another database of the target.
    pub fn switch(&mut self, at: Position, db: u64) -> Result<(), ImportError> {
        if db == self.db {
            return Ok(());
        }
        self.settle(at.total)?;
        self.loader = Arc::new(open(self.job, &self.runtime, db)?);
        self.feeder = self.loader.feeder();
        self.direct = self.loader.direct();
        self.db = db;
        *locked(&self.watch.loader) = Some(Arc::clone(&self.loader));
        Ok(())
    }

    pub fn is_cluster(&self) -> bool {
        is_cluster(self.job)
    }

    /// Notes that everything before can be counted as done once it is answered.
    fn note(&mut self, at: Position) {
        if self.job.state.is_some() && at.total >= self.noted + POSITION_BYTES {
            self.noted = at.total;
            let saved = Saved {
                position: at,
                tally: self.tally.clone(),
                existing: self.outcome.busy,
                refused: self.outcome.refused,
                booted: self.job.booted.as_ref().map(|booted| booted.loaded.clone()),
                ..Saved::default()
            };
            locked(&self.watch.positions).push_back(saved);
        }
    }

    /// The key as it is to be loaded, where commands follow; false: it isn't. Counts it then.
    fn followed(&mut self, at: Position, key: &mut Key<'_>) -> bool {
        let Some(slots) = self.job.followed.as_ref().map(|inputs| inputs.get(at.input)) else {
            return true;
        };
        key.expire_at_ms = key.expire_at_ms.map(|at_ms| at_ms.saturating_add(LATER_MS));
        let wanted = slots.is_none_or(|slots| slots.contains(key_slot(&key.name)));
        self.tally.filtered += u64::from(!wanted);
        wanted
    }

    /// Is the key to be sent? Counts it where it isn't.
    fn wanted(&mut self, key: &Key<'_>, bytes: u64) -> bool {
        self.sieve.takes(key, bytes, &mut self.tally)
    }

    fn entry(&mut self, at: Position, entry: &Entry<'_>) -> Result<Next, ImportError> {
        let Entry { key, raw } = entry;
        self.note(at);
        if !self.wanted(key, raw.len() as u64) {
            return Ok(Next::Go);
        }
        self.switch(at, self.job.filter.mapped(key.db))?;
        let later = self.with_fields_later(key.encoding, raw);
        let (encoding, raw) = match &later {
            Some(Ok(raw)) => (Encoding::HashExpiring, raw.as_slice()),
            _ => (key.encoding, *raw),
        };
        match transcode(encoding, raw, &self.engine) {
            Ok(Carried::Payload { encoding, raw: value, format, lost }) => {
                name_lost(key, lost, &mut self.tally.troubles);
                let payload = Payload { encoding, raw: &value, format };
                let slot = key_slot(&key.name);
                self.restore(at, slot, key, &payload)?;
                let way = if encoding == key.encoding { Way::Raw } else { Way::Repacked };
                self.sent(key, slot, raw.len(), way);
            }
            Ok(Carried::Commands) => {
                let big = Big { key: key.clone(), text_bytes: None };
                if self.begin(at, &big)?
                    && let Some(build) = &mut self.build
                {
                    build.part(raw, &mut self.feeder)?;
                    return self.end(raw.len());
                }
            }
            Ok(Carried::Impossible(why)) => self.tally.troubles.add(&key.name, why),
            Err(fault) => self.tally.troubles.add(&key.name, format!("is damaged: {fault}")),
        }
        Ok(Next::Go)
    }

    /// By so much ends of fields are put off.
    fn later_ms(&self) -> u64 {
        // KeyDB's own ends of members can't be asked for, and so not be set right.
        let known = self.job.followed.is_some() && self.engine.kind != EngineKind::KeyDb;
        if known { LATER_MS } else { 0 }
    }

    /// The hash with its fields' ends put off, as [`Encoding::HashExpiring`], where commands follow.
    fn with_fields_later(
        &mut self,
        encoding: Encoding,
        raw: &[u8],
    ) -> Option<Result<Vec<u8>, Fault>> {
        let later_ms = self.later_ms();
        if later_ms == 0 || !encoding.may_end_fields() || !ends_fields(self.engine) {
            return None;
        }
        let items = Items::new(encoding, raw).map(|item| {
            let mut item = item?;
            if let Item::Field { expire_at_ms: Some(at_ms), .. } = &mut item {
                *at_ms = at_ms.saturating_add(later_ms);
            }
            Ok(item)
        });
        self.tally.field_ends += 1;
        Some(encode(items, Encoding::HashExpiring))
    }

    fn sent(&mut self, key: &Key<'_>, slot: Slot, bytes: usize, way: Way) {
        self.tally.count(key.encoding.data_type(), slot, bytes as u64, way);
        self.last.0.clear();
        self.last.0.extend_from_slice(&key.name);
        self.last.1 = key.encoding.data_type();
    }

    fn restore(
        &mut self,
        at: Position,
        slot: Slot,
        key: &Key<'_>,
        payload: &Payload<'_>,
    ) -> Result<(), ImportError> {
        if self.job.dry_run {
            return Ok(());
        }
        let replace = self.job.existing == Existing::Replace;
        let absolute = self.absolute;
        self.feeder.push(slot, at.total, |out| {
            write_restore(key, payload, replace, absolute, out);
        })?;
        Ok(())
    }

    /// Begins a value that is sent in pieces; false: it isn't sent.
    fn begin(&mut self, at: Position, big: &Big<'_>) -> Result<bool, ImportError> {
        let key = &big.key;
        if gathered(key) {
            // No command makes them: the whole value is gathered for one RESTORE.
            if payload_format(&self.engine, key.encoding).is_none() {
                self.tally.troubles.add(&key.name, "the target takes no values of this type");
                return Ok(false);
            }
        }
        if self.job.dry_run {
            return Ok(true);
        }
        if self.job.existing != Existing::Replace {
            let slot = key_slot(&key.name);
            let answer = self.call(slot, &[b"EXISTS", &key.name])?;
            if answer.as_integer() == Some(1) {
                self.outcome.busy += 1;
                self.outcome.busy_keys.add(&key.name);
                let bytes = big.text_bytes.unwrap_or_default();
                self.tally.count(key.encoding.data_type(), slot, bytes, way(key));
                return Ok(false);
            }
        }
        let mut build = Build::new(at, key, self.engine, &self.loader, self.later_ms());
        self.call(build.slot, &[b"DEL", &build.temporary])?;
        build.begun(&self.loader);
        self.build = Some(build);
        Ok(true)
    }

    /// The last piece of a value was sent.
    fn end(&mut self, bytes: usize) -> Result<Next, ImportError> {
        let Some(build) = self.build.take() else { return Ok(Next::Go) };
        let (at, slot, key) = (build.at, build.slot, build.key.clone());
        let field_ttls = build.field_ttls_lost;
        self.tally.field_ends += u64::from(build.put_off);
        let existing = self.job.existing;
        let built = build.finish(
            &self.loader,
            &mut self.feeder,
            &mut self.direct,
            &self.runtime,
            existing,
        )?;
        match built {
            Built::Done => {
                let lost = Lost { field_ttls, ..Lost::default() };
                name_lost(&key, lost, &mut self.tally.troubles);
                self.sent(&key, slot, bytes, way(&key));
            }
            Built::Existed => {
                self.outcome.busy += 1;
                self.outcome.busy_keys.add(&key.name);
                self.sent(&key, slot, bytes, way(&key));
            }
            Built::Refused(why) => self.tally.troubles.add(&key.name, why),
            Built::Disturbed => {
                if self.attempts.0 != at.total {
                    self.attempts = (at.total, 0);
                }
                self.attempts.1 += 1;
                if self.attempts.1 > ATTEMPTS_MAX {
                    let key = key.name.escape_ascii().to_string();
                    return Err(ImportError::Stuck { key });
                }
                let input = self.job.inputs.get(at.input);
                if let Some(input) = input.filter(|input| input.is_once()) {
                    return Err(ImportError::Once { name: input.name() });
                }
                return Ok(Next::Back(at));
            }
        }
        Ok(Next::Go)
    }

    pub fn call(&mut self, slot: Slot, words: &[&[u8]]) -> Result<Reply, ImportError> {
        Ok(self.runtime.block_on(self.direct.call(slot, words))?)
    }

    /// To every primary.
    pub fn function(&mut self, code: &[u8]) -> Result<(), ImportError> {
        let name = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let engine = &self.engine;
        let has_functions = match engine.kind {
            EngineKind::Redis => engine.version >= Version::new(7, 0, 0),
            EngineKind::Valkey => true,
            EngineKind::KeyDb => false,
        };
        if !has_functions {
            self.tally.troubles.add(name, "is a library, and the target has no functions");
            return Ok(());
        }
        self.tally.functions += 1;
        if self.job.dry_run {
            return Ok(());
        }
        let replace = self.job.existing == Existing::Replace;
        let mut words: Vec<&[u8]> = vec![b"FUNCTION", b"LOAD"];
        if replace {
            words.push(b"REPLACE");
        }
        words.push(code);
        let mut command = crate::admin_client::Commands::new();
        command.push(&words);
        for address in self.runtime.block_on(self.direct.primaries())? {
            let answers = self.runtime.block_on(self.direct.pipeline(address, &command))?;
            let Some(Reply::Error(why)) = answers.first() else { continue };
            if why.contains("already exists") {
                if self.job.existing == Existing::Fail && !self.has_function(address, code)? {
                    self.tally.troubles.add(name, "is a library that is there in another form");
                }
                continue;
            }
            self.tally.troubles.add(name, format!("is a library that is refused: {why}"));
            return Ok(());
        }
        Ok(())
    }

    fn has_function(
        &mut self,
        address: std::net::SocketAddr,
        code: &[u8],
    ) -> Result<bool, ImportError> {
        let mut command = crate::admin_client::Commands::new();
        command.push(["FUNCTION", "LIST", "WITHCODE"]);
        let answers = self.runtime.block_on(self.direct.pipeline(address, &command))?;
        Ok(answers.first().is_some_and(|answer| holds(answer, code)))
    }

    fn member_expires(
        &mut self,
        at: Position,
        member: &[u8],
        expire_at_ms: u64,
    ) -> Result<(), ImportError> {
        let (key, data_type) = &self.last;
        // Of a key that wasn't sent.
        if key.is_empty() {
            return Ok(());
        }
        let time = expire_at_ms.to_string();
        let hash = *data_type == DataType::Hash
            && payload_format(&self.engine, Encoding::HashExpiring)
                .or(payload_format(&self.engine, Encoding::HashExpiringValkey))
                .is_some();
        let words: &[&[u8]] = match self.engine.kind {
            EngineKind::KeyDb => &[b"PEXPIREMEMBERAT", key, member, time.as_bytes()],
            _ if hash => &[b"HPEXPIREAT", key, time.as_bytes(), b"FIELDS", b"1", member],
            _ => {
                let why = "was carried, but the target has no members that end: they stay";
                self.tally.troubles.add(key, why);
                return Ok(());
            }
        };
        if !self.job.dry_run {
            self.feeder.push(key_slot(key), at.total, |out| encode_command(words, out))?;
        }
        Ok(())
    }
}

fn is_cluster(job: &Job) -> bool {
    matches!(job.target, Target::Cluster(_))
}

/// Is a value that comes in pieces one that no commands make?
fn gathered(key: &Key<'_>) -> bool {
    matches!(key.encoding.data_type(), DataType::Array | DataType::Module | DataType::Cron)
}

/// How a value that comes in pieces is carried.
fn way(key: &Key<'_>) -> Way {
    if gathered(key) { Way::Raw } else { Way::Commands }
}

/// Names the keys that the servers would not take; how many they are.
pub(super) fn refusals(progress: &Progress, troubles: &mut Troubles) -> u64 {
    let told = progress.refusals();
    let pieces = told.iter().filter(|refusal| refusal.key.starts_with(Build::PREFIX)).count();
    let more = progress.refused.load(Relaxed).saturating_sub(told.len() as u64);
    let count = more + (told.len() - pieces) as u64;
    for refusal in told.iter().filter(|refusal| !refusal.key.starts_with(Build::PREFIX)) {
        troubles.add(&refusal.key, format!("refused: {}", refusal.error));
    }
    if more > 0 {
        troubles.add(b"", format!("{more} more commands are refused"));
    }
    count
}

/// Does the text occur in the answer?
fn holds(answer: &Reply, text: &[u8]) -> bool {
    answer.as_bytes() == Some(text)
        || answer.as_array().is_some_and(|items| items.iter().any(|item| holds(item, text)))
}

impl Visitor for Carrier<'_> {
    type Error = ImportError;

    fn limits(&self) -> Limits {
        limits(self.job)
    }

    fn event(&mut self, at: Position, event: &mut Event<'_>) -> Result<Next, ImportError> {
        if matches!(event, Event::Entry(_) | Event::Big(_)) {
            self.last.0.clear();
        }
        match event {
            Event::Entry(entry) => {
                let wanted = self.followed(at, &mut entry.key);
                return if wanted { self.entry(at, entry) } else { Ok(Next::Go) };
            }
            Event::Big(big) => {
                self.note(at);
                if !self.followed(at, &mut big.key) {
                    return Ok(Next::Go);
                }
                let bytes = big.text_bytes.unwrap_or(WHOLE_BYTES_MAX as u64 + 1);
                // Read again, it was counted already.
                let again = self.attempts.0 == at.total && self.attempts.1 > 0;
                if again || self.wanted(&big.key, bytes) {
                    self.switch(at, self.job.filter.mapped(big.key.db))?;
                    if self.begin(at, big)? && self.job.dry_run {
                        let slot = key_slot(&big.key.name);
                        self.sent(&big.key, slot, bytes as usize, way(&big.key));
                    }
                }
            }
            Event::Part(part) => {
                if let Some(build) = &mut self.build {
                    match part {
                        Part::Text(text) => build.text(text, &mut self.feeder)?,
                        Part::Raw(raw) => build.part(raw, &mut self.feeder)?,
                    }
                }
            }
            Event::BigEnd => {
                let bytes = self.build.as_ref().map_or(0, |build| build.bytes);
                return self.end(bytes);
            }
            Event::MemberExpires { member, expire_at_ms } => {
                self.member_expires(at, member, *expire_at_ms)?;
            }
            Event::Function(code) => self.function(code)?,
            _ => {}
        }
        Ok(Next::Go)
    }

    fn command(&mut self, at: Position, words: &[&[u8]]) -> Result<(), ImportError> {
        self.carry_command(at, words)
    }
}

/// What of values is handed out whole: what is small, and what a filter by size must see whole.
pub(super) fn limits(job: &Job) -> Limits {
    let size = job.filter.size.map_or(0, Bound::number);
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(64 << 20);
    Limits { whole_bytes_max: WHOLE_BYTES_MAX.max(size), ..Limits::default() }
}

/// The items of a value that a digest is made of.
pub(super) fn digest(items: Items<'_>) -> Result<protocol::rdb::Digest, protocol::rdb::Fault> {
    let mut digest = protocol::rdb::Digest::new();
    for item in items {
        digest.item(&item?);
    }
    Ok(digest)
}
