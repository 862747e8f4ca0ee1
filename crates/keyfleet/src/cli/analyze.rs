//! `keyfleet analyze`: what a file or a live cluster holds.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::ValueEnum;

use super::{
    context::Context,
    import::{self, outcome},
    text::{Style, bar, count, cut, pad, pad_left, plural, size},
};
use crate::{
    analyze::{self, Report, Sum, live::Hot, page},
    errors::{Exit, Failure},
};

/// Shards where none are named.
const SHARDS: usize = 3;

const ROWS: usize = 15;
const NAME_WIDTH: usize = 40;
const BAR_WIDTH: usize = 24;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// RDB files, directories of them, s3://, gs:// or az:// URLs, - for stdin
    #[arg(value_name = "FILE|DIR|URL|-", required_unless_present = "connect")]
    files: Vec<PathBuf>,
    /// Ask a live cluster or server key by key, replicas first; only reads
    #[arg(long, value_name = "CLUSTER|HOST:PORT", conflicts_with = "files")]
    connect: Option<String>,
    /// Shards of the cluster that the keys would be in [default: 3; with --connect those there are]
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// How to print it; html is one page that needs nothing else
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Format,
    /// Write it here instead
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let report = match &args.connect {
        Some(connect) => live(context, connect, args.shards).await?,
        None => files(context, &args).await?,
    };
    let text = match args.output {
        Format::Text => text(&report, context.printer.style),
        Format::Html => page::page(&report),
        Format::Json => {
            let text = serde_json::to_string(&report);
            format!("{}\n", text.map_err(|error| Failure::of(&error))?)
        }
    };
    match &args.to {
        None => context.printer.data(&text)?,
        Some(path) => {
            fs::write(path, text).map_err(|error| Failure::file("write", path, &error))?;
        }
    }
    Ok(Exit::Done)
}

/// Reads files.
async fn files(context: &Context, args: &Args) -> Result<Report, Failure> {
    let inputs = import::inputs(&args.files).await?;
    let total: u64 = inputs.iter().map(|input| input.bytes).sum();
    let read = Arc::new(AtomicU64::new(0));
    let shards = args.shards.unwrap_or(SHARDS);
    let worker = {
        let read = Arc::clone(&read);
        tokio::task::spawn_blocking(move || analyze::run(&inputs, shards, &read))
    };
    let line = || {
        let read = read.load(Ordering::Relaxed);
        format!("{} reading, {}", bar(read, total, BAR_WIDTH), size(read))
    };
    let ended = drawn(context, worker, line).await;
    let result = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    result.map_err(|error| outcome::unreadable(&error))
}

/// Asks servers.
async fn live(context: &Context, to: &str, shards: Option<usize>) -> Result<Report, Failure> {
    let goal = import::goal(context, to).await?;
    let walked = AtomicU64::new(0);
    let asking = analyze::live::run(&goal.target, goal.login.as_ref(), shards, &walked);
    let line = || format!("asking, {}", plural(walked.load(Ordering::Relaxed), "key"));
    let result = drawn(context, asking, line).await;
    result.map_err(|error| outcome::failure(&error.into(), false))
}

/// What the work comes to; meanwhile a line says how far it is.
async fn drawn<T>(
    context: &Context,
    work: impl Future<Output = T>,
    line: impl Fn() -> String,
) -> T {
    let mut live = context.printer.live();
    let drawing = async {
        let mut ticks = tokio::time::interval(outcome::REDRAW);
        loop {
            ticks.tick().await;
            live.draw(&[], &[line()]);
        }
    };
    let result = tokio::select! {
        ended = work => ended,
        never = drawing => never,
    };
    live.clear();
    result
}

fn text(report: &Report, style: Style) -> String {
    let total = report.total;
    let keys = plural(total.keys, "key");
    let memory = size(total.memory_bytes);
    let mut out = match &report.live {
        None => {
            format!("{keys}, about {memory} in memory, {} in the file\n", size(total.file_bytes))
        }
        Some(live) => {
            let mut out = format!("{keys}, {memory} in memory\n");
            for node in &live.nodes {
                let role = if node.replica { "a replica" } else { "a primary" };
                let keys = plural(node.keys, "key");
                out.push_str(&format!("{keys} told by {}, {role}\n", node.address));
            }
            out
        }
    };
    if report.expired > 0 {
        out.push_str(&format!("{} of them have expired\n", count(report.expired)));
    }
    if report.commands > 0 {
        let commands = plural(report.commands, "command");
        out.push_str(&format!("{commands} of append-only files are not looked into\n"));
    }
    let mut section = |title: &str, rows: Vec<(String, Sum)>| {
        if rows.is_empty() {
            return;
        }
        out.push_str(&format!("\n{}\n", style.bold(title)));
        let most = rows.iter().map(|(_, sum)| sum.memory_bytes).max().unwrap_or_default();
        for (name, sum) in rows {
            out.push_str(&format!(
                "  {}  {}  {}  {}\n",
                pad(&cut(&name, NAME_WIDTH), NAME_WIDTH),
                pad_left(&count(sum.keys), 13),
                pad_left(&size(sum.memory_bytes), 10),
                bar(sum.memory_bytes, most, BAR_WIDTH)
            ));
        }
    };
    let types = report.types.iter().map(|(name, sum)| (name.clone(), *sum));
    section("Types", types.collect());
    let encodings = report.encodings.iter().map(|(name, sum)| (name.clone(), *sum));
    section("Encodings", encodings.collect());
    let prefixes = report.prefixes.iter().take(ROWS).map(|each| {
        let name = if each.prefix.is_empty() { "(no prefix)" } else { &each.prefix };
        (name.to_owned(), each.sum)
    });
    section("Prefixes", prefixes.collect());
    let left = report.ttl.iter().filter(|left| left.keys > 0).map(|left| {
        let sum = Sum { keys: left.keys, memory_bytes: left.memory_bytes, ..Sum::default() };
        (left.left.to_owned(), sum)
    });
    section("Time left", left.collect());
    let shards = report.balance.shards.iter().enumerate();
    let shards = shards.map(|(at, sum)| (format!("shard {}", at + 1), *sum));
    section("In a cluster", shards.collect());
    let biggest = report.biggest.iter().take(ROWS).map(|big| {
        let sum = Sum { keys: big.elements, memory_bytes: big.memory_bytes, ..Sum::default() };
        (format!("{} ({})", big.key, big.data_type), sum)
    });
    section("Biggest keys, and their elements", biggest.collect());
    if let Some(live) = &report.live {
        out.push_str(&hot(&live.hot, style));
    }
    out
}

fn hot(hot: &Hot, style: Style) -> String {
    let by_frequency = hot.keys.iter().any(|key| key.frequency.is_some());
    let what = if by_frequency { "used most" } else { "used last: how often is not known" };
    let sampled = plural(hot.sampled, "key");
    let mut out = format!("\n{}\n", style.bold(&format!("Of a sample of {sampled}, {what}")));
    for key in hot.keys.iter().take(ROWS) {
        let number = match (key.frequency, key.idle_seconds) {
            (Some(frequency), _) => format!("frequency {frequency}"),
            (None, idle) => format!("{} s ago", count(idle.unwrap_or_default())),
        };
        let name = pad(&cut(&key.key, NAME_WIDTH), NAME_WIDTH);
        out.push_str(&format!("  {name}  {}\n", pad_left(&number, 13)));
    }
    out
}
