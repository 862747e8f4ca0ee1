//! Servers, proxies in front of them, and what the kernel knows of a process.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, getrlimit, setrlimit};
use tests::ports::PortBlock;

use crate::command::{output, target};

const SERVERS: u16 = 3;
/// Ports of a block.
const PORTS: u16 = 40;
const START_TIME_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

/// A program that ends with the value.
pub struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// All the CPU time its threads have had.
    pub fn cpu_nanos(&self) -> Result<u64> {
        cpu_nanos(self.id())
    }

    /// VmRSS or VmHWM.
    pub fn memory_bytes(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        Ok(kilobytes.with_context(|| format!("no {field}"))? * 1_024.0)
    }

    /// From now on VmHWM is the peak since now.
    pub fn forget_peak(&self) -> Result<()> {
        Ok(fs::write(format!("/proc/{}/clear_refs", self.id()), "5")?)
    }

    /// What it has done of something that the kernel counts, while `work` ran.
    pub fn count(&self, event: &str, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let mut perf = Command::new("perf");
        perf.args(["stat", "-x", ",", "-e", event, "-p", &self.id().to_string()]);
        let perf = perf.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("perf")?;
        // It counts from when it has attached.
        thread::sleep(Duration::from_millis(500));
        let worked = work();
        output(Command::new("kill").args(["-INT", &perf.id().to_string()]))?;
        let said = String::from_utf8_lossy(&perf.wait_with_output()?.stderr).into_owned();
        worked?;
        let line = said.lines().find(|line| line.contains(event));
        line.and_then(|line| line.split(',').next()?.parse().ok())
            .with_context(|| format!("perf said {said:?}"))
    }
}

/// All the CPU time a process's threads have had.
pub fn cpu_nanos(pid: u32) -> Result<u64> {
    Ok(cpu_by_thread(pid)?.into_iter().map(|(_, nanos)| nanos).sum())
}

/// Each thread's id and CPU time.
pub fn cpu_by_thread(pid: u32) -> Result<Vec<(String, u64)>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        let stat = fs::read_to_string(task.path().join("schedstat"))?;
        let nanos = stat.split(' ').next().unwrap_or_default().parse()?;
        threads.push((task.file_name().to_string_lossy().into_owned(), nanos));
    }
    Ok(threads)
}

/// A proxy that runs.
pub struct Proxy {
    pub name: &'static str,
    pub process: Process,
    pub port: u16,
}

/// What all parts need.
pub struct Rig {
    pub directory: PathBuf,
    ports: PortBlock,
    taken: u16,
    servers: Vec<Process>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Rig {
    /// Three servers that know nothing of each other.
    pub fn start() -> Result<Self> {
        let ports = PortBlock::claim()?;
        let directory = std::env::temp_dir().join(format!("keyfleet-bench-proxy-{}", ports.tcp));
        fs::create_dir_all(&directory)?;
        let mut rig = Self { directory, ports, taken: 0, servers: Vec::new() };
        for _ in 0..SERVERS {
            let server = rig.server(&[])?.0;
            rig.servers.push(server);
        }
        Ok(rig)
    }

    /// One more server, with these directives.
    pub fn server(&mut self, config: &[&str]) -> Result<(Process, u16)> {
        let port = self.port()?;
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(config);
        Ok((self.process(&mut command, port)?, port))
    }

    /// The servers of the ring.
    pub fn servers(&self) -> Vec<SocketAddr> {
        (self.ports.tcp..self.ports.tcp + SERVERS).map(loopback).collect()
    }

    /// A port that nobody uses.
    pub fn port(&mut self) -> Result<u16> {
        ensure!(self.taken < PORTS, "no port left");
        self.taken += 1;
        Ok(self.ports.tcp + self.taken - 1)
    }

    /// nutcracker in front of the ring.
    pub fn nutcracker(&mut self) -> Result<Proxy> {
        let (port, stats) = (self.port()?, self.port()?);
        let file = self.ring(port)?;
        let mut command = Command::new("nutcracker");
        command.arg("--conf-file").arg(&file).args(["--stats-port", &stats.to_string()]);
        Ok(Proxy { name: "nutcracker", process: self.process(&mut command, port)?, port })
    }

    /// keyfleet in front of the ring.
    pub fn keyfleet(&mut self, threads: u8) -> Result<Proxy> {
        self.keyfleet_with(&["--threads", &threads.to_string()])
    }

    /// keyfleet in front of the ring, with these arguments.
    pub fn keyfleet_with(&mut self, arguments: &[&str]) -> Result<Proxy> {
        let port = self.port()?;
        let file = self.ring(port)?;
        let mut command = program();
        command.args(arguments).arg("--twemproxy").arg(&file);
        Ok(Proxy { name: "keyfleet", process: self.process(&mut command, port)?, port })
    }

    fn ring(&self, port: u16) -> Result<PathBuf> {
        let mut text = format!(
            "ring:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  \
             redis: true\n  servers:\n"
        );
        for server in self.servers() {
            text.push_str(&format!("    - {server}:1\n"));
        }
        let path = self.directory.join(format!("ring-{port}.yml"));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts a program and waits until it listens.
    pub fn process(&self, command: &mut Command, port: u16) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = self.directory.join(format!("log-{port}"));
        let file = fs::File::create(&log)?;
        command.current_dir(&self.directory).stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let process = Process(command.spawn().with_context(|| program.clone())?);
        wait_until_it_listens(process, port).with_context(|| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            format!("{program} does not start:\n{said}")
        })
    }
}

fn wait_until_it_listens(mut process: Process, port: u16) -> Result<Process> {
    let give_up = Instant::now() + START_TIME_MAX;
    while TcpStream::connect(loopback(port)).is_err() {
        if process.0.try_wait()?.is_some() || Instant::now() > give_up {
            bail!("nobody listens at port {port}");
        }
        thread::sleep(RETRY);
    }
    Ok(process)
}

/// `keyfleet proxy`, as it is delivered.
pub fn program() -> Command {
    let mut command = Command::new(target().join("release").join("keyfleet"));
    command.arg("proxy");
    command
}

pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// As many files as the machine allows, for this process and those it starts.
pub fn raise_open_files() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// How many files a process may have.
pub fn open_files_max() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize)
}

/// A file of the directory, with its path as text.
pub fn write(directory: &Path, name: &str, text: &str) -> Result<String> {
    let path = directory.join(name);
    fs::write(&path, text)?;
    Ok(path.to_string_lossy().into_owned())
}
