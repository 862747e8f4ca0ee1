//! Ctrl-C and its like.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::errors::Failure;

/// Waits until somebody wants this process to end (SIGINT, SIGTERM, SIGHUP). Begins to listen at
/// once, not when it is first awaited.
pub fn asked_to_stop() -> Result<impl Future<Output = ()>, Failure> {
    asked_to_end(true)
}

/// Likewise; without `hangups`, SIGHUP means something else.
pub fn asked_to_end(hangups: bool) -> Result<impl Future<Output = ()>, Failure> {
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = hangup()?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv(), if hangups => {}
        }
    })
}

/// SIGHUP.
pub fn hangup() -> Result<Signal, Failure> {
    listen(SignalKind::hangup())
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::environment("cannot listen for signals").because(&error))
}
