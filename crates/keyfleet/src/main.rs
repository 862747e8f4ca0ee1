//! The `keyfleet` program: see [`keyfleet::cli`].

use std::process::ExitCode;

/// The system's allocator raises its own thresholds with every large buffer that is freed, and keeps
/// ever more; this one gives back what isn't used, and needs no call for that.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    keyfleet::cli::main()
}
