//! One direction of a carrier of datagrams that gives every call an ordered channel of its own, as QUIC does. A packet
//! is lost, doubled or overtaken by itself: its loss is seen as its lateness, since it is repeated until it arrives, and
//! only its own channel waits for it. Channel 0 is the connection's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BytesMut};

use crate::{Mutation, network::Path, random::Random};

/// The shortest time after which a packet is taken for lost.
const LEAST_REPETITION: u64 = 10_000;
/// How often one packet is lost at most.
const MOST_LOSSES: u32 = 4;

/// What a packet carries.
#[derive(Clone, Debug)]
enum Packet {
    Data {
        offset: u64,
        bytes: Vec<u8>,
        end: bool,
    },
    Reset(u16),
    /// The sender reads no more of the channel.
    Stop(u16),
    /// The connection is over.
    Close,
}

/// What a read of a channel gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    Bytes(usize),
    Nothing,
    End,
    Reset(u16),
    /// The connection is over.
    Lost,
}

/// What happens to one packet in so many until then, and after that to one in `always`; 0 is to none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trouble {
    pub(crate) until: u64,
    pub(crate) one_in: u64,
    always: u64,
}

impl Trouble {
    fn strikes(&self, now: u64, random: &mut Random) -> bool {
        let one_in = if now < self.until { self.one_in } else { self.always };
        one_in > 0 && random.one_in(one_in)
    }
}

/// One direction of a channel.
#[derive(Debug, Default)]
struct Channel {
    /// At the writer.
    written: u64,
    finished: bool,
    stopped: Option<u16>,
    unwritable: bool,
    full: bool,
    /// At the reader: what came ahead of a gap, and what can be read.
    pieces: BTreeMap<u64, Vec<u8>>,
    arrived: BytesMut,
    received: u64,
    read: u64,
    len: Option<u64>,
    reset: Option<u16>,
    unreadable: bool,
}

impl Channel {
    /// Puts a piece where it belongs.
    fn take(&mut self, offset: u64, bytes: Vec<u8>, end: bool, mutation: Option<Mutation>) {
        let len = offset + bytes.len() as u64;
        if end {
            self.len = Some(len);
        }
        match mutation {
            Some(Mutation::RepeatsPackets) if len <= self.received => {
                self.arrived.extend_from_slice(&bytes);
                return;
            }
            Some(Mutation::SkipsGaps) if offset > self.received => {
                self.arrived.extend_from_slice(&bytes);
                self.received = len;
                return;
            }
            _ => {}
        }
        self.pieces.insert(offset, bytes);
        while let Some(entry) = self.pieces.first_entry()
            && *entry.key() <= self.received
        {
            let (at, piece) = entry.remove_entry();
            let known = (self.received - at) as usize;
            if known < piece.len() {
                self.arrived.extend_from_slice(&piece[known..]);
                self.received += (piece.len() - known) as u64;
            }
        }
    }
}

/// How many packets there were, and what befell them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// Sent, each once.
    pub sent: u64,
    /// Losses.
    pub lost: u64,
    /// Second copies.
    pub doubled: u64,
    /// Sent earlier than one that arrived before.
    pub overtaken: u64,
}

impl std::ops::AddAssign for Packets {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.overtaken += other.overtaken;
    }
}

/// One direction of the carrier.
#[derive(Debug)]
pub(crate) struct Datagrams {
    pub(crate) path: Path,
    /// By arrival, then by the order in which they were sent: the channel, the packet, and whether it was lost before, so
    /// that its sender has to live for it.
    flight: BTreeMap<(u64, u64), (u64, Packet, bool)>,
    order: u64,
    /// The last in that order of those that arrived.
    newest: u64,
    /// Bytes of one packet, or of a train of them that shares its fate.
    size: usize,
    /// Bytes of a channel that were written and not read.
    capacity: usize,
    pub(crate) loss: Trouble,
    pub(crate) doubling: Trouble,
    pub(crate) reordering: Trouble,
    /// Packets to come of which a bit will be changed: the receiver drops them.
    pub(crate) spoilt: u32,
    channels: BTreeMap<u64, Channel>,
    /// Channels with news for the side that reads this direction.
    pub(crate) changed: BTreeSet<u64>,
    /// The close is sent, has arrived, and nobody reads.
    closing: bool,
    ended: bool,
    deaf: bool,
    mutation: Option<Mutation>,
    /// When the packets arrive that were sent since somebody asked.
    pub(crate) arrivals: Vec<u64>,
    pub(crate) packets: Packets,
}

impl Datagrams {
    pub(crate) fn new(path: Path, capacity: usize, mutation: Option<Mutation>, random: &mut Random) -> Self {
        let trouble =
            |random: &mut Random| Trouble { always: random.pick(&[0, 50, 500]), ..Trouble::default() };
        Self {
            path,
            flight: BTreeMap::new(),
            order: 0,
            newest: 0,
            size: random.pick(&[1_200, 4_800, 16 << 10]),
            capacity,
            loss: trouble(random),
            doubling: trouble(random),
            reordering: trouble(random),
            spoilt: 0,
            channels: BTreeMap::new(),
            changed: BTreeSet::new(),
            closing: false,
            ended: false,
            deaf: false,
            mutation,
            arrivals: Vec::new(),
            packets: Packets::default(),
        }
    }

    // ---- the writer ----

    /// How much may be written, or the code with which the reader stopped to read.
    pub(crate) fn room(&mut self, id: u64) -> Result<usize, u16> {
        let channel = self.channels.entry(id).or_default();
        if let Some(code) = channel.stopped {
            return Err(code);
        }
        let held = if channel.unreadable { 0 } else { channel.written - channel.read };
        let room = self.capacity.saturating_sub(held as usize);
        channel.full = room == 0;
        Ok(room)
    }

    /// The code with which the reader stopped to read what is not all written, unless it is no error.
    pub(crate) fn stopped(&self, id: u64) -> Option<u16> {
        let channel = self.channels.get(&id).filter(|channel| !channel.finished)?;
        channel.stopped.filter(|code| *code != 0)
    }

    /// Sends bytes that there is room for, and the end behind them.
    pub(crate) fn write(&mut self, now: u64, id: u64, bytes: &[u8], end: bool, random: &mut Random) {
        let channel = self.channels.entry(id).or_default();
        let mut offset = channel.written;
        channel.written += bytes.len() as u64;
        channel.finished |= end;
        let mut left = bytes;
        loop {
            let (piece, rest) = left.split_at(left.len().min(self.size));
            let packet = Packet::Data { offset, bytes: piece.to_vec(), end: end && rest.is_empty() };
            self.send(now, id, packet, random);
            offset += piece.len() as u64;
            left = rest;
            if left.is_empty() {
                return;
            }
        }
    }

    /// The writer is done with a channel: what has not ended is reset.
    pub(crate) fn close_writing(&mut self, now: u64, id: u64, code: u16, random: &mut Random) {
        let channel = self.channels.entry(id).or_default();
        channel.unwritable = true;
        if !channel.finished {
            self.send(now, id, Packet::Reset(code), random);
        }
    }

    /// Tells whoever writes the other direction that nobody reads on.
    pub(crate) fn stop(&mut self, now: u64, id: u64, code: u16, random: &mut Random) {
        self.send(now, id, Packet::Stop(code), random);
    }

    fn send(&mut self, now: u64, id: u64, packet: Packet, random: &mut Random) {
        if self.closing {
            // Somebody ended the connection in the sender's name; what follows comes to nothing.
            return;
        }
        self.packets.sent += 1;
        let len = if let Packet::Data { bytes, .. } = &packet { bytes.len() } else { 0 };
        let mut at = self.path.arrival(now, len + 40, random);
        let mut losses = 0;
        while losses < MOST_LOSSES && (self.spoilt > 0 || self.loss.strikes(now, random)) {
            self.spoilt = self.spoilt.saturating_sub(1);
            losses += 1;
        }
        self.packets.lost += u64::from(losses);
        let round = 2 * (self.path.latency_us + self.path.jitter_us) + LEAST_REPETITION;
        at += round * ((1 << losses) - 1);
        if self.reordering.strikes(now, random) {
            at += random.between(1, round);
        }
        if self.doubling.strikes(now, random) {
            self.packets.doubled += 1;
            let again = at + random.between(1, 2 * round);
            self.launch(again, id, packet.clone(), losses > 0);
        }
        self.launch(at, id, packet, losses > 0);
    }

    fn launch(&mut self, at: u64, id: u64, packet: Packet, repeated: bool) {
        self.order += 1;
        self.flight.insert((at, self.order), (id, packet, repeated));
        self.arrivals.push(at);
    }

    /// Ends the connection after `wait`. One that ends at once repeats nothing.
    pub(crate) fn close(&mut self, now: u64, wait: u64, random: &mut Random) {
        let at = self.path.arrival(now + wait, 40, random);
        if wait == 0 {
            self.leave();
        }
        if !std::mem::replace(&mut self.closing, true) {
            self.launch(at, 0, Packet::Close, false);
        }
    }

    /// The sender is gone: what is on the way arrives, and nothing is repeated.
    pub(crate) fn leave(&mut self) {
        self.flight.retain(|_, (_, _, repeated)| !*repeated);
    }

    /// How long the connection's own frames are under way at most.
    pub(crate) fn control_takes(&self, now: u64) -> u64 {
        let last = self
            .flight
            .iter()
            .rev()
            .find(|(_, (id, packet, _))| *id == 0 && matches!(packet, Packet::Data { .. }));
        last.map_or(0, |((at, _), _)| at.saturating_sub(now))
    }

    // ---- the reader ----

    /// Brings what is due to the reader's side; the channels of the other direction that its peer stopped to read.
    pub(crate) fn arrive(&mut self, now: u64) -> Vec<(u64, u16)> {
        let mut stops = Vec::new();
        while let Some(entry) = self.flight.first_entry()
            && entry.key().0 <= now
        {
            let ((_, order), (id, packet, _)) = entry.remove_entry();
            self.packets.overtaken += u64::from(order < self.newest);
            self.newest = self.newest.max(order);
            if self.deaf || self.ended {
                continue;
            }
            if let Packet::Stop(code) = packet {
                stops.push((id, code));
                continue;
            }
            if let Packet::Close = packet {
                self.ended = true;
                continue;
            }
            let channel = self.channels.entry(id).or_default();
            if channel.unreadable {
                continue;
            }
            match packet {
                Packet::Reset(code) => channel.reset = Some(code),
                Packet::Data { offset, bytes, end } => channel.take(offset, bytes, end, self.mutation),
                Packet::Stop(_) | Packet::Close => {}
            }
            self.changed.insert(id);
        }
        stops
    }

    /// The reader of this direction told its writer that it reads no more; whether the writer cares.
    pub(crate) fn stopped_by_reader(&mut self, id: u64, code: u16) -> bool {
        let channel = self.channels.entry(id).or_default();
        channel.stopped.get_or_insert(code);
        !channel.unwritable
    }

    /// Reads at most `most` bytes to the end of `buffer`; whether that makes room for a writer that waits for it.
    pub(crate) fn read(&mut self, id: u64, most: usize, buffer: &mut BytesMut) -> (Took, bool) {
        if self.ended {
            return (Took::Lost, false);
        }
        let Some(channel) = self.channels.get_mut(&id) else { return (Took::Nothing, false) };
        if let Some(code) = channel.reset {
            return (Took::Reset(code), false);
        }
        if channel.arrived.is_empty() {
            let took = if channel.len == Some(channel.received) { Took::End } else { Took::Nothing };
            return (took, false);
        }
        let count = most.min(channel.arrived.len());
        buffer.extend_from_slice(&channel.arrived[..count]);
        channel.arrived.advance(count);
        channel.read = (channel.read + count as u64).min(channel.written);
        (Took::Bytes(count), std::mem::take(&mut channel.full))
    }

    /// Whether the connection's own channel can be read, or the connection is over.
    pub(crate) fn readable(&self) -> bool {
        self.ended || self.channels.get(&0).is_some_and(|channel| !channel.arrived.is_empty())
    }

    /// Nobody reads the channel on. Whether its writer is to be told.
    pub(crate) fn close_reading(&mut self, id: u64) -> bool {
        let channel = self.channels.entry(id).or_default();
        let over = channel.reset.is_some() || channel.len == Some(channel.received);
        *channel = Channel {
            written: channel.written,
            finished: channel.finished,
            stopped: channel.stopped,
            unwritable: channel.unwritable,
            unreadable: true,
            ..Channel::default()
        };
        !over
    }

    // ---- both ----

    /// Nobody will read on: what is under way is dropped.
    pub(crate) fn drop_all(&mut self) {
        self.deaf = true;
        self.flight.clear();
        self.channels.clear();
        self.changed.clear();
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.closing
    }

    /// Whether nothing is under way, written or to be read.
    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_empty()
            && self.channels.values().all(|channel| channel.pieces.is_empty() && channel.arrived.is_empty())
    }

    /// What befalls packets from now on is only what always does.
    pub(crate) fn heal(&mut self) {
        self.spoilt = 0;
        for trouble in [&mut self.loss, &mut self.doubling, &mut self.reordering] {
            trouble.until = 0;
        }
    }
}
