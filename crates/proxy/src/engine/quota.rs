//! How much clients may ask together: of one user, or all of them. Who asks more is read later.
//!
//! One quota is shared by all engines: its state is a point in time per resource, which is moved once
//! for each read that a limited client's bytes came with, not for each request. What came is served;
//! then nothing is read from the client until what it took is within the rate again.
//!
//! Deliberately absent: refusing requests. A client that waits sees a slow server, as it would see
//! one that is too busy.
//! Source: the generic cell rate algorithm (ITU-T I.371), which is a token bucket without a timer.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use super::{
    ClientId, Core, Engine, Micros,
    client::{Client, Ending, Hold},
};

/// What the clients of one user, or all clients, may have. Without a figure: as much as they like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    pub clients_max: Option<usize>,
    pub requests_per_second: Option<u64>,
    /// Of requests and replies together.
    pub bytes_per_second: Option<u64>,
}

/// An [`Allowance`], and what of it is taken.
#[derive(Debug)]
pub struct Quota {
    clients_max: AtomicUsize,
    requests: Bucket,
    bytes: Bucket,
    clients: AtomicUsize,
    requests_ever: AtomicU64,
    bytes_ever: AtomicU64,
    delays_ever: AtomicU64,
}

/// How much was taken of a [`Quota`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Now.
    pub clients: usize,
    /// Ever.
    pub requests: u64,
    pub bytes: u64,
    /// How often a client was read later because of it.
    pub delays: u64,
}

impl Quota {
    pub fn new(allowance: Allowance) -> Self {
        Self {
            clients_max: AtomicUsize::new(allowance.clients_max.unwrap_or(usize::MAX)),
            requests: Bucket::new(allowance.requests_per_second),
            bytes: Bucket::new(allowance.bytes_per_second),
            clients: AtomicUsize::new(0),
            requests_ever: AtomicU64::new(0),
            bytes_ever: AtomicU64::new(0),
            delays_ever: AtomicU64::new(0),
        }
    }

    /// Allows what `other` does from now on. Clients that are there stay, too many of them too.
    pub fn allow_as(&self, other: &Self) {
        self.clients_max.store(other.clients_max.load(Relaxed), Relaxed);
        for (own, new) in [(&self.requests, &other.requests), (&self.bytes, &other.bytes)] {
            own.per_second.store(new.per_second.load(Relaxed), Relaxed);
        }
    }

    pub fn taken(&self) -> Taken {
        Taken {
            clients: self.clients.load(Relaxed),
            requests: self.requests_ever.load(Relaxed),
            bytes: self.bytes_ever.load(Relaxed),
            delays: self.delays_ever.load(Relaxed),
        }
    }

    /// Takes so much; how long until that is within the rates.
    fn take(&self, requests: u64, bytes: u64, now: Micros) -> Micros {
        self.requests_ever.fetch_add(requests, Relaxed);
        self.bytes_ever.fetch_add(bytes, Relaxed);
        self.requests.take(requests, now).max(self.bytes.take(bytes, now))
    }
}

/// So much may come at once, in µs of the rate.
const BURST: Micros = 100_000;

#[derive(Debug)]
struct Bucket {
    /// 0: as much as they like.
    per_second: AtomicU64,
    /// When all that was taken is within the rate, in ns.
    paid_at: AtomicU64,
}

impl Bucket {
    fn new(per_second: Option<u64>) -> Self {
        let per_second = per_second.map_or(0, |rate| rate.max(1));
        Self { per_second: AtomicU64::new(per_second), paid_at: AtomicU64::new(0) }
    }

    fn take(&self, amount: u64, now: Micros) -> Micros {
        let per_second = u128::from(self.per_second.load(Relaxed));
        let Some(price) = (u128::from(amount) * 1_000_000_000).checked_div(per_second) else {
            return 0;
        };
        let price = u64::try_from(price).unwrap_or(u64::MAX);
        let now = now.saturating_mul(1_000);
        let paid =
            |paid_at: u64| paid_at.max(now.saturating_sub(BURST * 1_000)).saturating_add(price);
        let before = self.paid_at.fetch_update(Relaxed, Relaxed, |at| Some(paid(at)));
        let at = paid(before.unwrap_or_else(|same| same));
        at.saturating_sub(now).div_ceil(1_000)
    }
}

/// A client's part in its user's quota, for as long as it is kept.
pub(super) struct Part(Arc<Quota>);

impl Part {
    /// None: there are as many as may be.
    pub fn enter(quota: &Arc<Quota>) -> Option<Self> {
        let most = quota.clients_max.load(Relaxed);
        let one_more = |now| (now < most).then_some(now + 1);
        quota.clients.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Self(Arc::clone(quota)))
    }

    pub fn is_of(&self, quota: &Arc<Quota>) -> bool {
        Arc::ptr_eq(&self.0, quota)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}

/// Clients that are read later, and when.
#[derive(Default)]
pub(super) struct Later(Vec<(Micros, ClientId)>);

impl Later {
    pub fn due(&self) -> Option<Micros> {
        self.0.iter().map(|(due, _)| *due).min()
    }

    pub fn holds(&self, id: ClientId) -> bool {
        self.0.iter().any(|(_, client)| *client == id)
    }

    pub fn forget(&mut self, id: ClientId) {
        self.0.retain(|(_, client)| *client != id);
    }
}

impl Core {
    /// What a client has to do with quotas after a change of its user.
    pub(super) fn set_part(&self, client: &mut Client, part: Option<Part>) {
        client.limited = part.is_some() || self.limits.quota.is_some();
        // What it asked before was somebody else's.
        client.charged = client.asked();
        client.part = part;
    }

    /// A limited client took so much of what it was told.
    #[cold]
    pub(super) fn charge_reply(&self, client: &Client, bytes: usize) {
        let own = client.part.as_ref().map(|part| &part.0);
        for quota in own.into_iter().chain(&self.limits.quota) {
            quota.take(0, bytes as u64, self.now);
        }
    }

    /// A limited client's bytes were served as far as that goes now.
    #[cold]
    pub(super) fn charge(&mut self, id: ClientId, client: &mut Client, bytes: usize) {
        let asked = client.asked();
        let requests = u64::from(asked.wrapping_sub(client.charged));
        client.charged = asked;
        let own = client.part.as_ref().map(|part| &part.0);
        let now = self.now;
        let mut wait = 0;
        for quota in own.into_iter().chain(&self.limits.quota) {
            let longer = quota.take(requests, bytes as u64, now);
            if longer > 0 {
                quota.delays_ever.fetch_add(1, Relaxed);
            }
            wait = wait.max(longer);
        }
        if wait > 0 && client.hold == Hold::None && client.ending == Ending::No {
            client.hold = Hold::Quota;
            self.later.0.push((now.saturating_add(wait), id));
        }
    }
}

impl Engine {
    /// Goes on with clients that waited long enough.
    pub(super) fn read_delayed(&mut self) {
        let now = self.core.now;
        let Core { later, turn, .. } = &mut self.core;
        later.0.retain(|(due, id)| {
            if *due <= now {
                turn.woken.push(*id);
            }
            *due > now
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        // What is taken when, and how long that lasts.
        let check = |per_second: u64, takes: &[(Micros, u64, Micros)]| {
            let bucket = Bucket::new(Some(per_second));
            for (now, amount, expected) in takes {
                assert_eq!(bucket.take(*amount, *now), *expected, "{per_second} {takes:?}");
            }
        };
        check(10, &[(1_000_000, 1, 0), (1_000_000, 1, 100_000), (1_100_000, 0, 0)]);
        check(10, &[(5_000_000, 11, 1_000_000), (5_500_000, 0, 500_000), (6_000_000, 0, 0)]);
        // What was not taken is not kept for later, but for a burst.
        check(1_000, &[(9_000_000, 100, 0), (9_000_000, 1, 1_000)]);
        check(3_000_000, &[(0, 3_000_000, 1_000_000), (0, 1, 1_000_001)]);
        check(1, &[(0, u64::MAX, u64::MAX / 1_000 + 1)]);
    }

    #[test]
    fn parts_are_given_back() {
        let quota = Allowance { clients_max: Some(1), ..Allowance::default() };
        let quota = Arc::new(Quota::new(quota));
        let first = Part::enter(&quota);
        assert!(first.is_some() && Part::enter(&quota).is_none());
        drop(first);
        assert_eq!(quota.taken().clients, 0);
        assert!(Part::enter(&quota).is_some());
    }

    #[test]
    fn limits_change() {
        let slow = Allowance { requests_per_second: Some(10), ..Allowance::default() };
        let [quota, slow] = [Allowance::default(), slow].map(Quota::new);
        assert_eq!(quota.take(100, 1, 9_000_000), 0);
        quota.allow_as(&slow);
        assert_eq!(quota.take(11, 1, 9_000_000), 1_000_000);
        quota.allow_as(&Quota::new(Allowance::default()));
        assert_eq!(quota.take(100, 1, 9_000_000), 0);
    }
}
