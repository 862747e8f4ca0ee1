//! What the engines say about their cluster, as types: CLUSTER NODES and nodes.conf, CLUSTER
//! SHARDS, INFO and CLUSTER INFO, ROLE.
//!
//! Engines add fields with every version: what is not known is skipped where the rest still
//! means the same, and is an error where it may not.

mod info;
mod nodes;
mod role;
mod shards;

pub use info::{Info, InfoReplica, Keyspace};
pub use nodes::{
    ClusterNodes, Flags, NodeRow, NodesConf, NodesError, OpenDirection, OpenSlot, RowError,
};
pub use role::{LinkState, Role, RoleReplica};
pub use shards::{ClusterShards, Health, Shard, ShardNode};

/// A reply does not have the shape that the command's documentation gives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{command}: {problem}")]
pub struct BadReply {
    /// The command, in capitals.
    pub command: &'static str,
    pub problem: String,
}
