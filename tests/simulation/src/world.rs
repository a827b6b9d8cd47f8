//! The simulated world: hosts, the links between them, virtual time, and the loop that always does the next thing.
//! Nothing here is parallel and nothing depends on the machine: a seed decides everything.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::IoSlice,
    time::Duration,
};

use bytes::BytesMut;
use valkyrie_protocol::{
    Config, Connection, ErrorCode, Event as Happened, INITIAL, Keepalive, Limits, Reason, Role, Status,
    StreamKey, Time, TransmitBuffer,
};

use crate::{
    Mutation, Report,
    apps::{Call, Handler},
    auditor::{Auditor, READ_MOST},
    channels::Channels,
    datagrams::{Datagrams, Took},
    faults::Fault,
    log::{Entry, Log, NONE, digest},
    network::{Carrier, End, Path, Pipe, Read},
    plan::{CLIENT, SERVER},
    random::Random,
};

pub(crate) const SECOND: u64 = 1_000_000;
/// Faults happen until then.
pub(crate) const HEAL_AT: u64 = 95 * SECOND;
/// The load ends, and calls are made that must succeed.
const PROBE_AT: u64 = HEAL_AT + 10 * SECOND;
/// Nothing may be left.
const REST_AT: u64 = PROBE_AT + 11 * SECOND;
/// Connections are closed by then, and the run is over.
const END_AT: u64 = crate::RUN_SECONDS * SECOND;
/// How long a connect takes that nobody answers.
const CONNECT_TIMEOUT: u64 = 2 * SECOND;
/// How often a kernel asks whether the other is there.
const KEEPALIVE: u64 = SECOND;
/// How long a carrier of datagrams outlives its program, for its last words.
const LINGER: u64 = SECOND;
/// What a server reads behind credentials that it has not decided on.
const HELD_MOST: usize = 16 << 10;
/// How long streams of a draining connection may go on.
const GRACE: u64 = 4 * SECOND;

/// What comes next, and for whom. Indices are those of the world's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// Something is due on its way to that side of a link.
    Arrive(usize, usize),
    /// The driver of that side has something to do.
    Turn(usize, usize),
    /// As `Turn`, unless the timer was set to another instant since.
    Timer(usize, usize, u64),
    /// The kernels ask each other whether they are there.
    Keepalive(usize),
    /// A client dials; the slot and its epoch.
    Connect(usize, u32),
    Connected(usize, u32),
    ConnectFailed(usize, u32),
    /// The next call of a client.
    Load(usize),
    /// The caller's next move; it looks for a connection; it gives up; its time is up while it waits for a connection; it takes a message.
    Act(usize),
    Place(usize),
    Cancel(usize),
    Expire(usize),
    Take(usize),
    /// A client sends credentials on a link; its server has decided on them.
    Authenticate(usize),
    Decide(usize),
    /// The handler's next move; it takes a message.
    Work(usize),
    Receive(usize),
    /// The next fault, and the ends of those that last.
    Fault,
    Unblock(usize, usize),
    Thaw(usize),
    Resume(usize),
    Widen(usize),
    Restart(usize),
    Heal,
    Probe,
    Rest,
    End,
}

/// A machine with one program on it. Servers come first.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) up: bool,
    pub(crate) frozen_until: Option<u64>,
    /// Its applications take no messages.
    pub(crate) paused: bool,
    pub(crate) limits: Limits,
    /// Bytes that one turn of its drivers asks the protocol for.
    budget: usize,
    /// Handlers that run, how many may, and those that wait.
    pub(crate) running: usize,
    pub(crate) permits: usize,
    pub(crate) queued: VecDeque<usize>,
}

/// A connection between two hosts, with both of its drivers.
pub(crate) struct Link {
    pub(crate) hosts: [usize; 2],
    pub(crate) carrier: Carrier,
    pub(crate) sides: [Side; 2],
    /// Whether its client has credentials, and its server looks at them.
    announces: bool,
    decides: bool,
}

/// One side's driver.
pub(crate) struct Side {
    /// Its program holds the connection.
    pub(crate) open: bool,
    /// Made when the program first sees the connection.
    pub(crate) protocol: Option<Connection>,
    inbox: BytesMut,
    /// Bytes of them behind credentials that are undecided; those were decided on since the last turn.
    held: usize,
    decided: bool,
    out: TransmitBuffer,
    /// The calls' own, where the carrier has them.
    channels: Channels,
    /// The call or handler of each stream, by the slot of its key.
    pub(crate) owners: Vec<Option<(StreamKey, usize)>>,
    waked: bool,
    timer_at: Option<u64>,
    /// Keepalives without an answer; the kernel gave up.
    unanswered: u64,
    pub(crate) lost: bool,
    /// Ends by itself once no stream is left, or at this time.
    pub(crate) closing: Option<u64>,
}

impl Side {
    fn new() -> Self {
        Self {
            open: true,
            protocol: None,
            inbox: BytesMut::new(),
            held: 0,
            decided: false,
            out: TransmitBuffer::default(),
            channels: Channels::default(),
            owners: Vec::new(),
            waked: false,
            timer_at: None,
            unanswered: 0,
            lost: false,
            closing: None,
        }
    }

    pub(crate) fn owner(&self, key: StreamKey) -> Option<usize> {
        match self.owners.get(key.index()) {
            Some(Some((owner, index))) if *owner == key => Some(*index),
            _ => None,
        }
    }

    pub(crate) fn own(&mut self, key: StreamKey, index: usize) {
        if self.owners.len() <= key.index() {
            self.owners.resize(key.index() + 1, None);
        }
        self.owners[key.index()] = Some((key, index));
    }

    pub(crate) fn disown(&mut self, key: StreamKey) {
        if self.owner(key).is_some() {
            self.owners[key.index()] = None;
        }
    }
}

/// What a client has of one server.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// The connection that new calls go to.
    pub(crate) link: Option<usize>,
    pub(crate) dialing: bool,
    /// Counts restarts of the client, so that what an earlier life began is not taken for this one's.
    epoch: u32,
    failures: u32,
    pub(crate) pending: VecDeque<usize>,
}

pub(crate) struct World {
    pub(crate) now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub(crate) random: Random,
    pub(crate) log: Log,
    pub(crate) auditor: Auditor,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) servers: usize,
    /// By client, then server.
    pub(crate) slots: Vec<Slot>,
    paths: Vec<Path>,
    pub(crate) links: Vec<Link>,
    pub(crate) calls: Vec<Call>,
    pub(crate) handlers: Vec<Handler>,
    /// How many partitions stand in the way from one host to another.
    pub(crate) blocked: Vec<u32>,
    /// Seconds without an answer until a kernel gives a connection up.
    user_timeout: u64,
    pub(crate) call_gap: u64,
    pub(crate) fault_gap: u64,
    /// The largest message that everybody takes.
    pub(crate) most: usize,
    /// Whether some clients have credentials.
    credentials: bool,
    pub(crate) report: Report,
    scratch: Vec<u8>,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, print: bool) -> Self {
        let mut random = Random::new(seed);
        let servers = random.between(1, 4) as usize;
        let clients = random.between(1, 6) as usize;
        let hosts: Vec<Host> = (0..servers + clients).map(|_| Host::new(&mut random)).collect();
        let most = hosts.iter().map(|host| host.limits.max_message_bytes).min().unwrap_or_default() as usize;
        let paths = (0..servers * clients)
            .map(|_| {
                let latency = random.pick(&[50, 500, 3_000, 15_000, 40_000]);
                Path::new(
                    latency,
                    random.pick(&[0, latency / 10, latency]),
                    random.pick(&[2_000, 20_000, 500_000]),
                )
            })
            .collect();
        let rate = random.between(6, 18);
        let mut world = Self {
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            log: Log::new(print),
            auditor: Auditor::default(),
            mutation,
            slots: (0..servers * clients).map(|_| Slot::default()).collect(),
            paths,
            links: Vec::new(),
            calls: Vec::new(),
            handlers: Vec::new(),
            blocked: vec![0; hosts.len() * hosts.len()],
            user_timeout: random.between(3, 7),
            call_gap: clients as u64 * SECOND / rate,
            fault_gap: random.pick(&[500_000, 1_000_000, 3_000_000, 10_000_000]),
            most,
            // Not in those of the seeds that were stored before there were any: they stay what they were.
            credentials: matches!(seed % 5, 0 | 2),
            report: Report::new(seed),
            scratch: Vec::new(),
            random,
            hosts,
            servers,
        };
        for client in servers..servers + clients {
            world.at(0, Event::Load(client));
        }
        world.at(world.fault_gap, Event::Fault);
        for (at, event) in
            [(HEAL_AT, Event::Heal), (PROBE_AT, Event::Probe), (REST_AT, Event::Rest), (END_AT, Event::End)]
        {
            world.at(at, event);
        }
        world
    }

    /// Lives until the end, or until something is wrong.
    pub(crate) fn run(mut self) -> Report {
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            self.now = at;
            self.auditor.step(at);
            if let Some(until) = self.host_of(event).and_then(|host| self.hosts[host].frozen_until) {
                self.at(until, event);
                continue;
            }
            self.report.steps += 1;
            self.handle(event);
            if self.auditor.violation.is_some() || event == Event::End {
                break;
            }
        }
        self.report.frames = self.auditor.frames();
        for link in &mut self.links {
            for way in link.carrier.datagrams().into_iter().flatten() {
                self.report.packets += way.packets;
            }
        }
        self.report.hash = self.log.hash();
        self.report.entries = self.log.entries;
        if let Some(violation) = self.auditor.violation.take() {
            self.report.violation = Some((violation, self.log.last()));
        }
        self.report
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at, self.order, event)));
    }

    pub(crate) fn after(&mut self, wait: u64, event: Event) {
        self.at(self.now + wait, event);
    }

    pub(crate) fn note(&mut self, what: &'static str, host: usize, link: usize, nonce: u64, value: u64) {
        self.log.add(Entry { at: self.now, what, host, link, nonce, value });
    }

    pub(crate) fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    pub(crate) fn time(&self) -> Time {
        Time::from_micros(self.now)
    }

    pub(crate) fn slot(&self, client: usize, server: usize) -> usize {
        (client - self.servers) * self.servers + server
    }

    fn slot_hosts(&self, slot: usize) -> [usize; 2] {
        [self.servers + slot / self.servers, slot % self.servers]
    }

    /// Whose program has to run for this to happen.
    fn host_of(&self, event: Event) -> Option<usize> {
        match event {
            Event::Turn(link, side) | Event::Timer(link, side, _) => Some(self.links[link].hosts[side]),
            Event::Connect(slot, _) | Event::Connected(slot, _) | Event::ConnectFailed(slot, _) => {
                Some(self.slot_hosts(slot)[CLIENT])
            }
            Event::Authenticate(link) => Some(self.links[link].hosts[CLIENT]),
            Event::Decide(link) => Some(self.links[link].hosts[SERVER]),
            Event::Load(client) => Some(client),
            Event::Act(call)
            | Event::Place(call)
            | Event::Cancel(call)
            | Event::Expire(call)
            | Event::Take(call) => Some(self.calls[call].client),
            Event::Work(handler) | Event::Receive(handler) => Some(self.handlers[handler].host),
            _ => None,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(link, side) => self.arrive(link, side),
            Event::Turn(link, side) => self.turn(link, side),
            Event::Timer(link, side, at) => {
                let side_of = &mut self.links[link].sides[side];
                if side_of.timer_at == Some(at) {
                    side_of.timer_at = None;
                    self.turn(link, side);
                }
            }
            Event::Keepalive(link) => self.keepalive(link),
            Event::Connect(slot, epoch) => self.dial(slot, epoch),
            Event::Connected(slot, epoch) => self.connected(slot, epoch),
            Event::ConnectFailed(slot, epoch) => self.connect_failed(slot, epoch),
            Event::Load(client) => self.load(client),
            Event::Act(call) => self.act(call),
            Event::Place(call) => self.place(call),
            Event::Cancel(call) => self.cancel(call),
            Event::Expire(call) => self.expire(call),
            Event::Take(call) => self.take(call),
            Event::Authenticate(link) => self.authenticate(link),
            Event::Decide(link) => self.decide(link),
            Event::Work(handler) => self.work(handler),
            Event::Receive(handler) => self.receive(handler),
            Event::Fault => self.fault(),
            Event::Unblock(from, to) => self.unblock(from, to),
            // A crash may have ended the freeze that this is the end of, and another one may last.
            Event::Thaw(host) if self.hosts[host].frozen_until.is_none_or(|until| until > self.now) => {}
            Event::Thaw(host) => self.thaw(host),
            Event::Resume(host) => self.resume(host),
            Event::Widen(link) => self.widen(link),
            Event::Restart(host) => self.restart(host),
            Event::Heal => {
                self.note("healed", NONE, NONE, 0, 0);
                self.heal();
                self.auditor.healed();
            }
            Event::Probe => self.probe(),
            Event::Rest => self.rest(),
            Event::End => self.end(),
        }
    }

    // ---- the network ----

    pub(crate) fn is_open(&self, from: usize, to: usize) -> bool {
        self.blocked[from * self.hosts.len() + to] == 0
    }

    fn arrive(&mut self, link: usize, side: usize) {
        let Link { hosts, carrier, sides, .. } = &mut self.links[link];
        let (from, to) = (hosts[1 - side], hosts[side]);
        // What is blocked waits on the way: the sender repeats it until the way is free.
        if self.blocked[from * self.hosts.len() + to] > 0 || carrier.path(1 - side).stalled_until > self.now {
            return;
        }
        if sides[side].open {
            carrier.arrive(self.now, 1 - side);
            self.wake(link, side);
            return;
        }
        // Nobody is there, and a kernel that is up says so. A carrier of datagrams does it in its own time.
        carrier.drop_all(1 - side);
        let says_so = carrier.is_datagrams() && carrier.is_ending(side);
        if !says_so && self.hosts[to].up && self.is_open(to, from) {
            self.lose(link, 1 - side);
        }
    }

    /// What a carrier of datagrams sent will arrive.
    pub(crate) fn launch(&mut self, link: usize) {
        for side in [CLIENT, SERVER] {
            let Some(ways) = self.links[link].carrier.datagrams() else { return };
            for at in std::mem::take(&mut ways[side].arrivals) {
                self.at(at, Event::Arrive(link, 1 - side));
            }
        }
    }

    /// The kernel of that side knows that the connection is broken.
    pub(crate) fn lose(&mut self, link: usize, side: usize) {
        if self.links[link].sides[side].open {
            self.links[link].sides[side].lost = true;
            let latency = self.links[link].carrier.path(side).latency_us;
            self.after(latency, Event::Turn(link, side));
        }
    }

    fn keepalive(&mut self, link: usize) {
        let hosts = self.links[link].hosts;
        let whole = self.is_open(hosts[0], hosts[1]) && self.is_open(hosts[1], hosts[0]);
        for side in [CLIENT, SERVER] {
            let Link { carrier, sides, .. } = &mut self.links[link];
            if !sides[side].open || sides[side].lost {
                continue;
            }
            if whole && self.hosts[hosts[1 - side]].up {
                sides[side].unanswered = 0;
                if !sides[1 - side].open && !carrier.is_ending(1 - side) {
                    self.lose(link, side);
                }
            } else {
                sides[side].unanswered += 1;
                if sides[side].unanswered >= self.user_timeout {
                    self.lose(link, side);
                }
            }
        }
        if self.links[link].sides.iter().any(|side| side.open) {
            self.after(KEEPALIVE, Event::Keepalive(link));
        }
    }

    pub(crate) fn wake(&mut self, link: usize, side: usize) {
        let side_of = &mut self.links[link].sides[side];
        if side_of.open && !side_of.waked {
            side_of.waked = true;
            self.at(self.now, Event::Turn(link, side));
        }
    }

    // ---- connections ----

    /// Begins to connect, unless that goes on or is done.
    pub(crate) fn connect(&mut self, slot: usize) {
        let Slot { link, dialing, failures, epoch, .. } = &mut self.slots[slot];
        if link.is_none() && !*dialing {
            *dialing = true;
            // 100 ms, growing by 1.6 up to 1.5 s, a fifth more or less.
            let backoff = match *failures {
                0 => 0,
                n => (0..n.min(8) - 1).fold(100_000, |wait, _| wait * 8 / 5).min(1_500_000),
            };
            let epoch = *epoch;
            let wait = backoff * self.random.between(80, 120) / 100;
            self.after(wait, Event::Connect(slot, epoch));
        }
    }

    fn dial(&mut self, slot: usize, epoch: u32) {
        let [client, server] = self.slot_hosts(slot);
        if self.slots[slot].epoch != epoch || !self.hosts[client].up {
            return;
        }
        let rtt = 2 * self.paths[slot].latency_us;
        if !self.is_open(client, server) || !self.is_open(server, client) {
            self.after(CONNECT_TIMEOUT, Event::ConnectFailed(slot, epoch));
        } else if self.hosts[server].up {
            self.after(rtt, Event::Connected(slot, epoch));
        } else {
            self.after(rtt, Event::ConnectFailed(slot, epoch));
        }
    }

    fn connected(&mut self, slot: usize, epoch: u32) {
        if self.slots[slot].epoch != epoch {
            return;
        }
        let hosts = self.slot_hosts(slot);
        if !self.hosts[hosts[SERVER]].up {
            return self.connect_failed(slot, epoch);
        }
        let path = &self.paths[slot];
        // A kernel's buffer is small where that does not starve the link.
        let least = if path.latency_us > 3_000 { 64 << 10 } else { 4 << 10 };
        let capacity = self.random.pick(&[least, 64 << 10, 256 << 10]);
        let datagrams = self.random.one_in(3);
        let carrier = if datagrams {
            self.report.datagram_connections += 1;
            let mut way = || Datagrams::new(path.clone(), capacity, self.mutation, &mut self.random);
            Carrier::Datagrams([way(), way()])
        } else {
            Carrier::Bytes([(); 2].map(|()| Pipe::new(path.clone(), capacity)))
        };
        let link = self.links.len();
        let announces = self.credentials && self.random.one_in(2);
        let decides = announces && !self.random.one_in(4);
        self.links.push(Link { hosts, carrier, sides: [Side::new(), Side::new()], announces, decides });
        self.auditor.linked(datagrams, decides, hosts.map(|host| self.hosts[host].limits));
        let [client, server] = hosts;
        let whole = self.is_open(client, server) && self.is_open(server, client);
        let slow =
            self.hosts[server].frozen_until.is_some() || hosts.iter().any(|host| self.hosts[*host].paused);
        if !whole || slow {
            self.auditor.touch(link);
        }
        self.report.connections += 1;
        self.note("connected", hosts[CLIENT], link, 0, hosts[SERVER] as u64);
        self.after(KEEPALIVE, Event::Keepalive(link));
        self.begin_protocol(link, CLIENT);
        if announces {
            // At once as a rule, so that they travel with the first calls.
            match self.random.one_in(4) {
                true => self.after(30_000, Event::Authenticate(link)),
                false => self.authenticate(link),
            }
        }
        let Slot { link: current, dialing, pending, .. } = &mut self.slots[slot];
        *current = Some(link);
        *dialing = false;
        // First flight: what waited goes out with HELLO.
        for call in std::mem::take(pending) {
            self.place(call);
        }
        self.wake(link, CLIENT);
        self.wake(link, SERVER);
    }

    fn connect_failed(&mut self, slot: usize, epoch: u32) {
        if self.slots[slot].epoch != epoch {
            return;
        }
        self.slots[slot].dialing = false;
        self.slots[slot].failures += 1;
        let [client, server] = self.slot_hosts(slot);
        self.note("connect failed", client, NONE, 0, server as u64);
        let waiting = std::mem::take(&mut self.slots[slot].pending);
        for call in waiting {
            self.not_connected(call);
        }
        if !self.slots[slot].pending.is_empty() {
            self.connect(slot);
        }
    }

    fn begin_protocol(&mut self, link: usize, side: usize) {
        let role = if side == CLIENT { Role::Client } else { Role::Server };
        let mut limits = self.hosts[self.links[link].hosts[side]].limits;
        let grease = self.random.one_in(2).then(|| self.random.next());
        let multiplexed = self.links[link].carrier.is_datagrams();
        if !multiplexed {
            // Few enough to be met by callers that give up: each side counts what the other does (W9-07, W9-15).
            limits.max_resets = 24;
        }
        let Link { announces, decides, .. } = self.links[link];
        let authenticates = if side == CLIENT { announces } else { decides };
        // Half of the sides ask whether their peers are there, and look often enough to be at rest in the end.
        let keepalive = grease.map_or_else(Keepalive::default, |seed| Keepalive {
            time: Some(Duration::from_secs(1 + seed % 5)),
            idle: None,
            timeout: Duration::from_secs(6 + seed % 5),
        });
        let config = Config { limits, grease, multiplexed, authenticates, keepalive, ..Config::new(role) };
        self.links[link].sides[side].protocol = Some(Connection::new(config, self.time()));
    }

    /// The client has a token, and the last one is decided on.
    fn authenticate(&mut self, link: usize) {
        if let Side { open: true, protocol: Some(protocol), .. } = &mut self.links[link].sides[CLIENT]
            && protocol.authenticate(b"token")
        {
            self.report.authentications += 1;
            self.wake(link, CLIENT);
        }
    }

    /// The server accepts a token, for a while or for ever, or refuses it.
    fn decide(&mut self, link: usize) {
        let now = self.time();
        // For all time once all is well.
        let lasts = self.random.between(100_000, 8_000_000);
        let lasts = (self.now + lasts < HEAL_AT && !self.random.one_in(4)).then_some(lasts);
        let refuse = self.now < HEAL_AT && self.random.one_in(12);
        let Side { open: true, protocol: Some(protocol), decided, .. } = &mut self.links[link].sides[SERVER]
        else {
            return;
        };
        *decided = true;
        let first = protocol.holds_back();
        if refuse {
            protocol.refuse_credentials(now);
        } else {
            protocol.accept_credentials(now, lasts.map(Duration::from_micros));
        }
        self.auditor.decided(link, !refuse);
        let host = self.links[link].hosts[SERVER];
        self.note("decides", host, link, 0, if refuse { 0 } else { 1 + lasts.unwrap_or(0) });
        if refuse {
            self.auditor.touch(link);
            if !first {
                self.drain(link, SERVER);
            }
        }
        self.wake(link, SERVER);
    }

    /// One turn of a side's driver: read, time, events, write.
    fn turn(&mut self, link: usize, side: usize) {
        if !self.links[link].sides[side].open {
            return;
        }
        if self.links[link].sides[side].protocol.is_none() {
            self.begin_protocol(link, side);
        }
        let host = self.links[link].hosts[side];
        let now = self.time();
        let budget = self.hosts[host].budget;
        let most = match self.random.below(32) {
            0 => self.random.between(1, 60) as usize,
            1 | 2 => self.random.between(1, 4_000) as usize,
            _ => READ_MOST,
        };
        self.links[link].sides[side].waked = false;
        let mut over = match self.links[link].carrier {
            Carrier::Bytes(_) => self.read_bytes(link, side, most),
            Carrier::Datagrams(_) => self.read_channels(link, side, most),
        };
        if self.links[link].sides[side].lost && over.is_none() {
            over = Some((Status::from_reason(Reason::CONNECTION_LOST, "the connection was lost"), None));
        }
        let Side { protocol: Some(protocol), .. } = &mut self.links[link].sides[side] else { return };
        let forgets = side == CLIENT && self.mutation == Some(Mutation::ForgetsTimers);
        let due = protocol.poll_timeout().is_some_and(|at| at <= now && !forgets);
        if over.is_none()
            && due
            && let Err(error) = protocol.handle_timeout(now)
        {
            self.auditor.timed_out(link, side, error.code);
            over = Some((error.status(), Some(error.code)));
        }
        self.dispatch(link, side);
        let Link { carrier, sides, .. } = &mut self.links[link];
        let multiplexed = carrier.is_datagrams();
        let Side { protocol: Some(protocol), out, channels, closing, .. } = &mut sides[side] else { return };
        let told_to_go = multiplexed && side == CLIENT && closing.is_none() && protocol.is_draining();
        if over.is_none() && told_to_go && protocol.streams() == 0 {
            // The server waits for it: only here is it known that the last answer has arrived.
            over = Some((Status::from_reason(Reason::CONNECTION_LOST, "the server closed"), None));
        }
        if let (None, Some(at)) = (&over, *closing) {
            let idle = protocol.streams() == 0
                && !protocol.wants_transmit()
                && out.is_empty()
                && channels.len() == 0;
            if idle || at <= self.now {
                over = Some((Status::from_reason(Reason::CONNECTION_LOST, "closed while draining"), None));
            }
        }
        protocol.poll_transmit(now, out, budget);
        if multiplexed {
            channels.fill(now, protocol, budget);
        }
        // Writing may have made room for senders.
        self.dispatch(link, side);
        self.flush(link, side);
        if let Some((status, code)) = over {
            self.note("over", host, link, 0, code.map_or(0, |code| u64::from(code.number())));
            self.over(link, side, &status);
            return;
        }
        let Side { protocol: Some(protocol), inbox, out, channels, closing, timer_at, .. } =
            &mut self.links[link].sides[side]
        else {
            return;
        };
        let unread = if protocol.holds_back() { 0 } else { inbox.len() };
        self.auditor.buffers(link, side, unread, out.len(), protocol.streams());
        let (unread, unsent) = channels.buffers();
        self.auditor.buffers(link, side, unread, unsent, protocol.streams());
        let idle = !protocol.wants_transmit() && out.is_empty() && channels.len() == 0;
        let ends = closing.is_some() && protocol.streams() == 0 && idle;
        let again = protocol.wants_transmit() && out.is_empty() || ends || channels.has_news();
        let timeout = protocol.poll_timeout().filter(|_| !forgets);
        let next = Time::sooner(timeout, closing.map(Time::from_micros));
        if let Some(next) = next.map(|next| next.as_micros().max(self.now + 1))
            && timer_at.is_none_or(|at| next < at || at <= self.now)
        {
            *timer_at = Some(next);
            self.at(next, Event::Timer(link, side, next));
        }
        if again {
            self.wake(link, side);
        }
    }

    /// Reads the bytes that came; how the connection ended, if it did.
    fn read_bytes(&mut self, link: usize, side: usize, most: usize) -> Option<(Status, Option<ErrorCode>)> {
        let (host, now) = (self.links[link].hosts[side], self.time());
        let Link { carrier, sides, .. } = &mut self.links[link];
        let pipe = carrier.pipe(1 - side)?;
        let Side { protocol: Some(protocol), inbox, held, decided, lost, .. } = &mut sides[side] else {
            return None;
        };
        let mut over = None;
        let full = protocol.holds_back() && inbox.len() >= HELD_MOST;
        let read = if full { Read::Nothing } else { pipe.read(most, inbox) };
        let more = pipe.readable() && !full;
        let unread = inbox.len();
        match read {
            Read::Nothing if !std::mem::take(decided) => {}
            Read::Bytes(_) | Read::Nothing => {
                if let Err(error) = protocol.handle_read(now, inbox) {
                    over = Some((error.status(), Some(error.code)));
                }
            }
            Read::End(End::Fin) => over = Some((protocol.handle_end(inbox), None)),
            Read::End(End::Reset) => *lost = true,
        }
        let came = match read {
            Read::Bytes(count) => count,
            _ => 0,
        };
        // What is held was not looked at yet, nor will it be behind an end.
        let ends = matches!(read, Read::End(_));
        let holds = if protocol.holds_back() || ends { inbox.len().min(came + *held) } else { 0 };
        let count = came + std::mem::replace(held, holds) - holds;
        let refused = over.as_ref().is_some_and(|(_, code)| *code == Some(ErrorCode::UNAUTHENTICATED));
        if came + count > 0 && !refused {
            let mut verdict = over.as_ref().and_then(|(_, code)| *code).map_or(Ok(()), Err);
            if self.is(Mutation::OverlooksFlips) && verdict.is_err() {
                verdict = Ok(());
            }
            self.auditor.read(link, side, count, verdict);
            self.note("read", host, link, 0, (count as u64) << 32 | unread as u64);
            if self.links[link].carrier.pipe(1 - side).is_some_and(|pipe| std::mem::take(&mut pipe.full)) {
                self.make_room(link, side);
            }
            if more {
                self.wake(link, side);
            }
        }
        over
    }

    /// Reads the connection's own channel and then those of the calls; how the connection ended, if it did.
    fn read_channels(
        &mut self,
        link: usize,
        side: usize,
        most: usize,
    ) -> Option<(Status, Option<ErrorCode>)> {
        let (host, now) = (self.links[link].hosts[side], self.time());
        let Link { carrier, sides, .. } = &mut self.links[link];
        let ways = between(carrier.datagrams()?, side);
        let Side { protocol: Some(protocol), inbox, decided, channels, lost, .. } = &mut sides[side] else {
            return None;
        };
        let [from, to] = ways;
        let full = protocol.holds_back() && inbox.len() >= HELD_MOST;
        let (took, mut roomy) = if full { (Took::Nothing, false) } else { from.read(0, most, inbox) };
        let mut result = Ok(());
        let mut count = 0;
        match took {
            Took::Bytes(bytes) => {
                count = bytes;
                result = protocol.handle_read(now, inbox);
            }
            Took::Nothing if std::mem::take(decided) => result = protocol.handle_read(now, inbox),
            Took::Nothing => {}
            Took::Lost | Took::End | Took::Reset(_) => *lost = true,
        }
        if result.is_ok() && !*lost {
            match channels.read(now, [from, to], protocol, most) {
                Ok((bytes, room)) => {
                    count += bytes;
                    roomy |= room;
                }
                Err(error) => result = Err(error),
            }
        }
        let more = from.readable() && !*lost && !full;
        let code = result.as_ref().map_err(|error| error.code).copied();
        if code != Err(ErrorCode::UNAUTHENTICATED) {
            self.auditor.judged(link, side, code);
        }
        if count > 0 {
            self.note("read", host, link, 0, count as u64);
        }
        if roomy {
            self.make_room(link, side);
        }
        if more {
            self.wake(link, side);
        }
        result.err().map(|error| (error.status(), Some(error.code)))
    }

    /// The side read what its peer waits for room for, which it will hear of.
    fn make_room(&mut self, link: usize, side: usize) {
        let latency = self.links[link].carrier.path(side).latency_us;
        self.after(latency, Event::Turn(link, 1 - side));
    }

    /// Hands every event of the protocol to the application that it concerns.
    fn dispatch(&mut self, link: usize, side: usize) {
        loop {
            let Side { protocol: Some(protocol), .. } = &mut self.links[link].sides[side] else { return };
            let Some(event) = protocol.poll_event() else { return };
            self.auditor.told(link, side, &event);
            match event {
                Happened::Connected => {
                    if side == CLIENT {
                        let [client, server] = self.links[link].hosts;
                        let slot = self.slot(client, server);
                        self.slots[slot].failures = 0;
                    }
                }
                Happened::Pong { data } => self.auditor.ponged(link, side, data),
                Happened::Auth { .. } => {
                    if self.mutation == Some(Mutation::TrustsAnyone) {
                        protocol.accept_credentials(Time::from_micros(self.now), None);
                        self.links[link].sides[side].decided = true;
                        self.wake(link, side);
                    }
                    let wait = self.random.pick(&[0, 0, 1_000, 200_000]);
                    self.after(wait, Event::Decide(link));
                }
                Happened::Authenticated { expires_in } => {
                    // Most are in time.
                    let left = expires_in.map_or(10 * SECOND, |left| left.as_micros() as u64);
                    if self.now < HEAL_AT && !self.random.one_in(8) {
                        let wait = left * self.random.between(20, 95) / 100;
                        self.after(wait, Event::Authenticate(link));
                    }
                }
                Happened::Expired => {
                    self.note("expired", self.links[link].hosts[side], link, 0, 0);
                    self.auditor.touch(link);
                    self.drain(link, side);
                }
                Happened::GoAway { error } => {
                    let host = self.links[link].hosts[side];
                    self.note("told to go away", host, link, 0, u64::from(error.code.number()));
                    if side == CLIENT && self.links[link].carrier.is_datagrams() {
                        // It closes when it has the last answer, and has all the time that its server gives it.
                        self.not_for_new_calls(link);
                        self.wake(link, side);
                    } else {
                        self.drain(link, side);
                    }
                }
                event if side == CLIENT => self.client_event(link, event),
                event => self.server_event(link, event),
            }
        }
    }

    /// No new calls on this connection; it ends when the last stream does.
    pub(crate) fn drain(&mut self, link: usize, side: usize) {
        let at = self.now + GRACE;
        self.links[link].sides[side].closing.get_or_insert(at);
        if side == CLIENT {
            self.not_for_new_calls(link);
        }
        self.wake(link, side);
    }

    /// The connection of a slot that takes new calls.
    pub(crate) fn usable(&mut self, slot: usize) -> Option<usize> {
        // Whoever is told that calls were not processed may repeat them before it is told why.
        let links = &self.links;
        let draining =
            |link: &usize| links[*link].sides[CLIENT].protocol.as_ref().is_none_or(Connection::is_draining);
        self.slots[slot].link = self.slots[slot].link.filter(|link| !draining(link));
        self.slots[slot].link
    }

    fn not_for_new_calls(&mut self, link: usize) {
        let [client, server] = self.links[link].hosts;
        let slot = self.slot(client, server);
        if self.slots[slot].link == Some(link) {
            self.slots[slot].link = None;
        }
    }

    fn flush(&mut self, link: usize, side: usize) {
        match self.links[link].carrier {
            Carrier::Bytes(_) => self.flush_bytes(link, side),
            Carrier::Datagrams(_) => self.flush_channels(link, side),
        }
    }

    /// The connection's own frames, and what the calls' channels have room for.
    fn flush_channels(&mut self, link: usize, side: usize) {
        let (host, now) = (self.links[link].hosts[side], self.now);
        let Link { carrier, sides, .. } = &mut self.links[link];
        let Some(ways) = carrier.datagrams() else { return };
        let [from, to] = between(ways, side);
        let Side { out, channels, .. } = &mut sides[side];
        let mut bytes = 0;
        while let Ok(room @ 1..) = to.room(0)
            && !out.is_empty()
        {
            gather(out, room, &mut self.scratch);
            bytes += self.scratch.len() as u64;
            self.auditor.wrote(link, side, 0, &self.scratch);
            to.write(now, 0, &self.scratch, false, &mut self.random);
        }
        bytes += channels.write(now, [from, to], &mut self.random, &mut self.auditor, (link, side));
        self.report.bytes += bytes;
        if bytes > 0 {
            self.note("wrote", host, link, 0, bytes);
        }
        self.launch(link);
    }

    fn flush_bytes(&mut self, link: usize, side: usize) {
        loop {
            let Link { hosts, carrier, sides, .. } = &mut self.links[link];
            let Some(pipe) = carrier.pipe(side) else { return };
            let out = &mut sides[side].out;
            if out.is_empty() {
                return;
            }
            let room = pipe.room();
            if room == 0 {
                pipe.full = true;
                return;
            }
            gather(out, room, &mut self.scratch);
            let end = pipe.written + self.scratch.len() as u64;
            if let Some(at) = pipe.flip_at.filter(|at| *at < end && !pipe.is_ending()) {
                self.auditor.flips(link, side, at);
                self.auditor.touch(link);
            }
            self.auditor.wrote(link, side, 0, &self.scratch);
            let host = hosts[side];
            let (arrival, flipped) = pipe.write(self.now, &self.scratch, &mut self.random);
            let broken = match self.mutation {
                Some(Mutation::SwapsReads) => pipe.break_order(false),
                Some(Mutation::RepeatsReads) => pipe.break_order(true),
                _ => false,
            };
            if broken {
                self.mutation = None;
            }
            self.report.bytes += self.scratch.len() as u64;
            if flipped {
                self.report.survived(Fault::Flip);
                self.note("flipped", host, link, 0, end);
            }
            self.note("wrote", host, link, 0, digest(&self.scratch));
            self.at(arrival, Event::Arrive(link, 1 - side));
        }
    }

    /// The side's driver is done with the connection: everybody on it is told.
    pub(crate) fn over(&mut self, link: usize, side: usize, status: &Status) {
        let Link { carrier, sides, .. } = &mut self.links[link];
        let lost = sides[side].lost;
        let written = std::mem::take(&mut sides[side].channels).len() == 0;
        sides[side].open = false;
        sides[side].protocol = None;
        sides[side].inbox = BytesMut::new();
        sides[side].out = TransmitBuffer::default();
        let owners = std::mem::take(&mut sides[side].owners);
        carrier.drop_all(1 - side);
        match carrier {
            Carrier::Bytes(pipes) => {
                let end = if lost { End::Reset } else { End::Fin };
                let at = pipes[side].finish(self.now, end, &mut self.random);
                self.at(at, Event::Arrive(link, 1 - side));
            }
            // A close takes what is under way along. A client that has every answer does it at once, a server lets it
            // be the client's, and who has more to say waits until its last words have arrived.
            Carrier::Datagrams(ways) if !lost => {
                let way = &mut ways[side];
                let wait = match (written, side) {
                    (true, CLIENT) => 0,
                    (true, _) => LINGER,
                    (false, _) => (way.control_takes(self.now) + way.path.latency_us).min(LINGER),
                };
                way.close(self.now, wait, &mut self.random);
                self.launch(link);
            }
            Carrier::Datagrams(_) => {}
        }
        if side == CLIENT {
            self.not_for_new_calls(link);
        }
        let expected = self.auditor.is_touched(link);
        for (_, owner) in owners.into_iter().flatten() {
            if side == CLIENT {
                self.ended(owner, status.code(), expected);
            } else {
                self.gone(owner);
            }
        }
    }

    /// A host's program is gone, with all that it held. Its kernel says so at once, or nobody does.
    pub(crate) fn crash(&mut self, host: usize, silent: bool) {
        self.hosts[host].up = false;
        self.thaw(host);
        for link in 0..self.links.len() {
            let Some(side) = (0..2).find(|side| self.links[link].hosts[*side] == host) else { continue };
            if !self.links[link].sides[side].open {
                continue;
            }
            self.auditor.touch(link);
            let Link { carrier, sides, .. } = &mut self.links[link];
            sides[side] = Side { open: false, ..Side::new() };
            carrier.drop_all(1 - side);
            match carrier {
                Carrier::Bytes(pipes) if silent => pipes[side].drop_all(),
                Carrier::Bytes(pipes) => {
                    let at = pipes[side].cut(self.now, End::Reset, &mut self.random);
                    self.at(at, Event::Arrive(link, 1 - side));
                }
                // No kernel speaks for it.
                Carrier::Datagrams(ways) => ways[side].leave(),
            }
        }
        if host < self.servers {
            self.handlers_die(host);
            return;
        }
        for slot in self.slot(host, 0)..self.slot(host, 0) + self.servers {
            let epoch = self.slots[slot].epoch + 1;
            self.slots[slot] = Slot { epoch, ..Slot::default() };
        }
        self.calls_die(host);
    }

    // ---- the end ----

    /// Calls that must succeed, each client to each server.
    fn probe(&mut self) {
        for client in self.servers..self.hosts.len() {
            for server in 0..self.servers {
                self.begin(client, server, true);
            }
        }
    }

    /// Nothing may be left but idle connections; then they are closed.
    fn rest(&mut self) {
        self.auditor.all_ended();
        for host in 0..self.hosts.len() {
            let Host { running, queued, .. } = &self.hosts[host];
            let left = [("permits", *running), ("calls that wait for one", queued.len())];
            self.auditor.host_at_rest(host, &left);
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let left = [("calls without a connection", slot.pending.len())];
            self.auditor.host_at_rest(self.slot_hosts(index)[CLIENT], &left);
        }
        let alive = self.handlers.iter().filter(|handler| handler.is_alive()).count();
        self.auditor.host_at_rest(0, &[("handlers", alive)]);
        for link in 0..self.links.len() {
            let Link { carrier, sides, hosts, .. } = &self.links[link];
            if sides.iter().all(|side| !side.open) {
                continue;
            }
            for side in [CLIENT, SERVER] {
                let of = &sides[side];
                let Some(protocol) = &of.protocol else {
                    self.auditor.host_at_rest(hosts[side], &[("ends without the other", 1)]);
                    continue;
                };
                let left = [
                    ("streams", protocol.streams()),
                    ("timers", usize::from(protocol.poll_timeout().is_some())),
                    ("frames to send", usize::from(protocol.wants_transmit())),
                    ("bytes to send", of.out.len()),
                    ("bytes of a frame", of.inbox.len()),
                    ("bytes under way", usize::from(!carrier.is_idle(side))),
                    ("channels", of.channels.len()),
                    ("owners", of.owners.iter().flatten().count()),
                ];
                self.auditor.at_rest(link, side, &left);
            }
        }
        for link in 0..self.links.len() {
            if let Side { open: true, protocol: Some(protocol), .. } = &mut self.links[link].sides[CLIENT] {
                protocol.go_away("done");
                self.drain(link, CLIENT);
            }
        }
    }

    fn end(&mut self) {
        for Link { hosts, sides, .. } in &self.links {
            for side in [CLIENT, SERVER] {
                let left = [("connections", usize::from(sides[side].open))];
                self.auditor.host_at_rest(hosts[side], &left);
            }
        }
    }
}

/// The direction that the side reads, and the one that it writes.
fn between(ways: &mut [Datagrams; 2], side: usize) -> [&mut Datagrams; 2] {
    let [client, server] = ways;
    if side == CLIENT { [server, client] } else { [client, server] }
}

/// Moves what one vectored write takes, at most `room` bytes, into `scratch`.
fn gather(out: &mut TransmitBuffer, mut room: usize, scratch: &mut Vec<u8>) {
    let mut parts = [IoSlice::new(&[]); 16];
    let count = out.parts(&mut parts);
    scratch.clear();
    for part in &parts[..count] {
        let len = part.len().min(room);
        scratch.extend_from_slice(&part[..len]);
        room -= len;
    }
    out.consume(scratch.len());
}

impl Host {
    fn new(random: &mut Random) -> Self {
        let limits = Limits {
            max_frame_bytes: random.pick(&[16 << 10, 64 << 10, 1 << 20]),
            max_message_bytes: random.pick(&[64 << 10, 256 << 10, 1 << 20]),
            max_metadata_bytes: 16 << 10,
            max_concurrent_streams: random.pick(&[100, 1024]),
            stream_window_bytes: random.pick(&[64 << 10, 256 << 10]),
            connection_window_bytes: random.pick(&[64 << 10, 1 << 20]),
            // Short enough to be met by a paused reader; the timer outlives the stall and must be over at rest.
            max_unsent_bytes: random.pick(&[64 << 10, 64 << 20]),
            stall_timeout_pressed: Duration::from_secs(8),
            ..INITIAL
        };
        Self {
            up: true,
            frozen_until: None,
            paused: false,
            limits,
            budget: random.pick(&[1, 8 << 10, 256 << 10]),
            running: 0,
            permits: random.pick(&[8, 32, 256]),
            queued: VecDeque::new(),
        }
    }
}
