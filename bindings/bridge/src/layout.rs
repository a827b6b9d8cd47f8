//! Completions as bytes, for hosts that cannot take native objects: how Node and browsers get them. One layout, which
//! ARCHITECTURE.md shows as a table; Python and C take the objects.
//!
//! Nothing in here is of this crate: the browser's part, which has no threads and so no bridge, includes this file.

use bytes::Bytes;
use valkyrie_sdk::{Metadata, Record, Status};

/// The version of the layout. Who reads another one must not read at all.
pub const VERSION: u32 = 2;

/// Bytes after which a batch takes no further record: a small message that the host keeps never keeps more than about
/// this much alive.
const BATCH_BYTES: usize = 16 * 1024;
/// The slot of what completes no operation.
const NO_SLOT: u32 = u32::MAX;

/// A batch of completions that is being made.
#[derive(Debug)]
pub struct Batch {
    count: u32,
    words: Vec<u32>,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self { count: 0, words: vec![0; 3], pieces: Vec::new(), bytes: 0 }
    }
}

impl Batch {
    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether it takes another completion.
    pub fn has_room(&self) -> bool {
        self.bytes < BATCH_BYTES
    }

    /// Adds an operation that gave nothing but success.
    pub fn done(&mut self, slot: u32) {
        self.begin(slot, 0);
    }

    /// Adds the answer of a unary call.
    pub fn response(&mut self, slot: u32, message: Bytes, metadata: &Metadata, trailers: &Metadata) {
        let plain = metadata.is_empty() && trailers.is_empty();
        self.begin(slot, if plain { 1 } else { 2 });
        self.piece(message);
        if !plain {
            self.metadata(metadata);
            self.metadata(trailers);
        }
    }

    /// Adds messages of a stream; `end` has its metadata and trailers once it has ended.
    pub fn messages(&mut self, slot: u32, messages: Vec<Bytes>, end: Option<(&Metadata, &Metadata)>) {
        self.begin(slot, 3);
        self.word(messages.len() as u32);
        messages.into_iter().for_each(|message| self.piece(message));
        self.word(u32::from(end.is_some()));
        if let Some((metadata, trailers)) = end {
            self.metadata(metadata);
            self.metadata(trailers);
        }
    }

    /// Adds an operation that failed.
    pub fn error(&mut self, slot: u32, status: &Status) {
        self.begin(slot, 4);
        self.word(status.code().number());
        self.name(status.code().name());
        self.name(status.reason().name());
        self.name(status.class().name());
        self.text(status.message());
        self.text(status.timeline());
        let milliseconds = status.pushback().map(|wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX));
        self.word(milliseconds.map_or(0, |wait| wait.saturating_add(1)));
        self.word(status.details().len() as u32);
        for detail in status.details() {
            self.text(&detail.type_name);
            self.piece(detail.value.clone());
        }
        self.metadata(status.metadata());
        self.metadata(status.trailers());
    }

    /// Adds records for the host's log.
    pub fn logs(&mut self, records: &[Record]) {
        self.begin(NO_SLOT, 5);
        self.word(records.len() as u32);
        for record in records {
            self.word(record.level.number().into());
            self.name(record.target);
            self.text(&record.message);
            self.word(record.fields.len() as u32);
            for (key, value) in &record.fields {
                self.name(key);
                self.text(value);
            }
        }
    }

    /// How many bytes it is.
    pub fn len(&self) -> usize {
        self.words.len() * size_of::<u32>() + self.bytes
    }

    /// What the batch begins with, and the pieces that follow. `more`: another one waits.
    pub fn parts(&mut self, more: bool) -> (Vec<u8>, &[Bytes]) {
        self.words[0] = self.count;
        self.words[1] = self.words.len() as u32;
        self.words[2] = u32::from(more);
        let mut head = Vec::with_capacity(self.words.len() * size_of::<u32>());
        self.words.iter().for_each(|word| head.extend_from_slice(&word.to_le_bytes()));
        (head, &self.pieces)
    }

    fn begin(&mut self, slot: u32, kind: u32) {
        self.count += 1;
        self.word(slot);
        self.word(kind);
    }

    fn word(&mut self, word: u32) {
        self.words.push(word);
    }

    fn piece(&mut self, piece: Bytes) {
        self.word(piece.len() as u32);
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    fn name(&mut self, name: &'static str) {
        self.piece(Bytes::from_static(name.as_bytes()));
    }

    fn text(&mut self, text: &str) {
        self.piece(Bytes::copy_from_slice(text.as_bytes()));
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.word(metadata.len() as u32);
        for (key, value) in metadata.iter() {
            self.text(key);
            self.piece(value.clone());
        }
    }
}
