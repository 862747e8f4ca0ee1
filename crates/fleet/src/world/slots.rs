//! Slots that are given, moved and mended.

use std::sync::Arc;

use protocol::{NodeId, SlotSet};

use super::{
    Data, Group, Net, Node,
    apply::{Refused, refuse},
    views::assign,
};
use crate::{model::NodeName, observed::Table};

impl Group {
    pub(super) fn assign_slots(
        &mut self,
        net: &Net,
        shares: &[(NodeName, SlotSet)],
    ) -> Result<(), Refused> {
        let mut ids: Vec<(NodeId, &SlotSet)> = Vec::new();
        for (name, slots) in shares {
            let node = self.answering(net, name)?;
            if node.replica_of().is_some() {
                return refuse(format!("{name} is a replica"));
            }
            ids.push((node.id, slots));
        }
        let numbers: Vec<u32> = self.hearers(net);
        let wanted = ids.iter().fold(SlotSet::new(), |all, (_, slots)| all.union(slots));
        for number in &numbers {
            let Some(node) = self.nodes.get(number) else { continue };
            for (id, row) in &node.table.rows {
                let own = ids
                    .iter()
                    .any(|(other, slots)| other == id && row.slots.difference(slots).is_empty());
                if !row.slots.is_empty() && !own && !row.slots.intersection(&wanted).is_empty() {
                    return refuse("some of the slots have an owner");
                }
            }
            break;
        }
        let epoch = self.epoch_max();
        let edit = |table: &mut Table| {
            for (index, (id, slots)) in ids.iter().enumerate() {
                if let Some(row) = table.rows.get_mut(id) {
                    row.slots = row.slots.union(slots);
                    row.config_epoch = epoch + 1 + index as u64;
                }
            }
        };
        self.tell(&numbers, edit, net.now_ms);
        Ok(())
    }

    pub(super) fn move_slots(
        &mut self,
        net: &Net,
        from: &NodeName,
        to: &NodeName,
        slots: &SlotSet,
    ) -> Result<(), Refused> {
        let source = self.answering(net, from)?.clone();
        let target = self.answering(net, to)?.clone();
        if !net.reaches(&source, &target) {
            return refuse(format!("{from} doesn't reach {to}"));
        }
        if source.replica_of().is_some() || target.replica_of().is_some() {
            return refuse("slots move between primaries only");
        }
        let owned = source.slots();
        let moving = slots.intersection(&owned);
        if !slots.difference(&owned).difference(&target.slots()).is_empty() {
            return refuse(format!("{from} doesn't own all of these slots"));
        }
        let knows = |viewer: &Node, other: &Node| viewer.table.rows.contains_key(&other.id);
        if !knows(&source, &target) || !knows(&target, &source) {
            return refuse(format!("{from} and {to} don't know each other"));
        }
        if let Some(node) = self.nodes.get_mut(&from.number) {
            let taken = Arc::make_mut(&mut node.data).take(&moving, owned.len());
            node.append();
            node.close(slots);
            self.give(to.number, taken);
        }
        if let Some(node) = self.nodes.get_mut(&to.number) {
            node.close(slots);
        }
        self.own(net, to.number, slots);
        Ok(())
    }

    fn give(&mut self, number: u32, data: Data) {
        if let Some(node) = self.nodes.get_mut(&number) {
            Arc::make_mut(&mut node.data).merge(data);
            node.offset += 1;
            node.append();
        }
    }

    /// SETSLOT NODE at the new owner, then at everybody it reaches.
    fn own(&mut self, net: &Net, number: u32, slots: &SlotSet) {
        let epoch = self.epoch_max() + 1;
        let Some(owner) = self.nodes.get(&number) else { return };
        let id = owner.id;
        let hearers: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, node)| net.reaches(owner, node) && node.table.rows.contains_key(&id))
            .map(|(number, _)| *number)
            .collect();
        if let Some(owner) = self.nodes.get_mut(&number) {
            owner.current_epoch = owner.current_epoch.max(epoch);
        }
        self.tell(&hearers, |table| assign(table, id, slots, epoch), net.now_ms);
    }

    pub(super) fn repair_slots(
        &mut self,
        net: &Net,
        owner: &NodeName,
        slots: &SlotSet,
    ) -> Result<(), Refused> {
        let target = self.answering(net, owner)?.clone();
        if target.replica_of().is_some() {
            return refuse(format!("{owner} is a replica"));
        }
        let numbers = self.hearers(net);
        for number in &numbers {
            let Some(node) = self.nodes.get_mut(number) else { continue };
            if *number == owner.number || node.replica_of().is_some() {
                node.close(slots);
                continue;
            }
            if !net.reaches(node, &target) {
                return refuse(format!("{owner} isn't reached by everybody"));
            }
            let owned = node.slots().len();
            let taken = Arc::make_mut(&mut node.data).take(slots, owned);
            node.append();
            node.close(slots);
            self.give(owner.number, taken);
        }
        if slots.difference(&target.slots()).is_empty() && self.all_agree(net, target.id, slots) {
            self.touch(net.now_ms);
        } else {
            self.own(net, owner.number, slots);
        }
        Ok(())
    }

    fn all_agree(&self, net: &Net, owner: NodeId, slots: &SlotSet) -> bool {
        self.nodes.values().filter(|node| net.answers(node)).all(|node| {
            node.table.rows.get(&owner).is_some_and(|row| slots.difference(&row.slots).is_empty())
        })
    }
}

impl Node {
    /// These slots aren't half-moved any more.
    fn close(&mut self, slots: &SlotSet) {
        self.open.retain(|_, open| {
            *open = open.difference(slots);
            !open.is_empty()
        });
    }
}
