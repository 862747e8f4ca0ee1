//! `cargo xtask bench rdb`: how fast one core reads an RDB file from the page cache, entries only and
//! with every value decoded.

use std::{
    fs::{self, File},
    hint::black_box,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use protocol::rdb::{Encoding, Event, Format, Items, Key, Limits, Reader, Writer};
use tests::server::new_directory;

use super::{Goal, Outcome};

#[derive(Args)]
pub struct Options {
    /// This file instead of one that is made up.
    file: Option<PathBuf>,
    /// The made-up one's size.
    #[arg(long, default_value_t = 512)]
    megabytes: usize,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// What one reading took.
struct Reading {
    bytes: usize,
    keys: usize,
    seconds: f64,
}

pub fn run(options: &Options) -> Result<Outcome> {
    let scratch = new_directory()?;
    let measured = measure(options, &scratch);
    fs::remove_dir_all(&scratch)?;
    measured
}

fn measure(options: &Options, scratch: &Path) -> Result<Outcome> {
    let made = scratch.join("made-up.rdb");
    if options.file.is_none() {
        fs::write(&made, made_up(options.megabytes << 20))?;
    }
    let path = options.file.as_ref().unwrap_or(&made);
    let mut outcome = Outcome { bench: "rdb", ..Outcome::default() };
    for (what, decode, wanted) in [("read", false, Some(1.0)), ("read and decoded", true, None)] {
        // The fastest: what slows a round down is somebody else.
        let mut best: Option<Reading> = None;
        for _ in 0..options.rounds {
            let reading = read(path, decode)?;
            if best.as_ref().is_none_or(|best| reading.seconds < best.seconds) {
                best = Some(reading);
            }
        }
        let Reading { bytes, keys, seconds } = best.context("no round")?;
        let rate = bytes as f64 / seconds / 1e9;
        let keys_rate = keys as f64 / seconds / 1e6;
        println!(
            "{what:<18} {rate:.2} GB/s, {keys_rate:.2} million keys/s: {bytes} bytes, {keys} keys"
        );
        outcome.figures.insert(format!("{what} GB/s"), rate);
        outcome.figures.insert(format!("{what} million keys/s"), keys_rate);
        if let Some(wanted) = wanted {
            outcome.goals.push(Goal::at_least(format!("{what}, GB/s of a core"), wanted, rate));
        }
    }
    Ok(outcome)
}

/// Entries of the kinds that caches hold, 300 bytes each on average.
fn made_up(bytes: usize) -> Vec<u8> {
    let mut writer = Writer::new(Format::redis(11));
    let mut index = 0_u64;
    while writer.bytes().len() < bytes {
        index += 1;
        let name = format!("some:prefix:{index:010}");
        let mut key = Key::new(0, name.as_bytes(), Encoding::String);
        key.expire_at_ms = index.is_multiple_of(3).then_some(4_102_444_800_000 + index);
        match index % 5 {
            0 => {
                key.encoding = Encoding::Hash;
                let fields: Vec<u8> = (0..20).flat_map(|_| text(index, 20)).collect();
                writer.entry(&key, &[&[10], fields.as_slice()].concat());
            }
            1 => writer.entry(&key, &text(index, 20)),
            _ => writer.entry(&key, &text(index, 300 + (index % 200) as usize)),
        }
    }
    writer.finish()
}

/// A string with its length before it: six bits of it, or fourteen.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let mut text = if length < 64 {
        vec![length as u8]
    } else {
        vec![0x40 | (length >> 8) as u8, length as u8]
    };
    text.extend((0..length).map(|at| (at as u64 ^ seed) as u8));
    text
}

/// Seconds that this thread has worked: others may work on the machine too.
fn worked() -> Result<f64> {
    let spent = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: f64 = spent.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanos / 1e9)
}

fn read(path: &Path, decode: bool) -> Result<Reading> {
    let mut source = File::open(path).with_context(|| path.display().to_string())?;
    let started = worked()?;
    let (mut bytes, mut keys) = (0, 0);
    let mut reader = Reader::new(Limits::default());
    while !reader.is_done() {
        if let Some(record) = reader.next()? {
            if let Event::Entry(entry) = record.event {
                keys += 1;
                if decode {
                    for item in Items::new(entry.key.encoding, entry.raw) {
                        black_box(item?);
                    }
                }
                black_box(entry);
            }
            continue;
        }
        let count = source.read(reader.space())?;
        if count == 0 {
            reader.finish()?;
        }
        reader.filled(count);
        bytes += count;
    }
    ensure!(keys > 0, "{} holds no key", path.display());
    Ok(Reading { bytes, keys, seconds: worked()? - started })
}
