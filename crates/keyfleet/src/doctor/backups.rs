//! How the backups that guard takes came out.

use fleet::model::{BackupPolicy, ClusterName};

use super::{Check, Verdict};
use crate::backup::{follow, schedule::Record};

/// Commands that are kept later than this are late.
const KEPT_LATE_MS: u64 = 60_000;

/// Of one cluster that has a policy.
pub fn backups(
    cluster: &ClusterName,
    policy: &BackupPolicy,
    record: &Record,
    now_ms: u64,
) -> Check {
    const WHY: &str = "what a disk or a mistake takes is only there again where a backup is";
    let ago = |at_ms: u64| format!("{} min ago", now_ms.saturating_sub(at_ms) / 60_000);
    let last = match &record.last {
        Some(last) => format!("{cluster}: the last is {} ({})", last.id, ago(last.started_ms)),
        None => format!("{cluster}: none was taken yet"),
    };
    let check = match &record.failed {
        None => Check::ok("backups", WHY, last),
        Some(failed) => {
            let found = format!("{last}; {} one failed: {}", ago(failed.started_ms), failed.why);
            Check::ok("backups", WHY, found)
        }
    };
    let late = record.is_late(policy.every_ms, now_ms);
    if record.failed.is_none() && !late {
        return check;
    }
    let verdict = if late { Verdict::Fail } else { Verdict::Warn };
    check.bad(verdict, format!("keyfleet backup {cluster}"))
}

/// Of one cluster whose commands are to be kept.
pub fn kept_commands(cluster: &ClusterName, kept: &follow::State, now_ms: u64) -> Check {
    const WHY: &str =
        "a mistake is undone to the second only where the commands before it are kept";
    let behind_s = now_ms.saturating_sub(kept.until_ms) / 1_000;
    let mut found = match kept.until_ms {
        0 => format!("{cluster}: none yet"),
        _ => format!("{cluster}: up to {behind_s} s ago"),
    };
    for why in [&kept.waiting_for, &kept.broken].into_iter().flatten() {
        found = format!("{found}; {why}");
    }
    let check = Check::ok("kept commands", WHY, found);
    if behind_s * 1_000 <= KEPT_LATE_MS {
        return check;
    }
    check.bad(
        Verdict::Fail,
        "see what holds it up: keyfleet logs; is guard at work? keyfleet status",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::schedule::{Failed, Success};

    #[test]
    fn verdicts() {
        const HOUR: u64 = 3_600_000;
        let policy = BackupPolicy {
            to: "/b".to_owned(),
            every_ms: HOUR,
            keep: None,
            keep_days: None,
            continuous: false,
        };
        let check = |last_ms: Option<u64>, failed: bool, verdict, found: &str| {
            let success =
                |started_ms| Success { id: "id".to_owned(), started_ms, keys: 1, bytes: 1 };
            let failed = failed.then(|| Failed { started_ms: 9 * HOUR, why: "full".to_owned() });
            let record = Record { last: last_ms.map(success), failed };
            let check = backups(&ClusterName::new("cache"), &policy, &record, 10 * HOUR);
            assert_eq!((check.verdict, check.found.as_str()), (verdict, found));
            assert_eq!(check.mend.is_some(), verdict != Verdict::Ok);
        };
        check(None, false, Verdict::Ok, "cache: none was taken yet");
        check(Some(9 * HOUR), false, Verdict::Ok, "cache: the last is id (60 min ago)");
        check(Some(7 * HOUR), false, Verdict::Fail, "cache: the last is id (180 min ago)");
        let failed = "cache: the last is id (120 min ago); 60 min ago one failed: full";
        check(Some(8 * HOUR), true, Verdict::Warn, failed);
        let failed = "cache: none was taken yet; 60 min ago one failed: full";
        check(None, true, Verdict::Fail, failed);
    }
}
