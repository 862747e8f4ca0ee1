//! Which steps must not be done about nodes that are dead or hang.

use super::{Case, Invariant};
use crate::{
    model::{Fleet, NodeName, Profile, Takeover},
    observed::{Link, Process, Role, Server, Up},
    step::{Action, Step},
};

impl Case<'_> {
    /// A server that comes up as an empty primary makes its replicas empty too.
    pub(super) fn judge_start(&mut self, node: &NodeName) {
        let Some(view) = self.nodes.get(node).copied() else {
            return self.blame(Invariant::Sense, format!("{node} doesn't exist"));
        };
        let Some(id) = view.disk.id else { return };
        if view.disk.data_bytes > 0 {
            return;
        }
        for (peer, up) in self.replicas_of(id).collect::<Vec<_>>() {
            if up.keys > 0 {
                let what = format!("{node} starts empty, and {peer} would copy that");
                self.blame(Invariant::I6Empty, what);
            }
        }
        let owned = self.owned(id);
        let rival = self
            .ups()
            .find(|(_, up)| up.keys > 0 && !up.slots().intersection(&owned).is_empty())
            .map(|(name, _)| name);
        if let Some(rival) = rival {
            let what = format!("{node} starts empty, and {rival}, which it replaced, holds data");
            self.blame(Invariant::I6Empty, what);
        }
        if !owned.is_empty() {
            for (peer, view) in self.peers_of(id) {
                if view.up().is_none() && view.disk.data_bytes > 0 {
                    let what = format!("{node} starts empty; {peer} has data on its disk");
                    self.blame(Invariant::I6Empty, what);
                }
            }
        }
    }

    pub(super) fn judge_promote(&mut self, dead: &NodeName, to: &NodeName, steps: &[&Step]) {
        let Some(old) = self.nodes.get(dead).copied() else {
            return self.blame(Invariant::I5Proof, format!("{dead} isn't known"));
        };
        let proven = old.process == Process::Gone
            && self.observed.hosts.get(&old.host).is_none_or(|host| host.reachable);
        if !proven {
            self.blame(Invariant::I5Proof, format!("{dead} isn't proven dead"));
        }
        let restarted = steps
            .iter()
            .any(|step| matches!(&step.action, Action::StartNode { node } if node == dead));
        if restarted {
            self.blame(Invariant::I5Proof, format!("{dead} is started while it is replaced"));
        }
        let Some(target) = self.up(to) else {
            return self.blame(Invariant::Sense, format!("{to} doesn't answer"));
        };
        let Role::Replica { of, link } = target.role else {
            return self.blame(Invariant::Sense, format!("{to} is no replica"));
        };
        if link == Link::Syncing {
            self.blame(Invariant::Data, format!("{to} is in the middle of a copy"));
        }
        if target.keys == 0 {
            let richer = self
                .peers_of(of)
                .into_iter()
                .find(|(name, view)| *name != to && Self::holds_data(view))
                .map(|(name, _)| name.clone());
            let richer = richer.or_else(|| Self::holds_data(old).then(|| dead.clone()));
            if let Some(richer) = richer {
                let what = format!("{to} is empty and {richer} holds data");
                self.blame(Invariant::I6Empty, what);
            }
        }
        let ahead = self
            .replicas_of(of)
            .find(|(_, up)| up.offset > target.offset && same_freshness(up.role, target.role))
            .map(|(name, _)| name.clone());
        if let Some(ahead) = ahead {
            let what = format!("{to} is promoted and {ahead} is further along");
            self.blame(Invariant::Data, what);
        }
    }

    /// Without votes: nothing is lost by it but what a cache may lose, nobody is left who could vote,
    /// and nobody who is away can have been elected where we don't see it.
    pub(super) fn judge_take_over(&mut self, to: &NodeName, steps: &[&Step]) {
        if self.spec.profile != Profile::Cache {
            let what = format!("{to} takes over without votes, and the data is no cache");
            self.blame(Invariant::I5Proof, what);
        }
        let owners = self.owners();
        let (mut answering, mut unproven) = (0, Vec::new());
        for id in owners.keys() {
            match self.by_id_or_address(*id) {
                Some(view) if view.up().is_some_and(Up::is_primary) => answering += 1,
                Some(view)
                    if view.process == Process::Gone
                        && view.server == Server::Refused
                        && self
                            .observed
                            .hosts
                            .get(&view.host)
                            .is_none_or(|host| host.reachable) => {}
                _ => unproven.push(id.short()),
            }
        }
        if answering * 2 > owners.len() {
            let what = format!("{to} takes over without votes, and {answering} could vote");
            self.blame(Invariant::I5Proof, what);
        }
        if let Some(id) = unproven.first() {
            let what = format!("{to} takes over without votes, and {id} isn't proven dead");
            self.blame(Invariant::I5Proof, what);
        }
        let others = steps.iter().filter(|step| {
            matches!(
                step.action,
                Action::TakeOver { .. } | Action::Promote { .. } | Action::StartNode { .. }
            )
        });
        let voters = others.filter(|step| match &step.action {
            // A follower that starts votes for nobody.
            Action::StartNode { node } => self
                .nodes
                .get(node)
                .and_then(|view| view.id())
                .is_some_and(|id| owners.contains_key(&id)),
            _ => true,
        });
        if voters.count() > 1 {
            let what = format!("{to} takes over without votes, and others may vote soon");
            self.blame(Invariant::I5Proof, what);
        }
    }

    /// Nobody can reach it where it is, it has somewhere to go, and it finds there what it holds.
    pub(super) fn judge_readdress(&mut self, fleet: &Fleet, node: &NodeName) {
        let Some(view) = self.nodes.get(node).copied() else {
            return self.blame(Invariant::Sense, format!("{node} doesn't exist"));
        };
        let moved = fleet.hosts.get(&view.host).is_some_and(|host| host.address != view.address);
        if view.process != Process::Running || view.server != Server::Stranded || !moved {
            self.blame(Invariant::I5Proof, format!("{node} is restarted though it isn't cut off"));
        }
        let row =
            view.id().and_then(|id| self.ups().find_map(|(_, up)| up.table.rows.get(&id).cloned()));
        let spared = row.is_some_and(|row| match row.replica_of {
            Some(of) => self.by_id(of).is_some_and(|(_, primary)| primary.up().is_some()),
            None => row.slots.is_empty(),
        });
        if !spared && !self.spec.persists() {
            self.blame(Invariant::Data, format!("{node} is restarted and holds the only copy"));
        }
    }

    pub(super) fn judge_kill(&mut self, node: &NodeName) {
        let Some(view) = self.nodes.get(node).copied() else {
            return self.blame(Invariant::Sense, format!("{node} doesn't exist"));
        };
        if !matches!(view.server, Server::Silent { .. }) {
            self.blame(Invariant::I5Proof, format!("{node} is killed though it doesn't hang"));
        }
        let Some(id) = view.id().filter(|id| !self.owned(*id).is_empty()) else { return };
        // One that owns slots is killed where it has been away for long, and something takes its place:
        // a file of its own with all that it acknowledged, or a replica.
        let timeout_ms = self.spec.node_timeout_ms;
        let file = self.spec.takeover == Takeover::LeastLoss && view.disk.append_bytes > 0;
        let away_ms = match view.server {
            Server::Silent { for_ms } => for_ms,
            _ => 0,
        };
        let long_ms = match (view.process, file) {
            (Process::Suspended, true) => timeout_ms / 2,
            (Process::Suspended, false) => timeout_ms,
            _ => 2 * timeout_ms + 30_000,
        };
        let heir = self.replicas_of(id).any(|(_, up)| {
            !matches!(up.role, Role::Replica { link: Link::Syncing, .. })
                && (up.keys > 0 || !Self::holds_data(view))
        });
        if away_ms < long_ms || !(file || heir) {
            let what = format!("{node} is killed while it owns slots");
            self.blame(Invariant::Data, what);
        }
    }
}

/// Was the left one in touch with the primary as lately as the right one?
fn same_freshness(left: Role, right: Role) -> bool {
    let away_ms = |role| match role {
        Role::Replica { link: Link::InSync, .. } => 0,
        Role::Replica { link: Link::Down { for_ms }, .. } => for_ms,
        _ => u64::MAX,
    };
    away_ms(left) <= away_ms(right)
}
