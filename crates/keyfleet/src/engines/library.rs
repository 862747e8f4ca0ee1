//! The cache of unpacked engines: one directory for each, `{kind}-{package version}`, holding
//! `bin` and, where the machine lacks libraries, `lib`. A directory appears under its name only
//! when it is complete and its server has answered, so readers need no lock.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{EngineBinary, search};

/// How long another process may take to provision before this one gives up.
const LOCK_DEADLINE: Duration = Duration::from_secs(600);
const LOCK_RETRY: Duration = Duration::from_millis(100);

/// Every usable engine in the cache, by name. Entries of other users or with broken programs
/// are left out.
pub async fn list(cache: &Path) -> Vec<EngineBinary> {
    let mut directories: Vec<PathBuf> =
        fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    directories.retain(|path| !is_hidden(path));
    directories.sort();
    let mut found = Vec::new();
    for directory in directories {
        if let Ok(binary) = open(&directory).await {
            found.push(binary);
        }
    }
    found
}

/// The engine in one directory of the cache, or in words why it does not run.
pub async fn open(directory: &Path) -> Result<EngineBinary, String> {
    let programs = directory.join("bin");
    let libraries = Some(directory.join("lib")).filter(|path| path.is_dir());
    let server = search::servers_in(&programs).next().ok_or("has no server program")?;
    search::probe(&server, &[programs], libraries.as_deref()).await
}

/// The right to write into the cache, for one process at a time. Ends when it is dropped or its
/// process dies.
#[derive(Debug)]
pub struct Writer {
    _lock: File,
    cache: PathBuf,
}

impl Writer {
    /// Creates the cache where needed and waits for its lock.
    pub async fn open(cache: &Path) -> io::Result<Self> {
        fs::create_dir_all(cache)?;
        // Programs' paths and apt's need to be absolute, whatever the caller gave.
        let cache = cache.canonicalize()?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(cache.join(".lock"))?;
        let give_up = tokio::time::Instant::now() + LOCK_DEADLINE;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { _lock: lock, cache }),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() > give_up => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("another process holds {}/.lock", cache.display()),
                    ));
                }
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_RETRY).await,
            }
        }
    }

    /// A scratch directory in the cache, empty. What a process that died left there goes away.
    pub fn scratch(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.cache.join(format!(".{name}"));
        remove(&path)?;
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Makes a complete directory an entry of the cache. What has that name did not run just now
    /// and is replaced.
    pub fn publish(&self, complete: &Path, name: &str) -> io::Result<PathBuf> {
        let entry = self.cache.join(name);
        remove(&entry)?;
        fs::rename(complete, &entry)?;
        Ok(entry)
    }
}

/// Removes a directory, if there is one.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}
