//! Spans of `tracing` as OTLP's. The fields' numbers are those of opentelemetry/proto/trace/v1/trace.proto.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use tokio::sync::Notify;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::Context,
    registry::{LookupSpan, SpanRef},
};
use valkyrie_sdk::VERSION;

use crate::{
    context::SpanContext,
    exporter::{lock, seed},
    metrics::nanos,
    protobuf::Message,
};

/// Spans that wait to be posted; further ones are lost. Source: OTEL_BSP_MAX_QUEUE_SIZE.
pub(crate) const MOST_WAITING: usize = 2_048;
/// Spans of one post. Source: OTEL_BSP_MAX_EXPORT_BATCH_SIZE.
pub(crate) const BATCH: usize = 512;
/// Attributes of a span or an event, and events of a span; further ones are counted. OpenTelemetry has 128.
const MOST_PARTS: usize = 64;
/// Characters of a text.
const MOST_TEXT: usize = 1_024;

/// Exports the spans of `tracing`, those that [`Spans`](valkyrie_sdk::Spans) makes of calls among them: a layer of the program's own
/// subscriber, [`Exporter::layer`](crate::Exporter::layer).
///
/// A span begins a trace, or goes on with that of the span it is in. Its fields are its attributes, and events in it are its events.
/// Some fields have a meaning, as other exporters of `tracing` have it: `otel.name` is its name, `otel.kind` is `client`, `server`, `producer`, `consumer` or
/// `internal`, `otel.status_code` is `ERROR` when it failed. A field `traceparent` names a parent in another process (W3C Trace Context); one that is
/// not well-formed is ignored.
///
/// Give it a filter: without one, every span of every library is exported.
///
/// ```
/// use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt};
/// use valkyrie_otel::Exporter;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), valkyrie_sdk::Status> {
/// let exporter = Exporter::builder("http://127.0.0.1:4318").service_name("orders").build()?;
/// let layer = exporter.layer().with_filter(LevelFilter::INFO);
/// let subscriber = tracing_subscriber::registry().with(layer);
/// # drop(subscriber);
/// # Ok(())
/// # }
/// ```
pub struct SpanLayer(pub(crate) Arc<Buffer>);

impl fmt::Debug for SpanLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpanLayer").finish_non_exhaustive()
    }
}

/// Spans that are over and were not posted.
pub(crate) struct Buffer {
    /// Each a Span of OTLP.
    waiting: Mutex<VecDeque<Vec<u8>>>,
    /// Told when there are enough for a post.
    pub(crate) full: Notify,
    /// Which traces that begin here are recorded: those whose 56 random bits are below.
    pub(crate) sampled_below: u64,
    /// Spans that there was no room for.
    lost: std::sync::atomic::AtomicU64,
}

impl Buffer {
    pub(crate) fn new(ratio: f64) -> Self {
        Self {
            waiting: Mutex::default(),
            full: Notify::new(),
            sampled_below: (ratio * (1_u64 << 56) as f64) as u64,
            lost: Default::default(),
        }
    }

    fn push(&self, span: Vec<u8>) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() == MOST_WAITING {
            drop(waiting);
            self.lost.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return;
        }
        waiting.push_back(span);
        if waiting.len() == BATCH {
            drop(waiting);
            self.full.notify_one();
        }
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.waiting).len()
    }

    /// The oldest, as an ExportTraceServiceRequest, and how many they are.
    pub(crate) fn request(&self, resource: &[u8]) -> Option<(Vec<u8>, u64)> {
        let batch: Vec<_> = {
            let mut waiting = lock(&self.waiting);
            let count = waiting.len().min(BATCH);
            waiting.drain(..count).collect()
        };
        if batch.is_empty() {
            return None;
        }
        let mut request = Message::default();
        request.message(1, |of_resource| {
            of_resource.bytes(1, resource);
            of_resource.message(2, |of_scope| {
                of_scope.message(1, |scope| {
                    scope.text(1, "valkyrie");
                    scope.text(2, VERSION);
                });
                batch.iter().for_each(|span| of_scope.bytes(2, span));
            });
        });
        Some((request.into_bytes(), batch.len() as u64))
    }
}

/// What is known of a span that is not over.
struct Open {
    context: SpanContext,
    /// Nothing is kept of what is not sampled.
    recording: Option<Recording>,
}

struct Recording {
    /// 0 where there is none, and whether it is of another process.
    parent: (u64, bool),
    name: String,
    kind: u64,
    failed: bool,
    /// What the wall's clock said, and what measures from then on.
    began: (SystemTime, Instant),
    fields: Fields,
    events: Message,
    event_count: usize,
}

/// Fields by name, the last value of each.
#[derive(Default)]
struct Fields {
    all: Vec<(&'static str, Value)>,
    dropped: u64,
}

enum Value {
    Text(String),
    Bool(bool),
    Int(i64),
    Double(f64),
}

impl Fields {
    fn write(&self, message: &mut Message, field: u32) {
        for (key, value) in &self.all {
            message.message(field, |pair| {
                pair.text(1, key);
                pair.message(2, |any| match value {
                    Value::Text(text) => any.bytes(1, text.as_bytes()),
                    Value::Bool(value) => any.number(2, (*value).into()),
                    Value::Int(value) => any.number(3, *value as u64),
                    Value::Double(value) => any.double(4, *value),
                });
            });
        }
        if self.dropped > 0 {
            message.number(field + 1, self.dropped);
        }
    }

    fn set(&mut self, key: &'static str, value: Value) {
        match self.all.iter().position(|(other, _)| *other == key) {
            Some(index) => self.all[index].1 = value,
            None if self.all.len() == MOST_PARTS => self.dropped += 1,
            None => self.all.push((key, value)),
        }
    }

    /// A text that has a meaning of its own and is no attribute.
    fn take(&mut self, key: &str) -> Option<String> {
        let index = self.all.iter().position(|(other, _)| *other == key)?;
        match self.all.swap_remove(index).1 {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), Value::Text(value.chars().take(MOST_TEXT).collect()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field.name(), Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field.name(), Value::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match i64::try_from(value) {
            Ok(value) => self.record_i64(field, value),
            Err(_) => self.record_str(field, &value.to_string()),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field.name(), Value::Double(value));
    }
}

impl Recording {
    /// Heeds the fields that have a meaning.
    fn heed(&mut self) {
        if let Some(name) = self.fields.take("otel.name") {
            self.name = name;
        }
        if let Some(kind) = self.fields.take("otel.kind") {
            let kinds = ["internal", "server", "client", "producer", "consumer"];
            let known = kinds.iter().position(|known| kind.eq_ignore_ascii_case(known));
            self.kind = known.map_or(self.kind, |index| index as u64 + 1);
        }
        if let Some(code) = self.fields.take("otel.status_code") {
            self.failed = code.eq_ignore_ascii_case("error");
        }
    }

    fn encode(self, context: SpanContext) -> Vec<u8> {
        let mut span = Message::default();
        let (began, ended) = (nanos(self.began.0), self.began.1.elapsed());
        let ended = began.saturating_add(u64::try_from(ended.as_nanos()).unwrap_or(u64::MAX));
        let (parent, is_remote) = self.parent;
        span.bytes(1, &context.trace.to_be_bytes());
        span.bytes(2, &context.span.to_be_bytes());
        if parent != 0 {
            span.bytes(4, &parent.to_be_bytes());
        }
        span.text(5, &self.name);
        span.number(6, self.kind);
        span.fixed64(7, began);
        span.fixed64(8, ended);
        self.fields.write(&mut span, 9);
        span.fields(&self.events.into_bytes());
        if let Some(dropped) = self.event_count.checked_sub(MOST_PARTS).filter(|dropped| *dropped > 0) {
            span.number(12, dropped as u64);
        }
        if self.failed {
            // STATUS_CODE_ERROR.
            span.message(15, |status| status.number(3, 2));
        }
        // Sampled; whether the parent is remote is known; and so it is.
        span.fixed32(16, 1 | 1 << 8 | u32::from(is_remote) << 9);
        span.into_bytes()
    }
}

/// A number that is not 0.
fn draw() -> u64 {
    seed().max(1)
}

/// What a span is called to other processes, a `traceparent`, where it or one that it is in is known to a [`SpanLayer`]: for
/// [`Spans::with_traceparent`](valkyrie_sdk::Spans::with_traceparent). One that is not recorded says so, and has no record there either.
pub fn traceparent(span: &tracing::Span) -> Option<String> {
    span.with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        Some(nearest(registry.span(id))?.to_string())
    })?
}

/// The nearest of these spans that is known here.
fn nearest<'a, S: for<'b> LookupSpan<'b>>(span: Option<SpanRef<'a, S>>) -> Option<SpanContext> {
    span?.scope().find_map(|span| span.extensions().get::<Open>().map(|open| open.context))
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let remote = fields.take("traceparent").and_then(|text| SpanContext::parse(&text));
        let parent = remote.or_else(|| nearest(span.parent()));
        let own = match parent {
            Some(parent) => SpanContext { span: draw(), ..parent },
            None => {
                let trace = u128::from(draw()) << 64 | u128::from(draw());
                let sampled = (trace as u64) >> 8 < self.0.sampled_below;
                SpanContext { trace, span: draw(), sampled }
            }
        };
        let recording = own.sampled.then(|| {
            let mut recording = Recording {
                parent: (parent.map_or(0, |parent| parent.span), remote.is_some()),
                name: span.name().to_owned(),
                // SPAN_KIND_INTERNAL.
                kind: 1,
                failed: false,
                began: (SystemTime::now(), Instant::now()),
                fields,
                events: Message::default(),
                event_count: 0,
            };
            recording.heed();
            recording
        });
        span.extensions_mut().replace(Open { context: own, recording });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        // A value that writes itself may do whatever it likes: nothing is locked meanwhile.
        let mut fields = Fields::default();
        values.record(&mut fields);
        let mut extensions = span.extensions_mut();
        let open = extensions.get_mut::<Open>().and_then(|open| open.recording.as_mut());
        if let Some(recording) = open {
            fields.all.into_iter().for_each(|(key, value)| recording.fields.set(key, value));
            recording.heed();
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut extensions = span.extensions_mut();
        let open = extensions.get_mut::<Open>().and_then(|open| open.recording.as_mut());
        let Some(recording) = open else { return };
        recording.event_count += 1;
        if recording.event_count > MOST_PARTS {
            return;
        }
        let name = fields.take("message").unwrap_or_else(|| event.metadata().name().to_owned());
        recording.events.message(11, |message| {
            message.fixed64(1, nanos(SystemTime::now()));
            message.text(2, &name);
            fields.write(message, 3);
        });
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(open) = span.extensions_mut().remove::<Open>() else { return };
        if let Some(recording) = open.recording {
            self.0.push(recording.encode(open.context));
        }
    }
}
