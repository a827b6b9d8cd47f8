//! The built-in methods: `/echo`, `/valkyrie.Health/*` and `/valkyrie.Metrics/*`, and the log line of every call.

use std::{
    fmt::Write,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::{Level, debug, enabled};
use valkyrie_sdk::{
    Code, EchoHandler, HandlerFuture, MessageHandler, Metadata, Principal, Reply, ServerCall, ServerControl,
    Status, VERSION,
};

use crate::{config::Config, security::Door};

/// The methods that health may be asked about; the empty name is the server itself.
const SERVICES: [&str; 4] = ["", "/echo", "valkyrie.Health", "valkyrie.Metrics"];

/// What health says, as it is written on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Serving,
    Draining,
}

impl Health {
    fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// What the handlers know of their server.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) health: watch::Sender<Health>,
    /// Whether the metrics methods answer.
    metrics: bool,
    /// Set once the server is built.
    pub(crate) control: Arc<OnceLock<ServerControl>>,
    /// What decides about calls, if anything does.
    door: Option<Arc<Door>>,
}

impl State {
    pub(crate) fn new(config: &Config, door: Option<Arc<Door>>) -> Self {
        let health = watch::Sender::new(Health::Serving);
        Self { health, metrics: config.metrics, control: Arc::default(), door }
    }

    /// What health says of a service: a service that is turned off stays known.
    fn health_of(&self, service: &[u8], server: Health) -> Result<&'static str, Status> {
        match SERVICES.iter().find(|known| known.as_bytes() == service) {
            Some(&"valkyrie.Metrics") if !self.metrics => Ok("not_serving"),
            Some(_) => Ok(server.name()),
            None => {
                let service: String = String::from_utf8_lossy(service).chars().take(100).collect();
                Err(Status::new(Code::NotFound, format!("unknown service {service:?}")))
            }
        }
    }
}

/// Every built-in method with its path.
pub(crate) fn all(state: &State, config: &Config) -> Vec<(&'static str, Logged)> {
    let (check, watch, get, connections) = (state.clone(), state.clone(), state.clone(), state.clone());
    let mut all = vec![
        ("/echo", Logged::new(Echo)),
        ("/valkyrie.Health/Check", logged(move |call| health_check(check.clone(), call))),
        ("/valkyrie.Health/Watch", logged(move |call| health_watch(watch.clone(), call))),
    ];
    if config.metrics {
        all.push(("/valkyrie.Metrics/Get", logged(move |call| metrics(get.clone(), call))));
        all.push((
            "/valkyrie.Metrics/Connections",
            logged(move |call| list_connections(connections.clone(), call)),
        ));
    }
    all
}

/// Echoes; with the metadata `want-digest: sha-256` the trailer `digest-sha-256` holds the hexadecimal digest of all
/// message bytes received, so that both ends of an upload can be compared.
struct Echo;

impl MessageHandler for Echo {
    fn handle(&self, mut call: ServerCall) -> HandlerFuture {
        if call.metadata().get_str("want-digest") != Some("sha-256") {
            return EchoHandler.handle(call);
        }
        HandlerFuture::new(async move {
            let mut digest = Sha256::new();
            while let Some(message) = call.recv().await? {
                digest.update(&message);
                call.send(message).await?;
            }
            let trailers = Metadata::new().with("digest-sha-256", format!("{:x}", digest.finalize()));
            let trailers = trailers.map_err(|error| Status::new(Code::Internal, error.to_string()))?;
            Ok(Reply::end().with_trailers(trailers))
        })
    }
}

/// Message: a service's name, or nothing for the server. Answers `serving`, `not_serving` or `draining`.
async fn health_check(state: State, mut call: ServerCall) -> Result<Reply, Status> {
    let service = call.message().await?;
    let server = *state.health.borrow();
    state.health_of(&service, server).map(Reply::message)
}

/// As Check, and once more for each change. Ends when the server drains, so that no watcher holds up a shutdown.
async fn health_watch(state: State, mut call: ServerCall) -> Result<Reply, Status> {
    let service = call.message().await?;
    let mut health = state.health.subscribe();
    loop {
        let now = *health.borrow_and_update();
        call.send(state.health_of(&service, now)?).await?;
        if now == Health::Draining || health.changed().await.is_err() {
            return Ok(Reply::end());
        }
    }
}

fn control(state: &State) -> Result<&ServerControl, Status> {
    state.control.get().ok_or_else(|| Status::new(Code::Unavailable, "the server is still starting"))
}

/// Prometheus' text format.
async fn metrics(state: State, _call: ServerCall) -> Result<Reply, Status> {
    let stats = control(&state)?.stats();
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, value: u64| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "# HELP valkyrie_{name} {help}\n# TYPE valkyrie_{name} {kind}\nvalkyrie_{name} {value}"
        );
    };
    metric("connections", "gauge", "Connections now.", stats.connections as u64);
    metric("connections_total", "counter", "Connections accepted since the start.", stats.connections_total);
    metric(
        "connections_refused_total",
        "counter",
        "Connections closed as they came because there were too many, or for credentials that were refused before.",
        stats.connections_refused,
    );
    metric("calls_total", "counter", "Calls since the start.", stats.calls_total);
    metric("streams", "gauge", "Calls open now.", stats.streams as u64);
    let counts = state.door.as_ref().map(|door| door.counts()).unwrap_or_default();
    metric("calls_denied_total", "counter", "Calls that the policy did not let in.", counts.denied);
    metric("calls_limited_total", "counter", "Calls over a limit or a quota.", counts.limited);
    metric(
        "credentials_refused_total",
        "counter",
        "Tokens that were not accepted.",
        counts.credentials_refused,
    );
    metric("audit_records_total", "counter", "Records written to the audit.", counts.audit.written);
    metric("audit_lost_total", "counter", "Records that the audit had no room for.", counts.audit.lost);
    metric(
        "audit_failures_total",
        "counter",
        "Attempts to write the audit that failed.",
        counts.audit.failures,
    );
    metric("draining", "gauge", "1 while the server shuts down.", stats.draining.into());
    let help = "Connections that failed before they stood, by reason.";
    let _ = writeln!(
        text,
        "# HELP valkyrie_connections_failed_total {help}\n# TYPE valkyrie_connections_failed_total counter"
    );
    for (reason, count) in control(&state)?.failures() {
        let _ = writeln!(text, "valkyrie_connections_failed_total{{reason=\"{}\"}} {count}", reason.name());
    }
    let _ = writeln!(
        text,
        "# HELP valkyrie_build_info The server's version.\n# TYPE valkyrie_build_info gauge\n\
         valkyrie_build_info{{version=\"{VERSION}\"}} 1"
    );
    Ok(Reply::message(text))
}

/// Every connection as a JSON array, oldest first.
async fn list_connections(state: State, _call: ServerCall) -> Result<Reply, Status> {
    let mut connections = control(&state)?.connections();
    connections.sort_by_key(|connection| connection.id);
    let connections: Vec<_> = connections
        .into_iter()
        .map(|connection| {
            serde_json::json!({
                "id": connection.id,
                "peer": connection.peer,
                "state": format!("{:?}", connection.state).to_lowercase(),
                "age_ms": u64::try_from(connection.age.as_millis()).unwrap_or(u64::MAX),
                "streams": connection.streams,
                "calls": connection.calls,
                "bytes_in": connection.bytes_in,
                "bytes_out": connection.bytes_out,
            })
        })
        .collect();
    Ok(Reply::message(serde_json::Value::from(connections).to_string()))
}

/// A handler whose calls are logged at debug level; at other levels it costs one check.
pub(crate) struct Logged(Box<dyn MessageHandler>);

impl Logged {
    fn new(handler: impl MessageHandler) -> Self {
        Self(Box::new(handler))
    }
}

fn logged<F, Fut>(function: F) -> Logged
where
    F: Fn(ServerCall) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Status>> + Send + 'static,
{
    Logged::new(valkyrie_sdk::handler_fn(function))
}

impl MessageHandler for Logged {
    fn handle(&self, call: ServerCall) -> HandlerFuture {
        if !enabled!(Level::DEBUG) {
            return self.0.handle(call);
        }
        let line = Line {
            method: call.method().to_owned(),
            peer: call.peer().endpoint.clone(),
            principal: call.principal().clone(),
            correlation_id: correlation_id(call.metadata()),
            started: Instant::now(),
            outcome: None,
        };
        HandlerFuture::new(LoggedCall { work: self.0.handle(call), line })
    }
}

struct LoggedCall {
    work: HandlerFuture,
    line: Line,
}

impl Future for LoggedCall {
    type Output = Result<Reply, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = std::task::ready!(Pin::new(&mut self.work).poll(cx));
        self.line.outcome = Some(result.as_ref().err().map_or(Code::Ok, Status::code));
        Poll::Ready(result)
    }
}

/// The log line of one call. Written when dropped, so that a cancelled call has one too.
struct Line {
    method: String,
    peer: String,
    principal: Principal,
    correlation_id: String,
    started: Instant,
    outcome: Option<Code>,
}

impl Drop for Line {
    fn drop(&mut self) {
        debug!(
            method = %self.method,
            peer = %self.peer,
            // As strings, and so quoted: a caller wrote them.
            principal = self.principal.id(),
            correlation_id = self.correlation_id.as_str(),
            code = self.outcome.map_or("CANCELLED", Code::name),
            elapsed_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "call ended"
        );
    }
}

/// The caller's `x-correlation-id`, or one of our own: unique in this process, and unlikely to be another's.
fn correlation_id(metadata: &Metadata) -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static NEXT: AtomicU64 = AtomicU64::new(1);
    match metadata.get("x-correlation-id").and_then(printable) {
        Some(id) => id,
        None => format!("{:016x}-{}", *PROCESS, NEXT.fetch_add(1, Relaxed)),
    }
}

/// At most 128 characters, so that a caller cannot fill the log.
fn printable(value: &Bytes) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    (!text.is_empty()).then(|| text.chars().take(128).collect())
}
