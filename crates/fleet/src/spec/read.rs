//! From the YAML tree to typed values, with every error collected instead of the first one thrown.
//!
//! [`mapping!`] declares a mapping of the spec once: its keys, their types and their reference text.
//! The reading code and the JSON Schema both come from that declaration.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    SpecError,
    tree::{Kind, Mark, Node, Style},
};

/// Where a value stands: in the text, and in the mapping of mappings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub mark: Mark,
    /// `clusters.cache.shards`
    pub path: String,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

impl<T> At<T> {
    pub fn new(value: T, place: Place) -> Self {
        Self { value, place }
    }
}

/// A key's value in a mapping.
#[derive(Clone, Debug, Default)]
pub enum Field<T> {
    #[default]
    Missing,
    /// Not of the right form; reported already.
    Bad,
    Given(At<T>),
}

impl<T> Field<T> {
    /// What is given, or the default (which stands at `place`), or None where it was bad.
    pub fn or(self, default: T, place: &Place) -> Option<At<T>> {
        match self {
            Self::Given(given) => Some(given),
            Self::Missing => Some(At::new(default, place.clone())),
            Self::Bad => None,
        }
    }

    /// None where it is missing, an error where it was bad.
    pub fn optional(self) -> Result<Option<T>, Reported> {
        match self {
            Self::Given(given) => Ok(Some(given.value)),
            Self::Missing => Ok(None),
            Self::Bad => Err(Reported),
        }
    }

    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Field<U> {
        match self {
            Self::Given(given) => Field::Given(At::new(change(given.value), given.place)),
            Self::Missing => Field::Missing,
            Self::Bad => Field::Bad,
        }
    }

    pub fn as_given(&self) -> Option<&At<T>> {
        match self {
            Self::Given(given) => Some(given),
            Self::Missing | Self::Bad => None,
        }
    }

    /// What is given; None where it is missing or bad.
    pub fn given(self) -> Option<At<T>> {
        match self {
            Self::Given(given) => Some(given),
            Self::Missing | Self::Bad => None,
        }
    }
}

/// Something was bad, and that has been reported.
#[derive(Debug)]
pub struct Reported;

/// The entries of a mapping whose keys are free, in the order of the file.
#[derive(Debug)]
pub struct Entries<T>(pub Vec<Entry<T>>);

/// See [`Entries`].
#[derive(Debug)]
pub struct Entry<T> {
    pub key: At<String>,
    /// None where it was bad; reported already.
    pub value: Option<T>,
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Collects errors; knows the path to where reading is.
#[derive(Debug)]
pub struct Reader {
    file: String,
    path: Vec<String>,
    errors: Vec<SpecError>,
    warnings: Vec<SpecError>,
}

impl Reader {
    pub fn new(file: &str) -> Self {
        let file = file.to_owned();
        Self { file, path: Vec::new(), errors: Vec::new(), warnings: Vec::new() }
    }

    /// (errors, warnings), each in the order of the file.
    pub fn finish(mut self) -> (Vec<SpecError>, Vec<SpecError>) {
        for list in [&mut self.errors, &mut self.warnings] {
            list.sort_by_key(|error| (error.line, error.column));
            list.dedup();
        }
        (self.errors, self.warnings)
    }

    /// The place of `mark` under the path where reading is.
    pub fn place(&self, mark: Mark) -> Place {
        Place { mark, path: self.path.join(".") }
    }

    /// Report an error; a hint can be added to what is returned.
    pub fn error(&mut self, place: &Place, message: impl Into<String>) -> &mut SpecError {
        push(&mut self.errors, SpecError::at(&self.file, place, message.into()))
    }

    /// Report what is probably not meant.
    pub fn warn(&mut self, place: &Place, message: impl Into<String>) -> &mut SpecError {
        push(&mut self.warnings, SpecError::at(&self.file, place, message.into()))
    }

    /// Take over an error that was made elsewhere.
    pub fn add(&mut self, error: SpecError) {
        self.errors.push(error);
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    /// Report that `node` is not `expected` (with its article: "a list").
    pub fn wrong_kind(&mut self, node: &Node, expected: &str) -> &mut SpecError {
        let place = self.place(node.mark);
        self.error(&place, format!("expected {expected}, found {}", found(node)))
    }

    /// A plain or quoted scalar's own text; else an error that `expected` was expected.
    pub fn scalar<'a>(&mut self, node: &'a Node, expected: &str) -> Option<&'a str> {
        match &node.kind {
            Kind::Scalar { text, .. } if !is_null(node) => Some(text),
            _ => {
                self.wrong_kind(node, expected);
                None
            }
        }
    }

    /// The entries of a mapping, without those whose key was there before, which are reported.
    /// A missing value (`cache:`) is an empty mapping.
    pub fn entries<'a>(
        &mut self,
        node: &'a Node,
        expected: &str,
    ) -> Option<Vec<(At<String>, &'a Node)>> {
        if is_null(node) {
            return Some(Vec::new());
        }
        let Kind::Map(entries) = &node.kind else {
            self.wrong_kind(node, expected);
            return None;
        };
        let mut first_lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut unique = Vec::new();
        for (key, value) in entries {
            let place = self.within(&key.text, |reader| reader.place(key.mark));
            if let Some(line) = first_lines.get(key.text.as_str()) {
                let message = format!("{:?} is there twice; the first is on line {line}", key.text);
                self.error(&place, message).hint("remove one of them");
            } else {
                first_lines.insert(&key.text, key.mark.line);
                unique.push((At::new(key.text.clone(), place), value));
            }
        }
        Some(unique)
    }

    /// Read something that lies under `key`.
    pub fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(key.to_owned());
        let read = read(self);
        self.path.pop();
        read
    }

    /// Report a key that isn't one of `known`; `later` are those of a version to come.
    pub fn unknown_key(&mut self, key: &At<String>, known: &[&str], later: &[&str]) {
        let name = &key.value;
        if later.contains(&name.as_str()) {
            self.error(&key.place, format!("{name:?} is not supported yet")).hint("remove it");
            return;
        }
        if name == "<<" {
            self.error(&key.place, "merging mappings with \"<<\" is not supported")
                .hint("write the keys out where they belong");
            return;
        }
        let hint = nearest_or_all(name, known, "the keys here are");
        self.error(&key.place, format!("unknown key {name:?}")).hint(hint);
    }
}

fn push(list: &mut Vec<SpecError>, error: SpecError) -> &mut SpecError {
    let index = list.len();
    list.push(error);
    &mut list[index]
}

/// `did you mean "shards"?`, or else the whole list.
pub fn nearest_or_all(name: &str, known: &[&str], list: &str) -> String {
    nearest(name, known).map_or_else(
        || format!("{list} {}", known.join(", ")),
        |near| format!("did you mean {near:?}?"),
    )
}

/// The one of `known` that is at most a third of its letters away from `name`.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    let name = name.to_lowercase().replace('_', "-");
    let distance = |known: &str| strsim::osa_distance(&name, known);
    let near = known.iter().min_by_key(|known| distance(known))?;
    (distance(near) <= (near.len() / 3).max(1) && distance(near) < near.len()).then_some(near)
}

/// Is it a value that is left out (`key:`), or null?
pub fn is_null(node: &Node) -> bool {
    matches!(&node.kind, Kind::Scalar { text, style: Style::Plain }
        if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
}

fn found(node: &Node) -> String {
    match &node.kind {
        _ if is_null(node) => "nothing".to_owned(),
        Kind::Scalar { style: Style::Literal | Style::Folded, .. } => "a block of text".to_owned(),
        Kind::Scalar { text, .. } => {
            let short: String = text.chars().take(40).collect();
            if short.len() < text.len() { format!("{short:?}…") } else { format!("{short:?}") }
        }
        Kind::List(_) => "a list".to_owned(),
        Kind::Map(_) => "a mapping".to_owned(),
    }
}

/// Can be read from a YAML node.
pub trait Decode: Sized {
    /// None where the node is not of the right form, which is then reported.
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self>;
}

impl Decode for u32 {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let number = match &node.kind {
            Kind::Scalar { text, style: Style::Plain } => text.parse().ok(),
            _ => None,
        };
        if number.is_none() {
            let error = reader.wrong_kind(node, "a whole number");
            if matches!(&node.kind, Kind::Scalar { text, style: Style::Quoted } if text.parse::<Self>().is_ok())
            {
                error.hint("remove the quotes");
            }
        }
        number
    }
}

impl Decode for bool {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let truth = match &node.kind {
            Kind::Scalar { text, style: Style::Plain } => text.parse().ok(),
            _ => None,
        };
        if truth.is_none() {
            reader.wrong_kind(node, "true or false");
        }
        truth
    }
}

impl Decode for String {
    /// Any scalar's own text, so that a version 7.10 stays what it is.
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        reader.scalar(node, "a text").map(str::to_owned)
    }
}

impl Decode for IpAddr {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let text = reader.scalar(node, "an IP address")?;
        let address = text.parse().ok();
        if address.is_none() {
            let place = reader.place(node.mark);
            reader
                .error(&place, format!("not an IP address: {text:?}"))
                .hint("names are not looked up: write the address, such as 127.0.0.1");
        }
        address
    }
}

impl<T: Decode> Decode for Vec<At<T>> {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let Kind::List(items) = &node.kind else {
            reader.wrong_kind(node, "a list, such as [a, b]");
            return None;
        };
        let decode = |(index, item): (usize, &Node)| {
            reader.within(&index.to_string(), |reader| {
                T::decode(item, reader).map(|value| At::new(value, reader.place(item.mark)))
            })
        };
        let items: Vec<Option<At<T>>> = items.iter().enumerate().map(decode).collect();
        items.into_iter().collect()
    }
}

impl<T: Decode> Decode for Entries<T> {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let entries = reader.entries(node, "a mapping from names")?;
        let decode = |(key, node): (At<String>, &Node)| {
            let value = reader.within(&key.value, |reader| T::decode(node, reader));
            Entry { key, value }
        };
        Some(Self(entries.into_iter().map(decode).collect()))
    }
}

/// One word of a few.
pub trait Choice: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
    /// Words of a version to come.
    const LATER: &'static [&'static str] = &[];
}

impl<T: Choice> Decode for T {
    fn decode(node: &Node, reader: &mut Reader) -> Option<Self> {
        let known: Vec<&str> = Self::WORDS.iter().map(|(word, _)| *word).collect();
        let text = reader.scalar(node, &format!("one of {}", known.join(", ")))?;
        let chosen = Self::WORDS.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if chosen.is_none() {
            let place = reader.place(node.mark);
            if Self::LATER.contains(&text) {
                reader
                    .error(&place, format!("{text:?} is not supported yet"))
                    .hint(format!("this version knows {}", known.join(", ")));
            } else {
                let message = format!("expected one of {}, found {text:?}", known.join(", "));
                reader.error(&place, message).hint =
                    nearest(text, &known).map(|near| format!("did you mean {near:?}?"));
            }
        }
        chosen
    }
}

/// The keys of one mapping while they are read.
pub struct Fields<'a> {
    entries: Vec<(At<String>, &'a Node)>,
    /// Keys of the spec that were asked for, and whether they were there.
    asked: Vec<(String, bool)>,
    mark: Mark,
}

impl<'a> Fields<'a> {
    pub fn open(node: &'a Node, reader: &mut Reader) -> Option<Self> {
        let entries = reader.entries(node, "a mapping of keys and values")?;
        Some(Self { entries, asked: Vec::new(), mark: node.mark })
    }

    /// Read the key for a field of that name (`node_timeout` for `node-timeout`).
    pub fn take<T: Decode>(&mut self, field: &str, reader: &mut Reader) -> Field<T> {
        let name = field.replace('_', "-");
        let index = self.entries.iter().position(|(key, _)| key.value == name);
        self.asked.push((name, index.is_some()));
        let Some(index) = index else { return Field::Missing };
        let (key, node) = self.entries.remove(index);
        let value = reader.within(&key.value, |reader| T::decode(node, reader));
        // A value that is left out can't be pointed at; its key can.
        let mark = if is_null(node) { key.place.mark } else { node.mark };
        value.map_or(Field::Bad, |value| Field::Given(At::new(value, Place { mark, ..key.place })))
    }

    /// Report what nobody asked for and, of `required`, what was not there.
    pub fn close(self, required: &[&str], later: &[&str], reader: &mut Reader) {
        let known: Vec<&str> = self.asked.iter().map(|(name, _)| name.as_str()).collect();
        for (key, _) in &self.entries {
            reader.unknown_key(key, &known, later);
        }
        let place = reader.place(self.mark);
        for (name, there) in &self.asked {
            if !there && required.contains(&name.as_str()) {
                reader.error(&place, format!("{name:?} is missing"));
            }
        }
    }
}

/// Declares a mapping of the spec: each field's doc comment is its reference text. Keys are the
/// fields' names with dashes. `required` must be there, `later` is refused as not supported yet.
macro_rules! mapping {
    (
        $(#[$meta:meta])*
        $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $kind:ty,)*
        }
        required [$($required:literal),*] later [$($later:literal),*]
    ) => {
        #[derive(Debug, Default, schemars::JsonSchema)]
        $(#[$meta])*
        #[schemars(rename_all = "kebab-case", deny_unknown_fields)]
        #[schemars(extend("required" = [$($required),*]))]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $crate::spec::read::Field<$kind>,)*
        }

        impl $crate::spec::read::Decode for $name {
            fn decode(
                node: &$crate::spec::tree::Node,
                reader: &mut $crate::spec::read::Reader,
            ) -> Option<Self> {
                let mut fields = $crate::spec::read::Fields::open(node, reader)?;
                let value = Self { $($field: fields.take(stringify!($field), reader),)* };
                fields.close(&[$($required),*], &[$($later),*], reader);
                Some(value)
            }
        }
    };
}
pub(super) use mapping;
