//! One connection: frames in, events out; calls in, frames out.
//!
//! ```text
//!              HELLO read          GOAWAY(NO_ERROR) sent or read
//! handshaking ────────────► open ────────────────────────────────► draining
//!      │                      │                                       │
//!      └──────────────────────┴──────── an error, or the end ─────────┴──► closed
//! ```
//! A drain may begin before HELLO is read; no state is entered twice.
//!
//! A stream (PROTOCOL.md, "Streams"):
//! ```text
//!                END sent
//!            ┌─────────────► half-closed (local) ──┐  STATUS, or RESET
//!  CALL ─► open                                    ├──────────────────► gone
//!            └─────────────► half-closed (remote) ─┘  from either side
//!                END read
//! ```
//! It deliberately knows no socket and no waiters: a driver keeps those beside it, by [`StreamKey`].

mod abuse;
mod alive;
mod channels;
mod credentials;

pub use alive::Keepalive;
pub use channels::StreamAction;
pub use credentials::Secret;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    ops::RangeInclusive,
    time::Duration,
};

use abuse::{Account, BRIEF, Bucket};
use alive::Alive;
use bytes::{Buf, Bytes, BytesMut};
use credentials::{Credentials, Stage};

use crate::{
    ConnectionError, ErrorCode, FLAG_END, FLAG_MESSAGE, FLAG_MORE, FrameHeader, FrameType, HEADER_LEN,
    INITIAL, Limits, Metadata, OPTIONAL_ID, OPTIONAL_TYPE, Priority, Reason, Status, StreamKey, Time,
    TransmitBuffer, VERSION,
    grease::Grease,
    limits::{MAX_FRAME_BYTES_CAP, MAX_STREAM_ID},
    queue::Queue,
    record::{
        self, AUTH_FOLLOWS, Call, Extension, GoAway, Head, Hello, Ping, RecordError, Reset, StatusRecord,
        Window, check_method, metadata_from,
    },
    stream::{Out, Stream, Streams},
    transmit::{Fragment, write_record},
};

/// Which side of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that connected; its streams are odd.
    Client,
    /// The side that accepted; its streams would be even.
    Server,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// The peer's HELLO has not come. Calls may be opened, within [`INITIAL`] limits.
    Handshaking,
    /// Calls may be opened.
    Open,
    /// No new calls; those that run may finish.
    Draining,
    /// Over.
    Closed,
}

/// What a connection is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which side this is.
    pub role: Role,
    /// What this side takes from its peer.
    pub limits: Limits,
    /// The protocol versions that this side offers, 1..=1 by default: all that there are. The connection has the
    /// highest that both sides offer.
    pub versions: RangeInclusive<u8>,
    /// The feature bits that this side offers, 0 by default: none is defined yet. Those that both sides offer are on.
    pub features: u64,
    /// The seed of this side's grease: what it sends at random for its peer to skip. `None`, the default, sends none.
    pub grease: Option<u64>,
    /// Whether the carrier multiplexes, as QUIC does: every stream has a channel of its own with its own flow control,
    /// and connection frames have theirs (PROTOCOL.md, "Carriers"). Default false.
    pub multiplexed: bool,
    /// A client's: whether it has credentials. HELLO says so, and no call is written before [`Connection::authenticate`].
    /// A server's: whether it decides on credentials, by [`Event::Auth`]; one that does not accepts all, for ever. Default
    /// false.
    pub authenticates: bool,
    /// When the peer is asked whether it is there. Default: never.
    pub keepalive: Keepalive,
    /// How long there may be no stream before this side lets go of the connection, by [`Event::Idle`]. Default: for ever.
    pub max_idle: Option<Duration>,
}

impl Config {
    /// The defaults for a side.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            limits: Limits::default(),
            versions: VERSION..=VERSION,
            features: 0,
            grease: None,
            multiplexed: false,
            authenticates: false,
            keepalive: Keepalive::default(),
            max_idle: None,
        }
    }
}

/// How a call ends well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finish {
    /// The last message, if any.
    pub message: Option<Bytes>,
    /// Initial metadata, when none was sent before.
    pub metadata: Metadata,
    /// Trailers.
    pub trailers: Metadata,
}

/// A call to open.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The method's path.
    pub method: Bytes,
    /// Call metadata.
    pub metadata: Metadata,
    /// Priority class.
    pub priority: Priority,
    /// When the call ends by itself.
    pub deadline: Option<Time>,
    /// The first or only message.
    pub message: Option<Bytes>,
    /// Whether nothing follows: the call is half-closed at once.
    pub end: bool,
}

/// What happened, for the driver to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's HELLO was read: its limits hold from now on.
    Connected,
    /// The peer opened a stream.
    Call {
        /// The stream.
        key: StreamKey,
        /// The method's path, checked to be legal text.
        method: Bytes,
        /// Call metadata.
        metadata: Metadata,
        /// Priority class.
        priority: Priority,
        /// The message that came with the call. Its credit is returned by [`Connection::consumed`].
        message: Option<Bytes>,
        /// Whether the caller half-closed.
        end: bool,
    },
    /// Initial metadata of an answer.
    Head {
        /// The stream.
        key: StreamKey,
        /// The metadata.
        metadata: Metadata,
    },
    /// A whole message. Its credit is returned by [`Connection::consumed`].
    Message {
        /// The stream.
        key: StreamKey,
        /// The message.
        message: Bytes,
    },
    /// The caller half-closed.
    HalfClosed {
        /// The stream.
        key: StreamKey,
    },
    /// The call ended, well or with a status; the stream is gone.
    Ended {
        /// The stream.
        key: StreamKey,
        /// How.
        outcome: Result<Finish, Status>,
    },
    /// The stream was reset by the peer, refused, or its deadline passed; it is gone.
    Reset {
        /// The stream.
        key: StreamKey,
        /// The status of the call.
        status: Status,
        /// Whether the peer provably did not process the call, so that repeating it is safe.
        unprocessed: bool,
    },
    /// There is room for another message on the stream.
    Writable {
        /// The stream.
        key: StreamKey,
    },
    /// The peer takes no new streams.
    GoAway {
        /// Why; `NO_ERROR` for a graceful end.
        error: ConnectionError,
    },
    /// The client sent credentials: [`Connection::accept_credentials`] or [`Connection::refuse_credentials`] decides. Until
    /// then nothing behind the first ones is read.
    Auth {
        /// The token.
        token: Secret,
    },
    /// The server accepted the credentials that were sent last.
    Authenticated {
        /// When they end, from now on; `None` for never.
        expires_in: Option<Duration>,
    },
    /// The credentials that a server accepted have expired: the client is told, and its streams are gone.
    Expired,
    /// There was no stream for [`Config::max_idle`]: the peer is told by GOAWAY. What it says is to be read for 1 s, or until it
    /// closes, so that a call that was on its way is refused and not lost.
    Idle,
    /// The peer answered a PING.
    Pong {
        /// The data of the PING.
        data: u64,
    },
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The stream is gone.
    Gone,
    /// The stream's send buffer is full: wait for [`Event::Writable`]. The message comes back.
    Full(Bytes),
    /// The call cannot go on like this; the status says why.
    Refused(Status),
}

/// Room that the beginning of a frame may reserve for its rest.
const READ_AHEAD: usize = 68 << 10;
/// Of so many frames, one goes to the bulk class whatever else waits.
const BULK_SHARE: u32 = 16;
/// Credit where the carrier does the counting: out of reach, and far from overflow.
const UNLIMITED: u64 = u64::MAX / 2;

const SETTING_MAX_FRAME: u32 = 1;
const SETTING_MAX_MESSAGE: u32 = 2;
const SETTING_MAX_METADATA: u32 = 3;
const SETTING_MAX_STREAMS: u32 = 4;
const SETTING_STREAM_WINDOW: u32 = 5;
const SETTING_CONNECTION_WINDOW: u32 = 6;
/// How long a drain waits for what is on its way, at most.
const SETTLES: Duration = Duration::from_secs(1);
/// Data of the PING whose answer tells that it has arrived.
const SETTLED: u64 = u64::from_be_bytes(*b"settled?");
/// Extension of GOAWAY: the versions that would have worked.
const EXTENSION_VERSIONS: u32 = 1;

#[derive(Clone, Copy, Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing: ids are dense, and at most max_concurrent_streams of them are alive.
        self.0 = (self.0 ^ id).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26);
    }
}

/// One side of one connection.
pub struct Connection {
    config: Config,
    peer: Limits,
    /// What frames of this side say: the lowest it offers, and from the peer's HELLO on the highest of both.
    version: u8,
    /// The feature bits of both sides.
    features: u64,
    grease: Option<Grease>,
    greeted: bool,
    credentials: Credentials,
    failed: Option<ConnectionError>,
    /// The latest instant that was handed in.
    now: Time,
    handshake_deadline: Option<Time>,
    alive: Alive,
    unfinished: Option<Unfinished>,
    /// No stream's deadline is earlier than this, nor the end of anybody's patience with a stream that stands still.
    next_deadline: Option<Time>,

    streams: Streams,
    ids: HashMap<u64, StreamKey, BuildHasherDefault<IdHasher>>,
    next_id: u64,
    /// Streams that this side may still open.
    ids_left: u64,
    last_peer_id: u64,
    /// Streams of ours on the wire, and of the peer's.
    open_local: u32,
    open_peer: u32,
    going_away: bool,
    /// A server's drain that has begun, and takes what is on its way: until then at the latest, and what its last word says.
    settling: Option<(Time, Box<str>)>,
    peer_going_away: bool,
    /// Why the peer ended the connection, when it did not end it well.
    peer_error: Option<ConnectionError>,

    events: Queue<Event>,
    control: BytesMut,
    /// Answers to the peer's control frames among them.
    control_answers: u32,
    ready: [VecDeque<StreamKey>; 3],
    /// Streams that wait for the connection's credit.
    waiting: VecDeque<StreamKey>,
    /// Streams of ours that wait for one of the peer's max_concurrent_streams, by class.
    unopened: [VecDeque<StreamKey>; 3],
    waiting_opens: usize,
    /// Places that became free, of which bulk gets its share too.
    places: u32,
    /// Frames of the other classes since bulk's last, and whether one of them waited for credit since.
    urgent: u32,
    pressed: bool,

    sent: u64,
    send_limit: u64,
    received: u64,
    receive_limit: u64,
    consumed: u64,
    /// Of those, since less than an eighth of the window is left.
    taken_scarce: u64,
    /// Message bytes that nobody can take yet and whose credit is back: fragments of unfinished messages, and what the
    /// driver set aside.
    buffered: u64,
    /// Message bytes that streams have queued.
    unsent: u64,

    /// Resets that the peer is to blame for, less the calls that completed.
    resets: Bucket,
    /// The same of this side, as the peer sees it.
    account: Account,
    /// Streams of this side that are over and whose RESET waits: the peer would not forgive it yet. Their places are taken.
    held: BTreeMap<u64, ErrorCode>,
    /// Calls with a brief deadline that wait for the same.
    paused: VecDeque<StreamKey>,
    glitches: Bucket,
    /// How far fragments fell short, less what longer ones paid back.
    fragment_overhead: u32,
    /// PINGs of ours that are not answered.
    pings: u32,

    /// Only with a carrier that multiplexes: streams that are over, and streams' last frames.
    actions: VecDeque<StreamAction>,
    last_words: VecDeque<(u64, BytesMut)>,
    /// Messages were taken: streams that were held back may be read.
    resumed: bool,
    unfinished_streams: HashMap<u64, channels::Unfinished, BuildHasherDefault<IdHasher>>,
    /// No frame of those is overdue earlier.
    next_overdue: Option<Time>,
    /// Bytes that were read of all streams.
    streams_read: u64,
}

/// Shows nothing of what goes over it: credentials do.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("role", &self.config.role)
            .field("state", &self.state())
            .field("streams", &self.streams.len())
            .finish_non_exhaustive()
    }
}

/// A frame that has begun to arrive.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    since: Time,
    len: usize,
    deadline: Time,
}

impl Connection {
    /// A connection at its start: HELLO is queued, and calls may be opened at once within [`INITIAL`] limits.
    pub fn new(config: Config, now: Time) -> Self {
        let limits = config.limits;
        // A carrier that multiplexes counts for itself: its credit is no business of ours.
        let first_id = if config.role == Role::Client { 1 } else { 2 };
        let initial = |window: u32| if config.multiplexed { UNLIMITED } else { u64::from(window) };
        let mut connection = Self {
            peer: INITIAL,
            version: *config.versions.start(),
            features: 0,
            grease: config.grease.map(Grease::new),
            greeted: false,
            credentials: Credentials::new(config.authenticates && config.role == Role::Client),
            failed: None,
            now,
            handshake_deadline: Some(now.after(limits.handshake_timeout)),
            alive: Alive::new(now, &config.keepalive, config.max_idle),
            unfinished: None,
            next_deadline: None,
            streams: Streams::default(),
            ids: HashMap::default(),
            next_id: first_id,
            ids_left: (limits.last_stream.clamp(first_id, MAX_STREAM_ID) - first_id) / 2 + 1,
            last_peer_id: 0,
            open_local: 0,
            open_peer: 0,
            going_away: false,
            settling: None,
            peer_going_away: false,
            peer_error: None,
            events: Queue::default(),
            control: BytesMut::new(),
            control_answers: 0,
            ready: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
            waiting: VecDeque::new(),
            unopened: [VecDeque::new(), VecDeque::new(), VecDeque::new()],
            waiting_opens: 0,
            places: 0,
            urgent: 0,
            pressed: false,
            sent: 0,
            send_limit: initial(INITIAL.connection_window_bytes),
            received: 0,
            receive_limit: initial(limits.connection_window_bytes),
            consumed: 0,
            taken_scarce: 0,
            buffered: 0,
            unsent: 0,
            resets: Bucket::new(limits.max_resets, limits.resets_per_second),
            account: Account::new(&limits, config.multiplexed),
            held: BTreeMap::new(),
            paused: VecDeque::new(),
            glitches: Bucket::new(limits.max_glitches, limits.glitches_per_second),
            fragment_overhead: 0,
            pings: 0,
            actions: VecDeque::new(),
            last_words: VecDeque::new(),
            resumed: false,
            unfinished_streams: HashMap::default(),
            next_overdue: None,
            streams_read: 0,
            config,
        };
        let mut settings = vec![
            (SETTING_MAX_FRAME, u64::from(limits.max_frame_bytes)),
            (SETTING_MAX_MESSAGE, u64::from(limits.max_message_bytes)),
            (SETTING_MAX_METADATA, u64::from(limits.max_metadata_bytes)),
            (SETTING_MAX_STREAMS, u64::from(limits.max_concurrent_streams)),
            (SETTING_STREAM_WINDOW, u64::from(limits.stream_window_bytes)),
            (SETTING_CONNECTION_WINDOW, u64::from(limits.connection_window_bytes)),
        ];
        let mut room = [0; 8];
        let mut extensions = Vec::new();
        if let Some(grease) = &mut connection.grease {
            settings.extend(grease.setting());
            extensions = grease.extension(&mut room);
        }
        if connection.is_silent() {
            extensions.push((AUTH_FOLLOWS, &[]));
        }
        let hello = Hello {
            min_version: *connection.config.versions.start(),
            max_version: *connection.config.versions.end(),
            features: connection.config.features,
            settings,
            extensions,
        };
        connection.push_control(FrameType::HELLO, 0, |out| hello.encode(out));
        connection
    }

    // ---- what the driver asks ----

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next thing that happened, when it is another message of the same stream.
    pub fn poll_message(&mut self, of: StreamKey) -> Option<Bytes> {
        match self.events.front() {
            Some(Event::Message { key, .. }) if *key == of => {}
            _ => return None,
        }
        match self.events.pop_front() {
            Some(Event::Message { message, .. }) => Some(message),
            _ => None,
        }
    }

    /// When [`Connection::handle_timeout`] wants to be called; `None` for never.
    pub fn poll_timeout(&self) -> Option<Time> {
        // What was noted for frames that are whole by now is nobody's.
        let overdue = self.next_overdue.filter(|_| !self.unfinished_streams.is_empty());
        let frame = Time::sooner(self.unfinished.map(|frame| frame.deadline), overdue);
        let streams = Time::sooner(self.next_deadline, self.next_room());
        let streams = Time::sooner(self.credentials.expires, streams);
        let streams = Time::sooner(self.alive.next(), streams);
        let streams = Time::sooner(self.settling.as_ref().map(|(until, _)| *until), streams);
        Time::sooner(self.handshake_deadline, Time::sooner(frame, streams))
    }

    /// Streams that are open or wait to be.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether the stream was opened by this side and nothing of it was sent: the peer cannot know of it.
    pub fn is_unsent(&mut self, key: StreamKey) -> bool {
        self.streams.get(key).is_some_and(|stream| stream.local && stream.id == 0)
    }

    /// Message bytes that were read and that nobody has taken.
    pub fn unread_bytes(&self) -> u64 {
        self.received - self.consumed
    }

    /// Bytes that wait to be written: messages, and frames about streams and the connection.
    pub fn unsent_bytes(&self) -> u64 {
        let words: usize = self.last_words.iter().map(|(_, words)| words.len()).sum();
        self.unsent + (self.control.len() + words) as u64
    }

    /// Streams that have a deadline. Looks at each.
    pub fn deadlines(&mut self) -> usize {
        self.streams.iter().filter(|(_, stream)| stream.deadline.is_some()).count()
    }

    /// Where it stands. The driver closes a link whose protocol is `Closed`, and knows by itself when a link breaks.
    pub fn state(&self) -> ConnectionState {
        if self.failed.is_some() {
            ConnectionState::Closed
        } else if self.is_draining() {
            ConnectionState::Draining
        } else if self.greeted {
            ConnectionState::Open
        } else {
            ConnectionState::Handshaking
        }
    }

    /// Whether the peer's HELLO was read and accepted, however the connection went on.
    pub fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Whether this side ended it because the peer said nothing, or not enough, for too long.
    pub fn timed_out(&self) -> bool {
        self.failed.as_ref().is_some_and(|error| error.code == ErrorCode::TIMEOUT)
    }

    /// Whether either side takes no new streams, or this one has none left.
    pub fn is_draining(&self) -> bool {
        self.going_away
            || self.settling.is_some()
            || self.peer_going_away
            || self.is_used_up()
            || self.failed.is_some()
    }

    /// Whether a drain still takes calls that were on their way: what ends now would lose them.
    pub fn is_settling(&self) -> bool {
        self.settling.is_some() && !self.going_away && self.failed.is_none()
    }

    /// Whether this side has opened every stream that it may ([`Limits::last_stream`]): those that are open go on.
    pub fn is_used_up(&self) -> bool {
        self.ids_left == 0
    }

    /// The version of the connection: the lowest that this side offers until the peer's HELLO is read.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// The feature bits that are on: none until the peer's HELLO is read.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// What the peer is ready to receive: [`INITIAL`] until its HELLO is read.
    pub fn peer_limits(&self) -> &Limits {
        &self.peer
    }

    /// Whether something waits for the wire.
    pub fn wants_transmit(&self) -> bool {
        !self.control.is_empty()
            || !self.actions.is_empty()
            || !self.last_words.is_empty()
            || self.resumed
            || (self.failed.is_none()
                && !self.is_silent()
                && self.ready.iter().any(|queue| !queue.is_empty()))
    }

    /// How long until the stream's deadline; `None` without one or when the stream is gone.
    pub fn remaining(&mut self, key: StreamKey, now: Time) -> Option<Duration> {
        self.streams.get(key)?.deadline.map(|deadline| deadline.since(now))
    }

    // ---- calls ----

    /// Opens a stream. The CALL frame goes out at the next transmit, or when the peer has room for it.
    ///
    /// # Errors
    /// When the connection is going away, the call is not legal, or too many calls wait.
    pub fn open(&mut self, call: Opened) -> Result<StreamKey, Status> {
        if let Some(error) = &self.failed {
            return Err(error.status());
        }
        if let Some(error) = &self.peer_error {
            return Err(error.status());
        }
        if self.is_draining() {
            return Err(self.unauthenticated().unwrap_or_else(|| {
                Status::from_reason(Reason::GOING_AWAY, "the connection takes no new calls")
            }));
        }
        let method = std::str::from_utf8(&call.method)
            .map_err(|_| RecordError::new("method is not UTF-8"))
            .and_then(|method| check_method(method).map(|()| method))
            .map_err(|error| Status::from_reason(Reason::INVALID_METHOD, error.to_string()))?;
        let size = method.len() + metadata_size(&call.metadata) + 64;
        self.check_metadata_size(size)?;
        self.check_message_size(call.message.as_ref())?;
        let most = self.config.limits.max_waiting_calls;
        if self.waiting_opens >= most as usize {
            return Err(Status::from_reason(Reason::QUEUE_FULL, format!("{most} calls wait for a stream")));
        }
        let mut stream = self.new_stream(0, true, call.priority);
        stream.deadline = call.deadline;
        stream.half_closed_local = call.end;
        let key = self.streams.insert(stream);
        self.waiting_opens += 1;
        // Given up while it waits, it takes its number along: what was full stays full.
        self.ids_left -= 1;
        self.note_deadline(call.deadline);
        self.push(
            key,
            Out::Call { method: call.method, metadata: call.metadata, message: call.message, end: call.end },
        );
        Ok(key)
    }

    fn new_stream(&self, id: u64, local: bool, priority: Priority) -> Stream {
        let (send, receive) = if self.config.multiplexed {
            (UNLIMITED, UNLIMITED)
        } else {
            (self.peer.stream_window_bytes.into(), self.config.limits.stream_window_bytes.into())
        };
        Stream::new(id, local, priority, send, receive)
    }

    /// Queues a message.
    ///
    /// # Errors
    /// [`SendError`]; the stream stays as it was.
    pub fn send(&mut self, key: StreamKey, message: Bytes) -> Result<(), SendError> {
        self.check_message_size(Some(&message)).map_err(SendError::Refused)?;
        let stream = self.streams.get(key).ok_or(SendError::Gone)?;
        if stream.half_closed_local {
            return Err(SendError::Refused(Status::from_reason(
                Reason::STREAM_MISUSE,
                "a message was sent after the half-close",
            )));
        }
        let most = self.config.limits.stream_send_buffer_bytes as usize;
        if stream.current.is_some() && stream.queued_cost() + message.len() > most {
            stream.wants_writable = true;
            return Err(SendError::Full(message));
        }
        stream.head_sent = true;
        self.push(key, Out::Message { message, end: false });
        Ok(())
    }

    /// Half-closes: nothing follows from this side. Does nothing on a stream that is gone or already half-closed.
    pub fn finish(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        if !stream.half_closed_local {
            stream.half_closed_local = true;
            let last = stream.queue.back_mut().or(stream.current.as_mut().map(|(out, _)| out));
            match last {
                Some(Out::Message { end, .. } | Out::Call { end, .. }) => *end = true,
                _ => self.push(key, Out::End),
            }
        }
    }

    /// Sends initial metadata ahead of the first message of an answer.
    ///
    /// # Errors
    /// STREAM_MISUSE after a message or other metadata, and for a call of this side; METADATA_TOO_LARGE; CANCELLED when
    /// the stream is gone.
    pub fn send_head(&mut self, key: StreamKey, metadata: Metadata) -> Result<(), Status> {
        self.check_metadata_size(metadata_size(&metadata) + 8)?;
        let stream = self
            .streams
            .get(key)
            .ok_or_else(|| Status::from_reason(Reason::CANCELLED, "the call is gone"))?;
        if stream.local || stream.head_sent || stream.half_closed_local {
            return Err(Status::from_reason(
                Reason::STREAM_MISUSE,
                "initial metadata goes before the first message of an answer",
            ));
        }
        stream.head_sent = true;
        self.push(key, Out::Head(metadata));
        Ok(())
    }

    /// Ends a call that the peer opened. Does nothing when it is gone, or is one of this side's.
    pub fn respond(&mut self, key: StreamKey, outcome: Result<Finish, Status>) {
        let outcome = match &outcome {
            Ok(finish) => self
                .check_message_size(finish.message.as_ref())
                .and_then(|()| {
                    self.check_metadata_size(
                        metadata_size(&finish.metadata) + metadata_size(&finish.trailers) + 64,
                    )
                })
                .and(outcome),
            Err(status) => {
                let size = status.message().len()
                    + metadata_size(status.metadata())
                    + metadata_size(status.trailers())
                    + status.details().iter().map(|d| d.type_name.len() + d.value.len() + 10).sum::<usize>()
                    + 64;
                match self.check_metadata_size(size) {
                    Ok(()) => outcome,
                    // The code is what callers act on: keep it, drop what does not fit.
                    Err(_) => Err(Status::new(status.code(), "the status was too large to send")
                        .with_reason(status.reason())),
                }
            }
        };
        let Some(stream) = self.streams.get(key) else { return };
        if !stream.half_closed_local && !stream.local {
            stream.half_closed_local = true;
            self.push(key, Out::Status(outcome));
        }
    }

    /// Ends a stream badly in both directions. Does nothing when it is gone.
    pub fn reset(&mut self, key: StreamKey, code: ErrorCode) {
        let Some(stream) = self.streams.get(key) else { return };
        let (id, local) = (stream.id, stream.local);
        if local && id != 0 {
            self.reset_local(key, id, code);
        } else {
            self.forget(key);
            if id != 0 {
                self.push_reset(id, code);
            }
        }
    }

    /// As [`Connection::reset`] with ENHANCE_CALM, for a stream whose peer asks too much of the driver: counted with the
    /// resets that the peer provokes.
    pub fn reset_abused(&mut self, key: StreamKey) {
        self.reset(key, ErrorCode::ENHANCE_CALM);
        if let Err(error) = self.count_reset()
            && self.failed.is_none()
        {
            self.fail(error);
        }
    }

    /// Returns the credit of `len` message bytes that the application has taken, each byte once. The key may be of a stream that is
    /// gone: the connection's credit is returned all the same.
    pub fn consumed(&mut self, key: StreamKey, len: usize) {
        self.drop_bytes(len);
        self.resumed = self.config.multiplexed;
        let window = u64::from(self.config.limits.stream_window_bytes);
        if let Some(stream) = self.streams.get(key) {
            stream.consumed += len as u64;
            let partial = stream.partial_len();
            let (id, limit, more) =
                (stream.id, stream.consumed + window + partial, !stream.half_closed_remote);
            if more && limit >= stream.receive_limit + window / 2 {
                stream.receive_limit = limit;
                self.push_window(id, limit);
            }
        }
    }

    /// The driver holds `len` message bytes of a call that it has not begun, for want of a permit: the connection's credit
    /// for them comes back at once, so that calls that wait never take the room of those that run; the stream's does not.
    /// False when more than `max_buffered_bytes` would be held: the stream was reset with REFUSED. What was set aside is
    /// taken up again before it is consumed.
    pub fn set_aside(&mut self, key: StreamKey, len: usize) -> bool {
        let held = self.buffered + len as u64;
        if held > u64::from(self.config.limits.max_buffered_bytes) {
            self.reset(key, ErrorCode::REFUSED);
            if let Err(error) = self.count_answer()
                && self.failed.is_none()
            {
                self.fail(error);
            }
            return false;
        }
        self.buffered = held;
        self.grant_connection();
        true
    }

    /// The call begins, or was given up: `len` bytes that were set aside are the application's to take.
    pub fn take_up(&mut self, len: usize) {
        self.buffered -= len as u64;
    }

    /// Asks the peer to answer with the same data.
    pub fn ping(&mut self, data: u64) {
        let mut room = [0; 8];
        let grease = self.grease.as_mut();
        let extensions = grease.map_or_else(Vec::new, |grease| grease.extension(&mut room));
        let ping = Ping { data, extensions };
        self.pings = self.pings.saturating_add(1);
        self.push_control(FrameType::PING, 0, |out| ping.encode(out));
    }

    /// Tells the peer that no new streams are taken; those it has opened go on.
    pub fn go_away(&mut self, message: &str) {
        if !self.going_away && self.failed.is_none() {
            self.going_away = true;
            self.push_go_away(ErrorCode::NO_ERROR, message);
        }
    }

    /// The same in two steps, for a server: calls that are on their way are taken, until the peer has answered a PING or a second
    /// has passed. A client goes at once.
    pub fn drain(&mut self, now: Time, message: &str) {
        if self.config.role == Role::Client {
            self.go_away(message);
        } else if !self.going_away && self.settling.is_none() && self.failed.is_none() {
            self.settling = Some((now.after(SETTLES), message.into()));
            self.push_last_stream(ErrorCode::NO_ERROR, message, MAX_STREAM_ID);
            self.ping(SETTLED);
        }
    }

    /// What was on its way has arrived.
    fn settle(&mut self) {
        if let Some((_, message)) = self.settling.take() {
            self.go_away(&message);
        }
    }

    // ---- bytes in ----

    /// Takes every whole frame out of `buffer`; what is left is the beginning of the next one, with room reserved for
    /// the rest of it, 64 KiB at a time. Messages are slices of the buffer.
    ///
    /// # Errors
    /// The rule that the peer broke. A GOAWAY with its code is queued; nothing else will be read or sent.
    pub fn handle_read(&mut self, now: Time, buffer: &mut BytesMut) -> Result<(), ConnectionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.now = now;
        let mut begun = true;
        let channel = self.config.multiplexed.then_some((0, &mut begun));
        self.read_frames(now, buffer, channel).map_err(|error| self.fail(error))
    }

    /// Takes a message of a carrier that keeps borders: whole frames only.
    ///
    /// # Errors
    /// As [`Connection::handle_read`], and PROTOCOL for a frame that is cut.
    pub fn handle_message(&mut self, now: Time, buffer: &mut BytesMut) -> Result<(), ConnectionError> {
        self.handle_read(now, buffer)?;
        if buffer.is_empty() || self.holds_back() {
            return Ok(());
        }
        let error = ConnectionError::new(ErrorCode::PROTOCOL, "a carrier message holds a part of a frame");
        Err(self.fail(error))
    }

    /// A carrier that keeps borders has read so many bytes of a message that is not whole: the clock of an unfinished
    /// frame is its clock too. 0 when none has begun.
    pub fn handle_unfinished_message(&mut self, now: Time, len: usize) {
        if self.failed.is_none() {
            self.now = now;
            self.note_unfinished(now, len);
        }
    }

    /// The peer closed its writing direction, or the link broke; `rest` is what was read and is not a whole frame.
    /// Gives the status of the calls that it cuts off.
    pub fn handle_end(&mut self, rest: &[u8]) -> Status {
        match self.failed.as_ref().or(self.peer_error.as_ref()) {
            Some(error) => error.status(),
            None if !rest.is_empty() && !self.holds_back() => Status::from_reason(
                Reason::TRUNCATED_FRAME,
                format!("the connection ended {} bytes into a frame", rest.len()),
            ),
            None => Status::from_reason(Reason::CONNECTION_LOST, "the connection was closed"),
        }
    }

    /// Lets what is due happen: deadlines, the end of a stream that stands still, the handshake's and a frame's time, a look
    /// after a silent peer.
    ///
    /// # Errors
    /// TIMEOUT when the handshake or a frame took too long or the peer is gone, ENHANCE_CALM after too many resets.
    pub fn handle_timeout(&mut self, now: Time) -> Result<(), ConnectionError> {
        self.now = now;
        let due = |deadline: Option<Time>| deadline.is_some_and(|at| at <= now);
        if due(self.handshake_deadline) {
            let what = match self.greeted {
                false => "no hello within the handshake timeout",
                true => "no credentials, or no decision on them, within the handshake timeout",
            };
            let error = ConnectionError::new(ErrorCode::TIMEOUT, what);
            return Err(self.fail(error));
        }
        if due(self.next_overdue) {
            self.next_overdue = self.next_overdue_stream(now);
        }
        if due(self.unfinished.map(|frame| frame.deadline)) || due(self.next_overdue) {
            let error = ConnectionError::new(ErrorCode::TIMEOUT, "a frame stood unfinished for too long")
                .with_reason(Reason::FRAME_TIMEOUT);
            return Err(self.fail(error));
        }
        if due(self.credentials.expires) {
            self.expire();
        }
        if due(self.alive.next())
            && let Err(error) = self.look(now)
        {
            return Err(self.fail(error));
        }
        if due(self.next_deadline)
            && let Err(error) = self.end_streams_that_are_due(now)
        {
            return Err(self.fail(error));
        }
        if due(self.next_room()) {
            self.use_room();
        }
        if due(self.settling.as_ref().map(|(until, _)| *until)) {
            self.settle();
        }
        Ok(())
    }

    /// Rare: the bound moves by a whole timeout each time, so the walk costs nothing per call.
    fn end_streams_that_are_due(&mut self, now: Time) -> Result<(), ConnectionError> {
        let limits = &self.config.limits;
        let patience = match self.unsent > u64::from(limits.max_unsent_bytes) {
            true => limits.stall_timeout_pressed,
            false => limits.stall_timeout,
        };
        self.next_deadline = None;
        let mut passed = Vec::new();
        for (key, stream) in self.streams.iter() {
            // Looked at again after the shorter time, since memory may be short by then.
            let still = stream.stands_since(now).map(|since| since.after(patience));
            let again = still.map(|at| at.min(now.after(limits.stall_timeout_pressed)));
            if stream.deadline.is_some_and(|at| at <= now) {
                passed.push((key, ErrorCode::DEADLINE, !stream.local && stream.brief));
            } else if still.is_some_and(|at| at <= now) {
                passed.push((key, ErrorCode::ENHANCE_CALM, !stream.local));
            } else {
                self.next_deadline = Time::sooner(self.next_deadline, Time::sooner(stream.deadline, again));
            }
        }
        for (key, code, counts) in passed {
            let message = match code {
                ErrorCode::DEADLINE => "the deadline passed",
                _ => "nothing of the stream moved for too long",
            };
            self.reset_and_tell(key, code, Status::from_error_code(code, message));
            if counts {
                self.count_reset()?;
            }
        }
        Ok(())
    }

    /// With a carrier that multiplexes, `channel` is the stream that is read, and whether it began before.
    fn read_frames(
        &mut self,
        now: Time,
        buffer: &mut BytesMut,
        channel: Option<(u64, &mut bool)>,
    ) -> Result<(), ConnectionError> {
        let (channel, mut begun) = channel.unzip();
        if self.credentials.expires.is_some_and(|at| at <= now) {
            self.expire();
        }
        loop {
            if self.holds_back() {
                // Nobody waits for the rest of what is not looked at.
                self.unfinished = None;
                return Ok(());
            }
            let Some(start) = buffer.first_chunk::<HEADER_LEN>() else {
                FrameHeader::check_start(buffer)?;
                break;
            };
            let header = FrameHeader::decode_within(start, *self.config.versions.start(), self.version)?;
            self.check_header(&header)?;
            if let (Some(id), Some(begun)) = (channel, begun.as_deref()) {
                self.check_channel(&header, id, *begun)?;
            }
            // Both lengths are checked: the sum is below 2 MiB.
            let body = header.body_len() as usize;
            if buffer.len() < HEADER_LEN + body {
                // A peer that claims much and sends little holds little.
                let room = READ_AHEAD.checked_sub(buffer.len()).unwrap_or(READ_AHEAD);
                buffer.reserve((HEADER_LEN + body - buffer.len()).min(room));
                break;
            }
            let crc = match body {
                0 => 0,
                _ => crc32c::crc32c(&buffer[HEADER_LEN..HEADER_LEN + body]),
            };
            if crc != header.payload_crc {
                return Err(ConnectionError::new(
                    ErrorCode::CHECKSUM,
                    format!("frame body of stream {} does not match its checksum", header.stream),
                ));
            }
            buffer.advance(HEADER_LEN);
            self.alive.hear(now);
            match channel {
                None => self.unfinished = None,
                Some(id) => _ = self.unfinished_streams.remove(&id),
            }
            if let Some(begun) = begun.as_deref_mut() {
                *begun |= header.frame_type.0 & OPTIONAL_TYPE == 0;
            }
            let record = match header.metadata_len {
                0 => Bytes::new(),
                len => buffer.split_to(len as usize).freeze(),
            };
            let payload = match header.payload_len {
                0 => Bytes::new(),
                len => buffer.split_to(len as usize).freeze(),
            };
            self.handle_frame(now, &header, record, payload)?;
        }
        match (channel, begun) {
            (Some(id), Some(begun)) => self.note_unfinished_stream(now, id, *begun, buffer.len()),
            _ => self.note_unfinished(now, buffer.len()),
        }
        Ok(())
    }

    /// The clock of an unfinished frame restarts with every byte, and a frame that takes long must come at a pace.
    fn note_unfinished(&mut self, now: Time, len: usize) {
        if len == 0 {
            self.unfinished = None;
            return;
        }
        let since = match self.unfinished {
            Some(frame) if frame.len == len => return,
            Some(frame) => frame.since,
            None => now,
        };
        self.alive.hear(now);
        let limits = &self.config.limits;
        let slowest = limits.slowest_frame(len as u64);
        let deadline = now.after(limits.frame_timeout).min(since.after(slowest));
        self.unfinished = Some(Unfinished { since, len, deadline });
    }

    fn check_header(&self, header: &FrameHeader) -> Result<(), ConnectionError> {
        let limits = &self.config.limits;
        let size = |what, len, limit| {
            Err(ConnectionError::new(
                ErrorCode::FRAME_SIZE,
                format!("{what} length {len} exceeds limit {limit}"),
            ))
        };
        if header.payload_len > limits.max_frame_bytes {
            return size("payload", header.payload_len, limits.max_frame_bytes);
        }
        // A stranger gets no more than the least that may be announced.
        let most = if self.greeted { limits.max_metadata_bytes } else { INITIAL.max_metadata_bytes };
        if header.metadata_len > most {
            return size("metadata", header.metadata_len, most);
        }
        let protocol = |what: String| Err(ConnectionError::new(ErrorCode::PROTOCOL, what));
        if !self.greeted && header.frame_type != FrameType::HELLO && header.frame_type != FrameType::GOAWAY {
            return protocol(format!("frame type {:#04x} before hello", header.frame_type.0));
        }
        if !self.greeted && self.peer_going_away {
            return protocol(format!("frame type {:#04x} after a go-away before hello", header.frame_type.0));
        }
        if header.epoch != 0 {
            return protocol(format!("key epoch {} without a sealed session", header.epoch));
        }
        let carries = match header.frame_type {
            FrameType::CALL | FrameType::MESSAGE | FrameType::STATUS => true,
            FrameType::HELLO
            | FrameType::PING
            | FrameType::PONG
            | FrameType::GOAWAY
            | FrameType::WINDOW
            | FrameType::HEAD
            | FrameType::AUTHENTICATED
            | FrameType::RESET => false,
            // Of a client that did not speak of it, it is a type without a meaning.
            FrameType::AUTH if self.config.role == Role::Client || self.credentials.stage != Stage::None => {
                false
            }
            FrameType(other) if other & OPTIONAL_TYPE != 0 => return Ok(()),
            FrameType(other) => {
                return Err(ConnectionError::new(
                    ErrorCode::UNKNOWN_FRAME,
                    format!("frame type {other:#04x} is unknown and not optional"),
                ));
            }
        };
        if header.payload_len != 0 && !header.has(FLAG_MESSAGE) {
            return protocol("a payload without the message flag".into());
        }
        if header.flags != 0 && !carries {
            return protocol(format!(
                "flags {:#06x} on frame type {:#04x}",
                header.flags, header.frame_type.0
            ));
        }
        let ends = header.has(FLAG_END) || header.frame_type == FrameType::STATUS;
        if header.has(FLAG_MORE) && (!header.has(FLAG_MESSAGE) || ends) {
            return protocol("a message that goes on cannot be the end".into());
        }
        if header.frame_type.is_connection() != (header.stream == 0) && header.frame_type != FrameType::WINDOW
        {
            return protocol(format!("frame type {:#04x} on stream {}", header.frame_type.0, header.stream));
        }
        Ok(())
    }

    fn handle_frame(
        &mut self,
        now: Time,
        header: &FrameHeader,
        record: Bytes,
        payload: Bytes,
    ) -> Result<(), ConnectionError> {
        match header.frame_type {
            FrameType::HELLO => self.handle_hello(&record),
            FrameType::PING => {
                let data = Ping::decode(&record).map_err(malformed)?.data;
                // Only the data goes back: what else a peer may put into a PING must not fill our queue.
                let ping = Ping { data, extensions: Vec::new() };
                self.push_control(FrameType::PONG, 0, |out| ping.encode(out));
                self.count_answer()?;
                self.count_glitch()
            }
            FrameType::PONG => {
                let data = Ping::decode(&record).map_err(malformed)?.data;
                match self.pings.checked_sub(1) {
                    Some(left) => {
                        self.pings = left;
                        if data == SETTLED && self.settling.is_some() {
                            self.settle();
                        } else if self.account.ponged(now) {
                            self.use_room();
                        } else {
                            self.events.push_back(Event::Pong { data });
                        }
                        Ok(())
                    }
                    // Nobody asked.
                    None => self.count_glitch(),
                }
            }
            FrameType::AUTH => self.handle_auth(now, &record),
            FrameType::AUTHENTICATED => self.handle_authenticated(&record),
            FrameType::GOAWAY => {
                self.handle_go_away(&record)?;
                self.count_glitch()
            }
            FrameType::WINDOW => self.handle_window(header.stream, &record),
            FrameType::CALL => self.handle_call(now, header, &record, payload),
            FrameType::HEAD => self.handle_head(header.stream, &record),
            FrameType::MESSAGE if !record.is_empty() => {
                Err(malformed(RecordError::new("a message frame has no record")))
            }
            FrameType::MESSAGE => self.handle_message_frame(header, payload),
            FrameType::STATUS => self.handle_status(header, &record, payload),
            FrameType::RESET => self.handle_reset(header.stream, &record),
            // Optional and unknown: skipped, body and all.
            _ => Ok(()),
        }
    }

    fn handle_hello(&mut self, record: &Bytes) -> Result<(), ConnectionError> {
        if self.greeted {
            return Err(ConnectionError::new(ErrorCode::PROTOCOL, "a second hello"));
        }
        let hello = Hello::decode(record).map_err(malformed)?;
        let (lowest, highest) = (*self.config.versions.start(), *self.config.versions.end());
        let version = highest.min(hello.max_version);
        if version < lowest.max(hello.min_version) {
            return Err(ConnectionError::new(
                ErrorCode::VERSION,
                format!(
                    "the peer speaks protocol versions {} to {}, this side {lowest} to {highest}",
                    hello.min_version, hello.max_version
                ),
            ));
        }
        self.version = version;
        self.features = self.config.features & hello.features;
        let mut seen = 0u64;
        for (id, value) in hello.settings {
            let (field, least, most) = match id {
                SETTING_MAX_FRAME => (&mut self.peer.max_frame_bytes, INITIAL.max_frame_bytes, u32::MAX),
                SETTING_MAX_MESSAGE => {
                    (&mut self.peer.max_message_bytes, INITIAL.max_message_bytes, u32::MAX)
                }
                SETTING_MAX_METADATA => {
                    (&mut self.peer.max_metadata_bytes, INITIAL.max_metadata_bytes, u32::MAX)
                }
                SETTING_MAX_STREAMS => {
                    (&mut self.peer.max_concurrent_streams, INITIAL.max_concurrent_streams, u32::MAX)
                }
                SETTING_STREAM_WINDOW => {
                    (&mut self.peer.stream_window_bytes, INITIAL.stream_window_bytes, 1 << 31)
                }
                SETTING_CONNECTION_WINDOW => {
                    (&mut self.peer.connection_window_bytes, INITIAL.connection_window_bytes, 1 << 31)
                }
                id if id & OPTIONAL_ID != 0 => continue,
                id => {
                    return Err(ConnectionError::new(
                        ErrorCode::SETTING,
                        format!("setting {id} is unknown and not optional"),
                    ));
                }
            };
            // Known ids are below 64.
            if seen & 1 << id != 0 {
                return Err(ConnectionError::new(ErrorCode::SETTING, format!("setting {id} stands twice")));
            }
            seen |= 1 << id;
            match u32::try_from(value) {
                Ok(value) if (least..=most).contains(&value) => *field = value,
                _ => {
                    return Err(ConnectionError::new(
                        ErrorCode::SETTING,
                        format!("setting {id} is {value}, not {least} to {most}"),
                    ));
                }
            }
        }
        self.peer.max_frame_bytes = self.peer.max_frame_bytes.min(MAX_FRAME_BYTES_CAP);
        self.greeted = true;
        self.alive.greeted(self.now);
        if self.config.role == Role::Server && hello.extensions.iter().any(|(id, _)| *id == AUTH_FOLLOWS) {
            // The timer runs on, until they are decided on.
            self.credentials = Credentials::new(true);
        } else {
            self.handshake_deadline = None;
        }
        self.send_limit = self.send_limit.max(u64::from(self.peer.connection_window_bytes));
        let window = u64::from(self.peer.stream_window_bytes);
        let mut blocked = Vec::new();
        for (key, stream) in self.streams.iter() {
            stream.send_limit = stream.send_limit.max(window);
            blocked.push(key);
        }
        for key in blocked {
            self.make_ready(key);
        }
        self.release_waiting();
        for key in self.unopened.iter_mut().flat_map(std::mem::take).collect::<Vec<_>>() {
            if let Some(stream) = self.streams.get(key) {
                stream.waiting = false;
            }
            self.make_ready(key);
        }
        self.events.push_back(Event::Connected);
        Ok(())
    }

    fn handle_go_away(&mut self, record: &Bytes) -> Result<(), ConnectionError> {
        let go_away = GoAway::decode(record).map_err(malformed)?;
        let code = ErrorCode::from_number(go_away.code);
        let mut message = go_away.message.to_owned();
        if code == ErrorCode::VERSION
            && let Some((_, [min, max])) = go_away.extensions.iter().find(|(id, _)| *id == EXTENSION_VERSIONS)
        {
            let (lowest, highest) = (self.config.versions.start(), self.config.versions.end());
            message =
                format!("the peer speaks protocol versions {min} to {max}, this side {lowest} to {highest}");
        }
        // A drain has two of them.
        let is_news = !std::mem::replace(&mut self.peer_going_away, true) || code != ErrorCode::NO_ERROR;
        let refused: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.local && (stream.id == 0 || stream.id > go_away.last_stream))
            .map(|(key, _)| key)
            .collect();
        let unheard: Vec<_> =
            self.held.range(go_away.last_stream.saturating_add(1)..).map(|(id, _)| *id).collect();
        for id in unheard {
            self.release(id);
        }
        let mut error = ConnectionError::new(code, message);
        if code == ErrorCode::UNAUTHENTICATED {
            error = self.end_credentials(error);
        }
        for key in refused {
            self.forget(key);
            self.events.push_back(Event::Reset { key, status: error.status(), unprocessed: true });
        }
        if code != ErrorCode::NO_ERROR {
            self.peer_error = Some(error.clone());
        }
        if is_news {
            self.events.push_back(Event::GoAway { error });
        }
        Ok(())
    }

    fn handle_window(&mut self, id: u64, record: &Bytes) -> Result<(), ConnectionError> {
        let offset = Window::decode(record).map_err(malformed)?.offset;
        let least = |limit: u64| limit + u64::from(Limits::SMALL_FRAGMENT);
        let useful;
        if id == 0 {
            check_window(offset, self.sent)?;
            useful = offset >= least(self.send_limit);
            self.send_limit = self.send_limit.max(offset);
            self.release_waiting();
        } else {
            let Some(key) = self.find(id)? else { return Ok(()) };
            let Some(stream) = self.streams.get(key) else { return Ok(()) };
            check_window(offset, stream.sent)?;
            useful = offset >= least(stream.send_limit);
            stream.send_limit = stream.send_limit.max(offset);
            self.make_ready(key);
        }
        if useful { Ok(()) } else { self.count_glitch() }
    }

    fn handle_call(
        &mut self,
        now: Time,
        header: &FrameHeader,
        record: &Bytes,
        payload: Bytes,
    ) -> Result<(), ConnectionError> {
        if self.is_ours(header.stream) || header.stream > MAX_STREAM_ID {
            return Err(ConnectionError::new(
                ErrorCode::STREAM_ID,
                format!("stream {} is not the peer's to open", header.stream),
            ));
        }
        // Where each stream has a channel of its own, a later one may be faster.
        let again = if self.config.multiplexed {
            self.ids.contains_key(&header.stream)
        } else {
            header.stream <= self.last_peer_id
        };
        if again {
            return Err(ConnectionError::new(
                ErrorCode::STREAM_ID,
                format!("stream {} after stream {}", header.stream, self.last_peer_id),
            ));
        }
        if self.awaits_auth() {
            let what = "a call ahead of the credentials that hello spoke of";
            return Err(ConnectionError::new(ErrorCode::PROTOCOL, what));
        }
        self.take_connection_credit(payload.len())?;
        let call = Call::decode(record).map_err(malformed)?;
        check_method(call.method).map_err(malformed)?;
        let metadata = metadata_from(&call.metadata, record).map_err(malformed)?;
        if self.going_away
            || self.config.role == Role::Client
            || self.open_peer >= self.config.limits.max_concurrent_streams
        {
            // Never seen by the application, so the peer may repeat it. The id counts as used only below a GOAWAY.
            if !self.going_away {
                self.last_peer_id = self.last_peer_id.max(header.stream);
            }
            self.drop_bytes(payload.len());
            self.push_reset(header.stream, ErrorCode::REFUSED);
            self.count_answer()?;
            // While this side drains, the peer may not know it yet.
            return if self.going_away { Ok(()) } else { self.count_glitch() };
        }
        self.last_peer_id = self.last_peer_id.max(header.stream);
        let priority = Priority::from_number(header.priority).unwrap_or_default();
        let mut stream = self.new_stream(header.stream, false, priority);
        let timeout = (call.timeout_us != 0).then(|| Duration::from_micros(call.timeout_us));
        let deadline = timeout.map(|timeout| now.after(timeout));
        stream.deadline = deadline;
        stream.brief = timeout.is_some_and(|timeout| timeout < BRIEF);
        stream.half_closed_remote = header.has(FLAG_END);
        stream.take_credit(payload.len())?;
        let method = record.slice_ref(call.method.as_bytes());
        let key = self.streams.insert(stream);
        self.ids.insert(header.stream, key);
        self.open_peer += 1;
        self.watch(now);
        self.note_deadline(deadline);
        let end = header.has(FLAG_END);
        let whole = header.has(FLAG_MESSAGE) && !header.has(FLAG_MORE);
        let event =
            Event::Call { key, method, metadata, priority, message: whole.then(|| payload.clone()), end };
        let too_large = payload.len() > self.config.limits.max_message_bytes as usize;
        if header.has(FLAG_MORE) || too_large {
            // The application learns of it once its message is whole.
            if let Some(stream) = self.streams.get(key) {
                stream.pending_call = Some(Box::new(event));
            }
            return self.add_fragment(key, header.stream, payload);
        }
        self.events.push_back(event);
        Ok(())
    }

    fn handle_head(&mut self, id: u64, record: &Bytes) -> Result<(), ConnectionError> {
        let head = Head::decode(record).map_err(malformed)?;
        let metadata = metadata_from(&head.metadata, record).map_err(malformed)?;
        if let Some(key) = self.find(id)? {
            self.only_answers(key, "head")?;
            if let Some(stream) = self.streams.get(key)
                && std::mem::replace(&mut stream.answer_began, true)
            {
                return Err(ConnectionError::new(
                    ErrorCode::PROTOCOL,
                    format!("a head after the answer of stream {id} began"),
                )
                .with_reason(Reason::STREAM_STATE));
            }
            self.events.push_back(Event::Head { key, metadata });
        }
        Ok(())
    }

    fn handle_message_frame(&mut self, header: &FrameHeader, payload: Bytes) -> Result<(), ConnectionError> {
        self.take_connection_credit(payload.len())?;
        let Some(key) = self.find(header.stream)? else {
            self.drop_bytes(payload.len());
            return Ok(());
        };
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        if stream.half_closed_remote {
            // The sender broke its own half-close: the stream is over, and so is the peer's patience budget.
            self.drop_bytes(payload.len());
            let status =
                Status::from_error_code(ErrorCode::STREAM_CLOSED, "a message came after the half-close");
            self.reset_and_tell(key, ErrorCode::STREAM_CLOSED, status);
            return self.count_reset();
        }
        stream.take_credit(payload.len())?;
        stream.answer_began = true;
        if header.has(FLAG_END) {
            stream.half_closed_remote = true;
        }
        if header.flags == 0 {
            // Says nothing.
            return self.count_glitch();
        }
        if header.has(FLAG_MORE) {
            return self.add_fragment(key, header.stream, payload);
        }
        let message = if header.has(FLAG_MESSAGE) {
            let Some(message) = self.whole_message(key, payload) else {
                return self.refuse_message(key, ErrorCode::MESSAGE_SIZE);
            };
            Some(message)
        } else if self.streams.get(key).is_some_and(|stream| stream.partial.is_some()) {
            return Err(ConnectionError::new(ErrorCode::PROTOCOL, "half-close inside a message"));
        } else {
            None
        };
        let end = header.has(FLAG_END);
        if let Some(stream) = self.streams.get(key)
            && let Some(mut event) = stream.pending_call.take()
        {
            if let Event::Call { message: first, end: call_end, .. } = &mut *event {
                *first = message;
                *call_end = end;
            }
            self.events.push_back(*event);
            return Ok(());
        }
        if let Some(message) = message {
            self.events.push_back(Event::Message { key, message });
        }
        if end {
            self.events.push_back(Event::HalfClosed { key });
        }
        Ok(())
    }

    fn handle_status(
        &mut self,
        header: &FrameHeader,
        record: &Bytes,
        payload: Bytes,
    ) -> Result<(), ConnectionError> {
        self.take_connection_credit(payload.len())?;
        let fields = StatusRecord::decode(record).map_err(malformed)?;
        let Some(key) = self.find(header.stream)? else {
            self.drop_bytes(payload.len());
            if self.release(header.stream) {
                self.account.pay_back();
                self.use_room();
            }
            return Ok(());
        };
        self.only_answers(key, "status")?;
        let outcome = if fields.code == 0 {
            let finish = Finish {
                message: None,
                metadata: metadata_from(&fields.metadata, record).map_err(malformed)?,
                trailers: metadata_from(&fields.trailers, record).map_err(malformed)?,
            };
            let message = if header.has(FLAG_MESSAGE) {
                if let Some(stream) = self.streams.get(key) {
                    stream.take_credit(payload.len())?;
                }
                let Some(message) = self.whole_message(key, payload) else {
                    let status = self.too_much(ErrorCode::MESSAGE_SIZE);
                    self.forget(key);
                    self.events.push_back(Event::Reset { key, status, unprocessed: false });
                    return Ok(());
                };
                // What ends a call is handed to its caller at once: its credit comes back with it.
                self.drop_bytes(message.len());
                Some(message)
            } else if self.streams.get(key).is_some_and(|stream| stream.partial.is_some()) {
                return Err(ConnectionError::new(ErrorCode::PROTOCOL, "status OK inside a message"));
            } else {
                None
            };
            Ok(Finish { message, ..finish })
        } else {
            self.drop_bytes(payload.len());
            Err(fields.to_status(record).map_err(malformed)?)
        };
        self.forget(key);
        self.resets.pay_back();
        self.account.pay_back();
        self.use_room();
        self.events.push_back(Event::Ended { key, outcome });
        Ok(())
    }

    fn handle_reset(&mut self, id: u64, record: &Bytes) -> Result<(), ConnectionError> {
        let code = ErrorCode::from_number(Reset::decode(record).map_err(malformed)?.code);
        let Some(key) = self.find(id)? else {
            self.release(id);
            return Ok(());
        };
        self.reset_by_peer(key, code)
    }

    fn reset_by_peer(&mut self, key: StreamKey, code: ErrorCode) -> Result<(), ConnectionError> {
        let seen = self.is_seen(key);
        let refused = code == ErrorCode::REFUSED;
        let brief = self.streams.get(key).is_some_and(|stream| stream.brief);
        let local = self.forget(key).is_some_and(|(_, local)| local);
        // Of a deadline that was not brief it keeps no count.
        if local && !refused && (brief || code != ErrorCode::DEADLINE) {
            self.account.told(self.now);
        }
        let message = match (code, local) {
            (ErrorCode::CANCEL, false) => "the caller cancelled the call".to_owned(),
            (ErrorCode::REFUSED, _) => "the peer refused the stream".to_owned(),
            (ErrorCode::DEADLINE, _) => "the deadline passed".to_owned(),
            (code, _) => format!("the peer reset the stream: {}", code.name()),
        };
        let status = match code {
            ErrorCode::UNAUTHENTICATED => {
                if local {
                    self.note_expiry();
                }
                credentials::expired()
            }
            code => Status::from_error_code(code, message),
        };
        if seen {
            self.events.push_back(Event::Reset { key, status, unprocessed: local && refused });
        }
        if local { Ok(()) } else { self.count_reset() }
    }

    /// The stream of that id: `None` when it is gone, an error when it never was.
    fn find(&self, id: u64) -> Result<Option<StreamKey>, ConnectionError> {
        if let Some(key) = self.ids.get(&id) {
            return Ok(Some(*key));
        }
        let was =
            if self.is_ours(id) { id < self.next_id } else { id <= self.last_peer_id || self.going_away };
        if was {
            return Ok(None);
        }
        Err(ConnectionError::new(
            ErrorCode::PROTOCOL,
            format!("a frame for stream {id}, which was never opened"),
        )
        .with_reason(Reason::STREAM_STATE))
    }

    fn is_ours(&self, id: u64) -> bool {
        id % 2 == if self.config.role == Role::Client { 1 } else { 0 }
    }

    /// HEAD and STATUS belong to the side that answers.
    fn only_answers(&mut self, key: StreamKey, what: &str) -> Result<(), ConnectionError> {
        match self.streams.get(key) {
            Some(stream) if !stream.local => {
                Err(ConnectionError::new(ErrorCode::PROTOCOL, format!("a {what} from the side that called"))
                    .with_reason(Reason::STREAM_STATE))
            }
            _ => Ok(()),
        }
    }

    fn add_fragment(&mut self, key: StreamKey, id: u64, payload: Bytes) -> Result<(), ConnectionError> {
        self.count_fragment(payload.len())?;
        let limits = &self.config.limits;
        let buffered = self.buffered + payload.len() as u64;
        let Some(stream) = self.streams.get(key) else { return Ok(()) };
        let partial = stream.partial.get_or_insert_default();
        let too_large = partial.len() + payload.len() > limits.max_message_bytes as usize;
        if too_large || buffered > u64::from(limits.max_buffered_bytes) {
            let code = if too_large { ErrorCode::MESSAGE_SIZE } else { ErrorCode::ENHANCE_CALM };
            self.drop_bytes(payload.len());
            return self.refuse_message(key, code);
        }
        partial.extend_from_slice(&payload);
        stream.grew = self.now;
        self.buffered = buffered;
        // Credit for what is unfinished comes back at once, or a message larger than the window could never end.
        let window = u64::from(limits.stream_window_bytes);
        let limit = stream.consumed + window + stream.partial_len();
        if limit >= stream.receive_limit + window / 2 {
            stream.receive_limit = limit;
            self.push_window(id, limit);
        }
        self.note_deadline(Some(self.now.after(self.config.limits.stall_timeout_pressed)));
        self.grant_connection();
        Ok(())
    }

    /// The message that `payload` ends; `None` when it is over the limit, and then the credit for `payload` was returned.
    fn whole_message(&mut self, key: StreamKey, payload: Bytes) -> Option<Bytes> {
        let most = self.config.limits.max_message_bytes as usize;
        let stream = self.streams.get(key)?;
        let so_far = stream.partial.as_ref().map_or(0, BytesMut::len);
        if so_far + payload.len() > most {
            self.drop_bytes(payload.len());
            return None;
        }
        let Some(mut partial) = stream.partial.take() else { return Some(payload) };
        self.buffered -= partial.len() as u64;
        partial.extend_from_slice(&payload);
        Some(partial.freeze())
    }

    /// What becomes of a message over the limit, or of one that the connection has no room for.
    fn too_much(&self, code: ErrorCode) -> Status {
        let limits = &self.config.limits;
        let message = match code {
            ErrorCode::MESSAGE_SIZE => format!("message exceeds limit {}", limits.max_message_bytes),
            _ => format!("the connection holds more than {} bytes unread", limits.max_buffered_bytes),
        };
        Status::from_error_code(code, message)
    }

    fn refuse_message(&mut self, key: StreamKey, code: ErrorCode) -> Result<(), ConnectionError> {
        let local = self.streams.get(key).is_some_and(|stream| stream.local);
        let status = self.too_much(code);
        if local {
            self.reset_and_tell(key, code, status);
        } else {
            // The caller deserves a status, not only a code.
            let seen = self.is_seen(key);
            let id = self.streams.get(key).map_or(0, |stream| stream.id);
            let record = StatusRecord::from_status(&status);
            if self.config.multiplexed {
                let mut words = BytesMut::new();
                let header = FrameHeader::bare(FrameType::STATUS, FLAG_END, id);
                write_record(&mut words, self.version, header, |out| record.encode(out));
                self.last_words.push_back((id, words));
                self.forget(key);
            } else {
                self.forget(key);
                self.push_control_flags(FrameType::STATUS, FLAG_END, id, |out| record.encode(out));
            }
            if seen {
                self.events.push_back(Event::Reset { key, status, unprocessed: false });
            }
        }
        self.count_reset()
    }

    /// Whether the driver knows the stream: one whose first message is not whole yet was never told of.
    fn is_seen(&mut self, key: StreamKey) -> bool {
        self.streams.get(key).is_some_and(|stream| stream.pending_call.is_none())
    }

    fn reset_and_tell(&mut self, key: StreamKey, code: ErrorCode, status: Status) {
        let seen = self.is_seen(key);
        self.reset(key, code);
        if seen {
            self.events.push_back(Event::Reset { key, status, unprocessed: false });
        }
    }

    fn take_connection_credit(&mut self, len: usize) -> Result<(), ConnectionError> {
        self.received += len as u64;
        if self.received > self.receive_limit {
            return Err(ConnectionError::new(
                ErrorCode::FLOW_CONTROL,
                "more message bytes than the connection's window",
            ));
        }
        Ok(())
    }

    /// Returns the connection's credit for bytes that the application has, or will never see.
    fn drop_bytes(&mut self, len: usize) {
        self.consumed += len as u64;
        let window = u64::from(self.config.limits.connection_window_bytes);
        let scarce = self.receive_limit - self.received < window / 8;
        self.taken_scarce = if scarce { self.taken_scarce + len as u64 } else { 0 };
        self.grant_connection();
    }

    fn grant_connection(&mut self) {
        let window = u64::from(self.config.limits.connection_window_bytes);
        let limit = self.consumed + window + self.buffered;
        // Messages that were whole late had their credit before they are taken, and it may be all there is: the last
        // eighth, which is for the most urgent, comes back byte for byte all the same.
        let lent = (self.receive_limit + self.taken_scarce).min(self.received + window / 8);
        if limit >= self.receive_limit + window / 8 || lent >= self.receive_limit + window / 16 {
            self.receive_limit = limit.max(lent);
            self.taken_scarce = 0;
            self.push_window(0, self.receive_limit);
        }
    }

    // ---- bytes out ----

    /// Appends frames to `out` until it holds `budget` bytes or nothing waits. Frames are never split.
    pub fn poll_transmit(&mut self, now: Time, out: &mut TransmitBuffer, budget: usize) {
        self.resumed = false;
        self.now = now;
        self.doubt(now);
        // Not on top of what a peer does not read, but a GOAWAY that ends the connection always.
        if out.len() < budget || self.failed.is_some() {
            out.append(&mut self.control);
            self.control_answers = 0;
        }
        // Where each stream has a channel of its own, only connection frames go this way.
        while !self.config.multiplexed && !self.is_silent() && self.failed.is_none() && out.len() < budget {
            let Some(key) = self.pick() else { break };
            self.write_frame(now, key, out);
        }
    }

    /// The next stream to write a frame of: the most urgent class first, one frame of sixteen to bulk in any case.
    fn pick(&mut self) -> Option<StreamKey> {
        let bulk = Priority::Bulk as usize;
        if self.bulk_is_due()
            && let Some(key) = self.ready[bulk].pop_front()
        {
            return Some(key);
        }
        self.ready.iter_mut().find_map(VecDeque::pop_front)
    }

    fn bulk_is_due(&self) -> bool {
        self.urgent >= BULK_SHARE - 1
    }

    fn write_frame(&mut self, now: Time, key: StreamKey, out: &mut TransmitBuffer) {
        let max_streams = self.peer.max_concurrent_streams;
        // Where the others take all that comes back, bulk would never find half a window.
        let by_share = self.pressed && self.bulk_is_due();
        let Some(stream) = self.streams.get(key) else { return };
        let is_bulk = stream.priority == Priority::Bulk;
        let by_share = is_bulk && by_share;
        let class = if by_share { Priority::Normal } else { stream.priority };
        let kept = class.kept_credit(self.peer.connection_window_bytes);
        let connection_credit = (self.send_limit - self.sent).saturating_sub(kept);
        stream.ready = false;
        let Some((item, offset)) = &mut stream.current else { return };
        let item = &*item;

        let message = item.message();
        let left = message.map_or(0, |message| message.len() - *offset);
        let stream_credit = stream.send_limit - stream.sent;
        let credit = connection_credit.min(stream_credit);
        // Not a few bytes of what goes on: each such fragment counts against this side.
        let least = left.min(Limits::SMALL_FRAGMENT as usize) as u64;
        if credit < least {
            // The stream's own WINDOW makes it ready again; when the connection is short, the connection's does.
            let unopened = stream.id == 0;
            if stream_credit >= least {
                self.pressed |= !is_bulk;
                self.wait(key);
            }
            if unopened {
                // The place that it was to have is another's, who may need no credit.
                self.open_next();
            }
            return;
        }
        let opens = matches!(item, Out::Call { .. }) && *offset == 0 && stream.id == 0;
        if opens && self.open_local >= max_streams {
            self.wait_unopened(key);
            return;
        }
        if opens {
            let brief = stream.deadline.is_some_and(|at| at.since(now) < BRIEF);
            let called = std::mem::take(&mut stream.called);
            // What came later does not go before those that wait for time to pass.
            if brief && !(self.account.has_room(now) && (called || self.paused.is_empty())) {
                self.pause(key, called);
                return;
            }
            if brief {
                stream.brief = true;
                self.account.open_brief();
            }
            stream.id = self.next_id;
            self.ids.insert(self.next_id, key);
            self.next_id += 2;
            self.open_local += 1;
            self.waiting_opens -= 1;
        }
        let size =
            left.min(self.peer.max_frame_bytes as usize).min(usize::try_from(credit).unwrap_or(usize::MAX));
        let last = size == left;
        let fragment = Fragment::new(message, *offset..*offset + size);
        let mut flags = 0;
        if message.is_some() {
            flags |= FLAG_MESSAGE;
        }
        if !last {
            flags |= FLAG_MORE;
        }
        let mut header = FrameHeader {
            frame_type: FrameType::MESSAGE,
            flags,
            stream: stream.id,
            payload_len: size as u32,
            metadata_len: 0,
            priority: stream.priority as u8,
            epoch: 0,
            payload_crc: 0,
        };
        let (deadline, version) = (stream.deadline, self.version);
        match item {
            Out::Call { method, metadata, end, .. } => {
                if last && *end {
                    header.flags |= FLAG_END;
                }
                if opens {
                    header.frame_type = FrameType::CALL;
                    // At least one microsecond: 0 would mean no deadline.
                    let timeout_us = deadline.map_or(0, |at| (at.since(now).as_micros() as u64).max(1));
                    let record = Call {
                        method: std::str::from_utf8(method).unwrap_or("/"),
                        timeout_us,
                        codec: 0,
                        schema: 0,
                        metadata: record::entries(metadata),
                        extensions: Vec::new(),
                    };
                    out.frame(version, header, |out| record.encode(out), fragment);
                } else {
                    out.bare(version, header, fragment);
                }
            }
            Out::Head(metadata) => {
                header.frame_type = FrameType::HEAD;
                let record = Head { metadata: record::entries(metadata), extensions: Vec::new() };
                out.frame(version, header, |out| record.encode(out), Fragment::NONE);
            }
            Out::Message { end, .. } => {
                if last && *end {
                    header.flags |= FLAG_END;
                }
                out.bare(version, header, fragment);
            }
            Out::End => {
                header.flags = FLAG_END;
                out.bare(version, header, Fragment::NONE);
            }
            Out::Status(_) if !last => out.bare(version, header, fragment),
            Out::Status(outcome) => {
                header.frame_type = FrameType::STATUS;
                header.flags |= FLAG_END;
                let record = match outcome {
                    Ok(finish) => StatusRecord {
                        code: 0,
                        reason: 0,
                        message: "",
                        details: Vec::new(),
                        pushback_ms: None,
                        metadata: record::entries(&finish.metadata),
                        trailers: record::entries(&finish.trailers),
                        extensions: Vec::new(),
                    },
                    Err(status) => StatusRecord::from_status(status),
                };
                out.frame(version, header, |out| record.encode(out), fragment);
            }
        }
        *offset += size;
        stream.moved = Some(now);
        stream.sent += size as u64;
        stream.send_buffered -= size;
        self.unsent -= size as u64;
        self.sent += size as u64;
        (self.urgent, self.pressed) =
            if is_bulk { (0, false) } else { (self.urgent.saturating_add(1), self.pressed) };
        let ended = last && matches!(item, Out::Status(_));
        if last {
            stream.current = stream.queue.pop_front().map(|item| (item, 0));
        }
        let half = self.config.limits.stream_send_buffer_bytes as usize / 2;
        let writable = stream.wants_writable && stream.queued_cost() <= half;
        if writable {
            stream.wants_writable = false;
            self.events.push_back(Event::Writable { key });
        }
        if ended {
            self.forget(key);
            self.resets.pay_back();
        } else {
            self.make_ready(key);
        }
        if opens {
            self.watch(now);
            self.hurry(now, deadline);
        }
        if opens && !self.paused.is_empty() {
            self.use_room();
        }
    }

    /// Puts a stream aside until the connection has room for it: once, however often it is looked at meanwhile.
    fn wait(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get(key)
            && !std::mem::replace(&mut stream.waiting, true)
        {
            self.waiting.push_back(key);
        }
    }

    /// Puts a stream of ours aside until the peer takes another one.
    fn wait_unopened(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(key) else { return };
        let class = stream.priority as usize;
        if std::mem::replace(&mut stream.waiting, true) {
            return;
        }
        // Calls that were given up while they waited left their keys behind.
        if self.unopened[class].len() > 2 * self.waiting_opens + 64 {
            let streams = &mut self.streams;
            self.unopened[class].retain(|key| streams.get(*key).is_some());
        }
        self.unopened[class].push_back(key);
    }

    /// Puts a call with a brief deadline aside until its bad end would be forgiven.
    fn pause(&mut self, key: StreamKey, called: bool) {
        let Some(stream) = self.streams.get(key) else { return };
        if std::mem::replace(&mut stream.waiting, true) {
            return;
        }
        if self.paused.len() > 2 * self.waiting_opens + 64 {
            let streams = &mut self.streams;
            self.paused.retain(|key| streams.get(*key).is_some());
        }
        match called {
            true => self.paused.push_front(key),
            false => self.paused.push_back(key),
        }
        // The place that it was to have is another's.
        self.open_next();
    }

    /// The peer may take another stream of ours: the first of the most urgent class gets another look, and not all that
    /// wait, or each end of a call would cost as much as there are calls waiting.
    fn open_next(&mut self) {
        if self.open_local >= self.peer.max_concurrent_streams {
            return;
        }
        let bulk = Priority::Bulk as usize;
        self.places = self.places.wrapping_add(1);
        let classes = if self.places.is_multiple_of(BULK_SHARE) { [bulk, 0, 1] } else { [0, 1, bulk] };
        for class in classes {
            while let Some(key) = self.unopened[class].pop_front() {
                if let Some(stream) = self.streams.get(key) {
                    stream.waiting = false;
                    return self.make_ready(key);
                }
            }
        }
    }

    /// Streams that waited for the connection's credit get another look.
    fn release_waiting(&mut self) {
        while let Some(key) = self.waiting.pop_front() {
            if let Some(stream) = self.streams.get(key) {
                stream.waiting = false;
            }
            self.make_ready(key);
        }
    }

    fn make_ready(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get(key)
            && !stream.ready
            && !stream.blocked
            && stream.current.is_some()
        {
            stream.ready = true;
            let class = stream.priority as usize;
            self.ready[class].push_back(key);
        }
    }

    /// Queues something on a stream that is there.
    fn push(&mut self, key: StreamKey, out: Out) {
        let Some(stream) = self.streams.get(key) else { return };
        self.unsent += out.message().map_or(0, Bytes::len) as u64;
        let first = stream.current.is_none();
        stream.push(out);
        // Behind another, it waits for whatever that one waits for.
        if first {
            stream.moved = None;
            self.note_deadline(Some(self.now.after(self.config.limits.stall_timeout_pressed)));
            self.make_ready(key);
        }
    }

    /// Forgets a stream and everything it holds.
    /// Its id, and whether it is of this side.
    fn forget(&mut self, key: StreamKey) -> Option<(u64, bool)> {
        let stream = self.streams.get(key)?;
        let (id, local, partial) = (stream.id, stream.local, stream.partial_len());
        let brief = local && stream.brief;
        let held = local && self.held.contains_key(&id);
        self.unsent -= stream.send_buffered as u64;
        self.streams.remove(key);
        if id == 0 {
            self.waiting_opens -= 1;
            // It may have been the one that was to have the free place.
            self.open_next();
        } else {
            self.ids.remove(&id);
            if self.config.multiplexed {
                self.unfinished_streams.remove(&id);
                if !held {
                    self.actions.push_back(StreamAction::Close { id });
                }
            }
            if brief {
                self.account.close_brief();
            }
            if held {
                // Its place is taken until its RESET is sent, or the peer has ended it.
            } else if local {
                self.open_local -= 1;
                self.open_next();
            } else {
                self.open_peer -= 1;
            }
        }
        if partial > 0 {
            self.buffered -= partial;
            self.drop_bytes(partial as usize);
        }
        self.rest();
        Some((id, local))
    }

    fn note_deadline(&mut self, deadline: Option<Time>) {
        // A connection that failed waits for nothing.
        if let (Some(at), None) = (deadline, &self.failed) {
            self.next_deadline = Some(self.next_deadline.map_or(at, |next| next.min(at)));
        }
    }

    fn check_metadata_size(&self, size: usize) -> Result<(), Status> {
        let most = self.peer.max_metadata_bytes as usize;
        if size > most {
            return Err(Status::from_reason(
                Reason::METADATA_TOO_LARGE,
                format!("metadata of about {size} bytes exceeds limit {most}"),
            ));
        }
        Ok(())
    }

    fn check_message_size(&self, message: Option<&Bytes>) -> Result<(), Status> {
        // Before HELLO the peer's limit is not known; our own is the best guess, and the peer checks.
        let limit =
            if self.greeted { self.peer.max_message_bytes } else { self.config.limits.max_message_bytes };
        match message {
            Some(message) if message.len() > limit as usize => Err(Status::from_reason(
                Reason::MESSAGE_TOO_LARGE,
                format!("message length {} exceeds limit {limit}", message.len()),
            )),
            _ => Ok(()),
        }
    }

    fn push_reset(&mut self, id: u64, code: ErrorCode) {
        if self.config.multiplexed {
            // Instead of the close that forgetting the stream left.
            if self.actions.back() == Some(&StreamAction::Close { id }) {
                self.actions.pop_back();
            }
            self.actions.push_back(StreamAction::Reset { id, code });
        } else {
            let reset = Reset { code: code.number(), extensions: Vec::new() };
            self.push_control(FrameType::RESET, id, |out| reset.encode(out));
        }
    }

    fn push_window(&mut self, id: u64, offset: u64) {
        let window = Window { offset, extensions: Vec::new() };
        self.push_control(FrameType::WINDOW, id, |out| window.encode(out));
    }

    fn push_control(&mut self, frame_type: FrameType, stream: u64, record: impl FnOnce(&mut BytesMut)) {
        self.push_control_flags(frame_type, 0, stream, record);
    }

    fn push_control_flags(
        &mut self,
        frame_type: FrameType,
        flags: u16,
        stream: u64,
        record: impl FnOnce(&mut BytesMut),
    ) {
        // After its last GOAWAY a connection says nothing, whatever its driver still asks for.
        if self.failed.is_some() {
            return;
        }
        let header = FrameHeader::bare(frame_type, flags, stream);
        write_record(&mut self.control, self.version, header, record);
        // A GOAWAY may be the last word.
        if let Some(grease) = &mut self.grease
            && frame_type != FrameType::GOAWAY
        {
            grease.after_control(&mut self.control, self.version);
        }
    }

    fn push_go_away(&mut self, code: ErrorCode, message: &str) {
        self.push_last_stream(code, message, self.last_peer_id);
    }

    fn push_last_stream(&mut self, code: ErrorCode, message: &str, last_stream: u64) {
        let versions = [*self.config.versions.start(), *self.config.versions.end()];
        let version: Extension<'_> = (EXTENSION_VERSIONS, &versions);
        let go_away = GoAway {
            last_stream,
            code: code.number(),
            message,
            extensions: if code == ErrorCode::VERSION { vec![version] } else { Vec::new() },
        };
        self.push_control(FrameType::GOAWAY, 0, |out| go_away.encode(out));
    }

    /// Ends the connection with an error that its driver found.
    pub fn refuse(&mut self, code: ErrorCode, message: &'static str) {
        if self.failed.is_none() {
            self.fail(ConnectionError::new(code, message));
        }
    }

    fn fail(&mut self, error: ConnectionError) -> ConnectionError {
        // The message may quote the peer: cut it, so that the GOAWAY stays small.
        let message: String = error.message.chars().take(200).collect();
        self.push_go_away(error.code, &message);
        self.handshake_deadline = None;
        self.alive.stop();
        self.unfinished = None;
        self.next_deadline = None;
        self.credentials.expires = None;
        self.settling = None;
        self.failed = Some(error.clone());
        error
    }
}

fn malformed(error: RecordError) -> ConnectionError {
    ConnectionError::new(ErrorCode::RECORD, error.to_string())
}

fn check_window(offset: u64, sent: u64) -> Result<(), ConnectionError> {
    // A window beyond 2^31 ahead of what was sent is nonsense from a peer whose limits are 32 bits wide.
    if offset > sent.saturating_add(1 << 32) {
        return Err(ConnectionError::new(
            ErrorCode::FLOW_CONTROL,
            format!("window offset {offset} is too far ahead"),
        ));
    }
    Ok(())
}

fn metadata_size(metadata: &Metadata) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len() + 8).sum()
}
