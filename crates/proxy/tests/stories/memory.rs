//! What clients hold together, and who goes when it is too much.

use std::sync::Arc;

use proxy::engine::{ClientId, Limits, Memory};

use super::{
    pretend::topology,
    stage::{Stage, pool},
};

const MIB: usize = 1 << 20;

/// A cluster of one server.
fn scene(memory: &Arc<Memory>) -> Stage {
    let limits = Limits { memory: memory.clone(), ..Limits::default() };
    let mut stage = Stage::new(limits, pool());
    stage.engine.set_topology(0, &topology([1], |_| vec![(0, 16_383)]));
    stage
}

/// A client asks for a value that is so long, and takes nothing of it.
fn hold(stage: &mut Stage, length: usize) -> ClientId {
    let client = stage.engine.client_opened(0);
    stage.deaf.insert(client.index());
    get(stage, client, length);
    client
}

/// So many with 1.5 MB each.
fn hold_all(stage: &mut Stage, count: usize) -> Vec<ClientId> {
    (0..count).map(|_| hold(stage, 1_500_000)).collect()
}

/// The server answers a client's request, as far as it is read.
fn get(stage: &mut Stage, client: ClientId, length: usize) {
    stage.ask(client, &["GET", "a"]);
    let conns: Vec<usize> = stage.conns.keys().copied().collect();
    for conn in &conns {
        stage.open(*conn);
    }
    let asked = conns.into_iter().find(|conn| stage.next(*conn).is_some()).expect("a request");
    let reply = [format!("${length}\r\n").as_bytes(), &vec![b'.'; length], b"\r\n"].concat();
    for piece in reply.chunks(100_000) {
        if stage.stalled.contains(&asked) {
            break;
        }
        stage.tell(asked, piece);
    }
}

#[test]
fn it_is_never_more_than_it_may_be() {
    let mut stage = scene(&Memory::new(16 * MIB, 1).into());
    for _ in 0..300 {
        hold(&mut stage, MIB);
        let held = stage.engine.buffer_bytes();
        assert!(held < 17 * MIB, "{held}");
        // Somebody who reads goes on.
        let reader = stage.engine.client_opened(0);
        get(&mut stage, reader, 10_000);
        assert_eq!(stage.reply(reader).map(|reply| reply.len()), Some(10_010));
        stage.engine.client_gone(reader);
    }
    assert!((250..300).contains(&stage.evicted.len()), "{}", stage.evicted.len());
    assert_eq!(stage.engine.clients(), 300 - stage.evicted.len());
}

#[test]
fn those_go_that_hold_most() {
    let mut stage = scene(&Memory::new(16 * MIB, 1).into());
    let small: Vec<ClientId> = (0..100).map(|_| hold(&mut stage, 50_000)).collect();
    let large = hold_all(&mut stage, 8);
    assert!(!stage.evicted.is_empty());
    assert!(stage.evicted.iter().all(|client| large.contains(client) && !small.contains(client)));
}

#[test]
fn who_holds_less_than_its_share_loses_nobody() {
    let memory = Arc::new(Memory::new(16 * MIB, 2));
    let (mut one, mut other) = (scene(&memory), scene(&memory));
    hold_all(&mut one, 7);
    assert_eq!(one.evicted, []);
    hold_all(&mut other, 3);
    assert_eq!(other.evicted, []);
    // The first gives as soon as it looks.
    one.pass(20_000);
    one.tick();
    assert!(!one.evicted.is_empty());
    let all = one.engine.buffer_bytes() + other.engine.buffer_bytes();
    assert!(all <= 16 * MIB, "{all}");
}

#[test]
fn what_is_given_back_is_there_for_others() {
    let memory = Arc::new(Memory::new(16 * MIB, 2));
    let (mut one, mut other) = (scene(&memory), scene(&memory));
    let clients = hold_all(&mut one, 7);
    for client in clients {
        one.engine.client_gone(client);
    }
    // Nothing happens there any more but time.
    one.pass(20_000);
    one.tick();
    hold_all(&mut other, 6);
    assert_eq!(other.evicted, []);
    // And once it holds nothing it needs no looks.
    one.pass(20_000);
    one.tick();
    assert_eq!(one.engine.next_tick(), None);
}

#[test]
fn a_request_of_many_keys_leaves_nothing() {
    let mut stage = scene(&Arc::default());
    stage.engine.set_topology(
        0,
        &topology([1, 2], |node| match node {
            1 => vec![(0, 9_999)],
            _ => vec![(10_000, 16_383)],
        }),
    );
    let client = stage.engine.client_opened(0);
    let keys: Vec<String> = (0..100_000).map(|key| key.to_string()).collect();
    let words: Vec<&str> = ["UNLINK"].into_iter().chain(keys.iter().map(String::as_str)).collect();
    stage.ask(client, &words);
    let conns: Vec<usize> = stage.conns.keys().copied().collect();
    for conn in conns {
        stage.open(conn);
        while let Some(words) = stage.next(conn) {
            stage.tell(conn, format!(":{}\r\n", words.len() - 1).as_bytes());
        }
    }
    assert_eq!(stage.reply(client).as_deref(), Some(":100000\r\n"));
    let held = stage.engine.buffer_bytes();
    assert!(held < 100_000, "{held}");
}

#[test]
fn a_server_that_does_not_answer_is_not_asked_without_end() {
    let mut stage = scene(&Arc::default());
    let value = ".".repeat(60_000);
    let clients: Vec<ClientId> = (0..20).map(|_| stage.engine.client_opened(0)).collect();
    for client in clients.iter().cycle().take(2_000) {
        if stage.is_read(*client) {
            stage.ask(*client, &["SET", "a", &value]);
            let conns: Vec<usize> = stage.conns.keys().copied().collect();
            for conn in conns {
                stage.open(conn);
            }
        }
    }
    assert!(clients.iter().all(|client| !stage.is_read(*client)));
    // 16 MiB, in a buffer that may have room for twice as much.
    assert!(stage.engine.buffer_bytes() < 33 * MIB, "{}", stage.engine.buffer_bytes());
    // It goes on as it answers.
    let mut answered = 0;
    let conn = *stage.conns.keys().next().expect("a connection");
    while stage.next(conn).is_some() {
        stage.tell(conn, b"+OK\r\n");
        answered += 1;
    }
    assert!(answered > 250, "{answered}");
    assert!(clients.iter().all(|client| stage.is_read(*client)));
}

#[test]
fn a_hundred_thousand_idle_clients_hold_next_to_nothing() {
    let mut stage = scene(&Arc::default());
    let clients: Vec<ClientId> = (0..100_000).map(|_| stage.engine.client_opened(0)).collect();
    for client in clients.iter().step_by(10) {
        get(&mut stage, *client, 1_000);
        assert!(stage.reply(*client).is_some());
    }
    let held = stage.engine.buffer_bytes();
    assert!(held < MIB, "{held}");
    assert_eq!(stage.engine.next_tick(), None, "nobody is looked after");
}
