//! keyfleet: every side effect lives here.

<<<<<<< HEAD
pub mod admin_client;
pub mod engines;
pub mod node_files;
pub mod runtimes;
pub mod secrets;
pub mod store;
=======
pub mod cli;
pub mod doctor;
pub mod engines;
pub mod errors;
>>>>>>> 1f2bcee (Draw a cluster from all views, tell its risks, and show both)
