//! Where twemproxy sent each key, against where we would.

use protocol::key_hash::twemproxy::{Distribution, Hash, HashTag, KeyHash, Ring, RingServer};

const VECTORS: &str = include_str!("twemproxy/vectors.txt");

fn keys() -> Vec<Vec<u8>> {
    let hex = |text: &str| -> Vec<u8> {
        let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16).unwrap()).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
    };
    VECTORS.lines().filter_map(|line| line.strip_prefix("key ")).map(hex).collect()
}

#[test]
fn every_key_has_its_hash() {
    let keys = keys();
    assert_eq!(keys.len(), 199);
    let mut hashes = Vec::new();
    for line in VECTORS.lines().filter_map(|line| line.strip_prefix("hash ")) {
        let (name, values) = line.split_once(' ').unwrap();
        let hash = Hash::from_name(name).unwrap();
        for (index, key) in keys.iter().enumerate() {
            let expected = u32::from_str_radix(&values[8 * index..8 * index + 8], 16).unwrap();
            assert_eq!(hash.of(key), expected, "{name} {key:x?}");
        }
        assert_eq!(values.len(), 8 * keys.len());
        hashes.push(hash);
    }
    assert_eq!(hashes, Hash::ALL);
}

#[test]
fn every_key_goes_to_its_server() {
    let keys = keys();
    let mut pools = 0;
    let mut tag = None;
    let mut servers = Vec::new();
    for line in VECTORS.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["servers", chars, rest @ ..] => {
                tag = match chars.as_bytes() {
                    [open, close] => Some(HashTag { open: *open, close: *close }),
                    _ => None,
                };
                let server = |(id, word): (usize, &&'static str)| {
                    let (name, weight) = word.split_once('*').unwrap();
                    RingServer { id: id.try_into().unwrap(), name, weight: weight.parse().unwrap() }
                };
                servers = rest.iter().enumerate().map(server).collect();
            }
            ["pool", hash, distribution, letters] => {
                let hash = Hash::from_name(hash).unwrap();
                let ring = Ring::new(Distribution::from_name(distribution).unwrap(), &servers);
                assert_eq!(letters.len(), keys.len());
                for (key, letter) in keys.iter().zip(letters.bytes()) {
                    let value = KeyHash { hash, tag }.value(key);
                    let expected = u32::from(letter - b'a');
                    assert_eq!(ring.server(value), Some(expected), "{line} {key:x?}");
                }
                pools += 1;
            }
            _ => {}
        }
    }
    assert_eq!(pools, 216);
}
