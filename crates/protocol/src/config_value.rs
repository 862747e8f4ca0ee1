//! Values of configuration directives, in a form in which equal ones are equal text.
//!
//! Deliberately absent: whether a value is allowed, what an engine rounds it to (`hz` 1000 is
//! answered as 500), and merging several lines of one directive, which is the caller's.

/// How a directive's value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A number of bytes, perhaps with a unit.
    Memory,
    /// One word of a list, or several; the engines ignore case and order.
    Words,
    /// `client-output-buffer-limit`: class, hard limit, soft limit, seconds, and again.
    BufferLimits,
    /// `notify-keyspace-events`: a set of letters.
    Events,
    /// File permissions.
    Octal,
    /// A directory, which the engines answer without a slash at its end.
    Directory,
    /// Words whose order matters.
    List,
    /// As it is.
    Text,
    /// Not one of the above: a number, `yes` or `no`, a name.
    Other,
}

/// What a directive is, by its name. The lists hold what redis 6.2 to 8.0 and valkey 8.1 to 9.1
/// themselves say when they are given a value that they refuse, and what the documentation of
/// redis 8.4 and keydb 6.3 adds.
fn kind(name: &str) -> Kind {
    match name {
        "active-defrag-ignore-bytes"
        | "auto-aof-rewrite-min-size"
        | "client-query-buffer-limit"
        | "cluster-link-sendbuf-limit"
        | "cluster-slot-migration-handoff-max-lag-bytes"
        | "hash-max-listpack-value"
        | "hash-max-ziplist-value"
        | "hll-sparse-max-bytes"
        | "maxmemory"
        | "maxmemory-clients"
        | "maxstorage"
        | "proto-max-bulk-len"
        | "repl-backlog-disk-reserve"
        | "repl-backlog-size"
        | "replica-full-sync-buffer-limit"
        | "slot-migration-max-failover-repl-bytes"
        | "stream-node-max-bytes"
        | "zset-max-listpack-value"
        | "zset-max-ziplist-value" => Kind::Memory,
        "acl-pubsub-default"
        | "appendfsync"
        | "cluster-config-save-behavior"
        | "cluster-preferred-endpoint-type"
        | "enable-debug-command"
        | "enable-module-command"
        | "enable-protected-configs"
        | "log-format"
        | "log-timestamp-format"
        | "loglevel"
        | "maxmemory-policy"
        | "oom-score-adj"
        | "propagation-error-behavior"
        | "rdb-version-check"
        | "repl-diskless-load"
        | "sanitize-dump-payload"
        | "shutdown-on-sigint"
        | "shutdown-on-sigterm"
        | "supervised"
        | "syslog-facility"
        | "tls-auth-clients"
        | "tls-auth-clients-user" => Kind::Words,
        "bind"
        | "latency-tracking-info-percentiles"
        | "oom-score-adj-values"
        | "replicaof"
        | "save"
        | "slaveof" => Kind::List,
        "masterauth"
        | "masteruser"
        | "primaryauth"
        | "primaryuser"
        | "requirepass"
        | "tls-client-key-file-pass"
        | "tls-key-file-pass" => Kind::Text,
        "client-output-buffer-limit" => Kind::BufferLimits,
        "notify-keyspace-events" => Kind::Events,
        "unixsocketperm" => Kind::Octal,
        "dir" => Kind::Directory,
        _ => Kind::Other,
    }
}

/// A directive's value in a form in which what is asked for and what CONFIG GET answers compare
/// equal where they mean the same: `1gb` and `1073741824`, `Yes` and `yes`, `slave 0 0 0` and
/// `replica 0 0 0`. `name` is in lower case. A value of several words is given as one text, its
/// words with spaces between.
pub fn normalise_value(name: &str, value: &str) -> String {
    let words = || value.split_ascii_whitespace();
    match kind(name) {
        Kind::Text => value.to_owned(),
        Kind::Memory => memory_text(value.trim()),
        Kind::List => words().collect::<Vec<_>>().join(" "),
        Kind::Words => {
            let mut words: Vec<_> = words().map(str::to_ascii_lowercase).collect();
            words.sort_unstable();
            let value = words.join(" ");
            // `relative` and `yes` are two names of one thing, answered as `yes`.
            if name == "oom-score-adj" && value == "relative" { "yes".to_owned() } else { value }
        }
        Kind::BufferLimits => {
            let word = |(index, word): (usize, &str)| match index % 4 {
                0 if word.eq_ignore_ascii_case("slave") => "replica".to_owned(),
                0 => word.to_ascii_lowercase(),
                1 | 2 => memory_text(word),
                _ => word.to_owned(),
            };
            words().enumerate().map(word).collect::<Vec<_>>().join(" ")
        }
        Kind::Events => {
            let mut letters: Vec<char> = value.replace('A', "g$lshzxetd").chars().collect();
            letters.sort_unstable();
            letters.dedup();
            letters.into_iter().collect()
        }
        Kind::Octal => match value.trim().trim_start_matches('0') {
            "" => "0".to_owned(),
            digits => digits.to_owned(),
        },
        Kind::Directory => match value.trim_end_matches('/') {
            "" => value.to_owned(),
            path => path.to_owned(),
        },
        Kind::Other => {
            let lower = value.trim().to_ascii_lowercase();
            if matches!(lower.as_str(), "yes" | "no") { lower } else { value.to_owned() }
        }
    }
}

/// The bytes of an amount of memory as the engines read it (`memtoull`): digits, then nothing,
/// `b`, or `k`, `m`, `g` for powers of 1,000, or `kb`, `mb`, `gb` for powers of 1,024, in any
/// case. None for anything else and where it is more than 64 bits hold.
pub fn parse_memory(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at_checked(digits)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1_000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// In bytes where it is an amount; a percentage (`maxmemory-clients`) or what cannot be read stays.
fn memory_text(text: &str) -> String {
    parse_memory(text).map_or_else(|| text.to_owned(), |bytes| bytes.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_memory(text), expected, "{text}");
        };
        check("0", Some(0));
        check("100", Some(100));
        check("100b", Some(100));
        check("1k", Some(1_000));
        check("1kb", Some(1_024));
        check("2M", Some(2_000_000));
        check("2Mb", Some(2_097_152));
        check("3g", Some(3_000_000_000));
        check("3GB", Some(3_221_225_472));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        check("18446744073gb", None);
        for bad in ["", "b", "-1", "1.5gb", "1 gb", "1tb", "1kib", "5%", "é"] {
            check(bad, None);
        }
    }

    #[test]
    fn equal_values() {
        let check = |name: &str, asked: &str, answered: &str| {
            assert_eq!(normalise_value(name, asked), normalise_value(name, answered), "{name}");
        };
        check("maxmemory", "1gb", "1073741824");
        check("maxmemory-clients", "5%", "5%");
        check("hash-max-listpack-value", "1kb", "1024");
        check("appendonly", "YES", "yes");
        check("maxmemory-policy", "AllKeys-LRU", "allkeys-lru");
        check("shutdown-on-sigterm", "now save", "save now");
        check("oom-score-adj", "relative", "yes");
        check("save", "3600  1\t300 100", "3600 1 300 100");
        check("client-output-buffer-limit", "slave 256mb 64MB 60", "replica 268435456 67108864 60");
        check("notify-keyspace-events", "KEA", "AKE");
        check("notify-keyspace-events", "g$lshzxetdE", "AE");
        check("unixsocketperm", "0700", "700");
        check("unixsocketperm", "000", "0");
        check("dir", "/var/lib/redis/", "/var/lib/redis");
        check("bind", "127.0.0.1  -::1", "127.0.0.1 -::1");
    }

    #[test]
    fn different_values() {
        let check = |name: &str, one: &str, other: &str| {
            assert_ne!(normalise_value(name, one), normalise_value(name, other), "{name}");
        };
        check("maxmemory", "1g", "1gb");
        check("maxmemory-clients", "5%", "5");
        check("requirepass", "Yes", "yes");
        check("dbfilename", "Dump.rdb", "dump.rdb");
        check("dbfilename", "1kb", "1024");
        check("notify-keyspace-events", "KA", "EA");
        check("save", "60 1 300 1", "300 1 60 1");
        check("dir", "/", "");
    }
}
