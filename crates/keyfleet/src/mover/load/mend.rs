//! Sends again, in order, what could not be done where or when it was sent.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use protocol::{Slot, resp::ServerError};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, sleep},
};

use super::{
    LoadError, Mark, Shared,
    lane::{Batch, Sent},
    locked,
};

/// What goes before a command that a slot's coming owner is asked to do.
pub(super) const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Between two tries of what can't be done for now.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A command that is to be sent again.
#[derive(Debug)]
pub(super) struct Stray {
    /// Without an ASKING.
    pub command: Vec<u8>,
    pub slot: Slot,
    pub offset: u64,
    /// Who didn't do it.
    pub from: SocketAddr,
    pub again: Again,
    /// Since when it could not be done.
    pub since: Option<Instant>,
    pub mark: Mark,
}

/// Where, or when.
#[derive(Debug)]
pub(super) enum Again {
    Moved(SocketAddr),
    Ask(SocketAddr),
    Later(ServerError),
    /// The connection ended before it was answered.
    Lost,
}

/// Mends until the load ends.
pub(super) async fn run(shared: Arc<Shared>, mut strays: mpsc::UnboundedReceiver<Stray>) {
    let mut pause = PAUSE_MIN;
    while let Some(first) = strays.recv().await {
        let mut found = vec![first];
        while let Ok(stray) = strays.try_recv() {
            found.push(stray);
        }
        let now = Instant::now();
        let mut held_up: Option<(Instant, &Stray)> = None;
        for stray in &mut found {
            if matches!(stray.again, Again::Later(_) | Again::Lost) {
                let since = *stray.since.get_or_insert(now);
                if held_up.is_none_or(|(earliest, _)| since < earliest) {
                    held_up = Some((since, stray));
                }
            }
        }
        if let Some((since, stray)) = held_up {
            let from = stray.from;
            let error = match &stray.again {
                Again::Later(error) => Some(error),
                _ => None,
            };
            let words = error.map_or_else(
                || "the connection broke, or is silent".to_owned(),
                ToString::to_string,
            );
            *locked(&shared.progress.waiting_for) = Some(format!("{from}: {words}"));
            if now - since > shared.options.patience {
                let seconds = (now - since).as_secs();
                shared.stop(match error {
                    Some(error) => {
                        LoadError::Refused { address: from, seconds, source: error.clone() }
                    }
                    None => LoadError::Away { address: from, seconds },
                });
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            // A cluster that can't be asked now may be in a moment.
            let _ = shared.table.refresh().await;
        } else {
            pause = PAUSE_MIN;
            *locked(&shared.progress.waiting_for) = None;
        }
        for stray in &found {
            if let Again::Moved(to) = stray.again {
                shared.table.moved(stray.slot, to);
            }
        }
        if send(&shared, found).await.is_err() {
            return;
        }
    }
}

/// To their lanes, in the order found.
async fn send(shared: &Arc<Shared>, strays: Vec<Stray>) -> Result<(), LoadError> {
    let mut batches: BTreeMap<usize, Batch> = BTreeMap::new();
    for stray in strays {
        let lane = match stray.again {
            Again::Ask(to) => usize::from(shared.table.lane_at(to)),
            _ => match shared.table.lane_of(stray.slot) {
                Ok(lane) => lane,
                Err(error) => {
                    shared.stop(error.clone());
                    return Err(error);
                }
            },
        };
        let asking = matches!(stray.again, Again::Ask(_));
        let batch =
            batches.entry(lane).or_insert_with(|| Batch::new(Mark::new(shared, stray.offset)));
        // One that was sent before may come after a later one.
        batch.mark.cover(stray.offset);
        if asking {
            batch.bytes.extend_from_slice(ASKING);
        }
        batch.bytes.extend_from_slice(&stray.command);
        let end = batch.bytes.len();
        let Stray { slot, offset, since, .. } = stray;
        batch.commands.push(Sent { end, slot, offset, asking, since });
        shared.stray_bytes.fetch_sub(stray.command.len(), Ordering::Relaxed);
        stray.mark.release();
    }
    for (lane, batch) in batches {
        let sender = shared.table.sender(lane, shared, &Handle::current());
        // A closed lane means a load that ends.
        let _ = sender.send(batch).await;
    }
    Ok(())
}
