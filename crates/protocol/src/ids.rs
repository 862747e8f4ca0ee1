//! Names that the engines give.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A cluster node's own name: 40 lower-case hexadecimal digits (CLUSTER MYID), kept as 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 20]);

/// The text is not 40 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a node id: {0:?} (40 hexadecimal digits)")]
pub struct BadNodeId(pub String);

impl NodeId {
    /// From the 20 raw bytes.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(8).collect()
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadNodeId(text.chars().take(48).collect());
        let digits = text.as_bytes();
        if digits.len() != 40 {
            return Err(bad());
        }
        let mut bytes = [0; 20];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let mut value = 0;
            for digit in pair {
                let digit = char::from(*digit).to_digit(16).ok_or_else(bad)?;
                value = value * 16 + digit as u8;
            }
            *byte = value;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.short())
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_id_round_trips() {
        let text = "07c37dfeb235213a872192d90877d0cd55635b91";
        assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        for bad in ["", "07c3", &"g".repeat(40), &"é".repeat(20)] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}
