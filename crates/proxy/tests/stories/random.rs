//! The engine between pretend clients and pretend servers, in random order, with random cuts and
//! faults. Whatever happens: each client gets one reply for each request, in order, and it is its
//! own or an error; nothing is invented; buffers stay bounded.

use std::collections::{BTreeMap, VecDeque};

use protocol::key_hash::twemproxy::{Distribution, Hash, KeyHash, RingServer};
use proxy::{
    engine::{Action, ClientId, ConnId, Engine, Limits, Loss, Memory, PoolSetup, Profile},
    route::{Ejection, EjectionMode, Ring, Route},
};

use super::pretend::{self, ClientEnd, Rng, STEPS, ServerEnd, World as _, tell, word};

/// What may be held where there is little memory.
const CROWDED_BYTES: usize = 150_000;

struct Client {
    end: ClientEnd,
    ended: bool,
    asked: u64,
    /// What replies may be, oldest request first.
    expected: VecDeque<Vec<u8>>,
}

struct World {
    rng: Rng,
    engine: Engine,
    now: u64,
    clients: Vec<Client>,
    servers: BTreeMap<usize, ServerEnd>,
    /// Faults may end requests with errors.
    faults: bool,
    /// There is little memory: those that hold most are closed.
    crowded: bool,
    answered: usize,
    /// Bytes that servers sent.
    said: usize,
}

/// The value of a key: known to everyone.
fn value(key: &[u8]) -> Vec<u8> {
    let sum: usize = key.iter().map(|byte| usize::from(*byte)).sum();
    let size = if sum.is_multiple_of(23) { 9_000 } else { sum % 50 };
    let mut value = key.to_vec();
    value.resize(key.len() + size, b'.');
    value
}

/// A pool of some of four servers. They eject those that fail, one way or the other.
fn setup(rng: &mut Rng, faults: bool) -> PoolSetup {
    let names = ["a", "b", "c", "d"];
    let mut live: Vec<usize> = (0..names.len()).filter(|_| rng.chance(70)).collect();
    if live.is_empty() {
        live.push(0);
    }
    let places: Vec<RingServer<'_>> = live
        .iter()
        .enumerate()
        .map(|(id, server)| RingServer { id: id as u32, name: names[*server], weight: 1 })
        .collect();
    let hash = KeyHash { hash: Hash::default(), tag: None };
    let mut ring = Ring::new(hash, Distribution::Modula, &places, 0);
    if faults && rng.chance(70) {
        let mode = if rng.chance(50) { EjectionMode::Rering } else { EjectionMode::Refuse };
        ring = ring.ejecting(Ejection { failures_max: 2, time: 100_000, mode });
    }
    PoolSetup {
        route: Route::Ring(ring),
        servers: live.iter().map(|server| pretend::address(*server as u16)).collect(),
        profile: Profile { database: 3 + u32::from(rng.chance(20)), ..Profile::default() },
        timeout: faults.then_some(500_000),
        server_connections: 1 + rng.below(2),
        ..pretend::cluster()
    }
}

impl World {
    fn new(seed: u64, faults: bool) -> Self {
        let crowded = faults && seed.is_multiple_of(2);
        let bytes_max = if crowded { CROWDED_BYTES } else { usize::MAX };
        let limits = Limits {
            outstanding_max: 20,
            waiting_bytes_max: 30_000,
            waiting_bytes_hard: 60_000,
            server_bytes_max: 2_000,
            stream_bytes_min: 400,
            merged_bytes_max: 200_000,
            stall: 1_000_000,
            long_reply_bytes: 5_000,
            memory: Memory::new(bytes_max, 1).into(),
            ..Limits::default()
        };
        let mut engine = Engine::new(limits);
        let mut rng = Rng(seed);
        engine.add_pool(setup(&mut rng, faults));
        let (clients, servers) = (Vec::new(), BTreeMap::new());
        Self { rng, engine, now: 0, clients, servers, faults, crowded, answered: 0, said: 0 }
    }

    fn ask(&mut self, index: usize) {
        let Self { rng, clients, .. } = self;
        let Client { end, asked, expected, .. } = &mut clients[index];
        let (id, kind, size) = (end.id, rng.below(8), rng.below(9));
        let mut key = || {
            *asked += 1;
            format!("{id:?}/{asked}/{}", rng.below(1000)).into_bytes()
        };
        let mut reply = Vec::new();
        match kind {
            0 => {
                let mut words = vec![b"MGET".to_vec()];
                words.extend((0..=size).map(|_| key()));
                reply.extend_from_slice(format!("*{}\r\n", size + 1).as_bytes());
                words[1..].iter().for_each(|key| word(&mut reply, &value(key)));
                end.ask(&words);
            }
            1 => {
                let mut words = vec![b"Unlink".to_vec()];
                words.extend((0..=size).map(|_| key()));
                reply.extend_from_slice(format!(":{}\r\n", size + 1).as_bytes());
                end.ask(&words);
            }
            2 => {
                let text = key();
                end.ask(&[&b"ECHO"[..], &text]);
                word(&mut reply, &text);
            }
            3 => {
                end.ask(&[&b"mset"[..], &key(), b"some value", &key(), b"some value"]);
                reply.extend_from_slice(b"+OK\r\n");
            }
            4 => {
                // Large ones are passed on as they come.
                let value = vec![b'v'; size * size * 100];
                end.ask(&[&b"set"[..], &key(), &value, b"px", b"100000"]);
                reply.extend_from_slice(b"+OK\r\n");
            }
            _ => {
                let key = key();
                end.ask(&[&b"get"[..], &key]);
                word(&mut reply, &value(&key));
            }
        }
        expected.push_back(reply);
    }

    /// The server answers one request.
    fn serve(server: &mut ServerEnd) {
        let Some(words) = server.request() else { return };
        let out = &mut server.outgoing;
        match words[0].to_ascii_lowercase().as_slice() {
            b"get" => word(out, &value(&words[1])),
            b"mget" => {
                out.extend_from_slice(format!("*{}\r\n", words.len() - 1).as_bytes());
                words[1..].iter().for_each(|key| word(out, &value(key)));
            }
            b"unlink" => out.extend_from_slice(format!(":{}\r\n", words.len() - 1).as_bytes()),
            b"set" => {
                assert!(words[2].iter().all(|byte| *byte == b'v'));
                assert_eq!(words[3..], [&b"px"[..], b"100000"]);
                out.extend_from_slice(b"+OK\r\n");
            }
            b"mset" | b"select" => out.extend_from_slice(b"+OK\r\n"),
            other => panic!("{other:?}"),
        }
    }

    fn step(&mut self) {
        self.now += 1 + self.rng.below(2_000) as u64;
        self.engine.set_now(self.now);
        match self.rng.below(if self.faults { 105 } else { 100 }) {
            0..4 if self.clients.len() < 8 => self.open_client(),
            4..50 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                if !self.clients[index].ended {
                    for _ in 0..self.rng.below(4) {
                        self.ask(index);
                    }
                    self.clients[index].end.send(&mut self.engine, &mut self.rng);
                }
            }
            50..55 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                self.client_takes(self.clients[index].end.id, 50);
            }
            55..88 if !self.servers.is_empty() => self.server_works(),
            88..90 if !self.servers.is_empty() => {
                let which = self.rng.below(self.servers.len());
                let id = self.servers.values().nth(which).unwrap().id;
                self.server_takes(id, 50);
            }
            90..92 if !self.clients.is_empty() => {
                // A client goes, properly or not.
                let index = self.rng.below(self.clients.len());
                if self.rng.chance(50) {
                    let client = self.clients.remove(index);
                    self.engine.client_gone(client.end.id);
                } else {
                    let Client { end, ended, .. } = &mut self.clients[index];
                    if end.outgoing.is_empty() && end.read && !*ended {
                        *ended = true;
                        self.engine.client_ended(end.id);
                    }
                }
            }
            92..96 => self.engine.tick(),
            96 if self.rng.chance(30) => {
                let setup = setup(&mut self.rng, self.faults);
                self.engine.replace_pool(0, setup);
                if self.rng.chance(30) {
                    self.engine.preconnect(0);
                }
            }
            100..103 if !self.servers.is_empty() => self.break_server(),
            103..105 => {
                self.now += 400_000;
                self.engine.set_now(self.now);
                self.engine.tick();
            }
            _ => {}
        }
    }

    fn open_client(&mut self) {
        let end = ClientEnd::open(&mut self.engine);
        self.clients.push(Client { end, ended: false, asked: 0, expected: VecDeque::new() });
    }

    fn server_works(&mut self) {
        let which = self.rng.below(self.servers.len());
        let server = self.servers.values_mut().nth(which).unwrap();
        if server.accept(&mut self.engine) {
            return;
        }
        for _ in 0..self.rng.below(12) {
            Self::serve(server);
        }
        self.said += server.send(&mut self.engine, &mut self.rng, 6_000);
    }

    /// A connection breaks, or says what nobody can understand or asked for.
    fn break_server(&mut self) {
        let which = self.rng.below(self.servers.len());
        let server = self.servers.values_mut().nth(which).unwrap();
        let id = server.id;
        if self.rng.chance(70) {
            let loss = if server.connected { Loss::Closed } else { Loss::Refused };
            self.servers.remove(&id.index());
            self.engine.conn_gone(id, loss);
        } else if server.connected && server.read && server.outgoing.is_empty() {
            server.read = self.engine.conn_bytes(id, b"\r\nHTTP/1.1 400\r\n");
        }
    }

    /// Everything that was asked is answered, when all do what they should.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            for client in &mut self.clients {
                client.end.send(&mut self.engine, &mut self.rng);
            }
            for server in self.servers.values_mut() {
                server.accept(&mut self.engine);
                for _ in 0..30 {
                    Self::serve(server);
                }
                self.said += server.send(&mut self.engine, &mut self.rng, usize::MAX);
            }
            for id in self.clients.iter().map(|client| client.end.id).collect::<Vec<_>>() {
                self.client_takes(id, 100);
            }
            for id in self.servers.values().map(|server| server.id).collect::<Vec<_>>() {
                self.server_takes(id, 100);
            }
            self.settle(70);
            let idle =
                |client: &Client| client.expected.is_empty() && client.end.outgoing.is_empty();
            let quiet = self.servers.values().all(ServerEnd::is_quiet);
            if self.clients.iter().all(idle) && quiet {
                return;
            }
        }
        for Client { end, expected, .. } in &self.clients {
            let (expected, left) = (expected.len(), end.outgoing.len());
            eprintln!("{:?}: {expected} expected, {left} to send, {}", end.id, end.read);
        }
        panic!("some requests have no reply");
    }
}

impl pretend::World for World {
    fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn server_takes(&mut self, id: ConnId, percent_all: usize) {
        if let Some(server) = self.servers.get_mut(&id.index()) {
            server.take(&mut self.engine, &mut self.rng, percent_all);
        }
    }

    fn client_takes(&mut self, id: ClientId, percent_all: usize) {
        let client = self.clients.iter_mut().find(|client| client.end.id == id);
        let Some(Client { end, expected, .. }) = client else { return };
        end.take(&mut self.engine, &mut self.rng, percent_all);
        // Whole replies are the expected ones.
        while let Some(reply) = end.reply() {
            let expected = expected.pop_front().expect("nothing was asked");
            if reply.starts_with('-') {
                assert!(self.faults, "{reply}");
            } else {
                assert_eq!(reply, String::from_utf8_lossy(&expected));
            }
            self.answered += 1;
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn, .. } => {
                self.servers.insert(conn.index(), ServerEnd::new(conn));
            }
            Action::CloseConn(id) => {
                self.servers.remove(&id.index());
                self.engine.forget_conn(id);
            }
            Action::CloseClient(id) => {
                self.engine.client_gone(id);
                if let Some(at) = self.clients.iter().position(|client| client.end.id == id) {
                    let client = self.clients.remove(at);
                    assert!(self.faults || client.ended);
                    assert!(self.faults || client.expected.is_empty());
                }
            }
            Action::ReadClient(id) => {
                self.clients.iter_mut().filter(|c| c.end.id == id).for_each(|c| c.end.read = true);
            }
            Action::ReadConn(id) => {
                self.servers.get_mut(&id.index()).unwrap().read = true;
            }
            Action::Refresh { .. } => unreachable!("there is no cluster"),
            Action::Unread { .. } => assert!(self.faults, "all read"),
            Action::Evicted { .. } => assert!(self.crowded, "there is room"),
            Action::NotNear { .. } => unreachable!("it holds nothing"),
        }
    }
}

fn story(seed: u64, faults: bool) -> [usize; 1] {
    let mut world = World::new(seed, faults);
    for _ in 0..STEPS {
        world.step();
        world.settle(70);
        let bytes = world.engine.buffer_bytes();
        let most = if world.crowded { 2 * CROWDED_BYTES } else { 4 << 20 };
        assert!(bytes < most, "{bytes} bytes of buffers");
    }
    world.finish();
    let figures = world.engine.figures();
    let heard = figures.pools[0].servers.iter().map(|server| server.counters.response_bytes.get());
    let (heard, said) = (heard.sum::<u64>() as usize, world.said);
    // What was on its way to a client who went, over a connection of his own, is lost with it.
    assert!(faults || (said / 100 * 99..=said).contains(&heard), "{heard} bytes of {said}");
    [world.answered]
}

#[test]
fn every_request_gets_its_reply() {
    tell([100_000], |seed| story(seed, false));
}

#[test]
fn with_faults_every_request_gets_its_reply_or_an_error() {
    tell([100_000], |seed| story(seed, true));
}
