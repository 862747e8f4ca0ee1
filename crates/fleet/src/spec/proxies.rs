//! The proxies of a spec: defaults, limits, and that nobody else listens where they do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{
    check::{port_ranges, show},
    lower::{Draft, DraftCluster, within},
    quantity::{Millis, Size},
    raw::{ClientAuth, ProxyProtocol, ProxySpec, ProxyTlsSpec},
    read::{At, Field, Place, Reader, Reported, nearest_or_all},
};
use crate::model::{
    Bytes, ClusterName, HostId, Listen, NearCache, Proxy, ProxyAddress, ProxyName, ProxyService,
    ProxyStart, ProxyTls, ReadFrom,
};

const PORT: u16 = 6_379;
const THREADS_MAX: u32 = 64;
const DRAIN_MS_MAX: u64 = 600_000;
const SPAN_MAX_S: u32 = 3_600;
/// A unix socket's path may have so many bytes (`sun_path` of unix(7), with its last 0).
const PATH_BYTES_MAX: usize = 107;

/// A proxy with its defaults; where a part was bad it is None.
pub struct DraftProxy {
    pub name: ProxyName,
    pub cluster: Option<ClusterName>,
    pub listen: Option<Vec<At<Listen>>>,
    pub start: Option<ProxyStart>,
    pub tls: Result<Option<At<ProxyTls>>, Reported>,
    pub metrics: Result<Option<At<SocketAddr>>, Reported>,
    pub clients_max: Result<Option<u32>, Reported>,
    pub drain_ms: Option<u64>,
}

impl DraftProxy {
    pub fn new(
        name: &At<String>,
        mut spec: ProxySpec,
        clusters: &[DraftCluster],
        reader: &mut Reader,
    ) -> Self {
        let start = Self::start(&name.place, &mut spec, reader);
        let cluster = spec.cluster.given().and_then(|cluster| {
            let known = |known: &&DraftCluster| known.name.value.as_str() == cluster.value;
            if let Some(known) = clusters.iter().find(known) {
                return Some(known.name.value.clone());
            }
            let names: Vec<&str> = clusters.iter().map(|known| known.name.value.as_str()).collect();
            let hint = nearest_or_all(&cluster.value, &names, "the clusters are");
            reader.error(&cluster.place, format!("no cluster {:?}", cluster.value)).hint(hint);
            None
        });
        let listen = match spec.listen {
            Field::Given(listen) if listen.value.0.is_empty() => {
                reader.error(&listen.place, "a proxy listens at one place at least");
                None
            }
            Field::Given(listen) => {
                let places = listen.value.0.into_iter();
                let read: Vec<_> = places.map(|place| address_or_path(place, reader)).collect();
                read.into_iter().collect()
            }
            Field::Missing => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
                let listen = Listen { address: ProxyAddress::Tcp(address), explicit: false };
                Some(vec![At::new(listen, name.place.clone())])
            }
            Field::Bad => None,
        };
        let clients_max = count(spec.clients_max, "clients-max", reader);
        let drain = spec.drain.or(Millis(ProxyService::PLAIN.drain_ms), &name.place);
        let drain_ms = drain.and_then(|drain| {
            if drain.value.0 > DRAIN_MS_MAX {
                reader.error(&drain.place, "drain must be at most 10m");
            }
            (drain.value.0 <= DRAIN_MS_MAX).then_some(drain.value.0)
        });
        Self {
            name: ProxyName::new(&name.value),
            cluster,
            listen,
            start,
            tls: lower_tls(spec.tls, reader),
            metrics: match spec.metrics {
                Field::Given(text) => address(text, reader).map(Some).ok_or(Reported),
                field => field.optional().map(|_| None),
            },
            clients_max,
            drain_ms,
        }
    }

    /// What is settled when it starts.
    fn start(place: &Place, spec: &mut ProxySpec, reader: &mut Reader) -> Option<ProxyStart> {
        let plain = ProxyStart::PLAIN;
        let threads = take(&mut spec.threads).or(plain.threads, place);
        let threads = within(threads, (1, THREADS_MAX), "threads", reader);
        let read_from = take(&mut spec.read_from).or(plain.read_from, place);
        let zone = take(&mut spec.zone);
        if let (Some(At { value: ReadFrom::SameZone, place }), Field::Missing) = (&read_from, &zone)
        {
            let hint = "say where it is, as hosts name their zones: zone: a";
            reader.error(place, "nobody knows the proxy's zone").hint(hint);
            return None;
        }
        let lag_max = take(&mut spec.lag_max).or(Millis(u64::from(plain.lag_max_s) * 1_000), place);
        let lag_max = lag_max.and_then(|lag| seconds(&lag, "lag-max", reader));
        let memory_max = take(&mut spec.memory_max).or(Size(Bytes(plain.memory_max_bytes)), place);
        let memory_max = memory_max.filter(|size| {
            let enough = size.value.0.0 >= ProxyStart::MEMORY_MIN;
            if !enough {
                reader.error(&size.place, "memory-max must be 16MiB or more");
            }
            enough
        });
        let slow_log = take(&mut spec.slow_log).or(Millis(plain.slow_log_ms), place);
        let hot_keys = count(take(&mut spec.hot_keys), "hot-keys", reader);
        let near_cache = Self::near_cache(spec, place, reader);
        let requests = take(&mut spec.requests_per_second);
        let requests_per_second = count(requests, "requests-per-second", reader);
        let bytes_per_second = take(&mut spec.bytes_per_second).optional();
        let users = take(&mut spec.users).optional();
        let protocol = take(&mut spec.proxy_protocol).or(ProxyProtocol::Off, place);
        Some(ProxyStart {
            threads: threads?.value,
            read_from: read_from?.value,
            lag_max_s: lag_max?,
            zone: zone.optional().ok()?,
            users: users.ok()?,
            memory_max_bytes: memory_max?.value.0.0,
            slow_log_ms: slow_log?.value.0,
            hot_keys: hot_keys.ok()?,
            near_cache: near_cache.ok()?,
            requests_per_second: requests_per_second.ok()?,
            bytes_per_second: bytes_per_second.ok()?.map(|size| size.0.0),
            proxy_protocol: protocol?.value == ProxyProtocol::Required,
        })
    }

    fn near_cache(
        spec: &mut ProxySpec,
        place: &Place,
        reader: &mut Reader,
    ) -> Result<Option<NearCache>, Reported> {
        let age = take(&mut spec.near_cache_age);
        let size = match take(&mut spec.near_cache) {
            Field::Given(size) => size,
            field => {
                if let (Field::Given(age), Field::Missing) = (&age, &field) {
                    reader
                        .error(&age.place, "near-cache-age says nothing without near-cache")
                        .hint("say how much it may hold: near-cache: 64MiB");
                }
                return field.optional().map(|_| None);
            }
        };
        let bytes = size.value.0.0;
        if bytes < NearCache::BYTES_MIN {
            reader.error(&size.place, "near-cache must be 1MiB or more");
        }
        let age = age.or(Millis(u64::from(NearCache::AGE_S) * 1_000), place);
        let age_s = age.and_then(|age| seconds(&age, "near-cache-age", reader));
        let near = age_s.filter(|_| bytes >= NearCache::BYTES_MIN);
        near.map(|age_s| Some(NearCache { bytes, age_s })).ok_or(Reported)
    }

    /// The model's proxy, where every part was good.
    pub fn into_proxy(self) -> Option<Proxy> {
        let service = ProxyService {
            tls: self.tls.ok()?.map(|tls| tls.value),
            metrics: self.metrics.ok()?.map(|metrics| metrics.value),
            clients_max: self.clients_max.ok()?,
            drain_ms: self.drain_ms?,
        };
        Some(Proxy {
            name: self.name,
            cluster: self.cluster?,
            listen: self.listen?.into_iter().map(|listen| listen.value).collect(),
            start: self.start?,
            service,
        })
    }

    /// Every port that the spec names.
    fn ports(&self) -> impl Iterator<Item = At<SocketAddr>> + '_ {
        let explicit = |listen: &&At<Listen>| listen.value.explicit;
        let plain = self.listen.iter().flatten().filter(explicit).filter_map(|listen| {
            let ProxyAddress::Tcp(address) = listen.value.address else { return None };
            Some(At::new(address, listen.place.clone()))
        });
        let tls = self.tls.iter().flatten();
        let tls = tls.map(|tls| At::new(tls.value.listen, tls.place.clone()));
        plain.chain(tls).chain(self.metrics.iter().flatten().cloned())
    }
}

fn take<T>(field: &mut Field<T>) -> Field<T> {
    std::mem::replace(field, Field::Missing)
}

/// A span of 1 s to 1 h, in whole seconds.
fn seconds(span: &At<Millis>, what: &str, reader: &mut Reader) -> Option<u32> {
    let seconds = u32::try_from(span.value.0 / 1_000).ok();
    let seconds = seconds.filter(|seconds| (1..=SPAN_MAX_S).contains(seconds));
    if seconds.is_none() {
        reader.error(&span.place, format!("{what} must be 1s to 1h"));
    }
    seconds
}

/// A number above 0, where one is given.
fn count(field: Field<u32>, what: &str, reader: &mut Reader) -> Result<Option<u32>, Reported> {
    match field {
        Field::Given(number) => {
            let number = within(Some(number), (1, u32::MAX), what, reader);
            number.map(|number| Some(number.value)).ok_or(Reported)
        }
        field => field.optional(),
    }
}

fn lower_tls(
    tls: Field<ProxyTlsSpec>,
    reader: &mut Reader,
) -> Result<Option<At<ProxyTls>>, Reported> {
    let At { value: spec, place } = match tls {
        Field::Given(tls) => tls,
        field => return field.optional().map(|_| None),
    };
    if let (Field::Given(auth), Field::Missing) = (&spec.client_auth, &spec.client_ca) {
        reader
            .error(&auth.place, "client-auth says nothing without client-ca")
            .hint("name the file of those who vouch for clients: client-ca: clients.pem");
    }
    let listen = spec.listen.given().and_then(|text| address(text, reader));
    let client_auth = spec.client_auth.or(ClientAuth::Required, &place);
    let parts = (listen, spec.cert.given(), spec.key.given(), client_auth);
    let (client_ca, (Some(listen), Some(cert), Some(key), Some(auth))) =
        (spec.client_ca.optional()?, parts)
    else {
        return Err(Reported);
    };
    let tls = ProxyTls {
        listen: listen.value,
        cert: cert.value,
        key: key.value,
        client_ca,
        client_optional: auth.value == ClientAuth::Optional,
    };
    Ok(Some(At::new(tls, listen.place)))
}

fn address(text: At<String>, reader: &mut Reader) -> Option<At<SocketAddr>> {
    let address = text.value.parse();
    if address.is_err() {
        let message = format!("not an address with a port: {:?}", text.value);
        let hint = "names are not looked up: write it such as 127.0.0.1:6379";
        reader.error(&text.place, message).hint(hint);
    }
    Some(At::new(address.ok()?, text.place))
}

fn address_or_path(text: At<String>, reader: &mut Reader) -> Option<At<Listen>> {
    let explicit = true;
    if !text.value.contains('/') {
        return address(text, reader).map(|address| {
            let listen = Listen { address: ProxyAddress::Tcp(address.value), explicit };
            At::new(listen, address.place)
        });
    }
    if text.value.len() > PATH_BYTES_MAX {
        let message = format!("a socket's path may have {PATH_BYTES_MAX} bytes at most");
        reader.error(&text.place, message);
        return None;
    }
    Some(At::new(Listen { address: ProxyAddress::Path(text.value), explicit }, text.place))
}

/// A proxy's port is neither another proxy's nor a node's, and no two share a path.
pub fn check(draft: &Draft, reader: &mut Reader) {
    let ports = draft.proxies.iter().flat_map(|proxy| {
        let ports = proxy.ports().collect::<Vec<_>>();
        ports.into_iter().map(move |port| (&proxy.name, port))
    });
    let ports: Vec<(&ProxyName, At<SocketAddr>)> = ports.collect();
    let meet =
        |one: IpAddr, other: IpAddr| one == other || one.is_unspecified() || other.is_unspecified();
    for (index, (_, second)) in ports.iter().enumerate() {
        let address = second.value;
        let earlier = ports.iter().take(index).find(|(_, first)| {
            first.value.port() == address.port() && meet(first.value.ip(), address.ip())
        });
        if let Some((name, first)) = earlier {
            let line = first.place.mark.line;
            let message = format!("proxy {name} listens at {} (line {line})", first.value);
            reader.error(&second.place, message).hint("give each a port of its own");
        }
        for cluster in &draft.clusters {
            let on = |id: &&HostId| {
                let host = draft.hosts.by_id.get(*id).and_then(|host| host.address.as_ref());
                host.is_some_and(|host| meet(host.value, address.ip()))
            };
            let shared = cluster.hosts.iter().flat_map(|hosts| &hosts.value).any(|id| on(&id));
            let insists = cluster.ports.as_ref().is_some_and(|ports| ports.value.explicit);
            let ranges = port_ranges(cluster).filter(|_| shared && insists);
            let port = u32::from(address.port());
            let taken = ranges.into_iter().flatten().find(|(_, range)| range.contains(&port));
            if let Some((kind, range)) = taken {
                let name = &cluster.name.value;
                let message =
                    format!("port {port} is among the {kind} ports {} of {name}", show(&range));
                reader.error(&second.place, message).hint("set another port");
            }
        }
    }
    let listens = draft.proxies.iter().flat_map(|proxy| proxy.listen.iter().flatten());
    let paths: Vec<&At<Listen>> =
        listens.filter(|at| matches!(at.value.address, ProxyAddress::Path(_))).collect();
    for (index, second) in paths.iter().enumerate() {
        if paths.iter().take(index).any(|first| first.value == second.value) {
            let message = format!("{} is listened at already", second.value.address);
            reader.error(&second.place, message).hint("give each a path of its own");
        }
    }
}
