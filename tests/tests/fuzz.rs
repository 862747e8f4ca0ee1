//! The bodies of the fuzz targets over inputs made from what servers really said: changed, cut and
//! joined at random. A bounded number of them; for KEYFLEET_FUZZ_SECONDS each where that is set.
//! Finds less than `cargo +nightly fuzz run`, which looks where the inputs lead, and needs nothing.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use protocol::rdb::{Brand, Event, Format, Limits, Reader, Writer, dump, payload_format};
use tests::{engines::engine, matrix::dumps};

#[path = "../../fuzz/bodies/cluster_text.rs"]
mod cluster_text;
#[path = "../../fuzz/bodies/proxy.rs"]
mod proxy_bytes;
#[path = "../../fuzz/bodies/rdb.rs"]
mod rdb;
#[path = "../../fuzz/bodies/resp.rs"]
mod resp;

const INPUTS: usize = 20_000;

/// Longer ones take too long, and find no more.
const INPUT_BYTES_MAX: usize = 4 << 10;

const CHANGES_MAX: usize = 6;

/// Bytes that mean something to what reads them.
const TELLING: &[u8] = b"\x00\x01\x7f\x80\x81\xc0\xc3\xf3\xfa\xfe\xff\r\n*$+-:%,0 9{}";

/// Numbers that look random and are the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) as usize) % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        if self.below(2) == 0 { TELLING[self.below(TELLING.len())] } else { self.below(256) as u8 }
    }
}

/// One of them with some changes.
fn change(corpus: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    let mut input = corpus[numbers.below(corpus.len())].clone();
    for _ in 0..numbers.below(CHANGES_MAX) {
        let at = numbers.below(input.len());
        let count = numbers.below(16).min(input.len() - at);
        match numbers.below(6) {
            0 if !input.is_empty() => input[at] ^= 1 << numbers.below(8),
            1 if !input.is_empty() => input[at] = numbers.byte(),
            2 => input.insert(at, numbers.byte()),
            3 => drop(input.drain(at..at + count)),
            4 => input.truncate(at),
            _ => {
                let other = &corpus[numbers.below(corpus.len())];
                let from = numbers.below(other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn check(corpus: &[Vec<u8>], run: impl Fn(&[u8])) {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("KEYFLEET_FUZZ_SEED").unwrap_or(1);
    let until = number("KEYFLEET_FUZZ_SECONDS")
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut numbers = Numbers(seed);
    for count in 0.. {
        let over = until.map_or(count >= INPUTS, |until| Instant::now() >= until);
        if over && count >= corpus.len() {
            break;
        }
        // First each as it is.
        let input = corpus.get(count).cloned().unwrap_or_else(|| change(corpus, &mut numbers));
        let ended = catch_unwind(AssertUnwindSafe(|| run(&input)));
        assert!(ended.is_ok(), "input {count} of seed {seed}: b\"{}\"", input.escape_ascii());
    }
}

/// Each file below a directory, where it is no longer than is tried.
fn files(directory: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let bytes = fs::read(path).unwrap();
            found.extend(Some(bytes).filter(|bytes| bytes.len() <= INPUT_BYTES_MAX));
        }
    }
    assert!(!found.is_empty(), "nothing in {}", directory.display());
    found
}

fn recorded() -> Vec<Vec<u8>> {
    files(&dumps().with_file_name("recorded"))
}

/// With a first byte, which the body takes for a size or a mode.
fn after(first: u8, bytes: &[u8]) -> Vec<u8> {
    [&[first], bytes].concat()
}

#[test]
fn any_text() {
    check(&recorded(), cluster_text::run);
}

#[test]
fn any_replies() {
    let corpus: Vec<_> = recorded().iter().map(|bytes| after(7, bytes)).collect();
    check(&corpus, resp::run);
}

#[test]
fn any_traffic() {
    let commands: [&[u8]; 6] = [
        b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*3\r\n$3\r\nSET\r\n$1\r\na\r\n$2\r\n12\r\n",
        b"GET a\r\nMGET a b c\r\n$1\r\n1\r\n*2\r\n$1\r\nx\r\n$-1\r\n",
        b"*1\r\n$5\r\nMULTI\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*1\r\n$4\r\nEXEC\r\n+OK\r\n:1\r\n",
        b"*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
        b"*5\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\nv\r\n-MOVED 7 127.0.0.1:1\r\n",
        b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*4\r\n$4\r\nMSET\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n-ASK 1 :2\r\n",
    ];
    let mut corpus: Vec<_> = commands.iter().map(|bytes| after(7, bytes)).collect();
    corpus.extend(recorded().iter().map(|bytes| after(200, bytes)));
    check(&corpus, proxy_bytes::run);
}

#[test]
fn any_files() {
    let mut corpus: Vec<_> =
        files(&dumps().join("appendonlydir")).iter().map(|bytes| after(53, bytes)).collect();
    let taker = engine("valkey", "9.1").engine;
    for path in fs::read_dir(dumps()).unwrap().map(|file| file.unwrap().path()) {
        if path.extension().is_none_or(|extension| extension != "rdb") {
            continue;
        }
        let mut reader = Reader::new(Limits::default());
        reader.feed(&fs::read(path).unwrap());
        let mut format = Format::redis(9);
        while let Some(record) = reader.next().unwrap() {
            match record.event {
                Event::Header(found) => format = found,
                Event::Entry(entry) if entry.raw.len() < INPUT_BYTES_MAX / 2 => {
                    let mut writer = Writer::new(format);
                    writer.select_db(0);
                    writer.entry(&entry.key, entry.raw);
                    corpus.push(after(35, &writer.finish()));
                    let encoding = entry.key.encoding;
                    let mode = if format.brand == Brand::Redis { 1 } else { 6 };
                    corpus.push([&[mode, encoding.byte()], entry.raw].concat());
                    if let Some(format) = payload_format(&taker, encoding) {
                        corpus.push(after(2, &dump::payload(encoding, entry.raw, format)));
                    }
                    corpus.push(after(4, entry.raw));
                }
                _ => {}
            }
        }
    }
    check(&corpus, rdb::run);
}
