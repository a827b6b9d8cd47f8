//! Frames made by hand, one side of a connection to throw them at, and seeds.
#![allow(dead_code, reason = "no test file needs all of it")]

use std::{
    hash::{BuildHasher, RandomState},
    io::IoSlice,
};

use bytes::{Bytes, BytesMut};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use valkyrie_protocol::{
    Call, Config, Connection, ErrorCode, Event, FrameHeader, FrameType, HEADER_LEN, Hello, Limits, Metadata,
    Opened, Priority, Reset, Role, Status, StatusRecord, StreamKey, Time, TransmitBuffer,
};

pub(crate) fn frame(
    frame_type: FrameType,
    flags: u16,
    stream: u64,
    record: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let body = [record, payload].concat();
    let header = FrameHeader {
        frame_type,
        flags,
        stream,
        payload_len: payload.len() as u32,
        metadata_len: record.len() as u32,
        priority: 1,
        epoch: 0,
        payload_crc: if body.is_empty() { 0 } else { crc32c::crc32c(&body) },
    };
    [&header.encode()[..], &body].concat()
}

pub(crate) fn record(encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.to_vec()
}

/// The HELLO of a peer that takes messages of 4 MiB, and for the rest what is the least.
pub(crate) fn hello() -> Vec<u8> {
    let settings = vec![(2, 4 << 20)];
    let hello = Hello { min_version: 1, max_version: 1, features: 0, settings, extensions: Vec::new() };
    frame(FrameType::HELLO, 0, 0, &record(|out| hello.encode(out)), b"")
}

pub(crate) fn call(stream: u64, flags: u16, payload: &[u8]) -> Vec<u8> {
    let call = Call {
        method: "/m",
        timeout_us: 0,
        codec: 0,
        schema: 0,
        metadata: Vec::new(),
        extensions: Vec::new(),
    };
    frame(FrameType::CALL, flags, stream, &record(|out| call.encode(out)), payload)
}

pub(crate) fn message(stream: u64, flags: u16, payload: &[u8]) -> Vec<u8> {
    frame(FrameType::MESSAGE, flags, stream, b"", payload)
}

pub(crate) fn status(stream: u64, status: &Status, flags: u16) -> Vec<u8> {
    frame(FrameType::STATUS, flags, stream, &record(|out| StatusRecord::from_status(status).encode(out)), b"")
}

pub(crate) fn reset(stream: u64) -> Vec<u8> {
    let reset = Reset { code: ErrorCode::CANCEL.number(), extensions: Vec::new() };
    frame(FrameType::RESET, 0, stream, &record(|out| reset.encode(out)), b"")
}

/// A failed test shows what was printed: the seed that makes it fail again.
pub(crate) fn seeded() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(0));
    }
    if let RngSeed::Fixed(seed) = config.rng_seed {
        println!("PROPTEST_RNG_SEED={seed}");
    }
    config
}

/// A frame as it stood on the wire.
pub(crate) struct Sent {
    pub(crate) header: FrameHeader,
    pub(crate) bytes: Vec<u8>,
    pub(crate) record: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// Whole frames of any version, one after another.
pub(crate) fn frames(bytes: &[u8]) -> Vec<Sent> {
    let (mut rest, mut frames) = (bytes, Vec::new());
    while let Some(start) = rest.first_chunk::<HEADER_LEN>() {
        let mut of_version_1 = *start;
        of_version_1[4] = 1;
        let crc = crc32c::crc32c(&of_version_1[..36]);
        of_version_1[36..].copy_from_slice(&crc.to_le_bytes());
        let header = FrameHeader::decode(&of_version_1).unwrap();
        assert_eq!(crc32c::crc32c(&start[..36]).to_le_bytes(), start[36..]);
        let (frame, after) = rest.split_at(HEADER_LEN + header.body_len() as usize);
        let (record, payload) = frame[HEADER_LEN..].split_at(header.metadata_len as usize);
        let (record, payload) = (record.to_vec(), payload.to_vec());
        frames.push(Sent { header, bytes: frame.to_vec(), record, payload });
        rest = after;
    }
    assert!(rest.is_empty());
    frames
}

/// One side that has greeted, with what it said so far taken away.
pub(crate) struct Side(pub(crate) Connection);

impl Side {
    pub(crate) fn new(role: Role, limits: Limits) -> Self {
        let mut side = Side(Connection::new(Config { limits, ..Config::new(role) }, Time::default()));
        side.read(hello()).unwrap();
        assert_eq!(side.0.poll_event(), Some(Event::Connected));
        side.said();
        side
    }

    pub(crate) fn read(&mut self, bytes: Vec<u8>) -> Result<(), valkyrie_protocol::ConnectionError> {
        self.0.handle_read(Time::default(), &mut BytesMut::from(&bytes[..]))
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.0.poll_event()).collect()
    }

    /// The frames that it has for its peer: types, streams and records.
    pub(crate) fn said(&mut self) -> Vec<(FrameType, u64, Vec<u8>)> {
        let frames = self.sent(Time::default(), usize::MAX);
        frames.into_iter().map(|sent| (sent.header.frame_type, sent.header.stream, sent.record)).collect()
    }

    /// The frames that it has for its peer, up to `budget` bytes of them.
    pub(crate) fn sent(&mut self, now: Time, budget: usize) -> Vec<Sent> {
        let mut out = TransmitBuffer::default();
        self.0.poll_transmit(now, &mut out, budget);
        let mut parts = vec![IoSlice::new(&[]); out.part_count()];
        let count = out.parts(&mut parts);
        let bytes: Vec<u8> = parts[..count].iter().flat_map(|part| part.iter().copied()).collect();
        frames(&bytes)
    }

    pub(crate) fn call(&mut self, end: bool) -> StreamKey {
        let key = self.opened(end, None);
        assert_eq!(self.said().len(), 1);
        key
    }

    /// A call that may have to wait.
    pub(crate) fn open(&mut self) -> StreamKey {
        self.opened(true, None)
    }

    pub(crate) fn open_until(&mut self, deadline: Option<Time>) -> StreamKey {
        self.opened(true, deadline)
    }

    fn opened(&mut self, end: bool, deadline: Option<Time>) -> StreamKey {
        let opened = Opened {
            method: Bytes::from_static(b"/m"),
            metadata: Metadata::new(),
            priority: Priority::Normal,
            deadline,
            message: None,
            end,
        };
        self.0.open(opened).unwrap()
    }

    pub(crate) fn called(&mut self, flags: u16) -> StreamKey {
        self.read(call(1, flags, b"")).unwrap();
        match &self.events()[..] {
            [Event::Call { key, .. }] => *key,
            other => panic!("{other:?}"),
        }
    }
}
