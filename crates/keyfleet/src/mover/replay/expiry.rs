//! Ends of keys and of hashes' fields, put off until all is done.

use std::borrow::Cow;

/// By so much ends are put off, in milliseconds: more than fifteen hundred years. What ends later than
/// that was put off. Redis has no field end later than 2^46 (`HFE_MAX_ABS_TIME_MSEC` of its t_hash.c).
pub const LATER_MS: u64 = 50_000_000_000_000;

/// How a number says when something ends.
#[derive(Clone, Copy)]
enum Unit {
    AtMs,
    AtSeconds,
    InMs,
    InSeconds,
}

impl Unit {
    /// The option's of SET, GETEX, MSETEX, HSETEX and HGETEX.
    fn of(option: &[u8]) -> Option<Self> {
        Some(match option.to_ascii_uppercase().as_slice() {
            b"PXAT" => Self::AtMs,
            b"EXAT" => Self::AtSeconds,
            b"PX" => Self::InMs,
            b"EX" => Self::InSeconds,
            _ => return None,
        })
    }

    /// The end, put off. None: that is no number.
    fn later(self, number: &[u8], time_ms: impl Fn() -> u64) -> Option<Vec<u8>> {
        let number: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
        let at_ms = match self {
            Self::AtMs => number,
            Self::AtSeconds => number.saturating_mul(1000),
            Self::InMs => time_ms().saturating_add(number),
            Self::InSeconds => time_ms().saturating_add(number.saturating_mul(1000)),
        };
        Some(at_ms.saturating_add(LATER_MS).to_string().into_bytes())
    }
}

/// Whose end a command sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Keys,
    Fields,
}

/// Whose end does the command set?
pub fn sets_end(words: &[&[u8]]) -> Option<Whose> {
    let later = changed(words, || 0)?;
    let of_fields = words.first()?.first()?.eq_ignore_ascii_case(&b'h');
    let sets = later.iter().skip(1).any(|word| matches!(word, Cow::Owned(_)));
    sets.then_some(if of_fields { Whose::Fields } else { Whose::Keys })
}

/// The command with what it sets the end of ending later, and that said as a time. `time_ms`: when it was done first,
/// milliseconds since the Unix epoch, for those that say how long from then on.
pub fn put_off<'a>(words: &[&'a [u8]], time_ms: impl Fn() -> u64) -> Vec<Cow<'a, [u8]>> {
    let same = || words.iter().map(|word| Cow::Borrowed(*word)).collect::<Vec<_>>();
    changed(words, time_ms).unwrap_or_else(same)
}

/// None: nothing is to be changed.
fn changed<'a>(words: &[&'a [u8]], time_ms: impl Fn() -> u64) -> Option<Vec<Cow<'a, [u8]>>> {
    let name = words.first()?.to_ascii_uppercase();
    let plain = |words: &[&'a [u8]]| words.iter().map(|word| Cow::Borrowed(*word)).collect();
    let named = |name: &'static [u8]| Cow::Owned(name.to_vec());
    let unit = match name.as_slice() {
        b"PEXPIREAT" | b"HPEXPIREAT" => Unit::AtMs,
        b"EXPIREAT" | b"HEXPIREAT" => Unit::AtSeconds,
        b"PEXPIRE" | b"PSETEX" | b"HPEXPIRE" => Unit::InMs,
        b"EXPIRE" | b"SETEX" | b"HEXPIRE" => Unit::InSeconds,
        b"SET" | b"GETEX" | b"MSETEX" | b"HSETEX" | b"HGETEX" => {
            // Of the last two, options stand before the fields; of the first ones behind what they are for.
            let of_fields = name.first() == Some(&b'H');
            let is_last = |word: &[u8]| of_fields && word.eq_ignore_ascii_case(b"FIELDS");
            let options = match name.as_slice() {
                b"SET" => 3,
                b"GETEX" | b"HSETEX" | b"HGETEX" => 2,
                _ => {
                    let count = std::str::from_utf8(words.get(1)?).ok()?;
                    count.parse::<usize>().ok()?.checked_mul(2)?.checked_add(2)?
                }
            };
            let found = words.iter().enumerate().skip(options);
            let mut found = found.take_while(|(_, word)| !is_last(word));
            let (at, unit) = found.find_map(|(at, word)| Some((at, Unit::of(word)?)))?;
            let end = unit.later(words.get(at + 1)?, time_ms)?;
            let mut out: Vec<_> = plain(words.get(..at)?);
            out.extend([named(b"PXAT"), Cow::Owned(end)]);
            out.extend(words.get(at + 2..)?.iter().map(|word| Cow::Borrowed(*word)));
            return Some(out);
        }
        b"RESTORE" | b"RESTORE-ASKING" => {
            let [_, key, end, payload, options @ ..] = words else { return None };
            let absolute = options.iter().any(|word| word.eq_ignore_ascii_case(b"ABSTTL"));
            let mut out = vec![named(b"RESTORE"), Cow::Borrowed(*key)];
            if *end == b"0" {
                out.push(Cow::Borrowed(*end));
            } else {
                let unit = if absolute { Unit::AtMs } else { Unit::InMs };
                out.push(Cow::Owned(unit.later(end, time_ms)?));
            }
            out.push(Cow::Borrowed(*payload));
            out.extend(options.iter().map(|word| Cow::Borrowed(*word)));
            if *end != b"0" && !absolute {
                out.push(named(b"ABSTTL"));
            }
            return Some(out);
        }
        _ => return None,
    };
    let [_, key, number, rest @ ..] = words else { return None };
    let end = Cow::Owned(unit.later(number, time_ms)?);
    if let (b"SETEX" | b"PSETEX", [value]) = (name.as_slice(), rest) {
        let (key, value) = (Cow::Borrowed(*key), Cow::Borrowed(*value));
        return Some(vec![named(b"SET"), key, value, named(b"PXAT"), end]);
    }
    let as_time: &'static [u8] = if name.starts_with(b"H") { b"HPEXPIREAT" } else { b"PEXPIREAT" };
    let mut out = vec![named(as_time), Cow::Borrowed(*key), end];
    out.extend(rest.iter().map(|word| Cow::Borrowed(*word)));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_end_is_set() {
        let check = |command: &str, expected: Option<Whose>| {
            let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            assert_eq!(sets_end(&words), expected, "{command}");
        };
        check("set k v", None);
        check("set k v EX 5", Some(Whose::Keys));
        check("restore k 0 payload", None);
        check("restore k 5 payload", Some(Whose::Keys));
        check("hset h f v", None);
        check("hpexpireat h 5 FIELDS 1 f", Some(Whose::Fields));
        check("hsetex h EX 5 FIELDS 1 f v", Some(Whose::Fields));
    }

    #[test]
    fn ends_are_put_off() {
        let check = |command: &str, expected: &str| {
            let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let later = put_off(&words, || 1_000_000);
            let later: Vec<_> = later.iter().map(|word| word.escape_ascii().to_string()).collect();
            assert_eq!(later.join(" "), expected, "{command}");
        };
        check("set k v", "set k v");
        check("set k EX", "set k EX");
        check("set k v PXAT 5", "set k v PXAT 50000000000005");
        check("SET k v EX 5 GET", "SET k v PXAT 50000001005000 GET");
        check("set k v exat 5", "set k v PXAT 50000000005000");
        check("getex k px 7", "getex k PXAT 50000001000007");
        check("SETEX k 5 v", "SET k v PXAT 50000001005000");
        check("psetex k 5 v", "SET k v PXAT 50000001000005");
        check("expire k 5 NX", "PEXPIREAT k 50000001005000 NX");
        check("PEXPIREAT k 5", "PEXPIREAT k 50000000000005");
        check("expireat k 5", "PEXPIREAT k 50000000005000");
        check("restore k 0 payload", "RESTORE k 0 payload");
        check("RESTORE k 5 payload", "RESTORE k 50000001000005 payload ABSTTL");
        check("RESTORE-ASKING k 5 p ABSTTL", "RESTORE k 50000000000005 p ABSTTL");
        check("msetex 2 a EX b 2 EX 5", "msetex 2 a EX b 2 PXAT 50000001005000");
        check("hpexpireat h 5 FIELDS 1 f", "HPEXPIREAT h 50000000000005 FIELDS 1 f");
        check("hexpire h 5 NX FIELDS 1 EX", "HPEXPIREAT h 50000001005000 NX FIELDS 1 EX");
        check("hsetex h FNX PX 5 FIELDS 1 f v", "hsetex h FNX PXAT 50000001000005 FIELDS 1 f v");
        check("HSETEX h KEEPTTL FIELDS 1 EX 5", "HSETEX h KEEPTTL FIELDS 1 EX 5");
        check("hgetex h exat 5 FIELDS 1 f", "hgetex h PXAT 50000000005000 FIELDS 1 f");
        check("hpersist h FIELDS 1 f", "hpersist h FIELDS 1 f");
        check("incr k", "incr k");
    }
}
