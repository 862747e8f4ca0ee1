//! `up` and `down` on real servers: from nothing, again, interrupted, twice at once, and where it
//! can't be done.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use tests::fleet::{Spec, TestFleet, node};
use tokio::time::sleep;

/// Every server's process by node.
fn pids(fleet: &TestFleet) -> BTreeSet<(String, i32)> {
    let pid = |number| Some((node(number).to_string(), fleet.pid(&node(number))?));
    (1..=20).filter_map(pid).collect()
}

/// Writes `count` keys through the cluster's owners and says how many there are then.
async fn fill(fleet: &TestFleet, count: usize) {
    for number in 0..count {
        let key = format!("key:{number}");
        let mut at = node(1);
        for _ in 0..5 {
            match fleet.call(&at, &["SET", &key, &key]).await {
                Ok(_) => break,
                Err(error) => at = moved_to(fleet, &format!("{error:#}")),
            }
        }
        let value = fleet.call(&at, &["GET", &key]).await.expect("it is there");
        assert_eq!(value.as_str(), Some(key.as_str()));
    }
}

/// The node that a MOVED names.
fn moved_to(fleet: &TestFleet, error: &str) -> fleet::model::NodeName {
    let (_, address) = error.rsplit_once(' ').expect("MOVED slot address");
    let address = address.parse().unwrap_or_else(|_| panic!("no redirection: {error}"));
    let mut nodes = (1..=20).map(node);
    nodes.find(|node| fleet.address(node) == Some(address)).expect("it is one of the fleet's")
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_and_again() {
    let fleet = TestFleet::new(&Spec::default());
    let first = fleet.up().await;
    eprintln!("up took {:?}", first.took);
    fleet.expect_settled(3, 1).await;
    let before = pids(&fleet);
    assert_eq!(before.len(), 6);

    let again = fleet.up().await;
    assert_eq!(pids(&fleet), before, "{again:?}");
    fleet.expect_settled(3, 1).await;

    // Nobody but the owner reads the state directory, and no password is in a process's arguments.
    let state = fleet.directory().join(".keyfleet");
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    for secret in fs::read_dir(state.join("secrets")).unwrap() {
        let path = secret.unwrap().path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
        let secret = fs::read_to_string(&path).unwrap();
        for (name, pid) in &before {
            let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert!(!arguments.contains(secret.trim()), "{name}: {arguments}");
        }
        for ended in [&first, &again] {
            assert!(!ended.stderr.contains(secret.trim()) && !ended.stdout.contains(secret.trim()));
        }
    }
}

/// A number from the clock, printed so that a failure tells what it was.
fn random(below: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    ((now.as_nanos() as u64 / 1_000).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % below
}

/// Interrupts `up` again and again, a little later each time, until it has its way.
async fn interrupted(signal: Signal, moments: u64) {
    let fleet = TestFleet::new(&Spec::default());
    for number in 0..moments {
        let after = Duration::from_millis(number * 60 + random(120));
        let mut up = fleet.spawn(&["up", "--no-guard"]);
        // The moment is what is tried here.
        sleep(after).await;
        let done = up.ended().is_some();
        up.signal(signal);
        let ended = up.wait().await;
        eprintln!("interrupted after {after:?}: {:?} {}", ended.code, pids(&fleet).len());
        if signal == Signal::INT && !done {
            assert!(ended.took < after + Duration::from_secs(10), "{ended:?}");
            assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        }
    }
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_the_next_completes() {
    for _ in 0..2 {
        interrupted(Signal::KILL, 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_at_any_moment_the_next_completes() {
    for _ in 0..2 {
        interrupted(Signal::INT, 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_make_one_cluster() {
    let fleet = TestFleet::new(&Spec::default());
    let (one, two) =
        tokio::join!(fleet.run(&["up", "--no-guard"]), fleet.run(&["up", "--no-guard"]));
    one.expect_code(0);
    two.expect_code(0);
    fleet.expect_settled(3, 1).await;
    assert_eq!(pids(&fleet).len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn down_keeps_the_data() {
    let fleet = TestFleet::new(&Spec::default());
    fleet.up().await;
    fill(&fleet, 200).await;
    fleet.run(&["down"]).await.expect_code(0);
    assert_eq!(pids(&fleet), BTreeSet::new());
    // Guard lets what was stopped rest; `up` is what starts it again.
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
    assert_eq!(fleet.keys().await, 200);

    fleet.run(&["down", "--delete-data"]).await.expect_code(1);
    assert_eq!(fleet.keys().await, 200, "without the cluster's name nothing is deleted");
    fleet.run(&["down", "--delete-data", "--yes-delete", "main"]).await.expect_code(0);
    assert_eq!(pids(&fleet), BTreeSet::new());
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
    assert_eq!(fleet.keys().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_spec_is_told_with_its_lines() {
    let fleet = TestFleet::new(&Spec::default());
    fleet.write("clusters:\n  main:\n    shard: 3\n    replicas: many\n");
    for command in [&["up"][..], &["plan"], &["status"]] {
        let ended = fleet.run(command).await.expect_code(1);
        for part in ["fleet.yaml:3:5", "shards", "fleet.yaml:4:15"] {
            assert!(ended.stderr.contains(part), "{part} missing: {}", ended.stderr);
        }
    }
    assert!(!fleet.directory().join(".keyfleet").exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn taken_ports_are_told_before_anything_starts() {
    let fleet = TestFleet::new(&Spec::default());
    let taken = TcpListener::bind(("127.0.0.1", fleet.ports.tcp + 2)).unwrap();
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    let port = (fleet.ports.tcp + 2).to_string();
    assert!(ended.stderr.contains(&port) || ended.stdout.contains(&port), "{ended:?}");
    drop(taken);
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_written() {
    let fleet = TestFleet::new(&Spec::default());
    // Not even root writes into a file as if it were a directory.
    fs::write(fleet.directory().join(".keyfleet"), "").unwrap();
    let ended = fleet.run(&["up", "--no-guard"]).await;
    assert!(matches!(ended.code, Some(1 | 2)), "{ended:?}");
    assert!(ended.stderr.contains(".keyfleet"), "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    fs::remove_file(fleet.directory().join(".keyfleet")).unwrap();
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a small file system to fill");
        return;
    }
    let mut fleet = TestFleet::new(&Spec::default());
    // Room for some nodes' files, not for all.
    fleet.limit_disk("64k").expect("root can mount");
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_failure();
    assert!(ended.stderr.contains("No space left"), "{ended:?}");
    fleet.limit_disk("64m").expect("root can mount");
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_servers_refuse_is_mended_in_the_file() {
    let fleet =
        TestFleet::new(&Spec { config: vec![("maxmemory-samples", "many")], ..Spec::default() });
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_failure();
    assert!(ended.stderr.contains("maxmemory-samples"), "{ended:?}");
    fleet.edit(&Spec::default());
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
}

/// Who removed the state directory has servers left that let nobody in; who has another server at a
/// port has a node that can't start. Both is said at once, with the process.
#[tokio::test(flavor = "multi_thread")]
async fn servers_in_the_way_are_named() {
    let fleet = TestFleet::new(&Spec::default());
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
    let held = fleet.address(&node(2)).expect("it has an address");
    fleet.run(&["down"]).await.expect_code(0);
    let listener = TcpListener::bind(held).expect("the port is free");
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    let expected = format!("another program (pid {}) listens at its port", std::process::id());
    assert!(ended.stderr.contains(&expected), "{ended:?}");
    drop(listener);
    fleet.up().await;
    fleet.expect_settled(3, 1).await;
    let pid = fleet.pid(&node(1)).expect("it runs");
    fs::remove_dir_all(fleet.directory().join(".keyfleet")).expect("it can be removed");
    let ended = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    assert!(ended.stderr.contains(&format!("kill {pid}")), "{ended:?}");
}
