//! One live connection: the protocol's state behind a lock, and the driver loop that alone owns the transport.
//!
//! Callers lock, tell the protocol what they want, unlock and wake the driver; one write then carries whatever they
//! all wanted. Wakers, sinks and handlers run with no lock held.

use std::{
    collections::VecDeque,
    future::Future,
    hash::{BuildHasher, RandomState},
    io::{self, IoSlice},
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use valkyrie_protocol::{
    Code, Config, Connection, ConnectionError, ConnectionState, ErrorCode, Event, Finish, Keepalive, Limits,
    Metadata, Opened, Reason, Role, Secret, SendError, Status, StreamKey, Time, TransmitBuffer, VERSION,
};

#[cfg(feature = "native")]
use crate::load::Load;
use crate::{
    Carrier, Level, Peer, Pollable, Principal, ReadBuffer, Record, Response, Runtime, Timer, Token,
    Transport,
    call::Call,
    channels::Channels,
    guard,
    lead::{self, Chair},
    log::{Logger, of_connection},
    router::{Arrived, Router, code_of},
};

/// Bytes that one turn of the driver hands to the transport at most, give or take a frame: the peer reads them while the
/// next ones are made, and little stands ahead of a more urgent frame.
const TRANSMIT_BUDGET: usize = 64 << 10;
/// A read buffer begins with this and grows while reads fill it.
const READ_MIN: usize = 4 << 10;
/// A frame of the usual largest message, 64 KiB, with its header and record.
const READ_MAX: usize = (64 << 10) + (1 << 10);
/// The beginning of a frame that may be moved to a larger buffer. The rest of a longer one has its room.
const MOVE_MOST: usize = 4 << 10;
/// Parts of one vectored write.
const MAX_PARTS: usize = 16;
/// Turns of the driver before it lets other tasks run.
const MAX_TURNS: usize = 32;
/// How long what a peer said before its connection broke may take to come.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// A client's keepalive, while calls are open.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What is held of a client whose first credentials are undecided (PROTOCOL.md, W6-14).
const HELD_MOST: usize = 16 << 10;
/// Messages that may be sent before the driver has a turn: what is on the way overlaps with what is being made.
const MAX_SENDS: u32 = 1_024;

/// A connection as an observer sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Unique in this process.
    pub id: u64,
    /// Whom it is with.
    pub peer: String,
    /// Whether nobody between the two can read or change what they say.
    pub encrypted: bool,
    /// Where it stands.
    pub state: ConnectionState,
    /// How long it has lived.
    pub age: Duration,
    /// How long ago something was received.
    pub silence: Duration,
    /// Streams that are open or wait to be.
    pub streams: usize,
    /// Calls since it began.
    pub calls: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Handlers that run and hold a permit; 0 on a client's side, as the next one.
    pub running: usize,
    /// Calls that wait for a permit.
    pub queued: usize,
    /// Message bytes that were read and that no handler and no caller has taken.
    pub unread_bytes: u64,
    /// Bytes that wait to be handed to the transport.
    pub unsent_bytes: u64,
    /// Streams with a deadline. One timer serves all of them.
    pub deadlines: usize,
}

/// A lock whose holder panicked is still a lock: every state in here is whole between two statements.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a builder says of its connections.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) limits: Limits,
    pub(crate) versions: RangeInclusive<u8>,
    pub(crate) keepalive: Keepalive,
    /// How long there may be no stream.
    pub(crate) max_idle: Option<Duration>,
    /// How long a driver looks for bytes before it sleeps.
    pub(crate) spin: Duration,
    pub(crate) log: Logger,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            versions: VERSION..=VERSION,
            keepalive: Keepalive { time: Some(KEEPALIVE_TIME), idle: None, timeout: KEEPALIVE_TIMEOUT },
            max_idle: None,
            spin: Duration::ZERO,
            log: Logger::default(),
        }
    }
}

impl Terms {
    /// How long what was sent may lie unacknowledged; `None`: as long as the system likes.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.keepalive.time.map(|time| time.saturating_add(self.keepalive.timeout))
    }

    /// # Errors
    /// INVALID_CONFIGURATION for what would ask peers more often, or give them less time, than is good for anybody.
    pub(crate) fn check_keepalive(&self) -> Result<(), Status> {
        let Keepalive { time, idle, timeout } = self.keepalive;
        let least = |name, least: u64, said: Option<Duration>, or| match said {
            Some(said) if said < Duration::from_millis(least) => Err(Status::from_reason(
                Reason::INVALID_CONFIGURATION,
                format!("{name} is {}; give at least {least}{or}", said.as_millis() as u64),
            )),
            _ => Ok(()),
        };
        least("keepalive_ms", 10_000, time, ", or 0 for never")?;
        least("keepalive_idle_ms", 300_000, idle, ", or 0 for never")?;
        least("keepalive_timeout_ms", 1_000, Some(timeout), "")
    }
}

/// What a builder says in milliseconds, where 0 is never.
pub(crate) fn unless_0(ms: u64) -> Option<Duration> {
    (ms > 0).then_some(Duration::from_millis(ms))
}

/// A connection whose transport stands.
pub(crate) struct Guest {
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) peer: Peer,
    /// What was read to learn what it speaks.
    pub(crate) read: ReadBuffer,
    /// Why it is told to go at once.
    pub(crate) refused: Option<(ErrorCode, &'static str)>,
}

impl Guest {
    pub(crate) fn new(transport: Box<dyn Transport>, peer: Peer) -> Self {
        Self { transport, peer, read: ReadBuffer::default(), refused: None }
    }
}

/// What a server says of itself over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Health {
    /// It serves, or nobody asks.
    Serving,
    /// It was asked and has not answered.
    Unknown,
    /// It does not serve, or cannot be asked.
    NotServing,
}

/// Which side of a connection this is, and what it has for it.
pub(crate) enum Side {
    Client(Option<Token>),
    #[cfg_attr(not(feature = "native"), expect(dead_code, reason = "a server needs the native part"))]
    Server(Arc<Router>),
}

/// What the driver and everybody who uses the connection share.
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) peer: Peer,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) log: Logger,
    started: Time,
    pub(crate) state: Mutex<State>,
    /// Who drives, where that may be a thread: of a client.
    pub(crate) chair: Mutex<Chair>,
    /// Whether new calls may be opened, as of the last change: whoever chooses a connection waits for no driver.
    usable: AtomicBool,
    /// What a client's server says of itself, where it is asked.
    health: AtomicU8,
    /// Attempts of a client's calls that it carries, which change under the lock of their pool only, and streams that the peer takes:
    /// without a bound until it has said so.
    carried: AtomicU32,
    max_streams: AtomicU32,
    calls: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

pub(crate) struct State {
    protocol: Connection,
    /// Who waits for each stream, by the slot of its key.
    slots: Vec<Option<(StreamKey, Slot)>>,
    pub(crate) driver: Option<Waker>,
    /// The driver was told that there is something to do.
    pub(crate) dirty: bool,
    /// Nobody drives: a thread did, and whoever is about to do so again need not wake anybody.
    pub(crate) resting: bool,
    /// Ends by itself once no stream is left, or at this time.
    closing: Option<Time>,
    /// Nobody uses it: ends at this time, when whatever was on its way has arrived.
    leaving: Option<Time>,
    abort: Option<Status>,
    closed: Option<Status>,
    on_change: Vec<Waker>,
    #[cfg(feature = "observe")]
    on_greeting: Option<Greeting>,
    /// To be logged by the driver, in its order.
    records: Vec<Record>,
    /// Small messages that lie unread, and how many may (F20).
    unread: u32,
    max_unread: u32,
    /// Messages that were sent since the driver had its turn.
    sends: u32,
    /// A server's: whom calls that come in are made for.
    principal: Option<Arc<Principal>>,
    /// A client's: when its last token was accepted, and after how long it ends.
    authenticated: Option<(Time, Option<Duration>)>,
    /// Handlers that run, and calls that wait for a permit.
    running: usize,
    queued: VecDeque<Arrived>,
}

enum Slot {
    Unary { attempt: u64, call: Arc<Call>, head: Metadata, message: Option<Bytes> },
    Stream(Arc<StreamCell>),
}

/// One stream as its user and the driver share it.
#[derive(Default)]
pub(crate) struct StreamCell {
    inner: Mutex<StreamInner>,
}

#[derive(Default)]
struct StreamInner {
    /// Messages, and what each gives back when taken.
    incoming: VecDeque<(Bytes, Credit)>,
    /// While the call waits for a permit: bytes of it that the protocol has set aside.
    aside: Option<usize>,
    head: Option<Metadata>,
    trailers: Metadata,
    /// The end of the receiving direction.
    end: Option<Result<(), Status>>,
    /// The whole stream is over.
    gone: Option<Status>,
    receiver: Option<Waker>,
    sender: Option<Waker>,
    task: Option<Waker>,
}

/// What a message gives back when it is taken: bytes of credit, and its place among the small messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credit {
    bytes: usize,
    small: u32,
}

impl Credit {
    /// Of a message that is not kept.
    pub(crate) fn bytes(bytes: usize) -> Self {
        Self { bytes, small: 0 }
    }

    fn kept(message: &Bytes) -> Self {
        Self { bytes: message.len(), small: u32::from(message.len() < Limits::SMALL_MESSAGE) }
    }
}

impl std::ops::AddAssign for Credit {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.small += other.small;
    }
}

impl std::iter::Sum for Credit {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

/// Is told the version that both sides speak, and what the peer is ready to receive.
#[cfg(feature = "observe")]
pub(crate) type Greeting = Box<dyn FnOnce(u8, &Limits) + Send>;

type Completed = (Arc<Call>, u64, Result<Response, Status>);

/// Things to do once the lock is free.
#[derive(Default)]
struct Actions {
    wakers: Vec<Waker>,
    completed: Vec<Completed>,
    calls: Vec<Arrived>,
    records: Vec<Record>,
    /// Credentials to be decided on.
    token: Option<Secret>,
    #[cfg(feature = "observe")]
    greeted: Option<(Greeting, u8, Limits)>,
}

impl Actions {
    fn wake(&mut self, waker: &mut Option<Waker>) {
        self.wakers.extend(waker.take());
    }
}

/// A handle to one stream of a connection.
#[derive(Clone)]
pub(crate) struct StreamHandle {
    pub(crate) link: Arc<Link>,
    pub(crate) key: StreamKey,
    cell: Arc<StreamCell>,
}

impl Link {
    /// A connection over `transport`, and the future that drives it until it is over.
    pub(crate) fn new(
        guest: Guest,
        terms: &Terms,
        runtime: Arc<dyn Runtime>,
        side: Side,
    ) -> (Arc<Link>, Driver) {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let Guest { transport, peer, read, refused } = guest;
        let now = runtime.now();
        let (role, router, token) = match side {
            Side::Client(token) => (Role::Client, None, token),
            Side::Server(router) => (Role::Server, Some(router), None),
        };
        let authenticates = match &router {
            Some(router) => router.guard.authenticator.is_some(),
            None => token.is_some(),
        };
        let principal = router.as_ref().map(|_| Arc::new(Principal::of(&peer)));
        let id = NEXT_ID.fetch_add(1, Relaxed);
        // Chance enough for grease: nobody gains by guessing it.
        let grease = Some(RandomState::new().hash_one(id));
        let multiplexed = transport.carrier() == Carrier::Streams;
        let Terms { limits, versions, keepalive, max_idle, spin, log } = terms.clone();
        let config = Config {
            limits,
            versions,
            grease,
            multiplexed,
            authenticates,
            keepalive,
            max_idle,
            ..Config::new(role)
        };
        let mut protocol = Connection::new(config, now);
        if let Some((code, message)) = refused {
            protocol.refuse(code, message);
        } else if let Some(token) = token {
            // It goes out with HELLO, ahead of every call.
            protocol.authenticate(token.as_bytes());
        }
        let timer = runtime.timer();
        let link = Arc::new(Link {
            id,
            peer,
            runtime,
            log,
            started: now,
            state: Mutex::new(State {
                protocol,
                slots: Vec::new(),
                driver: None,
                dirty: true,
                resting: false,
                closing: None,
                leaving: None,
                abort: None,
                closed: None,
                on_change: Vec::new(),
                #[cfg(feature = "observe")]
                on_greeting: None,
                records: Vec::new(),
                unread: 0,
                max_unread: limits.max_unread_messages,
                sends: 0,
                principal,
                authenticated: None,
                running: 0,
                queued: VecDeque::new(),
            }),
            chair: Mutex::default(),
            usable: AtomicBool::new(true),
            health: AtomicU8::new(Health::Serving as u8),
            carried: AtomicU32::new(0),
            max_streams: AtomicU32::new(u32::MAX),
            calls: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        });
        let driver = Driver {
            link: link.clone(),
            transport,
            router,
            channels: multiplexed.then(Box::default),
            buffer: read,
            transmit: TransmitBuffer::default(),
            timer,
            timer_at: None,
            now,
            led: false,
            actions: Actions::default(),
            read_size: READ_MIN,
            woke: false,
            spin: Spin { most: spin, ..Spin::default() },
            flushed: true,
            holds: false,
            broken: None,
            ended: None,
        };
        (link, driver)
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        let now = self.runtime.now();
        let mut state = lock(&self.state);
        let stage = match state.closed {
            Some(_) => ConnectionState::Closed,
            None => state.protocol.state(),
        };
        ConnectionInfo {
            id: self.id,
            peer: self.peer.endpoint.clone(),
            state: stage,
            encrypted: self.peer.encrypted,
            age: now.since(self.started),
            silence: now.since(state.protocol.heard()),
            streams: state.protocol.streams(),
            calls: self.calls.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            running: state.running,
            queued: state.queued.len(),
            unread_bytes: state.protocol.unread_bytes(),
            unsent_bytes: state.protocol.unsent_bytes(),
            deadlines: state.protocol.deadlines(),
        }
    }

    /// Bytes read, and written.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.bytes_in.load(Relaxed), self.bytes_out.load(Relaxed))
    }

    pub(crate) fn streams(&self) -> usize {
        lock(&self.state).protocol.streams()
    }

    /// Why it ended before the peer had said HELLO, but for a peer that left without a byte.
    #[cfg(feature = "native")]
    pub(crate) fn failed(&self) -> Option<Status> {
        let state = lock(&self.state);
        let status = state.closed.clone().filter(|_| !state.protocol.is_greeted())?;
        let left = status.reason() == Reason::CONNECTION_LOST && self.bytes_in.load(Relaxed) == 0;
        (!left).then_some(status)
    }

    /// Whether new calls may be opened.
    pub(crate) fn is_usable(&self) -> bool {
        self.usable.load(Relaxed)
    }

    /// What its server says of itself.
    pub(crate) fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Serving,
            1 => Health::Unknown,
            _ => Health::NotServing,
        }
    }

    /// Under the lock of its pool.
    #[cfg(feature = "native")]
    pub(crate) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Relaxed);
    }

    /// Ready once it takes no new calls.
    #[cfg(feature = "native")]
    pub(crate) fn poll_leaving(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.over().is_some() || state.protocol.is_draining() {
            return Poll::Ready(());
        }
        state.wait_for_change(cx);
        Poll::Pending
    }

    /// Attempts of a client's calls that it carries.
    pub(crate) fn carried(&self) -> u32 {
        self.carried.load(Relaxed)
    }

    /// It carries so many.
    pub(crate) fn carry(&self, attempts: u32) {
        self.carried.store(attempts, Relaxed);
    }

    /// Whether the peer takes another stream.
    pub(crate) fn has_room(&self) -> bool {
        self.carried() < self.max_streams.load(Relaxed)
    }

    /// Calls since it began.
    #[cfg(feature = "native")]
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Who is told the peer's first word, ahead of what comes with it.
    #[cfg(feature = "observe")]
    pub(crate) fn on_greeting(&self, tell: Greeting) {
        lock(&self.state).on_greeting = Some(tell);
    }

    /// Why it is over.
    pub(crate) fn why_over(&self) -> Option<Status> {
        lock(&self.state).closed.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        lock(&self.state).closed.is_some()
    }

    /// Whether it was closed as it had no call for too long.
    #[cfg(feature = "native")]
    pub(crate) fn was_idle(&self) -> bool {
        lock(&self.state).leaving.is_some()
    }

    /// Whether it is over because the peer was silent.
    pub(crate) fn timed_out(&self) -> bool {
        lock(&self.state).protocol.timed_out()
    }

    /// Why it is over, when nothing was ever heard on it.
    pub(crate) fn is_mute(&self) -> Option<Status> {
        let heard = self.bytes_in.load(Relaxed) > 0;
        lock(&self.state).closed.clone().filter(|_| !heard)
    }

    fn wake_driver(mut state: MutexGuard<'_, State>) {
        if state.dirty || state.resting && lead::is_expected() {
            return;
        }
        state.dirty = true;
        state.resting = false;
        let waker = state.driver.clone();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn open_slot(&self, call: Opened, slot: Slot) -> Result<StreamKey, (Slot, Status)> {
        let mut state = lock(&self.state);
        if let Some(status) = state.over() {
            return Err((slot, status.clone().as_unprocessed()));
        }
        let opened = state.protocol.open(call);
        if state.protocol.is_draining() {
            self.usable.store(false, Relaxed);
        }
        match opened {
            Err(status) => Err((slot, status.as_unprocessed())),
            Ok(key) => {
                self.calls.fetch_add(1, Relaxed);
                state.put(key, slot);
                Self::wake_driver(state);
                Ok(key)
            }
        }
    }

    /// Begins an attempt of a unary call, which is completed exactly once, from the driver, or not at all when this fails.
    pub(crate) fn unary(&self, opened: Opened, attempt: u64, call: Arc<Call>) -> Result<StreamKey, Status> {
        let slot = Slot::Unary { attempt, call, head: Metadata::new(), message: None };
        self.open_slot(opened, slot).map_err(|(_, status)| status)
    }

    /// Opens a stream of any shape.
    pub(crate) fn stream(self: &Arc<Self>, call: Opened) -> Result<StreamHandle, Status> {
        let cell = Arc::new(StreamCell::default());
        let key = self.open_slot(call, Slot::Stream(cell.clone())).map_err(|(_, status)| status)?;
        Ok(StreamHandle { link: self.clone(), key, cell })
    }

    /// Gives up an attempt of a unary call, which is not completed any more.
    pub(crate) fn cancel_unary(&self, key: StreamKey) {
        let mut state = lock(&self.state);
        if let Some(Slot::Unary { call, .. }) = state.take(key) {
            state.protocol.reset(key, ErrorCode::CANCEL);
            Self::wake_driver(state);
            drop(call);
        }
    }

    /// Ends a call that the peer opened.
    pub(crate) fn respond(&self, key: StreamKey, outcome: Result<Finish, Status>) {
        let mut state = lock(&self.state);
        state.respond(key, outcome);
        Self::wake_driver(state);
    }

    /// Gives a permit back; the call that now has it, if one waited.
    pub(crate) fn release_permit(&self) -> Option<Arrived> {
        let mut state = lock(&self.state);
        let next = state.next_queued(&*self.runtime);
        if next.is_none() {
            state.running -= 1;
        }
        if state.protocol.wants_transmit() {
            Self::wake_driver(state);
        }
        next
    }

    /// A handler has ended whose permit was the server's.
    #[cfg(feature = "native")]
    pub(crate) fn handler_ended(&self) {
        lock(&self.state).running -= 1;
    }

    /// The call that waits, for the permit of the server's that its caller has.
    #[cfg(feature = "native")]
    pub(crate) fn take_queued(&self, key: StreamKey) -> Option<Arrived> {
        let mut state = lock(&self.state);
        let at = state.queued.iter().position(|call| call.stream.key == key)?;
        let call = state.take_queued(at)?;
        state.running += 1;
        if state.protocol.wants_transmit() {
            Self::wake_driver(state);
        }
        Some(call)
    }

    /// Ends a call that waits, if it still does.
    #[cfg(feature = "native")]
    pub(crate) fn refuse_queued(&self, key: StreamKey, status: Status) {
        let mut state = lock(&self.state);
        if state.give_up_queued(key, Some(status.code())) {
            state.respond(key, Err(status));
            Self::wake_driver(state);
        }
    }

    /// Takes no new calls and ends once those that run have ended, or at `deadline`.
    pub(crate) fn close(&self, deadline: Time, message: &str) {
        let mut state = lock(&self.state);
        if state.closed.is_none() && state.closing.is_none_or(|at| deadline < at) {
            state.protocol.drain(self.runtime.now(), message);
            self.usable.store(false, Relaxed);
            state.closing = Some(deadline);
            state.dirty = false;
            if self.log.wants(Level::Debug).is_some() {
                let endpoint = &self.peer.endpoint;
                let sentence = ["the connection to ", endpoint, " drains"];
                state.records.push(of_connection(Level::Debug, &sentence, None, endpoint));
            }
            let wakers = std::mem::take(&mut state.on_change);
            Self::wake_driver(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// What there is to log of a GOAWAY.
    fn went_away(&self, error: &ConnectionError) -> Option<Record> {
        let level = if error.code == ErrorCode::NO_ERROR { Level::Info } else { Level::Warn };
        self.log.wants(level)?;
        let endpoint = &self.peer.endpoint;
        let sentence = [endpoint, " takes no new calls: ", &error.message];
        Some(of_connection(level, &sentence, Some(error.reason), endpoint))
    }

    /// Ends at once; calls in flight end with `status`.
    pub(crate) fn abort(&self, status: Status) {
        let mut state = lock(&self.state);
        if state.over().is_none() {
            state.abort = Some(status);
            self.usable.store(false, Relaxed);
            state.dirty = false;
            Self::wake_driver(state);
        }
    }

    /// Resolves with the peer's first word.
    ///
    /// # Errors
    /// Why the connection is over without one.
    pub(crate) fn greeted(&self) -> impl Future<Output = Result<(), Status>> + Send + '_ {
        std::future::poll_fn(move |cx| {
            let mut state = lock(&self.state);
            if let Some(status) = &state.closed {
                return Poll::Ready(Err(status.clone()));
            }
            if state.protocol.state() != ConnectionState::Handshaking {
                return Poll::Ready(Ok(()));
            }
            state.wait_for_change(cx);
            Poll::Pending
        })
    }

    /// A client's: sends a newer token. False once it is of no use.
    pub(crate) fn authenticate(&self, token: &Token) -> bool {
        let mut state = lock(&self.state);
        let sent = state.closed.is_none() && state.protocol.authenticate(token.as_bytes());
        Self::wake_driver(state);
        sent
    }

    /// A client's: when its next token was accepted, and after how long that ends; `None` once the connection is over.
    pub(crate) fn authenticated(&self) -> impl Future<Output = Option<(Time, Option<Duration>)>> + Send + '_ {
        std::future::poll_fn(move |cx| {
            let mut state = lock(&self.state);
            if let Some(accepted) = state.authenticated.take() {
                return Poll::Ready(Some(accepted));
            }
            if state.closed.is_some() {
                return Poll::Ready(None);
            }
            state.wait_for_change(cx);
            Poll::Pending
        })
    }

    /// A server's: credentials were accepted, for a time or for ever, or refused; whether those were the first that were
    /// refused, which ends the connection. Later ones let it drain.
    pub(crate) fn decided(&self, accepted: Option<(Principal, Option<Duration>)>) -> bool {
        let now = self.runtime.now();
        let mut state = lock(&self.state);
        let refused_first = accepted.is_none() && state.protocol.holds_back();
        match accepted {
            Some((principal, expires_in)) => {
                state.principal = Some(Arc::new(principal));
                state.protocol.accept_credentials(now, expires_in);
            }
            None => {
                state.protocol.refuse_credentials(now);
                if !refused_first {
                    let end = state.protocol.credentials_end().unwrap_or(Time::from_micros(u64::MAX));
                    state.close_at(end);
                }
            }
        }
        Self::wake_driver(state);
        refused_first
    }

    /// Resolves when the connection is over.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + Send + '_ {
        std::future::poll_fn(move |cx| {
            let mut state = lock(&self.state);
            if state.closed.is_some() {
                return Poll::Ready(());
            }
            state.wait_for_change(cx);
            Poll::Pending
        })
    }
}

/// The status that an error of a transport's stands for.
pub(crate) fn status_in(error: &io::Error) -> Option<&Status> {
    error.get_ref()?.downcast_ref()
}

pub(crate) fn cancelled() -> Status {
    Status::from_reason(Reason::CANCELLED, "the call was cancelled")
}

impl State {
    /// Why nothing more is sent.
    fn over(&self) -> Option<&Status> {
        self.closed.as_ref().or(self.abort.as_ref())
    }

    /// For whoever waits for the peer's first word, or for the end.
    fn wait_for_change(&mut self, cx: &Context<'_>) {
        if !self.on_change.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.on_change.push(cx.waker().clone());
        }
    }

    fn put(&mut self, key: StreamKey, slot: Slot) {
        if self.slots.len() <= key.index() {
            self.slots.resize_with(key.index() + 1, || None);
        }
        self.slots[key.index()] = Some((key, slot));
    }

    /// Ends by itself once no stream is left, or at this time.
    fn close_at(&mut self, at: Time) {
        self.closing = Some(self.closing.map_or(at, |closing| closing.min(at)));
    }

    fn slot(&mut self, key: StreamKey) -> Option<&mut Slot> {
        match self.slots.get_mut(key.index()) {
            Some(Some((owner, slot))) if *owner == key => Some(slot),
            _ => None,
        }
    }

    fn take(&mut self, key: StreamKey) -> Option<Slot> {
        self.slot(key)?;
        self.slots[key.index()].take().map(|(_, slot)| slot)
    }

    /// Ends a call that the peer opened; the credit of what its handler never read goes back.
    fn respond(&mut self, key: StreamKey, outcome: Result<Finish, Status>) {
        if let Some(Slot::Stream(cell)) = self.take(key) {
            self.consumed(key, cell.take_credit());
        }
        self.protocol.respond(key, outcome);
    }

    fn consumed(&mut self, key: StreamKey, credit: Credit) {
        self.unread -= credit.small;
        self.protocol.consumed(key, credit.bytes);
    }

    /// A call waits for a permit, with what came of it.
    fn wait(&mut self, call: Arrived) {
        let StreamHandle { key, cell, .. } = call.stream.clone();
        let mut inner = lock(&cell.inner);
        inner.aside = Some(0);
        let len = call.first_len() + inner.incoming.iter().map(|(_, credit)| credit.bytes).sum::<usize>();
        drop(inner);
        self.queued.push_back(call);
        self.set_aside(key, &cell, len);
    }

    /// A call waits for a permit of the server's, or is refused where too many do.
    #[cfg(feature = "native")]
    fn wait_in_line(&mut self, mut call: Arrived, load: &Arc<Load>, runtime: &dyn Runtime) {
        let key = call.stream.key;
        let remaining = self.protocol.remaining(key, runtime.now());
        match load.wait(&call, remaining) {
            // Whoever is handed its place finds it: this is locked until it waits.
            Ok(ticket) => {
                call.ticket = Some(ticket);
                self.wait(call);
            }
            Err(status) => {
                self.give_up(call, Some(status.code()));
                self.respond(key, Err(status));
            }
        }
    }

    /// What came of a call that waits for a permit; a call that is too much is given up.
    fn set_aside(&mut self, key: StreamKey, cell: &StreamCell, len: usize) {
        if !self.protocol.set_aside(key, len) {
            self.take(key);
            self.give_up_queued(key, Some(Code::Unavailable));
        } else if let Some(aside) = &mut lock(&cell.inner).aside {
            *aside += len;
        }
    }

    /// The first call that waits and is not late, for the permit that its caller has.
    fn next_queued(&mut self, runtime: &dyn Runtime) -> Option<Arrived> {
        if self.queued.is_empty() {
            return None;
        }
        let now = runtime.now();
        let protocol = &mut self.protocol;
        // One whose deadline has passed is ended by the driver, which is about to see it.
        let mut is_late = |call: &Arrived| protocol.remaining(call.stream.key, now) == Some(Duration::ZERO);
        let at = self.queued.iter().position(|call| !is_late(call))?;
        self.take_queued(at)
    }

    fn take_queued(&mut self, at: usize) -> Option<Arrived> {
        let call = self.queued.remove(at)?;
        self.take_up(&call);
        self.consumed(call.stream.key, Credit::bytes(call.first_len()));
        Some(call)
    }

    fn take_up(&mut self, call: &Arrived) {
        if let Some(aside) = lock(&call.stream.cell.inner).aside.take() {
            self.protocol.take_up(aside);
        }
    }

    /// A call that ends in the read that opened it, or while it waits for a permit: its handler never starts (F17).
    fn give_up_unstarted(&mut self, key: StreamKey, actions: &mut Actions) {
        if let Some(at) = actions.calls.iter().rposition(|call| call.stream.key == key) {
            self.give_up(actions.calls.remove(at), None);
        } else {
            self.give_up_queued(key, None);
        }
    }

    /// Whether it waited. What it counts as is how its stream ended, if nobody says.
    fn give_up_queued(&mut self, key: StreamKey, code: Option<Code>) -> bool {
        let waited = self.queued.iter().position(|call| call.stream.key == key);
        let Some(call) = waited.and_then(|at| self.queued.remove(at)) else { return false };
        self.take_up(&call);
        self.give_up(call, code);
        true
    }

    /// A call that nobody will handle gives back what came with it and after it.
    fn give_up(&mut self, mut call: Arrived, code: Option<Code>) {
        if let Some(tally) = &mut call.tally {
            let gone = || Some(lock(&call.stream.cell.inner).gone.as_ref()?.code());
            tally.is(code.or_else(gone).unwrap_or(Code::Cancelled));
        }
        let mut credit = call.stream.cell.take_credit();
        credit += Credit::bytes(call.first_len());
        self.consumed(call.stream.key, credit);
    }

    /// Takes every free permit of `most`, or one for each of the calls where the server counts them; how many that is.
    fn reserve(&mut self, most: Option<usize>, calls: usize) -> usize {
        let free = most.map_or(calls, |most| most - self.running);
        self.running += free;
        free
    }

    /// Hands every event of the protocol to whom it concerns.
    fn dispatch(&mut self, link: &Arc<Link>, actions: &mut Actions) {
        while let Some(event) = self.protocol.poll_event() {
            match event {
                Event::Connected => {
                    link.max_streams.store(self.protocol.peer_limits().max_concurrent_streams, Relaxed);
                    actions.wakers.append(&mut self.on_change);
                    #[cfg(feature = "observe")]
                    if let Some(tell) = self.on_greeting.take() {
                        actions.greeted = Some((tell, self.protocol.version(), *self.protocol.peer_limits()));
                    }
                }
                Event::Pong { .. } => {}
                Event::Auth { token } => actions.token = Some(token),
                Event::Authenticated { expires_in } => {
                    self.authenticated = Some((link.runtime.now(), expires_in));
                    actions.wakers.append(&mut self.on_change);
                }
                // The client is told; then there is nothing left to do.
                Event::Expired => self.close_at(link.runtime.now().after(LAST_WORDS)),
                Event::Idle => self.leaving = Some(link.runtime.now().after(LAST_WORDS)),
                Event::GoAway { error } => {
                    actions.wakers.append(&mut self.on_change);
                    actions.records.extend(link.went_away(&error));
                }
                Event::Call { key, method, metadata, priority, message, end } => {
                    link.calls.fetch_add(1, Relaxed);
                    let cell = Arc::new(StreamCell::default());
                    if end {
                        lock(&cell.inner).end = Some(Ok(()));
                    }
                    self.put(key, Slot::Stream(cell.clone()));
                    let stream = StreamHandle { link: link.clone(), key, cell };
                    let Some(principal) = self.principal.clone() else { continue };
                    actions.calls.push(Arrived {
                        stream,
                        principal,
                        method,
                        metadata,
                        priority,
                        message,
                        end,
                        #[cfg(feature = "native")]
                        ticket: None,
                        tally: None,
                    });
                }
                Event::Head { key, metadata } => match self.slot(key) {
                    Some(Slot::Unary { head, .. }) => *head = metadata,
                    Some(Slot::Stream(cell)) => {
                        let mut inner = lock(&cell.inner);
                        inner.head = Some(metadata);
                        actions.wake(&mut inner.receiver);
                    }
                    None => {}
                },
                Event::Message { key, message } => {
                    let len = message.len();
                    let credit = Credit::kept(&message);
                    let full = self.unread + credit.small > self.max_unread;
                    match self.slot(key) {
                        Some(Slot::Unary { message: first, .. }) => {
                            // A unary caller takes its message at once, and a second one is the server's error.
                            let twice = first.replace(message).is_some();
                            self.protocol.consumed(key, len);
                            if twice && let Some(Slot::Unary { attempt, call, .. }) = self.take(key) {
                                self.protocol.reset(key, ErrorCode::CANCEL);
                                let status = Status::from_reason(
                                    Reason::STREAM_MISUSE,
                                    "the server answered a unary call with more than one message",
                                )
                                .with_code(Code::Internal);
                                actions.completed.push((call, attempt, Err(status)));
                            }
                        }
                        Some(Slot::Stream(cell)) if full => {
                            let cell = cell.clone();
                            self.take(key);
                            self.protocol.consumed(key, len);
                            self.protocol.reset_abused(key);
                            let message = format!("{} small messages lie unread", self.unread);
                            cell.end(Err(Status::from_reason(Reason::ENHANCE_CALM, message)), actions);
                            self.give_up_unstarted(key, actions);
                        }
                        Some(Slot::Stream(cell)) => {
                            let cell = cell.clone();
                            let mut inner = lock(&cell.inner);
                            inner.incoming.push_back((message, credit));
                            self.unread += credit.small;
                            let mut sum = len;
                            // More of the same stream at one go, while they are nothing out of the ordinary.
                            while self.unread < self.max_unread
                                && let Some(message) = self.protocol.poll_message(key)
                            {
                                let credit = Credit::kept(&message);
                                self.unread += credit.small;
                                sum += message.len();
                                inner.incoming.push_back((message, credit));
                            }
                            actions.wake(&mut inner.receiver);
                            let waits = inner.aside.is_some();
                            drop(inner);
                            if waits {
                                self.set_aside(key, &cell, sum);
                            }
                        }
                        None => self.protocol.consumed(key, len),
                    }
                }
                Event::HalfClosed { key } => {
                    if let Some(Slot::Stream(cell)) = self.slot(key) {
                        let mut inner = lock(&cell.inner);
                        inner.end = Some(Ok(()));
                        actions.wake(&mut inner.receiver);
                    }
                }
                Event::Ended { key, outcome } => self.end(key, outcome, actions),
                Event::Reset { key, status, unprocessed } => {
                    let status = if unprocessed { status.as_unprocessed() } else { status };
                    self.end(key, Err(status), actions);
                    self.give_up_unstarted(key, actions);
                }
                Event::Writable { key } => {
                    if let Some(Slot::Stream(cell)) = self.slot(key) {
                        let mut inner = lock(&cell.inner);
                        actions.wake(&mut inner.sender);
                    }
                }
            }
        }
    }

    fn end(&mut self, key: StreamKey, outcome: Result<Finish, Status>, actions: &mut Actions) {
        match self.take(key) {
            Some(Slot::Unary { attempt, call, head, message }) => {
                let result = outcome.and_then(|finish| {
                    let metadata = if head.is_empty() { finish.metadata } else { head };
                    match finish.message.or(message) {
                        Some(message) => Ok(Response::new(message, metadata, finish.trailers)),
                        None => Err(Status::from_reason(
                            Reason::MISSING_MESSAGE,
                            "the server answered a unary call without a message",
                        )),
                    }
                });
                actions.completed.push((call, attempt, result));
            }
            Some(Slot::Stream(cell)) => cell.end(outcome, actions),
            None => {}
        }
    }

    /// The connection is over: everybody who waits is told.
    fn close(&mut self, status: Status, actions: &mut Actions) {
        for (key, slot) in self.slots.iter_mut().filter_map(Option::take) {
            let status = match self.protocol.is_unsent(key) {
                true => status.clone().as_unprocessed(),
                false => status.clone(),
            };
            match slot {
                Slot::Unary { attempt, call, .. } => actions.completed.push((call, attempt, Err(status))),
                Slot::Stream(cell) => cell.end(Err(status), actions),
            }
        }
        self.queued.clear();
        self.closed = Some(status);
        actions.wakers.append(&mut self.on_change);
    }
}

impl StreamCell {
    /// The credit of the messages that were not taken, which then have none.
    fn take_credit(&self) -> Credit {
        lock(&self.inner).incoming.iter_mut().map(|(_, credit)| std::mem::take(credit)).sum()
    }

    fn end(&self, outcome: Result<Finish, Status>, actions: &mut Actions) {
        let mut inner = lock(&self.inner);
        match outcome {
            Ok(finish) => {
                if let Some(message) = finish.message {
                    // Its credit came back when it was read.
                    inner.incoming.push_back((message, Credit::default()));
                }
                inner.head.get_or_insert(finish.metadata);
                inner.trailers = finish.trailers;
                inner.end = Some(Ok(()));
                inner.gone = Some(Status::from_reason(Reason::STREAM_MISUSE, "the call has ended"));
            }
            Err(status) => {
                if inner.head.is_none() {
                    inner.head = Some(status.metadata().clone());
                }
                inner.trailers = status.trailers().clone();
                inner.end = Some(Err(status.clone()));
                inner.gone = Some(status);
            }
        }
        let StreamInner { receiver, sender, task, .. } = &mut *inner;
        actions.wakers.extend([receiver.take(), sender.take(), task.take()].into_iter().flatten());
    }
}

impl StreamHandle {
    pub(crate) fn peer(&self) -> &Peer {
        &self.link.peer
    }

    pub(crate) fn remaining(&self) -> Option<Duration> {
        let now = self.link.runtime.now();
        lock(&self.link.state).protocol.remaining(self.key, now)
    }

    /// Returns the credit of messages that the application took.
    pub(crate) fn consumed(&self, credit: Credit) {
        if credit != Credit::default() {
            let mut state = lock(&self.link.state);
            state.consumed(self.key, credit);
            if state.protocol.wants_transmit() {
                Link::wake_driver(state);
            }
        }
    }

    #[cfg(feature = "native")]
    pub(crate) fn is_gone(&self) -> bool {
        lock(&self.cell.inner).gone.is_some()
    }

    /// The status that ended the stream, if it is over; wakes the task when that changes.
    pub(crate) fn poll_gone(&self, cx: &Context<'_>) -> Option<Status> {
        let mut inner = lock(&self.cell.inner);
        if inner.gone.is_none() {
            inner.task = Some(cx.waker().clone());
        }
        inner.gone.clone()
    }

    /// Initial metadata, as soon as it or the first message is there; `messages` are there already.
    pub(crate) fn head(&self, messages: bool) -> impl Future<Output = Result<Metadata, Status>> + Send + '_ {
        std::future::poll_fn(move |cx| {
            let mut inner = lock(&self.cell.inner);
            if let Some(head) = &inner.head {
                return Poll::Ready(Ok(head.clone()));
            }
            if messages || !inner.incoming.is_empty() {
                return Poll::Ready(Ok(Metadata::new()));
            }
            match &inner.end {
                Some(end) => Poll::Ready(end.clone().map(|()| Metadata::new())),
                None => {
                    inner.receiver = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    pub(crate) fn trailers(&self) -> Metadata {
        lock(&self.cell.inner).trailers.clone()
    }

    /// Whether messages came that nobody has taken.
    pub(crate) fn has_messages(&self) -> bool {
        !lock(&self.cell.inner).incoming.is_empty()
    }

    /// How the whole stream ended, if it did.
    pub(crate) fn end(&self) -> Option<Result<(), Status>> {
        let inner = lock(&self.cell.inner);
        inner.gone.as_ref().and(inner.end.clone())
    }

    pub(crate) fn send(&self, message: Bytes) -> impl Future<Output = Result<(), Status>> + Send + '_ {
        let mut message = Some(message);
        std::future::poll_fn(move |cx| {
            let mut state = lock(&self.link.state);
            if let Some(status) = state.over() {
                return Poll::Ready(Err(status.clone()));
            }
            if state.sends >= MAX_SENDS {
                state.sends = 0;
                drop(state);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(whole) = message.take() else { return Poll::Ready(Err(cancelled())) };
            state.sends += 1;
            match state.protocol.send(self.key, whole) {
                Ok(()) => {
                    Link::wake_driver(state);
                    Poll::Ready(Ok(()))
                }
                Err(SendError::Full(back)) => {
                    message = Some(back);
                    // The connection is locked: the room cannot come before the waker stands here.
                    lock(&self.cell.inner).sender = Some(cx.waker().clone());
                    Poll::Pending
                }
                Err(SendError::Refused(status)) => Poll::Ready(Err(status)),
                Err(SendError::Gone) => {
                    Poll::Ready(Err(lock(&self.cell.inner).gone.clone().unwrap_or_else(cancelled)))
                }
            }
        })
    }

    pub(crate) fn send_metadata(&self, metadata: Metadata) -> Result<(), Status> {
        let mut state = lock(&self.link.state);
        state.protocol.send_head(self.key, metadata)?;
        Link::wake_driver(state);
        Ok(())
    }

    pub(crate) fn finish(&self) {
        let mut state = lock(&self.link.state);
        state.protocol.finish(self.key);
        Link::wake_driver(state);
    }

    /// Returns the credit of what was never taken.
    pub(crate) fn release(&self) {
        let unread = lock(&self.cell.inner).incoming.drain(..).map(|(_, credit)| credit).sum();
        self.consumed(unread);
    }

    /// Gives the call up: the peer is told, and both directions end with CANCELLED. Does nothing once it is over.
    pub(crate) fn cancel(&self) {
        let mut actions = Actions::default();
        let mut state = lock(&self.link.state);
        if let Some(Slot::Stream(cell)) = state.take(self.key) {
            state.protocol.reset(self.key, ErrorCode::CANCEL);
            cell.end(Err(cancelled()), &mut actions);
        }
        Link::wake_driver(state);
        self.release();
        actions.wakers.into_iter().for_each(Waker::wake);
    }
}

/// What a reader may hold back while more messages are at hand.
const OWED_MOST: Credit = Credit { bytes: 16 << 10, small: 1_024 };

/// The receiving end of a stream. It takes all messages that came at once, and returns the credit of those that were
/// read now and then: two locks for a batch and not for each message.
#[derive(Default)]
pub(crate) struct Inbox {
    batch: VecDeque<(Bytes, Credit)>,
    owed: Credit,
}

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub(crate) fn poll_recv(
        &mut self,
        stream: &StreamHandle,
        cx: Option<&Context<'_>>,
    ) -> Poll<Result<Option<Bytes>, Status>> {
        if self.batch.is_empty() {
            let mut inner = lock(&stream.cell.inner);
            std::mem::swap(&mut self.batch, &mut inner.incoming);
            if self.batch.is_empty() {
                return match (&inner.end, cx) {
                    (Some(end), _) => Poll::Ready(end.clone().map(|()| None)),
                    (None, None) => Poll::Pending,
                    (None, Some(cx)) => {
                        inner.receiver = Some(cx.waker().clone());
                        Poll::Pending
                    }
                };
            }
        }
        let message = self.batch.pop_front().map(|(message, credit)| {
            self.owed += credit;
            message
        });
        // A reader that may wait for the next message owes nothing.
        let Credit { bytes, small } = self.owed;
        if self.batch.is_empty() || bytes >= OWED_MOST.bytes || small >= OWED_MOST.small {
            stream.consumed(std::mem::take(&mut self.owed));
        }
        Poll::Ready(Ok(message))
    }

    pub(crate) async fn recv(&mut self, stream: &StreamHandle) -> Result<Option<Bytes>, Status> {
        std::future::poll_fn(move |cx| self.poll_recv(stream, Some(cx))).await
    }

    /// Returns the credit of everything, read or not: nobody will read on.
    pub(crate) fn release(&mut self, stream: &StreamHandle) {
        let mut unread: Credit = self.batch.drain(..).map(|(_, credit)| credit).sum();
        unread += std::mem::take(&mut self.owed);
        stream.consumed(unread);
        stream.release();
    }
}

/// Moves bytes between a transport and the protocol until the connection is over.
pub(crate) struct Driver {
    link: Arc<Link>,
    transport: Box<dyn Transport>,
    router: Option<Arc<Router>>,
    /// Where the carrier gives each call a channel of its own.
    channels: Option<Box<Channels>>,
    buffer: ReadBuffer,
    transmit: TransmitBuffer,
    timer: Box<dyn Timer>,
    timer_at: Option<Time>,
    /// When the last turn began.
    now: Time,
    /// A thread drives: it looks at `timer_at`, and the timer is not set.
    led: bool,
    actions: Actions,
    read_size: usize,
    /// Tasks were woken since the driver last let others run.
    woke: bool,
    spin: Spin,
    flushed: bool,
    /// The client's first credentials are undecided.
    holds: bool,
    /// Nothing can be written any more. What the peer had said before is read, until its end or this time.
    broken: Option<(Time, Status)>,
    /// Over, as soon as what is queued is written.
    ended: Option<Status>,
}

impl Driver {
    fn run_actions(&mut self) -> bool {
        #[cfg(feature = "observe")]
        if let Some((tell, version, limits)) = self.actions.greeted.take() {
            tell(version, &limits);
        }
        let Actions { wakers, completed, calls, records, token, .. } = &mut self.actions;
        let mut any = !calls.is_empty();
        self.woke |= !wakers.is_empty() || !completed.is_empty();
        for (call, attempt, result) in completed.drain(..) {
            call.complete(attempt, result, self.now);
        }
        wakers.drain(..).for_each(Waker::wake);
        for record in records.drain(..) {
            if let Some(log) = self.link.log.wants(record.level) {
                log.log(record);
            }
        }
        // No page serves: nothing of it is in what pages load.
        let router = self.router.as_ref().filter(|_| cfg!(feature = "native"));
        if let Some(router) = router
            && let Some(token) = token.take()
        {
            any |= guard::authenticate(router, &self.link, token);
        }
        if let Some(router) = router
            && !calls.is_empty()
        {
            // All free permits are taken in one go and what is left of them is given back: a handler that answers at
            // once costs no lock of its own.
            let mut replies = Vec::with_capacity(calls.len());
            let mut taken = Vec::with_capacity(calls.len());
            let mut waiting = Vec::new();
            let most = router.max_running();
            let free = lock(&self.link.state).reserve(most, calls.len());
            let mut begun = 0;
            for mut call in calls.drain(..) {
                router.count(&mut call, self.now);
                if let Err(status) = router.guard.admit(&call) {
                    taken.push((call.stream.key, call.first_len()));
                    replies.push((call.stream.key, (Err(status), call.tally)));
                    continue;
                }
                let Some(permit) = router.permit(&call, begun < free) else {
                    waiting.push(call);
                    continue;
                };
                let key = call.stream.key;
                taken.push((key, call.first_len()));
                match router.start(call, permit) {
                    Some(answered) => replies.push((key, answered)),
                    None => begun += 1,
                }
            }
            // One look at the clock for all of them: their answers leave together.
            let now = if replies.is_empty() { self.now } else { self.link.runtime.now() };
            let mut state = lock(&self.link.state);
            for (key, len) in taken {
                state.consumed(key, Credit::bytes(len));
            }
            for (key, (outcome, tally)) in replies {
                tally.into_iter().for_each(|tally| tally.ended(code_of(&outcome), now));
                state.respond(key, outcome);
            }
            state.running = state.running + begun - free;
            #[cfg(feature = "native")]
            if let Some(load) = router.load.as_ref().filter(|_| !waiting.is_empty()) {
                waiting.into_iter().for_each(|call| state.wait_in_line(call, load, &*self.link.runtime));
                drop(state);
                load.serve(router);
                return any;
            }
            waiting.into_iter().for_each(|call| state.wait(call));
            // A permit that came back meanwhile found the queue empty: hand it on.
            while most.is_some_and(|most| state.running < most)
                && let Some(next) = state.next_queued(&*self.link.runtime)
            {
                state.running += 1;
                drop(state);
                router.start_holding_permit(next, &self.link);
                state = lock(&self.link.state);
            }
        }
        any
    }

    /// Learns which channels may go on, and writes those that may; whether there is more to do at once.
    fn poll_channels(&mut self, cx: &mut Context<'_>) -> bool {
        let (Some(channels), Some(carrier)) = (&mut self.channels, self.transport.streams()) else {
            return false;
        };
        if self.broken.is_some() {
            return false;
        }
        let polled = channels.poll(cx, carrier);
        channels.write(carrier);
        let (bytes_in, bytes_out) = channels.take_counts();
        self.link.bytes_in.fetch_add(bytes_in, Relaxed);
        self.link.bytes_out.fetch_add(bytes_out, Relaxed);
        match polled {
            Ok(any) => any || channels.has_news(),
            Err(error) => {
                // What the peer said last may be on the connection's own stream, unread.
                self.broken = Some((self.link.runtime.now().after(LAST_WORDS), lost(&error)));
                true
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken.is_some() {
            self.transmit = TransmitBuffer::default();
            return Poll::Ready(Ok(()));
        }
        while !self.transmit.is_empty() {
            let written = match self.transport.carrier() {
                Carrier::Bytes | Carrier::Streams => {
                    let mut parts = [IoSlice::new(&[]); MAX_PARTS];
                    let count = self.transmit.parts(&mut parts);
                    std::task::ready!(self.transport.poll_write(cx, &parts[..count]))?
                }
                Carrier::Messages => {
                    let mut parts = vec![IoSlice::new(&[]); self.transmit.part_count()];
                    let count = self.transmit.parts(&mut parts);
                    std::task::ready!(self.transport.poll_write(cx, &parts[..count]))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.link.bytes_out.fetch_add(written as u64, Relaxed);
            self.transmit.consume(written);
            self.flushed = false;
        }
        if !self.flushed {
            std::task::ready!(self.transport.poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether more may be read: little behind credentials that are undecided, and of a carrier of messages, whose borders are
    /// looked at, nothing.
    fn may_read(&self) -> bool {
        let room = self.transport.carrier() != Carrier::Messages && self.buffer.bytes.len() < HELD_MOST;
        !self.holds || room
    }

    /// Reads once; whether anything came.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> bool {
        let bytes = &mut self.buffer.bytes;
        let room = bytes.capacity() - bytes.len();
        if room < self.read_size / 4 && (room == 0 || bytes.len() < MOVE_MOST) {
            bytes.reserve(self.read_size);
        }
        match self.transport.poll_read(cx, &mut self.buffer) {
            Poll::Pending => false,
            Poll::Ready(result) => self.has_read(result),
        }
    }

    /// What came of a read; whether anything did.
    fn has_read(&mut self, result: io::Result<usize>) -> bool {
        match result {
            Ok(0) => {
                self.ended = Some(lock(&self.link.state).protocol.handle_end(&self.buffer.bytes));
                false
            }
            Ok(count) => {
                self.link.bytes_in.fetch_add(count as u64, Relaxed);
                if count >= self.read_size / 2 {
                    self.read_size = (self.read_size * 2).min(READ_MAX);
                }
                true
            }
            Err(error) => {
                self.ended = Some(lost(&error));
                false
            }
        }
    }

    /// Looks for an answer, or for the next call, instead of sleeping at once; whether there is something to do. `read`
    /// tells that something came in this poll.
    fn spin(&mut self, read: bool) -> bool {
        // A client waits for answers; a server for whoever has just called.
        let awaited = match self.router {
            Some(_) => read,
            None => lock(&self.link.state).protocol.streams() > 0,
        };
        if !awaited || !self.spin.is_worth_it() {
            return false;
        }
        let until = self.link.runtime.now().after(self.spin.most);
        loop {
            match self.transport.read_now(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    self.spin.most = Duration::ZERO;
                    return false;
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                result => {
                    self.spin.note(true);
                    self.has_read(result);
                    return true;
                }
            }
            if lock(&self.link.state).dirty {
                return true;
            }
            if self.link.runtime.now() >= until {
                self.spin.note(false);
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// One turn under the lock: bytes and time in, events out, frames out.
    fn turn(&mut self, cx: &Context<'_>) {
        let now = self.link.runtime.now();
        self.now = now;
        let mut guard = lock(&self.link.state);
        let state = &mut *guard;
        match &mut state.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        state.dirty = false;
        state.sends = 0;
        self.actions.records.append(&mut state.records);
        let mut result = match self.transport.carrier() {
            Carrier::Bytes | Carrier::Streams => state.protocol.handle_read(now, &mut self.buffer.bytes),
            Carrier::Messages if self.buffer.bytes.is_empty() => {
                state.protocol.handle_unfinished_message(now, self.transport.unfinished());
                Ok(())
            }
            Carrier::Messages => state.protocol.handle_message(now, &mut self.buffer.bytes),
        };
        if let (Some(channels), Some(carrier)) = (&mut self.channels, self.transport.streams())
            && result.is_ok()
        {
            result = channels.read(now, carrier, &mut state.protocol);
        }
        if result.is_ok() && state.protocol.poll_timeout().is_some_and(|at| at <= now) {
            result = state.protocol.handle_timeout(now);
        }
        state.dispatch(&self.link, &mut self.actions);
        if self.ended.is_none() {
            if let Err(error) = result {
                self.ended = Some(error.status());
            } else if let Some(status) = &state.abort {
                self.ended = Some(status.clone());
            } else if let Some((_, status)) = self.broken.take_if(|(until, _)| *until <= now) {
                self.ended = Some(status);
            } else if state.leaving.is_some_and(|at| at <= now) {
                let message = "the connection was closed, as nobody used it";
                self.ended = Some(Status::from_reason(Reason::CONNECTION_LOST, message));
            } else if self.channels.is_some()
                && self.router.is_none()
                && state.closing.is_none()
                && state.protocol.is_draining()
                && state.protocol.streams() == 0
            {
                // The server waits for it: only here is it known that the last answer has arrived.
                self.ended =
                    Some(Status::from_reason(Reason::CONNECTION_LOST, "the server closed the connection"));
            } else if state.protocol.is_used_up() && state.protocol.streams() == 0 && state.closing.is_none()
            {
                let message = "every stream of the connection was used";
                self.ended = Some(Status::from_reason(Reason::CONNECTION_LOST, message));
            } else if let Some(at) = state.closing {
                let idle = state.protocol.streams() == 0
                    && !state.protocol.is_settling()
                    && !state.protocol.wants_transmit()
                    && self.transmit.is_empty()
                    && self.channels.as_ref().is_none_or(|channels| channels.is_empty());
                if idle || at <= now {
                    self.ended = Some(Status::from_reason(
                        Reason::CONNECTION_LOST,
                        "the connection was closed while draining",
                    ));
                }
            }
        }
        state.protocol.poll_transmit(now, &mut self.transmit, TRANSMIT_BUDGET);
        if let Some(channels) = &mut self.channels {
            channels.fill(now, &mut state.protocol);
        }
        // Writing may have made room for senders, or ended streams.
        state.dispatch(&self.link, &mut self.actions);
        self.holds = state.protocol.holds_back();
        if state.protocol.is_draining() {
            self.link.usable.store(false, Relaxed);
        }
        let next = Time::sooner(state.protocol.poll_timeout(), state.closing);
        let next = Time::sooner(next, state.leaving);
        let next = Time::sooner(next, self.broken.as_ref().map(|(until, _)| *until));
        drop(guard);
        if next != self.timer_at {
            self.timer_at = next;
            if !self.led {
                self.timer.reset(next);
            }
        }
    }
}

/// How long a driver looks for bytes before it sleeps, and whether that has been worth it.
#[derive(Debug, Default)]
struct Spin {
    most: Duration,
    /// Spins in a row that found nothing, and how many more are left out for it.
    vain: u32,
    skip: u32,
}

impl Spin {
    /// Those that are left out after spins in vain double up to this many.
    const MOST_SKIPPED: u32 = 64;

    fn is_worth_it(&mut self) -> bool {
        if self.most.is_zero() {
            return false;
        }
        let due = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        due
    }

    fn note(&mut self, found: bool) {
        self.vain = if found { 0 } else { self.vain + 1 };
        self.skip = (1 << self.vain.min(7) >> 1).min(Self::MOST_SKIPPED);
    }
}

fn lost(error: &io::Error) -> Status {
    if let Some(status) = status_in(error) {
        return status.clone();
    }
    Status::from_reason(Reason::CONNECTION_LOST, format!("the connection was lost: {error}"))
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut any = false;
        for _ in 0..MAX_TURNS {
            let may_read = this.may_read();
            let read = this.ended.is_none() && may_read && this.poll_read(cx);
            any |= read;
            this.turn(cx);
            if this.ended.is_some() {
                // Nobody would hear their answers.
                this.actions.calls.clear();
            }
            let called = this.run_actions();
            if called {
                // Handlers that answered at once: their answers share this turn's write.
                this.turn(cx);
                this.run_actions();
            }
            let changed = this.poll_channels(cx);
            let written = match this.poll_write(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
                Poll::Ready(Err(error)) => {
                    this.transmit = TransmitBuffer::default();
                    if this.transport.carrier() == Carrier::Messages {
                        this.ended.get_or_insert_with(|| lost(&error));
                    } else if this.ended.is_none() {
                        // A peer that closes with something unread resets the connection, which is told to the first
                        // that asks: its last words are still there.
                        let until = this.link.runtime.now().after(LAST_WORDS);
                        this.broken = Some((until, lost(&error)));
                        if let Some(socket) = this.transport.pollable() {
                            socket.set_readable();
                        }
                        continue;
                    }
                    true
                }
            };
            if this.ended.is_some() {
                if !written {
                    // A peer that does not read its GOAWAY is not waited for beyond what the transport took.
                    this.transmit = TransmitBuffer::default();
                }
                let _ = this.transport.poll_close(cx);
                return this.finish();
            }
            let (more, at_rest) = {
                let state = lock(&this.link.state);
                let at_rest = state.protocol.streams() == 0;
                let over = state.closing.is_some() && at_rest && !state.protocol.is_settling();
                ((written && (state.protocol.wants_transmit() || over)) || state.dirty, at_rest)
            };
            let due = if this.led {
                this.timer_at.take_if(|at| *at <= this.link.runtime.now()).is_some()
            } else {
                let due = this.timer.poll(cx).is_ready();
                if due {
                    this.timer_at = None;
                    this.timer.reset(None);
                }
                due
            };
            let resumes = !may_read && this.may_read();
            let idle = !read && !more && !due && !changed && !resumes;
            if idle && !this.woke && !this.holds && this.spin(any) {
                any = true;
                continue;
            }
            if idle {
                this.woke = false;
                if at_rest && this.buffer.bytes.is_empty() && !this.led {
                    // Most of what a connection holds: a server may have many that are only open.
                    this.buffer = ReadBuffer::default();
                    this.transport.rest();
                }
                return Poll::Pending;
            }
            if std::mem::take(&mut this.woke) {
                break;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What a thread that drives needs.
impl Driver {
    /// Leaves the runtime's poller and timer for a thread; whether it can.
    pub(crate) fn detach(&mut self) -> bool {
        let Some(socket) = self.transport.pollable() else { return false };
        if let Err(error) = socket.detach() {
            self.ended.get_or_insert_with(|| lost(&error));
        }
        self.timer.reset(None);
        self.led = true;
        true
    }

    /// Goes back to the runtime, which is current.
    pub(crate) fn attach(&mut self) {
        if let Some(Err(error)) = self.transport.pollable().map(|socket| socket.attach()) {
            self.ended.get_or_insert_with(|| lost(&error));
        }
        self.timer.reset(self.timer_at);
        self.led = false;
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) fn socket(&mut self) -> Option<&mut dyn Pollable> {
        self.transport.pollable()
    }

    /// When to drive though nothing has come.
    pub(crate) fn timer_at(&self) -> Option<Time> {
        self.timer_at
    }

    fn finish(&mut self) -> Poll<()> {
        let status = self
            .ended
            .take()
            .unwrap_or_else(|| Status::from_reason(Reason::CONNECTION_LOST, "the connection ended"));
        let mut state = lock(&self.link.state);
        // However the link ended then: that is why.
        let status = state.protocol.unauthenticated().unwrap_or(status);
        let level = match state.closing.is_some() || status.reason() == Reason::CLIENT_CLOSED {
            true => Level::Debug,
            false if state.protocol.is_draining() => Level::Info,
            false => Level::Warn,
        };
        let record = self.link.log.wants(level).map(|_| {
            let endpoint = &self.link.peer.endpoint;
            let sentence = ["the connection to ", endpoint, " is over: ", status.message()];
            of_connection(level, &sentence, Some(status.reason()), endpoint)
        });
        self.actions.records.append(&mut state.records);
        self.actions.records.extend(record);
        state.close(status, &mut self.actions);
        self.link.usable.store(false, Relaxed);
        drop(state);
        self.actions.calls.clear();
        self.run_actions();
        Poll::Ready(())
    }
}

impl Drop for Driver {
    /// A runtime that stops drops the driver: nobody may wait for ever.
    fn drop(&mut self) {
        let open = lock(&self.link.state).closed.is_none();
        if open {
            self.ended
                .get_or_insert_with(|| Status::from_reason(Reason::CONNECTION_LOST, "the runtime stopped"));
            let _ = self.finish();
        }
    }
}
