//! Bytes to values, a piece at a time, with limits on everything.

use super::Value;

/// What one value may take up at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many aggregates may be open inside one another.
    pub depth_max: usize,
    /// The longest bulk string.
    pub bulk_bytes_max: usize,
    /// The longest line: simple strings, errors, numbers and lengths.
    pub line_bytes_max: usize,
    /// Elements in one value, over all its aggregates.
    pub elements_max: usize,
    /// The whole value on the wire.
    pub total_bytes_max: usize,
}

impl Default for Limits {
    /// Room for anything an engine answers by its own defaults (`proto-max-bulk-len` is 512 MiB).
    fn default() -> Self {
        Self {
            depth_max: 32,
            bulk_bytes_max: 512 << 20,
            line_bytes_max: 64 << 10,
            elements_max: 1 << 20,
            total_bytes_max: 1 << 30,
        }
    }
}

/// The bytes are not the protocol, or are more than the limits allow. Nothing after it can be
/// trusted: the connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("not a type of the protocol: byte 0x{0:02x}")]
    UnknownType(u8),
    #[error("a {0} that cannot be read")]
    Malformed(&'static str),
    #[error("{what} above the limit of {limit}")]
    TooMuch { what: &'static str, limit: usize },
}

/// Reads the first value of `input`: the value and how many bytes it took, or None where `input`
/// ends before it does. For input that arrives in pieces use [`Decoder`], which does not start
/// over.
pub fn decode(input: &[u8], limits: &Limits) -> Result<Option<(Value, usize)>, DecodeError> {
    let mut parser = Parser::default();
    let mut offset = 0;
    Ok(parser.advance(input, &mut offset, limits)?.map(|value| (value, offset)))
}

/// Values out of bytes that arrive in pieces. Work is linear in the bytes, however they are cut.
#[derive(Debug, Default)]
pub struct Decoder {
    limits: Limits,
    buffer: Vec<u8>,
    /// What lies before was read.
    offset: usize,
    parser: Parser,
    failed: Option<DecodeError>,
}

impl Decoder {
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds bytes. Read all values with [`Decoder::next`] before adding more: then the buffer
    /// never holds more than one incomplete string and what was added last.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        // Moving what is left costs no more than what was read since the last move.
        if self.offset * 2 >= self.buffer.len() {
            self.buffer.drain(..self.offset);
            self.offset = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next value; None until more bytes come. After an error, that error for ever.
    #[expect(clippy::should_implement_trait, reason = "an iterator's None would mean the end")]
    pub fn next(&mut self) -> Result<Option<Value>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.parser.advance(&self.buffer, &mut self.offset, &self.limits);
        if let Err(error) = result {
            *self = Self { limits: self.limits, failed: Some(error), ..Self::default() };
        }
        result
    }

    /// Has [`Decoder::next`] given all that was fed, with no piece of a value left?
    pub fn is_empty(&self) -> bool {
        self.offset == self.buffer.len() && self.parser.open.is_empty()
    }
}

#[cfg(test)]
impl Decoder {
    /// Bytes in the buffer that are not read yet.
    pub(super) fn unread(&self) -> usize {
        self.buffer.len() - self.offset
    }

    /// Elements of the value that is being read.
    pub(super) fn held_elements(&self) -> usize {
        self.parser.open.iter().map(|open| open.items.len()).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Array,
    Map,
    Set,
    Push,
    /// What a server tells beside the value that follows: read and dropped.
    Attribute,
}

/// An aggregate that has begun.
#[derive(Debug)]
struct Open {
    kind: Kind,
    left: usize,
    items: Vec<Value>,
}

/// The state between two pieces of input: the aggregates that are open, and what the value took
/// so far.
#[derive(Debug, Default)]
struct Parser {
    open: Vec<Open>,
    elements: usize,
    bytes: usize,
    /// How much of the line that begins at the offset is known to hold no line break.
    scanned: usize,
}

/// One token: a whole string, number or constant, or the head of an aggregate.
enum Token {
    Whole(Value),
    Head(Kind, usize),
}

impl Parser {
    /// Reads on at `offset` and moves it; None where the input ends first.
    fn advance(
        &mut self,
        input: &[u8],
        offset: &mut usize,
        limits: &Limits,
    ) -> Result<Option<Value>, DecodeError> {
        loop {
            let rest = input.get(*offset..).unwrap_or_default();
            let Some((token, used)) = self.token(rest, limits)? else { return Ok(None) };
            *offset += used;
            self.scanned = 0;
            self.bytes += used;
            limit("a value's bytes", self.bytes, limits.total_bytes_max)?;
            let complete = match token {
                Token::Whole(value) => Some(value),
                Token::Head(kind, count) => self.begin(kind, count, limits)?,
            };
            if let Some(value) = complete.and_then(|value| self.place(value)) {
                *self = Self::default();
                return Ok(Some(value));
            }
        }
    }

    /// Opens an aggregate of `count` values; an empty one is complete at once.
    fn begin(
        &mut self,
        kind: Kind,
        count: usize,
        limits: &Limits,
    ) -> Result<Option<Value>, DecodeError> {
        self.elements = self.elements.saturating_add(count);
        limit("elements", self.elements, limits.elements_max)?;
        if count == 0 {
            return Ok(finish(kind, Vec::new()));
        }
        limit("nesting", self.open.len() + 1, limits.depth_max)?;
        // A count is a promise only: room is made as the elements come.
        self.open.push(Open { kind, left: count, items: Vec::with_capacity(count.min(16)) });
        Ok(None)
    }

    /// Puts a complete value where it belongs; gives it back where it is the whole reply.
    fn place(&mut self, mut value: Value) -> Option<Value> {
        loop {
            let Some(parent) = self.open.last_mut() else { return Some(value) };
            parent.items.push(value);
            parent.left -= 1;
            if parent.left > 0 {
                return None;
            }
            let done = self.open.pop()?;
            value = finish(done.kind, done.items)?;
        }
    }

    fn token(
        &mut self,
        rest: &[u8],
        limits: &Limits,
    ) -> Result<Option<(Token, usize)>, DecodeError> {
        let Some(&sign) = rest.first() else { return Ok(None) };
        let malformed = |what: &'static str| DecodeError::Malformed(what);
        if !b"+-:$*_%~>,#(=!|".contains(&sign) {
            return Err(DecodeError::UnknownType(sign));
        }
        let Some(line) = self.line(rest, limits)? else { return Ok(None) };
        let used = line.len() + 3;
        let whole = |value: Value| Ok(Some((Token::Whole(value), used)));
        let text = || std::str::from_utf8(line).map_err(|_| malformed("line"));
        let lossy = || String::from_utf8_lossy(line).into_owned();
        let head = |kind: Kind, width: usize| {
            let count = length(line).ok_or(malformed("length"))?;
            Ok(Some((Token::Head(kind, count.saturating_mul(width)), used)))
        };
        match sign {
            b'+' => whole(Value::Simple(lossy())),
            b'-' => whole(Value::Error(lossy())),
            b':' => whole(Value::Integer(text()?.parse().map_err(|_| malformed("number"))?)),
            b',' => whole(Value::Double(text()?.parse().map_err(|_| malformed("double"))?)),
            b'(' => {
                let digits = text()?;
                let bare = digits.strip_prefix(['-', '+']).unwrap_or(digits);
                if bare.is_empty() || !bare.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(malformed("big number"));
                }
                whole(Value::BigNumber(digits.to_owned()))
            }
            b'#' => match line {
                b"t" => whole(Value::Boolean(true)),
                b"f" => whole(Value::Boolean(false)),
                _ => Err(malformed("boolean")),
            },
            b'_' if line.is_empty() => whole(Value::Null),
            b'_' => Err(malformed("null")),
            b'*' | b'$' if line == b"-1" => whole(Value::Null),
            b'*' => head(Kind::Array, 1),
            b'~' => head(Kind::Set, 1),
            b'>' => head(Kind::Push, 1),
            b'%' => head(Kind::Map, 2),
            b'|' => head(Kind::Attribute, 2),
            _ => {
                let length = length(line).ok_or(malformed("length"))?;
                limit("a string's bytes", length, limits.bulk_bytes_max)?;
                limit(
                    "a value's bytes",
                    self.bytes.saturating_add(length),
                    limits.total_bytes_max,
                )?;
                let after = rest.get(used..).unwrap_or_default();
                let Some((payload, after)) = after.split_at_checked(length) else {
                    return Ok(None);
                };
                match after {
                    [b'\r', b'\n', ..] => {}
                    [] | [b'\r'] => return Ok(None),
                    _ => return Err(malformed("string's end")),
                }
                let value = string(sign, payload)?;
                Ok(Some((Token::Whole(value), used + length + 2)))
            }
        }
    }

    /// The line after the sign, without its end; None where the input ends first.
    fn line<'a>(
        &mut self,
        rest: &'a [u8],
        limits: &Limits,
    ) -> Result<Option<&'a [u8]>, DecodeError> {
        let fresh = rest.get(self.scanned..).unwrap_or_default();
        let found = fresh.iter().position(|byte| *byte == b'\n');
        let end = self.scanned + found.unwrap_or(fresh.len());
        // Beside the text a line has its sign and, before its end, a carriage return.
        let line_bytes = end.saturating_sub(2);
        limit("a line's bytes", line_bytes, limits.line_bytes_max)?;
        if found.is_none() {
            self.scanned = end;
            return Ok(None);
        }
        match rest.get(1..end) {
            Some([line @ .., b'\r']) => Ok(Some(line)),
            _ => Err(DecodeError::Malformed("line's end")),
        }
    }
}

/// The aggregate; None for what is dropped.
fn finish(kind: Kind, items: Vec<Value>) -> Option<Value> {
    match kind {
        Kind::Array => Some(Value::Array(items)),
        Kind::Set => Some(Value::Set(items)),
        Kind::Push => Some(Value::Push(items)),
        Kind::Attribute => None,
        Kind::Map => {
            let mut items = items.into_iter();
            let mut pairs = Vec::with_capacity(items.len() / 2);
            while let (Some(key), Some(value)) = (items.next(), items.next()) {
                pairs.push((key, value));
            }
            Some(Value::Map(pairs))
        }
    }
}

/// The value of a string with a length: `$`, `!` or `=`.
fn string(sign: u8, payload: &[u8]) -> Result<Value, DecodeError> {
    match (sign, payload) {
        (b'=', [a, b, c, b':', text @ ..]) => {
            Ok(Value::Verbatim { format: [*a, *b, *c], text: text.to_vec() })
        }
        (b'=', _) => Err(DecodeError::Malformed("verbatim string")),
        (b'!', text) => Ok(Value::Error(String::from_utf8_lossy(text).into_owned())),
        (_, bytes) => Ok(Value::Bulk(bytes.to_vec())),
    }
}

/// Decimal digits only.
fn length(line: &[u8]) -> Option<usize> {
    if !line.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(line).ok()?.parse().ok()
}

fn limit(what: &'static str, amount: usize, limit: usize) -> Result<(), DecodeError> {
    if amount > limit { Err(DecodeError::TooMuch { what, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits {
        depth_max: 3,
        bulk_bytes_max: 10,
        line_bytes_max: 8,
        elements_max: 6,
        total_bytes_max: 40,
    };

    fn bulk(text: &str) -> Value {
        Value::Bulk(text.into())
    }

    #[test]
    fn values() {
        let check = |input: &str, expected: Value| {
            let got = decode(input.as_bytes(), &Limits::default());
            assert_eq!(got, Ok(Some((expected, input.len()))), "{input:?}");
            for cut in 0..input.len() {
                let got = decode(&input.as_bytes()[..cut], &Limits::default());
                assert_eq!(got, Ok(None), "{input:?} up to {cut}");
            }
        };
        check("+OK\r\n", Value::Simple("OK".into()));
        check("+\r\n", Value::Simple(String::new()));
        check("-ERR x\r\n", Value::Error("ERR x".into()));
        check(":-12\r\n", Value::Integer(-12));
        check("$5\r\na\r\nbc\r\n", bulk("a\r\nbc"));
        check("$0\r\n\r\n", bulk(""));
        check("$-1\r\n", Value::Null);
        check("*-1\r\n", Value::Null);
        check("_\r\n", Value::Null);
        check("*0\r\n", Value::Array(vec![]));
        check("*2\r\n:1\r\n*1\r\n$1\r\na\r\n", {
            Value::Array(vec![Value::Integer(1), Value::Array(vec![bulk("a")])])
        });
        check("%1\r\n+k\r\n:1\r\n", {
            Value::Map(vec![(Value::Simple("k".into()), Value::Integer(1))])
        });
        check("~1\r\n#t\r\n", Value::Set(vec![Value::Boolean(true)]));
        check(">1\r\n#f\r\n", Value::Push(vec![Value::Boolean(false)]));
        check(",1.25\r\n", Value::Double(1.25));
        check(",-inf\r\n", Value::Double(f64::NEG_INFINITY));
        check("(-349\r\n", Value::BigNumber("-349".into()));
        check("!5\r\nERR x\r\n", Value::Error("ERR x".into()));
        check("=5\r\ntxt:a\r\n", Value::Verbatim { format: *b"txt", text: b"a".to_vec() });
        check("|1\r\n+k\r\n:1\r\n:2\r\n", Value::Integer(2));
        check("*2\r\n|0\r\n:1\r\n|1\r\n+k\r\n*1\r\n:9\r\n:2\r\n", {
            Value::Array(vec![Value::Integer(1), Value::Integer(2)])
        });
    }

    #[test]
    fn what_is_not_the_protocol() {
        let check = |input: &str, expected: DecodeError| {
            assert_eq!(decode(input.as_bytes(), &SMALL), Err(expected), "{input:?}");
            let mut decoder = Decoder::new(SMALL);
            decoder.feed(input.as_bytes());
            assert_eq!(decoder.next(), Err(expected));
            decoder.feed(b"+OK\r\n");
            assert_eq!(decoder.next(), Err(expected));
        };
        check("HTTP", DecodeError::UnknownType(b'H'));
        check(":x\r\n", DecodeError::Malformed("number"));
        check(":1\n", DecodeError::Malformed("line's end"));
        check("+\n", DecodeError::Malformed("line's end"));
        check("$-2\r\n", DecodeError::Malformed("length"));
        check("$\r\n", DecodeError::Malformed("length"));
        check("%-1\r\n", DecodeError::Malformed("length"));
        check("*?\r\n", DecodeError::Malformed("length"));
        check("$1\r\nabc", DecodeError::Malformed("string's end"));
        check("#x\r\n", DecodeError::Malformed("boolean"));
        check("_x\r\n", DecodeError::Malformed("null"));
        check("(1x\r\n", DecodeError::Malformed("big number"));
        check("=1\r\na\r\n", DecodeError::Malformed("verbatim string"));
        let too_much = |what, limit| DecodeError::TooMuch { what, limit };
        check("+123456789\r\n", too_much("a line's bytes", 8));
        check("+1234567890", too_much("a line's bytes", 8));
        check("$11\r\n", too_much("a string's bytes", 10));
        check("*7\r\n", too_much("elements", 6));
        check("%4\r\n", too_much("elements", 6));
        check("*3\r\n*4\r\n", too_much("elements", 6));
        check("*99999999\r\n", too_much("elements", 6));
        check("*1\r\n*1\r\n*1\r\n*1\r\n", too_much("nesting", 3));
        check(
            "*5\r\n$9\r\n123456789\r\n$9\r\n123456789\r\n$9\r\n",
            too_much("a value's bytes", 40),
        );
    }

    #[test]
    fn limits_count_one_value_at_a_time() {
        let mut decoder = Decoder::new(SMALL);
        for _ in 0..100 {
            decoder.feed(b"*2\r\n$5\r\nhello\r\n+12345678\r\n");
            assert!(decoder.next().unwrap().is_some());
        }
        assert!(decoder.is_empty());
    }

    #[test]
    fn the_buffer_does_not_grow_with_what_was_read() {
        let mut decoder = Decoder::new(Limits::default());
        for number in 0..100_000 {
            decoder.feed(b"$5\r\nhel");
            assert_eq!(decoder.next(), Ok(None), "{number}");
            decoder.feed(b"lo\r\n");
            assert_eq!(decoder.next(), Ok(Some(bulk("hello"))));
        }
        assert!(decoder.buffer.capacity() < 256, "{}", decoder.buffer.capacity());
    }
}
