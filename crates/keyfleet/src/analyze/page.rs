//! The report as one page that needs nothing else: a map of the memory by prefix, and tables.

use std::fmt::Write as _;

use super::{Prefix, Report, Sum, live::Hot};

const WIDTH: f64 = 1_160.0;
const HEIGHT: f64 = 560.0;

/// The height of a group's title in the map.
const TITLE: f64 = 18.0;

/// Rectangles with less than this are not drawn: nobody could see them. Square units.
const AREA_MIN: f64 = 12.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6572;--paper:#fbfaf8;--line:#dcd9d3;--bar:#2f6f9f}\
@media(prefers-color-scheme:dark){:root{--ink:#e8e6e3;--soft:#9aa4b0;--paper:#16181c;--line:#33373d;--bar:#5aa0d6}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1160px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}p{color:var(--soft);margin:.25rem 0 1rem}\
table{border-collapse:collapse;width:100%}th{font-weight:500;color:var(--soft);text-align:right;border-bottom:1px solid var(--line)}\
th:first-child,td:first-child{text-align:left;overflow-wrap:anywhere}td{text-align:right;padding:.15rem .5rem;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}\
td.bar{width:30%}td.bar div{background:var(--bar);height:.7rem;border-radius:2px;min-width:1px}\
svg{width:100%;height:auto;border-radius:6px}svg text{font:11px system-ui,sans-serif;fill:#fff;pointer-events:none}\
.two{display:grid;grid-template-columns:1fr 1fr;gap:0 2rem}@media(max-width:800px){.two{grid-template-columns:1fr}}";

/// See the module.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let title = report.files.join(", ");
    let total = report.total;
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style>\
         <h1>{0}</h1><p>{1} keys, {2} in memory{3}</p>",
        escaped(&title),
        number(total.keys),
        bytes(total.memory_bytes),
        match report.live {
            Some(_) => String::new(),
            None => format!(" by estimate, {} in the file", bytes(total.file_bytes)),
        },
    );
    out.push_str("<h2>Memory by prefix</h2>");
    out.push_str(&map(&report.prefixes, total.memory_bytes));
    out.push_str("<div class=\"two\"><div>");
    sums(&mut out, "Types", report.types.iter().map(|(name, sum)| (name.clone(), *sum)));
    out.push_str("</div><div>");
    let left = report.ttl.iter().map(|left| {
        let sum = Sum { keys: left.keys, memory_bytes: left.memory_bytes, ..Sum::default() };
        (left.left.to_owned(), sum)
    });
    sums(&mut out, "Time left", left);
    out.push_str("</div></div>");
    let encodings = report.encodings.iter().map(|(name, sum)| (name.clone(), *sum));
    sums(&mut out, "Encodings", encodings);
    let shards = report.balance.shards.iter().enumerate();
    let shards = shards.map(|(at, sum)| (format!("shard {}", at + 1), *sum));
    sums(&mut out, "In a cluster", shards);
    let prefixes = report.prefixes.iter().take(50).map(|each| (named(&each.prefix), each.sum));
    sums(&mut out, "Prefixes", prefixes);
    let biggest = report.biggest.iter().map(|big| {
        let sum = Sum { keys: big.elements, memory_bytes: big.memory_bytes, ..Sum::default() };
        (format!("{} ({})", big.key, big.data_type), sum)
    });
    table(&mut out, "Biggest keys", "elements", biggest);
    if let Some(live) = &report.live {
        hot(&mut out, &live.hot);
    }
    out
}

fn hot(out: &mut String, hot: &Hot) {
    let _ = write!(
        out,
        "<h2>Hot keys</h2><p>Of a sample of {} keys</p>\
         <table><tr><th></th><th>frequency, 0 to 255</th><th>used so many seconds ago</th></tr>",
        number(hot.sampled)
    );
    for key in &hot.keys {
        let told = |figure: Option<u64>| figure.map_or_else(|| "not known".to_owned(), number);
        let (frequency, idle) = (told(key.frequency), told(key.idle_seconds));
        let key = escaped(&key.key);
        let _ = write!(out, "<tr><td>{key}</td><td>{frequency}</td><td>{idle}</td></tr>");
    }
    out.push_str("</table>");
}

fn sums(out: &mut String, title: &str, rows: impl Iterator<Item = (String, Sum)>) {
    table(out, title, "keys", rows);
}

fn table(out: &mut String, title: &str, what: &str, rows: impl Iterator<Item = (String, Sum)>) {
    let rows: Vec<_> = rows.collect();
    let most = rows.iter().map(|(_, sum)| sum.memory_bytes).max().unwrap_or_default().max(1);
    let _ = write!(
        out,
        "<h2>{title}</h2><table><tr><th></th><th>{what}</th><th>memory</th><th></th></tr>"
    );
    for (name, sum) in rows {
        let share = sum.memory_bytes as f64 * 100.0 / most as f64;
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"bar\"><div style=\"width:{share:.1}%\"></div></td></tr>",
            escaped(&name),
            number(sum.keys),
            bytes(sum.memory_bytes),
        );
    }
    out.push_str("</table>");
}

/// A rectangle of the map.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

fn map(prefixes: &[Prefix], total: u64) -> String {
    let depth =
        |prefix: &Prefix| prefix.prefix.bytes().filter(|byte| b":/.|".contains(byte)).count();
    let groups: Vec<&Prefix> = prefixes.iter().filter(|prefix| depth(prefix) <= 1).collect();
    let told: u64 = groups.iter().map(|group| group.sum.memory_bytes).sum();
    let mut weights: Vec<f64> = groups.iter().map(|group| group.sum.memory_bytes as f64).collect();
    weights.push(total.saturating_sub(told) as f64);
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"memory by prefix\">"
    );
    let whole = Area { x: 0.0, y: 0.0, width: WIDTH, height: HEIGHT };
    for (at, area) in squares(&weights, whole).into_iter().enumerate() {
        let hue = at * 47 % 360;
        let Some(group) = groups.get(at) else {
            rectangle(&mut out, area, "others", weights.get(at).map_or(0, |w| *w as u64), 0, 0.0);
            continue;
        };
        rectangle(&mut out, area, &named(&group.prefix), group.sum.memory_bytes, hue, 45.0);
        let inside: Vec<&Prefix> = prefixes
            .iter()
            .filter(|each| depth(each) == 2 && each.prefix.starts_with(&group.prefix))
            .filter(|_| !group.prefix.is_empty())
            .collect();
        if inside.is_empty() || area.height < 3.0 * TITLE || area.width < 60.0 {
            continue;
        }
        let mut weights: Vec<f64> =
            inside.iter().map(|each| each.sum.memory_bytes as f64).collect();
        let rest = group.sum.memory_bytes as f64 - weights.iter().sum::<f64>();
        weights.push(rest.max(0.0));
        let room = Area {
            x: area.x + 3.0,
            y: area.y + TITLE,
            width: area.width - 6.0,
            height: area.height - TITLE - 3.0,
        };
        for (each, area) in inside.iter().zip(squares(&weights, room)) {
            let name = each.prefix.strip_prefix(group.prefix.as_str()).unwrap_or(&each.prefix);
            rectangle(&mut out, area, name, each.sum.memory_bytes, hue, 60.0);
        }
    }
    out.push_str("</svg>");
    out
}

fn rectangle(out: &mut String, area: Area, name: &str, memory: u64, hue: usize, saturation: f64) {
    let Area { x, y, width, height } = area;
    if width * height < AREA_MIN {
        return;
    }
    let name = escaped(name);
    let size = bytes(memory);
    let _ = write!(
        out,
        "<g><title>{name} {size}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"hsl({hue} {saturation}% 38%)\" stroke=\"var(--paper)\"/>"
    );
    if width > 48.0 && height > 14.0 {
        let letters = (width / 6.5) as usize;
        let label = format!("{name} {size}");
        if label.chars().count() <= letters {
            let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{label}</text>", x + 4.0, y + 12.5);
        }
    }
    out.push_str("</g>");
}

/// Divides an area by weights, heaviest first, into rectangles that are nearly square.
/// Source: squarified treemaps, Bruls, Huizing and van Wijk, 2000.
fn squares(weights: &[f64], area: Area) -> Vec<Area> {
    let total: f64 = weights.iter().sum();
    let mut rest = area;
    let mut left = total;
    let mut areas = Vec::with_capacity(weights.len());
    let mut at = 0;
    while at < weights.len() {
        let side = rest.width.min(rest.height);
        let scale = if left > 0.0 { rest.width * rest.height / left } else { 0.0 };
        // The longest row whose worst rectangle doesn't get worse.
        let (mut end, mut sum, mut worst) = (at, 0.0, f64::INFINITY);
        let mut heaviest = 0.0_f64;
        while let Some(weight) = weights.get(end) {
            let (new_sum, new_heaviest) = (sum + weight, heaviest.max(*weight));
            let thick = new_sum * scale / side.max(f64::MIN_POSITIVE);
            let ratio = |weight: f64| {
                let long = weight * scale / thick.max(f64::MIN_POSITIVE);
                (long / thick).max(thick / long)
            };
            let new_worst = ratio(new_heaviest).max(ratio(*weight));
            if end > at && new_worst > worst {
                break;
            }
            (end, sum, worst, heaviest) = (end + 1, new_sum, new_worst, new_heaviest);
        }
        let row = weights.get(at..end).unwrap_or_default();
        let thick = if side > 0.0 { sum * scale / side } else { 0.0 };
        let wide = rest.width >= rest.height;
        let mut along = 0.0;
        for weight in row {
            let long = if sum > 0.0 { side * weight / sum } else { 0.0 };
            areas.push(if wide {
                Area { x: rest.x, y: rest.y + along, width: thick, height: long }
            } else {
                Area { x: rest.x + along, y: rest.y, width: long, height: thick }
            });
            along += long;
        }
        if wide {
            rest.x += thick;
            rest.width -= thick;
        } else {
            rest.y += thick;
            rest.height -= thick;
        }
        left -= sum;
        at = end;
    }
    areas
}

fn named(prefix: &str) -> String {
    if prefix.is_empty() { "(no prefix)".to_owned() } else { prefix.to_owned() }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn number(number: u64) -> String {
    crate::cli::text::count(number)
}

fn bytes(number: u64) -> String {
    crate::cli::text::size(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_have_their_weights_and_stay_inside() {
        let whole = Area { x: 10.0, y: 20.0, width: 600.0, height: 400.0 };
        let weights = [60.0, 60.0, 40.0, 30.0, 20.0, 20.0, 10.0, 0.0];
        let areas = squares(&weights, whole);
        for (weight, area) in weights.iter().zip(&areas) {
            let expected = weight * 600.0 * 400.0 / 240.0;
            assert!((area.width * area.height - expected).abs() < 1.0, "{area:?}");
            assert!(area.x >= 9.9 && area.y >= 19.9, "{area:?}");
            assert!(area.x + area.width <= 610.1 && area.y + area.height <= 420.1, "{area:?}");
        }
        assert_eq!(areas.len(), weights.len());
        let first = areas[0];
        assert!((0.4..2.5).contains(&(first.width / first.height)), "{first:?}");
        assert!(squares(&[0.0, 0.0], whole).iter().all(|area| area.width * area.height == 0.0));
    }

    #[test]
    fn names_can_do_no_harm() {
        assert_eq!(escaped("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
