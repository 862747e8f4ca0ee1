//! Engines from the packages of Debian and its relatives, unpacked beside the system instead of
//! installed into it: `apt-get download` needs no root, and checks signatures as ever.
//!
//! Only what this machine lacks is unpacked: the server, its tools, and those libraries that an
//! installation would bring along. apt's own solver says which (`apt-get --simulate install`).

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet::model::EngineWant;
use protocol::{Engine, EngineKind, Version};
use tokio::process::Command;

use super::{
    EngineBinary,
    command::{self, CommandError},
    library::{self, Writer},
    search,
};

const QUERY_DEADLINE: Duration = Duration::from_secs(30);
const UPDATE_DEADLINE: Duration = Duration::from_secs(180);
const DOWNLOAD_DEADLINE: Duration = Duration::from_secs(300);
const UNPACK_DEADLINE: Duration = Duration::from_secs(60);

/// The distribution's packages did not give an engine.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    #[error("this machine has no apt-get and dpkg to unpack packages with")]
    NoApt,
    #[error("its package sources have no {0}")]
    NoPackage(String),
    #[error("its package sources have {package} only in other versions")]
    NoSuchVersion { package: String, available: Vec<Engine> },
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("{package} was unpacked but {reason}")]
    Broken { package: String, reason: String },
    #[error("cannot write to {path}")]
    Cache { path: PathBuf, source: io::Error },
}

/// Unpacks the wanted engine into the cache. Does nothing where the cache has it by the time
/// that its lock is ours.
pub async fn provision(
    want: &EngineWant,
    cache: &Path,
    path: &OsStr,
) -> Result<EngineBinary, ProvisionError> {
    let on_path = |name: &str| std::env::split_paths(path).any(|dir| dir.join(name).is_file());
    if !["apt-get", "apt-cache", "dpkg"].iter().all(|name| on_path(name)) {
        return Err(ProvisionError::NoApt);
    }
    let unwritable = |source| ProvisionError::Cache { path: cache.to_owned(), source };
    let writer = Writer::open(cache).await.map_err(unwritable)?;
    if let Some(found) = search::best(want, &library::list(cache).await) {
        return Ok(found);
    }
    let scratch = writer.scratch("scratch").map_err(unwritable)?;
    let result = unpack_from_any(want, &writer, &scratch).await;
    // What cannot be removed now is removed before the next use.
    let _ = fs::remove_dir_all(&scratch);
    result
}

/// First with the package lists that the machine has; where these are missing or too old, with
/// fresh ones of our own.
async fn unpack_from_any(
    want: &EngineWant,
    writer: &Writer,
    scratch: &Path,
) -> Result<EngineBinary, ProvisionError> {
    let with_lists = |apt: Apt| async move {
        let package = apt.choose(want).await?;
        let name = package.directory_name();
        apt.unpack(&package, &scratch.join("engine")).await?;
        let broken = |reason| ProvisionError::Broken { package: package.name(), reason };
        library::open(&scratch.join("engine")).await.map_err(broken)?;
        let entry = writer
            .publish(&scratch.join("engine"), &name)
            .map_err(|source| ProvisionError::Cache { path: scratch.to_owned(), source })?;
        library::open(&entry).await.map_err(broken)
    };
    match with_lists(Apt::system(scratch)?).await {
        Ok(binary) => Ok(binary),
        Err(first) => {
            tracing::info!(reason = %first, "fetching fresh package lists");
            let fresh = async { with_lists(Apt::fresh(scratch).await?).await };
            match (first, fresh.await) {
                // Offline: what the old lists say is the better answer.
                (known @ ProvisionError::NoSuchVersion { .. }, Err(ProvisionError::Command(_))) => {
                    Err(known)
                }
                (_, result) => result,
            }
        }
    }
}

/// A server package in one version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Package {
    kind: EngineKind,
    /// As apt writes it: `5:7.0.15-1~deb12u10`.
    version: String,
    /// The engine's version in it.
    upstream: Version,
}

impl Package {
    fn engine(&self) -> Engine {
        Engine { kind: self.kind, version: self.upstream }
    }

    fn name(&self) -> String {
        format!("{}-server", self.kind)
    }

    fn directory_name(&self) -> String {
        let (_, version) = self.version.split_once(':').unwrap_or(("", &self.version));
        format!("{}-{version}", self.kind)
    }
}

/// apt with one set of package lists, working in a directory of its own.
#[derive(Debug)]
struct Apt {
    /// Options that every call gets.
    options: Vec<String>,
    directory: PathBuf,
}

impl Apt {
    /// With the machine's own package lists.
    fn system(scratch: &Path) -> Result<Self, ProvisionError> {
        Self::working_in(scratch, "system", Vec::new())
    }

    /// With lists fetched now from the machine's own sources, kept apart from its own lists.
    async fn fresh(scratch: &Path) -> Result<Self, ProvisionError> {
        let lists = scratch.join("lists");
        let archives = scratch.join("archives");
        let options = vec![
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache={}", archives.display()),
        ];
        let apt = Self::working_in(scratch, "fresh", options)?;
        make_directory(&lists.join("partial"))?;
        make_directory(&archives.join("archives").join("partial"))?;
        // The system's hooks after an update are for the system's lists.
        let no_hooks = scratch.join("no-hooks.conf");
        let clear = "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n";
        fs::write(&no_hooks, clear)
            .map_err(|source| ProvisionError::Cache { path: no_hooks.clone(), source })?;
        let mut update = apt.call("apt-get");
        update.arg("--config-file").arg(&no_hooks).arg("update");
        command::output(&mut update, UPDATE_DEADLINE).await?;
        Ok(apt)
    }

    fn working_in(
        scratch: &Path,
        name: &str,
        options: Vec<String>,
    ) -> Result<Self, ProvisionError> {
        let directory = scratch.join(name);
        make_directory(&directory)?;
        Ok(Self { options, directory })
    }

    fn call(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// The best package for what is wanted: redis before valkey before keydb, then the highest
    /// version.
    async fn choose(&self, want: &EngineWant) -> Result<Package, ProvisionError> {
        let mut others = Vec::new();
        let kinds: Vec<EngineKind> = want.kind.map_or(search::KINDS.to_vec(), |kind| vec![kind]);
        for kind in &kinds {
            let mut ask = self.call("apt-cache");
            ask.args(["madison", &format!("{kind}-server")]);
            let packages = parse_madison(*kind, &command::output(&mut ask, QUERY_DEADLINE).await?);
            let allowed = |package: &&Package| want.matches(&package.engine());
            // Of packages with the same engine version, the first is what apt prefers.
            if let Some(package) = packages.iter().filter(allowed).rev().max_by_key(|p| p.upstream)
            {
                return Ok(package.clone());
            }
            others.extend(packages);
        }
        let names: Vec<String> = kinds.iter().map(|kind| format!("{kind}-server")).collect();
        let package = names.join(" or ");
        if others.is_empty() {
            return Err(ProvisionError::NoPackage(package));
        }
        let mut available: Vec<Engine> = others.iter().map(Package::engine).collect();
        available.sort_unstable();
        available.dedup();
        Err(ProvisionError::NoSuchVersion { package, available })
    }

    /// Downloads the package with what it needs and this machine lacks, and arranges it as
    /// `bin` and `lib` in a new directory.
    async fn unpack(&self, package: &Package, into: &Path) -> Result<(), ProvisionError> {
        let parts = [
            format!("{}-server={}", package.kind, package.version),
            format!("{}-tools={}", package.kind, package.version),
        ];
        let mut simulate = self.call("apt-get");
        simulate
            .args(["--simulate", "--yes", "--no-install-recommends", "--allow-downgrades"])
            .arg("install")
            .args(&parts);
        let solution = command::output(&mut simulate, QUERY_DEADLINE).await?;
        let libraries = parse_libraries(&solution);

        tracing::info!(package = package.name(), version = package.version, "downloading");
        let mut download = self.call("apt-get");
        download.args(["--quiet", "download"]).args(&parts).args(&libraries);
        command::output(&mut download, DOWNLOAD_DEADLINE).await?;

        let root = self.directory.join("root");
        for archive in files_in(&self.directory)?.iter().filter(|path| has_extension(path, "deb")) {
            let mut unpack = Command::new("dpkg");
            unpack.arg("--extract").arg(archive).arg(&root);
            command::output(&mut unpack, UNPACK_DEADLINE).await?;
        }
        arrange(&root, into)
    }
}

/// `redis-server | 5:7.0.15-1~deb12u7 | http://… bookworm/main amd64 Packages`, a line for each
/// version and source. Lines that say otherwise are no packages.
fn parse_madison(kind: EngineKind, text: &str) -> Vec<Package> {
    let parse = |line: &str| {
        let mut fields = line.split('|').map(str::trim);
        let (name, version, source) = (fields.next()?, fields.next()?, fields.next()?);
        if name != format!("{kind}-server") || !source.ends_with(" Packages") {
            return None;
        }
        let (_, upstream) = version.split_once(':').unwrap_or(("", version));
        Some(Package { kind, version: version.to_owned(), upstream: upstream.parse().ok()? })
    };
    text.lines().filter_map(parse).collect()
}

/// The libraries that the solver would install, as `name=version`:
/// `Inst liblzf1 (3.6-3 Debian:12.0/stable [amd64])`. The C library is left out: a program
/// cannot have another one than its loader's.
fn parse_libraries(solution: &str) -> Vec<String> {
    let parse = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let (_, rest) = rest.split_once('(')?;
        let version = rest.split([' ', ')']).next()?;
        let library = name.starts_with("lib") || name.starts_with("zlib");
        (library && !name.starts_with("libc6")).then(|| format!("{name}={version}"))
    };
    solution.lines().filter_map(parse).collect()
}

/// Moves the programs of an unpacked file tree into `bin` and its shared libraries into `lib`.
fn arrange(root: &Path, into: &Path) -> Result<(), ProvisionError> {
    let (programs, libraries) = (into.join("bin"), into.join("lib"));
    make_directory(&programs)?;
    for file in files_in(&root.join("usr/bin"))? {
        move_into(&file, &programs)?;
    }
    // Debian keeps libraries in a directory named after the architecture, below either of these.
    for directory in ["usr/lib", "lib"].map(|name| root.join(name)) {
        for directory in entries(&directory)?.into_iter().filter(|path| path.is_dir()) {
            for file in files_in(&directory)?.iter().filter(|path| is_shared_library(path)) {
                make_directory(&libraries)?;
                move_into(file, &libraries)?;
            }
        }
    }
    Ok(())
}

/// Like `libssl.so.3` or `libhiredis.so.1.1.0`.
fn is_shared_library(path: &Path) -> bool {
    let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
    name.starts_with("lib") && (name.ends_with(".so") || name.contains(".so."))
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn move_into(file: &Path, directory: &Path) -> Result<(), ProvisionError> {
    let target = directory.join(file.file_name().unwrap_or_default());
    fs::rename(file, &target).map_err(|source| ProvisionError::Cache { path: target, source })
}

fn make_directory(path: &Path) -> Result<(), ProvisionError> {
    let failed = |source| ProvisionError::Cache { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)
}

/// Files and links, not directories; none where the directory does not exist.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, ProvisionError> {
    Ok(entries(directory)?.into_iter().filter(|path| !path.is_dir()).collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, ProvisionError> {
    let failed = |source| ProvisionError::Cache { path: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Ok(entries) => {
            entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_apt_offers() {
        let text = "\
redis-server | 5:7.0.15-1~deb12u10 | http://host/debian-security bookworm-security/main amd64 Packages
redis-server | 5:6.0.16+really-1 | http://host/debian bullseye/main amd64 Packages
     redis | 5:7.0.15-1~deb12u7 | http://host/debian bookworm/main Sources
redis-server | 5:7.0.15-1~deb12u7 | http://host/debian bookworm/main Sources
redis-server | nonsense | http://host/debian bookworm/main amd64 Packages
N: a note
";
        let found = parse_madison(EngineKind::Redis, text);
        let names: Vec<String> = found.iter().map(Package::directory_name).collect();
        assert_eq!(names, ["redis-7.0.15-1~deb12u10", "redis-6.0.16+really-1"]);
        let engines: Vec<String> = found.iter().map(|p| p.engine().to_string()).collect();
        assert_eq!(engines, ["redis 7.0.15", "redis 6.0.16"]);
        assert_eq!(parse_madison(EngineKind::Valkey, text), []);
    }

    #[test]
    fn libraries_that_are_missing() {
        let text = "\
Inst libjemalloc2 (5.3.0-1 Debian:12.0/stable [amd64])
Inst libssl3 [3.0.1-1] (3.0.16-1~deb12u1 Debian:12.11/stable [amd64]) []
Inst libc6 [2.35] (2.36-9 Debian:12.0/stable [amd64])
Inst zlib1g (1:1.2.13.dfsg-1)
Inst adduser (3.134 Debian:12.0/stable [all])
Inst redis-server (5:7.0.15-1 Debian:12.0/stable [amd64])
Conf libjemalloc2 (5.3.0-1 Debian:12.0/stable [amd64])
";
        let expected =
            ["libjemalloc2=5.3.0-1", "libssl3=3.0.16-1~deb12u1", "zlib1g=1:1.2.13.dfsg-1"];
        assert_eq!(parse_libraries(text), expected);
    }

    #[test]
    fn shared_libraries() {
        let check = |name: &str, expected: bool| {
            assert_eq!(is_shared_library(Path::new(name)), expected, "{name}");
        };
        check("/usr/lib/x86_64-linux-gnu/libssl.so.3", true);
        check("libhiredis.so.1.1.0", true);
        check("libc.so", true);
        check("libc.a", false);
        check("os-release", false);
    }
}
