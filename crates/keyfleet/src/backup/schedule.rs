//! The backups that guard takes by itself: when, and how they came out.
//!
//! One at a time, beside all else that guard does: a backup only reads. What was missed is made up for
//! once, for the next is due a whole period after the last. After a failure it is tried again sooner.
//! Commands are kept of all clusters that want it, all the time.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use fleet::model::{BackupPolicy, ClusterName};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    follow::{self, Progress},
    retention::Retention,
    shelf,
    storage::{Storage, is_url},
    take::{self, BackupError, Job, Watch},
};
use crate::{
    errors::with_causes,
    observe::now_ms,
    session::Session,
    store::{Store, StoreError},
};

/// The longest pause after a failure.
const AGAIN_MS: u64 = 900_000;

/// After commands could not be kept.
const AGAIN: Duration = Duration::from_secs(10);

/// Between two looks at what is due.
const LOOK: Duration = Duration::from_secs(1);

/// How long one that is told to stop may need to clear away.
const END_TIME_MAX: Duration = Duration::from_secs(10);

/// How a cluster's backups came out. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub last: Option<Success>,
    /// The last failure, where nothing succeeded since.
    pub failed: Option<Failed>,
}

/// A backup that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    pub id: String,
    pub started_ms: u64,
    pub keys: u64,
    pub bytes: u64,
}

/// One that wasn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub started_ms: u64,
    pub why: String,
}

impl Record {
    /// When the next is due.
    pub fn due_ms(&self, every_ms: u64) -> u64 {
        let by_plan = self.last.as_ref().map_or(0, |last| last.started_ms + every_ms);
        let again =
            self.failed.as_ref().map_or(0, |failed| failed.started_ms + every_ms.min(AGAIN_MS));
        by_plan.max(again)
    }

    /// The last one is older than two periods, or there is none although one was tried.
    pub fn is_late(&self, every_ms: u64, now_ms: u64) -> bool {
        match (&self.last, &self.failed) {
            (Some(last), _) => now_ms.saturating_sub(last.started_ms) > 2 * every_ms,
            (None, failed) => failed.is_some(),
        }
    }
}

/// Where a policy's backups go: relative directories are beside the spec.
pub fn place(store: &Store, policy: &BackupPolicy) -> String {
    let beside = store.root().parent().unwrap_or(Path::new("."));
    if is_url(&policy.to) {
        return policy.to.clone();
    }
    beside.join(&policy.to).display().to_string()
}

/// See the module.
#[derive(Debug, Default)]
pub struct Schedule {
    running: Option<Running>,
    following: BTreeMap<ClusterName, Following>,
    looked: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

/// A cluster whose commands are kept.
#[derive(Debug)]
struct Following {
    running: Running,
    progress: Arc<Progress>,
    /// The spec that it was begun by.
    spec: String,
    noted: follow::State,
}

impl Running {
    fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// Gives it up, and waits until it has cleared away.
    async fn end(self) -> bool {
        let _ = self.stop.send(true);
        timeout(END_TIME_MAX, self.task).await.is_ok()
    }
}

impl Schedule {
    /// Begins what is due, where nothing is under way. To be called often.
    pub fn tick(&mut self, session: &Session) -> Result<(), StoreError> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        self.keep_commands(session)?;
        if self.running.as_ref().is_some_and(|running| !running.is_over()) {
            return Ok(());
        }
        let mut due = Vec::new();
        for (name, cluster) in &session.fleet.clusters {
            if let Some(policy) = cluster.backup.as_ref().filter(|_| !cluster.stopped) {
                let mut record = session.store.backups(name)?;
                let following = self.following.get(name);
                if following.is_some_and(|following| following.progress.wants_backup()) {
                    record.last = None;
                }
                due.push((record.due_ms(policy.every_ms), name, policy));
            }
        }
        // The one that has waited longest.
        let Some((at_ms, name, policy)) = due.into_iter().min_by_key(|(at_ms, ..)| *at_ms) else {
            return Ok(());
        };
        if at_ms > now_ms() {
            return Ok(());
        }
        let (stop, stopped) = watch::channel(false);
        let storage = Storage::open(&place(&session.store, policy));
        let job = match storage {
            Ok(storage) => Ok(Job::of_fleet(session, name, storage)?),
            Err(error) => Err(BackupError::from(error)),
        };
        let retention = Retention { keep: policy.keep, keep_days: policy.keep_days };
        let (store, name) = (Arc::clone(&session.store), name.clone());
        let following = self.following.get(&name).map(|following| Arc::clone(&following.progress));
        let before = following.as_ref().map(|progress| progress.state());
        let task = tokio::spawn(async move {
            let started_ms = now_ms();
            let taken = match job {
                Ok(job) => run(job, retention, stopped).await,
                Err(error) => Err(error),
            };
            if let Some((progress, before)) = following.zip(before).filter(|_| taken.is_ok()) {
                progress.backed_up(&before);
            }
            if let Err(error) = note(&store, &name, started_ms, taken) {
                tracing::warn!("{error}");
            }
        });
        self.running = Some(Running { task, stop });
        Ok(())
    }

    /// Keeps the commands of those clusters whose policy says so.
    fn keep_commands(&mut self, session: &Session) -> Result<(), StoreError> {
        let clusters = session.fleet.clusters.iter().filter(|(_, cluster)| !cluster.stopped);
        let wanted: BTreeMap<&ClusterName, &BackupPolicy> = clusters
            .filter_map(|(name, cluster)| Some((name, cluster.backup.as_ref()?)))
            .filter(|(_, policy)| policy.continuous)
            .collect();
        for (name, following) in &mut self.following {
            if !wanted.contains_key(name) || following.spec != session.text {
                let _ = following.running.stop.send(true);
            }
            let state = following.progress.state();
            if state != following.noted {
                session.store.set_kept(name, &state)?;
                following.noted = state;
            }
        }
        self.following.retain(|_, following| !following.running.is_over());
        for (name, policy) in wanted {
            if self.following.contains_key(name) {
                continue;
            }
            let storage = match Storage::open(&place(&session.store, policy)) {
                Ok(storage) => storage,
                Err(error) => {
                    tracing::warn!(cluster = %name, "no commands are kept: {}", with_causes(&error));
                    continue;
                }
            };
            let mut job = Job::of_fleet(session, name, storage)?;
            let (stop, stopped) = watch::channel(false);
            let progress = Arc::new(Progress::default());
            let watched = Arc::clone(&progress);
            let task = tokio::spawn(async move {
                let ended = follow::follow(&mut job, follow::SEGMENT, &watched, stopped).await;
                if let Err(error) = ended {
                    tracing::warn!(
                        cluster = job.cluster,
                        "no commands are kept: {}",
                        with_causes(&error)
                    );
                    // Not again at once.
                    sleep(AGAIN).await;
                }
            });
            let following = Following {
                running: Running { task, stop },
                progress,
                spec: session.text.clone(),
                noted: follow::State::default(),
            };
            self.following.insert(name.clone(), following);
        }
        Ok(())
    }

    /// Gives up what is under way, and waits until it has cleared away.
    pub async fn end(self) {
        for following in self.following.into_values() {
            if !following.running.end().await {
                tracing::warn!("some commands were not kept; who goes on asks for them again");
            }
        }
        if let Some(running) = self.running
            && !running.end().await
        {
            tracing::warn!("a backup was left behind; a later one clears it away");
        }
    }
}

async fn run(
    mut job: Job,
    retention: Retention,
    stop: watch::Receiver<bool>,
) -> Result<Success, BackupError> {
    tracing::info!(cluster = job.cluster, "backup to {}", job.storage.place());
    let manifest = take::take(&mut job, &Watch::default(), stop).await?;
    match shelf::expire(&job.storage, &job.cluster, retention, now_ms()).await {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => tracing::info!(cluster = job.cluster, "backups deleted: {}", gone.join(", ")),
        Err(error) => tracing::warn!(cluster = job.cluster, "old backups stay: {error}"),
    }
    Ok(Success {
        started_ms: manifest.started_ms,
        keys: manifest.keys(),
        bytes: manifest.bytes(),
        id: manifest.id,
    })
}

fn note(
    store: &Store,
    cluster: &ClusterName,
    started_ms: u64,
    taken: Result<Success, BackupError>,
) -> Result<(), StoreError> {
    let mut record = store.backups(cluster)?;
    match taken {
        Ok(success) => {
            tracing::info!(%cluster, "backup {} is complete", success.id);
            record = Record { last: Some(success), failed: None };
        }
        // Whoever takes over takes it.
        Err(BackupError::Stopped) => return Ok(()),
        Err(error) => {
            let why = with_causes(&error);
            tracing::warn!(%cluster, "no backup: {why}");
            record.failed = Some(Failed { started_ms, why });
        }
    }
    store.set_backups(cluster, &record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(last_ms: Option<u64>, failed_ms: Option<u64>) -> Record {
        let success = |started_ms| Success { id: "id".to_owned(), started_ms, keys: 0, bytes: 0 };
        let failed = |started_ms| Failed { started_ms, why: "why".to_owned() };
        Record { last: last_ms.map(success), failed: failed_ms.map(failed) }
    }

    #[test]
    fn when_the_next_is_due() {
        const HOUR: u64 = 3_600_000;
        let check = |last_ms, failed_ms, every_ms, expected| {
            let record = record(last_ms, failed_ms);
            assert_eq!(record.due_ms(every_ms), expected, "{record:?} {every_ms}");
        };
        check(None, None, HOUR, 0);
        check(Some(10 * HOUR), None, HOUR, 11 * HOUR);
        check(None, Some(10 * HOUR), HOUR, 10 * HOUR + AGAIN_MS);
        check(None, Some(10 * HOUR), 60_000, 10 * HOUR + 60_000);
        // A failure long before the next by plan, and one after it was due.
        check(Some(10 * HOUR), Some(11 * HOUR), 24 * HOUR, 34 * HOUR);
        check(Some(10 * HOUR), Some(11 * HOUR), HOUR, 11 * HOUR + AGAIN_MS);
    }

    #[test]
    fn what_is_late() {
        let check = |last_ms, failed_ms, now_ms, expected| {
            let record = record(last_ms, failed_ms);
            assert_eq!(record.is_late(100, now_ms), expected, "{record:?} {now_ms}");
        };
        check(None, None, 1_000, false);
        check(None, Some(0), 1_000, true);
        check(Some(1_000), None, 1_200, false);
        check(Some(1_000), Some(1_100), 1_200, false);
        check(Some(1_000), None, 1_201, true);
    }
}
