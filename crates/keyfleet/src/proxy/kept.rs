//! A fleet's own proxy. What it is to serve stands in a file of its directory, which is read again at
//! SIGHUP; what it serves, it writes into another. So a change is seen to be done, and one that was
//! interrupted is seen not to be.

use std::{
    error::Error,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    path::{self, Path, PathBuf},
    time::Duration,
};

use fleet::{
    model::{ClusterName, ProxyAddress, ProxyService, ProxyTls},
    observed::ProxyFigures,
};
use proxy::{
    driver::{CertificateFiles, ClientAuthority, TlsFiles},
    engine::{Profile, Users},
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
    Proxy, ProxyError, Service, Setup, certificates,
    metrics::{self, PREFIX},
};
use crate::store::{self, StoreError};

/// What a fleet's proxy is to serve.
pub const PROXY_STATE: &str = "proxy.json";
/// What it serves.
pub const PROXY_SERVED: &str = "served.json";
/// What its log says, and why, where it can't serve what it is to.
pub const REFUSED: &str = "all stays as it is";
/// Where it gives its figures away to keyfleet.
const FIGURES: &str = "figures.sock";

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
    pub threads: u32,
    #[serde(flatten)]
    pub service: ProxyService,
    pub seeds: Vec<SocketAddr>,
    /// Of the cluster's user `default`; None: it has none.
    pub password: Option<String>,
    /// Where relative paths begin.
    pub base: PathBuf,
}

impl State {
    /// Where clients without TLS connect.
    fn listen(&self) -> Vec<Address> {
        let address = |address: &ProxyAddress| match address {
            ProxyAddress::Tcp(address) => Address::Tcp(*address),
            ProxyAddress::Path(path) => Address::Unix(self.base.join(path)),
        };
        self.listen.iter().map(address).collect()
    }

    fn setup(&self) -> Setup {
        Setup {
            listen: self.listen(),
            threads: self.threads as usize,
            seeds: self.seeds.iter().copied().map(Address::Tcp).collect(),
            profile: Profile { password: self.password.clone(), ..Profile::default() },
            client_password: self.password.clone(),
            users: Users::of_the_servers(),
            tls: None,
        }
    }

    fn service(&self) -> Service {
        let tls = self.service.tls.as_ref().map(|tls| {
            let ProxyTls { listen, cert, key, client_ca, client_optional } = tls;
            let path = |path: &String| self.base.join(path);
            let clients = client_ca
                .as_ref()
                .map(|roots| ClientAuthority { roots: path(roots), required: !client_optional });
            let own = CertificateFiles { certificate: path(cert), key: path(key) };
            (Address::Tcp(*listen), TlsFiles { own: vec![own], clients })
        });
        let clients_max = self.service.clients_max.map(|most| most as usize);
        Service { tls, clients_max, ..Service::default() }
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
    Proxy(#[from] ProxyError),
    #[error("cannot give figures away at {place}")]
    Metrics { place: String, source: io::Error },
    #[error("cannot tell where it is")]
    Place(#[source] io::Error),
}

/// Serves what the file says, and follows it at each hangup, until `stop` ends; the proxy, and how
/// long it may take to end.
pub async fn keep(
    file: &Path,
    stop: impl Future<Output = ()>,
    mut hangup: Signal,
) -> Result<(Proxy, Duration), KeptError> {
    // As it is given, which is shorter: a socket's path may not be long.
    let own = file.with_file_name(FIGURES);
    let file = &path::absolute(file).map_err(KeptError::Place)?;
    let (mut state, text) = read(file)?;
    // A fleet's proxy doesn't end with the cluster that it waits for.
    let mut proxy = Proxy::start_with(state.setup(), state.service(), false)?;
    let metrics = |source, place: &dyn std::fmt::Display| KeptError::Metrics {
        place: place.to_string(),
        source,
    };
    store::remove(&own)?;
    let listener = UnixListener::bind(&own).map_err(|error| metrics(error, &own.display()))?;
    tokio::spawn(metrics::serve(listener, proxy.figures()));
    let mut given = Given::default();
    let door = given.prepare(state.service.metrics).await?;
    given.take(door, &proxy);
    let served = file.with_file_name(PROXY_SERVED);
    store::replace(&served, text.as_bytes())?;
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok((proxy, state.drain())),
            _ = looks.tick() => {}
            _ = hangup.recv() => {
                told.clear();
                match change(file, &served, &mut proxy, &mut given).await {
                    Ok(changed) => state = changed,
                    Err(error) => tracing::error!("{REFUSED}: {}", with_causes(&error)),
                }
            }
        }
        for acceptor in proxy.listens().filter_map(|(_, acceptor)| acceptor) {
            certificates::note(block_in_place(|| acceptor.reload()), &mut told);
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
    let door = given.prepare(state.service.metrics).await?;
    block_in_place(|| proxy.change(&state.listen(), state.service()))?;
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

/// An error with its causes.
fn with_causes(error: &dyn Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// Who gives figures away for Prometheus.
#[derive(Default)]
struct Given {
    at: Option<(SocketAddr, JoinHandle<()>)>,
}

/// Where figures are to be given away; None: as before.
type NewDoor = Option<Option<(SocketAddr, TcpListener)>>;

impl Given {
    /// Binds what isn't there yet.
    async fn prepare(&self, wanted: Option<SocketAddr>) -> Result<NewDoor, KeptError> {
        if self.at.as_ref().map(|(address, _)| *address) == wanted {
            return Ok(None);
        }
        let Some(address) = wanted else { return Ok(Some(None)) };
        let place = || address.to_string();
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|source| KeptError::Metrics { place: place(), source })?;
        Ok(Some(Some((address, listener))))
    }

    /// Gives them away there, and nowhere else.
    fn take(&mut self, door: NewDoor, proxy: &Proxy) {
        let Some(door) = door else { return };
        let serve = |(address, listener)| {
            (address, tokio::spawn(metrics::serve(listener, proxy.figures())))
        };
        if let Some((_, former)) = std::mem::replace(&mut self.at, door.map(serve)) {
            former.abort();
        }
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
