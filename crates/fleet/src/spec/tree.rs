//! YAML text as a tree whose every part knows where it stands. It knows nothing of what a spec means.
//!
//! Scalars keep their own text, so that `7.10` is not rounded to a number and `yes` stays `yes`.

use granit_parser::{Event, Parser, ScalarStyle, Span};

/// Nodes that a tree may have after its aliases are written out: far more than any fleet needs, few
/// enough that aliases of aliases can't fill the memory.
const NODES_MAX: usize = 100_000;

/// A range of characters within one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// At least 1.
    pub width: usize,
}

impl Mark {
    fn of(span: Span) -> Self {
        let one_line = span.start.line() == span.end.line();
        let width = if one_line { span.end.col().saturating_sub(span.start.col()) } else { 1 };
        Self { line: span.start.line(), column: span.start.col() + 1, width: width.max(1) }
    }
}

/// A value.
#[derive(Clone, Debug)]
pub struct Node {
    pub mark: Mark,
    pub kind: Kind,
}

/// See [`Node`].
#[derive(Clone, Debug)]
pub enum Kind {
    Scalar {
        text: String,
        style: Style,
    },
    List(Vec<Node>),
    /// In the order of the file; keys may be there twice.
    Map(Vec<(Key, Node)>),
}

/// How a scalar is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Quoted,
    /// `|`: each line of the text is a line of the file.
    Literal,
    /// `>`
    Folded,
}

/// A mapping's key.
#[derive(Clone, Debug)]
pub struct Key {
    pub mark: Mark,
    pub text: String,
}

/// The text is not one YAML document of a kind that is understood here.
#[derive(Debug)]
pub struct BadYaml {
    pub mark: Mark,
    pub message: String,
    pub hint: Option<String>,
}

impl BadYaml {
    fn new(mark: Mark, message: impl Into<String>, hint: &str) -> Self {
        Self { mark, message: message.into(), hint: Some(hint.to_owned()) }
    }
}

/// A collection that isn't closed yet.
enum Open {
    List { node: Node, items: Vec<Node>, anchor: usize },
    Map { node: Node, entries: Vec<(Key, Node)>, key: Option<Key>, anchor: usize },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// Finished nodes with an anchor, by its number, which counts from 1.
    anchors: Vec<(usize, Node)>,
    nodes: usize,
    root: Option<Node>,
}

/// Read `text` as one document; None where it holds nothing but comments.
pub fn read(text: &str) -> Result<Option<Node>, BadYaml> {
    let mut builder = Builder::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let mark =
                Mark { line: error.marker().line(), column: error.marker().col() + 1, width: 1 };
            let message = format!("not valid YAML: {}", error.info());
            BadYaml::new(
                mark,
                message,
                "check the indentation, quotes and brackets here and just above",
            )
        })?;
        let mark = Mark::of(span);
        if let Event::DocumentStart(..) = event {
            documents += 1;
            if documents > 1 {
                let hint = "put everything into the first one, without \"---\" lines";
                return Err(BadYaml::new(mark, "a second YAML document starts here", hint));
            }
        }
        builder.take(event, mark)?;
    }
    Ok(builder.root)
}

impl Builder {
    fn take(&mut self, event: Event<'_>, mark: Mark) -> Result<(), BadYaml> {
        let tagged = matches!(
            event,
            Event::Scalar(_, _, _, Some(_))
                | Event::SequenceStart(_, _, Some(_))
                | Event::MappingStart(_, _, Some(_))
        );
        if tagged {
            return Err(BadYaml::new(mark, "YAML tags are not supported", "remove the !tag"));
        }
        let empty = |kind| Node { mark, kind };
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
                    ScalarStyle::Literal => Style::Literal,
                    ScalarStyle::Folded => Style::Folded,
                };
                self.add(empty(Kind::Scalar { text: text.into_owned(), style }), anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let node = empty(Kind::List(Vec::new()));
                self.open.push(Open::List { node, items: Vec::new(), anchor });
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                let node = empty(Kind::Map(Vec::new()));
                self.open.push(Open::Map { node, entries: Vec::new(), key: None, anchor });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List { node, items, anchor }) => {
                    self.add(Node { kind: Kind::List(items), ..node }, anchor)
                }
                Some(Open::Map { node, entries, anchor, .. }) => {
                    self.add(Node { kind: Kind::Map(entries), ..node }, anchor)
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let node = self.anchors.iter().find(|(number, _)| *number == anchor);
                let Some(node) = node.map(|(_, node)| node.clone()) else {
                    let hint = "write the value out here";
                    return Err(BadYaml::new(
                        mark,
                        "this alias stands within its own anchor",
                        hint,
                    ));
                };
                self.nodes = self.nodes.saturating_add(count(&node));
                self.add(node, 0)
            }
            _ => Ok(()),
        }
    }

    /// Put a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), BadYaml> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let message = format!("more than {NODES_MAX} values");
            return Err(BadYaml::new(node.mark, message, "write fewer aliases of aliases"));
        }
        if anchor > 0 {
            self.nodes = self.nodes.saturating_add(count(&node));
            self.anchors.push((anchor, node.clone()));
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => match node.kind {
                    Kind::Scalar { text, .. } => *key = Some(Key { mark: node.mark, text }),
                    Kind::List(_) | Kind::Map(_) => {
                        let hint = "write the key as one word";
                        return Err(BadYaml::new(node.mark, "a list or a mapping as a key", hint));
                    }
                },
            },
        }
        Ok(())
    }
}

fn count(node: &Node) -> usize {
    match &node.kind {
        Kind::Scalar { .. } => 1,
        Kind::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        Kind::Map(entries) => 1 + entries.iter().map(|(_, node)| count(node)).sum::<usize>(),
    }
}
