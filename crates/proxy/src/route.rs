//! Which server a key belongs to: two kinds of routing, and the addresses of servers.

use std::{cell::OnceCell, fmt, net::SocketAddr, path::PathBuf, sync::Arc};

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
    /// Found when it is asked for.
    partition: OnceCell<Partition>,
}

const NOBODY: u16 = u16::MAX;

impl Default for Slots {
    fn default() -> Self {
        let owners = vec![NOBODY; usize::from(SLOT_COUNT)].into_boxed_slice();
        Self { owners, partition: OnceCell::new() }
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
            self.partition.take();
        }
    }

    /// How the slots are shared out.
    pub fn partition(&self) -> &Partition {
        self.partition.get_or_init(|| Partition::new(&self.owners))
    }
}

/// How the slots are shared out among servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// By lowest slot.
    pub shares: Vec<Share>,
    /// Has every slot an owner?
    pub whole: bool,
    /// Two partitions that are not the same differ in it, but for one pair in 2³². Whose the
    /// shares are does not matter.
    pub print: u32,
}

/// The slots of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The index of the server among the route's.
    pub server: u16,
    /// The lowest of its slots.
    pub first: u16,
}

impl Partition {
    fn new(owners: &[u16]) -> Self {
        let mut partition = Self { shares: Vec::new(), whole: true, print: 0x811c_9dc5 };
        let mut last = None;
        for (slot, owner) in (0_u16..).zip(owners) {
            partition.whole &= *owner != NOBODY;
            if last == Some(*owner) {
                continue;
            }
            last = Some(*owner);
            let shares = &mut partition.shares;
            let rank = match shares.iter().position(|share| share.server == *owner) {
                _ if *owner == NOBODY => NOBODY,
                Some(rank) => rank as u16,
                None => {
                    shares.push(Share { server: *owner, first: slot });
                    (shares.len() - 1) as u16
                }
            };
            for byte in slot.to_le_bytes().into_iter().chain(rank.to_le_bytes()) {
                partition.print = (partition.print ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            }
        }
        partition
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

/// Who serves reads in place of primaries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readers {
    /// For a primary those that do, itself maybe among them.
    pub of: Vec<(Arc<Address>, Vec<Arc<Address>>)>,
    /// Servers that don't answer: nobody should wait for them.
    pub gone: Vec<Arc<Address>>,
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

    #[test]
    fn partitions() {
        let slots = |ranges: &[(u16, u16, u16)]| {
            let mut slots = Slots::default();
            for (first, last, server) in ranges {
                (*first..=*last).for_each(|slot| slots.set_owner(slot, *server));
            }
            slots
        };
        let mut two = slots(&[(0, 99, 5), (100, 16383, 2)]);
        let share = |server, first| Share { server, first };
        let before = two.partition().clone();
        assert_eq!(before.shares, [share(5, 0), share(2, 100)]);
        assert!(before.whole);
        // Another server in the same place, and another order of servers, change nothing.
        let same = slots(&[(0, 99, 7), (100, 16383, 8)]);
        assert_eq!(same.partition().print, before.print);
        two.set_owner(50, 2);
        assert_eq!(two.partition().shares, [share(5, 0), share(2, 50)]);
        assert_ne!(two.partition().print, before.print);
        two.set_owner(50, 5);
        assert_eq!(*two.partition(), before);
        let part = slots(&[(3, 9, 0)]);
        assert_eq!(
            (part.partition().whole, &part.partition().shares[..]),
            (false, &[share(0, 3)][..])
        );
        assert!(Slots::default().partition().shares.is_empty());
    }
}
