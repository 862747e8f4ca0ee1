//! A planner lives through a story. Every wave is judged before it is done; the story ends well when
//! the planner has nothing left to do, the judge has nothing to say about the world, and every
//! acknowledged write is there that no fault alone could have lost.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    sync::Arc,
};

use fleet::{
    check::{Violation, check_wave, check_world},
    model::{ClusterName, Fleet, HostId},
    observed::{Observed, Role, Server},
    step::{Action, Step, Wave},
    world::{Fault, Sync, Vantage, World},
};
use protocol::NodeId;

use crate::{ledger::Ledger, rng::Rng, story};

/// A planner, as the trial calls it.
pub type Planner<'a> = &'a dyn Fn(&Fleet, &Observed) -> Wave;

/// How many waves with steps a story may take after its last fault, for each node that there is.
const WAVES_PER_NODE_MAX: usize = 12;
/// How long the planner may go on waiting in the end, in milliseconds: spreading is paced by the hour.
const WAIT_MS_MAX: u64 = 4 * 3_600_000;

/// What a story was like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub waves: usize,
    pub steps: usize,
    pub faults: usize,
    pub acknowledged: usize,
    pub forfeited: usize,
    /// 1 where faults took every copy of something, or too many voters: the planner said so, and
    /// there was nothing to come back to.
    pub beyond_repair: usize,
}

/// How a story went wrong.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The judge forbids a wave.
    Wave(Vec<Violation>),
    /// Nothing is left to do, and the world isn't right.
    World(Vec<Violation>),
    /// What is wanted stays blocked though nothing is lost.
    Stuck(Wave),
    /// It never comes to an end.
    Endless(Wave),
    /// Acknowledged writes are gone.
    Lost(Vec<(u64, ClusterName, u16)>),
    /// Twice the same question, and two answers.
    Fickle,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wave(all) => {
                f.write_str("a wave breaks invariants:")?;
                all.iter().try_for_each(|one| write!(f, "\n  {one}"))
            }
            Self::World(all) => {
                f.write_str("nothing is left to do, yet:")?;
                all.iter().try_for_each(|one| write!(f, "\n  {one}"))
            }
            Self::Stuck(wave) | Self::Endless(wave) => {
                let how = if matches!(self, Self::Stuck(_)) { "stuck" } else { "no end" };
                write!(f, "{how}: {wave:?}")
            }
            Self::Lost(ids) => write!(f, "{} acknowledged writes are lost: {ids:?}", ids.len()),
            Self::Fickle => f.write_str("the same input gave another plan"),
        }
    }
}

/// What is done to a trial from outside, wave by wave.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Faults by the number of the wave before which they strike.
    pub faults: BTreeMap<usize, Vec<Fault>>,
    /// The spec from that wave on.
    pub specs: BTreeMap<usize, Fleet>,
    /// Faults made up on the way, in the first so many waves.
    pub troubles: usize,
    pub troubles_until: usize,
    /// Observers are blind or late and executors killed or doubled at times.
    pub mishaps: bool,
}

/// One trial under way.
pub struct Trial<'a> {
    pub world: World,
    pub fleet: Fleet,
    pub ledger: Ledger,
    pub tally: Tally,
    plan: Planner<'a>,
    rng: Rng,
    /// What happened, for people; kept only where asked for.
    pub log: Option<Vec<String>>,
    endings: BTreeMap<usize, Vec<Fault>>,
    past: VecDeque<Observed>,
    wave: usize,
    cut: Vec<HostId>,
}

impl<'a> Trial<'a> {
    /// Begins with nothing but hosts.
    pub fn new(fleet: Fleet, seed: u64, plan: Planner<'a>) -> Self {
        let world = World::from_observed(&story::nothing(&fleet), &fleet);
        Self {
            world,
            fleet,
            ledger: Ledger::default(),
            tally: Tally::default(),
            plan,
            rng: Rng::new(seed),
            log: None,
            endings: BTreeMap::new(),
            past: VecDeque::new(),
            wave: 0,
            cut: Vec::new(),
        }
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        let now_ms = self.world.now_ms();
        if let Some(log) = &mut self.log {
            log.push(format!("{:>9} {}", now_ms % 1_000_000_000, text()));
        }
    }

    /// Runs the script to its end, then until nothing is left to do.
    pub fn run(&mut self, script: &Script) -> Result<Tally, Failure> {
        let last_event = [
            script.faults.keys().max().copied(),
            script.specs.keys().max().copied(),
            (script.troubles > 0).then_some(script.troubles_until),
        ];
        let last_event = last_event.into_iter().flatten().max().unwrap_or(0);
        let mut quiet_waves = 0;
        let mut waited_ms = 0;
        loop {
            self.strike_all(script);
            let over = self.wave > last_event && self.endings.is_empty();
            let (seen, mishap) = self.look(script.mishaps && !over);
            let wave = (self.plan)(&self.fleet, &seen);
            self.tell(&wave);
            if self.rng.chance(10) && !self.is_steady(&seen, &wave) {
                return Err(Failure::Fickle);
            }
            let violations = check_wave(&self.fleet, &seen, &wave);
            if !violations.is_empty() {
                return Err(Failure::Wave(violations));
            }
            self.wave += 1;
            self.tally.waves += 1;
            if wave.steps.is_empty() {
                if over {
                    if let Some(end) = self.end(&wave, waited_ms) {
                        return end;
                    }
                    let pause_ms = (waited_ms / 4).clamp(500, 300_000);
                    waited_ms += pause_ms;
                    self.pass(pause_ms);
                } else {
                    let pause_ms = u64::from(self.rng.between(100, 4_000));
                    self.pass(pause_ms);
                }
                continue;
            }
            waited_ms = 0;
            self.tally.steps += wave.steps.len();
            self.execute(&wave, mishap, script.mishaps && !over);
            let pause_ms = u64::from(self.rng.between(0, 600));
            self.pass(pause_ms);
            if over {
                quiet_waves += 1;
                let nodes = self.world.nodes().count().max(6);
                if quiet_waves > WAVES_PER_NODE_MAX * nodes {
                    return Err(Failure::Endless(wave));
                }
            }
        }
    }

    /// The same world in other memory, its lists in another order, gives the same plan.
    fn is_steady(&mut self, seen: &Observed, wave: &Wave) -> bool {
        let mut other = seen.clone();
        let mut names: Vec<_> = other.nodes.keys().cloned().collect();
        while !names.is_empty() {
            let name = names.swap_remove(self.rng.below(names.len()));
            let view = other.nodes.get_mut(&name).map(|view| &mut view.server);
            if let Some(Server::Up(up)) = view {
                up.table = Arc::new((*up.table).clone());
            }
        }
        for history in other.history.values_mut() {
            history.handovers_ms.reverse();
            history.refusals_ms.reverse();
        }
        let again = (self.plan)(&self.fleet, &other);
        format!("{again:?}") == format!("{wave:?}")
    }

    /// What to make of a wave without steps after the last fault. None: wait.
    fn end(&mut self, wave: &Wave, waited_ms: u64) -> Option<Result<Tally, Failure>> {
        self.tally.acknowledged = self.ledger.acknowledged();
        self.tally.forfeited = self.ledger.forfeited();
        if wave.is_done() {
            let seen = self.observe(&Vantage::default());
            let violations = check_world(&self.fleet, &seen);
            if !violations.is_empty() {
                // What the planner needn't care for may take a moment to spread.
                return (waited_ms > 10_000).then_some(Err(Failure::World(violations)));
            }
            let missing = self.ledger.missing(&self.world);
            if !missing.is_empty() {
                return Some(Err(Failure::Lost(missing)));
            }
            return Some(Ok(self.tally));
        }
        if !wave.blocked.is_empty() && waited_ms > 120_000 && self.is_beyond_repair() {
            self.tally.beyond_repair = 1;
            return Some(Ok(self.tally));
        }
        if wave.waiting.is_empty() && waited_ms > 120_000 {
            return Some(Err(Failure::Stuck(wave.clone())));
        }
        (waited_ms > WAIT_MS_MAX).then(|| Err(Failure::Endless(wave.clone())))
    }

    /// Faults took too much: a shard's primary is gone with its data, and no replica of it has any
    /// that it could be elected with, or too few primaries are left to vote.
    pub fn is_beyond_repair(&self) -> bool {
        let mut owners: BTreeMap<&ClusterName, BTreeSet<NodeId>> = BTreeMap::new();
        let mut well: BTreeSet<NodeId> = BTreeSet::new();
        let mut heirs: BTreeSet<NodeId> = BTreeSet::new();
        let nodes: Vec<_> = self.world.nodes().collect();
        for (name, node) in &nodes {
            if self.world.answers(name) {
                well.insert(node.id);
                heirs.extend(node.replica_of().filter(|_| node.sync == Sync::InSync));
            }
            if let Some(cluster) = self.fleet.clusters.get_key_value(&name.cluster) {
                let rows = node.table.rows.iter();
                let owning =
                    rows.filter(|(_, row)| row.replica_of.is_none() && !row.slots.is_empty());
                owners.entry(cluster.0).or_default().extend(owning.map(|(id, _)| *id));
            }
        }
        owners.values().any(|owners| {
            let gone = owners.difference(&well).count();
            gone * 2 >= owners.len() && gone > 0
                || owners.difference(&well).any(|id| !heirs.contains(id))
        })
    }

    fn strike_all(&mut self, script: &Script) {
        if let Some(fleet) = script.specs.get(&self.wave) {
            self.fleet = fleet.clone();
            self.say(|| "another spec".to_owned());
        }
        let mut due = self.endings.remove(&self.wave).unwrap_or_default();
        due.extend(script.faults.get(&self.wave).cloned().unwrap_or_default());
        if self.wave < script.troubles_until {
            let left = script.troubles.saturating_sub(self.tally.faults);
            let odds = 100 * left / (script.troubles_until - self.wave);
            if self.rng.chance(odds)
                && let Some((fault, ending)) =
                    story::trouble(&self.world, &self.fleet, &mut self.rng)
            {
                self.tally.faults += 1;
                due.push(fault);
                if let Some(ending) = ending {
                    let later = self.wave + 1 + self.rng.below(12);
                    self.endings.entry(later).or_default().push(ending);
                }
            }
        }
        for fault in due {
            self.strike(&fault);
        }
    }

    /// Lets a fault happen, and remembers what it may cost.
    pub fn strike(&mut self, fault: &Fault) {
        // One cut at a time: healing mends all of a host's.
        match fault {
            Fault::Cut(host) if self.cut.is_empty() => self.cut.push(host.clone()),
            Fault::Cut(_) => return,
            Fault::Heal(host) => self.cut.retain(|cut| cut != host),
            _ => {}
        }
        self.world.strike(fault);
        self.ledger.note(&self.world, fault);
        self.say(|| format!("FAULT {fault:?}"));
    }

    /// What the observer sees: at times a host less, or how it was a while ago. Then executors check
    /// again before each step.
    fn look(&mut self, mishaps: bool) -> (Observed, bool) {
        let mut vantage = Vantage::default();
        let blind = mishaps && self.rng.chance(8);
        if blind {
            let hosts: Vec<HostId> = self.fleet.hosts.keys().cloned().collect();
            vantage.blind.extend(self.rng.pick(&hosts).cloned());
        }
        let seen = self.observe(&vantage);
        self.past.push_back(seen.clone());
        if self.past.len() > 4 {
            self.past.pop_front();
        }
        if mishaps && self.rng.chance(8) {
            let index = self.rng.below(self.past.len());
            self.say(|| "the observer is late".to_owned());
            return (self.past[index].clone(), true);
        }
        (seen, blind)
    }

    /// Only hosts that the spec names can be asked for what they have.
    fn observe(&self, vantage: &Vantage) -> Observed {
        let mut seen = self.world.observe(vantage);
        seen.hosts.retain(|host, _| self.fleet.hosts.contains_key(host));
        seen
    }

    fn execute(&mut self, wave: &Wave, recheck: bool, mishaps: bool) {
        let mut steps = wave.steps.as_slice();
        if mishaps && self.rng.chance(10) {
            // Killed before it is through; at worst in the middle of a move.
            let done = self.rng.below(steps.len());
            if let Action::MoveSlots { from, to, slots } = &steps[done].action
                && let Some(slot) = slots.iter().next()
            {
                let moved = self.rng.chance(50);
                let fault = Fault::HalfMove { from: from.clone(), to: to.clone(), slot, moved };
                steps = &steps[..done];
                self.say(|| format!("the executor is killed after {done} steps"));
                self.apply(steps, recheck);
                self.strike(&fault);
                return;
            }
            steps = &steps[..done];
            self.say(|| format!("the executor is killed after {done} steps"));
        }
        self.apply(steps, recheck);
        if mishaps && self.rng.chance(10) {
            // Another one made the same plan and gets the lease now.
            self.say(|| "a second executor does it again".to_owned());
            self.apply(&wave.steps, true);
        }
    }

    fn apply(&mut self, steps: &[Step], recheck: bool) {
        if !recheck {
            let results = self.world.apply_all(steps, &self.fleet);
            for (step, result) in steps.iter().zip(results) {
                if let Err(refused) = result {
                    self.say(|| format!("  refused: {}: {refused}", step.action));
                }
            }
            return;
        }
        for step in steps {
            let seen = self.observe(&Vantage::default());
            let alone = Wave { steps: vec![step.clone()], ..Wave::default() };
            if !check_wave(&self.fleet, &seen, &alone).is_empty() {
                self.say(|| format!("  not any more: {}", step.action));
                continue;
            }
            if let Err(refused) = self.world.apply(step, &self.fleet) {
                self.say(|| format!("  refused: {}: {refused}", step.action));
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let clusters: Vec<ClusterName> = self.fleet.clusters.keys().cloned().collect();
        for cluster in clusters {
            let count = self.rng.below(3);
            self.ledger.write(&mut self.world, &cluster, count, &mut self.rng);
        }
        self.world.advance(ms);
    }

    fn tell(&mut self, wave: &Wave) {
        if self.log.is_none() {
            return;
        }
        let number = self.wave;
        let state = self.picture();
        self.say(|| format!("wave {number}: {state}"));
        for step in &wave.steps {
            self.say(|| format!("  {}: {} ({})", step.cluster, step.action, step.why));
        }
        for blocked in &wave.blocked {
            self.say(|| format!("  blocked: {}: {}", blocked.wanted, blocked.reason));
        }
        for waiting in &wave.waiting {
            self.say(|| format!("  waiting: {}", waiting.what));
        }
    }

    /// Who sees what in the end.
    fn tell_views(&mut self) {
        let Some(log) = &mut self.log else { return };
        for (name, node) in self.world.nodes() {
            log.push(format!(
                "{name} is {}, epoch {}, {:?}",
                node.id.short(),
                node.current_epoch,
                node.sync
            ));
            for (id, row) in &node.table.rows {
                log.push(format!(
                    "    {} {:?} epoch {} of {:?}, {} slots",
                    id.short(),
                    row.health,
                    row.config_epoch,
                    row.replica_of,
                    row.slots.len()
                ));
            }
        }
    }

    /// Each node in a few letters: `c0-1@h0 P5461`, `c0-2@h1 R1`.
    fn picture(&self) -> String {
        let seen = self.world.observe(&Vantage::default());
        let one = |(name, view): (&fleet::model::NodeName, &fleet::observed::NodeView)| {
            let state = match view.up() {
                Some(up) => match up.role {
                    Role::Primary => format!("P{}", up.slots().len()),
                    Role::Replica { of, link } => {
                        let of = seen
                            .by_id(&name.cluster, of)
                            .map_or_else(|| of.short(), |(name, _)| name.number.to_string());
                        format!(
                            "R{of}{}",
                            if link == fleet::observed::Link::InSync { "" } else { "~" }
                        )
                    }
                },
                None => format!("{:?}", view.process),
            };
            format!("{name}@{} {state}", view.host)
        };
        seen.nodes.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// In one of so many stories with another spec a host has another address there.
const READDRESSED_EVERY: u64 = 8;

/// A whole story from a seed: a fleet is made, changed, struck by faults, and has to come out well.
pub fn random(seed: u64, plan: Planner<'_>, log: bool) -> (Result<Tally, Failure>, Vec<String>) {
    let mut rng = Rng::new(seed);
    let fleet = story::fleet(&mut rng);
    let mut script = Script::default();
    if rng.chance(75) {
        script.troubles = rng.between(1, 4) as usize;
        script.troubles_until = 4 + rng.below(24);
        script.mishaps = rng.chance(40);
    }
    if rng.chance(50) {
        let wave = 3 + rng.below(12);
        let mut changed = story::changed(&fleet, &mut rng);
        if seed % READDRESSED_EVERY == 1 {
            changed = story::readdressed(&changed, wave);
        }
        script.specs.insert(wave, changed);
    }
    let mut trial = Trial::new(fleet, rng.next(), plan);
    if log {
        trial.log = Some(Vec::new());
    }
    let result = trial.run(&script);
    trial.tell_views();
    (result, trial.log.unwrap_or_default())
}
