//! How an import goes, and what came of it, as people see it.

use std::{
    error::Error as _,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use crate::{
    admin_client::ClientError,
    backup::{manifest::shown, storage::StorageError},
    cli::{
        printer::{Live, Output, Printer},
        text::{bar, count, pad, pad_left, plural, size, span},
    },
    errors::{Exit, Failure},
    mover::{
        import::{
            ImportError, Phase, Watch,
            report::{Report, Troubles},
            source::SourceError,
            state::StateError,
        },
        load::LoadError,
    },
};

pub const REDRAW: Duration = Duration::from_millis(100);

/// Between two lines where nothing can be drawn.
const LINE: Duration = Duration::from_secs(10);

/// How many troubles are shown as text.
const TROUBLES_SHOWN: usize = 20;

const BAR_WIDTH: usize = 24;

/// Draws how far an import is.
pub struct Progress {
    printer: Printer,
    live: Live,
    total: u64,
    started: Instant,
    phase: Phase,
    /// When the phase began, and how far it was then.
    since: (Instant, u64),
    said: Instant,
}

impl Progress {
    pub fn new(printer: Printer, total: u64) -> Self {
        let now = Instant::now();
        Self {
            printer,
            live: printer.live(),
            total,
            started: now,
            phase: Phase::Loading,
            since: (now, 0),
            said: now,
        }
    }

    pub fn draw(&mut self, watch: &Watch) {
        let read = watch.read.load(Ordering::Relaxed);
        if watch.phase() != self.phase {
            self.phase = watch.phase();
            self.since = (Instant::now(), 0);
        }
        if self.since.1 == 0 && read > 0 {
            // A load that goes on doesn't begin at the beginning.
            self.since = (Instant::now(), read);
        }
        let line = self.line(watch, read);
        if self.live.enabled() {
            self.live.draw(&[], &[line]);
        } else if self.said.elapsed() >= LINE {
            self.said = Instant::now();
            self.printer.note(&line);
        }
    }

    fn line(&self, watch: &Watch, read: u64) -> String {
        let style = self.printer.error_style;
        let seconds = self.since.0.elapsed().as_secs_f64().max(0.001);
        let fresh = read.saturating_sub(self.since.1);
        let rate = fresh as f64 / seconds;
        let mut parts = Vec::new();
        if let Some(share) = (read * 100).checked_div(self.total) {
            parts.push(format!("{} {:>3} %", bar(read, self.total, BAR_WIDTH), share.min(100)));
        }
        parts.push(match self.phase {
            Phase::Loading => "loading".to_owned(),
            Phase::Splitting => "writing the new nodes' files".to_owned(),
            Phase::Comparing => "comparing what was there already".to_owned(),
            Phase::Verifying => "verifying".to_owned(),
        });
        if matches!(self.phase, Phase::Loading | Phase::Splitting) {
            let keys = watch.keys.load(Ordering::Relaxed);
            let whole = self.started.elapsed().as_secs_f64().max(0.001);
            parts.push(format!("{} keys, {}/s", count(keys), count((keys as f64 / whole) as u64)));
        }
        parts.push(format!("{}/s", size(rate as u64)));
        if self.total > read && rate > 0.0 {
            let left = (self.total - read) as f64 / rate * 1000.0;
            parts.push(format!("{} left", span(left as u64)));
        }
        let line = parts.join("  ");
        match watch.waiting_for() {
            Some(why) => format!("{line}  {}", style.yellow(&format!("waiting: {why}"))),
            None => line,
        }
    }

    /// Takes the picture away.
    pub fn clear(&mut self) {
        self.live.clear();
    }
}

/// Prints the report; what it comes to.
pub fn show(printer: Printer, output: Output, report: &Report) -> Result<Exit, Failure> {
    match output {
        Output::Json => printer.json(report)?,
        Output::Text => printer.data(&text(report))?,
    }
    let troubles = &report.read.troubles;
    if troubles.is_empty() {
        return Ok(Exit::Done);
    }
    if matches!(output, Output::Text) {
        printer.urgent(&named(troubles));
    }
    Ok(Exit::User)
}

fn text(report: &Report) -> String {
    let read = &report.read;
    let mut out = String::new();
    let rows: Vec<[String; 4]> = read
        .types
        .iter()
        .map(|(name, found)| {
            let ways = [(found.repacked, "repacked"), (found.by_commands, "by commands")];
            let ways = ways.into_iter().filter(|(keys, _)| *keys > 0);
            let ways: Vec<String> =
                ways.map(|(keys, way)| format!("{} {way}", count(keys))).collect();
            [name.clone(), count(found.keys), size(found.bytes), ways.join(", ")]
        })
        .collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for [name, keys, bytes, ways] in &rows {
        let line = format!(
            "{}  {}  {}  {ways}",
            pad(name, width(0)),
            pad_left(keys, width(1)),
            pad_left(bytes, width(2))
        );
        out.push_str(&format!("{}\n", line.trim_end()));
    }
    let mut parts = Vec::new();
    let mut part = |number: u64, what: &str| {
        if number > 0 {
            parts.push(format!("{} {what}", count(number)));
        }
    };
    part(report.existing_same, "there already with the same value");
    part(report.existing - report.existing_same, "there already, left as they were");
    part(read.expired, "expired");
    part(read.filtered, "not asked for");
    part(read.commands, "commands");
    part(read.functions, "libraries of functions");
    let head = if report.dry_run {
        format!("{} would be sent", plural(read.sent(), "key"))
    } else {
        let how = match report.boot_files {
            0 => String::new(),
            files => format!(" by {}", plural(files, "boot file")),
        };
        format!("{} loaded in {}{how}", plural(report.loaded, "key"), span(report.took_ms))
    };
    let rest = if parts.is_empty() { String::new() } else { format!("; {}", parts.join(", ")) };
    out.push_str(&format!("{head}{rest}\n"));
    if let Some(replayed) = &report.replayed {
        let commands = plural(replayed.commands, "command");
        out.push_str(&format!("{commands} done again: as of {}\n", shown(replayed.at_ms)));
    }
    if let Some(verified) = &report.verified {
        let same = plural(verified.same, "key");
        out.push_str(&format!("verified: {same} same, {} different\n", count(verified.different)));
    }
    out
}

/// What could not be carried, key by key.
fn named(troubles: &Troubles) -> String {
    let mut lines =
        vec![format!("{} could not be carried as it is:", plural(troubles.total, "thing"))];
    for trouble in troubles.first.iter().take(TROUBLES_SHOWN) {
        let key =
            if trouble.key.is_empty() { String::new() } else { format!("\"{}\": ", trouble.key) };
        lines.push(format!("  {key}{}", trouble.why));
    }
    let more = troubles.total.saturating_sub(TROUBLES_SHOWN as u64);
    if more > 0 {
        lines.push(format!("  and {} more: --output json names a thousand", count(more)));
    }
    lines.join("\n")
}

/// A place that can't be used.
pub fn storage(error: &StorageError) -> Failure {
    let mut failure = Failure::of(error).hint(error.hint());
    failure.exit = Exit::User;
    failure
}

/// A file that can't be loaded.
pub fn input(error: &SourceError) -> Failure {
    let failure = unreadable(error);
    match error {
        SourceError::Rdb { .. } | SourceError::Checksum { .. } | SourceError::Commands { .. } => {
            failure.hint("what stands before is loaded; take another copy of the file, and load it with --replace")
        }
        _ => failure,
    }
}

/// A file that can't be read.
pub fn unreadable(error: &SourceError) -> Failure {
    let failure = Failure::user(error.to_string());
    let failure = match error.source() {
        Some(source) => failure.because(source),
        None => failure,
    };
    match error {
        SourceError::File { path, source } => Failure::file("read", path, source),
        SourceError::Nothing { .. } => failure.hint("name the file itself"),
        SourceError::Manifest { .. } => failure.hint("repair it: redis-check-aof"),
        SourceError::Unknown { .. } => failure.hint(
            "an RDB file begins with REDIS or VALKEY, an append-only file with *: is it compressed?",
        ),
        SourceError::Rdb { .. } | SourceError::Checksum { .. } | SourceError::Commands { .. } => {
            failure.hint("take another copy of the file")
        }
        SourceError::Once { .. } => failure.hint("load it from a file"),
    }
}

/// Why it ended early, and how to go on.
pub fn failure(error: &ImportError, resumable: bool) -> Failure {
    const AGAIN: &str = "then run the same command again: it goes on where it stopped";
    let again = if resumable { AGAIN } else { "then run the same command again" };
    let of = |mut failure: Failure, exit: Exit| {
        failure.exit = exit;
        failure
    };
    match error {
        ImportError::Source(error) => input(error),
        ImportError::Load(LoadError::Refused { source, .. }) => {
            let mend = match source.code.as_str() {
                "OOM" => "give the target more memory (CONFIG SET maxmemory)",
                "MISCONF" => "make room on the target's disk",
                "READONLY" => "name a primary, or wait until there is one",
                _ => "see what the target lacks: keyfleet status --connect HOST:PORT",
            };
            of(Failure::of(error), Exit::User).hint(format!("{mend}, {again}"))
        }
        ImportError::Load(_) => {
            Failure::of(error).hint(format!("see that every slot has a primary, {again}"))
        }
        ImportError::Client(client) => client_failure(client),
        ImportError::State(StateError::Running) => {
            Failure::user(error.to_string()).hint("wait for its end, or stop it")
        }
        ImportError::State(_) => Failure::of(error)
            .hint("set XDG_STATE_HOME to a directory that can be written, and has room"),
        ImportError::Interrupted => Failure::user(error.to_string())
            .hint("empty the target, and begin anew: the same command with --restart"),
        ImportError::Sweeping { .. } => Failure::user(error.to_string())
            .hint("let the server rewrite the file first: BGREWRITEAOF"),
        ImportError::Commands { .. } => Failure::user(error.to_string()).hint(
            "let the server rewrite the file first (BGREWRITEAOF), or filter by --pattern and --db",
        ),
        ImportError::Write { path, source } => Failure::file("write", path, source),
        ImportError::Once { .. } => Failure::of(error).hint("load it from a file"),
        ImportError::Stuck { .. } => {
            Failure::of(error).hint(format!("wait until the target's slots rest, {again}"))
        }
    }
}

fn client_failure(error: &ClientError) -> Failure {
    let failure = Failure::of(error);
    match error.code() {
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Failure::user(error.to_string())
            .hint("give the password of the user `default`: export REDISCLI_AUTH=…"),
        _ => failure.hint("is it there? redis-cli -h HOST -p PORT ping"),
    }
}
