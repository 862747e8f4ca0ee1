//! What the spec says of proxies.

use std::{fmt, net::SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClusterName, ProxyName};

/// What lets plain clients use a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub name: ProxyName,
    pub cluster: ClusterName,
    /// Where clients connect without TLS; never empty.
    pub listen: Vec<Listen>,
    pub start: ProxyStart,
    pub service: ProxyService,
}

/// What a proxy is from its start: where it changes, another process takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStart {
    /// Each has connections of its own to the servers.
    pub threads: u32,
    pub read_from: ReadFrom,
    /// How old what a replica shows may be, in seconds.
    pub lag_max_s: u32,
    /// Where the proxy is, for [`ReadFrom::SameZone`].
    pub zone: Option<String>,
    /// The file of its own users; a relative path begins at the spec's directory.
    pub users: Option<String>,
    /// What its buffers may hold together, of all clients and servers.
    pub memory_max_bytes: u64,
    /// Requests that take so long are noted, in milliseconds.
    pub slow_log_ms: u64,
    /// One request in so many is looked at for hot and large keys; None: none is.
    pub hot_keys: Option<u32>,
    /// Keys that are read often are answered from memory; None: none are.
    pub near_cache: Option<NearCache>,
    /// What all clients together may ask a second; None: as much as they like.
    pub requests_per_second: Option<u32>,
    /// Bytes a second, of requests and replies of all clients together; None: any number.
    pub bytes_per_second: Option<u64>,
    /// Clients come through load balancers that say whose a connection is (PROXY protocol).
    pub proxy_protocol: bool,
}

impl ProxyStart {
    /// With less a few large values would be too much.
    pub const MEMORY_MIN: u64 = 16 << 20;
    /// One thread that reads from primaries and serves whoever comes.
    pub const PLAIN: Self = Self {
        threads: 1,
        read_from: ReadFrom::Primary,
        lag_max_s: 10,
        zone: None,
        users: None,
        memory_max_bytes: 1 << 30,
        slow_log_ms: 10,
        hot_keys: None,
        near_cache: None,
        requests_per_second: None,
        bytes_per_second: None,
        proxy_protocol: false,
    };
}

/// What a proxy answers from its own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearCache {
    /// All threads' together.
    pub bytes: u64,
    /// No value is older, in seconds.
    pub age_s: u32,
}

impl NearCache {
    /// With less there is no use in one.
    pub const BYTES_MIN: u64 = 1 << 20;
    pub const AGE_S: u32 = 5;
}

/// Where a proxy's reads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFrom {
    Primary,
    Replica,
    SameZone,
    Nearest,
}

/// Where a proxy takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    pub address: ProxyAddress,
    /// The spec names the port; else the next free one is taken where this one is not.
    pub explicit: bool,
}

impl Listen {
    /// Is a proxy that listens there one that was meant by this?
    pub fn allows(&self, there: &ProxyAddress) -> bool {
        match (&self.address, there) {
            (ProxyAddress::Tcp(wanted), ProxyAddress::Tcp(there)) if !self.explicit => {
                wanted.ip() == there.ip() && there.port() >= wanted.port()
            }
            (wanted, there) => wanted == there,
        }
    }
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProxyAddress {
    Tcp(SocketAddr),
    /// A unix socket's path; a relative one begins at the spec's directory.
    Path(String),
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Path(path) => f.write_str(path),
        }
    }
}

/// How a proxy serves its clients: all that can be changed while they stay connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyService {
    /// A second place, for clients that speak TLS.
    pub tls: Option<ProxyTls>,
    /// Where it gives its figures away for Prometheus.
    pub metrics: Option<SocketAddr>,
    /// So many clients at once, at all places together; None: as many as come.
    pub clients_max: Option<u32>,
    /// How long it may take to answer what is under way when it ends, in milliseconds.
    pub drain_ms: u64,
}

impl ProxyService {
    /// Plain clients only, any number of them, and ten seconds to end.
    pub const PLAIN: Self = Self { tls: None, metrics: None, clients_max: None, drain_ms: 10_000 };
}

/// How a proxy serves clients that speak TLS. Paths are of PEM files; relative ones begin at the
/// spec's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyTls {
    pub listen: SocketAddr,
    /// The proxy's certificate, and after it those that lead to a root.
    pub cert: String,
    pub key: String,
    /// Who vouches for clients; None: they show no certificates.
    pub client_ca: Option<String>,
    /// Clients without a certificate are served too.
    pub client_optional: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant() {
        let check = |wanted: &str, explicit: bool, there: &str, expected: bool| {
            let parse = |text: &str| serde_json::from_value(text.into()).unwrap();
            let listen = Listen { address: parse(wanted), explicit };
            assert_eq!(listen.allows(&parse(there)), expected, "{wanted} {there}");
        };
        check("127.0.0.1:6379", true, "127.0.0.1:6379", true);
        check("127.0.0.1:6379", true, "127.0.0.1:6380", false);
        check("127.0.0.1:6379", false, "127.0.0.1:6380", true);
        check("127.0.0.1:6379", false, "127.0.0.1:6378", false);
        check("127.0.0.1:6379", false, "127.0.0.2:6380", false);
        check("run/a.sock", true, "run/a.sock", true);
        check("run/a.sock", true, "run/b.sock", false);
        check("run/a.sock", true, "127.0.0.1:6379", false);
    }
}
