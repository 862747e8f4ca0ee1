//! A cluster's commands, as they were kept: every shard's stream, cut into segments.
//!
//! ```text
//! PLACE/cluster/stream/2026-11-22T18-30-00Z/0000000000 …     one chain: no byte is missing in it
//! ```
//!
//! A segment is one object: a line of JSON that says what it holds ([`Segment`]), then the bytes of
//! its pieces, one for each shard. It is there whole or not at all, and numbers are never given twice:
//! two that write the same chain find out. A piece may end in the middle of a command, which the next
//! one goes on with.

use bytes::Bytes;
use protocol::SlotSet;
use serde::{Deserialize, Serialize};

use super::{
    manifest,
    shelf::ShelfError,
    storage::{Storage, StorageError},
};
use crate::secrets::sha256;

/// Where the chains are, below the cluster's name.
pub const STREAM: &str = "stream";

/// The format's version: one that is higher can't be read by this program.
pub const VERSION: u32 = 1;

/// What is read first of a segment, for the line that says what it holds.
const HEAD_BYTES: u64 = 64 << 10;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub version: u32,
    pub cluster: String,
    /// The chain: when it was begun.
    pub chain: String,
    pub number: u64,
    /// When the one before was cut, milliseconds since the Unix epoch. What was written later is in this
    /// one, or behind it.
    pub since_ms: u64,
    /// When it was cut, milliseconds since the Unix epoch. No tick is later.
    pub cut_ms: u64,
    /// One for each shard, in the chain's order.
    pub pieces: Vec<Piece>,
    /// In order of time.
    pub ticks: Vec<Tick>,
}

/// A part of a shard's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// What the shard owned at each of the segment's ticks. Empty for a server that is no cluster's.
    pub slots: SlotSet,
    /// The stream's id at the end of the piece. It changes with the primary.
    pub id: String,
    /// Bytes of the stream before the piece.
    pub start: u64,
    /// Bytes of the stream up to its end.
    pub end: u64,
    /// Hexadecimal.
    pub sha256: String,
}

/// A moment that can be gone back to: all primaries were asked how far they were, and owned before and
/// after what they own by the pieces, no slot half moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// When they were asked, milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How long it took until the last of them had answered.
    pub took_ms: u64,
    /// How far the shards' streams were. Up to there commands are whole.
    pub offsets: Vec<u64>,
}

impl Piece {
    /// Its bytes' number.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// A segment and where in its object the bytes begin.
#[derive(Clone, Debug)]
pub struct Kept {
    pub segment: Segment,
    pub name: String,
    at: u64,
}

impl Kept {
    /// The bytes of a shard's piece.
    pub async fn piece(&self, storage: &Storage, shard: usize) -> Result<Vec<u8>, ShelfError> {
        let before: u64 = self.segment.pieces.iter().take(shard).map(Piece::bytes).sum();
        let Some(piece) = self.segment.pieces.get(shard) else { return Ok(Vec::new()) };
        if piece.bytes() == 0 {
            return Ok(Vec::new());
        }
        let start = self.at + before;
        let bytes = storage.read_range(&self.name, start..start + piece.bytes()).await?;
        if bytes.len() as u64 != piece.bytes() || sha256(&bytes) != piece.sha256 {
            return Err(ShelfError::Changed { name: storage.shown(&self.name) });
        }
        Ok(bytes.into())
    }
}

fn under(cluster: &str, chain: &str) -> String {
    format!("{cluster}/{STREAM}/{chain}")
}

fn name(cluster: &str, chain: &str, number: u64) -> String {
    format!("{}/{number:010}", under(cluster, chain))
}

/// The chains of a cluster by time.
pub async fn chains(storage: &Storage, cluster: &str) -> Result<Vec<String>, StorageError> {
    let mut chains = storage.directories(&format!("{cluster}/{STREAM}")).await?;
    chains.sort_unstable();
    Ok(chains)
}

/// The numbers of a chain's segments, in order.
pub async fn numbers(
    storage: &Storage,
    cluster: &str,
    chain: &str,
) -> Result<Vec<u64>, StorageError> {
    let objects = storage.objects(&under(cluster, chain)).await?;
    let last = |name: &str| name.rsplit('/').next().and_then(|number| number.parse().ok());
    let mut numbers: Vec<u64> = objects.iter().filter_map(|object| last(&object.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What a segment holds, without its bytes.
pub async fn read(
    storage: &Storage,
    cluster: &str,
    chain: &str,
    number: u64,
) -> Result<Kept, ShelfError> {
    let name = name(cluster, chain, number);
    let shown = || storage.shown(&name);
    let Some(found) = storage.find(&name).await? else {
        let (wanted, place) = (format!("segment {number} of {chain}"), storage.place().to_owned());
        return Err(ShelfError::Missing { wanted, place });
    };
    let mut head = HEAD_BYTES;
    loop {
        let bytes = storage.read_range(&name, 0..head.min(found.bytes)).await?;
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            if head >= found.bytes {
                return Err(ShelfError::Changed { name: shown() });
            }
            head *= 4;
            continue;
        };
        let line = bytes.get(..end).unwrap_or_default();
        let segment: Segment = manifest::parse(line, VERSION, shown)?;
        let at = end as u64 + 1;
        let expected = at + segment.pieces.iter().map(Piece::bytes).sum::<u64>();
        if expected != found.bytes {
            return Err(ShelfError::Changed { name: shown() });
        }
        return Ok(Kept { segment, name, at });
    }
}

/// The object of a segment with its pieces' bytes.
pub fn encode(segment: &Segment, pieces: &[Vec<u8>]) -> Result<Bytes, ShelfError> {
    let Segment { cluster, chain, number, .. } = segment;
    let mut bytes = serde_json::to_vec(segment)
        .map_err(|source| ShelfError::Damaged { name: name(cluster, chain, *number), source })?;
    bytes.push(b'\n');
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
    Ok(bytes.into())
}

/// Writes a segment's object; false: there is another one of its number.
pub async fn write(
    storage: &Storage,
    segment: &Segment,
    object: Bytes,
) -> Result<bool, StorageError> {
    let Segment { cluster, chain, number, .. } = segment;
    storage.prepare(&under(cluster, chain))?;
    storage.commit(&name(cluster, chain, *number), object).await
}

/// Throws away segments with nothing from `since_ms` on in them, and chains that are left empty. How
/// many.
pub async fn expire(storage: &Storage, cluster: &str, since_ms: u64) -> Result<usize, ShelfError> {
    let mut gone = 0;
    for chain in chains(storage, cluster).await? {
        let numbers = numbers(storage, cluster, &chain).await?;
        let mut left = numbers.len();
        for number in numbers {
            if read(storage, cluster, &chain, number).await?.segment.cut_ms >= since_ms {
                break;
            }
            storage.delete(&name(cluster, &chain, number)).await?;
            (gone, left) = (gone + 1, left - 1);
        }
        if left == 0 {
            let first = format!("{:010}", 0);
            storage.delete_all(&under(cluster, &chain), &first).await?;
        }
    }
    Ok(gone)
}
