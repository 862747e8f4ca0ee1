//! The PROXY protocol, versions 1 and 2: what a load balancer says first of the client that it
//! connects. Source: <https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// So many bytes a header may have. Version 1 has 107 at most; version 2 may carry more that isn't
/// looked at.
pub(super) const HEADER_BYTES_MAX: usize = 4 << 10;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const TEXT: &[u8] = b"PROXY ";
/// Of version 1, its end among them.
const TEXT_BYTES_MAX: usize = 107;

/// Who speaks with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    pub client: SocketAddr,
    /// Where the client connected to.
    pub reached: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// There is more to come.
    Partial,
    /// It has so many bytes. Without ends it is the balancer itself that asks.
    Whole { length: usize, ends: Option<Ends> },
    /// It is none.
    Wrong,
}

/// Reads what a connection begins with.
pub(super) fn read(bytes: &[u8]) -> Header {
    let read = if begins(bytes, SIGNATURE) {
        binary(bytes)
    } else if begins(bytes, TEXT) {
        text(bytes)
    } else {
        None
    };
    match read {
        Some(Header::Partial) if bytes.len() >= HEADER_BYTES_MAX => Header::Wrong,
        read => read.unwrap_or(Header::Wrong),
    }
}

/// Could it be one that begins so?
fn begins(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(byte, wanted)| byte == wanted)
}

fn binary(bytes: &[u8]) -> Option<Header> {
    let Some([command, family, high, low, rest @ ..]) = bytes.get(SIGNATURE.len()..) else {
        return Some(Header::Partial);
    };
    let body = usize::from(u16::from_be_bytes([*high, *low]));
    let length = SIGNATURE.len() + 4 + body;
    if length > HEADER_BYTES_MAX {
        return None;
    }
    let Some(rest) = rest.get(..body) else { return Some(Header::Partial) };
    let ends = match (command, family >> 4) {
        (0x20, _) | (0x21, 0 | 3) => None,
        (0x21, 1) => Some(ends::<4>(rest)?),
        (0x21, 2) => Some(ends::<16>(rest)?),
        _ => return None,
    };
    Some(Header::Whole { length, ends })
}

/// Both addresses, of so many bytes, then both ports.
fn ends<const BYTES: usize>(body: &[u8]) -> Option<Ends>
where
    IpAddr: From<[u8; BYTES]>,
{
    let (client, rest) = body.split_first_chunk::<BYTES>()?;
    let (reached, rest) = rest.split_first_chunk::<BYTES>()?;
    let (client_port, rest) = rest.split_first_chunk::<2>()?;
    let (reached_port, _) = rest.split_first_chunk::<2>()?;
    Some(Ends {
        client: (IpAddr::from(*client), u16::from_be_bytes(*client_port)).into(),
        reached: (IpAddr::from(*reached), u16::from_be_bytes(*reached_port)).into(),
    })
}

fn text(bytes: &[u8]) -> Option<Header> {
    let line = bytes.get(..bytes.len().min(TEXT_BYTES_MAX))?;
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return (bytes.len() < TEXT_BYTES_MAX).then_some(Header::Partial);
    };
    let words = str::from_utf8(line.get(TEXT.len()..end)?).ok()?;
    let mut words = words.split(' ');
    let family = words.next()?;
    let mut next = || words.next();
    let ends = match family {
        "UNKNOWN" => None,
        "TCP4" | "TCP6" => {
            let mut ip = || -> Option<IpAddr> {
                let word = next()?;
                if family == "TCP4" {
                    word.parse::<Ipv4Addr>().ok().map(IpAddr::from)
                } else {
                    word.parse::<Ipv6Addr>().ok().map(IpAddr::from)
                }
            };
            let (client, reached) = (ip()?, ip()?);
            let (client_port, reached_port) = (next()?.parse().ok()?, next()?.parse().ok()?);
            if next().is_some() {
                return None;
            }
            let reached = SocketAddr::new(reached, reached_port);
            Some(Ends { client: SocketAddr::new(client, client_port), reached })
        }
        _ => return None,
    };
    Some(Header::Whole { length: end + 2, ends })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every beginning of a header is only that.
    fn check(bytes: &[u8], expected: Header) {
        assert_eq!(read(bytes), expected, "{bytes:?}");
        if let Header::Whole { length, .. } = expected {
            for end in 0..length {
                assert_eq!(read(&bytes[..end]), Header::Partial, "{:?}", &bytes[..end]);
            }
            assert_eq!(read(&[bytes, b"PING\r\n"].concat()), expected);
        }
    }

    fn whole(length: usize, ends: Option<(&str, &str)>) -> Header {
        let ends = ends.map(|(client, reached)| Ends {
            client: client.parse().unwrap(),
            reached: reached.parse().unwrap(),
        });
        Header::Whole { length, ends }
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, body].concat()
    }

    #[test]
    fn binary_headers() {
        let four = [192, 0, 2, 1, 10, 0, 0, 9, 0x12, 0x34, 0x18, 0xeb];
        let ends = Some(("192.0.2.1:4660", "10.0.0.9:6379"));
        check(&binary(0x21, 0x11, &four), whole(28, ends));
        // What follows the addresses is left alone.
        check(&binary(0x21, 0x11, &[&four[..], b"more"].concat()), whole(32, ends));
        let mut six = [0; 36];
        (six[15], six[31], six[33], six[35]) = (1, 2, 3, 4);
        check(&binary(0x21, 0x21, &six), whole(52, Some(("[::1]:3", "[::2]:4"))));
        check(&binary(0x20, 0x00, b""), whole(16, None));
        check(&binary(0x20, 0x11, &four), whole(28, None));
        check(&binary(0x21, 0x31, &[0; 216]), whole(232, None));
        check(&binary(0x21, 0x11, &four[..11]), Header::Wrong);
        check(&binary(0x22, 0x11, &four), Header::Wrong);
        check(&binary(0x11, 0x11, &four), Header::Wrong);
        check(&binary(0x21, 0x41, &four), Header::Wrong);
        check(&binary(0x21, 0x11, &[0; HEADER_BYTES_MAX]), Header::Wrong);
    }

    #[test]
    fn text_headers() {
        let ends = Some(("192.0.2.1:56324", "10.0.0.9:443"));
        check(b"PROXY TCP4 192.0.2.1 10.0.0.9 56324 443\r\n", whole(41, ends));
        check(b"PROXY TCP6 ::1 ::2 3 4\r\n", whole(24, Some(("[::1]:3", "[::2]:4"))));
        check(b"PROXY UNKNOWN\r\n", whole(15, None));
        check(b"PROXY UNKNOWN what ever\r\n", whole(25, None));
        for wrong in [
            "PING\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "PROXY TCP4 ::1 ::2 3 4\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.9 56324\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.9 56324 443 1\r\n",
            "PROXY TCP4 192.0.2.1 10.0.0.9 56324 70000\r\n",
            "PROXY UDP4 192.0.2.1 10.0.0.9 56324 443\r\n",
            "PROXYTCP4\r\n",
        ] {
            check(wrong.as_bytes(), Header::Wrong);
        }
        check(&[b"PROXY ", &[b'x'; 101][..]].concat(), Header::Wrong);
    }
}
