//! What the executor's steps do to servers, with the checks that servers and executor make.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{NodeId, SlotSet, config_value::normalise_value};

use super::{Group, Net, Node, ROUND_MS, Sync, World, lifecycle::Fresh, views::adopt};
use crate::{
    model::{Cluster, Fleet, NodeName},
    observed::{Process, ProxyView, Row, Table},
    step::{Action, Step},
};

/// How long a server takes to start, in milliseconds.
const START_MS: u64 = 200;
/// How long FORGET keeps a name out.
const FORGET_MS: u64 = 60_000;

/// A server, or the executor that asked it, refused a step: nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

pub(super) fn refuse<T>(reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(reason.into()))
}

fn are_done_at_once(left: &Action, right: &Action) -> bool {
    let single = matches!(
        left,
        Action::CreateNode { .. }
            | Action::StartNode { .. }
            | Action::Replicate { .. }
            | Action::MoveSlots { .. }
            | Action::SetConfig { .. }
            | Action::ApplyAcl { .. }
            | Action::StopNode { .. }
            | Action::KillNode { .. }
            | Action::Readdress { .. }
    );
    single && left.name() == right.name()
}

impl World {
    /// Does what the executor would do on real servers, its waiting and checking included.
    pub fn apply(&mut self, step: &Step, fleet: &Fleet) -> Result<(), Refused> {
        let took_ms = self.act(step, fleet)?;
        self.advance(took_ms);
        Ok(())
    }

    /// Does a wave's steps, at once where they are about processes and settings of single nodes,
    /// else one after the other. Each one's own result, in order.
    pub fn apply_all(&mut self, steps: &[Step], fleet: &Fleet) -> Vec<Result<(), Refused>> {
        let mut results = Vec::with_capacity(steps.len());
        for run in steps.chunk_by(|left, right| are_done_at_once(&left.action, &right.action)) {
            if matches!(run, [Step { action: Action::Replicate { .. }, .. }, _, ..]) {
                for same in run.chunk_by(|left, right| left.cluster == right.cluster) {
                    results.extend(self.replicate_many(same));
                }
                self.advance(2 * ROUND_MS);
                continue;
            }
            let mut longest_ms = 0;
            for step in run {
                let result = self.act(step, fleet);
                longest_ms = longest_ms.max(*result.as_ref().unwrap_or(&0));
                results.push(result.map(drop));
            }
            self.advance(longest_ms);
        }
        results
    }

    fn replicate_many(&mut self, steps: &[Step]) -> Vec<Result<(), Refused>> {
        let mut results = Vec::with_capacity(steps.len());
        let mut pairs: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut numbers: Vec<u32> = Vec::new();
        let Some(first) = steps.first() else { return results };
        let net = &self.net;
        let Some(group) = self.groups.get_mut(&first.cluster) else {
            return steps.iter().map(|_| refuse("no such cluster")).collect();
        };
        for step in steps {
            let Action::Replicate { node, primary } = &step.action else { continue };
            results.push(match group.may_follow(net, node, primary) {
                Err(refused) => Err(refused),
                Ok(None) => Ok(()),
                Ok(Some((id, primary))) => {
                    pairs.insert(id, primary);
                    numbers.push(node.number);
                    Ok(())
                }
            });
        }
        let edit = |table: &mut Table| {
            for (id, primary) in &pairs {
                if let Some(row) = table.rows.get_mut(id) {
                    row.replica_of = Some(*primary);
                    row.slots = SlotSet::new();
                }
            }
        };
        group.tell(&numbers, edit, net.now_ms);
        results
    }

    /// Does the step; how long it takes.
    fn act(&mut self, step: &Step, fleet: &Fleet) -> Result<u64, Refused> {
        let Some(cluster) = fleet.clusters.get(&step.cluster) else {
            return refuse("no such cluster in the spec");
        };
        let births = self.births;
        self.births += 1;
        let net = &self.net;
        let group = self.groups.entry(step.cluster.clone()).or_insert_with(|| Group::new(cluster));
        match &step.action {
            Action::CreateNode { node, host, ports } => {
                let address = match fleet.hosts.get(host) {
                    Some(host) => host.address,
                    None => return refuse(format!("no host {host} in the spec")),
                };
                let fresh = Fresh { host, address, ports: *ports, births };
                group.create(net, cluster, node, &fresh)?;
                Ok(START_MS)
            }
            Action::StartNode { node } => {
                group.start(net, cluster, node, births)?;
                group.readdress(fleet, node);
                Ok(START_MS)
            }
            Action::Meet { nodes } => {
                group.meet(net, nodes)?;
                Ok(2 * ROUND_MS)
            }
            Action::AssignSlots { shares } => {
                group.assign_slots(net, shares)?;
                Ok(2 * ROUND_MS)
            }
            Action::Replicate { node, primary } => {
                if let Some((_, id)) = group.may_follow(net, node, primary)? {
                    group.follow(node.number, id, net.now_ms);
                }
                Ok(2 * ROUND_MS)
            }
            Action::OpenShards { pairs } => {
                for (from, to) in pairs {
                    group.open_shard(net, from, to)?;
                }
                Ok(2 * ROUND_MS)
            }
            Action::Handover { from, to } => group.do_handover(net, from, to),
            Action::Promote { dead, to } => group.do_promote(net, dead, to),
            Action::TakeOver { dead, to } => group.do_take_over(net, dead, to),
            Action::MoveSlots { from, to, slots } => {
                group.move_slots(net, from, to, slots)?;
                Ok(2 * ROUND_MS + slots.len() as u64)
            }
            Action::RepairSlots { owner, slots, .. } => {
                group.repair_slots(net, owner, slots)?;
                Ok(2 * ROUND_MS)
            }
            Action::Forget { id } => {
                group.forget(net, *id)?;
                Ok(ROUND_MS)
            }
            Action::StopNode { node } => {
                group.stop(net, node)?;
                Ok(ROUND_MS)
            }
            Action::KillNode { node } => {
                let known = group.known(node)?;
                if !net.host_alive(&known.host) {
                    return refuse(format!("{node}'s host can't be asked"));
                }
                if net.answers(known) {
                    return refuse(format!("{node} answers"));
                }
                group.kill(net, node.number);
                Ok(ROUND_MS)
            }
            Action::Readdress { node } => {
                group.stop(net, node)?;
                group.start(net, cluster, node, births)?;
                group.readdress(fleet, node);
                Ok(START_MS)
            }
            Action::RemoveNode { node } => {
                group.remove(net, node)?;
                Ok(ROUND_MS)
            }
            Action::SetConfig { node, directives } => {
                let node = group.answering(net, node)?;
                for (name, value) in directives {
                    node.config.insert(name.clone(), normalise_value(name, &value.joined()));
                }
                group.touch(net.now_ms);
                Ok(ROUND_MS)
            }
            Action::ApplyAcl { node } => {
                group.answering(net, node)?.users_current = true;
                Ok(ROUND_MS)
            }
            Action::RestartNode { node } => {
                group.stop(net, node)?;
                if let Some(node) = group.nodes.get_mut(&node.number) {
                    node.configure(cluster);
                }
                group.start(net, cluster, node, births)?;
                group.readdress(fleet, node);
                Ok(START_MS)
            }
            Action::StartProxy { proxy } | Action::ChangeProxy { proxy } => {
                let Some(wanted) = fleet.proxies.get(proxy) else {
                    return refuse(format!("no proxy {proxy} in the spec"));
                };
                let view = ProxyView {
                    process: Process::Running,
                    cluster: wanted.cluster.clone(),
                    listen: wanted.listen.iter().map(|listen| listen.address.clone()).collect(),
                    start: wanted.start.clone(),
                    service: wanted.service.clone(),
                    stale_password: false,
                    figures: None,
                };
                self.proxies.insert(proxy.clone(), view);
                Ok(ROUND_MS)
            }
            Action::StopProxy { proxy } => {
                if let Some(view) = self.proxies.get_mut(proxy) {
                    view.process = Process::Gone;
                }
                Ok(ROUND_MS)
            }
        }
    }
}

impl Group {
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self {
            node_timeout_ms: cluster.node_timeout_ms,
            nodes: BTreeMap::new(),
            numbers: BTreeMap::new(),
            strangers: BTreeSet::new(),
            ended_ms: BTreeMap::new(),
            failed_ms: BTreeMap::new(),
            history: crate::observed::History::default(),
            next_ms: None,
        }
    }

    pub(super) fn known(&mut self, name: &NodeName) -> Result<&mut Node, Refused> {
        match self.nodes.get_mut(&name.number) {
            Some(node) => Ok(node),
            None => refuse(format!("{name} doesn't exist")),
        }
    }

    pub(super) fn answering(&mut self, net: &Net, name: &NodeName) -> Result<&mut Node, Refused> {
        let node = self.known(name)?;
        if net.answers(node) { Ok(node) } else { refuse(format!("{name} doesn't answer")) }
    }

    fn meet(&mut self, net: &Net, names: &[NodeName]) -> Result<(), Refused> {
        for name in names {
            self.answering(net, name)?;
        }
        let party = self.hearers(net);
        let own_rows: BTreeMap<NodeId, Row> = party
            .iter()
            .filter_map(|number| self.nodes.get(number))
            .filter_map(|node| Some((node.id, node.own_row()?.clone())))
            .collect();
        for number in &party {
            if let Some(node) = self.nodes.get_mut(number) {
                node.banned_until_ms.retain(|id, _| !own_rows.contains_key(id));
            }
        }
        // One view for all who held no other: the largest, and whoever it lacks.
        let largest = party
            .iter()
            .filter_map(|number| self.nodes.get(number))
            .map(|node| &node.table)
            .max_by_key(|table| table.rows.len());
        let Some(largest) = largest else { return Ok(()) };
        let mut union = (**largest).clone();
        let mut owned = SlotSet::from_ranges(
            union.rows.values().flat_map(|row| row.slots.ranges().iter().copied()),
        );
        for (id, row) in &own_rows {
            if !union.rows.contains_key(id) {
                let slots = row.slots.difference(&owned);
                if !slots.is_empty() {
                    owned = owned.union(&slots);
                }
                union.rows.insert(*id, Row { slots, ..row.clone() });
            }
        }
        let union = Arc::new(union);
        for number in &party {
            let Some(node) = self.nodes.get(number) else { continue };
            let agrees = net.cuts.is_empty()
                && node.table.rows.iter().all(|(id, row)| union.rows.get(id) == Some(row));
            let reached: Vec<NodeId> = if agrees {
                Vec::new()
            } else {
                let peers = party.iter().filter_map(|number| self.nodes.get(number));
                peers.filter(|peer| net.reaches(node, peer)).map(|peer| peer.id).collect()
            };
            let mut table = Arc::clone(&union);
            if !agrees {
                let mut own = (*node.table).clone();
                for id in reached {
                    if let Some(row) = own_rows.get(&id) {
                        let row = Row { slots: SlotSet::new(), ..row.clone() };
                        own.rows.entry(id).or_insert(row);
                    }
                }
                table = Arc::new(own);
            }
            if let Some(node) = self.nodes.get_mut(number) {
                adopt(node, &table, net.now_ms);
            }
        }
        self.touch(net.now_ms);
        Ok(())
    }

    /// Who can be told something: everybody that answers.
    pub(super) fn hearers(&self, net: &Net) -> Vec<u32> {
        self.nodes.iter().filter(|(_, node)| net.answers(node)).map(|(number, _)| *number).collect()
    }

    /// CLUSTER REPLICATE's conditions. None where it is so already.
    fn may_follow(
        &mut self,
        net: &Net,
        node: &NodeName,
        primary: &NodeName,
    ) -> Result<Option<(NodeId, NodeId)>, Refused> {
        let target = self.known(primary)?.id;
        let name = node;
        let node = self.answering(net, name)?;
        if node.id == target {
            return refuse(format!("{name} can't replicate itself"));
        }
        match node.table.rows.get(&target) {
            None => return refuse(format!("{name} doesn't know {primary}")),
            Some(row) if row.replica_of.is_some() => {
                return refuse(format!("{primary} is a replica"));
            }
            Some(_) => {}
        }
        if node.replica_of() == Some(target) {
            return Ok(None);
        }
        if node.replica_of().is_none() && !(node.slots().is_empty() && node.data.is_empty()) {
            return refuse(format!("{name} is a primary with slots or data"));
        }
        Ok(Some((node.id, target)))
    }

    fn do_handover(&mut self, net: &Net, from: &NodeName, to: &NodeName) -> Result<u64, Refused> {
        let source = self.answering(net, from)?.clone();
        let target = self.answering(net, to)?.clone();
        if target.replica_of().is_none() && source.replica_of() == Some(target.id) {
            return Ok(0);
        }
        if target.replica_of() != Some(source.id) || source.replica_of().is_some() {
            return refuse(format!("{to} is no replica of {from}"));
        }
        if target.sync != Sync::InSync || !net.reaches(&source, &target) {
            return refuse(format!("{to} isn't in sync"));
        }
        if !self.hand_over(net, from.number, to.number) {
            self.history.refusals_ms.push((source.id, net.now_ms));
            return refuse("the majority of primaries didn't vote for it");
        }
        self.history.handovers_ms.push((target.id, net.now_ms));
        Ok(2 * ROUND_MS)
    }

    fn open_shard(&mut self, net: &Net, from: &NodeName, to: &NodeName) -> Result<(), Refused> {
        let source = self.answering(net, from)?.clone();
        let target = self.answering(net, to)?.clone();
        if target.replica_of().is_none() && source.replica_of() == Some(target.id) {
            return Ok(());
        }
        if target.replica_of() != Some(source.id) || target.sync != Sync::InSync {
            return refuse(format!("{to} is no replica of {from} in sync"));
        }
        if source.data.keys() > 0 {
            return refuse(format!("{from} holds data"));
        }
        // A takeover asks nobody for its epoch.
        let epoch = self.epoch_max() + 1;
        self.answering(net, to)?.current_epoch = epoch;
        self.take_over(net, &[to.number]);
        Ok(())
    }

    fn do_promote(&mut self, net: &Net, dead: &NodeName, to: &NodeName) -> Result<u64, Refused> {
        let Some((old, target)) = self.may_replace(net, dead, to)? else { return Ok(0) };
        if !self.votes(net, to.number, true) {
            self.history.refusals_ms.push((old.id, net.now_ms));
            return refuse("the majority of primaries didn't vote for it");
        }
        self.take_over(net, &[to.number]);
        self.history.handovers_ms.push((target.id, net.now_ms));
        Ok(2 * ROUND_MS)
    }

    fn do_take_over(&mut self, net: &Net, dead: &NodeName, to: &NodeName) -> Result<u64, Refused> {
        let Some((_, target)) = self.may_replace(net, dead, to)? else { return Ok(0) };
        let rows = target.table.rows.iter();
        let owners = rows.filter(|(_, row)| row.replica_of.is_none() && !row.slots.is_empty());
        let (mut all, mut answering) = (0_usize, 0_usize);
        for (id, row) in owners {
            // One whose directory was emptied has lost its name, and stands where it did.
            let here = |node: &&Node| Some(node.address) == row.ip && node.ports.tcp == row.port;
            let owner = self.node_by_id(*id).or_else(|| self.nodes.values().find(here));
            let unproven = |owner: &Node| {
                !net.host_alive(&owner.host) || World::runs(owner) && !net.answers(owner)
            };
            if owner.is_none_or(unproven) {
                return refuse("a primary is away and not proven dead");
            }
            all += 1;
            answering += usize::from(owner.is_some_and(|owner| net.answers(owner)));
        }
        if answering * 2 > all {
            return refuse("a majority of primaries could vote");
        }
        if let Some(heir) = self.nodes.get_mut(&to.number) {
            heir.current_epoch += 1;
        }
        self.take_over(net, &[to.number]);
        self.history.handovers_ms.push((target.id, net.now_ms));
        Ok(2 * ROUND_MS)
    }

    /// Who is replaced by whom, where the one is proven dead and the other its replica; None where it
    /// is so already.
    fn may_replace(
        &mut self,
        net: &Net,
        dead: &NodeName,
        to: &NodeName,
    ) -> Result<Option<(Node, Node)>, Refused> {
        let old = self.known(dead)?.clone();
        let target = self.answering(net, to)?.clone();
        if World::runs(&old) || !net.host_alive(&old.host) {
            return refuse(format!("{dead} isn't proven dead"));
        }
        if target.replica_of().is_none() && !target.slots().is_empty() {
            return Ok(None);
        }
        if target.replica_of() != Some(old.id) {
            return refuse(format!("{to} is no replica of {dead}"));
        }
        Ok(Some((old, target)))
    }

    pub(super) fn forget(&mut self, net: &Net, id: NodeId) -> Result<(), Refused> {
        let numbers: Vec<u32> = self
            .hearers(net)
            .into_iter()
            .filter(|number| self.nodes.get(number).is_some_and(|node| node.id != id))
            .collect();
        let followed = numbers
            .iter()
            .filter_map(|number| self.nodes.get(number))
            .any(|node| node.replica_of() == Some(id));
        if followed {
            return refuse("a replica can't forget its primary");
        }
        for number in &numbers {
            if let Some(node) = self.nodes.get_mut(number) {
                node.banned_until_ms.retain(|_, until| *until > net.now_ms);
                node.banned_until_ms.insert(id, net.now_ms + FORGET_MS);
            }
        }
        let edit = |table: &mut Table| {
            table.rows.remove(&id);
        };
        self.tell(&numbers, edit, net.now_ms);
        Ok(())
    }
}
