//! The methods of the conformance server, and the fresh servers that it opens for cases that end one.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{Barrier, watch};
use valkyrie_sdk::{
    Code, EchoHandler, Metadata, Reply, Server, ServerBuilder, ServerCall, ServerControl, Status, handler_fn,
};

/// How long a private server that drains waits for calls.
const PRIVATE_DRAIN_MS: u64 = 10_000;

/// The methods, with the state that some of them share.
#[derive(Clone, Default)]
pub struct Methods(Arc<State>);

#[derive(Default)]
struct State {
    hangs: watch::Sender<HashMap<Bytes, Hangs>>,
    barriers: Mutex<HashMap<Bytes, Arc<Barrier>>>,
    /// Set only where a caller may end the server.
    control: OnceLock<ServerControl>,
}

#[derive(Clone, Copy, Default)]
struct Hangs {
    started: u64,
    dropped: u64,
}

impl Methods {
    /// The methods of a server that a caller may end with `/test/shutdown`, once [`Methods::allow_shutdown`] gave it.
    pub fn new() -> Self {
        Self::default()
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
            .handler("/echo", EchoHandler)
            .handler("/test/status", handler_fn(status))
            .handler("/test/sleep", handler_fn(sleep))
            .handler("/test/remaining", handler_fn(remaining))
            .handler("/test/count", handler_fn(count))
            .handler("/test/sum", handler_fn(sum))
            .handler("/test/half_close", handler_fn(half_close))
            .handler("/test/metadata", handler_fn(metadata))
            .handler("/test/stream_then_status", handler_fn(stream_then_status))
            .handler("/test/panic", handler_fn(panics))
            .handler("/test/any/*", handler_fn(any))
            .handler("/test/private", handler_fn(private))
            .handler("/test/hang", with_state(|state, call| Box::pin(hang(state, call))))
            .handler("/test/hang_stats", with_state(|state, call| Box::pin(hang_stats(state, call))))
            .handler("/test/barrier", with_state(|state, call| Box::pin(barrier(state, call))))
            .handler("/test/shutdown", with_state(|state, call| Box::pin(shutdown(state, call))))
    }
}

type Answer = valkyrie_sdk::BoxFuture<'static, Result<Reply, Status>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    tokio::time::sleep(Duration::from_millis(ms)).await;
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
    let (mut messages, mut bytes, mut digest) = (0, 0, Sha256::new());
    while let Some(message) = call.recv().await? {
        messages += 1;
        bytes += message.len();
        digest.update(&message);
    }
    Ok(Reply::message(format!("{messages} {bytes} {:x}", digest.finalize())))
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
        self.state.hangs.send_modify(|hangs| hangs.entry(self.token.clone()).or_default().dropped += 1);
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
            |sum, (_, one)| Hangs { started: sum.started + one.started, dropped: sum.dropped + one.dropped },
        )
    };
    let mut changes = state.hangs.subscribe();
    let reached = changes.wait_for(|hangs| match until.as_deref() {
        Some("started") => counts(hangs).started > 0,
        Some("dropped") => counts(hangs).dropped > 0,
        _ => true,
    });
    let Hangs { started, dropped } = match reached.await {
        Ok(hangs) => counts(&hangs),
        Err(_) => return Err(Status::new(Code::Internal, "the counters are gone")),
    };
    let running = started.saturating_sub(dropped);
    Ok(Reply::message(format!(r#"{{"started":{started},"dropped":{dropped},"running":{running}}}"#)))
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
    let Some(control) = state.control.get() else {
        return Err(Status::new(Code::FailedPrecondition, "this server is not private"));
    };
    match how.as_ref() {
        b"drain" => control.drain(),
        b"now" => control.shutdown_now(),
        other => {
            return Err(invalid(format!("{:?} is neither drain nor now", String::from_utf8_lossy(other))));
        }
    }
    Ok(Reply::message(how))
}

async fn private(mut call: ServerCall) -> Result<Reply, Status> {
    let scheme = call.message().await?;
    let scheme = String::from_utf8_lossy(&scheme).into_owned();
    Ok(Reply::message(private_server(&scheme).await?))
}

/// Opens a fresh server with the same methods that a caller may end, and gives its endpoint for `scheme`: `tcp`,
/// `ws`, `unix`, `quic` or `memory`. It lives until it is shut down or the process ends.
///
/// # Errors
/// INVALID_ARGUMENT for another scheme; BIND_FAILED.
pub async fn private_server(scheme: &str) -> Result<String, Status> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("valkyrie-private-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let bind = match scheme {
        "tcp" | "ws" => "127.0.0.1:0".to_owned(),
        "unix" => format!("unix://{}", std::env::temp_dir().join(name).display()),
        "memory" => format!("memory:{name}"),
        "quic" => "quic://127.0.0.1:0".to_owned(),
        other => return Err(invalid(format!("no private server for scheme {other:?}"))),
    };
    let methods = Methods::new();
    let (certificates, key) = identity();
    let builder = ServerBuilder::new().bind(bind).versions(versions());
    let builder = builder.identity(certificates.as_str(), key.as_str());
    let builder = methods.register(builder.drain_timeout_ms(PRIVATE_DRAIN_MS));
    let server = builder.build().await?;
    methods.allow_shutdown(server.control());
    let endpoint = endpoint(&server, scheme)?;
    tokio::spawn(async move { server.start().await });
    Ok(endpoint)
}

fn endpoint(server: &Server, scheme: &str) -> Result<String, Status> {
    let endpoints = server.endpoints();
    endpoints
        .iter()
        .find(|endpoint| endpoint.starts_with(&format!("{scheme}:")))
        .cloned()
        .ok_or_else(|| Status::new(Code::Internal, format!("no {scheme} among {endpoints:?}")))
}

/// The protocol versions that this program offers: the only one, or up to what `VALKYRIE_CONFORMANCE_VERSIONS` says.
pub fn versions() -> RangeInclusive<u8> {
    let most = std::env::var("VALKYRIE_CONFORMANCE_VERSIONS").ok().and_then(|most| most.parse().ok());
    1..=most.unwrap_or(1)
}

/// A certificate for this machine, made once for the process, and its key, both as PEM text.
///
/// # Panics
/// When the system has no random numbers.
pub fn identity() -> &'static (String, String) {
    static IDENTITY: OnceLock<(String, String)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate can be made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

/// A UDP port that is taken and that nobody listens on: the system says so to whoever sends there.
///
/// # Errors
/// The system's.
pub fn absent_udp() -> std::io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // It hears that one address only.
    socket.connect((Ipv4Addr::LOCALHOST, 9))?;
    Ok(socket)
}

/// A TCP port that is taken and that nobody listens on: connecting is refused for as long as this lives.
pub struct Absent(socket2::Socket);

impl Absent {
    /// Takes a port.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> std::io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        Ok(Self(socket))
    }

    /// `127.0.0.1:port`.
    ///
    /// # Errors
    /// The system's.
    pub fn address(&self) -> std::io::Result<String> {
        match self.0.local_addr()?.as_socket() {
            Some(address) => Ok(address.to_string()),
            None => Err(std::io::Error::other("the socket has no address")),
        }
    }
}
