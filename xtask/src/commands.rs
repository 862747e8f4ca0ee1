//! Makes `crates/protocol/src/commands/table.txt` by asking engines for their commands, and
//! `docs/reference/proxy-commands.md` from what `protocol` makes of them.

mod page;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use protocol::Value;

use crate::{command, engines, server::Server};

/// The flags that decide something; the engines have more.
const FLAGS: [&str; 9] = [
    "write",
    "readonly",
    "admin",
    "blocking",
    "pubsub",
    "noscript",
    "no_auth",
    "no_multi",
    "movablekeys",
];

/// A command or a subcommand, as one engine describes it.
#[derive(Clone)]
struct Described {
    arity: i64,
    flags: BTreeSet<String>,
    /// In the form of the table.
    keys: Vec<String>,
}

/// The commands of one engine.
struct Answers {
    kind: &'static str,
    version: String,
    commands: BTreeMap<String, Described>,
    groups: BTreeMap<String, String>,
}

/// Asks, writes the table, or compares it.
pub fn run(check: bool) -> Result<()> {
    let mut answers = Vec::new();
    for engine in engines::install()? {
        eprintln!("asking {}", engine.name);
        let scratch = command::target().join(format!("xtask-server-{}", std::process::id()));
        let mut server = Server::start(&engine.server, &scratch, "")?;
        let mut commands = BTreeMap::new();
        let listed = server.call(&["COMMAND"])?;
        for row in listed.as_array().context("COMMAND")? {
            describe(row, &mut commands).with_context(|| format!("{}: {row:?}", engine.name))?;
        }
        // Before 7.0 the engines don't describe where keys are, nor subcommands.
        if !commands.keys().any(|name| name.contains('|')) {
            continue;
        }
        let groups = groups(&server.call(&["COMMAND", "DOCS"])?).context("COMMAND DOCS")?;
        answers.push(Answers { kind: engine.kind, version: engine.version, commands, groups });
    }
    put(check, "crates/protocol/src/commands/table.txt", &render(&answers)?)
}

/// Writes the page of what the proxy does with each command, or compares it.
pub fn write_page(check: bool) -> Result<()> {
    put(check, "docs/reference/proxy-commands.md", &page::render())
}

fn put(check: bool, path: &str, text: &str) -> Result<()> {
    let path: PathBuf = command::workspace().join(path);
    if !check {
        return fs::write(&path, text).with_context(|| path.display().to_string());
    }
    if fs::read_to_string(&path)? != text {
        bail!("{} is not current: run `cargo xtask commands`", Path::new(&path).display());
    }
    Ok(())
}

/// One row of COMMAND: name, arity, flags, first key, last key, step, ACL categories, tips, key
/// specifications, subcommands.
fn describe(row: &Value, into: &mut BTreeMap<String, Described>) -> Option<()> {
    let fields = row.as_array()?;
    let name = fields.first()?.as_str()?.to_ascii_lowercase();
    let flags = fields.get(2)?.as_array()?;
    let flags = flags.iter().filter_map(Value::as_str).filter(|flag| FLAGS.contains(flag));
    let specs = fields.get(8).and_then(Value::as_array).unwrap_or_default();
    let described = Described {
        arity: fields.get(1)?.as_integer()?,
        flags: flags.map(str::to_owned).collect(),
        keys: specs.iter().filter(|spec| !is_pattern(spec)).map(key_spec).collect::<Option<_>>()?,
    };
    into.insert(name, described);
    for subcommand in fields.get(9).and_then(Value::as_array).unwrap_or_default() {
        describe(subcommand, into)?;
    }
    Some(())
}

fn field(value: &Value, name: &str) -> Option<Value> {
    let pairs = value.pairs()?;
    pairs.into_iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, found)| found.clone())
}

/// SORT's BY and GET: no place is given for what is read by a pattern.
fn is_pattern(spec: &Value) -> bool {
    let unknown = field(spec, "begin_search").and_then(|begin| field(&begin, "type"));
    let flags = field(spec, "flags").unwrap_or(Value::Null);
    let reads = flags.as_array().unwrap_or_default().iter().any(|f| f.as_str() == Some("RO"));
    reads && unknown.is_some_and(|kind| kind.as_str() == Some("unknown"))
}

/// A key specification in the form of the table.
fn key_spec(spec: &Value) -> Option<String> {
    let part = |name: &str| -> Option<(Value, Value)> {
        let part = field(spec, name)?;
        Some((field(&part, "type")?, field(&part, "spec")?))
    };
    let number = |value: &Value, name: &str| field(value, name)?.as_integer();
    let (kind, begin) = part("begin_search")?;
    let begin = match kind.as_str()? {
        "index" => number(&begin, "index")?.to_string(),
        "keyword" => {
            let word = field(&begin, "keyword")?;
            format!("{}>{}", word.as_str()?, number(&begin, "startfrom")?)
        }
        _ => "?".to_owned(),
    };
    let (kind, find) = part("find_keys")?;
    let find = match kind.as_str()? {
        "range" => {
            let [last, step, limit] = ["lastkey", "keystep", "limit"].map(|n| number(&find, n));
            format!("{},{},{}", last?, step?, limit?)
        }
        "keynum" => {
            let [at, first, step] = ["keynumidx", "firstkey", "keystep"].map(|n| number(&find, n));
            format!("#{},{},{}", at?, first?, step?)
        }
        _ => "?".to_owned(),
    };
    Some(format!("{begin}:{find}"))
}

/// Each command's group, from COMMAND DOCS.
fn groups(docs: &Value) -> Option<BTreeMap<String, String>> {
    let mut groups = BTreeMap::new();
    for (name, doc) in docs.pairs()? {
        let group = doc.pairs()?.into_iter().find(|(key, _)| key.as_str() == Some("group"));
        let group = group.and_then(|(_, group)| group.as_str()).unwrap_or("module");
        groups.insert(name.as_str()?.to_ascii_lowercase(), group.replace('_', "-"));
    }
    Some(groups)
}

/// Engines come oldest first within a product; the last one that has a command describes it. The
/// arity is the one that lets through what any of them takes.
fn render(answers: &[Answers]) -> Result<String> {
    let mut text = String::from(
        "# Made by `cargo xtask commands`.\n\
         # engine PRODUCT VERSION: asked for this table.\n\
         # NAME[|SUBCOMMAND] GROUP ARITY FLAGS KEYS PRODUCT@FIRST ...\n\
         # KEYS: BEGIN:FIND;..., BEGIN an index or WORD>FROM, FIND LAST,STEP,LIMIT or #COUNT,FIRST,STEP;\n\
         # ?:? where the engines give no place: SORT's STORE\n",
    );
    for Answers { kind, version, .. } in answers {
        let _ = writeln!(text, "engine {kind} {version}");
    }
    let names: BTreeSet<&String> = answers.iter().flat_map(|each| each.commands.keys()).collect();
    for name in names {
        let having = || answers.iter().filter(|each| each.commands.contains_key(name));
        let newest = having().next_back().context("a name without an engine")?;
        let described = newest.commands.get(name).context("a name without an engine")?;
        let mut arities = having().filter_map(|each| Some(each.commands.get(name)?.arity));
        let arity = described.arity;
        let arity = if arities.all(|other| other == arity) {
            arity
        } else {
            let least = having().filter_map(|each| Some(each.commands.get(name)?.arity.abs()));
            -least.min().unwrap_or_default()
        };
        let top = name.split('|').next().unwrap_or(name);
        let group = newest.groups.get(top).map_or("module", String::as_str);
        let flags: Vec<&str> = described.flags.iter().map(String::as_str).collect();
        let or_dash = |list: String| if list.is_empty() { "-".to_owned() } else { list };
        let _ = write!(
            text,
            "{name} {group} {arity} {} {}",
            or_dash(flags.join(",")),
            or_dash(described.keys.join(";"))
        );
        for kind in ["redis", "valkey"] {
            let of_kind = || answers.iter().filter(move |each| each.kind == kind);
            let missing = |each: &&Answers| !each.commands.contains_key(name);
            let has: Vec<&Answers> = of_kind().skip_while(missing).collect();
            if has.iter().any(missing) {
                bail!("{kind} dropped {name}: the table has no form for that yet");
            }
            if let Some(first) = has.first() {
                let minor = first.version.rsplit_once('.').map_or("", |(minor, _)| minor);
                let _ = write!(text, " {kind}@{minor}");
            }
        }
        text.push('\n');
    }
    Ok(text)
}
