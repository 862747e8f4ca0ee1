//! The text of configuration files (`redis.conf`), one line at a time.
//!
//! The rules are the engines' own (`loadServerConfigFromString` and `sdssplitargs` in their
//! sources): a comment is a line of its own; double quotes know escapes, single quotes only `\'`;
//! what follows a closing quote must be white space.

use std::borrow::Cow;
use std::fmt::Write;

/// A line that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// In lower case, as the engines read it.
    pub name: String,
    pub args: Vec<String>,
}

/// A line that the engines refuse, or whose arguments are no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct ConfError {
    /// From 1, in characters.
    pub column: usize,
    pub problem: ConfProblem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfProblem {
    #[error("a quote that is not closed")]
    OpenQuote,
    #[error("text right behind a closing quote")]
    TextAfterQuote,
    #[error("an argument that is no UTF-8")]
    NotText,
}

/// Reads one line, with or without its line break; None for comments and blank lines.
pub fn parse_line(line: &str) -> Result<Option<Directive>, ConfError> {
    let line_text = line.trim_matches([' ', '\t', '\r', '\n']);
    if line_text.is_empty() || line_text.starts_with('#') {
        return Ok(None);
    }
    let start = line.len() - line.trim_start_matches([' ', '\t', '\r', '\n']).len();
    let mut words = split_args(line_text).map_err(|(offset, problem)| {
        let before = line.get(..start + offset).unwrap_or(line);
        ConfError { column: before.chars().count() + 1, problem }
    })?;
    if words.is_empty() {
        return Ok(None);
    }
    let name = words.remove(0).to_ascii_lowercase();
    Ok(Some(Directive { name, args: words }))
}

/// The words of a line, or where in it (in bytes) something is wrong.
fn split_args(line: &str) -> Result<Vec<String>, (usize, ConfProblem)> {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let bytes = line.as_bytes();
    let at = |index: usize| bytes.get(index).copied();
    let mut words = Vec::new();
    let mut next = 0;
    loop {
        while at(next).is_some_and(is_space) {
            next += 1;
        }
        let start = next;
        let mut word = Vec::new();
        // The place of the quote that is open, and which it is.
        let mut quote: Option<(usize, u8)> = None;
        loop {
            match (quote, at(next)) {
                (Some((opened, _)), None) => return Err((opened, ConfProblem::OpenQuote)),
                (None, None | Some(b' ' | b'\n' | b'\r' | b'\t' | 0)) => break,
                (None, Some(byte @ (b'"' | b'\''))) => quote = Some((next, byte)),
                (Some((_, mark)), Some(byte)) if byte == mark => {
                    next += 1;
                    if at(next).is_some_and(|byte| !is_space(byte)) {
                        return Err((next, ConfProblem::TextAfterQuote));
                    }
                    break;
                }
                (Some((_, b'\'')), Some(b'\\')) if at(next + 1) == Some(b'\'') => {
                    word.push(b'\'');
                    next += 1;
                }
                (Some((_, b'"')), Some(b'\\')) if at(next + 1).is_some() => {
                    let (byte, length) = unescape(bytes.get(next + 1..).unwrap_or_default());
                    word.push(byte);
                    next += length;
                }
                (_, Some(byte)) => word.push(byte),
            }
            next += 1;
        }
        // An empty word is one only in quotes; else it is the end (a NUL ends a line too).
        if next == start {
            return Ok(words);
        }
        words.push(String::from_utf8(word).map_err(|_| (start, ConfProblem::NotText))?);
    }
}

/// The byte that an escape stands for and the escape's length, the backslash not counted.
fn unescape(rest: &[u8]) -> (u8, usize) {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    match rest {
        [b'x', high, low, ..] if digit(high).is_some() && digit(low).is_some() => {
            let value = digit(high).unwrap_or(0) * 16 + digit(low).unwrap_or(0);
            (value as u8, 3)
        }
        [b'n', ..] => (b'\n', 1),
        [b'r', ..] => (b'\r', 1),
        [b't', ..] => (b'\t', 1),
        [b'b', ..] => (0x08, 1),
        [b'a', ..] => (0x07, 1),
        [other, ..] => (*other, 1),
        [] => (b'\\', 0),
    }
}

/// The argument as it must stand in a line: itself where that is safe, else in double quotes.
pub fn quote(arg: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\'');
    if !arg.is_empty() && arg.chars().all(is_plain) {
        return Cow::Borrowed(arg);
    }
    let mut quoted = String::with_capacity(arg.len() + 2);
    quoted.push('"');
    for c in arg.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\0'..=' ' if c != ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            _ => quoted.push(c),
        }
    }
    quoted.push('"');
    Cow::Owned(quoted)
}

/// One line without its line break; [`parse_line`] gives back the name and the arguments.
pub fn render(name: &str, args: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut line = name.to_owned();
    for arg in args {
        line.push(' ');
        line.push_str(&quote(arg.as_ref()));
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines() {
        let check = |line: &str, expected: &[&str]| {
            let directive = parse_line(line).unwrap();
            let words = directive.map_or_else(Vec::new, |directive| {
                let mut words = vec![directive.name];
                words.extend(directive.args);
                words
            });
            assert_eq!(words, expected, "{line:?}");
        };
        check("", &[]);
        check("  \t\r\n", &[]);
        check("# port 1", &[]);
        check("  # port 1", &[]);
        check("PORT 6379\r\n", &["port", "6379"]);
        check("port 6379 # no comment", &["port", "6379", "#", "no", "comment"]);
        check("\tsave  3600\t1 ", &["save", "3600", "1"]);
        check("save \"\"", &["save", ""]);
        check("a ''", &["a", ""]);
        check(r#"a "x y" 'p q'"#, &["a", "x y", "p q"]);
        check(r#"a "\n\r\t\b\a\"\\\q""#, &["a", "\n\r\t\x08\x07\"\\q"]);
        check(r#"a "\x41\xc3\xa9\xZZ""#, &["a", "AéxZZ"]);
        check(r"a '\n\'\x41'", &["a", r"\n'\x41"]);
        check(r"a b\n", &["a", r"b\n"]);
        check(r#"a x"y z""#, &["a", "xy z"]);
        check("a b\0c", &["a", "b"]);
        check("a b\x0bc", &["a", "b\x0bc"]);
        check("a é", &["a", "é"]);
    }

    #[test]
    fn lines_that_the_engines_refuse() {
        let check = |line: &str, column: usize, problem: ConfProblem| {
            assert_eq!(parse_line(line), Err(ConfError { column, problem }), "{line:?}");
        };
        check("a \"b", 3, ConfProblem::OpenQuote);
        check("é 'b", 3, ConfProblem::OpenQuote);
        check("  a \"b\\\"", 5, ConfProblem::OpenQuote);
        check("a \"b\"c", 6, ConfProblem::TextAfterQuote);
        check("a 'b'\"c\"", 6, ConfProblem::TextAfterQuote);
        check("a \"\\xff\"", 3, ConfProblem::NotText);
    }

    #[test]
    fn quotes_where_needed_only() {
        let check = |arg: &str, expected: &str| assert_eq!(quote(arg), expected);
        check("127.0.0.1", "127.0.0.1");
        check("~*", "~*");
        check("#5", "#5");
        check("", "\"\"");
        check("a b", "\"a b\"");
        check("a\"\\\n\x01", "\"a\\\"\\\\\\n\\x01\"");
        assert_eq!(render("save", [""]), "save \"\"");
        assert_eq!(render("bind", ["127.0.0.1", "::1"]), "bind 127.0.0.1 ::1");
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_read_back(args in prop::collection::vec(any::<String>(), 0..5)) {
            let line = render("name", &args);
            prop_assert!(!line.contains(['\n', '\r']));
            let read = parse_line(&line);
            prop_assert_eq!(read, Ok(Some(Directive { name: "name".into(), args })));
        }

        #[test]
        fn any_of_the_marks_is_read_back(arg in "[ '\"\\\\xabnr0\n\r\t\u{0}\u{b}\u{85}#]{0,12}") {
            let read = parse_line(&render("name", [&arg]));
            prop_assert_eq!(read, Ok(Some(Directive { name: "name".into(), args: vec![arg] })));
        }

        #[test]
        fn any_line_is_read_or_refused(line in "[ '\"\\\\xa#\t\u{0}é]{0,20}") {
            let _ = parse_line(&line);
        }
    }
}
