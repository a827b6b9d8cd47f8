//! What a refused configuration says.

use std::fmt;

/// Where something stands in a text. Both count from 1; a column is a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Position {
    /// Of that byte of the text.
    pub(crate) fn of(text: &str, byte: usize) -> Self {
        let before = text.get(..byte).unwrap_or(text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Self { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Why a configuration was refused: `server.yaml:2:1: drain_timeout_ms: -5 is out of range; write a number from 0 to 86400000`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub(crate) source: String,
    pub(crate) position: Option<Position>,
    pub(crate) key: Option<String>,
    pub(crate) message: String,
}

impl ConfigError {
    /// Of a whole source.
    pub fn new(source: impl Into<String>, message: impl Into<String>) -> Self {
        Self { source: source.into(), position: None, key: None, message: message.into() }
    }

    /// What is wrong is in: a file, `environment`, `command line`, or what a [`Source`](crate::Source) is called.
    pub fn source_name(&self) -> &str {
        &self.source
    }

    /// Where in it, if that can be told.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// The path of the key: `token_issuers[1].leeway_s`; in the environment its variable, on the command line its flag.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// What is wrong, with the value and the fix.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(position) = self.position {
            write!(f, ":{position}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}
