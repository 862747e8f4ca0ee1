//! `keyfleet proxy`: let plain clients use a cluster, or a ring of servers.

mod near;
mod reading;
pub(super) mod tls;
mod top;

use std::{
    env, fs, io,
    net::SocketAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet::model::ProxyStart;
use proxy::{
    driver::Connector,
    engine::{Allowance, Profile},
    route::Address,
};
use tokio::task::{JoinHandle, spawn_blocking};

use self::tls::Files;
use super::{connect::PASSWORD_VARIABLES, context::Context, pools, signals};
use crate::{
    errors::{Exit, Failure},
    proxy::{
        Proxy, ProxyError, Service, Setup, SlowLogSetup,
        kept::{self, Ended},
        metrics,
        takeover::{self, Sockets, Taken},
        users::UsersFile,
    },
};

const THREADS_MAX: i64 = 64;

// Parts of its help.
pub(super) const SERVERS: &str = "Servers";
pub(super) const CLIENTS: &str = "Clients";
pub(super) const FIGURES: &str = "Figures";
const RESTARTS: &str = "Restarts";

#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Nodes of the cluster to serve; the others are learned from them
    #[arg(help_heading = SERVERS,
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = address,
        required_unless_present_any = ["state", "twemproxy"],
        conflicts_with = "twemproxy"
    )]
    connect: Vec<Address>,
    /// Be the fleet's proxy that this file says
    #[arg(long, value_name = "FILE", hide = true, conflicts_with_all = ["connect", "listen"])]
    state: Option<PathBuf>,
    /// Where clients connect: an address and a port, or a path; several, separated by commas
    #[arg(help_heading = CLIENTS, long, value_name = "ADDRESS", default_value = "127.0.0.1:6379", value_delimiter = ',',
        value_parser = address)]
    listen: Vec<Address>,
    /// Threads, each with connections of its own to the servers
    #[arg(help_heading = CLIENTS, long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=THREADS_MAX))]
    threads: u8,
    #[command(flatten)]
    pools: pools::Args,
    /// Give figures away for Prometheus: http://ADDRESS/metrics
    #[arg(help_heading = FIGURES, long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    /// Clients at once; who comes beyond that is refused
    #[arg(help_heading = CLIENTS, long, value_name = "N")]
    clients_max: Option<usize>,
    /// Clients come through a load balancer that says whose a connection is (PROXY protocol 1 or 2);
    /// who doesn't say it is refused
    #[arg(help_heading = CLIENTS, long)]
    proxy_protocol: bool,
    /// Users beside those that the cluster knows, with their limits (YAML); SIGHUP, or changing it, has it
    /// read again
    #[arg(help_heading = CLIENTS, long, value_name = "FILE")]
    users: Option<PathBuf>,
    /// What all clients together may ask a second; who asks more is read later
    #[arg(help_heading = CLIENTS, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests_per_second: Option<u64>,
    /// Bytes a second, of requests and replies of all clients together
    #[arg(help_heading = CLIENTS, long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    bytes_per_second: Option<u64>,
    /// So much memory, such as 512MiB, is for buffers, of all clients and servers together: where they hold
    /// more, the clients that hold most are closed
    #[arg(help_heading = CLIENTS, long, value_name = "SIZE", default_value = "1GiB",
        value_parser = |text: &str| near::size(text, ProxyStart::MEMORY_MIN))]
    memory_max: u64,
    #[command(flatten)]
    reading: reading::ReadingArgs,
    #[command(flatten)]
    near: near::NearArgs,
    /// Look at one request in N for the keys that are asked for most, and large ones:
    /// http://METRICS/hot and `proxy top`
    #[arg(help_heading = FIGURES, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    hot_keys: Option<u32>,
    /// Note requests that take so long, in µs: SLOWLOG, and http://METRICS/slowlog; -1: none
    #[arg(help_heading = FIGURES, long, value_name = "MICROS", default_value_t = 10_000, allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..))]
    slowlog_slower_than: i64,
    /// So many of them, the last ones
    #[arg(help_heading = FIGURES, long, value_name = "N", default_value_t = 128)]
    slowlog_max_len: usize,
    /// Take the listening sockets over from the proxy that was started with the same path, which
    /// serves its own clients for the seconds of --drain and then ends; and wait there for the next
    #[arg(help_heading = RESTARTS, long, value_name = "PATH")]
    takeover: Option<PathBuf>,
    /// Seconds that it takes at most to answer what is under way when it is asked to end
    #[arg(help_heading = RESTARTS, long, value_name = "SECONDS", default_value_t = 10)]
    drain: u32,
    #[command(flatten)]
    tls: tls::ClientArgs,
    #[command(flatten)]
    server_tls: tls::ServerArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show what a running proxy does now: rates, and how fast its servers answer
    Top(top::Args),
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    if let Some(Command::Top(args)) = args.command {
        return top::run(context, args).await;
    }
    let connector = args.server_tls.load()?;
    let (mut service, mut users) = (service(&args), None);
    if let Some(file) = &args.users {
        let (file, own) = UsersFile::open(file)
            .map_err(|error| Failure::user("the proxy's users can't be read").because(&error))?;
        (service.users, users) = (own, Some(file));
    }
    if let Some(file) = args.pools.twemproxy.clone() {
        let common = pools::Common {
            threads: usize::from(args.threads),
            tls: connector,
            tls_listen: args.tls.of_pools()?,
            service,
            users,
            metrics: args.metrics.map(Address::Tcp),
            takeover: args.takeover,
            drain: Duration::from_secs(args.drain.into()),
        };
        return pools::serve(context, file, args.pools, common).await;
    }
    if let Some(file) = &args.state {
        let (stop, hangup) = (signals::asked_to_end(false)?, signals::hangup()?);
        let kept = kept::keep(file, stop, hangup).await;
        let Ended { proxy, span, handed_over } = kept.map_err(|error| {
            Failure::environment(format!("cannot serve what {} says", file.display()))
                .because(&error)
        })?;
        return end(proxy, span, handed_over).await;
    }
    let renews = !args.tls.tls_listen.is_empty() || connector.is_some() || args.users.is_some();
    let stop = signals::asked_to_end(!renews)?;
    let setup = setup(&args, connector.clone())?;
    let mut taken = match &args.takeover {
        None => None,
        Some(path) => takeover::take(path).map_err(|error| passing(path, &error))?,
    };
    let metrics = match args.metrics {
        Some(address) => {
            let listener = takeover::listener(&Address::Tcp(address), taken.as_mut()).await;
            Some(listener.map_err(|error| {
                Failure::user(format!("cannot give figures away at {address}")).because(&error)
            })?)
        }
        None => None,
    };
    if let Some(taken) = &mut taken {
        service.taken = taken.rest();
    }
    let proxy = Proxy::start_with(setup, service, true).map_err(|error| failure(&error))?;
    let places = proxy.listens().map(|(address, acceptor)| match acceptor {
        None => address.to_string(),
        Some(_) => format!("with TLS at {address}"),
    });
    let places: Vec<String> = places.collect();
    context.printer.note(&format!("Serving at {}. Ctrl-C ends that.", places.join(", ")));
    if renews {
        let acceptor = proxy.listens().find_map(|(_, acceptor)| acceptor.cloned());
        let users = users.map(|users| (users, proxy.admission()));
        let files = Files { acceptor, connector, users };
        tokio::spawn(files.renew(signals::hangup()?));
    }
    let mut passed = None;
    if let Some(path) = &args.takeover {
        let offer = || -> io::Result<_> {
            let mut sockets = proxy.sockets()?;
            if let Some(listener) = &metrics {
                sockets.push(listener.as_fd().try_clone_to_owned()?);
            }
            let next = takeover::offer(path, Arc::new(Mutex::new(sockets)))?;
            taken.map_or(Ok(()), Taken::serves)?;
            Ok(next)
        };
        passed = Some(offer().map_err(|error| passing(path, &error))?);
    }
    let figures = metrics.map(|listener| tokio::spawn(metrics::serve(listener, proxy.figures())));
    let passed_on = tokio::select! {
        () = stop => false,
        () = takeover::taken_over(passed) => true,
    };
    let span = Duration::from_secs(args.drain.into());
    if passed_on {
        figures.inspect(JoinHandle::abort);
    } else if let Some(path) = &args.takeover {
        let _ = fs::remove_file(path);
    }
    end(proxy, span, passed_on).await
}

/// Answers what is under way, for so long at most; where another proxy took over, serves its clients for as
/// long before.
async fn end(proxy: Proxy, span: Duration, handed_over: bool) -> Result<Exit, Failure> {
    if handed_over {
        tracing::info!("another proxy took over");
        return ended(spawn_blocking(move || proxy.hand_over(span, span))).await;
    }
    ended(spawn_blocking(move || proxy.drain(span))).await
}

/// Waits until it has ended.
pub(super) async fn ended(mut drained: JoinHandle<io::Result<()>>) -> Result<Exit, Failure> {
    let ended = tokio::select! {
        ended = &mut drained => ended.unwrap_or_else(|error| Err(error.into())),
        // Once more: at once.
        () = signals::asked_to_stop()? => return Ok(Exit::Done),
    };
    ended.map_err(|error| Failure::environment("the proxy failed").because(&error))?;
    Ok(Exit::Done)
}

fn passing(path: &Path, error: &io::Error) -> Failure {
    Failure::environment(format!("cannot pass sockets on at {}", path.display())).because(error)
}

fn service(args: &Args) -> Service {
    let slow_log = SlowLogSetup {
        slower_than: u64::try_from(args.slowlog_slower_than).ok(),
        entries_max: args.slowlog_max_len,
    };
    let allowance = Allowance {
        clients_max: None,
        requests_per_second: args.requests_per_second,
        bytes_per_second: args.bytes_per_second,
    };
    Service {
        clients_max: args.clients_max,
        balanced: args.proxy_protocol,
        slow_log,
        memory_max: Some(args.memory_max as usize),
        allowance,
        sample_one_in: args.hot_keys,
        users: Vec::new(),
        taken: Sockets::default(),
    }
}

fn setup(args: &Args, tls: Option<Arc<Connector>>) -> Result<Setup, Failure> {
    let password = PASSWORD_VARIABLES.iter().find_map(|name| env::var(name).ok());
    let password = password.filter(|password| !password.is_empty());
    Ok(Setup {
        listen: args.listen.clone(),
        tls_listen: args.tls.read()?,
        threads: usize::from(args.threads),
        seeds: args.connect.clone(),
        profile: Profile { password: password.clone(), ..Profile::default() },
        client_password: password,
        tls,
        reading: args.reading.read()?,
        near: args.near.read(),
    })
}

pub(super) fn address(text: &str) -> Result<Address, &'static str> {
    Address::parse(text).ok_or("no address, such as 127.0.0.1:7001")
}

fn failure(error: &ProxyError) -> Failure {
    let failure = Failure::user("the proxy can't start").because(error);
    match error {
        ProxyError::Listen(_) => failure.hint("give it another address: --listen 127.0.0.1:6380"),
        ProxyError::Topology { .. } | ProxyError::NoSeed => failure.hint(
            "give it a node of a cluster that runs: --connect HOST:PORT; its password in REDISCLI_AUTH",
        ),
        ProxyError::Tls(_) => failure.hint("give it PEM files: --tls-cert FILE --tls-key FILE"),
        ProxyError::Threads(_) => failure,
    }
}
