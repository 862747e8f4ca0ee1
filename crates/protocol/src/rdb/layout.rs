//! Where the parts of a value begin and end, without decoding them.
//!
//! A value is a run of units: an element, a pair, a node of a list, an entry of a group's pending
//! list. A [`Layout`] says which unit comes next and how long it is. Nothing else knows the order of
//! things in a value, so skipping, cutting and decoding can't disagree.

use super::{
    Encoding, Fault,
    wire::{Cursor, Stop},
};

/// What comes next in a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// How many of something follow, or what a module wrote: nothing to decode.
    Nothing,
    /// The string that is the value.
    Text,
    /// The string that holds all elements, packed.
    Packed,
    /// Eight bytes of the earliest time to live, then as before.
    PackedExpiring,
    /// An element or a member.
    Element,
    /// A member and its score.
    Scored,
    /// A member and its score as text.
    ScoredText,
    /// A field and its value.
    Pair,
    /// The earliest time to live and how many pairs follow.
    EarliestExpiry,
    /// When it ends, a field, its value.
    ExpiringPair,
    /// A field, its value, when it ends.
    PairExpiring,
    /// A ziplist of a list.
    Ziplist,
    /// A listpack or an element of a list.
    Node,
    /// The index and the value of an array's element.
    Indexed,
    /// How many elements an array has, and its cursor.
    ArrayHead,
    /// The id of a module's type.
    ModuleType,
    /// The first id and the entries after it.
    Entries,
    /// Counters of a stream.
    StreamHead,
    /// A group without its entries.
    Group,
    /// An entry that waits to be acknowledged.
    Pending,
    /// A consumer without its entries.
    Consumer,
    /// The id of an entry that waits with the consumer.
    Owned,
    /// How many entries wait with no consumer.
    UnownedCount,
    /// The id of such an entry.
    Unowned,
    /// How long and how many ids of idempotent producers are kept.
    IdempotenceHead,
    /// A producer's name.
    Producer,
    /// An id a producer gave, and which entry it became.
    ProducerId,
    /// Counters of ids.
    IdempotenceTail,
}

/// A place between two units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// One unit, and no other.
    One(Unit),
    /// A count, then as many units.
    Count(Unit),
    Units(Unit),
    EarliestExpiry,
    ArrayHead,
    ModuleType,
    /// A module's values, up to one that says it is the last.
    ModuleValues,
    /// Metadata of modules for a key: each a number of four bytes, then as above.
    Metadata,
    MetadataValues,
    StreamHead,
    Groups,
    Pending,
    ConsumerCount,
    Consumers,
    Owned,
    UnownedCount,
    Unowned,
    IdempotenceHead,
    Producers,
    ProducerIds,
    IdempotenceTail,
    CronHead,
    CronKeys,
    CronArguments,
    Done,
}

/// A way through one value.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    stage: Stage,
    /// Units to come in this stage.
    left: u64,
    groups_left: u64,
    consumers_left: u64,
    producers_left: u64,
    /// Which version of the stream layout.
    version: u8,
}

/// What a function of a stage found: the unit, and where the value goes on.
type Found = Result<(Unit, Stage), Stop>;

impl Layout {
    pub(super) const fn new(encoding: Encoding) -> Self {
        use Encoding as E;
        Self::at(
            match encoding {
                E::String => Stage::One(Unit::Text),
                E::List | E::Set => Stage::Count(Unit::Element),
                E::SortedSetText => Stage::Count(Unit::ScoredText),
                E::SortedSet => Stage::Count(Unit::Scored),
                E::Hash => Stage::Count(Unit::Pair),
                E::Module => Stage::ModuleType,
                E::HashZipmap
                | E::ListZiplist
                | E::SetIntset
                | E::SortedSetZiplist
                | E::HashZiplist
                | E::HashListpack
                | E::SortedSetListpack
                | E::SetListpack
                | E::HashListpackExpiringCandidate => Stage::One(Unit::Packed),
                E::HashListpackExpiring => Stage::One(Unit::PackedExpiring),
                E::ListQuicklist => Stage::Count(Unit::Ziplist),
                E::ListQuicklist2 => Stage::Count(Unit::Node),
                E::HashExpiringCandidate => Stage::Count(Unit::ExpiringPair),
                E::HashExpiring => Stage::EarliestExpiry,
                E::HashExpiringValkey => Stage::Count(Unit::PairExpiring),
                E::Array => Stage::ArrayHead,
                E::Stream | E::Stream2 | E::Stream3 | E::Stream4 | E::Stream5 => {
                    Stage::Count(Unit::Entries)
                }
                E::Cron => Stage::CronHead,
            },
            encoding.stream_version(),
        )
    }

    /// What a module wrote beside the keys, after the number of its type.
    pub(super) const fn module_values() -> Self {
        Self::at(Stage::ModuleValues, 0)
    }

    /// What modules wrote for one key: how many, then each.
    pub(super) const fn metadata(count: u64) -> Self {
        let mut layout = Self::at(Stage::Metadata, 0);
        layout.left = count;
        layout
    }

    const fn at(stage: Stage, version: u8) -> Self {
        Self { stage, left: 0, groups_left: 0, consumers_left: 0, producers_left: 0, version }
    }

    /// Passes over the next unit and says what it is; None at the value's end. Where the window
    /// ends before the unit does, nothing changes but the cursor.
    #[inline]
    pub(super) fn next(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<Unit>, Stop> {
        // By far the most units are these.
        match self.stage {
            Stage::One(unit @ (Unit::Text | Unit::Packed)) => {
                cursor.skip_text()?;
                self.stage = Stage::Done;
                return Ok(Some(unit));
            }
            Stage::Done => return Ok(None),
            Stage::Units(unit) => {
                if self.left > 0 {
                    skip(unit, cursor)?;
                    self.left -= 1;
                    return Ok(Some(unit));
                }
                self.stage = after_units(unit);
            }
            _ => {}
        }
        self.next_of_few(cursor)
    }

    /// The same where the next unit isn't one of a run.
    fn next_of_few(&mut self, cursor: &mut Cursor<'_>) -> Result<Option<Unit>, Stop> {
        loop {
            let (unit, stage) = match self.stage {
                Stage::Done => return Ok(None),
                Stage::Groups if self.groups_left == 0 => {
                    self.stage =
                        if self.version >= 4 { Stage::IdempotenceHead } else { Stage::Done };
                    continue;
                }
                Stage::Consumers if self.consumers_left == 0 => {
                    self.stage =
                        if self.version >= 5 { Stage::UnownedCount } else { Stage::Groups };
                    continue;
                }
                Stage::Producers if self.producers_left == 0 => {
                    self.stage = Stage::IdempotenceTail;
                    continue;
                }
                Stage::Pending if self.left == 0 => {
                    self.stage = Stage::ConsumerCount;
                    continue;
                }
                Stage::Owned if self.left == 0 => {
                    self.stage = Stage::Consumers;
                    continue;
                }
                Stage::Unowned if self.left == 0 => {
                    self.stage = Stage::Groups;
                    continue;
                }
                Stage::ProducerIds if self.left == 0 => {
                    self.stage = Stage::Producers;
                    continue;
                }
                Stage::Metadata if self.left == 0 => {
                    self.stage = Stage::Done;
                    continue;
                }
                _ => self.pass(cursor)?,
            };
            self.stage = stage;
            return Ok(Some(unit));
        }
    }

    /// Passes over as many units of a plain run as are there, up to about so many bytes: what
    /// [`Layout::next`] would do one by one, in a tight loop.
    #[inline]
    pub(super) fn run(&mut self, bytes_max: usize, cursor: &mut Cursor<'_>) {
        let Stage::Units(unit) = self.stage else { return };
        let left = &mut self.left;
        match unit {
            Unit::Element => run(left, bytes_max, cursor, Cursor::skip_text),
            Unit::Pair => run(left, bytes_max, cursor, |one| {
                one.skip_text()?;
                one.skip_text()
            }),
            Unit::Scored => run(left, bytes_max, cursor, |one| {
                one.skip_text()?;
                one.take(8).map(drop)
            }),
            _ => {}
        }
    }

    /// Passes over a unit that is not one of a plain run.
    fn pass(&mut self, cursor: &mut Cursor<'_>) -> Found {
        match self.stage {
            Stage::One(unit) => {
                skip(unit, cursor)?;
                Ok((unit, Stage::Done))
            }
            Stage::Count(unit) => {
                self.left = cursor.length()?;
                Ok((Unit::Nothing, Stage::Units(unit)))
            }
            Stage::EarliestExpiry => {
                cursor.u64()?;
                self.left = cursor.length()?;
                Ok((Unit::EarliestExpiry, Stage::Units(Unit::ExpiringPair)))
            }
            Stage::ArrayHead => {
                let count = cursor.length()?;
                match cursor.length()? {
                    0 => {}
                    1 => {
                        cursor.length()?;
                    }
                    _ => return Err(Fault::Expected("whether an array has a cursor").into()),
                }
                self.left = count;
                Ok((Unit::ArrayHead, Stage::Units(Unit::Indexed)))
            }
            Stage::ModuleType => {
                cursor.length()?;
                Ok((Unit::ModuleType, Stage::ModuleValues))
            }
            Stage::ModuleValues => {
                let more = skip_module_value(cursor)?;
                Ok((Unit::Nothing, if more { Stage::ModuleValues } else { Stage::Done }))
            }
            Stage::Metadata => {
                cursor.take(4)?;
                self.left -= 1;
                Ok((Unit::Nothing, Stage::MetadataValues))
            }
            Stage::MetadataValues => {
                let more = skip_module_value(cursor)?;
                Ok((Unit::Nothing, if more { Stage::MetadataValues } else { Stage::Metadata }))
            }
            Stage::CronHead => {
                cursor.skip_text()?;
                cursor.take(16)?;
                self.left = cursor.length()?;
                Ok((Unit::Nothing, Stage::CronKeys))
            }
            Stage::CronKeys | Stage::CronArguments if self.left > 0 => {
                cursor.skip_text()?;
                self.left -= 1;
                Ok((Unit::Nothing, self.stage))
            }
            Stage::CronKeys => {
                self.left = cursor.length()?;
                Ok((Unit::Nothing, Stage::CronArguments))
            }
            Stage::CronArguments => Ok((Unit::Nothing, Stage::Done)),
            _ => self.pass_in_stream(cursor),
        }
    }

    /// What comes after a stream's entries. Source: `rdbSaveObject` and `rdbLoadObject`.
    fn pass_in_stream(&mut self, cursor: &mut Cursor<'_>) -> Found {
        match self.stage {
            Stage::StreamHead => {
                let lengths = if self.version >= 2 { 8 } else { 3 };
                skip_lengths(lengths, cursor)?;
                self.groups_left = cursor.length()?;
                Ok((Unit::StreamHead, Stage::Groups))
            }
            Stage::Groups => {
                cursor.skip_text()?;
                skip_lengths(if self.version >= 2 { 3 } else { 2 }, cursor)?;
                self.left = cursor.length()?;
                self.groups_left -= 1;
                Ok((Unit::Group, Stage::Pending))
            }
            Stage::Pending => {
                cursor.take(24)?;
                cursor.length()?;
                self.left -= 1;
                Ok((Unit::Pending, Stage::Pending))
            }
            Stage::ConsumerCount => {
                self.consumers_left = cursor.length()?;
                Ok((Unit::Nothing, Stage::Consumers))
            }
            Stage::Consumers => {
                cursor.skip_text()?;
                cursor.take(if self.version >= 3 { 16 } else { 8 })?;
                self.left = cursor.length()?;
                self.consumers_left -= 1;
                Ok((Unit::Consumer, Stage::Owned))
            }
            Stage::Owned => {
                cursor.take(16)?;
                self.left -= 1;
                Ok((Unit::Owned, Stage::Owned))
            }
            Stage::UnownedCount => {
                self.left = cursor.length()?;
                Ok((Unit::UnownedCount, Stage::Unowned))
            }
            Stage::Unowned => {
                cursor.take(16)?;
                self.left -= 1;
                Ok((Unit::Unowned, Stage::Unowned))
            }
            Stage::IdempotenceHead => {
                skip_lengths(2, cursor)?;
                self.producers_left = cursor.length()?;
                Ok((Unit::IdempotenceHead, Stage::Producers))
            }
            Stage::Producers => {
                cursor.skip_text()?;
                self.left = cursor.length()?;
                self.producers_left -= 1;
                Ok((Unit::Producer, Stage::ProducerIds))
            }
            Stage::ProducerIds => {
                cursor.skip_text()?;
                skip_lengths(2, cursor)?;
                self.left -= 1;
                Ok((Unit::ProducerId, Stage::ProducerIds))
            }
            _ => {
                skip_lengths(2, cursor)?;
                Ok((Unit::IdempotenceTail, Stage::Done))
            }
        }
    }
}

#[inline]
fn run<'a>(
    left: &mut u64,
    bytes_max: usize,
    cursor: &mut Cursor<'a>,
    skip: impl Fn(&mut Cursor<'a>) -> Result<(), Stop>,
) {
    let stop = cursor.rest.len().saturating_sub(bytes_max);
    while *left > 0 && cursor.rest.len() > stop {
        let mut ahead = *cursor;
        if skip(&mut ahead).is_err() {
            return;
        }
        *cursor = ahead;
        *left -= 1;
    }
}

/// Where a value goes on after a run of units.
fn after_units(unit: Unit) -> Stage {
    if unit == Unit::Entries { Stage::StreamHead } else { Stage::Done }
}

/// Passes over a unit that has no counts inside.
#[inline]
fn skip(unit: Unit, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    match unit {
        Unit::Scored => {
            cursor.skip_text()?;
            cursor.take(8)?;
        }
        Unit::ScoredText => {
            cursor.skip_text()?;
            cursor.skip_score_text()?;
        }
        Unit::Pair | Unit::Entries => {
            cursor.skip_text()?;
            cursor.skip_text()?;
        }
        Unit::ExpiringPair => {
            cursor.length()?;
            cursor.skip_text()?;
            cursor.skip_text()?;
        }
        Unit::PairExpiring => {
            cursor.skip_text()?;
            cursor.skip_text()?;
            cursor.take(8)?;
        }
        Unit::PackedExpiring => {
            cursor.take(8)?;
            cursor.skip_text()?;
        }
        Unit::Node => {
            cursor.length()?;
            cursor.skip_text()?;
        }
        Unit::Indexed => {
            cursor.length()?;
            match cursor.length()? {
                0 | 3 => cursor.skip_text()?,
                1 | 2 => {
                    cursor.take(8)?;
                }
                _ => return Err(Fault::Expected("a kind of array element").into()),
            }
        }
        _ => cursor.skip_text()?,
    }
    Ok(())
}

pub(super) fn skip_lengths(count: u32, cursor: &mut Cursor<'_>) -> Result<(), Stop> {
    for _ in 0..count {
        cursor.length()?;
    }
    Ok(())
}

/// Passes over one value that a module wrote; false for the mark that ends them.
/// Source: `RDB_MODULE_OPCODE_*`.
fn skip_module_value(cursor: &mut Cursor<'_>) -> Result<bool, Stop> {
    match cursor.length()? {
        0 => return Ok(false),
        1 | 2 => {
            cursor.length()?;
        }
        3 => {
            cursor.take(4)?;
        }
        4 => {
            cursor.take(8)?;
        }
        5 => cursor.skip_text()?,
        _ => return Err(Fault::Expected("a value that a module wrote").into()),
    }
    Ok(true)
}
