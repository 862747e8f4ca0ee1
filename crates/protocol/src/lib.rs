//! What Redis defines, and nothing of ours: the wire codec, hash slots, the text of the cluster
//! commands, configuration files, and what each engine can do.
//!
//! Pure: no I/O, no clock, no randomness. Input from outside never panics.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod cluster_text;
pub mod commands;
pub mod conf;
pub mod config_value;
pub mod directives;
pub mod engine;
pub mod ids;
pub mod key_hash;
pub mod rdb;
pub mod resp;
pub mod slots;

pub use cluster_text::{ClusterNodes, ClusterShards, Info, NodeRow, NodesConf, Role};
pub use engine::{Dialect, Engine, EngineKind, UnknownEngine, Version};
pub use ids::NodeId;
pub use key_hash::key_slot;
pub use resp::Value;
pub use slots::{SLOT_COUNT, Slot, SlotSet};
