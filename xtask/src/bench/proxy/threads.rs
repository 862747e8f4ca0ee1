//! Two threads with a hundred clients beside one with fifty.
//!
//! Rates say what two threads are worth only where the servers, the load and the threads each have a
//! core of their own. Anywhere the scheduler tells how long each thread worked: for as many
//! requests the busier one of two may work at most 1 / 1.7 as long as one alone, which holds the cost of sharing
//! and an uneven deal of clients. Threads that share a lock would call futex.

use std::thread::available_parallelism;

use anyhow::{Context, Result};

use super::{
    Options,
    closed_loop::{GET_P1, GET_P16, Load, fill, in_turn, load, run},
    rig::{Proxy, Rig, cpu_by_thread},
};
use crate::bench::{Goal, Outcome, median};

/// Two threads, three servers, and the load.
const CORES_WANTED: usize = 6;

/// Each thread is to have as many as one alone has.
const CLIENTS: [&[&str]; 2] = [&["-c", "50"], &["-c", "100"]];

/// What a load took of the proxy.
struct Work {
    busiest_nanos: f64,
    all_nanos: f64,
    rate: f64,
}

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    let [one, two] = [rig.keyfleet(1)?, rig.keyfleet(2)?];
    fill(&one)?;
    let proxies = [(&one, CLIENTS[0]), (&two, CLIENTS[1])];
    let cores = available_parallelism()?.get();
    for each in [GET_P1, GET_P16] {
        let (mut sharing, mut deals, mut worth, mut rates) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..options.rounds {
            let both = in_turn(round, &proxies, |(proxy, clients)| {
                work(proxy, &each, options.scale, clients)
            })?;
            let [alone, shared] = &both[..] else { continue };
            sharing.push(shared.all_nanos / alone.all_nanos);
            deals.push(shared.busiest_nanos / shared.all_nanos);
            worth.push(alone.busiest_nanos / shared.busiest_nanos);
            rates.push(shared.rate / alone.rate);
        }
        let [sharing, deal, worth, rate] =
            [&sharing, &deals, &worth, &rates].map(|all| median(all));
        let futexes = futexes(&two, &each)?;
        println!(
            "{:<12} two threads: {sharing:.2} x one's CPU for the same, the busier has {:.0} %: worth \
             {worth:.2} x one; {futexes:.5} futex calls a request",
            each.name,
            deal * 100.0
        );
        outcome.figure(format!("two threads {} CPU times one's", each.name), sharing);
        outcome.figure(format!("two threads {} share of the busier", each.name), deal);
        outcome.figure(format!("two threads {} futexes a request", each.name), futexes);
        outcome.figure(format!("two threads {} rate times one's", each.name), rate);
        let name = format!("two threads, {}", each.name);
        if cores >= CORES_WANTED {
            outcome.goal(Goal::at_least(format!("{name}, rate times one's"), 1.7, rate));
        } else {
            println!(
                "{:<12} their rate, {rate:.2} x one's, says nothing: all share {cores} cores",
                each.name
            );
        }
        let by_work = format!("{name}, times one's by the busier's CPU");
        outcome.goal(Goal::at_least(by_work, 1.7, worth));
        outcome.goal(Goal::at_most(format!("{name}, futex calls a request"), 0.001, futexes));
    }
    Ok(())
}

fn work(proxy: &Proxy, each: &Load, scale: f64, clients: &[&str]) -> Result<Work> {
    let before = cpu_by_thread(proxy.process.id())?;
    let rate = load(proxy, each, scale, clients)?.rate;
    let spent: Vec<f64> = cpu_by_thread(proxy.process.id())?
        .into_iter()
        .map(|(thread, nanos)| {
            let earlier = before.iter().find(|(other, _)| *other == thread);
            nanos.saturating_sub(earlier.map_or(0, |(_, nanos)| *nanos)) as f64
        })
        .collect();
    let busiest_nanos = spent.iter().copied().reduce(f64::max).context("no thread")?;
    Ok(Work { busiest_nanos, all_nanos: spent.iter().sum(), rate })
}

fn futexes(proxy: &Proxy, each: &Load) -> Result<f64> {
    let work = || run(proxy.port, each, 1.0, &[]).map(|_| ());
    let count = proxy.process.count("syscalls:sys_enter_futex", work)?;
    Ok(count / f64::from(each.requests))
}
