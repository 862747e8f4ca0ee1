//! A ring of standalone servers that share the keys, exactly as twemproxy shares them.
//!
//! Where a key belongs is [`protocol::key_hash::twemproxy`]'s to say. Here is what changes while a
//! proxy runs: which servers take part.

use std::{cell::Cell, sync::Arc};

use protocol::key_hash::twemproxy::{self, Distribution, KeyHash, RingServer};

use crate::engine::Micros;

/// Standalone servers that share the keys. Its servers' ids are positions in the route's order.
#[derive(Debug, Clone)]
pub struct Ring {
    hash: KeyHash,
    distribution: Distribution,
    members: Arc<[Member]>,
    ejection: Option<Ejection>,
    /// Of the members that take part.
    servers: twemproxy::Ring,
    /// Keys don't matter: the next one goes anywhere.
    random: Option<Cell<u32>>,
}

#[derive(Debug)]
struct Member {
    id: u32,
    name: Box<str>,
    weight: u32,
}

/// When a server that fails is ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejection {
    /// So many failures without a good reply between them; 0 is as 1.
    pub failures_max: u32,
    pub time: Micros,
    pub mode: EjectionMode,
}

/// Who serves an ejected server's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionMode {
    /// The others, as if it had never been there: what twemproxy does. What it holds is not seen
    /// meanwhile, and what is written meanwhile is not seen afterwards.
    Rering,
    /// Nobody: requests for them are answered with an error at once.
    Refuse,
}

impl Ring {
    /// `seed` is for a random distribution.
    pub fn new(
        hash: KeyHash,
        distribution: Distribution,
        servers: &[RingServer<'_>],
        seed: u32,
    ) -> Self {
        let member = |server: &RingServer<'_>| Member {
            id: server.id,
            name: server.name.into(),
            weight: server.weight,
        };
        Self {
            hash,
            distribution,
            members: servers.iter().map(member).collect(),
            ejection: None,
            servers: twemproxy::Ring::new(distribution, servers),
            random: (distribution == Distribution::Random).then(|| Cell::new(seed)),
        }
    }

    /// Servers that fail are ejected; otherwise they are tried again and again.
    #[must_use]
    pub fn ejecting(mut self, ejection: Ejection) -> Self {
        self.ejection = Some(ejection);
        self
    }

    /// Whether and how servers are ejected.
    pub fn ejection(&self) -> Option<Ejection> {
        self.ejection
    }

    /// The server that a key belongs to; None where no server takes part.
    #[inline]
    pub fn server(&self, key: &[u8]) -> Option<u16> {
        let value = match &self.random {
            None => self.hash.value(key),
            Some(last) => {
                last.set(last.get().wrapping_add(0x9e37_79b9));
                mixed(last.get())
            }
        };
        self.servers.server(value).map(|server| server as u16)
    }

    /// From now on only those servers take part of whose ids `takes_part` says so.
    pub fn restrict(&mut self, takes_part: impl Fn(u16) -> bool) {
        let live: Vec<RingServer<'_>> = self
            .members
            .iter()
            .filter(|member| takes_part(member.id as u16))
            .map(|member| RingServer { id: member.id, name: &member.name, weight: member.weight })
            .collect();
        self.servers = twemproxy::Ring::new(self.distribution, &live);
    }
}

/// Each number's own, without the pattern that they come in.
fn mixed(number: u32) -> u32 {
    let once = (number ^ (number >> 16)).wrapping_mul(0x7feb_352d);
    let twice = (once ^ (once >> 15)).wrapping_mul(0x846c_a68b);
    twice ^ (twice >> 16)
}

#[cfg(test)]
mod tests {
    use protocol::key_hash::twemproxy::Hash;

    use super::*;

    fn counts(ring: &Ring) -> [usize; 3] {
        let mut counts = [0; 3];
        for key in 0..3_000 {
            let server = ring.server(format!("key:{key}").as_bytes()).unwrap();
            counts[usize::from(server)] += 1;
        }
        counts
    }

    #[test]
    fn keys_of_a_server_go_to_the_others_and_come_back() {
        // The default one gives near keys near numbers.
        let hash = KeyHash { hash: Hash::Md5, tag: None };
        let names = ["a", "b", "c"];
        let servers = [0, 1, 2].map(|id| RingServer { id, name: names[id as usize], weight: 1 });
        for distribution in Distribution::ALL {
            let mut ring = Ring::new(hash, distribution, &servers, 1);
            let before = counts(&ring);
            assert!(before.iter().all(|count| *count > 500), "{distribution:?} {before:?}");
            ring.restrict(|id| id != 1);
            assert_eq!(counts(&ring)[1], 0);
            ring.restrict(|_| true);
            let after = counts(&ring);
            assert!(distribution == Distribution::Random || after == before, "{after:?}");
            ring.restrict(|_| false);
            assert_eq!(ring.server(b"key"), None);
        }
    }
}
