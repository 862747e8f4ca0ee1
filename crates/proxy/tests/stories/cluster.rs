//! The engine in front of a pretend cluster whose slots move, whose nodes are not always ready, and
//! whose connections break. Each client counts up keys of its own: each reply is the next number,
//! so nothing is lost, done twice or done in another order. A read sees what was counted before it,
//! or more. While slots only move, no client sees an error.

use std::collections::{BTreeMap, VecDeque};

use protocol::key_slot;
use proxy::engine::{Action, ClientId, ConnId, Engine, Limits, Loss, PoolSetup};

use super::pretend::{
    self, ClientEnd, Rng, STEPS, ServerEnd, World as _, address, number, tell, topology,
};

const NODES: u16 = 4;
/// Keys have tags from so many, so that clients' keys share slots.
const TAGS: usize = 6;

/// One client and what its keys stand at.
struct Client {
    end: ClientEnd,
    counts: BTreeMap<Vec<u8>, u64>,
    expected: VecDeque<Expected>,
    asked: u64,
    /// After an error nobody knows what keys stand at: others are used.
    epoch: u64,
}

/// A request: what its keys stand at afterwards.
#[derive(Debug)]
struct Expected {
    reads: bool,
    epoch: u64,
    counts: Vec<(Vec<u8>, u64)>,
}

/// One connection to a node.
struct Conn {
    end: ServerEnd,
    node: u16,
    asking: bool,
}

/// Who owns a slot, and where it is on its way to.
#[derive(Clone, Copy)]
struct Owner {
    node: u16,
    towards: Option<u16>,
}

struct World {
    rng: Rng,
    engine: Engine,
    now: u64,
    clients: Vec<Client>,
    conns: BTreeMap<usize, Conn>,
    owners: BTreeMap<u16, Owner>,
    /// The keys' values, and on which node they are.
    store: BTreeMap<Vec<u8>, (u64, u16)>,
    breaks: bool,
    /// Clients don't take all that there is for them.
    slow: bool,
    answered: usize,
}

impl World {
    fn new(seed: u64, breaks: bool, slow: bool) -> Self {
        let mut limits = Limits { outstanding_max: 50, ..Limits::default() };
        if slow {
            // More than what a client has asked can be, or they would wait for each other.
            (limits.outstanding_max, limits.waiting_bytes_hard) = (10, 800);
            limits.stall_shared = limits.stall;
        }
        let mut engine = Engine::new(limits);
        engine.add_pool(PoolSetup {
            timeout: Some(1_000_000_000),
            server_connections: 1 + (seed % 2) as usize,
            backoff_min: 1_000,
            backoff_max: 10_000,
            ..pretend::cluster()
        });
        let slot = |tag| key_slot(format!("{{t{tag}}}").as_bytes()).number();
        let owner = |tag: usize| Owner { node: tag as u16 % NODES, towards: None };
        let owners = (0..TAGS).map(|tag| (slot(tag), owner(tag))).collect();
        let mut world = Self {
            rng: Rng(seed),
            engine,
            now: 0,
            clients: Vec::new(),
            conns: BTreeMap::new(),
            owners,
            store: BTreeMap::new(),
            breaks,
            slow,
            answered: 0,
        };
        world.tell_topology();
        world
    }

    fn tell_topology(&mut self) {
        let topology = topology(0..NODES, |node| {
            let own = self.owners.iter().filter(|(_, owner)| owner.node == node);
            own.map(|(slot, _)| (*slot, *slot)).collect()
        });
        self.engine.set_topology(0, &topology);
    }

    fn ask(&mut self, index: usize) {
        let Self { rng, clients, .. } = self;
        let client = &mut clients[index];
        client.asked += 1;
        let epoch = client.epoch;
        let mut key = || {
            let (tag, number) = (rng.below(TAGS), rng.below(3));
            format!("{{t{tag}}}{:?}/{epoch}/{number}", client.end.id).into_bytes()
        };
        let reads = client.asked.is_multiple_of(5) != self.slow;
        let counts = if reads {
            let keys = [key(), key(), key()];
            client.end.ask(&[&b"mget"[..], &keys[0], &keys[1], &keys[2]]);
            let count = |key: Vec<u8>| {
                let count = client.counts.get(&key).copied().unwrap_or_default();
                (key, count)
            };
            keys.map(count).into()
        } else {
            let key = key();
            client.end.ask(&[&b"incr"[..], &key]);
            let count = client.counts.entry(key.clone()).or_default();
            *count += 1;
            vec![(key, *count)]
        };
        client.expected.push_back(Expected { reads, epoch, counts });
    }

    fn take(&mut self, index: usize) {
        self.clients[index].end.take(&mut self.engine, &mut self.rng, 100);
        self.check(index);
    }

    fn check(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while let Some(text) = client.end.reply() {
            let expected = client.expected.pop_front().expect("something was asked");
            self.answered += 1;
            if text.starts_with('-') && self.breaks {
                client.epoch = client.asked;
                client.counts.clear();
            }
            if expected.epoch != client.epoch {
                continue;
            }
            let mut lines = text.split("\r\n");
            let first = lines.next().unwrap_or_default();
            if !expected.reads {
                assert_eq!(first, format!(":{}", expected.counts[0].1), "{expected:?}");
                continue;
            }
            assert_eq!(first, "*3");
            for (key, least) in &expected.counts {
                let count = match lines.next().unwrap() {
                    "$-1" => 0,
                    _ => lines.next().unwrap().parse().unwrap(),
                };
                let most = client.counts.get(key).copied().unwrap_or_default();
                assert!((*least..=most).contains(&count), "{text:?} {expected:?}");
            }
        }
    }

    /// A node answers the oldest request on a connection.
    fn serve(&mut self, index: usize) {
        let conn = self.conns.get_mut(&index).unwrap();
        let Some(words) = conn.end.request() else { return };
        let out = &mut conn.end.outgoing;
        if words[0] == b"ASKING" {
            conn.asking = true;
            out.extend_from_slice(b"+OK\r\n");
            return;
        }
        let asking = std::mem::take(&mut conn.asking);
        let keys = &words[1..];
        let slot = key_slot(&keys[0]).number();
        let owner = self.owners[&slot];
        let node = conn.node;
        let here = |key: &[u8]| self.store.get(key).is_some_and(|(_, at)| *at == node);
        if self.breaks && self.rng.chance(2) {
            out.extend_from_slice(b"-CLUSTERDOWN The cluster is down\r\n");
            return;
        }
        if owner.node != node && !(asking && owner.towards == Some(node)) {
            let there = address(owner.node);
            out.extend_from_slice(format!("-MOVED {slot} {there}\r\n").as_bytes());
            return;
        }
        let importing = owner.node != node;
        if let Some(towards) = owner.towards.filter(|_| !importing)
            && !keys.iter().all(|key| here(key))
        {
            if keys.len() > 1 && keys.iter().any(|key| here(key)) {
                out.extend_from_slice(b"-TRYAGAIN Multiple keys request\r\n");
            } else {
                let there = address(towards);
                out.extend_from_slice(format!("-ASK {slot} {there}\r\n").as_bytes());
            }
            return;
        }
        if importing && keys.len() > 1 && !keys.iter().all(|key| here(key)) {
            out.extend_from_slice(b"-TRYAGAIN Multiple keys request\r\n");
            return;
        }
        let read = |key: &[u8]| match self.store.get(key) {
            Some((count, _)) => format!("${}\r\n{count}\r\n", count.to_string().len()),
            None => "$-1\r\n".to_owned(),
        };
        match words[0].as_slice() {
            b"incr" => {
                let value = self.store.entry(keys[0].clone()).or_insert((0, node));
                value.0 += 1;
                out.extend_from_slice(format!(":{}\r\n", value.0).as_bytes());
            }
            b"mget" => {
                out.extend_from_slice(format!("*{}\r\n", keys.len()).as_bytes());
                for key in keys {
                    out.extend_from_slice(read(key).as_bytes());
                }
            }
            b"get" => out.extend_from_slice(read(&keys[0]).as_bytes()),
            other => panic!("{other:?}"),
        }
    }

    /// A slot begins to move, some of its keys move, or it has moved. It doesn't come to a node
    /// while anything is on its way to it or from it: no cluster is that quick, and what was sent
    /// to a former owner would be executed there, but not what went before and was refused.
    fn move_slot(&mut self) {
        let which = self.rng.below(self.owners.len());
        let (&slot, owner) = self.owners.iter_mut().nth(which).unwrap();
        match owner.towards {
            None => {
                let to = self.rng.below(usize::from(NODES)) as u16;
                owner.towards = Some(to).filter(|to| *to != owner.node);
            }
            Some(to) => {
                let mut conns = self.conns.values().filter(|conn| conn.node == to);
                let all = conns.all(|conn| conn.end.is_quiet());
                for (_, value) in
                    self.store.iter_mut().filter(|(key, _)| key_slot(key).number() == slot)
                {
                    if all || self.rng.chance(30) {
                        value.1 = to;
                    }
                }
                if all {
                    *owner = Owner { node: to, towards: None };
                }
            }
        }
    }

    fn step(&mut self) {
        self.now += 1 + self.rng.below(4_000) as u64;
        self.engine.set_now(self.now);
        match self.rng.below(if self.breaks { 102 } else { 100 }) {
            0..2 if self.clients.len() < 6 => self.clients.push(Client {
                end: ClientEnd::open(&mut self.engine),
                counts: BTreeMap::new(),
                expected: VecDeque::new(),
                asked: 0,
                epoch: 0,
            }),
            2..45 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                for _ in 0..self.rng.below(8) {
                    self.ask(index);
                }
                self.clients[index].end.send(&mut self.engine, &mut self.rng);
            }
            45..85 if !self.conns.is_empty() => {
                let which = self.rng.below(self.conns.len());
                let index = *self.conns.keys().nth(which).unwrap();
                for _ in 0..self.rng.below(if self.slow { 4 } else { 8 }) {
                    self.serve(index);
                }
                self.server_sends(index);
            }
            85..90 => self.move_slot(),
            90..98 => self.engine.tick(),
            98 => self.tell_topology(),
            99 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                self.take(index);
            }
            100..102 if !self.conns.is_empty() => {
                let which = self.rng.below(self.conns.len());
                let index = *self.conns.keys().nth(which).unwrap();
                let conn = self.conns.remove(&index).unwrap();
                let loss = if conn.end.connected { Loss::Closed } else { Loss::Refused };
                self.engine.conn_gone(conn.end.id, loss);
            }
            _ => {}
        }
    }

    fn server_sends(&mut self, index: usize) {
        let conn = self.conns.get_mut(&index).unwrap();
        conn.end.accept(&mut self.engine);
        conn.end.send(&mut self.engine, &mut self.rng, usize::MAX);
    }

    fn finish(&mut self) {
        for _ in 0..20_000 {
            self.now += 5_000;
            self.engine.set_now(self.now);
            self.engine.tick();
            for client in &mut self.clients {
                client.end.send(&mut self.engine, &mut self.rng);
            }
            for index in self.conns.keys().copied().collect::<Vec<_>>() {
                for _ in 0..20 {
                    self.serve(index);
                }
                self.server_sends(index);
            }
            for index in 0..self.clients.len() {
                if !self.slow || self.rng.chance(10) {
                    self.take(index);
                }
            }
            self.settle(100);
            if self.rng.chance(50) {
                self.move_slot();
            }
            let idle =
                |client: &Client| client.expected.is_empty() && client.end.outgoing.is_empty();
            if self.clients.iter().all(idle) {
                return;
            }
        }
        panic!("some requests have no reply");
    }
}

impl pretend::World for World {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn server_takes(&mut self, id: ConnId, percent_all: usize) {
        if let Some(conn) = self.conns.get_mut(&id.index()) {
            conn.end.take(&mut self.engine, &mut self.rng, percent_all);
        }
    }

    fn client_takes(&mut self, id: ClientId, _: usize) {
        if let Some(index) = self.clients.iter().position(|client| client.end.id == id) {
            if !self.slow || self.rng.chance(1) {
                self.take(index);
            } else {
                self.engine.client_wrote(id, 0);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn: id, address } => {
                let (end, node) = (ServerEnd::new(id), number(&address));
                self.conns.insert(id.index(), Conn { end, node, asking: false });
            }
            Action::CloseConn(id) => {
                self.conns.remove(&id.index());
                self.engine.forget_conn(id);
            }
            Action::CloseClient(id) => panic!("{id:?} is closed"),
            Action::ReadClient(id) => {
                let client = self.clients.iter_mut().find(|client| client.end.id == id);
                client.expect("it lives").end.read = true;
            }
            Action::ReadConn(id) => {
                assert!(self.slow, "{id:?} was stalled");
                if let Some(conn) = self.conns.get_mut(&id.index()) {
                    conn.end.read = true;
                }
            }
            Action::Unread { .. } | Action::Evicted { .. } | Action::NotNear { .. } => {
                panic!("{action:?}")
            }
            Action::Refresh { .. } => {
                if self.rng.chance(20) {
                    self.tell_topology();
                }
            }
        }
    }
}

fn story(seed: u64, breaks: bool, slow: bool) -> [usize; 2] {
    let mut world = World::new(seed, breaks, slow);
    for _ in 0..STEPS {
        world.step();
        world.settle(100);
    }
    world.finish();
    let detours = world.engine.figures().pools[0].counters.detours.get();
    [world.answered, detours as usize]
}

#[test]
fn moving_slots_are_not_seen() {
    tell([100_000, 0], |seed| story(seed, false, false));
}

#[test]
fn lost_connections_are_errors_at_most() {
    tell([100_000, 0], |seed| story(seed, true, false));
}

#[test]
fn who_reads_slowly_disorders_nothing() {
    tell([100_000, 5_000], |seed| story(seed, seed.is_multiple_of(2), true));
}
