//! `cargo xtask matrix`: `docs/reference/data-matrix.md` from imports into every engine.

use std::{env, fs, process::Command};

use anyhow::Result;
use tests::matrix::{carry_all, page};

use crate::{command, engines};

const PAGE: &str = "docs/reference/data-matrix.md";

/// Does the imports and writes the page.
pub fn run() -> Result<()> {
    engines::install()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let build = ["build", "--package", "keyfleet"];
    command::run(cargo.current_dir(command::workspace()).args(build))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let pairs = runtime.block_on(carry_all())?;
    Ok(fs::write(command::workspace().join(PAGE), page(&pairs))?)
}
