//! A frame as a script writes it, right or wrong, and its bytes.

use bytes::BytesMut;
use serde::Deserialize;
use valkyrie_protocol::{
    AUTH_FOLLOWS, Auth, Authenticated, Call, ErrorCode, FLAG_END, FLAG_MESSAGE, FLAG_MORE, FrameHeader,
    FrameType, GoAway, HEADER_LEN, Head, Hello, Ping, Reset, Status, StatusRecord, Window,
};

/// One thing to send. A frame unless `hex`, `text` or `ws` is there.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Frame {
    /// These bytes, and nothing else.
    pub hex: Option<String>,
    /// This text, and nothing else.
    pub text: Option<String>,
    /// A WebSocket frame, right or wrong.
    pub ws: Option<Ws>,
    /// The type's name in PROTOCOL.md, or its number.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// A number, `next` (a stream that was not used yet) or `last` (the one before it). 0 unless given.
    pub stream: StreamId,
    /// Of `END`, `MESSAGE`, `MORE`, with spaces between.
    pub flags: String,
    /// The record's fields. Those that are left out are as an honest peer has them.
    pub record: Record,
    /// The payload.
    pub payload: Payload,
    /// What is then made wrong.
    pub wrong: Wrong,
    /// Only the first so many bytes of it.
    pub keep: Option<usize>,
}

/// A frame type by name or number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Kind {
    /// As in PROTOCOL.md.
    Name(String),
    /// Any number.
    Number(u8),
}

impl Default for Kind {
    fn default() -> Self {
        Kind::Number(0)
    }
}

/// Which stream a frame is for.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum StreamId {
    /// That one.
    Number(u64),
    /// `next` or `last`.
    Word(String),
}

impl Default for StreamId {
    fn default() -> Self {
        StreamId::Number(0)
    }
}

/// The fields of all records, as far as scripts need them.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Record {
    /// These bytes instead of a record.
    pub hex: Option<String>,
    /// So many zero bytes instead of a record.
    pub zeros: Option<usize>,
    /// HELLO: the versions.
    pub versions: (u8, u8),
    /// HELLO: the feature bits.
    pub features: u64,
    /// HELLO: settings by number.
    pub settings: Vec<(u32, u64)>,
    /// HELLO: whether it says that AUTH follows.
    pub announces: bool,
    /// AUTH.
    pub token: String,
    /// AUTHENTICATED.
    pub expires_in_ms: u64,
    /// CALL: the method.
    pub method: String,
    /// CALL: microseconds, 0 for none.
    pub timeout_us: u64,
    /// CALL, HEAD: metadata.
    pub metadata: Vec<(String, String)>,
    /// CALL, HEAD: so many entries more.
    pub entries: usize,
    /// PING, PONG.
    pub data: u64,
    /// WINDOW: the offset in the first round of a repeat, and how much more in each.
    pub offset: (u64, u64),
    /// RESET, GOAWAY: the error code's name.
    pub error: String,
    /// GOAWAY.
    pub last_stream: u64,
    /// STATUS: the code.
    pub code: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            hex: None,
            zeros: None,
            versions: (1, 1),
            features: 0,
            settings: Vec::new(),
            announces: false,
            token: "token".into(),
            expires_in_ms: 0,
            method: "/echo".into(),
            timeout_us: 0,
            metadata: Vec::new(),
            entries: 0,
            data: 1,
            offset: (0, 0),
            error: "CANCEL".into(),
            last_stream: 0,
            code: 0,
        }
    }
}

/// The payload of a frame.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Payload {
    /// This text.
    Text(String),
    /// So many bytes.
    Len(usize),
}

impl Default for Payload {
    fn default() -> Self {
        Payload::Len(0)
    }
}

/// Fields of the header that are not what they should be. The header's checksum is made again unless it is wrong itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wrong {
    version: Option<u8>,
    flags: Option<u16>,
    priority: Option<u8>,
    epoch: Option<u8>,
    reserved: Option<u8>,
    payload_len: Option<u32>,
    metadata_len: Option<u32>,
    header_crc: bool,
    payload_crc: bool,
}

/// A WebSocket frame of a client.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ws {
    opcode: u8,
    #[serde(default = "yes")]
    fin: bool,
    #[serde(default = "yes")]
    mask: bool,
    /// What the length says, in 64 bits, instead of the payload's.
    #[serde(default)]
    len: Option<u64>,
    /// What it holds.
    #[serde(default)]
    of: Vec<Frame>,
}

fn yes() -> bool {
    true
}

/// What `next` and a repeat's round mean now.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The next stream of this side.
    pub next_stream: u64,
    /// The round of a repeat, from 0.
    pub round: u64,
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or_else(|| panic!("{text:?} is not hex")) as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn error_code(name: &str) -> ErrorCode {
    let code = ErrorCode::ALL.iter().find(|code| code.name() == name);
    *code.unwrap_or_else(|| panic!("no error code {name:?}"))
}

impl Frame {
    /// Appends its bytes.
    pub fn write(&self, out: &mut Vec<u8>, position: &mut Position) {
        let start = out.len();
        if let Some(hex) = &self.hex {
            out.extend(unhex(hex));
        } else if let Some(text) = &self.text {
            out.extend(text.as_bytes());
        } else if let Some(ws) = &self.ws {
            ws.write(out, position);
        } else {
            self.write_frame(out, position);
        }
        if let Some(keep) = self.keep {
            out.truncate(start + keep);
        }
    }

    fn write_frame(&self, out: &mut Vec<u8>, position: &mut Position) {
        let stream = match &self.stream {
            StreamId::Number(number) => *number,
            StreamId::Word(word) if word == "next" => {
                position.next_stream += 2;
                position.next_stream - 2
            }
            StreamId::Word(word) if word == "last" => position.next_stream - 2,
            StreamId::Word(word) => panic!("no stream {word:?}"),
        };
        let frame_type = self.frame_type();
        let flags = self.flags.split_whitespace().map(|flag| match flag {
            "END" => FLAG_END,
            "MESSAGE" => FLAG_MESSAGE,
            "MORE" => FLAG_MORE,
            other => panic!("no flag {other:?}"),
        });
        let mut body = self.record(frame_type, position.round);
        let metadata_len = body.len();
        match &self.payload {
            Payload::Text(text) => body.extend_from_slice(text.as_bytes()),
            Payload::Len(len) => body.resize(metadata_len + len, b'x'),
        }
        let header = FrameHeader {
            frame_type,
            flags: flags.sum(),
            stream,
            payload_len: (body.len() - metadata_len) as u32,
            metadata_len: metadata_len as u32,
            priority: 1,
            epoch: 0,
            payload_crc: if body.is_empty() { 0 } else { crc32c::crc32c(&body) },
        };
        out.extend(self.wrong.applied(header.encode()));
        out.extend_from_slice(&body);
    }

    fn frame_type(&self) -> FrameType {
        match &self.kind {
            Kind::Number(number) => FrameType(*number),
            Kind::Name(name) => match name.as_str() {
                "HELLO" => FrameType::HELLO,
                "AUTH" => FrameType::AUTH,
                "AUTHENTICATED" => FrameType::AUTHENTICATED,
                "PING" => FrameType::PING,
                "PONG" => FrameType::PONG,
                "GOAWAY" => FrameType::GOAWAY,
                "WINDOW" => FrameType::WINDOW,
                "CALL" => FrameType::CALL,
                "HEAD" => FrameType::HEAD,
                "MESSAGE" => FrameType::MESSAGE,
                "STATUS" => FrameType::STATUS,
                "RESET" => FrameType::RESET,
                other => panic!("no frame type {other:?}"),
            },
        }
    }

    fn record(&self, frame_type: FrameType, round: u64) -> BytesMut {
        let mut out = BytesMut::new();
        let fields = &self.record;
        if let Some(hex) = &fields.hex {
            return BytesMut::from(&unhex(hex)[..]);
        }
        if let Some(zeros) = fields.zeros {
            return BytesMut::zeroed(zeros);
        }
        let mut metadata: Vec<(&str, &[u8])> =
            fields.metadata.iter().map(|(key, value)| (key.as_str(), value.as_bytes())).collect();
        metadata.extend((0..fields.entries).map(|_| ("k", &b"v"[..])));
        let none = Vec::new;
        match frame_type {
            FrameType::HELLO => Hello {
                min_version: fields.versions.0,
                max_version: fields.versions.1,
                features: fields.features,
                settings: fields.settings.clone(),
                extensions: if fields.announces { vec![(AUTH_FOLLOWS, &b""[..])] } else { none() },
            }
            .encode(&mut out),
            FrameType::AUTH => Auth { token: fields.token.as_bytes(), extensions: none() }.encode(&mut out),
            FrameType::AUTHENTICATED => {
                Authenticated { expires_in_ms: fields.expires_in_ms, extensions: none() }.encode(&mut out);
            }
            FrameType::PING | FrameType::PONG => {
                Ping { data: fields.data, extensions: none() }.encode(&mut out);
            }
            FrameType::GOAWAY => GoAway {
                last_stream: fields.last_stream,
                code: error_code(&fields.error).number(),
                message: "",
                extensions: none(),
            }
            .encode(&mut out),
            FrameType::WINDOW => {
                let (first, step) = fields.offset;
                Window { offset: first + step * round, extensions: none() }.encode(&mut out);
            }
            FrameType::CALL => Call {
                method: &fields.method,
                timeout_us: fields.timeout_us,
                codec: 0,
                schema: 0,
                metadata,
                extensions: none(),
            }
            .encode(&mut out),
            FrameType::HEAD => Head { metadata, extensions: none() }.encode(&mut out),
            FrameType::STATUS => {
                let status = Status::new(valkyrie_protocol::Code::from_number(fields.code), "");
                StatusRecord::from_status(&status).encode(&mut out);
            }
            FrameType::RESET => {
                Reset { code: error_code(&fields.error).number(), extensions: none() }.encode(&mut out);
            }
            _ => {}
        }
        out
    }
}

impl Wrong {
    fn applied(&self, mut header: [u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        if let Some(version) = self.version {
            put(4, &[version]);
        }
        if let Some(flags) = self.flags {
            put(6, &flags.to_le_bytes());
        }
        if let Some(len) = self.payload_len {
            put(16, &len.to_le_bytes());
        }
        if let Some(len) = self.metadata_len {
            put(20, &len.to_le_bytes());
        }
        if let Some(priority) = self.priority {
            put(24, &[priority]);
        }
        if let Some(epoch) = self.epoch {
            put(25, &[epoch]);
        }
        if let Some(byte) = self.reserved {
            put(31, &[byte]);
        }
        if self.payload_crc {
            header[32] ^= 1;
        }
        let crc = crc32c::crc32c(&header[..36]) ^ u32::from(self.header_crc);
        header[36..].copy_from_slice(&crc.to_le_bytes());
        header
    }
}

impl Ws {
    /// A binary message of one frame.
    pub fn binary(frame: Frame) -> Self {
        Self { opcode: 2, fin: true, mask: true, len: None, of: vec![frame] }
    }

    fn write(&self, out: &mut Vec<u8>, position: &mut Position) {
        let mut inside = Vec::new();
        self.of.iter().for_each(|frame| frame.write(&mut inside, position));
        out.push(u8::from(self.fin) << 7 | self.opcode);
        let mask_bit = u8::from(self.mask) << 7;
        match (self.len, inside.len()) {
            (None, len @ ..126) => out.push(mask_bit | len as u8),
            (len, real) => {
                out.push(mask_bit | 127);
                out.extend(len.unwrap_or(real as u64).to_be_bytes());
            }
        }
        if self.mask {
            // A key of zeros masks nothing, and is a key.
            out.extend([0; 4]);
        }
        out.extend(inside);
    }
}
