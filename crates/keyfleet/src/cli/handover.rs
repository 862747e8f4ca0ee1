//! `keyfleet handover`: move the primary's role away from a node or a host, losing nothing.

use std::collections::BTreeSet;

use fleet::{
    model::{Fleet, HostId, NodeName},
    observed::{NodeView, Observed},
    overview::{Overview, Shard, State},
    plan::View,
    step::{Action, Step, Wave},
};

use super::{
    context::{Context, unknown},
    freeze, lease,
    progress::Progress,
    signals, up,
};
use crate::{
    errors::{Exit, Failure, Problem},
    reconcile::{Reconciler, Turn},
};

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("from").required(true))]
pub struct Args {
    /// The primary that gives its role away (cache-1)
    #[arg(group = "from", value_name = "NODE")]
    node: Option<String>,
    /// Every primary on this host, one after the other
    #[arg(long, group = "from", value_name = "HOST")]
    host: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let stop = signals::asked_to_stop()?;
    let session = context.open()?;
    let lease = lease::take(&session.store, "handover").await?;
    let mut reconciler = Reconciler::new(context.tools(&session).await?);
    let first = reconciler.look().await?.observed;
    let todo = match (&args.node, &args.host) {
        (_, Some(host)) => primaries_on(&first, host)?,
        (Some(node), None) => vec![primary(&first, node)?],
        (None, None) => Vec::new(),
    };
    let touched: BTreeSet<_> = todo.iter().map(|node| node.cluster.clone()).collect();
    let touched: Vec<_> = touched.into_iter().collect();
    freeze::refuse(context, &session.store, &touched, None)?;
    let progress = Progress::new(context.printer);
    let work = async {
        for from in &todo {
            let turn = reconciler.look().await?;
            let to = heir(&session.fleet, &turn.observed, from)?;
            let step = Step {
                cluster: from.cluster.clone(),
                action: Action::Handover { from: from.clone(), to: to.clone() },
                why: "asked for".to_owned(),
            };
            let wave = Wave { steps: vec![step], ..Wave::default() };
            progress.turn(&Turn { observed: turn.observed, wave: wave.clone() }, &[]);
            let acted = reconciler.act(&wave, &progress.sink(), &|| false).await;
            if !acted.failed.is_empty() {
                return Err(up::failures(&acted.failed));
            }
            if let Some(node) = acted.interrupted_by {
                return Err(Failure::environment(format!("{node} ended meanwhile"))
                    .hint(context.command("status")));
            }
        }
        Ok(())
    };
    let result = tokio::select! {
        result = work => Some(result),
        () = stop => None,
    };
    let done = progress.finish();
    match result {
        Some(result) => result?,
        None => {
            return Err(Failure::user(format!("stopped after {done} of {} handovers", todo.len()))
                .hint(format!("see where the roles are: {}", context.command("status"))));
        }
    }
    drop(lease);
    if todo.is_empty() {
        context.printer.note("No primary is there.");
    }
    Ok(Exit::Done)
}

/// The node of this name, if it is a primary.
fn primary(observed: &Observed, text: &str) -> Result<NodeName, Failure> {
    let names: Vec<String> = observed.nodes.keys().map(ToString::to_string).collect();
    let node = observed.nodes.keys().find(|name| name.to_string() == text);
    let Some(node) = node else {
        let problem = unknown("node", text, names.iter().map(String::as_str));
        return Err(Failure::user_all(vec![problem]));
    };
    let overview = Overview::new(observed, &node.cluster);
    if overview.shards.iter().any(|shard| shard.primary.as_ref() == Some(node)) {
        return Ok(node.clone());
    }
    let problem = Problem::new(format!("{node} is no primary"));
    let of = overview.shards.iter().find(|shard| shard.replicas.contains(node));
    let problem = match of.and_then(|shard| shard.primary.as_ref()) {
        Some(primary) => {
            problem.hint(format!("its primary is {primary}: keyfleet handover {primary}"))
        }
        None => problem.hint("see who is: keyfleet status"),
    };
    Err(Failure::user_all(vec![problem]))
}

fn primaries_on(observed: &Observed, host: &str) -> Result<Vec<NodeName>, Failure> {
    let host_id = HostId::new(host);
    if !observed.hosts.contains_key(&host_id) {
        let problem = unknown("host", host, observed.hosts.keys().map(HostId::as_str));
        return Err(Failure::user_all(vec![problem]));
    }
    let clusters: BTreeSet<_> = observed.nodes.keys().map(|name| &name.cluster).collect();
    let shards = clusters.into_iter().flat_map(|cluster| Overview::new(observed, cluster).shards);
    let there = |name: &NodeName| observed.nodes.get(name).is_some_and(|view| view.host == host_id);
    Ok(shards.filter_map(|shard| shard.primary).filter(there).collect())
}

/// The replica that is to take over: in sync, on another host where one is, with the most data.
/// An error where now isn't the moment.
fn heir(fleet: &Fleet, observed: &Observed, from: &NodeName) -> Result<NodeName, Failure> {
    let blocked = |reason: String, hint: &str| {
        Failure::user(format!("{from} can't hand over now: {reason}")).hint(hint)
    };
    let cluster = fleet.clusters.get(&from.cluster).ok_or_else(|| {
        blocked(format!("{} is not in the file", from.cluster), "put it back into the file")
    })?;
    let unrest = View::new(cluster, observed).unrest();
    if !unrest.is_empty() {
        return Err(blocked(unrest.join(", "), "mend that first: keyfleet up"));
    }
    let overview = Overview::new(observed, &from.cluster);
    let shard: Option<&Shard> =
        overview.shards.iter().find(|shard| shard.primary.as_ref() == Some(from));
    let host = observed.nodes.get(from).map(|view| &view.host);
    let replicas = shard.into_iter().flat_map(|shard| &shard.replicas);
    replicas
        .filter_map(|name| Some((name, observed.nodes.get(name)?)))
        .filter(|(_, view)| State::of(view) == State::InSync)
        .max_by_key(|(name, view)| {
            let offset = view.up().map_or(0, |up| up.offset);
            (Some(&view.host) != host, offset, std::cmp::Reverse(name.number))
        })
        .map(|(name, _): (&NodeName, &NodeView)| name.clone())
        .ok_or_else(|| {
            let hint = "give it one: `replicas: 1` in the file, then: keyfleet up";
            blocked("it has no replica in sync".to_owned(), hint)
        })
}

#[cfg(test)]
mod tests {
    use fleet::{
        observed::{Link, Role},
        spec::{self, Machine},
    };
    use sim::scene::{Scene, id, name};

    use super::*;

    fn fleet() -> Fleet {
        let text = "clusters: {cache: {shards: 3, replicas: 2}}";
        spec::parse(text, "fleet.yaml", &Machine::default()).unwrap().fleet
    }

    #[test]
    fn the_best_replica_takes_over() {
        let mut scene = Scene::healthy(3, 2, 3);
        scene.up(7).offset = 1_000_001;
        assert_eq!(heir(&fleet(), &scene.observed, &name(1)).unwrap(), name(7));
        scene.up(7).role = Role::Replica { of: id(1), link: Link::Syncing };
        let error = heir(&fleet(), &scene.observed, &name(1)).unwrap_err();
        assert!(error.problems[0].message.contains("cache-7 is not in sync"), "{error:?}");
        let alone = Scene::healthy(3, 0, 3);
        let error = heir(&fleet(), &alone.observed, &name(1)).unwrap_err();
        assert!(error.problems[0].message.contains("no replica in sync"), "{error:?}");
    }

    #[test]
    fn wrong_names_are_met_kindly() {
        let scene = Scene::healthy(3, 1, 3);
        let hint = |result: Result<_, Failure>| {
            result.map(|_: NodeName| ()).unwrap_err().problems[0].hint.clone().unwrap()
        };
        assert_eq!(hint(primary(&scene.observed, "cache-9")), "did you mean \"cache-1\"?");
        assert_eq!(
            hint(primary(&scene.observed, "cache-4")),
            "its primary is cache-1: keyfleet handover cache-1"
        );
        assert_eq!(primaries_on(&scene.observed, "host-2").unwrap(), [name(2)]);
        let error = primaries_on(&scene.observed, "hots-2").unwrap_err();
        assert_eq!(error.problems[0].hint.as_deref(), Some("did you mean \"host-2\"?"));
    }
}
