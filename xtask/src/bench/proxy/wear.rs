//! A proxy that has worked long beside a fresh one: what a request costs, and what memory is kept.
//!
//! A day is pressed into some ten million requests of all sizes and depths, with clients that come
//! and go.

use anyhow::Result;

use super::{
    Options,
    closed_loop::{GET_P1, GET_P16, Load, fill, in_turn, load, run},
    rig::{Proxy, Rig},
};
use crate::bench::{Goal, Outcome, median};

/// What is asked, and redis-benchmark's further options.
const TRAFFIC: [(Load, &[&str]); 7] = [
    (GET_P16, &[]),
    (Load { name: "pipelines", depth: 1_000, requests: 6_000_000, ..GET_P16 }, &[]),
    (
        Load {
            name: "small",
            command: &["SET", "key:__rand_int__", "x"],
            requests: 2_000_000,
            ..GET_P16
        },
        &[],
    ),
    (
        Load {
            name: "lists",
            command: &["LRANGE", "wear:list", "0", "-1"],
            requests: 200_000,
            ..GET_P16
        },
        &[],
    ),
    (
        Load {
            name: "writes of 1 MB",
            command: &["SETRANGE", "wear:__rand_int__", "1000000", "x"],
            requests: 50,
            ..GET_P1
        },
        &["-r", "50"],
    ),
    (
        Load {
            name: "reads of 1 MB",
            command: &["GET", "wear:__rand_int__"],
            depth: 4,
            requests: 2_000,
        },
        &["-r", "50"],
    ),
    // Fewer than an address has ports: each keeps its own for a minute.
    (Load { name: "short visits", requests: 20_000, ..GET_P1 }, &["-k", "0"]),
];

/// Comparisons need more rounds than traffic does.
const LOADS: [Load; 2] = [GET_P1, GET_P16];

pub fn measure(options: &Options, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
    let pairs = [
        ("", [rig.keyfleet(1)?, rig.keyfleet(1)?]),
        (" nutcracker", [rig.nutcracker()?, rig.nutcracker()?]),
    ];
    for (who, [worn, fresh]) in &pairs {
        age(worn, options.scale)?;
        fill(worn)?;
        let mut ratios = Vec::new();
        for each in &LOADS {
            let mut of_load = Vec::new();
            for round in 0..options.rounds {
                let both =
                    in_turn(round, &[worn, fresh], |proxy| load(proxy, each, options.scale, &[]))?;
                if let [worn, fresh] = &both[..] {
                    of_load.push(worn.micros / fresh.micros);
                }
            }
            let ratio = median(&of_load);
            outcome.figure(format!("worn {} CPU times fresh{who}", each.name), ratio);
            ratios.push((each.name, ratio));
        }
        let memory = |proxy: &Proxy| proxy.process.memory_bytes("VmRSS").map(|bytes| bytes / 1e6);
        let (worn_mb, fresh_mb) = (memory(worn)?, memory(fresh)?);
        println!(
            "worn         {}: {ratios:.2?} x the CPU of a fresh one; {worn_mb:.1} MB resident, fresh \
             {fresh_mb:.1}, at its peak {:.1}",
            worn.name,
            worn.process.memory_bytes("VmHWM")? / 1e6
        );
        outcome.figure(format!("worn MB{who}"), worn_mb);
        outcome.figure(format!("fresh MB{who}"), fresh_mb);
        if who.is_empty() {
            for (name, ratio) in ratios {
                outcome.goal(Goal::at_most(
                    format!("worn, {name}, times a fresh one's CPU"),
                    1.05,
                    ratio,
                ));
            }
            let memory = worn_mb / fresh_mb;
            outcome.goal(Goal::at_most("worn, times a fresh one's memory", 1.5, memory));
        }
    }
    Ok(())
}

fn age(proxy: &Proxy, scale: f64) -> Result<()> {
    let list = Load {
        name: "a list",
        command: &["RPUSH", "wear:list", "__data__", "__data__", "__data__"],
        depth: 1,
        requests: 30,
    };
    run(proxy.port, &list, 1.0, &[])?;
    for (load, options) in &TRAFFIC {
        run(proxy.port, load, scale, options)?;
    }
    Ok(())
}
