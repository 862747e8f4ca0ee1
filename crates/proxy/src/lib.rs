//! Moving bytes, fast: Redis clients on one side; on the other a cluster, or a ring of standalone
//! servers as twemproxy shards them.
//!
//! [`engine`] is the whole logic without sockets, clock or threads; [`driver`] gives it all three,
//! one engine to a thread. Nothing is shared between threads on the hot path but counters that one
//! writes and others read ([`counters`]).
//!
//! What must hold above all: a reply never reaches another client than the one that asked.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod counters;
pub mod driver;
pub mod engine;
mod ring;
pub mod route;
pub mod topology;
