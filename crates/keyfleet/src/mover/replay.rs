//! The commands that followed a backup, done again in a cluster or server, each exactly once.
//!
//! Commands of one slot go off in order, as one transaction with a note of how far they are: the
//! [`Marker`], a key of the same slot. Whatever happens (a lost answer, a failover that loses
//! writes, kill -9), the note is as true as the data beside it, and says where to go on. When all is
//! done the notes are deleted.
//!
//! Time must not pass meanwhile: a key that ended long ago may be needed for what came after, and be
//! kept in the end. So ends are put off by [`LATER_MS`], those of the backup's keys too, and set
//! right when all is done; those of hashes' fields likewise.
//!
//! A shard's commands for slots that it did not own at the moment are left out: whoever owned them has
//! their values in its own commands, or in its file. FLUSHALL means that all before it doesn't count
//! ([`Scan`]).

mod expiry;
mod finish;
mod scan;
mod unit;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use protocol::{Slot, Value, commands, key_slot, resp::ServerError};
use tokio::time::{Instant, sleep};

pub use self::{
    expiry::LATER_MS,
    scan::{Scan, scan},
};
use self::{
    expiry::put_off,
    unit::{Fate, Marker, Unit},
};
use super::{
    import::report::{Replayed, Troubles},
    kind::{Kind, kind},
    load::{Direct, LoadError, Loader, Options, Target},
};
use crate::{
    admin_client::{ClientError, Commands, Login},
    backup::{
        point::{PointError, PointInTime, Shard},
        storage::Storage,
    },
    sync::locked,
};

/// What goes off together, in all slots.
const WINDOW_BYTES: usize = 1 << 20;
const WINDOW_COMMANDS: usize = 4_096;

/// Between two tries of what can't be done for now.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a shard is begun anew because the target lost what it had done.
const ATTEMPTS_MAX: u32 = 20;

/// Commands to be done again.
#[derive(Debug)]
pub struct Job<'a> {
    pub storage: &'a Storage,
    pub point: &'a PointInTime,
    /// For each of the point's shards.
    pub scans: &'a [Scan],
    pub target: Target,
    pub login: Option<Login>,
    pub patience: Duration,
    /// What makes the same restore: notes of another one don't count.
    pub run: String,
    /// An earlier one may have done some of it.
    pub resumed: bool,
    /// Fields of the backup's hashes may have had their ends put off.
    pub field_ends: bool,
}

/// Why it ended early. What was done stays done, and is known to be.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Point(#[from] PointError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the target loses what it has done, again and again")]
    Forgetful,
    #[error("ends of keys can't be set right: {key} keeps another one")]
    Ends { key: String },
}

/// A replay as others watch it.
#[derive(Debug, Default)]
pub struct Watch {
    /// Bytes of commands that were gone through.
    pub bytes: AtomicU64,
    pub commands: AtomicU64,
    waiting_for: Mutex<Option<String>>,
}

impl Watch {
    /// What holds it up now, if anything.
    pub fn waiting_for(&self) -> Option<String> {
        locked(&self.waiting_for).clone()
    }

    fn wait_for(&self, what: Option<String>) {
        *locked(&self.waiting_for) = what;
    }
}

/// One server to another: everything is done as it was, in one order.
pub fn is_verbatim(target: &Target, point: &PointInTime) -> bool {
    matches!(target, Target::Server(_)) && point.shards.iter().all(|shard| shard.slots.is_empty())
}

/// See the module.
pub async fn replay(job: &Job<'_>, watch: &Watch) -> Result<(Replayed, Troubles), ReplayError> {
    let options =
        Options { login: job.login.clone(), patience: job.patience, ..Options::default() };
    let loader = Loader::open(job.target.clone(), options).await?;
    let mut replayer = Replayer {
        job,
        watch,
        direct: loader.direct(),
        loader: &loader,
        links: BTreeMap::new(),
        markers: unit::markers(),
        done: BTreeMap::new(),
        asked: BTreeSet::new(),
        unsure: job.resumed,
        replayed: Replayed { at_ms: job.point.tick.at_ms, ..Replayed::default() },
        troubles: Troubles::default(),
    };
    for (shard, scan) in job.point.shards.iter().zip(job.scans) {
        let mut attempts = 0;
        while let Err(error) = replayer.shard(shard, scan).await {
            match error {
                Stop::Error(error) => return Err(error),
                // The notes say how far it really is.
                Stop::Lost => {
                    attempts += 1;
                    if attempts > ATTEMPTS_MAX {
                        return Err(ReplayError::Forgetful);
                    }
                    replayer.done.clear();
                    replayer.asked.clear();
                    replayer.unsure = true;
                }
            }
        }
    }
    let ends = job.scans.iter().any(|scan| scan.ends)
        || job.point.base.shards.iter().any(|shard| shard.tally.expiring > 0);
    let field_ends = job.field_ends || job.scans.iter().any(|scan| scan.field_ends);
    replayer.finish(ends, field_ends).await?;
    Ok((replayer.replayed, replayer.troubles))
}

enum Stop {
    Error(ReplayError),
    /// The target has lost what it had done.
    Lost,
}

impl<E: Into<ReplayError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

struct Replayer<'a> {
    job: &'a Job<'a>,
    watch: &'a Watch,
    loader: &'a Loader,
    direct: Direct,
    links: BTreeMap<SocketAddr, Direct>,
    /// For each slot the key that its note is under.
    markers: Vec<String>,
    /// The offset of the last command that was done in a slot.
    done: BTreeMap<Slot, u64>,
    /// Slots whose note was asked for.
    asked: BTreeSet<Slot>,
    /// Slots may have notes that we don't know of.
    unsure: bool,
    replayed: Replayed,
    troubles: Troubles,
}

/// A command with where it stands.
struct Told {
    offset: u64,
    words: Vec<Vec<u8>>,
}

impl Replayer<'_> {
    async fn shard(&mut self, shard: &Shard, scan: &Scan) -> Result<(), Stop> {
        let verbatim = is_verbatim(&self.job.target, self.job.point);
        let mut source = self.job.point.commands(self.job.storage, shard);
        let mut window = Window::default();
        let mut before = self.watch.bytes.load(Ordering::Relaxed);
        let mut at = shard.from;
        loop {
            let mut told = Vec::new();
            let more = source
                .next(|offset, words| {
                    told.push(Told {
                        offset,
                        words: words.iter().map(|word| word.to_vec()).collect(),
                    });
                })
                .await?;
            for command in told {
                let offset = command.offset;
                self.command(shard, scan, verbatim, command, &mut window).await?;
                if window.is_full() {
                    self.flush(&mut window).await?;
                    before += offset - at;
                    at = offset;
                    self.watch.bytes.store(before, Ordering::Relaxed);
                }
            }
            if !more {
                break;
            }
        }
        self.flush(&mut window).await?;
        self.watch.bytes.store(before + shard.to - at, Ordering::Relaxed);
        Ok(())
    }

    async fn command(
        &mut self,
        shard: &Shard,
        scan: &Scan,
        verbatim: bool,
        told: Told,
        window: &mut Window,
    ) -> Result<(), Stop> {
        let Told { offset, words } = told;
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let name = commands::resolve(words.as_slice()).map(|command| command.name);
        match name {
            Some("multi") => window.open = true,
            Some("exec") => window.open = false,
            Some(name) if name.starts_with("function|") => {
                self.flush(window).await?;
                self.function(&words).await?;
                return Ok(());
            }
            _ => {}
        }
        let kind = kind(&words);
        let parts = match kind {
            Kind::Select(db) => {
                window.db = db;
                return Ok(());
            }
            Kind::Nothing | Kind::Function => return Ok(()),
            Kind::Parts(_) | Kind::Sweeping | Kind::Unfit(_) if verbatim => {
                // One order for all.
                BTreeMap::from([(key_slot(b""), (1..words.len()).collect())])
            }
            // The scan has seen what empties something.
            Kind::Sweeping if !matches!(name, Some("swapdb" | "move")) => return Ok(()),
            Kind::Unfit(_) | Kind::Sweeping => {
                let why = match kind {
                    Kind::Unfit(why) => why,
                    _ => "concerns databases that a cluster doesn't have",
                };
                let shown = words.first().copied().unwrap_or_default().escape_ascii();
                let key = words.get(1).copied().unwrap_or_default();
                let why = format!("{shown} at offset {offset}: {why}");
                self.troubles.add(key, why);
                return Ok(());
            }
            Kind::Parts(parts) => parts,
        };
        if window.db != 0 && !verbatim {
            let key = words.get(1).copied().unwrap_or_default();
            let why = format!("is in database {}, and a cluster has only 0", window.db);
            self.troubles.add(key, why);
            return Ok(());
        }
        for (slot, part) in parts {
            let owned = shard.slots.is_empty() || shard.slots.contains(slot);
            if !verbatim && (!owned || scan.is_void(slot, offset)) {
                continue;
            }
            if self.is_done(slot, offset).await? {
                continue;
            }
            let chosen: Vec<&[u8]> =
                std::iter::once(0).chain(part).filter_map(|at| words.get(at).copied()).collect();
            let time_ms = || self.job.point.time_of(shard, offset);
            let chosen = put_off(&chosen, time_ms);
            let db = verbatim.then_some(window.db);
            window.push(slot, offset, db, &chosen);
        }
        Ok(())
    }

    /// Was it done before, by this run or an earlier one?
    async fn is_done(&mut self, slot: Slot, offset: u64) -> Result<bool, ReplayError> {
        if let Some(done) = self.done.get(&slot) {
            return Ok(offset <= *done);
        }
        if !self.unsure {
            return Ok(false);
        }
        // Once for each slot: the next unit of one that has no note writes the first.
        if !self.asked.insert(slot) {
            return Ok(false);
        }
        let noted = self.noted(slot).await?;
        if let Some(done) = noted {
            self.done.insert(slot, done);
        }
        Ok(noted.is_some_and(|done| offset <= done))
    }

    fn marker(&self, slot: Slot) -> Marker<'_> {
        let key = self.markers.get(usize::from(slot.number())).map_or("", String::as_str);
        Marker { key, run: &self.job.run }
    }

    /// How far the target says that the slot is.
    async fn noted(&mut self, slot: Slot) -> Result<Option<u64>, ReplayError> {
        let key = self.marker(slot).key.to_owned();
        let reply = self.direct.call(slot, &[b"GET", key.as_bytes()]).await?;
        Ok(self.marker(slot).read(&reply))
    }

    async fn flush(&mut self, window: &mut Window) -> Result<(), Stop> {
        let units = std::mem::take(&mut window.units);
        (window.bytes, window.commands) = (0, 0);
        self.send(units.into_values().collect()).await
    }

    /// Sends units until each of them is done.
    async fn send(&mut self, mut units: Vec<Unit>) -> Result<(), Stop> {
        let give_up = Instant::now() + self.job.patience;
        while !units.is_empty() {
            let mut groups: BTreeMap<SocketAddr, Vec<Unit>> = BTreeMap::new();
            for unit in units.drain(..) {
                groups.entry(self.direct.owner(unit.slot)?).or_default().push(unit);
            }
            let mut sends = Vec::new();
            for (address, units) in groups {
                let link = self.links.remove(&address);
                let mut link = link.unwrap_or_else(|| self.loader.direct());
                let mut commands = Commands::new();
                for unit in &units {
                    unit.write(&self.marker(unit.slot), &mut commands);
                }
                sends.push(async move {
                    let replies = link.pipeline(address, &commands).await;
                    (address, link, units, replies)
                });
            }
            let mut held_up: Option<(SocketAddr, Option<ServerError>)> = None;
            for (address, link, sent, replies) in join_all(sends).await {
                self.links.insert(address, link);
                let mut replies = match replies {
                    Ok(replies) => Some(replies.into_iter()),
                    Err(error) => {
                        tracing::debug!("{error}");
                        held_up = Some((address, None));
                        None
                    }
                };
                for mut unit in sent {
                    let fate = replies.as_mut().map(|replies| unit.fate(replies));
                    match fate {
                        Some(Fate::Done(refused)) => {
                            for (key, error) in refused {
                                self.troubles.add(&key, format!("refused: {error}"));
                            }
                            self.note(&unit);
                        }
                        Some(Fate::Without(at, error)) => {
                            let key = unit.remove(at);
                            self.troubles.add(&key, format!("refused: {error}"));
                            units.push(unit);
                        }
                        Some(Fate::Later(error)) => {
                            held_up = Some((address, Some(error)));
                            units.push(unit);
                        }
                        // Nobody answered: the note tells.
                        None => {
                            let noted = self.noted(unit.slot).await?;
                            if noted >= Some(unit.at) {
                                self.note(&unit);
                            } else if noted < self.done.get(&unit.slot).copied() {
                                return Err(Stop::Lost);
                            } else {
                                units.push(unit);
                            }
                        }
                    }
                }
            }
            if let Some((address, error)) = held_up {
                let why =
                    error.as_ref().map_or("the connection broke".to_owned(), ToString::to_string);
                self.watch.wait_for(Some(format!("{address}: {why}")));
                if Instant::now() > give_up {
                    let seconds = self.job.patience.as_secs();
                    return Err(match error {
                        Some(source) => LoadError::Refused { address, seconds, source },
                        None => LoadError::Away { address, seconds },
                    }
                    .into());
                }
                sleep(PAUSE).await;
                let _ = self.direct.primaries().await;
                // A failover may have lost what was done before.
                let slots: BTreeSet<Slot> = units.iter().map(|unit| unit.slot).collect();
                for slot in slots {
                    if self.noted(slot).await? < self.done.get(&slot).copied() {
                        return Err(Stop::Lost);
                    }
                }
            } else {
                self.watch.wait_for(None);
            }
        }
        Ok(())
    }

    fn note(&mut self, unit: &Unit) {
        self.done.insert(unit.slot, unit.at);
        self.replayed.commands += unit.len() as u64;
        self.watch.commands.fetch_add(unit.len() as u64, Ordering::Relaxed);
    }

    /// Does a command about functions at every primary. Done twice it does no harm.
    async fn function(&mut self, words: &[&[u8]]) -> Result<(), ReplayError> {
        let mut words = words.to_vec();
        let is_load = words.get(1).is_some_and(|word| word.eq_ignore_ascii_case(b"load"));
        if is_load && words.len() == 3 {
            words.insert(2, b"REPLACE");
        }
        let mut commands = Commands::new();
        commands.push(&words);
        let give_up = Instant::now() + self.job.patience;
        loop {
            let mut failed = None;
            for address in self.direct.primaries().await? {
                match self.direct.pipeline(address, &commands).await {
                    Ok(replies) => {
                        if let Some(Value::Error(text)) = replies.first() {
                            let shown = words.get(1).copied().unwrap_or_default().escape_ascii();
                            let why = format!("FUNCTION {shown} is refused by {address}: {text}");
                            self.troubles.add(b"", why);
                        }
                    }
                    Err(error) => failed = Some(error),
                }
            }
            match failed {
                None => return Ok(()),
                Some(error) if Instant::now() > give_up => return Err(error.into()),
                Some(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// What goes off together.
#[derive(Default)]
struct Window {
    units: BTreeMap<Slot, Unit>,
    bytes: usize,
    commands: usize,
    /// In the middle of a transaction.
    open: bool,
    /// The database that commands are for.
    db: u64,
}

impl Window {
    fn is_full(&self) -> bool {
        !self.open && (self.bytes >= WINDOW_BYTES || self.commands >= WINDOW_COMMANDS)
    }

    fn push(&mut self, slot: Slot, offset: u64, db: Option<u64>, words: &[impl AsRef<[u8]>]) {
        let unit = self.units.entry(slot).or_insert_with(|| Unit::new(slot));
        self.bytes += unit.push(offset, db, words);
        self.commands += 1;
    }
}
