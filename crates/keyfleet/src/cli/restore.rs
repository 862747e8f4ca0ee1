//! `keyfleet restore`: a backup into a running cluster or server, by the importer; into a cluster of the fleet
//! that is new by files that its servers load at their start.

mod moment;

use std::net::SocketAddr;

use protocol::{ClusterNodes, Info};

use super::{
    backup::{Shelf, find},
    boot::{Known, NewCluster},
    context::Context,
    import::{Goal, Load, arguments::Loading, goal, outcome},
    text::plural,
};
use crate::{
    admin_client::{ClientError, Connection, DEADLINE, Login},
    backup::{
        manifest::{self, Manifest},
        reader::Stored,
        shelf,
        storage::Storage,
    },
    errors::{Exit, Failure},
    mover::{
        import::{Existing, filter::Filter, source::Input, state::StateFile},
        load::Target,
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The target may have another number of shards, another engine, another version. A cluster of the fleet that
isn't there yet is made, by files that its servers load at their start. Stopped at any time, by
kill -9 too, the same command goes on where it was. The password for HOST:PORT is taken from REDISCLI_AUTH.
Exit codes: 0 all is there; 1 something could not be carried, and is named; 2 the environment.")]
pub struct Args {
    /// The backup's name; `latest` is the last one
    #[arg(value_name = "ID|latest")]
    id: String,
    #[command(flatten)]
    shelf: Shelf,
    /// A cluster of the fleet, or any node of a cluster, or a single server
    #[arg(long, value_name = "CLUSTER|HOST:PORT")]
    to: String,
    /// Don't ask where the target holds keys already; those that are in the backup too stay, and
    /// are named where they differ
    #[arg(long)]
    yes: bool,
    /// Let the backup's value take the place of one that is there
    #[arg(long)]
    replace: bool,
    /// As it was at that moment, to the second: 2026-11-22T18:30:00Z. Takes what `keyfleet backup
    /// --follow` kept; `latest` is the last backup before then. The target must be empty
    #[arg(long, value_name = "TIME", value_parser = moment,
          conflicts_with_all = ["yes", "replace", "verify"])]
    at: Option<u64>,
    #[command(flatten)]
    how: Loading,
}

fn moment(text: &str) -> Result<u64, String> {
    let wanted = "a time like 2026-11-22T18:30:00Z, or 2026-11-22T19:30:00+01:00";
    manifest::time(text).ok_or_else(|| format!("that is not {wanted}"))
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    if let Some(at_ms) = args.at {
        return moment::run(context, args, at_ms).await;
    }
    let (storage, manifest) = find(context, &args.shelf, &args.id).await?;
    let load = Load {
        inputs: inputs(&storage, &manifest),
        filter: Filter::default(),
        existing: if args.replace { Existing::Replace } else { Existing::Fail },
        followed: None,
        booted: None,
        how: args.how,
    };
    if let Some(new) = NewCluster::wanted(context, &args.to, &load)? {
        let slots = manifest.shards.iter().map(|shard| shard.slots.clone()).collect();
        let known = Known { slots, keys: manifest.keys() };
        announce(context, &manifest, &format!(" into {}, which is new", args.to));
        return new.load(context, load, known).await;
    }
    let goal = goal(context, &args.to).await?;
    let state = load.state(&goal.to, goal.notes.as_deref())?;
    // What an interrupted one left there is its own.
    let goes_on = state.as_ref().is_some_and(|state| StateFile::load(state).is_some());
    if !goes_on && !load.how.dry_run && !args.yes && !args.replace {
        ask(context, &args.to, &goal).await?;
    }
    announce(context, &manifest, "");
    load.run(context, goal, state).await
}

fn announce(context: &Context, manifest: &Manifest, into: &str) {
    context.printer.note(&format!(
        "Restoring {} of {}{into}: {} from {}.",
        manifest.id,
        manifest.cluster,
        plural(manifest.keys(), "key"),
        plural(manifest.shards.len() as u64, "file")
    ));
}

fn inputs(storage: &Storage, manifest: &Manifest) -> Vec<Input> {
    let shards = manifest.shards.iter();
    let inputs = shards.map(|shard| {
        let stored = Stored {
            storage: storage.clone(),
            name: shelf::file(&manifest.cluster, &manifest.id, &shard.file),
            bytes: shard.bytes,
            sha256: Some(shard.sha256.clone()),
        };
        Input::stored(stored, shard.sha256.clone())
    });
    inputs.collect()
}

/// Is it meant, where the target holds keys already?
async fn ask(context: &Context, to: &str, goal: &Goal) -> Result<(), Failure> {
    let held = held(&goal.target, goal.login.as_ref()).await;
    let held = held.map_err(|error| outcome::failure(&error.into(), false))?;
    if held == 0 {
        return Ok(());
    }
    let keys = format!("{to} holds {} already", plural(held, "key"));
    let question = format!("{keys}, which stay as they are. Restore into it? [y/N]");
    if context.printer.live {
        let answer = context.printer.ask(&question);
        if answer.is_some_and(|answer| matches!(answer.as_str(), "y" | "Y" | "yes")) {
            return Ok(());
        }
    }
    Err(Failure::user(format!("{keys}, and nothing was restored"))
        .hint("let what is there stay: --yes; let the backup's values take its place: --replace"))
}

/// How many keys the target's primaries hold.
async fn held(target: &Target, login: Option<&Login>) -> Result<u64, ClientError> {
    let mut nodes = match target {
        Target::Server(address) => vec![*address],
        Target::Cluster(seeds) => primaries(seeds, login).await?,
    };
    nodes.sort_unstable();
    nodes.dedup();
    let mut held = 0;
    for node in nodes {
        let mut link = Connection::open(node, login, DEADLINE).await?;
        let reply = link.call(["INFO", "keyspace"]).await?;
        held += Info::parse(reply.as_str().unwrap_or_default()).keyspace().keys;
    }
    Ok(held)
}

/// The primaries that the first node that answers knows.
async fn primaries(
    seeds: &[SocketAddr],
    login: Option<&Login>,
) -> Result<Vec<SocketAddr>, ClientError> {
    let mut last = None;
    for seed in seeds {
        let asked = async {
            let mut link = Connection::open(*seed, login, DEADLINE).await?;
            link.call(["CLUSTER", "NODES"]).await
        };
        match asked.await {
            Ok(reply) => {
                let view: Result<ClusterNodes, _> = reply.as_str().unwrap_or_default().parse();
                let rows = view.map(|view| view.rows).unwrap_or_default();
                let owners = rows.iter().filter(|row| row.flags.primary && !row.slots.is_empty());
                let addresses = owners.filter_map(|row| {
                    let ip = if row.ip.is_empty() { Some(seed.ip()) } else { row.ip.parse().ok() };
                    Some(SocketAddr::new(ip?, row.port))
                });
                return Ok(addresses.collect());
            }
            Err(error) => last = Some(error),
        }
    }
    last.map_or(Ok(Vec::new()), Err)
}
