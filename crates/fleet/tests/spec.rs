//! Specs as people write them, right and wrong, and what is said of them.

use std::{collections::BTreeSet, fs, net::IpAddr, path::PathBuf};

use fleet::{
    model::{ClusterName, DirectiveValue, Fleet},
    spec::{self, Machine, Parsed, SpecError, SpecErrors},
};
use proptest::prelude::*;

fn directory(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/specs", name].iter().collect()
}

fn parse(text: &str) -> Result<Parsed, SpecErrors> {
    spec::parse(text, "fleet.yaml", &Machine::default())
}

fn fleet(text: &str) -> Fleet {
    parse(text).unwrap_or_else(|errors| panic!("{errors}")).fleet
}

/// Each file of specs/wrong is refused with the text of its snapshot.
#[test]
fn wrong_specs() {
    let mut seen = 0;
    for entry in fs::read_dir(directory("wrong")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let errors = parse(&text).expect_err(&name);
        insta::with_settings!({ omit_expression => true }, {
            insta::assert_snapshot!(name, shown(&errors.0, &text));
        });
        seen += 1;
    }
    assert!(seen >= 20, "only {seen} specs in specs/wrong");
}

fn lines(value: &[&[&str]]) -> DirectiveValue {
    let line = |line: &&[&str]| line.iter().map(|&argument| argument.to_owned()).collect();
    DirectiveValue(value.iter().map(line).collect())
}

#[test]
fn every_key() {
    let text = fs::read_to_string(directory("full.yaml")).unwrap();
    let fleet = fleet(&text);
    insta::assert_debug_snapshot!("full", fleet);
    let config = &fleet.clusters[&ClusterName::new("cache")].config;
    let check = |name: &str, expected: &[&[&str]]| {
        assert_eq!(config.get(name), Some(&lines(expected)), "{name}");
    };
    check("maxmemory-policy", &[&["volatile-ttl"]]);
    check("save", &[&["900", "1"], &["300", "10"]]);
    check("appendonly", &[&["yes"]]);
    check("lazyfree-lazy-expire", &[&["no"]]);
    check("notify-keyspace-events", &[&[""]]);
    check("proc-title-template", &[&["{title} {listen-addr}"]]);
    check(
        "client-output-buffer-limit",
        &[&["normal", "0", "0", "0"], &["pubsub", "32mb", "8mb", "60"]],
    );
    check("replica-priority", &[&["10"]]);
    check("repl-diskless-sync", &[&["yes"]]);
    let queue = &fleet.clusters[&ClusterName::new("queue")];
    assert_eq!(queue.engine.to_string(), "redis 7.10");
}

/// Defaults of a cluster of which only the name is said.
#[test]
fn defaults() {
    insta::assert_debug_snapshot!("defaults", fleet("clusters: {main: }"));
    let built_in = fleet(spec::BUILT_IN);
    assert_eq!(built_in, fleet("clusters: {main: }\nproxies: {main: {cluster: main}}"));
    assert_eq!(built_in.clusters.len(), 1);
    assert_eq!(fleet(spec::STARTER), built_in);
}

#[test]
fn the_backlog_fits_a_small_node() {
    let check = |keys: &str, expected: &str| {
        let fleet = fleet(&format!("clusters: {{main: {{{keys}}}}}"));
        let config = &fleet.clusters[&ClusterName::new("main")].config;
        assert_eq!(config["repl-backlog-size"], DirectiveValue::single(expected), "{keys}");
    };
    check("", "16777216");
    check("memory: 1GiB", "16777216");
    check("memory: 64MiB", "4194304");
    check("memory: 16MiB", "1048576");
    check("memory: 64MiB, config: {repl-backlog-size: 8mb}", "8mb");
}

#[test]
fn addresses_of_this_machine() {
    let text = "hosts: {a: {address: 10.0.0.4}}\nclusters: {main: }";
    let own = "10.0.0.4".parse::<IpAddr>().unwrap();
    assert!(parse(text).is_err());
    assert!(spec::parse(text, "f", &Machine { addresses: vec![own] }).is_ok());
}

/// A real configuration file: each line that can't be is named, by its own line of the file, and
/// without those it is taken over as it is.
#[test]
fn a_whole_configuration_file() {
    let text = fs::read_to_string(directory("keydb-template.yaml")).unwrap();
    let errors = parse(&text).unwrap_err().0;
    let line = |number: usize| text.lines().nth(number - 1).unwrap();
    let named: Vec<&str> =
        errors.iter().map(|error| line(error.line).split_whitespace().next().unwrap()).collect();
    for (error, name) in errors.iter().zip(&named) {
        assert!(error.message.contains(name), "{error} for {name}");
        assert!(error.hint.is_some(), "{error}");
    }
    let named_once: BTreeSet<&str> =
        named.iter().copied().filter(|name| !name.starts_with("tls-")).collect();
    let expected = [
        "active-client-balancing",
        "bind",
        "cluster-announce-bus-port",
        "cluster-announce-ip",
        "cluster-config-file",
        "cluster-enabled",
        "cluster-node-timeout",
        "dir",
        "masterauth",
        "pidfile",
        "port",
        "protected-mode",
        "replica-weighting-factor",
        "requirepass",
        "server-threads",
        "storage-provider",
        "supervised",
    ];
    assert_eq!(named_once.into_iter().collect::<Vec<_>>(), expected);
    let tls_lines = text.lines().filter(|line| line.trim().starts_with("tls-")).count();
    assert_eq!(named.iter().filter(|name| name.starts_with("tls-")).count(), tls_lines);

    // KeyDB knows its own.
    let keydb = parse(&text.replace("redis 7.0", "keydb 6.3")).unwrap_err().0;
    assert_eq!(keydb.len(), errors.len() - 4);

    let wrong: Vec<usize> = errors.iter().map(|error| error.line).collect();
    let right = text.lines().enumerate().filter(|(index, _)| !wrong.contains(&(index + 1)));
    let right: Vec<&str> = right.map(|(_, line)| line).collect();
    let parsed = parse(&right.join("\n")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(parsed.warnings, []);
    let config = &parsed.fleet.clusters[&ClusterName::new("hot")].config;
    let check = |name: &str, expected: &[&[&str]]| {
        assert_eq!(config.get(name), Some(&lines(expected)), "{name}");
    };
    check("save", &[&["900", "1"], &["300", "10"], &["60", "10000"]]);
    check("maxmemory", &[&["512mb"]]);
    check("appendfilename", &[&["appendonly.aof"]]);
    check("notify-keyspace-events", &[&[""]]);
    check("oom-score-adj-values", &[&["0", "200", "800"]]);
    check("proc-title-template", &[&["{title} {listen-addr} {server-mode}"]]);
    assert_eq!(config["client-output-buffer-limit"].0.len(), 3);
}

#[test]
fn a_later_line_of_a_block_wins() {
    let text = "clusters:\n  main:\n    config: |\n      hz 10\n      hz 20\n";
    let parsed = parse(text).unwrap();
    let cluster = parsed.fleet.clusters.values().next().unwrap();
    assert_eq!(cluster.config["hz"], DirectiveValue::single("20"));
    let [warning] = &parsed.warnings[..] else { panic!("{:?}", parsed.warnings) };
    assert_eq!((warning.line, warning.column), (5, 7));
}

#[test]
fn what_cannot_be_checked_is_said() {
    let text = "hosts: {a: {address: 127.0.1.1, memory: 4GiB}}\nclusters:\n  main: {}\n";
    let [warning] = &parse(text).unwrap().warnings[..] else { panic!("one warning was expected") };
    insta::assert_snapshot!("warning", shown(std::slice::from_ref(warning), text));
}

#[test]
fn directives_are_checked_once_the_engine_is_known() {
    let text = "clusters: {main: {config: {server-threads: 2, hz: 10}}}";
    let parsed = parse(text).unwrap();
    let check = |kind: protocol::EngineKind, version: &str, expected: &[&str]| {
        let engine = protocol::Engine { kind, version: version.parse().unwrap() };
        let unknown = parsed.unknown_directives(&ClusterName::new("main"), engine);
        let paths: Vec<&str> = unknown.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, expected, "{engine}");
    };
    check(protocol::EngineKind::Redis, "7.0.15", &["clusters.main.config.server-threads"]);
    check(protocol::EngineKind::KeyDb, "6.3.4", &[]);
}

/// The committed schema is the one that the code has; `UPDATE_SCHEMA=1` writes it anew.
#[test]
fn the_schema_is_current() {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "../../docs/reference/fleet.schema.json"].iter().collect();
    let current = serde_json::to_string_pretty(&spec::json_schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &current).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == current, "run this test with UPDATE_SCHEMA=1 and commit the schema");
}

/// Each error with what it marks and the keys that lead there.
fn shown(errors: &[SpecError], text: &str) -> String {
    let one = |error: &SpecError| {
        let line = text.lines().nth(error.line - 1).unwrap_or_default();
        let marked: String = line.chars().skip(error.column - 1).take(error.width).collect();
        let hint = error.hint.iter().map(|hint| format!("  hint: {hint}\n"));
        let hint: String = hint.collect();
        format!("{error}\n  at {marked:?} in {:?}\n{hint}", error.path)
    };
    errors.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Whatever is written, the answer is a fleet or errors that stand within the text.
fn check_any(text: &str) {
    let Err(SpecErrors(errors)) = parse(text) else { return };
    assert!(!errors.is_empty(), "{text:?}");
    for error in &errors {
        let lines = text.lines().count().max(1);
        assert!((1..=lines + 1).contains(&error.line) && error.column > 0, "{error:?} in {text:?}");
    }
}

#[test]
fn deep_nesting_and_aliases_of_aliases_are_refused() {
    for open in ["[", "{a: ", "- ", "clusters: {a: {config: {save: ["] {
        check_any(&open.repeat(10_000));
    }
    let level = |level: usize| {
        let item = if level == 0 { "x".to_owned() } else { format!("*a{}", level - 1) };
        format!("a{level}: &a{level} [{}]\n", vec![item; 10].join(", "))
    };
    let text: String = (0..20).map(level).collect();
    let errors = parse(&text).unwrap_err().0;
    assert!(errors[0].message.contains("more than"), "{errors:?}");
}

/// A good text, and what is done to it: (where, how many characters go, what comes instead).
fn mutated() -> impl Strategy<Value = String> {
    let full = fs::read_to_string(directory("full.yaml")).unwrap();
    let block = fs::read_to_string(directory("keydb-template.yaml")).unwrap();
    let good = prop::sample::select(vec![full, block, spec::STARTER.to_owned()]);
    let word = prop::sample::select(vec![
        "",
        " ",
        "\n",
        "\t",
        ":",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "|",
        ">",
        "&a ",
        "*a",
        "!t ",
        "#",
        "0",
        "-1",
        "99999999999999999999",
        "~",
        "null",
        "<<: ",
        "\u{0}",
        "é",
        "\u{feff}",
        "---\n",
    ]);
    let edit = (any::<prop::sample::Index>(), 0_usize..12, word);
    (good, prop::collection::vec(edit, 1..6)).prop_map(|(text, edits)| {
        let mut text: Vec<char> = text.chars().collect();
        for (place, gone, word) in edits {
            let start = place.index(text.len() + 1);
            let end = (start + gone).min(text.len());
            text.splice(start..end, word.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        check_any(&text);
    }

    #[test]
    fn text_that_looks_like_yaml_is_answered(text in "[a-c:{}\\[\\]&*!|>'\"#, \n\\-]{0,80}") {
        check_any(&text);
        check_any(&format!("clusters:\n  main:\n    config: {text}\n    shards: {text}"));
    }

    #[test]
    fn a_good_spec_with_faults_is_answered(text in mutated()) {
        check_any(&text);
    }
}
