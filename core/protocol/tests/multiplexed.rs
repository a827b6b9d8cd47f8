//! Two sides over a carrier that gives each stream a channel of its own, as QUIC does: channels are delivered in any
//! order and in any pieces. `PROPTEST_RNG_SEED=n` takes the seed that a failure prints.

mod side;

use std::{
    collections::{BTreeMap, VecDeque},
    io::IoSlice,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use side::{frame, message, seeded};
use valkyrie_protocol::{
    Code, Config, Connection, ErrorCode, Event, FLAG_END, FLAG_MESSAGE, Finish, FrameType, HEADER_LEN,
    Limits, Metadata, Opened, Priority, Reason, Role, SendError, Status, StatusRecord, StreamAction,
    StreamKey, Time, TransmitBuffer,
};

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// One direction of one stream, between the sides.
#[derive(Default)]
struct Channel {
    bytes: BytesMut,
    end: bool,
    reset: Option<ErrorCode>,
    /// Whom to tell once the carrier has taken what was written.
    written: Option<StreamKey>,
    /// At the receiver: the beginning of a frame, and whether one came before.
    unread: BytesMut,
    begun: bool,
    over: bool,
}

struct Side {
    connection: Connection,
    control: BytesMut,
    events: Vec<Event>,
    /// What this side sends, by stream.
    sends: BTreeMap<u64, Channel>,
}

struct Pair {
    sides: [Side; 2],
    now: Time,
    /// Something moved since the last look.
    moved: bool,
}

fn drain(out: &mut TransmitBuffer) -> Vec<u8> {
    let mut slices = [IoSlice::new(&[]); 64];
    let count = out.parts(&mut slices);
    let bytes = slices[..count].iter().flat_map(|part| part.iter().copied()).collect();
    out.consume(out.len());
    bytes
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let side = |role| Side {
            connection: Connection::new(
                Config { limits, multiplexed: true, ..Config::new(role) },
                Time::default(),
            ),
            control: BytesMut::new(),
            events: Vec::new(),
            sends: BTreeMap::new(),
        };
        Self { sides: [side(Role::Client), side(Role::Server)], now: Time::default(), moved: false }
    }

    /// Takes what a side wants sent.
    fn collect(&mut self, from: usize) {
        let Self { sides, now, moved } = self;
        let mut out = TransmitBuffer::default();
        sides[from].connection.poll_transmit(*now, &mut out, usize::MAX);
        let bytes = drain(&mut out);
        sides[1 - from].control.extend_from_slice(&bytes);
        *moved |= !bytes.is_empty();
        while let Some(action) = sides[from].connection.poll_stream(*now, &mut out, 16 << 10) {
            *moved = true;
            match action {
                StreamAction::Write { id, key, end, .. } => {
                    let channel = sides[from].sends.entry(id).or_default();
                    assert!(!channel.end && channel.written.is_none(), "stream {id} was not asked for more");
                    channel.bytes.extend_from_slice(&drain(&mut out));
                    channel.end = end;
                    channel.written = Some(key);
                }
                StreamAction::Close { id } => {
                    let channel = sides[from].sends.entry(id).or_default();
                    if !channel.end {
                        channel.reset = Some(ErrorCode::NO_ERROR);
                    }
                    if let Some(back) = sides[1 - from].sends.get_mut(&id) {
                        back.over = true;
                    }
                }
                StreamAction::Reset { id, code } => {
                    sides[from].sends.entry(id).or_default().reset = Some(code);
                }
            }
        }
        while let Some(event) = sides[from].connection.poll_event() {
            sides[from].events.push(event);
        }
    }

    /// Delivers up to `most` bytes of a stream, or the connection's frames for stream 0.
    fn deliver(&mut self, from: usize, id: u64, most: usize) {
        let now = self.now;
        let (left, right) = self.sides.split_at_mut(1);
        let (sender, receiver) = match from {
            CLIENT => (&mut left[0], &mut right[0]),
            _ => (&mut right[0], &mut left[0]),
        };
        if id == 0 {
            receiver.connection.handle_read(now, &mut receiver.control).unwrap();
        } else if let Some(channel) = sender.sends.get_mut(&id) {
            if let Some(key) = channel.written.take() {
                sender.connection.stream_written(key);
            }
            if let Some(code) = channel.reset {
                if !std::mem::replace(&mut channel.over, true) && code != ErrorCode::NO_ERROR {
                    receiver.connection.handle_stream_reset(id, code).unwrap();
                }
            } else if channel.over {
                channel.bytes.clear();
            } else if receiver.connection.may_read(id) {
                let len = channel.bytes.len().min(most);
                self.moved |= len > 0;
                channel.unread.extend_from_slice(&channel.bytes.split_to(len));
                channel.begun |=
                    receiver.connection.handle_stream(now, id, channel.begun, &mut channel.unread).unwrap();
                if channel.bytes.is_empty() && channel.end && channel.written.is_none() {
                    channel.over = true;
                    receiver.connection.handle_stream_end(id, &channel.unread).unwrap();
                }
            }
        }
        self.collect(CLIENT);
        self.collect(SERVER);
    }

    /// Delivers everything, the latest streams first.
    fn settle(&mut self) {
        self.collect(CLIENT);
        self.collect(SERVER);
        self.moved = true;
        while std::mem::take(&mut self.moved) {
            for from in [SERVER, CLIENT] {
                self.deliver(from, 0, usize::MAX);
                let ids: Vec<u64> = self.sides[from].sends.keys().rev().copied().collect();
                for id in ids {
                    self.deliver(from, id, usize::MAX);
                }
            }
        }
    }

    fn open(&mut self, message: Option<Bytes>, end: bool) -> StreamKey {
        let call = Opened {
            method: Bytes::from_static(b"/echo"),
            metadata: Metadata::new(),
            priority: Priority::Normal,
            deadline: None,
            message,
            end,
        };
        self.sides[CLIENT].connection.open(call).unwrap()
    }
}

#[test]
fn a_call_that_crosses_the_goaway_is_refused_and_nothing_else() {
    let mut pair = Pair::new(Limits::default());
    pair.settle();
    pair.sides[SERVER].connection.go_away("maintenance");
    // The whole call and the end of its channel are read at once.
    let key = pair.open(Some(Bytes::from_static(b"x")), true);
    pair.settle();
    assert_eq!(pair.sides[SERVER].events, [Event::Connected]);
    let refused = pair.sides[CLIENT]
        .events
        .iter()
        .any(|event| matches!(event, Event::Reset { key: of, unprocessed: true, .. } if *of == key));
    assert!(refused, "{:?}", pair.sides[CLIENT].events);
}

#[test]
fn a_frame_that_is_whole_leaves_no_timer() {
    let mut pair = Pair::new(Limits::default());
    pair.settle();
    pair.open(Some(Bytes::from_static(&[7; 1_000])), true);
    pair.collect(CLIENT);
    pair.deliver(CLIENT, 1, 100);
    assert!(pair.sides[SERVER].connection.poll_timeout().is_some());
    pair.deliver(CLIENT, 1, usize::MAX);
    assert!(matches!(pair.sides[SERVER].events.last(), Some(Event::Call { end: true, .. })));
    assert_eq!(pair.sides[SERVER].connection.poll_timeout(), None);
}

/// A side that has read the peer's hello, and what the peer's `frames` on stream `id` do to it.
fn judge(role: Role, id: u64, frames: &[Vec<u8>]) -> Result<(), ErrorCode> {
    let mut pair = Pair::new(Limits::default());
    let at = if role == Role::Client { CLIENT } else { SERVER };
    if role == Role::Client {
        pair.open(Some(Bytes::from_static(b"x")), true);
    }
    pair.settle();
    let connection = &mut pair.sides[at].connection;
    let mut begun = false;
    for frame in frames {
        let mut bytes = BytesMut::from(&frame[..]);
        begun |= connection.handle_stream(pair.now, id, begun, &mut bytes).map_err(|error| error.code)?;
    }
    Ok(())
}

fn call(stream: u64) -> Vec<u8> {
    side::call(stream, FLAG_MESSAGE, b"hello")
}

// spec: W11-07
#[test]
fn a_stream_begins_with_its_call_and_carries_no_other() {
    let message = |stream| message(stream, FLAG_MESSAGE, b"more");
    assert_eq!(judge(Role::Server, 1, &[call(1), message(1)]), Ok(()));
    assert_eq!(judge(Role::Server, 1, &[message(1)]), Err(ErrorCode::PROTOCOL));
    assert_eq!(judge(Role::Server, 1, &[call(3)]), Err(ErrorCode::PROTOCOL));
    assert_eq!(judge(Role::Server, 1, &[call(1), message(3)]), Err(ErrorCode::PROTOCOL));
    assert_eq!(judge(Role::Server, 1, &[call(1), call(1)]), Err(ErrorCode::STREAM_ID));
    let ping = frame(FrameType::PING, 0, 0, &[0, 0], b"");
    assert_eq!(judge(Role::Server, 1, &[call(1), ping]), Err(ErrorCode::PROTOCOL));
    let optional = frame(FrameType(0xC7), 0, 0, b"what", b"ever");
    assert_eq!(judge(Role::Server, 1, &[optional.clone(), call(1), optional]), Ok(()));
    // The connection's own channel carries no call.
    let mut pair = Pair::new(Limits::default());
    pair.settle();
    let error = pair.sides[SERVER].connection.handle_read(pair.now, &mut BytesMut::from(&call(1)[..]));
    assert_eq!(error.unwrap_err().code, ErrorCode::PROTOCOL);
}

// spec: W11-08
#[test]
fn the_carrier_counts_and_resets() {
    for (frame_type, record) in [(FrameType::WINDOW, [9, 0]), (FrameType::RESET, [11, 0])] {
        let frame = frame(frame_type, 0, 1, &record, b"");
        assert_eq!(judge(Role::Server, 1, &[call(1), frame]), Err(ErrorCode::PROTOCOL), "{frame_type:?}");
    }
    // And neither is sent, however much moves and is given up.
    let mut pair = Pair::new(Limits::default());
    let (kept, given_up) = (pair.open(None, false), pair.open(None, false));
    pair.settle();
    let mut types = Vec::new();
    for _ in 0..200 {
        for key in [kept, given_up] {
            let _ = pair.sides[CLIENT].connection.send(key, Bytes::from(vec![1; 60_000]));
        }
        pair.collect(CLIENT);
        for channel in pair.sides[CLIENT].sends.values() {
            types.extend(channel.bytes.chunks(HEADER_LEN + 60_000).map(|frame| frame[5]));
        }
        pair.settle();
        let events = std::mem::take(&mut pair.sides[SERVER].events);
        for event in events {
            if let Event::Message { key, message } = event {
                pair.sides[SERVER].connection.consumed(key, message.len());
            }
        }
    }
    pair.sides[CLIENT].connection.reset(given_up, ErrorCode::CANCEL);
    pair.settle();
    assert!(types.len() >= 200 && types.iter().all(|byte| *byte == FrameType::MESSAGE.0));
    let gone =
        |event: &Event| matches!(event, Event::Reset { status, .. } if status.code() == Code::Cancelled);
    assert_eq!(pair.sides[SERVER].events.iter().filter(|event| gone(event)).count(), 1);
    assert!(pair.sides.iter().all(|side| side.control.is_empty()));
}

// spec: W11-09
#[test]
fn half_of_a_stream_is_not_a_whole_one() {
    for (frame, rest, whole) in [
        (call(1), 0, false),
        (side::call(1, FLAG_END | FLAG_MESSAGE, b"hello"), 0, true),
        (side::call(1, FLAG_END | FLAG_MESSAGE, b"hello"), 5, false),
    ] {
        let mut pair = Pair::new(Limits::default());
        pair.settle();
        let connection = &mut pair.sides[SERVER].connection;
        connection.handle_stream(pair.now, 1, false, &mut BytesMut::from(&frame[..])).unwrap();
        let ended = connection.handle_stream_end(1, &vec![0; rest]);
        assert_eq!(ended.map_err(|error| error.code), if whole { Ok(()) } else { Err(ErrorCode::PROTOCOL) });
    }
}

// spec: W11-10
#[test]
fn no_call_is_read_before_the_hello() {
    let mut pair = Pair::new(Limits::default());
    pair.open(Some(Bytes::from_static(b"early")), true);
    pair.collect(CLIENT);
    assert!(!pair.sides[SERVER].connection.may_read(1));
    pair.deliver(CLIENT, 0, usize::MAX);
    assert!(pair.sides[SERVER].connection.may_read(1));
    // Nor the answer, which may be faster than the server's hello.
    assert!(!pair.sides[CLIENT].connection.may_read(1));
    pair.deliver(SERVER, 0, usize::MAX);
    assert!(pair.sides[CLIENT].connection.may_read(1));
}

// spec: W9-06
#[test]
fn a_frame_that_stands_on_any_stream_is_overdue() {
    let mut pair = Pair::new(Limits::default());
    pair.settle();
    let (mut first, mut second) = (BytesMut::from(&call(1)[..45]), BytesMut::from(&call(3)[..45]));
    let server = &mut pair.sides[SERVER].connection;
    server.handle_stream(pair.now, 1, false, &mut first).unwrap();
    let later = pair.now.after(Duration::from_secs(4));
    server.handle_stream(later, 3, false, &mut second).unwrap();
    assert_eq!(server.poll_timeout(), Some(pair.now.after(Duration::from_secs(30))));
    // The first goes on in time, the second does not.
    first.extend_from_slice(&call(1)[45..]);
    server.handle_stream(later, 1, false, &mut first).unwrap();
    server.handle_timeout(pair.now.after(Duration::from_secs(30))).unwrap();
    assert_eq!(server.poll_timeout(), Some(later.after(Duration::from_secs(30))));
    let error = server.handle_timeout(later.after(Duration::from_secs(30))).unwrap_err();
    assert_eq!((error.code, error.status().reason()), (ErrorCode::TIMEOUT, Reason::FRAME_TIMEOUT));
}

/// A frame may wait while other streams have the link, and while this side does not read.
// spec: W9-06
#[test]
fn a_frame_that_waits_for_its_turn_is_not_overdue() {
    let seconds = |count| Time::default().after(Duration::from_secs(count));
    let mut pair = Pair::new(Limits::default());
    pair.settle();
    let server = &mut pair.sides[SERVER].connection;
    server.handle_stream(seconds(0), 1, false, &mut BytesMut::from(&call(1)[..45])).unwrap();
    assert!(server.handle_stream(seconds(1), 3, false, &mut BytesMut::from(&call(3)[..])).unwrap());
    let more = message(3, FLAG_MESSAGE, &[7; 51_200 - HEADER_LEN]);
    assert!(server.handle_stream(seconds(2), 3, true, &mut BytesMut::from(&more[..])).unwrap());
    // 50 KiB came beside it: 50 seconds.
    server.handle_timeout(seconds(50)).unwrap();
    let error = server.handle_timeout(seconds(51)).unwrap_err();
    assert_eq!(error.status().reason(), Reason::FRAME_TIMEOUT);

    // As much as the window allows, and half a frame.
    let mut pair = Pair::new(Limits::default());
    pair.settle();
    let server = &mut pair.sides[SERVER].connection;
    let mut held = BytesMut::from(&call(1)[..]);
    let more = message(1, FLAG_MESSAGE, &[7; 60_000]);
    (0..5).for_each(|_| held.extend_from_slice(&more));
    held.extend_from_slice(&more[..100]);
    assert!(server.handle_stream(seconds(0), 1, false, &mut held).unwrap());
    server.handle_timeout(seconds(100)).unwrap();
    let key = std::iter::from_fn(|| server.poll_event())
        .find_map(|event| match event {
            Event::Call { key, .. } => Some(key),
            _ => None,
        })
        .unwrap();
    assert!(!server.may_read(1));
    server.consumed(key, 60_000);
    assert!(server.may_read(1));
    // Now it is the peer's turn again.
    server.handle_stream(seconds(100), 1, true, &mut held).unwrap();
    server.handle_timeout(seconds(129)).unwrap();
    let error = server.handle_timeout(seconds(130)).unwrap_err();
    assert_eq!(error.status().reason(), Reason::FRAME_TIMEOUT);
}

#[test]
fn a_message_over_the_limit_gets_its_status_on_its_own_stream() {
    let limits = Limits { max_message_bytes: 20_000, ..Limits::default() };
    let mut pair = Pair::new(limits);
    // The client believes more before the hello.
    pair.sides[CLIENT].connection =
        Connection::new(Config { multiplexed: true, ..Config::new(Role::Client) }, Time::default());
    pair.open(Some(Bytes::from(vec![0; 50_000])), true);
    pair.settle();
    let ended = pair.sides[CLIENT].events.iter().find_map(|event| match event {
        Event::Ended { outcome: Err(status), .. } => Some(status.reason()),
        _ => None,
    });
    assert_eq!(ended, Some(Reason::MESSAGE_TOO_LARGE));
    assert!(pair.sides.iter().all(|side| side.connection.streams() == 0));
}

/// Its credit came back twice, and by that count the connection held less than nothing: no stream was read any more.
#[test]
fn an_answer_over_the_limit_ends_its_call_only() {
    let limits = Limits { max_message_bytes: 16_384, ..Limits::default() };
    let mut pair = Pair::new(limits);
    pair.settle();
    let keys = [0; 2].map(|_| pair.open(None, true));
    pair.settle();
    let client = &mut pair.sides[CLIENT].connection;
    let ok = side::record(|out| StatusRecord::from_status(&Status::new(Code::Ok, "")).encode(out));
    for (key, (id, len)) in keys.into_iter().zip([(1, 16_385), (3, 16_384)]) {
        assert!(client.may_read(id));
        let answer = frame(FrameType::STATUS, FLAG_MESSAGE | FLAG_END, id, &ok, &vec![7; len]);
        client.handle_stream(pair.now, id, false, &mut BytesMut::from(&answer[..])).unwrap();
        let ended = std::iter::from_fn(|| client.poll_event()).last();
        match ended {
            Some(Event::Reset { key: of, status, unprocessed: false }) if of == key && id == 1 => {
                assert_eq!(status.reason(), Reason::MESSAGE_TOO_LARGE);
            }
            Some(Event::Ended { key: of, outcome: Ok(_) }) if of == key && id == 3 => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.streams(), 0);
}

/// A call that was given up and whose RESET waits to be forgiven ends by the server's own answer: its channel is closed, and nothing
/// was reset.
// spec: W9-15
#[test]
fn a_reset_that_waits_goes_with_the_answer_and_the_channel_is_closed() {
    let limits = Limits { max_resets: 8, ..Limits::default() };
    let mut pair = Pair::new(limits);
    pair.settle();
    // An eighth less than are forgiven.
    let keys: Vec<_> = (0..8).map(|_| pair.open(Some(Bytes::from_static(b"x")), true)).collect();
    pair.settle();
    for key in keys {
        pair.sides[CLIENT].connection.reset(key, ErrorCode::CANCEL);
    }
    pair.collect(CLIENT);
    let reset = |pair: &Pair, id| pair.sides[CLIENT].sends[&id].reset;
    assert_eq!((reset(&pair, 13), reset(&pair, 15)), (Some(ErrorCode::CANCEL), None));
    let server = &mut pair.sides[SERVER];
    // The latest streams are delivered first.
    let last = server.events.iter().find_map(|event| match event {
        Event::Call { key, .. } => Some(*key),
        _ => None,
    });
    server.connection.respond(last.unwrap(), Ok(Finish::default()));
    pair.collect(SERVER);
    let mut answer = pair.sides[SERVER].sends[&15].bytes.clone();
    let client = &mut pair.sides[CLIENT].connection;
    client.handle_stream(pair.now, 15, false, &mut answer).unwrap();
    let action = client.poll_stream(pair.now, &mut TransmitBuffer::default(), usize::MAX);
    assert!(matches!(action, Some(StreamAction::Close { id: 15 })), "{action:?}");
    assert_eq!((client.streams(), reset(&pair, 15)), (0, None));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..seeded() })]

    /// Every call ends once, with its own messages in order, whatever overtakes what; some are given up on the way.
    // spec: W11-11
    #[test]
    fn every_call_ends_once_whatever_overtakes_what(
        calls in prop::collection::vec((prop::collection::vec(0usize..40_000, 0..6), any::<bool>()), 1..12),
        deliveries in prop::collection::vec((0usize..2, 0u64..13, 1usize..50_000), 0..400),
    ) {
        let mut pair = Pair::new(Limits { stream_window_bytes: 64 << 10, ..Limits::default() });
        let mut unsent: Vec<(StreamKey, VecDeque<Bytes>, bool)> = Vec::new();
        for (number, (sizes, cancel)) in calls.iter().enumerate() {
            let key = pair.open(None, false);
            let messages = sizes.iter().map(|size| Bytes::from(vec![number as u8; *size])).collect();
            unsent.push((key, messages, *cancel));
        }
        let mut got: BTreeMap<StreamKey, Vec<usize>> = BTreeMap::new();
        let mut answers: BTreeMap<StreamKey, Vec<usize>> = BTreeMap::new();
        let mut ends: BTreeMap<StreamKey, usize> = BTreeMap::new();
        let mut finished = vec![false; unsent.len()];
        let mut step = |pair: &mut Pair| {
            for (index, (key, messages, cancel)) in unsent.iter_mut().enumerate() {
                let client = &mut pair.sides[CLIENT].connection;
                while let Some(message) = messages.pop_front() {
                    if let Err(SendError::Full(back)) = client.send(*key, message) {
                        messages.push_front(back);
                        break;
                    }
                }
                if messages.is_empty() && !finished[index] {
                    finished[index] = true;
                    if *cancel {
                        client.reset(*key, ErrorCode::CANCEL);
                    } else {
                        client.finish(*key);
                    }
                }
            }
            for event in std::mem::take(&mut pair.sides[SERVER].events) {
                let server = &mut pair.sides[SERVER].connection;
                let (key, message, end) = match event {
                    Event::Call { key, message, end, .. } => (key, message, end),
                    Event::Message { key, message } => (key, Some(message), false),
                    Event::HalfClosed { key } => (key, None, true),
                    _ => continue,
                };
                let lens = got.entry(key).or_default();
                if let Some(message) = message {
                    server.consumed(key, message.len());
                    lens.push(message.len());
                }
                if end {
                    let lens: Vec<u8> = lens.iter().flat_map(|len| (*len as u32).to_le_bytes()).collect();
                    server.respond(key, Ok(Finish { message: Some(lens.into()), ..Finish::default() }));
                }
            }
            for event in std::mem::take(&mut pair.sides[CLIENT].events) {
                if let Event::Ended { key, outcome } = event {
                    let message: Result<Finish, Status> = outcome;
                    let message = message.unwrap().message.unwrap();
                    let lens = message.chunks(4).map(|len| u32::from_le_bytes(len.try_into().unwrap()) as usize);
                    answers.insert(key, lens.collect());
                    *ends.entry(key).or_default() += 1;
                }
            }
        };
        for (from, stream, most) in deliveries {
            step(&mut pair);
            pair.deliver(from, if stream == 0 { 0 } else { 2 * stream - 1 }, most);
        }
        for _ in 0..40 {
            step(&mut pair);
            pair.settle();
        }
        step(&mut pair);
        for ((key, ..), (sizes, cancel)) in unsent.iter().zip(&calls) {
            if !cancel {
                prop_assert_eq!(answers.get(key), Some(sizes));
                prop_assert_eq!(ends[key], 1);
            }
        }
        prop_assert!(pair.sides.iter().all(|side| side.connection.streams() == 0), "a stream is left");
    }
}

#[test]
fn a_connection_that_failed_says_the_same_of_every_stream() {
    let mut side =
        Connection::new(Config { multiplexed: true, ..Config::new(Role::Client) }, Time::default());
    let failed = side.handle_read(Time::default(), &mut BytesMut::from(&[0; HEADER_LEN][..])).unwrap_err();
    let error = format!("{failed:?}");
    let told = [
        side.handle_stream(Time::default(), 1, false, &mut BytesMut::new()).unwrap_err(),
        side.handle_stream_end(1, &[]).unwrap_err(),
        side.handle_stream_reset(1, ErrorCode::CANCEL).unwrap_err(),
    ];
    assert!(told.iter().all(|told| format!("{told:?}") == error), "{told:?}, and not {error}");
}
