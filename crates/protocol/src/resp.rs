//! The wire format, RESP2 and RESP3: values, an incremental bounded decoder, an encoder.
//!
//! Deliberately absent: RESP3's streamed strings and aggregates (no engine sends them), and
//! attributes, which are read and dropped.

mod decode;
#[cfg(test)]
mod properties;
mod server_error;

use std::str;

pub use decode::{DecodeError, Decoder, Limits, decode};
pub use server_error::{Redirect, ServerError};

/// One reply, or one command as a server reads it.
/// Source: the RESP protocol specification in the engines' documentation.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `+OK`. Bytes that are no UTF-8 were replaced.
    Simple(String),
    /// `-ERR text` or RESP3's `!`, without its leading sign. Bytes that are no UTF-8 were replaced.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// `$3`: any bytes.
    Bulk(Vec<u8>),
    /// RESP2's `$-1` and `*-1`, RESP3's `_`.
    Null,
    /// `*2`.
    Array(Vec<Value>),
    /// RESP3's `%`, in the order sent; RESP2 sends the same as a flat array, see [`Value::pairs`].
    Map(Vec<(Value, Value)>),
    /// RESP3's `~`, in the order sent.
    Set(Vec<Value>),
    /// RESP3's `>`: not an answer but a message out of turn.
    Push(Vec<Value>),
    /// RESP3's `,`.
    Double(f64),
    /// RESP3's `#`.
    Boolean(bool),
    /// RESP3's `(`: decimal digits after an optional sign.
    BigNumber(String),
    /// RESP3's `=`: text with a three-letter format such as `txt`.
    Verbatim { format: [u8; 3], text: Vec<u8> },
}

impl Value {
    /// The bytes of any kind of string; None for the rest, errors too.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bulk(bytes) | Self::Verbatim { text: bytes, .. } => Some(bytes),
            Self::Simple(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// [`Value::as_bytes`] where they are UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        str::from_utf8(self.as_bytes()?).ok()
    }

    /// An integer, or a string of decimal digits (many replies hold numbers so).
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            other => other.as_str()?.parse().ok(),
        }
    }

    /// The elements of an array, a set or a push.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) | Self::Set(items) | Self::Push(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs of a map, or of the flat array that RESP2 sends in its place; None where the
    /// value is neither or the array's length is odd.
    pub fn pairs(&self) -> Option<Vec<(&Value, &Value)>> {
        match self {
            Self::Map(pairs) => Some(pairs.iter().map(|(key, value)| (key, value)).collect()),
            Self::Array(items) => {
                let (pairs, rest) = items.as_chunks::<2>();
                rest.is_empty().then(|| pairs.iter().map(|[key, value]| (key, value)).collect())
            }
            _ => None,
        }
    }

    /// The server's refusal as an error, every other value as it is.
    pub fn into_result(self) -> Result<Value, ServerError> {
        match self {
            Self::Error(text) => Err(ServerError::parse(&text)),
            other => Ok(other),
        }
    }

    /// Appends the value as it goes over the wire. What RESP2 has is written as RESP2 (null as
    /// `$-1`), the rest as RESP3. Line breaks inside simple strings and errors become spaces, as
    /// the engines do.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Simple(text) => line(out, b'+', &one_line(text)),
            Self::Error(text) => line(out, b'-', &one_line(text)),
            Self::Integer(number) => line(out, b':', &number.to_string()),
            Self::Bulk(bytes) => bulk(out, b'$', &[bytes]),
            Self::Null => out.extend_from_slice(b"$-1\r\n"),
            Self::Array(items) => aggregate(out, b'*', items),
            Self::Set(items) => aggregate(out, b'~', items),
            Self::Push(items) => aggregate(out, b'>', items),
            Self::Map(pairs) => {
                line(out, b'%', &pairs.len().to_string());
                for (key, value) in pairs {
                    key.encode(out);
                    value.encode(out);
                }
            }
            Self::Double(number) => line(out, b',', &number.to_string().to_ascii_lowercase()),
            Self::Boolean(yes) => line(out, b'#', if *yes { "t" } else { "f" }),
            Self::BigNumber(digits) => line(out, b'(', &one_line(digits)),
            Self::Verbatim { format, text } => bulk(out, b'=', &[format, b":", text]),
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace(['\r', '\n'], " ")
}

fn line(out: &mut Vec<u8>, sign: u8, text: &str) {
    out.push(sign);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn bulk(out: &mut Vec<u8>, sign: u8, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    encode_head(sign, length, out);
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

fn aggregate(out: &mut Vec<u8>, sign: u8, items: &[Value]) {
    encode_head(sign, items.len(), out);
    for item in items {
        item.encode(out);
    }
}

/// Appends what begins an array (`*`), a bulk string (`$`) or anything else that says its length.
pub fn encode_head(sign: u8, length: usize, out: &mut Vec<u8>) {
    // A sign, 20 digits, the end of the line; filled from behind.
    let mut head = [sign; 23];
    let (mut start, mut rest) = (head.len() - 2, length);
    if let Some(end) = head.last_chunk_mut() {
        *end = *b"\r\n";
    }
    loop {
        start -= 1;
        if let Some(digit) = head.get_mut(start) {
            *digit = b'0' + (rest % 10) as u8;
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(head.get(start - 1..).unwrap_or_default());
}

/// Appends a bulk string.
pub fn encode_bulk(bytes: &[u8], out: &mut Vec<u8>) {
    bulk(out, b'$', &[bytes]);
}

/// Appends one command in the only form every engine reads: an array of bulk strings.
pub fn encode_command(args: impl IntoIterator<Item = impl AsRef<[u8]>>, out: &mut Vec<u8>) {
    let args: Vec<_> = args.into_iter().collect();
    encode_head(b'*', args.len(), out);
    for arg in &args {
        encode_bulk(arg.as_ref(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_arrays_of_bulks() {
        let mut out = Vec::new();
        encode_command(["SET", "k", "a\r\nb"], &mut out);
        encode_command([b"PING"], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n*1\r\n$4\r\nPING\r\n");
    }

    #[test]
    fn heads() {
        let check = |length: usize, expected: &str| {
            let mut out = Vec::new();
            encode_head(b'$', length, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(0, "$0\r\n");
        check(9, "$9\r\n");
        check(10, "$10\r\n");
        check(usize::MAX, "$18446744073709551615\r\n");
    }

    #[test]
    fn values_on_the_wire() {
        let check = |value: Value, expected: &str| {
            let mut out = Vec::new();
            value.encode(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(Value::Simple("O\rK".into()), "+O K\r\n");
        check(Value::Error("ERR no".into()), "-ERR no\r\n");
        check(Value::Integer(-1), ":-1\r\n");
        check(Value::Null, "$-1\r\n");
        check(Value::Double(f64::INFINITY), ",inf\r\n");
        check(Value::Double(f64::NAN), ",nan\r\n");
        check(Value::Double(1.5), ",1.5\r\n");
        check(Value::Boolean(true), "#t\r\n");
        check(Value::Map(vec![(Value::Integer(1), Value::Null)]), "%1\r\n:1\r\n$-1\r\n");
        check(Value::Verbatim { format: *b"txt", text: b"a".to_vec() }, "=5\r\ntxt:a\r\n");
    }

    #[test]
    fn views_of_a_value() {
        let bulk = |text: &str| Value::Bulk(text.into());
        assert_eq!(bulk("12").as_integer(), Some(12));
        assert_eq!(bulk("1x").as_integer(), None);
        assert_eq!(Value::Integer(3).as_integer(), Some(3));
        assert_eq!(Value::Simple("OK".into()).as_str(), Some("OK"));
        assert_eq!(Value::Bulk(vec![0xff]).as_str(), None);
        assert_eq!(Value::Error("ERR".into()).as_str(), None);
        let flat = Value::Array(vec![bulk("a"), bulk("b")]);
        assert_eq!(flat.pairs(), Value::Map(vec![(bulk("a"), bulk("b"))]).pairs());
        assert_eq!(Value::Array(vec![bulk("a")]).pairs(), None);
        assert!(Value::Error("ERR x".into()).into_result().is_err());
        assert_eq!(Value::Null.into_result(), Ok(Value::Null));
    }
}
