//! What the fuzz targets of `tests/fuzz` have found, each as small as it goes.

mod side;

use bytes::{Bytes, BytesMut};
use side::{Side, call, frame, hello, message, record};
use valkyrie_protocol::{
    Call, Code, Config, Connection, ErrorCode, Event, FLAG_END, FLAG_MESSAGE, Finish, FrameType, GoAway,
    Limits, Metadata, Reason, Role, Status, Time, TransmitBuffer, Window,
};

fn go_away() -> Vec<u8> {
    let go_away = GoAway { last_stream: 0, code: 0, message: "", extensions: Vec::new() };
    frame(FrameType::GOAWAY, 0, 0, &record(|out| go_away.encode(out)), b"")
}

fn window(stream: u64, offset: u64) -> Vec<u8> {
    let window = Window { offset, extensions: Vec::new() };
    frame(FrameType::WINDOW, 0, stream, &record(|out| window.encode(out)), b"")
}

/// 64 KiB of go-aways from a stranger were 1,500 events at once.
// spec: W1-08
#[test]
fn nothing_follows_a_go_away_that_came_before_the_hello() {
    for second in [go_away(), hello()] {
        let mut connection = Connection::new(Config::new(Role::Server), Time::default());
        let mut bytes = BytesMut::from(&[go_away(), second].concat()[..]);
        let error = connection.handle_read(Time::default(), &mut bytes).unwrap_err();
        assert_eq!(error.code, ErrorCode::PROTOCOL);
        assert!(matches!(connection.poll_event(), Some(Event::GoAway { .. })));
        assert_eq!(connection.poll_event(), None);
    }
}

/// A driver that learns of the failure late still pings, resets, answers and takes messages.
#[test]
fn nothing_is_written_or_awaited_after_the_last_go_away() {
    let limits = Limits { connection_window_bytes: 64 << 10, ..Limits::default() };
    let mut side = Side::new(Role::Server, limits);
    let key = side.called(0);
    side.read(message(1, FLAG_MESSAGE, &[7; 60_000])).unwrap();
    side.events();
    side.read(b"GET".to_vec()).unwrap_err();
    assert_eq!(side.said().len(), 1, "one go-away");
    side.0.ping(1);
    side.0.consumed(key, 60_000);
    side.0.send(key, Bytes::from_static(b"late")).unwrap();
    side.0.respond(key, Ok(Finish::default()));
    side.0.reset(key, ErrorCode::CANCEL);
    assert!(!side.0.wants_transmit());
    assert_eq!(side.0.poll_timeout(), None);
    assert!(side.said().is_empty());
}

/// A status or initial metadata for a call of this side's own would break the rules of the wire.
#[test]
fn who_calls_cannot_answer() {
    let mut side = Side::new(Role::Client, Limits::default());
    let key = side.call(false);
    side.0.respond(key, Err(Status::new(Code::NotFound, "none")));
    let error = side.0.send_head(key, Metadata::new()).unwrap_err();
    assert_eq!(error.reason(), Reason::STREAM_MISUSE);
    assert!(side.said().is_empty());
    side.0.finish(key);
    assert_eq!(side.said().len(), 1, "the call goes on");
}

/// Each WINDOW of a stream put it once more among those that wait for the connection's credit: 8 bytes for 43, without
/// a bound.
#[test]
fn a_stream_waits_for_the_connection_once() {
    let mut side = Side::new(Role::Server, Limits::default());
    let record = record(|out| {
        let call =
            Call { method: "/m", timeout_us: 0, codec: 0, schema: 0, metadata: vec![], extensions: vec![] };
        call.encode(out);
    });
    side.read(frame(FrameType::CALL, FLAG_MESSAGE | FLAG_END, 1, &record, b"")).unwrap();
    let key = match &side.events()[..] {
        [Event::Call { key, .. }] => *key,
        other => panic!("{other:?}"),
    };
    // One message more than the 64 KiB of credit that the peer gave for the connection.
    for _ in 0..2 {
        side.0.send(key, Bytes::from(vec![0; 64 << 10])).unwrap();
    }
    let mut out = TransmitBuffer::default();
    let rounds = 100_000;
    let mut round = |side: &mut Side, count: u64, from: u64| {
        for number in from..from + count {
            // Each raises the stream's credit by enough to be no glitch.
            side.read(window(1, (64 << 10) + number * 256)).unwrap();
            side.0.poll_transmit(Time::default(), &mut out, usize::MAX);
            out.consume(out.len());
        }
    };
    round(&mut side, 100, 1);
    let used = allocation_counter::measure(|| {
        round(&mut side, rounds, 101);
    });
    assert!(used.bytes_max < 64 << 10, "{used:?}");
}

/// Behind a call that was over, another one on the same channel was taken for a new stream, whose answer had no way out.
#[test]
fn a_channel_carries_one_call() {
    let config = Config { multiplexed: true, ..Config::new(Role::Server) };
    let optional = frame(FrameType(0xc3), 0, 1, b"", b"");
    let message = frame(FrameType::MESSAGE, FLAG_MESSAGE, 1, b"", b"after the end");
    for before in [vec![], vec![&optional[..]], vec![&message]] {
        let mut connection = Connection::new(config.clone(), Time::default());
        connection.handle_read(Time::default(), &mut BytesMut::from(&hello()[..])).unwrap();
        assert_eq!(connection.poll_event(), Some(Event::Connected));
        let mut read = |bytes: &[u8], begun| {
            connection.handle_stream(Time::default(), 1, begun, &mut BytesMut::from(bytes))
        };
        let mut begun = false;
        if before == [&optional[..]] {
            begun = read(&optional, begun).unwrap();
            assert!(!begun, "what may be skipped begins nothing");
        }
        begun = read(&call(1, FLAG_END, b""), begun).unwrap();
        assert!(begun);
        if before == [&message[..]] {
            begun = read(&message, begun).unwrap();
        }
        assert_eq!(read(&call(1, FLAG_END, b""), begun).unwrap_err().code, ErrorCode::STREAM_ID);
        assert!(matches!(connection.poll_event(), Some(Event::Call { .. })));
        assert!(!matches!(connection.poll_event(), Some(Event::Call { .. })));
    }
}
