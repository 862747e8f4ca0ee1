//! One connection of a pretend server, and what the server makes of requests there.

use std::collections::BTreeSet;

use protocol::key_slot;

use super::{World, bulk, value};
use crate::pretend::{Rng, ServerEnd, address};

pub struct Server {
    pub end: ServerEnd,
    number: u16,
    resp3: bool,
    /// Requests after MULTI.
    queue: Option<Vec<Vec<String>>>,
    aborted: bool,
    watches: Option<String>,
    /// The key that it waits for.
    blocked: Option<String>,
    channels: BTreeSet<String>,
    /// It was used for a session.
    private: bool,
}

/// What servers know of each other.
pub struct Cluster<'a> {
    owners: &'a [u16],
    /// The first keys of transactions that were executed.
    executed: &'a mut BTreeSet<String>,
    rng: &'a mut Rng,
}

impl Cluster<'_> {
    fn slot(key: &str) -> u16 {
        key_slot(key.as_bytes()).number()
    }

    fn owner(&self, key: &str) -> u16 {
        self.owners[usize::from(Self::slot(key))]
    }

    fn moved(&self, key: &str) -> String {
        format!("-MOVED {} {}\r\n", Self::slot(key), address(self.owner(key)))
    }
}

impl Server {
    pub fn new(end: ServerEnd, number: u16) -> Self {
        Self {
            end,
            number,
            resp3: false,
            queue: None,
            aborted: false,
            watches: None,
            blocked: None,
            channels: BTreeSet::new(),
            private: false,
        }
    }

    /// An array of three, or a message.
    fn three(&self, verb: &str, name: &str, last: &str) -> String {
        let sign = if self.resp3 { '>' } else { '*' };
        format!("{sign}3\r\n{}{}{last}", bulk(verb), bulk(name))
    }

    fn say(&mut self, text: &str) {
        self.end.outgoing.extend_from_slice(text.as_bytes());
    }

    fn answer(&mut self, words: &[String], cluster: &mut Cluster<'_>) -> String {
        let verb = words[0].to_ascii_lowercase();
        let key = words.get(1).cloned().unwrap_or_default();
        let elsewhere = cluster.owner(&key) != self.number;
        match verb.as_str() {
            "hello" => {
                self.resp3 = true;
                "%0\r\n".to_owned()
            }
            "multi" => {
                assert!(self.queue.is_none() && self.channels.is_empty());
                self.private = true;
                (self.queue, self.aborted) = (Some(Vec::new()), false);
                "+OK\r\n".to_owned()
            }
            "discard" | "unwatch" => {
                assert_eq!(self.queue.is_some(), verb == "discard");
                (self.queue, self.watches) = (None, None);
                "+OK\r\n".to_owned()
            }
            "exec" => self.execute(cluster),
            "subscribe" | "ssubscribe" => {
                assert!(self.queue.is_none() && self.watches.is_none());
                self.private = true;
                if verb == "ssubscribe" && elsewhere {
                    return cluster.moved(&key);
                }
                self.channels.insert(key.clone());
                self.three(&verb, &key, ":1\r\n")
            }
            "unsubscribe" | "sunsubscribe" => {
                self.channels.remove(&key);
                self.three(&verb, &key, ":1\r\n")
            }
            "watch" => {
                let tag = key.split(':').next().unwrap().to_owned();
                assert!(self.queue.is_none() && self.channels.is_empty());
                assert!(self.watches.as_ref().is_none_or(|watches| *watches == tag));
                self.private = true;
                if elsewhere {
                    return cluster.moved(&key);
                }
                self.watches = Some(tag);
                "+OK\r\n".to_owned()
            }
            "blpop" => {
                assert!(self.queue.is_none() && self.watches.is_none());
                assert!(self.channels.is_empty());
                self.private = true;
                if elsewhere {
                    return cluster.moved(&key);
                }
                self.blocked = Some(key);
                String::new()
            }
            "get" => {
                assert!(self.channels.is_empty());
                assert!(self.queue.is_some() || !self.private, "{words:?} is not for here");
                let watches = self.watches.as_ref();
                assert!(watches.is_none_or(|tag| key.starts_with(tag.as_str())));
                if elsewhere {
                    self.aborted = true;
                    return cluster.moved(&key);
                }
                match &mut self.queue {
                    Some(queue) => {
                        queue.push(words.to_vec());
                        "+QUEUED\r\n".to_owned()
                    }
                    None => value(&key, self.resp3),
                }
            }
            other => panic!("{other}"),
        }
    }

    fn execute(&mut self, cluster: &mut Cluster<'_>) -> String {
        let queue = self.queue.take().expect("MULTI was before");
        let watches = self.watches.take();
        if self.aborted {
            return "-EXECABORT Transaction discarded\r\n".to_owned();
        }
        let gone = queue.iter().find(|request| cluster.owner(&request[1]) != self.number);
        if let Some(request) = gone {
            return cluster.moved(&request[1]);
        }
        if watches.is_some() && cluster.rng.chance(30) {
            return if self.resp3 { "_\r\n" } else { "*-1\r\n" }.to_owned();
        }
        let mut answer = format!("*{}\r\n", queue.len());
        for (part, request) in queue.iter().enumerate() {
            let (whose, number) = request[1].rsplit_once(':').unwrap();
            assert_eq!(number, part.to_string(), "the transaction is whole");
            assert!(queue[0][1].starts_with(whose), "and of one client");
            answer.push_str(&value(&request[1], self.resp3));
        }
        if let Some(request) = queue.first() {
            assert!(cluster.executed.insert(request[1].clone()), "twice: {request:?}");
        }
        answer
    }
}

impl World {
    /// A server looks at one request of a connection.
    pub fn serve(&mut self, at: usize) {
        let server = self.servers.get_mut(&at).unwrap();
        let Some(words) = server.end.request() else { return };
        assert_eq!(server.blocked, None, "nothing follows before it is answered");
        let words: Vec<String> =
            words.into_iter().map(|word| String::from_utf8(word).unwrap()).collect();
        // What is queued may be on its way yet when it was discarded already.
        let queued = server.queue.is_some();
        if let Some((tag, _)) = words.get(1).and_then(|key| key.split_once(':'))
            && !queued
        {
            let mut waits = self.servers.values().filter_map(|server| server.blocked.as_ref());
            assert!(waits.all(|waits| !waits.starts_with(tag)), "{words:?} does not wait");
        }
        let World { servers, rng, executed, owners, .. } = self;
        let server = servers.get_mut(&at).unwrap();
        let answer = server.answer(&words, &mut Cluster { owners, executed, rng });
        server.say(&answer);
    }

    /// The slot of a client's keys gets another owner.
    pub fn move_slot(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let client = self.rng.below(self.clients.len());
        let slot = key_slot(self.clients[client].tag.as_bytes()).number();
        let owner = self.rng.below(super::SERVERS.into()) as u16;
        self.owners[usize::from(slot)] = owner;
        for server in self.servers.values_mut().filter(|server| server.number != owner) {
            let gone = |key: &String| Cluster::slot(key) == slot;
            if server.blocked.take_if(|key| gone(key)).is_some() {
                server.say(&format!("-MOVED {slot} {}\r\n", address(owner)));
            }
            let lost = |name: &String| name.starts_with('s') && gone(name);
            let (gone, kept) = std::mem::take(&mut server.channels).into_iter().partition(lost);
            server.channels = kept;
            let gone: BTreeSet<String> = gone;
            for name in gone {
                let text = server.three("sunsubscribe", &name, ":0\r\n");
                server.say(&text);
            }
        }
    }

    pub fn publish(&mut self) {
        for server in self.servers.values_mut() {
            for name in server.channels.clone() {
                let verb = if name.starts_with('s') { "smessage" } else { "message" };
                let text = server.three(verb, &name, &bulk("hello"));
                server.say(&text);
            }
        }
    }

    /// What waits for data gets some.
    pub fn push(&mut self, percent: usize) {
        for server in self.servers.values_mut() {
            if server.blocked.is_some() && self.rng.chance(percent) {
                let key = server.blocked.take().unwrap();
                server.say(&format!("*2\r\n{}{}", bulk(&key), bulk("popped")));
            }
        }
    }
}
