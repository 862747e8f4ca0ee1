//! Where twemproxy 0.5.0 sends a key: its hashes, hash tags and distributions, bit for bit, faults
//! included. Whoever replaces it must find the data where it put them.
//!
//! What every key went to in the running program is in this crate's `tests/twemproxy`.

mod hash;
mod ring;

pub use hash::Hash;
pub use ring::{Distribution, Ring, RingServer};

/// Two characters; what stands between them is hashed in place of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashTag {
    pub open: u8,
    pub close: u8,
}

impl HashTag {
    /// What stands between the first opening character and the first closing one after it, unless
    /// that is nothing; the whole key otherwise. Both may be the same character.
    #[inline]
    pub fn of(self, key: &[u8]) -> &[u8] {
        let position = |bytes: &[u8], byte: u8| bytes.iter().position(|each| *each == byte);
        let tag = position(key, self.open).and_then(|open| {
            let rest = key.get(open + 1..)?;
            rest.get(..position(rest, self.close)?)
        });
        tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
    }
}

/// How a pool turns keys into numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    pub hash: Hash,
    pub tag: Option<HashTag>,
}

impl KeyHash {
    /// The number that a [`Ring`] is asked with. An empty key's is 0, whatever the hash says.
    #[inline]
    pub fn value(&self, key: &[u8]) -> u32 {
        let hashed = self.tag.map_or(key, |tag| tag.of(key));
        if hashed.is_empty() { 0 } else { self.hash.of(hashed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let check = |chars: &[u8; 2], key: &str, expected: &str| {
            let [open, close] = *chars;
            let got = HashTag { open, close }.of(key.as_bytes());
            assert_eq!(got, expected.as_bytes(), "{key}");
        };
        check(b"{}", "user:{17}:name", "17");
        check(b"{}", "a{b}{c}", "b");
        check(b"{}", "}a{b}", "b");
        check(b"{}", "a{}b{c}", "a{}b{c}");
        check(b"{}", "a{b", "a{b");
        check(b"{}", "plain", "plain");
        check(b"{}", "", "");
        check(b"$$", "a$17$z", "17");
        check(b"$$", "a$$17$z", "a$$17$z");
    }

    #[test]
    fn empty_keys() {
        for hash in Hash::ALL {
            assert_eq!(KeyHash { hash, tag: None }.value(b""), 0);
        }
        let tag = Some(HashTag { open: b'{', close: b'}' });
        let hash = Hash::default();
        assert_eq!(KeyHash { hash, tag }.value(b"a{b}"), hash.of(b"b"));
    }
}
