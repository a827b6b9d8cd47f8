//! Operations: submit, complete exactly once, cancel.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    sync::{Mutex as AsyncMutex, Notify},
};
use valkyrie_sdk::{
    Bytes, Client, ClientBuilder, Connectivity, IdempotencyKey, Level, Log, Metadata, Pem, Priority, Reason,
    Record, RecvStream, Response, Security, SendStream, Sink, Status, Submission, TokenSource, TokioRuntime,
    expecting_to_lead, policy::ServiceConfig,
};

use crate::{
    Completion, End, Handle, Queue, Value,
    fork::{Held, OwnedGuard, generation},
    handle::{Table, lock},
    ledger::{Ledger, NEVER},
    log::Logs,
    report,
    requests::{Notice, Requests},
    runtime,
};

/// Options of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Time limit of unary calls that give none, in milliseconds. Default 5,000.
    pub timeout_ms: u64,
    /// Time limit of making a connection, in milliseconds. Default 5,000.
    pub connect_timeout_ms: u64,
    /// The certificates to trust: a server's chain must end in one of them. Default: none.
    pub trusted_certificates: Option<Pem>,
    /// Whether to trust the authorities that the system trusts, beside those. Default false.
    pub system_roots: bool,
    /// The authorities' revocation lists. Default: none.
    pub revocation_lists: Option<Pem>,
    /// The certificate chain that the client shows to a server which asks, and its private key. Default: none.
    pub identity: Option<(Pem, Pem)>,
    /// The name that the server's certificate must be for. Default: the endpoint's host.
    pub server_name: Option<String>,
    /// Whether to speak TLS 1.3 inside of whatever carries the bytes. Default false.
    pub sealed: bool,
    /// The least protection of connections. Default: the sdk's choice, by what else is given.
    pub min_security: Option<Security>,
    /// What says whom the client calls for. Default: nothing.
    pub token: Option<TokenOption>,
    /// What the client does about failures: JSON with the keys of docs/policies.md. Default: theirs.
    pub service_config: Option<String>,
    /// How long the server may be silent while calls are open until it is asked whether it is there, in milliseconds; 0 or
    /// `u64::MAX`: never. Default: the sdk's, 30,000.
    pub keepalive_ms: Option<u64>,
    /// How long its answer may take, in milliseconds. Default: the sdk's, 10,000.
    pub keepalive_timeout_ms: Option<u64>,
    /// As `keepalive_ms` while no call is open. Default: the sdk's, never.
    pub keepalive_idle_ms: Option<u64>,
}

/// Where a client has its tokens from.
#[derive(Clone)]
#[non_exhaustive]
pub enum TokenOption {
    /// The same always, or whatever else the adapter asks, which may not enter a host's language from a native thread.
    Source(Arc<dyn TokenSource>),
    /// The host: it waits by [`token_wanted`], and answers by [`token_provide`].
    Host,
}

impl fmt::Debug for TokenOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source(_) => "Source(…)",
            Self::Host => "Host",
        })
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout_ms: valkyrie_sdk::DEFAULT_TIMEOUT_MS,
            connect_timeout_ms: valkyrie_sdk::DEFAULT_CONNECT_TIMEOUT_MS,
            trusted_certificates: None,
            system_roots: false,
            revocation_lists: None,
            identity: None,
            server_name: None,
            sealed: false,
            min_security: None,
            token: None,
            service_config: None,
            keepalive_ms: None,
            keepalive_timeout_ms: None,
            keepalive_idle_ms: None,
        }
    }
}

/// Options of a call.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// Time limit in milliseconds. `None`: the client's for unary calls, none for streams. `u64::MAX`: none.
    pub timeout_ms: Option<u64>,
    /// Call metadata.
    pub metadata: Metadata,
    /// Priority class. Default normal.
    pub priority: Priority,
    /// Whether a unary call may be executed twice. Default false, or what the service config says of the method.
    pub idempotent: bool,
    /// What tells a unary call from every other, so that a server that keeps keys runs it once. Default: none.
    pub idempotency_key: Option<IdempotencyKey>,
}

impl From<CallOptions> for valkyrie_sdk::CallOptions {
    fn from(options: CallOptions) -> Self {
        let mut out = Self::new()
            .with_metadata(options.metadata)
            .with_priority(options.priority)
            .with_idempotent(options.idempotent);
        out.timeout = options.timeout_ms.map(milliseconds);
        out.idempotency_key = options.idempotency_key;
        out
    }
}

/// `u64::MAX` is no limit.
fn milliseconds(ms: u64) -> Duration {
    if ms == u64::MAX { Duration::MAX } else { Duration::from_millis(ms) }
}

/// A client as the boundary keeps it: what it is made of, and the sdk's client of this fork generation.
struct ClientEntry {
    endpoint: String,
    options: ClientOptions,
    current: Mutex<Option<Current>>,
    closed: AtomicBool,
    /// What took the place of the options' service config.
    service_config: Mutex<Option<String>>,
}

/// Of one fork generation.
#[derive(Clone)]
struct Current {
    made_in: u64,
    client: Client,
    /// What it asks the host for.
    requests: Option<Arc<Requests<Arc<Token>>>>,
}

/// A stream as the boundary keeps it. Each direction has a lock that is fair, so that its operations keep the order in
/// which they were submitted.
struct StreamEntry {
    made_in: u64,
    client: Handle,
    /// When its last operation must be complete.
    ends: Option<Instant>,
    opening: Mutex<Opening>,
    changed: Notify,
    sender: AsyncMutex<Option<SendStream>>,
    receiver: AsyncMutex<Option<Receiver>>,
    cancelled: Notify,
    is_cancelled: AtomicBool,
}

enum Opening {
    Waiting,
    /// The halves until their first operation takes them.
    Open(Option<SendStream>, Option<RecvStream>),
    Failed(Status),
}

struct Receiver {
    stream: RecvStream,
    /// Messages that a cancelled operation had taken.
    kept: VecDeque<Bytes>,
}

/// What an operation does, and how that is stopped.
pub(crate) enum Work {
    Unary(Option<Submission>),
    Task(Arc<Notify>),
    /// It waits for a change that may never come.
    Watch(Arc<Notify>),
    /// It waits for records to log, or to be asked for a token.
    Nothing,
}

impl Work {
    fn stop(self) {
        match self {
            Self::Unary(submission) => {
                if let Some(submission) = submission {
                    submission.cancel();
                }
            }
            Self::Task(stop) | Self::Watch(stop) => stop.notify_one(),
            Self::Nothing => {}
        }
    }
}

type Outcome = Result<Value, Status>;

static CLIENTS: Table<ClientEntry> = Table::new();
static STREAMS: Table<StreamEntry> = Table::new();
static LEDGER: Ledger<Queue, Work> =
    Ledger { pending: Mutex::new(None), next: AtomicU64::new(1), settled: AtomicU64::new(0) };

pub(crate) fn hold(held: &mut Held) {
    for entry in CLIENTS.hold(held) {
        held.push(Box::new(OwnedGuard::lock(entry.clone(), |entry| &entry.current)));
        held.push(Box::new(OwnedGuard::lock(entry, |entry| &entry.service_config)));
    }
    STREAMS.hold(held);
    held.push(Box::new(LEDGER.lock()));
}

fn closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed")
}

fn cancelled() -> Status {
    Status::from_reason(Reason::CANCELLED, "the call was cancelled")
}

fn forked() -> Status {
    Status::from_reason(
        Reason::FORKED,
        "the process forked while the call ran; the call goes on in the parent",
    )
}

fn panicked() -> Status {
    Status::from_reason(Reason::INTERNAL, "the operation panicked")
}

fn stale_stream() -> Status {
    Status::from_reason(Reason::STREAM_MISUSE, "the stream is closed")
}

fn queue_closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the queue is closed")
}

/// Completes an operation. The first outcome counts; a later one is given back.
fn complete(op: u64, outcome: Outcome) -> Option<Outcome> {
    LEDGER.complete(op, Completion { op, outcome }).err().map(|late| late.outcome)
}

/// The right to complete one operation. Dropped unused, it completes with ABANDONED, so no path can lose a promise.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) op: u64,
    used: AtomicBool,
}

impl Token {
    /// Accepts an operation that must be complete within that time.
    pub(crate) fn new(queue: &Arc<Queue>, work: Work, limit: Duration) -> Result<Arc<Self>, Status> {
        let due = match limit {
            Duration::MAX => NEVER,
            limit => {
                let now = now();
                give_up_overdue(queue, now);
                now.saturating_add(micros(limit.saturating_add(PATIENCE)))
            }
        };
        let op = LEDGER.accept(queue, generation(), due, work).ok_or_else(queue_closed)?;
        Ok(Arc::new(Self { op, used: AtomicBool::new(false) }))
    }

    pub(crate) fn complete(&self, outcome: Outcome) -> Option<Outcome> {
        self.used.store(true, Ordering::Release);
        complete(self.op, outcome)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if !*self.used.get_mut() {
            let message = "the operation was dropped without an outcome";
            complete(self.op, Err(Status::from_reason(Reason::ABANDONED, message)));
        }
    }
}

impl Sink for Token {
    fn complete(&self, _token: u64, result: Result<Response, Status>) {
        self.complete(result.map(Value::Response));
    }
}

/// How long the sdk lets calls in flight go on at a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long after its deadline an operation may take to be told so.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(NEVER)
}

/// Microseconds since some time, a few milliseconds more or less: every operation asks.
#[cfg(target_os = "linux")]
pub(crate) fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable, and this clock is there since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    micros(Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0)))
}

/// Microseconds since the first time.
#[cfg(not(target_os = "linux"))]
pub(crate) fn now() -> u64 {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    micros(ORIGIN.get_or_init(Instant::now).elapsed())
}

/// The core ends what has passed its deadline, when its one thread comes to it. Where that thread does not, because
/// something keeps it busy or it lost the operation, whoever waits for the operation ends it.
pub(crate) fn watch(queue: &Queue) {
    if queue.may_be_overdue() {
        give_up_overdue(queue, now());
    }
}

fn give_up_overdue(queue: &Queue, now: u64) {
    for op in LEDGER.overdue(queue, now) {
        let message = "the deadline passed, and the core did not come to say so";
        let status = Status::from_reason(Reason::DEADLINE_EXCEEDED, message);
        let Ok(work) = LEDGER.complete(op, Completion { op, outcome: Err(status) }) else { continue };
        if Logs.enabled(Level::Warn) {
            let message = format!("{message}: the runtime is kept busy, or an operation was lost");
            Logs.log(
                Record::new(Level::Warn, "valkyrie.boundary", message).with("operation", &op.to_string()),
            );
        }
        // Not here: it takes locks that whoever is busy may hold.
        if let Ok(runtime) = runtime::runtime() {
            runtime.spawn(async move { work.stop() });
        }
    }
}

/// In a child: fails what was under way at the fork, once. Every way in begins with it.
pub(crate) fn settle() {
    LEDGER.settle(generation(), |op| Completion { op, outcome: Err(forked()) });
}

impl ClientEntry {
    /// The sdk's client of this process: a child of a fork makes its own, which dials anew.
    fn client(&self) -> Result<Client, Status> {
        self.with_current(|current| current.client.clone())
    }

    fn with_current<T>(&self, read: impl FnOnce(&Current) -> T) -> Result<T, Status> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let runtime = runtime::runtime()?;
        let now = generation();
        let mut current = lock(&self.current);
        if let Some(current) = &*current
            && current.made_in == now
        {
            return Ok(read(current));
        }
        // Its connection belongs to the parent: closing it here would end the parent's stream.
        std::mem::forget(current.take());
        let _entered = runtime.enter();
        let requests =
            matches!(self.options.token, Some(TokenOption::Host)).then(|| Arc::new(Requests::new()));
        let client = self.build(runtime.client(), requests.clone())?;
        Ok(read(current.insert(Current { made_in: now, client, requests })))
    }

    fn build(
        &self,
        builder: ClientBuilder,
        requests: Option<Arc<Requests<Arc<Token>>>>,
    ) -> Result<Client, Status> {
        let options = &self.options;
        let mut builder = builder
            .endpoint(self.endpoint.clone())
            .timeout_ms(options.timeout_ms)
            .connect_timeout_ms(options.connect_timeout_ms)
            .system_roots(options.system_roots)
            .sealed(options.sealed);
        if let Some(pem) = &options.trusted_certificates {
            builder = builder.trusted_certificates(pem.clone());
        }
        if let Some(pem) = &options.revocation_lists {
            builder = builder.revocation_lists(pem.clone());
        }
        if let Some((certificates, key)) = &options.identity {
            builder = builder.identity(certificates.clone(), key.clone());
        }
        if let Some(name) = &options.server_name {
            builder = builder.server_name(name.clone());
        }
        if let Some(least) = options.min_security {
            builder = builder.min_security(least);
        }
        if let Some(requests) = requests {
            builder = builder.token_source(requests);
        }
        if let Some(TokenOption::Source(source)) = &options.token {
            builder = builder.token_source(source.clone());
        }
        let later = lock(&self.service_config).clone();
        if let Some(config) = later.as_ref().or(options.service_config.as_ref()) {
            builder = builder.service_config(ServiceConfig::parse(config)?);
        }
        let or_never = |ms: u64| if ms == u64::MAX { 0 } else { ms };
        if let Some(ms) = options.keepalive_ms {
            builder = builder.keepalive_ms(or_never(ms));
        }
        if let Some(ms) = options.keepalive_timeout_ms {
            builder = builder.keepalive_timeout_ms(ms);
        }
        if let Some(ms) = options.keepalive_idle_ms {
            builder = builder.keepalive_idle_ms(or_never(ms));
        }
        if let Some(runtime) = TokioRuntime::current() {
            builder = builder.runtime(Arc::new(runtime));
        }
        builder.connect_lazily()
    }

    fn close_now(&self) {
        self.closed.store(true, Ordering::Release);
        let current = lock(&self.current).take();
        match current {
            Some(current) if current.made_in == generation() => {
                current.client.close_now();
                current.end_requests();
            }
            parents => std::mem::forget(parents),
        }
    }
}

impl Current {
    fn end_requests(&self) {
        if let Some(requests) = &self.requests {
            requests.end();
        }
    }
}

impl Notice for Arc<Token> {
    fn number(&self) -> u64 {
        self.op
    }

    fn tell(&self) -> bool {
        self.complete(Ok(Value::Done)).is_none()
    }

    fn end(&self, why: Status) {
        self.complete(Err(why));
    }
}

/// The output of `work`, `None` when it panicked.
async fn guarded<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Some),
        Err(_) => Poll::Ready(None),
    })
    .await
}

/// Runs `task` on this thread as far as it comes without waiting, and the rest of it on the runtime. What need not
/// wait costs no wake, and what does has its place in the line before this returns.
fn start(runtime: &Runtime, task: impl Future<Output = ()> + Send + 'static) {
    let mut task = Box::pin(task);
    let _entered = runtime.enter();
    if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        runtime.spawn(task);
    }
}

/// Runs `submit`, whose operation of `client` completes in `queue`. Where a thread is about to wait there, and may drive
/// the connection, nobody is woken to do so.
fn expecting<T>(client: Handle, queue: &Queue, submit: impl FnOnce() -> T) -> T {
    queue.expect(client);
    if queue.may_drive() { expecting_to_lead(submit) } else { submit() }
}

/// The sdk's client of this process, where there is one.
pub(crate) fn current_client(handle: Handle) -> Option<Client> {
    let entry = CLIENTS.get(handle)?;
    let current = lock(&entry.current);
    current.as_ref().filter(|current| current.made_in == generation()).map(|current| current.client.clone())
}

/// Accepts an operation and starts its `work`, which completes the token within `limit`. A cancel stops it, a panic completes it.
fn begin<W: Future<Output = ()> + Send + 'static>(
    queue: &Arc<Queue>,
    limit: Duration,
    work: impl FnOnce(Arc<Token>) -> W,
) -> Result<u64, Status> {
    begin_as(Work::Task, queue, limit, work)
}

fn begin_as<W: Future<Output = ()> + Send + 'static>(
    kind: fn(Arc<Notify>) -> Work,
    queue: &Arc<Queue>,
    limit: Duration,
    work: impl FnOnce(Arc<Token>) -> W,
) -> Result<u64, Status> {
    let runtime = runtime::runtime()?;
    let cancel = Arc::new(Notify::new());
    let token = Token::new(queue, kind(cancel.clone()), limit)?;
    let op = token.op;
    let work = guarded(work(token.clone()));
    start(&runtime, async move {
        tokio::select! {
            biased;
            () = cancel.notified() => {}
            finished = work => if finished.is_none() {
                token.complete(Err(panicked()));
            }
        }
    });
    Ok(op)
}

/// As [`begin`], for an operation of a stream.
fn begin_of<W: Future<Output = ()> + Send + 'static>(
    stream: &Arc<StreamEntry>,
    queue: &Arc<Queue>,
    work: impl FnOnce(Arc<StreamEntry>, Arc<Token>) -> W,
) -> Result<u64, Status> {
    let (entry, limit) = (stream.clone(), stream.limit());
    expecting(stream.client, queue, || begin(queue, limit, |token| work(entry, token)))
}

/// Makes a client and its first connection. The handle is valid at once; the operation completes when the connection
/// stands, or with the reason why it does not, after which the client still may be used or freed.
///
/// # Errors
/// INVALID_ENDPOINT, UNSUPPORTED_SCHEME or INVALID_CONFIGURATION for what is written wrong; CLIENT_CLOSED for a queue
/// that is closed.
pub fn connect(queue: &Arc<Queue>, endpoint: &str, options: ClientOptions) -> Result<(Handle, u64), Status> {
    let client = make(endpoint, options)?;
    match ready(client, queue) {
        Ok(op) => Ok((client, op)),
        Err(status) => {
            CLIENTS.remove(client);
            Err(status)
        }
    }
}

/// Makes a client and no connection yet: for a host that has to wait for its requests of tokens before.
///
/// # Errors
/// As [`connect`].
pub fn make(endpoint: &str, options: ClientOptions) -> Result<Handle, Status> {
    let entry = Arc::new(ClientEntry {
        endpoint: endpoint.to_owned(),
        options,
        current: Mutex::new(None),
        closed: AtomicBool::new(false),
        service_config: Mutex::new(None),
    });
    entry.client()?;
    CLIENTS.insert(entry).ok_or_else(|| Status::from_reason(Reason::QUEUE_FULL, "too many clients are alive"))
}

/// Makes the first connection of a client; completes when it stands, or with the reason why it does not.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed, and for a queue that is closed.
pub fn ready(client: Handle, queue: &Arc<Queue>) -> Result<u64, Status> {
    let entry = CLIENTS.get(client).ok_or_else(closed)?;
    let client = entry.client()?;
    let limit = Duration::from_millis(entry.options.connect_timeout_ms);
    begin(queue, limit, |token| async move {
        token.complete(client.ready().await.map(|()| Value::Done));
    })
}

/// Accepts an operation that is complete: the adapter had its outcome already.
///
/// # Errors
/// CLIENT_CLOSED for a queue that is closed.
pub fn done(queue: &Arc<Queue>, value: Value) -> Result<u64, Status> {
    let token = Token::new(queue, Work::Unary(None), Duration::MAX)?;
    token.complete(Ok(value));
    Ok(token.op)
}

/// Begins a unary call.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed, and for a queue that is closed.
pub fn call(
    client: Handle,
    queue: &Arc<Queue>,
    method: &str,
    message: Bytes,
    options: CallOptions,
) -> Result<u64, Status> {
    let (of, limit) = client_of(client)?;
    expecting(client, queue, || begin_call(&of, limit, queue, method, message, options))
}

/// Begins unary calls, in order; `accepted` is told of each what [`call`] would return. For hosts that gather calls and
/// cross with many: what calls of one client share is looked up once.
pub fn call_many<'a>(
    queue: &Arc<Queue>,
    calls: impl IntoIterator<Item = (Handle, &'a str, Bytes, CallOptions)>,
    mut accepted: impl FnMut(Result<u64, Status>),
) {
    let mut last: Option<(Handle, Client, Duration)> = None;
    for (handle, method, message, options) in calls {
        if last.as_ref().is_none_or(|(of, ..)| *of != handle) {
            match client_of(handle) {
                Ok((client, limit)) => last = Some((handle, client, limit)),
                Err(status) => {
                    accepted(Err(status));
                    continue;
                }
            }
        }
        let Some((_, client, limit)) = &last else { continue };
        accepted(expecting(handle, queue, || begin_call(client, *limit, queue, method, message, options)));
    }
}

/// The sdk's client, and the time limit of its calls that give none.
fn client_of(handle: Handle) -> Result<(Client, Duration), Status> {
    let entry = CLIENTS.get(handle).ok_or_else(closed)?;
    Ok((entry.client()?, milliseconds(entry.options.timeout_ms)))
}

fn begin_call(
    client: &Client,
    limit: Duration,
    queue: &Arc<Queue>,
    method: &str,
    message: Bytes,
    options: CallOptions,
) -> Result<u64, Status> {
    let limit = options.timeout_ms.map_or(limit, milliseconds);
    let token = Token::new(queue, Work::Unary(None), limit)?;
    let op = token.op;
    let submit = || client.submit(method, message, options.into(), op, token);
    // A panic drops the token, which completes the operation.
    let Ok(submission) = catch_unwind(AssertUnwindSafe(submit)) else { return Ok(op) };
    // A cancel may have come before there was something to cancel. What is complete does not mind.
    if let Some(over) = LEDGER.attach(op, Work::Unary(Some(submission))) {
        over.stop();
    }
    Ok(op)
}

/// Opens a stream of any shape. What the connection or the server say arrives with the stream's operations.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed.
pub fn open(
    client: Handle,
    queue: &Arc<Queue>,
    method: &str,
    options: CallOptions,
) -> Result<Handle, Status> {
    let (of, _) = client_of(client)?;
    let runtime = runtime::runtime()?;
    let entry = Arc::new(StreamEntry {
        made_in: generation(),
        client,
        ends: options.timeout_ms.and_then(|ms| Instant::now().checked_add(milliseconds(ms))),
        opening: Mutex::new(Opening::Waiting),
        changed: Notify::new(),
        sender: AsyncMutex::new(None),
        receiver: AsyncMutex::new(None),
        cancelled: Notify::new(),
        is_cancelled: AtomicBool::new(false),
    });
    let handle = STREAMS
        .insert(entry.clone())
        .ok_or_else(|| Status::from_reason(Reason::QUEUE_FULL, "too many streams are alive"))?;
    let method = method.to_owned();
    let opener = Opener(entry);
    let opens = async move {
        let Opener(entry) = &opener;
        let open = entry.unless_cancelled(of.open(&method, options.into()));
        *lock(&entry.opening) = match guarded(open).await {
            Some(Ok((sender, receiver))) => Opening::Open(Some(sender), Some(receiver)),
            Some(Err(status)) => Opening::Failed(status),
            None => Opening::Failed(panicked()),
        };
    };
    expecting(client, queue, || start(&runtime, opens));
    Ok(handle)
}

/// The right to open a stream. Dropped unused, as a runtime that ends does, it fails the stream's operations.
struct Opener(Arc<StreamEntry>);

impl Drop for Opener {
    fn drop(&mut self) {
        let mut opening = lock(&self.0.opening);
        if matches!(*opening, Opening::Waiting) {
            let message = "the stream was dropped before it was open";
            *opening = Opening::Failed(Status::from_reason(Reason::ABANDONED, message));
        }
        drop(opening);
        self.0.changed.notify_waiters();
    }
}

impl StreamEntry {
    fn find(handle: Handle) -> Result<Arc<Self>, Status> {
        let entry = STREAMS.get(handle).ok_or_else(stale_stream)?;
        if entry.made_in != generation() {
            return Err(forked());
        }
        Ok(entry)
    }

    /// Waits until the stream is open, and takes from its halves.
    async fn opened<T>(
        &self,
        take: impl Fn(&mut Option<SendStream>, &mut Option<RecvStream>) -> Option<T>,
    ) -> Result<T, Status> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match &mut *lock(&self.opening) {
                Opening::Waiting => {}
                Opening::Open(sender, receiver) => {
                    return take(sender, receiver).ok_or_else(stale_stream);
                }
                Opening::Failed(status) => return Err(status.clone()),
            }
            changed.await;
        }
    }

    /// What is left of the stream's time.
    fn limit(&self) -> Duration {
        self.ends.map_or(Duration::MAX, |ends| ends.saturating_duration_since(Instant::now()))
    }

    /// Runs `work` unless the stream is cancelled before or meanwhile.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let stop = self.cancelled.notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        if self.is_cancelled.load(Ordering::Acquire) {
            return Err(cancelled());
        }
        tokio::select! {
            biased;
            () = stop => Err(cancelled()),
            result = work => result,
        }
    }

    async fn send(&self, message: Bytes) -> Result<(), Status> {
        let mut sender = self.sender.lock().await;
        let sender = match &mut *sender {
            Some(sender) => sender,
            none => none.insert(self.opened(|sender, _| sender.take()).await?),
        };
        sender.send(message).await
    }

    async fn half_close(&self) -> Result<(), Status> {
        let mut sender = self.sender.lock().await;
        let sender = match &mut *sender {
            Some(sender) => sender,
            none => none.insert(self.opened(|sender, _| sender.take()).await?),
        };
        sender.finish().await
    }

    async fn recv(&self, max: usize, token: &Token) -> Result<(), Status> {
        let mut receiver = self.receiver.lock().await;
        let receiver = match &mut *receiver {
            Some(receiver) => receiver,
            none => {
                let stream = self.opened(|_, receiver| receiver.take()).await?;
                none.insert(Receiver { stream, kept: VecDeque::new() })
            }
        };
        let taken = receiver.take(max).await?;
        // While this direction is locked, so that what comes back stays ahead of what is next.
        if let Some(Ok(Value::Messages { messages, .. })) = token.complete(Ok(taken)) {
            for message in messages.into_iter().rev() {
                receiver.kept.push_front(message);
            }
        }
        Ok(())
    }

    fn cancel(self: &Arc<Self>) {
        if self.made_in != generation() {
            // Its halves would lock what the parent's threads held at the fork.
            std::mem::forget(self.clone());
            return;
        }
        self.is_cancelled.store(true, Ordering::Release);
        self.cancelled.notify_waiters();
        let entry = self.clone();
        if let Ok(runtime) = runtime::runtime() {
            start(&runtime, async move {
                let halves = entry.opened(|sender, receiver| Some((sender.take(), receiver.take()))).await;
                drop(halves);
                entry.sender.lock().await.take();
                entry.receiver.lock().await.take();
            });
        }
    }
}

impl Receiver {
    /// 1 to `max` messages, or the end. Waits for the first only, and loses nothing when it is dropped meanwhile.
    async fn take(&mut self, max: usize) -> Result<Value, Status> {
        let max = max.max(1);
        let mut messages: Vec<_> = self.kept.drain(..self.kept.len().min(max)).collect();
        if messages.is_empty() {
            match self.stream.recv().await? {
                Some(message) => messages.push(message),
                None => return Ok(self.end(messages).await),
            }
        }
        while messages.len() < max {
            match self.stream.try_recv() {
                Some(Ok(Some(message))) => messages.push(message),
                Some(Ok(None)) => return Ok(self.end(messages).await),
                // An error is kept by the stream and given to the next call.
                Some(Err(_)) | None => break,
            }
        }
        Ok(Value::Messages { messages, end: None })
    }

    /// Does not wait: a stream that has ended has its metadata.
    async fn end(&mut self, messages: Vec<Bytes>) -> Value {
        let metadata = self.stream.metadata().await.unwrap_or_default();
        Value::Messages { messages, end: Some(End { metadata, trailers: self.stream.trailers().clone() }) }
    }
}

/// Sends a message; completes when flow control has taken it. Sends and the half-close of one stream keep the order in
/// which they were submitted.
///
/// # Errors
/// STREAM_MISUSE for a stream that is freed; FORKED in a child; CLIENT_CLOSED for a queue that is closed.
pub fn send(stream: Handle, queue: &Arc<Queue>, message: Bytes) -> Result<u64, Status> {
    begin_of(&StreamEntry::find(stream)?, queue, |entry, token| async move {
        let sent = entry.unless_cancelled(entry.send(message)).await;
        token.complete(sent.map(|()| Value::Done));
    })
}

/// Half-closes, after the sends before it.
///
/// # Errors
/// As [`send`].
pub fn half_close(stream: Handle, queue: &Arc<Queue>) -> Result<u64, Status> {
    begin_of(&StreamEntry::find(stream)?, queue, |entry, token| async move {
        let closed = entry.unless_cancelled(entry.half_close()).await;
        token.complete(closed.map(|()| Value::Done));
    })
}

/// Takes 1 to `max` messages, or the end. The stream's credit is returned for what was taken only, so a host that does
/// not ask is not flooded. A cancelled operation takes nothing: its messages come with the next.
///
/// # Errors
/// As [`send`].
pub fn recv(stream: Handle, queue: &Arc<Queue>, max: usize) -> Result<u64, Status> {
    begin_of(&StreamEntry::find(stream)?, queue, |entry, token| async move {
        if let Err(status) = entry.unless_cancelled(entry.recv(max, &token)).await {
            token.complete(Err(status));
        }
    })
}

/// Gives an operation up: it completes with CANCELLED unless it is complete. Idempotent; unknown numbers are ignored.
pub fn cancel(op: u64) {
    settle();
    if let Ok(work) = LEDGER.complete(op, Completion { op, outcome: Err(cancelled()) }) {
        work.stop();
    }
}

/// Cancels everything that completes in `queue`.
pub(crate) fn cancel_all(queue: &Queue) {
    LEDGER.of(queue).into_iter().for_each(cancel);
}

/// Cancels a stream in both directions; its operations complete with CANCELLED. Idempotent.
pub fn stream_cancel(stream: Handle) {
    if let Some(entry) = STREAMS.get(stream) {
        entry.cancel();
    }
}

/// Forgets a stream; one that has not ended is cancelled. Idempotent.
pub fn stream_free(stream: Handle) {
    if let Some(entry) = STREAMS.remove(stream) {
        entry.cancel();
    }
}

/// Closes a client gracefully: calls in flight may finish within 5 s. Idempotent: a second close completes too.
///
/// # Errors
/// CLIENT_CLOSED for a client that is freed, and for a queue that is closed.
pub fn close(client: Handle, queue: &Arc<Queue>) -> Result<u64, Status> {
    let entry = CLIENTS.get(client).ok_or_else(closed)?;
    entry.closed.store(true, Ordering::Release);
    let current = lock(&entry.current).clone();
    begin(queue, CLOSE_TIMEOUT, |token| async move {
        match current {
            Some(current) if current.made_in == generation() => {
                current.client.close().await;
                current.end_requests();
            }
            parents => std::mem::forget(parents),
        }
        token.complete(Ok(Value::Done));
    })
}

/// Forgets a client without waiting: calls in flight end with CANCELLED. Idempotent.
pub fn client_free(client: Handle) {
    if let Some(entry) = CLIENTS.remove(client) {
        entry.close_now();
    }
}

/// Accepts an operation that completes once the client's next token is wanted, which may be at once; its number is the
/// request's. The core asks for each new connection and before the last token ends, one at a time, and waits for an answer
/// as long as a connection may take to make. It is not counted by [`in_flight`]. One at a time: one that still waits
/// completes with CANCELLED. At the client's end it completes with CLIENT_CLOSED; in the child of a fork, whose requests
/// are its own, with FORKED, and the host waits anew.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed, or a queue that is closed; INVALID_ARGUMENT for one that does not
/// have its tokens from the host.
pub fn token_wanted(client: Handle, queue: &Arc<Queue>) -> Result<u64, Status> {
    let requests = requests_of(client)?;
    let token = Token::new(queue, Work::Nothing, Duration::MAX)?;
    let request = token.op;
    requests.wait(token);
    Ok(request)
}

/// Answers a request with a token, or with why there is none. Whether somebody waits for it: nobody does when it took too
/// long, when it was answered before, and in the child of a fork.
///
/// # Errors
/// As [`token_wanted`].
pub fn token_provide(
    client: Handle,
    request: u64,
    answer: Result<valkyrie_sdk::Token, String>,
) -> Result<bool, Status> {
    let answer = answer.map_err(|why| Status::from_reason(Reason::CREDENTIALS_UNAVAILABLE, why));
    Ok(requests_of(client)?.provide(request, answer))
}

fn requests_of(client: Handle) -> Result<Arc<Requests<Arc<Token>>>, Status> {
    settle();
    let entry = CLIENTS.get(client).ok_or_else(closed)?;
    entry.with_current(|current| current.requests.clone())?.ok_or_else(|| {
        let message = "the client does not have its tokens from a function";
        Status::from_reason(Reason::INVALID_ARGUMENT, message)
    })
}

/// Puts another service config in the place of a client's, without a lost call; a child of a fork begins with it.
///
/// # Errors
/// INVALID_CONFIGURATION for one that is wrong, and then nothing changes; CLIENT_CLOSED for a client that is closed or freed.
pub fn set_service_config(client: Handle, config: &str) -> Result<(), Status> {
    let entry = CLIENTS.get(client).ok_or_else(closed)?;
    let parsed = ServiceConfig::parse(config)?;
    let client = entry.client()?;
    // Locked until the client has it, so that the last of two is the one that stays.
    let mut later = lock(&entry.service_config);
    *later = Some(config.to_owned());
    client.set_service_config(parsed);
    Ok(())
}

/// A client's breakers: a list in JSON.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed.
pub fn breakers(client: Handle) -> Result<String, Status> {
    let entry = CLIENTS.get(client).ok_or_else(closed)?;
    Ok(report::breakers(&entry.client()?.breakers()))
}

/// Accepts an operation that completes with [`Value::Breakers`] once a client's breakers are others than those that `seen` stands
/// for, which may be at once: 0 stands for none that were ever seen, and what it completes with has the next number. It is not counted
/// by [`in_flight`]; a cancel loses nothing. In the child of a fork it completes with FORKED, and the host waits anew.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed, before or meanwhile, and for a queue that is closed.
pub fn breakers_other_than(client: Handle, queue: &Arc<Queue>, seen: u64) -> Result<u64, Status> {
    settle();
    let client = CLIENTS.get(client).ok_or_else(closed)?.client()?;
    let value =
        |breakers: &[_]| Value::Breakers { seen: report::mark(breakers), json: report::breakers(breakers) };
    let now = client.breakers();
    if report::mark(&now) != seen {
        return done(queue, value(&now));
    }
    begin_as(Work::Watch, queue, Duration::MAX, |token| async move {
        token.complete(client.breakers_other_than(&now).await.map(|breakers| value(&breakers)));
    })
}

/// What became of a client's calls since it was made, in this process, in Prometheus' text format.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed.
pub fn metrics(client: Handle) -> Result<String, Status> {
    Ok(CLIENTS.get(client).ok_or_else(closed)?.client()?.metrics().prometheus())
}

/// Holds calls back from a server by hand: those of a method, or all.
///
/// # Errors
/// INVALID_ENDPOINT, INVALID_ARGUMENT for a server that is none of the client's; CLIENT_CLOSED for a client that is closed or freed.
pub fn isolate(client: Handle, server: &str, method: Option<&str>) -> Result<(), Status> {
    CLIENTS.get(client).ok_or_else(closed)?.client()?.isolate(server, method)
}

/// Ends [`isolate`].
///
/// # Errors
/// As [`isolate`].
pub fn restore(client: Handle, server: &str, method: Option<&str>) -> Result<(), Status> {
    CLIENTS.get(client).ok_or_else(closed)?.client()?.restore(server, method)
}

/// The connectivities by number, which are gRPC's: how adapters pass them on.
pub const CONNECTIVITIES: [Connectivity; 5] = [
    Connectivity::Idle,
    Connectivity::Connecting,
    Connectivity::Ready,
    Connectivity::TransientFailure,
    Connectivity::Shutdown,
];

/// Where a client stands with its servers now: shutdown once it is closed or freed, idle in a child of a fork that has not
/// called yet. It waits for nothing and makes no connection.
pub fn connectivity(client: Handle) -> Connectivity {
    match CLIENTS.get(client) {
        Some(entry) if !entry.closed.load(Ordering::Acquire) => {
            current_client(client).map_or(Connectivity::Idle, |client| client.connectivity())
        }
        _ => Connectivity::Shutdown,
    }
}

/// Accepts an operation that completes with [`Value::Connectivity`] once the client no longer stands as in `seen`, which may be at
/// once, and at its end. It is not counted by [`in_flight`]; a cancel loses nothing. In the child of a fork it completes with
/// FORKED, and the host waits anew.
///
/// # Errors
/// CLIENT_CLOSED for a queue that is closed, and where `seen` is that the client is closed: nothing else comes.
pub fn connectivity_other_than(
    client: Handle,
    queue: &Arc<Queue>,
    seen: Connectivity,
) -> Result<u64, Status> {
    settle();
    let now = connectivity(client);
    if now != seen {
        return done(queue, Value::Connectivity(now));
    }
    let client = CLIENTS.get(client).ok_or_else(closed)?.client()?;
    begin_as(Work::Watch, queue, Duration::MAX, |token| async move {
        token.complete(Ok(Value::Connectivity(client.connectivity_other_than(seen).await)));
    })
}

/// Operations that were accepted and are not complete; those that wait for what may never come, such as records to log, do not
/// count.
pub fn in_flight() -> usize {
    settle();
    LEDGER.count(|work| !matches!(work, Work::Nothing | Work::Watch(_)))
}

/// The process is about to end: every operation completes, every client closes at once, the runtime stops.
pub fn shutdown() {
    settle();
    for entry in CLIENTS.all() {
        entry.close_now();
    }
    for op in LEDGER.all() {
        complete(op, Err(Status::from_reason(Reason::CLIENT_CLOSED, "the library was shut down")));
    }
    runtime::stop();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(queue: &Queue) -> Vec<Completion> {
        let mut out = Vec::new();
        queue.drain(&mut out, usize::MAX);
        out
    }

    #[test]
    fn a_token_that_is_dropped_completes_as_abandoned() {
        let queue = Queue::blocking();
        let token = Token::new(&queue, Work::Unary(None), Duration::MAX).unwrap();
        let op = token.op;
        drop(token);
        let out = outcomes(&queue);
        assert_eq!((out.len(), out[0].op), (1, op));
        assert_eq!(out[0].outcome.as_ref().unwrap_err().reason(), Reason::ABANDONED);
    }

    #[test]
    fn a_panic_completes_as_internal() {
        let queue = Queue::blocking();
        begin(&queue, Duration::MAX, |_token| async { panic!("on the caller's thread") }).unwrap();
        begin(&queue, Duration::MAX, |_token| async {
            tokio::task::yield_now().await;
            panic!("on the runtime's")
        })
        .unwrap();
        for _ in 0..2 {
            assert!(queue.wait(Some(Duration::from_secs(60))));
            let mut out = Vec::new();
            queue.drain(&mut out, 1);
            assert_eq!(out[0].outcome.as_ref().unwrap_err().reason(), Reason::INTERNAL);
        }
    }
}
