//! What a backup is: one JSON document beside its files, written last. Where it is not, there is no
//! backup.

use std::collections::BTreeMap;

use protocol::{Engine, NodeId, SlotSet};
use serde::{Deserialize, Serialize};

use super::replica::Point;

/// The name of the document below a backup's own.
pub const MANIFEST: &str = "manifest.json";

/// The document's version: one that is higher can't be read by this program.
pub const VERSION: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    /// Its name: when it was begun, `2026-11-22T18-30-00Z`.
    pub id: String,
    pub cluster: String,
    /// Milliseconds since the Unix epoch: what the primaries had written by then is in it.
    pub started_ms: u64,
    /// Milliseconds since the Unix epoch: no write after then is in it.
    pub finished_ms: u64,
    /// By lowest slot.
    pub shards: Vec<Shard>,
    /// The fleet's file as it was, for a cluster of the fleet. It holds no passwords.
    pub spec: Option<String>,
}

/// A shard's part: an RDB file that holds what one of its nodes had at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Beside the document.
    pub file: String,
    pub bytes: u64,
    /// Hexadecimal.
    pub sha256: String,
    /// Empty for a server that is no cluster's.
    pub slots: SlotSet,
    /// The slots' owner.
    pub owner: Option<NodeId>,
    /// The epoch of its claim to them.
    pub epoch: u64,
    /// Who gave the file: an address.
    pub from: String,
    pub from_replica: bool,
    pub engine: Engine,
    /// The instant, in the stream of writes.
    pub replication: Point,
    /// No later than this by our clock, milliseconds since the Unix epoch, was that instant.
    pub taken_ms: u64,
    /// The file's format, such as `REDIS0010`.
    pub format: String,
    pub tally: Tally,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// By the name of their type.
    pub types: BTreeMap<String, Count>,
    /// Keys that end.
    pub expiring: u64,
    /// Libraries of functions.
    pub functions: u64,
}

/// Keys and the bytes of their values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub keys: u64,
    pub bytes: u64,
}

impl Tally {
    pub fn keys(&self) -> u64 {
        self.types.values().map(|count| count.keys).sum()
    }
}

impl Manifest {
    pub fn keys(&self) -> u64 {
        self.shards.iter().map(|shard| shard.tally.keys()).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }
}

/// A backup's name from the time when it was begun (milliseconds since the Unix epoch). Later ones sort
/// behind.
pub fn id(at_ms: u64) -> String {
    let seconds = at_ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Gregorian, counted from March of the year 0, so that leap days come last: 400 years have
    // 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), (month + 2) % 12 + 1);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{of_month:02}T{hour:02}-{minute:02}-{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |at_s: u64, expected: &str| assert_eq!(id(at_s * 1000 + 999), expected);
        check(0, "1970-01-01T00-00-00Z");
        check(951_782_399, "2000-02-28T23-59-59Z");
        check(951_782_400, "2000-02-29T00-00-00Z");
        check(951_868_800, "2000-03-01T00-00-00Z");
        check(1_735_689_599, "2024-12-31T23-59-59Z");
        check(1_735_689_600, "2025-01-01T00-00-00Z");
        check(4_102_444_800, "2100-01-01T00-00-00Z");
    }
}
