//! Observe, plan, execute, and again: what `up` and guard share.
//!
//! While steps run, every server's process is watched. Where one ends that no step was to end, the
//! steps are dropped at once (each is safe to interrupt) and the world is looked at anew: a dead
//! primary doesn't wait for a long move of slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fleet::{
    model::{ClusterName, NodeName},
    observed::{Observed, Process},
    plan::plan,
    step::{Action, Step, Wave},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{self, Instant},
};

use crate::{
    execute::{Context, Event, Sink, StepError, execute_wave},
    observe::Observer,
    runtimes::process::Handle,
    store::StoreError,
};

/// How often the world is looked at when nothing happens.
const TICK: Duration = Duration::from_millis(500);

/// How often where a process is suspended: what is done about that depends on for how long.
const TICK_SUSPENDED: Duration = Duration::from_millis(100);

/// How long a turn waits for what is under way by itself.
const MOMENT: Duration = Duration::from_millis(50);

/// How long steps under way may go on after we were told to stop.
const GRACE: Duration = Duration::from_secs(1);

/// Waves in a row of which nothing could be done.
const FAILURES_MAX: u32 = 3;

/// Deaths that wait to be taken note of.
const DEATHS_MAX: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub struct Reconciler {
    pub context: Context,
    /// The clusters that are worked on; None: all.
    pub only: Option<BTreeSet<ClusterName>>,
    observer: Observer,
    watch: Watch,
    tick: Duration,
}

/// What one look at the world gave.
#[derive(Debug)]
pub struct Turn {
    pub observed: Observed,
    pub wave: Wave,
}

/// How the doing of a wave ended.
#[derive(Debug, Default)]
pub struct Acted {
    pub done: usize,
    pub failed: Vec<(Step, StepError)>,
    /// A process ended meanwhile that no step was to end.
    pub interrupted_by: Option<NodeName>,
}

/// Hears of every look at the world, with the steps that failed before it.
pub type Listener<'a> = dyn FnMut(&Turn, &[(Step, StepError)]) + Send + 'a;

/// How [`Reconciler::converge`] ended.
#[derive(Debug)]
pub enum Ended {
    /// The world is as the spec wants it.
    Done,
    /// All that can be done is done; the wave says what is blocked.
    Blocked,
    /// We were told to stop.
    Stopped,
    /// The same steps failed again and again.
    Failed(Vec<(Step, StepError)>),
}

impl Reconciler {
    pub fn new(context: Context) -> Self {
        let observer = Observer::new(Arc::clone(&context.store), context.pool.clone());
        Self { context, only: None, observer, watch: Watch::new(), tick: TICK }
    }

    /// Look at the world and plan.
    pub async fn look(&mut self) -> Result<Turn, StoreError> {
        let observed = self.observer.observe(&self.context.fleet).await?;
        self.watch.follow(&self.context.store.nodes_dir(), self.observer.processes());
        let suspended = observed.nodes.values().any(|view| view.process == Process::Suspended);
        self.tick = if suspended { TICK_SUSPENDED } else { TICK };
        let mut wave = plan(&self.context.fleet, &observed);
        if let Some(only) = &self.only {
            wave.steps.retain(|step| only.contains(&step.cluster));
            wave.blocked.retain(|blocked| only.contains(&blocked.cluster));
            wave.waiting.retain(|waiting| only.contains(&waiting.cluster));
        }
        Ok(Turn { observed, wave })
    }

    /// Do a wave's steps. `stop` is asked before each begins and again and again while they run: those
    /// that don't end soon after it says yes are dropped, which is safe.
    pub async fn act(
        &mut self,
        wave: &Wave,
        sink: &Sink,
        stop: &(dyn Fn() -> bool + Send + Sync),
    ) -> Acted {
        let ends = ended_by(wave);
        let done = Arc::new(Mutex::new(0_usize));
        let counting: Sink = {
            let (done, sink) = (Arc::clone(&done), Arc::clone(sink));
            Arc::new(move |event: Event<'_>| {
                if matches!(event, Event::Done(..)) {
                    *done.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                }
                sink(event);
            })
        };
        let mut acted = Acted::default();
        {
            let running = execute_wave(wave, &self.context, &counting, stop);
            tokio::pin!(running);
            let mut told_to_stop: Option<Instant> = None;
            loop {
                tokio::select! {
                    () = time::sleep(MOMENT), if stop() => {
                        let since = *told_to_stop.get_or_insert_with(Instant::now);
                        if since.elapsed() > GRACE {
                            break;
                        }
                    }
                    () = time::sleep(MOMENT) => {}
                    outcome = &mut running => {
                        acted.failed = outcome.failed;
                        break;
                    }
                    Some(node) = self.watch.deaths.recv() => {
                        if !ends.contains(&&node) {
                            acted.interrupted_by = Some(node);
                            break;
                        }
                    }
                }
            }
        }
        acted.done = *done.lock().unwrap_or_else(PoisonError::into_inner);
        for (step, error) in &acted.failed {
            if let (Action::StartNode { node }, StepError::Exited { .. }) = (&step.action, error) {
                self.observer.start_failed(node);
            }
        }
        acted
    }

    /// Turn after turn until nothing is left to do, or only what is blocked. `stop` is asked before each
    /// step and each turn; `tell` hears of every look at the world.
    pub async fn converge(
        &mut self,
        sink: &Sink,
        stop: &(dyn Fn() -> bool + Send + Sync),
        tell: &mut Listener<'_>,
    ) -> Result<(Turn, Ended), StoreError> {
        let mut failed: Vec<(Step, StepError)> = Vec::new();
        let mut failures = 0;
        loop {
            let turn = self.look().await?;
            tell(&turn, &failed);
            if turn.wave.is_done() {
                return Ok((turn, Ended::Done));
            }
            if stop() {
                return Ok((turn, Ended::Stopped));
            }
            if turn.wave.steps.is_empty() {
                if turn.wave.waiting.is_empty() {
                    return Ok((turn, Ended::Blocked));
                }
                self.wait_a_little().await;
                continue;
            }
            let acted = self.act(&turn.wave, sink, stop).await;
            let stale = |error: &StepError| matches!(error, StepError::Stale(_));
            if acted.failed.iter().any(|(_, error)| !stale(error)) && acted.done == 0 {
                failures += 1;
            } else {
                failures = 0;
            }
            failed = acted.failed;
            if failures >= FAILURES_MAX {
                return Ok((turn, Ended::Failed(failed)));
            }
            if !failed.is_empty() {
                self.wait_a_little().await;
            }
        }
    }

    /// Until a process ends, or a moment has passed in which servers get on with what they do.
    async fn wait_a_little(&mut self) {
        let _ = time::timeout(MOMENT, self.watch.deaths.recv()).await;
    }

    /// Until a process ends (`true`), or a while has passed.
    pub async fn pause(&mut self) -> bool {
        time::timeout(self.tick, self.watch.deaths.recv()).await.is_ok()
    }
}

/// The nodes whose processes a wave's steps end.
fn ended_by(wave: &Wave) -> Vec<&NodeName> {
    wave.steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::StopNode { node }
            | Action::KillNode { node }
            | Action::RemoveNode { node }
            | Action::RestartNode { node }
            | Action::Readdress { node }
            // It may end while it starts; that is the step's own failure.
            | Action::StartNode { node }
            | Action::CreateNode { node, .. } => Some(node),
            _ => None,
        })
        .collect()
}

/// Waits for the end of every server's process.
#[derive(Debug)]
struct Watch {
    /// By the process that is watched.
    watched: BTreeMap<NodeName, (i32, JoinHandle<()>)>,
    tell: mpsc::Sender<NodeName>,
    deaths: mpsc::Receiver<NodeName>,
}

impl Watch {
    fn new() -> Self {
        let (tell, deaths) = mpsc::channel(DEATHS_MAX);
        Self { watched: BTreeMap::new(), tell, deaths }
    }

    /// Watch these processes, and no others.
    fn follow(&mut self, nodes_dir: &Path, processes: &BTreeMap<NodeName, i32>) {
        self.watched.retain(|node, (pid, task)| {
            let runs = processes.get(node) == Some(pid);
            if !runs {
                task.abort();
            }
            runs && !task.is_finished()
        });
        for (node, &pid) in processes {
            if self.watched.contains_key(node) {
                continue;
            }
            // Gone since: the next look sees it.
            let Ok(Some(handle)) = Handle::open(pid, nodes_dir, node) else { continue };
            let (tell, name) = (self.tell.clone(), node.clone());
            let task = tokio::spawn(async move {
                if handle.exited().await.is_ok() {
                    // A full channel already wakes whoever reads it.
                    let _ = tell.try_send(name);
                }
            });
            self.watched.insert(node.clone(), (pid, task));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for (_, task) in self.watched.values() {
            task.abort();
        }
    }
}
