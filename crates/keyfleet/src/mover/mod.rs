//! Moving data between servers: slots from primary to primary, and closing what a move left open.
//!
//! Nothing here remembers anything: what is under way is read from the nodes, so a mover that was
//! killed at any instant is continued by running the same job again.

mod atomic;
mod chunks;
mod keys;
mod link;
mod pace;
pub mod repair;
pub mod slots;
mod views;

use std::{fmt, net::SocketAddr};

use protocol::NodeId;

pub use link::{Link, LinkError, Pipeline};

/// A node to talk to: its name, and where it serves clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddr {
    pub id: NodeId,
    pub address: SocketAddr,
}

/// What every node of the cluster wants to see before it answers.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// `default` for a plain `requirepass`.
    pub user: String,
    pub password: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({}, [redacted])", self.user)
    }
}
