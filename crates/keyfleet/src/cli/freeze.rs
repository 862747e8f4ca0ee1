//! `keyfleet freeze`: let nothing be changed for a while. What dies is healed all the same, unless
//! that is frozen too.

use fleet::model::ClusterName;

use super::{context::Context, context::clusters, text::span};
use crate::{
    errors::{Exit, Failure, Problem},
    observe::now_ms,
    store::{Freeze, Store},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this cluster
    #[arg(value_name = "CLUSTER")]
    cluster: Option<String>,
    /// For how long (30m, 1h, 2d)
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = time)]
    time: u64,
    /// Why, for those who wonder later
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    why: String,
    /// Heal nothing either: leave even what dies as it is
    #[arg(long)]
    healing_too: bool,
    /// End it now
    #[arg(long, conflicts_with_all = ["time", "why", "healing_too"])]
    lift: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let session = context.open()?;
    let chosen = clusters(&session.fleet, args.cluster.as_slice())?;
    let until_ms = now_ms() + args.time;
    for name in chosen {
        if args.lift {
            session.store.set_freeze(&name, None)?;
            context.printer.note(&format!("{name} may be changed again."));
        } else {
            let why = args.why.clone();
            let freeze = Freeze { until_ms, why, healing_too: args.healing_too };
            session.store.set_freeze(&name, Some(&freeze))?;
            let healing = if args.healing_too { "and no healing" } else { "healing goes on" };
            context.printer.note(&format!(
                "{name}: no planned change for {}, {healing}. End it with: {}",
                span(args.time),
                context.command(&format!("freeze {name} --lift"))
            ));
        }
    }
    Ok(Exit::Done)
}

/// Refuses to change clusters that are frozen. `regardless`: the command that does so all the same.
pub fn refuse(
    context: &Context,
    store: &Store,
    chosen: &[ClusterName],
    regardless: Option<&str>,
) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for name in chosen {
        let Some(freeze) = store.freeze(name)?.filter(|freeze| freeze.until_ms > now_ms()) else {
            continue;
        };
        let why = if freeze.why.is_empty() { String::new() } else { format!(": {}", freeze.why) };
        let left = span(freeze.until_ms.saturating_sub(now_ms()));
        let lift = context.command(&format!("freeze {name} --lift"));
        let mut hint = format!("end the freeze with: {lift}");
        if let Some(command) = regardless {
            hint += &format!("; or all the same: {}", context.command(command));
        }
        problems.push(Problem::new(format!("{name} is frozen for another {left}{why}")).hint(hint));
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::user_all(problems)) }
}

/// `90s`, `30m`, `1h`, `2d` in milliseconds; at most 30 days, for a freeze that is forgotten must end.
fn time(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time such as 30m, 1h or 2d");
    let split = text.find(|char: char| !char.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.trim() {
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    match number.checked_mul(unit) {
        Some(0) => Err("no time at all; to end a freeze: --lift".to_owned()),
        Some(time) if time <= 30 * 86_400_000 => Ok(time),
        _ => Err("30 days are the most".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let check =
            |text: &str, expected: Option<u64>| assert_eq!(time(text).ok(), expected, "{text}");
        check("90s", Some(90_000));
        check("30m", Some(1_800_000));
        check("1h", Some(3_600_000));
        check("2d", Some(172_800_000));
        for bad in
            ["", "1", "h", "-1h", "1w", "0h", "31d", "99999999999999999999d", "9999999999999999d"]
        {
            check(bad, None);
        }
    }
}
