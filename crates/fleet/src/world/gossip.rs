//! How views spread and converge, and what a node concludes from its view.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use protocol::{NodeId, SlotSet};

use super::{
    Group, Net, Node, World,
    views::{absorb, adopt, conclude, same_claim, skip_middlemen, verdict},
};
use crate::{
    model::HostId,
    observed::{Health, Row, Table},
};

/// Nodes that answer, share a view and see the same peers: they learn the same.
struct Class {
    table: usize,
    members: Vec<u32>,
    since_ms: u64,
    banned_until_ms: BTreeMap<NodeId, u64>,
    /// None where no hosts are cut off from each other, so that it doesn't matter.
    host: Option<HostId>,
    follow_any_taker: bool,
}

/// A round's look at everybody, before anything changes.
struct Snapshot {
    tables: Vec<Arc<Table>>,
    /// Who answers: its number and its table.
    alive: BTreeMap<NodeId, (u32, usize)>,
}

/// What a class concludes.
struct Learned {
    table: Option<Table>,
    /// Its nodes would say ok of the cluster.
    well: bool,
    in_minority: bool,
    wake_ms: Option<u64>,
}

impl Group {
    /// Everybody learns from everybody that they reach. True where a view changed.
    pub(super) fn exchange(&mut self, net: &Net) -> bool {
        let snapshot = self.snapshot(net);
        let classes = self.classes(net, &snapshot);
        let learned: Vec<Learned> =
            classes.iter().map(|class| self.learn(net, &snapshot, class)).collect();
        let epochs: Vec<u64> =
            classes.iter().map(|class| self.epoch_heard(net, &snapshot, class)).collect();
        let mut shared: BTreeMap<Table, Arc<Table>> = BTreeMap::new();
        let several = classes.len() > 1;
        let mut changed = false;
        for ((class, learned), epoch) in classes.iter().zip(learned).zip(epochs) {
            let table = match learned.table {
                None => Arc::clone(&snapshot.tables[class.table]),
                Some(table) => {
                    changed = true;
                    self.note_failures(&table, net.now_ms);
                    Arc::new(table)
                }
            };
            let table = if several {
                Arc::clone(shared.entry((*table).clone()).or_insert(table))
            } else {
                table
            };
            if let Some(at_ms) = learned.wake_ms {
                self.wake(at_ms);
            }
            for number in &class.members {
                let Some(node) = self.nodes.get_mut(number) else { continue };
                node.current_epoch = node.current_epoch.max(epoch);
                changed |= adopt(node, &table, net.now_ms);
                changed |= conclude(
                    node,
                    learned.well,
                    learned.in_minority,
                    self.node_timeout_ms,
                    net.now_ms,
                );
            }
        }
        self.wake_for_verdicts(net);
        changed
    }

    fn snapshot(&self, net: &Net) -> Snapshot {
        let mut tables: Vec<Arc<Table>> = Vec::new();
        // Looked up by address, never iterated: its order means nothing.
        let mut indexes: BTreeMap<usize, usize> = BTreeMap::new();
        let mut alive = BTreeMap::new();
        for (number, node) in &self.nodes {
            if !net.answers(node) {
                continue;
            }
            let index = *indexes.entry(Arc::as_ptr(&node.table).addr()).or_insert_with(|| {
                tables.push(Arc::clone(&node.table));
                tables.len() - 1
            });
            alive.insert(node.id, (*number, index));
        }
        Snapshot { tables, alive }
    }

    fn classes(&self, net: &Net, snapshot: &Snapshot) -> Vec<Class> {
        // A start matters only where somebody was lost after it.
        let lost_from_ms = self
            .nodes
            .values()
            .filter(|node| !net.answers(node))
            .map(|node| node.since_ms)
            .chain(net.cuts.values().copied())
            .chain(self.ended_ms.values().copied())
            .min()
            .unwrap_or(u64::MAX);
        let mut classes: BTreeMap<_, Class> = BTreeMap::new();
        for (number, table) in snapshot.alive.values() {
            let Some(node) = self.nodes.get(number) else { continue };
            let host = (!net.cuts.is_empty()).then(|| node.host.clone());
            let since_ms = if node.since_ms <= lost_from_ms { 0 } else { node.since_ms };
            let follow_any_taker = node.is_on("cluster-allow-replica-migration");
            let key =
                (*table, host.clone(), since_ms, node.banned_until_ms.clone(), follow_any_taker);
            classes
                .entry(key)
                .or_insert_with(|| Class {
                    table: *table,
                    members: Vec::new(),
                    since_ms,
                    banned_until_ms: node.banned_until_ms.clone(),
                    host,
                    follow_any_taker,
                })
                .members
                .push(*number);
        }
        classes.into_values().collect()
    }

    /// The node of that name, where the class reaches it.
    fn reached<'a>(
        &'a self,
        net: &Net,
        snapshot: &Snapshot,
        class: &Class,
        id: NodeId,
    ) -> Option<(&'a Node, usize)> {
        let (number, table) = snapshot.alive.get(&id)?;
        let node = self.nodes.get(number)?;
        let cut = class.host.as_ref().is_some_and(|host| net.cut_since(host, &node.host).is_some());
        (!cut).then_some((node, *table))
    }

    /// Since when the class hasn't heard of a node that it doesn't reach.
    fn unheard_since_ms(&self, net: &Net, class: &Class, id: NodeId) -> u64 {
        let lost_ms = match self.node_by_id(id) {
            None => self.ended_ms.get(&id).copied().unwrap_or(0),
            Some(node) if !net.answers(node) => node.since_ms,
            Some(node) => class
                .host
                .as_ref()
                .and_then(|host| net.cut_since(host, &node.host))
                .unwrap_or(node.since_ms),
        };
        lost_ms.max(class.since_ms)
    }

    fn learn(&self, net: &Net, snapshot: &Snapshot, class: &Class) -> Learned {
        let old = &snapshot.tables[class.table];
        let mut table: Option<Table> = None;
        self.learn_from_peers(net, snapshot, class, old, &mut table);
        let mut learned = Learned { table, well: false, in_minority: false, wake_ms: None };
        self.judge_health(net, snapshot, class, old, &mut learned);
        let now = learned.table.as_ref().unwrap_or(old);
        let (well, in_minority) = verdict(now, self.covers_all(class));
        learned.well = well;
        learned.in_minority = in_minority;
        learned
    }

    fn covers_all(&self, class: &Class) -> bool {
        class
            .members
            .first()
            .and_then(|number| self.nodes.get(number))
            .is_none_or(|node| node.is_on("cluster-require-full-coverage"))
    }

    /// New names, and newer claims on slots.
    fn learn_from_peers(
        &self,
        net: &Net,
        snapshot: &Snapshot,
        class: &Class,
        old: &Table,
        table: &mut Option<Table>,
    ) {
        let mut direct: Vec<(NodeId, &Row)> = Vec::new();
        let mut others: BTreeSet<usize> = BTreeSet::new();
        for id in old.rows.keys() {
            if let Some((node, index)) = self.reached(net, snapshot, class, *id)
                && index != class.table
            {
                others.insert(index);
                if let Some(row) = node.own_row()
                    && !same_claim(&old.rows[id], row)
                {
                    direct.push((*id, row));
                }
            }
        }
        let mut names: Vec<(NodeId, Row)> = Vec::new();
        let mut relayed: Vec<(NodeId, &Row)> = Vec::new();
        for index in &others {
            for (id, row) in &snapshot.tables[*index].rows {
                let banned = class.banned_until_ms.get(id).is_some_and(|until| *until > net.now_ms);
                let known = old.rows.get(id);
                if known.is_none() && !banned {
                    names.push((
                        *id,
                        Row { slots: SlotSet::new(), health: Health::Ok, ..row.clone() },
                    ));
                }
                let newer = known.map_or(!banned, |known| row.config_epoch > known.config_epoch);
                if newer && self.reached(net, snapshot, class, *id).is_none() {
                    relayed.push((*id, row));
                }
            }
        }
        if direct.is_empty() && names.is_empty() && relayed.is_empty() {
            return self.part_epochs(net, snapshot, class, old, table);
        }
        let now = table.get_or_insert_with(|| old.clone());
        for (id, row) in names {
            now.rows.entry(id).or_insert(row);
        }
        let follows = |id: NodeId| {
            snapshot.alive.get(&id).is_some_and(|(number, _)| class.members.contains(number))
        };
        let unclaimed = SlotSet::from_ranges(direct.iter().flat_map(|(id, row)| {
            let known = old.rows.get(id).map(|known| known.slots.difference(&row.slots));
            known.into_iter().flat_map(|slots| slots.ranges().to_vec())
        }));
        for (id, row) in direct.into_iter().chain(relayed) {
            absorb(now, id, row, &unclaimed, class.follow_any_taker, follows);
        }
        skip_middlemen(now, follows);
        if now == old {
            *table = None;
        }
        self.part_epochs(net, snapshot, class, old, table);
    }

    /// Owners of one epoch part: all but the one with the greatest name take a new one.
    fn part_epochs(
        &self,
        net: &Net,
        snapshot: &Snapshot,
        class: &Class,
        old: &Table,
        table: &mut Option<Table>,
    ) {
        let mut holders: BTreeMap<u64, NodeId> = BTreeMap::new();
        let mut losers: Vec<NodeId> = Vec::new();
        for (id, row) in &table.as_ref().unwrap_or(old).rows {
            // Who lost a claim of the same epoch in this view still makes it in its own.
            let claims = || {
                let node = self.reached(net, snapshot, class, *id).map(|(node, _)| node);
                node.and_then(Node::own_row).is_some_and(|own| {
                    !own.slots.is_empty() && own.config_epoch == row.config_epoch
                })
            };
            if row.replica_of.is_none()
                && (!row.slots.is_empty() || claims())
                && let Some(lesser) = holders.insert(row.config_epoch, *id)
            {
                losers.push(lesser);
            }
        }
        if losers.is_empty() {
            return;
        }
        let mut epoch = self.epoch_max();
        for id in losers {
            if self.numbers.get(&id).is_some_and(|number| class.members.contains(number)) {
                epoch += 1;
                let now = table.get_or_insert_with(|| old.clone());
                if let Some(row) = now.rows.get_mut(&id) {
                    row.config_epoch = epoch;
                }
            }
        }
    }

    /// The greatest epoch among the peers that the class knows and reaches.
    fn epoch_heard(&self, net: &Net, snapshot: &Snapshot, class: &Class) -> u64 {
        snapshot.tables[class.table]
            .rows
            .iter()
            .filter_map(|(id, row)| {
                let (node, _) = self.reached(net, snapshot, class, *id)?;
                Some(node.current_epoch.max(row.config_epoch))
            })
            .max()
            .unwrap_or_default()
    }

    /// The greatest epoch anybody knows.
    pub(super) fn epoch_max(&self) -> u64 {
        let mut tables: BTreeMap<usize, &Table> = BTreeMap::new();
        let mut epoch = 0;
        for node in self.nodes.values() {
            epoch = epoch.max(node.current_epoch);
            tables.insert(Arc::as_ptr(&node.table).addr(), &node.table);
        }
        tables
            .values()
            .flat_map(|table| table.rows.values())
            .map(|row| row.config_epoch)
            .fold(epoch, u64::max)
    }

    fn judge_health(
        &self,
        net: &Net,
        snapshot: &Snapshot,
        class: &Class,
        old: &Table,
        learned: &mut Learned,
    ) {
        let now = learned.table.as_ref().unwrap_or(old);
        let mut reporters: Option<(BTreeMap<usize, usize>, usize)> = None;
        let mut changes: Vec<(NodeId, Health)> = Vec::new();
        let mut wake_ms: Option<u64> = None;
        let mut wake = |at_ms: u64| wake_ms = Some(wake_ms.map_or(at_ms, |ms: u64| ms.min(at_ms)));
        for (id, row) in &now.rows {
            if self.strangers.contains(id) {
                continue;
            }
            let health = if self.reached(net, snapshot, class, *id).is_some() {
                self.health_of_reached(net, *id, row, &mut wake)
            } else {
                let due_ms = self.unheard_since_ms(net, class, *id) + self.node_timeout_ms;
                if row.health == Health::Failed {
                    Health::Failed
                } else {
                    let (tables, owners) =
                        reporters.get_or_insert_with(|| self.reporters(net, snapshot, class, now));
                    let bad = |index: &usize, worst: Health| {
                        snapshot.tables[*index].rows.get(id).is_some_and(|row| row.health == worst)
                    };
                    let told = tables.keys().any(|index| bad(index, Health::Failed));
                    let reports: usize = tables
                        .iter()
                        .filter(|(index, _)| {
                            bad(index, Health::Failed) || bad(index, Health::Suspected)
                        })
                        .map(|(_, count)| *count)
                        .sum();
                    if net.now_ms < due_ms && !told {
                        wake(due_ms);
                        row.health
                    } else if told || reports > *owners / 2 {
                        Health::Failed
                    } else {
                        Health::Suspected
                    }
                }
            };
            if health != row.health {
                changes.push((*id, health));
            }
        }
        learned.wake_ms = wake_ms;
        if !changes.is_empty() {
            let now = learned.table.get_or_insert_with(|| old.clone());
            for (id, health) in changes {
                if let Some(row) = now.rows.get_mut(&id) {
                    row.health = health;
                }
            }
        }
    }

    /// An owner that failed and came back before anybody took over is believed only after a while.
    fn health_of_reached(
        &self,
        net: &Net,
        id: NodeId,
        row: &Row,
        wake: &mut impl FnMut(u64),
    ) -> Health {
        if row.health == Health::Failed && row.replica_of.is_none() && !row.slots.is_empty() {
            let failed_ms = self.failed_ms.get(&id).copied().unwrap_or(0);
            let due_ms = failed_ms + 2 * self.node_timeout_ms;
            if net.now_ms < due_ms {
                wake(due_ms);
                return Health::Failed;
            }
        }
        Health::Ok
    }

    /// How many slot-owning primaries the class hears, by their table, and how many there are.
    fn reporters(
        &self,
        net: &Net,
        snapshot: &Snapshot,
        class: &Class,
        table: &Table,
    ) -> (BTreeMap<usize, usize>, usize) {
        let mut tables: BTreeMap<usize, usize> = BTreeMap::new();
        let mut owners = 0;
        for (id, row) in &table.rows {
            if row.replica_of.is_none() && !row.slots.is_empty() {
                owners += 1;
                if let Some((_, index)) = self.reached(net, snapshot, class, *id) {
                    *tables.entry(index).or_default() += 1;
                }
            }
        }
        (tables, owners)
    }

    fn note_failures(&mut self, table: &Table, now_ms: u64) {
        for (id, row) in &table.rows {
            if row.health == Health::Failed {
                self.failed_ms.entry(*id).or_insert(now_ms);
            } else if !self.failed_ms.is_empty() {
                self.failed_ms.remove(id);
            }
        }
    }

    fn wake_for_verdicts(&mut self, net: &Net) {
        let mut times: Vec<u64> = Vec::new();
        for node in self.nodes.values() {
            if node.loading_until_ms > net.now_ms && World::runs(node) {
                times.push(node.loading_until_ms);
            }
            if net.answers(node) && !node.cluster_ok && node.ok_from_ms > net.now_ms {
                times.push(node.ok_from_ms);
            }
            times.extend(node.banned_until_ms.values().filter(|until| **until > net.now_ms));
        }
        if let Some(at_ms) = times.into_iter().min() {
            self.wake(at_ms);
        }
    }

    /// Tells the nodes numbered so something that they put into their tables. Those that shared a
    /// view before still do.
    pub(super) fn tell(&mut self, numbers: &[u32], edit: impl Fn(&mut Table), now_ms: u64) {
        let mut told: BTreeMap<usize, (Arc<Table>, Arc<Table>)> = BTreeMap::new();
        for number in numbers {
            let Some(node) = self.nodes.get_mut(number) else { continue };
            let key = Arc::as_ptr(&node.table).addr();
            let (_, table) = told.entry(key).or_insert_with(|| {
                let mut table = (*node.table).clone();
                edit(&mut table);
                // The old one is kept: while it lives, its address is nobody else's.
                (Arc::clone(&node.table), Arc::new(table))
            });
            let table = Arc::clone(table);
            adopt(node, &table, now_ms);
        }
        self.touch(now_ms);
    }

    /// Views agree, states are ok, nothing is half-moved, nobody is suspected or being elected.
    pub(super) fn is_calm(&self, net: &Net) -> bool {
        let mut first: Option<&Arc<Table>> = None;
        for node in self.nodes.values() {
            if !net.answers(node) {
                continue;
            }
            let calm = node.cluster_ok && node.open.is_empty() && node.election_at_ms.is_none();
            let agrees = match first {
                None => {
                    first = Some(&node.table);
                    node.table
                        .rows
                        .values()
                        .all(|row| matches!(row.health, Health::Ok | Health::Failed))
                }
                Some(table) => Arc::ptr_eq(table, &node.table) || *table == node.table,
            };
            if !calm || !agrees {
                return false;
            }
        }
        first.is_some()
    }
}
