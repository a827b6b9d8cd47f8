//! The exporter: what it is built from, and the task that posts.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use valkyrie_sdk::{Code, Level, Log, Reason, Record, Status, VERSION, policy::Random};

use crate::{
    Source,
    metrics::{self, attribute},
    post::{Answer, Receiver, Trust},
    protobuf::Message,
    spans::{BATCH, Buffer, SpanLayer},
};

/// How long the first wait after a failed post is at most; it doubles up to [`MOST_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MOST_BACKOFF: Duration = Duration::from_secs(60);
/// The longest wait that a receiver may ask for.
const MOST_AFTER: Duration = Duration::from_secs(300);

/// Describes an exporter: [`Exporter::builder`].
#[must_use = "a builder does nothing until it is built"]
pub struct ExporterBuilder {
    endpoint: String,
    attributes: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    trust: Trust,
    interval_ms: u64,
    spans_delay_ms: u64,
    sample_ratio: f64,
    timeout_ms: u64,
    log: Option<Arc<dyn Log>>,
}

impl ExporterBuilder {
    /// The attribute `service.name` of all that is exported. Default: `unknown_service`.
    pub fn service_name(self, name: impl Into<String>) -> Self {
        self.attribute("service.name", name)
    }

    /// An attribute of all that is exported, in place of one of that name. `service.instance.id` is drawn where it is not given.
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.attributes.retain(|(other, _)| *other != key);
        self.attributes.push((key, value.into()));
        self
    }

    /// A header of each post, such as one that says who posts. It is in no log, and not sent over `http://` beyond this machine.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The authorities to trust over `https://`, certificates in PEM. Default: none.
    pub fn roots(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.trust.roots = Some(pem.into());
        self
    }

    /// Whether to trust the authorities that the system trusts, beside those that are given. Default false.
    pub fn system_roots(mut self, trusted: bool) -> Self {
        self.trust.system = trusted;
        self
    }

    /// How often metrics are exported, in milliseconds. Default 60,000. Source: OTEL_METRIC_EXPORT_INTERVAL of OpenTelemetry.
    pub fn interval_ms(mut self, interval_ms: u64) -> Self {
        self.interval_ms = interval_ms;
        self
    }

    /// How long spans wait for others to be posted with, in milliseconds; 512 wait for no more. Default 5,000. Source:
    /// OTEL_BSP_SCHEDULE_DELAY.
    pub fn spans_delay_ms(mut self, delay_ms: u64) -> Self {
        self.spans_delay_ms = delay_ms;
        self
    }

    /// Which part of the traces that begin here is recorded, 0 to 1. One that began elsewhere is recorded when it is there. Default 1.
    /// Source: OTEL_TRACES_SAMPLER, `parentbased_traceidratio`.
    pub fn sample_ratio(mut self, ratio: f64) -> Self {
        self.sample_ratio = ratio;
        self
    }

    /// How long a post may take, its connection and its answer, in milliseconds. Default 10,000. Source: OTEL_EXPORTER_OTLP_TIMEOUT.
    pub fn timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = timeout_ms;
        self
    }

    /// Takes a warning when posts begin to fail, or data points are rejected, and a line when they are taken again. Default: nobody.
    pub fn log(mut self, log: Arc<dyn Log>) -> Self {
        self.log = Some(log);
        self
    }

    /// Begins to export, on the tokio runtime that is current.
    ///
    /// # Errors
    /// INVALID_CONFIGURATION for what is written wrong, and where no runtime is current.
    pub fn build(self) -> Result<Exporter, Status> {
        let invalid = |why: String| Status::from_reason(Reason::INVALID_CONFIGURATION, why);
        let Ok(runtime) = Handle::try_current() else {
            return Err(invalid("no tokio runtime is current; build inside one".into()));
        };
        if self.interval_ms == 0 || self.spans_delay_ms == 0 || self.timeout_ms == 0 {
            return Err(invalid("interval_ms, spans_delay_ms and timeout_ms are at least 1".into()));
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(invalid(format!("sample_ratio {} is not from 0 to 1", self.sample_ratio)));
        }
        let receiver = Receiver::new(&self.endpoint, &self.trust, &self.headers).map_err(invalid)?;
        let shared = Arc::new(Shared {
            receiver,
            endpoint: self.endpoint,
            resource: resource(&self.attributes),
            sources: Mutex::default(),
            timeout: Duration::from_millis(self.timeout_ms),
            log: self.log,
            metrics: Counts::default(),
            buffer: Arc::new(Buffer::new(self.sample_ratio)),
            spans: Counts::default(),
        });
        let stop = watch::Sender::new(None);
        let interval = Duration::from_millis(self.interval_ms);
        let task = runtime.spawn(run(shared.clone(), Snapshots(shared.clone()), interval, stop.subscribe()));
        let spans_delay = Duration::from_millis(self.spans_delay_ms);
        Ok(Exporter { shared, runtime, spans_delay, stop, tasks: Mutex::new(vec![task]) })
    }
}

/// What everything that is exported is of, a Resource of OTLP.
fn resource(attributes: &[(String, String)]) -> Vec<u8> {
    let instance = instance();
    let defaults = [
        ("service.name", "unknown_service"),
        ("service.instance.id", instance.as_str()),
        ("telemetry.sdk.name", "valkyrie"),
        ("telemetry.sdk.language", "rust"),
        ("telemetry.sdk.version", VERSION),
    ];
    let mut resource = Message::default();
    for (key, value) in defaults {
        if !attributes.iter().any(|(given, _)| given == key) {
            attribute(&mut resource, 1, key, value);
        }
    }
    for (key, value) in attributes {
        attribute(&mut resource, 1, key, value);
    }
    resource.into_bytes()
}

/// A random UUID (RFC 9562, version 4): no two instances of a service have the same.
fn instance() -> String {
    let (high, low) = (seed() & !0xf000 | 0x4000, seed() >> 2 | 1 << 63);
    let (time, mid, version) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
    format!("{time:08x}-{mid:04x}-{version:04x}-{:04x}-{:012x}", low >> 48, low & 0xffff_ffff_ffff)
}

/// Another number each time.
pub(crate) fn seed() -> u64 {
    RandomState::new().hash_one(0)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Posts metrics and spans to a receiver of OTLP over HTTP, in protobuf, until it is dropped.
///
/// Metrics are cumulative: one post has all that the ones before it had, so that what a receiver missed is in the next, and nothing
/// waits in memory. Spans wait until they are taken, 2,048 of them and the 512 of the last post at most; further ones are lost, and
/// counted. A post that failed as a receiver was away or had too much to do (429, 502, 503, 504) is made again after 1 s,
/// doubled up to 60 s or the interval, less up to half by chance, or when the receiver's `Retry-After` says, 300 s at most; any other
/// answer is not repeated. Source: the OTLP specification, "OTLP/HTTP Response" and "Throttling".
///
/// ```
/// use valkyrie_otel::{Exporter, Source};
/// use valkyrie_sdk::Client;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), valkyrie_sdk::Status> {
/// let exporter = Exporter::builder("http://127.0.0.1:4318").service_name("orders").build()?;
/// let client = Client::builder().endpoint("tcp://127.0.0.1:1").connect_lazily()?;
/// exporter.add(Source::client(&client));
/// # Ok(())
/// # }
/// ```
pub struct Exporter {
    shared: Arc<Shared>,
    runtime: Handle,
    spans_delay: Duration,
    /// Until when all has to be over, once it has.
    stop: watch::Sender<Option<Instant>>,
    tasks: Mutex<Vec<JoinHandle<Result<(), String>>>>,
}

/// How exporting goes: [`Exporter::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExporterStats {
    /// Of metrics.
    pub metrics: SignalStats,
    /// Of spans.
    pub spans: SignalStats,
}

/// How the exporting of one signal goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignalStats {
    /// Posts that the receiver took.
    pub posts: u64,
    /// Posts that failed, those that were made again among them.
    pub failures: u64,
    /// Data points or spans that the receiver did not take and that were not sent again, and spans that there was no room for. Of a
    /// metric the next data point has all that it had.
    pub lost: u64,
}

impl Exporter {
    /// Describes an exporter to a receiver: `http://host:4318`, or `https://host` with [`ExporterBuilder::roots`] or
    /// [`ExporterBuilder::system_roots`]. `/v1/metrics` and `/v1/traces` are put behind it.
    pub fn builder(endpoint: impl Into<String>) -> ExporterBuilder {
        ExporterBuilder {
            endpoint: endpoint.into(),
            attributes: Vec::new(),
            headers: Vec::new(),
            trust: Trust::default(),
            interval_ms: 60_000,
            spans_delay_ms: 5_000,
            sample_ratio: 1.0,
            timeout_ms: 10_000,
            log: None,
        }
    }

    /// Exports the metrics of that source, too, from the next post on and until the exporter goes: a client is kept until then.
    pub fn add(&self, source: Source) {
        lock(&self.shared.sources).push(Arc::new(source));
    }

    /// Exports the spans of the subscriber that it becomes a layer of. Nothing global is installed.
    pub fn layer(&self) -> SpanLayer {
        let mut tasks = lock(&self.tasks);
        // The metrics' is there until the exporter has ended.
        if tasks.len() == 1 {
            let batches = Batches { shared: self.shared.clone(), last: None };
            let task = run(self.shared.clone(), batches, self.spans_delay, self.stop.subscribe());
            tasks.push(self.runtime.spawn(task));
        }
        SpanLayer(self.shared.buffer.clone())
    }

    /// How it went so far.
    pub fn stats(&self) -> ExporterStats {
        let Shared { metrics, spans, buffer, .. } = &*self.shared;
        let (metrics, mut spans) = (metrics.stats(), spans.stats());
        spans.lost += buffer.lost();
        ExporterStats { metrics, spans }
    }

    /// Exports what is there once more, within that time, and ends. Later calls do nothing.
    ///
    /// # Errors
    /// UNAVAILABLE or DEADLINE_EXCEEDED when the receiver did not take it, with its reason.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the last post to go on by itself.
    pub async fn shutdown(&self, limit: Duration) -> Result<(), Status> {
        let deadline = Instant::now().checked_add(limit);
        // A time that is too far away to be told is far enough in a century.
        let deadline = deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400 * 36_500));
        self.stop.send_replace(Some(deadline));
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        let mut result = Ok(());
        for mut task in tasks {
            let failed = match timeout_at(deadline, &mut task).await {
                Ok(Ok(Ok(()))) => continue,
                Ok(Ok(Err(why))) => Status::new(Code::Unavailable, why),
                Ok(Err(error)) => Status::new(Code::Internal, format!("the exporter's task died: {error}")),
                Err(_) => {
                    task.abort();
                    let why = format!("the receiver did not answer in {} ms", limit.as_millis());
                    Status::new(Code::DeadlineExceeded, why)
                }
            };
            result = Err(failed);
        }
        result
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // Those that a shutdown waits for go on.
        lock(&self.tasks).iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("endpoint", &self.shared.endpoint).finish_non_exhaustive()
    }
}

/// What an exporter's tasks know of it.
struct Shared {
    receiver: Receiver,
    endpoint: String,
    resource: Vec<u8>,
    sources: Mutex<Vec<Arc<Source>>>,
    timeout: Duration,
    log: Option<Arc<dyn Log>>,
    metrics: Counts,
    buffer: Arc<Buffer>,
    spans: Counts,
}

#[derive(Default)]
struct Counts {
    posts: AtomicU64,
    failures: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    fn stats(&self) -> SignalStats {
        let Self { posts, failures, lost } = self;
        SignalStats { posts: posts.load(Relaxed), failures: failures.load(Relaxed), lost: lost.load(Relaxed) }
    }
}

impl Shared {
    fn tell(&self, level: Level, message: impl Into<String>) {
        if let Some(log) = self.log.as_deref().filter(|log| log.enabled(level)) {
            log.log(Record::new(level, "valkyrie.otel", message).with("endpoint", &self.endpoint));
        }
    }
}

/// What is posted to one path.
trait Signal: Send + 'static {
    const PATH: &'static str;
    /// What it is called in the log, and its pieces.
    const NAMES: (&'static str, &'static str);

    /// The next message, and how many pieces it has. Until [`Signal::over`] it is the same, or has all that the last one had.
    fn message(&mut self) -> Option<(Bytes, u64)>;
    /// The last message is not made again.
    fn over(&mut self);
    /// Whether there is enough for a post.
    fn is_full(&self) -> bool;
    /// Waits until there may be.
    fn full(&self) -> impl Future<Output = ()> + Send;
    /// Whether there is anything that was in no post.
    fn has_more(&self) -> bool;
    fn counts(shared: &Shared) -> &Counts;
}

/// All that was counted, each time anew.
struct Snapshots(Arc<Shared>);

impl Signal for Snapshots {
    const PATH: &'static str = "/v1/metrics";
    const NAMES: (&'static str, &'static str) = ("metrics", "data points");

    fn message(&mut self) -> Option<(Bytes, u64)> {
        let sources = lock(&self.0.sources).clone();
        let (message, points) =
            metrics::request(&self.0.resource, sources.iter().map(|source| &**source), SystemTime::now());
        (points > 0).then(|| (message.into(), points))
    }

    fn over(&mut self) {}

    fn is_full(&self) -> bool {
        false
    }

    fn full(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    fn has_more(&self) -> bool {
        false
    }

    fn counts(shared: &Shared) -> &Counts {
        &shared.metrics
    }
}

/// Spans that are over, each once.
struct Batches {
    shared: Arc<Shared>,
    /// Posted, and not taken.
    last: Option<(Bytes, u64)>,
}

impl Signal for Batches {
    const PATH: &'static str = "/v1/traces";
    const NAMES: (&'static str, &'static str) = ("spans", "spans");

    fn message(&mut self) -> Option<(Bytes, u64)> {
        if self.last.is_none() {
            let batch = self.shared.buffer.request(&self.shared.resource);
            self.last = batch.map(|(message, spans)| (message.into(), spans));
        }
        self.last.clone()
    }

    fn over(&mut self) {
        self.last = None;
    }

    fn is_full(&self) -> bool {
        self.shared.buffer.len() >= BATCH
    }

    fn full(&self) -> impl Future<Output = ()> + Send {
        self.shared.buffer.full.notified()
    }

    fn has_more(&self) -> bool {
        self.shared.buffer.len() > 0
    }

    fn counts(shared: &Shared) -> &Counts {
        &shared.spans
    }
}

/// Posts what a signal has, every interval, until it is to stop.
async fn run<S: Signal>(
    shared: Arc<Shared>,
    mut signal: S,
    interval: Duration,
    mut stop: watch::Receiver<Option<Instant>>,
) -> Result<(), String> {
    let mut random = Random::new(seed());
    let counts = S::counts(&shared);
    let (name, pieces) = S::NAMES;
    let mut failed: u32 = 0;
    let mut result = Ok(());
    // When the receiver may be asked again, where it was not able to answer, and why it was not.
    let mut again: Option<(Instant, String)> = None;
    let mut stopping = None;
    loop {
        if stopping.is_none() {
            let next = again.as_ref().map_or_else(|| Instant::now() + interval, |(at, _)| *at);
            let may_be_full = again.is_none();
            stopping = tokio::select! {
                biased;
                Ok(limit) = async { stop.wait_for(Option::is_some).await.map(|limit| *limit) } => limit,
                () = sleep_until(next) => None,
                () = signal.full(), if may_be_full && !signal.is_full() => None,
                () = std::future::ready(()), if may_be_full && signal.is_full() => None,
            };
        }
        if let (Some(limit), Some((at, why))) = (stopping, again.take()) {
            if at >= limit {
                return Err(why);
            }
            sleep_until(at).await;
        }
        let Some((message, count)) = signal.message() else {
            match stopping {
                Some(_) => return result,
                None => continue,
            }
        };
        let answer = shared.receiver.post(S::PATH, message, shared.timeout).await;
        let why = match answer {
            Answer::Taken { rejected, why } => {
                signal.over();
                counts.posts.fetch_add(1, Relaxed);
                if rejected > 0 {
                    counts.lost.fetch_add(rejected.min(count), Relaxed);
                    let message = format!("{rejected} of {count} {pieces} were rejected: {why:?}");
                    shared.tell(Level::Warn, message);
                }
                if failed > 0 {
                    shared.tell(Level::Info, format!("{name} are exported again, after {failed} failures"));
                }
                failed = 0;
                None
            }
            Answer::Refused(why) => {
                signal.over();
                counts.lost.fetch_add(count, Relaxed);
                if stopping.is_some() {
                    result = Err(why.clone());
                }
                Some(why)
            }
            Answer::Later { after, why } => {
                let most = MOST_BACKOFF.min(interval.max(FIRST_BACKOFF));
                let wait = FIRST_BACKOFF.saturating_mul(1 << failed.min(16)).min(most);
                let half = u64::try_from(wait.as_micros() / 2).unwrap_or(u64::MAX);
                let wait = wait - Duration::from_micros(random.below(half));
                let wait = after.map_or(wait, |after| after.min(MOST_AFTER));
                again = Some((Instant::now() + wait, why.clone()));
                Some(why)
            }
        };
        if let Some(why) = why {
            counts.failures.fetch_add(1, Relaxed);
            if failed == 0 {
                shared.tell(Level::Warn, format!("{name} cannot be exported: {why}"));
            }
            failed = failed.saturating_add(1);
        }
        if stopping.is_some() && again.is_none() && !signal.has_more() {
            return result;
        }
    }
}
