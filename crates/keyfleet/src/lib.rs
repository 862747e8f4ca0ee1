//! keyfleet: every side effect lives here.

pub mod admin_client;
pub mod analyze;
pub mod backup;
pub mod cli;
pub mod doctor;
pub mod engines;
pub mod errors;
pub mod execute;
pub mod guard;
pub mod lease;
pub mod mover;
pub mod node_files;
pub mod observe;
pub mod proxy;
pub mod reconcile;
pub mod runtimes;
pub mod secrets;
pub mod session;
pub mod store;
mod sync;
pub mod twemproxy;
