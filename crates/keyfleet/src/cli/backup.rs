//! `keyfleet backup`, `keyfleet backups`: backups taken, listed and read back.

mod follow;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use fleet::model::ClusterName;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    connect,
    context::{Context, unknown},
    import::{arguments::duration, is_cluster, outcome},
    printer::Output,
    signals,
    text::{bar, count, pad, pad_left, plural, size, span},
};
use crate::{
    backup::{
        manifest::{Manifest, shown},
        point::{self, PointError},
        retention::Retention,
        schedule,
        shelf::{self, ShelfError},
        storage::Storage,
        take::{self, BackupError, Job, LookError, Origin, ShardError, Watch},
        verify::{self, VerifyError},
    },
    errors::{Exit, Failure},
    mover::replay,
    observe::{ForeignError, now_ms},
};

const BAR_WIDTH: usize = 24;

/// Between two lines where nothing can be drawn.
const LINE: Duration = Duration::from_secs(10);

const PLACES: &str = "\
Places: a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX. Keys are taken from
the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_…;
AZURE_…) or from the instance.";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = PLACES)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    take: Take,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read a backup back whole, and compare it with what it should be
    Verify(Verify),
}

#[derive(Debug, clap::Args)]
struct Take {
    /// The fleet's cluster; with --connect: the name to keep it under
    #[arg(value_name = "CLUSTER", required_unless_present = "connect")]
    cluster: Option<String>,
    /// Where to [default: as the spec says]
    #[arg(long, value_name = "PLACE")]
    to: Option<String>,
    /// A cluster or server that keyfleet did not make: any node's address
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// How many shards are read at a time
    #[arg(long, value_name = "N", default_value_t = take::PARALLEL)]
    parallel: usize,
    /// How long to wait for a cluster whose slots or primaries are on the move
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    patience: Duration,
    /// Afterwards delete backups of the cluster but the newest so many
    #[arg(long, value_name = "N")]
    keep: Option<u32>,
    /// Afterwards delete backups of the cluster that are older; with --keep: what neither keeps
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Go on after the backup: keep every command, so that `keyfleet restore --at TIME` can go back to
    /// any second. Until it is stopped; started again, it goes on
    #[arg(long)]
    follow: bool,
    /// With --follow: how often commands are written to the place; what a crash may lose
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, requires = "follow")]
    segment: Duration,
    /// With --follow: how often another backup is taken, from which fewer commands follow
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration, requires = "follow")]
    every: Duration,
    /// How to print what was backed up
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Verify {
    /// The backup's name; `latest` is the last one
    #[arg(value_name = "ID|latest")]
    id: String,
    #[command(flatten)]
    shelf: Shelf,
    /// How to print what was read
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// Where backups are looked for.
#[derive(Debug, clap::Args)]
pub struct Shelf {
    /// Where the backups are [default: where the spec says]
    #[arg(long, value_name = "PLACE")]
    pub from: Option<String>,
    /// The cluster that they are of, where the place holds several clusters' backups
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = PLACES)]
pub struct ListArgs {
    /// Only this cluster's
    #[arg(value_name = "CLUSTER")]
    cluster: Option<String>,
    /// Where the backups are [default: where the spec says]
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
    /// How to print them
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.command {
        Some(Command::Verify(args)) => verify(context, args).await,
        None => take(context, args.take).await,
    }
}

/// What `keyfleet backup` says in the end.
#[derive(Serialize)]
struct Taken {
    #[serde(flatten)]
    manifest: Manifest,
    /// The names of the backups that had their time.
    deleted: Vec<String>,
}

async fn take(context: &Context, args: Take) -> Result<Exit, Failure> {
    let stop = stopper()?;
    let mut job = job(context, &args).await?;
    if args.follow {
        return follow::run(context, &args, job, stop).await;
    }
    let taken = taken(context, &args, &mut job, stop).await?;
    show(context, args.output, &taken)?;
    Ok(Exit::Done)
}

/// Turns true when somebody wants this process to end.
fn stopper() -> Result<watch::Receiver<bool>, Failure> {
    let asked = signals::asked_to_stop()?;
    let (stopper, stop) = watch::channel(false);
    tokio::spawn(async move {
        asked.await;
        let _ = stopper.send(true);
        std::future::pending::<()>().await;
    });
    Ok(stop)
}

/// Takes a backup, and deletes those that have had their time.
async fn taken(
    context: &Context,
    args: &Take,
    job: &mut Job,
    stop: watch::Receiver<bool>,
) -> Result<Taken, Failure> {
    let watch = Watch::default();
    let (storage, cluster) = (job.storage.clone(), job.cluster.clone());
    let mut live = context.printer.live();
    let drawing = async {
        let started = Instant::now();
        let mut said = Instant::now();
        let mut ticks = tokio::time::interval(outcome::REDRAW);
        loop {
            ticks.tick().await;
            let line = line(&watch, started);
            if live.enabled() {
                live.draw(&[], &[line]);
            } else if said.elapsed() >= LINE {
                said = Instant::now();
                context.printer.note(&line);
            }
        }
    };
    let result = tokio::select! {
        result = take::take(job, &watch, stop) => result,
        never = drawing => never,
    };
    live.clear();
    let manifest = result.map_err(|error| failure(&error))?;
    let retention = Retention { keep: args.keep, keep_days: args.keep_days };
    let deleted = shelf::expire(&storage, &cluster, retention, now_ms()).await;
    let deleted = deleted.map_err(|error| unfound(&error))?;
    Ok(Taken { manifest, deleted })
}

fn show(context: &Context, output: Output, taken: &Taken) -> Result<(), Failure> {
    let Taken { manifest, deleted } = taken;
    match output {
        Output::Json => context.printer.json(taken)?,
        Output::Text => {
            let mut text = format!(
                "{}: {} of {} in {}, {}\n",
                manifest.id,
                plural(manifest.keys(), "key"),
                manifest.cluster,
                plural(manifest.shards.len() as u64, "file"),
                size(manifest.bytes())
            );
            if !deleted.is_empty() {
                text += &format!("had their time and were deleted: {}\n", deleted.join(", "));
            }
            context.printer.data(&text)?;
        }
    }
    Ok(())
}

fn line(watch: &Watch, started: Instant) -> String {
    let bytes = watch.bytes.load(Ordering::Relaxed);
    let (done, all) = watch.shards();
    let seconds = started.elapsed().as_secs_f64().max(0.001);
    let line = format!(
        "{done} of {} done  {} keys, {}, {}/s",
        plural(all as u64, "shard"),
        count(watch.keys.load(Ordering::Relaxed)),
        size(bytes),
        size((bytes as f64 / seconds) as u64)
    );
    match watch.waiting_for() {
        Some(why) => format!("{line}  waiting: {why}"),
        None => line,
    }
}

async fn job(context: &Context, args: &Take) -> Result<Job, Failure> {
    let (parallel, patience) = (args.parallel, args.patience);
    let open = |place: &str| Storage::open(place).map_err(|error| outcome::storage(&error));
    if let Some(address) = &args.connect {
        let cluster = args.cluster.clone().unwrap_or_else(|| address.replace(':', "-"));
        if cluster.starts_with('.') || !cluster.chars().all(is_plain) {
            return Err(Failure::user(format!("no name for backups: {cluster:?}"))
                .hint("letters, digits, - _ and . only: keyfleet backup NAME --connect …"));
        }
        let to = args.to.as_deref().ok_or_else(|| {
            Failure::user("where to?").hint("a directory or a bucket: --to PLACE")
        })?;
        let storage = open(to)?;
        let seed = connect::resolve(address).await?;
        let login = connect::login();
        let origin = if is_cluster(seed, login.as_ref()).await? {
            Origin::Cluster { seeds: vec![seed] }
        } else {
            Origin::Server { address: seed }
        };
        return Ok(Job { origin, login, storage, cluster, spec: None, parallel, patience });
    }
    let name = args.cluster.clone().unwrap_or_default();
    let session = context.open()?;
    let Some(cluster) = session.fleet.clusters.get(&ClusterName::new(&name)) else {
        let known = session.fleet.clusters.keys().map(ClusterName::as_str);
        return Err(Failure::user_all(vec![unknown("cluster", &name, known)]));
    };
    let to = match (&args.to, &cluster.backup) {
        (Some(to), _) => to.clone(),
        (None, Some(policy)) => schedule::place(&session.store, policy),
        (None, None) => {
            return Err(Failure::user(format!("{name} has no place for backups"))
                .hint("name one: --to PLACE; or in the spec: backup: {to: PLACE}"));
        }
    };
    let job = Job::of_fleet(&session, &cluster.name, open(&to)?)?;
    Ok(Job { parallel, patience, ..job })
}

fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.')
}

async fn verify(context: &Context, args: Verify) -> Result<Exit, Failure> {
    let (storage, manifest) = find(context, &args.shelf, &args.id).await?;
    let read = AtomicU64::new(0);
    let mut live = context.printer.live();
    let drawing = async {
        let mut ticks = tokio::time::interval(outcome::REDRAW);
        loop {
            ticks.tick().await;
            let (read, total) = (read.load(Ordering::Relaxed), manifest.bytes());
            live.draw(&[], &[format!("{} reading, {}", bar(read, total, BAR_WIDTH), size(read))]);
        }
    };
    let result = tokio::select! {
        result = verify::verify(&storage, &manifest, &read) => result,
        never = drawing => never,
    };
    live.clear();
    result.map_err(|error| damaged(&error))?;
    let after = verify_after(&storage, &manifest).await?;
    match args.output {
        Output::Json => context.printer.json(&manifest)?,
        Output::Text => {
            let mut types: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for (name, count) in manifest.shards.iter().flat_map(|shard| &shard.tally.types) {
                let sum = types.entry(name).or_default();
                *sum = (sum.0 + count.keys, sum.1 + count.bytes);
            }
            let mut text = String::new();
            for (name, (keys, bytes)) in types {
                let (keys, bytes) = (pad_left(&count(keys), 15), pad_left(&size(bytes), 12));
                text += &format!("{}{keys}{bytes}\n", pad(name, 8));
            }
            let keys = plural(manifest.keys(), "key");
            text += &format!("{} of {} is whole: {keys}\n", manifest.id, manifest.cluster);
            if let Some((commands, until_ms)) = after {
                let (commands, until) = (plural(commands, "command"), shown(until_ms));
                text += &format!("and so are the {commands} after it, until {until}\n");
            }
            context.printer.data(&text)?;
        }
    }
    Ok(Exit::Done)
}

/// Reads the commands that were kept after a backup: how many, and up to when.
async fn verify_after(
    storage: &Storage,
    manifest: &Manifest,
) -> Result<Option<(u64, u64)>, Failure> {
    let ranges = point::ranges(storage, &manifest.cluster).await;
    let ranges = ranges.map_err(|error| unfound(&error))?;
    let Some(until_ms) = ranges.iter().filter_map(|range| range.until(manifest)).max() else {
        return Ok(None);
    };
    let fault = |error: PointError| no_way(&error, storage.place());
    let id = Some(manifest.id.as_str());
    let point = point::find(storage, &manifest.cluster, id, until_ms).await.map_err(fault)?;
    let mut commands = 0;
    for shard in &point.shards {
        let scan = replay::scan(storage, &point, shard).await.map_err(fault)?;
        commands += scan.commands;
    }
    Ok(Some((commands, until_ms)))
}

/// The backup that is meant.
pub async fn find(
    context: &Context,
    shelf: &Shelf,
    id: &str,
) -> Result<(Storage, Manifest), Failure> {
    let storage = from(context, shelf.from.as_deref())?;
    let manifest = shelf::find(&storage, shelf.cluster.as_deref(), id).await;
    manifest.map(|manifest| (storage, manifest)).map_err(|error| unfound(&error))
}

/// The place that is named, or the only one in the spec.
pub fn from(context: &Context, named: Option<&str>) -> Result<Storage, Failure> {
    let place = if let Some(place) = named {
        place.to_owned()
    } else {
        let session = context.open()?;
        let policies =
            session.fleet.clusters.values().filter_map(|cluster| cluster.backup.as_ref());
        let mut places: BTreeSet<String> =
            policies.map(|policy| schedule::place(&session.store, policy)).collect();
        match (places.pop_first(), places.is_empty()) {
            (Some(place), true) => place,
            (Some(_), false) => {
                return Err(Failure::user("the spec names several places for backups")
                    .hint("name the one that is meant: --from PLACE"));
            }
            (None, _) => {
                return Err(Failure::user("where are the backups?")
                    .hint("name the place: --from PLACE; or in the spec: backup: {to: PLACE}"));
            }
        }
    };
    Storage::open(&place).map_err(|error| outcome::storage(&error))
}

/// A backup in a list.
#[derive(Serialize)]
struct Listed {
    id: String,
    cluster: String,
    started_ms: u64,
    finished_ms: u64,
    shards: usize,
    keys: u64,
    bytes: u64,
    /// Up to when every second after it can be gone back to, where commands were kept.
    until_ms: Option<u64>,
}

pub async fn list(context: &Context, args: ListArgs) -> Result<Exit, Failure> {
    let storage = from(context, args.from.as_deref())?;
    let clusters = match args.cluster {
        Some(cluster) => vec![cluster],
        None => shelf::clusters(&storage).await.map_err(|error| outcome::storage(&error))?,
    };
    let mut found = Vec::new();
    for cluster in clusters {
        let ranges = point::ranges(&storage, &cluster).await.map_err(|error| unfound(&error))?;
        let all = shelf::all(&storage, &cluster).await;
        for each in all.map_err(|error| outcome::storage(&error))? {
            match each {
                Ok(manifest) => found.push(Listed {
                    until_ms: ranges.iter().filter_map(|range| range.until(&manifest)).max(),
                    keys: manifest.keys(),
                    bytes: manifest.bytes(),
                    shards: manifest.shards.len(),
                    id: manifest.id,
                    cluster: manifest.cluster,
                    started_ms: manifest.started_ms,
                    finished_ms: manifest.finished_ms,
                }),
                Err(error) => context.printer.urgent(&format!("warning: {error}")),
            }
        }
    }
    match args.output {
        Output::Json => context.printer.json(&found)?,
        Output::Text => {
            let now_ms = now_ms();
            let widest = found.iter().map(|each| each.cluster.len()).max().unwrap_or(0);
            let lines = found.iter().map(|each| {
                let until = each.until_ms.map_or(String::new(), |until_ms| {
                    format!(", and every second until {}", shown(until_ms))
                });
                format!(
                    "{}  {}  {} keys {}  took {}, {} ago{until}\n",
                    each.id,
                    pad(&each.cluster, widest),
                    pad_left(&count(each.keys), 13),
                    pad_left(&size(each.bytes), 10),
                    span(each.finished_ms.saturating_sub(each.started_ms)),
                    span(now_ms.saturating_sub(each.started_ms))
                )
            });
            context.printer.data(&lines.collect::<String>())?;
            if found.is_empty() {
                context.printer.note(&format!("no backups in {}", storage.place()));
            }
        }
    }
    Ok(Exit::Done)
}

pub fn unfound(error: &ShelfError) -> Failure {
    match error {
        ShelfError::Storage(error) => outcome::storage(error),
        ShelfError::Damaged { source, .. } => {
            Failure::user(error.to_string()).because(source).hint("take another backup")
        }
        ShelfError::Changed { .. } => Failure::user(error.to_string()).hint("take another backup"),
        ShelfError::Newer { .. } => Failure::user(error.to_string()).hint("use a newer keyfleet"),
        ShelfError::Missing { place, .. } => Failure::user(error.to_string())
            .hint(format!("see what is there: keyfleet backups --from {place}")),
        ShelfError::Several { .. } => {
            Failure::user(error.to_string()).hint("name the one that is meant: --cluster NAME")
        }
    }
}

/// Why there is no backup.
fn failure(error: &BackupError) -> Failure {
    const AGAIN: &str = "run the same command again";
    let mut failure = Failure::of(error);
    match error {
        BackupError::Shelf(error) => unfound(error),
        BackupError::Stopped => Failure::user(error.to_string()).hint(AGAIN),
        BackupError::Unrest { source, .. } => {
            failure.exit = Exit::User;
            failure.hint(match &**source {
                LookError::Foreign(ForeignError::Client(error)) | LookError::Client(error)
                    if matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM")) =>
                {
                    "give the password of the user `default`: export REDISCLI_AUTH=…".to_owned()
                }
                _ => format!("see what is wrong (keyfleet status), then {AGAIN}"),
            })
        }
        BackupError::Moving => {
            failure.exit = Exit::User;
            failure.hint(format!("wait until the cluster rests, then {AGAIN}"))
        }
        BackupError::Exists { .. } => failure.hint(AGAIN),
        BackupError::Gone { .. } => failure.hint(format!("who deletes there? Then {AGAIN}")),
        BackupError::Shard { source, .. } => match &**source {
            ShardError::Copy(_) => failure.hint(
                "see that node's log; one with much to write may cut slow readers off \
                 (client-output-buffer-limit)",
            ),
            _ => failure.hint(format!("see that node's log, then {AGAIN}")),
        },
    }
}

fn damaged(error: &VerifyError) -> Failure {
    if let VerifyError::Storage(error) = error {
        return outcome::storage(error);
    }
    let mut failure = Failure::of(error).hint("take another backup: this one is no good");
    failure.exit = Exit::User;
    failure
}

/// Why there is no way to the moment.
pub fn no_way(error: &PointError, place: &str) -> Failure {
    let mut failure = Failure::of(error);
    failure.exit = Exit::User;
    match error {
        PointError::Shelf(error) => unfound(error),
        PointError::Before { .. } | PointError::Gap { .. } | PointError::NoBase { .. } => {
            failure.hint(format!("see which times there are: keyfleet backups --from {place}"))
        }
        PointError::Hole { .. } | PointError::Damaged { .. } | PointError::Cut { .. } => {
            failure.hint("choose a time before, or another backup")
        }
    }
}
