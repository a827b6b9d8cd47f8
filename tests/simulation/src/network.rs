//! The network between two hosts. [`Path`] is what both kinds of carrier have in common: when something that leaves now
//! arrives. [`Pipe`] is one direction of an ordered byte stream over it, with the trouble that a byte stream can have:
//! bytes are late, cut anywhere, changed, or end; they are never lost in the middle, doubled or out of order. What can be is
//! in [`Datagrams`]. A [`Carrier`] is both directions of either kind.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use crate::{datagrams::Datagrams, random::Random};

/// One direction between two hosts.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) latency_us: u64,
    pub(crate) jitter_us: u64,
    pub(crate) bytes_per_ms: u64,
    free_at: u64,
    /// Nothing arrives before this instant: a segment was lost and is being repeated.
    pub(crate) stalled_until: u64,
}

impl Path {
    pub(crate) fn new(latency_us: u64, jitter_us: u64, bytes_per_ms: u64) -> Self {
        Self { latency_us, jitter_us, bytes_per_ms, free_at: 0, stalled_until: 0 }
    }

    /// When `len` bytes that leave now, or as soon as those before them have left, arrive.
    pub(crate) fn arrival(&mut self, now: u64, len: usize, random: &mut Random) -> u64 {
        self.free_at = self.free_at.max(now) + len as u64 * 1_000 / self.bytes_per_ms;
        self.free_at + self.latency_us + random.between(0, self.jitter_us)
    }
}

/// How a direction ends, after the bytes that are still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The writer, or somebody in its name, said that nothing follows.
    Fin,
    /// The connection is broken.
    Reset,
}

/// What a read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Bytes(usize),
    Nothing,
    End(End),
}

/// What a link goes over; each direction by the side that writes.
#[derive(Debug)]
pub(crate) enum Carrier {
    Bytes([Pipe; 2]),
    Datagrams([Datagrams; 2]),
}

impl Carrier {
    pub(crate) fn path(&mut self, from: usize) -> &mut Path {
        match self {
            Carrier::Bytes(pipes) => &mut pipes[from].path,
            Carrier::Datagrams(ways) => &mut ways[from].path,
        }
    }

    pub(crate) fn pipe(&mut self, from: usize) -> Option<&mut Pipe> {
        match self {
            Carrier::Bytes(pipes) => Some(&mut pipes[from]),
            Carrier::Datagrams(_) => None,
        }
    }

    pub(crate) fn datagrams(&mut self) -> Option<&mut [Datagrams; 2]> {
        match self {
            Carrier::Bytes(_) => None,
            Carrier::Datagrams(ways) => Some(ways),
        }
    }

    pub(crate) fn is_datagrams(&self) -> bool {
        matches!(self, Carrier::Datagrams(_))
    }

    /// Brings what is due to the side that reads.
    pub(crate) fn arrive(&mut self, now: u64, from: usize) {
        match self {
            Carrier::Bytes(pipes) => pipes[from].arrive(now),
            Carrier::Datagrams(ways) => {
                for (id, code) in ways[from].arrive(now) {
                    if ways[1 - from].stopped_by_reader(id, code) {
                        ways[from].changed.insert(id);
                    }
                }
            }
        }
    }

    pub(crate) fn is_ending(&self, from: usize) -> bool {
        match self {
            Carrier::Bytes(pipes) => pipes[from].is_ending(),
            Carrier::Datagrams(ways) => ways[from].is_ending(),
        }
    }

    pub(crate) fn is_idle(&self, from: usize) -> bool {
        match self {
            Carrier::Bytes(pipes) => pipes[from].is_idle(),
            Carrier::Datagrams(ways) => ways[from].is_idle(),
        }
    }

    pub(crate) fn drop_all(&mut self, from: usize) {
        match self {
            Carrier::Bytes(pipes) => pipes[from].drop_all(),
            Carrier::Datagrams(ways) => ways[from].drop_all(),
        }
    }
}

/// One direction of a byte stream.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) path: Path,
    flight: VecDeque<(u64, Vec<u8>)>,
    arrived: BytesMut,
    /// Bytes that were written and not read, and how many there may be.
    held: usize,
    capacity: usize,
    end: Option<(u64, End)>,
    ended: bool,
    /// Bytes since the beginning, as written.
    pub(crate) written: u64,
    /// The bit of that byte which will be changed.
    pub(crate) flip_at: Option<u64>,
    /// Reads to come that get no more than this.
    pub(crate) slices: (u32, usize),
    /// The writer waits for room.
    pub(crate) full: bool,
}

impl Pipe {
    pub(crate) fn new(path: Path, capacity: usize) -> Self {
        Self {
            path,
            flight: VecDeque::new(),
            arrived: BytesMut::new(),
            held: 0,
            capacity,
            end: None,
            ended: false,
            written: 0,
            flip_at: None,
            slices: (0, 0),
            full: false,
        }
    }

    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.held)
    }

    /// Sends bytes that there is room for. Gives the instant of their arrival, and whether a bit was changed.
    pub(crate) fn write(&mut self, now: u64, bytes: &[u8], random: &mut Random) -> (u64, bool) {
        debug_assert!(bytes.len() <= self.room());
        let start = self.written;
        self.written += bytes.len() as u64;
        if self.end.is_some() {
            // Somebody ended the direction in the writer's name; what follows comes to nothing.
            return (now, false);
        }
        let mut bytes = bytes.to_vec();
        let mut flipped = false;
        if let Some(at) = self.flip_at
            && at < self.written
        {
            bytes[(at - start) as usize] ^= 1 << random.between(0, 7);
            self.flip_at = None;
            flipped = true;
        }
        self.held += bytes.len();
        let last = self.flight.back().map_or(0, |(at, _)| *at);
        let at = self.path.arrival(now, bytes.len(), random).max(self.path.stalled_until).max(last);
        self.flight.push_back((at, bytes));
        (at, flipped)
    }

    /// Ends the direction behind what is in flight; when that arrives.
    pub(crate) fn finish(&mut self, now: u64, end: End, random: &mut Random) -> u64 {
        let last = self.flight.back().map_or(0, |(at, _)| *at);
        let at = self.path.arrival(now, 0, random).max(self.path.stalled_until).max(last);
        self.end.get_or_insert((at, end));
        at
    }

    /// Cuts the direction at any byte of those in flight; when the cut arrives.
    pub(crate) fn cut(&mut self, now: u64, end: End, random: &mut Random) -> u64 {
        let mut keep = if self.flight.is_empty() { 0 } else { random.below(self.in_flight() + 1) };
        self.flight.retain_mut(|(_, bytes)| {
            bytes.truncate(keep);
            keep -= bytes.len();
            !bytes.is_empty()
        });
        self.held = self.in_flight() + self.arrived.len();
        self.finish(now, end, random)
    }

    /// Exchanges or repeats pieces in flight, which a byte stream never does: for the tests of the auditor. Whether
    /// there were any.
    pub(crate) fn break_order(&mut self, repeat: bool) -> bool {
        match self.flight.make_contiguous() {
            [.., (at, bytes)] if repeat => {
                let again = (*at, bytes.clone());
                self.held += again.1.len();
                self.flight.push_back(again);
                true
            }
            [.., (_, first), (_, second)] if !repeat => {
                std::mem::swap(first, second);
                true
            }
            _ => false,
        }
    }

    fn in_flight(&self) -> usize {
        self.flight.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Whether anything is under way, written or to be read.
    pub(crate) fn is_idle(&self) -> bool {
        self.held == 0
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.end.is_some()
    }

    /// Brings what is due to the reader's side.
    pub(crate) fn arrive(&mut self, now: u64) {
        while self.flight.front().is_some_and(|(at, _)| *at <= now) {
            let (_, bytes) = self.flight.pop_front().unwrap_or_default();
            self.arrived.extend_from_slice(&bytes);
        }
        self.ended = self.flight.is_empty() && self.end.is_some_and(|(at, _)| at <= now);
    }

    /// Reads at most `most` bytes to the end of `buffer`.
    pub(crate) fn read(&mut self, most: usize, buffer: &mut BytesMut) -> Read {
        if !self.arrived.is_empty() {
            let mut count = most.min(self.arrived.len());
            if let (left @ 1.., slice) = &mut self.slices {
                *left -= 1;
                count = count.min(*slice);
            }
            buffer.extend_from_slice(&self.arrived[..count]);
            self.arrived.advance(count);
            self.held -= count;
            return Read::Bytes(count);
        }
        match self.end {
            Some((_, end)) if self.ended => Read::End(end),
            _ => Read::Nothing,
        }
    }

    /// Whether another read would give something.
    pub(crate) fn readable(&self) -> bool {
        !self.arrived.is_empty() || self.ended
    }

    /// Nobody will read on: what is under way is dropped.
    pub(crate) fn drop_all(&mut self) {
        self.flight = VecDeque::new();
        self.arrived = BytesMut::new();
        self.held = 0;
    }
}
