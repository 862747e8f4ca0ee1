//! The near cache in front of a pretend cluster whose keys are written by its own clients, by others,
//! by nobody (they expire), whose slots move and whose connections break. What a client reads is
//! never older than what any client was told before it asked, nor than what the server said of a
//! change before, nor than the cache's age; its own writes and reads it sees in order.

mod scenes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::key_slot;
use proxy::engine::{ClientId, ConnId, Limits, NearCache};

use super::{
    pretend::{Rng, STEPS, address, number, tell, topology, word},
    stage::{Conn, Stage, pool},
};

const NODES: u16 = 3;
const AGE: u64 = 3_000_000;
const KEYS: [&str; 8] = ["{a}1", "{a}2", "{b}1", "{b}2", "{c}1", "{c}2", "{d}1", "{d}2"];

fn slot(key: &str) -> u16 {
    key_slot(key.as_bytes()).number()
}

fn near_limits(bytes_max: usize) -> Limits {
    Limits { near: Some(NearCache { bytes_max, age: AGE }), ..Limits::default() }
}

/// What a key became, and when; None: it was deleted, or its time was over.
#[derive(Clone, Copy, Debug)]
struct Change {
    value: Option<u64>,
    at: u64,
    /// Nobody wrote that.
    expired: bool,
}

#[derive(Default)]
struct Key {
    history: Vec<Change>,
    expires: Option<u64>,
    /// It is still there, and will be until somebody asks for it.
    lingers: bool,
    /// The newest that any client was told of, or that the server said.
    floor: usize,
}

impl Key {
    fn change(&mut self, value: Option<u64>, at: u64) -> usize {
        (self.expires, self.lingers) = (None, false);
        self.history.push(Change { value, at, expired: false });
        self.history.len() - 1
    }

    fn look(&mut self, now: u64) {
        if let Some(at) = self.expires.filter(|at| *at <= now) {
            (self.expires, self.lingers) = (None, true);
            self.history.push(Change { value: None, at, expired: true });
        }
    }

    fn last(&self) -> usize {
        self.history.len() - 1
    }

    /// The first time from there on that it had a value.
    fn find(&self, from: usize, value: Option<u64>) -> Option<usize> {
        (from..self.history.len()).find(|index| self.history[*index].value == value)
    }

    /// What who asks now may be told at the oldest.
    fn oldest(&mut self, now: u64) -> usize {
        self.look(now);
        let is_known = |change: &Change| change.at + AGE <= now;
        self.history.iter().rposition(is_known).unwrap_or(0).max(self.floor)
    }
}

#[derive(Debug)]
enum Expected {
    Get {
        key: usize,
        oldest: usize,
        asked: u64,
    },
    /// Each with the value that it wrote and how long the key's history was.
    Wrote {
        keys: Vec<(usize, Option<u64>, usize)>,
        reply: &'static str,
    },
    /// FLUSHALL, and how long each key's history was.
    Flushed(Vec<usize>),
    /// EXEC of one write.
    Executed {
        key: usize,
        value: u64,
    },
    Said(&'static str),
}

struct Asker {
    id: ClientId,
    resp3: bool,
    expected: VecDeque<Expected>,
    /// What it read and wrote itself.
    own: BTreeMap<usize, usize>,
}

/// Keys that are said to have changed, and where in their histories.
type Told = Vec<(usize, usize)>;

struct Server {
    id: ConnId,
    node: u16,
    resp3: bool,
    tracks: bool,
    tracked: BTreeSet<usize>,
    queued: Option<Vec<Vec<String>>>,
    /// What it says, each with the change of a key that it tells of.
    outgoing: VecDeque<(Vec<u8>, Told)>,
}

struct World {
    rng: Rng,
    stage: Stage,
    askers: Vec<Asker>,
    servers: BTreeMap<usize, Server>,
    owners: BTreeMap<u16, u16>,
    keys: Vec<Key>,
    written: u64,
    read: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut stage = Stage::new(near_limits(2_000), pool());
        let askers = (0..4).map(|number| {
            let (id, resp3) = (stage.engine.client_opened(0), number % 2 == 1);
            Asker { id, resp3, expected: VecDeque::new(), own: BTreeMap::new() }
        });
        let askers = askers.collect();
        let key = |_| Key {
            history: vec![Change { value: None, at: 0, expired: false }],
            ..Key::default()
        };
        let owner = |(index, key): (usize, &&str)| (slot(key), index as u16 % NODES);
        let mut world = Self {
            rng: Rng(seed),
            stage,
            askers,
            servers: BTreeMap::new(),
            owners: KEYS.iter().enumerate().map(owner).collect(),
            keys: KEYS.map(key).into(),
            written: 0,
            read: 0,
        };
        world.tell_topology();
        for asker in 0..4 {
            if world.askers[asker].resp3 {
                world.ask(asker, &["hello", "3"], Expected::Said("%7"));
            }
        }
        world
    }

    fn tell_topology(&mut self) {
        let topology = topology(0..NODES, |node| {
            let own = self.owners.iter().filter(|(_, owner)| **owner == node);
            let own = own.map(|(slot, _)| (*slot, *slot));
            // What no key is in belongs to the first.
            let ends = self.owners.keys().map(|slot| i32::from(*slot)).chain([16_384]);
            let gaps = [-1].into_iter().chain(ends.clone()).zip(ends);
            let gaps = gaps.map(|(from, to)| ((from + 1) as u16, (to - 1).max(0) as u16));
            let gaps = gaps.filter(|(first, last)| node == 0 && first <= last);
            own.chain(gaps).collect()
        });
        self.stage.engine.set_topology(0, &topology);
        self.stage.settle();
    }

    fn ask(&mut self, asker: usize, words: &[&str], expected: Expected) {
        self.askers[asker].expected.push_back(expected);
        self.stage.ask(self.askers[asker].id, words);
        self.check();
    }

    fn ask_something(&mut self) {
        let asker = self.rng.below(4);
        if !self.stage.is_read(self.askers[asker].id) {
            return;
        }
        let at = self.rng.below(KEYS.len());
        let key = KEYS[at];
        let known = |world: &Self, at: usize| world.keys[at].history.len();
        self.written += 1;
        let value = self.written;
        let text = value.to_string();
        match self.rng.below(1000) {
            0..970 => {
                let asked = self.stage.now;
                let oldest = self.keys[at].oldest(asked);
                self.ask(asker, &["get", key], Expected::Get { key: at, oldest, asked });
            }
            970..980 => {
                let keys = vec![(at, Some(value), known(self, at))];
                self.ask(asker, &["set", key, &text], Expected::Wrote { keys, reply: "+OK" });
            }
            980..985 => {
                let keys = vec![(at, Some(value), known(self, at))];
                let millis = (1 + self.rng.below(2_000)).to_string();
                let words = ["set", key, &text, "px", &millis];
                self.ask(asker, &words, Expected::Wrote { keys, reply: "+OK" });
            }
            985..988 => {
                let keys = vec![(at, None, known(self, at))];
                self.ask(asker, &["del", key], Expected::Wrote { keys, reply: ":1" });
            }
            988..992 => {
                let other = (at + 1 + self.rng.below(KEYS.len() - 1)) % KEYS.len();
                let keys = [at, other].map(|at| (at, Some(value), known(self, at)));
                let words = ["mset", key, &text, KEYS[other], &text];
                self.ask(asker, &words, Expected::Wrote { keys: keys.into(), reply: "+OK" });
            }
            992..996 => {
                let keys = vec![(at, Some(value), known(self, at))];
                let words = ["eval", "return", "1", key, &text];
                self.ask(asker, &words, Expected::Wrote { keys, reply: "+OK" });
            }
            996..999 => {
                let asker = &mut self.askers[asker];
                let said = ["+OK", "+QUEUED"].map(Expected::Said);
                asker.expected.extend(said);
                asker.expected.push_back(Expected::Executed { key: at, value });
                self.stage.ask_all(asker.id, &[&["multi"], &["set", key, &text], &["exec"]]);
                self.check();
            }
            _ => {
                let known = (0..KEYS.len()).map(|at| known(self, at)).collect();
                self.ask(asker, &["flushall"], Expected::Flushed(known));
            }
        }
    }

    fn check(&mut self) {
        for asker in &mut self.askers {
            while let Some(text) = self.stage.reply(asker.id) {
                let expected = asker.expected.pop_front().expect("something was asked");
                let mut lines = text.split("\r\n");
                let first = lines.next().unwrap_or_default();
                // Slots go to and fro quicker than in any cluster: what was overtaken is not executed.
                if first.starts_with("-MOVED") {
                    continue;
                }
                match expected {
                    Expected::Said(said) => assert_eq!(first, said),
                    Expected::Get { key: at, oldest, asked } => {
                        let key = &mut self.keys[at];
                        let nil = if asker.resp3 { "_" } else { "$-1" };
                        let value = if first == nil {
                            None
                        } else {
                            assert!(first.starts_with('$') && first != "$-1", "{text:?}");
                            Some(lines.next().unwrap().parse().unwrap())
                        };
                        let own = asker.own.get(&at).copied().unwrap_or_default().max(oldest);
                        let seen = key.find(own, value);
                        let seen = seen.unwrap_or_else(|| {
                            let known = key.find(0, value).map(|seen| &key.history[seen..]);
                            panic!("{} is {value:?}, known was {own}: {known:?}", KEYS[at])
                        });
                        let next = key.history.get(seen + 1);
                        let over = next.is_some_and(|next| next.expired && next.at <= asked);
                        assert!(value.is_none() || !over, "{} is {value:?}", KEYS[at]);
                        key.floor = key.floor.max(seen);
                        asker.own.insert(at, seen);
                        self.read += 1;
                    }
                    Expected::Wrote { keys, reply } => {
                        assert_eq!(first, reply);
                        for (at, value, known) in keys {
                            let key = &mut self.keys[at];
                            let from = if value.is_some() { 0 } else { known };
                            let wrote = key.find(from, value).expect("it was written");
                            key.floor = key.floor.max(wrote);
                            asker.own.insert(at, wrote);
                        }
                    }
                    Expected::Flushed(known) => {
                        assert_eq!(first, "+OK");
                        for (at, known) in known.into_iter().enumerate() {
                            let key = &mut self.keys[at];
                            // Where a slot went to a server that had been flushed, somebody else
                            // may have deleted the key, or nobody.
                            if let Some(wrote) = key.find(known, None) {
                                key.floor = key.floor.max(wrote);
                            }
                        }
                    }
                    Expected::Executed { key: at, value } => {
                        let key = &mut self.keys[at];
                        if let Some(wrote) = key.find(0, Some(value)).filter(|_| first == "*1") {
                            key.floor = key.floor.max(wrote);
                            asker.own.insert(at, wrote);
                        }
                    }
                }
            }
        }
    }

    /// A node tells who read a key of it.
    fn changed(&mut self, at: usize, index: usize) {
        let owner = self.owners[&slot(KEYS[at])];
        for server in self.servers.values_mut().filter(|server| server.node == owner) {
            if server.tracked.remove(&at) {
                let mut push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n".to_vec();
                word(&mut push, KEYS[at].as_bytes());
                server.outgoing.push_back((push, vec![(at, index)]));
            }
        }
    }

    fn write(&mut self, at: usize, value: Option<u64>) {
        self.keys[at].look(self.stage.now);
        let index = self.keys[at].change(value, self.stage.now);
        self.changed(at, index);
    }

    fn flush(&mut self, node: u16) {
        let own = (0..KEYS.len()).filter(|at| self.owners[&slot(KEYS[*at])] == node);
        let mut told = Vec::new();
        for at in own {
            self.keys[at].look(self.stage.now);
            told.push((at, self.keys[at].change(None, self.stage.now)));
        }
        for server in self.servers.values_mut().filter(|each| each.node == node && each.tracks) {
            // Of others it knows nothing: their slots came there only now.
            let tracked = std::mem::take(&mut server.tracked);
            let told = told.iter().copied().filter(|(at, _)| tracked.contains(at));
            let push = b">2\r\n$10\r\ninvalidate\r\n_\r\n".to_vec();
            server.outgoing.push_back((push, told.collect()));
        }
    }

    /// A server executes the oldest request of a connection.
    fn serve(&mut self, conn: usize) -> bool {
        if !self.stage.conns.contains_key(&conn) {
            return false;
        }
        self.stage.open(conn);
        let Some(words) = self.stage.next(conn) else { return false };
        let Conn { id, address, .. } = &self.stage.conns[&conn];
        let (id, node) = (*id, number(address));
        self.forget_conns();
        self.servers.entry(conn).or_insert_with(|| Server {
            id,
            node,
            resp3: false,
            tracks: false,
            tracked: BTreeSet::new(),
            queued: None,
            outgoing: VecDeque::new(),
        });
        let name = words[0].to_lowercase();
        let queued = self.servers.get_mut(&conn).unwrap().queued.as_mut();
        let said = match (queued, name.as_str()) {
            (Some(queued), "exec") => {
                let queued = std::mem::take(queued);
                self.servers.get_mut(&conn).unwrap().queued = None;
                let each = queued.iter().map(|words| self.execute(conn, words));
                let each: Vec<String> = each.collect();
                format!("*{}\r\n{}", each.len(), each.concat())
            }
            (Some(queued), _) if self.owners[&slot(&words[1])] == node => {
                queued.push(words);
                "+QUEUED\r\n".to_owned()
            }
            _ => self.execute(conn, &words),
        };
        self.say(conn, said.into_bytes());
        true
    }

    fn say(&mut self, conn: usize, said: Vec<u8>) {
        let server = self.servers.get_mut(&conn).unwrap();
        server.outgoing.push_back((said, Vec::new()));
    }

    fn execute(&mut self, conn: usize, words: &[String]) -> String {
        let server = self.servers.get_mut(&conn).unwrap();
        let node = server.node;
        let name = words[0].to_lowercase();
        match name.as_str() {
            "hello" => {
                server.resp3 = true;
                return "%0\r\n".to_owned();
            }
            "client" => {
                assert_eq!(words, ["CLIENT", "TRACKING", "ON"]);
                server.tracks = server.resp3 && !self.rng.chance(5);
                let said = if server.tracks { "+OK\r\n" } else { "-ERR not allowed\r\n" };
                return said.to_owned();
            }
            "multi" => {
                server.queued = Some(Vec::new());
                return "+OK\r\n".to_owned();
            }
            "flushall" => {
                self.flush(node);
                return "+OK\r\n".to_owned();
            }
            _ => {}
        }
        let resp3 = server.resp3;
        let key = if name == "eval" { &words[3] } else { &words[1] };
        let at = KEYS.iter().position(|each| each == key).unwrap();
        let owner = self.owners[&slot(key)];
        if owner != node {
            return format!("-MOVED {} {}\r\n", slot(key), address(owner));
        }
        let now = self.stage.now;
        let value = |text: &str| Some(text.parse::<u64>().unwrap());
        match name.as_str() {
            "get" | "pttl" => {
                self.keys[at].look(now);
                if std::mem::take(&mut self.keys[at].lingers) {
                    self.changed(at, self.keys[at].last());
                }
                let server = self.servers.get_mut(&conn).unwrap();
                if server.tracks {
                    server.tracked.insert(at);
                }
                let key = &self.keys[at];
                let held = key.history[key.last()].value.map(|value| value.to_string());
                match (held, name.as_str()) {
                    (Some(value), "get") => format!("${}\r\n{value}\r\n", value.len()),
                    (None, "get") if resp3 => "_\r\n".to_owned(),
                    (None, "get") => "$-1\r\n".to_owned(),
                    (None, _) => ":-2\r\n".to_owned(),
                    (Some(_), _) => match key.expires {
                        Some(at) => format!(":{}\r\n", (at - now) / 1_000),
                        None => ":-1\r\n".to_owned(),
                    },
                }
            }
            "set" => {
                self.write(at, value(&words[2]));
                if let Some(millis) = words.get(4) {
                    self.keys[at].expires = Some(now + millis.parse::<u64>().unwrap() * 1_000);
                }
                "+OK\r\n".to_owned()
            }
            "del" => {
                self.write(at, None);
                ":1\r\n".to_owned()
            }
            "mset" => {
                for pair in words[1..].chunks(2) {
                    let at = KEYS.iter().position(|each| *each == pair[0]).unwrap();
                    self.write(at, value(&pair[1]));
                }
                "+OK\r\n".to_owned()
            }
            "eval" => {
                self.write(at, value(&words[4]));
                "+OK\r\n".to_owned()
            }
            other => panic!("{other}"),
        }
    }

    /// Some of what a server said arrives.
    fn deliver(&mut self, conn: usize) -> bool {
        self.forget_conns();
        let Some(server) = self.servers.get_mut(&conn) else { return false };
        let Some((said, told)) = server.outgoing.front_mut() else { return false };
        if self.rng.chance(10) && said.len() > 1 {
            let cut = 1 + self.rng.below(said.len() - 1);
            let part: Vec<u8> = said.drain(..cut).collect();
            self.stage.tell(conn, &part);
            return true;
        }
        let (said, told) = (std::mem::take(said), std::mem::take(told));
        server.outgoing.pop_front();
        self.stage.tell(conn, &said);
        for (at, index) in told {
            let key = &mut self.keys[at];
            key.floor = key.floor.max(index);
        }
        self.check();
        true
    }

    fn forget_conns(&mut self) {
        let conns = &self.stage.conns;
        // Places are used again.
        self.servers.retain(|at, server| conns.get(at).is_some_and(|conn| conn.id == server.id));
    }

    fn step(&mut self) {
        self.stage.pass(self.rng.below(3_000) as u64);
        if self.rng.below(1000) < 2 {
            self.stage.pass(AGE / 4);
        }
        self.stage.tick();
        self.check();
        match self.rng.below(1000) {
            0..450 => {
                for _ in 0..=self.rng.below(4) {
                    self.ask_something();
                }
            }
            450..465 => {
                self.written += 1;
                let at = self.rng.below(KEYS.len());
                let value = Some(self.written).filter(|_| self.rng.chance(80));
                self.write(at, value);
            }
            465..467 => {
                let node = self.rng.below(NODES.into()) as u16;
                self.flush(node);
            }
            467..472 => {
                self.drain();
                let which = self.rng.below(self.owners.len());
                let (slot, owner) = self.owners.iter_mut().nth(which).unwrap();
                let (slot, old) = (*slot, *owner);
                *owner = self.rng.below(NODES.into()) as u16;
                // A server that knows that it lost keys says so, or doesn't come to that.
                for server in self.servers.values_mut().filter(|server| server.node == old) {
                    server.tracked.retain(|at| self::slot(KEYS[*at]) != slot);
                }
            }
            472..480 => self.tell_topology(),
            480..483 => {
                let conn = self.some_conn();
                let near = |conn: &usize| self.servers.get(conn).is_some_and(|it| it.tracks);
                if let Some(conn) = conn.filter(near) {
                    self.stage.lose(conn);
                    // What the server said, or would have said.
                    let server = &self.servers[&conn];
                    let told = server.outgoing.iter().flat_map(|(_, told)| told);
                    for at in told.map(|(at, _)| at).chain(&server.tracked) {
                        let key = &mut self.keys[*at];
                        key.floor = key.last();
                    }
                }
            }
            _ => {}
        }
        for _ in 0..self.rng.below(12) {
            let conn = self.some_conn();
            conn.map(|conn| self.serve(conn));
            let conn = self.some_conn();
            conn.map(|conn| self.deliver(conn));
        }
        self.forget_conns();
    }

    fn some_conn(&mut self) -> Option<usize> {
        let which = self.rng.below(self.stage.conns.len());
        self.stage.conns.keys().nth(which).copied()
    }

    /// All that is on its way arrives, but for what the near cache asked.
    fn drain(&mut self) {
        let is_near = |world: &Self, at: &usize| world.servers.get(at).is_some_and(|it| it.tracks);
        for _ in 0..100 {
            let conns: Vec<usize> = self.stage.conns.keys().copied().collect();
            for conn in conns {
                while !is_near(self, &conn) && self.serve(conn) {}
                while !is_near(self, &conn) && self.deliver(conn) {}
            }
        }
    }

    fn finish(&mut self) {
        for _ in 0..200 {
            self.stage.pass(20_000);
            self.stage.tick();
            for conn in self.stage.conns.keys().copied().collect::<Vec<_>>() {
                while self.serve(conn) {}
                while self.deliver(conn) {}
            }
            self.check();
            self.forget_conns();
        }
        for asker in &self.askers {
            assert!(asker.expected.is_empty(), "{:?} waits for {:?}", asker.id, asker.expected);
        }
    }
}

fn story(seed: u64) -> [usize; 3] {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.tell_topology();
    world.finish();
    let figures = world.stage.engine.figures();
    let counters = &figures.pools[0].counters;
    assert!(counters.near_bytes.get() <= 2_000);
    let hits = counters.near_hits.get() as usize;
    [world.read, hits, counters.near_invalidations.get() as usize]
}

#[test]
fn nobody_reads_what_is_older_than_what_was_known() {
    tell([500_000, 200_000, 10_000], story);
}
