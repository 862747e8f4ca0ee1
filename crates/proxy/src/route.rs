//! Which server a key belongs to: two kinds of routing, and the addresses of servers.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use protocol::{SLOT_COUNT, SlotSet, key_hash};

pub use crate::ring::{Ejection, EjectionMode, Ring};

/// Where a server, or the proxy itself, listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Tcp(SocketAddr),
    /// A name is looked up at each new connection.
    Name {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Address {
    /// An IP address, with or without brackets, or a name.
    pub fn new(host: &str, port: u16) -> Self {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        match bare.parse() {
            Ok(ip) => Self::Tcp(SocketAddr::new(ip, port)),
            Err(_) => Self::Name { host: host.to_owned(), port },
        }
    }

    /// `host:port`, split at the last colon; a path where it starts with `/`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with('/') {
            return Some(Self::Unix(text.into()));
        }
        let (host, port) = text.rsplit_once(':')?;
        if host.is_empty() { None } else { Some(Self::new(host, port.parse().ok()?)) }
    }

    /// The same machine, another port: what a redirection without a host means.
    #[must_use]
    pub fn with_port(&self, port: u16) -> Self {
        match self {
            Self::Tcp(address) => Self::Tcp(SocketAddr::new(address.ip(), port)),
            Self::Name { host, .. } => Self::Name { host: host.clone(), port },
            Self::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A key's place. Two keys with equal lanes can be asked for in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The slot, or in a ring the server's index.
    pub lane: u16,
    /// The index of its server among the route's; None where no server has it.
    pub server: Option<u16>,
}

/// Keys to servers.
#[derive(Debug, Clone)]
pub enum Route {
    Ring(Ring),
    Slots(Slots),
}

impl Route {
    /// Do standalone servers share the keys?
    pub fn is_ring(&self) -> bool {
        matches!(self, Self::Ring(_))
    }

    #[inline]
    pub fn target(&self, key: &[u8]) -> Target {
        match self {
            Self::Ring(ring) => {
                let server = ring.server(key);
                Target { lane: server.unwrap_or(u16::MAX), server }
            }
            Self::Slots(slots) => {
                let slot = key_hash::key_slot(key).number();
                Target { lane: slot, server: slots.owner(slot) }
            }
        }
    }
}

/// Who owns which slot of a cluster.
#[derive(Clone)]
pub struct Slots {
    owners: Box<[u16]>,
}

const NOBODY: u16 = u16::MAX;

impl Default for Slots {
    fn default() -> Self {
        Self { owners: vec![NOBODY; usize::from(SLOT_COUNT)].into_boxed_slice() }
    }
}

impl Slots {
    #[inline]
    pub fn owner(&self, slot: u16) -> Option<u16> {
        self.owners.get(usize::from(slot)).copied().filter(|owner| *owner != NOBODY)
    }

    pub fn set_owner(&mut self, slot: u16, server: u16) {
        if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
            *owner = server;
        }
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owned = self.owners.iter().filter(|owner| **owner != NOBODY).count();
        write!(f, "Slots({owned} owned)")
    }
}

/// A cluster's primaries and their slots, as somebody outside found them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    pub primaries: Vec<Primary>,
}

/// A primary and its slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    pub address: Arc<Address>,
    pub slots: SlotSet,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let check = |text: &str, expected: Option<Address>| {
            assert_eq!(Address::parse(text), expected, "{text}");
        };
        check("127.0.0.1:1", Some(Address::Tcp(([127, 0, 0, 1], 1).into())));
        check("[::1]:7000", Some(Address::Tcp("[::1]:7000".parse().unwrap())));
        check("2001:db8::1:7000", Some(Address::Tcp("[2001:db8::1]:7000".parse().unwrap())));
        check("cache-1:9", Some(Address::Name { host: "cache-1".into(), port: 9 }));
        check("/run/redis", Some(Address::Unix("/run/redis".into())));
        check("cache-1", None);
        check(":9", None);
        check("a:99999", None);
    }
}
