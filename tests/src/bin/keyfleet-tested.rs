//! The `keyfleet` program as the tests run it: built together with them, so that it is never older
//! than what they test.

use std::process::ExitCode;

fn main() -> ExitCode {
    keyfleet::cli::main()
}
