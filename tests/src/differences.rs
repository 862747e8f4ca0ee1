//! What keyfleet does on purpose in another way than the twemproxy whose place it takes. A test
//! shows both sides' answers to each of these requests; the reference page is made of the table.

use std::fmt::Write as _;

use anyhow::Result;
use protocol::Value;

use crate::differential::Wire;

/// A request that the two answer differently.
#[derive(Debug)]
pub struct Difference {
    pub pool: Pool,
    /// Words, parted by spaces. `LONG` is a key of 17,000 bytes; `PING inline` is sent as a plain
    /// line.
    pub request: &'static str,
    /// How twemproxy answers: see [`answer`]; `…` stands for any rest.
    pub twemproxy: &'static str,
    pub keyfleet: &'static str,
}

/// What it is asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Three servers that hold nothing but what [`PREPARED`] says.
    Open,
    /// Its clients need a password, `secret`.
    Locked,
    /// Three servers without memory.
    Full,
    /// Three servers, of which one is dead.
    Halved,
}

/// What the first pool holds, on all of its servers.
pub const PREPARED: [&str; 3] =
    ["MSET a 1 pear 2 plum 3 fig 4 lime 5 peach 6", "ZADD {fig}1 1 one", "ZADD {fig}2 2 two"];

const fn row(
    pool: Pool,
    request: &'static str,
    twemproxy: &'static str,
    keyfleet: &'static str,
) -> Difference {
    Difference { pool, request, twemproxy, keyfleet }
}

/// Twemproxy closes the connection and drops what was asked before and not answered yet.
const CLOSES: &str = "closes";

/// Some answer: which depends on more than the request.
const ANY: &str = "…";

/// All of them.
pub const DIFFERENCES: [Difference; 32] = [
    row(Pool::Open, "NONSENSE", CLOSES, "-ERR unknown command 'NONSENSE'…"),
    row(Pool::Open, "GET", CLOSES, "-ERR wrong number of arguments for 'get' command"),
    row(Pool::Open, "GET a b", CLOSES, "-ERR wrong number of arguments for 'get' command"),
    row(Pool::Open, "MSET a 1 b", CLOSES, "-ERR wrong number of arguments for…"),
    row(Pool::Open, "PING inline", CLOSES, "+PONG"),
    row(Pool::Open, "PING hello", CLOSES, "\"hello\""),
    row(Pool::Open, "ECHO hello", CLOSES, "\"hello\""),
    row(Pool::Open, "QUIT", CLOSES, "+OK, then closes"),
    row(Pool::Open, "RESET", CLOSES, "+RESET"),
    row(Pool::Open, "HELLO 2", CLOSES, ANY),
    row(Pool::Open, "HELLO 3", CLOSES, ANY),
    row(Pool::Open, "SELECT 0", CLOSES, "+OK"),
    row(Pool::Open, "AUTH user secret", CLOSES, "-…"),
    row(Pool::Open, "CLIENT SETNAME me", CLOSES, "+OK"),
    row(Pool::Open, "CLIENT ID", CLOSES, ":…"),
    row(Pool::Open, "INFO", CLOSES, ANY),
    row(Pool::Open, "DBSIZE", CLOSES, ANY),
    row(Pool::Open, "MULTI", CLOSES, ANY),
    row(Pool::Open, "SET LONG 1", CLOSES, "+OK"),
    row(Pool::Open, "EXISTS a pear plum fig lime peach", ":2", ":6"),
    row(Pool::Open, "ZUNION 1 {fig}1", "(empty)", "(1 element)"),
    row(Pool::Open, "OBJECT ENCODING a", CLOSES, "\"int\""),
    row(Pool::Open, "XADD stream * field value", CLOSES, "\"…"),
    row(Pool::Open, "SINTERCARD 2 {z}3 {z}4", CLOSES, ":0"),
    row(Pool::Open, "MSETNX a 1 pear 2 plum 3 fig 4 lime 5", CLOSES, "-CROSSSLOT…"),
    row(Pool::Open, "RENAME {fig}1 {fig}1", CLOSES, "+OK"),
    row(Pool::Open, "EVAL return(7) 0", CLOSES, ":7"),
    row(
        Pool::Locked,
        "GET a",
        "-NOAUTH Authentication required",
        "-NOAUTH Authentication required.",
    ),
    row(Pool::Locked, "AUTH wrong", "-ERR invalid password", "-WRONGPASS…"),
    row(Pool::Full, "SET a 2", "-ERR Invalid argument", "-OOM command not allowed…"),
    row(
        Pool::Full,
        "MSET a 2 pear 2 plum 3 fig 4 lime 5",
        "-ERR Invalid argument",
        "-OOM command not allowed…",
    ),
    row(
        Pool::Halved,
        "MGET a pear plum fig lime peach",
        "-ERR Connection refused, then closes",
        "-ERR Connection refused",
    ),
];

/// How a proxy answers a request on a new connection: `-ERR …`, `+OK`, `:1`, `"text"`, `(2
/// elements)`, `(empty)`, `(null)`; and whether it closes.
pub fn answer(wire: &mut Wire, request: &str) -> Result<String> {
    if request == "PING inline" {
        wire.send_raw(b"PING\r\n")?;
    } else {
        let long = vec![b'k'; 17_000];
        let word = |word: &str| if word == "LONG" { long.clone() } else { word.into() };
        wire.send(&[request.split(' ').map(word).collect()])?;
    }
    let Ok(reply) = wire.reply() else { return Ok(CLOSES.to_owned()) };
    let shown = match &reply {
        Value::Simple(text) => format!("+{text}"),
        Value::Error(text) => format!("-{text}"),
        Value::Integer(number) => format!(":{number}"),
        Value::Array(items) if items.is_empty() => "(empty)".to_owned(),
        Value::Array(items) if items.len() == 1 => "(1 element)".to_owned(),
        Value::Array(items) => format!("({} elements)", items.len()),
        Value::Null => "(null)".to_owned(),
        other => format!("\"{}\"", other.as_str().unwrap_or_default()),
    };
    let ping = vec![b"PING".to_vec()];
    let open = wire.send(&[ping]).is_ok() && wire.reply().is_ok();
    Ok(if open { shown } else { format!("{shown}, then closes") })
}

/// Is an answer what stands in the table?
pub fn fits(answer: &str, expected: &str) -> bool {
    match expected.strip_suffix('…') {
        Some("") => answer != CLOSES,
        Some(beginning) => answer.starts_with(beginning),
        None => answer == expected,
    }
}

const HEAD: &str = "\
# In twemproxy's place

    keyfleet proxy --twemproxy nutcracker.yml

serves the pools of a nutcracker.yml as twemproxy 0.5.0 does: each key goes to the server that it went
to before. Called by the name `nutcracker` (a link is enough), keyfleet has twemproxy's flags, signals,
exit codes and stats port.

Made by `cargo xtask differential --page`; a test shows both sides' answers to every request below.

## Reload

SIGHUP, or a change of the file that is still there a second later, has it read again. Pools come, go
and change, by their names; clients of pools that stay are not disconnected, and what was asked is
answered by whom it was asked of. A file that is wrong, or an address where somebody else listens, is
logged, and all stays as it is. A listening socket keeps its backlog while its address stays.

Under the name `nutcracker`, SIGHUP also opens the log file anew.

## Ejection

`auto_eject_hosts`, `server_retry_timeout` and `server_failure_limit` work as in twemproxy: while a
server is ejected, the others serve its keys. What it holds is not seen meanwhile, and what was written
elsewhere is not seen afterwards. With `--ejected error` nobody serves them: requests for its keys are
answered with an error at once, for `server_retry_timeout`.

With several threads (`--threads`), each ejects by what it sees itself, as several twemproxies do.

A request without a reply within `timeout` is answered with an error. twemproxy then closes the
server's connection with all that is on it; here the others' requests on it go on.

## Memory

twemproxy holds whatever clients don't read, and keeps the memory. Here a client is given no more while
4 MiB wait for it, and is closed if that holds others up; where all clients' and servers' buffers
together exceed `--memory-max` (1 GiB, under the name `nutcracker` too) the clients that hold most are closed.

## What twemproxy has not

Called by its own name, it serves the clients of all pools with what the
[proxy of a cluster](proxy.md) has too: `--tls-listen POOL=ADDRESS` (`ADDRESS`, where there is but one
pool) with `--tls-cert` and `--tls-key`, `--server-tls-ca`, `--users`, `--clients-max`,
`--requests-per-second`, `--bytes-per-second`, `--proxy-protocol`, `--slowlog-slower-than`, `--hot-keys`,
`--metrics`, whose figures name their pools, and with `--takeover` one process in the place of another,
which refuses nobody. Limits hold for all pools together; a file without a pool that `--tls-listen`
names is refused. SIGINT and SIGTERM end it once what is under way is answered, after `--drain` seconds
at the latest.

## Stats

The line of JSON has the same fields in the same order. `server_timedout` counts requests, not
connections. The figures are those of the moment; `--stats-interval` has no effect.

## Signals and exit codes

Under the name `nutcracker`, SIGINT ends it with 1, as there. SIGTERM, which kills twemproxy, ends it with 0. The log goes to stderr
where no file is named.

## Commands

What is not here is answered alike. Where twemproxy closes the connection, it also drops the replies to
what was asked before.

";

/// The reference page.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    let pools = [
        (Pool::Open, "Three servers:"),
        (Pool::Locked, "With `redis_auth`:"),
        (Pool::Full, "Servers that are out of memory:"),
        (Pool::Halved, "One of three servers is dead:"),
    ];
    for (pool, title) in pools {
        let _ = write!(page, "{title}\n\n| request | twemproxy | keyfleet |\n|---|---|---|\n");
        for row in DIFFERENCES.iter().filter(|row| row.pool == pool) {
            let shown = |answer: &str| match answer {
                ANY => "an answer".to_owned(),
                CLOSES => CLOSES.to_owned(),
                other => format!("`{other}`"),
            };
            let request = match row.request {
                "PING inline" => "`PING` as a plain line".to_owned(),
                request => format!("`{}`", request.replace("LONG", "(17,000 bytes)")),
            };
            let (theirs, ours) = (shown(row.twemproxy), shown(row.keyfleet));
            let _ = writeln!(page, "| {request} | {theirs} | {ours} |");
        }
        page.push('\n');
    }
    page.truncate(page.trim_end().len());
    page + "\n"
}
