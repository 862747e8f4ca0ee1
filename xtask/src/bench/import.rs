//! `cargo xtask bench import`: a file with keys of all types into three nodes, by us and by what
//! sends ready RESTOREs and does nothing else (the target's limit); into one node by rdb-tools and
//! `redis-cli --pipe`; from a server by `redis-cli --cluster import`.
//!
//! We and the limit take turns, and each round's rates are compared: whoever else works on the
//! machine then slows both. CPU is told for both: where all share a machine's cores, who sends
//! what was made before has the advantage of what it didn't do.
//!
//! The peers get fewer keys, because they take minutes for many; rates are compared.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use protocol::{
    key_slot,
    rdb::{
        Encoding, Event, Fault, Format, Item, Key, Limits, Reader, Writer, dump, encode,
        payload_format,
    },
    resp::encode_command,
};
use tests::{
    cluster::{RawCluster, Shape, call, text},
    engines::engine,
    server::{Server, new_directory},
};

use super::{Goal, Outcome, build_program, median};
use crate::command::{self, output, target};

const RDB_TOOLS: &str = "rdbtools==0.1.15";

/// 2100-01-01.
const END_MS: u64 = 4_102_444_800_000;

#[derive(Args)]
pub struct Options {
    #[arg(long, default_value_t = 600_000)]
    keys: usize,
    /// For the peers.
    #[arg(long, default_value_t = 50_000)]
    peer_keys: usize,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

pub async fn run(options: &Options) -> Result<Outcome> {
    build_program()?;
    let mut outcome = Outcome { bench: "import", ..Outcome::default() };
    let scratch = new_directory()?;
    let result = measure(options, &scratch, &mut outcome).await;
    let _ = fs::remove_dir_all(&scratch);
    result.map(|()| outcome)
}

async fn measure(options: &Options, scratch: &Path, outcome: &mut Outcome) -> Result<()> {
    let mut figure = |name: &str, value: f64| {
        println!("{name:<40} {value:>12.2}");
        outcome.figures.insert(name.to_owned(), value);
    };
    let file = make(options.keys, scratch, "all").await?;
    let size = fs::metadata(&file)?.len();
    println!("{} keys, {size} bytes", options.keys);
    let server = engine("redis", "7.0").server;
    let shape = Shape { server: &server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await?;
    let ready = ready(&file, &cluster).await?;
    let (mut own, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        empty(&cluster).await?;
        let before = cpu(&cluster).await?;
        let used = ours(&file, &cluster.addresses()[0].to_string(), scratch)?;
        own.push(Turn { used, servers: cpu(&cluster).await? - before });
        ensure!(held(&cluster).await? == options.keys, "keys are missing");
        empty(&cluster).await?;
        let (before, sender) = (cpu(&cluster).await?, cpu_used().0);
        let seconds = send(&ready)?;
        let cpu_seconds = cpu_used().0 - sender;
        let used = Used { seconds, cpu_seconds, peak_bytes: 0 };
        bare.push(Turn { used, servers: cpu(&cluster).await? - before });
        ensure!(held(&cluster).await? == options.keys, "keys are missing");
    }
    let of = |turns: &[Turn], figure: fn(&Turn) -> f64| {
        median(&turns.iter().map(figure).collect::<Vec<_>>())
    };
    let keys = options.keys as f64;
    let rate = keys / of(&own, |turn| turn.used.seconds);
    let share = of(&own, |turn| turn.used.cpu_seconds / turn.servers);
    let limit = own.iter().zip(&bare).map(|(own, bare)| bare.used.seconds / own.used.seconds);
    let limit = median(&limit.collect::<Vec<_>>());
    let by_cpu = own.iter().zip(&bare).map(|(own, bare)| bare.cpu() / own.cpu());
    let by_cpu = median(&by_cpu.collect::<Vec<_>>());
    let peak = own.iter().map(|turn| turn.used.peak_bytes).max().unwrap_or_default();
    let peak = peak as f64 / f64::from(1 << 20);
    let micros = 1e6 / keys;
    figure("keyfleet import, keys/s", rate);
    figure("bare pipelined RESTORE, keys/s", keys / of(&bare, |turn| turn.used.seconds));
    figure("servers under import, us of CPU a key", of(&own, |turn| turn.servers) * micros);
    figure("servers under RESTORE, us of CPU a key", of(&bare, |turn| turn.servers) * micros);
    figure("import, us of CPU a key", of(&own, |turn| turn.used.cpu_seconds) * micros);
    figure("bare sender, us of CPU a key", of(&bare, |turn| turn.used.cpu_seconds) * micros);
    figure("share of the limit, by all CPU", by_cpu);
    figure("own CPU as a share of the servers'", share);
    figure("peak memory, MiB", peak);

    let few = make(options.peer_keys, scratch, "few").await?;
    let keys = options.peer_keys as f64;
    let tools = rdb_tools()?;
    let single = Server::start(&server, &[]).await?;
    let seconds = piped(&tools, &few, single.address)?;
    let mut link = single.link().await?;
    let size = call(&mut link, &["DBSIZE"]).await?.as_integer();
    ensure!(size == i64::try_from(options.peer_keys).ok(), "rdb-tools loaded {size:?} keys");
    let piped = keys / seconds;
    figure("rdb-tools | redis-cli --pipe, keys/s", piped);
    empty(&cluster).await?;
    let seconds = cluster_import(single.address, cluster.addresses()[0])?;
    ensure!(held(&cluster).await? == options.peer_keys, "redis-cli left keys out");
    figure("redis-cli --cluster import, keys/s", keys / seconds);
    outcome.goals.extend([
        Goal::at_least("times rdb-tools' rate", 15.0, rate / piped),
        Goal::at_least("share of the target's limit", 0.9, limit),
        Goal::at_most("own CPU as a share of the servers'", 0.2, share),
        Goal::at_most("peak memory, MiB", 64.0, peak),
    ]);
    Ok(())
}

/// Saves keys of all types, as redis 6.2 packs them: the newest format that rdb-tools reads.
pub(super) async fn make(keys: usize, scratch: &Path, name: &str) -> Result<PathBuf> {
    let directory = scratch.join(name);
    fs::create_dir_all(&directory)?;
    let path = directory.join("dump.rdb");
    let mut file = fs::File::create(&path)?;
    let mut writer = Writer::new(Format::redis(9));
    writer.select_db(0);
    for number in 0..keys {
        let (name, encoding, raw) = entry(number)?;
        let mut key = Key::new(0, name.as_bytes(), encoding);
        key.expire_at_ms = (number % 4 == 0).then_some(END_MS);
        writer.entry(&key, &raw);
        if writer.bytes().len() > 1 << 20 {
            file.write_all(writer.bytes())?;
            writer.clear();
        }
    }
    file.write_all(&writer.finish())?;
    let directory = directory.to_string_lossy().into_owned();
    let server = Server::start(&engine("redis", "6.2").server, &["--dir", &directory]).await?;
    let mut link = server.link().await?;
    call(&mut link, &["SAVE"]).await?;
    Ok(path)
}

fn entry(number: usize) -> Result<(String, Encoding, Vec<u8>), Fault> {
    let text = |what: &str, at: usize| format!("{what}:{number}:{at}").into_bytes().into();
    let (kind, encoding) = [
        ("string", Encoding::String),
        ("string", Encoding::String),
        ("hash", Encoding::Hash),
        ("list", Encoding::List),
        ("set", Encoding::Set),
        ("zset", Encoding::SortedSet),
    ][number % 6];
    let count = if encoding == Encoding::String { 1 } else { 8 };
    let items = (0..count).map(|at| {
        Ok(match encoding {
            Encoding::String => Item::Text(format!("{number:0>90}").into_bytes().into()),
            Encoding::Hash => Item::Field {
                name: text("field", at),
                value: text("value", at),
                expire_at_ms: None,
            },
            Encoding::List => Item::Element(text("element", at)),
            Encoding::Set => Item::Member(text("member", at)),
            _ => Item::Scored { member: text("member", at), score: at as f64 },
        })
    });
    Ok((format!("{kind}:{number}"), encoding, encode(items, encoding)?))
}

/// What a program used.
pub(super) struct Used {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
}

/// What one load used.
struct Turn {
    used: Used,
    /// Seconds of CPU of the servers.
    servers: f64,
}

impl Turn {
    /// Seconds of CPU of all together.
    fn cpu(&self) -> f64 {
        self.used.cpu_seconds + self.servers
    }
}

/// An import by the program that is delivered.
pub(super) fn ours(file: &Path, to: &str, scratch: &Path) -> Result<Used> {
    let mut command = Command::new(target().join("release").join("keyfleet"));
    command.args(["import", "--replace", "--to", to]).arg(file).env("XDG_STATE_HOME", scratch);
    watched(&mut command)
}

/// Runs it to its end, and looks at what it uses meanwhile.
pub(super) fn watched(command: &mut Command) -> Result<Used> {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let before = cpu_used().1;
    let process = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak_bytes = 0;
    loop {
        if let Some(status) = child.try_wait()? {
            let seconds = started.elapsed().as_secs_f64();
            ensure!(status.success(), "{command:?}: {status}");
            return Ok(Used { seconds, cpu_seconds: cpu_used().1 - before, peak_bytes });
        }
        let status = fs::read_to_string(&process).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak_bytes = peak_bytes.max(peak.unwrap_or_default() << 10);
        thread::sleep(Duration::from_millis(1));
    }
}

/// Seconds of CPU that this process has used; those of programs that it ran to their end.
fn cpu_used() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
    // Linux counts a hundred a second for programs.
    let ticks: Vec<f64> = ticks.filter_map(|text| text.parse().ok()).collect();
    let seconds = |part: Option<&[f64]>| part.unwrap_or_default().iter().sum::<f64>() / 100.0;
    (seconds(ticks.get(..2)), seconds(ticks.get(2..)))
}

/// For each primary, RESTORE of all its keys, and how many they are.
async fn ready(file: &Path, cluster: &RawCluster) -> Result<Vec<(SocketAddr, Vec<u8>, usize)>> {
    let target = engine("redis", "7.0").engine;
    let owners = cluster.owners().await?;
    let mut ready: Vec<_> =
        cluster.addresses().into_iter().map(|address| (address, Vec::new(), 0)).collect();
    let mut reader = Reader::new(Limits::default());
    reader.feed(&fs::read(file)?);
    while let Some(record) = reader.next()? {
        let Event::Entry(entry) = record.event else { continue };
        let format = payload_format(&target, entry.key.encoding).context("a payload")?;
        let payload = dump::payload(entry.key.encoding, entry.raw, format);
        let end = entry.key.expire_at_ms.unwrap_or(0).to_string();
        let owner = owners[usize::from(key_slot(&entry.key.name).number())];
        let (_, commands, count) = ready.get_mut(owner).context("an owner")?;
        let words: [&[u8]; 6] =
            [b"RESTORE", &entry.key.name, end.as_bytes(), &payload, b"REPLACE", b"ABSTTL"];
        encode_command(words, commands);
        *count += 1;
    }
    Ok(ready)
}

/// Sends everything at once on a connection each; the seconds that it took.
fn send(ready: &[(SocketAddr, Vec<u8>, usize)]) -> Result<f64> {
    let started = Instant::now();
    thread::scope(|scope| {
        let lanes: Vec<_> = ready
            .iter()
            .map(|(address, commands, count)| {
                scope.spawn(move || -> Result<()> {
                    let stream = TcpStream::connect(address)?;
                    let mut writer = stream.try_clone()?;
                    thread::scope(|scope| {
                        let writing = scope.spawn(move || writer.write_all(commands));
                        answers(&stream, *count)?;
                        writing.join().map_err(|_| anyhow::anyhow!("a thread failed"))??;
                        Ok(())
                    })
                })
            })
            .collect();
        for lane in lanes {
            lane.join().map_err(|_| anyhow::anyhow!("a thread failed"))??;
        }
        Ok(started.elapsed().as_secs_f64())
    })
}

fn answers(mut stream: &TcpStream, count: usize) -> Result<()> {
    let mut left = count * b"+OK\r\n".len();
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let read = stream.read(&mut buffer)?;
        let fresh = buffer.get(..read).unwrap_or_default();
        if read == 0 || fresh.contains(&b'-') {
            bail!("a RESTORE is refused: {}", fresh.escape_ascii());
        }
        left = left.saturating_sub(read);
    }
    Ok(())
}

/// Seconds of CPU that the servers have used.
async fn cpu(cluster: &RawCluster) -> Result<f64> {
    let mut seconds = 0.0;
    for index in 0..3 {
        let info = text(&mut cluster.link(index).await?, &["INFO", "cpu"]).await?;
        for field in ["used_cpu_sys:", "used_cpu_user:"] {
            let value = info.lines().find_map(|line| line.strip_prefix(field));
            seconds += value.context("INFO cpu")?.trim().parse::<f64>()?;
        }
    }
    Ok(seconds)
}

async fn empty(cluster: &RawCluster) -> Result<()> {
    for index in 0..3 {
        call(&mut cluster.link(index).await?, &["FLUSHALL"]).await?;
    }
    Ok(())
}

async fn held(cluster: &RawCluster) -> Result<usize> {
    let mut keys = 0;
    for index in 0..3 {
        let size = call(&mut cluster.link(index).await?, &["DBSIZE"]).await?;
        keys += usize::try_from(size.as_integer().unwrap_or_default())?;
    }
    Ok(keys)
}

/// rdb-tools in a Python environment of its own; the program.
pub(super) fn rdb_tools() -> Result<PathBuf> {
    let environment = target().join("bench-peers").join(RDB_TOOLS);
    let program = environment.join("bin").join("rdb");
    if !program.is_file() {
        output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
        let pip = environment.join("bin").join("pip");
        let quiet = ["install", "--quiet", "--disable-pip-version-check"];
        output(Command::new(&pip).args(quiet).args(["wheel", "setuptools<81"]))?;
        output(Command::new(&pip).args(quiet).args([RDB_TOOLS, "python-lzf"]))?;
    }
    Ok(program)
}

fn piped(tools: &Path, file: &Path, to: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    let mut rdb = Command::new(tools)
        .args(["-c", "protocol"])
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let commands = rdb.stdout.take().context("its output")?;
    let cli = engine("redis", "7.0").cli.context("no command line program")?;
    command::run(
        Command::new(cli)
            .args(["-h", &to.ip().to_string(), "-p", &to.port().to_string(), "--pipe"])
            .stdin(commands)
            .stdout(Stdio::null()),
    )?;
    rdb.wait()?;
    Ok(started.elapsed().as_secs_f64())
}

fn cluster_import(from: SocketAddr, to: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    let cli = engine("redis", "7.0").cli.context("no command line program")?;
    command::run(
        Command::new(cli)
            .args(["--cluster", "import", &to.to_string()])
            .args(["--cluster-from", &from.to_string(), "--cluster-copy"])
            .stdin(Stdio::null())
            .stdout(Stdio::null()),
    )?;
    Ok(started.elapsed().as_secs_f64())
}
