//! The runtime, the observer and the executor against real servers.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet::{
    model::{
        Cluster, ClusterName, DirectiveValue, EngineWant, Fleet, GuardMode, GuardPolicy, Host,
        HostId, NodeName, Pace, PasswordSource, PlacementPolicy, PortBase, Profile, Spread,
        Takeover, User, Zone,
    },
    observed::{Disk, Link, Observed, Process, Role, Server, Up},
    plan::is_calm,
    step::{Action, Step, Wave},
};
use keyfleet::{
    admin_client::{Connection, Pool},
    engines,
    execute::{Context, Event, Outcome, Sink, StepError, execute_wave},
    observe::{Observer, observe_foreign},
    runtimes::process::{self, Handle},
    store::Store,
};
use protocol::SlotSet;
use rustix::process::Signal;
use tokio::task::JoinHandle;

/// A fleet of one cluster in a directory of its own. Its servers end with it.
struct World {
    root: PathBuf,
    context: Context,
    observer: Observer,
    sink: Sink,
}

fn name(number: u32) -> NodeName {
    NodeName::new(ClusterName::new("cache"), number)
}

fn host() -> HostId {
    HostId::new("local")
}

/// The first of eight adjacent free ports whose bus ports are free too. All are below the range that
/// the kernel gives to outgoing connections, and no two calls, in any process, try the same ones.
fn free_ports() -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let first = u16::try_from(std::process::id() % 1200).unwrap();
    loop {
        let call = CALLS.fetch_add(1, Ordering::SeqCst);
        assert!(call < 1200, "no free ports");
        let base = 10_000 + (first + call * 37) % 1200 * 8;
        if (base..base + 8).all(|port| is_free(port) && is_free(port + 10_000)) {
            return base;
        }
    }
}

impl World {
    async fn new(test: &str, config: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("keyfleet-{test}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let first = free_ports();
        let config = config.iter().map(|(name, value)| {
            let words = value.split(' ').map(str::to_owned).collect();
            ((*name).to_owned(), DirectiveValue(vec![words]))
        });
        let cluster = Cluster {
            name: ClusterName::new("cache"),
            engine: EngineWant::default(),
            shards: 3,
            replicas: 1,
            profile: Profile::Cache,
            takeover: Takeover::Promote,
            memory: None,
            ports: PortBase { tcp: first, tls: 9, bus: first + 10_000, explicit: true },
            hosts: vec![host()],
            placement: PlacementPolicy { primaries_host: Spread::Any, primaries_zone: Spread::Any },
            node_timeout_ms: 15_000,
            users: BTreeMap::new(),
            config: config.collect(),
            pace: Pace::Full,
            backup: None,
            stopped: false,
        };
        let want = std::env::var("KEYFLEET_TEST_ENGINE").ok();
        let want = EngineWant { path: want, ..EngineWant::default() };
        let binary = engines::find(&want, &root.join("engines")).await.unwrap();
        let address = Ipv4Addr::LOCALHOST.into();
        let host = Host { id: host(), address, zone: Zone::new("local"), memory: None };
        let fleet = Fleet {
            hosts: BTreeMap::from([(host.id.clone(), host)]),
            clusters: BTreeMap::from([(cluster.name.clone(), cluster.clone())]),
            proxies: BTreeMap::new(),
            guard: GuardPolicy { mode: GuardMode::Off, moves_per_hour_max: 6 },
        };
        let store = Arc::new(Store::beside(&root.join("fleet.yaml")).unwrap());
        let pool = Pool::new();
        let context = Context {
            fleet: Arc::new(fleet),
            store: store.clone(),
            engines: Arc::new(BTreeMap::from([(cluster.name, binary)])),
            pool: pool.clone(),
        };
        let observer = Observer::new(store, pool);
        let sink: Sink = Arc::new(|event: Event<'_>| {
            if let Event::Done(step, done) = event {
                eprintln!("{:>8.1} ms  {}", done.took.as_secs_f64() * 1e3, step.action);
            }
        });
        Self { root, context, observer, sink }
    }

    async fn wave(&self, actions: impl IntoIterator<Item = Action>) -> Outcome {
        let step = |action| Step {
            cluster: ClusterName::new("cache"),
            action,
            why: "the test wants it".to_owned(),
        };
        let steps = actions.into_iter().map(step).collect();
        let wave = Wave { steps, ..Wave::default() };
        execute_wave(&wave, &self.context, &self.sink, &|| false).await
    }

    async fn run(&self, actions: impl IntoIterator<Item = Action>) {
        let outcome = self.wave(actions).await;
        assert!(outcome.failed.is_empty() && outcome.skipped == 0, "{outcome:?}");
    }

    /// Does the action for as long as it is said to be needed.
    async fn insist<'a>(&mut self, needed: impl Fn(&Observed) -> (bool, &'a Action)) {
        for _ in 0..50 {
            match needed(&self.observe().await) {
                (true, action) => drop(self.wave([action.clone()]).await),
                (false, _) => return,
            }
        }
        panic!("no end: {:#?}", self.observe().await);
    }

    async fn observe(&mut self) -> Observed {
        self.observer.observe(&self.context.fleet).await.unwrap()
    }

    async fn up(&mut self, number: u32) -> Up {
        let observed = self.observe().await;
        let view = &observed.nodes[&name(number)];
        view.up().unwrap_or_else(|| panic!("{view:?}")).clone()
    }

    /// Observes until the condition holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Observed) -> bool) -> Observed {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let observed = self.observe().await;
            if holds(&observed) {
                return observed;
            }
            assert!(Instant::now() < deadline, "{what}: {observed:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn spec(&self) -> &Cluster {
        &self.context.fleet.clusters[&ClusterName::new("cache")]
    }

    async fn until_calm(&mut self) {
        let spec = self.spec().clone();
        self.until("calm", |observed| is_calm(&spec, observed)).await;
    }

    fn create(&self, number: u32) -> Action {
        let base = self.context.fleet.clusters[&ClusterName::new("cache")].ports;
        let ports = base.at(u16::try_from(number).unwrap() - 1).unwrap();
        Action::CreateNode { node: name(number), host: host(), ports }
    }

    /// Three primaries, 1 to 3, with a replica each, 4 to 6; the primaries not writable yet.
    async fn form(&self) {
        let started = Instant::now();
        self.run((1..=6).map(|number| self.create(number))).await;
        self.run([Action::AssignSlots { shares: thirds() }]).await;
        self.run([Action::Meet { nodes: (1..=6).map(name).collect() }]).await;
        self.run(
            (1..=3)
                .map(|number| Action::Replicate { node: name(number + 3), primary: name(number) }),
        )
        .await;
        eprintln!("six nodes, everything copied: {:?}", started.elapsed());
    }

    /// [`World::form`], and everybody is content.
    async fn cluster(&mut self) {
        let started = Instant::now();
        self.form().await;
        self.until_calm().await;
        eprintln!("state ok everywhere: {:?}", started.elapsed());
    }

    fn cluster_spec(&mut self, change: impl FnOnce(&mut Cluster)) {
        let mut fleet = (*self.context.fleet).clone();
        change(fleet.clusters.get_mut(&ClusterName::new("cache")).unwrap());
        self.context.fleet = Arc::new(fleet);
    }

    fn config(&mut self, name: &str, value: &str) {
        let value = DirectiveValue::single(value);
        self.cluster_spec(|cluster| drop(cluster.config.insert(name.to_owned(), value)));
    }

    fn handle(&self, number: u32) -> Handle {
        Handle::of(&self.context.store.nodes_dir(), &name(number)).unwrap().unwrap()
    }

    async fn kill(&self, number: u32) {
        let handle = self.handle(number);
        handle.signal(Signal::KILL).unwrap();
        handle.exited().await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for found in process::scan(&self.context.store.nodes_dir()).unwrap().values() {
            let pid = rustix::process::Pid::from_raw(found.pid).unwrap();
            rustix::process::kill_process(pid, Signal::KILL).unwrap();
        }
        fs::remove_dir_all(&self.root).unwrap();
    }
}

/// Writes one key after another, each once, to whichever of the nodes is the primary of slot 0's
/// shard.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: JoinHandle<Duration>,
}

impl Writer {
    fn start(world: &World, nodes: &[u32]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let addresses: Vec<_> = nodes
            .iter()
            .map(|number| world.context.member(&name(*number)).unwrap().address)
            .collect();
        let task = tokio::spawn(write(addresses, stop.clone(), written.clone()));
        Self { stop, written, task }
    }

    async fn wait_written(&self, more: u64) {
        let goal = self.written.load(Ordering::SeqCst) + more;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.written.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < deadline, "too few writes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many keys were acknowledged, and the longest time between two acknowledgements.
    async fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::SeqCst);
        let gap = self.task.await.unwrap();
        (self.written.load(Ordering::SeqCst), gap)
    }
}

async fn write(
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> Duration {
    let mut connections = Vec::new();
    for address in addresses {
        let connection = Connection::open(address, None, Duration::from_secs(1)).await;
        connections.push(connection.unwrap());
    }
    let (mut current, mut last, mut gap) = (0, Instant::now(), Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        let key = format!("{{06S}}{}", written.load(Ordering::SeqCst));
        match connections[current].call(["SET", &key, "v"]).await {
            Ok(_) => {
                written.fetch_add(1, Ordering::SeqCst);
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(_) => current = (current + 1) % connections.len(),
        }
    }
    gap
}

fn thirds() -> Vec<(NodeName, SlotSet)> {
    vec![
        (name(1), SlotSet::range(0, 5460)),
        (name(2), SlotSet::range(5461, 10922)),
        (name(3), SlotSet::range(10923, 16383)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_nodes_become_a_cluster() {
    let mut world = World::new("create", &[("save", "")]).await;
    world.cluster().await;
    let observed = world.observe().await;
    assert_eq!(observed.nodes.len(), 6);
    for (node, view) in &observed.nodes {
        assert_eq!(view.process, Process::Running, "{node}");
        let up = view.up().unwrap();
        assert_eq!(view.disk.id, Some(up.id), "{node}");
        assert!(up.users_current, "{node}");
        assert_eq!(up.config["save"], "", "{node}");
        assert_eq!(up.config["cluster-node-timeout"], "15000", "{node}");
        let primary = match up.role {
            Role::Primary => up.id,
            Role::Replica { of, .. } => of,
        };
        let share = (node.number - 1) % 3 + 1;
        assert_eq!(observed.nodes[&name(share)].id(), Some(primary), "{node}");
    }
    let taken = &observed.hosts[&host()].ports_taken;
    assert!(observed.nodes.values().all(|view| !taken.contains_key(&view.ports.bus)));
}

/// Nothing waits for the two seconds that a primary stays read-only after its start: a replica that
/// takes over in that time serves at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_shards_ends_the_wait_of_fresh_primaries() {
    let mut world = World::new("fresh", &[("save", "")]).await;
    let started = Instant::now();
    world.form().await;
    let pairs = (1..=3).map(|number| (name(number), name(number + 3))).collect();
    world.run([Action::OpenShards { pairs }]).await;
    eprintln!("open: {:?}", started.elapsed());
    world.until_calm().await;
    eprintln!("calm: {:?}", started.elapsed());
    for number in 4..=6 {
        assert!(world.up(number).await.is_primary());
    }
}

/// Fresh primaries don't vote on every engine: the step waits for them, and loses no election.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handovers_follow_each_other_at_once() {
    let mut world = World::new("series", &[("save", "")]).await;
    let started = Instant::now();
    world.form().await;
    world
        .run((1..=3).map(|number| Action::Handover { from: name(number), to: name(number + 3) }))
        .await;
    eprintln!("handed over: {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(15), "an election was lost");
    world.until_calm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handover_loses_nothing() {
    let mut world = World::new("handover", &[("save", "")]).await;
    world.cluster().await;
    let writer = Writer::start(&world, &[1, 4]);
    writer.wait_written(500).await;
    world.run([Action::Handover { from: name(1), to: name(4) }]).await;
    // Again does nothing.
    world.run([Action::Handover { from: name(1), to: name(4) }]).await;
    let history = world.context.store.handovers(&ClusterName::new("cache")).unwrap();
    assert_eq!(history.len(), 1);
    writer.wait_written(500).await;
    let (count, gap) = writer.stop().await;
    eprintln!("{count} writes, the longest gap {gap:?}");
    let up = world.up(4).await;
    assert!(up.is_primary());
    assert_eq!(up.keys, count);
    let copied = |observed: &Observed| observed.nodes[&name(1)].up().unwrap().keys == count;
    world.until("copied", copied).await;
    assert!(gap < Duration::from_secs(1), "{gap:?}");
    assert!(matches!(world.up(1).await.role, Role::Replica { of, .. } if of == up.id));
    world.until_calm().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_primary_is_replaced_at_once() {
    let mut world = World::new("promote", &[("save", "")]).await;
    world.cluster().await;
    let promote = || Action::Promote { dead: name(1), to: name(4) };
    let outcome = world.wave([promote()]).await;
    assert!(matches!(outcome.failed[..], [(_, StepError::Stale(_))]), "{outcome:?}");
    let handle = world.handle(1);
    let seen = tokio::spawn(async move {
        handle.exited().await.unwrap();
        Instant::now()
    });
    let killed = Instant::now();
    world.handle(1).signal(Signal::KILL).unwrap();
    let seen = seen.await.unwrap() - killed;
    world.run([promote()]).await;
    eprintln!("death seen after {seen:?}, promoted and known to all after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(1));
    assert!(world.up(4).await.is_primary());
    assert_eq!(world.observe().await.nodes[&name(1)].process, Process::Gone);
    world.run([Action::StartNode { node: name(1) }]).await;
    world.until_calm().await;
    assert!(!world.up(1).await.is_primary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_change_live_and_by_restart() {
    let mut world = World::new("settings", &[("save", ""), ("tcp-backlog", "64")]).await;
    world.cluster().await;
    let before = world.up(4).await;
    world.config("maxmemory", "104857600");
    let directives = world.context.fleet.clusters[&ClusterName::new("cache")].config.clone();
    let live = directives.into_iter().filter(|(name, _)| name == "maxmemory").collect();
    world.run([Action::SetConfig { node: name(4), directives: live }]).await;
    assert_eq!(world.up(4).await.config["maxmemory"], "104857600");

    world.config("tcp-backlog", "65");
    let directives = BTreeMap::from([("tcp-backlog".to_owned(), DirectiveValue::single("65"))]);
    let outcome = world.wave([Action::SetConfig { node: name(4), directives }]).await;
    let refused = outcome.failed[0].1.to_string();
    assert!(refused.contains("tcp-backlog") && refused.contains("cache-4"), "{refused}");
    let outcome = world.wave([Action::RestartNode { node: name(1) }]).await;
    assert!(matches!(outcome.failed[..], [(_, StepError::Stale(_))]), "{outcome:?}");
    world.run([Action::RestartNode { node: name(4) }]).await;
    let after = world.up(4).await;
    assert_eq!(after.id, before.id);
    assert_eq!(after.config["tcp-backlog"], "65");
    assert_eq!(after.config["maxmemory"], "104857600");
    assert!(matches!(after.role, Role::Replica { link: Link::InSync, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_loaded_and_their_drift_is_seen() {
    let mut world = World::new("acl", &[("save", "")]).await;
    world.run([world.create(1)]).await;
    assert!(world.up(1).await.users_current);
    let user = User { password: PasswordSource::Generated, rules: "+@read ~*".into() };
    world.cluster_spec(|cluster| drop(cluster.users.insert("app".into(), user.clone())));
    assert!(!world.up(1).await.users_current);
    world.run([Action::ApplyAcl { node: name(1) }]).await;
    assert!(world.up(1).await.users_current);
    let member = world.context.member(&name(1)).unwrap();
    world.context.call(&member, &["ACL", "SETUSER", "app", "+@all"]).await.unwrap();
    assert!(!world.up(1).await.users_current);
    world.run([Action::ApplyAcl { node: name(1) }]).await;
    assert!(world.up(1).await.users_current);

    let bad = User { password: PasswordSource::None, rules: "+nonsense".into() };
    world.cluster_spec(|cluster| drop(cluster.users.insert("app".into(), bad)));
    let outcome = world.wave([Action::ApplyAcl { node: name(1) }]).await;
    assert!(matches!(outcome.failed[..], [(_, StepError::Refused { .. })]), "{outcome:?}");
    world.kill(1).await;
    world.run([Action::StartNode { node: name(1) }]).await;
    world.cluster_spec(|cluster| drop(cluster.users.insert("app".into(), user)));
    assert!(world.up(1).await.users_current);
    let printed = format!("{:?}", world.context);
    let secret = world.context.store.secret(&ClusterName::new("cache"), "keyfleet").unwrap();
    assert!(!printed.contains(secret.expose()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_node_is_no_dead_one() {
    let mut world = World::new("hung", &[("save", "")]).await;
    world.run([world.create(1)]).await;
    world.handle(1).signal(Signal::STOP).unwrap();
    let hung = |observed: &Observed| {
        let view = &observed.nodes[&name(1)];
        view.process == Process::Suspended
            && matches!(view.server, Server::Silent { for_ms } if for_ms > 100)
    };
    world.until("hung", hung).await;
    world.run([Action::KillNode { node: name(1) }]).await;
    let view = world.observe().await.nodes[&name(1)].clone();
    assert_eq!((view.process, view.server), (Process::Gone, Server::Refused));
    world.run([Action::StartNode { node: name(1) }]).await;
    world.up(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_leave() {
    let mut world = World::new("leave", &[("save", "")]).await;
    world.cluster().await;
    let refused = world.wave([Action::RemoveNode { node: name(1) }]).await;
    assert!(matches!(refused.failed[..], [(_, StepError::Stale(_))]), "{refused:?}");
    world.run([Action::RemoveNode { node: name(4) }]).await;
    let observed = world.observe().await;
    assert_eq!(observed.nodes.len(), 5);
    assert!(observed.nodes.values().all(|view| view.up().unwrap().table.rows.len() == 5));
    assert!(!world.context.store.node_dir(&name(4)).exists());
    // The same name again is another node.
    world.run([world.create(4)]).await;
    world.run([Action::Meet { nodes: vec![name(4)] }]).await;
    world.run([Action::Replicate { node: name(4), primary: name(1) }]).await;
    let id = world.up(4).await.id;
    world.kill(4).await;
    world.run([Action::Forget { id }]).await;
    let observed = world.observe().await;
    let mut alive = observed.nodes.values().filter_map(|view| view.up());
    assert!(alive.all(|up| !up.table.rows.contains_key(&id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_outlives_a_stop() {
    let mut world = World::new("stop", &[("save", "3600 1")]).await;
    world.cluster().await;
    let writer = Writer::start(&world, &[1]);
    writer.wait_written(100).await;
    let (count, _) = writer.stop().await;
    world.run((1..=6).map(|number| Action::StopNode { node: name(number) })).await;
    let observed = world.observe().await;
    assert!(observed.nodes.values().all(|view| view.process == Process::Gone));
    assert!(observed.nodes[&name(1)].disk.data_bytes > 0);
    world.run((1..=6).map(|number| Action::StartNode { node: name(number) })).await;
    world.until_calm().await;
    assert_eq!(world.up(1).await.keys, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stops_a_server_from_starting_is_told() {
    let world = World::new("refused", &[("no-such-directive", "1")]).await;
    let outcome = world.wave([world.create(1)]).await;
    let text = outcome.failed[0].1.to_string();
    assert!(text.contains("no-such-directive") && text.contains("cache-1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_directory_is_emptied_is_still_seen() {
    let mut world = World::new("emptied", &[("save", "")]).await;
    world.run([world.create(1)]).await;
    let id = world.up(1).await.id;
    fs::remove_dir_all(world.context.store.node_dir(&name(1))).unwrap();
    let view = world.observe().await.nodes[&name(1)].clone();
    assert_eq!(view.process, Process::Running);
    assert_eq!(view.up().unwrap().id, id);
    assert_eq!(view.disk, Disk::EMPTY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_cluster_is_observed() {
    let mut world = World::new("foreign", &[("save", "")]).await;
    world.cluster().await;
    let seed = world.context.member(&name(2)).unwrap().address;
    let foreign = observe_foreign(seed, None).await.unwrap();
    assert_eq!(foreign.nodes.len(), 6);
    let names: Vec<String> = foreign.nodes.keys().map(NodeName::to_string).collect();
    assert_eq!(names[0], "cluster-1");
    let own = world.observe().await;
    for (own, foreign) in own.nodes.values().zip(foreign.nodes.values()) {
        assert_eq!(own.ports.tcp, foreign.ports.tcp);
        assert_eq!(own.id(), foreign.id());
        assert_eq!(foreign.process, Process::Unknown);
        assert_eq!(own.up().unwrap().table, foreign.up().unwrap().table);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_with_their_keys() {
    let mut world = World::new("move", &[("save", "")]).await;
    world.cluster().await;
    let writer = Writer::start(&world, &[1]);
    writer.wait_written(200).await;
    let (count, _) = writer.stop().await;
    let slots = SlotSet::range(0, 99);
    world.run([Action::MoveSlots { from: name(1), to: name(2), slots: slots.clone() }]).await;
    let (source, target) = (world.up(1).await, world.up(2).await);
    assert_eq!((source.keys, target.keys), (0, count));
    assert_eq!(target.slots(), SlotSet::range(5461, 10922).union(&slots));
    assert_eq!(source.slots(), SlotSet::range(100, 5460));
}

/// Whatever the instant at which the executor is dropped, what it leaves can be gone on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_steps_leave_nothing_broken() {
    let mut world = World::new("interrupt", &[("save", "3600 1")]).await;
    let process = |observed: &Observed| observed.nodes.get(&name(1)).map(|view| view.process);
    for pause_ms in [0, 1, 2, 4, 8, 16, 32] {
        let pause = Duration::from_millis(pause_ms);
        // What was dropped may go on for a moment: as in life, look again and do what is to be done
        // then.
        let create = world.create(1);
        let restart = Action::RestartNode { node: name(1) };
        let remove = Action::RemoveNode { node: name(1) };
        let _ = tokio::time::timeout(pause, world.wave([create.clone()])).await;
        world.insist(|observed| (process(observed) != Some(Process::Running), &create)).await;
        let _ = tokio::time::timeout(pause, world.wave([restart.clone()])).await;
        let start = Action::StartNode { node: name(1) };
        let mut restarted = false;
        while !restarted {
            world.insist(|observed| (process(observed) == Some(Process::Gone), &start)).await;
            restarted = world.wave([restart.clone()]).await.failed.is_empty();
        }
        assert!(world.up(1).await.users_current);
        let _ = tokio::time::timeout(pause, world.wave([remove.clone()])).await;
        world.insist(|observed| (process(observed).is_some(), &remove)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_server_is_stopped_in_good_order() {
    let mut world = World::new("suspended", &[("save", "3600 1")]).await;
    world.run([world.create(1)]).await;
    world.handle(1).signal(Signal::STOP).unwrap();
    world.run([Action::StopNode { node: name(1) }]).await;
    assert_eq!(world.observe().await.nodes[&name(1)].process, Process::Gone);
    let log = fs::read_to_string(world.context.store.node_dir(&name(1)).join("log")).unwrap();
    assert!(log.contains("bye bye"), "{log}");
}
