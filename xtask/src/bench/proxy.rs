//! `cargo xtask bench proxy`: what a request costs in `keyfleet proxy --twemproxy` and in nutcracker,
//! with the same file, the same three servers and the same load, one thread each, in turn.
//!
//! The figure is the proxy's own CPU time for a request, by the scheduler's count: what a noisy
//! machine bends least. Requests per second and latencies are what redis-benchmark saw, and on few
//! cores say more about who shares them. A round measures both right after one another, and the
//! ratio is the median of the rounds' ratios.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tests::ports::PortBlock;

use super::{Goal, Outcome, median};
use crate::{
    command::{output, target},
    packages,
};

const SERVERS: u16 = 3;
const CLIENTS: &str = "50";
const VALUE_BYTES: &str = "64";
const KEYS: u32 = 100_000;
const START_TIME_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How many times the usual number of requests each load makes.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Connections that are opened to see what an idle one takes.
    #[arg(long, default_value_t = 5_000)]
    idle: usize,
}

/// What is asked, how often, how deep, and at most how many times nutcracker's CPU it may cost.
struct Load {
    name: &'static str,
    command: &'static [&'static str],
    depth: u32,
    requests: u32,
    wanted: f64,
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

const LOADS: [Load; 5] = [
    Load { name: "SET P1", command: SET, depth: 1, requests: 200_000, wanted: 0.90 },
    Load { name: "GET P1", command: GET, depth: 1, requests: 200_000, wanted: 0.90 },
    Load { name: "SET P16", command: SET, depth: 16, requests: 1_000_000, wanted: 0.50 },
    Load { name: "GET P16", command: GET, depth: 16, requests: 1_000_000, wanted: 0.50 },
    Load { name: "MGET-10 P16", command: MGET, depth: 16, requests: 160_000, wanted: 0.28 },
];

/// A program that ends with the value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy that runs.
struct Proxy {
    name: &'static str,
    process: Process,
    port: u16,
}

/// What one load showed.
#[derive(Clone, Copy)]
struct Sample {
    /// The proxy's CPU time for a request.
    micros: f64,
    rate: f64,
    /// As clients saw them.
    p50_ms: f64,
    p99_ms: f64,
}

pub fn run(options: &Options) -> Result<Outcome> {
    super::build_program()?;
    packages::need(&[
        ("redis-server", "redis-server"),
        ("redis-benchmark", "redis-tools"),
        ("nutcracker", "nutcracker"),
        ("perf", "linux-perf"),
    ])?;
    let ports = PortBlock::claim()?;
    let directory = std::env::temp_dir().join(format!("keyfleet-bench-proxy-{}", ports.tcp));
    fs::create_dir_all(&directory)?;
    let measured = measure(options, ports.tcp, &directory);
    fs::remove_dir_all(&directory)?;
    measured
}

fn measure(options: &Options, first: u16, directory: &Path) -> Result<Outcome> {
    let mut servers = Vec::new();
    for port in first..first + SERVERS {
        let mut server = Command::new("redis-server");
        server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        servers.push(start(&mut server, directory, port)?);
    }
    let peer = nutcracker(first, first + SERVERS, directory)?;
    let ours = keyfleet(first, first + SERVERS + 1, directory)?;
    let mut outcome = Outcome { bench: "proxy", ..Outcome::default() };
    // The keys that are read later.
    let fill = Load { requests: 3 * KEYS, ..LOADS[2] };
    load(&ours, &fill, 1.0)?;
    load(&peer, &fill, 1.0)?;
    println!(
        "{:<12} {:>5} {:>9} {:>9} {:>6}   {:>9} {:>9}   {:>13} {:>13}",
        "", "round", "us", "peer us", "ratio", "req/s", "peer", "p50/p99 ms", "peer"
    );
    for each in &LOADS {
        one_load(options, each, &ours, &peer, &mut outcome)?;
    }
    for (each, wanted) in [(&LOADS[0], 2.5), (&LOADS[1], 2.5)] {
        let (own, theirs) = (syscalls(&ours, each)?, syscalls(&peer, each)?);
        println!("{:<12} syscalls a request: {own:.2}, peer {theirs:.2}", each.name);
        outcome.figures.insert(format!("{} syscalls", each.name), own);
        outcome.figures.insert(format!("{} syscalls nutcracker", each.name), theirs);
        outcome.goals.push(Goal::at_most(format!("{}, syscalls", each.name), wanted, own));
    }
    let (own, theirs) = (idle_bytes(&ours, options.idle)?, idle_bytes(&peer, options.idle)?);
    println!("{:<12} bytes a connection: {own:.0}, peer {theirs:.0}", "idle");
    outcome.figures.insert("idle bytes".to_owned(), own);
    outcome.figures.insert("idle bytes nutcracker".to_owned(), theirs);
    outcome.goals.push(Goal::at_most("an idle client, bytes", 1_024.0, own));
    Ok(outcome)
}

fn one_load(
    options: &Options,
    each: &Load,
    ours: &Proxy,
    peer: &Proxy,
    outcome: &mut Outcome,
) -> Result<()> {
    let (mut own, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let (mine, other);
        if round % 2 == 0 {
            mine = load(ours, each, options.scale)?;
            other = load(peer, each, options.scale)?;
        } else {
            other = load(peer, each, options.scale)?;
            mine = load(ours, each, options.scale)?;
        }
        ratios.push(mine.micros / other.micros);
        show(each.name, &(round + 1).to_string(), mine, other, mine.micros / other.micros);
        own.push(mine);
        theirs.push(other);
    }
    let (mine, other, ratio) = (middle(&own), middle(&theirs), median(&ratios));
    show(each.name, "mid", mine, other, ratio);
    for (name, value) in [
        ("us", mine.micros),
        ("us nutcracker", other.micros),
        ("ratio", ratio),
        ("req/s", mine.rate),
        ("req/s nutcracker", other.rate),
        ("p50 ms", mine.p50_ms),
        ("p99 ms", mine.p99_ms),
        ("p50 ms nutcracker", other.p50_ms),
        ("p99 ms nutcracker", other.p99_ms),
    ] {
        outcome.figures.insert(format!("{} {name}", each.name), value);
    }
    let goal = format!("{}, times nutcracker's CPU", each.name);
    outcome.goals.push(Goal::at_most(goal, each.wanted, ratio));
    Ok(())
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

fn benchmark(port: u16, load: &Load, requests: u32) -> Result<String> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-p", &port.to_string(), "-c", CLIENTS, "-n", &requests.to_string()]);
    command.args(["-P", &load.depth.to_string(), "-d", VALUE_BYTES, "-r", &KEYS.to_string()]);
    let data = "x".repeat(VALUE_BYTES.parse()?);
    let words = load.command.iter().map(|word| word.replace("__data__", &data));
    output(command.arg("--csv").args(words))
}

fn load(proxy: &Proxy, load: &Load, scale: f64) -> Result<Sample> {
    let requests = (f64::from(load.requests) * scale) as u32;
    let before = cpu_nanos(&proxy.process)?;
    let report = benchmark(proxy.port, load, requests)?;
    let spent = cpu_nanos(&proxy.process)? - before;
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
    Ok(Sample { micros: spent as f64 / 1_000.0 / f64::from(requests), rate, p50_ms, p99_ms })
}

/// All the CPU time its threads have had.
fn cpu_nanos(process: &Process) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{}/task", process.0.id()))? {
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        sum += stat.split(' ').next().unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

/// System calls for a request, counted by the kernel's own trace point.
fn syscalls(proxy: &Proxy, load: &Load) -> Result<f64> {
    let requests = 100_000;
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter"]);
    perf.args(["-p", &proxy.process.0.id().to_string()]);
    let perf = perf.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("perf")?;
    // It counts from when it has attached.
    thread::sleep(Duration::from_millis(500));
    benchmark(proxy.port, load, requests)?;
    let pid = perf.id().to_string();
    output(Command::new("kill").args(["-INT", &pid]))?;
    let said = String::from_utf8_lossy(&perf.wait_with_output()?.stderr).into_owned();
    let line = said.lines().find(|line| line.contains("sys_enter"));
    let count: f64 = line
        .and_then(|line| line.split(',').next()?.parse().ok())
        .with_context(|| format!("perf said {said:?}"))?;
    Ok(count / f64::from(requests))
}

/// What a connection that asked once and is silent since takes of the proxy's memory.
fn idle_bytes(proxy: &Proxy, count: usize) -> Result<f64> {
    use std::io::{Read as _, Write as _};
    let open = || -> Result<Vec<TcpStream>> {
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port))?;
            stream.set_read_timeout(Some(START_TIME_MAX))?;
            stream.write_all(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n")?;
            ensure!(stream.read(&mut [0; 64])? > 0, "no answer from {}", proxy.name);
            streams.push(stream);
        }
        Ok(streams)
    };
    let before = resident_bytes(&proxy.process)?;
    let streams = open()?;
    let after = resident_bytes(&proxy.process)?;
    drop(streams);
    Ok((after - before) / count as f64)
}

fn resident_bytes(process: &Process) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(kilobytes.context("no VmRSS")? * 1_024.0)
}

fn configuration(first: u16, port: u16, path: &Path) -> Result<()> {
    let mut text = format!(
        "ring:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  \
         redis: true\n  servers:\n"
    );
    for server in first..first + SERVERS {
        text.push_str(&format!("    - 127.0.0.1:{server}:1\n"));
    }
    Ok(fs::write(path, text)?)
}

fn nutcracker(first: u16, port: u16, directory: &Path) -> Result<Proxy> {
    let file = directory.join("nutcracker.yml");
    configuration(first, port, &file)?;
    let mut command = Command::new("nutcracker");
    command.arg("--conf-file").arg(&file).args(["--stats-port", &(port + 10).to_string()]);
    Ok(Proxy { name: "nutcracker", process: start(&mut command, directory, port)?, port })
}

fn keyfleet(first: u16, port: u16, directory: &Path) -> Result<Proxy> {
    let file = directory.join("keyfleet.yml");
    configuration(first, port, &file)?;
    let program: PathBuf = target().join("release/keyfleet");
    let mut command = Command::new(program);
    command.args(["proxy", "--twemproxy"]).arg(&file);
    Ok(Proxy { name: "keyfleet", process: start(&mut command, directory, port)?, port })
}

/// Starts a program and waits until it listens.
fn start(command: &mut Command, directory: &Path, port: u16) -> Result<Process> {
    let program = command.get_program().to_string_lossy().into_owned();
    let log = fs::File::create(directory.join(format!("log-{port}")))?;
    command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut process = Process(command.spawn().with_context(|| program.clone())?);
    let give_up = Instant::now() + START_TIME_MAX;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if process.0.try_wait()?.is_some() || Instant::now() > give_up {
            let log = fs::read_to_string(directory.join(format!("log-{port}")))?;
            bail!("{program} does not start:\n{log}");
        }
        thread::sleep(RETRY);
    }
    Ok(process)
}
