//! Locks that are never poisoned: what they guard is whole between two statements.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a mutex guards, whoever panicked while they had it.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
