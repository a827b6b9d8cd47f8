//! What a server posts to a receiver of OpenTelemetry.

#[cfg(feature = "otel")]
#[path = "../../../otel/tests/receiver/mod.rs"]
mod receiver;

use super::{Folder, run};

#[cfg(feature = "otel")]
mod on {
    use std::collections::BTreeMap;

    use opentelemetry_proto::tonic::{
        collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
        common::v1::{KeyValue, any_value::Value},
        metrics::v1::{Metric, metric::Data, number_data_point},
        trace::v1::span::SpanKind,
    };
    use prost::Message;
    use valkyrie_sdk::{CallOptions, Code, Metadata};

    use super::{
        super::{Folder, Server, run},
        receiver::{Posted, receiver, takes},
    };

    fn attributes(all: &[KeyValue]) -> BTreeMap<String, String> {
        let text = |attribute: &KeyValue| match attribute.value.clone().unwrap().value.unwrap() {
            Value::StringValue(text) => (attribute.key.clone(), text),
            other => panic!("{other:?}"),
        };
        all.iter().map(text).collect()
    }

    fn read(posted: &Posted) -> (BTreeMap<String, String>, Vec<Metric>) {
        let mut request = ExportMetricsServiceRequest::decode(&posted.body[..]).unwrap();
        let mut of_resource = request.resource_metrics.remove(0);
        let attributes = attributes(&of_resource.resource.unwrap().attributes);
        (attributes, of_resource.scope_metrics.remove(0).metrics)
    }

    /// The values of a metric, by their attributes' values.
    fn values(metrics: &[Metric], name: &str) -> BTreeMap<Vec<String>, i64> {
        let points = match metrics.iter().find(|metric| metric.name == name).map(|metric| &metric.data) {
            Some(Some(Data::Sum(sum))) => &sum.data_points,
            Some(Some(Data::Gauge(gauge))) => &gauge.data_points,
            other => panic!("{name}: {other:?}"),
        };
        let value = |point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| {
            let Some(number_data_point::Value::AsInt(value)) = point.value else { panic!("{point:?}") };
            (attributes(&point.attributes).into_values().collect(), value)
        };
        points.iter().map(value).collect()
    }

    // The receiver works while the test waits for the process.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_receiver_gets_what_the_server_counts_and_once_more_at_its_end() {
        let (url, mut posts) = receiver(vec![takes()]).await;
        let folder = Folder::new();
        let text = format!(
            "bind: ['127.0.0.1:0']\notlp_endpoint: {url}\notlp_service_name: orders\notlp_interval_ms: 100\n"
        );
        let file = folder.write("server.yaml", &text);
        assert_eq!(run(&["check", &file]).status.code(), Some(0));
        let mut server = Server::start(&["--config", &file]);
        let client = server.client().await;
        for _ in 0..10 {
            client.request("x").await.unwrap();
        }
        assert_eq!(client.call("/missing", "").await.unwrap_err().code(), Code::Unimplemented);
        let prometheus = client.call("/valkyrie.Metrics/Get", "").await.unwrap().message;
        let prometheus = String::from_utf8(prometheus.to_vec()).unwrap();
        client.close().await;
        server.signal("TERM");
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("export"), "{log}");

        let mut last = None;
        while let Ok(posted) = posts.try_recv() {
            last = Some(posted);
        }
        let (resource, metrics) = read(&last.unwrap());
        assert_eq!(resource["service.name"], "orders");
        assert_eq!(resource["service.version"], valkyrie_sdk::VERSION);
        let calls = values(&metrics, "valkyrie_server_calls_total");
        let of = |code: &str, method: &str| calls[&vec![code.to_owned(), method.to_owned()]];
        assert_eq!((of("OK", "/echo"), of("UNIMPLEMENTED", "other")), (10, 1));
        assert_eq!(values(&metrics, "valkyrie_draining")[&vec![]], 1);
        assert_eq!(values(&metrics, "valkyrie_build_info")[&vec![valkyrie_sdk::VERSION.to_owned()]], 1);
        let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let mut lines = prometheus.lines().peekable();
        let mut families = Vec::new();
        while let Some(line) = lines.next() {
            if let Some(family) = line.strip_prefix("# TYPE ")
                && lines.peek().is_some_and(|line| !line.starts_with('#'))
            {
                families.push(family.split_once(' ').unwrap().0);
            }
        }
        assert_eq!(names, families, "the same as in the text, in its order");
    }

    /// A call that is in a trace becomes a part of it; what a log says stays as it is.
    #[tokio::test(flavor = "multi_thread")]
    async fn calls_are_spans_of_their_callers_traces() {
        let (url, mut posts) = receiver(vec![takes()]).await;
        let folder = Folder::new();
        let text = format!(
            "bind: ['127.0.0.1:0']\notlp_endpoint: {url}\notlp_spans: true\notlp_sample_percent: 0\nlog_level: debug\n"
        );
        let mut server = Server::start(&["--config", &folder.write("server.yaml", &text)]);
        let client = server.client().await;
        client.request("in no trace").await.unwrap();
        for flags in ["00", "01"] {
            let traceparent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}");
            let metadata = Metadata::new().with("traceparent", traceparent).unwrap();
            client.call_with("/echo", "x", CallOptions::new().with_metadata(metadata)).await.unwrap();
        }
        client.close().await;
        server.signal("TERM");
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{log}");
        let line = log.lines().find(|line| line.contains("call ended")).unwrap();
        assert!(line.contains("DEBUG call ended method=/echo"), "{line}");
        let mut spans = Vec::new();
        while let Ok(posted) = posts.try_recv() {
            if posted.path == "/v1/traces" {
                let request = ExportTraceServiceRequest::decode(&posted.body[..]).unwrap();
                spans.extend(request.resource_spans[0].scope_spans[0].spans.clone());
            }
        }
        let [span] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!((span.name.as_str(), span.kind()), ("/echo", SpanKind::Server));
        assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
        assert_eq!(span.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    }

    /// A server serves whether its receiver is there or not: it says so, once, and ends in time.
    #[tokio::test]
    async fn a_receiver_that_is_away_costs_a_line_of_the_log() {
        let folder = Folder::new();
        let text = "bind: ['127.0.0.1:0']\notlp_endpoint: http://127.0.0.1:1\notlp_interval_ms: 100\n";
        let mut server = Server::start(&["--config", &folder.write("server.yaml", text)]);
        let line = server.wait_for_log("metrics cannot be exported");
        assert!(line.contains("WARN") && line.contains("http://127.0.0.1:1"), "{line}");
        assert_eq!(server.client().await.request("x").await.unwrap(), "x");
        server.signal("TERM");
        let (code, log) = server.ended();
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(log.matches("metrics cannot be exported").count(), 0, "{log}");
        assert!(log.contains("the last metrics were not exported"), "{log}");
    }
}

#[test]
fn what_cannot_be_exported_to_is_refused_with_line_value_and_fix() {
    let folder = Folder::new();
    for (text, words) in [
        (
            "otlp_endpoint: localhost:4318\n",
            ":2:1: otlp_endpoint: endpoint \"localhost:4318\" has no scheme; write",
        ),
        (
            "otlp_endpoint: grpc://a:4317\n",
            ":2:1: otlp_endpoint: endpoint \"grpc://a:4317\" is neither http://",
        ),
        ("otlp_endpoint: https://a\notlp_roots: /no/such\n", ":3:1: otlp_roots: /no/such: "),
    ] {
        let file = folder.write("server.yaml", &format!("metrics: true\n{text}"));
        let output = run(&["check", &file]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        let words = if cfg!(feature = "otel") { words } else { ":2:1: otlp_endpoint: " };
        assert!(error.contains(words), "{error}");
        assert_eq!(error.contains("without the feature otel"), !cfg!(feature = "otel"), "{error}");
    }
}
