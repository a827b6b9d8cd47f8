//! What the protocol costs without a socket: one CALL encoded, one decoded, and a whole echo between two connections.
//! `cargo bench -p valkyrie-protocol` prints ns per frame and GB/s, medians of five runs.

use std::{hint::black_box, io::IoSlice, time::Instant};

use bytes::{Bytes, BytesMut};
use valkyrie_protocol::{
    Config, Connection, Event, Finish, Metadata, Opened, Priority, Role, Time, TransmitBuffer,
};

const RUNS: usize = 5;

fn opened(message: Bytes) -> Opened {
    Opened {
        method: Bytes::from_static(b"/echo"),
        metadata: Metadata::new(),
        priority: Priority::Normal,
        deadline: Some(Time::from_micros(5_000_000)),
        message: Some(message),
        end: true,
    }
}

/// Moves what waits from one side to the other, and hands on what comes out.
fn carry(
    from: &mut Connection,
    out: &mut TransmitBuffer,
    to: &mut Connection,
    inbox: &mut BytesMut,
    mut events: impl FnMut(&mut Connection, Event),
) -> usize {
    from.poll_transmit(Time::default(), out, usize::MAX);
    let mut parts = [IoSlice::new(&[]); 256];
    let count = out.parts(&mut parts);
    for part in &parts[..count] {
        inbox.extend_from_slice(part);
    }
    let len = out.len();
    out.consume(len);
    to.handle_read(Time::default(), inbox).expect("an honest peer");
    while let Some(event) = to.poll_event() {
        events(to, event);
    }
    len
}

/// Nanoseconds per echo and bytes per echo on the wire, there and back, with `batch` calls in each flight.
fn echo(len: usize, batch: usize, count: usize) -> (f64, usize) {
    // As the sdk configures them.
    let side = |role| Connection::new(Config { grease: Some(7), ..Config::new(role) }, Time::default());
    let (mut client, mut server) = (side(Role::Client), side(Role::Server));
    let (mut out, mut inbox, mut back) = (TransmitBuffer::default(), BytesMut::new(), BytesMut::new());
    let payload = Bytes::from(vec![7; len]);
    let mut bytes = 0;
    let mut run = |rounds: usize| {
        bytes = 0;
        for _ in 0..rounds {
            for _ in 0..batch {
                client.open(opened(payload.clone())).expect("room");
            }
            let mut ended = 0;
            while ended < batch {
                bytes += carry(&mut client, &mut out, &mut server, &mut inbox, |server, event| {
                    if let Event::Call { key, message, .. } = event {
                        server.consumed(key, len);
                        server.respond(key, Ok(Finish { message, ..Finish::default() }));
                    }
                });
                bytes += carry(&mut server, &mut out, &mut client, &mut back, |client, event| match event {
                    Event::Ended { outcome, .. } => {
                        black_box(outcome).expect("an echo");
                        ended += 1;
                    }
                    Event::Message { key, message } => client.consumed(key, message.len()),
                    _ => {}
                });
            }
        }
    };
    let rounds = (count / batch).max(1);
    run(rounds / 10 + 1);
    let began = Instant::now();
    run(rounds);
    let calls = rounds * batch;
    (began.elapsed().as_nanos() as f64 / calls as f64, bytes / calls)
}

fn main() {
    println!("{:>10} {:>6} {:>12} {:>12} {:>10}", "message", "batch", "ns/echo", "ns/frame", "GB/s");
    for (len, batch, count) in [
        (0, 64, 200_000),
        (32, 1, 200_000),
        (32, 64, 200_000),
        (1 << 10, 64, 200_000),
        (16 << 10, 8, 20_000),
        (64 << 10, 4, 5_000),
    ] {
        let mut runs: Vec<(f64, usize)> = (0..RUNS).map(|_| echo(len, batch, count)).collect();
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (nanos, bytes) = runs[RUNS / 2];
        // A call and a status: two frames are written and read.
        println!("{len:>10} {batch:>6} {nanos:>12.1} {:>12.1} {:>10.2}", nanos / 2.0, bytes as f64 / nanos);
    }
}
