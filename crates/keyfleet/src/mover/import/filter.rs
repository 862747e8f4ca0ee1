//! Which keys are carried.

use std::collections::BTreeMap;

use protocol::rdb::DataType;

/// See the module. The default lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Any of them, as KEYS understands patterns; everything where there is none.
    pub patterns: Vec<String>,
    /// Any of them; every type where there is none.
    pub types: Vec<DataType>,
    /// The file's databases; every one where there is none.
    pub dbs: Vec<u64>,
    /// The target's database for one of the file's, where it isn't the same.
    pub db_map: BTreeMap<u64, u64>,
    pub ttl: Option<Ttl>,
    /// Of the value as the file holds it.
    pub size: Option<Bound>,
}

/// Which times to live are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Keys that end.
    With,
    /// Keys that don't.
    Without,
    /// Keys that end, in more or fewer milliseconds than this.
    Left(Bound),
}

/// A number that others are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Above(u64),
    Below(u64),
}

impl Bound {
    fn holds(self, number: u64) -> bool {
        match self {
            Self::Above(bound) => number > bound,
            Self::Below(bound) => number < bound,
        }
    }

    /// The number itself.
    pub fn number(self) -> u64 {
        match self {
            Self::Above(bound) | Self::Below(bound) => bound,
        }
    }
}

/// What is asked about a key.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub db: u64,
    pub name: &'a [u8],
    pub data_type: DataType,
    /// Milliseconds that are left; None where it doesn't end.
    pub left_ms: Option<u64>,
    pub bytes: u64,
}

impl Filter {
    pub fn takes(&self, asked: &Asked<'_>) -> bool {
        let ttl = match (self.ttl, asked.left_ms) {
            (None, _) | (Some(Ttl::With), Some(_)) | (Some(Ttl::Without), None) => true,
            (Some(Ttl::Left(bound)), Some(left)) => bound.holds(left),
            _ => false,
        };
        ttl && self.takes_db(asked.db)
            && (self.types.is_empty() || self.types.contains(&asked.data_type))
            && self.size.is_none_or(|bound| bound.holds(asked.bytes))
            && self.takes_name(asked.name)
    }

    pub fn takes_db(&self, db: u64) -> bool {
        self.dbs.is_empty() || self.dbs.contains(&db)
    }

    pub fn takes_name(&self, name: &[u8]) -> bool {
        self.patterns.is_empty()
            || self.patterns.iter().any(|pattern| matches(pattern.as_bytes(), name))
    }

    /// Does it ask for more than names and databases, which is all that commands tell?
    pub fn looks_at_values(&self) -> bool {
        !self.types.is_empty() || self.ttl.is_some() || self.size.is_some()
    }

    /// The target's database.
    pub fn mapped(&self, db: u64) -> u64 {
        self.db_map.get(&db).copied().unwrap_or(db)
    }
}

/// As KEYS matches: `*`, `?`, `[a-c]`, `[^a]`, and `\` before a character that means itself.
/// Source: `stringmatchlen`; here in time no worse than the product of both lengths.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Behind the last `*`, and the text from which that was tried.
    let mut back: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some((b'*', rest)) = pattern.split_first() {
            back = Some((rest, text));
            pattern = rest;
            continue;
        }
        let fits = match (text.split_first(), one(pattern)) {
            (None, None) => return true,
            (Some((byte, text_rest)), Some((set, rest))) if set.holds(*byte) => {
                (pattern, text) = (rest, text_rest);
                true
            }
            _ => false,
        };
        if !fits {
            let Some((after, tried)) = back else { return false };
            let Some((_, next)) = tried.split_first() else { return false };
            back = Some((after, next));
            (pattern, text) = (after, next);
        }
    }
}

/// What one byte of the text is compared with.
enum One<'a> {
    Any,
    Byte(u8),
    Set { inside: &'a [u8], not: bool },
}

impl One<'_> {
    fn holds(&self, byte: u8) -> bool {
        match self {
            Self::Any => true,
            Self::Byte(wanted) => *wanted == byte,
            Self::Set { inside, not } => {
                let mut rest = *inside;
                let mut found = false;
                loop {
                    rest = match rest {
                        [] => return found != *not,
                        [low, b'-', high, more @ ..] if *low != b'\\' => {
                            let (low, high) = (low.min(high), low.max(high));
                            found |= (*low..=*high).contains(&byte);
                            more
                        }
                        [b'\\', wanted, more @ ..] | [wanted, more @ ..] => {
                            found |= *wanted == byte;
                            more
                        }
                    };
                }
            }
        }
    }
}

/// The pattern's first place and what follows it.
fn one(pattern: &[u8]) -> Option<(One<'_>, &[u8])> {
    Some(match pattern {
        [] => return None,
        [b'?', rest @ ..] => (One::Any, rest),
        [b'[', rest @ ..] => {
            let (not, inside) = match rest {
                [b'^', inside @ ..] => (true, inside),
                _ => (false, rest),
            };
            let mut end = 0;
            while let Some(byte) = inside.get(end).filter(|byte| **byte != b']') {
                end += if *byte == b'\\' { 2 } else { 1 };
            }
            let (inside, rest) = inside.split_at(end.min(inside.len()));
            (One::Set { inside, not }, rest.get(1..).unwrap_or_default())
        }
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => (One::Byte(*byte), rest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let check = |pattern: &str, text: &str, expected| {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        };
        check("", "", true);
        check("", "a", false);
        check("*", "", true);
        check("user:*", "user:1", true);
        check("user:*", "use", false);
        check("*:1", "user:1:1", true);
        check("*a*b", "xaxbxb", true);
        check("*a*b", "xaxbxc", false);
        check("h?llo", "hello", true);
        check("h?llo", "hllo", false);
        check("h[ae]llo", "hallo", true);
        check("h[ae]llo", "hillo", false);
        check("h[^ae]llo", "hillo", true);
        check("h[a-c]llo", "hbllo", true);
        check("h[c-a]llo", "hbllo", true);
        check("h[a-c]llo", "hdllo", false);
        check(r"h\*llo", "h*llo", true);
        check(r"h\*llo", "hello", false);
        check(r"[\]]", "]", true);
        check(r"[\--a]", "-", true);
        check(r"[\-x]", "b", false);
        check("[ab", "a", true);
        check("a*a*a*a*a*a*a*b", &"a".repeat(200), false);
    }

    #[test]
    fn what_is_taken() {
        let asked = Asked {
            db: 1,
            name: b"user:1",
            data_type: DataType::Hash,
            left_ms: Some(5_000),
            bytes: 100,
        };
        let check = |filter: Filter, expected| assert_eq!(filter.takes(&asked), expected);
        let base = Filter::default;
        check(base(), true);
        check(Filter { patterns: vec!["a*".to_owned(), "u*".to_owned()], ..base() }, true);
        check(Filter { patterns: vec!["a*".to_owned()], ..base() }, false);
        check(Filter { types: vec![DataType::Hash], ..base() }, true);
        check(Filter { types: vec![DataType::Set], ..base() }, false);
        check(Filter { dbs: vec![1, 2], ..base() }, true);
        check(Filter { dbs: vec![0], ..base() }, false);
        check(Filter { ttl: Some(Ttl::With), ..base() }, true);
        check(Filter { ttl: Some(Ttl::Without), ..base() }, false);
        check(Filter { ttl: Some(Ttl::Left(Bound::Above(4_999))), ..base() }, true);
        check(Filter { ttl: Some(Ttl::Left(Bound::Below(5_000))), ..base() }, false);
        check(Filter { size: Some(Bound::Above(99)), ..base() }, true);
        check(Filter { size: Some(Bound::Below(100)), ..base() }, false);
    }
}
