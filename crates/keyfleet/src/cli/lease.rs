//! The right to change the world, for commands, and who has it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    errors::Failure,
    lease::{Lease, LeaseError},
    store::Store,
};

/// A guard gives way within a step; another command may take long, and its user is better told.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a guard with nothing left to do may take to notice.
const END: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// Waits a little for whoever is at work.
pub async fn take(store: &Store, command: &str) -> Result<Lease, Failure> {
    Ok(Lease::command(store, command, DEADLINE).await?)
}

/// The process id of the guard that is at work.
pub fn guard_pid(store: &Store) -> Result<Option<u32>, Failure> {
    let holder = Lease::holder(store)?;
    Ok(holder.filter(|holder| holder.command == "guard").map(|holder| holder.pid))
}

/// Waits until a process is gone, for a few seconds at the most.
pub async fn wait_for_end(pid: u32) {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let started = Instant::now();
    while process.exists() && started.elapsed() < END {
        tokio::time::sleep(POLL).await;
    }
}

impl From<LeaseError> for Failure {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(error) => error.into(),
            taken @ LeaseError::Taken { .. } => Self::user(taken.to_string())
                .hint("wait until it is done, or end it with Ctrl-C there"),
        }
    }
}
