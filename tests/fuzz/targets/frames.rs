//! Any bytes on a connection, in any pieces, read by either side: the pieces change nothing, events come in their
//! order, and what is held and answered stays within bounds.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::{Auditor, Wire, hello, measure};
use valkyrie_protocol::{Config, Connection, ErrorCode, Event, Reason, Time, TransmitBuffer};

/// Whoever has greeted may open 1,024 streams: their table was the largest piece so far, with 303,104 bytes. An entry of
/// metadata takes three bytes of the wire and 64 here, so that 64 KiB of them may hold 1.4 MB until their calls are
/// answered, the harness's own lists not counted.
const LARGEST: usize = 320 << 10;
const PEAK: usize = 2 << 20;

#[derive(Debug, Default, PartialEq)]
struct Outcome {
    events: Vec<Event>,
    error: Option<(ErrorCode, Reason)>,
    written: Vec<u8>,
}

fuzz_target!(|input: &[u8]| {
    let Some(wire) = Wire::read(input) else { return };
    let usage = measure(|| drop(read(&wire, wire.pieces())));
    assert!(usage.largest <= LARGEST && usage.peak <= PEAK, "{usage:?}");
    if !wire.messages {
        assert_eq!(read(&wire, wire.pieces()), read(&wire, std::iter::once(&wire.bytes[..])));
    }
});

fn read<'a>(wire: &Wire, pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut connection = Connection::new(Config::new(wire.role), Time::default());
    let mut auditor = Auditor::new(wire.role);
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
            outcome.events.push(event);
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
