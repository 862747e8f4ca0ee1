//! What real servers answered is read as what it means. See recorded/README.md for the story.

use std::{fs, path::PathBuf};

use protocol::{
    ClusterNodes, ClusterShards, Engine, Info, NodesConf, Role, Slot, Value,
    cluster_text::{Health, LinkState, OpenDirection},
    resp::{Limits, decode},
};

const ENGINES: [&str; 6] =
    ["redis-6.2.5", "redis-7.0.15", "redis-8.0.2", "valkey-8.1.1", "valkey-9.1.2", "keydb-6.3.4"];

const REAL: [&str; 5] =
    ["redis-6.2.5", "redis-7.0.15", "redis-8.0.2", "valkey-8.1.1", "valkey-9.1.2"];

fn bytes(engine: &str, file: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    fs::read(folder.join(engine).join(file)).unwrap()
}

fn text(engine: &str, file: &str) -> String {
    String::from_utf8(bytes(engine, file)).unwrap()
}

fn reply(engine: &str, file: &str) -> Value {
    let wire = bytes(engine, file);
    let (value, used) = decode(&wire, &Limits::default()).unwrap().unwrap();
    assert_eq!(used, wire.len());
    value
}

fn open_slots(nodes: &ClusterNodes) -> Vec<(u16, OpenDirection)> {
    nodes.open.iter().map(|open| (open.slot.number(), open.direction)).collect()
}

#[test]
fn tables_of_nodes() {
    for engine in ENGINES {
        let nodes: ClusterNodes = text(engine, "nodes.txt").parse().unwrap();
        let mine = nodes.my_row().unwrap();
        assert!(mine.flags.myself && mine.flags.primary && mine.link_up, "{engine}");
        assert_eq!((mine.slots.to_string().as_str(), mine.config_epoch), ("0-5460", 1), "{engine}");

        let owner = |slot| {
            let slot = Slot::new(slot).unwrap();
            nodes.rows.iter().find(|row| row.slots.contains(slot)).unwrap()
        };
        let third = owner(16_000);
        assert_eq!(owner(6_000).config_epoch, 7, "{engine}");
        assert_eq!(
            open_slots(&nodes).into_iter().collect::<std::collections::BTreeSet<_>>(),
            if engine == "keydb-6.3.4" {
                [(7, OpenDirection::Migrating), (16_000, OpenDirection::Importing)].into()
            } else {
                [
                    (7, OpenDirection::Migrating),
                    (100, OpenDirection::Migrating),
                    (16_000, OpenDirection::Importing),
                ]
                .into()
            },
            "{engine}"
        );
        assert!(nodes.open.iter().all(|open| open.peer == third.id), "{engine}");

        let failed: Vec<_> = nodes.rows.iter().filter(|row| row.flags.fail).collect();
        assert!(failed.iter().any(|row| row.flags.primary && row.slots.is_empty()), "{engine}");
        assert!(failed.iter().any(|row| row.primary == Some(mine.id)), "{engine}");
        assert!(failed.iter().all(|row| !row.flags.pfail && row.ping_sent_ms > 0), "{engine}");
        let handshake = nodes.rows.iter().find(|row| row.flags.handshake).unwrap();
        assert!(!handshake.flags.primary && !handshake.link_up, "{engine}");
        let replica = nodes.rows.iter().find(|row| row.primary == Some(third.id)).unwrap();
        assert!(replica.flags.replica && replica.slots.is_empty(), "{engine}");
    }
}

#[test]
fn addresses_and_names() {
    for engine in REAL {
        let nodes: ClusterNodes = text(engine, "nodes.txt").parse().unwrap();
        assert!(nodes.rows.iter().any(|row| row.ip == "::1" && row.port > 0), "{engine}");
        let bus = |row: &protocol::NodeRow| row.bus_port == row.port + 10_000;
        assert!(nodes.rows.iter().all(bus), "{engine}");
        let named: Vec<_> = nodes.rows.iter().filter_map(|row| row.hostname.as_deref()).collect();
        let expected: &[&str] = if engine == "redis-6.2.5" { &[] } else { &["cache-2.example"] };
        assert_eq!(named, expected, "{engine}");
    }
    let nodes: ClusterNodes = text("keydb-6.3.4", "nodes.txt").parse().unwrap();
    let lost = nodes.rows.iter().find(|row| row.flags.noaddr).unwrap();
    assert_eq!((lost.ip.as_str(), lost.port, lost.bus_port), ("", 0, 0));
}

#[test]
fn the_other_side_of_open_slots() {
    for engine in REAL {
        let nodes: ClusterNodes = text(engine, "nodes-importing.txt").parse().unwrap();
        assert_eq!(
            open_slots(&nodes),
            [
                (7, OpenDirection::Importing),
                (100, OpenDirection::Importing),
                (16_000, OpenDirection::Migrating)
            ],
            "{engine}"
        );
    }
}

#[test]
fn a_minority_only_suspects() {
    for engine in REAL {
        let nodes: ClusterNodes = text(engine, "nodes-minority.txt").parse().unwrap();
        let suspected: Vec<_> = nodes.rows.iter().filter(|row| row.flags.pfail).collect();
        assert_eq!(suspected.len(), 2, "{engine}");
        assert!(suspected.iter().all(|row| row.flags.primary && !row.flags.fail), "{engine}");
        assert!(suspected.iter().all(|row| !row.slots.is_empty()), "{engine}");
    }
}

#[test]
fn files_of_nodes() {
    for engine in ENGINES {
        let conf: NodesConf = text(engine, "nodes.conf").parse().unwrap();
        assert_eq!((conf.current_epoch, conf.last_vote_epoch), (7, 7), "{engine}");
        let nodes: ClusterNodes = text(engine, "nodes.txt").parse().unwrap();
        assert_eq!(conf.nodes.myself, nodes.myself, "{engine}");
        assert_eq!(conf.nodes.open, nodes.open, "{engine}");
        assert_eq!(conf.nodes.my_row().unwrap().slots, nodes.my_row().unwrap().slots, "{engine}");
        for row in &conf.nodes.rows {
            let told = nodes.row(row.id).unwrap();
            assert_eq!((row.port, &row.hostname), (told.port, &told.hostname), "{engine}");
        }
    }
}

#[test]
fn shards() {
    for engine in REAL.iter().filter(|engine| **engine != "redis-6.2.5") {
        let flat = ClusterShards::from_reply(&reply(engine, "shards.resp2")).unwrap();
        let maps = ClusterShards::from_reply(&reply(engine, "shards.resp3")).unwrap();
        assert_eq!(flat, maps, "{engine}");
        let nodes: ClusterNodes = text(engine, "nodes.txt").parse().unwrap();
        let mut told = 0;
        for shard in &flat.shards {
            for node in &shard.nodes {
                let row = nodes.row(node.id).unwrap();
                assert_eq!(node.port, Some(row.port), "{engine}");
                assert_eq!(node.is_primary, row.flags.primary, "{engine}");
                assert_eq!(node.hostname, row.hostname, "{engine}");
                assert_eq!(node.health == Health::Failed, row.flags.fail, "{engine}");
                if node.is_primary && node.health == Health::Online {
                    assert_eq!(shard.slots, row.slots, "{engine}");
                }
                told += 1;
            }
        }
        assert_eq!(told, 6, "{engine}");
    }
}

#[test]
fn info() {
    for engine in ENGINES {
        let primary = Info::parse(&text(engine, "info-primary.txt"));
        let told = Engine::from_info(&primary).unwrap();
        assert_eq!(told.to_string().replace(' ', "-"), engine);
        assert_eq!(primary.get("role"), Some("master"), "{engine}");
        assert_eq!(primary.flag("loading"), Some(false), "{engine}");
        let keyspace = primary.keyspace();
        assert_eq!((keyspace.keys, keyspace.expires), (31, 1), "{engine}");
        let replicas = primary.replicas();
        assert_eq!(replicas.len(), 1, "{engine}");
        assert_eq!(replicas[0].state, "online", "{engine}");
        assert!(replicas[0].offset > 0 && replicas[0].lag_seconds.is_some(), "{engine}");

        let replica = Info::parse(&text(engine, "info-replica.txt"));
        assert_eq!(replica.get("master_link_status"), Some("up"), "{engine}");
        let host = replica.get("master_host").unwrap();
        let expected = if engine == "keydb-6.3.4" { "10.0.0.3" } else { "::1" };
        assert_eq!(host, expected, "{engine}");

        let cluster = Info::parse(&text(engine, "cluster-info.txt"));
        assert_eq!(cluster.get("cluster_state"), Some("ok"), "{engine}");
        assert_eq!(cluster.u64("cluster_slots_assigned"), Some(16_384), "{engine}");
        assert_eq!(cluster.u64("cluster_current_epoch"), Some(7), "{engine}");
    }
}

#[test]
fn the_engine_is_told_by_the_server_section_too() {
    for engine in ENGINES {
        let all = text(engine, "info-primary.txt");
        let server = all.split("\r\n\r\n").next().unwrap();
        let told = Engine::from_info(&Info::parse(server)).unwrap();
        assert_eq!(told.to_string().replace(' ', "-"), engine);
    }
}

#[test]
fn roles() {
    for engine in ENGINES {
        match Role::from_reply(&reply(engine, "role-primary.resp")).unwrap() {
            Role::Primary { replicas, .. } => assert_eq!(replicas.len(), 1, "{engine}"),
            other => panic!("{engine}: {other:?}"),
        }
        match Role::from_reply(&reply(engine, "role-replica.resp")).unwrap() {
            Role::Replica { link, offset, .. } => {
                assert_eq!(link, LinkState::Connected, "{engine}");
                assert!(offset > 0, "{engine}");
            }
            other => panic!("{engine}: {other:?}"),
        }
    }
    for engine in REAL {
        let role = Role::from_reply(&reply(engine, "role-replica-alone.resp")).unwrap();
        assert!(
            matches!(
                role,
                Role::Replica { link: LinkState::Connect | LinkState::Connecting, offset: -1, .. }
            ),
            "{engine}: {role:?}"
        );
    }
}
