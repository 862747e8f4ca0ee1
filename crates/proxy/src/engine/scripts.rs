//! Scripts that clients loaded, for servers that don't know them yet.
//!
//! SCRIPT LOAD goes to all primaries, but engines don't copy scripts to replicas. So what was
//! loaded is remembered, within bounds, and is the first thing that a new connection to a server of
//! a cluster says: a replica that became primary, a new shard, and a server that was restarted know
//! the scripts before the first EVALSHA comes. What is not remembered, or was loaded through
//! another of the proxy's threads, the server answers with NOSCRIPT, as it would without the proxy,
//! and clients send EVAL. EVALSHA is not answered by loading a script and trying again: requests
//! that were sent after it would then be executed before it.
//!
//! Functions need nothing of this kind: engines copy them to replicas.

use std::collections::VecDeque;

use super::{
    Core, Micros,
    server::{Conn, Kind, Pending},
    slab::Id,
};

/// Requests of one pool that load scripts, oldest first.
#[derive(Default)]
pub(super) struct Scripts {
    loads: VecDeque<Box<[u8]>>,
    bytes: usize,
}

const BYTES_MAX: usize = 256 << 10;

impl Scripts {
    fn remember(&mut self, load: &[u8]) {
        if load.len() > BYTES_MAX {
            return;
        }
        if let Some(at) = self.loads.iter().position(|known| **known == *load) {
            self.loads.remove(at);
        } else {
            self.bytes += load.len();
        }
        self.loads.push_back(load.into());
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.loads.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    /// Makes them part of what a connection begins with.
    pub fn send(&self, conn: &mut Conn, now: Micros) {
        for load in &self.loads {
            conn.output.bytes().extend_from_slice(load);
            conn.pending.push_back(Pending {
                client: Id::nobody(),
                number: 0,
                part: 0,
                lane: 0,
                length: load.len(),
                at: now,
                // One that cannot be loaded harms nobody.
                kind: Kind::Discard,
                repeatable: false,
                writes: false,
                tries: 1,
                waited_ms: 0,
                in_flux: false,
            });
        }
    }
}

impl Core {
    /// `load` is a whole request SCRIPT LOAD.
    pub(super) fn remember_script(&mut self, pool: u16, load: &[u8]) {
        if let Some(pool) = self.pools.get_mut(usize::from(pool)) {
            pool.scripts.remember(load);
        }
    }

    pub(super) fn forget_scripts(&mut self, pool: u16) {
        if let Some(pool) = self.pools.get_mut(usize::from(pool)) {
            pool.scripts = Scripts::default();
        }
    }

    /// Connects to servers that may not know the scripts yet.
    pub(super) fn bring_scripts(&mut self, pool: u16) {
        let Some(pool) = self.pools.get(usize::from(pool)) else { return };
        if pool.scripts.loads.is_empty() {
            return;
        }
        let (servers, profile) = (pool.servers.clone(), pool.profile);
        for server in servers {
            // Where it can't be reached now, the next request will connect.
            let _ = self.conn_for(server, profile, Id::nobody());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut scripts = Scripts::default();
        let third = vec![b'3'; BYTES_MAX / 2];
        for load in [&b"1"[..], b"2", &third, b"1", &third, &vec![0; BYTES_MAX + 1]] {
            scripts.remember(load);
        }
        let known =
            |scripts: &Scripts| scripts.loads.iter().map(|load| load.len()).collect::<Vec<_>>();
        assert_eq!(known(&scripts), [1, 1, third.len()]);
        assert_eq!(scripts.loads[1][0], b'1');
        scripts.remember(&vec![0; BYTES_MAX / 2]);
        assert_eq!(known(&scripts), [third.len(), BYTES_MAX / 2]);
    }
}
