//! keyfleet: every side effect lives here.

pub mod engines;
