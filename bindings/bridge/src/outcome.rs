//! What an operation ended with, as bytes: for the hosts that take batches.

use valkyrie_sdk::Status;

use crate::{Value, layout::Batch};

/// Writes the outcome of the operation that the host knows as `slot`. A change of connectivity is `done`, as the host asks for it then;
/// one of breakers is two messages, JSON and what stands for them.
pub fn push(batch: &mut Batch, slot: u32, outcome: Result<Value, Status>) {
    match outcome {
        Ok(Value::Done | Value::Connectivity(_)) => batch.done(slot),
        Ok(Value::Response(response)) => {
            batch.response(slot, response.message, &response.metadata, &response.trailers);
        }
        Ok(Value::Messages { messages, end }) => {
            batch.messages(slot, messages, end.as_ref().map(|end| (&end.metadata, &end.trailers)));
        }
        Ok(Value::Logs(records)) => batch.logs(&records),
        Ok(Value::Breakers { seen, json }) => {
            batch.messages(slot, vec![json.into(), seen.to_string().into()], None);
        }
        Err(status) => batch.error(slot, &status),
    }
}
