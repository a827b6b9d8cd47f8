//! One stream's state: what each direction has sent and may still send.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::{ConnectionError, ErrorCode, Limits, Metadata, Status, Time, connection::Finish};

/// Priority class of a call. Critical frames do not wait behind bulk ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Goes first, and an eighth of a connection's credit is its own.
    Critical = 0,
    /// The default.
    #[default]
    Normal = 1,
    /// Takes what is left, up to half of a connection's credit, and a small share always.
    Bulk = 2,
}

impl Priority {
    /// Every class, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Critical, Priority::Normal, Priority::Bulk];

    /// The class of that number on the wire.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Priority::Critical),
            1 => Some(Priority::Normal),
            2 => Some(Priority::Bulk),
            _ => None,
        }
    }

    /// What a sender keeps of a connection's credit for the classes before this one, in bytes (W8-09).
    pub(crate) fn kept_credit(self, window: u32) -> u64 {
        u64::from(match self {
            Priority::Critical => 0,
            Priority::Normal => window / 8,
            Priority::Bulk => window / 2,
        })
    }

    /// The class in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Priority::Critical => "critical",
            Priority::Normal => "normal",
            Priority::Bulk => "bulk",
        }
    }

    /// The class of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// This side's name of a stream: a slot and its generation. Stable from open to end and never reused, unlike the
/// slot; the id on the wire is assigned when the CALL frame is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl StreamKey {
    /// The slot: small and dense, so that a driver can keep its own table beside the connection's.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// Something that a stream has yet to put on the wire.
#[derive(Debug)]
pub(crate) enum Out {
    /// Opens the stream. The record is written at transmit, so that the remaining time is right.
    Call {
        method: Bytes,
        metadata: Metadata,
        message: Option<Bytes>,
        end: bool,
    },
    Head(Metadata),
    Message {
        message: Bytes,
        end: bool,
    },
    /// Half-close without a message.
    End,
    Status(Result<Finish, Status>),
}

impl Out {
    pub(crate) fn message(&self) -> Option<&Bytes> {
        match self {
            Out::Call { message, .. } => message.as_ref(),
            Out::Message { message, .. } => Some(message),
            Out::Status(Ok(finish)) => finish.message.as_ref(),
            Out::Head(_) | Out::End | Out::Status(Err(_)) => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Stream {
    /// 0 until the CALL frame of a stream of ours is written.
    pub(crate) id: u64,
    pub(crate) local: bool,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Time>,

    /// The item being written and how much of its message is.
    pub(crate) current: Option<(Out, usize)>,
    pub(crate) queue: VecDeque<Out>,
    /// Whether the stream stands in a ready queue.
    pub(crate) ready: bool,
    /// Whether the stream stands among those that wait for the connection.
    pub(crate) waiting: bool,
    /// Whether it waited for its bad end to be forgiven, and it is its turn.
    pub(crate) called: bool,
    /// Whether its deadline counts as a reset when it passes.
    pub(crate) brief: bool,
    /// The end of this side's messages is queued; nothing may follow it.
    pub(crate) half_closed_local: bool,
    /// Whether the stream's own channel has not taken its last frames.
    pub(crate) blocked: bool,
    pub(crate) sent: u64,
    pub(crate) send_limit: u64,
    pub(crate) send_buffered: usize,
    pub(crate) wants_writable: bool,
    pub(crate) head_sent: bool,
    /// When something of it was last written, or first found waiting.
    pub(crate) moved: Option<Time>,

    /// The peer's HEAD or first message came.
    pub(crate) answer_began: bool,
    /// The end of the peer's messages was read.
    pub(crate) half_closed_remote: bool,
    pub(crate) received: u64,
    pub(crate) receive_limit: u64,
    pub(crate) consumed: u64,
    /// Fragments of a message whose end has not come; `None` between messages.
    pub(crate) partial: Option<BytesMut>,
    /// When the last of them came.
    pub(crate) grew: Time,
    /// A server's stream whose CALL carried a first fragment: what the call is, until the message is whole.
    pub(crate) pending_call: Option<Box<crate::connection::Event>>,
}

impl Stream {
    pub(crate) fn new(id: u64, local: bool, priority: Priority, send_limit: u64, receive_limit: u64) -> Self {
        Self {
            id,
            local,
            priority,
            deadline: None,
            current: None,
            queue: VecDeque::new(),
            ready: false,
            waiting: false,
            called: false,
            brief: false,
            half_closed_local: false,
            blocked: false,
            sent: 0,
            send_limit,
            send_buffered: 0,
            wants_writable: false,
            head_sent: false,
            moved: None,
            answer_began: false,
            half_closed_remote: false,
            received: 0,
            receive_limit,
            consumed: 0,
            partial: None,
            grew: Time::default(),
            pending_call: None,
        }
    }

    /// What waits to be sent, in bytes, and what it takes to keep it.
    pub(crate) fn queued_cost(&self) -> usize {
        self.send_buffered + self.queue.len() * Limits::MESSAGE_COST
    }

    pub(crate) fn push(&mut self, out: Out) {
        self.send_buffered += out.message().map_or(0, Bytes::len);
        if self.current.is_none() {
            self.current = Some((out, 0));
        } else {
            self.queue.push_back(out);
        }
    }

    /// Since when nothing of it has moved: if it has something to send and was opened, or is inside a message of the
    /// peer's.
    pub(crate) fn stands_since(&mut self, now: Time) -> Option<Time> {
        let sending = self.id != 0 && self.current.is_some();
        let sending = sending.then(|| *self.moved.get_or_insert(now));
        Time::sooner(sending, self.partial.as_ref().map(|_| self.grew))
    }

    /// So many bytes of a message of the peer's came.
    pub(crate) fn take_credit(&mut self, len: usize) -> Result<(), ConnectionError> {
        self.received += len as u64;
        if self.received <= self.receive_limit {
            return Ok(());
        }
        let id = self.id;
        Err(ConnectionError::new(
            ErrorCode::FLOW_CONTROL,
            format!("more message bytes than the window of stream {id}"),
        ))
    }

    pub(crate) fn partial_len(&self) -> u64 {
        self.partial.as_ref().map_or(0, |partial| partial.len() as u64)
    }
}

/// Streams in slots; a slot's generation changes with each tenant. The slots lie in pages, so that a peer that opens all
/// the streams it may have never makes one large allocation.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pages: Vec<Vec<Slot>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    stream: Option<Stream>,
}

impl Streams {
    const PAGE: usize = 64;

    pub(crate) fn insert(&mut self, stream: Stream) -> StreamKey {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let slot = &mut self.pages[index as usize / Self::PAGE][index as usize % Self::PAGE];
            slot.stream = Some(stream);
            return StreamKey { index, generation: slot.generation };
        }
        if self.pages.last().is_none_or(|page| page.len() == Self::PAGE) {
            self.pages.push(Vec::new());
        }
        let last = self.pages.len() - 1;
        self.pages[last].push(Slot { generation: 0, stream: Some(stream) });
        // Bounded by max_concurrent_streams and max_waiting_calls, far below u32.
        let index = (self.len - 1) as u32;
        StreamKey { index, generation: 0 }
    }

    fn slot(&mut self, key: StreamKey) -> Option<&mut Slot> {
        let slot = self.pages.get_mut(key.index() / Self::PAGE)?.get_mut(key.index() % Self::PAGE)?;
        (slot.generation == key.generation).then_some(slot)
    }

    pub(crate) fn get(&mut self, key: StreamKey) -> Option<&mut Stream> {
        self.slot(key)?.stream.as_mut()
    }

    /// Drops a stream where it lies: it is large to move.
    pub(crate) fn remove(&mut self, key: StreamKey) {
        if let Some(slot) = self.slot(key)
            && slot.stream.is_some()
        {
            slot.stream = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(key.index);
            self.len -= 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&mut self) -> impl Iterator<Item = (StreamKey, &mut Stream)> {
        self.pages.iter_mut().flatten().enumerate().filter_map(|(index, slot)| {
            let key = StreamKey { index: index as u32, generation: slot.generation };
            slot.stream.as_mut().map(|stream| (key, stream))
        })
    }
}
