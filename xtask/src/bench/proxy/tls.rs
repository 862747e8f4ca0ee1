//! Clients that speak TLS: what a request costs, beside plain ones, beside haproxy before nutcracker,
//! and what a server saves that needn't speak TLS itself; then what a handshake costs.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use protocol::Value;
use rcgen::generate_simple_self_signed;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, Stream,
    client::Resumption,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName},
};
use tests::{
    cluster::{RawCluster, Shape},
    differential::Wire,
    engines::engine,
};

use super::{
    Options,
    closed_loop::{GET_P1, Load, SET_P16, in_turn, run},
    rig::{Process, Proxy, Rig, cpu_nanos, loopback, program, write},
};
use crate::{
    bench::{Goal, Outcome, median},
    packages,
};

const NAME: &str = "localhost";
const HANDSHAKES: u32 = 1_500;
const IDLE: usize = 3_000;
const TIME_MAX: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(20);
/// redis-benchmark's: speak TLS, to whomever.
const TLS: &[&str] = &["--tls", "--insecure"];

/// A certificate that is its own root, in files too.
struct Certificate {
    der: CertificateDer<'static>,
    public: String,
    key: String,
    both: String,
}

/// keyfleet with a plain and a TLS address.
struct Ours {
    process: Process,
    plain: u16,
    tls: u16,
}

/// Whom to ask how, and whose CPU counts.
struct Way {
    name: &'static str,
    port: u16,
    options: &'static [&'static str],
    pids: Vec<u32>,
}

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    let certificate = certificate(rig)?;
    let binary = engine("redis", "7.0");
    let shape = Shape { server: &binary.server, primaries: 3, replicas: 0, spare: 0, config: &[] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = runtime.block_on(RawCluster::start(&shape))?;
    let ours = ours(rig, *cluster.addresses().first().context("no node")?, &certificate)?;
    let peers = match packages::need(&[("haproxy", "haproxy")]) {
        Ok(()) => {
            let nutcracker = rig.nutcracker()?;
            Some((haproxy(rig, nutcracker.port, &certificate)?, nutcracker))
        }
        Err(error) => {
            println!("tls          no haproxy to compare with: {error:#}");
            None
        }
    };
    requests(options, &ours, peers.as_ref(), outcome)?;
    handshakes(&certificate, &ours, peers.as_ref(), outcome)?;
    idle(&certificate, &ours, outcome)?;
    offload(options, rig, &certificate, outcome)
}

fn certificate(rig: &Rig) -> Result<Certificate> {
    let made = generate_simple_self_signed([NAME.to_owned()])?;
    let (text, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    Ok(Certificate {
        der: made.cert.der().clone(),
        public: write(&rig.directory, "certificate.pem", &text)?,
        key: write(&rig.directory, "key.pem", &key)?,
        both: write(&rig.directory, "both.pem", &format!("{text}{key}"))?,
    })
}

fn ours(rig: &mut Rig, seed: SocketAddr, certificate: &Certificate) -> Result<Ours> {
    let (plain, tls) = (rig.port()?, rig.port()?);
    let mut command = program();
    command.args(["--connect", &seed.to_string(), "--listen", &loopback(plain).to_string()]);
    command.args(["--tls-listen", &loopback(tls).to_string()]);
    command.args(["--tls-cert", &certificate.public, "--tls-key", &certificate.key]);
    Ok(Ours { process: rig.process(&mut command, tls)?, plain, tls })
}

fn haproxy(rig: &mut Rig, backend: u16, certificate: &Certificate) -> Result<Proxy> {
    let port = rig.port()?;
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
         timeout client 1m\n  timeout server 1m\nfrontend clients\n  bind 127.0.0.1:{port} ssl crt {}\n  \
         default_backend ring\nbackend ring\n  server nutcracker 127.0.0.1:{backend}\n",
        certificate.both
    );
    let file = write(&rig.directory, "haproxy.cfg", &text)?;
    let mut command = Command::new("haproxy");
    let process = rig.process(command.args(["-db", "-f", &file]), port)?;
    Ok(Proxy { name: "haproxy", process, port })
}

/// Plain, with TLS, and today's way in turn.
fn requests(
    options: &Options,
    ours: &Ours,
    peers: Option<&(Proxy, Proxy)>,
    outcome: &mut Outcome,
) -> Result<()> {
    let own = vec![ours.process.id()];
    let mut ways = vec![
        Way { name: "plain", port: ours.plain, options: &[], pids: own.clone() },
        Way { name: "tls", port: ours.tls, options: TLS, pids: own },
    ];
    if let Some((haproxy, nutcracker)) = peers {
        let pids = vec![haproxy.process.id(), nutcracker.process.id()];
        ways.push(Way { name: "haproxy + nutcracker", port: haproxy.port, options: TLS, pids });
    }
    for way in &ways {
        run(way.port, &SET_P16, 0.5, way.options)?;
    }
    let micros = micros(options, &ways, &GET_P1)?;
    for (way, values) in ways.iter().zip(&micros) {
        outcome.figure(format!("client TLS P1 us {}", way.name), median(values));
        println!("tls          {:<22} {:>7.2} us a request", way.name, median(values));
    }
    let [plain, tls, rest @ ..] = &micros[..] else { return Ok(()) };
    let goal = "client TLS P1, times the plain proxy's CPU";
    outcome.goal(Goal::at_most(goal, 1.6, ratio(tls, plain)));
    if let [peer] = rest {
        let goal = "client TLS P1, times haproxy's and nutcracker's CPU";
        outcome.goal(Goal::at_most(goal, 0.5, ratio(tls, peer)));
    }
    Ok(())
}

/// CPU time for a request on each way, by rounds.
fn micros(options: &Options, ways: &[Way], load: &Load) -> Result<Vec<Vec<f64>>> {
    let mut all = vec![Vec::new(); ways.len()];
    for round in 0..options.rounds {
        let spent = |way: &Way| way.pids.iter().map(|pid| cpu_nanos(*pid)).sum::<Result<u64>>();
        let one = in_turn(round, ways, |way| {
            let before = spent(way)?;
            let (requests, _) = run(way.port, load, options.scale, way.options)?;
            Ok((spent(way)? - before) as f64 / 1_000.0 / requests)
        })?;
        for (values, value) in all.iter_mut().zip(one) {
            values.push(value);
        }
    }
    Ok(all)
}

fn ratio(above: &[f64], below: &[f64]) -> f64 {
    median(&above.iter().zip(below).map(|(above, below)| above / below).collect::<Vec<_>>())
}

/// A server that speaks TLS itself, and the same behind us.
fn offload(
    options: &Options,
    rig: &mut Rig,
    certificate: &Certificate,
    outcome: &mut Outcome,
) -> Result<()> {
    let own = rig.port()?;
    let (server, port) = rig.server(&[
        "--cluster-enabled",
        "yes",
        "--tls-port",
        &own.to_string(),
        "--tls-cert-file",
        &certificate.public,
        "--tls-key-file",
        &certificate.key,
        "--tls-ca-cert-file",
        &certificate.public,
        "--tls-auth-clients",
        "no",
    ])?;
    own_all_slots(loopback(port))?;
    let ours = ours(rig, loopback(port), certificate)?;
    let pids = vec![server.id()];
    let ways = [
        Way { name: "by itself", port: own, options: TLS, pids: pids.clone() },
        Way { name: "at the proxy", port: ours.tls, options: TLS, pids },
    ];
    for way in &ways {
        run(way.port, &SET_P16, 0.5, way.options)?;
    }
    let micros = micros(options, &ways, &GET_P1)?;
    for (way, values) in ways.iter().zip(&micros) {
        outcome.figure(format!("redis 7.0 us, TLS {}", way.name), median(values));
        println!(
            "tls          redis 7.0, TLS {:<12} {:>7.2} us a request",
            way.name,
            median(values)
        );
    }
    let [itself, proxied] = &micros[..] else { return Ok(()) };
    let goal = "redis 7.0 with TLS at the proxy, times with its own";
    outcome.goal(Goal::at_most(goal, 0.6, ratio(proxied, itself)));
    Ok(())
}

fn own_all_slots(server: SocketAddr) -> Result<()> {
    let mut wire = Wire::open(server)?;
    let mut call = |words: &str| -> Result<Value> {
        wire.send(&[words.split(' ').map(|word| word.as_bytes().to_vec()).collect()])?;
        wire.reply()
    };
    call("CLUSTER ADDSLOTSRANGE 0 16383")?;
    let give_up = Instant::now() + TIME_MAX;
    while matches!(call("SET key value")?, Value::Error(_)) {
        ensure!(Instant::now() < give_up, "a cluster of one doesn't open");
        thread::sleep(RETRY);
    }
    Ok(())
}

/// Clients that come, ask once and go, with and without a session from before.
fn handshakes(
    certificate: &Certificate,
    ours: &Ours,
    peers: Option<&(Proxy, Proxy)>,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut targets = vec![("", "keyfleet", ours.tls, &ours.process)];
    if let Some((haproxy, _)) = peers {
        targets.push((" haproxy", haproxy.name, haproxy.port, &haproxy.process));
    }
    for (kind, resumed) in [("full", false), ("resumed", true)] {
        for (who, name, port, process) in &targets {
            let config = client(certificate, resumed)?;
            visit(&config, *port, |_| ())?;
            let before = process.cpu_nanos()?;
            let (begun, mut met) = (Instant::now(), 0);
            for _ in 0..HANDSHAKES {
                let is_resumed = visit(&config, *port, |connection| {
                    connection.handshake_kind() == Some(HandshakeKind::Resumed)
                })?;
                met += u32::from(is_resumed == resumed);
            }
            ensure!(met == HANDSHAKES, "{name}: {met} of {HANDSHAKES} handshakes were {kind}");
            let rate = f64::from(HANDSHAKES) / begun.elapsed().as_secs_f64();
            let micros = (process.cpu_nanos()? - before) as f64 / 1_000.0 / f64::from(HANDSHAKES);
            println!(
                "tls          {name:<10} {kind:<8} {micros:>6.0} us a visit: {:.0} a second on a core \
                 ({rate:.0} by one client here)",
                1e6 / micros
            );
            outcome.figure(format!("TLS visits a second on a core, {kind}{who}"), 1e6 / micros);
        }
    }
    Ok(())
}

fn client(certificate: &Certificate, resumes: bool) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der.clone())?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// Connects, asks once, and looks at the connection before it closes.
fn visit<T>(
    config: &Arc<ClientConfig>,
    port: u16,
    look: impl FnOnce(&ClientConnection) -> T,
) -> Result<T> {
    let (mut connection, mut socket) = open(config, port)?;
    let found = look(&connection);
    connection.send_close_notify();
    connection.complete_io(&mut socket)?;
    Ok(found)
}

fn open(config: &Arc<ClientConfig>, port: u16) -> Result<(ClientConnection, TcpStream)> {
    let mut socket = TcpStream::connect(loopback(port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(TIME_MAX))?;
    let mut connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    stream.write_all(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n")?;
    ensure!(stream.read(&mut [0; 256])? > 0, "no answer");
    Ok((connection, socket))
}

fn idle(certificate: &Certificate, ours: &Ours, outcome: &mut Outcome) -> Result<()> {
    let config = client(certificate, false)?;
    let before = ours.process.memory_bytes("VmRSS")?;
    let open: Vec<_> = (0..IDLE).map(|_| open(&config, ours.tls)).collect::<Result<_>>()?;
    let bytes = (ours.process.memory_bytes("VmRSS")? - before) / open.len() as f64;
    println!("tls          {IDLE} idle clients: {bytes:.0} bytes each");
    outcome.figure("idle TLS bytes", bytes);
    Ok(())
}
