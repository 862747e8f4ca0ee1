//! The near cache, case by case.

use proxy::engine::{ClientId, Password, PoolSetup, Profile, User, Users};

use super::{
    super::{
        pretend::topology,
        stage::{Stage, pool},
    },
    near_limits,
};

/// One server that answers all it is asked, and one hot key.
struct Scene {
    stage: Stage,
    asked: Vec<String>,
    /// The near cache's connection.
    near: Option<usize>,
}

const VALUE: &str = "$1\r\nv\r\n";

impl Scene {
    fn new(setup: PoolSetup) -> Self {
        let mut stage = Stage::new(near_limits(1 << 20), setup);
        stage.engine.set_topology(0, &topology([1], |_| vec![(0, 16_383)]));
        Self { stage, asked: Vec::new(), near: None }
    }

    fn client(&mut self, hello: &[&str]) -> ClientId {
        let client = self.stage.engine.client_opened(0);
        if !hello.is_empty() {
            self.stage.ask(client, hello);
            self.stage.reply(client).expect("a reply");
        }
        client
    }

    /// Servers answer; with `long`, a value of so many bytes.
    fn serve(&mut self, long: usize) {
        let value = format!("${long}\r\n{}\r\n", ".".repeat(long));
        let value = if long == 0 { VALUE } else { &value };
        while let Some((conn, words)) = self.next() {
            let said = match words.join(" ").to_lowercase().as_str() {
                "pttl none" => ":-2\r\n",
                "get none" if self.near == Some(conn) => "_\r\n",
                "get none" => "$-1\r\n",
                text if text.starts_with("pttl") => ":-1\r\n",
                text if text.starts_with("get") => value,
                _ => "+OK\r\n",
            };
            for part in said.as_bytes().chunks(4_500) {
                self.stage.tell(conn, part);
            }
        }
    }

    fn next(&mut self) -> Option<(usize, Vec<String>)> {
        for conn in self.stage.conns.keys().copied().collect::<Vec<_>>() {
            self.stage.open(conn);
            if let Some(words) = self.stage.next(conn) {
                self.asked.push(words.join(" "));
                if words[0] == "CLIENT" {
                    self.near = Some(conn);
                }
                return Some((conn, words));
            }
        }
        None
    }

    /// What a GET is answered, and did a server have to be asked?
    fn get(&mut self, client: ClientId, key: &str) -> (Option<String>, bool) {
        self.asked.clear();
        self.stage.ask(client, &["GET", key]);
        let at_once = self.stage.reply(client);
        if at_once.is_some() {
            return (at_once, false);
        }
        self.serve(0);
        (self.stage.reply(client), true)
    }

    fn warm(&mut self, client: ClientId, key: &str) {
        (0..3).for_each(|_| drop(self.get(client, key)));
    }
}

fn said(text: &str, asked: bool) -> (Option<String>, bool) {
    (Some(text.to_owned()), asked)
}

#[test]
fn replies_are_those_of_the_servers() {
    let mut scene = Scene::new(pool());
    let (two, three) = (scene.client(&[]), scene.client(&["hello", "3"]));
    for key in ["some", "none"] {
        scene.warm(two, key);
    }
    assert_eq!(scene.get(two, "some"), said(VALUE, false));
    assert_eq!(scene.get(three, "some"), said(VALUE, false));
    assert_eq!(scene.get(two, "none"), said("$-1\r\n", false));
    assert_eq!(scene.get(three, "none"), said("_\r\n", false));
}

#[test]
fn only_who_the_proxy_is_is_answered() {
    let profile = |user: &str| Profile {
        user: Some(user.to_owned()),
        password: Some("p".to_owned()),
        ..Profile::default()
    };
    let user = |name: &str, profile: Profile| User {
        name: name.to_owned(),
        password: Password::new("p"),
        profile,
        quota: None,
    };
    let own = vec![user("app", profile("own")), user("look", profile("reader"))];
    let users = Users { own, passed_on: false };
    let mut scene = Scene::new(PoolSetup { profile: profile("own"), users, ..pool() });
    let [app, look] = ["app", "look"].map(|name| scene.client(&["auth", name, "p"]));
    scene.warm(look, "some");
    assert!(!scene.asked.iter().any(|text| text.starts_with("PTTL")));
    scene.warm(app, "some");
    assert_eq!(scene.get(app, "some"), said(VALUE, false));
    assert_eq!(scene.get(look, "some"), said(VALUE, true));
    let three = scene.client(&["hello", "3", "auth", "app", "p"]);
    assert_eq!(scene.get(three, "some"), said(VALUE, false));
    assert_eq!(scene.get(look, "some").0.as_deref(), Some(VALUE));
}

#[test]
fn sessions_ask_servers() {
    let mut scene = Scene::new(pool());
    let client = scene.client(&[]);
    scene.warm(client, "some");
    scene.stage.ask(client, &["WATCH", "some"]);
    scene.serve(0);
    assert_eq!(scene.stage.reply(client).as_deref(), Some("+OK\r\n"));
    assert_eq!(scene.get(client, "some"), said(VALUE, true));
}

#[test]
fn long_values_are_not_held() {
    let mut scene = Scene::new(pool());
    let client = scene.client(&[]);
    for (long, held) in [(100_000, true), (200_000, false)] {
        let key = long.to_string();
        for _ in 0..3 {
            scene.stage.ask(client, &["GET", &key]);
            scene.serve(long);
            assert_eq!(scene.stage.reply(client).map(|text| text.len()), Some(long + 11), "{key}");
        }
        scene.asked.clear();
        scene.stage.ask(client, &["GET", &key]);
        scene.serve(long);
        assert_eq!(scene.asked.is_empty(), held, "{key}: {:?}", scene.asked);
        drop(scene.stage.reply(client));
    }
}

#[test]
fn who_refuses_is_asked_no_more() {
    let mut scene = Scene::new(pool());
    let client = scene.client(&[]);
    for _ in 0..20 {
        scene.stage.ask(client, &["GET", "some"]);
        while let Some((conn, words)) = scene.next() {
            let said = if words[0] == "HELLO" { "-NOPROTO unsupported\r\n" } else { VALUE };
            scene.stage.tell(conn, said.as_bytes());
        }
        assert_eq!(scene.stage.reply(client).as_deref(), Some(VALUE));
        scene.stage.pass(1_000_000);
    }
    let said = scene.asked.iter().filter(|text| *text == "HELLO 3").count();
    assert_eq!(said, 1);
    assert_eq!(scene.stage.not_near, ["-NOPROTO unsupported"]);
}
