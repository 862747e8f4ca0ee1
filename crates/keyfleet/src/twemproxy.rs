//! keyfleet in twemproxy's place: the pools of a nutcracker.yml, served, and changed while they are
//! served.
//!
//! Deliberately absent: `client_connections`, which twemproxy ignores too.

mod control;
mod pools;
mod service;
pub mod stats;

pub use self::{
    control::{ControlError, End, LogWish, Setup, read, run},
    pools::{Figures, ServerFigures},
    service::{Options, Reloaded, Service, ServiceError, TlsListen},
};
