//! Which configuration directives an engine knows, which of them CONFIG SET can change, and how
//! their values are written.
//!
//! The table beside this file comes from real engines, which were asked for every directive and
//! told to set it; `cargo xtask directives` makes it anew. KeyDB's rows, and directives that only
//! a file can have, are written by hand there, with their sources.

use std::sync::LazyLock;

use crate::engine::{Engine, EngineKind, Version};

/// What an engine makes of a directive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It refuses to start with it.
    Unknown,
    Known {
        /// CONFIG SET can change it; otherwise only the file can, at a start.
        live: bool,
        /// The value is several arguments, split at spaces (`bind 10.0.0.1 ::1`). Where it is
        /// false, a value with spaces is one argument and needs quotes.
        multi: bool,
    },
}

/// Does this engine know the directive? Case does not matter.
///
/// Versions count by their first two numbers. An engine between two tabled versions knows what
/// either of its neighbours knows, and the older one's answer comes first; one outside the table
/// is like the nearest in it.
pub fn lookup(engine: Engine, name: &str) -> Known {
    let known = TABLE.row(name).and_then(|row| {
        let live = TABLE.neighbours(engine).find_map(|version| row.live(engine.kind, version))?;
        Some(Known::Known { live, multi: row.multi })
    });
    known.unwrap_or(Known::Unknown)
}

/// The products that know the directive, each with the oldest tabled version that does.
pub fn engines_with(name: &str) -> Vec<(EngineKind, Version)> {
    let Some(row) = TABLE.row(name) else { return Vec::new() };
    let mut found: Vec<(EngineKind, Version)> = Vec::new();
    for &(kind, version) in &TABLE.engines {
        let listed = found.iter().any(|(other, _)| *other == kind);
        if !listed && row.live(kind, minor(version)).is_some() {
            found.push((kind, version));
        }
    }
    found
}

/// The directive of this engine whose name looks most like this one; none where nothing does.
pub fn nearest(engine: Engine, name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let enough = (name.chars().count() / 3).clamp(1, 4);
    let candidates = TABLE.rows.iter().filter(|row| {
        canonical(engine, row.name) == row.name && lookup(engine, row.name) != Known::Unknown
    });
    candidates
        .map(|row| (distance(&name, row.name), row.name))
        .filter(|(distance, _)| *distance <= enough)
        .min()
        .map(|(_, name)| name)
}

/// The one name of a directive that has several on this engine: `slave-priority` is
/// `replica-priority`. Other names, also unknown ones, stay as they are.
pub fn canonical(engine: Engine, name: &str) -> &str {
    let target = TABLE.row(name).and_then(|row| row.alias_of);
    target.filter(|target| lookup(engine, target) != Known::Unknown).unwrap_or(name)
}

/// How many arguments one line of a file takes where longer values need a line for each group:
/// 2 for `save`, 4 for `client-output-buffer-limit`. Newer engines take all groups in one line,
/// too; CONFIG SET takes them in one value everywhere.
pub fn arguments_per_line(name: &str) -> Option<usize> {
    [("save", 2), ("client-output-buffer-limit", 4)]
        .into_iter()
        .find_map(|(other, count)| name.eq_ignore_ascii_case(other).then_some(count))
}

type Minor = (u16, u16);

const fn minor(version: Version) -> Minor {
    (version.major, version.minor)
}

struct Table {
    /// The engines it was made from, by product and version.
    engines: Vec<(EngineKind, Version)>,
    /// By name.
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    alias_of: Option<&'static str>,
    multi: bool,
    spans: Vec<Span>,
}

/// Versions of a product that treat the directive alike, both ends included.
struct Span {
    kind: EngineKind,
    first: Minor,
    last: Option<Minor>,
    live: bool,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(include_str!("directives.txt")));

impl Table {
    /// What is not understood is left out; a test sees to it that nothing is.
    fn parse(text: &'static str) -> Self {
        let engines = text.lines().filter_map(|line| {
            let (kind, version) = line.strip_prefix("engine ")?.split_once(' ')?;
            Some((parse_kind(kind)?, version.parse().ok()?))
        });
        let rows = text.lines().filter(|line| !line.starts_with("engine ")).filter_map(Row::parse);
        let mut table = Self { engines: engines.collect(), rows: rows.collect() };
        table.engines.sort_unstable();
        table.rows.sort_unstable_by_key(|row| row.name);
        table
    }

    fn row(&self, name: &str) -> Option<&Row> {
        let name = name.to_ascii_lowercase();
        let index = self.rows.binary_search_by(|row| row.name.cmp(name.as_str())).ok()?;
        self.rows.get(index)
    }

    /// The tabled versions that speak for this engine, the best first.
    fn neighbours(&self, engine: Engine) -> impl Iterator<Item = Minor> {
        let wanted = minor(engine.version);
        let of_kind = self.engines.iter().filter(move |(kind, _)| *kind == engine.kind);
        let versions = of_kind.map(|(_, version)| minor(*version));
        let below = versions.clone().rfind(|version| *version <= wanted);
        let above = versions.clone().find(|version| *version > wanted);
        let above = above.filter(|_| below != Some(wanted));
        below.into_iter().chain(above)
    }
}

impl Row {
    fn parse(line: &'static str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next().filter(|name| !name.starts_with('#'))?;
        let mut row = Self { name, alias_of: None, multi: false, spans: Vec::new() };
        for word in words {
            match word.strip_prefix('=') {
                Some(target) => row.alias_of = Some(target),
                None if word == "multi" => row.multi = true,
                None => row.spans.push(Span::parse(word)?),
            }
        }
        Some(row)
    }

    /// None where that version does not know the directive.
    fn live(&self, kind: EngineKind, version: Minor) -> Option<bool> {
        let covers = |span: &&Span| {
            span.kind == kind
                && span.first <= version
                && span.last.is_none_or(|last| version <= last)
        };
        self.spans.iter().find(covers).map(|span| span.live)
    }
}

impl Span {
    /// `redis@6.2`, `redis@6.2-7.0`, `redis@7.0!`
    fn parse(word: &str) -> Option<Self> {
        let (kind, versions) = word.split_once('@')?;
        let (versions, live) = match versions.strip_suffix('!') {
            Some(versions) => (versions, false),
            None => (versions, true),
        };
        let parse = |text: &str| text.parse().ok().map(minor);
        let (first, last) = match versions.split_once('-') {
            Some((first, last)) => (parse(first)?, Some(parse(last)?)),
            None => (parse(versions)?, None),
        };
        Some(Self { kind: parse_kind(kind)?, first, last, live })
    }
}

fn parse_kind(name: &str) -> Option<EngineKind> {
    [EngineKind::Redis, EngineKind::Valkey, EngineKind::KeyDb]
        .into_iter()
        .find(|kind| kind.name() == name)
}

/// How many letters have to be put in, taken out, changed or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // The last three rows of the matrix; column 0 is the empty prefix of `to`.
    let mut before = Vec::new();
    let mut above: Vec<usize> = (0..=to.len()).collect();
    let mut previous = None;
    for (index, letter) in from.chars().enumerate() {
        let mut row = vec![index + 1];
        let columns = to.iter().zip(above.iter().zip(above.iter().skip(1)));
        for (column, (other, (diagonal, up))) in columns.enumerate() {
            let left = row.last().copied().unwrap_or_default();
            let mut best = (diagonal + usize::from(letter != *other)).min(up + 1).min(left + 1);
            let swapped =
                column > 0 && previous == Some(*other) && to.get(column - 1) == Some(&letter);
            if let Some(cost) = before.get(column.wrapping_sub(1)).filter(|_| swapped) {
                best = best.min(cost + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
        previous = Some(letter);
    }
    above.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(text: &str) -> Engine {
        let (kind, version) = text.split_once(' ').unwrap();
        Engine { kind: parse_kind(kind).unwrap(), version: version.parse().unwrap() }
    }

    const LIVE: Known = Known::Known { live: true, multi: false };
    const AT_START: Known = Known::Known { live: false, multi: false };
    const LIVE_MULTI: Known = Known::Known { live: true, multi: true };
    const AT_START_MULTI: Known = Known::Known { live: false, multi: true };

    #[test]
    fn every_line_is_understood() {
        let text = include_str!("directives.txt");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let understood = match line.strip_prefix("engine ") {
                Some(rest) => rest.split_once(' ').is_some_and(|(kind, version)| {
                    parse_kind(kind).is_some() && version.parse::<Version>().is_ok()
                }),
                None => Row::parse(line).is_some_and(|row| !row.spans.is_empty()),
            };
            assert!(understood, "{line}");
        }
        assert_eq!(TABLE.engines.len(), 6);
        assert!(TABLE.rows.len() > 250);
        assert!(TABLE.rows.is_sorted_by(|a, b| a.name < b.name), "names are unique");
        for row in &TABLE.rows {
            assert!(row.alias_of.is_none_or(|target| TABLE.row(target).is_some()), "{}", row.name);
        }
    }

    #[test]
    fn what_engines_know() {
        let check = |text: &str, name: &str, expected: Known| {
            assert_eq!(lookup(engine(text), name), expected, "{text} {name}");
        };
        check("redis 7.0.15", "maxmemory", LIVE);
        check("redis 7.0.15", "MaxMemory", LIVE);
        check("redis 7.0.15", "cluster-enabled", AT_START);
        check("redis 7.0.15", "storage-provider", Known::Unknown);
        check("redis 7.0.15", "maxmemry", Known::Unknown);
        check("redis 7.0.15", "", Known::Unknown);
        check("keydb 6.3.4", "storage-provider", AT_START_MULTI);
        check("keydb 6.3.4", "server-threads", AT_START);
        check("keydb 6.3.4", "min-clients-per-thread", LIVE);
        check("keydb 6.3.4", "appendonly", LIVE);
        check("keydb 6.3.4", "cluster-announce-hostname", Known::Unknown);
        // Protected from CONFIG SET since 7.0.
        check("redis 6.2.5", "dir", LIVE);
        check("redis 7.0.15", "dir", AT_START);
        check("valkey 9.1.2", "dir", AT_START);
        check("redis 6.2.5", "bind", LIVE_MULTI);
        check("redis 6.2.5", "cluster-announce-hostname", Known::Unknown);
        check("redis 6.2.5", "tls-protocols", LIVE);
        check("redis 6.2.5", "gopher-enabled", LIVE);
        check("redis 7.0.15", "gopher-enabled", Known::Unknown);
        check("valkey 8.1.1", "primaryauth", LIVE);
        check("redis 8.0.2", "primaryauth", Known::Unknown);
        for text in ["redis 6.2.5", "redis 7.0.15", "redis 8.0.2", "valkey 8.1.1", "valkey 9.1.2"] {
            check(text, "save", LIVE_MULTI);
            check(text, "client-output-buffer-limit", LIVE_MULTI);
            check(text, "oom-score-adj-values", LIVE_MULTI);
            check(text, "user", AT_START_MULTI);
            check(text, "rename-command", AT_START_MULTI);
            check(text, "loadmodule", AT_START_MULTI);
            check(text, "include", AT_START);
            check(text, "replicaof", AT_START_MULTI);
            check(text, "cluster-config-file", AT_START);
            check(text, "tls-protocols", LIVE);
        }
    }

    #[test]
    fn versions_between_and_outside() {
        let check = |text: &str, name: &str, expected: Known| {
            assert_eq!(lookup(engine(text), name), expected, "{text} {name}");
        };
        check("redis 7.0.0", "cluster-announce-hostname", LIVE);
        check("redis 6.2.99", "cluster-announce-hostname", Known::Unknown);
        check("redis 5.0.0", "maxmemory", LIVE);
        check("redis 7.4.2", "locale-collate", LIVE);
        check("redis 7.4.2", "dir", AT_START);
        check("redis 6.9.0", "dir", LIVE);
        check("redis 99.0.0", "locale-collate", LIVE);
        check("valkey 7.2.0", "maxmemory", LIVE);
        check(
            "valkey 8.0.0",
            "cluster-slot-stats-enabled",
            lookup(engine("valkey 8.1.1"), "cluster-slot-stats-enabled"),
        );
    }

    #[test]
    fn products() {
        let check = |name: &str, expected: &str| {
            let found: Vec<String> = engines_with(name)
                .iter()
                .map(|(kind, version)| format!("{kind} {version}"))
                .collect();
            assert_eq!(found.join(", "), expected, "{name}");
        };
        check("storage-provider", "keydb 6.3.4");
        check("maxmemory", "redis 6.2.5, valkey 8.1.1, keydb 6.3.4");
        check("cluster-announce-hostname", "redis 7.0.15, valkey 8.1.1");
        check("no-such", "");
    }

    #[test]
    fn nearest_names() {
        let check = |text: &str, name: &str, expected: Option<&str>| {
            assert_eq!(nearest(engine(text), name), expected, "{text} {name}");
        };
        check("redis 7.0.15", "maxmemry", Some("maxmemory"));
        check("redis 7.0.15", "maxmeomry", Some("maxmemory"));
        check("redis 7.0.15", "append-only", Some("appendonly"));
        check("redis 7.0.15", "slave-priorty", None);
        check("redis 7.0.15", "replica-priorty", Some("replica-priority"));
        check("keydb 6.3.4", "server-thread", Some("server-threads"));
        check("redis 7.0.15", "quite-something-else", None);
        check("redis 7.0.15", "", None);
    }

    #[test]
    fn names_of_one_directive() {
        let check = |text: &str, name: &str, expected: &str| {
            assert_eq!(canonical(engine(text), name), expected, "{text} {name}");
        };
        check("redis 6.2.5", "slaveof", "replicaof");
        check("redis 7.0.15", "slaveof", "replicaof");
        check("keydb 6.3.4", "slave-priority", "replica-priority");
        check("redis 6.2.5", "hash-max-ziplist-entries", "hash-max-ziplist-entries");
        check("redis 7.0.15", "hash-max-ziplist-entries", "hash-max-listpack-entries");
        check("redis 7.0.15", "hash-max-listpack-entries", "hash-max-listpack-entries");
        check("redis 8.0.2", "masterauth", "masterauth");
        check("valkey 8.1.1", "masterauth", "primaryauth");
        check("keydb 6.3.4", "io-threads", "server-threads");
        check("redis 7.0.15", "io-threads", "io-threads");
        check("redis 7.0.15", "no-such", "no-such");
    }

    #[test]
    fn distances() {
        let check = |from: &str, to: &str, expected: usize| {
            assert_eq!(
                (distance(from, to), distance(to, from)),
                (expected, expected),
                "{from} {to}"
            );
        };
        check("", "", 0);
        check("save", "", 4);
        check("save", "save", 0);
        check("save", "sve", 1);
        check("save", "save-x", 2);
        check("save", "svae", 1);
        check("port", "timeout", 5);
    }
}
