//! What must hold between the parts of a spec. Each refusal shows its arithmetic.
//!
//! Only what no placement whatever could satisfy is refused here; the planner decides the rest.

use std::{collections::BTreeSet, ops::RangeInclusive};

use protocol::Engine;

use super::{
    config::unknown_directive,
    lower::{Draft, DraftCluster, Hosts},
    proxies,
    read::{At, Field, Reader},
};
use crate::model::{Bytes, EngineWant, HostId, Spread, Zone, quorum_safe_max};

/// Report everything that can't be.
pub fn check(draft: &Draft, reader: &mut Reader) {
    check_addresses(&draft.hosts, reader);
    for cluster in &draft.clusters {
        check_spread(cluster, &draft.hosts, reader);
        check_replicas(cluster, reader);
        check_ports(cluster, reader);
        check_directives(cluster, reader);
    }
    check_ports_between(&draft.clusters, reader);
    proxies::check(draft, reader);
    check_memory(draft, reader);
}

fn check_addresses(hosts: &Hosts, reader: &mut Reader) {
    let addressed = |(id, host): (_, &super::lower::DraftHost)| Some((id, host.address.clone()?));
    let mut addressed: Vec<(&HostId, At<_>)> = hosts.by_id.iter().filter_map(addressed).collect();
    addressed.sort_by_key(|(_, address)| (address.place.mark.line, address.place.mark.column));
    for (index, (_, address)) in addressed.iter().enumerate() {
        let earlier = addressed.iter().take(index).find(|(_, e)| e.value == address.value);
        if let Some((id, first)) = earlier {
            let message = format!(
                "{} is the address of host {id} too (line {})",
                address.value, first.place.mark.line
            );
            reader
                .error(&address.place, message)
                .hint("give each host an address of its own, such as 127.0.1.1 and 127.0.2.1");
        }
    }
}

/// Can primaries be spread as is wanted?
fn check_spread(cluster: &DraftCluster, hosts: &Hosts, reader: &mut Reader) {
    let (Some(shards), Some(own)) = (&cluster.shards, &cluster.hosts) else { return };
    if let Some(spread) = &cluster.primaries_host {
        check_quorum_safe(spread, shards, own.value.len(), "host", reader);
    }
    let zones: Option<Vec<&Zone>> =
        own.value.iter().map(|id| hosts.by_id.get(id)?.zone.as_ref()).collect();
    if let (Some(spread), Some(mut zones)) = (&cluster.primaries_zone, zones) {
        zones.sort();
        zones.dedup();
        check_quorum_safe(spread, shards, zones.len(), "zone", reader);
    }
}

fn check_quorum_safe(
    spread: &At<Spread>,
    shards: &At<u32>,
    domains: usize,
    domain: &str,
    reader: &mut Reader,
) {
    let count = shards.value as usize;
    let most = quorum_safe_max(count);
    if spread.value != Spread::QuorumSafe || most * domains >= count {
        return;
    }
    let on = format!("{} on {}", plural(count, "primary"), plural(domains, domain));
    let else_hint = format!("set placement.primaries.{domain}: prefer-spread");
    if most == 0 {
        let message = format!(
            "{on}: quorum-safe needs at least 3, of which 2 are a majority when one is lost"
        );
        reader.error(&shards.place, message).hint(format!("set shards: 3, or {else_hint}"));
        return;
    }
    let message = format!(
        "{on}: one {domain} must hold at least {}, and quorum-safe allows at most {most} of {count}, \
         so that the rest is a majority",
        count.div_ceil(domains.max(1)),
    );
    let needed = count.div_ceil(most);
    let hint = format!("give it at least {}, or {else_hint}", plural(needed, domain));
    reader.error(&shards.place, message).hint(hint);
}

/// A replica never shares its primary's host, where there is another.
fn check_replicas(cluster: &DraftCluster, reader: &mut Reader) {
    let (Some(replicas), Some(hosts)) = (&cluster.replicas, &cluster.hosts) else { return };
    let (copies, hosts) = (replicas.value as usize + 1, hosts.value.len());
    if hosts < 2 || copies <= hosts {
        return;
    }
    let message = format!(
        "a primary with {} needs {copies} hosts, one for each copy, but the cluster has {hosts}",
        plural(copies - 1, "replica"),
    );
    reader
        .error(&replicas.place, message)
        .hint(format!("set replicas: {}, or give it at least {copies} hosts", hosts - 1));
}

/// Where the spec says product and version, the engine must know every directive. Where it doesn't,
/// that is checked when the engine is found.
fn check_directives(cluster: &DraftCluster, reader: &mut Reader) {
    let Some(EngineWant { kind: Some(kind), version: Some(version), .. }) = &cluster.engine else {
        return;
    };
    let text = version.to_string();
    // `7` alone leaves open what 7.2 knows and 7.0 doesn't.
    let (Some(_), Ok(version)) = (text.split_once('.'), text.parse()) else { return };
    for (name, value) in cluster.config.iter().flatten() {
        let engine = Engine { kind: *kind, version };
        if let Some(error) = unknown_directive(engine, name, reader.file(), &value.place) {
            reader.add(error);
        }
    }
}

/// The ports of all of a cluster's nodes, by what they are for.
pub(super) fn port_ranges(
    cluster: &DraftCluster,
) -> Option<[(&'static str, RangeInclusive<u32>); 3]> {
    let (ports, last) = (cluster.ports.as_ref()?.value, cluster.nodes()?.saturating_sub(1));
    let range = |first: u16| u32::from(first)..=u32::from(first) + last;
    Some([("tcp", range(ports.tcp)), ("tls", range(ports.tls)), ("bus", range(ports.bus))])
}

fn overlap(a: &RangeInclusive<u32>, b: &RangeInclusive<u32>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

pub(super) fn show(range: &RangeInclusive<u32>) -> String {
    format!("{}–{}", range.start(), range.end())
}

fn check_ports(cluster: &DraftCluster, reader: &mut Reader) {
    let (Some(ports), Some(ranges)) = (&cluster.ports, port_ranges(cluster)) else { return };
    let nodes = cluster.nodes().unwrap_or_default();
    for (index, (name, range)) in ranges.iter().enumerate() {
        if *range.end() > u32::from(u16::MAX) {
            let message = format!(
                "{nodes} nodes from {name} port {} on need ports up to {}, and 65535 is the last",
                range.start(),
                range.end()
            );
            reader.error(&ports.place, message).hint(format!("set ports.{name} lower"));
        }
        for (other, other_range) in ranges.iter().skip(index + 1) {
            if overlap(range, other_range) {
                let message = format!(
                    "the {name} ports {} and the {other} ports {} of {nodes} nodes overlap",
                    show(range),
                    show(other_range)
                );
                reader.error(&ports.place, message).hint(format!("set ports.{other} further away"));
            }
        }
    }
}

/// Clusters that share a host must not share ports that both insist on.
fn check_ports_between(clusters: &[DraftCluster], reader: &mut Reader) {
    let insists =
        |cluster: &&DraftCluster| cluster.ports.as_ref().is_some_and(|ports| ports.value.explicit);
    let clusters: Vec<&DraftCluster> = clusters.iter().filter(insists).collect();
    for (index, second) in clusters.iter().enumerate() {
        for first in clusters.iter().take(index) {
            let shared = match (&first.hosts, &second.hosts) {
                (Some(a), Some(b)) => a.value.iter().find(|id| b.value.contains(id)),
                _ => None,
            };
            let (Some(host), Some(a), Some(b)) = (shared, port_ranges(first), port_ranges(second))
            else {
                continue;
            };
            let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
            let Some(((name_a, range_a), (name_b, range_b))) =
                pairs.into_iter().find(|((_, a), (_, b))| overlap(a, b))
            else {
                continue;
            };
            let (Some(place_a), Some(place_b)) = (&first.ports, &second.ports) else { continue };
            let message = format!(
                "the {name_b} ports {} of {} overlap the {name_a} ports {} of {} (line {}), and both \
                 may use host {host}",
                show(range_b),
                second.name.value,
                show(range_a),
                first.name.value,
                place_a.place.mark.line
            );
            reader.error(&place_b.place, message).hint("set ports that are further apart");
        }
    }
}

/// What a cluster's nodes may use, where that is known.
struct Need<'a> {
    name: &'a str,
    hosts: &'a [HostId],
    nodes: u64,
    /// Of one node.
    memory: &'a At<Bytes>,
}

impl<'a> Need<'a> {
    fn of(cluster: &'a DraftCluster) -> Option<Self> {
        let memory = cluster.memory.as_given()?;
        let hosts = &cluster.hosts.as_ref()?.value;
        let nodes = u64::from(cluster.nodes()?);
        Some(Self { name: cluster.name.value.as_str(), hosts, nodes, memory })
    }

    fn sum(&self) -> u64 {
        self.memory.value.0.saturating_mul(self.nodes)
    }
}

/// The sum of what nodes may use must fit the hosts. Clusters are taken together where one's hosts are
/// among another's.
fn check_memory(draft: &Draft, reader: &mut Reader) {
    const HINT: &str = "lower memory or the number of nodes, or add a host";
    let needs: Vec<Need<'_>> = draft.clusters.iter().filter_map(Need::of).collect();
    let has =
        |id: &HostId| draft.hosts.by_id.get(id)?.memory.as_given().map(|memory| memory.value.0);
    for DraftCluster { name, memory, hosts, .. } in &draft.clusters {
        let limited = hosts.iter().flat_map(|hosts| &hosts.value).find(|id| has(id).is_some());
        if let (Field::Missing, Some(host)) = (memory, limited) {
            let message = format!(
                "{} has no memory limit, so that of host {host} can't be checked",
                name.value
            );
            reader.warn(&name.place, message).hint("give it memory, such as memory: 512MiB");
        }
    }
    let mut seen: BTreeSet<BTreeSet<&HostId>> = BTreeSet::new();
    for need in &needs {
        let Some(rooms) = need.hosts.iter().map(has).collect::<Option<Vec<u64>>>() else {
            continue;
        };
        let hosts: BTreeSet<&HostId> = need.hosts.iter().collect();
        let among = needs.iter().filter(|other| other.hosts.iter().all(|id| hosts.contains(id)));
        let among: Vec<&Need<'_>> = among.collect();
        let wanted = among.iter().fold(0, |sum: u64, need| sum.saturating_add(need.sum()));
        let room = rooms.iter().fold(0, |sum: u64, room| sum.saturating_add(*room));
        let (verb, together) = if hosts.len() == 1 { ("has", "") } else { ("have", " together") };
        let names: Vec<&str> = hosts.iter().map(|id| id.as_str()).collect();
        let names = names.join(", ");
        if wanted > room {
            let term = |need: &&Need<'_>| {
                format!("{} × {} of {}", need.nodes, need.memory.value, need.name)
            };
            let terms: Vec<String> = among.iter().map(term).collect();
            let message = format!(
                "{} make {}, but {names} {verb} {}{together}",
                terms.join(" and "),
                Bytes(wanted),
                Bytes(room),
            );
            if seen.insert(hosts) {
                reader.error(&need.memory.place, message).hint(HINT);
            }
            continue;
        }
        let size = need.memory.value;
        let fit: u64 = rooms.iter().map(|room| room / size.0.max(1)).sum();
        if fit < need.nodes {
            let message = format!(
                "{} of {size} don't fit: {names} {verb} room for {fit}{together}",
                plural(need.nodes as usize, "node"),
            );
            reader.error(&need.memory.place, message).hint(HINT);
        }
    }
}

/// `1 host`, `2 hosts`, `2 primaries`.
fn plural(count: usize, word: &str) -> String {
    match (count, word.strip_suffix('y')) {
        (1, _) => format!("1 {word}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {word}s"),
    }
}
