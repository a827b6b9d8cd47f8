//! Metrics that are exported, as a receiver has them: it reads them with the types that OpenTelemetry makes of its definitions.

#[path = "../../sdk/tests/calling/mod.rs"]
mod calling;
#[path = "../../sdk/tests/outcomes/mod.rs"]
mod outcomes;
mod receiver;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use calling::bounded;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    },
    common::v1::{KeyValue, any_value},
    metrics::v1::{AggregationTemporality, Metric, metric::Data, number_data_point::Value},
};
use outcomes::{
    CALLS, Counted, EACH_CALL_GOES_OUT, Hanging, connect, counted, handlers, serve, ten_thousand,
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use receiver::{Posted, Reaction, Said, receive, receiver, says, takes};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::mpsc,
};
use valkyrie_otel::{Exporter, Source};
use valkyrie_sdk::{Code, FamilyKind, Level, MetricsWriter, Reason};

/// Far more than any of these posts takes.
const LONG: Duration = Duration::from_secs(60);

fn text(attribute: &KeyValue) -> (String, String) {
    match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => (attribute.key.clone(), text.clone()),
        other => panic!("{other:?}"),
    }
}

/// A message, checked, and what it says of everything.
fn read(posted: &Posted) -> (BTreeMap<String, String>, Vec<Metric>) {
    assert_eq!(posted.path, "/v1/metrics");
    let request = ExportMetricsServiceRequest::decode(&posted.body[..]).unwrap();
    let [of_resource] = &request.resource_metrics[..] else { panic!("{request:?}") };
    let [of_scope] = &of_resource.scope_metrics[..] else { panic!("{request:?}") };
    let scope = of_scope.scope.as_ref().unwrap();
    assert_eq!((scope.name.as_str(), scope.version.as_str()), ("valkyrie", valkyrie_sdk::VERSION));
    let resource = of_resource.resource.as_ref().unwrap();
    (resource.attributes.iter().map(text).collect(), of_scope.metrics.clone())
}

/// The samples of a message as Prometheus' text has them: by series.
fn as_prometheus(metrics: &[Metric], since: SystemTime) -> BTreeMap<String, f64> {
    let nanos =
        |time: SystemTime| u64::try_from(time.duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let (since, until) = (nanos(since), nanos(SystemTime::now()));
    let mut all = BTreeMap::new();
    for metric in metrics {
        let name = &metric.name;
        assert!(!metric.description.is_empty(), "{name}");
        let mut add = |suffix: &str, attributes: &[KeyValue], bound: Option<&str>, value: f64| {
            let labels = attributes.iter().map(text).chain(bound.map(|bound| ("le".into(), bound.into())));
            let labels: Vec<String> = labels.map(|(key, value)| format!("{key}={value:?}")).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            assert!(all.insert(format!("{name}{suffix}{labels}"), value).is_none(), "{name} {labels}");
        };
        match metric.data.as_ref().unwrap() {
            Data::Gauge(gauge) => {
                for point in &gauge.data_points {
                    let Some(Value::AsInt(value)) = point.value else { panic!("{metric:?}") };
                    assert!((since..=until).contains(&point.time_unix_nano), "{metric:?}");
                    add("", &point.attributes, None, value as f64);
                }
            }
            Data::Sum(sum) => {
                assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Cumulative);
                assert!(sum.is_monotonic && name.ends_with("_total"), "{name}");
                for point in &sum.data_points {
                    let Some(Value::AsInt(value)) = point.value else { panic!("{metric:?}") };
                    let times = [since, point.start_time_unix_nano, point.time_unix_nano, until];
                    assert!(times.is_sorted(), "{times:?}");
                    add("", &point.attributes, None, value as f64);
                }
            }
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
                assert_eq!(metric.unit, "s");
                for point in &histogram.data_points {
                    let times = [since, point.start_time_unix_nano, point.time_unix_nano, until];
                    assert!(times.is_sorted(), "{times:?}");
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                    let bounds = point.explicit_bounds.iter().map(f64::to_string).chain(["+Inf".into()]);
                    let mut count = 0;
                    for (bound, within) in bounds.zip(&point.bucket_counts) {
                        count += within;
                        add("_bucket", &point.attributes, Some(&bound), count as f64);
                    }
                    assert_eq!(point.count, count);
                    add("_count", &point.attributes, None, count as f64);
                    add("_sum", &point.attributes, None, point.sum.unwrap());
                }
            }
            other => panic!("{other:?}"),
        }
    }
    all
}

/// The samples of Prometheus' text.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

/// The calls by method and code, as a receiver counts them.
fn calls(metrics: &[Metric], name: &str) -> Counted {
    let metric = metrics.iter().find(|metric| metric.name == name).unwrap();
    let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
    let mut counted = Counted::new();
    for point in &sum.data_points {
        let attributes: BTreeMap<_, _> = point.attributes.iter().map(text).collect();
        let Some(Value::AsInt(value)) = point.value else { panic!("{metric:?}") };
        // As the callers do: a server has no room for the names that they make up.
        let method = if attributes["method"] == "/missing" { "other" } else { &attributes["method"] };
        let code = Code::from_name(&attributes["code"]).unwrap().name();
        *counted.entry((method.to_owned(), code)).or_default() += u64::try_from(value).unwrap();
    }
    counted
}

/// What a client and a server export of 10,000 calls is what the callers saw, by method and code on both sides, and what both say in
/// Prometheus' text, to the last sample.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_calls_of_every_outcome_are_exported_as_they_were_counted() {
    let began = SystemTime::now();
    let hanging = Hanging::default();
    let (endpoint, control) = serve("127.0.0.1:0", handlers(&hanging)).await;
    let client = connect(&endpoint, EACH_CALL_GOES_OUT).await;
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = |name: &str| Exporter::builder(url.clone()).service_name(name).build().unwrap();
    // Both sides export all the while, too.
    let busy = Exporter::builder(url.clone()).interval_ms(5).build().unwrap();
    busy.add(Source::client(&client));
    busy.add(Source::server(&control));
    let seen = ten_thousand(&client, &hanging).await;
    bounded("the last post", busy.shutdown(LONG)).await.unwrap();
    assert!(busy.stats().metrics.posts > 1 && busy.stats().metrics.failures == 0, "{:?}", busy.stats());
    drop(busy);
    while posts.try_recv().is_ok() {}
    assert_eq!(seen.values().sum::<u64>(), CALLS);
    // A server may hear a little later of what its client gave up.
    outcomes::until("the server's count", || (counted(&control.metrics().methods) == seen).then_some(()))
        .await;

    let mut of_client = Vec::new();
    for (name, prefix) in [("client", "valkyrie_client_"), ("server", "valkyrie_server_")] {
        // What is exported between two equal texts is equal to them.
        let text = || match name {
            "client" => client.metrics().prometheus(),
            _ => control.metrics().prometheus(),
        };
        let (resource, metrics, text) = loop {
            let exporter = exporter(name);
            let before = text();
            exporter.add(match name {
                "client" => Source::client(&client),
                _ => Source::server(&control),
            });
            bounded("a post", exporter.shutdown(LONG)).await.unwrap();
            let posted = posts.recv().await.unwrap();
            if before == text() {
                let (resource, metrics) = read(&posted);
                break (resource, metrics, before);
            }
        };
        assert_eq!(resource["service.name"], name);
        assert_eq!(as_prometheus(&metrics, began), samples(&text));
        assert!(metrics.iter().all(|metric| metric.name.starts_with(prefix)));
        assert_eq!(calls(&metrics, &format!("{prefix}calls_total")), seen);
        of_client.push(resource["service.instance.id"].clone());
    }
    assert_ne!(of_client[0], of_client[1], "each exporter is an instance");
    assert!(of_client[0].len() == 36 && &of_client[0][14..15] == "4", "{of_client:?}");
}

/// A source that always says the same.
fn seven() -> Source {
    Source::new(|writer: &mut dyn MetricsWriter| {
        writer.family("a_total", FamilyKind::Counter, "Of a.");
        writer.sample(&[], 7);
        writer.family("b", FamilyKind::Gauge, "Of b.");
        writer.sample(&[("at", "x\"y")], u64::MAX);
        writer.family("c", FamilyKind::Gauge, "Of nobody.");
    })
}

async fn posted(posts: &mut mpsc::UnboundedReceiver<Posted>) -> Posted {
    bounded("a post", posts.recv()).await.unwrap()
}

#[tokio::test]
async fn sources_are_told_apart_and_values_stay_in_their_range() {
    let began = SystemTime::now();
    let (url, mut posts) = receiver(vec![takes()]).await;
    let exporter = Exporter::builder(format!("{url}/otlp/")).header("x-key", "secret").interval_ms(1);
    let exporter = exporter.attribute("service.name", "first").service_name("second").build().unwrap();
    // Without a source there is nothing to post.
    exporter.add(seven().with("of", "one"));
    exporter.add(seven().with("of", "two"));
    let first = posted(&mut posts).await;
    assert!(first.head.contains("\r\nx-key: secret\r\n"), "{}", first.head);
    assert_eq!(first.path, "/otlp/v1/metrics");
    let (resource, metrics) = read(&Posted { path: "/v1/metrics".into(), ..first });
    assert_eq!(resource["service.name"], "second");
    let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(names, ["a_total", "b", "a_total", "b"]);
    let first = as_prometheus(&metrics[..2], began);
    let expected = [("a_total{of=\"one\"}", 7.0), ("b{at=\"x\\\"y\",of=\"one\"}", i64::MAX as f64)];
    assert_eq!(first, expected.map(|(key, value)| (key.to_owned(), value)).into());
    assert_eq!(as_prometheus(&metrics[2..], began)["a_total{of=\"two\"}"], 7.0);
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    // Once.
    exporter.shutdown(LONG).await.unwrap();
}

/// Nobody is there at first: that is said once, costs no memory, and nothing is missing from what comes afterwards.
#[tokio::test]
async fn a_receiver_that_was_away_gets_everything_when_it_comes() {
    // A port that is this test's, and where nobody listens.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let said = Said::new();
    let exporter = Exporter::builder(format!("http://{address}")).interval_ms(1).log(said.clone());
    let exporter = exporter.build().unwrap();
    exporter.add(seven());
    outcomes::until("two failures", || (exporter.stats().metrics.failures > 1).then_some(())).await;
    let mut posts = receive(socket.listen(16).unwrap(), None, vec![takes()]);
    assert_eq!(read(&posted(&mut posts).await).1.len(), 2);
    outcomes::until("an answer", || (exporter.stats().metrics.posts > 0).then_some(())).await;
    outcomes::until("the log", || (said.lines().len() > 1).then_some(())).await;
    let lines = said.lines();
    assert!(lines[0].1.starts_with("metrics cannot be exported: no connection: "), "{lines:?}");
    assert!(lines[1].1.starts_with("metrics are exported again, after "), "{lines:?}");
    assert_eq!((lines.len(), lines[0].0, lines[1].0), (2, Level::Warn, Level::Info), "{lines:?}");
    assert_eq!(exporter.stats().metrics.lost, 0);
}

/// 429, 502, 503 and 504 are for now: the same comes again, when the receiver says.
#[tokio::test]
async fn a_receiver_with_too_much_to_do_is_asked_again_when_it_says() {
    let busy = ["429 Slow", "502 Bad", "503 Busy", "504 Late"];
    let mut reactions: Vec<_> = busy.map(|status| says(status, "retry-after: 0\r\n", b"busy")).into();
    reactions.extend([says("503 Busy", "retry-after: 1\r\n", b""), takes()]);
    let (url, mut posts) = receiver(reactions).await;
    let exporter = Exporter::builder(url).build().unwrap();
    exporter.add(seven());
    let end = tokio::spawn(async move { (exporter.shutdown(LONG).await, exporter.stats().metrics) });
    let mut came = Vec::new();
    for _ in 0..6 {
        came.push(posted(&mut posts).await.at);
    }
    assert!(came[5] - came[4] >= Duration::from_secs(1), "{:?}", came[5] - came[4]);
    let (result, stats) = bounded("the end", end).await.unwrap();
    result.unwrap();
    assert_eq!((stats.posts, stats.failures, stats.lost), (1, 5, 0));
}

/// A wait that is longer than what is left is not begun, and a number that is none is no wait.
#[tokio::test]
async fn an_end_does_not_wait_for_what_comes_after_it() {
    for wait in ["86400", "18446744073709551615"] {
        let (url, mut posts) =
            receiver(vec![says("503 Busy", &format!("retry-after: {wait}\r\n"), b"")]).await;
        let exporter = Exporter::builder(url).build().unwrap();
        exporter.add(seven());
        let status = bounded("the end", exporter.shutdown(LONG)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unavailable, "it answers with status 503"));
        posted(&mut posts).await;
        assert!(posts.try_recv().is_err(), "once");
    }
}

/// What is wrong stays wrong: it is said, counted, and not sent again.
#[tokio::test]
async fn a_post_that_is_refused_is_not_repeated() {
    for status in ["400 Bad", "401 Who", "404 Where", "301 There", "500 Oh"] {
        let (url, mut posts) = receiver(vec![says(status, "retry-after: 0\r\n", b"no")]).await;
        let said = Said::new();
        let exporter = Exporter::builder(url).log(said.clone()).build().unwrap();
        exporter.add(seven());
        let why = format!("it answers with status {}", &status[..3]);
        let ended = bounded("the end", exporter.shutdown(LONG)).await.unwrap_err();
        assert_eq!((ended.code(), ended.message()), (Code::Unavailable, why.as_str()));
        posted(&mut posts).await;
        assert!(posts.try_recv().is_err(), "once");
        let stats = exporter.stats().metrics;
        assert_eq!((stats.posts, stats.failures, stats.lost), (0, 1, 2));
        assert_eq!(said.lines(), [(Level::Warn, format!("metrics cannot be exported: {why}"))]);
    }
}

#[tokio::test]
async fn what_a_receiver_rejects_of_a_post_is_said_and_counted() {
    let partial = |rejected_data_points, error_message: &str| {
        let error_message = error_message.to_owned();
        let partial_success = Some(ExportMetricsPartialSuccess { rejected_data_points, error_message });
        says("200 OK", "", &ExportMetricsServiceResponse { partial_success }.encode_to_vec())
    };
    for (answer, lost) in
        [(partial(1, "too old"), 1), (partial(i64::MAX, "too old"), 2), (partial(-1, ""), 0)]
    {
        let (url, mut posts) = receiver(vec![answer]).await;
        let said = Said::new();
        let exporter = Exporter::builder(url).log(said.clone()).build().unwrap();
        exporter.add(seven());
        bounded("the end", exporter.shutdown(LONG)).await.unwrap();
        posted(&mut posts).await;
        assert!(posts.try_recv().is_err(), "once");
        assert_eq!((exporter.stats().metrics.posts, exporter.stats().metrics.lost), (1, lost));
        let said: Vec<_> = said.lines();
        assert_eq!(said.len(), usize::from(lost > 0), "{said:?}");
        assert!(said.iter().all(|(_, line)| line.ends_with("of 2 data points were rejected: \"too old\"")));
    }
}

/// Whatever a receiver says or does not say, the exporter goes on, holds little, and ends in time.
#[tokio::test]
async fn garbage_silence_and_answers_without_end_are_survived() {
    let raw = |bytes: &[u8]| Reaction::Says(bytes.to_vec());
    let big = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(1 << 20));
    let cases: Vec<(&str, Reaction, Result<(), &str>)> = vec![
        ("not HTTP", raw(b"what is this?\r\n\r\n"), Err("no answer of HTTP: ")),
        ("nothing", raw(b""), Err("no answer of HTTP: ")),
        ("half an answer", raw(b"HTTP/1.1 200"), Err("no answer of HTTP: ")),
        ("a head without end", raw(big.as_bytes()), Err("no answer of HTTP: ")),
        ("a body that is no message", says("200 OK", "", &[0xff; 100]), Ok(())),
        ("half a body", raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx"), Ok(())),
        ("a body without end", Reaction::SaysForEver(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()), Ok(())),
        ("silence", Reaction::IsSilent, Err("no answer in 300 ms")),
    ];
    for (what, reaction, expected) in cases {
        let said = Said::new();
        let (url, mut posts) = receiver(vec![reaction, takes()]).await;
        let exporter = Exporter::builder(url).interval_ms(1).log(said.clone());
        // Only a silence needs to be cut short.
        let exporter = exporter.timeout_ms(if what == "silence" { 300 } else { 60_000 }).build().unwrap();
        exporter.add(seven());
        posted(&mut posts).await;
        // The next one is taken, after a second where the first one failed.
        assert_eq!(read(&posted(&mut posts).await).1.len(), 2, "{what}");
        bounded("the end", exporter.shutdown(LONG)).await.unwrap();
        let lines = said.lines();
        match expected {
            Ok(()) => assert_eq!(lines, [], "{what}"),
            Err(why) => {
                let line = lines[0].1.strip_prefix("metrics cannot be exported: ");
                assert!(line.is_some_and(|line| line.starts_with(why)), "{what}: {lines:?}");
                assert!(exporter.stats().metrics.failures >= 1, "{what}");
            }
        }
        assert_eq!(exporter.stats().metrics.lost, 0, "{what}");
    }
}

#[tokio::test]
async fn an_end_is_over_in_its_time() {
    let (url, _posts) = receiver(vec![Reaction::IsSilent]).await;
    let exporter = Exporter::builder(url).build().unwrap();
    exporter.add(seven());
    let status = bounded("the end", exporter.shutdown(Duration::from_millis(50))).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "the receiver did not answer in 50 ms");
}

/// An authority, and what a server of it shows.
fn authority() -> (String, tokio_rustls::TlsAcceptor) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
    (ca.pem(), Arc::new(config).into())
}

#[tokio::test]
async fn over_https_a_receiver_proves_who_it_is() {
    let ((pem, tls), (stranger, _)) = (authority(), authority());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let mut posts = receive(listener, Some(tls), vec![takes()]);
    let exporter = Exporter::builder(&url).roots(pem).header("authorization", "secret").build().unwrap();
    exporter.add(seven());
    bounded("the end", exporter.shutdown(LONG)).await.unwrap();
    assert!(posted(&mut posts).await.head.contains("\r\nauthorization: secret\r\n"));

    let said = Said::new();
    let exporter = Exporter::builder(&url).roots(stranger).interval_ms(1).log(said.clone()).build().unwrap();
    exporter.add(seven());
    let line = outcomes::until("a failure", || said.lines().pop()).await;
    assert!(line.1.starts_with("metrics cannot be exported: no TLS: "), "{line:?}");
    assert!(posts.try_recv().is_err());
}

#[tokio::test]
async fn what_is_written_wrong_is_refused_with_value_and_fix() {
    let of = |url: &str| Exporter::builder(url).build().unwrap_err();
    for (url, words) in [
        ("", "endpoint \"\" is not a URL; write http://host:4318"),
        ("not a url", "endpoint \"not a url\" is not a URL; write"),
        ("localhost:4318", "endpoint \"localhost:4318\" has no scheme; write"),
        ("/v1/metrics", "endpoint \"/v1/metrics\" has no scheme; write"),
        ("grpc://a:4317", "endpoint \"grpc://a:4317\" is neither http:// nor https://; write"),
        ("http://a:4318/?x=1", "endpoint \"http://a:4318/?x=1\" has a query; write"),
        ("http://u:secret@a:4318", "the endpoint has a user; write"),
        ("https://a:4318", "endpoint \"https://a:4318\" needs the authorities of its server: give roots, or"),
    ] {
        let status = of(url);
        assert_eq!(status.reason(), Reason::INVALID_CONFIGURATION);
        assert!(status.message().starts_with(words), "{url}: {status:?}");
    }
    let at = || Exporter::builder("http://10.0.0.1:4318");
    for (builder, words) in [
        (at().header("x-key", "secret"), "is http, over which anybody on the way reads the headers"),
        (Exporter::builder("http://127.0.0.1").header("a b", "x"), "header \"a b\" has no legal name"),
        (Exporter::builder("http://[::1]").header("a", "se\ncret"), "header \"a\" has no legal value"),
        (Exporter::builder("https://a").roots("x"), "hold no section CERTIFICATE"),
        (at().interval_ms(0), "interval_ms, spans_delay_ms and timeout_ms are at least 1"),
        (at().sample_ratio(1.5), "sample_ratio 1.5 is not from 0 to 1"),
        (at().sample_ratio(f64::NAN), "sample_ratio NaN is not from 0 to 1"),
        (at().timeout_ms(0), "interval_ms, spans_delay_ms and timeout_ms are at least 1"),
    ] {
        let status = builder.build().unwrap_err();
        assert!(status.message().contains(words) && !status.message().contains("cret"), "{status:?}");
    }
    // Neither needs anybody to be there.
    at().build().unwrap();
    let outside = std::thread::spawn(|| Exporter::builder("http://a").build().unwrap_err()).join().unwrap();
    assert!(outside.message().starts_with("no tokio runtime is current"), "{outside:?}");
}
