//! What became of calls, counted: by method and code, by server, and by what the policies did about failures.
//!
//! A client counts under its pool's lock, which is held at these moments anyway, in plain numbers. A
//! server's calls are counted where they are answered. The text is Prometheus' exposition format 0.0.4.

#[cfg(feature = "observe")]
use std::time::Duration;

use valkyrie_protocol::{Code, Time};

#[cfg(feature = "observe")]
mod families;
#[cfg(feature = "native")]
mod served;

#[cfg(feature = "native")]
pub(crate) use served::{Served, Tally};

/// Without servers there is nothing to count.
#[cfg(not(feature = "native"))]
pub(crate) struct Tally;

#[cfg(not(feature = "native"))]
impl Tally {
    pub(crate) fn handler(&self) -> Option<&std::sync::Arc<dyn crate::MessageHandler>> {
        None
    }

    pub(crate) fn is(&mut self, _: Code) {}

    pub(crate) fn ended(self, _: Code, _: Time) {}
}

#[cfg(feature = "native")]
pub use served::{DedupMetrics, LimitMetrics, ServerMetrics};

use crate::policy::GiveUp;

/// One for each named code; a code without a name counts as UNKNOWN, as which it reads.
const CODES: usize = Code::ALL.len();
/// The upper bounds of a [`Histogram`]: 100 µs, doubled nineteen times to 52.4 s, and one for all that takes longer.
const BUCKETS: usize = 21;
const FIRST_BOUND: u64 = 100;
/// The label of what has no room of its own.
const OTHER: &str = "other";

fn code_index(code: Code) -> usize {
    match code.number() as usize {
        number if number < CODES => number,
        _ => Code::Unknown.number() as usize,
    }
}

/// The bucket of so many microseconds: the first one whose bound is not below.
fn bucket(us: u64) -> usize {
    let doublings = u64::BITS - (us.saturating_sub(1) / FIRST_BOUND).leading_zeros();
    (doublings as usize).min(BUCKETS - 1)
}

fn micros_between(since: Time, now: Time) -> u64 {
    now.as_micros().saturating_sub(since.as_micros())
}

/// How often calls of one method ended with each code, and how long they took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes {
    codes: [u64; CODES],
    buckets: [u64; BUCKETS],
    sum_us: u64,
}

impl Outcomes {
    #[inline]
    fn note(&mut self, code: Code, us: u64) {
        self.codes[code_index(code)] += 1;
        self.buckets[bucket(us)] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    #[cfg(feature = "observe")]
    fn of(&self, method: String) -> MethodMetrics {
        let calls = Code::ALL.iter().zip(self.codes).filter(|(_, count)| *count > 0);
        let calls = calls.map(|(code, count)| (*code, count)).collect();
        let duration = Histogram { counts: self.buckets, sum: Duration::from_micros(self.sum_us) };
        MethodMetrics { method, calls, duration }
    }
}

/// What a client's pool counts, but for its servers.
#[derive(Default)]
pub(crate) struct Counts {
    /// By lane, and of the methods that have none.
    methods: Vec<Outcomes>,
    others: Outcomes,
    pub(crate) retries: u64,
    pub(crate) transparent_retries: u64,
    pub(crate) pushback_retries: u64,
    pub(crate) hedged_copies: u64,
    pub(crate) throttled: u64,
    not_retried: [u64; GiveUp::ALL.len()],
}

impl Counts {
    /// A call has ended, which began then.
    #[inline]
    pub(crate) fn ended(&mut self, lane: usize, lanes: usize, code: Code, since: Time, now: Time) {
        if !cfg!(feature = "observe") {
            return;
        }
        let took = micros_between(since, now);
        if lane >= lanes {
            return self.others.note(code, took);
        }
        if self.methods.len() <= lane {
            self.methods.resize(lanes, Outcomes::default());
        }
        self.methods[lane].note(code, took);
    }

    /// There is no next attempt.
    pub(crate) fn not_retried(&mut self, why: GiveUp) {
        self.not_retried[why as usize] += 1;
    }
}

/// What a client's pool counts of one server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BackendCounts {
    pub(crate) attempts: u64,
    pub(crate) dials: u64,
    pub(crate) dials_failed: u64,
    pub(crate) connections_made: u64,
    pub(crate) connections_lost: u64,
    pub(crate) breaker_rejections: u64,
    /// By the state that came: closed, open, half open, isolated.
    pub(crate) breaker_changes: [u64; 4],
    /// Of connections that are over.
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
}

#[cfg(feature = "observe")]
mod public {
    use super::{
        families::{Families, FamilyKind, MetricsWriter, PrometheusText},
        *,
    };
    use crate::policy::BreakerState;

    /// How long calls took: how many came to each of 21 classes, whose bounds never change.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Histogram {
        pub(super) counts: [u64; BUCKETS],
        pub(super) sum: Duration,
    }

    impl Histogram {
        /// The upper bounds, inclusive, with how many calls took longer than the bound before and at most this one: 100 µs, 200 µs, …
        /// 52.4288 s, and `None` for all that took longer.
        pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
            self.counts.iter().enumerate().map(|(index, count)| {
                let bound = (index < BUCKETS - 1).then(|| Duration::from_micros(FIRST_BOUND << index));
                (bound, *count)
            })
        }

        /// How many calls were measured.
        pub fn count(&self) -> u64 {
            self.counts.iter().sum()
        }

        /// How long they took together.
        pub fn sum(&self) -> Duration {
            self.sum
        }
    }

    /// The calls of one method that have ended.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct MethodMetrics {
        /// The method; `other` for all that have no room of their own.
        pub method: String,
        /// How many ended with each code, in the order of the codes' numbers. Those that there were none of are left out.
        pub calls: Vec<(Code, u64)>,
        /// How long they took: of a client from their beginning to their result, all attempts and waits counted; of a server from their
        /// arrival to their answer.
        pub duration: Histogram,
    }

    /// What a client knows of one of its servers.
    #[derive(Clone, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct BackendMetrics {
        /// Where it is.
        pub endpoint: String,
        /// Attempts of calls that went out to it.
        pub attempts: u64,
        /// Attempts that it has not answered.
        pub in_flight: u32,
        /// Connections now.
        pub connections: usize,
        /// Connections that were tried, and those of the tries that failed.
        pub dials: u64,
        /// See `dials`.
        pub dials_failed: u64,
        /// Connections that were made, and those of them that ended while the client went on, whoever ended them.
        pub connections_made: u64,
        /// See `connections_made`.
        pub connections_lost: u64,
        /// Streams that are open on its connections.
        pub streams: usize,
        /// Bytes read from it, over all connections.
        pub bytes_in: u64,
        /// Bytes written to it.
        pub bytes_out: u64,
        /// How often a breaker of it let a call not pass. The call may have gone to another server.
        pub breaker_rejections: u64,
        /// How often one of its breakers came to be in each state.
        pub breaker_changes: [(BreakerState, u64); 4],
        /// Its breakers, of which there is one for each method, that are open now.
        pub breakers_open: usize,
    }

    /// What became of a client's calls since it was made: [`Client::metrics`](crate::Client::metrics).
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    #[non_exhaustive]
    pub struct ClientMetrics {
        /// By method, in the order of their first calls: 1,024 at most, and `other` for all further ones. A call that an interceptor or a wrong
        /// option ended was not begun, and is not counted.
        pub methods: Vec<MethodMetrics>,
        /// The servers that the client may use.
        pub servers: Vec<BackendMetrics>,
        /// Attempts that followed another one after the policy's backoff.
        pub retries: u64,
        /// Attempts that were made again as no handler had seen the one before.
        pub transparent_retries: u64,
        /// Attempts that followed another one after the server's pushback.
        pub pushback_retries: u64,
        /// Failed attempts that no other followed, by why. Those that there were none of are left out.
        pub not_retried: Vec<(GiveUp, u64)>,
        /// Copies of hedged calls, beside the first one of each.
        pub hedged_copies: u64,
        /// Calls that the client held back for its servers' refusals (THROTTLED).
        pub throttled: u64,
        /// How often the retry budget did not pay for a retry or a copy.
        pub budget_refusals: u64,
        /// The tokens that are in it.
        pub budget_tokens: u32,
    }

    impl ClientMetrics {
        /// The same in Prometheus' text format. Names begin with `valkyrie_client_`; times are in seconds.
        ///
        /// ```
        /// # use valkyrie_sdk::Client;
        /// # #[tokio::main(flavor = "current_thread")]
        /// # async fn main() -> Result<(), valkyrie_sdk::Status> {
        /// let client = Client::builder().endpoint("tcp://127.0.0.1:1").connect_lazily()?;
        /// assert!(client.metrics().prometheus().contains("\nvalkyrie_client_throttled_total 0\n"));
        /// # Ok(())
        /// # }
        /// ```
        pub fn prometheus(&self) -> String {
            let mut text = PrometheusText::new();
            self.write(&mut text);
            text.into_text()
        }

        /// Hands the same over family by family, for whoever writes another format.
        pub fn write(&self, to: &mut dyn MetricsWriter) {
            let mut text = Families { to, prefix: "valkyrie_client_" };
            text.methods(&self.methods);
            text.family("retries_total", FamilyKind::Counter, "Attempts that followed another one, by kind.");
            for (kind, count) in [
                ("policy", self.retries),
                ("pushback", self.pushback_retries),
                ("transparent", self.transparent_retries),
            ] {
                text.sample(&[("kind", kind)], count);
            }
            text.family(
                "not_retried_total",
                FamilyKind::Counter,
                "Failed attempts that no other followed, by why.",
            );
            for (why, count) in &self.not_retried {
                text.sample(&[("why", why.name())], *count);
            }
            for (name, help, count) in [
                ("hedged_copies_total", "Copies of hedged calls, beside the first.", self.hedged_copies),
                ("throttled_total", "Calls held back for refusals of the servers.", self.throttled),
                (
                    "budget_refusals_total",
                    "Retries and copies that the budget did not pay for.",
                    self.budget_refusals,
                ),
            ] {
                text.family(name, FamilyKind::Counter, help);
                text.sample(&[], count);
            }
            text.family("budget_tokens", FamilyKind::Gauge, "Tokens in the retry budget.");
            text.sample(&[], self.budget_tokens.into());
            text.family("servers", FamilyKind::Gauge, "Servers that the client may use.");
            text.sample(&[], self.servers.len() as u64);
            type Of = fn(&BackendMetrics) -> u64;
            let by_server: [(&str, FamilyKind, &str, Of); 12] = [
                ("attempts_total", FamilyKind::Counter, "Attempts that went out.", |server| server.attempts),
                ("in_flight", FamilyKind::Gauge, "Attempts without an answer.", |server| {
                    server.in_flight.into()
                }),
                ("connections", FamilyKind::Gauge, "Connections now.", |server| server.connections as u64),
                ("dials_total", FamilyKind::Counter, "Connections that were tried.", |server| server.dials),
                ("dials_failed_total", FamilyKind::Counter, "Tries that failed.", |server| {
                    server.dials_failed
                }),
                ("connections_made_total", FamilyKind::Counter, "Connections that were made.", |server| {
                    server.connections_made
                }),
                ("connections_lost_total", FamilyKind::Counter, "Connections that ended.", |server| {
                    server.connections_lost
                }),
                ("streams", FamilyKind::Gauge, "Streams open now.", |server| server.streams as u64),
                ("bytes_in_total", FamilyKind::Counter, "Bytes read.", |server| server.bytes_in),
                ("bytes_out_total", FamilyKind::Counter, "Bytes written.", |server| server.bytes_out),
                (
                    "breaker_rejections_total",
                    FamilyKind::Counter,
                    "Calls that a breaker did not let pass.",
                    |server| server.breaker_rejections,
                ),
                ("breakers_open", FamilyKind::Gauge, "Breakers that are open.", |server| {
                    server.breakers_open as u64
                }),
            ];
            for (name, kind, help, of) in by_server {
                text.family(name, kind, help);
                for server in &self.servers {
                    text.sample(&[("server", &server.endpoint)], of(server));
                }
            }
            text.family(
                "breaker_changes_total",
                FamilyKind::Counter,
                "Changes of breakers, by the state that came.",
            );
            for server in &self.servers {
                for (state, count) in server.breaker_changes {
                    text.sample(&[("server", &server.endpoint), ("state", state.name())], count);
                }
            }
        }
    }
}

#[cfg(feature = "observe")]
pub use families::{FamilyKind, MetricsWriter, PrometheusText};
#[cfg(feature = "observe")]
pub use public::{BackendMetrics, ClientMetrics, Histogram, MethodMetrics};

#[cfg(feature = "observe")]
impl Counts {
    /// What was counted of calls, with the methods by lane.
    pub(crate) fn calls<'a>(&self, methods: impl Iterator<Item = &'a [u8]>) -> Vec<MethodMetrics> {
        let named = self.methods.iter().zip(methods);
        let named = named.map(|(counts, name)| counts.of(String::from_utf8_lossy(name).into_owned()));
        named.chain([self.others.of(OTHER.to_owned())]).filter(|method| !method.calls.is_empty()).collect()
    }

    pub(crate) fn why_not_retried(&self) -> Vec<(GiveUp, u64)> {
        let counts = GiveUp::ALL.into_iter().zip(self.not_retried);
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(feature = "observe")]
impl BackendCounts {
    pub(crate) fn changes(&self) -> [(crate::policy::BreakerState, u64); 4] {
        use crate::policy::BreakerState::{Closed, HalfOpen, Isolated, Open};
        let [closed, open, half_open, isolated] = self.breaker_changes;
        [(Closed, closed), (Open, open), (HalfOpen, half_open), (Isolated, isolated)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_the_last_of_its_bucket() {
        for index in 0..BUCKETS - 1 {
            let bound = FIRST_BOUND << index;
            assert_eq!((bucket(bound), bucket(bound + 1)), (index, index + 1), "{bound} µs");
        }
        assert_eq!((bucket(0), bucket(1), bucket(u64::MAX)), (0, 0, BUCKETS - 1));
    }

    #[test]
    fn methods_without_a_lane_and_codes_without_a_name_are_counted_together() {
        let mut counts = Counts::default();
        let (lanes, ms) = ([bytes::Bytes::from("/a"), bytes::Bytes::from("/b")], Time::from_micros(1_000));
        counts.ended(1, 2, Code::Ok, Time::default(), ms);
        counts.ended(7, 2, Code::Ok, Time::default(), ms);
        counts.ended(usize::MAX, 2, Code::from_number(99), ms, Time::default());
        let calls: Vec<_> = counts
            .calls(lanes.iter().map(|lane| &lane[..]))
            .into_iter()
            .map(|of| (of.method, of.calls))
            .collect();
        let other = vec![(Code::Ok, 1), (Code::Unknown, 1)];
        assert_eq!(calls, [("/b".to_owned(), vec![(Code::Ok, 1)]), (OTHER.to_owned(), other)]);
    }
}
