//! The engine moves the slots by itself: `CLUSTER MIGRATESLOTS` (Valkey from 9.0) copies them as to
//! a replica and switches their owner at once, or undoes it all where it fails.

use std::time::Duration;

use protocol::{SlotSet, Value};
use tokio::time::{Instant, sleep};

use super::{
    Link,
    keys::REPLY_TIME_MAX,
    slots::{Fault, Report, SlotMove},
};

const POLL: Duration = Duration::from_millis(50);
/// A job whose state doesn't change for so long is cancelled.
const STANDSTILL_MAX: Duration = Duration::from_secs(120);
/// How often a failed job is begun again before the slots are moved key by key: writes to them at
/// full speed can make every attempt fail (seen up to Valkey 9.1 with I/O threads).
const ATTEMPTS: u32 = 2;

/// One entry of CLUSTER GETSLOTMIGRATIONS.
/// Source: the command's documentation.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    name: String,
    state: String,
    message: String,
    /// Grows with what is sent; any change is a sign of life.
    update: Vec<i64>,
}

/// Moves slots that the source owns; on an error none has moved.
pub(super) async fn migrate_slots(
    job: &SlotMove,
    slots: &SlotSet,
    source: &mut Link,
    report: &Report<'_>,
) -> Result<(), Fault> {
    let mut attempt = 1;
    loop {
        match migrate_once(job, slots, source).await {
            Ok(()) => {
                report.add(slots.len(), 0, 0);
                return Ok(());
            }
            Err(Fault::Atomic(_)) if attempt < ATTEMPTS => attempt += 1,
            Err(fault) => return Err(fault),
        }
    }
}

async fn migrate_once(job: &SlotMove, slots: &SlotSet, source: &mut Link) -> Result<(), Fault> {
    let node = source.node();
    // A job for these slots may be under way since a former run: then it is waited for.
    let wanted = slots_text(slots);
    let mut known = jobs(source, &wanted).await?;
    known.retain(|job| ended(&job.state).is_some());
    if jobs(source, &wanted).await?.len() == known.len() {
        let to = job.to.id.to_string();
        let mut args = vec!["CLUSTER".to_owned(), "MIGRATESLOTS".into(), "SLOTSRANGE".into()];
        for (first, last) in slots.ranges() {
            args.extend([first.to_string(), last.to_string()]);
        }
        args.extend(["NODE".into(), to]);
        let reply = source.call(&args, REPLY_TIME_MAX).await?;
        reply.into_result().map_err(|error| Fault::Atomic(error.to_string()))?;
    }
    let mut last = None;
    let mut since = Instant::now();
    loop {
        let all = jobs(source, &wanted).await?;
        let current = all.into_iter().find(|job| known.iter().all(|old| old.name != job.name));
        let Some(current) = current else {
            return Err(Fault::Atomic(format!("{node} has forgotten the job")));
        };
        match ended(&current.state) {
            Some(true) => return Ok(()),
            Some(false) => {
                return Err(Fault::Atomic(format!("{}: {}", current.state, current.message)));
            }
            None => {}
        }
        if last.as_ref() != Some(&current) {
            last = Some(current);
            since = Instant::now();
        } else if since.elapsed() > STANDSTILL_MAX {
            // Nothing else can be in migration there by our hand: one step a pair of nodes.
            source.call(["CLUSTER", "CANCELSLOTMIGRATIONS"], REPLY_TIME_MAX).await?;
            return Err(Fault::Atomic("it came to a standstill".into()));
        }
        sleep(POLL).await;
    }
}

/// Whether a state is final, and if so, whether it is success.
fn ended(state: &str) -> Option<bool> {
    match state {
        "success" => Some(true),
        "failed" | "cancelled" => Some(false),
        _ => None,
    }
}

/// As GETSLOTMIGRATIONS writes ranges: `0-100 200-200`.
fn slots_text(slots: &SlotSet) -> String {
    let ranges = slots.ranges().iter().map(|(first, last)| format!("{first}-{last}"));
    ranges.collect::<Vec<String>>().join(" ")
}

/// The source's jobs for exactly these slots, finished ones too.
async fn jobs(source: &mut Link, slots: &str) -> Result<Vec<Job>, Fault> {
    let command = "CLUSTER GETSLOTMIGRATIONS";
    let node = source.node();
    let reply = source.call(["CLUSTER", "GETSLOTMIGRATIONS"], REPLY_TIME_MAX).await?;
    let reply = reply.into_result().map_err(|error| Fault::refused(node, command, error))?;
    let entries = reply.as_array().ok_or(Fault::Strange { node, command })?;
    Ok(entries.iter().filter_map(|entry| read_job(entry, slots)).collect())
}

fn read_job(entry: &Value, slots: &str) -> Option<Job> {
    let fields = entry.pairs()?;
    let field = |name: &str| {
        let pair = fields.iter().find(|(key, _)| key.as_str() == Some(name));
        pair.map(|(_, value)| *value)
    };
    let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| field(name).and_then(Value::as_integer).unwrap_or_default();
    let ours = text("operation") == "EXPORT" && text("slot_ranges") == slots;
    ours.then(|| Job {
        name: text("name"),
        state: text("state"),
        message: text("message"),
        update: ["last_update_time", "last_ack_time", "remaining_repl_size"].map(number).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: &str, operation: &str, slots: &str) -> Value {
        let fields = ["name", "5d1f", "operation", operation, "slot_ranges", slots, "state", state];
        Value::Array(fields.iter().map(|text| Value::Bulk(text.as_bytes().to_vec())).collect())
    }

    #[test]
    fn jobs_are_read() {
        let check = |entry: &Value, expected: Option<Option<bool>>| {
            let job = read_job(entry, "0-100 200-200");
            assert_eq!(job.map(|job| ended(&job.state)), expected);
        };
        check(&entry("success", "EXPORT", "0-100 200-200"), Some(Some(true)));
        check(&entry("failed", "EXPORT", "0-100 200-200"), Some(Some(false)));
        check(&entry("snapshotting", "EXPORT", "0-100 200-200"), Some(None));
        check(&entry("success", "IMPORT", "0-100 200-200"), None);
        check(&entry("success", "EXPORT", "0-100"), None);
        check(&Value::Null, None);
    }

    #[test]
    fn ranges_as_the_engine_writes_them() {
        let slots: SlotSet = "0-100,200".parse().unwrap();
        assert_eq!(slots_text(&slots), "0-100 200-200");
    }
}
