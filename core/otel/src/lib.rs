//! Metrics of Valkyrie's clients and servers, and spans, for OpenTelemetry: OTLP over HTTP, in protobuf.
//!
//! Of metrics, names, attributes and numbers are those of the sdk's Prometheus text, whichever way they are collected. Nothing global is installed.
//! What the specification says of messages, answers, retries and times is heeded; its own crates are not needed for
//! that: the messages are a few fields, written here, and read by OpenTelemetry's types in the tests.
#![forbid(unsafe_code)]

mod context;
mod exporter;
mod metrics;
mod post;
mod protobuf;
mod spans;

pub use exporter::{Exporter, ExporterBuilder, ExporterStats, SignalStats};
pub use metrics::Source;
pub use spans::{SpanLayer, traceparent};
