//! The spec as it is written: every key, with its reference text. Nothing is decided here; defaults
//! and limits are applied in [`super::lower`] and told here.

use std::borrow::Cow;
use std::net::IpAddr;

use protocol::EngineKind;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    config::ConfigSpec,
    quantity::{Millis, Size},
    read::{At, Choice, Decode, Entries, Field, Reader, mapping},
    tree::{Kind, Node},
};
use crate::model::{GuardMode, Pace, PasswordSource, Profile, ReadFrom, Spread, Takeover};

mapping! {
    #[schemars(title = "fleet.yaml")]
    /// What should exist: the hosts, the clusters on them, and what guard may do.
    FleetSpec {
        /// The machines that nodes may be placed on, by name. In this version every host is this
        /// machine; several hosts at several of its addresses (127.0.1.1, 127.0.2.1, …) let one
        /// rehearse how a cluster is spread. A host that is taken out is given up: nodes that run there
        /// hand over and are removed; those that don't are not waited for, and copies of what they
        /// held are made elsewhere. Default: one host `this-machine` at 127.0.0.1.
        hosts: Entries<HostSpec>,
        /// The clusters, by name: lower-case letters, digits and dashes. A cluster without any keys
        /// (`cache:`) has three shards with one replica each.
        clusters: Entries<ClusterSpec>,
        /// Proxies, by name: each lets plain clients, which know nothing of clusters, use one.
        proxies: Entries<ProxySpec>,
        /// What `keyfleet guard` may do by itself.
        guard: GuardSpec,
    }
    required ["clusters"] later []
}

mapping! {
    /// A machine.
    HostSpec {
        /// The IP address that its nodes listen on and announce, such as 127.0.1.1. In this version
        /// it is an address of this machine. Where it changes, the nodes follow one by one.
        address: IpAddr,
        /// Its failure domain, such as a provider or a rack. Default: the host's own name.
        zone: String,
        /// What its nodes may use together, such as 4GiB. The sum of the clusters' `memory` is checked
        /// against it. Default: not checked.
        memory: Size,
        /// How servers are run: `process` (plain processes, the default).
        runtime: RuntimeSpec,
    }
    required ["address"] later ["ssh", "private", "tls"]
}

mapping! {
    /// One cluster.
    ClusterSpec {
        /// Which server to run: `redis`, `valkey 9.1`, or `{kind: redis, version: 7.0}`.
        /// Default: what is installed.
        engine: EngineSpec,
        /// How many primaries share the 16,384 slots: 1 to 1000. Default: 3, the fewest of which a
        /// majority is left when one fails.
        #[schemars(range(min = 1, max = 1000))]
        shards: u32,
        /// How many replicas each primary has: 0 to 10. Default: 1.
        #[schemars(range(min = 0, max = 10))]
        replicas: u32,
        /// What the data is: `durable` (the only copy: kept on disk, never evicted; the default) or
        /// `cache` (can be had again: not kept on disk, evicted when memory is full).
        profile: Profile,
        /// What guard does when a primary is proven dead: `promote` a replica at once, or `least-loss`:
        /// restart the primary where its disk holds more than the replicas can, else promote.
        /// Default: `promote` with profile `cache`, `least-loss` with `durable`.
        takeover: Takeover,
        /// What one node may use, such as 512MiB; at least 16MiB. `maxmemory` is set below it, with
        /// room for a snapshot's copied pages and for buffers. kb, mb and gb are read as the engines
        /// read them (1mb is 1MiB; 1m is 1,000,000 bytes). Default: no limit.
        memory: Size,
        /// The ports of the first node; each further node's are one higher.
        ports: PortsSpec,
        /// The hosts that its nodes may be placed on, such as [a, b]. Default: all.
        hosts: Vec<At<String>>,
        /// How its nodes are spread over hosts and zones.
        placement: PlacementSpec,
        /// How long a node may be silent before the others call it failed (the engines'
        /// `cluster-node-timeout`), such as 15s, 500ms, or a bare number of milliseconds; 100ms to 10m.
        /// Default: 15s, as in the engines.
        node_timeout: Millis,
        /// How fast slots move between primaries: `gentle` (clients hardly notice; the default) or
        /// `full` (as fast as the servers go).
        pace: Pace,
        /// The users that clients log in as, by name. `default` may be one of them; the name
        /// `keyfleet` is taken. Default: none but the engine's own `default`.
        users: Entries<UserSpec>,
        /// Directives of the engine's configuration file, over the profile's: a mapping, such as
        /// `{maxmemory-policy: allkeys-lfu, save: ["900 1", "300 10"]}`, where a list is several lines
        /// of one directive; or the lines of a redis.conf as a block (`config: |`).
        config: ConfigSpec,
        /// Backups that guard takes. Default: none.
        backup: BackupSpec,
    }
    required [] later ["cpus", "tls", "update", "proxies", "ssh", "runtime"]
}

mapping! {
    /// Backups that guard takes of a cluster, from its replicas.
    BackupSpec {
        /// Where to: a directory (beside this file where it is relative), or `s3://BUCKET/PREFIX`,
        /// `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`. Keys are taken from guard's environment.
        to: String,
        /// How often, such as 6h; 1m to 366d. One that was missed is made up for once. Default: 1d.
        every: Millis,
        /// How many are kept. With neither `keep` nor `keep-days`, all are; the last one always is.
        #[schemars(range(min = 1, max = 100_000))]
        keep: u32,
        /// For how many days they are kept; with `keep`, what either of the two keeps.
        #[schemars(range(min = 1, max = 100_000))]
        keep_days: u32,
        /// Every command after a backup is kept too, so that `keyfleet restore --at TIME` can go back to
        /// any second. Default: false.
        continuous: bool,
    }
    required ["to"] later []
}

mapping! {
    /// The ports of a cluster's first node.
    PortsSpec {
        /// Where clients connect. Default: 7001, and taken ports are skipped; a port that is given is
        /// kept to.
        #[schemars(range(min = 1, max = 65535))]
        tcp: u32,
        /// Reserved for TLS. Default: `tcp` + 1000.
        #[schemars(range(min = 1, max = 65535))]
        tls: u32,
        /// Where nodes talk to each other. Default: `tcp` + 10000, as in the engines.
        #[schemars(range(min = 1, max = 65535))]
        bus: u32,
    }
    required [] later []
}

mapping! {
    /// How a cluster's nodes are spread.
    PlacementSpec {
        /// How primaries are spread over hosts and over zones.
        primaries: SpreadSpec,
    }
    required [] later ["replicas"]
}

mapping! {
    /// `quorum-safe`: no single one may hold so many primaries that the rest is no majority;
    /// `prefer-spread`: as even as can be, with no promise; `any`: don't care.
    SpreadSpec {
        /// Over hosts. Default: `quorum-safe` with two hosts or more, else `any`.
        host: Spread,
        /// Over zones. Default: `any`.
        zone: Spread,
    }
    required [] later []
}

mapping! {
    /// A user that clients log in as.
    UserSpec {
        /// `generate` (made once and kept in a file beside the spec; the default), `none` (no password
        /// is asked for), `{env: NAME}` (an environment variable) or `{file: PATH}` (a file's first
        /// line). The password itself never stands in the spec.
        password: PasswordSource,
        /// What the user may do, as ACL rules without on, off and passwords.
        /// Default: "+@all -@dangerous ~* &*".
        rules: String,
    }
    required [] later []
}

mapping! {
    /// A proxy on this machine.
    ProxySpec {
        /// The cluster that it serves, by name.
        cluster: String,
        /// Where clients connect: an address and a port, such as 127.0.0.1:6379, [::1]:6379 or
        /// 0.0.0.0:6379, or a unix socket's path, such as /run/app/redis.sock; or a list of them. Where
        /// it changes, clients stay connected. Default: 127.0.0.1 and port 6379, or the next free one.
        listen: OneOrMore,
        /// How many threads it has, each with connections of its own to the servers: 1 to 64. Where
        /// that changes, another process takes its sockets over, and it serves its clients for the time
        /// of `drain` before it ends. Default: 1, which serves more than most clusters can.
        #[schemars(range(min = 1, max = 64))]
        threads: u32,
        /// A second place, where clients speak TLS.
        tls: ProxyTlsSpec,
        /// Where it gives its figures away for Prometheus and `keyfleet proxy top`, such as
        /// 127.0.0.1:9121. Default: nowhere.
        metrics: String,
        /// How many clients it serves at once, at all places together; who comes beyond that is
        /// refused. Default: as many as there are files for (`ulimit -Hn`, less an eighth).
        #[schemars(range(min = 1))]
        clients_max: u32,
        /// How long it may take to answer what is under way when it ends, such as 30s; 0 to 10m.
        /// Default: 10s.
        drain: Millis,
        /// Where reads go that are not in a transaction: `primary` (the default), `replica`, `same-zone`
        /// (who is in the proxy's `zone`) or `nearest` (who answers soonest). A client may then not see
        /// at once what it wrote. Where this or a key below changes, another process takes over.
        read_from: ReadFrom,
        /// How old what a replica shows may be, such as 5s; 1s to 1h, to the second. Default: 10s.
        lag_max: Millis,
        /// The zone that the proxy is in, as hosts name theirs.
        zone: String,
        /// The file of the proxy's own users, with what each may ask (`keyfleet proxy --users`). It may
        /// change while the proxy serves. Default: only those whom the cluster knows.
        users: String,
        /// What its buffers may hold together, of all clients and servers, such as 512MiB; where they hold
        /// more, the clients that hold most are closed. At least 16MiB. Default: 1GiB.
        memory_max: Size,
        /// Requests that take so long are noted, such as 20ms: SLOWLOG shows them. Default: 10ms.
        slow_log: Millis,
        /// Look at one request in so many for the keys that are asked for most. Default: at none.
        #[schemars(range(min = 1))]
        hot_keys: u32,
        /// So much memory, such as 64MiB, for the keys that are read most: their GETs are answered from
        /// there, and the servers say when one of them changes. 1MiB or more. What that means for what
        /// clients see stands in docs/reference/proxy.md. Default: none.
        near_cache: Size,
        /// What is answered from there is not older, such as 5s; 1s to 1h, to the second. Default: 5s.
        near_cache_age: Millis,
        /// What all clients together may ask a second; who asks more is read later. Default: as much
        /// as they like.
        #[schemars(range(min = 1))]
        requests_per_second: u32,
        /// Bytes a second, of requests and replies of all clients together, such as 50MiB. Default: as
        /// many as they like.
        bytes_per_second: Size,
        /// `required`: clients come through load balancers that say whose a connection is (PROXY
        /// protocol 1 or 2), and who doesn't say it is refused. Default: `off`.
        proxy_protocol: ProxyProtocol,
    }
    required ["cluster"] later ["hosts", "pools"]
}

/// Do load balancers say whose a connection is?
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum ProxyProtocol {
    Off,
    Required,
}

impl Choice for ProxyProtocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("required", Self::Required)];
}

impl Choice for ReadFrom {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("primary", Self::Primary),
        ("replica", Self::Replica),
        ("same-zone", Self::SameZone),
        ("nearest", Self::Nearest),
    ];
}

mapping! {
    /// How a proxy serves clients that speak TLS. Changed files are read again by themselves.
    ProxyTlsSpec {
        /// Where these clients connect: an address and a port, such as 0.0.0.0:6380.
        listen: String,
        /// The file of the proxy's certificate (PEM), those that lead to a root after it. Paths begin
        /// at the directory of this file.
        cert: String,
        /// The file of its key (PEM).
        key: String,
        /// The file of those who vouch for clients (PEM). Default: clients show no certificates.
        client_ca: String,
        /// Whether clients without a certificate are served, where there is a `client-ca`: `required`
        /// (they are not; the default) or `optional`.
        client_auth: ClientAuth,
    }
    required ["listen", "cert", "key"] later []
}

/// Must clients show a certificate?
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum ClientAuth {
    Required,
    Optional,
}

impl Choice for ClientAuth {
    const WORDS: &'static [(&'static str, Self)] =
        &[("required", Self::Required), ("optional", Self::Optional)];
}

/// A text, or a list of texts.
#[derive(Debug)]
pub struct OneOrMore(pub Vec<At<String>>);

impl Decode for OneOrMore {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        if matches!(node.kind, Kind::List(_)) {
            return Vec::decode(node, reader).map(Self);
        }
        let text = reader.scalar(node, "a text or a list of texts")?.to_owned();
        Some(Self(vec![At::new(text, reader.place(node.mark))]))
    }
}

mapping! {
    /// What guard may do.
    GuardSpec {
        /// `enforce` (heal and keep primaries spread; the default), `observe` (only say what it would
        /// do) or `off`.
        mode: GuardMode,
        /// How many times an hour it may move a primary's role by itself; 0 to 1000. Default: 6.
        #[schemars(range(min = 0, max = 1000))]
        max_moves_per_hour: u32,
    }
    required [] later []
}

mapping! {
    /// Which server to run.
    EngineParts {
        /// `redis`, `valkey` or `keydb`. Default: what is installed.
        #[schemars(schema_with = "engine_kind")]
        kind: EngineKind,
        /// The version's leading numbers: 7, 7.0 or 7.0.15. Default: any.
        #[schemars(schema_with = "engine_version")]
        version: String,
        /// The server program, such as /usr/bin/redis-server. Default: it is searched for.
        path: String,
    }
    required [] later ["image"]
}

/// Which server to run, in either of its forms.
#[derive(Debug, Default)]
pub struct EngineSpec(pub EngineParts);

impl Decode for EngineSpec {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        if matches!(node.kind, Kind::Map(_)) {
            return EngineParts::decode(node, reader).map(Self);
        }
        let text =
            reader.scalar(node, "an engine, such as redis or {kind: valkey, version: 9.1}")?;
        let (kind, version) = match text.trim().split_once(char::is_whitespace) {
            Some((kind, version)) => (kind, Some(version.trim())),
            None => (text.trim(), None),
        };
        let place = reader.place(node.mark);
        let Some((_, kind)) = EngineKind::WORDS.iter().find(|(word, _)| *word == kind) else {
            reader
                .error(&place, format!("unknown engine {kind:?}"))
                .hint("write redis, valkey or keydb, with or without a version: valkey 9.1");
            return None;
        };
        let version = version.map_or(Field::Missing, |version| {
            Field::Given(At::new(version.to_owned(), place.clone()))
        });
        let kind = Field::Given(At::new(*kind, place));
        Some(Self(EngineParts { kind, version, path: Field::Missing }))
    }
}

impl Decode for PasswordSource {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        const EXPECTED: &str = "generate, none, {env: NAME} or {file: PATH}";
        if let Kind::Scalar { text, .. } = &node.kind {
            return match text.as_str() {
                "generate" => Some(Self::Generated),
                "none" => Some(Self::None),
                // What was found isn't shown: it may well be a password.
                _ => {
                    let place = reader.place(node.mark);
                    reader
                        .error(&place, format!("expected {EXPECTED}"))
                        .hint("a password never stands in the spec itself");
                    None
                }
            };
        }
        mapping! {
            /// Where a password is.
            Source {
                /// An environment variable's name.
                env: String,
                /// A file's path.
                file: String,
            }
            required [] later []
        }
        if !matches!(node.kind, Kind::Map(_)) {
            reader.wrong_kind(node, EXPECTED);
            return None;
        }
        match Source::decode(node, reader)? {
            Source { env: Field::Given(env), file: Field::Missing } => Some(Self::Env(env.value)),
            Source { env: Field::Missing, file: Field::Given(file) } => {
                Some(Self::File(file.value))
            }
            Source { env: Field::Bad, .. } | Source { file: Field::Bad, .. } => None,
            _ => {
                let place = reader.place(node.mark);
                reader.error(&place, format!("expected {EXPECTED}"));
                None
            }
        }
    }
}

/// How servers are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum RuntimeSpec {
    Process,
}

impl Choice for RuntimeSpec {
    const WORDS: &'static [(&'static str, Self)] = &[("process", Self::Process)];
    const LATER: &'static [&'static str] = &["podman", "systemd", "kubernetes", "docker"];
}

impl Choice for EngineKind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("redis", Self::Redis), ("valkey", Self::Valkey), ("keydb", Self::KeyDb)];
}

impl Choice for Profile {
    const WORDS: &'static [(&'static str, Self)] =
        &[("cache", Self::Cache), ("durable", Self::Durable)];
}

impl Choice for Takeover {
    const WORDS: &'static [(&'static str, Self)] =
        &[("promote", Self::Promote), ("least-loss", Self::LeastLoss)];
}

impl Choice for Pace {
    const WORDS: &'static [(&'static str, Self)] =
        &[("gentle", Self::Gentle), ("full", Self::Full)];
}

impl Choice for Spread {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("quorum-safe", Self::QuorumSafe),
        ("prefer-spread", Self::PreferSpread),
        ("any", Self::Any),
    ];
}

impl Choice for GuardMode {
    const WORDS: &'static [(&'static str, Self)] =
        &[("off", Self::Off), ("observe", Self::Observe), ("enforce", Self::Enforce)];
}

fn engine_kind(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["redis", "valkey", "keydb"] })
}

fn engine_version(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "number"], "pattern": "^[0-9]+(\\.[0-9]+){0,2}$" })
}

/// The schema of a wrapper is that of what it wraps.
macro_rules! transparent_schema {
    ($($wrapper:ident),*) => {$(
        impl<T: JsonSchema> JsonSchema for $wrapper<T> {
            fn inline_schema() -> bool {
                T::inline_schema()
            }

            fn schema_name() -> Cow<'static, str> {
                T::schema_name()
            }

            fn schema_id() -> Cow<'static, str> {
                T::schema_id()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                T::json_schema(generator)
            }
        }
    )*};
}
transparent_schema!(Field, At);

impl<T: JsonSchema> JsonSchema for Entries<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Entries_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        // A name alone (`cache:`) takes every default.
        json_schema!({
            "type": "object",
            "additionalProperties": { "anyOf": [value, { "type": "null" }] },
        })
    }
}

impl JsonSchema for OneOrMore {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "OneOrMore".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let list = json_schema!({
            "type": "array", "items": { "type": "string" }, "minItems": 1
        });
        json_schema!({ "anyOf": [{ "type": "string" }, list] })
    }
}

impl JsonSchema for EngineSpec {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Engine".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let parts = generator.subschema_for::<EngineParts>();
        json_schema!({
            "anyOf": [
                { "type": "string", "pattern": "^(redis|valkey|keydb)( +[0-9]+(\\.[0-9]+){0,2})?$" },
                parts,
            ]
        })
    }
}

impl JsonSchema for PasswordSource {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Password".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let source = |key: &str| {
            json_schema!({
                "type": "object",
                "properties": { key: { "type": "string" } },
                "required": [key],
                "additionalProperties": false,
            })
        };
        json_schema!({ "anyOf": [{ "enum": ["generate", "none"] }, source("env"), source("file")] })
    }
}
