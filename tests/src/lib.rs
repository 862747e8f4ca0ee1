//! The harness for tests against real servers.

pub mod engines;
pub mod cluster;
pub mod ledger;
