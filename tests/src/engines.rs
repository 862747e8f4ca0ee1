//! The engines that tests run against: those that `cargo xtask engines` has unpacked under the
//! build directory, in versions that no machine has side by side.

use std::{env, path::PathBuf, process::Command};

use keyfleet::engines::EngineBinary;
use protocol::Engine;

/// Every engine there is, by product and version.
pub const ENGINES: [(&str, &str); 5] =
    [("redis", "6.2"), ("redis", "7.0"), ("redis", "8.0"), ("valkey", "8.1"), ("valkey", "9.1")];

/// The engine, such as `engine("redis", "7.0")`; [`ENGINES`] has all of them.
///
/// Fails the test where it is not installed: tests are never skipped in silence.
pub fn engine(kind: &str, version: &str) -> EngineBinary {
    let programs = directory().join(format!("{kind}-{version}")).join("bin");
    let server = programs.join(format!("{kind}-server"));
    let output = Command::new(&server).arg("--version").output();
    let banner = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let found = banner.ok().and_then(|banner| Engine::from_version_line(&banner).ok());
    let Some(engine) = found else {
        panic!("no {kind} {version} in {}: run `cargo xtask test`", programs.display());
    };
    let cli = Some(programs.join(format!("{kind}-cli")));
    EngineBinary { engine, server, cli, library_path: None }
}

/// Where cargo builds, and the engines below it.
fn directory() -> PathBuf {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let directory = workspace.join(target).join("test-engines");
    directory.canonicalize().unwrap_or(directory)
}
