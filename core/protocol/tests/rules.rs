//! The rules of PROTOCOL.md that need a connection and more than one frame, one test for each; what a single frame shows
//! is in the vectors.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use side::{Sent, Side, call, frame, hello, message, record, reset, status};
use valkyrie_protocol::{
    Call, Code, Config, Connection, ConnectionState, ErrorCode, Event, FLAG_END, FLAG_MESSAGE, FLAG_MORE,
    Finish, FrameType, GoAway, HEADER_LEN, Head, Hello, INITIAL, Limits, Metadata, OPTIONAL_ID, Opened, Ping,
    Priority, Reason, Reset, Role, Status, StatusRecord, Time, Window,
};

mod side;

const AT_ONCE: Time = Time::from_micros(0);

fn opened(message: Option<Bytes>, priority: Priority) -> Opened {
    let method = Bytes::from_static(b"/m");
    Opened { method, metadata: Metadata::new(), priority, deadline: None, message, end: true }
}

fn open_many(caller: &mut Side, count: usize, priority: Priority) {
    for _ in 0..count {
        caller.0.open(opened(None, priority)).unwrap();
    }
}

fn kinds(sent: &[Sent]) -> Vec<FrameType> {
    sent.iter().map(|sent| sent.header.frame_type).collect()
}

fn hello_with(features: u64, settings: Vec<(u32, u64)>) -> Vec<u8> {
    let hello = Hello { min_version: 1, max_version: 1, features, settings, extensions: Vec::new() };
    frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"")
}

fn go_away(last_stream: u64, code: ErrorCode) -> Vec<u8> {
    let go_away = GoAway { last_stream, code: code.number(), message: "as asked", extensions: Vec::new() };
    frame(FrameType::GOAWAY, 0, 0, &record(|out| go_away.encode(out)), b"")
}

fn window(stream: u64, offset: u64) -> Vec<u8> {
    let window = Window { offset, extensions: Vec::new() };
    frame(FrameType::WINDOW, 0, stream, &record(|out| window.encode(out)), b"")
}

/// A status that is well, without anything.
fn ok() -> StatusRecord<'static> {
    StatusRecord {
        code: 0,
        reason: 0,
        message: "",
        details: Vec::new(),
        pushback_ms: None,
        metadata: Vec::new(),
        trailers: Vec::new(),
        extensions: Vec::new(),
    }
}

fn server() -> Side {
    Side::new(Role::Server, Limits::default())
}

fn client() -> Side {
    Side::new(Role::Client, Limits::default())
}

/// Every kind of frame that both sides send, as it stands on the wire.
// spec: W1-01, W6-01, W6-05, W7-11, W7-12, W12-01
#[test]
fn what_is_sent_has_zeros_where_the_page_has_none() {
    let mut client = Side(Connection::new(Config::new(Role::Client), Time::default()));
    let limits = Limits { connection_window_bytes: 64 << 10, ..Limits::default() };
    let mut server = Side(Connection::new(Config { limits, ..Config::new(Role::Server) }, Time::default()));
    let mut kinds_seen = Vec::new();
    let mut carry = |from: &mut Side, to: &mut Side| {
        let greeted = to.0.state() != ConnectionState::Handshaking;
        for (index, sent) in from.sent(AT_ONCE, usize::MAX).into_iter().enumerate() {
            assert_eq!(sent.header.frame_type == FrameType::HELLO, index == 0 && !greeted);
            assert_eq!(sent.bytes[..5], [0xF6, b'V', b'L', b'K', 1]);
            assert_eq!(sent.bytes[25..32], [0; 7], "epoch and reserved bytes");
            assert_eq!(sent.header.flags & !(FLAG_END | FLAG_MESSAGE | FLAG_MORE), 0);
            if sent.header.frame_type == FrameType::STATUS {
                assert!(sent.header.has(FLAG_END));
                let code = StatusRecord::decode(&sent.record).unwrap().code;
                assert!(code == 0 || !sent.header.has(FLAG_MESSAGE));
            }
            if sent.header.frame_type == FrameType::CALL {
                let call = Call::decode(&sent.record).unwrap();
                assert_eq!((call.codec, call.schema), (0, 0));
            }
            kinds_seen.push(sent.header.frame_type);
            to.read(sent.bytes).unwrap();
        }
        to.events()
    };
    let unary = client.0.open(opened(Some(Bytes::from(vec![7; 10_000])), Priority::Bulk)).unwrap();
    client.0.open(Opened { end: false, ..opened(None, Priority::Critical) }).unwrap();
    client.0.ping(7);
    let mut calls = Vec::new();
    for event in carry(&mut client, &mut server) {
        if let Event::Call { key, priority, .. } = event {
            calls.push((priority, key));
        }
    }
    calls.sort();
    let [(Priority::Critical, streaming), (Priority::Bulk, first)] = calls[..] else { panic!("{calls:?}") };
    server.0.send_head(streaming, Metadata::new()).unwrap();
    server.0.send(streaming, Bytes::from(vec![7; 100_000])).unwrap();
    server.0.respond(first, Err(Status::new(Code::NotFound, "none")));
    carry(&mut server, &mut client);
    assert_eq!(client.0.streams(), 1, "{unary:?} has ended");
    server.0.consumed(first, 10_000);
    server.0.reset(streaming, ErrorCode::INTERNAL);
    server.0.go_away("enough");
    carry(&mut server, &mut client);
    for kind in [
        FrameType::HELLO,
        FrameType::PING,
        FrameType::PONG,
        FrameType::GOAWAY,
        FrameType::WINDOW,
        FrameType::CALL,
        FrameType::HEAD,
        FrameType::MESSAGE,
        FrameType::STATUS,
        FrameType::RESET,
    ] {
        assert!(kinds_seen.contains(&kind), "{kind:?} was not sent");
    }
}

/// A frame with two faults gets the code of the one that is looked for first.
// spec: W1-02, W1-11
#[test]
fn the_checks_come_in_their_order() {
    // Each fault is made by changing the same frame; the last two leave the header's checksum to the end.
    type Fault = (&'static str, ErrorCode, fn(&mut Vec<u8>));
    let faults: [Fault; 9] = [
        ("magic", ErrorCode::MAGIC, |frame| frame[3] = b'X'),
        ("header_crc", ErrorCode::CHECKSUM, |frame| frame[39] ^= 1),
        ("version", ErrorCode::VERSION, |frame| frame[4] = 9),
        ("reserved", ErrorCode::PROTOCOL, |frame| frame[30] = 1),
        ("length", ErrorCode::FRAME_SIZE, |frame| frame[19] = 0xff),
        ("epoch", ErrorCode::PROTOCOL, |frame| frame[25] = 1),
        ("type", ErrorCode::UNKNOWN_FRAME, |frame| frame[5] = 0x42),
        ("flags", ErrorCode::PROTOCOL, |frame| frame[6] = 4),
        ("payload_crc", ErrorCode::CHECKSUM, |frame| frame[33] ^= 1),
    ];
    let broken = |chosen: &[&Fault]| {
        let mut frame = call(1, FLAG_MESSAGE | FLAG_END, b"x");
        let changes = chosen.iter().filter(|(what, ..)| *what != "header_crc");
        changes.for_each(|(_, _, change)| change(&mut frame));
        let crc = crc32c::crc32c(&frame[..36]);
        frame[36..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        for (what, _, change) in chosen {
            if *what == "header_crc" {
                change(&mut frame);
            }
        }
        frame
    };
    for (index, first) in faults.iter().enumerate() {
        assert_eq!(server().read(broken(&[first])).unwrap_err().code, first.1, "{}", first.0);
        for second in &faults[index + 1..] {
            let error = server().read(broken(&[first, second])).unwrap_err();
            assert_eq!(error.code, first.1, "{} before {}: {error}", first.0, second.0);
        }
    }
    // Before HELLO: behind the length, ahead of the type.
    let mut fresh = Side(Connection::new(Config::new(Role::Server), Time::default()));
    assert_eq!(fresh.read(broken(&[&faults[6]])).unwrap_err().code, ErrorCode::PROTOCOL);
    let mut fresh = Side(Connection::new(Config::new(Role::Server), Time::default()));
    assert_eq!(fresh.read(broken(&[&faults[4]])).unwrap_err().code, ErrorCode::FRAME_SIZE);
}

// spec: W2-01
#[test]
fn the_checksum_is_castagnolis() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    // By the definition, over a frame of ours.
    let bitwise = |bytes: &[u8]| {
        let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
    };
    let mut client = client();
    client.0.open(opened(Some(Bytes::from(vec![7; 20_000])), Priority::Normal)).unwrap();
    let sent = client.sent(AT_ONCE, 1);
    let frame = &sent[0].bytes;
    assert_eq!(frame[32..36], bitwise(&frame[HEADER_LEN..]).to_le_bytes());
    assert_eq!(frame[36..40], bitwise(&frame[..36]).to_le_bytes());
}

// spec: W3-01, W3-02, W3-03
#[test]
fn flags_that_do_not_fit_are_refused_where_the_frame_itself_would_do() {
    let ok = record(|out| ok().encode(out));
    let head = record(|out| Head { metadata: Vec::new(), extensions: Vec::new() }.encode(out));
    let cancel = record(|out| Reset { code: 11, extensions: Vec::new() }.encode(out));
    let credit = record(|out| Window { offset: 1 << 20, extensions: Vec::new() }.encode(out));
    for (role, frame_type, flags, record, payload) in [
        (Role::Server, FrameType::MESSAGE, 0, &b""[..], &b"x"[..]),
        (Role::Server, FrameType::MESSAGE, FLAG_END, b"", b"x"),
        (Role::Server, FrameType::MESSAGE, FLAG_MORE, b"", b""),
        (Role::Server, FrameType::MESSAGE, FLAG_MESSAGE | FLAG_MORE | FLAG_END, b"", b"x"),
        (Role::Client, FrameType::STATUS, FLAG_END, &ok, b"x"),
        (Role::Client, FrameType::STATUS, FLAG_MESSAGE | FLAG_MORE, &ok, b"x"),
        (Role::Client, FrameType::HEAD, FLAG_END, &head, b""),
        (Role::Client, FrameType::RESET, FLAG_END, &cancel, b""),
        (Role::Client, FrameType::WINDOW, FLAG_MESSAGE, &credit, b""),
    ] {
        let mut side = Side::new(role, Limits::default());
        match role {
            Role::Server => side.called(0),
            Role::Client => side.call(false),
        };
        let error = side.read(frame(frame_type, flags, 1, record, payload)).unwrap_err();
        assert_eq!(error.reason, Reason::PROTOCOL_VIOLATION, "{frame_type:?}, {flags:#x}: {error}");
    }
}

// spec: W4-01
#[test]
fn an_unknown_optional_frame_is_skipped_whatever_is_in_it() {
    for frame_type in 0x80..=0xffu8 {
        let mut side = server();
        side.called(0);
        for (flags, stream) in [(0, 0), (0xffff, 1), (FLAG_MORE | FLAG_END, 2), (0x8000, u64::MAX)] {
            side.read(frame(FrameType(frame_type), flags, stream, b"\xff\xff", b"payload")).unwrap();
        }
        assert_eq!((side.events(), side.said()), (vec![], vec![]), "{frame_type:#04x}");
        side.read(message(1, FLAG_MESSAGE, b"and on")).unwrap();
        assert_eq!(side.events().len(), 1);
    }
}

// spec: W4-04
#[test]
fn a_ping_is_answered_with_its_data_and_nothing_else() {
    let mut side = server();
    let ping = Ping { data: u64::MAX, extensions: vec![(OPTIONAL_ID | 3, b"to be ignored")] };
    side.read(frame(FrameType::PING, 0, 0, &record(|out| ping.encode(out)), b"")).unwrap();
    let pong = Ping { data: u64::MAX, extensions: Vec::new() };
    assert_eq!(side.said(), [(FrameType::PONG, 0, record(|out| pong.encode(out)))]);
    // And a PONG is told and not answered.
    side.0.ping(u64::MAX);
    side.said();
    side.read(frame(FrameType::PONG, 0, 0, &record(|out| pong.encode(out)), b"")).unwrap();
    assert_eq!((side.events(), side.said()), (vec![Event::Pong { data: u64::MAX }], vec![]));
}

// spec: W5-05
#[test]
fn an_optional_extension_is_ignored_in_every_record() {
    let extensions = || vec![(OPTIONAL_ID | 5, &b"later"[..]), (u32::MAX, b"")];
    let mut side = Side(Connection::new(Config::new(Role::Client), Time::default()));
    let key = side.0.open(opened(None, Priority::Normal)).unwrap();
    side.0.ping(1);
    side.said();
    let hello =
        Hello { min_version: 1, max_version: 1, features: 0, settings: Vec::new(), extensions: extensions() };
    let ping = Ping { data: 1, extensions: extensions() };
    let window = Window { offset: 1, extensions: extensions() };
    let head = Head { metadata: Vec::new(), extensions: extensions() };
    let status = StatusRecord { extensions: extensions(), ..ok() };
    let go_away = GoAway { last_stream: 1, code: 0, message: "", extensions: extensions() };
    for (frame_type, flags, stream, record) in [
        (FrameType::HELLO, 0, 0, record(|out| hello.encode(out))),
        (FrameType::PONG, 0, 0, record(|out| ping.encode(out))),
        (FrameType::WINDOW, 0, 1, record(|out| window.encode(out))),
        (FrameType::HEAD, 0, 1, record(|out| head.encode(out))),
        (FrameType::STATUS, FLAG_END, 1, record(|out| status.encode(out))),
        (FrameType::GOAWAY, 0, 0, record(|out| go_away.encode(out))),
    ] {
        side.read(frame(frame_type, flags, stream, &record, b"")).unwrap();
    }
    let events = side.events();
    assert_eq!(events[0], Event::Connected);
    assert_eq!(events[1], Event::Pong { data: 1 });
    assert_eq!(events[2], Event::Head { key, metadata: Metadata::new() });
    assert_eq!(events[3], Event::Ended { key, outcome: Ok(Finish::default()) });
    assert!(matches!(events[4], Event::GoAway { .. }) && events.len() == 5);

    let mut side = server();
    let call = Call {
        method: "/m",
        timeout_us: 0,
        codec: 0,
        schema: 0,
        metadata: Vec::new(),
        extensions: extensions(),
    };
    let reset = Reset { code: ErrorCode::CANCEL.number(), extensions: extensions() };
    side.read(frame(FrameType::CALL, 0, 1, &record(|out| call.encode(out)), b"")).unwrap();
    side.read(frame(FrameType::RESET, 0, 1, &record(|out| reset.encode(out)), b"")).unwrap();
    assert!(matches!(side.events()[..], [Event::Call { .. }, Event::Reset { .. }]));
}

// spec: W5-09
#[test]
fn metadata_keeps_its_order_and_repeated_keys() {
    let entries = [("b", "1"), ("a", "2"), ("b", "3"), ("a-bin", "4"), ("b", "1")];
    let metadata = entries.iter().fold(Metadata::new(), |all, (key, value)| all.with(key, *value).unwrap());
    let mut caller = client();
    caller.0.open(Opened { metadata, ..opened(None, Priority::Normal) }).unwrap();
    let mut side = server();
    side.read(caller.sent(AT_ONCE, usize::MAX).remove(0).bytes).unwrap();
    match &side.events()[..] {
        [Event::Call { metadata, .. }] => {
            let read: Vec<_> =
                metadata.iter().map(|(key, value)| (key, std::str::from_utf8(value).unwrap())).collect();
            assert_eq!(read, entries);
        }
        other => panic!("{other:?}"),
    }
}

// spec: W6-07
#[test]
fn unknown_feature_bits_are_ignored_and_none_is_offered() {
    let mut side = Side(Connection::new(Config::new(Role::Server), Time::default()));
    let said = side.said();
    assert_eq!(Hello::decode(&said[0].2).unwrap().features, 0);
    side.read(hello_with(u64::MAX, Vec::new())).unwrap();
    assert_eq!(side.events(), [Event::Connected]);
    side.called(FLAG_END);
}

// spec: W6-09
#[test]
fn unknown_optional_settings_are_ignored() {
    let mut side = Side(Connection::new(Config::new(Role::Client), Time::default()));
    let optional = OPTIONAL_ID | 1;
    side.read(hello_with(0, vec![(optional, 0), (2, 20_000), (optional, u64::MAX), (u32::MAX, 7)])).unwrap();
    assert_eq!(*side.0.peer_limits(), Limits { max_message_bytes: 20_000, ..INITIAL });
}

// spec: W6-10
#[test]
fn settings_hold_within_their_ranges_and_not_beyond() {
    let table = [
        (1, 16_384u64, u64::from(u32::MAX)),
        (2, 16_384, u64::from(u32::MAX)),
        (3, 16_384, u64::from(u32::MAX)),
        (4, 100, u64::from(u32::MAX)),
        (5, 65_536, 1 << 31),
        (6, 65_536, 1 << 31),
    ];
    let greet = |settings| {
        let mut side = Side(Connection::new(Config::new(Role::Client), Time::default()));
        side.read(hello_with(0, settings)).map(|()| *side.0.peer_limits()).map_err(|error| error.code)
    };
    for (id, least, most) in table {
        assert!(greet(vec![(id, least)]).is_ok() && greet(vec![(id, most)]).is_ok(), "setting {id}");
        for wrong in [0, least - 1, most + 1, u64::MAX] {
            assert_eq!(greet(vec![(id, wrong)]), Err(ErrorCode::SETTING), "setting {id} of {wrong}");
        }
        assert_eq!(greet(vec![(id, least), (id, least)]), Err(ErrorCode::SETTING), "setting {id} twice");
    }
    assert_eq!(greet(vec![(7, 1)]), Err(ErrorCode::SETTING));
    assert_eq!(greet(vec![(1, u64::from(u32::MAX))]).unwrap().max_frame_bytes, 1 << 20);
    assert_eq!(greet(Vec::new()), Ok(INITIAL));
}

/// A first flight goes out before the peer has said anything, within what every peer takes.
// spec: W6-11
#[test]
fn a_first_flight_stays_within_what_every_peer_takes() {
    let mut caller = Side(Connection::new(Config::new(Role::Client), Time::default()));
    for _ in 0..150 {
        caller.0.open(opened(Some(Bytes::from(vec![7; 10_000])), Priority::Normal)).unwrap();
    }
    let first = caller.sent(AT_ONCE, usize::MAX);
    let calls = first.iter().filter(|sent| sent.header.frame_type == FrameType::CALL).count();
    let bytes: usize = first.iter().map(|sent| sent.payload.len()).sum();
    assert_eq!((calls, bytes), (6, 65_536 - 8_192), "as many calls as the window has room for");
    let mut caller = Side(Connection::new(Config::new(Role::Client), Time::default()));
    open_many(&mut caller, 150, Priority::Normal);
    assert_eq!(caller.said().len(), 1 + 100);
    let large = Metadata::new().with("k", vec![b'v'; 17_000]).unwrap();
    let refused = caller.0.open(Opened { metadata: large, ..opened(None, Priority::Normal) });
    assert_eq!(refused.unwrap_err().reason(), Reason::METADATA_TOO_LARGE);
    // The peer's settings open what waits.
    caller.read(hello_with(0, vec![(4, 120)])).unwrap();
    assert_eq!(caller.said().len(), 20);
}

// spec: W6-12
#[test]
fn a_sender_stays_within_the_peers_settings() {
    let mut caller = Side(Connection::new(Config::new(Role::Client), Time::default()));
    caller.read(hello_with(0, vec![(1, 20_000), (2, 50_000), (3, 20_000), (4, 101)])).unwrap();
    caller.said();
    caller.0.open(opened(Some(Bytes::from(vec![7; 50_000])), Priority::Normal)).unwrap();
    let lens: Vec<usize> = caller.sent(AT_ONCE, usize::MAX).iter().map(|sent| sent.payload.len()).collect();
    assert_eq!(lens, [20_000, 20_000, 10_000]);
    let refused = caller.0.open(opened(Some(Bytes::from(vec![7; 50_001])), Priority::Normal));
    assert_eq!(refused.unwrap_err().reason(), Reason::MESSAGE_TOO_LARGE);
    let large = Metadata::new().with("k", vec![b'v'; 20_000]).unwrap();
    let refused = caller.0.open(Opened { metadata: large, ..opened(None, Priority::Normal) });
    assert_eq!(refused.unwrap_err().reason(), Reason::METADATA_TOO_LARGE);
    open_many(&mut caller, 150, Priority::Normal);
    assert_eq!(caller.said().len(), 100, "one was open already");
    // Two end, and two that waited take their place.
    caller.read(reset(1)).unwrap();
    caller.read(reset(3)).unwrap();
    assert_eq!(caller.said().len(), 2);
}

// spec: W7-02
#[test]
fn a_stream_that_a_server_opens_is_refused_and_nothing_else() {
    let mut side = client();
    side.read(call(2, FLAG_MESSAGE | FLAG_END, b"x")).unwrap();
    let refused = Reset { code: ErrorCode::REFUSED.number(), extensions: Vec::new() };
    assert_eq!(side.said(), [(FrameType::RESET, 2, record(|out| refused.encode(out)))]);
    assert_eq!(side.events(), []);
    assert_eq!(side.0.state(), ConnectionState::Open);
}

// spec: W7-03
#[test]
fn an_empty_message_is_not_no_message() {
    let first = |message: Option<&'static [u8]>| {
        let mut caller = client();
        caller.0.open(opened(message.map(Bytes::from_static), Priority::Normal)).unwrap();
        let mut side = server();
        side.read(caller.sent(AT_ONCE, usize::MAX).remove(0).bytes).unwrap();
        match side.events().remove(0) {
            Event::Call { key, message, .. } => {
                side.0.respond(key, Ok(Finish { message: message.clone(), ..Finish::default() }));
                caller.read(side.sent(AT_ONCE, usize::MAX).remove(0).bytes).unwrap();
                match caller.events().remove(0) {
                    Event::Ended { outcome, .. } => assert_eq!(outcome.unwrap().message, message),
                    other => panic!("{other:?}"),
                }
                message
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(first(None), None);
    assert_eq!(first(Some(b"")), Some(Bytes::new()));
}

// spec: W7-10
#[test]
fn a_head_comes_ahead_of_the_answer() {
    let head = Head { metadata: Vec::new(), extensions: Vec::new() };
    let head = frame(FrameType::HEAD, 0, 1, &record(|out| head.encode(out)), b"");
    let mut side = client();
    let key = side.call(false);
    side.read(message(1, FLAG_MESSAGE | FLAG_MORE, b"x")).unwrap();
    assert_eq!(side.read(head.clone()).unwrap_err().code, ErrorCode::PROTOCOL);
    // What the caller itself sends does not begin the answer.
    let mut side = client();
    assert_eq!(side.call(false), key);
    side.0.send(key, Bytes::from_static(b"x")).unwrap();
    side.read(head).unwrap();
    // And a sender keeps to it.
    let mut side = server();
    let key = side.called(0);
    side.0.send(key, Bytes::from_static(b"x")).unwrap();
    assert_eq!(side.0.send_head(key, Metadata::new()).unwrap_err().reason(), Reason::STREAM_MISUSE);
}

// spec: W7-13
#[test]
fn a_reset_ends_both_directions() {
    let mut side = server();
    let key = side.called(0);
    side.0.send(key, Bytes::from(vec![7; 200_000])).unwrap();
    side.read(reset(1)).unwrap();
    match &side.events()[..] {
        [Event::Reset { key: ended, status, unprocessed: false }] if *ended == key => {
            assert_eq!(status.reason(), Reason::CANCELLED);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((side.said(), side.0.streams()), (vec![], 0), "nothing more is sent");
    side.read(message(1, FLAG_MESSAGE | FLAG_END, b"x")).unwrap();
    assert_eq!(side.events(), []);
}

// spec: W7-14
#[test]
fn a_stream_too_many_is_refused_unprocessed() {
    let limits = Limits { max_concurrent_streams: 100, ..Limits::default() };
    let mut side = Side::new(Role::Server, limits);
    for index in 0..101 {
        side.read(call(1 + 2 * index, FLAG_END, b"")).unwrap();
    }
    assert_eq!(side.events().len(), 100);
    let said = side.said();
    assert_eq!(said.len(), 1);
    assert_eq!(Reset::decode(&said[0].2).unwrap().code, ErrorCode::REFUSED.number());
    // Its caller may repeat it.
    let mut caller = client();
    let key = caller.call(true);
    let record = &said[0].2;
    caller.read(frame(FrameType::RESET, 0, 1, record, b"")).unwrap();
    match &caller.events()[..] {
        [Event::Reset { key: ended, status, unprocessed: true }] if *ended == key => {
            assert_eq!(status.reason(), Reason::STREAM_REFUSED);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_free_place_goes_to_the_first_of_the_most_urgent_that_still_wants_it() {
    // A hundred places, which are taken.
    let mut side = client();
    for _ in 0..100 {
        side.call(true);
    }
    let waits = |side: &mut Side, priority| {
        let call = Opened {
            method: Bytes::from_static(b"/m"),
            metadata: Metadata::new(),
            priority,
            deadline: None,
            message: None,
            end: true,
        };
        let key = side.0.open(call).unwrap();
        assert_eq!(side.said(), vec![]);
        key
    };
    let first = waits(&mut side, Priority::Normal);
    let given_up = waits(&mut side, Priority::Normal);
    waits(&mut side, Priority::Bulk);
    waits(&mut side, Priority::Normal);
    waits(&mut side, Priority::Critical);
    side.0.reset(given_up, ErrorCode::CANCEL);
    let end = |side: &mut Side, stream| {
        side.read(status(stream, &Status::new(Code::Ok, ""), FLAG_END)).unwrap();
    };
    let opened = |side: &mut Side| -> Vec<u8> {
        let sent = side.sent(Time::default(), usize::MAX);
        let calls = sent.iter().filter(|sent| sent.header.frame_type == FrameType::CALL);
        calls.map(|sent| sent.header.priority).collect()
    };
    end(&mut side, 1);
    assert_eq!(opened(&mut side), [Priority::Critical as u8]);
    end(&mut side, 3);
    assert_eq!(opened(&mut side), [Priority::Normal as u8]);
    side.0.reset(first, ErrorCode::CANCEL);
    assert_eq!(opened(&mut side), [Priority::Normal as u8], "the first was on the wire, the second is gone");
    end(&mut side, 5);
    assert_eq!(opened(&mut side), [Priority::Bulk as u8]);
    // A place that is given back before it was used is the next one's.
    let (next, _) = (waits(&mut side, Priority::Critical), waits(&mut side, Priority::Normal));
    end(&mut side, 7);
    side.0.reset(next, ErrorCode::CANCEL);
    assert_eq!(opened(&mut side), [Priority::Normal as u8]);
    assert_eq!(side.0.streams(), 100);
}

// spec: W7-15
#[test]
fn a_message_too_large_ends_its_stream_only() {
    let limits = Limits { max_message_bytes: 16_384, ..Limits::default() };
    for parts in [vec![20_000], vec![10_000, 10_000]] {
        let send = |stream| {
            let last = parts.len() - 1;
            let flags = |at| if at == last { FLAG_MESSAGE | FLAG_END } else { FLAG_MESSAGE | FLAG_MORE };
            let part = |(at, len): (usize, &usize)| message(stream, flags(at), &vec![7; *len]);
            parts.iter().enumerate().flat_map(part).collect::<Vec<u8>>()
        };
        let mut side = Side::new(Role::Server, limits);
        side.called(0);
        side.read(send(1)).unwrap();
        let said = side.said();
        assert_eq!((said.len(), said[0].0), (1, FrameType::STATUS));
        assert_eq!(StatusRecord::decode(&said[0].2).unwrap().reason, Reason::MESSAGE_TOO_LARGE.number());
        side.read(call(3, FLAG_END, b"")).unwrap();

        // In the CALL itself: nobody is called.
        let mut side = Side::new(Role::Server, limits);
        let first = if parts.len() > 1 { FLAG_MESSAGE | FLAG_MORE } else { FLAG_MESSAGE | FLAG_END };
        side.read(call(1, first, &vec![7; parts[0]])).unwrap();
        for part in &parts[1..] {
            side.read(message(1, FLAG_MESSAGE | FLAG_END, &vec![7; *part])).unwrap();
        }
        let said = side.said();
        assert_eq!((said.len(), said[0].0, side.events()), (1, FrameType::STATUS, vec![]));
        assert_eq!(StatusRecord::decode(&said[0].2).unwrap().reason, Reason::MESSAGE_TOO_LARGE.number());
        assert_eq!(side.0.streams(), 0);

        let mut side = Side::new(Role::Client, limits);
        let key = side.call(true);
        side.read(send(1)).unwrap();
        let said = side.said();
        assert_eq!((said.len(), said[0].0), (1, FrameType::RESET));
        assert_eq!(Reset::decode(&said[0].2).unwrap().code, ErrorCode::MESSAGE_SIZE.number());
        assert!(matches!(&side.events()[..], [Event::Reset { key: ended, .. }] if *ended == key));
        side.call(true);
    }
}

/// An answer over the limit that comes with its STATUS: the call is over by that, so that nothing is said of it, and the connection
/// has the credit for its bytes back once.
// spec: W7-15, W8-04
#[test]
fn an_answer_too_large_ends_its_call_and_its_credit_comes_back_once() {
    let limits = Limits { max_message_bytes: 16_384, connection_window_bytes: 65_536, ..Limits::default() };
    for parts in [vec![20_000], vec![10_000, 10_000]] {
        let mut side = Side::new(Role::Client, limits);
        let (mut taken, mut granted) = (0, 65_536);
        for count in 0..100 {
            let key = side.call(true);
            let stream = 2 * count + 1;
            for part in &parts[1..] {
                side.read(message(stream, FLAG_MESSAGE | FLAG_MORE, &vec![7; *part])).unwrap();
            }
            let ok = record(|out| StatusRecord::from_status(&Status::new(Code::Ok, "")).encode(out));
            let last = frame(FrameType::STATUS, FLAG_MESSAGE | FLAG_END, stream, &ok, &vec![7; parts[0]]);
            side.read(last).unwrap();
            taken += parts.iter().sum::<usize>() as u64;
            match &side.events()[..] {
                [Event::Reset { key: ended, status, unprocessed: false }] if *ended == key => {
                    assert_eq!(status.reason(), Reason::MESSAGE_TOO_LARGE);
                }
                other => panic!("{other:?}"),
            }
            for (kind, id, record) in side.said() {
                assert_eq!((kind, id), (FrameType::WINDOW, 0));
                granted = Window::decode(&record).unwrap().offset;
            }
            assert!(granted <= taken + 65_536, "{granted} bytes may come, {taken} have");
        }
        assert!(granted >= taken + 65_536 / 2);
    }
}

// spec: W7-16
#[test]
fn a_deadline_travels_as_what_remains() {
    let at = Time::from_micros(5_000_000);
    let mut caller = client();
    for (now, expected) in [(0, 5_000_000), (4_999_999, 1), (5_000_000, 1), (9_000_000, 1)] {
        caller.0.open(Opened { deadline: Some(at), ..opened(None, Priority::Normal) }).unwrap();
        let sent = caller.sent(Time::from_micros(now), usize::MAX);
        assert_eq!(Call::decode(&sent[0].record).unwrap().timeout_us, expected, "at {now}");
    }
    caller.0.open(opened(None, Priority::Normal)).unwrap();
    assert_eq!(Call::decode(&caller.sent(AT_ONCE, usize::MAX)[0].record).unwrap().timeout_us, 0);
    // The receiver counts from when it arrives, by its own clock.
    let mut side = server();
    let call = Call {
        method: "/m",
        timeout_us: 250,
        codec: 0,
        schema: 0,
        metadata: Vec::new(),
        extensions: Vec::new(),
    };
    let arrived = Time::from_micros(77_000_000);
    let bytes = frame(FrameType::CALL, FLAG_END, 1, &record(|out| call.encode(out)), b"");
    side.0.handle_read(arrived, &mut BytesMut::from(&bytes[..])).unwrap();
    assert_eq!(side.0.poll_timeout(), Some(arrived.after(Duration::from_micros(250))));
}

// spec: W7-17
#[test]
fn each_side_ends_a_call_at_its_deadline() {
    let at = Time::from_micros(1_000);
    let mut caller = client();
    caller.0.open(Opened { deadline: Some(at), ..opened(None, Priority::Normal) }).unwrap();
    let mut server = server();
    server.read(caller.sent(AT_ONCE, usize::MAX).remove(0).bytes).unwrap();
    server.events();
    for side in [&mut caller, &mut server] {
        side.0.handle_timeout(Time::from_micros(999)).unwrap();
        assert_eq!((side.events(), side.said()), (vec![], vec![]));
        side.0.handle_timeout(at).unwrap();
        match &side.events()[..] {
            [Event::Reset { status, unprocessed: false, .. }] => {
                assert_eq!(status.code(), Code::DeadlineExceeded);
            }
            other => panic!("{other:?}"),
        }
        let said = side.said();
        assert_eq!((said.len(), said[0].0), (1, FrameType::RESET));
        assert_eq!(Reset::decode(&said[0].2).unwrap().code, ErrorCode::DEADLINE.number());
    }
}

// spec: W7-18
#[test]
fn the_urgent_go_first_and_bulk_keeps_a_share() {
    let mut caller = Side(Connection::new(Config::new(Role::Client), Time::default()));
    caller.read(hello_with(0, vec![(4, 1_000)])).unwrap();
    caller.said();
    for priority in [Priority::Bulk, Priority::Normal, Priority::Critical] {
        open_many(&mut caller, 48, priority);
    }
    let order: Vec<u8> = caller.sent(AT_ONCE, usize::MAX).iter().map(|sent| sent.header.priority).collect();
    assert_eq!(order.len(), 144);
    for sixteen in order.chunks(16).take(8) {
        assert!(sixteen.contains(&2), "{sixteen:?} has no bulk");
    }
    // Without bulk's share, critical comes before normal and normal before bulk.
    let urgent: Vec<u8> = order.iter().copied().filter(|class| *class < 2).collect();
    assert!(urgent.is_sorted(), "{order:?}");
    assert!(order[..96].iter().filter(|class| **class == 2).count() <= 6, "{order:?}");
}

// spec: W8-02
#[test]
fn a_window_raises_its_own_credit_and_never_lowers_it() {
    let mut caller = client();
    let key = caller.0.open(opened(Some(Bytes::from(vec![7; 300_000])), Priority::Critical)).unwrap();
    let payload = |side: &mut Side| -> usize {
        side.sent(AT_ONCE, usize::MAX).iter().map(|sent| sent.payload.len()).sum()
    };
    assert_eq!(payload(&mut caller), 65_536);
    caller.read([window(1, 100_000), window(0, 80_000)].concat()).unwrap();
    assert_eq!(payload(&mut caller), 80_000 - 65_536, "the connection's credit is the lower");
    caller.read([window(0, 200_000), window(1, 90_000), window(0, 0)].concat()).unwrap();
    assert_eq!(payload(&mut caller), 100_000 - 80_000, "the stream's is, and no offset lowers it");
    caller.read([window(1, 300_000), window(0, 300_000)].concat()).unwrap();
    assert_eq!(payload(&mut caller), 200_000);
    assert!(caller.0.remaining(key, AT_ONCE).is_none());
}

// spec: W8-11
#[test]
fn a_few_bytes_of_credit_wait_for_more_or_for_the_end_of_the_message() {
    // The stream's credit, and then the connection's, is the lower.
    for (ample, scarce) in [(0, 1), (1, 0)] {
        let mut caller = client();
        let key = caller.0.open(Opened { end: false, ..opened(None, Priority::Critical) }).unwrap();
        caller.said();
        caller.read(window(ample, 1 << 20)).unwrap();
        let mut sends = |message: usize, credit: u64| -> Vec<usize> {
            if message > 0 {
                caller.0.send(key, Bytes::from(vec![7; message])).unwrap();
            }
            if credit > 0 {
                caller.read(window(scarce, credit)).unwrap();
            }
            let sent = caller.sent(AT_ONCE, usize::MAX);
            sent.iter().map(|sent| sent.payload.len()).filter(|len| *len > 0).collect()
        };
        assert_eq!(sends(65_400, 0).iter().sum::<usize>(), 65_400);
        // All of a message, however short.
        assert_eq!(sends(100, 0), [100]);
        // Of the next one 36 bytes could go.
        assert_eq!(sends(300, 0), []);
        assert_eq!(sends(0, 65_536 + 219), []);
        assert_eq!(sends(0, 65_536 + 220), [256]);
        assert_eq!(sends(0, 65_536 + 220 + 43), []);
        assert_eq!(sends(0, 65_536 + 220 + 44), [44]);
    }
}

/// Who sends as fast as it may is never told to be calm, whatever the size of its messages.
// spec: W8-11, W9-09
#[test]
fn messages_of_any_size_fill_windows_for_long() {
    for len in [100, 300, 1_000, 65_530, 65_535] {
        let windows =
            Limits { stream_window_bytes: 65_536, connection_window_bytes: 65_536, ..Limits::default() };
        let (mut caller, mut server) = (client(), Side::new(Role::Server, windows));
        let key = caller.0.open(Opened { end: false, ..opened(None, Priority::Normal) }).unwrap();
        let message = Bytes::from(vec![7; len]);
        let (mut taken, mut unread) = (0, None);
        while taken < 10 << 20 {
            while caller.0.send(key, message.clone()).is_ok() {}
            let bytes: Vec<u8> =
                caller.sent(AT_ONCE, usize::MAX).into_iter().flat_map(|sent| sent.bytes).collect();
            server.read(bytes).unwrap_or_else(|error| panic!("{len} bytes, after {taken}: {error:?}"));
            for event in server.events() {
                match event {
                    Event::Call { key, .. } => unread = Some(key),
                    Event::Message { message, .. } => {
                        server.0.consumed(unread.unwrap(), message.len());
                        taken += message.len();
                    }
                    _ => {}
                }
            }
            let bytes: Vec<u8> =
                server.sent(AT_ONCE, usize::MAX).into_iter().flat_map(|sent| sent.bytes).collect();
            assert!(!bytes.is_empty(), "{len} bytes, after {taken}: no credit comes back");
            caller.read(bytes).unwrap();
            caller.events();
        }
    }
}

// spec: W8-03
#[test]
fn a_window_far_ahead_is_refused_on_streams_too() {
    let mut caller = client();
    caller.call(false);
    caller.read(window(1, 1 << 32)).unwrap();
    assert_eq!(caller.read(window(1, (1 << 32) + 1)).unwrap_err().code, ErrorCode::FLOW_CONTROL);
}

// spec: W8-04, W8-05
#[test]
fn credit_comes_back_with_what_is_taken_and_with_fragments() {
    let limits = Limits { stream_window_bytes: 65_536, connection_window_bytes: 65_536, ..Limits::default() };
    let mut side = Side::new(Role::Server, limits);
    let key = side.called(0);
    let part = vec![7; 16_384];
    // Whole messages: nothing before they are taken, the connection's window at an eighth, the stream's at a half.
    side.read([message(1, FLAG_MESSAGE, &part), message(1, FLAG_MESSAGE, &part)].concat()).unwrap();
    assert_eq!(side.said(), []);
    side.0.consumed(key, 8_191);
    assert_eq!(side.said(), []);
    side.0.consumed(key, 1);
    assert_eq!(side.said().len(), 1);
    side.0.consumed(key, 32_768 - 8_192);
    let offsets = |side: &mut Side| -> Vec<(u64, u64)> {
        let windows = side.said().into_iter();
        windows.map(|(_, stream, record)| (stream, Window::decode(&record).unwrap().offset)).collect()
    };
    assert_eq!(offsets(&mut side), [(0, 98_304), (1, 98_304)]);
    // Fragments: as they come, so that a message of three windows arrives.
    for _ in 0..11 {
        side.read(message(1, FLAG_MESSAGE | FLAG_MORE, &part)).unwrap();
    }
    side.read(message(1, FLAG_MESSAGE | FLAG_END, &part)).unwrap();
    match &side.events()[..] {
        [.., Event::Message { message, .. }, Event::HalfClosed { .. }] => {
            assert_eq!(message.len(), 12 * 16_384);
        }
        other => panic!("{} events", other.len()),
    }
    // What nobody will take comes back by itself.
    side.said();
    side.0.consumed(key, 12 * 16_384);
    side.0.reset(key, ErrorCode::INTERNAL);
    side.said();
    side.read([message(1, FLAG_MESSAGE, &part), message(1, FLAG_MESSAGE, &part)].concat()).unwrap();
    assert_eq!(offsets(&mut side).last(), Some(&(0, 16 * 16_384 + 65_536)));
}

// spec: W8-09
#[test]
fn f28_credit_is_kept_for_the_more_urgent() {
    let mut caller = client();
    let half = 32_768;
    let mut send = |priority, len: usize| -> usize {
        caller.0.open(opened(Some(Bytes::from(vec![7; len])), priority)).unwrap();
        caller.sent(AT_ONCE, usize::MAX).iter().map(|sent| sent.payload.len()).sum()
    };
    assert_eq!(send(Priority::Bulk, 20_000) + send(Priority::Bulk, 60_000), half, "of 65,536");
    assert_eq!(send(Priority::Normal, 60_000), half - 8_192);
    assert_eq!(send(Priority::Normal, 1), 0);
    assert_eq!(send(Priority::Critical, 5_000), 5_000, "beside calls that nobody reads");
    assert_eq!(send(Priority::Critical, 60_000), 8_192 - 5_000);
    // All of them go on, each to its own bound.
    caller.read(window(0, 65_536 + 65_536)).unwrap();
    let mut bytes = [0; 3];
    for sent in caller.sent(AT_ONCE, usize::MAX) {
        bytes[usize::from(sent.header.priority)] += sent.payload.len();
    }
    assert_eq!(bytes, [60_000 - 3_192, 65_536 - 8_192 - 56_808, 0]);
}

// spec: W7-18, W8-09
#[test]
fn bulk_does_not_starve_where_others_use_all_credit() {
    let mut caller = Side(Connection::new(Config::new(Role::Client), Time::default()));
    caller.read(hello_with(0, vec![(2, 8 << 20), (5, 1 << 30), (6, 65_536)])).unwrap();
    for priority in [Priority::Normal, Priority::Bulk] {
        caller.0.open(opened(Some(Bytes::from(vec![7; 4 << 20])), priority)).unwrap();
    }
    let mut limit = 65_536;
    let mut order = Vec::new();
    while order.len() < 208 {
        order.extend(caller.sent(AT_ONCE, usize::MAX).iter().map(|sent| sent.header.priority));
        limit += 65_536 / 4;
        caller.read(window(0, limit)).unwrap();
    }
    assert!(!order[16..].contains(&0));
    for part in order[16..].chunks_exact(32) {
        let bulk = part.iter().filter(|class| **class == 2).count();
        assert!((1..=4).contains(&bulk), "{part:?}");
    }
}

// spec: W8-10
#[test]
fn the_last_eighth_comes_back_whatever_else_is_unread() {
    let limits =
        Limits { stream_window_bytes: 1 << 20, connection_window_bytes: 65_536, ..Limits::default() };
    let mut side = Side::new(Role::Server, limits);
    let key = side.called(0);
    side.read(call(3, 0, b"")).unwrap();
    let [Event::Call { key: urgent, .. }] = side.events()[..] else { panic!("no call") };
    // A message of four windows that nobody takes, and another that leaves an eighth.
    for _ in 0..16 {
        side.read(message(1, FLAG_MESSAGE | FLAG_MORE, &[7; 16_384])).unwrap();
    }
    side.read(message(1, FLAG_MESSAGE, b"")).unwrap();
    let windows = |side: &mut Side| -> Vec<u64> {
        let windows = side.said().into_iter().filter(|(_, stream, _)| *stream == 0);
        windows.map(|(_, _, record)| Window::decode(&record).unwrap().offset).collect()
    };
    let unread = 4 * 65_536;
    assert_eq!(windows(&mut side).last(), Some(&(unread + 65_536)));
    side.read(message(1, FLAG_MESSAGE, &vec![7; 65_536 - 8_192])).unwrap();
    for round in 1..=8 {
        side.read(message(3, FLAG_MESSAGE, &[7; 4_096])).unwrap();
        assert_eq!(windows(&mut side), [], "nothing was taken");
        side.0.consumed(urgent, 4_096);
        assert_eq!(windows(&mut side), [unread + 65_536 + round * 4_096]);
    }
    // What the others take pays for what they were given.
    side.0.consumed(key, 65_536);
    assert_eq!(windows(&mut side), []);
}

// spec: W8-06
#[test]
fn control_frames_need_no_credit_and_go_first() {
    let mut caller = client();
    let key = caller
        .0
        .open(Opened { end: false, ..opened(Some(Bytes::from(vec![7; 200_000])), Priority::Critical) })
        .unwrap();
    assert!(!caller.sent(AT_ONCE, usize::MAX).is_empty());
    caller.0.ping(1);
    assert_eq!(kinds(&caller.sent(AT_ONCE, usize::MAX)), [FrameType::PING], "without credit");
    caller.read([window(1, 200_000), window(0, 200_000)].concat()).unwrap();
    caller.0.ping(2);
    assert_eq!(kinds(&caller.sent(AT_ONCE, 1)), [FrameType::PING], "ahead of messages");
    caller.0.reset(key, ErrorCode::CANCEL);
    assert_eq!(kinds(&caller.sent(AT_ONCE, usize::MAX)), [FrameType::RESET]);
}

// spec: W8-07
#[test]
fn fragments_of_different_streams_interleave() {
    let mut caller = client();
    for fill in [1, 2] {
        caller.0.open(opened(Some(Bytes::from(vec![fill; 32_768])), Priority::Normal)).unwrap();
    }
    let streams: Vec<u64> = caller.sent(AT_ONCE, usize::MAX).iter().map(|sent| sent.header.stream).collect();
    assert_eq!(streams, [1, 3, 1, 3]);
}

/// A call that was on its way when the server began to drain is answered; nothing is refused.
// spec: W9-19
#[test]
fn a_drain_in_two_steps_takes_what_is_on_its_way() {
    let last_streams = |said: &[(FrameType, u64, Vec<u8>)]| -> Vec<u64> {
        let go_aways = said.iter().filter(|(kind, ..)| *kind == FrameType::GOAWAY);
        go_aways.map(|(_, _, record)| GoAway::decode(record).unwrap().last_stream).collect()
    };
    let mut side = server();
    side.called(0);
    side.0.drain(AT_ONCE, "enough");
    side.0.drain(AT_ONCE, "enough");
    assert_eq!((side.0.state(), side.0.is_settling()), (ConnectionState::Draining, true));
    let said = side.said();
    assert_eq!(last_streams(&said), [(1 << 62) - 1]);
    let (_, _, ping) = said.iter().find(|(kind, ..)| *kind == FrameType::PING).expect("a ping").clone();
    side.read(call(3, FLAG_END, b"")).unwrap();
    assert!(matches!(side.events()[..], [Event::Call { .. }]));
    side.read(frame(FrameType::PONG, 0, 0, &ping, b"")).unwrap();
    assert_eq!((side.events(), side.0.is_settling()), (Vec::new(), false));
    assert_eq!(last_streams(&side.said()), [3]);
    side.read(call(5, FLAG_END, b"")).unwrap();
    assert_eq!((side.events(), side.said()[0].0), (Vec::new(), FrameType::RESET));

    // A peer that does not answer has a second.
    let mut side = server();
    side.called(0);
    side.0.drain(AT_ONCE, "enough");
    side.said();
    let until = AT_ONCE.after(Duration::from_secs(1));
    assert_eq!(side.0.poll_timeout(), Some(until));
    side.0.handle_timeout(until).unwrap();
    assert_eq!((last_streams(&side.said()), side.0.is_settling()), (vec![1], false));

    // A client has nothing to wait for.
    let mut side = client();
    side.0.drain(AT_ONCE, "enough");
    assert!(!side.0.is_settling() && side.0.is_draining());

    // Who is told opens no more, keeps what it has, and is told once.
    let mut caller = client();
    let first = caller.call(true);
    caller.read(go_away((1 << 62) - 1, ErrorCode::NO_ERROR)).unwrap();
    assert!(matches!(caller.events()[..], [Event::GoAway { .. }]));
    assert!(caller.0.open(opened(None, Priority::Normal)).is_err());
    caller.read(go_away(1, ErrorCode::NO_ERROR)).unwrap();
    assert_eq!(caller.events(), []);
    caller.read(status(1, &Status::new(Code::Ok, ""), FLAG_END)).unwrap();
    assert!(matches!(&caller.events()[..], [Event::Ended { key, .. }] if *key == first));
}

// spec: W9-02, W9-03, W9-04
#[test]
fn a_drain_lets_calls_finish_and_takes_no_more() {
    let mut side = server();
    let key = side.called(0);
    side.read(call(3, FLAG_END, b"")).unwrap();
    side.events();
    side.0.go_away("enough");
    assert_eq!(side.0.state(), ConnectionState::Draining);
    let said = side.said();
    let go_away_record = GoAway::decode(&said[0].2).unwrap();
    assert_eq!((go_away_record.last_stream, go_away_record.code), (3, 0));
    side.read(call(5, FLAG_END, b"")).unwrap();
    assert_eq!(side.events(), []);
    let refused = Reset { code: ErrorCode::REFUSED.number(), extensions: Vec::new() };
    assert_eq!(side.said(), [(FrameType::RESET, 5, record(|out| refused.encode(out)))]);
    // What was open goes on to its end.
    side.read(message(1, FLAG_MESSAGE | FLAG_END, b"x")).unwrap();
    assert_eq!(side.events().len(), 2);
    side.0.respond(key, Ok(Finish::default()));
    assert_eq!(side.said()[0].0, FrameType::STATUS);

    let mut caller = client();
    let (first, second) = (caller.call(true), caller.call(true));
    caller.read(go_away(1, ErrorCode::NO_ERROR)).unwrap();
    match &caller.events()[..] {
        [Event::Reset { key, status, unprocessed: true }, Event::GoAway { .. }] if *key == second => {
            assert_eq!(status.reason(), Reason::GOING_AWAY);
        }
        other => panic!("{other:?}"),
    }
    assert!(caller.0.open(opened(None, Priority::Normal)).is_err());
    caller.read(status(1, &Status::new(Code::Ok, ""), FLAG_END)).unwrap();
    assert!(matches!(&caller.events()[..], [Event::Ended { key, .. }] if *key == first));
}

// spec: W9-12
#[test]
fn unfinished_messages_are_bounded_over_all_streams() {
    let limits = Limits { max_buffered_bytes: 32_768, ..Limits::default() };
    let mut side = Side::new(Role::Server, limits);
    for stream in [1, 3, 5] {
        side.read(call(stream, FLAG_MESSAGE | FLAG_MORE, &[7; 16_384])).unwrap();
    }
    let ended: Vec<_> = side.said().into_iter().filter(|(kind, ..)| *kind == FrameType::STATUS).collect();
    let [(_, 5, record)] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!(StatusRecord::decode(record).unwrap().reason, Reason::ENHANCE_CALM.number());
    assert_eq!(side.0.streams(), 2);
}

// spec: W9-14
#[test]
fn an_unknown_code_keeps_its_number() {
    let unknown = ErrorCode::from_number(4_242);
    assert_eq!((unknown.number(), unknown.reason()), (4_242, Reason::PROTOCOL_VIOLATION));
    let mut caller = client();
    caller.call(true);
    let record = record(|out| Reset { code: 4_242, extensions: vec![] }.encode(out));
    caller.read(frame(FrameType::RESET, 0, 1, &record, b"")).unwrap();
    match &caller.events()[..] {
        [Event::Reset { status, .. }] => assert_eq!(status.reason(), Reason::PROTOCOL_VIOLATION),
        other => panic!("{other:?}"),
    }
    caller.read(go_away(1, unknown)).unwrap();
    assert!(matches!(&caller.events()[..], [Event::GoAway { error }] if error.code == unknown));
}

// spec: W10-01
#[test]
fn an_unknown_status_keeps_its_numbers() {
    let mut caller = client();
    caller.call(true);
    let unknown = StatusRecord { code: 4_242, reason: 60_000, ..ok() };
    caller.read(frame(FrameType::STATUS, FLAG_END, 1, &record(|out| unknown.encode(out)), b"")).unwrap();
    match &caller.events()[..] {
        [Event::Ended { outcome: Err(status), .. }] => {
            assert_eq!((status.code().number(), status.reason().number()), (4_242, 60_000));
            assert_eq!(status.code().name(), Code::Unknown.name());
        }
        other => panic!("{other:?}"),
    }
}

// spec: W11-02
#[test]
fn a_carriers_message_holds_whole_frames() {
    let both = [hello(), call(1, FLAG_END, b"")].concat();
    let mut side = Connection::new(Config::new(Role::Server), Time::default());
    side.handle_message(AT_ONCE, &mut BytesMut::from(&both[..])).unwrap();
    for cut in [1, HEADER_LEN, both.len() - 1] {
        let mut side = Connection::new(Config::new(Role::Server), Time::default());
        let error = side.handle_message(AT_ONCE, &mut BytesMut::from(&both[..cut])).unwrap_err();
        assert_eq!(error.code, ErrorCode::PROTOCOL, "{cut}");
    }
}
