//! `keyfleet proxy`: let plain clients use a cluster.

use std::env;

use proxy::{engine::Profile, route::Address};

use super::{connect::PASSWORD_VARIABLES, context::Context, signals};
use crate::{
    errors::{Exit, Failure},
    proxy::{Proxy, ProxyError, Setup},
};

const THREADS_MAX: i64 = 64;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Nodes of the cluster to serve; the others are learned from them
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
    connect: Vec<String>,
    /// Where clients connect: an address and a port, or a path
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6379")]
    listen: String,
    /// Threads, each with connections of its own to the servers
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=THREADS_MAX))]
    threads: u8,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let stop = signals::asked_to_stop()?;
    let password = PASSWORD_VARIABLES.iter().find_map(|name| env::var(name).ok());
    let password = password.filter(|password| !password.is_empty());
    let setup = Setup {
        listen: address(&args.listen)?,
        threads: usize::from(args.threads),
        seeds: args.connect.iter().map(|seed| address(seed)).collect::<Result<_, _>>()?,
        profile: Profile { password: password.clone(), ..Profile::default() },
        client_password: password,
    };
    let proxy = Proxy::start(setup, true).map_err(|error| failure(&error))?;
    context.printer.note(&format!("Serving at {}. Ctrl-C ends that.", proxy.listen()));
    stop.await;
    proxy.stop().map_err(|error| Failure::environment("the proxy failed").because(&error))?;
    Ok(Exit::Done)
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
