//! How fast an RDB file is read: `cargo test --release -p keyfleet-protocol --test rdb_speed -- --ignored --nocapture`,
//! with a file in RDB_FILE, or one that is made up.

use std::{fs::File, hint::black_box, io::Read as _, time::Instant};

use protocol::rdb::{Encoding, Event, Format, Items, Key, Limits, Reader, Writer};

/// Entries of the kinds that caches hold, 300 bytes each on average.
fn made_up(bytes: usize) -> Vec<u8> {
    let mut writer = Writer::new(Format::redis(11));
    let mut index = 0_u64;
    while writer.bytes().len() < bytes {
        index += 1;
        let name = format!("some:prefix:{index:010}");
        let mut key = Key::new(0, name.as_bytes(), Encoding::String);
        key.expire_at_ms = index.is_multiple_of(3).then_some(4_102_444_800_000 + index);
        let text = |length: usize| {
            let mut text = if length < 64 {
                vec![length as u8]
            } else {
                vec![0x40 | (length >> 8) as u8, length as u8]
            };
            text.extend((0..length).map(|at| (at as u64 ^ index) as u8));
            text
        };
        match index % 5 {
            0 => {
                key.encoding = Encoding::Hash;
                let fields: Vec<u8> = (0..20).flat_map(|_| text(20)).collect();
                writer.entry(&key, &[&[10], fields.as_slice()].concat());
            }
            1 => writer.entry(&key, &text(20)),
            _ => writer.entry(&key, &text(300 + (index % 200) as usize)),
        }
    }
    writer.finish()
}

/// Seconds that this thread has worked: others may work on the machine too.
fn worked(since: Instant) -> f64 {
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let spent = spent.split(' ').next().and_then(|spent| spent.parse::<f64>().ok());
    spent.map_or_else(|| since.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

fn read(mut source: impl std::io::Read, decode: bool) -> (usize, usize, f64) {
    let begun = Instant::now();
    let started = worked(begun);
    let (mut bytes, mut keys) = (0, 0);
    let mut reader = Reader::new(Limits::default());
    while !reader.is_done() {
        if let Some(record) = reader.next().unwrap() {
            if let Event::Entry(entry) = record.event {
                keys += 1;
                if decode {
                    for item in Items::new(entry.key.encoding, entry.raw) {
                        black_box(item.unwrap());
                    }
                }
                black_box(entry);
            }
            continue;
        }
        let count = source.read(reader.space()).unwrap();
        if count == 0 {
            reader.finish().unwrap();
        }
        reader.filled(count);
        bytes += count;
    }
    (bytes, keys, worked(begun) - started)
}

#[test]
#[ignore = "a measurement"]
fn gigabytes_a_second() {
    let path = std::env::var_os("RDB_FILE").map_or_else(
        || {
            let path = std::env::temp_dir().join(format!("speed-{}.rdb", std::process::id()));
            std::fs::write(&path, made_up(512 << 20)).unwrap();
            path
        },
        Into::into,
    );
    File::open(&path).unwrap().read_to_end(&mut Vec::new()).unwrap();
    for (what, decode) in [("read", false), ("read and decoded", true)] {
        let best = (0..5).map(|_| read(File::open(&path).unwrap(), decode));
        let (bytes, keys, seconds) = best.min_by(|a, b| a.2.total_cmp(&b.2)).unwrap();
        println!(
            "{what}: {:.2} GB/s, {:.2} million keys/s ({bytes} bytes, {keys} keys)",
            bytes as f64 / seconds / 1e9,
            keys as f64 / seconds / 1e6
        );
    }
    if std::env::var_os("RDB_FILE").is_none() {
        std::fs::remove_file(path).unwrap();
    }
}
