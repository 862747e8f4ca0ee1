//! Does one step: checks again that the world still is what the step was planned for, acts, and
//! verifies the effect. Steps are idempotent and safe to interrupt at any point: what is half done
//! is seen by the next observation, and planned again.

pub mod boot;
mod context;
mod join;
mod life;
mod proxies;
mod roles;
mod settings;
mod slots;
mod wave;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet::{
    model::{NodeName, ProxyName},
    step::{Action, Step},
};
use protocol::{Engine, resp::ServerError};

pub use context::{Context, Member, View};
use roles::Votes;
pub(crate) use settings::loaded_acl;
pub use wave::{Outcome, execute_wave};

use crate::{
    admin_client::ClientError, mover::repair::RepairError, mover::slots::MoveError,
    node_files::NodeFileError, store::StoreError,
};

/// A step was done, or nothing was left to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub took: Duration,
}

/// A step was not done, or not verified.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The world isn't what the step was planned for: look again and plan again.
    #[error("{0}")]
    Stale(String),
    #[error("{node}: {source}")]
    Client { node: NodeName, source: ClientError },
    /// A server refused what it was told.
    #[error("{node} refuses {command}: {source}")]
    Refused { node: NodeName, command: String, source: ServerError },
    /// A server ended at once. The text is what it printed.
    #[error("{node} ({engine}) doesn't start: {printed}")]
    Exited { node: NodeName, engine: String, printed: String },
    #[error("{node}: its process: {source}")]
    Process { node: NodeName, source: io::Error },
    #[error("not so after {} s: {what}", waited.as_secs_f64())]
    Late { what: String, waited: Duration },
    #[error("{what} is not in the spec")]
    Unknown { what: String },
    #[error("{node}: {engine} can't take over from {running}")]
    Engine { node: NodeName, engine: Engine, running: Engine },
    #[error("proxy {proxy}: {problem}")]
    Proxy { proxy: ProxyName, problem: String },
    #[error(transparent)]
    Move(#[from] Box<MoveError>),
    #[error(transparent)]
    Repair(#[from] Box<RepairError>),
    #[error(transparent)]
    Files(#[from] NodeFileError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What happens while steps are done.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    Started(&'a Step),
    /// Where a long step is.
    Progress(&'a Step, &'a str),
    Done(&'a Step, &'a Done),
    Failed(&'a Step, &'a StepError),
    /// Not begun, because a step that it follows failed or because we are to stop.
    Skipped(&'a Step),
}

/// Takes the events of steps; called from several tasks at once.
pub type Sink = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// Tells of one step's progress.
pub(crate) struct Report<'a> {
    step: &'a Step,
    sink: &'a Sink,
}

impl Report<'_> {
    pub(crate) fn say(&self, text: &str) {
        (self.sink)(Event::Progress(self.step, text));
    }
}

/// Does one step. Dropping the future is safe.
pub async fn execute(step: &Step, context: &Context, sink: &Sink) -> Result<Done, StepError> {
    let started = Instant::now();
    sink(Event::Started(step));
    let report = Report { step, sink };
    let result = act(step, context, &report).await;
    let took = started.elapsed();
    match &result {
        Ok(()) => tracing::debug!(cluster = %step.cluster, step = %step.action, ?took, "done"),
        Err(error) => tracing::debug!(cluster = %step.cluster, step = %step.action, %error),
    }
    let result = result.map(|()| Done { took });
    match &result {
        Ok(done) => sink(Event::Done(step, done)),
        Err(error) => sink(Event::Failed(step, error)),
    }
    result
}

async fn act(step: &Step, context: &Context, report: &Report<'_>) -> Result<(), StepError> {
    let cluster = &step.cluster;
    match &step.action {
        Action::CreateNode { node, host, ports } => life::create(context, node, host, *ports).await,
        Action::StartNode { node } => life::start(context, node).await,
        Action::StopNode { node } => life::stop(context, node).await,
        Action::KillNode { node } => life::kill(context, node).await,
        Action::Readdress { node } => life::readdress(context, node).await,
        Action::RestartNode { node } => life::restart(context, node, report).await,
        Action::RemoveNode { node } => life::remove(context, node).await,
        Action::Meet { nodes } => join::meet(context, cluster, nodes).await,
        Action::AssignSlots { shares } => join::assign(context, cluster, shares).await,
        Action::Replicate { node, primary } => {
            join::replicate(context, node, primary, report).await
        }
        Action::OpenShards { pairs } => roles::open_shards(context, pairs).await,
        Action::Forget { id } => join::forget(context, cluster, *id).await,
        Action::Handover { from, to } => roles::hand_over(context, from, to, report).await,
        Action::Promote { dead, to } => roles::replace(context, dead, to, Votes::Asked).await,
        Action::TakeOver { dead, to } => roles::replace(context, dead, to, Votes::Gone).await,
        Action::SetConfig { node, directives } => {
            settings::set_config(context, node, directives).await
        }
        Action::ApplyAcl { node } => settings::apply_acl(context, node).await,
        Action::MoveSlots { from, to, slots } => {
            slots::move_between(context, from, to, slots, report).await
        }
        Action::RepairSlots { owner, slots, case } => {
            slots::repair(context, owner, slots, *case).await
        }
        Action::StartProxy { proxy } => proxies::start(context, proxy).await,
        Action::ChangeProxy { proxy } => proxies::change(context, proxy).await,
        Action::StopProxy { proxy } => proxies::stop(context, proxy).await,
    }
}
