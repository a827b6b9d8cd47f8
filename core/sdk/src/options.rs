//! What a caller may say about one call, and what it gets back.

use std::time::Duration;

use bytes::Bytes;
use valkyrie_protocol::{Metadata, Priority};

/// The metadata that carries an idempotency key (PROTOCOL.md, W5-12).
pub(crate) const KEY: &str = "valkyrie-idempotency-key-bin";
/// For how long it has been in use, in milliseconds, where it was sent before.
pub(crate) const KEY_AGE: &str = "valkyrie-key-age-ms";
/// Says that an answer is that of an earlier call with the key.
#[cfg(feature = "native")]
pub(crate) const REPLAYED: &str = "valkyrie-replayed";
/// Bytes of the longest key.
pub(crate) const KEY_MOST: usize = 64;

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
    /// What tells a unary call from every other, so that a server that keeps keys runs it once. Default: none.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// What tells a call from every other of its caller's and its method's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdempotencyKey {
    /// 1 to 64 bytes.
    Given(Bytes),
    /// 128 random bits, another key for each call.
    Drawn,
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

    /// With a key of 1 to 64 bytes that tells the call from every other of its principal's and its method's, as an order's number does. It
    /// may be sent again then, like an idempotent one: a server that keeps keys (`ServerBuilder::dedup`) runs it once and answers
    /// each time, with `valkyrie-replayed` in the metadata of an answer that is not the first. One that may have forgotten the
    /// key ends an attempt that is not the first with KEY_FORGOTTEN instead. A server keeps keys for itself: with several
    /// servers, what one of them has run another does not know. Unary calls only: a stream with a key is
    /// refused with INVALID_ARGUMENT, and so are a key of another length and one that was used for another message.
    pub fn with_idempotency_key(mut self, key: impl Into<Bytes>) -> Self {
        self.idempotency_key = Some(IdempotencyKey::Given(key.into()));
        self
    }

    /// With a key that is drawn when the call begins, 128 random bits: see [`CallOptions::with_idempotency_key`].
    pub fn with_drawn_idempotency_key(mut self) -> Self {
        self.idempotency_key = Some(IdempotencyKey::Drawn);
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
