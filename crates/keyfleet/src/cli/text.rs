//! Text for people: colour, widths, numbers, times, bars. Pure.

use std::fmt::Write as _;

use fleet::model::Bytes;

/// Colour where it is wanted, plain text where not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    pub color: bool,
}

impl Style {
    /// No colour at all.
    pub const PLAIN: Self = Self { color: false };

    fn paint(self, code: &str, text: &str) -> String {
        if self.color && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub fn cyan(self, text: &str) -> String {
        self.paint("36", text)
    }

    pub fn bold_red(self, text: &str) -> String {
        self.paint("1;31", text)
    }
}

/// How many terminal columns a text takes: escape sequences none, East Asian wide characters two.
pub fn columns(text: &str) -> usize {
    let mut total = 0;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char == '\x1b' {
            chars.by_ref().find(char::is_ascii_alphabetic);
        } else {
            total += char_columns(char);
        }
    }
    total
}

const fn char_columns(char: char) -> usize {
    match char as u32 {
        0x00..=0x1f | 0x7f..=0x9f | 0x300..=0x36f | 0x200b..=0x200f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

/// The text filled up with spaces on the right to `width` columns.
pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// The text filled up with spaces on the left to `width` columns.
pub fn pad_left(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(columns(text))))
}

/// The text cut to `width` columns, the last one `…` where something was cut. Escape sequences stay.
pub fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut left = width.saturating_sub(1);
    let mut chars = text.chars();
    let mut colored = false;
    while let Some(char) = chars.next() {
        if char == '\x1b' {
            colored = true;
            out.push(char);
            for part in chars.by_ref() {
                out.push(part);
                if part.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if char_columns(char) > left {
            break;
        } else {
            left -= char_columns(char);
            out.push(char);
        }
    }
    out.push('…');
    if colored {
        out.push_str("\x1b[0m");
    }
    out
}

/// The text on several lines of at most `width` columns, broken at spaces; each line after
/// the first starts with `indent` spaces, and the first is taken to start there too.
pub fn wrap(text: &str, width: usize, indent: usize) -> String {
    let room = width.saturating_sub(indent).max(20);
    let mut out = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let here = columns(word);
        if used > 0 && used + 1 + here > room {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            used = 0;
        } else if used > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += here;
    }
    out
}

/// Text from outside made fit for a terminal: control characters become `·`, tabs a space.
pub fn safe(text: &str) -> String {
    let fit = |char: char| match char {
        '\t' => ' ',
        other if other.is_control() => '·',
        other => other,
    };
    text.chars().map(fit).collect()
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12 B`, `3.4 KiB`, `1.2 GiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `1 shard`, `3 shards`: the word in the singular, made plural with an s.
pub fn plural(number: u64, word: &str) -> String {
    format!("{} {word}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `1.2 s`, `45 s`, `3 min`, `5 h`, `12 d`.
pub fn span(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..10_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        10_000..120_000 => format!("{} s", millis / 1_000),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        7_200_000..172_800_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} d", millis / 86_400_000),
    }
}

/// A bar of `width` characters filled to `used` of `limit`.
pub fn bar(used: u64, limit: u64, width: usize) -> String {
    let eighths = if limit == 0 {
        0
    } else {
        let share = (used as f64 / limit as f64).clamp(0.0, 1.0);
        (share * (width * 8) as f64).round() as usize
    };
    // Something is never drawn as nothing.
    let eighths = if used > 0 && limit > 0 { eighths.max(1) } else { eighths };
    let mut out = "█".repeat(eighths / 8);
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    out.push_str(PARTS[eighths % 8]);
    let drawn = columns(&out);
    out.push_str(&"·".repeat(width.saturating_sub(drawn)));
    out
}

/// `24 MiB of 1.5 GiB`, or without a limit `24 MiB`.
pub fn of_limit(used: u64, limit: u64) -> String {
    let mut out = Bytes(used).to_string();
    if limit > 0 {
        let _ = write!(out, " of {}", Bytes(limit));
    }
    out
}

/// The name nearest to `wrong`, where one is near enough to be meant.
pub fn nearest<'a>(wrong: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = wrong.chars().count().max(3) / 3 + 1;
    names
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, name)| name)
}

/// How many letters to insert, delete or replace to get from one to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = corner + usize::from(left != *right);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths() {
        let check = |text: &str, expected: usize| assert_eq!(columns(text), expected, "{text:?}");
        check("cache", 5);
        check("\x1b[1;31mcache\x1b[0m", 5);
        check("缓存", 4);
        check("● ok", 4);
    }

    #[test]
    fn cuts_keep_colour() {
        let check = |text: &str, width: usize, expected: &str| {
            assert_eq!(cut(text, width), expected);
        };
        check("cache", 5, "cache");
        check("caches", 5, "cach…");
        check("\x1b[31mcaches\x1b[0m", 5, "\x1b[31mcach…\x1b[0m");
        check("缓存缓存", 4, "缓…");
    }

    #[test]
    fn numbers() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(16_384), "16,384");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(plural(1, "shard"), "1 shard");
        assert_eq!(plural(2, "shard"), "2 shards");
    }

    #[test]
    fn spans() {
        let check = |millis: u64, expected: &str| assert_eq!(span(millis), expected);
        check(12, "12 ms");
        check(1_250, "1.2 s");
        check(45_000, "45 s");
        check(180_000, "3 min");
        check(7_200_000, "2 h");
        check(864_000_000, "10 d");
    }

    #[test]
    fn bars() {
        let check =
            |used: u64, limit: u64, expected: &str| assert_eq!(bar(used, limit, 4), expected);
        check(0, 100, "····");
        check(1, 1000, "▏···");
        check(50, 100, "██··");
        check(100, 100, "████");
        check(300, 100, "████");
        check(5, 0, "····");
    }

    #[test]
    fn nearest_names() {
        let names = ["cache", "sessions", "hot"];
        let check =
            |wrong: &str, expected: Option<&str>| assert_eq!(nearest(wrong, names), expected);
        check("cach", Some("cache"));
        check("session", Some("sessions"));
        check("hto", Some("hot"));
        check("queue", None);
    }

    #[test]
    fn wraps_at_spaces() {
        assert_eq!(wrap("one two three four five six", 24, 4), "one two three four\n    five six");
    }

    #[test]
    fn outside_text_is_made_safe() {
        assert_eq!(safe("a\x1b[31m\tb\n"), "a·[31m b·");
    }
}
