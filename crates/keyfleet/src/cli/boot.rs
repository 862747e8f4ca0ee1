//! Data into a cluster of the fleet that isn't there yet: a file for each of its primaries, which are made
//! with it and started, as `up` would; then what no file can carry, as into any running cluster.
//!
//! Killed at any time, the same command goes on: before all files are whole it begins anew, for nobody
//! has seen any of them.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Instant};

use fleet::{model::ClusterName, observed::Observed};
use protocol::{Info, NodeId, SlotSet};

use super::{
    context::Context,
    freeze,
    import::{Goal, Load, notes_beside, outcome},
    lease, signals, steps,
    text::plural,
    up::{self, bring_up},
};
use crate::{
    admin_client::{ClientError, Connection, DEADLINE},
    errors::{Exit, Failure, Problem},
    execute::{
        self, StepError,
        boot::{Cradle, forget_data, seats},
    },
    mover::{
        import::{
            Booted, ImportError, Watch,
            report::Troubles,
            source,
            split::{self, Content},
            state::{Loaded, Saved, StateFile},
        },
        load::Target,
    },
    observe::{Observer, disk},
    reconcile::Reconciler,
    session::Session,
    store::{self, Store},
};

/// A cluster that is to be made with data.
pub(super) struct NewCluster {
    name: ClusterName,
    state: StateFile,
    /// What the nodes hold that an interrupted run made, once their files were whole.
    loaded: Option<Vec<Loaded>>,
}

/// What is known of the inputs.
pub(super) struct Known {
    /// For each of them those that it is the source of; empty: all.
    pub slots: Vec<SlotSet>,
    /// About how many keys they have.
    pub keys: u64,
}

/// Refuses to make nodes of clusters whose data wasn't moved to all of theirs yet.
pub(super) fn refuse_interrupted(store: &Store, chosen: &[ClusterName]) -> Result<(), Failure> {
    let interrupted = chosen.iter().filter(|name| store.is_booting(name));
    let problems: Vec<Problem> = interrupted
        .map(|name| {
            let what = format!("a restore into {name} was interrupted while it made the nodes");
            Problem::new(what).hint(format!("run it again: it goes on; or {}", give_up(name)))
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::user_all(problems)) }
}

fn give_up(name: &ClusterName) -> String {
    format!("give it up: keyfleet down {name} --delete-data")
}

impl NewCluster {
    /// The cluster that is meant, where it is one of the fleet of which there is no node yet, or that such a
    /// run began to make. None where it goes the usual way.
    pub fn wanted(context: &Context, to: &str, load: &Load) -> Result<Option<Self>, Failure> {
        if to.contains(':') || load.how.dry_run {
            return Ok(None);
        }
        let session = Session::open(context.file(), context.file.is_some())?;
        let name = ClusterName::new(to);
        if !session.fleet.clusters.contains_key(&name) {
            return Ok(None);
        }
        let exists = session.store.nodes()?.iter().any(|node| node.cluster == name);
        let notes = notes_beside(&session.store);
        let Some(state) = load.state(to, Some(&notes))? else { return Ok(None) };
        let mut loaded = state.load().and_then(|saved| saved.booted);
        let stands =
            |loaded: &Loaded| disk(&session.store.node_dir(&loaded.node)).id == Some(loaded.id);
        if let Some(nodes) = &loaded
            && !session.store.is_booting(&name)
            && !nodes.iter().all(stands)
        {
            // They were removed since; what is there now is something else.
            state.forget();
            loaded = None;
        }
        if exists && loaded.is_none() {
            return Ok(None);
        }
        Ok(Some(Self { name, state, loaded }))
    }

    /// Makes it, with what is to be loaded, and shows what came of it.
    pub async fn load(
        self,
        context: &Context,
        mut load: Load,
        known: Known,
    ) -> Result<Exit, Failure> {
        let started = Instant::now();
        let Self { name, state, loaded } = self;
        let session = context.open()?;
        freeze::refuse(context, &session.store, std::slice::from_ref(&name), None)?;
        let tools = context.tools(&session).await?;
        let Some(cradle) = Cradle::open(&session.store, &name)? else {
            return Err(Failure::user(format!("another restore into {name} is at work"))
                .hint("wait for its end, or stop it"));
        };
        let making = Making { context, tools: &tools, name: &name, cradle: &cradle, state: &state };
        let loaded = match loaded {
            Some(loaded) => {
                context.printer.note("The nodes' files are whole; going on from there.");
                loaded
            }
            None => making.prepare(&load, known).await?,
        };
        let observed = making.start().await?;
        let troubles = missing(&tools, &observed, &loaded).await;
        let troubles = troubles.map_err(|error| Failure::of(&error))?;
        forget_data(&tools, &name).map_err(|error| Failure::of(&error))?;

        let rest = source::find(&rest(&state)?).map_err(|error| outcome::input(&error))?;
        let inputs = std::mem::replace(&mut load.inputs, rest);
        let boot_files = loaded.len() as u64;
        load.booted = Some(Booted { inputs, loaded });
        let output = load.how.output;
        let login = tools.login(&name).map_err(|error| Failure::of(&error))?;
        let seeds = observed.of(&name).filter(|(_, view)| view.up().is_some());
        let seeds = seeds.map(|(_, view)| SocketAddr::new(view.address, view.ports.tcp)).collect();
        let goal = Goal {
            to: name.to_string(),
            target: Target::Cluster(seeds),
            login: Some(login),
            notes: None,
        };
        let (mut report, _) = load.load(context, goal, Some(state)).await?;
        report.boot_files = boot_files;
        report.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.read.troubles.join(troubles);
        outcome::show(context.printer, output, &report)
    }
}

/// A new cluster on its way.
struct Making<'a> {
    context: &'a Context,
    tools: &'a execute::Context,
    name: &'a ClusterName,
    cradle: &'a Cradle,
    state: &'a StateFile,
}

impl Making<'_> {
    /// Makes the nodes' directories with all their files; what those hold.
    async fn prepare(&self, load: &Load, known: Known) -> Result<Vec<Loaded>, Failure> {
        let stop = signals::asked_to_stop()?;
        let prepared = tokio::select! {
            prepared = self.write(load, known) => prepared,
            () = stop => Err(Failure::user("stopped before the end")
                .hint("run the same command again: it begins anew")),
        };
        if prepared.is_err() {
            // The disk has its room back.
            self.state.forget();
            let _ = self.cradle.discard();
        }
        prepared
    }

    async fn write(&self, load: &Load, known: Known) -> Result<Vec<Loaded>, Failure> {
        let Self { context, tools, name, cradle, state } = self;
        let mut observer = Observer::new(Arc::clone(&tools.store), tools.pool.clone());
        let observed = observer.observe(&tools.fleet).await?;
        let seats = seats(&tools.fleet, &observed, name).map_err(|blocked| {
            context.printer.urgent(&steps::blocked(&blocked, context.printer.error_style));
            Failure::user(format!("{name} can't be made"))
                .hint(format!("see the whole path: {}", context.command("plan")))
        })?;
        let made = cradle.make(tools, &seats).map_err(|error| unmade(&error))?;
        let (ids, data): (Vec<NodeId>, Vec<PathBuf>) = made.into_iter().unzip();
        state.forget();
        store::make_directory(&state.rest())?;
        let owned = seats.iter().map(|seat| seat.slots.clone());
        let engine = tools.engine(name).map_err(|error| unmade(&error))?.engine;
        let total: u64 = load.inputs.iter().map(|input| input.bytes).sum();
        let job = split::Job {
            inputs: load.inputs.clone(),
            slots: known.slots,
            keys: known.keys,
            filter: load.filter.clone(),
            engine,
            shards: data.iter().cloned().zip(owned).collect(),
            rest: state.rest(),
        };
        let watch = Arc::new(Watch::default());
        let watched = Arc::clone(&watch);
        let splitting = tokio::task::spawn_blocking(move || split::split(&job, &watched));
        let mut progress = outcome::Progress::new(context.printer, total);
        let drawing = async {
            let mut ticks = tokio::time::interval(outcome::REDRAW);
            loop {
                ticks.tick().await;
                progress.draw(&watch);
            }
        };
        let split = tokio::select! {
            ended = splitting => ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
            never = drawing => never,
        };
        progress.clear();
        let split = split.map_err(|error| match error {
            ImportError::Source(error) => outcome::unreadable(&error),
            error => outcome::failure(&error, false),
        })?;
        let loaded = seats.iter().zip(ids).zip(&split.shards).map(|((seat, id), content)| {
            let Content { keys, expiring } = *content;
            Loaded { node: seat.node.clone(), id, keys, expiring }
        });
        let loaded: Vec<Loaded> = loaded.collect();
        let (tally, booted) = (split.tally, Some(loaded.clone()));
        for path in &split.rest {
            store::sync_parent(path)?;
        }
        state
            .save(&Saved { tally, booted, ..Saved::default() })
            .map_err(|error| outcome::failure(&error.into(), false))?;
        cradle.set_ready(&data)?;
        Ok(loaded)
    }

    /// Moves the nodes to their places and brings the cluster up; what is seen then.
    async fn start(&self) -> Result<Observed, Failure> {
        let Self { context, name, cradle, state, .. } = self;
        let stop = signals::asked_to_stop()?;
        let store = &self.tools.store;
        let lease = lease::take(store, "restore").await?;
        if cradle.is_ready() {
            // Guard makes no nodes of it while some are here and some there.
            store.set_stopped(name, true)?;
            if let Err(error) = cradle.hand_over() {
                if matches!(error, StepError::Stale(_)) {
                    // Nothing was moved, and there is another cluster now.
                    state.forget();
                    let _ = cradle.discard();
                }
                return Err(unmade(&error).hint("run the same command again"));
            }
        } else {
            cradle.discard()?;
        }
        store.set_stopped(name, false)?;
        let session = Session::open(context.file(), context.file.is_some())?;
        store.set_applied(&session.text)?;
        let mut reconciler = Reconciler::new(context.tools(&session).await?);
        reconciler.only = Some([(*name).clone()].into());
        match bring_up(context, &mut reconciler, stop).await {
            Ok(up::Ended::Up(brought)) => Ok(brought.turn.observed),
            Ok(up::Ended::Stopped { steps }) => {
                lease.until_exit();
                Err(Failure::user(format!("stopped after {}", plural(steps, "step")))
                    .hint("servers keep running; run the same command again: it goes on"))
            }
            Err(mut failure) => {
                let hint = format!("run the same command again: it goes on; or {}", give_up(name));
                let left = Problem::new(format!("{name} doesn't hold everything yet")).hint(hint);
                failure.problems.push(left);
                Err(failure)
            }
        }
    }
}

fn unmade(error: &StepError) -> Failure {
    match error {
        StepError::Store(_) | StepError::Stale(_) => Failure::user(error.to_string()),
        _ => Failure::of(error),
    }
}

/// The files of what no boot file carries.
fn rest(state: &StateFile) -> Result<Vec<PathBuf>, Failure> {
    let directory = state.rest();
    let mut names = store::list(&directory)?;
    names.sort_unstable();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

/// Names the nodes that hold fewer keys than the files that they started from. Those that end may have
/// ended.
async fn missing(
    tools: &execute::Context,
    observed: &Observed,
    loaded: &[Loaded],
) -> Result<Troubles, ClientError> {
    let mut troubles = Troubles::default();
    for Loaded { node, keys, expiring, .. } in loaded {
        let view = observed.nodes.get(node);
        let address = view.map(|view| SocketAddr::new(view.address, view.ports.tcp));
        let (Some(address), Ok(login)) = (address, tools.login(&node.cluster)) else { continue };
        let mut link = Connection::open(address, Some(&login), DEADLINE).await?;
        let reply = link.call(["INFO", "keyspace"]).await?;
        let held = Info::parse(reply.as_str().unwrap_or_default()).keyspace();
        let (held, expected) = (held.keys - held.expires, keys - expiring);
        if held < expected {
            let fewer = plural(expected - held, "key");
            troubles.add(b"", format!("{node} holds {fewer} fewer than the file it started from"));
        }
    }
    Ok(troubles)
}
