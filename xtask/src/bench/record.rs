//! docs/figures.md: what the benchmarks showed where they were last run with `--record`, a section each.

use std::{fs, thread::available_parallelism};

use anyhow::{Context as _, Result};

use super::Outcome;
use crate::command::workspace;

const HEAD: &str = "# Figures

What `cargo xtask bench NAME --record` measured: goals with what was reached, which are ratios where they can be, because those hold on
other machines too; then the figures behind them. A missed goal says so.
";

/// Puts a benchmark's section in place of its last one.
pub fn record(outcome: &Outcome) -> Result<()> {
    let path = workspace().join("docs").join("figures.md");
    let text = if path.exists() { fs::read_to_string(&path)? } else { HEAD.to_owned() };
    fs::write(&path, replaced(&text, outcome.bench, &section(outcome, &machine()?)))
        .with_context(|| path.display().to_string())
}

/// The page with that section; sections are in the order of their names.
fn replaced(page: &str, bench: &str, section: &str) -> String {
    let mut parts = page.split("\n## ");
    let head = parts.next().unwrap_or_default().trim_end();
    let title = |part: &str| part.lines().next().unwrap_or_default().to_owned();
    let mut sections: Vec<String> =
        parts.filter(|part| title(part) != bench).map(|part| part.trim_end().to_owned()).collect();
    sections.push(section.trim_end().to_owned());
    sections.sort_by_key(|part| title(part));
    sections.iter().fold(format!("{head}\n"), |page, part| format!("{page}\n## {part}\n"))
}

fn section(outcome: &Outcome, machine: &str) -> String {
    let mut text = format!("{}\n\nOn {machine}.\n\n", outcome.bench);
    text.push_str("| goal | wanted | reached | |\n|---|---|---|---|\n");
    for goal in &outcome.goals {
        let verdict = if goal.holds { "" } else { "missed" };
        let reached = shown(goal.reached);
        text.push_str(&format!("| {} | {} | {reached} | {verdict} |\n", goal.name, goal.wanted));
    }
    text.push_str("\n| figure | |\n|---|---|\n");
    for (name, value) in &outcome.figures {
        text.push_str(&format!("| {name} | {} |\n", shown(*value)));
    }
    text
}

/// Three digits that say something.
fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.0e}"),
    }
}

fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("cores of an unknown kind", |(_, model)| model);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.split(['-', '\n']).next().unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    let cores = available_parallelism()?;
    Ok(format!("{cores} cores ({model}), Linux {kernel}, with a load of {load} in the end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(page: &str, bench: &str, section: &str, expected: &str) {
        assert_eq!(replaced(page, bench, section), expected);
    }

    #[test]
    fn a_section_takes_its_own_place() {
        check("# F\n\nHead.\n", "b", "b\n\nnew\n", "# F\n\nHead.\n\n## b\n\nnew\n");
        check("# F\n\n## b\n\nold\n", "b", "b\n\nnew\n", "# F\n\n## b\n\nnew\n");
        check("# F\n\n## b\n\nb\n", "a", "a\n\na\n", "# F\n\n## a\n\na\n\n## b\n\nb\n");
        check("# F\n\n## bb\n\nx\n", "b", "b\n", "# F\n\n## b\n\n## bb\n\nx\n");
    }

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in
            [(0.0, "0"), (1234.5, "1234"), (12.34, "12.3"), (0.567, "0.57"), (0.000_04, "4e-5")]
        {
            assert_eq!(shown(value), expected);
        }
    }
}
