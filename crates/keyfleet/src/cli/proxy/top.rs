//! `keyfleet proxy top`: what a running proxy does now, from what it gives away for Prometheus.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    cli::{
        context::Context,
        printer::Output,
        signals,
        text::{Style, count, pad, pad_left, safe},
    },
    errors::{Exit, Failure},
    proxy::{hot, metrics::PREFIX},
};

/// Between two pages, and what rates are taken over.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the proxy may take to answer.
const ASK: Duration = Duration::from_secs(5);
/// So many keys of each kind are shown, and so many letters of each.
const KEYS_SHOWN: usize = 10;
const KEY_WIDTH: usize = 40;
/// A page of figures may have so many bytes.
const BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the proxy gives its figures away: its --metrics
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// How to print; json: one page
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let printer = context.printer;
    let redraw = printer.interactive && args.output == Output::Text;
    let stop = signals::asked_to_stop()?;
    tokio::pin!(stop);
    let mut before = (Instant::now(), ask(&args.address).await?);
    loop {
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = &mut stop => return Ok(Exit::Done),
        }
        let now = (Instant::now(), ask(&args.address).await?);
        let mut page = Page::new(&before.1, &now.1, (now.0 - before.0).as_secs_f64());
        page.hot = ask_hot(&args.address).await?;
        match args.output {
            Output::Json => printer.json(&page)?,
            Output::Text if redraw => printer.screen(&page.draw(printer.style))?,
            Output::Text => printer.data(&page.draw(printer.style))?,
        }
        if !redraw {
            return Ok(Exit::Done);
        }
        before = now;
    }
}

async fn ask(address: &str) -> Result<Figures, Failure> {
    let asked =
        timeout(ASK, fetch(address, "/metrics")).await.unwrap_or_else(|late| Err(late.into()));
    let text = asked.map_err(|error| {
        Failure::user(format!("no figures at {address}"))
            .because(&error)
            .hint("start the proxy with --metrics ADDRESS")
    })?;
    Ok(Figures::read(&text))
}

/// None: the proxy is one that knows nothing of hot keys.
async fn ask_hot(address: &str) -> Result<Option<hot::Page>, Failure> {
    let asked = timeout(ASK, fetch(address, "/hot")).await.ok().and_then(Result::ok);
    let page = asked.map(|text| serde_json::from_str(&text)).transpose();
    page.map_err(|error| {
        Failure::user(format!("no keys can be read from {address}")).because(&error)
    })
}

async fn fetch(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(BYTES_MAX).read_to_string(&mut answer).await?;
    let whole = answer.split_once("\r\n\r\n");
    let body = whole.filter(|(head, _)| head.split(' ').nth(1) == Some("200"));
    let body = body.map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "it gives away something else"))
}

/// What one answer held. Names are without [`PREFIX`].
#[derive(Debug, Default)]
struct Figures {
    all: BTreeMap<String, f64>,
    servers: BTreeMap<String, Server>,
}

#[derive(Debug, Default, Clone)]
struct Server {
    figures: BTreeMap<String, f64>,
    /// Durations so long in seconds, or shorter, and how many; growing.
    latency: Vec<(f64, f64)>,
}

impl Figures {
    fn read(text: &str) -> Self {
        let mut figures = Self::default();
        for line in text.lines().filter_map(|line| line.strip_prefix(PREFIX)) {
            let Some((what, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let Some((name, labels)) = what.split_once('{') else {
                figures.all.insert(what.to_owned(), value);
                continue;
            };
            let label = |name: &str| {
                let rest = labels.split_once(&format!("{name}=\""))?.1;
                Some(rest.split_once('"')?.0)
            };
            let pool = label("pool");
            let Some(server) = label("server") else {
                if pool.is_some() {
                    *figures.all.entry(name.to_owned()).or_default() += value;
                }
                continue;
            };
            let server = pool.iter().chain([&server]).copied().collect::<Vec<_>>().join(" ");
            let server = figures.servers.entry(server).or_default();
            match label("le").map(str::parse) {
                Some(Ok(end)) => server.latency.push((end, value)),
                _ => drop(server.figures.insert(name.to_owned(), value)),
            }
        }
        figures
    }
}

/// What is shown. Rates are per second.
#[derive(Debug, Serialize)]
struct Page {
    threads: f64,
    clients: f64,
    clients_refused: f64,
    requests_rate: f64,
    request_bytes_rate: f64,
    response_bytes_rate: f64,
    errors_rate: f64,
    redirects_rate: f64,
    slow_rate: f64,
    buffer_bytes: f64,
    servers: Vec<Row>,
    hot: Option<hot::Page>,
}

/// One server.
#[derive(Debug, Serialize)]
struct Row {
    server: String,
    requests_rate: f64,
    /// None: nothing was answered.
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
    unanswered: f64,
    unsent_bytes: f64,
    connections: f64,
    timeouts_rate: f64,
}

impl Page {
    fn new(before: &Figures, now: &Figures, seconds: f64) -> Self {
        let gauge = |all: &BTreeMap<String, f64>, name: &str| all.get(name).copied().unwrap_or(0.0);
        let per_second = |from: f64, to: f64| (to - from).max(0.0) / seconds;
        let rate = |name: &str| per_second(gauge(&before.all, name), gauge(&now.all, name));
        let rows = now.servers.iter().map(|(name, server)| {
            let former = before.servers.get(name).cloned().unwrap_or_default();
            let figure = |name: &str| gauge(&server.figures, name);
            let rate = |name: &str| per_second(gauge(&former.figures, name), figure(name));
            let quantile = |share| quantile(&former.latency, &server.latency, share);
            Row {
                server: name.clone(),
                requests_rate: rate("server_requests_total"),
                p50_seconds: quantile(0.5),
                p99_seconds: quantile(0.99),
                unanswered: figure("server_unanswered"),
                unsent_bytes: figure("server_unsent_bytes"),
                connections: figure("server_connections"),
                timeouts_rate: rate("server_timeouts_total"),
            }
        });
        Self {
            threads: gauge(&now.all, "threads"),
            clients: gauge(&now.all, "clients"),
            clients_refused: gauge(&now.all, "clients_refused_total"),
            requests_rate: rate("requests_total"),
            request_bytes_rate: rate("request_bytes_total"),
            response_bytes_rate: rate("response_bytes_total"),
            errors_rate: rate("forward_errors_total"),
            redirects_rate: rate("redirects_total"),
            slow_rate: rate("slow_requests_total"),
            buffer_bytes: gauge(&now.all, "buffer_bytes"),
            servers: rows.collect(),
            hot: None,
        }
    }

    fn draw(&self, style: Style) -> String {
        let number = |value: f64| count(value.round() as u64);
        let errors = format!("{} errors/s", number(self.errors_rate));
        let errors = if self.errors_rate > 0.0 { style.red(&errors) } else { errors };
        let mut out = format!(
            "{} clients ({} refused)   {} requests/s   {} in/s   {} out/s\n\
             {errors}   {} redirects/s   {} slow/s   {} in buffers   {} threads\n\n",
            style.bold(&number(self.clients)),
            number(self.clients_refused),
            style.bold(&number(self.requests_rate)),
            bytes(self.request_bytes_rate),
            bytes(self.response_bytes_rate),
            number(self.redirects_rate),
            number(self.slow_rate),
            bytes(self.buffer_bytes),
            number(self.threads),
        );
        let widest = self.servers.iter().map(|row| row.server.len()).max().unwrap_or(0).max(6);
        let mut line = |server: &str, cells: [&str; 7], paint: fn(Style, &str) -> String| {
            let mut text = pad(&safe(server), widest);
            for (cell, width) in cells.into_iter().zip([12, 9, 9, 9, 9, 7, 12]) {
                text.push_str(&pad_left(cell, width));
            }
            out.push_str(&paint(style, &text));
            out.push('\n');
        };
        let head = ["requests/s", "p50", "p99", "waiting", "unsent", "conns", "timeouts/s"];
        line("server", head, Style::dim);
        for row in &self.servers {
            let latency = |seconds: Option<f64>| seconds.map_or("-".to_owned(), duration);
            let cells = [
                number(row.requests_rate),
                latency(row.p50_seconds),
                latency(row.p99_seconds),
                number(row.unanswered),
                bytes(row.unsent_bytes),
                number(row.connections),
                number(row.timeouts_rate),
            ];
            let fails = row.timeouts_rate > 0.0 || row.connections == 0.0;
            let paint = if fails { Style::red } else { |_, text: &str| text.to_owned() };
            line(&row.server, cells.each_ref().map(String::as_str), paint);
        }
        if let Some(hot) = self.hot.as_ref().filter(|hot| hot.one_in > 0) {
            out.push_str(&draw_hot(hot, style));
        }
        out
    }
}

/// The keys that are asked for most, and the largest.
fn draw_hot(page: &hot::Page, style: Style) -> String {
    let name = |key: &str| {
        let key: String = key.chars().take(KEY_WIDTH).collect();
        pad(&safe(&key), KEY_WIDTH)
    };
    let mut out = String::from("\n");
    let head = format!("{}{}{}", name("key"), pad_left("requests/s", 12), pad_left("out/s", 12));
    out.push_str(&style.dim(&head));
    out.push('\n');
    for hot in page.hot.iter().take(KEYS_SHOWN) {
        let requests = pad_left(&count(hot.requests.round() as u64), 12);
        out.push_str(&format!(
            "{}{requests}{}\n",
            name(&hot.key),
            pad_left(&bytes(hot.reply_bytes), 12)
        ));
    }
    out.push_str(&style.dim(&format!("{}{}", name("large key"), pad_left("bytes", 12))));
    out.push('\n');
    for large in page.large.iter().take(KEYS_SHOWN) {
        out.push_str(&format!(
            "{}{}\n",
            name(&large.key),
            pad_left(&bytes(large.bytes as f64), 12)
        ));
    }
    out
}

/// The duration in seconds that this share of what came between two answers doesn't exceed, taken
/// as even within a bucket.
fn quantile(before: &[(f64, f64)], now: &[(f64, f64)], share: f64) -> Option<f64> {
    let former = |index: usize| before.get(index).map_or(0.0, |(_, upto)| *upto);
    let grown = now.iter().enumerate().map(|(index, (end, upto))| (*end, upto - former(index)));
    let total = grown.clone().next_back().map(|(_, upto)| upto).filter(|total| *total > 0.0)?;
    let wanted = total * share;
    let (mut start, mut below) = (0.0, 0.0);
    for (end, upto) in grown {
        if upto >= wanted && upto > below {
            let within = (wanted - below) / (upto - below);
            return Some(if end.is_finite() { start + (end - start) * within } else { start });
        }
        (start, below) = (end, upto);
    }
    None
}

/// `0.21 ms`, `13 ms`, `1.2 s`.
fn duration(seconds: f64) -> String {
    match seconds {
        0.0..0.01 => format!("{:.2} ms", seconds * 1e3),
        0.01..1.0 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.1} s"),
    }
}

/// `12 B`, `1.2 kB`, `120 MB`.
fn bytes(bytes: f64) -> String {
    let mut scaled = bytes;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if scaled < 1000.0 {
            break;
        }
        (scaled, unit) = (scaled / 1000.0, larger);
    }
    let digits = usize::from(scaled < 10.0 && unit != "B");
    format!("{scaled:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let check = |before: &[f64], now: &[f64], share: f64, expected: Option<f64>| {
            let ends = [1.0, 2.0, 4.0, f64::INFINITY];
            let pair = |counts: &[f64]| ends.into_iter().zip(counts.to_vec()).collect::<Vec<_>>();
            let found = quantile(&pair(before), &pair(now), share);
            assert_eq!(found, expected, "{before:?} {now:?} {share}");
        };
        check(&[], &[10.0, 10.0, 10.0, 10.0], 0.5, Some(0.5));
        check(&[], &[0.0, 10.0, 10.0, 10.0], 0.5, Some(1.5));
        check(&[], &[0.0, 5.0, 10.0, 10.0], 0.75, Some(3.0));
        check(&[], &[0.0, 0.0, 0.0, 10.0], 0.99, Some(4.0));
        check(&[10.0, 10.0, 10.0, 10.0], &[10.0, 10.0, 14.0, 14.0], 0.5, Some(3.0));
        check(&[1.0, 1.0, 1.0, 1.0], &[1.0, 1.0, 1.0, 1.0], 0.5, None);
        check(&[], &[], 0.5, None);
    }

    #[test]
    fn pages() {
        let text = |requests: u32, slow: u32| {
            let own = "server=\"10.0.0.1:7000\"";
            let latency = "server_latency_seconds_bucket";
            [
                "# TYPE keyfleet_proxy_clients gauge".to_owned(),
                format!("{PREFIX}clients 12"),
                format!("{PREFIX}requests_total {requests}"),
                format!("{PREFIX}server_requests_total{{{own}}} {requests}"),
                format!("{PREFIX}server_connections{{{own}}} 2"),
                format!("{PREFIX}{latency}{{{own},le=\"0.001\"}} {}", requests - slow),
                format!("{PREFIX}{latency}{{{own},le=\"+Inf\"}} {requests}"),
                "something else".to_owned(),
            ]
            .join("\n")
        };
        let (before, now) = (Figures::read(&text(100, 0)), Figures::read(&text(3_100, 0)));
        let page = Page::new(&before, &now, 2.0);
        let drawn = page.draw(Style { color: false });
        assert!(
            drawn.starts_with("12 clients (0 refused)   1,500 requests/s   0 B in/s"),
            "{drawn}"
        );
        let row = drawn.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
        let cells = ["1,500", "0.50", "ms", "0.99", "ms", "0", "0", "B", "2", "0"];
        assert_eq!(row, [&["10.0.0.1:7000"][..], &cells].concat());
    }

    #[test]
    fn pools_are_added_up() {
        let lines = ["a", "b"].map(|pool| {
            let labels = format!("pool=\"{pool}\",server=\"10.0.0.1:7000\"");
            format!(
                "{PREFIX}clients{{pool=\"{pool}\"}} 2\n{PREFIX}server_requests_total{{{labels}}} 7\n"
            )
        });
        let figures = Figures::read(&lines.concat());
        assert_eq!(figures.all.get("clients").map(f64::to_string).as_deref(), Some("4"));
        let servers: Vec<&str> = figures.servers.keys().map(String::as_str).collect();
        assert_eq!(servers, ["a 10.0.0.1:7000", "b 10.0.0.1:7000"]);
    }

    #[test]
    fn units() {
        let check = |found: String, expected: &str| assert_eq!(found, expected);
        check(duration(0.000_21), "0.21 ms");
        check(duration(0.0131), "13 ms");
        check(duration(1.25), "1.2 s");
        check(bytes(0.0), "0 B");
        check(bytes(999.0), "999 B");
        check(bytes(1_240.0), "1.2 kB");
        check(bytes(120e6), "120 MB");
    }
}
