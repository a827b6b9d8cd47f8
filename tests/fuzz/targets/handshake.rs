//! Up to 64 KiB from a stranger, in any pieces, up to and with its greeting: no allocation over 64 KiB, one GOAWAY at
//! most in answer, and little held. What the driver has read is counted too: of the 67,984 bytes that were the most so
//! far, 65,536 were one piece of it.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::{Wire, measure, parse_frames, until_hello};
use valkyrie_protocol::{Config, Connection, ConnectionState, Event, FrameType, Time, TransmitBuffer};

const LARGEST: usize = 64 << 10;
const PEAK: usize = 80 << 10;

fuzz_target!(|input: &[u8]| {
    let Some(mut wire) = Wire::read(input) else { return };
    until_hello(&mut wire.bytes);
    let usage = measure(|| stranger(&wire));
    assert!(usage.largest <= LARGEST && usage.peak <= PEAK, "{usage:?}");
});

fn stranger(wire: &Wire) {
    let config = Config::new(wire.role);
    let mut connection = Connection::new(config.clone(), Time::default());
    let mut inbox = BytesMut::new();
    let mut out = TransmitBuffer::default();
    for piece in wire.pieces() {
        inbox.extend_from_slice(piece);
        let result = match wire.messages {
            false => connection.handle_read(Time::default(), &mut inbox),
            true => connection.handle_message(Time::default(), &mut inbox),
        };
        while let Some(event) = connection.poll_event() {
            assert!(matches!(event, Event::Connected | Event::GoAway { .. }), "{event:?} from a stranger");
        }
        assert_eq!(connection.streams(), 0);
        // One that is connected has greeted, and one that has not may not stay.
        let patient = connection.poll_timeout().is_some();
        assert!(patient || connection.state() == ConnectionState::Open || result.is_err());
        if result.is_err() {
            break;
        }
    }
    connection.poll_transmit(Time::default(), &mut out, usize::MAX);
    let written = valkyrie_fuzz::bytes(&out);
    let types: Vec<_> = parse_frames(&written).iter().map(|(header, ..)| header.frame_type).collect();
    assert!(matches!(types[..], [FrameType::HELLO] | [FrameType::HELLO, FrameType::GOAWAY]), "{types:?}");
    assert!(written.len() <= 1 << 10, "{} bytes for a stranger", written.len());
    let _ = connection.handle_end(&inbox);
}
