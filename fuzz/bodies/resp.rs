//! Any bytes in any pieces: the same values or the same error as in one piece, and what was
//! decoded is encoded to something that decodes to the same value.

use protocol::resp::{Decoder, Limits, decode};

const LIMITS: Limits = Limits {
    depth_max: 8,
    bulk_bytes_max: 1 << 12,
    line_bytes_max: 1 << 8,
    elements_max: 1 << 8,
    total_bytes_max: 1 << 14,
};

/// Tries one input; panics where something doesn't hold.
pub fn run(input: &[u8]) {
    let Some((size, wire)) = input.split_first() else { return };
    let mut rest = wire;
    let mut whole = Vec::new();
    let error = loop {
        match decode(rest, &LIMITS) {
            Ok(Some((value, used))) => {
                let mut again = Vec::new();
                value.encode(&mut again);
                // Line breaks inside errors become spaces, so it is the bytes that are compared.
                let decoded = decode(&again, &Limits::default()).expect("what we encode");
                let (decoded, _) = decoded.expect("a whole value");
                let mut twice = Vec::new();
                decoded.encode(&mut twice);
                assert_eq!(again, twice);
                whole.push(format!("{value:?}"));
                rest = &rest[used..];
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let mut decoder = Decoder::new(LIMITS);
    let mut pieces = Vec::new();
    let mut failed = None;
    for piece in wire.chunks(usize::from(*size).max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(value)) => pieces.push(format!("{value:?}")),
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
    }
    assert_eq!((whole, error), (pieces, failed));
}
