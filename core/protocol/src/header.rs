//! The 40-byte frame header: laid out by hand, checksummed on its own and believed only after that.

use crate::{ConnectionError, ErrorCode, Reason};

/// Length of the frame header in bytes.
pub const HEADER_LEN: usize = 40;
const _: () = assert!(HEADER_LEN == 40);

/// The first four bytes of every frame: F6 'V' 'L' 'K'. F6 is neither ASCII nor the first byte of a TLS record.
pub const MAGIC: [u8; 4] = [0xF6, b'V', b'L', b'K'];

/// The protocol version that this crate speaks.
pub const VERSION: u8 = 1;

/// The sender sends nothing more on this stream.
pub const FLAG_END: u16 = 0x0001;
/// The payload is a message or a fragment of one; without it the payload is empty.
pub const FLAG_MESSAGE: u16 = 0x0002;
/// The message goes on in the next frame of this stream that carries one.
pub const FLAG_MORE: u16 = 0x0004;
const FLAGS_KNOWN: u16 = FLAG_END | FLAG_MESSAGE | FLAG_MORE;

/// The bit of a frame type that allows a receiver to skip it when unknown.
pub const OPTIONAL_TYPE: u8 = 0x80;

/// A frame type, kept as its number: unknown ones are decided on by [`OPTIONAL_TYPE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameType(pub u8);

impl FrameType {
    /// Greeting: versions, features, settings. The first frame of each side.
    pub const HELLO: Self = Self(0x01);
    /// Credentials of a client whose HELLO said that they follow; of any other it is unknown.
    pub const AUTH: Self = Self(0x02);
    /// Asks for a PONG with the same data.
    pub const PING: Self = Self(0x03);
    /// Answers a PING.
    pub const PONG: Self = Self(0x04);
    /// The sender takes no new streams above an id.
    pub const GOAWAY: Self = Self(0x05);
    /// Raises the credit of a stream, or of the connection on stream 0.
    pub const WINDOW: Self = Self(0x06);
    /// Answers AUTH: the credentials were accepted, and end at some time.
    pub const AUTHENTICATED: Self = Self(0x07);
    /// Opens a stream: method, deadline, metadata, often the whole message.
    pub const CALL: Self = Self(0x10);
    /// Initial metadata of the answer, when it comes before a message.
    pub const HEAD: Self = Self(0x11);
    /// A message or a fragment of one.
    pub const MESSAGE: Self = Self(0x12);
    /// Ends the answer: status, trailers, often the whole message.
    pub const STATUS: Self = Self(0x13);
    /// Ends a stream badly, in both directions.
    pub const RESET: Self = Self(0x14);

    /// Whether the type is the same in every version: two sides that share none understand it all the same.
    const fn is_of_every_version(self) -> bool {
        matches!(self, Self::HELLO | Self::GOAWAY)
    }

    /// Whether the type belongs to the connection (stream 0 only).
    pub(crate) const fn is_connection(self) -> bool {
        self.0 < 0x06 || matches!(self, Self::AUTHENTICATED)
    }
}

/// A decoded frame header. Lengths are what the peer claims: check them before allocating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub frame_type: FrameType,
    /// `FLAG_*` bits.
    pub flags: u16,
    /// The stream, 0 for the connection.
    pub stream: u64,
    /// Length of the message part in bytes; it follows the metadata part.
    pub payload_len: u32,
    /// Length of the metadata part (a control record) in bytes; it follows the header.
    pub metadata_len: u32,
    /// Priority class: 0 critical, 1 normal, 2 bulk.
    pub priority: u8,
    /// Key epoch of a sealed session; 0 without one.
    pub epoch: u8,
    /// CRC-32C of metadata part and payload; 0 when both are empty.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// A header of class critical, with nothing behind it yet.
    pub(crate) const fn bare(frame_type: FrameType, flags: u16, stream: u64) -> Self {
        Self {
            frame_type,
            flags,
            stream,
            payload_len: 0,
            metadata_len: 0,
            priority: 0,
            epoch: 0,
            payload_crc: 0,
        }
    }

    /// Length of what follows the header, in bytes. Fits: both parts are below 2^32.
    pub const fn body_len(&self) -> u64 {
        self.payload_len as u64 + self.metadata_len as u64
    }

    /// Whether all bits of `flag` are set.
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag == flag
    }

    /// The 40 bytes on the wire (PROTOCOL.md, "Frame header"), of version [`VERSION`].
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        self.encode_as(VERSION)
    }

    /// The 40 bytes on the wire, of the version that the connection has. HELLO and GOAWAY say 1 in every version.
    pub(crate) fn encode_as(&self, version: u8) -> [u8; HEADER_LEN] {
        let version = if self.frame_type.is_of_every_version() { 1 } else { version };
        let [a, b, c, d] = MAGIC;
        let [e, f] = self.flags.to_le_bytes();
        // Whole words: the checksum reads at once what was written at once.
        let words = [
            u64::from_le_bytes([a, b, c, d, version, self.frame_type.0, e, f]),
            self.stream,
            u64::from(self.payload_len) | u64::from(self.metadata_len) << 32,
            u64::from_le_bytes([self.priority, self.epoch, 0, 0, 0, 0, 0, 0]),
            u64::from(self.payload_crc),
        ];
        let mut out = [0; HEADER_LEN];
        for (to, word) in out.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        let crc = crc32c::crc32c(&out[..36]);
        out[36..40].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header of version [`VERSION`]: magic, then the header's checksum, then version, then everything else.
    ///
    /// # Errors
    /// The first rule that is broken: MAGIC, CHECKSUM, VERSION, or PROTOCOL for a reserved bit.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ConnectionError> {
        Self::decode_within(bytes, VERSION, VERSION)
    }

    /// Reads a header of a connection whose frames have versions from `lowest` to `highest`.
    pub(crate) fn decode_within(
        bytes: &[u8; HEADER_LEN],
        lowest: u8,
        highest: u8,
    ) -> Result<Self, ConnectionError> {
        Self::check_start(bytes)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let computed = crc32c::crc32c(&bytes[..36]);
        if word(36) != computed {
            return Err(ConnectionError::new(
                ErrorCode::CHECKSUM,
                "frame header does not match its checksum",
            )
            .with_reason(Reason::HEADER_CHECKSUM));
        }
        let legal = match FrameType(bytes[5]).is_of_every_version() {
            true => bytes[4] == 1,
            false => lowest <= bytes[4] && bytes[4] <= highest,
        };
        if !legal {
            return Err(ConnectionError::new(
                ErrorCode::VERSION,
                format!("frame of protocol version {} on a connection of version {highest}", bytes[4]),
            ));
        }
        let flags = u16::from_le_bytes([bytes[6], bytes[7]]);
        if flags & !FLAGS_KNOWN != 0 && bytes[5] & OPTIONAL_TYPE == 0 {
            return Err(ConnectionError::new(
                ErrorCode::PROTOCOL,
                format!("reserved flag bits set: {flags:#06x}"),
            ));
        }
        if bytes[26..32] != [0; 6] {
            return Err(ConnectionError::new(ErrorCode::PROTOCOL, "reserved header bytes are not zero"));
        }
        if bytes[24] > 2 {
            return Err(ConnectionError::new(
                ErrorCode::PROTOCOL,
                format!("priority class {} is not 0 to 2", bytes[24]),
            ));
        }
        Ok(Self {
            frame_type: FrameType(bytes[5]),
            flags,
            stream: u64::from_le_bytes([
                bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13], bytes[14], bytes[15],
            ]),
            payload_len: word(16),
            metadata_len: word(20),
            priority: bytes[24],
            epoch: bytes[25],
            payload_crc: word(32),
        })
    }

    /// Checks as much of the magic as has arrived, so that a stranger is refused at its first byte.
    ///
    /// # Errors
    /// MAGIC when a byte differs.
    pub fn check_start(bytes: &[u8]) -> Result<(), ConnectionError> {
        let len = bytes.len().min(4);
        if bytes[..len] != MAGIC[..len] {
            return Err(ConnectionError::new(
                ErrorCode::MAGIC,
                format!("first bytes {:02x?} are not a valkyrie frame", &bytes[..len]),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FrameHeader {
        FrameHeader {
            frame_type: FrameType::CALL,
            flags: FLAG_END | FLAG_MESSAGE,
            stream: 7,
            payload_len: 5,
            metadata_len: 12,
            priority: 1,
            epoch: 0,
            payload_crc: 0xdead_beef,
        }
    }

    #[test]
    fn header_is_40() {
        assert_eq!(sample().encode().len(), 40);
        assert_eq!(FrameHeader::decode(&sample().encode()), Ok(sample()));
    }

    // spec: W1-04
    #[test]
    fn every_flipped_bit_of_a_header_is_refused() {
        let good = sample().encode();
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad).is_err(), "bit {bit} was not noticed");
        }
    }

    // spec: W1-06
    #[test]
    fn reserved_bits_are_refused_even_with_a_right_checksum() {
        for (at, value) in [(6, 0x80), (7, 1), (26, 1), (31, 0x80), (24, 3)] {
            let mut bytes = sample().encode();
            bytes[at] |= value;
            let crc = crc32c::crc32c(&bytes[..36]);
            bytes[36..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(FrameHeader::decode(&bytes).unwrap_err().code, ErrorCode::PROTOCOL, "byte {at}");
        }
    }

    // spec: W1-03
    #[test]
    fn magic_is_told_from_http_and_tls_by_its_first_byte() {
        assert!(!MAGIC[0].is_ascii());
        assert_ne!(MAGIC[0], 0x16);
        for stranger in [&b"G"[..], b"\x16", b"\xf6X"] {
            assert_eq!(FrameHeader::check_start(stranger).unwrap_err().code, ErrorCode::MAGIC);
        }
        assert!(FrameHeader::check_start(b"").is_ok());
    }
}
