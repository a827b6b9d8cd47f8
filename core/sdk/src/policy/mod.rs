//! The reliability policies as plain state machines: what a client does about an attempt, a call, a backend, when one fails.
//!
//! Nothing here reads a clock, draws a random number of its own, waits, locks or talks to anybody: every instant and the
//! [`Random`] are handed in, so that one seed gives one trace in every language. docs/policies.md has the keys of the
//! [`ServiceConfig`] that sets them and the order of the draws.
//!
//! | question | machine | one for each |
//! |---|---|---|
//! | May this attempt go out? | [`Throttle`], then [`Breaker`] | client; backend and method |
//! | To which backend? | [`Balancer`], [`Outliers`] | client |
//! | It failed: once more, and when? | [`Attempts`] with [`Budget`] | call; client |
//! | It is slow: one more beside it? | [`Hedge`] with [`Latency`] | call; method |
//! | When to dial again? | [`Reconnect`] | backend |
//!
//! And a server's, when it is asked for more than it can do, or once more:
//!
//! | question | machine | one for each |
//! |---|---|---|
//! | How many handlers run at once? | [`Limiter`] | server |
//! | Who is next, and who has waited for too long? | [`Line`] | server |
//! | Was this call run before, and what did it come to? | [`Dedup`] | server |
//!
//! ```
//! use valkyrie_sdk::{Reason, Status, Time};
//! use valkyrie_sdk::policy::{Attempts, Budget, Failure, GiveUp, Random, Seen, ServiceConfig, Verdict};
//!
//! let config = ServiceConfig::parse(
//!     r#"{"methods": [{"names": ["/store.Items/*"], "idempotent": true, "retry": {"max_attempts": 2}}]}"#,
//! )?;
//! let method = config.method("/store.Items/Get");
//! let (mut budget, mut random) = (Budget::new(config.retry_budget), Random::new(1));
//!
//! let now = Time::from_micros(0);
//! let mut attempts = Attempts::new(method.retry, method.idempotent, None);
//! attempts.begin(now, &mut budget);
//! let failure = Failure::new(&Status::from_reason(Reason::CONNECTION_LOST, "gone"), Seen::Perhaps);
//! let Verdict::Retry { at, .. } = attempts.failed(&failure, now, &mut budget, &mut random) else { panic!() };
//! assert!(at <= Time::from_micros(25_000));
//!
//! attempts.begin(at, &mut budget);
//! let verdict = attempts.failed(&failure, at, &mut budget, &mut random);
//! assert_eq!(verdict, Verdict::GiveUp(GiveUp::AttemptsExhausted));
//! # Ok::<(), Status>(())
//! ```

mod backoff;
mod balance;
mod breaker;
mod budget;
mod config;
mod dedup;
mod health;
mod hedge;
pub(crate) mod json;
mod limiter;
mod line;
mod outlier;
mod random;
mod retry;
mod throttle;
mod window;

use std::time::Duration;

pub use backoff::{Backoff, Reconnect, ReconnectPolicy};
pub use balance::{BackendState, BalanceConfig, BalancePolicy, Balancer};
pub use breaker::{Breaker, BreakerPolicy, BreakerState, CallOutcome, Edge, Permit, Rejection};
pub use budget::{Budget, BudgetPolicy, Cost, Extra, Rides};
pub use config::{ConnectionsPolicy, MethodPolicy, ServiceConfig};
pub use dedup::{Dedup, DedupPolicy, Known};
pub(crate) use health::Flaps;
pub use health::HealthPolicy;
pub use hedge::{Hedge, HedgePolicy, HedgeStep, Latency};
pub use limiter::{Limiter, LimiterPolicy};
pub use line::Line;
pub use outlier::{Ejection, FailurePercentage, OutlierPolicy, Outliers, SuccessRate};
pub use random::Random;
pub use retry::{Attempts, Codes, Failure, GiveUp, RetryPolicy, Seen, Verdict};
pub use throttle::{Throttle, ThrottlePolicy};

/// Whole microseconds, at most all that a [`valkyrie_protocol::Time`] can say.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
