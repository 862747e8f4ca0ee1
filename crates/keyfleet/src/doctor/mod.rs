//! What on a machine will hurt its nodes: each check reads one thing, says what it found and why it
//! matters, and names the command that mends it.
//!
//! Everything that is read from files is read below a root, `/` on a real machine, so that a tree
//! of files can stand for one. Nothing is changed.

mod backups;
mod host;
mod memory;
mod ports;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

pub use self::backups::{backups, kept_commands};
use fleet::model::{Bytes, Fleet};
use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It will hurt some day.
    Warn,
    /// Nodes won't start, or will lose data.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was read.
    pub found: String,
    /// Why it matters, in one sentence.
    pub why: &'static str,
    /// The command that mends it; None where all is well or no command would do.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, why: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), why, mend: None }
    }

    fn bad(mut self, verdict: Verdict, mend: impl Into<String>) -> Self {
        self.verdict = verdict;
        self.mend = Some(mend.into());
        self
    }

    /// What could not be read is said, not guessed.
    fn unknown(name: &'static str, why: &'static str, what: &str) -> Self {
        Self::ok(name, why, format!("unknown: can't read {what}"))
    }
}

/// What can't be read from files: the caller asks the kernel and its own environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `/`, or a tree that stands for it.
    pub root: PathBuf,
    /// Free and total bytes of the state directory's file system.
    pub disk: Option<(u64, u64)>,
    /// pidfd_open works.
    pub pidfd: bool,
    /// The user's name, where it isn't root.
    pub user: Option<String>,
    pub xdg_runtime_dir: Option<String>,
    /// The engine found for each cluster, or why none was.
    pub engines: BTreeMap<String, Result<String, String>>,
}

/// What the fleet wants of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub nodes: u64,
    /// The sum of the nodes' memory, where every one has a limit.
    pub memory: Option<Bytes>,
    /// Some node keeps data over a restart.
    pub durable: bool,
    /// Absolute.
    pub state_dir: PathBuf,
    /// The ports that nodes listen on, and the cluster each is for.
    pub ports: Vec<Port>,
    /// How many clients each proxy may have, where the spec says it.
    pub proxies: BTreeMap<String, u32>,
}

/// A port that a node wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub address: IpAddr,
    pub number: u16,
    pub cluster: String,
    /// The spec names it, so no other will do.
    pub explicit: bool,
}

impl Need {
    /// Of a fleet whose nodes are all on this machine, with its state in `state_dir`.
    pub fn of(fleet: &Fleet, state_dir: PathBuf) -> Self {
        let mut ports = Vec::new();
        let mut nodes = 0;
        let mut memory = Some(0);
        for cluster in fleet.clusters.values() {
            nodes += u64::from(cluster.nodes_wanted());
            let of_cluster =
                cluster.memory.map(|bytes| bytes.0 * u64::from(cluster.nodes_wanted()));
            memory = memory.zip(of_cluster).map(|(sum, more)| sum + more);
            let addresses = cluster.hosts.iter().filter_map(|id| fleet.hosts.get(id));
            let Some(address) = addresses.map(|host| host.address).next() else { continue };
            for offset in 0..cluster.nodes_wanted() {
                let at = u16::try_from(offset).ok().and_then(|offset| cluster.ports.at(offset));
                for number in at.iter().flat_map(|at| [at.tcp, at.bus]) {
                    ports.push(Port {
                        address,
                        number,
                        cluster: cluster.name.to_string(),
                        explicit: cluster.ports.explicit,
                    });
                }
            }
        }
        Self {
            nodes,
            memory: memory.map(Bytes),
            durable: fleet.clusters.values().any(fleet::model::Cluster::persists),
            state_dir,
            ports,
            proxies: fleet
                .proxies
                .values()
                .filter_map(|proxy| Some((proxy.name.to_string(), proxy.service.clients_max?)))
                .collect(),
        }
    }
}

/// Every check, in the order in which they are shown.
pub fn examine(machine: &Machine, need: &Need) -> Vec<Check> {
    let mut checks = host::engines(machine);
    checks.extend([
        ports::free(machine, need),
        memory::limit(machine, need),
        memory::overcommit(machine, need),
        memory::huge_pages(machine),
        memory::swap(machine),
        host::open_files(machine, need),
        host::somaxconn(machine),
        host::disk_space(machine, need),
        host::file_system(machine, need),
        host::clock(machine),
        host::linger(machine),
        host::pidfd(machine),
    ]);
    checks.extend(host::proxy_files(machine, need));
    checks
}

impl Machine {
    /// The file's text without the white space around it.
    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The processes' ids and directories in /proc.
    fn processes(&self) -> impl Iterator<Item = (u32, PathBuf)> {
        let entries = fs::read_dir(self.path("/proc")).into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, entry.path()))
        })
    }
}

/// A process's program name.
fn program(process: &Path) -> Option<String> {
    Some(fs::read_to_string(process.join("comm")).ok()?.trim().to_owned())
}

/// The command that sets a kernel parameter now and for the next start.
fn sysctl(name: &str, value: &str) -> String {
    format!(
        "echo '{name} = {value}' | sudo tee /etc/sysctl.d/60-keyfleet.conf -a && sudo sysctl --system"
    )
}
