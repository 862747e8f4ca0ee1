//! Servers as plain processes of this machine.
//!
//! Nothing is remembered: a node's process is the one whose working directory is the node's, found
//! in `/proc`. So a server that keyfleet started, a server that outlived it, and one started by
//! hand in that directory are all the same, and there is no file that can be wrong.
//!
//! What is signalled is a pidfd, checked after it was opened to be the process that was meant; a
//! number that went to another process in between is never hit.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    net::{IpAddr, SocketAddr},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
    process::Stdio,
};

use fleet::model::{NodeName, ProxyName};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::Command,
};

use crate::{
    node_files::{LOG, NODE_CONF, Program},
    proxy::kept::PROXY_STATE,
};

/// What the name of this program's file begins with.
const PROGRAM: &str = "keyfleet";

/// What the kernel appends to the name of a directory that was removed.
const DELETED: &str = " (deleted)";

/// Variables that servers get from our environment; no others, since some may be secret.
const ENVIRONMENT: [&str; 6] = ["PATH", "HOME", "TZ", "LANG", "LC_ALL", "TMPDIR"];

/// A node's server process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub pid: i32,
    /// Stopped by a signal. One that a debugger holds is not: it is held for an instant at every
    /// call that is traced, and goes on when the debugger lets it.
    pub suspended: bool,
    /// Where it says in its title that it listens.
    pub listens: Option<SocketAddr>,
}

/// The server processes of the nodes under a directory, by one look at `/proc`.
pub fn scan(nodes_dir: &Path) -> io::Result<BTreeMap<NodeName, Found>> {
    let mut candidates = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if let Some(node) = node_of(pid, nodes_dir)
            && let Some(stat) = Stat::read(pid)
            && is_server(pid, &stat)
        {
            candidates.insert(pid, (node, stat));
        }
    }
    let mut found = BTreeMap::new();
    for (pid, (node, stat)) in &candidates {
        if !candidates.contains_key(&stat.parent) {
            let (pid, suspended) = (*pid, stat.is_suspended());
            found.insert(node.clone(), Found { pid, suspended, listens: listens(pid) });
        }
    }
    Ok(found)
}

/// The proxies under a directory, by one look at `/proc`: processes of this very program that work in
/// a directory of their own there.
pub fn scan_proxies(proxies_dir: &Path) -> io::Result<BTreeMap<ProxyName, i32>> {
    let is_own = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(PROGRAM)
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if let Some(name) = name_below(pid, proxies_dir)
            && let Ok(path) = fs::read_link(format!("/proc/{pid}/exe"))
            && is_own(&path)
            && Stat::read(pid).is_some()
        {
            found.insert(ProxyName::new(name), pid);
        }
    }
    Ok(found)
}

/// Can this process see all servers that might run in the directory? Only where it may look into
/// processes of the directory's owner is "there is none" a proof.
pub fn is_proof(directory: &Path) -> bool {
    let me = geteuid();
    me.is_root() || fs::metadata(directory).is_ok_and(|meta| meta.uid() == me.as_raw())
}

/// Which node's directory is the process's working directory?
fn node_of(pid: i32, nodes_dir: &Path) -> Option<NodeName> {
    name_below(pid, nodes_dir)?.parse().ok()
}

/// Which directory below this one is the process's working directory?
fn name_below(pid: i32, directory: &Path) -> Option<String> {
    let works_in = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let name = works_in.strip_prefix(directory).ok()?.to_str()?;
    let name = name.strip_suffix(DELETED).unwrap_or(name);
    (!name.is_empty()).then(|| name.to_owned())
}

struct Stat {
    name: String,
    state: u8,
    parent: i32,
}

/// Is the process stopped by a signal? One that is gone isn't.
pub fn is_suspended(pid: i32) -> bool {
    Stat::read(pid).is_some_and(|stat| stat.is_suspended())
}

impl Stat {
    const fn is_suspended(&self) -> bool {
        self.state == b'T'
    }

    /// None where the process is gone or was only not waited for yet.
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let mut fields = tail.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let parent = fields.next()?.parse().ok()?;
        let alive = !matches!(state, b'Z' | b'X' | b'x');
        alive.then(|| Self { name: name.to_owned(), state, parent })
    }
}

/// Is it a server, and no shell that someone left in the directory? The children that a server
/// forks for a snapshot are told by their titles, also when their parent died before them.
fn is_server(pid: i32, stat: &Stat) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let program = program.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let looks_so = |name: &str| name.trim_end_matches(DELETED).ends_with("-server");
    (program.is_some_and(looks_so) || looks_so(&stat.name)) && !is_fork(&title(pid))
}

fn title(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Titles such as `redis-rdb-bgsave 127.0.0.1:7001 [cluster]`.
fn is_fork(title: &str) -> bool {
    let name = title.split_ascii_whitespace().next().unwrap_or_default();
    let kinds =
        ["-rdb-bgsave", "-rdb-to-slaves", "-rdb-to-replicas", "-aof-rewrite", "-module-fork"];
    kinds.iter().any(|kind| name.ends_with(kind))
}

/// From a title such as `redis-server 127.0.0.1:7001 [cluster]`.
fn listens(pid: i32) -> Option<SocketAddr> {
    let title = title(pid);
    let (address, port) = title.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
    let address: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(address, port.parse().ok()?))
}

/// What a process has in memory, in bytes; None where it is gone.
pub fn resident_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// A hold on one process, whatever becomes of its number.
#[derive(Debug)]
pub struct Handle {
    pidfd: AsyncFd<OwnedFd>,
    pub pid: i32,
}

impl Handle {
    /// The node's process; None where there is none.
    pub fn of(nodes_dir: &Path, node: &NodeName) -> io::Result<Option<Self>> {
        let Some(found) = scan(nodes_dir)?.remove(node) else { return Ok(None) };
        Self::open(found.pid, nodes_dir, node)
    }

    /// The process with this number, if it is the node's; None where it is gone by now.
    pub fn open(pid: i32, nodes_dir: &Path, node: &NodeName) -> io::Result<Option<Self>> {
        Self::below(pid, nodes_dir, &node.to_string())
    }

    /// The process with this number, if it works in the directory of that name below this one.
    pub fn below(pid: i32, directory: &Path, name: &str) -> io::Result<Option<Self>> {
        let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
        let pidfd = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // From here on the number can't be another process's without the pidfd telling.
        if name_below(pid, directory).as_deref() != Some(name) {
            return Ok(None);
        }
        #[expect(deprecated, reason = "sound for an OwnedFd; what replaces it is unsafe to call")]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Some(Self { pidfd, pid }))
    }

    /// Ends when the process has ended, also if it did so long ago.
    pub async fn exited(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// A signal to a process that is gone already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Starts a node's server in its directory. It outlives us; while we live we wait for its end, so
/// that nothing is left of it. Must be called inside a tokio runtime.
pub fn start(program: &Program, directory: &Path) -> io::Result<i32> {
    let mut command = Command::new(&program.server);
    command.arg(NODE_CONF);
    if let Some(libraries) = &program.library_path {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    launch(command, directory)
}

/// Starts this program as a proxy in its directory; as [`start`].
pub fn start_proxy(directory: &Path) -> io::Result<i32> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["proxy", "--state", PROXY_STATE]);
    launch(command, directory)
}

fn launch(mut command: Command, directory: &Path) -> io::Result<i32> {
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(directory.join(LOG))?;
    let own: Vec<_> = command
        .as_std()
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command
        .current_dir(directory)
        .env_clear()
        .envs(own)
        .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, env::var_os(name)?))))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    let mut child = command.spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    tokio::spawn(async move { child.wait().await });
    Ok(pid)
}

/// TCP ports that something listens on at this address, by the kernel's tables, each with the number
/// of its socket.
pub fn listening(address: IpAddr) -> io::Result<Vec<(u16, u64)>> {
    let mut ports = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        ports.extend(text.lines().skip(1).filter_map(|line| {
            let (local, port, socket) = listener(line)?;
            (local == address || local.is_unspecified()).then_some((port, socket))
        }));
    }
    Ok(ports)
}

/// The process that has this socket open; None where it can't be looked into.
pub fn holder(socket: u64) -> Option<u32> {
    let wanted = format!("socket:[{socket}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.find(|pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| target.to_str() == Some(&wanted))
    })
}

/// The local end of a line of `/proc/net/tcp` in the state LISTEN, and its socket's number. Addresses
/// are groups of four bytes in the machine's own order.
fn listener(line: &str) -> Option<(IpAddr, u16, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != "0A" {
        return None;
    }
    let socket = fields.nth(5)?.parse().ok()?;
    let mut bytes = Vec::with_capacity(16);
    for group in 0..address.len() / 8 {
        let word = u32::from_str_radix(address.get(group * 8..group * 8 + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address: IpAddr = if let Ok(four) = <[u8; 4]>::try_from(bytes.as_slice()) {
        four.into()
    } else {
        IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical()
    };
    Some((address, u16::from_str_radix(port, 16).ok()?, socket))
}

/// This machine's physical memory in bytes.
pub fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Is the address one of this machine's?
pub fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// Is it proven that the address is none of this machine's?
pub fn is_lost(address: IpAddr) -> bool {
    let bound = std::net::UdpSocket::bind((address, 0));
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// This machine's own addresses, by the kernel's tables; empty where they can't be read.
pub fn addresses() -> Vec<IpAddr> {
    let four = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let six = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses = local_in_trie(&four);
    addresses.extend(six.lines().filter_map(|line| {
        let bits = u128::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok()?;
        Some(IpAddr::from(bits.to_be_bytes()))
    }));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// In the trie a leaf's address is on one line, and what it is good for on the next ones.
fn local_in_trie(text: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut leaf: Option<IpAddr> = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line.ends_with("host LOCAL") {
            found.extend(leaf);
        }
    }
    found
}

/// What a server printed from `offset` in its log on; the last 4 KiB of it.
pub fn log_tail(directory: &Path, offset: u64) -> String {
    let path = directory.join(LOG);
    let first = log_length(directory).saturating_sub(4096).max(offset);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut log| {
        log.seek(SeekFrom::Start(first))?;
        log.take(4096).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => format!("(its log can't be read: {error})"),
    }
}

/// Of what a server printed before it ended, what tells why: lines that aren't in its log's format,
/// and those that are and are urgent. All of it where that leaves nothing.
pub fn complaints(printed: &str) -> String {
    let lines = printed.lines().filter_map(|line| match logged(line) {
        Some((true, text)) => {
            let usual = USUAL.iter().any(|part| text.contains(part));
            (!usual).then_some(text)
        }
        Some((false, _)) => None,
        // The picture that some begin with is indented.
        None => (!line.starts_with(' ') && !line.trim().is_empty()).then_some(line),
    });
    let lines: Vec<&str> = lines.collect();
    if lines.is_empty() { printed.to_owned() } else { lines.join("\n") }
}

/// In lines that are urgent by their mark, and that servers print at every start.
const USUAL: [&str; 5] =
    ["oO0OoO0OoO0Oo", " version=", "Configuration loaded", "Server initialized", "WARNING "];

/// A line of a server's log, such as `7787:M 22 Nov 2026 16:24:14.125 # text`: whether it is urgent,
/// and its text.
fn logged(line: &str) -> Option<(bool, &str)> {
    let (process, rest) = line.split_once(' ')?;
    let (number, role) = process.rsplit_once(':')?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    if !is_number || !matches!(role, "C" | "M" | "S" | "X") {
        return None;
    }
    // The date is four words.
    let mut words = rest.splitn(6, ' ').skip(4);
    Some((words.next()? == "#", words.next().unwrap_or_default()))
}

/// Is the file system that a directory is on all but full?
pub fn disk_is_full(directory: &Path) -> bool {
    const LEFT_MIN: u64 = 256 << 10;
    rustix::fs::statvfs(directory)
        .is_ok_and(|system| system.f_bavail.saturating_mul(system.f_frsize) < LEFT_MIN)
}

/// How long a server's log is, in bytes.
pub fn log_length(directory: &Path) -> u64 {
    fs::metadata(directory.join(LOG)).map_or(0, |meta| meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_of_children() {
        let check = |title: &str, expected: bool| assert_eq!(is_fork(title), expected, "{title}");
        check("redis-rdb-bgsave 127.0.0.1:7001 [cluster]", true);
        check("redis-aof-rewrite 127.0.0.1:7001 [cluster]", true);
        check("redis-rdb-to-slaves *:1", true);
        check("redis-server 127.0.0.1:7001 [cluster]", false);
        check("", false);
    }

    #[test]
    fn who_is_suspended() {
        let check = |state: &str, expected: Option<bool>| {
            let stat = Stat::parse(&format!("7 (redis) server) {state} 1 7 7 0"));
            assert_eq!(stat.map(|stat| stat.is_suspended()), expected, "{state}");
        };
        check("T", Some(true));
        // A debugger, or strace at every call.
        check("t", Some(false));
        check("S", Some(false));
        check("R", Some(false));
        check("Z", None);
    }

    #[test]
    fn why_a_server_ended() {
        let start = "7:C 22 Nov 2026 16:24:14.189 # WARNING Memory overcommit must be enabled!\n\
                     7:C 22 Nov 2026 16:24:14.124 # oO0OoO0OoO0Oo Redis is starting oO0OoO0OoO0Oo\n\
                     7:C 22 Nov 2026 16:24:14.124 # Redis version=7.0.15, bits=64, pid=7\n\
                     \x20          _.-``__ ''-._\n\n\
                     7:M 22 Nov 2026 16:24:14.124 * monotonic clock: POSIX clock_gettime\n";
        let check = |printed: &str, expected: &str| {
            assert_eq!(complaints(&format!("{start}{printed}")), expected);
        };
        check(
            "7:M 22 Nov 2026 16:24:14.125 # Configured to not listen.",
            "Configured to not listen.",
        );
        check(
            "*** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***\n>>> 'foo bar'\nBad directive\n",
            "*** FATAL CONFIG FILE ERROR (Redis 7.0.15) ***\n>>> 'foo bar'\nBad directive",
        );
        check("7:8:M 22 Nov 2026 16:24:14.125 # Two words", "Two words");
        assert_eq!(complaints(start), start);
        assert_eq!(complaints(""), "");
    }

    #[test]
    fn listeners() {
        let check = |line: &str, expected: Option<(&str, u16)>| {
            let line = format!("{line} 0:0 00:0 0 0 0 4711 1 0 100");
            let expected = expected.map(|(address, port)| (address.parse().unwrap(), port, 4711));
            assert_eq!(listener(&line), expected, "{line}");
        };
        check("0: 0100007F:1B59 00000000:0000 0A", Some(("127.0.0.1", 7001)));
        check("0: 0100007F:1B59 00000000:0000 01", None);
        check("1: 00000000000000000000000001000000:1B59 0:0000 0A", Some(("::1", 7001)));
        check("2: 0000000000000000FFFF00000100007F:0050 0:0000 0A", Some(("127.0.0.1", 80)));
        assert_eq!(listener("sl  local_address"), None);
    }

    #[test]
    fn local_addresses() {
        let trie =
            "Main:\n  |-- 10.0.0.0\n     /24 link UNICAST\n  |-- 10.0.0.4\n     /32 host LOCAL\n";
        assert_eq!(local_in_trie(trie), ["10.0.0.4".parse::<IpAddr>().unwrap()]);
        assert!(addresses().contains(&"127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn lost_addresses() {
        let check = |address: &str, expected: bool| {
            assert_eq!(is_lost(address.parse().unwrap()), expected, "{address}");
        };
        check("127.0.0.1", false);
        check("127.9.9.9", false);
        // Kept for documentation, so nobody has them.
        check("203.0.113.7", true);
        check("2001:db8::7", true);
    }

    #[test]
    fn finds_what_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = listener.local_addr().unwrap();
        let listening = listening(bound.ip()).unwrap();
        let (_, socket) = listening.iter().find(|(port, _)| *port == bound.port()).unwrap();
        assert_eq!(holder(*socket), Some(std::process::id()));
    }
}
