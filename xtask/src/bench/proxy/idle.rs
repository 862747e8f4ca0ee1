//! What clients that said something once and are silent since take of a proxy's memory.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};

use super::{
    Options,
    rig::{Process, Rig, open_files_max},
};
use crate::bench::{Goal, Outcome};

/// From one address, which has only so many ports.
const FROM_ONE_ADDRESS: usize = 20_000;
/// Files that a process has beside its clients.
const FILES_BESIDE: usize = 200;
const TIME_MAX: Duration = Duration::from_secs(10);

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    let count = options.idle.min(open_files_max().saturating_sub(FILES_BESIDE));
    if count < options.idle {
        println!(
            "idle         {count} clients: a process may have {} files here",
            open_files_max()
        );
    }
    let peer = rig.nutcracker()?;
    let ours = rig.keyfleet(1)?;
    let own = idle_bytes(&ours.process, ours.port, count, 1)?;
    let theirs = idle_bytes(&peer.process, peer.port, count, 2)?;
    println!("idle         {count} clients, bytes of each: {own:.0}, peer {theirs:.0}");
    outcome.figure("idle clients", count as f64);
    outcome.figure("idle bytes", own);
    outcome.figure("idle bytes nutcracker", theirs);
    outcome.goal(Goal::at_most("an idle client, bytes", 1_024.0, own));
    Ok(())
}

fn idle_bytes(process: &Process, port: u16, count: usize, net: u8) -> Result<f64> {
    let before = process.memory_bytes("VmRSS")?;
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = connect(net, number, port)?;
        stream.write_all(b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n")?;
        ensure!(stream.read(&mut [0; 256])? > 0, "no answer at port {port}");
        streams.push(stream);
    }
    let after = process.memory_bytes("VmRSS")?;
    Ok((after - before) / count as f64)
}

/// A connection from one of several addresses of this machine; those of another `net` have ports of
/// their own.
fn connect(net: u8, number: usize, port: u16) -> Result<TcpStream> {
    let from = Ipv4Addr::new(127, 0, net, 1 + (number / FROM_ONE_ADDRESS) as u8);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // Reset in the end: a port that was bound by hand is nobody's for a minute after an ordinary close.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    socket.set_read_timeout(Some(TIME_MAX))?;
    Ok(socket.into())
}
