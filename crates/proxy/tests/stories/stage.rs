//! An engine on a stage: a test says what clients ask, and what servers answer and when.

use std::collections::{BTreeMap, BTreeSet};

use proxy::{
    engine::{Action, ClientId, ConnId, Engine, Limits, Loss, PoolSetup, reply, request},
    route::Address,
};

use super::pretend::{self, word};

/// The engine with one pool, and all bytes that are on their way.
pub struct Stage {
    pub engine: Engine,
    pub now: u64,
    pub conns: BTreeMap<usize, Conn>,
    received: BTreeMap<usize, Vec<u8>>,
    /// Clients that are not to be read.
    held: BTreeSet<usize>,
    /// Clients that take nothing.
    pub deaf: BTreeSet<usize>,
    /// Clients that were closed because of that.
    pub unread: Vec<ClientId>,
    /// Clients that were closed because all held too much.
    pub evicted: Vec<ClientId>,
    /// Why servers are not asked for what the near cache holds.
    pub not_near: Vec<String>,
    /// Connections that are not to be read.
    pub stalled: BTreeSet<usize>,
}

/// A connection to a server.
pub struct Conn {
    pub id: ConnId,
    pub address: Address,
    pub connected: bool,
    incoming: Vec<u8>,
}

/// A pool in front of a cluster that nothing is known of yet.
pub fn pool() -> PoolSetup {
    PoolSetup {
        timeout: Some(1_000_000_000),
        backoff_min: 1_000,
        backoff_max: 10_000,
        ..pretend::cluster()
    }
}

impl Stage {
    pub fn new(limits: Limits, pool: PoolSetup) -> Self {
        let mut engine = Engine::new(limits);
        engine.add_pool(pool);
        Self {
            engine,
            now: 0,
            conns: BTreeMap::new(),
            received: BTreeMap::new(),
            held: BTreeSet::new(),
            deaf: BTreeSet::new(),
            unread: Vec::new(),
            evicted: Vec::new(),
            not_near: Vec::new(),
            stalled: BTreeSet::new(),
        }
    }

    /// Time goes by.
    pub fn pass(&mut self, micros: u64) {
        self.now += micros;
        self.engine.set_now(self.now);
    }

    /// A client sends a request.
    pub fn ask(&mut self, client: ClientId, words: &[&str]) {
        self.ask_all(client, &[words]);
    }

    /// A client sends requests at once.
    pub fn ask_all(&mut self, client: ClientId, requests: &[&[&str]]) {
        let mut bytes = Vec::new();
        for words in requests {
            bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
            words.iter().for_each(|each| word(&mut bytes, each.as_bytes()));
        }
        assert!(self.is_read(client));
        if !self.engine.client_bytes(client, &bytes) {
            self.held.insert(client.index());
        }
        self.settle();
    }

    /// May a client send something?
    pub fn is_read(&self, client: ClientId) -> bool {
        !self.held.contains(&client.index())
    }

    /// Does what time demands.
    pub fn tick(&mut self) {
        if self.engine.next_tick().is_some_and(|due| due <= self.now) {
            self.engine.tick();
        }
        self.settle();
    }

    /// A server says something.
    pub fn tell(&mut self, conn: usize, bytes: &[u8]) {
        assert!(!self.stalled.contains(&conn));
        if !self.engine.conn_bytes(self.conns[&conn].id, bytes) {
            self.stalled.insert(conn);
        }
        self.settle();
    }

    /// A connection is made.
    pub fn open(&mut self, conn: usize) {
        let conn = self.conns.get_mut(&conn).expect("a connection");
        if !std::mem::replace(&mut conn.connected, true) {
            self.engine.conn_opened(conn.id);
        }
        self.settle();
    }

    /// A connection breaks.
    pub fn lose(&mut self, conn: usize) {
        let conn = self.conns.remove(&conn).expect("a connection");
        self.engine.conn_gone(conn.id, Loss::Closed);
        self.settle();
    }

    /// The oldest request that a server got and didn't answer, by its words.
    pub fn next(&mut self, conn: usize) -> Option<Vec<String>> {
        let incoming = &mut self.conns.get_mut(&conn)?.incoming;
        let mut progress = request::Progress::default();
        let frame = request::frame(incoming, &mut progress, &request::RequestLimits::default());
        let bytes: Vec<u8> = incoming.drain(..frame.expect("a request")?.length).collect();
        Some(request::words(&bytes).map(|word| String::from_utf8_lossy(word).into()).collect())
    }

    /// The oldest reply that a client got and didn't look at.
    pub fn reply(&mut self, client: ClientId) -> Option<String> {
        let received = self.received.get_mut(&client.index())?;
        let length = reply::value_length(received)?;
        Some(String::from_utf8(received.drain(..length).collect()).expect("text"))
    }

    /// Does what the engine wants.
    pub fn settle(&mut self) {
        while self.engine.has_work() {
            self.engine.settle();
            while let Some(id) = self.engine.next_conn_to_write() {
                let bytes = self.engine.conn_output(id).to_vec();
                self.engine.conn_wrote(id, bytes.len());
                if let Some(conn) = self.conns.get_mut(&id.index()) {
                    conn.incoming.extend(bytes);
                }
            }
            while let Some(id) = self.engine.next_client_to_write() {
                let mut bytes = self.engine.client_output(id).to_vec();
                if self.deaf.contains(&id.index()) {
                    bytes.clear();
                }
                self.received.entry(id.index()).or_default().extend(&bytes);
                self.engine.client_wrote(id, bytes.len());
            }
            while let Some(action) = self.engine.next_action() {
                match action {
                    Action::Connect { conn: id, address } => {
                        let (address, incoming) = (Address::clone(&address), vec![]);
                        let conn = Conn { id, address, connected: false, incoming };
                        self.conns.insert(id.index(), conn);
                    }
                    Action::CloseConn(id) => {
                        self.conns.remove(&id.index());
                        self.stalled.remove(&id.index());
                        self.engine.forget_conn(id);
                    }
                    Action::CloseClient(id) => {
                        self.deaf.remove(&id.index());
                        self.engine.client_gone(id);
                    }
                    Action::ReadClient(id) => {
                        self.held.remove(&id.index());
                    }
                    Action::ReadConn(id) => {
                        self.stalled.remove(&id.index());
                    }
                    Action::Unread { client, .. } => self.unread.push(client),
                    Action::Evicted { client, .. } => self.evicted.push(client),
                    Action::NotNear { error, .. } => self.not_near.push(error),
                    Action::Refresh { .. } => {}
                }
            }
        }
    }
}
