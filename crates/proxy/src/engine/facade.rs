//! What the proxy says of the servers behind it: that they are one, which has everything.
//!
//! Plain clients read in INFO that they talk to a standalone primary. Clients that know clusters ask
//! for slots, and learn of a cluster of one node, at the address that they are connected to; so
//! they send everything here. A ring is no cluster for them.
//!
//! INFO's figures are those of all event loops ([`super::Board`]).

use std::{fmt::Write as _, net::SocketAddr};

use protocol::{
    Value,
    commands::{Arguments as _, Command, Merge},
    key_hash,
    resp::encode_command,
};

use super::{
    ClientId, Core, Route,
    client::Client,
    dispatch::{Outcome, Request},
    fan::{Ask, To},
    gather::How,
    local::SERVED_VERSION,
};
use crate::counters::{Counter, PoolCounters, ServerCounters};

/// Parameters that tell clients how to behave, and no secrets.
const SHOWN_PARAMETERS: [&str; 16] = [
    "appendonly",
    "busy-reply-threshold",
    "databases",
    "hash-max-listpack-entries",
    "hash-max-listpack-value",
    "list-max-listpack-size",
    "lua-time-limit",
    "maxmemory",
    "maxmemory-policy",
    "notify-keyspace-events",
    "proto-max-bulk-len",
    "save",
    "set-max-intset-entries",
    "timeout",
    "zset-max-listpack-entries",
    "zset-max-listpack-value",
];

/// Is it a command that [`Core::answer_for_servers`] knows?
pub(super) fn concerns_servers(command: &Command) -> bool {
    let name = command.name;
    matches!(name, "info" | "role" | "config|get")
        || name.starts_with("cluster|")
        || name.starts_with("slowlog|")
}

impl Core {
    pub(super) fn answer_for_servers(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        let answer = match command.name {
            "info" => {
                let text = self.info(client, request).into_bytes();
                Value::Verbatim { format: *b"txt", text }
            }
            "role" => Value::Array(vec![bulk("master"), Value::Integer(0), Value::Array(vec![])]),
            name if name.starts_with("slowlog|") => self.slow_log(client, request, name),
            "config|get" => return self.config_get(id, client, request, command),
            _ if self.is_ring(client.pool) => {
                Value::Error("ERR This instance has cluster support disabled".to_owned())
            }
            "cluster|countkeysinslot" | "cluster|getkeysinslot" => {
                return self.ask_owner(id, client, request);
            }
            _ => self.cluster(client, request, command),
        };
        self.value(id, client, answer);
        Outcome::Taken
    }

    /// Answers with a value, in the client's protocol.
    fn value(&mut self, id: ClientId, client: &mut Client, value: Value) {
        let value = if client.protocol == 3 { value } else { as_resp2(value) };
        client.answer_now(&mut self.works, |out| value.encode(out));
        client.mark(id, &mut self.turn);
    }

    fn cluster(&self, client: &Client, request: &Request<'_>, command: &Command) -> Value {
        let here = Here::new(client.local);
        match command.name {
            "cluster|slots" => Value::Array(vec![Value::Array(vec![
                Value::Integer(0),
                Value::Integer(LAST_SLOT),
                Value::Array(vec![
                    bulk(&here.host),
                    Value::Integer(here.port.into()),
                    bulk(&here.node),
                    Value::Array(vec![]),
                ]),
            ])]),
            "cluster|shards" => Value::Array(vec![map([
                ("slots", Value::Array(vec![Value::Integer(0), Value::Integer(LAST_SLOT)])),
                (
                    "nodes",
                    Value::Array(vec![map([
                        ("id", bulk(&here.node)),
                        ("port", Value::Integer(here.port.into())),
                        ("ip", bulk(&here.host)),
                        ("endpoint", bulk(&here.host)),
                        ("role", bulk("master")),
                        ("replication-offset", Value::Integer(0)),
                        ("health", bulk("online")),
                    ])]),
                ),
            ])]),
            "cluster|nodes" => bulk(&here.line()),
            "cluster|info" => bulk(&self.cluster_info(client.pool)),
            "cluster|myid" => bulk(&here.node),
            "cluster|myshardid" => bulk(&here.shard),
            "cluster|keyslot" => {
                let slot = key_hash::key_slot(request.get(2).unwrap_or_default());
                Value::Integer(slot.number().into())
            }
            "cluster|replicas" | "cluster|slaves"
                if request.get(2) == Some(here.node.as_bytes()) =>
            {
                Value::Array(vec![])
            }
            "cluster|replicas" | "cluster|slaves" => Value::Error("ERR Unknown node".to_owned()),
            name => Value::Error(format!("ERR '{name}' is not served")),
        }
    }

    fn cluster_info(&self, pool: u16) -> String {
        let assigned = match self.pools.get(usize::from(pool)).map(|pool| &pool.route) {
            Some(Route::Slots(slots)) => {
                (0..protocol::SLOT_COUNT).filter(|slot| slots.owner(*slot).is_some()).count()
            }
            _ => 0,
        };
        let state = if assigned == usize::from(protocol::SLOT_COUNT) { "ok" } else { "fail" };
        format!(
            "cluster_state:{state}\r\ncluster_slots_assigned:{assigned}\r\n\
             cluster_slots_ok:{assigned}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
             cluster_known_nodes:1\r\ncluster_size:1\r\ncluster_current_epoch:1\r\n\
             cluster_my_epoch:1\r\n"
        )
    }

    /// INFO [section ...].
    fn info(&self, client: &Client, request: &Request<'_>) -> String {
        let asked: Vec<String> = (1..request.words)
            .filter_map(|index| request.get(index))
            .map(|word| String::from_utf8_lossy(word).to_ascii_lowercase())
            .collect();
        let all = asked.is_empty()
            || asked.iter().any(|name| matches!(name.as_str(), "all" | "default" | "everything"));
        let mut text = String::new();
        for name in SECTIONS {
            if !all && !asked.iter().any(|asked| asked.eq_ignore_ascii_case(name)) {
                continue;
            }
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let _ = write!(text, "# {name}\r\n");
            for (key, value) in self.section(client, name) {
                let _ = write!(text, "{key}:{value}\r\n");
            }
        }
        text
    }

    fn section(&self, client: &Client, name: &str) -> Vec<(String, String)> {
        let Some(pool) = self.pools.get(usize::from(client.pool)) else { return Vec::new() };
        let number = usize::from(client.pool);
        let sum =
            |of: fn(&PoolCounters) -> &Counter| self.limits.board.pool(number, of).to_string();
        let uptime = self.now / 1_000_000;
        let fields: Vec<(&str, String)> = match name {
            "Server" => vec![
                ("redis_version", SERVED_VERSION.to_owned()),
                ("redis_mode", "standalone".to_owned()),
                ("keyfleet_version", env!("CARGO_PKG_VERSION").to_owned()),
                ("tcp_port", client.local.map_or(0, |local| local.port()).to_string()),
                ("uptime_in_seconds", uptime.to_string()),
                ("uptime_in_days", (uptime / 86_400).to_string()),
            ],
            "Clients" => vec![("connected_clients", sum(|c| &c.clients))],
            // What clients wait for before they send anything.
            "Persistence" => vec![("loading", "0".to_owned()), ("async_loading", "0".to_owned())],
            "Stats" => vec![
                ("total_connections_received", sum(|c| &c.clients_ever)),
                ("total_commands_processed", sum(|c| &c.requests)),
                ("total_net_input_bytes", sum(|c| &c.request_bytes)),
                ("total_net_output_bytes", sum(|c| &c.response_bytes)),
                ("proxy_fragments", sum(|c| &c.fragments)),
                ("proxy_redirects", sum(|c| &c.redirects)),
                ("proxy_retries", sum(|c| &c.retries)),
                ("evicted_clients", sum(|c| &c.clients_evicted)),
                ("proxy_errors", sum(|c| &c.forward_errors)),
                ("proxy_near_hits", sum(|c| &c.near_hits)),
                ("proxy_near_misses", sum(|c| &c.near_misses)),
                ("proxy_near_invalidations", sum(|c| &c.near_invalidations)),
                ("proxy_near_bytes", sum(|c| &c.near_bytes)),
            ],
            "Replication" => {
                vec![("role", "master".to_owned()), ("connected_slaves", "0".to_owned())]
            }
            "Cluster" => {
                let enabled = u8::from(!self.is_ring(client.pool));
                vec![("cluster_enabled", enabled.to_string())]
            }
            _ => {
                let servers =
                    pool.servers.iter().filter_map(|at| self.servers.get(usize::from(*at)));
                let line = |(number, server): (usize, &super::server::Server)| {
                    let address = &*server.address;
                    let sum = |of: fn(&ServerCounters) -> &Counter| {
                        self.limits.board.server(usize::from(client.pool), address, of)
                    };
                    let value = format!(
                        "address={address},connections={},requests={},responses={},timed_out={}",
                        sum(|c| &c.connections),
                        sum(|c| &c.requests),
                        sum(|c| &c.responses),
                        sum(|c| &c.timed_out),
                    );
                    (format!("server{number}"), value)
                };
                return servers.enumerate().map(line).collect();
            }
        };
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// CONFIG GET parameter [parameter ...]: some are asked of a server, others don't exist here.
    fn config_get(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        let asked = (2..request.words).filter_map(|index| request.get(index));
        let shown = asked.filter(|word| {
            SHOWN_PARAMETERS.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(word))
        });
        let words: Vec<&[u8]> = [&b"CONFIG"[..], b"GET"].into_iter().chain(shown).collect();
        if words.len() == 2 {
            self.value(id, client, map([]));
            return Outcome::Taken;
        }
        let mut bytes = Vec::new();
        encode_command(&words, &mut bytes);
        self.ask_any(id, client, &Request::new(&bytes, words.len() as u32), command)
    }

    /// CLUSTER COUNTKEYSINSLOT slot, CLUSTER GETKEYSINSLOT slot count.
    fn ask_owner(&mut self, id: ClientId, client: &mut Client, request: &Request<'_>) -> Outcome {
        let word = request.get(2).and_then(|word| std::str::from_utf8(word).ok());
        let slot = word.and_then(|word| word.parse().ok());
        let Some(slot) = slot.filter(|slot: &u16| *slot < protocol::SLOT_COUNT) else {
            self.reply(id, client, b"-ERR Invalid slot\r\n");
            return Outcome::Taken;
        };
        let Some(server) = self.server_of(client.pool, Some(slot)) else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        let ask = Ask {
            bytes: request.bytes,
            repeatable: true,
            how: How::Merge(Merge::Same),
            preferred: 0,
        };
        self.send_each(id, client, &[To { server, lane: slot }], ask)
    }
}

const SECTIONS: [&str; 7] =
    ["Server", "Clients", "Persistence", "Stats", "Replication", "Cluster", "Servers"];
const LAST_SLOT: i64 = protocol::SLOT_COUNT as i64 - 1;

/// The one node, as a client sees it.
struct Here {
    host: String,
    port: u16,
    node: String,
    shard: String,
}

impl Here {
    /// Without an address, clients go on using the one they have.
    fn new(local: Option<SocketAddr>) -> Self {
        let host = local.map(|local| local.ip().to_canonical().to_string()).unwrap_or_default();
        let port = local.map_or(0, |local| local.port());
        let node = identity(&format!("node {host}:{port}"));
        let shard = identity(&format!("shard {host}:{port}"));
        Self { host, port, node, shard }
    }

    /// Its line in CLUSTER NODES.
    fn line(&self) -> String {
        let Self { host, port, node, .. } = self;
        let bus = port.checked_add(10_000).unwrap_or(0);
        format!("{node} {host}:{port}@{bus} myself,master - 0 0 1 connected 0-{LAST_SLOT}\n")
    }
}

/// 40 hexadecimal digits, the same for the same text.
fn identity(text: &str) -> String {
    let mut digits = String::new();
    let mut hash = 0x811c_9dc5_u32;
    for _ in 0..5 {
        for byte in text.bytes() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        let _ = write!(digits, "{hash:08x}");
    }
    digits
}

fn bulk(text: &str) -> Value {
    Value::Bulk(text.as_bytes().to_vec())
}

fn map<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Map(pairs.into_iter().map(|(key, value)| (bulk(key), value)).collect())
}

/// Maps become flat arrays, and texts strings.
fn as_resp2(value: Value) -> Value {
    match value {
        Value::Map(pairs) => {
            let flat = pairs.into_iter().flat_map(|(key, value)| [key, as_resp2(value)]);
            Value::Array(flat.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(as_resp2).collect()),
        Value::Verbatim { text, .. } => Value::Bulk(text),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use protocol::ClusterNodes;

    use super::*;

    #[test]
    fn the_one_node() {
        let here = Here::new(Some(([10, 0, 0, 1], 6379).into()));
        let nodes: ClusterNodes = here.line().parse().unwrap();
        assert_eq!(nodes.rows.len(), 1);
        assert_eq!(nodes.rows[0].id.to_string(), here.node);
        assert_eq!(nodes.rows[0].slots, protocol::SlotSet::full());
        assert_ne!(here.node, here.shard);
        assert_ne!(here.node, Here::new(Some(([10, 0, 0, 1], 6380).into())).node);
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:6379".parse().unwrap();
        assert_eq!(Here::new(Some(mapped)).host, "10.0.0.1");
        assert!(Here::new(None).host.is_empty());
    }

    #[test]
    fn protocols() {
        let value = map([("a", Value::Array(vec![map([("b", Value::Integer(1))])]))]);
        let mut out = Vec::new();
        value.encode(&mut out);
        as_resp2(value).encode(&mut out);
        let expected = "%1\r\n$1\r\na\r\n*1\r\n%1\r\n$1\r\nb\r\n:1\r\n*2\r\n$1\r\na\r\n*1\r\n*2\r\n$1\r\nb\r\n:1\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
