//! The ways in which RDB files hold values, by their type bytes.

use std::fmt;

/// Who defined a file's format. Some type bytes and opcodes mean two things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Brand {
    /// `REDIS0011`: Redis, KeyDB, and Valkey up to 8.
    Redis,
    /// `VALKEY080`: Valkey from 9.
    Valkey,
}

/// The version of an RDB file or payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Format {
    pub brand: Brand,
    pub version: u16,
}

impl Format {
    pub const fn redis(version: u16) -> Self {
        Self { brand: Brand::Redis, version }
    }

    pub const fn valkey(version: u16) -> Self {
        Self { brand: Brand::Valkey, version }
    }

    /// By the version alone, which is all that a DUMP payload has. Redis numbers end at 79
    /// (`RDB_FOREIGN_VERSION_MAX` in Valkey's `rdb.h`).
    pub const fn of_version(version: u16) -> Self {
        if version < 80 { Self::redis(version) } else { Self::valkey(version) }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.brand {
            Brand::Redis => write!(f, "REDIS{:04}", self.version),
            Brand::Valkey => write!(f, "VALKEY{:03}", self.version),
        }
    }
}

/// What a key holds, as the TYPE command says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    String,
    List,
    Set,
    SortedSet,
    Hash,
    Stream,
    /// Redis from version 14 of the format.
    Array,
    /// A type that a module defines.
    Module,
    /// KeyDB's scripts that run at times.
    Cron,
}

impl DataType {
    /// `string`, `zset`: as TYPE answers; `module` and `cron` stand for what differs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::SortedSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Array => "array",
            Self::Module => "module",
            Self::Cron => "cron",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a value is laid out: a type byte with its one meaning.
///
/// Source: `RDB_TYPE_*` in the `rdb.h` of Redis, Valkey and KeyDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Encoding {
    /// 0: one string.
    String,
    /// 1: strings.
    List,
    /// 2: strings.
    Set,
    /// 3: strings with scores as text.
    SortedSetText,
    /// 4: pairs of strings.
    Hash,
    /// 5: strings with scores of 8 bytes.
    SortedSet,
    /// 7: what a module wrote, in parts that can be told without the module.
    Module,
    /// 9: one zipmap.
    HashZipmap,
    /// 10: one ziplist.
    ListZiplist,
    /// 11: one intset.
    SetIntset,
    /// 12: one ziplist.
    SortedSetZiplist,
    /// 13: one ziplist.
    HashZiplist,
    /// 14: ziplists.
    ListQuicklist,
    /// 15: listpacks, then groups.
    Stream,
    /// 16: one listpack.
    HashListpack,
    /// 17: one listpack.
    SortedSetListpack,
    /// 18: listpacks, and single elements that are large.
    ListQuicklist2,
    /// 19: with counters of what was added and deleted.
    Stream2,
    /// 20: one listpack.
    SetListpack,
    /// 21: with the times when consumers were active.
    Stream3,
    /// 22 of Redis: pairs with times to live, of a release candidate of 7.4.
    HashExpiringCandidate,
    /// 23: a listpack of threes, of a release candidate of 7.4.
    HashListpackExpiringCandidate,
    /// 24: pairs with times to live.
    HashExpiring,
    /// 25: a listpack of threes.
    HashListpackExpiring,
    /// 26: with the ids of idempotent producers.
    Stream4,
    /// 27: with entries that a consumer gave back.
    Stream5,
    /// 28: values by index.
    Array,
    /// 22 of Valkey: pairs with times to live.
    HashExpiringValkey,
    /// 64 of KeyDB.
    Cron,
}

impl Encoding {
    /// All of them, by their bytes.
    pub const ALL: [Self; 29] = [
        Self::String,
        Self::List,
        Self::Set,
        Self::SortedSetText,
        Self::Hash,
        Self::SortedSet,
        Self::Module,
        Self::HashZipmap,
        Self::ListZiplist,
        Self::SetIntset,
        Self::SortedSetZiplist,
        Self::HashZiplist,
        Self::ListQuicklist,
        Self::Stream,
        Self::HashListpack,
        Self::SortedSetListpack,
        Self::ListQuicklist2,
        Self::Stream2,
        Self::SetListpack,
        Self::Stream3,
        Self::HashExpiringCandidate,
        Self::HashListpackExpiringCandidate,
        Self::HashExpiring,
        Self::HashListpackExpiring,
        Self::Stream4,
        Self::Stream5,
        Self::Array,
        Self::HashExpiringValkey,
        Self::Cron,
    ];

    /// By the type byte; None for what is no value's type, or not known.
    pub const fn from_byte(byte: u8, brand: Brand) -> Option<Self> {
        Some(match (byte, brand) {
            (0, _) => Self::String,
            (1, _) => Self::List,
            (2, _) => Self::Set,
            (3, _) => Self::SortedSetText,
            (4, _) => Self::Hash,
            (5, _) => Self::SortedSet,
            (7, _) => Self::Module,
            (9, _) => Self::HashZipmap,
            (10, _) => Self::ListZiplist,
            (11, _) => Self::SetIntset,
            (12, _) => Self::SortedSetZiplist,
            (13, _) => Self::HashZiplist,
            (14, _) => Self::ListQuicklist,
            (15, _) => Self::Stream,
            (16, _) => Self::HashListpack,
            (17, _) => Self::SortedSetListpack,
            (18, _) => Self::ListQuicklist2,
            (19, _) => Self::Stream2,
            (20, _) => Self::SetListpack,
            (21, _) => Self::Stream3,
            (22, Brand::Valkey) => Self::HashExpiringValkey,
            (22, Brand::Redis) => Self::HashExpiringCandidate,
            (23, Brand::Redis) => Self::HashListpackExpiringCandidate,
            (24, Brand::Redis) => Self::HashExpiring,
            (25, Brand::Redis) => Self::HashListpackExpiring,
            (26, Brand::Redis) => Self::Stream4,
            (27, Brand::Redis) => Self::Stream5,
            (28, Brand::Redis) => Self::Array,
            (64, Brand::Redis) => Self::Cron,
            _ => return None,
        })
    }

    /// The type byte.
    pub const fn byte(self) -> u8 {
        match self {
            Self::String => 0,
            Self::List => 1,
            Self::Set => 2,
            Self::SortedSetText => 3,
            Self::Hash => 4,
            Self::SortedSet => 5,
            Self::Module => 7,
            Self::HashZipmap => 9,
            Self::ListZiplist => 10,
            Self::SetIntset => 11,
            Self::SortedSetZiplist => 12,
            Self::HashZiplist => 13,
            Self::ListQuicklist => 14,
            Self::Stream => 15,
            Self::HashListpack => 16,
            Self::SortedSetListpack => 17,
            Self::ListQuicklist2 => 18,
            Self::Stream2 => 19,
            Self::SetListpack => 20,
            Self::Stream3 => 21,
            Self::HashExpiringCandidate | Self::HashExpiringValkey => 22,
            Self::HashListpackExpiringCandidate => 23,
            Self::HashExpiring => 24,
            Self::HashListpackExpiring => 25,
            Self::Stream4 => 26,
            Self::Stream5 => 27,
            Self::Array => 28,
            Self::Cron => 64,
        }
    }

    /// The lowest version of the format that has it.
    pub const fn format(self) -> Format {
        Format::redis(match self {
            Self::String | Self::List | Self::Set | Self::SortedSetText | Self::Hash => 1,
            Self::HashZipmap => 2,
            Self::ListZiplist | Self::SetIntset | Self::SortedSetZiplist => 3,
            Self::HashZiplist => 4,
            Self::ListQuicklist => 7,
            Self::SortedSet | Self::Module => 8,
            Self::Stream | Self::Cron => 9,
            Self::HashListpack | Self::SortedSetListpack | Self::ListQuicklist2 | Self::Stream2 => {
                10
            }
            Self::SetListpack | Self::Stream3 => 11,
            Self::HashExpiringCandidate
            | Self::HashListpackExpiringCandidate
            | Self::HashExpiring
            | Self::HashListpackExpiring => 12,
            Self::Stream4 => 13,
            Self::Stream5 | Self::Array => 14,
            Self::HashExpiringValkey => return Format::valkey(80),
        })
    }

    /// May fields of such a hash end on their own?
    pub const fn may_end_fields(self) -> bool {
        matches!(
            self,
            Self::HashExpiringCandidate
                | Self::HashListpackExpiringCandidate
                | Self::HashExpiring
                | Self::HashListpackExpiring
                | Self::HashExpiringValkey
        )
    }

    /// What a key with it holds.
    pub const fn data_type(self) -> DataType {
        match self {
            Self::String => DataType::String,
            Self::List | Self::ListZiplist | Self::ListQuicklist | Self::ListQuicklist2 => {
                DataType::List
            }
            Self::Set | Self::SetIntset | Self::SetListpack => DataType::Set,
            Self::SortedSetText
            | Self::SortedSet
            | Self::SortedSetZiplist
            | Self::SortedSetListpack => DataType::SortedSet,
            Self::Hash
            | Self::HashZipmap
            | Self::HashZiplist
            | Self::HashListpack
            | Self::HashExpiringCandidate
            | Self::HashListpackExpiringCandidate
            | Self::HashExpiring
            | Self::HashListpackExpiring
            | Self::HashExpiringValkey => DataType::Hash,
            Self::Stream | Self::Stream2 | Self::Stream3 | Self::Stream4 | Self::Stream5 => {
                DataType::Stream
            }
            Self::Array => DataType::Array,
            Self::Module => DataType::Module,
            Self::Cron => DataType::Cron,
        }
    }

    /// `hashtable`, `listpack`: the words of OBJECT ENCODING for the memory that such a value was
    /// saved from.
    pub const fn in_memory(self) -> &'static str {
        match self {
            Self::String => "raw",
            Self::List => "linkedlist",
            Self::Set
            | Self::Hash
            | Self::HashExpiring
            | Self::HashExpiringCandidate
            | Self::HashExpiringValkey => "hashtable",
            Self::SortedSetText | Self::SortedSet => "skiplist",
            Self::HashZipmap => "zipmap",
            Self::ListZiplist | Self::SortedSetZiplist | Self::HashZiplist => "ziplist",
            Self::SetIntset => "intset",
            Self::ListQuicklist | Self::ListQuicklist2 => "quicklist",
            Self::HashListpack | Self::SortedSetListpack | Self::SetListpack => "listpack",
            Self::HashListpackExpiring | Self::HashListpackExpiringCandidate => "listpackex",
            Self::Stream | Self::Stream2 | Self::Stream3 | Self::Stream4 | Self::Stream5 => {
                "stream"
            }
            Self::Array => "sliced-array",
            Self::Module => "module",
            Self::Cron => "cron",
        }
    }

    /// Which version of the stream layout; 0 for all others.
    pub(super) const fn stream_version(self) -> u8 {
        match self {
            Self::Stream => 1,
            Self::Stream2 => 2,
            Self::Stream3 => 3,
            Self::Stream4 => 4,
            Self::Stream5 => 5,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_meanings() {
        for encoding in Encoding::ALL {
            let format = encoding.format();
            assert_eq!(Encoding::from_byte(encoding.byte(), format.brand), Some(encoding));
        }
        for brand in [Brand::Redis, Brand::Valkey] {
            let known = (0..=255).filter_map(|byte| Encoding::from_byte(byte, brand));
            assert!(known.clone().all(|encoding| Encoding::ALL.contains(&encoding)));
            assert_eq!(known.count(), if brand == Brand::Redis { 28 } else { 21 });
        }
    }

    #[test]
    fn formats() {
        assert_eq!(Format::redis(11).to_string(), "REDIS0011");
        assert_eq!(Format::of_version(80).to_string(), "VALKEY080");
        assert_eq!(Format::of_version(79), Format::redis(79));
    }
}
