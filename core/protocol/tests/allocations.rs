//! What the protocol allocates once it runs: nothing per message, whatever its kind, for payloads up to 64 KiB.
//!
//! The read buffer is the driver's: it makes room for 64 KiB when little is left, as the sdk does.

use std::io::IoSlice;

use bytes::{Bytes, BytesMut};
use valkyrie_protocol::{
    Config, Connection, Event, Finish, Metadata, Opened, Priority, Role, Time, TransmitBuffer,
};

const READ: usize = 64 << 10;
const MESSAGES: u64 = 2_000;
/// Until tables and buffers have their size.
const WARM_UP: u64 = 2_000;

struct Side {
    connection: Connection,
    out: TransmitBuffer,
    inbox: BytesMut,
}

impl Side {
    fn new(role: Role) -> Self {
        let connection = Connection::new(Config::new(role), Time::default());
        Self { connection, out: TransmitBuffer::default(), inbox: BytesMut::with_capacity(READ) }
    }
}

/// Carries everything that waits, in reads of at most 64 KiB; `events` gets what comes out. How many bytes.
fn carry(from: &mut Side, to: &mut Side, mut events: impl FnMut(&mut Connection, Event)) -> u64 {
    let mut carried = 0;
    loop {
        from.connection.poll_transmit(Time::default(), &mut from.out, READ);
        let mut parts = [IoSlice::new(&[]); 64];
        let count = from.out.parts(&mut parts);
        let mut taken = 0;
        for part in &parts[..count] {
            for piece in part.chunks(READ) {
                if to.inbox.capacity() - to.inbox.len() < piece.len() {
                    to.inbox.reserve(READ.max(piece.len()));
                }
                to.inbox.extend_from_slice(piece);
                taken += piece.len();
                to.connection.handle_read(Time::default(), &mut to.inbox).unwrap();
                while let Some(event) = to.connection.poll_event() {
                    events(&mut to.connection, event);
                }
            }
        }
        if taken == 0 {
            return carried;
        }
        from.out.consume(taken);
        carried += taken as u64;
    }
}

/// Two sides that have read each other's HELLO: the first flight has less credit than the longest message.
fn greeted() -> (Side, Side) {
    let (mut client, mut server) = (Side::new(Role::Client), Side::new(Role::Server));
    carry(&mut client, &mut server, |_, event| assert_eq!(event, Event::Connected));
    carry(&mut server, &mut client, |_, event| assert_eq!(event, Event::Connected));
    (client, server)
}

fn opened(message: Option<Bytes>) -> Opened {
    Opened {
        method: Bytes::from_static(b"/echo"),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: Some(Time::from_micros(5_000_000)),
        message,
        end: true,
    }
}

/// One echo; how many bytes it took.
fn unary(client: &mut Side, server: &mut Side, payload: &Bytes) -> u64 {
    client.connection.open(opened(Some(payload.clone()))).unwrap();
    let mut carried = carry(client, server, |connection, event| match event {
        Event::Call { key, message, .. } => {
            connection.consumed(key, payload.len());
            connection.respond(key, Ok(Finish { message, ..Finish::default() }));
        }
        Event::Message { .. } | Event::HalfClosed { .. } | Event::Connected => {}
        other => panic!("{other:?}"),
    });
    let mut ended = 0;
    carried += carry(server, client, |connection, event| match event {
        Event::Ended { outcome, .. } => {
            assert_eq!(outcome.unwrap().message.unwrap().len(), payload.len());
            ended += 1;
        }
        Event::Message { key, message } => connection.consumed(key, message.len()),
        Event::Connected => {}
        other => panic!("{other:?}"),
    });
    assert_eq!(ended, 1);
    carried
}

const LENS: [usize; 5] = [0, 32, 1 << 10, 16 << 10, 64 << 10];

#[test]
fn a_unary_call_allocates_nothing() {
    for len in LENS {
        let (mut client, mut server) = greeted();
        let payload = Bytes::from(vec![7; len]);
        let mut run = |count| (0..count).map(|_| unary(&mut client, &mut server, &payload)).sum::<u64>();
        run(WARM_UP);
        let counted = allocation_counter::measure(|| {
            run(MESSAGES);
        });
        assert_eq!(counted.count_total, 0, "{MESSAGES} calls of {len} bytes: {counted:?}");
    }
}

#[test]
fn a_message_of_a_stream_allocates_nothing() {
    for len in LENS {
        let (mut client, mut server) = greeted();
        let payload = Bytes::from(vec![7; len]);
        let mut call = opened(None);
        call.end = false;
        let key = client.connection.open(call).unwrap();
        let mut run = |count| {
            for _ in 0..count {
                client.connection.send(key, payload.clone()).unwrap();
                let mut came = 0;
                carry(&mut client, &mut server, |connection, event| match event {
                    Event::Message { key, message } => {
                        came += 1;
                        connection.consumed(key, message.len());
                    }
                    Event::Call { .. } | Event::Connected => {}
                    other => panic!("{other:?}"),
                });
                assert_eq!(came, 1);
                carry(&mut server, &mut client, |_, event| assert_eq!(event, Event::Connected));
            }
        };
        run(WARM_UP);
        let counted = allocation_counter::measure(|| run(MESSAGES));
        assert_eq!(counted.count_total, 0, "{MESSAGES} messages of {len} bytes: {counted:?}");
    }
}

/// What the application keeps is not copied: it holds on to the read buffers that it came in.
#[test]
fn messages_that_are_kept_cost_one_read_buffer_per_64_kib() {
    for len in LENS {
        let (mut client, mut server) = greeted();
        let payload = Bytes::from(vec![7; len]);
        let mut kept = Vec::with_capacity((WARM_UP + MESSAGES) as usize);
        let mut run = |count| {
            let mut carried = 0;
            for _ in 0..count {
                client.connection.open(opened(Some(payload.clone()))).unwrap();
                carried += carry(&mut client, &mut server, |connection, event| {
                    if let Event::Call { key, message, .. } = event {
                        kept.extend(message);
                        connection.consumed(key, len);
                        connection.respond(key, Ok(Finish::default()));
                    }
                });
                carry(&mut server, &mut client, |_, _| {});
            }
            carried
        };
        run(WARM_UP);
        let mut carried = 0;
        let counted = allocation_counter::measure(|| carried = run(MESSAGES));
        // The buffer and its reference count. A message of exactly 64 KiB and its header take more than one buffer.
        let most = 2 * (carried / READ as u64 * 2 + 1);
        assert!(counted.count_total <= most, "{MESSAGES} messages of {len} bytes, {most}: {counted:?}");
    }
}

#[test]
fn the_counter_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1u8; 100])));
    assert_eq!(counted.count_total, 1);
}
