//! A proxy's figures as Prometheus reads them, and the small server that gives them away.
//! Source: Prometheus, "Exposition formats", text format 0.0.4.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    io,
    sync::{Arc, PoisonError, RwLock, Weak, mpsc},
    time::{Duration, Instant},
};

use proxy::route::Address;
use proxy::{
    counters::{Counter, PoolCounters, ServerCounters, bucket_end},
    driver::Running,
    engine::{Figures, Quota, SlowLog, Taken},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{hot, slow, users::Quotas};

/// How long a loop may take to say what it is at.
const REPORT: Duration = Duration::from_secs(1);
/// How long a reader may take, from its connection to the last byte.
const READER: Duration = Duration::from_secs(5);
/// The pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A request's head may have so many bytes.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// The histogram's buckets whose ends are shown, every second one: from 16 µs to 17 s.
const SHOWN: std::ops::Range<usize> = 11..92;

/// Pools that have names, with their numbers. They may change.
pub(crate) type PoolNames = Arc<RwLock<Vec<(usize, String)>>>;

/// Where to ask for figures.
#[derive(Clone)]
pub struct Source {
    pub(crate) loops: Weak<Vec<Running>>,
    pub(crate) slow_log: Option<Arc<SlowLog>>,
    pub(crate) quotas: Quotas,
    /// None: there is but one, the cluster.
    pub(crate) pools: Option<PoolNames>,
}

impl Source {
    /// All figures as text. Blocks until each loop has answered, a second at most.
    pub fn text(&self) -> String {
        let pools = self.pools.as_ref().map(|pools| {
            let pools = pools.read().unwrap_or_else(PoisonError::into_inner);
            pools.iter().map(|(number, name)| (*number, pool_label(name))).collect()
        });
        let pools = pools.unwrap_or_else(|| vec![(0, String::new())]);
        let mut text = render(&self.ask(), &pools);
        users(&mut text, &self.quotas.read().unwrap_or_else(PoisonError::into_inner));
        text
    }

    fn hot(&self) -> hot::Page {
        let loops: Vec<_> = self.ask().into_iter().filter_map(|each| each.hot).collect();
        hot::Page::new(&loops)
    }

    fn ask(&self) -> Vec<Figures> {
        let Some(loops) = self.loops.upgrade() else { return Vec::new() };
        let (sender, answers) = mpsc::channel();
        for each in loops.iter() {
            each.figures(sender.clone());
        }
        drop((sender, loops));
        let until = Instant::now() + REPORT;
        let left = || until.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| answers.recv_timeout(left()).ok()).collect()
    }
}

/// Answers `GET /metrics`, `/slowlog` with what was slow of late, and `/hot` with the keys that are
/// asked for most, for as long as it is polled.
pub async fn serve<D: Door>(door: D, source: Source) {
    loop {
        match door.enter().await {
            Ok(stream) => {
                let source = source.clone();
                // Who doesn't ask, or doesn't read, does without.
                tokio::spawn(timeout(READER, answer(stream, source)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of the metrics");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Where readers of figures come in: a port, or a path.
pub trait Door: Send {
    type Reader: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn enter(&self) -> impl Future<Output = io::Result<Self::Reader>> + Send;
}

impl Door for TcpListener {
    type Reader = TcpStream;

    async fn enter(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

impl Door for UnixListener {
    type Reader = UnixStream;

    async fn enter(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

async fn answer<S>(mut stream: S, source: Source) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, kind, text) = match (method, path) {
        (b"GET", b"/metrics") => {
            let text = spawn_blocking(move || source.text()).await.map_err(io::Error::other)?;
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text)
        }
        (b"GET", b"/hot") => {
            let page = spawn_blocking(move || source.hot()).await.map_err(io::Error::other)?;
            ("200 OK", "application/json", page.json()?)
        }
        (b"GET", b"/slowlog") => {
            ("200 OK", "application/json", slow::json(source.slow_log.as_deref())?)
        }
        (b"GET", _) => {
            let text =
                "The figures are at /metrics, slow requests at /slowlog, hot keys at /hot.\n";
            ("404 Not Found", "text/plain", text.to_owned())
        }
        _ => ("405 Method Not Allowed", "text/plain", "GET it.\n".to_owned()),
    };
    let length = text.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// A figure of a pool or a server: name, kind, help.
type Family = (&'static str, &'static str, &'static str);
type PoolFamily = (Family, fn(&PoolCounters) -> &Counter);
type ServerFamily = (Family, fn(&ServerCounters) -> &Counter);

const POOL: [PoolFamily; 18] = [
    (("clients", "gauge", "Connections of clients."), |c| &c.clients),
    (("clients_accepted_total", "counter", "Connections of clients, ever."), |c| &c.clients_ever),
    (("clients_refused_total", "counter", "Connections that were one too many."), |c| {
        &c.clients_refused
    }),
    (("clients_broken_total", "counter", "Clients that could not be understood."), |c| {
        &c.clients_broken
    }),
    (("clients_unread_total", "counter", "Clients closed because they didn't read."), |c| {
        &c.clients_unread
    }),
    (("clients_evicted_total", "counter", "Clients closed because all held too much."), |c| {
        &c.clients_evicted
    }),
    (("requests_total", "counter", "Requests for servers."), |c| &c.requests),
    (("request_bytes_total", "counter", "Bytes of those."), |c| &c.request_bytes),
    (("response_bytes_total", "counter", "Bytes written to clients."), |c| &c.response_bytes),
    (("forward_errors_total", "counter", "Requests that the proxy answered with an error."), |c| {
        &c.forward_errors
    }),
    (("redirects_total", "counter", "MOVED and ASK that were followed."), |c| &c.redirects),
    (("slow_requests_total", "counter", "Requests that took too long."), |c| &c.slow),
    (("retries_total", "counter", "Requests that were sent again."), |c| &c.retries),
    (("detours_total", "counter", "Requests that went around a slow reader's reply."), |c| {
        &c.detours
    }),
    (("near_hits_total", "counter", "GETs that the near cache answered."), |c| &c.near_hits),
    (("near_misses_total", "counter", "GETs that it could not answer."), |c| &c.near_misses),
    (("near_invalidations_total", "counter", "Keys of it that a server said changed."), |c| {
        &c.near_invalidations
    }),
    (("near_bytes", "gauge", "Memory that it takes."), |c| &c.near_bytes),
];

const SERVER: [ServerFamily; 8] = [
    (("server_requests_total", "counter", "Requests for the server."), |c| &c.requests),
    (("server_request_bytes_total", "counter", "Bytes of those."), |c| &c.request_bytes),
    (("server_responses_total", "counter", "Replies of the server."), |c| &c.responses),
    (("server_response_bytes_total", "counter", "Bytes of those."), |c| &c.response_bytes),
    (("server_connections", "gauge", "Connections to the server."), |c| &c.connections),
    (("server_connections_ended_total", "counter", "Connections that ended."), |c| &c.ended),
    (("server_connections_failed_total", "counter", "Connections that could not be made."), |c| {
        &c.broken
    }),
    (("server_timeouts_total", "counter", "Requests without a reply in time."), |c| &c.timed_out),
];

const LATENCY: Family = (
    "server_latency_seconds",
    "histogram",
    "From a request's arrival at the proxy to its reply's.",
);

type UserFamily = (Family, fn(&Taken) -> u64);

/// Of users with a quota; all clients together are the user "".
const USER: [UserFamily; 4] = [
    (("user_clients", "gauge", "Connections of a user of the proxy."), |t| t.clients as u64),
    (("user_requests_total", "counter", "What he asked."), |t| t.requests),
    (("user_bytes_total", "counter", "Bytes of that and of its replies."), |t| t.bytes),
    (("user_delays_total", "counter", "How often he was read later: he asked too much."), |t| {
        t.delays
    }),
];

fn users(out: &mut String, quotas: &[(Option<String>, Arc<Quota>)]) {
    for (about, figure) in &USER {
        let values = quotas.iter().map(|(user, quota)| {
            let user = escaped(user.as_deref().unwrap_or_default());
            (format!("user=\"{user}\""), figure(&quota.taken()))
        });
        family(out, about, values);
    }
}

/// What is known of a server, of all loops together.
#[derive(Default)]
struct Total {
    counters: [u64; SERVER.len()],
    unanswered: u64,
    unsent_bytes: u64,
    latency: Vec<u64>,
    latency_micros: u64,
}

/// Of these pools, by their labels.
fn render(loops: &[Figures], pools: &[(usize, String)]) -> String {
    let mut out = String::new();
    family(&mut out, &("threads", "gauge", "Event loops."), [("", loops.len())]);
    let buffers: usize = loops.iter().map(|figures| figures.buffer_bytes).sum();
    family(&mut out, &("buffer_bytes", "gauge", "Memory that buffers hold."), [("", buffers)]);
    let most = loops.first().map_or(0, |figures| figures.memory_max);
    family(&mut out, &("memory_max_bytes", "gauge", "What buffers may hold."), [("", most)]);
    let all = |number: usize| loops.iter().filter_map(move |figures| figures.pools.get(number));
    for (about, counter) in &POOL {
        let sum = |number| all(number).map(|pool| counter(&pool.counters).get()).sum::<u64>();
        family(&mut out, about, pools.iter().map(|(number, label)| (label, sum(*number))));
    }
    let mut servers: BTreeMap<String, Total> = BTreeMap::new();
    let of_all = pools.iter().flat_map(|(number, label)| all(*number).map(move |it| (label, it)));
    for (pool, server) in of_all.flat_map(|(pool, it)| it.servers.iter().map(move |it| (pool, it)))
    {
        let total = servers.entry(server_label(pool, &server.address)).or_default();
        for (sum, (_, counter)) in total.counters.iter_mut().zip(&SERVER) {
            *sum += counter(&server.counters).get();
        }
        total.unanswered += server.unsent.requests + server.unanswered.requests;
        total.unsent_bytes += server.unsent.bytes;
        let counts = server.counters.latency.counts();
        total.latency.resize(counts.len(), 0);
        for (sum, count) in total.latency.iter_mut().zip(counts) {
            *sum += count;
        }
        total.latency_micros += server.counters.latency.sum_micros();
    }
    for (index, (about, _)) in SERVER.iter().enumerate() {
        let values = servers.iter().filter_map(|(label, total)| {
            total.counters.get(index).map(|value| (label.as_str(), *value))
        });
        family(&mut out, about, values);
    }
    let queued = ("server_unanswered", "gauge", "Requests without a reply yet.");
    family(&mut out, &queued, servers.iter().map(|(label, total)| (label, total.unanswered)));
    let unsent = ("server_unsent_bytes", "gauge", "Bytes that wait to be written to the server.");
    family(&mut out, &unsent, servers.iter().map(|(label, total)| (label, total.unsent_bytes)));
    histograms(&mut out, &servers);
    out
}

fn histograms(out: &mut String, servers: &BTreeMap<String, Total>) {
    let name = LATENCY.0;
    family(out, &LATENCY, std::iter::empty::<(&str, u64)>());
    for (label, total) in servers {
        let mut upto = 0;
        for (index, count) in total.latency.iter().enumerate() {
            upto += count;
            if SHOWN.contains(&index) && (index - SHOWN.start).is_multiple_of(2) {
                let end = bucket_end(index) as f64 / 1e6;
                let _ = writeln!(out, "{PREFIX}{name}_bucket{{{label},le=\"{end}\"}} {upto}");
            }
        }
        let _ = writeln!(out, "{PREFIX}{name}_bucket{{{label},le=\"+Inf\"}} {upto}");
        let _ =
            writeln!(out, "{PREFIX}{name}_sum{{{label}}} {}", total.latency_micros as f64 / 1e6);
        let _ = writeln!(out, "{PREFIX}{name}_count{{{label}}} {upto}");
    }
}

/// What all names begin with.
pub const PREFIX: &str = "keyfleet_proxy_";

fn family<L: Display, V: Display>(
    out: &mut String,
    (name, kind, help): &Family,
    values: impl IntoIterator<Item = (L, V)>,
) {
    let _ = writeln!(out, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}");
    for (label, value) in values {
        let label = label.to_string();
        let label = if label.is_empty() { label } else { format!("{{{label}}}") };
        let _ = writeln!(out, "{PREFIX}{name}{label} {value}");
    }
}

fn pool_label(name: &str) -> String {
    format!("pool=\"{}\"", escaped(name))
}

/// Of a server of the pool with that label.
fn server_label(pool: &str, address: &Address) -> String {
    let comma = if pool.is_empty() { "" } else { "," };
    format!("{pool}{comma}server=\"{}\"", escaped(&address.to_string()))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proxy::{
        engine::{PoolFigures, Queue, ServerFigures},
        route::Address,
    };

    use super::*;

    /// Two loops with one server each, the same.
    fn figures() -> Vec<Figures> {
        let one = |requests: u64, micros: u64| {
            let server = ServerFigures {
                address: Arc::new(Address::parse("10.0.0.1:7000").unwrap()),
                counters: Arc::default(),
                unsent: Queue { requests: 1, bytes: 10 },
                unanswered: Queue { requests: 1, bytes: 20 },
            };
            server.counters.requests.add(requests);
            server.counters.latency.record(micros);
            let pool = PoolFigures { counters: Arc::default(), servers: vec![server] };
            pool.counters.clients.add(3);
            Figures { buffer_bytes: 100, memory_max: 1 << 30, pools: vec![pool], hot: None }
        };
        vec![one(5, 30), one(6, 1_000_000)]
    }

    #[test]
    fn loops_are_added_up() {
        let text = render(&figures(), &[(0, String::new())]);
        let check = |line: &str| {
            let full = format!("{PREFIX}{line}");
            assert!(text.lines().any(|each| each == full), "{full}\n{text}");
        };
        let server = "server=\"10.0.0.1:7000\"";
        check("threads 2");
        check("buffer_bytes 200");
        check("memory_max_bytes 1073741824");
        check("clients 6");
        check(&format!("server_requests_total{{{server}}} 11"));
        check(&format!("server_unanswered{{{server}}} 4"));
        check(&format!("server_latency_seconds_bucket{{{server},le=\"0.000016\"}} 0"));
        check(&format!("server_latency_seconds_bucket{{{server},le=\"0.000032\"}} 1"));
        check(&format!("server_latency_seconds_bucket{{{server},le=\"1.048576\"}} 2"));
        check(&format!("server_latency_seconds_bucket{{{server},le=\"+Inf\"}} 2"));
        check(&format!("server_latency_seconds_sum{{{server}}} 1.00003"));
        check(&format!("server_latency_seconds_count{{{server}}} 2"));
    }

    #[test]
    fn each_family_is_declared_once_and_bucket_ends_grow() {
        let text = render(&figures(), &[(0, String::new())]);
        let declared: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = declared.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), declared.len());
        let ends: Vec<f64> = text
            .lines()
            .filter_map(|line| line.split_once("le=\"")?.1.split_once('"')?.0.parse().ok())
            .collect();
        assert!(ends.len() > 30 && ends.is_sorted(), "{ends:?}");
        assert_eq!(ends.iter().filter(|end| end.is_infinite()).count(), 1);
    }

    #[test]
    fn odd_addresses_are_escaped() {
        let address = Address::Unix("/a\"b\\c".into());
        assert_eq!(server_label("", &address), r#"server="/a\"b\\c""#);
        let pool = pool_label("a\"b");
        assert_eq!(server_label(&pool, &address), r#"pool="a\"b",server="/a\"b\\c""#);
    }
}
