//! INFO and CLUSTER INFO: lines of `name:value`.

use std::{collections::BTreeMap, str::FromStr};

use crate::Value;

/// The fields of INFO (all sections in one) or of CLUSTER INFO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info {
    fields: BTreeMap<String, String>,
}

/// What a primary says of one of its replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoReplica {
    /// As the primary sees it, or as the replica announces it.
    pub ip: String,
    pub port: u16,
    /// `online` once it has its first copy; `wait_bgsave`, `send_bulk` and others before.
    pub state: String,
    /// In bytes of the replication stream.
    pub offset: u64,
    /// Seconds since it last acknowledged something.
    pub lag_seconds: Option<u64>,
}

/// How much data, over all databases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keyspace {
    pub keys: u64,
    /// Those of them that have a time to live.
    pub expires: u64,
}

impl Info {
    /// From the text. Titles, blank lines and lines with no colon are skipped; a field told twice
    /// has its last value.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let fields = lines.filter_map(|line| line.split_once(':'));
        Self {
            fields: fields.map(|(name, value)| (name.into(), value.trim_end().into())).collect(),
        }
    }

    /// From the reply; None where it is not a string. Bytes that are no UTF-8 (paths may hold
    /// some) are replaced.
    pub fn from_reply(reply: &Value) -> Option<Self> {
        reply.as_bytes().map(|bytes| Self::parse(&String::from_utf8_lossy(bytes)))
    }

    /// A field's text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// A field that is a whole number.
    pub fn u64(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// A field that is a number.
    pub fn f64(&self, name: &str) -> Option<f64> {
        self.get(name)?.parse().ok()
    }

    /// A field that is 0 or 1.
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        }
    }

    /// All fields, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The totals of the lines `db0:keys=1,expires=0,…`; zero where there are none, as for a
    /// server with no data.
    pub fn keyspace(&self) -> Keyspace {
        let mut total = Keyspace::default();
        for (_, line) in self.numbered("db") {
            total.keys = total.keys.saturating_add(part(line, "keys").unwrap_or(0));
            total.expires = total.expires.saturating_add(part(line, "expires").unwrap_or(0));
        }
        total
    }

    /// The databases that hold keys, by the same lines.
    pub fn databases(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.numbered("db").map(|(number, _)| number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// The lines `slave0:ip=…,port=…,state=…,offset=…,lag=…` in their order; one that lacks its
    /// address is left out.
    pub fn replicas(&self) -> Vec<InfoReplica> {
        let replica = |line: &str| {
            Some(InfoReplica {
                ip: part(line, "ip")?,
                port: part(line, "port")?,
                state: part(line, "state")?,
                offset: part(line, "offset").unwrap_or(0),
                lag_seconds: part(line, "lag"),
            })
        };
        let mut lines: Vec<_> = self.numbered("slave").collect();
        lines.sort_unstable_by_key(|(number, _)| *number);
        lines.into_iter().filter_map(|(_, line)| replica(line)).collect()
    }

    /// The fields whose name is `prefix` and a number.
    fn numbered(&self, prefix: &str) -> impl Iterator<Item = (u32, &str)> {
        self.iter().filter_map(move |(name, value)| {
            Some((name.strip_prefix(prefix)?.parse().ok()?, value))
        })
    }
}

/// One value of `name=value,name=value`.
fn part<T: FromStr>(line: &str, name: &str) -> Option<T> {
    let mut parts = line.split(',').filter_map(|part| part.split_once('='));
    parts.find(|(key, _)| *key == name)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Server\r\nredis_version:7.0.15\r\nexecutable:/a:b\r\n\r\n# Replication\r\n\
        slave10:ip=::1,port=7001,state=wait_bgsave,offset=0,lag=0\r\n\
        slave2:ip=10.0.0.1,port=7002,state=online,offset=112,lag=1,type=replica\r\n\
        slave3:ip=10.0.0.1\r\nslave_repl_offset:14\r\nslave0_x:1\r\n\
        mem_fragmentation_ratio:1.25\r\nloading:0\r\naof_enabled:1\r\n\
        # Keyspace\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb12:keys=2,expires=0,avg_ttl=0\r\nnothing\r\n";

    #[test]
    fn fields() {
        let info = Info::parse(TEXT);
        assert_eq!(info.get("redis_version"), Some("7.0.15"));
        assert_eq!(info.get("executable"), Some("/a:b"));
        assert_eq!(info.get("nothing"), None);
        assert_eq!(info.u64("slave_repl_offset"), Some(14));
        assert_eq!(info.f64("mem_fragmentation_ratio"), Some(1.25));
        assert_eq!(info.u64("mem_fragmentation_ratio"), None);
        assert_eq!((info.flag("loading"), info.flag("aof_enabled")), (Some(false), Some(true)));
        assert_eq!(info.flag("slave_repl_offset"), None);
        assert_eq!(Info::from_reply(&Value::Bulk(TEXT.into())), Some(info));
        assert_eq!(Info::from_reply(&Value::Null), None);
    }

    #[test]
    fn totals() {
        assert_eq!(Info::parse(TEXT).keyspace(), Keyspace { keys: 5, expires: 1 });
        assert_eq!(Info::parse("").keyspace(), Keyspace::default());
        assert_eq!(Info::parse(TEXT).databases(), [0, 12]);
    }

    #[test]
    fn replicas() {
        let replicas = Info::parse(TEXT).replicas();
        let told: Vec<_> = replicas.iter().map(|r| (r.ip.as_str(), r.port, r.offset)).collect();
        assert_eq!(told, [("10.0.0.1", 7002, 112), ("::1", 7001, 0)]);
        assert_eq!(replicas[0].state, "online");
        assert_eq!(replicas[0].lag_seconds, Some(1));
    }
}
