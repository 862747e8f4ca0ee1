//! How far an import got, on disk, so that the same command goes on after it was stopped.
//!
//! The file's name is a hash of what was asked for: the files' contents, the target, the options. So
//! the same command finds it, and another doesn't. A lock on a file beside it keeps the same import
//! from running twice.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use fleet::model::NodeName;
use protocol::NodeId;
use serde::{Deserialize, Serialize};

use super::{report::Tally, source::Position};
use crate::secrets::sha256;

/// Where an import goes on. Everything before is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    pub position: Position,
    pub tally: Tally,
    /// Keys that were there already.
    pub existing: u64,
    /// Keys that the servers would not take.
    pub refused: u64,
    /// Commands were being sent, which must not be done twice.
    pub commands: bool,
    /// All is loaded, and the commands that follow are being done.
    #[serde(default)]
    pub loaded: bool,
    /// What the nodes of a new cluster load at their start: the positions are in the files of the
    /// rest, and the tally counts both.
    #[serde(default)]
    pub booted: Option<Vec<Loaded>>,
}

/// A node that a new cluster starts with, and what its file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    pub node: NodeName,
    pub id: NodeId,
    pub keys: u64,
    /// How many of them end.
    pub expiring: u64,
}

/// The state of one import; holds its lock.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    _lock: File,
}

/// A state that can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the same import is running already")]
    Running,
}

impl StateFile {
    /// The state of what is asked for, described by `job`, in this directory.
    pub fn open(directory: &Path, job: &str) -> Result<Self, StateError> {
        let fault = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StateError::File { what, path, source }
        };
        fs::create_dir_all(directory).map_err(fault("make", directory))?;
        let hash = sha256(job.as_bytes());
        let path = directory.join(format!("{}.json", hash.get(..16).unwrap_or(&hash)));
        let lock_path = path.with_extension("lock");
        let lock = File::create(&lock_path).map_err(fault("write", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::Running),
            Err(TryLockError::Error(source)) => Err(fault("lock", &lock_path)(source)),
        }
    }

    /// What was saved; None where nothing was, or nothing that can be understood.
    pub fn load(&self) -> Option<Saved> {
        serde_json::from_str(&fs::read_to_string(&self.path).ok()?).ok()
    }

    /// Saves at once and for good: a crash leaves this or the one before.
    pub fn save(&self, saved: &Saved) -> Result<(), StateError> {
        let new = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            file.write_all(serde_json::to_string(saved)?.as_bytes())?;
            file.sync_data()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|source| StateError::File {
            what: "write",
            path: self.path.clone(),
            source,
        })
    }

    /// There is nothing to go on with.
    pub fn forget(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir_all(self.rest());
    }

    /// The directory for what is imported once a new cluster has loaded everything else.
    pub fn rest(&self) -> PathBuf {
        self.path.with_extension("rest")
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        // Two that begin at the same time may take locks of two files of this name: the later of
        // them finds what the first did.
        let _ = fs::remove_file(self.path.with_extension("lock"));
    }
}
