//! Makes `crates/protocol/tests/dumps`: RDB files of every engine with values of every type in every
//! packing, and beside each what the engine itself says of its keys. Also an append-only directory.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use protocol::{Value, rdb::Checksum};

use crate::{
    command,
    engines::{self, TestEngine},
    server::Server,
};

/// 2100-01-01: keys and fields that end do so then, or some tens of seconds later.
const END_MS: u64 = 4_102_444_800_000;

const DEADLINE: Duration = Duration::from_secs(20);

/// Where they go.
fn directory() -> PathBuf {
    command::workspace().join("crates/protocol/tests/dumps")
}

/// Asks every engine.
pub fn run() -> Result<()> {
    for engine in engines::install()? {
        eprintln!("{}", engine.name);
        dump(&engine)?;
    }
    Ok(())
}

fn dump(engine: &TestEngine) -> Result<()> {
    let scratch = command::target().join("dumps");
    let policy = if engine.name == "redis-7.0" { "allkeys-lfu" } else { "allkeys-lru" };
    let mut configuration = format!("save \"\"\nmaxmemory-policy {policy}\nappendonly no\n");
    if engine.name != "redis-6.2" {
        configuration.push_str("enable-debug-command yes\n");
    }
    let mut server = Server::start(&engine.server, &scratch, &configuration)?;
    fill(&mut server)?;
    let said = describe(&mut server)?;
    ensure!(server.call(&["SAVE"])?.as_str() == Some("OK"), "SAVE of {}", engine.name);
    let files = directory();
    fs::create_dir_all(&files)?;
    let name = format!("{}-{}", engine.kind, engine.version);
    fs::copy(scratch.join("dump.rdb"), files.join(format!("{name}.rdb")))?;
    fs::write(files.join(format!("{name}.txt")), said)?;
    if engine.name == "valkey-8.1" {
        append_only(&mut server, &scratch, &files.join("appendonlydir"))?;
    }
    Ok(())
}

/// Lets the server write an append-only file with a base and later commands.
fn append_only(server: &mut Server, scratch: &Path, files: &Path) -> Result<()> {
    server.call(&["FLUSHALL"])?;
    server.call(&["SELECT", "0"])?;
    server.call(&["SET", "before", "1"])?;
    server.call(&["CONFIG", "SET", "aof-timestamp-enabled", "yes"])?;
    server.call(&["CONFIG", "SET", "appendonly", "yes"])?;
    let give_up = Instant::now() + DEADLINE;
    loop {
        let info = server.call(&["INFO", "persistence"])?;
        let info = info.as_str().unwrap_or_default();
        if ["aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0", "aof_enabled:1"]
            .iter()
            .all(|line| info.contains(line))
        {
            break;
        }
        if Instant::now() > give_up {
            bail!("no append-only file: {info}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    server.call(&["SET", "after", "line\r\nbreak"])?;
    server.call(&["SELECT", "3"])?;
    server.call(&["RPUSH", "list", "a", ""])?;
    server.call(&["CONFIG", "SET", "appendonly", "no"])?;
    if files.exists() {
        fs::remove_dir_all(files)?;
    }
    fs::create_dir_all(files)?;
    for entry in fs::read_dir(scratch.join("appendonlydir"))? {
        let entry = entry?;
        fs::copy(entry.path(), files.join(entry.file_name()))?;
    }
    Ok(())
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.0 >> 33
    }

    /// Bytes that can't be compressed.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// A key's commands, for engines that know them.
struct Filler<'a> {
    server: &'a mut Server,
}

impl Filler<'_> {
    fn must(&mut self, arguments: &[&[u8]]) -> Result<()> {
        let reply = self.server.call(arguments)?;
        reply
            .into_result()
            .with_context(|| format!("{:?}", arguments.join(&b' ').escape_ascii()))?;
        Ok(())
    }

    fn text(&mut self, line: &str) -> Result<()> {
        self.must(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
    }

    /// Where the engine doesn't know it, nothing.
    fn may(&mut self, line: &str) -> Result<()> {
        self.server.call(&line.split(' ').collect::<Vec<_>>())?;
        Ok(())
    }

    fn many(&mut self, head: &str, arguments: impl IntoIterator<Item = String>) -> Result<()> {
        let words = head.split(' ').map(str::to_owned).chain(arguments).collect::<Vec<_>>();
        self.must(&words.iter().map(String::as_bytes).collect::<Vec<_>>())
    }
}

const WIDTHS: [&str; 12] = [
    "0",
    "12",
    "-1",
    "127",
    "-129",
    "4095",
    "32767",
    "-32769",
    "8388607",
    "-2147483649",
    "9223372036854775807",
    "-9223372036854775808",
];

fn fill(server: &mut Server) -> Result<()> {
    let mut numbers = Numbers(7);
    let mut fill = Filler { server };
    // Strings.
    for (index, number) in WIDTHS.iter().enumerate() {
        fill.text(&format!("SET string:number:{index} {number}"))?;
    }
    fill.must(&[b"SET", b"string:empty", b""])?;
    fill.must(&[b"SET", b"", b"the key is empty"])?;
    fill.must(&[b"SET", b"string:zero", b"-0"])?;
    fill.must(&[b"SET", b"string:\x00\xff\r\n", &numbers.bytes(100)])?;
    fill.must(&[b"SET", b"string:compressed", &b"abcdefgh".repeat(4000)])?;
    fill.must(&[b"SET", b"string:raw", &numbers.bytes(3000)])?;
    fill.must(&[b"SET", &b"key:compressed:".repeat(20), b"1"])?;
    fill.text("SET 12345 number")?;
    fill.text("SET string:expires x")?;
    fill.text(&format!("PEXPIREAT string:expires {END_MS}"))?;
    // Lists.
    fill.many("RPUSH list:small", WIDTHS.iter().map(|number| (*number).to_owned()))?;
    fill.must(&[b"RPUSH", b"list:bytes", b"", b"a", &numbers.bytes(70), &numbers.bytes(5000)])?;
    fill.many("RPUSH list:long", (0..300).map(|i| format!("{}", i * i * i)))?;
    fill.may("DEBUG QUICKLIST-PACKED-THRESHOLD 200b")?;
    fill.must(&[b"RPUSH", b"list:plain", b"1", &numbers.bytes(300), b"2", &b"xyz".repeat(300)])?;
    fill.may("DEBUG QUICKLIST-PACKED-THRESHOLD 0")?;
    // Sets.
    fill.text("SADD set:16 1 2 -3 300")?;
    fill.text("SADD set:32 1 2 -3 70000")?;
    fill.text("SADD set:64 1 2 -3 5000000000")?;
    fill.text("SADD set:small a b 3 -70000")?;
    fill.many("SADD set:large", (0..300).map(|i| format!("member {}", i * 7919)))?;
    fill.text(&format!("PEXPIREAT set:large {}", END_MS + 10_000))?;
    // Sorted sets.
    fill.text("ZADD zset:small 1 a -2.5 b inf c -inf d 0 e 1e300 f 9007199254740993 g 3 7")?;
    fill.many(
        "ZADD zset:large",
        (0..200).flat_map(|i| [format!("{}.5e{}", i, i % 40 - 20), format!("member {i}")]),
    )?;
    fill.must(&[
        b"ZADD",
        b"zset:large",
        b"inf",
        b"top",
        b"-inf",
        b"bottom",
        b"0.1",
        &numbers.bytes(80),
    ])?;
    // Hashes.
    fill.text("HSET hash:small a 1 b two 3 -70000")?;
    fill.must(&[b"HSET", b"hash:small", b"empty", b""])?;
    fill.many(
        "HSET hash:large",
        (0..200).flat_map(|i| [format!("field {i}"), format!("{}", i * 1001)]),
    )?;
    fill.must(&[b"HSET", b"hash:large", b"bytes", &numbers.bytes(100)])?;
    fill.text("HSET hash:ends:small a 1 b two c 3")?;
    fill.may(&format!("HPEXPIREAT hash:ends:small {} FIELDS 1 a", END_MS + 20_000))?;
    fill.may(&format!("HPEXPIREAT hash:ends:small {END_MS} FIELDS 1 c"))?;
    fill.many(
        "HSET hash:ends:large",
        (0..150).flat_map(|i| [format!("field {i:0>70}"), "x".to_owned()]),
    )?;
    for i in 0..30 {
        let end = END_MS + i * 10_000;
        fill.server.call(&[
            "HPEXPIREAT",
            "hash:ends:large",
            &end.to_string(),
            "FIELDS",
            "1",
            &format!("field {i:0>70}"),
        ])?;
    }
    fill_streams(&mut fill)?;
    // The rest.
    fill.must(&[
        b"FUNCTION",
        b"LOAD",
        b"#!lua name=lib\nredis.register_function('f', function() return 1 end)",
    ])
    .or_else(|error| {
        if format!("{error:#}").contains("unknown command") { Ok(()) } else { Err(error) }
    })?;
    fill.text("SELECT 3")?;
    fill.text("SET string:other db")?;
    fill.text("SELECT 0")
}

fn fill_streams(fill: &mut Filler<'_>) -> Result<()> {
    for i in 1..=150_u64 {
        fill.text(&format!("XADD stream:long {}-{} same {i} other text", 1000 + i * i, i % 3))?;
    }
    for id in ["1004-2", "1009-0", "5900-1"] {
        fill.text(&format!("XDEL stream:long {id}"))?;
    }
    fill.text("XADD stream:long 99999-1 a 1")?;
    fill.text("XADD stream:long 99999-2 a 1 b 2 c 3")?;
    fill.text("XADD stream:groups 5-1 a 1")?;
    fill.text("XADD stream:groups 5-2 b 2")?;
    fill.text("XADD stream:groups 6-0 c 3")?;
    fill.text("XADD stream:groups 7-0 d 4")?;
    fill.text("XGROUP CREATE stream:groups first 0")?;
    fill.text("XGROUP CREATE stream:groups second 5-2")?;
    fill.text("XGROUP CREATE stream:groups third $")?;
    fill.text("XREADGROUP GROUP first alice COUNT 2 STREAMS stream:groups >")?;
    fill.text("XREADGROUP GROUP first bob COUNT 1 STREAMS stream:groups >")?;
    fill.text("XREADGROUP GROUP second alice COUNT 9 STREAMS stream:groups >")?;
    fill.text("XCLAIM stream:groups first bob 0 5-1 TIME 1600000000000 RETRYCOUNT 7 JUSTID")?;
    fill.text("XACK stream:groups second 6-0")?;
    fill.text("XGROUP CREATECONSUMER stream:groups third idle")?;
    fill.text("XADD stream:empty 8-0 a 1")?;
    fill.text("XDEL stream:empty 8-0")?;
    fill.text("XGROUP CREATE stream:new group 0 MKSTREAM")?;
    fill.text(&format!("PEXPIREAT stream:new {END_MS}"))
}

/// What the engine says of all its keys. `crates/protocol/tests/dumps.rs` says it of the files in the
/// same words.
fn describe(server: &mut Server) -> Result<String> {
    let mut out = String::new();
    for db in ["0", "3"] {
        server.call(&["SELECT", db])?;
        let reply = server.call(&["KEYS", "*"])?;
        let mut keys: Vec<Vec<u8>> = reply
            .as_array()
            .unwrap_or_default()
            .iter()
            .filter_map(Value::as_bytes)
            .map(<[u8]>::to_vec)
            .collect();
        keys.sort();
        for key in keys {
            describe_key(server, db, &key, &mut out)?;
        }
    }
    Ok(out)
}

fn describe_key(server: &mut Server, db: &str, key: &[u8], out: &mut String) -> Result<()> {
    let mut ask = |words: &[&[u8]]| server.call(words)?.into_result().map_err(anyhow::Error::from);
    let kind = ask(&[b"TYPE", key])?;
    let kind = kind.as_str().unwrap_or_default().to_owned();
    write!(out, "{db} {} {kind}", text(key))?;
    let left = ask(&[b"PTTL", key])?.as_integer().unwrap_or_default();
    if left >= 0 {
        let now = ask(&[b"TIME"])?;
        let seconds = now.as_array().and_then(|now| now.first()?.as_integer()).context("TIME")?;
        // Older engines say only how long it is until then.
        write!(out, " until {}", (seconds * 1000 + left + 5_000) / 10_000 * 10_000)?;
    }
    out.push('\n');
    let list = |reply: &Value| -> Vec<Vec<u8>> {
        let items = reply.as_array().unwrap_or_default();
        items.iter().filter_map(Value::as_bytes).map(<[u8]>::to_vec).collect()
    };
    let mut lines = Vec::new();
    match &*kind {
        "string" => lines.push(text(ask(&[b"GET", key])?.as_bytes().context("GET")?)),
        "list" => lines.extend(list(&ask(&[b"LRANGE", key, b"0", b"-1"])?).iter().map(|e| text(e))),
        "set" => {
            lines.extend(list(&ask(&[b"SMEMBERS", key])?).iter().map(|e| text(e)));
            lines.sort();
        }
        "zset" => {
            for pair in list(&ask(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"])?).chunks(2) {
                let [member, score] = pair else { bail!("ZRANGE") };
                let score: f64 = std::str::from_utf8(score)?.parse()?;
                lines.push(format!("{} {score:e}", text(member)));
            }
            lines.sort();
        }
        "hash" => {
            for pair in list(&ask(&[b"HGETALL", key])?).chunks(2) {
                let [name, value] = pair else { bail!("HGETALL") };
                let end = ask(&[b"HPEXPIRETIME", key, b"FIELDS", b"1", name]).ok();
                let end = end.and_then(|end| end.as_array()?.first()?.as_integer());
                let end = end
                    .filter(|end| *end > 0)
                    .map_or_else(String::new, |end| format!(" until {end}"));
                lines.push(format!("{} = {}{end}", text(name), text(value)));
            }
            lines.sort();
        }
        "stream" => describe_stream(
            &ask(&[b"XINFO", b"STREAM", key, b"FULL", b"COUNT", b"0"])?,
            &mut lines,
        )?,
        other => bail!("a key of type {other}"),
    }
    for line in lines {
        writeln!(out, "  {line}")?;
    }
    Ok(())
}

fn describe_stream(reply: &Value, lines: &mut Vec<String>) -> Result<()> {
    let words = |reply: &Value| reply.as_str().map(str::to_owned);
    let number = |reply: Option<&Value>| reply.and_then(Value::as_integer);
    for entry in field(reply, "entries").and_then(Value::as_array).context("entries")? {
        let Some([id, fields]) = entry.as_array() else { bail!("an entry") };
        let mut line = words(id).context("an id")?;
        for pair in fields.as_array().unwrap_or_default().chunks(2) {
            let bytes: Vec<_> = pair.iter().filter_map(Value::as_bytes).map(text).collect();
            write!(line, " {}", bytes.join("="))?;
        }
        lines.push(line);
    }
    let id = |name: &str| field(reply, name).and_then(words);
    lines.push(format!("last {}", id("last-generated-id").context("last-generated-id")?));
    if let Some(added) = number(field(reply, "entries-added")) {
        lines.push(format!(
            "added {added}, deleted up to {}",
            id("max-deleted-entry-id").context("deleted")?
        ));
    }
    let mut groups = Vec::new();
    for group in field(reply, "groups").and_then(Value::as_array).context("groups")? {
        let name = field(group, "name").and_then(Value::as_bytes).context("name")?;
        let last = field(group, "last-delivered-id").and_then(words).context("last id")?;
        let mut line = format!("group {} last {last}", text(name));
        if let Some(read) = number(field(group, "entries-read")) {
            write!(line, " read {read}")?;
        }
        let mut of_group = vec![line];
        for pending in field(group, "pending")
            .or(field(group, "pel"))
            .and_then(Value::as_array)
            .context("pel")?
        {
            let Some([id, consumer, at, times]) = pending.as_array() else { bail!("pending") };
            of_group.push(format!(
                "  {} with {} at {} times {}",
                words(id).context("id")?,
                text(consumer.as_bytes().context("consumer")?),
                at.as_integer().context("time")?,
                times.as_integer().context("count")?
            ));
        }
        let mut consumers = Vec::new();
        for consumer in field(group, "consumers").and_then(Value::as_array).context("consumers")? {
            let name = field(consumer, "name").and_then(Value::as_bytes).context("name")?;
            consumers.push(format!("  consumer {}", text(name)));
        }
        consumers.sort();
        of_group.append(&mut consumers);
        groups.push(of_group);
    }
    groups.sort();
    lines.extend(groups.into_iter().flatten());
    Ok(())
}

fn field<'a>(reply: &'a Value, name: &str) -> Option<&'a Value> {
    reply.pairs()?.into_iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

/// Bytes in a readable form; of long ones the length and the checksum.
fn text(bytes: &[u8]) -> String {
    if bytes.len() <= 80 {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let mut checksum = Checksum::new();
    checksum.add(bytes);
    format!("{} bytes {:016x}", bytes.len(), checksum.value())
}
