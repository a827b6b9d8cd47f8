//! Any order of calls by the driver and of frames by the peer, legal or not, on either side and either kind of carrier:
//! nobody panics, the driver hears of each stream in order and of its end once, what is written is legal and within the
//! peer's credit, and what is held stays within bounds.
#![no_main]

use std::{collections::HashMap, time::Duration};

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::{Auditor, measure};
use valkyrie_protocol::{
    AUTH_FOLLOWS, Auth, Authenticated, Call, Code, Config, Connection, ConnectionState, ErrorCode, Event,
    Finish, FrameHeader, FrameType, GoAway, HEADER_LEN, Head, Hello, INITIAL, Limits, Metadata,
    OPTIONAL_TYPE, Opened, Ping, Priority, Reset, Role, SendError, Status, StatusRecord, StreamAction,
    StreamKey, Time, TransmitBuffer, Window,
};

/// Small windows and buffers, so that their ends are met: a message may be too long in one frame, and in several.
const LIMITS: Limits = Limits {
    max_frame_bytes: 64 << 10,
    max_message_bytes: 40 << 10,
    max_concurrent_streams: 100,
    max_buffered_bytes: 256 << 10,
    ..INITIAL
};
/// Steps of one script.
const STEPS: usize = 400;
/// The largest message while its fragments gather, and a frame of the harness.
const LARGEST: usize = 192 << 10;
/// The fragments of all messages, twice while one of them grows, a window of whole ones, and small change.
const PEAK: usize = 768 << 10;

/// Bytes that a driver lets gather before it writes them.
const BUDGET: usize = 64 << 10;

/// Payloads are pieces of it: they cost no memory, so that only the connection's is counted.
static PAYLOAD: [u8; 192 << 10] = [b'x'; 192 << 10];

#[derive(Arbitrary, Debug)]
struct Script {
    client: bool,
    /// Whether each stream has a channel of its own, as with QUIC.
    multiplexed: bool,
    grease: bool,
    /// Whether a client has credentials, or a server decides on them and its client announces them.
    authenticates: bool,
    /// Whether the peer has greeted, and with which windows.
    greeting: Option<(u16, u16)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    // What the driver does. `pick` chooses among all keys that it ever saw.
    Open {
        method: u8,
        message: Option<u16>,
        end: bool,
        priority: u8,
        timeout_ms: Option<u8>,
        metadata: u8,
    },
    Send {
        pick: u8,
        len: u16,
        times: u8,
    },
    Finish {
        pick: u8,
    },
    Head {
        pick: u8,
        metadata: u8,
    },
    Respond {
        pick: u8,
        message: Option<u16>,
        code: u8,
        metadata: u8,
    },
    Reset {
        pick: u8,
        code: u8,
    },
    Consume {
        pick: u8,
    },
    Ping,
    GoAway,
    Authenticate {
        len: u16,
    },
    Decide {
        accept: bool,
        expires_in_ms: Option<u16>,
    },
    Transmit {
        budget: u16,
    },
    Wait {
        ms: u16,
    },
    // What the peer does.
    Hello {
        settings: Vec<(u8, u32)>,
    },
    PeerPing {
        data: u64,
        pong: bool,
    },
    PeerGoAway {
        last: u8,
        code: u8,
    },
    PeerAuth {
        len: u16,
    },
    PeerAuthenticated {
        expires_in_ms: u64,
    },
    Window {
        stream: u8,
        offset: u32,
        beyond: bool,
    },
    Call {
        stream: u8,
        method: u8,
        timeout_ms: u8,
        flags: u8,
        len: u16,
        priority: u8,
        metadata: u8,
    },
    PeerHead {
        stream: u8,
        metadata: u8,
    },
    Message {
        stream: u8,
        flags: u8,
        len: u16,
    },
    Status {
        stream: u8,
        code: u8,
        flags: u8,
        len: u16,
        metadata: u8,
    },
    PeerReset {
        stream: u8,
        code: u8,
    },
    /// The end of a channel, so many bytes into a frame.
    PeerEnd {
        stream: u8,
        rest: u8,
    },
    Frame {
        frame_type: u8,
        flags: u8,
        stream: u8,
        record: Vec<u8>,
        payload: u8,
    },
}

/// The connection and those around it.
struct Rig {
    connection: Connection,
    auditor: Auditor,
    out: TransmitBuffer,
    now: Time,
    keys: Vec<StreamKey>,
    /// Messages that came and whose credit was not returned.
    unread: Vec<(StreamKey, usize)>,
    failed: bool,
    client: bool,
    authenticates: bool,
    /// What stands behind credentials that are undecided.
    inbox: BytesMut,
    multiplexed: bool,
    channels: HashMap<u64, Channel>,
}

/// The driver's side of a stream on a carrier that multiplexes.
#[derive(Default)]
struct Channel {
    begun: bool,
    read_ended: bool,
    write_ended: bool,
    closed: bool,
}

fuzz_target!(|script: Script| {
    let usage = measure(|| run(&script));
    assert!(usage.largest <= LARGEST && usage.peak <= PEAK, "{usage:?}");
});

fn run(script: &Script) {
    let role = if script.client { Role::Client } else { Role::Server };
    let now = Time::from_micros(1_000);
    let grease = script.grease.then_some(1);
    let authenticates = script.authenticates;
    let config = Config {
        limits: LIMITS,
        multiplexed: script.multiplexed,
        grease,
        authenticates,
        ..Config::new(role)
    };
    let mut rig = Rig {
        connection: Connection::new(config, now),
        auditor: Auditor::new(role, LIMITS.connection_window_bytes),
        out: TransmitBuffer::default(),
        now,
        keys: Vec::new(),
        unread: Vec::new(),
        failed: false,
        client: script.client,
        authenticates,
        inbox: BytesMut::new(),
        multiplexed: script.multiplexed,
        channels: HashMap::new(),
    };
    if script.multiplexed {
        // The carrier counts for itself.
        rig.auditor.allowed(u64::MAX, u64::MAX);
    }
    if let Some((stream, connection)) = script.greeting {
        let windows = [(5, 65_536 + u64::from(stream)), (6, 65_536 + u64::from(connection))];
        rig.auditor.allowed(windows[0].1, windows[1].1);
        rig.greet(windows.to_vec());
    }
    for step in script.steps.iter().take(STEPS) {
        rig.apply(step);
    }
    rig.flush();
    if rig.failed {
        assert!(!rig.connection.wants_transmit() && rig.connection.poll_timeout().is_none());
    }
    let _ = rig.connection.handle_end(b"");
}

fn payload(len: usize) -> Bytes {
    Bytes::from_static(&PAYLOAD[..len.min(PAYLOAD.len())])
}

/// A short length, or one near a border: of what is copied, of a frame, of a message.
fn length(len: u16) -> usize {
    match len >> 12 {
        0..8 => usize::from(len & 0x3ff),
        kind => {
            [15, 16, 31, 63, 64, 127, 128, 160][usize::from(kind) - 8] * 1_024 + usize::from(len & 0xfff) / 2
        }
    }
}

fn metadata(choice: u8) -> Metadata {
    let mut metadata = Metadata::new();
    for _ in 0..choice % 4 {
        metadata.insert("key", payload(usize::from(choice))).expect("it is legal");
    }
    if choice > 250 {
        metadata.insert("large-bin", payload(20_000)).expect("it is legal");
    }
    metadata
}

/// Entries as a peer may write them: sometimes illegal.
fn entries(choice: u8) -> Vec<(&'static str, &'static [u8])> {
    let entry: (&str, &[u8]) = match choice {
        250.. => ("Key", b"value"),
        240.. => ("key", b"\n"),
        _ => ("key", b"value"),
    };
    vec![entry; usize::from(choice % 5)]
}

fn method(choice: u8) -> &'static str {
    match choice {
        250.. => "",
        245.. => "no/slash",
        240.. => "/sp ace",
        _ => "/method",
    }
}

/// A stream's id: small ones, where all that is alive is, and the ends.
fn id(choice: u8) -> u64 {
    match choice {
        255 => u64::MAX,
        254 => (1 << 62) - 1,
        253 => 1 << 62,
        choice => u64::from(choice % 24),
    }
}

impl Rig {
    fn key(&self, pick: u8) -> Option<StreamKey> {
        let last = self.keys.len().checked_sub(1)?;
        // The newest is the likeliest to be alive.
        Some(self.keys[last - usize::from(pick) % self.keys.len()])
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Open { method: path, message, end, priority, timeout_ms, metadata: extra } => {
                let opened = Opened {
                    method: Bytes::from_static(method(path).as_bytes()),
                    metadata: metadata(extra),
                    priority: Priority::ALL[usize::from(priority % 3)],
                    deadline: timeout_ms.map(|ms| self.now.after(Duration::from_millis(ms.into()))),
                    message: message.map(|len| payload(length(len))),
                    end,
                };
                // A driver of a server has no reason to, and may all the same while it has no stream.
                if let Ok(key) = self.connection.open(opened) {
                    self.auditor.opened(key);
                    self.keys.push(key);
                }
            }
            Step::Send { pick, len, times } => {
                let Some(key) = self.key(pick) else { return };
                for _ in 0..=times % 8 {
                    let message = payload(length(len));
                    match self.connection.send(key, message.clone()) {
                        Ok(()) | Err(SendError::Gone | SendError::Refused(_)) => {}
                        Err(SendError::Full(back)) => assert_eq!(back, message),
                    }
                }
            }
            Step::Finish { pick } => {
                if let Some(key) = self.key(pick) {
                    self.connection.finish(key);
                }
            }
            Step::Head { pick, metadata: extra } => {
                if let Some(key) = self.key(pick) {
                    let _ = self.connection.send_head(key, metadata(extra));
                }
            }
            Step::Respond { pick, message, code, metadata: extra } => {
                let Some(key) = self.key(pick) else { return };
                let outcome = match code % 20 {
                    0 => Ok(Finish {
                        message: message.map(|len| payload(length(len))),
                        metadata: metadata(extra),
                        trailers: metadata(extra / 2),
                    }),
                    code => {
                        Err(Status::new(Code::from_number(code.into()), "why").with_trailers(metadata(extra)))
                    }
                };
                self.connection.respond(key, outcome);
            }
            Step::Reset { pick, code } => {
                if let Some(key) = self.key(pick) {
                    self.connection.reset(key, ErrorCode::from_number(code.into()));
                    self.events();
                    self.auditor.forgot(key);
                }
            }
            Step::Consume { pick } => {
                if !self.unread.is_empty() {
                    let (key, len) = self.unread.swap_remove(usize::from(pick) % self.unread.len());
                    self.connection.consumed(key, len);
                }
            }
            Step::Ping => self.connection.ping(7),
            Step::GoAway => self.connection.go_away("enough"),
            Step::Authenticate { len } => {
                let token = payload(length(len));
                let sent = self.connection.authenticate(&token);
                assert!(!sent || self.client && self.authenticates && token.len() <= 8_192);
            }
            Step::Decide { accept, expires_in_ms } => {
                let held = self.connection.holds_back();
                match accept {
                    true => {
                        let expires_in = expires_in_ms.map(|ms| Duration::from_millis(ms.into()));
                        self.connection.accept_credentials(self.now, expires_in);
                    }
                    false => self.connection.refuse_credentials(self.now),
                }
                assert!(!self.connection.holds_back() || self.failed || !accept);
                // Refused at the first, it is over.
                let failed = self.connection.state() == ConnectionState::Closed;
                self.after(failed);
                if held && !failed {
                    self.read(&mut BytesMut::new());
                }
            }
            Step::Transmit { budget } => {
                self.transmit(usize::from(budget));
            }
            Step::Wait { ms } => {
                self.now = self.now.after(Duration::from_millis(u64::from(ms) % 11_000));
                let due = self.connection.poll_timeout().is_some_and(|at| at <= self.now);
                let failed = self.connection.handle_timeout(self.now).is_err();
                assert!(due || !failed, "a time-out that was not due");
                // What was due is done: nobody is asked twice.
                assert!(failed || self.connection.poll_timeout().is_none_or(|at| at > self.now));
                self.after(failed);
            }
            Step::Hello { ref settings } => {
                let settings: Vec<_> =
                    settings.iter().map(|(id, value)| (u32::from(id % 8), u64::from(*value))).collect();
                let value =
                    |id| settings.iter().rev().find(|(other, _)| *other == id).map_or(0, |(_, value)| *value);
                if self.connection.state() == ConnectionState::Handshaking {
                    self.auditor.allowed(value(5), value(6));
                }
                self.greet(settings);
            }
            Step::PeerPing { data, pong } => {
                let frame_type = if pong { FrameType::PONG } else { FrameType::PING };
                self.frame(frame_type, 0, 0, 0, |out| Ping { data, extensions: vec![] }.encode(out));
            }
            Step::PeerAuth { len } => {
                let token = &PAYLOAD[..usize::from(len % 9_000)];
                let auth = Auth { token, extensions: vec![] };
                self.frame(FrameType::AUTH, 0, 0, 0, |out| auth.encode(out));
            }
            Step::PeerAuthenticated { expires_in_ms } => {
                let answer = Authenticated { expires_in_ms, extensions: vec![] };
                self.frame(FrameType::AUTHENTICATED, 0, 0, 0, |out| answer.encode(out));
            }
            Step::PeerGoAway { last, code } => {
                let go_away =
                    GoAway { last_stream: id(last), code: code.into(), message: "peer", extensions: vec![] };
                self.frame(FrameType::GOAWAY, 0, 0, 0, |out| go_away.encode(out));
            }
            Step::Window { stream, offset, beyond } => {
                let offset = u64::from(offset) << if beyond { 16 } else { 0 };
                self.auditor.window(id(stream), offset);
                let window = Window { offset, extensions: vec![] };
                self.frame(FrameType::WINDOW, 0, id(stream), 0, |out| window.encode(out));
            }
            Step::Call { stream, method: path, timeout_ms, flags, len, priority, metadata } => {
                let call = Call {
                    method: method(path),
                    timeout_us: u64::from(timeout_ms) * 1_000,
                    codec: 0,
                    schema: 0,
                    metadata: entries(metadata),
                    extensions: vec![],
                };
                let flags = u16::from(flags) | u16::from(priority) << 8;
                self.frame(FrameType::CALL, flags, id(stream), length(len), |out| call.encode(out));
            }
            Step::PeerHead { stream, metadata } => {
                let head = Head { metadata: entries(metadata), extensions: vec![] };
                self.frame(FrameType::HEAD, 0, id(stream), 0, |out| head.encode(out));
            }
            Step::Message { stream, flags, len } => {
                self.frame(FrameType::MESSAGE, flags.into(), id(stream), length(len), |_| {});
            }
            Step::Status { stream, code, flags, len, metadata } => {
                let status = StatusRecord {
                    code: u32::from(code % 20),
                    reason: 0,
                    message: "peer",
                    details: entries(metadata / 2),
                    pushback_ms: Some(u64::MAX),
                    metadata: entries(metadata),
                    trailers: vec![],
                    extensions: vec![],
                };
                self.frame(FrameType::STATUS, flags.into(), id(stream), length(len), |out| {
                    status.encode(out)
                });
            }
            Step::PeerReset { stream, code } if self.multiplexed => {
                if self.channel(id(stream)).is_some_and(|channel| !channel.read_ended) {
                    let code = ErrorCode::from_number(code.into());
                    let failed = self.connection.handle_stream_reset(id(stream), code).is_err();
                    self.channel(id(stream)).expect("it is there").read_ended = true;
                    self.after(failed);
                }
            }
            Step::PeerEnd { stream, rest } => {
                if self.channel(id(stream)).is_some_and(|channel| !channel.read_ended) {
                    let rest = &PAYLOAD[..usize::from(rest / 128)];
                    let failed = self.connection.handle_stream_end(id(stream), rest).is_err();
                    self.channel(id(stream)).expect("it is there").read_ended = true;
                    self.after(failed);
                }
            }
            Step::PeerReset { stream, code } => {
                let reset = Reset { code: code.into(), extensions: vec![] };
                self.frame(FrameType::RESET, 0, id(stream), 0, |out| reset.encode(out));
            }
            Step::Frame { frame_type, flags, stream, ref record, payload } => {
                let record = &record[..record.len().min(1_024)];
                self.frame(FrameType(frame_type), flags.into(), id(stream), payload.into(), |out| {
                    out.extend_from_slice(record);
                });
            }
        }
        self.events();
        assert!(self.connection.streams() <= self.keys.len() + LIMITS.max_concurrent_streams as usize);
    }

    fn greet(&mut self, settings: Vec<(u32, u64)>) {
        let extensions = if self.authenticates { vec![(AUTH_FOLLOWS, &b""[..])] } else { vec![] };
        let hello = Hello { min_version: 0, max_version: 2, features: u64::MAX, settings, extensions };
        self.frame(FrameType::HELLO, 0, 0, 0, |out| hello.encode(out));
    }

    /// A frame of the peer's with right checksums. Flags are as they should be where their upper bits are not set:
    /// a payload has its flag, and the lower byte's bits 0 and 2 are END and MORE.
    fn frame(
        &mut self,
        frame_type: FrameType,
        flags: u16,
        stream: u64,
        len: usize,
        record: impl FnOnce(&mut BytesMut),
    ) {
        let mut bytes = BytesMut::zeroed(HEADER_LEN);
        record(&mut bytes);
        let len = len.min(64 << 10);
        self.auditor.came(len);
        let mut header = FrameHeader {
            frame_type,
            flags: flags & 0x07,
            stream,
            payload_len: len as u32,
            metadata_len: (bytes.len() - HEADER_LEN) as u32,
            priority: ((flags >> 8) % 3) as u8,
            epoch: 0,
            payload_crc: 0,
        };
        if flags & 0x80 == 0 && len > 0 {
            header.flags |= 2;
            if header.flags & 1 == 1 {
                header.flags &= !4;
            }
        }
        bytes.extend_from_slice(&PAYLOAD[..len]);
        let body = &bytes[HEADER_LEN..];
        header.payload_crc = if body.is_empty() { 0 } else { crc32c::crc32c(body) };
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        if self.multiplexed && stream != 0 {
            self.read_channel(stream, &mut bytes);
        } else {
            self.read(&mut bytes);
        }
    }

    /// The channel of a stream, if the carrier may have one: a client's are those that it opened itself.
    fn channel(&mut self, id: u64) -> Option<&mut Channel> {
        let known = self.channels.contains_key(&id);
        let theirs = !self.client && id % 2 == 1 && id < 1 << 62;
        let channel = (self.multiplexed && (known || theirs)).then(|| self.channels.entry(id).or_default());
        channel.filter(|channel| !channel.closed)
    }

    fn read_channel(&mut self, id: u64, bytes: &mut BytesMut) {
        if !self.connection.may_read(id) {
            return;
        }
        let Some(&mut Channel { begun, read_ended: false, .. }) = self.channel(id) else { return };
        let result = self.connection.handle_stream(self.now, id, begun, bytes);
        if let Some(channel) = self.channel(id) {
            channel.begun |= result.as_ref().is_ok_and(|whole| *whole);
        }
        assert!(result.is_err() || !self.failed, "a failed connection has recovered");
        self.after(result.is_err());
    }

    fn read(&mut self, bytes: &mut BytesMut) {
        // A driver reads no more than this behind what is undecided.
        if !self.connection.holds_back() || self.inbox.len() < 16 << 10 {
            self.inbox.unsplit(bytes.split());
        }
        let failed = self.connection.handle_message(self.now, &mut self.inbox).is_err();
        if failed {
            self.inbox = BytesMut::new();
        }
        assert!(failed || self.inbox.is_empty() || self.connection.holds_back());
        assert!(failed || !self.failed, "a failed connection has recovered");
        self.after(failed);
    }

    /// A connection that failed says why in one GOAWAY and nothing after it.
    fn after(&mut self, failed: bool) {
        if !self.connection.holds_back() {
            self.auditor.held(false);
        }
        self.events();
        if failed && !self.failed {
            self.failed = true;
            self.flush();
            self.auditor.ended();
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            self.auditor.event(&event);
            if matches!(event, Event::Auth { .. }) {
                self.auditor.held(self.connection.holds_back());
            }
            let message = match &event {
                Event::Call { message, .. } | Event::Ended { outcome: Ok(Finish { message, .. }), .. } => {
                    message.as_ref()
                }
                Event::Message { message, .. } => Some(message),
                _ => None,
            };
            assert!(message.is_none_or(|message| message.len() <= LIMITS.max_message_bytes as usize));
            match event {
                Event::Call { key, message, .. } => {
                    self.keys.push(key);
                    self.unread.extend(message.map(|message| (key, message.len())));
                }
                Event::Message { key, message } => self.unread.push((key, message.len())),
                _ => {}
            }
        }
    }

    /// Writes until nothing is left to write.
    fn flush(&mut self) {
        while self.transmit(BUDGET) {}
    }

    /// Writes about so many bytes of the connection, and of each channel; whether there were any.
    fn transmit(&mut self, budget: usize) -> bool {
        let mut any = false;
        self.connection.poll_transmit(self.now, &mut self.out, budget);
        any |= self.written(None);
        while let Some(action) = self.connection.poll_stream(self.now, &mut self.out, budget) {
            let (id, key, end) = match action {
                StreamAction::Write { id, key, end, .. } => (id, Some(key), end),
                StreamAction::Close { id } | StreamAction::Reset { id, .. } => (id, None, false),
            };
            any |= self.written(Some(id));
            let channel = self.channels.entry(id).or_default();
            assert!(!channel.closed, "{action:?} of a channel that is closed");
            assert!(key.is_none() || !channel.write_ended, "{action:?} after the last frame");
            channel.write_ended |= end;
            match key {
                Some(key) => self.connection.stream_written(key),
                None => channel.closed = true,
            }
        }
        self.events();
        any
    }

    /// What stands in the buffer was written, to the channel of a stream or for the connection; whether it was anything.
    fn written(&mut self, channel: Option<u64>) -> bool {
        let written = valkyrie_fuzz::bytes(&self.out);
        if let Some(id) = channel {
            let mut frames = valkyrie_fuzz::parse_frames(&written).into_iter();
            assert!(
                frames.all(|(header, ..)| header.stream == id || header.frame_type.0 & OPTIONAL_TYPE != 0)
            );
        }
        self.auditor.written(&written);
        self.out.consume(written.len());
        assert!(self.out.is_empty());
        !written.is_empty()
    }
}
