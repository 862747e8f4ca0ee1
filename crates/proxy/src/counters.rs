//! Figures that one thread writes and any thread reads, without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only its one writer may call it: it is a load and a store, not an atomic addition.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// Only its one writer may call it.
    #[inline]
    pub fn sub(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    /// Only its one writer may call it.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Durations in µs by power of two, each in four: at most 19 % off.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum: Counter,
}

const BUCKETS: usize = 128;

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Counter::default()), sum: Counter::default() }
    }
}

/// Which bucket a duration falls into.
#[inline]
fn bucket(micros: u64) -> usize {
    let value = micros.max(4);
    let power = value.ilog2() as usize;
    let quarter = (value >> (power - 2)) as usize & 3;
    let index = if micros < 4 { micros as usize } else { (power - 1) * 4 + quarter };
    index.min(BUCKETS - 1)
}

/// The first duration, in µs, that is beyond the bucket.
pub fn bucket_end(index: usize) -> u64 {
    if index < 4 {
        return index as u64 + 1;
    }
    let (power, quarter) = (index / 4 + 1, index as u64 % 4);
    (1 << power) + ((quarter + 1) << (power - 2))
}

impl Histogram {
    /// Only its one writer may call it.
    #[inline]
    pub fn record(&self, micros: u64) {
        if let Some(counter) = self.buckets.get(bucket(micros)) {
            counter.add(1);
        }
        self.sum.add(micros);
    }

    /// How many durations each bucket holds; see [`bucket_end`].
    pub fn counts(&self) -> Vec<u64> {
        self.buckets.iter().map(Counter::get).collect()
    }

    /// All durations together, in µs.
    pub fn sum_micros(&self) -> u64 {
        self.sum.get()
    }
}

/// What happened to one server, of one thread.
#[derive(Debug, Default)]
pub struct ServerCounters {
    pub requests: Counter,
    pub request_bytes: Counter,
    pub responses: Counter,
    pub response_bytes: Counter,
    /// Connections, now and ever.
    pub connections: Counter,
    pub connections_ever: Counter,
    /// Connections that ended: closed by the server, broken, timed out.
    pub ended: Counter,
    pub broken: Counter,
    pub timed_out: Counter,
    /// When it was last ejected, in µs of the engine's time; 0: never.
    pub ejected_at: Counter,
    /// From the request's arrival to the reply's, in µs.
    pub latency: Histogram,
}

/// What happened in one pool, of one thread.
#[derive(Debug, Default)]
pub struct PoolCounters {
    /// Connections of clients, now and ever.
    pub clients: Counter,
    pub clients_ever: Counter,
    pub clients_ended: Counter,
    /// Connections that were closed at once, because there were too many.
    pub clients_refused: Counter,
    pub clients_broken: Counter,
    /// Clients that were closed because they didn't read.
    pub clients_unread: Counter,
    /// Clients that were closed because all together held too much.
    pub clients_evicted: Counter,
    pub requests: Counter,
    pub request_bytes: Counter,
    pub response_bytes: Counter,
    /// Requests that were answered with an error of ours.
    pub forward_errors: Counter,
    /// Requests to servers that came of splitting others.
    pub fragments: Counter,
    /// How often a server was ejected.
    pub ejections: Counter,
    /// Redirections that were followed.
    pub redirects: Counter,
    /// Requests that were sent again.
    pub retries: Counter,
    /// Requests that were moved to another connection, behind whose next reply they would have waited.
    pub detours: Counter,
    /// GETs that the near cache answered, and those that it could not.
    pub near_hits: Counter,
    pub near_misses: Counter,
    /// Keys that it dropped because their server said that they changed.
    pub near_invalidations: Counter,
    /// What it takes of memory now.
    pub near_bytes: Counter,
    /// Requests that took too long; see [`crate::engine::SlowLog`].
    pub slow: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_close_and_ordered() {
        for micros in (0..5_000).chain([1 << 20, (1 << 31) + 12_345]) {
            let index = bucket(micros);
            assert!(micros < bucket_end(index), "{micros}");
            assert!(index == 0 || micros >= bucket_end(index - 1), "{micros}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn one_writes_others_read() {
        let histogram = Histogram::default();
        for micros in [1, 1, 5, 100] {
            histogram.record(micros);
        }
        assert_eq!(histogram.counts().iter().sum::<u64>(), 4);
        assert_eq!((histogram.counts()[1], histogram.sum_micros()), (2, 107));
    }
}
