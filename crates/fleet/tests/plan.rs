//! What the planner decides in single situations. Whole paths and random faults are in `sim`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use fleet::{
    check::check_wave,
    model::*,
    observed::*,
    plan::plan,
    step::{Action, Step, Wave},
    world::preview,
};
use protocol::{Engine, EngineKind, NodeId, SlotSet, Version};

const NODE_TIMEOUT_MS: u64 = 15_000;

fn host_address(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, host as u8 + 1, 1))
}

fn host_name(host: usize) -> HostId {
    HostId::new(format!("h{host}"))
}

fn name() -> ClusterName {
    ClusterName::new("c")
}

fn node(number: u32) -> NodeName {
    NodeName::new(name(), number)
}

fn id(number: u32) -> NodeId {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    NodeId::from_bytes(bytes)
}

fn ports(number: u32) -> Ports {
    let number = number as u16;
    Ports { tcp: 7000 + number, tls: 8000 + number, bus: 17_000 + number }
}

fn spec(shards: u32, replicas: u32, hosts: usize) -> Fleet {
    let cluster = Cluster {
        name: name(),
        engine: EngineWant::default(),
        shards,
        replicas,
        profile: Profile::Cache,
        takeover: Takeover::Promote,
        memory: None,
        ports: PortBase { tcp: 7001, tls: 8001, bus: 17_001, explicit: false },
        hosts: (0..hosts).map(host_name).collect(),
        placement: PlacementPolicy {
            primaries_host: if hosts > 2 { Spread::QuorumSafe } else { Spread::Any },
            primaries_zone: Spread::Any,
        },
        node_timeout_ms: NODE_TIMEOUT_MS,
        users: BTreeMap::new(),
        config: BTreeMap::new(),
        pace: Pace::Full,
        backup: None,
        stopped: false,
    };
    let host = |index| Host {
        id: host_name(index),
        address: host_address(index),
        zone: Zone::new(format!("z{index}")),
        memory: None,
    };
    Fleet {
        hosts: (0..hosts).map(|index| (host_name(index), host(index))).collect(),
        clusters: BTreeMap::from([(name(), cluster)]),
        proxies: BTreeMap::new(),
        guard: GuardPolicy { mode: GuardMode::Enforce, moves_per_hour_max: 6 },
    }
}

/// (number, host, primary's number for a replica, slots for a primary)
type Seat = (u32, usize, Option<u32>, &'static str);

fn nothing(hosts: usize) -> Observed {
    let view = HostView { reachable: true, memory: None, ports_taken: BTreeMap::new() };
    Observed {
        at_ms: 1_000_000_000,
        hosts: (0..hosts).map(|index| (host_name(index), view.clone())).collect(),
        nodes: BTreeMap::new(),
        proxies: BTreeMap::new(),
        history: BTreeMap::new(),
    }
}

/// A healthy cluster with these seats.
fn world(hosts: usize, seats: &[Seat]) -> Observed {
    let mut observed = nothing(hosts);
    let rows = seats
        .iter()
        .map(|(number, host, of, slots)| {
            let row = Row {
                ip: Some(host_address(*host)),
                port: ports(*number).tcp,
                replica_of: of.map(id),
                config_epoch: u64::from(*number),
                slots: slots.parse().unwrap(),
                health: Health::Ok,
            };
            (id(*number), row)
        })
        .collect();
    let table = Arc::new(Table { rows });
    for (number, host, of, slots) in seats {
        let up = Up {
            id: id(*number),
            engine: Engine { kind: EngineKind::Redis, version: Version::new(7, 0, 15) },
            role: of.map_or(Role::Primary, |of| Role::Replica { of: id(of), link: Link::InSync }),
            offset: 1000,
            keys: if of.is_some() || *slots != "none" { 10 } else { 0 },
            memory: Memory::default(),
            cluster_ok: true,
            table: table.clone(),
            open: BTreeMap::new(),
            config: BTreeMap::new(),
            users_current: true,
            uptime_s: 1000,
        };
        let view = NodeView {
            host: host_name(*host),
            address: host_address(*host),
            ports: ports(*number),
            process: Process::Running,
            pid: Some(100 + number),
            disk: Disk { id: Some(id(*number)), data_bytes: 1000, append_bytes: 0 },
            server: Server::Up(Box::new(up)),
            failed_starts: 0,
        };
        observed.nodes.insert(node(*number), view);
    }
    observed
}

const THREE: [Seat; 6] = [
    (1, 0, None, "0-5460"),
    (2, 1, None, "5461-10922"),
    (3, 2, None, "10923-16383"),
    (4, 1, Some(1), "none"),
    (5, 2, Some(2), "none"),
    (6, 0, Some(3), "none"),
];

fn up(observed: &mut Observed, number: u32) -> &mut Up {
    match &mut observed.nodes.get_mut(&node(number)).unwrap().server {
        Server::Up(up) => up,
        other => panic!("{other:?}"),
    }
}

fn kill(observed: &mut Observed, number: u32) {
    let view = observed.nodes.get_mut(&node(number)).unwrap();
    view.process = Process::Gone;
    view.server = Server::Refused;
    for other in observed.nodes.values_mut() {
        if let Server::Up(up) = &mut other.server
            && let Role::Replica { of, link } = &mut up.role
            && *of == id(number)
        {
            *link = Link::Down { for_ms: 0 };
        }
    }
}

/// Steps, blocked and waiting as lines of text.
fn lines(fleet: &Fleet, observed: &Observed) -> Vec<String> {
    let wave = plan(fleet, observed);
    let steps = wave.steps.iter().map(|step| step.action.to_string());
    let blocked = wave.blocked.iter().map(|blocked| format!("blocked: {}", blocked.reason));
    let waiting = wave.waiting.iter().map(|waiting| format!("wait: {}", waiting.what));
    steps.chain(blocked).chain(waiting).collect()
}

fn check(fleet: &Fleet, observed: &Observed, expected: &[&str]) {
    assert_eq!(lines(fleet, observed), expected);
}

#[test]
fn a_healthy_cluster_needs_nothing() {
    check(&spec(3, 1, 3), &world(3, &THREE), &[]);
}

#[test]
fn nothing_becomes_six_nodes() {
    check(
        &spec(3, 1, 3),
        &nothing(3),
        &[
            "create c-1 on h0, port 7001",
            "create c-2 on h1, port 7002",
            "create c-3 on h2, port 7003",
            "create c-4 on h0, port 7004",
            "create c-5 on h1, port 7005",
            "create c-6 on h2, port 7006",
        ],
    );
}

#[test]
fn blank_nodes_become_a_cluster() {
    let seats: Vec<Seat> =
        (1..=6).map(|number| (number, (number as usize - 1) % 3, None, "none")).collect();
    let mut observed = world(3, &seats);
    for number in 1..=6 {
        let up = up(&mut observed, number);
        up.keys = 0;
        let own = up.table.rows[&id(number)].clone();
        up.table = Arc::new(Table { rows: BTreeMap::from([(id(number), own)]) });
    }
    check(
        &spec(3, 1, 3),
        &observed,
        &["assign slots to 3 primaries", "introduce 5 nodes, c-2 to c-6"],
    );
}

#[test]
fn a_new_cluster_is_opened_evenly_and_then_left_alone() {
    let check = |shards: u32, replicas: u32, hosts: usize| {
        let waves = preview(&spec(shards, replicas, hosts), &nothing(hosts), 100, plan);
        let [.., last, end] = waves.as_slice() else { panic!("{waves:?}") };
        assert!(end.is_done(), "{end:?}");
        let [Step { action: Action::OpenShards { pairs }, .. }] = last.steps.as_slice() else {
            panic!("{shards} shards, {replicas} replicas, {hosts} hosts: {last:?}");
        };
        assert_eq!(pairs.len(), shards as usize);
    };
    check(1, 1, 1);
    check(3, 1, 1);
    check(3, 1, 3);
    check(5, 1, 3);
    check(3, 2, 3);
    check(7, 2, 4);
}

#[test]
fn joined_nodes_become_replicas_on_other_hosts() {
    let seats: Vec<Seat> =
        THREE.iter().enumerate().map(|(index, seat)| (seat.0, index % 3, None, seat.3)).collect();
    check(
        &spec(3, 1, 3),
        &world(3, &seats),
        &["make c-6 a replica of c-1", "make c-4 a replica of c-2", "make c-5 a replica of c-3"],
    );
}

#[test]
fn a_dead_primary_is_replaced_at_once() {
    let mut observed = world(3, &THREE);
    kill(&mut observed, 1);
    check(&spec(3, 1, 3), &observed, &["promote c-4 in place of dead c-1"]);
}

/// Voters remember whom they voted to replace: the new primary may be replaced at once.
#[test]
fn a_primary_that_dies_again_is_replaced_at_once() {
    let mut observed = world(3, &THREE);
    kill(&mut observed, 1);
    let lately = vec![(id(1), observed.at_ms - 1_000)];
    let mut after = |history| {
        observed.history.insert(name(), history);
        lines(&spec(3, 1, 3), &observed)
    };
    let taken_over = History { handovers_ms: lately.clone(), ..History::default() };
    assert_eq!(after(taken_over), ["promote c-4 in place of dead c-1"]);
    let refused = History { refusals_ms: lately, ..History::default() };
    let wait = "wait: c-4 is put forward again in 29 s: its peers voted just now";
    assert_eq!(after(refused), [wait]);
}

#[test]
fn a_durable_primary_with_its_log_is_restarted() {
    let mut observed = world(3, &THREE);
    kill(&mut observed, 1);
    let mut fleet = spec(3, 1, 3);
    let cluster = fleet.clusters.get_mut(&name()).unwrap();
    cluster.takeover = Takeover::LeastLoss;
    cluster.config.insert("appendonly".into(), DirectiveValue::single("yes"));
    check(&fleet, &observed, &["promote c-4 in place of dead c-1"]);
    observed.nodes.get_mut(&node(1)).unwrap().disk.append_bytes = 500;
    check(&fleet, &observed, &["start c-1"]);
    observed.nodes.get_mut(&node(1)).unwrap().failed_starts = 1;
    check(&fleet, &observed, &["promote c-4 in place of dead c-1"]);
}

#[test]
fn an_emptied_primary_stays_down() {
    let mut observed = world(3, &THREE);
    kill(&mut observed, 1);
    observed.nodes.get_mut(&node(1)).unwrap().disk = Disk::EMPTY;
    // Two of three primaries gone: nobody can be elected.
    kill(&mut observed, 2);
    observed.nodes.get_mut(&node(2)).unwrap().disk.append_bytes = 500;
    let mut fleet = spec(3, 1, 3);
    let cluster = fleet.clusters.get_mut(&name()).unwrap();
    cluster.config.insert("appendonly".into(), DirectiveValue::single("yes"));
    check(&fleet, &observed, &["start c-2", "wait: c-4 stands by to take over from c-1"]);
    fleet.clusters.get_mut(&name()).unwrap().profile = Profile::Durable;
    check(&fleet, &observed, &["start c-2", EMPTY]);
}

const EMPTY: &str = "blocked: its disk is empty and would be copied over its replicas' data, and too \
                     few primaries are left to elect one of them";

/// A shard of its own has nobody to vote.
const ONE: [Seat; 2] = [(1, 0, None, "0-16383"), (2, 1, Some(1), "none")];

#[test]
fn without_voters_a_caches_replica_takes_over() {
    let mut fleet = spec(1, 1, 2);
    let mut observed = world(2, &ONE);
    kill(&mut observed, 1);
    // A snapshot is as old as the last copy that was made of it.
    let take_over = ["promote c-2 in place of dead c-1, without votes"];
    check(&fleet, &observed, &take_over);
    let cluster = fleet.clusters.get_mut(&name()).unwrap();
    cluster.config.insert("appendonly".into(), DirectiveValue::single("yes"));
    observed.nodes.get_mut(&node(1)).unwrap().disk.append_bytes = 500;
    check(&fleet, &observed, &["start c-1"]);
    // It doesn't start, or what it had is gone.
    observed.nodes.get_mut(&node(1)).unwrap().failed_starts = 3;
    check(&fleet, &observed, &take_over);
    observed.nodes.get_mut(&node(1)).unwrap().disk = Disk::EMPTY;
    check(&fleet, &observed, &take_over);
    // Its process is gone, and yet somebody answers there.
    let mut answering = observed.clone();
    answering.nodes.get_mut(&node(1)).unwrap().server = Server::Silent { for_ms: 9_000 };
    check(&fleet, &answering, &[EMPTY]);
    fleet.clusters.get_mut(&name()).unwrap().profile = Profile::Durable;
    check(&fleet, &observed, &[EMPTY]);
    let hint = plan(&fleet, &observed).blocked.remove(0).hint;
    let command = "redis-cli -h 127.0.2.1 -p 7002 CLUSTER FAILOVER TAKEOVER";
    assert!(hint.as_ref().is_some_and(|hint| hint.starts_with(command)), "{hint:?}");
}

/// The first one's winner makes a majority that votes on the second.
#[test]
fn one_takes_over_at_a_time() {
    let mut observed = world(3, &THREE);
    for number in [1, 2] {
        kill(&mut observed, number);
        observed.nodes.get_mut(&node(number)).unwrap().disk = Disk::EMPTY;
    }
    let fleet = spec(3, 1, 3);
    let second = "wait: c-5 stands by to take over from c-2";
    check(&fleet, &observed, &["promote c-4 in place of dead c-1, without votes", second]);
    // Nobody knows what the third one sees, where it can't be asked.
    let mut cut = observed.clone();
    cut.nodes.get_mut(&node(2)).unwrap().process = Process::Unknown;
    cut.nodes.get_mut(&node(2)).unwrap().server = Server::Silent { for_ms: 90_000 };
    check(&fleet, &cut, &[EMPTY, "wait: c-2 can't be asked; the cluster elects another"]);
}

#[test]
fn a_dead_replica_is_started_again() {
    let mut observed = world(3, &THREE);
    kill(&mut observed, 5);
    check(&spec(3, 1, 3), &observed, &["start c-5"]);
    observed.nodes.get_mut(&node(5)).unwrap().failed_starts = 3;
    check(&spec(3, 1, 3), &observed, &["blocked: it ended 3 times in a row before it answered"]);
}

#[test]
fn hung_is_not_dead() {
    let mut observed = world(3, &THREE);
    hang(&mut observed, 1, Process::Running, 70_000);
    let fleet = spec(3, 1, 3);
    // It may serve others.
    let blocked = "blocked: it is hung, and no replica has taken over";
    check(&fleet, &observed, &[blocked]);
    let table = Arc::make_mut(&mut up(&mut observed, 2).table);
    table.rows.get_mut(&id(1)).unwrap().health = Health::Failed;
    check(&fleet, &observed, &["kill c-1, which hangs"]);
    hang(&mut observed, 1, Process::Running, 59_000);
    check(&fleet, &observed, &["wait: c-1 hangs; its replicas elect one of them"]);
}

fn hang(observed: &mut Observed, number: u32, process: Process, for_ms: u64) {
    let view = observed.nodes.get_mut(&node(number)).unwrap();
    view.process = process;
    view.server = Server::Silent { for_ms };
}

/// The longer it is away, the sooner it has to copy all again.
#[test]
fn a_hung_replica_is_killed_where_its_shard_is_served() {
    let mut observed = world(3, &THREE);
    let fleet = spec(3, 1, 3);
    let mut check_after = |process, for_ms, expected: &str| {
        hang(&mut observed, 4, process, for_ms);
        check(&fleet, &observed, &[expected]);
    };
    let (kill, wait) = ("kill c-4, which hangs", "wait: c-4 does not answer");
    check_after(Process::Suspended, NODE_TIMEOUT_MS - 1, wait);
    check_after(Process::Suspended, NODE_TIMEOUT_MS, kill);
    check_after(Process::Running, 30_000, wait);
    check_after(Process::Running, 30_001, kill);
}

#[test]
fn a_suspended_primary_is_killed_when_the_engines_would_give_it_up() {
    let mut fleet = spec(3, 1, 3);
    let mut observed = world(3, &THREE);
    let check_after = |fleet: &Fleet, observed: &mut Observed, for_ms, expected| {
        hang(observed, 1, Process::Suspended, for_ms);
        check(fleet, observed, &[expected]);
    };
    let (kill, wait) =
        ("kill c-1, which hangs", "wait: c-1 is suspended, and killed where that lasts");
    check_after(&fleet, &mut observed, NODE_TIMEOUT_MS - 1, wait);
    check_after(&fleet, &mut observed, NODE_TIMEOUT_MS, kill);
    // Its file has it back before its peers miss it.
    let cluster = fleet.clusters.get_mut(&name()).unwrap();
    cluster.takeover = Takeover::LeastLoss;
    cluster.config.insert("appendonly".into(), DirectiveValue::single("yes"));
    observed.nodes.get_mut(&node(1)).unwrap().disk.append_bytes = 500;
    check_after(&fleet, &mut observed, NODE_TIMEOUT_MS / 2 - 1, wait);
    check_after(&fleet, &mut observed, NODE_TIMEOUT_MS / 2, kill);
    // Nobody would take its place.
    fleet.clusters.get_mut(&name()).unwrap().takeover = Takeover::Promote;
    up(&mut observed, 4).role = Role::Replica { of: id(1), link: Link::Syncing };
    let leave = "wait: c-1 hangs; its replicas elect one of them";
    check_after(&fleet, &mut observed, NODE_TIMEOUT_MS, leave);
    hang(&mut observed, 1, Process::Suspended, 70_000);
    let hint = plan(&fleet, &observed).blocked.remove(0).hint;
    assert_eq!(hint.as_deref(), Some("kill -CONT 101"));
}

#[test]
fn blind_means_observe_only() {
    let mut observed = world(3, &THREE);
    for number in 1..=4 {
        observed.nodes.get_mut(&node(number)).unwrap().server = Server::Silent { for_ms: 1_500 };
    }
    check(&spec(3, 1, 3), &observed, &["blocked: 4 of 6 running servers do not answer in time"]);
}

#[test]
fn who_answers_is_not_unreachable() {
    let mut observed = world(3, &THREE);
    for view in observed.nodes.values_mut() {
        view.process = Process::Unknown;
    }
    check(&spec(3, 1, 3), &observed, &[]);
}

#[test]
fn what_is_gone_for_good_is_forgotten() {
    let mut observed = world(3, &THREE);
    let forgotten = format!("forget {}", id(9).short());
    let noticed = format!("wait: {}, which is gone, to be noticed by its peers", id(9).short());
    for (ip, health, expected) in [
        (Some(host_address(1)), Health::Failed, &forgotten),
        (Some(host_address(1)), Health::Ok, &noticed),
        // Another id has its address now.
        (None, Health::Ok, &forgotten),
    ] {
        for number in 1..=6 {
            let table = Arc::make_mut(&mut up(&mut observed, number).table);
            let (replica_of, slots) = (None, SlotSet::new());
            let row = Row { ip, port: 9, replica_of, config_epoch: 9, slots, health };
            table.rows.insert(id(9), row);
        }
        check(&spec(3, 1, 3), &observed, &[expected]);
    }
    observed.hosts.get_mut(&host_name(2)).unwrap().reachable = false;
    let lines = lines(&spec(3, 1, 3), &observed);
    assert!(!lines.contains(&forgotten), "it may live on the host that can't be asked: {lines:?}");
}

/// `h2` isn't in the spec any more, and neither can it be seen.
fn without_the_last_host(shards: u32, observed: &mut Observed) -> Fleet {
    observed.hosts.remove(&host_name(2));
    let mut fleet = spec(shards, 1, 2);
    fleet.clusters.values_mut().for_each(|spec| spec.placement.primaries_host = Spread::Any);
    fleet
}

#[test]
fn what_a_lost_host_held_is_made_again_elsewhere() {
    let mut observed = world(3, &THREE);
    let ports = observed.nodes[&node(5)].ports.tcp + 2;
    kill(&mut observed, 5);
    // While the host is in the spec, it may come back.
    check(&spec(3, 1, 3), &observed, &["start c-5"]);
    let fleet = without_the_last_host(3, &mut observed);
    // Its live primary c-3 is to leave: that takes a second replica for the while.
    let create = [
        format!("create c-7 on h0, port {ports}"),
        format!("create c-8 on h1, port {}", ports + 1),
    ];
    check(&fleet, &observed, &create.each_ref().map(String::as_str));
    let waves = preview(&fleet, &observed, 100, plan);
    let steps: Vec<String> =
        waves.iter().flat_map(|wave| &wave.steps).map(|step| step.action.to_string()).collect();
    for wanted in ["hand over from c-3 to c-6", "remove c-3", "remove c-5"] {
        assert!(steps.iter().any(|step| step == wanted), "{wanted}: {steps:#?}");
    }
    assert!(!steps.iter().any(|step| step == "start c-5"), "{steps:#?}");
    assert!(waves.last().is_some_and(Wave::is_done), "{waves:?}");
}

#[test]
fn a_last_copy_is_never_given_up() {
    // Its primary is gone too: who knows whose data is the better one.
    let mut observed = world(3, &THREE);
    kill(&mut observed, 2);
    kill(&mut observed, 5);
    let fleet = without_the_last_host(3, &mut observed);
    let steps = lines(&fleet, &observed);
    assert!(steps.contains(&"start c-5".to_owned()), "{steps:?}");
    // Nobody is up to say who had what.
    for number in [1, 3, 4, 6] {
        kill(&mut observed, number);
    }
    assert!(lines(&fleet, &observed).contains(&"start c-5".to_owned()));
}

#[test]
fn nodes_follow_their_host_to_another_address() {
    let mut fleet = spec(3, 1, 3);
    let address: IpAddr = Ipv4Addr::new(127, 0, 9, 1).into();
    fleet.hosts.get_mut(&host_name(1)).unwrap().address = address;
    let mut observed = world(3, &THREE);
    check(&fleet, &observed, &["restart c-4"]);
    // The others still look for it where it was.
    observed.nodes.get_mut(&node(4)).unwrap().address = address;
    check(&fleet, &observed, &["introduce c-4 to the cluster"]);
    let waves = preview(&fleet, &world(3, &THREE), 100, plan);
    let steps: Vec<String> =
        waves.iter().flat_map(|wave| &wave.steps).map(|step| step.action.to_string()).collect();
    let expected = ["restart c-4", "hand over from c-2 to c-5", "restart c-2"];
    assert_eq!(steps[..3], expected, "{steps:#?}");
    assert!(waves.last().is_some_and(Wave::is_done), "{waves:?}");
    assert!(!steps.iter().any(|step| step.starts_with("introduce")), "{steps:#?}");
}

/// Nobody reaches a server whose host has lost its address; it comes back where the host is now, unless
/// that would cost what it has in memory only.
#[test]
fn stranded_servers_follow_their_host() {
    let mut fleet = spec(3, 1, 3);
    let mut observed = world(3, &THREE);
    let strand = |observed: &mut Observed, number| {
        observed.nodes.get_mut(&node(number)).unwrap().server = Server::Stranded;
    };
    let judged = |fleet: &Fleet, observed: &Observed, expected: &[&str]| {
        check(fleet, observed, expected);
        let wave = plan(fleet, observed);
        let violations = check_wave(fleet, observed, &wave);
        assert!(violations.is_empty(), "{violations:?}");
    };
    strand(&mut observed, 2);
    strand(&mut observed, 4);
    judged(&fleet, &observed, &["blocked: h1 has lost 127.0.2.1, where it listens"; 2]);
    fleet.hosts.get_mut(&host_name(1)).unwrap().address = Ipv4Addr::new(127, 0, 9, 1).into();
    let (first, second) =
        ("restart c-2 at its host's new address", "restart c-4 at its host's new address");
    judged(&fleet, &observed, &[first, second]);
    let memory_only = [("save", ""), ("appendonly", "no")];
    let config = &mut fleet.clusters.get_mut(&name()).unwrap().config;
    for (name, value) in memory_only {
        config.insert(name.into(), DirectiveValue::single(value));
    }
    let wait = "wait: c-2 can't be reached; the cluster elects another";
    judged(&fleet, &observed, &[second, wait]);
    strand(&mut observed, 5);
    let lost = "blocked: h1 has lost 127.0.2.1, and what c-2 holds is in memory only";
    fleet.hosts.get_mut(&host_name(2)).unwrap().address = Ipv4Addr::new(127, 0, 9, 2).into();
    judged(
        &fleet,
        &observed,
        &[
            second,
            lost,
            lost.replace("h1 has lost 127.0.2.1", "h2 has lost 127.0.3.1")
                .replace("c-2", "c-5")
                .as_str(),
        ],
    );
    // That there are many of them is no reason to hold oneself for blind.
    fleet.clusters.get_mut(&name()).unwrap().config.clear();
    for number in 1..=6 {
        strand(&mut observed, number);
    }
    fleet.hosts.get_mut(&host_name(0)).unwrap().address = Ipv4Addr::new(127, 0, 9, 3).into();
    assert_eq!(plan(&fleet, &observed).steps.len(), 6);
}

/// Its directory was removed while it ran, and its passwords with it.
#[test]
fn who_keeps_us_out_is_not_waited_for() {
    let mut observed = world(1, &[(1, 0, None, "none"), (2, 0, None, "none")]);
    for view in observed.nodes.values_mut() {
        view.server = Server::Denied { error: "WRONGPASS".to_owned() };
        view.disk = Disk::EMPTY;
    }
    let wave = plan(&spec(2, 0, 1), &observed);
    assert_eq!((wave.steps.len(), wave.waiting.len(), wave.blocked.len()), (0, 0, 2));
    let hint = wave.blocked[0].hint.as_deref().unwrap();
    assert!(hint.ends_with("kill 101"), "{hint}");
}

#[test]
fn nothing_is_started_at_a_port_that_another_holds() {
    let mut observed = world(3, &THREE);
    kill(&mut observed, 5);
    let mut check_with = |holder, expected: &str| {
        let host = observed.hosts.get_mut(&host_name(2)).unwrap();
        host.ports_taken = BTreeMap::from([(ports(5).tcp, holder)]);
        let wave = plan(&spec(3, 1, 3), &observed);
        assert_eq!((wave.steps.len(), wave.blocked.len()), (0, 1), "{wave:?}");
        assert_eq!(wave.blocked[0].hint.as_deref(), Some(expected));
    };
    check_with(Some(4711), "stop that program: kill 4711");
    check_with(None, "see which, and stop it: sudo ss -ltnp 'sport = :7005'");
}

#[test]
fn more_shards_need_nodes_then_slots() {
    check(
        &spec(4, 1, 3),
        &world(3, &THREE),
        &["create c-7 on h0, port 7007", "create c-8 on h1, port 7008"],
    );
    let mut seats = THREE.to_vec();
    seats.push((7, 0, None, "none"));
    seats.push((8, 1, None, "none"));
    check(&spec(4, 1, 3), &world(3, &seats), &["make c-8 a replica of c-7"]);
    seats[7].2 = Some(7);
    check(
        &spec(4, 1, 3),
        &world(3, &seats),
        &[
            "move 1366 slots from c-2 to c-7",
            "move 1365 slots from c-1 to c-7",
            "move 1365 slots from c-3 to c-7",
        ],
    );
}

#[test]
fn fewer_shards_drain_the_last() {
    check(
        &spec(2, 1, 3),
        &world(3, &THREE),
        &["move 2730 slots from c-3 to c-2", "move 2731 slots from c-3 to c-1"],
    );
}

#[test]
fn a_crowded_host_gives_a_primary_back() {
    let mut seats = THREE;
    seats[0].2 = Some(4);
    seats[0].3 = "none";
    seats[3].2 = None;
    seats[3].3 = "0-5460";
    let observed = world(3, &seats);
    check(&spec(3, 1, 3), &observed, &["hand over from c-4 to c-1"]);
    let mut lately = observed.clone();
    let at = lately.at_ms - 1_000;
    lately
        .history
        .insert(name(), History { handovers_ms: vec![(id(4), at)], ..History::default() });
    check(&spec(3, 1, 3), &lately, &["wait: c-4 can hand over in 29 s: its shard did so just now"]);
}

#[test]
fn interrupted_moves_are_finished() {
    let mut observed = world(3, &THREE);
    let slots = SlotSet::range(100, 102);
    up(&mut observed, 1).open.insert(OpenSlots::MigratingTo(id(2)), slots.clone());
    up(&mut observed, 2).open.insert(OpenSlots::ImportingFrom(id(1)), slots);
    check(&spec(3, 1, 3), &observed, &["close 3 half-moved slots at c-2"]);
}

#[test]
fn another_engine_rolls_through_replicas_first() {
    let mut fleet = spec(3, 1, 3);
    fleet.clusters.get_mut(&name()).unwrap().engine =
        EngineWant { kind: Some(EngineKind::Valkey), version: "9.1".parse().ok(), path: None };
    let mut observed = world(3, &THREE);
    check(&fleet, &observed, &["restart c-4"]);
    let valkey = Engine { kind: EngineKind::Valkey, version: Version::new(9, 1, 2) };
    for number in 4..=6 {
        up(&mut observed, number).engine = valkey;
    }
    check(&fleet, &observed, &["hand over from c-1 to c-4"]);
    for number in 1..=6 {
        up(&mut observed, number).engine =
            Engine { kind: EngineKind::Redis, version: Version::new(8, 0, 2) };
    }
    check(&fleet, &observed, &["blocked: valkey 9.1 can't read the data of redis 8.0.2"]);
}

#[test]
fn no_replicas_get_one_for_a_restart() {
    let mut fleet = spec(3, 0, 3);
    fleet.clusters.get_mut(&name()).unwrap().engine =
        EngineWant { kind: None, version: "8.0".parse().ok(), path: None };
    check(&fleet, &world(3, &THREE[..3]), &["create c-4 on h1, port 7004"]);
}

#[test]
fn shuffled_input_gives_the_same_plan() {
    let observed = world(3, &THREE);
    let again: Observed =
        Observed { nodes: observed.nodes.clone().into_iter().rev().collect(), ..observed.clone() };
    let fleet = spec(5, 2, 3);
    assert_eq!(
        serde_json::to_string(&plan(&fleet, &observed)).unwrap(),
        serde_json::to_string(&plan(&fleet, &again)).unwrap()
    );
}

#[test]
fn a_second_cluster_goes_where_there_is_room() {
    let mut fleet = spec(1, 0, 3);
    let second = Cluster { name: ClusterName::new("d"), ..fleet.clusters[&name()].clone() };
    fleet.clusters.insert(second.name.clone(), second);
    let created = |observed: &Observed| -> Vec<String> {
        let hosts = plan(&fleet, observed).steps.into_iter().map(|step| match step.action {
            Action::CreateNode { node, host, .. } => format!("{node} on {host}"),
            other => panic!("{other}"),
        });
        hosts.collect()
    };
    assert_eq!(created(&nothing(3)), ["c-1 on h0", "d-1 on h1"]);
    let seats = [(1, 0, None, "0-16383"), (2, 1, None, "none")];
    let mut observed = world(3, &seats);
    // Two of another cluster, which the spec doesn't name, stand there.
    for number in [1, 2] {
        let view = observed.nodes.remove(&node(number)).unwrap();
        observed.nodes.insert(NodeName::new(ClusterName::new("e"), number), view);
    }
    assert_eq!(created(&observed), ["c-1 on h2", "d-1 on h0"]);
}
