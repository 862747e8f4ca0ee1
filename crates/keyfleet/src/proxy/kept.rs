//! A fleet's own proxy. What it is to serve stands in a file of its directory, which is read again at
//! SIGHUP; what it serves, it writes into another. So a change is seen to be done, and one that was
//! interrupted is seen not to be.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{self, Path, PathBuf},
    sync::{Arc, PoisonError},
    time::Duration,
};

use fleet::{
    model::{ClusterName, ProxyAddress, ProxyService, ProxyStart, ProxyTls},
    observed::ProxyFigures,
};
use proxy::{
    driver::{CertificateFiles, ClientAuthority, TlsFiles},
    engine::{Allowance, Micros, NearCache, Profile},
    route::Address,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener, UnixStream},
    signal::unix::Signal,
    task::{JoinHandle, block_in_place},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Proxy, ProxyError, Service, Setup, SlowLogSetup, TlsListen, certificates,
    metrics::{self, PREFIX},
    replicas::{ReadFrom, Reading},
    takeover::{self, Offered, Sockets, Taken},
    users::{UsersError, UsersFile},
};
use crate::{
    errors::with_causes,
    store::{self, StoreError},
};

/// What a fleet's proxy is to serve.
pub const PROXY_STATE: &str = "proxy.json";
/// What it serves.
pub const PROXY_SERVED: &str = "served.json";
/// What its log says, and why, where it can't serve what it is to.
pub const REFUSED: &str = "all stays as it is";
/// Where it gives its figures away to keyfleet.
const FIGURES: &str = "figures.sock";

/// Where it waits for the proxy that takes its place.
const TAKEOVER: &str = "takeover.sock";

/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How long a proxy may take to say its figures.
const ASK: Duration = Duration::from_secs(1);
/// A page of figures may have so many bytes.
const FIGURES_BYTES_MAX: u64 = 16 << 20;

/// See [`PROXY_STATE`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    pub cluster: ClusterName,
    pub listen: Vec<ProxyAddress>,
    #[serde(flatten)]
    pub start: ProxyStart,
    #[serde(flatten)]
    pub service: ProxyService,
    pub seeds: Vec<SocketAddr>,
    /// Of the cluster's user `default`; None: it has none.
    pub password: Option<String>,
    /// The zones that nodes are in, by their addresses.
    pub zones: BTreeMap<String, String>,
    /// Where relative paths begin.
    pub base: PathBuf,
}

/// A fleet's proxy that shall not serve any longer.
pub struct Ended {
    pub proxy: Proxy,
    /// How long it may take to end.
    pub span: Duration,
    /// Another process serves in its place.
    pub handed_over: bool,
}

impl State {
    /// Can only another process be that, and not the one that serves this?
    pub fn is_another(&self, served: &Self) -> bool {
        let tls =
            |state: &Self| state.service.tls.as_ref().map(|tls| ProxyAddress::Tcp(tls.listen));
        // A place can't be held twice.
        let meets = |plain: &Self, sealed: &Self| {
            tls(sealed).is_some_and(|place| plain.listen.contains(&place))
        };
        (&self.cluster, &self.start, &self.password)
            != (&served.cluster, &served.start, &served.password)
            || meets(self, served)
            || meets(served, self)
    }

    /// Where clients without TLS connect.
    fn listen(&self) -> Vec<Address> {
        let address = |address: &ProxyAddress| match address {
            ProxyAddress::Tcp(address) => Address::Tcp(*address),
            ProxyAddress::Path(path) => Address::Unix(self.base.join(path)),
        };
        self.listen.iter().map(address).collect()
    }

    fn setup(&self) -> Setup {
        let profile = Profile { password: self.password.clone(), ..Profile::default() };
        let start = &self.start;
        Setup {
            listen: self.listen(),
            tls_listen: self.tls_listen(),
            threads: self.start.threads as usize,
            seeds: self.seeds.iter().copied().map(Address::Tcp).collect(),
            profile,
            client_password: self.password.clone(),
            tls: None,
            reading: Reading {
                from: match start.read_from {
                    fleet::model::ReadFrom::Primary => ReadFrom::Primary,
                    fleet::model::ReadFrom::Replica => ReadFrom::Replica,
                    fleet::model::ReadFrom::SameZone => ReadFrom::SameZone,
                    fleet::model::ReadFrom::Nearest => ReadFrom::Nearest,
                },
                age_max: Duration::from_secs(start.lag_max_s.into()),
                behind_max: None,
                zone: start.zone.clone(),
                zones: self.zones.clone(),
            },
            near: start.near_cache.map(|near| NearCache {
                bytes_max: near.bytes as usize,
                age: Micros::from(near.age_s) * 1_000_000,
            }),
        }
    }

    /// Where clients have to speak TLS.
    fn tls_listen(&self) -> Option<TlsListen> {
        let ProxyTls { listen, cert, key, client_ca, client_optional } =
            self.service.tls.as_ref()?;
        let path = |path: &String| self.base.join(path);
        let clients = client_ca
            .as_ref()
            .map(|roots| ClientAuthority { roots: path(roots), required: !client_optional });
        let own = CertificateFiles { certificate: path(cert), key: path(key) };
        Some((vec![Address::Tcp(*listen)], TlsFiles { own: vec![own], clients }))
    }

    fn clients_max(&self) -> Option<usize> {
        self.service.clients_max.map(|most| most as usize)
    }

    fn service(&self) -> Service {
        let start = &self.start;
        Service {
            clients_max: self.clients_max(),
            taken: Sockets::default(),
            balanced: start.proxy_protocol,
            memory_max: Some(start.memory_max_bytes as usize),
            slow_log: SlowLogSetup {
                slower_than: Some(start.slow_log_ms * 1_000),
                ..SlowLogSetup::default()
            },
            allowance: Allowance {
                clients_max: None,
                requests_per_second: start.requests_per_second.map(u64::from),
                bytes_per_second: start.bytes_per_second,
            },
            sample_one_in: start.hot_keys,
            users: Vec::new(),
        }
    }

    fn drain(&self) -> Duration {
        Duration::from_millis(self.service.drain_ms)
    }
}

/// A fleet's proxy can't serve, or not as it is told.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} isn't there", path.display())]
    NoState { path: PathBuf },
    #[error("{} can't be understood", path.display())]
    State { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("cannot give figures away at {place}")]
    Metrics { place: String, source: io::Error },
    #[error("cannot tell where it is")]
    Place(#[source] io::Error),
    #[error("cannot pass sockets on")]
    Takeover(#[source] io::Error),
}

/// Serves what the file says, and follows it at each hangup, until `stop` ends or another process takes
/// its place, as this one does where one serves already. That one leaves the directory, and so is
/// the fleet's no more.
pub async fn keep(
    file: &Path,
    stop: impl Future<Output = ()>,
    mut hangup: Signal,
) -> Result<Ended, KeptError> {
    // As it is given, which is shorter: a socket's path may not be long.
    let (own, waits) = (file.with_file_name(FIGURES), file.with_file_name(TAKEOVER));
    let file = &path::absolute(file).map_err(KeptError::Place)?;
    let (mut state, text) = read(file)?;
    // A fleet's proxy doesn't end with the cluster that it waits for.
    let mut taken = takeover::take(&waits).map_err(KeptError::Takeover)?;
    let mut service = state.service();
    let mut users = None;
    if let Some(file) = &state.start.users {
        let (file, own) = UsersFile::open(&state.base.join(file))?;
        (service.users, users) = (own, Some(file));
    }
    let mut given = Given::default();
    let door = given.prepare(state.service.metrics, taken.as_mut()).await?;
    if let Some(taken) = &mut taken {
        service.taken = taken.rest();
    }
    let mut proxy = Proxy::start_with(state.setup(), service, false)?;
    let metrics = |source, place: &dyn std::fmt::Display| KeptError::Metrics {
        place: place.to_string(),
        source,
    };
    store::remove(&own)?;
    let listener = UnixListener::bind(&own).map_err(|error| metrics(error, &own.display()))?;
    tokio::spawn(metrics::serve(listener, proxy.figures()));
    given.take(door, &proxy);
    let offered = Offered::default();
    given.offer(&proxy, &offered).map_err(KeptError::Takeover)?;
    let next = takeover::offer(&waits, Arc::clone(&offered)).map_err(KeptError::Takeover)?;
    let served = file.with_file_name(PROXY_SERVED);
    store::replace(&served, text.as_bytes())?;
    taken.map_or(Ok(()), Taken::serves).map_err(KeptError::Takeover)?;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    let admission = proxy.admission();
    tokio::pin!(stop, next);
    loop {
        let mut hung_up = false;
        tokio::select! {
            () = &mut stop => {
                store::remove(&waits)?;
                return Ok(Ended { proxy, span: state.drain(), handed_over: false });
            }
            Ok(()) = &mut next => {
                env::set_current_dir("/").map_err(KeptError::Place)?;
                given.take(Some(None), &proxy);
                return Ok(Ended { proxy, span: state.drain(), handed_over: true });
            }
            _ = looks.tick() => {}
            _ = hangup.recv() => {
                told.clear();
                hung_up = true;
                match change(file, &served, &mut proxy, &mut given).await {
                    Ok(changed) => {
                        state = changed;
                        given.offer(&proxy, &offered).map_err(KeptError::Takeover)?;
                    }
                    Err(error) => tracing::error!("{REFUSED}: {}", with_causes(&error)),
                }
            }
        }
        for acceptor in proxy.listens().filter_map(|(_, acceptor)| acceptor) {
            certificates::note(block_in_place(|| acceptor.reload()), &mut told);
        }
        if let Some(users) = &mut users {
            block_in_place(|| users.follow(&admission, hung_up));
        }
    }
}

/// Serves what the file says now. On an error all is as it was.
async fn change(
    file: &Path,
    served: &Path,
    proxy: &mut Proxy,
    given: &mut Given,
) -> Result<State, KeptError> {
    let (state, text) = read(file)?;
    let door = given.prepare(state.service.metrics, None).await?;
    let (listen, tls) = (state.listen(), state.tls_listen());
    block_in_place(|| proxy.change(&listen, tls.as_ref(), state.clients_max()))?;
    given.take(door, proxy);
    store::replace(served, text.as_bytes())?;
    tracing::info!("serving as {} says now", file.display());
    Ok(state)
}

fn read(file: &Path) -> Result<(State, String), KeptError> {
    let path = || file.to_owned();
    let text = store::read(file)?.ok_or_else(|| KeptError::NoState { path: path() })?;
    let state = serde_json::from_str(&text);
    Ok((state.map_err(|source| KeptError::State { path: path(), source })?, text))
}

/// Who gives figures away for Prometheus.
#[derive(Default)]
struct Given {
    at: Option<Giver>,
}

struct Giver {
    address: SocketAddr,
    socket: OwnedFd,
    task: JoinHandle<()>,
}

/// Where figures are to be given away; None: as before.
type NewDoor = Option<Option<(SocketAddr, OwnedFd, TcpListener)>>;

impl Given {
    /// Binds what isn't there yet.
    async fn prepare(
        &self,
        wanted: Option<SocketAddr>,
        taken: Option<&mut Taken>,
    ) -> Result<NewDoor, KeptError> {
        if self.at.as_ref().map(|giver| giver.address) == wanted {
            return Ok(None);
        }
        let Some(address) = wanted else { return Ok(Some(None)) };
        let place = || address.to_string();
        let failed = |source| KeptError::Metrics { place: place(), source };
        let listener = takeover::listener(&Address::Tcp(address), taken).await.map_err(failed)?;
        let socket = listener.as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Some(Some((address, socket, listener))))
    }

    /// Gives them away there, and nowhere else.
    fn take(&mut self, door: NewDoor, proxy: &Proxy) {
        let Some(door) = door else { return };
        let serve = |(address, socket, listener)| {
            let task = tokio::spawn(metrics::serve(listener, proxy.figures()));
            Giver { address, socket, task }
        };
        if let Some(former) = std::mem::replace(&mut self.at, door.map(serve)) {
            former.task.abort();
        }
    }

    /// What the next proxy is to be given: all that this one listens with.
    fn offer(&self, proxy: &Proxy, offered: &Offered) -> io::Result<()> {
        let mut sockets = proxy.sockets()?;
        if let Some(giver) = &self.at {
            sockets.push(giver.socket.try_clone()?);
        }
        *offered.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
        Ok(())
    }
}

/// What the proxy of a directory says of itself; None where it says nothing in time.
pub async fn figures(directory: &Path) -> Option<ProxyFigures> {
    let text = timeout(ASK, ask(directory)).await.ok()?.ok()?;
    let figure = |name: &str| {
        let mut lines = text.lines();
        lines.find_map(|line| {
            line.strip_prefix(PREFIX)?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()
        })
    };
    Some(ProxyFigures {
        clients: figure("clients")?,
        requests: figure("requests_total")?,
        errors: figure("forward_errors_total")?,
        requests_rate: None,
    })
}

async fn ask(directory: &Path) -> io::Result<String> {
    // The path may be longer than a socket's may be.
    let directory = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{FIGURES}", directory.as_raw_fd());
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.take(FIGURES_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}
