//! Which engine a server is, and what that engine can do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Info;

/// The products that speak the cluster protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    Redis,
    Valkey,
    KeyDb,
}

impl EngineKind {
    /// `redis`, `valkey`, `keydb`: also the prefix of the programs' names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Valkey => "valkey",
            Self::KeyDb => "keydb",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

/// The text is not a version like `7.0.15`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version: {0:?} (such as 7.0.15)")]
pub struct BadVersion(pub String);

impl Version {
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }
}

impl FromStr for Version {
    type Err = BadVersion;

    /// One to three numbers; missing ones are 0; what follows the third number (`-rc1`) is ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadVersion(text.chars().take(32).collect());
        let mut parts = text.splitn(3, '.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse::<u16>().map_err(|_| bad())
        });
        let mut next = || parts.next().unwrap_or(Ok(0));
        Ok(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One product in one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Engine {
    pub kind: EngineKind,
    pub version: Version,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.version)
    }
}

/// What a server or a program says of itself names no engine that is known here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownEngine {
    #[error("INFO has no field {0:?}")]
    NoField(&'static str),
    #[error("INFO says server_name:{0}")]
    ServerName(String),
    #[error("not a version line of an engine: {0:?}")]
    VersionLine(String),
    #[error(transparent)]
    Version(#[from] BadVersion),
}

impl Engine {
    /// From INFO, all sections or at least the server's.
    ///
    /// Valkey gives its name and its version beside the Redis version it is compatible with
    /// (`server_name:valkey`, `valkey_version:8.1.1`, `redis_version:7.2.4`). KeyDB gives its own
    /// version as `redis_version` and no name; it is told by fields that only it has: the server
    /// section's `features:cluster_mget` (6.3.4) and, elsewhere, `storage_provider`,
    /// `long_lock_waits` and `mvcc_depth` (`genRedisInfoString` in KeyDB's `src/server.cpp`).
    pub fn from_info(info: &Info) -> Result<Self, UnknownEngine> {
        let version = |field: &'static str| -> Result<Version, UnknownEngine> {
            let text = info.get(field).ok_or(UnknownEngine::NoField(field))?;
            Ok(text.parse()?)
        };
        match info.get("server_name") {
            Some("valkey") => {
                return Ok(Self { kind: EngineKind::Valkey, version: version("valkey_version")? });
            }
            Some("redis") | None => {}
            Some(other) => return Err(UnknownEngine::ServerName(excerpt(other))),
        }
        let keydb_only = ["mvcc_depth", "long_lock_waits", "storage_provider"];
        let keydb = keydb_only.into_iter().any(|field| info.get(field).is_some())
            || info.get("features").is_some_and(|features| features.contains("cluster_mget"));
        let kind = if keydb { EngineKind::KeyDb } else { EngineKind::Redis };
        Ok(Self { kind, version: version("redis_version")? })
    }

    /// From what a server program prints for `--version`: `Redis server v=7.0.15 sha=…`,
    /// `Valkey server v=9.1.2 …`, `KeyDB server v=6.3.4 …`.
    pub fn from_version_line(line: &str) -> Result<Self, UnknownEngine> {
        let bad = || UnknownEngine::VersionLine(excerpt(line));
        let mut words = line.split_ascii_whitespace();
        let kind = match words.next() {
            Some("Redis") => EngineKind::Redis,
            Some("Valkey") => EngineKind::Valkey,
            Some("KeyDB") => EngineKind::KeyDb,
            _ => return Err(bad()),
        };
        let version = words.find_map(|word| word.strip_prefix("v=")).ok_or_else(bad)?;
        Ok(Self { kind, version: version.parse()? })
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

/// How slots move between primaries with no key at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtomicSlots {
    /// Only SETSLOT and MIGRATE.
    None,
    /// `CLUSTER MIGRATESLOTS` on the source (Valkey from 9.0).
    MigrateSlots,
    /// `CLUSTER MIGRATION IMPORT` on the destination (Redis from 8.4).
    MigrationImport,
}

/// What an engine can do, where engines differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dialect {
    /// `CLUSTER SHARDS` and `CLUSTER LINKS` (Redis from 7.0, Valkey).
    pub cluster_shards: bool,
    /// `cluster-announce-hostname` and preferred endpoints (Redis from 7.0, Valkey).
    pub hostnames: bool,
    /// `CLUSTER ADDSLOTSRANGE`, `CONFIG GET a b` (Redis from 7.0, Valkey).
    pub ranges: bool,
    /// ACL selectors and key permissions (Redis from 7.0, Valkey).
    pub acl_selectors: bool,
    pub atomic_slots: AtomicSlots,
}

impl Engine {
    /// The engine's dialect, by its version. Sources: the `since` fields of the engines' own
    /// command tables; KeyDB is Redis 6.2 in this respect.
    pub fn dialect(&self) -> Dialect {
        let seven = match self.kind {
            EngineKind::Redis => self.version.major >= 7,
            EngineKind::Valkey => true,
            EngineKind::KeyDb => false,
        };
        let atomic_slots = match self.kind {
            EngineKind::Valkey if self.version.major >= 9 => AtomicSlots::MigrateSlots,
            EngineKind::Redis if self.version >= Version::new(8, 4, 0) => {
                AtomicSlots::MigrationImport
            }
            _ => AtomicSlots::None,
        };
        Dialect {
            cluster_shards: seven,
            hostnames: seven,
            ranges: seven,
            acl_selectors: seven,
            atomic_slots,
        }
    }

    /// Can a server of this engine take over the data and the replication stream of `from`?
    /// True for the same product at the same or a later major.minor, and for Redis up to 7.2 (and
    /// KeyDB's own line aside) to any Valkey: their RDB format is the same up to version 11.
    pub fn can_follow(&self, from: &Engine) -> bool {
        let minor = |version: Version| (version.major, version.minor);
        match (from.kind, self.kind) {
            (old, new) if old == new => minor(self.version) >= minor(from.version),
            (EngineKind::Redis, EngineKind::Valkey) => minor(from.version) <= (7, 2),
            (EngineKind::Redis, EngineKind::KeyDb) => minor(from.version) <= (6, 2),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(text: &str) -> Engine {
        let (kind, version) = text.split_once(' ').unwrap();
        let kind = match kind {
            "redis" => EngineKind::Redis,
            "valkey" => EngineKind::Valkey,
            _ => EngineKind::KeyDb,
        };
        Engine { kind, version: version.parse().unwrap() }
    }

    #[test]
    fn versions() {
        assert_eq!("7.0.15".parse(), Ok(Version::new(7, 0, 15)));
        assert_eq!("9.1".parse(), Ok(Version::new(9, 1, 0)));
        assert_eq!("8.0.2-rc1".parse(), Ok(Version::new(8, 0, 2)));
        assert!("x".parse::<Version>().is_err());
        assert!("".parse::<Version>().is_err());
    }

    #[test]
    fn told_by_info() {
        let check = |text: &str, expected: &str| {
            let got = Engine::from_info(&Info::parse(&text.replace(' ', "\r\n")));
            let got = got.map_or_else(|error| error.to_string(), |engine| engine.to_string());
            assert_eq!(got, expected, "{text}");
        };
        check("redis_version:7.0.15 redis_mode:cluster", "redis 7.0.15");
        check("redis_version:7.2.4 server_name:valkey valkey_version:8.1.1", "valkey 8.1.1");
        check("redis_version:6.3.4 features:cluster_mget", "keydb 6.3.4");
        check("redis_version:6.3.4 mvcc_depth:0", "keydb 6.3.4");
        check("redis_version:6.3.4 storage_provider:none", "keydb 6.3.4");
        check("redis_version:6.3.4 long_lock_waits:0", "keydb 6.3.4");
        check("redis_version:7.4.0 features:", "redis 7.4.0");
        check("loading:0", "INFO has no field \"redis_version\"");
        check("redis_version:7.2.4 server_name:valkey", "INFO has no field \"valkey_version\"");
        check("redis_version:7.2.4 server_name:other", "INFO says server_name:other");
        check("redis_version:x", "not a version: \"x\" (such as 7.0.15)");
    }

    #[test]
    fn told_by_version_line() {
        let check = |line: &str, expected: Option<&str>| {
            let got = Engine::from_version_line(line).ok().map(|engine| engine.to_string());
            assert_eq!(got.as_deref(), expected, "{line}");
        };
        check(
            "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c97\n",
            Some("redis 7.0.15"),
        );
        check("Valkey server v=9.1.2 sha=00000000:0 malloc=libc bits=64", Some("valkey 9.1.2"));
        check("KeyDB server v=6.3.4 sha=7e7e5e57:0 malloc=jemalloc-5.2.1", Some("keydb 6.3.4"));
        check("Redis server v=unstable", None);
        check("Redis server", None);
        check("redis-cli 7.0.15", None);
        check("", None);
    }

    #[test]
    fn dialects() {
        let check = |text: &str, shards: bool, atomic: AtomicSlots| {
            let dialect = engine(text).dialect();
            assert_eq!((dialect.cluster_shards, dialect.atomic_slots), (shards, atomic), "{text}");
        };
        check("redis 6.2.5", false, AtomicSlots::None);
        check("redis 7.0.15", true, AtomicSlots::None);
        check("redis 8.0.2", true, AtomicSlots::None);
        check("redis 8.4.0", true, AtomicSlots::MigrationImport);
        check("valkey 8.1.1", true, AtomicSlots::None);
        check("valkey 9.1.2", true, AtomicSlots::MigrateSlots);
        check("keydb 6.3.4", false, AtomicSlots::None);
    }

    #[test]
    fn who_can_follow_whom() {
        let check = |from: &str, to: &str, expected: bool| {
            assert_eq!(engine(to).can_follow(&engine(from)), expected, "{from} to {to}");
        };
        check("redis 7.0.15", "redis 8.0.2", true);
        check("redis 8.0.2", "redis 7.0.15", false);
        check("redis 7.0.15", "valkey 9.1.2", true);
        check("redis 8.0.2", "valkey 9.1.2", false);
        check("valkey 9.1.2", "redis 8.0.2", false);
        check("redis 7.0.15", "redis 7.0.11", true);
    }
}
