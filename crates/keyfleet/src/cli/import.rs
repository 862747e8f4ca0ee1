//! `keyfleet import`: RDB and append-only files into a running cluster or server.

mod arguments;
pub(super) mod outcome;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet::model::ClusterName;
use protocol::{Info, Value};

pub use self::arguments::Args;
use super::{
    connect,
    context::{Context, unknown},
    signals,
};
use crate::{
    admin_client::{Connection, DEADLINE, Login, Pool},
    errors::{Exit, Failure},
    mover::{
        import::{self, ImportError, Job, Watch, source, state::StateFile},
        load,
    },
    observe::Observer,
    secrets::OWN_USER,
};

/// Between two notes on disk of how far it is.
const SAVE: Duration = Duration::from_millis(500);

/// Where to, and how to get in.
struct Goal {
    target: load::Target,
    login: Option<Login>,
    /// Where it is noted how far an import into it got.
    notes: Option<PathBuf>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let stop = signals::asked_to_stop()?;
    let inputs = source::find(&args.files).map_err(|error| outcome::input(&error))?;
    let stdin = inputs.iter().any(|input| input.path.is_none());
    if stdin && args.verify {
        let error = Failure::user("--verify reads a second time, and stdin can't be read again");
        return Err(error.hint("load it from a file"));
    }
    let Goal { target, login, notes } = target(context, &args.to).await?;
    let state = match notes.filter(|_| !args.dry_run && !stdin) {
        Some(directory) => {
            let files: Vec<&str> = inputs.iter().map(|input| input.identity.as_str()).collect();
            let job = format!("{files:?} {} {}", args.to, args.identity());
            Some(
                StateFile::open(&directory, &job)
                    .map_err(|e| outcome::failure(&e.into(), false))?,
            )
        }
        None => None,
    };
    if let Some(state) = state.as_ref().filter(|_| args.restart) {
        state.forget();
    }
    let from = state.as_ref().and_then(StateFile::load);
    let total: u64 = inputs.iter().map(|input| input.bytes).sum();
    if let Some(from) = &from {
        let share = from.position.total * 100 / total.max(1);
        context.printer.note(&format!("Going on at {share} %, where it stopped."));
    }
    let resumable = state.is_some();
    let job = Arc::new(Job {
        inputs,
        target,
        login,
        filter: args.filter(),
        existing: args.existing(),
        p99_max: args.max_p99.map(Duration::from_millis),
        patience: Duration::from_millis(args.patience),
        dry_run: args.dry_run,
        verify: args.verify,
        state,
    });
    let watch = Arc::new(Watch::default());
    let worker = {
        let (job, watch) = (Arc::clone(&job), Arc::clone(&watch));
        tokio::task::spawn_blocking(move || import::run(&job, from, &watch))
    };
    let mut progress = outcome::Progress::new(context.printer, total);
    let saving = async {
        let mut ticks = tokio::time::interval(outcome::REDRAW);
        let mut saved = Instant::now();
        loop {
            ticks.tick().await;
            progress.draw(&watch);
            if saved.elapsed() >= SAVE {
                saved = Instant::now();
                if let Err(error) = watch.save(&job) {
                    return ImportError::State(error);
                }
            }
        }
    };
    let result = tokio::select! {
        ended = worker => ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
        error = saving => Err(error),
        () = stop => {
            progress.clear();
            let _ = watch.save(&job);
            let failure = Failure::user("stopped before the end");
            return Err(if resumable {
                failure.hint("go on where it stopped: run the same command again")
            } else {
                failure.hint("run the same command again: what is there already stays right with --replace")
            });
        }
    };
    progress.clear();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let _ = watch.save(&job);
            return Err(outcome::failure(&error, resumable));
        }
    };
    outcome::show(context.printer, args.output, &report)
}

/// What `--to` means: an address, or a cluster of the fleet.
async fn target(context: &Context, to: &str) -> Result<Goal, Failure> {
    if to.contains(':') {
        let seed = connect::resolve(to).await?;
        let login = connect::login();
        let target = if is_cluster(seed, login.as_ref()).await? {
            load::Target::Cluster(vec![seed])
        } else {
            load::Target::Server(seed)
        };
        return Ok(Goal { target, login, notes: notes() });
    }
    let session = context.open()?;
    let name = ClusterName::new(to);
    if !session.fleet.clusters.contains_key(&name) {
        let known = session.fleet.clusters.keys().map(ClusterName::as_str);
        return Err(Failure::user_all(vec![unknown("cluster", to, known)]));
    }
    let mut observer = Observer::new(Arc::clone(&session.store), Pool::new());
    let observed = observer.observe(&session.fleet).await?;
    let up =
        observed.nodes.iter().filter(|(node, view)| node.cluster == name && view.up().is_some());
    let seeds: Vec<SocketAddr> =
        up.map(|(_, view)| SocketAddr::new(view.address, view.ports.tcp)).collect();
    if seeds.is_empty() {
        return Err(Failure::user(format!("no node of {name} answers"))
            .hint(format!("start it: {}", context.command("up"))));
    }
    let login = Some(Login::own(session.store.secret(&name, OWN_USER)?));
    let notes = Some(session.store.root().join("imports"));
    Ok(Goal { target: load::Target::Cluster(seeds), login, notes })
}

/// The user's directory for what programs remember.
fn notes() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(base.join("keyfleet/imports"))
}

async fn is_cluster(address: SocketAddr, login: Option<&Login>) -> Result<bool, Failure> {
    let asked = async {
        let mut link = Connection::open(address, login, DEADLINE).await?;
        link.call(["INFO"]).await
    };
    let answer = asked.await.map_err(|error| outcome::failure(&error.into(), false))?;
    let info = Info::parse(answer.as_str().unwrap_or_default());
    debug_assert!(!matches!(answer, Value::Error(_)));
    Ok(info.get("cluster_enabled") == Some("1"))
}
