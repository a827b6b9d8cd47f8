//! What a frame does in each state of its stream: the table of PROTOCOL.md, "Streams", from both sides, and what a peer
//! gets that passes its credit.

mod side;

use bytes::{Bytes, BytesMut};
use side::{Side, call, frame, hello, message, record, reset, status};
use valkyrie_protocol::{
    Code, Config, Connection, ErrorCode, Event, FLAG_END, FLAG_MESSAGE, FLAG_MORE, Finish, FrameType, GoAway,
    Head, Hello, Limits, Reason, Reset, Role, Status, Time, Window,
};

/// Every kind of frame that a peer may aim at a stream.
const KINDS: [&str; 7] = ["CALL", "MESSAGE", "END", "HEAD", "STATUS", "RESET", "WINDOW"];

fn of_kind(kind: &str, stream: u64) -> Vec<u8> {
    match kind {
        "CALL" => call(stream, FLAG_END, b""),
        "MESSAGE" => message(stream, FLAG_MESSAGE, b"x"),
        "END" => message(stream, FLAG_END, b""),
        "HEAD" => {
            let head = Head { metadata: Vec::new(), extensions: Vec::new() };
            frame(FrameType::HEAD, 0, stream, &record(|out| head.encode(out)), b"")
        }
        "STATUS" => status(stream, &Status::new(Code::NotFound, "none"), FLAG_END),
        "RESET" => reset(stream),
        "WINDOW" => {
            let window = Window { offset: 1 << 20, extensions: Vec::new() };
            frame(FrameType::WINDOW, 0, stream, &record(|out| window.encode(out)), b"")
        }
        other => panic!("no kind {other}"),
    }
}

/// Stream 1 in a state, at the side that is asked.
fn in_state(state: &str) -> Side {
    let limits = Limits::default();
    let mut side = Side::new(if state.starts_with("server") { Role::Server } else { Role::Client }, limits);
    match state {
        "server: never opened" | "client: never opened" => {}
        "server: open" => drop(side.called(0)),
        "server: half-closed" => drop(side.called(FLAG_END)),
        "server: answered" => {
            let key = side.called(0);
            side.0.respond(key, Ok(Finish::default()));
        }
        "server: reset here" => {
            let key = side.called(0);
            side.0.reset(key, ErrorCode::INTERNAL);
        }
        "server: reset there" => {
            side.called(0);
            side.read(reset(1)).unwrap();
        }
        "client: open" => drop(side.call(false)),
        "client: half-closed" => drop(side.call(true)),
        "client: answered" => {
            side.call(false);
            side.read(of_kind("STATUS", 1)).unwrap();
        }
        "client: reset here" => {
            let key = side.call(false);
            side.0.reset(key, ErrorCode::CANCEL);
        }
        "client: reset there" => {
            side.call(false);
            side.read(reset(1)).unwrap();
        }
        other => panic!("no state {other}"),
    }
    side.events();
    side.said();
    side
}

/// What a frame of each kind does, in the order of [`KINDS`]: an error code's name for an error of the connection,
/// `-` for nothing at all, `RESET …` for a stream that is reset with that code, else the event.
const TABLE: [(&str, [&str; 7]); 11] = [
    (
        "server: never opened",
        [
            "Call",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
        ],
    ),
    ("server: open", ["STREAM_ID", "Message", "HalfClosed", "STREAM_STATE", "STREAM_STATE", "Reset", "-"]),
    (
        "server: half-closed",
        [
            "STREAM_ID",
            "RESET STREAM_CLOSED",
            "RESET STREAM_CLOSED",
            "STREAM_STATE",
            "STREAM_STATE",
            "Reset",
            "-",
        ],
    ),
    ("server: answered", ["STREAM_ID", "-", "-", "-", "-", "-", "-"]),
    ("server: reset here", ["STREAM_ID", "-", "-", "-", "-", "-", "-"]),
    ("server: reset there", ["STREAM_ID", "-", "-", "-", "-", "-", "-"]),
    (
        "client: never opened",
        [
            "STREAM_ID",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
            "STREAM_STATE",
        ],
    ),
    ("client: open", ["STREAM_ID", "Message", "HalfClosed", "Head", "Ended", "Reset", "-"]),
    ("client: half-closed", ["STREAM_ID", "Message", "HalfClosed", "Head", "Ended", "Reset", "-"]),
    ("client: answered", ["STREAM_ID", "-", "-", "-", "-", "-", "-"]),
    ("client: reset here", ["STREAM_ID", "-", "-", "-", "-", "-", "-"]),
];

// spec: W7-04, W7-05, W7-06, W7-07, W7-08
#[test]
fn every_frame_in_every_state_does_what_the_table_says() {
    for (state, expected) in TABLE.iter().chain([&("client: reset there", TABLE[10].1)]) {
        for (kind, expected) in KINDS.iter().zip(expected) {
            let mut side = in_state(state);
            let done = match side.read(of_kind(kind, 1)) {
                Err(error) => {
                    let said = side.said();
                    assert_eq!(said.len(), 1, "{state}, {kind}");
                    assert_eq!(said[0].0, FrameType::GOAWAY, "{state}, {kind}");
                    error.reason.name().to_owned()
                }
                Ok(()) => {
                    let events = side.events();
                    let said = side.said();
                    assert!(events.len() < 2 && said.len() < 2, "{state}, {kind}: {events:?}, {said:?}");
                    match (events.first(), said.first()) {
                        (None, None) => "-".to_owned(),
                        (Some(Event::Reset { .. }), Some((FrameType::RESET, 1, record))) => {
                            let code = ErrorCode::from_number(Reset::decode(record).unwrap().code);
                            format!("RESET {}", code.name())
                        }
                        (Some(event), None) => {
                            let shown = format!("{event:?}");
                            shown.split(' ').next().unwrap_or_default().to_owned()
                        }
                        other => panic!("{state}, {kind}: {other:?}"),
                    }
                }
            };
            assert_eq!(done, *expected, "{state}, {kind}");
        }
    }
}

/// A message that has begun ends with a message's last fragment, or with a status that is an error.
// spec: W7-09, W7-11
#[test]
fn an_end_inside_a_message_is_told_from_a_whole_one() {
    let begun = || {
        let mut side = in_state("client: open");
        side.read(message(1, FLAG_MESSAGE | FLAG_MORE, b"begun")).unwrap();
        side
    };
    let ok = Status::new(Code::Ok, "");
    for (cut, reason) in [
        (message(1, FLAG_END, b""), Reason::PROTOCOL_VIOLATION),
        (status(1, &ok, FLAG_END), Reason::PROTOCOL_VIOLATION),
    ] {
        assert_eq!(begun().read(cut).unwrap_err().reason, reason);
    }
    for (end, outcome) in [
        (status(1, &Status::new(Code::NotFound, "none"), FLAG_END), Err(Code::NotFound)),
        (status(1, &ok, FLAG_END | FLAG_MESSAGE), Ok(Some(Bytes::from_static(b"begun")))),
    ] {
        let mut side = begun();
        side.read(end).unwrap();
        match side.events().pop() {
            Some(Event::Ended { outcome: ended, .. }) => {
                assert_eq!(ended.map(|finish| finish.message).map_err(|status| status.code()), outcome);
            }
            other => panic!("{other:?}"),
        }
    }
}

// spec: W8-01
#[test]
fn message_bytes_beyond_the_credit_end_the_connection() {
    let small = Limits {
        stream_window_bytes: 64 << 10,
        connection_window_bytes: 64 << 10,
        max_frame_bytes: 16 << 10,
        ..Limits::default()
    };
    let wide_streams = Limits { stream_window_bytes: 1 << 20, ..small };
    let part = vec![7; 16 << 10];
    for (limits, what) in
        [(Limits { connection_window_bytes: 1 << 20, ..small }, "stream"), (wide_streams, "connection")]
    {
        let mut side = Side::new(Role::Server, limits);
        side.read(call(1, FLAG_MESSAGE, &part)).unwrap();
        // Up to the window and not a byte more, as nothing was taken.
        for _ in 0..3 {
            side.read(message(1, FLAG_MESSAGE, &part)).unwrap();
        }
        side.read(message(1, FLAG_MESSAGE, b"")).unwrap();
        let error = side.read(message(1, FLAG_MESSAGE, b"x")).unwrap_err();
        assert_eq!((error.code, error.reason), (ErrorCode::FLOW_CONTROL, Reason::FLOW_CONTROL));
        assert!(error.message.contains(what), "{error}");
    }
}

/// The GOAWAY for a version carries the versions that would have worked, and the peer's callers are told of them.
// spec: W6-03, W6-04
#[test]
fn a_version_that_is_not_shared_is_told_with_those_that_are() {
    let newer =
        Hello { min_version: 2, max_version: 9, features: 0, settings: Vec::new(), extensions: Vec::new() };
    let newer = frame(FrameType::HELLO, 0, 0, &record(|out| newer.encode(out)), b"");
    // A later version may also write itself into the header.
    let mut header = hello();
    header[4] = 2;
    let crc = crc32c::crc32c(&header[..36]);
    header[36..40].copy_from_slice(&crc.to_le_bytes());
    for first in [newer, header] {
        let mut server = Connection::new(Config::new(Role::Server), Time::default());
        let error = server.handle_read(Time::default(), &mut BytesMut::from(&first[..])).unwrap_err();
        assert_eq!(error.reason, Reason::VERSION_MISMATCH);
        let said = Side(server).said();
        let (kind, _, record) = said.last().unwrap();
        let go_away = GoAway::decode(record).unwrap();
        assert_eq!((*kind, go_away.code), (FrameType::GOAWAY, ErrorCode::VERSION.number()));
        assert_eq!(go_away.extensions, [(1, &[1, 1][..])]);

        let mut client = Connection::new(Config::new(Role::Client), Time::default());
        let mut side = Side(client);
        side.said();
        let key = side.call(true);
        client = side.0;
        let bytes = frame(FrameType::GOAWAY, 0, 0, record, b"");
        client.handle_read(Time::default(), &mut BytesMut::from(&bytes[..])).unwrap();
        match client.poll_event() {
            Some(Event::Reset { key: ended, status, unprocessed: true }) if ended == key => {
                assert_eq!((status.code(), status.reason()), (Code::Unimplemented, Reason::VERSION_MISMATCH));
                assert!(status.message().contains("versions 1 to 1"), "{status}");
                assert!(!status.is_retryable());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// However the bytes of three frames are cut into reads, one byte or all of them, the same happens.
#[test]
fn f14_every_split_of_three_frames_gives_the_same_events() {
    let bytes = [
        call(1, FLAG_MESSAGE | FLAG_MORE, b"first"),
        message(1, FLAG_MESSAGE, b"second"),
        message(1, FLAG_END, b""),
    ]
    .concat();
    let events = |cuts: &[usize]| {
        let mut side = Side::new(Role::Server, Limits::default());
        let mut buffer = BytesMut::new();
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            buffer.extend_from_slice(&bytes[from..to]);
            side.0.handle_read(Time::default(), &mut buffer).unwrap();
            from = to;
        }
        assert!(buffer.is_empty());
        side.events()
    };
    let whole = events(&[]);
    assert_eq!(whole.len(), 2, "{whole:?}");
    for first in 0..bytes.len() {
        for second in first..bytes.len() {
            assert_eq!(events(&[first, second]), whole, "cut at {first} and {second}");
        }
    }
    assert_eq!(events(&(1..bytes.len()).collect::<Vec<_>>()), whole);
}
