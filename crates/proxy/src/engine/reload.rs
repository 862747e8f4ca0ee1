//! Pools that are changed while they serve. Clients stay, and what they asked is answered by whom
//! it was asked of; what they ask from now on goes where the new settings say.
//!
//! A client that gave the former password stays authenticated, and where none was wanted before
//! clients need not give the new one: the same as in the engines.

use std::sync::Arc;

use super::{Core, Ending, Engine, Pool, PoolSetup, Route, login::User};

impl Engine {
    /// Gives a pool other settings. Servers that stay keep their connections, unless these begin
    /// in another way now, their figures, and the time for which they are ejected.
    pub fn replace_pool(&mut self, index: usize, mut setup: PoolSetup) {
        let users = self.core.logins(std::mem::take(&mut setup.users));
        let profile = self.core.profile(setup.profile.clone());
        let Some(old) = self.core.pools.get_mut(index) else { return };
        let near = old.near.take();
        let counters = Arc::clone(&old.counters);
        let former = std::mem::take(&mut old.servers);
        let old_profile = std::mem::replace(&mut old.profile, profile);
        let connections = setup.server_connections.max(1);
        let begin_anew = old_profile != profile || old.server_connections != connections;
        let servers: Vec<u16> = setup
            .servers
            .iter()
            .map(|address| self.core.add_server(index, address.clone()))
            .collect();
        for server in &former {
            let stays = servers.contains(server);
            if !stays || begin_anew {
                self.core.discard_links(*server);
            }
            if !(stays && ejects(&setup.route)) {
                self.core.forgive(*server);
            }
        }
        self.core.end_near(near);
        let fresh = self.core.near_for(&setup.route, profile, &counters);
        if let Some(pool) = self.core.pools.get_mut(index) {
            let (flux, scripts) =
                (std::mem::take(&mut pool.flux), std::mem::take(&mut pool.scripts));
            *pool = Pool::new(setup, servers, profile, users);
            (pool.counters, pool.flux, pool.scripts) = (counters, flux, scripts);
            pool.near = fresh;
            pool.settle_reads();
        }
        self.core.rering(index as u16);
        if old_profile != profile {
            // Those who said HELLO 3 have a profile of the same but for that.
            let both = [2, 3].map(|protocol| {
                let with = |profile| self.core.with_protocol(profile, protocol);
                [old_profile, profile].map(with)
            });
            for id in self.clients.ids() {
                if let Some(client) = self.clients.get_mut(id)
                    && usize::from(client.pool) == index
                    && let Some([_, new]) = both.iter().find(|[old, _]| client.profile == *old)
                {
                    client.profile = *new;
                }
            }
        }
    }

    /// Gives a pool other users of its own. Clients of those who are gone, or log in or are served in
    /// another way now, are told what they asked, then their connections are closed. Others' stay;
    /// they are counted in the quota that they entered.
    pub fn set_users(&mut self, index: usize, own: Vec<User>) {
        let users = self.core.renew_logins(index, own);
        let Some(pool) = self.core.pools.get_mut(index) else { return };
        let former = std::mem::replace(&mut pool.users, users);
        for id in self.clients.ids() {
            if let Some(client) = self.clients.get_mut(id)
                && usize::from(client.pool) == index
                && client.ending < Ending::Answering
                && let Some(user) = former.of(client)
                && !self.core.pools.get(index).is_some_and(|pool| pool.users.holds(user))
            {
                client.ending = Ending::Answering;
                client.mark(id, &mut self.core.turn);
            }
        }
    }

    /// Ends a pool: its clients are told what they asked, then their connections are closed. Its
    /// number stays taken.
    pub fn remove_pool(&mut self, index: usize) {
        let Some(pool) = self.core.pools.get_mut(index) else { return };
        let servers = std::mem::take(&mut pool.servers);
        let near = pool.near.take();
        pool.rering_at = None;
        self.core.end_near(near);
        for id in self.clients.ids() {
            if let Some(client) = self.clients.get_mut(id)
                && usize::from(client.pool) == index
                && client.ending < Ending::Answering
            {
                client.ending = Ending::Answering;
                client.mark(id, &mut self.core.turn);
            }
        }
        for server in servers {
            self.core.discard_links(server);
        }
    }

    /// Makes all the connections of a pool at once, not when they are first needed.
    pub fn preconnect(&mut self, index: usize) {
        let Some(pool) = self.core.pools.get(index) else { return };
        let (profile, connections) = (pool.profile, pool.server_connections);
        for server in pool.servers.clone() {
            for place in 0..connections {
                // What refuses is tried again at the first request.
                let _ = self.core.connect_at(server, profile, place);
            }
        }
    }
}

fn ejects(route: &Route) -> bool {
    matches!(route, Route::Ring(ring) if ring.ejection().is_some())
}

impl Core {
    /// The server's connections end when what they carry is answered.
    fn discard_links(&mut self, server: u16) {
        let Some(server) = self.servers.get_mut(usize::from(server)) else { return };
        let links = std::mem::take(&mut server.links);
        for link in &links {
            for conn in link.shared.iter().flatten().chain(&link.spare) {
                self.discard_conn(*conn);
            }
        }
    }

    /// Forgets a server's failures.
    fn forgive(&mut self, server: u16) {
        if let Some(server) = self.servers.get_mut(usize::from(server)) {
            (server.faults, server.ejected_until, server.retry_at) = (0, 0, 0);
        }
    }
}
