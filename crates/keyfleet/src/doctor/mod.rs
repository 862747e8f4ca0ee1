//! Checks of a machine.
