//! Makes `crates/protocol/src/directives.txt` by asking engines, and tries the result on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use protocol::{Value, conf, directives::arguments_per_line};

use crate::{
    command,
    engines::{self, TestEngine},
    keydb,
    server::Server,
};

/// Directives that CONFIG GET * does not show: hidden ones, those that only a file can have, and
/// those that are read and ignored. With a value that a file may hold.
const HIDDEN: [(&str, &str); 22] = [
    ("cluster-config-file", "nodes.conf"),
    ("hash-max-ziplist-entries", "512"),
    ("include", "/dev/null"),
    ("io-threads-do-reads", "no"),
    ("key-load-delay", "0"),
    ("list-max-ziplist-entries", "512"),
    ("list-max-ziplist-value", "64"),
    ("loading-process-events-interval-bytes", "2097152"),
    ("loadmodule", "/no/such/module.so"),
    ("lua-enable-deprecated-api", "no"),
    ("lua-enable-insecure-api", "no"),
    ("lua-replicate-commands", "yes"),
    ("rdb-key-save-delay", "0"),
    ("rdb-version-check", "strict"),
    ("rename-command", "FLUSHALL \"\""),
    ("replicaof", "127.0.0.1 1"),
    ("slaveof", "127.0.0.1 1"),
    ("tls-port", "0"),
    ("use-exit-on-panic", "no"),
    ("user", "someone off"),
    ("watchdog-period", "0"),
    ("availability-zone", ""),
];

/// Directives whose value is several arguments (in the engines: special and multi-argument
/// directives of config.c).
const MULTI: [&str; 14] = [
    "bind",
    "client-output-buffer-limit",
    "latency-tracking-info-percentiles",
    "loadmodule",
    "oom-score-adj-values",
    "rdma-bind",
    "rename-command",
    "replicaof",
    "save",
    "sentinel",
    "shutdown-on-sigint",
    "shutdown-on-sigterm",
    "slaveof",
    "user",
];

/// Set by the harness on the command line, or part of the place where the server runs.
const NOT_IN_FILE: [&str; 3] = ["bind", "dir", "port"];

/// What CONFIG SET has in every engine, and the file only in some.
const ONLY_SET: [&str; 1] = ["watchdog-period"];

/// Not to be changed while asking: the server would become another one.
const DISTURBING: [&str; 9] = [
    "appendonly",
    "bind",
    "dir",
    "import-mode",
    "port",
    "requirepass",
    "tls-cluster",
    "tls-port",
    "tls-replication",
];

/// A directive of one engine.
#[derive(Clone, Debug)]
struct Found {
    /// As CONFIG GET shows it; none where only a file can have it.
    value: Option<String>,
    live: bool,
}

/// The directives of one engine, and which of them are other names of which.
struct Answers {
    kind: &'static str,
    version: String,
    found: BTreeMap<String, Found>,
    aliases: BTreeMap<String, String>,
}

/// Asks, writes (or compares), and tries the directives on the engines.
pub fn run(check: bool) -> Result<()> {
    let engines = engines::install()?;
    let mut names: BTreeSet<String> = HIDDEN.iter().map(|(name, _)| (*name).to_owned()).collect();
    for engine in &engines {
        let shown = Server::start(&engine.server, &scratch(), "")?.configuration("*")?;
        names.extend(shown.into_iter().map(|(name, _)| name));
    }
    let mut answers = Vec::new();
    for engine in &engines {
        eprintln!("asking {}", engine.name);
        answers.push(ask(engine, &names)?);
    }
    add_what_others_have(&engines, &mut answers);
    complete_tls(&mut answers);
    find_aliases(&mut answers);
    for (engine, answers) in engines.iter().zip(&mut answers) {
        eprintln!("starting {} with all {} directives", engine.name, answers.found.len());
        try_all(engine, answers)?;
    }
    answers.push(keydb(&answers)?);
    let table = render(&answers);
    let path = command::workspace().join("crates/protocol/src/directives.txt");
    if check && fs::read_to_string(&path)? != table {
        bail!("{} is not what the engines say: run `cargo xtask directives`", path.display());
    }
    if !check {
        fs::write(&path, &table)?;
    }
    Ok(())
}

/// Asks for each name: not all are shown unless they are asked for.
fn ask(engine: &TestEngine, names: &BTreeSet<String>) -> Result<Answers> {
    let mut server = Server::start(&engine.server, &scratch(), "")?;
    let mut found = BTreeMap::new();
    for name in names {
        let Some((_, value)) = server.configuration(name)?.pop() else { continue };
        let live = match server.call(&["CONFIG", "SET", name, &value])? {
            Value::Simple(_) => true,
            Value::Error(reason) if is_refusal(&reason) => false,
            other => bail!("{}: CONFIG SET {name} {value:?}: {other:?}", engine.name),
        };
        found.insert(name.clone(), Found { value: Some(value), live });
    }
    let aliases = same_directives(&mut server, &found)?;
    Ok(Answers { kind: engine.kind, version: engine.version.clone(), found, aliases })
}

/// Does the answer to CONFIG SET mean that this directive can't be set?
fn is_refusal(reason: &str) -> bool {
    ["immutable", "protected", "Unsupported CONFIG", "No RDMA"]
        .iter()
        .any(|part| reason.contains(part))
}

/// Pairs of names that mean one directive: setting one changes the other.
fn same_directives(
    server: &mut Server,
    found: &BTreeMap<String, Found>,
) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for (name, Found { value, live }) in found {
        let Some(value) = value.as_ref().filter(|_| *live && !DISTURBING.contains(&name.as_str()))
        else {
            continue;
        };
        let other = match (value.as_str(), value.parse::<i64>()) {
            ("yes", _) => "no".to_owned(),
            ("no", _) => "yes".to_owned(),
            (_, Ok(number)) => (number + 1).to_string(),
            _ => format!("{value}x"),
        };
        // Not every value can be had; such directives have no other names so far.
        let Value::Simple(_) = server.call(&["CONFIG", "SET", name, &other])? else { continue };
        for (same, now) in server.configuration("*")? {
            let before = found.get(&same).and_then(|found| found.value.as_ref());
            if same != *name && now == other && before == Some(value) {
                pairs.insert(name.clone(), same);
            }
        }
        server.call(&["CONFIG", "SET", name, value])?;
    }
    Ok(pairs)
}

/// Names that are known from elsewhere may be valid in this engine's file, too.
fn add_what_others_have(engines: &[TestEngine], answers: &mut [Answers]) {
    let mut candidates: BTreeMap<String, String> = BTreeMap::new();
    for (name, found) in answers.iter().flat_map(|answers| &answers.found) {
        candidates.insert(name.clone(), found.value.clone().unwrap_or_default());
    }
    candidates.extend(HIDDEN.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for (engine, answers) in engines.iter().zip(answers) {
        for (name, value) in &candidates {
            if answers.found.contains_key(name) || NOT_IN_FILE.contains(&name.as_str()) {
                continue;
            }
            let line = if HIDDEN.iter().any(|(hidden, _)| hidden == name) && !value.is_empty() {
                format!("{name} {value}\n")
            } else {
                lines(name, value)
            };
            let known = match Server::start(&engine.server, &scratch(), &line) {
                Ok(_) => !line.is_empty(),
                // It was understood, and the module does not exist.
                Err(error) => error.to_string().contains("Can't load module"),
            };
            if known {
                answers.found.insert(name.clone(), Found { value: None, live: false });
            }
        }
    }
}

/// An engine that was built without TLS has the TLS directives of its product's next version.
fn complete_tls(answers: &mut [Answers]) {
    for index in (1..answers.len()).rev() {
        let (older, newer) = answers.split_at_mut(index);
        let (Some(older), Some(newer)) = (older.last_mut(), newer.first()) else { continue };
        if older.kind == newer.kind && !older.found.contains_key("tls-port") {
            let tls = newer.found.iter().filter(|(name, _)| name.starts_with("tls-"));
            let unbuilt = |found: &Found| Found { value: None, live: found.live };
            older.found.extend(tls.map(|(name, found)| (name.clone(), unbuilt(found))));
        }
    }
}

/// Turns pairs into old and new names: the new one is what older engines lack, or else does not
/// say slave. Adds the pairs that the engines can't tell: immutable ones, and all of an engine
/// that sets one at a time.
fn find_aliases(answers: &mut [Answers]) {
    let oldest: BTreeSet<String> =
        answers.first().map(|answers| answers.found.keys().cloned().collect()).unwrap_or_default();
    for answers in answers {
        let mut aliases = BTreeMap::new();
        for (one, two) in &answers.aliases {
            let is_old = |name: &String| (oldest.contains(name), name.contains("slave"));
            let (old, new) = if is_old(one) > is_old(two) { (one, two) } else { (two, one) };
            aliases.insert(old.clone(), new.clone());
        }
        for name in answers.found.keys() {
            let new = name.replace("slave", "replica").replace('_', "-");
            if new != *name && answers.found.contains_key(&new) {
                aliases.insert(name.clone(), new);
            }
        }
        answers.aliases = aliases;
    }
}

/// Starts the engine with a file that holds each of its directives with its own default. Takes
/// out what only CONFIG SET has.
fn try_all(engine: &TestEngine, answers: &mut Answers) -> Result<()> {
    for name in ONLY_SET {
        let alone = Server::start(&engine.server, &scratch(), &lines(name, "0"));
        if alone.is_err_and(|error| error.to_string().contains("Bad directive")) {
            answers.found.remove(name);
        }
    }
    let mut file = String::new();
    for (name, found) in &answers.found {
        let Some(value) = &found.value else { continue };
        let nothing = value.is_empty() && is_multi(name);
        if !nothing && !NOT_IN_FILE.contains(&name.as_str()) {
            file.push_str(&lines(name, value));
        }
    }
    let mut server = Server::start(&engine.server, &scratch(), &file)?;
    for (name, value) in server.configuration("*")? {
        let before = answers.found.get(&name).and_then(|found| found.value.as_ref());
        let ours = NOT_IN_FILE.contains(&name.as_str()) || ONLY_SET.contains(&name.as_str());
        if before != Some(&value) && !ours {
            bail!("{}: {name} was {before:?} and is {value:?}", engine.name);
        }
    }
    Ok(())
}

fn is_multi(name: &str) -> bool {
    MULTI.contains(&name) || keydb::OWN.contains(&(name, true))
}

/// The directive as a file has it.
fn lines(name: &str, value: &str) -> String {
    if !is_multi(name) {
        return conf::render(name, [value]) + "\n";
    }
    let words: Vec<&str> = value.split_ascii_whitespace().collect();
    let group = arguments_per_line(name).unwrap_or(usize::MAX);
    words.chunks(group).flat_map(|words| [conf::render(name, words), "\n".to_owned()]).collect()
}

fn keydb(answers: &[Answers]) -> Result<Answers> {
    let base = answers.first().filter(|base| base.version.starts_with("6.2."));
    let base = base.context("KeyDB's table starts from Redis 6.2")?;
    let mut found = base.found.clone();
    found.retain(|name, _| !keydb::MISSING.contains(&name.as_str()));
    for (name, found) in &mut found {
        found.live &= !keydb::NOT_LIVE.contains(&name.as_str());
    }
    for (names, live) in
        [(keydb::OWN.map(|(name, _)| name).as_slice(), false), (&keydb::OWN_LIVE, true)]
    {
        found.extend(names.iter().map(|name| ((*name).to_owned(), Found { value: None, live })));
    }
    let mut aliases = base.aliases.clone();
    aliases.extend(keydb::ALIASES.map(|(old, new)| (old.to_owned(), new.to_owned())));
    Ok(Answers { kind: "keydb", version: keydb::VERSION.to_owned(), found, aliases })
}

fn render(answers: &[Answers]) -> String {
    let mut text = String::from(
        "# Made by `cargo xtask directives`.\n\
         # engine PRODUCT VERSION: asked for this table.\n\
         # NAME [=OTHER NAME OF IT] [multi: several arguments] PRODUCT@FIRST[-LAST][!: not live] ...\n",
    );
    let mut sorted: Vec<&Answers> = answers.iter().collect();
    sorted.sort_by_key(|answers| answers.kind);
    for answers in &sorted {
        let _ = writeln!(text, "engine {} {}", answers.kind, answers.version);
    }
    let names: BTreeSet<&String> =
        answers.iter().flat_map(|answers| answers.found.keys()).collect();
    for name in names {
        let _ = write!(text, "{name}");
        if let Some(target) = answers.iter().find_map(|answers| answers.aliases.get(name)) {
            let _ = write!(text, " ={target}");
        }
        if is_multi(name) {
            text.push_str(" multi");
        }
        for kind in ["keydb", "redis", "valkey"] {
            spans(&mut text, name, kind, &sorted);
        }
        text.push('\n');
    }
    text
}

/// Adjacent versions of a product that treat the directive alike make one span; the last version
/// has no end.
fn spans(text: &mut String, name: &str, kind: &str, answers: &[&Answers]) {
    let versions: Vec<(&str, Option<bool>)> = answers
        .iter()
        .filter(|answers| answers.kind == kind)
        .map(|answers| {
            let minor = answers.version.rsplit_once('.').map_or("", |(minor, _)| minor);
            (minor, answers.found.get(name).map(|found| found.live))
        })
        .collect();
    let mut rest = versions.as_slice();
    while let [(first, live), ..] = rest {
        let alike = rest.iter().take_while(|(_, other)| other == live).count();
        let (span, after) = rest.split_at(alike);
        if let (Some(live), Some((last, _))) = (live, span.last()) {
            let _ = write!(text, " {kind}@{first}");
            if !after.is_empty() {
                let _ = write!(text, "-{last}");
            }
            if !live {
                text.push('!');
            }
        }
        rest = after;
    }
}

fn scratch() -> PathBuf {
    let name = format!("xtask-server-{}", std::process::id());
    command::target().join(name)
}
