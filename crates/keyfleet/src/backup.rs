//! Backups: every shard's data as an RDB file, in a directory or a bucket.
//!
//! ```text
//! PLACE/cluster/2026-11-22T18-30-00Z/0001.rdb …      the shards' files
//! PLACE/cluster/2026-11-22T18-30-00Z/in-progress     somebody writes it
//! PLACE/cluster/2026-11-22T18-30-00Z/manifest.json   it is complete
//! PLACE/cluster/stream/2026-11-22T18-29-59Z/…        every command from then on ([`segment`])
//! ```
//!
//! Each file is what a node sent to us as to a replica ([`replica`]), parsed while it passes, so what
//! can't be read is not kept. The manifest comes last and only where there is none: a backup is
//! complete or not there.
//!
//! What a backup of a cluster is: each file is one instant of its shard, the whole effect of the
//! stream of writes up to an offset, and nothing of what came after. The instants of the shards
//! differ. All of them are later than the beginning of the backup: what primaries had written by then
//! is in it. No slot is missing or twice: the shards' claims to slots ([`layout::Claim`]) are the same
//! before and after their files were taken, or the file is taken again.

pub mod follow;
pub mod layout;
pub mod manifest;
mod passage;
pub mod point;
pub mod reader;
pub mod replica;
pub mod retention;
pub mod schedule;
pub mod segment;
pub mod shelf;
pub mod storage;
pub mod tail;
pub mod take;
pub mod verify;
