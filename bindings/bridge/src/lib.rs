//! The boundary between the core and every other language, free of any of them.
//!
//! An adapter submits operations and drains completions; nothing else crosses. **Exactly one completion per accepted
//! operation**: on success, error, panic, cancel, close and fork. A refused submission (an `Err` return) never
//! completes. Native threads only push to a [`Queue`] and wake it once when it goes from empty to non-empty; they never
//! enter the host's language. Nothing runs before the first operation: no thread and no socket at load.
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(target_os = "linux")]
mod descriptors;
#[cfg(unix)]
mod drive;
mod echo;
mod fork;
mod handle;
pub mod layout;
mod ledger;
mod log;
mod operation;
pub mod outcome;
mod queue;
mod report;
mod requests;
mod runtime;

/// What [`ledger`] is made of.
mod sync {
    pub(crate) use std::sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };
}

// The public interface is:
pub use echo::Methods;
pub use fork::{Held, hold_over_forks};
pub use handle::Handle;
pub use ledger::{ByOperation, OperationHasher};
pub use log::Listener;
pub use operation::{
    CONNECTIVITIES, CallOptions, ClientOptions, TokenOption, breakers, breakers_other_than, call, call_many,
    cancel, client_free, close, connect, connectivity, connectivity_other_than, done, half_close, in_flight,
    isolate, make, metrics, open, ready, recv, restore, send, set_service_config, shutdown, stream_cancel,
    stream_free, token_provide, token_wanted,
};
pub use queue::{Completion, End, Queue, Value};
pub use valkyrie_sdk::{
    BoxFuture, Bytes, Class, Code, Connectivity, Detail, IdempotencyKey, Level, Metadata, Pem, Priority,
    Reason, Record, Response, Security, Status, Token, TokenSource, VERSION, expecting_to_lead,
};

/// The version and a hash of the core's sources: equal in every language that carries the same core.
pub fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), " (core ", env!("VALKYRIE_CORE_HASH"), ")")
}
