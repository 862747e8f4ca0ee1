//! Asks the target for keys and compares what it says with the files: by decoded value, and when it
//! ends.

use protocol::{
    Engine, EngineKind, Slot, Value as Reply, Version, key_slot,
    rdb::{
        Big, Carried, DataType, Digest, Event, Fault, Item, Items, ItemsState, Key, Limits, Part,
        dump, transcode,
    },
};
use tokio::runtime::Handle;

use super::{
    ImportError, Job,
    big::ends_fields,
    carry::{digest, limits},
    filter::Asked,
    open,
    report::{Troubles, Verified},
    source::{Next, Position, Visitor},
};
use crate::{
    admin_client::Commands,
    mover::load::{BusyKeys, Direct, Loader, Target},
    observe::now_ms,
};

/// Keys that one question is about, and bytes of their values.
const KEYS_MAX: usize = 500;
const BYTES_MAX: usize = 1 << 20;

/// How far apart two ends may be that were computed from what is left; milliseconds.
const APART_MS: u64 = 2_000;

/// See the module.
pub(super) struct Compare<'a> {
    job: &'a Job,
    runtime: Handle,
    /// Only these keys.
    only: Option<&'a BusyKeys>,
    /// What differs is said to be this.
    why: &'static str,
    place: Option<Place>,
    waiting: Vec<Expected>,
    bytes: usize,
    big: Option<(Expected, ItemsState)>,
    verified: Verified,
    troubles: Troubles,
}

/// The database that is asked.
struct Place {
    db: u64,
    engine: Engine,
    direct: Direct,
    _loader: Loader,
}

struct Expected {
    slot: Slot,
    data_type: DataType,
    name: Vec<u8>,
    expire_at_ms: Option<u64>,
    digest: Digest,
}

impl<'a> Compare<'a> {
    pub fn new(
        job: &'a Job,
        runtime: &Handle,
        only: Option<&'a BusyKeys>,
        why: &'static str,
    ) -> Self {
        Self {
            job,
            runtime: runtime.clone(),
            only,
            why,
            place: None,
            waiting: Vec::new(),
            bytes: 0,
            big: None,
            verified: Verified::default(),
            troubles: Troubles::default(),
        }
    }

    pub fn finish(mut self) -> Result<(Verified, Troubles), ImportError> {
        self.ask()?;
        Ok((self.verified, self.troubles))
    }

    /// Is the key to be asked for? Goes to its database.
    fn wanted(&mut self, key: &Key<'_>, bytes: u64) -> Result<bool, ImportError> {
        let left_ms = key.expire_at_ms.map(|at| at.saturating_sub(now_ms()));
        let data_type = key.encoding.data_type();
        let asked = Asked { db: key.db, name: &key.name, data_type, left_ms, bytes };
        let db = self.job.filter.mapped(key.db);
        let wanted = self.job.filter.takes(&asked)
            && left_ms != Some(0)
            && !(matches!(self.job.target, Target::Cluster(_)) && db != 0)
            && self.only.is_none_or(|only| only.may_hold(&key.name));
        if wanted && self.place.as_ref().is_none_or(|place| place.db != db) {
            self.ask()?;
            let loader = open(self.job, &self.runtime, db)?;
            let mut direct = loader.direct();
            let engine = self.runtime.block_on(direct.engine())?;
            self.place = Some(Place { db, engine, direct, _loader: loader });
        }
        Ok(wanted)
    }

    fn expect(&mut self, expected: Expected, bytes: usize) -> Result<(), ImportError> {
        self.waiting.push(expected);
        self.bytes += bytes;
        if self.waiting.len() >= KEYS_MAX || self.bytes >= BYTES_MAX { self.ask() } else { Ok(()) }
    }

    /// Asks for all keys that wait.
    fn ask(&mut self) -> Result<(), ImportError> {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.bytes = 0;
        let Some(place) = &mut self.place else { return Ok(()) };
        let exact = match place.engine.kind {
            EngineKind::Redis => place.engine.version >= Version::new(7, 0, 0),
            EngineKind::Valkey => true,
            EngineKind::KeyDb => false,
        };
        let end = if exact { "PEXPIRETIME" } else { "PTTL" };
        let mut owned = Vec::new();
        for expected in waiting.drain(..) {
            owned.push((place.direct.owner(expected.slot)?, expected));
        }
        owned.sort_by_key(|(owner, _)| *owner);
        for group in owned.chunk_by(|one, two| one.0 == two.0) {
            let Some((address, _)) = group.first() else { continue };
            let mut commands = Commands::new();
            for (_, expected) in group {
                commands.push([b"DUMP".as_slice(), &expected.name]);
                commands.push([end.as_bytes(), &expected.name]);
            }
            let asked = place.direct.pipeline(*address, &commands);
            let answers = self.runtime.block_on(asked).unwrap_or_default();
            let mut pairs = answers.chunks_exact(2);
            for (_, expected) in group {
                let (value, ends) = match pairs.next() {
                    Some([value, ends]) if !is_error(value) && !is_error(ends) => {
                        (value.clone(), ends.clone())
                    }
                    // It moved meanwhile, or the connection broke.
                    _ => {
                        let (slot, name) = (expected.slot, expected.name.as_slice());
                        let mut call =
                            |words: &[&[u8]]| self.runtime.block_on(place.direct.call(slot, words));
                        (call(&[b"DUMP", name])?, call(&[end.as_bytes(), name])?)
                    }
                };
                if same(expected, &value, &ends, exact) {
                    self.verified.same += 1;
                    *self.verified.types.entry(expected.data_type.name()).or_default() += 1;
                } else if expected.expire_at_ms.is_some_and(|at| at <= now_ms()) {
                    // Its time is over by now.
                } else {
                    self.verified.different += 1;
                    self.verified.slots_different.insert(expected.slot.number());
                    self.troubles.add(&expected.name, self.why);
                }
            }
        }
        Ok(())
    }
}

fn is_error(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(_))
}

fn same(expected: &Expected, value: &Reply, ends: &Reply, exact: bool) -> bool {
    let Some(payload) = value.as_bytes().and_then(|bytes| dump::parse(bytes).ok()) else {
        return false;
    };
    let found = ends.as_integer().and_then(|number| u64::try_from(number).ok());
    let same_end = match (expected.expire_at_ms, found) {
        (None, None) => true,
        (Some(at), Some(found)) if exact => at == found,
        (Some(at), Some(left)) => at.abs_diff(now_ms() + left) < APART_MS,
        _ => false,
    };
    same_end
        && digest(Items::new(payload.encoding, payload.raw))
            .is_ok_and(|found| found == expected.digest)
}

impl Visitor for Compare<'_> {
    type Error = ImportError;

    fn limits(&self) -> Limits {
        limits(self.job)
    }

    fn event(&mut self, _: Position, event: &mut Event<'_>) -> Result<Next, ImportError> {
        match event {
            Event::Entry(entry) => {
                if !self.wanted(&entry.key, entry.raw.len() as u64)? {
                    return Ok(Next::Go);
                }
                let Some(place) = &self.place else { return Ok(Next::Go) };
                // What was carried is compared: what the target has no place for was named before.
                let carried = transcode(entry.key.encoding, entry.raw, &place.engine);
                let digest = match &carried {
                    Ok(Carried::Payload { encoding, raw, .. }) => {
                        digest(Items::new(*encoding, raw))
                    }
                    Ok(Carried::Commands) => digest(Items::new(entry.key.encoding, entry.raw)),
                    _ => return Ok(Next::Go),
                };
                // What can't be decoded was named, too.
                let Ok(digest) = digest else { return Ok(Next::Go) };
                self.expect(expected(&entry.key, digest), entry.raw.len())?;
            }
            Event::Big(Big { key, text_bytes }) => {
                let bytes = text_bytes.unwrap_or(self.limits().whole_bytes_max as u64 + 1);
                let cut = !matches!(
                    key.encoding.data_type(),
                    DataType::Array | DataType::Module | DataType::Cron
                );
                if cut && self.wanted(key, bytes)? {
                    let state = Items::start(key.encoding);
                    self.big = Some((expected(key, Digest::new()), state));
                }
            }
            Event::Part(Part::Text(text)) => {
                if let Some((expected, _)) = &mut self.big {
                    expected.digest.text(text);
                }
            }
            Event::Part(Part::Raw(raw)) => {
                if let Some((mut expected, state)) = self.big.take() {
                    let mut items = Items::resume(state, raw);
                    let keep_ends = self.place.as_ref().is_none_or(|p| ends_fields(p.engine));
                    let whole = items.by_ref().try_for_each(|item| {
                        let mut item = item?;
                        if let Item::Field { expire_at_ms, .. } = &mut item
                            && !keep_ends
                        {
                            *expire_at_ms = None;
                        }
                        expected.digest.item(&item);
                        Ok::<_, Fault>(())
                    });
                    if whole.is_ok() {
                        self.big = Some((expected, items.suspend()));
                    }
                }
            }
            Event::BigEnd => {
                if let Some((expected, _)) = self.big.take() {
                    self.expect(expected, BYTES_MAX)?;
                }
            }
            _ => {}
        }
        Ok(Next::Go)
    }

    /// Values after commands are not known.
    fn command(&mut self, _: Position, _: &[&[u8]]) -> Result<(), ImportError> {
        Ok(())
    }
}

fn expected(key: &Key<'_>, digest: Digest) -> Expected {
    Expected {
        slot: key_slot(&key.name),
        data_type: key.encoding.data_type(),
        name: key.name.to_vec(),
        expire_at_ms: key.expire_at_ms,
        digest,
    }
}
