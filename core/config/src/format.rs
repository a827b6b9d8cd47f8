//! The three formats: a text becomes values, an error or a key becomes a position, and values become a text.

use std::{cell::Cell, fmt, path::Path};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use toml::de::{DeArray, DeTable, DeValue};

use crate::{ConfigError, Position};

/// The formats of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Format {
    /// `.yaml`, `.yml`
    Yaml,
    /// `.toml`
    Toml,
    /// `.json`
    Json,
}

/// One step of a path to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// The path that is written `token_issuers[1].leeway_s`.
pub(crate) fn steps(path: &str) -> Vec<Step> {
    let pieces = path.split(['.', '[']).map(|piece| match piece.strip_suffix(']') {
        Some(index) => index.parse().map_or_else(|_| Step::Key(piece.to_owned()), Step::Index),
        None => Step::Key(piece.to_owned()),
    });
    pieces.collect()
}

impl Format {
    /// What a file's extension says.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "yaml" | "yml" => Some(Self::Yaml),
            "toml" => Some(Self::Toml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// The keys and values of a text. A key that stands twice is refused, and so are aliases that stand for more than the text could.
    pub(crate) fn read(self, source: &str, text: &str) -> Result<Map<String, Value>, ConfigError> {
        let room = Cell::new(2 * text.len() + 16);
        let strict = Strict(&room);
        let is_nothing = |line: &str| line.trim().is_empty() || line.trim().starts_with('#');
        let read: Result<Value, (Option<Position>, String)> = match self {
            Self::Yaml if text.lines().all(is_nothing) => Ok(Value::Object(Map::new())),
            Self::Yaml => strict.deserialize(yaml_serde::Deserializer::from_str(text)).map_err(|error| {
                // Only what is said of the whole file has no place.
                let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
                (Some(Position { line, column }), error.to_string())
            }),
            Self::Toml => {
                toml::Deserializer::parse(text).and_then(|read| strict.deserialize(read)).map_err(|error| {
                    let at = error.span().map(|span| Position::of(text, span.start));
                    let twice = |at: usize| {
                        format!("{DUPLICATE}{}` stands twice; keep one of the two", bare(&text[at..]))
                    };
                    let message = match (error.message(), error.span()) {
                        ("duplicate key", Some(span)) if text.is_char_boundary(span.start) => {
                            twice(span.start)
                        }
                        (message, _) => message.to_owned(),
                    };
                    (at, message)
                })
            }
            Self::Json => {
                let mut reader = serde_json::Deserializer::from_str(text);
                let read = strict.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
                read.map_err(|error| {
                    (
                        Some(Position { line: error.line().max(1), column: error.column().max(1) }),
                        error.to_string(),
                    )
                })
            }
        };
        let wrong =
            |position, message| ConfigError { source: source.to_owned(), position, key: None, message };
        match read {
            Ok(Value::Object(values)) => Ok(values),
            Ok(other) => {
                let message = format!("{} stands where keys with their values belong", shown(&other));
                Err(wrong(Some(Position { line: 1, column: 1 }), message))
            }
            Err((mut position, message)) => {
                // JSON's parser stands behind the key by then.
                if let (Self::Json, Some(at)) = (self, &mut position)
                    && let Some(key) = message.split('`').nth(1).filter(|_| message.starts_with(DUPLICATE))
                    && let Some(line) = text.lines().nth(at.line.saturating_sub(1))
                    && let Some(begins) = line.rfind(&format!("\"{key}\""))
                {
                    at.column = line[..begins].chars().count() + 1;
                }
                // The parsers' own position would repeat ours, and their path is of no use without it.
                let message = message.split(" at line ").next().unwrap_or_default();
                let message = match message.find(DUPLICATE) {
                    Some(begins) => message[begins..].to_owned(),
                    None => message.replace('\n', " "),
                };
                Err(wrong(position, message))
            }
        }
    }

    /// Where a key stands, or the entry of a list; where that cannot be told, the nearest thing around it.
    pub(crate) fn locate(self, text: &str, path: &[Step]) -> Option<Position> {
        (1..=path.len()).rev().find_map(|len| match self {
            Self::Toml => toml_position(text, &path[..len]),
            // JSON is YAML, but for what nobody writes.
            Self::Yaml | Self::Json => yaml_position(text, &path[..len]),
        })
    }

    /// A key and its value, in YAML or TOML.
    pub(crate) fn line(self, key: &str, value: &Value) -> String {
        let equals = if self == Self::Toml { " = " } else { ": " };
        format!("{key}{equals}{}", Written(self, value))
    }

    /// A file of these keys.
    pub(crate) fn document<'a>(self, values: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
        match self {
            Self::Json => {
                let lines: Vec<String> =
                    values.map(|(key, value)| format!("  \"{key}\": {}", Written(self, value))).collect();
                if lines.is_empty() { "{}\n".to_owned() } else { format!("{{\n{}\n}}\n", lines.join(",\n")) }
            }
            _ => values.map(|(key, value)| self.line(key, value) + "\n").collect(),
        }
    }
}

const DUPLICATE: &str = "the key `";
/// How the parser of TOML hands out a date: as keys with this one.
const TOML_DATE: &str = "$__toml_private_datetime";

/// The bare key that a text begins with.
fn bare(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && !"_-".contains(c)).next().unwrap_or_default()
}

/// A value as somebody wrote it, in JSON and not at length.
pub(crate) fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= MOST { text } else { text.chars().take(MOST).chain(['…']).collect() }
}

/// A value on one line: YAML's flow style is JSON, and so is TOML but for the tables.
struct Written<'a>(Format, &'a Value);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(format, value) = *self;
        match value {
            Value::Array(entries) => {
                f.write_str("[")?;
                for (index, entry) in entries.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", Written(format, entry))?;
                }
                f.write_str("]")
            }
            Value::Object(entries) => {
                f.write_str("{")?;
                let entries = entries.iter().filter(|(_, value)| !value.is_null());
                for (index, (key, value)) in entries.enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    let equals = if format == Format::Toml { " = " } else { ": " };
                    write!(f, "{comma}{}{equals}{}", Quoted(key), Written(format, value))?;
                }
                f.write_str("}")
            }
            Value::String(text) => Quoted(text).fmt(f),
            other => other.fmt(f),
        }
    }
}

/// A string as each of the three reads it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What JSON may have as it is, and YAML or TOML may not.
        let is_odd = |c: char| {
            matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
        };
        for c in Value::from(self.0).to_string().chars() {
            if is_odd(c) { write!(f, "\\u{:04x}", u32::from(c))? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// Any value, of which no key stands twice and no number is infinite. What is left of the room bounds what aliases stand for.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Cell<usize>);

impl Strict<'_> {
    fn pay<E: de::Error>(self, cost: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(1 + cost);
        self.0.set(left.ok_or_else(|| E::custom("aliases stand for more than the file has; write it out"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number, true or false, a list or keys with values")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.pay(0).map(|()| Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.pay(0).map(|()| Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.pay(0).map(|()| Value::from(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.pay(0).map(|()| Value::from(value))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        Err(E::custom(format!("{value} is out of range; no number is as large")))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Value, E> {
        Err(E::custom(format!("{value} is out of range; no number is as large")))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.pay(0)?;
        let number = Number::from_f64(value);
        number.map(Value::Number).ok_or_else(|| E::custom(format!("{value} is no number; write a whole one")))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.pay(value.len()).map(|()| Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.pay(0)?;
        let mut all = Vec::new();
        while let Some(entry) = entries.next_element_seed(self)? {
            all.push(entry);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.pay(0)?;
        let mut all = Map::new();
        while let Some(key) = entries.next_key_seed(NewKey(self, &all))? {
            if key == TOML_DATE {
                return entries.next_value_seed(self);
            }
            let value = entries.next_value_seed(self)?;
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

/// A key that is none of those. The parsers know where it stands only while they read it.
struct NewKey<'a, 'b>(Strict<'a>, &'b Map<String, Value>);

impl<'de> DeserializeSeed<'de> for NewKey<'_, '_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_, '_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        self.0.pay(key.len())?;
        if self.1.contains_key(key) {
            return Err(E::custom(format!("{DUPLICATE}{key}` stands twice; keep one of the two")));
        }
        Ok(key.to_owned())
    }
}

fn toml_position(text: &str, path: &[Step]) -> Option<Position> {
    let whole = DeTable::parse(text).ok()?;
    let mut table = Some(whole.get_ref());
    let mut entries: Option<&DeArray<'_>> = None;
    let mut begins = None;
    for step in path {
        let value = match step {
            Step::Key(wanted) => {
                let (key, value) = table?.iter().find(|(key, _)| key.get_ref() == wanted)?;
                begins = Some(key.span().start);
                value
            }
            Step::Index(index) => {
                let value = entries?.get(*index)?;
                begins = Some(value.span().start);
                value
            }
        };
        (table, entries) = match value.get_ref() {
            DeValue::Table(inner) => (Some(inner), None),
            DeValue::Array(inner) => (None, Some(inner)),
            _ => (None, None),
        };
    }
    begins.map(|begins| Position::of(text, begins))
}

/// Walks to the place and ends in an error there, whose position the parser tells.
fn yaml_position(text: &str, path: &[Step]) -> Option<Position> {
    let walk = Walk { path, arrived: &Cell::new(false) };
    let error = walk.deserialize(yaml_serde::Deserializer::from_str(text)).err()?;
    let at = error.location().filter(|_| walk.arrived.get())?;
    Some(Position { line: at.line(), column: at.column() })
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    path: &'a [Step],
    arrived: &'a Cell<bool>,
}

impl Walk<'_> {
    fn arrive<E: de::Error>(self) -> E {
        self.arrived.set(true);
        E::custom("here")
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the path leads to")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<(), E> {
        Err(if self.path.is_empty() { self.arrive() } else { E::custom("elsewhere") })
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.visit_bool(true)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.path.split_first() else { return Err(self.arrive()) };
        let Step::Index(index) = first else { return Err(de::Error::custom("elsewhere")) };
        for _ in 0..*index {
            entries.next_element::<IgnoredAny>()?;
        }
        entries.next_element_seed(Walk { path: rest, ..self }).map(drop)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.path.split_first() else { return Err(self.arrive()) };
        let Step::Key(wanted) = first else { return Err(de::Error::custom("elsewhere")) };
        while let Some(found) = entries.next_key_seed(Wanted { wanted, walk: Walk { path: rest, ..self } })? {
            if found {
                entries.next_value_seed(Walk { path: rest, ..self })?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Whether a key is the one that is wanted. If the path ends with it, this is the place.
struct Wanted<'a> {
    wanted: &'a str,
    walk: Walk<'a>,
}

impl<'de> DeserializeSeed<'de> for Wanted<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Wanted<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        let found = key == self.wanted;
        if found && self.walk.path.is_empty() { Err(self.walk.arrive()) } else { Ok(found) }
    }
}
