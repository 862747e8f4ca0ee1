//! keyfleet: every side effect lives here.
