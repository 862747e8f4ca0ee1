//! nutcracker.yml: the pools of a twemproxy, read as twemproxy 0.5.0 reads them, with every error
//! at once.
//!
//! What it refuses is refused, with these differences (a test compares the two on many files):
//!
//! - Accepted here: flow style, anchors and aliases, `---` and `...` around the one document,
//!   `%YAML`; and `reuseport`, which twemproxy's main branch has. Listeners' names that don't
//!   resolve: nothing is looked up here.
//! - Refused here: pools for memcached, which are the default there. Numbers from 2^32 on, which
//!   wrap around there. A listening socket's mode that isn't octal, which counts as far as it is.
//!   Servers with an empty name (a space at the end, in quotes), without a host, with an address in
//!   brackets, or with a socket's path that the system can't take: it could not connect to them.
//!   Lists in other places than `servers`. A plain `~`, which is YAML's word for nothing.
//!
//! Other values are text, as there: `null` is a password like others.

use std::{collections::BTreeMap, fmt};

use protocol::key_hash::twemproxy::{Distribution, Hash, HashTag, KeyHash, Ring, RingServer};

use super::{
    START, SpecErrors,
    read::{At, Place, Reader, is_null, nearest_or_all},
    tree::{self, Kind, Node, Style},
};

/// One twemproxy: a listener in front of a ring of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    pub listen: Listen,
    pub key_hash: KeyHash,
    pub distribution: Distribution,
    /// In twemproxy's order: by the length of their names, then by name. Never empty.
    pub servers: Vec<PoolServer>,
    /// How long to wait for a server to connect or to answer; without one, for ever.
    pub timeout_ms: Option<u32>,
    /// How many connections may wait to be accepted.
    pub backlog: u32,
    /// TCP keepalive on the connections of clients.
    pub tcp_keepalive: bool,
    /// What clients must send with AUTH, and what is sent to servers.
    pub redis_auth: Option<Password>,
    /// The database that is selected at servers.
    pub redis_db: u32,
    /// Connect to servers at once, not at the first request.
    pub preconnect: bool,
    /// Take servers that fail out of the ring for a while.
    pub auto_eject_hosts: bool,
    /// Connections to a server; at least 1.
    pub server_connections: u32,
    /// How long a server stays out of the ring.
    pub server_retry_timeout_ms: u32,
    /// After so many failures in a row a server leaves the ring; 0 is as 1.
    pub server_failure_limit: u32,
}

impl Pool {
    /// The ring of those servers that are in use, by their place in the list.
    pub fn ring(&self, in_use: impl Fn(usize) -> bool) -> Ring {
        let live = self.servers.iter().enumerate().filter(|(index, _)| in_use(*index));
        let live = live.map(|(index, server)| RingServer {
            id: index as u32,
            name: &server.name,
            weight: server.weight,
        });
        Ring::new(self.distribution, &live.collect::<Vec<_>>())
    }
}

/// Where a pool takes connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(HostPort),
    /// A socket in the file system, with the mode it is given.
    Unix {
        path: String,
        mode: Option<u32>,
    },
}

/// A server of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolServer {
    /// What its place in the ring depends on: its name, or else its address as twemproxy writes
    /// it: `host:port`, only `host` at port 11211, `/path:` with the colon.
    pub name: String,
    pub address: ServerAddress,
    /// From 1 on.
    pub weight: u32,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Tcp(HostPort),
    Unix(String),
}

/// `host:port`; the host may be a name, to be resolved at each new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// A password that stands in the file. It shows in no output.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Where clients of memcached and, after them, twemproxy leave the port out of a server's name.
const PORT_LEFT_OUT: u16 = 11211;
/// What a socket's path may have at most: `sun_path` of Linux without its end.
const PATH_MAX: usize = 107;
/// twemproxy's numbers are C's `int`.
const NUMBER_MAX: u32 = 0x7fff_ffff;

const KEYS: [&str; 18] = [
    "listen",
    "hash",
    "hash_tag",
    "distribution",
    "timeout",
    "backlog",
    "client_connections",
    "redis",
    "tcpkeepalive",
    "reuseport",
    "redis_auth",
    "redis_db",
    "preconnect",
    "auto_eject_hosts",
    "server_connections",
    "server_retry_timeout",
    "server_failure_limit",
    "servers",
];

/// The pools of a file, in twemproxy's order: by the length of their names, then by name; never
/// none. `file` is its name for messages.
pub fn parse(text: &str, file: &str) -> Result<Vec<Pool>, SpecErrors> {
    let mut reader = Reader::new(file);
    let pools = read(text, &mut reader);
    let (errors, _) = reader.finish();
    match pools {
        Some(mut pools) if errors.is_empty() => {
            pools.sort_by(|a, b| in_order(&a.name, &b.name));
            Ok(pools)
        }
        _ => Err(SpecErrors(errors)),
    }
}

fn in_order(a: &str, b: &str) -> std::cmp::Ordering {
    (a.len(), a).cmp(&(b.len(), b))
}

/// None only where an error was reported.
fn read(text: &str, reader: &mut Reader) -> Option<Vec<Pool>> {
    let start = Place { mark: START, path: String::new() };
    let root = match tree::read(text) {
        Ok(Some(root)) => root,
        Ok(None) => {
            reader.error(&start, "the file has no pools");
            return None;
        }
        Err(bad) => {
            let place = Place { mark: bad.mark, path: String::new() };
            reader.error(&place, bad.message).hint = bad.hint;
            return None;
        }
    };
    let entries = reader.entries(&root, "a mapping from pools' names")?;
    if entries.is_empty() {
        reader.error(&start, "the file has no pools");
    }
    let mut listeners = Unique::new("listen on");
    let mut pools = Vec::new();
    for (name, node) in entries {
        let pool = reader.within(&name.value, |reader| pool(&name, node, &mut listeners, reader));
        pools.push(pool);
    }
    pools.into_iter().collect()
}

/// Texts that may be there once.
struct Unique {
    seen: BTreeMap<String, usize>,
    /// `{what} "…"` is what two can't.
    what: &'static str,
}

impl Unique {
    fn new(what: &'static str) -> Self {
        Self { seen: BTreeMap::new(), what }
    }

    fn add(&mut self, text: &str, place: &Place, reader: &mut Reader) {
        if let Some(line) = self.seen.get(text) {
            reader.error(
                place,
                format!("two can't {} {text:?}; the first is on line {line}", self.what),
            );
        } else {
            self.seen.insert(text.to_owned(), place.mark.line);
        }
    }
}

/// The keys of a pool that are not read yet.
struct Keys<'a>(Vec<(At<String>, &'a Node)>);

impl<'a> Keys<'a> {
    fn take(&mut self, name: &str) -> Option<(At<String>, &'a Node)> {
        let index = self.0.iter().position(|(key, _)| key.value == name)?;
        Some(self.0.remove(index))
    }

    /// Reads the value of a key; None where it is missing, or bad, which is reported.
    fn read<T>(
        &mut self,
        name: &str,
        reader: &mut Reader,
        read: impl FnOnce(&str, &Place, &mut Reader) -> Option<T>,
    ) -> Option<T> {
        let (key, node) = self.take(name)?;
        reader.within(name, |reader| {
            let (text, place) = text(node, &key.place, reader)?;
            read(text, &place, reader)
        })
    }
}

/// A scalar's own text, which can't be empty. `key` is where it is missed.
fn text<'a>(node: &'a Node, key: &Place, reader: &mut Reader) -> Option<(&'a str, Place)> {
    match &node.kind {
        // The tree has a tilde where nothing is written.
        Kind::Scalar { text, style }
            if text.is_empty() || (text == "~" && *style == Style::Plain) =>
        {
            reader.error(key, "the value is empty").hint("remove the key, or give it a value");
            None
        }
        Kind::Scalar { text, .. } => Some((text, reader.place(node.mark))),
        Kind::List(_) | Kind::Map(_) => {
            reader.wrong_kind(node, "a text");
            None
        }
    }
}

fn pool(
    name: &At<String>,
    node: &Node,
    listeners: &mut Unique,
    reader: &mut Reader,
) -> Option<Pool> {
    if name.value.is_empty() {
        reader.error(&name.place, "a pool's name is empty");
    }
    if is_null(node) {
        reader.error(&name.place, format!("pool {:?} is empty", name.value));
        return None;
    }
    let mut keys = Keys(reader.entries(node, "a mapping of keys and values")?);
    for (key, _) in &keys.0 {
        if !KEYS.contains(&key.value.as_str()) {
            let hint = nearest_or_all(&key.value, &KEYS, "twemproxy's keys are");
            reader.error(&key.place, format!("unknown key {:?}", key.value)).hint(hint);
        }
    }
    for name in ["listen", "servers"] {
        if !keys.0.iter().any(|(key, _)| key.value == name) {
            let message = format!("{name:?} is missing");
            reader.error(&reader.place(node.mark), message);
        }
    }
    for_redis(name, &mut keys, reader);
    let address = keys.read("listen", reader, |text, place, reader| {
        listeners.add(text, place, reader);
        listen(text, place, reader)
    });
    let servers = keys.take("servers");
    let servers = servers
        .and_then(|(key, node)| reader.within("servers", |reader| servers_of(&key, node, reader)));
    let hash = keys.read("hash", reader, |text, place, reader| {
        one_of(text, &Hash::ALL.map(|hash| (hash.name(), hash)), place, reader)
    });
    let tag = keys.read("hash_tag", reader, hash_tag);
    let distribution = keys.read("distribution", reader, |text, place, reader| {
        let known = Distribution::ALL.map(|distribution| (distribution.name(), distribution));
        one_of(text, &known, place, reader)
    });
    let timeout_ms = keys.read("timeout", reader, number);
    keys.read("client_connections", reader, number);
    keys.read("reuseport", reader, truth);
    Some(Pool {
        name: name.value.clone(),
        listen: address?,
        key_hash: KeyHash { hash: hash.unwrap_or_default(), tag },
        distribution: distribution.unwrap_or_default(),
        servers: servers?,
        timeout_ms: timeout_ms.filter(|timeout_ms| *timeout_ms > 0),
        backlog: keys.read("backlog", reader, number).unwrap_or(512),
        tcp_keepalive: keys.read("tcpkeepalive", reader, truth).unwrap_or(false),
        redis_auth: keys.read("redis_auth", reader, |text, _, _| Some(Password(text.to_owned()))),
        redis_db: keys.read("redis_db", reader, number).unwrap_or(0),
        preconnect: keys.read("preconnect", reader, truth).unwrap_or(false),
        auto_eject_hosts: keys.read("auto_eject_hosts", reader, truth).unwrap_or(false),
        server_connections: keys.read("server_connections", reader, positive).unwrap_or(1),
        server_retry_timeout_ms: keys
            .read("server_retry_timeout", reader, number)
            .unwrap_or(30_000),
        server_failure_limit: keys.read("server_failure_limit", reader, number).unwrap_or(2),
    })
}

/// Reports a pool that is for memcached.
fn for_redis(name: &At<String>, keys: &mut Keys<'_>, reader: &mut Reader) {
    let hint =
        "pools of memcached are not served; if these are Redis servers, write \"redis: true\"";
    let given = keys.0.iter().find(|(key, _)| key.value == "redis");
    let place = given.map_or(&name.place, |(key, _)| &key.place).clone();
    let redis = if given.is_some() { keys.read("redis", reader, truth) } else { Some(false) };
    if redis == Some(false) {
        reader.error(&place, format!("pool {:?} is for memcached", name.value)).hint(hint);
    }
}

fn one_of<T: Copy>(
    text: &str,
    known: &[(&str, T)],
    place: &Place,
    reader: &mut Reader,
) -> Option<T> {
    let found = known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    if found.is_none() {
        // All of them: a wrong guess that is followed sends every key elsewhere.
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let hint = format!("there are {}", names.join(", "));
        reader.error(place, format!("there is no {text:?}")).hint(hint);
    }
    found
}

fn truth(text: &str, place: &Place, reader: &mut Reader) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => {
            reader.error(place, format!("expected true or false, found {text:?}"));
            None
        }
    }
}

/// Digits only, up to [`NUMBER_MAX`].
fn digits(text: &str) -> Option<u32> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    number.filter(|number| *number <= NUMBER_MAX)
}

fn number(text: &str, place: &Place, reader: &mut Reader) -> Option<u32> {
    let number = digits(text);
    if number.is_none() {
        let message = format!("expected a whole number up to {NUMBER_MAX}, found {text:?}");
        let error = reader.error(place, message);
        if text.ends_with(|last: char| last.is_ascii_alphabetic()) {
            error.hint("digits only; times are in milliseconds");
        }
    }
    number
}

fn positive(text: &str, place: &Place, reader: &mut Reader) -> Option<u32> {
    let number = number(text, place, reader)?;
    if number == 0 {
        reader.error(place, "it can't be 0");
        return None;
    }
    Some(number)
}

/// Two bytes, as twemproxy counts; one character of two bytes makes a tag that no text has.
fn hash_tag(text: &str, place: &Place, reader: &mut Reader) -> Option<HashTag> {
    if let [open, close] = *text.as_bytes() {
        return Some(HashTag { open, close });
    }
    reader
        .error(place, format!("expected two characters, found {text:?}"))
        .hint("the characters around the part of a key that is hashed, such as \"{}\"");
    None
}

fn port(text: &str, place: &Place, reader: &mut Reader) -> Option<u16> {
    let port = digits(text).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    if port.is_none() {
        reader.error(place, format!("expected a port from 1 to 65535, found {text:?}"));
    }
    port
}

fn path(text: &str, place: &Place, reader: &mut Reader) -> Option<String> {
    if text.len() > PATH_MAX {
        let message = format!("the path has {} bytes; a socket's may have {PATH_MAX}", text.len());
        reader.error(place, message);
        return None;
    }
    Some(text.to_owned())
}

/// The text before the last colon, which must not be empty, with the port after it.
fn host_port(host: &str, port_text: &str, place: &Place, reader: &mut Reader) -> Option<HostPort> {
    let bad = if host.is_empty() {
        Some("the host is missing")
    } else if host.starts_with('[') {
        Some("IPv6 addresses stand without brackets here")
    } else {
        None
    };
    if let Some(bad) = bad {
        reader.error(place, bad).hint("such as 127.0.0.1:6379, db1:6379 or ::1:6379");
    }
    let port = port(port_text, place, reader)?;
    bad.is_none().then(|| HostPort { host: host.to_owned(), port })
}

/// `host:port`, or `/path [mode]`
fn listen(text: &str, place: &Place, reader: &mut Reader) -> Option<Listen> {
    if !text.starts_with('/') {
        let Some((host, port)) = text.rsplit_once(':') else {
            reader
                .error(place, format!("expected host:port or /path, found {text:?}"))
                .hint("such as 127.0.0.1:22121 or /run/nutcracker.sock");
            return None;
        };
        return host_port(host, port, place, reader).map(Listen::Tcp);
    }
    let Some((file, mode)) = text.rsplit_once(' ') else {
        return Some(Listen::Unix { path: path(text, place, reader)?, mode: None });
    };
    let bits = mode.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let bits = bits.then(|| u32::from_str_radix(mode, 8).ok()).flatten();
    let Some(bits) = bits.filter(|bits| *bits <= 0o777) else {
        reader
            .error(place, format!("expected a mode from 0 to 0777, found {mode:?}"))
            .hint("such as /run/nutcracker.sock 0660");
        return None;
    };
    Some(Listen::Unix { path: path(file, place, reader)?, mode: Some(bits) })
}

fn servers_of(key: &At<String>, node: &Node, reader: &mut Reader) -> Option<Vec<PoolServer>> {
    let items = match &node.kind {
        Kind::List(items) => items.as_slice(),
        _ if is_null(node) => &[],
        _ => {
            reader.wrong_kind(node, "a list of servers");
            return None;
        }
    };
    if items.is_empty() {
        reader.error(&key.place, "there are no servers");
    }
    let mut names = Unique::new("be named");
    let mut servers = Vec::new();
    for (index, item) in items.iter().enumerate() {
        servers.push(reader.within(&index.to_string(), |reader| {
            let place = reader.place(item.mark);
            let (text, place) = text(item, &place, reader)?;
            let server = server(text, &place, reader)?;
            names.add(&server.name, &place, reader);
            Some(server)
        }));
    }
    let mut servers = servers.into_iter().collect::<Option<Vec<_>>>()?;
    servers.sort_by(|a, b| in_order(&a.name, &b.name));
    Some(servers)
}

/// `host:port:weight [name]` or `/path:weight [name]`; each part up to the last separator.
fn server(text: &str, place: &Place, reader: &mut Reader) -> Option<PoolServer> {
    let (rest, name) = match text.rsplit_once(' ') {
        Some((rest, name)) => (rest, Some(name)),
        None => (text, None),
    };
    let is_path = text.starts_with('/');
    let colons = rest.bytes().filter(|byte| *byte == b':').count();
    let parts = rest.rsplit_once(':').filter(|_| if is_path { colons == 1 } else { colons > 1 });
    let Some((address, weight)) = parts.filter(|_| name != Some("")) else {
        reader
            .error(place, format!("expected host:port:weight or /path:weight, found {text:?}"))
            .hint("such as 127.0.0.1:6379:1, or 127.0.0.1:6379:1 name");
        return None;
    };
    let weight = digits(weight).filter(|weight| *weight > 0);
    if weight.is_none() {
        let message = format!("expected a weight from 1 to {NUMBER_MAX} in {text:?}");
        reader.error(place, message).hint("such as 127.0.0.1:6379:1: host, port, weight");
    }
    let (own, address) = if is_path {
        (format!("{address}:"), ServerAddress::Unix(path(address, place, reader)?))
    } else {
        let (host, port) = address.rsplit_once(':')?;
        let at = host_port(host, port, place, reader)?;
        let own = if at.port == PORT_LEFT_OUT { host } else { address };
        (own.to_owned(), ServerAddress::Tcp(at))
    };
    Some(PoolServer { name: name.map_or(own, str::to_owned), address, weight: weight? })
}
