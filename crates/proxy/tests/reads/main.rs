//! What the engine does for requests beside passing them on, in random stories on a stage.

#[path = "../pretend/mod.rs"]
mod pretend;
mod quota;
mod slow_log;
mod stage;
