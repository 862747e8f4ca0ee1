//! Ctrl-C and its like.

use tokio::signal::unix::{SignalKind, signal};

use crate::errors::Failure;

/// Waits until somebody wants this process to end (SIGINT, SIGTERM, SIGHUP). Begins to listen at
/// once, not when it is first awaited.
pub fn asked_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| {
        signal(kind)
            .map_err(|error| Failure::environment("cannot listen for signals").because(&error))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
