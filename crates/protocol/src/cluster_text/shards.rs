//! CLUSTER SHARDS (Redis from 7.0, Valkey).

use crate::{NodeId, Slot, SlotSet, Value};

use super::BadReply;

/// One node's view of the cluster, by shard. Source: the CLUSTER SHARDS documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterShards {
    pub shards: Vec<Shard>,
}

/// Nodes that hold the same slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    pub slots: SlotSet,
    pub nodes: Vec<ShardNode>,
}

/// A node of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardNode {
    pub id: NodeId,
    /// The TCP port, where there is one.
    pub port: Option<u16>,
    pub tls_port: Option<u16>,
    /// Empty where it is not known.
    pub ip: String,
    /// How the server prefers clients to call it: an address or a name; empty or `?` where it
    /// does not know.
    pub endpoint: String,
    pub hostname: Option<String>,
    pub is_primary: bool,
    /// In bytes of the replication stream.
    pub replication_offset: i64,
    pub health: Health,
}

/// What the cluster thinks of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Online,
    /// Flagged as failed, by this node or by a majority.
    Failed,
    /// Reading its data or still copying its primary's: the offset is 0.
    Loading,
}

impl ClusterShards {
    /// From the reply, in the shape of RESP2 or of RESP3. Fields that are not known are skipped.
    pub fn from_reply(reply: &Value) -> Result<Self, BadReply> {
        let shards = reply.as_array().ok_or_else(|| bad("not an array"))?;
        let shards = shards.iter().map(shard).collect::<Result<_, _>>()?;
        Ok(Self { shards })
    }
}

fn bad(problem: impl Into<String>) -> BadReply {
    BadReply { command: "CLUSTER SHARDS", problem: problem.into() }
}

/// A map's fields by name.
struct Fields<'a>(Vec<(&'a Value, &'a Value)>);

impl<'a> Fields<'a> {
    fn of(value: &'a Value, what: &str) -> Result<Self, BadReply> {
        value.pairs().map(Self).ok_or_else(|| bad(format!("a {what} that is no map")))
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| *value)
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    fn port(&self, name: &str) -> Result<Option<u16>, BadReply> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let port = value.as_integer().and_then(|number| u16::try_from(number).ok());
        port.map(Some).ok_or_else(|| bad(format!("a {name} that is no port")))
    }
}

fn shard(value: &Value) -> Result<Shard, BadReply> {
    let fields = Fields::of(value, "shard")?;
    let array = |name: &str| {
        let found = fields.get(name).and_then(Value::as_array);
        found.ok_or_else(|| bad(format!("a shard without its {name}")))
    };
    let nodes = array("nodes")?.iter().map(node).collect::<Result<_, _>>()?;
    Ok(Shard { slots: slots(array("slots")?).ok_or_else(|| bad("bad slots"))?, nodes })
}

/// First, last, first, last, …
fn slots(bounds: &[Value]) -> Option<SlotSet> {
    let slot = |value: &Value| Some(Slot::new(u16::try_from(value.as_integer()?).ok()?)?.number());
    let (ranges, rest) = bounds.as_chunks::<2>();
    let mut set = SlotSet::new();
    for [first, last] in ranges {
        set = set.union(&SlotSet::range(slot(first)?, slot(last)?));
    }
    rest.is_empty().then_some(set)
}

fn node(value: &Value) -> Result<ShardNode, BadReply> {
    let fields = Fields::of(value, "node")?;
    let need =
        |name: &str| fields.text(name).ok_or_else(|| bad(format!("a node without its {name}")));
    let id = need("id")?;
    let is_primary = match need("role")? {
        "master" | "primary" => true,
        "replica" | "slave" => false,
        other => return Err(bad(format!("a role that is not known: {other:?}"))),
    };
    let health = match need("health")? {
        "online" => Health::Online,
        "fail" | "failed" => Health::Failed,
        "loading" => Health::Loading,
        other => return Err(bad(format!("a health that is not known: {other:?}"))),
    };
    let offset = fields.get("replication-offset").and_then(Value::as_integer);
    Ok(ShardNode {
        id: id.parse().map_err(|_| bad(format!("a node's id: {id:?}")))?,
        port: fields.port("port")?,
        tls_port: fields.port("tls-port")?,
        ip: fields.text("ip").unwrap_or_default().to_owned(),
        endpoint: fields.text("endpoint").unwrap_or_default().to_owned(),
        hostname: fields.text("hostname").filter(|name| !name.is_empty()).map(str::to_owned),
        is_primary,
        replication_offset: offset.ok_or_else(|| bad("a node without its replication-offset"))?,
        health,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Bulk(text.into())
    }

    fn fields(pairs: &[(&str, Value)], resp3: bool) -> Value {
        let pairs = pairs.iter().map(|(name, value)| (text(name), value.clone()));
        if resp3 {
            Value::Map(pairs.collect())
        } else {
            Value::Array(pairs.flat_map(|(name, value)| [name, value]).collect())
        }
    }

    fn reply(role: &str, health: &str, slots: &[i64], resp3: bool) -> Value {
        let node = fields(
            &[
                ("id", text("07c37dfeb235213a872192d90877d0cd55635b91")),
                ("tls-port", Value::Integer(7001)),
                ("ip", text("127.0.0.1")),
                ("endpoint", text("a.example")),
                ("hostname", text("a.example")),
                ("role", text(role)),
                ("replication-offset", Value::Integer(72)),
                ("health", text(health)),
                ("something-new", Value::Null),
            ],
            resp3,
        );
        let slots = slots.iter().map(|slot| Value::Integer(*slot)).collect();
        let shard = [
            ("slots", Value::Array(slots)),
            ("nodes", Value::Array(vec![node])),
            ("id", Value::Null),
        ];
        Value::Array(vec![fields(&shard, resp3)])
    }

    #[test]
    fn both_shapes() {
        for resp3 in [false, true] {
            let reply = reply("replica", "loading", &[0, 4, 6, 6], resp3);
            let shards = ClusterShards::from_reply(&reply).unwrap().shards;
            assert_eq!(shards[0].slots.to_string(), "0-4,6");
            let node = &shards[0].nodes[0];
            assert_eq!((node.port, node.tls_port), (None, Some(7001)));
            assert_eq!(node.hostname.as_deref(), Some("a.example"));
            assert_eq!((node.is_primary, node.health), (false, Health::Loading));
            assert_eq!(node.replication_offset, 72);
        }
    }

    #[test]
    fn replies_that_cannot_be_read() {
        let check = |reply: &Value, problem: &str| {
            assert_eq!(ClusterShards::from_reply(reply).unwrap_err().problem, problem);
        };
        check(&Value::Null, "not an array");
        check(&Value::Array(vec![Value::Null]), "a shard that is no map");
        check(&Value::Array(vec![Value::Map(vec![])]), "a shard without its nodes");
        check(&reply("master", "online", &[1], false), "bad slots");
        check(&reply("master", "online", &[1, 16384], false), "bad slots");
        check(&reply("king", "online", &[], true), "a role that is not known: \"king\"");
        check(&reply("master", "tired", &[], true), "a health that is not known: \"tired\"");
    }
}
