//! Does the steps of one wave: at once where they don't touch each other, in their order where
//! they do.

use std::collections::{BTreeMap, BTreeSet};

use fleet::{
    model::{ClusterName, NodeName},
    step::{Action, Step, Wave},
};
use tokio::task::JoinSet;

use super::{Context, Event, Sink, StepError, execute};

/// Steps under way at one time.
const RUNNING_MAX: usize = 32;

/// What became of a wave's steps.
#[derive(Debug, Default)]
pub struct Outcome {
    pub done: usize,
    pub failed: Vec<(Step, StepError)>,
    /// Not begun: a step that they follow failed, or we were told to stop.
    pub skipped: usize,
}

/// What a step works on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// Who knows whom.
    Membership(ClusterName),
    Node(NodeName),
    /// A copy being away.
    Disruption(ClusterName),
    /// The primaries' votes: two candidates at once would split them.
    Election(ClusterName),
    /// Who owns slots. A repair raises its owner's epoch, and with it every claim of that owner, so that
    /// nothing that it gives away may be under way.
    Owners(ClusterName),
    /// Proxies look for free ports.
    Proxies,
}

/// Parts and whether the step needs each for itself.
fn parts(step: &Step) -> Vec<(Part, bool)> {
    let cluster = || step.cluster.clone();
    let (alone, shared) = (true, false);
    let node = |name: &NodeName| (Part::Node(name.clone()), alone);
    let member = (Part::Membership(cluster()), shared);
    match &step.action {
        Action::CreateNode { node: name, .. }
        | Action::StartNode { node: name }
        | Action::StopNode { node: name }
        | Action::KillNode { node: name }
        | Action::Readdress { node: name }
        | Action::SetConfig { node: name, .. }
        | Action::ApplyAcl { node: name } => vec![member, node(name)],
        Action::Meet { .. }
        | Action::AssignSlots { .. }
        | Action::OpenShards { .. }
        | Action::Forget { .. } => {
            vec![(Part::Membership(cluster()), alone)]
        }
        Action::Replicate { node: name, primary } => vec![
            member,
            node(name),
            (Part::Node(primary.clone()), shared),
            (Part::Disruption(cluster()), shared),
        ],
        Action::Handover { from, to } => vec![
            member,
            node(from),
            node(to),
            (Part::Disruption(cluster()), alone),
            (Part::Election(cluster()), alone),
        ],
        Action::Promote { dead, to } | Action::TakeOver { dead, to } => {
            vec![member, node(dead), node(to), (Part::Election(cluster()), alone)]
        }
        Action::MoveSlots { from, to, .. } => {
            vec![member, node(from), node(to), (Part::Owners(cluster()), shared)]
        }
        Action::RepairSlots { owner, .. } => {
            vec![member, node(owner), (Part::Owners(cluster()), alone)]
        }
        Action::StartProxy { .. } | Action::ChangeProxy { .. } | Action::StopProxy { .. } => {
            vec![(Part::Proxies, alone)]
        }
        Action::RemoveNode { node: name } | Action::RestartNode { node: name } => {
            vec![member, node(name), (Part::Disruption(cluster()), alone)]
        }
    }
}

/// For each step, the earlier ones that must be done before it.
fn predecessors(steps: &[Step]) -> Vec<BTreeSet<usize>> {
    #[derive(Default)]
    struct Users {
        /// The last step that needed the part for itself.
        alone: Option<usize>,
        /// Those since then that share it.
        shared: Vec<usize>,
    }
    let mut users: BTreeMap<Part, Users> = BTreeMap::new();
    let mut before = Vec::with_capacity(steps.len());
    for (index, step) in steps.iter().enumerate() {
        let mut mine = BTreeSet::new();
        for (part, alone) in parts(step) {
            let users = users.entry(part).or_default();
            mine.extend(users.alone);
            if alone {
                mine.extend(users.shared.drain(..));
                users.alone = Some(index);
            } else {
                users.shared.push(index);
            }
        }
        mine.remove(&index);
        before.push(mine);
    }
    before
}

/// Does a wave's steps. `stop` is asked before each step begins; steps under way are finished.
/// Dropping the future stops at once, which is safe too.
pub async fn execute_wave(
    wave: &Wave,
    context: &Context,
    sink: &Sink,
    stop: &(dyn Fn() -> bool + Send + Sync),
) -> Outcome {
    let mut outcome = Outcome::default();
    let before = predecessors(&wave.steps);
    let mut waiting: BTreeSet<usize> = (0..wave.steps.len()).collect();
    let mut done = BTreeSet::new();
    let mut lost = BTreeSet::new();
    let mut running = JoinSet::new();
    loop {
        let mut skipped = Vec::new();
        let mut begun = Vec::new();
        for &index in &waiting {
            let (Some(step), Some(before)) = (wave.steps.get(index), before.get(index)) else {
                continue;
            };
            if !before.is_disjoint(&lost) || stop() {
                lost.insert(index);
                skipped.push(index);
                sink(Event::Skipped(step));
            } else if before.is_subset(&done) && running.len() < RUNNING_MAX {
                begun.push(index);
                let (step, context, sink) = (step.clone(), context.clone(), sink.clone());
                running.spawn(async move {
                    let result = execute(&step, &context, &sink).await;
                    (index, step, result)
                });
            }
        }
        outcome.skipped += skipped.len();
        waiting.retain(|index| !skipped.contains(index) && !begun.contains(index));
        let Some(joined) = running.join_next().await else { return outcome };
        match joined {
            Ok((index, _, Ok(_))) => {
                outcome.done += 1;
                done.insert(index);
            }
            Ok((index, step, Err(error))) => {
                outcome.failed.push((step, error));
                lost.insert(index);
            }
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet::{
        model::{HostId, Ports},
        step::RepairCase,
    };
    use protocol::SlotSet;

    use super::*;

    fn name(number: u32) -> NodeName {
        NodeName::new(ClusterName::new("c"), number)
    }

    fn check(actions: &[Action], expected: &[&[usize]]) {
        let steps: Vec<Step> = actions
            .iter()
            .map(|action| Step {
                cluster: ClusterName::new("c"),
                action: action.clone(),
                why: String::new(),
            })
            .collect();
        let got: Vec<Vec<usize>> =
            predecessors(&steps).into_iter().map(|set| set.into_iter().collect()).collect();
        assert_eq!(got, expected, "{actions:?}");
    }

    fn create(number: u32) -> Action {
        let (host, ports) = (HostId::new("h"), Ports { tcp: 1, tls: 2, bus: 3 });
        Action::CreateNode { node: name(number), host, ports }
    }

    fn replicate(node: u32, primary: u32) -> Action {
        Action::Replicate { node: name(node), primary: name(primary) }
    }

    fn hand_over(from: u32, to: u32) -> Action {
        Action::Handover { from: name(from), to: name(to) }
    }

    fn move_slots(from: u32, to: u32) -> Action {
        Action::MoveSlots { from: name(from), to: name(to), slots: SlotSet::range(0, 1) }
    }

    fn repair(owner: u32) -> Action {
        let (owner, slots) = (name(owner), SlotSet::range(0, 1));
        Action::RepairSlots { owner, slots, case: RepairCase::Claim }
    }

    #[test]
    fn order() {
        let meet = Action::Meet { nodes: vec![] };
        let restart = |number| Action::RestartNode { node: name(number) };
        let promote = |dead, to| Action::Promote { dead: name(dead), to: name(to) };
        check(&[create(1), create(2), meet], &[&[], &[], &[0, 1]]);
        check(&[replicate(3, 1), replicate(4, 1)], &[&[], &[]]);
        check(&[replicate(3, 1), hand_over(1, 3)], &[&[], &[0]]);
        check(&[hand_over(1, 4), hand_over(2, 5)], &[&[], &[0]]);
        check(&[restart(1), restart(2), create(3)], &[&[], &[0], &[]]);
        check(&[promote(1, 4), promote(2, 5)], &[&[], &[0]]);
        check(&[move_slots(1, 4), move_slots(2, 5)], &[&[], &[]]);
        check(&[move_slots(1, 4), move_slots(1, 5)], &[&[], &[0]]);
        check(&[move_slots(1, 5), move_slots(2, 5)], &[&[], &[0]]);
        check(&[repair(1), repair(2), move_slots(3, 4)], &[&[], &[0], &[1]]);
    }
}
