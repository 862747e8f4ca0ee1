//! Engine, files, network queue, disk, clock, session, kernel.

use std::path::Path;

use fleet::model::Bytes;

use super::{Check, Machine, Need, Verdict, program, sysctl};
use crate::proxy::files::{files_for_clients, room_for_clients};

/// A server's clients (`maxclients` by default) and what it needs for itself.
const FILES_PER_NODE: u64 = 10_000 + 32;
/// The queue of new connections that a server asks for (`tcp-backlog` by default).
const BACKLOG: u64 = 511;
const DISK_FREE_MIN: u64 = 1 << 30;

pub fn engines(machine: &Machine) -> Vec<Check> {
    const WHY: &str = "without a server program no node starts";
    machine
        .engines
        .iter()
        .map(|(cluster, found)| match found {
            Ok(engine) => Check::ok("engine", WHY, format!("{cluster}: {engine}")),
            Err(reason) => Check::ok("engine", WHY, format!("{cluster}: {reason}")).bad(
                Verdict::Warn,
                "`keyfleet up` fetches one without root; or: sudo apt-get install redis-server",
            ),
        })
        .collect()
}

pub fn open_files(machine: &Machine, need: &Need) -> Check {
    const WHY: &str = "a server serves as many clients as it may open files, less 32";
    const NAME: &str = "open files";
    let Some(hard) = files_max(machine) else {
        return Check::unknown(NAME, WHY, "/proc/self/limits");
    };
    let shown = if hard == u64::MAX { "no limit".to_owned() } else { hard.to_string() };
    let machine_wide =
        machine.read("/proc/sys/fs/file-max").and_then(|text| text.parse::<u64>().ok());
    let check = Check::ok(NAME, WHY, format!("{shown} for a process, {FILES_PER_NODE} wanted"));
    if hard < 1024 {
        check.bad(Verdict::Fail, "ulimit -Hn 65536, or LimitNOFILE=65536 in the unit")
    } else if hard < FILES_PER_NODE {
        check.bad(Verdict::Warn, "ulimit -Hn 65536, or LimitNOFILE=65536 in the unit")
    } else if let Some(all) = machine_wide.filter(|all| *all < FILES_PER_NODE * need.nodes) {
        let found = format!("{all} for the machine, {} wanted", FILES_PER_NODE * need.nodes);
        Check::ok(NAME, WHY, found).bad(Verdict::Warn, sysctl("fs.file-max", "1000000"))
    } else {
        check
    }
}

/// The files that a process may open at most.
fn files_max(machine: &Machine) -> Option<u64> {
    let limits = machine.read("/proc/self/limits")?;
    limits.lines().find_map(|line| {
        let mut numbers = line.strip_prefix("Max open files")?.split_whitespace();
        let hard = numbers.nth(1)?;
        Some(if hard == "unlimited" { u64::MAX } else { hard.parse().ok()? })
    })
}

/// For each proxy whose clients are counted: are there files for as many?
pub fn proxy_files(machine: &Machine, need: &Need) -> Vec<Check> {
    const WHY: &str =
        "a proxy opens a file for each client, and refuses those for whom there is none";
    const NAME: &str = "proxy files";
    let Some(hard) = files_max(machine) else { return Vec::new() };
    let room = room_for_clients(hard);
    let check = |(proxy, clients): (&String, &u32)| {
        let clients = u64::from(*clients);
        if clients <= room {
            return Check::ok(NAME, WHY, format!("{proxy}: enough for {clients} clients"));
        }
        let found =
            format!("{proxy}: {hard} for a process, {room} clients fit, {clients} may come");
        let files = files_for_clients(clients);
        let mend = format!("ulimit -Hn {files}, or LimitNOFILE={files} in the unit");
        Check::ok(NAME, WHY, found).bad(Verdict::Warn, mend)
    };
    need.proxies.iter().map(check).collect()
}

pub fn somaxconn(machine: &Machine) -> Check {
    const WHY: &str = "when many clients reconnect at once, those beyond this queue are dropped";
    const NAME: &str = "somaxconn";
    let value = machine.read("/proc/sys/net/core/somaxconn").and_then(|text| text.parse().ok());
    let Some(value): Option<u64> = value else {
        return Check::unknown(NAME, WHY, "/proc/sys/net/core/somaxconn");
    };
    let check = Check::ok(NAME, WHY, format!("net.core.somaxconn = {value}"));
    if value < BACKLOG {
        check.bad(Verdict::Warn, sysctl("net.core.somaxconn", "1024"))
    } else {
        check
    }
}

pub fn disk_space(machine: &Machine, need: &Need) -> Check {
    const WHY: &str =
        "a server that can't save refuses writes, and rewriting a file needs room for both";
    const NAME: &str = "disk space";
    let Some((free, total)) = machine.disk else {
        return Check::unknown(NAME, WHY, &need.state_dir.display().to_string());
    };
    let found =
        format!("{} free of {} for {}", Bytes(free), Bytes(total), need.state_dir.display());
    let check = Check::ok(NAME, WHY, found);
    let mend =
        || format!("free some, or run keyfleet elsewhere: df -h {}", need.state_dir.display());
    let wanted = need.memory.map_or(DISK_FREE_MIN, |memory| (memory.0 * 2).max(DISK_FREE_MIN));
    if !need.durable {
        check
    } else if free < DISK_FREE_MIN / 8 {
        check.bad(Verdict::Fail, mend())
    } else if free < wanted {
        check.bad(Verdict::Warn, mend())
    } else {
        check
    }
}

pub fn file_system(machine: &Machine, need: &Need) -> Check {
    const WHY: &str = "data on a file system in memory is gone with the machine's next start";
    const NAME: &str = "file system";
    let Some(kind) = file_system_of(machine, &need.state_dir) else {
        return Check::unknown(NAME, WHY, "/proc/self/mountinfo");
    };
    let found = format!("{kind} at {}", need.state_dir.display());
    let check = Check::ok(NAME, WHY, found);
    match kind.as_str() {
        "tmpfs" | "ramfs" if need.durable => check
            .bad(Verdict::Warn, "run keyfleet in a directory on a disk, or set `profile: cache`"),
        "nfs" | "nfs4" | "cifs" | "9p" | "fuse.sshfs" if need.durable => {
            check.bad(Verdict::Warn, "run keyfleet in a directory on a local disk")
        }
        _ => check,
    }
}

/// The kind of the mount that holds a path: the longest mount point above it, the last of equals.
fn file_system_of(machine: &Machine, path: &Path) -> Option<String> {
    let text = machine.read("/proc/self/mountinfo")?;
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let point = before.split(' ').nth(4)?.replace("\\040", " ");
            let kind = after.split(' ').next()?;
            path.starts_with(&point).then(|| (point.len(), kind.to_owned()))
        })
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind)
}

pub fn clock(machine: &Machine) -> Check {
    const WHY: &str = "expiry times and leases are off on hosts whose clocks differ";
    const NAME: &str = "clock";
    const SERVICES: [&str; 5] = ["chronyd", "ntpd", "ntpsec", "systemd-timesyn", "openntpd"];
    if machine.exists("/run/systemd/timesync/synchronized") {
        return Check::ok(NAME, WHY, "synchronised by systemd-timesyncd");
    }
    let service = machine
        .processes()
        .filter_map(|(_, process)| program(&process))
        .find(|program| SERVICES.contains(&program.as_str()));
    let source = machine
        .read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .unwrap_or_else(|| "unknown".to_owned());
    match (service, source.as_str()) {
        (Some(service), _) => Check::ok(NAME, WHY, format!("kept right by {service}")),
        (None, "kvm-clock" | "hyperv_clocksource_tsc_page" | "xen") => Check::ok(
            NAME,
            WHY,
            format!("no time service runs; the hypervisor gives the time ({source})"),
        ),
        (None, _) => Check::ok(NAME, WHY, format!("no time service runs; clock source {source}"))
            .bad(Verdict::Warn, "sudo apt-get install chrony"),
    }
}

pub fn linger(machine: &Machine) -> Check {
    const WHY: &str = "without lingering a user's processes may be ended when the session ends";
    const NAME: &str = "session";
    let Some(user) = &machine.user else {
        return Check::ok(NAME, WHY, "root: not needed");
    };
    if !machine.exists("/run/systemd/system") {
        return Check::ok(NAME, WHY, "no systemd: not needed");
    }
    let directory = machine.xdg_runtime_dir.as_deref();
    if !machine.exists(&format!("/var/lib/systemd/linger/{user}")) {
        Check::ok(NAME, WHY, format!("lingering is off for {user}"))
            .bad(Verdict::Warn, format!("sudo loginctl enable-linger {user}"))
    } else if directory.is_none_or(|directory| !machine.exists(directory)) {
        let found = "XDG_RUNTIME_DIR is not set, as after `su`";
        Check::ok(NAME, WHY, found).bad(Verdict::Warn, "export XDG_RUNTIME_DIR=/run/user/$(id -u)")
    } else {
        Check::ok(NAME, WHY, format!("lingering is on for {user}"))
    }
}

pub fn pidfd(machine: &Machine) -> Check {
    const WHY: &str = "only so a server's end is known for certain, and at once";
    const NAME: &str = "kernel";
    let release =
        machine.read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
    if machine.pidfd {
        Check::ok(NAME, WHY, format!("{release}, pidfd works"))
    } else {
        Check::ok(NAME, WHY, format!("{release}, pidfd does not work"))
            .bad(Verdict::Fail, "run Linux 5.3 or later, with pidfd_open not filtered out")
    }
}
