//! `cargo xtask bench analyze`: what a file holds, by us and by rdb-tools; how fast files from the
//! page cache are gone through; what memory a large file needs, to be analyzed and to be imported.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use clap::Args;
use protocol::rdb::{Encoding, Format, Item, Key, Writer, encode};
use tests::{
    engines::engine,
    server::{Server, new_directory},
};

use super::{
    Goal, Outcome, build_program,
    import::{Used, make, ours, rdb_tools, watched},
    median,
};
use crate::command::target;

const MIB: f64 = (1 << 20) as f64;

/// Of a large value in the large file; an engine takes strings of 512 MiB.
const LARGE_BYTES: usize = 64 << 20;

#[derive(Args)]
pub struct Options {
    /// For rdb-tools and for us: so many that starting a program counts for little.
    #[arg(long, default_value_t = 600_000)]
    keys: usize,
    /// Of the files that are gone through.
    #[arg(long, default_value_t = 1024)]
    mib: usize,
    /// Of the large file; it is deleted afterwards.
    #[arg(long, default_value_t = 4096)]
    large_mib: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

pub async fn run(options: &Options) -> Result<Outcome> {
    build_program()?;
    let mut outcome = Outcome { bench: "analyze", ..Outcome::default() };
    let scratch = new_directory()?;
    let result = measure(options, &scratch, &mut outcome).await;
    let _ = fs::remove_dir_all(&scratch);
    result.map(|()| outcome)
}

async fn measure(options: &Options, scratch: &Path, outcome: &mut Outcome) -> Result<()> {
    let mut figure = |name: String, value: f64| {
        println!("{name:<52} {value:>12.2}");
        outcome.figures.insert(name, value);
    };
    let file = make(options.keys, scratch, "peer").await?;
    let tools = rdb_tools()?;
    let (mut times, mut times_cpu) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let own = analyze(&file)?;
        let peer = watched(Command::new(&tools).args(["-c", "memory"]).arg(&file))?;
        figure(format!("rdb-tools, {} keys, s", options.keys), peer.seconds);
        times.push(peer.seconds / own.seconds);
        times_cpu.push(peer.cpu_seconds / own.cpu_seconds);
    }
    figure("times as fast as rdb-tools, by CPU".to_owned(), median(&times_cpu));

    let mut reached = 0.0;
    let mut peak: f64 = 0.0;
    for value_bytes in [40, 300, 4_000] {
        let file = strings(scratch, options.mib << 20, value_bytes)?;
        let bytes = fs::metadata(&file)?.len() as f64;
        let mut rates = Vec::new();
        for _ in 0..options.rounds {
            let used = analyze(&file)?;
            rates.push(bytes / used.cpu_seconds / 1e9);
            peak = peak.max(used.peak_bytes as f64 / MIB);
        }
        fs::remove_file(&file)?;
        figure(format!("values of {value_bytes} bytes, GB a second of CPU"), median(&rates));
        if value_bytes == 300 {
            reached = median(&rates);
        }
    }

    let large = large(scratch, options.large_mib << 20)?;
    let analyzed = analyze(&large)?;
    figure("analyze of the large file, s".to_owned(), analyzed.seconds);
    figure("analyze of the large file, peak MiB".to_owned(), analyzed.peak_bytes as f64 / MIB);
    // It holds more than the server may: what was used least goes.
    let program = engine("redis", "7.0").server;
    let config = ["--maxmemory", "600mb", "--maxmemory-policy", "allkeys-lru"];
    let server = Server::start(&program, &config).await?;
    let imported = ours(&large, &server.address.to_string(), scratch)?;
    figure("import of the large file, s".to_owned(), imported.seconds);
    figure("import of the large file, peak MiB".to_owned(), imported.peak_bytes as f64 / MIB);
    peak = peak.max(analyzed.peak_bytes as f64 / MIB);
    outcome.goals.extend([
        Goal::at_least("times as fast as rdb-tools", 200.0, median(&times)),
        Goal::at_least("values of 300 bytes, GB a second of CPU", 1.0, reached),
        Goal::at_most("analyze, peak MiB", 64.0, peak),
        Goal::at_most("import, peak MiB", 64.0, imported.peak_bytes as f64 / MIB),
    ]);
    Ok(())
}

fn analyze(file: &Path) -> Result<Used> {
    let used = watched(
        Command::new(target().join("release").join("keyfleet"))
            .args(["analyze", "--output", "json"])
            .arg(file),
    )?;
    ensure!(used.cpu_seconds > 0.0, "it was over before it was looked at");
    Ok(used)
}

/// A file of so many bytes, of strings in names like those that people use.
fn strings(scratch: &Path, bytes: usize, value_bytes: usize) -> Result<PathBuf> {
    let mut made = Made::new(scratch)?;
    while made.bytes < bytes {
        made.string(value_bytes)?;
    }
    made.finish()
}

/// Half in values of a kilobyte, a quarter in small ones, a quarter in a few large ones.
fn large(scratch: &Path, bytes: usize) -> Result<PathBuf> {
    let mut made = Made::new(scratch)?;
    while made.bytes < bytes / 2 {
        made.string(1_000)?;
    }
    while made.bytes < bytes / 4 * 3 {
        made.string(60)?;
    }
    let mut list = false;
    while made.bytes < bytes {
        list = !list;
        if list { made.list()? } else { made.string(LARGE_BYTES)? }
    }
    made.finish()
}

/// A file that is being written.
struct Made {
    path: PathBuf,
    file: fs::File,
    writer: Writer,
    /// That were written.
    bytes: usize,
    keys: usize,
}

impl Made {
    fn new(scratch: &Path) -> Result<Self> {
        let path = scratch.join("made.rdb");
        let file = fs::File::create(&path)?;
        let mut writer = Writer::new(Format::redis(9));
        writer.select_db(0);
        Ok(Self { path, file, writer, bytes: 0, keys: 0 })
    }

    fn string(&mut self, value_bytes: usize) -> Result<()> {
        let text = vec![b'v'; value_bytes].into();
        let raw = encode(std::iter::once(Ok(Item::Text(text))), Encoding::String)?;
        self.entry("session", Encoding::String, &raw)
    }

    fn list(&mut self) -> Result<()> {
        let count = LARGE_BYTES / 100;
        let element = || Ok(Item::Element(vec![b'e'; 98].into()));
        let raw = encode(std::iter::repeat_with(element).take(count), Encoding::List)?;
        self.entry("queue", Encoding::List, &raw)
    }

    fn entry(&mut self, kind: &str, encoding: Encoding, raw: &[u8]) -> Result<()> {
        let name = format!("{kind}:{}:{}", self.keys % 1_000, self.keys);
        self.keys += 1;
        self.writer.entry(&Key::new(0, name.as_bytes(), encoding), raw);
        if self.writer.bytes().len() > 1 << 20 {
            self.file.write_all(self.writer.bytes())?;
            self.bytes += self.writer.bytes().len();
            self.writer.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<PathBuf> {
        self.file.write_all(&self.writer.finish())?;
        Ok(self.path)
    }
}
