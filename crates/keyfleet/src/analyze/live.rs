//! What live servers hold, asked of them key by key.
//!
//! SCAN names every key, and each is asked for its type, packing, size (MEMORY USAGE, which looks at
//! five elements) and end. Of each shard a replica that is in sync is asked, the primary where there
//! is none, and left alone half of the time. Nothing is written, and no key counts as used: elements
//! are asked for only where that doesn't count. No fork, no copy, as a snapshot would need.
//!
//! Keys that come and go meanwhile may be counted or not; SCAN may name one twice.
//!
//! How hot keys are only primaries know. The first [`HOT_SAMPLE`] keys that SCAN names are asked.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use protocol::{ClusterNodes, Info, NodeId, Value};
use serde::Serialize;
use tokio::time::sleep;

use super::{Report, Sum, Survey, shown};
use crate::{
    admin_client::{ClientError, Commands, Connection, DEADLINE, Login},
    mover::load::Target,
};

/// Keys that SCAN names at a time.
const SCAN_COUNT: &str = "500";

/// Keys of one primary that are asked how hot they are.
const HOT_SAMPLE: usize = 10_000;

/// Hot keys that are told.
const HOTTEST: usize = 20;

/// How long a batch of answers may take.
const BATCH_TIME_MAX: Duration = Duration::from_secs(60);

/// Which servers were asked, and what only they know.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Live {
    pub nodes: Vec<Asked>,
    pub hot: Hot,
}

/// A server that was asked for its keys.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    pub address: SocketAddr,
    pub replica: bool,
    pub keys: u64,
}

/// The hottest keys of a sample.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Hot {
    /// Keys that were asked.
    pub sampled: u64,
    /// Hottest first: by frequency where the engine counts it, else by what was used last.
    pub keys: Vec<HotKey>,
}

/// A key, and how hot it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct HotKey {
    /// 0 to 255, logarithmic (OBJECT FREQ): where `maxmemory-policy` is one of the LFU policies.
    pub frequency: Option<u64>,
    /// Seconds since it was last used (OBJECT IDLETIME): everywhere else. It says nothing of how often.
    pub idle_seconds: Option<u64>,
    pub key: String,
}

/// A primary and its replicas.
struct Shard {
    primary: SocketAddr,
    replicas: Vec<SocketAddr>,
}

/// Asks the servers. `shards`: how many the keys would be in; as many as there are where None.
/// `walked` counts keys meanwhile.
pub async fn run(
    target: &Target,
    login: Option<&Login>,
    shards: Option<usize>,
    walked: &AtomicU64,
) -> Result<Report, ClientError> {
    let mut survey = Survey::new();
    let mut live = Live::default();
    let found = find(target, login).await?;
    for shard in &found {
        let (mut link, replica) = pick(shard, login).await?;
        let keys = walk(&mut link, replica, &mut survey, walked).await?;
        live.nodes.push(Asked { address: link.address(), replica, keys });
        let mut link = Connection::open(shard.primary, login, DEADLINE).await?;
        heat(&mut link, &mut live.hot).await?;
    }
    let files = live.nodes.iter().map(|node| node.address.to_string()).collect();
    let report = survey.report(files, shards.unwrap_or(found.len()));
    Ok(Report { live: Some(live), ..report })
}

async fn find(target: &Target, login: Option<&Login>) -> Result<Vec<Shard>, ClientError> {
    let seeds = match target {
        Target::Server(address) => {
            return Ok(vec![Shard { primary: *address, replicas: Vec::new() }]);
        }
        Target::Cluster(seeds) => seeds,
    };
    let mut last = ClientError::Refused { address: SocketAddr::from(([0, 0, 0, 0], 0)) };
    for seed in seeds {
        match nodes(*seed, login).await {
            Ok(view) => return Ok(of(&view, seed.ip())),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn nodes(address: SocketAddr, login: Option<&Login>) -> Result<ClusterNodes, ClientError> {
    let mut link = Connection::open(address, login, DEADLINE).await?;
    let reply = link.call(["CLUSTER", "NODES"]).await?;
    let text = reply.as_str().unwrap_or_default();
    text.parse().map_err(|error: protocol::cluster_text::NodesError| ClientError::Shape {
        address,
        command: "CLUSTER NODES",
        problem: error.to_string(),
    })
}

/// The shards that own slots.
fn of(view: &ClusterNodes, asked: IpAddr) -> Vec<Shard> {
    let mut shards: BTreeMap<NodeId, Shard> = BTreeMap::new();
    let address = |ip: &str, port| {
        let ip = if ip.is_empty() { Some(asked) } else { ip.parse().ok() };
        ip.map(|ip| SocketAddr::new(ip, port))
    };
    for row in view.rows.iter().filter(|row| row.flags.primary && !row.slots.is_empty()) {
        if let Some(primary) = address(&row.ip, row.port) {
            shards.insert(row.id, Shard { primary, replicas: Vec::new() });
        }
    }
    for row in view.rows.iter().filter(|row| row.link_up || row.flags.myself) {
        let shard = row.primary.and_then(|primary| shards.get_mut(&primary));
        if let (Some(shard), Some(replica)) = (shard, address(&row.ip, row.port)) {
            shard.replicas.push(replica);
        }
    }
    shards.into_values().collect()
}

/// A connection to who is asked for the shard's keys, and whether that is a replica.
async fn pick(shard: &Shard, login: Option<&Login>) -> Result<(Connection, bool), ClientError> {
    for replica in &shard.replicas {
        let Ok(mut link) = Connection::open(*replica, login, DEADLINE).await else { continue };
        let Ok(info) = link.call(["INFO", "replication"]).await else { continue };
        let info = Info::parse(info.as_str().unwrap_or_default());
        if info.get("master_link_status") == Some("up") && link.call(["READONLY"]).await.is_ok() {
            return Ok((link, true));
        }
    }
    Ok((Connection::open(shard.primary, login, DEADLINE).await?, false))
}

/// Looks at every key of a server; how many that were.
async fn walk(
    link: &mut Connection,
    replica: bool,
    survey: &mut Survey,
    walked: &AtomicU64,
) -> Result<u64, ClientError> {
    let info = link.call(["INFO"]).await?;
    let info = Info::parse(info.as_str().unwrap_or_default());
    let single = info.get("cluster_enabled") != Some("1");
    // From 7.2 on a connection may ask without being noticed. What a replica notices is its own.
    let unnoticed = link.call(["CLIENT", "NO-TOUCH", "ON"]).await.is_ok() || replica;
    let mut count = 0;
    for db in info.databases() {
        if single {
            link.call(["SELECT", &db.to_string()]).await?;
        }
        let mut cursor = b"0".to_vec();
        loop {
            let started = Instant::now();
            let (next, keys) = scan(link, &cursor).await?;
            count += look(link, u64::from(db), &keys, unnoticed, survey).await?;
            walked.fetch_add(keys.len() as u64, Ordering::Relaxed);
            if next == b"0" {
                break;
            }
            cursor = next;
            sleep(started.elapsed()).await;
        }
    }
    Ok(count)
}

/// The next keys that SCAN names, and where it goes on.
async fn scan(
    link: &mut Connection,
    cursor: &[u8],
) -> Result<(Vec<u8>, Vec<Arc<[u8]>>), ClientError> {
    let words: [&[u8]; 4] = [b"SCAN", cursor, b"COUNT", SCAN_COUNT.as_bytes()];
    let reply = link.call_within(BATCH_TIME_MAX, words).await?;
    let Some([next, keys]) = reply.as_array() else {
        let (address, problem) = (link.address(), "not a cursor and keys".to_owned());
        return Err(ClientError::Shape { address, command: "SCAN", problem });
    };
    let keys = keys.as_array().unwrap_or_default();
    let keys = keys.iter().filter_map(Value::as_bytes).map(Arc::from).collect();
    Ok((next.as_bytes().unwrap_or(b"0").to_vec(), keys))
}

/// Asks for these keys; how many are there.
async fn look(
    link: &mut Connection,
    db: u64,
    keys: &[Arc<[u8]>],
    unnoticed: bool,
    survey: &mut Survey,
) -> Result<u64, ClientError> {
    let mut commands = Commands::new();
    for key in keys {
        commands.push([b"TYPE".as_slice(), key]);
        commands.push([b"OBJECT".as_slice(), b"ENCODING", key]);
        commands.push([b"PTTL".as_slice(), key]);
        commands.push([b"MEMORY".as_slice(), b"USAGE", key, b"SAMPLES", b"5"]);
    }
    let mut found = Vec::new();
    let answers = link.pipeline(&commands, BATCH_TIME_MAX).await?;
    for (key, answers) in keys.iter().zip(answers.chunks_exact(4)) {
        let [data_type, encoding, left, memory] = answers else { continue };
        // It may be gone by now.
        let (Some(data_type), Some(encoding)) = (data_type.as_str(), encoding.as_str()) else {
            continue;
        };
        let Some(memory_bytes) = memory.as_integer().and_then(|bytes| u64::try_from(bytes).ok())
        else {
            continue;
        };
        let left_ms = left.as_integer().and_then(|left| u64::try_from(left).ok());
        found.push((key, data_type.to_owned(), encoding.to_owned(), left_ms, memory_bytes));
    }
    let mut commands = Commands::new();
    for (key, data_type, ..) in found.iter().filter(|(_, name, ..)| unnoticed && name != "string") {
        commands.push([length_of(data_type).as_bytes(), key]);
    }
    let lengths = link.pipeline(&commands, BATCH_TIME_MAX).await?;
    let mut lengths = lengths.into_iter();
    let count = found.len() as u64;
    for (key, data_type, encoding, left_ms, memory_bytes) in found {
        let elements = match data_type.as_str() {
            "string" => Some(1),
            _ => lengths.next().and_then(|length| u64::try_from(length.as_integer()?).ok()),
        };
        let elements = elements.unwrap_or_default();
        let sum = Sum { keys: 1, file_bytes: 0, memory_bytes, elements };
        survey.count(key, db, &data_type, left_ms, sum);
        survey.told.entry((data_type, encoding)).or_default().add(sum);
    }
    Ok(count)
}

/// The command that tells how many elements a value has.
fn length_of(data_type: &str) -> &'static str {
    match data_type {
        "list" => "LLEN",
        "set" => "SCARD",
        "zset" => "ZCARD",
        "hash" => "HLEN",
        "stream" => "XLEN",
        // Answered for every type, and no number for those that have no elements.
        _ => "TYPE",
    }
}

/// Adds the hottest keys of a primary.
async fn heat(link: &mut Connection, hot: &mut Hot) -> Result<(), ClientError> {
    let info = link.call(["INFO", "memory"]).await?;
    let info = Info::parse(info.as_str().unwrap_or_default());
    let counts = info.get("maxmemory_policy").is_some_and(|policy| policy.ends_with("lfu"));
    let question: &[u8] = if counts { b"FREQ" } else { b"IDLETIME" };
    let (mut cursor, mut sampled) = (b"0".to_vec(), 0);
    while sampled < HOT_SAMPLE {
        let started = Instant::now();
        let (next, keys) = scan(link, &cursor).await?;
        let mut commands = Commands::new();
        for key in &keys {
            commands.push([b"OBJECT".as_slice(), question, key]);
        }
        let answers = link.pipeline(&commands, BATCH_TIME_MAX).await?;
        for (key, answer) in keys.iter().zip(answers) {
            let Some(number) = answer.as_integer().and_then(|number| u64::try_from(number).ok())
            else {
                continue;
            };
            let (frequency, idle_seconds) =
                if counts { (Some(number), None) } else { (None, Some(number)) };
            hot.keys.push(HotKey { frequency, idle_seconds, key: shown(key) });
        }
        hot.keys.sort_by(|one, two| {
            two.frequency
                .cmp(&one.frequency)
                .then(one.idle_seconds.cmp(&two.idle_seconds))
                .then_with(|| one.key.cmp(&two.key))
        });
        hot.keys.truncate(HOTTEST);
        sampled += keys.len();
        if next == b"0" {
            break;
        }
        cursor = next;
        sleep(started.elapsed()).await;
    }
    hot.sampled += sampled as u64;
    Ok(())
}
