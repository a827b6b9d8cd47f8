//! What a benchmark says: a table, JSON, HdrHistogram's file.

use std::{fmt::Write, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::{Benchmark, Failures};

/// The quantiles that are shown, with their names.
const QUANTILES: [(&str, f64); 7] = [
    ("p50", 0.5),
    ("p75", 0.75),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
];
/// The longest bar.
const BAR: u64 = 40;
/// Steps to each half of the distance to 100 % in HdrHistogram's file, as its own tools have it.
const TICKS: u32 = 5;

pub(super) struct Report<'a> {
    pub(super) options: &'a Benchmark,
    pub(super) connected: usize,
    pub(super) elapsed: Duration,
    /// Nanoseconds.
    pub(super) all: Histogram<u64>,
    /// Messages that came back.
    pub(super) received: u64,
    pub(super) failures: Failures,
    pub(super) interrupted: bool,
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1_000.0
}

impl Report<'_> {
    fn per_second(&self) -> f64 {
        self.all.len() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn messages_per_second(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Each latency with its name, in microseconds; none when nothing succeeded.
    fn latencies(&self) -> Vec<(&'static str, f64)> {
        if self.all.is_empty() {
            return Vec::new();
        }
        let quantiles =
            QUANTILES.map(|(name, quantile)| (name, micros(self.all.value_at_quantile(quantile))));
        let mut latencies = vec![("min", micros(self.all.min()))];
        latencies.extend(quantiles);
        latencies.extend([("max", micros(self.all.max())), ("mean", self.all.mean() / 1_000.0)]);
        latencies
    }

    /// How many times that of the earlier result a number is, and what that was.
    fn compared(&self, name: &str, now: f64) -> Option<(f64, f64)> {
        let earlier = self.options.compare.as_ref()?;
        let value = if name == "calls_per_second" { &earlier[name] } else { &earlier["latency_us"][name] };
        let before = value.as_f64().filter(|before| *before > 0.0)?;
        Some((now / before, before))
    }

    pub(super) fn table(&self) -> String {
        let options = self.options;
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<22} {value}");
        };
        let beside = |name: &str, now: f64| {
            let compared = self.compared(name, now);
            compared.map_or_else(String::new, |(ratio, before)| format!("  {ratio:.2} x {before:.1}"))
        };
        line("endpoint", format!("{} {}", options.target.endpoint(), options.method));
        line("connections", format!("{} of {}", self.connected, options.connections));
        match options.duration {
            Some(duration) => line("duration", format!("{} s", duration.as_secs_f64())),
            None => {
                let total = options.connections.saturating_mul(options.requests);
                line("requests", format!("{} per connection, {total} in all", options.requests));
            }
        }
        if let Some(warm_up) = options.warm_up {
            line("warm-up", format!("{} s", warm_up.as_secs_f64()));
        }
        line("in flight", format!("{} per connection", options.in_flight));
        line("message", format!("{} bytes", options.size));
        if let Some(messages) = options.stream {
            line("stream", format!("{messages} messages sent in each, {} came back in all", self.received));
        }
        line(
            "succeeded",
            format!("{}{}", self.all.len(), if self.interrupted { " (interrupted: partial)" } else { "" }),
        );
        line("failed", self.failures.count().to_string());
        for (what, count) in &self.failures.counts {
            line("", format!("{count} × {what}"));
        }
        line("elapsed", format!("{:.3} s", self.elapsed.as_secs_f64()));
        let per_second = self.per_second();
        line("throughput", format!("{per_second:.0} calls/s{}", beside("calls_per_second", per_second)));
        if options.stream.is_some() {
            line("messages received", format!("{:.0} /s", self.messages_per_second()));
        }
        match options.rate {
            None => line("latency (closed loop)", "µs".into()),
            Some(rate) => line("latency (from due)", format!("µs, {rate} calls/s asked for")),
        }
        for (name, value) in self.latencies() {
            line(&format!("  {name}"), format!("{value:>12.1}{}", beside(name, value)));
        }
        text + &self.bars()
    }

    /// How many took how long, a bar for each doubling.
    fn bars(&self) -> String {
        let classes: Vec<_> = self
            .all
            .iter_log(1_000, 2.0)
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .collect();
        let most = classes.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
        let mut text = String::new();
        for (to, count) in classes.into_iter().skip_while(|(_, count)| *count == 0) {
            let share = count as f64 * 100.0 / self.all.len() as f64;
            let bar = "█".repeat(usize::try_from((count * BAR).div_ceil(most)).unwrap_or(0));
            let _ = writeln!(text, "  ≤ {:>12.1} {share:>8.3} % {bar}", micros(to));
        }
        text
    }

    /// The percentile distribution that HdrHistogram's plotters read, in milliseconds.
    pub(super) fn hdr(&self) -> String {
        let millis = |nanos: f64| nanos / 1e6;
        let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
        let mut total = 0;
        for step in self.all.iter_quantiles(TICKS) {
            total += step.count_since_last_iteration();
            let (value, quantile) = (millis(step.value_iterated_to() as f64), step.quantile_iterated_to());
            let _ = match quantile < 1.0 {
                true => {
                    writeln!(text, "{value:12.3} {quantile:2.12} {total:10} {:14.2}", 1.0 / (1.0 - quantile))
                }
                false => writeln!(text, "{value:12.3} {quantile:2.12} {total:10}"),
            };
        }
        let (mean, deviation) = (millis(self.all.mean()), millis(self.all.stdev()));
        let _ = writeln!(text, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
        let _ = writeln!(
            text,
            "#[Max     = {:12.3}, Total count    = {:12}]",
            millis(self.all.max() as f64),
            self.all.len()
        );
        text
    }

    pub(super) fn json(&self) -> Value {
        let options = self.options;
        let latencies = self.latencies();
        let ratio =
            |name: &str, now: f64| self.compared(name, now).map(|(ratio, _)| (name.to_owned(), ratio.into()));
        let compared: Map<String, Value> = std::iter::once(("calls_per_second", self.per_second()))
            .chain(latencies.iter().copied())
            .filter_map(|(name, now)| ratio(name, now))
            .collect();
        let latency: Map<String, Value> =
            latencies.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let mut all = json!({
            "endpoint": options.target.endpoint(),
            "method": options.method,
            "connections": self.connected,
            "requests_per_connection": options.duration.is_none().then_some(options.requests),
            "duration_s": options.duration.map(|duration| duration.as_secs_f64()),
            "warm_up_s": options.warm_up.unwrap_or_default().as_secs_f64(),
            "in_flight_per_connection": options.in_flight,
            "rate": options.rate,
            "message_bytes": options.size,
            "messages_per_stream": options.stream,
            "messages_received": self.received,
            "messages_received_per_second": self.messages_per_second(),
            "succeeded": self.all.len(),
            "failed": self.failures.count(),
            "failures": self.failures.counts,
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "calls_per_second": self.per_second(),
            "latency_us": latency,
        });
        if options.compare.is_some() {
            all["times_the_earlier"] = compared.into();
        }
        all
    }
}
