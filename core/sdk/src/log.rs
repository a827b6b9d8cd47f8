//! What happens to connections, for a host to log. The sdk itself writes nothing anywhere.

use std::{collections::VecDeque, fmt, sync::Arc};

use valkyrie_protocol::Reason;

/// How much a [`Record`] matters, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something that must not happen.
    Error = 1,
    /// Somebody should look: there is no connection, or there was one.
    Warn = 2,
    /// What is as it should be, and rare.
    Info = 3,
    /// What helps to find a mistake.
    Debug = 4,
}

impl Level {
    /// Every level, the gravest first.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// 1 to 4, the gravest first.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// `error`, `warn`, `info` or `debug`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Record {
    /// How much it matters.
    pub level: Level,
    /// What it is about, such as `valkyrie.connection`.
    pub target: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Its particulars, such as `endpoint`.
    pub fields: Vec<(&'static str, String)>,
}

impl Record {
    /// A record without particulars.
    pub fn new(level: Level, target: &'static str, message: impl Into<String>) -> Self {
        Self { level, target, message: message.into(), fields: Vec::new() }
    }

    /// The same with one more particular.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: &str) -> Self {
        self.add(key, value);
        self
    }

    #[inline(never)]
    fn add(&mut self, key: &'static str, value: &str) {
        self.fields.push((key, value.to_owned()));
    }
}

/// Takes records. Given to [`ClientBuilder::log`](crate::ClientBuilder::log).
pub trait Log: Send + Sync + 'static {
    /// Whether records of that level are wanted: no other is made.
    fn enabled(&self, level: Level) -> bool;
    /// Takes a record, on whichever thread has it and with nothing locked. Must not block.
    fn log(&self, record: Record);
}

/// Whoever takes a connection's records, if anybody does.
#[derive(Clone, Default)]
pub(crate) struct Logger(pub(crate) Option<Arc<dyn Log>>);

/// A record about the connection to `endpoint`. The sentence is in pieces: to format it would be more code, of which a
/// browser's module has little.
pub(crate) fn of_connection(
    level: Level,
    sentence: &[&str],
    reason: Option<Reason>,
    endpoint: &str,
) -> Record {
    let mut message = String::new();
    sentence.iter().for_each(|piece| message.push_str(piece));
    let mut record = Record { level, target: "valkyrie.connection", message, fields: Vec::new() };
    record.add("endpoint", endpoint);
    if let Some(reason) = reason {
        record.add("reason", reason.name());
    }
    record
}

impl Logger {
    pub(crate) fn wants(&self, level: Level) -> Option<&dyn Log> {
        self.0.as_deref().filter(|log| log.enabled(level))
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Logger").field(&self.0.is_some()).finish()
    }
}

/// Records that nobody has taken yet: the last [`Records::MAX`], and how many were dropped for them.
#[derive(Debug, Default)]
pub struct Records {
    waiting: VecDeque<Record>,
    dropped: u64,
}

impl Records {
    /// How many are kept. About 200 bytes each.
    pub const MAX: usize = 1_024;

    /// None.
    pub const fn new() -> Self {
        Self { waiting: VecDeque::new(), dropped: 0 }
    }

    /// Keeps a record; the oldest goes when there are too many.
    pub fn push(&mut self, record: Record) {
        if self.waiting.len() == Self::MAX {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back(record);
    }

    /// Whether there is nothing to take.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.dropped == 0
    }

    /// The next `max` at most, the oldest first. What was dropped is said by a record of its own, ahead of them.
    pub fn take(&mut self, max: usize) -> Vec<Record> {
        let mut taken = Vec::new();
        if max > 0 && self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            let message = format!("{dropped} records were dropped: nobody took them");
            taken.push(
                Record::new(Level::Warn, "valkyrie.log", message).with("dropped", &dropped.to_string()),
            );
        }
        let count = self.waiting.len().min(max - taken.len());
        taken.extend(self.waiting.drain(..count));
        taken
    }

    /// Forgets all of them.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_records_keep_the_last_and_say_how_many_went() {
        let mut records = Records::default();
        for number in 0..100_000 {
            records.push(Record::new(Level::Info, "test", number.to_string()));
        }
        assert_eq!(records.waiting.len(), Records::MAX);
        let first = records.take(1);
        assert_eq!(first[0].fields, [("dropped", (100_000 - Records::MAX).to_string())]);
        let rest = records.take(usize::MAX);
        assert_eq!((rest.len(), rest[0].message.as_str()), (Records::MAX, "98976"));
        assert_eq!(rest[Records::MAX - 1].message, "99999");
        assert!(records.is_empty());
        assert!(records.take(usize::MAX).is_empty());
    }
}
