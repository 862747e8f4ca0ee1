//! Scans of a pretend cluster whose slots change hands, whose servers are replaced, and whose
//! changes the proxy learns late: a key that is there all the time is found by every scan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{SlotSet, key_slot};
use proxy::{
    engine::{
        Action, ClientId, ConnId, Engine, Limits, Loss, PoolSetup, Profile, Users, reply, request,
    },
    route::{Address, Primary, Route, Slots, Topology},
};

const SEEDS: u64 = 256;
const KEYS: usize = 120;
/// Slots change hands in chunks of so many.
const CHUNK: u16 = 1_024;
const CHUNKS: usize = 16;
/// Calls of SCAN while the cluster changes.
const CALLS: usize = 300;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

struct World {
    rng: Rng,
    engine: Engine,
    client: ClientId,
    /// Which server, by port, has each chunk of slots.
    owners: [u16; CHUNKS],
    /// And had it: a chunk that goes and comes back between two looks is not noticed.
    former: BTreeSet<(usize, u16)>,
    keys: Vec<String>,
    conns: BTreeMap<usize, (ConnId, u16)>,
    received: Vec<u8>,
    ports: u16,
    calm: bool,
}

fn address(port: u16) -> Address {
    Address::Tcp(([127, 0, 0, 1], port).into())
}

fn bulk(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("${}\r\n{text}\r\n", text.len()).as_bytes());
}

impl World {
    fn new(seed: u64) -> Self {
        let mut engine = Engine::new(Limits::default());
        engine.add_pool(PoolSetup {
            route: Route::Slots(Slots::default()),
            servers: Vec::new(),
            profile: Profile::default(),
            client_password: None,
            users: Users::default(),
            timeout: None,
            server_connections: 1,
            backoff_min: 1,
            backoff_max: 1,
        });
        let client = engine.client_opened(0);
        let mut world = Self {
            rng: Rng(seed),
            engine,
            client,
            owners: std::array::from_fn(|chunk| 1 + (chunk / 5) as u16),
            former: BTreeSet::new(),
            keys: (0..KEYS).map(|number| format!("key:{number}")).collect(),
            conns: BTreeMap::new(),
            received: Vec::new(),
            ports: 5,
            calm: false,
        };
        world.tell();
        world
    }

    fn topology(&self) -> Topology {
        let mut primaries: Vec<Primary> = Vec::new();
        for (chunk, owner) in (0..).zip(self.owners) {
            let slots = SlotSet::range(chunk * CHUNK, (chunk + 1) * CHUNK - 1);
            match primaries.iter_mut().find(|each| *each.address == address(owner)) {
                Some(primary) => primary.slots = primary.slots.union(&slots),
                None => primaries.push(Primary { address: Arc::new(address(owner)), slots }),
            }
        }
        Topology { primaries }
    }

    fn tell(&mut self) {
        let topology = self.topology();
        self.engine.set_topology(0, &topology);
    }

    fn change(&mut self) {
        match self.rng.below(8) {
            // A chunk goes elsewhere, perhaps to a new server.
            0..3 => {
                let to = match self.rng.below(6) {
                    0 => self.new_port(),
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
                let new = self.new_port();
                for owner in self.owners.iter_mut().filter(|owner| **owner == gone) {
                    *owner = new;
                }
                let lost: Vec<ConnId> = self
                    .conns
                    .values()
                    .filter(|(_, port)| *port == gone)
                    .map(|(id, _)| *id)
                    .collect();
                for id in lost {
                    self.conns.remove(&id.index());
                    self.engine.conn_gone(id, Loss::Closed);
                }
            }
            _ => self.tell(),
        }
    }

    fn new_port(&mut self) -> u16 {
        self.ports += 1;
        self.ports
    }

    /// Where a key stands in a server's own order.
    fn place(port: u16, key: &str) -> u64 {
        let sum = key.bytes().fold(u64::from(port), |sum, byte| mix(sum ^ u64::from(byte)));
        1 + sum % 1_000
    }

    fn answer(&self, port: u16, words: &[&[u8]]) -> Vec<u8> {
        let words: Vec<&str> =
            words.iter().map(|word| std::str::from_utf8(word).unwrap()).collect();
        let mut out = Vec::new();
        let mut own: Vec<(u64, &String)> = self
            .keys
            .iter()
            .filter(|key| {
                let chunk = key_slot(key.as_bytes()).number() / CHUNK;
                self.owners[usize::from(chunk)] == port
            })
            .map(|key| (Self::place(port, key), key))
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
                bulk(&mut out, &next.to_string());
                out.extend_from_slice(format!("*{}\r\n", found.len()).as_bytes());
                for (_, key) in found {
                    bulk(&mut out, key);
                }
            }
            ["CLUSTER", "NODES"] => {
                let mut text =
                    format!("{port:040} 127.0.0.1:{port}@1 myself,master - 0 0 1 connected");
                for (chunk, _) in (0..).zip(self.owners).filter(|(_, owner)| *owner == port) {
                    let (first, last) = (chunk * CHUNK, (chunk + 1) * CHUNK - 1);
                    text.push_str(&format!(" {first}-{last}"));
                }
                bulk(&mut out, &text);
            }
            ["DBSIZE"] => out.extend_from_slice(format!(":{}\r\n", own.len()).as_bytes()),
            other => panic!("{other:?}"),
        }
        out
    }

    /// Sends a request and returns its whole reply.
    fn call(&mut self, words: &[&str]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bulk(&mut bytes, word);
        }
        assert!(self.engine.client_bytes(self.client, &bytes));
        for _ in 0..2_000 {
            if let Some(length) = reply::value_length(&self.received) {
                return self.received.drain(..length).collect();
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
            let bytes = self.engine.conn_output(id).to_vec();
            self.engine.conn_wrote(id, bytes.len());
            let port = self.conns[&id.index()].1;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let limits = request::RequestLimits::default();
                let frame = request::frame(rest, &mut request::Progress::default(), &limits);
                let (one, others) = rest.split_at(frame.unwrap().unwrap().length);
                let words: Vec<&[u8]> = request::words(one).collect();
                let answer = self.answer(port, &words);
                assert!(self.engine.conn_bytes(id, &answer));
                rest = others;
            }
        }
        while let Some(id) = self.engine.next_client_to_write() {
            let bytes = self.engine.client_output(id).to_vec();
            self.received.extend_from_slice(&bytes);
            self.engine.client_wrote(id, bytes.len());
        }
        while let Some(action) = self.engine.next_action() {
            match action {
                Action::Connect { conn, address } => {
                    let Address::Tcp(address) = *address else { panic!("{address}") };
                    if self.owners.contains(&address.port()) {
                        self.conns.insert(conn.index(), (conn, address.port()));
                        self.engine.conn_opened(conn);
                    } else {
                        self.engine.conn_gone(conn, Loss::Refused);
                    }
                }
                Action::CloseConn(id) => {
                    self.conns.remove(&id.index());
                    self.engine.forget_conn(id);
                }
                Action::Refresh { .. } if self.rng.below(3) == 0 => self.tell(),
                Action::Refresh { .. } | Action::ReadClient(_) | Action::ReadConn(_) => {}
                Action::CloseClient(_) => panic!("nobody asked for it"),
            }
        }
        let now = self.engine.now() + 5_000;
        self.engine.set_now(now);
        self.engine.tick();
    }
}

/// The cursor and the keys of a page; none for an error.
fn page(reply: &[u8]) -> Option<(String, Vec<String>)> {
    let text = String::from_utf8(reply.to_vec()).unwrap();
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
                assert_eq!(world.call(&["DBSIZE"]), format!(":{KEYS}\r\n").into_bytes());
                return ended;
            }
        }
    }
}

#[test]
fn every_scan_finds_what_is_always_there() {
    let only: Option<u64> = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut ended = 0;
    for seed in seeds {
        match std::panic::catch_unwind(|| story(seed)) {
            Ok(count) => ended += count,
            Err(panic) => {
                eprintln!("again with SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(only.is_some() || ended > 1_000, "{ended} scans say little");
}
