//! The files that keyfleet writes into a node's directory: `node.conf`, which also remembers where
//! the node stands, and `users.acl`.
//!
//! What the ACL file says: keyfleet's own user has all rights; the spec's users have theirs; the
//! user `default` is the spec's where it defines one. Else clients on this machine need no
//! password, as with a plain server, where every host of the cluster is a loopback address; on any
//! other address `default` asks for a generated password.

use std::{collections::BTreeMap, fmt::Write as _, net::IpAddr, path::PathBuf};

use fleet::model::{Cluster, Fleet, HostId, PasswordSource, Ports};
use protocol::{Engine, EngineKind, conf};
use serde::{Deserialize, Serialize};

use crate::{
    engines::EngineBinary,
    secrets::{OWN_USER, Secret, SecretError, resolve, sha256},
    store::Store,
};

/// The server's configuration file in a node's directory.
pub const NODE_CONF: &str = "node.conf";
/// The ACL file in a node's directory.
pub const USERS_ACL: &str = "users.acl";
/// What the server prints, in a node's directory.
pub const LOG: &str = "log";
/// The server's own memory of its cluster, in a node's directory.
pub const NODES_CONF: &str = "nodes.conf";

/// The bus port is this much above the client port where the engine can't be told otherwise.
const BUS_OFFSET: u16 = 10_000;

const HEADER: &str = "# keyfleet ";

/// Where a node stands and what runs it: the first line of its `node.conf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub host: HostId,
    pub address: IpAddr,
    pub ports: Ports,
    pub program: Program,
}

/// The server program that a node was last started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub server: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library_path: Option<PathBuf>,
}

impl From<&EngineBinary> for Program {
    fn from(binary: &EngineBinary) -> Self {
        Self { server: binary.server.clone(), library_path: binary.library_path.clone() }
    }
}

/// A node's files can't be made from the spec.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    #[error(
        "{engine} has its bus {BUS_OFFSET} ports above its client port {tcp}; bus port {bus} is \
         not possible"
    )]
    BusPort { engine: Engine, tcp: u16, bus: u16 },
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Place {
    /// Reads what [`node_conf`] wrote; None where the text doesn't begin so.
    pub fn parse(node_conf: &str) -> Option<Self> {
        serde_json::from_str(node_conf.lines().next()?.strip_prefix(HEADER)?).ok()
    }
}

/// The text of a node's `node.conf`. It holds a password.
pub fn node_conf(
    place: &Place,
    cluster: &Cluster,
    engine: &Engine,
    own: &Secret,
) -> Result<String, NodeFileError> {
    let Ports { tcp, bus, .. } = place.ports;
    let mut text = format!("{HEADER}{}\n", serde_json::to_string(place).unwrap_or_default());
    text += "# Made by keyfleet, and made again when the spec changes. Put directives under the\n\
             # cluster's `config:` in the spec.\n";
    let mut say = |name: &str, args: &[&str]| {
        text += &conf::render(name, args);
        text.push('\n');
    };
    let address = place.address.to_string();
    let (tcp_text, bus_text) = (tcp.to_string(), bus.to_string());
    say("bind", &[&address]);
    say("port", &[&tcp_text]);
    say("protected-mode", &[if is_open_to_all(place, cluster) { "no" } else { "yes" }]);
    say("daemonize", &["no"]);
    say("dir", &["."]);
    say("logfile", &[LOG]);
    say("aclfile", &[USERS_ACL]);
    say("masteruser", &[OWN_USER]);
    say("masterauth", &[own.expose()]);
    say("cluster-enabled", &["yes"]);
    say("cluster-config-file", &[NODES_CONF]);
    say("cluster-node-timeout", &[&cluster.node_timeout_ms.to_string()]);
    say("cluster-announce-ip", &[&address]);
    say("cluster-announce-port", &[&tcp_text]);
    say("cluster-announce-bus-port", &[&bus_text]);
    if engine.dialect().cluster_shards {
        say("cluster-port", &[&bus_text]);
    } else if tcp.checked_add(BUS_OFFSET) != Some(bus) {
        return Err(NodeFileError::BusPort { engine: *engine, tcp, bus });
    }
    if engine.kind == EngineKind::KeyDb {
        // It has no cluster-allow-replica-migration; no shard ever has this many replicas.
        say("cluster-migration-barrier", &["1000000"]);
    } else {
        say("cluster-allow-replica-migration", &["no"]);
    }
    if !cluster.config.contains_key("repl-diskless-sync-delay") {
        // With the default of 5 s a new replica is no copy, and can't be elected, for that long.
        say("repl-diskless-sync-delay", &["0"]);
    }
    for (name, value) in &cluster.config {
        for occurrence in &value.0 {
            let args: Vec<&str> = occurrence.iter().map(String::as_str).collect();
            say(name, &args);
        }
    }
    Ok(text)
}

/// Does the spec ask for a passwordless `default` user on an address that others can reach?
fn is_open_to_all(place: &Place, cluster: &Cluster) -> bool {
    let default = cluster.users.get("default");
    !place.address.is_loopback()
        && default.is_some_and(|user| user.password == PasswordSource::None)
}

/// Where the password of the user `default` comes from.
pub fn default_password(fleet: &Fleet, cluster: &Cluster) -> PasswordSource {
    if let Some(user) = cluster.users.get("default") {
        return user.password.clone();
    }
    let mut hosts = cluster.hosts.iter().filter_map(|host| fleet.hosts.get(host));
    if hosts.all(|host| host.address.is_loopback()) {
        PasswordSource::None
    } else {
        PasswordSource::Generated
    }
}

/// The text of a cluster's `users.acl`. It holds digests of passwords, no passwords.
pub fn users_acl(fleet: &Fleet, cluster: &Cluster, store: &Store) -> Result<String, NodeFileError> {
    let password = |user: &str, source: &PasswordSource| -> Result<String, NodeFileError> {
        let password = resolve(store, &cluster.name, user, source)?;
        Ok(password.map_or("nopass".to_owned(), |password| format!("#{}", password.sha256())))
    };
    let own = store.secret(&cluster.name, OWN_USER).map_err(SecretError::from)?;
    let mut users = BTreeMap::new();
    users.insert(OWN_USER, format!("#{} ~* &* +@all", own.sha256()));
    let default = password("default", &default_password(fleet, cluster))?;
    users.insert("default", format!("{default} ~* &* +@all"));
    for (name, user) in &cluster.users {
        users.insert(name, format!("{} {}", password(name, &user.password)?, user.rules));
    }
    let mut text = String::new();
    for (name, rules) in users {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "user {name} on {rules}");
    }
    Ok(text)
}

/// Names the users that a cluster's nodes should have loaded: what
/// [`Up::acl`](fleet::observed::Up::acl) is where they have.
pub fn acl_digest(users_acl: &str) -> String {
    sha256(users_acl.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use fleet::model::{
        ClusterName, DirectiveValue, EngineWant, Pace, PlacementPolicy, PortBase, Profile, Spread,
        Takeover, User,
    };
    use protocol::Version;

    use super::*;

    fn cluster() -> Cluster {
        Cluster {
            name: ClusterName::new("cache"),
            engine: EngineWant::default(),
            shards: 3,
            replicas: 1,
            profile: Profile::Cache,
            takeover: Takeover::Promote,
            memory: None,
            ports: PortBase { tcp: 7001, tls: 7101, bus: 17001, explicit: false },
            hosts: vec![HostId::new("local")],
            placement: PlacementPolicy { primaries_host: Spread::Any, primaries_zone: Spread::Any },
            node_timeout_ms: 15_000,
            users: BTreeMap::new(),
            config: BTreeMap::from([
                ("save".to_owned(), DirectiveValue(vec![vec![String::new()]])),
                ("maxmemory".to_owned(), DirectiveValue::single("100mb")),
            ]),
            pace: Pace::Gentle,
            backup: None,
            stopped: false,
        }
    }

    fn place(address: &str, bus: u16) -> Place {
        Place {
            host: HostId::new("local"),
            address: address.parse().unwrap(),
            ports: Ports { tcp: 7001, tls: 7101, bus },
            program: Program { server: "/bin/redis-server".into(), library_path: None },
        }
    }

    fn engine(kind: EngineKind, major: u16) -> Engine {
        Engine { kind, version: Version::new(major, 2, 0) }
    }

    #[test]
    fn the_place_is_read_back() {
        let place = place("127.0.0.1", 17001);
        let secret = Secret::new("s");
        let text = node_conf(&place, &cluster(), &engine(EngineKind::Redis, 7), &secret).unwrap();
        assert_eq!(Place::parse(&text), Some(place));
        for bad in ["", "port 1", "# keyfleet {", "\n# keyfleet {}"] {
            assert_eq!(Place::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn lines_follow_engine_and_spec() {
        let check = |engine: Engine, line: &str, expected: bool| {
            let secret = Secret::new("s");
            let text = node_conf(&place("127.0.0.1", 17001), &cluster(), &engine, &secret).unwrap();
            assert_eq!(text.lines().any(|found| found == line), expected, "{engine} {line}");
        };
        let redis = |major| engine(EngineKind::Redis, major);
        let keydb = engine(EngineKind::KeyDb, 6);
        check(redis(7), "cluster-port 17001", true);
        check(redis(6), "cluster-port 17001", false);
        check(keydb, "cluster-allow-replica-migration no", false);
        check(redis(7), "cluster-allow-replica-migration no", true);
        check(redis(7), "save \"\"", true);
        check(redis(7), "maxmemory 100mb", true);
        check(redis(7), "masterauth s", true);
        check(redis(7), "protected-mode yes", true);
    }

    #[test]
    fn bus_ports_that_an_engine_cannot_have() {
        let check = |engine: Engine, bus: u16, expected: bool| {
            let made = node_conf(&place("127.0.0.1", bus), &cluster(), &engine, &Secret::new("s"));
            assert_eq!(made.is_ok(), expected, "{engine} {bus}");
        };
        check(engine(EngineKind::Redis, 6), 17001, true);
        check(engine(EngineKind::Redis, 6), 18001, false);
        check(engine(EngineKind::Redis, 7), 18001, true);
    }

    #[test]
    fn protected_mode_is_off_only_where_the_spec_asks_for_it() {
        let check = |address: &str, password: Option<PasswordSource>, expected: bool| {
            let mut cluster = cluster();
            if let Some(password) = password {
                let user = User { password, rules: "+@all ~*".into() };
                cluster.users.insert("default".into(), user);
            }
            assert_eq!(is_open_to_all(&place(address, 17001), &cluster), expected, "{address}");
        };
        check("127.0.0.1", None, false);
        check("127.0.0.1", Some(PasswordSource::None), false);
        check(&Ipv4Addr::new(10, 0, 0, 4).to_string(), None, false);
        check("10.0.0.4", Some(PasswordSource::None), true);
        check("10.0.0.4", Some(PasswordSource::Generated), false);
    }
}
