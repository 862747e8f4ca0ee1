//! The client libraries that `cargo xtask clients` has installed, each with a program of checks in
//! tests/clients that says `ok` after each of its idioms that worked.
//!
//! Go's are those that Debian 12 packages: go-redis 5, of 2017, and redigo 1.8. Libraries of today come
//! from Go's module proxy, which not every machine that runs the tests can reach.

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
/// Where Debian has the sources of Go's libraries.
const GO_PATH: &str = "/usr/share/gocode";

/// Runs a program of tests/clients against an address and returns how many of its checks passed;
/// an error holds what it printed where one of them failed.
pub async fn run(program: &str, address: SocketAddr, args: &[&str]) -> Result<usize> {
    let installed = directory();
    ensure!(installed.join("installed").is_file(), "no client libraries: run `cargo xtask test`");
    let scripts = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients");
    let mut command = match extension(program) {
        Some("mjs") => javascript(program, &scripts, &installed)?,
        Some("go") => go(program, &scripts, &installed).await?,
        _ => {
            let mut interpreter = Command::new(installed.join("python/bin/python"));
            interpreter.arg("-B").arg(scripts.join(program));
            interpreter
        }
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

fn extension(path: impl AsRef<Path>) -> Option<&'static str> {
    let extension = path.as_ref().extension()?;
    ["mjs", "go"].into_iter().find(|known| extension == *known)
}

fn javascript(program: &str, scripts: &Path, installed: &Path) -> Result<Command> {
    // A module finds others beside itself only.
    for script in fs::read_dir(scripts)? {
        let script = script?.path();
        if extension(&script) == Some("mjs") {
            let name = script.file_name().context("no name")?;
            let copy = installed.join("node").join(format!(".{}", std::process::id()));
            fs::copy(&script, &copy)?;
            fs::rename(&copy, installed.join("node").join(name))?;
        }
    }
    let mut command = Command::new(node());
    command.arg(installed.join("node").join(program));
    Ok(command)
}

/// What runs JavaScript.
pub(crate) fn node() -> PathBuf {
    let own = directory().join("python/bin/node");
    if own.exists() { own } else { "node".into() }
}

/// The modules of Node.js that are installed.
pub(crate) fn node_modules() -> PathBuf {
    directory().join("node/node_modules")
}

/// Builds the program; what didn't change is not built again.
async fn go(program: &str, scripts: &Path, installed: &Path) -> Result<Command> {
    let directory = installed.join("go");
    let built = directory.join(format!("{program}.{}", std::process::id()));
    let mut build = Command::new("go");
    build.args(["build", "-o"]).arg(&built).args([program, "checks.go"]).current_dir(scripts);
    build.env("GO111MODULE", "off").env("GOPATH", GO_PATH).env("GOCACHE", directory.join("cache"));
    let output =
        timeout(TIME_MAX, build.kill_on_drop(true).output()).await.context("go build")??;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let ready = directory.join(program);
    fs::rename(&built, &ready)?;
    Ok(Command::new(ready))
}

/// Where cargo builds, and the clients below it.
fn directory() -> PathBuf {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace.join(target).join("test-clients")
}
