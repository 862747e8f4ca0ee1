//! Slow requests as JSON, for who administers the proxy: which command, which keys, where the time
//! went. Values are nobody's business here.

use std::io;

use protocol::commands;
use proxy::engine::{SlowLog, SlowRequest};
use serde::Serialize;

/// One of them.
#[derive(Serialize)]
struct Row {
    number: u64,
    at_seconds: u64,
    command: String,
    keys: Vec<String>,
    micros: u64,
    micros_at_server: u64,
    server: String,
    client: u64,
    client_address: String,
    client_name: String,
    user: String,
}

impl Row {
    fn new(slow: &SlowRequest) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let command = commands::resolve(&slow.words[..]);
        let keys = command.and_then(|command| command.keys(&slow.words[..]).ok());
        let keys = keys.into_iter().flatten().filter_map(|index| slow.words.get(index));
        Self {
            number: slow.number,
            at_seconds: slow.at_seconds,
            command: command.map_or("?", |command| command.name).to_owned(),
            keys: keys.map(|key| text(key)).collect(),
            micros: slow.total,
            micros_at_server: slow.at_server,
            server: slow.server.to_string(),
            client: slow.client,
            client_address: slow.client_address.map_or_else(String::new, |it| it.to_string()),
            client_name: text(&slow.client_name),
            user: text(slow.user.as_deref().unwrap_or(b"default")),
        }
    }
}

/// An array, newest first; an empty one where nothing is noted.
pub(super) fn json(log: Option<&SlowLog>) -> io::Result<String> {
    let entries = log.map(SlowLog::entries).unwrap_or_default();
    let rows: Vec<Row> = entries.iter().map(|slow| Row::new(slow)).collect();
    Ok(serde_json::to_string(&rows)? + "\n")
}
