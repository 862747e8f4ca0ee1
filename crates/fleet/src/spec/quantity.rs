//! Sizes and durations as people write them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    read::{Decode, Reader},
    tree::Node,
};
use crate::model::Bytes;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub Bytes);

/// A number of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Millis(pub u64);

const SIZE_UNITS: [(&str, u64); 12] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("k", 1_000),
    ("m", 1_000_000),
    ("g", 1_000_000_000),
    ("kb", 1 << 10),
    ("mb", 1 << 20),
    ("gb", 1 << 30),
];

const DURATION_UNITS: [(&str, u64); 6] =
    [("", 1), ("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A whole number and a unit, in any case, with or without spaces between.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A size as the spec has it, such as 512MiB; None: it is none.
pub fn parse_size(text: &str) -> Option<Bytes> {
    parse(text, &SIZE_UNITS).map(Bytes)
}

impl Decode for Size {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let text = reader.scalar(node, "a size, such as 512MiB")?;
        let size = parse_size(text);
        if size.is_none() {
            let place = reader.place(node.mark);
            reader.error(&place, format!("not a size: {text:?}")).hint(
                "write a whole number and B, KiB, MiB, GiB or TiB, such as 512MiB; \
                 kb, mb and gb are read as the engines read them",
            );
        }
        size.map(Self)
    }
}

impl Decode for Millis {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let text = reader.scalar(node, "a duration, such as 15s")?;
        let duration = parse(text, &DURATION_UNITS);
        if duration.is_none() {
            let place = reader.place(node.mark);
            reader.error(&place, format!("not a duration: {text:?}")).hint(
                "write a whole number and ms, s, m, h or d, such as 15s; milliseconds without a unit",
            );
        }
        duration.map(Self)
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": "^[0-9]+ *([bB]|[kKmMgGtT][iI][bB]|[kKmMgG][bB]?)?$",
        })
    }
}

impl JsonSchema for Millis {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": "^[0-9]+ *([mM]?[sS]|[mMhHdD])?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse(text, &SIZE_UNITS), expected, "{text}");
        };
        check("0", Some(0));
        check("1024", Some(1024));
        check("512MiB", Some(512 << 20));
        check("4 GiB", Some(4 << 30));
        check("1tib", Some(1 << 40));
        check("64mb", Some(64 << 20));
        check("64MB", Some(64 << 20));
        check("64m", Some(64_000_000));
        check("1k", Some(1000));
        check("", None);
        check("MiB", None);
        check("-1", None);
        check("1.5GiB", None);
        check("1 parsec", None);
        check("99999999999TiB", None);
    }

    #[test]
    fn durations() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse(text, &DURATION_UNITS), expected, "{text}");
        };
        check("5000", Some(5000));
        check("500ms", Some(500));
        check("15s", Some(15_000));
        check("2 m", Some(120_000));
        check("15 sec", None);
        check("1h", Some(3_600_000));
        check("2 d", Some(172_800_000));
        check("1w", None);
        check("", None);
    }
}
