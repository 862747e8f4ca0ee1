//! One hop's price: so many requests a second, evenly, whether answers come or not. A latency begins
//! when its request was to be sent: who is held up counts all that waited behind it.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroU64,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use protocol::resp::encode_command;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::set_current_timer_slack,
};

use super::{
    Options,
    closed_loop::in_turn,
    rig::{Rig, loopback},
};
use crate::bench::{Goal, Outcome, at_share, median};

const RATE: u64 = 20_000;
const CONNECTIONS: usize = 50;
/// Requests of a slice. Slices are short and many: whoever else works on the machine spoils some.
const SLICE: u64 = RATE;
const SLICES: usize = 3;
/// Of the beginning, which doesn't count.
const WARM: u64 = RATE / 5;
const KEYS: u64 = 10_000;
const VALUE: [u8; 64] = [b'x'; 64];
/// For all that is under way in the end.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Latencies that clients saw, in microseconds.
struct Seen {
    p50: f64,
    p99: f64,
    /// How late requests were sent: the generator's own share.
    late_p99: f64,
}

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    // The kernel would let this thread sleep 50 µs longer than it asks for.
    set_current_timer_slack(NonZeroU64::new(1))?;
    let peer = rig.nutcracker()?;
    let ours = rig.keyfleet(1)?;
    let direct = rig.servers();
    for server in &direct {
        fill(*server)?;
    }
    let targets = [vec![loopback(ours.port)], vec![loopback(peer.port)], direct];
    println!(
        "{RATE} requests/s over {CONNECTIONS} connections; p50/p99 us, of which sent late (p99)"
    );
    let mut rounds = Vec::new();
    for round in 0..options.rounds * SLICES {
        let seen = in_turn(round, &targets, |addresses| ask(addresses, options.scale))?;
        let row: Vec<String> = seen
            .iter()
            .map(|seen| format!("{:.0}/{:.0} ({:.0})", seen.p50, seen.p99, seen.late_p99))
            .collect();
        println!("open loop    {:>5} {}", round + 1, row.join(", peer "));
        rounds.push(seen);
    }
    for (name, figure) in [
        ("p50", (|seen| seen.p50) as fn(&Seen) -> f64),
        ("p99", |seen| seen.p99),
        ("p99 sent late", |seen| seen.late_p99),
    ] {
        let of = |index: usize| -> Vec<f64> {
            rounds.iter().filter_map(|round| round.get(index)).map(figure).collect()
        };
        let [own, theirs, direct] = [of(0), of(1), of(2)];
        for (who, values) in [("", &own), (" nutcracker", &theirs), (" direct", &direct)] {
            outcome.figure(format!("open loop {name} us{who}"), median(values));
        }
        let ratios: Vec<f64> = own.iter().zip(&theirs).map(|(own, peer)| own / peer).collect();
        if name != "p99 sent late" {
            let goal = format!("{RATE} requests/s, {name}, times nutcracker's");
            outcome.goal(Goal::at_most(goal, 1.0, median(&ratios)));
        }
    }
    Ok(())
}

fn key(number: u64) -> String {
    format!("open:{:06}", number % KEYS)
}

/// Every key, so that each reply's length is known.
fn fill(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(server)?;
    let mut requests = Vec::new();
    for number in 0..KEYS {
        encode_command([b"SET".as_slice(), key(number).as_bytes(), &VALUE], &mut requests);
    }
    stream.write_all(&requests)?;
    let mut replies = vec![0; KEYS as usize * "+OK\r\n".len()];
    stream.read_exact(&mut replies)?;
    ensure!(replies.starts_with(b"+OK\r\n"), "SET is refused");
    Ok(())
}

/// What a connection waits for: when it was to be sent, and the reply's length.
struct Connection {
    stream: TcpStream,
    waiting: VecDeque<(Duration, usize)>,
    /// Bytes of the first reply that are here.
    begun: usize,
}

fn ask(addresses: &[SocketAddr], scale: f64) -> Result<Seen> {
    let mut connections = Vec::new();
    for address in addresses.iter().cycle().take(CONNECTIONS) {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        connections.push(Connection { stream, waiting: VecDeque::new(), begun: 0 });
    }
    let total = WARM + (SLICE as f64 * scale) as u64;
    let interval = Duration::from_secs(1) / RATE as u32;
    let (mut sent, mut answered) = (0, 0);
    let (mut latencies, mut late) = (Vec::new(), Vec::new());
    let mut request = Vec::new();
    let begun = Instant::now();
    let micros_since = |due: Duration| begun.elapsed().saturating_sub(due).as_secs_f64() * 1e6;
    while answered < total {
        let now = begun.elapsed();
        let mut due = interval * sent as u32;
        while sent < total && due <= now {
            let connection = &mut connections[sent as usize % CONNECTIONS];
            request.clear();
            let reply = make(sent, &mut request);
            let written = connection.stream.write(&request).context("a request")?;
            ensure!(written == request.len(), "a connection takes no more");
            connection.waiting.push_back((due, reply));
            if sent >= WARM {
                late.push(micros_since(due));
            }
            sent += 1;
            due = interval * sent as u32;
        }
        ensure!(now < interval * total as u32 + TIME_MAX, "answers are missing");
        let pause = if sent < total { due.saturating_sub(begun.elapsed()) } else { TIME_MAX };
        let mut ready: Vec<PollFd<'_>> =
            connections.iter().map(|each| PollFd::new(&each.stream, PollFlags::IN)).collect();
        poll(&mut ready, Some(&Timespec::try_from(pause)?))?;
        let ready: Vec<bool> = ready.iter().map(|each| !each.revents().is_empty()).collect();
        for (connection, _) in connections.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            for due in connection.read()? {
                answered += 1;
                if answered > WARM {
                    latencies.push(micros_since(due));
                }
            }
        }
    }
    Ok(Seen {
        p50: at_share(&latencies, 0.50),
        p99: at_share(&latencies, 0.99),
        late_p99: at_share(&late, 0.99),
    })
}

/// Every other one writes; returns the reply's length.
fn make(number: u64, request: &mut Vec<u8>) -> usize {
    // Neighbours in time are not neighbours in name.
    let key = key(number.wrapping_mul(7_919));
    if number.is_multiple_of(2) {
        encode_command([b"GET", key.as_bytes()], request);
        b"$64\r\n".len() + VALUE.len() + b"\r\n".len()
    } else {
        encode_command([b"SET".as_slice(), key.as_bytes(), &VALUE], request);
        b"+OK\r\n".len()
    }
}

impl Connection {
    /// When those were due whose replies are complete now.
    fn read(&mut self) -> Result<Vec<Duration>> {
        let mut piece = [0; 16 << 10];
        let length = match self.stream.read(&mut piece) {
            Ok(0) => bail!("a connection was closed"),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut rest = &piece[..length];
        let mut complete = Vec::new();
        while let Some(first) = rest.first() {
            let (due, expected) = *self.waiting.front().context("a reply to nothing")?;
            ensure!(self.begun > 0 || matches!(first, b'$' | b'+'), "an error reply");
            let part = rest.len().min(expected - self.begun);
            self.begun += part;
            rest = &rest[part..];
            if self.begun == expected {
                self.waiting.pop_front();
                self.begun = 0;
                complete.push(due);
            }
        }
        Ok(complete)
    }
}
