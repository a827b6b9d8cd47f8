//! Where each key's value comes from: a flag wins over the environment, the environment over sources, a later source over an
//! earlier one, and all over the defaults, of which the profile has some of its own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::{Map, Value};
use valkyrie_sdk::shared::FileStamp;

use crate::{
    Config, ConfigError, Format, KEYS, Key, Position, Profile,
    format::{Step, shown, steps},
};

/// What stands before a key's name in the environment.
pub const PREFIX: &str = "VALKYRIE_";
/// The longest file. The generated one, with every key and its meaning, has 11 KB.
const MOST_BYTES: u64 = 1 << 20;

/// Values of some keys, and where each of them stands.
#[derive(Clone, Debug)]
pub struct Layer {
    kind: Kind,
    name: String,
    values: Map<String, Value>,
    text: Option<(Format, String)>,
    positions: BTreeMap<String, Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Profile,
    Source,
    Environment,
    Flags,
    RunTime,
}

/// Which layer has set a key. No part of what a configuration is: two that say the same are equal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins {
    of: BTreeMap<&'static str, Arc<Layer>>,
    /// The last source: who reads of a key that no layer has set looks there.
    source: Option<Arc<Layer>>,
}

impl Origins {
    /// Has the other's of a key.
    pub(crate) fn copy(&mut self, from: &Self, key: &'static str) {
        match from.of.get(key) {
            Some(layer) => drop(self.of.insert(key, layer.clone())),
            None => drop(self.of.remove(key)),
        }
    }
}

impl PartialEq for Origins {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origins {}

/// Something that configurations are read from: a file, or whatever a program has, a database or a directory service.
pub trait Source: Send + Sync {
    /// Reads all of it, now.
    ///
    /// # Errors
    /// When it cannot be read. What its keys take is looked at by [`Layers::load`].
    fn layer(&self) -> Result<Layer, ConfigError>;

    /// Whether it may say something else than when it was read last. It is asked a few times a second, and must not wait for a
    /// network; a source that is told of changes remembers them for this. By default never.
    fn may_have_changed(&self) -> bool {
        false
    }
}

impl Layer {
    /// Values that a program has. The name is what errors call them.
    pub fn new(name: impl Into<String>, values: Map<String, Value>) -> Self {
        Self { kind: Kind::Source, name: name.into(), values, text: None, positions: BTreeMap::new() }
    }

    /// Reads a text. The name is what errors call it: a file's path.
    ///
    /// # Errors
    /// When it is not well-formed, or a key stands in it twice.
    pub fn parse(name: impl Into<String>, text: &str, format: Format) -> Result<Self, ConfigError> {
        let name = name.into();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let values = format.read(&name, text)?;
        Ok(Self { text: Some((format, text.to_owned())), ..Self::new(name, values) })
    }

    /// Says where the value of that path stands (`drain_timeout_ms`, `token_issuers[1].leeway_s`), for errors.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>, line: usize, column: usize) -> Self {
        self.positions.insert(path.into(), Position { line, column });
        self
    }

    /// What variables say: `VALKYRIE_DRAIN_TIMEOUT_MS` is `drain_timeout_ms`. Commas stand between the entries of a list;
    /// `token_issuers` is JSON. Beside it, the variables that begin as keys do and are none.
    ///
    /// # Errors
    /// When a value is not what its key takes.
    pub fn environment(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let (mut values, mut unknown) = (Map::new(), Vec::new());
        let defaults = Config::default().values();
        for (variable, raw) in variables {
            let Some(variable) = variable.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
            let name = variable[PREFIX.len()..].to_ascii_lowercase();
            let is_upper = !variable.contains(|c: char| c.is_ascii_lowercase());
            let Some(key) = Key::of(&name).filter(|_| is_upper) else {
                unknown.push(variable.to_owned());
                continue;
            };
            let wrong = |message: String| ConfigError {
                source: "environment".to_owned(),
                position: None,
                key: Some(variable.to_owned()),
                message,
            };
            let Some(raw) = raw.to_str() else { return Err(wrong("is no UTF-8; write text".to_owned())) };
            let checked = value_of(key, &defaults[key.name], raw).and_then(|value| {
                let one = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
                serde_json::from_value::<Config>(one).map(|_| value).map_err(|error| error.to_string())
            });
            let value = checked.map_err(|why| wrong(format!("{raw:?}: {why}: {}", key.doc)))?;
            values.insert(name, value);
        }
        Ok((Self { kind: Kind::Environment, ..Self::new("environment", values) }, unknown))
    }

    /// What flags say, by the names of their keys.
    pub fn flags(values: Map<String, Value>) -> Self {
        Self { kind: Kind::Flags, ..Self::new("command line", values) }
    }

    /// What was set while the program runs.
    pub(crate) fn run_time(values: Map<String, Value>) -> Self {
        Self { kind: Kind::RunTime, ..Self::new("run time", values) }
    }

    /// The keys that it sets.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The same keys and values in another format, in the order of [`KEYS`]. Comments are not kept, and neither are aliases and the ways in which a
    /// number or a text can be written.
    ///
    /// # Errors
    /// When a key is unknown or does not take its value.
    pub fn convert(&self, to: Format) -> Result<String, ConfigError> {
        self.typed()?;
        let values = KEYS.iter().filter_map(|key| Some((key.name, self.values.get(key.name)?)));
        Ok(to.document(values))
    }

    /// A configuration with nothing but this.
    fn typed(&self) -> Result<Config, ConfigError> {
        serde_path_to_error::deserialize(Value::Object(self.values.clone())).map_err(|error| {
            let steps: Vec<Step> = error.path().iter().filter_map(Step::of).collect();
            self.refuse(&error.path().to_string(), &steps, &error.inner().to_string())
        })
    }

    /// What serde says, with what it does not.
    fn refuse(&self, path: &str, steps: &[Step], why: &str) -> ConfigError {
        let Some(Step::Key(top)) = steps.first() else { return ConfigError::new(&self.name, why) };
        let key = Key::of(top);
        let message = match key {
            None => {
                let near = nearest(top);
                let meant = near.map_or_else(String::new, |near| format!(" did you mean {near}?"));
                format!("unknown key;{meant} `valkyrie-server config generate` prints every key")
            }
            Some(key) => {
                let value =
                    steps.iter().try_fold(Value::Object(self.values.clone()), |value, step| match step {
                        Step::Key(key) => value.get(key).cloned(),
                        Step::Index(index) => value.get(index).cloned(),
                    });
                // Of a list, what is wrong is one of its entries, which are named.
                let is_whole = value.as_ref().is_some_and(|value| value.is_array() || value.is_object());
                let is_type = why.starts_with("invalid type");
                let value = value.as_ref().map(shown).unwrap_or_default();
                let is_told = why.contains(value.trim_matches('"')) || is_whole && !is_type;
                let why = if is_told { why.to_owned() } else { format!("{value}: {why}") };
                let why =
                    why.replace("expected i64", "expected a whole number").replace("a sequence", "a list");
                // A wrong type says what it is not; what the key means says what to write.
                let says_what_not =
                    ["invalid type", "invalid value"].iter().any(|begins| why.contains(begins));
                if says_what_not { format!("{why}: {}", key.doc) } else { why }
            }
        };
        self.error(path, steps, message)
    }

    fn error(&self, path: &str, steps: &[Step], message: String) -> ConfigError {
        let Some(Step::Key(top)) = steps.first() else { return ConfigError::new(&self.name, message) };
        let key = match self.kind {
            Kind::Profile | Kind::Source | Kind::RunTime => path.to_owned(),
            Kind::Environment => variable_of(top),
            Kind::Flags => flag_of(top),
        };
        ConfigError { source: self.name.clone(), position: self.locate(path, steps), key: Some(key), message }
    }

    fn locate(&self, path: &str, steps: &[Step]) -> Option<Position> {
        match &self.text {
            Some((format, text)) => format.locate(text, steps),
            None => {
                let around = path.rmatch_indices(['.', '[']).map(|(end, _)| &path[..end]);
                std::iter::once(path).chain(around).find_map(|path| self.positions.get(path).copied())
            }
        }
    }
}

impl Source for Layer {
    fn layer(&self) -> Result<Layer, ConfigError> {
        Ok(self.clone())
    }
}

impl Step {
    fn of(segment: &serde_path_to_error::Segment) -> Option<Self> {
        match segment {
            serde_path_to_error::Segment::Map { key } => Some(Self::Key(key.clone())),
            serde_path_to_error::Segment::Seq { index } => Some(Self::Index(*index)),
            _ => None,
        }
    }
}

fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase())
}

fn flag_of(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// A variable's text as the value of a key that has such a default.
fn value_of(key: &Key, default: &Value, raw: &str) -> Result<Value, String> {
    Ok(match default {
        Value::Bool(_) => Value::Bool(raw.parse().map_err(|_| "write true or false".to_owned())?),
        Value::Number(_) => Value::from(raw.parse::<i64>().map_err(|_| "write a whole number".to_owned())?),
        Value::Array(_) if key.name == "token_issuers" => {
            serde_json::from_str(raw).map_err(|error| format!("write JSON: {error}"))?
        }
        Value::Array(_) => raw.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect(),
        _ => Value::from(raw),
    })
}

/// The key that was meant, perhaps.
fn nearest(unknown: &str) -> Option<&'static str> {
    let unknown = unknown.to_lowercase();
    let far = |key: &Key| distance(unknown.as_bytes(), key.name.as_bytes());
    let nearest = KEYS.iter().min_by_key(|key| far(key))?;
    (far(nearest) <= 2.max(unknown.len() / 4)).then_some(nearest.name)
}

/// How many bytes have to be put in, taken out or replaced. Nobody means a key with a name as long as 64.
fn distance(from: &[u8], to: &[u8]) -> usize {
    if from.len() > 64 {
        return from.len();
    }
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, a) in from.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (index, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

/// A file in YAML, TOML or JSON, as its extension says, of at most 1 MiB. It is looked at, not watched: a look at its stamp finds what is written in
/// place, renamed over it or behind a link that was swapped, on any file system, and costs about a microsecond.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    /// Of the file that was read last, unless it may have changed since.
    stamp: Mutex<Option<FileStamp>>,
}

impl File {
    /// The file at that path, which need not be there yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), stamp: Mutex::new(None) }
    }

    fn read(&self) -> Result<(FileStamp, String), String> {
        // A pipe would be waited for.
        let found = fs::metadata(&self.path).map_err(|error| error.to_string())?;
        if !found.is_file() {
            return Err("is no regular file".to_owned());
        }
        let read = || -> io::Result<(FileStamp, String)> {
            let file = fs::File::open(&self.path)?;
            let stamp = FileStamp::of(&file.metadata()?);
            let mut text = String::new();
            file.take(MOST_BYTES + 1).read_to_string(&mut text)?;
            Ok((stamp, text))
        };
        let (stamp, text) = read().map_err(|error| error.to_string())?;
        if text.len() as u64 > MOST_BYTES {
            return Err(format!("is longer than {MOST_BYTES} bytes; is it a configuration?"));
        }
        Ok((stamp, text))
    }
}

impl Source for File {
    fn layer(&self) -> Result<Layer, ConfigError> {
        let name = self.path.display().to_string();
        let format = Format::of(&self.path).ok_or_else(|| {
            ConfigError::new(&name, "has no known extension; name it .yaml, .yml, .toml or .json")
        })?;
        let read = self.read();
        let stamp = read.as_ref().ok().map(|(stamp, _)| stamp.clone());
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
        let (_, text) = read.map_err(|why| ConfigError::new(&name, why))?;
        Layer::parse(name, &text, format)
    }

    fn may_have_changed(&self) -> bool {
        let now = fs::metadata(&self.path).ok().map(|metadata| FileStamp::of(&metadata));
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) != now
            || now.is_some_and(|stamp| stamp.is_young())
    }
}

/// All that a configuration is put together from.
#[derive(Default)]
pub struct Layers {
    sources: Vec<Arc<dyn Source>>,
    /// The environment and flags, in this order.
    over: Vec<Arc<Layer>>,
}

impl Layers {
    /// The defaults alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a source over those before it.
    #[must_use]
    pub fn source(mut self, source: impl Source + 'static) -> Self {
        self.sources.push(Arc::new(source));
        self
    }

    /// Puts a layer over all sources, and over those that were put there before: the environment first, flags then.
    #[must_use]
    pub fn over(mut self, layer: Layer) -> Self {
        self.over.push(Arc::new(layer));
        self
    }

    /// Reads the sources and puts all together.
    ///
    /// # Errors
    /// A source that cannot be read, or a layer with an unknown key or with a value that its key does not take.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_under(None)
    }

    /// Whether a source may say something else.
    pub(crate) fn may_have_changed(&self) -> bool {
        self.sources.iter().any(|source| source.may_have_changed())
    }

    /// All together under one layer more.
    pub(crate) fn load_under(&self, top: Option<Layer>) -> Result<Config, ConfigError> {
        let top = top.map(Arc::new);
        let read: Result<Vec<Arc<Layer>>, ConfigError> =
            self.sources.iter().map(|source| source.layer().map(Arc::new)).collect();
        let mut values = Config::default().values();
        let read = read?;
        let mut origins = Origins { of: BTreeMap::new(), source: read.last().cloned() };
        let said: Vec<&Arc<Layer>> = read.iter().chain(&self.over).chain(&top).collect();
        let mut profile = Profile::default();
        for layer in &said {
            let config = layer.typed()?;
            if layer.values.contains_key("profile") {
                profile = config.profile;
            }
        }
        let name = format!("profile {}", profile.name());
        let profile = Arc::new(Layer { kind: Kind::Profile, ..Layer::new(name, profile.defaults()) });
        for layer in std::iter::once(&profile).chain(said) {
            for key in KEYS {
                if let Some(value) = layer.values.get(key.name) {
                    values.insert(key.name.to_owned(), value.clone());
                    origins.of.insert(key.name, layer.clone());
                }
            }
        }
        let config: Config = serde_json::from_value(Value::Object(values))
            .map_err(|error| ConfigError::new("configuration", error.to_string()))?;
        Ok(Config { origins, ..config })
    }
}

impl Config {
    /// Reads one file, with nothing over it.
    ///
    /// # Errors
    /// When it cannot be read, is not well-formed, or has an unknown key or an illegal value.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Layers::new().source(File::new(path)).load()
    }

    /// Where the key's value is from: `default`, `server.yaml:3`, `environment, VALKYRIE_METRICS`, `flag, --metrics`.
    pub fn origin_of(&self, key: &str) -> String {
        let Some(layer) = self.origins.of.get(key) else { return "default".to_owned() };
        match layer.kind {
            Kind::Source => match layer.locate(key, &steps(key)) {
                Some(position) => format!("{}:{}", layer.name, position.line),
                None => layer.name.clone(),
            },
            Kind::Environment => format!("environment, {}", variable_of(key)),
            Kind::Flags => format!("flag, {}", flag_of(key)),
            Kind::Profile | Kind::RunTime => layer.name.clone(),
        }
    }

    /// An error that shows when a key is put to use. The key may be a path: `token_issuers[1].issuer`.
    pub fn wrong(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let path = steps(key);
        let top = key.split(['.', '[']).next().unwrap_or(key);
        match self.origins.of.get(top) {
            Some(layer) => layer.error(key, &path, message.into()),
            None => {
                let source = self.origins.source.as_ref().map_or("configuration", |layer| &layer.name);
                ConfigError { key: Some(key.to_owned()), ..ConfigError::new(source, message) }
            }
        }
    }

    /// The text of a file with every key, its value, and where that is from. As JSON, which has no comments, an object for each key
    /// with `value` and `origin`.
    pub fn show(&self, format: Format) -> String {
        let mut values = self.values();
        if format == Format::Json {
            for (key, value) in &mut values {
                *value = serde_json::json!({"value": value.take(), "origin": self.origin_of(key)});
            }
            return format!("{:#}\n", Value::Object(values));
        }
        let lines = KEYS.iter().map(|key| {
            format!("{}  # {}\n", format.line(key.name, &values[key.name]), self.origin_of(key.name))
        });
        lines.collect()
    }
}
