//! Which server program a cluster runs: found on this machine, or unpacked from the
//! distribution's own packages into a private directory, with no root and nothing installed.
//!
//! The order is fixed, so that the same machine gives the same answer:
//! 1. the spec's `path`, and nothing else when it is given;
//! 2. programs on PATH;
//! 3. what was unpacked into the cache before;
//! 4. the distribution's packages, unpacked into the cache.
//!
//! Where several programs match, redis comes before valkey before keydb, then the highest
//! version, then the earliest on PATH.
//!
//! Every program that is returned has answered `--version` just before. Deliberately absent:
//! downloads from anywhere but the machine's own signed package sources.

mod command;
mod debian;
mod error;
mod library;
mod search;

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use fleet::model::EngineWant;
use protocol::Engine;

pub use error::EngineError;

/// A server program that runs here, and what goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineBinary {
    pub engine: Engine,
    /// Absolute path of the server program.
    pub server: PathBuf,
    /// Absolute path of the matching command line client, where there is one.
    pub cli: Option<PathBuf>,
    /// What LD_LIBRARY_PATH must be for both: set for unpacked packages that need libraries
    /// which this machine lacks.
    pub library_path: Option<PathBuf>,
}

impl EngineBinary {
    /// The server with the environment that it needs; arguments are the caller's.
    pub fn command(&self) -> tokio::process::Command {
        command::program(&self.server, self.library_path.as_deref())
    }

    /// The client with the environment that it needs. None where the engine came without one.
    pub fn cli_command(&self) -> Option<tokio::process::Command> {
        self.cli.as_ref().map(|cli| command::program(cli, self.library_path.as_deref()))
    }
}

/// Where unpacked engines are kept: `$XDG_CACHE_HOME/keyfleet/engines`, by default
/// `~/.cache/keyfleet/engines`. None where neither variable holds an absolute path.
pub fn default_cache() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("keyfleet").join("engines"))
}

/// The engine that the spec asks for, on this machine. May take a minute where packages have to
/// be downloaded; `cache` is created then. Several processes may do this at once.
pub async fn find(want: &EngineWant, cache: &Path) -> Result<EngineBinary, EngineError> {
    find_on(want, cache, &env::var_os("PATH").unwrap_or_default()).await
}

/// The engine that the spec asks for, where it is on this machine already. Changes nothing.
pub async fn present(want: &EngineWant, cache: &Path) -> Option<EngineBinary> {
    let path = env::var_os("PATH").unwrap_or_default();
    if let Some(given) = &want.path {
        return search::given(want, given, &path).await.ok();
    }
    let found = search::best(want, &search::on_path(&path).await);
    match found {
        Some(found) => Some(found),
        None => search::best(want, &library::list(cache).await),
    }
}

/// [`find`] with another PATH than this process has; apt is called by this process's own.
pub async fn find_on(
    want: &EngineWant,
    cache: &Path,
    path: &OsStr,
) -> Result<EngineBinary, EngineError> {
    if let Some(given) = &want.path {
        return search::given(want, given, path).await;
    }
    let mut seen = search::on_path(path).await;
    if let Some(found) = search::best(want, &seen) {
        return Ok(found);
    }
    let unpacked = library::list(cache).await;
    if let Some(found) = search::best(want, &unpacked) {
        return Ok(found);
    }
    seen.extend(unpacked);
    debian::provision(want, cache, path)
        .await
        .map_err(|source| EngineError::not_found(want, &seen, source))
}

#[cfg(test)]
mod tests;
