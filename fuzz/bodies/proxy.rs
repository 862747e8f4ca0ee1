//! Any bytes in any pieces, from clients and from servers: requests and replies end where they end
//! in one piece, and the engine takes what comes without panicking and within its limits.

use std::sync::Arc;

use proxy::{
    engine::{
        Action, ConnId, Engine, Limits, PoolSetup, Profile, Users,
        reply::{Framer, Scan},
        request::{Frame, Progress, RequestError, RequestLimits, frame, words},
    },
    route::{Address, Primary, Route, Slots, Topology},
};

const LIMITS: RequestLimits = RequestLimits { words_max: 64, word_bytes_max: 1 << 12 };

/// Where each request ends, and what ended it all.
fn requests(wire: &[u8], piece: usize) -> (Vec<Frame>, Option<RequestError>) {
    let mut found = Vec::new();
    let mut held = Vec::new();
    let mut progress = Progress::default();
    for bytes in wire.chunks(piece) {
        held.extend_from_slice(bytes);
        loop {
            match frame(&held, &mut progress, &LIMITS) {
                Ok(Some(frame)) => {
                    let request: Vec<u8> = held.drain(..frame.length).collect();
                    assert_eq!(words(&request).count(), frame.words as usize);
                    found.push(frame);
                }
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

/// Where each reply ends.
fn replies(wire: &[u8], piece: usize) -> (Vec<usize>, bool) {
    let mut ends = Vec::new();
    let mut held = Vec::new();
    let mut at = 0;
    let mut framer = Framer::default();
    for bytes in wire.chunks(piece) {
        held.extend_from_slice(bytes);
        while !held.is_empty() {
            match framer.scan(&held) {
                Ok(Scan::Whole(length)) => {
                    held.drain(..length);
                    at += length;
                    ends.push(at);
                }
                Ok(Scan::Part(length)) => {
                    held.drain(..length);
                    at += length;
                    break;
                }
                Err(_) => return (ends, true),
            }
        }
    }
    (ends, false)
}

/// A client says it all, then the servers do.
fn engine(wire: &[u8], piece: usize) {
    let limits = Limits { request: LIMITS, stream_bytes_min: 256, ..Limits::default() };
    let mut engine = Engine::new(limits);
    let pool = engine.add_pool(PoolSetup {
        route: Route::Slots(Slots::default()),
        servers: Vec::new(),
        profile: Profile::default(),
        client_password: None,
        users: Users::default(),
        timeout: Some(1_000),
        server_connections: 1,
        backoff_min: 1,
        backoff_max: 1,
    });
    let address = Arc::new(Address::Unix("/server".into()));
    let slots = protocol::SlotSet::full();
    engine.set_topology(pool, &Topology { primaries: vec![Primary { address, slots }] });
    let client = engine.client_opened(pool);
    let mut conns: Vec<ConnId> = Vec::new();
    for bytes in wire.chunks(piece) {
        engine.client_bytes(client, bytes);
        for conn in conns.clone() {
            engine.conn_bytes(conn, bytes);
        }
        engine.settle();
        while let Some(conn) = engine.next_conn_to_write() {
            let count = engine.conn_output(conn).len();
            engine.conn_wrote(conn, count);
        }
        while let Some(id) = engine.next_client_to_write() {
            let count = engine.client_output(id).len();
            engine.client_wrote(id, count);
        }
        while let Some(action) = engine.next_action() {
            match action {
                Action::Connect { conn, .. } => {
                    engine.conn_opened(conn);
                    conns.push(conn);
                }
                Action::CloseConn(conn) => {
                    conns.retain(|each| *each != conn);
                    engine.forget_conn(conn);
                }
                Action::CloseClient(id) => engine.client_gone(id),
                _ => {}
            }
        }
    }
    assert!(engine.buffer_bytes() < 16 << 20);
}

/// Tries one input; panics where something doesn't hold.
pub fn run(input: &[u8]) {
    let Some((size, wire)) = input.split_first() else { return };
    let piece = usize::from(*size).max(1);
    assert_eq!(requests(wire, piece), requests(wire, wire.len().max(1)));
    assert_eq!(replies(wire, piece), replies(wire, wire.len().max(1)));
    engine(wire, piece);
}
