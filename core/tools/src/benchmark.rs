//! `benchmark`: calls on many connections, and what they took.
//!
//! Without a rate it is a closed loop: each worker waits for its answer before it calls again, so a stalled server is
//! asked less, and the stall shows in few of the numbers. With a rate, calls have their times, and a latency counts from
//! there: who waits behind a stall is measured too, and nothing is omitted in coordination with the server.

mod report;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::Value;
use tokio::{sync::watch, task::JoinSet};
use valkyrie_sdk::{CallOptions, Class, Client, DEFAULT_METHOD, Reason, Status};

use crate::{
    output::{Failure, print},
    send::{Target, text_of},
};

use report::Report;

/// How often a terminal is told how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// Measure a server with many calls and print a latency histogram.
///
/// Measures a server. --requests counts per connection: 100 connections with 1000 requests make 100,000 calls. Each call
/// in flight waits for its answer before the next (closed loop); with --rate each call has its time, and its latency
/// counts from there (no coordinated omission). With --duration it lasts so long, however many calls that are; a call that
/// was due in that time is made, late as it may be. Ctrl-C prints what was measured so far.
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
    /// How long to measure, in seconds, in place of a number of requests.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "requests")]
    duration: Option<Duration>,
    /// How long to call before what is measured begins, in seconds. Such calls are in no number. [default: 0]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    warm_up: Option<Duration>,
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
    /// Make each request a stream: so many messages are sent, then this side ends, and answers are read until the server's end. A latency
    /// is that of the whole stream.
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    stream: Option<u64>,
    /// The method to call.
    #[arg(long, default_value = DEFAULT_METHOD)]
    method: String,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
    /// Write the latencies to a file as HdrHistogram's percentile distribution, in milliseconds, which its plotters read.
    #[arg(long, value_name = "FILE")]
    hdr: Option<PathBuf>,
    /// Say beside each number how it compares with an earlier result, a file that --json made.
    #[arg(long, value_name = "FILE", value_parser = earlier)]
    compare: Option<Value>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds from 0.001 to 86400".to_owned())
}

fn earlier(path: &str) -> Result<Value, String> {
    let value: Value =
        serde_json::from_str(&text_of(path)?).map_err(|error| format!("is no JSON: {error}"))?;
    match value["latency_us"].is_object() {
        true => Ok(value),
        false => Err("is no result of benchmark --json: it has no latency_us".to_owned()),
    }
}

/// What all workers write to.
struct Shared {
    method: String,
    message: Bytes,
    /// Messages of each stream, where requests are streams.
    stream: Option<u64>,
    timeout: Duration,
    /// Messages that came back in streams that were measured.
    received: AtomicU64,
    /// Nanoseconds; in several parts, so that workers rarely wait for each other.
    histograms: Vec<Mutex<Histogram<u64>>>,
    failures: Mutex<Failures>,
    schedule: Option<Schedule>,
    /// Calls before then are in no number, and none begins or is due after the other.
    from: Instant,
    until: Option<Instant>,
}

impl Shared {
    /// How many calls were measured, and how many failed.
    fn count(&self) -> (u64, u64) {
        (self.histograms.iter().map(|part| lock(part).len()).sum(), lock(&self.failures).count())
    }

    /// One request; how many messages came back.
    async fn request(&self, client: &Client) -> Result<u64, Status> {
        let Some(messages) = self.stream else {
            return client.call(&self.method, self.message.clone()).await.map(|_| 1);
        };
        // As a call's: a server that is silent is a failure, and no end of the benchmark.
        let options = CallOptions::new().with_timeout(self.timeout);
        let (mut sender, mut receiver) = client.open(&self.method, options).await?;
        let sending = async {
            for _ in 0..messages {
                sender.send(self.message.clone()).await?;
            }
            sender.finish().await
        };
        let receiving = async {
            let mut received = 0;
            while receiver.recv().await?.is_some() {
                received += 1;
            }
            Ok(received)
        };
        let (sent, received) = tokio::join!(sending, receiving);
        match sent {
            Err(status) if status.reason() == Reason::MESSAGE_TOO_LARGE => Err(status),
            // A server may end before it has read everything: its status is what counts.
            _ => received,
        }
    }

    /// Since when the next call is to be made; `None` when there is none.
    async fn next(&self) -> Option<Instant> {
        let at = match &self.schedule {
            None => Instant::now(),
            Some(schedule) => schedule.due(),
        };
        if self.until.is_some_and(|until| at >= until) {
            return None;
        }
        if self.schedule.is_some() {
            wait_until(at).await;
        }
        Some(at)
    }
}

/// When calls are due, in the order in which workers ask.
struct Schedule {
    started: Instant,
    rate: u64,
    next: AtomicU64,
}

impl Schedule {
    /// When the next call is due.
    fn due(&self) -> Instant {
        let number = self.next.fetch_add(1, Relaxed);
        self.started + Duration::from_secs_f64(number as f64 / self.rate as f64)
    }
}

async fn wait_until(due: Instant) {
    // The runtime's timers are late by up to two milliseconds, which would count as the server's.
    if let Some(early) = due.checked_sub(Duration::from_millis(2)).filter(|early| *early > Instant::now()) {
        tokio::time::sleep_until(early.into()).await;
    }
    while Instant::now() < due {
        tokio::task::yield_now().await;
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

    fn count(&self) -> u64 {
        self.counts.values().sum()
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
            stream: self.stream,
            timeout: Duration::from_millis(self.target.access().timeout_ms()),
            received: AtomicU64::new(0),
            histograms: (0..parts).map(|_| Mutex::new(histogram())).collect(),
            failures: Mutex::default(),
            schedule: None,
            from: Instant::now(),
            until: None,
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
        shared.from = started + self.warm_up.unwrap_or_default();
        shared.until = self.duration.map(|duration| shared.from + duration);
        shared.schedule = self.rate.map(|rate| Schedule { started, rate, next: AtomicU64::new(0) });
        let shared = Arc::new(shared);
        let mut workers = JoinSet::new();
        for (index, client) in clients.iter().enumerate() {
            let requests = if self.duration.is_some() { u64::MAX } else { self.requests };
            let left = Arc::new(AtomicU64::new(requests));
            for _ in 0..self.in_flight.min(requests) {
                workers.spawn(work(shared.clone(), index, client.clone(), left.clone(), interrupted.clone()));
            }
        }
        let progress =
            (!self.json && io::stderr().is_terminal()).then(|| tokio::spawn(progress(shared.clone())));
        while workers.join_next().await.is_some() {}
        let elapsed = shared.from.elapsed();
        if let Some(progress) = progress {
            progress.abort();
            tell("");
        }
        let interrupted = *interrupted.borrow();
        let mut all = histogram();
        for part in &shared.histograms {
            // Both resize, so nothing is out of range.
            let _ = all.add(&*lock(part));
        }
        let failures = std::mem::take(&mut *lock(&shared.failures));
        let received = shared.received.load(Relaxed);
        let report = Report {
            options: &self,
            connected: clients.len(),
            elapsed,
            all,
            received,
            failures,
            interrupted,
        };
        let text = if self.json { format!("{}\n", report.json()) } else { report.table() };
        print(text.as_bytes())?;
        if let Some(path) = &self.hdr {
            let written = std::fs::write(path, report.hdr());
            written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
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
        while let Some(started) = shared.next().await {
            let counts = started >= shared.from;
            if counts && left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
                break;
            }
            match shared.request(&client).await {
                Ok(_) if !counts => {}
                Ok(received) => {
                    shared.received.fetch_add(received, Relaxed);
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

/// Tells a terminal each second how far it is.
async fn progress(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(PROGRESS);
    let mut before = 0;
    loop {
        ticks.tick().await;
        let (calls, failed) = shared.count();
        let now = Instant::now();
        let line = match now.checked_duration_since(shared.from) {
            None => format!("{:.0} s until it counts", (shared.from - now).as_secs_f64()),
            Some(elapsed) => {
                format!(
                    "{:.0} s: {calls} calls, {} in the last second, {failed} failed",
                    elapsed.as_secs_f64(),
                    calls - before
                )
            }
        };
        before = calls;
        tell(&line);
    }
}

/// In place of what the terminal's line says.
fn tell(line: &str) {
    // Standard error may be gone.
    let _ = write!(io::stderr(), "\r\x1b[K{line}");
}
