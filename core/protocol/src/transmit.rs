//! Frames on their way out: how one is written, and what waits for the transport.

use std::{collections::VecDeque, fmt, io::IoSlice, ops::Range};

use bytes::{Buf, Bytes, BytesMut};

use crate::{FrameHeader, HEADER_LEN};

/// Messages up to this length are copied behind their header; longer ones are written from where they are.
const COPY_MAX: usize = 16 << 10;

/// Appends a frame without payload: header, then the record, then the header again with what is now known.
pub(crate) fn write_record(
    out: &mut BytesMut,
    version: u8,
    mut header: FrameHeader,
    record: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    out.resize(start + HEADER_LEN, 0);
    record(out);
    let body = &out[start + HEADER_LEN..];
    header.metadata_len = body.len() as u32;
    header.payload_crc = if body.is_empty() { 0 } else { crc32c::crc32c(body) };
    out[start..start + HEADER_LEN].copy_from_slice(&header.encode_as(version));
}

/// The part of a message that goes into one frame, if any.
pub(crate) struct Fragment<'a> {
    message: Option<&'a Bytes>,
    range: Range<usize>,
}

impl<'a> Fragment<'a> {
    pub(crate) const NONE: Fragment<'static> = Fragment { message: None, range: 0..0 };

    pub(crate) fn new(message: Option<&'a Bytes>, range: Range<usize>) -> Self {
        Self { message, range }
    }

    fn bytes(&self) -> &'a [u8] {
        self.message.map_or(&[], |message| &message[self.range.clone()])
    }
}

/// Frames on their way to the transport: small ones together in one block, large messages from where they are.
#[derive(Default)]
pub struct TransmitBuffer {
    /// Blocks ahead of `tail`, in order.
    blocks: VecDeque<Bytes>,
    tail: BytesMut,
    len: usize,
}

/// Shows nothing of what waits: credentials do.
impl fmt::Debug for TransmitBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransmitBuffer").field("len", &self.len).finish_non_exhaustive()
    }
}

impl TransmitBuffer {
    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The waiting bytes as up to `slices.len()` parts; gives how many parts are filled.
    pub fn parts<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        for (slot, part) in slices.iter_mut().zip(self.blocks.iter().map(|block| &block[..]).chain(tail)) {
            *slot = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// How many parts [`TransmitBuffer::parts`] would fill with room enough.
    pub fn part_count(&self) -> usize {
        self.blocks.len() + usize::from(!self.tail.is_empty())
    }

    /// Drops `len` bytes from the front: the transport took them.
    pub fn consume(&mut self, mut len: usize) {
        debug_assert!(len <= self.len);
        self.len -= len;
        while len > 0 {
            match self.blocks.front_mut() {
                Some(block) if block.len() > len => {
                    block.advance(len);
                    return;
                }
                Some(block) => {
                    len -= block.len();
                    self.blocks.pop_front();
                }
                None => {
                    self.tail.advance(len);
                    return;
                }
            }
        }
    }

    /// Moves everything that waits in `other` behind what waits here.
    pub fn append_all(&mut self, other: &mut TransmitBuffer) {
        if self.is_empty() {
            std::mem::swap(self, other);
            return;
        }
        if !self.tail.is_empty() {
            self.blocks.push_back(self.tail.split().freeze());
        }
        self.blocks.append(&mut other.blocks);
        self.tail = std::mem::take(&mut other.tail);
        self.len += std::mem::take(&mut other.len);
    }

    pub(crate) fn append(&mut self, control: &mut BytesMut) {
        self.len += control.len();
        self.tail.extend_from_slice(control);
        control.clear();
    }

    /// Appends a frame with a record, and a part of a message.
    pub(crate) fn frame(
        &mut self,
        version: u8,
        mut header: FrameHeader,
        record: impl FnOnce(&mut BytesMut),
        payload: Fragment<'_>,
    ) {
        let start = self.tail.len();
        self.tail.resize(start + HEADER_LEN, 0);
        record(&mut self.tail);
        header.metadata_len = (self.tail.len() - start - HEADER_LEN) as u32;
        header.payload_len = payload.bytes().len() as u32;
        let large = payload.bytes().len() > COPY_MAX;
        if !large {
            self.tail.extend_from_slice(payload.bytes());
        }
        let body = &self.tail[start + HEADER_LEN..];
        header.payload_crc = if body.is_empty() { 0 } else { crc32c::crc32c(body) };
        if large {
            header.payload_crc = crc32c::crc32c_append(header.payload_crc, payload.bytes());
        }
        self.tail[start..start + HEADER_LEN].copy_from_slice(&header.encode_as(version));
        self.len += self.tail.len() - start;
        if large {
            self.large(payload);
        }
    }

    /// Appends a frame without a record.
    pub(crate) fn bare(&mut self, version: u8, mut header: FrameHeader, payload: Fragment<'_>) {
        header.payload_len = payload.bytes().len() as u32;
        if header.payload_len > 0 {
            header.payload_crc = crc32c::crc32c(payload.bytes());
        }
        self.tail.extend_from_slice(&header.encode_as(version));
        self.len += HEADER_LEN;
        if payload.bytes().len() > COPY_MAX {
            return self.large(payload);
        }
        self.tail.extend_from_slice(payload.bytes());
        self.len += payload.bytes().len();
    }

    fn large(&mut self, payload: Fragment<'_>) {
        if let Some(message) = payload.message {
            self.blocks.push_back(self.tail.split().freeze());
            self.len += payload.range.len();
            self.blocks.push_back(message.slice(payload.range));
        }
    }
}
