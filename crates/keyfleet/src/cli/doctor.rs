//! `keyfleet doctor`: what on this machine will hurt.

use std::{collections::BTreeMap, env, path::PathBuf};

use rustix::{
    fs::statvfs,
    process::{PidfdFlags, geteuid, getpid, pidfd_open},
};

use super::{
    context::Context,
    printer::{Output, WIDTH_MAX},
    text::{Style, pad, plural, wrap},
};
use crate::{
    doctor::{self, Check, Machine, Need, Verdict, examine},
    engines,
    errors::{Exit, Failure},
    observe::now_ms,
    session::Session,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to print it
    #[arg(long, short, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let session = context.open()?;
    let need = Need::of(&session.fleet, session.store.root().to_owned());
    let mut checks = examine(&machine(&session).await, &need);
    for (name, cluster) in &session.fleet.clusters {
        if let Some(policy) = cluster.backup.as_ref().filter(|_| !cluster.stopped) {
            let record = session.store.backups(name)?;
            checks.push(doctor::backups(name, policy, &record, now_ms()));
            if policy.continuous {
                let kept = session.store.kept(name)?.unwrap_or_default();
                checks.push(doctor::kept_commands(name, &kept, now_ms()));
            }
        }
    }
    match args.output {
        Output::Json => context.printer.json(&checks)?,
        Output::Text => context.printer.data(&picture(&checks, context.printer.style))?,
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { Exit::User } else { Exit::Done })
}

async fn machine(session: &Session) -> Machine {
    let mut engines_found = BTreeMap::new();
    if let Some(cache) = engines::default_cache() {
        for (name, cluster) in &session.fleet.clusters {
            let found = engines::present(&cluster.engine, &cache).await;
            let found = found
                .map(|found| format!("{} at {}", found.engine, found.server.display()))
                .ok_or_else(|| format!("{} is not on this machine", cluster.engine));
            engines_found.insert(name.to_string(), found);
        }
    }
    let root = geteuid().is_root();
    let user = env::var("USER").unwrap_or_else(|_| geteuid().as_raw().to_string());
    // The state directory comes with the first `up`; until then what holds it is measured.
    let disk = session.store.root().ancestors().find_map(|path| statvfs(path).ok());
    Machine {
        root: PathBuf::from("/"),
        disk: disk.map(|disk| (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)),
        pidfd: pidfd_open(getpid(), PidfdFlags::empty()).is_ok(),
        user: (!root).then_some(user),
        xdg_runtime_dir: env::var("XDG_RUNTIME_DIR").ok().filter(|path| !path.is_empty()),
        engines: engines_found,
    }
}

/// A line a check; what isn't right with its reason and the command that mends it.
fn picture(checks: &[Check], style: Style) -> String {
    let widest = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let indent = widest + 4;
    let mut out = String::new();
    for check in checks {
        let mark = match check.verdict {
            Verdict::Ok => style.green("✔"),
            Verdict::Warn => style.yellow("▲"),
            Verdict::Fail => style.red("✖"),
        };
        let found = wrap(&check.found, WIDTH_MAX, indent);
        out.push_str(&format!("{mark} {}  {found}\n", style.bold(&pad(check.name, widest))));
        if check.verdict != Verdict::Ok {
            let space = " ".repeat(indent);
            out.push_str(&format!("{space}{}\n", style.dim(&wrap(check.why, WIDTH_MAX, indent))));
            if let Some(mend) = &check.mend {
                // A command is never broken over lines: it is there to be copied.
                out.push_str(&format!("{space}{} {mend}\n", style.cyan("→")));
            }
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count() as u64;
    let (warn, fail) = (count(Verdict::Warn), count(Verdict::Fail));
    out.push_str(&match (warn, fail) {
        (0, 0) => "\nAll is well.\n".to_owned(),
        (warn, 0) => format!("\n{}, nothing that stops the fleet.\n", plural(warn, "warning")),
        (0, fail) => format!("\n{} must be mended.\n", plural(fail, "failure")),
        (warn, fail) => {
            format!("\n{} must be mended; {}.\n", plural(fail, "failure"), plural(warn, "warning"))
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::text::columns;

    #[test]
    fn the_picture() {
        let check = |name, verdict, found: &str, mend: Option<&str>| Check {
            name,
            verdict,
            found: found.to_owned(),
            why: "when many clients reconnect at once, those beyond this queue are dropped",
            mend: mend.map(str::to_owned),
        };
        let text = picture(
            &[
                check("engine", Verdict::Ok, "main: redis 7.0.15", None),
                check("somaxconn", Verdict::Warn, "net.core.somaxconn = 128", Some("sudo sysctl")),
                check("kernel", Verdict::Fail, "4.19, pidfd does not work", Some("upgrade")),
            ],
            Style::PLAIN,
        );
        assert!(text.lines().all(|line| columns(line) <= WIDTH_MAX));
        insta::assert_snapshot!("doctor", text);
    }
}
