//! The echo core: a server inside the library, for a first try and for tests that need no server and open no socket.
//!
//! `echo://core` names it. It begins with the first client that connects to it, once for each runtime, so a child of a fork
//! has its own; a client's connection to it is a pipe in memory, and everything above the transport is what other
//! connections have. `echo://private-1` and so on are what its method `/test/private` opened.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use ring::digest;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, DuplexStream},
    sync::{Barrier, OnceCell, mpsc, watch},
};
use valkyrie_sdk::{
    BoxFuture, Bytes, Code, ConnectionInfo, ConnectionState, Connector, EchoHandler, Endpoint, Listener,
    Metadata, Peer, ReadBuffer, Reply, ServerBuilder, ServerCall, ServerControl, Status, Transport,
    handler_fn, policy::DedupPolicy,
};

use crate::handle::lock;

/// The scheme of its endpoints.
pub(crate) const SCHEME: &str = "echo";
const CORE: &str = "core";

/// How long a server that drains waits for calls.
const DRAIN_MS: u64 = 10_000;
/// Bytes that each direction of a connection holds.
const CAPACITY: usize = 256 << 10;
/// Connections that wait to be accepted.
const BACKLOG: usize = 128;
/// Tokens of `/test/flaky` that are remembered, and how long one may be.
const FLAKY_MAX: usize = 1024;
const FLAKY_TOKEN_MAX: usize = 256;

/// The echo core of one runtime, which has not begun before somebody connects.
#[derive(Default)]
pub(crate) struct Echo {
    servers: Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>,
    core: OnceCell<()>,
    opened: AtomicU64,
}

impl Echo {
    /// Begins a server under a name; `ends` says whether a caller may end it.
    fn serve(self: Arc<Self>, name: String, ends: bool) -> BoxFuture<'static, Result<String, Status>> {
        Box::pin(async move {
            let (accept, incoming) = mpsc::channel(BACKLOG);
            lock(&self.servers).insert(name.clone(), accept);
            let endpoint = format!("{SCHEME}://{name}");
            let echo = Arc::downgrade(&self);
            let methods = Methods::new(move |_| match echo.upgrade() {
                Some(echo) => {
                    let name = format!("private-{}", echo.opened.fetch_add(1, Relaxed) + 1);
                    echo.serve(name, true)
                }
                None => Box::pin(async { Err(Status::new(Code::Unavailable, "the echo core has ended")) }),
            });
            let pipes = Pipes { name, incoming, echo: self };
            let server = methods.register(ServerBuilder::new().listener(Box::new(pipes))).build().await?;
            if ends {
                methods.allow_shutdown(server.control());
            }
            tokio::spawn(async move { server.start().await });
            Ok(endpoint)
        })
    }
}

/// Connects clients to the echo core of their runtime.
pub(crate) struct EchoConnector(pub(crate) Arc<Echo>);

impl Connector for EchoConnector {
    fn connect<'a>(&'a self, endpoint: &'a Endpoint) -> BoxFuture<'a, io::Result<Box<dyn Transport>>> {
        Box::pin(async move {
            let name = endpoint.address();
            if name == CORE {
                let begin = || self.0.clone().serve(CORE.to_owned(), false);
                let began = self.0.core.get_or_try_init(|| async { begin().await.map(drop) }).await;
                began.map_err(|status| io::Error::other(status.message().to_owned()))?;
            }
            let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nothing listens there");
            let accept = lock(&self.0.servers).get(name).cloned().ok_or_else(refused)?;
            let (ours, theirs) = tokio::io::duplex(CAPACITY);
            accept.send(theirs).await.map_err(|_| refused())?;
            Ok(Box::new(Pipe(ours)) as Box<dyn Transport>)
        })
    }
}

/// Takes the connections to one name, until dropped.
struct Pipes {
    name: String,
    incoming: mpsc::Receiver<DuplexStream>,
    echo: Arc<Echo>,
}

impl Listener for Pipes {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Transport>, Peer)>> {
        self.incoming.poll_recv(cx).map(|pipe| {
            let pipe = pipe.ok_or_else(|| io::Error::other("the listener is closed"))?;
            let peer = Peer::new(format!("{SCHEME}:"));
            Ok((Box::new(Pipe(pipe)) as Box<dyn Transport>, peer))
        })
    }

    fn endpoint(&self) -> String {
        format!("{SCHEME}://{}", self.name)
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        lock(&self.echo.servers).remove(&self.name);
    }
}

struct Pipe(DuplexStream);

impl Transport for Pipe {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuffer) -> Poll<io::Result<usize>> {
        // Reading holds no state between polls, so a fresh future for each is the same read.
        let mut room = [0; 16 << 10];
        let read = std::task::ready!(pin!(self.0.read(&mut room)).poll(cx))?;
        into.put(&room[..read]);
        Poll::Ready(Ok(read))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The methods of the echo core, with the state that some of them share: tests/conformance/README.md says what each does.
#[derive(Clone)]
pub struct Methods(Arc<State>);

/// Opens a fresh server of a scheme that a caller may end, and gives its endpoint.
type Private = dyn Fn(String) -> BoxFuture<'static, Result<String, Status>> + Send + Sync;

struct State {
    private: Box<Private>,
    hangs: watch::Sender<HashMap<Bytes, Hangs>>,
    barriers: Mutex<HashMap<Bytes, Arc<Barrier>>>,
    /// How often each token was seen, of the last [`FLAKY_MAX`].
    flaky: Mutex<VecDeque<(Bytes, u64)>>,
    /// Set only where a caller may end the server.
    control: OnceLock<ServerControl>,
}

#[derive(Clone, Copy, Default)]
struct Hangs {
    started: u64,
    dropped: u64,
    /// When the last one was dropped, by the system's clock.
    dropped_us: u64,
}

impl Methods {
    /// The methods of one server. `private` opens a fresh one for `/test/private`, whose message is a scheme, and gives its
    /// endpoint.
    pub fn new(
        private: impl Fn(String) -> BoxFuture<'static, Result<String, Status>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(State {
            private: Box::new(private),
            hangs: watch::Sender::default(),
            barriers: Mutex::default(),
            flaky: Mutex::default(),
            control: OnceLock::new(),
        }))
    }

    /// Lets `/test/shutdown` end that server.
    pub fn allow_shutdown(&self, control: ServerControl) {
        // A second control would belong to another server: the first stays.
        let _ = self.0.control.set(control);
    }

    /// Adds every method.
    pub fn register(&self, builder: ServerBuilder) -> ServerBuilder {
        let state = self.0.clone();
        let with_state = |method: fn(Arc<State>, ServerCall) -> Answer| {
            let state = state.clone();
            handler_fn(move |call| method(state.clone(), call))
        };
        builder
            // The barrier holds a thousand handlers of one connection at once.
            .max_running_handlers(2048)
            .drain_timeout_ms(DRAIN_MS)
            .dedup(DedupPolicy::default())
            .handler("/echo", EchoHandler)
            .handler("/test/status", handler_fn(status))
            .handler("/test/sleep", handler_fn(sleep))
            .handler("/test/remaining", handler_fn(remaining))
            .handler("/test/count", handler_fn(count))
            .handler("/test/sum", handler_fn(sum))
            .handler("/test/half_close", handler_fn(half_close))
            .handler("/test/metadata", handler_fn(metadata))
            .handler("/test/stream_then_status", handler_fn(stream_then_status))
            .handler("/test/principal", handler_fn(principal))
            .handler("/test/panic", handler_fn(panics))
            .handler("/test/any/*", handler_fn(any))
            .handler("/test/private", with_state(|state, call| Box::pin(private(state, call))))
            .handler("/test/hang", with_state(|state, call| Box::pin(hang(state, call))))
            .handler("/test/hang_stats", with_state(|state, call| Box::pin(hang_stats(state, call))))
            .handler("/test/flaky", with_state(|state, call| Box::pin(flaky(state, call))))
            .handler("/test/held", with_state(|state, call| Box::pin(held(state, call))))
            .handler("/test/barrier", with_state(|state, call| Box::pin(barrier(state, call))))
            .handler("/test/shutdown", with_state(|state, call| Box::pin(shutdown(state, call))))
    }
}

type Answer = BoxFuture<'static, Result<Reply, Status>>;

fn invalid(message: String) -> Status {
    Status::new(Code::InvalidArgument, message)
}

fn number(call: &ServerCall, key: &str) -> Result<Option<u64>, Status> {
    let Some(text) = call.metadata().get_str(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| invalid(format!("metadata {key} is {text:?}, not a number")))
}

/// The status that a call's metadata asks for; `message` stands in for a missing metadata `message`.
fn wanted_status(call: &ServerCall, message: &[u8]) -> Result<Status, Status> {
    let code = number(call, "code")?.unwrap_or(2);
    let code = Code::from_number(u32::try_from(code).map_err(|_| invalid(format!("code {code} is no u32")))?);
    let message = call
        .metadata()
        .get_str("message")
        .map_or_else(|| String::from_utf8_lossy(message).into_owned(), str::to_owned);
    let mut status = Status::new(code, message);
    if call.metadata().get("details").is_some() {
        status = status.with_detail("valkyrie.test.Detail", "a detail");
    }
    if let Some(pushback) = number(call, "pushback_ms")? {
        status = status.with_pushback(Duration::from_millis(pushback));
    }
    if call.metadata().get("trailers").is_some() {
        let mut trailers = Metadata::new();
        let inserted = trailers
            .insert("t-status", "trailer")
            .and_then(|()| trailers.insert("t-status-bin", &[0x00, 0xff][..]));
        inserted.map_err(|error| invalid(error.to_string()))?;
        status = status.with_trailers(trailers);
    }
    Ok(status)
}

async fn status(mut call: ServerCall) -> Result<Reply, Status> {
    let message = call.message().await?;
    Err(wanted_status(&call, &message)?)
}

async fn sleep(mut call: ServerCall) -> Result<Reply, Status> {
    let message = call.message().await?;
    let ms = parse(&message)?;
    tokio::time::sleep(Duration::from_millis(ms)).await; // This is the method: it takes as long as its caller says.
    Ok(Reply::message(message))
}

fn parse(text: &[u8]) -> Result<u64, Status> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(format!("{:?} is not a number", String::from_utf8_lossy(text))))
}

async fn remaining(call: ServerCall) -> Result<Reply, Status> {
    Ok(Reply::message(call.remaining().map_or(0, |remaining| remaining.as_millis()).to_string()))
}

async fn count(mut call: ServerCall) -> Result<Reply, Status> {
    let message = call.message().await?;
    let text = String::from_utf8_lossy(&message).into_owned();
    let Some((n, size)) =
        text.split_once(' ').and_then(|(n, size)| Some((n.parse().ok()?, size.parse().ok()?)))
    else {
        return Err(invalid(format!("{text:?} is not \"n size\"")));
    };
    send_patterns(&mut call, n, size).await?;
    Ok(Reply::end())
}

async fn send_patterns(call: &mut ServerCall, n: u64, size: usize) -> Result<(), Status> {
    for i in 0..n {
        // The remainder is below 251.
        call.send(vec![(i % 251) as u8; size]).await?;
    }
    Ok(())
}

async fn sum(mut call: ServerCall) -> Result<Reply, Status> {
    let (mut messages, mut bytes, mut digest) = (0, 0, digest::Context::new(&digest::SHA256));
    while let Some(message) = call.recv().await? {
        messages += 1;
        bytes += message.len();
        digest.update(&message);
    }
    let digest: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Reply::message(format!("{messages} {bytes} {digest}")))
}

async fn half_close(mut call: ServerCall) -> Result<Reply, Status> {
    let mut messages = 0;
    while call.recv().await?.is_some() {
        messages += 1;
    }
    Ok(Reply::message(messages.to_string()))
}

async fn metadata(call: ServerCall) -> Result<Reply, Status> {
    let mut trailers = Metadata::new();
    for (key, value) in call.metadata().iter() {
        trailers.insert(format!("t-{key}"), value.clone()).map_err(|error| invalid(error.to_string()))?;
    }
    Ok(Reply::message(Bytes::new()).with_metadata(call.metadata().clone()).with_trailers(trailers))
}

async fn stream_then_status(mut call: ServerCall) -> Result<Reply, Status> {
    let n = number(&call, "n")?.unwrap_or(0);
    send_patterns(&mut call, n, 1).await?;
    Err(wanted_status(&call, b"")?)
}

async fn panics(_call: ServerCall) -> Result<Reply, Status> {
    panic!("asked to panic");
}

async fn any(call: ServerCall) -> Result<Reply, Status> {
    Ok(Reply::message(call.method().to_owned()))
}

/// Counts a handler as dropped however its future ends.
struct Hanging {
    state: Arc<State>,
    token: Bytes,
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.state.hangs.send_modify(|hangs| {
            let hangs = hangs.entry(self.token.clone()).or_default();
            hangs.dropped += 1;
            hangs.dropped_us = since.as_micros() as u64;
        });
    }
}

async fn hang(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    let token = call.message().await?;
    state.hangs.send_modify(|hangs| hangs.entry(token.clone()).or_default().started += 1);
    let _counted = Hanging { state, token };
    std::future::pending().await
}

async fn hang_stats(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    let token = call.message().await?;
    let until = call.metadata().get_str("until").map(str::to_owned);
    let counts = |hangs: &HashMap<Bytes, Hangs>| {
        hangs.iter().filter(|(key, _)| token.is_empty() || **key == token).fold(
            Hangs::default(),
            |sum, (_, one)| Hangs {
                started: sum.started + one.started,
                dropped: sum.dropped + one.dropped,
                dropped_us: sum.dropped_us.max(one.dropped_us),
            },
        )
    };
    let mut changes = state.hangs.subscribe();
    let reached = changes.wait_for(|hangs| match until.as_deref() {
        Some("started") => counts(hangs).started > 0,
        Some("dropped") => counts(hangs).dropped > 0,
        _ => true,
    });
    let Hangs { started, dropped, dropped_us } = match reached.await {
        Ok(hangs) => counts(&hangs),
        Err(_) => return Err(Status::new(Code::Internal, "the counters are gone")),
    };
    let running = started.saturating_sub(dropped);
    Ok(Reply::message(format!(
        r#"{{"started":{started},"dropped":{dropped},"running":{running},"dropped_us":{dropped_us}}}"#
    )))
}

/// Fails as often as its caller wants, and says how often it was asked.
async fn flaky(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    let token = call.message().await?;
    if token.len() > FLAKY_TOKEN_MAX {
        return Err(invalid(format!("a token of {} bytes, at most {FLAKY_TOKEN_MAX}", token.len())));
    }
    let failures = number(&call, "n")?.unwrap_or(0);
    let asked = {
        let mut flaky = lock(&state.flaky);
        match flaky.iter_mut().find(|(seen, _)| *seen == token) {
            Some((_, asked)) => {
                *asked += 1;
                *asked
            }
            None => {
                if flaky.len() == FLAKY_MAX {
                    flaky.pop_front();
                }
                flaky.push_back((token, 1));
                1
            }
        }
    };
    match asked > failures {
        true => Ok(Reply::message(asked.to_string())),
        false => Err(Status::new(Code::Unavailable, format!("asked {asked}"))),
    }
}

/// What a private server holds for its callers, without what it holds for this call.
async fn held(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    call.message().await?;
    // While calls are handed out every permit is: from here on this one has its own.
    tokio::task::yield_now().await;
    let own_deadline = usize::from(call.remaining().is_some());
    let control = private_control(&state)?;
    let (connections, accepted) = (control.connections(), control.stats().connections_total);
    let sum = |of: fn(&ConnectionInfo) -> usize| connections.iter().map(of).sum::<usize>();
    Ok(Reply::message(format!(
        r#"{{"accepted":{accepted},"streams":{},"running":{},"queued":{},"unread":{},"unsent":{},"deadlines":{}}}"#,
        sum(|one| one.streams) - 1,
        sum(|one| one.running) - 1,
        sum(|one| one.queued),
        sum(|one| one.unread_bytes as usize),
        sum(|one| one.unsent_bytes as usize),
        sum(|one| one.deadlines) - own_deadline,
    )))
}

fn private_control(state: &State) -> Result<&ServerControl, Status> {
    let public = || Status::new(Code::FailedPrecondition, "this server is not private");
    state.control.get().ok_or_else(public)
}

async fn barrier(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    let message = call.message().await?;
    let n = number(&call, "n")?.unwrap_or(1);
    let n = usize::try_from(n).map_err(|_| invalid(format!("n is {n}")))?;
    let token = call.metadata().get("barrier").cloned().unwrap_or_default();
    let barrier =
        lock(&state.barriers).entry(token.clone()).or_insert_with(|| Arc::new(Barrier::new(n))).clone();
    if barrier.wait().await.is_leader() {
        lock(&state.barriers).remove(&token);
    }
    Ok(Reply::message(message))
}

async fn shutdown(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    let how = call.message().await?;
    let control = private_control(&state)?;
    match how.as_ref() {
        b"drain" => {
            control.drain();
            // Connections are told once the ports are closed: who reads the answer is not to be ahead of that.
            let takes_calls = |info: &ConnectionInfo| {
                matches!(info.state, ConnectionState::Handshaking | ConnectionState::Open)
            };
            while control.connections().iter().any(takes_calls) {
                tokio::task::yield_now().await;
            }
        }
        b"now" => control.shutdown_now(),
        other => {
            return Err(invalid(format!("{:?} is neither drain nor now", String::from_utf8_lossy(other))));
        }
    }
    Ok(Reply::message(how))
}

/// Answers with whom it is called for.
async fn principal(call: ServerCall) -> Result<Reply, Status> {
    Ok(Reply::message(call.principal().id().to_owned()))
}

async fn private(state: Arc<State>, mut call: ServerCall) -> Result<Reply, Status> {
    let scheme = call.message().await?;
    Ok(Reply::message((state.private)(String::from_utf8_lossy(&scheme).into_owned()).await?))
}
