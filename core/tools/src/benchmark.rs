//! `benchmark`: calls on many connections, and what they took.
//!
//! Without a rate it is a closed loop: each worker waits for its answer before it calls again, so a stalled server is
//! asked less, and the stall shows in few of the numbers. With a rate, calls have their times, and a latency counts from
//! there: who waits behind a stall is measured too, and nothing is omitted in coordination with the server.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use valkyrie_sdk::{Class, Client, DEFAULT_METHOD, Status};

use crate::{
    output::{Failure, print},
    send::Target,
};

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

/// Measures a server. --requests counts per connection: 100 connections with 1000 requests make 100,000 calls. Each call
/// in flight waits for its answer before the next (closed loop); with --rate each call has its time, and its latency
/// counts from there (no coordinated omission). Ctrl-C prints what was measured so far.
#[derive(clap::Args)]
pub(crate) struct Benchmark {
    #[command(flatten)]
    target: Target,
    /// Connections to open.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    connections: u64,
    /// Requests per connection.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    requests: u64,
    /// Calls in flight per connection.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    in_flight: u64,
    /// Calls per second over all connections, each due at its own time, and late calls measured from when they were
    /// due. As fast as answers come without it.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,
    /// Size of each message in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 32)]
    size: usize,
    /// The method to call.
    #[arg(long, default_value = DEFAULT_METHOD)]
    method: String,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

/// What all workers write to.
struct Shared {
    method: String,
    message: Bytes,
    /// Nanoseconds; in several parts, so that workers rarely wait for each other.
    histograms: Vec<Mutex<Histogram<u64>>>,
    failures: Mutex<Failures>,
    schedule: Option<Schedule>,
}

/// When calls are due, in the order in which workers ask.
struct Schedule {
    started: Instant,
    rate: u64,
    next: AtomicU64,
}

impl Schedule {
    /// Waits until the next call is due; since when it is.
    async fn next(&self) -> Instant {
        let number = self.next.fetch_add(1, Relaxed);
        let due = self.started + Duration::from_secs_f64(number as f64 / self.rate as f64);
        // The runtime's timers are late by up to two milliseconds, which would count as the server's.
        if let Some(early) = due.checked_sub(Duration::from_millis(2)).filter(|early| *early > Instant::now())
        {
            tokio::time::sleep_until(early.into()).await;
        }
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        due
    }
}

#[derive(Default)]
struct Failures {
    /// By code and reason.
    counts: BTreeMap<String, u64>,
    first: Option<Status>,
}

impl Failures {
    fn add(&mut self, status: Status) {
        *self.counts.entry(format!("{} ({})", status.code(), status.reason())).or_default() += 1;
        self.first.get_or_insert(status);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn histogram() -> Histogram<u64> {
    // Three digits are within what the constructor takes.
    Histogram::new(3).unwrap_or_else(|_| unreachable!("3 significant digits are legal"))
}

impl Benchmark {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let parts = std::thread::available_parallelism().map_or(1, usize::from) * 4;
        let mut shared = Shared {
            method: self.method.clone(),
            message: vec![b'v'; self.size].into(),
            histograms: (0..parts).map(|_| Mutex::new(histogram())).collect(),
            failures: Mutex::default(),
            schedule: None,
        };
        // One listener from the beginning to the end: between two, a Ctrl-C would be lost.
        let (interrupt, mut interrupted) = watch::channel(false);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                interrupt.send_replace(true);
            }
            interrupt.closed().await;
        });
        let clients = tokio::select! {
            clients = self.connect(&shared) => clients,
            () = stopped(&mut interrupted) => return Err(Failure::Interrupted),
        };
        if clients.is_empty() {
            let first = lock(&shared.failures).first.take();
            return first.map_or(Ok(()), |status| Err(status.into()));
        }
        let started = Instant::now();
        shared.schedule = self.rate.map(|rate| Schedule { started, rate, next: AtomicU64::new(0) });
        let shared = Arc::new(shared);
        let mut workers = JoinSet::new();
        for (index, client) in clients.iter().enumerate() {
            let left = Arc::new(AtomicU64::new(self.requests));
            for _ in 0..self.in_flight.min(self.requests) {
                workers.spawn(work(shared.clone(), index, client.clone(), left.clone(), interrupted.clone()));
            }
        }
        while workers.join_next().await.is_some() {}
        let elapsed = started.elapsed();
        let interrupted = *interrupted.borrow();
        let mut all = histogram();
        for part in &shared.histograms {
            // Both resize, so nothing is out of range.
            let _ = all.add(&*lock(part));
        }
        let failures = std::mem::take(&mut *lock(&shared.failures));
        let report = Report { options: &self, connected: clients.len(), elapsed, all, failures, interrupted };
        let text = if self.json { format!("{}\n", report.json()) } else { report.table() };
        print(text.as_bytes())?;
        for client in clients {
            client.close_now();
        }
        match report.failures.first {
            _ if interrupted => Err(Failure::Interrupted),
            Some(status) => Err(Failure::Reported(status.class())),
            None => Ok(()),
        }
    }

    async fn connect(&self, shared: &Shared) -> Vec<Client> {
        let mut dialling = JoinSet::new();
        let mut clients = Vec::new();
        let mut settle = |dialled| match dialled {
            Ok(Ok(client)) => clients.push(client),
            Ok(Err(status)) => lock(&shared.failures).add(status),
            // Nothing cancels these tasks, and dialling does not panic.
            Err(_) => {}
        };
        for _ in 0..self.connections {
            dialling.spawn(self.target.builder().build());
            // No more than a listen queue holds.
            if dialling.len() >= 64
                && let Some(result) = dialling.join_next().await
            {
                settle(result);
            }
        }
        while let Some(result) = dialling.join_next().await {
            settle(result);
        }
        clients
    }
}

/// Waits for Ctrl-C; for ever, when the system cannot tell.
async fn stopped(interrupted: &mut watch::Receiver<bool>) {
    if interrupted.wait_for(|interrupted| *interrupted).await.is_err() {
        std::future::pending().await
    }
}

async fn work(
    shared: Arc<Shared>,
    connection: usize,
    client: Client,
    left: Arc<AtomicU64>,
    mut interrupted: watch::Receiver<bool>,
) {
    let part = &shared.histograms[connection % shared.histograms.len()];
    let calls = async {
        while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
            let started = match &shared.schedule {
                None => Instant::now(),
                Some(schedule) => schedule.next().await,
            };
            match client.call(&shared.method, shared.message.clone()).await {
                Ok(_) => {
                    let elapsed = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    // The histogram resizes itself.
                    let _ = lock(part).record(elapsed.max(1));
                }
                Err(status) => {
                    let class = status.class();
                    lock(&shared.failures).add(status);
                    // A server that is gone fails every further call: say it once per worker.
                    if class == Class::Transient {
                        break;
                    }
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = calls => {}
        () = stopped(&mut interrupted) => {}
    }
}

struct Report<'a> {
    options: &'a Benchmark,
    connected: usize,
    elapsed: Duration,
    all: Histogram<u64>,
    failures: Failures,
    interrupted: bool,
}

impl Report<'_> {
    fn per_second(&self) -> f64 {
        self.all.len() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn failed(&self) -> u64 {
        self.failures.counts.values().sum()
    }

    fn table(&self) -> String {
        let options = self.options;
        let total = options.connections.saturating_mul(options.requests);
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<22} {value}");
        };
        line("endpoint", format!("{} {}", options.target.endpoint(), options.method));
        line("connections", format!("{} of {}", self.connected, options.connections));
        line("requests", format!("{} per connection, {total} in all", options.requests));
        line("in flight", format!("{} per connection", options.in_flight));
        line("message", format!("{} bytes", options.size));
        line(
            "succeeded",
            format!("{}{}", self.all.len(), if self.interrupted { " (interrupted: partial)" } else { "" }),
        );
        line("failed", self.failed().to_string());
        for (what, count) in &self.failures.counts {
            line("", format!("{count} × {what}"));
        }
        line("elapsed", format!("{:.3} s", self.elapsed.as_secs_f64()));
        line("throughput", format!("{:.0} calls/s", self.per_second()));
        match options.rate {
            None => line("latency (closed loop)", "µs".into()),
            Some(rate) => line("latency (from due)", format!("µs, {rate} calls/s asked for")),
        }
        let micros = |nanos: u64| format!("{:>12.1}", nanos as f64 / 1_000.0);
        if !self.all.is_empty() {
            line("  min", micros(self.all.min()));
            for (name, quantile) in QUANTILES {
                line(&format!("  {name}"), micros(self.all.value_at_quantile(quantile)));
            }
            line("  max", micros(self.all.max()));
            line("  mean", format!("{:>12.1}", self.all.mean() / 1_000.0));
        }
        text
    }

    fn json(&self) -> Value {
        let options = self.options;
        let micros = |nanos: u64| nanos as f64 / 1_000.0;
        let mut latency = serde_json::Map::new();
        latency.insert("min".into(), micros(self.all.min()).into());
        for (name, quantile) in QUANTILES {
            latency.insert(name.into(), micros(self.all.value_at_quantile(quantile)).into());
        }
        latency.insert("max".into(), micros(self.all.max()).into());
        latency.insert("mean".into(), (self.all.mean() / 1_000.0).into());
        json!({
            "endpoint": options.target.endpoint(),
            "method": options.method,
            "connections": self.connected,
            "requests_per_connection": options.requests,
            "in_flight_per_connection": options.in_flight,
            "rate": options.rate,
            "message_bytes": options.size,
            "succeeded": self.all.len(),
            "failed": self.failed(),
            "failures": self.failures.counts,
            "interrupted": self.interrupted,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "calls_per_second": self.per_second(),
            "latency_us": latency,
        })
    }
}
