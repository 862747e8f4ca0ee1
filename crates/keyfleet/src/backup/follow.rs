//! Keeping what a cluster is told, so that it can be had as it was at any second.
//!
//! Every shard's stream is read as a replica reads it ([`tail`](super::tail)) and kept in segments
//! ([`segment`]). Once a second all primaries are asked how far their streams are: a [`Tick`], which
//! counts where the slots' owners are the same before and after, no slot half moved. A backup whose
//! shards' files lie in the chain, and the commands from there to a tick, are the cluster as it was at
//! the tick.
//!
//! A chain stands failovers and slots that move: a shard's stream says all that happened to what it
//! holds, and each tick who owned what. It ends where bytes are missing, or shards come or go; then
//! another one begins, which needs a backup of its own. Killed, the next goes on with the chain if the
//! servers still have what came since.
//!
//! Memory: a segment that is being written, and what comes meanwhile: [`SEGMENT_BYTES`], and
//! [`HELD_BYTES_MAX`] where the storage is slower than the cluster. Then the streams are not read, until
//! a server gives us up.

mod tap;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use protocol::{Info, SlotSet};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use self::tap::{Held, Lost, Tap, open_any};
use super::{
    layout::{Layout, Source},
    manifest,
    replica::Point,
    segment::{self, Piece, Segment, Tick},
    shelf::{self, ShelfError},
    storage::Storage,
    tail::{History, Tail},
    take::{self, BackupError, Job},
};
use crate::{
    admin_client::{Commands, DEADLINE, Login, Pool},
    errors::with_causes,
    observe::now_ms,
    secrets::sha256,
    sync::locked,
};

/// How long a segment is where nobody says.
pub const SEGMENT: Duration = Duration::from_secs(10);

/// A segment is cut early when it has so many bytes.
const SEGMENT_BYTES: usize = 16 << 20;

/// Bytes that are held of all shards before nothing more is read; of each at least so many.
const HELD_BYTES_MAX: usize = 64 << 20;
const SHARD_BYTES_MIN: usize = 1 << 20;

/// Between two ticks.
const TICK: Duration = Duration::from_secs(1);

/// Between two tries to reach a server, or the storage.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long other shards than the chain's may be seen before it ends.
const STRANGE_MAX: Duration = Duration::from_secs(5);

/// A tick whose bytes don't come is dropped after so many others.
const TICKS_OPEN_MAX: usize = 60;

/// Why nothing more is kept.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("somebody else keeps this cluster's commands: {chain} has a segment {number} already")]
    Another { chain: String, number: u64 },
}

impl From<ShelfError> for FollowError {
    fn from(error: ShelfError) -> Self {
        Self::Backup(error.into())
    }
}

/// How it goes, as others watch it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes and segments that were kept.
    pub bytes: AtomicU64,
    pub segments: AtomicU64,
    /// The chain has no backup yet that it could go on from.
    wants_backup: AtomicBool,
    state: Mutex<State>,
}

/// Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The chain that is written.
    pub chain: Option<String>,
    /// Its last tick that is kept.
    pub until_ms: u64,
    /// What holds it up now.
    pub waiting_for: Option<String>,
    /// Why the last chain ended.
    pub broken: Option<String>,
}

impl Progress {
    pub fn state(&self) -> State {
        locked(&self.state).clone()
    }

    /// Is a backup wanted, because the chain goes on from none?
    pub fn wants_backup(&self) -> bool {
        self.wants_backup.load(Ordering::Relaxed)
    }

    /// A backup was taken; `before`: how it went when that was begun.
    pub fn backed_up(&self, before: &State) {
        if before.chain.is_some() && before.chain == self.state().chain {
            self.wants_backup.store(false, Ordering::Relaxed);
        }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut locked(&self.state));
    }
}

/// A chain that is being written.
struct Chain<'a> {
    job: &'a mut Job,
    progress: &'a Progress,
    name: String,
    number: u64,
    /// When the last segment was cut.
    cut_ms: u64,
    taps: Vec<Arc<Tap>>,
    /// What the shards own.
    slots: Vec<SlotSet>,
    /// Those whose bytes haven't all come: with the streams' ids.
    open: VecDeque<(Tick, Vec<String>)>,
    /// The segment that is being written.
    writing: Option<JoinHandle<Written>>,
    /// Why it isn't written yet.
    held_up: Arc<Mutex<Option<String>>>,
    pool: Pool,
    stop: watch::Receiver<bool>,
}

/// The segment; an error: somebody else wrote one of its number; None: the process was to end first.
type Written = Result<Segment, Option<FollowError>>;

/// Keeps a cluster's commands until `stop` turns true. `every`: how long a segment is.
pub async fn follow(
    job: &mut Job,
    every: Duration,
    progress: &Progress,
    mut stop: watch::Receiver<bool>,
) -> Result<(), FollowError> {
    let pool = Pool::new();
    let mut pause = PAUSE;
    let (mut tried, mut worked) = (false, false);
    loop {
        if std::mem::replace(&mut tried, true) {
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        let unrest = take::Watch::default();
        let layout = tokio::select! {
            layout = take::rested(job, &unrest) => layout,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let layout = match layout {
            Ok(layout) => layout,
            Err(error @ BackupError::Unrest { .. }) => {
                progress.set(|state| state.waiting_for = Some(with_causes(&error)));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut tasks = JoinSet::new();
        let begun = Chain::begin(job, progress, &layout, &pool, &mut tasks, &stop).await;
        let ended = match begun {
            Ok(mut chain) => {
                (pause, worked) = (PAUSE, true);
                chain.run(every, &mut stop).await
            }
            Err(error) => Err(error),
        };
        tasks.abort_all();
        let why = match ended {
            Ok(None) => return Ok(()),
            Ok(Some(why)) | Err(Trouble::Passing(why)) => why,
            // What worked once may work again.
            Err(Trouble::Final(FollowError::Backup(error))) if worked => with_causes(&error),
            Err(Trouble::Final(error)) => return Err(error),
        };
        tracing::warn!(cluster = job.cluster, "{why}");
        progress.set(|state| {
            if let Some(chain) = state.chain.take() {
                state.broken = Some(format!("{chain} ended: {why}"));
            }
            state.waiting_for = Some(why);
        });
    }
}

enum Trouble {
    Final(FollowError),
    Passing(String),
}

impl<E: Into<FollowError>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

impl<'a> Chain<'a> {
    /// Goes on with the last chain where that is possible, else begins another.
    async fn begin(
        job: &'a mut Job,
        progress: &'a Progress,
        layout: &Layout,
        pool: &Pool,
        tasks: &mut JoinSet<()>,
        stop: &watch::Receiver<bool>,
    ) -> Result<Self, Trouble> {
        let histories = histories(layout, job.login.as_ref(), pool).await;
        let histories = histories.map_err(Trouble::Passing)?;
        let (storage, cluster) = (job.storage.clone(), job.cluster.clone());
        let mut last = None;
        if let Some(name) =
            segment::chains(&storage, &cluster).await.map_err(ShelfError::from)?.pop()
        {
            let numbers = segment::numbers(&storage, &cluster, &name).await;
            if let Some(number) = numbers.map_err(ShelfError::from)?.pop() {
                last = match segment::read(&storage, &cluster, &name, number).await {
                    Ok(kept) => Some(kept.segment),
                    Err(error @ ShelfError::Storage(_)) => return Err(error.into()),
                    Err(error) => {
                        tracing::warn!(
                            cluster,
                            "{name} is not gone on with: {}",
                            with_causes(&error)
                        );
                        None
                    }
                };
            }
        }
        let on = match last {
            Some(last) => {
                go_on(job.login.as_ref(), layout, &histories, &last).await?.map(|tails| {
                    let until_ms = last.ticks.last().map_or(0, |tick| tick.at_ms);
                    (last.chain, (last.number + 1, last.cut_ms), until_ms, tails)
                })
            }
            None => None,
        };
        let resumed = on.is_some();
        let (name, (number, cut_ms), until_ms, tails) = if let Some(on) = on {
            on
        } else {
            let mut tails = Vec::new();
            for shard in &layout.0 {
                let tail = open_any(&shard.sources, job.login.as_ref(), None).await;
                tails.push((shard.slots(), shard.sources.clone(), tail?));
            }
            (manifest::id(now_ms()), (0, now_ms()), 0, tails)
        };
        let mut taps = Vec::new();
        let mut slots = Vec::new();
        let held_bytes_max = (HELD_BYTES_MAX / tails.len().max(1)).max(SHARD_BYTES_MIN);
        for (owned, sources, tail) in tails {
            let held =
                Held { bytes: Vec::new(), point: tail.point.clone(), away: None, gone: None };
            let (sources, held) = (Mutex::new(sources), Mutex::new(held));
            let tap = Arc::new(Tap { sources, held, held_bytes_max });
            taps.push(Arc::clone(&tap));
            slots.push(owned);
            tasks.spawn(tap.run(tail, job.login.clone()));
        }
        let has_backup = resumed && {
            let backups = shelf::all(&storage, &cluster).await.map_err(ShelfError::from)?;
            backups.into_iter().flatten().any(|backup| backup.id >= name)
        };
        let mut chain = Self {
            job,
            progress,
            name,
            number,
            cut_ms,
            taps,
            slots,
            open: VecDeque::new(),
            writing: None,
            held_up: Arc::default(),
            pool: pool.clone(),
            stop: stop.clone(),
        };
        if !resumed {
            // From now on its name and its first number are taken.
            chain.end().await?;
        }
        progress.wants_backup.store(!has_backup, Ordering::Relaxed);
        progress.set(|state| {
            state.chain = Some(chain.name.clone());
            state.until_ms = until_ms;
            state.waiting_for = None;
        });
        Ok(chain)
    }

    /// None: stopped. Else why it ended.
    async fn run(
        &mut self,
        every: Duration,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<String>, Trouble> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cut = Instant::now();
        let mut strange: Option<Instant> = None;
        // A tick that counts if the next look finds the same owners.
        let mut asked: Option<(Layout, Tick, Vec<String>)> = None;
        loop {
            let stopped = tokio::select! {
                _ = ticks.tick() => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            if stopped {
                self.end().await?;
                return Ok(None);
            }
            if self.writing.as_ref().is_some_and(JoinHandle::is_finished) {
                self.written().await?;
            }
            if let Some(why) = self.taps.iter().find_map(|tap| locked(&tap.held).gone.clone()) {
                self.end().await?;
                return Ok(Some(why));
            }
            let looked =
                timeout(DEADLINE, take::look(&mut self.job.origin, self.job.login.as_ref()));
            let layout = match looked.await {
                Ok(Ok(layout)) => Ok(layout),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the nodes don't answer".to_owned()),
            };
            let before = asked.take();
            match layout {
                Ok(layout) => {
                    if let Some((claimed, tick, ids)) = before
                        && same_owners(&claimed, &layout)
                    {
                        self.open.push_back((tick, ids));
                        if self.open.len() > TICKS_OPEN_MAX {
                            self.open.pop_front();
                        }
                    }
                    match self.tick(&layout).await {
                        Ok((tick, ids)) => {
                            strange = None;
                            asked = Some((layout, tick, ids));
                            self.wait_for(None);
                        }
                        Err(Odd::Strange(why)) => {
                            let since = *strange.get_or_insert_with(Instant::now);
                            if since.elapsed() > STRANGE_MAX {
                                self.end().await?;
                                return Ok(Some(why));
                            }
                            self.wait_for(Some(why));
                        }
                        Err(Odd::Unsaid(why)) => self.wait_for(Some(why)),
                    }
                }
                Err(why) => self.wait_for(Some(why)),
            }
            let held: usize = self.taps.iter().map(|tap| tap.held_bytes()).sum();
            if cut.elapsed() >= every || held >= SEGMENT_BYTES {
                cut = Instant::now();
                self.cut().await?;
            }
        }
    }

    fn wait_for(&self, what: Option<String>) {
        let away = || self.taps.iter().find_map(|tap| locked(&tap.held).away.clone());
        let what = locked(&self.held_up).clone().or(what).or_else(away);
        self.progress.set(|state| state.waiting_for = what);
    }

    /// Asks all primaries how far they are.
    async fn tick(&mut self, layout: &Layout) -> Result<(Tick, Vec<String>), Odd> {
        let at_ms = now_ms();
        let histories = histories(layout, self.job.login.as_ref(), &self.pool).await;
        let histories = histories.map_err(Odd::Unsaid)?;
        let took_ms = now_ms().saturating_sub(at_ms);
        let mut slots = Vec::new();
        let (mut offsets, mut ids) = (Vec::new(), Vec::new());
        for tap in &self.taps {
            let id = locked(&tap.held).point.id.clone();
            let found = histories.iter().position(|history| history.follows(&id));
            let Some((at, shard)) = found.and_then(|at| Some((at, layout.0.get(at)?))) else {
                return Err(Odd::Strange("a shard is gone, or has lost its history".to_owned()));
            };
            locked(&tap.sources).clone_from(&shard.sources);
            slots.push(shard.slots());
            if let Some(history) = histories.get(at) {
                offsets.push(history.now.offset);
                ids.push(history.now.id.clone());
            }
        }
        if layout.0.len() > self.taps.len() {
            return Err(Odd::Strange("there are more shards than before".to_owned()));
        }
        if slots != self.slots {
            // A segment's ticks are all of the same owners.
            self.cut().await.map_err(|_| Odd::Unsaid("nothing can be kept".to_owned()))?;
            self.open.clear();
            self.slots = slots;
        }
        Ok((Tick { at_ms, took_ms, offsets }, ids))
    }

    /// Begins to write what has come as a segment, once the one before is written.
    async fn cut(&mut self) -> Result<(), Trouble> {
        self.written().await?;
        let mut pieces = Vec::new();
        let mut held_bytes = Vec::new();
        for (tap, slots) in self.taps.iter().zip(&self.slots) {
            let (bytes, Point { id, offset }) = tap.take();
            pieces.push(Piece {
                slots: slots.clone(),
                id,
                start: offset - bytes.len() as u64,
                end: offset,
                sha256: sha256(&bytes),
            });
            held_bytes.push(bytes);
        }
        let mut ticks = Vec::new();
        while let Some((tick, ids)) = self.open.front() {
            let mut marks = tick.offsets.iter().zip(ids).zip(&pieces);
            if !marks.all(|((offset, id), piece)| piece.id == *id && *offset <= piece.end) {
                break;
            }
            ticks.extend(self.open.pop_front().map(|(tick, _)| tick));
        }
        let segment = Segment {
            version: segment::VERSION,
            cluster: self.job.cluster.clone(),
            chain: self.name.clone(),
            number: self.number,
            since_ms: self.cut_ms,
            cut_ms: now_ms(),
            pieces,
            ticks,
        };
        (self.number, self.cut_ms) = (self.number + 1, segment.cut_ms);
        let object = segment::encode(&segment, &held_bytes)?;
        let (storage, held_up) = (self.job.storage.clone(), Arc::clone(&self.held_up));
        let written = write(storage, segment, object, held_up, self.stop.clone());
        self.writing = Some(tokio::spawn(written));
        Ok(())
    }

    /// Waits for the segment that is being written.
    async fn written(&mut self) -> Result<(), Trouble> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let segment = match writing.await {
            Ok(Ok(segment)) => segment,
            Ok(Err(Some(error))) => return Err(Trouble::Final(error)),
            Ok(Err(None)) | Err(_) => {
                let why = locked(&self.held_up).clone().unwrap_or_default();
                return Err(Trouble::Passing(why));
            }
        };
        let bytes = segment.pieces.iter().map(Piece::bytes).sum();
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.segments.fetch_add(1, Ordering::Relaxed);
        if let Some(tick) = segment.ticks.last() {
            self.progress.set(|state| state.until_ms = tick.at_ms);
        }
        Ok(())
    }

    /// Writes all that has come.
    async fn end(&mut self) -> Result<(), Trouble> {
        self.cut().await?;
        self.written().await
    }
}

/// Writes a segment. Where the storage fails it is tried again, until `stop` turns true.
async fn write(
    storage: Storage,
    segment: Segment,
    object: Bytes,
    held_up: Arc<Mutex<Option<String>>>,
    mut stop: watch::Receiver<bool>,
) -> Written {
    let mut pause = PAUSE;
    loop {
        match segment::write(&storage, &segment, object.clone()).await {
            Ok(true) => {
                *locked(&held_up) = None;
                return Ok(segment);
            }
            Ok(false) => {
                let (chain, number) = (segment.chain, segment.number);
                return Err(Some(FollowError::Another { chain, number }));
            }
            Err(error) => *locked(&held_up) = Some(with_causes(&error)),
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return Err(None),
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

enum Odd {
    /// Other shards than the chain's.
    Strange(String),
    /// Somebody doesn't say how far it is.
    Unsaid(String),
}

type Tails = Vec<(SlotSet, Vec<Source>, Tail)>;

/// The streams from where a segment ends; None where one of them can't be had from there.
async fn go_on(
    login: Option<&Login>,
    layout: &Layout,
    histories: &[History],
    last: &Segment,
) -> Result<Option<Tails>, Trouble> {
    if last.pieces.len() != layout.0.len() {
        return Ok(None);
    }
    let mut tails = Vec::new();
    for piece in &last.pieces {
        let found = histories.iter().position(|history| history.follows(&piece.id));
        let Some(shard) = found.and_then(|at| layout.0.get(at)) else { return Ok(None) };
        let point = Point { id: piece.id.clone(), offset: piece.end };
        match open_any(&shard.sources, login, Some(&point)).await {
            Ok(tail) => tails.push((shard.slots(), shard.sources.clone(), tail)),
            Err(Lost::Gone(why)) => {
                tracing::info!("{} is not gone on with: {why}", last.chain);
                return Ok(None);
            }
            Err(lost) => return Err(lost.into()),
        }
    }
    Ok(Some(tails))
}

/// Where the primaries' streams are, in the layout's order.
async fn histories(
    layout: &Layout,
    login: Option<&Login>,
    pool: &Pool,
) -> Result<Vec<History>, String> {
    let mut commands = Commands::new();
    commands.push(["INFO", "replication"]);
    let asked = layout.0.iter().map(|shard| async {
        let Some(primary) = shard.sources.last() else { return Err("no primary".to_owned()) };
        let replies = pool.ask(primary.address, login, DEADLINE, &commands).await;
        let replies = replies.map_err(|error| error.to_string())?;
        let text = replies.first().and_then(|reply| reply.as_str()).unwrap_or_default();
        let history = History::of(&Info::parse(text));
        history.ok_or_else(|| format!("{} doesn't say how far it is", primary.address))
    });
    join_all(asked).await.into_iter().collect()
}

fn same_owners(one: &Layout, other: &Layout) -> bool {
    let claims = |layout: &Layout| -> Vec<_> {
        layout.0.iter().map(|shard| (shard.claim.slots.clone(), shard.claim.owner)).collect()
    };
    claims(one) == claims(other)
}

impl From<Lost> for Trouble {
    fn from(lost: Lost) -> Self {
        let (Lost::Gone(why) | Lost::Away(why)) = lost;
        Self::Passing(why)
    }
}
