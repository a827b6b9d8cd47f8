//! Hedging: copies of an idempotent call that take their chance beside the first (gRFC A6, "Hedging Policy"). Off by default. A call
//! that is hedged is not retried beside it.

use std::time::Duration;

use valkyrie_protocol::{Code, Time};

use super::{
    budget::{Budget, Cost, Extra},
    micros,
    retry::{Codes, Failure},
};

/// How a method's calls are hedged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HedgePolicy {
    /// Whether they are, provided that they are idempotent. Default false.
    pub enabled: bool,
    /// Copies of a call, the first one counted. Default 2, at most 5 (gRFC A6).
    pub max_copies: u32,
    /// How long to wait for an answer before the next copy. Default: the 95th percentile of the method's latency ("The tail at
    /// scale", 2013), once 100 calls were measured; no copy before.
    pub delay: Option<Duration>,
    /// The codes after which the next copy goes out at once; others end the call. Default: UNAVAILABLE.
    pub codes: Codes,
}

impl Default for HedgePolicy {
    fn default() -> Self {
        Self { enabled: false, max_copies: 2, delay: None, codes: Codes::of(&[Code::Unavailable]) }
    }
}

/// What to do about a hedged call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeStep {
    /// Send one more copy, with that number, and ask again at [`Hedge::due`].
    Send(u8),
    /// Wait for what is on the way, and until [`Hedge::due`].
    Wait,
    /// The last failure is the call's outcome. Cancel these copies: bit n for number n.
    End(u8),
}

/// The copies of one call.
#[derive(Clone, Debug)]
pub struct Hedge {
    max_copies: u8,
    delay: Option<Duration>,
    codes: Codes,
    deadline: Option<Time>,
    sent: u8,
    running: u8,
    due: Option<Time>,
    costs: [Option<Cost>; HEDGE_COPIES],
}

/// The most copies that there can be (gRFC A6).
pub(super) const HEDGE_COPIES: usize = 5;

impl Hedge {
    /// A call whose first copy, number 0, goes out now. `None` when the policy is off or the call is not idempotent: retry it
    /// instead. `latency` gives the delay where the policy has none.
    pub fn begin(
        policy: &HedgePolicy,
        idempotent: bool,
        deadline: Option<Time>,
        latency: &Latency,
        now: Time,
        budget: &mut Budget,
    ) -> Option<Self> {
        if !policy.enabled || !idempotent {
            return None;
        }
        budget.called(now);
        Some(Self::sent(policy, deadline, latency.p95(), now))
    }

    /// As [`Hedge::begin`] for a call that was counted, whose first copy went out then.
    pub(crate) fn sent(
        policy: &HedgePolicy,
        deadline: Option<Time>,
        p95: Option<Duration>,
        now: Time,
    ) -> Self {
        let delay = policy.delay.or(p95);
        let mut hedge = Self {
            max_copies: policy.max_copies.clamp(1, HEDGE_COPIES as u32) as u8,
            delay,
            codes: policy.codes,
            deadline,
            sent: 1,
            running: 1,
            due: None,
            costs: [None; HEDGE_COPIES],
        };
        hedge.plan(delay.map(|delay| now.after(delay)));
        hedge
    }

    /// This one was not sent, if one is named, and the next one goes out only when another fails.
    pub(crate) fn stop(&mut self, copy: Option<u8>) -> HedgeStep {
        self.due = None;
        self.running &= !copy.and_then(|copy| 1_u8.checked_shl(copy.into())).unwrap_or(0);
        if self.running == 0 { HedgeStep::End(0) } else { HedgeStep::Wait }
    }

    /// When to call [`Hedge::poll`]; `None`: no further copy is planned.
    pub fn due(&self) -> Option<Time> {
        self.due
    }

    /// Sends the copy that is due, if the budget pays for it; without it no further copy is sent.
    pub fn poll(&mut self, now: Time, budget: &mut Budget) -> HedgeStep {
        if self.due.is_none_or(|due| now < due) {
            return HedgeStep::Wait;
        }
        let Some(cost) = budget.take(Extra::Ordinary, now) else {
            self.due = None;
            return if self.running == 0 { HedgeStep::End(0) } else { HedgeStep::Wait };
        };
        let copy = self.sent;
        self.costs[usize::from(copy)] = Some(cost);
        self.sent += 1;
        self.running |= 1 << copy;
        self.plan(self.delay.map(|delay| now.after(delay)));
        HedgeStep::Send(copy)
    }

    /// A copy failed. What the policy names sends the next one at once, or after the server's pushback; a pushback that
    /// forbids it ends further copies; anything else ends the call.
    pub fn failed(&mut self, copy: u8, failure: &Failure, now: Time, budget: &mut Budget) -> HedgeStep {
        self.running &= !(1_u8.checked_shl(copy.into()).unwrap_or(0));
        if failure.pushback == Some(Duration::MAX) {
            self.due = None;
        } else if !failure.is_retryable(self.codes) {
            self.due = None;
            return HedgeStep::End(std::mem::take(&mut self.running));
        } else {
            self.plan(Some(now.after(failure.pushback.unwrap_or_default())));
        }
        match self.poll(now, budget) {
            HedgeStep::Wait if self.running == 0 && self.due.is_none() => HedgeStep::End(0),
            step => step,
        }
    }

    /// A copy's response began: it is the call's. Gives the copies to cancel: bit n for number n.
    pub fn won(&mut self, copy: u8, budget: &mut Budget) -> u8 {
        self.due = None;
        budget.succeeded(self.costs.get(usize::from(copy)).copied().flatten());
        std::mem::take(&mut self.running) & !(1_u8.checked_shl(copy.into()).unwrap_or(0))
    }

    /// The next copy is due then, if there may be one before the deadline.
    fn plan(&mut self, at: Option<Time>) {
        let may = self.sent < self.max_copies;
        self.due = at.filter(|at| may && self.deadline.is_none_or(|deadline| *at < deadline));
    }
}

/// How long calls took, for the delay of hedging: 256 counters of geometric steps, eight to each doubling, so an answer is at most
/// 12.5 % too high. After 8,192 calls all counters are halved: what is old fades.
#[derive(Clone)]
pub struct Latency {
    counts: [u16; BUCKETS],
    total: u32,
    since: u32,
    p95: Option<Duration>,
}

const BUCKETS: usize = 256;
/// No percentile of fewer calls.
const MEASURED: u32 = 100;
/// So many calls share one look at the counters.
const STALE: u32 = 64;
const FULL: u32 = 8_192;

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0, since: STALE, p95: None }
    }
}

impl std::fmt::Debug for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Latency").field("total", &self.total).field("p95", &self.p95).finish_non_exhaustive()
    }
}

impl Latency {
    /// Counts a call that succeeded.
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket(micros(took))] += 1;
        self.total += 1;
        if self.total >= FULL {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().map(|count| u32::from(*count)).sum();
        }
        self.since += 1;
        if self.since >= STALE && self.total >= MEASURED {
            self.since = 0;
            self.p95 = Some(self.percentile(95));
        }
    }

    /// The 95th percentile, as of at most 64 calls ago; `None` before the 100th call.
    pub fn p95(&self) -> Option<Duration> {
        self.p95
    }

    fn percentile(&self, percent: u32) -> Duration {
        let mut left = self.total - self.total * percent / 100;
        for (index, count) in self.counts.iter().enumerate().rev() {
            match left.checked_sub(u32::from(*count)) {
                Some(rest) if rest > 0 => left = rest,
                _ => return Duration::from_micros(end_of(index)),
            }
        }
        Duration::ZERO
    }
}

/// The bucket of so many microseconds: eight of one microsecond each, then eight to each doubling. The last one, from 2^34 µs,
/// five hours, holds all that is longer.
fn bucket(us: u64) -> usize {
    if us < 8 {
        return us as usize;
    }
    let doublings = us.ilog2() as usize - 3;
    (doublings * 8 + 8 + ((us >> doublings) as usize & 7)).min(BUCKETS - 1)
}

/// The longest time of a bucket, exclusive.
fn end_of(index: usize) -> u64 {
    if index < 8 { index as u64 + 1 } else { (8 + (index as u64 & 7) + 1) << ((index - 8) / 8) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{BudgetPolicy, Random, Seen};
    use valkyrie_protocol::{Reason, Status};

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn budget() -> Budget {
        Budget::new(BudgetPolicy::default())
    }

    fn policy(max_copies: u32) -> HedgePolicy {
        let delay = Some(Duration::from_millis(50));
        HedgePolicy { enabled: true, max_copies, delay, ..HedgePolicy::default() }
    }

    fn begin(policy: &HedgePolicy, budget: &mut Budget) -> Hedge {
        Hedge::begin(policy, true, Some(at(1_000)), &Latency::default(), at(0), budget).expect("hedged")
    }

    fn unavailable() -> Failure {
        Failure::new(&Status::new(Code::Unavailable, ""), Seen::Perhaps)
    }

    #[test]
    fn is_off_by_default_and_never_for_a_call_that_is_not_idempotent() {
        let (latency, mut budget) = (Latency::default(), budget());
        assert!(Hedge::begin(&HedgePolicy::default(), true, None, &latency, at(0), &mut budget).is_none());
        assert!(Hedge::begin(&policy(5), false, None, &latency, at(0), &mut budget).is_none());
    }

    #[test]
    fn copies_go_out_after_the_delay_and_the_losers_are_named() {
        let mut budget = budget();
        let mut hedge = begin(&policy(3), &mut budget);
        assert_eq!(hedge.due(), Some(at(50)));
        assert_eq!(hedge.poll(at(49), &mut budget), HedgeStep::Wait);
        assert_eq!(hedge.poll(at(50), &mut budget), HedgeStep::Send(1));
        assert_eq!(hedge.poll(at(100), &mut budget), HedgeStep::Send(2));
        assert_eq!((hedge.due(), budget.tokens()), (None, 500 - 28));
        assert_eq!(hedge.poll(at(900), &mut budget), HedgeStep::Wait);
        assert_eq!(hedge.won(1, &mut budget), 0b101);
        assert_eq!(budget.tokens(), 500 - 14);
    }

    #[test]
    fn a_failure_that_is_not_fatal_sends_the_next_copy_at_once_and_a_fatal_one_ends_the_call() {
        let mut budget = budget();
        let mut hedge = begin(&policy(3), &mut budget);
        assert_eq!(hedge.failed(0, &unavailable(), at(10), &mut budget), HedgeStep::Send(1));
        assert_eq!(hedge.due(), Some(at(60)));
        assert_eq!(hedge.poll(at(60), &mut budget), HedgeStep::Send(2));
        let denied = Failure::new(&Status::from_reason(Reason::PERMISSION_DENIED, ""), Seen::Perhaps);
        assert_eq!(hedge.failed(2, &denied, at(61), &mut budget), HedgeStep::End(0b010));
    }

    #[test]
    fn the_last_failure_is_the_outcome() {
        let mut budget = budget();
        let mut hedge = begin(&policy(2), &mut budget);
        assert_eq!(hedge.poll(at(50), &mut budget), HedgeStep::Send(1));
        assert_eq!(hedge.failed(0, &unavailable(), at(60), &mut budget), HedgeStep::Wait);
        assert_eq!(hedge.failed(1, &unavailable(), at(70), &mut budget), HedgeStep::End(0));
    }

    #[test]
    fn pushback_delays_the_next_copy_or_ends_copies() {
        let mut budget = budget();
        let pushed = |wait| Failure { pushback: Some(wait), ..unavailable() };
        let mut hedge = begin(&policy(3), &mut budget);
        let wait = pushed(Duration::from_millis(200));
        assert_eq!(hedge.failed(0, &wait, at(10), &mut budget), HedgeStep::Wait);
        assert_eq!(hedge.due(), Some(at(210)));
        assert_eq!(hedge.poll(at(210), &mut budget), HedgeStep::Send(1));
        assert_eq!(hedge.due(), Some(at(260)));
        assert_eq!(hedge.failed(1, &pushed(Duration::MAX), at(220), &mut budget), HedgeStep::End(0));
    }

    #[test]
    fn after_one_that_is_not_sent_only_a_failure_sends_a_copy() {
        let mut budget = budget();
        let mut hedge = begin(&policy(3), &mut budget);
        assert_eq!(hedge.poll(at(50), &mut budget), HedgeStep::Send(1));
        assert_eq!((hedge.stop(Some(1)), hedge.due()), (HedgeStep::Wait, None));
        assert_eq!(hedge.failed(0, &unavailable(), at(60), &mut budget), HedgeStep::Send(2));
        assert_eq!(hedge.stop(Some(2)), HedgeStep::End(0));
    }

    #[test]
    fn without_budget_or_time_there_is_no_copy() {
        let mut budget = budget();
        while budget.take(Extra::Ordinary, at(0)).is_some() {}
        let mut hedge = begin(&policy(3), &mut budget);
        assert_eq!(hedge.poll(at(50), &mut budget), HedgeStep::Wait);
        assert_eq!(hedge.due(), None);
        let late = HedgePolicy { delay: Some(Duration::from_secs(1)), ..policy(3) };
        assert_eq!(begin(&late, &mut budget).due(), None);
    }

    #[test]
    fn the_percentile_is_at_most_an_eighth_too_high() {
        for seed in 0..20 {
            let mut random = Random::new(seed);
            let mut latency = Latency::default();
            let most = 10_u64.pow(1 + seed as u32 % 8);
            let mut all: Vec<u64> = (0..6_400).map(|_| random.below(most)).collect();
            all.iter().for_each(|us| latency.record(Duration::from_micros(*us)));
            all.sort_unstable();
            let (exact, found) = (all[all.len() * 95 / 100 - 1], micros(latency.p95().expect("measured")));
            assert!(found >= exact && found <= exact * 9 / 8 + 2, "{found} for {exact}, seed {seed}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for us in 0..100_000_u64 {
            let index = bucket(us);
            assert!(us < end_of(index) && (index == 0 || us >= end_of(index - 1)), "{us} in {index}");
        }
    }

    #[test]
    fn old_latencies_fade() {
        let mut latency = Latency::default();
        (0..100_000).for_each(|_| latency.record(Duration::from_secs(1)));
        (0..40_000).for_each(|_| latency.record(Duration::from_millis(1)));
        assert!(latency.p95().expect("measured") < Duration::from_millis(2));
    }

    #[test]
    fn latency_is_shown_without_its_buckets() {
        let shown = format!("{:?}", Latency::default());
        assert_eq!(shown, "Latency { total: 0, p95: None, .. }");
    }
}
