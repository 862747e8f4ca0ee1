//! One real server on loopback, started without keyfleet.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use keyfleet::admin_client::Connection;
use tokio::time::{Instant, sleep};

/// How long a server may take to start or to answer.
pub const TIME_MAX: Duration = Duration::from_secs(60);
/// Between two looks at something that is waited for.
pub const POLL: Duration = Duration::from_millis(20);

/// A running server; dropping it kills it and removes its directory.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    process: Child,
    directory: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    /// Starts a server without persistence on a free port and waits until it answers. `config` is
    /// directives as arguments: `["--maxmemory", "100mb"]`.
    pub async fn start(program: &Path, config: &[&str]) -> Result<Self> {
        let mut said = None;
        for _ in 0..10 {
            let mut server = Self::spawn(program, config)?;
            if server.answers().await? {
                return Ok(server);
            }
            // Another may have taken the port meanwhile.
            said = fs::read_to_string(server.directory.join("log")).ok();
        }
        let said = said.unwrap_or_default();
        bail!("the server doesn't start: {}", said.lines().last().unwrap_or("it wrote no log"));
    }

    /// Starts a server without persistence in the place of one that ended.
    pub async fn start_at(program: &Path, address: SocketAddr) -> Result<Self> {
        let mut server = Self::spawn_at(program, &[], address)?;
        ensure!(server.answers().await?, "the server doesn't start at {address}");
        Ok(server)
    }

    /// Waits until it answers; false: it ended before it did.
    async fn answers(&mut self) -> Result<bool> {
        let deadline = Instant::now() + TIME_MAX;
        while self.process.try_wait()?.is_none() && Instant::now() < deadline {
            if let Ok(mut link) = self.link().await
                && link.call_within(TIME_MAX, ["PING"]).await.is_ok()
            {
                return Ok(true);
            }
            sleep(POLL).await;
        }
        Ok(false)
    }

    fn spawn(program: &Path, config: &[&str]) -> Result<Self> {
        Self::spawn_at(program, config, SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
    }

    fn spawn_at(program: &Path, config: &[&str], address: SocketAddr) -> Result<Self> {
        let directory = new_directory()?;
        let defaults = [
            ["--bind", "127.0.0.1"],
            ["--save", ""],
            ["--appendonly", "no"],
            ["--logfile", "log"],
            ["--repl-diskless-sync-delay", "0"],
        ];
        let process = Command::new(program)
            .args(["--port", &address.port().to_string()])
            .args(defaults.as_flattened())
            .args(config)
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| program.display().to_string())?;
        Ok(Self { address, process, directory })
    }

    /// A connection to it.
    pub async fn link(&self) -> Result<Connection> {
        Ok(Connection::open(self.address, None, TIME_MAX).await?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// kill -9; it stays dead.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// A new directory of this process's own.
pub fn new_directory() -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("keyfleet-raw-{}-{number}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    Ok(directory)
}

/// A port that is free, with its bus port (10,000 above, which older engines insist on).
pub fn free_port() -> Result<u16> {
    for _ in 0..1_000 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        if let Some(bus) = port.checked_add(10_000)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, bus)).is_ok()
        {
            return Ok(port);
        }
    }
    bail!("no free port whose bus port is free too");
}
