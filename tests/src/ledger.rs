//! A client that writes unique ids at full speed through every cluster redirect and keeps a ledger
//! of what was acknowledged, so that a test can say whether anything was lost.
//!
//! Each id is appended with RPUSH to one of a fixed set of lists that are spread evenly over the
//! slots. An append shows twice when it was done twice, so nothing is retried unless the server said
//! that it did *not* do it. What a broken connection leaves open is `unknown`: it may be there once.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use keyfleet::admin_client::{ClientError, Commands, Connection, Login};
use protocol::{ClusterNodes, Slot, SlotSet, Value, key_slot, resp::Redirect, slots::SLOT_COUNT};
use serde::Serialize;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

/// A run with fewer acknowledged writes a second proves nothing.
pub const WRITES_PER_S_MIN: f64 = 500.0;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// How a ledger writes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Each writes to its own share of the slots, so that a dead shard holds up only those whose
    /// slots it has.
    pub connections: u16,
    /// Writes that a connection sends before it reads their answers.
    pub pipeline: usize,
    /// Lists, spread evenly over the slots: at most 16,384.
    pub keys: u16,
    /// Of all connections together; None: as fast as it goes.
    pub writes_per_s_max: Option<u32>,
    /// How long an answer is waited for before a write counts as unknown.
    pub answer_time: Duration,
    /// How long a write that is refused for now is tried again before it counts as failed.
    pub retry_time: Duration,
    pub login: Option<Login>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connections: 6,
            pipeline: 4,
            keys: 4_096,
            writes_per_s_max: Some(10_000),
            answer_time: Duration::from_secs(10),
            retry_time: Duration::from_secs(60),
            login: None,
        }
    }
}

/// A running ledger.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Writer>>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    seeds: Vec<SocketAddr>,
    keys: Vec<(Slot, String)>,
    started: Instant,
    stop: AtomicBool,
    /// When anything was last acknowledged, and the longest time in which nothing was;
    /// microseconds since the start.
    last_ok_us: AtomicU64,
    longest_gap_us: AtomicU64,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok,
    Failed,
    Unknown,
}

/// What a ledger saw.
#[derive(Debug)]
pub struct Report {
    pub ok: u64,
    /// Certainly not written.
    pub failed: u64,
    pub unknown: u64,
    pub took: Duration,
    pub writes_per_s: f64,
    /// The longest time in which no write at all was acknowledged.
    pub longest_gap_ms: f64,
    /// The same for each connection's slots.
    pub gaps: Vec<Gap>,
    pub latency: Latency,
    writers: Vec<Writer>,
    shared: Arc<Shared>,
}

/// The longest time without an acknowledged write in some slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    pub slots: SlotSet,
    pub gap_ms: f64,
}

/// From sending a write to its acknowledgement, with every redirect and retry between; milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Default, Serialize)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// Whether the data agrees with the ledger. Ids are of the form `writer << 40 | number`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Fewer than [`WRITES_PER_S_MIN`]: the run proves nothing.
    pub void: bool,
    /// Acknowledged and not in the data.
    pub lost: Vec<u64>,
    /// More than once in the data.
    pub duplicated: Vec<u64>,
    /// In the data though refused or never sent, or text that is no id.
    pub unexpected: Vec<String>,
}

impl Verdict {
    /// Nothing lost, nothing twice, and enough was written to say so.
    pub fn holds(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { void, lost, duplicated, unexpected } = self;
        if *void {
            f.write_str("void, too few writes; ")?;
        }
        let (lost, duplicated) = (lost.len(), duplicated.len());
        write!(f, "{lost} lost, {duplicated} duplicated, {} unexpected", unexpected.len())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50_ms, p99_ms, p999_ms, max_ms } = self.latency;
        write!(
            f,
            "{} ok, {} failed, {} unknown, {:.0} writes/s, longest gap {:.0} ms, \
             p50 {p50_ms:.2} p99 {p99_ms:.2} p99.9 {p999_ms:.2} max {max_ms:.1} ms",
            self.ok, self.failed, self.unknown, self.writes_per_s, self.longest_gap_ms
        )
    }
}

impl Ledger {
    /// Starts writing to the cluster that any of `seeds` is part of.
    pub async fn start(seeds: &[SocketAddr], options: Options) -> Result<Self> {
        ensure!(options.connections > 0 && options.keys >= options.connections);
        ensure!(options.keys <= SLOT_COUNT && options.pipeline > 0);
        let shared = Arc::new(Shared {
            keys: keys(options.keys),
            options,
            seeds: seeds.to_vec(),
            started: Instant::now(),
            stop: AtomicBool::new(false),
            last_ok_us: AtomicU64::new(0),
            longest_gap_us: AtomicU64::new(0),
        });
        let mut map = Map::new(seeds.to_vec());
        map.refresh(&shared).await;
        ensure!(map.owners.iter().any(Option::is_some), "no seed tells who owns the slots");
        let count = usize::from(shared.options.connections);
        let writers = (0..count).map(|number| {
            let share = |part: usize| part * shared.keys.len() / count;
            let writer = Writer {
                number: number as u64,
                keys: (share(number), share(number + 1)),
                outcomes: Vec::new(),
                latencies_us: Vec::new(),
                last_ok: None,
                longest_gap: Duration::ZERO,
                map: map.clone(),
                links: HashMap::new(),
            };
            tokio::spawn(writer.run(Arc::clone(&shared)))
        });
        Ok(Self { writers: writers.collect(), shared })
    }

    /// Waits until another write is acknowledged.
    pub async fn wait_for_writes(&self, time_max: Duration) -> Result<()> {
        let before = self.shared.last_ok_us.load(Ordering::Relaxed);
        let waiting = async {
            while self.shared.last_ok_us.load(Ordering::Relaxed) == before {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(time_max, waiting).await.context("no write was acknowledged")
    }

    /// Ends the run: what is under way is waited for.
    pub async fn stop(self) -> Result<Report> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let took = self.shared.started.elapsed();
        self.shared.note_gap(took);
        let mut writers = Vec::new();
        for writer in self.writers {
            let mut writer = writer.await?;
            writer.note_gap(self.shared.started + took);
            writers.push(writer);
        }
        let count = |wanted: Outcome| {
            let all = writers.iter().flat_map(|writer| &writer.outcomes);
            all.filter(|outcome| **outcome == wanted).count() as u64
        };
        let ok = count(Outcome::Ok);
        let mut latencies: Vec<u32> =
            writers.iter().flat_map(|writer| writer.latencies_us.iter().copied()).collect();
        let gaps = writers.iter().map(|writer| Gap {
            slots: self.shared.keys[writer.keys.0..writer.keys.1]
                .iter()
                .map(|(slot, _)| *slot)
                .collect(),
            gap_ms: ms(writer.longest_gap),
        });
        Ok(Report {
            ok,
            failed: count(Outcome::Failed),
            unknown: count(Outcome::Unknown),
            took,
            writes_per_s: ok as f64 / took.as_secs_f64(),
            longest_gap_ms: self.shared.longest_gap_us.load(Ordering::Relaxed) as f64 / 1_000.0,
            gaps: gaps.collect(),
            latency: Latency::of(&mut latencies),
            shared: Arc::clone(&self.shared),
            writers,
        })
    }
}

impl Latency {
    /// Of samples in microseconds, which are sorted.
    pub fn of(samples_us: &mut [u32]) -> Self {
        samples_us.sort_unstable();
        let at = |share: f64| {
            let index = (samples_us.len() as f64 * share) as usize;
            let sample = samples_us.get(index.min(samples_us.len().saturating_sub(1)));
            f64::from(sample.copied().unwrap_or_default()) / 1_000.0
        };
        Self { p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999), max_ms: at(1.0) }
    }
}

impl Report {
    /// Reads all the lists and compares them with what was acknowledged.
    pub async fn verify(&self, seeds: &[SocketAddr]) -> Result<Verdict> {
        let mut verdict =
            Verdict { void: self.writes_per_s < WRITES_PER_S_MIN, ..Verdict::default() };
        let mut seen: Vec<Vec<u8>> =
            self.writers.iter().map(|writer| vec![0; writer.outcomes.len()]).collect();
        let mut map = Map::new(seeds.to_vec());
        map.refresh(&self.shared).await;
        let mut by_owner: BTreeMap<SocketAddr, Vec<&str>> = BTreeMap::new();
        for (slot, key) in &self.shared.keys {
            let owner = map.owner(*slot).with_context(|| format!("nobody owns slot {slot}"))?;
            by_owner.entry(owner).or_default().push(key);
        }
        for (owner, keys) in by_owner {
            let mut link = connect(owner, &self.shared.options).await?;
            for keys in keys.chunks(256) {
                let mut pipeline = Commands::new();
                for key in keys {
                    pipeline.push(["LRANGE", key, "0", "-1"]);
                }
                for list in link.pipeline(&pipeline, Duration::from_secs(30)).await? {
                    let list = list.into_result()?;
                    for item in list.as_array().context("not a list")? {
                        Self::tick(item, &mut seen, &mut verdict);
                    }
                }
            }
        }
        for (writer, seen) in self.writers.iter().zip(&seen) {
            for (number, (outcome, times)) in writer.outcomes.iter().zip(seen).enumerate() {
                let id = writer.id(number);
                match (outcome, times) {
                    (Outcome::Ok, 0) => verdict.lost.push(id),
                    (Outcome::Failed, 1..) => verdict.unexpected.push(id.to_string()),
                    (_, 2..) => verdict.duplicated.push(id),
                    _ => {}
                }
            }
        }
        Ok(verdict)
    }

    fn tick(item: &Value, seen: &mut [Vec<u8>], verdict: &mut Verdict) {
        let id = item.as_integer().and_then(|id| u64::try_from(id).ok());
        let place = id.and_then(|id| {
            seen.get_mut((id >> 40) as usize)?.get_mut((id & ((1 << 40) - 1)) as usize)
        });
        match place {
            Some(times) => *times = times.saturating_add(1),
            None => verdict.unexpected.push(format!("{item:?}")),
        }
    }
}

impl Shared {
    fn note_ok(&self, at: Instant) {
        self.note_gap(at - self.started);
        self.last_ok_us.fetch_max((at - self.started).as_micros() as u64, Ordering::Relaxed);
    }

    /// The first acknowledged write begins the time that counts.
    fn note_gap(&self, at: Duration) {
        let last = self.last_ok_us.load(Ordering::Relaxed);
        if last > 0 {
            let gap = (at.as_micros() as u64).saturating_sub(last);
            self.longest_gap_us.fetch_max(gap, Ordering::Relaxed);
        }
    }
}

/// `count` keys in slots that are evenly spread, ascending; no two ledgers have the same.
fn keys(count: u16) -> Vec<(Slot, String)> {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = format!("{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    let mut wanted: BTreeMap<Slot, Option<String>> = (0..u32::from(count))
        .filter_map(|index| Slot::new((index * u32::from(SLOT_COUNT) / u32::from(count)) as u16))
        .map(|slot| (slot, None))
        .collect();
    let mut left = wanted.len();
    for number in 0_u64.. {
        if left == 0 {
            break;
        }
        let key = format!("ledger:{run}:{number}");
        if let Some(place @ None) = wanted.get_mut(&key_slot(key.as_bytes())) {
            *place = Some(key);
            left -= 1;
        }
    }
    wanted.into_iter().filter_map(|(slot, key)| Some((slot, key?))).collect()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Who owns what, as far as a client knows.
#[derive(Clone, Debug)]
struct Map {
    nodes: Vec<SocketAddr>,
    owners: Vec<Option<SocketAddr>>,
}

impl Map {
    fn new(seeds: Vec<SocketAddr>) -> Self {
        Self { nodes: seeds, owners: vec![None; usize::from(SLOT_COUNT)] }
    }

    fn owner(&self, slot: Slot) -> Option<SocketAddr> {
        self.owners.get(usize::from(slot.number())).copied().flatten()
    }

    fn set(&mut self, slot: Slot, owner: SocketAddr) {
        if let Some(place) = self.owners.get_mut(usize::from(slot.number())) {
            *place = Some(owner);
        }
        if !self.nodes.contains(&owner) {
            self.nodes.push(owner);
        }
    }

    /// Asks the nodes in turn until one answers; a view in which the cluster is whole is preferred.
    async fn refresh(&mut self, shared: &Shared) {
        let mut known = self.nodes.clone();
        known.extend(shared.seeds.iter().filter(|seed| !self.nodes.contains(seed)));
        for node in known {
            let asked = timeout(Duration::from_secs(1), ask_view(node, &shared.options)).await;
            let Ok(Ok(view)) = asked else { continue };
            let mut covered = 0;
            for row in view.rows.iter().filter(|row| !row.flags.fail) {
                // A node names itself without an address until another has told it its own.
                let ip = row.ip.parse().unwrap_or(node.ip());
                for slot in row.slots.iter() {
                    self.set(slot, SocketAddr::new(ip, row.port));
                    covered += 1;
                }
            }
            if covered == usize::from(SLOT_COUNT) {
                return;
            }
        }
    }
}

async fn connect(node: SocketAddr, options: &Options) -> Result<Connection, ClientError> {
    Connection::open(node, options.login.as_ref(), CONNECT_TIME_MAX).await
}

async fn ask_view(node: SocketAddr, options: &Options) -> Result<ClusterNodes> {
    let mut link = connect(node, options).await?;
    let reply = link.call_within(options.answer_time, ["CLUSTER", "NODES"]).await?;
    Ok(reply.as_str().context("not text")?.parse()?)
}

/// One connection's writes (a connection to each node that its slots are at).
#[derive(Debug)]
struct Writer {
    number: u64,
    /// Its share of the keys.
    keys: (usize, usize),
    /// Of each write, by its number.
    outcomes: Vec<Outcome>,
    latencies_us: Vec<u32>,
    last_ok: Option<Instant>,
    longest_gap: Duration,
    map: Map,
    links: HashMap<SocketAddr, Connection>,
}

/// A write that has no outcome yet.
#[derive(Clone, Debug)]
struct Pending {
    number: usize,
    key: usize,
    /// Where an ASK sent it.
    ask: Option<SocketAddr>,
}

/// Why writes go round again.
#[derive(Default)]
struct Again {
    writes: Vec<Pending>,
    /// The map is old.
    refresh: bool,
    /// The server asked for patience.
    wait: bool,
}

impl Writer {
    fn id(&self, number: usize) -> u64 {
        self.number << 40 | number as u64
    }

    async fn run(mut self, shared: Arc<Shared>) -> Self {
        let options = &shared.options;
        let batch_time = options.writes_per_s_max.map(|rate| {
            let batches =
                f64::from(rate) / options.pipeline as f64 / f64::from(options.connections);
            Duration::from_secs_f64(1.0 / batches)
        });
        let mut due = Instant::now();
        while !shared.stop.load(Ordering::Relaxed) {
            if let Some(batch_time) = batch_time {
                sleep_until(due).await;
                // The clock ticks in milliseconds: what a sleep was too long is made up for, but not
                // what the cluster was too slow.
                let late_max = Duration::from_millis(5);
                due = (due + batch_time).max(Instant::now().checked_sub(late_max).unwrap_or(due));
            }
            let started = Instant::now();
            let first = self.outcomes.len();
            self.outcomes.resize(first + options.pipeline, Outcome::Failed);
            let keys = self.keys.1 - self.keys.0;
            let pending = |number| Pending { number, key: self.keys.0 + number % keys, ask: None };
            let mut writes: Vec<Pending> = (first..self.outcomes.len()).map(pending).collect();
            while !writes.is_empty() {
                let again = self.round(writes, started, &shared).await;
                writes = again.writes;
                if started.elapsed() > options.retry_time {
                    break;
                }
                if again.refresh && !writes.is_empty() {
                    self.map.refresh(&shared).await;
                }
                if again.wait {
                    sleep(Duration::from_millis(2)).await;
                }
            }
        }
        self
    }

    /// Sends each write once; what a server refused for now is given back.
    async fn round(&mut self, writes: Vec<Pending>, started: Instant, shared: &Shared) -> Again {
        let mut again = Again::default();
        let mut groups: BTreeMap<SocketAddr, Vec<Pending>> = BTreeMap::new();
        for write in writes {
            match write.ask.or_else(|| self.map.owner(shared.keys[write.key].0)) {
                Some(node) => groups.entry(node).or_default().push(write),
                None => again.writes.push(write),
            }
        }
        again.wait = !again.writes.is_empty();
        again.refresh = again.wait;
        let mut sent = Vec::new();
        for (node, writes) in groups {
            let mut pipeline = Commands::new();
            for write in &writes {
                if write.ask.is_some() {
                    pipeline.push(["ASKING"]);
                }
                let id = self.id(write.number).to_string();
                pipeline.push(["RPUSH", &shared.keys[write.key].1, &id]);
            }
            let Some(link) = self.link(node, shared).await else {
                (again.refresh, again.wait) = (true, true);
                again.writes.extend(writes.into_iter().map(|write| Pending { ask: None, ..write }));
                continue;
            };
            // Whether a failed send left anything behind, its missing answers will tell.
            let _ = link.send(&pipeline, shared.options.answer_time).await;
            sent.push((node, writes));
        }
        for (node, writes) in sent {
            for write in writes {
                let answer = self.answer(node, write.ask.is_some(), shared).await;
                match answer {
                    None => {
                        self.outcomes[write.number] = Outcome::Unknown;
                        again.refresh = true;
                    }
                    Some(answer) => self.settle(answer, write, node, started, shared, &mut again),
                }
            }
        }
        again
    }

    async fn link(&mut self, node: SocketAddr, shared: &Shared) -> Option<&mut Connection> {
        match self.links.entry(node) {
            Entry::Occupied(known) => Some(known.into_mut()),
            Entry::Vacant(place) => Some(place.insert(connect(node, &shared.options).await.ok()?)),
        }
    }

    /// The next answer of a node; None where the connection is lost, which it stays.
    async fn answer(&mut self, node: SocketAddr, asking: bool, shared: &Shared) -> Option<Value> {
        let link = self.links.get_mut(&node)?;
        let mut answer = link.receive(shared.options.answer_time).await;
        if asking && answer.is_ok() {
            answer = link.receive(shared.options.answer_time).await;
        }
        if let Ok(answer) = answer {
            return Some(answer);
        }
        self.links.remove(&node);
        None
    }

    fn settle(
        &mut self,
        answer: Value,
        mut write: Pending,
        node: SocketAddr,
        started: Instant,
        shared: &Shared,
        again: &mut Again,
    ) {
        let Err(error) = answer.into_result() else {
            let now = Instant::now();
            self.outcomes[write.number] = Outcome::Ok;
            self.latencies_us.push((now - started).as_micros() as u32);
            self.note_gap(now);
            self.last_ok = Some(now);
            shared.note_ok(now);
            return;
        };
        let place = |host: &str, port| {
            let ip = host.parse().unwrap_or(node.ip());
            SocketAddr::new(ip, port)
        };
        write.ask = None;
        match error.redirect() {
            Some(Redirect::Moved { slot, host, port }) => self.map.set(slot, place(&host, port)),
            Some(Redirect::Ask { host, port, .. }) => write.ask = Some(place(&host, port)),
            None => match error.code.as_str() {
                "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "BUSY" | "MASTERDOWN" => again.wait = true,
                "READONLY" => (again.refresh, again.wait) = (true, true),
                _ => return,
            },
        }
        again.writes.push(write);
    }

    fn note_gap(&mut self, now: Instant) {
        if let Some(last) = self.last_ok {
            self.longest_gap = self.longest_gap.max(now.saturating_duration_since(last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spread_evenly() {
        let keys = keys(16);
        let slots: Vec<u16> = keys.iter().map(|(slot, _)| slot.number()).collect();
        assert_eq!(slots, (0..16).map(|index| index * 1_024).collect::<Vec<u16>>());
        assert!(keys.iter().all(|(slot, key)| key_slot(key.as_bytes()) == *slot));
    }

    #[test]
    fn latencies_by_share() {
        let mut samples: Vec<u32> = (1..=1_000).rev().map(|ms| ms * 1_000).collect();
        let latency = Latency::of(&mut samples);
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.max_ms), (501.0, 991.0, 1_000.0));
        assert_eq!(Latency::of(&mut []), Latency::default());
    }
}
