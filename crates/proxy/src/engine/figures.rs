//! What an engine has done, and what it holds now.

use std::sync::Arc;

use super::Engine;
use crate::{
    counters::{PoolCounters, ServerCounters},
    route::Address,
};

/// One engine at one moment.
#[derive(Debug, Clone)]
pub struct Figures {
    /// See [`Engine::buffer_bytes`].
    pub buffer_bytes: usize,
    /// By number.
    pub pools: Vec<PoolFigures>,
}

/// One pool of one engine.
#[derive(Debug, Clone)]
pub struct PoolFigures {
    /// They stay current.
    pub counters: Arc<PoolCounters>,
    /// Those that it had before too.
    pub servers: Vec<ServerFigures>,
}

/// One server of one pool of one engine.
#[derive(Debug, Clone)]
pub struct ServerFigures {
    pub address: Arc<Address>,
    /// They stay current.
    pub counters: Arc<ServerCounters>,
    /// Requests without a reply.
    pub unanswered: usize,
    /// Bytes of requests that are still to be written to it.
    pub unsent_bytes: usize,
}

impl Engine {
    /// Walks over all clients and connections.
    pub fn figures(&self) -> Figures {
        let mut queues = vec![(0, 0); self.core.servers.len()];
        for (_, conn) in self.core.conns.iter() {
            if let Some((unanswered, unsent_bytes)) = queues.get_mut(usize::from(conn.server)) {
                *unanswered += conn.pending.len();
                *unsent_bytes += conn.output.unsent_len();
            }
        }
        let servers = |pool: usize| {
            let all = self.core.servers.iter().zip(&queues);
            let own = all.filter(move |(server, _)| usize::from(server.pool) == pool);
            own.map(|(server, (unanswered, unsent_bytes))| ServerFigures {
                address: Arc::clone(&server.address),
                counters: Arc::clone(&server.counters),
                unanswered: *unanswered,
                unsent_bytes: *unsent_bytes,
            })
        };
        let pools = self.core.pools.iter().enumerate().map(|(number, pool)| PoolFigures {
            counters: Arc::clone(&pool.counters),
            servers: servers(number).collect(),
        });
        Figures { buffer_bytes: self.buffer_bytes(), pools: pools.collect() }
    }
}
