//! Any text as each of the engines' texts; any reply as each of the typed replies.

use protocol::{
    ClusterNodes, ClusterShards, Engine, Info, NodesConf, Role,
    conf::{parse_line, render},
    config_value::normalise_value,
    resp::{Limits, ServerError, decode},
};

/// Tries one input; panics where something doesn't hold.
pub fn run(input: &[u8]) {
    if let Ok(Some((value, _))) = decode(input, &Limits::default()) {
        let _ = ClusterShards::from_reply(&value);
        let _ = Role::from_reply(&value);
        let _ = Info::from_reply(&value);
    }
    let text = String::from_utf8_lossy(input);
    let _ = text.parse::<ClusterNodes>();
    let _ = text.parse::<NodesConf>();
    let info = Info::parse(&text);
    let _ = (info.keyspace(), info.replicas(), Engine::from_info(&info));
    let _ = Engine::from_version_line(&text);
    let _ = ServerError::parse(&text).redirect();
    if let Some((name, value)) = text.split_once(' ') {
        let once = normalise_value(name, value);
        assert_eq!(normalise_value(name, &once), once);
    }
    if let Ok(Some(directive)) = parse_line(&text) {
        let line = render("name", &directive.args);
        let again = parse_line(&line).expect("what we render").expect("a directive");
        assert_eq!(again.args, directive.args);
    }
}
