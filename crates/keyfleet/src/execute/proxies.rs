//! Steps that start and stop proxies.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::Duration,
};

use fleet::model::{Proxy, ProxyName};
use rustix::process::Signal;
use tokio::{net::TcpStream, time::timeout};

use super::{Context, StepError, context::Wait};
use crate::{
    node_files::default_password,
    proxy::{PROXY_STATE, State},
    runtimes::process::{self, Handle},
    secrets::resolve,
    store,
};

/// How long a proxy may take until it listens.
const START: Duration = Duration::from_secs(10);
/// How long it may take to answer what it has under way.
const STOP: Duration = Duration::from_secs(15);
/// How many ports above the first are tried where the spec leaves the choice.
const PORTS_MAX: u16 = 200;

/// Writes what a proxy is to do and starts it.
pub(super) async fn start(context: &Context, name: &ProxyName) -> Result<(), StepError> {
    let unknown = || StepError::Unknown { what: format!("proxy {name}") };
    let proxy = context.fleet.proxies.get(name).ok_or_else(unknown)?;
    if find(context, name)?.is_some() {
        return Err(StepError::Stale(format!("proxy {name} runs already")));
    }
    let cluster = context.cluster(&proxy.cluster)?;
    let source = default_password(&context.fleet, cluster);
    let password = resolve(&context.store, &cluster.name, "default", &source)
        .map_err(|error| failed(name, &error))?;
    let members = context.members(&proxy.cluster)?;
    let directory = context.store.proxy_dir(name);
    store::make_directory(&directory)?;
    let state = State {
        cluster: proxy.cluster.clone(),
        listen: free_address(proxy, context.store.proxy_state(name)?.map(|before| before.listen))?,
        threads: proxy.threads,
        seeds: members.iter().map(|member| member.address).collect(),
        password: password.map(|password| password.expose().to_owned()),
    };
    let text = serde_json::to_string_pretty(&state).map_err(|error| failed(name, &error))?;
    store::replace(&directory.join(PROXY_STATE), text.as_bytes())?;
    let log = process::log_length(&directory);
    let pid = process::start_proxy(&directory).map_err(|error| failed(name, &error))?;
    let handle = Handle::below(pid, &context.store.proxies_dir(), name.as_str());
    let handle = handle.map_err(|error| failed(name, &error))?;
    let mut wait = Wait::new(START);
    while !listens(state.listen).await {
        let ended = match &handle {
            None => true,
            Some(handle) => timeout(Duration::ZERO, handle.exited()).await.is_ok(),
        };
        if ended {
            return Err(failed(name, &process::log_tail(&directory, log)));
        }
        wait.pause(|| format!("proxy {name} listens at {}", state.listen)).await?;
    }
    Ok(())
}

/// Ends a proxy: what it has under way is answered first.
pub(super) async fn stop(context: &Context, name: &ProxyName) -> Result<(), StepError> {
    let Some(handle) = find(context, name)? else { return Ok(()) };
    handle.signal(Signal::TERM).map_err(|error| failed(name, &error))?;
    if timeout(STOP, handle.exited()).await.is_err() {
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
/// Proxies share ports among their threads, so another's port would be no error to the kernel.
fn free_address(proxy: &Proxy, before: Option<SocketAddr>) -> Result<SocketAddr, StepError> {
    let wanted = proxy.listen.address;
    let more = if proxy.listen.explicit { 0 } else { PORTS_MAX };
    let ports = (0..=more).filter_map(|offset| wanted.port().checked_add(offset));
    let candidates = ports.map(|port| SocketAddr::new(wanted.ip(), port));
    let before = before.filter(|before| proxy.listen.allows(*before));
    let mut candidates = before.into_iter().chain(candidates);
    let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    candidates.find(free).ok_or_else(|| match TcpListener::bind(wanted) {
        Ok(_) => failed(&proxy.name, &"its port is free again: look once more"),
        Err(error) => failed(&proxy.name, &format!("it can't listen at {wanted}: {error}")),
    })
}

async fn listens(address: SocketAddr) -> bool {
    let mut address = address;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    TcpStream::connect(address).await.is_ok()
}

fn failed(proxy: &ProxyName, problem: &dyn fmt::Display) -> StepError {
    StepError::Proxy { proxy: proxy.clone(), problem: problem.to_string() }
}
