//! A pretend fleet with faults.
