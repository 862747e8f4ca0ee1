//! What the stories share: chance, the ends of connections, and a pool to begin with.

use std::{panic::RefUnwindSafe, sync::Arc};

use protocol::{SlotSet, resp::encode_command};
use proxy::{
    engine::{Action, ClientId, ConnId, Engine, PoolSetup, Profile, Users, reply, request},
    route::{Address, Primary, Route, Slots, Topology},
};

/// Where the environment doesn't say how many.
const SEEDS: u64 = 256;
pub const STEPS: usize = 3_000;

/// SplitMix64: the same seed, the same story.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// 0 to `bound` − 1; 0 where `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// All of so many, or some.
    fn some_of(&mut self, count: usize, percent_all: usize) -> usize {
        if self.chance(percent_all) { count } else { self.below(count) }
    }
}

pub fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The client's end of a connection.
pub struct ClientEnd {
    pub id: ClientId,
    /// To be sent.
    pub outgoing: Vec<u8>,
    received: Vec<u8>,
    /// The engine reads from it.
    pub read: bool,
}

impl ClientEnd {
    pub fn open(engine: &mut Engine) -> Self {
        let id = engine.client_opened(0);
        Self { id, outgoing: Vec::new(), received: Vec::new(), read: true }
    }

    pub fn ask<W: AsRef<[u8]>>(&mut self, words: &[W]) {
        encode_command(words, &mut self.outgoing);
    }

    /// Sends some of what there is to be sent, or all, in pieces.
    pub fn send(&mut self, engine: &mut Engine, rng: &mut Rng) {
        while self.read && !self.outgoing.is_empty() {
            let count = match rng.below(4) {
                0 => 1,
                1 => 1 + rng.below(self.outgoing.len()),
                _ => self.outgoing.len(),
            };
            let bytes: Vec<u8> = self.outgoing.drain(..count).collect();
            self.read = engine.client_bytes(self.id, &bytes);
            if rng.chance(30) {
                break;
            }
        }
    }

    /// Takes what the engine has for it, or some of that.
    pub fn take(&mut self, engine: &mut Engine, rng: &mut Rng, percent_all: usize) {
        let bytes = engine.client_output(self.id);
        let count = rng.some_of(bytes.len(), percent_all);
        self.received.extend_from_slice(&bytes[..count]);
        engine.client_wrote(self.id, count);
    }

    /// The next of the replies that are whole.
    pub fn reply(&mut self) -> Option<String> {
        let length = reply::value_length(&self.received)?;
        let reply: Vec<u8> = self.received.drain(..length).collect();
        Some(String::from_utf8(reply).unwrap())
    }
}

/// The server's end of a connection.
pub struct ServerEnd {
    pub id: ConnId,
    pub connected: bool,
    incoming: Vec<u8>,
    /// To be sent.
    pub outgoing: Vec<u8>,
    /// The engine reads from it.
    pub read: bool,
}

impl ServerEnd {
    pub fn new(id: ConnId) -> Self {
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Self { id, connected: false, incoming, outgoing, read: true }
    }

    /// Accepts the connection; false where it was before.
    pub fn accept(&mut self, engine: &mut Engine) -> bool {
        let is_new = !std::mem::replace(&mut self.connected, true);
        if is_new {
            engine.conn_opened(self.id);
        }
        is_new
    }

    /// Takes what the engine has for it, or some of that.
    pub fn take(&mut self, engine: &mut Engine, rng: &mut Rng, percent_all: usize) {
        let bytes = engine.conn_output(self.id);
        let count = rng.some_of(bytes.len(), percent_all);
        if self.connected {
            self.incoming.extend_from_slice(&bytes[..count]);
            engine.conn_wrote(self.id, count);
        }
    }

    /// Is nothing on its way, to or fro?
    pub fn is_quiet(&self) -> bool {
        self.incoming.is_empty() && self.outgoing.is_empty()
    }

    /// The words of the next request that is whole.
    pub fn request(&mut self) -> Option<Vec<Vec<u8>>> {
        let limits = request::RequestLimits::default();
        let mut progress = request::Progress::default();
        let frame = request::frame(&self.incoming, &mut progress, &limits).expect("a request")?;
        let bytes: Vec<u8> = self.incoming.drain(..frame.length).collect();
        Some(request::words(&bytes).map(<[u8]>::to_vec).collect())
    }

    /// Sends some of what there is to be sent, or all; at most so many bytes. How many it sent.
    pub fn send(&mut self, engine: &mut Engine, rng: &mut Rng, bytes_max: usize) -> usize {
        let most = self.outgoing.len().min(bytes_max);
        let count = if rng.chance(50) { most } else { rng.below(most + 1) };
        if !self.read || count == 0 {
            return 0;
        }
        let bytes: Vec<u8> = self.outgoing.drain(..count).collect();
        self.read = engine.conn_bytes(self.id, &bytes);
        count
    }
}

/// What an engine stands in.
pub trait World {
    fn engine(&mut self) -> &mut Engine;

    /// A server takes what the engine has for it, or some of that.
    fn server_takes(&mut self, id: ConnId, percent_all: usize);

    /// A client takes what the engine has for it, or some of that.
    fn client_takes(&mut self, id: ClientId, percent_all: usize);

    fn act(&mut self, action: Action);

    /// Sockets take some of what the engine has for them, or all; what it wants is done.
    fn settle(&mut self, percent_all: usize) {
        self.engine().settle();
        while let Some(id) = self.engine().next_conn_to_write() {
            self.server_takes(id, percent_all);
        }
        while let Some(id) = self.engine().next_client_to_write() {
            self.client_takes(id, percent_all);
        }
        while let Some(action) = self.engine().next_action() {
            self.act(action);
        }
    }
}

/// Where the pretend server with this number listens.
pub fn address(number: u16) -> Arc<Address> {
    Arc::new(Address::Tcp(([127, 0, 0, 1], 7_000 + number).into()))
}

/// The pretend server that listens there.
pub fn number(address: &Address) -> u16 {
    let Address::Tcp(address) = address else { panic!("{address}") };
    address.port() - 7_000
}

/// A pool in front of a cluster of which nothing is known yet.
pub fn cluster() -> PoolSetup {
    PoolSetup {
        route: Route::Slots(Slots::default()),
        servers: Vec::new(),
        profile: Profile::default(),
        client_password: None,
        users: Users::default(),
        timeout: None,
        server_connections: 1,
        backoff_min: 1,
        backoff_max: 1,
    }
}

/// The cluster in which these have these slots, first and last of each range.
pub fn topology(
    numbers: impl IntoIterator<Item = u16>,
    slots: impl Fn(u16) -> Vec<(u16, u16)>,
) -> Topology {
    let primaries = numbers.into_iter().map(|number| Primary {
        address: address(number),
        slots: SlotSet::from_ranges(slots(number)),
    });
    Topology { primaries: primaries.collect() }
}

/// Appends a bulk string.
pub fn word(out: &mut Vec<u8>, word: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// Tells the story of each seed, which counts what happened in it; of the seed in SEED alone, where
/// it is set. What happens less often than `least` in all of them says little.
pub fn tell<const N: usize>(least: [usize; N], story: impl Fn(u64) -> [usize; N] + RefUnwindSafe) {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let (only, seeds) = (number("SEED"), number("SEEDS").unwrap_or(SEEDS));
    let mut total = [0; N];
    for seed in only.map_or(0..seeds, |seed| seed..seed + 1) {
        match std::panic::catch_unwind(|| story(seed)) {
            Ok(counts) => total.iter_mut().zip(counts).for_each(|(total, count)| *total += count),
            Err(panic) => {
                eprintln!("again with SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let enough = total.iter().zip(least).all(|(total, least)| *total >= least);
    assert!(only.is_some() || enough, "{total:?} says little");
}
