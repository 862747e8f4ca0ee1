//! Proxies: one process each, started when their cluster has slots, told where the spec wants them
//! otherwise, and started anew where a running one can't become so. They hold nothing, so nothing is
//! to be handed over.

use super::{Draft, View};
use crate::{
    model::{Fleet, Proxy, ProxyAddress, ProxyService},
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
            } else if let Some(why) = another(proxy, seen) {
                draft.step(Action::StopProxy { proxy: name() }, why);
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

/// What the spec wants that only another process can be.
fn another(proxy: &Proxy, seen: &ProxyView) -> Option<String> {
    if seen.cluster != proxy.cluster {
        Some(format!("it is to serve {} instead of {}", proxy.cluster, seen.cluster))
    } else if seen.threads != proxy.threads {
        Some(format!("it is to have {} threads instead of {}", proxy.threads, seen.threads))
    } else {
        // A place can't be held twice.
        let tls = |service: &ProxyService| service.tls.as_ref().map(|tls| tls.listen);
        let (wanted, now) = (tls(&proxy.service), tls(&seen.service));
        let plain = |address| ProxyAddress::Tcp(address);
        let sealed = wanted.filter(|address| seen.listen.contains(&plain(*address)));
        let opened = now.filter(|address| {
            proxy.listen.iter().any(|listen| listen.explicit && listen.address == plain(*address))
        });
        let place = sealed.or(opened)?;
        Some(format!("{place} is to be {} TLS", if sealed.is_some() { "with" } else { "without" }))
    }
}

/// What the spec wants otherwise of a proxy that goes on.
fn otherwise(proxy: &Proxy, seen: &ProxyView) -> Option<String> {
    let (wanted, now) = (&proxy.service, &seen.service);
    let listens = proxy.listen.len() == seen.listen.len()
        && proxy.listen.iter().all(|listen| seen.listen.iter().any(|at| listen.allows(at)));
    if !listens {
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
