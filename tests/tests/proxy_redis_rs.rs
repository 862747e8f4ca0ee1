//! redis-rs and its usual idioms through the proxy: blocking and multiplexed connections, RESP2 and
//! RESP3, cluster mode. The same checks hold on a plain server, so what fails through the proxy is
//! its fault.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::Duration,
};

use redis::{
    AsyncCommands as _, AsyncConnectionConfig, Client, Commands, Connection, ErrorKind, PushInfo,
    PushKind, RedisError, RedisResult, Script, ServerErrorKind, Value,
    cluster::{ClusterClient, cluster_pipe},
    pipe, transaction,
};
use tests::{
    cluster::{RawCluster, Shape},
    engines::engine,
    proxy::Front,
    server::Server,
};

/// For every read; a check that hangs fails.
const REPLY_MAX: Duration = Duration::from_secs(20);

fn client(address: SocketAddr, protocol: &str) -> Client {
    Client::open(format!("redis://{address}/?protocol={protocol}")).unwrap()
}

fn open(address: SocketAddr, protocol: &str) -> Connection {
    let connection = client(address, protocol).get_connection().unwrap();
    connection.set_read_timeout(Some(REPLY_MAX)).unwrap();
    connection
}

/// What any connection does that asks and waits.
fn commands(connection: &mut impl Commands, prefix: &str) -> RedisResult<()> {
    let key = |name: &str| format!("{prefix}:{name}");
    let every: Vec<u8> = (0..=255).chain(*b"\r\n$5\r\n").collect();
    connection.set::<_, _, ()>(key("bytes"), &every)?;
    assert_eq!(connection.get::<_, Vec<u8>>(key("bytes"))?, every);
    assert_eq!(connection.get::<_, Option<String>>(key("none"))?, None);
    let large = vec![7_u8; 5_000_000];
    connection.set::<_, _, ()>(key("large"), &large)?;
    assert_eq!(connection.get::<_, Vec<u8>>(key("large"))?, large);
    assert_eq!(connection.del::<_, u32>(key("large"))?, 1);

    connection.set_ex::<_, _, ()>(key("count"), 41, 100)?;
    assert_eq!(connection.incr::<_, _, i64>(key("count"), 1)?, 42);
    assert!((1..=100).contains(&connection.ttl::<_, i64>(key("count"))?));
    assert!(!connection.set_nx::<_, _, bool>(key("count"), 1)?);

    let pairs: Vec<(String, u32)> =
        (0..100).map(|number| (key(&format!("many:{number}")), number)).collect();
    let names: Vec<&String> = pairs.iter().map(|(name, _)| name).collect();
    connection.mset::<_, _, ()>(&pairs)?;
    let found: Vec<u32> = connection.mget(&names)?;
    assert_eq!(found, (0..100).collect::<Vec<_>>());
    assert_eq!(connection.exists::<_, u32>(&names)?, 100);
    assert_eq!(connection.unlink::<_, u32>(&names)?, 100);

    connection.del::<_, ()>(&[key("h"), key("z"), key("l")])?;
    connection.hset_multiple::<_, _, _, ()>(key("h"), &[("a", 1), ("b", 2)])?;
    let hash: HashMap<String, i64> = connection.hgetall(key("h"))?;
    assert_eq!(hash, HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]));
    connection.zadd::<_, _, _, ()>(key("z"), "one", 1.5)?;
    let scored: Vec<(String, f64)> = connection.zrange_withscores(key("z"), 0, -1)?;
    assert_eq!(scored, [("one".to_owned(), 1.5)]);
    connection.rpush::<_, _, ()>(key("l"), &["x", "y"])?;
    assert_eq!(connection.lrange::<_, Vec<String>>(key("l"), 0, -1)?, ["x", "y"]);

    let error = connection.hget::<_, _, Value>(key("l"), "a").unwrap_err();
    assert_eq!(error.code(), Some("WRONGTYPE"));

    let script = Script::new("return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}");
    for name in ["first", "second", "third", "fourth"] {
        connection.set::<_, _, ()>(key(name), name)?;
        let said: Vec<String> = script.key(key(name)).arg("x").invoke(connection)?;
        assert_eq!(said, [key(name), "x".to_owned(), name.to_owned()]);
    }
    Ok(())
}

fn pipelines(connection: &mut Connection, prefix: &str) {
    let mut many = pipe();
    for number in 0..2_000_u32 {
        many.set(format!("{prefix}:pipe:{}", number % 97), number).ignore();
        many.get(format!("{prefix}:pipe:{}", number % 97));
    }
    let answers: Vec<u32> = many.query(connection).unwrap();
    assert_eq!(answers, (0..2_000).collect::<Vec<_>>());
}

fn transactions(connection: &mut Connection, other: &mut Connection, prefix: &str) {
    let key = format!("{{{prefix}:tx}}:a");
    let (two,): (u32,) =
        pipe().atomic().set(&key, 1).ignore().incr(&key, 1).query(connection).unwrap();
    assert_eq!(two, 2);
    // The first try is in vain: somebody else was faster.
    let mut tries = 0;
    let (sum,): (u32,) = transaction(connection, &[&key], |connection, pipe| {
        let seen: u32 = connection.get(&key)?;
        tries += 1;
        if tries == 1 {
            other.set::<_, _, ()>(&key, 10)?;
        }
        pipe.set(&key, seen + 1).ignore().get(&key).query(connection)
    })
    .unwrap();
    assert_eq!((sum, tries), (11, 2));
}

fn scans(connection: &mut Connection, prefix: &str) {
    let keys: BTreeSet<String> = (0..300).map(|number| format!("{prefix}:scan:{number}")).collect();
    for key in &keys {
        connection.set::<_, _, ()>(key, 1).unwrap();
    }
    let found: Result<Vec<String>, RedisError> =
        connection.scan_match(format!("{prefix}:scan:*")).unwrap().collect();
    let found = found.unwrap();
    assert_eq!(found.len(), keys.len());
    assert_eq!(BTreeSet::from_iter(found), keys);
}

fn blocks(connection: &mut Connection, mut other: Connection, prefix: &str) {
    let key = format!("{prefix}:queue");
    let nothing: Option<(String, String)> = connection.blpop(&key, 0.1).unwrap();
    assert_eq!(nothing, None);
    let (pushed, is_pushed) = mpsc::channel();
    let pusher = {
        let key = key.clone();
        thread::spawn(move || {
            is_pushed.recv().unwrap();
            other.rpush::<_, _, ()>(key, "job").unwrap();
        })
    };
    // Whether it waits or finds something: it gets what was pushed after it was sent.
    let request = redis::cmd("BLPOP").arg(&key).arg(10).get_packed_command();
    connection.send_packed_command(&request).unwrap();
    pushed.send(()).unwrap();
    let got: (String, String) =
        redis::from_redis_value(connection.recv_response().unwrap()).unwrap();
    assert_eq!(got, (key, "job".to_owned()));
    pusher.join().unwrap();
}

fn subscribes(listener: &mut Connection, other: &mut Connection, prefix: &str) {
    let (news, pattern) = (format!("{prefix}:news"), format!("{prefix}:p*"));
    {
        let mut channels = listener.as_pubsub();
        channels.subscribe(&news).unwrap();
        channels.psubscribe(&pattern).unwrap();
        // Its answer counts the listeners of one node.
        other.publish::<_, _, ()>(&news, "hello").unwrap();
        let message = channels.get_message().unwrap();
        assert_eq!(message.get_payload::<String>().unwrap(), "hello");
        other.publish::<_, _, ()>(format!("{prefix}:poem"), "again").unwrap();
        let message = channels.get_message().unwrap();
        assert_eq!(message.get_pattern::<String>().unwrap(), pattern);
        assert_eq!(message.get_payload::<String>().unwrap(), "again");
    }
    // Its end has unsubscribed: the connection is an ordinary one again.
    assert_eq!(listener.get::<_, Option<String>>(format!("{prefix}:none")).unwrap(), None);
}

/// Every idiom over connections that wait for each reply.
fn blocking_connections(address: SocketAddr, protocol: &str) {
    let prefix = format!("rs:{protocol}");
    let connection = &mut open(address, protocol);
    let other = &mut open(address, protocol);
    commands(connection, &prefix).unwrap();
    pipelines(connection, &prefix);
    transactions(connection, other, &prefix);
    scans(connection, &prefix);
    blocks(connection, open(address, protocol), &prefix);
    subscribes(connection, other, &prefix);
    let unknown = redis::cmd("NOSUCHCOMMAND").query::<Value>(connection).unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Server(ServerErrorKind::ResponseError));
}

/// Many tasks over one connection, and pushes beside their replies.
async fn multiplexed(address: SocketAddr) {
    let (pushes, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let config =
        AsyncConnectionConfig::new().set_push_sender(pushes).set_response_timeout(Some(REPLY_MAX));
    let client = client(address, "resp3");
    let opened = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut connection = opened.unwrap();
    connection.subscribe("rs:news").await.unwrap();

    let mut tasks = Vec::new();
    for number in 0..50_u32 {
        let mut connection = connection.clone();
        tasks.push(tokio::spawn(async move {
            let key = format!("rs:task:{number}");
            for turn in 0..40_u32 {
                connection.set::<_, _, ()>(&key, turn).await.unwrap();
                assert_eq!(connection.get::<_, u32>(&key).await.unwrap(), turn);
            }
            let both: (u32, Option<String>) = pipe()
                .atomic()
                .incr(&key, 1)
                .set(format!("{{{key}}}"), "x")
                .ignore()
                .get(format!("{{{key}}}"))
                .query_async(&mut connection)
                .await
                .unwrap();
            assert_eq!(both, (40, Some("x".to_owned())));
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    connection.publish::<_, _, ()>("rs:news", "hello").await.unwrap();
    let said = async {
        loop {
            let PushInfo { kind, data } = heard.recv().await.unwrap();
            if kind == PushKind::Message {
                return data;
            }
        }
    };
    let said = tokio::time::timeout(REPLY_MAX, said).await.unwrap();
    let words: Vec<String> =
        said.into_iter().map(|word| redis::from_redis_value(word).unwrap()).collect();
    assert_eq!(words, ["rs:news", "hello"]);

    let mut scanned = BTreeSet::new();
    let mut pages = connection.scan_match::<_, String>("rs:task:*").await.unwrap();
    while let Some(key) = pages.next_item().await {
        scanned.insert(key.unwrap());
    }
    assert_eq!(scanned.len(), 50);
}

/// To the library the proxy is a cluster whose slots are all on one node.
fn cluster_mode(address: SocketAddr) {
    let client = ClusterClient::new([format!("redis://{address}/")]).unwrap();
    let mut connection = client.get_connection().unwrap();
    connection.set_read_timeout(Some(REPLY_MAX)).unwrap();
    commands(&mut connection, "rs:cluster").unwrap();
    let mut many = cluster_pipe();
    for number in 0..500_u32 {
        many.set(format!("rs:cluster:pipe:{number}"), number).ignore();
        many.get(format!("rs:cluster:pipe:{number}"));
    }
    let answers: Vec<u32> = many.query(&mut connection).unwrap();
    assert_eq!(answers, (0..500).collect::<Vec<_>>());
}

async fn cluster_mode_multiplexed(address: SocketAddr) {
    let client = ClusterClient::builder([format!("redis://{address}/?protocol=resp3")])
        .response_timeout(REPLY_MAX)
        .build()
        .unwrap();
    let connection = client.get_async_connection().await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..50_u32 {
        let mut connection = connection.clone();
        tasks.push(tokio::spawn(async move {
            let key = format!("rs:cluster:task:{number}");
            for turn in 0..40_u32 {
                connection.set::<_, _, ()>(&key, turn).await.unwrap();
                assert_eq!(connection.get::<_, u32>(&key).await.unwrap(), turn);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut connection = connection;
    let keys: Vec<String> = (0..50).map(|number| format!("rs:cluster:task:{number}")).collect();
    assert_eq!(connection.mget::<_, Vec<u32>>(&keys).await.unwrap(), [39; 50]);
}

async fn blocking(check: impl FnOnce() + Send + 'static) {
    tokio::task::spawn_blocking(check).await.unwrap();
}

#[tokio::test]
async fn redis_rs_on_a_plain_server() {
    let server = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    let address = server.address;
    blocking(move || blocking_connections(address, "resp2")).await;
    blocking(move || blocking_connections(address, "resp3")).await;
    multiplexed(address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_rs_through_the_proxy() {
    let binary = engine("redis", "7.0");
    let shape = Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let cluster = RawCluster::start(&shape).await.unwrap();
    let front = Front::start(&cluster.addresses(), 1).unwrap();
    let address = front.address;
    blocking(move || blocking_connections(address, "resp2")).await;
    blocking(move || blocking_connections(address, "resp3")).await;
    multiplexed(address).await;
    blocking(move || cluster_mode(address)).await;
    cluster_mode_multiplexed(address).await;
}
