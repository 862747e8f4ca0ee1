//! The runtime, the observer and the executor against real servers.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet::{
    model::{
        Cluster, ClusterName, DirectiveValue, EngineWant, Fleet, GuardMode, GuardPolicy, Host,
        HostId, NodeName, Pace, PlacementPolicy, PortBase, Profile, Spread, Takeover, Zone,
    },
    observed::{Observed, Process, Role, Server, Up},
    step::{Action, Step, Wave},
};
use keyfleet::{
    admin_client::Pool,
    engines,
    execute::{Context, Event, Outcome, Sink, execute_wave},
    observe::Observer,
    runtimes::process::{self, Handle},
    store::Store,
};
use protocol::SlotSet;
use rustix::process::Signal;

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

/// The first of `count` adjacent free ports whose bus ports are free too.
fn free_ports(count: u16) -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let pid = u16::try_from(std::process::id() % 1000).unwrap();
    let mut bases = (0..1000u16).map(|step| 20_000 + (pid + step * 7) % 1000 * 12);
    bases
        .find(|base| (*base..base + count).all(|port| is_free(port) && is_free(port + 10_000)))
        .unwrap()
}

impl World {
    async fn new(test: &str, config: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("keyfleet-{test}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let first = free_ports(8);
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

    fn create(&self, number: u32) -> Action {
        let base = self.context.fleet.clusters[&ClusterName::new("cache")].ports;
        let ports = base.at(u16::try_from(number).unwrap() - 1).unwrap();
        Action::CreateNode { node: name(number), host: host(), ports }
    }

    /// Three primaries, 1 to 3, with a replica each, 4 to 6.
    async fn cluster(&mut self) {
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
        self.until("calm", |observed| {
            observed.history[&ClusterName::new("cache")].calm_since_ms.is_some()
        })
        .await;
        eprintln!("state ok everywhere: {:?}", started.elapsed());
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
        assert!(up.acl.is_some(), "{node}");
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
    assert!(observed.nodes.values().all(|view| !taken.contains(&view.ports.bus)));
    let _ = Server::Refused;
}
