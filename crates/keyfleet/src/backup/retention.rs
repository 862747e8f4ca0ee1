//! Which backups have had their time.

/// How many are kept, and how long. What neither asks to keep goes; where neither is given, nothing
/// does. The last one always stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many.
    pub keep: Option<u32>,
    /// Those that are not older than so many days.
    pub keep_days: Option<u32>,
}

const DAY_MS: u64 = 86_400_000;

impl Retention {
    /// The names of those that may go. `complete`: each backup's name and when it was begun.
    pub fn outdated(&self, complete: &[(String, u64)], now_ms: u64) -> Vec<String> {
        let mut newest: Vec<&(String, u64)> = complete.iter().collect();
        newest.sort_by_key(|(id, at_ms)| std::cmp::Reverse((*at_ms, id.clone())));
        let kept = |rank: usize, at_ms: u64| {
            let by_count = self.keep.map(|keep| rank < keep as usize);
            let by_age =
                self.keep_days.map(|days| now_ms.saturating_sub(at_ms) <= u64::from(days) * DAY_MS);
            match (by_count, by_age) {
                (None, None) => true,
                (by_count, by_age) => by_count == Some(true) || by_age == Some(true),
            }
        };
        let old = newest.iter().enumerate().skip(1);
        old.filter(|(rank, (_, at_ms))| !kept(*rank, *at_ms))
            .map(|(_, (id, _))| id.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes() {
        // Named by their age in days.
        let now_ms = 100 * DAY_MS;
        let check = |keep, keep_days, ages: &[u64], expected: &[&str]| {
            let complete: Vec<(String, u64)> =
                ages.iter().map(|age| (age.to_string(), now_ms - age * DAY_MS)).collect();
            let retention = Retention { keep, keep_days };
            assert_eq!(retention.outdated(&complete, now_ms), expected, "{retention:?} {ages:?}");
        };
        check(None, None, &[90, 50, 1], &[]);
        check(Some(2), None, &[90, 50, 1], &["90"]);
        check(Some(2), None, &[1, 50, 90], &["90"]);
        check(Some(0), None, &[90, 50], &["90"]);
        check(None, Some(7), &[90, 50, 7], &["50", "90"]);
        // Either reason keeps one.
        check(Some(2), Some(7), &[90, 50, 6, 5, 1], &["50", "90"]);
        check(Some(4), Some(1), &[90, 50, 6, 5, 1], &["90"]);
        // The last good one stays, however old.
        check(None, Some(7), &[90, 91], &["91"]);
        check(Some(1), Some(7), &[], &[]);
    }
}
