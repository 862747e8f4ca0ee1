//! twemproxy itself, as Debian packages it, over twin standalone servers.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    engines::engine,
    server::{POLL, Server, TIME_MAX, free_port, new_directory},
};

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
}

/// Two rings alike of standalone servers, each with its nutcracker.yml.
#[derive(Debug)]
pub struct Twins {
    pub servers: Vec<[Server; 2]>,
    /// Where each ring's proxy listens.
    pub listen: [SocketAddr; 2],
    /// Its configuration files.
    pub files: [PathBuf; 2],
    directory: PathBuf,
}

impl Drop for Twins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Twins {
    pub async fn start(pool: &Pool) -> Result<Self> {
        let redis = engine("redis", "7.0").server;
        let mut servers = Vec::new();
        for _ in pool.weights {
            servers.push([Server::start(&redis, &[]).await?, Server::start(&redis, &[]).await?]);
        }
        let directory = new_directory()?;
        let mut listen = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); 2];
        let mut files = [directory.join("left.yml"), directory.join("right.yml")];
        for (side, file) in files.iter_mut().enumerate() {
            listen[side].set_port(free_port()?);
            let mut text = format!(
                "pool:\n  listen: {}\n  redis: true\n  hash: {}\n  distribution: {}\n",
                listen[side], pool.hash, pool.distribution
            );
            if let Some(tag) = pool.hash_tag {
                text += &format!("  hash_tag: \"{tag}\"\n");
            }
            text += "  servers:\n";
            for (index, weight) in pool.weights.iter().enumerate() {
                // Without names the ring is made of addresses, which twins don't share.
                let address = servers[index][side].address;
                let name = if pool.named { format!(" server{index}") } else { String::new() };
                text += &format!("   - {address}:{weight}{name}\n");
            }
            fs::write(&*file, text)?;
        }
        Ok(Self { servers, listen, files, directory })
    }

    /// The addresses of each server and its twin.
    pub fn backends(&self) -> Vec<[SocketAddr; 2]> {
        self.servers.iter().map(|[left, right]| [left.address, right.address]).collect()
    }
}

/// A running proxy; dropping it kills it.
#[derive(Debug)]
pub struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    /// twemproxy with a configuration file.
    pub async fn nutcracker(file: &PathBuf, listen: SocketAddr) -> Result<Self> {
        let mut command = Command::new("nutcracker");
        command.arg("-c").arg(file).args(["-s", &free_port()?.to_string(), "-a", "127.0.0.1"]);
        Self::start(command, listen).await
    }

    /// Starts a proxy and waits until it takes connections.
    pub async fn start(mut command: Command, listen: SocketAddr) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut proxy = Self(command.spawn().with_context(|| format!("{command:?}"))?);
        let deadline = Instant::now() + TIME_MAX;
        while TcpStream::connect(listen).is_err() {
            ensure!(proxy.0.try_wait()?.is_none(), "{command:?} ended");
            ensure!(Instant::now() < deadline, "{command:?} doesn't listen");
            sleep(POLL).await;
        }
        Ok(proxy)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}
