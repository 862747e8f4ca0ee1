use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::symlink,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;

/// A directory of files that stands for a machine; removed with the value.
pub struct Tree(PathBuf);

impl Tree {
    pub fn new(files: &[(&str, &str)]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let root =
            std::env::temp_dir().join(format!("keyfleet-doctor-{}-{number}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let tree = Self(root);
        for (path, text) in files {
            tree.write(path, text);
        }
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub fn machine(&self) -> Machine {
        Machine {
            root: self.0.clone(),
            disk: Some((50 << 30, 100 << 30)),
            pidfd: true,
            user: None,
            xdg_runtime_dir: None,
            engines: BTreeMap::from([("cache".to_owned(), Ok("redis 7.0.15".to_owned()))]),
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const GOOD: [(&str, &str); 10] = [
    ("/proc/meminfo", "MemTotal:       16000000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"),
    ("/proc/self/cgroup", "0::/\n"),
    ("/sys/fs/cgroup/cgroup.controllers", "memory"),
    ("/proc/sys/vm/overcommit_memory", "1\n"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    (
        "/proc/self/limits",
        "Max open files            20000                20000                files\n",
    ),
    ("/proc/sys/net/core/somaxconn", "4096\n"),
    ("/proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"),
    ("/proc/77/comm", "chronyd\n"),
    ("/proc/sys/kernel/osrelease", "6.1.0\n"),
];

fn need() -> Need {
    Need {
        nodes: 6,
        memory: Some(Bytes::mib(6 * 256)),
        durable: true,
        state_dir: PathBuf::from("/srv/fleet/.keyfleet"),
        ports: vec![port(7001, true)],
        proxies: BTreeMap::new(),
    }
}

fn port(number: u16, explicit: bool) -> Port {
    Port { address: IpAddr::V4(Ipv4Addr::LOCALHOST), number, cluster: "cache".to_owned(), explicit }
}

/// Of the good machine with one file changed, the checks that are not ok.
fn bad(path: &str, text: &str) -> Vec<(&'static str, Verdict)> {
    let tree = Tree::new(&GOOD);
    tree.write(path, text);
    complaints(&tree.machine(), &need())
}

fn complaints(machine: &Machine, need: &Need) -> Vec<(&'static str, Verdict)> {
    let checks = examine(machine, need);
    let bad: Vec<&Check> = checks.iter().filter(|check| check.verdict != Verdict::Ok).collect();
    assert!(bad.iter().all(|check| check.mend.is_some()), "no mending command: {bad:?}");
    bad.iter().map(|check| (check.name, check.verdict)).collect()
}

#[test]
fn a_good_machine_is_good() {
    let tree = Tree::new(&GOOD);
    assert_eq!(complaints(&tree.machine(), &need()), []);
}

#[test]
fn a_proxy_with_more_clients_than_files_is_named() {
    let tree = Tree::new(&GOOD);
    let check = |clients, expected: &[&str]| {
        let proxies = BTreeMap::from([("edge".to_owned(), clients)]);
        let checks = examine(&tree.machine(), &Need { proxies, ..need() });
        let bad = checks.iter().filter(|check| check.verdict != Verdict::Ok);
        let mends: Vec<&str> = bad.filter_map(|check| check.mend.as_deref()).collect();
        assert_eq!(mends, expected, "{clients}");
    };
    check(17_500, &[]);
    check(17_501, &["ulimit -Hn 20002, or LimitNOFILE=20002 in the unit"]);
}

#[test]
fn each_fault_is_found_alone() {
    let check = |path: &str, text: &str, name: &'static str, verdict: Verdict| {
        assert_eq!(bad(path, text), [(name, verdict)], "{path} {text}");
    };
    let (warn, fail) = (Verdict::Warn, Verdict::Fail);
    check("/proc/sys/vm/overcommit_memory", "0", "overcommit", warn);
    check("/proc/sys/vm/overcommit_memory", "2", "overcommit", fail);
    check("/sys/kernel/mm/transparent_hugepage/enabled", "[always] never", "huge pages", warn);
    check("/proc/sys/net/core/somaxconn", "128", "somaxconn", warn);
    check("/proc/self/limits", "Max open files  1024  4096  files", "open files", warn);
    check("/proc/self/limits", "Max open files  256  512  files", "open files", fail);
    check("/proc/sys/fs/file-max", "50000", "open files", warn);
    check("/sys/fs/cgroup/memory.max", "1073741824", "memory", fail);
    check("/proc/self/mountinfo", "22 1 0:1 / / rw - tmpfs none rw", "file system", warn);
    check("/proc/77/comm", "bash", "clock", warn);
    let swapping = "MemTotal: 16000000 kB\nSwapTotal: 1000 kB\nSwapFree: 500 kB";
    let tree = Tree::new(&GOOD);
    tree.write("/proc/meminfo", swapping);
    tree.write("/proc/sys/vm/swappiness", "60");
    assert_eq!(complaints(&tree.machine(), &need()), [("swap", warn)]);
}

#[test]
fn what_is_not_in_files() {
    let tree = Tree::new(&GOOD);
    let check = |change: fn(&mut Machine), name: &'static str, verdict: Verdict| {
        let mut machine = tree.machine();
        change(&mut machine);
        assert_eq!(complaints(&machine, &need()), [(name, verdict)]);
    };
    check(|machine| machine.pidfd = false, "kernel", Verdict::Fail);
    check(|machine| machine.disk = Some((1 << 20, 1 << 40)), "disk space", Verdict::Fail);
    check(|machine| machine.disk = Some((2 << 30, 1 << 40)), "disk space", Verdict::Warn);
    let missing = |machine: &mut Machine| {
        machine.engines.insert("cache".to_owned(), Err("none here".to_owned()));
    };
    check(missing, "engine", Verdict::Warn);
    tree.write("/run/systemd/system/x", "");
    check(|machine| machine.user = Some("ada".to_owned()), "session", Verdict::Warn);
    tree.write("/var/lib/systemd/linger/ada", "");
    check(|machine| machine.user = Some("ada".to_owned()), "session", Verdict::Warn);
    tree.write("/run/user/1000/bus", "");
    let mut machine = tree.machine();
    machine.user = Some("ada".to_owned());
    machine.xdg_runtime_dir = Some("/run/user/1000".to_owned());
    assert_eq!(complaints(&machine, &need()), []);
}

#[test]
fn who_holds_a_port() {
    let tree = Tree::new(&GOOD);
    // 127.0.0.1:7001, in the byte order of this machine.
    let address = u32::from_ne_bytes([127, 0, 0, 1]);
    tree.write(
        "/proc/net/tcp",
        &format!(
            "  sl  local rem st\n 0: {address:08X}:1B59 00000000:0000 0A 0:0 0:0 0 0 0 4711 1\n"
        ),
    );
    let found = |need: &Need| {
        let check = ports::free(&tree.machine(), need);
        (check.verdict, check.found)
    };
    assert_eq!(found(&need()).1, "another user's process listens on 7001");
    tree.write("/proc/300/comm", "nginx\n");
    tree.link("/proc/300/fd/5", "socket:[4711]");
    assert_eq!(found(&need()), (Verdict::Fail, "nginx (pid 300) listens on 7001".to_owned()));
    let flexible = Need { ports: vec![port(7001, false)], ..need() };
    assert_eq!(
        found(&flexible),
        (Verdict::Ok, "nginx (pid 300) listens on 7001; others will be used".to_owned())
    );
    tree.link("/proc/300/cwd", "/srv/fleet/.keyfleet/nodes/cache-1");
    assert_eq!(found(&need()).0, Verdict::Ok);
    let other = Need { ports: vec![port(7002, true)], ..need() };
    assert_eq!(found(&other).0, Verdict::Ok);
}
