//! `--connect HOST:PORT`: looking at a cluster that keyfleet did not make. Only reads.

use std::{net::SocketAddr, time::Duration};

use fleet::{
    model::{Cluster, ClusterName, Fleet, Host, HostId, NodeName, Zone},
    observed::{Observed, Role},
    overview::Overview,
};
use tokio::{net::lookup_host, time::timeout};

use crate::{
    admin_client::Login,
    errors::Failure,
    observe::{ForeignError, observe_foreign},
    secrets::Secret,
};

const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

/// The variables that redis-cli and valkey-cli read the password from too, and the user's name.
pub const PASSWORD_VARIABLES: [&str; 2] = ["REDISCLI_AUTH", "VALKEYCLI_AUTH"];

/// The cluster that the node at this address belongs to.
pub async fn observe(address: &str) -> Result<Observed, Failure> {
    let seed = resolve(address).await?;
    let login = login();
    observe_foreign(seed, login.as_ref()).await.map_err(|error| {
        let hint = match &error {
            ForeignError::Client(client)
                if matches!(client.code(), Some("NOAUTH" | "WRONGPASS")) =>
            {
                "give the password of the user `default`: export REDISCLI_AUTH=…".to_owned()
            }
            ForeignError::Client(_) => {
                format!("is it there? redis-cli -h {} -p {} ping", seed.ip(), seed.port())
            }
            ForeignError::NoCluster { .. } => {
                format!(
                    "is it a cluster? redis-cli -h {} -p {} cluster info",
                    seed.ip(),
                    seed.port()
                )
            }
        };
        let mut failure = Failure::user(format!("cannot look at {address}"));
        failure = failure.because(&error);
        failure.hint(hint)
    })
}

/// The user `default` with the password that the environment gives.
pub fn login() -> Option<Login> {
    let password = PASSWORD_VARIABLES.iter().find_map(|name| std::env::var(name).ok());
    password
        .filter(|password| !password.is_empty())
        .map(|password| Login { user: "default".to_owned(), password: Secret::new(password) })
}

/// The socket address of `HOST:PORT`; port 6379 where none is said.
pub async fn resolve(address: &str) -> Result<SocketAddr, Failure> {
    let whole = if address.contains(':') { address.to_owned() } else { format!("{address}:6379") };
    let wrong = || Failure::user(format!("no address: {address:?}")).hint("such as 127.0.0.1:7001");
    match timeout(LOOKUP_DEADLINE, lookup_host(whole)).await {
        Ok(Ok(mut found)) => found.next().ok_or_else(wrong),
        Ok(Err(error)) => Err(wrong().because(&error)),
        Err(_) => Err(wrong()),
    }
}

/// The file's only cluster and the observed one as the same: what would have to change for that.
/// Hosts are the addresses that the cluster's nodes have.
pub fn adopt(fleet: &Fleet, observed: Observed) -> Result<(Fleet, Observed), Failure> {
    let mut wanted = fleet.clusters.values();
    let (Some(cluster), None) = (wanted.next(), wanted.next()) else {
        return Err(Failure::user("the file has several clusters, and --connect looks at one")
            .hint("name a file with that cluster alone: --file one.yaml"));
    };
    let name = cluster.name.clone();
    let mut observed = observed;
    observed.nodes = std::mem::take(&mut observed.nodes)
        .into_iter()
        .map(|(node, view)| (NodeName::new(name.clone(), node.number), view))
        .collect();
    let hosts: Vec<HostId> = observed.hosts.keys().cloned().collect();
    let mut fleet = fleet.clone();
    fleet.hosts = observed
        .nodes
        .values()
        .map(|view| {
            let id = view.host.clone();
            let zone = Zone::new(id.as_str());
            (id.clone(), Host { id, address: view.address, zone, memory: None })
        })
        .collect();
    let cluster = Cluster { hosts, stopped: false, ..cluster.clone() };
    fleet.clusters.insert(name, cluster);
    Ok((fleet, observed))
}

/// Which nodes of a cluster are primaries and answer.
pub fn primaries(observed: &Observed, cluster: &ClusterName) -> Vec<NodeName> {
    let overview = Overview::new(observed, cluster);
    let up = |name: &&NodeName| {
        let view = observed.nodes.get(*name).and_then(|view| view.up());
        view.is_some_and(|up| up.role == Role::Primary)
    };
    overview.shards.iter().filter_map(|shard| shard.primary.as_ref()).filter(up).cloned().collect()
}
