#![no_main]

#[path = "../bodies/cluster_text.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|input: &[u8]| body::run(input));
