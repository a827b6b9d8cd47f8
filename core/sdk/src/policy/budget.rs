//! The retry budget: what may be sent beyond the calls themselves, so that retries never make an outage worse.
//!
//! Two rules, both of which must agree. The bucket bounds the sum: with no success it pays for 35 retries, and then there are none
//! until something succeeds again. The window bounds the rate, at any time: at most 10 % beyond the calls of the last ten
//! seconds. So a client whose calls all fail sends 1.006 times its calls in the first minute at 100 calls a second.
//!
//! The calls of a lost connection fail together and are charged together: [`Rides`].

use std::time::Duration;

use valkyrie_protocol::Time;

use super::window::Window;

/// How much a client may send beyond its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetPolicy {
    /// What the bucket holds at most, and at first. Default 500 (AWS SDKs' retry quota).
    pub tokens: u32,
    /// What a retry after a transient failure or a timeout costs, and a hedged copy. Default 14 (AWS, 2026).
    pub cost: u32,
    /// What a retry after RESOURCE_EXHAUSTED costs. Default 5 (AWS).
    pub throttled_cost: u32,
    /// What a success without a retry gives back. Default 1 (AWS). A retry that succeeds gives back what it cost.
    pub refund: u32,
    /// Retries and copies in percent of the calls of the window. Default 10 (SRE book, chapter 21).
    pub extra_percent: u32,
    /// Retries and copies each second that are allowed whatever the percentage says, so that clients of few calls can retry.
    /// Default 10 (Finagle's RetryBudget).
    pub extra_per_second: u32,
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self { tokens: 500, cost: 14, throttled_cost: 5, refund: 1, extra_percent: 10, extra_per_second: 10 }
    }
}

/// How long the window is over which retries are compared with calls.
const WINDOW: Duration = Duration::from_secs(10);
const CALLS: usize = 0;
const EXTRA: usize = 1;

/// Tokens that a retry took, to be given back when it succeeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost(u32);

/// What a retry is for, which decides its price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extra {
    /// A retry after a transient failure or a timeout, or a hedged copy: [`BudgetPolicy::cost`].
    Ordinary,
    /// A retry of what the server had no room for: [`BudgetPolicy::throttled_cost`].
    Throttled,
    /// A transparent retry of a stream that the server refused: no tokens, but a place in the window.
    Refused,
    /// The first retry of a call of a connection that was lost, for all of them: [`BudgetPolicy::cost`], whatever the window holds.
    Lost,
    /// That of another one of its calls: nothing, and it counts in the window.
    Rider,
}

/// Who pays for the calls of a lost connection, of one backend: all of them fail together, for one reason, so the first retry of
/// each goes with one charge, at most once in half a minute. By the window alone a connection of many calls would lose all but 100 of
/// them; by the bucket, all but 35.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rides {
    paid: Option<(u64, Time)>,
}

/// A backend that loses a connection again within this time pays for each call: calls of a second would go out 1.03 times if it lost one
/// every half a minute, and twice if it lost one each second.
const RIDES: Duration = Duration::from_secs(30);

impl Rides {
    /// What the first retry of a call is for that failed with its connection.
    pub fn extra(&self, connection: u64, now: Time) -> Extra {
        match self.paid {
            Some((paid, _)) if paid == connection => Extra::Rider,
            Some((_, at)) if now.since(at) < RIDES => Extra::Ordinary,
            _ => Extra::Lost,
        }
    }

    /// One that was [`Extra::Lost`] goes out: the others of its connection go with it.
    pub fn paid(&mut self, connection: u64, now: Time) {
        self.paid = Some((connection, now));
    }
}

/// The retry budget of one client, shared by all of its calls.
#[derive(Clone, Debug)]
pub struct Budget {
    policy: BudgetPolicy,
    tokens: u32,
    window: Window<10, 2>,
    refused: u64,
}

impl Budget {
    /// A full bucket.
    pub fn new(policy: BudgetPolicy) -> Self {
        Self { policy, tokens: policy.tokens, window: Window::new(WINDOW), refused: 0 }
    }

    /// Counts a call at its first attempt.
    #[inline]
    pub fn called(&mut self, now: Time) {
        self.window.advance(now);
        self.window.add(CALLS);
    }

    /// Takes what one more attempt costs; `None`, and nothing is taken, when there is not enough.
    pub fn take(&mut self, extra: Extra, now: Time) -> Option<Cost> {
        self.window.advance(now);
        let cost = match extra {
            Extra::Ordinary | Extra::Lost => self.policy.cost,
            Extra::Throttled => self.policy.throttled_cost,
            Extra::Refused | Extra::Rider => 0,
        };
        let fits = matches!(extra, Extra::Lost | Extra::Rider) || self.window.total(EXTRA) < self.allowed();
        if self.tokens < cost || !fits {
            self.refused += 1;
            return None;
        }
        self.tokens -= cost;
        self.window.add(EXTRA);
        Some(Cost(cost))
    }

    /// A call succeeded; `cost` is what the attempt that did had taken.
    #[inline]
    pub fn succeeded(&mut self, cost: Option<Cost>) {
        let back = cost.map_or(self.policy.refund, |cost| cost.0);
        self.tokens = self.tokens.saturating_add(back).min(self.policy.tokens);
    }

    /// The policy is another one now; what was spent stays spent.
    pub fn set_policy(&mut self, policy: BudgetPolicy) {
        let spent = self.policy.tokens - self.tokens;
        self.tokens = policy.tokens.saturating_sub(spent);
        self.policy = policy;
    }

    /// The tokens that are left, for metrics.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// How often there was not enough, for metrics.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The policy.
    pub fn policy(&self) -> &BudgetPolicy {
        &self.policy
    }

    /// How many retries and copies the window may hold now.
    fn allowed(&self) -> u64 {
        let share = self.window.total(CALLS) * u64::from(self.policy.extra_percent) / 100;
        share.max(u64::from(self.policy.extra_per_second) * WINDOW.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Random;

    fn second(at: u64) -> Time {
        Time::from_micros(at * 1_000_000)
    }

    #[test]
    fn an_outage_ends_retries_after_thirty_five() {
        let mut budget = Budget::new(BudgetPolicy::default());
        let taken = (0..10_000).filter(|at| budget.take(Extra::Ordinary, second(*at)).is_some()).count();
        assert_eq!((taken, budget.tokens()), (500 / 14, 500 % 14));
        assert_eq!(*budget.policy(), BudgetPolicy::default());
        let throttled = (10_000..20_000).filter(|at| budget.take(Extra::Throttled, second(*at)).is_some());
        assert_eq!(throttled.count(), 2);
    }

    #[test]
    fn successes_fill_it_again_and_not_beyond() {
        let mut budget = Budget::new(BudgetPolicy::default());
        let cost = budget.take(Extra::Ordinary, second(0)).expect("full");
        budget.succeeded(Some(cost));
        assert_eq!(budget.tokens(), 500);
        while budget.take(Extra::Ordinary, second(0)).is_some() {}
        (0..4).for_each(|_| budget.succeeded(None));
        assert_eq!(budget.tokens(), 14);
        assert!(budget.take(Extra::Ordinary, second(0)).is_some());
        (0..1_000).for_each(|_| budget.succeeded(None));
        assert_eq!(budget.tokens(), 500);
    }

    #[test]
    fn another_policy_keeps_what_was_spent() {
        let mut budget = Budget::new(BudgetPolicy::default());
        let _ = budget.take(Extra::Ordinary, second(0));
        for (tokens, left) in [(100, 86), (500, 486), (10, 0), (500, 490)] {
            budget.set_policy(BudgetPolicy { tokens, ..BudgetPolicy::default() });
            assert_eq!(budget.tokens(), left);
        }
    }

    #[test]
    fn the_window_never_holds_more_than_its_share() {
        let seed = 42;
        let mut random = Random::new(seed);
        let mut budget = Budget::new(BudgetPolicy::default());
        let (mut now, mut extra, mut calls) = (0, Vec::new(), Vec::new());
        for _ in 0..30_000 {
            now += random.below(2_000);
            let time = Time::from_micros(now);
            budget.called(time);
            calls.push(now);
            // Tokens are no hindrance: refused streams cost none.
            if random.below(2) == 0 && budget.take(Extra::Refused, time).is_some() {
                extra.push(now);
                let from = (now / 1_000_000).saturating_sub(9) * 1_000_000;
                let within = |list: &[u64]| list.iter().rev().take_while(|at| **at >= from).count() as u64;
                let (extra, calls) = (within(&extra), within(&calls));
                assert!(extra <= (calls / 10).max(100), "{extra} of {calls} at {now}, seed {seed}");
            }
        }
        assert!(extra.len() > 2_000, "{} were let through", extra.len());
    }
}
