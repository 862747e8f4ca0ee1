//! The `keyfleet` program: see [`keyfleet::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    keyfleet::cli::main()
}
