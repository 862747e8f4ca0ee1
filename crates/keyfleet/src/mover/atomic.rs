//! The engine moves the slots by itself: `CLUSTER MIGRATESLOTS` (Valkey from 9.0) copies them as to
//! a replica and switches their owner at once, or undoes it all where it fails.

use std::{collections::BTreeSet, time::Duration};

use protocol::{SlotSet, Value};
use tokio::time::{Instant, sleep};

use super::{
    ClientError, Connection, REPLY_TIME_MAX,
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
    source: &mut Connection,
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

/// Waits for what the source was told to migrate before, by a run that was interrupted.
pub(super) async fn wait_for_running(source: &mut Connection) -> Result<(), Fault> {
    watch(source, |job| ended(&job.state).is_none()).await.map(|_| ())
}

async fn migrate_once(
    job: &SlotMove,
    slots: &SlotSet,
    source: &mut Connection,
) -> Result<(), Fault> {
    let known: BTreeSet<String> = jobs(source).await?.into_iter().map(|job| job.name).collect();
    let mut args = vec!["CLUSTER".to_owned(), "MIGRATESLOTS".into(), "SLOTSRANGE".into()];
    for (first, last) in slots.ranges() {
        args.extend([first.to_string(), last.to_string()]);
    }
    args.extend(["NODE".into(), job.to.id.to_string()]);
    match source.call_within(REPLY_TIME_MAX, &args).await {
        Err(ClientError::Server { source, .. }) => return Err(Fault::Atomic(source.to_string())),
        result => result?,
    };
    match watch(source, |job| !known.contains(&job.name)).await? {
        Some(job) if ended(&job.state) == Some(true) => Ok(()),
        Some(job) => Err(Fault::Atomic(format!("{}: {}", job.state, job.message))),
        None => Err(Fault::Atomic("the source has forgotten it".into())),
    }
}

/// Watches the first such job until it ends; None where there is none (any more).
async fn watch(
    source: &mut Connection,
    wanted: impl Fn(&Job) -> bool,
) -> Result<Option<Job>, Fault> {
    let mut last: Option<Job> = None;
    let mut since = Instant::now();
    loop {
        let all = jobs(source).await?;
        let current = match &last {
            None => all.into_iter().find(&wanted),
            Some(last) => all.into_iter().find(|job| job.name == last.name),
        };
        let Some(current) = current else { return Ok(None) };
        if ended(&current.state).is_some() {
            return Ok(Some(current));
        }
        if last.as_ref() != Some(&current) {
            last = Some(current);
            since = Instant::now();
        } else if since.elapsed() > STANDSTILL_MAX {
            source.call_within(REPLY_TIME_MAX, ["CLUSTER", "CANCELSLOTMIGRATIONS"]).await?;
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

/// What the source exports or has exported since it started.
async fn jobs(source: &mut Connection) -> Result<Vec<Job>, Fault> {
    let (node, command) = (source.address(), "CLUSTER GETSLOTMIGRATIONS");
    let reply = source.call_within(REPLY_TIME_MAX, ["CLUSTER", "GETSLOTMIGRATIONS"]).await?;
    let entries = reply.as_array().ok_or(Fault::Strange { node, command })?;
    Ok(entries.iter().filter_map(read_job).collect())
}

fn read_job(entry: &Value) -> Option<Job> {
    let fields = entry.pairs()?;
    let field = |name: &str| {
        let pair = fields.iter().find(|(key, _)| key.as_str() == Some(name));
        pair.map(|(_, value)| *value)
    };
    let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| field(name).and_then(Value::as_integer).unwrap_or_default();
    (text("operation") == "EXPORT").then(|| Job {
        name: text("name"),
        state: text("state"),
        message: text("message"),
        update: ["last_update_time", "last_ack_time", "remaining_repl_size"].map(number).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read() {
        let check = |operation: &str, state: &str, expected: Option<Option<bool>>| {
            let fields = ["name", "5d1f", "operation", operation, "state", state];
            let fields = fields.iter().map(|text| Value::Bulk(text.as_bytes().to_vec()));
            let job = read_job(&Value::Array(fields.collect()));
            assert_eq!(job.map(|job| ended(&job.state)), expected);
        };
        check("EXPORT", "success", Some(Some(true)));
        check("EXPORT", "failed", Some(Some(false)));
        check("EXPORT", "snapshotting", Some(None));
        check("IMPORT", "success", None);
        assert_eq!(read_job(&Value::Null), None);
    }
}
