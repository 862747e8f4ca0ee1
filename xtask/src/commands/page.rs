//! The reference page: what becomes of each command behind the proxy.

use std::{collections::BTreeMap, fmt::Write as _};

use protocol::{
    EngineKind,
    commands::{self, Command, Merge, Repeat, Route, Session, Twemproxy},
};

const HEAD: &str = "\
# Commands behind the proxy

Made by `cargo xtask commands` from the engines' own tables (Redis 7.0 and 8.0, Valkey 8.1 and 9.1).
A command that is not here is answered with an error: nobody knows what it would leave behind on a
connection that clients share.

**In front of a cluster**

- *one slot*: goes to the node that has the slot of its keys. All keys must be in one slot: name them
  with a common `{tag}`.
- *dealt out*: keys may be anywhere; each slot's part is atomic, the whole is not.
- *all primaries*, *any node*: no keys; the answers are merged as it says.
- *own connection*: the client gets a connection to a server that no other client uses, for as long as
  it needs it.

**Again**: is the request sent again when a connection broke and nobody knows whether it was executed?
Only what twice leaves the same data as once, and gives the same answer.

**twemproxy**: what twemproxy 0.5.0 does with it. A ring of keyfleet does the same, except that

- EXISTS is dealt out by key, as DEL is; twemproxy asks only the first key's server about all of them;
- ZUNION, ZINTER and ZDIFF go to the server of their first key; twemproxy hashes the number of keys;
- COMMAND and LOLWUT may be answered by any server;
- where twemproxy closes the connection, the client gets an error and keeps it. Commands in one slot
  that twemproxy does not know go to the server of their keys.
";

pub fn render() -> String {
    let mut groups: BTreeMap<&str, Vec<&Command>> = BTreeMap::new();
    for command in commands::all() {
        let whole = !command.is_container() || command.route == Route::AnyNode;
        let bare = whole.then_some(command);
        groups
            .entry(command.group)
            .or_default()
            .extend(bare.into_iter().chain(command.subcommands()));
    }
    let mut text = HEAD.to_owned();
    for (group, commands) in groups {
        let _ = write!(text, "\n## {group}\n\n");
        text.push_str(
            "| command | in front of a cluster | again | twemproxy |\n|---|---|---|---|\n",
        );
        for command in commands {
            let _ = writeln!(
                text,
                "| {}{} | {} | {} | {} |",
                command.name.to_ascii_uppercase().replace('|', " "),
                engines(command),
                route(command.route),
                repeat(command),
                twemproxy(command.twemproxy),
            );
        }
    }
    text
}

/// Nothing where every asked engine has it.
fn engines(command: &Command) -> String {
    let everywhere = command.since.iter().map(|(kind, version)| (*kind, version.major));
    if everywhere.eq([(EngineKind::Redis, 7), (EngineKind::Valkey, 8)]) {
        return String::new();
    }
    let each = command.since.iter().map(|(kind, v)| format!("{kind} {}.{}", v.major, v.minor));
    format!(" ({})", each.collect::<Vec<_>>().join(", "))
}

fn route(route: Route) -> String {
    match route {
        Route::OneSlot => "one slot".to_owned(),
        Route::Split(merge) => format!("dealt out; {}", merged(merge)),
        Route::AllPrimaries(merge) => format!("all primaries; {}", merged(merge)),
        Route::AnyNode => "any node".to_owned(),
        Route::Scan => "all primaries in turn; the cursor says where it is".to_owned(),
        Route::Local => "the proxy answers".to_owned(),
        Route::Session(session) => format!("own connection: {}", session_reason(session)),
        Route::Refused(reason) => format!("error: {reason}"),
    }
}

fn merged(merge: Merge) -> &'static str {
    match merge {
        Merge::Sum => "added up",
        Merge::InOrderOfKeys => "in the order of the keys",
        Merge::AllOk => "OK when all say OK",
        Merge::Concat => "joined",
        Merge::Union => "joined, each once",
        Merge::And => "1 where all say 1",
        Merge::SumPairs => "added up by name",
        Merge::Same => "the same everywhere",
        Merge::NotNull => "one that is not null",
        Merge::OneOk => "OK when one says OK",
    }
}

fn session_reason(session: Session) -> &'static str {
    match session {
        Session::Transaction => "a transaction in one slot",
        Session::Blocking => "it may wait",
        Session::Subscription => "messages arrive on it",
        Session::Acknowledgement => {
            "only in a transaction: else writes go over connections that clients share"
        }
    }
}

fn repeat(command: &Command) -> &'static str {
    match (command.repeat, command.route) {
        (_, Route::Local | Route::Refused(_)) => "",
        (Repeat::Always, _) => "yes",
        (Repeat::PlainSet, _) => "without NX, XX, GET and the like",
        (Repeat::Never, _) => "no",
    }
}

fn twemproxy(twemproxy: Twemproxy) -> &'static str {
    match twemproxy {
        Twemproxy::Closes => "",
        Twemproxy::Answers => "answers",
        Twemproxy::FirstKey => "by the first key",
        Twemproxy::Splits => "dealt out",
        Twemproxy::KeyCount => "by the number of keys",
        Twemproxy::Placeholder => "some server",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_is_current() {
        crate::commands::write_page(true).unwrap();
    }
}
