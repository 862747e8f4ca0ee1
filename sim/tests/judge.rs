//! The judge's single verdicts, and planners that are wrong on purpose: a judge that lets everything
//! pass would be worth nothing.

use std::collections::BTreeMap;

use fleet::{
    check::{Invariant, check_wave, check_world},
    model::{ClusterName, DirectiveValue, Fleet, HostId, NodeName, Ports, Profile},
    observed::{Observed, Process, Role, Server, Up},
    plan::plan,
    step::{Action, RepairCase, Step, Wave},
    world::{Fault, Vantage, World},
};
use protocol::{NodeId, SlotSet};
use sim::{
    story,
    trial::{Failure, Script, Trial, random},
};

fn spec() -> Fleet {
    let mut fleet = story::hosts(3);
    let cluster = story::cluster(&fleet, "c", 3, 1);
    fleet.clusters.insert(cluster.name.clone(), cluster);
    fleet
}

/// A cluster of three shards with a key in each, made by the planner.
fn steady(fleet: &Fleet) -> World {
    let mut trial = Trial::new(fleet.clone(), 1, &plan);
    trial.run(&Script::default()).unwrap();
    let mut world = trial.world;
    for slot in [100, 6_000, 12_000] {
        let slot = protocol::Slot::new(slot).unwrap();
        world.write(&ClusterName::new("c"), slot, u64::from(slot.number()), 0).unwrap();
    }
    world.settle();
    world
}

fn look(world: &World) -> Observed {
    world.observe(&Vantage::default())
}

fn up(seen: &Observed, name: &NodeName) -> Up {
    seen.nodes[name].up().unwrap().clone()
}

fn up_mut<'a>(seen: &'a mut Observed, name: &NodeName) -> &'a mut Up {
    match &mut seen.nodes.get_mut(name).unwrap().server {
        Server::Up(up) => up,
        other => panic!("{other:?}"),
    }
}

/// The primary of slot 0, its replica, and another primary.
fn cast(seen: &Observed) -> (NodeName, NodeName, NodeName) {
    let primaries: Vec<&NodeName> = seen
        .nodes
        .iter()
        .filter(|(_, view)| view.up().is_some_and(Up::is_primary))
        .map(|(name, _)| name)
        .collect();
    let first = protocol::Slot::new(0).unwrap();
    let head = primaries.iter().find(|name| up(seen, name).slots().contains(first)).unwrap();
    let id = up(seen, head).id;
    let heir = seen
        .nodes
        .iter()
        .find(|(_, view)| {
            view.up().is_some_and(|up| matches!(up.role, Role::Replica { of, .. } if of == id))
        })
        .map(|(name, _)| name.clone())
        .unwrap();
    let other = primaries.iter().find(|name| *name != head).unwrap();
    ((*head).clone(), heir, (*other).clone())
}

fn verdict(fleet: &Fleet, seen: &Observed, actions: Vec<Action>) -> Vec<Invariant> {
    let cluster = ClusterName::new("c");
    let steps = actions
        .into_iter()
        .map(|action| Step { cluster: cluster.clone(), action, why: String::new() })
        .collect();
    let wave = Wave { steps, ..Wave::default() };
    let mut found: Vec<Invariant> =
        check_wave(fleet, seen, &wave).into_iter().map(|violation| violation.invariant).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn single_steps() {
    use Invariant::{
        Data, I2Apart, I4OneAtATime, I5Proof, I6Empty, I7Forget, I10Hysteresis, I11Memory,
        I12Migration, Sense, Slots,
    };
    let fleet = spec();
    let seen = look(&steady(&fleet));
    let (head, heir, other) = cast(&seen);
    let check = |action: Action, expected: &[Invariant]| {
        assert_eq!(verdict(&fleet, &seen, vec![action.clone()]), expected, "{action}");
    };
    let (slots, foreign) = (up(&seen, &head).slots(), up(&seen, &other).slots());
    let some = slots.take_lowest(10);
    let handover = Action::Handover { from: other.clone(), to: heir.clone() };
    check(handover, &[Sense]);
    check(Action::RemoveNode { node: head.clone() }, &[Data, Sense]);
    check(Action::RemoveNode { node: heir.clone() }, &[I2Apart]);
    check(Action::RestartNode { node: heir.clone() }, &[]);
    check(Action::RestartNode { node: head.clone() }, &[Data]);
    check(Action::KillNode { node: heir.clone() }, &[I5Proof]);
    check(Action::StopNode { node: heir.clone() }, &[Sense]);
    check(Action::Promote { dead: head.clone(), to: heir.clone() }, &[I5Proof]);
    check(Action::TakeOver { dead: head.clone(), to: heir.clone() }, &[I5Proof]);
    check(Action::Forget { id: up(&seen, &heir).id }, &[I7Forget]);
    check(Action::Forget { id: NodeId::from_bytes([7; 20]) }, &[I7Forget]);
    let (from, to) = (head.clone(), other.clone());
    check(Action::MoveSlots { from: from.clone(), to: to.clone(), slots: some.clone() }, &[]);
    check(Action::MoveSlots { from: from.clone(), to, slots: foreign }, &[Slots]);
    check(Action::MoveSlots { from, to: heir.clone(), slots: some.clone() }, &[Sense]);
    let case = RepairCase::FinishMove;
    check(Action::RepairSlots { owner: heir.clone(), slots: some.clone(), case }, &[Sense]);
    check(Action::AssignSlots { shares: vec![(other.clone(), some)] }, &[Slots]);
    check(Action::Replicate { node: head.clone(), primary: other.clone() }, &[Data]);
    check(Action::OpenShards { pairs: vec![(head.clone(), heir.clone())] }, &[I5Proof]);
    let host = HostId::new("h0");
    let ports = Ports { tcp: 9_001, tls: 9_002, bus: 9_003 };
    let taken = Ports {
        tcp: seen.nodes.values().find(|view| view.host == host).unwrap().ports.tcp,
        ..ports
    };
    let node = NodeName::new(ClusterName::new("c"), 99);
    check(Action::CreateNode { node: node.clone(), host: host.clone(), ports }, &[]);
    check(Action::CreateNode { node: node.clone(), host: host.clone(), ports: taken }, &[Sense]);
    check(Action::CreateNode { node: heir.clone(), host, ports }, &[Data]);
    let elsewhere = HostId::new("elsewhere");
    check(Action::CreateNode { node, host: elsewhere, ports }, &[Sense]);
    let set = |name: &str, value: &str| Action::SetConfig {
        node: head.clone(),
        directives: BTreeMap::from([(name.to_owned(), DirectiveValue::single(value))]),
    };
    check(set("cluster-allow-replica-migration", "yes"), &[I12Migration]);
    check(set("maxmemory", "1kb"), &[I11Memory]);
    check(set("maxmemory", "1gb"), &[]);
    // A handover to a host that holds a primary already evens nothing out, unless it is as full.
    let mut crowded = seen.clone();
    let there = crowded.nodes[&other].host.clone();
    let third = crowded
        .nodes
        .iter()
        .find(|(name, view)| {
            **name != head && **name != other && view.up().is_some_and(Up::is_primary)
        })
        .map(|(name, _)| name.clone())
        .unwrap();
    crowded.nodes.get_mut(&third).unwrap().host = there.clone();
    crowded.nodes.get_mut(&heir).unwrap().host = there;
    let handover = Action::Handover { from: head.clone(), to: heir.clone() };
    assert_eq!(verdict(&fleet, &crowded, vec![handover]), [I10Hysteresis]);
    let two = vec![Action::RestartNode { node: heir.clone() }; 2];
    assert_eq!(verdict(&fleet, &seen, two), [I4OneAtATime]);
    let moves = vec![
        Action::MoveSlots { from: head.clone(), to: other, slots: SlotSet::range(0, 9) },
        Action::RestartNode { node: heir },
    ];
    assert_eq!(verdict(&fleet, &seen, moves), [Invariant::I3Calm]);
    let _ = I6Empty;
}

#[test]
fn steps_in_trouble() {
    let fleet = spec();
    let world = steady(&fleet);
    let (head, heir, other) = cast(&look(&world));
    let promote = || Action::Promote { dead: head.clone(), to: heir.clone() };
    let take_over = || Action::TakeOver { dead: head.clone(), to: heir.clone() };
    let start = || Action::StartNode { node: head.clone() };
    let start_other = || Action::StartNode { node: other.clone() };
    let restart = || Action::RestartNode { node: heir.clone() };

    let mut struck = world.clone();
    struck.strike(&Fault::Kill(head.clone()));
    struck.advance(200);
    let seen = look(&struck);
    assert_eq!(verdict(&fleet, &seen, vec![promote()]), []);
    // Two of three can vote.
    assert_eq!(verdict(&fleet, &seen, vec![take_over()]), [Invariant::I5Proof]);
    assert_eq!(
        verdict(&fleet, &seen, vec![promote(), start()]),
        [Invariant::I5Proof, Invariant::I6Empty]
    );
    assert_eq!(verdict(&fleet, &seen, vec![start()]), [Invariant::I6Empty], "cache: disk is empty");

    // Nobody can vote, and one of them may be alive: or the data is no cache.
    let mut alone = struck.clone();
    alone.strike(&Fault::Kill(other.clone()));
    alone.advance(200);
    let mut seen_alone = look(&alone);
    assert_eq!(verdict(&fleet, &seen_alone, vec![take_over()]), []);
    assert_eq!(
        verdict(&fleet, &seen_alone, vec![take_over(), start_other()]),
        [Invariant::I5Proof, Invariant::I6Empty]
    );
    let mut durable = fleet.clone();
    for spec in durable.clusters.values_mut() {
        spec.profile = Profile::Durable;
    }
    assert_eq!(verdict(&durable, &seen_alone, vec![take_over()]), [Invariant::I5Proof]);
    seen_alone.nodes.get_mut(&other).unwrap().process = Process::Unknown;
    assert_eq!(verdict(&fleet, &seen_alone, vec![take_over()]), [Invariant::I5Proof]);

    // A primary that hangs is killed where it has been away for long and another can take its place.
    let mut hanging = world.clone();
    hanging.strike(&Fault::Suspend(head.clone()));
    let kill = || vec![Action::KillNode { node: head.clone() }];
    hanging.advance(1_900);
    assert_eq!(verdict(&fleet, &look(&hanging), kill()), [Invariant::Data]);
    hanging.advance(100);
    assert_eq!(verdict(&fleet, &look(&hanging), kill()), []);
    let mut heirless = look(&hanging);
    heirless.nodes.get_mut(&heir).unwrap().server = Server::Refused;
    assert_eq!(verdict(&fleet, &heirless, kill()), [Invariant::Data]);

    // The boot gate holds while anybody of the shard has data, and no longer.
    let mut empty = seen.clone();
    up_mut(&mut empty, &heir).keys = 0;
    assert_eq!(verdict(&fleet, &empty, vec![start()]), []);

    // The host can't be asked: nothing is proven.
    let mut unknown = seen.clone();
    unknown.nodes.get_mut(&head).unwrap().process = Process::Unknown;
    assert_eq!(verdict(&fleet, &unknown, vec![promote()]), [Invariant::I5Proof]);

    // Not calm: open slots, another view, a primary that isn't well.
    let mut restless = look(&world);
    up_mut(&mut restless, &other).cluster_ok = false;
    assert_eq!(verdict(&fleet, &restless, vec![restart()]), [Invariant::I3Calm]);

    // A handover's distance in time, its copy, its gain.
    let handover = || Action::Handover { from: head.clone(), to: heir.clone() };
    let mut again = look(&world);
    let id = up(&again, &head).id;
    let at_ms = again.at_ms - 1_000;
    again.history.entry(ClusterName::new("c")).or_default().handovers_ms = vec![(id, at_ms)];
    assert!(verdict(&fleet, &again, vec![handover()]).contains(&Invariant::I4OneAtATime));
    let mut behind = look(&world);
    if let Role::Replica { link, .. } = &mut up_mut(&mut behind, &heir).role {
        *link = fleet::observed::Link::Syncing;
    }
    assert!(verdict(&fleet, &behind, vec![handover()]).contains(&Invariant::Data));

    // Most of the fleet can't be seen.
    let vantage = Vantage { blind: ["h0", "h1"].map(HostId::new).into() };
    let blind = world.observe(&vantage);
    assert!(verdict(&fleet, &blind, vec![restart()]).contains(&Invariant::I8Blind));
}

#[test]
fn worlds() {
    let fleet = spec();
    let seen = look(&steady(&fleet));
    assert_eq!(check_world(&fleet, &seen), []);
    let (head, heir, other) = cast(&seen);
    let check = |change: &dyn Fn(&mut Observed), expected: Invariant| {
        let mut changed = seen.clone();
        change(&mut changed);
        let found = check_world(&fleet, &changed);
        assert!(found.iter().any(|violation| violation.invariant == expected), "{found:?}");
    };
    check(&|seen| up_mut(seen, &head).cluster_ok = false, Invariant::Wanted);
    check(&|seen| drop(seen.nodes.remove(&heir)), Invariant::Wanted);
    check(
        &|seen| {
            let config = &mut up_mut(seen, &head).config;
            config.insert("cluster-allow-replica-migration".to_owned(), "yes".to_owned());
        },
        Invariant::I12Migration,
    );
    check(
        &|seen| seen.nodes.get_mut(&heir).unwrap().host = seen.nodes[&head].host.clone(),
        Invariant::I2Apart,
    );
    check(
        &|seen| seen.nodes.get_mut(&other).unwrap().host = seen.nodes[&head].host.clone(),
        Invariant::I1QuorumSafe,
    );
    let mut small = fleet.clone();
    for spec in small.clusters.values_mut() {
        spec.shards = 2;
    }
    assert!(!check_world(&small, &seen).is_empty());
}

/// Does a wrong planner fail soon in random stories?
fn is_caught(wrong: &dyn Fn(&Fleet, &Observed) -> Wave, how: impl Fn(&Failure) -> bool) -> bool {
    (0..400).any(|seed| random(seed, wrong, false).0.is_err_and(|failure| how(&failure)))
}

#[test]
fn wrong_planners_are_caught() {
    let broken = |failure: &Failure, wanted: Invariant| match failure {
        Failure::Wave(all) => all.iter().any(|violation| violation.invariant == wanted),
        _ => false,
    };
    // Starts whatever is dead.
    let eager = |fleet: &Fleet, seen: &Observed| {
        let mut wave = plan(fleet, seen);
        for step in &mut wave.steps {
            if let Action::Promote { dead, .. } = &step.action {
                step.action = Action::StartNode { node: dead.clone() };
            }
        }
        wave
    };
    assert!(is_caught(&eager, |failure| broken(failure, Invariant::I6Empty)));
    // Doesn't care for votes.
    let coup = |fleet: &Fleet, seen: &Observed| {
        let mut wave = plan(fleet, seen);
        for step in &mut wave.steps {
            if let Action::Promote { dead, to } = &step.action {
                step.action = Action::TakeOver { dead: dead.clone(), to: to.clone() };
            }
        }
        wave
    };
    assert!(is_caught(&coup, |failure| broken(failure, Invariant::I5Proof)));
    // Says that it is done before it is.
    let lazy = |fleet: &Fleet, seen: &Observed| {
        let mut wave = plan(fleet, seen);
        wave.steps.retain(|step| !matches!(step.action, Action::Replicate { .. }));
        wave
    };
    assert!(is_caught(&lazy, |failure| matches!(failure, Failure::World(_))));
    // Never comes to an end.
    let restless = |fleet: &Fleet, seen: &Observed| {
        let mut wave = plan(fleet, seen);
        let first = seen.nodes.iter().find(|(_, view)| view.up().is_some());
        if let (true, Some((name, _))) = (wave.is_done(), first) {
            let action = Action::ApplyAcl { node: name.clone() };
            wave.steps.push(Step { cluster: name.cluster.clone(), action, why: String::new() });
        }
        wave
    };
    assert!(is_caught(&restless, |failure| matches!(failure, Failure::Endless(_))));
}
