//! Pools that are given other settings while clients are there, and what engines know of each other.

use std::sync::Arc;

use proxy::{
    engine::{ClientId, Limits, Profile},
    route::{Route, Slots},
};

use super::{
    pretend::{address, topology},
    stage::{Stage, pool},
};

/// A client's next request needs a new connection: what that begins with.
fn begins(stage: &mut Stage, client: ClientId) -> Vec<String> {
    stage.ask(client, &["GET", "key"]);
    let new = stage.conns.iter().find(|(_, conn)| !conn.connected);
    let conn = *new.expect("a connection").0;
    stage.open(conn);
    let first = stage.next(conn).expect("a request");
    let mut words = Some(first.clone());
    while let Some(asked) = words {
        stage.tell(conn, if asked[0] == "HELLO" { b"%0\r\n" } else { b"+OK\r\n" });
        words = stage.next(conn);
    }
    first
}

#[test]
fn clients_of_either_protocol_get_the_new_password() {
    let mut stage = Stage::new(Limits::default(), pool());
    let whole = topology([1], |_| vec![(0, 16_383)]);
    stage.engine.set_topology(0, &whole);
    let clients = [2, 3].map(|protocol| {
        let client = stage.engine.client_opened(0);
        stage.ask(client, &["HELLO", &protocol.to_string()]);
        client
    });
    assert_eq!(begins(&mut stage, clients[0]), ["GET", "key"]);
    assert_eq!(begins(&mut stage, clients[1]), ["HELLO", "3"]);
    let mut slots = Slots::default();
    (0..16_384).for_each(|slot| slots.set_owner(slot, 0));
    let mut setup = pool();
    (setup.route, setup.servers) = (Route::Slots(slots), vec![address(1)]);
    setup.profile = Profile { password: Some("new".to_owned()), ..Profile::default() };
    stage.engine.replace_pool(0, setup);
    let expected = [&["AUTH", "new"][..], &["HELLO", "3", "AUTH", "default", "new"]];
    for (client, expected) in clients.into_iter().zip(expected) {
        assert_eq!(begins(&mut stage, client), expected);
    }
}

#[test]
fn info_counts_the_clients_of_all_engines() {
    let limits = Limits::default();
    let mut stages = [0; 3].map(|_| Stage::new(limits.clone(), pool()));
    let clients = stages.each_mut().map(|stage| stage.engine.client_opened(0));
    stages[0].ask(clients[0], &["INFO", "clients"]);
    let said = stages[0].reply(clients[0]).expect("a reply");
    assert!(said.contains("connected_clients:3\r\n"), "{said}");
    assert_eq!(Arc::strong_count(&limits.board), 4);
}
