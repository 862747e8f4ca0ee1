//! Loops from the outside: starting one, and telling it something.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use mio::{Poll, Waker};

use super::{Change, Connector, Listener, Loop, READ_BYTES, WAKER, resolver::Resolver};
use crate::{
    engine::{ConnId, Engine, Figures, Limits, PoolSetup, User},
    route::{Address, Readers, Topology},
};

/// What other threads tell a loop.
#[derive(Debug)]
pub(super) enum Message {
    Topology { pool: usize, topology: Topology },
    Readers { pool: usize, readers: Readers },
    Users { pool: usize, users: Vec<User> },
    Resolved { conn: ConnId, name: Arc<Address>, address: Option<SocketAddr> },
    Change(Box<Change>),
    Preconnect { pool: usize },
    Figures(Sender<Figures>),
    Drain(Duration),
    HandOver { patience: Duration, span: Duration },
    Stop,
}

/// What a loop tells the one who started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A pool's topology seems to be outdated.
    Refresh { pool: usize },
}

/// A running loop.
pub struct Running {
    messages: Sender<Message>,
    waker: Arc<Waker>,
    started: SystemTime,
    thread: JoinHandle<io::Result<()>>,
}

impl Running {
    /// Gives the loop a cluster's current state.
    pub fn set_topology(&self, pool: usize, topology: Topology) {
        self.send(Message::Topology { pool, topology });
    }

    /// Says who serves reads in place of a cluster's primaries.
    pub fn set_readers(&self, pool: usize, readers: Readers) {
        self.send(Message::Readers { pool, readers });
    }

    /// See [`Engine::set_users`].
    pub fn set_users(&self, pool: usize, users: Vec<User>) {
        self.send(Message::Users { pool, users });
    }

    /// Has it serve other pools, or serve them at other addresses.
    pub fn change(&self, change: Change) {
        self.send(Message::Change(Box::new(change)));
    }

    /// Has it connect to a pool's servers before they are needed.
    pub fn preconnect(&self, pool: usize) {
        self.send(Message::Preconnect { pool });
    }

    /// When its engine's time began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// Asks for its figures; they come at the end of the turn that is at hand, if it still runs.
    pub fn figures(&self, answers: Sender<Figures>) {
        self.send(Message::Figures(answers));
    }

    /// Asks it to end well: it takes no new clients, answers what those that are there asked, and
    /// ends, after `span` at the latest.
    pub fn drain(&self, span: Duration) {
        self.send(Message::Drain(span));
    }

    /// Likewise, where somebody else serves new clients from now on: those that are there may go
    /// on for as long as `patience` before.
    pub fn hand_over(&self, patience: Duration, span: Duration) {
        self.send(Message::HandOver { patience, span });
    }

    /// Asks it to end.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }

    fn send(&self, message: Message) {
        // A loop that has ended doesn't listen, and need not.
        let _ = self.messages.send(message);
        let _ = self.waker.wake();
    }

    /// Waits until it has ended.
    pub fn join(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the proxy's thread panicked")))
    }
}

/// Starts a loop in a thread of its own. Each listener belongs to the pool of its number; with
/// `tls`, servers are spoken with over TLS, unless at a path.
pub fn start(
    name: &str,
    limits: Limits,
    tls: Option<Arc<Connector>>,
    pools: Vec<PoolSetup>,
    listeners: Vec<(usize, Listener)>,
    notices: Sender<Notice>,
) -> io::Result<Running> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let (sender, messages) = channel();
    let mut engine = Engine::new(limits);
    for pool in pools {
        engine.add_pool(pool);
    }
    let resolver = Resolver::new(sender.clone(), Arc::clone(&waker));
    let mut driver = Loop {
        poll,
        engine,
        started: Instant::now(),
        listeners: Vec::new(),
        stuck: Vec::new(),
        unstick: 0,
        arrivals: Vec::new(),
        clients: Vec::new(),
        conns: Vec::new(),
        buffer: vec![0; READ_BYTES].into_boxed_slice(),
        again: Vec::new(),
        messages,
        notices,
        resolver,
        tls,
        drain: None,
        lingering: Vec::new(),
        stopping: false,
    };
    for (pool, listener) in listeners {
        driver.listen(pool, listener)?;
    }
    let started = SystemTime::now();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || driver.run())?;
    Ok(Running { messages: sender, waker, started, thread })
}
