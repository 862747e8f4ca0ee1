//! Ends of keys, put off until all is done.

use std::borrow::Cow;

/// By so much ends are put off, in milliseconds: more than three thousand years. What ends later than
/// that was put off.
pub const LATER_MS: u64 = 100_000_000_000_000;

/// How a number says when a key ends.
#[derive(Clone, Copy)]
enum Unit {
    AtMs,
    AtSeconds,
    InMs,
    InSeconds,
}

impl Unit {
    /// The option's of SET, GETEX and MSETEX.
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

/// Does the command set a key's end?
pub fn sets_end(words: &[&[u8]]) -> bool {
    put_off(words, || 0).iter().skip(1).any(|word| matches!(word, Cow::Owned(_)))
}

/// The command with its key's end put off, and said as a time. `time_ms`: when it was done first,
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
        b"PEXPIREAT" => Unit::AtMs,
        b"EXPIREAT" => Unit::AtSeconds,
        b"PEXPIRE" | b"PSETEX" => Unit::InMs,
        b"EXPIRE" | b"SETEX" => Unit::InSeconds,
        b"SET" | b"GETEX" | b"MSETEX" => {
            let options = match name.as_slice() {
                b"SET" => 3,
                b"GETEX" => 2,
                _ => {
                    let count = std::str::from_utf8(words.get(1)?).ok()?;
                    count.parse::<usize>().ok()?.checked_mul(2)?.checked_add(2)?
                }
            };
            let mut found = words.iter().enumerate().skip(options);
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
    let mut out = vec![named(b"PEXPIREAT"), Cow::Borrowed(*key), end];
    out.extend(rest.iter().map(|word| Cow::Borrowed(*word)));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        check("set k v PXAT 5", "set k v PXAT 100000000000005");
        check("SET k v EX 5 GET", "SET k v PXAT 100000001005000 GET");
        check("set k v exat 5", "set k v PXAT 100000000005000");
        check("getex k px 7", "getex k PXAT 100000001000007");
        check("SETEX k 5 v", "SET k v PXAT 100000001005000");
        check("psetex k 5 v", "SET k v PXAT 100000001000005");
        check("expire k 5 NX", "PEXPIREAT k 100000001005000 NX");
        check("PEXPIREAT k 5", "PEXPIREAT k 100000000000005");
        check("expireat k 5", "PEXPIREAT k 100000000005000");
        check("restore k 0 payload", "RESTORE k 0 payload");
        check("RESTORE k 5 payload", "RESTORE k 100000001000005 payload ABSTTL");
        check("RESTORE-ASKING k 5 p ABSTTL", "RESTORE k 100000000000005 p ABSTTL");
        check("msetex 2 a EX b 2 EX 5", "msetex 2 a EX b 2 PXAT 100000001005000");
        check("hpexpireat h 5 FIELDS 1 f", "hpexpireat h 5 FIELDS 1 f");
        check("incr k", "incr k");
    }
}
