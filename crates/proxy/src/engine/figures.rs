//! What an engine has done, and what it holds now.

use std::sync::Arc;

use super::{Engine, hot_keys::HotFigures, server::Conn};
use crate::{
    counters::{PoolCounters, ServerCounters},
    route::Address,
};

/// One engine at one moment.
#[derive(Debug, Clone)]
pub struct Figures {
    /// See [`Engine::buffer_bytes`].
    pub buffer_bytes: usize,
    /// What the buffers of all engines that serve the same may hold.
    pub memory_max: usize,
    /// By number.
    pub pools: Vec<PoolFigures>,
    /// Of the sample, if there is one.
    pub hot: Option<HotFigures>,
}

/// One pool of one engine.
#[derive(Debug, Clone)]
pub struct PoolFigures {
    /// They stay current.
    pub counters: Arc<PoolCounters>,
    /// Those of its route, in the route's order, then those that it had before.
    pub servers: Vec<ServerFigures>,
}

/// One server of one pool of one engine.
#[derive(Debug, Clone)]
pub struct ServerFigures {
    pub address: Arc<Address>,
    /// They stay current.
    pub counters: Arc<ServerCounters>,
    /// Requests that are still to be written to it.
    pub unsent: Queue,
    /// Requests that it has and did not answer.
    pub unanswered: Queue,
}

/// So many requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    pub requests: u64,
    pub bytes: u64,
}

impl Engine {
    /// Walks over all clients and connections, and over all that is on its way.
    pub fn figures(&self) -> Figures {
        let mut queues = vec![(Queue::default(), Queue::default()); self.core.servers.len()];
        for (_, conn) in self.core.conns.iter() {
            if let Some((unsent, unanswered)) = queues.get_mut(usize::from(conn.server)) {
                add(conn, unsent, unanswered);
            }
        }
        let figures = |index: usize| {
            let (server, (unsent, unanswered)) =
                (self.core.servers.get(index)?, *queues.get(index)?);
            let (address, counters) = (Arc::clone(&server.address), Arc::clone(&server.counters));
            Some(ServerFigures { address, counters, unsent, unanswered })
        };
        let pools = self.core.pools.iter().enumerate().map(|(number, pool)| {
            let routed = pool.servers.iter().map(|index| usize::from(*index));
            let former = self.core.servers.iter().enumerate().filter(|(index, server)| {
                usize::from(server.pool) == number
                    && !pool.servers.iter().any(|each| usize::from(*each) == *index)
            });
            let servers = routed.chain(former.map(|(index, _)| index)).filter_map(figures);
            PoolFigures { counters: Arc::clone(&pool.counters), servers: servers.collect() }
        });
        let hot = self.core.sample.as_ref().map(|sample| sample.figures(self.core.now));
        Figures {
            buffer_bytes: self.buffer_bytes(),
            memory_max: self.core.limits.memory.bytes_max(),
            pools: pools.collect(),
            hot,
        }
    }
}

/// Adds what a connection carries.
fn add(conn: &Conn, unsent: &mut Queue, unanswered: &mut Queue) {
    let mut left = conn.output.unsent_len();
    unsent.bytes += left as u64;
    for pending in conn.pending.iter().rev() {
        if left > 0 {
            left = left.saturating_sub(pending.length);
            unsent.requests += 1;
        } else {
            unanswered.requests += 1;
            unanswered.bytes += pending.length as u64;
        }
    }
}
