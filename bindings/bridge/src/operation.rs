//! Operations: submit, complete exactly once, cancel.

use std::{
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::sync::{Mutex as AsyncMutex, Notify};
use valkyrie_sdk::{
    Bytes, Client, Metadata, Priority, Reason, RecvStream, Response, SendStream, Sink, Status, Submission,
    TokioRuntime,
};

use crate::{
    Completion, End, Handle, Queue, Value,
    handle::{Table, lock},
    runtime::{self, generation},
};

/// Options of a client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// Time limit of unary calls that give none, in milliseconds. Default 5,000.
    pub timeout_ms: u64,
    /// Time limit of making a connection, in milliseconds. Default 5,000.
    pub connect_timeout_ms: u64,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout_ms: valkyrie_sdk::DEFAULT_TIMEOUT_MS,
            connect_timeout_ms: valkyrie_sdk::DEFAULT_CONNECT_TIMEOUT_MS,
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
}

impl From<CallOptions> for valkyrie_sdk::CallOptions {
    fn from(options: CallOptions) -> Self {
        let mut out = Self::new().with_metadata(options.metadata).with_priority(options.priority);
        out.timeout = options.timeout_ms.map(|ms| match ms {
            u64::MAX => Duration::MAX,
            ms => Duration::from_millis(ms),
        });
        out
    }
}

/// A client as the boundary keeps it: what it is made of, and the sdk's client of this fork generation.
struct ClientEntry {
    endpoint: String,
    options: ClientOptions,
    current: Mutex<Option<(u64, Client)>>,
    closed: std::sync::atomic::AtomicBool,
}

struct StreamEntry {
    made_in: u64,
    sender: AsyncMutex<Option<SendStream>>,
    receiver: AsyncMutex<Option<RecvStream>>,
    opened: Mutex<Option<Result<(), Status>>>,
    changed: Notify,
    cancelled: Notify,
    is_cancelled: std::sync::atomic::AtomicBool,
}

enum Pending {
    Unary(Arc<Token>, Option<Submission>),
    Task(Arc<Notify>, Arc<Token>),
}

static CLIENTS: Table<ClientEntry> = Table::new();
static STREAMS: Table<StreamEntry> = Table::new();
static NEXT_OP: AtomicU64 = AtomicU64::new(1);
static PENDING: Mutex<Option<HashMap<u64, Pending>>> = Mutex::new(None);

fn closed() -> Status {
    Status::from_reason(Reason::CLIENT_CLOSED, "the client is closed")
}

fn stale_stream() -> Status {
    Status::from_reason(Reason::STREAM_MISUSE, "the stream is closed")
}

/// The right to complete one operation. Dropped unused, it completes with ABANDONED, so no path can lose a promise.
struct Token {
    op: u64,
    queue: Weak<Queue>,
    done: std::sync::atomic::AtomicBool,
}

impl Token {
    fn new(queue: &Arc<Queue>) -> Arc<Self> {
        let op = NEXT_OP.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { op, queue: Arc::downgrade(queue), done: std::sync::atomic::AtomicBool::new(false) })
    }

    /// The first outcome counts, every later one is dropped.
    fn complete(&self, outcome: Result<Value, Status>) {
        if self.done.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(pending) = lock(&PENDING).as_mut() {
            pending.remove(&self.op);
        }
        if let Some(queue) = self.queue.upgrade() {
            queue.push(Completion { op: self.op, outcome });
        }
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let abandoned =
            Status::from_reason(Reason::ABANDONED, "the operation was dropped without an outcome");
        if !*self.done.get_mut() {
            self.complete(Err(abandoned));
        }
    }
}

impl Sink for Token {
    fn complete(&self, _token: u64, result: Result<Response, Status>) {
        self.complete(result.map(Value::Response));
    }
}

fn register(op: u64, pending: Pending) {
    lock(&PENDING).get_or_insert_default().insert(op, pending);
}

impl ClientEntry {
    /// The sdk's client of this process: a child of a fork makes its own, which dials anew.
    fn client(&self) -> Result<Client, Status> {
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        let runtime = runtime::runtime()?;
        let now = generation();
        let mut current = lock(&self.current);
        if let Some((made_in, client)) = &*current {
            if *made_in == now {
                return Ok(client.clone());
            }
            // Its connection belongs to the parent: closing it here would end the parent's stream.
            std::mem::forget(current.take());
        }
        let _entered = runtime.enter();
        let client = self.build()?;
        *current = Some((now, client.clone()));
        Ok(client)
    }

    fn build(&self) -> Result<Client, Status> {
        let mut builder = Client::builder()
            .endpoint(self.endpoint.clone())
            .timeout_ms(self.options.timeout_ms)
            .connect_timeout_ms(self.options.connect_timeout_ms);
        if let Some(runtime) = TokioRuntime::current() {
            builder = builder.runtime(Arc::new(runtime));
        }
        builder.connect_lazily()
    }
}

/// Runs `work` on the runtime; its outcome completes the operation, and a cancel or a panic does if it is sooner.
fn spawn(
    queue: &Arc<Queue>,
    work: impl Future<Output = Result<Value, Status>> + Send + 'static,
) -> Result<u64, Status> {
    let runtime = runtime::runtime()?;
    let token = Token::new(queue);
    let op = token.op;
    let cancel = Arc::new(Notify::new());
    register(op, Pending::Task(cancel.clone(), token.clone()));
    runtime.spawn(async move {
        let mut work = std::pin::pin!(work);
        let guarded = std::future::poll_fn(|cx| {
            match std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
                Ok(poll) => poll,
                Err(_) => Poll::Ready(Err(Status::from_reason(Reason::INTERNAL, "the operation panicked"))),
            }
        });
        let outcome = tokio::select! {
            outcome = guarded => outcome,
            () = cancel.notified() => Err(Status::from_reason(Reason::CANCELLED, "the call was cancelled")),
        };
        token.complete(outcome);
    });
    Ok(op)
}

/// Makes a client and its first connection. The handle is valid at once; the operation completes when the connection
/// stands, or with the reason why it does not, after which the client still may be used or freed.
///
/// # Errors
/// INVALID_ENDPOINT, UNSUPPORTED_SCHEME or INVALID_CONFIGURATION for what is written wrong.
pub fn connect(queue: &Arc<Queue>, endpoint: &str, options: ClientOptions) -> Result<(Handle, u64), Status> {
    let entry = Arc::new(ClientEntry {
        endpoint: endpoint.to_owned(),
        options,
        current: Mutex::new(None),
        closed: std::sync::atomic::AtomicBool::new(false),
    });
    let client = entry.client()?;
    let handle = CLIENTS
        .insert(entry)
        .ok_or_else(|| Status::from_reason(Reason::QUEUE_FULL, "too many clients are alive"))?;
    let op = spawn(queue, async move { client.ready().await.map(|()| Value::Done) })?;
    Ok((handle, op))
}

/// Begins a unary call.
///
/// # Errors
/// CLIENT_CLOSED for a client that is closed or freed.
pub fn call(
    client: Handle,
    queue: &Arc<Queue>,
    method: &str,
    message: Bytes,
    options: CallOptions,
) -> Result<u64, Status> {
    let client = CLIENTS.get(client).ok_or_else(closed)?.client()?;
    let token = Token::new(queue);
    let op = token.op;
    register(op, Pending::Unary(token.clone(), None));
    let submission = client.submit(method, message, options.into(), op, token);
    if let Some(Pending::Unary(_, slot)) = lock(&PENDING).as_mut().and_then(|pending| pending.get_mut(&op)) {
        *slot = Some(submission);
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
    let _ = queue;
    let client = CLIENTS.get(client).ok_or_else(closed)?.client()?;
    let runtime = runtime::runtime()?;
    let entry = Arc::new(StreamEntry {
        made_in: generation(),
        sender: AsyncMutex::new(None),
        receiver: AsyncMutex::new(None),
        opened: Mutex::new(None),
        changed: Notify::new(),
        cancelled: Notify::new(),
        is_cancelled: std::sync::atomic::AtomicBool::new(false),
    });
    let handle = STREAMS
        .insert(entry.clone())
        .ok_or_else(|| Status::from_reason(Reason::QUEUE_FULL, "too many streams are alive"))?;
    let method = method.to_owned();
    runtime.spawn(async move {
        let result = match client.open(&method, options.into()).await {
            Ok((sender, receiver)) => {
                *entry.sender.lock().await = Some(sender);
                *entry.receiver.lock().await = Some(receiver);
                Ok(())
            }
            Err(status) => Err(status),
        };
        *lock(&entry.opened) = Some(result);
        entry.changed.notify_waiters();
    });
    Ok(handle)
}

impl StreamEntry {
    fn find(handle: Handle) -> Result<Arc<Self>, Status> {
        let entry = STREAMS.get(handle).ok_or_else(stale_stream)?;
        if entry.made_in != generation() {
            return Err(Status::from_reason(
                Reason::FORKED,
                "the process forked while the call ran; the call goes on in the parent",
            ));
        }
        Ok(entry)
    }

    /// Waits until the stream is open.
    async fn ready(&self) -> Result<(), Status> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(result) = &*lock(&self.opened) {
                return result.clone();
            }
            changed.await;
        }
    }

    /// Runs `work` unless the stream is cancelled before or meanwhile.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let cancelled = self.cancelled.notified();
        tokio::pin!(cancelled);
        cancelled.as_mut().enable();
        if self.is_cancelled.load(Ordering::Acquire) {
            return Err(Status::from_reason(Reason::CANCELLED, "the call was cancelled"));
        }
        tokio::select! {
            result = work => result,
            () = cancelled => Err(Status::from_reason(Reason::CANCELLED, "the call was cancelled")),
        }
    }

    fn cancel(self: &Arc<Self>) {
        self.is_cancelled.store(true, Ordering::Release);
        self.cancelled.notify_waiters();
        if self.made_in != generation() {
            return;
        }
        let entry = self.clone();
        if let Ok(runtime) = runtime::runtime() {
            runtime.spawn(async move {
                if entry.ready().await.is_ok() {
                    entry.sender.lock().await.take();
                    entry.receiver.lock().await.take();
                }
            });
        }
    }
}

/// Sends a message; completes when flow control has taken it. Sends of one stream keep their order when each waits
/// for the one before.
///
/// # Errors
/// STREAM_MISUSE for a stream that is freed; FORKED in a child.
pub fn send(stream: Handle, queue: &Arc<Queue>, message: Bytes) -> Result<u64, Status> {
    let entry = StreamEntry::find(stream)?;
    spawn(queue, async move {
        entry
            .unless_cancelled(async {
                entry.ready().await?;
                match &mut *entry.sender.lock().await {
                    Some(sender) => sender.send(message).await,
                    None => Err(stale_stream()),
                }
            })
            .await
            .map(|()| Value::Done)
    })
}

/// Half-closes.
///
/// # Errors
/// As [`send`].
pub fn half_close(stream: Handle, queue: &Arc<Queue>) -> Result<u64, Status> {
    let entry = StreamEntry::find(stream)?;
    spawn(queue, async move {
        entry
            .unless_cancelled(async {
                entry.ready().await?;
                match &mut *entry.sender.lock().await {
                    Some(sender) => sender.finish().await,
                    None => Err(stale_stream()),
                }
            })
            .await
            .map(|()| Value::Done)
    })
}

/// Takes 1 to `max` messages, or the end. The stream's credit is returned for what was taken only, so a host that does
/// not ask is not flooded.
///
/// # Errors
/// As [`send`].
pub fn recv(stream: Handle, queue: &Arc<Queue>, max: usize) -> Result<u64, Status> {
    let entry = StreamEntry::find(stream)?;
    spawn(queue, async move {
        entry
            .unless_cancelled(async {
                entry.ready().await?;
                let mut guard = entry.receiver.lock().await;
                let Some(receiver) = &mut *guard else { return Err(stale_stream()) };
                let mut messages = Vec::new();
                let mut next = receiver.recv().await?;
                loop {
                    match next {
                        Some(message) => messages.push(message),
                        None => {
                            let end = End {
                                metadata: receiver.metadata().await.unwrap_or_default(),
                                trailers: receiver.trailers().clone(),
                            };
                            return Ok(Value::Messages { messages, end: Some(end) });
                        }
                    }
                    if messages.len() >= max.max(1) {
                        break;
                    }
                    match receiver.try_recv() {
                        Some(Ok(more)) => next = more,
                        // An error is kept by the stream and given to the next call.
                        Some(Err(_)) | None => break,
                    }
                }
                Ok(Value::Messages { messages, end: None })
            })
            .await
    })
}

/// Gives an operation up: it completes with CANCELLED unless it is complete. Idempotent; unknown numbers are ignored.
pub fn cancel(op: u64) {
    let found = lock(&PENDING).as_mut().and_then(|pending| pending.remove(&op));
    match found {
        Some(Pending::Unary(token, submission)) => {
            if let Some(submission) = submission {
                submission.cancel();
            }
            token.complete(Err(Status::from_reason(Reason::CANCELLED, "the call was cancelled")));
        }
        Some(Pending::Task(cancel, token)) => {
            cancel.notify_one();
            token.complete(Err(Status::from_reason(Reason::CANCELLED, "the call was cancelled")));
        }
        None => {}
    }
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
/// CLIENT_CLOSED for a client that is freed.
pub fn close(client: Handle, queue: &Arc<Queue>) -> Result<u64, Status> {
    let entry = CLIENTS.get(client).ok_or_else(closed)?;
    entry.closed.store(true, Ordering::Release);
    let current = lock(&entry.current).clone();
    spawn(queue, async move {
        if let Some((made_in, client)) = current
            && made_in == generation()
        {
            client.close().await;
        }
        Ok(Value::Done)
    })
}

/// Forgets a client without waiting: calls in flight end with CANCELLED. Idempotent.
pub fn client_free(client: Handle) {
    if let Some(entry) = CLIENTS.remove(client) {
        entry.closed.store(true, Ordering::Release);
        match lock(&entry.current).take() {
            Some((made_in, client)) if made_in == generation() => client.close_now(),
            other => std::mem::forget(other),
        }
    }
}

/// Operations that were accepted and are not complete.
pub fn in_flight() -> usize {
    lock(&PENDING).as_ref().map_or(0, HashMap::len)
}

/// The process is about to end: every operation completes, every client closes at once, the runtime stops.
pub fn shutdown() {
    for entry in CLIENTS.all() {
        entry.closed.store(true, Ordering::Release);
        if let Some((made_in, client)) = &*lock(&entry.current)
            && *made_in == generation()
        {
            client.close_now();
        }
    }
    let pending = lock(&PENDING).take().unwrap_or_default();
    for (_, pending) in pending {
        let (Pending::Unary(token, _) | Pending::Task(_, token)) = pending;
        token.complete(Err(Status::from_reason(Reason::CLIENT_CLOSED, "the library was shut down")));
    }
    runtime::stop();
}
