//! The two applications: callers that make calls by their plans, and handlers that serve them. Each tells the auditor
//! what it asked of the protocol and what it got.

use std::collections::VecDeque;

use bytes::Bytes;
use valkyrie_protocol::{
    Code, ErrorCode, Event as Happened, Finish, Metadata, Opened, Reason, SendError, Status, StreamKey, Time,
};

use crate::{
    Mutation,
    log::NONE,
    plan::{Answer, CLIENT, Cancel, Plan, SERVER, Shape},
    random::mix,
    world::{Event, HEAL_AT, SECOND, World},
};

const NONCE: &str = "nonce-bin";
const WORK: &str = "/work";
const PROBE: &str = "/probe";
/// How often a call is made anew when no server has seen it.
const MOST_TRIES: u32 = 5;

/// A call as its caller sees it.
pub(crate) struct Call {
    pub(crate) client: usize,
    server: usize,
    nonce: u64,
    plan: Plan,
    probe: bool,
    deadline: Option<u64>,
    place: Place,
    sent: u32,
    finished: bool,
    /// Messages that the caller has not taken, on which connection, and whether it is about to.
    unread: VecDeque<usize>,
    home: Option<(usize, StreamKey)>,
    taking: bool,
    tries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Waits for a connection.
    Pending,
    Open,
    Over,
}

/// A call as its server sees it.
pub(crate) struct Handler {
    pub(crate) host: usize,
    nonce: u64,
    link: usize,
    key: StreamKey,
    plan: Plan,
    state: State,
    /// The stream is over, and the handler has not noticed.
    gone: bool,
    head_sent: bool,
    sent: u32,
    taken: u32,
    unread: VecDeque<usize>,
    /// Bytes of them that the protocol has set aside.
    aside: usize,
    half_closed: bool,
    /// A move of its own is on its way: `Work`, `Receive`.
    working: bool,
    taking: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Queued,
    Running,
    Done,
}

impl Handler {
    pub(crate) fn is_alive(&self) -> bool {
        self.state != State::Done
    }
}

fn nonce_of(metadata: &Metadata) -> Option<&[u8]> {
    metadata.get(NONCE).map(|value| &value[..])
}

fn with_nonce(nonce: u64) -> Metadata {
    Metadata::new().with(NONCE, Bytes::copy_from_slice(&nonce.to_le_bytes())).unwrap_or_default()
}

// ---- callers ----

impl World {
    /// The next calls of a client: mostly one, now and then more than a connection takes at once.
    pub(crate) fn load(&mut self, client: usize) {
        if self.now >= HEAL_AT + 10 * SECOND {
            return;
        }
        let wait = self.random.wait(self.call_gap).min(20 * SECOND);
        self.after(wait, Event::Load(client));
        if !self.hosts[client].up {
            return;
        }
        let server = self.random.below(self.servers);
        if self.random.one_in(10) {
            self.ping(client, server);
        }
        let count = if self.random.one_in(2_000) { self.random.between(50, 150) } else { 1 };
        for _ in 0..count {
            self.begin(client, server, false);
        }
    }

    /// One side or the other of a connection asks whether its peer is there.
    fn ping(&mut self, client: usize, server: usize) {
        let slot = self.slot(client, server);
        let (side, data) = (self.random.below(2), self.random.next());
        let Some(link) = self.slots[slot].link else { return };
        if let Some(protocol) = &mut self.links[link].sides[side].protocol {
            protocol.ping(data);
            self.auditor.pinged(link, side, data);
            self.wake(link, side);
        }
    }

    pub(crate) fn begin(&mut self, client: usize, server: usize, probe: bool) {
        let nonce = self.random.next();
        let plan = if probe { Plan::probe(nonce, self.most) } else { Plan::of(nonce, self.most) };
        let deadline = plan.timeout_us.map(|timeout| self.now + timeout);
        self.auditor.began(nonce, client, deadline);
        self.report.calls += 1;
        self.note("begins", client, NONE, nonce, deadline.unwrap_or(0));
        let call = self.calls.len();
        if let Cancel::After(wait) = plan.cancel {
            self.after(wait, Event::Cancel(call));
        }
        let at_once = plan.cancel == Cancel::AtOnce;
        self.calls.push(Call {
            client,
            server,
            nonce,
            plan,
            probe,
            deadline,
            place: Place::Pending,
            sent: 0,
            finished: false,
            unread: VecDeque::new(),
            home: None,
            taking: false,
            tries: 0,
        });
        if let Some(at) = deadline {
            self.at(at, Event::Expire(call));
        }
        self.place(call);
        if at_once {
            self.cancel(call);
        }
    }

    /// Gives the call to a connection, or lets it wait for one.
    pub(crate) fn place(&mut self, call: usize) {
        let Call { client, server, place, .. } = self.calls[call];
        if place != Place::Pending {
            return;
        }
        let slot = self.slot(client, server);
        match self.usable(slot) {
            Some(link) => self.open(call, link),
            None => {
                self.slots[slot].pending.push_back(call);
                self.connect(slot);
            }
        }
    }

    fn open(&mut self, index: usize, link: usize) {
        let call = &mut self.calls[index];
        let Some(protocol) = &mut self.links[link].sides[CLIENT].protocol else { return };
        let rides = call.plan.first_rides && call.plan.requests > 0;
        let message = rides.then(|| call.plan.message(SERVER, 0));
        let len = message.as_ref().map(Bytes::len);
        let end = rides && call.plan.requests == 1;
        let opened = protocol.open(Opened {
            method: Bytes::from_static(if call.probe { PROBE } else { WORK }.as_bytes()),
            metadata: with_nonce(call.nonce),
            priority: call.plan.priority,
            deadline: call.deadline.map(Time::from_micros),
            message,
            end,
        });
        let nonce = call.nonce;
        match opened {
            Ok(key) => {
                call.place = Place::Open;
                call.home = Some((link, key));
                call.sent = u32::from(rides);
                call.finished = end;
                let client = call.client;
                self.links[link].sides[CLIENT].own(key, index);
                if let Some(len) = len {
                    self.auditor.accepted(nonce, SERVER, len);
                    self.report.messages += 1;
                }
                if end {
                    self.auditor.finished(nonce);
                }
                self.note("opens", client, link, nonce, len.unwrap_or(0) as u64);
                self.wake(link, CLIENT);
                self.act(index);
            }
            Err(status) => {
                let expected = call.plan.oversize;
                self.ended(index, status.code(), expected);
            }
        }
    }

    /// The caller's next move: a message, or the half-close.
    pub(crate) fn act(&mut self, index: usize) {
        loop {
            let call = &mut self.calls[index];
            let (Place::Open, Some((link, key))) = (call.place, call.home) else { return };
            let Some(protocol) = &mut self.links[link].sides[CLIENT].protocol else { return };
            let nonce = call.nonce;
            if call.plan.cancel == Cancel::AfterSending(call.sent) {
                return self.cancel(index);
            }
            if call.sent >= call.plan.requests {
                if !std::mem::replace(&mut call.finished, true) {
                    protocol.finish(key);
                    self.auditor.finished(nonce);
                    self.wake(link, CLIENT);
                }
                return;
            }
            let message = call.plan.message(SERVER, call.sent);
            let len = message.len();
            match protocol.send(key, message) {
                Ok(()) => {
                    call.sent += 1;
                    let gap = call.plan.request_gap_us;
                    self.auditor.accepted(nonce, SERVER, len);
                    self.report.messages += 1;
                    self.wake(link, CLIENT);
                    if gap > 0 {
                        return self.after(gap, Event::Act(index));
                    }
                }
                Err(SendError::Full(_)) => return,
                Err(SendError::Gone) => return self.ended(index, Code::Internal, false),
                Err(SendError::Refused(status)) => {
                    let expected = call.plan.oversize;
                    self.give_up(index);
                    return self.ended(index, status.code(), expected);
                }
            }
        }
    }

    /// The caller gives up.
    pub(crate) fn cancel(&mut self, index: usize) {
        if self.calls[index].place != Place::Over {
            match self.calls[index].home {
                Some((link, key)) if self.is(Mutation::LeaksStream) => {
                    self.links[link].sides[CLIENT].disown(key);
                }
                _ => self.give_up(index),
            }
            self.ended(index, Code::Cancelled, true);
        }
    }

    /// Resets the stream of a call, if it has one, and takes what came.
    fn give_up(&mut self, index: usize) {
        let call = &mut self.calls[index];
        if let (Place::Open, Some((link, key))) = (call.place, call.home) {
            let unread = std::mem::take(&mut call.unread);
            let nonce = call.nonce;
            if let Some(protocol) = &mut self.links[link].sides[CLIENT].protocol {
                protocol.reset(key, ErrorCode::CANCEL);
                for len in unread {
                    protocol.consumed(key, len);
                    self.auditor.takes(link, CLIENT, nonce, len);
                }
            }
            self.links[link].sides[CLIENT].disown(key);
            self.wake(link, CLIENT);
        }
    }

    pub(crate) fn expire(&mut self, index: usize) {
        if self.calls[index].place == Place::Pending {
            self.ended(index, Code::DeadlineExceeded, true);
        }
    }

    /// The connection that the call waits for was not made: half of those that have a deadline wait on.
    pub(crate) fn not_connected(&mut self, index: usize) {
        let Call { client, server, place, deadline, nonce, .. } = self.calls[index];
        if place != Place::Pending {
            return;
        }
        if deadline.is_some() && nonce & 1 == 0 {
            let slot = self.slot(client, server);
            self.slots[slot].pending.push_back(index);
        } else {
            // An attempt that began before all was well may still fail.
            let expected = self.now < HEAL_AT + 3 * SECOND;
            self.ended(index, Code::Unavailable, expected);
        }
    }

    /// The end of a call, as its caller is told.
    pub(crate) fn ended(&mut self, index: usize, code: Code, expected: bool) {
        let Call { client, nonce, probe, place, .. } = self.calls[index];
        self.note("ends", client, NONE, nonce, u64::from(code.number()));
        if self.is(Mutation::RepeatsProcessed) && code == Code::Unavailable && place == Place::Open {
            self.mutation = None;
            return self.repeat(index, 0);
        }
        self.calls[index].place = Place::Over;
        if self.is(Mutation::NeverEnds) && code == Code::Ok && client & 1 == 1 {
            self.mutation = None;
            return;
        }
        self.auditor.ended(nonce, code, expected);
        if self.is(Mutation::EndsTwice) && code == Code::Ok {
            self.auditor.ended(nonce, code, expected);
        }
        if probe {
            self.auditor.must_be_ok(nonce, code);
        }
        self.report.ended(code);
    }

    /// Makes a call anew that no server has seen.
    fn repeat(&mut self, index: usize, wait: u64) {
        let call = &mut self.calls[index];
        call.place = Place::Pending;
        call.home = None;
        call.unread.clear();
        call.tries += 1;
        let nonce = call.nonce;
        self.report.repeats += 1;
        self.auditor.repeats(nonce);
        if self.calls[index].deadline.is_some_and(|at| at <= self.now) {
            return self.ended(index, Code::DeadlineExceeded, true);
        }
        if wait > 0 { self.after(wait, Event::Place(index)) } else { self.place(index) }
    }

    /// The caller takes its next message.
    pub(crate) fn take(&mut self, index: usize) {
        loop {
            let call = &mut self.calls[index];
            call.taking = false;
            if self.hosts[call.client].paused || !self.hosts[call.client].up {
                return;
            }
            let Some((link, key)) = call.home else { return };
            let Some(len) = call.unread.pop_front() else { return };
            let (nonce, hold, more) = (call.nonce, call.plan.client_hold_us, !call.unread.is_empty());
            // Where no credit is on the wire, nobody but the caller's own driver could be deceived.
            let credit = !self.links[link].carrier.is_datagrams();
            let Some(protocol) = &mut self.links[link].sides[CLIENT].protocol else {
                call.unread.clear();
                return;
            };
            if self.mutation != Some(Mutation::KeepsCredit) {
                protocol.consumed(key, len);
            }
            if self.mutation == Some(Mutation::DoublesCredit) && credit {
                protocol.consumed(key, len);
            }
            self.auditor.takes(link, CLIENT, nonce, len);
            self.wake(link, CLIENT);
            if more && hold > 0 {
                self.calls[index].taking = true;
                return self.after(hold, Event::Take(index));
            }
        }
    }

    /// Applications of a host take messages again.
    pub(crate) fn resume(&mut self, host: usize) {
        self.hosts[host].paused = false;
        for index in 0..self.calls.len() {
            if self.calls[index].client == host && !self.calls[index].unread.is_empty() {
                self.take(index);
            }
        }
        for index in 0..self.handlers.len() {
            if self.handlers[index].host == host && self.handlers[index].is_alive() {
                self.receive(index);
            }
        }
    }

    /// The client's program is gone: nobody waits for its calls.
    pub(crate) fn calls_die(&mut self, client: usize) {
        for call in self.calls.iter_mut().filter(|call| call.client == client) {
            call.unread.clear();
            if call.place != Place::Over {
                call.place = Place::Over;
                self.auditor.lost(call.nonce);
                self.report.lost += 1;
            }
        }
    }

    pub(crate) fn client_event(&mut self, link: usize, event: Happened) {
        let side = &mut self.links[link].sides[CLIENT];
        match event {
            Happened::Head { key, metadata } => {
                if let Some(index) = side.owner(key) {
                    let nonce = self.calls[index].nonce;
                    self.auditor.echoed(nonce, nonce_of(&metadata));
                }
            }
            Happened::Message { key, message } => {
                let Some(index) = side.owner(key) else {
                    // Given up meanwhile; the connection's credit goes back all the same.
                    if let Some(protocol) = &mut side.protocol {
                        protocol.consumed(key, message.len());
                    }
                    return;
                };
                let (nonce, len) = (self.calls[index].nonce, message.len());
                self.auditor.holds(link, CLIENT, nonce, len);
                let call = &mut self.calls[index];
                call.unread.push_back(len);
                let cancels = call.plan.cancel == Cancel::AfterFirstAnswer;
                let idle = !std::mem::replace(&mut call.taking, true);
                let hold = call.plan.client_hold_us;
                self.got(index, &message);
                if cancels {
                    self.cancel(index);
                } else if idle {
                    if hold > 0 { self.after(hold, Event::Take(index)) } else { self.take(index) }
                }
            }
            Happened::Ended { key, outcome } => {
                let Some(index) = side.owner(key) else { return };
                side.disown(key);
                let (nonce, plan) = (self.calls[index].nonce, &self.calls[index].plan);
                match outcome {
                    Ok(finish) => {
                        if let Some(message) = finish.message {
                            self.got(index, &message);
                        }
                        self.auditor.echoed(nonce, nonce_of(&finish.trailers));
                        self.ended(index, Code::Ok, true);
                    }
                    Err(status) => {
                        let expected = match status.code() {
                            Code::Aborted => matches!(plan.answer, Answer::Refuse(_)),
                            Code::ResourceExhausted => plan.oversize,
                            _ => false,
                        };
                        self.ended(index, status.code(), expected);
                    }
                }
            }
            Happened::Reset { key, status, unprocessed } => {
                let Some(index) = side.owner(key) else { return };
                side.disown(key);
                let tries = self.calls[index].tries;
                let expected = self.auditor.is_touched(link);
                let refused = status.reason() == Reason::STREAM_REFUSED;
                if unprocessed && tries < MOST_TRIES {
                    self.repeat(index, if refused { 40_000 << tries } else { 0 });
                } else {
                    self.ended(index, status.code(), expected || refused);
                }
            }
            Happened::Writable { key } => {
                if let Some(index) = side.owner(key) {
                    self.act(index);
                }
            }
            _ => {}
        }
    }

    /// A message of an answer reaches its caller.
    fn got(&mut self, index: usize, message: &[u8]) {
        let nonce = self.calls[index].nonce;
        match self.mutation {
            Some(Mutation::DropsMessage) if message.len() > 16 => self.mutation = None,
            Some(Mutation::MixesMessages) if message.len() > 16 => {
                let mut other = message.to_vec();
                other[..8].copy_from_slice(&mix(nonce).to_le_bytes());
                self.auditor.received(nonce, CLIENT, &other);
            }
            Some(Mutation::DoublesMessage) => {
                self.auditor.received(nonce, CLIENT, message);
                self.auditor.received(nonce, CLIENT, message);
            }
            _ => self.auditor.received(nonce, CLIENT, message),
        }
    }
}

// ---- handlers ----

impl World {
    pub(crate) fn server_event(&mut self, link: usize, event: Happened) {
        let host = self.links[link].hosts[SERVER];
        let side = &mut self.links[link].sides[SERVER];
        match event {
            Happened::Call { key, method, metadata, message, end, .. } => {
                let nonce = nonce_of(&metadata).and_then(|nonce| nonce.first_chunk::<8>());
                let nonce = nonce.map_or(0, |nonce| u64::from_le_bytes(*nonce));
                let plan = if method == PROBE { Plan::probe } else { Plan::of }(nonce, self.most);
                let index = self.handlers.len();
                side.own(key, index);
                self.handlers.push(Handler {
                    host,
                    nonce,
                    link,
                    key,
                    plan,
                    state: State::Queued,
                    gone: false,
                    head_sent: false,
                    sent: 0,
                    taken: 0,
                    unread: VecDeque::new(),
                    aside: 0,
                    half_closed: false,
                    working: false,
                    taking: false,
                });
                self.note("is called", host, link, nonce, message.as_ref().map_or(0, Bytes::len) as u64);
                self.hosts[host].queued.push_back(index);
                self.start_handlers(host);
                if let Some(message) = message {
                    self.heard(index, &message);
                }
                if end {
                    self.handlers[index].half_closed = true;
                    self.auditor.half_closed(nonce);
                }
            }
            Happened::Message { key, message } => match side.owner(key) {
                Some(index) => {
                    self.heard(index, &message);
                    self.receive_soon(index);
                }
                // The handler has answered and hears no more.
                None => {
                    if let Some(protocol) = &mut side.protocol {
                        protocol.consumed(key, message.len());
                    }
                }
            },
            Happened::HalfClosed { key } => {
                if let Some(index) = side.owner(key) {
                    let handler = &mut self.handlers[index];
                    handler.half_closed = true;
                    self.auditor.half_closed(handler.nonce);
                    self.work_on(index);
                }
            }
            Happened::Reset { key, .. } => {
                if let Some(index) = side.owner(key) {
                    side.disown(key);
                    self.gone(index);
                }
            }
            Happened::Writable { key } => {
                if let Some(index) = side.owner(key) {
                    self.work_on(index);
                }
            }
            _ => {}
        }
    }

    fn heard(&mut self, index: usize, message: &[u8]) {
        let Handler { nonce, link, .. } = self.handlers[index];
        self.auditor.received(nonce, SERVER, message);
        self.auditor.holds(link, SERVER, nonce, message.len());
        self.handlers[index].unread.push_back(message.len());
        if self.handlers[index].state == State::Queued {
            self.set_aside(index, message.len());
        }
    }

    /// What came of a call that waits for a permit is set aside, so that those that run have room.
    fn set_aside(&mut self, index: usize, len: usize) {
        let Handler { host, nonce, link, key, .. } = self.handlers[index];
        let Some(protocol) = &mut self.links[link].sides[SERVER].protocol else { return };
        if protocol.set_aside(key, len) {
            self.handlers[index].aside += len;
            self.auditor.sets_aside(link, SERVER, len);
        } else {
            self.links[link].sides[SERVER].disown(key);
            self.note("refuses", host, link, nonce, len as u64);
            self.leave(index);
        }
    }

    /// What was set aside of a call is its handler's to take, or nobody's.
    fn take_up(&mut self, index: usize) {
        let Handler { link, .. } = self.handlers[index];
        let aside = std::mem::take(&mut self.handlers[index].aside);
        if let Some(protocol) = &mut self.links[link].sides[SERVER].protocol {
            protocol.take_up(aside);
            self.auditor.takes_up(link, SERVER, aside);
            self.wake(link, SERVER);
        }
    }

    /// Calls that wait get the permits that are free.
    fn start_handlers(&mut self, host: usize) {
        while self.hosts[host].running < self.hosts[host].permits {
            let Some(index) = self.hosts[host].queued.pop_front() else { return };
            if self.handlers[index].state != State::Queued {
                continue;
            }
            self.hosts[host].running += 1;
            self.handlers[index].state = State::Running;
            self.take_up(index);
            let Handler { nonce, link, .. } = self.handlers[index];
            self.note("runs", host, link, nonce, 0);
            self.auditor.executed(nonce);
            if self.is(Mutation::ExecutesTwice) {
                self.auditor.executed(nonce);
            }
            self.report.executions += 1;
            self.handlers[index].working = true;
            let think = self.handlers[index].plan.think_us;
            self.after(think, Event::Work(index));
            self.receive_soon(index);
        }
    }

    fn receive_soon(&mut self, index: usize) {
        let handler = &mut self.handlers[index];
        if handler.state == State::Running && !std::mem::replace(&mut handler.taking, true) {
            let hold = handler.plan.server_hold_us;
            self.after(hold, Event::Receive(index));
        }
    }

    /// The handler takes its next message.
    pub(crate) fn receive(&mut self, index: usize) {
        let handler = &mut self.handlers[index];
        handler.taking = false;
        if handler.state != State::Running || self.hosts[handler.host].paused {
            return;
        }
        // An echo that finds no room keeps the handler from reading on.
        if handler.plan.shape == Shape::Bidirectional && handler.sent < handler.taken {
            return;
        }
        let Some(len) = handler.unread.pop_front() else { return };
        handler.taken += 1;
        let Handler { nonce, link, key, .. } = *handler;
        if let Some(protocol) = &mut self.links[link].sides[SERVER].protocol {
            protocol.consumed(key, len);
            self.auditor.takes(link, SERVER, nonce, len);
            self.wake(link, SERVER);
        }
        self.work_on(index);
        if !self.handlers[index].unread.is_empty() {
            self.receive_soon(index);
        }
    }

    pub(crate) fn work(&mut self, index: usize) {
        self.handlers[index].working = false;
        self.work_on(index);
    }

    /// The handler's next move, unless it thinks.
    fn work_on(&mut self, index: usize) {
        loop {
            let handler = &mut self.handlers[index];
            if handler.state != State::Running || handler.working {
                return;
            }
            if handler.gone {
                return self.leave(index);
            }
            let Handler { host, nonce, link, key, .. } = *handler;
            let Some(protocol) = &mut self.links[link].sides[SERVER].protocol else { return };
            let plan = &handler.plan;
            if plan.head && !std::mem::replace(&mut handler.head_sent, true) && handler.sent == 0 {
                let _ = protocol.send_head(key, with_nonce(nonce));
                self.wake(link, SERVER);
                continue;
            }
            let heard_all = handler.half_closed && handler.unread.is_empty();
            let last = match plan.shape {
                Shape::Unary | Shape::ClientStreaming => heard_all,
                Shape::ServerStreaming => handler.sent + u32::from(plan.last_rides) >= plan.responses,
                Shape::Bidirectional => heard_all && handler.sent == handler.taken,
            };
            match plan.answer {
                Answer::Refuse(after) if handler.sent >= after || last => {
                    return self.answer(index, Err(Status::new(Code::Aborted, "as planned")));
                }
                Answer::OkEarly if plan.shape != Shape::Unary => {
                    return self.answer(index, Ok(None));
                }
                _ => {}
            }
            if last {
                let message = match plan.shape {
                    Shape::Unary | Shape::ClientStreaming => true,
                    Shape::ServerStreaming => handler.sent < plan.responses,
                    Shape::Bidirectional => false,
                };
                let message = message.then(|| plan.message(CLIENT, handler.sent));
                return self.answer(index, Ok(message));
            }
            let speaks = match plan.shape {
                Shape::ServerStreaming => true,
                Shape::Bidirectional => handler.sent < handler.taken,
                Shape::Unary | Shape::ClientStreaming => false,
            };
            if !speaks {
                return;
            }
            let message = plan.message(CLIENT, handler.sent);
            let len = message.len();
            match protocol.send(key, message) {
                Ok(()) => {
                    handler.sent += 1;
                    let gap = plan.response_gap_us;
                    self.auditor.accepted(nonce, CLIENT, len);
                    self.report.messages += 1;
                    self.wake(link, SERVER);
                    if gap > 0 {
                        self.handlers[index].working = true;
                        self.after(gap, Event::Work(index));
                    }
                    // A bidirectional handler reads on now that its echo is out.
                    if !self.handlers[index].unread.is_empty() {
                        self.receive_soon(index);
                    }
                }
                Err(SendError::Full(_)) => return,
                Err(SendError::Gone) => {
                    self.note("is gone untold", host, link, nonce, 0);
                    return self.leave(index);
                }
                Err(SendError::Refused(status)) => return self.answer(index, Err(status)),
            }
        }
    }

    fn answer(&mut self, index: usize, outcome: Result<Option<Bytes>, Status>) {
        let Handler { link, key, nonce, host, .. } = self.handlers[index];
        let ok = outcome.is_ok();
        self.auditor.answered(nonce, ok);
        self.note("answers", host, link, nonce, u64::from(ok));
        let echo = if self.is(Mutation::EchoesAnother) { mix(nonce) } else { nonce };
        let twice = self.is(Mutation::AnswersTwice);
        let Some(protocol) = &mut self.links[link].sides[SERVER].protocol else { return };
        if let Ok(Some(message)) = &outcome {
            self.auditor.accepted(nonce, CLIENT, message.len());
            self.report.messages += 1;
            if twice {
                let _ = protocol.send(key, message.clone());
            }
        }
        let outcome =
            outcome.map(|message| Finish { message, trailers: with_nonce(echo), ..Finish::default() });
        protocol.respond(key, outcome);
        self.links[link].sides[SERVER].disown(key);
        self.wake(link, SERVER);
        self.leave(index);
    }

    /// The stream of a handler is over. One that waits for it ends at once, one that works when it looks up.
    pub(crate) fn gone(&mut self, index: usize) {
        let handler = &mut self.handlers[index];
        handler.gone = true;
        match handler.state {
            State::Queued => self.leave(index),
            State::Running if !handler.working => self.leave(index),
            _ => self.untake(index),
        }
    }

    /// Returns the credit of what nobody will take.
    fn untake(&mut self, index: usize) {
        let handler = &mut self.handlers[index];
        let unread = std::mem::take(&mut handler.unread);
        let Handler { nonce, link, key, .. } = *handler;
        if let Some(protocol) = &mut self.links[link].sides[SERVER].protocol {
            for len in unread {
                protocol.consumed(key, len);
                self.auditor.takes(link, SERVER, nonce, len);
            }
            self.wake(link, SERVER);
        }
    }

    /// The handler ends, and its permit goes to the next.
    fn leave(&mut self, index: usize) {
        self.take_up(index);
        self.untake(index);
        let handler = &mut self.handlers[index];
        let before = std::mem::replace(&mut handler.state, State::Done);
        let Handler { host, link, nonce, .. } = *handler;
        if before == State::Running {
            self.note("leaves", host, link, nonce, 0);
            if self.is(Mutation::LeaksPermit) {
                self.mutation = None;
            } else {
                self.hosts[host].running -= 1;
            }
            self.start_handlers(host);
        }
        // Nobody waits behind one that is gone.
        let handlers = &self.handlers;
        self.hosts[host].queued.retain(|index| handlers[*index].state == State::Queued);
    }

    /// The server's program is gone.
    pub(crate) fn handlers_die(&mut self, host: usize) {
        for handler in self.handlers.iter_mut().filter(|handler| handler.host == host) {
            handler.state = State::Done;
        }
        self.hosts[host].running = 0;
        self.hosts[host].queued.clear();
    }
}
