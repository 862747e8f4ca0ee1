//! keyfleet in twemproxy's place: same commands, same answers, same servers.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use protocol::Value;
use tests::{
    differences::{self, DIFFERENCES, PREPARED, answer, fits},
    differential::{self, Wire},
    server::Server,
    twemproxy::{
        DISTRIBUTIONS, Directory, HASHES, Pool, Proxy, Twins, compare, free_addresses, servers,
    },
};

/// What the comparison itself is worth: twemproxy beside twemproxy shows no difference.
#[tokio::test]
async fn twemproxy_is_like_itself() {
    let pool = Pool { hash_tag: Some("{}"), weights: &[1, 2, 1], ..Pool::default() };
    let twins = Twins::start(&[pool]).await.unwrap();
    let _left = Proxy::nutcracker(&twins.files[0], &twins.side(0)).await.unwrap();
    let _right = Proxy::nutcracker(&twins.files[1], &twins.side(1)).await.unwrap();
    differential::compare(twins.listen[0], &twins.backends(), 2_000, 1).unwrap();
}

#[tokio::test]
async fn keyfleet_is_like_twemproxy() {
    compare(10_000, 1).await.unwrap();
}

/// The same servers behind both, without names, so that places in the ring come from addresses:
/// what is written through one is read through the other.
#[tokio::test]
async fn each_finds_what_the_other_wrote() {
    let servers = servers(4).await.unwrap();
    let all: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    let mut pools = Vec::new();
    for hash in HASHES {
        for distribution in DISTRIBUTIONS.into_iter().filter(|each| *each != "random") {
            let weights = &[1, 3, 1, 2];
            pools.push(Pool { hash, distribution, weights, named: false, ..Pool::default() });
        }
    }
    let directory = Directory::new().unwrap();
    let mut sides = Vec::new();
    for side in 0..2 {
        let listen = free_addresses(pools.len()).unwrap();
        let text: String = pools
            .iter()
            .zip(&listen)
            .enumerate()
            .map(|(number, (pool, listen))| pool.text(&format!("pool{number}"), *listen, &all))
            .collect();
        let file = directory.write(&format!("{side}.yml"), &text).unwrap();
        let proxy = match side {
            0 => Proxy::nutcracker(&file, &listen).await.unwrap(),
            _ => Proxy::keyfleet(&file, &listen).await.unwrap(),
        };
        sides.push((proxy, listen));
    }
    for (number, pool) in pools.iter().enumerate() {
        let mut wires: Vec<Wire> =
            sides.iter().map(|(_, listen)| Wire::open(listen[number]).unwrap()).collect();
        for key in 0..100 {
            let (writer, reader) = (key % 2, 1 - key % 2);
            let name = format!("{number}:{key}:{}", "x".repeat(key));
            let set = wires[writer].call(&[b"SET", name.as_bytes(), b"here"]).unwrap();
            assert_eq!(set, Value::Simple("OK".into()));
            let got = wires[reader].call(&[b"GET", name.as_bytes()]).unwrap();
            assert_eq!(got.as_str(), Some("here"), "{pool:?}: {name}");
        }
    }
}

/// Chance decides, but every server gets a share.
#[tokio::test]
async fn a_random_distribution_uses_all_servers() {
    let pool = Pool { distribution: "random", ..Pool::default() };
    let twins = Twins::start(&[pool]).await.unwrap();
    let _keyfleet = Proxy::keyfleet(&twins.files[1], &twins.side(1)).await.unwrap();
    let mut wire = Wire::open(twins.listen[0][1]).unwrap();
    for number in 0..300 {
        wire.call(&[b"SET", number.to_string().as_bytes(), b"1"]).unwrap();
    }
    let count = |server: &Server| {
        Wire::open(server.address).unwrap().call(&[b"DBSIZE"]).unwrap().as_integer().unwrap()
    };
    let counts: Vec<i64> = twins.servers.iter().map(|[_, server]| count(server)).collect();
    assert_eq!(counts.iter().sum::<i64>(), 300);
    assert!(counts.iter().all(|count| (50..150).contains(count)), "{counts:?}");
}

/// Each wanted difference is one, and is the one that is told.
#[tokio::test]
async fn differences_are_what_is_told() {
    use differences::Pool as Kind;
    let password: &[&str] = &["redis_auth: secret"];
    let kinds = [
        (Kind::Open, &[] as &[&str]),
        (Kind::Locked, password),
        (Kind::Full, &[]),
        (Kind::Halved, &[]),
    ];
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (kind, more) in kinds {
        let pool = Pool { hash_tag: Some("{}"), more, ..Pool::default() };
        let mut twins = Twins::start(&[pool]).await.unwrap();
        let _twemproxy = Proxy::nutcracker(&twins.files[0], &twins.side(0)).await.unwrap();
        let _keyfleet = Proxy::keyfleet(&twins.files[1], &twins.side(1)).await.unwrap();
        if kind == Kind::Open {
            for listen in twins.listen[0] {
                for line in PREPARED {
                    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
                    let done = Wire::open(listen).unwrap().call(&words).unwrap();
                    assert!(!matches!(done, Value::Error(_)), "{line}: {done:?}");
                }
            }
        }
        for server in twins.servers.iter().flatten().filter(|_| kind == Kind::Full) {
            let mut direct = Wire::open(server.address).unwrap();
            direct.call(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).unwrap();
        }
        if kind == Kind::Halved {
            for server in &mut twins.servers[1] {
                server.kill().unwrap();
            }
        }
        for row in DIFFERENCES.iter().filter(|row| row.pool == kind) {
            let [theirs, ours] = twins.listen[0]
                .map(|at| answer(&mut Wire::open(at).unwrap(), row.request).unwrap());
            if theirs == ours || !fits(&theirs, row.twemproxy) || !fits(&ours, row.keyfleet) {
                wrong.push(format!("{row:?}:\n  {theirs}\n  {ours}"));
            }
            assert!(seen.insert(format!("{row:?}")), "{row:?} is there twice");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen.len(), DIFFERENCES.len());
}

#[test]
fn page_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/twemproxy.md");
    let page = fs::read_to_string(path).unwrap_or_default();
    assert!(page == differences::page(), "run `cargo xtask differential --page`");
}
