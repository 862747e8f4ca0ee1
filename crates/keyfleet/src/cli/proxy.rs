//! `keyfleet proxy`: let plain clients use a cluster, or a ring of servers.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use proxy::{
    engine::{Profile, Users},
    route::Address,
};
use tokio::net::TcpListener;

use super::{connect::PASSWORD_VARIABLES, context::Context, pools, signals};
use crate::{
    errors::{Exit, Failure},
    proxy::{Proxy, ProxyError, Setup, State, metrics},
};

const THREADS_MAX: i64 = 64;

#[derive(Debug, clap::Args)]
pub struct Args {
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
    /// Where clients connect: an address and a port, or a path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6379")]
    listen: String,
    /// Threads, each with connections of its own to the servers
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=THREADS_MAX))]
    threads: u8,
    #[command(flatten)]
    pools: pools::Args,
    /// Give figures away for Prometheus: http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    if let Some(file) = &args.pools.twemproxy {
        return pools::serve(context, file, usize::from(args.threads), &args.pools).await;
    }
    let stop = signals::asked_to_stop()?;
    // A fleet's proxy doesn't end with the cluster that it waits for.
    let strict = args.state.is_none();
    let setup = match &args.state {
        Some(file) => read_state(file)?,
        None => setup(&args)?,
    };
    let metrics = match args.metrics {
        Some(address) => Some(TcpListener::bind(address).await.map_err(|error| {
            Failure::user(format!("cannot give figures away at {address}")).because(&error)
        })?),
        None => None,
    };
    let proxy = Proxy::start(setup, strict).map_err(|error| failure(&error))?;
    context.printer.note(&format!("Serving at {}. Ctrl-C ends that.", proxy.listen()));
    if let Some(listener) = metrics {
        tokio::spawn(metrics::serve(listener, proxy.figures()));
    }
    stop.await;
    proxy.stop().map_err(|error| Failure::environment("the proxy failed").because(&error))?;
    Ok(Exit::Done)
}

fn read_state(file: &Path) -> Result<Setup, Failure> {
    let failed = || Failure::environment(format!("cannot use {}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| failed().because(&error))?;
    let state: State = serde_json::from_str(&text).map_err(|error| failed().because(&error))?;
    Ok(state.into())
}

fn setup(args: &Args) -> Result<Setup, Failure> {
    let password = PASSWORD_VARIABLES.iter().find_map(|name| env::var(name).ok());
    let password = password.filter(|password| !password.is_empty());
    Ok(Setup {
        listen: address(&args.listen)?,
        threads: usize::from(args.threads),
        seeds: args.connect.iter().map(|seed| address(seed)).collect::<Result<_, _>>()?,
        profile: Profile { password: password.clone(), ..Profile::default() },
        client_password: password,
        // The cluster knows its users, and what each of them may.
        users: Users::of_the_servers(),
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
        ProxyError::Threads(_) => failure,
    }
}
