//! `script://`: servers that do what their endpoint says, in virtual time, with no socket and nothing random. What a client makes of
//! their failures is noted step by step, and is the same to the byte wherever the core runs.
//!
//! `script://a/1-2=UNAVAILABLE;3=hang,script://b/dial:1=refuse` are two servers. Rules stand behind the server's name, with
//! semicolons between them; of those that fit the first counts. `docs/policies.md` has their grammar, and the two methods
//! that the script itself answers: `/script/sleep/MS` and `/script/trace`.
//!
//! The whole of a call happens on the thread that begins it: time stands still but while a call is open, and then goes on to the next
//! timer whenever no task can do anything.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fmt::Write,
    io::{self, IoSlice},
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use valkyrie_protocol::{
    Code, Config, Connection, ErrorCode, Event, Finish, Metadata, Reason, Role, Status, StreamKey, Time,
    TransmitBuffer,
};

use crate::{
    BoxFuture, Connector, Endpoint, ReadBuffer, Response, Runtime, Timer, Transport,
    connection::lock,
    observer::{self, Step},
    runtime::sleep_until,
};

/// The scheme of its endpoints.
pub(crate) const SCHEME: &str = "script";
/// What a call for the script itself begins with.
const OWN: &str = "/script/";
/// How long an answer or a connection takes that no rule names another time for.
const DELAY: Duration = Duration::from_millis(1);
/// Time ends here: what still waits then waits for ever.
const END: Time = Time::from_micros(7 * 86_400 * 1_000_000);
/// The trace holds so much; what comes later is not noted.
const MAX_TRACE: usize = 1 << 20;

/// The script of one client: its servers, its clock and its tasks.
#[derive(Clone)]
pub(crate) struct Script(Arc<World>);

struct World {
    servers: HashMap<String, Vec<Rule>>,
    seed: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Time,
    last_id: u64,
    tasks: HashMap<u64, BoxFuture<'static, ()>>,
    ready: VecDeque<u64>,
    queued: HashSet<u64>,
    timers: BTreeMap<(Time, u64), Waker>,
    /// Somebody runs the tasks, or is about to.
    running: bool,
    /// Calls that are to begin before time goes on.
    together: u32,
    calls: u32,
    trace: String,
    /// Calls and connections that each server has had.
    counts: HashMap<String, (u32, u32)>,
}

struct Rule {
    dial: bool,
    which: Which,
    action: Action,
    delay: Duration,
}

enum Which {
    /// Counted from 1.
    Count(u32, u32),
    /// In microseconds.
    Time(u64, u64),
}

#[derive(Clone)]
enum Action {
    Ok,
    Fail(Code, Option<Duration>),
    Hang,
    Lose,
    Refuse,
    Leave,
}

/// How long time may go on for.
#[derive(Clone, Copy)]
enum Until {
    Idle,
    NoCall,
    Time(Time),
}

impl Script {
    /// Reads what the servers do.
    ///
    /// # Errors
    /// INVALID_ENDPOINT, naming the rule and what it may be.
    pub(crate) fn new(endpoints: &[(Endpoint, u8)]) -> Result<Self, Status> {
        let mut servers = HashMap::new();
        let mut seed = 1;
        for (endpoint, _) in endpoints {
            if endpoint.scheme() != SCHEME {
                let message =
                    format!("endpoint {endpoint}: beside {SCHEME}:// there are only others of a script");
                return Err(Status::from_reason(Reason::INVALID_ENDPOINT, message));
            }
            let name = endpoint.authority();
            let rules = endpoint.address().get(name.len() + 1..).unwrap_or_default();
            let mut list = Vec::new();
            for rule in rules.split(';').filter(|rule| !rule.is_empty()) {
                match (rule.strip_prefix("seed=").map(str::parse), read_rule(rule)) {
                    (Some(Ok(number)), _) => seed = number,
                    (None, Some(rule)) => list.push(rule),
                    _ => {
                        let message = format!(
                            "endpoint {endpoint}: {rule:?} is no rule; write WHICH=WHAT, such as 1-2=UNAVAILABLE, dial:3+=refuse@5ms, 1000ms-2000ms=lose or seed=7"
                        );
                        return Err(Status::from_reason(Reason::INVALID_ENDPOINT, message));
                    }
                }
            }
            servers.insert(name.to_owned(), list);
        }
        Ok(Self(Arc::new(World { servers, seed, state: Mutex::default() })))
    }
}

/// `[dial:]WHICH=WHAT[~PUSHBACK][@DELAY]`
fn read_rule(text: &str) -> Option<Rule> {
    let (which, what) = text.split_once('=')?;
    let (dial, which) = match which.strip_prefix("dial:") {
        Some(which) => (true, which),
        None => (false, which),
    };
    let (what, delay) = match what.split_once('@') {
        Some((what, delay)) => (what, milliseconds(delay)?),
        None => (what, DELAY),
    };
    let (what, pushback) = match what.split_once('~') {
        Some((what, "never")) => (what, Some(Duration::MAX)),
        Some((what, pushback)) => (what, Some(milliseconds(pushback)?)),
        None => (what, None),
    };
    let action = match what {
        "ok" => Action::Ok,
        "hang" => Action::Hang,
        "refuse" => Action::Refuse,
        "lose" if !dial => Action::Lose,
        "leave" if !dial => Action::Leave,
        code if !dial => Action::Fail(Code::from_name(code).filter(|code| *code != Code::Ok)?, pushback),
        _ => return None,
    };
    if pushback.is_some() && !matches!(action, Action::Fail(..)) {
        return None;
    }
    Some(Rule { dial, which: read_which(which)?, action, delay })
}

fn read_which(text: &str) -> Option<Which> {
    if text == "*" {
        return Some(Which::Count(0, u32::MAX));
    }
    let (from, to) = match (text.strip_suffix('+'), text.split_once('-')) {
        (Some(from), _) => (from, None),
        (None, Some((from, to))) => (from, Some(to)),
        (None, None) => (text, Some(text)),
    };
    match milliseconds(from) {
        Some(from) => {
            let to = to.map_or(Some(Duration::MAX), milliseconds)?;
            Some(Which::Time(from.as_micros() as u64, u64::try_from(to.as_micros()).unwrap_or(u64::MAX)))
        }
        None => Some(Which::Count(from.parse().ok()?, to.map_or(Some(u32::MAX), |to| to.parse().ok())?)),
    }
}

fn milliseconds(text: &str) -> Option<Duration> {
    Some(Duration::from_millis(u64::from(text.strip_suffix("ms")?.parse::<u32>().ok()?)))
}

impl World {
    /// What the server does about its next call or connection, and after which time.
    fn decide(&self, server: &str, dial: bool) -> (Action, Duration) {
        let state = &mut *lock(&self.state);
        let (calls, dials) = state.counts.entry(server.to_owned()).or_default();
        let count = if dial { dials } else { calls };
        *count += 1;
        let fits = |rule: &&Rule| {
            rule.dial == dial
                && match rule.which {
                    Which::Count(from, to) => (from..=to).contains(count),
                    Which::Time(from, to) => (from..to).contains(&state.now.as_micros()),
                }
        };
        let rule = self.servers.get(server).and_then(|rules| rules.iter().find(fits));
        rule.map_or((Action::Ok, DELAY), |rule| (rule.action.clone(), rule.delay))
    }

    fn now(&self) -> Time {
        lock(&self.state).now
    }

    /// Runs what is ready, unless somebody does.
    fn run_if_idle(self: &Arc<Self>) {
        let running = std::mem::replace(&mut lock(&self.state).running, true);
        if !running {
            self.run(Until::Idle);
        }
    }

    /// Runs tasks, and lets time go on when none is ready. The caller has set `running`.
    fn run(self: &Arc<Self>, until: Until) {
        loop {
            let mut state = lock(&self.state);
            if let Some(id) = state.ready.pop_front() {
                state.queued.remove(&id);
                let Some(mut task) = state.tasks.remove(&id) else { continue };
                drop(state);
                let waker = Waker::from(Arc::new(Task { world: Arc::downgrade(self), id }));
                if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                    lock(&self.state).tasks.insert(id, task);
                }
                continue;
            }
            let end = match until {
                Until::NoCall if state.calls > 0 => END,
                Until::Time(end) => end,
                Until::Idle | Until::NoCall => {
                    state.running = false;
                    return;
                }
            };
            match state.timers.first_key_value().map(|((at, _), _)| *at) {
                Some(at) if at <= end => {
                    state.now = state.now.max(at);
                    let later = state.timers.split_off(&(at, u64::MAX));
                    let due = std::mem::replace(&mut state.timers, later);
                    drop(state);
                    due.into_values().for_each(Waker::wake);
                }
                _ => {
                    if let Until::Time(end) = until {
                        state.now = state.now.max(end);
                    }
                    state.running = false;
                    return;
                }
            }
        }
    }
}

struct Task {
    world: Weak<World>,
    id: u64,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        let Some(world) = self.world.upgrade() else { return };
        {
            let mut state = lock(&world.state);
            if state.queued.insert(self.id) {
                state.ready.push_back(self.id);
            }
        }
        world.run_if_idle();
    }
}

impl Runtime for Script {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        {
            let mut state = lock(&self.0.state);
            state.last_id += 1;
            let id = state.last_id;
            state.tasks.insert(id, task);
            state.queued.insert(id);
            state.ready.push_back(id);
        }
        self.0.run_if_idle();
    }

    fn now(&self) -> Time {
        self.0.now()
    }

    fn timer(&self) -> Box<dyn Timer> {
        let mut state = lock(&self.0.state);
        state.last_id += 1;
        Box::new(VirtualTimer { world: Arc::downgrade(&self.0), id: state.last_id, deadline: None })
    }

    fn seed(&self) -> u64 {
        self.0.seed
    }
}

struct VirtualTimer {
    world: Weak<World>,
    id: u64,
    deadline: Option<Time>,
}

impl Timer for VirtualTimer {
    fn reset(&mut self, deadline: Option<Time>) {
        if let (Some(before), Some(world)) =
            (std::mem::replace(&mut self.deadline, deadline), self.world.upgrade())
        {
            lock(&world.state).timers.remove(&(before, self.id));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(deadline), Some(world)) = (self.deadline, self.world.upgrade()) else {
            return Poll::Pending;
        };
        let mut state = lock(&world.state);
        if deadline <= state.now {
            return Poll::Ready(());
        }
        state.timers.insert((deadline, self.id), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for VirtualTimer {
    fn drop(&mut self) {
        self.reset(None);
    }
}

/// What the client asks and tells of its calls.
impl Script {
    /// The answer to a call that is not for a server.
    pub(crate) fn answer(&self, method: &str) -> Option<Result<Response, Status>> {
        let asked = method.strip_prefix(OWN)?;
        let (what, number) = asked.split_once('/').unwrap_or((asked, ""));
        let message = match (what, number.parse::<u32>()) {
            ("trace", Err(_)) => Bytes::from(std::mem::take(&mut lock(&self.0.state).trace)),
            ("sleep", Ok(ms)) => {
                let mut state = lock(&self.0.state);
                let end = state.now.after(Duration::from_millis(u64::from(ms)));
                let running = std::mem::replace(&mut state.running, true);
                drop(state);
                if !running {
                    self.0.run(Until::Time(end));
                }
                Bytes::new()
            }
            ("together", Ok(count)) => {
                lock(&self.0.state).together = count;
                Bytes::new()
            }
            _ => {
                let message = format!(
                    "a script answers no {method}, only {OWN}trace, {OWN}sleep/MS and {OWN}together/N"
                );
                return Some(Err(Status::from_reason(Reason::UNKNOWN_METHOD, message)));
            }
        };
        Some(Ok(Response::new(message, Metadata::new(), Metadata::new())))
    }

    /// A call is about to begin on this thread.
    pub(crate) fn hold(&self) {
        lock(&self.0.state).running = true;
    }

    /// It has begun.
    pub(crate) fn release(&self) {
        let mut state = lock(&self.0.state);
        state.together = state.together.saturating_sub(1);
        if state.together == 0 {
            drop(state);
            self.0.run(Until::NoCall);
        }
    }

    /// The client is gone.
    pub(crate) fn over(&self) {
        let tasks = std::mem::take(&mut lock(&self.0.state).tasks);
        drop(tasks);
    }

    /// Something happened.
    pub(crate) fn note(&self, event: &observer::Event<'_>) {
        let mut state = lock(&self.0.state);
        match event.step {
            Step::Call { .. } => state.calls += 1,
            Step::Ended { .. } => state.calls = state.calls.saturating_sub(1),
            _ => {}
        }
        if state.trace.len() < MAX_TRACE {
            // A string takes everything.
            let _ = write_step(&mut state.trace, event);
        }
    }
}

/// One line: the time in ms and what happened.
fn write_step(out: &mut String, event: &observer::Event<'_>) -> std::fmt::Result {
    let outcome = |failure: Option<&Status>| match failure {
        None => Cow::Borrowed("OK"),
        Some(status) if status.reason() == Reason::NONE => status.code().name().into(),
        Some(status) => format!("{} {}", status.code().name(), status.reason()).into(),
    };
    // What is told beside, a trace does not have.
    if let Step::Connected { .. } | Step::Greeted { .. } = event.step {
        return Ok(());
    }
    write_time(out, event.at)?;
    match event.step {
        Step::Call { method, idempotent, deadline } => {
            write!(out, "call {method}{}", if idempotent { " idempotent" } else { "" })?;
            if let Some(deadline) = deadline {
                out.push_str(" until ");
                write_time(out, deadline)?;
            }
        }
        Step::Waits => out.push_str("wait"),
        Step::Attempt { number, server } => write!(out, "attempt {number} {}", server.authority())?,
        Step::AttemptEnded { number, server, failure } => {
            let server = server.map_or("-", Endpoint::authority);
            write!(out, "attempt {number} {server} {}", outcome(failure))?;
        }
        Step::Retry { at, transparent } => {
            out.push_str(if transparent { "transparent retry at " } else { "retry at " });
            write_time(out, at)?;
        }
        Step::NoRetry { why } => write!(out, "no retry: {}", why.name())?,
        Step::Ended { failure } => write!(out, "call {}", outcome(failure))?,
        Step::Dial { server } => write!(out, "dial {}", server.authority())?,
        Step::Dialled { server, failure } => write!(out, "dial {} {}", server.authority(), outcome(failure))?,
        Step::Lost { server, .. } => write!(out, "lost {}", server.authority())?,
        Step::Breaker { server, method, edge } => {
            let server = server.authority();
            write!(out, "breaker {server} {method} {} to {}", edge.from.name(), edge.to.name())?;
        }
        Step::Connected { .. } | Step::Greeted { .. } => {}
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    Ok(())
}

fn write_time(out: &mut String, time: Time) -> std::fmt::Result {
    write!(out, "{}.{:03} ", time.as_micros() / 1_000, time.as_micros() % 1_000)
}

impl Connector for Script {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let (action, delay) = self.0.decide(endpoint.authority(), true);
            sleep_until(self, self.now().after(delay)).await;
            match action {
                Action::Hang => std::future::pending().await,
                Action::Refuse => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => Ok(Box::new(Pipe::new(self, endpoint)) as Box<dyn Transport>),
            }
        })
    }
}

/// A connection to a server of the script, which lives in it.
struct Pipe {
    script: Script,
    name: String,
    server: Connection,
    inbox: BytesMut,
    out: TransmitBuffer,
    /// What is to be done, and when.
    due: Vec<(Time, StreamKey, Action)>,
    timer: Box<dyn Timer>,
    reader: Option<Waker>,
    lost: bool,
    closed: bool,
}

impl Pipe {
    fn new(script: &Script, endpoint: &Endpoint) -> Self {
        Self {
            server: Connection::new(Config::new(Role::Server), script.now()),
            name: endpoint.authority().to_owned(),
            inbox: BytesMut::new(),
            out: TransmitBuffer::default(),
            due: Vec::new(),
            timer: script.timer(),
            reader: None,
            lost: false,
            closed: false,
            script: script.clone(),
        }
    }

    fn act(&mut self, key: StreamKey, action: Action) {
        let finish = |name: &str| {
            Ok(Finish { message: Some(Bytes::copy_from_slice(name.as_bytes())), ..Finish::default() })
        };
        match action {
            Action::Ok => self.server.respond(key, finish(&self.name)),
            Action::Leave => {
                self.server.go_away("as the script says");
                self.server.respond(key, finish(&self.name));
            }
            Action::Fail(code, pushback) => {
                let status = Status::new(code, "as the script says");
                self.server.respond(key, Err(pushback.into_iter().fold(status, Status::with_pushback)));
            }
            Action::Refuse => self.server.reset(key, ErrorCode::REFUSED),
            Action::Lose => self.lost = true,
            Action::Hang => {}
        }
    }
}

impl Transport for Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        loop {
            let now = self.script.now();
            self.due.sort_by_key(|(at, ..)| *at);
            while self.due.first().is_some_and(|(at, ..)| *at <= now) {
                let (_, key, action) = self.due.remove(0);
                self.act(key, action);
            }
            self.server.poll_transmit(now, &mut self.out, 64 << 10);
            if !self.out.is_empty() && !self.lost {
                let mut parts = vec![IoSlice::new(&[]); self.out.part_count()];
                let filled = self.out.parts(&mut parts);
                parts[..filled].iter().for_each(|part| into.put(part));
                drop(parts);
                let len = self.out.len();
                self.out.consume(len);
                return Poll::Ready(Ok(len));
            }
            if self.lost {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if self.closed {
                return Poll::Ready(Ok(0));
            }
            self.timer.reset(self.due.first().map(|(at, ..)| *at));
            self.reader = Some(cx.waker().clone());
            if self.timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_write(&mut self, _: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.lost {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let now = self.script.now();
        parts.iter().for_each(|part| self.inbox.extend_from_slice(part));
        // What is wrong with it, the server tells by its GOAWAY.
        let _ = self.server.handle_read(now, &mut self.inbox);
        while let Some(event) = self.server.poll_event() {
            match event {
                Event::Call { key, message, .. } => {
                    self.server.consumed(key, message.map_or(0, |message| message.len()));
                    let (action, delay) = self.script.0.decide(&self.name, false);
                    self.due.push((now.after(delay), key, action));
                }
                Event::Message { key, message } => self.server.consumed(key, message.len()),
                _ => {}
            }
        }
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed = true;
        self.reader.take().into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }
}
