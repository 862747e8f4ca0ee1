//! 300 MB of replies to a client that doesn't read them: what the proxy holds of them, and how long
//! another client waits meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use fleet::model::ProxyStart;
use protocol::resp::encode_command;

use super::rig::{Proxy, Rig, loopback};
use crate::bench::{Goal, Outcome};

/// A key, its value's length, and how often it is asked for.
const UNREAD: [(&str, usize, usize); 2] =
    [("unread:one", 300_000_000, 1), ("unread:many", 1_000_000, 300)];
/// What keyfleet's buffers may hold: the least that may be asked for.
const MEMORY_MAX: u64 = ProxyStart::MEMORY_MIN;
/// How long it doesn't read: less than a proxy may take offence at.
const PAUSE: Duration = Duration::from_secs(2);
const TIME_MAX: Duration = Duration::from_secs(60);
/// Between two requests of the other client.
const STEP: Duration = Duration::from_millis(5);

/// What it meant for the proxy and for another client.
struct Seen {
    held_bytes: f64,
    other_ms: f64,
}

pub fn measure(rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    for server in rig.servers() {
        let mut stream = TcpStream::connect(server)?;
        for (key, length, _) in UNREAD {
            ask(&mut stream, &["SETRANGE", key, &(length - 1).to_string(), "x"])?;
        }
    }
    for (key, length, times) in UNREAD {
        let what = format!("{times} x {} MB unread", length / 1_000_000);
        // Fresh ones each time: a peak isn't of an earlier one's making.
        let limited = rig.keyfleet_with(&["--memory-max", &format!("{}MiB", MEMORY_MAX >> 20)])?;
        for (who, proxy) in [("", limited), (" nutcracker", rig.nutcracker()?)] {
            let seen = unread(&proxy, key, length, times)?;
            println!(
                "{what:<20} {:<10} holds {:.1} MB; another client waits at most {:.1} ms",
                proxy.name,
                seen.held_bytes / 1e6,
                seen.other_ms
            );
            outcome.figure(format!("{what} MB held{who}"), seen.held_bytes / 1e6);
            outcome.figure(format!("{what} other client ms{who}"), seen.other_ms);
            if who.is_empty() {
                let goal = format!("{what}, MB held");
                outcome.goal(Goal::at_most(goal, MEMORY_MAX as f64 / 1e6, seen.held_bytes / 1e6));
            }
        }
    }
    Ok(())
}

fn ask(stream: &mut TcpStream, words: &[&str]) -> Result<()> {
    let mut request = Vec::new();
    encode_command(words, &mut request);
    stream.write_all(&request)?;
    ensure!(stream.read(&mut [0; 256])? > 0, "no answer to {words:?}");
    Ok(())
}

fn unread(proxy: &Proxy, key: &str, length: usize, times: usize) -> Result<Seen> {
    let mut other = TcpStream::connect(loopback(proxy.port))?;
    other.set_nodelay(true)?;
    other.set_read_timeout(Some(TIME_MAX))?;
    for number in 0..100 {
        ask(&mut other, &["GET", &format!("unread:other:{number}")])?;
    }
    proxy.process.forget_peak()?;
    let before = proxy.process.memory_bytes("VmRSS")?;
    let mut reader = TcpStream::connect(loopback(proxy.port))?;
    reader.set_read_timeout(Some(TIME_MAX))?;
    let mut requests = Vec::new();
    for _ in 0..times {
        encode_command(["GET", key], &mut requests);
    }
    reader.write_all(&requests)?;
    let is_over = AtomicBool::new(false);
    let (held_bytes, worst) = thread::scope(|scope| -> Result<(f64, Duration)> {
        let waits = scope.spawn(|| worst_wait(&mut other, &is_over));
        thread::sleep(PAUSE);
        is_over.store(true, Ordering::Relaxed);
        let held_bytes = proxy.process.memory_bytes("VmHWM")? - before;
        read_all(&mut reader, times * (format!("${length}\r\n").len() + length + 2))
            .with_context(|| proxy.name)?;
        Ok((held_bytes, waits.join().map_err(|_| anyhow!("the other client"))??))
    })?;
    Ok(Seen { held_bytes, other_ms: worst.as_secs_f64() * 1_000.0 })
}

/// The longest that one of its small requests took.
fn worst_wait(other: &mut TcpStream, is_over: &AtomicBool) -> Result<Duration> {
    let mut worst = Duration::ZERO;
    for number in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let asked = Instant::now();
        ask(other, &["GET", &format!("unread:other:{}", number % 100)])?;
        worst = worst.max(asked.elapsed());
        thread::sleep(STEP);
    }
    Ok(worst)
}

/// Nothing is missing in the end.
fn read_all(reader: &mut TcpStream, mut left: usize) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        let read = reader.read(&mut piece)?;
        ensure!(read > 0 && read <= left, "{left} bytes are missing");
        left -= read;
    }
    Ok(())
}
