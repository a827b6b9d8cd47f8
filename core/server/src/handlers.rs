//! The built-in methods: `/echo`, `/valkyrie.Health/*` and `/valkyrie.Metrics/*`, and the log line of every call.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tracing::{Level, debug, enabled};
use valkyrie_config::{AuditOnFailure, Settings};
use valkyrie_sdk::{
    Code, ConnectionInfo, EchoHandler, FamilyKind, HandlerFuture, Health, MessageHandler, Metadata,
    MetricsWriter, Principal, PrometheusText, Reason, Reply, ServerCall, ServerControl, ServingStatus,
    Status, VERSION,
};

use crate::security::Door;

/// The methods that health may be asked about; the empty name is the server itself.
const SERVICES: [&str; 4] = ["", "/echo", "valkyrie.Health", "valkyrie.Metrics"];

/// What the handlers know of their server.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) health: Health,
    /// Set once the server is built.
    pub(crate) control: Arc<OnceLock<ServerControl>>,
    settings: Arc<Settings>,
    /// What decides about calls, if anything does.
    door: Option<Arc<Door>>,
}

/// Why the server is not to be sent calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotReady {
    Starting,
    Draining,
    NotServing(&'static str),
    /// It cannot be written, and calls are refused meanwhile.
    Audit(String),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Draining => f.write_str("draining"),
            Self::NotServing("") => f.write_str("not serving"),
            Self::NotServing(service) => write!(f, "not serving: {service}"),
            Self::Audit(why) => {
                write!(f, "calls are refused, as the audit cannot be written: {}", why.escape_debug())
            }
        }
    }
}

impl State {
    pub(crate) fn new(settings: Arc<Settings>, door: Option<Arc<Door>>) -> Self {
        let health = Health::new();
        for service in SERVICES {
            health.set(service, ServingStatus::Serving);
        }
        let metrics = settings.get().metrics;
        let state = Self { health, control: Arc::default(), settings, door };
        state.tell_metrics(metrics);
        state
    }

    /// Says whether the metrics are served. A service that is turned off stays known.
    pub(crate) fn tell_metrics(&self, on: bool) {
        let status = if on { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.health.set("valkyrie.Metrics", status);
    }

    /// Reads the policy again, if there is one: whether it is another one.
    ///
    /// # Errors
    /// What is wrong with it. Then the rules before it stay in force.
    pub(crate) fn reload_policy(&self) -> Result<bool, String> {
        self.door.as_ref().map_or(Ok(false), |door| door.reload())
    }

    /// Refuses as if there were no such method, while the metrics are turned off.
    fn has_metrics(&self) -> Result<(), Status> {
        let unknown =
            || Status::from_reason(Reason::UNKNOWN_METHOD, "the metrics are turned off: `metrics` is false");
        if self.settings.get().metrics { Ok(()) } else { Err(unknown()) }
    }

    /// Whether the server is to be sent calls.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn ready(&self) -> Result<(), NotReady> {
        if self.control.get().is_none() {
            return Err(NotReady::Starting);
        }
        let config = self.settings.get();
        let (metrics, fail_closed) = (config.metrics, config.audit_on_failure == AuditOnFailure::FailClosed);
        drop(config);
        if fail_closed && let Some(why) = self.door.as_ref().and_then(|door| door.counts().audit.failing) {
            return Err(NotReady::Audit(why));
        }
        // What is turned off is not missed.
        for service in SERVICES.into_iter().filter(|service| metrics || *service != "valkyrie.Metrics") {
            match self.health.status(service) {
                Some(ServingStatus::Draining) => return Err(NotReady::Draining),
                Some(ServingStatus::NotServing) => return Err(NotReady::NotServing(service)),
                Some(ServingStatus::Serving) | None => {}
            }
        }
        Ok(())
    }
}

/// Every built-in method with its path.
pub(crate) fn all(state: &State) -> Vec<(&'static str, Logged)> {
    let (get, connections) = (state.clone(), state.clone());
    vec![
        ("/echo", Logged::new(Echo)),
        ("/valkyrie.Health/Check", Logged::new(state.health.check())),
        ("/valkyrie.Health/Watch", Logged::new(state.health.watch())),
        ("/valkyrie.Metrics/Get", logged(move |call| metrics(get.clone(), call))),
        ("/valkyrie.Metrics/Connections", logged(move |call| list_connections(connections.clone(), call))),
    ]
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

fn control(state: &State) -> Result<&ServerControl, Status> {
    state.control.get().ok_or_else(|| Status::new(Code::Unavailable, "the server is still starting"))
}

/// Prometheus' text format.
async fn metrics(state: State, _call: ServerCall) -> Result<Reply, Status> {
    state.has_metrics()?;
    let mut text = PrometheusText::new();
    write_metrics(&state, control(&state)?, &mut text);
    Ok(Reply::message(text.into_text()))
}

/// What the server counts, and what the sdk counts of it.
pub(crate) fn write_metrics(state: &State, control: &ServerControl, to: &mut dyn MetricsWriter) {
    use FamilyKind::{Counter, Gauge};
    let stats = control.stats();
    let counts = state.door.as_ref().map(|door| door.counts()).unwrap_or_default();
    for (name, kind, help, value) in [
        ("valkyrie_connections", Gauge, "Connections now.", stats.connections as u64),
        (
            "valkyrie_connections_total",
            Counter,
            "Connections accepted since the start.",
            stats.connections_total,
        ),
        (
            "valkyrie_connections_refused_total",
            Counter,
            "Connections closed as they came because there were too many, or for credentials that were refused before.",
            stats.connections_refused,
        ),
        ("valkyrie_calls_total", Counter, "Calls since the start.", stats.calls_total),
        ("valkyrie_streams", Gauge, "Calls open now.", stats.streams as u64),
        ("valkyrie_calls_denied_total", Counter, "Calls that the policy did not let in.", counts.denied),
        ("valkyrie_calls_limited_total", Counter, "Calls over a limit or a quota.", counts.limited),
        (
            "valkyrie_credentials_refused_total",
            Counter,
            "Tokens that were not accepted.",
            counts.credentials_refused,
        ),
        ("valkyrie_audit_records_total", Counter, "Records written to the audit.", counts.audit.written),
        ("valkyrie_audit_lost_total", Counter, "Records that the audit had no room for.", counts.audit.lost),
        (
            "valkyrie_audit_failures_total",
            Counter,
            "Attempts to write the audit that failed.",
            counts.audit.failures,
        ),
        ("valkyrie_draining", Gauge, "1 while the server shuts down.", stats.draining.into()),
    ] {
        to.family(name, kind, help);
        to.sample(&[], value);
    }
    let help = "Connections that failed before they stood, by reason.";
    to.family("valkyrie_connections_failed_total", Counter, help);
    for (reason, count) in control.failures() {
        to.sample(&[("reason", reason.name())], count);
    }
    to.family("valkyrie_build_info", Gauge, "The server's version.");
    to.sample(&[("version", VERSION)], 1);
    control.metrics().write(to);
}

/// Every connection as a JSON array, oldest first.
async fn list_connections(state: State, _call: ServerCall) -> Result<Reply, Status> {
    state.has_metrics()?;
    Ok(Reply::message(Value::from(connections(control(&state)?, usize::MAX).0).to_string()))
}

/// The oldest connections, so many at most, and how many there are.
pub(crate) fn connections(control: &ServerControl, most: usize) -> (Vec<Value>, usize) {
    let mut connections = control.connections();
    let all = connections.len();
    connections.sort_unstable_by_key(|connection| connection.id);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let as_json = |connection: ConnectionInfo| {
        json!({
            "id": connection.id,
            "peer": connection.peer,
            "transport": connection.peer.split(':').next(),
            "encrypted": connection.encrypted,
            "state": format!("{:?}", connection.state).to_lowercase(),
            "age_ms": ms(connection.age),
            "silence_ms": ms(connection.silence),
            "streams": connection.streams,
            "calls": connection.calls,
            "bytes_in": connection.bytes_in,
            "bytes_out": connection.bytes_out,
        })
    };
    (connections.into_iter().take(most).map(as_json).collect(), all)
}

/// A handler whose calls are logged at debug level; at other levels it costs one check.
pub(crate) struct Logged(pub(crate) Box<dyn MessageHandler>);

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

#[cfg(test)]
mod tests {
    use valkyrie_config::{Format, Layer, Layers};

    use super::*;

    #[tokio::test]
    async fn a_server_is_ready_when_it_is_there_and_all_that_is_on_serves() {
        let file = Layer::parse("server.yaml", "metrics: false", Format::Yaml).unwrap();
        let settings = Settings::load(Layers::new().source(file)).unwrap();
        let state = State::new(Arc::new(settings), None);
        assert_eq!(state.ready(), Err(NotReady::Starting));
        let server = valkyrie_sdk::ServerBuilder::new().bind("memory:ready").build().await.unwrap();
        assert!(state.control.set(server.control()).is_ok());
        assert_eq!(state.ready(), Ok(()));
        state.health.set("/echo", ServingStatus::NotServing);
        let why = state.ready().unwrap_err();
        assert_eq!((why.to_string().as_str(), &why), ("not serving: /echo", &NotReady::NotServing("/echo")));
        state.health.set("/echo", ServingStatus::Serving);
        state.health.drain();
        assert_eq!(state.ready(), Err(NotReady::Draining));
    }
}
