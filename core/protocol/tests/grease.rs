//! Grease: what a side sends at random for others to skip, and that everybody does, the stranger too.
//!
//! A failure prints its seed; `VALKYRIE_SEED=n` begins with that one.

use std::{
    hash::{BuildHasher, RandomState},
    io::Write,
    process::{Command, Stdio},
};

use bytes::Bytes;
use side::{Sent, Side};
use valkyrie_protocol::{
    Config, Connection, Event, Finish, FrameType, Hello, Metadata, OPTIONAL_ID, OPTIONAL_TYPE, Opened, Ping,
    Priority, Role, Time,
};

mod side;

const AT_ONCE: Time = Time::from_micros(0);

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let given = std::env::var("VALKYRIE_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = given.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("VALKYRIE_SEED={first}");
    (0..count).map(move |number| first.wrapping_add(number))
}

fn greased(role: Role, seed: Option<u64>) -> Side {
    Side(Connection::new(Config { grease: seed, ..Config::new(role) }, AT_ONCE))
}

fn unary(len: usize) -> Opened {
    Opened {
        method: Bytes::from_static(b"/echo"),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: None,
        message: Some(Bytes::from(vec![7; len])),
        end: true,
    }
}

/// So many echoes of `len` bytes, with a PING each; what each side said.
fn echoes(client: &mut Side, server: &mut Side, calls: usize, len: usize) -> [Vec<Sent>; 2] {
    let mut said = [Vec::new(), Vec::new()];
    for call in 0..calls {
        client.0.open(unary(len)).unwrap();
        client.0.ping(call as u64);
        let mut ended = false;
        while !ended {
            for sent in client.sent(AT_ONCE, usize::MAX) {
                server.read(sent.bytes.clone()).unwrap();
                said[0].push(sent);
            }
            for event in server.events() {
                match event {
                    Event::Connected => {}
                    Event::Call { key, message: Some(message), .. } => {
                        server.0.consumed(key, message.len());
                        server.0.respond(key, Ok(Finish { message: Some(message), ..Finish::default() }));
                    }
                    other => panic!("{other:?}"),
                }
            }
            for sent in server.sent(AT_ONCE, usize::MAX) {
                client.read(sent.bytes.clone()).unwrap();
                said[1].push(sent);
            }
            for event in client.events() {
                match event {
                    Event::Connected => {}
                    Event::Pong { data } => assert_eq!(data, call as u64),
                    Event::Ended { outcome, .. } => {
                        assert_eq!(outcome.unwrap().message.unwrap().len(), len);
                        ended = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    said
}

fn is_grease(sent: &Sent) -> bool {
    sent.header.frame_type.0 & OPTIONAL_TYPE != 0
}

// spec: W4-01, W5-05, W6-09, W12-03
#[test]
fn greased_sides_and_plain_ones_understand_each_other() {
    let (mut frames, mut settings, mut extensions, mut in_pings) = (0, 0, 0, 0);
    for seed in seeds(32) {
        for (client, server) in
            [(Some(seed), Some(!seed)), (Some(seed), None), (None, Some(seed)), (None, None)]
        {
            let (mut one, mut other) = (greased(Role::Client, client), greased(Role::Server, server));
            let said = echoes(&mut one, &mut other, 150, 100);
            for (side, has) in said.iter().zip([client, server]) {
                let hello = Hello::decode(&side[0].record).unwrap();
                let added: Vec<u32> = hello.settings.iter().map(|(id, _)| *id).filter(|id| *id > 6).collect();
                let count = side.iter().filter(|sent| is_grease(sent)).count();
                let in_hello: Vec<u32> = hello.extensions.iter().map(|(id, _)| *id).collect();
                assert!(
                    [&added, &in_hello].iter().all(|ids| ids.iter().all(|id| *id >= 0xE000_0000)),
                    "{seed}"
                );
                if has.is_none() {
                    assert_eq!((count, added, in_hello), (0, vec![], vec![]), "{seed}");
                    continue;
                }
                // Seldom: one in 64 frames of control at most, and one at the start.
                let control = side.iter().filter(|sent| !is_grease(sent) && sent.header.frame_type.0 < 0x10);
                let most = 2 + control.count() / 64;
                assert!(count <= most, "{seed}: {count} frames of grease, at most {most}");
                for sent in side.iter().filter(|sent| is_grease(sent)) {
                    assert!((0xE0..=0xEF).contains(&sent.header.frame_type.0), "{seed}");
                    assert!(sent.bytes.len() <= 40 + 31, "{seed}");
                    frames += 1;
                }
                for sent in side.iter().filter(|sent| sent.header.frame_type == FrameType::PING) {
                    let ping = Ping::decode(&sent.record).unwrap();
                    assert!(ping.extensions.iter().all(|(id, _)| id & OPTIONAL_ID != 0));
                    in_pings += ping.extensions.len();
                }
                settings += added.len();
                extensions += in_hello.len();
            }
        }
    }
    println!("{frames} frames, {settings} settings, {extensions} extensions of HELLO, {in_pings} of PING");
    for (what, count) in [("frame", frames), ("setting", settings), ("extension", extensions + in_pings)] {
        assert!(count > 16, "{count} times a {what}");
    }
}

/// The first flight is one write with grease as without, and not much longer; the same seed gives the same bytes.
// spec: W12-03, W12-04
#[test]
fn grease_goes_behind_hello_and_never_behind_a_go_away() {
    let mut behind_hello = 0;
    for seed in seeds(200) {
        let first = |seed| {
            let mut client = greased(Role::Client, seed);
            client.0.open(unary(32)).unwrap();
            client.sent(AT_ONCE, usize::MAX)
        };
        let (plain, greased_flight, again) = (first(None), first(Some(seed)), first(Some(seed)));
        assert_eq!(greased_flight[0].header.frame_type, FrameType::HELLO, "{seed}");
        let kinds: Vec<_> = greased_flight.iter().filter(|sent| !is_grease(sent)).collect();
        assert_eq!(kinds.len(), plain.len(), "{seed}");
        behind_hello += usize::from(is_grease(&greased_flight[1]));
        let len = |flight: &[Sent]| flight.iter().map(|sent| sent.bytes.len()).sum::<usize>();
        assert!(len(&greased_flight) <= len(&plain) + 14 + 14 + 71, "{seed}");
        let bytes = |flight: &[Sent]| flight.iter().flat_map(|sent| sent.bytes.clone()).collect::<Vec<_>>();
        assert_eq!(bytes(&greased_flight), bytes(&again), "{seed}");

        let mut server = greased(Role::Server, Some(seed));
        for _ in 0..seed % 200 {
            server.0.ping(0);
        }
        server.read(vec![0]).unwrap_err();
        let said = server.sent(AT_ONCE, usize::MAX);
        assert_eq!(said.last().unwrap().header.frame_type, FrameType::GOAWAY, "{seed}");
    }
    assert!((50..150).contains(&behind_hello), "{behind_hello} of 200 first flights have a frame of grease");
}

/// The decoder that was written from the page alone reads greased connections.
// spec: W12-03
#[test]
fn a_stranger_skips_grease() {
    let decoder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/decode.py");
    let mut streams = Vec::new();
    for seed in seeds(16) {
        let (mut client, mut server) =
            (greased(Role::Client, Some(seed)), greased(Role::Server, Some(!seed)));
        streams.extend(echoes(&mut client, &mut server, 20, 100));
    }
    let python =
        Command::new("python3").args([decoder, "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut python = match python {
        Ok(python) => python,
        // The step `vectors` needs it too, and says so.
        Err(error) => {
            assert!(std::env::var("CI").is_err(), "python3: {error}");
            return println!("skipped: python3: {error}");
        }
    };
    let mut input = python.stdin.take().unwrap();
    let expected: Vec<Vec<String>> = streams
        .iter()
        .map(|stream| stream.iter().map(|sent| name(sent.header.frame_type)).collect())
        .collect();
    let lines: String = streams
        .iter()
        .map(|stream| {
            let bytes = stream.iter().flat_map(|sent| &sent.bytes);
            bytes.map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect::<String>()
        })
        .collect();
    let writer = std::thread::spawn(move || input.write_all(lines.as_bytes()));
    let read = python.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(read.status.success());
    let read: Vec<Vec<String>> = String::from_utf8(read.stdout)
        .unwrap()
        .lines()
        .map(|line| line.split(' ').map(str::to_owned).collect())
        .collect();
    assert_eq!(read, expected);
    assert!(expected.iter().flatten().any(|kind| kind.starts_with("0xe")));
}

fn name(frame_type: FrameType) -> String {
    let name = match frame_type {
        FrameType::HELLO => "HELLO",
        FrameType::PING => "PING",
        FrameType::PONG => "PONG",
        FrameType::WINDOW => "WINDOW",
        FrameType::CALL => "CALL",
        FrameType::MESSAGE => "MESSAGE",
        FrameType::STATUS => "STATUS",
        FrameType(other) => return format!("{other:#x}"),
    };
    name.to_owned()
}
