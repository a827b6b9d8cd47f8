//! Grease: optional settings, extensions and frames that mean nothing, sent at random, so that no receiver forgets to
//! skip what it does not know (PROTOCOL.md, "Grease"). The chance is handed in as a seed, like time is.

use bytes::BytesMut;

use crate::{Extension, FrameHeader, FrameType};

/// Frame types that never mean anything: these sixteen.
const TYPES: u8 = 0xE0;
/// Ids of settings and extensions that never mean anything: from here up.
const IDS: u32 = 0xE000_0000;
/// The longest body of a frame, in bytes.
const MAX_BODY: u64 = 31;
/// One frame goes out with so many frames of control, on average.
const SELDOM: u64 = 128;

/// Where the next grease comes from, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grease {
    state: u64,
    /// Frames of control until the next frame of grease.
    wait: u64,
}

impl Grease {
    pub(crate) fn new(seed: u64) -> Self {
        let mut grease = Self { state: seed, wait: 0 };
        // Half of the connections send one right behind HELLO.
        grease.wait = if grease.coin() { 1 } else { grease.pause() };
        grease
    }

    /// A setting in half of the HELLOs.
    pub(crate) fn setting(&mut self) -> Option<(u32, u64)> {
        self.coin().then(|| (self.id(), self.next()))
    }

    /// An extension in half of the records that may have one; `room` holds its bytes.
    pub(crate) fn extension<'a>(&mut self, room: &'a mut [u8; 8]) -> Vec<Extension<'a>> {
        if !self.coin() {
            return Vec::new();
        }
        *room = self.next().to_le_bytes();
        let len = self.next() as usize % (room.len() + 1);
        vec![(self.id(), &room[..len])]
    }

    /// Counts a frame of control, and appends a frame of grease when it is time for one.
    pub(crate) fn after_control(&mut self, out: &mut BytesMut, version: u8) {
        self.wait -= 1;
        if self.wait == 0 {
            self.wait = self.pause();
            self.frame(out, version);
        }
    }

    fn frame(&mut self, out: &mut BytesMut, version: u8) {
        let mut body = [0; MAX_BODY as usize];
        body.chunks_mut(8).for_each(|part| part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]));
        let body = &body[..(self.next() % (MAX_BODY + 1)) as usize];
        let metadata_len = (self.next() % (body.len() as u64 + 1)) as u32;
        let header = FrameHeader {
            frame_type: FrameType(TYPES | (self.next() & 0x0F) as u8),
            flags: self.next() as u16,
            stream: self.next() >> (self.next() % 64),
            payload_len: body.len() as u32 - metadata_len,
            metadata_len,
            priority: (self.next() % 3) as u8,
            epoch: 0,
            payload_crc: if body.is_empty() { 0 } else { crc32c::crc32c(body) },
        };
        out.extend_from_slice(&header.encode_as(version));
        out.extend_from_slice(body);
    }

    fn id(&mut self) -> u32 {
        IDS | self.next() as u32
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }

    fn pause(&mut self) -> u64 {
        SELDOM / 2 + self.next() % SELDOM
    }

    /// SplitMix64: small, and every seed gives another sequence.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }
}
