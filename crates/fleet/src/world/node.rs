//! One server process of the model: its life, its disk, its memory and its own view.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use protocol::{Engine, NodeId, SlotSet};

use crate::{
    model::{HostId, Ports},
    observed::{OpenSlots, Process, Row, Table},
};

/// What a data set holds: acknowledged writes one by one, and the bulk that was there before the
/// model began, by size only.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Data {
    /// By slot, the identities of the writes in it.
    pub writes: BTreeMap<u16, BTreeSet<u64>>,
    pub bulk_keys: u64,
    pub bulk_bytes: u64,
}

/// What one modelled write takes.
const WRITE_BYTES: u64 = 100;

impl Data {
    /// How many keys.
    pub fn keys(&self) -> u64 {
        self.bulk_keys + self.writes.values().map(|ids| ids.len() as u64).sum::<u64>()
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        let writes: u64 = self.writes.values().map(|ids| ids.len() as u64).sum();
        self.bulk_bytes + writes * WRITE_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.bulk_keys == 0 && self.bulk_bytes == 0
    }

    /// Takes out what is in `slots`; the bulk counts as evenly spread over the `owned` slots.
    pub fn take(&mut self, slots: &SlotSet, owned: usize) -> Self {
        let mut taken = Self::default();
        for &(first, last) in slots.ranges() {
            let here: Vec<u16> = self.writes.range(first..=last).map(|(slot, _)| *slot).collect();
            for slot in here {
                if let Some(ids) = self.writes.remove(&slot) {
                    taken.writes.insert(slot, ids);
                }
            }
        }
        let share = |amount: u64| {
            if owned == 0 {
                return 0;
            }
            let part = u128::from(amount) * slots.len() as u128 / owned as u128;
            amount.min(u64::try_from(part).unwrap_or(u64::MAX))
        };
        taken.bulk_keys = share(self.bulk_keys);
        taken.bulk_bytes = share(self.bulk_bytes);
        self.bulk_keys -= taken.bulk_keys;
        self.bulk_bytes -= taken.bulk_bytes;
        taken
    }

    /// Adds what `other` holds.
    pub fn merge(&mut self, other: Self) {
        for (slot, ids) in other.writes {
            self.writes.entry(slot).or_default().extend(ids);
        }
        self.bulk_keys += other.bulk_keys;
        self.bulk_bytes += other.bulk_bytes;
    }
}

/// What a node keeps on disk by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Every write (append-only file).
    Append,
    /// A snapshot when it stops in good order.
    Snapshot,
    /// Nothing.
    Nothing,
}

/// A replica's link to its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Not connected since then; None: never was since the process started.
    Down(Option<u64>),
    /// A full copy is under way.
    Until {
        done_ms: u64,
        down_since_ms: Option<u64>,
    },
    InSync,
}

/// A data directory.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Directory {
    /// The name in `nodes.conf`.
    pub id: Option<NodeId>,
    pub data: Arc<Data>,
}

/// One server process for its whole life, with its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub host: HostId,
    pub address: IpAddr,
    pub ports: Ports,
    /// Never `Unknown`: the model knows.
    pub process: Process,
    /// When `process` last changed, or when the server could first be reached.
    pub since_ms: u64,
    /// It reads its data from disk until then.
    pub loading_until_ms: u64,
    pub directory: Directory,
    /// The server's own name; what the directory says while there is no server.
    pub id: NodeId,
    pub data: Arc<Data>,
    pub offset: u64,
    /// Its view, its own row included; kept in `nodes.conf` while there is no server.
    pub table: Arc<Table>,
    pub current_epoch: u64,
    /// The last epoch it voted in.
    pub vote_epoch: u64,
    /// When it last voted for a replica of that primary.
    pub voted_ms: BTreeMap<NodeId, u64>,
    /// Until when it won't hear of a forgotten node.
    pub banned_until_ms: BTreeMap<NodeId, u64>,
    pub sync: Sync,
    pub open: BTreeMap<OpenSlots, SlotSet>,
    pub config: BTreeMap<String, String>,
    /// The spec's users are loaded.
    pub users_current: bool,
    /// Starts in a row that ended before the server answered.
    pub failed_starts: u32,
    pub engine: Engine,
    /// `cluster_state:ok`.
    pub cluster_ok: bool,
    /// A primary doesn't say ok before then (2 s after a start, a while after a minority).
    pub ok_from_ms: u64,
    /// When it will ask for votes to replace its failed primary.
    pub election_at_ms: Option<u64>,
    /// Resident memory above what the data takes.
    pub overhead_bytes: u64,
}

impl Node {
    /// Its own row.
    pub fn own_row(&self) -> Option<&Row> {
        self.table.rows.get(&self.id)
    }

    /// Whom it copies, by its own view.
    pub fn replica_of(&self) -> Option<NodeId> {
        self.own_row().and_then(|row| row.replica_of)
    }

    /// The slots it believes to own.
    pub fn slots(&self) -> SlotSet {
        self.own_row().map(|row| row.slots.clone()).unwrap_or_default()
    }

    /// A row as its own view has it before it met anybody.
    pub fn first_row(address: IpAddr, ports: Ports) -> Row {
        Row {
            ip: Some(address),
            port: ports.tcp,
            replica_of: None,
            config_epoch: 0,
            slots: SlotSet::new(),
            health: crate::observed::Health::Ok,
        }
    }

    /// Does the process answer (given that its host can be reached)?
    pub fn answers(&self, now_ms: u64) -> bool {
        self.process == Process::Running && now_ms >= self.loading_until_ms
    }

    /// What its configuration makes it keep.
    pub fn persistence(&self) -> Persistence {
        let is = |name: &str, wanted: &str| {
            self.config.get(name).is_some_and(|value| value.trim() == wanted)
        };
        if is("appendonly", "yes") {
            Persistence::Append
        } else if is("save", "") {
            Persistence::Nothing
        } else {
            Persistence::Snapshot
        }
    }

    /// Writes to disk what the server keeps there as it goes.
    pub fn append(&mut self) {
        if self.persistence() == Persistence::Append {
            self.directory.data = Arc::clone(&self.data);
        }
    }

    /// A directive that is on unless it says `no`.
    pub fn is_on(&self, directive: &str) -> bool {
        self.config.get(directive).is_none_or(|value| value != "no")
    }
}
