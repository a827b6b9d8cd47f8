//! Input as the bytes of a wire: two bytes that say how it is delivered, then what is delivered.

use std::io::IoSlice;

use bytes::BytesMut;
use valkyrie_protocol::{FrameHeader, FrameType, HEADER_LEN, Hello, Role, TransmitBuffer};

/// The most that an input becomes, repeated or not.
const MOST: usize = 64 << 10;

/// Bytes for one side of a connection, and how they arrive.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The side that reads them.
    pub role: Role,
    /// Whether a greeting was read before.
    pub greeted: bool,
    /// Whether they arrive as messages of a carrier that keeps borders.
    pub messages: bool,
    /// What arrives: at most 64 KiB.
    pub bytes: Vec<u8>,
    cut: u8,
}

impl Wire {
    /// Reads an input; `None` when it is too short to be one.
    ///
    /// The first byte has a bit each for: client, right checksums, carrier messages, greeted. Its upper three bits
    /// together repeat the bytes up to 64 KiB, on new streams each time, so that a short input is a flood. The second
    /// byte says where the bytes are cut.
    pub fn read(input: &[u8]) -> Option<Self> {
        let (&[choices, cut], rest) = input.split_first_chunk()?;
        let mut bytes = rest[..rest.len().min(MOST)].to_vec();
        let repeat = choices >= 0xe0 && !bytes.is_empty();
        if repeat {
            let unit = bytes.clone();
            for raise in (1..).map(|round| round * 16) {
                if bytes.len() + unit.len() > MOST {
                    break;
                }
                let start = bytes.len();
                bytes.extend_from_slice(&unit);
                raise_streams(&mut bytes[start..], raise);
            }
        }
        if choices & 2 != 0 || repeat {
            correct_checksums(&mut bytes);
        }
        Some(Self {
            role: if choices & 1 == 0 { Role::Server } else { Role::Client },
            messages: choices & 4 != 0,
            greeted: choices & 8 != 0,
            bytes,
            cut,
        })
    }

    /// The bytes in the pieces in which they arrive: all at once for 0, one by one for 1, else of changing lengths.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let most = usize::from(self.cut).pow(2);
        let mut state = u64::from(self.cut);
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            // Knuth's linear congruential generator: its upper bits are good enough to cut with.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let len = if most == 0 { rest.len() } else { 1 + (state >> 33) as usize % most };
            let (piece, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            (!piece.is_empty()).then_some(piece)
        })
    }
}

/// The header at `at` as far as its lengths, and where the frame ends.
fn end_of_frame(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at + HEADER_LEN)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    at.checked_add(HEADER_LEN)?.checked_add(word(16) as usize)?.checked_add(word(20) as usize)
}

/// Makes both checksums of every frame right, so that a change of a byte is met behind them.
fn correct_checksums(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(end) = end_of_frame(bytes, at) {
        if let Some(body) = bytes.get(at + HEADER_LEN..end) {
            let crc = if body.is_empty() { 0 } else { crc32c::crc32c(body) };
            bytes[at + 32..at + 36].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[at..at + 36]);
        bytes[at + 36..at + 40].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

fn raise_streams(bytes: &mut [u8], by: u64) {
    let mut at = 0;
    while let Some(end) = end_of_frame(bytes, at) {
        let stream: [u8; 8] = bytes[at + 8..at + 16].try_into().expect("eight bytes");
        let stream = u64::from_le_bytes(stream);
        if stream != 0 {
            bytes[at + 8..at + 16].copy_from_slice(&stream.wrapping_add(by).to_le_bytes());
        }
        at = end;
    }
}

/// A greeting with these settings.
pub fn hello(settings: &[(u32, u64)]) -> BytesMut {
    let hello = Hello {
        min_version: 1,
        max_version: 1,
        features: 0,
        settings: settings.to_vec(),
        extensions: vec![],
    };
    let mut record = BytesMut::new();
    hello.encode(&mut record);
    let header = FrameHeader {
        frame_type: FrameType::HELLO,
        flags: 0,
        stream: 0,
        payload_len: 0,
        metadata_len: record.len() as u32,
        priority: 0,
        epoch: 0,
        payload_crc: crc32c::crc32c(&record),
    };
    let mut frame = BytesMut::from(&header.encode()[..]);
    frame.extend_from_slice(&record);
    frame
}

/// The frames of what a connection of ours wrote: header, record and payload of each.
///
/// # Panics
/// When one is cut, or not as PROTOCOL.md wants it: then we wrote nonsense.
pub fn parse_frames(mut bytes: &[u8]) -> Vec<(FrameHeader, &[u8], &[u8])> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header =
            FrameHeader::decode(bytes.first_chunk().expect("a whole header")).expect("a legal header");
        let end = HEADER_LEN + header.body_len() as usize;
        let body = &bytes[HEADER_LEN..end];
        let crc = if body.is_empty() { 0 } else { crc32c::crc32c(body) };
        assert_eq!(crc, header.payload_crc, "checksum of what we wrote");
        let (record, payload) = body.split_at(header.metadata_len as usize);
        frames.push((header, record, payload));
        bytes = &bytes[end..];
    }
    frames
}

/// Cuts away what follows the first HELLO.
pub fn until_hello(bytes: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(end) = end_of_frame(bytes, at) {
        if bytes[at + 5] == FrameType::HELLO.0 {
            bytes.truncate(end);
            return;
        }
        at = end;
    }
}

/// Everything that waits to be written.
pub fn bytes(out: &TransmitBuffer) -> Vec<u8> {
    let mut parts = vec![IoSlice::new(&[]); out.part_count()];
    let count = out.parts(&mut parts);
    assert_eq!(count, parts.len());
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
    assert_eq!(bytes.len(), out.len());
    bytes
}
