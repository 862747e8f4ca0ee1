//! The harness for tests against real servers.
