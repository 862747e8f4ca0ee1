//! Limited users beside one who is not: nobody gets more than his share, everybody is answered.

use std::{collections::VecDeque, sync::Arc};

use protocol::SlotSet;
use proxy::{
    engine::{Allowance, ClientId, Limits, Password, PoolSetup, Profile, Quota, User, Users},
    route::{Address, Primary, Topology},
};

use super::{
    pretend::{Rng, STEPS, tell},
    stage::{Stage, pool},
};

const RATE: u64 = 200;
const BYTES: u64 = 20_000;

#[test]
fn who_asks_too_much_is_read_later() {
    tell([100_000], |seed| [story(seed)]);
}

struct Asker {
    id: ClientId,
    limited: bool,
    waiting: VecDeque<String>,
}

fn story(seed: u64) -> usize {
    let mut rng = Rng(seed);
    let allowance = Allowance {
        clients_max: Some(3),
        requests_per_second: Some(RATE),
        bytes_per_second: Some(BYTES),
    };
    let quota = Arc::new(Quota::new(allowance));
    let user = |name: &str, quota: Option<&Arc<Quota>>| User {
        name: name.to_owned(),
        password: Password::new(name),
        profile: Profile::default(),
        quota: quota.cloned(),
    };
    let own = vec![user("limited", Some(&quota)), user("free", None)];
    let users = Users { own, passed_on: false };
    let mut stage = Stage::new(Limits::default(), PoolSetup { users, ..pool() });
    let address = Arc::new(Address::Tcp(([127, 0, 0, 1], 7000).into()));
    let primaries = vec![Primary { address, slots: SlotSet::full() }];
    stage.engine.set_topology(0, &Topology { primaries });
    let mut askers: Vec<Asker> = Vec::new();
    for number in 0..6 {
        let (id, limited) = (stage.engine.client_opened(0), number < 5);
        let name = if limited { "limited" } else { "free" };
        stage.ask(id, &["auth", name, name]);
        let answer = stage.reply(id).expect("an answer");
        assert_eq!(answer == "+OK\r\n", !(3..5).contains(&number), "{number} {answer}");
        if answer == "+OK\r\n" {
            askers.push(Asker { id, limited, waiting: VecDeque::new() });
        }
    }
    let (mut served, mut bytes, mut answered, mut number) = (0, 0, 0, 0);
    for _ in 0..STEPS {
        stage.pass(rng.below(8_000) as u64);
        stage.tick();
        let asker = &mut askers[rng.below(4)];
        let most = if rng.chance(3) { 40 } else { 3 };
        for _ in 0..rng.below(most) {
            if stage.is_read(asker.id) {
                number += 1;
                let value = "v".repeat(rng.below(200));
                stage.ask(asker.id, &["set", &format!("k{number}"), &value]);
                asker.waiting.push_back("+OK\r\n".to_owned());
            }
        }
        // Nothing that came waits in the proxy: its client was only not read.
        for conn in stage.conns.keys().copied().collect::<Vec<_>>() {
            stage.open(conn);
            while let Some(words) = stage.next(conn) {
                assert_eq!(words[0], "set");
                stage.tell(conn, b"+OK\r\n");
            }
        }
        for asker in &mut askers {
            assert!(asker.limited || stage.is_read(asker.id));
            while let Some(reply) = stage.reply(asker.id) {
                assert_eq!(Some(reply), asker.waiting.pop_front());
                answered += 1;
            }
            assert!(asker.waiting.is_empty());
        }
        let taken = quota.taken();
        (served, bytes) = (taken.requests, taken.bytes);
    }
    // Each client may go over by what it sent last, and there is a burst.
    let within = |rate: u64, most: u64| rate * stage.now / 1_000_000 + rate / 10 + 3 * most + 1;
    assert!(served <= within(RATE, 1), "{served} requests in {} µs", stage.now);
    assert!(bytes <= within(BYTES, 300), "{bytes} bytes in {} µs", stage.now);
    assert!(quota.taken().delays > 10);
    for asker in askers.drain(..) {
        stage.engine.client_gone(asker.id);
    }
    assert_eq!(quota.taken().clients, 0);
    answered
}
