//! Metrics on their way out: families of samples, for whoever writes them, and Prometheus' text.

use std::fmt::Write;

use super::{Histogram, MethodMetrics};

/// What the samples of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FamilyKind {
    /// Grows only; its name ends in `_total`.
    Counter,
    /// What is so now.
    Gauge,
    /// How often it took how long, in seconds; its name ends in `_seconds`.
    Histogram,
}

impl FamilyKind {
    /// As Prometheus calls it: `counter`, `gauge`, `histogram`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Takes metrics, family by family: [`ClientMetrics::write`](crate::ClientMetrics::write) and `ServerMetrics::write`. Whatever a
/// writer makes of them, names, labels and numbers are the same.
pub trait MetricsWriter {
    /// Begins a family, which takes all that follows until the next one.
    fn family(&mut self, name: &str, kind: FamilyKind, help: &str);
    /// A sample of a counter or a gauge.
    fn sample(&mut self, labels: &[(&str, &str)], value: u64);
    /// A sample of a histogram.
    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram);
}

/// Writes Prometheus' exposition format 0.0.4.
#[derive(Debug, Default)]
pub struct PrometheusText {
    out: String,
    /// Of the family that is written.
    name: String,
}

impl PrometheusText {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    pub fn into_text(self) -> String {
        self.out
    }

    fn begin<'a>(&mut self, suffix: &str, labels: impl IntoIterator<Item = &'a (&'a str, &'a str)>) {
        self.out.extend([&self.name, suffix]);
        let mut before = '{';
        for (key, value) in labels {
            self.out.push(before);
            self.out.extend([*key, "=\""]);
            for character in value.chars() {
                match character {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    other => self.out.push(other),
                }
            }
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
    }

    fn end(&mut self, value: impl std::fmt::Display) {
        // A string takes everything.
        let _ = writeln!(self.out, " {value}");
    }
}

impl MetricsWriter for PrometheusText {
    fn family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        name.clone_into(&mut self.name);
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.begin("", labels);
        self.end(value);
    }

    fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut sum = 0;
        for (bound, count) in histogram.buckets() {
            sum += count;
            let bound = bound.map_or("+Inf".to_owned(), |bound| bound.as_secs_f64().to_string());
            self.begin("_bucket", labels.iter().chain([&("le", bound.as_str())]));
            self.end(sum);
        }
        self.begin("_sum", labels);
        self.end(histogram.sum().as_secs_f64());
        self.begin("_count", labels);
        self.end(sum);
    }
}

/// Families whose names begin alike.
pub(super) struct Families<'a> {
    pub(super) to: &'a mut dyn MetricsWriter,
    pub(super) prefix: &'static str,
}

impl Families<'_> {
    /// Begins a family of samples.
    pub(super) fn family(&mut self, name: &str, kind: FamilyKind, help: &str) {
        self.to.family(&[self.prefix, name].concat(), kind, help);
    }

    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.to.sample(labels, value);
    }

    /// Calls by method and code, and how long they took.
    pub(super) fn methods(&mut self, methods: &[MethodMetrics]) {
        self.family("calls_total", FamilyKind::Counter, "Calls that ended, by method and code.");
        for MethodMetrics { method, calls, .. } in methods {
            for (code, count) in calls {
                self.sample(&[("method", method), ("code", code.name())], *count);
            }
        }
        self.family("call_duration_seconds", FamilyKind::Histogram, "How long calls took, by method.");
        for MethodMetrics { method, duration, .. } in methods {
            self.to.histogram(&[("method", method)], duration);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_hold_whatever_a_caller_writes() {
        let mut text = PrometheusText::new();
        text.family("a_b", FamilyKind::Gauge, "Of c.");
        text.sample(&[("method", "/x\"\\\n}"), ("code", "OK")], 7);
        let written = "# HELP a_b Of c.\n# TYPE a_b gauge\na_b{method=\"/x\\\"\\\\\\n}\",code=\"OK\"} 7\n";
        assert_eq!(text.into_text(), written);
    }
}
