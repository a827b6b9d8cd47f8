//! The circuit breaker of one backend and method: a backend that fails gets no calls for a while, then a few trial calls.
//!
//! ```text
//!                50 % failed or 90 % slow of at least 20 calls
//!     ┌────────┐ ─────────────────────────────────────────> ┌──────┐
//!     │ Closed │                                            │ Open │ <─────┐
//!     └────────┘ <───────────┐                              └──────┘       │
//!                            │ all 5 succeeded        5 s to 60 s │        │ one failed,
//!                            │                                    v        │ or none ended
//!                            │                           ┌──────────┐      │
//!                            └────────────────────────── │ HalfOpen │ ─────┘
//!                                                        └──────────┘
//!     any state ── isolate ──> Isolated ── restore ──> Closed
//! ```
//!
//! Each change of state begins an era. A permit carries the era that gave it, so what began in an earlier one changes nothing.
//! Ask before anything is queued; retries pass it like first attempts.

use std::time::Duration;

use valkyrie_protocol::{Class, Code, Reason, Time};

use super::{retry::Codes, window::Window};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Whether there is one. Isolating by hand works either way. Default true.
    pub enabled: bool,
    /// Failures in percent of the window's calls that open it. Default 50 (resilience4j).
    pub failure_percent: u32,
    /// Slow calls in percent that open it. Default 90.
    pub slow_percent: u32,
    /// A call that takes this long is slow. Default: none is.
    pub slow_call: Option<Duration>,
    /// Fewer calls in the window open nothing. Default 20: clients are small (resilience4j and Polly: 100).
    pub min_calls: u32,
    /// How long calls are remembered, in ten buckets. Default 10 s (Polly: 30 s).
    pub window: Duration,
    /// How long it stays open at first. Default 5 s (Polly).
    pub open: Duration,
    /// It doubles up to this each time that a trial call fails, or that it opens again within the time it was last open. Default 60 s.
    pub open_cap: Duration,
    /// Trial calls, all of which must succeed. Default 5 (resilience4j: 10).
    pub probes: u32,
    /// The codes that count as failures. Default: UNAVAILABLE and DEADLINE_EXCEEDED, which say that the backend is gone or stuck.
    /// INTERNAL and UNKNOWN do not: what a handler says of one caller's input shall not close the backend to others. Nor does
    /// RESOURCE_EXHAUSTED: it is a quota of the caller's, or load, for which there are the pushback and the throttle.
    pub codes: Codes,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_percent: 50,
            slow_percent: 90,
            slow_call: None,
            min_calls: 20,
            window: Duration::from_secs(10),
            open: Duration::from_secs(5),
            open_cap: Duration::from_secs(60),
            probes: 5,
            codes: Codes::of(&[Code::Unavailable, Code::DeadlineExceeded]),
        }
    }
}

impl BreakerPolicy {
    /// Whether a status is a failure of the backend: by its code, and never when it is the caller's doing, a matter of
    /// credentials, or a fork.
    pub fn is_failure(&self, code: Code, reason: Reason) -> bool {
        let ours = match reason.class() {
            Class::Caller => reason != Reason::DEADLINE_EXCEEDED,
            Class::Auth => true,
            _ => reason == Reason::FORKED,
        };
        !ours && self.codes.contains(code)
    }
}

/// A breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls pass and are counted.
    Closed,
    /// No call passes.
    Open,
    /// Trial calls pass, and no others.
    HalfOpen,
    /// Somebody holds it open by hand.
    Isolated,
}

impl BreakerState {
    /// The state in lower case, as traces and metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
            BreakerState::Isolated => "isolated",
        }
    }
}

/// A change of state, for whoever logs, watches or traces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The state before.
    pub from: BreakerState,
    /// The state now.
    pub to: BreakerState,
    /// When.
    pub at: Time,
}

/// The right to make one call. Give it back, to [`Breaker::done`] or, when the call did not come to an outcome, to
/// [`Breaker::cancelled`]; whoever holds it must do so also when it is dropped.
#[must_use = "a trial call's permit that is not given back is missed until the breaker's longest open time is over"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    era: u64,
}

/// A call that the breaker refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The state that refuses.
    pub state: BreakerState,
    /// When asking again can help; `None` when nobody knows: it is isolated, or its trial calls are under way.
    pub until: Option<Time>,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// Well, or with an error that is not the backend's.
    Success,
    /// With an error that counts: [`BreakerPolicy::is_failure`].
    Failure,
}

const CALLS: usize = 0;
const FAILURES: usize = 1;
const SLOW: usize = 2;

/// The breaker of one backend and method.
#[derive(Clone, Debug)]
pub struct Breaker {
    policy: BreakerPolicy,
    state: BreakerState,
    era: u64,
    /// When the state began.
    since: Time,
    /// Open: when it ends. Half-open: when trial calls that never ended are given up.
    until: Time,
    /// How long it was last open.
    open: Duration,
    /// Half-open: permits left, and successes.
    free: u32,
    successes: u32,
    window: Window<10, 3>,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            state: BreakerState::Closed,
            era: 0,
            since: Time::default(),
            until: Time::default(),
            open: Duration::ZERO,
            free: 0,
            successes: 0,
            window: Window::new(policy.window),
        }
    }

    /// A permit for a call now, or why not. The first one after the open time begins the trial calls, which is an edge.
    #[inline]
    pub fn acquire(&mut self, now: Time) -> (Result<Permit, Rejection>, Option<Edge>) {
        if self.state == BreakerState::Closed {
            return (Ok(Permit { era: self.era }), None);
        }
        self.acquire_slowly(now)
    }

    fn acquire_slowly(&mut self, now: Time) -> (Result<Permit, Rejection>, Option<Edge>) {
        let mut edge = None;
        match self.state {
            BreakerState::Open if now >= self.until => {
                edge = Some(self.enter(BreakerState::HalfOpen, now));
                self.free = self.policy.probes;
                self.until = now.after(self.policy.open_cap);
            }
            // Trial calls that neither ended nor were given back: the backend is stuck.
            BreakerState::HalfOpen if self.free == 0 && now >= self.until => edge = Some(self.trip(now)),
            _ => {}
        }
        if self.state == BreakerState::HalfOpen && self.free > 0 {
            self.free -= 1;
            return (Ok(Permit { era: self.era }), edge);
        }
        let until = (self.state == BreakerState::Open).then_some(self.until);
        (Err(Rejection { state: self.state, until }), edge)
    }

    /// Why a call would be refused now, without asking for it.
    pub fn refusal(&self, now: Time) -> Option<Rejection> {
        let refuses = match self.state {
            BreakerState::Closed => false,
            BreakerState::Open => now < self.until,
            BreakerState::HalfOpen => self.free == 0 && now < self.until,
            BreakerState::Isolated => true,
        };
        let until = (self.state == BreakerState::Open).then_some(self.until);
        refuses.then_some(Rejection { state: self.state, until })
    }

    /// A call ended after so long.
    #[inline]
    pub fn done(&mut self, permit: Permit, outcome: CallOutcome, took: Duration, now: Time) -> Option<Edge> {
        if permit.era != self.era {
            return None;
        }
        let slow = self.policy.slow_call.is_some_and(|slow| took >= slow);
        match self.state {
            BreakerState::Closed if self.policy.enabled => {
                self.window.advance(now);
                self.window.add(CALLS);
                if outcome == CallOutcome::Success && !slow {
                    return None;
                }
                if outcome == CallOutcome::Failure {
                    self.window.add(FAILURES);
                }
                if slow {
                    self.window.add(SLOW);
                }
                self.is_too_bad().then(|| self.trip(now))
            }
            BreakerState::HalfOpen if outcome == CallOutcome::Failure || slow => Some(self.trip(now)),
            BreakerState::HalfOpen => {
                self.successes += 1;
                (self.successes >= self.policy.probes).then(|| self.close(now))
            }
            _ => None,
        }
    }

    /// A call came to no outcome: it was cancelled, or never sent. A trial call may be made in its place.
    pub fn cancelled(&mut self, permit: Permit) {
        if permit.era == self.era && self.state == BreakerState::HalfOpen {
            self.free += 1;
        }
    }

    /// Refuses every call until [`Breaker::restore`], by hand. No edge when it does already.
    pub fn isolate(&mut self, now: Time) -> Option<Edge> {
        (self.state != BreakerState::Isolated).then(|| self.enter(BreakerState::Isolated, now))
    }

    /// Ends [`Breaker::isolate`]: closed, with nothing remembered. No edge when it was not isolated.
    pub fn restore(&mut self, now: Time) -> Option<Edge> {
        (self.state == BreakerState::Isolated).then(|| {
            self.open = Duration::ZERO;
            self.close(now)
        })
    }

    /// The policy is another one now. What is remembered stays, unless the window has another length; switched off, the breaker
    /// closes, from whatever state but isolated: the only edge from open to closed.
    pub fn set_policy(&mut self, policy: BreakerPolicy, now: Time) -> Option<Edge> {
        if policy.window != self.policy.window {
            self.window = Window::new(policy.window);
        }
        self.policy = policy;
        let trips = matches!(self.state, BreakerState::Open | BreakerState::HalfOpen);
        (trips && !policy.enabled).then(|| self.close(now))
    }

    /// The state. An open breaker whose time is over stays open until a call asks.
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// When its state last changed.
    pub(crate) fn since(&self) -> Option<Time> {
        (self.era > 0).then_some(self.since)
    }

    /// How often it has.
    pub(crate) fn changes(&self) -> u64 {
        self.era
    }

    /// Until when it is open.
    pub(crate) fn until(&self) -> Option<Time> {
        (self.state == BreakerState::Open).then_some(self.until)
    }

    /// The calls that are remembered, and how many of them failed.
    pub(crate) fn counts(&mut self, now: Time) -> (u64, u64) {
        self.window.advance(now);
        (self.window.total(CALLS), self.window.total(FAILURES))
    }

    /// The policy.
    pub fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    fn is_too_bad(&self) -> bool {
        let calls = self.window.total(CALLS);
        let share = |counter, percent: u32| self.window.total(counter) * 100 >= calls * u64::from(percent);
        calls >= u64::from(self.policy.min_calls)
            && (share(FAILURES, self.policy.failure_percent)
                || self.policy.slow_call.is_some() && share(SLOW, self.policy.slow_percent))
    }

    fn trip(&mut self, now: Time) -> Edge {
        // One that was closed for longer than it had been open has recovered in between.
        let recovered = self.state == BreakerState::Closed && now.since(self.since) > self.open;
        self.open = if recovered || self.open.is_zero() {
            self.policy.open
        } else {
            self.open.saturating_mul(2).min(self.policy.open_cap)
        };
        let edge = self.enter(BreakerState::Open, now);
        self.until = now.after(self.open);
        edge
    }

    fn close(&mut self, now: Time) -> Edge {
        self.window.clear();
        self.enter(BreakerState::Closed, now)
    }

    fn enter(&mut self, to: BreakerState, at: Time) -> Edge {
        let from = std::mem::replace(&mut self.state, to);
        self.era += 1;
        self.since = at;
        self.free = 0;
        self.successes = 0;
        Edge { from, to, at }
    }
}

#[cfg(test)]
mod tests {
    use super::{BreakerState::*, CallOutcome::*, *};
    use crate::policy::Random;

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn breaker() -> Breaker {
        Breaker::new(BreakerPolicy::default())
    }

    fn call(breaker: &mut Breaker, outcome: CallOutcome, now_ms: u64) -> Option<Edge> {
        let (permit, edge) = breaker.acquire(at(now_ms));
        assert_eq!(edge, None);
        breaker.done(permit.expect("let through"), outcome, Duration::ZERO, at(now_ms))
    }

    fn tripped(now_ms: u64) -> Breaker {
        let mut breaker = breaker();
        trip(&mut breaker, now_ms);
        breaker
    }

    fn trip(breaker: &mut Breaker, now_ms: u64) {
        while breaker.state() == Closed {
            call(breaker, Failure, now_ms);
        }
    }

    #[test]
    fn opens_at_half_of_twenty_calls_and_not_before() {
        let mut breaker = breaker();
        (0..10).for_each(|_| assert_eq!(call(&mut breaker, Success, 0), None));
        (0..9).for_each(|_| assert_eq!(call(&mut breaker, Failure, 0), None));
        let edge = call(&mut breaker, Failure, 9_000);
        assert_eq!(edge, Some(Edge { from: Closed, to: Open, at: at(9_000) }));
        let refused = |state, until_ms: Option<u64>| Err(Rejection { state, until: until_ms.map(at) });
        assert_eq!(breaker.acquire(at(13_999)), (refused(Open, Some(14_000)), None));
    }

    #[test]
    fn what_left_the_window_does_not_count() {
        let mut breaker = breaker();
        (0..19).for_each(|_| assert_eq!(call(&mut breaker, Failure, 0), None));
        (0..19).for_each(|_| assert_eq!(call(&mut breaker, Failure, 10_000), None));
        assert!(call(&mut breaker, Failure, 10_000).is_some());
    }

    #[test]
    fn slow_calls_open_it_when_they_are_watched() {
        let watched = BreakerPolicy { slow_call: Some(Duration::from_secs(1)), ..BreakerPolicy::default() };
        for (policy, expected) in [(watched, Open), (BreakerPolicy::default(), Closed)] {
            let mut breaker = Breaker::new(policy);
            for slow in 0..20 {
                let took = Duration::from_millis(if slow < 2 { 999 } else { 1_000 });
                let permit = breaker.acquire(at(0)).0.expect("closed");
                breaker.done(permit, Success, took, at(0));
            }
            assert_eq!(breaker.state(), expected);
        }
    }

    #[test]
    fn exactly_five_trial_calls_and_all_must_succeed() {
        let mut breaker = tripped(0);
        let mut permits = Vec::new();
        for caller in 0..1_000 {
            let (permit, edge) = breaker.acquire(at(5_000));
            assert_eq!(edge.is_some(), caller == 0);
            permits.extend(permit.ok());
        }
        assert_eq!((permits.len(), breaker.state()), (5, HalfOpen));
        let last = permits.pop().expect("five");
        for permit in permits {
            assert_eq!(breaker.done(permit, Success, Duration::ZERO, at(5_100)), None);
        }
        assert!(breaker.acquire(at(5_100)).0.is_err());
        let edge = breaker.done(last, Success, Duration::ZERO, at(5_200));
        assert_eq!(edge, Some(Edge { from: HalfOpen, to: Closed, at: at(5_200) }));
        assert_eq!(call(&mut breaker, Failure, 5_300), None, "nothing is remembered");
    }

    #[test]
    fn a_trial_call_that_fails_doubles_the_time_up_to_a_minute() {
        let mut breaker = tripped(0);
        let mut now = 0;
        for open_ms in [5_000, 10_000, 20_000, 40_000, 60_000, 60_000] {
            assert_eq!(breaker.acquire(at(now + open_ms - 1)).0.map_err(|no| no.state), Err(Open));
            now += open_ms;
            let (permit, edge) = breaker.acquire(at(now));
            assert_eq!(edge, Some(Edge { from: Open, to: HalfOpen, at: at(now) }));
            let edge = breaker.done(permit.expect("a trial call"), Failure, Duration::ZERO, at(now));
            assert_eq!(edge, Some(Edge { from: HalfOpen, to: Open, at: at(now) }));
        }
    }

    fn heal(breaker: &mut Breaker, now_ms: u64) {
        let permits: Vec<_> = (0..5).map(|_| breaker.acquire(at(now_ms)).0.expect("a trial call")).collect();
        for permit in permits {
            breaker.done(permit, Success, Duration::ZERO, at(now_ms));
        }
        assert_eq!(breaker.state(), Closed);
    }

    #[test]
    fn one_that_flaps_stays_open_longer_and_one_that_recovered_begins_anew() {
        let mut breaker = tripped(0);
        heal(&mut breaker, 5_000);
        trip(&mut breaker, 6_000);
        assert!(breaker.acquire(at(15_999)).0.is_err());
        heal(&mut breaker, 16_000);
        trip(&mut breaker, 26_001);
        assert!(breaker.acquire(at(31_000)).0.is_err());
        assert!(breaker.acquire(at(31_001)).0.is_ok());
    }

    #[test]
    fn what_began_in_an_earlier_era_changes_nothing() {
        let mut breaker = breaker();
        let late = |breaker: &mut Breaker| breaker.acquire(at(0)).0.expect("closed");
        let (one, two, three, four) =
            (late(&mut breaker), late(&mut breaker), late(&mut breaker), late(&mut breaker));
        trip(&mut breaker, 0);
        assert_eq!(breaker.done(one, Success, Duration::ZERO, at(1)), None);
        let (trial, _) = breaker.acquire(at(5_000));
        let before = format!("{breaker:?}");
        assert_eq!(breaker.done(two, Success, Duration::ZERO, at(5_001)), None);
        assert_eq!(breaker.done(three, Failure, Duration::ZERO, at(5_001)), None);
        breaker.cancelled(four);
        assert_eq!(format!("{breaker:?}"), before);
        let _ = breaker.done(trial.expect("a trial call"), Failure, Duration::ZERO, at(5_002));
        assert_eq!(breaker.state(), Open);
    }

    #[test]
    fn a_cancelled_trial_call_makes_room_for_another() {
        let mut breaker = tripped(0);
        let mut permits: Vec<_> = (0..5).map(|_| breaker.acquire(at(5_000)).0.expect("a trial")).collect();
        assert!(breaker.acquire(at(5_000)).0.is_err());
        breaker.cancelled(permits.pop().expect("five"));
        permits.push(breaker.acquire(at(5_000)).0.expect("its place"));
        assert!(breaker.acquire(at(5_000)).0.is_err());
    }

    #[test]
    fn trial_calls_that_never_end_open_it_again() {
        let mut breaker = tripped(0);
        let permits: Vec<_> = (0..5).map(|_| breaker.acquire(at(5_000)).0.expect("a trial")).collect();
        assert_eq!(breaker.acquire(at(64_999)).1, None);
        let (refused, edge) = breaker.acquire(at(65_000));
        assert_eq!(edge, Some(Edge { from: HalfOpen, to: Open, at: at(65_000) }));
        assert_eq!(refused, Err(Rejection { state: Open, until: Some(at(75_000)) }));
        for permit in permits {
            assert_eq!(breaker.done(permit, Success, Duration::ZERO, at(65_001)), None);
        }
    }

    #[test]
    fn by_hand_it_is_isolated_and_restored() {
        let mut breaker = tripped(0);
        assert_eq!(breaker.isolate(at(1)), Some(Edge { from: Open, to: Isolated, at: at(1) }));
        assert_eq!(breaker.isolate(at(2)), None);
        assert_eq!(breaker.acquire(at(1 << 40)).0, Err(Rejection { state: Isolated, until: None }));
        assert_eq!(breaker.restore(at(3)), Some(Edge { from: Isolated, to: Closed, at: at(3) }));
        assert_eq!(breaker.restore(at(4)), None);
        assert_eq!(call(&mut breaker, Failure, 5), None);
    }

    #[test]
    fn switched_off_it_counts_nothing() {
        let mut breaker = Breaker::new(BreakerPolicy { enabled: false, ..BreakerPolicy::default() });
        (0..1_000).for_each(|_| assert_eq!(call(&mut breaker, Failure, 0), None));
    }

    #[test]
    fn another_policy_holds_at_once_and_switching_off_closes() {
        let mut breaker = breaker();
        (0..5).for_each(|_| assert_eq!(call(&mut breaker, Failure, 0), None));
        let stricter = BreakerPolicy { min_calls: 6, ..BreakerPolicy::default() };
        assert_eq!(breaker.set_policy(stricter, at(1)), None);
        assert!(call(&mut breaker, Failure, 1).is_some());
        let off = BreakerPolicy { enabled: false, ..stricter };
        assert_eq!(breaker.set_policy(off, at(2)), Some(Edge { from: Open, to: Closed, at: at(2) }));
        breaker.isolate(at(3));
        assert_eq!(breaker.set_policy(off, at(4)), None);
        assert_eq!(breaker.state(), Isolated);
    }

    #[test]
    fn errors_of_callers_are_no_failures_of_a_backend() {
        let policy = BreakerPolicy::default();
        for code in Code::ALL {
            let expected = ["DEADLINE_EXCEEDED", "UNAVAILABLE"];
            assert_eq!(policy.is_failure(*code, Reason::NONE), expected.contains(&code.name()), "{code}");
        }
        assert!(policy.is_failure(Code::DeadlineExceeded, Reason::DEADLINE_EXCEEDED));
        assert!(!policy.is_failure(Code::Unavailable, Reason::FORKED));
        assert!(!policy.is_failure(Code::Unavailable, Reason::RECORD_AUTHENTICATION));
    }

    #[test]
    fn random_runs_make_legal_edges_only_and_never_too_many_trials() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut breaker = breaker();
            let (mut now, mut held, mut trials) = (0, Vec::new(), 0_i64);
            for _ in 0..3_000 {
                now += random.below(1_000);
                let edge = match random.below(1_000) {
                    0 => breaker.isolate(at(now)),
                    1..=20 => breaker.restore(at(now)),
                    21..=500 => {
                        let (permit, edge) = breaker.acquire(at(now));
                        if edge.is_some_and(|edge| edge.to == HalfOpen) {
                            trials = 0;
                        }
                        if let Ok(permit) = permit {
                            trials += 1;
                            assert!(breaker.state() != HalfOpen || trials <= 5, "seed {seed}");
                            held.push(permit);
                        }
                        edge
                    }
                    _ if held.is_empty() => None,
                    choice => {
                        let permit = held.swap_remove(random.below(held.len() as u64) as usize);
                        if choice < 600 {
                            trials -= i64::from(permit.era == breaker.era);
                            breaker.cancelled(permit);
                            None
                        } else {
                            let outcome = if random.below(10) < 6 { Failure } else { Success };
                            breaker.done(permit, outcome, Duration::ZERO, at(now))
                        }
                    }
                };
                if let Some(Edge { from, to, .. }) = edge {
                    let legal = matches!(
                        (from, to),
                        (Closed | HalfOpen, Open)
                            | (Open, HalfOpen)
                            | (HalfOpen | Isolated, Closed)
                            | (Closed | Open | HalfOpen, Isolated)
                    );
                    assert!(legal, "{from:?} to {to:?}, seed {seed}");
                    assert_eq!(breaker.state(), to);
                }
            }
        }
    }

    #[test]
    fn a_refusal_is_told_without_asking() {
        let mut breaker = breaker();
        assert_eq!(*breaker.policy(), BreakerPolicy::default());
        assert_eq!(breaker.refusal(at(0)), None);
        trip(&mut breaker, 0);
        let open = breaker.refusal(at(1)).expect("open");
        let half = open.until.expect("it is open until then");
        assert_eq!((open.state, breaker.refusal(half)), (Open, None));
        while breaker.acquire(half).0.is_ok() {}
        let full = breaker.refusal(half).expect("all of its probes are under way");
        assert_eq!((full.state, full.until), (HalfOpen, None));
    }
}
