//! How many hosts and nodes may die, and what is at risk, in small worlds.

use fleet::{
    model::ClusterName,
    observed::{Link, Role},
    overview::Overview,
    risk::{Level, hosts_that_may_die, nodes_that_may_die, risks},
    spec::{self, Machine},
};
use protocol::SlotSet;
use sim::scene::{Scene, id, name};

fn cache() -> ClusterName {
    ClusterName::new("cache")
}

fn syncing(mut scene: Scene, number: u32) -> Scene {
    if let Role::Replica { link, .. } = &mut scene.up(number).role {
        *link = Link::Syncing;
    }
    scene
}

#[test]
fn how_many_may_die() {
    let check = |scene: Scene, hosts: Option<usize>, nodes: Option<usize>| {
        assert_eq!(hosts_that_may_die(&scene.observed, &cache()), hosts, "hosts");
        assert_eq!(nodes_that_may_die(&scene.observed, &cache()), nodes, "nodes");
    };
    check(Scene::healthy(3, 1, 3), Some(1), Some(1));
    check(Scene::healthy(3, 1, 1), Some(0), Some(1));
    // Two hosts: whichever holds two primaries takes the majority with it.
    check(Scene::healthy(3, 1, 2), Some(0), Some(1));
    check(Scene::healthy(3, 0, 3), Some(0), Some(0));
    check(Scene::healthy(5, 2, 5), Some(2), Some(2));
    // Copies enough for two, votes for one only.
    check(Scene::healthy(3, 2, 3), Some(1), Some(1));
    // Votes enough for two, copies for one only.
    check(Scene::healthy(5, 1, 5), Some(1), Some(1));
    check(Scene::healthy(1, 2, 3), Some(0), Some(0));
    // A copy that isn't complete doesn't count.
    check(syncing(Scene::healthy(3, 1, 3), 4), Some(0), Some(0));
    check(Scene::healthy(3, 1, 3).dead(1), None, None);
    check(Scene::healthy(3, 1, 3).dead(1).failed_over(1, 4), Some(0), Some(0));
    check(Scene::empty(1), None, None);
}

fn levels(scene: &Scene) -> Vec<(Level, String)> {
    let risks = risks(None, &scene.observed, &cache());
    risks.into_iter().map(|risk| (risk.level, risk.what)).collect()
}

#[test]
fn what_is_at_risk() {
    let check = |scene: Scene, expected: &[(Level, &str)]| {
        let found = levels(&scene);
        let found: Vec<(Level, &str)> =
            found.iter().map(|(level, what)| (*level, what.as_str())).collect();
        assert_eq!(found, expected);
    };
    check(Scene::healthy(3, 1, 3), &[]);
    check(Scene::healthy(3, 1, 1), &[]);
    check(Scene::healthy(3, 0, 1), &[]);
    check(Scene::empty(1), &[(Level::Down, "it does not exist yet")]);
    check(
        Scene::healthy(3, 1, 3).dead(1),
        &[(Level::Down, "cache-1, a primary, is dead: its process is gone")],
    );
    check(
        Scene::healthy(3, 1, 3).suspended(2, 9_000),
        &[(Level::Down, "cache-2, a primary, hangs: its process is suspended")],
    );
    check(
        Scene::healthy(3, 1, 3).dead(4),
        &[(Level::Risk, "cache-1 is the only copy of slots 0-5460")],
    );
    check(
        Scene::healthy(3, 2, 3).dead(4),
        &[(Level::Risk, "cache-4 is dead: its process is gone")],
    );
    check(
        Scene::healthy(3, 1, 3).half_moved(1, 2, &SlotSet::range(5, 6)),
        &[(Level::Risk, "2 slots half moved: 5-6")],
    );
    check(
        Scene::healthy(3, 1, 3).blind_spot(5, 6),
        &[(Level::Risk, "cache-5 sees the cluster differently")],
    );
    check(
        Scene::healthy(3, 1, 3).moved(1, 2, &SlotSet::range(0, 999)),
        &[(Level::Notice, "slots are uneven: 4461 to 6461 a shard")],
    );
    check(Scene::healthy(3, 1, 2), &[(Level::Risk, "host-1 holds 2 of 3 primaries")]);
    check(
        Scene::healthy(3, 1, 3).dead(1).dead(2),
        &[
            (Level::Down, "1 of 3 primaries answer, and 2 must"),
            (Level::Down, "cache-1, a primary, is dead: its process is gone"),
            (Level::Down, "cache-2, a primary, is dead: its process is gone"),
        ],
    );
    let mut full = Scene::healthy(3, 1, 3);
    full.up(3).memory.used = 500 << 20;
    full.up(3).memory.rss = 510 << 20;
    check(full, &[(Level::Risk, "cache-3 has used 97 % of its memory")]);
}

/// Who is suspended goes on where it was; whatever else is wrong with nodes, `up` mends.
#[test]
fn what_mends_a_node() {
    let fleet = spec::parse("clusters: {cache: {}}", "fleet.yaml", &Machine::default());
    let fleet = fleet.expect("a good spec").fleet;
    let check = |mut scene: Scene, number: u32, expected: &str| {
        scene.node(number).pid = Some(4_711);
        let risks = risks(Some(&fleet), &scene.observed, &cache());
        assert_eq!(risks[0].command.as_deref(), Some(expected), "{risks:?}");
    };
    check(Scene::healthy(3, 1, 1).suspended(2, 9_000), 2, "kill -CONT 4711");
    check(Scene::healthy(3, 1, 1).suspended(4, 9_000), 4, "kill -CONT 4711");
    check(Scene::healthy(3, 1, 1).dead(2), 2, "keyfleet up");
    check(Scene::healthy(3, 1, 1).dead(4), 4, "keyfleet up");
}

#[test]
fn a_dead_node_whose_slots_are_taken_over_is_in_no_shard() {
    let scene = Scene::healthy(3, 1, 3).dead(1).failed_over(1, 4);
    let overview = Overview::new(&scene.observed, &cache());
    assert_eq!(overview.shards.len(), 3);
    assert_eq!((overview.shards[0].id, overview.shards[0].replicas.len()), (id(4), 0));
    assert_eq!(overview.loose, [name(1)]);
    assert!(overview.uncovered.is_empty());
    assert_eq!(
        levels(&scene),
        [
            (Level::Risk, "cache-4 is the only copy of slots 0-5460".to_owned()),
            (Level::Risk, "cache-1 is dead: its process is gone".to_owned()),
            (Level::Risk, "host-2 holds 2 of 3 primaries".to_owned()),
        ]
    );
}
