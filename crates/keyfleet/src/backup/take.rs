//! Taking a backup: look, take the shards' files, look again, until everything that was taken stands.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet::model::{ClusterName, Fleet};
use futures_util::{StreamExt as _, stream};
use protocol::{Engine, Info, SlotSet};
use tokio::{
    sync::watch,
    time::{Instant, interval, sleep},
};

use super::{
    layout::{Claim, Layout, Shard, Source},
    manifest::{self, Manifest},
    passage::{Passage, PassageError, Passed},
    replica::{Copy, CopyError},
    shelf::{self, ShelfError},
    storage::{PART_BYTES_MIN, Storage, StorageError, Upload},
};
use crate::{
    admin_client::{ClientError, Connection, DEADLINE, Login, Pool},
    observe::{ForeignError, Observer, now_ms, observe_foreign},
    secrets::OWN_USER,
    session::Session,
    store::StoreError,
    sync::locked,
};

/// How often a file that can't be had, or doesn't stand, is taken anew.
const ROUNDS_MAX: u32 = 6;

/// How many shards are read at a time where nobody says.
pub const PARALLEL: usize = 2;

/// How long is waited for a cluster that doesn't rest where nobody says.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks, and two rounds.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a replica may need to get as far as its primary was.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

/// How often it is said that the backup is still being written.
const RENEWAL: Duration = Duration::from_secs(20);

/// S3 takes 10,000 parts, and a file may be larger than the memory that it comes from.
const PARTS_MAX: u64 = 5_000;

/// What is backed up.
#[derive(Debug)]
pub enum Origin {
    /// A cluster of the fleet.
    Fleet { fleet: Arc<Fleet>, observer: Box<Observer>, cluster: ClusterName },
    /// The cluster that these nodes belong to.
    Cluster { seeds: Vec<SocketAddr> },
    /// One server.
    Server { address: SocketAddr },
}

/// A backup to be taken.
#[derive(Debug)]
pub struct Job {
    pub origin: Origin,
    pub login: Option<Login>,
    pub storage: Storage,
    /// The name that it is kept under.
    pub cluster: String,
    pub spec: Option<String>,
    /// How many shards are read at a time.
    pub parallel: usize,
    /// How long is waited for a cluster that doesn't rest.
    pub patience: Duration,
}

impl Job {
    /// Of a cluster of the fleet, two shards at a time.
    pub fn of_fleet(
        session: &Session,
        cluster: &ClusterName,
        storage: Storage,
    ) -> Result<Self, StoreError> {
        let observer = Box::new(Observer::new(Arc::clone(&session.store), Pool::new()));
        let fleet = Arc::clone(&session.fleet);
        Ok(Self {
            origin: Origin::Fleet { fleet, observer, cluster: cluster.clone() },
            login: Some(Login::own(session.store.secret(cluster, OWN_USER)?)),
            storage,
            cluster: cluster.to_string(),
            spec: Some(session.text.clone()),
            parallel: PARALLEL,
            patience: PATIENCE,
        })
    }
}

/// A backup as others watch it.
#[derive(Debug, Default)]
pub struct Watch {
    pub bytes: AtomicU64,
    pub keys: AtomicU64,
    shards: Mutex<(usize, usize)>,
    waiting_for: Mutex<Option<String>>,
}

impl Watch {
    /// How many shards are taken, and how many there are.
    pub fn shards(&self) -> (usize, usize) {
        *locked(&self.shards)
    }

    /// What holds it up now, if anything.
    pub fn waiting_for(&self) -> Option<String> {
        locked(&self.waiting_for).clone()
    }

    pub(super) fn wait_for(&self, what: Option<String>) {
        *locked(&self.waiting_for) = what;
    }
}

/// The nodes can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Unrest(String),
}

/// A backup that was not taken. Nothing of it is left, as far as the storage could be reached.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("for {seconds} s nothing could be relied on")]
    Unrest { seconds: u64, source: Box<LookError> },
    #[error("{} could not be read", shown(slots))]
    Shard { slots: SlotSet, source: Box<ShardError> },
    #[error("slots, or primaries' roles, moved whenever it was nearly done")]
    Moving,
    #[error("{file} was gone before the backup was complete")]
    Gone { file: String },
    #[error("{file} was written by somebody else meanwhile")]
    Exists { file: String },
    #[error("stopped before the end")]
    Stopped,
}

impl From<StorageError> for BackupError {
    fn from(error: StorageError) -> Self {
        Self::Shelf(error.into())
    }
}

fn shown(slots: &SlotSet) -> String {
    if slots.is_empty() { "the server".to_owned() } else { format!("slots {slots}") }
}

/// A shard's file that was not had.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("what {address} sends is no good")]
    Passage { address: SocketAddr, source: PassageError },
    #[error("{address} lags behind its primary")]
    Behind { address: SocketAddr },
    #[error("{address} is taking slots over")]
    Importing { address: SocketAddr },
    #[error("{address} holds {keys} keys of slots that belong to others")]
    Strangers { address: SocketAddr, keys: u64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Takes it. When `stop` turns true it is given up.
pub async fn take(
    job: &mut Job,
    watch: &Watch,
    stop: watch::Receiver<bool>,
) -> Result<Manifest, BackupError> {
    let started_ms = now_ms();
    let id = shelf::begin(&job.storage, &job.cluster, started_ms).await?;
    let (storage, cluster) = (job.storage.clone(), job.cluster.clone());
    let result = tokio::select! {
        result = write(job, watch, &id, started_ms, stop.clone()) => result,
        never = renewed(&storage, &cluster, &id) => never,
    };
    // What somebody else completed is not ours to throw away.
    if !matches!(result, Ok(_) | Err(BackupError::Exists { .. }))
        && let Err(error) = shelf::discard(&storage, &cluster, &id).await
    {
        tracing::warn!("{error}; a later backup clears it away");
    }
    if *stop.borrow() { result.map_err(|_| BackupError::Stopped) } else { result }
}

/// Says for ever that the backup is being written.
async fn renewed<T>(storage: &Storage, cluster: &str, id: &str) -> T {
    let mut ticks = interval(RENEWAL);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        if let Err(error) = shelf::renew(storage, cluster, id).await {
            tracing::debug!("{error}");
        }
    }
}

async fn write(
    job: &mut Job,
    watch: &Watch,
    id: &str,
    started_ms: u64,
    stop: watch::Receiver<bool>,
) -> Result<Manifest, BackupError> {
    for left in shelf::clean(&job.storage, &job.cluster, id).await? {
        tracing::info!("cleared away what a broken backup had left: {left}");
    }
    let shards = shards(job, watch, id, stop).await?;
    for shard in &shards {
        let file = shelf::file(&job.cluster, id, &shard.file);
        let found = job.storage.find(&file).await?;
        if found.is_none_or(|found| found.bytes != shard.bytes) {
            return Err(BackupError::Gone { file: job.storage.shown(&file) });
        }
    }
    let manifest = Manifest {
        version: manifest::VERSION,
        id: id.to_owned(),
        cluster: job.cluster.clone(),
        started_ms,
        finished_ms: now_ms(),
        shards,
        spec: job.spec.clone(),
    };
    if shelf::commit(&job.storage, &manifest).await? {
        Ok(manifest)
    } else {
        let file = shelf::file(&job.cluster, id, manifest::MANIFEST);
        Err(BackupError::Exists { file: job.storage.shown(&file) })
    }
}

/// Every shard's file, all of them standing at one moment.
async fn shards(
    job: &mut Job,
    watch: &Watch,
    id: &str,
    mut stop: watch::Receiver<bool>,
) -> Result<Vec<manifest::Shard>, BackupError> {
    let mut kept: BTreeMap<Claim, manifest::Shard> = BTreeMap::new();
    let mut failed_at: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut last: Option<BackupError> = None;
    let mut files = 0_u32;
    for round in 0..=ROUNDS_MAX {
        let layout = tokio::select! {
            layout = rested(job, watch) => layout?,
            _ = stop.wait_for(|stop| *stop) => return Err(BackupError::Stopped),
        };
        let claims: Vec<&Claim> = layout.0.iter().map(|shard| &shard.claim).collect();
        let (standing, fallen): (BTreeMap<_, _>, BTreeMap<_, _>) =
            kept.into_iter().partition(|(claim, _)| claims.contains(&claim));
        kept = standing;
        for shard in fallen.values() {
            job.storage.delete(&shelf::file(&job.cluster, id, &shard.file)).await?;
        }
        if !fallen.is_empty() {
            tracing::info!("{} shards changed meanwhile: they are read again", fallen.len());
        }
        *locked(&watch.shards) = (kept.len(), layout.0.len());
        let missing: Vec<&Shard> =
            layout.0.iter().filter(|shard| !kept.contains_key(&shard.claim)).collect();
        if missing.is_empty() {
            let mut shards: Vec<manifest::Shard> = kept.into_values().collect();
            shards.sort_by_key(|shard| shard.slots.iter().next());
            return Ok(shards);
        }
        if round == ROUNDS_MAX {
            break;
        }
        let tasks = missing.into_iter().map(|shard| {
            files += 1;
            let failures = |source: &&Source| failed_at.get(&source.address).copied().unwrap_or(0);
            let source = shard.sources.iter().min_by_key(failures).copied();
            let taking = Taking {
                storage: job.storage.clone(),
                login: job.login.clone(),
                shard: shard.clone(),
                directory: (job.cluster.clone(), id.to_owned()),
                file: format!("{files:04}.rdb"),
            };
            let stop = stop.clone();
            async move { (shard.claim.clone(), source, taking.run(source, watch, stop).await) }
        });
        let tasks: Vec<_> = tasks.collect();
        let mut running = stream::iter(tasks).buffer_unordered(job.parallel.max(1));
        while let Some((claim, source, taken)) = running.next().await {
            match taken {
                Ok(Some(shard)) => {
                    kept.insert(claim, shard);
                    locked(&watch.shards).0 += 1;
                }
                Ok(None) => return Err(BackupError::Stopped),
                Err(ShardError::Storage(error)) => return Err(error.into()),
                Err(error) => {
                    tracing::info!("{}: {error}", shown(&claim.slots));
                    *failed_at
                        .entry(source.map_or(NOWHERE, |source| source.address))
                        .or_default() += 1;
                    let slots = claim.slots;
                    last = Some(BackupError::Shard { slots, source: Box::new(error) });
                }
            }
        }
        if kept.len() < layout.0.len() {
            sleep(PAUSE * (round + 1)).await;
        }
    }
    Err(last.unwrap_or(BackupError::Moving))
}

const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

/// What a cluster that rests looks like; waits until it does.
pub(super) async fn rested(job: &mut Job, watch: &Watch) -> Result<Layout, BackupError> {
    let until = Instant::now() + job.patience;
    loop {
        let error = match look(&mut job.origin, job.login.as_ref()).await {
            Ok(layout) => {
                watch.wait_for(None);
                return Ok(layout);
            }
            Err(error) => error,
        };
        let hopeless = match &error {
            LookError::Foreign(ForeignError::Client(error)) | LookError::Client(error) => {
                matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM"))
            }
            _ => false,
        };
        if hopeless || Instant::now() >= until {
            let seconds = job.patience.as_secs();
            return Err(BackupError::Unrest { seconds, source: Box::new(error) });
        }
        watch.wait_for(Some(error.to_string()));
        sleep(PAUSE).await;
    }
}

pub(super) async fn look(origin: &mut Origin, login: Option<&Login>) -> Result<Layout, LookError> {
    match origin {
        Origin::Fleet { fleet, observer, cluster } => {
            let observed = observer.observe(fleet).await?;
            Layout::of(&observed, cluster).map_err(LookError::Unrest)
        }
        Origin::Cluster { seeds } => {
            let mut last = None;
            for seed in seeds.clone() {
                match observe_foreign(seed, login).await {
                    Ok(observed) => {
                        let all = observed.nodes.values();
                        *seeds =
                            all.map(|view| SocketAddr::new(view.address, view.ports.tcp)).collect();
                        let cluster = observed.nodes.keys().next().map(|node| node.cluster.clone());
                        let cluster = cluster.unwrap_or_else(|| ClusterName::new(""));
                        return Layout::of(&observed, &cluster).map_err(LookError::Unrest);
                    }
                    Err(error) => last = Some(error),
                }
            }
            Err(last.map_or_else(|| LookError::Unrest("no node is known".to_owned()), Into::into))
        }
        Origin::Server { address } => {
            let info = info(*address, login).await?;
            let engine = Engine::from_info(&info)
                .map_err(|error| LookError::Unrest(format!("{address}: {error}")))?;
            let source = Source {
                address: *address,
                replica: info.get("role") == Some("slave"),
                engine,
                memory_bytes: info.u64("used_memory").unwrap_or(0),
            };
            let claim = Claim { slots: SlotSet::new(), owner: None, epoch: 0 };
            let offset = info.u64("master_repl_offset").unwrap_or(0);
            Ok(Layout(vec![Shard { claim, offset, sources: vec![source] }]))
        }
    }
}

pub(super) async fn info(address: SocketAddr, login: Option<&Login>) -> Result<Info, ClientError> {
    let mut link = Connection::open(address, login, DEADLINE).await?;
    let reply = link.call(["INFO"]).await?;
    Ok(Info::parse(reply.as_str().unwrap_or_default()))
}

/// One shard's file to be taken.
struct Taking {
    storage: Storage,
    login: Option<Login>,
    shard: Shard,
    /// The cluster, and the backup.
    directory: (String, String),
    file: String,
}

impl Taking {
    /// None: stopped.
    async fn run(
        self,
        source: Option<Source>,
        watch: &Watch,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Option<manifest::Shard>, ShardError> {
        let Some(source) = source else { return Err(ShardError::Behind { address: NOWHERE }) };
        let mut upload = None;
        let shipped = tokio::select! {
            shipped = self.ship(source, watch, &mut upload) => shipped.map(Some),
            _ = stop.wait_for(|stop| *stop) => Ok(None),
        };
        match (shipped, upload) {
            (Ok(Some(shard)), Some(upload)) => {
                upload.finish().await?;
                Ok(Some(shard))
            }
            (other, upload) => {
                if let Some(upload) = upload {
                    upload.abort().await;
                }
                other
            }
        }
    }

    async fn ship(
        &self,
        source: Source,
        watch: &Watch,
        upload: &mut Option<Upload>,
    ) -> Result<manifest::Shard, ShardError> {
        let address = source.address;
        if source.replica {
            self.caught_up(address).await?;
        }
        let mut copy = Copy::ask(address, self.login.as_ref(), &source.engine).await?;
        let taken_ms = now_ms();
        // A snapshot that was under way already may be older than our look.
        if copy.point.offset < self.shard.offset {
            return Err(ShardError::Behind { address });
        }
        let (cluster, id) = &self.directory;
        let name = shelf::file(cluster, id, &self.file);
        let part_bytes = usize::try_from(source.memory_bytes / PARTS_MAX).unwrap_or(0);
        let upload = upload
            .insert(self.storage.upload(&name, part_bytes.next_multiple_of(PART_BYTES_MIN)).await?);
        let passed = self.pass(&mut copy, upload, address, watch).await?;
        if passed.importing {
            return Err(ShardError::Importing { address });
        }
        if passed.strangers > 0 {
            return Err(ShardError::Strangers { address, keys: passed.strangers });
        }
        let Claim { slots, owner, epoch } = self.shard.claim.clone();
        Ok(manifest::Shard {
            file: self.file.clone(),
            bytes: passed.bytes,
            sha256: passed.sha256,
            slots,
            owner,
            epoch,
            from: address.to_string(),
            from_replica: source.replica,
            engine: source.engine,
            replication: copy.point,
            taken_ms,
            format: passed.format,
            tally: passed.tally,
        })
    }

    /// Everything from one end to the other.
    async fn pass(
        &self,
        copy: &mut Copy,
        upload: &mut Upload,
        address: SocketAddr,
        watch: &Watch,
    ) -> Result<Passed, ShardError> {
        let fault = |source| ShardError::Passage { address, source };
        let mut passage = Passage::new(&self.shard.claim.slots);
        let mut chunk = Vec::new();
        let mut keys = 0;
        while !passage.is_done() {
            chunk.clear();
            copy.read(&mut chunk).await?;
            let used = passage.add(&chunk).map_err(fault)?;
            watch.bytes.fetch_add(used as u64, Ordering::Relaxed);
            watch.keys.fetch_add(passage.keys() - keys, Ordering::Relaxed);
            keys = passage.keys();
            upload.write(chunk.get(..used).unwrap_or_default()).await?;
            chunk.drain(..used);
        }
        let passed = passage.finish().map_err(fault)?;
        copy.check_end(passed.bytes, chunk).await?;
        Ok(passed)
    }

    /// Waits until a replica has what its primary had when we looked.
    async fn caught_up(&self, address: SocketAddr) -> Result<(), ShardError> {
        let until = Instant::now() + CATCH_UP_MAX;
        loop {
            let info = info(address, self.login.as_ref()).await.map_err(CopyError::from)?;
            let offset = info.u64("slave_repl_offset").or(info.u64("master_repl_offset"));
            if offset.unwrap_or(0) >= self.shard.offset {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(ShardError::Behind { address });
            }
            sleep(PAUSE / 5).await;
        }
    }
}
