//! What an engine is told to begin with: limits, and pools of servers.

use std::{fmt, sync::Arc};

use super::{
    Board, Memory, Micros, login::Users, near::NearCache, quota::Quota, request::RequestLimits,
    slow_log::SlowLog,
};
use crate::route::{Address, Route};

/// What may be held in memory, and for how long.
#[derive(Debug, Clone)]
pub struct Limits {
    pub request: RequestLimits,
    /// A request that is not whole yet may have so many bytes.
    pub query_bytes_max: usize,
    /// One with so many bytes is passed on as it comes, if its command and only key are known.
    pub stream_bytes_min: usize,
    /// A client with so many requests without an answer is not read from.
    pub outstanding_max: usize,
    /// Nor is one with so many bytes of replies, written or parked, that it didn't take yet.
    pub waiting_bytes_max: usize,
    /// A server's connection isn't read either while the client that its next reply is for has
    /// so many bytes waiting.
    pub waiting_bytes_hard: usize,
    /// One reply of several that become one may have so many bytes.
    pub merged_bytes_max: usize,
    /// A client whose replies keep a server's connection from being read for so long is closed.
    pub stall: Micros,
    /// Likewise where others wait for theirs behind it and it takes nothing for so long.
    pub stall_shared: Micros,
    /// A connection with so many bytes of one reply is left to who asked for it.
    pub long_reply_bytes: usize,
    /// Requests are not read while the server they go to has so many bytes to be written, or four
    /// times as many that it didn't answer.
    pub server_bytes_max: usize,
    /// Replies of several servers that become one may have so many bytes together.
    pub gathered_bytes_max: usize,
    /// What all buffers may hold together.
    pub memory: Arc<Memory>,
    /// Where the figures stand of all engines that serve the same.
    pub board: Arc<Board>,
    /// Where slow requests are noted, if they are.
    pub slow_log: Option<Arc<SlowLog>>,
    /// One request in so many is looked at for hot and large keys; None: none is.
    pub sample_one_in: Option<u32>,
    /// What all clients together may ask.
    pub quota: Option<Arc<Quota>>,
    /// Hot keys of a cluster are answered from memory.
    pub near: Option<NearCache>,
}

impl Limits {
    /// A client with so many bytes waiting is given no more: what has been read for it already, and
    /// the room that its buffer grew ahead, add to them.
    #[inline]
    pub(super) fn full_bytes(&self) -> usize {
        self.waiting_bytes_hard - self.waiting_bytes_hard / 4
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request: RequestLimits::default(),
            query_bytes_max: 64 << 20,
            stream_bytes_min: 64 << 10,
            outstanding_max: 1024,
            waiting_bytes_max: 1 << 20,
            waiting_bytes_hard: 4 << 20,
            merged_bytes_max: 64 << 20,
            stall: 10_000_000,
            stall_shared: 1_000_000,
            long_reply_bytes: 16 << 20,
            server_bytes_max: 4 << 20,
            gathered_bytes_max: 64 << 20,
            memory: Arc::default(),
            board: Arc::default(),
            slow_log: None,
            sample_one_in: None,
            quota: None,
            near: None,
        }
    }
}

/// What a connection to a server begins with.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Profile {
    pub user: Option<String>,
    pub password: Option<String>,
    /// SELECT, where not 0.
    pub database: u32,
    /// HELLO 3.
    pub resp3: bool,
    /// READONLY: replicas serve it.
    pub read_only: bool,
    /// CLIENT TRACKING: the server says which keys change of those that were read.
    pub tracks: bool,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user, password: _, database, resp3, read_only, tracks } = self;
        let mut shown = f.debug_struct("Profile");
        shown.field("user", user).field("database", database).field("resp3", resp3);
        shown.field("read_only", read_only).field("tracks", tracks);
        shown.finish_non_exhaustive()
    }
}

/// A set of servers with what clients see as one.
#[derive(Clone)]
pub struct PoolSetup {
    pub route: Route,
    /// In the route's order.
    pub servers: Vec<Arc<Address>>,
    pub profile: Profile,
    /// What clients have to say in AUTH before anything else.
    pub client_password: Option<String>,
    /// Who may be a client beside those.
    pub users: Users,
    /// A request that has no reply after so long is answered with an error.
    pub timeout: Option<Micros>,
    /// How many connections to each server.
    pub server_connections: usize,
    /// The wait before a server that refused is tried again; doubled up to `backoff_max`.
    pub backoff_min: Micros,
    pub backoff_max: Micros,
}

impl fmt::Debug for PoolSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PoolSetup");
        shown.field("servers", &self.servers).field("profile", &self.profile);
        shown.field("users", &self.users).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Slots;

    #[test]
    fn passwords_are_not_shown() {
        let secret = || Some("sesame".to_owned());
        let profile =
            Profile { user: Some("ali".into()), password: secret(), ..Profile::default() };
        let pool = PoolSetup {
            route: Route::Slots(Slots::default()),
            servers: Vec::new(),
            profile,
            client_password: secret(),
            users: Users::default(),
            timeout: None,
            server_connections: 1,
            backoff_min: 1,
            backoff_max: 1,
        };
        let shown = format!("{pool:?}");
        assert!(shown.contains("ali") && !shown.contains("sesame"), "{shown}");
    }
}
