//! Proxies: one process each, started when their cluster has slots, and told where the spec wants them
//! otherwise: where a running one can't become so, another takes its place. They hold nothing, so nothing
//! but their sockets is to be handed over.

use super::{Draft, View};
use crate::{
    model::{Fleet, Proxy, ProxyStart},
    observed::{Observed, Process, ProxyView},
    step::Action,
};

/// Steps for the proxies of one cluster. They wait for nothing else: a proxy is most wanted while its
/// cluster changes.
pub(super) fn keep(fleet: &Fleet, observed: &Observed, view: &View<'_>, draft: &mut Draft) {
    let serves = !view.spec.stopped && !view.shards.is_empty();
    for proxy in fleet.proxies.values().filter(|proxy| proxy.cluster == view.spec.name) {
        let seen = observed.proxies.get(&proxy.name);
        let running = seen.filter(|seen| seen.process != Process::Gone);
        let name = || proxy.name.clone();
        if let Some(seen) = running {
            if view.spec.stopped {
                draft.step(Action::StopProxy { proxy: name() }, "the cluster is to be stopped");
            } else if let Some(why) = otherwise(proxy, seen) {
                draft.step(Action::ChangeProxy { proxy: name() }, why);
            }
        } else if serves {
            let why = if seen.is_some() { "its process is gone" } else { "the spec wants it" };
            draft.step(Action::StartProxy { proxy: name() }, why);
        }
    }
    for (name, seen) in &observed.proxies {
        let runs = seen.process != Process::Gone;
        if runs && seen.cluster == view.spec.name && !fleet.proxies.contains_key(name) {
            let action = Action::StopProxy { proxy: name.clone() };
            draft.step(action, "the spec doesn't name it any more");
        }
    }
}

/// What the spec wants otherwise of a proxy that runs.
fn otherwise(proxy: &Proxy, seen: &ProxyView) -> Option<String> {
    let (wanted, now) = (&proxy.service, &seen.service);
    let listens = proxy.listen.len() == seen.listen.len()
        && proxy.listen.iter().all(|listen| seen.listen.iter().any(|at| listen.allows(at)));
    if seen.cluster != proxy.cluster {
        Some(format!("it is to serve {} instead of {}", proxy.cluster, seen.cluster))
    } else if seen.start != proxy.start {
        Some(settled(&proxy.start, &seen.start))
    } else if seen.stale_password {
        Some("the cluster's password changed".to_owned())
    } else if !listens {
        let places = proxy.listen.iter().map(|listen| listen.address.to_string());
        Some(format!("it is to listen at {}", places.collect::<Vec<_>>().join(", ")))
    } else if wanted.tls != now.tls {
        Some(match (&wanted.tls, &now.tls) {
            (None, _) => "it is to serve without TLS".to_owned(),
            (Some(tls), Some(now)) if tls.listen == now.listen => {
                "its certificates are to be others".to_owned()
            }
            (Some(tls), _) => format!("it is to serve with TLS at {}", tls.listen),
        })
    } else if wanted.metrics != now.metrics {
        Some(wanted.metrics.map_or_else(
            || "it is to give no figures away".to_owned(),
            |address| format!("it is to give its figures away at {address}"),
        ))
    } else if wanted.clients_max != now.clients_max {
        Some(wanted.clients_max.map_or_else(
            || "it is to serve as many clients as come".to_owned(),
            |most| format!("it is to serve {most} clients at most"),
        ))
    } else if wanted.drain_ms != now.drain_ms {
        Some(format!("it is to take {} ms at most to end", wanted.drain_ms))
    } else {
        None
    }
}

/// What differs of what is settled when a proxy starts.
fn settled(wanted: &ProxyStart, now: &ProxyStart) -> String {
    if wanted.threads != now.threads {
        return format!("it is to have {} threads instead of {}", wanted.threads, now.threads);
    }
    let what = [
        ("where reads go", wanted.read_from != now.read_from),
        ("how old what replicas show may be", wanted.lag_max_s != now.lag_max_s),
        ("its zone", wanted.zone != now.zone),
        ("the file of its users", wanted.users != now.users),
        ("what its buffers may hold", wanted.memory_max_bytes != now.memory_max_bytes),
        ("what is slow", wanted.slow_log_ms != now.slow_log_ms),
        ("how often it looks for hot keys", wanted.hot_keys != now.hot_keys),
        ("what it answers from its own memory", wanted.near_cache != now.near_cache),
        ("whether load balancers say who clients are", wanted.proxy_protocol != now.proxy_protocol),
    ];
    let other = what.iter().find(|(_, differs)| *differs);
    let what = other.map_or("what clients may ask a second", |(what, _)| *what);
    format!("{what} is to change")
}
