//! The state directory, `.keyfleet` beside the spec: what must outlive a process of ours and isn't
//! in the servers themselves.
//!
//! ```text
//! nodes/<node>/        a node's directory: node.conf, users.acl, log, and what the server writes
//! nodes/.old/          directories that were moved aside, with their data
//! nodes/.boot-<cluster>/ a new cluster's primaries while they are made with their data
//! proxies/<proxy>/     a proxy's directory: proxy.json, served.json, figures.sock, log
//! secrets/<cluster>.<user>
//! stopped/<cluster>    `down` was asked for
//! freeze/<cluster>     planned changes are off until a time
//! backups/<cluster>    how guard's backups came out
//! kept/<cluster>       how the keeping of the commands after them goes
//! history/<cluster>    when the primary's role was moved by our hand
//! applied.yaml         the spec that guard enforces
//! lease, waiting       who may change the world; see [`crate::lease`]
//! ```
//!
//! Directories have mode 0700, files 0600. A file is replaced as a whole or not at all: written
//! beside, synced, renamed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use fleet::{
    model::{ClusterName, NodeName, ProxyName},
    step::Action,
};
use protocol::NodeId;
use serde::{Deserialize, Serialize};

use crate::{
    backup::{follow, schedule::Record},
    proxy::kept::{PROXY_SERVED, PROXY_STATE, State},
    secrets::Secret,
};

/// In the directory of the nodes: those that were moved aside.
pub(crate) const OLD: &str = ".old";

/// In the directory of a new cluster's primaries: they are whole, and are being moved.
pub(crate) const BOOT_READY: &str = "ready";

/// How many role changes a cluster's history keeps.
const HISTORY_MAX: usize = 256;

/// How many of guard's deeds are kept.
const DEEDS_MAX: usize = 32;

/// A file or directory of the state directory can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("can't {action} {}: {source}", path.display())]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StoreError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// The state directory. Making this value touches nothing; directories come with the first write.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Why and until when a cluster's planned changes are off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// Milliseconds since the Unix epoch.
    pub until_ms: u64,
    pub why: String,
    /// Guard heals nothing either.
    #[serde(default)]
    pub healing_too: bool,
}

impl Freeze {
    /// Does it stop this step at this time (milliseconds since the Unix epoch)?
    pub const fn stops(&self, action: &Action, now_ms: u64) -> bool {
        self.until_ms > now_ms && (self.healing_too || action.is_planned())
    }
}

/// Something that guard did, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What was done, and why.
    pub what: String,
}

#[derive(Serialize, Deserialize)]
struct Handover {
    primary: NodeId,
    at_ms: u64,
    /// Nobody took over from it.
    #[serde(default)]
    refused: bool,
}

impl Store {
    /// `.keyfleet` in the directory of the spec, which must exist.
    pub fn beside(spec: &Path) -> Result<Self, StoreError> {
        let directory = match spec.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // The kernel names working directories by their real paths, and nodes are found by those.
        let real = directory.canonicalize();
        let real = real.map_err(|source| StoreError::new("find", directory, source))?;
        let root = real.join(".keyfleet");
        Ok(Self { root: root.canonicalize().unwrap_or(root) })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the nodes' directories are.
    pub fn nodes_dir(&self) -> PathBuf {
        self.root.join("nodes")
    }

    pub fn node_dir(&self, node: &NodeName) -> PathBuf {
        self.nodes_dir().join(node.to_string())
    }

    /// Where a new cluster's primaries are made with their data.
    pub fn boot_dir(&self, cluster: &ClusterName) -> PathBuf {
        self.nodes_dir().join(format!(".boot-{cluster}"))
    }

    /// Is a new cluster's data being moved to its nodes? Nobody else may make any then.
    pub fn is_booting(&self, cluster: &ClusterName) -> bool {
        self.boot_dir(cluster).join(BOOT_READY).exists()
    }

    /// The nodes that have a directory, in order.
    pub fn nodes(&self) -> Result<Vec<NodeName>, StoreError> {
        let mut names: Vec<NodeName> =
            list(&self.nodes_dir())?.iter().filter_map(|name| name.parse().ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Where the proxies' directories are.
    pub fn proxies_dir(&self) -> PathBuf {
        self.root.join("proxies")
    }

    pub fn proxy_dir(&self, proxy: &ProxyName) -> PathBuf {
        self.proxies_dir().join(proxy.as_str())
    }

    /// The proxies that have a directory, in order.
    pub fn proxies(&self) -> Result<Vec<ProxyName>, StoreError> {
        let mut names: Vec<ProxyName> =
            list(&self.proxies_dir())?.into_iter().map(ProxyName::new).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What a proxy serves, or served last; before it does, what it was started with. None where it
    /// never was, or the file can't be understood (then it is written anew).
    pub fn proxy_state(&self, proxy: &ProxyName) -> Result<Option<State>, StoreError> {
        let directory = self.proxy_dir(proxy);
        let text = match read(&directory.join(PROXY_SERVED))? {
            None => read(&directory.join(PROXY_STATE))?,
            served => served,
        };
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// The password of a cluster's user; made where there is none yet. Two processes that make it
    /// at once end with the same one.
    pub fn secret(&self, cluster: &ClusterName, user: &str) -> Result<Secret, StoreError> {
        let path = self.root.join("secrets").join(format!("{cluster}.{user}"));
        if let Some(text) = read(&path)? {
            return Ok(Secret::new(text.trim_end()));
        }
        let secret = Secret::generate().map_err(|source| StoreError::new("make", &path, source))?;
        let temporary = write_beside(&path, secret.expose().as_bytes())?;
        let linked = fs::hard_link(&temporary, &path);
        let removed = fs::remove_file(&temporary);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let text = read(&path)?.unwrap_or_default();
                return Ok(Secret::new(text.trim_end()));
            }
            Err(source) => return Err(StoreError::new("write", &path, source)),
        }
        removed.map_err(|source| StoreError::new("remove", &temporary, source))?;
        sync_parent(&path)?;
        Ok(secret)
    }

    /// Was `down` asked for?
    pub fn is_stopped(&self, cluster: &ClusterName) -> bool {
        self.root.join("stopped").join(cluster.as_str()).exists()
    }

    pub fn set_stopped(&self, cluster: &ClusterName, stopped: bool) -> Result<(), StoreError> {
        let path = self.root.join("stopped").join(cluster.as_str());
        if stopped { replace(&path, b"") } else { remove(&path) }
    }

    /// Deletes everything of a cluster: its nodes' directories with their data, those that were moved
    /// aside, its secrets, freeze and history. Its servers must have ended. It stays marked as stopped,
    /// or a guard would make it again.
    pub fn delete_cluster(&self, cluster: &ClusterName) -> Result<(), StoreError> {
        let of_cluster =
            |name: &str| name.parse::<NodeName>().is_ok_and(|node| node.cluster == *cluster);
        let old = self.nodes_dir().join(OLD);
        remove_directory(&self.boot_dir(cluster))?;
        for name in list(&self.nodes_dir())?.iter().filter(|name| of_cluster(name)) {
            remove_directory(&self.nodes_dir().join(name))?;
        }
        // Moved aside they are called `node-time`.
        for name in list(&old)? {
            if name.rsplit_once('-').is_some_and(|(node, _)| of_cluster(node)) {
                remove_directory(&old.join(name))?;
            }
        }
        let secrets = self.root.join("secrets");
        for name in list(&secrets)? {
            if name.rsplit_once('.').is_some_and(|(of, _)| of == cluster.as_str()) {
                remove(&secrets.join(name))?;
            }
        }
        for proxy in self.proxies()? {
            if self.proxy_state(&proxy)?.is_some_and(|state| state.cluster == *cluster) {
                remove_directory(&self.proxy_dir(&proxy))?;
            }
        }
        for marks in ["freeze", "history", "backups", "kept"] {
            remove(&self.root.join(marks).join(cluster.as_str()))?;
        }
        Ok(())
    }

    /// The cluster's freeze, whether it has run out or not.
    pub fn freeze(&self, cluster: &ClusterName) -> Result<Option<Freeze>, StoreError> {
        let path = self.root.join("freeze").join(cluster.as_str());
        let Some(text) = read(&path)? else { return Ok(None) };
        let freeze = serde_json::from_str(&text);
        freeze.map(Some).map_err(|error| StoreError::new("understand", &path, error.into()))
    }

    /// None takes it off.
    pub fn set_freeze(
        &self,
        cluster: &ClusterName,
        freeze: Option<&Freeze>,
    ) -> Result<(), StoreError> {
        let path = self.root.join("freeze").join(cluster.as_str());
        match freeze {
            Some(freeze) => replace(&path, json(freeze, &path)?.as_bytes()),
            None => remove(&path),
        }
    }

    /// How guard's backups of the cluster came out; nothing where it took none yet.
    pub fn backups(&self, cluster: &ClusterName) -> Result<Record, StoreError> {
        let text = read(&self.root.join("backups").join(cluster.as_str()))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    pub fn set_backups(&self, cluster: &ClusterName, record: &Record) -> Result<(), StoreError> {
        let path = self.root.join("backups").join(cluster.as_str());
        replace(&path, json(record, &path)?.as_bytes())
    }

    /// How guard's keeping of the cluster's commands goes; None where none were kept yet.
    pub fn kept(&self, cluster: &ClusterName) -> Result<Option<follow::State>, StoreError> {
        let text = read(&self.root.join("kept").join(cluster.as_str()))?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    pub fn set_kept(&self, cluster: &ClusterName, kept: &follow::State) -> Result<(), StoreError> {
        let path = self.root.join("kept").join(cluster.as_str());
        replace(&path, json(kept, &path)?.as_bytes())
    }

    /// The text of the spec that guard enforces.
    pub fn applied(&self) -> Result<Option<String>, StoreError> {
        read(&self.root.join("applied.yaml"))
    }

    pub fn set_applied(&self, spec: &str) -> Result<(), StoreError> {
        replace(&self.root.join("applied.yaml"), spec.as_bytes())
    }

    /// The primaries that got their role by our hand, and when (milliseconds since the Unix epoch),
    /// oldest first.
    pub fn handovers(&self, cluster: &ClusterName) -> Result<Vec<(NodeId, u64)>, StoreError> {
        self.changes(cluster, false)
    }

    /// The primaries that were to be replaced in vain, and when.
    pub fn refusals(&self, cluster: &ClusterName) -> Result<Vec<(NodeId, u64)>, StoreError> {
        self.changes(cluster, true)
    }

    fn changes(
        &self,
        cluster: &ClusterName,
        refused: bool,
    ) -> Result<Vec<(NodeId, u64)>, StoreError> {
        let entries = self.history(cluster)?.into_iter();
        let entries = entries.filter(|entry| entry.refused == refused);
        Ok(entries.map(|entry| (entry.primary, entry.at_ms)).collect())
    }

    /// What guard did lately, oldest first.
    pub fn deeds(&self) -> Result<Vec<Deed>, StoreError> {
        let text = read(&self.root.join("deeds"))?.unwrap_or_default();
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Remembers something that guard did.
    pub fn record_deed(&self, deed: Deed) -> Result<(), StoreError> {
        let path = self.root.join("deeds");
        let mut deeds = self.deeds()?;
        deeds.push(deed);
        let first = deeds.len().saturating_sub(DEEDS_MAX);
        let mut text = String::new();
        for deed in deeds.iter().skip(first) {
            text += &json(deed, &path)?;
            text.push('\n');
        }
        replace(&path, text.as_bytes())
    }

    fn history(&self, cluster: &ClusterName) -> Result<Vec<Handover>, StoreError> {
        let text = read(&self.root.join("history").join(cluster.as_str()))?.unwrap_or_default();
        // A line that can't be read is one that a crash cut short.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Remembers that this node became a primary.
    pub fn record_handover(
        &self,
        cluster: &ClusterName,
        primary: NodeId,
        at_ms: u64,
    ) -> Result<(), StoreError> {
        self.record(cluster, Handover { primary, at_ms, refused: false })
    }

    /// Remembers that nobody became primary in place of this one.
    pub fn record_refusal(
        &self,
        cluster: &ClusterName,
        primary: NodeId,
        at_ms: u64,
    ) -> Result<(), StoreError> {
        self.record(cluster, Handover { primary, at_ms, refused: true })
    }

    fn record(&self, cluster: &ClusterName, entry: Handover) -> Result<(), StoreError> {
        let path = self.root.join("history").join(cluster.as_str());
        let mut entries = self.history(cluster)?;
        entries.push(entry);
        let first = entries.len().saturating_sub(HISTORY_MAX);
        let mut text = String::new();
        for entry in entries.iter().skip(first) {
            text += &json(entry, &path)?;
            text.push('\n');
        }
        replace(&path, text.as_bytes())
    }
}

fn json(value: &impl Serialize, path: &Path) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::new("write", path, error.into()))
}

/// The names in a directory; none where it doesn't exist.
pub(crate) fn list(directory: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |source| StoreError::new("list", directory, source);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// A file's text; None where it doesn't exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::new("read", path, source)),
    }
}

/// Replaces a file as a whole; its directory is made where it is missing.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = write_beside(path, bytes)?;
    fs::rename(&temporary, path).map_err(|source| StoreError::new("write", path, source))?;
    sync_parent(path)
}

/// Removes a file; one that isn't there is no error.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::new("remove", path, source)),
    }
}

/// Removes a directory and all in it; one that isn't there is no error.
pub(crate) fn remove_directory(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory and those above it, for the owner only.
pub(crate) fn make_directory(path: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StoreError::new("make", path, source))
}

fn write_beside(path: &Path, bytes: &[u8]) -> Result<PathBuf, StoreError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let directory = path.parent().unwrap_or(Path::new("."));
    make_directory(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{name}.{}.{number}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|source| StoreError::new("write", &temporary, source))?;
    Ok(temporary)
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|source| StoreError::new("sync", directory, source))
}
