//! `plan(fleet, observed)` decides the next wave: the steps that are safe now, and what is wanted but
//! blocked or under way. It is called again on what the world has become, until the wave is empty;
//! a long fixed script would be wrong after the first fault.
//!
//! Each concern is a file. They are asked in order of urgency, and the first that wants something
//! done gets its turn alone, so that no step rests on the effect of another of the same wave:
//! faults ([`heal`]), missing nodes ([`grow`]), half-moved slots ([`repair`]), live settings
//! ([`config`]), slots ([`scale`]), and last, one at a time and in calm only, what disturbs: restarts
//! ([`restart`]), surplus nodes ([`shrink`]) and the primaries' spread ([`spread`]).
//!
//! Deliberately absent: any memory. What later waves must know stands in the world or in `History`.

mod config;
mod grow;
mod heal;
mod proxies;
mod repair;
mod restart;
mod roster;
mod scale;
mod shrink;
mod spread;
mod view;

use std::collections::BTreeMap;

pub use view::{Member, MergedRow, Shard, View};

use crate::{
    model::{Cluster, ClusterName, Fleet},
    observed::{Observed, Process},
    placement::Room,
    step::{Action, Blocked, Step, Waiting, Wave},
};
use roster::Roster;

/// The next wave for the whole fleet. Clusters don't wait for each other.
pub fn plan(fleet: &Fleet, observed: &Observed) -> Wave {
    let mut wave = Wave::default();
    let mut room = None;
    for cluster in fleet.clusters.values() {
        let view = View::new(cluster, observed);
        let mut draft = Draft::new(cluster);
        plan_cluster(fleet, &view, &mut room, &mut draft);
        proxies::keep(fleet, observed, &view, &mut draft);
        wave.steps.append(&mut draft.steps);
        wave.blocked.append(&mut draft.blocked);
        wave.waiting.append(&mut draft.waiting);
    }
    wave.blocked.append(&mut leftovers(fleet, observed));
    wave
}

/// Is the cluster in a state in which disruptive steps are allowed (I3)?
pub fn is_calm(cluster: &Cluster, observed: &Observed) -> bool {
    View::new(cluster, observed).unrest().is_empty()
}

fn plan_cluster<'a>(
    fleet: &'a Fleet,
    view: &View<'a>,
    room: &mut Option<Room<'a>>,
    draft: &mut Draft,
) {
    if view.spec.stopped {
        stop(view, draft);
        return;
    }
    if let Some(reason) = view.blind() {
        draft.block(
            "any change",
            reason,
            Some("check the network and the hosts, then run it again"),
        );
        return;
    }
    heal::dead_and_hung(fleet, view, draft);
    if draft.has_steps() {
        return;
    }
    let roster = Roster::new(fleet, view);
    grow::create(fleet, view, &roster, room, draft);
    if draft.has_steps() {
        return;
    }
    grow::join(view, &roster, draft);
    shrink::forget(fleet, view, draft);
    if draft.has_steps() {
        return;
    }
    repair::half_moved(view, draft);
    if draft.has_steps() {
        return;
    }
    config::live(view, draft);
    grow::attach(view, &roster, draft);
    if draft.has_steps() {
        return;
    }
    scale::balance(view, &roster, draft);
    if draft.has_steps() {
        return;
    }
    grow::open(view, draft);
    if draft.has_steps() {
        return;
    }
    let unrest = view.unrest();
    if unrest.is_empty() {
        let busy = restart::roll(fleet, view, &roster, draft)
            || spread::primaries(fleet, view, &roster, draft);
        if !busy && draft.waiting.is_empty() {
            shrink::surplus(fleet, view, &roster, draft);
        }
    } else if draft.waiting.is_empty() && draft.blocked.is_empty() {
        for reason in unrest {
            draft.wait(reason);
        }
    }
}

fn stop(view: &View<'_>, draft: &mut Draft) {
    for member in &view.members {
        if matches!(member.view.process, Process::Running | Process::Suspended) {
            draft.step(
                Action::StopNode { node: member.name.clone() },
                "the cluster is to be stopped",
            );
        }
    }
}

/// Nodes of clusters that the spec doesn't name are left as they are, and named.
fn leftovers(fleet: &Fleet, observed: &Observed) -> Vec<Blocked> {
    let mut counts: BTreeMap<&ClusterName, usize> = BTreeMap::new();
    for (name, view) in &observed.nodes {
        if !fleet.clusters.contains_key(&name.cluster) && view.process != Process::Gone {
            *counts.entry(&name.cluster).or_default() += 1;
        }
    }
    counts
        .into_iter()
        .map(|(cluster, count)| Blocked {
            cluster: cluster.clone(),
            wanted: format!("nothing of {cluster}"),
            reason: format!("{count} of its nodes run, and the spec doesn't name it"),
            hint: Some(format!("keyfleet down {cluster}, or put it back into the spec")),
        })
        .collect()
}

/// One cluster's part of a wave while it is made.
struct Draft {
    cluster: ClusterName,
    steps: Vec<Step>,
    blocked: Vec<Blocked>,
    waiting: Vec<Waiting>,
}

impl Draft {
    fn new(cluster: &Cluster) -> Self {
        Self {
            cluster: cluster.name.clone(),
            steps: Vec::new(),
            blocked: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    fn step(&mut self, action: Action, why: impl Into<String>) {
        self.steps.push(Step { cluster: self.cluster.clone(), action, why: why.into() });
    }

    fn block(&mut self, wanted: impl Into<String>, reason: impl Into<String>, hint: Option<&str>) {
        self.blocked.push(Blocked {
            cluster: self.cluster.clone(),
            wanted: wanted.into(),
            reason: reason.into(),
            hint: hint.map(str::to_owned),
        });
    }

    fn wait(&mut self, what: impl Into<String>) {
        self.waiting.push(Waiting { cluster: self.cluster.clone(), what: what.into() });
    }
}
