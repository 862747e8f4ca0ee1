//! Golden pictures of what an operator may see.

use fleet::observed::{Process, Server};
use protocol::SlotSet;
use sim::scene::Scene;

use super::{GuardView, picture};
use crate::{
    cli::text::{Style, columns},
    store::Deed,
};

fn guarded() -> GuardView {
    GuardView {
        acting: Some("guard (pid 4711)".to_owned()),
        since_ms: Some(1_800_000_000_000 - 7_200_000),
        ..GuardView::default()
    }
}

fn check(name: &str, scene: &Scene) {
    let text = picture::fleet(None, &scene.observed, Some(&guarded()), Style::PLAIN);
    for line in text.lines() {
        assert!(columns(line) <= 100, "wider than 100 columns: {line}");
    }
    insta::assert_snapshot!(name, text);
}

#[test]
fn pictures() {
    check("healthy", &Scene::healthy(3, 1, 3));
    check("single_host", &Scene::healthy(3, 1, 1));
    check("no_replica", &Scene::healthy(3, 0, 3));
    check("failed_primary", &Scene::healthy(3, 1, 3).dead(1));
    check("failed_over", &Scene::healthy(3, 1, 3).dead(1).failed_over(1, 4));
    check("dead_replica", &Scene::healthy(3, 1, 3).dead(4));
    check("hung", &Scene::healthy(3, 2, 3).suspended(4, 12_000));
    check("open_slots", &Scene::healthy(3, 1, 3).half_moved(1, 2, &SlotSet::range(100, 163)));
    check("disagreeing", &Scene::healthy(3, 1, 3).blind_spot(5, 6));
    check("unbalanced", &Scene::healthy(3, 1, 2).moved(1, 2, &SlotSet::range(1000, 1999)));
    check("nothing_yet", &Scene::empty(1));
}

#[test]
fn every_state_fits() {
    let mut scene = Scene::healthy(5, 2, 4).dead(1).suspended(2, 90_000);
    scene.node(3).server = Server::Denied { error: "NOAUTH Authentication required.".to_owned() };
    scene.node(4).server = Server::Loading;
    scene.node(6).server = Server::Refused;
    let cut = scene.node(7);
    (cut.process, cut.server) = (Process::Unknown, Server::Silent { for_ms: 3_000 });
    scene.up(9).memory.rss = 900 << 20;
    scene.up(5).memory.used = 505 << 20;
    check("everything_at_once", &scene);
}

#[test]
fn guards() {
    let check = |guard: GuardView, expected: &str| {
        let scene = Scene::healthy(1, 0, 1);
        let text = picture::fleet(None, &scene.observed, Some(&guard), Style::PLAIN);
        assert_eq!(text.lines().last(), Some(expected));
    };
    check(guarded(), "guard  ● guard (pid 4711), at work for 2 h");
    check(
        GuardView { frozen_until_ms: Some(1_800_000_000_000 + 3_600_000), ..guarded() },
        "guard  ❄ frozen for another 60 min: no planned change, healing goes on; end it with: keyfleet freeze --lift",
    );
    let until_ms = Some(1_800_000_000_000 + 3_600_000);
    check(
        GuardView {
            frozen_until_ms: until_ms,
            healing_frozen_until_ms: until_ms,
            ..GuardView::default()
        },
        "guard  ❄ frozen for another 60 min: nothing is changed, and nothing heals; end it with: keyfleet freeze --lift",
    );
    check(
        GuardView::default(),
        "guard  ▲ none: nothing heals by itself; start it with: keyfleet guard",
    );
}

#[test]
fn what_guard_mended_is_told() {
    let deed = |before_ms: u64, what: &str| Deed {
        at_ms: 1_800_000_000_000 - before_ms,
        what: what.to_owned(),
    };
    let guard = GuardView {
        lately: vec![
            deed(600_000, "start cache-9: left out"),
            deed(500_000, "start cache-5: its process is gone"),
            deed(400_000, "promote cache-4 in place of dead cache-1: it died"),
            deed(2_000, "start cache-1: its append-only file holds more than its replicas may"),
        ],
        ..guarded()
    };
    let scene = Scene::healthy(3, 1, 1);
    let text = picture::fleet(None, &scene.observed, Some(&guard), Style::PLAIN);
    let told: Vec<&str> =
        text.lines().skip_while(|line| !line.starts_with("guard")).skip(1).collect();
    assert_eq!(
        told,
        [
            "       8 min ago  start cache-5: its process is gone",
            "       6 min ago  promote cache-4 in place of dead cache-1: it died",
            "       2.0 s ago  start cache-1: its append-only file holds more than its replicas may",
        ]
    );
}
