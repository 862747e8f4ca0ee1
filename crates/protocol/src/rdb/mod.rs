//! RDB files, DUMP payloads and append-only files: read, compared, carried between engines, written.
//!
//! | to | use |
//! |---|---|
//! | read a file that comes in pieces | [`Reader`]: [`Event`]s, values raw and not copied |
//! | look into a raw value | [`Items`], one by one; [`Value`], all of it; [`elements`], only how many |
//! | compare values | [`Value::same`]; [`Digest`] where they are large |
//! | bring a value into a form that an engine takes | [`transcode`], [`payload_format`] |
//! | make and take apart what DUMP and RESTORE speak | [`dump`] |
//! | make a value by commands | [`Commands`] |
//! | write a file | [`Writer`] |
//! | read append-only files and their manifest | [`aof`] |
//!
//! Formats: Redis 1 to 14 and Valkey 80, with what KeyDB adds to 9.
//!
//! What must hold:
//! - No input makes it panic, loop or take more memory than [`Limits`] say. Lengths are believed only as
//!   far as bytes come.
//! - A value's end is found without decoding it. `layout` alone knows the order of things in a
//!   value; skipping, cutting into parts and decoding all follow it.
//! - What was handed out before an error is right as far as it goes; the checksum comes last.
//!
//! Left out on purpose: values of modules of Redis 4.0's release candidates (type 6), functions of
//! 7.0's (opcode 246), values that need a module. Streams are carried down as payloads: the layout of
//! their entries never changed, only the counters around them.

pub mod aof;
mod checksum;
mod commands;
mod count;
mod digest;
pub mod dump;
mod encoding;
mod event;
mod fault;
mod items;
mod layout;
pub mod lzf;
mod packed;
mod parser;
mod reader;
mod stream;
mod transcode;
mod value;
mod wire;
mod writer;

pub use checksum::Checksum;
pub use commands::Commands;
pub use count::elements;
pub use digest::Digest;
pub use encoding::{Brand, DataType, Encoding, Format};
pub use event::{Big, Entry, Event, Key, Limits, Part, ReadError, Record, Verdict};
pub use fault::Fault;
pub use items::{Item, Items, ItemsState, StreamHead, StreamId};
pub use reader::Reader;
pub use stream::Fields;
pub use transcode::{Carried, Lost, encode, newest_format, payload_format, transcode};
pub use value::{Consumer, Field, Group, Idempotence, Named, Pending, Stream, Value};
pub use writer::Writer;
