//! Commands of one slot that are done together, with the note that they are.

use protocol::{SLOT_COUNT, Slot, Value, key_slot, resp::ServerError};

use crate::{admin_client::Commands, mover::load::passes};

/// What the notes' keys begin with.
const PREFIX: &str = "keyfleet:replay:";

/// The note of how far a slot is.
pub struct Marker<'a> {
    pub key: &'a str,
    /// What makes the same restore.
    pub run: &'a str,
}

impl Marker<'_> {
    fn value(&self, at: u64) -> String {
        format!("{}:{at}", self.run)
    }

    /// The offset that a note says; None where there is none of this restore.
    pub fn read(&self, reply: &Value) -> Option<u64> {
        let (run, at) = reply.as_str()?.rsplit_once(':')?;
        at.parse().ok().filter(|_| run == self.run)
    }
}

/// For each slot a key that is its.
pub fn markers() -> Vec<String> {
    let mut markers = vec![String::new(); usize::from(SLOT_COUNT)];
    let mut missing = markers.len();
    for number in 0_u32.. {
        if missing == 0 {
            break;
        }
        let key = format!("{PREFIX}{{{number}}}");
        let slot = usize::from(key_slot(key.as_bytes()).number());
        if let Some(place) = markers.get_mut(slot).filter(|place| place.is_empty()) {
            *place = key;
            missing -= 1;
        }
    }
    markers
}

/// See the module.
#[derive(Debug)]
pub struct Unit {
    pub slot: Slot,
    /// The last command's offset.
    pub at: u64,
    /// Each with its key.
    commands: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
    /// The database that the last command is for, where that matters.
    db: Option<u64>,
}

/// What became of a unit.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// But for these keys' commands, which have no effect.
    Done(Vec<(Vec<u8>, ServerError)>),
    /// Nothing was done, for this one is none that the server takes.
    Without(usize, ServerError),
    /// Nothing was done: to be sent again.
    Later(ServerError),
}

impl Unit {
    pub fn new(slot: Slot) -> Self {
        Self { slot, at: 0, commands: Vec::new(), db: None }
    }

    pub fn len(&self) -> usize {
        self.commands.len()
    }

    /// Adds a command; how many bytes it is.
    pub fn push(&mut self, offset: u64, db: Option<u64>, words: &[impl AsRef<[u8]>]) -> usize {
        if db != self.db {
            self.db = db;
            let number = db.unwrap_or_default().to_string().into_bytes();
            self.commands.push((Vec::new(), vec![b"SELECT".to_vec(), number]));
        }
        self.at = offset;
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_ref().to_vec()).collect();
        let bytes = words.iter().map(Vec::len).sum();
        let key = words.get(1).cloned().unwrap_or_default();
        self.commands.push((key, words));
        bytes
    }

    /// Takes a command out; its key.
    pub fn remove(&mut self, at: usize) -> Vec<u8> {
        if at < self.commands.len() { self.commands.remove(at).0 } else { Vec::new() }
    }

    /// The transaction.
    pub fn write(&self, marker: &Marker<'_>, out: &mut Commands) {
        out.push(["MULTI"]);
        for (_, words) in &self.commands {
            out.push(words);
        }
        if self.db.is_some() {
            out.push(["SELECT", "0"]);
        }
        out.push(["SET", marker.key, &marker.value(self.at)]);
        out.push(["EXEC"]);
    }

    /// What the answers say, of which it takes its own.
    pub fn fate(&self, replies: &mut impl Iterator<Item = Value>) -> Fate {
        let closing = if self.db.is_some() { 2 } else { 1 };
        let queued: Vec<Value> = replies.take(1 + self.len() + closing).collect();
        let result = replies.next().unwrap_or(Value::Null);
        let mut later = None;
        for (at, reply) in queued.iter().enumerate() {
            let Value::Error(text) = reply else { continue };
            let error = ServerError::parse(text);
            let known = at > 0 && at <= self.len();
            if known && error.redirect().is_none() && !passes(&error.code) {
                return Fate::Without(at - 1, error);
            }
            // An ASK too: once the slot has moved, all of it is done there.
            later.get_or_insert(error);
        }
        if let Some(error) = later {
            return Fate::Later(error);
        }
        match result {
            Value::Error(text) => Fate::Later(ServerError::parse(&text)),
            result => {
                let results = result.as_array().unwrap_or_default();
                let refused = self.commands.iter().zip(results).filter_map(|((key, _), reply)| {
                    let Value::Error(text) = reply else { return None };
                    Some((key.clone(), ServerError::parse(text)))
                });
                Fate::Done(refused.collect())
            }
        }
    }
}

/// A key that is a note.
pub fn is_marker(key: &[u8]) -> bool {
    key.starts_with(PREFIX.as_bytes())
}
