//! The picture that `keyfleet status` draws: what was observed as text, nothing else. Pure.
//!
//! A cluster is a headline, a line a node in the order of its shards, and what is at risk.

use std::collections::BTreeSet;

use fleet::{
    model::{Bytes, ClusterName, Fleet, NodeName},
    observed::{Memory, NodeView, Observed, Process, ProxyFigures},
    overview::{Overview, Shard, State},
    risk::{self, Level, Risk},
};

use protocol::{SLOT_COUNT, SlotSet};

use super::GuardView;
use crate::cli::{
    printer::WIDTH_MAX,
    text::{Style, bar, columns, count, cut, of_limit, pad, pad_left, plural, span, wrap},
};

const BAR: usize = 6;
const SLOTS: usize = 13;
const FRAGMENTATION_FROM: u64 = 32 << 20;

/// Everything that was seen, for people.
pub fn fleet(
    fleet: Option<&Fleet>,
    observed: &Observed,
    guard: Option<&GuardView>,
    style: Style,
) -> String {
    let mut names: BTreeSet<&ClusterName> =
        observed.nodes.keys().map(|name| &name.cluster).collect();
    names.extend(fleet.iter().flat_map(|fleet| fleet.clusters.keys()));
    let mut out = String::new();
    for name in names {
        out.push_str(&cluster(fleet, observed, name, style));
        out.push('\n');
    }
    let idle = fleet.is_some_and(|fleet| fleet.clusters.values().all(|cluster| cluster.stopped));
    if let Some(guard) = guard.filter(|guard| !idle || guard.acting.is_some()) {
        out.push_str(&guard_line(guard, observed.at_ms, style));
    }
    out
}

/// One cluster.
pub fn cluster(
    fleet: Option<&Fleet>,
    observed: &Observed,
    name: &ClusterName,
    style: Style,
) -> String {
    let overview = Overview::new(observed, name);
    let risks = risk::risks(fleet, observed, name);
    let mut out = headline(fleet, observed, name, &overview, &risks, style);
    let rows = rows(observed, &overview, style);
    // Of a stopped cluster every line would say the same.
    if !rows.is_empty() && !is_stopped(fleet, name, &overview) {
        out.push('\n');
        out.push_str(&table(&rows, style));
    }
    let proxies = proxies(observed, name, style);
    if !proxies.is_empty() {
        out.push('\n');
        out.push_str(&proxies);
    }
    if !risks.is_empty() {
        out.push('\n');
        out.push_str(&risk_list(&risks, style));
    }
    out
}

/// `12 clients, 3,400 requests/s, 2 errors`.
fn proxy_figures(figures: &ProxyFigures, style: Style) -> String {
    let ProxyFigures { clients, requests, errors, requests_rate } = *figures;
    let requests = match requests_rate {
        Some(rate) => format!("{} requests/s", count(rate)),
        None => plural(requests, "request"),
    };
    let errors = plural(errors, "error");
    let errors = if figures.errors > 0 { style.yellow(&errors) } else { errors };
    format!("{}, {requests}, {errors}", plural(clients, "client"))
}

/// A line for each proxy of the cluster.
fn proxies(observed: &Observed, name: &ClusterName, style: Style) -> String {
    let mut out = String::new();
    for (proxy, view) in observed.proxies.iter().filter(|(_, view)| view.cluster == *name) {
        let state = match view.process {
            Process::Running => match &view.figures {
                None => style.green("serves plain clients"),
                Some(figures) => proxy_figures(figures, style),
            },
            Process::Suspended => style.red("suspended"),
            Process::Gone => style.red("down"),
            Process::Unknown => style.yellow("unknown"),
        };
        let mut places: Vec<String> = view.listen.iter().map(ToString::to_string).collect();
        places.extend(view.service.tls.iter().map(|tls| format!("{} (TLS)", tls.listen)));
        out.push_str(&format!("  proxy {proxy}  {}  {state}\n", places.join(", ")));
    }
    out
}

fn headline(
    fleet: Option<&Fleet>,
    observed: &Observed,
    name: &ClusterName,
    overview: &Overview,
    risks: &[Risk],
    style: Style,
) -> String {
    let worst = risks.iter().map(|risk| risk.level).min();
    let stopped =
        fleet.and_then(|fleet| fleet.clusters.get(name)).is_some_and(|wanted| wanted.stopped)
            && overview.views.is_empty();
    let state = match worst {
        _ if stopped => style.dim("○ stopped"),
        Some(Level::Down) => style.bold_red("✖ down"),
        Some(Level::Risk) => style.yellow("▲ at risk"),
        Some(Level::Notice) | None => style.green("● ok"),
    };
    let mut first = vec![state];
    first.extend(engines(observed, name));
    let shards = overview.shards.len() as u64;
    if shards > 0 {
        first.push(shape(overview));
        let served = served(observed, overview);
        first.push(if served == u64::from(SLOT_COUNT) {
            "all slots served".to_owned()
        } else {
            let text = format!("{} of {} slots served", count(served), count(SLOT_COUNT.into()));
            style.red(&text)
        });
    }
    let mut out = format!("{}  {}\n", style.bold(name.as_str()), first.join(" · "));
    if shards > 0 {
        let indent = " ".repeat(columns(name.as_str()) + 2);
        let mut second = holdings(observed, overview);
        second.push(survival(observed, name));
        out.push_str(&format!("{indent}{}\n", style.dim(&second.join(" · "))));
    }
    out
}

/// `down` was asked for, and no node answers any more.
fn is_stopped(fleet: Option<&Fleet>, name: &ClusterName, overview: &Overview) -> bool {
    let wanted = fleet.and_then(|fleet| fleet.clusters.get(name));
    wanted.is_some_and(|wanted| wanted.stopped) && overview.views.is_empty()
}

/// How many slots have an answering primary.
fn served(observed: &Observed, overview: &Overview) -> u64 {
    let answers = |shard: &&Shard| {
        let primary = shard.primary.as_ref().and_then(|name| observed.nodes.get(name));
        primary.is_some_and(|view| State::of(view) == State::Primary)
    };
    let served = overview
        .shards
        .iter()
        .filter(answers)
        .fold(SlotSet::new(), |all, shard| all.union(&shard.slots));
    served.len() as u64
}

/// Every engine that runs: one, but for an upgrade under way.
fn engines(observed: &Observed, name: &ClusterName) -> Vec<String> {
    let engines: BTreeSet<String> = observed
        .of(name)
        .filter_map(|(_, view)| view.up())
        .map(|up| up.engine.to_string())
        .collect();
    if engines.is_empty() {
        Vec::new()
    } else {
        vec![engines.into_iter().collect::<Vec<_>>().join(" and ")]
    }
}

/// `3 shards × 1 replica`, `3 shards × 0 to 1 replicas`.
fn shape(overview: &Overview) -> String {
    let replicas = || overview.shards.iter().map(|shard| shard.replicas.len() as u64);
    let (least, most) = (replicas().min().unwrap_or(0), replicas().max().unwrap_or(0));
    let shards = plural(overview.shards.len() as u64, "shard");
    if least == most {
        format!("{shards} × {}", plural(most, "replica"))
    } else {
        format!("{shards} × {least} to {}", plural(most, "replica"))
    }
}

/// Keys and memory of the primaries.
fn holdings(observed: &Observed, overview: &Overview) -> Vec<String> {
    let (mut keys, mut used, mut limit) = (0, 0, 0);
    for shard in &overview.shards {
        let primary = shard.primary.as_ref().and_then(|name| observed.nodes.get(name));
        if let Some(up) = primary.and_then(NodeView::up) {
            keys += up.keys;
            used += up.memory.used;
            limit += up.memory.max;
        }
    }
    vec![plural(keys, "key"), of_limit(used, limit)]
}

/// `any 1 host may die`; on a single host, where that is never so, also the nodes.
fn survival(observed: &Observed, name: &ClusterName) -> String {
    let hosts: BTreeSet<_> = observed.of(name).map(|(_, view)| &view.host).collect();
    let may = |number: usize, word: &str| match number {
        0 => format!("no {word} may die"),
        1 => format!("any {word} may die"),
        number => format!("any {} may die", plural(number as u64, word)),
    };
    match (risk::hosts_that_may_die(observed, name), risk::nodes_that_may_die(observed, name)) {
        (Some(dead), Some(nodes)) if hosts.len() == 1 && dead == 0 => {
            format!("one host; {}", may(nodes, "node"))
        }
        (Some(dead), _) => may(dead, "host"),
        (None, _) => "nothing more may die".to_owned(),
    }
}

/// A line of the table.
struct Row {
    number: String,
    slots: String,
    node: NodeName,
    state: State,
    role: Role,
    address: String,
    host: String,
    lag: String,
    memory: String,
    fragmentation: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Primary,
    Replica,
    Loose,
}

fn rows(observed: &Observed, overview: &Overview, style: Style) -> Vec<Row> {
    let mut rows = Vec::new();
    for (index, shard) in overview.shards.iter().enumerate() {
        let primary = shard.primary.as_ref().and_then(|name| observed.nodes.get(name));
        let offset = primary.and_then(NodeView::up).map(|up| up.offset);
        let members = shard
            .primary
            .iter()
            .map(|name| (name, Role::Primary))
            .chain(shard.replicas.iter().map(|name| (name, Role::Replica)));
        for (place, (name, role)) in members.enumerate() {
            let Some(view) = observed.nodes.get(name) else { continue };
            let mut row = row(name, view, role, offset, style);
            if place == 0 {
                row.number = (index + 1).to_string();
                row.slots = slots_text(shard);
            }
            rows.push(row);
        }
    }
    for name in &overview.loose {
        if let Some(view) = observed.nodes.get(name) {
            rows.push(row(name, view, Role::Loose, None, style));
        }
    }
    rows
}

fn row(
    name: &NodeName,
    view: &NodeView,
    role: Role,
    primary_offset: Option<u64>,
    style: Style,
) -> Row {
    let memory = view.up().map(|up| up.memory);
    let state = State::of(view);
    let behind = match (role, view.up(), primary_offset) {
        (Role::Replica, Some(up), Some(offset)) => Some(offset.saturating_sub(up.offset)),
        _ => None,
    };
    let lag = match (state, behind) {
        (State::LinkDown { for_ms } | State::Hung { for_ms, .. }, _) if for_ms > 0 => span(for_ms),
        (State::InSync, Some(bytes)) => Bytes(bytes).to_string(),
        _ => String::new(),
    };
    Row {
        number: String::new(),
        slots: String::new(),
        node: name.clone(),
        state,
        role,
        address: std::net::SocketAddr::new(view.address, view.ports.tcp).to_string(),
        host: view.host.to_string(),
        lag,
        memory: memory.map_or_else(String::new, |memory| memory_text(memory, style)),
        fragmentation: memory.map_or_else(String::new, |memory| fragmentation_text(memory, style)),
    }
}

/// `0-5460`; of several ranges the first and how many more.
fn slots_text(shard: &Shard) -> String {
    let all = shard.slots.to_string();
    if columns(&all) <= SLOTS {
        return all;
    }
    match shard.slots.ranges() {
        [(first, last), more @ ..] => format!("{first}-{last} +{}", more.len()),
        [] => all,
    }
}

fn table(rows: &[Row], style: Style) -> String {
    let widest = |text: fn(&Row) -> String, least: usize, most: usize| {
        rows.iter().map(|row| columns(&text(row))).max().unwrap_or(0).clamp(least, most)
    };
    let node = widest(|row| row.node.to_string(), 4, 18);
    let address = widest(|row| row.address.clone(), 7, 21);
    let hosts: BTreeSet<&str> = rows.iter().map(|row| row.host.as_str()).collect();
    // One host's name on every line would only be noise.
    let host = if hosts.len() > 1 { widest(|row| row.host.clone(), 4, 12) } else { 0 };
    let slots = widest(|row| row.slots.clone(), 5, SLOTS);
    let number = widest(|row| row.number.clone(), 1, 4);
    let memory = rows.iter().map(|row| columns(&row.memory)).max().unwrap_or(0);
    let host_cell =
        |text: &str| if host > 0 { format!("{}  ", pad(text, host)) } else { String::new() };
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&cut(text.trim_end(), WIDTH_MAX));
        out.push('\n');
    };
    line(style.dim(&format!(
        "  {}  {}  {}  {}{}  {}  {}  {}{}",
        " ".repeat(number),
        pad("SLOTS", slots),
        pad("NODE", node + 2),
        host_cell("HOST"),
        pad("ADDRESS", address),
        pad("STATE", 9),
        pad_left("LAG", 7),
        if memory > 0 { pad("MEMORY", memory + 1) } else { String::new() },
        if memory > 0 { "FRAG" } else { "" },
    )));
    for row in rows {
        let (mark, word) = mark(row, style);
        line(format!(
            "  {}  {}  {mark} {}  {}{}  {}  {}  {} {}",
            style.dim(&pad_left(&row.number, number)),
            pad(&row.slots, slots),
            bold_if(
                row.role == Role::Primary,
                &pad(&cut(&row.node.to_string(), node), node),
                style
            ),
            host_cell(&cut(&row.host, host.max(1))),
            pad(&cut(&row.address, address), address),
            pad(&word, 9),
            pad_left(&row.lag, 7),
            pad(&row.memory, memory),
            row.fragmentation,
        ));
    }
    out
}

fn bold_if(really: bool, text: &str, style: Style) -> String {
    if really { style.bold(text) } else { text.to_owned() }
}

/// A node's mark and word. Shape and colour both tell, for those who see only one of them.
fn mark(row: &Row, style: Style) -> (String, String) {
    let green = |mark: &str, word: &str| (style.green(mark), word.to_owned());
    let yellow = |mark: &str, word: &str| (style.yellow(mark), style.yellow(word));
    let red = |mark: &str, word: &str| (style.red(mark), style.red(word));
    match row.state {
        State::Primary if row.role == Role::Loose => (style.dim("○"), "no slots".to_owned()),
        State::Primary => green("●", "primary"),
        State::InSync => green("○", "in sync"),
        State::Syncing => yellow("◔", "copying"),
        State::LinkDown { .. } => yellow("◌", "cut off"),
        State::Loading => yellow("◔", "loading"),
        State::Starting => yellow("◔", "starting"),
        State::Hung { .. } => red("‖", "hung"),
        State::Dead => red("✖", "dead"),
        State::Stranded => red("✖", "cut off"),
        State::Unreachable => red("?", "no answer"),
        State::Denied => red("⊘", "denied"),
    }
}

/// A bar and the numbers; without a limit, the number.
fn memory_text(memory: Memory, style: Style) -> String {
    if memory.max == 0 {
        return Bytes(memory.used).to_string();
    }
    let full = memory.used >= memory.max / 10 * 9;
    let drawn = bar(memory.used, memory.max, BAR);
    let drawn = if full { style.red(&drawn) } else { style.green(&drawn) };
    format!("{drawn} {}/{}", short(memory.used), short(memory.max))
}

/// What the process holds by what its data takes. Of little data the ratio says nothing: it is the
/// program itself that takes the memory.
fn fragmentation_text(memory: Memory, style: Style) -> String {
    if memory.used < FRAGMENTATION_FROM {
        return style.dim("   –");
    }
    let ratio = memory.rss as f64 / memory.used.max(1) as f64;
    let text = if ratio < 10.0 { format!("{ratio:.2}") } else { format!("{ratio:.0}") };
    let text = pad_left(&text, 4);
    if risk::is_fragmented(memory.used, memory.rss) {
        style.yellow(&text)
    } else {
        style.dim(&text)
    }
}

/// `24M`, `1.5G`.
fn short(bytes: u64) -> String {
    Bytes(bytes).to_string().replace(" B", "B").replace(' ', "").replace("iB", "")
}

fn risk_list(risks: &[Risk], style: Style) -> String {
    let mut out = String::new();
    for risk in risks {
        let mark = match risk.level {
            Level::Down => style.red("✖"),
            Level::Risk => style.yellow("▲"),
            Level::Notice => style.dim("·"),
        };
        out.push_str(&format!("  {mark} {}\n", style.bold(&wrap(&risk.what, WIDTH_MAX, 4))));
        out.push_str(&format!("    {}\n", wrap(&risk.why, WIDTH_MAX, 4)));
    }
    // One command often mends several: it is named once.
    let mut named = BTreeSet::new();
    for command in risks.iter().filter_map(|risk| risk.command.as_ref()) {
        if named.insert(command) {
            out.push_str(&format!("  {} {command}\n", style.cyan("→")));
        }
    }
    out
}

/// How many of guard's latest deeds are shown.
const DEEDS_SHOWN: usize = 3;

fn guard_line(guard: &GuardView, now_ms: u64, style: Style) -> String {
    let frozen = guard.frozen_until_ms.filter(|until| *until > now_ms);
    let text = match (frozen, &guard.acting) {
        (Some(until), _) => format!(
            "{} {}: {}; end it with: keyfleet freeze --lift",
            style.yellow("❄"),
            style.yellow(&format!("frozen for another {}", span(until - now_ms))),
            match (guard.healing_frozen_until_ms.filter(|until| *until > now_ms), &guard.acting) {
                (Some(_), _) => "nothing is changed, and nothing heals",
                (None, Some(_)) => "no planned change, healing goes on",
                (None, None) => "no planned change, and no guard that heals",
            }
        ),
        (None, Some(holder)) => {
            let since = guard.since_ms.map_or_else(String::new, |since| {
                format!(" for {}", span(now_ms.saturating_sub(since)))
            });
            format!("{} {holder}, at work{since}", style.green("●"))
        }
        (None, None) => format!(
            "{} none: nothing heals by itself; start it with: keyfleet guard",
            style.yellow("▲")
        ),
    };
    let mut out = format!("{}  {text}\n", style.bold("guard"));
    for deed in guard.lately.iter().rev().take(DEEDS_SHOWN).rev() {
        let ago = format!("{} ago", span(now_ms.saturating_sub(deed.at_ms)));
        let indent = 7 + columns(&ago) + 2;
        let what = wrap(&deed.what, WIDTH_MAX, indent);
        out.push_str(&format!("       {}  {what}\n", style.dim(&ago)));
    }
    for (cluster, record) in &guard.backups {
        let ago = |at_ms| format!("{} ago", span(now_ms.saturating_sub(at_ms)));
        let last = match &record.last {
            Some(last) => format!("{} of {cluster}, {}", last.id, ago(last.started_ms)),
            None => format!("none of {cluster} yet"),
        };
        out.push_str(&format!("{}  {last}\n", style.bold("backup")));
        if let Some(failed) = &record.failed {
            let text = format!("failed {}: {}", ago(failed.started_ms), failed.why);
            let text = wrap(&text, WIDTH_MAX, 10);
            out.push_str(&format!("        {} {text}\n", style.yellow("▲")));
        }
        if let Some(kept) = guard.kept.get(cluster) {
            let text = match kept.until_ms {
                0 => "no commands are kept yet".to_owned(),
                until_ms => format!("and every second until {}", ago(until_ms)),
            };
            out.push_str(&format!("        {text}\n"));
            if let Some(why) = &kept.waiting_for {
                let text = wrap(&format!("waiting: {why}"), WIDTH_MAX, 10);
                out.push_str(&format!("        {} {text}\n", style.yellow("▲")));
            }
        }
    }
    out
}
