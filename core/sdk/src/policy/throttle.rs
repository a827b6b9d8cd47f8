//! Adaptive throttling: a client that a server refuses refuses part of its own calls, by the formula of the SRE book, chapter 21,
//! "Client-side throttling".
//!
//! p = max(0, (requests − K × accepts) / (requests + 1)), over the last two minutes. A request counts once its fate is known: many at
//! once are no sign of an overload. Two rules beside it, as by the formula alone a client that got no answer for two minutes would hardly ever learn that the server is back:
//!
//! * A call passes when none has passed for a second.
//! * When everything that passed was accepted for ten seconds, what came before is forgotten.

use std::time::Duration;

use valkyrie_protocol::{Class, Code, Reason, Time};

use super::{Random, window::Window};

/// When a client refuses its own calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottlePolicy {
    /// Whether it does. Default true.
    pub enabled: bool,
    /// K, in thousandths: how many calls a client sends for each that is accepted. Default 2,000 (SRE book).
    pub k_thousandths: u32,
    /// While fewer attempts than this are remembered, none is refused: so few overload nobody, and of so few the formula says little.
    /// Default 100.
    pub min_calls: u32,
    /// How long calls are remembered, in 24 buckets. Default 2 min (SRE book).
    pub window: Duration,
}

impl Default for ThrottlePolicy {
    fn default() -> Self {
        Self { enabled: true, k_thousandths: 2_000, min_calls: 100, window: Duration::from_secs(120) }
    }
}

/// At most this long passes without a call, while there are any.
const PROBE: Duration = Duration::from_secs(1);
/// So long nothing may fail for the past to be forgotten.
const HEALED: Duration = Duration::from_secs(10);
const REQUESTS: usize = 0;
const ACCEPTS: usize = 1;

/// The throttle of one client towards one set of backends. Each attempt asks it once.
#[derive(Clone, Debug)]
pub struct Throttle {
    policy: ThrottlePolicy,
    window: Window<24, 2>,
    passed: Time,
    failed: Time,
}

impl Throttle {
    /// A throttle that lets everything pass until something is refused.
    pub fn new(policy: ThrottlePolicy) -> Self {
        let window = Window::new(policy.window);
        Self { policy, window, passed: Time::default(), failed: Time::default() }
    }

    /// The policy is another one now. What is remembered stays, unless the window has another length.
    pub fn set_policy(&mut self, policy: ThrottlePolicy) {
        if policy.window != self.policy.window {
            self.window = Window::new(policy.window);
        }
        self.policy = policy;
    }

    /// Whether an attempt may go out. Draws once, and only while p > 0 and the second since the last one that passed is not over.
    /// What is refused here is final: retrying it would defeat the purpose.
    #[inline]
    pub fn admit(&mut self, now: Time, random: &mut Random) -> bool {
        if !self.policy.enabled {
            return true;
        }
        self.window.advance(now);
        let (part, whole) = self.probability();
        let few = self.window.total(REQUESTS) < u64::from(self.policy.min_calls);
        if part > 0 && !few && now.since(self.passed) < PROBE && random.below(whole) < part {
            self.window.add(REQUESTS);
            return false;
        }
        self.passed = now;
        true
    }

    /// The server answered an attempt: with success, or with an error that is not about its load.
    #[inline]
    pub fn accepted(&mut self, now: Time) {
        self.window.advance(now);
        self.window.add(REQUESTS);
        self.window.add(ACCEPTS);
        if now.since(self.failed) >= HEALED && self.probability().0 > 0 {
            self.window.clear();
        }
    }

    /// The server refused an attempt or did not answer it: [`Throttle::is_refusal`].
    #[inline]
    pub fn refused(&mut self, now: Time) {
        self.window.advance(now);
        self.window.add(REQUESTS);
        self.failed = now;
    }

    /// Whether an attempt that ended so was not accepted: UNAVAILABLE, RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED, but for what the
    /// client itself refused and for a fork.
    pub fn is_refusal(code: Code, reason: Reason) -> bool {
        let ours = match reason.class() {
            Class::Caller => reason != Reason::DEADLINE_EXCEEDED,
            _ => matches!(reason, Reason::FORKED | Reason::QUEUE_FULL),
        };
        !ours && matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded)
    }

    /// p as a fraction, in thousandths of a call: what is refused of what.
    pub fn probability(&self) -> (u64, u64) {
        let requests = self.window.total(REQUESTS).saturating_mul(1_000);
        let accepts = self.window.total(ACCEPTS).saturating_mul(u64::from(self.policy.k_thousandths));
        (requests.saturating_sub(accepts), requests + 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 100;

    fn throttle() -> Throttle {
        Throttle::new(ThrottlePolicy::default())
    }

    /// So many seconds of 100 calls each second, of which a server takes the first `room` of each second that arrive. Gives how
    /// many passed in each second.
    fn run(throttle: &mut Throttle, random: &mut Random, from: u64, seconds: u64, room: u64) -> Vec<u64> {
        let mut passed = Vec::new();
        for second in from..from + seconds {
            let mut arrived = 0;
            for call in 0..RATE {
                let now = Time::from_micros(second * 1_000_000 + call * (1_000_000 / RATE));
                if throttle.admit(now, random) {
                    arrived += 1;
                    if arrived <= room { throttle.accepted(now) } else { throttle.refused(now) }
                }
            }
            passed.push(arrived);
        }
        passed
    }

    #[test]
    fn matches_its_formula() {
        for room in [60, 50, 40, 30, 20, 10, 5, 0] {
            let (mut throttle, mut random) = (throttle(), Random::new(room));
            run(&mut throttle, &mut random, 0, 240, room);
            let passed = run(&mut throttle, &mut random, 240, 600, room);
            let refused = 100.0 - passed.iter().sum::<u64>() as f64 / passed.len() as f64;
            let formula = (100 - 2 * room.min(50)) as f64;
            assert!((refused - formula).abs() <= 2.0, "refuses {refused} %, by the formula {formula} %");
        }
    }

    #[test]
    fn one_that_succeeds_half_the_time_at_random_matches_it_too() {
        let (mut throttle, mut random, mut luck) = (throttle(), Random::new(1), Random::new(2));
        let (mut refused, mut expected) = (0_u64, 0.0);
        for call in 0..200_000_u64 {
            let now = Time::from_micros(call * 10_000);
            let (part, whole) = throttle.probability();
            expected += part as f64 / whole as f64;
            if !throttle.admit(now, &mut random) {
                refused += 1;
            } else if luck.below(2) == 0 {
                throttle.accepted(now);
            } else {
                throttle.refused(now);
            }
        }
        let difference = (refused as f64 - expected) / 2_000.0;
        assert!(difference.abs() <= 2.0, "{difference} points from the formula");
    }

    #[test]
    fn recovers_within_thirty_seconds_of_a_heal() {
        for (seed, room) in (0..50).step_by(5).enumerate() {
            let (mut throttle, mut random) = (throttle(), Random::new(seed as u64));
            run(&mut throttle, &mut random, 0, 300, room);
            let passed = run(&mut throttle, &mut random, 300, 60, RATE);
            let recovered = passed.iter().rposition(|passed| *passed < RATE).map_or(0, |last| last + 1);
            assert!(recovered <= 12, "after {recovered} s from {room} calls/s, seed {seed}");
        }
    }

    #[test]
    fn load_and_silence_are_refusals_and_what_the_caller_did_is_not() {
        for (reason, expected) in [
            (Reason::STREAM_REFUSED, true),
            (Reason::RATE_LIMITED, true),
            (Reason::CONNECTION_LOST, true),
            (Reason::DEADLINE_EXCEEDED, true),
            (Reason::MESSAGE_TOO_LARGE, false),
            (Reason::QUEUE_FULL, false),
            (Reason::FORKED, false),
            (Reason::PERMISSION_DENIED, false),
            (Reason::HANDLER_PANICKED, false),
        ] {
            assert_eq!(Throttle::is_refusal(reason.code(), reason), expected, "{reason}");
        }
    }

    #[test]
    fn a_healthy_server_costs_no_draw() {
        let (mut throttle, mut random) = (throttle(), Random::new(9));
        let before = random.clone();
        assert_eq!(run(&mut throttle, &mut random, 0, 300, RATE), vec![RATE; 300]);
        assert_eq!(random, before);
    }

    #[test]
    fn a_client_of_few_calls_is_never_throttled() {
        let (mut throttle, mut random) = (throttle(), Random::new(9));
        for second in 0..600 {
            let now = Time::from_micros(second * 1_000_000);
            assert!(throttle.admit(now, &mut random));
            throttle.refused(now);
        }
    }

    #[test]
    fn another_window_begins_empty_and_the_same_one_goes_on() {
        let mut random = Random::new(1);
        let mut throttle = throttle();
        assert!(run(&mut throttle, &mut random, 0, 60, 0)[59] < RATE, "it holds back");
        let (same, window) = (ThrottlePolicy::default(), Duration::from_secs(60));
        throttle.set_policy(same);
        assert!(run(&mut throttle, &mut random, 60, 1, 0)[0] < RATE, "what is remembered stays");
        throttle.set_policy(ThrottlePolicy { window, ..ThrottlePolicy::default() });
        assert_eq!(run(&mut throttle, &mut random, 61, 1, RATE), [RATE]);
    }
}
