//! Where servers run. A runtime lists what exists and carries out orders; it decides nothing.

pub mod process;
