//! Proxies: one process each, started when their cluster has slots, and started anew when the spec
//! wants them otherwise. They hold nothing, so nothing is to be handed over.

use super::{Draft, View};
use crate::{
    model::{Fleet, Proxy},
    observed::{Observed, Process, ProxyView},
    step::Action,
};

/// Steps for the proxies of one cluster. They wait for nothing else: a proxy is most wanted while its
/// cluster changes.
pub(super) fn keep(fleet: &Fleet, observed: &Observed, view: &View<'_>, draft: &mut Draft) {
    let serves = !view.spec.stopped && !view.shards.is_empty();
    for proxy in fleet.proxies.values().filter(|proxy| proxy.cluster == view.spec.name) {
        let seen = observed.proxies.get(&proxy.name);
        let runs = seen.is_some_and(|seen| seen.process != Process::Gone);
        let differs = seen.filter(|_| runs).and_then(|seen| difference(proxy, seen));
        let name = || proxy.name.clone();
        if runs && view.spec.stopped {
            draft.step(Action::StopProxy { proxy: name() }, "the cluster is to be stopped");
        } else if let Some(why) = differs {
            draft.step(Action::StopProxy { proxy: name() }, why);
        } else if !runs && serves {
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

/// What the spec wants otherwise.
fn difference(proxy: &Proxy, seen: &ProxyView) -> Option<String> {
    if seen.cluster != proxy.cluster {
        Some(format!("it is to serve {} instead of {}", proxy.cluster, seen.cluster))
    } else if !proxy.listen.allows(seen.listen) {
        Some(format!("it is to listen at {} instead of {}", proxy.listen.address, seen.listen))
    } else if seen.threads != proxy.threads {
        Some(format!("it is to have {} threads instead of {}", proxy.threads, seen.threads))
    } else {
        None
    }
}
