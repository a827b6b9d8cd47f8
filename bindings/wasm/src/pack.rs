//! The layout of a batch of outcomes: one block of bytes, read by `complete()` in `wasm/index.js`.
//!
//! ```text
//! batch    = count, words, more, record * count, bytes          (u32 little-endian, then bytes in the same order)
//! record   = slot, 0                                            done
//!          | slot, 1, len                                       response without metadata
//!          | slot, 2, len, metadata, metadata                   response; the second is the trailers
//!          | slot, 3, n, len * n, 0                             messages, more may follow
//!          | slot, 3, n, len * n, 1, metadata, metadata         messages, then the end of the stream
//!          | slot, 4, number, len * 4, pushback, n, (len, len) * n, metadata, metadata
//!                     error: code, reason, class, message; pushback in ms + 1, 0 is none; details
//! metadata = n, (key len, value len) * n
//! ```
//! Each len is the length of the next piece of `bytes`.

use bytes::{Buf, Bytes};
use valkyrie_sdk::{Metadata, Reason, Response, Status};

/// Bytes after which a batch takes no further record: a small message that JavaScript keeps never keeps more than
/// about this much alive.
const BATCH_BYTES: usize = 16 * 1024;
/// Numbers before the first record: count, words, more.
const HEADER_WORDS: usize = 3;

/// What an operation that succeeded gives.
pub(crate) enum Value {
    Done,
    Response(Response),
    Messages { messages: Vec<Bytes>, end: Option<End> },
}

/// The end of a stream that ended with OK.
pub(crate) struct End {
    pub(crate) metadata: Metadata,
    pub(crate) trailers: Metadata,
}

pub(crate) struct Batch {
    words: Vec<u32>,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { words: vec![0; HEADER_WORDS], pieces: Vec::new(), bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words[0] == 0
    }

    pub(crate) fn has_room(&self) -> bool {
        self.bytes < BATCH_BYTES
    }

    pub(crate) fn push(&mut self, slot: u32, outcome: Result<Value, Status>) {
        self.words[0] += 1;
        self.words.push(slot);
        match outcome {
            Ok(Value::Done) => self.words.push(0),
            Ok(Value::Response(response)) => {
                let plain = response.metadata.is_empty() && response.trailers.is_empty();
                self.words.push(if plain { 1 } else { 2 });
                self.piece(response.message);
                if !plain {
                    self.metadata(&response.metadata);
                    self.metadata(&response.trailers);
                }
            }
            Ok(Value::Messages { messages, end }) => {
                self.words.extend([3, messages.len() as u32]);
                messages.into_iter().for_each(|message| self.piece(message));
                self.words.push(u32::from(end.is_some()));
                if let Some(end) = end {
                    self.metadata(&end.metadata);
                    self.metadata(&end.trailers);
                }
            }
            Err(status) => self.error(&status),
        }
    }

    pub(crate) fn into_bytes(mut self, more: bool) -> Vec<u8> {
        self.words[1] = self.words.len() as u32;
        self.words[2] = u32::from(more);
        let mut bytes = Vec::with_capacity(self.words.len() * size_of::<u32>() + self.bytes);
        self.words.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        self.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }

    fn piece(&mut self, piece: Bytes) {
        self.words.push(piece.len() as u32);
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    fn text(&mut self, text: &str) {
        self.piece(Bytes::copy_from_slice(text.as_bytes()));
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.words.push(metadata.len() as u32);
        for (key, value) in metadata.iter() {
            self.text(key);
            self.piece(value.clone());
        }
    }

    fn error(&mut self, status: &Status) {
        self.words.extend([4, status.code().number()]);
        self.text(status.code().name());
        self.text(status.reason().name());
        self.text(status.class().name());
        self.text(status.message());
        self.words.push(
            status
                .pushback()
                .map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).saturating_add(1)),
        );
        self.words.push(status.details().len() as u32);
        for detail in status.details() {
            self.text(&detail.type_name);
            self.piece(detail.value.clone());
        }
        self.metadata(status.metadata());
        self.metadata(status.trailers());
    }
}

/// Reads what `packed()` in `wasm/index.js` wrote: for each entry the two lengths, then key and value.
pub(crate) fn metadata(packed: Vec<u8>) -> Result<Metadata, Status> {
    let invalid = |message: String| Status::from_reason(Reason::INVALID_METADATA, message);
    let mut packed = Bytes::from(packed);
    let mut metadata = Metadata::new();
    while packed.remaining() >= 8 {
        let (key_len, value_len) = (packed.get_u32_le() as usize, packed.get_u32_le() as usize);
        if key_len.saturating_add(value_len) > packed.len() {
            return Err(invalid("an entry is cut off".to_owned()));
        }
        let (key, value) = (packed.split_to(key_len), packed.split_to(value_len));
        let key = String::from_utf8_lossy(&key).into_owned();
        metadata.insert(key, value).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(metadata)
}
