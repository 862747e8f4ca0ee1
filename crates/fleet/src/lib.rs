//! What keyfleet defines: the spec, the typed fleet, the world as observed, the planner that turns
//! the two into steps, the model that predicts what a step does, and the judge of it all.
//!
//! Pure: no I/O, no clock, no randomness, no threads; `now` and seeds are arguments. Collections are
//! ordered, so the order of input can't change a plan.

pub mod check;
pub mod model;
pub mod observed;
pub mod overview;
pub mod placement;
pub mod plan;
pub mod risk;
pub mod spec;
pub mod step;
pub mod world;
