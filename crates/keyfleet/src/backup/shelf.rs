//! The backups that a place holds: found, marked while they are written, committed, thrown away.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    manifest::{self, MANIFEST, Manifest, VERSION},
    retention::Retention,
    segment::{self, STREAM},
    storage::{Storage, StorageError},
};

/// The name of the mark that somebody writes a backup.
pub const MARK: &str = "in-progress";

/// A mark that wasn't renewed for so long belongs to one that was killed.
const MARK_AGE_MAX_MS: u64 = 120_000;

/// How far ahead of the clock a name may be that a new one goes behind.
const AHEAD_MAX_S: u32 = 60;

/// Manifests that are read at a time.
const READ_AT_ONCE: usize = 8;

/// A backup that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{name} can't be understood")]
    Damaged { name: String, source: serde_json::Error },
    #[error("{name} is not what was written")]
    Changed { name: String },
    #[error("{name} was written by a newer keyfleet (its version is {version})")]
    Newer { name: String, version: u32 },
    #[error("there is no backup {wanted} in {place}")]
    Missing { wanted: String, place: String },
    #[error("{place} holds backups of several clusters: {clusters}")]
    Several { place: String, clusters: String },
}

fn under(cluster: &str, id: &str) -> String {
    format!("{cluster}/{id}")
}

/// The clusters that the place has backups of.
pub async fn clusters(storage: &Storage) -> Result<Vec<String>, StorageError> {
    storage.directories("").await
}

/// The names of a cluster's backups, complete or not, in order of time.
async fn names(storage: &Storage, cluster: &str) -> Result<BTreeSet<String>, StorageError> {
    let mut names: BTreeSet<String> = storage.directories(cluster).await?.into_iter().collect();
    names.remove(STREAM);
    Ok(names)
}

/// One backup; None where it isn't complete.
pub async fn read(
    storage: &Storage,
    cluster: &str,
    id: &str,
) -> Result<Option<Manifest>, ShelfError> {
    let name = format!("{}/{MANIFEST}", under(cluster, id));
    let Some(text) = storage.read(&name).await? else { return Ok(None) };
    manifest::parse(&text, VERSION, || storage.shown(&name)).map(Some)
}

/// A cluster's complete backups by time. One that can't be understood is an error of its own.
pub async fn all(
    storage: &Storage,
    cluster: &str,
) -> Result<Vec<Result<Manifest, ShelfError>>, StorageError> {
    let names = names(storage, cluster).await?;
    let found = stream::iter(names.into_iter().map(|id| async move {
        match read(storage, cluster, &id).await {
            Err(ShelfError::Storage(error)) => Err(error),
            other => Ok(other.transpose()),
        }
    }));
    let found: Vec<_> = found.buffered(READ_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// The cluster that is named, or the only one. `wanted`: what is looked for.
pub async fn cluster(
    storage: &Storage,
    named: Option<&str>,
    wanted: &str,
) -> Result<String, ShelfError> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let place = || storage.place().to_owned();
    let mut found = clusters(storage).await?;
    if found.len() > 1 {
        return Err(ShelfError::Several { place: place(), clusters: found.join(", ") });
    }
    let missing = || ShelfError::Missing { wanted: wanted.to_owned(), place: place() };
    found.pop().ok_or_else(missing)
}

/// The backup of this name, or the last one by `latest`.
pub async fn find(
    storage: &Storage,
    named: Option<&str>,
    wanted: &str,
) -> Result<Manifest, ShelfError> {
    let missing =
        || ShelfError::Missing { wanted: wanted.to_owned(), place: storage.place().to_owned() };
    let cluster = cluster(storage, named, wanted).await?;
    if wanted != "latest" {
        return read(storage, &cluster, wanted).await?.ok_or_else(missing);
    }
    for id in names(storage, &cluster).await?.iter().rev() {
        if let Some(found) = read(storage, &cluster, id).await? {
            return Ok(found);
        }
    }
    Err(missing())
}

/// Begins a backup under a name that nobody has, behind the names that there are: now, or some seconds
/// later.
pub async fn begin(
    storage: &Storage,
    cluster: &str,
    mut at_ms: u64,
) -> Result<String, StorageError> {
    let last = names(storage, cluster).await?.pop_last();
    for _ in 0..AHEAD_MAX_S {
        if last.as_ref().is_some_and(|last| manifest::id(at_ms) <= *last) {
            at_ms += 1000;
        }
    }
    loop {
        let id = manifest::id(at_ms);
        storage.prepare(&under(cluster, &id))?;
        if storage.create(&mark(cluster, &id), Bytes::new()).await? {
            if storage.find(&file(cluster, &id, MANIFEST)).await?.is_none() {
                return Ok(id);
            }
            // One that was done within the same second.
            storage.delete(&mark(cluster, &id)).await?;
        }
        at_ms += 1000;
    }
}

/// Says that a backup is still being written.
pub async fn renew(storage: &Storage, cluster: &str, id: &str) -> Result<(), StorageError> {
    storage.write(&mark(cluster, id), Vec::new()).await
}

fn mark(cluster: &str, id: &str) -> String {
    format!("{}/{MARK}", under(cluster, id))
}

/// A file of a backup.
pub fn file(cluster: &str, id: &str, name: &str) -> String {
    format!("{}/{name}", under(cluster, id))
}

/// Makes a backup complete, for good; false: there is one of this name.
pub async fn commit(storage: &Storage, manifest: &Manifest) -> Result<bool, ShelfError> {
    let Manifest { cluster, id, .. } = manifest;
    let name = file(cluster, id, MANIFEST);
    let text = serde_json::to_vec_pretty(manifest)
        .map_err(|source| ShelfError::Damaged { name: storage.shown(&name), source })?;
    if !storage.commit(&name, text.into()).await? {
        return Ok(false);
    }
    if let Err(error) = storage.delete(&mark(cluster, id)).await {
        // It stands in nobody's way.
        tracing::debug!("{error}");
    }
    Ok(true)
}

/// Throws a backup away, whether it is complete or not. From its first moment on it isn't complete.
pub async fn discard(storage: &Storage, cluster: &str, id: &str) -> Result<(), StorageError> {
    storage.delete_all(&under(cluster, id), MANIFEST).await
}

/// Throws away what killed backups left behind, as told by the storage's own clock at the mark of
/// `own`. Their names.
pub async fn clean(
    storage: &Storage,
    cluster: &str,
    own: &str,
) -> Result<Vec<String>, StorageError> {
    let Some(now) = storage.find(&mark(cluster, own)).await? else { return Ok(Vec::new()) };
    let mut cleaned = Vec::new();
    for id in names(storage, cluster).await? {
        if id == own {
            continue;
        }
        let objects = storage.objects(&under(cluster, &id)).await?;
        let complete = objects.iter().any(|object| object.name == file(cluster, &id, MANIFEST));
        let last = objects.iter().map(|object| object.changed_ms).max();
        if !complete && last.is_some_and(|last| last + MARK_AGE_MAX_MS < now.changed_ms) {
            discard(storage, cluster, &id).await?;
            cleaned.push(id);
        }
    }
    Ok(cleaned)
}

/// Throws away the backups that have had their time, and commands from before those that are left.
/// The backups' names.
pub async fn expire(
    storage: &Storage,
    cluster: &str,
    retention: Retention,
    now_ms: u64,
) -> Result<Vec<String>, ShelfError> {
    let complete: Vec<(String, u64)> = all(storage, cluster)
        .await?
        .into_iter()
        .flatten()
        .map(|manifest| (manifest.id, manifest.started_ms))
        .collect();
    let outdated = retention.outdated(&complete, now_ms);
    for id in &outdated {
        discard(storage, cluster, id).await?;
    }
    let left = complete.iter().filter(|(id, _)| !outdated.contains(id));
    if let Some(since_ms) = left.map(|(_, at_ms)| *at_ms).min().filter(|_| !outdated.is_empty()) {
        segment::expire(storage, cluster, since_ms).await?;
    }
    Ok(outdated)
}
