//! What is wrong with a spec, and where.

use std::fmt;

use super::{read::Place, tree::Mark};

/// One thing that is wrong with a spec (or, as a warning, probably not meant).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct SpecError {
    /// The file's name as given to [`super::parse`].
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How many characters of the line it is about; at least 1.
    pub width: usize,
    /// The keys that lead there: `clusters.cache.shards`; empty for the file as a whole.
    pub path: String,
    pub message: String,
    /// What mends it.
    pub hint: Option<String>,
}

impl SpecError {
    pub(super) fn at(file: &str, place: &Place, message: String) -> Self {
        let Mark { line, column, width } = place.mark;
        let (file, path) = (file.to_owned(), place.path.clone());
        Self { file, line, column, width, path, message, hint: None }
    }

    /// Say what mends it.
    pub(super) fn hint(&mut self, hint: impl Into<String>) {
        self.hint = Some(hint.into());
    }
}

/// Everything that is wrong with a spec, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(pub Vec<SpecError>);

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}
