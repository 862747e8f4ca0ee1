//! twemproxy itself, as Debian packages it, and keyfleet under its name, over standalone servers.

use std::{
    fs,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    differential,
    engines::engine,
    fleet::program,
    server::{POLL, Server, TIME_MAX, new_directory},
};

/// Every hash, as nutcracker.yml names it.
pub const HASHES: [&str; 12] = [
    "one_at_a_time",
    "md5",
    "crc16",
    "crc32",
    "crc32a",
    "fnv1_64",
    "fnv1a_64",
    "fnv1_32",
    "fnv1a_32",
    "hsieh",
    "murmur",
    "jenkins",
];

/// Every distribution.
pub const DISTRIBUTIONS: [&str; 3] = ["ketama", "modula", "random"];

/// A pool's shape: what stands in its part of nutcracker.yml.
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    pub hash: &'static str,
    pub distribution: &'static str,
    pub hash_tag: Option<&'static str>,
    /// A server each.
    pub weights: &'static [u32],
    /// Servers have names, which then are what the ring is made of.
    pub named: bool,
    /// Further lines: `timeout: 400`.
    pub more: &'static [&'static str],
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            hash: "fnv1a_64",
            distribution: "ketama",
            hash_tag: None,
            weights: &[1, 1, 1],
            named: true,
            more: &[],
        }
    }
}

impl Pool {
    /// Its part of the file.
    pub fn text(&self, name: &str, listen: SocketAddr, servers: &[SocketAddr]) -> String {
        let mut text = format!(
            "{name}:\n  listen: {listen}\n  redis: true\n  hash: {}\n  distribution: {}\n",
            self.hash, self.distribution
        );
        if let Some(tag) = self.hash_tag {
            text += &format!("  hash_tag: \"{tag}\"\n");
        }
        for line in self.more {
            text += &format!("  {line}\n");
        }
        text += "  servers:\n";
        for (index, (weight, address)) in self.weights.iter().zip(servers).enumerate() {
            let name = if self.named { format!(" server{index}") } else { String::new() };
            text += &format!("   - {address}:{weight}{name}\n");
        }
        text
    }
}

/// Every hash with every distribution, with weights and hash tags here and there. A random
/// distribution is compared where it has no choice.
pub fn every_pool() -> Vec<Pool> {
    let mut pools = Vec::new();
    for (number, hash) in HASHES.into_iter().enumerate() {
        for distribution in DISTRIBUTIONS {
            pools.push(Pool {
                hash,
                distribution,
                hash_tag: [None, Some("{}"), Some("::")][number % 3],
                weights: match (distribution, number % 2) {
                    ("random", _) => &[1],
                    (_, 0) => &[1, 1, 1],
                    _ => &[1, 5, 2],
                },
                ..Pool::default()
            });
        }
    }
    pools
}

/// So many servers for tests of rings.
pub async fn servers(count: usize) -> Result<Vec<Server>> {
    let redis = engine("redis", "7.0").server;
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::start(&redis, &[]).await?);
    }
    Ok(servers)
}

/// A directory of its own, removed when dropped.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    pub fn new() -> Result<Self> {
        Ok(Self(new_directory()?))
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Addresses where nobody listens, no two alike.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let listeners: Result<Vec<TcpListener>, _> =
        (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    listeners?.iter().map(|listener| Ok(listener.local_addr()?)).collect()
}

/// Two rings alike of standalone servers, each with its nutcracker.yml.
#[derive(Debug)]
pub struct Twins {
    pub servers: Vec<[Server; 2]>,
    /// Where each pool listens in either ring's proxy.
    pub listen: Vec<[SocketAddr; 2]>,
    /// Its configuration files.
    pub files: [PathBuf; 2],
    /// Where these are.
    pub directory: Directory,
}

impl Twins {
    /// The pools share the servers.
    pub async fn start(pools: &[Pool]) -> Result<Self> {
        let count = pools.iter().map(|pool| pool.weights.len()).max().unwrap_or_default();
        let (left, right) = (servers(count).await?, servers(count).await?);
        let directory = Directory::new()?;
        let ports = free_addresses(2 * pools.len())?;
        let listen: Vec<[SocketAddr; 2]> =
            ports.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect();
        let mut files = Vec::new();
        for (side, ring) in [&left, &right].into_iter().enumerate() {
            let servers: Vec<SocketAddr> = ring.iter().map(|server| server.address).collect();
            let parts = pools.iter().zip(&listen).enumerate();
            let parts = parts.map(|(number, (pool, listen))| {
                pool.text(&format!("pool{number}"), listen[side], &servers)
            });
            files.push(directory.write(&format!("{side}.yml"), &parts.collect::<String>())?);
        }
        let files = [files[0].clone(), files[1].clone()];
        let servers = left.into_iter().zip(right).map(|(left, right)| [left, right]).collect();
        Ok(Self { servers, listen, files, directory })
    }

    /// The addresses of each server and its twin.
    pub fn backends(&self) -> Vec<[SocketAddr; 2]> {
        self.servers.iter().map(|[left, right]| [left.address, right.address]).collect()
    }

    /// Where the pools of one side listen.
    pub fn side(&self, side: usize) -> Vec<SocketAddr> {
        self.listen.iter().map(|pair| pair[side]).collect()
    }
}

/// Sends so many commands in all to twemproxy and to keyfleet, to every kind of pool, and compares.
/// An error tells the command and both answers.
pub async fn compare(commands: usize, seed: u64) -> Result<()> {
    let pools = every_pool();
    let mut tries = 0;
    let (twins, _proxies) = loop {
        match start_both(&pools).await {
            Ok(started) => break started,
            // Of so many ports one may be somebody else's by now.
            Err(error) if tries < 3 => eprintln!("again: {error:#}"),
            Err(error) => return Err(error),
        }
        tries += 1;
    };
    let share = commands.div_ceil(pools.len());
    for (number, (pool, listen)) in pools.iter().zip(&twins.listen).enumerate() {
        differential::compare(*listen, &twins.backends(), share, seed + number as u64)
            .with_context(|| format!("{pool:?}"))?;
    }
    Ok(())
}

async fn start_both(pools: &[Pool]) -> Result<(Twins, [Proxy; 2])> {
    let twins = Twins::start(pools).await?;
    let twemproxy = Proxy::nutcracker(&twins.files[0], &twins.side(0)).await?;
    let keyfleet = Proxy::keyfleet(&twins.files[1], &twins.side(1)).await?;
    Ok((twins, [twemproxy, keyfleet]))
}

/// A running proxy; dropping it kills it.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    /// Where it gives its figures away.
    pub stats: SocketAddr,
    directory: Directory,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    /// twemproxy with a configuration file whose pools listen there.
    pub async fn nutcracker(file: &Path, listen: &[SocketAddr]) -> Result<Self> {
        Self::named(Path::new("nutcracker"), Directory::new()?, file, listen).await
    }

    /// keyfleet under twemproxy's name.
    pub async fn keyfleet(file: &Path, listen: &[SocketAddr]) -> Result<Self> {
        let directory = Directory::new()?;
        let link = directory.0.join("nutcracker");
        symlink(program(), &link)?;
        Self::named(&link, directory, file, listen).await
    }

    async fn named(
        program: &Path,
        directory: Directory,
        file: &Path,
        listen: &[SocketAddr],
    ) -> Result<Self> {
        let stats = free_addresses(1)?[0];
        let mut command = Command::new(program);
        command.arg("-c").arg(file).args(["-a", "127.0.0.1", "-i", "100"]);
        command.args(["-s", &stats.port().to_string()]).arg("-o").arg(directory.0.join("log"));
        Self::start(command, directory, stats, listen).await
    }

    /// `keyfleet proxy --twemproxy` with further arguments.
    pub async fn by_own_name(
        file: &Path,
        listen: &[SocketAddr],
        arguments: &[&str],
    ) -> Result<Self> {
        Self::with_stats(free_addresses(1)?[0], file, listen, arguments).await
    }

    /// The same, that takes the place of another.
    pub async fn in_its_place(
        &self,
        file: &Path,
        listen: &[SocketAddr],
        arguments: &[&str],
    ) -> Result<Self> {
        Self::with_stats(self.stats, file, listen, arguments).await
    }

    async fn with_stats(
        stats: SocketAddr,
        file: &Path,
        listen: &[SocketAddr],
        arguments: &[&str],
    ) -> Result<Self> {
        let mut command = Command::new(program());
        command.args(["-v", "proxy", "--stats", &stats.to_string(), "--twemproxy"]).arg(file);
        command.args(arguments);
        Self::start(command, Directory::new()?, stats, listen).await
    }

    /// Starts a proxy and waits until it takes connections.
    async fn start(
        mut command: Command,
        directory: Directory,
        stats: SocketAddr,
        listen: &[SocketAddr],
    ) -> Result<Self> {
        let said = fs::File::create(directory.0.join("said"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut proxy = Self { child, stats, directory };
        let deadline = Instant::now() + TIME_MAX;
        for address in listen.iter().chain([&stats]) {
            while TcpStream::connect(address).is_err() {
                let ended = proxy.child.try_wait()?;
                ensure!(ended.is_none(), "{command:?} ended: {}", proxy.said());
                ensure!(Instant::now() < deadline, "{command:?} doesn't listen on {address}");
                sleep(POLL).await;
            }
        }
        Ok(proxy)
    }

    /// What it wrote to stderr and to its log so far.
    pub fn said(&self) -> String {
        let read = |name| fs::read_to_string(self.directory.0.join(name)).unwrap_or_default();
        read("said") + &read("log")
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.directory.0.join("log")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name: `HUP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.pid(), name)
    }

    /// Its exit code; waits until it has ended.
    pub async fn ended(&mut self) -> Result<Option<i32>> {
        let deadline = Instant::now() + TIME_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(Instant::now() < deadline, "it doesn't end");
            sleep(POLL).await;
        }
    }

    /// The line of its stats port.
    pub fn stats_line(&self) -> Result<String> {
        let mut line = String::new();
        TcpStream::connect(self.stats)?.read_to_string(&mut line)?;
        Ok(line)
    }

    /// The same as JSON.
    pub fn stats(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.stats_line()?)?)
    }
}

/// Sends a process a signal by name.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let sent = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    ensure!(sent.success(), "kill -{name} {pid}");
    Ok(())
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + TIME_MAX;
    while !holds()? {
        ensure!(Instant::now() < deadline, "in vain: {what}");
        sleep(POLL).await;
    }
    Ok(())
}
