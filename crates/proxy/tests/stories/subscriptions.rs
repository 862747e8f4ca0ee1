//! Subscriptions to sharded channels whose slot is nobody's for a while.

use protocol::key_slot;
use proxy::engine::{ClientId, Limits};

use super::{
    pretend::topology,
    stage::{Stage, pool},
};

const CHANNEL: &str = "news";
/// Longer than anything waits before it is tried again.
const WHILE: u64 = 50_000;

/// A client that has asked for the channel.
fn subscribing() -> (Stage, ClientId) {
    let mut stage = Stage::new(Limits::default(), pool());
    stage.engine.set_topology(
        0,
        &topology([1, 2], |number| {
            vec![[(0, 8_191)], [(8_192, 16_383)]][usize::from(number) - 1].to_vec()
        }),
    );
    let client = stage.engine.client_opened(0);
    stage.ask(client, &["SSUBSCRIBE", CHANNEL]);
    (stage, client)
}

/// Opens what there is to open; the connection that was asked for the channel, if one was.
fn asked(stage: &mut Stage) -> Option<usize> {
    for conn in stage.conns.keys().copied().collect::<Vec<_>>() {
        stage.open(conn);
        if let Some(words) = stage.next(conn) {
            assert_eq!(words, ["ssubscribe", CHANNEL]);
            return Some(conn);
        }
    }
    None
}

/// Who has it says that the other has it; so many times.
fn send_to_and_fro(stage: &mut Stage, times: usize) {
    let slot = key_slot(CHANNEL.as_bytes()).number();
    for _ in 0..times {
        let conn = asked(stage).unwrap_or_else(|| {
            stage.pass(WHILE);
            stage.tick();
            asked(stage).expect("it is asked again")
        });
        let other = match stage.conns[&conn].address.to_string().as_str() {
            "127.0.0.1:7001" => "127.0.0.1:7002",
            _ => "127.0.0.1:7001",
        };
        stage.tell(conn, format!("-MOVED {slot} {other}\r\n").as_bytes());
    }
}

#[test]
fn a_slot_that_goes_to_and_fro_is_waited_for() {
    let (mut stage, client) = subscribing();
    send_to_and_fro(&mut stage, 20);
    assert_eq!(stage.reply(client), None);
    stage.pass(WHILE);
    stage.tick();
    let conn = asked(&mut stage).expect("it is asked again");
    let notice = |verb: &str, rest: &str| {
        format!("*3\r\n${}\r\n{verb}\r\n$4\r\nnews\r\n{rest}\r\n", verb.len())
    };
    stage.tell(conn, notice("ssubscribe", ":1").as_bytes());
    assert_eq!(stage.reply(client), Some(notice("ssubscribe", ":1")));
    stage.tell(conn, notice("smessage", "$2\r\nhi").as_bytes());
    assert_eq!(stage.reply(client), Some(notice("smessage", "$2\r\nhi")));
}

#[test]
fn but_not_for_ever() {
    let (mut stage, client) = subscribing();
    send_to_and_fro(&mut stage, 20);
    stage.pass(1_000_000_000);
    send_to_and_fro(&mut stage, 1);
    let reply = stage.reply(client).expect("an error");
    assert!(reply.starts_with("-MOVED"), "{reply}");
}
