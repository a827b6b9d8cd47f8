//! Calls and their attempts as spans of `tracing`, and the calls that a server answers.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::Mutex,
    task::{Context, Poll},
    time::Duration,
};

use tracing::{Level, Span, event, field::Empty, span};
use valkyrie_protocol::{Code, Metadata, Status};

use crate::{
    HandlerFuture, MessageHandler, Reply, ServerCall,
    connection::lock,
    observer::{CallId, Event, Observer, Step},
    policy::BreakerState,
};

/// An [`Observer`] that makes a span of `tracing` for each call, and in it one for each attempt. It installs no subscriber: what becomes of
/// the spans is the program's to say. Feature `tracing`.
///
/// | span or event, of target `valkyrie` | level | fields |
/// |---|---|---|
/// | `call`, a child of the span that the caller is in | info | `method`, `idempotent`, `call`, its number, and at its end `code` and `reason` |
/// | `attempt`, in `call` | info | `number`, `server`, `backoff_us` before it, and at its end `code` and `reason` |
/// | `no retry`, in `call` | debug | `why` |
/// | `connected`, `not connected`, `connection lost` | debug | `server`, `reason` |
/// | `breaker` | warn when it opens, else info | `server`, `method`, `from`, `to` |
///
/// For exporters, `otel.name` is the method of a `call`, `otel.kind` of an `attempt` is `client`, and `otel.status_code` is `ERROR` in
/// what failed. `code` and `reason` are names, as `UNAVAILABLE` and `CONNECTION_LOST`; the text of an error is in none of them.
///
/// ```
/// use std::sync::Arc;
/// use valkyrie_sdk::{Client, Spans};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), valkyrie_sdk::Status> {
/// let client =
///     Client::builder().endpoint("tcp://127.0.0.1:1").observer(Arc::new(Spans::new())).connect_lazily()?;
/// # drop(client);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Spans {
    open: Mutex<HashMap<CallId, Open>>,
    traceparent: Option<Box<Traceparent>>,
}

/// How a span is named to other processes.
type Traceparent = dyn Fn(&Span) -> Option<String> + Send + Sync;

/// The metadata that names the span in which a call was made: <https://www.w3.org/TR/trace-context/>.
const TRACEPARENT: &str = "traceparent";

struct Open {
    call: Span,
    attempts: Vec<(u64, Span)>,
    backoff: Duration,
}

impl Spans {
    /// One for any number of clients' calls.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a `traceparent` in the metadata of each attempt, as its span is called to other processes by `of`, so that what its server
    /// does becomes a part of the same trace: `Spans::new().with_traceparent(valkyrie_otel::traceparent)`, or what another exporter
    /// has for it. One that the caller wrote stays. `of` is called as an observer is. Source: W3C Trace Context. Default: none.
    #[must_use]
    pub fn with_traceparent(mut self, of: impl Fn(&Span) -> Option<String> + Send + Sync + 'static) -> Self {
        self.traceparent = Some(Box::new(of));
        self
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").finish_non_exhaustive()
    }
}

/// Writes how a call or an attempt ended.
fn record(span: &Span, failure: Option<&Status>) {
    span.record("code", failure.map_or("OK", |status| status.code().name()));
    if let Some(status) = failure {
        span.record("otel.status_code", "ERROR");
        span.record("reason", status.reason().name());
    }
}

impl Observer for Spans {
    fn note(&self, event: &Event<'_>) {
        let Event { at, call, step } = event;
        let Some(call) = call else { return note_server(step) };
        if let Step::Call { method, idempotent, .. } = step {
            let call_span = span!(
                target: "valkyrie", Level::INFO, "call",
                otel.name = method, otel.status_code = Empty,
                method, idempotent, call = call.number(), code = Empty, reason = Empty
            );
            let open = Open { call: call_span, attempts: Vec::new(), backoff: Duration::ZERO };
            lock(&self.open).insert(*call, open);
            return;
        }
        let mut open = lock(&self.open);
        let Some(Open { call: span, attempts, backoff }) = open.get_mut(call) else { return };
        // A subscriber is told with nothing locked.
        match step {
            Step::Attempt { number, server } => {
                let backoff_us = u64::try_from(std::mem::take(backoff).as_micros()).unwrap_or(u64::MAX);
                let parent = span.clone();
                drop(open);
                let attempt = span!(
                    target: "valkyrie", parent: &parent, Level::INFO, "attempt",
                    otel.kind = "client", otel.status_code = Empty,
                    number, server = %server.label(), backoff_us, code = Empty, reason = Empty
                );
                if let Some(Open { attempts, .. }) = lock(&self.open).get_mut(call) {
                    attempts.push((*number, attempt));
                }
            }
            Step::AttemptEnded { number, failure, .. } => {
                let ended = attempts.iter().position(|(other, _)| other == number);
                let ended = ended.map(|index| attempts.swap_remove(index));
                drop(open);
                if let Some((_, span)) = ended {
                    record(&span, *failure);
                }
            }
            Step::Retry { at: next, .. } => *backoff = next.since(*at),
            Step::NoRetry { why } => {
                let parent = span.clone();
                drop(open);
                event!(target: "valkyrie", parent: &parent, Level::DEBUG, why = why.name(), "no retry");
            }
            Step::Ended { failure } => {
                let ended = open.remove(call);
                drop(open);
                // Copies that another one was faster than close without an end of their own.
                if let Some(Open { call, attempts, .. }) = ended {
                    drop(attempts);
                    record(&call, *failure);
                }
            }
            _ => {}
        }
    }

    fn carry(&self, call: CallId, attempt: u64, metadata: &mut Metadata) {
        let Some(of) = self.traceparent.as_ref().filter(|_| metadata.get(TRACEPARENT).is_none()) else {
            return;
        };
        let span = lock(&self.open).get(&call).and_then(|open| {
            open.attempts.iter().find(|(number, _)| *number == attempt).map(|(_, span)| span.clone())
        });
        if let Some(text) = span.and_then(|span| of(&span)) {
            // What is no metadata is not sent.
            let _ = metadata.insert(TRACEPARENT, text);
        }
    }
}

/// What happens to servers and their connections.
fn note_server(step: &Step<'_>) {
    match step {
        Step::Dialled { server, failure: None } => {
            event!(target: "valkyrie", Level::DEBUG, server = %server.label(), "connected");
        }
        Step::Dialled { server, failure: Some(status) } => {
            let reason = status.reason().name();
            event!(target: "valkyrie", Level::DEBUG, server = %server.label(), reason, "not connected");
        }
        Step::Lost { server, .. } => {
            event!(target: "valkyrie", Level::DEBUG, server = %server.label(), "connection lost");
        }
        Step::Breaker { server, method, edge } => {
            let (server, from, to) = (server.label(), edge.from.name(), edge.to.name());
            match edge.to {
                BreakerState::Open => {
                    event!(target: "valkyrie", Level::WARN, %server, method, from, to, "breaker")
                }
                _ => event!(target: "valkyrie", Level::INFO, %server, method, from, to, "breaker"),
            }
        }
        _ => {}
    }
}

/// A handler whose calls are spans of `tracing`. Feature `tracing`.
///
/// | span, of target `valkyrie` | level | fields |
/// |---|---|---|
/// | `served` | info | `method`, `peer`, `traceparent` of the call's metadata if it has one, and at its end `code` and `reason` |
///
/// What its handler does is in the span, a call that it makes, too. For exporters, `otel.name` is the method, `otel.kind` is `server`, and
/// `otel.status_code` is `ERROR` for what is the server's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and
/// DATA_LOSS (OpenTelemetry's conventions for RPC). A call that is given up, by its caller or its deadline, is `CANCELLED`; one that no handler
/// sees has no span. Where nobody takes the span it costs a look.
#[derive(Debug)]
pub struct Traced<H>(H);

impl<H> Traced<H> {
    /// The same handler, with spans.
    pub fn new(handler: H) -> Self {
        Self(handler)
    }
}

impl<H: MessageHandler> MessageHandler for Traced<H> {
    fn handle(&self, call: ServerCall) -> HandlerFuture {
        let (method, peer) = (call.method(), call.peer().endpoint.as_str());
        let traceparent = call.metadata().get_str(TRACEPARENT);
        let span = span!(
            target: "valkyrie", parent: None, Level::INFO, "served",
            otel.name = method, otel.kind = "server", otel.status_code = Empty,
            method, peer, traceparent, code = Empty, reason = Empty
        );
        if span.is_disabled() {
            return self.0.handle(call);
        }
        let mut served = Served { work: None, span, code: Code::Internal, over: false };
        served.work = Some(served.span.in_scope(|| self.0.handle(call)));
        HandlerFuture::new(served)
    }
}

/// A call that is answered. Dropped before its end, it was given up.
struct Served {
    work: Option<HandlerFuture>,
    span: Span,
    /// What it ends with unless something else is said: while the handler is on its way, what a panic is.
    code: Code,
    over: bool,
}

/// The server's faults.
const FAULTS: [Code; 6] = [
    Code::Unknown,
    Code::DeadlineExceeded,
    Code::Unimplemented,
    Code::Internal,
    Code::Unavailable,
    Code::DataLoss,
];

impl Served {
    fn end(&mut self, code: Code) {
        self.over = true;
        self.span.record("code", code.name());
        if FAULTS.contains(&code) {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

impl Future for Served {
    type Output = Result<Reply, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(work) = &mut this.work else { return Poll::Pending };
        this.code = Code::Internal;
        let polled = this.span.in_scope(|| Pin::new(work).poll(cx));
        match &polled {
            Poll::Pending => this.code = Code::Cancelled,
            Poll::Ready(result) => {
                if let Err(status) = result {
                    this.span.record("reason", status.reason().name());
                }
                this.end(result.as_ref().err().map_or(Code::Ok, Status::code));
            }
        }
        polled
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // What the handler leaves behind is dropped within its span.
        let work = self.work.take();
        self.span.in_scope(|| drop(work));
        if !self.over {
            self.end(self.code);
        }
    }
}
