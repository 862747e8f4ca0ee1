//! Settings of running servers: what has drifted from the spec and can be set back live.

use std::collections::BTreeMap;

use protocol::{config_value::normalise_value, directives};

use super::{Draft, Member, View};
use crate::{
    model::{Bytes, DirectiveValue},
    observed::Up,
    step::Action,
};

/// The wanted directives that a running server has otherwise.
#[derive(Default)]
pub(super) struct Drift {
    /// CONFIG SET changes them.
    pub(super) live: BTreeMap<String, DirectiveValue>,
    /// Only a restart does.
    pub(super) frozen: Vec<String>,
}

pub(super) fn drift(view: &View<'_>, up: &Up) -> Drift {
    let mut drift = Drift::default();
    for (name, value) in &view.spec.config {
        // What the server doesn't show can't be compared: it holds from the next start on.
        let Some(have) = up.config.get(name) else { continue };
        if is_same(name, value, have) {
            continue;
        }
        match directives::lookup(up.engine, name) {
            directives::Known::Known { live: true, .. } => {
                drift.live.insert(name.clone(), value.clone());
            }
            directives::Known::Known { live: false, .. } => drift.frozen.push(name.clone()),
            directives::Known::Unknown => {}
        }
    }
    let timeout = ("cluster-node-timeout", view.spec.node_timeout_ms.to_string());
    for (name, want) in [timeout, ("cluster-allow-replica-migration", "no".to_owned())] {
        if up.config.get(name).is_some_and(|have| *have != want) {
            drift.live.insert(name.to_owned(), DirectiveValue::single(want));
        }
    }
    drift
}

/// Does the server's answer mean what was asked for? `client-output-buffer-limit` answers for every
/// class; only those that the spec names count.
fn is_same(name: &str, want: &DirectiveValue, have: &str) -> bool {
    if name == "client-output-buffer-limit" {
        let have: Vec<&str> = have.split_whitespace().collect();
        return want.0.iter().all(|occurrence| {
            let text = normalise_value(name, &occurrence.join(" "));
            let parts: Vec<&str> = text.split_whitespace().collect();
            parts.chunks(4).all(|class| have.chunks(4).any(|known| known == class))
        });
    }
    normalise_value(name, &want.joined()) == have
}

/// Set live what can be set live, and load the users.
pub(super) fn live(view: &View<'_>, draft: &mut Draft) {
    for member in &view.members {
        let Some(up) = member.up else { continue };
        let mut directives = drift(view, up).live;
        if let Some(max) = directives.get("maxmemory")
            && let Some(reason) = does_not_fit(view, member, up, max)
        {
            draft.block(
                format!("maxmemory {} on {}", max.joined(), member.name),
                reason,
                Some("delete data, add shards, or keep the memory"),
            );
            directives.remove("maxmemory");
        }
        if !directives.is_empty() {
            draft.step(
                Action::SetConfig { node: member.name.clone(), directives },
                "it runs with other values than the spec's",
            );
        }
        if !up.users_current {
            draft.step(
                Action::ApplyAcl { node: member.name.clone() },
                "its users are not the spec's",
            );
        }
    }
}

/// Shrinking below what is used: without eviction writes would be refused.
fn does_not_fit(
    view: &View<'_>,
    member: &Member<'_>,
    up: &Up,
    max: &DirectiveValue,
) -> Option<String> {
    let max: u64 = normalise_value("maxmemory", &max.joined()).parse().ok()?;
    let evicts = view
        .spec
        .config
        .get("maxmemory-policy")
        .is_some_and(|policy| policy.joined() != "noeviction");
    (!evicts && max > 0 && max < up.memory.used).then(|| {
        format!(
            "{} uses {} and may not evict: it would refuse writes at {}",
            member.name,
            Bytes(up.memory.used),
            Bytes(max)
        )
    })
}
