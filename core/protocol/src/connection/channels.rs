//! The part of a connection whose carrier gives each stream a channel of its own, as QUIC does (PROTOCOL.md,
//! "Carriers"): frames of one stream in and out, and what is to become of its channel.

use bytes::BytesMut;

use super::Connection;
use crate::{
    ConnectionError, ErrorCode, FrameHeader, FrameType, Limits, OPTIONAL_TYPE, Priority, StreamKey, Time,
    TransmitBuffer,
};

/// What a multiplexing carrier is to do with one of its streams, by [`Connection::poll_stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamAction {
    /// Frames were appended to the buffer. The next ones come after [`Connection::stream_written`].
    Write {
        /// The stream's id on the wire.
        id: u64,
        /// Whom to tell when the carrier took them.
        key: StreamKey,
        /// Its class.
        priority: Priority,
        /// Whether nothing follows: the sending direction ends after them.
        end: bool,
    },
    /// The stream is over. What was handed out before an end is still delivered; a direction that has not ended is
    /// reset, and nothing more is read.
    Close {
        /// The stream's id on the wire.
        id: u64,
    },
    /// Both directions end at once with a code; what was handed out and not delivered is dropped.
    Reset {
        /// The stream's id on the wire.
        id: u64,
        /// Why.
        code: ErrorCode,
    },
}

/// A frame that has begun to arrive on a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unfinished {
    since: Time,
    len: usize,
    /// Bytes that had been read of all streams when it began.
    at: u64,
}

impl Connection {
    /// As [`Connection::handle_read`] for one stream of a carrier that multiplexes; gives whether it has begun, and takes
    /// what it gave the last time, at first `false`. Nothing is to be read before [`Connection::may_read`] allows it.
    ///
    /// # Errors
    /// As [`Connection::handle_read`], PROTOCOL for frames of another stream or ahead of the CALL, and STREAM_ID for a
    /// second CALL.
    pub fn handle_stream(
        &mut self,
        now: Time,
        id: u64,
        mut begun: bool,
        buffer: &mut BytesMut,
    ) -> Result<bool, ConnectionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.now = now;
        let before = self.unfinished_streams.get(&id).map_or(0, |frame| frame.len);
        self.streams_read += buffer.len().saturating_sub(before) as u64;
        self.read_frames(now, buffer, Some((id, &mut begun))).map_err(|error| self.fail(error))?;
        Ok(begun)
    }

    /// The streams share one link, which tells late what it lost: a frame may stand while others move, and longer than
    /// on a carrier of bytes. Frames of a stream that is gone are not read on.
    pub(super) fn note_unfinished_stream(&mut self, now: Time, id: u64, begun: bool, len: usize) {
        let gone = !self.ids.contains_key(&id) && (begun || self.is_ours(id));
        if len == 0 || gone {
            self.unfinished_streams.remove(&id);
            return;
        }
        let at = self.streams_read.saturating_sub(len as u64);
        let frame = self.unfinished_streams.entry(id).or_insert(Unfinished { since: now, len: 0, at });
        if std::mem::replace(&mut frame.len, len) != len {
            self.alive.hear(now);
        }
        let slow = frame.since.after(self.config.limits.frame_grace);
        self.next_overdue = Time::sooner(self.next_overdue, Some(slow));
    }

    /// When the first unfinished frame of a stream is overdue. What this side holds back itself never is.
    pub(super) fn next_overdue_stream(&mut self, now: Time) -> Option<Time> {
        let limits = self.config.limits;
        let mut next = None;
        let mut overdue = Vec::new();
        for (id, frame) in &self.unfinished_streams {
            let deadline = frame.since.after(limits.slowest_frame(self.streams_read - frame.at));
            if deadline <= now {
                overdue.push((*id, deadline));
            } else {
                next = Time::sooner(next, Some(deadline));
            }
        }
        for (id, deadline) in overdue {
            if self.may_read(id) {
                return Some(deadline);
            }
        }
        next
    }

    /// The peer ended its direction of a stream of a carrier that multiplexes; `rest` is what was read and is not a
    /// whole frame.
    ///
    /// # Errors
    /// PROTOCOL when it ended without END or STATUS: half of a stream must not look like a whole one.
    pub fn handle_stream_end(&mut self, id: u64, rest: &[u8]) -> Result<(), ConnectionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.unfinished_streams.remove(&id);
        let key = self.ids.get(&id).copied();
        let ended = match key.and_then(|key| self.streams.get(key)) {
            Some(stream) => stream.half_closed_remote,
            // While this side drains it refuses calls, and does not keep their ids.
            None => self.going_away || !self.is_unheard_of(id),
        };
        if ended && rest.is_empty() {
            return Ok(());
        }
        let error =
            ConnectionError::new(ErrorCode::PROTOCOL, format!("stream {id} ended without its last frame"));
        Err(self.fail(error))
    }

    /// The peer reset a stream of a carrier that multiplexes, or stopped reading it.
    ///
    /// # Errors
    /// ENHANCE_CALM when it did so too often.
    pub fn handle_stream_reset(&mut self, id: u64, code: ErrorCode) -> Result<(), ConnectionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.unfinished_streams.remove(&id);
        let result = match self.ids.get(&id).copied() {
            Some(key) => self.reset_by_peer(key, code),
            // Opened for nothing: its call never came.
            None if self.is_unheard_of(id) => self.count_reset(),
            None => {
                self.release(id);
                Ok(())
            }
        };
        result.map_err(|error| self.fail(error))
    }

    /// Whether a stream is the peer's and certainly never brought its call.
    fn is_unheard_of(&self, id: u64) -> bool {
        !self.is_ours(id) && id > self.last_peer_id
    }

    /// Whether a stream of a carrier that multiplexes may be read: both sides have said hello, the first credentials are
    /// decided on if the client has any, and the application has
    /// less to take than the windows allow. What was held back and may be read again is handed to
    /// [`Connection::handle_stream`] once more, with or without more bytes.
    pub fn may_read(&mut self, id: u64) -> bool {
        let may = self.has_room(id);
        if !may {
            // The peer is not to blame for what it could not send.
            self.unfinished_streams.remove(&id);
        }
        may
    }

    fn has_room(&mut self, id: u64) -> bool {
        let Limits { stream_window_bytes, connection_window_bytes, .. } = self.config.limits;
        let waiting = self.received - self.consumed - self.buffered;
        if !self.greeted
            || self.holds_back()
            || self.awaits_auth()
            || self.failed.is_some()
            || waiting >= connection_window_bytes.into()
        {
            return false;
        }
        let key = self.ids.get(&id).copied();
        key.and_then(|key| self.streams.get(key)).is_none_or(|stream| {
            stream.received - stream.consumed - stream.partial_len() < stream_window_bytes.into()
        })
    }

    /// The carrier took what [`Connection::poll_stream`] handed out: the stream may be asked for more.
    pub fn stream_written(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get(key) {
            stream.blocked = false;
            self.make_ready(key);
        }
    }

    /// What a carrier that multiplexes is to do next with one of its streams; frames, about `budget` bytes of them, are
    /// appended to `out`. Each stream's frames go on a channel of that stream alone.
    pub fn poll_stream(
        &mut self,
        now: Time,
        out: &mut TransmitBuffer,
        budget: usize,
    ) -> Option<StreamAction> {
        if let Some((id, mut words)) = self.last_words.pop_front() {
            out.append(&mut words);
            let key = StreamKey { index: u32::MAX, generation: 0 };
            return Some(StreamAction::Write { id, key, priority: Priority::Normal, end: true });
        }
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        while self.failed.is_none() && !self.is_silent() {
            let key = self.pick()?;
            let Some(stream) = self.streams.get(key) else { continue };
            let (priority, mut id) = (stream.priority, stream.id);
            let start = out.len();
            stream.blocked = true;
            let end = loop {
                let before = out.len();
                self.write_frame(now, key, out);
                // A status was written, and the stream is gone.
                let Some(stream) = self.streams.get(key) else { break true };
                id = stream.id;
                if stream.current.is_none() {
                    break stream.half_closed_local;
                }
                if out.len() == before || out.len() - start >= budget {
                    break false;
                }
            };
            if out.len() > start {
                return Some(StreamAction::Write { id, key, priority, end });
            }
            // It waits for the peer's max_concurrent_streams.
            if let Some(stream) = self.streams.get(key) {
                stream.blocked = false;
            }
        }
        None
    }

    /// A carrier that multiplexes keeps streams apart, counts credit and resets by itself.
    pub(super) fn check_channel(
        &self,
        header: &FrameHeader,
        id: u64,
        begun: bool,
    ) -> Result<(), ConnectionError> {
        let protocol = |what: String| Err(ConnectionError::new(ErrorCode::PROTOCOL, what));
        let frame_type = header.frame_type;
        if frame_type == FrameType::WINDOW || frame_type == FrameType::RESET {
            return protocol(format!(
                "frame type {:#04x} on a carrier with streams of its own",
                frame_type.0
            ));
        }
        if frame_type.0 & OPTIONAL_TYPE != 0 {
            return Ok(());
        }
        if header.stream != id {
            return protocol(format!("a frame of stream {} on stream {id}", header.stream));
        }
        let calls = frame_type == FrameType::CALL;
        if begun && calls {
            // When the stream is gone its id tells nothing: only its channel knows that it was.
            let what = format!("a second call on stream {id}");
            return Err(ConnectionError::new(ErrorCode::STREAM_ID, what));
        }
        if !begun && !calls && !self.is_ours(id) {
            return protocol(format!("stream {id} begins with frame type {:#04x}", frame_type.0));
        }
        Ok(())
    }
}
