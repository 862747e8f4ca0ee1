//! What of a world is not as it should be.

use std::collections::BTreeMap;

use protocol::{SLOT_COUNT, SlotSet, config_value::normalise_value};

use super::{Case, Invariant, Violation};
use crate::{
    model::{Cluster, Fleet, HostId, Spread, quorum_safe_max},
    observed::{Health, Observed, Role},
};

/// Everything in which the world falls short; empty: it is as the spec wants it.
pub fn check_world(fleet: &Fleet, observed: &Observed) -> Vec<Violation> {
    let mut violations = Vec::new();
    for spec in fleet.clusters.values().filter(|spec| !spec.stopped) {
        let mut case = Case::new(spec, observed);
        case.judge_nodes();
        case.judge_addresses(fleet);
        case.judge_views();
        case.judge_slots();
        case.judge_copies();
        case.judge_spread(fleet);
        violations.append(&mut case.violations);
    }
    judge_hosts(fleet, observed, &mut violations);
    violations
}

/// The spec's directives as CONFIG GET gives them, with those that keyfleet owns.
pub(super) fn wanted_settings(spec: &Cluster) -> BTreeMap<String, String> {
    let mut wanted: BTreeMap<String, String> = spec
        .config
        .iter()
        .filter(|(name, _)| *name != "client-output-buffer-limit")
        .map(|(name, value)| (name.clone(), normalise_value(name, &value.joined())))
        .collect();
    wanted.insert("cluster-node-timeout".to_owned(), spec.node_timeout_ms.to_string());
    wanted
}

impl Case<'_> {
    fn judge_nodes(&mut self) {
        let wanted = self.spec.nodes_wanted() as usize;
        if self.nodes.len() != wanted {
            let what = format!("{} nodes exist, wanted are {wanted}", self.nodes.len());
            self.blame(Invariant::Wanted, what);
        }
        let settings = wanted_settings(self.spec);
        for (name, view) in self.nodes.clone() {
            let Some(up) = view.up() else {
                self.blame(Invariant::Wanted, format!("{name} doesn't answer"));
                continue;
            };
            if !up.cluster_ok {
                self.blame(Invariant::Wanted, format!("{name} doesn't say that all is well"));
            }
            if !self.spec.engine.matches(&up.engine) {
                self.blame(Invariant::Wanted, format!("{name} runs {}", up.engine));
            }
            if !up.users_current {
                self.blame(Invariant::Wanted, format!("{name}'s users are not the spec's"));
            }
            for (directive, value) in &settings {
                if up.config.get(directive).is_some_and(|have| have != value) {
                    self.blame(Invariant::Wanted, format!("{name} has another {directive}"));
                }
            }
            if up.config.get("cluster-allow-replica-migration").is_some_and(|have| have != "no") {
                self.blame(Invariant::I12Migration, format!("{name} lets replicas wander"));
            }
            if let Some(limit) = self.spec.memory
                && (up.memory.max == 0 || up.memory.max >= limit.0)
            {
                let what = format!("{name}'s maxmemory leaves no room in {limit}");
                self.blame(Invariant::I11Memory, what);
            }
        }
    }

    fn judge_addresses(&mut self, fleet: &Fleet) {
        for (name, view) in self.nodes.clone() {
            let known = view.id().and_then(|id| self.rows.get(&id));
            if fleet.hosts.get(&view.host).is_some_and(|host| host.address != view.address) {
                self.blame(Invariant::Wanted, format!("{name} isn't at its host's address"));
            } else if known.is_some_and(|row| row.ip != Some(view.address)) {
                self.blame(Invariant::Wanted, format!("{name} announces another address"));
            }
        }
    }

    fn judge_views(&mut self) {
        let ups: Vec<_> = self.ups().collect();
        for (name, up) in &ups {
            if up.table.rows.len() != self.nodes.len() {
                let what = format!("{name} knows {} nodes", up.table.rows.len());
                self.blame(Invariant::Wanted, what);
            }
            if let Some((id, _)) = up.table.rows.iter().find(|(_, row)| row.health != Health::Ok) {
                self.blame(Invariant::Wanted, format!("{name} doubts {}", id.short()));
            }
            if let Some((id, _)) = up.table.rows.iter().find(|(id, row)| {
                self.rows
                    .get(id)
                    .is_none_or(|best| best.replica_of != row.replica_of || best.slots != row.slots)
            }) {
                self.blame(Invariant::Slots, format!("{name} sees {} differently", id.short()));
            }
            if !up.open.is_empty() {
                self.blame(Invariant::Slots, format!("{name} has half-moved slots"));
            }
        }
    }

    fn judge_slots(&mut self) {
        let owners = self.owners();
        let total: usize = owners.values().map(SlotSet::len).sum();
        let all =
            SlotSet::from_ranges(owners.values().flat_map(|slots| slots.ranges().iter().copied()));
        if total != all.len() || all.len() != usize::from(SLOT_COUNT) {
            let what = format!("{} slots are owned, {total} times in all", all.len());
            self.blame(Invariant::Slots, what);
        }
        if owners.len() != self.spec.shards as usize {
            let what = format!("{} shards, wanted are {}", owners.len(), self.spec.shards);
            self.blame(Invariant::Wanted, what);
        }
        let sizes = || owners.values().map(SlotSet::len);
        let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
        if most > least + 1 {
            self.blame(Invariant::Slots, format!("shards have from {least} to {most} slots"));
        }
    }

    fn judge_copies(&mut self) {
        for id in self.owners().into_keys() {
            let label = self.by_id(id).map_or_else(|| id.short(), |(name, _)| name.to_string());
            let host = self.host_of(id);
            let mut in_sync = 0;
            for (name, up) in self.replicas_of(id).collect::<Vec<_>>() {
                if self.spec.hosts.len() > 1 && host == self.nodes.get(name).map(|view| &view.host)
                {
                    let what = format!("{name} stands beside its primary {label}");
                    self.blame(Invariant::I2Apart, what);
                }
                in_sync += u32::from(Self::in_sync(up));
            }
            if in_sync != self.spec.replicas {
                let what = format!("{label} has {in_sync} replicas in sync");
                self.blame(Invariant::I2Apart, what);
            }
        }
        for (name, up) in self.ups().collect::<Vec<_>>() {
            if let Role::Replica { of, .. } = up.role
                && self.owned(of).is_empty()
            {
                self.blame(Invariant::Wanted, format!("{name} copies one that owns nothing"));
            }
        }
    }

    /// Judged is what can be reached: enough domains for the limit, and replicas to hand over to.
    fn judge_spread(&mut self, fleet: &Fleet) {
        let most = quorum_safe_max(self.spec.shards as usize);
        let shards = self.spec.shards as usize;
        if most == 0 || self.spec.replicas == 0 {
            return;
        }
        let hosts = self.primaries_by_host();
        let allowed = self.allowed_hosts();
        if self.spec.placement.primaries_host == Spread::QuorumSafe
            && allowed.len() * most >= shards
        {
            for (host, count) in &hosts {
                if *count > most {
                    let what = format!("{host} holds {count} of {shards} primaries");
                    self.blame(Invariant::I1QuorumSafe, what);
                }
            }
        }
        let zone = |host: &HostId| fleet.hosts.get(host).map(|host| &host.zone);
        let mut zones: BTreeMap<_, usize> = BTreeMap::new();
        for host in &allowed {
            zones.entry(zone(host)).or_default();
        }
        for (host, count) in &hosts {
            *zones.entry(zone(host)).or_default() += count;
        }
        if self.spec.placement.primaries_zone == Spread::QuorumSafe && zones.len() * most >= shards
        {
            for (zone, count) in &zones {
                if let Some(zone) = zone
                    && *count > most
                {
                    let what = format!("zone {zone} holds {count} of {shards} primaries");
                    self.blame(Invariant::I1QuorumSafe, what);
                }
            }
        }
    }
}

fn judge_hosts(fleet: &Fleet, observed: &Observed, violations: &mut Vec<Violation>) {
    for (id, host) in &fleet.hosts {
        let Some(room) = host.memory else { continue };
        let mut sum = 0;
        let mut last = None;
        for (name, view) in &observed.nodes {
            let limit = fleet.clusters.get(&name.cluster).and_then(|spec| spec.memory);
            if view.host == *id
                && let Some(limit) = limit
            {
                sum += limit.0;
                last = Some(name.cluster.clone());
            }
        }
        if sum > room.0
            && let Some(cluster) = last
        {
            let what = format!("{id} has {room} and its nodes may take {sum} bytes");
            violations.push(Violation { invariant: Invariant::I11Memory, cluster, what });
        }
    }
}
