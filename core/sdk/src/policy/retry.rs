//! What becomes of a call whose attempt failed: another attempt, and when, or the failure is its outcome.
//!
//! ```text
//!            begin              failed
//!   new ──────────────> trying ────────> Retry { at } ── begin ──> trying
//!                          │       └───> GiveUp(why)
//!                          │ commit, replay buffer full
//!                          └───────────> committed ── failed ──> GiveUp(Committed or BufferFull)
//! ```
//!
//! The rules are gRFC A6's, with one more: a call that is not marked idempotent is never executed twice, so what
//! the server may have seen of it is not sent again, whatever the code says.

use std::time::Duration;

use valkyrie_protocol::{Class, Code, Reason, Status, Time};

use super::{
    Random,
    backoff::Backoff,
    budget::{Budget, Cost, Extra},
};

/// A set of status codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codes(u32);

impl Codes {
    /// No code.
    pub const NONE: Codes = Codes(0);

    /// Those codes. Codes without a name, and OK, are never in a set.
    pub const fn of(codes: &[Code]) -> Self {
        let mut set = 0;
        let mut at = 0;
        while at < codes.len() {
            set |= bit(codes[at]);
            at += 1;
        }
        Self(set)
    }

    /// Whether the code is in it.
    pub const fn contains(self, code: Code) -> bool {
        self.0 & bit(code) != 0
    }

    /// The codes in it, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Code> {
        Code::ALL.iter().copied().filter(move |code| self.contains(*code))
    }
}

const fn bit(code: Code) -> u32 {
    match code.number() {
        number @ 1..=16 => 1 << number,
        _ => 0,
    }
}

/// How a method's calls are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Whether a call that provably reached no handler is sent again at once, beside the attempts that count. Default true (gRFC
    /// A6).
    pub transparent: bool,
    /// Attempts, the first one counted. 1: no retry but the transparent one. Default 3 (SRE book, AWS); at most 5 (gRFC A6).
    pub max_attempts: u32,
    /// The wait before each. Default: full jitter below 25 ms, 50 ms, … 1 s.
    pub backoff: Backoff,
    /// The codes after which to try again. Default: UNAVAILABLE. RESOURCE_EXHAUSTED with a pushback counts as one of them.
    pub codes: Codes,
    /// The time limit of each attempt; one that it ends is tried again. Default: none, the call's deadline alone.
    pub attempt_timeout: Option<Duration>,
    /// How many bytes of its messages a call keeps to send them again; with more it is committed. Default 256 KiB for a call
    /// (gRPC's per-call buffer).
    pub buffer_bytes: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            transparent: true,
            max_attempts: 3,
            backoff: Backoff::default(),
            codes: Codes::of(&[Code::Unavailable]),
            attempt_timeout: None,
            buffer_bytes: 256 << 10,
        }
    }
}

/// What the server can have seen of an attempt. Only what this client itself knows of the connection may answer it, and never a
/// status that came over the wire: a server that is itself a client passes on the reasons of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: no byte left the client.
    Nothing,
    /// Bytes perhaps, and it said that it did not process them: the stream was reset with REFUSED, or a go-away names a
    /// lower stream.
    Unprocessed,
    /// Perhaps all of it.
    Perhaps,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub code: Code,
    /// The reason.
    pub reason: Reason,
    /// How long the server asks to wait; `Duration::MAX`: for ever.
    pub pushback: Option<Duration>,
    /// What the server can have seen.
    pub seen: Seen,
    /// The attempt's own time limit ended it, not the call's deadline.
    pub attempt_timeout: bool,
    /// What another attempt is for, where the code does not say it: [`Rides`](super::Rides).
    pub extra: Option<Extra>,
}

impl Failure {
    /// An attempt that ended with that status.
    pub fn new(status: &Status, seen: Seen) -> Self {
        let pushback = status.pushback();
        let (code, reason) = (status.code(), status.reason());
        Self { code, reason, pushback, seen, attempt_timeout: false, extra: None }
    }

    /// An attempt that its own time limit ended.
    pub fn attempt_timeout() -> Self {
        Self {
            code: Code::DeadlineExceeded,
            reason: Reason::DEADLINE_EXCEEDED,
            pushback: None,
            seen: Seen::Perhaps,
            attempt_timeout: true,
            extra: None,
        }
    }

    /// Whether no further attempt could change the outcome, whatever the policy says: credentials, certificates, versions and other
    /// breaches of the protocol, what the caller did, and a fork, after which the call goes on in the parent. A connection that
    /// ended inside a frame, or was silent, is none of them: its reasons read as UNAVAILABLE.
    pub fn is_final(&self) -> bool {
        match self.reason.class() {
            Class::Auth => true,
            Class::Caller => self.reason != Reason::DEADLINE_EXCEEDED,
            Class::Protocol => self.reason.code() != Code::Unavailable,
            Class::Transient => self.reason == Reason::FORKED,
            Class::Application | Class::Server => false,
        }
    }

    /// Whether the codes and the policy's rules about pushback and timeouts ask for another attempt.
    pub(super) fn is_retryable(&self, codes: Codes) -> bool {
        let throttled = self.code == Code::ResourceExhausted && self.pushback.is_some();
        !self.is_final() && (codes.contains(self.code) || throttled || self.attempt_timeout)
    }

    pub(super) fn extra(&self) -> Extra {
        let by_code = if self.code == Code::ResourceExhausted { Extra::Throttled } else { Extra::Ordinary };
        self.extra.unwrap_or(by_code)
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again at that instant, which is before the deadline.
    Retry {
        /// When.
        at: Time,
        /// The server did not process the attempt: this one is free and does not count.
        transparent: bool,
    },
    /// The failure is the call's outcome.
    GiveUp(GiveUp),
}

/// Why a failure is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// The first part of the response reached the caller.
    Committed,
    /// The call sent more than the replay buffer holds.
    BufferFull,
    /// The server asks not to try again.
    PushbackForbids,
    /// The code or the reason is not one to try again after.
    NotRetryable,
    /// The server may have seen the call, which is not marked idempotent.
    NotIdempotent,
    /// All attempts are used up.
    AttemptsExhausted,
    /// The next attempt would begin at or after the deadline.
    NoTime,
    /// The retry budget is empty.
    BudgetEmpty,
}

impl GiveUp {
    /// Each of them, in the order of their numbers.
    pub const ALL: [GiveUp; 8] = [
        GiveUp::Committed,
        GiveUp::BufferFull,
        GiveUp::PushbackForbids,
        GiveUp::NotRetryable,
        GiveUp::NotIdempotent,
        GiveUp::AttemptsExhausted,
        GiveUp::NoTime,
        GiveUp::BudgetEmpty,
    ];

    /// The reason in lower case, as traces and metrics write it.
    pub const fn name(self) -> &'static str {
        match self {
            GiveUp::Committed => "committed",
            GiveUp::BufferFull => "buffer_full",
            GiveUp::PushbackForbids => "pushback_forbids",
            GiveUp::NotRetryable => "not_retryable",
            GiveUp::NotIdempotent => "not_idempotent",
            GiveUp::AttemptsExhausted => "attempts_exhausted",
            GiveUp::NoTime => "no_time",
            GiveUp::BudgetEmpty => "budget_empty",
        }
    }
}

/// The attempts of one call.
#[derive(Clone, Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    idempotent: bool,
    deadline: Option<Time>,
    /// Attempts begun that count.
    begun: u32,
    /// The next attempt does not count, and there is no second one of its kind.
    transparent: Transparent,
    /// Retries since the last pushback, which the backoff grows with.
    backed_off: u32,
    buffered: u64,
    committed: Option<GiveUp>,
    /// What the running attempt took from the budget.
    cost: Option<Cost>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transparent {
    Unused,
    Next,
    Used,
}

impl Attempts {
    /// A call that has not begun. `idempotent`: the method is marked so, or the call carries an idempotency key.
    pub fn new(policy: RetryPolicy, idempotent: bool, deadline: Option<Time>) -> Self {
        Self {
            policy,
            idempotent,
            deadline,
            begun: 0,
            transparent: Transparent::Unused,
            backed_off: 0,
            buffered: 0,
            committed: None,
            cost: None,
        }
    }

    /// An attempt begins; the first one is counted by the budget. Gives its time limit: the sooner of the attempt's own and the call's
    /// deadline.
    #[inline]
    pub fn begin(&mut self, now: Time, budget: &mut Budget) -> Option<Time> {
        if self.transparent == Transparent::Next {
            self.transparent = Transparent::Used;
        } else {
            if self.begun == 0 {
                budget.called(now);
            }
            self.begun += 1;
        }
        Time::sooner(self.policy.attempt_timeout.map(|limit| now.after(limit)), self.deadline)
    }

    /// The first metadata or message of the response is about to reach the caller: no attempt follows any more (gRFC A6).
    #[inline]
    pub fn commit(&mut self) {
        self.committed.get_or_insert(GiveUp::Committed);
    }

    /// The caller sends so many bytes more: whether to keep them for another attempt. Once they are too many the call is
    /// committed, and what was kept can go.
    #[inline]
    pub fn keep(&mut self, bytes: u64) -> bool {
        self.buffered = self.buffered.saturating_add(bytes);
        if self.buffered > self.policy.buffer_bytes {
            self.committed.get_or_insert(GiveUp::BufferFull);
        }
        self.committed.is_none()
    }

    /// The running attempt succeeded.
    #[inline]
    pub fn succeeded(&mut self, budget: &mut Budget) {
        budget.succeeded(self.cost.take());
    }

    /// The running attempt failed at `now`. Draws once when the rules allow another attempt and no pushback says when. Hand in
    /// what the server or the connection refused, never what this client's throttle or breaker did: that is final.
    pub fn failed(
        &mut self,
        failure: &Failure,
        now: Time,
        budget: &mut Budget,
        random: &mut Random,
    ) -> Verdict {
        self.decide(failure, now, budget, random).unwrap_or_else(Verdict::GiveUp)
    }

    fn decide(
        &mut self,
        failure: &Failure,
        now: Time,
        budget: &mut Budget,
        random: &mut Random,
    ) -> Result<Verdict, GiveUp> {
        self.cost = None;
        if let Some(why) = self.committed {
            return Err(why);
        }
        if failure.pushback == Some(Duration::MAX) {
            return Err(GiveUp::PushbackForbids);
        }
        if failure.is_final() {
            return Err(GiveUp::NotRetryable);
        }
        if failure.seen != Seen::Perhaps
            && self.policy.transparent
            && failure.code == Code::Unavailable
            && self.transparent == Transparent::Unused
            && self.in_time(now, failure.pushback.unwrap_or_default()).is_ok()
            // What a server refuses is load, too: were it free, an outage of refusals would double it.
            && (failure.reason != Reason::STREAM_REFUSED || budget.take(Extra::Refused, now).is_some())
        {
            self.transparent = Transparent::Next;
            return Ok(Verdict::Retry {
                at: now.after(failure.pushback.unwrap_or_default()),
                transparent: true,
            });
        }
        if !failure.is_retryable(self.policy.codes) {
            return Err(GiveUp::NotRetryable);
        }
        if failure.seen == Seen::Perhaps && !self.idempotent {
            return Err(GiveUp::NotIdempotent);
        }
        if self.begun >= self.policy.max_attempts {
            return Err(GiveUp::AttemptsExhausted);
        }
        let wait = match failure.pushback {
            // Exactly what the server asks for, and the backoff begins anew after it (gRFC A6).
            Some(wait) => {
                self.backed_off = 0;
                wait
            }
            None => {
                let wait = self.policy.backoff.wait(self.backed_off, random);
                self.backed_off += 1;
                wait
            }
        };
        let at = self.in_time(now, wait)?;
        self.cost = Some(budget.take(failure.extra(), now).ok_or(GiveUp::BudgetEmpty)?);
        Ok(Verdict::Retry { at, transparent: false })
    }

    fn in_time(&self, now: Time, wait: Duration) -> Result<Time, GiveUp> {
        let at = now.after(wait);
        if self.deadline.is_some_and(|deadline| at >= deadline) { Err(GiveUp::NoTime) } else { Ok(at) }
    }

    /// Attempts that were begun and count against [`RetryPolicy::max_attempts`].
    pub fn begun(&self) -> u32 {
        self.begun
    }

    /// Whether no further attempt can follow.
    pub fn is_committed(&self) -> bool {
        self.committed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::BudgetPolicy;

    struct Call {
        attempts: Attempts,
        budget: Budget,
        random: Random,
    }

    impl Call {
        fn new(policy: RetryPolicy, idempotent: bool, deadline_ms: Option<u64>) -> Self {
            let attempts = Attempts::new(policy, idempotent, deadline_ms.map(at));
            let mut call =
                Self { attempts, budget: Budget::new(BudgetPolicy::default()), random: Random::new(1) };
            call.begin(0);
            call
        }

        fn begin(&mut self, now_ms: u64) -> Option<Time> {
            self.attempts.begin(at(now_ms), &mut self.budget)
        }

        fn failed(&mut self, failure: Failure, now_ms: u64) -> Verdict {
            self.attempts.failed(&failure, at(now_ms), &mut self.budget, &mut self.random)
        }
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    fn failure(reason: Reason, seen: Seen) -> Failure {
        Failure::new(&Status::from_reason(reason, ""), seen)
    }

    fn lost() -> Failure {
        failure(Reason::CONNECTION_LOST, Seen::Perhaps)
    }

    fn given_up(verdict: Verdict) -> GiveUp {
        match verdict {
            Verdict::GiveUp(why) => why,
            retry => panic!("{retry:?}"),
        }
    }

    fn retried(verdict: Verdict) -> (Time, bool) {
        match verdict {
            Verdict::Retry { at, transparent } => (at, transparent),
            given_up => panic!("{given_up:?}"),
        }
    }

    #[test]
    fn three_attempts_with_full_jitter_between_and_then_no_more() {
        let mut call = Call::new(RetryPolicy::default(), true, Some(5_000));
        for ceiling_ms in [25, 50] {
            let (when, transparent) = retried(call.failed(lost(), 100));
            assert!(!transparent && at(100) <= when && when <= at(100 + ceiling_ms), "{when:?}");
            call.begin(200);
        }
        assert_eq!(given_up(call.failed(lost(), 300)), GiveUp::AttemptsExhausted);
        assert_eq!(call.attempts.begun(), 3);
    }

    #[test]
    fn what_the_server_may_have_seen_of_a_call_that_is_not_idempotent_is_not_sent_again() {
        for reason in Reason::ALL {
            for code in Code::ALL {
                let policy = RetryPolicy { codes: Codes::of(Code::ALL), ..RetryPolicy::default() };
                let mut call = Call::new(policy, false, None);
                let failure = Failure { code: *code, ..failure(*reason, Seen::Perhaps) };
                assert!(matches!(call.failed(failure, 1), Verdict::GiveUp(_)), "{reason} {code}");
            }
        }
        let mut call = Call::new(RetryPolicy::default(), false, None);
        assert_eq!(given_up(call.failed(lost(), 1)), GiveUp::NotIdempotent);
        let mut call = Call::new(RetryPolicy::default(), false, None);
        assert_eq!(given_up(call.failed(Failure::attempt_timeout(), 1)), GiveUp::NotIdempotent);
    }

    #[test]
    fn what_the_server_did_not_process_is_free_once_and_then_counts() {
        for (reason, seen) in [
            (Reason::CONNECT_FAILED, Seen::Nothing),
            (Reason::STREAM_REFUSED, Seen::Unprocessed),
            (Reason::GOING_AWAY, Seen::Unprocessed),
        ] {
            let mut call = Call::new(RetryPolicy::default(), false, None);
            let before = call.random.clone();
            assert_eq!(retried(call.failed(failure(reason, seen), 7)), (at(7), true));
            assert_eq!((&call.random, call.budget.tokens()), (&before, 500));
            call.begin(7);
            assert_eq!(call.attempts.begun(), 1);
            for begun in 1..3 {
                assert!(!retried(call.failed(failure(reason, seen), 8)).1);
                assert_eq!(call.budget.tokens(), 500 - 14 * begun);
                call.begin(9);
            }
            assert_eq!(given_up(call.failed(failure(reason, seen), 10)), GiveUp::AttemptsExhausted);
        }
    }

    #[test]
    fn pushback_is_obeyed_to_the_microsecond() {
        let exhausted = |wait| {
            let status = Status::new(Code::ResourceExhausted, "").with_pushback(wait);
            Failure::new(&status, Seen::Perhaps)
        };
        let mut call =
            Call::new(RetryPolicy { max_attempts: 5, ..RetryPolicy::default() }, true, Some(10_000));
        let _ = retried(call.failed(lost(), 10));
        call.begin(20);
        let before = call.random.clone();
        assert_eq!(retried(call.failed(exhausted(Duration::from_millis(500)), 30)), (at(530), false));
        assert_eq!((&call.random, call.budget.tokens()), (&before, 500 - 14 - 5));
        call.begin(530);
        let (when, _) = retried(call.failed(lost(), 540));
        assert!(when <= at(565), "the backoff begins anew: {when:?}");
        call.begin(565);
        assert_eq!(given_up(call.failed(exhausted(Duration::MAX), 570)), GiveUp::PushbackForbids);
        assert_eq!(given_up(call.failed(exhausted(Duration::from_secs(20)), 570)), GiveUp::NoTime);
        let mut call = Call::new(RetryPolicy::default(), true, None);
        assert_eq!(retried(call.failed(exhausted(Duration::ZERO), 30)), (at(30), false));
        let without = Failure { pushback: None, ..exhausted(Duration::ZERO) };
        assert_eq!(given_up(call.failed(without, 30)), GiveUp::NotRetryable);
        let never = Failure { seen: Seen::Unprocessed, ..exhausted(Duration::MAX) };
        assert_eq!(given_up(call.failed(never, 30)), GiveUp::PushbackForbids);
    }

    #[test]
    fn random_calls_keep_every_promise() {
        for seed in 0..20_000 {
            let mut random = Random::new(seed);
            let (idempotent, max_attempts) = (random.below(2) == 0, 1 + random.below(5) as u32);
            let policy = RetryPolicy { max_attempts, codes: Codes::of(Code::ALL), ..RetryPolicy::default() };
            let deadline = random.below(2_000);
            let mut call = Call::new(policy, idempotent, Some(deadline));
            let (mut now, mut sent, mut perhaps) = (0, 1, 0);
            let why = loop {
                if random.below(20) == 0 {
                    call.attempts.commit();
                }
                let committed = call.attempts.is_committed();
                let seen = [Seen::Nothing, Seen::Unprocessed, Seen::Perhaps][random.below(3) as usize];
                perhaps += u32::from(seen == Seen::Perhaps);
                let reason = Reason::ALL[random.below(Reason::ALL.len() as u64) as usize];
                let wait = random.below(300);
                let pushback = (random.below(4) == 0).then_some(Duration::from_millis(wait));
                now += random.below(100);
                match call.failed(Failure { pushback, ..failure(reason, seen) }, now) {
                    Verdict::GiveUp(why) => break why,
                    Verdict::Retry { at: when, .. } => {
                        assert!(!committed && when >= at(now) && when < at(deadline), "seed {seed}");
                        assert!(pushback.is_none() || when == at(now + wait), "seed {seed}");
                        assert!(idempotent || perhaps == 0, "executed twice, seed {seed}");
                        now = when.as_micros().div_ceil(1_000);
                        call.begin(now);
                        sent += 1;
                    }
                }
            };
            // One of them was free.
            assert!(
                sent <= max_attempts + 1 && call.attempts.begun() <= max_attempts,
                "{why:?}, seed {seed}"
            );
        }
    }

    #[test]
    fn some_failures_stay_failures() {
        let all = RetryPolicy { codes: Codes::of(Code::ALL), ..RetryPolicy::default() };
        for reason in Reason::ALL {
            let expected = match reason.class() {
                Class::Auth => true,
                Class::Protocol => reason.code() != Code::Unavailable,
                Class::Caller => *reason != Reason::DEADLINE_EXCEEDED,
                _ => *reason == Reason::FORKED,
            };
            let mut call = Call::new(all, true, None);
            let verdict = call.failed(failure(*reason, Seen::Unprocessed), 1);
            assert_eq!(verdict == Verdict::GiveUp(GiveUp::NotRetryable), expected, "{reason}");
            let transparent = matches!(verdict, Verdict::Retry { transparent: true, .. });
            assert_eq!(transparent, !expected && reason.code() == Code::Unavailable, "{reason}");
        }
        for code in Code::ALL {
            let mut call = Call::new(RetryPolicy::default(), true, None);
            let verdict = call.failed(Failure::new(&Status::new(*code, ""), Seen::Perhaps), 1);
            assert_eq!(matches!(verdict, Verdict::Retry { .. }), *code == Code::Unavailable, "{code}");
        }
    }

    #[test]
    fn a_response_that_began_and_a_buffer_that_is_full_commit() {
        let mut call = Call::new(RetryPolicy::default(), true, None);
        assert!(call.attempts.keep(256 << 10));
        call.attempts.commit();
        assert_eq!(given_up(call.failed(failure(Reason::GOING_AWAY, Seen::Nothing), 1)), GiveUp::Committed);
        let mut call = Call::new(RetryPolicy::default(), true, None);
        assert!(call.attempts.keep(256 << 10));
        assert!(!call.attempts.keep(1) && call.attempts.is_committed());
        assert!(!call.attempts.keep(u64::MAX));
        assert_eq!(given_up(call.failed(lost(), 1)), GiveUp::BufferFull);
    }

    #[test]
    fn a_backoff_that_would_pass_the_deadline_gives_up_at_once_and_costs_nothing() {
        let mut call = Call::new(RetryPolicy::default(), true, Some(100));
        assert_eq!(given_up(call.failed(lost(), 100)), GiveUp::NoTime);
        assert_eq!(call.budget.tokens(), 500);
        assert_eq!(
            given_up(call.failed(failure(Reason::GOING_AWAY, Seen::Unprocessed), 100)),
            GiveUp::NoTime
        );
    }

    #[test]
    fn each_attempt_has_a_limit_within_the_deadline() {
        let policy =
            RetryPolicy { attempt_timeout: Some(Duration::from_millis(300)), ..RetryPolicy::default() };
        let mut call = Call::new(policy, true, Some(1_000));
        assert_eq!(call.begin(100), Some(at(400)));
        let _ = retried(call.failed(Failure::attempt_timeout(), 400));
        assert_eq!(call.begin(900), Some(at(1_000)));
    }

    #[test]
    fn a_retry_that_succeeds_gives_back_what_it_cost_and_an_empty_budget_ends_retries() {
        let mut call = Call::new(RetryPolicy { max_attempts: 5, ..RetryPolicy::default() }, true, None);
        let _ = retried(call.failed(lost(), 1));
        let _ = retried(call.failed(lost(), 2));
        assert_eq!(call.budget.tokens(), 472);
        call.attempts.succeeded(&mut call.budget);
        assert_eq!(call.budget.tokens(), 486);
        while call.budget.take(Extra::Ordinary, at(2)).is_some() {}
        assert_eq!(given_up(call.failed(lost(), 3)), GiveUp::BudgetEmpty);
    }
}
