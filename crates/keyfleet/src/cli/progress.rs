//! What is under way, live: on a terminal a few lines that are drawn anew, with a line left behind for
//! each wave that is done; elsewhere a line a step.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fleet::step::Step;
use tokio::task::JoinHandle;

use super::{
    printer::{Live, Printer},
    steps,
    text::{plural, span},
};
use crate::{
    execute::{Event, Sink, StepError},
    reconcile::Turn,
};

const REDRAW: Duration = Duration::from_millis(100);
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// How many running steps are drawn.
const RUNNING_MAX: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct Progress {
    state: Arc<Mutex<State>>,
    ticker: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    printer: Printer,
    live: Live,
    started: Instant,
    /// The steps of the wave under way.
    wave: Vec<Step>,
    wave_started: Instant,
    running: Vec<Running>,
    /// Steps of the wave that are done.
    done: Vec<Step>,
    /// Steps done in all waves.
    done_total: usize,
    waiting: Vec<String>,
    /// Lines that wait to be left behind.
    above: Vec<String>,
    finished: bool,
}

#[derive(Debug)]
struct Running {
    step: Step,
    since: Instant,
    note: String,
}

impl Progress {
    /// Begins to draw. Must be called inside the runtime.
    pub fn new(printer: Printer) -> Self {
        let now = Instant::now();
        let state = Arc::new(Mutex::new(State {
            printer,
            live: printer.live(),
            started: now,
            wave: Vec::new(),
            wave_started: now,
            running: Vec::new(),
            done: Vec::new(),
            done_total: 0,
            waiting: Vec::new(),
            above: Vec::new(),
            finished: false,
        }));
        let drawn = Arc::clone(&state);
        let ticker = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(REDRAW);
            loop {
                ticks.tick().await;
                lock(&drawn).draw();
            }
        });
        Self { state, ticker }
    }

    /// Takes the events of the steps.
    pub fn sink(&self) -> Sink {
        let state = Arc::clone(&self.state);
        Arc::new(move |event: Event<'_>| lock(&state).event(&event))
    }

    /// A look at the world: what will be done next, and what failed before.
    pub fn turn(&self, turn: &Turn, failed: &[(Step, StepError)]) {
        lock(&self.state).turn(turn, failed);
    }

    /// Takes the picture away and leaves the lines of what was done. How many steps that was.
    pub fn finish(&self) -> usize {
        let mut state = lock(&self.state);
        state.leave_wave();
        state.draw();
        state.live.clear();
        state.finished = true;
        state.done_total
    }

    pub fn elapsed(&self) -> Duration {
        lock(&self.state).started.elapsed()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.ticker.abort();
        lock(&self.state).live.clear();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic while drawing leaves nothing half done that matters.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    fn event(&mut self, event: &Event<'_>) {
        match *event {
            Event::Started(step) => {
                let running =
                    Running { step: step.clone(), since: Instant::now(), note: String::new() };
                self.running.push(running);
            }
            Event::Progress(step, note) => {
                if let Some(running) = self.running.iter_mut().find(|running| running.step == *step)
                {
                    note.clone_into(&mut running.note);
                }
            }
            Event::Done(step, done) => {
                self.running.retain(|running| running.step != *step);
                self.done.push(step.clone());
                self.done_total += 1;
                if !self.live.enabled() {
                    let at = span(millis(self.started.elapsed()));
                    let took = span(millis(done.took));
                    self.printer.note(&format!("{at:>7}  {step} ({took})"));
                }
            }
            Event::Failed(step, _) | Event::Skipped(step) => {
                self.running.retain(|running| running.step != *step);
            }
        }
    }

    fn turn(&mut self, turn: &Turn, failed: &[(Step, StepError)]) {
        self.leave_wave();
        for (step, error) in failed {
            // The world had changed meanwhile: it was planned anew, and nobody need know.
            if matches!(error, StepError::Stale(_)) {
                continue;
            }
            let text = format!("{step}: {error}; trying again");
            if self.live.enabled() {
                let mark = self.printer.error_style.yellow("▲");
                self.above.push(format!("{mark} {text}"));
            } else {
                self.printer.note(&text);
            }
        }
        self.wave.clone_from(&turn.wave.steps);
        self.wave_started = Instant::now();
        self.running.clear();
        let waiting: Vec<String> = turn.wave.waiting.iter().map(ToString::to_string).collect();
        if !self.live.enabled() {
            for text in waiting.iter().filter(|text| !self.waiting.contains(text)) {
                let at = span(millis(self.started.elapsed()));
                self.printer.note(&format!("{at:>7}  waiting: {text}"));
            }
        }
        self.waiting = waiting;
    }

    /// Leaves a line of what the wave under way has done.
    fn leave_wave(&mut self) {
        if !self.done.is_empty() && self.live.enabled() {
            let took = span(millis(self.wave_started.elapsed()));
            let text = steps::summary(self.done.iter());
            let style = self.printer.error_style;
            self.above.push(format!("{} {text} {}", style.green("✔"), style.dim(&took)));
        }
        self.done.clear();
    }

    fn draw(&mut self) {
        if !self.live.enabled() || self.finished {
            return;
        }
        let style = self.printer.error_style;
        let elapsed = self.started.elapsed();
        let frame = SPINNER[elapsed.as_millis() as usize / 100 % SPINNER.len()];
        let spinner = style.cyan(frame);
        let mut picture = Vec::new();
        if !self.wave.is_empty() {
            let steps = plural(self.wave.len() as u64, "step");
            picture.push(format!(
                "{spinner} {}  {}",
                steps::summary(self.wave.iter()),
                style.dim(&format!("{} of {steps}, {}", self.done.len(), span(millis(elapsed)))),
            ));
        } else if self.waiting.is_empty() {
            let at = style.dim(&span(millis(elapsed)));
            picture.push(format!("{spinner} looking at what is there  {at}"));
        }
        for running in self.running.iter().take(RUNNING_MAX) {
            let since = span(millis(running.since.elapsed()));
            let note = match running.note.as_str() {
                "" => since,
                note => format!("{note}, {since}"),
            };
            picture.push(format!("    {}  {}", running.step, style.dim(&note)));
        }
        if self.running.len() > RUNNING_MAX {
            picture.push(format!("    and {} more", self.running.len() - RUNNING_MAX));
        }
        for text in self.waiting.iter().take(RUNNING_MAX) {
            let at = style.dim(&span(millis(elapsed)));
            picture.push(format!("{spinner} waiting: {text}  {at}"));
        }
        let above = std::mem::take(&mut self.above);
        self.live.draw(&above, &picture);
    }
}
