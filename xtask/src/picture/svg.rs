//! A terminal's screen as SVG: every run of equal looks at its own place, so that columns stand
//! below each other whatever font the reader has.

use std::fmt::Write as _;

use super::terminal::{Cell, Look};

const FONT_SIZE: f64 = 14.0;
/// Of a monospaced font a character is 0.6 of its size wide.
const CHAR_WIDTH: f64 = FONT_SIZE * 0.602;
const LINE_HEIGHT: f64 = 20.0;
const MARGIN: f64 = 22.0;
const TITLE_HEIGHT: f64 = 40.0;
const COLUMNS_MIN: usize = 88;

const STYLE: &str = "
    .frame { fill: #0e1420; stroke: #253045; }
    .title { fill: #7d8aa5; font: 13px system-ui, sans-serif; text-anchor: middle; }
    text { font: 14px ui-monospace, 'JetBrains Mono', 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace;
           fill: #d5dcea; white-space: pre; }
    .bold { font-weight: 700; fill: #ffffff; }
    .dim { fill: #77839b; }
    .red { fill: #ff6b78; }
    .green { fill: #5fd38d; }
    .yellow { fill: #f2c661; }
    .blue { fill: #6cb2ff; }
    .magenta { fill: #d59bf6; }
    .cyan { fill: #62d6e8; }
";

/// The picture.
pub fn draw(lines: &[&[Cell]], title: &str) -> String {
    let columns = lines.iter().map(|line| line.len()).max().unwrap_or(0).max(COLUMNS_MIN);
    let width = columns as f64 * CHAR_WIDTH + 2.0 * MARGIN;
    let height = lines.len() as f64 * LINE_HEIGHT + TITLE_HEIGHT + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n<style>{STYLE}</style>\n\
         <rect class=\"frame\" x=\"0.5\" y=\"0.5\" width=\"{:.0}\" height=\"{:.0}\" rx=\"10\"/>\n",
        escaped(title),
        width - 1.0,
        height - 1.0,
    );
    for (index, color) in ["#ff5f57", "#febc2e", "#28c840"].iter().enumerate() {
        let x = MARGIN + index as f64 * 20.0;
        let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"20\" r=\"6\" fill=\"{color}\"/>");
    }
    let _ = writeln!(
        out,
        "<text class=\"title\" x=\"{:.0}\" y=\"25\">{}</text>",
        width / 2.0,
        escaped(title)
    );
    for (row, line) in lines.iter().enumerate() {
        let y = TITLE_HEIGHT + (row as f64 + 0.8) * LINE_HEIGHT;
        for (column, text, look) in runs(line) {
            let x = MARGIN + column as f64 * CHAR_WIDTH;
            let length = text.chars().count() as f64 * CHAR_WIDTH;
            let class = class(look);
            let class = if class.is_empty() { class } else { format!(" class=\"{class}\"") };
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y:.0}\" textLength=\"{length:.1}\"{class}>{}</text>",
                escaped(&text)
            );
        }
    }
    out.push_str("</svg>\n");
    out
}

/// The line's parts of one look, each with the column where it starts; two spaces end a part too.
fn runs(line: &[Cell]) -> Vec<(usize, String, Look)> {
    let mut runs: Vec<(usize, String, Look)> = Vec::new();
    let mut spaces = 2;
    for (column, cell) in line.iter().enumerate() {
        if cell.char == ' ' {
            spaces += 1;
            continue;
        }
        match runs.last_mut() {
            Some((_, text, look)) if *look == cell.look && spaces < 2 => {
                text.push_str(&" ".repeat(spaces));
                text.push(cell.char);
            }
            _ => runs.push((column, cell.char.to_string(), cell.look)),
        }
        spaces = 0;
    }
    runs
}

fn class(look: Look) -> String {
    let mut classes = Vec::new();
    classes.extend(look.color.and_then(|color| match color {
        31 => Some("red"),
        32 => Some("green"),
        33 => Some("yellow"),
        34 => Some("blue"),
        35 => Some("magenta"),
        36 => Some("cyan"),
        _ => None,
    }));
    if look.bold {
        classes.push("bold");
    }
    if look.dim {
        classes.push("dim");
    }
    classes.join(" ")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
