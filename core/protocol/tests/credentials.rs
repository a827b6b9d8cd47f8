//! Credentials: who may send them when, what waits for the decision on them, and what their end ends.

use std::{io::IoSlice, time::Duration};

use bytes::{Bytes, BytesMut};
use side::{Sent, call, frame, frames, hello, message, record};
use valkyrie_protocol::{
    AUTH_FOLLOWS, Auth, Authenticated, Config, Connection, ConnectionError, ConnectionState, ErrorCode,
    Event, FLAG_END, FLAG_MESSAGE, Finish, FrameType, GoAway, Hello, Limits, Metadata, Opened, Priority,
    Reason, Reset, Role, StreamAction, Time, TransmitBuffer,
};

mod side;

const START: Time = Time::from_micros(0);
const UNARY: u16 = FLAG_END | FLAG_MESSAGE;

fn at(seconds: u64) -> Time {
    START.after(Duration::from_secs(seconds))
}

fn connection(role: Role, authenticates: bool) -> Connection {
    Connection::new(Config { authenticates, ..Config::new(role) }, START)
}

fn sent(connection: &mut Connection, now: Time) -> Vec<Sent> {
    let mut out = TransmitBuffer::default();
    connection.poll_transmit(now, &mut out, usize::MAX);
    let mut parts = vec![IoSlice::new(&[]); out.part_count()];
    let count = out.parts(&mut parts);
    frames(&parts[..count].iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>())
}

fn kinds(sent: &[Sent]) -> Vec<FrameType> {
    sent.iter().map(|sent| sent.header.frame_type).collect()
}

fn events(connection: &mut Connection) -> Vec<Event> {
    std::iter::from_fn(|| connection.poll_event()).collect()
}

/// Carries everything that one side has for the other.
fn carry(from: &mut Connection, to: &mut Connection, now: Time) -> Result<Vec<Event>, ConnectionError> {
    let bytes: Vec<u8> = sent(from, now).into_iter().flat_map(|sent| sent.bytes).collect();
    to.handle_read(now, &mut BytesMut::from(&bytes[..]))?;
    Ok(events(to))
}

fn announced() -> Vec<u8> {
    let (settings, extensions) = (Vec::new(), vec![(AUTH_FOLLOWS, &b"ignored"[..])]);
    let hello = Hello { min_version: 1, max_version: 1, features: 0, settings, extensions };
    frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"")
}

fn auth(token: &[u8]) -> Vec<u8> {
    let auth = Auth { token, extensions: Vec::new() };
    frame(FrameType::AUTH, 0, 0, &record(|out| auth.encode(out)), b"")
}

fn authenticated(expires_in_ms: u64) -> Vec<u8> {
    let answer = Authenticated { expires_in_ms, extensions: Vec::new() };
    frame(FrameType::AUTHENTICATED, 0, 0, &record(|out| answer.encode(out)), b"")
}

fn opened() -> Opened {
    Opened {
        method: Bytes::from_static(b"/m"),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: None,
        message: None,
        end: false,
    }
}

/// A server whose client was accepted for `expires_in`, with what it said so far taken away.
fn accepted(expires_in: Option<Duration>) -> Connection {
    let mut server = connection(Role::Server, true);
    server.handle_read(START, &mut BytesMut::from(&[announced(), auth(b"first")].concat()[..])).unwrap();
    assert!(
        matches!(&events(&mut server)[..], [Event::Connected, Event::Auth { token }] if token.as_bytes() == b"first")
    );
    server.accept_credentials(START, expires_in);
    sent(&mut server, START);
    server
}

/// A client and the server that accepted it.
fn pair(expires_in: Duration) -> (Connection, Connection) {
    let (mut client, mut server) = (connection(Role::Client, true), connection(Role::Server, true));
    assert!(client.authenticate(b"first"));
    carry(&mut client, &mut server, START).unwrap();
    server.accept_credentials(START, Some(expires_in));
    carry(&mut server, &mut client, START).unwrap();
    (client, server)
}

fn read(connection: &mut Connection, now: Time, bytes: &[u8]) -> Result<(), ConnectionError> {
    connection.handle_read(now, &mut BytesMut::from(bytes))
}

fn go_away(sent: &Sent) -> (u64, ErrorCode, String) {
    assert_eq!(sent.header.frame_type, FrameType::GOAWAY);
    let read = GoAway::decode(&sent.record).unwrap();
    (read.last_stream, ErrorCode::from_number(read.code), read.message.to_owned())
}

/// HELLO, AUTH and calls are one flight; a call that is opened before there is a token waits for it.
// spec: W6-13
#[test]
fn credentials_go_ahead_of_calls() {
    let mut client = connection(Role::Client, true);
    client.open(opened()).unwrap();
    assert_eq!(kinds(&sent(&mut client, START)), [FrameType::HELLO]);
    assert!(!client.wants_transmit());
    assert!(client.authenticate(b"token"));
    assert!(!client.authenticate(b"another"), "one at a time");
    assert_eq!(kinds(&sent(&mut client, START)), [FrameType::AUTH, FrameType::CALL]);

    let mut client = connection(Role::Client, true);
    assert!(client.authenticate(b"token"));
    client.open(opened()).unwrap();
    let flight = sent(&mut client, START);
    assert_eq!(kinds(&flight), [FrameType::HELLO, FrameType::AUTH, FrameType::CALL]);
    assert_eq!(Auth::decode(&flight[1].record).unwrap().token, b"token");

    assert!(!connection(Role::Client, false).authenticate(b"token"), "hello did not speak of it");
    assert!(!connection(Role::Client, true).authenticate(&[0; 8_193]));
    let mut server = connection(Role::Server, true);
    assert!(!server.authenticate(b"token"));
    let error = read(&mut server, START, &[announced(), call(1, UNARY, b"x")].concat()).unwrap_err();
    assert_eq!(error.code, ErrorCode::PROTOCOL);
    let mut server = connection(Role::Server, true);
    let error = read(&mut server, START, &[hello(), auth(b"unannounced")].concat()).unwrap_err();
    assert_eq!(error.code, ErrorCode::UNKNOWN_FRAME);
}

/// However the bytes are cut: no call before the decision, all of them after it.
// spec: W6-14
#[test]
fn what_stands_behind_a_first_auth_waits_for_the_decision() {
    let ping = frame(FrameType::PING, 0, 0, &[7, 0], b"");
    let flight = [announced(), auth(b"token"), ping, call(1, UNARY, b"one"), call(3, UNARY, b"two")].concat();
    for cut in 0..=flight.len() {
        let mut server = connection(Role::Server, true);
        sent(&mut server, START);
        let mut buffer = BytesMut::from(&flight[..cut]);
        server.handle_read(START, &mut buffer).unwrap();
        buffer.extend_from_slice(&flight[cut..]);
        server.handle_read(START, &mut buffer).unwrap();
        assert!(matches!(&events(&mut server)[..], [Event::Connected, Event::Auth { .. }]));
        assert!(server.holds_back() && sent(&mut server, START).is_empty());
        server.accept_credentials(START, None);
        assert!(!server.holds_back());
        server.handle_read(START, &mut buffer).unwrap();
        assert!(matches!(&events(&mut server)[..], [Event::Call { .. }, Event::Call { .. }]));
        assert_eq!(kinds(&sent(&mut server, START)), [FrameType::AUTHENTICATED, FrameType::PONG]);
        assert_eq!(server.poll_timeout(), None, "the handshake's timer stands still");
    }
    // The border of a carrier's message is looked for once all of it is.
    let mut server = connection(Role::Server, true);
    let mut buffer = BytesMut::from(&flight[..flight.len() - 1]);
    server.handle_message(START, &mut buffer).unwrap();
    server.accept_credentials(START, None);
    assert_eq!(server.handle_message(START, &mut buffer).unwrap_err().code, ErrorCode::PROTOCOL);
}

// spec: W6-14
#[test]
fn a_decision_that_does_not_come_ends_the_handshake() {
    for flight in [announced(), [announced(), auth(b"token")].concat()] {
        let mut server = connection(Role::Server, true);
        read(&mut server, START, &flight).unwrap();
        assert_eq!(server.poll_timeout(), Some(at(5)));
        assert_eq!(server.handle_timeout(at(5)).unwrap_err().code, ErrorCode::TIMEOUT);
        server.accept_credentials(at(6), None);
        assert_eq!(server.state(), ConnectionState::Closed);
    }
}

/// Where streams are the carrier's, calls overtake AUTH: HELLO says that it is to come.
// spec: W6-14
#[test]
fn streams_of_calls_are_not_read_before_the_decision() {
    let mut server = Connection::new(
        Config { multiplexed: true, authenticates: true, ..Config::new(Role::Server) },
        START,
    );
    assert!(!server.may_read(1));
    read(&mut server, START, &announced()).unwrap();
    assert!(!server.may_read(1));
    read(&mut server, START, &auth(b"token")).unwrap();
    assert!(!server.may_read(1));
    server.accept_credentials(START, None);
    assert!(server.may_read(1));

    let mut client = Connection::new(
        Config { multiplexed: true, authenticates: true, ..Config::new(Role::Client) },
        START,
    );
    client.open(opened()).unwrap();
    let mut out = TransmitBuffer::default();
    assert_eq!(client.poll_stream(START, &mut out, usize::MAX), None);
    assert!(client.authenticate(b"token"));
    assert!(matches!(
        client.poll_stream(START, &mut out, usize::MAX),
        Some(StreamAction::Write { id: 1, .. })
    ));
}

// spec: W6-16
#[test]
fn a_server_that_does_not_check_accepts_all() {
    let mut client = connection(Role::Client, true);
    let mut server = connection(Role::Server, false);
    client.authenticate(b"whatever");
    client.open(opened()).unwrap();
    let seen = carry(&mut client, &mut server, START).unwrap();
    assert!(matches!(&seen[..], [Event::Connected, Event::Call { .. }]));
    let seen = carry(&mut server, &mut client, START).unwrap();
    assert_eq!(seen, [Event::Connected, Event::Authenticated { expires_in: None }]);

    // Their end is told in whole milliseconds, and never as never.
    for (left, ms) in [(Duration::from_micros(3), 1), (Duration::from_secs(60), 60_000)] {
        let mut server = connection(Role::Server, true);
        sent(&mut server, START);
        read(&mut server, START, &[announced(), auth(b"")].concat()).unwrap();
        server.accept_credentials(START, Some(left));
        let said = sent(&mut server, START);
        assert_eq!(Authenticated::decode(&said[0].record).unwrap().expires_in_ms, ms);
        assert_eq!(server.credentials_end(), Some(START.after(left)));
    }
}

// spec: W6-17
#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let refused = |mut side: Connection, bytes: Vec<u8>| {
        let error = read(&mut side, START, &bytes).unwrap_err();
        assert_eq!(error.code, ErrorCode::PROTOCOL, "{error}");
    };
    refused(connection(Role::Client, true), [hello(), authenticated(0)].concat());
    refused(connection(Role::Client, false), [hello(), auth(b"token")].concat());
    refused(connection(Role::Server, true), [announced(), authenticated(0)].concat());
    refused(accepted(None), [auth(b"second"), auth(b"third")].concat());
    let mut client = connection(Role::Client, true);
    client.authenticate(b"token");
    refused(client, [hello(), authenticated(0), authenticated(0)].concat());
}

/// A refresh holds nothing up, and a stream goes on across any number of them.
// spec: W6-18
#[test]
fn streams_go_on_while_credentials_change() {
    let (mut client, mut server) = pair(Duration::from_secs(10));
    let stream = client.open(opened()).unwrap();
    let mut key = None;
    for second in (5..500).step_by(5) {
        assert!(client.authenticate(second.to_string().as_bytes()));
        client.send(stream, Bytes::from_static(b"x")).unwrap();
        let seen = carry(&mut client, &mut server, at(second)).unwrap();
        match &seen[..] {
            [Event::Auth { .. }, Event::Call { key: called, .. }, Event::Message { .. }] => {
                key = Some(*called)
            }
            [Event::Auth { .. }, Event::Message { .. }] => {}
            other => panic!("{other:?}"),
        }
        server.handle_timeout(at(second)).unwrap();
        server.accept_credentials(at(second), Some(Duration::from_secs(10)));
        let seen = carry(&mut server, &mut client, at(second)).unwrap();
        assert!(
            seen.contains(&Event::Authenticated { expires_in: Some(Duration::from_secs(10)) }),
            "{seen:?}"
        );
    }
    client.finish(stream);
    carry(&mut client, &mut server, at(500)).unwrap();
    server.respond(key.unwrap(), Ok(Finish::default()));
    let seen = carry(&mut server, &mut client, at(500)).unwrap();
    assert!(matches!(&seen[..], [Event::Ended { outcome: Ok(_), .. }]), "{seen:?}");
}

/// The first: nothing was processed, which does not mean that it may be tried again.
// spec: W6-19, W6-21
#[test]
fn refused_credentials_end_the_connection_with_one_sentence() {
    let mut sizes = Vec::new();
    for token in [&b""[..], b"forged", &[b'x'; 8_192]] {
        let mut client = connection(Role::Client, true);
        let mut server = connection(Role::Server, true);
        client.authenticate(token);
        let stream = client.open(opened()).unwrap();
        let seen = carry(&mut client, &mut server, START).unwrap();
        assert!(matches!(&seen[..], [Event::Connected, Event::Auth { .. }]));
        sent(&mut server, START);
        server.refuse_credentials(START);
        assert_eq!(server.state(), ConnectionState::Closed);
        let said = sent(&mut server, START);
        assert_eq!(go_away(&said[0]).0, 0);
        assert_eq!(go_away(&said[0]).1, ErrorCode::UNAUTHENTICATED);
        sizes.push(said[0].bytes.clone());
        read(&mut client, START, &[hello(), said[0].bytes.clone()].concat()).unwrap();
        let seen = events(&mut client);
        let [Event::Connected, Event::Reset { key, status, unprocessed: true }, Event::GoAway { error }] =
            &seen[..]
        else {
            panic!("{seen:?}")
        };
        assert_eq!(
            (*key, status.reason(), error.reason),
            (stream, Reason::CREDENTIALS_REFUSED, Reason::CREDENTIALS_REFUSED)
        );
        assert!(!status.is_retryable());
        assert!(client.is_draining() && !client.authenticate(b"another"));
        // There is nothing left to refuse, and a client has nothing to refuse at all.
        for side in [&mut client, &mut server] {
            side.refuse_credentials(START);
            assert_eq!(sent(side, START).len(), 0);
        }
        // A call that came a moment later hears the same.
        let late = client.open(opened()).unwrap_err();
        assert_eq!((late.reason(), client.unauthenticated()), (Reason::CREDENTIALS_REFUSED, Some(late)));
    }
    assert!(sizes.windows(2).all(|pair| pair[0] == pair[1]), "the answer tells the tokens apart");
}

// spec: W6-19, W6-20
#[test]
fn a_refused_refresh_drains_until_the_old_credentials_end() {
    let mut server = accepted(Some(Duration::from_secs(60)));
    read(&mut server, at(1), &[call(1, 0, b""), auth(b"forged"), call(3, UNARY, b"x")].concat()).unwrap();
    let seen = events(&mut server);
    let [Event::Call { key, .. }, Event::Auth { .. }, Event::Call { key: second, .. }] = seen[..] else {
        panic!("{seen:?}")
    };
    server.refuse_credentials(at(1));
    assert_eq!(server.state(), ConnectionState::Draining);
    server.respond(second, Ok(Finish::default()));
    let said = sent(&mut server, at(1));
    assert_eq!(go_away(&said[0]).0, 3);
    assert_eq!(go_away(&said[0]).1, ErrorCode::UNAUTHENTICATED);
    assert_eq!(said[1].header.frame_type, FrameType::STATUS);
    // The stream goes on; another call is one that was not processed.
    read(
        &mut server,
        at(2),
        &[message(1, FLAG_MESSAGE, b"on"), call(5, UNARY, b"x"), auth(b"late")].concat(),
    )
    .unwrap();
    assert_eq!(events(&mut server), [Event::Message { key, message: Bytes::from_static(b"on") }]);
    assert_eq!(Reset::decode(&sent(&mut server, at(2))[0].record).unwrap().code, ErrorCode::REFUSED.number());
    server.handle_timeout(at(60)).unwrap();
    let seen = events(&mut server);
    assert!(matches!(&seen[..], [Event::Reset { .. }, Event::Expired]), "{seen:?}");
    let said = sent(&mut server, at(60));
    assert_eq!(kinds(&said), [FrameType::RESET], "the go-away was told");
    assert_eq!(Reset::decode(&said[0].record).unwrap().code, ErrorCode::UNAUTHENTICATED.number());
}

/// What runs is reset, what comes is not processed: in the very read that is too late.
// spec: W6-20
#[test]
fn nothing_is_processed_once_credentials_have_expired() {
    for by_timer in [true, false] {
        let (mut client, mut server) = pair(Duration::from_secs(60));
        let running = client.open(opened()).unwrap();
        let seen = carry(&mut client, &mut server, at(59)).unwrap();
        assert!(matches!(&seen[..], [Event::Call { .. }]));
        assert_eq!(server.poll_timeout(), Some(at(60)));
        let late = client.open(opened()).unwrap();
        let mut seen = Vec::new();
        if by_timer {
            server.handle_timeout(at(60)).unwrap();
            seen = events(&mut server);
        }
        seen.extend(carry(&mut client, &mut server, at(60)).unwrap());
        assert!(matches!(&seen[..], [Event::Reset { .. }, Event::Expired]), "{seen:?}");
        assert_eq!(server.streams(), 0);
        assert!(server.is_draining() && server.credentials_end().is_none());
        let seen = carry(&mut server, &mut client, at(60)).unwrap();
        let statuses: Vec<_> = seen
            .iter()
            .filter_map(|event| match event {
                Event::Reset { key, status, unprocessed } => Some((*key, status.reason(), *unprocessed)),
                _ => None,
            })
            .collect();
        let expired = Reason::CREDENTIALS_EXPIRED;
        // The call that was on its way is refused as well, which finds nobody.
        assert_eq!(statuses, [(late, expired, true), (running, expired, false)]);
    }
}

/// Streams that are the carrier's are reset by it.
// spec: W6-20
#[test]
fn expiry_resets_the_streams_of_a_carrier_too() {
    let mut server = Connection::new(
        Config { multiplexed: true, authenticates: true, ..Config::new(Role::Server) },
        START,
    );
    read(&mut server, START, &[announced(), auth(b"token")].concat()).unwrap();
    server.accept_credentials(START, Some(Duration::from_secs(1)));
    assert!(server.handle_stream(START, 1, false, &mut BytesMut::from(&call(1, 0, b"")[..])).unwrap());
    server.handle_timeout(at(1)).unwrap();
    let mut out = TransmitBuffer::default();
    let action = server.poll_stream(at(1), &mut out, usize::MAX);
    assert_eq!(action, Some(StreamAction::Reset { id: 1, code: ErrorCode::UNAUTHENTICATED }));
    // A client that hears of the end of its stream first knows what it means.
    let mut client = Connection::new(
        Config { multiplexed: true, authenticates: true, ..Config::new(Role::Client) },
        START,
    );
    client.authenticate(b"token");
    read(&mut client, START, &[hello(), authenticated(1_000)].concat()).unwrap();
    client.open(opened()).unwrap();
    client.poll_stream(START, &mut out, usize::MAX).unwrap();
    client.handle_stream_reset(1, ErrorCode::UNAUTHENTICATED).unwrap();
    assert!(client.is_draining());
    assert_eq!(client.open(opened()).unwrap_err().reason(), Reason::CREDENTIALS_EXPIRED);
    let go_away = GoAway {
        last_stream: 1,
        code: ErrorCode::UNAUTHENTICATED.number(),
        message: "expired",
        extensions: Vec::new(),
    };
    read(&mut client, START, &frame(FrameType::GOAWAY, 0, 0, &record(|out| go_away.encode(out)), b""))
        .unwrap();
    assert_eq!(client.unauthenticated().unwrap().reason(), Reason::CREDENTIALS_EXPIRED);
    out.consume(out.len());
    // And one that overtook its end.
    assert!(server.handle_stream(at(1), 3, false, &mut BytesMut::from(&call(3, 0, b"")[..])).unwrap());
    assert_eq!(
        server.poll_stream(at(1), &mut out, usize::MAX),
        Some(StreamAction::Reset { id: 3, code: ErrorCode::REFUSED })
    );
}

/// Five at once and one each second; beyond it they cost what glitches do.
// spec: W9-08
#[test]
fn a_flood_of_credentials_ends_the_connection() {
    let limits = Limits { max_glitches: 10, ..Limits::default() };
    for (authenticates, every, most) in [(true, 0, 15), (false, 0, 15), (true, 1, u64::MAX)] {
        let mut server =
            Connection::new(Config { authenticates, limits, ..Config::new(Role::Server) }, START);
        read(&mut server, START, &announced()).unwrap();
        let mut taken = 0;
        let error = loop {
            if taken == 100 {
                break None;
            }
            let now = at(taken * every);
            if let Err(error) = read(&mut server, now, &auth(b"token")) {
                break Some(error.code);
            }
            taken += 1;
            server.accept_credentials(now, None);
            sent(&mut server, now);
        };
        if every == 1 {
            assert_eq!(error, None);
        } else {
            assert_eq!((error, taken), (Some(ErrorCode::ENHANCE_CALM), most));
        }
    }
}

/// Tokens are in nothing that a log may print.
#[test]
fn debug_shows_no_token() {
    let mut client = connection(Role::Client, true);
    client.authenticate(b"canary");
    let mut out = TransmitBuffer::default();
    let shown = format!("{client:?}");
    client.poll_transmit(START, &mut out, usize::MAX);
    let mut server = connection(Role::Server, true);
    read(&mut server, START, &[announced(), auth(b"canary")].concat()).unwrap();
    let shown = format!("{shown} {out:?} {server:?} {:?}", events(&mut server));
    let shown = format!("{shown} {:?}", Auth { token: b"canary", extensions: Vec::new() });
    assert!(!shown.contains("canary") && !shown.contains("99, 97, 110"), "{shown}");
}
