//! How a later version meets this one: an old client with a new server and the reverse. The next version is played by
//! this crate with a wider range, a feature that nobody else has, and frames made by hand.

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use side::{Sent, Side, frame, record};
use valkyrie_protocol::{
    Code, Config, Connection, ConnectionState, ErrorCode, Event, FLAG_END, Finish, FrameType, GoAway, Hello,
    Metadata, OPTIONAL_ID, Opened, Priority, Reason, Role, Time,
};

mod side;

const AT_ONCE: Time = Time::from_micros(0);
/// An invented feature of the next version.
const FEATURE: u64 = 1 << 40;

fn offering(role: Role, lowest: u8, highest: u8) -> Side {
    let features = if highest > 1 { FEATURE } else { 0 };
    Side(Connection::new(Config { versions: lowest..=highest, features, ..Config::new(role) }, AT_ONCE))
}

fn unary() -> Opened {
    Opened {
        method: Bytes::from_static(b"/m"),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: None,
        message: Some(Bytes::from_static(b"question")),
        end: true,
    }
}

/// What the headers of the frames say.
fn versions(sent: &[Sent]) -> Vec<(FrameType, u8)> {
    sent.iter().map(|sent| (sent.header.frame_type, sent.bytes[4])).collect()
}

fn whole(sent: Vec<Sent>) -> Vec<u8> {
    sent.into_iter().flat_map(|sent| sent.bytes).collect()
}

// spec: W6-03, W6-05, W6-06, W6-07
#[test]
fn old_and_new_meet_in_the_highest_version_of_both() {
    for (client_range, server_range, agreed) in [
        ((1, 1), (1, 1), 1),
        ((1, 1), (1, 2), 1),
        ((1, 2), (1, 1), 1),
        ((1, 2), (1, 2), 2),
        ((2, 3), (1, 2), 2),
        ((1, 9), (1, 4), 4),
    ] {
        let mut client = offering(Role::Client, client_range.0, client_range.1);
        let mut server = offering(Role::Server, server_range.0, server_range.1);
        // The first flight: HELLO says 1, and the call behind it what the client speaks at least.
        let key = client.0.open(unary()).unwrap();
        let first = client.sent(AT_ONCE, usize::MAX);
        assert_eq!(versions(&first), [(FrameType::HELLO, 1), (FrameType::CALL, client_range.0)]);
        server.read(whole(first)).unwrap();
        let both = if client_range.1 > 1 && server_range.1 > 1 { FEATURE } else { 0 };
        assert_eq!((server.0.version(), server.0.features()), (agreed, both));
        let events = server.events();
        let [Event::Connected, Event::Call { key: asked, message: Some(message), .. }] = &events[..] else {
            panic!("{events:?}")
        };
        server.0.respond(*asked, Ok(Finish { message: Some(message.clone()), ..Finish::default() }));
        let answer = server.sent(AT_ONCE, usize::MAX);
        assert_eq!(versions(&answer), [(FrameType::HELLO, 1), (FrameType::STATUS, agreed)]);
        client.read(whole(answer)).unwrap();
        assert_eq!((client.0.version(), client.0.features()), (agreed, both));
        let events = client.events();
        let [Event::Connected, Event::Ended { key: answered, outcome: Ok(finish) }] = &events[..] else {
            panic!("{events:?}")
        };
        assert_eq!((*answered, finish.message.as_deref()), (key, Some(&b"question"[..])));
        // From then on both say what they agreed on.
        client.0.open(unary()).unwrap();
        let next = client.sent(AT_ONCE, usize::MAX);
        assert_eq!(versions(&next), [(FrameType::CALL, agreed)]);
        server.read(whole(next)).unwrap();
        server.0.go_away("enough");
        assert_eq!(versions(&server.sent(AT_ONCE, usize::MAX)), [(FrameType::GOAWAY, 1)]);
    }
}

// spec: W6-03, W6-04
#[test]
fn sides_without_a_shared_version_tell_each_other_what_would_have_worked() {
    for (client_range, server_range) in
        [((1, 1), (2, 3)), ((2, 3), (1, 1)), ((1, 2), (3, 3)), ((2, 1), (1, 2))]
    {
        let mut client = offering(Role::Client, client_range.0, client_range.1);
        let mut server = offering(Role::Server, server_range.0, server_range.1);
        let key = client.0.open(unary()).unwrap();
        let error = server.read(whole(client.sent(AT_ONCE, usize::MAX))).unwrap_err();
        assert_eq!(error.code, ErrorCode::VERSION);
        assert_eq!(server.events(), [], "no call was processed");
        let said = server.sent(AT_ONCE, usize::MAX);
        assert_eq!(versions(&said), [(FrameType::HELLO, 1), (FrameType::GOAWAY, 1)]);
        let go_away = GoAway::decode(&said[1].record).unwrap();
        assert_eq!(go_away.extensions, [(1, &[server_range.0, server_range.1][..])]);
        // The client finds it out by the server's HELLO, or hears it when the HELLO is lost.
        let mut other = offering(Role::Client, client_range.0, client_range.1);
        assert_eq!(other.read(said[0].bytes.clone()).unwrap_err().code, ErrorCode::VERSION);
        client.read(said[1].bytes.clone()).unwrap();
        match &client.events()[..] {
            [Event::Reset { key: ended, status, unprocessed: true }, Event::GoAway { .. }]
                if *ended == key =>
            {
                assert_eq!((status.code(), status.reason()), (Code::Unimplemented, Reason::VERSION_MISMATCH));
                let theirs = format!("versions {} to {}", server_range.0, server_range.1);
                assert!(status.message().contains(&theirs), "{status}");
            }
            other => panic!("{other:?}"),
        }
    }
}

// spec: W6-05, W6-06
#[test]
fn a_frame_says_a_version_that_the_connection_has() {
    // HELLO of 1 to 2, and a frame behind it that says so much.
    let hello = |lowest, highest| {
        let hello = Hello {
            min_version: lowest,
            max_version: highest,
            features: 0,
            settings: vec![],
            extensions: vec![],
        };
        frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"")
    };
    let saying = |version, mut bytes: Vec<u8>| {
        bytes[4] = version;
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let refused = Err(ErrorCode::VERSION);
    for (range, highest, version, expected) in [
        ((1, 1), 2, 1, Ok(())),
        ((1, 1), 2, 2, refused),
        ((1, 2), 2, 1, Ok(())),
        ((1, 2), 2, 2, Ok(())),
        ((1, 2), 2, 3, refused),
        ((1, 3), 2, 3, refused),
        ((2, 3), 2, 1, refused),
        ((1, 2), 2, 0, refused),
    ] {
        let mut side = offering(Role::Server, range.0, range.1);
        side.read(hello(1, highest)).unwrap();
        let call = saying(version, side::call(1, FLAG_END, b""));
        assert_eq!(side.read(call).map_err(|error| error.code), expected, "{version} of {range:?}");
        let mut side = offering(Role::Server, range.0, range.1);
        assert_eq!(side.read(saying(2, hello(1, 2))).unwrap_err().code, ErrorCode::VERSION, "a HELLO of 2");
    }
}

/// A later version greets with everything that may be added, and then speaks this one.
// spec: W4-01, W5-05, W6-07, W6-09
#[test]
fn what_a_later_version_may_add_does_not_keep_this_one_from_answering() {
    for role in [Role::Server, Role::Client] {
        let mut old = Side(Connection::new(Config::new(role), AT_ONCE));
        let hello = Hello {
            min_version: 1,
            max_version: 7,
            features: u64::MAX,
            settings: vec![(OPTIONAL_ID | 1_000, 0), (2, 1 << 20), (OPTIONAL_ID | 77, u64::MAX)],
            extensions: vec![(OPTIONAL_ID | 1_000, b"ticket")],
        };
        let hello = frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"");
        let later = frame(FrameType(0x91), 0x0100, 5, b"record", b"payload");
        old.read([hello, later].concat()).unwrap();
        assert_eq!((old.0.version(), old.0.features(), old.0.state()), (1, 0, ConnectionState::Open));
        assert_eq!(old.0.peer_limits().max_message_bytes, 1 << 20);
        assert_eq!(old.events(), [Event::Connected]);
        match role {
            Role::Server => drop(old.called(FLAG_END)),
            Role::Client => {
                old.said();
                old.call(true);
            }
        }
    }
}

/// The vectors of version 1 hold for whoever speaks it, and also something newer.
// spec: W12-02
#[test]
fn a_later_version_reads_the_vectors_of_this_one_alike() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/v1.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let unhex = |value: &Value| -> Vec<u8> {
        let text = value.as_str().unwrap();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let read = |highest: u8, greet: bool, hex: &Value| {
        let mut side = offering(Role::Server, 1, highest);
        let mut bytes = if greet { unhex(&vectors["hello"]) } else { Vec::new() };
        bytes.extend(unhex(hex));
        let read = side.0.handle_read(AT_ONCE, &mut BytesMut::from(&bytes[..]));
        // What it speaks itself stands in the message of one vector.
        let events =
            format!("{:?}", side.events()).replace(&format!("this side 1 to {highest}"), "this side");
        (read.map_err(|error| error.code), events)
    };
    let mut compared = 0;
    for kind in ["frames", "broken"] {
        for vector in vectors[kind].as_array().unwrap() {
            let name = vector["name"].as_str().unwrap();
            let greet = vector["type"] != "HELLO" && !name.starts_with("first: ");
            // The one that this version cannot talk to is the one that the next one can.
            if name != "first: a newer version only" {
                assert_eq!(read(1, greet, &vector["hex"]), read(2, greet, &vector["hex"]), "{name}");
                compared += 1;
            }
        }
    }
    assert!(compared > 80, "{compared} vectors");
}
