//! JSON as tokens and key sets may be written: any member twice, however deep, makes all of it worthless, since two readers
//! would take it for two things. No sentence made here holds a byte of what was read.

use std::{collections::BTreeMap, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The most entries that any list may have here: audiences, roles, keys.
pub(super) const LIST: usize = 64;

/// A value, as far as tokens need to tell them apart.
#[derive(Debug)]
pub(super) enum Json {
    Null,
    Bool,
    /// Whole and not negative, written without a fraction or an exponent, below 2^64.
    Integer(u64),
    Negative,
    /// A fraction, an exponent, or out of range.
    OtherNumber,
    Text(String),
    List(Vec<Json>),
    Object(Object),
}

/// The members of an object.
#[derive(Debug, Default)]
pub(super) struct Object(pub(super) BTreeMap<String, Json>);

impl Object {
    /// Reads an object and nothing after it; the error completes "the header …". Of its members only those that are wanted are
    /// kept, in them `depth` levels of lists and objects, and of each list no more than says that it is too long. All of the
    /// rest is checked. At most 128 levels deep.
    pub(super) fn parse(text: &[u8], wanted: &[&str], depth: u8) -> Result<Self, &'static str> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let read = Keep { wanted: Some(wanted), depth: depth + 1 }.deserialize(&mut reader);
        match read.and_then(|value| reader.end().map(|()| value)) {
            Ok(Json::Object(object)) => Ok(object),
            Ok(_) => Err("is not a JSON object"),
            // The only thing that is wrong with data that is JSON: types are looked at later.
            Err(error) if error.is_data() => Err("has a member twice"),
            Err(_) => Err("is not JSON"),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Json> {
        self.0.get(name)
    }

    /// A member that is text, if it is there.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<&str>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(other) => Err(format!("{name} is {}, not a string", other.kind())),
        }
    }
}

impl Json {
    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Json::Null => "null",
            Json::Bool => "a boolean",
            Json::Integer(_) => "a number",
            Json::Negative => "negative",
            Json::OtherNumber => "a number that is no integer below 2^64",
            Json::Text(_) => "a string",
            Json::List(_) => "a list",
            Json::Object(_) => "an object",
        }
    }
}

/// How much of a value is kept.
struct Keep<'a> {
    /// The members of an object, if not all of them.
    wanted: Option<&'a [&'a str]>,
    /// The levels of lists and objects, this one counted.
    depth: u8,
}

impl Keep<'_> {
    fn below(&self, kept: bool) -> Self {
        Self { wanted: None, depth: if kept { self.depth.saturating_sub(1) } else { 0 } }
    }
}

impl<'de> DeserializeSeed<'de> for Keep<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Bool)
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Integer(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Negative)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut all = Vec::new();
        while let Some(next) = list.next_element_seed(self.below(true))? {
            if self.depth > 0 && all.len() <= LIST {
                all.push(next);
            }
        }
        Ok(Json::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let wanted = |name: &str| self.depth > 0 && self.wanted.is_none_or(|wanted| wanted.contains(&name));
        let mut all = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let kept = wanted(&name);
            let value = map.next_value_seed(self.below(kept))?;
            // Every name is remembered until the end.
            if all.insert(name, if kept { value } else { Json::Null }).is_some() {
                return Err(A::Error::custom("a member twice"));
            }
        }
        all.retain(|name, _| wanted(name));
        Ok(Json::Object(Object(all)))
    }
}
