//! Holds the servers' latency: the more of it a probe sees, the fewer commands are in flight.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{Shared, WINDOW_COMMANDS};
use crate::mover::connect;

/// Between two probes of one server.
const EVERY: Duration = Duration::from_millis(5);
/// Probes after which the window is judged.
const ROUND: usize = 100;
const PROBE_TIME_MAX: Duration = Duration::from_secs(5);
/// The fewest commands in flight: a load that never ends helps nobody.
const WINDOW_MIN: usize = 4;

/// Probes in turn every server that is loaded, until the load ends.
pub(super) async fn run(shared: Arc<Shared>, p99_max: Duration) {
    let mut waits: Vec<Duration> = Vec::new();
    let mut links = Vec::new();
    // Careful at first: the first second must not be the worst.
    shared.window.store(WINDOW_COMMANDS / 16, Ordering::Relaxed);
    loop {
        for address in shared.table.addresses() {
            if !links.iter().any(|(at, _)| *at == address)
                && let Ok(link) = connect(address, shared.options.login.as_ref()).await
            {
                links.push((address, link));
            }
        }
        let mut broken = None;
        for (at, (_, link)) in links.iter_mut().enumerate() {
            let started = Instant::now();
            match link.call_within(PROBE_TIME_MAX, ["PING"]).await {
                Ok(_) => waits.push(started.elapsed()),
                Err(_) => broken = Some(at),
            }
        }
        if let Some(at) = broken {
            links.swap_remove(at);
        }
        if waits.len() >= ROUND {
            waits.sort_unstable();
            let slow = waits.get(waits.len() * 99 / 100).copied().unwrap_or_default();
            waits.clear();
            let window = shared.window.load(Ordering::Relaxed);
            shared.window.store(steered(window, slow <= p99_max), Ordering::Relaxed);
        }
        sleep(EVERY).await;
    }
}

/// More while it goes well, at once much less where it doesn't.
fn steered(window: usize, well: bool) -> usize {
    let window = if well { window + window / 8 + 1 } else { window / 2 };
    window.clamp(WINDOW_MIN, WINDOW_COMMANDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halved_where_slow_and_grown_where_well() {
        let check = |window, well, expected| assert_eq!(steered(window, well), expected);
        check(256, false, 128);
        check(256, true, 289);
        check(5, false, WINDOW_MIN);
        check(WINDOW_COMMANDS, true, WINDOW_COMMANDS);
    }
}
