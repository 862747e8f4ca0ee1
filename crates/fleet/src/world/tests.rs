use std::{collections::BTreeMap, net::Ipv4Addr};

use protocol::SLOT_COUNT;

use super::*;
use crate::{
    model::{
        Cluster, DirectiveValue, EngineWant, GuardMode, GuardPolicy, Host, Pace, PlacementPolicy,
        PortBase, Ports, Profile, Spread, Takeover, Zone,
    },
    observed::{Health, HostView, OpenSlots, Role, Server, Table, Up},
    step::{Action, RepairCase},
};
use protocol::SlotSet;

const TIMEOUT_MS: u64 = 2_000;

fn host_id(index: u8) -> HostId {
    HostId::new(format!("h{index}"))
}

fn fleet(hosts: u8, shards: u32, replicas: u32) -> Fleet {
    let name = ClusterName::new("c");
    let ids: Vec<HostId> = (1..=hosts).map(host_id).collect();
    let cluster = Cluster {
        name: name.clone(),
        engine: EngineWant::default(),
        shards,
        replicas,
        profile: Profile::Cache,
        takeover: Takeover::Promote,
        memory: None,
        ports: PortBase { tcp: 7001, tls: 8001, bus: 17001, explicit: false },
        hosts: ids.clone(),
        placement: PlacementPolicy {
            primaries_host: Spread::PreferSpread,
            primaries_zone: Spread::Any,
        },
        node_timeout_ms: TIMEOUT_MS,
        users: BTreeMap::new(),
        config: BTreeMap::from([
            ("appendonly".to_owned(), DirectiveValue::single("no")),
            ("save".to_owned(), DirectiveValue::single("")),
        ]),
        pace: Pace::Full,
        backup: None,
        stopped: false,
    };
    let hosts = ids.into_iter().enumerate().map(|(index, id)| {
        let host = Host {
            id: id.clone(),
            address: Ipv4Addr::new(10, 0, 0, index as u8 + 1).into(),
            zone: Zone::new(id.as_str()),
            memory: None,
        };
        (id, host)
    });
    Fleet {
        hosts: hosts.collect(),
        clusters: BTreeMap::from([(name, cluster)]),
        proxies: BTreeMap::new(),
        guard: GuardPolicy { mode: GuardMode::Enforce, moves_per_hour_max: 6 },
    }
}

fn nothing(fleet: &Fleet) -> Observed {
    let view = HostView { reachable: true, memory: None, ports_taken: BTreeMap::new() };
    Observed {
        at_ms: 1_000_000,
        hosts: fleet.hosts.keys().map(|id| (id.clone(), view.clone())).collect(),
        nodes: BTreeMap::new(),
        proxies: BTreeMap::new(),
        history: BTreeMap::new(),
    }
}

fn name(number: u32) -> NodeName {
    NodeName::new(ClusterName::new("c"), number)
}

fn step(action: Action) -> Step {
    Step { cluster: ClusterName::new("c"), action, why: String::new() }
}

/// The slots of shard `index` of `count`.
fn share(index: u32, count: u32) -> SlotSet {
    let edge = |index: u32| (u32::from(SLOT_COUNT) * index / count) as u16;
    SlotSet::range(edge(index), edge(index + 1) - 1)
}

/// Primaries 1..=shards on hosts in turn, then their replicas, each on the next host.
fn creation(fleet: &Fleet) -> Vec<Step> {
    let cluster = &fleet.clusters[&ClusterName::new("c")];
    let (shards, hosts) = (cluster.shards, fleet.hosts.len() as u32);
    let total = cluster.nodes_wanted();
    let mut steps: Vec<Step> = (0..total)
        .map(|index| {
            let host = host_id(((index % shards + index / shards) % hosts) as u8 + 1);
            let port = 7001 + index as u16;
            let ports = Ports { tcp: port, tls: port + 1000, bus: port + 10_000 };
            step(Action::CreateNode { node: name(index + 1), host, ports })
        })
        .collect();
    steps.push(step(Action::Meet { nodes: (1..=total).map(name).collect() }));
    let shares = (0..shards).map(|index| (name(index + 1), share(index, shards))).collect();
    steps.push(step(Action::AssignSlots { shares }));
    steps.extend((shards..total).map(|index| {
        let primary = name(index % shards + 1);
        step(Action::Replicate { node: name(index + 1), primary })
    }));
    steps
}

fn created(fleet: &Fleet) -> World {
    let mut world = World::from_observed(&nothing(fleet), fleet);
    for result in world.apply_all(&creation(fleet), fleet) {
        result.unwrap();
    }
    world.settle();
    world
}

fn up(observed: &Observed, number: u32) -> Up {
    observed.nodes[&name(number)].up().unwrap_or_else(|| panic!("{number} is down")).clone()
}

fn is_well(observed: &Observed) -> bool {
    let ups: Vec<&Up> = observed.nodes.values().filter_map(|view| view.up()).collect();
    ups.iter().all(|up| up.cluster_ok && up.table == ups[0].table)
}

fn holds(world: &World, number: u32, id: u64) -> bool {
    world.node(&name(number)).unwrap().data.writes.values().any(|ids| ids.contains(&id))
}

fn write(world: &mut World, slot: u16, id: u64) -> Option<NodeName> {
    world.write(&ClusterName::new("c"), Slot::new(slot).unwrap(), id, 0)
}

fn primary_of(world: &World, slot: u16) -> u32 {
    let observed = world.observe(&Vantage::default());
    let slot = Slot::new(slot).unwrap();
    let owners: Vec<u32> = observed
        .nodes
        .iter()
        .filter(|(_, view)| {
            view.up().is_some_and(|up| up.is_primary() && up.slots().contains(slot))
        })
        .map(|(name, _)| name.number)
        .collect();
    assert_eq!(owners.len(), 1, "owners of {slot}: {owners:?}");
    owners[0]
}

#[test]
fn a_cluster_is_created() {
    let fleet = fleet(3, 3, 1);
    let seen = predict(&nothing(&fleet), &fleet, &creation(&fleet));
    assert!(is_well(&seen));
    for number in 1..=3 {
        assert_eq!(up(&seen, number).slots(), share(number - 1, 3));
        let replica = up(&seen, number + 3);
        let of = up(&seen, number).id;
        assert_eq!(replica.role, Role::Replica { of, link: crate::observed::Link::InSync });
    }
    assert!(seen.history[&ClusterName::new("c")].calm_since_ms.is_some());
}

#[test]
fn observing_and_modelling_agree() {
    let fleet = fleet(3, 3, 2);
    let seen = created(&fleet).observe(&Vantage::default());
    let mut again = World::from_observed(&seen, &fleet);
    again.advance(60_000);
    let later = again.observe(&Vantage::default());
    for (name, view) in &seen.nodes {
        let (before, after) = (view.up().unwrap(), later.nodes[name].up().unwrap());
        assert_eq!((before.id, before.role, before.slots()), (after.id, after.role, after.slots()));
        assert_eq!(before.config, after.config);
    }
}

#[test]
fn a_killed_primary_is_replaced_and_rejoins() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    write(&mut world, 5, 77).unwrap();
    world.advance(500);
    world.strike(&Fault::Kill(name(1)));
    world.advance(TIMEOUT_MS - 200);
    assert!(world.observe(&Vantage::default()).nodes[&name(4)].up().unwrap().role != Role::Primary);
    world.advance(3_000);
    assert_eq!(primary_of(&world, 5), 4);
    world.apply(&step(Action::StartNode { node: name(1) }), &fleet).unwrap();
    world.settle();
    let seen = world.observe(&Vantage::default());
    assert!(is_well(&seen));
    assert!(matches!(up(&seen, 1).role, Role::Replica { of, .. } if of == up(&seen, 4).id));
    assert!(holds(&world, 1, 77) && holds(&world, 4, 77));
}

#[test]
fn an_emptied_primary_that_comes_back_in_time_wipes_its_replica() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    write(&mut world, 5, 77).unwrap();
    world.advance(500);
    assert!(holds(&world, 4, 77));
    world.strike(&Fault::Bounce(name(1)));
    world.settle();
    assert_eq!(primary_of(&world, 5), 1);
    assert!(!holds(&world, 4, 77));
}

#[test]
fn promotion_needs_a_majority_and_keeps_the_data() {
    let check = |shards: u32, expected: bool| {
        let fleet = fleet(3, shards, 1);
        let mut world = created(&fleet);
        write(&mut world, 5, 77).unwrap();
        world.advance(500);
        let promote = step(Action::Promote { dead: name(1), to: name(shards + 1) });
        assert!(world.apply(&promote, &fleet).is_err(), "it lives");
        world.strike(&Fault::Kill(name(1)));
        assert_eq!(world.apply(&promote, &fleet).is_ok(), expected, "{shards} shards");
        if expected {
            assert_eq!(primary_of(&world, 5), shards + 1);
            assert!(holds(&world, shards + 1, 77));
        }
    };
    check(1, false);
    check(2, false);
    check(3, true);
}

#[test]
fn handover_loses_nothing_and_is_refused_too_soon_again() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    write(&mut world, 5, 77).unwrap();
    let there = step(Action::Handover { from: name(1), to: name(4) });
    let back = step(Action::Handover { from: name(4), to: name(1) });
    world.apply(&there, &fleet).unwrap();
    assert_eq!(primary_of(&world, 5), 4);
    assert!(holds(&world, 4, 77));
    world.advance(500);
    world.apply(&back, &fleet).unwrap();
    world.advance(500);
    assert!(world.apply(&there, &fleet).is_err(), "voters refuse one primary twice");
    world.advance(2 * TIMEOUT_MS);
    world.apply(&there, &fleet).unwrap();
    world.settle();
    assert!(is_well(&world.observe(&Vantage::default())));
    assert!(holds(&world, 1, 77));
}

#[test]
fn a_cut_off_primary_stops_and_follows_later() {
    let fleet = fleet(4, 3, 1);
    let mut world = created(&fleet);
    world.strike(&Fault::Cut(host_id(1)));
    // Until it knows that it is alone, it acknowledges what will be lost.
    assert_eq!(write(&mut world, 5, 1), Some(name(1)));
    world.advance(TIMEOUT_MS + 3_000);
    assert_eq!(write(&mut world, 5, 2), Some(name(4)));
    assert!(!up(&world.observe(&Vantage::default()), 1).cluster_ok);
    world.strike(&Fault::Heal(host_id(1)));
    world.settle();
    assert_eq!(primary_of(&world, 5), 4);
    assert!(!holds(&world, 1, 1) && holds(&world, 1, 2));
    assert!(is_well(&world.observe(&Vantage::default())));
}

#[test]
fn a_suspended_primary_is_replaced_and_follows_when_it_goes_on() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    world.strike(&Fault::Suspend(name(2)));
    world.advance(TIMEOUT_MS + 3_000);
    let seen = world.observe(&Vantage::default());
    assert!(matches!(seen.nodes[&name(2)].server, Server::Silent { .. }));
    assert!(up(&seen, 5).is_primary());
    assert_eq!(up(&seen, 1).table.rows[&world.node(&name(2)).unwrap().id].health, Health::Failed);
    world.strike(&Fault::Resume(name(2)));
    world.settle();
    let seen = world.observe(&Vantage::default());
    assert!(!up(&seen, 2).is_primary());
    assert!(is_well(&seen));
}

#[test]
fn without_a_majority_nothing_is_elected() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    world.strike(&Fault::Kill(name(1)));
    world.strike(&Fault::Kill(name(2)));
    world.advance(60_000);
    let seen = world.observe(&Vantage::default());
    assert!((4..=6).all(|number| !up(&seen, number).is_primary()));
    assert!(!up(&seen, 3).cluster_ok);
}

#[test]
fn slots_move_with_their_writes() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    write(&mut world, 5, 77).unwrap();
    write(&mut world, 4_000, 78).unwrap();
    let slots = SlotSet::range(0, 999);
    world
        .apply(
            &step(Action::MoveSlots { from: name(1), to: name(2), slots: slots.clone() }),
            &fleet,
        )
        .unwrap();
    world.settle();
    assert_eq!(primary_of(&world, 5), 2);
    assert!(holds(&world, 2, 77) && holds(&world, 5, 77) && !holds(&world, 1, 77));
    assert!(holds(&world, 1, 78));
    assert!(is_well(&world.observe(&Vantage::default())));
    let wrong = step(Action::MoveSlots { from: name(1), to: name(3), slots });
    assert!(world.apply(&wrong, &fleet).is_err());
}

#[test]
fn an_interrupted_move_is_finished_by_repair() {
    for moved in [false, true] {
        let fleet = fleet(3, 3, 1);
        let mut world = created(&fleet);
        write(&mut world, 5, 77).unwrap();
        let slot = Slot::new(5).unwrap();
        world.strike(&Fault::HalfMove { from: name(1), to: name(2), slot, moved });
        let seen = world.observe(&Vantage::default());
        let two = up(&seen, 2).id;
        assert_eq!(up(&seen, 1).open[&OpenSlots::MigratingTo(two)], slot.into());
        assert_eq!(holds(&world, 2, 77), moved);
        let repair = Action::RepairSlots {
            owner: name(2),
            slots: slot.into(),
            case: RepairCase::FinishMove,
        };
        world.apply(&step(repair), &fleet).unwrap();
        world.settle();
        assert_eq!(primary_of(&world, 5), 2);
        assert!(holds(&world, 2, 77));
        let seen = world.observe(&Vantage::default());
        assert!(
            is_well(&seen) && seen.nodes.values().all(|view| view.up().unwrap().open.is_empty())
        );
    }
}

#[test]
fn an_emptied_replica_is_a_new_node() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    let old = world.node(&name(4)).unwrap().id;
    world.strike(&Fault::KillAndEmpty(name(4)));
    world.advance(10_000);
    world.apply(&step(Action::StartNode { node: name(4) }), &fleet).unwrap();
    world.settle();
    let seen = world.observe(&Vantage::default());
    assert!(up(&seen, 4).is_primary() && up(&seen, 4).id != old);
    assert_eq!(up(&seen, 1).table.rows[&old].health, Health::Failed);
    for action in [
        Action::Forget { id: old },
        Action::Meet { nodes: vec![name(4)] },
        Action::Replicate { node: name(4), primary: name(1) },
    ] {
        world.apply(&step(action), &fleet).unwrap();
    }
    world.settle();
    let seen = world.observe(&Vantage::default());
    assert!(is_well(&seen));
    assert!(!up(&seen, 1).table.rows.contains_key(&old));
    assert!(matches!(up(&seen, 4).role, Role::Replica { of, .. } if of == up(&seen, 1).id));
}

#[test]
fn a_node_is_removed() {
    let fleet = fleet(3, 3, 1);
    let mut world = created(&fleet);
    assert!(world.apply(&step(Action::RemoveNode { node: name(1) }), &fleet).is_err());
    world.apply(&step(Action::RemoveNode { node: name(4) }), &fleet).unwrap();
    world.settle();
    let seen = world.observe(&Vantage::default());
    assert!(!seen.nodes.contains_key(&name(4)) && up(&seen, 1).table.rows.len() == 5);
    assert!(is_well(&seen));
}

#[test]
fn the_stopped_keep_their_data() {
    let mut fleet = fleet(1, 1, 0);
    for cluster in fleet.clusters.values_mut() {
        cluster.config.remove("save");
    }
    let mut world = created(&fleet);
    write(&mut world, 5, 77).unwrap();
    world.apply(&step(Action::StopNode { node: name(1) }), &fleet).unwrap();
    assert_eq!(world.observe(&Vantage::default()).nodes[&name(1)].server, Server::Refused);
    assert!(world.observe(&Vantage::default()).nodes[&name(1)].disk.data_bytes > 0);
    world.apply(&step(Action::StartNode { node: name(1) }), &fleet).unwrap();
    world.settle();
    assert!(holds(&world, 1, 77));
    assert_eq!(primary_of(&world, 5), 1);
}

#[test]
fn the_preview_waits_and_ends() {
    let fleet = fleet(3, 3, 1);
    let steps = creation(&fleet);
    let plan = |_: &Fleet, seen: &Observed| {
        if seen.nodes.is_empty() {
            return Wave { steps: steps.clone(), ..Wave::default() };
        }
        if is_well(seen) {
            return Wave::default();
        }
        let waiting = crate::step::Waiting { cluster: ClusterName::new("c"), what: String::new() };
        Wave { waiting: vec![waiting], ..Wave::default() }
    };
    let waves = preview(&fleet, &nothing(&fleet), 10, plan);
    assert_eq!(waves.len(), 2);
    assert!(waves[1].is_done());
}

#[test]
fn nodes_of_one_mind_share_a_table() {
    let fleet = fleet(3, 50, 1);
    let seen = predict(&nothing(&fleet), &fleet, &creation(&fleet));
    let first: *const Table = std::sync::Arc::as_ptr(&up(&seen, 1).table);
    let shared = |view: &crate::observed::NodeView| {
        std::ptr::eq(std::sync::Arc::as_ptr(&view.up().unwrap().table), first)
    };
    assert!(seen.nodes.values().all(shared));
}
