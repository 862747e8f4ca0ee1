//! Waves of steps as text: the whole path for `plan`, a line a wave for `up`. Pure.

use std::collections::BTreeMap;

use fleet::{
    model::ClusterName,
    step::{Action, Blocked, Step, Waiting, Wave},
};

use super::{
    printer::WIDTH_MAX,
    text::{Style, columns, count, cut, plural, wrap},
};

/// The widest that an action is before its reason goes to a line of its own.
const ACTION_MAX: usize = 52;
/// How many steps of one kind and reason are shown one by one.
const ALIKE_MAX: usize = 12;

/// The whole path: numbered waves, each step with its reason, what is waited for, what is blocked,
/// and a summary.
pub fn path(waves: &[Wave], style: Style) -> String {
    let mut out = String::new();
    let several = clusters(waves) > 1;
    let mut number = 0;
    for wave in waves.iter().filter(|wave| !wave.steps.is_empty()) {
        number += 1;
        let heading = format!("Wave {number}");
        out.push_str(&format!("{}\n", style.bold(&heading)));
        out.push_str(&steps(&wave.steps, several, style));
        for waiting in &wave.waiting {
            out.push_str(&format!("  {} {}\n", style.dim("…"), waiting_text(waiting, several)));
        }
        out.push('\n');
    }
    // What is still waited for or blocked at the end of the path is what matters of it.
    if let Some(last) = waves.last() {
        if last.steps.is_empty() {
            for waiting in &last.waiting {
                out.push_str(&format!(
                    "{} waits: {}\n",
                    style.yellow("…"),
                    waiting_text(waiting, several)
                ));
            }
        }
        out.push_str(&blocked(&last.blocked, style));
        if !last.blocked.is_empty() || (last.steps.is_empty() && !last.waiting.is_empty()) {
            out.push('\n');
        }
    }
    out.push_str(&style.bold(&wrap(&summary_line(waves), WIDTH_MAX, 0)));
    out.push('\n');
    out
}

/// Does the path change anything, or want to?
pub fn is_empty(waves: &[Wave]) -> bool {
    waves.iter().all(Wave::is_done)
}

fn clusters(waves: &[Wave]) -> usize {
    let all = waves.iter().flat_map(|wave| {
        let steps = wave.steps.iter().map(|step| &step.cluster);
        steps.chain(wave.blocked.iter().map(|blocked| &blocked.cluster))
    });
    all.collect::<std::collections::BTreeSet<&ClusterName>>().len()
}

fn steps(steps: &[Step], several: bool, style: Style) -> String {
    let mut out = String::new();
    let mut previous = "";
    let mut alike = 0;
    let total = |step: &Step| {
        steps
            .iter()
            .filter(|other| (other.action.name(), &other.why) == (step.action.name(), &step.why))
            .count()
    };
    for step in steps {
        let same = previous == step.why;
        alike = if same { alike + 1 } else { 1 };
        if alike > ALIKE_MAX {
            if alike == ALIKE_MAX + 1 {
                let more = total(step).saturating_sub(ALIKE_MAX) as u64;
                out.push_str(&format!("  {} and {} more like it\n", style.dim("…"), count(more)));
            }
            continue;
        }
        let action = if several {
            format!("{}: {}", step.cluster, step.action)
        } else {
            step.action.to_string()
        };
        let mark = mark(&step.action, style);
        if same || step.why.is_empty() {
            out.push_str(&format!("  {mark} {}\n", cut(&action, WIDTH_MAX - 4)));
        } else if columns(&action) <= ACTION_MAX && columns(&step.why) <= WIDTH_MAX - ACTION_MAX - 6
        {
            let space = " ".repeat(ACTION_MAX - columns(&action));
            out.push_str(&format!("  {mark} {action}{space}  {}\n", style.dim(&step.why)));
        } else {
            out.push_str(&format!("  {mark} {}\n", cut(&action, WIDTH_MAX - 4)));
            out.push_str(&format!("      {}\n", style.dim(&wrap(&step.why, WIDTH_MAX, 6))));
        }
        previous = &step.why;
    }
    out
}

fn mark(action: &Action, style: Style) -> String {
    match action {
        Action::CreateNode { .. } | Action::StartNode { .. } | Action::StartProxy { .. } => {
            style.green("+")
        }
        Action::RemoveNode { .. }
        | Action::Forget { .. }
        | Action::StopNode { .. }
        | Action::StopProxy { .. }
        | Action::KillNode { .. } => style.red("-"),
        Action::Meet { .. }
        | Action::AssignSlots { .. }
        | Action::OpenShards { .. }
        | Action::Replicate { .. }
        | Action::Handover { .. }
        | Action::Promote { .. }
        | Action::TakeOver { .. }
        | Action::MoveSlots { .. }
        | Action::RepairSlots { .. }
        | Action::SetConfig { .. }
        | Action::ApplyAcl { .. }
        | Action::ChangeProxy { .. }
        | Action::Readdress { .. }
        | Action::RestartNode { .. } => style.yellow("~"),
    }
}

/// `cache: cache-4 is copying its primary's data`.
fn waiting_text(waiting: &Waiting, several: bool) -> String {
    if several { waiting.to_string() } else { waiting.what.clone() }
}

/// What is wanted and can't be done, with the reason and what would help.
pub fn blocked(blocked: &[Blocked], style: Style) -> String {
    let mut out = String::new();
    for blocked in blocked {
        let wanted = format!("{}: {}", blocked.cluster, blocked.wanted);
        out.push_str(&format!("{} {}\n", style.red("✖ blocked"), wrap(&wanted, WIDTH_MAX, 10)));
        out.push_str(&format!("  because {}\n", wrap(&blocked.reason, WIDTH_MAX, 10)));
        if let Some(hint) = &blocked.hint {
            out.push_str(&format!("  {} {}\n", style.cyan("→"), wrap(hint, WIDTH_MAX, 4)));
        }
    }
    out
}

fn summary_line(waves: &[Wave]) -> String {
    let steps: Vec<&Step> = waves.iter().flat_map(|wave| &wave.steps).collect();
    let blocked = waves.last().map_or(0, |wave| wave.blocked.len()) as u64;
    let held = if blocked > 0 { format!("; {} blocked", count(blocked)) } else { String::new() };
    if steps.is_empty() {
        return match (blocked, waves.last().is_some_and(|wave| !wave.waiting.is_empty())) {
            (0, false) => "No changes.".to_owned(),
            (0, true) => "No changes; something is still under way.".to_owned(),
            _ => format!("Nothing can be done{held}."),
        };
    }
    let waves = waves.iter().filter(|wave| !wave.steps.is_empty()).count() as u64;
    format!(
        "{} in {}: {}{held}.",
        plural(steps.len() as u64, "step"),
        plural(waves, "wave"),
        summary(steps.into_iter())
    )
}

/// `create 6 nodes, introduce 6 nodes, attach 3 replicas`: what these steps do together, in the
/// order in which each kind comes first.
pub fn summary<'a>(steps: impl Iterator<Item = &'a Step>) -> String {
    let mut order: Vec<&'static str> = Vec::new();
    let mut totals: BTreeMap<&'static str, u64> = BTreeMap::new();
    for step in steps {
        let name = step.action.name();
        if !order.contains(&name) {
            order.push(name);
        }
        *totals.entry(name).or_default() += weight(&step.action);
    }
    let texts: Vec<String> = order
        .into_iter()
        .map(|name| phrase(name, totals.get(name).copied().unwrap_or_default()))
        .collect();
    texts.join(", ")
}

/// How many of what a kind counts a step stands for.
fn weight(action: &Action) -> u64 {
    match action {
        Action::Meet { nodes } => nodes.len() as u64,
        Action::OpenShards { pairs } => pairs.len() as u64,
        Action::AssignSlots { shares } => shares.iter().map(|(_, slots)| slots.len() as u64).sum(),
        Action::MoveSlots { slots, .. } | Action::RepairSlots { slots, .. } => slots.len() as u64,
        _ => 1,
    }
}

fn phrase(name: &str, total: u64) -> String {
    let (verb, word) = match name {
        "create-node" => ("create", "node"),
        "start-node" => ("start", "node"),
        "meet" => ("introduce", "node"),
        "assign-slots" => ("assign", "slot"),
        "replicate" => ("attach", "replica"),
        "open-shards" => ("open", "shard"),
        "handover" => ("hand over", "primary role"),
        "promote" => ("promote", "replica"),
        "move-slots" => ("move", "slot"),
        "repair-slots" => ("mend", "half-moved slot"),
        "forget" => ("forget", "node"),
        "stop-node" => ("stop", "node"),
        "kill-node" => ("kill", "hung node"),
        "remove-node" => ("remove", "node"),
        "set-config" => ("reconfigure", "node"),
        "apply-acl" => ("load the users on", "node"),
        "readdress" => ("restart at a new address", "node"),
        "restart-node" => ("restart", "node"),
        "start-proxy" => ("start", "proxy"),
        "change-proxy" => ("change", "proxy"),
        "stop-proxy" => ("stop", "proxy"),
        other => (other, "step"),
    };
    format!("{verb} {}", plural(total, word))
}

#[cfg(test)]
mod tests {
    use fleet::{
        model::{NodeName, Ports},
        plan::plan,
        spec::{self, Machine},
        world::preview,
    };
    use protocol::SlotSet;
    use sim::scene::{Scene, name};

    use super::*;

    fn path_for(text: &str, scene: &Scene) -> String {
        let fleet = spec::parse(text, "fleet.yaml", &Machine::default()).unwrap().fleet;
        let waves = preview(&fleet, &scene.observed, 100, plan);
        let text = path(&waves, Style::PLAIN);
        assert!(text.lines().all(|line| columns(line) <= WIDTH_MAX), "{text}");
        text
    }

    #[test]
    fn paths() {
        let cluster = "clusters:\n  cache:\n    shards: 3\n    replicas: 1\n";
        insta::assert_snapshot!("create", path_for(cluster, &Scene::empty(1)));
        let larger = "clusters:\n  cache:\n    shards: 5\n    replicas: 1\n";
        insta::assert_snapshot!("grow", path_for(larger, &Scene::healthy(3, 1, 1)));
        let dead = Scene::healthy(3, 1, 1).dead(1);
        insta::assert_snapshot!("heal", path_for(cluster, &dead));
    }

    #[test]
    fn many_alike_are_cut_short() {
        let step = |number| Step {
            cluster: ClusterName::new("cache"),
            action: Action::CreateNode {
                node: name(number),
                host: fleet::model::HostId::new("local"),
                ports: Ports { tcp: 7000 + number as u16, tls: 1, bus: 2 },
            },
            why: "the spec wants 20 nodes".to_owned(),
        };
        let wave = Wave { steps: (1..=20).map(step).collect(), ..Wave::default() };
        let text = path(&[wave, Wave::default()], Style::PLAIN);
        assert!(text.contains("… and 8 more like it\n"), "{text}");
        assert!(text.ends_with("\n20 steps in 1 wave: create 20 nodes.\n"), "{text}");
    }

    #[test]
    fn blocked_and_nothing() {
        let wave = Wave {
            blocked: vec![Blocked {
                cluster: ClusterName::new("cache"),
                wanted: "hand over from cache-1 to cache-4".to_owned(),
                reason: "cache-4 is not in sync".to_owned(),
                hint: Some("keyfleet status".to_owned()),
            }],
            ..Wave::default()
        };
        assert_eq!(
            path(&[wave], Style::PLAIN),
            "✖ blocked cache: hand over from cache-1 to cache-4\n  because cache-4 is not in sync\n  \
             → keyfleet status\n\nNothing can be done; 1 blocked.\n"
        );
        assert_eq!(path(&[Wave::default()], Style::PLAIN), "No changes.\n");
        assert!(is_empty(&[Wave::default()]));
    }

    #[test]
    fn summaries() {
        let step = |action| Step { cluster: ClusterName::new("c"), action, why: String::new() };
        let node = |number| NodeName::new(ClusterName::new("c"), number);
        let moves =
            Action::MoveSlots { from: node(1), to: node(2), slots: SlotSet::range(0, 1364) };
        let restart = Action::RestartNode { node: node(1) };
        let steps = [step(moves.clone()), step(restart), step(moves)];
        assert_eq!(summary(steps.iter()), "move 2,730 slots, restart 1 node");
    }
}
