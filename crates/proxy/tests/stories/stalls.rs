//! Clients that don't read, and those behind them.

use std::sync::Arc;

use protocol::key_hash::twemproxy::{Distribution, Hash, KeyHash, RingServer};
use proxy::{
    engine::{ClientId, Limits, PoolSetup},
    route::{Ring, Route},
};

use super::{
    pretend::{address, topology},
    stage::{Stage, pool},
};

const SECOND: u64 = 1_000_000;
/// More than the engine keeps for a client.
const HELD: usize = 5 << 20;

/// A server with one shared connection, over which some ask.
struct Scene {
    stage: Stage,
    deaf: ClientId,
    others: [ClientId; 2],
    shared: usize,
}

impl Scene {
    /// In a cluster, or in a ring.
    fn new(is_ring: bool) -> Self {
        let mut setup = pool();
        if is_ring {
            let hash = KeyHash { hash: Hash::default(), tag: None };
            let place = RingServer { id: 0, name: "a", weight: 1 };
            let ring = Ring::new(hash, Distribution::Modula, &[place], 0);
            let servers = vec![Arc::clone(&address(1))];
            setup = PoolSetup { route: Route::Ring(ring), servers, ..setup };
        }
        let mut stage = Stage::new(Limits::default(), setup);
        if !is_ring {
            stage.engine.set_topology(0, &topology([1], |_| vec![(0, 16_383)]));
        }
        let clients = [(); 3].map(|()| stage.engine.client_opened(0));
        let [deaf, others @ ..] = clients;
        stage.deaf.insert(deaf.index());
        stage.ask(deaf, &["GET", "large"]);
        let shared = *stage.conns.keys().next().expect("a connection");
        stage.open(shared);
        Self { stage, deaf, others, shared }
    }

    /// All that came over a connection, each request in a line.
    fn arrived(&mut self, conn: usize) -> Vec<String> {
        std::iter::from_fn(|| self.stage.next(conn)).map(|words| words.join(" ")).collect()
    }

    /// The beginning of a reply that nobody reads.
    fn begin_large(&mut self, length: usize) {
        let header = format!("${length}\r\n");
        self.stage.tell(self.shared, &[header.as_bytes(), &vec![b'.'; HELD - 1]].concat());
        self.stage.tell(self.shared, b".");
        assert!(self.stage.stalled.contains(&self.shared));
    }

    /// The connection that is not the first.
    fn other_conn(&mut self) -> Option<usize> {
        let conn = self.stage.conns.keys().copied().find(|conn| *conn != self.shared)?;
        self.stage.open(conn);
        Some(conn)
    }

    fn pass(&mut self, micros: u64) {
        self.stage.pass(micros);
        self.stage.tick();
    }
}

#[test]
fn reads_go_around_who_does_not_read() {
    for is_ring in [false, true] {
        let mut scene = Scene::new(is_ring);
        let [reader, writer] = scene.others;
        scene.stage.ask(reader, &["GET", "a"]);
        scene.stage.ask(writer, &["GET", "b"]);
        scene.stage.ask(writer, &["SET", "b", "1"]);
        scene.stage.ask(reader, &["GET", "c"]);
        let all = ["GET large", "GET a", "GET b", "SET b 1", "GET c"];
        assert_eq!(scene.arrived(scene.shared), all);
        scene.begin_large(300 << 20);
        // The reader's are asked again elsewhere; the writer's may have been executed.
        let other = scene.other_conn().expect("another connection");
        assert_eq!(scene.arrived(other), ["GET a", "GET c"]);
        scene.stage.ask(reader, &["SET", "c", "2"]);
        assert_eq!(scene.arrived(other), ["SET c 2"]);
        scene.stage.tell(other, b"$1\r\na\r\n$1\r\nc\r\n+OK\r\n");
        let replies = std::iter::from_fn(|| scene.stage.reply(reader)).collect::<Vec<_>>();
        assert_eq!(replies, ["$1\r\na\r\n", "$1\r\nc\r\n", "+OK\r\n"]);
        // It waits a second, not longer, and is told what became of it.
        scene.pass(SECOND - 1);
        assert_eq!(scene.stage.unread, []);
        scene.pass(1);
        scene.pass(20_000);
        assert_eq!(scene.stage.unread, [scene.deaf]);
        let rest = [&vec![b'.'; (300 << 20) - HELD][..], b"\r\n$1\r\na\r\n$1\r\nb\r\n+OK\r\n"];
        for piece in rest.concat().chunks(1 << 20) {
            scene.stage.tell(scene.shared, piece);
        }
        scene.stage.tell(scene.shared, b"$1\r\nc\r\n");
        let replies = std::iter::from_fn(|| scene.stage.reply(writer)).collect::<Vec<_>>();
        assert_eq!(replies, ["$1\r\nb\r\n", "+OK\r\n"]);
        assert!(!scene.stage.conns.contains_key(&scene.shared), "nobody needs it any more");
        assert!(scene.stage.engine.buffer_bytes() < 1 << 20);
    }
}

#[test]
fn what_was_not_written_goes_around_too() {
    let mut scene = Scene::new(false);
    let [first, second] = scene.others;
    assert_eq!(scene.arrived(scene.shared), ["GET large"]);
    // All in one turn: nothing of it is written when the reply comes.
    for (client, words) in [(first, ["SET", "a"]), (second, ["SET", "b"])] {
        let request = format!("*3\r\n$3\r\n{}\r\n$1\r\n{}\r\n$1\r\n1\r\n", words[0], words[1]);
        assert!(scene.stage.engine.client_bytes(client, request.as_bytes()));
    }
    let header = format!("${}\r\n", 300 << 20);
    let id = scene.stage.conns[&scene.shared].id;
    let piece = [header.as_bytes(), &vec![b'.'; HELD]].concat();
    assert!(scene.stage.engine.conn_bytes(id, &piece));
    assert!(!scene.stage.engine.conn_bytes(id, b"."));
    scene.stage.settle();
    let other = scene.other_conn().expect("another connection");
    assert_eq!(scene.arrived(scene.shared), [""; 0]);
    assert_eq!(scene.arrived(other), ["SET a 1", "SET b 1"]);
}

#[test]
fn who_is_alone_has_longer() {
    let mut scene = Scene::new(true);
    scene.begin_large(300 << 20);
    scene.pass(10 * SECOND - 1);
    assert_eq!(scene.stage.unread, []);
    scene.pass(20_000);
    scene.pass(20_000);
    assert_eq!(scene.stage.unread, [scene.deaf]);
    assert!(scene.stage.conns.is_empty(), "nobody waits for the rest");
}

#[test]
fn very_long_replies_have_a_connection_to_themselves() {
    let mut scene = Scene::new(true);
    let [reader, writer] = scene.others;
    scene.stage.deaf.clear();
    scene.stage.ask(reader, &["GET", "a"]);
    let piece = vec![b'.'; 1 << 20];
    scene.stage.tell(scene.shared, format!("${}\r\n", 20 << 20).as_bytes());
    for _ in 0..15 {
        scene.stage.tell(scene.shared, &piece);
    }
    assert_eq!(scene.other_conn(), None);
    scene.stage.tell(scene.shared, &piece);
    let other = scene.other_conn().expect("another connection");
    scene.stage.ask(writer, &["SET", "b", "1"]);
    assert_eq!(scene.arrived(other), ["GET a", "SET b 1"]);
    for _ in 16..20 {
        scene.stage.tell(scene.shared, &piece);
    }
    scene.stage.tell(scene.shared, b"\r\n$1\r\na\r\n");
    assert_eq!(scene.stage.reply(scene.deaf).map(|reply| reply.len()), Some((20 << 20) + 13));
    assert_eq!(scene.stage.reply(reader), None);
    assert_eq!(scene.stage.conns.keys().copied().collect::<Vec<_>>(), [other]);
}

#[test]
fn the_rest_of_a_long_reply_is_never_an_error() {
    let mut scene = Scene::new(false);
    scene.stage.deaf.clear();
    let rest = "-MOVED 1 127.0.0.1:7009\r\n";
    let length = 5_000 + rest.len() - 2;
    scene.stage.tell(scene.shared, format!("${length}\r\n{}", ".".repeat(5_000)).as_bytes());
    scene.stage.tell(scene.shared, rest.as_bytes());
    assert_eq!(scene.other_conn(), None);
    let reply = scene.stage.reply(scene.deaf).expect("a reply");
    assert!(reply.ends_with(rest));
}

#[test]
fn the_rest_of_a_reply_that_nobody_wants_is_never_a_message() {
    let mut scene = Scene::new(false);
    let [asker, _] = scene.others;
    scene.stage.ask(asker, &["GET", "small"]);
    scene.stage.engine.client_gone(scene.deaf);
    let rest = ">1\r\n$1\r\nx\r\n";
    let length = 5_000 + rest.len() - 2;
    scene.stage.tell(scene.shared, format!("${length}\r\n{}", ".".repeat(5_000)).as_bytes());
    scene.stage.tell(scene.shared, rest.as_bytes());
    scene.stage.tell(scene.shared, b"$1\r\ny\r\n");
    assert_eq!(scene.stage.reply(asker).as_deref(), Some("$1\r\ny\r\n"));
}
