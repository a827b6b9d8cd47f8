//! Families of samples as OTLP's metrics. The fields' numbers are those of opentelemetry/proto/metrics/v1/metrics.proto.

use std::time::{SystemTime, UNIX_EPOCH};

use valkyrie_sdk::{Client, FamilyKind, Histogram, MetricsWriter, ServerControl, VERSION};

use crate::protobuf::Message;

/// AGGREGATION_TEMPORALITY_CUMULATIVE.
const CUMULATIVE: u64 = 2;

type Write = dyn Fn(&mut dyn MetricsWriter) + Send + Sync;

/// Whose metrics are exported, by [`Exporter::add`](crate::Exporter::add).
pub struct Source {
    write: Box<Write>,
    labels: Vec<(String, String)>,
    since: SystemTime,
}

impl Source {
    /// Whatever writes itself. It is asked once for each export, on a thread of the runtime, and must not block. What it counts began
    /// now.
    pub fn new(write: impl Fn(&mut dyn MetricsWriter) + Send + Sync + 'static) -> Self {
        Self { write: Box::new(write), labels: Vec::new(), since: SystemTime::now() }
    }

    /// A client's metrics, as [`Client::metrics`] has them. Make it when you make the client: what is counted is said to have begun now.
    pub fn client(client: &Client) -> Self {
        let client = client.clone();
        Self::new(move |writer| client.metrics().write(writer))
    }

    /// A server's metrics, as [`ServerControl::metrics`] has them. Make it before the server starts.
    pub fn server(control: &ServerControl) -> Self {
        let control = control.clone();
        Self::new(move |writer| control.metrics().write(writer))
    }

    /// With one more attribute at each data point: what tells two clients of a process apart.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }
}

/// A time as OTLP has it.
pub(crate) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes a KeyValue whose value is text.
pub(crate) fn attribute(message: &mut Message, field: u32, key: &str, value: &str) {
    message.message(field, |pair| {
        pair.text(1, key);
        // An empty text is a value, too.
        pair.message(2, |any| any.bytes(1, value.as_bytes()));
    });
}

/// What was measured, as an ExportMetricsServiceRequest, and how many data points are in it.
pub(crate) fn request<'a>(
    resource: &[u8],
    sources: impl IntoIterator<Item = &'a Source>,
    now: SystemTime,
) -> (Vec<u8>, u64) {
    let mut scope = Message::default();
    scope.message(1, |scope| {
        scope.text(1, "valkyrie");
        scope.text(2, VERSION);
    });
    let mut count = 0;
    for source in sources {
        let mut points = Points {
            metrics: Message::default(),
            family: None,
            points: Message::default(),
            labels: &source.labels,
            since: nanos(source.since),
            now: nanos(now),
            count: 0,
        };
        (source.write)(&mut points);
        points.end_family();
        scope.fields(&points.metrics.into_bytes());
        count += points.count;
    }
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.bytes(1, resource);
        of_resource.bytes(2, &scope.into_bytes());
    });
    (request.into_bytes(), count)
}

/// Takes the samples of a source.
struct Points<'a> {
    /// The families that are complete.
    metrics: Message,
    /// Name, kind and help of the one that is not.
    family: Option<(String, FamilyKind, String)>,
    points: Message,
    labels: &'a [(String, String)],
    since: u64,
    now: u64,
    count: u64,
}

impl Points<'_> {
    fn end_family(&mut self) {
        let points = std::mem::take(&mut self.points);
        let Some((name, kind, help)) = self.family.take() else { return };
        if points.is_empty() {
            return;
        }
        self.metrics.message(2, |metric| {
            metric.text(1, &name);
            metric.text(2, &help);
            // The names say it, too; a unit of 1 would give gauges another name on their way to Prometheus.
            let is_of = |unit: &str| name.split('_').any(|word| word == unit);
            metric.text(
                3,
                if is_of("seconds") {
                    "s"
                } else if is_of("bytes") {
                    "By"
                } else {
                    ""
                },
            );
            let field = match kind {
                FamilyKind::Gauge => 5,
                FamilyKind::Counter => 7,
                FamilyKind::Histogram => 9,
            };
            metric.message(field, |data| {
                data.fields(&points.into_bytes());
                if kind != FamilyKind::Gauge {
                    data.number(2, CUMULATIVE);
                }
                if kind == FamilyKind::Counter {
                    data.number(3, 1);
                }
            });
        });
    }

    /// A data point, whose attributes are in that field.
    fn point(&mut self, attributes: u32, labels: &[(&str, &str)], write: impl FnOnce(&mut Message)) {
        let is_gauge = matches!(self.family, Some((_, FamilyKind::Gauge, _)));
        let Self { points, since, now, labels: of_source, count, .. } = self;
        points.message(1, |point| {
            if !is_gauge {
                point.fixed64(2, *since);
            }
            point.fixed64(3, *now);
            write(point);
            let of_source = of_source.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            for (key, value) in labels.iter().copied().chain(of_source) {
                attribute(point, attributes, key, value);
            }
        });
        *count += 1;
    }
}

impl MetricsWriter for Points<'_> {
    fn family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        self.end_family();
        self.family = Some((name.to_owned(), kind, help.to_owned()));
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        let value = value.min(i64::MAX.unsigned_abs());
        self.point(7, labels, |point| point.fixed64(6, value));
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        self.point(9, labels, |point| {
            point.fixed64(4, histogram.count());
            point.double(5, histogram.sum().as_secs_f64());
            point.packed64(6, histogram.buckets().map(|(_, count)| count));
            let bounds = histogram.buckets().filter_map(|(bound, _)| bound);
            point.packed64(7, bounds.map(|bound| bound.as_secs_f64().to_bits()));
        });
    }
}
