//! Azurite on loopback: it speaks as Azure's storage does, and checks signatures.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::{Instant, sleep};

use crate::{
    clients,
    server::{TIME_MAX, free_port},
};

/// The container that is there.
pub const CONTAINER: &str = "fleet-backups";
/// Whose it is, and his key, in base64.
pub const ACCOUNT: (&str, &str) = ("keyfleet", "b25seSB0aGUgdGVzdHMga25vdyB0aGlzIGtleQ==");

/// How long until it is asked again whether it is there.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module. Dropping it ends it; it keeps everything in memory.
#[derive(Debug)]
pub struct Azurite {
    pub address: SocketAddr,
    child: Child,
}

impl Azurite {
    pub async fn start() -> Result<Self> {
        let port = free_port()?;
        let program = clients::node_modules().join("azurite/dist/src/blob/main.js");
        let mut command = Command::new(clients::node());
        command.arg(program).args(["--blobPort", &port.to_string(), "--inMemoryPersistence"]);
        // It would tell its makers how it is used, and refuse who speaks a newer version.
        command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck"]);
        command.env("AZURITE_ACCOUNTS", format!("{}:{}", ACCOUNT.0, ACCOUNT.1));
        // What runs JavaScript may be a script that starts it.
        command.process_group(0);
        let child = command.stdout(Stdio::null()).spawn()?;
        let azurite = Self { address: SocketAddr::from(([127, 0, 0, 1], port)), child };
        let deadline = Instant::now() + TIME_MAX;
        while clients::run("container.mjs", azurite.address, &[ACCOUNT.0, ACCOUNT.1, CONTAINER])
            .await
            .is_err()
        {
            ensure!(Instant::now() < deadline, "Azurite doesn't serve");
            sleep(PAUSE).await;
        }
        Ok(azurite)
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
