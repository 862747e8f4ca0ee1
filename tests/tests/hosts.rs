//! Hosts that are lost for good, and hosts whose address changes. Hosts are loopback addresses.

use std::{net::IpAddr, process::Command};

use fleet::{
    model::{HostId, NodeName},
    observed::{NodeView, Observed},
};
use keyfleet::{admin_client::Login, secrets::Secret};
use tests::{
    fleet::{Spec, TestFleet},
    ledger::Options,
};

/// Lists that the ledger appends to: as many keys are there at the end.
const KEYS: u64 = 1_024;

fn load() -> Options {
    Options { keys: KEYS as u16, writes_per_s_max: Some(3_000), ..Options::default() }
}

fn spec() -> Spec {
    Spec { hosts: 4, ..Spec::default() }
}

async fn start(spec: &Spec) -> TestFleet {
    let fleet = TestFleet::new(spec);
    fleet.up().await;
    fleet
}

fn nodes_on(observed: &Observed, host: &str) -> Vec<NodeName> {
    let host = HostId::new(host);
    let there = observed.nodes.iter().filter(|(_, view)| view.host == host);
    there.map(|(name, _)| name.clone()).collect()
}

/// Where every node's server listens, and where every view has every node.
fn addresses(observed: &Observed) -> Vec<(IpAddr, Option<IpAddr>)> {
    let mut all = Vec::new();
    for view in observed.nodes.values() {
        let id = view.id().expect("it has an id");
        for other in observed.nodes.values() {
            let row = &other.up().expect("it answers").table.rows[&id];
            all.push((view.address, row.ip));
        }
    }
    all
}

#[track_caller]
fn expect_addresses(observed: &Observed, moved: &[u32]) {
    for (address, known) in addresses(observed) {
        assert_eq!(known, Some(address));
        let IpAddr::V4(address) = address else { panic!("{address}") };
        let [_, second, host, _] = address.octets();
        assert_eq!(second == 1, moved.contains(&host.into()), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_host_held_is_made_again_elsewhere() {
    let fleet = start(&Spec { profile: "cache", ..spec() }).await;
    fleet.under_ledger(load(), async {}).await;
    let before = fleet.expect_settled(3, 1).await;
    let lost = nodes_on(&before, "h4");
    assert!(!lost.is_empty());
    for node in &lost {
        fleet.kill9(node).await;
    }
    fleet.edit(&Spec { profile: "cache", hosts: 3, ..spec() });
    fleet.up().await;
    let after = fleet.expect_settled(3, 1).await;
    assert_eq!(nodes_on(&after, "h4"), []);
    assert_eq!(after.nodes.len(), 6);
    assert_eq!(fleet.keys().await, KEYS);
    expect_addresses(&after, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_given_up_while_it_runs_loses_nothing() {
    let fleet = start(&spec()).await;
    fleet
        .under_ledger(load(), async {
            fleet.edit(&Spec { hosts: 3, ..spec() });
            fleet.up().await;
        })
        .await;
    let after = fleet.expect_settled(3, 1).await;
    assert_eq!(nodes_on(&after, "h4"), []);
    assert_eq!(fleet.keys().await, KEYS);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_a_changed_address_and_clients_lose_nothing() {
    let fleet = start(&Spec { hosts: 3, ..spec() }).await;
    fleet
        .under_ledger(load(), async {
            fleet.edit(&Spec { hosts: 3, moved_hosts: &[2], ..spec() });
            fleet.up().await;
        })
        .await;
    expect_addresses(&fleet.expect_settled(3, 1).await, &[2]);
    assert_eq!(fleet.keys().await, KEYS);
}

/// No node is where the others knew it, so that none hears of another by itself.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_each_other_after_all_addresses_changed() {
    let fleet = start(&Spec { hosts: 3, ..spec() }).await;
    fleet.under_ledger(load(), async {}).await;
    let before = fleet.expect_settled(3, 1).await;
    fleet.run(&["down"]).await.expect_code(0);
    fleet.edit(&Spec { hosts: 3, moved_hosts: &[1, 2, 3], ..spec() });
    fleet.up().await;
    let after = fleet.expect_settled(3, 1).await;
    expect_addresses(&after, &[1, 2, 3]);
    let ids =
        |observed: &Observed| -> Vec<_> { observed.nodes.values().map(NodeView::id).collect() };
    assert_eq!(ids(&after), ids(&before));
    assert_eq!(fleet.keys().await, KEYS);
}

/// An address that this machine has for as long as the value is there.
struct OwnAddress(String);

impl OwnAddress {
    /// One that no other test has; the number is the caller's own. None where we may not have any.
    fn new(number: u8) -> Option<Self> {
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Self(format!("10.{}.{high}.{low}", 213 + number));
        address.set("add").then_some(address)
    }

    fn set(&self, verb: &str) -> bool {
        let address = format!("{}/32", self.0);
        let done = Command::new("ip").args(["address", verb, &address, "dev", "lo"]).status();
        done.expect("ip, of the package iproute2").success()
    }
}

impl Drop for OwnAddress {
    fn drop(&mut self) {
        self.set("del");
    }
}

/// The servers run on, at an address that is no more: nobody reaches them, nor they each other.
#[tokio::test(flavor = "multi_thread")]
async fn servers_whose_address_vanished_are_brought_back_at_the_new_one() {
    let (Some(old), Some(new)) = (OwnAddress::new(0), OwnAddress::new(1)) else {
        return eprintln!("not tried: this user may give the machine no addresses");
    };
    let at = |address: &OwnAddress| Spec { addresses: vec![address.0.clone()], ..Spec::default() };
    let fleet = start(&at(&old)).await;
    // Where clients may come from elsewhere they need a password.
    let secret = fleet.directory().join(".keyfleet/secrets/main.default");
    let password = Secret::new(std::fs::read_to_string(secret).expect("there is one").trim());
    let login = Some(Login { user: "default".to_owned(), password });
    fleet.under_ledger(Options { login, ..load() }, async {}).await;
    let before = fleet.expect_settled(3, 1).await;
    assert!(old.set("del"));
    let blocked = fleet.run(&["up", "--no-guard"]).await.expect_code(1);
    assert!(
        blocked.stderr.contains(&format!("{}, which is not this machine", old.0)),
        "{blocked:?}"
    );
    fleet.edit(&at(&new));
    fleet.up().await;
    let after = fleet.expect_settled(3, 1).await;
    assert!(after.nodes.values().all(|view| view.address.to_string() == new.0), "{after:?}");
    let ids =
        |observed: &Observed| -> Vec<_> { observed.nodes.values().map(NodeView::id).collect() };
    assert_eq!(ids(&after), ids(&before));
    assert_eq!(fleet.keys().await, KEYS);
}
