//! Spans that are exported, as a receiver has them.

#[path = "../../sdk/tests/calling/mod.rs"]
mod calling;
#[path = "../../sdk/tests/outcomes/mod.rs"]
mod outcomes;
mod receiver;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use calling::bounded;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use outcomes::until;
use prost::Message;
use receiver::{Posted, Reaction, Said, receive, receiver, says, takes};
use tokio::{net::TcpSocket, sync::mpsc};
use tracing::{field::Empty, info, info_span, subscriber::DefaultGuard};
use tracing_subscriber::layer::SubscriberExt;
use valkyrie_otel::{Exporter, SpanLayer};
use valkyrie_sdk::{
    CallOptions, Client, Code, Level, Metadata, Reply, ServerBuilder, Spans, Status, Traced, handler_fn,
    policy::ServiceConfig,
};

/// Far more than any of these posts takes.
const LONG: Duration = Duration::from_secs(60);

/// This thread's spans are exported until the guard goes.
fn export(layer: SpanLayer) -> DefaultGuard {
    tracing::subscriber::set_default(tracing_subscriber::registry().with(layer))
}

async fn posted(posts: &mut mpsc::UnboundedReceiver<Posted>) -> Vec<Span> {
    read(&bounded("a post", posts.recv()).await.unwrap())
}

fn read(posted: &Posted) -> Vec<Span> {
    assert_eq!(posted.path, "/v1/traces");
    let request = ExportTraceServiceRequest::decode(&posted.body[..]).unwrap();
    let [of_resource] = &request.resource_spans[..] else { panic!("{request:?}") };
    let [of_scope] = &of_resource.scope_spans[..] else { panic!("{request:?}") };
    assert_eq!(of_scope.scope.as_ref().unwrap().name, "valkyrie");
    let resource = attributes(&of_resource.resource.as_ref().unwrap().attributes);
    assert_eq!(resource["service.name"], Value::StringValue("test".into()));
    for span in &of_scope.spans {
        assert!(span.trace_id.len() == 16 && span.trace_id.iter().any(|byte| *byte != 0), "{span:?}");
        assert!(span.span_id.len() == 8 && span.span_id.iter().any(|byte| *byte != 0), "{span:?}");
        assert!([0, 8].contains(&span.parent_span_id.len()), "{span:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert_eq!(span.flags & 0x101, 0x101, "{span:?}");
    }
    of_scope.spans.clone()
}

fn attributes(all: &[KeyValue]) -> BTreeMap<String, Value> {
    let pair =
        |attribute: &KeyValue| (attribute.key.clone(), attribute.value.clone().unwrap().value.unwrap());
    let read: BTreeMap<_, _> = all.iter().map(pair).collect();
    assert_eq!(read.len(), all.len(), "each key once");
    read
}

fn text(value: &str) -> Value {
    Value::StringValue(value.into())
}

#[tokio::test]
async fn a_call_is_a_span_and_its_attempts_are_its_children() {
    let failures = Arc::new(std::sync::atomic::AtomicUsize::new(2));
    let handler = handler_fn(move |_| {
        let fails = failures
            .fetch_update(std::sync::atomic::Ordering::SeqCst, std::sync::atomic::Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .is_ok();
        async move { if fails { Err(Status::new(Code::Unavailable, "")) } else { Ok(Reply::message("x")) } }
    });
    let builder = ServerBuilder::new().handler("/flaky", handler);
    let (endpoint, _control) = outcomes::serve("127.0.0.1:0", builder).await;
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").build().unwrap();
    let guard = export(exporter.layer());
    let config =
        r#"{"methods": [{"names": ["*"], "idempotent": true, "retry": {"base_ms": 1, "cap_ms": 1}}]}"#;
    let client = Client::builder().endpoint(&endpoint).observer(Arc::new(Spans::new()));
    let client = client.service_config(ServiceConfig::parse(config).unwrap()).build();
    let client = bounded("a connection", client).await.unwrap();
    {
        let caller = info_span!("caller");
        let mut call = Box::pin(client.call("/flaky", ""));
        // A call begins where its future is polled first: within its caller's span.
        let begun = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(caller.in_scope(|| std::future::Future::poll(call.as_mut(), cx)))
        });
        assert!(begun.await.is_pending());
        bounded("the call", call).await.unwrap();
    }
    drop(guard);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    let spans = posted(&mut posts).await;
    assert!(posts.try_recv().is_err(), "one post for all of them");
    let named = |name: &str| spans.iter().filter(|span| span.name == name).cloned().collect::<Vec<_>>();
    let ([caller], [call]) = (&named("caller")[..], &named("/flaky")[..]) else { panic!("{spans:?}") };
    assert_eq!(caller.parent_span_id, b"");
    assert_eq!((&call.parent_span_id, call.kind()), (&caller.span_id, SpanKind::Internal));
    assert_eq!(attributes(&call.attributes)["code"], text("OK"));
    assert!(call.status.is_none(), "{call:?}");
    let attempts = named("attempt");
    assert_eq!((attempts.len(), spans.len()), (3, 5));
    for (index, attempt) in attempts.iter().enumerate() {
        let fields = attributes(&attempt.attributes);
        assert_eq!((&attempt.parent_span_id, attempt.kind()), (&call.span_id, SpanKind::Client));
        assert_eq!(fields["number"], Value::IntValue(index as i64 + 1));
        assert_eq!(fields["server"], text(&endpoint));
        let failed = attempt.status.as_ref().map(|status| status.code());
        assert_eq!(failed, (index < 2).then_some(StatusCode::Error));
        assert!(call.start_time_unix_nano <= attempt.start_time_unix_nano);
    }
    assert!(spans.iter().all(|span| span.trace_id == call.trace_id));
    let ids: BTreeSet<_> = spans.iter().map(|span| span.span_id.clone()).collect();
    assert_eq!(ids.len(), 5);
    assert_eq!((exporter.stats().spans.posts, exporter.stats().spans.lost), (1, 0));
}

/// Fields of every type, fields with a meaning, events, and bounds for all of it.
#[tokio::test]
async fn fields_and_events_are_exported_within_bounds() {
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").build().unwrap();
    let guard = export(exporter.layer());
    let span = info_span!(
        "code's name",
        otel.name = "shown",
        otel.kind = "Server",
        otel.status_code = Empty,
        text = "a",
        yes = true,
        least = i64::MIN,
        most = u64::MAX,
        half = 0.5,
        debug = ?Some(1),
        later = 1
    );
    span.in_scope(|| {
        info!(reason = "none", "something happened");
        (0..99).for_each(|number| info!(number, "again"));
    });
    span.record("later", 2);
    span.record("otel.status_code", "error");
    drop(span);
    info!("outside of any span");
    info_span!("long", text = "é".repeat(5_000)).in_scope(|| ());
    drop(guard);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    let spans = posted(&mut posts).await;
    let [shown, long] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((shown.name.as_str(), shown.kind()), ("shown", SpanKind::Server));
    assert_eq!(shown.status.as_ref().unwrap().code(), StatusCode::Error);
    let expected = [
        ("text", text("a")),
        ("yes", Value::BoolValue(true)),
        ("least", Value::IntValue(i64::MIN)),
        ("most", text("18446744073709551615")),
        ("half", Value::DoubleValue(0.5)),
        ("debug", text("Some(1)")),
        ("later", Value::IntValue(2)),
    ];
    assert_eq!(attributes(&shown.attributes), expected.map(|(key, value)| (key.to_owned(), value)).into());
    assert_eq!((shown.events.len(), shown.dropped_events_count), (64, 36));
    assert_eq!(shown.events[0].name, "something happened");
    assert_eq!(attributes(&shown.events[0].attributes), [("reason".to_owned(), text("none"))].into());
    assert_ne!(long.trace_id, shown.trace_id);
    assert_eq!(attributes(&long.attributes)["text"], text(&"é".repeat(1_024)));
}

/// What began elsewhere goes on as it began there; what begins here is recorded as often as it should be.
#[tokio::test]
async fn a_trace_goes_on_and_is_recorded_as_where_it_began() {
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").sample_ratio(0.0).build().unwrap();
    let guard = export(exporter.layer());
    let of = |flags: &str| format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
    info_span!("begins here").in_scope(|| info_span!("and in it").in_scope(|| ()));
    info_span!("not there", traceparent = of("00")).in_scope(|| info_span!("nor in it").in_scope(|| ()));
    info_span!("malformed", traceparent = "what").in_scope(|| ());
    info_span!("there", traceparent = %of("01")).in_scope(|| info_span!("in it").in_scope(|| ()));
    drop(guard);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    let spans = posted(&mut posts).await;
    let [inner, there] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((inner.name.as_str(), there.name.as_str()), ("in it", "there"));
    assert_eq!(there.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(there.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!((there.flags, inner.flags), (0x301, 0x101), "one parent is remote");
    assert!(there.attributes.is_empty(), "{there:?}");
    assert_eq!((&inner.trace_id, &inner.parent_span_id), (&there.trace_id, &there.span_id));

    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").sample_ratio(0.5).build().unwrap();
    let guard = export(exporter.layer());
    (0..400).for_each(|_| info_span!("a").in_scope(|| ()));
    drop(guard);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    // 10 standard deviations of 10 each.
    let spans = posted(&mut posts).await.len();
    assert!((100..300).contains(&spans), "{spans}");
}

/// Nobody is there: spans wait, in bounds, and those for which there was no room are counted. All that waited comes, each once.
#[tokio::test]
async fn spans_wait_in_bounds_for_a_receiver_that_is_away() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let said = Said::new();
    let url = format!("http://{}", socket.local_addr().unwrap());
    let exporter = Exporter::builder(url).service_name("test").log(said.clone());
    let exporter = exporter.spans_delay_ms(1).build().unwrap();
    let guard = export(exporter.layer());
    info_span!("first").in_scope(|| ());
    until("a failure", || (exporter.stats().spans.failures > 0).then_some(())).await;
    (0..3_000).for_each(|number| info_span!("later", number).in_scope(|| ()));
    drop(guard);
    assert_eq!(exporter.stats().spans.lost, 3_000 - 2_048);
    let mut posts = receive(socket.listen(16).unwrap(), None, vec![takes()]);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    let mut all = Vec::new();
    while let Ok(posted) = posts.try_recv() {
        let spans = read(&posted);
        assert!(spans.len() <= 512);
        all.extend(spans);
    }
    assert_eq!(all.len(), 1 + 2_048);
    let numbers: Vec<_> =
        all[1..].iter().map(|span| attributes(&span.attributes)["number"].clone()).collect();
    assert_eq!(numbers, (0..2_048).map(Value::IntValue).collect::<Vec<_>>(), "in their order, each once");
    let lines: Vec<_> = said.lines();
    assert!(lines[0].1.starts_with("spans cannot be exported: no connection: "), "{lines:?}");
    assert!(lines.len() == 2 && lines[1].1.starts_with("spans are exported again, after "), "{lines:?}");
    let stats = exporter.stats();
    assert_eq!((stats.spans.posts, stats.metrics.posts, stats.metrics.failures), (5, 0, 0));
}

/// 503 brings the same spans again; 400 ends them, and only them; a part that is rejected is counted.
#[tokio::test]
async fn a_batch_is_repeated_refused_or_rejected_as_the_receiver_says() {
    let partial_success = Some(ExportTracePartialSuccess { rejected_spans: 1, error_message: "no".into() });
    let reactions: Vec<Reaction> = vec![
        says("503 Busy", "retry-after: 0\r\n", b""),
        takes(),
        says("400 Bad", "", b""),
        says("200 OK", "", &ExportTraceServiceResponse { partial_success }.encode_to_vec()),
    ];
    let (url, mut posts) = receiver(reactions).await;
    let said = Said::new();
    let exporter = Exporter::builder(url).service_name("test").log(said.clone());
    let exporter = exporter.spans_delay_ms(1).build().unwrap();
    let _guard = export(exporter.layer());
    info_span!("first").in_scope(|| ());
    let (once, again) = (posted(&mut posts).await, posted(&mut posts).await);
    assert_eq!((once.len(), &once), (1, &again));
    until("an answer", || (exporter.stats().spans.posts == 1).then_some(())).await;
    info_span!("second").in_scope(|| ());
    assert_eq!(posted(&mut posts).await[0].name, "second");
    until("an answer", || (exporter.stats().spans.lost == 1).then_some(())).await;
    info_span!("third").in_scope(|| ());
    assert_eq!(posted(&mut posts).await[0].name, "third");
    until("an answer", || (exporter.stats().spans.lost == 2).then_some(())).await;
    let stats = exporter.stats().spans;
    assert_eq!((stats.posts, stats.failures), (2, 2));
    let lines: Vec<_> = said.lines();
    let starts = [
        "spans cannot be exported: it answers with status 503",
        "spans are exported again, after 1 failures",
        "spans cannot be exported: it answers with status 400",
        "1 of 1 spans were rejected: \"no\"",
    ];
    assert!(starts.iter().zip(&lines).all(|(start, (_, line))| line.starts_with(start)), "{lines:?}");
    assert_eq!(lines[0].0, Level::Warn);
}

/// The spans by their names.
fn by_name(spans: &[Span]) -> BTreeMap<&str, Vec<&Span>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    spans.iter().for_each(|span| all.entry(span.name.as_str()).or_default().push(span));
    all
}

/// A call's span, its attempts, what the server did for each, and what that called in turn: one trace, each the child of what caused it.
#[tokio::test]
async fn a_trace_goes_from_a_client_through_its_server_to_the_next() {
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").build().unwrap();
    let guard = export(exporter.layer());
    let observer = || Arc::new(Spans::new().with_traceparent(valkyrie_otel::traceparent));
    let connect = |endpoint: String| async move {
        let client = Client::builder().endpoint(endpoint).observer(observer()).build();
        bounded("a connection", client).await.unwrap()
    };
    let behind = handler_fn(|_| async { Err(Status::new(Code::NotFound, "")) });
    let behind = ServerBuilder::new().handler("/behind", Traced::new(behind));
    let (behind, _control) = outcomes::serve("127.0.0.1:0", behind).await;
    let behind = connect(behind).await;
    let (shown, mut headers) = mpsc::unbounded_channel();
    let front = handler_fn(move |call| {
        let (behind, shown) = (behind.clone(), shown.clone());
        async move {
            let _ = shown.send(call.metadata().get_str("traceparent").map(str::to_owned));
            // As soon as it waits, its connection's thread does other things.
            tokio::task::yield_now().await;
            assert_eq!(behind.call("/behind", "").await.unwrap_err().code(), Code::NotFound);
            Ok(Reply::message("x"))
        }
    });
    let fails = handler_fn(|_| async { panic!("on purpose") });
    let streams = handler_fn(|mut call| async move {
        call.send("x").await?;
        Ok(Reply::end())
    });
    let front = ServerBuilder::new()
        .handler("/front", Traced::new(front))
        .handler("/fails", Traced::new(fails))
        .handler("/streams", Traced::new(streams));
    let (front, control) = outcomes::serve("127.0.0.1:0", front).await;
    let front = connect(front).await;
    bounded("a call", front.call("/front", "")).await.unwrap();
    let header = headers.recv().await.unwrap().unwrap();
    assert_eq!(front.call("/fails", "").await.unwrap_err().code(), Code::Internal);
    let mut stream = front.stream("/streams", "", CallOptions::new()).await.unwrap();
    while stream.recv().await.unwrap().is_some() {}
    drop(stream);
    // What the caller wrote stays, and is ignored where it is malformed.
    let written = Metadata::new().with("traceparent", "00-what").unwrap();
    bounded("a call", front.call_with("/front", "", CallOptions::new().with_metadata(written)))
        .await
        .unwrap();
    assert_eq!(headers.recv().await.unwrap().as_deref(), Some("00-what"));
    bounded("the drain", control.shutdown()).await;
    drop(guard);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();

    let spans = posted(&mut posts).await;
    let parent = |of: &Span| {
        let found = spans.iter().find(|span| span.span_id == of.parent_span_id);
        found.unwrap_or_else(|| panic!("{of:?} has no parent"))
    };
    let names = |of: &Span| {
        let (mut line, mut at) = (of.name.clone(), of);
        while !at.parent_span_id.is_empty() {
            at = parent(at);
            line = format!("{} > {line}", at.name);
        }
        assert_eq!(at.trace_id, of.trace_id);
        line
    };
    let lines: Vec<_> = spans.iter().filter(|span| span.kind() == SpanKind::Server).map(names).collect();
    let served = ["/front > attempt > /front", "/fails > attempt > /fails", "/streams > attempt > /streams"];
    for line in served {
        assert!(lines.iter().any(|found| found == line), "{line} is not in {lines:#?}");
    }
    let whole = "/front > attempt > /front > /behind > attempt > /behind";
    assert_eq!(lines.iter().filter(|line| *line == whole).count(), 1, "{lines:#?}");
    // The malformed one: a trace of the server's own.
    assert_eq!(lines.iter().filter(|line| *line == "/front").count(), 1, "{lines:#?}");
    assert_eq!(lines.iter().filter(|line| *line == "/front > /behind > attempt > /behind").count(), 1);
    let spans = by_name(&spans);
    let first = spans["attempt"].iter().find(|span| header.contains(&hex(&span.span_id))).unwrap();
    assert_eq!(header, format!("00-{}-{}-01", hex(&first.trace_id), hex(&first.span_id)));
    let servers = |name: &str| {
        spans[name].iter().filter(|span| span.kind() == SpanKind::Server).copied().collect::<Vec<_>>()
    };
    let failed = |span: &Span| span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error);
    let [fails] = servers("/fails")[..] else { panic!("{spans:?}") };
    assert_eq!((attributes(&fails.attributes)["code"].clone(), failed(fails)), (text("INTERNAL"), true));
    for behind in servers("/behind") {
        // The caller's own doing, and so no fault of the server; to the client it is one.
        assert_eq!(
            (attributes(&behind.attributes)["code"].clone(), failed(behind)),
            (text("NOT_FOUND"), false)
        );
        assert!(failed(parent_of(&spans, behind)), "{spans:?}");
        assert_eq!(behind.flags, 0x301);
    }
}

fn parent_of<'a>(spans: &BTreeMap<&str, Vec<&'a Span>>, of: &Span) -> &'a Span {
    spans.values().flatten().find(|span| span.span_id == of.parent_span_id).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A trace that is not recorded is not recorded anywhere, and a call without a span takes nothing along.
#[tokio::test]
async fn what_is_not_recorded_is_said_to_the_server() {
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").sample_ratio(0.0).build().unwrap();
    let guard = export(exporter.layer());
    let handler = handler_fn(|call| async move {
        Ok(Reply::message(call.metadata().get_str("traceparent").unwrap_or("none").to_owned()))
    });
    let builder = ServerBuilder::new().handler("/echo", Traced::new(handler));
    let (endpoint, _control) = outcomes::serve("127.0.0.1:0", builder).await;
    let observer = Arc::new(Spans::new().with_traceparent(valkyrie_otel::traceparent));
    let client = Client::builder().endpoint(endpoint).observer(observer).build();
    let client = bounded("a connection", client).await.unwrap();
    let said = bounded("a call", client.request("")).await.unwrap();
    assert!(said.starts_with(b"00-") && said.ends_with(b"-00"), "{said:?}");
    drop(guard);
    assert_eq!(bounded("a call", client.request("")).await.unwrap(), "none");
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    assert!(posts.try_recv().is_err());
}

/// A call that its caller gives up ends its server's span, too.
#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled_in_its_servers_span() {
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(url).service_name("test").spans_delay_ms(1).build().unwrap();
    let _guard = export(exporter.layer());
    let (begun, mut begins) = mpsc::unbounded_channel();
    let hangs = handler_fn(move |_| {
        let _ = begun.send(());
        std::future::pending()
    });
    let builder = ServerBuilder::new().handler("/hangs", Traced::new(hangs));
    let (endpoint, _control) = outcomes::serve("127.0.0.1:0", builder).await;
    let client = bounded("a connection", Client::builder().endpoint(endpoint).build()).await.unwrap();
    tokio::select! {
        result = client.call("/hangs", "") => panic!("{result:?}"),
        begun = begins.recv() => begun.unwrap(),
    }
    let spans = posted(&mut posts).await;
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((span.name.as_str(), &attributes(&span.attributes)["code"]), ("/hangs", &text("CANCELLED")));
    assert!(span.status.is_none(), "{span:?}");
}
