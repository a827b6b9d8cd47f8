//! The limits that a peer announces in HELLO, and the ones that hold before it has spoken.

/// What one side is ready to receive. Announced in HELLO as settings; every number from the peer is checked
/// against the ranges in PROTOCOL.md before it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of one frame in bytes: 65,536 by default, 16,384 to 1,048,576. Memory: one read buffer grows
    /// to this, the metadata limit and a header, per connection.
    pub max_frame_bytes: u32,
    /// Largest message in bytes, over all its fragments: 4 MiB by default. Memory: this much per stream that is
    /// receiving a fragmented message, within `max_buffered_bytes`.
    pub max_message_bytes: u32,
    /// Largest metadata part of one frame in bytes: 16,384 by default and at least.
    pub max_metadata_bytes: u32,
    /// Streams that the peer may have open at once: 1,024 by default. Memory: about 300 bytes each.
    pub max_concurrent_streams: u32,
    /// Initial credit of each stream in bytes: 262,144 by default. Memory: unread messages of a stream stay within it.
    pub stream_window_bytes: u32,
    /// Initial credit of the connection in bytes: 1 MiB by default. Memory: unread messages of all streams stay
    /// within it.
    pub connection_window_bytes: u32,
    /// Bytes of unfinished messages that may be held for one connection: 64 MiB by default. Local only, never
    /// announced; a stream that would pass it is reset with ENHANCE_CALM.
    pub max_buffered_bytes: u32,
}

/// The hard cap of `max_frame_bytes`, whatever a peer announces.
pub(crate) const MAX_FRAME_BYTES_CAP: u32 = 1 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_frame_bytes: 64 << 10,
            max_message_bytes: 4 << 20,
            max_metadata_bytes: 16 << 10,
            max_concurrent_streams: 1024,
            stream_window_bytes: 256 << 10,
            connection_window_bytes: 1 << 20,
            max_buffered_bytes: 64 << 20,
        }
    }
}

/// What a sender may assume before the peer's HELLO has arrived (PROTOCOL.md, "First flight"). Nobody may announce
/// less.
pub const INITIAL: Limits = Limits {
    max_frame_bytes: 16 << 10,
    max_message_bytes: 16 << 10,
    max_metadata_bytes: 16 << 10,
    max_concurrent_streams: 100,
    stream_window_bytes: 64 << 10,
    connection_window_bytes: 64 << 10,
    max_buffered_bytes: 0,
};
