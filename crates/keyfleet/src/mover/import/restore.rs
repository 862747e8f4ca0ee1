//! The command that carries a whole value.

use protocol::{
    rdb::{Encoding, Format, Key, dump},
    resp::{encode_bulk, encode_head},
};

use crate::observe::now_ms;

/// What RESTORE takes.
pub(super) struct Payload<'a> {
    pub encoding: Encoding,
    pub raw: &'a [u8],
    pub format: Format,
}

pub(super) fn write_restore(
    key: &Key<'_>,
    payload: &Payload<'_>,
    replace: bool,
    absolute: bool,
    out: &mut Vec<u8>,
) {
    let used: Option<(&[u8], u64)> = match (key.idle_seconds, key.frequency) {
        _ if !absolute => None,
        (Some(seconds), _) => Some((b"IDLETIME", seconds)),
        (None, Some(frequency)) => Some((b"FREQ", u64::from(frequency))),
        (None, None) => None,
    };
    let ends = key.expire_at_ms.is_some();
    let count = 4 + usize::from(replace) + usize::from(absolute && ends) + 2 * used.iter().count();
    encode_head(b'*', count, out);
    out.extend_from_slice(b"$7\r\nRESTORE\r\n");
    encode_bulk(&key.name, out);
    match key.expire_at_ms {
        None => out.extend_from_slice(b"$1\r\n0\r\n"),
        Some(at) if absolute => encode_bulk(at.to_string().as_bytes(), out),
        // 0 would mean that it doesn't end.
        Some(at) => {
            encode_bulk(at.saturating_sub(now_ms()).max(1).to_string().as_bytes(), out);
        }
    }
    encode_head(b'$', dump::payload_bytes(payload.raw), out);
    dump::put_payload(payload.encoding, payload.raw, payload.format, out);
    out.extend_from_slice(b"\r\n");
    if replace {
        out.extend_from_slice(b"$7\r\nREPLACE\r\n");
    }
    if absolute && ends {
        out.extend_from_slice(b"$6\r\nABSTTL\r\n");
    }
    if let Some((name, number)) = used {
        encode_bulk(name, out);
        encode_bulk(number.to_string().as_bytes(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_says_what_is_known_of_the_key() {
        let payload =
            Payload { encoding: Encoding::String, raw: b"\x01x", format: Format::redis(6) };
        let check = |key: &Key<'_>, replace, absolute, head: &str, tail: &str| {
            let mut out = Vec::new();
            write_restore(key, &payload, replace, absolute, &mut out);
            let mut expected = head.as_bytes().to_vec();
            expected.extend(b"$13\r\n");
            expected.extend(dump::payload(payload.encoding, payload.raw, payload.format));
            expected.extend(b"\r\n");
            expected.extend(tail.as_bytes());
            assert_eq!(out.escape_ascii().to_string(), expected.escape_ascii().to_string());
        };
        let plain = Key::new(0, b"k", Encoding::String);
        let head = |count| format!("*{count}\r\n$7\r\nRESTORE\r\n$1\r\nk\r\n$1\r\n0\r\n");
        check(&plain, false, true, &head(4), "");
        check(&plain, true, false, &head(5), "$7\r\nREPLACE\r\n");
        let used = Key { frequency: Some(7), ..plain.clone() };
        check(&used, false, true, &head(6), "$4\r\nFREQ\r\n$1\r\n7\r\n");
        check(&used, false, false, &head(4), "");
        let ends = Key { expire_at_ms: Some(4_102_444_800_000), ..plain };
        let head = "*5\r\n$7\r\nRESTORE\r\n$1\r\nk\r\n$13\r\n4102444800000\r\n";
        check(&ends, false, true, head, "$6\r\nABSTTL\r\n");
    }
}
