//! Properties: what holds for any bytes, any split of them and any order of calls.
//!
//! `PROPTEST_CASES=n` runs more of them; a failure prints its seed, `PROPTEST_RNG_SEED=n` takes one.

mod side;

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use side::{call, frame, record, seeded};
use valkyrie_protocol::{
    Call as CallRecord, Code, Config, Connection, ConnectionState, ErrorCode, Event, FLAG_END, FLAG_MESSAGE,
    FLAG_MORE, Finish, FrameHeader, FrameType, HEADER_LEN, Hello, INITIAL, Limits, Metadata, OPTIONAL_TYPE,
    Opened, Priority, Reason, Role, SendError, Status, StreamKey, Time, TransmitBuffer, Window,
};

/// Small windows, so that flow control is met.
const LIMITS: Limits = Limits { max_message_bytes: 1 << 20, max_buffered_bytes: 64 << 20, ..INITIAL };

/// One side, and the bytes on their way to it.
struct Side {
    connection: Connection,
    out: TransmitBuffer,
    inbox: BytesMut,
    streams: HashMap<StreamKey, usize>,
    state: ConnectionState,
}

/// One direction of one call, as it should be.
#[derive(Default)]
struct Direction {
    /// Lengths of the messages that were accepted, in order.
    sent: VecDeque<usize>,
    accepted: u32,
    received: u32,
    /// Lengths of whole messages that the receiver has not consumed.
    unread: VecDeque<usize>,
    over: bool,
}

/// One call from both sides.
#[derive(Default)]
struct Call {
    key: [Option<StreamKey>; 2],
    /// The side knows that the call is over.
    over: [bool; 2],
    to: [Direction; 2],
    head: bool,
    responded: bool,
}

/// Two endpoints and what was asked of them.
/// A connection goes from one state to the next by an edge of the diagram, or stays.
fn follow(state: &mut ConnectionState, next: ConnectionState) {
    use ConnectionState::{Closed, Draining, Handshaking, Open};
    let legal: &[ConnectionState] = match state {
        Handshaking => &[Handshaking, Open, Draining, Closed],
        Open => &[Open, Draining, Closed],
        Draining => &[Draining, Closed],
        Closed => &[Closed],
    };
    assert!(legal.contains(&next), "from {state:?} to {next:?}");
    *state = next;
}

struct Pair {
    sides: [Side; 2],
    calls: Vec<Call>,
    now: Time,
    /// What each side sends, as somebody between them sees it.
    wires: [Wire; 2],
}

/// One direction of the wire: whole frames are looked at as they pass.
#[derive(Default)]
struct Wire {
    log: BytesMut,
    last_id: u64,
    connection: Credit,
    streams: HashMap<u64, (Sender, Credit)>,
}

/// Message bytes that were sent, and the highest offset that the other side allowed.
struct Credit {
    sent: u64,
    limit: u64,
}

impl Default for Credit {
    fn default() -> Self {
        Self { sent: 0, limit: WINDOW }
    }
}

/// How far a sender has come with a stream: each step excludes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
enum Sender {
    #[default]
    Open,
    Head,
    /// Inside a message.
    Begun,
    Between,
    Ended,
    Reset,
}

/// Every window of both sides is that large.
const WINDOW: u64 = 64 << 10;

const CLIENT: usize = 0;
const SERVER: usize = 1;

#[derive(Clone, Debug)]
enum Step {
    Open { message: Option<usize>, end: bool, priority: u8, deadline_ms: Option<u64> },
    Send { side: usize, pick: usize, len: usize },
    Finish { pick: usize },
    Head { pick: usize },
    Respond { pick: usize, ok: bool, len: Option<usize> },
    Reset { side: usize, pick: usize },
    Consume { side: usize, pick: usize },
    Ping { side: usize },
    GoAway { side: usize },
    Move { from: usize, budget: usize, chunk: usize },
    Wait { ms: u64 },
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..64, 2 => 64usize..20_000, 1 => 20_000usize..300_000]
}

fn step() -> impl Strategy<Value = Step> {
    let side = 0usize..2;
    let pick = 0usize..1_000;
    prop_oneof![
        4 => (prop::option::of(len()), any::<bool>(), 0u8..3, prop::option::weighted(0.1, 0u64..100)).prop_map(
            |(message, end, priority, deadline_ms)| Step::Open { message, end, priority, deadline_ms }
        ),
        6 => (side.clone(), pick.clone(), len()).prop_map(|(side, pick, len)| Step::Send { side, pick, len }),
        2 => pick.clone().prop_map(|pick| Step::Finish { pick }),
        1 => pick.clone().prop_map(|pick| Step::Head { pick }),
        3 => (pick.clone(), any::<bool>(), prop::option::of(len()))
            .prop_map(|(pick, ok, len)| Step::Respond { pick, ok, len }),
        1 => (side.clone(), pick.clone()).prop_map(|(side, pick)| Step::Reset { side, pick }),
        6 => (side.clone(), pick).prop_map(|(side, pick)| Step::Consume { side, pick }),
        1 => side.clone().prop_map(|side| Step::Ping { side }),
        10 => (side.clone(), 1usize..100_000, 1usize..100_000)
            .prop_map(|(from, budget, chunk)| Step::Move { from, budget, chunk }),
        2 => (0u64..20).prop_map(|ms| Step::Wait { ms }),
        // Rare, as little can be tried after it.
        1 => (side, 0u8..8).prop_map(|(side, rare)| if rare == 0 { Step::GoAway { side } } else { Step::Wait { ms: 1 } }),
    ]
}

/// A message that says whose it is: call, direction and number in every place that has room for them.
fn message(call: usize, to: usize, number: u32, len: usize) -> Bytes {
    let mark = [call as u8, to as u8, number as u8];
    (0..len).map(|at| mark[at % 3].wrapping_add((at / 3) as u8)).collect()
}

/// What a peer says first.
fn greeting() -> Vec<u8> {
    let hello =
        Hello { min_version: 1, max_version: 1, features: 0, settings: Vec::new(), extensions: Vec::new() };
    frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"")
}

/// Bytes of a peer's, from noise to frames that are almost right.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..64);
    let types = prop::sample::select(vec![
        0x01u8, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x80, 0xc3,
    ]);
    prop_oneof![
        1 => bytes(),
        6 => (types, 0u16..8, prop_oneof![Just(0), 1u64..6, any::<u64>()], bytes(), bytes()).prop_map(
            |(frame_type, flags, stream, record, payload)| frame(FrameType(frame_type), flags, stream, &record, &payload)
        ),
        2 => (0u16..8, 1u64..6, bytes()).prop_map(|(flags, stream, payload)| call(stream, flags, &payload)),
    ]
}

impl Pair {
    /// Each side offers versions from 1 to its own highest.
    fn new(seed: u64, highest: [u8; 2]) -> Self {
        let side = |role| Side {
            connection: Connection::new(
                Config {
                    limits: LIMITS,
                    versions: 1..=highest[role as usize],
                    grease: Some(seed ^ role as u64),
                    ..Config::new(role)
                },
                Time::default(),
            ),
            out: TransmitBuffer::default(),
            inbox: BytesMut::new(),
            streams: HashMap::new(),
            state: ConnectionState::Handshaking,
        };
        Self {
            sides: [side(Role::Client), side(Role::Server)],
            calls: Vec::new(),
            now: Time::default(),
            wires: [Wire::default(), Wire::default()],
        }
    }

    /// A call that this side thinks is alive.
    fn alive(&self, side: usize, pick: usize) -> Option<(usize, StreamKey)> {
        let alive: Vec<_> = (0..self.calls.len())
            .filter(|index| !self.calls[*index].over[side])
            .filter_map(|index| Some((index, self.calls[index].key[side]?)))
            .collect();
        if alive.is_empty() { None } else { Some(alive[pick % alive.len()]) }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Open { message: first, end, priority, deadline_ms } => {
                let index = self.calls.len();
                let opened = Opened {
                    method: Bytes::from(format!("/{index}")),
                    metadata: Metadata::new(),
                    priority: [Priority::Critical, Priority::Normal, Priority::Bulk][usize::from(priority)],
                    deadline: deadline_ms.map(|ms| self.now.after(Duration::from_millis(ms))),
                    message: first.map(|len| message(index, SERVER, 0, len)),
                    end,
                };
                let Ok(key) = self.sides[CLIENT].connection.open(opened) else {
                    assert!(self.sides[CLIENT].connection.is_draining());
                    return;
                };
                assert!(self.sides[CLIENT].streams.insert(key, index).is_none(), "a key was given twice");
                let mut call = Call { key: [Some(key), None], ..Call::default() };
                if let Some(len) = first {
                    call.to[SERVER].sent.push_back(len);
                    call.to[SERVER].accepted = 1;
                }
                call.to[SERVER].over = end;
                self.calls.push(call);
            }
            Step::Send { side, pick, len } => {
                let Some((index, key)) = self.alive(side, pick) else { return };
                let to = 1 - side;
                let direction = &mut self.calls[index].to[to];
                match self.sides[side].connection.send(key, message(index, to, direction.accepted, len)) {
                    Ok(()) => {
                        assert!(!direction.over, "a message after the end was taken");
                        direction.sent.push_back(len);
                        direction.accepted += 1;
                        self.calls[index].head |= side == SERVER;
                    }
                    Err(SendError::Refused(_)) => assert!(direction.over),
                    Err(SendError::Full(back)) => assert_eq!(back.len(), len),
                    Err(SendError::Gone) => panic!("a stream is gone and its side was not told"),
                }
            }
            Step::Finish { pick } => {
                let Some((index, key)) = self.alive(CLIENT, pick) else { return };
                self.sides[CLIENT].connection.finish(key);
                self.calls[index].to[SERVER].over = true;
            }
            Step::Head { pick } => {
                let Some((index, key)) = self.alive(SERVER, pick) else { return };
                let call = &mut self.calls[index];
                let taken = self.sides[SERVER].connection.send_head(key, Metadata::new()).is_ok();
                assert_eq!(taken, !call.head && !call.to[CLIENT].over);
                call.head = true;
            }
            Step::Respond { pick, ok, len } => {
                let Some((index, key)) = self.alive(SERVER, pick) else { return };
                let direction = &mut self.calls[index].to[CLIENT];
                if direction.over {
                    return;
                }
                let last = len.map(|len| message(index, CLIENT, direction.accepted, len));
                let outcome = if ok {
                    Ok(Finish { message: last, ..Finish::default() })
                } else {
                    Err(Status::new(Code::Aborted, "as asked"))
                };
                if let (true, Some(len)) = (ok, len) {
                    direction.sent.push_back(len);
                    direction.accepted += 1;
                }
                direction.over = true;
                self.sides[SERVER].connection.respond(key, outcome);
                // The server's application is done with it, and hears no more of it.
                let call = &mut self.calls[index];
                call.responded = true;
                call.over[SERVER] = true;
            }
            Step::Reset { side, pick } => {
                let Some((index, key)) = self.alive(side, pick) else { return };
                self.sides[side].connection.reset(key, ErrorCode::CANCEL);
                self.calls[index].over[side] = true;
            }
            Step::Consume { side, pick } => {
                let Some((index, key)) = self.alive(side, pick) else { return };
                if let Some(len) = self.calls[index].to[side].unread.pop_front() {
                    self.sides[side].connection.consumed(key, len);
                }
            }
            Step::Ping { side } => self.sides[side].connection.ping(7),
            Step::GoAway { side } => self.sides[side].connection.go_away("as asked"),
            Step::Move { from, budget, chunk } => {
                self.transfer(from, budget, chunk);
            }
            Step::Wait { ms } => {
                self.now = self.now.after(Duration::from_millis(ms));
                for side in [CLIENT, SERVER] {
                    if self.sides[side].connection.poll_timeout().is_some_and(|at| at <= self.now) {
                        self.sides[side].connection.handle_timeout(self.now).unwrap();
                        self.take_events(side);
                    }
                }
            }
        }
    }

    /// Carries at most `chunk` bytes; how many.
    fn transfer(&mut self, from: usize, budget: usize, chunk: usize) -> usize {
        let now = self.now;
        let Side { connection, out, .. } = &mut self.sides[from];
        connection.poll_transmit(now, out, budget);
        let mut parts = vec![IoSlice::new(&[]); out.part_count()];
        let count = out.parts(&mut parts);
        let bytes: Vec<u8> =
            parts[..count].iter().flat_map(|part| part.iter().copied()).take(chunk).collect();
        out.consume(bytes.len());
        self.take_events(from);
        self.wires[from].log.extend_from_slice(&bytes);
        self.look_at_frames(from);
        let to = &mut self.sides[1 - from];
        to.inbox.extend_from_slice(&bytes);
        // Two honest sides never accuse each other, whatever the order of things.
        to.connection.handle_read(now, &mut to.inbox).unwrap();
        self.take_events(1 - from);
        bytes.len()
    }

    /// What passes is legal: ids are odd and rise, so none is used twice; nothing follows an end; no more message bytes
    /// than the other side allowed, and it allowed no more than a window beyond what came.
    fn look_at_frames(&mut self, from: usize) {
        while let Some(start) = self.wires[from].log.first_chunk::<HEADER_LEN>() {
            let agreed = self.sides.iter().map(|side| side.connection.version()).max();
            assert!(start[4] >= 1 && Some(start[4]) <= agreed, "a frame of version {}", start[4]);
            let mut start = *start;
            start[4] = 1;
            let crc = crc32c::crc32c(&start[..36]);
            start[36..].copy_from_slice(&crc.to_le_bytes());
            let header = FrameHeader::decode(&start).unwrap();
            let whole = HEADER_LEN + header.metadata_len as usize + header.payload_len as usize;
            if self.wires[from].log.len() < whole {
                return;
            }
            let bytes = self.wires[from].log.split_to(whole);
            let record = &bytes[HEADER_LEN..HEADER_LEN + header.metadata_len as usize];
            assert!(header.payload_len <= LIMITS.max_frame_bytes);
            if header.frame_type.0 & OPTIONAL_TYPE != 0 {
                continue;
            }
            let (id, len) = (header.stream, u64::from(header.payload_len));
            if header.frame_type == FrameType::WINDOW {
                let offset = Window::decode(record).unwrap().offset;
                let other = &mut self.wires[1 - from];
                let credit = match id {
                    0 => &mut other.connection,
                    id => &mut other.streams.get_mut(&id).expect("credit for a stream of nobody's").1,
                };
                assert!(offset > credit.limit, "{header:?}: an offset that does not rise");
                assert!(offset <= credit.sent + WINDOW, "{header:?}: {offset} after {} bytes", credit.sent);
                credit.limit = offset;
                continue;
            }
            if id == 0 {
                continue;
            }
            let wire = &mut self.wires[from];
            if header.frame_type == FrameType::CALL {
                assert!(
                    from == CLIENT && id % 2 == 1 && id > wire.last_id,
                    "{header:?} after {}",
                    wire.last_id
                );
                wire.last_id = id;
                self.wires[SERVER].streams.entry(id).or_default();
            }
            let opened = id <= self.wires[CLIENT].last_id;
            let wire = &mut self.wires[from];
            let (sender, credit) = wire.streams.entry(id).or_default();
            let begun = *sender == Sender::Begun;
            let next = match header.frame_type {
                FrameType::RESET => Sender::Reset,
                FrameType::HEAD => Sender::Head,
                FrameType::STATUS => Sender::Ended,
                _ if header.has(FLAG_END) => Sender::Ended,
                _ if header.has(FLAG_MORE) => Sender::Begun,
                FrameType::CALL if !header.has(FLAG_MESSAGE) => Sender::Open,
                _ => Sender::Between,
            };
            let legal = match next {
                Sender::Reset => *sender < Sender::Reset,
                Sender::Head => from == SERVER && *sender == Sender::Open,
                _ => *sender < Sender::Ended && (from == SERVER || header.frame_type != FrameType::STATUS),
            };
            assert!(opened && legal, "{header:?} by {from} in {sender:?}");
            assert!(!begun || header.has(FLAG_MESSAGE) || next >= Sender::Ended, "{header:?} in a message");
            *sender = next;
            credit.sent += len;
            wire.connection.sent += len;
            assert!(credit.sent <= credit.limit, "{header:?}: {} of {}", credit.sent, credit.limit);
            assert!(
                wire.connection.sent <= wire.connection.limit,
                "{header:?}: beyond the connection's credit"
            );
        }
    }

    fn take_events(&mut self, side: usize) {
        let Side { connection, state, .. } = &mut self.sides[side];
        follow(state, connection.state());
        while let Some(event) = self.sides[side].connection.poll_event() {
            match event {
                Event::Connected | Event::GoAway { .. } | Event::Pong { .. } | Event::Idle => {}
                Event::Auth { .. } | Event::Authenticated { .. } | Event::Expired => panic!("{event:?}"),
                Event::Call { key, method, message, end, .. } => {
                    assert_eq!(side, SERVER);
                    let index: usize = std::str::from_utf8(&method[1..]).unwrap().parse().unwrap();
                    assert!(self.calls[index].key[SERVER].replace(key).is_none(), "a call came twice");
                    self.sides[SERVER].streams.insert(key, index);
                    if let Some(message) = message {
                        self.receive(side, key, &message);
                    }
                    if end {
                        self.half_closed(key);
                    }
                }
                Event::Head { key, .. } => {
                    self.of(side, key);
                }
                Event::Message { key, message } => self.receive(side, key, &message),
                Event::HalfClosed { key } => self.half_closed(key),
                Event::Writable { key } => {
                    self.of(side, key);
                }
                Event::Ended { key, outcome } => {
                    let index = self.of(side, key);
                    assert_eq!(side, CLIENT, "only a client's call ends with an outcome");
                    match outcome {
                        Ok(finish) => {
                            if let Some(message) = finish.message {
                                self.receive(side, key, &message);
                                // Its credit came back when it was read.
                                self.calls[index].to[CLIENT].unread.pop_back();
                            }
                            let direction = &self.calls[index].to[CLIENT];
                            assert_eq!(direction.received, direction.accepted, "messages are missing");
                            assert!(self.calls[index].responded);
                        }
                        Err(status) => assert_eq!(status.message(), "as asked"),
                    }
                    self.calls[index].over[CLIENT] = true;
                }
                Event::Reset { key, .. } => {
                    let index = self.of(side, key);
                    self.calls[index].over[side] = true;
                }
            }
        }
    }

    /// The call of a key that must be alive: nobody hears of a call after its end.
    fn of(&self, side: usize, key: StreamKey) -> usize {
        let index = self.sides[side].streams[&key];
        assert!(!self.calls[index].over[side] || (side == SERVER && self.calls[index].responded));
        index
    }

    fn receive(&mut self, side: usize, key: StreamKey, message: &Bytes) {
        let index = self.of(side, key);
        let over = self.calls[index].over[side];
        let direction = &mut self.calls[index].to[side];
        let len = direction.sent.pop_front().expect("a message that nobody sent");
        assert!(*message == self::message(index, side, direction.received, len), "other bytes came");
        direction.received += 1;
        if over {
            // A driver whose application is gone returns the credit itself.
            self.sides[side].connection.consumed(key, len);
            return;
        }
        direction.unread.push_back(len);
        let unread: usize = direction.unread.iter().sum();
        let largest = direction.unread.iter().max().copied().unwrap_or(0);
        // A message may be larger than the window; beside it there is no more than the window.
        assert!(unread - largest <= LIMITS.stream_window_bytes as usize, "{unread} bytes unread");
    }

    fn half_closed(&mut self, key: StreamKey) {
        let index = self.of(SERVER, key);
        let direction = &self.calls[index].to[SERVER];
        assert!(direction.over, "a half-close that nobody sent");
        assert_eq!(direction.received, direction.accepted, "messages are missing");
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for index in 0..self.calls.len() {
            if let (false, Some(key)) = (self.calls[index].over[CLIENT], self.calls[index].key[CLIENT]) {
                self.sides[CLIENT].connection.finish(key);
                self.calls[index].to[SERVER].over = true;
            }
        }
        loop {
            let mut moved = 0;
            for side in [CLIENT, SERVER] {
                for index in 0..self.calls.len() {
                    let Some(key) = self.calls[index].key[side] else { continue };
                    while let Some(len) = self.calls[index].to[side].unread.pop_front() {
                        self.sides[side].connection.consumed(key, len);
                        moved += 1;
                    }
                }
            }
            while let Some((_, _)) = self.alive(SERVER, 0) {
                self.apply(Step::Respond { pick: 0, ok: true, len: None });
                moved += 1;
                if self.alive(SERVER, 0).is_some_and(|(index, _)| self.calls[index].to[CLIENT].over) {
                    break;
                }
            }
            moved += self.transfer(CLIENT, usize::MAX, usize::MAX);
            moved += self.transfer(SERVER, usize::MAX, usize::MAX);
            if moved == 0 {
                break;
            }
        }
        for (index, call) in self.calls.iter().enumerate() {
            assert!(call.over[CLIENT], "call {index} never ended");
        }
        for side in &self.sides {
            assert_eq!(side.connection.streams(), 0, "a stream is left");
            assert!(side.inbox.is_empty() && side.out.is_empty());
        }
        self.no_credit_is_lost();
    }

    /// At rest everything that came was taken: the next credit that is given says so to the byte.
    fn no_credit_is_lost(&mut self) {
        if self.sides.iter().any(|side| side.connection.is_draining()) {
            return;
        }
        for from in [CLIENT, SERVER] {
            let before = self.wires[from].connection.limit;
            let mut calls = 0;
            while self.wires[from].connection.limit == before {
                assert!(calls < 8, "an eighth of a window was sent and taken, and no credit came back");
                calls += 1;
                let index = self.calls.len();
                let len = if from == CLIENT { 8_000 } else { 0 };
                self.apply(Step::Open { message: Some(len), end: true, priority: 0, deadline_ms: None });
                self.transfer(CLIENT, usize::MAX, usize::MAX);
                let key = self.calls[index].key[SERVER].unwrap();
                self.sides[SERVER].connection.consumed(key, len);
                self.calls[index].to[SERVER].unread.clear();
                let len = if from == SERVER { 8_000 } else { 0 };
                let pick = (0..index).filter(|index| !self.calls[*index].over[SERVER]).count();
                self.apply(Step::Respond { pick, ok: true, len: Some(len) });
                self.transfer(SERVER, usize::MAX, usize::MAX);
                self.transfer(CLIENT, usize::MAX, usize::MAX);
                assert!(self.calls[index].over[CLIENT]);
            }
            let Credit { sent, limit } = self.wires[from].connection;
            assert_eq!(limit, sent + WINDOW, "credit of the connection from {from} was lost");
        }
    }
}

proptest! {
    #![proptest_config(seeded())]

    /// No bytes make a connection panic, hold more than a frame, or answer with more than a GOAWAY.
    #[test]
    fn any_bytes_are_survived(
        greeted in any::<bool>(),
        pieces in prop::collection::vec(piece(), 0..12),
        chunk in 1usize..500,
    ) {
        for role in [Role::Server, Role::Client] {
            let mut connection = Connection::new(Config { limits: LIMITS, ..Config::new(role) }, Time::default());
            let mut out = TransmitBuffer::default();
            connection.poll_transmit(Time::default(), &mut out, usize::MAX);
            let mut bytes = if greeted { greeting() } else { Vec::new() };
            bytes.extend(pieces.iter().flatten());
            let mut inbox = BytesMut::new();
            let mut failed = false;
            let mut state = connection.state();
            for part in bytes.chunks(chunk) {
                inbox.extend_from_slice(part);
                failed = connection.handle_read(Time::default(), &mut inbox).is_err();
                follow(&mut state, connection.state());
                prop_assert!(inbox.capacity() <= 128 << 10, "{} bytes held", inbox.capacity());
                while connection.poll_event().is_some() {}
                if failed {
                    break;
                }
            }
            let before = out.len();
            connection.poll_transmit(Time::default(), &mut out, usize::MAX);
            prop_assert!(out.len() - before <= 64 << 10);
            let _ = connection.handle_end(&inbox);
            prop_assert_eq!(connection.handle_read(Time::default(), &mut BytesMut::new()).is_err(), failed);
        }
    }

    /// However the bytes are cut, the same comes out, and nothing of a frame before its last byte.
    // spec: W11-01
    #[test]
    fn cuts_do_not_matter(
        lens in prop::collection::vec(0usize..3_000, 1..8),
        cuts in prop::collection::vec(1usize..2_000, 0..40),
    ) {
        let mut whole = greeting();
        for (index, len) in lens.iter().enumerate() {
            let record = CallRecord { method: "/echo", timeout_us: 0, codec: 0, schema: 0, metadata: Vec::new(), extensions: Vec::new() };
            let mut body = BytesMut::new();
            record.encode(&mut body);
            whole.extend(frame(FrameType::CALL, FLAG_MESSAGE | FLAG_END, 2 * index as u64 + 1, &body, &message(index, 1, 0, *len)));
        }
        let read = |cuts: &mut dyn Iterator<Item = usize>| {
            let mut connection = Connection::new(Config { limits: LIMITS, ..Config::new(Role::Server) }, Time::default());
            let (mut inbox, mut rest, mut events) = (BytesMut::new(), &whole[..], Vec::new());
            while !rest.is_empty() {
                let (part, after) = rest.split_at(cuts.next().unwrap_or(usize::MAX).min(rest.len()));
                rest = after;
                inbox.extend_from_slice(part);
                connection.handle_read(Time::default(), &mut inbox).unwrap();
                events.extend(std::iter::from_fn(|| connection.poll_event()));
            }
            assert!(inbox.is_empty());
            events
        };
        let expected = read(&mut std::iter::empty());
        prop_assert_eq!(expected.len(), 1 + lens.len());
        prop_assert_eq!(&read(&mut cuts.into_iter()), &expected);
        prop_assert_eq!(&read(&mut std::iter::repeat(1)), &expected);
    }

    /// Every flipped bit of a body is found.
    // spec: W1-12
    #[test]
    fn a_flipped_bit_is_found(payload in prop::collection::vec(any::<u8>(), 1..200)) {
        let ping = frame(FrameType::PING, 0, 0, &payload, b"");
        let call = frame(FrameType::CALL, FLAG_MESSAGE | FLAG_END, 1, b"", &payload);
        for whole in [ping, call] {
            for bit in HEADER_LEN * 8..whole.len() * 8 {
                let mut bytes = BytesMut::from(&greeting()[..]);
                let start = bytes.len();
                bytes.extend_from_slice(&whole);
                bytes[start + bit / 8] ^= 1 << (bit % 8);
                let mut connection = Connection::new(Config::new(Role::Server), Time::default());
                let error = connection.handle_read(Time::default(), &mut bytes).unwrap_err();
                prop_assert_eq!(error.reason, Reason::PAYLOAD_CHECKSUM);
            }
        }
    }

    /// Whatever two honest sides do in whatever order, and however the bytes are cut: no side accuses the other, each
    /// call ends once, messages come whole and in order, ids rise, credit is neither passed nor lost.
    // spec: W6-03, W6-05, W6-12, W7-01, W7-12, W8-01, W8-04, W8-05, W8-07
    #[test]
    fn honest_sides_agree(
        seed in any::<u64>(),
        client in 1u8..4,
        server in 1u8..4,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut pair = Pair::new(seed, [client, server]);
        for step in steps {
            pair.apply(step);
        }
        pair.settle();
        for side in &pair.sides {
            prop_assert!([1, client.min(server)].contains(&side.connection.version()));
        }
    }
}
