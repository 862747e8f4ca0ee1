//! What a backup is: one JSON document beside its files, written last. Where it is not, there is no
//! backup.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime, Utc};
use protocol::{Engine, NodeId, SlotSet};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{replica::Point, shelf::ShelfError};

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

/// A document that says its version. `shown`: the name of what it is in.
pub(super) fn parse<T: DeserializeOwned>(
    text: &[u8],
    known: u32,
    shown: impl Fn() -> String,
) -> Result<T, ShelfError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let damaged = |source| ShelfError::Damaged { name: shown(), source };
    let Versioned { version } = serde_json::from_slice(text).map_err(damaged)?;
    if version > known {
        return Err(ShelfError::Newer { name: shown(), version });
    }
    serde_json::from_slice(text).map_err(damaged)
}

fn utc(at_ms: u64) -> DateTime<Utc> {
    let at = i64::try_from(at_ms).ok().and_then(DateTime::from_timestamp_millis);
    at.unwrap_or_default()
}

/// How a name says a time.
const ID: &str = "%Y-%m-%dT%H-%M-%SZ";

/// A backup's name from the time when it was begun (milliseconds since the Unix epoch). Later ones sort
/// behind.
pub fn id(at_ms: u64) -> String {
    utc(at_ms).format(ID).to_string()
}

/// A time as people say it, milliseconds since the Unix epoch: `2026-11-22T18:30:00Z`, with an offset in
/// place of Z, or as backups are named.
pub fn time(text: &str) -> Option<u64> {
    let named = || Some(NaiveDateTime::parse_from_str(text, ID).ok()?.and_utc().timestamp_millis());
    let at = DateTime::parse_from_rfc3339(text).ok().map(|at| at.timestamp_millis());
    u64::try_from(at.or_else(named)?).ok()
}

/// A time as people read it.
pub fn shown(at_ms: u64) -> String {
    utc(at_ms).format("%Y-%m-%dT%H:%M:%SZ").to_string()
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

    #[test]
    fn times() {
        let check = |text: &str, expected| assert_eq!(time(text), expected, "{text}");
        check("1970-01-01T00:00:01Z", Some(1_000));
        check("1970-01-01T01:00:01.5+01:00", Some(1_500));
        check("2025-01-01T00-00-00Z", Some(1_735_689_600_000));
        check("2025-01-01 00:00:00", None);
        check("1969-12-31T23:59:59Z", None);
        check("latest", None);
        assert_eq!(shown(1_735_689_600_999), "2025-01-01T00:00:00Z");
    }
}
