//! The driver of a side whose carrier gives each call a channel of its own: what each channel still writes, and what was
//! read of an unfinished frame. The connection's own frames go the driver's ordinary way.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IoSlice,
};

use bytes::BytesMut;
use valkyrie_protocol::{
    Connection, ConnectionError, ErrorCode, Priority, StreamAction, StreamKey, Time, TransmitBuffer,
};

use crate::{
    auditor::{Auditor, READ_MOST},
    datagrams::{Datagrams, Took},
    random::Random,
};

#[derive(Default)]
pub(crate) struct Channels {
    open: BTreeMap<u64, Channel>,
    readable: BTreeSet<u64>,
    writable: BTreeSet<u64>,
    /// Calls whose frames the carrier took, and channels that the peer reads no more.
    written: Vec<StreamKey>,
    stopped: Vec<(u64, u16)>,
    scratch: TransmitBuffer,
}

#[derive(Default)]
struct Channel {
    key: Option<StreamKey>,
    priority: Option<Priority>,
    unread: BytesMut,
    begun: bool,
    /// The protocol did not want more of it.
    held: bool,
    read_ended: bool,
    out: TransmitBuffer,
    /// Nothing follows what is to be written.
    end: bool,
    finished: bool,
    /// The peer reads no more.
    deaf: bool,
    /// The call is over; the code for what has not ended.
    over: Option<u16>,
}

impl Channels {
    /// Reads every channel that may be read. Gives the bytes, and whether that made room for a writer that waits.
    pub(crate) fn read(
        &mut self,
        now: Time,
        [from, to]: [&mut Datagrams; 2],
        protocol: &mut Connection,
        most: usize,
    ) -> Result<(usize, bool), ConnectionError> {
        for key in self.written.drain(..) {
            protocol.stream_written(key);
        }
        for (id, code) in self.stopped.drain(..) {
            protocol.handle_stream_reset(id, ErrorCode::from_number(code))?;
        }
        for id in std::mem::take(&mut from.changed).into_iter().filter(|id| *id != 0) {
            self.open.entry(id).or_default();
            self.readable.insert(id);
            self.writable.insert(id);
        }
        let (mut bytes, mut roomy) = (0, false);
        for id in self.readable.clone() {
            let Some(channel) = self.open.get_mut(&id) else {
                self.readable.remove(&id);
                continue;
            };
            loop {
                if channel.over.is_some() {
                    self.readable.remove(&id);
                    self.writable.insert(id);
                    break;
                }
                if !protocol.may_read(id) {
                    channel.held = true;
                    break;
                }
                if std::mem::take(&mut channel.held) {
                    channel.begun |= protocol.handle_stream(now, id, channel.begun, &mut channel.unread)?;
                }
                let (took, room) = from.read(id, most.min(READ_MOST), &mut channel.unread);
                roomy |= room;
                match took {
                    Took::Bytes(count) => {
                        bytes += count;
                        channel.begun |=
                            protocol.handle_stream(now, id, channel.begun, &mut channel.unread)?;
                        continue;
                    }
                    Took::End if !channel.read_ended => {
                        channel.read_ended = true;
                        protocol.handle_stream_end(id, &channel.unread)?;
                        if !channel.begun {
                            channel.over = Some(0);
                        }
                        continue;
                    }
                    Took::Reset(code) if !channel.read_ended => {
                        channel.read_ended = true;
                        protocol.handle_stream_reset(id, ErrorCode::from_number(code))?;
                    }
                    _ => {
                        // Nothing comes, but the peer may read no more. A writer learns by itself what is no error.
                        if !channel.deaf
                            && let Some(code) = to.stopped(id)
                        {
                            channel.deaf = true;
                            protocol.handle_stream_reset(id, ErrorCode::from_number(code))?;
                        } else {
                            self.readable.remove(&id);
                            break;
                        }
                    }
                }
                // The protocol says what becomes of a stream that it knows; of another nobody speaks again.
                if !channel.begun {
                    channel.over.get_or_insert(0);
                }
                self.readable.remove(&id);
                self.writable.insert(id);
                break;
            }
        }
        Ok((bytes, roomy))
    }

    /// Takes what the protocol wants done with its streams.
    pub(crate) fn fill(&mut self, now: Time, protocol: &mut Connection, budget: usize) {
        while let Some(action) = protocol.poll_stream(now, &mut self.scratch, budget) {
            match action {
                StreamAction::Write { id, key, priority, end } => {
                    let channel = self.open.entry(id).or_default();
                    channel.key = Some(key);
                    channel.priority = Some(priority);
                    channel.end |= end;
                    channel.out.append_all(&mut self.scratch);
                    self.writable.insert(id);
                }
                StreamAction::Close { id } => self.over(id, None),
                StreamAction::Reset { id, code } => self.over(id, Some(code)),
            }
        }
    }

    fn over(&mut self, id: u64, code: Option<ErrorCode>) {
        let Some(channel) = self.open.get_mut(&id) else { return };
        channel.key = None;
        if code.is_some() || !channel.end {
            channel.out = TransmitBuffer::default();
            channel.end = false;
        }
        channel.over = Some(code.map_or(0, ErrorCode::number));
        self.writable.insert(id);
    }

    /// Writes every channel that may be written, the most urgent first, and tells the auditor of every byte; how many.
    pub(crate) fn write(
        &mut self,
        now: u64,
        [from, to]: [&mut Datagrams; 2],
        random: &mut Random,
        auditor: &mut Auditor,
        (link, side): (usize, usize),
    ) -> u64 {
        let mut bytes = 0;
        let mut ids: Vec<u64> = std::mem::take(&mut self.writable).into_iter().collect();
        ids.sort_by_key(|id| self.open.get(id).map(|channel| channel.priority));
        for id in ids {
            let Some(channel) = self.open.get_mut(&id) else { continue };
            while !channel.out.is_empty() {
                let mut room = match to.room(id) {
                    Ok(0) => break,
                    Ok(room) => room,
                    Err(code) => {
                        // Without an error its last frame is on its way and says why.
                        if !std::mem::replace(&mut channel.deaf, true) && code != 0 {
                            self.stopped.push((id, code));
                        }
                        channel.out = TransmitBuffer::default();
                        break;
                    }
                };
                let mut parts = [IoSlice::new(&[]); 16];
                let count = channel.out.parts(&mut parts);
                let mut piece = Vec::new();
                for part in &parts[..count] {
                    let len = part.len().min(room);
                    piece.extend_from_slice(&part[..len]);
                    room -= len;
                }
                channel.out.consume(piece.len());
                bytes += piece.len() as u64;
                auditor.wrote(link, side, id, &piece);
                to.write(now, id, &piece, false, random);
            }
            if !channel.out.is_empty() {
                self.writable.insert(id);
                continue;
            }
            if channel.end && !channel.finished && !channel.deaf {
                channel.finished = true;
                auditor.ended_channel(link, side, id);
                to.write(now, id, &[], true, random);
            }
            self.written.extend(channel.key.take());
            if let Some(code) = channel.over {
                if from.close_reading(id) {
                    to.stop(now, id, code, random);
                }
                if !channel.finished {
                    auditor.reset_channel(link, side, id);
                }
                to.close_writing(now, id, code, random);
                self.open.remove(&id);
                self.readable.remove(&id);
            }
        }
        bytes
    }

    /// Channels that are not written and closed.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether the protocol has to hear of something before the driver may rest.
    pub(crate) fn has_news(&self) -> bool {
        !self.written.is_empty() || !self.stopped.is_empty()
    }

    /// The most that a channel holds of a frame that is not whole, and for the wire.
    pub(crate) fn buffers(&self) -> (usize, usize) {
        let channels = self.open.values();
        channels.fold((0, 0), |(inbox, out), channel| {
            (inbox.max(channel.unread.len()), out.max(channel.out.len()))
        })
    }
}
