//! Sessions between pretend clients and pretend servers of a cluster whose slots move, in random
//! order, with random cuts and faults. Whatever happens: each client gets its own replies in order,
//! and messages only of channels it is subscribed to; a transaction is executed once or never, and
//! as a whole; no connection that a session used carries anything else than sessions, and none is
//! handed on in the middle of one.

mod server;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::SLOT_COUNT;
use proxy::engine::{Action, ClientId, ConnId, Engine, Limits, Loss, PoolSetup};

use self::server::Server;
use super::pretend::{self, ClientEnd, Rng, STEPS, ServerEnd, World as _, number, tell, topology};

const SERVERS: u16 = 3;

/// What the next reply has to be.
enum Expected {
    OneOf(Vec<String>),
    Subscribed(String),
    Unsubscribed(String),
}

struct Client {
    end: ClientEnd,
    /// In its keys and channels, so that they are nobody else's.
    tag: String,
    asked: usize,
    expected: VecDeque<Expected>,
    /// As it asked, and as it was answered.
    resp3: (bool, bool),
    channels: (BTreeSet<String>, BTreeSet<String>),
}

struct World {
    rng: Rng,
    engine: Engine,
    now: u64,
    clients: Vec<Client>,
    servers: BTreeMap<usize, Server>,
    /// Which server has each slot.
    owners: Vec<u16>,
    stale: bool,
    faults: bool,
    opened: usize,
    /// Transactions that were executed.
    executed: BTreeSet<String>,
    answered: usize,
    messages: usize,
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

fn null(resp3: bool) -> &'static str {
    if resp3 { "_\r\n" } else { "$-1\r\n" }
}

/// What GET answers: known to everyone.
fn value(key: &str, resp3: bool) -> String {
    if key.ends_with('7') { null(resp3).to_owned() } else { bulk(&format!("of {key}")) }
}

impl World {
    fn new(seed: u64, faults: bool) -> Self {
        let mut engine = Engine::new(Limits { outstanding_max: 20, ..Limits::default() });
        engine.add_pool(PoolSetup { timeout: faults.then_some(2_000_000), ..pretend::cluster() });
        let owner = |slot| slot / (SLOT_COUNT / SERVERS + 1);
        let owners = (0..SLOT_COUNT).map(owner).collect();
        let mut world = Self {
            rng: Rng(seed),
            engine,
            now: 0,
            clients: Vec::new(),
            servers: BTreeMap::new(),
            owners,
            stale: false,
            faults,
            opened: 0,
            executed: BTreeSet::new(),
            answered: 0,
            messages: 0,
        };
        world.refresh();
        world
    }

    fn refresh(&mut self) {
        self.stale = false;
        let topology = topology(0..SERVERS, |number| {
            let own = (0..).zip(&self.owners).filter(|(_, owner)| **owner == number);
            own.map(|(slot, _)| (slot, slot)).collect()
        });
        self.engine.set_topology(0, &topology);
    }

    /// Adds a request, or some that belong together, to what a client sends.
    fn ask(&mut self, index: usize) {
        let rng = &mut self.rng;
        let client = &mut self.clients[index];
        client.asked += 1;
        let (number, resp3) = (client.asked, client.resp3.0);
        let tag = client.tag.clone();
        let key = |part: usize| format!("{{{tag}}}:{number}:{part}");
        let mut ask = |words: &[&str], expected: Expected| {
            client.end.ask(words);
            client.expected.push_back(expected);
        };
        let is = |text: &str| Expected::OneOf(vec![text.to_owned()]);
        let subscribed = !client.channels.0.is_empty();
        match rng.below(if subscribed && !resp3 { 4 } else { 12 }) {
            0 | 1 if subscribed || rng.chance(30) => {
                let shard = rng.chance(50);
                let name = format!("{}{{{tag}}}{}", if shard { "s" } else { "c" }, rng.below(3));
                let verb = if shard { "SSUBSCRIBE" } else { "SUBSCRIBE" };
                client.channels.0.insert(name.clone());
                ask(&[verb, &name], Expected::Subscribed(name.clone()));
            }
            2 if subscribed => {
                let name = client.channels.0.pop_first().unwrap();
                let verb = if name.starts_with('s') { "SUNSUBSCRIBE" } else { "UNSUBSCRIBE" };
                ask(&[verb, &name], Expected::Unsubscribed(name.clone()));
            }
            3 => {
                let text = key(0);
                let alone = format!("*2\r\n$4\r\npong\r\n{}", bulk(&text));
                ask(&["PING", &text], Expected::OneOf(vec![bulk(&text), alone]));
            }
            4 | 5 => {
                let watches = rng.chance(40);
                if watches {
                    ask(&["WATCH", &key(0)], is("+OK\r\n"));
                }
                if rng.chance(20) {
                    ask(&["GET", &key(1)], is(&value(&key(1), resp3)));
                }
                ask(&["MULTI"], is("+OK\r\n"));
                let count = rng.below(4);
                let mut answer = format!("*{count}\r\n");
                for part in 0..count {
                    ask(&["GET", &key(part)], is("+QUEUED\r\n"));
                    answer.push_str(&value(&key(part), resp3));
                }
                if rng.chance(80) {
                    let none = if resp3 { "_\r\n" } else { "*-1\r\n" };
                    let answers = [answer.as_str(), none].map(str::to_owned);
                    let some = if watches { 2 } else { 1 };
                    ask(&["EXEC"], Expected::OneOf(answers[..some].to_vec()));
                } else {
                    ask(&["DISCARD"], is("+OK\r\n"));
                }
            }
            6 => {
                ask(&["WATCH", &key(0)], is("+OK\r\n"));
                ask(&["UNWATCH"], is("+OK\r\n"));
            }
            7 => {
                let answer = format!("*2\r\n{}{}", bulk(&key(0)), bulk("popped"));
                ask(&["BLPOP", &key(0), "0"], is(&answer));
            }
            8 if !subscribed => {
                let wanted = rng.chance(50);
                client.resp3.0 = wanted;
                let begin = if wanted { "%7\r\n" } else { "*14\r\n" };
                ask(&["HELLO", if wanted { "3" } else { "2" }], is(begin));
            }
            9 if !subscribed && rng.chance(30) => {
                client.resp3.0 = false;
                ask(&["MULTI"], is("+OK\r\n"));
                ask(&["GET", &key(0)], is("+QUEUED\r\n"));
                ask(&["RESET"], is("+RESET\r\n"));
            }
            _ if subscribed && !resp3 => {}
            _ => {
                let part = rng.below(10);
                ask(&["GET", &key(part)], is(&value(&key(part), resp3)));
            }
        }
    }

    /// A message has to be of a channel that the client is subscribed to.
    fn is_message(client: &Client, reply: &str) -> bool {
        let sign = if client.resp3.1 { '>' } else { '*' };
        for verb in ["message", "smessage"] {
            let begin = format!("{sign}3\r\n{}", bulk(verb));
            if let Some(rest) = reply.strip_prefix(&begin) {
                let channel = rest.split("\r\n").nth(1).unwrap();
                assert!(client.channels.1.contains(channel), "{reply:?}");
                assert!(channel.contains(&client.tag), "{reply:?}");
                return true;
            }
        }
        false
    }

    fn check_reply(client: &mut Client, reply: &str, faults: bool) {
        let expected =
            client.expected.pop_front().unwrap_or_else(|| panic!("nobody asked: {reply}"));
        let notice = |verb: &str, name: &str, channels: &BTreeSet<String>| {
            let shard = name.starts_with('s');
            let count = channels.iter().filter(|each| each.starts_with('s') == shard).count();
            let sign = if client.resp3.1 { '>' } else { '*' };
            let verb = if shard { format!("s{verb}") } else { verb.to_owned() };
            format!("{sign}3\r\n{}{}:{count}\r\n", bulk(&verb), bulk(name))
        };
        if reply.starts_with('-') {
            assert!(faults, "{reply}");
            if let Expected::Unsubscribed(_) = expected {
                panic!("it is answered by the proxy: {reply}");
            }
            return;
        }
        match expected {
            Expected::OneOf(texts) => {
                let begins = ["%7\r\n", "*14\r\n"];
                let greeting = begins.iter().find(|begin| texts[0] == **begin);
                if let Some(begin) = greeting {
                    assert!(reply.starts_with(begin), "{reply:?}");
                    client.resp3.1 = *begin == "%7\r\n";
                } else {
                    assert!(texts.iter().any(|text| text == reply), "{reply:?}, not {texts:?}");
                }
                if reply == "+RESET\r\n" {
                    client.resp3.1 = false;
                }
            }
            Expected::Subscribed(name) => {
                let mut channels = client.channels.1.clone();
                channels.insert(name.clone());
                assert_eq!(reply, notice("subscribe", &name, &channels));
                client.channels.1 = channels;
            }
            Expected::Unsubscribed(name) => {
                let mut channels = client.channels.1.clone();
                channels.remove(&name);
                assert_eq!(reply, notice("unsubscribe", &name, &channels));
                client.channels.1 = channels;
            }
        }
    }

    fn step(&mut self) {
        self.now += 1 + self.rng.below(2_000) as u64;
        self.engine.set_now(self.now);
        if self.stale && self.rng.chance(10) {
            self.refresh();
        }
        match self.rng.below(if self.faults { 103 } else { 100 }) {
            0..4 if self.clients.len() < 6 => self.open_client(),
            4..45 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                for _ in 0..self.rng.below(4) {
                    self.ask(index);
                }
                self.clients[index].end.send(&mut self.engine, &mut self.rng);
            }
            45..52 if !self.clients.is_empty() => {
                let index = self.rng.below(self.clients.len());
                self.client_takes(self.clients[index].end.id, 50);
            }
            52..85 if !self.servers.is_empty() => {
                let which = self.rng.below(self.servers.len());
                let at = *self.servers.keys().nth(which).unwrap();
                self.server_works(at);
            }
            85..87 if !self.clients.is_empty() && self.rng.chance(20) => {
                let index = self.rng.below(self.clients.len());
                let client = self.clients.remove(index);
                self.engine.client_gone(client.end.id);
            }
            87..89 => self.move_slot(),
            89..92 => self.publish(),
            92..95 => self.push(50),
            95..98 => self.engine.tick(),
            100.. if !self.servers.is_empty() => {
                let which = self.rng.below(self.servers.len());
                let at = *self.servers.keys().nth(which).unwrap();
                let end = self.servers.remove(&at).unwrap().end;
                let loss = if end.connected { Loss::Closed } else { Loss::Refused };
                self.engine.conn_gone(end.id, loss);
            }
            _ => {}
        }
    }

    fn open_client(&mut self) {
        self.opened += 1;
        self.clients.push(Client {
            end: ClientEnd::open(&mut self.engine),
            tag: format!("client{}", self.opened),
            asked: 0,
            expected: VecDeque::new(),
            resp3: (false, false),
            channels: (BTreeSet::new(), BTreeSet::new()),
        });
    }

    fn server_works(&mut self, at: usize) {
        if self.servers.get_mut(&at).unwrap().end.accept(&mut self.engine) {
            return;
        }
        for _ in 0..self.rng.below(6) {
            self.serve(at);
        }
        let server = self.servers.get_mut(&at).unwrap();
        server.end.send(&mut self.engine, &mut self.rng, usize::MAX);
    }

    /// Everything that was asked is answered, when all do what they should.
    fn finish(&mut self) {
        for _ in 0..5_000 {
            self.now += 1_000;
            self.engine.set_now(self.now);
            self.engine.tick();
            if self.stale {
                self.refresh();
            }
            for client in &mut self.clients {
                client.end.send(&mut self.engine, &mut self.rng);
            }
            self.push(100);
            for at in self.servers.keys().copied().collect::<Vec<_>>() {
                self.server_works(at);
            }
            for id in self.servers.values().map(|server| server.end.id).collect::<Vec<_>>() {
                self.server_takes(id, 100);
            }
            for id in self.clients.iter().map(|client| client.end.id).collect::<Vec<_>>() {
                self.client_takes(id, 100);
            }
            self.settle(70);
            let idle =
                |client: &Client| client.expected.is_empty() && client.end.outgoing.is_empty();
            if self.clients.iter().all(idle) {
                return;
            }
        }
        for client in &self.clients {
            let (expected, left) = (client.expected.len(), client.end.outgoing.len());
            eprintln!("{}: {expected} expected, {left} to send, {}", client.tag, client.end.read);
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
            server.end.take(&mut self.engine, &mut self.rng, percent_all);
        }
    }

    fn client_takes(&mut self, id: ClientId, percent_all: usize) {
        let client = self.clients.iter_mut().find(|client| client.end.id == id);
        let Some(client) = client else { return };
        client.end.take(&mut self.engine, &mut self.rng, percent_all);
        while let Some(reply) = client.end.reply() {
            if Self::is_message(client, &reply) {
                self.messages += 1;
            } else {
                Self::check_reply(client, &reply, self.faults);
                self.answered += 1;
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Connect { conn, address: to } => {
                let end = ServerEnd::new(conn);
                self.servers.insert(conn.index(), Server::new(end, number(&to)));
            }
            Action::CloseConn(id) => {
                self.servers.remove(&id.index());
                self.engine.forget_conn(id);
            }
            Action::CloseClient(id) => {
                self.engine.client_gone(id);
                self.clients.retain(|client| client.end.id != id);
                assert!(self.faults, "a client is closed");
            }
            Action::ReadClient(id) => {
                self.clients.iter_mut().filter(|c| c.end.id == id).for_each(|c| c.end.read = true);
            }
            Action::ReadConn(id) => {
                self.servers.get_mut(&id.index()).unwrap().end.read = true;
            }
            Action::Refresh { .. } => self.stale = true,
            Action::Unread { .. } | Action::Evicted { .. } | Action::NotNear { .. } => {}
        }
    }
}

fn story(seed: u64, faults: bool) -> [usize; 3] {
    let mut world = World::new(seed, faults);
    for _ in 0..STEPS {
        world.step();
        world.settle(70);
        let bytes = world.engine.buffer_bytes();
        assert!(bytes < 4 << 20, "{bytes} bytes of buffers");
    }
    world.finish();
    [world.answered, world.messages, world.executed.len()]
}

/// Replies, messages, transactions.
const LEAST: [usize; 3] = [20_000, 1_000, 1_000];

#[test]
fn sessions_keep_apart_while_slots_move() {
    tell(LEAST, |seed| story(seed, false));
}

#[test]
fn with_faults_a_transaction_is_executed_once_or_never() {
    tell(LEAST, |seed| story(seed, true));
}
