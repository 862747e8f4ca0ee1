//! A whole fleet in a directory of its own, run by the real `keyfleet` program. Dropping it ends
//! every process that works below the directory, and removes it.

mod spec;

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use fleet::{
    model::{ClusterName, NodeName, ProxyName},
    observed::{NodeView, Observed, Role, Server, Up},
};
use keyfleet::{
    admin_client::{Connection, Pool},
    observe::Observer,
    runtimes::process,
    session::Session,
};
use protocol::{SlotSet, Value};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

pub use self::spec::{CLUSTER, Spec};
use crate::{
    ledger::{Ledger, Options, Report, Verdict},
    ports::PortBlock,
};

/// How long one command may take.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(120);
/// How long an answer of a server may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a fleet may take to be as its spec wants it when nothing more happens to it.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub struct TestFleet {
    directory: PathBuf,
    pub ports: PortBlock,
    count: AtomicU32,
    mounted: bool,
    environment: BTreeMap<String, String>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// None where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

/// A command that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: PathBuf,
    started: Instant,
}

/// The program under test: for tests the one that cargo builds together with them, for benchmarks
/// the one that is delivered, which they build themselves.
pub fn program() -> PathBuf {
    let this = env::current_exe().expect("a program has a path");
    let beside = this.parent().expect("a program is in a directory");
    // Tests are built one directory below the programs.
    let (program, package) = if beside.ends_with("deps") {
        (beside.with_file_name("keyfleet-tested"), "keyfleet-tests")
    } else {
        (beside.join("keyfleet"), "keyfleet")
    };
    assert!(program.is_file(), "no {}: run `cargo build -p {package}`", program.display());
    program
}

/// A node's name by its number, in the cluster that [`Spec`] describes.
pub fn node(number: u32) -> NodeName {
    NodeName::new(ClusterName::new(CLUSTER), number)
}

impl TestFleet {
    /// A fresh directory with this spec; nothing runs yet.
    pub fn new(spec: &Spec) -> Self {
        let fleet = Self::empty();
        fleet.edit(spec);
        fleet
    }

    /// A fresh directory without a spec.
    pub fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("keyfleet-fleet-{}-{number}", std::process::id());
        let directory = env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("the temporary directory can be written");
        let directory = directory.canonicalize().expect("it was just made");
        let ports = PortBlock::claim().expect("ports are free");
        Self {
            directory,
            ports,
            count: AtomicU32::new(0),
            mounted: false,
            environment: BTreeMap::new(),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A node's directory.
    pub fn node_directory(&self, node: &NodeName) -> PathBuf {
        self.directory.join(".keyfleet/nodes").join(node.to_string())
    }

    /// Puts the state directory on a file system of this size (`64k`), or gives the one that is
    /// there this size. Needs root.
    pub fn limit_disk(&mut self, size: &str) -> Result<()> {
        let state = self.directory.join(".keyfleet");
        fs::create_dir_all(&state)?;
        let remount = if self.mounted { "remount," } else { "" };
        let options = format!("{remount}size={size},mode=0700");
        let mut mount = std::process::Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(&state).status()?;
        ensure!(status.success(), "mount -o {options} {}: {status}", state.display());
        self.mounted = true;
        Ok(())
    }

    /// Writes fleet.yaml.
    pub fn edit(&self, spec: &Spec) {
        self.write(&spec.render(&self.ports));
    }

    /// Writes fleet.yaml as it is given.
    pub fn write(&self, text: &str) {
        fs::write(self.directory.join("fleet.yaml"), text).expect("fleet.yaml can be written");
    }

    /// Gives the program a variable of the environment from now on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    /// Starts the program in the fleet's directory.
    pub fn spawn(&self, args: &[&str]) -> Running {
        self.spawn_reading(args, Stdio::null())
    }

    /// Starts the program in the fleet's directory, with this as its stdin.
    pub fn spawn_reading(&self, args: &[&str], stdin: impl Into<Stdio>) -> Running {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let output = self.directory.join(format!("command-{number}"));
        let file = |end: &str| {
            fs::File::create(output.with_extension(end)).expect("the directory can be written")
        };
        let child = Command::new(program())
            .args(args)
            .current_dir(&self.directory)
            .envs(&self.environment)
            .env("NO_COLOR", "1")
            .env("XDG_STATE_HOME", self.directory.join("state"))
            .stdin(stdin)
            .stdout(file("out"))
            .stderr(file("err"))
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        Running { child, output, started: Instant::now() }
    }

    /// Runs the program to its end.
    pub async fn run(&self, args: &[&str]) -> Ended {
        self.spawn(args).wait().await
    }

    /// `up`, which must succeed.
    pub async fn up(&self) -> Ended {
        self.run(&["up", "--no-guard"]).await.expect_code(0)
    }

    /// There is nothing to do: by a look and a plan of our own, and by the command's word.
    pub async fn expect_empty_plan(&self) {
        let session = Session::open(&self.directory.join("fleet.yaml"), true).expect("a good spec");
        let observed = self.observe().await.expect("the fleet can be looked at");
        let wave = fleet::plan::plan(&session.fleet, &observed);
        assert!(wave.is_done(), "not done: {wave:?}; {}{}", told(&Ok(observed)), self.output());
        self.run(&["plan", "--exit-code"]).await.expect_code(0);
    }

    /// Guard in the background, acting.
    pub async fn guard(&self) -> Running {
        let guard = self.spawn(&["-vv", "guard"]);
        guard.wait_for_output("guarding", ANSWER_TIME_MAX).await;
        guard
    }

    /// What `status` says.
    pub async fn status_json(&self) -> serde_json::Value {
        let ended = self.run(&["status", "--output", "json"]).await.expect_code(0);
        ended.json()
    }

    /// The fleet as keyfleet sees it, by a look of our own.
    pub async fn observe(&self) -> Result<Observed> {
        let session = Session::open(&self.directory.join("fleet.yaml"), true)?;
        let mut observer = Observer::new(session.store.clone(), Pool::new());
        Ok(observer.observe(&session.fleet).await?)
    }

    /// Looks again and again until something holds. Panics with what was seen last.
    pub async fn wait_for(
        &self,
        what: &str,
        time_max: Duration,
        holds: impl Fn(&Observed) -> bool,
    ) -> Observed {
        let deadline = Instant::now() + time_max;
        loop {
            let seen = self.observe().await;
            match &seen {
                Ok(observed) if holds(observed) => return seen.expect("just matched"),
                _ if Instant::now() > deadline => {
                    panic!("not within {time_max:?}: {what}; {}{}", told(&seen), self.output())
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// What all commands have written so far, for a failing test's message.
    fn output(&self) -> String {
        let mut text = String::new();
        for number in 0..self.count.load(Ordering::Relaxed) {
            let path = self.directory.join(format!("command-{number}"));
            for end in ["out", "err"] {
                let written = fs::read_to_string(path.with_extension(end)).unwrap_or_default();
                let from = written.len().saturating_sub(6_000);
                let from = (from..written.len()).find(|at| written.is_char_boundary(*at));
                let tail = &written[from.unwrap_or(written.len())..];
                text += &format!("\n--- command {number} {end}\n{tail}");
            }
        }
        text
    }

    /// The process of a node's server.
    pub fn pid(&self, node: &NodeName) -> Option<i32> {
        let found = process::scan(&self.directory.join(".keyfleet/nodes")).ok()?;
        found.get(node).map(|found| found.pid)
    }

    /// The process of a proxy.
    pub fn proxy_pid(&self, proxy: &ProxyName) -> Option<i32> {
        process::scan_proxies(&self.directory.join(".keyfleet/proxies")).ok()?.get(proxy).copied()
    }

    /// Kills a proxy.
    pub fn kill_proxy(&self, proxy: &ProxyName) {
        let pid = self.proxy_pid(proxy).unwrap_or_else(|| panic!("{proxy} doesn't run"));
        send(pid, Signal::KILL);
    }

    fn signal(&self, node: &NodeName, signal: Signal) {
        let pid = self.pid(node).unwrap_or_else(|| panic!("{node} doesn't run"));
        send(pid, signal);
    }

    /// Kills a server and waits until it is gone.
    pub async fn kill9(&self, node: &NodeName) {
        let pid = self.pid(node).unwrap_or_else(|| panic!("{node} doesn't run"));
        send(pid, Signal::KILL);
        let gone = async {
            while self.pid(node) == Some(pid) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(ANSWER_TIME_MAX, gone).await.unwrap_or_else(|_| panic!("{node} doesn't die"));
    }

    /// Lets a server hang.
    pub fn suspend(&self, node: &NodeName) {
        self.signal(node, Signal::STOP);
    }

    pub fn resume(&self, node: &NodeName) {
        self.signal(node, Signal::CONT);
    }

    /// Removes all that a node's server has written: its data and its own name.
    pub fn empty_disk(&self, node: &NodeName) {
        let directory = self.node_directory(node);
        for entry in fs::read_dir(&directory).expect("the node has a directory") {
            let path = entry.expect("the directory can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                fs::remove_dir_all(&path).expect("it can be removed");
            } else if !["node.conf", "users.acl", "log"].contains(&name.as_str()) {
                fs::remove_file(&path).expect("it can be removed");
            }
        }
    }

    /// Where clients find the fleet: every node that the spec's ports allow.
    pub fn seeds(&self) -> Vec<SocketAddr> {
        let nodes = keyfleet::store::Store::beside(&self.directory.join("fleet.yaml"))
            .and_then(|store| store.nodes());
        let nodes = nodes.expect("the state directory can be read");
        nodes.iter().filter_map(|node| self.address(node)).collect()
    }

    /// Where a node listens, by its configuration.
    pub fn address(&self, node: &NodeName) -> Option<SocketAddr> {
        let text = fs::read_to_string(self.node_directory(node).join("node.conf")).ok()?;
        let place = keyfleet::node_files::Place::parse(&text)?;
        Some(SocketAddr::new(place.address, place.ports.tcp))
    }

    /// One command to one node, as a client without a password.
    pub async fn call(&self, node: &NodeName, args: &[&str]) -> Result<Value> {
        let address = self.address(node).with_context(|| format!("{node} has no address"))?;
        let mut link = Connection::open(address, None, ANSWER_TIME_MAX).await?;
        Ok(link.call_within(ANSWER_TIME_MAX, args).await?)
    }

    /// A client writes through the cluster while `change` happens; nothing that was acknowledged
    /// may be lost, and enough must have been written to say so.
    pub async fn under_ledger(&self, options: Options, change: impl Future<Output = ()>) -> Report {
        let (report, verdict) = self.with_ledger(options, change).await;
        assert!(verdict.holds(), "{verdict}: {verdict:?}; {report}{}", self.output());
        report
    }

    /// A client writes through the cluster while something happens, which may lose writes: the
    /// verdict tells how many. It begins once each of the ledger's lists has been written to.
    pub async fn with_ledger(
        &self,
        options: Options,
        change: impl Future<Output = ()>,
    ) -> (Report, Verdict) {
        let lists = u64::from(options.keys);
        let ledger = Ledger::start(&self.seeds(), options).await.expect("the fleet can be written");
        ledger.wait_for_writes(ANSWER_TIME_MAX).await.expect("writes are acknowledged");
        let deadline = Instant::now() + COMMAND_TIME_MAX;
        while self.keys().await < lists {
            assert!(Instant::now() < deadline, "only {} of {lists} lists", self.keys().await);
            sleep(POLL).await;
        }
        change.await;
        let report = ledger.stop().await.expect("the ledger ends");
        let verdict = report.verify(&self.seeds()).await.expect("the lists can be read");
        eprintln!("ledger: {report}; {verdict}");
        (report, verdict)
    }

    /// The cluster is as wanted: so many shards with so many replicas in sync each, every slot
    /// owned, counts within 1, nothing half-moved, each replica with as many keys as its primary,
    /// all of one mind, the plan empty.
    pub async fn expect_settled(&self, shards: usize, replicas: usize) -> Observed {
        self.expect_empty_plan().await;
        let observed = self.observe().await.expect("the fleet can be looked at");
        if let Err(error) = check_settled(&observed, shards, replicas) {
            panic!("{error}; {}{}", told(&Ok(observed)), self.output());
        }
        observed
    }

    /// [`TestFleet::expect_settled`] once that is so: for when guard or the cluster gets there alone.
    pub async fn wait_settled(&self, shards: usize, replicas: usize) -> Observed {
        let session = Session::open(&self.directory.join("fleet.yaml"), true).expect("a good spec");
        let settled = |seen: &Observed| {
            check_settled(seen, shards, replicas).is_ok()
                && fleet::plan::plan(&session.fleet, seen).is_done()
        };
        self.wait_for("all as the spec wants it", SETTLE_TIME_MAX, settled).await;
        self.expect_settled(shards, replicas).await
    }

    /// The keys of all primaries together.
    pub async fn keys(&self) -> u64 {
        let observed = self.observe().await.expect("the fleet can be looked at");
        primaries(&observed).values().map(|up| up.keys).sum()
    }
}

impl Drop for TestFleet {
    fn drop(&mut self) {
        // A server may be just starting another process: until there is none left.
        for _ in 0..20 {
            let pids = processes_below(&self.directory);
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                send(pid, Signal::KILL);
            }
            std::thread::sleep(POLL);
        }
        if self.mounted {
            let state = self.directory.join(".keyfleet");
            // Who was just killed may not have let go of it yet.
            let _ = std::process::Command::new("umount").arg("--lazy").arg(state).status();
        }
        if env::var_os("KEYFLEET_TEST_KEEP").is_none() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Ended {
    /// Panics with the output where the code is another.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        let Self { stdout, stderr, .. } = &self;
        let seen = self.code;
        assert_eq!(seen, Some(code), "exit code\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }
}

impl Ended {
    /// What it printed, as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What it said on stderr, in one line.
    pub fn said(&self) -> String {
        self.stderr.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Ended {
    /// Panics unless it ended as a failure that says why.
    #[track_caller]
    pub fn expect_failure(self) -> Self {
        assert!(matches!(self.code, Some(1 | 2)), "{self:?}");
        assert!(self.stderr.contains("error: ") && !self.stderr.contains("panicked"), "{self:?}");
        self
    }
}

impl Running {
    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            send(pid.cast_signed(), signal);
        }
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.output.with_extension("err")).unwrap_or_default()
    }

    /// What it has written to stdout so far.
    pub fn stdout(&self) -> String {
        fs::read_to_string(self.output.with_extension("out")).unwrap_or_default()
    }

    /// Has it ended?
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// Waits until it has written something to stdout or stderr.
    pub async fn wait_for_output(&self, part: &str, time_max: Duration) {
        let deadline = Instant::now() + time_max;
        while !self.stderr().contains(part) && !self.stdout().contains(part) {
            assert!(
                Instant::now() < deadline,
                "never wrote {part:?}\n--- stdout\n{}\n--- stderr\n{}",
                self.stdout(),
                self.stderr()
            );
            sleep(POLL).await;
        }
    }

    /// kill -9, and waits for its end.
    pub async fn kill9(mut self) -> Ended {
        self.child.start_kill().expect("it is our child");
        self.wait().await
    }

    /// Waits for its end.
    pub async fn wait(mut self) -> Ended {
        let Ok(status) = timeout(COMMAND_TIME_MAX, self.child.wait()).await else {
            panic!(
                "no end after {COMMAND_TIME_MAX:?}\n--- stdout\n{}\n--- stderr\n{}",
                self.stdout(),
                self.stderr()
            );
        };
        Ended {
            code: status.expect("it is our child").code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            took: self.started.elapsed(),
        }
    }
}

/// The answering primaries that own slots.
pub fn primaries(observed: &Observed) -> BTreeMap<&NodeName, &Up> {
    observed
        .nodes
        .iter()
        .filter_map(|(name, view)| Some((name, view.up()?)))
        .filter(|(_, up)| up.is_primary() && !up.slots().is_empty())
        .collect()
}

/// The nodes that copy this one, in sync or not.
pub fn replicas_of<'a>(observed: &'a Observed, primary: &NodeName) -> Vec<&'a NodeName> {
    let id = observed.nodes.get(primary).and_then(NodeView::id);
    let follows = |view: &NodeView| matches!(view.up().map(|up| up.role), Some(Role::Replica { of, .. }) if Some(of) == id);
    observed.nodes.iter().filter(|(_, view)| follows(view)).map(|(name, _)| name).collect()
}

/// Answers, copies a primary, and has all of it.
pub fn is_synced_replica(observed: &Observed, node: &NodeName) -> bool {
    let up = observed.nodes.get(node).and_then(NodeView::up);
    up.is_some_and(|up| {
        matches!(up.role, Role::Replica { link: fleet::observed::Link::InSync, .. })
    })
}

/// Every node answers and says that the cluster is well.
pub fn is_healthy(observed: &Observed, nodes: usize) -> bool {
    let well = |view: &&NodeView| view.up().is_some_and(|up| up.cluster_ok);
    observed.nodes.len() == nodes && observed.nodes.values().filter(well).count() == nodes
}

/// See [`TestFleet::expect_settled`].
fn check_settled(observed: &Observed, shards: usize, replicas: usize) -> Result<()> {
    let primaries = primaries(observed);
    ensure!(primaries.len() == shards, "{} primaries own slots, not {shards}", primaries.len());
    let wanted = shards * (1 + replicas);
    ensure!(observed.nodes.len() == wanted, "{} nodes, not {wanted}", observed.nodes.len());
    let mut owned = SlotSet::new();
    let mut counts = Vec::new();
    for (name, primary) in &primaries {
        let slots = primary.slots();
        ensure!(owned.intersection(&slots).is_empty(), "two primaries own a slot of {name}");
        owned = owned.union(&slots);
        counts.push(slots.len());
        let followers = replicas_of(observed, name);
        ensure!(followers.len() == replicas, "{name} has the replicas {followers:?}");
        for follower in followers {
            ensure!(is_synced_replica(observed, follower), "{follower} isn't in sync");
            let keys = observed.nodes.get(follower).and_then(NodeView::up).map(|up| up.keys);
            ensure!(keys == Some(primary.keys), "{follower} has {keys:?} keys, {name} others");
        }
    }
    ensure!(owned == SlotSet::full(), "only {} slots are owned", owned.len());
    counts.sort_unstable();
    ensure!(counts[shards - 1] - counts[0] <= 1, "slots are not balanced: {counts:?}");
    for (name, view) in &observed.nodes {
        let Some(up) = view.up() else { bail!("{name} is {:?}", view.server) };
        ensure!(up.cluster_ok, "{name} says that the cluster is down");
        ensure!(up.open.is_empty(), "{name} has open slots");
        for (id, row) in &up.table.rows {
            let own = primaries.values().find(|primary| primary.id == *id);
            let slots = own.map(|primary| primary.slots()).unwrap_or_default();
            ensure!(row.slots == slots, "{name} sees other slots at {}", id.short());
        }
        ensure!(up.table.rows.len() == wanted, "{name} knows {} nodes", up.table.rows.len());
    }
    Ok(())
}

/// What was seen, in a few lines.
fn told(seen: &Result<Observed>) -> String {
    let observed = match seen {
        Ok(observed) => observed,
        Err(error) => return format!("not seen: {error:#}"),
    };
    let mut text = String::from("seen:");
    for (name, view) in &observed.nodes {
        text += &format!("\n  {name} {:?} disk {}: ", view.process, view.disk.data_bytes);
        text += &match &view.server {
            Server::Up(up) => format!(
                "{:?} {} slots, {} keys, offset {}, ok {}, open {:?}",
                up.role,
                up.slots().len(),
                up.keys,
                up.offset,
                up.cluster_ok,
                up.open
            ),
            other => format!("{other:?}"),
        };
    }
    text
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // One that is gone already needs no signal.
        let _ = kill_process(pid, signal);
    }
}

/// The processes whose working directory is this one or below it, apart from ourselves.
fn processes_below(directory: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let works_at = fs::read_link(format!("/proc/{pid}/cwd"));
        let alive = fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "));
        alive && works_at.is_ok_and(|path| path.starts_with(directory))
    })
    .filter(|pid| pid.cast_unsigned() != std::process::id())
    .collect()
}
