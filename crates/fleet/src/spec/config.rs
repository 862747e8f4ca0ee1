//! `config:`: directives of the engine's own configuration file, as a mapping or as its text.
//!
//! Values are passed on as they are; what they mean is the engine's business. Only the directives that
//! keyfleet itself sets are refused, each with the key of the spec that stands for it.

use std::{borrow::Cow, collections::BTreeMap};

use protocol::{
    Engine, EngineKind, Version, conf,
    directives::{self, Known},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    SpecError, owned,
    read::{At, Decode, Place, Reader, is_null},
    tree::{Kind, Mark, Node, Style},
};
use crate::model::DirectiveValue;

/// The directives of a `config:`, by their names in lower case, each with the place of its (last) name.
#[derive(Debug, Default)]
pub struct ConfigSpec(pub BTreeMap<String, At<DirectiveValue>>);

impl Decode for ConfigSpec {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let mut config = Self::default();
        match &node.kind {
            _ if is_null(node) => {}
            Kind::Map(_) => config.read_mapping(node, reader),
            Kind::Scalar { text, style: Style::Literal } => {
                config.read_text(text, node.mark, reader);
            }
            Kind::Scalar { .. } => {
                reader
                    .wrong_kind(node, "a mapping of directives or a block of their lines")
                    .hint("begin a block with \"config: |\", which keeps its lines apart");
            }
            Kind::List(_) => {
                reader.wrong_kind(node, "a mapping of directives or a block of their lines");
            }
        }
        Some(config)
    }
}

impl ConfigSpec {
    fn read_mapping(&mut self, node: &Node, reader: &mut Reader) {
        let entries = reader.entries(node, "a mapping of directives").unwrap_or_default();
        for (key, value) in entries {
            let name = key.value.to_ascii_lowercase();
            if owned::refuse(&name, &key.place, reader) {
                continue;
            }
            let value = reader.within(&key.value, |reader| read_value(&name, value, reader));
            if let Some(value) = value {
                self.0.insert(name, At::new(value, key.place));
            }
        }
    }

    /// `mark` is that of the text's first line that isn't blank.
    fn read_text(&mut self, text: &str, mark: Mark, reader: &mut Reader) {
        let blank = text.lines().take_while(|line| line.is_empty()).count();
        for (index, line) in text.lines().enumerate().skip(blank) {
            let indent = line.chars().take_while(|c| c.is_whitespace()).count();
            let column = mark.column + indent;
            let at_line = Mark { line: mark.line + index - blank, column, width: 1 };
            let directive = match conf::parse_line(line) {
                Ok(Some(directive)) => directive,
                Ok(None) => continue,
                Err(error) => {
                    let column = mark.column + error.column.saturating_sub(1);
                    let place = reader.place(Mark { column, ..at_line });
                    reader.error(&place, error.problem.to_string());
                    continue;
                }
            };
            let conf::Directive { name, args } = directive;
            let place = reader.place(Mark { width: name.chars().count().max(1), ..at_line });
            if owned::refuse(&name, &place, reader) {
                continue;
            }
            if args.is_empty() {
                reader
                    .error(&place, format!("{name:?} has no value"))
                    .hint("write \"\" for an empty one");
                continue;
            }
            let earlier = self.0.remove(&name);
            let mut lines = Vec::new();
            match earlier {
                Some(earlier) if repeats(&name) => lines = earlier.value.0,
                Some(earlier) => {
                    let line = earlier.place.mark.line;
                    reader.warn(&place, format!("{name:?} replaces the one on line {line}"));
                }
                None => {}
            }
            lines.extend(grouped(&name, args));
            self.0.insert(name, At::new(DirectiveValue(lines), place));
        }
    }
}

/// A directive's value: a scalar, or a list of them for several lines.
fn read_value(name: &str, node: &Node, reader: &mut Reader) -> Option<DirectiveValue> {
    let Kind::List(items) = &node.kind else {
        return Some(DirectiveValue(grouped(name, read_line(name, node, reader)?)));
    };
    let place = reader.place(node.mark);
    if items.is_empty() {
        reader.error(&place, "the list is empty").hint("write \"\" for an empty value");
        return None;
    }
    if items.len() > 1 && !repeats(name) {
        let message = format!("{name:?} can stand in one line only, not in {}", items.len());
        reader.error(&place, message).hint("write its arguments as one text, with spaces between");
        return None;
    }
    let lines: Vec<Option<Vec<String>>> =
        items.iter().map(|item| read_line(name, item, reader)).collect();
    let lines: Vec<Vec<String>> = lines.into_iter().collect::<Option<_>>()?;
    Some(DirectiveValue(lines.into_iter().flat_map(|line| grouped(name, line)).collect()))
}

/// The arguments of one line as the lines that all engines take: `save 900 1 300 10` is two.
fn grouped(name: &str, arguments: Vec<String>) -> Vec<Vec<String>> {
    match directives::arguments_per_line(name) {
        Some(count) if count > 0 && arguments.len().is_multiple_of(count) => {
            arguments.chunks(count).map(<[String]>::to_vec).collect()
        }
        _ => vec![arguments],
    }
}

/// One line's arguments.
fn read_line(name: &str, node: &Node, reader: &mut Reader) -> Option<Vec<String>> {
    const EXPECTED: &str = "a value (\"\" for an empty one)";
    let text = match &node.kind {
        Kind::Scalar { style: Style::Literal | Style::Folded, .. } => {
            reader.wrong_kind(node, EXPECTED);
            return None;
        }
        _ => reader.scalar(node, EXPECTED)?,
    };
    let plain = matches!(node.kind, Kind::Scalar { style: Style::Plain, .. });
    if text.is_empty() || !several_arguments(name) {
        let text = match text {
            "true" | "True" | "TRUE" if plain => "yes",
            "false" | "False" | "FALSE" if plain => "no",
            text => text,
        };
        return Some(vec![text.to_owned()]);
    }
    match conf::parse_line(&format!("{name} {text}")) {
        Ok(directive) => directive.map(|directive| directive.args),
        Err(error) => {
            let place = reader.place(node.mark);
            reader.error(&place, error.problem.to_string());
            None
        }
    }
}

/// Does the directive take several arguments on any engine?
fn several_arguments(name: &str) -> bool {
    directives::engines_with(name).into_iter().any(|(kind, version)| {
        matches!(
            directives::lookup(Engine { kind, version }, name),
            Known::Known { multi: true, .. }
        )
    })
}

/// Do all its lines count, not only the last?
fn repeats(name: &str) -> bool {
    directives::arguments_per_line(name).is_some() || name == "loadmodule"
}

/// The name that all engines know it by where it has several (`slave-priority` is
/// `replica-priority`). Names that are newer than the oldest engine are left alone.
fn canonical(name: &str) -> &str {
    const OLDEST: Engine = Engine { kind: EngineKind::Redis, version: Version::new(6, 2, 0) };
    directives::canonical(OLDEST, name)
}

impl ConfigSpec {
    /// The directives by canonical name. One that is there under two names is reported.
    pub fn canonical(self, reader: &mut Reader) -> BTreeMap<String, At<DirectiveValue>> {
        let mut lowered: BTreeMap<String, At<DirectiveValue>> = BTreeMap::new();
        for (name, value) in self.0 {
            let known_as = canonical(&name).to_owned();
            if let Some(other) = lowered.get(&known_as) {
                let line = other.place.mark.line;
                let message =
                    format!("{name:?} and {known_as:?} (line {line}) are the same directive");
                reader.error(&value.place, message).hint("remove one of them");
            } else {
                lowered.insert(known_as, value);
            }
        }
        lowered
    }
}

/// The engine refuses to start with this directive: why, and what was perhaps meant.
pub fn unknown_directive(
    engine: Engine,
    name: &str,
    file: &str,
    place: &Place,
) -> Option<SpecError> {
    if directives::lookup(engine, name) != Known::Unknown {
        return None;
    }
    let Engine { kind, version } = engine;
    let message = format!("{kind} {}.{} doesn't know {name:?}", version.major, version.minor);
    let mut error = SpecError::at(file, place, message);
    let others: Vec<String> = directives::engines_with(name)
        .into_iter()
        .map(|(kind, version)| format!("{kind} {}.{}", version.major, version.minor))
        .collect();
    if !others.is_empty() {
        error.hint(format!("remove it: only {} and later know it", others.join(", ")));
    } else if let Some(near) = directives::nearest(engine, name) {
        error.hint(format!("did you mean {near:?}?"));
    } else {
        error.hint("remove it: no engine known here has it");
    }
    Some(error)
}

impl JsonSchema for ConfigSpec {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Config".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "object", "null"],
            "additionalProperties": {
                "type": ["string", "number", "boolean", "array"],
                "items": { "type": ["string", "number", "boolean"] },
                "minItems": 1,
            },
        })
    }
}
