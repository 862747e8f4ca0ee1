//! Which steps of a wave must not be done.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{NodeId, SlotSet};

use super::{Case, Invariant, Violation};
use crate::{
    model::{Fleet, HostId, NodeName, Ports},
    observed::{Health, Link, NodeView, Observed, Process, Role},
    step::{Action, Step, Wave},
};

/// Every step that would break an invariant in the world as observed; empty: the wave is safe.
pub fn check_wave(fleet: &Fleet, observed: &Observed, wave: &Wave) -> Vec<Violation> {
    let mut violations = Vec::new();
    for spec in fleet.clusters.values() {
        let steps: Vec<&Step> =
            wave.steps.iter().filter(|step| step.cluster == spec.name).collect();
        if steps.is_empty() {
            continue;
        }
        let mut case = Case::new(spec, observed);
        case.judge_blindness(&steps);
        case.judge_order(&steps);
        for step in &steps {
            case.judge(fleet, &step.action, &steps);
        }
        case.judge_creations(fleet, &steps, wave);
        violations.append(&mut case.violations);
    }
    violations
}

/// A role changes or a copy goes away.
fn disrupts(action: &Action) -> bool {
    matches!(
        action,
        Action::Handover { .. } | Action::RemoveNode { .. } | Action::RestartNode { .. }
    )
}

impl Case<'_> {
    fn judge_blindness(&mut self, steps: &[&Step]) {
        let unseen = self.nodes.values().filter(|view| view.process == Process::Unknown).count();
        if unseen * 2 > self.nodes.len() {
            let what = format!(
                "{} steps while {unseen} of {} nodes can't be seen",
                steps.len(),
                self.nodes.len()
            );
            self.blame(Invariant::I8Blind, what);
        }
    }

    fn judge_order(&mut self, steps: &[&Step]) {
        let disruptive: Vec<&Action> =
            steps.iter().map(|step| &step.action).filter(|action| disrupts(action)).collect();
        if disruptive.len() > 1 {
            let what = format!("{} disruptive steps at once", disruptive.len());
            self.blame(Invariant::I4OneAtATime, what);
        }
        if let Some(action) = disruptive.first() {
            if let Some(unrest) = self.unrest() {
                self.blame(Invariant::I3Calm, format!("{action}, though {unrest}"));
            }
            let others = steps.iter().filter(|step| {
                matches!(
                    step.action,
                    Action::MoveSlots { .. }
                        | Action::Promote { .. }
                        | Action::TakeOver { .. }
                        | Action::RepairSlots { .. }
                )
            });
            if others.count() > 0 {
                let what = format!("{action} while slots move or a primary is replaced");
                self.blame(Invariant::I3Calm, what);
            }
        }
    }

    fn judge(&mut self, fleet: &Fleet, action: &Action, steps: &[&Step]) {
        let stops = matches!(action, Action::StopNode { .. } | Action::StopProxy { .. });
        if self.spec.stopped && !stops {
            self.blame(Invariant::Sense, format!("{action}, though the cluster is to be stopped"));
        }
        match action {
            // Proxies hold nothing and vote for nobody.
            Action::CreateNode { .. }
            | Action::StartProxy { .. }
            | Action::ChangeProxy { .. }
            | Action::StopProxy { .. } => {}
            Action::StartNode { node } => self.judge_start(node),
            Action::Meet { nodes } => self.judge_meet(nodes),
            Action::AssignSlots { shares } => self.judge_assign(shares),
            Action::OpenShards { pairs } => self.judge_opening(pairs),
            Action::Replicate { node, primary } => self.judge_replicate(node, primary),
            Action::Handover { from, to } => self.judge_handover(fleet, from, to),
            Action::Promote { dead, to } => self.judge_promote(dead, to, steps),
            Action::TakeOver { dead, to } => {
                self.judge_promote(dead, to, steps);
                self.judge_take_over(to, steps);
            }
            Action::MoveSlots { from, to, slots } => self.judge_move(from, to, slots, steps),
            Action::RepairSlots { owner, slots, .. } => self.judge_repair(owner, slots),
            Action::Forget { id } => self.judge_forget(*id),
            Action::StopNode { node } => {
                if !self.spec.stopped {
                    self.blame(Invariant::Sense, format!("{node} is stopped, and shall run"));
                }
            }
            Action::KillNode { node } => self.judge_kill(node),
            Action::Readdress { node } => self.judge_readdress(fleet, node),
            Action::RemoveNode { node } => self.judge_remove(node),
            Action::SetConfig { node, directives } => {
                for (name, value) in directives {
                    self.judge_setting(node, name, &value.joined());
                }
            }
            Action::ApplyAcl { node } => self.must_answer(node, "load users"),
            Action::RestartNode { node } => self.judge_restart(node),
        }
    }

    fn must_answer(&mut self, node: &NodeName, what: &str) {
        if self.up(node).is_none() {
            self.blame(Invariant::Sense, format!("{node} is to {what} and doesn't answer"));
        }
    }

    /// Nobody votes, so nothing may be there to lose.
    fn judge_opening(&mut self, pairs: &[(NodeName, NodeName)]) {
        for (from, to) in pairs {
            let (Some(old), Some(new)) = (self.up(from), self.up(to)) else {
                let what = format!("{to} is to take over from {from}, and one doesn't answer");
                return self.blame(Invariant::I5Proof, what);
            };
            if old.keys > 0 || new.keys > 0 {
                let what =
                    format!("{to} is to take over from {from} without votes: there are keys");
                self.blame(Invariant::I5Proof, what);
            }
            if !matches!(new.role, Role::Replica { of, link: Link::InSync } if of == old.id) {
                let what = format!("{to} is to take over from {from} and is no replica in sync");
                self.blame(Invariant::I5Proof, what);
            }
        }
    }

    fn judge_meet(&mut self, nodes: &[NodeName]) {
        for node in nodes {
            self.must_answer(node, "meet the others");
            let Some(up) = self.up(node) else { continue };
            let slots = up.slots();
            let rivals: Vec<String> = self
                .viewers()
                .into_iter()
                .filter(|(_, viewer)| {
                    // Who loses a slot deletes its keys; the higher epoch wins.
                    let epoch = |up: &super::Up| up.own_row().map_or(0, |row| row.config_epoch);
                    let loses = if epoch(up) > epoch(viewer) { viewer.keys } else { up.keys };
                    viewer.id != up.id
                        && loses > 0
                        && !viewer.table.rows.contains_key(&up.id)
                        && !viewer.slots().intersection(&slots).is_empty()
                })
                .map(|(name, _)| name.to_string())
                .collect();
            if let Some(rival) = rivals.first() {
                let what = format!("{node} is to meet {rival}, and both own the same slots");
                self.blame(Invariant::Data, what);
            }
        }
    }

    fn judge_assign(&mut self, shares: &[(NodeName, SlotSet)]) {
        let mut all = SlotSet::new();
        for (node, slots) in shares {
            self.must_answer(node, "get slots");
            if self.up(node).is_some_and(|up| !up.is_primary()) {
                self.blame(Invariant::Sense, format!("{node} is to get slots and is a replica"));
            }
            if !all.intersection(slots).is_empty() {
                self.blame(Invariant::Slots, format!("{node} gets slots that another one gets"));
            }
            all = all.union(slots);
        }
        let taken: Vec<String> = self
            .owners()
            .into_iter()
            .filter(|(_, slots)| !slots.intersection(&all).is_empty())
            .map(|(id, _)| id.short())
            .collect();
        if let Some(owner) = taken.first() {
            self.blame(Invariant::Slots, format!("slots are given that {owner} owns"));
        }
        let holder = self
            .nodes
            .iter()
            .find(|(_, view)| {
                Self::holds_data(view)
                    && view.id().is_none_or(|id| self.owned(id).is_empty())
                    && view.up().is_none_or(super::Up::is_primary)
            })
            .map(|(name, _)| (*name).clone());
        if let Some(holder) = holder {
            let what = format!("slots are given anew while {holder} holds data without slots");
            self.blame(Invariant::Data, what);
        }
    }

    fn judge_replicate(&mut self, node: &NodeName, primary: &NodeName) {
        self.must_answer(node, "become a replica");
        let Some(up) = self.up(node) else { return };
        let Some(target) = self.up(primary).filter(|up| up.is_primary()) else {
            return self.blame(Invariant::Sense, format!("{primary} is no answering primary"));
        };
        if !up.slots().is_empty() || !self.owned(up.id).is_empty() {
            self.blame(Invariant::Data, format!("{node} owns slots and is to become a replica"));
        }
        if up.keys > 0 {
            let what = format!("{node} holds keys that {primary}'s copy would replace");
            let worse = target.keys == 0;
            self.blame(if worse { Invariant::I6Empty } else { Invariant::Data }, what);
        }
        let (here, there) = (self.nodes[node], self.nodes[primary]);
        if self.spec.hosts.len() > 1 && here.host == there.host {
            let what = format!("{node} and its primary {primary} would share {}", here.host);
            self.blame(Invariant::I2Apart, what);
        }
    }

    fn judge_handover(&mut self, fleet: &Fleet, from: &NodeName, to: &NodeName) {
        let (Some(source), Some(target)) = (self.up(from), self.up(to)) else {
            return self
                .blame(Invariant::Data, format!("{from} hands over to {to}: one doesn't answer"));
        };
        let copies = matches!(target.role, Role::Replica { of, .. } if of == source.id);
        if !source.is_primary() || !copies {
            self.blame(Invariant::Sense, format!("{to} is no replica of the primary {from}"));
        }
        if !Self::in_sync(target) {
            self.blame(Invariant::Data, format!("{from} hands over to {to}, not in sync"));
        }
        if source.keys > 0 && target.keys == 0 && target.offset >= source.offset {
            let what = format!("{from} holds data and hands over to the empty {to}");
            self.blame(Invariant::I6Empty, what);
        }
        let history = self.observed.history.get(&self.spec.name);
        let last = history.and_then(|history| {
            let events = history.handovers_ms.iter().chain(&history.refusals_ms);
            let own = events.filter(|(id, _)| *id == source.id);
            own.map(|(_, at_ms)| *at_ms).max()
        });
        let distance_ms = 2 * self.spec.node_timeout_ms;
        if last.is_some_and(|at_ms| self.observed.at_ms < at_ms + distance_ms) {
            let what = format!("{from} hands over again within twice the node timeout");
            self.blame(Invariant::I4OneAtATime, what);
        }
        self.judge_gain(fleet, from, to);
    }

    /// A handover serves the spread, a restart, or the leaving of a host.
    fn judge_gain(&mut self, fleet: &Fleet, from: &NodeName, to: &NodeName) {
        let (here, there) = (self.nodes[from], self.nodes[to]);
        let leaves = !self.allowed_hosts().contains(&here.host);
        let outdated = here.up().is_some_and(|up| {
            let wanted = super::world::wanted_settings(self.spec);
            let drifted = wanted
                .iter()
                .any(|(name, value)| up.config.get(name).is_some_and(|have| have != value));
            !self.spec.engine.matches(&up.engine) || drifted
        });
        let host = fleet.hosts.get(&here.host);
        let elsewhere = host.is_some_and(|host| host.address != here.address);
        let surplus = self.owners().len() > self.spec.shards as usize;
        if leaves || outdated || elsewhere || surplus {
            return;
        }
        let hosts = self.primaries_by_host();
        let zone = |host: &HostId| fleet.hosts.get(host).map(|host| host.zone.clone());
        let mut zones: BTreeMap<_, usize> = BTreeMap::new();
        for (host, count) in &hosts {
            *zones.entry(zone(host)).or_default() += count;
        }
        let count = |host: &HostId| hosts.get(host).copied().unwrap_or(0);
        let in_zone = |host: &HostId| zones.get(&zone(host)).copied().unwrap_or(0);
        // A chain of handovers passes through hosts that are as full: the last link goes first.
        let evens_hosts = count(&there.host) <= count(&here.host) && here.host != there.host;
        let evens_zones = in_zone(&there.host) < in_zone(&here.host);
        if !evens_hosts && !evens_zones {
            let what = format!("{from} hands over to {to}, which improves nothing");
            self.blame(Invariant::I10Hysteresis, what);
        }
    }

    fn judge_move(&mut self, from: &NodeName, to: &NodeName, slots: &SlotSet, steps: &[&Step]) {
        let (Some(source), Some(target)) = (self.up(from), self.up(to)) else {
            return self.blame(Invariant::Data, format!("{from} or {to} doesn't answer"));
        };
        if !source.is_primary() || !target.is_primary() {
            self.blame(Invariant::Sense, format!("slots move from {from} to {to}, no primaries"));
        }
        if !slots.difference(&self.owned(source.id)).is_empty() {
            self.blame(Invariant::Slots, format!("{from} doesn't own all that it is to give"));
        }
        let open = self
            .ups()
            .flat_map(|(_, up)| up.open.values())
            .any(|open| !open.intersection(slots).is_empty());
        if open {
            self.blame(Invariant::Slots, format!("half-moved slots are moved from {from}"));
        }
        let elsewhere = steps
            .iter()
            .filter(|step| match &step.action {
                Action::MoveSlots { slots: others, .. } => !others.intersection(slots).is_empty(),
                _ => false,
            })
            .count();
        if elsewhere > 1 {
            self.blame(Invariant::Slots, format!("slots of {from} move twice in one wave"));
        }
        if target.memory.max > 0 && self.never_evicts() {
            let incoming: u64 = steps
                .iter()
                .filter_map(|step| match &step.action {
                    Action::MoveSlots { from, to: other, slots } if other == to => {
                        let up = self.up(from)?;
                        let owned = up.slots().len().max(1) as u64;
                        Some(up.memory.used / owned * slots.len() as u64)
                    }
                    _ => None,
                })
                .sum();
            if target.memory.used + incoming > target.memory.max {
                let what = format!("{to} has no room for what moves there");
                self.blame(Invariant::I11Memory, what);
            }
        }
    }

    fn never_evicts(&self) -> bool {
        self.spec
            .config
            .get("maxmemory-policy")
            .is_none_or(|policy| policy.joined() == "noeviction")
    }

    fn judge_repair(&mut self, owner: &NodeName, slots: &SlotSet) {
        if self.up(owner).is_none_or(|up| !up.is_primary()) {
            self.blame(Invariant::Sense, format!("{owner} is to own {slots} and is no primary"));
        }
        for id in self.owners().into_keys() {
            if self.by_id(id).is_none_or(|(_, view)| view.up().is_none()) {
                let what = format!("slots are repaired while the owner {} is away", id.short());
                self.blame(Invariant::I5Proof, what);
            }
        }
    }

    fn judge_forget(&mut self, id: NodeId) {
        if let Some(reason) = self.maybe_alive(id) {
            self.blame(Invariant::I7Forget, format!("{} is forgotten: {reason}", id.short()));
        }
        if !self.owned(id).is_empty() {
            self.blame(Invariant::Data, format!("{} is forgotten and owns slots", id.short()));
        }
        let copier = self.replicas_of(id).next().map(|(name, _)| name);
        if let Some(name) = copier {
            let what = format!("{} is forgotten and {name} copies it", id.short());
            self.blame(Invariant::Sense, what);
        }
        let missed = self
            .viewers()
            .into_iter()
            .filter_map(|(_, up)| up.table.rows.get(&id))
            .any(|row| row.health == Health::Failed);
        if !missed {
            let what = format!("{} is forgotten and no peer misses it", id.short());
            self.blame(Invariant::I7Forget, what);
        }
    }

    fn judge_remove(&mut self, node: &NodeName) {
        let Some(view) = self.nodes.get(node).copied() else { return };
        let Some(id) = view.id() else { return };
        let owner = self
            .viewers()
            .into_iter()
            .any(|(_, up)| up.table.rows.get(&id).is_some_and(|row| !row.slots.is_empty()));
        if owner || !self.owned(id).is_empty() {
            self.blame(Invariant::Data, format!("{node} owns slots and is removed"));
        }
        let copier = self.replicas_of(id).next().map(|(name, _)| name);
        if let Some(name) = copier {
            let what = format!("{node} is removed and {name} copies it");
            self.blame(Invariant::Sense, what);
        }
        let copied = match view.up().map(|up| up.role) {
            Some(Role::Replica { of, .. }) => Some(of),
            Some(Role::Primary) => {
                if Self::holds_data(view) {
                    let what = format!("{node} holds keys without slots and is removed");
                    self.blame(Invariant::Data, what);
                }
                None
            }
            None => self.rows.get(&id).and_then(|row| row.replica_of),
        };
        let Some(primary) = copied.filter(|primary| !self.owned(*primary).is_empty()) else {
            return;
        };
        if self.by_id(primary).is_none_or(|(_, view)| view.up().is_none()) {
            let what = format!("{node} may be the last copy: its primary doesn't answer");
            self.blame(Invariant::Data, what);
        }
        let others = self
            .replicas_of(primary)
            .filter(|(name, up)| *name != node && Self::in_sync(up))
            .count();
        if others < self.spec.replicas as usize {
            let what = format!("{node} is removed and {others} copies in sync are left");
            self.blame(Invariant::I2Apart, what);
        }
    }

    fn judge_setting(&mut self, node: &NodeName, name: &str, value: &str) {
        self.must_answer(node, "change its settings");
        if name == "cluster-allow-replica-migration" && value != "no" {
            self.blame(Invariant::I12Migration, format!("{node} lets replicas wander"));
        }
        let Some(up) = self.up(node) else { return };
        if name == "maxmemory"
            && self.never_evicts()
            && let Some(max) = bytes(value)
            && max > 0
            && max < up.memory.used
        {
            let what = format!("{node} uses {} and may have {max}", up.memory.used);
            self.blame(Invariant::I11Memory, what);
        }
    }

    fn judge_restart(&mut self, node: &NodeName) {
        let Some(up) = self.up(node) else {
            return self.blame(Invariant::Sense, format!("{node} restarts and doesn't answer"));
        };
        if !self.owned(up.id).is_empty() {
            let what = format!("{node} restarts while it is the primary of its slots");
            self.blame(Invariant::Data, what);
        }
    }

    fn judge_creations(&mut self, fleet: &Fleet, steps: &[&Step], wave: &Wave) {
        let mut names: BTreeSet<&NodeName> = BTreeSet::new();
        for step in steps {
            let Action::CreateNode { node, host, ports } = &step.action else { continue };
            if let Some(view) = self.nodes.get(node)
                && (view.process != Process::Gone || Self::holds_data(view))
            {
                self.blame(Invariant::Data, format!("{node} exists and is made anew"));
            }
            if !names.insert(node) {
                self.blame(Invariant::Sense, format!("{node} is made twice"));
            }
            if !self.allowed_hosts().contains(host) {
                self.blame(Invariant::Sense, format!("{node} isn't allowed on {host}"));
            }
            if self.observed.hosts.get(host).is_none_or(|view| !view.reachable) {
                self.blame(Invariant::Sense, format!("{node} is made on {host}, unreachable"));
            }
            if let Some(port) = taken_port(self.observed, wave, node, host, *ports) {
                self.blame(Invariant::Sense, format!("{node}'s port {port} on {host} is taken"));
            }
            self.judge_room(fleet, host, wave);
        }
    }

    fn judge_room(&mut self, fleet: &Fleet, host: &HostId, wave: &Wave) {
        let room = fleet.hosts.get(host).and_then(|host| host.memory);
        let Some(room) = room else { return };
        let limit = |node: &NodeName| {
            let spec = fleet.clusters.get(&node.cluster)?;
            Some(spec.memory?.0)
        };
        let standing = self
            .observed
            .nodes
            .iter()
            .filter(|(_, view): &(_, &NodeView)| view.host == *host)
            .filter_map(|(name, _)| limit(name));
        let coming = wave.steps.iter().filter_map(|step| match &step.action {
            Action::CreateNode { node, host: there, .. } if there == host => limit(node),
            _ => None,
        });
        let sum: u64 = standing.chain(coming).sum();
        if sum > room.0 {
            let what = format!("{host} has {room} and its nodes may take {sum} bytes");
            self.blame(Invariant::I11Memory, what);
        }
    }
}

/// A whole number of bytes, as CONFIG GET gives it.
fn bytes(text: &str) -> Option<u64> {
    protocol::config_value::normalise_value("maxmemory", text).parse().ok()
}

fn taken_port(
    observed: &Observed,
    wave: &Wave,
    node: &NodeName,
    host: &HostId,
    ports: Ports,
) -> Option<u16> {
    let mut taken: BTreeSet<u16> = BTreeSet::new();
    if let Some(view) = observed.hosts.get(host) {
        taken.extend(view.ports_taken.keys());
    }
    for (name, view) in &observed.nodes {
        if view.host == *host && name != node {
            taken.extend([view.ports.tcp, view.ports.tls, view.ports.bus]);
        }
    }
    for step in &wave.steps {
        if let Action::CreateNode { node: other, host: there, ports } = &step.action
            && other != node
            && there == host
        {
            taken.extend([ports.tcp, ports.tls, ports.bus]);
        }
    }
    [ports.tcp, ports.tls, ports.bus].into_iter().find(|port| taken.contains(port))
}
