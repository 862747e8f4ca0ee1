use std::collections::BTreeSet;

use super::*;

/// Words of a request.
fn words(request: &str) -> Vec<&str> {
    request.split(' ').collect()
}

fn found(request: &str) -> &'static Command {
    resolve(words(request).as_slice()).unwrap_or_else(|| panic!("{request}"))
}

fn every() -> impl Iterator<Item = &'static Command> {
    all().iter().flat_map(|command| std::iter::once(command).chain(command.subcommands()))
}

#[test]
fn every_line_is_understood() {
    let text = include_str!("table.txt");
    let lines = || text.lines().filter(|line| !line.starts_with('#') && !is_engine(line));
    for line in lines() {
        assert!(Command::parse(line).is_some_and(|command| !command.since.is_empty()), "{line}");
    }
    assert_eq!(text.lines().filter(|line| is_engine(line)).count(), 4);
    assert_eq!(every().count(), lines().count());
    assert!(every().count() > 400);
}

#[test]
fn every_command_has_a_decision() {
    let undecided: Vec<&str> = every()
        .filter(|command| command.route == route::UNDECIDED)
        .map(|command| command.name)
        .collect();
    assert_eq!(undecided, Vec::<&str>::new());
}

#[test]
fn every_name_is_found_in_any_case() {
    for command in all() {
        let upper = command.name.to_ascii_uppercase();
        let mixed: String = command
            .name
            .chars()
            .enumerate()
            .map(|(index, c)| if index % 2 == 0 { c } else { c.to_ascii_uppercase() })
            .collect();
        for name in [command.name, &upper, &mixed] {
            let same = lookup(name.as_bytes()).is_some_and(|other| std::ptr::eq(other, command));
            assert!(same, "{name}");
        }
        for near in [&format!("{}x", command.name), &command.name[1..]] {
            let other = lookup(near.as_bytes()).map(|other| other.name);
            assert!(other.is_none_or(|other| other == near), "{near}");
        }
        for subcommand in command.subcommands() {
            let request = subcommand.name.to_ascii_uppercase().replace('|', " ");
            assert_eq!(found(&request).name, subcommand.name);
        }
    }
}

#[test]
fn names_that_are_none() {
    for name in [
        &b""[..],
        b"g",
        b"ge",
        b"getx",
        b"get\0",
        b"\x07et",
        b"GE\xd4",
        b"restore\rasking",
        b"eval\x7fro",
        b"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz",
        b"expiremember",
    ] {
        assert!(lookup(name).is_none(), "{name:?}");
    }
    assert!(resolve(words("CLIENT NOSUCH").as_slice()).is_none());
    assert!(resolve(words("NOSUCH").as_slice()).is_none());
    assert!(resolve::<[&str]>(&[]).is_none());
    assert_eq!(found("CLIENT").name, "client");
    assert_eq!(found("COMMAND").route, Route::AnyNode);
    assert_eq!(found("client setNAME x").name, "client|setname");
    assert_eq!(found("client setNAME x").last_name(), "setname");
}

#[test]
fn keys() {
    let check = |request: &str, expected: &str| {
        let words = words(request);
        let keys = found(request).keys(words.as_slice());
        let text = match keys {
            Ok(keys) => {
                let count = keys.len();
                let keys: Vec<&str> = keys.map(|position| words[position]).collect();
                assert_eq!(keys.len(), count, "{request}");
                keys.join(" ")
            }
            Err(BadKeyCount) => "?".to_owned(),
        };
        assert_eq!(text, expected, "{request}");
    };
    check("GET k", "k");
    check("GET", "");
    check("SET k v EX 10", "k");
    check("PING", "");
    check("DEL a b c", "a b c");
    check("DEL a", "a");
    check("DEL", "");
    check("MSET a 1 b 2", "a b");
    check("MSET a 1 b", "a b");
    check("MSETEX 2 a 1 b 2 EX 10", "a b");
    check("BITOP AND d a b", "d a b");
    check("RENAME a b", "a b");
    check("RENAME a", "a");
    check("LCS a b LEN", "a b");
    check("PFMERGE d", "d");
    check("PFMERGE d a b", "d a b");
    check("OBJECT ENCODING k", "k");
    check("XGROUP CREATE k g $", "k");
    check("MEMORY USAGE k SAMPLES 5", "k");
    check("BLPOP a b 0", "a b");
    check("BLPOP 0", "");
    check("BLMPOP 0 2 a b LEFT", "a b");
    check("LMPOP 2 a b LEFT", "a b");
    check("ZUNION 2 a b WEIGHTS 1 2", "a b");
    check("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b");
    check("ZUNION 3 a b", "?");
    check("ZUNION -1 a b", "?");
    check("ZUNION x a b", "?");
    check("ZUNION 99999999999999999999999 a b", "?");
    check("ZUNION 18446744073709551615 a b", "?");
    check("SINTERCARD 2 a b LIMIT 3", "a b");
    check("EVAL script 0", "");
    check("EVAL script 0 x y", "");
    check("EVAL script 1 a x", "a");
    check("EVAL script 2 a", "?");
    check("EVAL script", "");
    check("EVALSHA sha 2 a b x", "a b");
    check("FCALL_RO f 1 a x", "a");
    check("XREAD COUNT 2 STREAMS a b 0 0", "a b");
    check("XREAD streams a b 0", "a");
    check("XREAD BLOCK 0 STREAMS a $", "a");
    check("XREAD BLOCK 0", "");
    check("XREAD BLOCK 0 STREAMS", "");
    check("XREADGROUP GROUP STREAMS me STREAMS a b > >", "a b");
    check("SORT k", "k");
    check("SORT k BY w_* LIMIT 0 5 GET # GET o_* STORE d", "k d");
    check("SORT k BY store GET STORE ASC", "k");
    check("SORT k STORE a STORE b", "k b");
    check("SORT k STORE", "k");
    check("SORT_RO k GET x", "k");
    check("GEORADIUS k 1 2 3 km STORE d", "k d");
    check("GEORADIUS k 1 2 3 km storedist d", "k d");
    check("GEORADIUS k 1 2 3 km STORE d STOREDIST e", "k d e");
    check("GEOSEARCHSTORE d k FROMMEMBER m BYRADIUS 1 km", "d k");
    check("MIGRATE h 1 k 0 10", "k");
    check("MIGRATE h 1  0 10 COPY KEYS a b", " a b");
    check("SPUBLISH c m", "c");
    check("SSUBSCRIBE a b", "a b");
    check("SUNSUBSCRIBE", "");
    check("WATCH a b", "a b");
}

#[test]
fn only_keys() {
    let check = |request: &str, expected: Option<usize>| {
        assert_eq!(found(request).only_key(), expected, "{request}");
    };
    check("GET", Some(1));
    check("OBJECT FREQ", Some(2));
    check("SPUBLISH", Some(1));
    check("VADD", Some(1));
    check("MGET", None);
    check("RENAME", None);
    check("SORT", None);
    check("GEORADIUS", None);
    check("EVAL", None);
    check("PING", None);
}

#[test]
fn arities() {
    let check = |request: &str, expected: bool| {
        let count = words(request).len();
        assert_eq!(found(request).takes(count), expected, "{request}");
    };
    check("GET k", true);
    check("GET", false);
    check("GET a b", false);
    check("SET a b", true);
    check("SET a b c d e", true);
    check("SET a", false);
    check("CLIENT SETNAME x", true);
    check("CLIENT SETNAME", false);
    // With NX and the like from 7.0 on, WITHSCORE from 7.2 on.
    check("EXPIRE a 1 NX", true);
    check("ZRANK a b WITHSCORE", true);
}

#[test]
fn routes() {
    let check = |request: &str, expected: Route| {
        assert_eq!(found(request).route, expected, "{request}");
    };
    check("GET k", Route::OneSlot);
    check("VADD k", Route::OneSlot);
    check("HSETEX k", Route::OneSlot);
    check("SINTER a b", Route::OneSlot);
    check("MSETNX a 1 b 2", Route::OneSlot);
    check("MSETEX 1 a 1", Route::OneSlot);
    check("EVAL s 0", Route::OneSlot);
    check("XINFO STREAM k", Route::OneSlot);
    check("MGET a b", Route::Split(Merge::InOrderOfKeys));
    check("MSET a 1", Route::Split(Merge::AllOk));
    check("EXISTS a", Route::Split(Merge::Sum));
    check("SUNION a b", Route::Split(Merge::Union));
    check("DBSIZE", Route::AllPrimaries(Merge::Sum));
    check("SCRIPT LOAD x", Route::AllPrimaries(Merge::Same));
    check("SCAN 0", Route::Scan);
    check("PUBLISH c m", Route::AnyNode);
    check("SPUBLISH c m", Route::OneSlot);
    check("HELLO 3", Route::Local);
    check("CLUSTER SLOTS", Route::Local);
    check("WATCH k", Route::Session(Session::Transaction));
    check("BLPOP k 0", Route::Session(Session::Blocking));
    check("XREAD STREAMS k 0", Route::Session(Session::Blocking));
    check("SSUBSCRIBE c", Route::Session(Session::Subscription));
    check("WAIT 1 0", Route::Session(Session::Acknowledgement));
    check("ASKING", Route::Refused(route::FOLLOWED));
    check("CLUSTER FORGET x", Route::Refused(route::TOPOLOGY));
    check("CONFIG SET a b", Route::Refused(route::ADMIN));
    check("SHUTDOWN", Route::Refused(route::ADMIN));
    check("CLIENT", Route::Refused(route::BARE));
}

/// Rules that must hold whatever the table says: each would be a hole on a shared connection.
#[test]
fn nothing_slips_through() {
    for command in every() {
        let name = command.name;
        let reaches_a_node =
            !matches!(command.route, Route::Local | Route::Refused(_) | Route::Session(_));
        let flags = command.flags;
        if flags.has(Flags::ADMIN) {
            let local = ["config|get", "role", "client|list", "client|no-evict"];
            assert!(!reaches_a_node, "{name}");
            assert!(
                command.route != Route::Local
                    || name.starts_with("cluster|")
                    || name.starts_with("slowlog|")
                    || local.contains(&name),
                "{name}"
            );
        }
        assert!(!(flags.has(Flags::BLOCKING) && reaches_a_node), "{name}");
        assert!(!(flags.has(Flags::NO_MULTI) && reaches_a_node), "{name}");
        assert!(!(flags.has(Flags::NO_AUTH) && reaches_a_node), "{name}");
        if matches!(command.route, Route::OneSlot | Route::Split(_)) {
            assert!(command.keys.any(), "{name}");
        }
        if flags.has(Flags::WRITE) && command.keys.any() {
            let fits = !matches!(command.route, Route::AnyNode | Route::Local | Route::Scan);
            assert!(fits, "{name}");
        }
    }
}

#[test]
fn blocking() {
    let check = |request: &str, expected: bool| {
        assert_eq!(found(request).blocks(words(request).as_slice()), expected, "{request}");
    };
    check("BLPOP k 1", true);
    check("BLMOVE a b LEFT LEFT 0", true);
    check("WAIT 1 0", true);
    check("XREAD STREAMS k 0", false);
    check("XREAD COUNT 1 STREAMS block 0", false);
    check("XREAD block 5 STREAMS k $", true);
    check("XREAD COUNT 1 BLOCK 5 STREAMS k $", true);
    check("XREADGROUP GROUP BLOCK c STREAMS k >", false);
    check("XREADGROUP GROUP g BLOCK STREAMS k >", false);
    check("XREADGROUP GROUP g c BLOCK 5 STREAMS k >", true);
    check("GET k", false);
}

#[test]
fn repeating() {
    let check = |request: &str, expected: bool| {
        let words = words(request);
        assert_eq!(found(request).safe_to_repeat(words.as_slice()), expected, "{request}");
    };
    check("GET k", true);
    check("MGET a b", true);
    check("DBSIZE", true);
    check("EVAL_RO s 1 k", true);
    check("PFCOUNT a", true);
    check("XREAD BLOCK 0 STREAMS k $", true);
    check("TIME", true);
    check("SCRIPT LOAD s", true);
    check("SCRIPT EXISTS s", true);
    check("SET k v", true);
    check("SET k v ex 10", true);
    check("SET k v PXAT 10", true);
    check("SET k v KEEPTTL", true);
    check("SET k v NX", false);
    check("SET k v XX", false);
    check("SET k v GET", false);
    check("SET k v EX 10 NX", false);
    check("SET k v NX EX 10", false);
    check("SET k v IFEQ x", false);
    check("SET k", false);
    check("SETEX k 10 v", true);
    check("MSET a 1 b 2", true);
    check("MSETEX 1 a 1 NX", false);
    check("SETNX k v", false);
    check("INCR k", false);
    check("DEL k", false);
    check("HSET k f v", false);
    check("EVAL s 1 k", false);
    check("PUBLISH c m", false);
    check("SPUBLISH c m", false);
    check("GETEX k EX 10", false);
    check("FLUSHALL", false);
    check("XREADGROUP GROUP g c STREAMS k >", false);
    check("WATCH k", false);
    check("CONFIG SET a b", false);
}

#[test]
fn twemproxy_serves_what_it_serves() {
    let served: BTreeSet<&str> = every()
        .filter(|command| command.twemproxy != Twemproxy::Closes)
        .map(|command| command.name)
        .collect();
    assert_eq!(served.len(), 136);
    for name in route::FIRST_KEY.split(' ') {
        let first = found(name).only_key().or_else(|| {
            let words = vec!["1"; 9];
            found(name).keys(words.as_slice()).unwrap().next()
        });
        let expected = if name.starts_with("eval") { 3 } else { 1 };
        assert_eq!(first, Some(expected), "{name}");
        assert!(served.contains(name), "{name}");
    }
    let check = |request: &str, expected: Twemproxy| {
        assert_eq!(found(request).twemproxy, expected, "{request}");
    };
    check("GET", Twemproxy::FirstKey);
    check("EXISTS", Twemproxy::FirstKey);
    check("SINTER", Twemproxy::FirstKey);
    check("UNLINK", Twemproxy::Splits);
    check("ZDIFF", Twemproxy::KeyCount);
    check("LOLWUT", Twemproxy::Placeholder);
    check("PING", Twemproxy::Answers);
    check("MULTI", Twemproxy::Closes);
    check("SELECT", Twemproxy::Closes);
}
