//! Any 40 bytes: a header is refused for the first rule of PROTOCOL.md, section 1, that it breaks, and one that is
//! taken means exactly its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use valkyrie_fuzz::measure;
use valkyrie_protocol::{ErrorCode, FrameHeader, HEADER_LEN, MAGIC, OPTIONAL_TYPE, VERSION};

/// No refusal is longer than its sentence.
const MOST: usize = 1 << 10;

fuzz_target!(|input: &[u8]| {
    let start = &input[..input.len().min(MAGIC.len())];
    assert_eq!(FrameHeader::check_start(input).is_ok(), MAGIC.starts_with(start));
    let Some(bytes) = input.first_chunk::<HEADER_LEN>() else { return };
    check(bytes);
    let mut corrected = *bytes;
    corrected[36..].copy_from_slice(&crc32c::crc32c(&bytes[..36]).to_le_bytes());
    check(&corrected);
});

fn check(bytes: &[u8; HEADER_LEN]) {
    let flags = u16::from_le_bytes([bytes[6], bytes[7]]);
    let expected = if bytes[..4] != MAGIC {
        Err(ErrorCode::MAGIC)
    } else if bytes[36..] != crc32c::crc32c(&bytes[..36]).to_le_bytes() {
        Err(ErrorCode::CHECKSUM)
    } else if bytes[4] != VERSION {
        Err(ErrorCode::VERSION)
    } else if (flags > 7 && bytes[5] & OPTIONAL_TYPE == 0) || bytes[26..32] != [0; 6] || bytes[24] > 2 {
        Err(ErrorCode::PROTOCOL)
    } else {
        Ok(*bytes)
    };
    let usage = measure(|| {
        let decoded = FrameHeader::decode(bytes);
        assert_eq!(decoded.map(|header| header.encode()).map_err(|error| error.code), expected);
    });
    assert!(usage.peak <= MOST, "{usage:?}");
}
