//! What holds for one side of a connection whatever its peer and its driver do.

use std::collections::{HashMap, HashSet};

use valkyrie_protocol::{
    Event, FLAG_END, FLAG_MESSAGE, FLAG_MORE, FrameType, INITIAL, Role, StreamKey, Window,
};

use crate::parse_frames;

/// Sees every event that a connection gives and every byte that it writes, and panics where one is not allowed.
#[derive(Debug)]
pub struct Auditor {
    role: Role,
    alive: HashSet<StreamKey>,
    over: HashSet<StreamKey>,
    greeted: bool,
    silent: bool,
    /// Of a server: its client's first credentials are undecided, or they are over.
    held: bool,
    expired: bool,
    last_call: u64,
    sent: u64,
    limit: u64,
    stream_limit: u64,
    /// Message bytes that came at most, and how far beyond them credit may go.
    came: u64,
    window: u64,
    streams: HashMap<u64, Stream>,
    limits: HashMap<u64, u64>,
}

#[derive(Debug, Default)]
struct Stream {
    sent: u64,
    inside_message: bool,
    ended: bool,
}

impl Auditor {
    /// Of a connection that has done nothing yet, and that holds so many message bytes at most.
    pub fn new(role: Role, window: u32) -> Self {
        Self {
            role,
            alive: HashSet::new(),
            over: HashSet::new(),
            greeted: false,
            silent: false,
            held: false,
            expired: false,
            last_call: 0,
            sent: 0,
            limit: INITIAL.connection_window_bytes.into(),
            stream_limit: INITIAL.stream_window_bytes.into(),
            came: 0,
            window: window.into(),
            streams: HashMap::new(),
            limits: HashMap::new(),
        }
    }

    /// The driver opened a stream.
    pub fn opened(&mut self, key: StreamKey) {
        assert!(!self.over.contains(&key) && self.alive.insert(key), "a key was used twice");
    }

    /// The driver ended a stream and wants to hear nothing more of it.
    pub fn forgot(&mut self, key: StreamKey) {
        if self.alive.remove(&key) {
            self.over.insert(key);
        }
    }

    /// The peer's greeting was read: it allows this much.
    pub fn allowed(&mut self, stream_window: u64, connection_window: u64) {
        self.stream_limit = self.stream_limit.max(stream_window);
        self.limit = self.limit.max(connection_window);
    }

    /// The peer's WINDOW was read.
    pub fn window(&mut self, stream: u64, offset: u64) {
        let limit = if stream == 0 { &mut self.limit } else { self.limits.entry(stream).or_default() };
        *limit = offset.max(*limit);
    }

    /// The peer wrote so many bytes of messages.
    pub fn came(&mut self, len: usize) {
        self.came += len as u64;
    }

    /// Whether nothing behind the peer's first credentials may be read.
    pub fn held(&mut self, held: bool) {
        self.held = held;
    }

    /// An event came out: of a stream that the driver knows and whose end it was not told.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Connected => assert!(!std::mem::replace(&mut self.greeted, true), "connected twice"),
            Event::GoAway { .. } | Event::Pong { .. } | Event::Idle => {}
            Event::Auth { .. } => assert!(self.role == Role::Server && !self.held && !self.expired),
            Event::Authenticated { .. } => assert_eq!(self.role, Role::Client),
            Event::Expired => assert!(!std::mem::replace(&mut self.expired, true), "expired twice"),
            Event::Call { key, .. } => {
                assert_eq!(self.role, Role::Server, "a client was called");
                assert!(!self.held && !self.expired, "a call without credentials");
                self.opened(*key);
            }
            Event::Head { key, .. }
            | Event::Message { key, .. }
            | Event::HalfClosed { key }
            | Event::Writable { key } => {
                assert!(self.alive.contains(key), "{event:?} of no stream");
            }
            Event::Ended { key, .. } | Event::Reset { key, .. } => {
                assert!(self.alive.remove(key), "{event:?} of no stream");
                self.over.insert(*key);
            }
        }
    }

    /// Bytes went out: whole frames, in an order that PROTOCOL.md allows, within the peer's credit.
    pub fn written(&mut self, bytes: &[u8]) {
        for (header, record, payload) in parse_frames(bytes) {
            let what = format!("{header:?}");
            assert!(!self.silent, "after the last GOAWAY: {what}");
            self.sent += payload.len() as u64;
            assert!(self.sent <= self.limit, "beyond the connection's credit: {what}");
            let ours = header.stream % 2 == u64::from(self.role == Role::Client);
            match header.frame_type {
                FrameType::CALL => {
                    assert!(ours && header.stream > self.last_call, "{what}");
                    self.last_call = header.stream;
                }
                FrameType::HEAD | FrameType::STATUS => assert!(!ours, "{what}"),
                FrameType::MESSAGE => assert!(!ours || header.stream <= self.last_call, "{what}"),
                FrameType::WINDOW if header.stream == 0 => {
                    let offset = Window::decode(record).expect("it is legal").offset;
                    let most = self.came + self.window;
                    assert!(offset <= most, "credit came back twice: {offset} bytes, {most} at most");
                    continue;
                }
                _ => continue,
            }
            let stream = self.streams.entry(header.stream).or_default();
            assert!(!stream.ended || header.frame_type == FrameType::STATUS, "after its end: {what}");
            stream.sent += payload.len() as u64;
            let limit = self.limits.get(&header.stream).copied().unwrap_or(0).max(self.stream_limit);
            assert!(stream.sent <= limit, "beyond the stream's credit: {what}");
            // A status that is not OK may cut a message; nothing else may stand between its fragments.
            if header.frame_type != FrameType::STATUS {
                assert!(!stream.inside_message || header.has(FLAG_MESSAGE), "inside a message: {what}");
            }
            stream.inside_message = header.has(FLAG_MORE);
            stream.ended = header.has(FLAG_END);
        }
    }

    /// The connection failed and has said so: it writes nothing more.
    pub fn ended(&mut self) {
        self.silent = true;
    }
}
