//! Figures of all engines that serve the same, for a client who asks one of them.
//!
//! An engine notes its counters here when a pool or a server is added, and looks at the others' when
//! INFO is asked: the lock is nobody's who serves requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    counters::{Counter, PoolCounters, ServerCounters},
    route::Address,
};

/// See the module.
#[derive(Debug, Default)]
pub struct Board(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    /// Each with its pool's number.
    pools: Vec<(usize, Arc<PoolCounters>)>,
    servers: Vec<(usize, Arc<Address>, Arc<ServerCounters>)>,
}

impl Board {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Nothing that is noted here can be half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note_pool(&self, pool: usize, counters: &Arc<PoolCounters>) {
        self.tables().pools.push((pool, Arc::clone(counters)));
    }

    pub(super) fn note_server(
        &self,
        pool: usize,
        address: &Arc<Address>,
        counters: &Arc<ServerCounters>,
    ) {
        self.tables().servers.push((pool, Arc::clone(address), Arc::clone(counters)));
    }

    /// One figure of a pool, of all engines together.
    pub(super) fn pool(&self, pool: usize, of: impl Fn(&PoolCounters) -> &Counter) -> u64 {
        let tables = self.tables();
        let all = tables.pools.iter().filter(|(number, _)| *number == pool);
        all.map(|(_, counters)| of(counters).get()).sum()
    }

    /// Likewise of one of its servers.
    pub(super) fn server(
        &self,
        pool: usize,
        address: &Address,
        of: impl Fn(&ServerCounters) -> &Counter,
    ) -> u64 {
        let tables = self.tables();
        let same = |number: &usize, each: &Address| *number == pool && each == address;
        let all = tables.servers.iter().filter(|(number, each, _)| same(number, each));
        all.map(|(_, _, counters)| of(counters).get()).sum()
    }
}
