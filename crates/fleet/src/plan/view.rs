//! One cluster as the planner sees it: the spec beside what was observed, the nodes' tables merged
//! by the engines' own rule (the highest configuration epoch owns a slot), and what doesn't fit kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use protocol::{NodeId, SLOT_COUNT, SlotSet};

use crate::{
    model::{Cluster, HostId, NodeName, Spread},
    observed::{
        Health, Link, NodeView, Observed, OpenSlots, Process, Role, Row, Server, Table, Up,
    },
};

/// A node of ours.
pub struct Member<'a> {
    pub name: &'a NodeName,
    pub view: &'a NodeView,
    /// Its id: by its server, its disk, or by its address in the others' tables.
    pub id: Option<NodeId>,
    pub up: Option<&'a Up>,
    /// The main body of the cluster knows it, and it knows the main body.
    pub joined: bool,
    /// It doesn't run, on a host that the spec doesn't name any more, and nothing depends on it: it
    /// won't be started again, and counts for nothing.
    pub given_up: bool,
}

/// A primary that owns slots, and its replicas.
#[derive(Clone, Debug)]
pub struct Shard {
    pub primary_id: NodeId,
    /// Index into [`View::members`]; None where the primary isn't ours or its directory is gone.
    pub primary: Option<usize>,
    pub slots: SlotSet,
    /// Indices of members that are its replicas, by the merged tables.
    pub replicas: Vec<usize>,
}

/// A row that the merged tables hold.
#[derive(Clone, Debug)]
pub struct MergedRow {
    pub replica_of: Option<NodeId>,
    pub config_epoch: u64,
    pub slots: SlotSet,
    pub address: Option<(IpAddr, u16)>,
    /// The worst that any view says.
    pub health: Health,
}

/// See the module's documentation.
pub struct View<'a> {
    pub spec: &'a Cluster,
    pub observed: &'a Observed,
    pub members: Vec<Member<'a>>,
    pub merged: BTreeMap<NodeId, MergedRow>,
    pub shards: Vec<Shard>,
    /// The slots that nobody owns.
    pub unowned: SlotSet,
    /// Every joined node knows the same nodes and has the same owners. Who copies whom is no part of it:
    /// that spreads by the slow gossip, and each replica is asked itself.
    pub agree: bool,
    member_by_id: BTreeMap<NodeId, usize>,
    allowed: BTreeSet<&'a HostId>,
    /// The distinct tables of the main body.
    tables: Vec<&'a Arc<Table>>,
    /// The distinct tables of the slot-owning primaries that answer, and how many have each.
    voters: Vec<(&'a Table, usize)>,
}

impl<'a> View<'a> {
    pub fn new(spec: &'a Cluster, observed: &'a Observed) -> Self {
        let mut members: Vec<Member<'a>> = observed
            .of(&spec.name)
            .map(|(name, view)| {
                let up = view.up();
                Member { name, view, id: view.id(), up, joined: false, given_up: false }
            })
            .collect();
        let main = main_body(&members);
        let mut merged = merge(&main.tables);
        resolve_claims(&mut merged);
        for member in &mut members {
            if member.id.is_none() {
                member.id = lost_identity(member.view, &merged);
            }
            member.joined = match (member.up, member.id) {
                (Some(up), Some(id)) => merged.contains_key(&id) && main.ids.contains(&up.id),
                (None, Some(id)) => merged.contains_key(&id),
                _ => false,
            };
        }
        let member_by_id = members
            .iter()
            .enumerate()
            .filter_map(|(index, member)| member.id.map(|id| (id, index)))
            .collect();
        let agree = agreement(&main.tables, &merged);
        let mut view = Self {
            spec,
            observed,
            members,
            merged,
            shards: Vec::new(),
            unowned: SlotSet::new(),
            agree,
            member_by_id,
            allowed: spec.hosts.iter().collect(),
            tables: main.tables.into_iter().map(|(table, _)| table).collect(),
            voters: Vec::new(),
        };
        view.find_given_up();
        view.find_shards();
        view.find_voters();
        view
    }

    /// Nothing is lost by giving a node up that owns no slot, and whose primary, where it had one,
    /// answers. Where nobody answers, nobody can say so; one that nobody knows may own what no other does.
    fn find_given_up(&mut self) {
        if self.members.iter().all(|member| member.up.is_none()) {
            return;
        }
        let serves = |id: &NodeId| {
            self.member(*id).is_some_and(|member| member.up.is_some_and(Up::is_primary))
        };
        let heads = self.merged.values().filter(|row| row.replica_of.is_none());
        let owned: usize = heads.map(|row| row.slots.len()).sum();
        let given_up: Vec<bool> = self
            .members
            .iter()
            .map(|member| {
                let row = member.id.and_then(|id| self.merged.get(&id));
                let needed = row.map_or(owned < usize::from(SLOT_COUNT), |row| {
                    !row.slots.is_empty() || row.replica_of.is_some_and(|of| !serves(&of))
                });
                let runs = matches!(member.view.process, Process::Running | Process::Suspended);
                let named = self.observed.hosts.contains_key(&member.view.host);
                member.up.is_none() && !runs && !named && !needed
            })
            .collect();
        for (member, given_up) in self.members.iter_mut().zip(given_up) {
            member.given_up = given_up;
        }
    }

    fn find_shards(&mut self) {
        let mut shards: BTreeMap<NodeId, Shard> = BTreeMap::new();
        let mut owned = Vec::new();
        for (id, row) in &self.merged {
            if row.replica_of.is_none() && !row.slots.is_empty() {
                owned.extend(row.slots.ranges().iter().copied());
                shards.insert(
                    *id,
                    Shard {
                        primary_id: *id,
                        primary: self.member_by_id.get(id).copied(),
                        slots: row.slots.clone(),
                        replicas: Vec::new(),
                    },
                );
            }
        }
        for (index, member) in self.members.iter().enumerate() {
            let Some(primary) = self.replica_of(member).filter(|_| !member.given_up) else {
                continue;
            };
            if let Some(shard) = shards.get_mut(&primary) {
                shard.replicas.push(index);
            }
        }
        self.unowned = SlotSet::full().difference(&SlotSet::from_ranges(owned));
        self.shards = shards.into_values().collect();
        let members = &self.members;
        self.shards.sort_by_key(|shard| {
            (shard.primary.map_or(u32::MAX, |index| members[index].name.number), shard.primary_id)
        });
    }

    fn find_voters(&mut self) {
        let mut voters: BTreeMap<*const Table, (&'a Table, usize)> = BTreeMap::new();
        for up in self.shards.iter().filter_map(|shard| self.primary_up(shard)) {
            voters.entry(Arc::as_ptr(&up.table)).or_insert((&up.table, 0)).1 += 1;
        }
        self.voters = voters.into_values().collect();
    }

    /// The primary whose replica this is: by its own word where it answers, else by the tables.
    pub fn replica_of(&self, member: &Member<'_>) -> Option<NodeId> {
        match member.up.map(|up| up.role) {
            Some(Role::Replica { of, .. }) => Some(of),
            Some(Role::Primary) => None,
            None => member.id.and_then(|id| self.merged.get(&id)).and_then(|row| row.replica_of),
        }
    }

    pub fn member(&self, id: NodeId) -> Option<&Member<'a>> {
        self.member_by_id.get(&id).map(|index| &self.members[*index])
    }

    /// It answers, is joined or not, owns nothing, copies nobody.
    pub fn is_blank(&self, member: &Member<'_>) -> bool {
        let Some(up) = member.up else { return false };
        let owns = self.merged.get(&up.id).is_some_and(|row| !row.slots.is_empty());
        up.is_primary() && !owns && up.slots().is_empty()
    }

    /// No slot is owned and no node holds a key: there is nothing yet to take care of.
    pub fn is_new(&self) -> bool {
        self.shards.is_empty()
            && self.members.iter().all(|member| member.up.is_none_or(|up| up.keys == 0))
    }

    /// May this host hold nodes of the cluster?
    pub fn allows(&self, host: &HostId) -> bool {
        self.allowed.contains(host)
    }

    /// More than one host to place nodes on, so that copies can be kept apart.
    pub fn has_choice(&self) -> bool {
        self.spec.hosts.len() > 1
    }

    /// Do primaries have to be spread?
    pub fn spreads(&self) -> bool {
        self.has_choice() && self.spec.placement.primaries_host != Spread::Any
    }

    /// The replica copies its primary, its first copy done, its link up.
    pub fn in_sync(&self, index: usize) -> bool {
        self.members[index]
            .up
            .is_some_and(|up| matches!(up.role, Role::Replica { link: Link::InSync, .. }))
    }

    /// Half-moved slots at nodes that answer, with the member's index.
    pub fn open_slots(&self) -> impl Iterator<Item = (usize, &OpenSlots, &SlotSet)> {
        self.members.iter().enumerate().flat_map(|(index, member)| {
            member
                .up
                .into_iter()
                .flat_map(move |up| up.open.iter().map(move |(way, slots)| (index, way, slots)))
        })
    }

    /// Slot-owning primaries that answer are a majority: elections and epochs work.
    pub fn has_quorum(&self) -> bool {
        let alive: usize = self.voters.iter().map(|(_, count)| count).sum();
        alive * 2 > self.shards.len()
    }

    /// The shard's primary, where it is ours, answers, and says itself that it is one.
    pub fn primary_up(&self, shard: &Shard) -> Option<&'a Up> {
        shard.primary.and_then(|index| self.members[index].up).filter(|up| up.is_primary())
    }

    /// A majority of the slot-owning primaries has heard that the member is a replica of this primary,
    /// without which they would not vote for it.
    pub fn is_known_as_replica(&self, replica: NodeId, primary: NodeId) -> bool {
        let knows = |table: &Table| {
            table.rows.get(&replica).is_some_and(|row| row.replica_of == Some(primary))
        };
        let knowing = self.voters.iter().filter(|(table, _)| knows(table));
        knowing.map(|(_, count)| count).sum::<usize>() * 2 > self.shards.len()
    }

    /// Why this isn't a moment for disruptive steps (I3); empty: it is calm.
    pub fn unrest(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        for member in self.members.iter().filter(|member| !member.given_up) {
            match &member.view.server {
                Server::Up(up) => {
                    if member.joined && !up.cluster_ok {
                        reasons.push(format!("{} says that the cluster is down", member.name));
                    }
                    // Who copies nobody that owns slots serves nobody.
                    if let Role::Replica { of, link } = up.role
                        && link != Link::InSync
                        && self.merged.get(&of).is_some_and(|row| !row.slots.is_empty())
                    {
                        reasons.push(format!("{} is not in sync", member.name));
                    }
                }
                Server::Loading => reasons.push(format!("{} is loading its data", member.name)),
                Server::Silent { .. } => reasons.push(format!("{} does not answer", member.name)),
                Server::Refused => reasons.push(format!("{} is not running", member.name)),
                Server::Denied { .. } => reasons.push(format!("{} refuses us", member.name)),
                Server::Stranded => reasons.push(format!("{} can't be reached", member.name)),
            }
        }
        for (id, row) in &self.merged {
            let gone = row.slots.is_empty() && self.member(*id).is_none();
            let down = self.member(*id).is_some_and(|member| member.up.is_none());
            if row.health != Health::Ok && !gone && !down {
                let who = self.label(*id);
                reasons.push(match row.health {
                    Health::Handshake => format!("{who} is being introduced"),
                    _ => format!("{who} is suspected by its peers"),
                });
            }
        }
        if !self.agree {
            reasons.push("the nodes' views differ".to_owned());
        }
        if self.open_slots().next().is_some() {
            reasons.push("slots are half-moved".to_owned());
        }
        if !self.unowned.is_empty() && !self.shards.is_empty() {
            reasons.push(format!("{} slots have no owner", self.unowned.len()));
        }
        reasons
    }

    /// A node beside the main body that may own slots that the main body holds for unowned.
    pub(super) fn may_own_unseen(&self) -> Option<&'a NodeName> {
        let knows_an_owner = |up: &Up| {
            up.table.rows.values().any(|row| !row.slots.intersection(&self.unowned).is_empty())
        };
        self.members
            .iter()
            .find(|member| !member.joined && member.up.is_none_or(knows_an_owner))
            .map(|member| member.name)
    }

    /// Somebody looks for it at another address than its own.
    pub(super) fn is_missed(&self, member: &Member<'_>) -> bool {
        let here = (member.view.address, member.view.ports.tcp);
        let elsewhere = |table: &&Arc<Table>| {
            let row = member.id.and_then(|id| table.rows.get(&id));
            row.is_some_and(|row| row.ip.is_some_and(|ip| (ip, row.port) != here))
        };
        member.view.process == Process::Running && self.tables.iter().any(elsewhere)
    }

    /// Our name for an id, else its first digits.
    pub fn label(&self, id: NodeId) -> String {
        self.member(id).map_or_else(|| id.short(), |member| member.name.to_string())
    }

    /// We see too little to act on (I8): most hosts or most nodes can't be asked, or most running
    /// servers are silent to us.
    pub fn blind(&self) -> Option<String> {
        let members = || self.members.iter().filter(|member| !member.given_up);
        let total = members().count();
        let unasked =
            |member: &&Member<'_>| member.view.process == Process::Unknown && member.up.is_none();
        let unknown = members().filter(unasked).count();
        if unknown * 2 > total {
            return Some(format!("{unknown} of {total} nodes are on hosts that can't be asked"));
        }
        let running = self.members.iter().filter(|member| member.view.process == Process::Running);
        let (mut all, mut silent) = (0_usize, 0_usize);
        for member in running {
            all += 1;
            silent += usize::from(matches!(member.view.server, Server::Silent { .. }));
        }
        (silent > 1 && silent * 2 > all)
            .then(|| format!("{silent} of {all} running servers do not answer in time"))
    }
}

struct MainBody<'a> {
    /// Ids of answering nodes that belong to it.
    ids: BTreeSet<NodeId>,
    /// Their distinct tables.
    tables: Vec<(&'a Arc<Table>, BTreeSet<NodeId>)>,
}

/// The largest set of answering nodes that know each other, those with slots first. A node that only
/// one side knows is in it: being known is enough to be told apart from a stranger.
fn main_body<'a>(members: &[Member<'a>]) -> MainBody<'a> {
    let mut tables: Vec<(&'a Arc<Table>, BTreeSet<NodeId>)> = Vec::new();
    let mut by_pointer: BTreeMap<*const Table, usize> = BTreeMap::new();
    for member in members {
        let Some(up) = member.up else { continue };
        let index = *by_pointer.entry(Arc::as_ptr(&up.table)).or_insert_with(|| {
            tables.push((&up.table, BTreeSet::new()));
            tables.len() - 1
        });
        tables[index].1.insert(up.id);
    }
    // Group tables that know one another's holders.
    let mut group: Vec<usize> = (0..tables.len()).collect();
    for left in 0..tables.len() {
        for right in left + 1..tables.len() {
            if group[left] == group[right] {
                continue;
            }
            let knows = |viewer: usize, holder: usize| {
                let rows = &tables[viewer].0.rows;
                tables[holder]
                    .1
                    .iter()
                    .any(|id| rows.get(id).is_some_and(|row| row.health != Health::Handshake))
            };
            if knows(left, right) && knows(right, left) {
                let (keep, drop) = (group[left].min(group[right]), group[left].max(group[right]));
                for slot in &mut group {
                    if *slot == drop {
                        *slot = keep;
                    }
                }
            }
        }
    }
    let weigh = |wanted: usize| {
        let mut slots = 0;
        let mut nodes = 0;
        let mut least = None;
        for (index, (table, holders)) in tables.iter().enumerate() {
            if group[index] == wanted {
                let owned: usize = table.rows.values().map(|row| row.slots.len()).sum();
                slots = slots.max(owned);
                nodes += holders.len();
                least = least.min(holders.first().copied()).or(holders.first().copied());
            }
        }
        (slots, nodes, std::cmp::Reverse(least))
    };
    let best = group.iter().copied().max_by_key(|wanted| weigh(*wanted));
    let mut body = MainBody { ids: BTreeSet::new(), tables: Vec::new() };
    for (index, (table, holders)) in tables.into_iter().enumerate() {
        if Some(group[index]) == best {
            body.ids.extend(holders.iter().copied());
            body.tables.push((table, holders));
        }
    }
    body
}

/// Each id's newest row: the holder's own word first, else the highest epoch.
fn merge(tables: &[(&Arc<Table>, BTreeSet<NodeId>)]) -> BTreeMap<NodeId, MergedRow> {
    let fresh = |row: &Row| MergedRow {
        replica_of: row.replica_of,
        config_epoch: row.config_epoch,
        slots: row.slots.clone(),
        address: row.ip.map(|ip| (ip, row.port)),
        health: row.health,
    };
    let Some(((first, holders), others)) = tables.split_first() else { return BTreeMap::new() };
    // Mostly the only one.
    let rows = first.rows.iter();
    let mut merged: BTreeMap<NodeId, (bool, MergedRow)> =
        rows.map(|(id, row)| (*id, (holders.contains(id), fresh(row)))).collect();
    for (table, holders) in others {
        for (id, row) in &table.rows {
            let own = holders.contains(id);
            match merged.get_mut(id) {
                None => {
                    merged.insert(*id, (own, fresh(row)));
                }
                Some((known_own, known)) => {
                    let worst = known.health.max(row.health);
                    if (own, row.config_epoch) > (*known_own, known.config_epoch) {
                        *known = fresh(row);
                        *known_own = own;
                    }
                    known.health = worst;
                }
            }
        }
    }
    merged.into_iter().map(|(id, (_, row))| (id, row)).collect()
}

/// Where two primaries claim a slot, the higher epoch has it.
fn resolve_claims(merged: &mut BTreeMap<NodeId, MergedRow>) {
    let mut claims: Vec<(u64, NodeId)> = merged
        .iter()
        .filter(|(_, row)| row.replica_of.is_none() && !row.slots.is_empty())
        .map(|(id, row)| (row.config_epoch, *id))
        .collect();
    let total: usize = claims.iter().map(|(_, id)| merged[id].slots.len()).sum();
    let all: Vec<(u16, u16)> =
        claims.iter().flat_map(|(_, id)| merged[id].slots.ranges().iter().copied()).collect();
    if SlotSet::from_ranges(all).len() == total {
        return;
    }
    claims.sort_unstable_by(|left, right| right.cmp(left));
    let mut taken = SlotSet::new();
    for (_, id) in claims {
        if let Some(row) = merged.get_mut(&id) {
            row.slots = row.slots.difference(&taken);
            taken = taken.union(&row.slots);
        }
    }
}

/// Do all the tables have the merged nodes and owners?
fn agreement(
    tables: &[(&Arc<Table>, BTreeSet<NodeId>)],
    merged: &BTreeMap<NodeId, MergedRow>,
) -> bool {
    tables.iter().all(|(table, _)| {
        let mut pairs = table.rows.iter().zip(merged);
        table.rows.len() == merged.len()
            && pairs.all(|((id, row), (same, known))| id == same && row.slots == known.slots)
    })
}

/// A node whose disk lost its id is known by its address in the others' tables.
fn lost_identity(view: &NodeView, merged: &BTreeMap<NodeId, MergedRow>) -> Option<NodeId> {
    let here = (view.address, view.ports.tcp);
    merged.iter().find(|(_, row)| row.address == Some(here)).map(|(id, _)| *id)
}
