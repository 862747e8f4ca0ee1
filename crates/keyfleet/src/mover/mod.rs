//! Moving data between servers: slots from primary to primary, and closing what a move left open.
//!
//! Nothing here remembers anything: what is under way is read from the nodes, so a mover that was
//! killed at any instant is continued by running the same job again.

mod atomic;
mod chunks;
pub mod import;
mod keys;
mod kind;
pub mod load;
mod pace;
pub mod repair;
pub mod replay;
mod setter;
pub mod slots;
mod views;

use std::{net::SocketAddr, time::Duration};

use protocol::NodeId;

use crate::admin_client::{ClientError, Commands, Connection, Login};

/// How long a connection may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long commands may take that carry no keys.
const REPLY_TIME_MAX: Duration = Duration::from_secs(60);

/// A node to talk to: its name, and where it serves clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddr {
    pub id: NodeId,
    pub address: SocketAddr,
}

async fn connect(node: SocketAddr, login: Option<&Login>) -> Result<Connection, ClientError> {
    Connection::open(node, login, CONNECT_TIME_MAX).await
}
