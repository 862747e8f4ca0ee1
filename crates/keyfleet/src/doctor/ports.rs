//! Are the ports free, and if not, who holds them? From /proc/net/tcp and the processes' open files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use super::{Check, Machine, Need, Verdict, program};

const LISTEN: &str = "0A";

/// Who listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    program: String,
    /// It is one of the fleet's own nodes.
    ours: bool,
}

pub fn free(machine: &Machine, need: &Need) -> Check {
    const WHY: &str = "a node can't listen where another program does";
    const NAME: &str = "ports";
    let wanted = need.ports.len();
    if wanted == 0 {
        return Check::ok(NAME, WHY, "none wanted");
    }
    let listeners = listeners(machine);
    let mut taken: Vec<(u16, bool, u64)> = Vec::new();
    for port in &need.ports {
        let socket = listeners.iter().find(|listener| {
            listener.port == port.number
                && (listener.address == port.address || listener.address.is_unspecified())
        });
        taken.extend(socket.map(|socket| (port.number, port.explicit, socket.inode)));
    }
    let inodes = taken.iter().map(|(_, _, inode)| *inode).collect();
    let holders = holders(machine, &inodes, &need.state_dir);
    let theirs: Vec<&(u16, bool, u64)> = taken
        .iter()
        .filter(|(_, _, inode)| !holders.get(inode).is_some_and(|holder| holder.ours))
        .collect();
    let ours = taken.len() - theirs.len();
    let Some((number, _, inode)) = theirs.first() else {
        let own =
            if ours > 0 { format!(", {ours} held by this fleet's nodes") } else { String::new() };
        return Check::ok(NAME, WHY, format!("{wanted} wanted{own}, none taken by others"));
    };
    let more = match theirs.len() {
        1 => String::new(),
        count => format!(", and {} more are taken", count - 1),
    };
    let (who, mend) = match holders.get(inode) {
        Some(Holder { pid, program, .. }) => {
            (format!("{program} (pid {pid})"), format!("stop it: kill {pid}"))
        }
        None => ("another user's process".to_owned(), format!("sudo ss -ltnp 'sport = :{number}'")),
    };
    let check = Check::ok(NAME, WHY, format!("{who} listens on {number}{more}"));
    if theirs.iter().any(|(_, explicit, _)| *explicit) {
        check.bad(Verdict::Fail, format!("{mend}; or choose another `ports` in fleet.yaml"))
    } else {
        // Ports that the spec doesn't name are chosen among the free ones.
        Check { found: format!("{}; others will be used", check.found), ..check }
    }
}

struct Listener {
    address: IpAddr,
    port: u16,
    inode: u64,
}

fn listeners(machine: &Machine) -> Vec<Listener> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| machine.read(file))
        .flat_map(|text| text.lines().skip(1).filter_map(listener).collect::<Vec<_>>())
        .collect()
}

/// `sl local remote st queues timer retransmits uid timeout inode …`, addresses as the bytes of
/// 32-bit words in the machine's order (proc(5)).
fn listener(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    if *state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::V4(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
            chunk.copy_from_slice(&word(index)?);
        }
        IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some(Listener {
        address,
        port: u16::from_str_radix(port, 16).ok()?,
        inode: inode.parse().ok()?,
    })
}

fn holders(machine: &Machine, inodes: &BTreeSet<u64>, state_dir: &Path) -> BTreeMap<u64, Holder> {
    let mut holders = BTreeMap::new();
    if inodes.is_empty() {
        return holders;
    }
    for (pid, process) in machine.processes() {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        for target in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            let Some(inode) = socket(&target).filter(|inode| inodes.contains(inode)) else {
                continue;
            };
            let ours =
                fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(state_dir));
            let program = program(&process).unwrap_or_else(|| "a program".to_owned());
            holders.insert(inode, Holder { pid, program, ours });
        }
    }
    holders
}

/// The inode of `socket:[4711]`.
fn socket(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}
