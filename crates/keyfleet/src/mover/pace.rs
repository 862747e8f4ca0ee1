//! How fast keys are moved: at full speed, or as fast as the servers' other clients hardly notice.
//!
//! While a node is at a MIGRATE it serves nobody, so what clients wait is about what a burst takes.
//! At a gentle pace a burst is so heavy that it takes a set time, by what the last ones took. Both
//! ends are asked for a PING on connections of their own every few milliseconds: as long as they
//! answer about as fast as before the move, the set time grows; as soon as they don't, it halves; at
//! its least, there are pauses. There is a least because servers also get slow without our doing, and
//! a move that never ends helps nobody.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet::model::Pace;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{Connection, Login, connect, slots::Fault};

/// The weight of one burst at full pace; see `keys` for what weight is.
const FULL_BURST: u64 = 4 << 20;
/// Keys in a chunk at full pace, at the most.
const FULL_CHUNK_KEYS: usize = 16_384;
const FULL_CHUNK_SLOTS: usize = 256;

/// The same at a gentle pace: opening and closing slots keeps the nodes busy, too.
const GENTLE_CHUNK_KEYS: usize = 512;
const GENTLE_CHUNK_SLOTS: usize = 8;
/// One burst's weight at a gentle pace: what the set time makes of it is kept within these.
const GENTLE_BURST_MIN: u64 = 32 << 10;
const GENTLE_BURST_MAX: u64 = 2 << 20;
/// The set time of one burst.
const BURST_TIME_START: Duration = Duration::from_micros(250);
const BURST_TIME_MIN: Duration = Duration::from_micros(200);
const BURST_TIME_MAX: Duration = Duration::from_millis(2);
const BURST_TIME_STEP: Duration = Duration::from_micros(20);
/// Nanoseconds that a unit of weight takes, until it is known.
const PACE_NS_START: f64 = 5.0;
/// A pause, as a share of the burst before it.
const PAUSE_SHARE: f64 = 0.25;
/// Shorter pauses are saved up: timers tick in milliseconds.
const PAUSE_MIN: Duration = Duration::from_millis(2);

const PROBE_EVERY: Duration = Duration::from_millis(2);
const PROBE_TIME_MAX: Duration = Duration::from_secs(10);
/// For how long the ends are watched before the move.
const BASELINE_TIME: Duration = Duration::from_millis(200);
/// Probes that a verdict needs, both ends' together.
const WINDOW: usize = 30;
/// How much later than before the move an answer may come, at the least.
const SLOWER_US_MAX: u32 = 200;

/// Decides how much goes out in one write, and how long to rest after it.
pub(super) struct Pacer {
    /// None at full pace.
    gentle: Option<Gentle>,
}

struct Gentle {
    probes: Vec<JoinHandle<()>>,
    /// What the probes waited since the last verdict; microseconds.
    waits_us: Arc<Mutex<Vec<u32>>>,
    limit_us: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The set time of one burst.
    time: Duration,
    /// What any burst takes: the way to the source and on to the target.
    fixed: Duration,
    /// Nanoseconds beside it that a unit of weight takes, by the last bursts.
    pace_ns: f64,
    pausing: bool,
    owed: Duration,
}

impl Drop for Gentle {
    fn drop(&mut self) {
        self.probes.iter().for_each(JoinHandle::abort);
    }
}

impl Pacer {
    /// At a gentle pace this watches the two ends for a moment first.
    pub async fn start(
        pace: Pace,
        ends: [SocketAddr; 2],
        login: Option<&Login>,
    ) -> Result<Self, Fault> {
        if pace == Pace::Full {
            return Ok(Self { gentle: None });
        }
        let waits_us = Arc::new(Mutex::new(Vec::new()));
        let mut probes = Vec::new();
        for end in ends {
            let link = connect(end, login).await?;
            probes.push(tokio::spawn(probe(link, Arc::clone(&waits_us))));
        }
        sleep(BASELINE_TIME).await;
        let fastest = waits_us.lock().ok().and_then(|waits| waits.iter().min().copied());
        let fixed = Duration::from_micros(u64::from(fastest.unwrap_or_default()) * 2);
        let before = take_slow(&waits_us, 1).unwrap_or_default();
        let limit_us = (before * 2).max(before + SLOWER_US_MAX);
        let state = Mutex::new(State::new(fixed));
        Ok(Self { gentle: Some(Gentle { probes, waits_us, limit_us, state }) })
    }

    /// How many slots to open next, after a chunk of so many slots and keys.
    pub fn chunk_slots(&self, slots: usize, keys: usize) -> usize {
        let (keys_max, slots_max) = match self.gentle {
            None => (FULL_CHUNK_KEYS, FULL_CHUNK_SLOTS),
            Some(_) => (GENTLE_CHUNK_KEYS, GENTLE_CHUNK_SLOTS),
        };
        (keys_max * slots / keys.max(1)).clamp(1, slots_max)
    }

    /// The weight of the next burst.
    pub fn burst_weight(&self) -> u64 {
        let gentle = self.gentle.as_ref().and_then(|gentle| gentle.state.lock().ok());
        gentle.map_or(FULL_BURST, |state| state.burst_weight())
    }

    /// Called after each burst with its weight and the time it took.
    pub async fn after_burst(&self, weight: u64, took: Duration) {
        let Some(gentle) = &self.gentle else { return };
        let pause = gentle.pause_after(weight, took);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

impl Gentle {
    fn pause_after(&self, weight: u64, took: Duration) -> Duration {
        let Ok(mut state) = self.state.lock() else { return Duration::ZERO };
        state.learn(weight, took);
        if let Some(slow_us) = take_slow(&self.waits_us, WINDOW) {
            state.judge(slow_us <= self.limit_us);
        }
        if state.pausing {
            state.owed += took.mul_f64(PAUSE_SHARE);
        }
        if state.owed < PAUSE_MIN { Duration::ZERO } else { std::mem::take(&mut state.owed) }
    }
}

impl State {
    fn new(fixed: Duration) -> Self {
        Self {
            time: BURST_TIME_START,
            fixed,
            pace_ns: PACE_NS_START,
            pausing: false,
            owed: Duration::ZERO,
        }
    }

    fn burst_weight(&self) -> u64 {
        let weight = self.time.as_nanos() as f64 / self.pace_ns;
        (weight as u64).clamp(GENTLE_BURST_MIN, GENTLE_BURST_MAX)
    }

    fn learn(&mut self, weight: u64, took: Duration) {
        let pace_ns = took.saturating_sub(self.fixed).as_nanos() as f64 / weight.max(1) as f64;
        // One burst that was held up by something else shall not count for much.
        let pace_ns = pace_ns.clamp(self.pace_ns / 4.0, self.pace_ns * 4.0);
        self.pace_ns += (pace_ns - self.pace_ns) * 0.05;
    }

    /// More while it goes well, at once much less where it doesn't.
    fn judge(&mut self, well: bool) {
        self.pausing = !well && self.time == BURST_TIME_MIN;
        self.time = if well {
            (self.time + BURST_TIME_STEP).min(BURST_TIME_MAX)
        } else {
            (self.time / 2).max(BURST_TIME_MIN)
        };
    }
}

/// The wait that one probe in ten exceeded, of at least `count` probes since the last call.
fn take_slow(waits_us: &Mutex<Vec<u32>>, count: usize) -> Option<u32> {
    let mut waits = waits_us.lock().ok()?;
    if waits.len() < count {
        return None;
    }
    waits.sort_unstable();
    let slow = waits.get(waits.len() * 9 / 10).copied();
    waits.clear();
    slow
}

async fn probe(mut link: Connection, waits_us: Arc<Mutex<Vec<u32>>>) {
    loop {
        sleep(PROBE_EVERY).await;
        let started = Instant::now();
        if link.call_within(PROBE_TIME_MAX, ["PING"]).await.is_err() {
            return;
        }
        if let Ok(mut waits) = waits_us.lock() {
            waits.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_come_to_take_the_set_time() {
        for ns_for_weight in [1, 10, 40] {
            let mut state = State::new(Duration::from_micros(50));
            for _ in 0..200 {
                let weight = state.burst_weight();
                let took = 50_000 + weight * ns_for_weight;
                state.learn(weight, Duration::from_nanos(took));
            }
            let takes = Duration::from_nanos(state.burst_weight() * ns_for_weight);
            let lightest = Duration::from_nanos(GENTLE_BURST_MIN * ns_for_weight);
            let expected = BURST_TIME_START.max(lightest);
            let share = takes.as_secs_f64() / expected.as_secs_f64();
            assert!((0.7..1.5).contains(&share), "{takes:?}, not {expected:?}");
        }
    }

    #[test]
    fn one_held_up_burst_counts_for_little() {
        let mut state = State::new(Duration::ZERO);
        let before = state.burst_weight();
        state.learn(GENTLE_BURST_MIN, Duration::from_secs(1));
        assert!(state.burst_weight() > before / 2);
    }

    #[test]
    fn slow_answers_halve_the_time_then_pause() {
        let mut state = State { time: BURST_TIME_MIN * 4, ..State::new(Duration::ZERO) };
        state.judge(false);
        assert_eq!((state.time, state.pausing), (BURST_TIME_MIN * 2, false));
        state.judge(false);
        state.judge(false);
        assert_eq!((state.time, state.pausing), (BURST_TIME_MIN, true));
        state.judge(true);
        assert_eq!((state.time, state.pausing), (BURST_TIME_MIN + BURST_TIME_STEP, false));
    }

    #[test]
    fn the_slow_tenth() {
        let waits = Mutex::new((1..=100).rev().collect());
        assert_eq!(take_slow(&waits, 101), None);
        assert_eq!(take_slow(&waits, 100), Some(91));
        assert_eq!(take_slow(&waits, 1), None);
    }
}
