//! Fifty connections that each ask again when they have the answer, by redis-benchmark.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{
    Options,
    rig::{Proxy, Rig},
};
use crate::{
    bench::{Goal, Outcome, median},
    command::output,
};

pub const CLIENTS: &str = "50";
const VALUE_BYTES: &str = "64";
const KEYS: u32 = 100_000;

/// What is asked, how often, and how deep.
#[derive(Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub command: &'static [&'static str],
    pub depth: u32,
    pub requests: u32,
}

const SET: &[&str] = &["SET", "key:__rand_int__", "__data__"];
const GET: &[&str] = &["GET", "key:__rand_int__"];
const MGET: &[&str] = &[
    "MGET",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
    "key:__rand_int__",
];

pub const SET_P1: Load = Load { name: "SET P1", command: SET, depth: 1, requests: 100_000 };
pub const GET_P1: Load = Load { name: "GET P1", command: GET, depth: 1, requests: 100_000 };
pub const SET_P16: Load = Load { name: "SET P16", command: SET, depth: 16, requests: 600_000 };
pub const GET_P16: Load = Load { name: "GET P16", command: GET, depth: 16, requests: 600_000 };
pub const MGET_P16: Load = Load { name: "MGET-10 P16", command: MGET, depth: 16, requests: 80_000 };

/// Each with the most that it may cost of nutcracker's CPU.
const LOADS: [(Load, f64); 5] =
    [(SET_P1, 0.90), (GET_P1, 0.90), (SET_P16, 0.50), (GET_P16, 0.50), (MGET_P16, 0.28)];

/// What one load showed.
#[derive(Clone, Copy)]
pub struct Sample {
    /// The proxy's CPU time for a request.
    pub micros: f64,
    pub rate: f64,
    /// As clients saw them.
    p50_ms: f64,
    p99_ms: f64,
}

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    let peer = rig.nutcracker()?;
    let ours = rig.keyfleet(1)?;
    fill(&ours)?;
    println!(
        "{:<12} {:>5} {:>9} {:>9} {:>6}   {:>9} {:>9}   {:>13} {:>13}",
        "", "round", "us", "peer us", "ratio", "req/s", "peer", "p50/p99 ms", "peer"
    );
    for (each, wanted) in &LOADS {
        one_load(options, each, *wanted, [&ours, &peer], outcome)?;
    }
    for each in [&SET_P1, &GET_P1] {
        let (mut own, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..options.rounds {
            let both =
                in_turn(round, &[&ours, &peer], |proxy| syscalls(proxy, each, options.scale))?;
            let [mine, other] = both[..] else { bail!("two were measured") };
            own.push(mine);
            theirs.push(other);
        }
        let (own, theirs) = (median(&own), median(&theirs));
        println!("{:<12} system calls a request: {own:.2}, peer {theirs:.2}", each.name);
        outcome.figure(format!("{} system calls", each.name), own);
        outcome.figure(format!("{} system calls nutcracker", each.name), theirs);
        outcome.goal(Goal::at_most(format!("{}, system calls", each.name), 2.5, own));
    }
    Ok(())
}

/// Brings nearly all keys that are read to the servers behind it.
pub fn fill(proxy: &Proxy) -> Result<()> {
    run(proxy.port, &Load { requests: 3 * KEYS, ..SET_P16 }, 1.0, &[]).map(|_| ())
}

fn one_load(
    options: &Options,
    each: &Load,
    wanted: f64,
    proxies: [&Proxy; 2],
    outcome: &mut Outcome,
) -> Result<()> {
    let mut samples = Vec::new();
    for round in 0..options.rounds {
        let both = in_turn(round, &proxies, |proxy| load(proxy, each, options.scale, &[]))?;
        let [mine, other] = both[..] else { bail!("two were measured") };
        show(each.name, &(round + 1).to_string(), mine, other, mine.micros / other.micros);
        samples.push((mine, other));
    }
    let (own, theirs): (Vec<Sample>, Vec<Sample>) = samples.iter().copied().unzip();
    let ratios: Vec<f64> = samples.iter().map(|(own, peer)| own.micros / peer.micros).collect();
    let (mine, other, ratio) = (middle(&own), middle(&theirs), median(&ratios));
    show(each.name, "mid", mine, other, ratio);
    for (name, value) in [
        ("us", mine.micros),
        ("us nutcracker", other.micros),
        ("req/s", mine.rate),
        ("req/s nutcracker", other.rate),
        ("p50 ms", mine.p50_ms),
        ("p99 ms", mine.p99_ms),
        ("p50 ms nutcracker", other.p50_ms),
        ("p99 ms nutcracker", other.p99_ms),
    ] {
        outcome.figure(format!("{} {name}", each.name), value);
    }
    outcome.goal(Goal::at_most(format!("{}, times nutcracker's CPU", each.name), wanted, ratio));
    Ok(())
}

/// Measures each of them, beginning with another in each round; the results are in their order.
pub fn in_turn<T, R>(
    round: usize,
    of: &[T],
    mut measure: impl FnMut(&T) -> Result<R>,
) -> Result<Vec<R>> {
    let mut results = Vec::new();
    for step in 0..of.len() {
        let index = (round + step) % of.len();
        results.push((index, measure(&of[index])?));
    }
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn show(load: &str, round: &str, own: Sample, peer: Sample, ratio: f64) {
    println!(
        "{load:<12} {round:>5} {:>9.2} {:>9.2} {ratio:>6.2}   {:>9.0} {:>9.0}   {:>6.2}/{:>6.2} {:>6.2}/{:>6.2}",
        own.micros,
        peer.micros,
        own.rate,
        peer.rate,
        own.p50_ms,
        own.p99_ms,
        peer.p50_ms,
        peer.p99_ms
    );
}

/// The median of each figure.
fn middle(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(&samples.iter().map(figure).collect::<Vec<_>>());
    Sample {
        micros: of(|sample| sample.micros),
        rate: of(|sample| sample.rate),
        p50_ms: of(|sample| sample.p50_ms),
        p99_ms: of(|sample| sample.p99_ms),
    }
}

/// Runs it against a port, and returns how many requests it made and what redis-benchmark said.
pub fn run(port: u16, load: &Load, scale: f64, options: &[&str]) -> Result<(f64, String)> {
    let requests = ((f64::from(load.requests) * scale) as u32).max(1);
    let mut command = Command::new("redis-benchmark");
    command.args(["-p", &port.to_string(), "-n", &requests.to_string()]);
    command.args(["-c", CLIENTS, "-P", &load.depth.to_string(), "-r", &KEYS.to_string()]);
    let data = "x".repeat(VALUE_BYTES.parse()?);
    let words = load.command.iter().map(|word| word.replace("__data__", &data));
    Ok((f64::from(requests), output(command.args(options).arg("--csv").args(words))?))
}

/// What it costs the proxy, and what clients see.
pub fn load(proxy: &Proxy, load: &Load, scale: f64, options: &[&str]) -> Result<Sample> {
    let before = proxy.process.cpu_nanos()?;
    let (requests, report) = run(proxy.port, load, scale, options)?;
    let spent = proxy.process.cpu_nanos()? - before;
    let figures: Vec<f64> = report
        .lines()
        .nth(1)
        .with_context(|| format!("redis-benchmark said {report:?}"))?
        .rsplit(',')
        .map_while(|cell| cell.trim_matches('"').parse().ok())
        .collect();
    // Backwards: max, p99, p95, p50, min, average, requests a second.
    let [_, p99_ms, _, p50_ms, _, _, rate, ..] = figures[..] else {
        bail!("redis-benchmark said {report:?}");
    };
    Ok(Sample { micros: spent as f64 / 1_000.0 / requests, rate, p50_ms, p99_ms })
}

/// System calls for a request, counted by the kernel's own trace point.
fn syscalls(proxy: &Proxy, load: &Load, scale: f64) -> Result<f64> {
    let mut requests = 0.0;
    let work = || {
        requests = run(proxy.port, load, scale, &[])?.0;
        Ok(())
    };
    let count = proxy.process.count("raw_syscalls:sys_enter", work)?;
    Ok(count / requests)
}
