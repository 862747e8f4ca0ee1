//! KeyDB 6.3's directives, by hand: no package source carries KeyDB, so it can't be asked here.
//!
//! Sources: the answer of a KeyDB 6.3.4 server to CONFIG GET *, published with its other output;
//! the directives that only its file reader knows, and what CONFIG SET can change, from KeyDB's
//! src/config.cpp and its own documentation. KeyDB has what Redis 6.2 has, but for what is said
//! here. Directives whose source was not seen count as not live: a restart always works.

pub const VERSION: &str = "6.3.4";

/// In Redis 6.2, not in KeyDB.
pub const MISSING: [&str; 1] = ["gopher-enabled"];

/// Live in Redis 6.2, not in KeyDB: its threads share the listening sockets.
pub const NOT_LIVE: [&str; 3] = ["bind", "port", "tls-port"];

/// Only in KeyDB, and live.
pub const OWN_LIVE: [&str; 4] = [
    "allow-write-during-load",
    "min-clients-per-thread",
    "multi-master-no-forward",
    "replica-quorum",
];

/// Only in KeyDB. The second part says whether the value is several arguments.
pub const OWN: [(&str, bool); 38] = [
    ("active-client-balancing", false),
    ("active-replica", false),
    ("allow-rdb-resize-op", false),
    ("availability-zone", false),
    ("db-s3-object", false),
    ("delete-on-evict", false),
    ("enable-async-commands", false),
    ("enable-async-rehash", false),
    ("enable-keydb-fastsync", false),
    ("enable-motd", false),
    ("flash-disable-key-cache", false),
    ("force-backlog-disk-reserve", false),
    ("force-eviction-percent", false),
    ("loading-process-events-interval-bytes", false),
    ("loading-process-events-interval-keys", false),
    ("max-rand-count", false),
    ("max-snapshot-slip", false),
    ("maxclients-reserved", false),
    ("maxstorage", false),
    ("multi-master", false),
    ("multithread-load-enabled", false),
    ("overload-protect-percent", false),
    ("prefetch-enabled", false),
    ("repl-backlog-disk-reserve", false),
    ("replica-weighting-factor", false),
    ("semi-ordered-set-bucket-size", false),
    ("server-thread-affinity", false),
    ("server-threads", false),
    ("soft-shutdown", false),
    ("storage-cache-mode", false),
    ("storage-flush-period", false),
    ("storage-provider", true),
    ("storage-provider-options", false),
    ("time-thread-priority", false),
    ("tls-allowlist", true),
    ("tls-rotation", false),
    ("use-fork", false),
    ("version-override", false),
];

/// Both names of one directive, the old one first.
pub const ALIASES: [(&str, &str); 1] = [("io-threads", "server-threads")];
