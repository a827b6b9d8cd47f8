//! What a server counts of its calls.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use valkyrie_protocol::{Code, Priority, Time};

use super::{
    BUCKETS, CODES, FamilyKind, MethodMetrics, MetricsWriter, Outcomes, PrometheusText, bucket, code_index,
    families::Families, micros_between,
};
use crate::{MessageHandler, ServerStats, runtime::native_now};

/// Connections on different processors seldom meet in one of so many.
const SHARDS: usize = 4;

/// The calls of one handler.
pub(crate) struct Served {
    /// The path that it was registered for.
    path: String,
    /// Of what is for no handler there is none.
    handler: Option<Arc<dyn MessageHandler>>,
    shards: [Shard; SHARDS],
}

/// On cache lines of its own.
#[repr(align(128))]
struct Shard {
    codes: [AtomicU64; CODES],
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Served {
    pub(crate) fn new(path: String, handler: Option<Arc<dyn MessageHandler>>) -> Self {
        let zero = || AtomicU64::new(0);
        let shards = array::from_fn(|_| Shard {
            codes: array::from_fn(|_| zero()),
            buckets: array::from_fn(|_| zero()),
            sum_us: zero(),
        });
        Self { path, handler, shards }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn metrics(&self) -> MethodMetrics {
        let mut sum = Outcomes::default();
        for shard in &self.shards {
            let add = |sum: &mut u64, part: &AtomicU64| *sum = sum.saturating_add(part.load(Relaxed));
            sum.codes.iter_mut().zip(&shard.codes).for_each(|(sum, part)| add(sum, part));
            sum.buckets.iter_mut().zip(&shard.buckets).for_each(|(sum, part)| add(sum, part));
            add(&mut sum.sum_us, &shard.sum_us);
        }
        sum.of(self.path.clone())
    }
}

/// A call that came in, to be counted once. Dropped without an end, it was cancelled.
pub(crate) struct Tally {
    served: Arc<Served>,
    since: Time,
    code: Code,
    shard: u8,
    counted: bool,
}

impl Tally {
    #[inline]
    pub(crate) fn new(served: Arc<Served>, connection: u64, since: Time) -> Self {
        let shard = (connection % SHARDS as u64) as u8;
        Self { served, since, code: Code::Cancelled, shard, counted: false }
    }

    /// Who is to answer it.
    #[inline]
    pub(crate) fn handler(&self) -> Option<&Arc<dyn MessageHandler>> {
        self.served.handler.as_ref()
    }

    /// What it counts as, however it ends.
    pub(crate) fn is(&mut self, code: Code) {
        self.code = code;
    }

    #[inline]
    pub(crate) fn ended(mut self, code: Code, now: Time) {
        self.code = code;
        self.count(now);
    }

    #[inline]
    fn count(&mut self, now: Time) {
        self.counted = true;
        let shard = &self.served.shards[usize::from(self.shard) % SHARDS];
        let us = micros_between(self.since, now);
        shard.codes[code_index(self.code)].fetch_add(1, Relaxed);
        shard.buckets[bucket(us)].fetch_add(1, Relaxed);
        shard.sum_us.fetch_add(us, Relaxed);
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if !self.counted {
            self.count(native_now());
        }
    }
}

/// What a server's limit of concurrency does. The classes are critical, normal and bulk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitMetrics {
    /// How many handlers may run now.
    pub limit: u32,
    /// Handlers that run and count for it.
    pub running: u32,
    /// Calls that wait, by class.
    pub waiting: [usize; 3],
    /// Calls that were refused, by class.
    pub shed: [u64; 3],
}

/// What a server keeps of calls with idempotency keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DedupMetrics {
    /// Keys that it knows now.
    pub keys: usize,
    /// Bytes of answers that it keeps now.
    pub bytes: usize,
    /// Calls that were given the answer of an earlier one.
    pub replayed: u64,
    /// Calls that ended with KEY_FORGOTTEN.
    pub forgotten: u64,
}

/// What became of a server's calls and connections since it was built: [`ServerControl::metrics`](crate::ServerControl::metrics).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerMetrics {
    /// By the paths of the handlers, in their order, and `other` for calls that none was for; a handler without a call is left out.
    /// A call whose caller gave it up in the moment in which it came is not counted.
    pub methods: Vec<MethodMetrics>,
    /// Handlers that run, and calls that wait for one to end.
    pub running: usize,
    /// See `running`.
    pub queued: usize,
    /// Where there is a [`ServerBuilder::concurrency_limit`](crate::ServerBuilder::concurrency_limit).
    pub limit: Option<LimitMetrics>,
    /// Where there is a [`ServerBuilder::dedup`](crate::ServerBuilder::dedup).
    pub dedup: Option<DedupMetrics>,
    /// Connections that were told of a shutdown.
    pub connections_drained: u64,
    /// Connections that had reached their age.
    pub connections_aged: u64,
    /// Connections that were closed as they had no call for too long.
    pub connections_idle: u64,
    /// Connections whose clients did not answer keepalive.
    pub connections_silent: u64,
}

impl ServerMetrics {
    /// The calls, without what the connections know.
    pub(crate) fn of(methods: Vec<MethodMetrics>, stats: &ServerStats) -> Self {
        Self { methods, running: stats.running, queued: stats.queued, ..Self::default() }
    }

    /// The same in Prometheus' text format. Names begin with `valkyrie_server_`; times are in seconds.
    pub fn prometheus(&self) -> String {
        let mut text = PrometheusText::new();
        self.write(&mut text);
        text.into_text()
    }

    /// Hands the same over family by family, for whoever writes another format.
    pub fn write(&self, to: &mut dyn MetricsWriter) {
        let mut text = Families { to, prefix: "valkyrie_server_" };
        text.methods(&self.methods);
        let mut one = |name, kind, help, value| {
            text.family(name, kind, help);
            text.sample(&[], value);
        };
        one("handlers_running", FamilyKind::Gauge, "Handlers that run.", self.running as u64);
        one("calls_waiting", FamilyKind::Gauge, "Calls that wait for a handler to end.", self.queued as u64);
        if let Some(dedup) = &self.dedup {
            one("dedup_keys", FamilyKind::Gauge, "Idempotency keys that are kept.", dedup.keys as u64);
            one("dedup_bytes", FamilyKind::Gauge, "Bytes of answers that are kept.", dedup.bytes as u64);
            let help = "Calls that were given the answer of an earlier one.";
            one("dedup_replayed_total", FamilyKind::Counter, help, dedup.replayed);
            let help = "Calls whose idempotency key may have been forgotten.";
            one("dedup_forgotten_total", FamilyKind::Counter, help, dedup.forgotten);
        }
        if let Some(limit) = &self.limit {
            one("concurrency_limit", FamilyKind::Gauge, "Handlers that may run now.", limit.limit.into());
            one("concurrency", FamilyKind::Gauge, "Handlers that count for the limit.", limit.running.into());
            text.family("line", FamilyKind::Gauge, "Calls that wait for the limit, by class.");
            for (class, count) in Priority::ALL.into_iter().zip(limit.waiting) {
                text.sample(&[("class", name_of(class))], count as u64);
            }
            text.family("shed_total", FamilyKind::Counter, "Calls that the limit refused, by class.");
            for (class, count) in Priority::ALL.into_iter().zip(limit.shed) {
                text.sample(&[("class", name_of(class))], count);
            }
        }
        text.family(
            "connections_closed_total",
            FamilyKind::Counter,
            "Connections that the server ended, by why.",
        );
        for (why, count) in [
            ("age", self.connections_aged),
            ("drain", self.connections_drained),
            ("idle", self.connections_idle),
            ("keepalive", self.connections_silent),
        ] {
            text.sample(&[("why", why)], count);
        }
    }
}

fn name_of(class: Priority) -> &'static str {
    match class {
        Priority::Critical => "critical",
        Priority::Normal => "normal",
        Priority::Bulk => "bulk",
    }
}
