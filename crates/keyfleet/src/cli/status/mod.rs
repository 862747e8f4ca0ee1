//! `keyfleet status`: what exists and what is at risk.

mod answer;
pub mod picture;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use fleet::{
    model::{ClusterName, Fleet},
    observed::Observed,
};
use serde::Serialize;

use super::{connect, context::Context, printer::Output, signals};
use crate::{
    admin_client::Pool,
    backup::{follow, schedule::Record},
    errors::{Exit, Failure},
    lease::Lease,
    observe::{Observer, now_ms},
    session::Session,
    store::{Deed, Freeze, StoreError},
};

/// For how long guard's deeds are shown: an hour.
const LATELY_MS: u64 = 3_600_000;

const WATCH: Duration = Duration::from_secs(1);

/// Who keeps watch over the fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GuardView {
    /// Who holds the lease, as it calls itself: `guard (pid 4711)`.
    pub acting: Option<String>,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: Option<u64>,
    /// Until when nothing may be changed by plan, in milliseconds since the Unix epoch.
    pub frozen_until_ms: Option<u64>,
    /// Until when nothing is healed either, in milliseconds since the Unix epoch.
    pub healing_frozen_until_ms: Option<u64>,
    /// How the backups that it takes came out, of clusters that have any by plan.
    pub backups: BTreeMap<ClusterName, Record>,
    /// How the keeping of the commands after them goes, of clusters where they are kept.
    pub kept: BTreeMap<ClusterName, follow::State>,
    /// What it mended in the last hour, and why so, oldest first.
    pub lately: Vec<Deed>,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Draw it again every second until Ctrl-C
    #[arg(long, short)]
    watch: bool,
    /// Look at any existing cluster through one of its nodes, changing nothing
    #[arg(long, value_name = "HOST:PORT")]
    connect: Option<String>,
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

/// What is looked at.
enum Source {
    Fleet {
        session: Box<Session>,
        observer: Box<Observer>,
    },
    /// A cluster that keyfleet did not make, by the address of one of its nodes.
    Foreign(String),
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let mut source = if let Some(address) = args.connect {
        Source::Foreign(address)
    } else {
        let session = Box::new(context.open()?);
        let observer = Box::new(Observer::new(session.store.clone(), Pool::new()));
        Source::Fleet { session, observer }
    };
    if !args.watch {
        source.show(context, args.output, false).await?;
        return Ok(Exit::Done);
    }
    let stop = signals::asked_to_stop()?;
    let watched = async {
        let mut ticks = tokio::time::interval(WATCH);
        loop {
            ticks.tick().await;
            source.show(context, args.output, context.printer.interactive).await?;
        }
    };
    tokio::select! {
        failed = watched => failed,
        () = stop => Ok(Exit::Done),
    }
}

impl Source {
    async fn show(
        &mut self,
        context: &Context,
        output: Output,
        redraw: bool,
    ) -> Result<(), Failure> {
        match self {
            Self::Foreign(address) => {
                let observed = connect::observe(address).await?;
                present(context, output, redraw, None, &observed, None)
            }
            Self::Fleet { session, observer } => {
                let mut observed = observer.observe(&session.fleet).await?;
                observer.ask_proxies(&mut observed).await;
                let guard = guard(session)?;
                present(context, output, redraw, Some(&session.fleet), &observed, Some(&guard))
            }
        }
    }
}

fn present(
    context: &Context,
    output: Output,
    redraw: bool,
    fleet: Option<&Fleet>,
    observed: &Observed,
    guard: Option<&GuardView>,
) -> Result<(), Failure> {
    let printer = context.printer;
    match output {
        Output::Json => printer.json(&answer::Answer::new(fleet, observed, guard)),
        Output::Text => {
            let text = picture::fleet(fleet, observed, guard, printer.style);
            if redraw { printer.screen(&text) } else { printer.data(&text) }
        }
    }
}

/// Who keeps watch, and whether anything may be changed.
pub fn guard(session: &Session) -> Result<GuardView, Failure> {
    let mut frozen = Vec::new();
    for name in session.fleet.clusters.keys() {
        frozen.extend(session.store.freeze(name)?);
    }
    let until =
        |freezes: &mut dyn Iterator<Item = &Freeze>| freezes.map(|freeze| freeze.until_ms).max();
    let holder = Lease::holder(&session.store)?;
    let mut kept = BTreeMap::new();
    for (name, cluster) in &session.fleet.clusters {
        if cluster.backup.as_ref().is_some_and(|policy| policy.continuous) {
            kept.extend(session.store.kept(name)?.map(|kept| (name.clone(), kept)));
        }
    }
    let planned = session.fleet.clusters.iter().filter(|(_, cluster)| cluster.backup.is_some());
    Ok(GuardView {
        acting: holder.as_ref().map(|holder| format!("{} (pid {})", holder.command, holder.pid)),
        since_ms: holder.map(|holder| holder.since_ms),
        frozen_until_ms: until(&mut frozen.iter()),
        healing_frozen_until_ms: until(&mut frozen.iter().filter(|freeze| freeze.healing_too)),
        backups: planned
            .map(|(name, _)| Ok((name.clone(), session.store.backups(name)?)))
            .collect::<Result<_, StoreError>>()?,
        kept,
        lately: session
            .store
            .deeds()?
            .into_iter()
            .filter(|deed| deed.at_ms + LATELY_MS > now_ms())
            .collect(),
    })
}
