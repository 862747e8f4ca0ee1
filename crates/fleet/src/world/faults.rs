//! What goes wrong by itself.

use std::sync::Arc;

use protocol::{Slot, SlotSet};

use super::{Group, Net, World, node::Directory};
use crate::{
    model::{HostId, NodeName},
    observed::{OpenSlots, Process},
};

/// Something that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// kill -9.
    Kill(NodeName),
    /// kill -9, and what it had saved is gone; `nodes.conf` stays.
    KillAndLoseData(NodeName),
    /// kill -9, and its directory is emptied: data and `nodes.conf`.
    KillAndEmpty(NodeName),
    /// kill -9, and something other than the guard starts it again at once.
    Bounce(NodeName),
    /// SIGSTOP and SIGCONT.
    Suspend(NodeName),
    Resume(NodeName),
    /// Power off: every process on the host dies; directories stay. Nothing starts by itself later.
    HostDown(HostId),
    HostUp(HostId),
    /// The host is cut off from the others, which still reach each other.
    Cut(HostId),
    Heal(HostId),
    /// A slot's move was given up half-way: both sides are open, `moved` says that the keys left.
    HalfMove {
        from: NodeName,
        to: NodeName,
        slot: Slot,
        moved: bool,
    },
    /// Only one side of a move is open.
    HalfOpen {
        at: NodeName,
        side: OpenSlots,
        slot: Slot,
    },
    /// Somebody changed a directive.
    Drift {
        node: NodeName,
        directive: String,
        value: String,
    },
}

impl World {
    /// Lets the fault happen. What isn't there can't go wrong: nothing happens then.
    pub fn strike(&mut self, fault: &Fault) {
        match fault {
            Fault::Kill(name) => self.strike_node(name, |net, group| group.kill(net, name.number)),
            Fault::KillAndLoseData(name) => self.strike_node(name, |net, group| {
                group.kill(net, name.number);
                if let Some(node) = group.nodes.get_mut(&name.number) {
                    node.directory.data = Arc::default();
                }
            }),
            Fault::KillAndEmpty(name) => self.strike_node(name, |net, group| {
                group.kill(net, name.number);
                if let Some(node) = group.nodes.get_mut(&name.number) {
                    node.directory = Directory::default();
                    let id = node.id;
                    group.end(id, net.now_ms);
                }
            }),
            Fault::Bounce(name) => {
                let births = self.births;
                self.births += 1;
                self.strike_node(name, |net, group| {
                    group.kill(net, name.number);
                    group.boot(net, name, births);
                });
            }
            Fault::Suspend(name) => self.set_process(name, Process::Running, Process::Suspended),
            Fault::Resume(name) => self.set_process(name, Process::Suspended, Process::Running),
            Fault::HostDown(host) => {
                if let Some(machine) = self.net.hosts.get_mut(host) {
                    machine.alive = false;
                }
                for group in self.groups.values_mut() {
                    let here: Vec<u32> = group
                        .nodes
                        .iter()
                        .filter(|(_, node)| node.host == *host)
                        .map(|(number, _)| *number)
                        .collect();
                    for number in here {
                        group.kill(&self.net, number);
                    }
                }
            }
            Fault::HostUp(host) => {
                if let Some(machine) = self.net.hosts.get_mut(host) {
                    machine.alive = true;
                }
                self.touch_all();
            }
            Fault::Cut(host) => {
                let now_ms = self.net.now_ms;
                let others: Vec<HostId> =
                    self.net.hosts.keys().filter(|other| *other != host).cloned().collect();
                for other in others {
                    let pair =
                        if host <= &other { (host.clone(), other) } else { (other, host.clone()) };
                    self.net.cuts.entry(pair).or_insert(now_ms);
                }
                self.touch_all();
            }
            Fault::Heal(host) => {
                self.net.cuts.retain(|(one, other), _| one != host && other != host);
                self.touch_all();
            }
            Fault::HalfMove { from, to, slot, moved } => self.half_move(from, to, *slot, *moved),
            Fault::HalfOpen { at, side, slot } => self.strike_node(at, |net, group| {
                // SETSLOT is refused by replicas, and by those that own, or don't, what they import or give.
                if let Some(node) = group.nodes.get_mut(&at.number)
                    && net.answers(node)
                    && node.replica_of().is_none()
                    && node.slots().contains(*slot) == matches!(side, OpenSlots::MigratingTo(_))
                {
                    let set = node.open.entry(*side).or_default();
                    *set = set.union(&SlotSet::from(*slot));
                }
            }),
            Fault::Drift { node: name, directive, value } => {
                self.strike_node(name, |net, group| {
                    if let Some(node) = group.nodes.get_mut(&name.number)
                        && net.answers(node)
                    {
                        node.config.insert(directive.clone(), value.clone());
                    }
                });
            }
        }
    }

    fn strike_node(&mut self, name: &NodeName, strike: impl FnOnce(&Net, &mut Group)) {
        if let Some(group) = self.groups.get_mut(&name.cluster)
            && group.nodes.contains_key(&name.number)
        {
            strike(&self.net, group);
            group.touch(self.net.now_ms);
        }
    }

    fn set_process(&mut self, name: &NodeName, from: Process, to: Process) {
        self.strike_node(name, |net, group| {
            if let Some(node) = group.nodes.get_mut(&name.number)
                && node.process == from
            {
                node.process = to;
                node.since_ms = net.now_ms;
            }
        });
    }

    fn touch_all(&mut self) {
        for group in self.groups.values_mut() {
            group.touch(self.net.now_ms);
        }
    }

    fn half_move(&mut self, from: &NodeName, to: &NodeName, slot: Slot, moved: bool) {
        self.strike_node(from, |net, group| {
            let (Some(source), Some(target)) =
                (group.nodes.get(&from.number), group.nodes.get(&to.number))
            else {
                return;
            };
            let fits = net.reaches(source, target)
                && source.replica_of().is_none()
                && target.replica_of().is_none()
                && source.slots().contains(slot)
                && source.table.rows.contains_key(&target.id);
            if !fits {
                return;
            }
            let (source_id, target_id) = (source.id, target.id);
            let owned = source.slots().len();
            let slots = SlotSet::from(slot);
            let mut taken = None;
            if let Some(source) = group.nodes.get_mut(&from.number) {
                let open = source.open.entry(OpenSlots::MigratingTo(target_id)).or_default();
                *open = open.union(&slots);
                if moved {
                    taken = Some(Arc::make_mut(&mut source.data).take(&slots, owned));
                    source.append();
                }
            }
            if let Some(target) = group.nodes.get_mut(&to.number) {
                let open = target.open.entry(OpenSlots::ImportingFrom(source_id)).or_default();
                *open = open.union(&slots);
                if let Some(taken) = taken {
                    Arc::make_mut(&mut target.data).merge(taken);
                    target.append();
                }
            }
        });
    }
}

impl Group {
    /// The process ends at once. What it kept on disk as it went stays.
    pub(super) fn kill(&mut self, net: &Net, number: u32) {
        if let Some(node) = self.nodes.get_mut(&number)
            && World::runs(node)
        {
            node.process = Process::Gone;
            node.since_ms = net.now_ms;
            node.open.clear();
            node.election_at_ms = None;
            node.cluster_ok = false;
        }
        self.touch(net.now_ms);
    }
}
