//! What clients and servers count: the two agree about every call, and what they write is Prometheus' text.

mod calling;
mod outcomes;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use calling::bounded;
use outcomes::{EACH_CALL_GOES_OUT, Hanging, connect, counted, handlers, serve, ten_thousand, until};
use valkyrie_sdk::{
    CallOptions, ClientMetrics, Code, EchoHandler, ServerBuilder, ServerMetrics, Status, handler_fn,
    policy::{DedupPolicy, LimiterPolicy},
};

/// Every call is counted by both sides, with the same method and code, however it ended.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_of_every_outcome_are_counted_alike_on_both_sides() {
    const CALLS: u64 = outcomes::CALLS;
    let hanging = Hanging::default();
    let (endpoint, control) = serve("127.0.0.1:0", handlers(&hanging)).await;
    let client = connect(&endpoint, EACH_CALL_GOES_OUT).await;
    let seen = ten_thousand(&client, &hanging).await;
    let metrics = client.metrics();
    let client_counted = counted(&metrics.methods);
    assert_eq!(client_counted, seen);
    assert_eq!(seen.values().sum::<u64>(), CALLS);
    assert!(seen.len() >= 20, "the outcomes are mixed: {seen:?}");
    // A server may hear a little later of what its client gave up.
    let server = until("the server's count", || {
        let metrics = control.metrics();
        (counted(&metrics.methods) == client_counted).then_some(metrics)
    });
    let server = server.await;
    let [backend] = &metrics.servers[..] else { panic!("{metrics:?}") };
    assert_eq!((backend.attempts, backend.in_flight, backend.streams), (CALLS, 0, 0));
    assert_eq!((backend.dials, backend.connections_made, backend.connections), (1, 1, 1));
    assert!(backend.bytes_in > 0 && backend.bytes_out > 0, "{backend:?}");
    assert_eq!((metrics.retries, metrics.transparent_retries, metrics.throttled), (0, 0, 0));

    let (of_client, of_server) = (read(&metrics.prometheus()), read(&server.prometheus()));
    let calls = |families: &Families, name: &str| families[name].1.values().sum::<f64>();
    assert_eq!(calls(&of_client, "valkyrie_client_calls_total"), (CALLS) as f64);
    assert_eq!(calls(&of_server, "valkyrie_server_calls_total"), (CALLS) as f64);
}

/// What the policies did, and what became of connections.
#[tokio::test]
async fn retries_breakers_and_connections_are_counted_by_kind_and_server() {
    let fails = || {
        let builder = ServerBuilder::new().handler("/echo", EchoHandler);
        builder.handler("/fails", handler_fn(|_| async { Err(Status::new(Code::Unavailable, "")) })).handler(
            "/later",
            handler_fn(|_| async {
                Err(Status::new(Code::ResourceExhausted, "").with_pushback(Duration::from_millis(1)))
            }),
        )
    };
    let (endpoint, control) = serve("127.0.0.1:0", fails()).await;
    let config = r#"{
        "methods": [{"names": ["*"], "idempotent": true, "retry": {"base_ms": 1, "cap_ms": 1}},
                    {"names": ["/fails"], "breaker": {"min_calls": 4}}]
    }"#;
    let client = connect(&format!("{endpoint},tcp://127.0.0.1:1"), config).await;
    assert_eq!(client.call("/fails", "").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(client.call("/later", "").await.unwrap_err().code(), Code::ResourceExhausted);
    client.request("").await.unwrap();
    let metrics = client.metrics();
    assert_eq!((metrics.retries, metrics.pushback_retries, metrics.transparent_retries), (2, 2, 0));
    assert_eq!(metrics.not_retried, [(valkyrie_sdk::policy::GiveUp::AttemptsExhausted, 2)]);
    assert_eq!(metrics.servers[0].attempts, 7);
    // The fourth failure opens the breaker; the call after it has nowhere to go.
    client.call("/fails", "").await.unwrap_err();
    client.call("/fails", "").await.unwrap_err();
    let metrics = client.metrics();
    let backend = &metrics.servers[0];
    assert_eq!(backend.breaker_changes.map(|(_, count)| count), [0, 1, 0, 0], "{backend:?}");
    assert_eq!(backend.breakers_open, 1);
    assert!(backend.breaker_rejections >= 1, "{backend:?}");

    let text = read(&metrics.prometheus());
    let server = format!("server={endpoint:?}");
    let value = |name: &str, labels: &str| text[name].1[&format!("{name}{{{labels}}}")];
    assert_eq!(value("valkyrie_client_retries_total", "kind=\"pushback\""), 2.0);
    assert_eq!(value("valkyrie_client_connections", &server), 1.0);
    assert_eq!(value("valkyrie_client_breaker_changes_total", &format!("{server},state=\"open\"")), 1.0);
    assert_eq!(text["valkyrie_client_servers"].1["valkyrie_client_servers"], 2.0);

    control.shutdown_now();
    let lost = || (client.metrics().servers[0].connections_lost == 1).then_some(());
    until("the end of the connection", lost).await;
    let failed =
        |metrics: &ClientMetrics| metrics.servers.iter().map(|backend| backend.dials_failed).sum::<u64>();
    let before = failed(&client.metrics());
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call("/echo", "").await.map(drop) }
    });
    until("a dial that failed", || (failed(&client.metrics()) > before).then_some(())).await;
    call.abort();
}

/// What a server's limit, its keys and its drain do.
#[tokio::test]
async fn a_server_counts_what_it_sheds_replays_and_drains() {
    let hanging = Hanging::default();
    let limit = LimiterPolicy {
        initial: 1,
        min: 1,
        max: 1,
        max_waiting: 1,
        wait: Duration::from_secs(60),
        ..LimiterPolicy::default()
    };
    let builder =
        handlers(&hanging).concurrency_limit(limit).dedup(DedupPolicy::default()).drain_timeout_ms(0);
    let (endpoint, control) = serve("127.0.0.1:0", builder).await;
    let client = connect(&endpoint, EACH_CALL_GOES_OUT).await;
    for _ in 0..2 {
        let once = CallOptions::new().with_idempotency_key("once");
        client.call_with("/echo", "x", once).await.unwrap();
    }
    let waits = |metrics: &ServerMetrics, running, waiting| {
        let limit = metrics.limit.unwrap();
        limit.running == running && limit.waiting == [0, waiting, 0]
    };
    let hangs = |id: &'static str| {
        let client = client.clone();
        tokio::spawn(async move { client.call("/hangs", id).await })
    };
    let runs = hangs("first");
    until("the handler", || waits(&control.metrics(), 1, 0).then_some(())).await;
    let line = hangs("second");
    until("the line", || waits(&control.metrics(), 1, 1).then_some(())).await;
    let shed = client.call("/echo", "x").await.unwrap_err();
    assert_eq!(shed.code(), Code::ResourceExhausted);
    let metrics = control.metrics();
    assert_eq!(metrics.limit.unwrap().shed, [0, 1, 0]);
    let dedup = metrics.dedup.unwrap();
    assert_eq!((dedup.keys, dedup.bytes, dedup.replayed, dedup.forgotten), (1, 1, 1, 0));
    let text = read(&metrics.prometheus());
    assert_eq!(text["valkyrie_server_line"].1["valkyrie_server_line{class=\"normal\"}"], 1.0);
    assert_eq!(text["valkyrie_server_shed_total"].1["valkyrie_server_shed_total{class=\"normal\"}"], 1.0);

    bounded("the drain", control.shutdown()).await;
    runs.await.unwrap().unwrap_err();
    line.await.unwrap().unwrap_err();
    let metrics = control.metrics();
    assert_eq!(metrics.connections_drained, 1);
    let ended: u64 = metrics.methods.iter().flat_map(|of| of.calls.iter().map(|(_, count)| count)).sum();
    assert_eq!(ended, 5, "every call is counted once: {metrics:?}");
}

/// A family's type, and its samples as they stand there.
type Families = HashMap<String, (String, HashMap<String, f64>)>;

/// Reads Prometheus' text format as strictly as anybody may: each family once, with help and type before its samples, no series twice,
/// names, labels and escapes as they are to be, counters that end in `_total`, histograms whose buckets grow up to their count.
fn read(text: &str) -> Families {
    assert!(text.ends_with('\n'));
    let mut families = Families::new();
    let (mut family, mut helped) = (String::new(), HashSet::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind) && helped.contains(name), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = name.to_owned();
            assert!(families.insert(family.clone(), (kind.to_owned(), HashMap::new())).is_none(), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = read_series(series);
            let (kind, samples) = families.get_mut(&family).unwrap();
            let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} in {family}"));
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(value >= 0.0 && samples.insert(series.to_owned(), value).is_none(), "{line}");
        }
    }
    for (name, (_, samples)) in families.iter().filter(|(_, (kind, _))| kind == "histogram") {
        for (series, count) in
            samples.iter().filter(|(series, _)| series.starts_with(&format!("{name}_count")))
        {
            let labels = series[name.len() + "_count".len()..].trim_end_matches('}');
            let bucket = |bound: &str| samples[&format!("{name}_bucket{labels},le=\"{bound}\"}}")];
            let mut bounds: Vec<f64> = Vec::new();
            for series in
                samples.keys().filter(|series| series.starts_with(&format!("{name}_bucket{labels},")))
            {
                let (_, bound) = series.rsplit_once("le=\"").unwrap();
                let bound = bound.trim_end_matches("\"}");
                bounds.push(if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() });
            }
            bounds.sort_by(f64::total_cmp);
            assert_eq!(bounds.len(), 21);
            assert_eq!(bucket("+Inf"), *count);
            let text = |bound: &f64| if bound.is_infinite() { "+Inf".into() } else { bound.to_string() };
            let counts: Vec<f64> = bounds.iter().map(|bound| bucket(&text(bound))).collect();
            assert!(counts.is_sorted(), "{counts:?}");
        }
    }
    families
}

/// The name of a series, whose labels are well-formed.
fn read_series(series: &str) -> &str {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{series}"))),
        None => (series, ""),
    };
    assert!(is_name(name), "{series}");
    let mut rest = labels;
    while !rest.is_empty() {
        let (key, value) = rest.split_once("=\"").unwrap();
        assert!(is_name(key), "{series}");
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next().unwrap_or_else(|| panic!("{series} has no end")) {
                (_, '\\') => assert!(matches!(characters.next(), Some((_, '\\' | '"' | 'n'))), "{series}"),
                (at, '"') => break at,
                (_, character) => assert_ne!(character, '\n', "{series}"),
            }
        };
        rest = &value[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or_else(|| {
            assert!(rest.is_empty(), "{series}");
            rest
        });
    }
    name
}
