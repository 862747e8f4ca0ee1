//! What `analyze` says of files that engines saved.

use std::{fs, path::Path, sync::atomic::AtomicU64};

use keyfleet::{analyze, mover::import::source};
use protocol::rdb::{Event, Limits, Reader};

#[test]
fn every_key_is_counted_once_in_each_table() {
    let dumps = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/dumps");
    let mut files = 0;
    for entry in fs::read_dir(dumps).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rdb") {
            continue;
        }
        files += 1;
        let mut reader = Reader::new(Limits::default());
        reader.feed(&fs::read(&path).unwrap());
        let mut keys = 0;
        while let Some(record) = reader.next().unwrap() {
            keys += u64::from(matches!(record.event, Event::Entry(_)));
        }
        let inputs = source::find(std::slice::from_ref(&path)).unwrap();
        let report = analyze::run(&inputs, 3, &AtomicU64::new(0)).unwrap();
        assert_eq!(report.total.keys, keys, "{path:?}");
        assert_eq!(report.types.values().map(|sum| sum.keys).sum::<u64>(), keys);
        assert_eq!(report.encodings.values().map(|sum| sum.keys).sum::<u64>(), keys);
        assert_eq!(report.databases.values().map(|sum| sum.keys).sum::<u64>(), keys);
        assert_eq!(report.ttl.iter().map(|left| left.keys).sum::<u64>(), keys);
        assert_eq!(report.balance.shards.iter().map(|sum| sum.keys).sum::<u64>(), keys);
        let lists = report.prefixes.iter().find(|each| each.prefix == "list:").unwrap();
        assert_eq!(lists.sum.keys, report.types["list"].keys, "{path:?}");
        let biggest = report.biggest.windows(2);
        assert!(biggest.into_iter().all(|two| two[0].memory_bytes >= two[1].memory_bytes));
        let page = analyze::page::page(&report);
        assert!(page.contains("<svg") && page.contains("list:"), "{page}");
    }
    assert!(files > 0);
}
