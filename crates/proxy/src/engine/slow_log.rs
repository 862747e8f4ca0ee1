//! Requests that took long, and where the time went.
//!
//! What is measured costs nothing: the time of a request and of its reply are known anyway, to the
//! turn. A request that was dealt out is noted by its parts, each as the server got it. Only what is
//! slow takes the lock.
//!
//! Deliberately absent: commands that wait for data, what a transaction queues (EXEC is noted, with
//! its name only), what the proxy answers itself, and rings, whose requests are not kept until they
//! are answered.
//! Source of the replies' shape: SLOWLOG in the engines' documentation.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use protocol::{Value, commands::Arguments as _};

use super::{
    ConnId, Core, Engine, Micros,
    client::Client,
    dispatch::Request,
    request,
    server::{Kind, Pending, Role},
};
use crate::route::Address;

/// So many of a request's words are kept, the last one being how many there are beside them.
const WORDS_MAX: usize = 32;
/// So many bytes of each.
const WORD_BYTES_MAX: usize = 128;
/// How many are shown to who doesn't say.
const SHOWN: usize = 10;

/// The slowest requests of late, of all engines that share it.
#[derive(Debug)]
pub struct SlowLog {
    slower_than: Micros,
    entries_max: usize,
    /// When the engines' time began, in µs of Unix time.
    began: u64,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    /// Newest first.
    entries: VecDeque<Arc<SlowRequest>>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlowRequest {
    /// Counted up for ever.
    pub number: u64,
    /// When it was asked, in seconds of Unix time.
    pub at_seconds: u64,
    /// From when the proxy took it up until its reply was there.
    pub total: Micros,
    /// From when it was sent to the server that answered.
    pub at_server: Micros,
    pub server: Arc<Address>,
    /// As the server got them, without what is beyond 32 words and 128 bytes each.
    pub words: Vec<Vec<u8>>,
    /// What CLIENT ID and CLIENT GETNAME say.
    pub client: u64,
    pub client_address: Option<SocketAddr>,
    pub client_name: Vec<u8>,
    /// None: who never said who he is.
    pub user: Option<Box<[u8]>>,
    pool: u16,
}

impl SlowLog {
    /// Of requests that take so long or longer, the last `entries_max`. `began`: when the engines'
    /// time begins, in µs of Unix time.
    pub fn new(slower_than: Micros, entries_max: usize, began: u64) -> Self {
        Self { slower_than, entries_max, began, ring: Mutex::default() }
    }

    pub fn slower_than(&self) -> Micros {
        self.slower_than
    }

    /// Newest first.
    pub fn entries(&self) -> Vec<Arc<SlowRequest>> {
        self.ring().entries.iter().cloned().collect()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Who panicked with it left it whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, mut entry: SlowRequest) {
        let mut ring = self.ring();
        entry.number = ring.next;
        ring.next += 1;
        ring.entries.push_front(Arc::new(entry));
        ring.entries.truncate(self.entries_max);
    }
}

impl SlowRequest {
    /// Was it asked by this client's user?
    fn is_of(&self, client: &Client) -> bool {
        self.pool == client.pool && self.user == client.user
    }

    fn value(&self) -> Value {
        Value::Array(vec![
            Value::Integer(self.number.cast_signed()),
            Value::Integer(self.at_seconds.cast_signed()),
            Value::Integer(self.total.cast_signed()),
            Value::Array(self.words.iter().cloned().map(Value::Bulk).collect()),
            Value::Bulk(
                self.client_address.map_or_else(String::new, |it| it.to_string()).into_bytes(),
            ),
            Value::Bulk(self.client_name.clone()),
        ])
    }
}

impl Core {
    /// SLOWLOG GET, LEN and RESET: each user sees his own requests, and forgets those.
    pub(super) fn slow_log(&self, client: &Client, request: &Request<'_>, name: &str) -> Value {
        let Some(log) = &self.limits.slow_log else {
            return if name == "slowlog|reset" { ok() } else { nothing(name) };
        };
        match name {
            "slowlog|get" => {
                let count = match request.get(2).map(|word| std::str::from_utf8(word).ok()) {
                    None => SHOWN,
                    Some(word) => match word.and_then(|word| word.parse::<i64>().ok()) {
                        Some(-1) => usize::MAX,
                        Some(count @ 0..) => usize::try_from(count).unwrap_or(usize::MAX),
                        _ => {
                            let text = "ERR count should be greater than or equal to -1";
                            return Value::Error(text.to_owned());
                        }
                    },
                };
                let ring = log.ring();
                let own = ring.entries.iter().filter(|entry| entry.is_of(client));
                Value::Array(own.take(count).map(|entry| entry.value()).collect())
            }
            "slowlog|len" => {
                let ring = log.ring();
                let count = ring.entries.iter().filter(|entry| entry.is_of(client)).count();
                Value::Integer(i64::try_from(count).unwrap_or(i64::MAX))
            }
            _ => {
                log.ring().entries.retain(|entry| !entry.is_of(client));
                ok()
            }
        }
    }
}

fn ok() -> Value {
    Value::Simple("OK".to_owned())
}

fn nothing(name: &str) -> Value {
    if name == "slowlog|len" { Value::Integer(0) } else { Value::Array(Vec::new()) }
}

impl Engine {
    /// A request took long; its reply is here and its words, if they are kept, are still.
    #[cold]
    pub(super) fn note_slow(&mut self, id: ConnId, pending: &Pending) {
        let Some(log) = &self.core.limits.slow_log else { return };
        let Some(conn) = self.core.conns.get(id) else { return };
        let Some(server) = self.core.servers.get(usize::from(conn.server)) else { return };
        let Some(client) = self.clients.get(pending.client) else { return };
        let streamed = client.work.as_deref().and_then(|work| work.streamed.as_deref());
        let words = match pending.kind {
            Kind::Request if conn.keeps => shortened(conn.output.kept(0, pending.length)),
            Kind::Request => streamed.map(shortened).unwrap_or_default(),
            Kind::Session(Role::End) => vec![b"EXEC".to_vec()],
            _ => return,
        };
        let total = self.core.now.saturating_sub(pending.at);
        let waited = Micros::from(pending.waited_ms) * 1000;
        if let Some(pool) = self.core.pools.get(usize::from(client.pool)) {
            pool.counters.slow.add(1);
        }
        log.push(SlowRequest {
            number: 0,
            at_seconds: (log.began + pending.at) / 1_000_000,
            total,
            at_server: total.saturating_sub(waited),
            server: Arc::clone(&server.address),
            words,
            client: client.number,
            client_address: client.peer,
            client_name: client.name.as_deref().unwrap_or_default().to_vec(),
            user: client.user.clone(),
            pool: client.pool,
        });
    }
}

/// A request's words, or those of its beginning, as far as they are kept.
/// Source: the limits of the engines' own log (`SLOWLOG_ENTRY_MAX_ARGC`, `_MAX_STRING`).
pub(super) fn shortened(request: &[u8]) -> Vec<Vec<u8>> {
    let all: Vec<&[u8]> = request::words(request).collect();
    let shown = if all.len() > WORDS_MAX { WORDS_MAX - 1 } else { all.len() };
    let mut words: Vec<Vec<u8>> = all.iter().take(shown).map(|word| short(word)).collect();
    if all.len() > shown {
        words.push(format!("... ({} more arguments)", all.len() - shown).into_bytes());
    }
    words
}

fn short(word: &[u8]) -> Vec<u8> {
    let shown = word.get(..WORD_BYTES_MAX).unwrap_or(word);
    let mut short = shown.to_vec();
    if word.len() > shown.len() {
        let more = format!("... ({} more bytes)", word.len() - shown.len());
        short.extend_from_slice(more.as_bytes());
    }
    short
}

#[cfg(test)]
mod tests {
    use protocol::resp::encode_command;

    use super::*;

    #[test]
    fn words_are_shortened() {
        let check = |words: &[&str], expected: &[&str]| {
            let mut request = Vec::new();
            encode_command(words, &mut request);
            let found = shortened(&request);
            let found: Vec<_> = found.iter().map(|word| String::from_utf8_lossy(word)).collect();
            assert_eq!(found, expected);
        };
        check(&["get", "a"], &["get", "a"]);
        let (most, more) = ("v".repeat(128), "v".repeat(130));
        check(&["set", "a", &most], &["set", "a", &most]);
        check(&["set", "a", &more], &["set", "a", &format!("{most}... (2 more bytes)")]);
        let all = ["k"; 32];
        check(&all, &all);
        let mut expected = vec!["k"; 31];
        expected.push("... (9 more arguments)");
        check(&["k"; 40], &expected);
    }
}
