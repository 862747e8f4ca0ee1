//! The engine between pretend clients and pretend servers, in random order. A failing seed is
//! printed, and replays with SEED=; SEEDS= says how many are tried.

mod cluster;
mod memory;
mod near;
mod pretend;
mod quota;
mod random;
mod readers;
mod scan;
mod sessions;
mod settings;
mod slow_log;
mod stage;
mod stalls;
mod subscriptions;
