//! The harness for tests against real servers.

pub mod engines;
