//! A cluster of real servers on loopback, made without keyfleet: what its parts are tried on.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use fleet::model::Pace;
use keyfleet::{
    admin_client::{Commands, Connection},
    mover::{
        NodeAddr,
        slots::{SlotMove, move_slots},
    },
};
use protocol::{
    ClusterNodes, NodeId, Slot, SlotSet, Value, engine::AtomicSlots, key_slot, slots::SLOT_COUNT,
};
use tokio::time::{Instant, sleep};

use crate::server::{POLL, Server, TIME_MAX};

/// Longer than a handover may take until the engines give it up (CLUSTER_MF_TIMEOUT).
const LAPSE: Duration = Duration::from_secs(6);

/// What to start.
#[derive(Clone, Debug)]
pub struct Shape<'a> {
    /// The server program.
    pub server: &'a Path,
    /// They share the slots evenly; the first gets the lowest.
    pub primaries: usize,
    /// Of each primary.
    pub replicas: usize,
    /// Primaries beside them that own nothing.
    pub spare: usize,
    /// Directives as arguments: `["--maxmemory", "100mb"]`.
    pub config: &'a [&'a str],
}

/// Running servers; dropping it kills them and removes their directories.
#[derive(Debug)]
pub struct RawCluster {
    /// Primaries with slots, then spare ones, then replicas (the first primary's first).
    pub nodes: Vec<RawNode>,
    primaries: usize,
}

/// One of them.
#[derive(Debug)]
pub struct RawNode {
    pub addr: NodeAddr,
    server: Server,
}

impl RawNode {
    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }
}

impl RawCluster {
    /// Starts the servers and forms the cluster; returns when all agree that it serves.
    pub async fn start(shape: &Shape<'_>) -> Result<Self> {
        let primaries = shape.primaries + shape.spare;
        let mut cluster = Self { nodes: Vec::new(), primaries };
        for number in 0..primaries + shape.primaries * shape.replicas {
            let node = start_node(shape).await;
            cluster.nodes.push(node.with_context(|| format!("node {number}"))?);
        }
        cluster.form(shape).await?;
        Ok(cluster)
    }

    async fn form(&self, shape: &Shape<'_>) -> Result<()> {
        for (index, node) in self.nodes.iter().enumerate() {
            let mut link = self.link(index).await?;
            call(&mut link, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await?;
            if index < shape.primaries {
                let share = |part: usize| part * usize::from(SLOT_COUNT) / shape.primaries;
                let slots: Vec<String> =
                    (share(index)..share(index + 1)).map(|slot| slot.to_string()).collect();
                let mut args = vec!["CLUSTER", "ADDSLOTS"];
                args.extend(slots.iter().map(String::as_str));
                call(&mut link, &args).await?;
            }
            let first = self.nodes.first().context("no node")?.addr.address;
            if first != node.addr.address {
                let (ip, port) = (first.ip().to_string(), first.port().to_string());
                call(&mut link, &["CLUSTER", "MEET", &ip, &port]).await?;
            }
        }
        self.wait("all nodes know each other", |view| view.rows.len() == self.nodes.len()).await?;
        for index in self.primaries..self.nodes.len() {
            let of = self.nodes[(index - self.primaries) / shape.replicas].addr.id.to_string();
            let mut link = self.link(index).await?;
            let deadline = Instant::now() + TIME_MAX;
            while let Err(error) = call(&mut link, &["CLUSTER", "REPLICATE", &of]).await {
                ensure!(Instant::now() < deadline, "replica {index}: {error}");
                sleep(POLL).await;
            }
        }
        self.wait_calm().await?;
        for index in self.primaries..self.nodes.len() {
            let mut link = self.link(index).await?;
            let deadline = Instant::now() + TIME_MAX;
            while !text(&mut link, &["INFO", "replication"]).await?.contains("link_status:up") {
                ensure!(Instant::now() < deadline, "replica {index} doesn't get in sync");
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// kill -9 for one of them; it stays dead.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        self.nodes[index].server.kill()
    }

    /// The primaries that owned slots or nothing at the start.
    pub fn primaries(&self) -> impl Iterator<Item = &RawNode> {
        self.nodes.iter().take(self.primaries)
    }

    /// Every node's address.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.addr.address).collect()
    }

    /// A move of slots by keys at full pace, of which all other nodes are told.
    pub fn slot_move(&self, from: usize, to: usize, slots: SlotSet) -> SlotMove {
        let (from, to) = (self.nodes[from].addr, self.nodes[to].addr);
        SlotMove {
            from,
            to,
            slots,
            others: self.others(&[from, to]),
            login: None,
            pace: Pace::Full,
            atomic: AtomicSlots::None,
        }
    }

    /// Does [`RawCluster::slot_move`].
    pub async fn move_slots(&self, from: usize, to: usize, slots: SlotSet) -> Result<()> {
        move_slots(&self.slot_move(from, to, slots), |_| ()).await?;
        Ok(())
    }

    /// What a node owns by its own view.
    pub async fn owned(&self, index: usize) -> Result<SlotSet> {
        let view = self.view(index).await?;
        Ok(view.my_row().context("it doesn't know itself")?.slots.clone())
    }

    /// All nodes but these.
    pub fn others(&self, than: &[NodeAddr]) -> Vec<NodeAddr> {
        self.nodes.iter().map(|node| node.addr).filter(|addr| !than.contains(addr)).collect()
    }

    /// A connection to a node.
    pub async fn link(&self, index: usize) -> Result<Connection> {
        self.nodes[index].server.link().await
    }

    /// How many keys these nodes hold.
    pub async fn keys(&self, nodes: impl IntoIterator<Item = usize>) -> Result<u64> {
        let mut keys = 0;
        for index in nodes {
            let size = call(&mut self.link(index).await?, &["DBSIZE"]).await?;
            keys += u64::try_from(size.as_integer().context("DBSIZE is no number")?)?;
        }
        Ok(keys)
    }

    /// A node's view.
    pub async fn view(&self, index: usize) -> Result<ClusterNodes> {
        let mut link = self.link(index).await?;
        Ok(text(&mut link, &["CLUSTER", "NODES"]).await?.parse()?)
    }

    /// Hands a shard over to one of its replicas, once all know that it is one: a primary doesn't hear
    /// one that it doesn't know, and others don't vote for it, nor will they for a minute. A handover that
    /// the nodes were too busy for lapses after five seconds, and is asked for again.
    pub async fn hand_over(&self, replica: usize) -> Result<()> {
        let own = self.view(replica).await?;
        let of = own.my_row().and_then(|row| row.primary).context("it is no replica")?;
        self.wait("the replica is one", |view| {
            view.row(own.myself).is_some_and(|row| row.primary == Some(of))
        })
        .await?;
        let mut link = self.link(replica).await?;
        let deadline = Instant::now() + TIME_MAX;
        while Instant::now() < deadline {
            call(&mut link, &["CLUSTER", "FAILOVER"]).await?;
            let lapsed = Instant::now() + LAPSE;
            while Instant::now() < lapsed {
                if text(&mut link, &["INFO", "replication"]).await?.contains("role:master") {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        }
        bail!("no handover to {replica}")
    }

    /// Waits until something holds in every node's view.
    pub async fn wait(&self, what: &str, holds: impl Fn(&ClusterNodes) -> bool) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        for index in 0..self.nodes.len() {
            while !holds(&self.view(index).await?) {
                ensure!(Instant::now() < deadline, "node {index} never saw that {what}");
                sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// Waits until every node says that the cluster is well, all agree on every slot's owner, and
    /// no slot is open.
    pub async fn wait_calm(&self) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        loop {
            match self.unrest().await? {
                None => return Ok(()),
                Some(reason) => ensure!(Instant::now() < deadline, "not calm: {reason}"),
            }
            sleep(POLL).await;
        }
    }

    /// Why the cluster isn't calm; see [`RawCluster::wait_calm`].
    pub async fn unrest(&self) -> Result<Option<String>> {
        let mut first: Option<Vec<(NodeId, SlotSet)>> = None;
        for index in 0..self.nodes.len() {
            let mut link = self.link(index).await?;
            if !text(&mut link, &["CLUSTER", "INFO"]).await?.contains("cluster_state:ok") {
                return Ok(Some(format!("node {index} says that the cluster is down")));
            }
            let view = self.view(index).await?;
            if !view.open.is_empty() {
                return Ok(Some(format!("node {index} has {} open slots", view.open.len())));
            }
            let mut owners: Vec<(NodeId, SlotSet)> =
                view.rows.iter().map(|row| (row.id, row.slots.clone())).collect();
            owners.sort();
            if first.get_or_insert_with(|| owners.clone()) != &owners {
                return Ok(Some(format!("node {index} sees other owners than node 0")));
            }
        }
        Ok(None)
    }

    /// Writes `count` keys `key:0` … of `value_bytes` bytes each, the value beginning with the key.
    pub async fn fill(&self, count: usize, value_bytes: usize) -> Result<()> {
        let owners = self.owners().await?;
        for (index, node) in self.nodes.iter().enumerate().take(self.primaries) {
            let mut link = node.server.link().await?;
            let mut pipeline = Commands::new();
            for number in 0..count {
                let key = format!("key:{number}");
                if owners[usize::from(key_slot(key.as_bytes()).number())] == index {
                    pipeline.push(["SET", &key, &format!("{key:.<value_bytes$}")]);
                    if pipeline.len() == 10_000 {
                        all_ok(&mut link, &pipeline).await?;
                        pipeline = Commands::new();
                    }
                }
            }
            all_ok(&mut link, &pipeline).await?;
        }
        Ok(())
    }

    /// Checks that every key of [`RawCluster::fill`] is where its slot is, with its value, and
    /// that no primary holds a key of a slot that it doesn't own.
    pub async fn check_filled(&self, count: usize, value_bytes: usize) -> Result<()> {
        let owners = self.owners().await?;
        for (index, node) in self.nodes.iter().enumerate().take(self.primaries) {
            let mut link = node.server.link().await?;
            let mine: Vec<String> = (0..count)
                .map(|number| format!("key:{number}"))
                .filter(|key| owners[usize::from(key_slot(key.as_bytes()).number())] == index)
                .collect();
            for keys in mine.chunks(10_000) {
                let mut pipeline = Commands::new();
                for key in keys {
                    pipeline.push(["GET", key]);
                }
                for (key, value) in keys.iter().zip(link.pipeline(&pipeline, TIME_MAX).await?) {
                    let expected = format!("{key:.<value_bytes$}");
                    ensure!(value.as_str() == Some(&expected), "{key} is {value:?} at {index}");
                }
            }
            let strange: Vec<Slot> = self.strange_slots(index, &owners).await?;
            ensure!(strange.is_empty(), "node {index} holds keys of others' slots {strange:?}");
        }
        Ok(())
    }

    async fn strange_slots(&self, index: usize, owners: &[usize]) -> Result<Vec<Slot>> {
        let mut link = self.link(index).await?;
        let mut pipeline = Commands::new();
        let others: Vec<Slot> = SlotSet::full()
            .iter()
            .filter(|slot| owners[usize::from(slot.number())] != index)
            .collect();
        for slot in &others {
            pipeline.push(["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]);
        }
        let counts = link.pipeline(&pipeline, TIME_MAX).await?;
        let held =
            others.into_iter().zip(counts).filter(|(_, count)| count.as_integer() != Some(0));
        Ok(held.map(|(slot, _)| slot).collect())
    }

    /// The owner of each slot, as an index into `nodes`, by the first node's view.
    pub async fn owners(&self) -> Result<Vec<usize>> {
        let view = self.view(0).await?;
        let mut owners = vec![usize::MAX; usize::from(SLOT_COUNT)];
        for row in &view.rows {
            let index = self.nodes.iter().position(|node| node.addr.id == row.id);
            for slot in row.slots.iter() {
                owners[usize::from(slot.number())] = index.context("a node that isn't ours")?;
            }
        }
        Ok(owners)
    }
}

async fn start_node(shape: &Shape<'_>) -> Result<RawNode> {
    let mut config = vec!["--cluster-enabled", "yes", "--cluster-node-timeout", "15000"];
    config.extend(shape.config);
    let server = Server::start(shape.server, &config).await?;
    let mut link = server.link().await?;
    let id = text(&mut link, &["CLUSTER", "MYID"]).await?.parse()?;
    Ok(RawNode { addr: NodeAddr { id, address: server.address }, server })
}

/// Sends a command; an error reply is an error.
pub async fn call(link: &mut Connection, args: &[&str]) -> Result<Value> {
    let reply = link.call_within(TIME_MAX, args).await;
    reply.with_context(|| args.iter().take(3).copied().collect::<Vec<_>>().join(" "))
}

/// Sends a command whose reply is text.
pub async fn text(link: &mut Connection, args: &[&str]) -> Result<String> {
    let reply = call(link, args).await?;
    Ok(reply.as_str().context("not text")?.to_owned())
}

async fn all_ok(link: &mut Connection, pipeline: &Commands) -> Result<()> {
    for reply in link.pipeline(pipeline, TIME_MAX).await? {
        reply.into_result()?;
    }
    Ok(())
}
