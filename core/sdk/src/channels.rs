//! The calls' own channels, where the carrier has them: what each still writes, and what it read of an unfinished
//! frame. The connection's frames go the driver's ordinary way.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    io::{self, IoSlice},
    task::{Context, Poll},
};

use valkyrie_protocol::{
    Connection, ConnectionError, ErrorCode, Priority, StreamAction, StreamKey, Time, TransmitBuffer,
};

use crate::{ReadBuffer, StreamIo, Streams};

/// Bytes that a call hands to its channel at once, give or take a frame.
const WRITE_BUDGET: usize = 64 << 10;
/// Bytes that one channel may read before the others get their turn.
const READ_BUDGET: usize = 256 << 10;
/// One turn of so many begins with the lowest class that has something to write.
const BULK_SHARE: u32 = 16;
/// Parts of one vectored write.
const MAX_PARTS: usize = 16;

#[derive(Default)]
pub(crate) struct Channels {
    open: HashMap<u64, Channel>,
    /// Channels of ours that the carrier has not opened, in order.
    unopened: VecDeque<(u64, Priority)>,
    /// Channels whose reading may go on, and those of them that the protocol holds back.
    readable: BTreeSet<u64>,
    /// Channels that may write, and how often they were asked.
    writable: Vec<u64>,
    turns: u32,
    /// Calls whose frames the carrier took.
    written: Vec<StreamKey>,
    /// A channel has more to read than its turn allowed.
    more: bool,
    /// Channels that the peer reads no more.
    stopped: Vec<(u64, u16)>,
    scratch: TransmitBuffer,
    bytes_in: u64,
    bytes_out: u64,
}

struct Channel {
    key: Option<StreamKey>,
    priority: Priority,
    /// The beginning of a frame.
    unread: ReadBuffer,
    begun: bool,
    /// The protocol did not want more of it.
    held: bool,
    read_ended: bool,
    write: TransmitBuffer,
    /// Nothing follows what is to be written.
    end: bool,
    finished: bool,
    /// The peer reads no more.
    deaf: bool,
    /// The call is over: the channel goes once it has written what it has, with this code where it has not ended.
    over: bool,
    code: u16,
}

impl Channel {
    fn new() -> Self {
        Self {
            key: None,
            priority: Priority::Normal,
            unread: ReadBuffer::default(),
            begun: false,
            held: false,
            read_ended: false,
            write: TransmitBuffer::default(),
            end: false,
            finished: false,
            deaf: false,
            over: false,
            code: 0,
        }
    }
}

impl Channels {
    /// Learns which channels may go on; whether there are any.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, carrier: &mut dyn Streams) -> io::Result<bool> {
        let mut any = false;
        while let Poll::Ready(id) = carrier.poll_changed(cx) {
            let id = id?;
            self.open.entry(id).or_insert_with(Channel::new);
            self.readable.insert(id);
            self.writable.push(id);
            any = true;
        }
        while let Some(&(id, priority)) = self.unopened.front() {
            match carrier.poll_open(cx, id, priority) {
                Poll::Pending => break,
                Poll::Ready(opened) => opened?,
            }
            self.unopened.pop_front();
            self.readable.insert(id);
            self.writable.push(id);
            any = true;
        }
        Ok(any)
    }

    /// Reads every channel that may be read, and hands the frames to the protocol.
    pub(crate) fn read(
        &mut self,
        now: Time,
        carrier: &mut dyn Streams,
        protocol: &mut Connection,
    ) -> Result<(), ConnectionError> {
        for key in self.written.drain(..) {
            protocol.stream_written(key);
        }
        for (id, code) in self.stopped.drain(..) {
            protocol.handle_stream_reset(id, ErrorCode::from_number(code))?;
        }
        self.more = false;
        let ids: Vec<u64> = self.readable.iter().copied().collect();
        for id in ids {
            let Some(channel) = self.open.get_mut(&id) else {
                self.readable.remove(&id);
                continue;
            };
            let mut budget = READ_BUDGET;
            loop {
                if channel.over {
                    self.readable.remove(&id);
                    self.writable.push(id);
                    break;
                }
                if !protocol.may_read(id) {
                    channel.held = true;
                    break;
                }
                if std::mem::take(&mut channel.held) {
                    channel.begun |=
                        protocol.handle_stream(now, id, channel.begun, &mut channel.unread.bytes)?;
                }
                if budget == 0 {
                    self.more = true;
                    break;
                }
                match carrier.read(id, &mut channel.unread) {
                    StreamIo::Done(count) => {
                        self.bytes_in += count as u64;
                        budget = budget.saturating_sub(count);
                        channel.begun |=
                            protocol.handle_stream(now, id, channel.begun, &mut channel.unread.bytes)?;
                    }
                    StreamIo::Blocked => {
                        self.readable.remove(&id);
                        break;
                    }
                    StreamIo::End if channel.read_ended => {
                        self.readable.remove(&id);
                        break;
                    }
                    StreamIo::End => {
                        // Read on: what comes yet is that the peer stops listening.
                        channel.read_ended = true;
                        protocol.handle_stream_end(id, &channel.unread.bytes)?;
                        channel.over |= !channel.begun;
                    }
                    StreamIo::Reset(code) => {
                        self.readable.remove(&id);
                        protocol.handle_stream_reset(id, ErrorCode::from_number(code))?;
                        // The protocol says what becomes of a stream that it knows; of another nobody speaks again.
                        channel.over |= !channel.begun;
                        self.writable.push(id);
                        break;
                    }
                    StreamIo::Lost => return Ok(()),
                }
            }
        }
        Ok(())
    }

    /// Takes what the protocol wants done with its streams.
    pub(crate) fn fill(&mut self, now: Time, protocol: &mut Connection) {
        while let Some(action) = protocol.poll_stream(now, &mut self.scratch, WRITE_BUDGET) {
            match action {
                StreamAction::Write { id, key, priority, end } => {
                    let channel = self.open.entry(id).or_insert_with(|| {
                        self.unopened.push_back((id, priority));
                        Channel::new()
                    });
                    channel.key = Some(key);
                    channel.priority = priority;
                    channel.end |= end;
                    channel.write.append_all(&mut self.scratch);
                    self.writable.push(id);
                }
                StreamAction::Close { id } => self.over(id, None),
                StreamAction::Reset { id, code } => self.over(id, Some(code)),
            }
        }
    }

    fn over(&mut self, id: u64, code: Option<ErrorCode>) {
        let Some(channel) = self.open.get_mut(&id) else { return };
        channel.over = true;
        channel.key = None;
        self.writable.push(id);
        if code.is_some() || !channel.end {
            channel.write = TransmitBuffer::default();
            channel.end = false;
        }
        channel.code = code.map_or(0, ErrorCode::number);
    }

    /// Writes every channel that may be written.
    pub(crate) fn write(&mut self, carrier: &mut dyn Streams) {
        let mut ids = std::mem::take(&mut self.writable);
        // What the carrier takes together goes out together, a packet of each in turn: the class decides who writes first,
        // and seldom it is the last.
        self.turns = self.turns.wrapping_add(1);
        if ids.len() > 1 {
            let open = &self.open;
            let class = |id: &u64| open.get(id).map(|channel| channel.priority);
            let classes = [None, Some(Priority::Critical), Some(Priority::Normal), Some(Priority::Bulk)];
            ids = classes.iter().flat_map(|of| ids.iter().filter(|id| class(id) == *of).copied()).collect();
            if self.turns.is_multiple_of(BULK_SHARE) {
                ids.reverse();
            }
        }
        for id in ids.drain(..) {
            let Some(channel) = self.open.get_mut(&id) else { continue };
            if self.unopened.iter().any(|(unopened, _)| *unopened == id) {
                continue;
            }
            while !channel.write.is_empty() {
                if channel.deaf {
                    channel.write = TransmitBuffer::default();
                    break;
                }
                let mut parts = [IoSlice::new(&[]); MAX_PARTS];
                let count = channel.write.parts(&mut parts);
                match carrier.write(id, &parts[..count]) {
                    StreamIo::Done(count) => {
                        self.bytes_out += count as u64;
                        channel.write.consume(count);
                    }
                    StreamIo::Blocked | StreamIo::Lost => break,
                    StreamIo::Reset(code) => {
                        // The peer reads no more of it. Without an error its last frame is on its way and says why.
                        channel.deaf = true;
                        if code != ErrorCode::NO_ERROR.number() {
                            self.stopped.push((id, code));
                        }
                    }
                    StreamIo::End => break,
                }
            }
            if !channel.write.is_empty() {
                continue;
            }
            if channel.end && !channel.finished && !channel.deaf {
                channel.finished = true;
                carrier.finish(id);
            }
            self.written.extend(channel.key.take());
            if channel.over {
                carrier.close(id, channel.code);
                self.open.remove(&id);
                self.readable.remove(&id);
            }
        }
        self.writable = ids;
    }

    /// Whether every call's channel is written and closed.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Bytes read and written since the last time.
    pub(crate) fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.bytes_in), std::mem::take(&mut self.bytes_out))
    }

    /// Whether the protocol has to hear of something before the driver may rest.
    pub(crate) fn has_news(&self) -> bool {
        self.more || !self.written.is_empty() || !self.stopped.is_empty()
    }
}
