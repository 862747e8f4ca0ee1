//! The slow log beside what really was slow.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{SlotSet, key_slot};
use proxy::{
    engine::{Limits, SlowLog},
    route::{Address, Primary, Topology},
};

use super::{
    pretend::{Rng, STEPS, tell},
    stage::{Stage, pool},
};

const SLOW: u64 = 10_000;
const BEGAN: u64 = 1_700_000_000_000_000;

fn address(node: u16) -> Address {
    Address::Tcp(([127, 0, 0, 1], 7000 + node).into())
}

/// When a request was asked, and when sent to whom last.
struct Asked {
    at: u64,
    sent_at: u64,
    node: Address,
}

#[test]
fn all_that_is_slow_is_noted_and_nothing_else() {
    tell([100_000], |seed| [story(seed)]);
}

fn story(seed: u64) -> usize {
    let mut rng = Rng(seed);
    let log = Arc::new(SlowLog::new(SLOW, 20, BEGAN));
    let limits = Limits { slow_log: Some(Arc::clone(&log)), ..Limits::default() };
    let mut stage = Stage::new(limits, pool());
    let half = [SlotSet::range(0, 8191), SlotSet::range(8192, 16383)];
    let primaries = (0..2).zip(half);
    let primaries = primaries.map(|(n, slots)| Primary { address: Arc::new(address(n)), slots });
    stage.engine.set_topology(0, &Topology { primaries: primaries.collect() });
    let clients: Vec<_> = (0..4).map(|_| stage.engine.client_opened(0)).collect();
    let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
    let mut expected: Vec<(String, u64, u64, u64, Address)> = Vec::new();
    let mut moved = BTreeSet::new();
    let mut answered = 0;
    for step in 0..STEPS {
        stage.pass(rng.below(3_000) as u64);
        if rng.chance(45) {
            let key = format!("k{step}");
            stage.ask(clients[rng.below(4)], &["set", &key, "v"]);
            let node = address(key_slot(key.as_bytes()).number() / 8192);
            asked.insert(key, Asked { at: stage.now, sent_at: stage.now, node });
            continue;
        }
        let conns: Vec<usize> = stage.conns.keys().copied().collect();
        let Some(conn) = conns.get(rng.below(conns.len())).copied() else { continue };
        stage.open(conn);
        let Some(words) = stage.next(conn) else { continue };
        if words[0] == "ASKING" {
            stage.tell(conn, b"+OK\r\n");
            continue;
        }
        let request = asked.get_mut(&words[1]).expect("it was asked");
        assert_eq!(stage.conns[&conn].address, request.node);
        let other = address(u16::from(request.node == address(0)));
        if rng.chance(10) && moved.insert(words[1].clone()) {
            // The slot stays where it is for others.
            let slot = key_slot(words[1].as_bytes());
            (request.node, request.sent_at) = (other.clone(), stage.now);
            stage.tell(conn, format!("-ASK {} {other}\r\n", slot.number()).as_bytes());
            continue;
        }
        let request = asked.remove(&words[1]).unwrap();
        let total = stage.now - request.at;
        if total >= SLOW {
            let server = stage.now - request.sent_at;
            let at = (BEGAN + request.at) / 1_000_000;
            expected.push((words[1].clone(), at, total, server, request.node));
        }
        stage.tell(conn, b"+OK\r\n");
        answered += 1;
    }
    for client in clients {
        while let Some(reply) = stage.reply(client) {
            assert_eq!(reply, "+OK\r\n");
        }
    }
    let entries = log.entries();
    assert_eq!(entries.len(), expected.len().min(20));
    for (entry, (key, at, total, server, node)) in entries.iter().zip(expected.iter().rev()) {
        let words = [&b"set"[..], key.as_bytes(), b"v"];
        assert_eq!((&entry.words[..], entry.at_seconds), (&words.map(Vec::from)[..], *at));
        assert_eq!((entry.total, &*entry.server), (*total, node), "{key}");
        assert!(entry.at_server.abs_diff(*server) < 1_000, "{key}: {} {server}", entry.at_server);
    }
    answered
}
