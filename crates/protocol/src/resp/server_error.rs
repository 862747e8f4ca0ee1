//! What a server says when it refuses.

use std::fmt;

use crate::Slot;

/// An error reply, such as `WRONGTYPE Operation against a key …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ServerError {
    /// The first word where it is a code (`ERR`, `MOVED`, `NOAUTH`): upper-case letters, digits
    /// and `_`. Empty where the text starts otherwise.
    pub code: String,
    /// The text after the code.
    pub message: String,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", message) => f.write_str(message),
            (code, "") => f.write_str(code),
            (code, message) => write!(f, "{code} {message}"),
        }
    }
}

/// Where a cluster node says a slot is to be asked for.
/// Source: the cluster specification, MOVED and ASK redirection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// The slot is owned there, from now on.
    Moved { slot: Slot, host: String, port: u16 },
    /// Ask there this once, after ASKING.
    Ask { slot: Slot, host: String, port: u16 },
}

impl ServerError {
    /// From an error reply without its leading sign.
    pub fn parse(text: &str) -> Self {
        let (first, rest) = text.split_once(' ').unwrap_or((text, ""));
        let is_code = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let (code, message) = if first.chars().all(is_code) { (first, rest) } else { ("", text) };
        Self { code: code.to_owned(), message: message.to_owned() }
    }

    /// The redirect, where the error is a well-formed one. Its host is empty where the server
    /// does not know it (then it is the host that was asked) and may be a name, `?` (a name that
    /// is not set) or an IPv6 address, which comes without brackets.
    pub fn redirect(&self) -> Option<Redirect> {
        let (slot, address) = self.message.split_once(' ')?;
        let slot = Slot::new(slot.parse().ok()?)?;
        let (host, port) = address.trim_end().rsplit_once(':')?;
        let port = port.parse().ok()?;
        let host = host.to_owned();
        match self.code.as_str() {
            "MOVED" => Some(Redirect::Moved { slot, host, port }),
            "ASK" => Some(Redirect::Ask { slot, host, port }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let check = |text: &str, code: &str, message: &str| {
            let error = ServerError::parse(text);
            assert_eq!((error.code.as_str(), error.message.as_str()), (code, message));
            assert_eq!(error.to_string(), text);
        };
        check("ERR unknown command", "ERR", "unknown command");
        check("NOAUTH Authentication required.", "NOAUTH", "Authentication required.");
        check("LOADING", "LOADING", "");
        check("no code here", "", "no code here");
        check("", "", "");
    }

    #[test]
    fn redirects() {
        let check = |text: &str, expected: Option<(bool, u16, &str, u16)>| {
            let expected = expected.map(|(moved, slot, host, port)| {
                let (slot, host) = (Slot::new(slot).unwrap(), host.to_owned());
                if moved {
                    Redirect::Moved { slot, host, port }
                } else {
                    Redirect::Ask { slot, host, port }
                }
            });
            assert_eq!(ServerError::parse(text).redirect(), expected, "{text}");
        };
        check("MOVED 3999 127.0.0.1:6381", Some((true, 3999, "127.0.0.1", 6381)));
        check("ASK 0 :7001", Some((false, 0, "", 7001)));
        check("MOVED 1 2001:db8::1:6379", Some((true, 1, "2001:db8::1", 6379)));
        check("MOVED 1 cache-1.example:6379", Some((true, 1, "cache-1.example", 6379)));
        check("MOVED 1 ?:6379", Some((true, 1, "?", 6379)));
        check("MOVED 16384 127.0.0.1:6381", None);
        check("MOVED 1 127.0.0.1", None);
        check("MOVED 1 127.0.0.1:99999", None);
        check("ERR 1 127.0.0.1:1", None);
    }
}
