//! What DUMP answers and RESTORE takes: the type byte, the raw value, two bytes of version, eight
//! bytes of checksum.

use super::{Brand, Checksum, Encoding, Fault, Format, layout::Layout, wire::Cursor};

/// Of a payload after the value.
const FOOTER_BYTES: usize = 10;

/// Before the type byte, where modules noted something for the key (Redis from version 13).
const METADATA: u8 = 243;

/// A payload taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    pub encoding: Encoding,
    pub raw: &'a [u8],
    pub format: Format,
}

/// A whole payload.
///
/// The version must be one that has the encoding ([`Encoding::format`]) and that the target takes
/// ([`payload_format`](super::payload_format)).
pub fn payload(encoding: Encoding, raw: &[u8], format: Format) -> Vec<u8> {
    let mut payload = Vec::with_capacity(payload_bytes(raw));
    put_payload(encoding, raw, format, &mut payload);
    payload
}

/// How long the payload of a raw value is.
pub fn payload_bytes(raw: &[u8]) -> usize {
    1 + raw.len() + FOOTER_BYTES
}

/// Appends what [`payload`] makes.
pub fn put_payload(encoding: Encoding, raw: &[u8], format: Format, out: &mut Vec<u8>) {
    let start = out.len();
    out.push(encoding.byte());
    out.extend_from_slice(raw);
    out.extend_from_slice(&format.version.to_le_bytes());
    let checksum = Checksum::of(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// Takes a payload apart and checks its checksum. What modules noted for the key is left out. The
/// value itself is not looked into.
pub fn parse(payload: &[u8]) -> Result<Payload<'_>, Fault> {
    let ends = Fault::Ends("a DUMP payload");
    let (covered, stored) = payload.split_last_chunk::<8>().ok_or(ends.clone())?;
    let (body, version) = covered.split_last_chunk::<2>().ok_or(ends.clone())?;
    if Checksum::of(covered) != u64::from_le_bytes(*stored) {
        return Err(Fault::Expected("a DUMP payload with its checksum"));
    }
    let format = Format::of_version(u16::from_le_bytes(*version));
    let mut cursor = Cursor::new(body);
    let at_end = |stop: super::wire::Stop| stop.at_end("a DUMP payload");
    let mut byte = cursor.byte().map_err(at_end)?;
    if byte == METADATA && format.brand == Brand::Redis {
        let mut layout = Layout::metadata(cursor.length().map_err(at_end)?);
        while layout.next(&mut cursor).map_err(at_end)?.is_some() {}
        byte = cursor.byte().map_err(at_end)?;
    }
    let encoding = Encoding::from_byte(byte, format.brand);
    let encoding = encoding.ok_or(Fault::Found { expected: "the type of a value", byte })?;
    Ok(Payload { encoding, raw: cursor.rest, format })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_an_engine_made_it() {
        // Of redis 7.0.15: SET k 10; DUMP k.
        let made = b"\x00\xc0\n\n\x00n\x9fWE\x0e\xaec\xbb";
        let payload = parse(made).unwrap();
        let raw = b"\xc0\n".as_slice();
        assert_eq!(payload, Payload { encoding: Encoding::String, raw, format: Format::redis(10) });
        assert_eq!(super::payload(Encoding::String, raw, Format::redis(10)), made);
    }

    #[test]
    fn metadata_is_left_out() {
        let mut bytes = b"\xf3\x01abcd\x02\x05\x05\x01x\x00\x00\xc0\x0a\x0d\x00".to_vec();
        let checksum = Checksum::of(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        let payload = parse(&bytes).unwrap();
        assert_eq!((payload.encoding, payload.raw), (Encoding::String, b"\xc0\x0a".as_slice()));
    }

    #[test]
    fn refuses() {
        let good = payload(Encoding::String, b"\x01x", Format::redis(6));
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err(), "{cut}");
        }
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bad).is_err(), "{bit}");
        }
    }
}
