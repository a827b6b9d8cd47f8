//! What a client's observer is told of its calls, and the spans that are made of it.

mod calling;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use calling::bounded;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};
use valkyrie_sdk::{
    CallId, CallOptions, Client, ClientBuilder, Code, EchoHandler, Event, Observer, Reply, ServerBuilder,
    ServerControl, Spans, Status, Step, handler_fn, policy::ServiceConfig,
};

/// A server whose `/flaky` fails two times out of three.
async fn serve() -> (String, ServerControl) {
    let calls = Arc::new(AtomicUsize::new(0));
    let flaky = handler_fn(move |_| {
        let call = calls.fetch_add(1, SeqCst);
        async move {
            match call % 3 {
                2 => Ok(Reply::message("at last")),
                _ => Err(Status::new(Code::Unavailable, "on purpose")),
            }
        }
    });
    let builder =
        ServerBuilder::new().bind("127.0.0.1:0").handler("/echo", EchoHandler).handler("/flaky", flaky);
    let builder =
        builder.handler("/fails", handler_fn(|_| async { Err(Status::new(Code::Unavailable, "")) }));
    let server = bounded("a bind", builder.build()).await.unwrap();
    let (endpoint, control) = (server.endpoints().remove(0), server.control());
    tokio::spawn(async move { server.start().await });
    (endpoint, control)
}

fn config() -> ServiceConfig {
    let text = r#"{
        "methods": [{"names": ["*"], "idempotent": true, "retry": {"base_ms": 1, "cap_ms": 1}, "breaker": {"enabled": false}},
                    {"names": ["/fails"], "breaker": {"enabled": true, "min_calls": 3}}],
        "throttle": {"enabled": false}, "retry_budget": {"cost": 1, "extra_per_second": 1000000}
    }"#;
    ServiceConfig::parse(text).unwrap()
}

/// Keeps a line for each step, without its times.
#[derive(Default)]
struct Steps(Mutex<Vec<(Option<CallId>, String)>>);

impl Steps {
    fn take(&self) -> Vec<(Option<CallId>, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// Those that have come, once one of them has these words.
    async fn until(&self, words: &str) -> Vec<String> {
        let found = async {
            while !self.0.lock().unwrap().iter().any(|(_, line)| line.contains(words)) {
                tokio::task::yield_now().await;
            }
        };
        bounded(words, found).await;
        self.take().into_iter().map(|(_, line)| line).collect()
    }
}

impl Observer for Steps {
    fn note(&self, event: &Event<'_>) {
        let name = |failure: Option<&Status>| failure.map_or("OK", |status| status.reason().name());
        let line = match event.step {
            Step::Call { method, idempotent, deadline, .. } => {
                assert!(deadline.is_none_or(|deadline| deadline > event.at));
                format!("call {method} {idempotent}")
            }
            Step::Waits => "waits".to_owned(),
            Step::Attempt { number, .. } => format!("attempt {number}"),
            Step::AttemptEnded { number, server, failure, .. } => {
                format!("attempt {number} {} {}", server.is_some(), name(failure))
            }
            Step::Retry { transparent, .. } => format!("retry {transparent}"),
            Step::NoRetry { why, .. } => format!("no retry {}", why.name()),
            Step::Ended { failure, .. } => format!("ended {}", name(failure)),
            Step::Dial { .. } => "dial".to_owned(),
            Step::Connected { .. } => "connected".to_owned(),
            Step::Greeted { version, limits, .. } => {
                format!("greeted {version} {}", limits.max_message_bytes)
            }
            Step::Dialled { failure, .. } => format!("dialled {}", name(failure)),
            Step::Lost { failure, .. } => format!("lost {}", name(failure)),
            Step::Breaker { method, edge, .. } => {
                format!("breaker {method} {} {}", edge.from.name(), edge.to.name())
            }
            _ => return,
        };
        self.0.lock().unwrap().push((event.call, line));
    }
}

fn builder(endpoint: &str, observer: Arc<dyn Observer>) -> ClientBuilder {
    Client::builder().endpoint(endpoint).service_config(config()).observer(observer)
}

#[tokio::test]
async fn each_step_of_a_call_and_of_its_connection_is_told() {
    let (endpoint, control) = serve().await;
    let steps = Arc::new(Steps::default());
    let client = builder(&endpoint, steps.clone()).lazy(true).build().await.unwrap();
    client.call("/flaky", "").await.unwrap();
    let told = steps.take();
    let of =
        |call: bool| told.iter().filter(move |(id, _)| id.is_some() == call).map(|(_, line)| line.as_str());
    let attempts = ["attempt 1", "attempt 1 true NONE", "retry false", "attempt 2", "attempt 2 true NONE"];
    let expected = [
        &["call /flaky true", "waits"],
        &attempts[..],
        &["retry false", "attempt 3", "attempt 3 true OK", "ended OK"],
    ];
    assert_eq!(of(true).collect::<Vec<_>>(), expected.concat());
    let connection: Vec<_> = of(false).collect();
    assert_eq!(connection[..3], ["dial", "connected", "dialled OK"]);
    assert_eq!(connection[3..], ["greeted 1 4194304"], "{connection:?}");

    client.call("/fails", "").await.unwrap_err();
    let lines = steps.until("breaker").await;
    assert!(lines.contains(&"breaker /fails closed open".to_owned()), "{lines:?}");
    client.call("/fails", "").await.unwrap_err();
    let lines = steps.until("ended").await;
    assert_eq!(lines, ["call /fails true", "ended BREAKER_OPEN"]);

    // A stream, and one that its reader leaves.
    let (mut sender, mut receiver) = client.open("/echo", CallOptions::new()).await.unwrap();
    sender.send("x").await.unwrap();
    sender.finish_now();
    while receiver.recv().await.unwrap().is_some() {}
    let lines = steps.until("ended").await;
    assert_eq!(lines, ["call /echo true", "attempt 1", "attempt 1 true OK", "ended OK"]);
    drop(client.open("/echo", CallOptions::new()).await.unwrap());
    assert_eq!(steps.until("ended").await, ["call /echo true", "attempt 1", "ended CANCELLED"]);

    control.shutdown_now();
    let lines = steps.until("lost").await;
    assert_eq!(lines[0], "lost CONNECTION_LOST");
    let forever = CallOptions::new().with_timeout(Duration::MAX);
    let call = tokio::spawn(async move { client.call_with("/echo", "", forever).await.map(drop) });
    let lines = steps.until("attempt 1 false").await;
    assert!(lines.contains(&"dialled CONNECT_FAILED".to_owned()), "{lines:?}");
    assert!(lines.contains(&"attempt 1 false CONNECT_FAILED".to_owned()), "{lines:?}");
    call.abort();
}

/// Whatever goes on at once, the steps of one call are its own, in their order, from its beginning to its one end.
#[tokio::test(flavor = "multi_thread")]
async fn steps_of_calls_that_go_on_at_once_are_told_apart() {
    const CALLS: usize = 2_000;
    let (endpoint, _control) = serve().await;
    let steps = Arc::new(Steps::default());
    let client = builder(&endpoint, steps.clone()).build().await.unwrap();
    let tasks: Vec<_> = (0..CALLS)
        .map(|call| {
            let client = client.clone();
            let method = if call % 2 == 0 { "/flaky" } else { "/echo" };
            tokio::spawn(async move { client.call(method, "").await.is_ok() })
        })
        .collect();
    let mut well = 0;
    for task in tasks {
        well += usize::from(bounded("a call", task).await.unwrap());
    }
    let mut calls: BTreeMap<CallId, Vec<String>> = BTreeMap::new();
    for (call, line) in steps.take() {
        call.into_iter().for_each(|call| calls.entry(call).or_default().push(line.clone()));
    }
    assert_eq!(calls.len(), CALLS);
    let mut ended_well = 0;
    for (id, lines) in &calls {
        assert!(lines[0].starts_with("call "), "{id}: {lines:?}");
        assert!(lines[lines.len() - 1].starts_with("ended "), "{id}: {lines:?}");
        let of = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
        assert_eq!((of("call "), of("ended ")), (1, 1), "{id}: {lines:?}");
        assert_eq!(of("attempt "), 2 * (of("retry ") + 1), "{id}: {lines:?}");
        ended_well += of("ended OK");
    }
    assert_eq!(ended_well, well);
}

/// A script writes its trace as before, and another observer is told the same of calls.
#[tokio::test]
async fn scripts_have_observers_too() {
    let steps = Arc::new(Steps::default());
    let client = builder("script://a/1=UNAVAILABLE", steps.clone()).build().await.unwrap();
    client.call("/echo", "").await.unwrap();
    let trace = client.call("/script/trace", "").await.unwrap().message;
    let trace = String::from_utf8(trace.to_vec()).unwrap();
    let told: Vec<_> = steps.take().into_iter().map(|(_, line)| line).collect();
    let counted = |line: &&String| !line.starts_with("connected") && !line.starts_with("greeted");
    assert_eq!(told.iter().filter(counted).count(), trace.lines().count(), "{told:?}\n{trace}");
}

/// Keeps each span as a line: its parents' names, its own, and its fields in the end.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<BTreeSet<String>>>);

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Those of one run only.
        if !["server", "backoff_us", "call"].contains(&field.name()) {
            write!(self.0, " {}={value:?}", field.name()).unwrap();
        }
        if field.name() == "backoff_us" {
            write!(self.0, " backoff={}", format!("{value:?}") != "0").unwrap();
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collected {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields(String::new());
        attributes.record(&mut fields);
        context.span(id).unwrap().extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &span::Id, record: &span::Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        record.record(span.extensions_mut().get_mut::<Fields>().unwrap());
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        let names: Vec<_> = span.scope().from_root().map(|span| span.name()).collect();
        let fields = &span.extensions().get::<Fields>().unwrap().0.clone();
        self.0.lock().unwrap().insert(format!("{}{fields}", names.join(">")));
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let names: Vec<_> = context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
            .map(|span| span.name())
            .collect();
        self.0.lock().unwrap().insert(format!("{}!{}", names.join(">"), fields.0));
    }
}

#[tokio::test]
async fn calls_and_attempts_are_spans() {
    let (endpoint, _control) = serve().await;
    let collected = Collected::default();
    let _default = tracing::subscriber::set_default(tracing_subscriber::registry().with(collected.clone()));
    let client = builder(&endpoint, Arc::new(Spans::new())).build().await.unwrap();
    let mut call = Box::pin(client.call("/flaky", ""));
    let caller = tracing::info_span!("caller");
    // A call begins where its future is polled first: within its caller's span.
    let begun = std::future::poll_fn(|cx| Poll::Ready(caller.in_scope(|| call.as_mut().poll(cx))));
    assert!(begun.await.is_pending());
    bounded("the call", call).await.unwrap();
    drop(caller);
    client.call("/fails", "").await.unwrap_err();
    drop(client);
    let collected = collected.0.lock().unwrap().clone();
    let wanted = [
        "caller>call otel.name=\"/flaky\" method=\"/flaky\" idempotent=true code=\"OK\"",
        "caller>call>attempt otel.kind=\"client\" number=1 backoff=false code=\"UNAVAILABLE\" otel.status_code=\"ERROR\" reason=\"NONE\"",
        "caller>call>attempt otel.kind=\"client\" number=2 backoff=true code=\"UNAVAILABLE\" otel.status_code=\"ERROR\" reason=\"NONE\"",
        "caller>call>attempt otel.kind=\"client\" number=3 backoff=true code=\"OK\"",
        "call otel.name=\"/fails\" method=\"/fails\" idempotent=true code=\"UNAVAILABLE\" otel.status_code=\"ERROR\" reason=\"NONE\"",
        "call! message=no retry why=\"attempts_exhausted\"",
        "! message=breaker method=\"/fails\" from=\"closed\" to=\"open\"",
        "! message=connected",
    ];
    for wanted in wanted {
        assert!(collected.contains(wanted), "{wanted} is not in {collected:#?}");
    }
}
