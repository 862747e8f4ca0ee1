//! `keyfleet proxy`: let plain clients use a cluster, or a ring of servers.

mod near;
mod reading;
mod tls;
mod top;

use std::{
    env, fs,
    future::pending,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use fleet::model::ProxyStart;
use proxy::{
    driver::Connector,
    engine::{Allowance, Profile, Users},
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
        takeover::{self, Taken},
        users::UsersFile,
    },
};

const THREADS_MAX: i64 = 64;

#[derive(Debug, clap::Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Nodes of the cluster to serve; the others are learned from them
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        required_unless_present_any = ["state", "twemproxy"],
        conflicts_with = "twemproxy"
    )]
    connect: Vec<String>,
    /// Be the fleet's proxy that this file says
    #[arg(long, value_name = "FILE", hide = true, conflicts_with_all = ["connect", "listen"])]
    state: Option<PathBuf>,
    /// Where clients connect: an address and a port, or a path; several, separated by commas
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6379", value_delimiter = ',')]
    listen: Vec<String>,
    /// Threads, each with connections of its own to the servers
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=THREADS_MAX))]
    threads: u8,
    #[command(flatten)]
    pools: pools::Args,
    /// Give figures away for Prometheus: http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS", conflicts_with = "twemproxy")]
    metrics: Option<SocketAddr>,
    /// Clients at once; who comes beyond that is refused
    #[arg(long, value_name = "N", conflicts_with = "twemproxy")]
    clients_max: Option<usize>,
    /// Clients come through a load balancer that says whose a connection is (PROXY protocol 1 or 2);
    /// who doesn't say it is refused
    #[arg(long, conflicts_with = "twemproxy")]
    proxy_protocol: bool,
    /// Users beside those that the cluster knows, with their limits (YAML); SIGHUP, or changing it, has it
    /// read again
    #[arg(long, value_name = "FILE", conflicts_with = "twemproxy")]
    users: Option<PathBuf>,
    /// What all clients together may ask a second; who asks more is read later
    #[arg(long, value_name = "N", conflicts_with = "twemproxy",
        value_parser = clap::value_parser!(u64).range(1..))]
    requests_per_second: Option<u64>,
    /// Bytes a second, of requests and replies of all clients together
    #[arg(long, value_name = "BYTES", conflicts_with = "twemproxy",
        value_parser = clap::value_parser!(u64).range(1..))]
    bytes_per_second: Option<u64>,
    /// So much memory, such as 512MiB, is for buffers, of all clients and servers together: where they hold
    /// more, the clients that hold most are closed
    #[arg(long, value_name = "SIZE", default_value = "1GiB",
        value_parser = |text: &str| near::size(text, ProxyStart::MEMORY_MIN))]
    memory_max: u64,
    #[command(flatten)]
    reading: reading::ReadingArgs,
    #[command(flatten)]
    near: near::NearArgs,
    /// Look at one request in N for the keys that are asked for most, and large ones:
    /// http://METRICS/hot and `proxy top`
    #[arg(long, value_name = "N", conflicts_with = "twemproxy",
        value_parser = clap::value_parser!(u32).range(1..))]
    hot_keys: Option<u32>,
    /// Note requests that take so long, in µs: SLOWLOG, and http://METRICS/slowlog; -1: none
    #[arg(long, value_name = "MICROS", default_value_t = 10_000, allow_negative_numbers = true,
        value_parser = clap::value_parser!(i64).range(-1..), conflicts_with = "twemproxy")]
    slowlog_slower_than: i64,
    /// So many of them, the last ones
    #[arg(long, value_name = "N", default_value_t = 128, conflicts_with = "twemproxy")]
    slowlog_max_len: usize,
    /// Take the listening sockets over from the proxy that was started with the same path, which
    /// serves its own clients for the seconds of --drain and then ends; and wait there for the next
    #[arg(long, value_name = "PATH", conflicts_with = "twemproxy")]
    takeover: Option<PathBuf>,
    /// Seconds that it takes at most to answer what is under way when it is asked to end
    #[arg(long, value_name = "SECONDS", default_value_t = 10, conflicts_with = "twemproxy")]
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
    if let Some(file) = &args.pools.twemproxy {
        if connector.is_some() {
            let files = Files { connector: connector.clone(), ..Files::default() };
            tokio::spawn(files.renew(signals::hangup()?));
        }
        let size = (usize::from(args.threads), args.memory_max as usize);
        return pools::serve(context, file, size, connector, &args.pools).await;
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
    let renews = args.tls.tls_listen.is_some() || connector.is_some() || args.users.is_some();
    let stop = signals::asked_to_end(!renews)?;
    let mut setup = setup(&args, connector.clone())?;
    let mut users = None;
    if let Some(file) = &args.users {
        let (file, own) = UsersFile::open(file, &setup.profile)
            .map_err(|error| Failure::user("the proxy's users can't be read").because(&error))?;
        (setup.users.own, users) = (own, Some(file));
    }
    let mut service = service(&args)?;
    let mut taken = match &args.takeover {
        None => None,
        Some(path) => takeover::take(path).map_err(|error| passing(path, &error))?,
    };
    if let Some(taken) = &mut taken {
        taken.hand(&setup, &mut service);
    }
    let metrics = match args.metrics {
        Some(address) => {
            let listener = metrics::listener(address, taken.as_mut()).await;
            Some(listener.map_err(|error| {
                Failure::user(format!("cannot give figures away at {address}")).because(&error)
            })?)
        }
        None => None,
    };
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
    let handed_over = async {
        let taken = match passed {
            Some(passed) => passed.await.is_ok(),
            None => false,
        };
        if !taken {
            pending::<()>().await;
        }
    };
    let passed_on = tokio::select! {
        () = stop => false,
        () = handed_over => true,
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
async fn ended(mut drained: JoinHandle<io::Result<()>>) -> Result<Exit, Failure> {
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

fn service(args: &Args) -> Result<Service, Failure> {
    let slow_log = SlowLogSetup {
        slower_than: u64::try_from(args.slowlog_slower_than).ok(),
        entries_max: args.slowlog_max_len,
    };
    let allowance = Allowance {
        clients_max: None,
        requests_per_second: args.requests_per_second,
        bytes_per_second: args.bytes_per_second,
    };
    Ok(Service {
        tls: args.tls.read()?,
        clients_max: args.clients_max,
        balanced: args.proxy_protocol,
        slow_log,
        memory_max: Some(args.memory_max as usize),
        allowance,
        reading: args.reading.read()?,
        sample_one_in: args.hot_keys,
        near: args.near.read(),
        taken: Vec::new(),
    })
}

fn setup(args: &Args, tls: Option<Arc<Connector>>) -> Result<Setup, Failure> {
    let password = PASSWORD_VARIABLES.iter().find_map(|name| env::var(name).ok());
    let password = password.filter(|password| !password.is_empty());
    Ok(Setup {
        listen: args.listen.iter().map(|text| address(text)).collect::<Result<_, _>>()?,
        threads: usize::from(args.threads),
        seeds: args.connect.iter().map(|seed| address(seed)).collect::<Result<_, _>>()?,
        profile: Profile { password: password.clone(), ..Profile::default() },
        client_password: password,
        // The cluster knows its users, and what each of them may.
        users: Users::of_the_servers(),
        tls,
    })
}

fn address(text: &str) -> Result<Address, Failure> {
    Address::parse(text).ok_or_else(|| {
        Failure::user(format!("no address: {text:?}")).hint("such as 127.0.0.1:7001")
    })
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
