//! What is wrong with a spec, and where.

use std::fmt::{self, Write as _};

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

    /// The error with the line it is about, for a terminal without colours:
    ///
    /// ```text
    /// error: unknown key "shard"
    ///   --> fleet.yaml:3:5 (clusters.cache.shard)
    ///    |
    ///  3 |     shard: 3
    ///    |     ^^^^^
    /// hint: did you mean "shards"?
    /// ```
    ///
    /// `text` is the text that was parsed; `kind` is `error` or `warning`.
    pub fn render(&self, text: &str, kind: &str) -> String {
        let mut out = format!("{kind}: {}\n", self.message);
        let number = self.line.to_string();
        let margin = " ".repeat(number.len() + 1);
        let _ = write!(out, "{margin}--> {}:{}:{}", self.file, self.line, self.column);
        if !self.path.is_empty() {
            let _ = write!(out, " ({})", self.path);
        }
        out.push('\n');
        if let Some(line) = text.lines().nth(self.line.saturating_sub(1)) {
            let before = self.column.saturating_sub(1);
            // Tabs stay tabs, so that the caret stands below what it means.
            let indent: String =
                line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let rest = line.chars().count().saturating_sub(before);
            let carets = "^".repeat(self.width.min(rest).max(1));
            let _ = writeln!(out, "{margin} |\n {number} | {line}\n{margin} | {indent}{carets}");
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(out, "hint: {hint}");
        }
        out
    }
}

/// Everything that is wrong with a spec, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecErrors(pub Vec<SpecError>);

impl SpecErrors {
    /// Every error with its line, a blank line between; see [`SpecError::render`].
    pub fn render(&self, text: &str) -> String {
        let rendered: Vec<String> =
            self.0.iter().map(|error| error.render(text, "error")).collect();
        rendered.join("\n")
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}
