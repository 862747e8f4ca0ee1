//! The fleet as the spec wants it, typed and validated.

mod proxy;

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use protocol::{Engine, EngineKind, Version};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use proxy::{
    Listen, NearCache, Proxy, ProxyAddress, ProxyService, ProxyStart, ProxyTls, ReadFrom,
};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A machine's name in the spec.
    HostId
);
name_type!(
    /// A failure domain's name.
    Zone
);
name_type!(
    /// A cluster's name in the spec.
    ClusterName
);
name_type!(
    /// A proxy's name in the spec.
    ProxyName
);

/// One server process of the fleet for its whole life: `cache-3`. The number says nothing of its
/// role, which moves; it is never used for another process while this one's directory exists.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName {
    pub cluster: ClusterName,
    /// From 1.
    pub number: u32,
}

impl NodeName {
    pub const fn new(cluster: ClusterName, number: u32) -> Self {
        Self { cluster, number }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.cluster, self.number))
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The text is not `cluster-number`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a node's name: {0:?} (such as cache-1)")]
pub struct BadNodeName(pub String);

impl FromStr for NodeName {
    type Err = BadNodeName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadNodeName(text.to_owned());
        let (cluster, number) = text.rsplit_once('-').ok_or_else(bad)?;
        let plain = !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().map_err(|_| bad())?;
        // Directories that aren't complete have names that begin with a dot.
        if cluster.is_empty() || cluster.starts_with('.') || !plain {
            return Err(bad());
        }
        Ok(Self::new(ClusterName::new(cluster), number))
    }
}

impl Serialize for NodeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A number of bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const MIB: u64 = 1 << 20;

    pub const fn mib(count: u64) -> Self {
        Self(count * Self::MIB)
    }
}

impl fmt::Display for Bytes {
    /// `512 MiB`, `1.5 GiB`: three digits at the most before the unit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        let text = if value < 10.0 && value.fract() > 0.049 {
            format!("{value:.1} {unit}")
        } else {
            format!("{value:.0} {unit}")
        };
        f.pad(&text)
    }
}

/// Everything that should exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    pub hosts: BTreeMap<HostId, Host>,
    pub clusters: BTreeMap<ClusterName, Cluster>,
    pub proxies: BTreeMap<ProxyName, Proxy>,
    pub guard: GuardPolicy,
}

/// A machine that nodes can be placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub id: HostId,
    /// Where its nodes listen and what they announce.
    pub address: IpAddr,
    /// The host's own name where the spec gives none.
    pub zone: Zone,
    /// What nodes may use together; unknown where the spec doesn't say.
    pub memory: Option<Bytes>,
}

/// What a cluster is for; it sets the defaults of persistence, eviction and takeover.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Data can be had again: no persistence, eviction, the quickest failover.
    Cache,
    /// Data is the only copy: RDB and AOF, no eviction, the failover that loses least.
    Durable,
}

/// What guard does when a primary's process is proven dead.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Takeover {
    /// Have the best in-sync replica elected at once.
    Promote,
    /// Restart it where its data on disk holds more than the replicas can; else promote.
    LeastLoss,
}

/// Which engine a cluster runs: each part that is given must match.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct EngineWant {
    pub kind: Option<EngineKind>,
    pub version: Option<VersionWant>,
    /// The server program's path; where it is given, nothing is searched for.
    pub path: Option<String>,
}

impl EngineWant {
    pub fn matches(&self, engine: &Engine) -> bool {
        self.kind.is_none_or(|kind| kind == engine.kind)
            && self.version.as_ref().is_none_or(|want| want.matches(engine))
    }
}

impl fmt::Display for EngineWant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind, &self.version) {
            (None, None) => f.write_str("any engine"),
            (Some(kind), None) => write!(f, "{kind}"),
            (None, Some(version)) => write!(f, "version {version}"),
            (Some(kind), Some(version)) => write!(f, "{kind} {version}"),
        }
    }
}

/// A version's leading numbers: `7`, `7.0` or `7.0.15`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionWant(Vec<u16>);

/// The text is not one to three numbers with dots between.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a version: {0:?} (such as 7, 7.0 or 7.0.15)")]
pub struct BadVersionWant(pub String);

impl VersionWant {
    pub fn matches(&self, engine: &Engine) -> bool {
        let version = engine.version;
        let have = [version.major, version.minor, version.patch];
        self.0.iter().zip(have).all(|(want, have)| *want == have)
    }
}

impl VersionWant {
    /// The version of this prefix that is nearest to `other`: parts that aren't given are its own.
    pub fn at_most(&self, other: Version) -> Version {
        let part = |index: usize, own: u16| self.0.get(index).copied().unwrap_or(own);
        Version::new(part(0, other.major), part(1, other.minor), part(2, other.patch))
    }
}

impl FromStr for VersionWant {
    type Err = BadVersionWant;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadVersionWant(text.to_owned());
        let parts: Result<Vec<u16>, _> = text.split('.').map(str::parse).collect();
        let parts = parts.map_err(|_| bad())?;
        if parts.len() > 3 { Err(bad()) } else { Ok(Self(parts)) }
    }
}

impl fmt::Display for VersionWant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            write!(f, "{}{part}", if index == 0 { "" } else { "." })?;
        }
        Ok(())
    }
}

/// One Redis-protocol cluster as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub name: ClusterName,
    pub engine: EngineWant,
    /// Primaries that own slots; 1 to 1,000.
    pub shards: u32,
    /// Replicas of each primary.
    pub replicas: u32,
    pub profile: Profile,
    pub takeover: Takeover,
    /// What one node may use; maxmemory follows from it (see [`Cluster::maxmemory`]).
    pub memory: Option<Bytes>,
    pub ports: PortBase,
    /// Hosts that its nodes may be placed on.
    pub hosts: Vec<HostId>,
    pub placement: PlacementPolicy,
    /// `cluster-node-timeout`.
    pub node_timeout_ms: u64,
    /// ACL users beside keyfleet's own.
    pub users: BTreeMap<String, User>,
    /// The directives that nodes run with apart from those keyfleet owns: the profile's defaults,
    /// then the spec's `config:` over them, then what follows from `memory`. Lower-case canonical names.
    pub config: BTreeMap<String, DirectiveValue>,
    /// How fast slots move.
    pub pace: Pace,
    /// Backups that guard takes.
    pub backup: Option<BackupPolicy>,
    /// Where a `down` was asked for: its nodes are to be stopped.
    pub stopped: bool,
}

/// When backups of a cluster are taken, where they go, and how long they stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupPolicy {
    /// A directory, relative to the spec's, or a URL.
    pub to: String,
    pub every_ms: u64,
    /// The newest so many stay.
    pub keep: Option<u32>,
    /// Those that are not older stay.
    pub keep_days: Option<u32>,
    /// Every command after them is kept too.
    pub continuous: bool,
}

/// A directive's occurrences in a configuration file, each a list of arguments. One occurrence for
/// most; several for `save`, `client-output-buffer-limit` and their like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DirectiveValue(pub Vec<Vec<String>>);

impl DirectiveValue {
    /// One occurrence of one argument.
    pub fn single(argument: impl Into<String>) -> Self {
        Self(vec![vec![argument.into()]])
    }

    /// What CONFIG SET takes for it: all the arguments with a space between.
    pub fn joined(&self) -> String {
        let arguments: Vec<&str> = self.0.iter().flatten().map(String::as_str).collect();
        arguments.join(" ")
    }
}

/// How fast slots move while clients are served.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// Adapts to the latency it sees, so that clients hardly notice.
    Gentle,
    /// As fast as the servers go.
    Full,
}

/// The first node's ports; the next node's are one higher each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortBase {
    pub tcp: u16,
    /// Reserved for TLS.
    pub tls: u16,
    pub bus: u16,
    /// The spec names them; else taken ports are skipped.
    pub explicit: bool,
}

/// One node's ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ports {
    pub tcp: u16,
    pub tls: u16,
    pub bus: u16,
}

impl PortBase {
    /// The ports `offset` above the base; None past 65,535.
    pub fn at(&self, offset: u16) -> Option<Ports> {
        Some(Ports {
            tcp: self.tcp.checked_add(offset)?,
            tls: self.tls.checked_add(offset)?,
            bus: self.bus.checked_add(offset)?,
        })
    }
}

/// How primaries are spread over failure domains of one kind.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// No single domain's loss may stop the cluster: at most ⌈N/2⌉−1 of N primaries in one.
    QuorumSafe,
    /// As even as the domains allow, with no promise.
    PreferSpread,
    /// Don't care.
    Any,
}

/// Where a cluster's nodes may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementPolicy {
    pub primaries_host: Spread,
    pub primaries_zone: Spread,
}

/// An ACL user of the spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub password: PasswordSource,
    /// ACL rules without on/off and passwords: `+@all -@dangerous ~*`.
    pub rules: String,
}

/// Where a user's password comes from. The password itself is never part of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordSource {
    /// Made once and kept in a file of mode 0600 beside the spec.
    Generated,
    /// An environment variable's value.
    Env(String),
    /// A file's first line.
    File(String),
    /// None is asked for.
    None,
}

/// What guard may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardPolicy {
    pub mode: GuardMode,
    /// Handovers and relocations an hour, at the most.
    pub moves_per_hour_max: u32,
}

/// How far guard may go.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Guard does nothing.
    Off,
    /// It says what it would do.
    Observe,
    /// It heals, and keeps primaries spread.
    Enforce,
}

impl Cluster {
    /// Primaries and replicas together.
    pub const fn nodes_wanted(&self) -> u32 {
        self.shards * (1 + self.replicas)
    }

    /// Does the configuration keep data over a restart?
    pub fn persists(&self) -> bool {
        self.appends() || self.saves()
    }

    /// Is the append-only file on?
    pub fn appends(&self) -> bool {
        self.config.get("appendonly").is_some_and(|value| value.joined() == "yes")
    }

    fn saves(&self) -> bool {
        self.config.get("save").is_none_or(|value| !value.joined().trim().is_empty())
    }
}

/// The `maxmemory` that fits a node limited to `memory`: what is left after room for the fork's
/// copied pages (a share, larger where the profile writes snapshots and AOF rewrites), and for client
/// and replication buffers (a fixed part). Never less than half of `memory`.
pub fn maxmemory(memory: Bytes, profile: Profile) -> Bytes {
    let share = match profile {
        Profile::Cache => memory.0 / 100 * 85,
        Profile::Durable => memory.0 / 100 * 70,
    };
    Bytes(share.saturating_sub(16 * Bytes::MIB).max(memory.0 / 2))
}

/// The most primaries of `shards` that one failure domain may hold: ⌈shards/2⌉−1, so that the rest
/// is a majority that can vote.
pub const fn quorum_safe_max(shards: usize) -> usize {
    shards.div_ceil(2).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        let name: NodeName = "my-cache-12".parse().unwrap();
        assert_eq!((name.cluster.as_str(), name.number), ("my-cache", 12));
        assert_eq!(name.to_string(), "my-cache-12");
        for bad in ["", "cache", "cache-", "-1", "cache-01", "cache-x", "cache-+1", ".new-cache-1"]
        {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_wanted() {
        let engine = Engine { kind: EngineKind::Redis, version: Version::new(7, 0, 15) };
        let check = |want: &str, expected: bool| {
            assert_eq!(want.parse::<VersionWant>().unwrap().matches(&engine), expected, "{want}");
        };
        check("7", true);
        check("7.0", true);
        check("7.0.15", true);
        check("7.0.1", false);
        check("7.2", false);
        check("70", false);
        assert!("7.x".parse::<VersionWant>().is_err());
    }

    #[test]
    fn bytes_for_people() {
        let check = |bytes: u64, text: &str| assert_eq!(Bytes(bytes).to_string(), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1 KiB");
        check(1536, "1.5 KiB");
        check(512 << 20, "512 MiB");
        check(1 << 30, "1 GiB");
    }

    #[test]
    fn memory_leaves_room() {
        let check = |mib: u64, profile: Profile, expected_mib: u64| {
            assert_eq!(maxmemory(Bytes::mib(mib), profile).0 / Bytes::MIB, expected_mib);
        };
        check(1000, Profile::Cache, 834);
        check(1000, Profile::Durable, 684);
        check(32, Profile::Durable, 16);
    }

    #[test]
    fn quorum_arithmetic() {
        for (shards, most) in [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2), (7, 3)] {
            assert_eq!(quorum_safe_max(shards), most, "{shards}");
        }
    }
}
