//! Writes RDB files.

use super::{
    Brand, Checksum, Encoding, Format, Key,
    wire::{put_length, put_text, put_text_small},
};

/// Writes an RDB file that engines load at their start, or that follows a PSYNC.
///
/// The bytes gather in the writer; [`Writer::bytes`] shows those that are there, and [`Writer::clear`] lets go of
/// them after they went where they belong, as often as one likes.
///
/// ```
/// use protocol::rdb::{Encoding, Format, Key, Writer};
///
/// let mut writer = Writer::new(Format::redis(9));
/// writer.aux(b"redis-ver", b"6.2.5");
/// writer.select_db(0);
/// writer.entry(&Key::new(0, b"key", Encoding::String), b"\x05value");
/// let file = writer.finish();
/// assert!(file.starts_with(b"REDIS0009\xfa\x09redis-ver"));
/// ```
#[derive(Debug)]
pub struct Writer {
    format: Format,
    out: Vec<u8>,
    /// Of what was let go of.
    checksum: Checksum,
}

impl Writer {
    /// Begins a file of a format that the target loads ([`newest_format`](super::newest_format)).
    pub fn new(format: Format) -> Self {
        let out = format.to_string().into_bytes();
        Self { format, out, checksum: Checksum::new() }
    }

    /// A note. `redis-ver`, `ctime` and the like; engines ignore those that they don't know.
    /// Versions below 7 have none.
    pub fn aux(&mut self, name: &[u8], value: &[u8]) {
        if self.format.version < 7 {
            return;
        }
        self.out.push(250);
        put_text(name, &mut self.out);
        put_text_small(value, &mut self.out);
    }

    /// A library of functions. For versions from 10; others can't have any.
    pub fn function(&mut self, code: &[u8]) {
        self.out.push(245);
        put_text_small(code, &mut self.out);
    }

    /// The entries that follow are in this database. A file without it loads into the first.
    pub fn select_db(&mut self, db: u64) {
        self.out.push(254);
        put_length(db, &mut self.out);
    }

    /// About how many keys follow, and how many of them end: engines make room for them at once.
    /// Versions below 7 don't say it.
    pub fn resize_db(&mut self, keys: u64, expiring: u64) {
        if self.format.version < 7 {
            return;
        }
        self.out.push(251);
        put_length(keys, &mut self.out);
        put_length(expiring, &mut self.out);
    }

    /// A key and its whole raw value. The encoding must be one that the format has
    /// ([`transcode`](super::transcode) makes it so); the database is the last selected.
    pub fn entry(&mut self, key: &Key<'_>, raw: &[u8]) {
        self.key(key);
        self.raw(raw);
    }

    /// A key; its raw value follows by [`Writer::raw`].
    pub fn key(&mut self, key: &Key<'_>) {
        debug_assert!(self.has(key.encoding));
        if let Some(at) = key.expire_at_ms {
            self.out.push(252);
            self.out.extend_from_slice(&at.to_le_bytes());
        }
        let used = self.format.version >= 9;
        if let Some(seconds) = key.idle_seconds.filter(|_| used) {
            self.out.push(248);
            put_length(seconds, &mut self.out);
        }
        if let Some(frequency) = key.frequency.filter(|_| used) {
            self.out.extend_from_slice(&[249, frequency]);
        }
        self.out.push(key.encoding.byte());
        put_text_small(&key.name, &mut self.out);
    }

    /// The next bytes of the last key's raw value.
    pub fn raw(&mut self, part: &[u8]) {
        self.out.extend_from_slice(part);
    }

    /// A string's length, after which [`Writer::raw`] writes so many bytes: for one that comes in
    /// parts.
    pub fn text_length(&mut self, bytes: u64) {
        put_length(bytes, &mut self.out);
    }

    /// Does the format have this encoding?
    pub fn has(&self, encoding: Encoding) -> bool {
        let needed = encoding.format();
        match (self.format.brand, needed.brand) {
            (Brand::Valkey, Brand::Redis) => needed.version <= 11,
            (own, brand) => own == brand && needed.version <= self.format.version,
        }
    }

    /// What was written since the last [`Writer::clear`].
    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// Lets go of what was written.
    pub fn clear(&mut self) {
        self.checksum.add(&self.out);
        self.out.clear();
    }

    /// Ends the file: the last bytes since the last [`Writer::clear`].
    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(255);
        if self.format.version >= 5 {
            self.checksum.add(&self.out);
            self.out.extend_from_slice(&self.checksum.value().to_le_bytes());
        }
        self.out
    }
}
