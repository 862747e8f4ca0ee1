//! How many clients a proxy's limit of open files has room for.
//!
//! Each client is one file. An eighth of all, and 32 at least, is for servers and all else. Who comes
//! beyond that is told so; without files, nobody could be.

use rustix::process::{Resource, getrlimit, setrlimit};

/// So many files are left to all else at least.
const OTHERS_MIN: u64 = 32;

/// How many clients there are files for, after as many are allowed as may be.
pub(super) fn room() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    room_for_clients(files) as usize
}

/// How many clients there is room for.
pub const fn room_for_clients(files: u64) -> u64 {
    let others = if files / 8 > OTHERS_MIN { files / 8 } else { OTHERS_MIN };
    files.saturating_sub(others)
}

/// How many files have room for so many clients.
pub const fn files_for_clients(clients: u64) -> u64 {
    let eighths = clients.saturating_mul(8).div_ceil(7);
    let least = clients.saturating_add(OTHERS_MIN);
    if eighths > least { eighths } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_to_be_enough_is_enough() {
        for clients in (1..3_000).chain([10_000, 65_536, 1_000_000]) {
            let files = files_for_clients(clients);
            assert!(room_for_clients(files) >= clients, "{clients} {files}");
            assert!(room_for_clients(files - 2) < clients, "{clients} {files}");
        }
        assert_eq!(room_for_clients(20), 0);
    }
}
