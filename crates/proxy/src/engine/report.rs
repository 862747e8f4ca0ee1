//! What an engine has done, and what it is at.

use std::sync::Arc;

use super::Engine;
use crate::counters::{PoolCounters, ServerCounters};

/// One pool of one engine.
#[derive(Debug, Clone)]
pub struct PoolReport {
    /// They stay current.
    pub counters: Arc<PoolCounters>,
    /// In the route's order.
    pub servers: Vec<ServerReport>,
}

/// One server of one pool of one engine.
#[derive(Debug, Clone)]
pub struct ServerReport {
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

impl Queue {
    fn add(&mut self, bytes: usize) {
        self.requests += 1;
        self.bytes += bytes as u64;
    }
}

impl Engine {
    /// All pools by number. Walks over everything that is on its way.
    pub fn report(&self) -> Vec<PoolReport> {
        let mut queues = vec![(Queue::default(), Queue::default()); self.core.servers.len()];
        for (_, conn) in self.core.conns.iter() {
            let Some((unsent, unanswered)) = queues.get_mut(usize::from(conn.server)) else {
                continue;
            };
            let mut left = conn.output.unsent_len();
            for pending in conn.pending.iter().rev() {
                if left > 0 {
                    left = left.saturating_sub(pending.length);
                    unsent.add(pending.length);
                } else {
                    unanswered.add(pending.length);
                }
            }
        }
        let pools = self.core.pools.iter().map(|pool| {
            let servers = pool.servers.iter().filter_map(|index| {
                let index = usize::from(*index);
                let counters = Arc::clone(&self.core.servers.get(index)?.counters);
                let (unsent, unanswered) = *queues.get(index)?;
                Some(ServerReport { counters, unsent, unanswered })
            });
            PoolReport { counters: Arc::clone(&pool.counters), servers: servers.collect() }
        });
        pools.collect()
    }
}
