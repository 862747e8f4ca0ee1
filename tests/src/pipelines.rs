//! Clients that pipeline requests through a proxy, without pause, and check every reply: that it
//! came, that it is the one to their request, and that it says what the requests before it make true.
//!
//! Each client has keys of its own, so it knows what they hold. After an error it knows less: a
//! write that was answered with one may have happened or not, once.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Result, anyhow};
use protocol::Value;
use sim::rng::Rng;

use crate::differential::Wire;

/// Requests that are sent in one go.
const BATCH: usize = 32;
/// Of each kind, per client; they are spread over the slots.
const KEYS: usize = 60;
/// Writes that are remembered, per key.
const REMEMBERED: usize = 1_000;
const WRONG_MAX: usize = 20;

/// Running clients.
pub struct Pipelines {
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Result<Seen>>>,
}

/// What clients saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub replies: u64,
    /// Error replies, by text.
    pub errors: BTreeMap<String, u64>,
    /// Replies that cannot be right.
    pub wrong: Vec<String>,
    /// Reads that saw what their client wrote only after them, in the same go.
    pub early: Vec<String>,
    /// Acknowledged writes that a later reply shows undone: when the first of them was
    /// acknowledged, and what was seen.
    pub undone: Vec<(Instant, String)>,
}

impl Pipelines {
    /// Starts so many clients of a proxy.
    pub fn start(proxy: SocketAddr, clients: usize, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let replies = Arc::new(AtomicU64::new(0));
        let clients = (0..clients)
            .map(|number| {
                let (stop, replies) = (Arc::clone(&stop), Arc::clone(&replies));
                thread::spawn(move || {
                    let mut client = Client::new(proxy, number, seed)?;
                    while !stop.load(Ordering::Relaxed) {
                        client.batch()?;
                        replies.fetch_add(BATCH as u64, Ordering::Relaxed);
                    }
                    Ok(client.seen)
                })
            })
            .collect();
        Self { stop, replies, clients }
    }

    /// How many replies have come.
    pub fn replies(&self) -> u64 {
        self.replies.load(Ordering::Relaxed)
    }

    /// Ends the clients; an error where one lost its connection.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for client in self.clients {
            let seen = client.join().map_err(|_| anyhow!("a client panicked"))??;
            all.replies += seen.replies;
            all.wrong.extend(seen.wrong);
            all.early.extend(seen.early);
            all.undone.extend(seen.undone);
            for (error, count) in seen.errors {
                *all.errors.entry(error).or_default() += count;
            }
        }
        Ok(all)
    }
}

/// A request whose reply is waited for.
enum Asked {
    Echo(String),
    Increment(usize),
    Set(Vec<(usize, String)>),
    Get(usize),
    GetMany(Vec<usize>),
}

/// A counter.
#[derive(Default)]
struct Counter {
    /// What the last acknowledged increment made it.
    value: i64,
    /// Increments since then that may have happened.
    open: i64,
    acknowledged: VecDeque<(i64, Instant)>,
}

struct Client {
    wire: Wire,
    name: String,
    rng: Rng,
    counters: Vec<Counter>,
    /// What each text was set to, and when that was acknowledged, if it was. Empty: not there.
    texts: Vec<VecDeque<(String, Option<Instant>)>>,
    next: u64,
    /// What was the last text in the batches before this one.
    before: u64,
    seen: Seen,
}

impl Client {
    fn new(proxy: SocketAddr, number: usize, seed: u64) -> Result<Self> {
        Ok(Self {
            wire: Wire::open(proxy)?,
            name: format!("c{number}"),
            rng: Rng::new(seed.wrapping_mul(1_000).wrapping_add(number as u64)),
            counters: (0..KEYS).map(|_| Counter::default()).collect(),
            texts: vec![VecDeque::from([(String::new(), Some(Instant::now()))]); KEYS],
            next: 0,
            before: 0,
            seen: Seen::default(),
        })
    }

    fn batch(&mut self) -> Result<()> {
        self.before = self.next;
        let mut asked = Vec::with_capacity(BATCH);
        let mut commands = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            let (request, words) = self.request();
            commands.push(words.into_iter().map(String::into_bytes).collect());
            asked.push(request);
        }
        self.wire.send(&commands)?;
        for asked in asked {
            let reply = self.wire.reply()?;
            self.seen.replies += 1;
            self.check(&asked, &reply);
        }
        Ok(())
    }

    fn text_key(&self, index: usize) -> String {
        format!("{}:text:{index}", self.name)
    }

    fn text(&mut self, index: usize) -> String {
        self.next += 1;
        format!("{}={}", self.text_key(index), self.next)
    }

    fn request(&mut self) -> (Asked, Vec<String>) {
        let index = self.rng.below(KEYS);
        let some = |rng: &mut Rng| {
            let first = rng.below(KEYS - 8);
            (first..first + 2 + rng.below(6)).collect::<Vec<_>>()
        };
        match self.rng.below(8) {
            0 => {
                let text = self.text(index);
                (Asked::Echo(text.clone()), vec!["ECHO".to_owned(), text])
            }
            1 | 2 => {
                let key = format!("{}:count:{index}", self.name);
                (Asked::Increment(index), vec!["INCR".to_owned(), key])
            }
            3 => {
                let text = self.text(index);
                let words = vec!["SET".to_owned(), self.text_key(index), text.clone()];
                (Asked::Set(vec![(index, text)]), words)
            }
            4 => {
                let pairs: Vec<_> = some(&mut self.rng)
                    .into_iter()
                    .map(|index| (index, self.text(index)))
                    .collect();
                let mut words = vec!["MSET".to_owned()];
                words
                    .extend(pairs.iter().flat_map(|(at, text)| [self.text_key(*at), text.clone()]));
                (Asked::Set(pairs), words)
            }
            5 | 6 => (Asked::Get(index), vec!["GET".to_owned(), self.text_key(index)]),
            _ => {
                let many = some(&mut self.rng);
                let mut words = vec!["MGET".to_owned()];
                words.extend(many.iter().map(|index| self.text_key(*index)));
                (Asked::GetMany(many), words)
            }
        }
    }

    fn check(&mut self, asked: &Asked, reply: &Value) {
        if let Value::Error(text) = reply {
            *self.seen.errors.entry(text.clone()).or_default() += 1;
            return self.doubt(asked);
        }
        match asked {
            Asked::Echo(text) if reply.as_str() == Some(text) => {}
            Asked::Increment(index) => self.check_increment(*index, reply),
            Asked::Set(pairs) if *reply == Value::Simple("OK".to_owned()) => {
                for (index, text) in pairs {
                    self.note(*index, text, Some(Instant::now()));
                }
            }
            Asked::Get(index) => self.check_text(*index, reply),
            Asked::GetMany(many) => {
                let items = reply.as_array().unwrap_or_default();
                if items.len() != many.len() {
                    return self.wrong(format!("{} MGET {many:?}: {reply:?}", self.name));
                }
                for (index, item) in many.iter().zip(items) {
                    self.check_text(*index, item);
                }
            }
            Asked::Echo(text) => self.wrong(format!("ECHO {text}: {reply:?}")),
            Asked::Set(pairs) => self.wrong(format!("{pairs:?}: {reply:?}")),
        }
    }

    /// What a write that was answered with an error leaves open.
    fn doubt(&mut self, asked: &Asked) {
        match asked {
            Asked::Increment(index) => self.counters[*index].open += 1,
            Asked::Set(pairs) => {
                for (index, text) in pairs {
                    self.note(*index, text, None);
                }
            }
            Asked::Echo(_) | Asked::Get(_) | Asked::GetMany(_) => {}
        }
    }

    fn check_increment(&mut self, index: usize, reply: &Value) {
        let key = format!("{}:count:{index}", self.name);
        let counter = &mut self.counters[index];
        let Some(value) = reply.as_integer() else {
            return self.wrong(format!("{key}: {reply:?}"));
        };
        let (before, open) = (counter.value, counter.open);
        if value <= before {
            let lost = counter.acknowledged.iter().find(|(known, _)| *known >= value);
            if let Some((_, when)) = lost {
                self.seen.undone.push((*when, format!("{key}: {value} after {before}")));
            }
            counter.acknowledged.retain(|(known, _)| *known < value);
        }
        (counter.value, counter.open) = (value, 0);
        counter.acknowledged.push_back((value, Instant::now()));
        if counter.acknowledged.len() > REMEMBERED {
            counter.acknowledged.pop_front();
        }
        if value > before + open + 1 {
            self.wrong(format!("{key}: {value} after {before} and {open} in doubt"));
        }
    }

    fn note(&mut self, index: usize, text: &str, acknowledged: Option<Instant>) {
        let known = &mut self.texts[index];
        known.push_back((text.to_owned(), acknowledged));
        if known.len() > REMEMBERED {
            known.pop_front();
        }
    }

    /// It is what it was set to last, or something that was: in that case it was undone.
    fn check_text(&mut self, index: usize, reply: &Value) {
        let key = self.text_key(index);
        let known = &mut self.texts[index];
        let text = if *reply == Value::Null { Some("") } else { reply.as_str() };
        let at = text.and_then(|text| known.iter().rposition(|(set, _)| set == text));
        let newest: Vec<_> =
            known.iter().rev().take(5).map(|(text, when)| (text, when.is_some())).collect();
        let what = format!("{key}: {text:?} after {newest:?}");
        let Some(at) = at else {
            let number = text.and_then(|text| text.strip_prefix(&format!("{key}="))?.parse().ok());
            let early =
                number.is_some_and(|number: u64| (self.before..=self.next).contains(&number));
            return if early { self.seen.early.push(what) } else { self.wrong(what) };
        };
        if let Some(when) = known.iter().skip(at + 1).find_map(|(_, acknowledged)| *acknowledged) {
            self.seen.undone.push((when, what));
            known.truncate(at + 1);
        }
    }

    fn wrong(&mut self, what: String) {
        if self.seen.wrong.len() < WRONG_MAX {
            self.seen.wrong.push(what);
        }
    }
}
