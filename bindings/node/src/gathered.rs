//! The layout of gathered calls: those of one turn of the event loop, written by `gather()` in `node/index.js`.
//!
//! ```text
//! calls  = record *
//! record = slot, method, how, len (u32), client, timeout_ms (f64), message, padding to 8 bytes
//! ```
//! `how` is what [`crate::call_options`] reads. In native order. One copy: what was gathered, once for all of its messages.

use bytes::Bytes;
use valkyrie_bridge::Handle;

const HEAD: usize = 32;

/// One gathered call.
pub(crate) struct Call {
    pub(crate) slot: u32,
    /// Index of the method among those that JavaScript has named.
    pub(crate) method: usize,
    pub(crate) how: u32,
    pub(crate) client: Handle,
    pub(crate) timeout_ms: f64,
    pub(crate) message: Bytes,
}

/// The calls in `bytes`; ends early where they are cut off.
pub(crate) fn calls(bytes: &[u8]) -> impl Iterator<Item = Call> {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut at = 0;
    std::iter::from_fn(move || {
        let head: &[u8; HEAD] = bytes.get(at..)?.first_chunk()?;
        let word =
            |index: usize| u32::from_ne_bytes(*head[index * 4..].first_chunk().expect("within the head"));
        let double =
            |index: usize| f64::from_ne_bytes(*head[index * 8..].first_chunk().expect("within the head"));
        let begin = at + HEAD;
        let end = begin.checked_add(word(3) as usize).filter(|end| *end <= bytes.len())?;
        at = end.next_multiple_of(8);
        Some(Call {
            slot: word(0),
            method: word(1) as usize,
            how: word(2),
            client: Handle::from_raw(double(2) as u64),
            timeout_ms: double(3),
            message: bytes.slice(begin..end),
        })
    })
}
