//! What a peer may not do too often or too slowly (PROTOCOL.md, "Abuse"), by the clock of the test: each rule at its
//! limit, one step beyond it, and what gives room again. Numbers in names are those of the catalogue of faults.

mod side;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use side::{Side, call, frame, message, record, reset, status};
use valkyrie_protocol::{
    Call, Code, Config, Connection, ConnectionError, ConnectionState, ErrorCode, Event, FLAG_END,
    FLAG_MESSAGE, FLAG_MORE, Finish, FrameType, GoAway, Head, Limits, Ping, Reason, Role, Status, StreamKey,
    Time, TransmitBuffer, Window,
};

const LIMITS: Limits = Limits {
    max_resets: 10,
    resets_per_second: 2,
    max_glitches: 10,
    glitches_per_second: 1,
    max_control_frames: 1_000,
    fragment_overhead_bytes: 2_560,
    ..valkyrie_protocol::INITIAL
};

fn server() -> Side {
    Side::new(Role::Server, LIMITS)
}

fn seconds(seconds: u64) -> Time {
    Time::from_micros(seconds * 1_000_000)
}

fn control(frame_type: FrameType, stream: u64, encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    frame(frame_type, 0, stream, &record(encode), b"")
}

fn ping() -> Vec<u8> {
    control(FrameType::PING, 0, |out| Ping { data: 7, extensions: Vec::new() }.encode(out))
}

fn pong() -> Vec<u8> {
    control(FrameType::PONG, 0, |out| Ping { data: 7, extensions: Vec::new() }.encode(out))
}

fn window(stream: u64, offset: u64) -> Vec<u8> {
    control(FrameType::WINDOW, stream, |out| Window { offset, extensions: Vec::new() }.encode(out))
}

fn call_within(stream: u64, timeout_us: u64) -> Vec<u8> {
    let call =
        Call { method: "/m", timeout_us, codec: 0, schema: 0, metadata: Vec::new(), extensions: Vec::new() };
    frame(FrameType::CALL, FLAG_END, stream, &record(|out| call.encode(out)), b"")
}

/// Reads `make(0)`, `make(1)`, … with everything in between answered and taken; how many it took to be refused.
fn refused_after(side: &mut Side, make: impl Fn(u64) -> Vec<u8>) -> (usize, ConnectionError) {
    for count in 0..100_000 {
        if let Err(error) = side.read(make(count)) {
            return (count as usize, error);
        }
        side.events();
        side.said();
    }
    panic!("100,000 frames were taken");
}

fn keys(side: &mut Side) -> Vec<StreamKey> {
    let calls = side.events();
    calls
        .into_iter()
        .filter_map(|event| match event {
            Event::Call { key, .. } => Some(key),
            _ => None,
        })
        .collect()
}

// spec: W9-05, W9-07
#[test]
fn f17_resets_ahead_of_completed_calls_are_counted() {
    let mut side = server();
    let open_and_reset = |count: u64| [call(2 * count + 1, FLAG_END, b""), reset(2 * count + 1)].concat();
    let (count, error) = refused_after(&mut side, open_and_reset);
    assert_eq!((count, error.code), (LIMITS.max_resets as usize, ErrorCode::ENHANCE_CALM));

    // A call that completed gives one back.
    let mut side = server();
    for count in 0..100 {
        side.read(open_and_reset(2 * count)).unwrap();
        side.read(call(4 * count + 3, FLAG_END, b"")).unwrap();
        let key = *keys(&mut side).last().unwrap();
        side.0.respond(key, Ok(Finish::default()));
        side.said();
    }

    // So does time: two of them each second.
    let mut side = server();
    for count in 0..LIMITS.max_resets.into() {
        side.read(open_and_reset(count)).unwrap();
    }
    let mut read_at = |half_seconds: u64, count: u64| {
        side.0.handle_read(
            Time::from_micros(500_000 * half_seconds),
            &mut BytesMut::from(&open_and_reset(count)[..]),
        )
    };
    for count in 1..100 {
        read_at(count, LIMITS.max_resets as u64 + count).unwrap();
    }
    assert_eq!(read_at(99, 200).unwrap_err().code, ErrorCode::ENHANCE_CALM);
}

// spec: W9-07
#[test]
fn f18_resets_that_the_peer_provokes_are_counted_with_its_own() {
    let (most, calm) = (LIMITS.max_resets as usize, ErrorCode::ENHANCE_CALM);
    // A message after the half-close.
    let late = |count: u64| {
        let stream = 2 * count + 1;
        [call(stream, FLAG_END, b""), message(stream, FLAG_MESSAGE, b"late")].concat()
    };
    let (count, error) = refused_after(&mut server(), late);
    assert_eq!((count, error.code), (most, calm));
    // A message that is too large.
    let large = vec![0; LIMITS.max_message_bytes as usize];
    let too_large = |count: u64| {
        let stream = 2 * count + 1;
        let first = call(stream, FLAG_MESSAGE | FLAG_MORE, &large);
        [first, message(stream, FLAG_MESSAGE | FLAG_END, b"more")].concat()
    };
    let (count, error) = refused_after(&mut server(), too_large);
    assert_eq!((count, error.code), (most, calm));
    // A deadline that has passed before anybody could answer.
    let mut side = server();
    for count in 0..=most as u64 {
        side.read(call_within(2 * count + 1, 1)).unwrap();
    }
    let error = side.0.handle_timeout(seconds(1)).unwrap_err();
    assert_eq!(error.code, calm);
    // All in one bucket.
    let mut side = server();
    let (count, _) = refused_after(&mut side, |count| match count % 2 {
        0 => late(count),
        _ => [call(2 * count + 1, FLAG_END, b""), reset(2 * count + 1)].concat(),
    });
    assert_eq!(count, most);
}

/// The same bucket on the other side: a server that makes a client reset.
// spec: W9-07
#[test]
fn f18_a_server_that_provokes_resets_is_left() {
    let mut side = Side::new(Role::Client, LIMITS);
    let large = vec![0; 1 << 14];
    let mut refused = 0;
    let error = loop {
        side.call(true);
        let stream = 2 * refused + 1;
        side.read(message(stream, FLAG_MESSAGE | FLAG_MORE, &large)).unwrap();
        if let Err(error) = side.read(message(stream, FLAG_MESSAGE, b"more")) {
            break error;
        }
        side.said();
        refused += 1;
    };
    assert_eq!((refused, error.code), (u64::from(LIMITS.max_resets), ErrorCode::ENHANCE_CALM));
    // An answer gives room again.
    let mut side = Side::new(Role::Client, LIMITS);
    for count in 0..100 {
        side.call(true);
        side.read(message(4 * count + 1, FLAG_MESSAGE | FLAG_MORE, &large)).unwrap();
        side.read(message(4 * count + 1, FLAG_MESSAGE, b"more")).unwrap();
        side.said();
        side.call(true);
        side.read(frame(
            FrameType::STATUS,
            FLAG_END,
            4 * count + 3,
            &record(|out| {
                valkyrie_protocol::StatusRecord::from_status(&Status::new(Code::Ok, "")).encode(out);
            }),
            b"",
        ))
        .unwrap();
    }
}

/// A client and a server, and what is on the way between them.
struct Pair {
    client: Side,
    server: Side,
    to_server: BytesMut,
    started: Vec<StreamKey>,
}

impl Pair {
    fn new() -> Self {
        let [client, server] = [Role::Client, Role::Server].map(|role| Side::new(role, Limits::default()));
        Self { client, server, to_server: BytesMut::new(), started: Vec::new() }
    }

    fn client_turn(&mut self, now: Time) {
        if self.client.0.poll_timeout().is_some_and(|at| at <= now) {
            self.client.0.handle_timeout(now).unwrap();
        }
        for sent in self.client.sent(now, usize::MAX) {
            self.to_server.extend_from_slice(&sent.bytes);
        }
        self.client.events();
    }

    /// The server reads all there is; the client hears of it at once.
    fn server_turn(&mut self, now: Time) {
        self.server.0.handle_read(now, &mut self.to_server).unwrap();
        self.started.extend(keys(&mut self.server));
        for sent in self.server.sent(now, usize::MAX) {
            self.client.0.handle_read(now, &mut BytesMut::from(&sent.bytes[..])).unwrap();
        }
    }

    /// All that was given up ends, and calls go on.
    fn settles(&mut self, mut now: Time) {
        while self.server.0.streams() > 0 {
            now = self.client.0.poll_timeout().map_or(now, |at| at.max(now));
            self.client_turn(now);
            self.server_turn(now);
        }
        self.completes_a_call(now);
    }

    fn completes_a_call(&mut self, now: Time) {
        self.started.clear();
        self.client.open();
        self.client_turn(now);
        self.server_turn(now);
        self.server.0.respond(self.started[0], Ok(Finish::default()));
        self.server_turn(now);
        self.client_turn(now);
    }
}

/// Each is cancelled when its handler runs, none completes, and the server never has enough.
// spec: W9-15
#[test]
fn f18_a_client_that_cancels_without_end_keeps_its_connection() {
    let mut pair = Pair::new();
    let (mut now, mut started) = (Time::default(), 0);
    for _ in 0..10_000 {
        let key = pair.client.open();
        pair.client_turn(now);
        pair.server_turn(now);
        while pair.started.is_empty() {
            now = pair.client.0.poll_timeout().unwrap();
            pair.client_turn(now);
            pair.server_turn(now);
        }
        started += std::mem::take(&mut pair.started).len();
        pair.client.0.reset(key, ErrorCode::CANCEL);
        assert_eq!(pair.client.0.streams(), 0);
    }
    // All but the first went at the pace of what is forgiven, less an eighth of it, and the last ones have yet to go.
    let places = valkyrie_protocol::INITIAL.max_concurrent_streams as usize;
    assert_eq!((started, now.as_micros() / 1_000_000, pair.server.0.streams()), (10_000, 306, places));
    pair.settles(now);
}

/// What a server has not read yet it cannot forgive, however long it stands still.
// spec: W9-15
#[test]
fn f18_a_server_that_stands_still_is_not_sent_more_than_it_forgives_at_once() {
    let mut pair = Pair::new();
    for second in 0..100 {
        for _ in 0..100 {
            let key = pair.client.open();
            pair.client_turn(seconds(second));
            pair.client.0.reset(key, ErrorCode::CANCEL);
            pair.client_turn(seconds(second));
        }
    }
    pair.server_turn(seconds(100));
    let places = valkyrie_protocol::INITIAL.max_concurrent_streams;
    assert_eq!(pair.started.len() as u32, Limits::default().max_resets + places);
    assert_eq!(pair.server.0.streams() as u32, places);
    pair.settles(seconds(100));
}

/// An answer on the way makes the RESET needless, and the peer's own end does.
// spec: W9-15
#[test]
fn f18_a_reset_that_waits_is_dropped_when_the_call_ends_by_itself() {
    for end in [status(21, &Status::new(Code::Ok, ""), FLAG_END), reset(21)] {
        let mut side = Side::new(Role::Client, LIMITS);
        for _ in 0..=LIMITS.max_resets {
            let key = side.call(true);
            side.0.reset(key, ErrorCode::CANCEL);
            let said = side.said();
            assert!(said.iter().all(|(_, id, _)| *id < 21), "{said:?}");
        }
        assert_eq!(side.0.streams(), 0);
        // Of what comes of it meanwhile only the credit counts.
        side.read(message(21, FLAG_MESSAGE, b"late")).unwrap();
        side.read(end).unwrap();
        side.read(pong()).unwrap();
        assert_eq!(side.events(), []);
        // The clock that is left is of streams that stand still.
        assert_eq!((side.said().len(), side.0.poll_timeout()), (0, Some(seconds(30))));
    }
}

/// A connection that goes away keeps no place for what the peer never saw.
// spec: W9-15
#[test]
fn f18_a_reset_that_waits_is_dropped_with_the_streams_above_a_goaway() {
    let mut side = Side::new(Role::Client, LIMITS);
    for _ in 0..LIMITS.max_resets + 2 {
        let key = side.call(true);
        side.0.reset(key, ErrorCode::CANCEL);
        side.said();
    }
    let bye = GoAway { last_stream: 21, code: 0, message: "", extensions: Vec::new() };
    side.read(control(FrameType::GOAWAY, 0, |out| bye.encode(out))).unwrap();
    side.read(pong()).unwrap();
    let mut resets = Vec::new();
    while let Some(now) = side.0.poll_timeout() {
        side.0.handle_timeout(now).unwrap();
        for sent in side.sent(now, usize::MAX) {
            match sent.header.frame_type {
                FrameType::PING => side.read(pong()).unwrap(),
                _ => resets.push(sent.header.stream),
            }
        }
    }
    assert_eq!(resets, [21]);
}

/// What ran for a second is no way to make a server work for nothing: of that each side has its share.
// spec: W9-07
#[test]
fn f18_only_a_brief_deadline_that_passes_is_counted() {
    let most = LIMITS.max_resets;
    for (timeout_us, calm) in [(999_999, true), (1_000_000, false)] {
        let mut side = server();
        let mut said = Ok(());
        for count in 0..=u64::from(most) {
            side.read(call_within(2 * count + 1, timeout_us)).unwrap();
        }
        while let Some(at) = side.0.poll_timeout()
            && said.is_ok()
        {
            said = side.0.handle_timeout(at);
        }
        assert_eq!(said.is_err(), calm, "{timeout_us}");
        assert_eq!(side.0.streams(), 0);
    }
}

/// As many are cancelled as complete: nobody waits for time to pass.
// spec: W9-15
#[test]
fn f18_calls_that_complete_make_room_for_as_many_that_do_not() {
    let mut pair = Pair::new();
    for count in 0..10_000 {
        let now = Time::from_micros(count * 1_000);
        let key = pair.client.open();
        pair.completes_a_call(now);
        assert_eq!(pair.started.len(), 2);
        pair.client.0.reset(key, ErrorCode::CANCEL);
        pair.client_turn(now);
        pair.server_turn(now);
        let other = pair.started[1];
        pair.server.0.respond(other, Ok(Finish::default()));
        pair.server_turn(now);
    }
}

/// The peer counts a brief deadline that passes without a word of the client's: so there must be room before. A call that
/// was given up while it waits is never sent, those that wait are opened in their order, and nobody else waits for them.
// spec: W9-15
#[test]
fn f18_calls_with_a_brief_deadline_wait_for_room() {
    let limits = Limits { resets_per_second: 20, ..LIMITS };
    let mut side = Side::new(Role::Client, limits);
    let deadline = Some(Time::from_micros(999_999));
    let running: Vec<_> = (0..limits.max_resets).map(|_| side.open_until(deadline)).collect();
    assert_eq!(side.said().len() as u32, limits.max_resets);
    let waiting: Vec<_> = (0..4).map(|_| side.open_until(deadline)).collect();
    assert!(side.said().is_empty());
    side.call(true);
    side.0.reset(waiting[1], ErrorCode::CANCEL);
    assert!(side.said().is_empty());
    // Each has its room: no RESET waits.
    for key in running {
        side.0.reset(key, ErrorCode::CANCEL);
    }
    assert_eq!(side.said().iter().filter(|(kind, ..)| *kind == FrameType::RESET).count(), 10);
    side.read(pong()).unwrap();
    let mut opened = Vec::new();
    while opened.len() < 3 {
        let now = side.0.poll_timeout().unwrap();
        side.0.handle_timeout(now).unwrap();
        // Later than those that wait, and there is room at this moment.
        if opened.is_empty() {
            side.open_until(deadline);
        }
        for sent in side.sent(now, usize::MAX) {
            match sent.header.frame_type {
                FrameType::PING => side.read(pong()).unwrap(),
                _ => opened.push(sent.header.stream),
            }
        }
    }
    assert_eq!(opened, [23, 25, 27]);
    for (of, stream) in [(0, 23), (2, 25), (3, 27)] {
        side.0.reset(waiting[of], ErrorCode::CANCEL);
        let (kind, id, _) = side.said().remove(0);
        assert_eq!((kind, id), (FrameType::RESET, stream));
    }
}

/// Calls that are given up while they wait leave no more behind than those that still wait, which keep their order.
// spec: W9-15
#[test]
fn f18_calls_that_are_given_up_while_they_wait_for_room_make_way() {
    let mut side = Side::new(Role::Client, LIMITS);
    let deadline = Some(Time::from_micros(999_999));
    let running: Vec<_> = (0..LIMITS.max_resets).map(|_| side.open_until(deadline)).collect();
    side.said();
    let first = side.open_until(deadline);
    side.said();
    for _ in 0..1_000 {
        let key = side.open_until(deadline);
        assert!(side.said().is_empty());
        side.0.reset(key, ErrorCode::CANCEL);
    }
    let last = side.open_until(deadline);
    assert!(side.said().is_empty());
    // An end without a RESET is room for the next one, at once.
    for (of, opened) in [(0, first), (1, last)] {
        side.read(status(2 * of + 1, &Status::new(Code::Ok, ""), FLAG_END)).unwrap();
        let calls: Vec<_> = side.said().into_iter().filter(|(kind, ..)| *kind == FrameType::CALL).collect();
        assert_eq!(calls.len(), 1);
        side.0.reset(opened, ErrorCode::CANCEL);
        assert_eq!(side.said()[0].1, calls[0].1);
    }
    drop(running);
}

/// Called to open, a call may find that a RESET has taken its room meanwhile: it goes back to the front.
// spec: W9-15
#[test]
fn f18_a_call_whose_room_is_taken_is_still_the_next_one() {
    let mut side = Side::new(Role::Client, LIMITS);
    let deadline = Some(Time::from_micros(999_999));
    let long = side.call(true);
    let running: Vec<_> = (0..LIMITS.max_resets).map(|_| side.open_until(deadline)).collect();
    side.said();
    let waiting = [side.open_until(deadline), side.open_until(deadline)];
    assert!(side.said().is_empty());
    side.read(status(3, &Status::new(Code::Ok, ""), FLAG_END)).unwrap();
    side.0.reset(long, ErrorCode::CANCEL);
    let said = side.said();
    assert!(said.iter().all(|(kind, ..)| *kind != FrameType::CALL), "{said:?}");
    for (of, opened) in waiting.into_iter().enumerate() {
        side.read(status(5 + 2 * of as u64, &Status::new(Code::Ok, ""), FLAG_END)).unwrap();
        let said = side.said();
        assert_eq!(said.iter().filter(|(kind, ..)| *kind == FrameType::CALL).count(), 1, "{said:?}");
        side.0.reset(opened, ErrorCode::CANCEL);
        assert_eq!(side.said()[0].0, FrameType::RESET);
    }
    drop(running);
}

// spec: W7-14, W9-08
#[test]
fn f19_streams_beyond_the_limit_are_refused_and_the_connection_stays() {
    let limits = Limits { max_glitches: 1_000, ..LIMITS };
    let mut side = Side::new(Role::Server, limits);
    let most = u64::from(limits.max_concurrent_streams);
    for count in 0..most + 500 {
        side.read(call(2 * count + 1, FLAG_END, b"")).unwrap();
    }
    let held = keys(&mut side);
    assert_eq!(held.len() as u64, most);
    let refused = side.said();
    assert_eq!(refused.len(), 500);
    assert!(refused.iter().all(|(kind, stream, record)| {
        *kind == FrameType::RESET
            && *stream > 2 * most
            && valkyrie_protocol::Reset::decode(record).unwrap().code == ErrorCode::REFUSED.number()
    }));
    // Room for one is room for one.
    side.0.respond(held[0], Ok(Finish::default()));
    side.said();
    side.read(call(2 * (most + 500) + 1, FLAG_END, b"")).unwrap();
    assert_eq!(keys(&mut side).len(), 1);
    // Whoever goes on is not served at all.
    let (count, error) = refused_after(&mut side, |count| call(2 * (most + 501 + count) + 1, FLAG_END, b""));
    assert_eq!((count, error.code), (500, ErrorCode::ENHANCE_CALM));
}

// spec: W9-09
#[test]
fn f20_empty_and_short_fragments_have_a_budget_that_long_ones_fill() {
    for (len, most) in [(0, 10), (1, 10), (16, 10), (128, 20), (255, 2_560)] {
        let mut side = Side::new(Role::Server, Limits { max_message_bytes: 1 << 20, ..LIMITS });
        side.read(call(1, 0, b"")).unwrap();
        let short = message(1, FLAG_MESSAGE | FLAG_MORE, &vec![1; len]);
        let (count, error) = refused_after(&mut side, |_| short.clone());
        // One byte in a frame costs 255 of 2,560.
        assert_eq!((count, error.code), (most, ErrorCode::ENHANCE_CALM), "{len} bytes");
    }
    // As many as one likes, between long ones; and whole messages are not fragments, however short.
    let limits = Limits { stream_window_bytes: 1 << 20, connection_window_bytes: 1 << 20, ..LIMITS };
    let mut side = Side::new(Role::Server, limits);
    side.read(call(1, 0, b"")).unwrap();
    for _ in 0..1_000 {
        side.read(message(1, FLAG_MESSAGE, b"")).unwrap();
        side.read(message(1, FLAG_MESSAGE | FLAG_MORE, b"")).unwrap();
        side.read(message(1, FLAG_MESSAGE, &[1; 256])).unwrap();
        side.read(message(1, FLAG_MESSAGE | FLAG_MORE, &[1; 512])).unwrap();
        side.read(message(1, FLAG_MESSAGE, b"")).unwrap();
    }
}

// spec: W9-08
#[test]
fn f20_frames_that_say_nothing_are_glitches() {
    let mut side = server();
    side.read(call(1, 0, b"")).unwrap();
    let (count, error) = refused_after(&mut side, |_| message(1, 0, b""));
    assert_eq!((count, error.code), (10, ErrorCode::ENHANCE_CALM));
}

// spec: W9-05, W9-08
#[test]
fn f21_glitches_are_forgiven_with_time() {
    for glitch in [ping(), pong(), window(0, 1), window(0, 1 << 16)] {
        let mut side = server();
        let (count, error) = refused_after(&mut side, |_| glitch.clone());
        assert_eq!((count, error.code), (10, ErrorCode::ENHANCE_CALM));
    }
    // One a second is what the limits forgive.
    let mut side = server();
    let at = |side: &mut Side, second: u64| {
        side.0.handle_read(seconds(second), &mut BytesMut::from(&ping()[..])).inspect(|()| {
            side.said();
        })
    };
    for second in 0..1_000 {
        at(&mut side, second).unwrap();
    }
    for _ in 0..9 {
        at(&mut side, 1_000).unwrap();
    }
    at(&mut side, 1_001).unwrap();
    at(&mut side, 1_001).unwrap();
    assert_eq!(at(&mut side, 1_001).unwrap_err().code, ErrorCode::ENHANCE_CALM);
}

// spec: W9-08
#[test]
fn f21_a_pong_that_was_asked_for_is_none() {
    let mut side = server();
    for _ in 0..100 {
        side.0.ping(7);
        side.read(pong()).unwrap();
        assert_eq!(side.events(), [Event::Pong { data: 7 }]);
        side.said();
    }
}

/// Answers wait for a peer that does not read, and no further than the limit; what is to be written already stays
/// within the budget.
// spec: W9-10
#[test]
fn f21_answers_for_a_peer_that_does_not_read_are_bounded() {
    let limits = Limits { max_glitches: u32::MAX, ..LIMITS };
    let mut side = Side::new(Role::Server, limits);
    let mut out = TransmitBuffer::default();
    let budget = 16 << 10;
    let mut pings = 0;
    let error = loop {
        if let Err(error) = side.read(ping()) {
            break error;
        }
        pings += 1;
        side.0.poll_transmit(Time::default(), &mut out, budget);
        assert!(out.len() < budget + 100, "{} bytes wait", out.len());
    };
    assert_eq!(error.code, ErrorCode::ENHANCE_CALM);
    assert!(error.message.contains("does not read"), "{error}");
    assert!(pings < 1_000 + budget / 40 + 1, "{pings} pings");
}

// spec: W8-03, W9-08
#[test]
fn f22_credit_in_crumbs_is_a_glitch_and_too_much_is_an_error() {
    let mut side = server();
    let (count, error) = refused_after(&mut side, |count| window(0, (64 << 10) + 255 * (count + 1)));
    assert_eq!((count, error.code), (10, ErrorCode::ENHANCE_CALM));
    let mut side = server();
    for count in 1..1_000 {
        side.read(window(0, (64 << 10) + 256 * count)).unwrap();
    }
    let error = side.read(window(0, (1 << 32) + 1)).unwrap_err();
    assert_eq!(error.code, ErrorCode::FLOW_CONTROL);
}

/// A call whose answer is so many messages of 16 KiB, more than the peer's windows hold.
fn stalled(limits: Limits, messages: usize) -> (Side, StreamKey) {
    let mut side = Side::new(Role::Server, limits);
    side.read(call(1, FLAG_END, b"")).unwrap();
    let key = keys(&mut side)[0];
    for _ in 0..messages {
        side.0.send(key, Bytes::from(vec![1; 16 << 10])).unwrap();
    }
    side.said();
    (side, key)
}

/// Lets time pass until something happens or nothing is left to wait for.
fn events_until(connection: &mut Connection, end: Time) -> Vec<(Time, Event)> {
    let mut seen = Vec::new();
    while let Some(at) = connection.poll_timeout().filter(|at| *at <= end) {
        connection.handle_timeout(at).unwrap();
        seen.extend(std::iter::from_fn(|| connection.poll_event()).map(|event| (at, event)));
    }
    seen
}

// spec: W9-11
#[test]
fn f22_a_stream_that_stands_still_ends_and_one_that_moves_does_not() {
    let limits = Limits::default();
    // The peer's windows are the least, and it never raises them.
    let window_bytes = 64 << 10;
    let (mut side, key) = stalled(limits, 8);
    let seen = events_until(&mut side.0, seconds(10_000));
    let [(at, Event::Reset { key: ended, status, unprocessed: false })] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!((*ended, status.reason()), (key, Reason::ENHANCE_CALM));
    assert_eq!(*at, Time::default().after(limits.stall_timeout));
    let said = side.said();
    assert_eq!((said[0].0, said[0].1), (FrameType::RESET, 1));
    assert_eq!((side.0.streams(), side.0.poll_timeout()), (0, None));

    // Bit by bit is slow, and not still. Of seven messages half goes at once: all but the eighth of the window.
    let (mut side, _) = stalled(limits, 7);
    for step in 1..=224 {
        let now = seconds(step * 299);
        assert_eq!(events_until(&mut side.0, now), []);
        let offset = window_bytes + 256 * step;
        side.0
            .handle_read(now, &mut BytesMut::from(&[window(0, offset), window(1, offset)].concat()[..]))
            .unwrap();
        let mut out = TransmitBuffer::default();
        side.0.poll_transmit(now, &mut out, usize::MAX);
        assert_eq!(out.len(), 256 + 40);
    }
    assert_eq!(events_until(&mut side.0, seconds(1_000_000)), []);
}

// spec: W9-11
#[test]
fn f22_a_message_that_never_ends_is_not_kept_for_ever() {
    let limits = Limits::default();
    let mut side = Side::new(Role::Server, limits);
    side.read(call(1, FLAG_MESSAGE | FLAG_MORE, &[1; 60_000])).unwrap();
    // As slow as it goes: one fragment each 299 s.
    for step in 1..=10 {
        let now = seconds(299 * step);
        assert_eq!(events_until(&mut side.0, now), []);
        let fragment = message(1, FLAG_MESSAGE | FLAG_MORE, &[1; 1_000]);
        side.0.handle_read(now, &mut BytesMut::from(&fragment[..])).unwrap();
    }
    side.said();
    assert_eq!(events_until(&mut side.0, seconds(2_990 + 299)), []);
    assert_eq!(side.0.streams(), 1);
    // Nobody was told of the call, so that nobody is told of its end but the peer.
    assert_eq!(events_until(&mut side.0, seconds(2_990 + 300)), []);
    assert_eq!((side.0.streams(), side.0.poll_timeout()), (0, None));
    let said = side.said();
    assert_eq!((said[0].0, said[0].1), (FrameType::RESET, 1));
}

// spec: W9-11
#[test]
fn f22_a_stream_that_stands_still_ends_sooner_when_much_is_held() {
    let limits = Limits { max_unsent_bytes: 1 << 17, ..Limits::default() };
    let (mut side, _) = stalled(limits, 13);
    let seen = events_until(&mut side.0, seconds(10_000));
    assert_eq!(seen[0].0, Time::default().after(limits.stall_timeout_pressed));
    // A handler that took its time is not a stream that stands still.
    let mut side = Side::new(Role::Server, limits);
    side.read(call(1, FLAG_END, b"")).unwrap();
    let key = keys(&mut side)[0];
    assert_eq!(events_until(&mut side.0, seconds(100_000)), []);
    side.0.respond(key, Ok(Finish::default()));
    side.0.handle_timeout(seconds(200_000)).unwrap();
    assert_eq!(side.said()[0].0, FrameType::STATUS);
}

// spec: W7-10
#[test]
fn f23_an_answer_has_one_head_and_it_comes_first() {
    let head = || {
        let head = Head { metadata: Vec::new(), extensions: Vec::new() };
        frame(FrameType::HEAD, 0, 1, &record(|out| head.encode(out)), b"")
    };
    for first in [head(), message(1, FLAG_MESSAGE, b"first")] {
        let mut side = Side::new(Role::Client, LIMITS);
        side.call(true);
        side.read(first).unwrap();
        let error = side.read(head()).unwrap_err();
        assert_eq!((error.code, error.reason), (ErrorCode::PROTOCOL, Reason::STREAM_STATE));
    }
}

// spec: W9-13
#[test]
fn f23_a_stranger_gets_the_least_room_for_its_hello() {
    let limits = Limits { max_metadata_bytes: 1 << 20, ..LIMITS };
    let mut connection = Connection::new(Config { limits, ..Config::new(Role::Server) }, Time::default());
    let mut hello = BytesMut::from(&frame(FrameType::HELLO, 0, 0, &vec![0; (16 << 10) + 1], b"")[..]);
    let error = connection.handle_read(Time::default(), &mut hello).unwrap_err();
    assert_eq!(error.code, ErrorCode::FRAME_SIZE);
}

/// The deadline of a call ends it without an event of the peer's, whatever the peer sends of it.
// spec: W7-17
#[test]
fn f25_a_deadline_that_passed_or_never_will() {
    for (timeout_us, ended) in [(1, true), (1_000, true), (u64::MAX, false), (1 << 63, false)] {
        let mut side = server();
        side.read(call_within(1, timeout_us)).unwrap();
        let key = keys(&mut side)[0];
        let seen = events_until(&mut side.0, seconds(1));
        assert_eq!(!seen.is_empty(), ended, "{timeout_us}");
        assert_eq!(side.0.streams(), usize::from(!ended), "{timeout_us}");
        if ended {
            assert!(matches!(&seen[0].1, Event::Reset { key: of, status, .. }
                if *of == key && status.code() == Code::DeadlineExceeded));
        }
    }
}

/// Feeds one byte of a large frame at each of the given seconds; when that was refused.
fn slow_frame(gap: Duration, bytes: usize) -> Option<(Time, ConnectionError)> {
    let whole = call(1, FLAG_MESSAGE | FLAG_END, &vec![1; 64 << 10]);
    let mut side = Side::new(Role::Server, Limits::default());
    let mut buffer = BytesMut::new();
    let mut now = Time::default();
    for piece in whole.chunks(bytes) {
        buffer.extend_from_slice(piece);
        side.0.handle_read(now, &mut buffer).unwrap();
        now = now.after(gap);
        // Turns without a byte do not count.
        side.0.handle_read(now, &mut buffer).unwrap();
        if let Some(at) = side.0.poll_timeout().filter(|at| *at <= now) {
            return side.0.handle_timeout(at).err().map(|error| (at, error));
        }
    }
    assert!(buffer.is_empty());
    None
}

// spec: W9-06
#[test]
fn f27_a_frame_that_takes_long_must_come_at_a_pace() {
    // Silence in the middle.
    let (at, error) = slow_frame(Duration::from_secs(3_600), 10_000).unwrap();
    assert_eq!((at, error.reason), (seconds(10), Reason::FRAME_TIMEOUT));
    // A byte every nine seconds keeps the clock of silence away, and no other.
    let (at, error) = slow_frame(Duration::from_secs(9), 1).unwrap();
    assert_eq!((at, error.reason), (seconds(30), Reason::FRAME_TIMEOUT));
    // As slow as it goes within 30 s, and 1,024 bytes a second from then on.
    assert_eq!(slow_frame(Duration::from_secs(1), 1_100), None);
    let (at, _) = slow_frame(Duration::from_secs(9), 9_000).unwrap();
    assert_eq!(at, Time::from_micros(36_000 * 1_000_000 / 1_024));
}

/// What a status cuts off is not a fragment that was missing.
// spec: W8-04
#[test]
fn f20_a_refused_message_returns_its_credit() {
    let mut side = Side::new(Role::Client, LIMITS);
    for count in 0..100 {
        side.call(true);
        side.read(message(2 * count + 1, FLAG_MESSAGE | FLAG_MORE, &[1; 16 << 10])).unwrap();
        side.read(status(2 * count + 1, &Status::new(Code::Aborted, ""), FLAG_END)).unwrap();
        side.events();
        side.said();
    }
    assert_eq!(side.0.streams(), 0);
}

/// A PONG of a PING that went before is not the answer that the account waits for.
// spec: W9-15
#[test]
fn f18_resets_are_forgiven_with_the_pong_of_the_ping_behind_them() {
    let mut side = Side::new(Role::Client, LIMITS);
    side.0.ping(1);
    side.said();
    for _ in 0..=LIMITS.max_resets {
        let key = side.call(true);
        side.0.reset(key, ErrorCode::CANCEL);
        side.said();
    }
    let resets = |side: &mut Side, now: Time| {
        side.0.handle_timeout(now).unwrap();
        side.sent(now, usize::MAX).iter().filter(|sent| sent.header.frame_type == FrameType::RESET).count()
    };
    side.0.handle_timeout(seconds(1)).unwrap();
    side.said();
    side.read(pong()).unwrap();
    assert_eq!(resets(&mut side, seconds(60)), 0, "the first PONG tells nothing of the resets");
    side.read(pong()).unwrap();
    assert_eq!(resets(&mut side, seconds(120)), 1, "the one that waited");
}

/// Calls for which there is no room to wait are refused, and so is a client that does nothing else.
#[test]
fn f17_calls_beyond_what_may_wait_are_refused_until_the_connection_is() {
    let mut side = server();
    let beyond = LIMITS.max_buffered_bytes as usize + 1;
    for id in 0..100_000 {
        side.read(call(1 + 2 * id, FLAG_END, b"")).unwrap();
        let seen = side.events();
        let [Event::Call { key, .. }] = seen[..] else { panic!("{seen:?}") };
        assert!(!side.0.set_aside(key, beyond));
        if side.0.state() == ConnectionState::Closed {
            assert!(id > 10, "after {id} calls");
            return;
        }
    }
    panic!("it goes on for ever");
}
