//! The auditor: is told what was asked, what went over the wire and what came of it, and says at once when that cannot
//! be. It shares nothing with what it audits: it reads frames by its own eyes, keeps its own books of credit, messages
//! and executions, and asks the protocol for nothing.
//!
//! * I1 each call ends exactly once, by its deadline + 100 ms, and for a reason that really happened
//! * I2 a call is executed at most once
//! * I4 a nonce comes back to its own call only, and so does every message
//! * I5 messages of a stream come in order, without a gap, without a duplicate; frames obey PROTOCOL.md
//! * I6 a window is never passed and never opened too far; what is buffered stays within its bound
//! * I7 when everything is healed, everything resolves within 10 s, and calls succeed
//! * I8 at rest nothing is left: no stream, timer, permit, byte or lost credit
//! * I9 no call is processed before its client's credentials are accepted, or once they have expired
//! * honest: a side that obeys is never accused of breaking the protocol
//! * flip: a changed bit is found before anything of its frame is believed

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use valkyrie_protocol::{Code, ErrorCode, Event, INITIAL, Limits, StreamKey};

use crate::plan::{CLIENT, SERVER, is_message};

/// What should never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant: `I1`, …, `honest`, `flip`.
    pub invariant: &'static str,
    /// What was seen, for people.
    pub what: String,
}

/// How late the end of a call may be told.
const LATE_US: u64 = 100_000;
/// How long anything may take once all is well.
const RESOLVE_US: u64 = 10_000_000;
/// The most that one read gives.
pub(crate) const READ_MOST: usize = 64 << 10;
/// The most that one side may hold for the wire: what a turn takes, and one frame.
const TRANSMIT_MOST: usize = (256 << 10) + (1 << 20) + (16 << 10) + 64;

#[derive(Default)]
pub(crate) struct Auditor {
    pub(crate) violation: Option<Violation>,
    now: u64,
    healed: bool,
    calls: BTreeMap<u64, Call>,
    /// When each call must be over at the latest.
    due: BTreeSet<(u64, u64)>,
    /// Hosts that stand still, or stood still until then.
    frozen: BTreeMap<usize, u64>,
    links: Vec<Link>,
}

struct Call {
    host: usize,
    deadline: Option<u64>,
    due: Option<u64>,
    /// Lengths of the messages that were accepted for each side, and how many of them came.
    sent: [Vec<u32>; 2],
    received: [usize; 2],
    unread: [u64; 2],
    finished: bool,
    executions: u32,
    answered: Option<bool>,
    ended: bool,
}

struct Link {
    /// Each call has a channel of its own.
    multiplexed: bool,
    limits: [Limits; 2],
    wires: [Wire; 2],
    unread: [u64; 2],
    /// Bytes of them that wait with their call for a permit.
    aside: [u64; 2],
    /// What each side asked its peer to repeat, in order.
    pings: [VecDeque<u64>; 2],
    /// Streams that each side was told to be over.
    over: [BTreeSet<StreamKey>; 2],
    touched: bool,
    credentials: Credentials,
}

/// What a server may do for its client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Credentials {
    /// All: there are none to wait for, or they were accepted.
    Good,
    /// Nothing: they are to come, or undecided.
    Awaited,
    /// Nothing more: they were refused, or have expired.
    Over,
}

/// What one side of a link sends, frame by frame, before anything on the way changes it.
#[derive(Default)]
struct Wire {
    /// By channel; a byte stream is one, and it is 0.
    channels: BTreeMap<u64, Frames>,
    /// Where the last frame that is known ends.
    end: u64,
    frames: u64,
    greeted: bool,
    last_id: u64,
    credit: Credit,
    /// Frames of other classes since bulk's last.
    urgent: u64,
    streams: BTreeMap<u64, Flow>,
    /// Places of changed bits; by which byte the other side must have noticed.
    flips: Vec<u64>,
    found_by: Option<u64>,
    read: u64,
}

impl Wire {
    /// Bytes of payload that were announced and did not come.
    fn unfinished(&self) -> u64 {
        self.channels.values().map(|frames| frames.payload).sum()
    }
}

/// The frames of one channel.
#[derive(Default)]
struct Frames {
    /// Header and record of the frame that is being read, and how many bytes of its payload are to come.
    head: Vec<u8>,
    payload: u64,
    /// Where the frame began, and where the next byte is.
    start: u64,
    at: u64,
}

/// Message bytes since the beginning, and how many there may be.
#[derive(Clone, Copy)]
struct Credit {
    sent: u64,
    limit: u64,
}

impl Default for Credit {
    fn default() -> Self {
        Self { sent: 0, limit: 64 << 10 }
    }
}

#[derive(Default)]
struct Flow {
    credit: Credit,
    head: bool,
    in_message: bool,
    ended: bool,
    gone: bool,
}

/// The header's fields, read as PROTOCOL.md draws them.
struct Header {
    kind: u8,
    flags: u16,
    stream: u64,
    payload: u64,
    record: usize,
    class: u8,
}

impl Header {
    fn read(bytes: &[u8]) -> Self {
        let number = |at: usize, len: usize| {
            bytes[at..at + len].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        Self {
            kind: bytes[5],
            flags: number(6, 2) as u16,
            stream: number(8, 8),
            payload: number(16, 4),
            record: number(20, 4) as usize,
            class: bytes[24],
        }
    }
}

const HEADER: usize = 40;
const HELLO: u8 = 0x01;
const GOAWAY: u8 = 0x05;
const WINDOW: u8 = 0x06;
const CALL: u8 = 0x10;
const HEAD: u8 = 0x11;
const MESSAGE: u8 = 0x12;
const STATUS: u8 = 0x13;
const RESET: u8 = 0x14;
const END: u16 = 1;
const PRESENT: u16 = 2;
const MORE: u16 = 4;

/// The number at the start of a record.
fn varint(record: &[u8]) -> u64 {
    let wide =
        |len: usize| record[1..=len].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    match record.first() {
        Some(251) => wide(2),
        Some(252) => wide(4),
        Some(253) => wide(8),
        Some(small) => u64::from(*small),
        None => 0,
    }
}

impl Auditor {
    fn wrong(&mut self, invariant: &'static str, what: String) {
        self.violation.get_or_insert(Violation { invariant, what });
    }

    /// Time goes on: nothing may be overdue.
    pub(crate) fn step(&mut self, now: u64) {
        self.now = now;
        while let Some((due, nonce)) = self.due.first().copied()
            && due < now
        {
            self.due.pop_first();
            let Some(call) = self.calls.get_mut(&nonce) else { continue };
            // Whoever stood still can tell nobody; it has its 100 ms from when it moves again.
            let moved = self.frozen.get(&call.host).map_or(0, |until| until.saturating_add(LATE_US));
            if moved > due {
                let due = moved.min(now + LATE_US).max(now);
                call.due = Some(due);
                self.due.insert((due, nonce));
                continue;
            }
            let (deadline, healed) = (call.deadline, self.healed);
            self.wrong(
                if healed { "I7" } else { "I1" },
                format!("call {nonce:016x} with deadline {deadline:?} has not ended at {now}"),
            );
            return;
        }
    }

    // ---- calls ----

    pub(crate) fn began(&mut self, nonce: u64, host: usize, deadline: Option<u64>) {
        let mut due = deadline.map(|at| at + LATE_US);
        if self.healed {
            due = Some(due.unwrap_or(u64::MAX).min(self.now + RESOLVE_US));
        }
        if let Some(due) = due {
            self.due.insert((due, nonce));
        }
        let call = Call {
            host,
            deadline,
            due,
            sent: [Vec::new(), Vec::new()],
            received: [0; 2],
            unread: [0; 2],
            finished: false,
            executions: 0,
            answered: None,
            ended: false,
        };
        if self.calls.insert(nonce, call).is_some() {
            self.wrong("I4", format!("nonce {nonce:016x} was drawn twice"));
        }
    }

    fn call(&mut self, nonce: u64) -> Option<&mut Call> {
        let call = self.calls.get_mut(&nonce);
        if call.is_none() {
            self.violation.get_or_insert_with(|| Violation {
                invariant: "I4",
                what: format!("{nonce:016x} is the nonce of no call"),
            });
        }
        call
    }

    /// The protocol took a message for the side `to`.
    pub(crate) fn accepted(&mut self, nonce: u64, to: usize, len: usize) {
        if let Some(call) = self.call(nonce) {
            call.sent[to].push(len as u32);
        }
    }

    /// The caller half-closed.
    pub(crate) fn finished(&mut self, nonce: u64) {
        if let Some(call) = self.call(nonce) {
            call.finished = true;
        }
    }

    /// The call begins anew, since the protocol says that no server saw it.
    pub(crate) fn repeats(&mut self, nonce: u64) {
        let Some(call) = self.call(nonce) else { return };
        call.sent[SERVER].clear();
        call.received[SERVER] = 0;
        call.unread = [0; 2];
        call.finished = false;
        if call.executions > 0 {
            self.wrong("I2", format!("call {nonce:016x} was executed and is called unprocessed"));
        }
    }

    /// A handler begins.
    pub(crate) fn executed(&mut self, nonce: u64) {
        let Some(call) = self.call(nonce) else { return };
        call.executions += 1;
        if call.executions > 1 {
            self.wrong("I2", format!("call {nonce:016x} was executed twice"));
        }
    }

    /// The handler ends the call.
    pub(crate) fn answered(&mut self, nonce: u64, ok: bool) {
        if let Some(call) = self.call(nonce) {
            call.answered.get_or_insert(ok);
        }
    }

    /// The nonce that an answer to a call carries.
    pub(crate) fn echoed(&mut self, nonce: u64, echo: Option<&[u8]>) {
        if echo != Some(&nonce.to_le_bytes()[..]) {
            self.wrong("I4", format!("the answer to call {nonce:016x} carries {echo:02x?}"));
        }
    }

    /// A message came to the side `to` of a call.
    pub(crate) fn received(&mut self, nonce: u64, to: usize, message: &[u8]) {
        let Some(call) = self.call(nonce) else { return };
        let index = call.received[to];
        call.received[to] += 1;
        let expected = call.sent[to].get(index).copied();
        if to == CLIENT && call.ended {
            return self.wrong("I1", format!("call {nonce:016x} got a message after its end"));
        }
        if expected == Some(message.len() as u32) && is_message(message, nonce, to, index as u32) {
            return;
        }
        let theirs = message.len() >= 8 && message[..8] != nonce.to_le_bytes();
        let start = &message[..message.len().min(16)];
        self.wrong(
            if theirs { "I4" } else { "I5" },
            format!(
                "call {nonce:016x} got {} bytes as message {index} to side {to}, not {expected:?}: {start:02x?}",
                message.len()
            ),
        );
    }

    /// The server is told of the caller's half-close.
    pub(crate) fn half_closed(&mut self, nonce: u64) {
        let Some(call) = self.call(nonce) else { return };
        let (sent, received) = (call.sent[SERVER].len(), call.received[SERVER]);
        if !call.finished || sent != received {
            self.wrong("I5", format!("call {nonce:016x} half-closed after {received} of {sent} messages"));
        }
    }

    /// The caller is told of the end. `expected` says whether the plan or something that happened explains it.
    pub(crate) fn ended(&mut self, nonce: u64, code: Code, expected: bool) {
        let (now, healed) = (self.now, self.healed);
        let Some(call) = self.call(nonce) else { return };
        if std::mem::replace(&mut call.ended, true) {
            return self.wrong("I1", format!("call {nonce:016x} ended twice"));
        }
        let (deadline, executions, answered) = (call.deadline, call.executions, call.answered);
        let (sent, received) = (call.sent[CLIENT].len(), call.received[CLIENT]);
        if let Some(due) = call.due.take() {
            self.due.remove(&(due, nonce));
        }
        match code {
            Code::Ok if executions != 1 || answered != Some(true) => self.wrong(
                "I1",
                format!("call {nonce:016x} is OK after {executions} executions and answer {answered:?}"),
            ),
            Code::Ok if sent != received => {
                self.wrong("I5", format!("call {nonce:016x} is OK with {received} of {sent} messages"));
            }
            Code::DeadlineExceeded if deadline.is_none_or(|at| at > now) => {
                self.wrong("I1", format!("call {nonce:016x} is over at {now}, its deadline is {deadline:?}"));
            }
            Code::Ok | Code::DeadlineExceeded => {}
            _ if !expected => {
                let invariant = if healed { "I7" } else { "I1" };
                self.wrong(
                    invariant,
                    format!("call {nonce:016x} ended with {code}, and nothing had happened"),
                );
            }
            _ => {}
        }
    }

    /// The caller's host is gone, and nobody is left to be told.
    pub(crate) fn lost(&mut self, nonce: u64) {
        if let Some(call) = self.call(nonce) {
            call.ended = true;
            if let Some(due) = call.due.take() {
                self.due.remove(&(due, nonce));
            }
        }
    }

    /// A call that had to succeed.
    pub(crate) fn must_be_ok(&mut self, nonce: u64, code: Code) {
        if code != Code::Ok {
            self.wrong("I7", format!("all is well, and call {nonce:016x} ended with {code}"));
        }
    }

    // ---- what happens to hosts and links ----

    pub(crate) fn froze(&mut self, host: usize) {
        self.frozen.insert(host, u64::MAX);
    }

    pub(crate) fn thawed(&mut self, host: usize) {
        self.frozen.insert(host, self.now);
    }

    /// The last fault is over: what runs has ten seconds.
    pub(crate) fn healed(&mut self) {
        self.healed = true;
        let most = self.now + RESOLVE_US;
        for (nonce, call) in self.calls.iter_mut().filter(|(_, call)| !call.ended) {
            let old = call.due.unwrap_or(u64::MAX);
            if old > most {
                self.due.remove(&(old, *nonce));
                self.due.insert((most, *nonce));
                call.due = Some(most);
            }
        }
    }

    pub(crate) fn linked(&mut self, multiplexed: bool, awaits: bool, limits: [Limits; 2]) {
        self.links.push(Link {
            multiplexed,
            aside: [0; 2],
            limits,
            wires: Default::default(),
            unread: [0; 2],
            pings: Default::default(),
            over: Default::default(),
            touched: false,
            credentials: if awaits { Credentials::Awaited } else { Credentials::Good },
        });
    }

    /// Something was done to the link that may end it, and what it carries.
    pub(crate) fn touch(&mut self, link: usize) {
        self.links[link].touched = true;
    }

    pub(crate) fn is_touched(&self, link: usize) -> bool {
        self.links[link].touched
    }

    /// A server decided on its client's credentials.
    pub(crate) fn decided(&mut self, link: usize, accepted: bool) {
        let credentials = &mut self.links[link].credentials;
        // Later ones that are refused leave streams the time of the earlier ones.
        if *credentials == Credentials::Awaited {
            *credentials = if accepted { Credentials::Good } else { Credentials::Over };
        }
    }

    /// The protocol tells the side of an event: nothing may come after the end of a stream.
    pub(crate) fn told(&mut self, link: usize, side: usize, event: &Event) {
        let credentials = &mut self.links[link].credentials;
        match event {
            Event::Expired => *credentials = Credentials::Over,
            Event::Call { .. } if *credentials != Credentials::Good => {
                self.wrong("I9", format!("link {link}: a call is processed without credentials"));
            }
            _ => {}
        }
        let (key, ends) = match event {
            Event::Ended { key, .. } | Event::Reset { key, .. } => (key, true),
            Event::Call { key, .. }
            | Event::Head { key, .. }
            | Event::Message { key, .. }
            | Event::HalfClosed { key }
            | Event::Writable { key } => (key, false),
            _ => return,
        };
        let over = &mut self.links[link].over[side];
        if over.contains(key) {
            self.wrong("I1", format!("link {link} side {side} is told after the end of a stream: {event:?}"));
        } else if ends {
            over.insert(*key);
        }
    }

    pub(crate) fn pinged(&mut self, link: usize, side: usize, data: u64) {
        self.links[link].pings[side].push_back(data);
    }

    pub(crate) fn ponged(&mut self, link: usize, side: usize, data: u64) {
        // The protocol's own.
        if data == 0 {
            return;
        }
        let asked = self.links[link].pings[side].pop_front();
        if asked != Some(data) {
            self.wrong("I4", format!("link {link} side {side} got pong {data:x} after ping {asked:x?}"));
        }
    }

    pub(crate) fn frames(&self) -> u64 {
        self.links.iter().flat_map(|link| &link.wires).map(|wire| wire.frames).sum()
    }

    // ---- the wire ----

    /// The side is about to send bytes of which this one will be changed on the way.
    pub(crate) fn flips(&mut self, link: usize, side: usize, at: u64) {
        let wire = &mut self.links[link].wires[side];
        wire.flips.push(at);
        if at < wire.end {
            wire.found_by.get_or_insert(wire.end);
        }
    }

    /// The side sends bytes on a channel; all of them on channel 0 where it has but one.
    pub(crate) fn wrote(&mut self, link: usize, side: usize, channel: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.violation.is_none() {
            let wire = &mut self.links[link].wires[side];
            let frames = wire.channels.entry(channel).or_default();
            if frames.payload > 0 {
                let count = frames.payload.min(bytes.len() as u64);
                frames.payload -= count;
                frames.at += count;
                bytes = &bytes[count as usize..];
                continue;
            }
            if frames.head.is_empty() {
                frames.start = frames.at;
            }
            let whole =
                if frames.head.len() < HEADER { HEADER } else { HEADER + Header::read(&frames.head).record };
            let count = (whole - frames.head.len()).min(bytes.len());
            frames.head.extend_from_slice(&bytes[..count]);
            frames.at += count as u64;
            bytes = &bytes[count..];
            if frames.head.len() < HEADER {
                return;
            }
            let header = Header::read(&frames.head);
            if frames.head.len() < HEADER + header.record {
                continue;
            }
            let head = std::mem::take(&mut frames.head);
            frames.payload = header.payload;
            wire.frames += 1;
            let (start, end) = (frames.start, frames.at + header.payload);
            wire.end = end;
            let header_end = start + HEADER as u64;
            if let Some(flip) = wire.flips.iter().find(|at| (start..end).contains(*at)) {
                wire.found_by.get_or_insert(if *flip < header_end { header_end } else { end });
            }
            self.frame(link, side, channel, &header, &head[HEADER..]);
        }
    }

    /// The side ended its direction of a channel.
    pub(crate) fn ended_channel(&mut self, link: usize, side: usize, channel: u64) {
        let wire = &mut self.links[link].wires[side];
        let whole =
            wire.channels.remove(&channel).is_none_or(|frames| frames.head.is_empty() && frames.payload == 0);
        if !whole || !wire.streams.get(&channel).is_some_and(|flow| flow.ended || flow.gone) {
            self.wrong(
                "I5",
                format!("link {link} side {side}: channel {channel} ends without its last frame"),
            );
        }
    }

    /// The side reset its direction of a channel: whatever it had begun ends there.
    pub(crate) fn reset_channel(&mut self, link: usize, side: usize, channel: u64) {
        let wire = &mut self.links[link].wires[side];
        wire.channels.remove(&channel);
        if let Some(flow) = wire.streams.get_mut(&channel) {
            flow.gone = true;
        }
    }

    fn frame(&mut self, link: usize, side: usize, channel: u64, header: &Header, record: &[u8]) {
        let Link { multiplexed, limits, wires, .. } = &mut self.links[link];
        let multiplexed = *multiplexed;
        let [client, server] = wires;
        let (wire, other) = if side == CLIENT { (client, server) } else { (server, client) };
        let own = &limits[side];
        let Header { kind, flags, stream: id, payload, class, .. } = *header;
        let wrong = |invariant: &'static str, what: &str| {
            Some(Violation {
                invariant,
                what: format!(
                    "link {link} side {side}: frame {kind:#04x} flags {flags} stream {id} payload {payload}: {what}"
                ),
            })
        };
        if kind & 0x80 != 0 {
            return;
        }
        if multiplexed && (id != channel || kind == WINDOW || kind == RESET) {
            self.violation = wrong("I5", "a frame that is not for its channel");
            return;
        }
        if channel == 0 && !wire.greeted && kind != GOAWAY {
            wire.greeted = true;
            if kind != HELLO {
                self.violation = wrong("I5", "not HELLO first");
                return;
            }
            // From now on the other side may believe what this one announces.
            other.credit.limit = other.credit.limit.max(u64::from(own.connection_window_bytes));
            for flow in other.streams.values_mut() {
                flow.credit.limit = flow.credit.limit.max(u64::from(own.stream_window_bytes));
            }
            return;
        }
        if kind == WINDOW {
            let offset = varint(record);
            let (credit, window) = if id == 0 {
                (&mut other.credit, own.connection_window_bytes)
            } else {
                let Some(flow) = other.streams.get_mut(&id) else {
                    self.violation = wrong("I6", "credit for a stream that never was");
                    return;
                };
                (&mut flow.credit, own.stream_window_bytes)
            };
            if offset <= credit.limit {
                self.violation = wrong("I6", "an offset that does not rise");
            } else if offset > credit.sent + u64::from(window) {
                self.violation = wrong("I6", "a window that opens beyond its most");
            } else {
                credit.limit = offset;
            }
            return;
        }
        if id == 0 {
            return;
        }
        if kind == CALL {
            // Where each call has a channel, the more urgent one may be written first.
            let again = if multiplexed { wire.streams.contains_key(&id) } else { id <= wire.last_id };
            if side != CLIENT || id % 2 == 0 || again {
                self.violation = wrong("I5", "an id that does not rise or is not the caller's");
                return;
            }
            wire.last_id = id;
            let flow = |greeted: bool, limits: &Limits| {
                let window = if greeted { limits.stream_window_bytes } else { INITIAL.stream_window_bytes };
                Flow { credit: Credit { sent: 0, limit: u64::from(window) }, ..Flow::default() }
            };
            wire.streams.insert(id, flow(other.greeted, &limits[1 - side]));
            other.streams.insert(id, flow(wire.greeted, own));
        }
        let urgent = wire.urgent;
        if kind != RESET {
            wire.urgent = if class == 2 { 0 } else { urgent + 1 };
        }
        let Some(flow) = wire.streams.get_mut(&id) else {
            self.violation = wrong("I5", "a stream that was never opened");
            return;
        };
        if flow.gone || (flow.ended && kind != RESET) {
            self.violation = wrong("I5", "a frame behind the end");
            return;
        }
        match kind {
            RESET => flow.gone = true,
            HEAD if side == CLIENT || flow.head || flow.in_message => {
                self.violation = wrong("I5", "a head that is not the beginning of an answer");
            }
            HEAD => flow.head = true,
            CALL | MESSAGE | STATUS => {
                if flow.in_message && flags & PRESENT == 0 && (kind != STATUS || varint(record) == 0) {
                    self.violation = wrong("I5", "an end inside a message");
                    return;
                }
                flow.head |= kind == MESSAGE;
                flow.in_message = flags & MORE != 0;
                flow.ended = flags & END != 0;
                flow.gone = kind == STATUS;
                flow.credit.sent += payload;
                wire.credit.sent += payload;
                let beyond = flow.credit.sent > flow.credit.limit || wire.credit.sent > wire.credit.limit;
                // What its peer gave it at the least: the sender may not have read its HELLO.
                let window = if other.greeted {
                    limits[1 - side].connection_window_bytes
                } else {
                    INITIAL.connection_window_bytes
                };
                let kept = u64::from(match class {
                    0 => 0,
                    1 => window / 8,
                    _ if urgent >= 15 => window / 8,
                    _ => window / 2,
                });
                if beyond && !multiplexed {
                    self.violation = wrong("I6", "more bytes than the window");
                } else if payload > 0 && wire.credit.sent + kept > wire.credit.limit && !multiplexed {
                    self.violation = wrong("I6", "the credit of a more urgent class");
                }
            }
            _ => self.violation = wrong("I5", "a frame that nobody knows"),
        }
    }

    /// The side read channels, and this is what it thinks of its peer: a carrier of datagrams lets no changed bit through.
    pub(crate) fn judged(&mut self, link: usize, side: usize, verdict: Result<(), ErrorCode>) {
        if let Err(code) = verdict {
            self.wrong("honest", format!("link {link} side {side} accuses its peer of {code:?}"));
        }
    }

    /// The side read so many bytes, and this is what it thinks of them.
    pub(crate) fn read(&mut self, link: usize, side: usize, count: usize, verdict: Result<(), ErrorCode>) {
        let wire = &mut self.links[link].wires[1 - side];
        wire.read += count as u64;
        let read = wire.read;
        let flipped = wire.flips.iter().any(|at| *at < read);
        let found_by = wire.found_by.filter(|at| *at <= read);
        match (verdict, found_by) {
            (Err(ErrorCode::CHECKSUM | ErrorCode::MAGIC), _) if flipped => {}
            (Err(code), _) => {
                self.wrong("honest", format!("link {link} side {side} accuses its peer of {code:?}"));
            }
            (Ok(()), Some(at)) => self.wrong(
                "flip",
                format!("link {link} side {side} read {read} bytes and has not found the change before {at}"),
            ),
            (Ok(()), None) => {}
        }
    }

    /// The side gave its peer up because of a time that ran out.
    pub(crate) fn timed_out(&mut self, link: usize, side: usize, code: ErrorCode) {
        if code != ErrorCode::TIMEOUT || !self.links[link].touched {
            self.wrong(
                "honest",
                format!("link {link} side {side} ended with {code:?}, and nothing stood still"),
            );
        }
    }

    // ---- what is held ----

    /// A message is handed to an application, and its bytes count until they are taken.
    pub(crate) fn holds(&mut self, link: usize, side: usize, nonce: u64, len: usize) {
        let Link { multiplexed, limits, unread, aside, .. } = &mut self.links[link];
        let limits = limits[side];
        unread[side] += len as u64;
        let mut of_link = unread[side];
        let mut most = u64::from(limits.connection_window_bytes) + u64::from(limits.max_buffered_bytes);
        // Whoever reads channels does not begin to with a full window, and one read ends at most one message that began
        // before it, whose fragments count only then, and brings whole ones behind that.
        let overshoot = u64::from(limits.max_message_bytes) + READ_MOST as u64;
        if *multiplexed {
            of_link -= aside[side];
            most = u64::from(limits.connection_window_bytes) + overshoot;
        }
        let past_window = if *multiplexed { overshoot } else { limits.max_message_bytes.into() };
        if of_link > most {
            self.wrong("I6", format!("link {link} side {side} holds {of_link} unread bytes, {most} at most"));
        }
        let most = u64::from(limits.stream_window_bytes) + past_window;
        let Some(call) = self.call(nonce) else { return };
        call.unread[side] += len as u64;
        let of_call = call.unread[side];
        if of_call > most {
            self.wrong("I6", format!("call {nonce:016x} holds {of_call} unread bytes, {most} at most"));
        }
    }

    /// Bytes that are unread wait with their call for a permit.
    pub(crate) fn sets_aside(&mut self, link: usize, side: usize, len: usize) {
        self.links[link].aside[side] += len as u64;
    }

    /// They wait no more.
    pub(crate) fn takes_up(&mut self, link: usize, side: usize, len: usize) {
        self.links[link].aside[side] -= len as u64;
    }

    /// An application took that many of the bytes.
    pub(crate) fn takes(&mut self, link: usize, side: usize, nonce: u64, len: usize) {
        let unread = &mut self.links[link].unread[side];
        let Some(left) = unread.checked_sub(len as u64) else {
            return self.wrong("I6", format!("link {link} side {side} gives more credit than it got bytes"));
        };
        *unread = left;
        if let Some(call) = self.call(nonce) {
            call.unread[side] = call.unread[side].saturating_sub(len as u64);
        }
    }

    /// What the side holds between two turns.
    pub(crate) fn buffers(&mut self, link: usize, side: usize, inbox: usize, out: usize, streams: usize) {
        let limits = self.links[link].limits[side];
        let frame = HEADER + limits.max_frame_bytes as usize + limits.max_metadata_bytes as usize;
        if inbox >= frame {
            self.wrong("I6", format!("link {link} side {side} holds {inbox} bytes of a frame"));
        }
        if out > TRANSMIT_MOST {
            self.wrong("I6", format!("link {link} side {side} holds {out} bytes for the wire"));
        }
        if side == SERVER && streams > limits.max_concurrent_streams as usize {
            self.wrong("I6", format!("link {link} has {streams} streams of the client"));
        }
    }

    // ---- rest ----

    /// Nothing is left of the side's work on a link that is open.
    pub(crate) fn at_rest(&mut self, link: usize, side: usize, left: &[(&str, usize)]) {
        for (what, count) in left {
            if *count != 0 {
                self.wrong("I8", format!("at rest link {link} side {side} has {count} {what}"));
            }
        }
        let Link { multiplexed, limits, wires, unread, .. } = &self.links[link];
        let window = u64::from(limits[1 - side].connection_window_bytes);
        let (unread, credit, payload) = (unread[side], wires[side].credit, wires[side].unfinished());
        // A receiver may keep back less than an eighth of the window, and not for ever what nobody holds.
        if unread != 0 || payload != 0 {
            self.wrong("I8", format!("at rest link {link} side {side} holds {unread} unread bytes"));
        } else if !*multiplexed && credit.limit - credit.sent <= window - window / 8 {
            let left = credit.limit - credit.sent;
            self.wrong("I8", format!("at rest link {link} side {side} may send {left} of {window} bytes"));
        }
    }

    /// Nothing is left of a host's work.
    pub(crate) fn host_at_rest(&mut self, host: usize, left: &[(&str, usize)]) {
        for (what, count) in left {
            if *count != 0 {
                self.wrong("I8", format!("at rest host {host} has {count} {what}"));
            }
        }
    }

    /// Every call has ended.
    pub(crate) fn all_ended(&mut self) {
        if let Some((nonce, _)) = self.calls.iter().find(|(_, call)| !call.ended) {
            let nonce = *nonce;
            self.wrong("I7", format!("call {nonce:016x} has not ended"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as the auditor sees it: it looks at no checksum.
    fn frame(kind: u8, flags: u16, stream: u64, record: &[u8], payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes[5] = kind;
        bytes[6..8].copy_from_slice(&flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&stream.to_le_bytes());
        bytes[16..20].copy_from_slice(&(payload as u32).to_le_bytes());
        bytes[20..24].copy_from_slice(&(record.len() as u32).to_le_bytes());
        bytes.extend_from_slice(record);
        bytes.resize(bytes.len() + payload, 7);
        bytes
    }

    /// What is wrong with these frames, each sent by a side, in pieces of any size.
    fn verdict(frames: &[(usize, Vec<u8>)]) -> Option<&'static str> {
        let verdicts = [1, 7, 41, usize::MAX].map(|piece| {
            let mut auditor = Auditor::default();
            auditor.linked(false, false, [INITIAL, INITIAL]);
            for (side, bytes) in frames {
                bytes.chunks(piece.min(bytes.len())).for_each(|piece| auditor.wrote(0, *side, 0, piece));
            }
            auditor.violation.map(|violation| violation.invariant)
        });
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{verdicts:?}");
        verdicts[0]
    }

    #[test]
    fn frames_that_may_not_be_are_noticed() {
        type Frames = Vec<(usize, Vec<u8>)>;
        const WINDOW_BYTES: usize = 64 << 10;
        let hello = || [(CLIENT, frame(HELLO, 0, 0, b"", 0)), (SERVER, frame(HELLO, 0, 0, b"", 0))];
        let call = |id, flags, payload| (CLIENT, frame(CALL, flags, id, b"/", payload));
        let of = |side, kind, flags, record: &[u8], payload| (side, frame(kind, flags, 1, record, payload));
        let cases: [(&str, Option<&str>, Frames); 16] = [
            (
                "a call and its answer",
                None,
                vec![call(1, END | PRESENT, 9), of(SERVER, STATUS, END | PRESENT, &[0], 9)],
            ),
            ("an id that falls", Some("I5"), vec![call(3, END, 0), call(1, END, 0)]),
            ("an id of the other side's", Some("I5"), vec![call(2, END, 0)]),
            ("a stream that nobody opened", Some("I5"), vec![of(CLIENT, MESSAGE, PRESENT, b"", 1)]),
            (
                "a message behind the end",
                Some("I5"),
                vec![call(1, END, 0), of(CLIENT, MESSAGE, PRESENT, b"", 1)],
            ),
            ("a reset behind the end", None, vec![call(1, END, 0), of(CLIENT, RESET, 0, &[11], 0)]),
            (
                "a reset behind a reset",
                Some("I5"),
                vec![call(1, END, 0), of(CLIENT, RESET, 0, &[11], 0), of(CLIENT, RESET, 0, &[11], 0)],
            ),
            (
                "a second answer",
                Some("I5"),
                vec![call(1, END, 0), of(SERVER, STATUS, END, &[0], 0), of(SERVER, STATUS, END, &[0], 0)],
            ),
            (
                "a head behind a message",
                Some("I5"),
                vec![call(1, END, 0), of(SERVER, MESSAGE, PRESENT, b"", 1), of(SERVER, HEAD, 0, b"", 0)],
            ),
            (
                "an end inside a message",
                Some("I5"),
                vec![
                    call(1, END, 0),
                    of(SERVER, MESSAGE, PRESENT | MORE, b"", 1),
                    of(SERVER, STATUS, END, &[0], 0),
                ],
            ),
            ("all of a window", None, vec![call(1, PRESENT, WINDOW_BYTES)]),
            (
                "more than a window",
                Some("I6"),
                vec![call(1, PRESENT, WINDOW_BYTES), of(CLIENT, MESSAGE, PRESENT, b"", 1)],
            ),
            (
                "more than the connection's window",
                Some("I6"),
                vec![call(1, PRESENT, WINDOW_BYTES), call(3, PRESENT, 1)],
            ),
            (
                "a window that does not open",
                Some("I6"),
                vec![call(1, PRESENT, 1), of(SERVER, WINDOW, 0, &[9], 0)],
            ),
            (
                "a window that opens too far",
                Some("I6"),
                vec![call(1, PRESENT, 1), of(SERVER, WINDOW, 0, &[252, 2, 0, 1, 0], 0)],
            ),
            (
                "a window that opens as far as it may",
                None,
                vec![call(1, PRESENT, 1), of(SERVER, WINDOW, 0, &[252, 1, 0, 1, 0], 0)],
            ),
        ];
        for (name, expected, frames) in cases {
            let frames: Vec<_> = hello().into_iter().chain(frames).collect();
            assert_eq!(verdict(&frames), expected, "{name}");
        }
        assert_eq!(verdict(&[call(1, END, 0)]), Some("I5"), "not hello first");
    }

    #[test]
    fn channels_that_may_not_be_are_noticed() {
        let linked = || {
            let mut auditor = Auditor::default();
            auditor.linked(true, false, [INITIAL, INITIAL]);
            auditor.wrote(0, CLIENT, 0, &frame(HELLO, 0, 0, b"", 0));
            auditor.wrote(0, CLIENT, 3, &frame(CALL, END, 3, b"/", 0));
            auditor.wrote(0, CLIENT, 1, &frame(CALL, PRESENT | MORE, 1, b"/", 1 << 20));
            auditor
        };
        type Then = fn(&mut Auditor);
        let cases: [(&str, Option<&str>, Then); 8] = [
            ("an id that falls, and no window", None, |_| {}),
            ("its end", None, |auditor| auditor.ended_channel(0, CLIENT, 3)),
            ("an end without END", Some("I5"), |auditor| auditor.ended_channel(0, CLIENT, 1)),
            ("a second call", Some("I5"), |auditor| {
                auditor.wrote(0, CLIENT, 1, &frame(CALL, END, 1, b"/", 0));
            }),
            ("a frame on another's channel", Some("I5"), |auditor| {
                auditor.wrote(0, CLIENT, 1, &frame(MESSAGE, PRESENT, 3, b"", 0));
            }),
            ("credit", Some("I5"), |auditor| auditor.wrote(0, SERVER, 1, &frame(WINDOW, 0, 1, &[9], 0))),
            ("a reset in a frame", Some("I5"), |auditor| {
                auditor.wrote(0, CLIENT, 1, &frame(RESET, 0, 1, &[11], 0));
            }),
            ("a frame behind the reset", Some("I5"), |auditor| {
                auditor.reset_channel(0, CLIENT, 1);
                auditor.wrote(0, CLIENT, 1, &frame(MESSAGE, PRESENT, 1, b"", 1));
            }),
        ];
        for (name, expected, then) in cases {
            let mut auditor = linked();
            then(&mut auditor);
            assert_eq!(auditor.violation.map(|violation| violation.invariant), expected, "{name}");
        }
    }
}
