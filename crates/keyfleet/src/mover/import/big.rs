//! A large value in pieces, under a temporary name in the same slot until it is whole.
//!
//! The load may send a command twice, or change the order of a slot's commands, where servers change.
//! It says so of each slot; then the value is begun anew, unless its pieces bear that: bytes of a
//! string at their places, members of sets, fields of hashes.

use std::sync::Arc;

use protocol::{
    Engine, EngineKind, Slot, Value as Reply, key_slot,
    rdb::{Commands, DataType, Encoding, Fault, Item, Items, ItemsState, Key, payload_format},
    resp::encode_command,
};
use tokio::runtime::Handle;

use super::{
    Existing, ImportError,
    restore::{Payload, write_restore},
    source::Position,
};
use crate::mover::load::{Direct, Feeder, LoadError, Loader};

/// The most of a module's value that is gathered.
const GATHERED_BYTES_MAX: usize = 64 << 20;

/// A value on its way.
pub(super) struct Build {
    pub at: Position,
    pub key: Key<'static>,
    pub slot: Slot,
    pub temporary: Vec<u8>,
    /// Bytes of it that came.
    pub bytes: usize,
    /// The target's fields don't end, and some of these do.
    pub field_ttls_lost: bool,
    engine: Engine,
    has_field_ttls: bool,
    later_ms: u64,
    /// Some fields' ends were put off.
    pub put_off: bool,
    way: Way,
    /// The items are in the state after the last part.
    state: Option<ItemsState>,
    fault: Option<Fault>,
    /// Its pieces bear to be sent twice and in any order.
    calm: bool,
    repeated: u32,
    refused: u64,
}

enum Way {
    /// So many bytes of a string are sent.
    Text(u64),
    Commands(Box<Commands>),
    /// The raw value, for one RESTORE.
    Gathered(Vec<u8>),
}

/// What became of it.
pub(super) enum Built {
    Done,
    /// The key is there already.
    Existed,
    Refused(String),
    /// Servers changed while it was sent: to be begun anew.
    Disturbed,
}

impl Build {
    /// What temporary names begin with.
    pub const PREFIX: &'static [u8] = b"keyfleet-import:";

    /// `later_ms`: by so much fields' ends are put off.
    pub fn new(
        at: Position,
        key: &Key<'_>,
        engine: Engine,
        loader: &Arc<Loader>,
        later_ms: u64,
    ) -> Self {
        let slot = key_slot(&key.name);
        let temporary = temporary(&key.name, slot);
        let way = match key.encoding.data_type() {
            DataType::String => Way::Text(0),
            DataType::Array | DataType::Module | DataType::Cron => Way::Gathered(Vec::new()),
            _ => Way::Commands(Box::new(Commands::new(&temporary, &engine))),
        };
        let calm = !matches!(key.encoding.data_type(), DataType::List | DataType::Stream);
        let mut build = Self {
            at,
            key: Key { name: key.name.to_vec().into(), ..key.clone() },
            slot,
            temporary,
            bytes: 0,
            field_ttls_lost: false,
            put_off: false,
            engine,
            has_field_ttls: ends_fields(engine),
            later_ms,
            way,
            state: Some(Items::start(key.encoding)),
            fault: None,
            calm,
            repeated: 0,
            refused: 0,
        };
        build.begun(loader);
        build
    }

    /// From now on it matters what happens to the slot.
    pub fn begun(&mut self, loader: &Loader) {
        self.repeated = loader.progress().repeated_in(self.slot);
        self.refused = loader.progress().refused.load(std::sync::atomic::Ordering::Relaxed);
    }

    /// The next bytes of a string.
    pub fn text(&mut self, text: &[u8], feeder: &mut Feeder) -> Result<(), LoadError> {
        let Way::Text(sent) = &mut self.way else { return Ok(()) };
        let place = sent.to_string();
        *sent += text.len() as u64;
        self.bytes += text.len();
        let words = [b"SETRANGE".as_slice(), &self.temporary, place.as_bytes(), text];
        feeder.push(self.slot, self.at.total, |out| encode_command(words, out))
    }

    /// The next part of any other value.
    pub fn part(&mut self, raw: &[u8], feeder: &mut Feeder) -> Result<(), LoadError> {
        self.bytes += raw.len();
        let commands = match &mut self.way {
            Way::Text(_) => return Ok(()),
            Way::Gathered(gathered) => {
                if gathered.len() + raw.len() <= GATHERED_BYTES_MAX {
                    gathered.extend_from_slice(raw);
                } else {
                    self.fault = Some(Fault::TooLarge {
                        what: "a value that can't be cut",
                        bytes: self.bytes as u64,
                        limit: GATHERED_BYTES_MAX as u64,
                    });
                }
                return Ok(());
            }
            Way::Commands(commands) => commands,
        };
        let Some(state) = self.state.take() else { return Ok(()) };
        let mut items = Items::resume(state, raw);
        let mut result = Ok(());
        let (slot, offset) = (self.slot, self.at.total);
        for item in items.by_ref() {
            let made = item.and_then(|mut item| {
                if let Item::Field { expire_at_ms: Some(at_ms), .. } = &mut item {
                    *at_ms = at_ms.saturating_add(self.later_ms);
                    self.put_off |= self.later_ms > 0;
                    self.calm = false;
                    self.field_ttls_lost |= !self.has_field_ttls;
                }
                commands.item(item, &mut |words: &[&[u8]]| {
                    if result.is_ok() {
                        result = feeder.push(slot, offset, |out| encode_command(words, out));
                    }
                })
            });
            if let Err(fault) = made {
                self.fault = Some(fault);
                return result;
            }
            result.clone()?;
        }
        self.state = Some(items.suspend());
        result
    }

    /// Gives it its name, once everything is there.
    pub fn finish(
        mut self,
        loader: &Loader,
        feeder: &mut Feeder,
        direct: &mut Direct,
        runtime: &Handle,
        existing: Existing,
    ) -> Result<Built, ImportError> {
        let (slot, offset) = (self.slot, self.at.total);
        let temporary = std::mem::take(&mut self.temporary);
        let mut result = Ok(());
        let mut push = |words: &[&[u8]]| {
            if result.is_ok() {
                result = feeder.push(slot, offset, |out| encode_command(words, out));
            }
        };
        match self.way {
            Way::Text(_) => {}
            Way::Commands(commands) => commands.finish(None, &mut push),
            Way::Gathered(ref raw) => {
                if let Some(format) = payload_format(&self.engine, self.key.encoding) {
                    let key = Key::new(0, &temporary, self.key.encoding);
                    let payload = Payload { encoding: self.key.encoding, raw, format };
                    let write = |out: &mut Vec<u8>| write_restore(&key, &payload, true, true, out);
                    result = feeder.push(slot, offset, write);
                }
            }
        }
        result?;
        feeder.barrier()?;
        let progress = loader.progress();
        let mut call = |words: &[&[u8]]| runtime.block_on(direct.call(slot, words));
        if !self.calm && progress.repeated_in(slot) != self.repeated {
            return Ok(Built::Disturbed);
        }
        let refused = progress.refused.load(std::sync::atomic::Ordering::Relaxed) != self.refused;
        let refusal = progress.refusals().into_iter().rfind(|refusal| refusal.key == temporary);
        let why = match (&self.fault, refusal) {
            (Some(fault), _) => Some(format!("is damaged: {fault}")),
            (None, Some(refusal)) if refused => Some(format!("refused: {}", refusal.error)),
            _ => None,
        };
        if let Some(why) = why {
            call(&[b"DEL", &temporary])?;
            return Ok(Built::Refused(why));
        }
        if let Some(at) = self.key.expire_at_ms {
            call(&[b"PEXPIREAT", &temporary, at.to_string().as_bytes()])?;
        }
        let name: &[u8] = &self.key.name;
        let command: &[u8] = if existing == Existing::Replace { b"RENAME" } else { b"RENAMENX" };
        match call(&[command, &temporary, name])? {
            Reply::Integer(0) => {
                call(&[b"DEL", &temporary])?;
                Ok(Built::Existed)
            }
            // The connection broke before the answer of one that was done, or its time is over.
            Reply::Error(why) if why.contains("no such key") => Ok(Built::Done),
            Reply::Error(why) => Ok(Built::Refused(format!("refused: {why}"))),
            _ => Ok(Built::Done),
        }
    }
}

/// Do fields of the engine's hashes end on their own?
pub(super) fn ends_fields(engine: Engine) -> bool {
    engine.kind == EngineKind::KeyDb
        || [Encoding::HashExpiring, Encoding::HashExpiringValkey]
            .iter()
            .any(|encoding| payload_format(&engine, *encoding).is_some())
}

/// A name in the slot that no other import's key has, and that is the same the next time.
fn temporary(key: &[u8], slot: Slot) -> Vec<u8> {
    let tag = (0_u32..).map(|number| format!("{number:x}"));
    let tag = tag.into_iter().find(|tag| key_slot(tag.as_bytes()) == slot).unwrap_or_default();
    let hash = protocol::key_hash::crc16(key);
    let mut name = Build::PREFIX.to_vec();
    name.extend_from_slice(format!("{{{tag}}}:{hash:x}:{}", key.len()).as_bytes());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_in_the_keys_slot() {
        for key in ["", "a", "{tag}more", "{}", "}{", "\u{1}"] {
            let slot = key_slot(key.as_bytes());
            let name = temporary(key.as_bytes(), slot);
            assert_eq!(key_slot(&name), slot, "{key}");
            assert!(name.starts_with(Build::PREFIX));
        }
    }
}
