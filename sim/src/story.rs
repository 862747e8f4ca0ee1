//! Fleets, changes of their specs and faults, made up from a seed.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use fleet::{
    model::{
        Bytes, Cluster, ClusterName, DirectiveValue, EngineWant, Fleet, GuardMode, GuardPolicy,
        Host, HostId, NodeName, Pace, PlacementPolicy, PortBase, Profile, Spread, Takeover, Zone,
        maxmemory, quorum_safe_max,
    },
    observed::{HostView, Observed, OpenSlots, Process},
    world::{Fault, World},
};
use protocol::{EngineKind, SLOT_COUNT, Slot};

use crate::rng::Rng;

/// A fleet of `hosts` hosts in zones of two, and no clusters.
pub fn hosts(count: u32) -> Fleet {
    let host = |index: u32| Host {
        id: HostId::new(format!("h{index}")),
        address: Ipv4Addr::new(10, 0, (index / 250) as u8, (index % 250) as u8 + 1).into(),
        zone: Zone::new(format!("z{}", index / 2)),
        memory: None,
    };
    Fleet {
        hosts: (0..count).map(host).map(|host| (host.id.clone(), host)).collect(),
        clusters: BTreeMap::new(),
        proxies: BTreeMap::new(),
        guard: GuardPolicy { mode: GuardMode::Enforce, moves_per_hour_max: 6 },
    }
}

/// A cluster over all hosts of the fleet, in memory only.
pub fn cluster(fleet: &Fleet, name: &str, shards: u32, replicas: u32) -> Cluster {
    let count = fleet.hosts.len();
    let safe = quorum_safe_max(shards as usize) * count >= shards as usize;
    let index = fleet.clusters.len() as u16;
    Cluster {
        name: ClusterName::new(name),
        engine: EngineWant::default(),
        shards,
        replicas,
        profile: Profile::Cache,
        takeover: Takeover::Promote,
        memory: None,
        ports: PortBase {
            tcp: 7_001 + 1_000 * index,
            tls: 27_001 + 1_000 * index,
            bus: 17_001 + 1_000 * index,
            explicit: false,
        },
        hosts: fleet.hosts.keys().cloned().collect(),
        placement: PlacementPolicy {
            primaries_host: if safe { Spread::QuorumSafe } else { Spread::PreferSpread },
            primaries_zone: Spread::Any,
        },
        node_timeout_ms: 2_000,
        users: BTreeMap::new(),
        config: BTreeMap::from([
            ("appendonly".to_owned(), DirectiveValue::single("no")),
            ("save".to_owned(), DirectiveValue::single("")),
        ]),
        pace: Pace::Full,
        backup: None,
        stopped: false,
    }
}

/// Nothing but the hosts.
pub fn nothing(fleet: &Fleet) -> Observed {
    let view =
        HostView { reachable: true, memory: None, ports_taken: std::iter::empty().collect() };
    Observed {
        at_ms: 1_700_000_000_000,
        hosts: fleet.hosts.keys().map(|id| (id.clone(), view.clone())).collect(),
        nodes: BTreeMap::new(),
        proxies: BTreeMap::new(),
        history: BTreeMap::new(),
    }
}

/// A fleet of any kind, small ones more often.
pub fn fleet(rng: &mut Rng) -> Fleet {
    let mut fleet = hosts(rng.between(1, 6));
    let clusters = if rng.chance(75) { 1 } else { rng.between(2, 3) };
    for index in 0..clusters {
        let shards = if rng.chance(70) { rng.between(1, 3) } else { rng.between(4, 7) };
        let mut spec = cluster(&fleet, &format!("c{index}"), shards, rng.between(0, 2));
        // More copies than hosts can't be kept apart.
        if fleet.hosts.len() > 1 {
            spec.replicas = spec.replicas.min(fleet.hosts.len() as u32 - 1);
        }
        spec.node_timeout_ms = *rng.pick(&[1_000, 2_000, 5_000, 15_000]).unwrap_or(&2_000);
        if rng.chance(40) {
            spec.profile = Profile::Durable;
            spec.takeover =
                *rng.pick(&[Takeover::Promote, Takeover::LeastLoss]).unwrap_or(&Takeover::Promote);
            spec.config.insert("appendonly".to_owned(), DirectiveValue::single("yes"));
            spec.config.remove("save");
        }
        if rng.chance(30) {
            set_memory(&mut spec, rng.between(1, 4) * 256);
        }
        fleet.clusters.insert(spec.name.clone(), spec);
    }
    fleet
}

fn set_memory(spec: &mut Cluster, mib: u32) {
    let memory = Bytes::mib(mib.into());
    spec.memory = Some(memory);
    let max = maxmemory(memory, spec.profile).0.to_string();
    spec.config.insert("maxmemory".to_owned(), DirectiveValue::single(max));
}

/// Another spec for the same fleet: grown, shrunk, set or upgraded.
pub fn changed(fleet: &Fleet, rng: &mut Rng) -> Fleet {
    let mut fleet = fleet.clone();
    let names: Vec<ClusterName> = fleet.clusters.keys().cloned().collect();
    let hosts = fleet.hosts.len();
    let most_replicas = fleet.clusters.values().map(|spec| spec.replicas).max().unwrap_or(0);
    let Some(name) = rng.pick(&names) else { return fleet };
    let Some(spec) = fleet.clusters.get_mut(name) else { return fleet };
    match rng.below(7) {
        0 | 1 => spec.shards = rng.between(1, 7),
        2 => {
            let most = if hosts > 1 { (hosts as u32 - 1).min(2) } else { 2 };
            spec.replicas = rng.between(0, most);
        }
        3 => set_memory(spec, rng.between(1, 4) * 256),
        4 => {
            spec.config
                .insert("maxmemory-policy".to_owned(), DirectiveValue::single("allkeys-lfu"));
        }
        5 => {
            let version = "8.1.1".parse().ok();
            spec.engine = EngineWant { kind: Some(EngineKind::Valkey), version, path: None };
        }
        _ => {
            // One host is given up, by this cluster or for good.
            if hosts as u32 > spec.replicas + 1 {
                let index = rng.below(spec.hosts.len());
                let host = spec.hosts.remove(index);
                if index.is_multiple_of(2) && hosts as u32 > most_replicas + 1 {
                    fleet.hosts.remove(&host);
                }
            }
        }
    }
    let left = &fleet.hosts;
    for spec in fleet.clusters.values_mut() {
        spec.hosts.retain(|host| left.contains_key(host));
        let safe = quorum_safe_max(spec.shards as usize) * spec.hosts.len() >= spec.shards as usize;
        spec.placement.primaries_host =
            if safe { Spread::QuorumSafe } else { Spread::PreferSpread };
    }
    fleet
}

/// The same, with one host at another address: `pick` says which.
pub fn readdressed(fleet: &Fleet, pick: usize) -> Fleet {
    let mut fleet = fleet.clone();
    let count = fleet.hosts.len().max(1);
    if let Some(host) = fleet.hosts.values_mut().nth(pick % count)
        && let IpAddr::V4(address) = host.address
    {
        let [_, _, high, low] = address.octets();
        host.address = Ipv4Addr::new(10, 1, high, low).into();
    }
    fleet
}

/// Something goes wrong with what there is now, and what ends it later.
pub fn trouble(world: &World, fleet: &Fleet, rng: &mut Rng) -> Option<(Fault, Option<Fault>)> {
    let nodes: Vec<NodeName> = world
        .nodes()
        .filter(|(_, node)| node.process == Process::Running)
        .map(|(name, _)| name)
        .collect();
    let node = rng.pick(&nodes)?.clone();
    let hosts: Vec<HostId> = fleet.hosts.keys().cloned().collect();
    let host = rng.pick(&hosts)?.clone();
    Some(match rng.below(13) {
        0 | 1 => (Fault::Kill(node), None),
        2 => (Fault::KillAndLoseData(node), None),
        3 => (Fault::KillAndEmpty(node), None),
        4 => (Fault::Bounce(node), None),
        5 | 6 => (Fault::Suspend(node.clone()), Some(Fault::Resume(node))),
        7 => (Fault::HostDown(host.clone()), Some(Fault::HostUp(host))),
        8 => (Fault::Cut(host.clone()), Some(Fault::Heal(host))),
        9 | 10 => (half_open(world, &node, rng)?, None),
        11 => {
            let (directive, value) = *rng.pick(&[
                ("cluster-allow-replica-migration", "yes"),
                ("cluster-node-timeout", "12345"),
                ("maxmemory-policy", "volatile-ttl"),
                ("appendonly", "no"),
            ])?;
            let (directive, value) = (directive.to_owned(), value.to_owned());
            (Fault::Drift { node, directive, value }, None)
        }
        _ => {
            // A host is lost while another node is down already.
            (Fault::Kill(nodes.first()?.clone()), None)
        }
    })
}

fn half_open(world: &World, node: &NodeName, rng: &mut Rng) -> Option<Fault> {
    let owners: Vec<(NodeName, protocol::NodeId, Slot)> = world
        .nodes()
        .filter(|(name, at)| {
            name.cluster == node.cluster && world.answers(name) && at.replica_of().is_none()
        })
        .map(|(name, at)| {
            let slots = at.slots();
            let slot = slots.iter().nth(rng.below(slots.len()));
            (name, at.id, slot)
        })
        .filter_map(|(name, id, slot)| Some((name, id, slot?)))
        .collect();
    let (from, from_id, slot) = rng.pick(&owners)?.clone();
    let (to, to_id, _) = rng.pick(&owners)?.clone();
    if from == to {
        return None;
    }
    Some(match rng.below(4) {
        0 => Fault::HalfOpen { at: from, side: OpenSlots::MigratingTo(to_id), slot },
        1 => Fault::HalfOpen { at: to, side: OpenSlots::ImportingFrom(from_id), slot },
        case => Fault::HalfMove { from, to, slot, moved: case == 2 },
    })
}

/// Any slot.
pub fn slot(rng: &mut Rng) -> Option<Slot> {
    Slot::new(rng.below(usize::from(SLOT_COUNT)) as u16)
}
