//! Scans of a pretend cluster whose slots change hands, whose servers are replaced, and whose
//! changes the proxy learns late: a key that is there all the time is found by every scan.

use std::collections::{BTreeMap, BTreeSet};

use protocol::key_slot;
use proxy::engine::{Action, Engine, Limits, Loss};

use super::pretend::{self, ClientEnd, Rng, ServerEnd, mix, number, tell, topology, word};

const KEYS: usize = 120;
/// Slots change hands in chunks of so many.
const CHUNK: u16 = 1_024;
const CHUNKS: usize = 16;
/// Calls of SCAN while the cluster changes.
const CALLS: usize = 300;

struct World {
    rng: Rng,
    engine: Engine,
    client: ClientEnd,
    /// Which server, by number, has each chunk of slots.
    owners: [u16; CHUNKS],
    /// And had it: a chunk that goes and comes back between two looks is not noticed.
    former: BTreeSet<(usize, u16)>,
    keys: Vec<String>,
    /// With the server's number.
    conns: BTreeMap<usize, (ServerEnd, u16)>,
    servers: u16,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut engine = Engine::new(Limits::default());
        engine.add_pool(pretend::cluster());
        let client = ClientEnd::open(&mut engine);
        let mut world = Self {
            rng: Rng(seed),
            engine,
            client,
            owners: std::array::from_fn(|chunk| 1 + (chunk / 5) as u16),
            former: BTreeSet::new(),
            keys: (0..KEYS).map(|number| format!("key:{number}")).collect(),
            conns: BTreeMap::new(),
            servers: 5,
            calm: false,
        };
        world.tell();
        world
    }

    /// First and last slot of each chunk that a server has.
    fn slots(&self, server: u16) -> Vec<(u16, u16)> {
        let own = (0..).zip(self.owners).filter(|(_, owner)| *owner == server);
        own.map(|(chunk, _)| (chunk * CHUNK, (chunk + 1) * CHUNK - 1)).collect()
    }

    fn tell(&mut self) {
        let servers = BTreeSet::from(self.owners);
        let topology = topology(servers, |server| self.slots(server));
        self.engine.set_topology(0, &topology);
    }

    fn change(&mut self) {
        match self.rng.below(8) {
            // A chunk goes elsewhere, perhaps to a new server.
            0..3 => {
                let to = match self.rng.below(6) {
                    0 => self.new_server(),
                    _ => self.owners[self.rng.below(CHUNKS)],
                };
                let chunk = self.rng.below(CHUNKS);
                self.former.insert((chunk, self.owners[chunk]));
                if !self.former.contains(&(chunk, to)) {
                    self.owners[chunk] = to;
                }
            }
            // A replica takes a server's place.
            3 => {
                let gone = self.owners[self.rng.below(CHUNKS)];
                let new = self.new_server();
                for owner in self.owners.iter_mut().filter(|owner| **owner == gone) {
                    *owner = new;
                }
                let conns = std::mem::take(&mut self.conns);
                let (lost, kept) = conns.into_iter().partition(|(_, (_, of))| *of == gone);
                self.conns = kept;
                let lost: BTreeMap<usize, (ServerEnd, u16)> = lost;
                for (end, _) in lost.into_values() {
                    self.engine.conn_gone(end.id, Loss::Closed);
                }
            }
            _ => self.tell(),
        }
    }

    fn new_server(&mut self) -> u16 {
        self.servers += 1;
        self.servers
    }

    /// Where a key stands in a server's own order.
    fn place(server: u16, key: &str) -> u64 {
        let sum = key.bytes().fold(u64::from(server), |sum, byte| mix(sum ^ u64::from(byte)));
        1 + sum % 1_000
    }

    fn answer(&self, server: u16, words: &[Vec<u8>]) -> Vec<u8> {
        let words: Vec<&str> =
            words.iter().map(|word| std::str::from_utf8(word).unwrap()).collect();
        let mut out = Vec::new();
        let mut own: Vec<(u64, &String)> = self
            .keys
            .iter()
            .filter(|key| {
                let chunk = key_slot(key.as_bytes()).number() / CHUNK;
                self.owners[usize::from(chunk)] == server
            })
            .map(|key| (Self::place(server, key), key))
            .collect();
        own.sort_unstable();
        match words.as_slice() {
            ["SCAN", cursor, "COUNT", "7"] => {
                let from: u64 = cursor.parse().unwrap();
                let rest = own.iter().filter(|(place, _)| *place >= from);
                // All keys in one place come together.
                let until = rest.clone().nth(7).map_or(u64::MAX, |(place, _)| *place);
                let found: Vec<_> = rest.take_while(|(place, _)| *place <= until).collect();
                out.extend_from_slice(b"*2\r\n");
                let next = if until == u64::MAX { 0 } else { until + 1 };
                word(&mut out, next.to_string().as_bytes());
                out.extend_from_slice(format!("*{}\r\n", found.len()).as_bytes());
                for (_, key) in found {
                    word(&mut out, key.as_bytes());
                }
            }
            ["CLUSTER", "NODES"] => {
                let (id, address) = (server, pretend::address(server));
                let mut text = format!("{id:040} {address}@1 myself,master - 0 0 1 connected");
                for (first, last) in self.slots(server) {
                    text.push_str(&format!(" {first}-{last}"));
                }
                word(&mut out, text.as_bytes());
            }
            ["DBSIZE"] => out.extend_from_slice(format!(":{}\r\n", own.len()).as_bytes()),
            other => panic!("{other:?}"),
        }
        out
    }

    /// Sends a request and returns its whole reply.
    fn call(&mut self, words: &[&str]) -> String {
        self.client.ask(words);
        for _ in 0..2_000 {
            self.client.send(&mut self.engine, &mut self.rng);
            if let Some(reply) = self.client.reply() {
                return reply;
            }
            // Now and then something changes between the request and its reply.
            if !self.calm && self.rng.below(40) == 0 {
                self.change();
            }
            self.turn();
        }
        panic!("{words:?} has no reply");
    }

    fn turn(&mut self) {
        self.engine.settle();
        while let Some(id) = self.engine.next_conn_to_write() {
            let (mut end, server) = self.conns.remove(&id.index()).unwrap();
            end.take(&mut self.engine, &mut self.rng, 100);
            while let Some(words) = end.request() {
                let answer = self.answer(server, &words);
                assert!(self.engine.conn_bytes(id, &answer));
            }
            self.conns.insert(id.index(), (end, server));
        }
        while self.engine.next_client_to_write().is_some() {
            self.client.take(&mut self.engine, &mut self.rng, 100);
        }
        while let Some(action) = self.engine.next_action() {
            match action {
                Action::Connect { conn, address } => {
                    let server = number(&address);
                    if self.owners.contains(&server) {
                        let mut end = ServerEnd::new(conn);
                        end.accept(&mut self.engine);
                        self.conns.insert(conn.index(), (end, server));
                    } else {
                        self.engine.conn_gone(conn, Loss::Refused);
                    }
                }
                Action::CloseConn(id) => {
                    self.conns.remove(&id.index());
                    self.engine.forget_conn(id);
                }
                Action::Refresh { .. } if self.rng.below(3) == 0 => self.tell(),
                Action::Refresh { .. }
                | Action::ReadClient(_)
                | Action::ReadConn(_)
                | Action::Unread { .. } => {}
                Action::CloseClient(_) | Action::Evicted { .. } | Action::NotNear { .. } => {
                    panic!("nobody asked for it")
                }
            }
        }
        let now = self.engine.now() + 5_000;
        self.engine.set_now(now);
        self.engine.tick();
    }
}

/// The cursor and the keys of a page; none for an error.
fn page(text: &str) -> Option<(String, Vec<String>)> {
    let lines: Vec<&str> = text.split("\r\n").collect();
    let [header, _, cursor, _, rest @ ..] = lines.as_slice() else { return None };
    assert_eq!(*header, "*2", "{text}");
    let keys = rest.iter().skip(1).step_by(2).map(|key| (*key).to_owned());
    Some(((*cursor).to_owned(), keys.collect()))
}

/// How many scans ended.
fn story(seed: u64) -> usize {
    let mut world = World::new(seed);
    let all: BTreeSet<String> = world.keys.iter().cloned().collect();
    let (mut ended, mut calls) = (0, 0);
    let mut cursor = "0".to_owned();
    let mut found = BTreeSet::new();
    loop {
        calls += 1;
        if calls < CALLS && world.rng.below(25) == 0 {
            world.change();
        } else if calls >= CALLS {
            world.calm = true;
            world.tell();
        }
        assert!(calls < 2 * CALLS, "a scan doesn't end");
        let reply = world.call(&["SCAN", &cursor, "COUNT", "7"]);
        // A server that is gone costs an error; the same page is asked for again.
        let Some((next, keys)) = page(&reply) else { continue };
        found.extend(keys);
        cursor = next;
        if cursor == "0" {
            let missing: Vec<_> = all.difference(&found).collect();
            assert!(missing.is_empty(), "{missing:?} missing after {calls} calls");
            ended += 1;
            found.clear();
            if calls >= CALLS {
                assert_eq!(world.call(&["DBSIZE"]), format!(":{KEYS}\r\n"));
                return ended;
            }
        }
    }
}

#[test]
fn every_scan_finds_what_is_always_there() {
    tell([1_000], |seed| [story(seed)]);
}
