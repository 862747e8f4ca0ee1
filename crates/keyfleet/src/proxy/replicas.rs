//! Which replicas may serve reads: how far behind each of them is, found out once a second.
//!
//! A primary's replication offset is noted with the time. A replica that has come to an offset has all
//! that was written before it was noted, so the age of what a replica shows is known however the links
//! are, also when its primary is gone. Who is older than may be, is being filled anew or doesn't answer
//! is left out; while slots of a shard move, all its replicas are: they say of keys that went that there
//! are none.
//!
//! Choosing is pure; [`Watch`] asks.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use protocol::ClusterNodes;
use proxy::{
    driver::{Connector, Running},
    engine::Profile,
    route::{Address, Readers},
    topology::{Answer, exchange, read_replicas},
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long a node may take to answer.
const ASK: Duration = Duration::from_secs(1);
/// So many nodes are asked at once.
const AT_ONCE: usize = 16;
/// Offsets that are remembered of a primary.
const OFFSETS_MAX: usize = 600;

/// Where reads go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ReadFrom {
    /// The primary, which has everything
    #[default]
    Primary,
    /// Replicas; the primary where none may
    Replica,
    /// Who is in the proxy's zone, the primary or replicas; the primary where nobody is
    SameZone,
    /// Who answers soonest, the primary or replicas
    Nearest,
}

/// Where reads go, and how old what they find may be.
#[derive(Clone, Debug)]
pub struct Reading {
    pub from: ReadFrom,
    pub age_max: Duration,
    /// Bytes that a replica may be behind.
    pub behind_max: Option<u64>,
    /// Where the proxy is.
    pub zone: Option<String>,
    /// Where others are, by address or by IP alone.
    pub zones: BTreeMap<String, String>,
}

impl Default for Reading {
    fn default() -> Self {
        let age_max = Duration::from_secs(10);
        Self {
            from: ReadFrom::default(),
            age_max,
            behind_max: None,
            zone: None,
            zones: BTreeMap::new(),
        }
    }
}

impl Reading {
    fn is_near(&self, address: &Address) -> bool {
        let host = match address {
            Address::Tcp(address) => address.ip().to_string(),
            Address::Name { host, .. } => host.clone(),
            Address::Unix(_) => return false,
        };
        let zone = self.zones.get(&address.to_string()).or_else(|| self.zones.get(&host));
        zone.is_some() && zone == self.zone.as_ref()
    }
}

/// A primary, as it was found.
#[derive(Debug, Default)]
struct Primary {
    /// When it had come to which offset, oldest first.
    offsets: VecDeque<(Instant, u64)>,
    /// Slots are on their way to it or away.
    moving: bool,
}

/// A replica, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Replica {
    offset: u64,
    /// It has what its primary had at some time, and nothing of other times.
    whole: bool,
}

impl Primary {
    fn note(&mut self, now: Instant, offset: u64) {
        // Another history: nothing is known of its replicas.
        if self.offsets.back().is_some_and(|(_, before)| *before > offset) {
            self.offsets.clear();
        }
        // An offset that stays is the same data, noted later.
        let same = self.offsets.iter().rev().take_while(|(_, before)| *before == offset).count();
        if same > 1 {
            self.offsets.pop_back();
        }
        self.offsets.push_back((now, offset));
        if self.offsets.len() > OFFSETS_MAX {
            self.offsets.pop_front();
        }
    }

    /// How old what a replica shows can be; None: it is not known.
    fn age(&self, replica: &Replica, now: Instant) -> Option<Duration> {
        let noted = self.offsets.iter().rev().find(|(_, offset)| *offset <= replica.offset);
        noted.map(|(at, _)| now.saturating_duration_since(*at))
    }

    fn allows(&self, replica: &Replica, reading: &Reading, now: Instant) -> bool {
        let behind = self.offsets.back().map(|(_, offset)| offset.saturating_sub(replica.offset));
        let far = reading.behind_max.is_some_and(|max| behind.is_none_or(|behind| behind > max));
        let age = self.age(replica, now);
        replica.whole && !self.moving && !far && age.is_some_and(|age| age <= reading.age_max)
    }
}

/// What is known of the cluster.
#[derive(Debug, Default)]
struct View {
    primaries: BTreeMap<Address, Primary>,
    /// With their primaries; None: it doesn't answer.
    replicas: BTreeMap<Address, (Address, Option<Replica>)>,
    /// How long answers take, of late.
    took: BTreeMap<Address, Duration>,
}

impl View {
    /// Who reads for whom.
    fn readers(&self, reading: &Reading, now: Instant) -> Readers {
        let mut readers = Readers::default();
        for (address, primary) in &self.primaries {
            let own = self.replicas.iter().filter(|(_, (of, _))| of == address);
            let may = own.filter(|(_, (_, found))| {
                found.is_some_and(|found| primary.allows(&found, reading, now))
            });
            let may = may.map(|(replica, _)| replica);
            let chosen: Vec<&Address> = match reading.from {
                ReadFrom::Primary => Vec::new(),
                ReadFrom::Replica => may.collect(),
                ReadFrom::SameZone => {
                    may.chain([address]).filter(|each| reading.is_near(each)).collect()
                }
                ReadFrom::Nearest => self.nearest(may.chain([address]).collect()),
            };
            if chosen.iter().any(|each| *each != address) {
                let shared = |address: &Address| Arc::new(address.clone());
                readers.of.push((shared(address), chosen.into_iter().map(shared).collect()));
            }
        }
        let gone = self.replicas.iter().filter(|(_, (_, found))| found.is_none());
        readers.gone = gone.map(|(address, _)| Arc::new(address.clone())).collect();
        readers
    }

    /// Those whose answers take as long as the soonest one's, or hardly longer.
    fn nearest<'a>(&self, among: Vec<&'a Address>) -> Vec<&'a Address> {
        let took = |address: &&Address| self.took.get(*address).copied();
        let Some(best) = among.iter().filter_map(took).min() else { return Vec::new() };
        let most = best + best / 5 + Duration::from_micros(200);
        among.into_iter().filter(|each| took(each).is_some_and(|took| took <= most)).collect()
    }

    fn note_time(&mut self, address: &Address, took: Duration) {
        let known = self.took.entry(address.clone()).or_insert(took);
        *known = (*known * 7 + took) / 8;
    }
}

/// One field of INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn read_primary(info: &str) -> Option<u64> {
    let is_primary = field(info, "role") == Some("master");
    field(info, "master_repl_offset")?.parse().ok().filter(|_| is_primary)
}

fn read_replica(info: &str) -> Option<Replica> {
    let flag = |name| field(info, name).is_none_or(|value| value == "0");
    let whole = flag("loading") && flag("master_sync_in_progress");
    let is_replica = field(info, "role") == Some("slave");
    let offset = field(info, "slave_repl_offset")?.parse().ok()?;
    is_replica.then_some(Replica { offset, whole })
}

/// Looks once a second and tells the loops.
pub(super) struct Watch {
    pub loops: Arc<Vec<Running>>,
    pub seeds: Vec<Address>,
    pub profile: Profile,
    pub tls: Option<Arc<Connector>>,
    pub reading: Reading,
}

impl Watch {
    /// Until the other end is dropped.
    pub fn run(self, end: &Receiver<()>) {
        let mut view = View::default();
        let mut told = Readers::default();
        loop {
            self.look(&mut view);
            let readers = view.readers(&self.reading, Instant::now());
            if readers != told {
                tracing::debug!(?readers, "who serves reads");
                for each in self.loops.iter() {
                    each.set_readers(0, readers.clone());
                }
                told = readers;
            }
            match end.recv_timeout(LOOK) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn look(&self, view: &mut View) {
        let primaries: Vec<Address> = view.primaries.keys().cloned().collect();
        let known = primaries.iter().chain(view.replicas.keys()).chain(&self.seeds);
        let found = known.into_iter().find_map(|node| {
            let answers = self.ask(node, &[&["CLUSTER", "SLOTS"]])?;
            let slots = &answers.first()?.value;
            let topology = proxy::topology::read(slots, node)?;
            Some((topology, read_replicas(slots, node)?))
        });
        // Who doesn't know the cluster can't say who is behind.
        let Some((topology, replicas)) = found else { return };
        let addresses = topology.primaries.iter().map(|primary| Address::clone(&primary.address));
        let mut former = std::mem::take(&mut view.primaries);
        view.primaries = addresses
            .map(|address| {
                let known = former.remove(&address).unwrap_or_default();
                (address, known)
            })
            .collect();
        // Primaries first: what they say then, a replica has by the time it is asked.
        let primaries: Vec<Address> = view.primaries.keys().cloned().collect();
        let asked: [&[&str]; 2] = [&["INFO", "replication"], &["CLUSTER", "NODES"]];
        for (address, answers) in self.ask_each(&primaries, &asked) {
            let Some([info, nodes]) = answers.as_deref() else { continue };
            if let Some(offset) = info.value.as_str().and_then(read_primary)
                && let Some(primary) = view.primaries.get_mut(&address)
            {
                let nodes = nodes.value.as_str().and_then(|text| text.parse().ok());
                primary.moving = nodes.is_none_or(|nodes: ClusterNodes| !nodes.open.is_empty());
                primary.note(Instant::now(), offset);
            }
            view.note_time(&address, info.took);
        }
        let addresses: Vec<Address> = replicas.iter().map(|(address, _)| address.clone()).collect();
        let mut answers: BTreeMap<Address, Option<Vec<Answer>>> =
            self.ask_each(&addresses, &[&["INFO"]]).into_iter().collect();
        // Of one that the cluster calls failed it says nothing any more; it may still be waited for.
        let former = std::mem::take(&mut view.replicas).into_iter();
        let lost = former.filter(|(address, (_, found))| {
            found.is_some() && !view.primaries.contains_key(address)
        });
        view.replicas = lost.map(|(address, (of, _))| (address, (of, None))).collect();
        for (address, of) in replicas {
            let answer = answers.remove(&address).flatten().unwrap_or_default();
            let info = answer.first().and_then(|answer| answer.value.as_str());
            let found = info.and_then(read_replica);
            if let Some(answer) = answer.first() {
                view.note_time(&address, answer.took);
            }
            view.replicas.insert(address, (of, found));
        }
    }

    fn ask(&self, node: &Address, requests: &[&[&str]]) -> Option<Vec<Answer>> {
        exchange(node, &self.profile, self.tls.as_deref(), ASK, requests).ok()
    }

    /// Asks several nodes at once; None for who doesn't answer.
    fn ask_each(
        &self,
        nodes: &[Address],
        requests: &[&[&str]],
    ) -> Vec<(Address, Option<Vec<Answer>>)> {
        let mut answers = Vec::new();
        for some in nodes.chunks(AT_ONCE) {
            thread::scope(|scope| {
                let asked = some.iter().map(|node| {
                    let asked = scope.spawn(move || self.ask(node, requests));
                    (node, asked)
                });
                let asked: Vec<_> = asked.collect();
                for (node, asked) in asked {
                    answers.push((node.clone(), asked.join().ok().flatten()));
                }
            });
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u16) -> Address {
        Address::new(&format!("10.0.0.{number}"), 7000)
    }

    #[test]
    fn ages() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut primary = Primary::default();
        let age = |primary: &Primary, offset, now| {
            let replica = Replica { offset, whole: true };
            primary.age(&replica, at(now)).map(|age| age.as_secs())
        };
        assert_eq!(age(&primary, 5, 0), None);
        for (second, offset) in [(0, 100), (1, 200), (2, 200), (3, 200), (4, 300)] {
            primary.note(at(second), offset);
        }
        assert_eq!(age(&primary, 99, 4), None);
        assert_eq!(age(&primary, 100, 4), Some(4));
        // All that was written until second 3.
        assert_eq!(age(&primary, 250, 4), Some(1));
        assert_eq!(age(&primary, 300, 4), Some(0));
        // Nobody says what was written since.
        assert_eq!(age(&primary, 300, 9), Some(5));
        primary.note(at(5), 50);
        assert_eq!((age(&primary, 60, 5), primary.offsets.len()), (Some(0), 1));
    }

    #[test]
    fn who_reads() {
        let now = Instant::now();
        let check = |reading: &Reading, change: &dyn Fn(&mut View), expected: &[u16]| {
            let mut view = View::default();
            let mut primary = Primary::default();
            primary.note(now, 1_000);
            view.primaries.insert(address(1), primary);
            for number in [2, 3] {
                let found = Some(Replica { offset: 1_000, whole: true });
                view.replicas.insert(address(number), (address(1), found));
            }
            for number in 1..4 {
                view.took.insert(address(number), Duration::from_millis(u64::from(number)));
            }
            change(&mut view);
            let readers = view.readers(reading, now);
            let found = readers.of.first().map(|(_, readers)| readers.clone()).unwrap_or_default();
            let expected: Vec<_> = expected.iter().map(|each| Arc::new(address(*each))).collect();
            assert_eq!(found, expected, "{reading:?}");
        };
        let set = |view: &mut View, number, replica| {
            view.replicas.get_mut(&address(number)).unwrap().1 = replica;
        };
        let from = |from| Reading { from, ..Reading::default() };
        let same = |_: &mut View| {};
        check(&from(ReadFrom::Primary), &same, &[]);
        let replica = from(ReadFrom::Replica);
        check(&replica, &same, &[2, 3]);
        check(&replica, &|view| set(view, 2, None), &[3]);
        let syncing = |view: &mut View| set(view, 3, Some(Replica { offset: 1_000, whole: false }));
        check(&replica, &syncing, &[2]);
        let behind = |view: &mut View| set(view, 2, Some(Replica { offset: 900, whole: true }));
        check(&replica, &behind, &[3]);
        let moving = |view: &mut View| {
            view.primaries.get_mut(&address(1)).unwrap().moving = true;
        };
        check(&replica, &moving, &[]);
        let older = |view: &mut View| {
            let primary = view.primaries.get_mut(&address(1)).unwrap();
            primary.offsets.push_front((Instant::now(), 900));
            behind(view);
        };
        check(&replica, &older, &[2, 3]);
        check(&Reading { behind_max: Some(99), ..replica.clone() }, &older, &[3]);
        check(&Reading { behind_max: Some(100), ..replica }, &older, &[2, 3]);
        let zones = [("10.0.0.2", "a"), ("10.0.0.3:7000", "b"), ("10.0.0.1", "b")];
        let zones: BTreeMap<_, _> =
            zones.iter().map(|(host, zone)| (host.to_string(), zone.to_string())).collect();
        let near = |zone: &str| Reading {
            zone: Some(zone.to_owned()),
            zones: zones.clone(),
            ..from(ReadFrom::SameZone)
        };
        check(&near("a"), &same, &[2]);
        check(&near("b"), &same, &[3, 1]);
        check(&near("c"), &same, &[]);
        check(&from(ReadFrom::SameZone), &same, &[]);
        // The primary is the nearest.
        check(&from(ReadFrom::Nearest), &same, &[]);
        let near = |view: &mut View| {
            view.took.insert(address(2), Duration::from_micros(900));
        };
        check(&from(ReadFrom::Nearest), &near, &[2, 1]);
    }

    #[test]
    fn what_servers_say() {
        let info = "role:slave\r\nmaster_link_status:up\r\nslave_repl_offset:12\r\n";
        let check = |more: &str, whole| {
            let found = read_replica(&format!("{info}{more}"));
            assert_eq!(found, Some(Replica { offset: 12, whole }), "{more}");
        };
        check("", true);
        check("loading:0\r\nmaster_sync_in_progress:0\r\n", true);
        check("loading:1\r\n", false);
        check("master_sync_in_progress:1\r\n", false);
        assert_eq!(read_replica("role:master\r\nslave_repl_offset:1\r\n"), None);
        assert_eq!(read_primary("role:master\r\nmaster_repl_offset:7\r\n"), Some(7));
        assert_eq!(read_primary(info), None);
    }
}
