//! The entries of a stream's node.
//!
//! A node is a first id and a listpack. The listpack begins with a master entry: how many entries
//! follow that are valid, how many are deleted, the names of the first entry's fields, 0. Each
//! entry is: flags, its id less the first id, its fields (only the values where the names are the
//! master's), how many elements that was. Source: `t_stream.c`.

use std::borrow::Cow;

use super::{
    Fault,
    items::StreamId,
    packed::Elements,
    wire::{Cursor, Stop},
};

const DELETED: i64 = 1;
const SAME_FIELDS: i64 = 2;

/// Names and values of a stream's entry, in order.
pub type Fields<'a> = Vec<(Cow<'a, [u8]>, Cow<'a, [u8]>)>;

#[derive(Debug, Clone)]
pub(super) struct Entries<'a> {
    first: StreamId,
    names: Vec<Cow<'a, [u8]>>,
    elements: Elements<'a>,
    /// Entries to come, deleted ones too.
    left: i64,
}

impl<'a> Entries<'a> {
    /// Reads a node up to its first entry.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, Stop> {
        let key = cursor.string()?;
        let fault = Fault::Expected("the id of a stream's node");
        let mut id = Cursor::new(&key);
        let first = StreamId::read(&mut id).map_err(|_| fault.clone())?;
        if !id.rest.is_empty() {
            return Err(fault.into());
        }
        let mut elements = Elements::listpack(cursor.string()?)?;
        let valid = elements.need_integer("how many entries a node has")?;
        let deleted = elements.need_integer("how many entries of a node are deleted")?;
        let left = valid.checked_add(deleted).filter(|_| valid >= 0 && deleted >= 0);
        let left = left.ok_or(Fault::Expected("how many entries a node has"))?;
        let what = "the names of a node's fields";
        let mut names = Vec::new();
        for _ in 0..elements.need_integer(what)? {
            names.push(elements.need(what)?.into_bytes());
        }
        if elements.need_integer(what)? != 0 {
            return Err(Fault::Expected(what).into());
        }
        Ok(Self { first, names, elements, left })
    }

    /// The next entry that is not deleted.
    pub(super) fn next(&mut self) -> Result<Option<(StreamId, Fields<'a>)>, Fault> {
        const WHAT: &str = "an entry of a stream";
        while self.left > 0 {
            self.left -= 1;
            let elements = &mut self.elements;
            let flags = elements.need_integer(WHAT)?;
            let ms = elements.need_integer(WHAT)?;
            let seq = elements.need_integer(WHAT)?;
            let id = StreamId {
                ms: self.first.ms.wrapping_add_signed(ms),
                seq: self.first.seq.wrapping_add_signed(seq),
            };
            let mut fields = Vec::new();
            if flags & SAME_FIELDS != 0 {
                for name in &self.names {
                    fields.push((name.clone(), elements.need(WHAT)?.into_bytes()));
                }
            } else {
                for _ in 0..elements.need_integer(WHAT)? {
                    let name = elements.need(WHAT)?.into_bytes();
                    fields.push((name, elements.need(WHAT)?.into_bytes()));
                }
            }
            let _backwards = elements.need_integer(WHAT)?;
            if flags & DELETED == 0 {
                return Ok(Some((id, fields)));
            }
        }
        match self.elements.next() {
            None => Ok(None),
            Some(_) => Err(Fault::Expected("the end of a stream's node")),
        }
    }
}
