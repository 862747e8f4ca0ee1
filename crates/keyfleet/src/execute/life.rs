//! Steps that make, start, stop and remove servers.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fleet::model::{ClusterName, HostId, NodeName, Ports};
use protocol::cluster_text::Info;
use rustix::process::Signal;

use super::{Context, Member, Report, StepError, context::Wait, join, settings};
use crate::{
    admin_client::{ClientError, Commands},
    node_files::{NODE_CONF, Place, Program, USERS_ACL, node_conf, users_acl},
    runtimes::process::{self, Handle},
    secrets::OWN_USER,
    store::{self, StoreError},
};

/// How long a server may take until it answers, apart from the time it loads data.
const START: Duration = Duration::from_secs(20);
/// How long a server may take to answer that is held for hung.
const HANG: Duration = Duration::from_secs(1);
/// How long a server may take to end after it was asked to, where it has nothing to save.
const STOP: Duration = Duration::from_secs(15);
/// What a server saves at least in a second, for how long it may take to.
const SAVED_BYTES_PER_SECOND: u64 = 20 << 20;

/// Makes a node and starts its server.
pub(super) async fn create(
    context: &Context,
    node: &NodeName,
    host: &HostId,
    ports: Ports,
) -> Result<(), StepError> {
    let files = Files::new(context, &node.cluster, host, ports)?;
    let launched = {
        let _claim = Claim::new(context, node)?;
        if find(context, node)?.is_some() {
            return Err(StepError::Stale(format!("{node} runs already")));
        }
        make_directory(context, node, &files)?;
        launch(context, node)?
    };
    settle(context, launched).await
}

/// The right to start a node's server, for as long as that takes. A step that is dropped goes on to
/// its next pause: the step that comes after it must not make a directory under a server that is
/// just being started, or start a second one.
struct Claim(PathBuf);

/// The directories of the nodes.
static CLAIMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

impl Claim {
    fn new(context: &Context, node: &NodeName) -> Result<Self, StepError> {
        let directory = context.store.node_dir(node);
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.insert(directory.clone()) {
            Ok(Self(directory))
        } else {
            Err(StepError::Stale(format!("{node} is just being started")))
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// What a new node's directory holds before its server runs.
pub(super) struct Files {
    pub place: Place,
    conf: String,
    users: String,
}

impl Files {
    pub fn new(
        context: &Context,
        name: &ClusterName,
        host: &HostId,
        ports: Ports,
    ) -> Result<Self, StepError> {
        let unknown = || StepError::Unknown { what: format!("host {host}") };
        let address = context.fleet.hosts.get(host).ok_or_else(unknown)?.address;
        let binary = context.engine(name)?;
        let program = Program::from(binary);
        let place = Place { host: host.clone(), address, ports, program };
        let cluster = context.cluster(name)?;
        let own = context.store.secret(name, OWN_USER)?;
        let conf = node_conf(&place, cluster, &binary.engine, &own)?;
        let users = users_acl(&context.fleet, cluster, &context.store)?;
        Ok(Self { place, conf, users })
    }

    /// Makes the directory and what is in it.
    pub fn write(&self, directory: &Path) -> Result<(), StoreError> {
        store::make_directory(directory)?;
        store::replace(&directory.join(NODE_CONF), self.conf.as_bytes())?;
        store::replace(&directory.join(USERS_ACL), self.users.as_bytes())
    }
}

/// A complete directory, or none: it is filled under another name.
fn make_directory(context: &Context, node: &NodeName, files: &Files) -> Result<(), StoreError> {
    let directory = context.store.node_dir(node);
    let new = context.store.nodes_dir().join(format!(".new-{node}"));
    store::remove_directory(&new)?;
    files.write(&new)?;
    move_aside(context, node)?;
    fs::rename(&new, &directory).map_err(|error| StoreError::new("make", &directory, error))?;
    store::sync_parent(&directory)
}

/// Moves a node's directory to where old ones are kept.
fn move_aside(context: &Context, node: &NodeName) -> Result<(), StoreError> {
    let directory = context.store.node_dir(node);
    if !directory.exists() || fs::remove_dir(&directory).is_ok() {
        return Ok(());
    }
    let old = context.store.nodes_dir().join(store::OLD);
    store::make_directory(&old)?;
    let target = old.join(format!("{node}-{}", crate::observe::now_ms()));
    fs::rename(&directory, &target).map_err(|error| StoreError::new("move", &directory, error))
}

/// Starts the server of a node that exists, with the program it ran with before, where its host is now.
pub(super) async fn start(context: &Context, node: &NodeName) -> Result<(), StepError> {
    if let Some(handle) = find(context, node)? {
        // Somebody else started it, or an interrupted run of ours did.
        return wait_answering(context, &context.member(node)?, &handle, 0).await;
    }
    let member = context.member(node)?;
    // Another engine comes with a restart.
    let program = Some(member.place.program.clone()).filter(|program| program.server.exists());
    if program.is_none() || context.host_address(&member) != member.place.address {
        rewrite(context, &member, program.clone())?;
    }
    match run(context, node).await {
        // What is written may be why it isn't running, and mended in the spec since.
        Err(StepError::Exited { .. }) => {
            rewrite(context, &member, program)?;
            run(context, node).await
        }
        result => result,
    }
}

/// Writes the files of a node that doesn't run as the spec wants them, for this program or the spec's.
fn rewrite(context: &Context, member: &Member, program: Option<Program>) -> Result<(), StepError> {
    let program = match program {
        Some(program) => program,
        None => Program::from(context.engine(&member.name.cluster)?),
    };
    let address = context.host_address(member);
    let place = Place { address, program, ..member.place.clone() };
    settings::write_conf(context, member, &place)?;
    let cluster = context.cluster(&member.name.cluster)?;
    let users = users_acl(&context.fleet, cluster, &context.store)?;
    Ok(store::replace(&member.directory.join(USERS_ACL), users.as_bytes())?)
}

/// Starts the server, waits until it answers and has loaded its data.
async fn run(context: &Context, node: &NodeName) -> Result<(), StepError> {
    let launched = {
        let _claim = Claim::new(context, node)?;
        if find(context, node)?.is_some() {
            return Err(StepError::Stale(format!("{node} runs already")));
        }
        launch(context, node)?
    };
    settle(context, launched).await
}

/// A server that was just started.
struct Launched {
    member: Member,
    handle: Handle,
    /// Where in its log its own words begin.
    printed_before: u64,
}

fn launch(context: &Context, node: &NodeName) -> Result<Launched, StepError> {
    let member = context.member(node)?;
    let printed_before = process::log_length(&member.directory);
    let failed = |source| StepError::Process { node: node.clone(), source };
    let pid = process::start(&member.place.program, &member.directory).map_err(failed)?;
    let handle = Handle::open(pid, &context.store.nodes_dir(), node).map_err(failed)?;
    match handle {
        Some(handle) => Ok(Launched { member, handle, printed_before }),
        None => Err(exited(&member, printed_before)),
    }
}

async fn settle(context: &Context, launched: Launched) -> Result<(), StepError> {
    let Launched { member, handle, printed_before } = launched;
    wait_answering(context, &member, &handle, printed_before).await?;
    settings::record_acl(context, &member).await
}

fn exited(member: &Member, printed_before: u64) -> StepError {
    let printed = process::log_tail(&member.directory, printed_before);
    let mut printed = process::complaints(&printed);
    if printed.is_empty() {
        "it printed nothing".clone_into(&mut printed);
    }
    // It may well have had no room to say so.
    if process::disk_is_full(&member.directory) {
        printed += " (No space left on its file system)";
    }
    StepError::Exited {
        node: member.name.clone(),
        engine: member.place.program.server.display().to_string(),
        printed,
    }
}

async fn wait_answering(
    context: &Context,
    member: &Member,
    handle: &Handle,
    printed_before: u64,
) -> Result<(), StepError> {
    let mut wait = Wait::new(START);
    let mut ping = Commands::new();
    ping.push(["PING"]);
    loop {
        let login = Some(&member.login);
        let deadline = Duration::from_secs(2);
        match context.pool.ask(member.address, login, deadline, &ping).await.as_deref() {
            Ok([protocol::Value::Error(text)]) if text.starts_with("LOADING") => wait.restart(),
            // Its own primary is away; it serves all the same.
            Ok([protocol::Value::Error(text)]) if text.starts_with("MASTERDOWN") => return Ok(()),
            Ok([protocol::Value::Error(text)]) => {
                let source = protocol::resp::ServerError::parse(text);
                let command = "PING".to_owned();
                return Err(StepError::Refused { node: member.name.clone(), command, source });
            }
            Ok(_) => return Ok(()),
            Err(_) => {}
        }
        tokio::select! {
            biased;
            ended = handle.exited() => {
                ended.map_err(|source| StepError::Process { node: member.name.clone(), source })?;
                return Err(exited(member, printed_before));
            }
            paused = wait.pause(|| format!("{} answers", member.name)) => paused?,
        }
    }
}

fn find(context: &Context, node: &NodeName) -> Result<Option<Handle>, StepError> {
    let failed = |source| StepError::Process { node: node.clone(), source };
    Handle::of(&context.store.nodes_dir(), node).map_err(failed)
}

/// Is it proven that no server of this node runs, at this moment?
pub(super) fn is_gone(context: &Context, node: &NodeName) -> Result<bool, StepError> {
    let directory = context.store.nodes_dir();
    Ok(process::is_proof(&directory) && find(context, node)?.is_none())
}

/// Stops a server in good order: it saves what it is configured to save. One that refuses is left
/// running; one that does not end in time is killed. One that is suspended is woken first.
pub(super) async fn stop(context: &Context, node: &NodeName) -> Result<(), StepError> {
    let Some(handle) = find(context, node)? else { return Ok(()) };
    let member = context.member(node)?;
    let woken = handle.signal(Signal::CONT);
    woken.map_err(|source| StepError::Process { node: node.clone(), source })?;
    let used = used_memory(context, &member).await;
    let deadline = STOP + Duration::from_secs(used.unwrap_or(0) / SAVED_BYTES_PER_SECOND);
    let failed = |source| StepError::Process { node: node.clone(), source };
    let shutdown = context.pool.call(member.address, Some(&member.login), deadline, ["SHUTDOWN"]);
    tokio::select! {
        ended = handle.exited() => return ended.map_err(failed),
        answer = shutdown => match answer {
            // It can't save: ending it now would lose what it holds.
            Err(ClientError::Server { source, .. }) => {
                let command = "SHUTDOWN".to_owned();
                return Err(StepError::Refused { node: node.clone(), command, source });
            }
            Err(ClientError::Broken { .. }) => {}
            _ => handle.signal(Signal::TERM).map_err(failed)?,
        },
    }
    if tokio::time::timeout(deadline, handle.exited()).await.is_err() {
        tracing::warn!(%node, ?deadline, "doesn't end, killing it");
        end(&handle).await.map_err(failed)?;
    }
    Ok(())
}

async fn used_memory(context: &Context, member: &Member) -> Option<u64> {
    let mut commands = Commands::new();
    commands.push(["INFO", "memory"]);
    let (login, deadline) = (Some(&member.login), Duration::from_secs(2));
    let replies = context.pool.ask(member.address, login, deadline, &commands).await.ok()?;
    Info::from_reply(replies.first()?)?.u64("used_memory")
}

/// Ends a server in good order that nobody can reach, and starts it where its host is now. One that
/// doesn't end is left as it is: only its memory may have what it holds.
pub(super) async fn readdress(context: &Context, node: &NodeName) -> Result<(), StepError> {
    if let Some(handle) = find(context, node)? {
        let member = context.member(node)?;
        let old = member.place.address;
        if !process::is_lost(old) || context.host_address(&member) == old {
            return Err(StepError::Stale(format!("{node} can be reached at {old}")));
        }
        let failed = |source| StepError::Process { node: node.clone(), source };
        handle.signal(Signal::TERM).map_err(failed)?;
        let saved = process::resident_bytes(handle.pid).unwrap_or(0) / SAVED_BYTES_PER_SECOND;
        let deadline = STOP + Duration::from_secs(saved);
        let late = |_| {
            let what = format!("{node} has saved its data and ended");
            StepError::Late { what, waited: deadline }
        };
        tokio::time::timeout(deadline, handle.exited()).await.map_err(late)?.map_err(failed)?;
    }
    start(context, node).await
}

/// Kills a server that answers nobody and waits until it is gone.
pub(super) async fn kill(context: &Context, node: &NodeName) -> Result<(), StepError> {
    let Some(handle) = find(context, node)? else { return Ok(()) };
    let failed = |source| StepError::Process { node: node.clone(), source };
    if !process::is_suspended(handle.pid) {
        let member = context.member(node)?;
        let mut ping = Commands::new();
        ping.push(["PING"]);
        let answer = context.pool.ask(member.address, Some(&member.login), HANG, &ping).await;
        if !matches!(answer, Err(ClientError::Silent { .. } | ClientError::Broken { .. })) {
            return Err(StepError::Stale(format!("{node} answers again")));
        }
    }
    end(&handle).await.map_err(failed)
}

async fn end(handle: &Handle) -> std::io::Result<()> {
    handle.signal(Signal::KILL)?;
    handle.exited().await
}

/// Stops and starts a server with the engine and configuration of the spec.
pub(super) async fn restart(
    context: &Context,
    node: &NodeName,
    report: &Report<'_>,
) -> Result<(), StepError> {
    let member = context.member(node)?;
    let view = context.view(&member).await?;
    let all = context.answering(&node.cluster).await?;
    let followers = all.iter().filter(|(_, peer)| peer.primary() == Some(view.id())).count();
    if view.is_primary() && view.owns_slots() && followers > 0 {
        return Err(StepError::Stale(format!("{node} is a primary that has replicas")));
    }
    can_follow(context, &member).await?;
    stop(context, node).await?;
    rewrite(context, &member, None)?;
    run(context, node).await?;
    let member = context.member(node)?;
    if view.is_primary() { Ok(()) } else { join::wait_in_sync(context, &member, report).await }
}

/// Refuses an engine that can't read what the running one wrote.
async fn can_follow(context: &Context, member: &Member) -> Result<(), StepError> {
    let running = context.running(member).await?;
    let engine = context.engine(&member.name.cluster)?.engine;
    if engine.can_follow(&running) {
        return Ok(());
    }
    Err(StepError::Engine { node: member.name.clone(), engine, running })
}

/// Stops a node that isn't needed any more, forgets it everywhere, and moves its directory away.
pub(super) async fn remove(context: &Context, node: &NodeName) -> Result<(), StepError> {
    let member = context.member(node)?;
    let id = match find(context, node)? {
        Some(_) => {
            let view = context.view(&member).await?;
            let all = context.answering(&node.cluster).await?;
            let stale = |text: String| Err(StepError::Stale(format!("{node} {text}")));
            if view.owns_slots() {
                return stale("owns slots".to_owned());
            }
            if let Some((peer, _)) = all.iter().find(|(_, peer)| peer.primary() == Some(view.id()))
            {
                return stale(format!("is the primary of {}", peer.name));
            }
            let keys = context.call(&member, &["DBSIZE"]).await?.as_integer().unwrap_or(0);
            if view.is_primary() {
                if keys > 0 {
                    return stale(format!("holds {keys} keys"));
                }
            } else if keys > 0
                && !all
                    .iter()
                    .any(|(_, peer)| Some(peer.id()) == view.primary() && peer.is_primary())
            {
                return stale("may be the last copy: its primary doesn't answer".to_owned());
            }
            stop(context, node).await?;
            Some(view.id())
        }
        None => crate::observe::disk(&member.directory).id,
    };
    if let Some(id) = id {
        join::forget(context, &node.cluster, id).await?;
    }
    if crate::observe::disk(&member.directory).data_bytes == 0 {
        store::remove_directory(&member.directory)?;
    }
    Ok(move_aside(context, node)?)
}
