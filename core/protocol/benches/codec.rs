//! What the protocol costs without a socket: a header, a message of a stream, and a whole echo between two connections.
//! `cargo bench -p valkyrie-protocol` prints ns and GB/s, medians of five runs.

use std::{
    hint::black_box,
    io::IoSlice,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use valkyrie_protocol::{
    Config, Connection, Event, FLAG_MESSAGE, Finish, FrameHeader, FrameType, Keepalive, Metadata, Opened,
    Priority, Role, Time, TransmitBuffer,
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

/// As the sdk configures them.
fn config(role: Role) -> Config {
    let [time, timeout] = [30, 10].map(Duration::from_secs);
    let keepalive = Keepalive { time: Some(time), idle: None, timeout };
    Config { grease: Some(7), keepalive, ..Config::new(role) }
}

/// Nanoseconds per echo and bytes per echo on the wire, there and back, with `batch` calls in each flight.
fn echo(len: usize, batch: usize, count: usize) -> (f64, usize) {
    let side = |role| Connection::new(config(role), Time::default());
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

/// Nanoseconds per message of a stream, made, written, read and taken, with `batch` in each flight.
fn stream(len: usize, batch: usize, count: usize) -> f64 {
    let side = |role| Connection::new(config(role), Time::default());
    let (mut client, mut server) = (side(Role::Client), side(Role::Server));
    let (mut out, mut inbox, mut back) = (TransmitBuffer::default(), BytesMut::new(), BytesMut::new());
    let payload = Bytes::from(vec![7; len]);
    let key = client.open(Opened { message: None, end: false, ..opened(payload.clone()) }).expect("room");
    let mut run = |rounds: usize| {
        for _ in 0..rounds {
            for _ in 0..batch {
                client.send(key, payload.clone()).expect("room");
            }
            while client.wants_transmit() {
                carry(&mut client, &mut out, &mut server, &mut inbox, |server, event| {
                    if let Event::Message { key, message } = event {
                        server.consumed(key, black_box(message).len());
                    }
                });
            }
            carry(&mut server, &mut out, &mut client, &mut back, |_, _| {});
        }
    };
    let rounds = count / batch;
    run(rounds / 10 + 1);
    let began = Instant::now();
    run(rounds);
    began.elapsed().as_nanos() as f64 / (rounds * batch) as f64
}

/// Nanoseconds to encode a header and to decode it.
fn header(count: u64) -> f64 {
    let mut header = FrameHeader {
        frame_type: FrameType::MESSAGE,
        flags: FLAG_MESSAGE,
        stream: 1,
        payload_len: 32,
        metadata_len: 0,
        priority: 1,
        epoch: 0,
        payload_crc: 7,
    };
    let began = Instant::now();
    for stream in 0..count {
        header.stream = black_box(stream);
        header = FrameHeader::decode(black_box(&header.encode())).expect("a header");
    }
    began.elapsed().as_nanos() as f64 / count as f64
}

fn median(run: impl FnMut(usize) -> f64) -> f64 {
    let mut runs: Vec<f64> = (0..RUNS).map(run).collect();
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

fn main() {
    println!("header, encoded and decoded: {:.1} ns", median(|_| header(1_000_000)));
    println!("message of 32 bytes on a stream: {:.1} ns", median(|_| stream(32, 256, 200_000)));
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
