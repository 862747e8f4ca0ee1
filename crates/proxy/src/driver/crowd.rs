//! How many clients there may be, counted over all loops.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// So many clients at once.
#[derive(Debug)]
pub struct Crowd {
    max: AtomicUsize,
    now: AtomicUsize,
}

impl Crowd {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: AtomicUsize::new(max), now: AtomicUsize::new(0) })
    }

    /// Another number from now on; who is there stays.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Relaxed);
    }

    /// A place for one more, for as long as it is kept.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Seat> {
        let max = self.max.load(Relaxed);
        let one_more = |now| (now < max).then_some(now + 1);
        self.now.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Seat(Arc::clone(self)))
    }
}

/// See [`Crowd::enter`].
#[derive(Debug)]
pub(super) struct Seat(Arc<Crowd>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_given_back() {
        let crowd = Crowd::new(2);
        let (first, second) = (crowd.enter(), crowd.enter());
        assert!(first.is_some() && second.is_some() && crowd.enter().is_none());
        drop(first);
        assert!(crowd.enter().is_some());
        crowd.set_max(1);
        assert!(crowd.enter().is_none());
        drop(second);
        assert!(crowd.enter().is_some());
        assert!(Crowd::new(0).enter().is_none());
    }
}
