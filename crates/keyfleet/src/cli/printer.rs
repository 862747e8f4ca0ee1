//! The one place that writes to the terminal. Data goes to stdout; progress, notes and errors go to
//! stderr. Colour and redrawing only where the stream is a terminal that wants them.

use std::io::{self, ErrorKind, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use super::text::{Style, cut};
use crate::errors::{Failure, Problem};

/// The widest that anything is drawn.
pub const WIDTH_MAX: usize = 100;

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// The shape of what a reading command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    /// Style of stdout.
    pub style: Style,
    /// Style of stderr.
    pub error_style: Style,
    /// stdout is a terminal.
    pub interactive: bool,
    /// stderr is a terminal that can be redrawn.
    pub live: bool,
    /// Only what must be said.
    pub quiet: bool,
}

impl Printer {
    pub fn new(choice: ColorChoice, quiet: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let color = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !dumb && !set("NO_COLOR"),
        };
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            style: Style { color: color(out) },
            error_style: Style { color: color(err) },
            interactive: out,
            live: err && !dumb,
            quiet,
        }
    }

    /// Data, on stdout.
    pub fn data(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
    }

    /// A JSON document, on stdout.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = if self.interactive {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        let text = text.map_err(|error| {
            Failure::environment("cannot write the answer as JSON").because(&error)
        })?;
        self.data(&format!("{text}\n"))
    }

    /// What is good to know, a line on stderr. Nothing with `--quiet`.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.urgent(text);
        }
    }

    /// What must be seen also with `--quiet`: questions, warnings.
    pub fn urgent(&self, text: &str) {
        // When stderr is gone there is nobody left to tell.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// A question on stderr and the line answered on stdin; None at its end.
    pub fn ask(&self, question: &str) -> Option<String> {
        let _ = write!(io::stderr().lock(), "{question} ");
        let mut line = String::new();
        match io::stdin().read_line(&mut line) {
            Ok(read) if read > 0 => Some(line.trim().to_owned()),
            _ => None,
        }
    }

    /// A failure, on stderr.
    pub fn failure(&self, failure: &Failure) {
        let text = failure.render(self.error_style, error_width());
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// What is probably not meant, on stderr.
    pub fn warning(&self, problem: &Problem) {
        let text = problem.render_warning(self.error_style, error_width());
        self.note(text.trim_end());
    }

    /// Draws a whole screen anew on stdout, the cursor staying on it.
    pub fn screen(&self, text: &str) -> Result<(), Failure> {
        let (width, height) = terminal_size();
        let mut out = String::from("\x1b[?2026h\x1b[H");
        for line in text.lines().take(height.saturating_sub(1)) {
            out.push_str(&cut(line, width));
            out.push_str("\x1b[K\n");
        }
        out.push_str("\x1b[J\x1b[?2026l");
        self.data(&out)
    }

    /// A few lines at the bottom of stderr that are drawn anew as things go on.
    pub const fn live(&self) -> Live {
        Live { drawn: 0, enabled: self.live && !self.quiet }
    }
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::reader_gone(),
        _ => Failure::environment("cannot write to stdout").because(&error),
    })
}

/// Columns and lines of the terminal; 100 by 40 where there is none.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout())
        .or_else(|_| rustix::termios::tcgetwinsize(io::stderr()));
    match size {
        Ok(size) if size.ws_col > 0 => (usize::from(size.ws_col), usize::from(size.ws_row)),
        _ => (WIDTH_MAX, 40),
    }
}

fn error_width() -> usize {
    terminal_size().0.clamp(40, WIDTH_MAX)
}

/// See [`Printer::live`]. Where stderr is no terminal it draws nothing.
#[derive(Debug)]
pub struct Live {
    drawn: usize,
    enabled: bool,
}

impl Live {
    /// Draws the picture over the last one. `above` scrolls away for good.
    pub fn draw(&mut self, above: &[String], picture: &[String]) {
        if !self.enabled {
            return;
        }
        let (width, height) = terminal_size();
        let mut out = String::from("\x1b[?2026h");
        if self.drawn > 0 {
            out.push_str(&format!("\r\x1b[{}A", self.drawn));
        }
        out.push_str("\x1b[J");
        let picture: Vec<&String> = picture.iter().take(height.saturating_sub(1)).collect();
        for line in above.iter().chain(picture.iter().copied()) {
            out.push_str(&cut(line, width.min(WIDTH_MAX)));
            out.push('\n');
        }
        out.push_str("\x1b[?2026l");
        self.drawn = picture.len();
        let _ = io::stderr().lock().write_all(out.as_bytes());
    }

    /// Takes the picture away.
    pub fn clear(&mut self) {
        if self.drawn > 0 {
            self.draw(&[], &[]);
        }
    }

    /// Is anything drawn at all?
    pub const fn enabled(&self) -> bool {
        self.enabled
    }
}
