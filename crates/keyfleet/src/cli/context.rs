//! What every command starts from: the printer, the fleet's file, the state directory beside it.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet::{
    model::{ClusterName, Fleet},
    spec::{self, Parsed, SpecError},
};

use super::{printer::Printer, text::nearest};
use crate::{
    engines::{self, EngineBinary},
    errors::{Failure, Place, Problem},
    store::Store,
};

/// The file that is read where none is named.
pub const DEFAULT_FILE: &str = "fleet.yaml";

/// See the module.
#[derive(Debug)]
pub struct Context {
    pub printer: Printer,
    /// As the user gave it.
    pub file: Option<PathBuf>,
}

/// A fleet's file that is sound, and the state directory beside it.
#[derive(Debug)]
pub struct Loaded {
    pub fleet: Fleet,
    pub store: Arc<Store>,
    pub text: String,
    parsed: Parsed,
}

impl Context {
    /// The fleet's file, whether it exists or not.
    pub fn file(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }

    /// This program's command line for another command on the same fleet, to show to the user.
    pub fn command(&self, words: &str) -> String {
        match &self.file {
            None => format!("keyfleet {words}"),
            Some(file) => format!("keyfleet --file {} {words}", file.display()),
        }
    }

    /// The state directory beside the fleet's file.
    pub fn store(&self) -> Result<Arc<Store>, Failure> {
        Ok(Arc::new(Store::beside(self.file())?))
    }

    /// Reads the fleet's file, or takes the built-in fleet where there is none and says so.
    pub fn load(&self) -> Result<Loaded, Failure> {
        let path = self.file();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound && self.file.is_none() => {
                self.printer.note(
                    "No fleet.yaml here: using the built-in one, 3 shards with 1 replica each. \
                     For one of your own: keyfleet init",
                );
                spec::BUILT_IN.to_owned()
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let shown = path.display();
                return Err(Failure::user(format!("there is no {shown}"))
                    .hint(format!("write a starter: keyfleet init --file {shown}")));
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(Failure::user(format!("{} is not UTF-8 text", path.display()))
                    .hint(format!("see what it is: file {}", path.display())));
            }
            Err(error) => return Err(Failure::file("read", path, &error)),
        };
        let store = self.store()?;
        let shown = path.display().to_string();
        let machine = spec::Machine { addresses: addresses() };
        let parsed = spec::parse(&text, &shown, &machine).map_err(|errors| {
            Failure::user_all(errors.0.iter().map(|error| problem(error, &text)).collect())
        })?;
        for warning in &parsed.warnings {
            self.printer.warning(&problem(warning, &text));
        }
        let mut fleet = parsed.fleet.clone();
        for cluster in fleet.clusters.values_mut() {
            cluster.stopped = store.is_stopped(&cluster.name);
        }
        Ok(Loaded { fleet, store, text, parsed })
    }
}

/// This machine's addresses, as the kernel's tables have them.
fn addresses() -> Vec<IpAddr> {
    let v4 = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses = local_v4(&v4);
    addresses.extend(v6.lines().filter_map(|line| {
        let digits = u128::from_str_radix(line.get(..32)?, 16).ok()?;
        Some(IpAddr::V6(digits.into()))
    }));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The addresses of `|-- 10.0.0.1` lines that a `/32 host LOCAL` line follows.
fn local_v4(fib_trie: &str) -> Vec<IpAddr> {
    let lines: Vec<&str> = fib_trie.lines().map(str::trim).collect();
    let pairs = lines.windows(2).filter(|pair| pair[1] == "/32 host LOCAL");
    pairs.filter_map(|pair| pair[0].strip_prefix("|-- ")?.parse().ok()).collect()
}

/// A spec's error with the line that it is about.
fn problem(error: &SpecError, text: &str) -> Problem {
    let line = text.lines().nth(error.line.saturating_sub(1)).unwrap_or_default();
    Problem {
        message: error.message.clone(),
        place: Some(Place {
            file: error.file.clone(),
            line: error.line,
            column: error.column,
            length: error.width,
            text: line.to_owned(),
        }),
        causes: Vec::new(),
        hint: error.hint.clone(),
    }
}

impl Loaded {
    /// The spec's clusters of these names, all where none is named.
    pub fn clusters(&self, names: &[String]) -> Result<Vec<ClusterName>, Failure> {
        let known: Vec<ClusterName> = self.fleet.clusters.keys().cloned().collect();
        choose(names, known)
    }

    /// The server program of each cluster, looked for or fetched; directives that it doesn't know
    /// are errors.
    pub async fn engines(
        &self,
        clusters: &[ClusterName],
        printer: Printer,
    ) -> Result<BTreeMap<ClusterName, EngineBinary>, Failure> {
        let cache = engines::default_cache().ok_or_else(|| {
            Failure::environment("no directory to keep engines in: HOME is not set")
                .hint("export HOME=/some/directory")
        })?;
        let mut found = BTreeMap::new();
        let mut problems = Vec::new();
        for name in clusters {
            let Some(cluster) = self.fleet.clusters.get(name) else { continue };
            if engines::present(&cluster.engine, &cache).await.is_none() {
                printer.note(&format!(
                    "{name}: {} is not on this machine; fetching it from the distribution's \
                     packages",
                    cluster.engine
                ));
            }
            let engine = engines::find(&cluster.engine, &cache)
                .await
                .map_err(|error| Failure::of(&error).hint(error.hint()))?;
            let unknown = self.parsed.unknown_directives(name, engine.engine);
            problems.extend(unknown.iter().map(|error| problem(error, &self.text)));
            found.insert(name.clone(), engine);
        }
        if problems.is_empty() { Ok(found) } else { Err(Failure::user_all(problems)) }
    }
}

/// The known names that are asked for, all where none is; the nearest is named for a wrong one.
pub fn choose(names: &[String], known: Vec<ClusterName>) -> Result<Vec<ClusterName>, Failure> {
    if names.is_empty() {
        return Ok(known);
    }
    let mut chosen = Vec::new();
    let mut problems = Vec::new();
    for name in names {
        match known.iter().find(|known| known.as_str() == name) {
            Some(found) if chosen.contains(found) => {}
            Some(found) => chosen.push(found.clone()),
            None => problems.push(unknown("cluster", name, known.iter().map(ClusterName::as_str))),
        }
    }
    if problems.is_empty() { Ok(chosen) } else { Err(Failure::user_all(problems)) }
}

/// A name that isn't there, with the nearest that is, or all of a few.
pub fn unknown<'a>(
    kind: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Problem {
    let problem = Problem::new(format!("there is no {kind} {name:?}"));
    if let Some(nearest) = nearest(name, known.clone()) {
        return problem.hint(format!("did you mean {nearest:?}?"));
    }
    let all: Vec<&str> = known.take(8).collect();
    if all.is_empty() { problem } else { problem.hint(format!("there is {}", all.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_kernel() {
        let text = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     \
                    |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.2\n        /32 host LOCAL\n";
        let expected: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        assert_eq!(local_v4(text), expected);
    }

    #[test]
    fn names_are_chosen_or_the_nearest_is_named() {
        let known = || ["cache", "sessions"].map(ClusterName::new).to_vec();
        let check = |names: &[&str], expected: Result<&[&str], &str>| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let chosen = choose(&names, known());
            match (&chosen, expected) {
                (Ok(chosen), Ok(expected)) => {
                    assert_eq!(
                        chosen.iter().map(ClusterName::as_str).collect::<Vec<_>>(),
                        expected
                    );
                }
                (Err(failure), Err(expected)) => {
                    assert_eq!(failure.problems[0].hint.as_deref(), Some(expected));
                }
                _ => panic!("{names:?}: {chosen:?}"),
            }
        };
        check(&[], Ok(&["cache", "sessions"]));
        check(&["sessions", "sessions"], Ok(&["sessions"]));
        check(&["cahce"], Err("did you mean \"cache\"?"));
        check(&["queue"], Err("there is cache, sessions"));
    }
}
