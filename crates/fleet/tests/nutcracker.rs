//! nutcracker.yml as people write it, beside what twemproxy says of it.

use std::{fmt::Write as _, fs, io::ErrorKind, path::Path, process::Command};

use fleet::spec::nutcracker::{self, Pool};
use proptest::prelude::*;

struct Case {
    name: &'static str,
    /// What nutcracker 0.5.0 says: may it be used?
    there: bool,
    /// What we mean to say.
    here: bool,
    text: &'static str,
}

fn cases() -> Vec<Case> {
    let verdict = |word: &str| match word {
        "ok" => true,
        "bad" => false,
        _ => panic!("{word}"),
    };
    let case = |case: &'static str| {
        let (head, text) = case.split_once('\n').unwrap();
        let (name, verdicts) = head.rsplit_once(": ").unwrap();
        let (there, here) = verdicts.split_once(", here ").unwrap_or((verdicts, verdicts));
        Case { name, there: verdict(there), here: verdict(here), text }
    };
    let file = include_str!("nutcracker.txt");
    file.split("=== ").skip(1).map(case).collect()
}

fn pools(text: &str) -> Vec<Pool> {
    nutcracker::parse(text, "nutcracker.yml").unwrap_or_else(|e| panic!("{}", e))
}

#[test]
fn verdicts() {
    let mut refusals = String::new();
    for Case { name, here, text, .. } in cases() {
        let result = nutcracker::parse(text, "nutcracker.yml");
        assert_eq!(result.is_ok(), here, "{name}: {result:?}");
        let Err(errors) = result else { continue };
        let _ = writeln!(refusals, "{name}");
        for error in &errors.0 {
            let _ = writeln!(refusals, "    {error} ({})", error.path);
            if let Some(hint) = &error.hint {
                let _ = writeln!(refusals, "        {hint}");
            }
        }
    }
    insta::with_settings!({ omit_expression => true }, {
        insta::assert_snapshot!("refusals", refusals);
    });
}

/// Where nutcracker is on PATH, it must say what the cases claim.
#[test]
fn nutcracker_agrees() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nutcracker.yml");
    for Case { name, there, text, .. } in cases() {
        fs::write(&file, text).unwrap();
        let output = match Command::new("nutcracker").arg("-t").arg("-c").arg(&file).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("nutcracker is not on PATH: not compared");
                return;
            }
            output => output.unwrap(),
        };
        assert_eq!(output.status.code(), Some(i32::from(!there)), "{name}: {output:?}");
    }
}

fn case(name: &str) -> Vec<Pool> {
    pools(cases().into_iter().find(|case| case.name == name).unwrap().text)
}

#[test]
fn defaults_and_every_key() {
    insta::with_settings!({ omit_expression => true }, {
        insta::assert_debug_snapshot!("defaults", case("least"));
        insta::assert_debug_snapshot!("every_key", case("every key"));
    });
}

#[test]
fn line_ends_and_byte_order_marks() {
    let text = cases().into_iter().find(|case| case.name == "every key").unwrap().text;
    assert_eq!(pools(&text.replace('\n', "\r\n")), pools(text));
    assert_eq!(pools(&format!("\u{feff}{text}")), pools(text));
}

/// One pool with these servers: their names in order.
fn names(servers: &[&str]) -> String {
    let lines: String = servers.iter().flat_map(|server| ["   - \"", server, "\"\n"]).collect();
    let text = format!("a:\n  listen: /tmp/a\n  redis: true\n  servers:\n{lines}");
    let pool = pools(&text).remove(0);
    let named = pool.servers.iter().map(|server| format!("{}*{}", server.name, server.weight));
    named.collect::<Vec<_>>().join(" ")
}

#[test]
fn names_of_servers() {
    let check = |servers: &[&str], expected: &str| assert_eq!(names(servers), expected);
    check(&["127.0.0.1:6379:3"], "127.0.0.1:6379*3");
    check(&["127.0.0.1:11211:1"], "127.0.0.1*1");
    check(&["127.0.0.1:011211:1"], "127.0.0.1*1");
    check(&["127.0.0.1:06379:01"], "127.0.0.1:06379*1");
    check(&["127.0.0.1:6379:1 one"], "one*1");
    check(&["127.0.0.1:11211:1 one:two"], "one:two*1");
    check(&["::1:6379:1"], "::1:6379*1");
    check(&["db1:6379:1"], "db1:6379*1");
    check(&["/run/redis.sock:2"], "/run/redis.sock:*2");
    check(&["/run/redis.sock:2 one"], "one*2");
    check(&["h:1:1 zz", "h:1:2 b", "h:1:3 aaa", "h:1:4 a"], "a*4 b*2 zz*1 aaa*3");
    check(&["h:10:1", "h:9:1"], "h:9*1 h:10*1");
}

#[test]
fn pools_are_in_order() {
    let pool = |name: &str, port: u16| {
        format!("{name}:\n  listen: h:{port}\n  redis: true\n  servers:\n   - h:1:1\n")
    };
    let text = ["zz", "b", "aaa", "a"].iter().zip(1..).map(|(name, port)| pool(name, port));
    let pools = pools(&text.collect::<String>());
    let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "zz", "aaa"]);
}

/// Modula deals the numbers out in order of the servers, and an ejected one is passed over.
#[test]
fn rings() {
    let servers = "   - h:1:1 b\n   - h:2:2 a\n   - h:3:1 c\n";
    let head = "p:\n  listen: h:9\n  redis: true\n  distribution: modula\n  servers:\n";
    let pool = pools(&format!("{head}{servers}")).remove(0);
    let whole = pool.ring(|_| true);
    assert_eq!([0, 1, 2, 3, 4].map(|value| whole.server(value)), [0, 0, 1, 2, 0].map(Some));
    let without_b = pool.ring(|index| index != 1);
    assert_eq!([0, 1, 2, 3].map(|value| without_b.server(value)), [0, 0, 2, 0].map(Some));
    assert_eq!(pool.ring(|_| false).server(0), None);
}

#[test]
fn passwords_stay_hidden() {
    let pool = &case("every key")[0];
    assert_eq!(pool.redis_auth.as_ref().unwrap().reveal(), "secret");
    assert!(!format!("{pool:?}").contains("secret"));
}

/// Whatever is written, the answer is pools or errors.
fn check_any(text: &str) {
    match nutcracker::parse(text, "nutcracker.yml") {
        Ok(pools) => assert!(!pools.is_empty() && pools.iter().all(|p| !p.servers.is_empty())),
        Err(errors) => assert!(!errors.0.is_empty() && !errors.to_string().is_empty(), "{text:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_value_is_answered(value in "[ -~é]{0,20}") {
        for key in ["listen", "hash", "hash_tag", "timeout", "redis", "redis_auth", "servers"] {
            check_any(&format!("a:\n  redis: true\n  {key}: {value}\n"));
        }
        check_any(&format!("a:\n  listen: h:1\n  redis: true\n  servers:\n   - {value}\n"));
        check_any(&format!("a:\n  listen: h:1\n  redis: true\n  servers:\n   - {value:?}\n"));
    }

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        check_any(&text);
    }
}
