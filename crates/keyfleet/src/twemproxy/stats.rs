//! The line of JSON that twemproxy's stats port gives to whoever connects: same fields, same order,
//! same spaces.
//!
//! twemproxy's figures lag behind by up to its interval; these are current.

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use super::pools::{Figures, ServerFigures};

/// The version of twemproxy whose place is taken.
pub const VERSION: &str = "0.5.0";

/// A field's name, what it means, and its value.
pub type Field<T> = (&'static str, &'static str, fn(&T) -> u64);

/// The fields of a pool, each with what it means.
pub const POOL_FIELDS: [Field<Figures>; 6] = [
    ("client_eof", "clients that ended their connection", |pool| pool.client_eof),
    ("client_err", "clients whose connection failed", |pool| pool.client_err),
    ("client_connections", "clients that are connected", |pool| pool.client_connections),
    ("server_ejects", "times that a server was ejected", |pool| pool.server_ejects),
    ("forward_error", "requests that could not be forwarded", |pool| pool.forward_error),
    ("fragments", "requests that came of splitting others by key", |pool| pool.fragments),
];

/// The fields of a server, each with what it means.
pub const SERVER_FIELDS: [Field<ServerFigures>; 13] = [
    ("server_eof", "connections that the server ended", |server| server.server_eof),
    ("server_err", "connections that failed", |server| server.server_err),
    ("server_timedout", "requests without a reply in time", |server| server.server_timedout),
    ("server_connections", "connections that there are", |server| server.server_connections),
    ("server_ejected_at", "when it was last ejected, in µs since 1970", |server| {
        server.server_ejected_at
    }),
    ("requests", "requests", |server| server.requests),
    ("request_bytes", "bytes of requests", |server| server.request_bytes),
    ("responses", "replies", |server| server.responses),
    ("response_bytes", "bytes of replies", |server| server.response_bytes),
    ("in_queue", "requests that wait to be sent", |server| server.in_queue),
    ("in_queue_bytes", "bytes of requests that wait to be sent", |server| server.in_queue_bytes),
    ("out_queue", "requests that wait for a reply", |server| server.out_queue),
    ("out_queue_bytes", "bytes of requests that wait for a reply", |server| server.out_queue_bytes),
];

/// The whole line. `source` is this machine's name, `now` the time since 1970.
pub fn line(source: &str, uptime: Duration, now: Duration, pools: &[Figures]) -> String {
    let listeners = pools.len() as u64;
    let sum = |of: fn(&Figures) -> u64| pools.iter().map(of).sum::<u64>() + listeners;
    let ever = sum(|pool| {
        pool.clients_ever + pool.servers.iter().map(|each| each.connections_ever).sum::<u64>()
    });
    let current = sum(|pool| {
        let servers: u64 = pool.servers.iter().map(|each| each.server_connections).sum();
        pool.client_connections + servers
    });
    let mut out = format!(
        "{{\"service\":\"nutcracker\", \"source\":{}, \"version\":\"{VERSION}\", \"uptime\":{}, \
         \"timestamp\":{}, \"total_connections\":{ever}, \"curr_connections\":{current}, ",
        text(source),
        uptime.as_secs(),
        now.as_secs(),
    );
    for (index, pool) in pools.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{}: {{", text(&pool.name));
        for (name, _, value) in POOL_FIELDS {
            let _ = write!(out, "\"{name}\":{}, ", value(pool));
        }
        for (index, server) in pool.servers.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let fields = SERVER_FIELDS.iter();
            let fields: Vec<String> =
                fields.map(|(name, _, value)| format!("\"{name}\":{}", value(server))).collect();
            let _ = write!(out, "{comma}{}: {{{}}}", text(&server.name), fields.join(", "));
        }
        out.push('}');
    }
    out.push_str("}\n");
    out
}

/// The same for this moment.
pub fn line_now(source: &str, started: SystemTime, pools: &[Figures]) -> String {
    let now = SystemTime::now();
    let uptime = now.duration_since(started).unwrap_or_default();
    line(source, uptime, now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(), pools)
}

fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_twemproxy_writes_it() {
        let server = |name: &str| ServerFigures { name: name.to_owned(), ..Default::default() };
        let pool = |name: &str, servers: &[&str]| Figures {
            name: name.to_owned(),
            servers: servers.iter().map(|name| server(name)).collect(),
            ..Figures::default()
        };
        let mut pools = [pool("al", &["s3"]), pool("beta", &["one", "127.0.0.1:2"])];
        pools[1].clients_ever = 1;
        pools[1].client_connections = 1;
        pools[1].forward_error = 1;
        pools[1].servers[0].connections_ever = 1;
        pools[1].servers[0].server_err = 1;
        pools[1].servers[0].requests = 1;
        pools[1].servers[0].request_bytes = 20;
        let times = [1, 1_795_364_009].map(Duration::from_secs);
        let expected = include_str!("stats.json");
        assert_eq!(line("vm", times[0], times[1], &pools), expected);
    }
}
