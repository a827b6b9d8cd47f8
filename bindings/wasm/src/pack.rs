//! Values out and metadata in.

use bytes::{Buf, Bytes};
use valkyrie_sdk::{Metadata, Reason, Response, Status};

use crate::layout::Batch;

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

pub(crate) fn push(batch: &mut Batch, slot: u32, outcome: Result<Value, Status>) {
    match outcome {
        Ok(Value::Done) => batch.done(slot),
        Ok(Value::Response(response)) => {
            batch.response(slot, response.message, &response.metadata, &response.trailers);
        }
        Ok(Value::Messages { messages, end }) => {
            batch.messages(slot, messages, end.as_ref().map(|end| (&end.metadata, &end.trailers)));
        }
        Err(status) => batch.error(slot, &status),
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
