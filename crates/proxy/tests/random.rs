//! The engine between pretend clients and pretend servers, in random order, with random cuts and
//! faults. Whatever happens: each client gets one reply for each request, in order, and it is its
//! own or an error; nothing is invented; buffers stay bounded.

mod pretend;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use protocol::key_hash::twemproxy::{Distribution, Hash, KeyHash, RingServer};
use proxy::{
    engine::{
        Action, ClientId, ConnId, Engine, Limits, Loss, PoolSetup, Profile, Users, reply, request,
    },
    route::{Address, Ejection, EjectionMode, Ring, Route},
};

use pretend::{Rng, STEPS, tell, word};

struct PretendClient {
    id: ClientId,
    /// To be sent.
    outgoing: Vec<u8>,
    read: bool,
    ended: bool,
    asked: u64,
    /// What replies may be, oldest request first.
    expected: VecDeque<Vec<u8>>,
    received: Vec<u8>,
}

struct PretendServer {
    connected: bool,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    read: bool,
}

struct World {
    rng: Rng,
    engine: Engine,
    now: u64,
    clients: Vec<PretendClient>,
    servers: BTreeMap<usize, (ConnId, PretendServer)>,
    /// Faults may end requests with errors.
    faults: bool,
    answered: usize,
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
    let address =
        |server: &usize| Arc::new(Address::Tcp(([127, 0, 0, 1], 7000 + *server as u16).into()));
    let hash = KeyHash { hash: Hash::default(), tag: None };
    let mut ring = Ring::new(hash, Distribution::Modula, &places, 0);
    if faults && rng.chance(70) {
        let mode = if rng.chance(50) { EjectionMode::Rering } else { EjectionMode::Refuse };
        ring = ring.ejecting(Ejection { failures_max: 2, time: 100_000, mode });
    }
    PoolSetup {
        route: Route::Ring(ring),
        servers: live.iter().map(address).collect(),
        profile: Profile { database: 3 + u32::from(rng.chance(20)), ..Profile::default() },
        client_password: None,
        users: Users::default(),
        timeout: faults.then_some(500_000),
        server_connections: 1 + rng.below(2),
        backoff_min: 1,
        backoff_max: 1,
    }
}

impl World {
    fn new(seed: u64, faults: bool) -> Self {
        let limits = Limits {
            outstanding_max: 20,
            waiting_bytes_max: 30_000,
            waiting_bytes_hard: 60_000,
            server_bytes_max: 2_000,
            stream_bytes_min: 400,
            merged_bytes_max: 200_000,
            stall: 1_000_000,
            ..Limits::default()
        };
        let mut engine = Engine::new(limits);
        let mut rng = Rng(seed);
        engine.add_pool(setup(&mut rng, faults));
        let (clients, servers) = (Vec::new(), BTreeMap::new());
        Self { rng, engine, now: 0, clients, servers, faults, answered: 0 }
    }

    fn ask(&mut self, index: usize) {
        let Self { rng, clients, .. } = self;
        let client = &mut clients[index];
        let (id, kind, size) = (client.id, rng.below(8), rng.below(9));
        let mut key = || {
            client.asked += 1;
            format!("{id:?}/{}/{}", client.asked, rng.below(1000)).into_bytes()
        };
        let out = &mut client.outgoing;
        let mut expected = Vec::new();
        match kind {
            0 => {
                let keys: Vec<_> = (0..=size).map(|_| key()).collect();
                out.extend_from_slice(format!("*{}\r\n", keys.len() + 1).as_bytes());
                word(out, b"MGET");
                expected.extend_from_slice(format!("*{}\r\n", keys.len()).as_bytes());
                for key in keys {
                    word(out, &key);
                    word(&mut expected, &value(&key));
                }
            }
            1 => {
                let keys: Vec<_> = (0..=size).map(|_| key()).collect();
                out.extend_from_slice(format!("*{}\r\n", keys.len() + 1).as_bytes());
                word(out, b"Unlink");
                expected.extend_from_slice(format!(":{}\r\n", keys.len()).as_bytes());
                for key in &keys {
                    word(out, key);
                }
            }
            2 => {
                let text = key();
                out.extend_from_slice(b"*2\r\n");
                word(out, b"ECHO");
                word(out, &text);
                word(&mut expected, &text);
            }
            3 => {
                out.extend_from_slice(b"*5\r\n");
                word(out, b"mset");
                for _ in 0..2 {
                    word(out, &key());
                    word(out, b"some value");
                }
                expected.extend_from_slice(b"+OK\r\n");
            }
            4 => {
                // Large ones are passed on as they come.
                out.extend_from_slice(b"*5\r\n");
                word(out, b"set");
                word(out, &key());
                word(out, &vec![b'v'; size * size * 100]);
                word(out, b"px");
                word(out, b"100000");
                expected.extend_from_slice(b"+OK\r\n");
            }
            _ => {
                let key = key();
                out.extend_from_slice(b"*2\r\n");
                word(out, b"get");
                word(out, &key);
                word(&mut expected, &value(&key));
            }
        }
        client.expected.push_back(expected);
    }

    fn settle(&mut self) {
        self.engine.settle();
        // Sockets take some, or all.
        while let Some(id) = self.engine.next_conn_to_write() {
            self.server_takes(id, 70);
        }
        while let Some(id) = self.engine.next_client_to_write() {
            self.client_takes(id, 70);
        }
        while let Some(action) = self.engine.next_action() {
            self.act(&action);
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Connect { conn, .. } => {
                let server = PretendServer {
                    connected: false,
                    incoming: Vec::new(),
                    outgoing: Vec::new(),
                    read: true,
                };
                self.servers.insert(conn.index(), (conn, server));
            }
            Action::CloseConn(id) => {
                self.servers.remove(&id.index());
                self.engine.forget_conn(id);
            }
            Action::CloseClient(id) => {
                self.engine.client_gone(id);
                if let Some(at) = self.clients.iter().position(|client| client.id == id) {
                    let client = self.clients.remove(at);
                    assert!(self.faults || client.ended);
                    assert!(self.faults || client.expected.is_empty());
                }
            }
            Action::ReadClient(id) => {
                self.clients.iter_mut().filter(|c| c.id == id).for_each(|c| c.read = true);
            }
            Action::ReadConn(id) => {
                self.servers.get_mut(&id.index()).unwrap().1.read = true;
            }
            Action::Refresh { .. } => unreachable!("there is no cluster"),
        }
    }

    fn server_takes(&mut self, id: ConnId, percent_all: usize) {
        let bytes = self.engine.conn_output(id).to_vec();
        let all = self.rng.chance(percent_all);
        let count = if all { bytes.len() } else { self.rng.below(bytes.len()) };
        if let Some((_, server)) = self.servers.get_mut(&id.index())
            && server.connected
        {
            server.incoming.extend_from_slice(&bytes[..count]);
            self.engine.conn_wrote(id, count);
        }
    }

    fn client_takes(&mut self, id: ClientId, percent_all: usize) {
        let bytes = self.engine.client_output(id).to_vec();
        let all = self.rng.chance(percent_all);
        let count = if all { bytes.len() } else { self.rng.below(bytes.len()) };
        self.engine.client_wrote(id, count);
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.received.extend_from_slice(&bytes[..count]);
            self.answered += Self::check_client(client, self.faults);
        }
    }

    /// Whole replies are the expected ones; how many there are.
    fn check_client(client: &mut PretendClient, faults: bool) -> usize {
        let mut answered = 0;
        while let Some(length) = reply::value_length(&client.received) {
            let reply: Vec<u8> = client.received.drain(..length).collect();
            let expected = client.expected.pop_front().expect("nothing was asked");
            let text = String::from_utf8_lossy(&reply);
            if reply.first() == Some(&b'-') {
                assert!(faults, "{text}");
            } else {
                assert_eq!(text, String::from_utf8_lossy(&expected));
            }
            answered += 1;
        }
        answered
    }

    /// The server answers one request.
    fn serve(server: &mut PretendServer) {
        let limits = request::RequestLimits::default();
        let mut progress = request::Progress::default();
        let frame = request::frame(&server.incoming, &mut progress, &limits).expect("a request");
        let Some(frame) = frame else { return };
        let bytes: Vec<u8> = server.incoming.drain(..frame.length).collect();
        let words: Vec<&[u8]> = request::words(&bytes).collect();
        let out = &mut server.outgoing;
        match words[0].to_ascii_lowercase().as_slice() {
            b"get" => word(out, &value(words[1])),
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
                    self.client_sends(index);
                }
            }
            50..55 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                self.client_takes(self.clients[index].id, 50);
            }
            55..88 if !self.servers.is_empty() => self.server_works(),
            88..90 if !self.servers.is_empty() => {
                let which = self.rng.below(self.servers.len());
                let id = self.servers.values().nth(which).unwrap().0;
                self.server_takes(id, 50);
            }
            90..92 if !self.clients.is_empty() => {
                // A client goes, properly or not.
                let index = self.rng.below(self.clients.len());
                if self.rng.chance(50) {
                    let client = self.clients.remove(index);
                    self.engine.client_gone(client.id);
                } else {
                    let client = &mut self.clients[index];
                    if client.outgoing.is_empty() && client.read && !client.ended {
                        client.ended = true;
                        self.engine.client_ended(client.id);
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
        self.clients.push(PretendClient {
            id: self.engine.client_opened(0),
            outgoing: Vec::new(),
            read: true,
            ended: false,
            asked: 0,
            expected: VecDeque::new(),
            received: Vec::new(),
        });
    }

    fn server_works(&mut self) {
        let which = self.rng.below(self.servers.len());
        let (id, server) = self.servers.values_mut().nth(which).unwrap();
        if !server.connected {
            server.connected = true;
            self.engine.conn_opened(*id);
            return;
        }
        for _ in 0..self.rng.below(12) {
            Self::serve(server);
        }
        let most = server.outgoing.len().min(6_000);
        let count = if self.rng.chance(50) { most } else { self.rng.below(most + 1) };
        if server.read && count > 0 {
            let bytes: Vec<u8> = server.outgoing.drain(..count).collect();
            server.read = self.engine.conn_bytes(*id, &bytes);
        }
    }

    /// A connection breaks, or says what nobody can understand or asked for.
    fn break_server(&mut self) {
        let which = self.rng.below(self.servers.len());
        let (id, server) = self.servers.values_mut().nth(which).unwrap();
        let id = *id;
        if self.rng.chance(70) {
            let loss = if server.connected { Loss::Closed } else { Loss::Refused };
            self.servers.remove(&id.index());
            self.engine.conn_gone(id, loss);
        } else if server.connected && server.read && server.outgoing.is_empty() {
            server.read = self.engine.conn_bytes(id, b"\r\nHTTP/1.1 400\r\n");
        }
    }

    fn client_sends(&mut self, index: usize) {
        let client = &mut self.clients[index];
        while client.read && !client.outgoing.is_empty() {
            let count = match self.rng.below(4) {
                0 => 1,
                1 => 1 + self.rng.below(client.outgoing.len()),
                _ => client.outgoing.len(),
            };
            let bytes: Vec<u8> = client.outgoing.drain(..count).collect();
            client.read = self.engine.client_bytes(client.id, &bytes);
            if self.rng.chance(30) {
                break;
            }
        }
    }

    /// Everything that was asked is answered, when all do what they should.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            for index in 0..self.clients.len() {
                self.client_sends(index);
            }
            for (id, server) in self.servers.values_mut() {
                if !server.connected {
                    server.connected = true;
                    self.engine.conn_opened(*id);
                }
                for _ in 0..30 {
                    Self::serve(server);
                }
                if server.read && !server.outgoing.is_empty() {
                    let bytes = std::mem::take(&mut server.outgoing);
                    server.read = self.engine.conn_bytes(*id, &bytes);
                }
            }
            for id in self.clients.iter().map(|client| client.id).collect::<Vec<_>>() {
                self.client_takes(id, 100);
            }
            for id in self.servers.values().map(|(id, _)| *id).collect::<Vec<_>>() {
                self.server_takes(id, 100);
            }
            self.settle();
            let idle =
                |client: &PretendClient| client.expected.is_empty() && client.outgoing.is_empty();
            if self.clients.iter().all(idle) {
                return;
            }
        }
        for client in &self.clients {
            let (expected, left) = (client.expected.len(), client.outgoing.len());
            eprintln!("{:?}: {expected} expected, {left} to send, {}", client.id, client.read);
        }
        panic!("some requests have no reply");
    }
}

fn story(seed: u64, faults: bool) -> usize {
    let mut world = World::new(seed, faults);
    for _ in 0..STEPS {
        world.step();
        world.settle();
        let bytes = world.engine.buffer_bytes();
        assert!(bytes < 4 << 20, "{bytes} bytes of buffers");
    }
    world.finish();
    world.answered
}

#[test]
fn every_request_gets_its_reply() {
    tell(|seed| story(seed, false));
}

#[test]
fn with_faults_every_request_gets_its_reply_or_an_error() {
    tell(|seed| story(seed, true));
}
