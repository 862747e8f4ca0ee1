//! fleet.yaml for tests: one cluster, on ports of the test's own.

use std::fmt::Write as _;

use crate::{engines::engine, ports::PortBlock};

/// The name of the cluster.
pub const CLUSTER: &str = "main";

/// What a test's fleet.yaml says. [`Spec::default`] is 3 shards with a replica each, durable, on
/// redis 7.0, with a node-timeout of one second and moves at full speed.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Kind and version, such as `("redis", "7.0")`.
    pub engine: (&'static str, &'static str),
    pub shards: u32,
    pub replicas: u32,
    /// `cache` or `durable`.
    pub profile: &'static str,
    pub node_timeout_ms: u64,
    /// `gentle` or `full`.
    pub pace: &'static str,
    /// As it is written: `64MiB`.
    pub memory: Option<&'static str>,
    /// Hosts at loopback addresses (127.0.1.1, 127.0.2.1, …); 0: this machine alone.
    pub hosts: u32,
    /// Those of them that are at other addresses: 127.1.1.1, 127.1.2.1, …
    pub moved_hosts: &'static [u32],
    /// The hosts' addresses, where they are to be no loopback ones.
    pub addresses: Vec<String>,
    /// Directives.
    pub config: Vec<(&'static str, &'static str)>,
    /// Further lines of the cluster, without indentation.
    pub lines: Vec<&'static str>,
    /// Lines of `proxies:`, without indentation.
    pub proxies: Vec<String>,
    /// Lines of `guard:`, without indentation.
    pub guard: Vec<&'static str>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            engine: ("redis", "7.0"),
            shards: 3,
            replicas: 1,
            profile: "durable",
            node_timeout_ms: 1_000,
            pace: "full",
            memory: None,
            hosts: 0,
            moved_hosts: &[],
            addresses: Vec::new(),
            config: Vec::new(),
            lines: Vec::new(),
            proxies: Vec::new(),
            guard: Vec::new(),
        }
    }
}

impl Spec {
    /// The text of fleet.yaml.
    pub fn render(&self, ports: &PortBlock) -> String {
        let mut text = String::new();
        let mut say = |indentation: usize, line: &str| {
            let _ = writeln!(text, "{:indentation$}{line}", "");
        };
        let loopback = |number| {
            let moved = u8::from(self.moved_hosts.contains(&number));
            format!("127.{moved}.{number}.1")
        };
        let addresses = match self.addresses.as_slice() {
            [] => (1..=self.hosts).map(loopback).collect(),
            given => given.to_vec(),
        };
        if !addresses.is_empty() {
            say(0, "hosts:");
            for (number, address) in (1..).zip(&addresses) {
                say(2, &format!("h{number}: {{address: {address}}}"));
            }
        }
        let (kind, version) = self.engine;
        let server = engine(kind, version).server;
        let server = server.display();
        say(0, "clusters:");
        say(2, &format!("{CLUSTER}:"));
        say(4, &format!("engine: {{kind: {kind}, version: \"{version}\", path: \"{server}\"}}"));
        say(4, &format!("shards: {}", self.shards));
        say(4, &format!("replicas: {}", self.replicas));
        say(4, &format!("profile: {}", self.profile));
        say(4, &format!("node-timeout: {}ms", self.node_timeout_ms));
        say(4, &format!("pace: {}", self.pace));
        let PortBlock { tcp, tls, bus, .. } = ports;
        say(4, &format!("ports: {{tcp: {tcp}, tls: {tls}, bus: {bus}}}"));
        if let Some(memory) = self.memory {
            say(4, &format!("memory: {memory}"));
        }
        if !self.config.is_empty() {
            say(4, "config:");
            for (name, value) in &self.config {
                say(6, &format!("{name}: {value:?}"));
            }
        }
        for line in &self.lines {
            say(4, line);
        }
        if !self.proxies.is_empty() {
            say(0, "proxies:");
            for line in &self.proxies {
                say(2, line);
            }
        }
        if !self.guard.is_empty() {
            say(0, "guard:");
            for line in &self.guard {
                say(2, line);
            }
        }
        text
    }
}
