//! `cargo xtask bench plan`: how long the planner thinks about fleets of 100 to 10,000 nodes.
//!
//! Half of the nodes are primaries, each with one replica; ten stand on each host, hosts in three
//! zones. The cases are what a fleet goes through; each is planned as one cluster and as clusters of
//! 100 nodes that may all use every host. A time is the least of many runs.
//!
//! The time limit is for every case. Growth is judged where the same is done at every size, which is one
//! cluster: of many, most are well when one host dies, and each may use more hosts in a larger fleet.
//! n·log n from 100 to 10,000 nodes is a factor of 200; it may be double, because a small fleet
//! fits into the processor's caches and a large one doesn't.

use std::{
    collections::BTreeMap,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use fleet::{
    model::{Cluster, ClusterName, Fleet, Host, HostId, NodeName, Zone},
    observed::{NodeView, Server, Up},
    plan::plan,
    spec::{self, Machine},
    world::preview,
};
use protocol::{SlotSet, config_value::normalise_value};
use sim::scene::{self, Scene};

use super::{Goal, Outcome};

const SIZES: [u32; 3] = [100, 1_000, 10_000];
const CLUSTER_NODES: u32 = 100;
const RUNS: u32 = 200;
/// Slow cases are not run more often than fits into this.
const CASE_TIME_MAX: Duration = Duration::from_secs(2);
const PLAN_MS_MAX: f64 = 1_000.0;
/// 10,000 · log 10,000 over 100 · log 100, twice.
const GROWTH_MAX: f64 = 200.0 * 2.0;
const PREVIEW_NODES: u32 = 1_000;
const PREVIEW_MS_MAX: f64 = 1_000.0;
const WAVES_MAX: usize = 200;

#[derive(Args)]
pub struct Options {
    /// Only cases whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// No preview, which takes longer.
    #[arg(long)]
    no_preview: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Healthy,
    Create,
    ScaleOut,
    Rebalance,
    HostDead,
    ZoneDead,
    Stopped,
}

impl Case {
    const ALL: [Self; 7] = [
        Self::Healthy,
        Self::Create,
        Self::ScaleOut,
        Self::Rebalance,
        Self::HostDead,
        Self::ZoneDead,
        Self::Stopped,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "nothing to do",
            Self::Create => "create from nothing",
            Self::ScaleOut => "a tenth more: nodes",
            Self::Rebalance => "a tenth more: slots",
            Self::HostDead => "a host's primaries dead",
            Self::ZoneDead => "a zone's primaries dead",
            Self::Stopped => "all stopped",
        }
    }
}

pub fn run(options: &Options) -> Result<Outcome> {
    let mut outcome = Outcome { bench: "plan", ..Outcome::default() };
    println!(
        "{:<42} {:>9} {:>9} {:>9} {:>7} {:>7}",
        "ms for nodes", 100, 1_000, 10_000, "growth", "steps"
    );
    let (mut slowest, mut growth_most) = (0.0_f64, 0.0_f64);
    for case in Case::ALL {
        for (kind, clusters_of) in [("one cluster", None), ("clusters of 100", Some(CLUSTER_NODES))]
        {
            let name = format!("{}, {kind}", case.name());
            if !name.contains(&options.only) {
                continue;
            }
            let mut times = Vec::new();
            let mut steps = 0;
            for nodes in SIZES {
                let (fleet, scene) = situation(case, nodes, clusters_of.unwrap_or(nodes))?;
                let (ms, count) = least(&fleet, &scene);
                ensure!((count == 0) == (case == Case::Healthy), "{name}: {count} steps");
                outcome.figures.insert(format!("{name}, {nodes} nodes ms"), ms);
                times.push(ms);
                steps = count;
            }
            let growth = times[2] / times[0];
            println!(
                "{name:<42} {:>9.2} {:>9.2} {:>9.1} {growth:>7.0} {steps:>7}",
                times[0], times[1], times[2]
            );
            slowest = slowest.max(times[2]);
            if clusters_of.is_none() {
                growth_most = growth_most.max(growth);
            }
        }
    }
    outcome.goals.push(Goal::at_most(
        "planning 10,000 nodes, slowest case, ms",
        PLAN_MS_MAX,
        slowest,
    ));
    outcome.goals.push(Goal::at_most(
        "one cluster, 100 to 10,000 nodes, times longer",
        GROWTH_MAX,
        growth_most,
    ));
    if !options.no_preview {
        previews(&mut outcome)?;
    }
    Ok(outcome)
}

/// The whole path of a thousand nodes, as `keyfleet plan` shows it.
fn previews(outcome: &mut Outcome) -> Result<()> {
    println!(
        "{:<42} {:>9} {:>9} {:>9}",
        format!("preview of {PREVIEW_NODES} nodes"),
        "ms",
        "waves",
        "steps"
    );
    let mut slowest = 0.0_f64;
    for case in [Case::Healthy, Case::Create, Case::ScaleOut, Case::HostDead] {
        let (fleet, scene) = situation(case, PREVIEW_NODES, PREVIEW_NODES)?;
        let started = Instant::now();
        let waves = preview(&fleet, &scene.observed, WAVES_MAX, plan);
        let took = ms(started.elapsed());
        let steps: usize = waves.iter().map(|wave| wave.steps.len()).sum();
        println!("{:<42} {took:>9.1} {:>9} {steps:>9}", case.name(), waves.len());
        outcome.figures.insert(format!("preview, {}, {PREVIEW_NODES} nodes ms", case.name()), took);
        slowest = slowest.max(took);
    }
    outcome.goals.push(Goal::at_most(
        "preview of 1,000 nodes, slowest case, ms",
        PREVIEW_MS_MAX,
        slowest,
    ));
    Ok(())
}

/// The least time of several runs, in milliseconds, and the number of steps.
fn least(fleet: &Fleet, scene: &Scene) -> (f64, usize) {
    let begun = Instant::now();
    let mut least = Duration::MAX;
    let mut steps = 0;
    for run in 0..RUNS {
        if run > 1 && begun.elapsed() > CASE_TIME_MAX {
            break;
        }
        let started = Instant::now();
        let wave = black_box(plan(black_box(fleet), black_box(&scene.observed)));
        least = least.min(started.elapsed());
        steps = wave.steps.len();
    }
    (ms(least), steps)
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// A fleet of so many nodes in clusters of a size, and the world it is in.
fn situation(case: Case, nodes: u32, cluster_nodes: u32) -> Result<(Fleet, Scene)> {
    let hosts = nodes / 10;
    let shards = cluster_nodes / 2;
    let wanted = match case {
        Case::ScaleOut | Case::Rebalance => shards + shards / 10,
        _ => shards,
    };
    let text = "clusters: {cache: {shards: 3, replicas: 1}}";
    let parsed = spec::parse(text, "fleet.yaml", &Machine::default());
    let mut fleet = parsed.context("the spec")?.fleet;
    let model = fleet.clusters.pop_first().context("a cluster")?.1;
    let mut scene = Scene::empty(hosts);
    let known = scene.observed.hosts.keys().zip(0_u32..);
    fleet.hosts = known.map(|(id, at)| host(id, at, hosts)).collect();
    let standing = if case == Case::Rebalance { wanted } else { shards };
    for index in 0..nodes / cluster_nodes {
        let name = ClusterName::new(format!("cache{index}"));
        if case != Case::Create {
            scene.add_healthy(&name, index * standing * 2, standing, 1);
        }
        let hosts = fleet.hosts.keys().cloned().collect();
        let cluster = Cluster { name: name.clone(), shards: wanted, hosts, ..model.clone() };
        fleet.clusters.insert(name, cluster);
    }
    let config: BTreeMap<String, String> = model
        .config
        .iter()
        .map(|(name, value)| (name.clone(), normalise_value(name, &value.joined())))
        .collect();
    for view in scene.observed.nodes.values_mut() {
        if let Server::Up(up) = &mut view.server {
            up.config.clone_from(&config);
        }
    }
    if case == Case::Rebalance {
        // The new ones own nothing yet.
        scene = scene.tables(|table| {
            let heads = table.rows.values_mut().filter(|row| row.replica_of.is_none());
            for (row, at) in heads.zip(0_u32..) {
                row.slots = if at < shards { scene::share(at, shards) } else { SlotSet::new() };
            }
        });
    }
    let zone = |view: &NodeView| fleet.hosts.get(&view.host).map(|host| host.zone.as_str());
    let first = fleet.hosts.keys().next().context("a host")?;
    let is_primary = |view: &NodeView| view.up().is_some_and(Up::is_primary);
    let dies = |view: &NodeView| match case {
        Case::HostDead => view.host == *first && is_primary(view),
        Case::ZoneDead => zone(view) == Some("zone-0") && is_primary(view),
        Case::Stopped => true,
        _ => false,
    };
    let dead = scene.observed.nodes.iter().filter(|(_, view)| dies(view));
    let dead: Vec<NodeName> = dead.map(|(name, _)| name.clone()).collect();
    if !dead.is_empty() {
        scene = scene.all_dead(&dead);
    }
    Ok((fleet, scene))
}

fn host(id: &HostId, at: u32, hosts: u32) -> (HostId, Host) {
    let number = id.as_str().rsplit_once('-').and_then(|(_, number)| number.parse().ok());
    let address = scene::address(number.unwrap_or(at + 1), hosts);
    let zone = Zone::new(format!("zone-{}", at % 3));
    (id.clone(), Host { id: id.clone(), address, zone, memory: None })
}
