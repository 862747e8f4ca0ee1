//! Whatever a server answers, reading it ends in a value or an error, never in a panic.

use proptest::prelude::*;
use protocol::{
    ClusterNodes, ClusterShards, Engine, Info, NodesConf, Role,
    config_value::normalise_value,
    resp::{Limits, decode},
};

const TABLES: [&str; 3] = [
    include_str!("recorded/redis-6.2.5/nodes.txt"),
    include_str!("recorded/valkey-9.1.2/nodes.conf"),
    include_str!("recorded/keydb-6.3.4/nodes.conf"),
];

const INFOS: [&str; 2] = [
    include_str!("recorded/valkey-9.1.2/info-primary.txt"),
    include_str!("recorded/keydb-6.3.4/info-primary.txt"),
];

const REPLIES: [&[u8]; 4] = [
    include_bytes!("recorded/redis-7.0.15/shards.resp2"),
    include_bytes!("recorded/valkey-9.1.2/shards.resp3"),
    include_bytes!("recorded/redis-7.0.15/role-primary.resp"),
    include_bytes!("recorded/redis-7.0.15/role-replica.resp"),
];

/// What a mutation puts in the place of what was there.
fn patch() -> impl Strategy<Value = String> {
    prop_oneof!["[-0-9:@,\\[\\]<>= \r\n*$%a-f]{0,12}", any::<String>()]
}

/// The text with some of its characters, from a place on, replaced.
fn patched(text: &str, from: prop::sample::Index, count: usize, patch: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let from = from.index(chars.len());
    let to = (from + count).min(chars.len());
    chars[..from].iter().copied().chain(patch.chars()).chain(chars[to..].iter().copied()).collect()
}

fn read_all(text: &str) {
    let _ = text.parse::<ClusterNodes>();
    let _ = text.parse::<NodesConf>();
    let info = Info::parse(text);
    let _ = (info.keyspace(), info.replicas(), Engine::from_info(&info));
    let _ = Engine::from_version_line(text);
    let _ = normalise_value("client-output-buffer-limit", text);
}

proptest! {
    #[test]
    fn text(text: String) {
        read_all(&text);
    }

    #[test]
    fn damaged_text(
        text in prop::sample::select([&TABLES[..], &INFOS[..]].concat()),
        from: prop::sample::Index,
        count in 0..60usize,
        patch in patch(),
    ) {
        read_all(&patched(text, from, count, &patch));
    }

    #[test]
    fn damaged_replies(
        wire in prop::sample::select(&REPLIES[..]),
        from: prop::sample::Index,
        count in 0..20usize,
        patch in patch(),
    ) {
        let wire = patched(&String::from_utf8_lossy(wire), from, count, &patch);
        if let Ok(Some((value, _))) = decode(wire.as_bytes(), &Limits::default()) {
            let _ = ClusterShards::from_reply(&value);
            let _ = Role::from_reply(&value);
        }
    }

    /// A row that is read has its fields in range, whatever the text was.
    #[test]
    fn damaged_tables_never_give_nonsense(
        table in prop::sample::select(&TABLES[..]),
        from: prop::sample::Index,
        count in 0..60usize,
        patch in patch(),
    ) {
        if let Ok(nodes) = patched(table, from, count, &patch).parse::<ClusterNodes>() {
            prop_assert!(nodes.my_row().is_some_and(|row| row.flags.myself));
        }
    }
}
