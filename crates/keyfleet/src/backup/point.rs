//! A cluster as it was at a moment: a backup, and the commands from there to a tick.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use protocol::{
    SlotSet,
    rdb::aof::{self, Event},
};

use super::{
    manifest::{self, Manifest},
    segment::{self, Kept, Tick},
    shelf::{self, ShelfError},
    storage::{Storage, StorageError},
};

/// How long before the moment that is asked for the tick may be.
const NEAR_MS: u64 = 3_000;

/// What is read at a time.
const READ_AT_ONCE: usize = 8;

/// A moment that can't be gone back to.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("no commands of {cluster} were kept up to {at}")]
    Before { cluster: String, at: String },
    #[error("nothing is known of {cluster} at {at}: the last moment before is {last}")]
    Gap { cluster: String, at: String, last: String },
    #[error("the commands of {cluster} at {at} go on from no backup that is there")]
    NoBase { cluster: String, at: String },
    #[error("commands are missing between segments {number} and {next} of {chain}")]
    Hole { chain: String, number: u64, next: u64 },
    #[error("{name} holds something that is no command")]
    Damaged { name: String, source: aof::ReadError },
    #[error("{chain} ends in the middle of a command")]
    Cut { chain: String },
}

impl From<StorageError> for PointError {
    fn from(error: StorageError) -> Self {
        Self::Shelf(error.into())
    }
}

/// See the module.
#[derive(Debug)]
pub struct PointInTime {
    pub base: Manifest,
    pub tick: Tick,
    /// In the base's order.
    pub shards: Vec<Shard>,
    /// The segments that hold the commands, in order.
    segments: Vec<Kept>,
}

/// A shard's commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which of the segments' pieces are its.
    piece: usize,
    /// From which offset in the stream on, and up to which.
    pub from: u64,
    pub to: u64,
    /// What it owned at the tick; empty for a server that is no cluster's.
    pub slots: SlotSet,
}

/// The chains of a cluster, and the time that each of them covers.
pub async fn ranges(storage: &Storage, cluster: &str) -> Result<Vec<Range>, ShelfError> {
    let mut ranges = Vec::new();
    for chain in segment::chains(storage, cluster).await? {
        let numbers = segment::numbers(storage, cluster, &chain).await?;
        let mut first = None;
        for number in &numbers {
            match segment::read(storage, cluster, &chain, *number).await {
                // Its time has come since.
                Err(ShelfError::Missing { .. }) => {}
                read => {
                    first = Some(read?.segment);
                    break;
                }
            }
        }
        let Some(first) = first else { continue };
        let mut last_ms = None;
        for number in numbers.iter().rev() {
            let last = segment::read(storage, cluster, &chain, *number).await?;
            last_ms = last.segment.ticks.last().map(|tick| tick.at_ms);
            if last_ms.is_some() {
                break;
            }
        }
        ranges.extend(last_ms.map(|last_ms| Range { chain, first_ms: first.since_ms, last_ms }));
    }
    Ok(ranges)
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub chain: String,
    /// A backup that was begun later lies in it.
    pub first_ms: u64,
    /// The last tick.
    pub last_ms: u64,
}

impl Range {
    /// Up to when a backup can be gone on from, where it can.
    pub fn until(&self, backup: &Manifest) -> Option<u64> {
        (self.first_ms <= backup.started_ms && backup.finished_ms < self.last_ms)
            .then_some(self.last_ms)
    }
}

/// How often it is looked again where segments' time comes meanwhile.
const LOOKS: usize = 3;

/// How to get to a moment, milliseconds since the Unix epoch. `wanted`: the backup's name, where it must
/// be a certain one.
pub async fn find(
    storage: &Storage,
    cluster: &str,
    wanted: Option<&str>,
    at_ms: u64,
) -> Result<PointInTime, PointError> {
    let mut looks = 1;
    loop {
        match look(storage, cluster, wanted, at_ms).await {
            Err(PointError::Shelf(ShelfError::Missing { .. })) if looks < LOOKS => looks += 1,
            found => return found,
        }
    }
}

async fn look(
    storage: &Storage,
    cluster: &str,
    wanted: Option<&str>,
    at_ms: u64,
) -> Result<PointInTime, PointError> {
    let cluster_name = || cluster.to_owned();
    let mut best: Option<PointError> = None;
    for chain in segment::chains(storage, cluster).await?.into_iter().rev() {
        let numbers = segment::numbers(storage, cluster, &chain).await?;
        for pair in numbers.windows(2) {
            if let [number, next] = *pair
                && next != number + 1
            {
                return Err(PointError::Hole { chain, number, next });
            }
        }
        let reading = Chain { storage, cluster, name: &chain, numbers: &numbers };
        let Some((last, tick)) = reading.tick(at_ms).await? else { continue };
        if tick.at_ms + NEAR_MS < at_ms {
            best.get_or_insert_with(|| PointError::Gap {
                cluster: cluster_name(),
                at: manifest::shown(at_ms),
                last: manifest::shown(tick.at_ms),
            });
            continue;
        }
        let bases = shelf::all(storage, cluster).await?;
        for base in bases.into_iter().rev().flatten() {
            if base.started_ms > tick.at_ms || wanted.is_some_and(|wanted| base.id != wanted) {
                continue;
            }
            if let Some(found) = reading.join(&base, last, &tick).await? {
                return Ok(found);
            }
        }
        best = Some(PointError::NoBase { cluster: cluster_name(), at: manifest::shown(at_ms) });
    }
    Err(best.unwrap_or_else(|| PointError::Before {
        cluster: cluster_name(),
        at: manifest::shown(at_ms),
    }))
}

struct Chain<'a> {
    storage: &'a Storage,
    cluster: &'a str,
    name: &'a str,
    numbers: &'a [u64],
}

impl Chain<'_> {
    async fn read(&self, at: usize) -> Result<Kept, ShelfError> {
        let number = self.numbers.get(at).copied().unwrap_or_default();
        segment::read(self.storage, self.cluster, self.name, number).await
    }

    /// The first segment that was cut at that time or later.
    async fn cut_since(&self, at_ms: u64) -> Result<usize, ShelfError> {
        let (mut low, mut high) = (0, self.numbers.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.read(middle).await?.segment.cut_ms < at_ms {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// The last tick that isn't later, and the segment that it is in.
    async fn tick(&self, at_ms: u64) -> Result<Option<(usize, Tick)>, ShelfError> {
        let since = self.cut_since(at_ms).await?;
        let mut found = None;
        // A tick may be in a later segment than its time.
        for at in since..self.numbers.len() {
            let segment = self.read(at).await?.segment;
            let until = segment.ticks.iter().rev().find(|tick| tick.at_ms <= at_ms);
            found = until.map(|tick| (at, tick.clone())).or(found);
            if segment.ticks.last().is_some_and(|tick| tick.at_ms > at_ms) {
                break;
            }
        }
        for at in (0..since).rev() {
            if found.is_some() {
                break;
            }
            let segment = self.read(at).await?.segment;
            found = segment.ticks.last().map(|tick| (at, tick.clone()));
        }
        Ok(found)
    }

    /// The way from a backup to a tick; None where the commands don't go on from it.
    async fn join(
        &self,
        base: &Manifest,
        last: usize,
        tick: &Tick,
    ) -> Result<Option<PointInTime>, PointError> {
        let first = self.cut_since(base.started_ms).await?;
        if first > last {
            return Ok(None);
        }
        let reads = (first..=last).map(|at| self.read(at));
        let segments: Vec<Kept> = stream::iter(reads).buffered(READ_AT_ONCE).try_collect().await?;
        let mut shards = Vec::new();
        for shard in &base.shards {
            let point = &shard.replication;
            let of = |piece: usize| {
                let pieces = segments.iter().filter_map(move |kept| kept.segment.pieces.get(piece));
                pieces.map(|piece| (piece.start, piece.id.as_str()))
            };
            let count = tick.offsets.len();
            let Some(piece) = (0..count).find(|piece| of(*piece).any(|(_, id)| id == point.id))
            else {
                return Ok(None);
            };
            let (Some((start, _)), Some(to)) = (of(piece).next(), tick.offsets.get(piece)) else {
                return Ok(None);
            };
            if point.offset < start || point.offset > *to {
                return Ok(None);
            }
            let now = segments.last().and_then(|kept| kept.segment.pieces.get(piece));
            let slots = now.map(|piece| piece.slots.clone()).unwrap_or_default();
            shards.push(Shard { piece, from: point.offset, to: *to, slots });
        }
        if shards.len() != tick.offsets.len() {
            return Ok(None);
        }
        for pair in segments.windows(2) {
            let [one, next] = pair else { continue };
            let pieces = one.segment.pieces.iter().zip(&next.segment.pieces);
            let whole = one.segment.pieces.len() == next.segment.pieces.len()
                && pieces.clone().all(|(one, next)| one.end == next.start);
            if !whole {
                return Err(PointError::Hole {
                    chain: self.name.to_owned(),
                    number: one.segment.number,
                    next: next.segment.number,
                });
            }
        }
        let (base, tick) = (base.clone(), tick.clone());
        Ok(Some(PointInTime { base, tick, shards, segments }))
    }
}

impl PointInTime {
    /// Bytes of commands.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.to - shard.from).sum()
    }

    /// A shard's commands.
    pub fn commands<'a>(&'a self, storage: &'a Storage, shard: &Shard) -> Commands<'a> {
        Commands {
            storage,
            point: self,
            shard: shard.clone(),
            next: 0,
            at: shard.from,
            reader: aof::Reader::new(shard.from, aof::COMMAND_BYTES_MAX),
        }
    }

    /// About when a shard's stream was at an offset: milliseconds since the Unix epoch, at most some
    /// seconds late.
    pub fn time_of(&self, shard: &Shard, offset: u64) -> u64 {
        let ticks = |kept: &Kept| -> Option<u64> {
            let ticks = &kept.segment.ticks;
            let at = ticks.partition_point(|tick| {
                tick.offsets.get(shard.piece).is_none_or(|at| *at <= offset)
            });
            ticks.get(at).map(|tick| tick.at_ms)
        };
        let ends = |kept: &Kept| kept.segment.pieces.get(shard.piece).map_or(0, |piece| piece.end);
        let first = self.segments.partition_point(|kept| ends(kept) <= offset);
        let mut found = self.segments.iter().skip(first).find_map(ticks);
        found = found.map(|at_ms| at_ms.min(self.tick.at_ms));
        found.unwrap_or(self.tick.at_ms)
    }
}

/// A shard's commands, one after the other.
#[derive(Debug)]
pub struct Commands<'a> {
    storage: &'a Storage,
    point: &'a PointInTime,
    shard: Shard,
    /// The segment to be read next.
    next: usize,
    /// Up to where was read.
    at: u64,
    reader: aof::Reader,
}

impl Commands<'_> {
    /// Shows the next commands with their offsets, as many as come in one piece; false: there are no
    /// more.
    pub async fn next(&mut self, mut show: impl FnMut(u64, &[&[u8]])) -> Result<bool, PointError> {
        let Some(kept) = self.point.segments.get(self.next).filter(|_| self.at < self.shard.to)
        else {
            if self.at < self.shard.to || self.reader.finish().is_some() {
                let chain = self.point.segments.last().map(|kept| kept.segment.chain.clone());
                return Err(PointError::Cut { chain: chain.unwrap_or_default() });
            }
            return Ok(false);
        };
        self.next += 1;
        let Some(piece) = kept.segment.pieces.get(self.shard.piece) else { return Ok(true) };
        if piece.end <= self.at {
            return Ok(true);
        }
        let bytes = kept.piece(self.storage, self.shard.piece).await?;
        let skip = usize::try_from(self.at - piece.start).unwrap_or(usize::MAX);
        let end = piece.end.min(self.shard.to);
        let take = usize::try_from(end - piece.start).unwrap_or(usize::MAX);
        self.reader.feed(bytes.get(skip..take).unwrap_or_default());
        self.at = end;
        let damaged = |source| PointError::Damaged { name: self.storage.shown(&kept.name), source };
        loop {
            let event = self.reader.next().map_err(damaged)?;
            let Some(event) = event else { return Ok(true) };
            if let Event::Command(command) = event {
                let mut words: Vec<&[u8]> = Vec::with_capacity(command.arguments().len());
                words.extend(command.arguments());
                show(command.offset, &words);
            }
        }
    }
}
