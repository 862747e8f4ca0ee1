//! Steps that start and stop proxies.

use std::{
    collections::BTreeMap,
    fmt,
    net::{SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use fleet::model::{Proxy, ProxyAddress, ProxyName, ProxyService};
use rustix::process::Signal;
use tokio::time::timeout;

use super::{Context, StepError, context::Wait};
use crate::{
    node_files::default_password,
    proxy::kept::{PROXY_SERVED, PROXY_STATE, REFUSED, State},
    runtimes::process::{self, Handle},
    secrets::resolve,
    store,
};

/// How long a proxy may take until it listens.
const START: Duration = Duration::from_secs(10);
/// How long one that runs may take to serve otherwise.
const CHANGE: Duration = Duration::from_secs(5);
/// How long it may take to end, beside the time that it has for what is under way.
const STOP: Duration = Duration::from_secs(5);
/// How many ports above the first are tried where the spec leaves the choice.
const PORTS_MAX: u16 = 200;

/// Writes what a proxy is to do and starts it.
pub(super) async fn start(context: &Context, name: &ProxyName) -> Result<(), StepError> {
    if find(context, name)?.is_some() {
        return Err(StepError::Stale(format!("proxy {name} runs already")));
    }
    let directory = context.store.proxy_dir(name);
    store::make_directory(&directory)?;
    let (_, text) = write_state(context, name, false)?;
    store::remove(&directory.join(PROXY_SERVED))?;
    launch(context, name, &text).await
}

/// Starts a process, and waits until it serves what was written. It takes the place of one that serves.
async fn launch(context: &Context, name: &ProxyName, text: &str) -> Result<(), StepError> {
    let directory = context.store.proxy_dir(name);
    let log = process::log_length(&directory);
    let pid = process::start_proxy(&directory).map_err(|error| failed(name, &error))?;
    let handle = Handle::below(pid, &context.store.proxies_dir(), name.as_str());
    let Some(handle) = handle.map_err(|error| failed(name, &error))? else {
        return Err(failed(name, &process::log_tail(&directory, log)));
    };
    serves(context, name, text, &handle, log, START).await
}

/// Writes what a running proxy is to do from now on, and has it do that, or another process in its
/// place.
pub(super) async fn change(context: &Context, name: &ProxyName) -> Result<(), StepError> {
    let Some(handle) = find(context, name)? else {
        return Err(StepError::Stale(format!("proxy {name} doesn't run")));
    };
    let log = process::log_length(&context.store.proxy_dir(name));
    let before = context.store.proxy_state(name)?;
    let (state, text) = write_state(context, name, true)?;
    if before.is_none_or(|before| state.is_another(&before)) {
        return launch(context, name, &text).await;
    }
    handle.signal(Signal::HUP).map_err(|error| failed(name, &error))?;
    serves(context, name, &text, &handle, log, CHANGE).await
}

/// Waits until it serves what was written. What it printed meanwhile says why it doesn't.
async fn serves(
    context: &Context,
    name: &ProxyName,
    wanted: &str,
    handle: &Handle,
    log: u64,
    deadline: Duration,
) -> Result<(), StepError> {
    let directory = context.store.proxy_dir(name);
    let served = directory.join(PROXY_SERVED);
    let mut wait = Wait::new(deadline);
    while store::read(&served)?.as_deref() != Some(wanted) {
        let ended = timeout(Duration::ZERO, handle.exited()).await.is_ok();
        let paused = wait.pause(|| format!("proxy {name} serves what it is to")).await;
        let printed = process::log_tail(&directory, log);
        if ended || paused.is_err() || printed.contains(REFUSED) {
            return match (printed.is_empty(), paused) {
                (true, Err(late)) => Err(late),
                _ => Err(failed(name, &printed)),
            };
        }
    }
    Ok(())
}

/// What the spec wants of the proxy, written into its directory.
fn write_state(
    context: &Context,
    name: &ProxyName,
    runs: bool,
) -> Result<(State, String), StepError> {
    let unknown = || StepError::Unknown { what: format!("proxy {name}") };
    let proxy = context.fleet.proxies.get(name).ok_or_else(unknown)?;
    let cluster = context.cluster(&proxy.cluster)?;
    let source = default_password(&context.fleet, cluster);
    let password = resolve(&context.store, &cluster.name, "default", &source)
        .map_err(|error| failed(name, &error))?;
    let members = context.members(&proxy.cluster)?;
    let before = context.store.proxy_state(name)?;
    let state = State {
        cluster: proxy.cluster.clone(),
        listen: free_addresses(proxy, before.as_ref(), runs)?,
        start: proxy.start.clone(),
        zones: zones(context),
        service: proxy.service.clone(),
        seeds: members.iter().map(|member| member.address).collect(),
        password: password.map(|password| password.expose().to_owned()),
        base: context.store.root().parent().unwrap_or(Path::new("/")).to_owned(),
    };
    let text = serde_json::to_string_pretty(&state).map_err(|error| failed(name, &error))?;
    store::replace(&context.store.proxy_dir(name).join(PROXY_STATE), text.as_bytes())?;
    Ok((state, text))
}

/// The zones that nodes are in, by their addresses.
fn zones(context: &Context) -> BTreeMap<String, String> {
    let hosts = context.fleet.hosts.values();
    hosts.map(|host| (host.address.to_string(), host.zone.as_str().to_owned())).collect()
}

/// Ends a proxy: what it has under way is answered first.
pub(super) async fn stop(context: &Context, name: &ProxyName) -> Result<(), StepError> {
    let Some(handle) = find(context, name)? else { return Ok(()) };
    let drain_ms = context.store.proxy_state(name)?.map(|state| state.service.drain_ms);
    let drain = Duration::from_millis(drain_ms.unwrap_or(ProxyService::PLAIN.drain_ms));
    handle.signal(Signal::TERM).map_err(|error| failed(name, &error))?;
    if timeout(drain + STOP, handle.exited()).await.is_err() {
        handle.signal(Signal::KILL).map_err(|error| failed(name, &error))?;
        let killed = timeout(STOP, handle.exited()).await;
        killed.map_err(|_| failed(name, &"it can't be killed"))?.map_err(|e| failed(name, &e))?;
    }
    Ok(())
}

fn find(context: &Context, name: &ProxyName) -> Result<Option<Handle>, StepError> {
    let directory = context.store.proxies_dir();
    let found = process::scan_proxies(&directory).map_err(|error| failed(name, &error))?;
    let Some(pid) = found.get(name) else { return Ok(None) };
    Handle::below(*pid, &directory, name.as_str()).map_err(|error| failed(name, &error))
}

/// Where the proxy can listen: where it did before, or at the first free port that the spec allows.
/// Proxies share ports among their threads, so another's port would be no error to the kernel. What a
/// proxy that runs holds itself is free for it.
fn free_addresses(
    proxy: &Proxy,
    before: Option<&State>,
    runs: bool,
) -> Result<Vec<ProxyAddress>, StepError> {
    let own = |address: SocketAddr| {
        runs && before.is_some_and(|state| {
            let tls = state.service.tls.as_ref().map(|tls| tls.listen);
            state.listen.contains(&ProxyAddress::Tcp(address))
                || tls == Some(address)
                || state.service.metrics == Some(address)
        })
    };
    let bind = |address: SocketAddr| match TcpListener::bind(address) {
        Err(_) if own(address) => Ok(()),
        bound => bound.map(drop),
    };
    let bound = |address: SocketAddr| {
        let problem =
            |error| failed(&proxy.name, &format!("it can't listen at {address}: {error}"));
        bind(address).map_err(problem)
    };
    let service = &proxy.service;
    let others = service.tls.iter().map(|tls| tls.listen).chain(service.metrics);
    for address in others {
        bound(address)?;
    }
    let listens = proxy.listen.iter().map(|wanted| {
        let ProxyAddress::Tcp(first) = wanted.address else { return Ok(wanted.address.clone()) };
        let more = if wanted.explicit { 0 } else { PORTS_MAX };
        let ports = (0..=more).filter_map(|offset| first.port().checked_add(offset));
        let candidates = ports.map(|port| SocketAddr::new(first.ip(), port));
        let before = before.into_iter().flat_map(|state| &state.listen);
        let before =
            before.filter(|before| wanted.allows(before)).filter_map(|before| match before {
                ProxyAddress::Tcp(address) => Some(*address),
                ProxyAddress::Path(_) => None,
            });
        let free = before.chain(candidates).find(|address| bind(*address).is_ok());
        free.map_or_else(|| bound(first).map(|()| first), Ok).map(ProxyAddress::Tcp)
    });
    listens.collect()
}

fn failed(proxy: &ProxyName, problem: &dyn fmt::Display) -> StepError {
    StepError::Proxy { proxy: proxy.clone(), problem: problem.to_string() }
}
