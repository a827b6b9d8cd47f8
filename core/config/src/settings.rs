//! The configuration in force: read without a lock, put in the place of another one whole.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::{ArcSwap, Guard};
use serde_json::{Map, Value};

use crate::{Config, ConfigError, KEYS, Key, Layer, Layers, Machine};

/// The configuration that a program runs with, and the layers that it is read from again.
///
/// A reload reads all layers, checks all of it, and only then puts it in the place of the one in force, in one step: who reads has the old one
/// or the new one, whole. What is refused changes nothing. Keys that cannot change while a server runs stay as they are and are named.
pub struct Settings {
    layers: Layers,
    current: ArcSwap<Config>,
    /// Held while layers are read, so that one reload comes after the other.
    state: Mutex<State>,
}

struct State {
    /// What was set at run time.
    run_time: Map<String, Value>,
    /// What the layers said last.
    read: Config,
    /// What the layers said at the last look, if nothing came of it yet: a file may be half written.
    unsettled: Option<Result<Config, ConfigError>>,
    /// What was told to be wrong, as long as it is.
    told: Option<ConfigError>,
}

/// One version of the configuration, for as long as it is held.
pub struct Snapshot(Guard<Arc<Config>>);

/// A key whose value another version of the layers says otherwise.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Change {
    /// The key.
    pub key: &'static str,
    /// What was in force.
    pub from: Value,
    /// What the layers say now.
    pub to: Value,
    /// Whether that is in force now; if not, it will be when the program begins again.
    pub is_applied: bool,
}

impl Settings {
    /// Reads the layers.
    ///
    /// # Errors
    /// As [`Layers::load`], and what is wrong between keys.
    pub fn load(layers: Layers) -> Result<Self, ConfigError> {
        let config = checked(layers.load()?)?;
        let state = State { run_time: Map::new(), read: config.clone(), unsettled: None, told: None };
        Ok(Self { layers, current: ArcSwap::from_pointee(config), state: Mutex::new(state) })
    }

    /// The configuration in force. Takes no lock and no memory, about 10 ns; hold it for one decision, so that all of it is by one version,
    /// and not for long.
    pub fn get(&self) -> Snapshot {
        Snapshot(self.current.load())
    }

    /// The same, to keep.
    pub fn config(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// Reads the layers again, now. Gives the keys that say something else than what is in force.
    ///
    /// # Errors
    /// As [`Settings::load`]. Then everything stays as it was.
    pub fn reload(&self) -> Result<Vec<Change>, ConfigError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.read(&state.run_time)?;
        Ok(self.take(&mut state, read))
    }

    /// Sets a key over all layers, until the program ends; null takes that back.
    ///
    /// # Errors
    /// An unknown key, a value that it does not take, or what is wrong between keys. Then everything stays as it was.
    pub fn set(&self, key: &str, value: Value) -> Result<Vec<Change>, ConfigError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut run_time = state.run_time.clone();
        match value {
            Value::Null => drop(run_time.remove(key)),
            value => drop(run_time.insert(key.to_owned(), value)),
        }
        let read = self.read(&run_time)?;
        state.run_time = run_time;
        Ok(self.take(&mut state, read))
    }

    /// Looks whether a source says something else, and takes it once two looks in a row have found the same: what is half written is
    /// not taken. Nothing, if there is nothing to tell; an error is told once. To be asked a few times a second, where a file may be waited for.
    pub fn look(&self) -> Option<Result<Vec<Change>, ConfigError>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.unsettled.is_none() && !self.layers.may_have_changed() {
            return None;
        }
        let read = self.read(&state.run_time);
        if state.unsettled.as_ref() != Some(&read) {
            let is_known = state.told.is_none() && read.as_ref() == Ok(&state.read);
            state.unsettled = (!is_known).then_some(read);
            return None;
        }
        state.unsettled = None;
        match read {
            Ok(read) if state.told.is_none() && read == state.read => None,
            Ok(read) => Some(Ok(self.take(&mut state, read))),
            Err(error) if state.told.as_ref() == Some(&error) => None,
            Err(error) => {
                state.told = Some(error.clone());
                Some(Err(error))
            }
        }
    }

    fn read(&self, run_time: &Map<String, Value>) -> Result<Config, ConfigError> {
        checked(self.layers.load_under(Some(Layer::run_time(run_time.clone())))?)
    }

    /// Puts what may change in force.
    fn take(&self, state: &mut State, read: Config) -> Vec<Change> {
        let current = self.current.load();
        let (mut values, new) = (current.values(), read.values());
        let mut origins = current.origins.clone();
        let mut changes = Vec::new();
        for key in KEYS {
            let (from, to) = (&mut values[key.name], &new[key.name]);
            if key.is_live() || from == to {
                origins.copy(&read.origins, key.name);
            }
            if from != to {
                let is_applied = key.is_live();
                changes.push(Change { key: key.name, from: from.clone(), to: to.clone(), is_applied });
                if is_applied {
                    *from = to.clone();
                }
            }
        }
        if let Ok(config) = serde_json::from_value::<Config>(Value::Object(values)) {
            self.current.store(Arc::new(Config { origins, ..config }));
        }
        (state.read, state.told) = (read, None);
        changes
    }
}

impl Key {
    /// Whether a server that runs takes another value of it. The files that keys name are read again when they change, whatever this
    /// says.
    pub fn is_live(&self) -> bool {
        ["drain_timeout_ms", "max_connections", "metrics", "log_level"].contains(&self.name)
    }
}

impl Config {
    /// What is wrong between keys, what its profile refuses, and what this machine has no room for.
    pub(crate) fn check_keys(&self) -> Result<(), ConfigError> {
        self.limiter()?;
        self.dedup()?;
        self.check_profile()?;
        Machine::here().check(self)
    }
}

fn checked(config: Config) -> Result<Config, ConfigError> {
    config.check_keys()?;
    Ok(config)
}

impl Deref for Snapshot {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Settings").field(&self.get()).finish()
    }
}
