//! The harness for tests against real servers.

pub mod azurite;
pub mod bucket;
pub mod certificates;
pub mod clients;
pub mod cluster;
pub mod differences;
pub mod differential;
pub mod engines;
pub mod fleet;
pub mod ledger;
pub mod matrix;
pub mod pipelines;
pub mod ports;
pub mod proxy;
pub mod relay;
pub mod server;
pub mod twemproxy;
