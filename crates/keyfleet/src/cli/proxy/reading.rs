//! The flags of `keyfleet proxy` that say where reads go.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    errors::Failure,
    proxy::replicas::{ReadFrom, Reading},
};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reads, of a cluster")]
pub(super) struct ReadingArgs {
    /// Where reads go that are not in a transaction. A client may then not see at once what it wrote
    #[arg(long, value_name = "WHERE", value_enum, default_value_t, conflicts_with = "twemproxy")]
    read_from: ReadFrom,
    /// How old what a replica shows may be, in seconds, to the second
    #[arg(long, value_name = "SECONDS", default_value_t = 10, conflicts_with = "twemproxy")]
    lag_max: u32,
    /// How many bytes of what was written it may not have yet
    #[arg(long, value_name = "BYTES", conflicts_with = "twemproxy")]
    lag_bytes_max: Option<u64>,
    /// The zone that the proxy is in
    #[arg(long, value_name = "ZONE", conflicts_with = "twemproxy")]
    zone: Option<String>,
    /// The zones that nodes are in: 10.0.0.1=a,10.0.0.2=b
    #[arg(long, value_name = "ADDRESS=ZONE", value_delimiter = ',', conflicts_with = "twemproxy")]
    zones: Vec<String>,
}

impl ReadingArgs {
    /// What they say.
    pub(super) fn read(&self) -> Result<Reading, Failure> {
        let zones = self.zones.iter().map(|text| {
            let pair = text.split_once('=').map(|(at, zone)| (at.to_owned(), zone.to_owned()));
            let bad = || Failure::user(format!("no zone: {text:?}")).hint("such as 10.0.0.1=a");
            pair.ok_or_else(bad)
        });
        let zones: BTreeMap<String, String> = zones.collect::<Result<_, _>>()?;
        if self.read_from == ReadFrom::SameZone && (self.zone.is_none() || zones.is_empty()) {
            let hint = "say where the proxy is and where nodes are: --zone a --zones 10.0.0.1=a";
            return Err(Failure::user("nothing is known of zones").hint(hint));
        }
        Ok(Reading {
            from: self.read_from,
            age_max: Duration::from_secs(self.lag_max.into()),
            behind_max: self.lag_bytes_max,
            zone: self.zone.clone(),
            zones,
        })
    }
}
