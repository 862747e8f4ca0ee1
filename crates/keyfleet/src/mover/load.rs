//! Many commands into a live cluster or one server, as fast as it takes them, nothing lost.
//!
//! A thread that makes commands ([`Feeder`]) sorts them by the slot's primary. Each primary has a
//! [`lane`]: one connection, many commands in flight. What a server refuses for now, because the slot
//! is somewhere else, or the server starts, or its connection broke, goes to the [`mend`]er, which
//! asks for the slots' owners anew and sends it again, in order. So commands must bear being done
//! twice. Those of one slot keep their order only between two [`Feeder::barrier`]s.
//!
//! What was done is known to be done: [`Progress::low_water`] is the offset in the source up to
//! which everything has been answered, which is where a load that was killed goes on.

mod direct;
mod lane;
mod mend;
mod steer;
mod table;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use protocol::{Slot, resp::ServerError, slots::SLOT_COUNT};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::JoinHandle,
};

pub use self::direct::Direct;
pub(super) use self::lane::passes;
use self::{
    lane::{Batch, Sent},
    mend::Stray,
    table::Table,
};
use crate::{
    admin_client::{ClientError, Login},
    sync::locked,
};

/// A batch goes off when it has so many bytes or commands.
const BATCH_BYTES: usize = 64 << 10;
const BATCH_COMMANDS: usize = 1_000;

/// Commands in flight on one connection. Fewer cost speed, more don't give any.
const WINDOW_COMMANDS: usize = 4_096;

/// Bytes that wait for an answer, in all lanes together.
const FLIGHT_BYTES: usize = 24 << 20;

/// Bytes of commands that wait to be sent again, above which no new ones are taken.
const STRAY_BYTES: usize = 16 << 20;

/// How many commands' refusals are kept with their text.
const REFUSALS_MAX: usize = 1_000;

/// How many keys that were there already are kept.
const BUSY_MAX: usize = 1_000_000;

/// Where commands go.
#[derive(Clone, Debug)]
pub enum Target {
    /// To the primaries of the cluster that these nodes belong to.
    Cluster(Vec<SocketAddr>),
    /// All to one server.
    Server(SocketAddr),
}

/// How a load behaves.
#[derive(Clone, Debug)]
pub struct Options {
    pub login: Option<Login>,
    /// The database that commands are for. Clusters have only 0.
    pub db: u64,
    /// How long a command that can't be done for now is tried again.
    pub patience: Duration,
    /// The highest latency that a probe may see at one time in a hundred; slower where it is higher.
    pub p99_max: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { login: None, db: 0, patience: Duration::from_secs(60), p99_max: None }
    }
}

/// Why a load stopped. What was answered until then is done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the slots' owners can't be asked for")]
    Owners(#[source] Arc<ClientError>),
    #[error("slot {slot} has no primary")]
    NoOwner { slot: Slot },
    #[error("{address} has refused a command for {seconds} s: {source}")]
    Refused { address: SocketAddr, seconds: u64, source: ServerError },
    #[error("{address} could not be reached for {seconds} s")]
    Away { address: SocketAddr, seconds: u64 },
}

/// What a server would not do, ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of the command's first key.
    pub key: Vec<u8>,
    pub error: ServerError,
}

/// How far a load is. Read at any time; exact when the load has ended.
#[derive(Debug, Default)]
pub struct Progress {
    /// Commands that were done.
    pub done: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Keys that were there already (BUSYKEY).
    pub busy: AtomicU64,
    /// Commands that were refused for good.
    pub refused: AtomicU64,
    /// Commands that were sent again.
    pub repeated: AtomicU64,
    /// Commands whose connection broke before they were answered: some may have been done twice.
    pub lost: AtomicU64,
    /// Commands of each slot that were sent again.
    repeated_in: Repeats,
    busy_keys: Mutex<BusyKeys>,
    refusals: Mutex<Vec<Refusal>>,
    waiting_for: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Repeats(Vec<AtomicU32>);

impl Default for Repeats {
    fn default() -> Self {
        Self((0..SLOT_COUNT).map(|_| AtomicU32::new(0)).collect())
    }
}

/// Keys that were there already: 8 bytes each.
#[derive(Clone, Debug, Default)]
pub struct BusyKeys {
    hashes: BTreeSet<u64>,
    /// There are more than are kept.
    all: bool,
}

impl BusyKeys {
    fn hash(key: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    }

    /// Was it there already? One in many may be said to be that wasn't; never the other way round.
    pub fn may_hold(&self, key: &[u8]) -> bool {
        self.all || self.hashes.contains(&Self::hash(key))
    }

    /// Adds a key.
    pub fn add(&mut self, key: &[u8]) {
        if self.hashes.len() < BUSY_MAX {
            self.hashes.insert(Self::hash(key));
        } else {
            self.all = true;
        }
    }

    /// Adds those of another load.
    pub fn join(&mut self, other: &Self) {
        self.hashes.extend(&other.hashes);
        self.all |= other.all;
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty() && !self.all
    }
}

impl Progress {
    /// How often commands for this slot were sent again.
    pub fn repeated_in(&self, slot: Slot) -> u32 {
        let place = self.repeated_in.0.get(usize::from(slot.number()));
        place.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// The keys that were there already (BUSYKEY).
    pub fn busy_keys(&self) -> BusyKeys {
        locked(&self.busy_keys).clone()
    }

    fn repeat(&self, slot: Slot) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
        if let Some(count) = self.repeated_in.0.get(usize::from(slot.number())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The first thousand refusals.
    pub fn refusals(&self) -> Vec<Refusal> {
        locked(&self.refusals).clone()
    }

    /// What holds the load up now, if anything: a server's error reply.
    pub fn waiting_for(&self) -> Option<String> {
        locked(&self.waiting_for).clone()
    }

    fn refuse(&self, key: &[u8], error: ServerError) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let mut refusals = locked(&self.refusals);
        if refusals.len() < REFUSALS_MAX {
            refusals.push(Refusal { key: key.to_vec(), error });
        }
    }
}

/// A load that is under way.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What feeder, lanes and mender share.
#[derive(Debug)]
struct Shared {
    options: Options,
    table: Table,
    progress: Progress,
    /// Commands in flight that a lane may have at the moment.
    window: AtomicUsize,
    marks: Mutex<Marks>,
    /// Told when a mark goes or the load stops.
    lower: Notify,
    strays: mpsc::UnboundedSender<Stray>,
    /// Bytes of the commands that wait to be sent again.
    stray_bytes: AtomicUsize,
    error: Mutex<Option<LoadError>>,
}

/// Offsets of what isn't answered yet.
#[derive(Debug, Default)]
struct Marks {
    open: BTreeSet<(u64, u64)>,
    next: u64,
    /// Everything before is answered, as long as nothing is open.
    fed: u64,
}

/// Stands for something unanswered at an offset of the source, until it is released. One that is only
/// dropped, because the load stops, stands for ever: what it was for was not done.
#[derive(Debug)]
struct Mark {
    shared: Arc<Shared>,
    place: (u64, u64),
}

impl Mark {
    fn new(shared: &Arc<Shared>, offset: u64) -> Self {
        let mut marks = locked(&shared.marks);
        marks.next += 1;
        let place = (offset, marks.next);
        marks.open.insert(place);
        drop(marks);
        Self { shared: Arc::clone(shared), place }
    }

    /// Stands for something unanswered at `offset` too.
    fn cover(&mut self, offset: u64) {
        if offset < self.place.0 {
            let mut marks = locked(&self.shared.marks);
            marks.open.remove(&self.place);
            self.place.0 = offset;
            marks.open.insert(self.place);
        }
    }

    /// It is answered, or another mark stands for it.
    fn release(self) {
        locked(&self.shared.marks).open.remove(&self.place);
        self.shared.lower.notify_waiters();
    }
}

impl Shared {
    /// Ends the load with its first error.
    fn stop(&self, error: LoadError) {
        locked(&self.error).get_or_insert(error);
        self.lower.notify_waiters();
    }

    /// Bytes that may be in flight on one lane.
    fn flight_bytes(&self) -> usize {
        (FLIGHT_BYTES / self.table.lanes().max(1)).max(2 * BATCH_BYTES)
    }

    async fn all_answered(&self) -> Result<(), LoadError> {
        self.until(|| locked(&self.marks).open.is_empty()).await
    }

    /// Until there is room for commands that may have to be sent again.
    async fn room(&self) -> Result<(), LoadError> {
        self.until(|| self.stray_bytes.load(Ordering::Relaxed) < STRAY_BYTES).await
    }

    /// Until a condition holds that marks' going brings about.
    async fn until(&self, holds: impl Fn() -> bool) -> Result<(), LoadError> {
        loop {
            let told = self.lower.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(error) = locked(&self.error).clone() {
                return Err(error);
            }
            if holds() {
                return Ok(());
            }
            told.await;
        }
    }
}

impl Loader {
    /// Finds the slots' owners.
    pub async fn open(target: Target, options: Options) -> Result<Self, LoadError> {
        let (strays, wanted) = mpsc::unbounded_channel();
        let table = Table::open(target, options.login.clone()).await?;
        let shared = Arc::new(Shared {
            options,
            table,
            progress: Progress::default(),
            window: AtomicUsize::new(WINDOW_COMMANDS),
            marks: Mutex::default(),
            lower: Notify::new(),
            strays,
            stray_bytes: AtomicUsize::new(0),
            error: Mutex::new(None),
        });
        let mut tasks = vec![tokio::spawn(mend::run(Arc::clone(&shared), wanted))];
        if let Some(p99_max) = shared.options.p99_max {
            tasks.push(tokio::spawn(steer::run(Arc::clone(&shared), p99_max)));
        }
        Ok(Self { shared, tasks })
    }

    /// What makes the commands: for one thread that may block.
    pub fn feeder(&self) -> Feeder {
        Feeder { shared: Arc::clone(&self.shared), runtime: Handle::current(), open: Vec::new() }
    }

    /// What asks one command at a time and hands out the answers.
    pub fn direct(&self) -> Direct {
        Direct::new(Arc::clone(&self.shared))
    }

    pub fn progress(&self) -> &Progress {
        &self.shared.progress
    }

    /// The offset in the source before which everything has been answered.
    pub fn low_water(&self) -> u64 {
        let marks = locked(&self.shared.marks);
        marks.open.first().map_or(marks.fed, |(offset, _)| *offset)
    }

    /// Waits until all that was fed is answered, and ends.
    pub async fn finish(mut self) -> Result<(), LoadError> {
        let result = self.shared.all_answered().await;
        for task in self.tasks.drain(..) {
            task.abort();
        }
        self.shared.table.close();
        result
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.table.close();
    }
}

/// Takes commands, from a thread that may block.
#[derive(Debug)]
pub struct Feeder {
    shared: Arc<Shared>,
    runtime: Handle,
    /// The batch of each lane that is being filled.
    open: Vec<Option<Batch>>,
}

impl Feeder {
    /// Adds a command, which `write` appends, for a slot. `offset`: where its source begins.
    ///
    /// # Errors
    /// The load has stopped.
    pub fn push(
        &mut self,
        slot: Slot,
        offset: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), LoadError> {
        let lane = self.shared.table.lane_of(slot)?;
        if self.open.len() <= lane {
            self.open.resize_with(lane + 1, || None);
        }
        let Some(place) = self.open.get_mut(lane) else { return Ok(()) };
        let batch = place.get_or_insert_with(|| Batch::new(Mark::new(&self.shared, offset)));
        write(&mut batch.bytes);
        let end = batch.bytes.len();
        batch.commands.push(Sent { end, slot, offset, asking: false, since: None });
        if batch.bytes.len() >= BATCH_BYTES || batch.commands.len() >= BATCH_COMMANDS {
            self.send(lane)?;
        }
        Ok(())
    }

    /// Sends what is not sent yet and waits until everything is answered.
    pub fn barrier(&mut self) -> Result<(), LoadError> {
        self.flush()?;
        self.runtime.block_on(self.shared.all_answered())
    }

    /// Sends what is not sent yet. `offset`: where the source goes on.
    pub fn end(&mut self, offset: u64) -> Result<(), LoadError> {
        self.flush()?;
        locked(&self.shared.marks).fed = offset;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), LoadError> {
        (0..self.open.len()).try_for_each(|lane| self.send(lane))
    }

    fn send(&mut self, lane: usize) -> Result<(), LoadError> {
        let Some(batch) = self.open.get_mut(lane).and_then(Option::take) else { return Ok(()) };
        self.runtime.block_on(self.shared.room())?;
        let sender = self.shared.table.sender(lane, &self.shared, &self.runtime);
        // A closed lane means a stopped load.
        let sent = sender.blocking_send(batch).is_ok();
        match locked(&self.shared.error).clone() {
            Some(error) => Err(error),
            None if sent => Ok(()),
            None => Err(LoadError::Away { address: self.shared.table.address(lane), seconds: 0 }),
        }
    }
}
