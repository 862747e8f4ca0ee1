//! What steps need to reach the nodes, and the small questions that many of them ask.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use fleet::model::{Cluster, ClusterName, Fleet, NodeName};
use protocol::{
    Engine, NodeId, Value,
    cluster_text::{ClusterNodes, Info, LinkState, NodeRow, Role},
    resp::ServerError,
};
use tokio::{task::JoinSet, time::Instant};

use super::StepError;
use crate::{
    admin_client::{ClientError, Commands, DEADLINE, Login, Pool},
    engines::EngineBinary,
    node_files::{NODE_CONF, Place},
    secrets::OWN_USER,
    store::{self, Store},
};

/// What steps are done with. Clones share everything.
#[derive(Clone, Debug)]
pub struct Context {
    pub fleet: Arc<Fleet>,
    pub store: Arc<Store>,
    /// The server program of each cluster.
    pub engines: Arc<BTreeMap<ClusterName, EngineBinary>>,
    pub pool: Pool,
}

/// A node that has a directory.
#[derive(Clone, Debug)]
pub struct Member {
    pub name: NodeName,
    pub directory: PathBuf,
    pub place: Place,
    pub address: SocketAddr,
    pub login: Login,
}

/// What a node says of itself and its cluster at one moment.
#[derive(Clone, Debug)]
pub struct View {
    pub nodes: ClusterNodes,
    pub role: Role,
}

impl View {
    pub fn id(&self) -> NodeId {
        self.nodes.myself
    }

    pub fn is_primary(&self) -> bool {
        matches!(self.role, Role::Primary { .. })
    }

    /// Whom it replicates by its own table.
    pub fn primary(&self) -> Option<NodeId> {
        self.nodes.my_row().and_then(|row| row.primary)
    }

    /// A replica whose link stands and whose first copy is done.
    pub fn in_sync(&self) -> bool {
        matches!(self.role, Role::Replica { link: LinkState::Connected, .. })
    }

    pub fn owns_slots(&self) -> bool {
        self.nodes.my_row().is_some_and(|row| !row.slots.is_empty())
    }

    /// The row of a node that was properly met.
    pub fn met(&self, id: NodeId) -> Option<&NodeRow> {
        self.nodes.row(id).filter(|row| !row.flags.handshake && !row.flags.noaddr)
    }
}

impl Context {
    pub fn cluster(&self, name: &ClusterName) -> Result<&Cluster, StepError> {
        let unknown = || StepError::Unknown { what: format!("cluster {name}") };
        self.fleet.clusters.get(name).ok_or_else(unknown)
    }

    pub fn engine(&self, name: &ClusterName) -> Result<&EngineBinary, StepError> {
        let unknown = || StepError::Unknown { what: format!("an engine for {name}") };
        self.engines.get(name).ok_or_else(unknown)
    }

    pub fn login(&self, cluster: &ClusterName) -> Result<Login, StepError> {
        Ok(Login::own(self.store.secret(cluster, OWN_USER)?))
    }

    /// The node's directory as it stands.
    pub fn member(&self, node: &NodeName) -> Result<Member, StepError> {
        let directory = self.store.node_dir(node);
        let text = store::read(&directory.join(NODE_CONF))?;
        let place = text.as_deref().and_then(Place::parse);
        let place = place.ok_or_else(|| StepError::Stale(format!("{node} has no {NODE_CONF}")))?;
        let address = SocketAddr::new(place.address, place.ports.tcp);
        let login = self.login(&node.cluster)?;
        Ok(Member { name: node.clone(), directory, place, address, login })
    }

    /// Where the node's host is by the spec; where it was, if the spec doesn't name it any more.
    pub fn host_address(&self, member: &Member) -> IpAddr {
        let host = self.fleet.hosts.get(&member.place.host);
        host.map_or(member.place.address, |host| host.address)
    }

    /// All nodes of a cluster that have a directory.
    pub fn members(&self, cluster: &ClusterName) -> Result<Vec<Member>, StepError> {
        let names = self.store.nodes()?;
        names
            .iter()
            .filter(|name| name.cluster == *cluster)
            .map(|name| self.member(name))
            // A directory that is just being made has no file yet.
            .filter(|member| !matches!(member, Err(StepError::Stale(_))))
            .collect()
    }

    /// One command to a node, which may reach it twice. An error reply is [`StepError::Refused`].
    pub async fn call(&self, member: &Member, args: &[&str]) -> Result<Value, StepError> {
        let mut commands = Commands::new();
        commands.push(args);
        let login = Some(&member.login);
        let replies = self.pool.ask(member.address, login, DEADLINE, &commands).await;
        let reply = replies.map_err(|source| client(member, source))?.pop();
        reply.unwrap_or(Value::Null).into_result().map_err(|source| {
            let command = args.iter().take(2).copied().collect::<Vec<_>>().join(" ");
            StepError::Refused { node: member.name.clone(), command, source }
        })
    }

    /// Commands to a node in one write, which may reach it twice; the first error reply is
    /// [`StepError::Refused`].
    pub async fn call_all(&self, member: &Member, calls: &[Vec<String>]) -> Result<(), StepError> {
        let mut commands = Commands::new();
        for call in calls {
            commands.push(call);
        }
        let login = Some(&member.login);
        let replies = self.pool.ask(member.address, login, DEADLINE, &commands).await;
        let replies = replies.map_err(|source| client(member, source))?;
        for (reply, call) in replies.into_iter().zip(calls) {
            if let Value::Error(text) = reply {
                let command = call.iter().take(2).cloned().collect::<Vec<_>>().join(" ");
                let source = ServerError::parse(&text);
                return Err(StepError::Refused { node: member.name.clone(), command, source });
            }
        }
        Ok(())
    }

    /// What the node says.
    pub async fn view(&self, member: &Member) -> Result<View, StepError> {
        self.view_within(member, DEADLINE).await
    }

    /// [`Context::view`] with a deadline of its own.
    pub async fn view_within(
        &self,
        member: &Member,
        deadline: Duration,
    ) -> Result<View, StepError> {
        let mut commands = Commands::new();
        commands.push(["ROLE"]).push(["CLUSTER", "NODES"]);
        let (address, login) = (member.address, Some(&member.login));
        let replies = self.pool.ask(address, login, deadline, &commands).await;
        let replies = replies.map_err(|source| client(member, source))?;
        let view = || -> Result<View, ClientError> {
            let shape = |command, problem| ClientError::Shape { address, command, problem };
            for reply in &replies {
                if let Value::Error(text) = reply {
                    let source = ServerError::parse(text);
                    return Err(ClientError::Server { address, source });
                }
            }
            let (Some(role), Some(nodes)) = (replies.first(), replies.get(1)) else {
                return Err(shape("ROLE", "too few replies".to_owned()));
            };
            let role = Role::from_reply(role);
            let nodes = nodes.as_str().unwrap_or_default().parse::<ClusterNodes>();
            Ok(View {
                role: role.map_err(|error| shape("ROLE", error.to_string()))?,
                nodes: nodes.map_err(|error| shape("CLUSTER NODES", error.to_string()))?,
            })
        };
        view().map_err(|source| client(member, source))
    }

    /// The engine that the node's server is.
    pub async fn running(&self, member: &Member) -> Result<Engine, StepError> {
        let reply = self.call(member, &["INFO"]).await?;
        let info = Info::from_reply(&reply).unwrap_or_default();
        Engine::from_info(&info).map_err(|error| {
            let (address, problem) = (member.address, error.to_string());
            client(member, ClientError::Shape { address, command: "INFO", problem })
        })
    }

    /// The views of several nodes, asked at once; in the order of the members.
    pub async fn views(&self, members: &[Member]) -> Vec<Result<View, StepError>> {
        self.views_within(members, DEADLINE).await
    }

    /// [`Context::views`] with a deadline for each.
    pub async fn views_within(
        &self,
        members: &[Member],
        deadline: Duration,
    ) -> Vec<Result<View, StepError>> {
        let asked = members.iter().cloned().map(|member| {
            let context = self.clone();
            async move { context.view_within(&member, deadline).await }
        });
        together(asked).await
    }

    /// The nodes of a cluster that answer, with what they say.
    pub async fn answering(&self, cluster: &ClusterName) -> Result<Vec<(Member, View)>, StepError> {
        let members = self.members(cluster)?;
        let views = self.views_within(&members, Duration::from_secs(1)).await;
        let pairs = members.into_iter().zip(views);
        Ok(pairs.filter_map(|(member, view)| Some((member, view.ok()?))).collect())
    }
}

pub(super) fn client(member: &Member, source: ClientError) -> StepError {
    StepError::Client { node: member.name.clone(), source }
}

/// Runs futures at once, gives their outputs in the order they came in. Dropping it stops them.
pub(super) async fn together<T: Send + 'static>(
    futures: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = JoinSet::new();
    for (index, future) in futures.into_iter().enumerate() {
        tasks.spawn(async move { (index, future.await) });
    }
    let mut outputs = BTreeMap::new();
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok((index, output)) => {
                outputs.insert(index, output);
            }
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    outputs.into_values().collect()
}

/// Waiting for a condition: short pauses at first, longer ones later, up to a deadline.
pub(super) struct Wait {
    started: Instant,
    deadline: Duration,
    pause: Duration,
}

impl Wait {
    const FIRST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(50);

    pub fn new(deadline: Duration) -> Self {
        Self { started: Instant::now(), deadline, pause: Self::FIRST }
    }

    pub fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    /// Something moved: the deadline counts from now.
    pub fn restart(&mut self) {
        self.started = Instant::now();
    }

    /// A pause; an error naming what was waited for once the deadline has passed.
    pub async fn pause(&mut self, what: impl FnOnce() -> String) -> Result<(), StepError> {
        if self.waited() > self.deadline {
            return Err(StepError::Late { what: what(), waited: self.deadline });
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 3 / 2).min(Self::LONGEST);
        Ok(())
    }
}
