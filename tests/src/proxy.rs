//! `keyfleet proxy` in front of servers, in this process or as the program.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use keyfleet::proxy::{Proxy, Service, Setup, replicas::Reading};
use proxy::{engine::Profile, route::Address};

use crate::fleet::program;

/// How long anything may take.
pub const TIME_MAX: Duration = Duration::from_secs(20);

/// Waits for something.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + TIME_MAX;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The most memory that a process ever had, in bytes. Source: proc(5).
pub fn peak_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).expect("its peak");
    kib.parse::<usize>().expect("a number") * 1024
}

/// A running proxy; dropping it ends it.
pub struct Front {
    pub address: SocketAddr,
    proxy: Option<Proxy>,
}

impl Front {
    /// In front of the cluster that these nodes belong to.
    pub fn start(nodes: &[SocketAddr], threads: usize) -> Result<Self> {
        Self::serve(Self::setup(nodes, threads), Service::default())
    }

    /// What [`Front::start`] starts.
    pub fn setup(nodes: &[SocketAddr], threads: usize) -> Setup {
        Setup {
            listen: vec![Address::Tcp((Ipv4Addr::LOCALHOST, 0).into())],
            threads,
            seeds: nodes.iter().map(|node| Address::Tcp(*node)).collect(),
            profile: Profile::default(),
            client_password: None,
            tls: None,
            tls_listen: None,
            reading: Reading::default(),
            near: None,
        }
    }

    /// Something else.
    pub fn serve(setup: Setup, service: Service) -> Result<Self> {
        let proxy = Proxy::start_with(setup, service, true).context("the proxy")?;
        let Some((&Address::Tcp(address), _)) = proxy.listens().next() else {
            bail!("it listens elsewhere")
        };
        Ok(Self { address, proxy: Some(proxy) })
    }

    /// Its figures as Prometheus reads them.
    pub fn figures(&self) -> String {
        self.proxy.as_ref().map(|proxy| proxy.figures().text()).unwrap_or_default()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            let _ = proxy.stop();
        }
    }
}

/// The program; dropping it kills it.
pub struct Program {
    pub child: Child,
    /// Where it listens for plain clients, and for others.
    pub plain: SocketAddr,
    pub tls: Option<SocketAddr>,
}

impl Program {
    /// In front of the cluster that these nodes belong to.
    pub fn start(nodes: &[SocketAddr], args: &[&str]) -> Self {
        Self::try_start(nodes, args).unwrap_or_else(|said| panic!("{said}"))
    }

    /// Likewise; an error is what it said before it ended.
    pub fn try_start(nodes: &[SocketAddr], args: &[&str]) -> Result<Self, String> {
        Self::spawn(Command::new(program()), nodes, args)
    }

    /// Likewise, where so many files may be open.
    pub fn start_with_files(files: u32, nodes: &[SocketAddr], args: &[&str]) -> Self {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        command.args(["-c", &limited]).arg(program());
        Self::spawn(command, nodes, args).unwrap_or_else(|said| panic!("{said}"))
    }

    fn spawn(mut command: Command, nodes: &[SocketAddr], args: &[&str]) -> Result<Self, String> {
        let nodes: Vec<String> = nodes.iter().map(SocketAddr::to_string).collect();
        command.args(["proxy", "--connect", &nodes.join(",")]).args(args);
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program runs");
        let mut said = BufReader::new(child.stderr.take().expect("it is piped"));
        let mut lines = String::new();
        while !lines.contains("Serving at") {
            if said.read_line(&mut lines).expect("it writes text") == 0 {
                let _ = child.wait();
                return Err(lines);
            }
        }
        let line = lines.lines().last().unwrap_or_default();
        let addresses: Vec<SocketAddr> = line
            .split([' ', ','])
            .filter_map(|word| word.trim_end_matches('.').parse().ok())
            .collect();
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::stderr()));
        Ok(Self { child, plain: addresses[0], tls: addresses.get(1).copied() })
    }

    /// Sends the signal of that name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the proxy ends", || {
            status = self.child.try_wait().expect("it is a child");
            status.is_some()
        });
        status.expect("it was waited for")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
