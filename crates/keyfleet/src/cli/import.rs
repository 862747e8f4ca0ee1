//! `keyfleet import`: RDB and append-only files into a running cluster or server.

pub(super) mod arguments;
pub(super) mod outcome;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use fleet::model::ClusterName;
use protocol::{Info, SlotSet, Value};

pub use self::arguments::Args;
use self::arguments::Loading;
use super::{
    connect,
    context::{Context, unknown},
    signals,
};
use crate::{
    admin_client::{Connection, DEADLINE, Login, Pool},
    backup::{
        reader::Stored,
        storage::{self, Object, Storage},
    },
    errors::{Exit, Failure},
    mover::{
        import::{
            self, Booted, Existing, ImportError, Job, Watch,
            filter::Filter,
            report::Report,
            source::{self, Input, Position, SourceError},
            state::{Saved, StateFile},
        },
        load,
    },
    observe::Observer,
    secrets::OWN_USER,
    store::Store,
};

/// Between two notes on disk of how far it is.
const SAVE: Duration = Duration::from_millis(500);

/// Where to, and how to get in.
pub(super) struct Goal {
    /// As the user said it.
    pub to: String,
    pub target: load::Target,
    pub login: Option<Login>,
    /// Where it is noted how far an import into it got.
    pub notes: Option<PathBuf>,
}

/// What is to be loaded, and how.
pub(super) struct Load {
    pub inputs: Vec<Input>,
    pub filter: Filter,
    pub existing: Existing,
    /// Commands follow: for each of the inputs the slots whose keys are wanted.
    pub followed: Option<Vec<SlotSet>>,
    /// The inputs are what is left where servers loaded the rest at their start.
    pub booted: Option<Booted>,
    pub how: Loading,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let inputs = inputs(&args.files).await?;
    if args.how.verify && inputs.iter().any(Input::is_once) {
        let error = Failure::user("--verify reads a second time, and stdin can't be read again");
        return Err(error.hint("load it from a file"));
    }
    let goal = goal(context, &args.to).await?;
    let (filter, existing) = (args.filter(), args.existing());
    let load = Load { inputs, filter, existing, followed: None, booted: None, how: args.how };
    let state = load.state(&goal.to, goal.notes.as_deref())?;
    load.run(context, goal, state).await
}

/// Files, and objects in buckets, by name.
pub(super) async fn inputs(names: &[PathBuf]) -> Result<Vec<Input>, Failure> {
    let mut inputs = Vec::new();
    for name in names {
        if let Some(url) = name.to_str().filter(|name| storage::is_url(name)) {
            inputs.extend(objects(url).await?);
        } else {
            let found = source::find(std::slice::from_ref(name));
            inputs.extend(found.map_err(|error| outcome::input(&error))?);
        }
    }
    Ok(inputs)
}

/// The object of this name, or the RDB and append-only files below it.
async fn objects(url: &str) -> Result<Vec<Input>, Failure> {
    let storage = Storage::open(url).map_err(|error| outcome::storage(&error))?;
    let wanted = |name: &str| [".rdb", ".aof"].iter().any(|end| name.ends_with(end));
    let mut found = Vec::new();
    if !wanted(url) {
        found = storage.objects("").await.map_err(|error| outcome::storage(&error))?;
        found.retain(|object| wanted(&object.name));
    }
    if found.is_empty() {
        found.extend(storage.find("").await.map_err(|error| outcome::storage(&error))?);
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    if found.is_empty() {
        return Err(outcome::input(&SourceError::Nothing { path: url.into() }));
    }
    let inputs = found.into_iter().map(|Object { name, bytes, changed_ms }| {
        let identity = format!("{bytes} {changed_ms} {}", storage.shown(&name));
        Input::stored(Stored { storage: storage.clone(), name, bytes, sha256: None }, identity)
    });
    Ok(inputs.collect())
}

impl Load {
    /// Where it is noted how far it got, of which nothing is left where it shall begin again; None where it
    /// can't go on later.
    ///
    /// `to` and `notes`: the goal's, which may not be there yet.
    pub fn state(&self, to: &str, notes: Option<&Path>) -> Result<Option<StateFile>, Failure> {
        let once = self.inputs.iter().any(Input::is_once);
        let Some(directory) = notes.filter(|_| !self.how.dry_run && !once) else {
            return Ok(None);
        };
        let files: Vec<&str> = self.inputs.iter().map(|input| input.identity.as_str()).collect();
        // What makes it another one: which keys go where, and over what.
        let job = format!("{files:?} {to} {:?} {:?}", self.filter, self.existing);
        let job = self.followed.as_ref().map_or(job.clone(), |slots| format!("{job} {slots:?}"));
        let state = StateFile::open(directory, &job)
            .map_err(|error| outcome::failure(&error.into(), false))?;
        if self.how.restart {
            state.forget();
        }
        Ok(Some(state))
    }

    /// Does it, from where the state says, and shows what came of it.
    pub async fn run(
        self,
        context: &Context,
        goal: Goal,
        state: Option<StateFile>,
    ) -> Result<Exit, Failure> {
        let output = self.how.output;
        let (report, _) = self.load(context, goal, state).await?;
        outcome::show(context.printer, output, &report)
    }

    /// Does it, from where the state says.
    pub async fn load(
        self,
        context: &Context,
        goal: Goal,
        state: Option<StateFile>,
    ) -> Result<(Report, Option<StateFile>), Failure> {
        let stop = signals::asked_to_stop()?;
        let from = state.as_ref().and_then(StateFile::load);
        let total: u64 = self.inputs.iter().map(|input| input.bytes).sum();
        let begins = from.as_ref().is_some_and(|from| from.position == Position::default());
        if let Some(from) = from.as_ref().filter(|_| self.booted.is_none() || !begins) {
            let share = from.position.total * 100 / total.max(1);
            context.printer.note(&format!("Going on at {share} %, where it stopped."));
        } else if let Some(state) = state.as_ref().filter(|_| from.is_none()) {
            // What is in the target from now on is its own, however soon it is stopped.
            let saved = state.save(&Saved::default());
            saved.map_err(|error| outcome::failure(&error.into(), false))?;
        }
        let resumable = state.is_some();
        let job = Arc::new(Job {
            inputs: self.inputs,
            target: goal.target,
            login: goal.login,
            filter: self.filter,
            existing: self.existing,
            p99_max: self.how.max_p99,
            patience: self.how.patience,
            dry_run: self.how.dry_run,
            verify: self.how.verify,
            followed: self.followed,
            booted: self.booted,
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
        // Nobody else has it: the worker has ended.
        Ok((report, Arc::into_inner(job).and_then(|job| job.state)))
    }
}

/// What `--to` means: an address, or a cluster of the fleet.
pub(super) async fn goal(context: &Context, to: &str) -> Result<Goal, Failure> {
    if to.contains(':') {
        let seed = connect::resolve(to).await?;
        let login = connect::login();
        let target = if is_cluster(seed, login.as_ref()).await? {
            load::Target::Cluster(vec![seed])
        } else {
            load::Target::Server(seed)
        };
        return Ok(Goal { to: to.to_owned(), target, login, notes: notes() });
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
    let notes = Some(notes_beside(&session.store));
    Ok(Goal { to: to.to_owned(), target: load::Target::Cluster(seeds), login, notes })
}

/// Where the imports into a fleet's clusters note how far they are.
pub(super) fn notes_beside(store: &Store) -> PathBuf {
    store.root().join("imports")
}

/// The user's directory for what programs remember.
fn notes() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(base.join("keyfleet/imports"))
}

pub(super) async fn is_cluster(
    address: SocketAddr,
    login: Option<&Login>,
) -> Result<bool, Failure> {
    let asked = async {
        let mut link = Connection::open(address, login, DEADLINE).await?;
        link.call(["INFO"]).await
    };
    let answer = asked.await.map_err(|error| outcome::failure(&error.into(), false))?;
    let info = Info::parse(answer.as_str().unwrap_or_default());
    debug_assert!(!matches!(answer, Value::Error(_)));
    Ok(info.get("cluster_enabled") == Some("1"))
}
