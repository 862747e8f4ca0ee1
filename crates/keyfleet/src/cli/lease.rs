//! The right to change the world, for commands, and who has it.

use std::time::Duration;

use crate::{
    errors::Failure,
    lease::{Lease, LeaseError},
    store::Store,
};

/// A guard gives way within a step; another command may take long, and its user is better told.
const DEADLINE: Duration = Duration::from_secs(10);

/// Waits a little for whoever is at work.
pub async fn take(store: &Store, command: &str) -> Result<Lease, Failure> {
    Ok(Lease::command(store, command, DEADLINE).await?)
}

/// The process id of the guard that is at work.
pub fn guard_pid(store: &Store) -> Result<Option<u32>, Failure> {
    let holder = Lease::holder(store)?;
    Ok(holder.filter(|holder| holder.command == "guard").map(|holder| holder.pid))
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
