//! The client libraries that `cargo xtask clients` has installed, each with a program of checks in
//! tests/clients that says `ok` after each of its idioms that worked.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tokio::{process::Command, time::timeout};

/// How long one program of checks may take.
const TIME_MAX: Duration = Duration::from_secs(120);

/// Runs a program of tests/clients against an address and returns how many of its checks passed;
/// an error holds what it printed where one of them failed.
pub async fn run(program: &str, address: SocketAddr, args: &[&str]) -> Result<usize> {
    let installed = directory();
    ensure!(installed.join("installed").is_file(), "no client libraries: run `cargo xtask test`");
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients");
    let python = installed.join("python").join("bin");
    let mut command = if is_javascript(program) {
        // A module finds others beside itself only.
        for script in fs::read_dir(&scripts)? {
            let script = script?.path();
            if is_javascript(&script) {
                let name = script.file_name().context("no name")?;
                let copy = installed.join("node").join(format!(".{}", std::process::id()));
                fs::copy(&script, &copy)?;
                fs::rename(&copy, installed.join("node").join(name))?;
            }
        }
        let own = python.join("node");
        let mut node = Command::new(if own.exists() { own } else { "node".into() });
        node.arg(installed.join("node").join(program));
        node
    } else {
        let mut interpreter = Command::new(python.join("python"));
        interpreter.arg("-B").arg(scripts.join(program));
        interpreter
    };
    command.arg(address.ip().to_string()).arg(address.port().to_string()).args(args);
    let ended = timeout(TIME_MAX, command.kill_on_drop(true).output()).await;
    let output = ended.with_context(|| format!("{program} doesn't end"))??;
    let printed = String::from_utf8_lossy(&output.stdout);
    let passed = printed.lines().filter(|line| line.starts_with("ok ")).count();
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}:\n{printed}\n{complaints}");
    ensure!(passed > 0, "{program} checked nothing");
    Ok(passed)
}

fn is_javascript(path: impl AsRef<Path>) -> bool {
    path.as_ref().extension().is_some_and(|extension| extension == "mjs")
}

/// Where cargo builds, and the clients below it.
fn directory() -> PathBuf {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target).join("test-clients")
}
