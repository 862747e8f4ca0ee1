//! Reading a backup back whole: every byte's sum, every file to its end, its keys counted.

use std::sync::atomic::{AtomicU64, Ordering};

use protocol::SlotSet;

use super::{
    manifest::{Manifest, Shard},
    passage::{Passage, PassageError},
    shelf,
    storage::{Storage, StorageError},
};

/// What is read at a time.
const READ_BYTES: u64 = 4 << 20;

/// A backup that isn't what it says, or can't be read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{file} is not there")]
    Missing { file: String },
    #[error("{file} has {bytes} bytes, and should have {expected}")]
    Length { file: String, bytes: u64, expected: u64 },
    #[error("{file} can't be read to its end")]
    Damaged { file: String, source: PassageError },
    #[error("{file} is another file than the one that was written: its SHA-256 differs")]
    Sum { file: String },
    #[error("{file} holds other keys than the manifest says")]
    Tally { file: String },
}

/// Reads one back whole; `read` tells how many bytes it is at.
pub async fn verify(
    storage: &Storage,
    manifest: &Manifest,
    read: &AtomicU64,
) -> Result<(), VerifyError> {
    for shard in &manifest.shards {
        verify_file(storage, manifest, shard, read).await?;
    }
    Ok(())
}

async fn verify_file(
    storage: &Storage,
    manifest: &Manifest,
    shard: &Shard,
    read: &AtomicU64,
) -> Result<(), VerifyError> {
    let name = shelf::file(&manifest.cluster, &manifest.id, &shard.file);
    let file = storage.shown(&name);
    let Some(found) = storage.find(&name).await? else {
        return Err(VerifyError::Missing { file });
    };
    let expected = shard.bytes;
    if found.bytes != expected {
        return Err(VerifyError::Length { file, bytes: found.bytes, expected });
    }
    let damaged = |source| VerifyError::Damaged { file: file.clone(), source };
    let mut passage = Passage::new(&SlotSet::new());
    let mut at = 0;
    while at < expected {
        let end = expected.min(at + READ_BYTES);
        let bytes = storage.read_range(&name, at..end).await?;
        passage.add(&bytes).map_err(damaged)?;
        read.fetch_add(end - at, Ordering::Relaxed);
        at = end;
    }
    let passed = passage.finish().map_err(damaged)?;
    if passed.sha256 != shard.sha256 || passed.bytes != expected {
        return Err(VerifyError::Sum { file });
    }
    if passed.tally != shard.tally {
        return Err(VerifyError::Tally { file });
    }
    Ok(())
}
