//! Nine reads of ten are of ten keys: what they cost the proxy and the server, with a near cache and
//! without.

use std::process::Command;

use anyhow::Result;

use super::{
    Options,
    closed_loop::{GET_P1, GET_P16, Load, fill, in_turn, run},
    rig::{Process, Proxy, Rig, program},
};
use crate::{
    bench::{Outcome, median},
    command::output,
};

/// How much of a load is of how many keys.
const MIX: [(f64, &[&str]); 2] = [(0.9, &["-r", "10"]), (0.1, &[])];

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    let bus = rig.port()?.to_string();
    let (server, port) = rig.server(&["--cluster-enabled", "yes", "--cluster-port", &bus])?;
    let port = port.to_string();
    let slots = ["-p", &port, "CLUSTER", "ADDSLOTSRANGE", "0", "16383"];
    output(Command::new("redis-cli").args(slots))?;
    let with = proxy(rig, "with", &port, &["--near-cache", "64MiB"])?;
    let without = proxy(rig, "without", &port, &[])?;
    fill(&without)?;
    for each in [GET_P1, GET_P16] {
        let mut ratios = [Vec::new(), Vec::new()];
        let mut costs = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        for round in 0..options.rounds {
            let both = in_turn(round, &[&with, &without], |proxy| {
                mixed_load(proxy, &server, &each, options.scale)
            })?;
            for (figure, ratios) in ratios.iter_mut().enumerate() {
                ratios.push(both[0][figure] / both[1][figure]);
            }
            for (cost, costs) in both.iter().flatten().zip(&mut costs) {
                costs.push(*cost);
            }
        }
        let [own, of_server] = ratios.each_ref().map(|ratios| median(ratios));
        let [near, near_server, plain, plain_server] = costs.each_ref().map(|all| median(all));
        println!(
            "{:<12} near cache, 90 % on ten keys: the proxy {near:.2} us for {plain:.2} ({own:.2} x), \
             the server {near_server:.2} us for {plain_server:.2} ({of_server:.2} x)",
            each.name
        );
        for (name, value) in [
            ("us", near),
            ("us without", plain),
            ("times the CPU without", own),
            ("server us", near_server),
            ("server us without", plain_server),
            ("times the server's CPU without", of_server),
        ] {
            outcome.figure(format!("near cache {} {name}", each.name), value);
        }
    }
    Ok(())
}

/// keyfleet in front of a cluster.
fn proxy(rig: &mut Rig, name: &'static str, server: &str, args: &[&str]) -> Result<Proxy> {
    let port = rig.port()?;
    let mut command = program();
    command.args(["--connect", &format!("127.0.0.1:{server}")]);
    command.args(["--listen", &format!("127.0.0.1:{port}")]).args(args);
    Ok(Proxy { name, process: rig.process(&mut command, port)?, port })
}

/// CPU time for a request, of the proxy and of the server, in µs.
fn mixed_load(proxy: &Proxy, server: &Process, each: &Load, scale: f64) -> Result<[f64; 2]> {
    let before = [proxy.process.cpu_nanos()?, server.cpu_nanos()?];
    let mut requests = 0.0;
    for (share, keys) in MIX {
        requests += run(proxy.port, each, scale * share, keys)?.0;
    }
    let after = [proxy.process.cpu_nanos()?, server.cpu_nanos()?];
    let spent = |index: usize| (after[index] - before[index]) as f64 / 1_000.0 / requests;
    Ok([spent(0), spent(1)])
}
