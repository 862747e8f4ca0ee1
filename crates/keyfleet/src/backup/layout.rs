//! Who owns which slots, and whom to ask for them: what a backup rests on, and what must be the same
//! when it is done.

use std::net::SocketAddr;

use fleet::{
    model::ClusterName,
    observed::{Link, NodeView, Observed, Role, Up},
    overview::Overview,
};
use protocol::{Engine, NodeId, SlotSet};

/// The shards by lowest slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout(pub Vec<Shard>);

/// A shard as one look sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub claim: Claim,
    /// What its primary had written by then, as an offset in the stream of replication.
    pub offset: u64,
    /// Who can be asked: replicas in sync, the one that is furthest along first; then the primary.
    pub sources: Vec<Source>,
}

/// Somebody's right to slots. A file of the shard stands as long as this does: whoever takes slots,
/// or a primary's role, takes a new epoch with them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Empty for a server that is no cluster's.
    pub slots: SlotSet,
    pub owner: Option<NodeId>,
    pub epoch: u64,
}

/// A node that can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub address: SocketAddr,
    pub replica: bool,
    pub engine: Engine,
    pub memory_bytes: u64,
}

impl Shard {
    /// What it owns; empty for a server that is no cluster's.
    pub fn slots(&self) -> SlotSet {
        self.claim.slots.clone()
    }
}

impl Layout {
    /// From what was seen of a cluster; in words why nothing can be relied on now.
    pub fn of(observed: &Observed, cluster: &ClusterName) -> Result<Self, String> {
        let overview = Overview::new(observed, cluster);
        if overview.views.len() > 1 {
            return Err("its nodes don't agree on who owns which slots".to_owned());
        }
        for (slots, what) in [
            (&overview.open, "are half moved"),
            (&overview.contested, "are claimed by two"),
            (&overview.uncovered, "have no owner"),
        ] {
            if !slots.is_empty() {
                return Err(format!("slots {slots} {what}"));
            }
        }
        let shards = overview.shards.iter().map(|shard| {
            let up = |name| observed.nodes.get(name).and_then(|view| Some((view, view.up()?)));
            let (view, primary) =
                shard.primary.as_ref().and_then(up).filter(|(_, up)| up.is_primary()).ok_or_else(
                    || format!("the primary of slots {} doesn't answer", shard.slots),
                )?;
            let mut replicas: Vec<_> = shard.replicas.iter().filter_map(up).collect();
            replicas.retain(|(_, up)| matches!(up.role, Role::Replica { link: Link::InSync, .. }));
            replicas.sort_by_key(|(_, up)| std::cmp::Reverse(up.offset));
            let nodes = replicas.into_iter().chain([(view, primary)]);
            Ok(Shard {
                claim: Claim {
                    slots: shard.slots.clone(),
                    owner: Some(primary.id),
                    epoch: primary.own_row().map_or(0, |row| row.config_epoch),
                },
                offset: primary.offset,
                sources: nodes.map(|(view, up)| source(view, up)).collect(),
            })
        });
        Ok(Self(shards.collect::<Result<_, String>>()?))
    }
}

fn source(view: &NodeView, up: &Up) -> Source {
    Source {
        address: SocketAddr::new(view.address, view.ports.tcp),
        replica: !up.is_primary(),
        engine: up.engine,
        memory_bytes: up.memory.used,
    }
}
