//! `keyfleet down`: stop servers. Data stays, unless its deletion is asked for by name.

use std::{collections::BTreeMap, io::IsTerminal as _, sync::Arc};

use fleet::{
    model::{ClusterName, ProxyName},
    observed::{Observed, Process},
    step::{Action, Step, Wave},
};

use super::{
    context::{Context, choose},
    freeze, lease,
    progress::Progress,
    signals,
    text::plural,
    up,
};
use crate::{
    admin_client::Pool,
    errors::{Exit, Failure},
    execute,
    reconcile::{Reconciler, Turn},
    store::Store,
};

/// How often what is left over is stopped again before it is given up.
const ROUNDS_MAX: usize = 3;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these clusters
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// Stop what is frozen too
    #[arg(long)]
    force: bool,
    /// Delete the data too; asks for each cluster's name
    #[arg(long)]
    delete_data: bool,
    /// The name that would be asked for, for scripts
    #[arg(long, value_name = "CLUSTER", requires = "delete_data")]
    yes_delete: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let stop = signals::asked_to_stop()?;
    let session = context.open()?;
    let store = Arc::clone(&session.store);
    // A cluster that was taken out of the file can still be stopped.
    let mut known: Vec<ClusterName> = session.fleet.clusters.keys().cloned().collect();
    known.extend(store.nodes()?.into_iter().map(|node| node.cluster));
    known.sort_unstable();
    known.dedup();
    let chosen = choose(&args.clusters, known)?;
    if !args.force {
        freeze::refuse(context, &store, &chosen, Some("down --force"))?;
    }
    if args.delete_data {
        confirm(context, &chosen, &args.yes_delete, &store)?;
    }
    let guard = lease::guard_pid(&store)?;
    let lease = lease::take(&store, "down").await?;
    for name in &chosen {
        store.set_stopped(name, true)?;
    }
    let tools = execute::Context {
        fleet: Arc::clone(&session.fleet),
        store: Arc::clone(&store),
        // Nothing is started, so no engine is needed.
        engines: Arc::new(BTreeMap::new()),
        pool: Pool::new(),
    };
    let mut reconciler = Reconciler::new(tools);
    let progress = Progress::new(context.printer);
    let stopped = tokio::select! {
        stopped = stop_all(&mut reconciler, &chosen, &progress) => Some(stopped),
        () = stop => None,
    };
    let done = progress.finish() as u64;
    match stopped {
        Some(stopped) => stopped?,
        None => {
            return Err(Failure::user(format!("interrupted after {}", plural(done, "step")))
                .hint(format!("the rest still runs; go on with: {}", context.command("down"))));
        }
    }
    for name in &chosen {
        if args.delete_data {
            store.delete_cluster(name)?;
            context.printer.note(&format!("{name} is stopped, and its data deleted."));
        } else {
            let up = context.command(&format!("up {name}"));
            context.printer.note(&format!("{name} is stopped; its data is kept. Go on with: {up}"));
        }
    }
    drop(lease);
    let left = session.fleet.clusters.keys().any(|name| !store.is_stopped(name));
    if let Some(pid) = guard.filter(|_| !left) {
        // It sees by itself that nothing is left to guard.
        lease::wait_for_end(pid).await;
    }
    Ok(Exit::Done)
}

async fn stop_all(
    reconciler: &mut Reconciler,
    clusters: &[ClusterName],
    progress: &Progress,
) -> Result<(), Failure> {
    let mut failed = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let observed = reconciler.look().await?.observed;
        let wave = Wave { steps: stops(&observed, clusters), ..Wave::default() };
        if wave.steps.is_empty() {
            return Ok(());
        }
        progress.turn(&Turn { observed, wave: wave.clone() }, &failed);
        failed = reconciler.act(&wave, &progress.sink(), &|| false).await.failed;
    }
    let left = stops(&reconciler.look().await?.observed, clusters);
    if left.is_empty() { Ok(()) } else { Err(up::failures(&failed)) }
}

/// A step for every process that runs.
fn stops(observed: &Observed, clusters: &[ClusterName]) -> Vec<Step> {
    let runs = |process| matches!(process, Process::Running | Process::Suspended);
    let nodes = clusters.iter().flat_map(|cluster| observed.of(cluster));
    let serves = |proxy: &&ProxyName| {
        let view = &observed.proxies[*proxy];
        clusters.contains(&view.cluster) && runs(view.process)
    };
    let proxies = observed.proxies.keys().filter(serves).map(|proxy| Step {
        cluster: observed.proxies[proxy].cluster.clone(),
        action: Action::StopProxy { proxy: proxy.clone() },
        why: "asked for".to_owned(),
    });
    let nodes = nodes.filter(|(_, view)| runs(view.process)).map(|(name, _)| Step {
        cluster: name.cluster.clone(),
        action: Action::StopNode { node: name.clone() },
        why: "asked for".to_owned(),
    });
    proxies.chain(nodes).collect()
}

/// Has each cluster's name typed, unless it was given for scripts.
fn confirm(
    context: &Context,
    clusters: &[ClusterName],
    given: &[String],
    store: &Store,
) -> Result<(), Failure> {
    let nodes = store.nodes()?;
    for name in clusters {
        if given.iter().any(|given| given == name.as_str()) {
            continue;
        }
        let hint = format!("for scripts: --yes-delete {name}");
        if !std::io::stdin().is_terminal() {
            return Err(Failure::user(format!(
                "nobody is there to confirm that {name} is deleted"
            ))
            .hint(hint));
        }
        let count = nodes.iter().filter(|node| node.cluster == *name).count() as u64;
        let question = format!(
            "This deletes all data of {name} ({}) for good. Type its name to go on:",
            plural(count, "node")
        );
        if context.printer.ask(&question).as_deref() != Some(name.as_str()) {
            return Err(Failure::user(format!("{name} is left as it is")).hint(hint));
        }
    }
    Ok(())
}
