//! `keyfleet analyze`: what a file holds.

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
    analyze::{self, Report, Sum, page},
    errors::{Exit, Failure},
};

const ROWS: usize = 15;
const NAME_WIDTH: usize = 40;
const BAR_WIDTH: usize = 24;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// RDB files, directories of them, s3://, gs:// or az:// URLs, - for stdin
    #[arg(value_name = "FILE|DIR|URL|-", required = true)]
    files: Vec<PathBuf>,
    /// Shards of the cluster that the keys would be in
    #[arg(long, value_name = "N", default_value_t = 3)]
    shards: usize,
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
    let inputs = import::inputs(&args.files).await?;
    let total: u64 = inputs.iter().map(|input| input.bytes).sum();
    let read = Arc::new(AtomicU64::new(0));
    let shards = args.shards;
    let worker = {
        let read = Arc::clone(&read);
        tokio::task::spawn_blocking(move || analyze::run(&inputs, shards, &read))
    };
    let mut live = context.printer.live();
    let drawing = async {
        let mut ticks = tokio::time::interval(outcome::REDRAW);
        loop {
            ticks.tick().await;
            let read = read.load(Ordering::Relaxed);
            live.draw(&[], &[format!("{} reading, {}", bar(read, total, BAR_WIDTH), size(read))]);
        }
    };
    let result = tokio::select! {
        ended = worker => ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
        never = drawing => never,
    };
    live.clear();
    let report = result.map_err(|error| outcome::unreadable(&error))?;
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

fn text(report: &Report, style: Style) -> String {
    let total = report.total;
    let mut out = format!(
        "{}, about {} in memory, {} in the file\n",
        plural(total.keys, "key"),
        size(total.memory_bytes),
        size(total.file_bytes)
    );
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
    let types = report.types.iter().map(|(name, sum)| ((*name).to_owned(), *sum));
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
    out
}
