//! What a profile sets in the engine's configuration unless the spec's `config` says otherwise.

use std::collections::BTreeMap;

use crate::model::{DirectiveValue, Profile};

/// The directives of a profile, by name.
pub fn profile_defaults(profile: Profile) -> BTreeMap<String, DirectiveValue> {
    let of_profile: &[(&str, &[&[&str]])] = match profile {
        Profile::Durable => &[
            ("aof-use-rdb-preamble", &[&["yes"]]),
            ("appendfsync", &[&["everysec"]]),
            ("appendonly", &[&["yes"]]),
            ("maxmemory-policy", &[&["noeviction"]]),
            ("save", &[&["3600", "1"], &["300", "100"], &["60", "10000"]]),
        ],
        Profile::Cache => &[
            ("appendonly", &[&["no"]]),
            ("maxmemory-policy", &[&["allkeys-lfu"]]),
            ("save", &[&[""]]),
        ],
    };
    let of_all: &[(&str, &[&[&str]])] = &[
        // The engines' own 1 MiB is full after a moment's writes, and a replica that was away for
        // longer must then copy everything.
        ("repl-backlog-size", &[&["16777216"]]),
        ("repl-diskless-sync", &[&["yes"]]),
        // Until its first sync has ended a replica can't be elected: start it at once.
        ("repl-diskless-sync-delay", &[&["0"]]),
    ];
    let line = |line: &&[&str]| line.iter().map(|&argument| argument.to_owned()).collect();
    let all = of_profile.iter().chain(of_all);
    all.map(|(name, lines)| ((*name).to_owned(), DirectiveValue(lines.iter().map(line).collect())))
        .collect()
}
