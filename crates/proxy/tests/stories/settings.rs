//! Pools that are given other settings while clients are there, and what engines know of each other.

use std::sync::Arc;

use proxy::{
    engine::{Allowance, ClientId, Limits, Password, PoolSetup, Profile, Quota, User, Users},
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
fn users_come_and_go() {
    let user = |(name, word): (&str, &str)| User {
        name: name.to_owned(),
        password: Password::new(word),
        profile: Profile::default(),
        quota: Some(Arc::new(Quota::new(Allowance::default()))),
    };
    let own = [("app", "1"), ("look", "2"), ("gone", "3")].map(user).to_vec();
    let users = Users { own: own.clone(), passed_on: false };
    let mut stage = Stage::new(Limits::default(), PoolSetup { users, ..pool() });
    stage.engine.set_topology(0, &topology([1], |_| vec![(0, 16_383)]));
    let log_in = |stage: &mut Stage, name: &str, word: &str| {
        let client = stage.engine.client_opened(0);
        stage.ask(client, &["AUTH", name, word]);
        (client, stage.reply(client).expect("an answer"))
    };
    let [app, look, gone, waits] = [("app", "1"), ("look", "2"), ("gone", "3"), ("gone", "3")]
        .map(|(name, word)| log_in(&mut stage, name, word).0);
    // What was asked is answered.
    stage.ask(waits, &["GET", "key"]);
    let next = [own[0].clone(), user(("look", "other")), user(("new", "4"))];
    stage.engine.set_users(0, next.to_vec());
    stage.settle();
    assert_eq!(stage.engine.clients(), 2);
    let conn = *stage.conns.keys().next().expect("a connection");
    stage.open(conn);
    stage.tell(conn, b"+value\r\n");
    assert_eq!(stage.reply(waits).as_deref(), Some("+value\r\n"));
    assert_eq!(stage.engine.clients(), 1);
    for client in [look, gone] {
        assert_eq!(stage.reply(client), None);
    }
    stage.ask(app, &["PING"]);
    assert_eq!(stage.reply(app).as_deref(), Some("+PONG\r\n"));
    for (name, word, may) in
        [("gone", "3", false), ("look", "2", false), ("look", "other", true), ("new", "4", true)]
    {
        assert_eq!(log_in(&mut stage, name, word).1 == "+OK\r\n", may, "{name}");
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
