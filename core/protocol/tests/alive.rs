//! Who is silent for too long is asked, and who does not answer is gone (PROTOCOL.md, "Silence"), by the clock of the test.

mod side;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use side::{Sent, Side, call, frame, hello, record, status};
use valkyrie_protocol::{
    Config, Connection, ConnectionError, ConnectionState, ErrorCode, Event, FLAG_END, Finish, FrameType,
    GoAway, Keepalive, Metadata, Opened, Ping, Priority, Reason, Role, Status, StreamKey, Time, Window,
};

const KEEPALIVE: Keepalive =
    Keepalive { time: Some(Duration::from_secs(30)), idle: None, timeout: Duration::from_secs(10) };

fn at(ms: u64) -> Time {
    Time::from_micros(ms * 1_000)
}

/// One side whose peer's HELLO came at `greeted` ms.
fn side(role: Role, keepalive: Keepalive, greeted: u64) -> Side {
    let mut side = Side(Connection::new(Config { keepalive, ..Config::new(role) }, at(0)));
    read(&mut side, greeted, hello()).unwrap();
    side.sent(at(greeted), usize::MAX);
    side.events();
    side
}

fn read(side: &mut Side, ms: u64, bytes: Vec<u8>) -> Result<(), ConnectionError> {
    side.0.handle_read(at(ms), &mut BytesMut::from(&bytes[..]))
}

fn open(side: &mut Side, now: u64, timeout: Option<u64>) -> StreamKey {
    let opened = Opened {
        method: Bytes::from_static(b"/m"),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: timeout.map(|timeout| at(now + timeout)),
        message: Some(Bytes::from_static(b"x")),
        end: true,
    };
    side.0.open(opened).unwrap()
}

fn types(sent: &[Sent]) -> Vec<FrameType> {
    sent.iter().map(|sent| sent.header.frame_type).collect()
}

fn said(side: &mut Side, ms: u64) -> Vec<FrameType> {
    types(&side.sent(at(ms), usize::MAX))
}

fn pong() -> Vec<u8> {
    let ping = Ping { data: 0, extensions: Vec::new() };
    frame(FrameType::PONG, 0, 0, &record(|out| ping.encode(out)), b"")
}

fn answer(stream: u64) -> Vec<u8> {
    status(stream, &Status::from_reason(Reason::UNKNOWN_METHOD, "no"), FLAG_END)
}

/// The frames that went out and the end, if there was one, each with its time in ms.
type Passed = (Vec<(u64, FrameType)>, Option<(u64, ConnectionError)>);

/// Lets time pass until then, with every timer kept.
fn pass(side: &mut Side, until: u64) -> Passed {
    let mut log = Vec::new();
    while let Some(now) = side.0.poll_timeout().filter(|now| *now <= at(until)) {
        let ms = now.as_micros() / 1_000;
        let ended = side.0.handle_timeout(now);
        log.extend(said(side, ms).into_iter().map(|frame_type| (ms, frame_type)));
        if let Err(error) = ended {
            return (log, Some((ms, error)));
        }
    }
    (log, None)
}

// spec: W9-16
#[test]
fn a_silent_server_is_asked_while_a_call_is_open_and_is_gone_when_it_does_not_answer() {
    let mut side = side(Role::Client, KEEPALIVE, 1);
    open(&mut side, 5, None);
    assert_eq!(said(&mut side, 5), [FrameType::CALL]);
    // HELLO came at 1 ms; the look at 30,005 finds that.
    assert_eq!(pass(&mut side, 35_000), (vec![(30_005, FrameType::PING)], None));
    read(&mut side, 35_000, pong()).unwrap();
    // 30 s after the PONG.
    assert_eq!(pass(&mut side, 70_000), (vec![(65_000, FrameType::PING)], None));
    let (log, ended) = pass(&mut side, u64::MAX / 1_000);
    let (when, error) = ended.unwrap();
    assert_eq!((log, when), (vec![(75_000, FrameType::GOAWAY)], 75_000));
    assert_eq!((error.code, error.reason), (ErrorCode::TIMEOUT, Reason::CONNECTION_LOST));
    assert_eq!(error.message, "the peer is gone: it was silent for 40000 ms and did not answer a PING");
    assert_eq!((side.0.state(), side.0.poll_timeout()), (ConnectionState::Closed, None));
}

// spec: W9-16
#[test]
fn a_server_asks_its_clients_alike() {
    let mut side = side(Role::Server, KEEPALIVE, 0);
    read(&mut side, 7, call(1, FLAG_END, b"")).unwrap();
    let (log, ended) = pass(&mut side, 60_000);
    assert_eq!(log, [(30_007, FrameType::PING), (40_007, FrameType::GOAWAY)]);
    assert_eq!(ended.unwrap().1.reason, Reason::CONNECTION_LOST);
}

// spec: W9-16
#[test]
fn whatever_comes_is_an_answer() {
    let window = Window { offset: 1 << 20, extensions: Vec::new() };
    let window = frame(FrameType::WINDOW, 0, 0, &record(|out| window.encode(out)), b"");
    let part = answer(1)[..7].to_vec();
    for (name, bytes) in [("a PONG", pong()), ("a WINDOW", window), ("a part of a frame", part)] {
        let mut side = side(Role::Client, KEEPALIVE, 0);
        open(&mut side, 0, None);
        said(&mut side, 0);
        assert_eq!(pass(&mut side, 31_000).0, [(30_000, FrameType::PING)], "{name}");
        let mut buffer = BytesMut::from(&bytes[..]);
        side.0.handle_read(at(39_999), &mut buffer).unwrap();
        // What stands unfinished has its own time.
        assert_eq!(pass(&mut side, 49_998), (vec![], None), "{name}");
        // The same bytes once more say nothing new.
        side.0.handle_read(at(49_998), &mut buffer).unwrap();
        let reason = pass(&mut side, 200_000).1.unwrap().1.reason;
        let whole = buffer.is_empty();
        let expected = if whole { Reason::CONNECTION_LOST } else { Reason::FRAME_TIMEOUT };
        assert_eq!(reason, expected, "{name}");
    }
}

// spec: W9-16
#[test]
fn who_has_no_call_is_left_in_peace_unless_it_is_asked_for() {
    let mut quiet = side(Role::Client, KEEPALIVE, 0);
    assert_eq!(quiet.0.poll_timeout(), None);
    open(&mut quiet, 0, None);
    said(&mut quiet, 0);
    read(&mut quiet, 10, answer(1)).unwrap();
    // One look, and then no timer at all. (The bound of the streams' own deadlines goes as well.)
    assert_eq!(pass(&mut quiet, u64::MAX / 1_000), (vec![], None));
    assert_eq!(quiet.0.poll_timeout(), None);

    let idle = Some(Duration::from_secs(300));
    let mut asked = side(Role::Client, Keepalive { idle, ..KEEPALIVE }, 0);
    assert_eq!(pass(&mut asked, 309_999), (vec![(300_000, FrameType::PING)], None));
    read(&mut asked, 309_999, pong()).unwrap();
    // A call in between makes it the shorter time, and its end the longer one again.
    open(&mut asked, 310_000, None);
    said(&mut asked, 310_000);
    assert_eq!(pass(&mut asked, 345_000), (vec![(340_000, FrameType::PING)], None));
    read(&mut asked, 345_000, answer(1)).unwrap();
    let (log, ended) = pass(&mut asked, 700_000);
    assert_eq!(log, [(645_000, FrameType::PING), (655_000, FrameType::GOAWAY)]);
    assert!(ended.is_some());

    let mut never = side(Role::Client, Keepalive::default(), 0);
    open(&mut never, 100_000, None);
    assert_eq!(said(&mut never, 100_000), [FrameType::CALL]);
    assert_eq!(pass(&mut never, 10_000_000).1, None);
    assert_eq!(never.0.streams(), 1);
}

// spec: W9-17
#[test]
fn the_call_after_a_silence_goes_behind_a_ping_that_has_little_time() {
    // The call's timeout, how long HELLO took, and how long the answer may take, in ms.
    for (timeout, greeted, answer_in) in [
        (None, 0, 1_000),
        (Some(60_000), 0, 1_000),
        (Some(2_000), 0, 500),
        (Some(801), 0, 200),
        (Some(50), 0, 200),
        (Some(50), 90, 360),
        (Some(2_000), 600, 1_000),
        (None, 4_000, 1_000),
    ] {
        let name = format!("timeout {timeout:?} ms, HELLO after {greeted} ms");
        let mut side = side(Role::Client, KEEPALIVE, greeted);
        let now = greeted + 15_000;
        open(&mut side, now, timeout);
        assert_eq!(said(&mut side, now), [FrameType::PING, FrameType::CALL], "{name}");
        let (_, ended) = pass(&mut side, now + 20_000);
        let (when, error) = ended.unwrap();
        assert_eq!((when, error.reason), (now + answer_in, Reason::CONNECTION_LOST), "{name}");
    }
}

// spec: W9-17
#[test]
fn a_call_in_a_hurry_shortens_the_wait_and_an_answer_ends_it() {
    let mut side = side(Role::Client, KEEPALIVE, 0);
    open(&mut side, 20_000, None);
    assert_eq!(said(&mut side, 20_000), [FrameType::PING, FrameType::CALL]);
    // No second PING; the answer is due 200 ms from here instead of 900.
    open(&mut side, 20_100, Some(800));
    assert_eq!(said(&mut side, 20_100), [FrameType::CALL]);
    open(&mut side, 20_150, None);
    assert_eq!(said(&mut side, 20_150), [FrameType::CALL]);
    assert_eq!(side.0.poll_timeout(), Some(at(20_300)));
    read(&mut side, 20_299, pong()).unwrap();
    assert_eq!(pass(&mut side, 20_899), (vec![], None));
    assert_eq!(side.0.streams(), 3);
}

#[test]
fn a_call_after_less_silence_goes_alone() {
    let mut calm = side(Role::Client, KEEPALIVE, 0);
    open(&mut calm, 14_999, None);
    assert_eq!(said(&mut calm, 14_999), [FrameType::CALL]);

    // And leaves an answer the time that it has.
    let time = Some(Duration::from_secs(12));
    let mut asked = side(Role::Client, Keepalive { time, ..KEEPALIVE }, 0);
    open(&mut asked, 0, None);
    said(&mut asked, 0);
    assert_eq!(pass(&mut asked, 12_000).0, [(12_000, FrameType::PING)]);
    open(&mut asked, 14_999, Some(400));
    assert_eq!(said(&mut asked, 14_999), [FrameType::CALL]);
    assert_eq!(pass(&mut asked, 21_999).1, None);
    open(&mut asked, 21_950, None);
    said(&mut asked, 21_950);
    assert_eq!(pass(&mut asked, 30_000).1.unwrap().0, 22_000);
}

/// A driver that slept reads what came meanwhile before it looks at the clock: nobody is gone who has answered.
#[test]
fn an_answer_that_was_read_late_counts() {
    let mut side = side(Role::Client, KEEPALIVE, 0);
    open(&mut side, 0, None);
    said(&mut side, 0);
    side.0.handle_timeout(at(30_000)).unwrap();
    assert_eq!(said(&mut side, 30_000), [FrameType::PING]);
    read(&mut side, 9_000_000, pong()).unwrap();
    side.0.handle_timeout(at(9_000_000)).unwrap();
    assert_eq!(side.0.state(), ConnectionState::Open);
}

/// The timer of a busy connection stands still: each frame costs a store, and a look comes once in 30 s.
#[test]
fn who_is_heard_is_never_asked() {
    let mut side = side(Role::Client, KEEPALIVE, 0);
    let mut looks = 0;
    for count in 0..10_000u64 {
        let now = count * 100;
        if side.0.poll_timeout().is_some_and(|due| due <= at(now)) {
            side.0.handle_timeout(at(now)).unwrap();
            looks += 1;
        }
        open(&mut side, now, None);
        assert_eq!(said(&mut side, now), [FrameType::CALL]);
        read(&mut side, now + 50, answer(2 * count + 1)).unwrap();
    }
    // 1,000 s: one for the streams' deadlines and one for this, in 30 s each.
    assert!(looks <= 70, "{looks}");
}

#[test]
fn a_carrier_with_streams_of_its_own_is_asked_on_the_connections() {
    let config = Config { keepalive: KEEPALIVE, multiplexed: true, ..Config::new(Role::Client) };
    let mut side = Side(Connection::new(config, at(0)));
    let mut begun = BytesMut::from(&hello()[..]);
    side.0.handle_read(at(0), &mut begun).unwrap();
    said(&mut side, 0);
    open(&mut side, 15_000, None);
    assert_eq!(said(&mut side, 15_000), [FrameType::PING]);
    let mut out = valkyrie_protocol::TransmitBuffer::default();
    while side.0.poll_stream(at(15_000), &mut out, usize::MAX).is_some() {}
    assert!(!out.is_empty());
    // What comes on the call's stream is an answer, too.
    let part = &answer(1)[..9];
    side.0.handle_stream(at(15_900), 1, false, &mut BytesMut::from(part)).unwrap();
    assert_eq!(pass(&mut side, 16_500), (vec![], None));
}

/// The GOAWAY that a peer of ours is told, which may be there after all.
#[test]
fn the_end_is_told() {
    let mut side = side(Role::Client, KEEPALIVE, 0);
    open(&mut side, 0, None);
    said(&mut side, 0);
    side.0.handle_timeout(at(30_000)).unwrap();
    said(&mut side, 30_000);
    side.0.handle_timeout(at(40_000)).unwrap_err();
    let sent = side.sent(at(40_000), usize::MAX);
    assert_eq!(types(&sent), [FrameType::GOAWAY]);
    let record = Bytes::from(sent[0].record.clone());
    assert_eq!(GoAway::decode(&record).unwrap().code, ErrorCode::TIMEOUT.number());
}

/// A server that lets go of connections that nobody uses for 60 s.
fn leaving() -> Side {
    let max_idle = Some(Duration::from_secs(60));
    let mut side = Side(Connection::new(Config { max_idle, ..Config::new(Role::Server) }, at(0)));
    read(&mut side, 1, hello()).unwrap();
    said(&mut side, 1);
    side.events();
    side
}

fn opened(side: &mut Side) -> StreamKey {
    match side.0.poll_event() {
        Some(Event::Call { key, .. }) => key,
        event => panic!("{event:?}"),
    }
}

#[test]
fn a_connection_that_nobody_uses_is_let_go_of() {
    // Never used.
    assert_eq!(pass(&mut leaving(), u64::MAX / 1_000), (vec![(60_000, FrameType::GOAWAY)], None));

    let mut side = leaving();
    // A call that takes longer than that, and one that begins before it ends and takes a moment more.
    read(&mut side, 1_000, call(1, FLAG_END, b"")).unwrap();
    let first = opened(&mut side);
    assert_eq!(pass(&mut side, 100_000), (vec![], None));
    read(&mut side, 100_000, call(3, FLAG_END, b"")).unwrap();
    let second = opened(&mut side);
    side.0.respond(first, Ok(Finish::default()));
    assert_eq!(said(&mut side, 100_000), [FrameType::STATUS]);
    side.0.respond(second, Ok(Finish::default()));
    assert_eq!(said(&mut side, 100_500), [FrameType::STATUS]);
    // One in between begins it anew, and PINGs do not.
    read(&mut side, 130_000, call(5, FLAG_END, b"")).unwrap();
    let third = opened(&mut side);
    side.0.respond(third, Ok(Finish::default()));
    assert_eq!(said(&mut side, 130_000), [FrameType::STATUS]);
    let ping = Ping { data: 1, extensions: Vec::new() };
    let ping = frame(FrameType::PING, 0, 0, &record(|out| ping.encode(out)), b"");
    read(&mut side, 189_000, ping).unwrap();
    assert_eq!(said(&mut side, 189_000), [FrameType::PONG]);
    assert_eq!(pass(&mut side, u64::MAX / 1_000), (vec![(190_000, FrameType::GOAWAY)], None));
    assert_eq!((side.events(), side.0.poll_timeout()), (vec![Event::Idle], None));
}

// spec: W9-18
#[test]
fn f47_a_call_that_crosses_the_end_of_an_idle_connection_may_be_repeated() {
    let mut server = leaving();
    server.0.handle_timeout(at(60_000)).unwrap();
    assert_eq!(server.events(), [Event::Idle]);
    let told = server.sent(at(60_000), usize::MAX);
    assert_eq!(types(&told), [FrameType::GOAWAY]);

    // Each side reads what the other had sent before it knew.
    let mut client = side(Role::Client, Keepalive::default(), 0);
    let key = open(&mut client, 60_000, None);
    let called = client.sent(at(60_000), usize::MAX);
    assert_eq!(types(&called), [FrameType::CALL]);
    read(&mut server, 60_010, called[0].bytes.clone()).unwrap();
    assert_eq!(server.events(), []);
    let refused = server.sent(at(60_010), usize::MAX);
    assert_eq!(types(&refused), [FrameType::RESET]);
    read(&mut client, 60_010, told[0].bytes.clone()).unwrap();
    let unprocessed =
        |event: &Event| matches!(event, Event::Reset { key: of, unprocessed: true, .. } if *of == key);
    assert!(client.events().iter().any(unprocessed));
    // And what comes behind it changes nothing.
    read(&mut client, 60_020, refused[0].bytes.clone()).unwrap();
    assert_eq!(client.events(), []);
}
