//! The files that every engine saved, into clusters of every engine: what gets there, and how.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use keyfleet::{admin_client::Connection, observe::now_ms};
use protocol::{
    Engine, EngineKind, key_slot,
    rdb::{Carried, Event, Key, Limits, Reader, Value, dump, transcode},
};
use serde_json::Value as Json;

use crate::{
    cluster::{RawCluster, Shape, call},
    engines::{ENGINES, engine},
    fleet::{Ended, TestFleet},
    server::TIME_MAX,
};

/// The types that the files hold, as reports name them.
const TYPES: [&str; 6] = ["string", "list", "set", "zset", "hash", "stream"];

/// How far apart two ends may be that are computed from what is left; milliseconds.
const APART_MS: u64 = 5_000;

/// A key of a file and its raw value.
pub type Entry = (Key<'static>, Vec<u8>);

/// What came of one engine's file in a cluster of another.
#[derive(Debug)]
pub struct Pair {
    /// `redis 7.0.15`.
    pub from: String,
    pub to: Engine,
    /// What `keyfleet import --output json` said.
    pub report: Json,
}

/// Where `cargo xtask dumps` puts what engines saved.
pub fn dumps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/protocol/tests/dumps")
}

/// The keys that a file holds.
pub fn entries(path: &Path) -> Result<Vec<Entry>> {
    let mut keys = Vec::new();
    read(path, |event| {
        if let Event::Entry(entry) = event {
            let name = Cow::Owned(entry.key.name.into_owned());
            keys.push((Key { name, ..entry.key }, entry.raw.to_vec()));
        }
    })?;
    Ok(keys)
}

fn read(path: &Path, mut show: impl FnMut(Event<'_>)) -> Result<()> {
    let mut reader = Reader::new(Limits::default());
    reader.feed(&fs::read(path)?);
    while let Some(record) = reader.next()? {
        show(record.event);
    }
    Ok(reader.finish()?)
}

/// Runs an import that reports in JSON; the report where it printed one.
pub async fn import(fleet: &TestFleet, file: &Path, to: &str, more: &[&str]) -> (Ended, Json) {
    let file = file.to_string_lossy();
    let mut args = vec!["import", &file, "--to", to, "--output", "json"];
    args.extend(more);
    let ended = fleet.run(&args).await;
    let report = serde_json::from_str(&ended.stdout).unwrap_or(Json::Null);
    (ended, report)
}

/// What a server says of a key: its value, and how many milliseconds are left. None: it has none.
pub async fn ask(link: &mut Connection, name: &[u8]) -> Result<Option<(Value, i64)>> {
    let reply = link.call_within(TIME_MAX, [b"DUMP".as_slice(), name]).await?;
    let Some(payload) = reply.as_bytes() else { return Ok(None) };
    let payload = dump::parse(payload)?;
    let left = link.call_within(TIME_MAX, [b"PTTL".as_slice(), name]).await?;
    let value = Value::decode(payload.encoding, payload.raw)?;
    Ok(Some((value, left.as_integer().context("PTTL")?)))
}

/// Is this when the key ends, if `left` milliseconds are left?
pub fn same_end(key: &Key<'_>, left: i64) -> bool {
    let end = u64::try_from(left).map_or(0, |left| now_ms() + left);
    end.abs_diff(key.expire_at_ms.unwrap_or(0)) < APART_MS
}

/// Every file into a cluster of every engine, value by value what it was; the pairs that fail are
/// an error.
pub async fn carry_all() -> Result<Vec<Pair>> {
    let fleet = TestFleet::empty();
    let mut files: Vec<PathBuf> =
        fs::read_dir(dumps())?.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rdb"));
    files.sort();
    let mut pairs = Vec::new();
    for (kind, version) in ENGINES {
        let program = engine(kind, version);
        let shape =
            Shape { server: &program.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
        let cluster = RawCluster::start(&shape).await?;
        for path in &files {
            let from = path.file_stem().unwrap_or_default().to_string_lossy().replace('-', " ");
            let pair = carry(&fleet, &cluster, program.engine, path).await;
            let report = pair.with_context(|| format!("{from} into {}", program.engine))?;
            pairs.push(Pair { from, to: program.engine, report });
            for index in 0..3 {
                call(&mut cluster.link(index).await?, &["FLUSHALL"]).await?;
            }
        }
    }
    Ok(pairs)
}

async fn carry(
    fleet: &TestFleet,
    cluster: &RawCluster,
    target: Engine,
    path: &Path,
) -> Result<Json> {
    let keys = entries(path)?;
    let mut functions = 0;
    read(path, |event| functions += usize::from(matches!(event, Event::Function(_))))?;
    let to = cluster.addresses().first().context("a node")?.to_string();
    let (ended, report) = import(fleet, path, &to, &["--verify", "--db-map", "3:0"]).await;
    let lossy = expect(cluster, target, &keys).await?;
    let functions_lost =
        if target.kind == EngineKind::Redis && target.version.major < 7 { functions } else { 0 };
    // What the target has no place for is named, and nothing else is.
    let named = lossy + functions_lost;
    ensure!(report["read"]["troubles"]["total"] == named, "{named} should be named: {ended:?}");
    ensure!(ended.code == Some(i32::from(named > 0)), "{ended:?}");
    ensure!(report["loaded"] == keys.len(), "{ended:?}");
    ensure!(report["verified"]["same"] == keys.len(), "{ended:?}");
    let mut slots = vec![0; 16_384];
    for (key, _) in &keys {
        slots[usize::from(key_slot(&key.name).number())] += 1;
    }
    ensure!(report["read"]["slots"] == Json::from(slots), "the slots' counts are wrong");
    Ok(report)
}

/// The cluster holds exactly these keys; how many of them lost something that the target has no
/// place for.
async fn expect(cluster: &RawCluster, target: Engine, keys: &[Entry]) -> Result<usize> {
    let owners = cluster.owners().await?;
    let (mut links, mut held, mut lossy) = (Vec::new(), 0, 0);
    for index in 0..3 {
        let mut link = cluster.link(index).await?;
        held += call(&mut link, &["DBSIZE"]).await?.as_integer().context("DBSIZE")?;
        links.push(link);
    }
    ensure!(usize::try_from(held) == Ok(keys.len()), "{held} keys instead of {}", keys.len());
    for (key, raw) in keys {
        let mut expected = Value::decode(key.encoding, raw)?;
        let Carried::Payload { lost, .. } = transcode(key.encoding, raw, &target)? else {
            anyhow::bail!("{key:?} has no payload")
        };
        lossy += usize::from(lost != protocol::rdb::Lost::default());
        if let Value::Hash(hash) = &mut expected
            && lost.field_ttls
        {
            for field in hash.values_mut() {
                field.expire_at_ms = None;
            }
        }
        let owner = owners[usize::from(key_slot(&key.name).number())];
        let found = ask(&mut links[owner], &key.name).await?;
        let (value, left) = found.with_context(|| format!("no {key:?}"))?;
        ensure!(value.same(&expected), "{key:?}\nfound {value:?}\nexpected {expected:?}");
        ensure!(same_end(key, left), "{key:?} ends in {left} ms");
    }
    Ok(lossy)
}

/// The reference page.
pub fn page(pairs: &[Pair]) -> String {
    let mut out = "\
# What gets where

`keyfleet import` of files that real servers saved, with values of every type in every packing, into clusters
of real servers, compared value by value and end by end. Written by `cargo xtask matrix`, checked by the tests.

- *raw*: the value goes into RESTORE as the file holds it, under the lowest version that has it.
- *repacked*: the value is brought into a form that the target takes.
- *by commands*: the value is made by commands.
- Whatever the target has no place for is named by the import, key by key, and the rest is loaded.

Values of more than a megabyte are made by commands everywhere, under a temporary name until they are whole.
"
    .to_owned();
    for targets in pairs.chunk_by(|one, two| one.to == two.to) {
        let Some(first) = targets.first() else { continue };
        let _ = write!(out, "\n## Into {}\n\n| from |", first.to);
        for name in TYPES {
            let _ = write!(out, " {name} |");
        }
        out.push_str(" functions |\n|---|---|---|---|---|---|---|---|\n");
        let mut lost: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in targets {
            let read = &pair.report["read"];
            let _ = write!(out, "| {} |", pair.from);
            for name in TYPES {
                let _ = write!(out, " {} |", ways(&read["types"][name]));
            }
            let mut functions = if read["functions"] == 0 { "–" } else { "raw" };
            for trouble in read["troubles"]["first"].as_array().into_iter().flatten() {
                let text = |name: &str| trouble[name].as_str().unwrap_or_default().to_owned();
                if text("why").contains("library") {
                    functions = "not";
                }
                let keys = lost.entry(text("why")).or_default();
                let key = format!("`{}`", text("key"));
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
            let _ = writeln!(out, " {functions} |");
        }
        for (why, keys) in lost {
            let _ = write!(out, "\n{} {why}.\n", keys.join(", "));
        }
    }
    out
}

/// How the values of a type get there.
fn ways(count: &Json) -> String {
    let number = |name: &str| count[name].as_u64().unwrap_or_default();
    let (repacked, by_commands) = (number("repacked"), number("by_commands"));
    let raw = number("keys") - repacked - by_commands;
    let ways = [(raw, "raw"), (repacked, "repacked"), (by_commands, "by commands")];
    let ways: Vec<_> = ways.into_iter().filter(|(keys, _)| *keys > 0).collect();
    match ways.as_slice() {
        [] => "–".to_owned(),
        [(_, way)] => (*way).to_owned(),
        _ => ways.iter().map(|(keys, way)| format!("{keys} {way}")).collect::<Vec<_>>().join(", "),
    }
}
