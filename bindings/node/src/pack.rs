//! The layout of a batch of completions: one Buffer, read by `complete()` in `node/index.js`.
//!
//! ```text
//! batch    = count, words, more, record * count, bytes          (u32 in native order, then bytes in the same order)
//! record   = slot, 0                                            done
//!          | slot, 1, len                                       response without metadata
//!          | slot, 2, len, metadata, metadata                   response; the second is the trailers
//!          | slot, 3, n, len * n, 0                             messages, more may follow
//!          | slot, 3, n, len * n, 1, metadata, metadata         messages, then the end of the stream
//!          | slot, 4, number, len * 4, pushback, n, (len, len) * n, metadata, metadata
//!                     error: code, reason, class, message; pushback in ms + 1, 0 is none; details
//! metadata = n, (key len, value len) * n
//! ```
//! Each len is the length of the next piece of `bytes`. One copy: from the message to the Buffer.

use bytes::Bytes;
use napi::{
    Env, Error, Result, Status as NapiStatus,
    bindgen_prelude::{FromNapiValue, Unknown},
    sys,
};
use valkyrie_bridge::{Metadata, Status, Value};

/// Bytes after which a batch takes no further record: a small message that JavaScript keeps never keeps more than
/// about this much alive.
const BATCH_BYTES: usize = 16 * 1024;
/// Numbers before the first record: count, words, more.
const HEADER_WORDS: usize = 3;

pub(crate) struct Batch {
    words: Vec<u32>,
    pieces: Vec<Bytes>,
    bytes: usize,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { words: vec![0; HEADER_WORDS], pieces: Vec::new(), bytes: 0 }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.bytes < BATCH_BYTES
    }

    pub(crate) fn push(&mut self, slot: u32, outcome: std::result::Result<Value, Status>) {
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
            Ok(_) => {
                self.error(&Status::new(valkyrie_bridge::Code::Internal, "a completion of an unknown kind"))
            }
            Err(status) => self.error(&status),
        }
    }

    pub(crate) fn into_buffer(mut self, env: Env, more: bool) -> Result<Unknown<'static>> {
        self.words[1] = self.words.len() as u32;
        self.words[2] = u32::from(more);
        let head = self.words.len() * size_of::<u32>();
        let (mut data, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: `env` is the environment that called into this method, on its own thread; both out pointers are valid.
        let status = unsafe { sys::napi_create_buffer(env.raw(), head + self.bytes, &mut data, &mut value) };
        if status != sys::Status::napi_ok {
            return Err(Error::new(NapiStatus::from(status), "cannot allocate a Buffer"));
        }
        // SAFETY: `data` has room for `head + self.bytes` bytes, and `self.bytes` is the sum of the pieces' lengths; it
        // is fresh memory that nothing else refers to, so the ranges cannot overlap.
        unsafe {
            let mut to = data.cast::<u8>();
            std::ptr::copy_nonoverlapping(self.words.as_ptr().cast(), to, head);
            to = to.add(head);
            for piece in &self.pieces {
                std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
                to = to.add(piece.len());
            }
        }
        // SAFETY: `value` was made by the call above in this handle scope.
        unsafe { Unknown::from_napi_value(env.raw(), value) }
    }

    fn piece(&mut self, piece: Bytes) {
        self.words.push(piece.len() as u32);
        self.bytes += piece.len();
        self.pieces.push(piece);
    }

    fn metadata(&mut self, metadata: &Metadata) {
        self.words.push(metadata.len() as u32);
        for (key, value) in metadata.iter() {
            self.piece(Bytes::copy_from_slice(key.as_bytes()));
            self.piece(value.clone());
        }
    }

    fn error(&mut self, status: &Status) {
        self.words.extend([4, status.code().number()]);
        self.piece(Bytes::from_static(status.code().name().as_bytes()));
        self.piece(Bytes::from_static(status.reason().name().as_bytes()));
        self.piece(Bytes::from_static(status.class().name().as_bytes()));
        self.piece(Bytes::copy_from_slice(status.message().as_bytes()));
        self.words.push(
            status
                .pushback()
                .map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).saturating_add(1)),
        );
        self.words.push(status.details().len() as u32);
        for detail in status.details() {
            self.piece(Bytes::copy_from_slice(detail.type_name.as_bytes()));
            self.piece(detail.value.clone());
        }
        self.metadata(status.metadata());
        self.metadata(status.trailers());
    }
}
