//! Where nodes go: hosts and ports for new ones, which of them become primaries, and how primaries
//! get back to their spread. Everything is greedy over ordered scores (the order of a tuple's fields
//! is the policy) and in n·log n.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroU16,
};

use crate::{
    model::{Cluster, Fleet, HostId, PortBase, Ports, Zone},
    observed::Observed,
};

/// What new nodes find: it is filled as they are planned, cluster after cluster.
pub struct Room<'a> {
    pub ports: PortsInUse,
    pub loads: HostLoads<'a>,
}

impl<'a> Room<'a> {
    pub fn new(fleet: &'a Fleet, observed: &'a Observed) -> Self {
        Self { ports: PortsInUse::new(observed), loads: HostLoads::new(fleet, observed) }
    }
}

/// The ports that are taken on each host, by nodes of any cluster or by other programs.
pub struct PortsInUse {
    by_host: BTreeMap<HostId, BTreeSet<u16>>,
    /// Where the search for a host and base goes on.
    next: BTreeMap<(HostId, u16), u16>,
}

impl PortsInUse {
    pub fn new(observed: &Observed) -> Self {
        let mut by_host: BTreeMap<HostId, BTreeSet<u16>> = BTreeMap::new();
        for (host, view) in &observed.hosts {
            by_host.entry(host.clone()).or_default().extend(view.ports_taken.keys());
        }
        for view in observed.nodes.values() {
            let taken = by_host.entry(view.host.clone()).or_default();
            taken.extend([view.ports.tcp, view.ports.tls, view.ports.bus]);
        }
        Self { by_host, next: BTreeMap::new() }
    }

    /// Take a node's ports: those at `number` − 1 above the base, or the next free ones above where
    /// the spec leaves the choice. The error is the first port that is taken (None: past 65,535).
    pub fn take(
        &mut self,
        host: &HostId,
        base: PortBase,
        number: u32,
    ) -> Result<Ports, Option<NonZeroU16>> {
        let taken = self.by_host.entry(host.clone()).or_default();
        let wanted = u16::try_from(number.saturating_sub(1)).map_err(|_| None)?;
        let next = self.next.entry((host.clone(), base.tcp)).or_default();
        let mut offset = if base.explicit { wanted } else { wanted.max(*next) };
        loop {
            let ports = base.at(offset).ok_or(None)?;
            let all = [ports.tcp, ports.tls, ports.bus];
            match all.iter().find(|port| taken.contains(port)) {
                None => {
                    taken.extend(all);
                    if !base.explicit {
                        *next = (*next).max(offset);
                    }
                    return Ok(ports);
                }
                Some(port) if base.explicit => return Err(NonZeroU16::new(*port)),
                Some(_) => offset = offset.checked_add(1).ok_or(None)?,
            }
        }
    }
}

/// What stands on each host, of all clusters.
pub struct HostLoads<'a> {
    fleet: &'a Fleet,
    observed: &'a Observed,
    by_host: BTreeMap<HostId, HostLoad>,
}

#[derive(Clone, Copy, Default)]
struct HostLoad {
    /// What its nodes may use by the spec.
    memory_bytes: u64,
    nodes: usize,
}

impl<'a> HostLoads<'a> {
    pub fn new(fleet: &'a Fleet, observed: &'a Observed) -> Self {
        let mut loads = Self { fleet, observed, by_host: BTreeMap::new() };
        for (name, view) in &observed.nodes {
            loads.add(&view.host, fleet.clusters.get(&name.cluster));
        }
        loads
    }

    /// One more node, of this cluster where the spec names it.
    pub fn add(&mut self, host: &HostId, cluster: Option<&Cluster>) {
        let load = self.by_host.entry(host.clone()).or_default();
        load.nodes += 1;
        load.memory_bytes +=
            cluster.and_then(|cluster| cluster.memory).map_or(0, |memory| memory.0);
    }

    /// The less, the more room: thousandths of the host's memory that are given away, then its nodes.
    fn score(&self, host: &HostId) -> (u64, usize) {
        let load = self.by_host.get(host).copied().unwrap_or_default();
        let by_spec = self.fleet.hosts.get(host).and_then(|host| host.memory);
        let memory = by_spec.or_else(|| self.observed.hosts.get(host).and_then(|view| view.memory));
        let given = memory.map_or(0, |all| load.memory_bytes.saturating_mul(1_000) / all.0.max(1));
        (given, load.nodes)
    }
}

/// A cluster's hosts, those of different zones alternating, so that counting along the list spreads
/// over zones first.
pub fn hosts_interleaved<'a>(fleet: &Fleet, cluster: &'a Cluster) -> Vec<&'a HostId> {
    interleaved(fleet, cluster, |_| ())
}

/// [`hosts_interleaved`], in each round of zones those with the most room first.
pub fn hosts_by_room<'a>(
    fleet: &Fleet,
    cluster: &'a Cluster,
    loads: &HostLoads<'_>,
) -> Vec<&'a HostId> {
    interleaved(fleet, cluster, |host| loads.score(host))
}

fn interleaved<'a, K: Ord + Copy>(
    fleet: &Fleet,
    cluster: &'a Cluster,
    score: impl Fn(&HostId) -> K,
) -> Vec<&'a HostId> {
    let mut scored: Vec<(K, &Zone, &HostId)> = cluster
        .hosts
        .iter()
        .filter_map(|id| Some((score(id), &fleet.hosts.get(id)?.zone, id)))
        .collect();
    scored.sort_by_key(|(score, zone, _)| (*score, *zone));
    // A host's rank within its zone is the round in which the zone gives it.
    let mut given: BTreeMap<&Zone, usize> = BTreeMap::new();
    let mut ranked: Vec<(usize, &HostId)> = Vec::with_capacity(scored.len());
    for (_, zone, id) in scored {
        let round = given.entry(zone).or_default();
        ranked.push((*round, id));
        *round += 1;
    }
    ranked.sort_by_key(|(round, _)| *round);
    ranked.into_iter().map(|(_, id)| id).collect()
}

/// Hands out hosts, the one with the fewest nodes first.
pub struct HostPicker<'a> {
    /// By rank.
    hosts: Vec<&'a HostId>,
    /// (nodes there, rank).
    queue: BTreeSet<(usize, usize)>,
}

impl<'a> HostPicker<'a> {
    /// `hosts` in order of preference; `load` counts what already stands on each.
    pub fn new(hosts: Vec<&'a HostId>, load: &BTreeMap<&HostId, usize>) -> Self {
        let standing = |host: &HostId| load.get(host).copied().unwrap_or(0);
        let queue = hosts.iter().zip(0..).map(|(host, rank)| (standing(host), rank)).collect();
        Self { hosts, queue }
    }

    /// The least loaded host that isn't to be avoided; it counts one more from now on.
    pub fn pick(&mut self, avoid: &[HostId]) -> Option<&'a HostId> {
        let free = |rank: usize| !avoid.contains(self.hosts[rank]);
        let (load, rank) = self.queue.iter().copied().find(|(_, rank)| free(*rank))?;
        self.queue.remove(&(load, rank));
        self.queue.insert((load + 1, rank));
        Some(self.hosts[rank])
    }

    /// Count one more on a host without asking for it.
    pub fn add(&mut self, host: &HostId) {
        let found = self.queue.iter().copied().find(|(_, rank)| self.hosts[*rank] == host);
        if let Some((load, rank)) = found {
            self.queue.remove(&(load, rank));
            self.queue.insert((load + 1, rank));
        }
    }
}

/// A handover that brings primaries closer to their spread: (shard, replica) by the caller's
/// numbers. `primaries[s]` is the domain (host or zone) of shard s's primary, `replicas[s]` the
/// domains of its replicas that could take over, with the caller's numbers; `domains` all that
/// primaries may stand in.
///
/// Searched is a chain of handovers from a crowded domain to one with at least two fewer, so that the
/// sum of squares falls; returned is the chain's last link, which makes room for the one before it.
pub fn spreading_handover<D: Ord + Clone>(
    domains: &[D],
    primaries: &[D],
    replicas: &[Vec<(usize, D)>],
) -> Option<(usize, usize)> {
    let mut counts: BTreeMap<&D, usize> = domains.iter().map(|domain| (domain, 0)).collect();
    let mut shards_in: BTreeMap<&D, Vec<usize>> = BTreeMap::new();
    for (shard, domain) in primaries.iter().enumerate() {
        *counts.entry(domain).or_default() += 1;
        shards_in.entry(domain).or_default().push(shard);
    }
    let mut crowded: Vec<(&D, usize)> =
        counts.iter().map(|(domain, count)| (*domain, *count)).collect();
    crowded.sort_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(right.0)));
    let fewest = crowded.last()?.1;
    for (start, count) in &crowded {
        if *count < fewest + 2 {
            break;
        }
        let mut seen: BTreeSet<&D> = BTreeSet::from([*start]);
        let mut queue: VecDeque<&D> = VecDeque::from([*start]);
        while let Some(here) = queue.pop_front() {
            for &shard in shards_in.get(here).into_iter().flatten() {
                for (replica, to) in &replicas[shard] {
                    if !seen.insert(to) {
                        continue;
                    }
                    if counts.get(to).is_some_and(|there| there + 2 <= *count) {
                        return Some((shard, *replica));
                    }
                    queue.push_back(to);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Bytes, ClusterName},
        spec::{self, Machine},
    };

    fn base(explicit: bool) -> PortBase {
        PortBase { tcp: 7001, tls: 8001, bus: 17001, explicit }
    }

    #[test]
    fn ports_skip_what_is_taken() {
        let host = HostId::new("a");
        let with = |taken: &[u16]| PortsInUse {
            by_host: BTreeMap::from([(host.clone(), taken.iter().copied().collect())]),
            next: BTreeMap::new(),
        };
        let tcp = |ports: Result<Ports, _>| ports.map(|ports| ports.tcp);
        assert_eq!(tcp(with(&[]).take(&host, base(false), 3)), Ok(7003));
        assert_eq!(tcp(with(&[7003, 17004]).take(&host, base(false), 3)), Ok(7005));
        assert_eq!(tcp(with(&[8003]).take(&host, base(true), 3)), Err(NonZeroU16::new(8003)));
        assert_eq!(tcp(with(&[]).take(&host, base(false), 60_000)), Err(None));
        let mut ports = with(&[7001]);
        assert_eq!(tcp(ports.take(&host, base(false), 1)), Ok(7002));
        assert_eq!(tcp(ports.take(&host, base(false), 2)), Ok(7003));
    }

    #[test]
    fn picks_the_emptiest_host() {
        let hosts: Vec<HostId> = ["a", "b", "c"].map(HostId::new).to_vec();
        let load = BTreeMap::from([(&hosts[0], 1)]);
        let mut picker = HostPicker::new(hosts.iter().collect(), &load);
        let mut next = |avoid: &[HostId]| picker.pick(avoid).map(ToString::to_string);
        assert_eq!(next(&[]).as_deref(), Some("b"));
        assert_eq!(next(&hosts[2..]).as_deref(), Some("a"));
        assert_eq!(next(&[]).as_deref(), Some("c"));
        assert_eq!(next(&hosts), None);
    }

    #[test]
    fn hosts_alternate_between_zones_and_those_with_room_come_first() {
        let text = "hosts:\n  a: {address: 127.0.0.1, zone: x, memory: 1GiB}\n  \
                    b: {address: 127.0.0.2, zone: x, memory: 8GiB}\n  \
                    c: {address: 127.0.0.3, zone: y, memory: 8GiB}\n  \
                    d: {address: 127.0.0.4, zone: y, memory: 8GiB}\n\
                    clusters: {small: {shards: 3, replicas: 0}, \
                    large: {shards: 3, replicas: 0, memory: 512MiB}}";
        let fleet = spec::parse(text, "fleet.yaml", &Machine::default()).unwrap().fleet;
        let cluster = &fleet.clusters[&ClusterName::new("small")];
        assert_eq!(cluster.memory, None);
        assert_eq!(fleet.clusters[&ClusterName::new("large")].memory, Some(Bytes::mib(512)));
        let observed = Observed {
            at_ms: 0,
            hosts: BTreeMap::new(),
            nodes: BTreeMap::new(),
            proxies: BTreeMap::new(),
            history: BTreeMap::new(),
        };
        let check = |standing: &[(&str, &str)], expected: &str| {
            let mut loads = HostLoads::new(&fleet, &observed);
            for (host, cluster) in standing {
                loads.add(&HostId::new(*host), fleet.clusters.get(&ClusterName::new(*cluster)));
            }
            let hosts = hosts_by_room(&fleet, cluster, &loads);
            let hosts: Vec<&str> = hosts.into_iter().map(HostId::as_str).collect();
            assert_eq!(hosts.concat(), expected, "{standing:?}");
        };
        check(&[], "acbd");
        check(&[("a", "small")], "bcda");
        check(&[("a", "small"), ("c", "small")], "bdac");
        check(&[("c", "small"), ("d", "small")], "acbd");
        // Half of a's memory is more than two nodes on others.
        check(&[("a", "large"), ("b", "small"), ("b", "small")], "cbda");
        check(&[("c", "large"), ("d", "gone"), ("d", "gone")], "adbc");
    }

    #[test]
    fn spreads_by_chains() {
        let check = |primaries: &[char], replicas: &[&[char]], expected: Option<(usize, usize)>| {
            let replicas: Vec<Vec<(usize, char)>> = replicas
                .iter()
                .map(|domains| domains.iter().copied().enumerate().collect())
                .collect();
            assert_eq!(
                spreading_handover(&['a', 'b', 'c'], primaries, &replicas),
                expected,
                "{primaries:?}"
            );
        };
        check(&['a', 'b', 'c'], &[&['b'], &['c'], &['a']], None);
        check(&['a', 'a', 'c'], &[&['c'], &['b'], &['a']], Some((1, 0)));
        check(&['a', 'a', 'b'], &[&['b'], &['b'], &['c']], Some((2, 0)));
        check(&['a', 'a', 'b'], &[&['b'], &['b'], &['a']], None);
        check(&['a', 'b'], &[&[], &[]], None);
    }
}
