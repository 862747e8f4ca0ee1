//! What goes wrong, as the user sees it: one type that every command ends in, and its one renderer.
//!
//! ```text
//! error: unknown key `shard`
//!   --> fleet.yaml:4:5
//!    |
//!  4 |     shard: 3
//!    |     ^^^^^
//! cause: why, as far as it is known
//! hint: did you mean `shards`?
//! ```

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::Path,
};

use crate::{
    cli::text::{Style, columns, safe, wrap},
    store::StoreError,
};

/// An error with its causes, on one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// Where a command ended other than well: problems to show and the code to exit with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    pub problems: Vec<Problem>,
}

/// The program's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The user's input is wrong, or what was wanted is blocked.
    User = 1,
    /// keyfleet's own fault or the machine's.
    Environment = 2,
    /// `plan --exit-code` found changes.
    Changes = 3,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    pub place: Option<Place>,
    /// What led to it, outermost first.
    pub causes: Vec<String>,
    /// The command or change that mends it.
    pub hint: Option<String>,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How many characters are marked; at least one is.
    pub length: usize,
    /// The whole line.
    pub text: String,
}

impl Problem {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: None, causes: Vec::new(), hint: None }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl Failure {
    /// The user's input is wrong, or what was wanted is blocked.
    pub fn user(message: impl Into<String>) -> Self {
        Self { exit: Exit::User, problems: vec![Problem::new(message)] }
    }

    /// The machine doesn't do what is needed, or keyfleet has a bug.
    pub fn environment(message: impl Into<String>) -> Self {
        Self { exit: Exit::Environment, problems: vec![Problem::new(message)] }
    }

    /// Several things wrong with the user's input.
    pub fn user_all(problems: Vec<Problem>) -> Self {
        Self { exit: Exit::User, problems }
    }

    /// Who reads our output went away: nothing to say, and no error.
    pub const fn reader_gone() -> Self {
        Self { exit: Exit::Done, problems: Vec::new() }
    }

    /// The machine's fault, in the error's own words, with what led to it.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let failure = Self::environment(error.to_string());
        match error.source() {
            Some(source) => failure.because(source),
            None => failure,
        }
    }

    /// What couldn't be done to a file or directory, with the fitting hint and exit code.
    pub fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        let shown = path.display();
        let mut failure = Self::environment(format!("cannot {what} {shown}")).because(error);
        if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) {
            failure.exit = Exit::User;
        }
        match file_hint(error.kind()) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Adds the error that led to it, with its own sources.
    pub fn because(mut self, error: &(dyn Error + 'static)) -> Self {
        let mut next = Some(error);
        if let Some(problem) = self.problems.last_mut() {
            while let Some(error) = next {
                let text = error.to_string();
                // Wrappers that only repeat their source would say everything twice.
                let last = problem.causes.last().unwrap_or(&problem.message);
                if !last.contains(&text) {
                    problem.causes.push(text);
                }
                next = error.source();
            }
        }
        self
    }

    /// Adds the command or change that mends it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.hint = Some(hint.into());
        }
        self
    }

    /// The text for a terminal of `width` columns; empty where there is nothing to say.
    pub fn render(&self, style: Style, width: usize) -> String {
        let shown: Vec<String> =
            self.problems.iter().map(|problem| problem.render(style, width)).collect();
        let mut out = shown.join("\n");
        if self.problems.len() > 1 {
            let total = format!("{} errors", self.problems.len());
            out.push_str(&format!("\n{}\n", style.bold_red(&total)));
        }
        out
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = error.source().and_then(|source| source.downcast_ref()).map(io::Error::kind);
        let mut failure = Self::of(&error);
        if matches!(kind, Some(ErrorKind::NotFound | ErrorKind::PermissionDenied)) {
            failure.exit = Exit::User;
        }
        match kind.and_then(file_hint) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// What to do about a file that can't be used.
const fn file_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::PermissionDenied => {
            Some("see who may use it (ls -ld), and run keyfleet as that user")
        }
        ErrorKind::ReadOnlyFilesystem => {
            Some("the file system is read-only: run keyfleet in a directory that can be written")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("the disk is full: free some space (df -h .)")
        }
        ErrorKind::NotFound => Some("check the path: a directory of it is missing"),
        _ => None,
    }
}

impl Problem {
    /// The problem as a warning.
    pub fn render_warning(&self, style: Style, width: usize) -> String {
        self.render_as(&style.yellow("warning:"), 9, style, width)
    }

    fn render(&self, style: Style, width: usize) -> String {
        self.render_as(&style.bold_red("error:"), 7, style, width)
    }

    fn render_as(&self, label: &str, indent: usize, style: Style, width: usize) -> String {
        let line = |label: &str, indent: usize, text: &str| {
            format!("{label} {}\n", wrap(&safe(text), width, indent))
        };
        let mut out = line(label, indent, &self.message);
        if let Some(place) = &self.place {
            out.push_str(&place.render(style, width));
        }
        for cause in &self.causes {
            out.push_str(&line(&style.bold("cause:"), 7, cause));
        }
        if let Some(hint) = &self.hint {
            out.push_str(&line(&style.cyan("hint:"), 6, hint));
        }
        out
    }
}

impl Place {
    fn render(&self, style: Style, width: usize) -> String {
        let number = self.line.to_string();
        let gutter = " ".repeat(number.len() + 2);
        let rule = style.dim("|");
        // A long line is shown from near the marked place on.
        let room = width.saturating_sub(gutter.len() + 2).max(20);
        let from = self.column.saturating_sub(1).saturating_sub(room / 2);
        let from = if columns(&self.text) <= room { 0 } else { from };
        let shown: String = safe(&self.text).chars().skip(from).take(room).collect();
        let before: String = shown.chars().take(self.column.saturating_sub(1 + from)).collect();
        let marked: String =
            shown.chars().skip(before.chars().count()).take(self.length.max(1)).collect();
        let marks = "^".repeat(columns(&marked).max(1));
        format!(
            "{} {}:{}:{}\n{gutter}{rule}\n {} {rule} {shown}\n{gutter}{rule} {}{}\n",
            style.dim(&format!("{}-->", &gutter[1..])),
            self.file,
            self.line,
            self.column,
            style.dim(&number),
            " ".repeat(columns(&before)),
            style.bold_red(&marks),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, column: usize, length: usize) -> Place {
        Place { file: "fleet.yaml".to_owned(), line: 12, column, length, text: text.to_owned() }
    }

    fn check(failure: &Failure, expected: &str) {
        assert_eq!(failure.render(Style::PLAIN, 60), expected);
    }

    #[test]
    fn a_place_is_shown_and_marked() {
        let mut problem = Problem::new("unknown key `shard`").hint("did you mean `shards`?");
        problem.place = Some(place("    shard: 3", 5, 5));
        check(
            &Failure::user_all(vec![problem]),
            "error: unknown key `shard`\n   --> fleet.yaml:12:5\n    |\n 12 |     shard: 3\n    |     ^^^^^\nhint: did you mean `shards`?\n",
        );
    }

    #[test]
    fn wide_characters_and_control_characters_keep_the_mark_in_place() {
        let rendered = place("名: \x1b[2J x", 10, 1).render(Style::PLAIN, 60);
        assert_eq!(
            rendered,
            "   --> fleet.yaml:12:10\n    |\n 12 | 名: ·[2J x\n    |           ^\n"
        );
    }

    #[test]
    fn long_lines_are_shown_around_the_place() {
        let text = format!("{}HERE{}", "a".repeat(300), "b".repeat(300));
        let rendered = place(&text, 301, 4).render(Style::PLAIN, 60);
        assert!(rendered.contains("HERE"), "{rendered}");
        assert!(rendered.lines().all(|line| columns(line) <= 60), "{rendered}");
    }

    #[test]
    fn causes_are_not_said_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer: {0}")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        let failure = Failure::environment("cannot start cache-1").because(&error);
        check(&failure, "error: cannot start cache-1\ncause: outer: disk on fire\n");
        check(&Failure::of(&error), "error: outer: disk on fire\n");
    }

    #[test]
    fn several_problems_are_counted() {
        let failure = Failure::user_all(vec![Problem::new("one"), Problem::new("two")]);
        check(&failure, "error: one\n\nerror: two\n\n2 errors\n");
    }

    #[test]
    fn a_gone_reader_is_no_error() {
        assert_eq!(Failure::reader_gone().render(Style::PLAIN, 80), "");
        assert_eq!(Failure::reader_gone().exit, Exit::Done);
    }
}
