//! Values as the commands that make them, for targets that take no payload and for values too large
//! for one.

use super::{
    Fault,
    items::{Item, StreamHead, StreamId},
};
use crate::{Engine, EngineKind, Version};

/// Makes one key by commands, none of which is larger than a bound (or than one element).
///
/// Give it all items of the value, then [`Commands::finish`]. Each command goes to the sink as its
/// arguments. The key should not exist before. What a group's consumers have pending is held in memory,
/// 32 bytes an entry, because its two halves come one after the other.
///
/// ```
/// use protocol::{Engine, EngineKind, Version};
/// use protocol::rdb::{Commands, Encoding, Items};
///
/// let target = Engine { kind: EngineKind::Redis, version: Version::new(7, 0, 0) };
/// let mut commands = Commands::new(b"key", &target);
/// let mut sent = Vec::new();
/// let mut sink = |arguments: &[&[u8]]| sent.push(arguments.join(&b' '));
/// for item in Items::new(Encoding::List, b"\x02\x01a\x01b") {
///     commands.item(item?, &mut sink)?;
/// }
/// commands.finish(Some(4_102_444_800_000), &mut sink);
/// assert_eq!(sent, [b"RPUSH key a b".to_vec(), b"PEXPIREAT key 4102444800000".to_vec()]);
/// # Ok::<(), protocol::rdb::Fault>(())
/// ```
#[derive(Debug)]
pub struct Commands {
    key: Vec<u8>,
    target: Engine,
    batch: Batch,
    /// Was anything made?
    exists: bool,
    group: Vec<u8>,
    consumer: Vec<u8>,
    /// Of the group: id, when it was delivered, how often. In the order of ids.
    pending: Vec<(StreamId, u64, u64)>,
}

/// Arguments that wait for more of their kind.
#[derive(Debug, Default)]
struct Batch {
    command: &'static str,
    bytes: Vec<u8>,
    /// Where each argument ends.
    ends: Vec<usize>,
}

impl Commands {
    /// Bytes of arguments after which a command is sent.
    const BYTES_MAX: usize = 256 << 10;
    /// Arguments after which a command is sent: an engine is busy with them for well under a
    /// millisecond.
    const ARGUMENTS_MAX: usize = 1024;

    pub fn new(key: &[u8], target: &Engine) -> Self {
        Self {
            key: key.to_vec(),
            target: *target,
            batch: Batch::default(),
            exists: false,
            group: Vec::new(),
            consumer: Vec::new(),
            pending: Vec::new(),
        }
    }

    /// The next bytes of a string that comes in parts ([`Part::Text`](super::Part)).
    pub fn text(&mut self, bytes: &[u8], sink: &mut impl FnMut(&[&[u8]])) {
        let command = if self.exists { b"APPEND".as_slice() } else { b"SET" };
        self.exists = true;
        sink(&[command, &self.key, bytes]);
    }

    /// The next item. A fault where no command makes it: items of modules and arrays.
    pub fn item(&mut self, item: Item<'_>, sink: &mut impl FnMut(&[&[u8]])) -> Result<(), Fault> {
        match item {
            Item::Text(text) => self.text(&text, sink),
            Item::Element(element) => self.add("RPUSH", &[&element], sink),
            Item::Member(member) => self.add("SADD", &[&member], sink),
            Item::Scored { member, score } => {
                self.add("ZADD", &[score_text(score).as_bytes(), &member], sink);
            }
            Item::Field { name, value, expire_at_ms } => {
                let many = self.target.kind != EngineKind::Redis || self.target.version.major >= 4;
                self.add(if many { "HSET" } else { "HMSET" }, &[&name, &value], sink);
                if let Some(at) = expire_at_ms {
                    self.field_expires(&name, at, sink);
                }
            }
            Item::StreamEntry { id, fields } => {
                let id = id.to_string();
                let mut arguments = vec![b"XADD".as_slice(), &self.key, id.as_bytes()];
                for (name, value) in &fields {
                    arguments.extend_from_slice(&[name, value]);
                }
                sink(&arguments);
                self.exists = true;
            }
            Item::StreamHead(head) => self.stream_head(&head, sink),
            Item::Group { name, last_id, entries_read } => {
                let (id, read) = (last_id.to_string(), entries_read.map(|read| read.to_string()));
                let mut arguments =
                    vec![b"XGROUP".as_slice(), b"CREATE", &self.key, &name, id.as_bytes()];
                if let Some(read) = read.as_ref().filter(|_| self.has_counters()) {
                    arguments.extend_from_slice(&[b"ENTRIESREAD", read.as_bytes()]);
                }
                sink(&arguments);
                self.group = name.into_owned();
                self.pending.clear();
            }
            Item::Pending { id, delivered_at_ms, deliveries } => {
                self.pending.push((id, delivered_at_ms, deliveries));
            }
            Item::Consumer { name, .. } => {
                self.consumer = name.into_owned();
                let command = [b"XGROUP".as_slice(), b"CREATECONSUMER", &self.key, &self.group];
                if self.target.kind != EngineKind::Redis
                    || self.target.version >= Version::new(6, 2, 0)
                {
                    sink(&[command.as_slice(), &[&self.consumer]].concat());
                }
            }
            Item::Owned(id) => self.claim(id, sink)?,
            Item::Unowned(_)
            | Item::Idempotence { .. }
            | Item::Producer(_)
            | Item::ProducerId { .. } => {}
            Item::ArrayCursor(_) | Item::Indexed { .. } | Item::ModuleType(_) => {
                return Err(Fault::Expected("a value that commands can make"));
            }
        }
        Ok(())
    }

    /// Sends what waits, and when the key ends.
    pub fn finish(mut self, expire_at_ms: Option<u64>, sink: &mut impl FnMut(&[&[u8]])) {
        self.flush(sink);
        if let Some(at) = expire_at_ms {
            sink(&[b"PEXPIREAT", &self.key, at.to_string().as_bytes()]);
        }
    }

    /// Entries of a group's counters can be told from Redis 7.0 and in Valkey.
    fn has_counters(&self) -> bool {
        self.target.dialect().ranges
    }

    fn add(&mut self, command: &'static str, arguments: &[&[u8]], sink: &mut impl FnMut(&[&[u8]])) {
        if self.batch.command != command {
            self.flush(sink);
            self.batch.command = command;
        }
        for argument in arguments {
            self.batch.bytes.extend_from_slice(argument);
            self.batch.ends.push(self.batch.bytes.len());
        }
        if self.batch.bytes.len() >= Self::BYTES_MAX || self.batch.ends.len() >= Self::ARGUMENTS_MAX
        {
            self.flush(sink);
        }
    }

    fn flush(&mut self, sink: &mut impl FnMut(&[&[u8]])) {
        if self.batch.ends.is_empty() {
            return;
        }
        let mut arguments = vec![self.batch.command.as_bytes(), &self.key];
        let mut from = 0;
        for end in &self.batch.ends {
            arguments.push(self.batch.bytes.get(from..*end).unwrap_or_default());
            from = *end;
        }
        sink(&arguments);
        self.exists = true;
        self.batch.bytes.clear();
        self.batch.ends.clear();
    }

    /// HPEXPIREAT of Redis 7.4 and Valkey 9, PEXPIREMEMBERAT of KeyDB; others have none.
    fn field_expires(&mut self, name: &[u8], at_ms: u64, sink: &mut impl FnMut(&[&[u8]])) {
        let at = at_ms.to_string();
        self.flush(sink);
        match self.target.kind {
            EngineKind::KeyDb => sink(&[b"PEXPIREMEMBERAT", &self.key, name, at.as_bytes()]),
            EngineKind::Redis if self.target.version < Version::new(7, 4, 0) => {}
            EngineKind::Valkey if self.target.version.major < 9 => {}
            _ => sink(&[b"HPEXPIREAT", &self.key, at.as_bytes(), b"FIELDS", b"1", name]),
        }
    }

    fn stream_head(&mut self, head: &StreamHead, sink: &mut impl FnMut(&[&[u8]])) {
        let last = head.last_id.to_string();
        if !self.exists {
            // Nothing else makes a stream with no entries and no groups. 0-0 is no entry's id.
            let id = head.last_id.max(StreamId { ms: 0, seq: 1 }).to_string();
            sink(&[b"XADD", &self.key, b"MAXLEN", b"0", id.as_bytes(), b"x", b"x"]);
            self.exists = true;
        }
        let mut arguments = vec![b"XSETID".as_slice(), &self.key, last.as_bytes()];
        let counters = head.entries_added.zip(head.max_deleted_id);
        let counters = counters.map(|(added, deleted)| (added.to_string(), deleted.to_string()));
        if let Some((added, deleted)) = counters.as_ref().filter(|_| self.has_counters()) {
            arguments.extend_from_slice(&[
                b"ENTRIESADDED",
                added.as_bytes(),
                b"MAXDELETEDID",
                deleted.as_bytes(),
            ]);
        }
        sink(&arguments);
    }

    fn claim(&mut self, id: StreamId, sink: &mut impl FnMut(&[&[u8]])) -> Result<(), Fault> {
        let pending = self.pending.binary_search_by_key(&id, |(id, _, _)| *id).ok();
        let pending = pending.and_then(|index| self.pending.get(index));
        let (_, at, times) = pending.ok_or(Fault::Expected("an entry that is pending"))?;
        let (id, at, times) = (id.to_string(), at.to_string(), times.to_string());
        let head = [b"XCLAIM".as_slice(), &self.key, &self.group, &self.consumer, b"0"];
        let rest = [id.as_bytes(), b"TIME", at.as_bytes(), b"RETRYCOUNT", times.as_bytes()];
        sink(&[head.as_slice(), &rest, &[b"JUSTID", b"FORCE"]].concat());
        Ok(())
    }
}

/// A score as the engines read it.
fn score_text(score: f64) -> String {
    if score.is_infinite() {
        return if score > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    format!("{score:e}")
}
