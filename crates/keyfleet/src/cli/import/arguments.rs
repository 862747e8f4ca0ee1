//! What `keyfleet import` takes.

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use protocol::rdb::DataType;

use crate::{
    cli::printer::Output,
    mover::import::{
        Existing,
        filter::{Bound, Filter, Ttl},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Stopped at any time, by kill -9 too, the same command goes on where it was.
The password for HOST:PORT is taken from REDISCLI_AUTH.
Exit codes: 0 all is there; 1 something could not be carried, and is named; 2 the environment.")]
pub struct Args {
    /// RDB files, append-only files, their manifest, directories of them, s3://, gs:// or az:// URLs,
    /// - for stdin
    #[arg(value_name = "FILE|DIR|URL|-", required = true)]
    pub files: Vec<PathBuf>,
    /// A cluster of the fleet, or any node of a cluster, or a single server
    #[arg(long, value_name = "CLUSTER|HOST:PORT")]
    pub to: String,
    /// Only keys like this (user:*); several: any of them
    #[arg(long, value_name = "PATTERN")]
    pub pattern: Vec<String>,
    /// Only keys of these types
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',')]
    pub types: Vec<Type>,
    /// Only these databases of the file
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub db: Vec<u64>,
    /// Put a database of the file into another of the target (1:0)
    #[arg(long, value_name = "FROM:TO", value_delimiter = ',', value_parser = pair)]
    pub db_map: Vec<(u64, u64)>,
    /// Only keys that end (with), that don't (without), or with so much left (>1h, <30m)
    #[arg(long, value_name = "TTL", value_parser = ttl)]
    pub ttl: Option<Ttl>,
    /// Only values of such a size in the file (>1mb, <10kb)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub size: Option<Bound>,
    /// Let the file's value take the place of one that is there
    #[arg(long, group = "existing")]
    pub replace: bool,
    /// Leave keys that are there as they are
    #[arg(long, group = "existing")]
    pub skip_existing: bool,
    /// Leave keys that are there as they are, and name those with another value [default]
    #[arg(long, group = "existing")]
    pub fail: bool,
    #[command(flatten)]
    pub how: Loading,
}

/// How values are brought into a target, from files or from a backup.
#[derive(Debug, clap::Args)]
pub struct Loading {
    /// Send nothing: say what would be sent, and what can't be
    #[arg(long)]
    pub dry_run: bool,
    /// Afterwards ask the target for every key, and compare value and end
    #[arg(long)]
    pub verify: bool,
    /// Go slower where the target's latency gets above this at one time in a hundred (2ms)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_p99: Option<Duration>,
    /// How long to wait for a target that has no memory, no primary or no disk
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub patience: Duration,
    /// Begin at the beginning, whatever an earlier run did
    #[arg(long)]
    pub restart: bool,
    /// How to print the report
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

/// A type of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Type {
    String,
    List,
    Set,
    Zset,
    Hash,
    Stream,
    Array,
    Module,
}

impl Type {
    const fn data_type(self) -> DataType {
        match self {
            Self::String => DataType::String,
            Self::List => DataType::List,
            Self::Set => DataType::Set,
            Self::Zset => DataType::SortedSet,
            Self::Hash => DataType::Hash,
            Self::Stream => DataType::Stream,
            Self::Array => DataType::Array,
            Self::Module => DataType::Module,
        }
    }
}

impl Args {
    pub fn filter(&self) -> Filter {
        Filter {
            patterns: self.pattern.clone(),
            types: self.types.iter().map(|each| each.data_type()).collect(),
            dbs: self.db.clone(),
            db_map: self.db_map.iter().copied().collect(),
            ttl: self.ttl,
            size: self.size,
        }
    }

    pub const fn existing(&self) -> Existing {
        if self.replace {
            Existing::Replace
        } else if self.skip_existing {
            Existing::Skip
        } else {
            Existing::Fail
        }
    }
}

fn pair(text: &str) -> Result<(u64, u64), String> {
    let parsed =
        text.split_once(':').map(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    parsed.flatten().ok_or_else(|| "two numbers, such as 1:0".to_owned())
}

fn ttl(text: &str) -> Result<Ttl, String> {
    match text {
        "with" => Ok(Ttl::With),
        "without" => Ok(Ttl::Without),
        _ => bound(text, &DURATIONS).map(Ttl::Left).ok_or_else(|| {
            "with, without, or a bound with its unit, such as >1h or <30m".to_owned()
        }),
    }
}

fn size(text: &str) -> Result<Bound, String> {
    let bound = bound(text, &SIZES).ok_or("a bound with its unit, such as >1mb or <10kb")?;
    if bound.number() > SIZE_MAX {
        return Err("at most 64mb".to_owned());
    }
    Ok(bound)
}

pub fn duration(text: &str) -> Result<Duration, String> {
    let millis = number(text, &DURATIONS);
    let wrong = || "a number with its unit, such as 2ms or 60s".to_owned();
    millis.map(Duration::from_millis).ok_or_else(wrong)
}

/// Values below it are read whole, so that their size is known.
const SIZE_MAX: u64 = 64 << 20;

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: [(&str, u64); 8] = [
    ("", 1),
    ("b", 1),
    ("kb", 1 << 10),
    ("mb", 1 << 20),
    ("gb", 1 << 30),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
];

fn bound(text: &str, units: &[(&str, u64)]) -> Option<Bound> {
    if let Some(rest) = text.strip_prefix('>') {
        return number(rest, units).map(Bound::Above);
    }
    number(text.strip_prefix('<')?, units).map(Bound::Below)
}

fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        let check = |text: &str, expected| assert_eq!(ttl(text).ok(), expected, "{text}");
        check("with", Some(Ttl::With));
        check("without", Some(Ttl::Without));
        check(">1h", Some(Ttl::Left(Bound::Above(3_600_000))));
        check("< 30m", Some(Ttl::Left(Bound::Below(1_800_000))));
        check("1h", None);
        check(">1", None);
        let check = |text: &str, expected| assert_eq!(size(text).ok(), expected, "{text}");
        check(">1mb", Some(Bound::Above(1 << 20)));
        check("<10", Some(Bound::Below(10)));
        check("<1gb", None);
        let check = |text: &str, expected| assert_eq!(duration(text).ok(), expected, "{text}");
        check("2ms", Some(Duration::from_millis(2)));
        check("1d", Some(Duration::from_hours(24)));
        check("2", None);
        let check = |text: &str, expected| assert_eq!(pair(text).ok(), expected, "{text}");
        check("1:0", Some((1, 0)));
        check("1", None);
    }
}
