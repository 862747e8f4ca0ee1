//! What every command starts from: the printer, the fleet's file, the state directory beside it.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet::{
    model::{ClusterName, Fleet},
    spec::SpecError,
};

use super::{printer::Printer, text::nearest};
use crate::{
    engines,
    errors::{Failure, Place, Problem},
    execute,
    session::{Session, SessionError},
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
    pub fn open(&self) -> Result<Session, Failure> {
        let session = Session::open(self.file(), self.file.is_some())?;
        if session.built_in {
            self.printer.note(
                "No fleet.yaml here: using the built-in one, 3 shards with 1 replica each. \
                 For one of your own: keyfleet init",
            );
        }
        for warning in &session.warnings {
            self.printer.warning(&problem(warning, &session.text));
        }
        Ok(session)
    }

    /// What steps are done with. Says so before it fetches an engine.
    pub async fn tools(&self, session: &Session) -> Result<execute::Context, Failure> {
        for (name, cluster) in &session.fleet.clusters {
            let Some(cache) = engines::default_cache() else { continue };
            if engines::present(&cluster.engine, &cache).await.is_none() {
                self.printer.note(&format!(
                    "{name} runs {}, which is not on this machine: fetching it from the \
                     distribution's packages",
                    cluster.engine
                ));
            }
        }
        Ok(session.context().await?)
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Spec { text, errors } => {
                Self::user_all(errors.0.iter().map(|error| problem(error, &text)).collect())
            }
            SessionError::Read { path, source } => {
                let shown = path.display();
                match source.kind() {
                    ErrorKind::NotFound => Self::user(format!("there is no {shown}"))
                        .hint(format!("write a starter: keyfleet init --file {shown}")),
                    ErrorKind::InvalidData => Self::user(format!("{shown} is not UTF-8 text"))
                        .hint(format!("see what it is: file {shown}")),
                    _ => Self::file("read", &path, &source),
                }
            }
            SessionError::Engine { cluster, source } => {
                let hint = source.hint().to_owned();
                let mut failure = Self::of(&source).hint(hint);
                for problem in &mut failure.problems {
                    problem.message = format!("{cluster}: {}", problem.message);
                }
                failure
            }
            SessionError::NoCache => Self::of(&error).hint("export HOME=/some/directory"),
            SessionError::Store(error) => error.into(),
        }
    }
}

/// A spec's error with the line that it is about.
pub(super) fn problem(error: &SpecError, text: &str) -> Problem {
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

/// The spec's clusters of these names, all where none is named.
pub fn clusters(fleet: &Fleet, names: &[String]) -> Result<Vec<ClusterName>, Failure> {
    choose(names, fleet.clusters.keys().cloned().collect())
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
