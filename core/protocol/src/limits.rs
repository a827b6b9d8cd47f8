//! The limits of one connection: what a side announces in HELLO, and what it holds its peer to without a word.

use std::time::Duration;

/// What one side takes from its peer. The first six are announced in HELLO as settings, the others are local. Every
/// number from the peer is checked against the ranges in PROTOCOL.md before it is believed.
///
/// Each field says its default, where the number comes from, and what it costs in memory. The bound of all together
/// is `max_buffered_bytes`, `connection_window_bytes` and `max_unsent_bytes` for one connection; how many connections
/// and running handlers there may be is the server's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of one frame in bytes: 65,536 by default, 16,384 to 1,048,576. Source: HTTP/2's least is 16,384
    /// and its most 2^24 − 1; 64 KiB is one frame for most messages. Memory: one read buffer grows to this, the
    /// metadata limit and a header, per connection, and only as far as bytes arrive.
    pub max_frame_bytes: u32,
    /// Largest message in bytes, over all its fragments: 4 MiB by default. Source: what gRPC takes. Memory: this much
    /// per stream that is receiving a fragmented message, within `max_buffered_bytes`.
    pub max_message_bytes: u32,
    /// Largest metadata part of one frame in bytes: 16,384 by default and at least. Source: HTTP servers take 8 to
    /// 16 KiB; a list has at most 128 entries. Memory: this much and 64 bytes an entry, until the application drops it.
    pub max_metadata_bytes: u32,
    /// Streams that the peer may have open at once: 1,024 by default. Source: HTTP/2 proxies take 100 to 128; handlers
    /// that run have their own, smaller limit in the server. Memory: about 300 bytes each.
    pub max_concurrent_streams: u32,
    /// Initial credit of each stream in bytes: 262,144 by default. Source: four times what HTTP/2 proxies give, for one
    /// stream at 20 ms and 100 Mbit/s. Memory: unread messages of a stream stay within it.
    pub stream_window_bytes: u32,
    /// Initial credit of the connection in bytes: 1 MiB by default. Source: what HTTP/2 proxies give. Memory: unread
    /// messages of all streams stay within it.
    pub connection_window_bytes: u32,

    /// Bytes of unfinished messages, and of calls that wait for a permit, that may be held for one connection: 64 MiB by
    /// default; a stream that would pass it is reset with ENHANCE_CALM, a call that waits is refused. Source: 16 of the
    /// largest messages at once. Memory: this much per connection.
    pub max_buffered_bytes: u32,
    /// Messages below [`Limits::SMALL_MESSAGE`] bytes that may lie unread on one connection: 65,536 by default; a stream
    /// that would pass it is reset with ENHANCE_CALM. Source: the connection's window holds as many of that size, so
    /// that credit bounds the longer ones. Memory: about 100 bytes each. The driver keeps count, as it keeps them.
    pub max_unread_messages: u32,
    /// Bytes of unsent messages that one stream may queue before [`SendError::Full`](crate::SendError::Full), each
    /// [`Limits::MESSAGE_COST`] more than its length: 262,144 by default. Source: a stream's window. Memory: this much
    /// per stream, one message always allowed.
    pub stream_send_buffer_bytes: u32,
    /// Unsent bytes of one connection beyond which streams that stand still for `stall_timeout_pressed` are reset:
    /// 64 MiB by default. Source: as `max_buffered_bytes`. Memory: this much per connection for longer than that.
    pub max_unsent_bytes: u32,
    /// Calls of this side that may wait for a stream of theirs: 65,536 by default; further ones fail with QUEUE_FULL.
    /// Source: two seconds of calls at 30,000 a second. Memory: about 400 bytes and the message each.
    pub max_waiting_calls: u32,
    /// Answers to the peer's control frames that may wait for the wire: 1,000 by default, then ENHANCE_CALM. Source:
    /// nghttp2's bound. Memory: about 50 bytes each.
    pub max_control_frames: u32,
    /// Streams that the peer may reset, or make this side reset, at once and ahead of calls that completed: 1,000 by
    /// default, then ENHANCE_CALM. A client believes its server to have the same limit, and holds back what
    /// would pass it. Source: nghttp2's burst, after the Rapid Reset and MadeYouReset attacks on HTTP/2. Memory: none; it
    /// bounds work.
    pub max_resets: u32,
    /// Resets forgiven each second: 33 by default, at least 1. Source: nghttp2's rate. Memory: none.
    pub resets_per_second: u32,
    /// Glitches at once: frames that are legal and that no peer needs many of (PROTOCOL.md, "Abuse"). 1,000 by default,
    /// then ENHANCE_CALM. Source: a tenth of nghttp2's burst, as our frames are fewer. Memory: none; it bounds work.
    pub max_glitches: u32,
    /// Glitches forgiven each second: 100 by default, at least 1. Source: a third of nghttp2's rate. Memory: none.
    pub glitches_per_second: u32,
    /// What fragments of unfinished messages may fall short of [`Limits::SMALL_FRAGMENT`] bytes each, all together,
    /// before ENHANCE_CALM; longer fragments pay it back. 25,600 by default: 100 empty ones. Source: h2's budget.
    /// Memory: none; it bounds work.
    pub fragment_overhead_bytes: u32,

    /// The last stream that this side opens: 2^62 − 1 by default and at most, which no connection lives to see, and one stream at least. A client
    /// whose streams are used up makes a new connection. Source: PROTOCOL.md, W7-01. Memory: none.
    pub last_stream: u64,

    /// How long the peer's HELLO may take: 5 s by default. Source: NATS takes 2 s, s2n-quic 10 s. Memory: a connection
    /// that says nothing holds about 8 KiB for so long.
    pub handshake_timeout: Duration,
    /// How long a frame may stand unfinished without another byte: 10 s by default; on a carrier with streams of its own
    /// only `frame_grace` counts. Source: NATS' write deadline. Memory: the bytes that came of one frame, for so long.
    pub frame_timeout: Duration,
    /// How long a frame may take at any pace: 30 s by default. From then on it must have come at
    /// `frame_bytes_per_second` on average. Source: web servers' rule against slow bodies. Memory: as `frame_timeout`.
    pub frame_grace: Duration,
    /// The pace in bytes per second of a frame that takes longer than `frame_grace`: 1,024 by default, at least 1.
    /// Source: as `frame_grace`. Memory: none.
    pub frame_bytes_per_second: u32,
    /// How long a stream may stand still with something to send, for want of credit or because the peer does not read,
    /// or inside a message of the peer's: 300 s by default, then it is reset with ENHANCE_CALM. Source: HTTP/2 proxies'
    /// stream idle timeout. Memory: what the stream queued and the fragments that came, for so long.
    pub stall_timeout: Duration,
    /// The same for a connection with more than `max_unsent_bytes`: 30 s by default. Source: HTTP/2 servers' send
    /// timeouts are 10 to 60 s. Memory: as `max_unsent_bytes`.
    pub stall_timeout_pressed: Duration,
}

impl Limits {
    /// What a queued message costs in bytes beside its length, at most.
    pub const MESSAGE_COST: usize = 256;
    /// Shorter messages cost more in bookkeeping than in bytes: see `max_unread_messages`.
    pub const SMALL_MESSAGE: usize = 16;
    /// Shorter fragments of unfinished messages count as overhead: see `fragment_overhead_bytes`. A WINDOW that raises
    /// credit by less is a glitch.
    pub const SMALL_FRAGMENT: u32 = 256;

    /// How long a frame may take when so many bytes have come since it began.
    pub(crate) fn slowest_frame(&self, len: u64) -> Duration {
        let pace = u64::from(self.frame_bytes_per_second.max(1));
        Duration::from_micros(len.saturating_mul(1_000_000) / pace).max(self.frame_grace)
    }
}

/// The hard cap of `max_frame_bytes`, whatever a peer announces.
pub(crate) const MAX_FRAME_BYTES_CAP: u32 = 1 << 20;

/// The last stream id that may be used.
pub(crate) const MAX_STREAM_ID: u64 = (1 << 62) - 1;

const DEFAULT: Limits = Limits {
    max_frame_bytes: 64 << 10,
    max_message_bytes: 4 << 20,
    max_metadata_bytes: 16 << 10,
    max_concurrent_streams: 1024,
    stream_window_bytes: 256 << 10,
    connection_window_bytes: 1 << 20,
    max_buffered_bytes: 64 << 20,
    max_unread_messages: 65_536,
    stream_send_buffer_bytes: 256 << 10,
    max_unsent_bytes: 64 << 20,
    max_waiting_calls: 65_536,
    max_control_frames: 1_000,
    max_resets: 1_000,
    resets_per_second: 33,
    max_glitches: 1_000,
    glitches_per_second: 100,
    fragment_overhead_bytes: 25_600,
    last_stream: MAX_STREAM_ID,
    handshake_timeout: Duration::from_secs(5),
    frame_timeout: Duration::from_secs(10),
    frame_grace: Duration::from_secs(30),
    frame_bytes_per_second: 1_024,
    stall_timeout: Duration::from_secs(300),
    stall_timeout_pressed: Duration::from_secs(30),
};

impl Default for Limits {
    fn default() -> Self {
        DEFAULT
    }
}

/// What a sender may assume before the peer's HELLO has arrived (PROTOCOL.md, "First flight"). Nobody may announce
/// less. The local limits are the defaults.
pub const INITIAL: Limits = Limits {
    max_frame_bytes: 16 << 10,
    max_message_bytes: 16 << 10,
    max_metadata_bytes: 16 << 10,
    max_concurrent_streams: 100,
    stream_window_bytes: 64 << 10,
    connection_window_bytes: 64 << 10,
    ..DEFAULT
};
