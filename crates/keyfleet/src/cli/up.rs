//! `keyfleet up`: make the world match the fleet's file, then guard it.

use std::{collections::BTreeSet, env, path::Path, time::Duration};

use fleet::{
    model::{ClusterName, GuardMode, PasswordSource, ProxyAddress},
    observed::{Observed, Process},
    step::Step,
};

use super::{
    boot, connect,
    context::{Context, clusters},
    freeze, guard, lease,
    progress::Progress,
    signals, status, steps,
    text::{plural, span},
};
use crate::{
    engines::EngineBinary,
    errors::{Exit, Failure, Problem},
    execute::{self, StepError},
    node_files::default_password,
    reconcile::{self, Reconciler, Turn},
    session::Session,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these clusters
    #[arg(value_name = "CLUSTER")]
    clusters: Vec<String>,
    /// Leave guard running in the background and return
    #[arg(long, short)]
    detach: bool,
    /// Start no guard; nothing heals by itself then
    #[arg(long, conflicts_with = "detach")]
    no_guard: bool,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let stop = signals::asked_to_stop()?;
    let session = context.open()?;
    let chosen = clusters(&session.fleet, &args.clusters)?;
    freeze::refuse(context, &session.store, &chosen, None)?;
    boot::refuse_interrupted(&session.store, &chosen)?;
    let guard = lease::guard_pid(&session.store)?;
    let lease = lease::take(&session.store, "up").await?;
    for name in &chosen {
        session.store.set_stopped(name, false)?;
    }
    // What was stopped is wanted again: the session is read anew for that.
    let session = Session::open(context.file(), context.file.is_some())?;
    let tools = context.tools(&session).await?;
    session.store.set_applied(&session.text)?;
    let mut reconciler = Reconciler::new(tools);
    reconciler.only = (!args.clusters.is_empty()).then(|| chosen.iter().cloned().collect());

    let brought = match bring_up(context, &mut reconciler, stop).await? {
        Ended::Up(brought) => brought,
        Ended::Stopped { steps } => {
            lease.until_exit();
            return Err(Failure::user(format!("stopped after {}", plural(steps, "step")))
                .hint(format!("servers keep running; go on with: {}", context.command("up"))));
        }
    };
    let Brought { turn, steps: done, took: elapsed } = brought;
    let took = span(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    for name in chosen.iter().filter(|_| !context.printer.quiet) {
        context.printer.data(&whereabouts(
            context,
            &session,
            &reconciler.context,
            &turn.observed,
            name,
        ))?;
    }
    let what = if done == 0 { "Nothing to do".to_owned() } else { plural(done, "step") };
    context.printer.note(&format!("{what}, {took}."));
    drop(lease);
    match guard {
        Some(pid) => context.printer.note(&format!("Guard is at work (pid {pid}).")),
        None if args.detach => guard::start_detached(context, &session).await?,
        None if args.no_guard || session.fleet.guard.mode == GuardMode::Off => {}
        None => {
            let down = context.command("down");
            context.printer.note(&format!(
                "Guarding. Ctrl-C ends that, and servers keep running; to stop them: {down}"
            ));
            return guard::keep_watch(context, false).await;
        }
    }
    Ok(Exit::Done)
}

/// How [`bring_up`] ended.
pub(super) enum Ended {
    Up(Brought),
    /// Asked to; servers keep running.
    Stopped {
        steps: u64,
    },
}

/// Everything is as the spec wants it.
pub(super) struct Brought {
    /// The last look.
    pub turn: Turn,
    pub steps: u64,
    pub took: Duration,
}

/// Makes the world match the spec, and shows how that goes.
pub(super) async fn bring_up(
    context: &Context,
    reconciler: &mut Reconciler,
    stop: impl Future<Output = ()>,
) -> Result<Ended, Failure> {
    let progress = Progress::new(context.printer);
    let ended = {
        let mut tell = |turn: &Turn, failed: &[(Step, StepError)]| progress.turn(turn, failed);
        let sink = progress.sink();
        tokio::select! {
            ended = reconciler.converge(&sink, &|| false, &mut tell) => Some(ended?),
            () = stop => None,
        }
    };
    let took = progress.elapsed();
    let steps = progress.finish() as u64;
    match ended {
        None | Some((_, reconcile::Ended::Stopped)) => Ok(Ended::Stopped { steps }),
        Some((turn, reconcile::Ended::Done)) => Ok(Ended::Up(Brought { turn, steps, took })),
        Some((turn, reconcile::Ended::Blocked)) => {
            let style = context.printer.error_style;
            context.printer.urgent(&steps::blocked(&turn.wave.blocked, style));
            Err(Failure::user("not everything that the file wants can be done")
                .hint(format!("see the whole path: {}", context.command("plan"))))
        }
        Some((_, reconcile::Ended::Failed(failed))) => Err(failures(&failed)),
    }
}

/// Every step that failed, with its reason.
pub fn failures(failed: &[(Step, StepError)]) -> Failure {
    let problems = failed.iter().map(|(step, error)| {
        let mut failure = Failure::environment(format!("could not {}", step.action)).because(error);
        failure.problems.pop().unwrap_or_else(|| Problem::new(error.to_string()))
    });
    Failure { exit: Exit::Environment, problems: problems.collect() }
}

/// Where a cluster is and how to connect.
fn whereabouts(
    context: &Context,
    session: &Session,
    tools: &execute::Context,
    observed: &Observed,
    name: &ClusterName,
) -> String {
    let style = context.printer.style;
    let mut out =
        format!("\n{}\n", status::picture::cluster(Some(&session.fleet), observed, name, style));
    let first = connect::primaries(observed, name);
    let address = first.first().and_then(|node| observed.nodes.get(node));
    if let (Some(view), Some(engine)) = (address, tools.engines.get(name)) {
        let password = session
            .fleet
            .clusters
            .get(name)
            .map(|cluster| default_password(&session.fleet, cluster));
        let password = match password {
            Some(PasswordSource::Generated) => {
                let root = session.store.root();
                let root = env::current_dir()
                    .ok()
                    .and_then(|here| root.strip_prefix(here).ok())
                    .unwrap_or(root);
                format!("REDISCLI_AUTH=\"$(cat {}/secrets/{name}.default)\" ", root.display())
            }
            Some(PasswordSource::Env(variable)) => format!("REDISCLI_AUTH=\"${variable}\" "),
            Some(PasswordSource::File(path)) => format!("REDISCLI_AUTH=\"$(head -n 1 {path})\" "),
            Some(PasswordSource::None) | None => String::new(),
        };
        let command =
            format!("{password}{} -c -h {} -p {}", client(engine), view.address, view.ports.tcp);
        out.push_str(&format!("  connect  {}\n", style.cyan(&command)));
        let proxies = observed.proxies.values().filter(|proxy| proxy.cluster == *name);
        for proxy in proxies.filter(|proxy| proxy.process == Process::Running) {
            let Some(place) = proxy.listen.first() else { continue };
            let place = match place {
                ProxyAddress::Tcp(address) => format!("-h {} -p {}", address.ip(), address.port()),
                ProxyAddress::Path(path) => format!("-s {path}"),
            };
            let command = format!("{password}{} {place}", client(engine));
            out.push_str(&format!("  plain    {}\n", style.cyan(&command)));
        }
    }
    out
}

/// How to call the engine's own client: by its name where PATH finds that.
fn client(engine: &EngineBinary) -> String {
    let Some(path) = &engine.cli else { return format!("{}-cli", engine.engine.kind) };
    let directories: BTreeSet<_> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let on_path = path.parent().is_some_and(|parent: &Path| directories.contains(parent));
    match (path.file_name(), &engine.library_path) {
        (Some(name), _) if on_path => name.to_string_lossy().into_owned(),
        (_, Some(library)) => format!("LD_LIBRARY_PATH={} {}", library.display(), path.display()),
        _ => path.display().to_string(),
    }
}
