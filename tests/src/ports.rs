//! Ports that no other test uses: tests run at the same time, each in a process of its own.

use std::{
    env,
    fs::{self, File, OpenOptions},
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    process,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// Below the ports that the kernel gives to clients, and so that the bus ports (10,000 higher) are
/// below them too.
const TCP: Range<u16> = 2_000..9_800;
/// Client ports, then as many for TLS.
const BLOCK: u16 = 40;
/// From a client port to its bus port, which engines before 7.0 insist on.
const BUS: u16 = 10_000;

/// A block of ports for one fleet: `tcp` to `tcp + 19` for clients, the next 20 for TLS, the bus
/// 10,000 above. It is nobody else's until this value is dropped.
#[derive(Debug)]
pub struct PortBlock {
    pub tcp: u16,
    pub tls: u16,
    pub bus: u16,
    _lock: File,
}

impl PortBlock {
    /// The first free block; where the search begins differs from process to process.
    pub fn claim() -> Result<Self> {
        let locks = env::temp_dir().join("keyfleet-test-ports");
        fs::create_dir_all(&locks).with_context(|| locks.display().to_string())?;
        let count = TCP.len() / usize::from(BLOCK);
        let first = process::id() as usize * 7;
        for step in 0..count {
            let tcp = TCP.start + ((first + step) % count) as u16 * BLOCK;
            let path = locks.join(tcp.to_string());
            let lock = OpenOptions::new().create(true).append(true).open(&path);
            let lock = lock.with_context(|| path.display().to_string())?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && all_free(tcp) {
                return Ok(Self { tcp, tls: tcp + BLOCK / 2, bus: tcp + BUS, _lock: lock });
            }
        }
        bail!("no free block of ports in {TCP:?}");
    }
}

fn all_free(tcp: u16) -> bool {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    (tcp..tcp + BLOCK).all(is_free) && (tcp + BUS..tcp + BUS + BLOCK / 2).all(is_free)
}
