//! As much of a terminal as keyfleet's output needs: lines, the cursor going up, erasing, colours.

/// How a character looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The SGR number of the foreground, 31 to 36; None: the default.
    pub color: Option<u8>,
    pub bold: bool,
    pub dim: bool,
}

/// A character and how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub char: char,
    pub look: Look,
}

/// The screen: it grows downward, nothing scrolls away.
#[derive(Debug, Default)]
pub struct Terminal {
    lines: Vec<Vec<Cell>>,
    row: usize,
    column: usize,
    look: Look,
}

impl Terminal {
    /// What a program wrote.
    pub fn write(&mut self, text: &str) {
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            match char {
                '\n' => self.row += 1,
                '\r' => self.column = 0,
                '\x1b' => {
                    let mut sequence = String::new();
                    for part in chars.by_ref() {
                        sequence.push(part);
                        if part.is_ascii_alphabetic() {
                            break;
                        }
                    }
                    self.control(&sequence);
                }
                other if other.is_control() => {}
                other => self.put(other),
            }
        }
    }

    /// The lines without what is empty at their ends and at the end of the screen.
    pub fn lines(&self) -> Vec<&[Cell]> {
        let trimmed = self.lines.iter().map(|line| {
            let end = line.iter().rposition(|cell| cell.char != ' ').map_or(0, |last| last + 1);
            line.get(..end).unwrap_or_default()
        });
        let mut lines: Vec<&[Cell]> = trimmed.collect();
        while lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        lines
    }

    fn line(&mut self) -> &mut Vec<Cell> {
        while self.lines.len() <= self.row {
            self.lines.push(Vec::new());
        }
        &mut self.lines[self.row]
    }

    fn put(&mut self, char: char) {
        let (column, look) = (self.column, self.look);
        let line = self.line();
        while line.len() <= column {
            line.push(Cell { char: ' ', look: Look::default() });
        }
        line[column] = Cell { char, look };
        self.column += 1;
    }

    /// A control sequence without its escape character (ECMA-48); others than these change nothing.
    fn control(&mut self, sequence: &str) {
        let Some(body) = sequence.strip_prefix('[') else { return };
        let (numbers, kind) = body.split_at(body.len().saturating_sub(1));
        let first = numbers.split(';').next().and_then(|number| number.parse().ok());
        match kind {
            "A" => self.row = self.row.saturating_sub(first.unwrap_or(1)),
            "J" => {
                let (row, column) = (self.row, self.column);
                self.line().truncate(column);
                self.lines.truncate(row + 1);
            }
            "K" => {
                let column = self.column;
                self.line().truncate(column);
            }
            "m" => numbers.split(';').for_each(|number| self.select(number)),
            _ => {}
        }
    }

    fn select(&mut self, number: &str) {
        match number {
            "" | "0" => self.look = Look::default(),
            "1" => self.look.bold = true,
            "2" => self.look.dim = true,
            other => self.look.color = other.parse().ok().filter(|color| (31..=36).contains(color)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(text: &str) -> Vec<String> {
        let mut terminal = Terminal::default();
        terminal.write(text);
        terminal.lines().iter().map(|line| line.iter().map(|cell| cell.char).collect()).collect()
    }

    #[test]
    fn screens() {
        let check = |text: &str, expected: &[&str]| assert_eq!(screen(text), expected, "{text:?}");
        check("one\r\ntwo\r\n", &["one", "two"]);
        check("one\r\ntwo\r\n\x1b[2A\x1b[Jnew\r\n", &["new"]);
        check("a spinner\r\x1b[Kdone", &["done"]);
        check("\x1b[?2026h\x1b[31mred\x1b[0m \x1b[?2026l\r\n\r\n", &["red"]);
        check("keep\r\nold\r\n\x1b[1A\x1b[Jleft\r\npicture\r\n\x1b[1A\x1b[J", &["keep", "left"]);
    }

    #[test]
    fn looks() {
        let mut terminal = Terminal::default();
        terminal.write("\x1b[1;31mx\x1b[0my");
        let lines = terminal.lines();
        let look = Look { color: Some(31), bold: true, dim: false };
        assert_eq!((lines[0][0].look, lines[0][1].look), (look, Look::default()));
    }
}
