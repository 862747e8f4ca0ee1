//! One writer at a time: a lease on the state directory.
//!
//! Two files carry kernel locks (flock), which end with the process that holds them, however it
//! ends. Who holds `lease` may change the world. Who wants it for a command (`up`, `down`,
//! `handover`) first locks `waiting`: an acting guard looks at that between steps, lets go of the
//! lease, and takes it back when nobody waits. So a command never waits longer than a step, and a
//! second guard stands by until the first is gone.
//!
//! What the lease file says of its holder is for messages only; no decision rests on it.

use std::{
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    observe::now_ms,
    store::{self, Store, StoreError},
};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Who holds the lease, as it said itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    /// `guard`, `up`, …
    pub command: String,
    /// Milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// The lease wasn't had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("{} is at work{}", who(.holder.as_ref()), so_long(*.waited))]
    Taken {
        /// None where it said nothing of itself yet.
        holder: Option<Holder>,
        /// How long it was waited for.
        waited: Duration,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn who(holder: Option<&Holder>) -> String {
    match holder {
        Some(holder) => format!("`keyfleet {}` (pid {})", holder.command, holder.pid),
        None => "another keyfleet".to_owned(),
    }
}

fn so_long(waited: Duration) -> String {
    if waited.is_zero() { String::new() } else { format!(" for more than {} s", waited.as_secs()) }
}

/// The right to change the world, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lease {
    file: File,
    waiting: PathBuf,
}

impl Lease {
    /// For a command: waits for a guard to finish its step, and for other commands to end. An error
    /// names the holder after the deadline.
    pub async fn command(
        store: &Store,
        command: &str,
        deadline: Duration,
    ) -> Result<Self, LeaseError> {
        let started = Instant::now();
        let waiting = loop {
            if let Some(waiting) = lock(&waiting_path(store))? {
                break waiting;
            }
            pause(store, started, deadline).await?;
        };
        let lease = loop {
            if let Some(lease) = Self::take(store, command)? {
                break lease;
            }
            pause(store, started, deadline).await?;
        };
        drop(waiting);
        Ok(lease)
    }

    /// For a guard: None while another process holds it or a command waits for it.
    pub fn try_guard(store: &Store) -> Result<Option<Self>, LeaseError> {
        if is_locked(&waiting_path(store))? { Ok(None) } else { Self::take(store, "guard") }
    }

    /// Does a command wait for it? Then a guard is to drop it.
    pub fn is_wanted(&self) -> bool {
        // A file that can't be read now is no reason to stop guarding.
        is_locked(&self.waiting).unwrap_or(false)
    }

    /// Holds it until the process has ended. For one that is interrupted: what its dropped steps still
    /// do until they pause, such as starting a server, must not meet another's steps.
    pub fn until_exit(self) {
        std::mem::forget(self);
    }

    /// Who holds it; None where it is free.
    pub fn holder(store: &Store) -> Result<Option<Holder>, LeaseError> {
        let path = lease_path(store);
        if !path.exists() || !is_locked(&path)? {
            return Ok(None);
        }
        let text = store::read(&path)?.unwrap_or_default();
        let unknown = Holder { pid: 0, command: "?".to_owned(), since_ms: 0 };
        Ok(Some(serde_json::from_str(&text).unwrap_or(unknown)))
    }

    fn take(store: &Store, command: &str) -> Result<Option<Self>, LeaseError> {
        let path = lease_path(store);
        let Some(mut file) = lock(&path)? else { return Ok(None) };
        let (pid, command) = (std::process::id(), command.to_owned());
        let holder = Holder { pid, command, since_ms: now_ms() };
        let text = serde_json::to_string(&holder).unwrap_or_default();
        // In place: the lock is on this very file.
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(text.as_bytes()));
        written.map_err(|source| StoreError::new("write", &path, source))?;
        Ok(Some(Self { file, waiting: waiting_path(store) }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The lock goes with the file; what it said of us shall not outlive it.
        let _ = self.file.set_len(0);
    }
}

fn lease_path(store: &Store) -> PathBuf {
    store.root().join("lease")
}

fn waiting_path(store: &Store) -> PathBuf {
    store.root().join("waiting")
}

async fn pause(store: &Store, started: Instant, deadline: Duration) -> Result<(), LeaseError> {
    if started.elapsed() > deadline {
        return Err(LeaseError::Taken { holder: Lease::holder(store)?, waited: deadline });
    }
    tokio::time::sleep(PAUSE).await;
    Ok(())
}

/// The file with its lock; None where somebody else has it.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    let failed = |source| StoreError::new("lock", path, source);
    if let Some(directory) = path.parent() {
        store::make_directory(directory)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}

/// Looks without taking it for itself: several may look at once.
fn is_locked(path: &Path) -> Result<bool, StoreError> {
    let failed = |source| StoreError::new("look at", path, source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(failed(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Directory(PathBuf, Store);

    impl Directory {
        fn new(test: &str) -> Self {
            let root = std::env::temp_dir().join(format!("keyfleet-lease-{test}-{}", now_ms()));
            fs::create_dir_all(&root).unwrap();
            let store = Store::beside(&root.join("fleet.yaml")).unwrap();
            Self(root, store)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[tokio::test]
    async fn a_command_makes_guard_give_way() {
        let directory = Directory::new("give-way");
        let store = directory.1.clone();
        let guard = Lease::try_guard(&store).unwrap().unwrap();
        assert!(!guard.is_wanted());
        assert_eq!(Lease::holder(&store).unwrap().unwrap().command, "guard");
        assert!(Lease::try_guard(&store).unwrap().is_none(), "two guards");
        let command = tokio::spawn({
            let store = store.clone();
            async move { Lease::command(&store, "up", Duration::from_secs(10)).await }
        });
        while !guard.is_wanted() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(guard);
        assert!(Lease::try_guard(&store).unwrap().is_none(), "guard overtakes a command");
        let command = command.await.unwrap().unwrap();
        assert_eq!(Lease::holder(&store).unwrap().unwrap().command, "up");
        drop(command);
        assert_eq!(Lease::holder(&store).unwrap(), None);
        assert!(Lease::try_guard(&store).unwrap().is_some());
    }

    #[tokio::test]
    async fn whoever_holds_it_is_named() {
        let directory = Directory::new("named");
        let deadline = Duration::from_millis(50);
        let _up = Lease::command(&directory.1, "up", deadline).await.unwrap();
        let error = Lease::command(&directory.1, "down", deadline).await.unwrap_err().to_string();
        assert!(error.contains("`keyfleet up` (pid"), "{error}");
    }
}
