//! The flags of `keyfleet proxy` that say what it answers from its own memory.

use fleet::{model, spec};
use proxy::engine::{Micros, NearCache};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reads, of a cluster")]
pub(super) struct NearArgs {
    /// So much memory, such as 64MiB, for the keys that are read most: their GETs are answered from there,
    /// and the servers say when one of them changes
    #[arg(long, value_name = "SIZE", 
        value_parser = |text: &str| size(text, model::NearCache::BYTES_MIN), conflicts_with = "twemproxy")]
    near_cache: Option<u64>,
    /// What is answered from there is not older
    #[arg(long, value_name = "SECONDS", default_value_t = model::NearCache::AGE_S,
        value_parser = clap::value_parser!(u32).range(1..=3600), conflicts_with = "twemproxy")]
    near_cache_age: u32,
}

impl NearArgs {
    /// What they say.
    pub(super) fn read(&self) -> Option<NearCache> {
        let age = Micros::from(self.near_cache_age) * 1_000_000;
        self.near_cache.map(|bytes| NearCache { bytes_max: bytes as usize, age })
    }
}

/// Bytes, of which so many are needed.
pub(super) fn size(text: &str, least: u64) -> Result<u64, String> {
    let bytes = spec::parse_size(text).ok_or("not a size, such as 64MiB")?.0;
    let enough = bytes >= least;
    enough.then_some(bytes).ok_or_else(|| format!("{}MiB or more is wanted", least >> 20))
}
