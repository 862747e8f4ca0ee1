//! A pretend fleet with faults.

pub mod scene;
