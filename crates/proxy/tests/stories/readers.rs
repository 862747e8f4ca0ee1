//! Reads at replicas that come and go, lag, load, and believe in other owners. Only reads go there,
//! after READONLY; each request gets its own reply, in order, from one of its shard's servers, and
//! nobody sees an error.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use protocol::{SlotSet, key_slot};
use proxy::{
    engine::{ClientId, Limits},
    route::{Address, Primary, Readers, Topology},
};

use super::{
    pretend::{Rng, STEPS, tell},
    stage::{Stage, pool},
};

/// Two primaries, each followed by its replicas.
const NODES: u16 = 6;

fn address(node: u16) -> Arc<Address> {
    Arc::new(Address::Tcp(([127, 0, 0, 1], 7000 + node).into()))
}

fn node_of(address: &Address) -> u16 {
    let Address::Tcp(address) = address else { panic!("{address}") };
    address.port() - 7000
}

fn shard_of(key: &str) -> u16 {
    key_slot(key.as_bytes()).number() / 8192
}

struct Asker {
    id: ClientId,
    /// What it asked: the shards of the keys, or none for a write.
    waiting: VecDeque<Vec<u16>>,
}

struct World {
    rng: Rng,
    stage: Stage,
    askers: Vec<Asker>,
    readers: BTreeSet<u16>,
    /// Connections that said READONLY.
    read_only: BTreeSet<usize>,
    number: usize,
    answered: usize,
    at_replicas: usize,
}

#[test]
fn only_reads_go_to_replicas_and_nobody_sees_an_error() {
    tell([100_000], |seed| [story(seed)]);
}

fn story(seed: u64) -> usize {
    let mut stage = Stage::new(Limits::default(), pool());
    let half = [SlotSet::range(0, 8191), SlotSet::range(8192, 16383)];
    let primaries = [0, 3].into_iter().zip(half);
    let primaries = primaries.map(|(node, slots)| Primary { address: address(node), slots });
    stage.engine.set_topology(0, &Topology { primaries: primaries.collect() });
    let askers = (0..4).map(|_| Asker { id: stage.engine.client_opened(0), waiting: [].into() });
    let askers = askers.collect();
    let mut world = World {
        rng: Rng(seed),
        stage,
        askers,
        readers: BTreeSet::new(),
        read_only: BTreeSet::new(),
        number: 0,
        answered: 0,
        at_replicas: 0,
    };
    for _ in 0..STEPS {
        world.step();
    }
    for _ in 0..200 {
        world.stage.pass(20_000);
        world.stage.tick();
        for conn in world.stage.conns.keys().copied().collect::<Vec<_>>() {
            while world.serve(conn, false) {}
        }
        world.check();
    }
    for asker in &world.askers {
        assert!(asker.waiting.is_empty(), "{:?} waits", asker.id);
    }
    assert!(world.at_replicas > 100, "{}", world.at_replicas);
    world.answered
}

impl World {
    fn step(&mut self) {
        self.stage.pass(self.rng.below(2_000) as u64);
        self.stage.tick();
        match self.rng.below(100) {
            0..50 => self.ask(),
            50..52 => self.choose(),
            52..53 => {
                let readers: Vec<usize> = self.read_only.iter().copied().collect();
                if let Some(conn) = readers.get(self.rng.below(readers.len())) {
                    self.read_only.remove(conn);
                    self.stage.lose(*conn);
                }
            }
            _ => {
                let conns: Vec<usize> = self.stage.conns.keys().copied().collect();
                if let Some(conn) = conns.get(self.rng.below(conns.len())) {
                    for _ in 0..self.rng.below(6) {
                        self.serve(*conn, true);
                    }
                }
            }
        }
        self.check();
    }

    fn ask(&mut self) {
        let mut key = || {
            self.number += 1;
            format!("k{}", self.number)
        };
        let keys = [key(), key(), key()];
        let [first, second, third] = keys.each_ref().map(String::as_str);
        let asker = &mut self.askers[self.rng.below(4)];
        if !self.stage.is_read(asker.id) {
            return;
        }
        match self.rng.below(10) {
            0..5 => {
                self.stage.ask(asker.id, &["get", first]);
                asker.waiting.push_back(vec![shard_of(first)]);
            }
            5..8 => {
                self.stage.ask(asker.id, &["mget", first, second, third]);
                asker.waiting.push_back(keys.iter().map(|key| shard_of(key)).collect());
            }
            8 => {
                self.stage.ask(asker.id, &["eval_ro", "return 1", "1", first]);
                asker.waiting.push_back(vec![shard_of(first)]);
            }
            _ => {
                self.stage.ask(asker.id, &["set", first, "v"]);
                asker.waiting.push_back(Vec::new());
            }
        }
    }

    /// Other replicas are good enough; some that were are gone.
    fn choose(&mut self) {
        let before = std::mem::take(&mut self.readers);
        for node in [1, 2, 4, 5] {
            if self.rng.chance(60) {
                self.readers.insert(node);
            }
        }
        let of = [0, 3].map(|primary| {
            let own = self.readers.range(primary..primary + 3).map(|node| address(*node));
            let itself = self.rng.chance(20).then(|| address(primary));
            (address(primary), own.chain(itself).collect())
        });
        let removed = before.difference(&self.readers).copied();
        let gone: Vec<u16> = removed.filter(|_| self.rng.chance(50)).collect();
        let readers =
            Readers { of: of.into(), gone: gone.iter().map(|node| address(*node)).collect() };
        self.stage.engine.set_readers(0, &readers);
        self.stage.settle();
        self.read_only.retain(|conn| self.stage.conns.contains_key(conn));
        for conn in &self.read_only {
            assert!(!gone.contains(&node_of(&self.stage.conns[conn].address)));
        }
    }

    /// A server answers its oldest request; false where there is none.
    fn serve(&mut self, conn: usize, odd: bool) -> bool {
        self.stage.open(conn);
        let Some(words) = self.stage.next(conn) else { return false };
        let node = node_of(&self.stage.conns[&conn].address);
        let primary = node.is_multiple_of(3);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if words == ["READONLY"] {
            assert!(!primary && self.read_only.insert(conn));
            self.stage.tell(conn, b"+OK\r\n");
            return true;
        }
        assert_eq!(primary, !self.read_only.contains(&conn));
        assert!(primary || matches!(words[0], "get" | "mget"), "{words:?}");
        if !primary && odd && self.rng.chance(8) {
            let slot = key_slot(words[1].as_bytes()).number();
            let elsewhere = 7000 + self.rng.below(usize::from(NODES));
            let said = [
                format!("-MOVED {slot} 127.0.0.1:{elsewhere}\r\n"),
                "-LOADING Redis is loading the dataset in memory\r\n".to_owned(),
                "-MASTERDOWN Link with MASTER is down\r\n".to_owned(),
            ];
            self.stage.tell(conn, said[self.rng.below(3)].as_bytes());
            return true;
        }
        self.at_replicas += usize::from(!primary);
        let shard = (node / 3).to_string();
        let reply = match words[0] {
            "set" => "+OK\r\n".to_owned(),
            "mget" => {
                let each = format!("$1\r\n{shard}\r\n").repeat(words.len() - 1);
                format!("*{}\r\n{each}", words.len() - 1)
            }
            _ => format!("$1\r\n{shard}\r\n"),
        };
        self.stage.tell(conn, reply.as_bytes());
        true
    }

    fn check(&mut self) {
        for asker in &mut self.askers {
            while let Some(reply) = self.stage.reply(asker.id) {
                let shards = asker.waiting.pop_front().expect("something was asked");
                let each = shards.iter().map(|shard| format!("$1\r\n{shard}\r\n"));
                let expected = match shards.len() {
                    0 => "+OK\r\n".to_owned(),
                    1 => each.collect(),
                    count => format!("*{count}\r\n{}", each.collect::<String>()),
                };
                assert_eq!(reply, expected);
                self.answered += 1;
            }
        }
        // Ids are used again.
        let conns: BTreeMap<usize, u16> =
            self.stage.conns.iter().map(|(id, conn)| (*id, node_of(&conn.address))).collect();
        self.read_only.retain(|id| conns.get(id).is_some_and(|node| !node.is_multiple_of(3)));
    }
}
