//! What each engine takes, and how a value gets into that form.

use std::{borrow::Cow, collections::BTreeSet};

use super::{
    Brand, DataType, Encoding, Fault, Format,
    items::{Item, Items, StreamId},
    layout::{Layout, Unit, skip_lengths},
    wire::{Cursor, Stop, put_length, put_text},
};
use crate::{Engine, EngineKind, Version};

/// The format that an engine saves, which is the newest it loads.
pub const fn newest_format(engine: &Engine) -> Format {
    let version = match engine.kind {
        EngineKind::KeyDb => 9,
        EngineKind::Valkey if engine.version.major >= 9 => return Format::valkey(80),
        EngineKind::Valkey => 11,
        EngineKind::Redis => match (engine.version.major, engine.version.minor) {
            (0..=2, _) | (3, 0..=1) => 6,
            (3, _) => 7,
            (4, _) => 8,
            (5..=6, _) => 9,
            (7, 0..=1) => 10,
            (7, 2..=3) => 11,
            (7, _) | (8, 0..=5) => 12,
            (8, 6..=7) => 13,
            _ => 14,
        },
    };
    Format::redis(version)
}

/// The version for the footer of a payload with this encoding: the lowest that has it, so that as
/// many engines as can take it do. None where the engine doesn't take the encoding.
///
/// Source: `verifyDumpPayload`. Up to Redis 3.2.0 the version must be the engine's own; later it
/// must not be higher; Valkey 9 takes Redis versions up to 11.
pub fn payload_format(engine: &Engine, encoding: Encoding) -> Option<Format> {
    const PAYLOADS_FROM: u16 = 6;
    const VALKEY_TAKES: u16 = 11;
    let (own, needed) = (newest_format(engine), encoding.format());
    let takes = match (own.brand, needed.brand) {
        (Brand::Valkey, Brand::Redis) => needed.version <= VALKEY_TAKES,
        (own_brand, needed_brand) => own_brand == needed_brand && needed.version <= own.version,
    };
    let candidate = matches!(
        encoding,
        Encoding::HashExpiringCandidate | Encoding::HashListpackExpiringCandidate
    );
    let foreign = encoding == Encoding::Cron && engine.kind != EngineKind::KeyDb;
    if !takes || candidate || foreign {
        return None;
    }
    if engine.kind == EngineKind::Redis && engine.version <= Version::new(3, 2, 0) {
        return Some(own);
    }
    Some(Format { version: needed.version.max(PAYLOADS_FROM), ..needed })
}

/// What of a value the target has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// Fields that should end stay.
    pub field_ttls: bool,
    /// Delivered entries that a consumer gave back are not pending.
    pub unowned: bool,
    /// Ids of idempotent producers.
    pub idempotence: bool,
}

/// How a value gets to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carried<'a> {
    /// By RESTORE, as [`dump::payload`](super::dump::payload) makes it from these.
    Payload { encoding: Encoding, raw: Cow<'a, [u8]>, format: Format, lost: Lost },
    /// By [`Commands`](super::Commands).
    Commands,
    /// Not at all: why.
    Impossible(&'static str),
}

/// Brings a whole value into a form that the target takes. Nothing is done where it takes it as it is.
pub fn transcode<'a>(
    encoding: Encoding,
    raw: &'a [u8],
    target: &Engine,
) -> Result<Carried<'a>, Fault> {
    if let Some(format) = payload_format(target, encoding) {
        let lost = Lost::default();
        return Ok(Carried::Payload { encoding, raw: Cow::Borrowed(raw), format, lost });
    }
    let takes = |encodings: &[Encoding]| {
        encodings.iter().find_map(|to| Some((*to, payload_format(target, *to)?)))
    };
    let own = match encoding.data_type() {
        DataType::String => takes(&[Encoding::String]),
        DataType::List => takes(&[Encoding::List]),
        DataType::Set => takes(&[Encoding::Set]),
        DataType::SortedSet => takes(&[Encoding::SortedSet, Encoding::SortedSetText]),
        DataType::Hash => return hash(encoding, raw, target.kind, takes),
        DataType::Stream => {
            let down = [Encoding::Stream4, Encoding::Stream3, Encoding::Stream2, Encoding::Stream];
            let Some((to, format)) = takes(&down) else {
                return Ok(Carried::Impossible("the target has no streams"));
            };
            let (raw, lost) = stream(encoding, raw, to)?;
            return Ok(Carried::Payload { encoding: to, raw: Cow::Owned(raw), format, lost });
        }
        DataType::Array => return Ok(Carried::Impossible("the target has no arrays")),
        DataType::Module => {
            return Ok(Carried::Impossible("the target takes no values of modules"));
        }
        DataType::Cron => return Ok(Carried::Impossible("only KeyDB has scripts in keys")),
    };
    let Some((to, format)) = own else {
        return Ok(Carried::Impossible("the target has no such type"));
    };
    let raw = Cow::Owned(encode(Items::new(encoding, raw), to)?);
    Ok(Carried::Payload { encoding: to, raw, format, lost: Lost::default() })
}

fn hash(
    encoding: Encoding,
    raw: &[u8],
    target: EngineKind,
    takes: impl Fn(&[Encoding]) -> Option<(Encoding, Format)>,
) -> Result<Carried<'static>, Fault> {
    let expiring = Items::new(encoding, raw).try_fold(false, |expiring, item| {
        Ok(expiring | matches!(item?, Item::Field { expire_at_ms: Some(_), .. }))
    })?;
    let with_ttls = takes(&[Encoding::HashExpiring, Encoding::HashExpiringValkey]);
    let plain = takes(&[Encoding::Hash]);
    let Some((to, format)) = (if expiring { with_ttls.or(plain) } else { plain }) else {
        return Ok(Carried::Impossible("the target has no such type"));
    };
    if expiring && with_ttls.is_none() && target == EngineKind::KeyDb {
        return Ok(Carried::Commands);
    }
    let lost = Lost { field_ttls: expiring && with_ttls.is_none(), ..Lost::default() };
    let raw = Cow::Owned(encode(Items::new(encoding, raw), to)?);
    Ok(Carried::Payload { encoding: to, raw, format, lost })
}

/// The raw value with these items, in an encoding that is no more than a count and its elements:
/// [`Encoding::String`], [`List`](Encoding::List), [`Set`](Encoding::Set),
/// [`SortedSet`](Encoding::SortedSet), [`SortedSetText`](Encoding::SortedSetText),
/// [`Hash`](Encoding::Hash), [`HashExpiring`](Encoding::HashExpiring),
/// [`HashExpiringValkey`](Encoding::HashExpiringValkey). Engines pack small values again when they
/// load them. A fault for other encodings and items of other types.
pub fn encode<'a>(
    items: impl Iterator<Item = Result<Item<'a>, Fault>>,
    to: Encoding,
) -> Result<Vec<u8>, Fault> {
    let (mut out, mut body, mut count) = (Vec::new(), Vec::new(), 0);
    let mut earliest = None;
    let mut fields = Vec::new();
    for item in items {
        count += 1;
        match (item?, to) {
            (Item::Text(text), Encoding::String) => {
                put_text(&text, &mut out);
                return Ok(out);
            }
            (Item::Element(element), Encoding::List) => put_text(&element, &mut body),
            (Item::Member(member), Encoding::Set) => put_text(&member, &mut body),
            (Item::Scored { member, score }, Encoding::SortedSet) => {
                put_text(&member, &mut body);
                body.extend_from_slice(&score.to_le_bytes());
            }
            (Item::Scored { member, score }, Encoding::SortedSetText) => {
                put_text(&member, &mut body);
                put_score_text(score, &mut body);
            }
            (Item::Field { name, value, .. }, Encoding::Hash) => {
                put_text(&name, &mut body);
                put_text(&value, &mut body);
            }
            (Item::Field { name, value, expire_at_ms }, Encoding::HashExpiringValkey) => {
                put_text(&name, &mut body);
                put_text(&value, &mut body);
                let at = expire_at_ms.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1);
                body.extend_from_slice(&at.to_le_bytes());
            }
            (Item::Field { name, value, expire_at_ms }, Encoding::HashExpiring) => {
                earliest = [earliest, expire_at_ms].into_iter().flatten().min();
                fields.push((name, value, expire_at_ms));
            }
            _ => return Err(Fault::Expected("elements of the type")),
        }
    }
    if to == Encoding::HashExpiring {
        let earliest = earliest.unwrap_or_default();
        out.extend_from_slice(&earliest.to_le_bytes());
        for (name, value, expire_at_ms) in fields {
            // One more, because 0 means that it doesn't end.
            put_length(expire_at_ms.map_or(0, |at| (at - earliest).saturating_add(1)), &mut body);
            put_text(&name, &mut body);
            put_text(&value, &mut body);
        }
    }
    put_length(count, &mut out);
    out.append(&mut body);
    Ok(out)
}

fn put_score_text(score: f64, out: &mut Vec<u8>) {
    if score.is_nan() {
        out.push(253);
    } else if score.is_infinite() {
        out.push(if score > 0.0 { 254 } else { 255 });
    } else {
        // Numbers of up to 17 digits and an exponent are much shorter than 253 bytes.
        let text = format!("{score:e}");
        out.push(text.len() as u8);
        out.extend_from_slice(text.as_bytes());
    }
}

/// Leaves out of a stream what the lower version has no place for. The entries stay as they are.
fn stream(from: Encoding, raw: &[u8], to: Encoding) -> Result<(Vec<u8>, Lost), Fault> {
    let (old, new) = (from.stream_version(), to.stream_version());
    let (mut group, mut unowned) = (0_u64, BTreeSet::new());
    let mut lost = Lost::default();
    for item in Items::new(from, raw) {
        match item? {
            Item::Group { .. } => group += 1,
            Item::Unowned(id) if new < 5 => {
                unowned.insert((group, id));
            }
            Item::Producer(_) if new < 4 => lost.idempotence = true,
            _ => {}
        }
    }
    lost.unowned = !unowned.is_empty();
    let mut out = Vec::with_capacity(raw.len());
    let mut cut = Cut { layout: Layout::new(from), cursor: Cursor::new(raw), old, new, group: 0 };
    while cut.unit(&unowned, &mut out).map_err(|stop| stop.at_end("a stream"))? {}
    Ok((out, lost))
}

/// A stream on the way to a lower version.
struct Cut<'a> {
    layout: Layout,
    cursor: Cursor<'a>,
    old: u8,
    new: u8,
    /// Groups so far.
    group: u64,
}

impl Cut<'_> {
    /// Copies the next unit as far as the lower version has it.
    fn unit(
        &mut self,
        unowned: &BTreeSet<(u64, StreamId)>,
        out: &mut Vec<u8>,
    ) -> Result<bool, Stop> {
        let before = self.cursor;
        let Some(unit) = self.layout.next(&mut self.cursor)? else { return Ok(false) };
        let whole = before.rest.get(..before.rest.len() - self.cursor.rest.len());
        let whole = whole.unwrap_or_default();
        let mut cursor = Cursor::new(whole);
        let copied =
            |cursor: &Cursor<'_>| whole.get(..whole.len() - cursor.rest.len()).unwrap_or_default();
        match unit {
            Unit::StreamHead if self.old >= 2 && self.new < 2 => {
                skip_lengths(3, &mut cursor)?;
                out.extend_from_slice(copied(&cursor));
                skip_lengths(5, &mut cursor)?;
                put_length(cursor.length()?, out);
            }
            Unit::Group => {
                self.group += 1;
                cursor.skip_text()?;
                skip_lengths(2, &mut cursor)?;
                let without_counter = copied(&cursor);
                if self.old >= 2 {
                    cursor.length()?;
                }
                let with_counter = copied(&cursor);
                out.extend_from_slice(if self.new >= 2 { with_counter } else { without_counter });
                let gone = unowned.range((self.group, StreamId::default())..);
                let gone = gone.take_while(|(group, _)| *group == self.group).count() as u64;
                put_length(cursor.length()?.saturating_sub(gone), out);
            }
            Unit::Pending => {
                let id = StreamId::read(&mut cursor)?;
                if !unowned.contains(&(self.group, id)) {
                    out.extend_from_slice(whole);
                }
            }
            Unit::Consumer if self.old >= 3 && self.new < 3 => {
                cursor.skip_text()?;
                cursor.take(8)?;
                out.extend_from_slice(copied(&cursor));
                cursor.take(8)?;
                put_length(cursor.length()?, out);
            }
            Unit::UnownedCount | Unit::Unowned if self.new < 5 => {}
            Unit::IdempotenceHead | Unit::Producer | Unit::ProducerId | Unit::IdempotenceTail
                if self.new < 4 => {}
            _ => out.extend_from_slice(whole),
        }
        Ok(true)
    }
}
