//! Where a client's next request ends, and its words; nothing is copied.
//!
//! Stricter than the engines where bytes are forwarded as they came: a length that two parsers
//! could read differently (a sign, a leading zero, an end that is not CRLF) is refused, so that
//! what follows is never taken for a command by one side and for data by the other.

/// What is wrong with a request. Nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("invalid multibulk length")]
    Count,
    #[error("expected '$', got '{}'", char::from(*.0).escape_default())]
    Sign(u8),
    #[error("invalid bulk length")]
    Length,
    #[error("expected CRLF after an argument")]
    End,
    #[error("too big request")]
    TooBig,
    #[error("inline request that cannot be read")]
    Inline,
}

/// What one request may hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Words, the command's name included.
    pub words_max: u32,
    /// One word.
    pub word_bytes_max: usize,
}

impl Default for RequestLimits {
    /// As the engines have it.
    fn default() -> Self {
        Self { words_max: 1 << 20, word_bytes_max: 512 << 20 }
    }
}

/// Where a word lies, without its length and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    /// Its bytes; nothing where it lies outside.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.end).unwrap_or_default()
    }
}

/// A whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// How many bytes it takes.
    pub length: usize,
    /// How many words; 0: an empty line, which is to be skipped.
    pub words: u32,
    /// The command's name.
    pub name: Span,
    /// The word after it, where there is one.
    pub first: Span,
}

/// How far an incomplete request was read: work stays linear in the bytes, however they are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The next word's header starts here; 0: the request's own header was not read yet.
    pub at: usize,
    /// Words in all.
    pub words: u32,
    /// Words not read yet.
    pub left: u32,
    pub name: Span,
    pub first: Span,
    /// How long the word is that was begun: its header was read, its end not seen. 0: none.
    pub open: usize,
    /// Bytes of an inline request without an end.
    scanned: usize,
}

/// The longest line that is waited for: an inline request, or a length without its end.
pub const INLINE_BYTES_MAX: usize = 64 << 10;

/// A decimal length and where its line ends; None: more bytes are wanted.
#[inline]
pub(crate) fn number(bytes: &[u8], at: usize) -> Result<Option<(usize, usize)>, ()> {
    let mut value = 0_usize;
    let mut next = at;
    loop {
        let Some(&byte) = bytes.get(next) else {
            return if next - at > 12 { Err(()) } else { Ok(None) };
        };
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        if next - at > 10 || (value == 0 && next > at) {
            return Err(());
        }
        value = value * 10 + usize::from(digit);
        next += 1;
    }
    if next == at {
        return Err(());
    }
    match (bytes.get(next), bytes.get(next + 1)) {
        (Some(b'\r'), Some(b'\n')) => Ok(Some((value, next + 2))),
        (Some(b'\r'), None) => Ok(None),
        _ => Err(()),
    }
}

/// Finds the request at the start of `bytes`. None: it is not whole yet; call again with the same
/// bytes and more, and the same `progress`.
#[inline]
pub fn frame(
    bytes: &[u8],
    progress: &mut Progress,
    limits: &RequestLimits,
) -> Result<Option<Frame>, RequestError> {
    if progress.at == 0 {
        match bytes.first() {
            None => return Ok(None),
            Some(b'*') => {}
            Some(_) => return inline(bytes, progress),
        }
        if bytes.starts_with(b"*-") {
            return Err(RequestError::Count);
        }
        let Some((words, at)) = number(bytes, 1).map_err(|()| RequestError::Count)? else {
            return Ok(None);
        };
        if words > limits.words_max as usize {
            return Err(RequestError::Count);
        }
        *progress = Progress { at, words: words as u32, left: words as u32, ..Progress::default() };
    }
    let mut at = progress.at;
    let mut left = progress.left;
    while left > 0 {
        match bytes.get(at) {
            Some(b'$') => {}
            None => {
                pause(progress, at, left, 0);
                return Ok(None);
            }
            Some(other) => return Err(RequestError::Sign(*other)),
        }
        let Some((length, start)) = number(bytes, at + 1).map_err(|()| RequestError::Length)?
        else {
            pause(progress, at, left, 0);
            return Ok(None);
        };
        if length > limits.word_bytes_max {
            return Err(RequestError::Length);
        }
        let end = start + length;
        match (bytes.get(end), bytes.get(end + 1)) {
            (Some(b'\r'), Some(b'\n')) => {}
            (None, _) | (Some(b'\r'), None) => {
                pause(progress, at, left, length);
                return Ok(None);
            }
            _ => return Err(RequestError::End),
        }
        match progress.words - left {
            0 => progress.name = Span { start, end },
            1 => progress.first = Span { start, end },
            _ => {}
        }
        at = end + 2;
        left -= 1;
    }
    let Progress { words, name, first, .. } = *progress;
    *progress = Progress::default();
    Ok(Some(Frame { length: at, words, name, first }))
}

#[cold]
fn pause(progress: &mut Progress, at: usize, left: u32, open: usize) {
    (progress.at, progress.left, progress.open) = (at, left, open);
}

/// A request as people type it: words between spaces on one line. Quotes are refused, for the
/// words are forwarded as they lie here.
#[cold]
fn inline(bytes: &[u8], progress: &mut Progress) -> Result<Option<Frame>, RequestError> {
    let fresh = bytes.get(progress.scanned..).unwrap_or_default();
    let Some(found) = memchr::memchr(b'\n', fresh) else {
        progress.scanned = bytes.len();
        return if bytes.len() > INLINE_BYTES_MAX { Err(RequestError::TooBig) } else { Ok(None) };
    };
    let length = progress.scanned + found + 1;
    *progress = Progress::default();
    let line = bytes.get(..length).unwrap_or_default();
    if line.iter().any(|byte| matches!(byte, b'"' | b'\'' | 0)) {
        return Err(RequestError::Inline);
    }
    let mut words = inline_words(line);
    let name = words.next().unwrap_or_default();
    let first = words.next().unwrap_or_default();
    let count = inline_words(line).count() as u32;
    Ok(Some(Frame { length, words: count, name, first }))
}

fn inline_words(line: &[u8]) -> impl Iterator<Item = Span> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = line.get(at..)?;
        let start = at + rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let word = line.get(start..)?;
        let end = word.iter().position(u8::is_ascii_whitespace).map_or(line.len(), |n| start + n);
        at = end;
        Some(Span { start, end })
    })
}

/// The words of a whole request, in order.
pub fn words(request: &[u8]) -> Words<'_> {
    let inline = request.first() != Some(&b'*');
    let at = if inline { 0 } else { number(request, 1).ok().flatten().map_or(0, |(_, at)| at) };
    Words { request, at, inline }
}

/// See [`words`].
#[derive(Debug, Clone)]
pub struct Words<'a> {
    request: &'a [u8],
    at: usize,
    inline: bool,
}

impl Words<'_> {
    /// The next word: where its header starts (`$` for what is not inline), and where it lies.
    #[inline]
    pub fn next_span(&mut self) -> Option<(usize, Span)> {
        if self.inline {
            let rest = self.request.get(self.at..)?;
            let found = inline_words(rest).next()?;
            let span = Span { start: self.at + found.start, end: self.at + found.end };
            self.at = span.end;
            return Some((span.start, span));
        }
        let header = self.at;
        if header >= self.request.len() {
            return None;
        }
        let (length, start) = number(self.request, header + 1).ok().flatten()?;
        self.at = start + length + 2;
        Some((header, Span { start, end: start + length }))
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let request = self.request;
        self.next_span().map(|(_, span)| span.of(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { words_max: 5, word_bytes_max: 20 };

    fn read(input: &[u8]) -> Result<Option<(usize, Vec<String>)>, RequestError> {
        let found = frame(input, &mut Progress::default(), &LIMITS)?;
        Ok(found.map(|frame| {
            let bytes = &input[..frame.length];
            let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
            let all: Vec<String> = words(bytes).map(text).collect();
            assert_eq!(all.len(), frame.words as usize);
            assert_eq!(all.first().cloned().unwrap_or_default(), text(frame.name.of(bytes)));
            assert_eq!(all.get(1).cloned().unwrap_or_default(), text(frame.first.of(bytes)));
            (frame.length, all)
        }))
    }

    #[test]
    fn whole_requests_and_every_cut_of_them() {
        let check = |input: &str, expected: &[&str]| {
            let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
            let followed = format!("{input}*1\r\n");
            assert_eq!(read(followed.as_bytes()), Ok(Some((input.len(), expected))), "{input:?}");
            let mut progress = Progress::default();
            for cut in 0..input.len() {
                let part = &input.as_bytes()[..cut];
                assert_eq!(read(part), Ok(None), "{input:?} up to {cut}");
                assert_eq!(frame(part, &mut progress, &LIMITS), Ok(None), "{input:?} to {cut}");
            }
            let whole = frame(input.as_bytes(), &mut progress, &LIMITS).unwrap().unwrap();
            assert_eq!(Ok(Some(whole)), frame(input.as_bytes(), &mut Progress::default(), &LIMITS));
        };
        check("*1\r\n$4\r\nPING\r\n", &["PING"]);
        check("*2\r\n$3\r\nGET\r\n$5\r\nk\r\ney\r\n", &["GET", "k\r\ney"]);
        check("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n", &["SET", "k", ""]);
        check("*0\r\n", &[]);
        check("\r\n", &[]);
        check("PING\r\n", &["PING"]);
        check("  get  k\n", &["get", "k"]);
    }

    #[test]
    fn what_is_refused() {
        let check = |input: &str, expected: RequestError| {
            assert_eq!(read(input.as_bytes()), Err(expected), "{input:?}");
        };
        check("*-1\r\n", RequestError::Count);
        check("*6\r\n", RequestError::Count);
        check("*x\r\n", RequestError::Count);
        check("*01\r\n", RequestError::Count);
        check("*1\n", RequestError::Count);
        check("*1\r\r", RequestError::Count);
        check("*99999999999\r\n", RequestError::Count);
        check("*1\r\n:1\r\n", RequestError::Sign(b':'));
        check("*1\r\n$-1\r\n", RequestError::Length);
        check("*1\r\n$21\r\n", RequestError::Length);
        check("*1\r\n$04\r\nPING\r\n", RequestError::Length);
        check("*1\r\n$+4\r\nPING\r\n", RequestError::Length);
        check("*1\r\n$\r\n", RequestError::Length);
        check("*1\r\n$4\r\nPINGxx", RequestError::End);
        check("*1\r\n$4\r\nPING\rx", RequestError::End);
        check("*1\r\n$4\r\nPING\n", RequestError::End);
        check("get \"a b\"\r\n", RequestError::Inline);
        check(&"x".repeat(INLINE_BYTES_MAX + 1), RequestError::TooBig);
    }
}
