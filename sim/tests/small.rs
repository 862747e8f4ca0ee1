//! Every small world: up to three shards with up to two replicas on up to three hosts, and every
//! single fault at every wave of the creation and in the steady state after it.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use fleet::{
    model::{ClusterName, Fleet, HostId, NodeName},
    observed::OpenSlots,
    plan::plan,
    world::Fault,
};
use protocol::{NodeId, Slot};
use sim::{
    story,
    trial::{Script, Trial},
};

/// The wave before which a fault strikes that comes after the creation.
const STEADY: usize = 14;

fn fleet(hosts: u32, shards: u32, replicas: u32) -> Fleet {
    let mut fleet = story::hosts(hosts);
    let cluster = story::cluster(&fleet, "c", shards, replicas);
    fleet.clusters.insert(cluster.name.clone(), cluster);
    fleet
}

/// A fault, and what ends it some waves later.
fn faults(fleet: &Fleet) -> Vec<(Fault, Option<Fault>)> {
    let cluster = &fleet.clusters[&ClusterName::new("c")];
    let mut faults = Vec::new();
    for number in 1..=cluster.nodes_wanted() {
        let node = || NodeName::new(cluster.name.clone(), number);
        faults.extend([
            (Fault::Kill(node()), None),
            (Fault::KillAndLoseData(node()), None),
            (Fault::KillAndEmpty(node()), None),
            (Fault::Bounce(node()), None),
            (Fault::Suspend(node()), Some(Fault::Resume(node()))),
        ]);
        let stranger = NodeId::from_bytes([9; 20]);
        if let Some(slot) = Slot::new(100) {
            let side = OpenSlots::ImportingFrom(stranger);
            faults.push((Fault::HalfOpen { at: node(), side, slot }, None));
            let side = OpenSlots::MigratingTo(stranger);
            faults.push((Fault::HalfOpen { at: node(), side, slot }, None));
            for other in (1..=cluster.nodes_wanted()).filter(|other| *other != number) {
                let to = NodeName::new(cluster.name.clone(), other);
                for moved in [false, true] {
                    faults.push((
                        Fault::HalfMove { from: node(), to: to.clone(), slot, moved },
                        None,
                    ));
                }
            }
        }
        let (directive, value) = ("cluster-allow-replica-migration", "yes");
        let (directive, value) = (directive.to_owned(), value.to_owned());
        faults.push((Fault::Drift { node: node(), directive, value }, None));
    }
    for host in fleet.hosts.keys() {
        let host = || HostId::new(host.as_str());
        faults.push((Fault::HostDown(host()), Some(Fault::HostUp(host()))));
        if fleet.hosts.len() > 1 {
            faults.push((Fault::Cut(host()), Some(Fault::Heal(host()))));
        }
    }
    faults
}

#[test]
fn every_single_fault_ends_well() {
    let mut cases = Vec::new();
    for hosts in 1..=3 {
        for shards in 1..=3 {
            for replicas in 0..=2 {
                if hosts > 1 && replicas >= hosts {
                    continue;
                }
                let fleet = fleet(hosts, shards, replicas);
                for fault in faults(&fleet) {
                    for wave in (0..8).chain([STEADY]) {
                        for later in if fault.1.is_some() { vec![2, 9] } else { vec![0] } {
                            cases.push((fleet.clone(), fault.clone(), wave, later));
                        }
                    }
                }
            }
        }
    }
    let total = cases.len();
    let next = AtomicUsize::new(0);
    let results: Vec<(Vec<String>, usize)> = thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            let mut beyond_repair = 0;
            while let Some((fleet, (fault, ending), wave, later)) =
                cases.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let mut script = Script {
                    faults: BTreeMap::from([(*wave, vec![fault.clone()])]),
                    ..Script::default()
                };
                if let Some(ending) = ending {
                    script.faults.entry(wave + later).or_default().push(ending.clone());
                }
                let spec = &fleet.clusters[&ClusterName::new("c")];
                let label = format!(
                    "{} hosts, {} shards, {} replicas, {fault:?} at {wave} for {later}",
                    fleet.hosts.len(),
                    spec.shards,
                    spec.replicas
                );
                let mut trial = Trial::new(fleet.clone(), 1, &plan);
                match trial.run(&script) {
                    Ok(tally) => beyond_repair += tally.beyond_repair,
                    Err(failure) => failures.push(format!("{label}: {failure}")),
                }
            }
            (failures, beyond_repair)
        };
        let threads = thread::available_parallelism().map_or(2, usize::from);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let beyond_repair: usize = results.iter().map(|(_, count)| count).sum();
    let failures: Vec<String> = results.into_iter().flat_map(|(failures, _)| failures).collect();
    println!("{total} worlds, {beyond_repair} beyond repair, {} failures", failures.len());
    assert!(total > 5_000, "{total}");
    // Shards without replicas that keep nothing on disk.
    assert!(beyond_repair * 60 < total, "{beyond_repair} of {total} are beyond repair");
    assert!(failures.is_empty(), "{}", failures[..failures.len().min(12)].join("\n"));
}
