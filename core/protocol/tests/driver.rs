//! What a driver may ask for and gets refused, and the bytes that it is lent to write.

mod side;

use std::{io::IoSlice, time::Duration};

use bytes::Bytes;
use side::{Side, call, frame, record};
use valkyrie_protocol::{
    Code, Config, Connection, ErrorCode, Event, FLAG_END, FLAG_MESSAGE, Finish, FrameType, Hello, Limits,
    Metadata, Opened, Priority, Reason, Role, SendError, Status, StatusRecord, Time, TransmitBuffer,
};

fn opened(method: &'static [u8], message: Option<Bytes>) -> Opened {
    Opened {
        method: Bytes::from_static(method),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: None,
        message,
        end: true,
    }
}

#[test]
fn a_call_that_is_not_legal_is_refused_at_its_door() {
    let mut side = Side::new(Role::Client, Limits { max_waiting_calls: 1, ..Limits::default() });
    let mut large = opened(b"/m", None);
    large.metadata.insert("large-bin", vec![0; 17 << 10]).unwrap();
    for (call, reason) in [
        (opened(b"m", None), Reason::INVALID_METHOD),
        (opened(b"/\xff", None), Reason::INVALID_METHOD),
        (large, Reason::METADATA_TOO_LARGE),
        (opened(b"/m", Some(Bytes::from(vec![0; (4 << 20) + 1]))), Reason::MESSAGE_TOO_LARGE),
    ] {
        assert_eq!(side.0.open(call).unwrap_err().reason(), reason);
    }
    side.0.open(opened(b"/m", None)).unwrap();
    assert_eq!(side.0.open(opened(b"/m", None)).unwrap_err().reason(), Reason::QUEUE_FULL);
    assert_eq!(side.0.streams(), 1);
    side.0.go_away("enough");
    assert_eq!(side.0.open(opened(b"/m", None)).unwrap_err().reason(), Reason::GOING_AWAY);
    side.read(b"GET".to_vec()).unwrap_err();
    assert_eq!(side.0.open(opened(b"/m", None)).unwrap_err().reason(), Reason::BAD_MAGIC);
}

/// The code is what callers act on: it arrives, and what does not fit is left out.
#[test]
fn an_answer_that_is_too_large_becomes_a_status_that_fits() {
    let trailers = Metadata::new().with("large-bin", vec![0; 17 << 10]).unwrap();
    let detailed = Status::from_reason(Reason::ABANDONED, "why").with_detail("a.Type", vec![0; 17 << 10]);
    let message = Some(Bytes::from(vec![0; (4 << 20) + 1]));
    for (outcome, code, reason) in [
        (Ok(Finish { trailers, ..Finish::default() }), Code::ResourceExhausted, Reason::METADATA_TOO_LARGE),
        (Ok(Finish { message, ..Finish::default() }), Code::ResourceExhausted, Reason::MESSAGE_TOO_LARGE),
        (Err(detailed), Code::Internal, Reason::ABANDONED),
    ] {
        let mut side = Side::new(Role::Server, Limits::default());
        let key = side.called(FLAG_END);
        side.0.respond(key, outcome);
        let said = side.said();
        let [(FrameType::STATUS, 1, bytes)] = &said[..] else { panic!("{said:?}") };
        let status = StatusRecord::decode(bytes).unwrap().to_status(&Bytes::copy_from_slice(bytes)).unwrap();
        assert_eq!((status.code(), status.reason(), status.details()), (code, reason, &[][..]));
    }
}

#[test]
fn messages_without_a_byte_fill_the_send_buffer_too() {
    let limits = Limits { stream_send_buffer_bytes: 4 << 10, ..Limits::default() };
    let mut side = Side::new(Role::Client, limits);
    let key = side.call(false);
    let fill = |side: &mut Side| (0..).take_while(|_| side.0.send(key, Bytes::new()).is_ok()).count();
    // One that is on its way, and as many as the buffer holds at what each costs.
    let most = 1 + (4 << 10) / Limits::MESSAGE_COST + 1;
    assert_eq!(fill(&mut side), most);
    assert_eq!(side.0.send(key, Bytes::new()), Err(SendError::Full(Bytes::new())));
    assert_eq!(side.said().len(), most);
    assert_eq!(side.events(), [Event::Writable { key }]);
    assert_eq!(fill(&mut side), most);
}

#[test]
fn a_stream_that_asks_too_much_is_counted_against_its_peer() {
    let mut side = Side::new(Role::Server, Limits { max_resets: 1, ..Limits::default() });
    for stream in [1, 3] {
        side.read(call(stream, FLAG_END, b"")).unwrap();
        let [Event::Call { key, .. }] = side.events()[..] else { panic!("no call") };
        side.0.reset_abused(key);
    }
    let said: Vec<_> = side.said().into_iter().map(|(frame_type, stream, _)| (frame_type, stream)).collect();
    assert_eq!(said, [(FrameType::RESET, 1), (FrameType::RESET, 3), (FrameType::GOAWAY, 0)]);
    let error = side.read(call(5, FLAG_END, b"")).unwrap_err();
    assert_eq!(error.code, ErrorCode::ENHANCE_CALM);
}

#[test]
fn what_remains_of_a_deadline_is_told() {
    let mut side = Side::new(Role::Client, Limits::default());
    let mut call = opened(b"/m", None);
    call.deadline = Some(Time::from_micros(5_000));
    let key = side.0.open(call).unwrap();
    assert_eq!(side.0.remaining(key, Time::from_micros(2_000)), Some(Duration::from_millis(3)));
    assert_eq!(side.0.remaining(key, Time::from_micros(9_000)), Some(Duration::ZERO));
    side.0.reset(key, ErrorCode::CANCEL);
    assert_eq!(side.0.remaining(key, Time::default()), None);
}

/// The stream's window is smaller than the connection's here, so that each is passed on its own.
// spec: W8-01
#[test]
fn more_than_a_streams_window_is_refused_in_every_frame_that_carries() {
    let limits = Limits { stream_window_bytes: 64 << 10, max_frame_bytes: 128 << 10, ..Limits::default() };
    let beyond = vec![0; (64 << 10) + 1];
    let mut server = Side::new(Role::Server, limits);
    assert_eq!(server.read(call(1, FLAG_MESSAGE, &beyond)).unwrap_err().code, ErrorCode::FLOW_CONTROL);
    let mut client = Side::new(Role::Client, limits);
    client.call(true);
    let ok = record(|out| StatusRecord::from_status(&Status::new(Code::Ok, "")).encode(out));
    let status = frame(FrameType::STATUS, FLAG_END | FLAG_MESSAGE, 1, &ok, &beyond);
    assert_eq!(client.read(status).unwrap_err().code, ErrorCode::FLOW_CONTROL);
}

fn bytes(out: &TransmitBuffer) -> Vec<u8> {
    let mut parts = vec![IoSlice::new(&[]); out.part_count()];
    let count = out.parts(&mut parts);
    parts[..count].iter().flat_map(|part| part.iter().copied()).collect()
}

/// A client with two short calls around a long one, which is written from where it is.
fn written() -> TransmitBuffer {
    let mut side = Side(Connection::new(Config::new(Role::Client), Time::default()));
    let settings = vec![(1, 64 << 10), (2, 64 << 10)];
    let hello = Hello { min_version: 1, max_version: 1, features: 0, settings, extensions: Vec::new() };
    side.read(frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"")).unwrap();
    side.said();
    let mut out = TransmitBuffer::default();
    for len in [3, 20 << 10, 5] {
        side.0.open(opened(b"/m", Some(Bytes::from(vec![len as u8; len])))).unwrap();
    }
    side.0.poll_transmit(Time::default(), &mut out, usize::MAX);
    out
}

#[test]
fn whatever_the_transport_takes_the_rest_follows() {
    let whole = bytes(&written());
    assert_eq!(written().part_count(), 3);
    for step in [1, 7, 41, 1_000, 20 << 10, usize::MAX] {
        let mut out = written();
        let mut taken = Vec::new();
        while !out.is_empty() {
            assert_eq!(out.len() + taken.len(), whole.len());
            // A transport that takes no more than one part at a time.
            let mut part = [IoSlice::new(&[])];
            assert_eq!(out.parts(&mut part), 1);
            let len = part[0].len().min(step);
            taken.extend_from_slice(&part[0][..len]);
            out.consume(len);
        }
        assert_eq!(taken, whole, "steps of {step}");
        assert_eq!(out.part_count(), 0);
    }
}

#[test]
fn what_waits_elsewhere_is_moved_behind_what_waits_here() {
    let whole = bytes(&written());
    for taken in [0, 10, whole.len()] {
        let (mut here, mut there) = (written(), written());
        here.consume(taken);
        here.append_all(&mut there);
        assert_eq!(bytes(&here), [&whole[taken..], &whole].concat());
        assert_eq!((here.len(), there.len(), there.part_count()), (whole.len() * 2 - taken, 0, 0));
    }
}
