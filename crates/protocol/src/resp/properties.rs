//! What holds for every value and for every sequence of bytes.

use proptest::prelude::*;

use super::{DecodeError, Decoder, Limits, Value, decode};

fn leaf() -> impl Strategy<Value = Value> {
    let text = "[^\r\n]{0,12}";
    prop_oneof![
        text.prop_map(Value::Simple),
        text.prop_map(Value::Error),
        any::<i64>().prop_map(Value::Integer),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bulk),
        Just(Value::Null),
        any::<f64>().prop_filter("equal to itself", |n| !n.is_nan()).prop_map(Value::Double),
        any::<bool>().prop_map(Value::Boolean),
        "[+-]?[0-9]{1,40}".prop_map(Value::BigNumber),
        (any::<[u8; 3]>(), prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(format, text)| Value::Verbatim { format, text }),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 48, 6, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..6);
        prop_oneof![
            items.clone().prop_map(Value::Array),
            items.clone().prop_map(Value::Set),
            items.prop_map(Value::Push),
            prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
        ]
    })
}

/// Bytes that come near to the protocol.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[-+:$*_%~>,#(=!|]".prop_map(String::into_bytes),
        "[0-9]{1,3}".prop_map(String::into_bytes),
        Just(b"\r\n".to_vec()),
        Just(b"9999999999999999999\r\n".to_vec()),
        Just(b"*1\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6),
        value().prop_map(|value| {
            let mut wire = Vec::new();
            value.encode(&mut wire);
            wire
        }),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

/// Feeds the wire in pieces of the given sizes, in turn, and reads all there is after each.
fn read_in_pieces(
    decoder: &mut Decoder,
    wire: &[u8],
    sizes: &[usize],
) -> Result<Vec<Value>, DecodeError> {
    let mut values = Vec::new();
    let mut rest = wire;
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        decoder.feed(piece);
        while let Some(value) = decoder.next()? {
            values.push(value);
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    Ok(values)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        values in prop::collection::vec(value(), 0..6),
        sizes in prop::collection::vec(1..30usize, 1..8),
    ) {
        let mut wire = Vec::new();
        for value in &values {
            value.encode(&mut wire);
        }
        let mut decoder = Decoder::new(Limits::default());
        prop_assert_eq!(read_in_pieces(&mut decoder, &wire, &sizes), Ok(values));
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn pieces_make_no_difference(
        wire in nearly(),
        sizes in prop::collection::vec(1..9usize, 1..8),
    ) {
        let limits = Limits { elements_max: 64, bulk_bytes_max: 100, ..Limits::default() };
        let mut whole = Vec::new();
        let mut rest = wire.as_slice();
        let end = loop {
            match decode(rest, &limits) {
                Ok(Some((value, used))) => {
                    // Printed, so that a NaN is equal to itself.
                    whole.push(format!("{value:?}"));
                    rest = &rest[used..];
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let mut decoder = Decoder::new(limits);
        let got = read_in_pieces(&mut decoder, &wire, &sizes);
        match (end, got) {
            (Ok(()), Ok(values)) => {
                let values: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
                prop_assert_eq!(values, whole);
            }
            (Err(one), Err(other)) => prop_assert_eq!(one, other),
            (one, other) => prop_assert!(false, "{one:?}, in pieces {other:?}"),
        }
    }

    #[test]
    fn any_bytes_stay_within_the_limits(
        wire in prop_oneof![nearly(), prop::collection::vec(any::<u8>(), 0..200)],
        sizes in prop::collection::vec(1..9usize, 1..8),
    ) {
        let limits = Limits {
            depth_max: 3,
            bulk_bytes_max: 32,
            line_bytes_max: 16,
            elements_max: 10,
            total_bytes_max: 120,
        };
        let mut decoder = Decoder::new(limits);
        for piece in wire.chunks(sizes[0]) {
            decoder.feed(piece);
            while let Ok(Some(_)) = decoder.next() {}
            // At most one string that is not complete, its line, and what was read before it.
            prop_assert!(decoder.unread() <= 32 + 16 + 8 + 9, "{}", decoder.unread());
            prop_assert!(decoder.held_elements() <= 10);
        }
    }
}

#[test]
fn work_is_linear_in_the_bytes() {
    // Starting over at every byte would take hours here.
    let items = vec![Value::Bulk(b"x".repeat(10)); 100_000];
    let mut wire = Vec::new();
    Value::Array(items.clone()).encode(&mut wire);
    Value::Bulk(b"y".repeat(1 << 20)).encode(&mut wire);
    Value::Simple("z".repeat(1 << 20)).encode(&mut wire);
    let limits = Limits { line_bytes_max: 1 << 20, ..Limits::default() };
    let mut decoder = Decoder::new(limits);
    let values = read_in_pieces(&mut decoder, &wire, &[1]).unwrap();
    assert_eq!(values.len(), 3);
    assert_eq!(values[0], Value::Array(items));
}
