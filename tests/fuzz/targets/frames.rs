//! Any bytes on a connection, in any pieces, read by either side: the pieces change nothing, events come in their
//! order, and what is held and answered stays within bounds.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::{Auditor, Wire, hello, measure};
use valkyrie_protocol::{Config, Connection, ErrorCode, Event, Reason, Time, TransmitBuffer};

/// Whoever has greeted may open 1,024 streams, and their table and the events grow in pages: the largest pieces are the
/// harness's buffer, which doubles to 128 KiB, and the thousand answers that may wait, 81,920 bytes. An entry of metadata takes
/// three bytes of the wire and 64 here, so that 64 KiB of them may hold 1.4 MB until their calls are answered.
const LARGEST: usize = 132 << 10;
const PEAK: usize = 2 << 20;

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    events: Vec<Event>,
    error: Option<(ErrorCode, Reason)>,
    written: Vec<u8>,
}

fuzz_target!(|input: &[u8]| {
    let Some(wire) = Wire::read(input) else { return };
    let usage = measure(|| drop(read(&wire, wire.pieces(), false)));
    assert!(usage.largest <= LARGEST && usage.peak <= PEAK, "{usage:?}");
    if !wire.messages {
        let whole = std::iter::once(&wire.bytes[..]);
        assert_eq!(read(&wire, wire.pieces(), true), read(&wire, whole, true));
    }
});

/// `keep` is whether the events are wanted, whose list is the harness's memory and not the connection's.
fn read<'a>(wire: &Wire, pieces: impl Iterator<Item = &'a [u8]>, keep: bool) -> Outcome {
    let mut connection = Connection::new(Config::new(wire.role), Time::default());
    let window = Config::new(wire.role).limits.connection_window_bytes;
    let mut auditor = Auditor::new(wire.role, window);
    auditor.came(wire.bytes.len());
    let mut outcome = Outcome::default();
    let mut inbox = if wire.greeted { hello(&[]) } else { BytesMut::new() };
    // The greeting is an arrival of its own, and so is nothing.
    for piece in std::iter::once(&[][..]).chain(pieces) {
        inbox.extend_from_slice(piece);
        let result = match wire.messages {
            false => connection.handle_read(Time::default(), &mut inbox),
            true => connection.handle_message(Time::default(), &mut inbox),
        };
        while let Some(event) = connection.poll_event() {
            auditor.event(&event);
            if keep {
                outcome.events.push(event);
            }
        }
        if let Err(error) = result {
            assert_eq!(connection.handle_read(Time::default(), &mut inbox), Err(error.clone()));
            outcome.error = Some((error.code, error.reason));
            break;
        }
    }
    let mut out = TransmitBuffer::default();
    connection.poll_transmit(Time::default(), &mut out, usize::MAX);
    let written = valkyrie_fuzz::bytes(&out);
    auditor.written(&written);
    let _ = connection.handle_end(&inbox);
    // The sentence of an error quotes as much of a stranger's first bytes as had come.
    match outcome.error {
        Some(_) => outcome,
        None => Outcome { written, ..outcome },
    }
}
