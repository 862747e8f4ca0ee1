//! Which keys are carried, and what is said of those that aren't.

use std::sync::atomic::Ordering::Relaxed;

use protocol::rdb::{Key, Lost};

use super::{
    Watch,
    filter::{Asked, Filter},
    report::{Tally, Troubles},
};
use crate::observe::now_ms;

/// Keys for which the clock is looked at once. Those whose time is over since, the target drops.
const KEYS_AT_A_TIME: u64 = 256;

/// Why keys of other databases stay behind.
pub(super) const NO_DB: &str = "a cluster has only database 0: --db-map puts others into it";

/// See the module.
pub(super) struct Sieve<'a> {
    filter: &'a Filter,
    /// The target is a cluster.
    cluster: bool,
    watch: &'a Watch,
    now_ms: u64,
}

impl<'a> Sieve<'a> {
    pub fn new(filter: &'a Filter, cluster: bool, watch: &'a Watch) -> Self {
        Self { filter, cluster, watch, now_ms: now_ms() }
    }

    /// Is a key with a value of so many bytes carried? Counts it where it isn't.
    pub fn takes(&mut self, key: &Key<'_>, bytes: u64, tally: &mut Tally) -> bool {
        if self.watch.keys.fetch_add(1, Relaxed).is_multiple_of(KEYS_AT_A_TIME) {
            self.now_ms = now_ms();
        }
        let left_ms = key.expire_at_ms.map(|at| at.saturating_sub(self.now_ms));
        let data_type = key.encoding.data_type();
        let asked = Asked { db: key.db, name: &key.name, data_type, left_ms, bytes };
        if !self.filter.takes(&asked) {
            tally.filtered += 1;
            return false;
        }
        if left_ms == Some(0) {
            tally.expired += 1;
            return false;
        }
        if self.cluster && self.filter.mapped(key.db) != 0 {
            tally.troubles.add(&key.name, format!("is in database {}; {NO_DB}", key.db));
            return false;
        }
        true
    }
}

/// Says what of a key's value the target has no place for.
pub(super) fn name_lost(key: &Key<'_>, lost: Lost, troubles: &mut Troubles) {
    let mut add = |why| troubles.add(&key.name, why);
    if lost.field_ttls {
        add("was carried, but the target has no fields that end: they stay");
    }
    if lost.unowned {
        add("was carried without the entries that consumers gave back");
    }
    if lost.idempotence {
        add("was carried without the ids of its producers");
    }
}
