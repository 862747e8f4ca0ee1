//! `cargo xtask test`: nothing to prepare by hand, nothing skipped.

use std::{env, process::Command};

use anyhow::Result;

use crate::{
    clients,
    command::{is_here, run, workspace},
    engines, packages,
};

/// Installs what the tests need, then runs those whose names contain a filter; all of them where
/// there is none.
pub fn run_all(filter: &[String]) -> Result<()> {
    packages::need(&[
        ("redis-server", "redis-server"),
        ("redis-cli", "redis-tools"),
        ("nutcracker", "nutcracker"),
        ("ip", "iproute2"),
        ("kill", "procps"),
    ])?;
    engines::install()?;
    clients::install()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    if is_here("cargo-nextest") {
        cargo.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        cargo.args(["test", "--workspace", "--no-fail-fast", "--"]);
    }
    run(cargo.args(filter))
}
