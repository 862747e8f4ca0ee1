//! Where a server's reply ends, RESP2 and RESP3, without building values.
//!
//! A reply is a count of values still to come: a plain one takes one away, an aggregate adds its
//! elements. So nesting costs nothing, and a reply of any size is followed in a few words of state.

use super::request::number;

/// The bytes are no reply. Nothing after them can be trusted: the connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    #[error("not a type of the protocol: byte 0x{0:02x}")]
    Type(u8),
    #[error("a length that cannot be read")]
    Length,
    #[error("a line without its end")]
    Line,
}

/// The longest line: simple strings, errors, numbers.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// Follows one reply through pieces of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framer {
    /// Values to come until the reply ends.
    values: u64,
    /// Bytes to come of the string that was begun, its end included.
    body: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Self { values: 1, body: 0 }
    }
}

/// How much of the input belongs to the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// It ends here. The framer is ready for the next.
    Whole(usize),
    /// So many bytes were read; what follows is the beginning of a line, or nothing.
    Part(usize),
}

impl Framer {
    /// Is it at the beginning of a reply?
    pub fn is_fresh(&self) -> bool {
        *self == Self::default()
    }

    /// Reads on. After [`Scan::Part`] it is to be called with what follows the bytes that were read.
    #[inline]
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scan, ReplyError> {
        let mut at = 0;
        if self.body > 0 {
            at = self.skip_body(bytes, 0)?;
            if self.body > 0 {
                return Ok(Scan::Part(at));
            }
        }
        while self.values > 0 {
            let Some(&sign) = bytes.get(at) else { return Ok(Scan::Part(at)) };
            match sign {
                b'$' | b'=' | b'!' => {
                    if bytes.get(at + 1) == Some(&b'-') {
                        let Some(next) = null(bytes, at)? else { return Ok(Scan::Part(at)) };
                        (self.values, at) = (self.values - 1, next);
                        continue;
                    }
                    let Some((length, start)) =
                        number(bytes, at + 1).map_err(|()| ReplyError::Length)?
                    else {
                        return Ok(Scan::Part(at));
                    };
                    self.values -= 1;
                    let end = start + length;
                    // Mostly all of it is here.
                    if let (Some(b'\r'), Some(b'\n')) = (bytes.get(end), bytes.get(end + 1)) {
                        at = end + 2;
                        continue;
                    }
                    self.body = length + 2;
                    at = self.skip_body(bytes, start)?;
                    if self.body > 0 {
                        return Ok(Scan::Part(at));
                    }
                }
                b'+' | b'-' | b':' | b',' | b'#' | b'_' | b'(' => {
                    let Some(next) = line(bytes, at)? else { return Ok(Scan::Part(at)) };
                    (self.values, at) = (self.values - 1, next);
                }
                b'*' | b'~' | b'>' | b'%' | b'|' => {
                    if bytes.get(at + 1) == Some(&b'-') {
                        let Some(next) = null(bytes, at)? else { return Ok(Scan::Part(at)) };
                        (self.values, at) = (self.values - 1, next);
                        continue;
                    }
                    let Some((length, start)) =
                        number(bytes, at + 1).map_err(|()| ReplyError::Length)?
                    else {
                        return Ok(Scan::Part(at));
                    };
                    let length = length as u64;
                    let more = match sign {
                        b'%' => length * 2,
                        // An attribute stands before the value that it describes.
                        b'|' => length * 2 + 1,
                        _ => length,
                    };
                    self.values = (self.values - 1).checked_add(more).ok_or(ReplyError::Length)?;
                    at = start;
                }
                other => return Err(ReplyError::Type(other)),
            }
        }
        *self = Self::default();
        Ok(Scan::Whole(at))
    }

    /// Skips what is here of the string's rest; checks its end.
    fn skip_body(&mut self, bytes: &[u8], mut at: usize) -> Result<usize, ReplyError> {
        let here = bytes.len().saturating_sub(at);
        if self.body > 2 {
            let skipped = here.min(self.body - 2);
            self.body -= skipped;
            at += skipped;
        }
        while self.body > 0 && self.body <= 2 {
            let wanted = if self.body == 2 { b'\r' } else { b'\n' };
            match bytes.get(at) {
                None => break,
                Some(byte) if *byte == wanted => {}
                Some(_) => return Err(ReplyError::Line),
            }
            self.body -= 1;
            at += 1;
        }
        Ok(at)
    }
}

/// Where the line ends that starts here.
#[inline]
fn line(bytes: &[u8], at: usize) -> Result<Option<usize>, ReplyError> {
    let rest = bytes.get(at..).unwrap_or_default();
    match memchr::memchr(b'\n', rest) {
        None if rest.len() > LINE_BYTES_MAX => Err(ReplyError::Line),
        None => Ok(None),
        Some(end) if end > 0 && rest.get(end - 1) == Some(&b'\r') => Ok(Some(at + end + 1)),
        Some(_) => Err(ReplyError::Line),
    }
}

/// Where RESP2's null ends, `$-1` or `*-1`.
#[inline]
fn null(bytes: &[u8], at: usize) -> Result<Option<usize>, ReplyError> {
    let rest = bytes.get(at + 1..).unwrap_or_default();
    let expected = b"-1\r\n";
    let here = rest.len().min(expected.len());
    if rest.get(..here) != expected.get(..here) {
        return Err(ReplyError::Length);
    }
    Ok((here == expected.len()).then_some(at + 1 + expected.len()))
}

/// How many bytes the value takes that `bytes` starts with; None where it is not whole.
pub fn value_length(bytes: &[u8]) -> Option<usize> {
    match Framer::default().scan(bytes) {
        Ok(Scan::Whole(length)) => Some(length),
        _ => None,
    }
}

/// The number of an integer reply.
pub fn integer(reply: &[u8]) -> Option<i64> {
    let digits = reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(pieces: &[&[u8]]) -> Result<Option<usize>, ReplyError> {
        let mut framer = Framer::default();
        let mut held = Vec::new();
        let mut before = 0;
        for piece in pieces {
            held.extend_from_slice(piece);
            match framer.scan(&held)? {
                Scan::Whole(length) => return Ok(Some(before + length)),
                Scan::Part(read) => {
                    held.drain(..read);
                    before += read;
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn whole_replies_however_cut() {
        let check = |input: &str| {
            let bytes = input.as_bytes();
            let followed = format!("{input}+OK\r\n");
            assert_eq!(follow(&[followed.as_bytes()]), Ok(Some(input.len())), "{input:?}");
            for cut in 0..input.len() {
                assert_eq!(follow(&[&bytes[..cut]]), Ok(None), "{input:?} to {cut}");
                let both = follow(&[&bytes[..cut], &bytes[cut..]]);
                assert_eq!(both, Ok(Some(input.len())), "{input:?} at {cut}");
            }
            let bytewise: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(follow(&bytewise), Ok(Some(input.len())));
        };
        for input in [
            "+OK\r\n",
            "-ERR x\r\n",
            ":-12\r\n",
            "$5\r\na\r\nbc\r\n",
            "$0\r\n\r\n",
            "$-1\r\n",
            "*-1\r\n",
            "_\r\n",
            "*0\r\n",
            "*2\r\n:1\r\n*1\r\n$1\r\na\r\n",
            "%1\r\n+k\r\n*2\r\n:1\r\n#t\r\n",
            "~1\r\n,1.5\r\n",
            ">2\r\n+a\r\n(12345678901234567890\r\n",
            "!5\r\nERR x\r\n",
            "=5\r\ntxt:a\r\n",
            "|1\r\n+k\r\n:1\r\n:2\r\n",
            "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*0\r\n",
        ] {
            check(input);
        }
    }

    #[test]
    fn what_is_no_reply() {
        let check = |input: &str, expected: ReplyError| {
            assert_eq!(follow(&[input.as_bytes()]), Err(expected), "{input:?}");
        };
        check("HTTP/1.1", ReplyError::Type(b'H'));
        check("\r\n", ReplyError::Type(b'\r'));
        check("$x\r\n", ReplyError::Length);
        check("$-2\r\n", ReplyError::Length);
        check("*?\r\n", ReplyError::Length);
        check("$3\r\nabcd\r\n", ReplyError::Line);
        check("$3\r\nabc\rx", ReplyError::Line);
        check("+OK\n", ReplyError::Line);
        check(&format!("+{}", "x".repeat(LINE_BYTES_MAX)), ReplyError::Line);
    }

    #[test]
    fn integers() {
        assert_eq!(integer(b":12\r\n"), Some(12));
        assert_eq!(integer(b":-1\r\n"), Some(-1));
        assert_eq!(integer(b"+OK\r\n"), None);
    }
}
