//! Reads that replicas serve.
//!
//! Somebody outside says which servers read for which primary, and which of those are gone: the engine
//! knows nothing of their lag. Such a server gets what its command's flags call a read, over
//! connections that begin with READONLY and carry nothing else; scripts that only read go to
//! primaries, which have them. A client's reads of a shard go to the same server as long as there is
//! one choice, so that what it sees doesn't go back and forth.
//!
//! What a reader can't answer goes to the slot's owner: where it says MOVED, that it is loading or
//! without its primary, where its connection is lost. It is never believed about who owns a slot.
//!
//! Deliberately absent: reads in sessions (MULTI, WATCH), in rings, and of all servers (SCAN, KEYS).

use std::{collections::BTreeSet, sync::Arc};

use super::{ClientId, Core, Engine, Profile, error};
use crate::route::Readers;

/// [`Readers`] as a pool keeps them.
#[derive(Default)]
pub(super) struct ReaderTable {
    /// By the primary's index among all servers.
    of: Vec<Box<[u16]>>,
}

impl ReaderTable {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    fn of(&self, primary: u16) -> &[u16] {
        self.of.get(usize::from(primary)).map(|readers| &**readers).unwrap_or_default()
    }
}

/// Profiles whose connections only read, beside those that they are of.
#[derive(Default)]
pub(super) struct ReadProfiles(Vec<(u16, u16)>);

impl ReadProfiles {
    pub fn is_one(&self, profile: u16) -> bool {
        self.0.iter().any(|(_, reading)| *reading == profile)
    }
}

impl Core {
    /// Who serves a client's read, and with which profile: a reader that can be reached, else the
    /// primary.
    #[cold]
    pub(super) fn reader_for(
        &mut self,
        pool: u16,
        primary: u16,
        profile: u16,
        client: ClientId,
    ) -> (u16, u16) {
        let count = self.readers_of(pool, primary).len();
        for turn in 0..count {
            let readers = self.readers_of(pool, primary);
            let Some(server) = readers.get((client.index() + turn) % count).copied() else { break };
            if server == primary {
                break;
            }
            let reading = self.read_profile(profile);
            if self.conn_for(server, reading, client).is_ok() {
                return (server, reading);
            }
        }
        (primary, profile)
    }

    fn readers_of(&self, pool: u16, primary: u16) -> &[u16] {
        let pool = self.pools.get(usize::from(pool));
        pool.map(|pool| pool.readers.of(primary)).unwrap_or_default()
    }

    /// The same but for READONLY.
    fn read_profile(&mut self, profile: u16) -> u16 {
        let known = self.read_profiles.0.iter().find(|(of, _)| *of == profile);
        if let Some((_, reading)) = known {
            return *reading;
        }
        let own = self.profiles.get(usize::from(profile)).cloned().unwrap_or_default();
        let reading = self.profile(Profile { read_only: true, ..own });
        self.read_profiles.0.push((profile, reading));
        reading
    }

    /// What the profile of a connection that only reads was made of; None: it is another.
    pub(super) fn of_reader(&self, profile: u16) -> Option<u16> {
        let found = self.read_profiles.0.iter().find(|(_, reading)| *reading == profile);
        found.map(|(of, _)| *of)
    }
}

impl Engine {
    /// Says who reads for whom from now on. What is on its way to readers that are gone is asked of
    /// primaries.
    pub fn set_readers(&mut self, pool: usize, readers: &Readers) {
        let mut table = ReaderTable::default();
        for (primary, servers) in &readers.of {
            let mut index = |address| self.core.add_server(pool, Arc::clone(address));
            let primary = usize::from(index(primary));
            let servers = servers.iter().map(index).collect();
            if table.of.len() <= primary {
                table.of.resize_with(primary + 1, Box::default);
            }
            if let Some(of) = table.of.get_mut(primary) {
                *of = servers;
            }
        }
        if table.of.iter().all(|servers| servers.is_empty()) {
            table = ReaderTable::default();
        }
        if let Some(pool) = self.core.pools.get_mut(pool) {
            pool.readers = table;
            pool.settle_reads();
        }
        let gone: BTreeSet<_> = readers.gone.iter().collect();
        for id in self.core.conns.ids() {
            let Some(conn) = self.core.conns.get(id) else { continue };
            let server = self.core.servers.get(usize::from(conn.server));
            let lost = server
                .is_some_and(|each| usize::from(each.pool) == pool && gone.contains(&each.address));
            if lost && self.core.of_reader(conn.profile).is_some() {
                self.kill_conn(id, error::LOST);
            }
        }
    }
}
