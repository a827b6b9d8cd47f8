//! Records, kept for whoever asks.

use std::sync::{Arc, Mutex};

use valkyrie_sdk::{Level, Log, Record, Records};

/// Keeps what it is told. Its clones keep the same.
#[derive(Clone, Default)]
pub(crate) struct Kept(Arc<Mutex<Records>>);

impl Log for Kept {
    fn enabled(&self, _: Level) -> bool {
        true
    }

    fn log(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

impl Kept {
    /// What was told since the last time, the oldest first.
    pub(crate) fn take(&self) -> Vec<Record> {
        self.0.lock().unwrap().take(usize::MAX)
    }
}

/// The value of a record's field.
pub(crate) fn field<'a>(record: &'a Record, key: &str) -> &'a str {
    record.fields.iter().find(|(known, _)| *known == key).map_or("", |(_, value)| value)
}
