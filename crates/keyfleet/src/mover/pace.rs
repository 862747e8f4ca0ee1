//! How fast keys are moved: at full speed, or as fast as the servers' other clients hardly notice.

use std::time::Duration;

use fleet::model::Pace;

/// Weight of one burst at full pace; see `keys` for what weight is.
const FULL_BURST_WEIGHT: u64 = 4 << 20;

/// Decides how much goes out in one write, and how long to rest after it.
pub(super) struct Pacer {
    pace: Pace,
}

impl Pacer {
    pub fn new(pace: Pace) -> Self {
        Self { pace }
    }

    /// The weight of the next burst.
    pub fn burst_weight(&self) -> u64 {
        match self.pace {
            Pace::Full => FULL_BURST_WEIGHT,
            Pace::Gentle => 64 << 10,
        }
    }

    /// Called after each burst with the time it took.
    pub async fn after_burst(&self, _took: Duration) {}
}
