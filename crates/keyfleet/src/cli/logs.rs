//! `keyfleet logs`: what servers log, several at once.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use fleet::model::NodeName;

use super::{
    context::{Context, unknown},
    signals,
    text::{Style, pad, safe},
};
use crate::{
    errors::{Exit, Failure},
    node_files::LOG,
};

const POLL: Duration = Duration::from_millis(200);
/// How much of a log's end is looked through for its last lines.
const TAIL_BYTES: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A node (cache-1) or a cluster (cache) [default: all]
    #[arg(value_name = "NODE|CLUSTER")]
    of: Option<String>,
    /// Go on as lines are written, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// How many of the last lines of each node
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20)]
    lines: usize,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let store = context.store()?;
    let nodes = store.nodes()?;
    let chosen = choose(&nodes, args.of.as_deref())?;
    if chosen.is_empty() {
        return Err(Failure::user("no node has been made here")
            .hint(format!("make some: {}", context.command("up"))));
    }
    let style = context.printer.style;
    let width = chosen.iter().map(|name| name.to_string().len()).max().unwrap_or(0);
    let mut tails = Vec::new();
    for node in &chosen {
        // A single node's log needs no names.
        let label = if chosen.len() > 1 { pad(&node.to_string(), width) } else { String::new() };
        let mut tail = Tail::new(store.node_dir(node).join(LOG), label);
        let lines =
            tail.last(args.lines).map_err(|error| Failure::file("read", &tail.path, &error))?;
        context.printer.data(&tail.shown(&lines, style))?;
        tails.push(tail);
    }
    if !args.follow {
        return Ok(Exit::Done);
    }
    let stop = signals::asked_to_stop()?;
    let followed = async {
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            for tail in &mut tails {
                let lines =
                    tail.new_lines().map_err(|error| Failure::file("read", &tail.path, &error))?;
                context.printer.data(&tail.shown(&lines, style))?;
            }
        }
    };
    tokio::select! {
        failed = followed => failed,
        () = stop => Ok(Exit::Done),
    }
}

fn choose(nodes: &[NodeName], of: Option<&str>) -> Result<Vec<NodeName>, Failure> {
    let Some(of) = of else { return Ok(nodes.to_vec()) };
    let matches = |name: &&NodeName| name.cluster.as_str() == of || name.to_string() == of;
    let chosen: Vec<NodeName> = nodes.iter().filter(matches).cloned().collect();
    if chosen.is_empty() {
        let mut known: Vec<String> = nodes.iter().map(|name| name.cluster.to_string()).collect();
        known.dedup();
        known.extend(nodes.iter().map(ToString::to_string));
        let problem = unknown("node or cluster", of, known.iter().map(String::as_str));
        return Err(Failure::user_all(vec![problem]));
    }
    Ok(chosen)
}

/// A log that is read on as it grows.
struct Tail {
    path: PathBuf,
    label: String,
    /// Up to where it was read.
    offset: u64,
    /// The beginning of a line whose end isn't written yet.
    rest: Vec<u8>,
}

impl Tail {
    const fn new(path: PathBuf, label: String) -> Self {
        Self { path, label, offset: 0, rest: Vec::new() }
    }

    /// The last lines so far.
    fn last(&mut self, count: usize) -> io::Result<Vec<String>> {
        let length = match std::fs::metadata(&self.path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        self.offset = length.saturating_sub(TAIL_BYTES);
        let mut lines = self.new_lines()?;
        lines.drain(..lines.len().saturating_sub(count));
        Ok(lines)
    }

    /// The lines that were finished since it was read last.
    fn new_lines(&mut self) -> io::Result<Vec<String>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        // A shorter file is another one: it was rotated or emptied.
        if file.metadata()?.len() < self.offset {
            self.offset = 0;
            self.rest.clear();
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = std::mem::take(&mut self.rest);
        self.offset += file.take(TAIL_BYTES).read_to_end(&mut bytes)? as u64;
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let rest = lines.pop().unwrap_or_default().to_vec();
        let lines = lines.iter().map(|line| safe(&String::from_utf8_lossy(line))).collect();
        self.rest = rest;
        Ok(lines)
    }

    fn shown(&self, lines: &[String], style: Style) -> String {
        lines
            .iter()
            .map(|line| match self.label.as_str() {
                "" => format!("{line}\n"),
                label => format!("{} {line}\n", style.cyan(label)),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _};

    use super::*;

    #[test]
    fn a_log_is_read_on_as_it_grows() {
        let path = std::env::temp_dir().join(format!("keyfleet-logs-{}", std::process::id()));
        fs::write(&path, "one\ntwo\nthree\nfo").unwrap();
        let mut tail = Tail::new(path.clone(), "n".to_owned());
        assert_eq!(tail.last(2).unwrap(), ["two", "three"]);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        write!(file, "ur\nfive\n").unwrap();
        assert_eq!(tail.new_lines().unwrap(), ["four", "five"]);
        assert!(tail.new_lines().unwrap().is_empty());
        fs::write(&path, "anew\n").unwrap();
        let lines = tail.new_lines().unwrap();
        assert_eq!(tail.shown(&lines, Style::PLAIN), "n anew\n");
        fs::remove_file(&path).unwrap();
        assert!(tail.new_lines().unwrap().is_empty());
    }

    #[test]
    fn nodes_and_clusters_are_chosen() {
        let nodes: Vec<NodeName> =
            ["cache-1", "cache-2", "hot-1"].iter().map(|name| name.parse().unwrap()).collect();
        let check = |of: Option<&str>, expected: usize| {
            assert_eq!(choose(&nodes, of).unwrap().len(), expected, "{of:?}");
        };
        check(None, 3);
        check(Some("cache"), 2);
        check(Some("cache-2"), 1);
        let error = choose(&nodes, Some("cahce")).unwrap_err();
        assert_eq!(error.problems[0].hint.as_deref(), Some("did you mean \"cache\"?"));
    }
}
