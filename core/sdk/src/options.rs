//! What a caller may say about one call, and what it gets back.

use std::time::Duration;

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Priority};

/// Options of one call. Everything has a default; build with `CallOptions::new().with_…`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CallOptions {
    /// Time limit. `None`: the client's (5,000 ms) for unary calls, none for streams. `Some(Duration::MAX)`: no limit.
    pub timeout: Option<Duration>,
    /// Metadata sent with the call. Default: none.
    pub metadata: Metadata,
    /// Priority class. Default: normal.
    pub priority: Priority,
    /// Whether the call may be executed twice, so that it can be tried again though a server may have seen it. Default false, or
    /// what the service config says of the method.
    pub idempotent: bool,
}

impl CallOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a time limit.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// With metadata, replacing what was there.
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// As one that may be executed twice, or not.
    pub fn with_idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// With a priority class.
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }
}

/// The answer of a unary call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Response {
    /// The message.
    pub message: Bytes,
    /// Initial metadata from the server.
    pub metadata: Metadata,
    /// Trailers from the server.
    pub trailers: Metadata,
}

impl Response {
    pub(crate) fn new(message: Bytes, metadata: Metadata, trailers: Metadata) -> Self {
        Self { message, metadata, trailers }
    }
}
