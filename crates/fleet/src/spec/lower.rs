//! From the spec as it is written to the model: defaults are filled in, limits of single values are
//! checked. What must hold between values is checked in [`super::check`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    Machine,
    config::ConfigSpec,
    profile::profile_defaults,
    proxies::DraftProxy,
    quantity::Millis,
    raw::{
        BackupSpec, ClusterSpec, EngineSpec, FleetSpec, GuardSpec, HostSpec, PlacementSpec,
        PortsSpec, RuntimeSpec, SpreadSpec, UserSpec,
    },
    read::{At, Entries, Field, Place, Reader, Reported, nearest_or_all},
};
use crate::model::{
    BackupPolicy, Bytes, Cluster, ClusterName, DirectiveValue, EngineWant, GuardMode, GuardPolicy,
    Host, HostId, Pace, PasswordSource, PlacementPolicy, PortBase, Profile, Spread, Takeover, User,
    Zone, maxmemory,
};

const NAME_LENGTH_MAX: usize = 63;
const MEMORY_MIN: Bytes = Bytes::mib(16);
const NODE_TIMEOUT_MS: (u64, u64) = (100, 600_000);
const TCP: u16 = 7_001;
const TLS_OFFSET: u16 = 1_000;
const BUS_OFFSET: u16 = 10_000;
const BACKUP_EVERY_MS: u64 = 86_400_000;
const BACKUP_EVERY_RANGE_MS: (u64, u64) = (60_000, 366 * 86_400_000);
const BACKUPS_MAX: u32 = 100_000;
const BACKUP_SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];
const RULES_DEFAULT: &str = "+@all -@dangerous ~* &*";
/// A small node's replication backlog is a sixteenth of its memory, up to the profiles' own.
const BACKLOG_MAX: Bytes = Bytes::mib(16);
/// The ACL user that keyfleet itself logs in as.
const OWN_USER: &str = "keyfleet";

/// The spec with its defaults; where a part was bad it is None, so that checks leave it out.
pub struct Draft {
    pub hosts: Hosts,
    pub clusters: Vec<DraftCluster>,
    pub proxies: Vec<DraftProxy>,
    pub guard: Option<GuardPolicy>,
}

pub struct Hosts {
    pub by_id: BTreeMap<HostId, DraftHost>,
    /// Every name could be read, so one that isn't there is unknown.
    pub complete: bool,
}

pub struct DraftHost {
    pub address: Option<At<IpAddr>>,
    pub zone: Option<Zone>,
    pub memory: Field<Bytes>,
}

pub struct DraftCluster {
    pub name: At<ClusterName>,
    pub engine: Option<EngineWant>,
    pub shards: Option<At<u32>>,
    pub replicas: Option<At<u32>>,
    pub profile: Option<Profile>,
    pub takeover: Option<Takeover>,
    pub memory: Field<Bytes>,
    pub ports: Option<At<PortBase>>,
    pub hosts: Option<At<Vec<HostId>>>,
    pub primaries_host: Option<At<Spread>>,
    pub primaries_zone: Option<At<Spread>>,
    pub node_timeout_ms: Option<u64>,
    pub pace: Option<Pace>,
    pub backup: Field<BackupPolicy>,
    pub users: Option<BTreeMap<String, User>>,
    pub config: Option<BTreeMap<String, At<DirectiveValue>>>,
}

impl DraftCluster {
    /// Primaries and replicas together.
    pub fn nodes(&self) -> Option<u32> {
        Some(self.shards.as_ref()?.value * (1 + self.replicas.as_ref()?.value))
    }

    /// The model's cluster, where every part was good.
    pub fn into_cluster(self) -> Option<Cluster> {
        let profile = self.profile?;
        let memory = self.memory.optional().ok()?;
        let mut config = profile_defaults(profile);
        if let Some(memory) = memory {
            let backlog = (memory.0 / 16).clamp(Bytes::MIB, BACKLOG_MAX.0).to_string();
            config.insert("repl-backlog-size".to_owned(), DirectiveValue::single(backlog));
        }
        config.extend(self.config?.into_iter().map(|(name, value)| (name, value.value)));
        if let Some(memory) = memory {
            let limit = maxmemory(memory, profile).0.to_string();
            config.insert("maxmemory".to_owned(), DirectiveValue::single(limit));
        }
        Some(Cluster {
            name: self.name.value,
            engine: self.engine?,
            shards: self.shards?.value,
            replicas: self.replicas?.value,
            profile,
            takeover: self.takeover?,
            memory,
            ports: self.ports?.value,
            hosts: self.hosts?.value,
            placement: PlacementPolicy {
                primaries_host: self.primaries_host?.value,
                primaries_zone: self.primaries_zone?.value,
            },
            node_timeout_ms: self.node_timeout_ms?,
            users: self.users?,
            config,
            pace: self.pace?,
            backup: self.backup.optional().ok()?,
            stopped: false,
        })
    }
}

impl DraftHost {
    /// The model's host, where every part was good.
    pub fn into_host(self, id: HostId) -> Option<Host> {
        Some(Host {
            address: self.address?.value,
            zone: self.zone?,
            memory: self.memory.optional().ok()?,
            id,
        })
    }
}

/// Apply defaults and limits.
pub fn lower(spec: FleetSpec, machine: &Machine, reader: &mut Reader) -> Draft {
    let root = Place { mark: super::START, path: String::new() };
    let guard = spec.guard.or(GuardSpec::default(), &root);
    let guard = guard.and_then(|guard| lower_guard(guard, reader));
    let hosts = lower_hosts(spec.hosts, machine, reader);
    let mut clusters = Vec::new();
    if let Some(entries) = spec.clusters.given() {
        if entries.value.0.is_empty() {
            reader
                .error(&entries.place, "there are no clusters")
                .hint("name one: clusters: {main: }");
        }
        for entry in entries.value.0 {
            check_name(&entry.key, "cluster", reader);
            if let Some(spec) = entry.value {
                clusters.push(lower_cluster(entry.key, spec, &hosts, reader));
            }
        }
    }
    let proxies = spec.proxies.given().map(|entries| entries.value.0).unwrap_or_default();
    let proxies = proxies.into_iter().filter_map(|entry| {
        check_name(&entry.key, "proxy", reader);
        Some(DraftProxy::new(&entry.key, entry.value?, &clusters, reader))
    });
    let proxies = proxies.collect();
    Draft { hosts, clusters, proxies, guard }
}

fn check_name(name: &At<String>, what: &str, reader: &mut Reader) {
    let text = &name.value;
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
    if !starts || !text.chars().all(letters) || text.len() > NAME_LENGTH_MAX {
        let short: String = text.chars().take(NAME_LENGTH_MAX).collect();
        reader.error(&name.place, format!("{short:?} can't be a {what}'s name")).hint(format!(
            "use lower-case letters, digits and dashes, at most {NAME_LENGTH_MAX}, a letter first"
        ));
    }
}

/// A number of a range; None outside, which is reported.
pub(super) fn within(
    number: Option<At<u32>>,
    (least, most): (u32, u32),
    what: &str,
    reader: &mut Reader,
) -> Option<At<u32>> {
    let number = number?;
    if (least..=most).contains(&number.value) {
        return Some(number);
    }
    reader.error(&number.place, format!("{what} must be {least} to {most}, not {}", number.value));
    None
}

fn lower_guard(guard: At<GuardSpec>, reader: &mut Reader) -> Option<GuardPolicy> {
    let At { value: spec, place } = guard;
    let mode = spec.mode.or(GuardMode::Enforce, &place);
    let moves = spec.max_moves_per_hour.or(6, &place);
    let moves = within(moves, (0, 1000), "max-moves-per-hour", reader)?;
    Some(GuardPolicy { mode: mode?.value, moves_per_hour_max: moves.value })
}

fn lower_hosts(hosts: Field<Entries<HostSpec>>, machine: &Machine, reader: &mut Reader) -> Hosts {
    let none = Hosts { by_id: BTreeMap::new(), complete: false };
    let entries = match hosts {
        Field::Bad => return none,
        Field::Missing => {
            return Hosts { by_id: BTreeMap::from([this_machine()]), complete: true };
        }
        Field::Given(entries) => entries,
    };
    if entries.value.0.is_empty() {
        reader
            .error(&entries.place, "there are no hosts")
            .hint("leave hosts out to use this machine alone");
        return none;
    }
    let mut by_id = BTreeMap::new();
    for entry in entries.value.0 {
        check_name(&entry.key, "host", reader);
        let id = HostId::new(entry.key.value.clone());
        let host = match entry.value {
            Some(spec) => lower_host(&id, &entry.key.place, spec, machine, reader),
            // Its name is known at least.
            None => DraftHost { address: None, zone: None, memory: Field::Bad },
        };
        by_id.insert(id, host);
    }
    Hosts { by_id, complete: true }
}

/// The one host of a spec without hosts.
fn this_machine() -> (HostId, DraftHost) {
    let name = "this-machine";
    let place = Place { mark: super::START, path: String::new() };
    let address = At::new(IpAddr::V4(Ipv4Addr::LOCALHOST), place);
    let zone = Some(Zone::new(name));
    (HostId::new(name), DraftHost { address: Some(address), zone, memory: Field::Missing })
}

fn lower_host(
    id: &HostId,
    place: &Place,
    spec: HostSpec,
    machine: &Machine,
    reader: &mut Reader,
) -> DraftHost {
    let address = spec.address.given().filter(|address| {
        let here = address.value.is_loopback() || machine.addresses.contains(&address.value);
        if !here {
            let message = format!(
                "host {id} is at {}, which is not this machine: hosts over SSH are not supported yet",
                address.value
            );
            reader.error(&address.place, message).hint(
                "give an address of this machine, such as 127.0.0.1",
            );
        }
        here
    });
    if let Some(zone) = spec.zone.as_given() {
        check_name(zone, "zone", reader);
    }
    let zone = spec.zone.or(id.to_string(), place).map(|zone| Zone::new(zone.value));
    let memory = spec.memory.map(|size| size.0);
    match spec.runtime.given().map(|runtime| runtime.value) {
        // There is no other yet.
        Some(RuntimeSpec::Process) | None => {}
    }
    DraftHost { address, zone, memory }
}

fn lower_cluster(
    key: At<String>,
    spec: ClusterSpec,
    all_hosts: &Hosts,
    reader: &mut Reader,
) -> DraftCluster {
    let place = key.place;
    let shards = within(spec.shards.or(3, &place), (1, 1000), "shards", reader);
    let replicas = within(spec.replicas.or(1, &place), (0, 10), "replicas", reader);
    let profile = spec.profile.or(Profile::Durable, &place).map(|profile| profile.value);
    let takeover = match spec.takeover.optional() {
        Ok(Some(takeover)) => Some(takeover),
        Ok(None) => profile.map(|profile| match profile {
            Profile::Cache => Takeover::Promote,
            Profile::Durable => Takeover::LeastLoss,
        }),
        Err(Reported) => None,
    };
    let memory = spec.memory.map(|size| size.0);
    if let Some(memory) = memory.as_given()
        && memory.value < MEMORY_MIN
    {
        let message = format!("memory must be at least {MEMORY_MIN}, not {}", memory.value);
        reader.error(&memory.place, message);
    }
    let config = spec.config.or(ConfigSpec::default(), &place);
    let config = config.map(|config| config.value.canonical(reader));
    if let (Some(config), Some(memory)) = (&config, memory.as_given())
        && let Some(limit) = config.get("maxmemory")
    {
        let line = memory.place.mark.line;
        reader
            .error(&limit.place, format!("\"maxmemory\" follows from memory, given on line {line}"))
            .hint("remove one of the two");
    }
    let hosts = lower_cluster_hosts(spec.hosts, all_hosts, &place, reader);
    let (primaries_host, primaries_zone) = lower_placement(spec.placement, hosts.as_ref(), &place);
    DraftCluster {
        engine: spec.engine.or(EngineSpec::default(), &place).and_then(|e| lower_engine(e, reader)),
        shards,
        replicas,
        profile,
        takeover,
        memory,
        ports: lower_ports(spec.ports, &place, reader),
        hosts,
        primaries_host,
        primaries_zone,
        node_timeout_ms: lower_node_timeout(spec.node_timeout, &place, reader),
        pace: spec.pace.or(Pace::Gentle, &place).map(|pace| pace.value),
        backup: lower_backup(spec.backup, reader),
        users: spec
            .users
            .or(Entries::default(), &place)
            .and_then(|users| lower_users(users, reader)),
        config,
        name: At::new(ClusterName::new(key.value), place),
    }
}

fn lower_backup(backup: Field<BackupSpec>, reader: &mut Reader) -> Field<BackupPolicy> {
    let At { value: spec, place } = match backup {
        Field::Missing => return Field::Missing,
        Field::Bad => return Field::Bad,
        Field::Given(backup) => backup,
    };
    match lower_policy(spec, &place, reader) {
        Some(policy) => Field::Given(At::new(policy, place)),
        None => Field::Bad,
    }
}

fn lower_policy(spec: BackupSpec, place: &Place, reader: &mut Reader) -> Option<BackupPolicy> {
    let to = spec.to.given()?;
    let scheme = to.value.split_once("://").map(|(scheme, _)| scheme);
    if to.value.is_empty() || scheme.is_some_and(|scheme| !BACKUP_SCHEMES.contains(&scheme)) {
        reader
            .error(&to.place, format!("no place for backups: {:?}", to.value))
            .hint("a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX");
        return None;
    }
    let every = spec.every.or(Millis(BACKUP_EVERY_MS), place)?;
    let (least, most) = BACKUP_EVERY_RANGE_MS;
    if !(least..=most).contains(&every.value.0) {
        reader.error(&every.place, "every must be 1m to 366d");
        return None;
    }
    let mut number = |field: Field<u32>, what| match field {
        Field::Missing => Some(None),
        Field::Given(given) => {
            within(Some(given), (1, BACKUPS_MAX), what, reader).map(|given| Some(given.value))
        }
        Field::Bad => None,
    };
    let (keep, keep_days) = (number(spec.keep, "keep"), number(spec.keep_days, "keep-days"));
    let (keep, keep_days) = (keep?, keep_days?);
    let continuous = spec.continuous.or(false, place)?.value;
    Some(BackupPolicy { to: to.value, every_ms: every.value.0, keep, keep_days, continuous })
}

fn lower_engine(engine: At<EngineSpec>, reader: &mut Reader) -> Option<EngineWant> {
    let EngineSpec(parts) = engine.value;
    let version = match parts.version {
        Field::Bad => return None,
        Field::Missing => None,
        Field::Given(version) => match version.value.parse() {
            Ok(want) => Some(want),
            Err(error) => {
                reader.error(&version.place, format!("{error}"));
                return None;
            }
        },
    };
    let kind = parts.kind.optional().ok()?;
    let path = parts.path.optional().ok()?;
    Some(EngineWant { kind, version, path })
}

fn lower_ports(
    ports: Field<PortsSpec>,
    place: &Place,
    reader: &mut Reader,
) -> Option<At<PortBase>> {
    let At { value: spec, place } = ports.or(PortsSpec::default(), place)?;
    let mut port = |field: Field<u32>| {
        let given = match field {
            Field::Missing => return Ok(None),
            Field::Bad => return Err(Reported),
            Field::Given(given) => given,
        };
        let given = within(Some(given), (1, u32::from(u16::MAX)), "a port", reader);
        given.and_then(|given| u16::try_from(given.value).ok()).map(Some).ok_or(Reported)
    };
    let explicit = [&spec.tcp, &spec.tls, &spec.bus].iter().any(|port| port.as_given().is_some());
    let (tcp, tls, bus) = (port(spec.tcp), port(spec.tls), port(spec.bus));
    let tcp = tcp.ok()?.unwrap_or(TCP);
    let tls = tls.ok()?.or_else(|| tcp.checked_add(TLS_OFFSET));
    let bus = bus.ok()?.or_else(|| tcp.checked_add(BUS_OFFSET));
    let (Some(tls), Some(bus)) = (tls, bus) else {
        reader
            .error(
                &place,
                format!("tcp port {tcp} leaves no room for the defaults of tls (+{TLS_OFFSET}) and bus (+{BUS_OFFSET})"),
            )
            .hint(format!("give all three, or a tcp port of at most {}", u16::MAX - BUS_OFFSET));
        return None;
    };
    Some(At::new(PortBase { tcp, tls, bus, explicit }, place))
}

/// The hosts that are named, or all; None where a name is wrong.
fn lower_cluster_hosts(
    hosts: Field<Vec<At<String>>>,
    all: &Hosts,
    place: &Place,
    reader: &mut Reader,
) -> Option<At<Vec<HostId>>> {
    let At { value: named, place } = match hosts {
        Field::Given(named) => named,
        Field::Missing if all.complete => {
            return Some(At::new(all.by_id.keys().cloned().collect(), place.clone()));
        }
        Field::Missing | Field::Bad => return None,
    };
    if named.is_empty() {
        reader.error(&place, "the list of hosts is empty").hint("leave hosts out for all hosts");
        return None;
    }
    let mut ids: Vec<HostId> = Vec::new();
    let mut good = all.complete;
    for At { value: name, place } in named {
        let id = HostId::new(name.clone());
        if all.complete && !all.by_id.contains_key(&id) {
            let known: Vec<&str> = all.by_id.keys().map(HostId::as_str).collect();
            reader.error(&place, format!("unknown host {name:?}")).hint(nearest_or_all(
                &name,
                &known,
                "the hosts are",
            ));
            good = false;
        } else if ids.contains(&id) {
            reader
                .error(&place, format!("host {name:?} is there twice"))
                .hint("remove one of them");
            good = false;
        } else {
            ids.push(id);
        }
    }
    good.then(|| At::new(ids, place))
}

/// How primaries are spread over hosts and over zones.
fn lower_placement(
    placement: Field<PlacementSpec>,
    hosts: Option<&At<Vec<HostId>>>,
    place: &Place,
) -> (Option<At<Spread>>, Option<At<Spread>>) {
    let primaries = placement.or(PlacementSpec::default(), place).and_then(|placement| {
        placement.value.primaries.or(SpreadSpec::default(), &placement.place)
    });
    let Some(At { value: SpreadSpec { host, zone }, place }) = primaries else {
        return (None, None);
    };
    let host = match (host, hosts) {
        // The default can't be told while the hosts are not known.
        (Field::Missing, None) => None,
        (host, hosts) => {
            let several = hosts.is_some_and(|hosts| hosts.value.len() > 1);
            host.or(if several { Spread::QuorumSafe } else { Spread::Any }, &place)
        }
    };
    (host, zone.or(Spread::Any, &place))
}

fn lower_node_timeout(timeout: Field<Millis>, place: &Place, reader: &mut Reader) -> Option<u64> {
    let timeout = timeout.or(Millis(15_000), place)?;
    let Millis(timeout_ms) = timeout.value;
    let (least, most) = NODE_TIMEOUT_MS;
    if (least..=most).contains(&timeout_ms) {
        return Some(timeout_ms);
    }
    let message = format!("node-timeout must be 100ms to 10m, not {timeout_ms}ms");
    reader.error(&timeout.place, message);
    None
}

fn lower_users(
    users: At<Entries<UserSpec>>,
    reader: &mut Reader,
) -> Option<BTreeMap<String, User>> {
    let mut lowered = BTreeMap::new();
    let mut good = true;
    for entry in users.value.0 {
        let At { value: name, place } = entry.key;
        let user = entry.value.and_then(|spec| lower_user(spec, &place, reader));
        let problem = if name == OWN_USER {
            Some("the name \"keyfleet\" is taken by keyfleet itself".to_owned())
        } else if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            Some(format!("{name:?} can't be a user's name: it is empty or has white space"))
        } else {
            None
        };
        if let Some(problem) = &problem {
            reader.error(&place, problem).hint("take another name");
        }
        match user {
            Some(user) if problem.is_none() => drop(lowered.insert(name, user)),
            _ => good = false,
        }
    }
    good.then_some(lowered)
}

fn lower_user(spec: UserSpec, place: &Place, reader: &mut Reader) -> Option<User> {
    let password = spec.password.or(PasswordSource::Generated, place)?.value;
    let rules = spec.rules.or(RULES_DEFAULT.to_owned(), place)?;
    let mut good = true;
    for rule in rules.value.split_whitespace() {
        let of_password = rule.starts_with(['>', '<', '#', '!']);
        let lower = rule.to_ascii_lowercase();
        let of_state = ["on", "off", "nopass", "resetpass", "reset"].contains(&lower.as_str());
        if of_password || of_state {
            // A password isn't shown.
            let shown: String = if of_password { rule.chars().take(1).collect() } else { lower };
            reader
                .error(
                    &rules.place,
                    format!("rules can't have {shown:?}: it is about passwords or state"),
                )
                .hint("give the password as password: {env: NAME}, {file: PATH}, generate or none");
            good = false;
        }
    }
    good.then_some(User { password, rules: rules.value })
}
