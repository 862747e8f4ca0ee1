//! Memory: limits, overcommit, huge pages, swap.

use std::path::{Component, Path};

use fleet::model::Bytes;

use super::{Check, Machine, Need, Verdict, sysctl};

/// The least that the machine and the control groups above this process allow.
pub fn limit(machine: &Machine, need: &Need) -> Check {
    const WHY: &str = "nodes that together use more than there is are killed one by one";
    const NAME: &str = "memory";
    let Some(total) = meminfo(machine, "MemTotal") else {
        return Check::unknown(NAME, WHY, "/proc/meminfo");
    };
    let group = cgroup_limit(machine);
    let room = group.map_or(total, |group| group.min(total));
    let mode = if machine.exists("/sys/fs/cgroup/cgroup.controllers") {
        "cgroup v2"
    } else if machine.exists("/sys/fs/cgroup/memory") {
        "cgroup v1"
    } else {
        "no cgroup"
    };
    let limited =
        if room < total { format!(", {} of it allowed", Bytes(room)) } else { String::new() };
    let has = format!("{}{limited} ({mode})", Bytes(total));
    match need.memory.filter(|_| need.nodes > 0) {
        None => Check::ok(NAME, WHY, format!("{has}; the spec sets no `memory`")),
        Some(wanted) => {
            let check = Check::ok(NAME, WHY, format!("{has}; the nodes may use {wanted}"));
            if wanted.0 > room {
                check.bad(Verdict::Fail, "lower `memory`, `shards` or `replicas` in fleet.yaml")
            } else if wanted.0 > room / 10 * 9 {
                check
                    .bad(Verdict::Warn, "leave a tenth of the memory to the system: lower `memory`")
            } else {
                check
            }
        }
    }
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(machine: &Machine, key: &str) -> Option<u64> {
    let text = machine.read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// The lowest limit of this process's control group and those above it, in either version.
fn cgroup_limit(machine: &Machine) -> Option<u64> {
    let groups = machine.read("/proc/self/cgroup")?;
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (base, file) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            continue;
        };
        // In a container the path may lead above what can be seen: then its root is our group.
        let path = Path::new(path);
        let sane = path.components().all(|part| part != Component::ParentDir);
        for group in path.ancestors().filter(|_| sane).chain([Path::new("/")]) {
            let group = group.display().to_string();
            let file = format!("{base}/{}/{file}", group.trim_matches('/'));
            limits.extend(machine.read(&file).and_then(|text| text.parse::<u64>().ok()));
        }
    }
    // Version 1 says "no limit" with a number near 2^63.
    limits.into_iter().min().filter(|limit| *limit < 1 << 60)
}

pub fn overcommit(machine: &Machine, need: &Need) -> Check {
    const WHY: &str = "saving forks the server, and with the kernel counting its memory twice the \
                       fork fails when memory is half full";
    const NAME: &str = "overcommit";
    let Some(value) = machine.read("/proc/sys/vm/overcommit_memory") else {
        return Check::unknown(NAME, WHY, "/proc/sys/vm/overcommit_memory");
    };
    let check = Check::ok(NAME, WHY, format!("vm.overcommit_memory = {value}"));
    match value.as_str() {
        "1" => check,
        "2" if need.durable => check.bad(Verdict::Fail, sysctl("vm.overcommit_memory", "1")),
        _ => check.bad(Verdict::Warn, sysctl("vm.overcommit_memory", "1")),
    }
}

pub fn huge_pages(machine: &Machine) -> Check {
    const WHY: &str = "after a fork every small write copies 2 MiB: latency and memory jump";
    const NAME: &str = "huge pages";
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let Some(text) = machine.read(FILE) else {
        return Check::ok(NAME, WHY, "transparent huge pages are not there");
    };
    let chosen = text.split(['[', ']']).nth(1).unwrap_or(&text);
    let check = Check::ok(NAME, WHY, format!("transparent huge pages: {chosen}"));
    if chosen == "always" {
        check.bad(Verdict::Warn, format!("echo madvise | sudo tee {FILE}"))
    } else {
        check
    }
}

pub fn swap(machine: &Machine) -> Check {
    const WHY: &str = "a server whose memory is on disk answers a thousand times slower";
    const NAME: &str = "swap";
    let (Some(total), Some(free)) = (meminfo(machine, "SwapTotal"), meminfo(machine, "SwapFree"))
    else {
        return Check::unknown(NAME, WHY, "/proc/meminfo");
    };
    if total == 0 {
        return Check::ok(NAME, WHY, "none");
    }
    let used = total.saturating_sub(free);
    let swappiness = machine.read("/proc/sys/vm/swappiness").unwrap_or_else(|| "?".to_owned());
    let found = format!("{} of {} used, vm.swappiness = {swappiness}", Bytes(used), Bytes(total));
    let check = Check::ok(NAME, WHY, found);
    let eager = swappiness.parse::<u32>().is_ok_and(|value| value > 10);
    if eager { check.bad(Verdict::Warn, sysctl("vm.swappiness", "1")) } else { check }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Tree;
    use super::*;

    #[test]
    fn the_lowest_limit_counts() {
        let check = |files: &[(&str, &str)], expected: Option<u64>| {
            assert_eq!(cgroup_limit(&Tree::new(files).machine()), expected, "{files:?}");
        };
        check(&[("/proc/self/cgroup", "0::/")], None);
        check(
            &[
                ("/proc/self/cgroup", "0::/a/b"),
                ("/sys/fs/cgroup/a/memory.max", "1000"),
                ("/sys/fs/cgroup/a/b/memory.max", "max"),
            ],
            Some(1000),
        );
        check(
            &[
                ("/proc/self/cgroup", "4:memory:/a\n0::/"),
                ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000"),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ],
            Some(2000),
        );
        // A container that sees its own group as the root.
        check(
            &[("/proc/self/cgroup", "0::/../../outside"), ("/sys/fs/cgroup/memory.max", "3000")],
            Some(3000),
        );
    }
}
