//! What is wrong or may go wrong with a cluster as observed, why it matters, and what mends it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    model::{Cluster, ClusterName, Fleet, NodeName, Spread, quorum_safe_max},
    observed::{NodeView, Observed, Process, Server},
    overview::{Overview, Shard, State},
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Clients are refused now.
    Down,
    /// One more fault and clients are refused, or data is lost.
    Risk,
    /// Not as it should be; nothing is in danger.
    Notice,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Risk {
    pub level: Level,
    /// What is seen.
    pub what: String,
    /// What it means for clients or data.
    pub why: String,
    /// The command that mends it.
    pub command: Option<String>,
}

/// How many of the hosts that hold the cluster's nodes may die together, whichever they are, so
/// that a majority of primaries is left to vote and every shard keeps a copy in sync. None where
/// the cluster isn't whole as it is.
pub fn hosts_that_may_die(observed: &Observed, cluster: &ClusterName) -> Option<usize> {
    survivable(observed, &Overview::new(observed, cluster), |_, view| view.host.clone())
}

/// The same for single nodes: how many may die together, whichever they are.
pub fn nodes_that_may_die(observed: &Observed, cluster: &ClusterName) -> Option<usize> {
    survivable(observed, &Overview::new(observed, cluster), |name, _| name.clone())
}

/// The worst set of k failure domains takes the k that hold most primaries, or the k that hold one
/// shard's copies: so both limits are counted, and no set needs to be tried.
fn survivable<D: Ord>(
    observed: &Observed,
    overview: &Overview,
    domain: impl Fn(&NodeName, &NodeView) -> D,
) -> Option<usize> {
    if overview.shards.is_empty() || !overview.uncovered.is_empty() {
        return None;
    }
    let domain_of = |name: &NodeName| observed.nodes.get(name).map(|view| domain(name, view));
    let whole = |name: &NodeName| state(observed, name).is_some_and(State::is_whole);
    let mut primaries: BTreeMap<D, usize> = BTreeMap::new();
    let mut copies_min = usize::MAX;
    for shard in &overview.shards {
        let primary = shard.primary.as_ref().filter(|name| whole(name))?;
        *primaries.entry(domain_of(primary)?).or_default() += 1;
        let copies: BTreeSet<D> = std::iter::once(primary)
            .chain(shard.replicas.iter().filter(|name| whole(name)))
            .filter_map(domain_of)
            .collect();
        copies_min = copies_min.min(copies.len());
    }
    let mut counts: Vec<usize> = primaries.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let mut left = overview.shards.len();
    let majority = left / 2 + 1;
    let by_votes = counts
        .iter()
        .take_while(|count| {
            left -= **count;
            left >= majority
        })
        .count();
    Some(by_votes.min(copies_min - 1))
}

fn state(observed: &Observed, name: &NodeName) -> Option<State> {
    observed.nodes.get(name).map(State::of)
}

/// Everything that is wrong with a cluster, the worst first. `fleet` is what the spec wants; None
/// for a cluster that keyfleet did not make.
pub fn risks(fleet: Option<&Fleet>, observed: &Observed, cluster: &ClusterName) -> Vec<Risk> {
    let wanted = fleet.and_then(|fleet| fleet.clusters.get(cluster));
    let overview = Overview::new(observed, cluster);
    let mut found = Found { observed, wanted, overview: &overview, risks: Vec::new() };
    if found.existence(cluster) {
        found.coverage();
        found.votes();
        overview.shards.iter().for_each(|shard| found.shard(shard));
        found.loose();
        found.hosts();
        found.views();
        found.memory();
        found.balance();
    }
    let mut risks = found.risks;
    risks.sort_by_key(|risk| risk.level);
    risks
}

struct Found<'a> {
    observed: &'a Observed,
    wanted: Option<&'a Cluster>,
    overview: &'a Overview,
    risks: Vec<Risk>,
}

impl Found<'_> {
    fn add(&mut self, level: Level, what: String, why: impl Into<String>, command: Option<&str>) {
        let command = command.map(str::to_owned);
        self.risks.push(Risk { level, what, why: why.into(), command });
    }

    /// `keyfleet up` mends what the spec wants otherwise; a stranger's cluster it doesn't touch.
    fn up(&self) -> Option<&'static str> {
        self.wanted.map(|_| "keyfleet up")
    }

    /// What mends this node: one that is suspended goes on where it was, and nothing else can do that.
    fn mend(&self, name: &NodeName) -> Option<String> {
        let view = self.observed.nodes.get(name);
        let pid = view.filter(|view| view.process == Process::Suspended).and_then(|view| view.pid);
        pid.map(|pid| format!("kill -CONT {pid}")).or_else(|| self.up().map(str::to_owned))
    }

    /// Is there a cluster to look at closer?
    fn existence(&mut self, cluster: &ClusterName) -> bool {
        let stopped = self.wanted.is_some_and(|wanted| wanted.stopped);
        let up = self.up();
        if self.observed.of(cluster).next().is_none() {
            let level = if stopped { Level::Notice } else { Level::Down };
            let why = "none of its nodes has been made";
            self.add(level, "it does not exist yet".to_owned(), why, up);
            return false;
        }
        let states: BTreeSet<State> =
            self.observed.of(cluster).map(|(_, view)| State::of(view)).collect();
        if states.iter().all(|state| *state == State::Dead) {
            if stopped {
                let why = "`keyfleet down` stopped it; its data is kept";
                self.add(Level::Notice, "it is stopped".to_owned(), why, up);
            } else {
                let why = "every server process is gone; what is on disk is kept";
                self.add(Level::Down, "no node runs".to_owned(), why, up);
            }
            return false;
        }
        true
    }

    fn coverage(&mut self) {
        let overview = self.overview;
        let up = self.up();
        if overview.shards.is_empty() {
            let why = "no node that answers owns a slot, so no key can be kept";
            self.add(Level::Down, "no slots are assigned".to_owned(), why, up);
        } else if !overview.uncovered.is_empty() {
            let slots = &overview.uncovered;
            self.add(
                Level::Down,
                format!("{} without an owner: {slots}", slots_text(slots.len())),
                "keys in them can be neither read nor written; by default the whole cluster refuses",
                up,
            );
        }
        if !overview.contested.is_empty() {
            let slots = &overview.contested;
            self.add(
                Level::Risk,
                format!("{} with two owners: {slots}", slots_text(slots.len())),
                "both take writes for the same keys, and one side's will be dropped",
                up,
            );
        }
        if !overview.open.is_empty() {
            let slots = &overview.open;
            self.add(
                Level::Risk,
                format!("{} half moved: {slots}", slots_text(slots.len())),
                "their keys lie on two nodes, and no primary can change safely until they are whole",
                up,
            );
        }
    }

    fn votes(&mut self) {
        let total = self.overview.shards.len();
        let answering = self
            .overview
            .shards
            .iter()
            .filter_map(|shard| shard.primary.as_ref())
            .filter(|name| state(self.observed, name) == Some(State::Primary))
            .count();
        if total > 0 && answering < total / 2 + 1 {
            let up = self.up();
            self.add(
                Level::Down,
                format!("{answering} of {total} primaries answer, and {} must", total / 2 + 1),
                "without a majority to vote no replica can take over by itself",
                up,
            );
        }
    }

    fn shard(&mut self, shard: &Shard) {
        let up = self.up();
        let slots = &shard.slots;
        let named = |name: Option<&NodeName>| {
            name.map_or_else(|| format!("node {}", shard.id.short()), ToString::to_string)
        };
        let primary_name = named(shard.primary.as_ref());
        let primary = shard.primary.as_ref().and_then(|name| state(self.observed, name));
        let states: Vec<(&NodeName, State)> = shard
            .replicas
            .iter()
            .filter_map(|name| Some((name, state(self.observed, name)?)))
            .collect();
        let says = |name: &NodeName, state: State| {
            format!("{name} {}", self.observed.nodes.get(name).map_or("", |_| verdict(state)))
        };
        if primary != Some(State::Primary) {
            let answering = |state: State| {
                matches!(state, State::InSync | State::LinkDown { .. } | State::Syncing)
            };
            let heirs: Vec<String> = states
                .iter()
                .filter(|(_, state)| answering(*state))
                .map(|(name, _)| name.to_string())
                .collect();
            let why = if heirs.is_empty() {
                format!("slots {slots} are served by nobody, and no replica answers to take over")
            } else {
                format!(
                    "slots {slots} are served by nobody until {} takes over",
                    heirs.join(" or ")
                )
            };
            let verdict = primary.map_or("is none of the nodes that can be seen", verdict);
            let command =
                shard.primary.as_ref().map_or(up.map(str::to_owned), |name| self.mend(name));
            let what = format!("{primary_name}, a primary, {verdict}");
            self.add(Level::Down, what, why, command.as_deref());
        }
        let wanted = self.wanted.map(|cluster| cluster.replicas as usize);
        let whole = states.iter().filter(|(_, state)| *state == State::InSync).count();
        let bad: Vec<(String, Option<String>)> = states
            .iter()
            .filter(|(_, state)| *state != State::InSync)
            .map(|(name, state)| (says(name, *state), self.mend(name)))
            .collect();
        // Where no spec says how many replicas there should be, other shards' replicas tell.
        let shards = &self.overview.shards;
        let meant = wanted
            .unwrap_or_else(|| shards.iter().map(|shard| shard.replicas.len()).max().unwrap_or(0));
        if primary == Some(State::Primary) && whole == 0 && meant > 0 {
            let (texts, commands): (Vec<String>, Vec<_>) = bad.into_iter().unzip();
            let why =
                if texts.is_empty() { "it has no replica".to_owned() } else { texts.join(", ") };
            let command = commands.into_iter().next().unwrap_or(up.map(str::to_owned));
            self.add(
                Level::Risk,
                format!("{primary_name} is the only copy of slots {slots}"),
                format!("{why}; should {primary_name} die too, their keys are gone"),
                command.as_deref(),
            );
        } else if primary == Some(State::Primary) {
            for (text, command) in bad {
                let why = format!("slots {slots} have one copy less than they should");
                self.add(Level::Risk, text, why, command.as_deref());
            }
            if let Some(wanted) = wanted.filter(|wanted| states.len() < *wanted) {
                let what = format!("{primary_name} has {} of {wanted} replicas", states.len());
                let why = format!("slots {slots} have fewer copies than the spec wants");
                self.add(Level::Notice, what, why, up);
            }
        }
    }

    fn loose(&mut self) {
        for name in &self.overview.loose {
            let Some(view) = self.observed.nodes.get(name) else { continue };
            let state = State::of(view);
            let (level, why) = match (&view.server, state) {
                (Server::Denied { error }, _) => (Level::Risk, error.clone()),
                (_, State::Primary) if self.overview.shards.is_empty() => continue,
                (_, State::Primary) => (
                    Level::Notice,
                    "it owns no slots and copies nobody: it serves nothing".to_owned(),
                ),
                _ => (
                    Level::Risk,
                    "it copies nothing until it runs and has joined a shard".to_owned(),
                ),
            };
            let what = match state {
                State::Primary => format!("{name} is in no shard"),
                other => format!("{name} {}", verdict(other)),
            };
            let command = self.mend(name);
            self.add(level, what, why, command.as_deref());
        }
    }

    fn hosts(&mut self) {
        let up = self.up();
        let mut primaries: BTreeMap<String, usize> = BTreeMap::new();
        let mut together = Vec::new();
        let host = |name: &NodeName| self.observed.nodes.get(name).map(|view| view.host.clone());
        let hosts: BTreeSet<_> = self
            .overview
            .shards
            .iter()
            .flat_map(|shard| shard.primary.iter().chain(&shard.replicas))
            .filter_map(host)
            .collect();
        for shard in &self.overview.shards {
            let Some(primary_host) = shard.primary.as_ref().and_then(host) else { continue };
            *primaries.entry(primary_host.to_string()).or_default() += 1;
            if !shard.replicas.is_empty()
                && shard.replicas.iter().all(|name| host(name).as_ref() == Some(&primary_host))
            {
                together.push((shard.slots.clone(), primary_host));
            }
        }
        for (id, view) in &self.observed.hosts {
            if !view.reachable && hosts.contains(id) {
                let why = "nothing can be said or done about its nodes";
                self.add(Level::Risk, format!("host {id} can't be asked"), why, None);
            }
        }
        if hosts.len() < 2 {
            return;
        }
        for (slots, host) in together {
            let what = format!("all copies of slots {slots} are on {host}");
            self.add(Level::Risk, what, "they are lost or out of reach together with it", up);
        }
        let capped =
            self.wanted.is_none_or(|wanted| wanted.placement.primaries_host == Spread::QuorumSafe);
        let total = self.overview.shards.len();
        for (host, count) in primaries {
            if capped && total >= 3 && count > quorum_safe_max(total) {
                self.add(
                    Level::Risk,
                    format!("{host} holds {count} of {total} primaries"),
                    "if it dies, what is left is no majority and nobody can take over",
                    up,
                );
            }
        }
    }

    fn views(&mut self) {
        let views = &self.overview.views;
        if let [most, others @ ..] = views.as_slice()
            && !others.is_empty()
        {
            let odd: Vec<String> = others.iter().flatten().map(ToString::to_string).collect();
            let what = if odd.len() <= 3 {
                format!("{} {} the cluster differently", odd.join(", "), sees(odd.len()))
            } else {
                format!("{} nodes see the cluster differently", odd.len())
            };
            let why = format!(
                "there are {} views, and the most common one has {} of {} nodes: \
                 clients are sent to different owners, and nothing is changed until they agree",
                views.len(),
                most.len(),
                most.len() + odd.len()
            );
            self.add(Level::Risk, what, why, None);
        }
        if !self.overview.strangers.is_empty() {
            let ids: Vec<String> =
                self.overview.strangers.iter().map(protocol::NodeId::short).collect();
            let what = format!("the nodes know of others that can't be seen: {}", ids.join(", "));
            let up = self.up();
            self.add(Level::Notice, what, "they are gone for good, or not part of the spec", up);
        }
    }

    fn memory(&mut self) {
        let members = self
            .overview
            .shards
            .iter()
            .flat_map(|shard| shard.primary.iter().chain(&shard.replicas));
        let mut found = Vec::new();
        for name in members {
            let Some(up) = self.observed.nodes.get(name).and_then(NodeView::up) else { continue };
            let memory = up.memory;
            let policy = up
                .config
                .get("maxmemory-policy")
                .cloned()
                .or_else(|| Some(self.wanted?.config.get("maxmemory-policy")?.joined()));
            let evicts = policy.is_some_and(|policy| policy != "noeviction");
            if memory.max > 0 && up.is_primary() && !evicts && memory.used >= memory.max / 10 * 9 {
                let share = (u128::from(memory.used) * 100 / u128::from(memory.max)).min(999);
                found.push((
                    Level::Risk,
                    format!("{name} has used {share} % of its memory"),
                    "at the limit it refuses writes, for its policy is noeviction".to_owned(),
                    self.wanted.map(|_| "raise `memory` in fleet.yaml, then: keyfleet up"),
                ));
            }
            if is_fragmented(memory.used, memory.rss) {
                found.push((
                    Level::Notice,
                    format!("{name}'s memory is fragmented"),
                    "the process holds half as much again as its data needs".to_owned(),
                    self.wanted.map(|_| "set `config: {activedefrag: yes}`, then: keyfleet up"),
                ));
            }
        }
        for (level, what, why, command) in found {
            self.add(level, what, why, command);
        }
    }

    fn balance(&mut self) {
        let sizes = || self.overview.shards.iter().map(|shard| shard.slots.len());
        let (Some(most), Some(least)) = (sizes().max(), sizes().min()) else { return };
        // redis-cli's rebalance acts at the same two per cent.
        let mean = usize::from(protocol::SLOT_COUNT) / self.overview.shards.len();
        if self.overview.uncovered.is_empty() && (most - least) * 50 > mean {
            let up = self.up();
            self.add(
                Level::Notice,
                format!("slots are uneven: {least} to {most} a shard"),
                "the larger shards fill up and slow down first",
                up,
            );
        }
    }
}

/// Half as much again as the data, where that is worth a thought (128 MiB).
pub const fn is_fragmented(used: u64, rss: u64) -> bool {
    rss > used / 2 * 3 && rss - used > 128 << 20
}

const fn sees(count: usize) -> &'static str {
    if count == 1 { "sees" } else { "see" }
}

fn slots_text(count: usize) -> String {
    format!("{count} slot{}", if count == 1 { "" } else { "s" })
}

/// A node's state as the end of a sentence.
const fn verdict(state: State) -> &'static str {
    match state {
        State::Primary => "is a primary",
        State::InSync => "is in sync",
        State::Syncing => "is still copying its primary's data",
        State::LinkDown { .. } => "has lost the link to its primary",
        State::Loading => "is reading its data from disk",
        State::Starting => "runs and does not listen yet",
        State::Hung { suspended: true, .. } => "hangs: its process is suspended",
        State::Hung { suspended: false, .. } => "hangs: its process runs and answers nobody",
        State::Dead => "is dead: its process is gone",
        State::Stranded => "runs at an address that its host has lost",
        State::Unreachable => "can't be reached, nor its host asked why",
        State::Denied => "keeps us out",
    }
}
